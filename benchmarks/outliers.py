"""Print how well the detector finds outliers, beside the detectors of PyOD.

- contaminated: ROC AUC and average precision of `AutoencoderOutlierDetector` and of
  twelve detectors of PyOD, all with their defaults, fitted to training rows with the
  outliers among them;
- novelty: the same fitted to the inliers of the training rows alone, ours with
  ``trim=0``, beside those of PyOD's detectors that are used so;
- threshold: which rows `predict` flags with ``contamination="auto"``, beside
  scikit-learn's IsolationForest: precision, recall and share of the contaminated test
  rows, and the share of inliers that are flagged after a fit to inliers.

At most 10,000 rows of a table are drawn; 30% of them are test rows, with the same
share of outliers as the others; features are standardised by all the training rows.
A figure is the mean over the seeds, then over the tables; its standard error is that
of the paired differences over the tables. It computes on one thread, one fit after
another, each method once on other rows before the clock runs. From the
repository root, with the package and PyOD installed::

    python benchmarks/outliers.py --data DIR

where DIR/adbench holds ADBench's classical tables as .npz (arrays X and y, where 1 is
an outlier) [1]_. All of it takes long, and can go on where it was interrupted::

    python benchmarks/outliers.py --data DIR --csv cells.csv

which appends each fit (section, method, table, seed, and its figures) to cells.csv as
soon as it is done, and takes from there what is in it already, failures, too: delete
the lines that are to be measured again, as those of ours after a change to it. One
section, some methods, and the tables whose names contain a word::

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
from cells import append, read
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

OURS = "skae"
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
FOREST = "IsolationForest"  # scikit-learn's; PyOD's flags a fixed share

SECTIONS = {
    "contaminated": (OURS, *PYOD),
    "novelty": (OURS, *NOVELTY_PEERS),
    "threshold": (OURS, FOREST),
}
METHODS = (OURS, *PYOD, FOREST)

SEEDS = (0, 1, 2, 3)
MAX_ROWS = 10_000
TEST_SIZE = 0.3


class Cell(NamedTuple):
    """One method on one table with one seed: a line of the file of cells.

    Attributes
    ----------
    roc_auc, average_precision : float in [0, 1]
        Of the test rows.
    seconds : float
        Of fit and scores; of fits and predictions in the section threshold.
    precision, recall, flagged : float in [0, 1]
        Of `predict` on the test rows; NaN but in the section threshold.
    flagged_inliers : float in [0, 1]
        Share of the inlying test rows that a fit to inliers flags.
    error : str
        Why it failed; empty if it did not.
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
    error: str = ""


class Table(NamedTuple):
    """Rows of shape (n_samples, n_features), and which of them are outliers."""

    name: str
    X: np.ndarray
    y: np.ndarray


class Split(NamedTuple):
    """Standardised rows to be fitted, and the test rows with their labels."""

    X_train: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray


