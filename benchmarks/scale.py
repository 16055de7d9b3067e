"""Measure the estimators on a Dask cluster of worker processes on this machine.

- search: seconds of a `GridSearchCV` in one process and on the cluster, and whether the
  results are equal;
- map: rows per second and worker of `map_rows`, peak memory of each worker, and the
  bytes of the model that were sent, on a table that is larger than the memory limit of
  all workers (`--rows` sets its size). Dask sets MALLOC_TRIM_THRESHOLD_ in its workers
  by default; the last line is the rate with this setting, on a twentieth of the table;
- processes: seconds of training a network of 784-1000-500-250-30 units with batches of
  1,024 rows in one process and, by torchrun, in several, and the difference of the loss
  curves.

Each worker has one thread. Times include neither the start of the cluster nor that of
PyTorch in the workers. From the repository root, with the package installed::

    python benchmarks/scale.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import dask
import dask.array as da
import joblib
import numpy as np
import psutil
import sklearn
import torch
from dask.distributed import Client, LocalCluster
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV

from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae.distributed import map_rows

N_FEATURES = 1000
MEGABYTE = 1e6

# Number of trainings of each kind in the section processes.
N_REPEATS = 3

# What Dask sets in the environment of workers before they start.
TRIM_SETTING = "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_"


class Options(NamedTuple):
    """Options of the command line.

    Attributes
    ----------
    n_workers : int
    memory_limit : float
        Of each worker, in bytes.
    n_rows : int or None
        Rows of the table of the section map. None means 1.25 times as many bytes of
        rows as the memory limit of all workers.
    """

    n_workers: int
    memory_limit: float
    n_rows: int | None


def main() -> None:
    arguments = parse_arguments()
    options = Options(
        arguments.workers, arguments.memory_limit * MEGABYTE, arguments.rows
    )
    torch.set_num_threads(1)
    modules = (np, sklearn, torch, joblib, dask)
    names = ", ".join(f"{module.__name__} {module.__version__}" for module in modules)
    report(f"Python {platform.python_version()}, {names}")
    report(f"{psutil.cpu_count()} cores, {options.n_workers} workers with one thread")
    for name in arguments.only:
        report()
        SECTIONS[name](options)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS)
    )
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument(
        "--memory-limit", type=float, default=1000, help="MB of each worker"
    )
    parser.add_argument("--rows", type=int, help="rows of the section map")
    return parser.parse_args()


def report(line: str = "") -> None:
    print(line, flush=True)


@contextmanager
def workers(options: Options, trims_memory: bool = False) -> Iterator[Client]:
    """Context with a client of a cluster whose workers have imported the package.

    Parameters
    ----------
    options : Options
    trims_memory : bool, default=False
        Whether Dask sets the variable MALLOC_TRIM_THRESHOLD_ of the workers.
    """
    settings = {} if trims_memory else {TRIM_SETTING: None}
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=options.n_workers,
            threads_per_worker=1,
            memory_limit=options.memory_limit,
            dashboard_address=":0",
        ) as cluster,
        Client(cluster) as client,
    ):
        client.run(import_package)
        yield client


def import_package() -> None:
    import skae  # noqa: F401


def seconds_of(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the wall time of a call, and its result."""
    began = time.perf_counter()
    result = function()
    return time.perf_counter() - began, result


# 1. Search


def print_search(options: Options) -> None:
    X = load_digits().data
    search = GridSearchCV(
        AutoencoderTransformer(random_state=0, n_threads=1),
        {"n_components": [2, 4, 8, 16]},
        cv=3,
        refit=False,
    )
    report("search: four widths of the code on the digits, three folds, 12 fits")
    seconds, serial = seconds_of(lambda: clone(search).fit(X))
    report(f"  {'one process':14}{seconds:8.1f} s")
    with workers(options) as client, joblib.parallel_config("dask"):
        threads = client.run(torch.get_num_threads).values()
        parallel_seconds, parallel = seconds_of(lambda: clone(search).fit(X))
    scores = [s.cv_results_["mean_test_score"] for s in (serial, parallel)]
    name = f"{options.n_workers} workers"
    report(f"  {name:14}{parallel_seconds:8.1f} s, {seconds / parallel_seconds:.2f}x")
    report(f"  threads of PyTorch in the workers: {sorted(threads)}")
    report(f"  equal scores: {np.array_equal(*scores)}")


# 2. Predictions


class PeakMemory(threading.Thread):
    """Records the largest resident memory of processes until it is stopped."""

    def __init__(self, pids: list[int]) -> None:
        super().__init__(daemon=True)
        self.processes = [psutil.Process(pid) for pid in pids]
        self.peaks = [0] * len(pids)
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.02):
            self.record()

    def record(self) -> None:
        sizes = [process.memory_info().rss for process in self.processes]
        self.peaks = [max(pair) for pair in zip(self.peaks, sizes, strict=True)]

    def __enter__(self) -> PeakMemory:
        self.record()
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self.join()
        self.record()


