"""Training on a folder of Parquet files: time, memory, and the share of waiting.

    python benchmarks/stream.py --gigabytes 10 --directory DIR

makes DIR/table, a nonlinear table of 20 columns in float64, unless it is there already,
and fits a transformer to it in a process of its own. Of a part that fits into memory,
``--compared`` rows, it also compares the explained variance of test rows after training
in memory and from partitions.
"""

import argparse
import json
import logging
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

N_COLUMNS = 20
N_LATENT = 4
ROWS_PER_FILE = 200_000
SEED = 0


def make_rows(n_rows, seed):
    """Rows near a curved surface of four dimensions, with noise.

    Its share of the variance, which a perfect code of four components explains, is .97.
    """
    weights = np.random.default_rng(SEED).normal(size=(2, N_LATENT, N_COLUMNS))
    rng = np.random.default_rng([SEED, seed])
    t = rng.uniform(-1, 1, (n_rows, N_LATENT))
    X = t @ weights[0] + np.sin(2 * t @ weights[1])
    return X + 0.17 * X.std(axis=0) * rng.normal(size=X.shape)


def make_table(directory, n_bytes):
    """Write Parquet files with a total size in memory; return their number."""
    import pandas as pd

    directory.mkdir(parents=True, exist_ok=True)
    n_files = max(6, round(n_bytes / (ROWS_PER_FILE * N_COLUMNS * 8)))
    for i in range(n_files):
        path = directory / f"part-{i:05d}.parquet"
        if not path.exists():
            names = [f"x{j}" for j in range(N_COLUMNS)]
            table = pd.DataFrame(make_rows(ROWS_PER_FILE, i), columns=names)
            table.to_parquet(path, compression=None)
    return n_files


def resident():
    """Return the resident memory of this process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class PeakMemory:
    """Context that records the largest resident memory, in MiB."""

    def __enter__(self):
        self.start = self.peak = resident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self):
        while not self._ended.wait(0.02):
            self.peak = max(self.peak, resident())

    def __exit__(self, *error):
        self._ended.set()
        self._thread.join()


def fit(arguments):
    """Fit to a folder, or to its rows in memory, and print the result as JSON."""
    import dask.dataframe as dd

    from skae import AutoencoderTransformer, _streamed

    times = []
    handler = logging.Handler()
    handler.emit = times.append
    logger = logging.getLogger("skae")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)
    table = dd.read_parquet(
        sorted(arguments.directory.glob("*.parquet"))[: arguments.n_files]
    )
    if arguments.in_memory:
        table = table.compute()
    else:
        _streamed.MAX_GATHERED = 0
    model = AutoencoderTransformer(
        N_LATENT,
        max_epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        random_state=0,
    )
    with PeakMemory() as memory:
        start = time.perf_counter()
        model.fit(table)
        seconds = time.perf_counter() - start
    import pandas as pd

    test = pd.DataFrame(make_rows(20_000, 10**6), columns=model.feature_names_in_)
    epochs = sum(record.epoch_time for record in times)
    result = {
        "seconds": seconds,
        "epochs": model.n_iter_,
        "epoch_seconds": epochs / max(1, len(times)),
        "waiting": sum(record.waiting_time for record in times) / max(epochs, 1e-9),
        "baseline_mib": memory.start,
        "peak_mib": memory.peak,
        "explained": model.score(test),
    }
    print(json.dumps(result))


def run(arguments, n_files, *options):
    """Fit in a process of its own."""
    command = [sys.executable, __file__, "--fit", "--n-files", str(n_files)]
    command += ["--directory", str(arguments.directory / "table")]
    command += ["--epochs", str(arguments.epochs)]
    command += ["--batch-size", str(arguments.batch_size), *options]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def report(name, n_rows, result):
    used = result["peak_mib"] - result["baseline_mib"]
    print(
        f"{name}: {n_rows:,} rows, {result['seconds']:.0f} s for "
        f"{result['epochs']} epochs; explained variance {result['explained']:.4f}; "
        f"peak memory {result['peak_mib']:.0f} MiB, {used:.0f} MiB above the imports"
    )
    if result["epoch_seconds"]:
        print(
            f"  an epoch {result['epoch_seconds']:.1f} s, "
            f"{n_rows / result['epoch_seconds']:,.0f} rows a second, waiting for data "
            f"{100 * result['waiting']:.1f} %"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--compared", type=int, default=2_000_000)
    parser.add_argument("--fit", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--in-memory", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--n-files", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.fit:
        fit(arguments)
        return
    n_files = make_table(arguments.directory / "table", arguments.gigabytes * 1e9)
    report("Parquet", n_files * ROWS_PER_FILE, run(arguments, n_files))
    n_compared = min(n_files, max(6, arguments.compared // ROWS_PER_FILE))
    for name, options in (("Parquet", ()), ("in memory", ("--in-memory",))):
        result = run(arguments, n_compared, *options)
        report(name, n_compared * ROWS_PER_FILE, result)


if __name__ == "__main__":
    main()
