"""Growth of a process that fits and predicts for a long time.

- fits: 1,000 fits of a transformer and of a detector, and of further kinds.
- rows: 100,000 predictions of one row.
- load: 60 seconds of requests to a web service, ``examples/plot_service.py``.

For each kind, the resident memory after a tenth of the calls, at the end, and the
difference in MB. Before the memory is read, garbage is collected, and the C library is
asked to return freed memory. The load is described by the number of requests and of
errors, the median and the 99th percentile of the time until the answer, and the memory
of the processes of the service after a fifth of the time and at the end.

From the repository root, with the package installed::

    python benchmarks/soak.py

``--only fits`` runs one section, ``--fits 100 --rows 10000 --seconds 10`` fewer calls.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import plot_service

import skae
from skae import AutoencoderOutlierDetector, AutoencoderTransformer

# Number of clients, and the requests of each between two connections.
N_CLIENTS, N_REQUESTS = 4, 100

BRIEF = {"max_epochs": 3, "random_state": 0, "n_threads": 1}

KINDS: dict[str, Callable[[], Any]] = {
    "transformer": lambda: AutoencoderTransformer(2, **BRIEF),
    "detector": lambda: AutoencoderOutlierDetector(2, **BRIEF),
    "variational": lambda: AutoencoderTransformer(2, bottleneck="gaussian", **BRIEF),
    "quantized": lambda: AutoencoderTransformer(2, bottleneck="quantized", **BRIEF),
    "convolutions": lambda: AutoencoderTransformer(2, network="conv", **BRIEF),
    "contractive": lambda: AutoencoderTransformer(2, penalty="contractive", **BRIEF),
}


def resident_memory() -> float:
    """Return the memory of this process in MB."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # in glibc
        libc.malloc_trim(0)
    return psutil.Process().memory_info().rss / 1e6


def measure(name: str, call: Callable[[], Any], n_calls: int) -> None:
    """Print the growth over the last nine tenths of some calls."""
    start = time.perf_counter()
    for _ in range(n_calls // 10):
        call()
    before = resident_memory()
    for _ in range(n_calls - n_calls // 10):
        call()
    after = resident_memory()
    seconds = time.perf_counter() - start
    print(
        f"  {name:24} {n_calls:8,} calls {before:7.1f} {after:7.1f} MB,"
        f" growth {after - before:5.1f} MB, {seconds / n_calls * 1e3:7.2f} ms each",
        flush=True,
    )


def load(X: np.ndarray, n_seconds: float) -> None:
    """Print how a web service answers several clients at once.

    Every tenth request has 100 rows, the others have one row.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "detector.safetensors"
        skae.save(KINDS["detector"]().fit(X), path)
        with plot_service.running_service(path) as (port, processes):
            members = [psutil.Process(process.pid) for process in processes]
            with closing(HTTPConnection("127.0.0.1", port)) as connection:
                plot_service.ask(connection, X[:1].tolist())  # waits for the start
            answers = _answers(port, X, n_seconds / 5)
            before = [member.memory_info().rss / 1e6 for member in members]
            answers += _answers(port, X, n_seconds * 4 / 5)
            after = [member.memory_info().rss / 1e6 for member in members]
    errors = [status for status, _ in answers if status != 200]
    median, late = np.percentile([1e3 * seconds for _, seconds in answers], [50, 99])
    print(
        f"  {len(answers):,} requests in {n_seconds:.0f} s, {len(errors)} errors, "
        f"median {median:.1f} ms, 99th percentile {late:.1f} ms"
    )
    for i, (first, last) in enumerate(zip(before, after, strict=True), 1):
        print(
            f"  process {i}: {first:.1f} {last:.1f} MB, growth {last - first:.1f} MB",
            flush=True,
        )


def _answers(port: int, X: np.ndarray, n_seconds: float) -> list[tuple[Any, float]]:
    """Return the status of each answer, or an error, and the seconds until it came."""
    end = time.perf_counter() + n_seconds
    single, batch = X[:1].tolist(), X[:100].tolist()

    def ask_until_the_end(_: int) -> list[tuple[Any, float]]:
        answers: list[tuple[Any, float]] = []
        while time.perf_counter() < end:
            with closing(HTTPConnection("127.0.0.1", port)) as connection:
                for i in range(N_REQUESTS):
                    start = time.perf_counter()
                    try:
                        rows = single if i % 10 else batch
                        status, _ = plot_service.ask(connection, rows)
                    except OSError as error:
                        status = repr(error)
                    answers.append((status, time.perf_counter() - start))
                    if status != 200 or time.perf_counter() > end:
                        break
        return answers

    with ThreadPoolExecutor(N_CLIENTS) as clients:
        return list(
            chain.from_iterable(clients.map(ask_until_the_end, range(N_CLIENTS)))
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=["fits", "rows", "load"])
    parser.add_argument("--fits", type=int, default=1_000)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    only = args.only or ["fits", "rows", "load"]
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    X = np.tanh(rng.normal(size=(200, 3)) @ rng.normal(size=(3, 10)))
    if "fits" in only:
        print("fits: 200 rows of 10 columns, 3 epochs")
        for name, make in KINDS.items():
            measure(name, lambda make=make: make().fit(X), args.fits)
    if "rows" in only:
        print("rows: predictions of one row")
        transformer, detector = (KINDS[k]().fit(X) for k in ("transformer", "detector"))
        row = X[:1]
        measure("transform", lambda: transformer.transform(row), args.rows)
        measure("score_samples", lambda: detector.score_samples(row), args.rows)
        measure("predict", lambda: detector.predict(row), args.rows)
    if "load" in only:
        print(f"load: a service of 2 processes, {N_CLIENTS} clients")
        load(X, args.seconds)


if __name__ == "__main__":
    main()
