"""Measure the outlier detector and compare it with the detectors of PyOD.

- contaminated: ROC AUC and average precision of `AutoencoderOutlierDetector` and of
  twelve detectors of PyOD, all with their defaults, fitted to training rows that
  include outliers;
- novelty: the same after a fit to the inliers of the training rows only, skae with
  ``trim=0``, compared with the PyOD detectors that are used for novelty detection;
- threshold: rows that `predict` flags with ``contamination="auto"``, compared with
  scikit-learn's IsolationForest: precision, recall and share of flagged test rows
  after a fit to contaminated rows, and share of flagged inliers after a fit to inliers;
- generated: the same two detectors on two clusters of 200 rows each with uniform
  outliers that keep their distance from both: share of the outliers that is found,
  share of the other training rows that is flagged, and that of new rows without
  outliers; and on eight rows, two of them outliers. This section needs no data.

At most 10,000 rows are drawn per data set; 30% of them are test rows, stratified by
label; features are standardised by all training rows. A result is the mean over the
seeds, then over the data sets; its standard error is that of the paired differences
over the data sets. Fits run one after another on one thread; their processor time is
measured, after each method has been fitted once to other rows. From the repository
root, with the package and PyOD installed::

    python benchmarks/outliers.py --data DIR

where DIR/adbench contains ADBench's classical data sets as .npz files (arrays X and y,
where 1 is an outlier) [1]_. The whole run takes long; it can be resumed with::

    python benchmarks/outliers.py --data DIR --csv results.csv

which appends the result of each fit (section, method, data set, seed, and its values)
to results.csv as soon as it is measured, and reads the results that are in the file,
including failures: delete the lines that are to be measured again, for example those of
skae after a change to it. One section, some methods, and the data sets whose names
contain a word::

    python benchmarks/outliers.py --data DIR --only novelty --methods skae KNN
    python benchmarks/outliers.py --data DIR --tables wine yeast --seeds 0

References
----------
.. [1] Han, S., Hu, X., Huang, H., Jiang, M., & Zhao, Y. (2022). ADBench: Anomaly
   detection benchmark. NeurIPS 35.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from results_file import append, read
from sklearn.ensemble import IsolationForest
from sklearn.metrics import (
    average_precision_score,
    precision_score,
    recall_score,
    roc_auc_score,
)
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from skae import AutoencoderOutlierDetector

HAS_PYOD = find_spec("pyod") is not None

SKAE = "skae"
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
    "AutoEncoder": "auto_encoder",
    "VAE": "vae",
}
NOVELTY_PEERS = ("IForest", "KNN", "LOF", "GMM", "PCA", "AutoEncoder")
FOREST = "IsolationForest"  # of scikit-learn; PyOD's flags a fixed share

SECTIONS = {
    "contaminated": (SKAE, *PYOD),
    "novelty": (SKAE, *NOVELTY_PEERS),
    "threshold": (SKAE, FOREST),
    "generated": (SKAE, FOREST),
}
METHODS = (SKAE, *PYOD, FOREST)

# Numbers of features and of outliers of the section generated.
GENERATED_FEATURES = (2, 5, 20)
GENERATED_OUTLIERS = (5, 20, 60, 100)

SEEDS = (0, 1, 2, 3)
MAX_ROWS = 10_000
TEST_SIZE = 0.3


class Result(NamedTuple):
    """Result of one method on one data set with one seed; one line of the CSV file.

    Attributes
    ----------
    roc_auc, average_precision : float in [0, 1]
        Of the test rows.
    seconds : float
        Processor time of the fit; of fits and predictions in the sections threshold and
        generated.
    precision, recall, flagged : float in [0, 1]
        Of `predict` on the test rows in the section threshold, on the training rows in
        the section generated; NaN in the others.
    flagged_inliers : float in [0, 1]
        Share of the test inliers that are flagged after a fit to inliers in the section
        threshold, of the training inliers in the section generated; NaN in the others.
    flagged_new : float in [0, 1]
        Share of new inliers that are flagged; NaN except in the section generated.
    error : str
        Error message of a failed fit; empty otherwise.
    """

    section: str
    method: str
    table: str
    seed: int
    roc_auc: float
    average_precision: float
    seconds: float
    precision: float = np.nan
    recall: float = np.nan
    flagged: float = np.nan
    flagged_inliers: float = np.nan
    flagged_new: float = np.nan
    error: str = ""


class Table(NamedTuple):
    """Data set: rows of shape (n_samples, n_features) and labels, 1 for an outlier."""

    name: str
    X: np.ndarray
    y: np.ndarray


class Split(NamedTuple):
    """Standardised training rows, and test rows with their labels."""

    X_train: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray


class ResultStore:
    """Results that have been measured, stored in a CSV file.

    Parameters
    ----------
    path : Path or None
        A CSV file, which need not exist; None stores nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.results: dict[tuple[str, str, str, int], Result] = {}
        if path is not None and path.exists():
            self.results = {result[:4]: result for result in read_results(path)}

    def result(self, section: str, method: str, table: Table, seed: int) -> Result:
        """Return the stored result, or measure and store it."""
        key = (section, method, table.name, seed)
        if key not in self.results:
            self.results[key] = measure(section, method, table, seed)
            append(self.path, Result._fields, [self.results[key]])
        return self.results[key]