class Notebook:
    """The cells that are known, and the file that keeps them.

    Parameters
    ----------
    path : Path or None
        A CSV file, which need not exist; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.cells: dict[tuple[str, str, str, int], Cell] = {}
        if path is not None and path.exists():
            self.cells = {cell[:4]: cell for cell in read_cells(path)}

    def cell(self, section: str, method: str, table: Table, seed: int) -> Cell:
        """The cell as it was written down, or else as it is measured now."""
        key = (section, method, table.name, seed)
        if key not in self.cells:
            self.cells[key] = measure(section, method, table, seed)
            append(self.path, Cell._fields, [self.cells[key]])
        return self.cells[key]


def read_cells(path: Path) -> Iterator[Cell]:
    for section, method, table, seed, *figures, error in read(path, Cell._fields):
        values = (section, method, table, int(seed), *map(float, figures), error)
        yield Cell._make(values)


def main() -> None:
    arguments = parse_arguments()
    paths = find_tables(arguments.data, arguments.tables)
    notebook = Notebook(arguments.csv)
    torch.set_num_threads(1)
    say(versions())
    if not HAS_PYOD:
        say("MISSING: PyOD is not installed; its detectors are left out.")
    with threadpool_limits(1):
        for section in arguments.only:
            say()
            methods = [m for m in SECTIONS[section] if m in arguments.methods]
            if not HAS_PYOD:
                methods = [m for m in methods if m not in PYOD]
            if methods:
                cells = print_section(
                    section, methods, paths, arguments.seeds, notebook
                )
                if section == "contaminated" and arguments.figure:
                    draw(cells, methods, arguments.figure)
            else:
                say(f"{section}: no method left of {', '.join(SECTIONS[section])}.")


def parse_arguments() -> argparse.Namespace:
    description, *_ = (__doc__ or "").split("\n\nReferences")
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder that holds adbench/*.npz"
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
        help="only tables whose name contains one of these",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=SEEDS,
        metavar="SEED",
        help=f"of rows, split and method (default: {' '.join(map(str, SEEDS))})",
    )
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="append each fit to FILE, and skip those that are in it",
    )
    parser.add_argument(
        "--figure",
        type=Path,
        metavar="FILE",
        help="draw the ROC AUC of the section contaminated table by table",
    )
    return parser.parse_args()


def say(line: str = "") -> None:
    print(line, flush=True)


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def versions() -> str:
    names = ["numpy", "scikit-learn", "torch", *(["pyod"] if HAS_PYOD else [])]
    found = ", ".join(f"{name} {version(name)}" for name in names)
    return f"Python {platform.python_version()}, {found}; one thread"


# Data


def find_tables(folder: Path | None, parts: list[str]) -> list[Path]:
    """Files of the tables by number; without any of them the program ends."""
    if folder is None:
        sys.exit("MISSING: ADBench's tables. Give --data DIR that holds adbench/*.npz.")
    found = list((folder / "adbench").glob("*.npz"))
    if not found:
        sys.exit(f"MISSING: there is no table (.npz) in {folder / 'adbench'}.")
    paths = [path for path in found if any(part in path.stem for part in parts)]
    if not paths:
        names = ", ".join(sorted(path.stem for path in found))
        sys.exit(f"No table's name contains {' or '.join(parts)}. There are: {names}.")
    # "2_annthyroid" before "10_cover".
    return sorted(paths, key=lambda path: (path.stem.find("_"), path.stem))


def load(path: Path) -> Table:
    with np.load(path) as file:
        X, y = file["X"].astype(np.float64), file["y"].astype(int).ravel()
    return Table(path.stem, X, y)


def split(table: Table, seed: int, only_inliers: bool) -> Split:
    """The rows of a seed; `only_inliers` leaves the outliers out of training."""
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


# One cell


def measure(section: str, method: str, table: Table, seed: int) -> Cell:
    warm_up(method)
    key = (section, method, table.name, seed)
    if section == "threshold":
        return measure_threshold(key, table)
    return measure_ranking(key, table)


def measure_ranking(key: tuple[str, str, str, int], table: Table) -> Cell:
    """How high the outliers among the test rows score."""
    section, method, _, seed = key
    is_novelty = section == "novelty"
    X_train, X_test, y_test = split(table, seed, only_inliers=is_novelty)
    detector = build(method, seed, **({"trim": 0} if is_novelty else {}))
    began = time.perf_counter()
    try:
        with quiet():
            scores = outlier_scores(detector.fit(X_train), X_test)
        seconds = time.perf_counter() - began
        # Both raise an error where a score is NaN or infinite.
        roc_auc = roc_auc_score(y_test, scores)
        average_precision = average_precision_score(y_test, scores)
    except Exception as error:  # a failure is a result of the method
        seconds = time.perf_counter() - began
        return Cell(*key, 0.5, y_test.mean(), seconds, error=in_words(error))
    return Cell(*key, roc_auc, average_precision, seconds)


def measure_threshold(key: tuple[str, str, str, int], table: Table) -> Cell:
    """What is flagged after a fit to contaminated rows, and after one to inliers."""
    _, method, _, seed = key
    X_train, X_test, y_test = split(table, seed, only_inliers=False)
    X_inliers, X_clean_test, _ = split(table, seed, only_inliers=True)
    contaminated = build(method, seed, contamination="auto")
    clean = build(method, seed, contamination="auto")
    began = time.perf_counter()
    try:
        with quiet():
            is_flagged = contaminated.fit(X_train).predict(X_test) == -1
            is_alarm = clean.fit(X_inliers).predict(X_clean_test[y_test == 0]) == -1
            seconds = time.perf_counter() - began
            scores = outlier_scores(contaminated, X_test)
        return Cell(
            *key,
            roc_auc=roc_auc_score(y_test, scores),
            average_precision=average_precision_score(y_test, scores),
            seconds=seconds,
            precision=precision_score(y_test, is_flagged, zero_division=0.0),
            recall=recall_score(y_test, is_flagged),
            flagged=is_flagged.mean(),
            flagged_inliers=is_alarm.mean(),
        )
    except Exception as error:  # as above; all rows count as flagged
        seconds = time.perf_counter() - began
        share = y_test.mean()
        figures = (0.5, share, seconds, share, 1.0, 1.0, 1.0)
        return Cell(*key, *figures, error=in_words(error))


@cache
def warm_up(method: str) -> None:
    """Imports and compilation of a first fit, before the clock runs."""
    X = np.random.default_rng(0).standard_normal((200, 5))
    # What fails here is counted where it fails on a table.
    with quiet(), contextlib.suppress(Exception):
        outlier_scores(build(method, 0).fit(X), X)


def build(method: str, seed: int, **settings: Any) -> Any:
    """A detector with its defaults; the settings are for ours and scikit-learn's."""
    if method == OURS:
        return AutoencoderOutlierDetector(random_state=seed, **settings)
    if method == FOREST:
        return IsolationForest(random_state=seed, **settings)
    detector = getattr(import_module(f"pyod.models.{PYOD[method]}"), method)
    accepted = inspect.signature(detector).parameters
    wanted = {"random_state": seed, "verbose": 0}
    return detector(**{name: wanted[name] for name in wanted if name in accepted})


