"""Measurements of `outliers.py`: one method, one data set, one seed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from attempts import OutOfTimeError, format_error, quiet, time_limit
from outliers_data import DataSet, Split, Table
from outliers_explain import KINDS, ForestShap, share_found, spoil
from outliers_peers import (
    FOREST,
    KERNEL_SHAP,
    SKAE,
    ConformalForest,
    build,
    outlier_scores,
    warm_up,
)
from scipy.stats import false_discovery_control
from sklearn.metrics import (
    average_precision_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

ALARM = 0.05  # rows with such a p-value are alarms
FALSE_DISCOVERIES = 0.1  # the bound that Benjamini and Hochberg's procedure gets

Measures = dict[str, float]
Key = tuple[str, str, str, int]


class Result(NamedTuple):
    """Result of one method on one data set with one seed; one line of the CSV file.

    Attributes
    ----------
    seconds : float
        Processor time of the fit; of fits and predictions in the sections threshold,
        generated and pvalues; of the fit and the explanations in reasons.
    error : str
        Error message of a failed fit; empty otherwise.
    measures : dict
        Values by their names, which are those of the section's measurement.
    """

    section: str
    method: str
    table: str
    seed: int
    seconds: float
    error: str
    measures: Measures

    @property
    def key(self) -> Key:
        return self.section, self.method, self.table, self.seed

    @property
    def is_unfinished(self) -> bool:
        """Whether the method took too long."""
        return self.error.startswith(OutOfTimeError.__name__)


class Clock:
    """Processor time since the last call of `start`."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.began = time.process_time()

    def seconds(self) -> float:
        return time.process_time() - self.began


def measure(key: Key, data: DataSet, limit: float) -> Result:
    """Measure a method; a failure is a result, with the measures of a useless method.

    `limit` is the processor time that the measurement may take. In a ranking, a method
    that takes longer has no measures, and is compared on the other data sets.
    """
    section, method, _, seed = key
    warm_up(method)
    clock = Clock()
    try:
        with quiet(), time_limit(limit):
            seconds, measures = MEASUREMENTS[section](section, method, data, seed)
    except Exception as error:  # failures are reported as results
        measures = USELESS[section](data, seed)
        if isinstance(error, OutOfTimeError) and section in RANKINGS:
            measures = dict.fromkeys(measures, np.nan)
        return Result(*key, clock.seconds(), format_error(error), measures)
    return Result(*key, seconds, "", measures)


# Ranking


def measure_ranking(
    section: str, method: str, data: DataSet, seed: int
) -> tuple[float, Measures]:
    """Measure how well the scores rank the test rows."""
    split = data.split(seed, only_inliers=section != "contaminated")
    detector = build(method, seed, split.X_train.shape[1])
    clock = Clock()
    detector.fit(split.X_train)
    seconds = clock.seconds()
    scores = outlier_scores(detector, split.X_test)
    return seconds, ranking(split.y_test, scores)


def ranking(y: np.ndarray, scores: np.ndarray) -> Measures:
    """Both functions raise an error if a score is NaN or infinite."""
    return {
        "roc_auc": roc_auc_score(y, scores),
        "average_precision": average_precision_score(y, scores),
    }


def useless_ranking(data: DataSet, seed: int) -> Measures:
    return {"roc_auc": 0.5, "average_precision": test_share(data, seed)}


def test_share(data: DataSet, seed: int) -> float:
    return data.split(seed, only_inliers=True).y_test.mean()


# Predictions


def measure_threshold(
    section: str, method: str, data: DataSet, seed: int
) -> tuple[float, Measures]:
    """Measure predictions after a fit to contaminated rows and after one to inliers."""
    X_train, X_test, y_test = data.split(seed, only_inliers=False)
    X_inliers = data.split(seed, only_inliers=True).X_train
    contaminated, clean = (build_auto(method, seed, X_test) for _ in range(2))
    clock = Clock()
    is_flagged = contaminated.fit(X_train).predict(X_test) == -1
    is_false_alarm = clean.fit(X_inliers).predict(X_test[y_test == 0]) == -1
    seconds = clock.seconds()
    return seconds, {
        "precision": precision_score(y_test, is_flagged, zero_division=0.0),
        "recall": recall_score(y_test, is_flagged),
        "flagged": is_flagged.mean(),
        "flagged_inliers": is_false_alarm.mean(),
    }


def useless_threshold(data: DataSet, seed: int) -> Measures:
    precision = test_share(data, seed)
    values = (precision, 1.0, 1.0, 1.0)
    names = ("precision", "recall", "flagged", "flagged_inliers")
    return dict(zip(names, values, strict=True))


def measure_generated(
    section: str, method: str, data: Table, seed: int
) -> tuple[float, Measures]:
    """Measure predictions for generated rows; the label 2 marks new inliers."""
    is_new, is_outlier = data.y == 2, data.y == 1
    X, y = data.X[~is_new], data.y[~is_new]
    detector = build_auto(method, seed, X)
    clock = Clock()
    is_flagged = detector.fit(X).predict(data.X) == -1
    seconds = clock.seconds()
    return seconds, {
        "roc_auc": roc_auc_score(y, outlier_scores(detector, X)),
        "recall": is_flagged[is_outlier].mean(),
        "flagged_inliers": is_flagged[data.y == 0].mean(),
        "flagged_new": is_flagged[is_new].mean(),
    }


def useless_generated(data: Table, seed: int) -> Measures:
    flagged = dict.fromkeys(("recall", "flagged_inliers", "flagged_new"), 1.0)
    return {"roc_auc": 0.5} | flagged


