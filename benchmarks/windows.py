"""Measure detectors on windows of series and on images.

Five simulated series with faults (see `windows_data.py`): the ROC AUC of points, whose
scores are means over windows, and that of windows, which are outliers if they contain
a fault. A detector is fitted to a series without faults and scores a new series
("clean"), or fitted to the series with faults that it scores ("faulty"). Channels are
standardised, and all detectors have their defaults.

Digits of scikit-learn: one digit against the others, with clean training images.

From the repository root, with the package installed::

    python benchmarks/windows.py

``--tuning`` measures on the series on which settings are compared, and on digits of
MNIST with ``--data DIR``, where DIR contains mnist.npz. It uses one thread; seconds are
processor time of a fit.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor
from sklearn.preprocessing import StandardScaler
from windows_data import REPORTED, TUNING, Images, Kind, draw, mnist, small_digits

from skae import AutoencoderOutlierDetector
from skae.windows import SlidingWindows, point_scores, sliding_windows


class LOF(OutlierMixin, BaseEstimator):
    """Local outlier factor, which scores its training rows as `fit_predict` does."""

    def fit(self, X: np.ndarray, y: None = None) -> LOF:
        self.X_, self.model_ = X, LocalOutlierFactor(novelty=True).fit(X)
        return self

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        if X is self.X_:
            return self.model_.negative_outlier_factor_
        return self.model_.score_samples(X)


Shape = tuple[int, ...]
DETECTORS: dict[str, Callable[[Shape, int], Any]] = {
    "skae": lambda shape, seed: AutoencoderOutlierDetector(random_state=seed),
    "skae, input_shape": lambda shape, seed: AutoencoderOutlierDetector(
        input_shape=shape, random_state=seed
    ),
    "skae, conv": lambda shape, seed: AutoencoderOutlierDetector(
        network="conv", input_shape=shape, random_state=seed
    ),
    "LOF": lambda shape, seed: LOF(),
    "IsolationForest": lambda shape, seed: IsolationForest(random_state=seed),
}


class Result(NamedTuple):
    """ROC AUC of the rows, and of the points of a series, and seconds of the fit."""

    rows: float
    points: float
    seconds: float


def fit(detector: Any, X: np.ndarray) -> float:
    """Fit a detector and return the processor time."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        detector.fit(X)
    return time.process_time() - start


def detect(name: str, kind: Kind, seed: int, n_points: int, *, clean: bool) -> Result:
    """Detect the faults of a series."""
    rng = np.random.default_rng(seed)
    train = draw(kind, rng, n_points, faults=not clean)
    test = draw(kind, rng, n_points) if clean else train
    scaler, windows = StandardScaler().fit(train.values), SlidingWindows(kind.width)
    X_train = windows.fit_transform(scaler.transform(train.values))
    X_test = windows.transform(scaler.transform(test.values)) if clean else X_train
    n_channels = train.values.shape[1]
    shape = (kind.width,) if n_channels == 1 else (n_channels, 1, kind.width)
    detector = DETECTORS[name](shape, seed)
    seconds = fit(detector, X_train)
    scores = -detector.score_samples(X_test)
    is_outlier = sliding_windows(test.is_fault, kind.width).any(axis=1)
    of_points = point_scores(scores, n_points, kind.width)
    return Result(
        float(roc_auc_score(is_outlier, scores)),
        float(roc_auc_score(test.is_fault, of_points)),
        seconds,
    )


def recognize(name: str, images: Images, digit: int, seed: int) -> Result:
    """Detect other digits after a fit to half of the images of one."""
    rng = np.random.default_rng(seed)
    own = rng.permutation(images.pixels[images.digits == digit])
    n_train = min(len(own) // 2, 1_000)
    others = rng.permutation(images.pixels[images.digits != digit])[:1_000]
    detector = DETECTORS[name](images.shape, seed)
    seconds = fit(detector, own[:n_train])
    X_test = np.vstack([own[n_train : n_train + 1_000], others])
    is_other = np.arange(len(X_test)) >= len(X_test) - len(others)
    area = float(roc_auc_score(is_other, -detector.score_samples(X_test)))
    return Result(area, area, seconds)


def measure(arguments: argparse.Namespace) -> Iterator[tuple[str, str, list[Result]]]:
    """Yield the names of a detector and of a data set, and the results of the seeds."""
    kinds = TUNING if arguments.tuning else REPORTED
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    for name in arguments.detectors:
        for training in ("clean", "faulty"):
            for of_kind, kind in kinds.items():
                results = [
                    detect(
                        name, kind, seed, arguments.points, clean=training == "clean"
                    )
                    for seed in seeds
                ]
                yield name, f"{of_kind}, {training}", results
        if arguments.tuning and arguments.data is None:
            continue
        images = mnist(arguments.data) if arguments.tuning else small_digits()
        for digit in arguments.digits:
            results = [recognize(name, images, digit, seed) for seed in seeds]
            yield name, f"digit {digit}", results


def report(name: str, data: str, results: list[Result]) -> None:
    means = " ".join(f"{value:9.3f}" for value in np.mean(results, axis=0))
    print(f"{name:18} {data:22} {means}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--tuning", action="store_true", help="series on which settings are compared"
    )
    parser.add_argument("--data", type=Path, help="folder with mnist.npz")
    parser.add_argument("--points", type=int, default=2_000, help="length of a series")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--digits", type=int, nargs="*", default=list(range(10)))
    parser.add_argument(
        "--detectors", nargs="*", choices=DETECTORS, default=list(DETECTORS)
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'detector':18} {'data':22} {'windows':>9} {'points':>9} {'seconds':>9}")
    groups: dict[str, dict[str, list[Result]]] = {}
    for name, data, results in measure(arguments):
        report(name, data, results)
        kind = data.partition(", ")[2] or "digits"
        groups.setdefault(kind, {}).setdefault(name, []).extend(results)
    for kind, by_name in groups.items():
        for name, results in by_name.items():
            report(name, f"mean, {kind}", results)


if __name__ == "__main__":
    main()