def outlier_scores(detector: Any, X: np.ndarray) -> np.ndarray:
    """High for outliers, as PyOD has it and scikit-learn has it not."""
    if hasattr(detector, "score_samples"):
        return -detector.score_samples(X)
    return detector.decision_function(X)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings, and nothing printed."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


# A section


TITLES = {
    "contaminated": "contaminated: ROC AUC, outliers among the rows that are fitted",
    "novelty": "novelty: ROC AUC, fitted to inliers alone, ours with trim=0",
    "threshold": "threshold: share of test rows flagged, contamination='auto'",
}


def print_section(
    section: str,
    methods: list[str],
    paths: list[Path],
    seeds: list[int],
    notebook: Notebook,
) -> list[Cell]:
    """One line per table, as soon as it is done, then what they come to."""
    say(f"{TITLES[section]}; means over {count(len(seeds), 'seed')}")
    heads = "".join(f"{name:>{width(name)}} " for name in methods)
    say(f"{'table':20}{'rows':>7}{'wide':>6}{'outliers':>10}{heads}".rstrip())
    field = "flagged" if section == "threshold" else "roc_auc"
    cells: list[Cell] = []
    for path in paths:
        table = load(path)
        n_rows, n_features = table.X.shape
        line = f"{table.name:20}{n_rows:7d}{n_features:6d}{table.y.mean():10.1%}"
        for method in methods:
            progress(f"{section}, {table.name}, {method}")
            those = [notebook.cell(section, method, table, seed) for seed in seeds]
            mark = "*" if any(cell.error for cell in those) else " "
            line += f"{table_means(those, method, field)[0]:{width(method)}.3f}{mark}"
            cells += those
        say(line.rstrip())
    say()
    if section == "threshold":
        print_thresholds(cells, methods)
    else:
        print_ranking(cells, methods)
    print_footnote(section, cells)
    return cells


def width(name: str) -> int:
    return max(len(name), 5) + 1


def table_means(cells: list[Cell], method: str, field: str) -> np.ndarray:
    """Means over the seeds, of shape (n_tables,), in the order of the cells."""
    values: dict[str, list[float]] = {}
    for cell in cells:
        if cell.method == method:
            values.setdefault(cell.table, []).append(getattr(cell, field))
    return np.array([np.mean(those) for those in values.values()])


def median_seconds(cells: list[Cell], method: str) -> float:
    return float(np.median([cell.seconds for cell in cells if cell.method == method]))