def print_map(options: Options) -> None:
    row = 4 * N_FEATURES
    limit = options.n_workers * options.memory_limit
    n_rows = options.n_rows or int(1.25 * limit / row)
    chunk = min(n_rows, 5_000)
    rng = np.random.default_rng(0)
    X_train = rng.normal(size=(5_000, N_FEATURES)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        detector = AutoencoderOutlierDetector(n_neighbors=0, random_state=0)
        models = {
            "transform": AutoencoderTransformer(
                8, transform_max_iter=0, max_epochs=5, random_state=0
            ),
            "score_samples": detector.set_params(max_epochs=5),
        }
        for model in models.values():
            model.fit(X_train)
    report(
        f"map: {n_rows} x {N_FEATURES} in float32, {n_rows * row / MEGABYTE:.0f} MB in "
        f"chunks of {chunk * row / MEGABYTE:.0f} MB; limit of all workers "
        f"{limit / MEGABYTE:.0f} MB"
    )
    with workers(options) as client:
        table = da.random.default_rng(0).standard_normal(
            (n_rows, N_FEATURES), chunks=(chunk, -1), dtype=np.float32
        )
        for method, model in models.items():
            print_method(client, model, method, table)
    table = table[: max(chunk, n_rows // 20)]
    with workers(options, trims_memory=True) as client:
        for method, model in models.items():
            result = map_rows(model, method, table)
            seconds, _ = seconds_of(result.sum().compute)
            rate = len(table) / seconds / options.n_workers
            report(
                f"  {method} with Dask's MALLOC_TRIM_THRESHOLD_: {rate:.0f} rows per "
                "second and worker"
            )


def print_method(client: Client, model: Any, method: str, table: da.Array) -> None:
    pids = client.run(process_id)
    idle = [psutil.Process(pid).memory_info().rss for pid in pids.values()]
    result = map_rows(model, method, table)
    with PeakMemory(list(pids.values())) as memory:
        # The sum of the results, so that they need no memory here.
        seconds, _ = seconds_of(result.sum().compute)
    size = len(cloudpickle.dumps(model))
    n_received = sum(client.run(count_received).values())
    rate = len(table) / seconds / len(pids)
    report(f"  {method}: {seconds:.1f} s, {rate:.0f} rows per second and worker")
    peaks = ", ".join(f"{value / MEGABYTE:.0f}" for value in memory.peaks)
    before = ", ".join(f"{value / MEGABYTE:.0f}" for value in idle)
    report(f"    peak memory of each worker {peaks} MB, before {before} MB")
    report(
        f"    model of {size / MEGABYTE:.3f} MB, sent to one worker with the graph of "
        f"{table.npartitions} chunks, and {n_received} time(s) between workers"
    )
    assert client.run(process_id) == pids, "a worker exceeded its limit"
    # Compare a sample with the method itself.
    sample = table[:1_000].compute()
    expected = getattr(model, method)(sample)
    difference = np.abs(result[:1_000].compute() - expected).max()
    report(f"    largest difference from the method itself {difference:.1e}")
    client.run(forget_received)


def process_id() -> int:
    import os

    return os.getpid()


def count_received(dask_worker: Any) -> int:
    """Return how often a worker has received a model from another one."""
    log = dask_worker.transfer_incoming_log
    return sum("loads" in str(key) for event in log for key in event["keys"])


def forget_received(dask_worker: Any) -> None:
    dask_worker.transfer_incoming_log.clear()


def print_processes(options: Options) -> None:
    """Measure a training by several processes, each with one thread."""
    script = str(Path(__file__).with_name("scale_processes.py"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    several = [*torchrun, "--nproc-per-node", str(options.n_workers), script]
    report("processes: training, alternately in one process and in several")
    report(f"  {'one, s':>8}{'several, s':>12}{'ratio':>8}{'of it waiting, s':>18}")
    for _ in range(N_REPEATS):
        one, more = (
            run_json(command) for command in ([sys.executable, script], several)
        )
        report(
            f"  {one['seconds']:8.2f}{more['seconds']:12.2f}"
            f"{one['seconds'] / more['seconds']:8.2f}{more['waiting']:18.2f}"
        )
    curves = np.array([one["loss_curve"], more["loss_curve"]])
    difference = np.abs(curves[1] / curves[0] - 1)
    report(
        f"  {one['n_weights']} weights; relative difference of the loss curves: "
        f"{difference[0]:.1e} in the first epoch, at most {difference.max():.1e}"
    )


def run_json(command: list[str]) -> dict[str, Any]:
    """Return what a command prints in its last line, as JSON."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    output = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout
    return json.loads(output.splitlines()[-1])


SECTIONS: dict[str, Callable[[Options], None]] = {
    "search": print_search,
    "map": print_map,
    "processes": print_processes,
}


if __name__ == "__main__":
    main()
