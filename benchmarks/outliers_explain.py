"""Known causes of outliers, and the explanations that `outliers.py` compares."""

from __future__ import annotations

import time
from typing import NamedTuple, Self

import numpy as np
from outliers_data import Split
from sklearn.ensemble import IsolationForest

KINDS = ("shift", "exchange")
N_SPOILT = 50  # rows of each kind
SHIFT = 4  # standard deviations of the training rows
N_BACKGROUND = 10  # training rows that replace hidden features
TRIALS = (32, 256)  # numbers of coalitions with which the time is measured


class Spoilt(NamedTuple):
    """Rows with one spoilt value each, and the columns of these values."""

    X: np.ndarray
    columns: np.ndarray


def spoil(split: Split, kind: str, seed: int) -> Spoilt:
    """Spoil one value of inliers among the test rows.

    A ``"shift"`` adds or subtracts `SHIFT` standard deviations of the column, an
    ``"exchange"`` takes another value from a random training row. Columns without two
    values in the training rows are not spoilt.
    """
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    inliers = np.flatnonzero(split.y_test == 0)
    drawn = rng.choice(inliers, min(N_SPOILT, len(inliers)), replace=False)
    X = split.X_test[drawn]
    varying = np.flatnonzero(np.ptp(split.X_train, axis=0) > 0)
    columns = rng.choice(varying, len(X))
    for row, column in enumerate(columns):
        values = split.X_train[:, column]
        if kind == "shift":
            X[row, column] += rng.choice([-SHIFT, SHIFT]) * values.std()
        else:
            X[row, column] = rng.choice(values[values != X[row, column]])
    return Spoilt(X, columns)


def share_found(contributions: np.ndarray, columns: np.ndarray) -> float:
    """Return the share of the rows whose spoilt column contributes most."""
    return float(np.mean(np.argmax(contributions, axis=1) == columns))


class ForestShap:
    """IsolationForest explained by KernelSHAP."""

    def __init__(self, random_state: int) -> None:
        self.random_state = random_state

    def fit(self, X: np.ndarray) -> Self:
        from shap import KernelExplainer, sample

        self.forest = IsolationForest(random_state=self.random_state).fit(X)
        background = sample(X, N_BACKGROUND, random_state=self.random_state)
        self.explainer = KernelExplainer(self.score, background)
        return self

    def score(self, X: np.ndarray) -> np.ndarray:
        return -self.forest.score_samples(X)

    def choose_n_coalitions(self, X: np.ndarray, seconds: float) -> None:
        """Choose the number that takes this processor time per row.

        The time is a linear function of the number; it is measured with rows of X.
        """
        few, many = TRIALS
        self.explain(X[:1], few)  # numba compiles in the first call
        times = [min(self.time_of(row, n) for row in X[:3]) for n in TRIALS]
        per_coalition = max((times[1] - times[0]) / (many - few), 1e-7)
        n_affordable = few + (seconds - times[0]) / per_coalition
        self.n_coalitions = max(int(n_affordable), few)

    def time_of(self, row: np.ndarray, n_coalitions: int) -> float:
        began = time.process_time()
        self.explain(row[np.newaxis], n_coalitions)
        return time.process_time() - began

    def explain(self, X: np.ndarray, n_coalitions: int) -> np.ndarray:
        return self.explainer.shap_values(
            X, nsamples=n_coalitions, l1_reg=False, silent=True
        )

    def feature_contributions(self, X: np.ndarray) -> np.ndarray:
        return self.explain(X, self.n_coalitions)
