"""Growth of a process that fits and predicts for a long time.

- fits: 1,000 fits of a transformer and of a detector, and of further kinds.
- rows: 100,000 predictions of one row.

For each kind, the resident memory after a tenth of the calls, at the end, and the
difference in MB. Before the memory is read, garbage is collected, and the C library is
asked to return freed memory.

From the repository root, with the package installed::

    python benchmarks/soak.py

``--only fits`` runs one section, ``--fits 100 --rows 10000`` fewer calls.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil

from skae import AutoencoderOutlierDetector, AutoencoderTransformer

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=["fits", "rows"])
    parser.add_argument("--fits", type=int, default=1_000)
    parser.add_argument("--rows", type=int, default=100_000)
    args = parser.parse_args()
    only = args.only or ["fits", "rows"]
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


if __name__ == "__main__":
    main()
