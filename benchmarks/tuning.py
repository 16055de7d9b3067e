"""Measure the gain from tuning detectors with few labels or none.

For each detector and five of its settings, the mean ROC AUC on test rows of

- default: the default setting (skae: ``trim=0`` on clean rows);
- random: the mean over the settings;
- labels: the setting chosen by `outlier_scorer`, with up to 10 outliers and 50 inliers
  labelled among the training rows;
- agreement, artificial: the settings chosen by `AgreementScorer` and
  `ArtificialOutlierScorer`, without labels;
- best: the setting that is best on the test rows, an upper bound.

In the section contaminated the training rows include the outliers. In the section
clean, detectors are fitted to inliers only, and the labelled outliers are used for
scoring only.

At most 1,000 rows are drawn per data set, of which half are test rows; a draw with
fewer than three outliers among the training rows is skipped. Settings are compared by
stratified 3-fold cross-validation, and the chosen one is fitted to all training rows.
Results are means over the seeds, then over the data sets; standard errors are those of
the paired differences over the data sets. The autoencoder is measured on the data sets
of at most 2,200 rows and 100 columns. From the repository root, with the package
installed::

    python benchmarks/tuning.py --data DIR

where DIR/adbench contains ADBench's classical data sets as .npz files (arrays X and y,
where 1 is an outlier). ``--csv results.csv`` stores the results, and resumes from them.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from results_file import append, read
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedKFold,
    train_test_split,
)
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM
from threadpoolctl import threadpool_limits

from skae import AutoencoderOutlierDetector
from skae.model_selection import (
    AgreementScorer,
    ArtificialOutlierScorer,
    outlier_scorer,
)

SECTIONS = ("contaminated", "clean")
CHOICES = ("labels", "agreement", "artificial")

MAX_ROWS = 1_000
N_SPLITS = 3
N_OUTLIERS, N_INLIERS = 10, 50

# Largest shape of the data sets on which the autoencoder is measured.
MAX_SHAPE = (2_200, 100)


class Case(NamedTuple):
    """A detector, its settings, and the index of the default in each section."""

    detector: Any
    grid: list[dict[str, list]]
    default: tuple[int, int]


CASES = {
    "skae": Case(
        AutoencoderOutlierDetector(random_state=0),
        [
            {"trim": [0.2]},
            {"trim": [0.0]},
            {"trim": [0.0], "n_components": [2]},
            {"trim": [0.0], "loss": ["squared_error"], "error": ["loss"]},
            {"n_estimators": [1], "n_components": [3]},
        ],
        (0, 1),
    ),
    "LocalOutlierFactor": Case(
        LocalOutlierFactor(novelty=True),
        [{"n_neighbors": [20, 5, 10, 50, 100]}],
        (0, 0),
    ),
    "OneClassSVM": Case(
        OneClassSVM(), [{"gamma": ["scale", 0.001, 0.01, 0.1, 1.0]}], (0, 0)
    ),
}


class Result(NamedTuple):
    """Result of one setting on one data set with one seed; one line of the CSV file.

    Attributes
    ----------
    setting : int
        Position in the grid.
    roc_auc : float in [0, 1]
        Of the test rows.
    labels, agreement, artificial : float
        Cross-validated scores of the setting.
    """

    section: str
    detector: str
    table: str
    seed: int
    setting: int
    roc_auc: float
    labels: float
    agreement: float
    artificial: float


class ScoreWithoutOutliers:
    """A scorer that removes the labelled outliers before scoring."""

    def __init__(self, scorer: Any) -> None:
        self.scorer = scorer

    def __call__(self, estimator: Any, X: np.ndarray, y: np.ndarray) -> float:
        return self.scorer(estimator, X[y != -1])


def main() -> None:
    arguments = parse_arguments()
    paths = sorted((arguments.data / "adbench").glob("*.npz"))
    if not paths:
        sys.exit(f"MISSING: no data set (.npz) in {arguments.data / 'adbench'}.")
    torch.set_num_threads(1)
    measured: dict[tuple, list[Result]] = {}
    if arguments.csv is not None and arguments.csv.exists():
        for *names, seed, setting, a, b, c, d in read(arguments.csv, Result._fields):
            values = map(float, (a, b, c, d))
            result = Result(*names, int(seed), int(setting), *values)
            measured.setdefault(result[:4], []).append(result)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for section in arguments.only:
            for name in arguments.detectors:
                results = []
                for path in paths:
                    with np.load(path) as file:
                        X, y = file["X"].astype(float), file["y"].astype(int).ravel()
                    if name == "skae" and (
                        len(X) > MAX_SHAPE[0] or X.shape[1] > MAX_SHAPE[1]
                    ):
                        continue
                    for seed in arguments.seeds:
                        key = (section, name, path.stem, seed)
                        if key not in measured:
                            print(*key, file=sys.stderr, flush=True)
                            measured[key] = measure(key, X, y)
                            append(arguments.csv, Result._fields, measured[key])
                        if measured[key]:
                            results.append(measured[key])
                print_case(section, name, results)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        required=True,
        help="folder that contains adbench/*.npz",
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument(
        "--detectors", nargs="+", choices=list(CASES), default=list(CASES)
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1))
    parser.add_argument("--csv", type=Path, metavar="FILE", help="file of results")
    return parser.parse_args()


def measure(
    key: tuple[str, str, str, int], X: np.ndarray, y: np.ndarray
) -> list[Result]:
    """Measure all settings on one data set; return [] if there are too few outliers."""
    section, name, _, seed = key
    rng = np.random.default_rng(seed)
    if len(X) > MAX_ROWS:
        drawn = rng.choice(len(X), MAX_ROWS, replace=False)
        X, y = X[drawn], y[drawn]
    X, X_test, y, y_test = train_test_split(
        X, y, test_size=0.5, stratify=y, random_state=seed
    )
    labels = np.zeros(len(X), dtype=int)
    labels[rng.permutation(np.flatnonzero(y == 1))[:N_OUTLIERS]] = -1
    labels[rng.permutation(np.flatnonzero(y == 0))[:N_INLIERS]] = 1
    if np.sum(labels == -1) < N_SPLITS:
        return []
    is_clean = section == "clean"
    if is_clean:
        keep = (y == 0) | (labels == -1)
        X, labels = X[keep], labels[keep]
    is_training = labels != -1 if is_clean else np.ones(len(X), bool)
    folds = StratifiedKFold(N_SPLITS, shuffle=True, random_state=seed)
    agreement, artificial = AgreementScorer(), ArtificialOutlierScorer()
    detector, grid, _ = CASES[name]
    pipeline = make_pipeline(StandardScaler(), clone(detector))
    prefix = f"{pipeline.steps[-1][0]}__"
    grid = [{prefix + key: values for key, values in part.items()} for part in grid]
    search = GridSearchCV(
        pipeline,
        grid,
        scoring={
            "labels": outlier_scorer("roc_auc"),
            "agreement": ScoreWithoutOutliers(agreement) if is_clean else agreement,
            "artificial": ScoreWithoutOutliers(artificial) if is_clean else artificial,
        },
        cv=[(rows[is_training[rows]], test) for rows, test in folds.split(X, labels)],
        refit=False,
        error_score="raise",
    ).fit(X, labels)
    means = [search.cv_results_[f"mean_test_{choice}"] for choice in CHOICES]
    results = []
    for i, setting in enumerate(search.cv_results_["params"]):
        fitted = clone(pipeline).set_params(**setting).fit(X[is_training])
        roc_auc = roc_auc_score(y_test == 0, fitted.decision_function(X_test))
        results.append(Result(*key, i, roc_auc, *(mean[i] for mean in means)))
    return results


def print_case(section: str, name: str, results: list[list[Result]]) -> None:
    """Print one line for each way of choosing a setting."""
    default = CASES[name].default[SECTIONS.index(section)]
    chosen = {
        "default": over_tables(results, lambda group: group[default].roc_auc),
        "random": over_tables(
            results, lambda group: np.mean([c.roc_auc for c in group])
        ),
    }
    for choice in CHOICES:
        chosen[choice] = over_tables(
            results,
            lambda group, by=choice: max(group, key=lambda c: getattr(c, by)).roc_auc,
        )
    chosen["best"] = over_tables(results, lambda group: max(c.roc_auc for c in group))
    n_tables = len(chosen["default"])
    print(f"\n{section}, {name}: {len(results[0])} settings, {n_tables} data sets")
    print(f"{'chosen by':12}{'ROC AUC':>9}{'minus default':>20}{'minus random':>20}")
    for choice, areas in chosen.items():
        line = f"{choice:12}{areas.mean():9.3f}"
        for other in ("default", "random"):
            gain = areas - chosen[other]
            error = gain.std(ddof=1) / np.sqrt(n_tables)
            values = f"{gain.mean():+.3f} +- {error:.3f}" if choice != other else ""
            line += f"{values:>20}"
        print(line.rstrip(), flush=True)


def over_tables(results: list[list[Result]], statistic: Any) -> np.ndarray:
    """Return means of a statistic over the seeds, of shape (n_tables,)."""
    values: dict[str, list[float]] = {}
    for group in results:
        values.setdefault(group[0].table, []).append(statistic(group))
    return np.array([np.mean(v) for v in values.values()])


if __name__ == "__main__":
    main()