def print_ranking(cells: list[Cell], methods: list[str]) -> None:
    """Methods by mean ROC AUC, and how far ours is from each."""
    roc_auc = {m: table_means(cells, m, "roc_auc") for m in methods}
    precision = {m: table_means(cells, m, "average_precision") for m in methods}
    n_tables = len(roc_auc[methods[0]])
    say(f"means over {count(n_tables, 'table')}")
    say(f"{'':33}{'ours minus theirs':^42}".rstrip())
    say(
        f"{'method':14}{'ROC AUC':>9}{'av.prec.':>10}{'ROC AUC':>12}{'s.e.':>8}"
        f"{'av.prec.':>12}{'s.e.':>8}{'ours wins':>12}{'seconds':>10}"
    )
    for method in sorted(methods, key=lambda m: -roc_auc[m].mean()):
        line = (
            f"{method:14}{roc_auc[method].mean():9.4f}{precision[method].mean():10.4f}"
        )
        if method == OURS or OURS not in methods:
            line += f"{'':52}"
        else:
            gain = roc_auc[OURS] - roc_auc[method]
            gain_in_precision = precision[OURS] - precision[method]
            wins = f"{(gain > 0).sum()} of {n_tables}"
            line += f"{mean_and_error(gain)}{mean_and_error(gain_in_precision)}"
            line += f"{wins:>12}"
        say(f"{line}{median_seconds(cells, method):10.3f}")
    say()
    say("ours wins: on that many tables our ROC AUC is higher.")
    say("seconds: median time of a fit and the scores of the test rows.")


def mean_and_error(difference: np.ndarray) -> str:
    """Mean over the tables and its standard error, which takes two tables."""
    if len(difference) < 2:
        return f"{difference.mean():+12.4f}{'-':>8}"
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return f"{difference.mean():+12.4f}{error:8.4f}"


def print_thresholds(cells: list[Cell], methods: list[str]) -> None:
    """What `predict` flags, means over the tables."""
    names = list(dict.fromkeys(cell.table for cell in cells))
    say(f"means over {count(len(names), 'table')}")
    say(f"{'':16}{'outliers among the rows':^29}{'fitted to inliers alone:':>29}")
    say(
        f"{'method':16}{'precision':>10}{'recall':>9}{'flagged':>10}"
        f"{'mean':>11}{'median':>9}{'worst':>9}{'seconds':>10}"
    )
    for method in methods:
        precision, recall, flagged, alarms = (
            table_means(cells, method, field)
            for field in ("precision", "recall", "flagged", "flagged_inliers")
        )
        say(
            f"{method:16}{precision.mean():10.3f}{recall.mean():9.3f}"
            f"{flagged.mean():10.3f}{alarms.mean():11.3f}{np.median(alarms):9.3f}"
            f"{alarms.max():9.3f}{median_seconds(cells, method):10.2f}"
            f"  (worst: {names[alarms.argmax()]})"
        )
    say()
    say("precision: 0 where nothing is flagged.")
    say("seconds: median time of both fits and predictions.")


def draw(cells: list[Cell], methods: list[str], path: Path) -> None:
    """Every table's ROC AUC: ours beside the range of the others."""
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    names = list(dict.fromkeys(cell.table for cell in cells))
    areas = {method: table_means(cells, method, "roc_auc") for method in methods}
    order = np.argsort(areas[OURS])
    figure, ax = plt.subplots(figsize=(7, 0.27 * len(names) + 1), layout="constrained")
    for method, area in areas.items():
        marker, color, size = {
            OURS: ("o", "C0", 55),
            "IForest": ("^", "C1", 35),
            "KNN": ("s", "C2", 25),
        }.get(method, ("|", "0.6", 60))
        label = method if color != "0.6" else None
        z_order = 3 if method == OURS else 2
        ax.scatter(
            area[order],
            range(len(names)),
            s=size,
            color=color,
            marker=marker,
            label=label,
            zorder=z_order,
        )
    ax.scatter([], [], s=60, color="0.6", marker="|", label="PyOD's other ten")
    ax.set_yticks(range(len(names)), [names[i] for i in order])
    ax.set(xlabel="ROC AUC on test rows")
    ax.grid(axis="y", color="0.92")
    ax.axvline(0.5, color="0.4", linestyle="--", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4)
    figure.savefig(path, dpi=150)
    say(f"The figure is in {path}")


def print_footnote(section: str, cells: list[Cell]) -> None:
    """What failed, and how it was counted."""
    if section == "threshold":
        say("A fit that fails (*) counts as if it had flagged all rows.")
    else:
        say("A fit that fails (*) counts as ROC AUC 0.5 and average precision = share")
        say("of outliers among the test rows.")
    failed = [cell for cell in cells if cell.error]
    say(f"Failed: {len(failed)} of {count(len(cells), 'fit')}.")
    for cell in failed:
        say(f"    {cell.method} on {cell.table}, seed {cell.seed}: {cell.error}")


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


if __name__ == "__main__":
    main()
