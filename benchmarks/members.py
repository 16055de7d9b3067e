"""Measure n_jobs, and what the time of a fit is made of.

- jobs: seconds of a fit of a detector with ``n_jobs=1`` and with ``n_jobs=2``, whose
  workers have already been started, and the largest difference of their scores.
- cost: constants of a formula for the seconds of a fit, and measured beside computed
  seconds for shapes from which the constants do not come.

From the repository root, with the package installed::

    python benchmarks/members.py

``--only cost`` runs one section. Seconds of the section cost are processor time of one
thread, which depends less on other programs than wall time.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from skae import AutoencoderOutlierDetector, AutoencoderTransformer

# Number of times that a fit is repeated; the shortest time counts.
N_REPETITIONS = 3


def make_rows(n_samples: int, n_features: int) -> np.ndarray:
    """Return curved rows of five factors, with noise."""
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((n_samples, 5))
    X = np.tanh(factors @ rng.standard_normal((5, n_features)))
    return X + 0.1 * rng.standard_normal(X.shape)


def shortest(call: Callable[[], Any], clock: Callable[[], float]) -> float:
    """Return the shortest time of several calls."""
    times = []
    for _ in range(N_REPETITIONS):
        start = clock()
        call()
        times.append(clock() - start)
    return min(times)


# Workers


def compare_jobs() -> None:
    X = make_rows(20_000, 20)
    print("20,000 rows, 20 columns     n_jobs=1  n_jobs=2  ratio  difference of scores")
    cases: list[tuple[str, dict[str, Any]]] = [
        ("8 members", {"n_estimators": 8}),
        ("32 members", {"n_estimators": 32}),
        ("128 members", {"n_estimators": 128}),
        ("8 members, convolutions", {"n_estimators": 8, "network": "conv"}),
        ("8 members, variational", {"n_estimators": 8, "bottleneck": "gaussian"}),
    ]
    # More members than are trained as one network, so that the workers are started.
    AutoencoderOutlierDetector(n_estimators=32, max_epochs=1, n_jobs=2).fit(X[:1000])
    for name, settings in cases:
        one, two = (
            AutoencoderOutlierDetector(random_state=0, n_jobs=n_jobs, **settings)
            for n_jobs in (1, 2)
        )
        seconds = [
            shortest(lambda d=d: d.fit(X), time.perf_counter) for d in (one, two)
        ]
        scores = one.score_samples(X)
        difference = np.abs(two.score_samples(X) - scores).max() / np.abs(scores).mean()
        print(
            f"{name:26} {seconds[0]:9.2f} {seconds[1]:9.2f}"
            f" {seconds[0] / seconds[1]:6.2f} {difference:13.1e}"
        )


# The formula


class Shape(NamedTuple):
    """Shape of a fit.

    Attributes
    ----------
    n : int
        Number of rows, of which `trained` are read in each epoch.
    d, k, m : int
        Numbers of columns, components, and members.
    e : int
        Number of epochs.
    """

    n: int
    d: int
    k: int
    m: int
    e: int

    @property
    def batch_size(self) -> int:
        share = 1 / 2 if self.m > 1 else 1 / 8
        return min(max(math.ceil(share * self.n), 16 if self.m > 1 else 32), 128)


def n_weights(estimator: Any) -> int:
    """Return the number of weights of all members."""
    module = estimator.module_
    parts = (module.encoder, module.decoder)
    return sum(p.numel() for part in parts for p in part.parameters())


def detector_terms(shape: Shape, w: int) -> list[float]:
    n, d, _, _, e = shape
    steps = e * math.ceil(n / shape.batch_size)
    n_kept = min(n, 4096, max(512, 2**28 // n), 2**23 // d)
    return [1, steps, e * n * w, n * n_kept, n * n_kept * d]


def transformer_terms(shape: Shape, w: int) -> list[float]:
    n, d, _, _, e = shape
    n_train, n_held_out = 0.9 * n, min(0.1 * n, 2**15)
    steps = e * math.ceil(n_train / shape.batch_size)
    return [1, steps, e * n_train * w, e * n_held_out * w, n * d]


class Kind(NamedTuple):
    """An estimator whose time is described by a formula."""

    make: Callable[[Shape], Any]
    terms: Callable[[Shape, int], list[float]]
    names: Sequence[str]
    known: Sequence[Shape]
    new: Sequence[Shape]


def make_detector(shape: Shape) -> Any:
    return AutoencoderOutlierDetector(
        n_components=shape.k,
        n_estimators=shape.m,
        max_epochs=shape.e,
        random_state=0,
        n_threads=1,
        scale="feature",
    )


def make_transformer(shape: Shape) -> Any:
    return AutoencoderTransformer(
        shape.k, max_epochs=shape.e, early_stopping=True, random_state=0, n_threads=1
    )


KINDS = {
    "AutoencoderOutlierDetector": Kind(
        make_detector,
        detector_terms,
        ["fit", "steps", "e n w", "n n_kept", "n n_kept d"],
        [
            Shape(2_000, 10, 4, 16, 20),
            Shape(2_000, 100, 8, 16, 20),
            Shape(2_000, 100, 8, 4, 20),
            Shape(10_000, 20, 4, 8, 10),
            Shape(10_000, 20, 4, 16, 4),
            Shape(20_000, 50, 8, 16, 1),
            Shape(20_000, 50, 8, 16, 4),
            Shape(1_000, 400, 16, 8, 20),
            Shape(50_000, 10, 2, 4, 2),
            Shape(50_000, 50, 8, 16, 1),
            Shape(50_000, 200, 8, 4, 1),
            Shape(1_000, 20, 4, 16, 50),
        ],
        [
            Shape(5_000, 30, 8, 16, 10),
            Shape(20_000, 20, 8, 16, 5),
            Shape(3_000, 200, 8, 16, 10),
            Shape(50_000, 100, 8, 16, 1),
            Shape(1_000, 60, 4, 8, 50),
        ],
    ),
    "AutoencoderTransformer": Kind(
        make_transformer,
        transformer_terms,
        ["fit", "steps", "e n_train w", "e n_held_out w", "n d"],
        [
            Shape(2_000, 10, 2, 1, 10),
            Shape(2_000, 100, 5, 1, 10),
            Shape(2_000, 400, 10, 1, 4),
            Shape(10_000, 20, 2, 1, 5),
            Shape(10_000, 100, 10, 1, 2),
            Shape(50_000, 20, 5, 1, 1),
            Shape(50_000, 200, 5, 1, 1),
            Shape(20_000, 50, 2, 1, 3),
            Shape(1_000, 300, 5, 1, 10),
            Shape(1_000, 20, 2, 1, 40),
        ],
        [
            Shape(5_000, 30, 5, 1, 5),
            Shape(20_000, 20, 2, 1, 4),
            Shape(3_000, 200, 10, 1, 5),
            Shape(50_000, 100, 5, 1, 1),
            Shape(1_000, 60, 2, 1, 30),
        ],
    ),
}


def measure(kind: Kind, shape: Shape) -> tuple[float, list[float]]:
    """Return the seconds of a fit, and the terms of the formula."""
    X, estimator = make_rows(shape.n, shape.d), kind.make(shape)
    seconds = shortest(lambda: estimator.fit(X), time.process_time)
    if estimator.n_iter_ != shape.e:
        raise RuntimeError(f"{shape} was trained for {estimator.n_iter_} epochs.")
    return seconds, kind.terms(shape, n_weights(estimator))


def measure_cost() -> None:
    for name, kind in KINDS.items():
        seconds, terms = zip(*(measure(kind, s) for s in kind.known), strict=True)
        weight = 1 / np.array(seconds)  # relative errors count
        A = np.array(terms) * weight[:, None]
        size = A.max(axis=0)
        constants = nnls(A / size, np.ones(len(A)))[0] / size
        print(f"\n{name}, seconds for each")
        for term, constant in zip(kind.names, constants, strict=True):
            print(f"  {term:18} {constant:.2e}")
        print("        n    d   k   m   e  measured  computed  ratio")
        for shape in kind.new:
            found, of_shape = measure(kind, shape)
            computed = float(np.dot(constants, of_shape))
            sizes = "{:9,}{:5}{:4}{:4}{:4}".format(*shape)
            print(f"{sizes} {found:9.2f} {computed:9.2f} {computed / found:6.2f}")


SECTIONS: dict[str, Callable[[], None]] = {"jobs": compare_jobs, "cost": measure_cost}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=SECTIONS, help="run one section")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    for name, section in SECTIONS.items():
        if arguments.only in (None, name):
            if name == "cost":
                with threadpool_limits(1):
                    section()
            else:
                section()


if __name__ == "__main__":
    main()
