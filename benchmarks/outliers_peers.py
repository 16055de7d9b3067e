"""Detectors of `outliers.py`, and how they are built and seeded."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Self

import numpy as np
import torch
from attempts import quiet
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import NearestNeighbors

from skae import AutoencoderOutlierDetector, AutoencoderTransformer

SKAE = "skae"
SKAE_CLEAN = "skae, trim=0"
SKAE_ERROR = "skae, n_neighbors=0"  # the reconstruction error alone
TRANSFORMER = "transformer"
FOREST = "IsolationForest"  # of scikit-learn; PyOD's flags a fixed share
# Of scikit-learn's IsolationForest, with these multiples of the time of skae.
KERNEL_SHAP = {"KernelSHAP": 1, "KernelSHAP, 10x": 10}
# PyOD's classes, and the modules of pyod.models that hold them.
PYOD = {
    "IForest": "iforest",
    "GMM": "gmm",
    "INNE": "inne",
    "COPOD": "copod",
    "ECOD": "ecod",
    "HBOS": "hbos",
    "KNN": "knn",
    "LOF": "lof",
    "CBLOF": "cblof",
    "PCA": "pca",
    "MCD": "mcd",
    "OCSVM": "ocsvm",
    "AutoEncoder": "auto_encoder",
    "VAE": "vae",
    "LUNAR": "lunar",
    "DeepSVDD": "deep_svdd",
}


class MeanDistance:
    """Mean distance to the nearest training rows; five of them are DTE-NP."""

    def __init__(self, n_neighbors: int) -> None:
        self.n_neighbors = n_neighbors

    def fit(self, X: np.ndarray) -> Self:
        self.neighbors = NearestNeighbors(n_neighbors=self.n_neighbors).fit(X)
        return self

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        distances, _ = self.neighbors.kneighbors(X)
        return distances.mean(axis=1)


class ConformalForest:
    """Forest fitted to half of the rows, with p-values from the other half."""

    def __init__(self, forest: IsolationForest, random_state: int) -> None:
        self.forest = forest
        self.rng = np.random.default_rng(random_state)

    def fit(self, X: np.ndarray) -> Self:
        order = self.rng.permutation(len(X))
        half = len(X) // 2
        self.forest.fit(X[order[:half]])
        self.calibration = np.sort(self.forest.score_samples(X[order[half:]]))
        return self

    def p_values(self, X: np.ndarray) -> np.ndarray:
        scores = self.forest.score_samples(X)
        n_lower = np.searchsorted(self.calibration, scores, side="right")
        return (1 + n_lower) / (1 + len(self.calibration))


# Detectors that are not of PyOD; each factory gets the seed.
FACTORIES: dict[str, Callable[[int], Any]] = {
    SKAE: lambda seed: AutoencoderOutlierDetector(random_state=seed),
    SKAE_CLEAN: lambda seed: AutoencoderOutlierDetector(trim=0, random_state=seed),
    SKAE_ERROR: lambda seed: AutoencoderOutlierDetector(
        n_neighbors=0, random_state=seed
    ),
    TRANSFORMER: lambda seed: AutoencoderTransformer(
        n_components=16, random_state=seed
    ),
    "DTE-NP": lambda seed: MeanDistance(5),
    "NN1": lambda seed: MeanDistance(1),
    FOREST: lambda seed: IsolationForest(random_state=seed),
}

PEERS = (*PYOD, "DTE-NP", "NN1")


def missing_package(method: str) -> str | None:
    """Return the package that the method needs if it is not installed."""
    package = "pyod" if method in PYOD else "shap" if method in KERNEL_SHAP else None
    return package if package and find_spec(package) is None else None


def build(method: str, seed: int, n_features: int) -> Any:
    """Return a detector with its defaults.

    The global generators are seeded, too: some detectors of PyOD draw from them.
    """
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    if method in FACTORIES:
        return FACTORIES[method](seed)
    detector = getattr(import_module(f"pyod.models.{PYOD[method]}"), method)
    accepted = inspect.signature(detector).parameters
    optional = {"random_state": seed, "verbose": 0, "n_features": n_features}
    return detector(**{name: optional[name] for name in optional if name in accepted})


def outlier_scores(detector: Any, X: np.ndarray) -> np.ndarray:
    """Return scores that are high for outliers, as in PyOD (not scikit-learn)."""
    if hasattr(detector, "score_samples"):
        return -detector.score_samples(X)
    return detector.decision_function(X)


@cache
def warm_up(method: str) -> None:
    """Fit once, so that imports and compilation are not part of the measured time."""
    X = np.random.default_rng(0).standard_normal((200, 5))
    # A failure is reported when the method is fitted to a data set.
    with quiet(), contextlib.suppress(Exception):
        outlier_scores(build(method, 0, 5).fit(X), X)