def read_results(path: Path) -> Iterator[Result]:
    for section, method, table, seed, *figures, error in read(path, Result._fields):
        values = (section, method, table, int(seed), *map(float, figures), error)
        yield Result._make(values)


def main() -> None:
    arguments = parse_arguments()
    needs_data = set(arguments.only) != {"generated"}
    paths = find_tables(arguments.data, arguments.tables) if needs_data else []
    store = ResultStore(arguments.csv)
    torch.set_num_threads(1)
    report(versions())
    if not HAS_PYOD:
        report("MISSING: PyOD is not installed; its detectors are skipped.")
    with threadpool_limits(1):
        for section in arguments.only:
            report()
            methods = [m for m in SECTIONS[section] if m in arguments.methods]
            if not HAS_PYOD:
                methods = [m for m in methods if m not in PYOD]
            if methods and section == "generated":
                print_generated(methods, arguments.seeds, store)
            elif methods:
                results = print_section(section, methods, paths, arguments.seeds, store)
                if section == "contaminated" and arguments.figure:
                    draw(results, methods, arguments.figure)
            else:
                report(
                    f"{section}: none of {', '.join(SECTIONS[section])} was selected."
                )


def parse_arguments() -> argparse.Namespace:
    description, *_ = (__doc__ or "").split("\n\nReferences")
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder that contains adbench/*.npz"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(SECTIONS),
        default=list(SECTIONS),
        metavar="SECTION",
        help=f"these sections only, of {', '.join(SECTIONS)}",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=METHODS,
        metavar="METHOD",
        help=f"these methods only, of {', '.join(METHODS)}",
    )
    parser.add_argument(
        "--tables",
        nargs="+",
        default=[""],
        metavar="PART",
        help="only data sets whose name contains one of these",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=SEEDS,
        metavar="SEED",
        help=f"seeds of rows, split and method (default: {' '.join(map(str, SEEDS))})",
    )
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="append each result to FILE, and skip fits whose results are in it",
    )
    parser.add_argument(
        "--figure",
        type=Path,
        metavar="FILE",
        help="plot the ROC AUC of the section contaminated for each data set",
    )
    return parser.parse_args()


def report(line: str = "") -> None:
    print(line, flush=True)


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def versions() -> str:
    names = ["numpy", "scikit-learn", "torch", *(["pyod"] if HAS_PYOD else [])]
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    return f"Python {platform.python_version()}, {packages}; one thread"


# Data


def find_tables(folder: Path | None, parts: list[str]) -> list[Path]:
    """Return the files of the data sets in the order of their numbers; exit if none."""
    if folder is None:
        sys.exit("MISSING: ADBench. Give --data DIR that contains adbench/*.npz.")
    available = list((folder / "adbench").glob("*.npz"))
    if not available:
        sys.exit(f"MISSING: no data set (.npz) in {folder / 'adbench'}.")
    paths = [path for path in available if any(part in path.stem for part in parts)]
    if not paths:
        names = ", ".join(sorted(path.stem for path in available))
        sys.exit(f"No name contains {' or '.join(parts)}. Data sets: {names}.")
    # "2_annthyroid" before "10_cover".
    return sorted(paths, key=lambda path: (path.stem.find("_"), path.stem))


def load(path: Path) -> Table:
    with np.load(path) as file:
        X, y = file["X"].astype(np.float64), file["y"].astype(int).ravel()
    return Table(path.stem, X, y)


def split(table: Table, seed: int, only_inliers: bool) -> Split:
    """Split the rows with a seed; `only_inliers` removes outliers from training."""
    X, y = table.X, table.y
    if len(X) > MAX_ROWS:
        rng = np.random.default_rng(1234 + seed)
        drawn = rng.choice(len(X), MAX_ROWS, replace=False)
        X, y = X[drawn], y[drawn]
    X_train, X_test, y_train, y_test = train_test_split(
        X, y, test_size=TEST_SIZE, stratify=y, random_state=seed
    )
    scaler = StandardScaler().fit(X_train)
    X_train, X_test = scaler.transform(X_train), scaler.transform(X_test)
    if only_inliers:
        X_train = X_train[y_train == 0]
    return Split(X_train, X_test, y_test)


# One result


def measure(section: str, method: str, table: Table, seed: int) -> Result:
    warm_up(method)
    key = (section, method, table.name, seed)
    if section == "threshold":
        return measure_threshold(key, table)
    if section == "generated":
        return measure_generated(key, table)
    return measure_ranking(key, table)


def measure_ranking(key: tuple[str, str, str, int], table: Table) -> Result:
    """Measure how well the scores rank the test rows."""
    section, method, _, seed = key
    is_novelty = section == "novelty"
    X_train, X_test, y_test = split(table, seed, only_inliers=is_novelty)
    detector = build(method, seed, **({"trim": 0} if is_novelty else {}))
    began = time.process_time()
    try:
        with quiet():
            detector.fit(X_train)
            seconds = time.process_time() - began
            scores = outlier_scores(detector, X_test)
        # Both raise an error if a score is NaN or infinite.
        roc_auc = roc_auc_score(y_test, scores)
        average_precision = average_precision_score(y_test, scores)
    except Exception as error:  # failures are reported as results
        seconds = time.process_time() - began
        return Result(*key, 0.5, y_test.mean(), seconds, error=format_error(error))
    return Result(*key, roc_auc, average_precision, seconds)


def measure_threshold(key: tuple[str, str, str, int], table: Table) -> Result:
    """Measure predictions after a fit to contaminated rows and after one to inliers."""
    _, method, _, seed = key
    X_train, X_test, y_test = split(table, seed, only_inliers=False)
    X_inliers, X_clean_test, _ = split(table, seed, only_inliers=True)
    contaminated = build(method, seed, contamination="auto")
    clean = build(method, seed, contamination="auto")
    began = time.process_time()
    try:
        with quiet():
            is_flagged = contaminated.fit(X_train).predict(X_test) == -1
            is_false_alarm = (
                clean.fit(X_inliers).predict(X_clean_test[y_test == 0]) == -1
            )
            seconds = time.process_time() - began
            scores = outlier_scores(contaminated, X_test)
        return Result(
            *key,
            roc_auc=roc_auc_score(y_test, scores),
            average_precision=average_precision_score(y_test, scores),
            seconds=seconds,
            precision=precision_score(y_test, is_flagged, zero_division=0.0),
            recall=recall_score(y_test, is_flagged),
            flagged=is_flagged.mean(),
            flagged_inliers=is_false_alarm.mean(),
        )
    except Exception as error:  # as above; all rows count as flagged
        seconds = time.process_time() - began
        share = y_test.mean()
        values = (0.5, share, seconds, share, 1.0, 1.0, 1.0)
        return Result(*key, *values, error=format_error(error))


def measure_generated(key: tuple[str, str, str, int], table: Table) -> Result:
    """Measure predictions for generated rows; the label 2 marks new inliers."""
    _, method, _, seed = key
    is_new, is_outlier = table.y == 2, table.y == 1
    X, y = table.X[~is_new], table.y[~is_new]
    detector = build(method, seed, contamination="auto")
    began = time.process_time()
    with quiet():
        is_flagged = detector.fit(X).predict(table.X) == -1
    seconds = time.process_time() - began
    scores = outlier_scores(detector, X)
    return Result(
        *key,
        roc_auc=roc_auc_score(y, scores),
        average_precision=average_precision_score(y, scores),
        seconds=seconds,
        precision=precision_score(y, is_flagged[~is_new], zero_division=0.0),
        recall=is_flagged[is_outlier].mean(),
        flagged=is_flagged[~is_new].mean(),
        flagged_inliers=is_flagged[table.y == 0].mean(),
        flagged_new=is_flagged[is_new].mean(),
    )


def two_clusters(n_features: int, n_outliers: int, seed: int) -> Table:
    """Draw 400 inliers, outliers, and 400 new inliers with the label 2."""
    rng = np.random.default_rng([seed, n_features, n_outliers])
    # The centers have a distance of 12, in a random direction; the variances are 1.
    direction = rng.standard_normal(n_features)
    center = 6 * direction / np.linalg.norm(direction)
    sides = rng.choice([-1, 1], size=(800, 1))
    inliers = sides * center + rng.standard_normal((800, n_features))
    outliers: list[np.ndarray] = []
    while len(outliers) < n_outliers:
        row = rng.uniform(-15, 15, n_features)
        distance = min(np.linalg.norm(row - center), np.linalg.norm(row + center))
        if distance > np.sqrt(n_features) + 3:
            outliers.append(row)
    X = np.vstack([inliers[:400], outliers, inliers[400:]])
    name = f"{n_features} features, {n_outliers} outliers"
    return Table(name, X, np.repeat([0, 1, 2], [400, n_outliers, 400]))


def eight_rows(n_features: int, seed: int) -> Table:
    """Draw six inliers, two outliers far from them, and six new inliers."""
    rng = np.random.default_rng([seed, n_features])
    X = rng.standard_normal((14, n_features))
    X[6:8] = rng.choice([-1, 1], (2, n_features)) * rng.uniform(6, 15, (2, n_features))
    return Table(f"{n_features} features, 8 rows", X, np.repeat([0, 1, 2], [6, 2, 6]))


@cache
def warm_up(method: str) -> None:
    """Fit once, so that imports and compilation are not part of the measured time."""
    X = np.random.default_rng(0).standard_normal((200, 5))
    # A failure is reported when the method is fitted to a data set.
    with quiet(), contextlib.suppress(Exception):
        outlier_scores(build(method, 0).fit(X), X)


def build(method: str, seed: int, **settings: Any) -> Any:
    """Return a detector with its defaults; settings apply to skae and scikit-learn."""
    if method == SKAE:
        return AutoencoderOutlierDetector(random_state=seed, **settings)
    if method == FOREST:
        return IsolationForest(random_state=seed, **settings)
    detector = getattr(import_module(f"pyod.models.{PYOD[method]}"), method)
    accepted = inspect.signature(detector).parameters
    optional = {"random_state": seed, "verbose": 0}
    return detector(**{name: optional[name] for name in optional if name in accepted})


def outlier_scores(detector: Any, X: np.ndarray) -> np.ndarray:
    """Return scores that are high for outliers, as in PyOD (not scikit-learn)."""
    if hasattr(detector, "score_samples"):
        return -detector.score_samples(X)
    return detector.decision_function(X)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings and printed output."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def format_error(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


# A section


TITLES = {
    "contaminated": "contaminated: ROC AUC, outliers among the training rows",
    "novelty": "novelty: ROC AUC, fitted to inliers only, skae with trim=0",
    "threshold": "threshold: share of test rows flagged, contamination='auto'",
    "generated": "generated: shares of rows flagged, contamination='auto'",
}


def print_section(
    section: str,
    methods: list[str],
    paths: list[Path],
    seeds: list[int],
    store: ResultStore,
) -> list[Result]:
    """Print one line per data set as soon as it is measured, then the summary."""
    report(f"{TITLES[section]}; means over {count(len(seeds), 'seed')}")
    heads = "".join(f"{name:>{width(name)}} " for name in methods)
    report(f"{'data set':20}{'rows':>7}{'cols':>6}{'outliers':>10}{heads}".rstrip())
    field = "flagged" if section == "threshold" else "roc_auc"
    results: list[Result] = []
    for path in paths:
        table = load(path)
        n_rows, n_features = table.X.shape
        line = f"{table.name:20}{n_rows:7d}{n_features:6d}{table.y.mean():10.1%}"
        for method in methods:
            progress(f"{section}, {table.name}, {method}")
            per_seed = [store.result(section, method, table, seed) for seed in seeds]
            mark = "*" if any(result.error for result in per_seed) else " "
            mean = table_means(per_seed, method, field)[0]
            line += f"{mean:{width(method)}.3f}{mark}"
            results += per_seed
        report(line.rstrip())
    report()
    if section == "threshold":
        print_thresholds(results, methods)
    else:
        print_ranking(results, methods)
        print_seconds(results, methods)
    print_footnote(section, results)
    return results


def print_generated(methods: list[str], seeds: list[int], store: ResultStore) -> None:
    """Print what the detectors flag among generated rows, as means over the seeds."""
    report(f"{TITLES['generated']}; means over {count(len(seeds), 'seed')}")
    report(f"{'':28}" + "".join(f"{method:^36}" for method in methods).rstrip())
    heads = f"{'ROC AUC':>9}{'found':>8}{'false':>8}{'new':>8}   "
    report(f"{'rows':28}" + (heads * len(methods)).rstrip())
    cases = [
        [two_clusters(n_features, n_outliers, seed) for seed in seeds]
        for n_features in GENERATED_FEATURES
        for n_outliers in GENERATED_OUTLIERS
    ]
    cases += [[eight_rows(n, seed) for seed in seeds] for n in GENERATED_FEATURES]
    for tables in cases:
        line = f"{tables[0].name:28}"
        for method in methods:
            progress(f"generated, {tables[0].name}, {method}")
            results = [
                store.result("generated", method, table, seed)
                for table, seed in zip(tables, seeds, strict=True)
            ]
            for field in ("roc_auc", "recall", "flagged_inliers", "flagged_new"):
                mean = np.mean([getattr(result, field) for result in results])
                line += f"{mean:{9 if field == 'roc_auc' else 8}.3f}"
            line += "   "
        report(line.rstrip())
    report()
    report("found: share of the outliers that is flagged; false: share of the other")
    report("training rows; new: share of new rows without outliers.")


def width(name: str) -> int:
    return max(len(name), 5) + 1


def table_means(results: list[Result], method: str, field: str) -> np.ndarray:
    """Return means over the seeds, of shape (n_tables,), in order of the results."""
    values: dict[str, list[float]] = {}
    for result in results:
        if result.method == method:
            values.setdefault(result.table, []).append(getattr(result, field))
    return np.array([np.mean(per_seed) for per_seed in values.values()])


def median_seconds(results: list[Result], method: str) -> float:
    return float(
        np.median([result.seconds for result in results if result.method == method])
    )


def print_ranking(results: list[Result], methods: list[str]) -> None:
    """Print the methods by mean ROC AUC, and the difference of skae from each."""
    roc_auc = {m: table_means(results, m, "roc_auc") for m in methods}
    precision = {m: table_means(results, m, "average_precision") for m in methods}
    n_tables = len(roc_auc[methods[0]])
    report(f"means over {count(n_tables, 'data set')}")
    report(f"{'':33}{'skae minus method':^42}".rstrip())
    report(
        f"{'method':14}{'ROC AUC':>9}{'av.prec.':>10}{'ROC AUC':>12}{'s.e.':>8}"
        f"{'av.prec.':>12}{'s.e.':>8}{'better':>12}{'seconds':>10}"
    )
    for method in sorted(methods, key=lambda m: -roc_auc[m].mean()):
        line = (
            f"{method:14}{roc_auc[method].mean():9.4f}{precision[method].mean():10.4f}"
        )
        if method == SKAE or SKAE not in methods:
            line += f"{'':52}"
        else:
            gain = roc_auc[SKAE] - roc_auc[method]
            gain_in_precision = precision[SKAE] - precision[method]
            wins = f"{(gain > 0).sum()} of {n_tables}"
            line += f"{mean_and_error(gain)}{mean_and_error(gain_in_precision)}"
            line += f"{wins:>12}"
        report(f"{line}{median_seconds(results, method):10.3f}")
    report()
    report("better: number of data sets on which the ROC AUC of skae is higher.")
    report("seconds: median processor time of a fit.")
    report()


def print_seconds(results: list[Result], methods: list[str]) -> None:
    """Print the median processor time of a fit to each data set."""
    report("processor time of a fit in seconds; medians over the seeds")
    report(f"{'data set':20}" + "".join(f"{m:>{width(m) + 1}}" for m in methods))
    for name in dict.fromkeys(result.table for result in results):
        of_table = [result for result in results if result.table == name]
        line = f"{name:20}"
        for method in methods:
            line += f"{median_seconds(of_table, method):{width(method) + 1}.2f}"
        report(line)
    line = f"{'median':20}"
    for method in methods:
        line += f"{median_seconds(results, method):{width(method) + 1}.2f}"
    report(line)
    report()


def mean_and_error(difference: np.ndarray) -> str:
    """Format the mean and its standard error, which requires two data sets."""
    if len(difference) < 2:
        return f"{difference.mean():+12.4f}{'-':>8}"
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return f"{difference.mean():+12.4f}{error:8.4f}"


def print_thresholds(results: list[Result], methods: list[str]) -> None:
    """Print what `predict` flags, as means over the data sets."""
    names = list(dict.fromkeys(result.table for result in results))
    report(f"means over {count(len(names), 'data set')}")
    report(f"{'':16}{'contaminated rows':^29}{'flagged inliers:':>29}")
    report(
        f"{'method':16}{'precision':>10}{'recall':>9}{'flagged':>10}"
        f"{'mean':>11}{'median':>9}{'worst':>9}{'seconds':>10}"
    )
    for method in methods:
        precision, recall, flagged, alarms = (
            table_means(results, method, field)
            for field in ("precision", "recall", "flagged", "flagged_inliers")
        )
        report(
            f"{method:16}{precision.mean():10.3f}{recall.mean():9.3f}"
            f"{flagged.mean():10.3f}{alarms.mean():11.3f}{np.median(alarms):9.3f}"
            f"{alarms.max():9.3f}{median_seconds(results, method):10.2f}"
            f"  (worst: {names[alarms.argmax()]})"
        )
    report()
    report("precision: 0 where nothing is flagged.")
    report("seconds: median processor time of both fits and predictions.")


def draw(results: list[Result], methods: list[str], path: Path) -> None:
    """Plot the ROC AUC of all methods on each data set."""
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    names = list(dict.fromkeys(result.table for result in results))
    areas = {method: table_means(results, method, "roc_auc") for method in methods}
    order = np.argsort(areas[SKAE])
    figure, ax = plt.subplots(figsize=(7, 0.27 * len(names) + 1), layout="constrained")
    for method, area in areas.items():
        marker, color, size = {
            SKAE: ("o", "C0", 55),
            "IForest": ("^", "C1", 35),
            "KNN": ("s", "C2", 25),
        }.get(method, ("|", "0.6", 60))
        label = method if color != "0.6" else None
        z_order = 3 if method == SKAE else 2
        ax.scatter(
            area[order],
            range(len(names)),
            s=size,
            color=color,
            marker=marker,
            label=label,
            zorder=z_order,
        )
    ax.scatter([], [], s=60, color="0.6", marker="|", label="ten others of PyOD")
    ax.set_yticks(range(len(names)), [names[i] for i in order])
    ax.set(xlabel="ROC AUC on test rows")
    ax.grid(axis="y", color="0.92")
    ax.axvline(0.5, color="0.4", linestyle="--", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4)
    figure.savefig(path, dpi=150)
    report(f"The figure is in {path}")


def print_footnote(section: str, results: list[Result]) -> None:
    """Print failures, and the values that are used for them."""
    if section == "threshold":
        report("A failed fit (*) counts as one that flags all rows.")
    else:
        report(
            "A failed fit (*) counts with ROC AUC 0.5 and average precision = share of"
        )
        report("outliers among the test rows.")
    failed = [result for result in results if result.error]
    report(f"Failed: {len(failed)} of {count(len(results), 'fit')}.")
    for result in failed:
        report(
            f"    {result.method} on {result.table}, seed {result.seed}: {result.error}"
        )


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


if __name__ == "__main__":
    main()