def build_auto(method: str, seed: int, X: np.ndarray) -> Any:
    return build(method, seed, X.shape[1]).set_params(contamination="auto")


# P-values


def measure_p_values(
    section: str, method: str, data: DataSet, seed: int
) -> tuple[float, Measures]:
    """Measure alarms and discoveries after a fit to inliers and to contaminated rows.

    The names of the measures begin with ``clean`` and ``contaminated``.
    """
    measures: Measures = {}
    seconds = 0.0
    for name, only_inliers in (("clean", True), ("contaminated", False)):
        split = data.split(seed, only_inliers)
        n_compared = len(split.X_train)
        detector = build(method, seed, split.X_train.shape[1])
        if method == FOREST:
            detector = ConformalForest(detector, seed)
            n_compared -= n_compared // 2
        clock = Clock()
        p = detector.fit(split.X_train).p_values(split.X_test)
        seconds += clock.seconds()
        measures |= alarms(p, split, n_compared, name)
    return seconds, measures


def alarms(p: np.ndarray, split: Split, n_compared: int, name: str) -> Measures:
    """Return the share of alarms among the inliers, and what is discovered.

    The bound of the share of alarms has the standard errors of the test rows and of the
    `n_compared` training rows that they are compared with.
    """
    is_outlier = split.y_test == 1
    n_inliers = (~is_outlier).sum()
    variance = ALARM * (1 - ALARM) * (1 / n_inliers + 1 / n_compared)
    is_found = false_discovery_control(p, method="bh") <= FALSE_DISCOVERIES
    n_found = max(is_found.sum(), 1)
    return {
        f"{name}_alarms": np.mean(p[~is_outlier] <= ALARM),
        f"{name}_bound": ALARM + 2 * np.sqrt(variance),
        f"{name}_false": (is_found & ~is_outlier).sum() / n_found,
        f"{name}_power": is_found[is_outlier].mean(),
    }


def useless_p_values(data: DataSet, seed: int) -> Measures:
    measures: Measures = {}
    for name, only_inliers in (("clean", True), ("contaminated", False)):
        split = data.split(seed, only_inliers)
        p = np.zeros(len(split.X_test))
        measures |= alarms(p, split, len(split.X_train), name)
    return measures


# Reasons


def measure_reasons(
    section: str, method: str, data: DataSet, seed: int
) -> tuple[float, Measures]:
    """Measure how often the spoilt column is the one that contributes most."""
    split = data.split(seed, only_inliers=True)
    spoilt = {kind: spoil(split, kind, seed) for kind in KINDS}
    n_features = split.X_train.shape[1]
    detector = build(SKAE, seed, n_features)
    clock = Clock()
    detector.fit(split.X_train)
    found = {kind: detector.feature_contributions(spoilt[kind].X) for kind in KINDS}
    if method in KERNEL_SHAP:
        budget = KERNEL_SHAP[method] * clock.seconds()
        n_rows = sum(len(rows.X) for rows in spoilt.values())
        clock.start()
        explainer = ForestShap(seed).fit(split.X_train)
        explainer.choose_n_coalitions(
            split.X_test, max(budget - clock.seconds(), 0.0) / n_rows
        )
        clock.start()
        explainer.fit(split.X_train)
        found = {
            kind: explainer.feature_contributions(spoilt[kind].X) for kind in KINDS
        }
    seconds = clock.seconds()
    shares = {kind: share_found(found[kind], spoilt[kind].columns) for kind in KINDS}
    return seconds, shares | {"chance": 1 / n_features}


def useless_reasons(data: DataSet, seed: int) -> Measures:
    return dict.fromkeys(KINDS, 0.0) | {"chance": 1 / data.size().n_features}


# Time


def measure_seconds(
    section: str, method: str, data: DataSet, seed: int
) -> tuple[float, Measures]:
    """Measure the processor time of a fit, for skae also without held-out rows.

    There is no parameter for that: the function that divides the rows is replaced. The
    order of the two fits alternates with the seed.
    """
    X = data.split(seed, only_inliers=False).X_train
    holds_out = [True, False] if method == SKAE else [True]
    seconds = {False: np.nan}
    for holdout in holds_out[:: 1 if seed % 2 else -1]:
        replaced = mock.patch("skae._training.choose_holdout", return_value=None)
        detector = build(method, seed, X.shape[1])
        with contextlib.nullcontext() if holdout else replaced:
            clock = Clock()
            detector.fit(X)
            seconds[holdout] = clock.seconds()
    ratio = seconds[True] / seconds[False]
    measures = {"seconds": seconds[True], "without": seconds[False], "ratio": ratio}
    return seconds[True], measures


def useless_seconds(data: DataSet, seed: int) -> Measures:
    return dict.fromkeys(("seconds", "without", "ratio"), np.nan)


RANKINGS = ("contaminated", "clean", "odd", "digits")

MEASUREMENTS: dict[str, Callable[..., tuple[float, Measures]]] = {
    **dict.fromkeys(RANKINGS, measure_ranking),
    "threshold": measure_threshold,
    "generated": measure_generated,
    "pvalues": measure_p_values,
    "reasons": measure_reasons,
    "seconds": measure_seconds,
}
# What a failed measurement counts as.
USELESS: dict[str, Callable[..., Measures]] = {
    **dict.fromkeys(RANKINGS, useless_ranking),
    "threshold": useless_threshold,
    "generated": useless_generated,
    "pvalues": useless_p_values,
    "reasons": useless_reasons,
    "seconds": useless_seconds,
}
