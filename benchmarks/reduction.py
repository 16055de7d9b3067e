"""Measure dimensionality reduction and compare it with PCA and other methods.

- variance: explained variance of held-out rows, compared with PCA, kernel PCA (a
  Gaussian kernel, `fit_inverse_transform`), the same network from a random start, the
  same without refinement of the codes (``transform_max_iter=0``), and PyOD's
  AutoEncoder with a code of the same width; and the share of PCA's error that is
  removed;
- ordered: explained variance of held-out rows by the first components of one fit with
  ``ordered=True``, compared with PCA and with a fit for each number of components. The
  fit has the largest number of components that is measured;
- choice: the number of components that `one_standard_error` chooses from one fit with
  ``ordered=True``, and from a `GridSearchCV` over eight numbers with five folds, on the
  digits; seconds, and explained variance of held-out rows;
- codes: accuracy of logistic regression and of nearest neighbours on the codes,
  compared with the codes of PCA and the raw columns.

All methods have their defaults, except that PCA is exact (``svd_solver="full"``); that
PyOD's hidden layers, by default (64, 32) with a code of 32, are (64, n_components); and
that kernel PCA, whose time is cubic in the number of rows, is fitted to at most 2,000
rows. PyOD scales the features again, which is undone; columns that are constant in
training, which it would divide by 1e-8, are not scaled.

At most 5,000 rows are drawn per table, the same for all seeds; 30% of them are test
rows. For MNIST there are 10,000 training and 2,000 test rows, and only the first seed
is used. Features are standardised by the training rows, except that MNIST's pixels are
divided by 255; codes are standardised before they are classified. Explained variance is
``1 - sum((X - X_hat)**2) / sum((X - mean)**2)`` over the test rows, with the mean of
the training rows. Cases whose number of components is not below the numbers of features
and training rows are skipped. A case is a table and a number of components, and its
result the mean over the seeds; a standard error is that of paired differences over the
tables. It uses one thread, and seconds are processor time, which does not depend on the
load of the machine. From the repository root, with the package and PyOD installed::

    python benchmarks/reduction.py --data DIR

where DIR contains mnist.npz (arrays X_train, y_train, X_test and y_test; images in
uint8) and adbench/*.npz (arrays X and y) [1]_; without them only scikit-learn's tables
are used. The run takes about three hours; it can be resumed with::

    python benchmarks/reduction.py --data DIR --csv results.csv

which appends each result (section, table, components, seed, method, value, seconds,
error) to results.csv as soon as it is known, and reads the results that are in the
file, including failures: delete the lines that are to be measured again, for example
those of skae after a change to it. One section, some methods, some numbers of
components, the tables whose names contain a word, or a plot of all cases of skae and
PCA::

    python benchmarks/reduction.py --data DIR --only variance --methods skae PCA
    python benchmarks/reduction.py --data DIR --csv results.csv --figure reduction.png
    python benchmarks/reduction.py --tables wine iris --components 2 --seeds 0

References
----------
.. [1] Han, S., Hu, X., Huang, H., Jiang, M., & Zhao, Y. (2022). ADBench: Anomaly
   detection benchmark. NeurIPS 35.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from attempts import format_error, quiet
from results_file import append, read
from sklearn import datasets
from sklearn.decomposition import PCA, KernelPCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from skae import AutoencoderTransformer
from skae.model_selection import one_standard_error

HAS_PYOD = find_spec("pyod") is not None

SKAE = "skae"
RANDOM = "random"  # skae from a random start
ENCODER = "encoder"  # skae without refinement of codes
ORDERED = "ordered"  # skae with ordered components
RAW = "raw"  # no reduction
SECTIONS = {
    "variance": ("PCA", "KernelPCA", "PyOD", RANDOM, ENCODER, SKAE),
    "ordered": ("PCA", SKAE, ORDERED),
    "choice": (SKAE, ORDERED),
    "codes": (RAW, "PCA", SKAE),
}
METHODS = ("PCA", "KernelPCA", "PyOD", RANDOM, ENCODER, RAW, SKAE, ORDERED)
# Parameters of the variants of skae.
PARAMETERS: dict[str, dict[str, Any]] = {
    RANDOM: {"init": "random"},
    ENCODER: {"transform_max_iter": 0},
    SKAE: {},
    ORDERED: {"ordered": True},
}
N_COMPONENTS = {
    "variance": (1, 2, 5, 12),
    "ordered": (1, 2, 5, 12),
    "codes": (2, 5, 10, 30),
}
# Numbers of components of a search; one ordered fit has the largest.
SEARCHED = (1, 2, 4, 8, 12, 16, 24, 32)
FEW = 5  # there is a separate summary up to this number of components

SEEDS = (0, 1, 2)
TEST_SIZE = 0.3
MIN_ROWS = 50
MAX_ROWS = 5_000
MAX_KERNEL_ROWS = 2_000
N_MNIST_TRAIN, N_MNIST_TEST = 10_000, 2_000
SEED_OF_ROWS = 1234
PYOD_EPS = 1e-8  # of pyod.utils.torch_utility.TorchDataset

# Tolerance of a mean over the seeds below PCA's explained variance.
MARGIN = 0.003
# Explained variances that differ by at most this are equal, and an error of at most
# this is 0: without improvement in training, the result is a PCA that differs from
# scikit-learn's by rounding in float32, and 39_vertebral has rank 5.
TIE = 1e-6

CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "logistic": lambda: LogisticRegression(max_iter=2_000),
    "neighbours": lambda: KNeighborsClassifier(5),
}


class Key(NamedTuple):
    """Key of a result; in the section codes, the method is "reducer+classifier"."""

    section: str
    table: str
    components: int
    seed: int
    method: str


class Result(NamedTuple):
    """One line of the CSV file: a `Key` and its result.

    Attributes
    ----------
    value : float
        Explained variance or accuracy of the test rows; NaN after a failure.
    seconds : float
        Processor time of the reducer's fit.
    error : str
        Error message of a failure; empty otherwise.
    """

    section: str
    table: str
    components: int
    seed: int
    method: str
    value: float
    seconds: float
    error: str = ""


class Table(NamedTuple):
    """Rows and, in the section codes, labels.

    Attributes
    ----------
    split : callable
        Takes a seed; returns X_train, X_test and, in the section codes, y_train and
        y_test.
    n_rows, n_features, n_train : int
    standardise : bool
        Whether the columns are standardised.
    one_seed : bool
        Whether only the first seed is used, because the table is large.
    """

    name: str
    split: Callable[[int], list[np.ndarray]]
    n_rows: int
    n_features: int
    n_train: int
    standardise: bool = True
    one_seed: bool = False

    def allows(self, components: int) -> bool:
        return components < min(self.n_features, self.n_train)

    def standardised(self, seed: int) -> list[np.ndarray]:
        X_train, X_test, *y = self.split(seed)
        if self.standardise:
            scaler = StandardScaler().fit(X_train)
            X_train, X_test = scaler.transform(X_train), scaler.transform(X_test)
        return [X_train, X_test, *y]


Source = tuple[str, Callable[[], Table]]


class ResultStore:
    """Results that have been measured, stored in a CSV file.

    Parameters
    ----------
    path : Path or None
        A CSV file, which need not exist; None stores nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.results: dict[Key, Result] = {}
        if path is not None and path.exists():
            self.results = {Key(*result[:5]): result for result in read_results(path)}

    def __contains__(self, key: Key) -> bool:
        return key in self.results

    def __getitem__(self, key: Key) -> Result:
        return self.results[key]

    def add(self, key: Key, value: float, seconds: float, error: str = "") -> None:
        result = Result(*key, float(value), seconds, error)
        self.results[key] = result
        append(self.path, Result._fields, [result])


def read_results(path: Path) -> Iterator[Result]:
    for section, table, components, seed, method, *rest in read(path, Result._fields):
        key = Key(section, table, int(components), int(seed), method)
        value, seconds, error = rest
        yield Result(*key, float(value), float(seconds), error)


class Options(NamedTuple):
    """Options of the command line."""

    folder: Path | None
    parts: list[str]
    components: list[int] | None
    seeds: list[int]
    methods: list[str]
    figure: Path | None


def main() -> None:
    arguments = parse_arguments()
    options = Options(
        arguments.data,
        arguments.tables,
        arguments.components,
        list(dict.fromkeys(arguments.seeds)),
        arguments.methods,
        arguments.figure,
    )
    store = ResultStore(arguments.csv)
    torch.set_num_threads(1)
    report(versions())
    with threadpool_limits(1):
        for section in arguments.only:
            report()
            methods = [m for m in SECTIONS[section] if m in options.methods]
            if "PyOD" in methods and not HAS_PYOD:
                report("MISSING: PyOD is not installed; its AutoEncoder is skipped.")
                methods.remove("PyOD")
            if not methods:
                report(
                    f"{section}: none of {', '.join(SECTIONS[section])} was selected."
                )
            elif section == "variance":
                print_variance(methods, options, store)
            elif section == "ordered":
                print_ordered(methods, options, store)
            elif section == "choice":
                print_choice(options.seeds)
            else:
                print_codes(methods, options, store)


def parse_arguments() -> argparse.Namespace:
    description, *_ = (__doc__ or "").split("\n\nReferences")
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder that contains mnist.npz and adbench/*.npz",
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
        default=list(METHODS),
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
    defaults = ", ".join(
        f"{' '.join(map(str, numbers))} for {section}"
        for section, numbers in N_COMPONENTS.items()
    )
    parser.add_argument(
        "--components",
        nargs="+",
        type=int,
        metavar="N",
        help=f"numbers of components (default: {defaults})",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=list(SEEDS),
        metavar="SEED",
        help=f"seeds of split and method (default: {' '.join(map(str, SEEDS))})",
    )
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="append each result to FILE, and skip those that are in it",
    )
    parser.add_argument(
        "--figure",
        type=Path,
        metavar="FILE",
        help="save a plot of the explained variances of PCA and skae in FILE",
    )
    return parser.parse_args()


def report(line: str = "") -> None:
    print(line.rstrip(), flush=True)


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def versions() -> str:
    names = ["numpy", "scikit-learn", "torch", *(["pyod"] if HAS_PYOD else [])]
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    return f"Python {platform.python_version()}, {packages}; one thread"


# Data


def tables_of_variance(folder: Path | None, parts: list[str]) -> list[Table]:
    """Return the tables of scikit-learn and ADBench; report those that are skipped."""
    sources: list[Source] = [
        (name, partial(unlabelled, name, load))
        for name, load in (
            ("iris", datasets.load_iris),
            ("wine", datasets.load_wine),
            ("breast_cancer", datasets.load_breast_cancer),
            ("digits", datasets.load_digits),
            ("diabetes", partial(datasets.load_diabetes, scaled=False)),
            ("linnerud", datasets.load_linnerud),
        )
    ]
    # "2_annthyroid" before "10_cover".
    paths = sorted(
        () if folder is None else (folder / "adbench").glob("*.npz"),
        key=lambda path: (path.stem.find("_"), path.stem),
    )
    if not paths:
        report(f"MISSING: ADBench's tables ({reason(folder, 'adbench/*.npz')}).")
    sources += [(path.stem, partial(unlabelled, path.stem, path)) for path in paths]
    tables = select(sources, parts)
    for table in tables:
        if table.n_rows < MIN_ROWS:
            report(f"{table.name} is skipped: it has {table.n_rows} rows.")
    return [table for table in tables if table.n_rows >= MIN_ROWS]


def tables_of_codes(folder: Path | None, parts: list[str]) -> list[Table]:
    """Return tables with class labels; report missing files."""
    sources: list[Source] = [
        (name, partial(labelled, name, load))
        for name, load in (
            ("wine", datasets.load_wine),
            ("breast_cancer", datasets.load_breast_cancer),
            ("digits", datasets.load_digits),
        )
    ]
    for name, file, make in (
        ("22_magic.gamma", "adbench/22_magic.gamma.npz", labelled),
        ("mnist", "mnist.npz", mnist),
    ):
        if folder is not None and (folder / file).exists():
            sources.append((name, partial(make, name, folder / file)))
        elif any(part in name for part in parts):
            report(f"MISSING: {name} ({reason(folder, file)}).")
    return select(sources, parts)


def reason(folder: Path | None, file: str) -> str:
    return "no --data" if folder is None else f"no file {folder / file}"


def select(sources: list[Source], parts: list[str]) -> list[Table]:
    return [make() for name, make in sources if any(part in name for part in parts)]


def unlabelled(name: str, source: Path | Callable[[], Any]) -> Table:
    X, _ = rows_and_labels(source)
    return make_table(name, [subsample(X)])


def labelled(name: str, source: Path | Callable[[], Any]) -> Table:
    X, y = rows_and_labels(source)
    return make_table(name, [subsample(X), subsample(y)])


def rows_and_labels(source: Path | Callable[[], Any]) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(source, Path):
        with np.load(source) as file:
            return file["X"].astype(np.float64), file["y"].ravel()
    bunch = source()
    return np.asarray(bunch.data, dtype=np.float64), np.asarray(bunch.target)


def subsample(values: np.ndarray) -> np.ndarray:
    """Draw at most `MAX_ROWS` rows, the same in each call."""
    if len(values) <= MAX_ROWS:
        return values
    rng = np.random.default_rng(SEED_OF_ROWS)
    return values[rng.choice(len(values), MAX_ROWS, replace=False)]


def make_table(name: str, arrays: list[np.ndarray]) -> Table:
    """Return a table whose split depends on the seed, stratified by the labels."""
    X, *y = arrays

    def split(seed: int) -> list[np.ndarray]:
        settings = {"stratify": y[0]} if y else {}
        return train_test_split(
            *arrays, test_size=TEST_SIZE, random_state=seed, **settings
        )

    n_rows, n_features = X.shape
    return Table(name, split, n_rows, n_features, n_train=len(split(0)[0]))


def mnist(name: str, path: Path) -> Table:
    """Return images as rows of pixels in [0, 1], with MNIST's own split."""
    rng = np.random.default_rng(SEED_OF_ROWS)
    arrays = []
    with np.load(path) as file:
        for part, n_rows in (("train", N_MNIST_TRAIN), ("test", N_MNIST_TEST)):
            images, labels = file[f"X_{part}"], file[f"y_{part}"]
            rows = rng.choice(len(images), n_rows, replace=False)
            arrays.append((images[rows].reshape(n_rows, -1) / 255, labels[rows]))
    (X_train, y_train), (X_test, y_test) = arrays
    return Table(
        name,
        lambda seed: [X_train, X_test, y_train, y_test],
        n_rows=len(X_train) + len(X_test),
        n_features=X_train.shape[1],
        n_train=len(X_train),
        standardise=False,
        one_seed=True,
    )


# Methods


def build(method: str, n_components: int, seed: int) -> Any:
    """Return a method with its defaults, except for the settings in the docstring."""
    if method == "PCA":
        return PCA(n_components, svd_solver="full")
    if method == "KernelPCA":
        return KernelPCA(
            n_components, kernel="rbf", fit_inverse_transform=True, random_state=seed
        )
    if method == "PyOD":
        pyod = import_module("pyod.models.auto_encoder")
        widths = [64, n_components]  # default: [64, 32]
        return pyod.AutoEncoder(hidden_neuron_list=widths, random_state=seed, verbose=0)
    return AutoencoderTransformer(n_components, random_state=seed, **PARAMETERS[method])


def fit(method: str, n_components: int, seed: int, X: np.ndarray) -> tuple[Any, float]:
    """Return the fitted method and the seconds of its fit."""
    warm_up(method)
    if method == "KernelPCA" and len(X) > MAX_KERNEL_ROWS:
        rng = np.random.default_rng(seed)
        X = X[rng.choice(len(X), MAX_KERNEL_ROWS, replace=False)]
    began = time.process_time()
    model = build(method, n_components, seed).fit(X)
    return model, time.process_time() - began


@cache
def warm_up(method: str) -> None:
    """Fit once, so that imports and compilation are not part of the measured time."""
    X = np.random.default_rng(0).standard_normal((200, 5))
    # A failure is reported when the method is fitted to a table.
    with contextlib.suppress(Exception):
        build(method, 2, 0).fit(X)


def reconstruct(model: Any, X: np.ndarray) -> np.ndarray:
    if hasattr(model, "inverse_transform"):
        return model.inverse_transform(model.transform(X))
    return reconstruct_by_pyod(model, X)


def reconstruct_by_pyod(detector: Any, X: np.ndarray) -> np.ndarray:
    """Reconstruct rows by the detector's network and undo the detector's scaling.

    PyOD divides by the training rows' standard deviation plus 1e-8, which is 1e-8 for a
    constant column: a single test row with another value then dominates the error
    (explained variance -16 instead of 0.23 on 5_campaign). Such columns are not scaled
    here.
    """
    scale = np.where(detector.X_std > PYOD_EPS, detector.X_std + PYOD_EPS, 1.0)
    Z = torch.as_tensor((X - detector.X_mean) / scale, dtype=torch.float32)
    detector.model.eval()
    with torch.no_grad():
        Z_hat = detector.model(Z.to(detector.device)).cpu().numpy()
    return Z_hat * scale + detector.X_mean


def explained_variance(X: np.ndarray, X_hat: np.ndarray, mean: np.ndarray) -> float:
    return 1 - np.sum((X - X_hat) ** 2) / np.sum((X - mean) ** 2)


# Variance


class Case(NamedTuple):
    """One table and number of components: the results of each method, one per seed."""

    table: str
    components: int
    results: dict[str, list[Result]]

    def values(self, method: str) -> np.ndarray:
        return np.array([result.value for result in self.results[method]])

    def mean(self, method: str) -> float:
        """Return the mean over the seeds; NaN if a fit failed."""
        return self.values(method).mean()

    def removed(self) -> float:
        """Return the share of PCA's error that is removed; NaN if that error is 0."""
        error = 1 - self.mean("PCA")
        return 1 - (1 - self.mean(SKAE)) / error if error > TIE else np.nan


def print_variance(methods: list[str], options: Options, store: ResultStore) -> None:
    """Print one line per case as soon as it is measured, then the summary."""
    seeds, widths = options.seeds, options.components or N_COMPONENTS["variance"]
    tables = tables_of_variance(options.folder, options.parts)
    has_both = SKAE in methods and "PCA" in methods
    report(
        f"variance: explained, of held-out rows; means over {count(len(seeds), 'seed')}"
    )
    heads = "".join(f"{method:>11}" for method in methods)
    report(
        f"{'table':20}{'rows':>6}{'cols':>6}{'n_comp.':>8}{heads}"
        f"{'removed' if has_both else '':>10}"
    )
    cases: list[Case] = []
    for table in tables:
        for components in filter(table.allows, widths):
            case = measure_case(table, components, methods, seeds, store)
            values = "".join(f"{format_value(case.mean(m)):>11}" for m in methods)
            report(
                f"{table.name:20}{table.n_rows:6d}{table.n_features:6d}"
                f"{components:8d}{values}"
                f"{percent(case.removed()) if has_both else '':>10}"
            )
            cases.append(case)
    if not cases:
        report("No cases were selected.")
        return
    if has_both:
        report("removed: share of PCA's error that skae removes.")
    report()
    print_means(cases, methods)
    if has_both:
        print_removed(cases)
        print_rule(cases)
        if options.figure:
            draw(cases, options.figure)
    print_seconds(cases, {method: method for method in methods})
    print_failures(cases)


def measure_case(
    table: Table,
    components: int,
    methods: list[str],
    seeds: list[int],
    store: ResultStore,
) -> Case:
    results: dict[str, list[Result]] = {method: [] for method in methods}
    for seed in seeds:
        for method in methods:
            key = Key("variance", table.name, components, seed, method)
            if key not in store:
                progress(" ".join(map(str, key)))
                store.add(key, *measure_variance(table, key))
            results[method].append(store[key])
    return Case(table.name, components, results)


def measure_variance(table: Table, key: Key) -> tuple[float, float, str]:
    """Return explained variance, seconds and error message."""
    X_train, X_test = table.standardised(key.seed)
    seconds = np.nan
    try:
        with quiet():
            model, seconds = fit(key.method, key.components, key.seed, X_train)
            X_hat = reconstruct(model, X_test)
    except Exception as error:  # failures are reported as results
        return np.nan, seconds, format_error(error)
    value = explained_variance(X_test, X_hat, X_train.mean(axis=0))
    if not np.isfinite(value):
        return np.nan, seconds, "The reconstruction is not finite."
    return value, seconds, ""


def print_ordered(methods: list[str], options: Options, store: ResultStore) -> None:
    """Print one line per case as soon as it is measured, then the summary."""
    seeds, widths = options.seeds, options.components or N_COMPONENTS["ordered"]
    report(
        "ordered: variance of held-out rows explained by the first components of one "
        f"fit; means over {count(len(seeds), 'seed')}"
    )
    heads = "".join(f"{method:>11}" for method in methods)
    report(f"{'table':20}{'rows':>6}{'cols':>6}{'n_comp.':>8}{heads}")
    cases: list[Case] = []
    for table in tables_of_variance(options.folder, options.parts):
        allowed = sorted(filter(table.allows, widths))
        results = {
            seed: measure_ordered(table, allowed, seed, methods, store)
            for seed in seeds
        }
        for components in allowed:
            case = Case(
                table.name,
                components,
                {m: [results[s][components, m] for s in seeds] for m in methods},
            )
            values = "".join(f"{format_value(case.mean(m)):>11}" for m in methods)
            report(
                f"{table.name:20}{table.n_rows:6d}{table.n_features:6d}"
                f"{components:8d}{values}"
            )
            cases.append(case)
    if not cases:
        report("No cases were selected.")
        return
    report()
    for peer in ("PCA", SKAE):
        if peer in methods and ORDERED in methods:
            print_distance(cases, peer)
    if SKAE in methods and ORDERED in methods:
        print_cost(cases)
    print_failures(cases)


def measure_ordered(
    table: Table, widths: list[int], seed: int, methods: list[str], store: ResultStore
) -> dict[tuple[int, str], Result]:
    """Return the results of each number of components and method."""
    results: dict[tuple[int, str], Result] = {}
    for method in methods:
        keys = {k: Key("ordered", table.name, k, seed, method) for k in widths}
        if any(key not in store for key in keys.values()):
            progress(f"ordered {table.name} {seed} {method}")
            if method == ORDERED:
                measure_one_fit(table, keys, store)
            else:
                for key in keys.values():
                    store.add(key, *measure_variance(table, key))
        results |= {(k, method): store[key] for k, key in keys.items()}
    return results


def measure_one_fit(table: Table, keys: dict[int, Key], store: ResultStore) -> None:
    """Fit once, with the largest number of components, and store all results."""
    widest = max(keys)
    X_train, X_test = table.standardised(keys[widest].seed)
    values, seconds, failure = np.full(widest, np.nan), np.nan, ""
    try:
        with quiet():
            model, seconds = fit(ORDERED, widest, keys[widest].seed, X_train)
            values = model.explained_variance_curve(X_test)
    except Exception as error:  # failures are reported as results
        failure = format_error(error)
    for width, key in keys.items():
        store.add(key, values[width - 1], seconds, failure)


def print_choice(seeds: list[int]) -> None:
    """Compare the choice of a search with that of one ordered fit, on the digits."""
    X = datasets.load_digits().data
    report(
        f"choice: digits, a search over {', '.join(map(str, SEARCHED))} components and "
        f"five folds, and one ordered fit of {max(SEARCHED)}; seconds of processor time"
    )
    report("(its own: explained variance of a network of the chosen width alone)")
    report(
        f"{'seed':>4}{'search':>9}{'chosen':>8}{'explained':>11}"
        f"{'one fit':>9}{'chosen':>8}{'explained':>11}{'its own':>9}{'ratio':>7}"
    )
    for seed in seeds:
        X_train, X_test = train_test_split(X, test_size=TEST_SIZE, random_state=seed)
        start = time.process_time()
        search = GridSearchCV(
            AutoencoderTransformer(random_state=seed),
            {"n_components": list(SEARCHED)},
            cv=5,
            refit=one_standard_error,
        ).fit(X_train)
        by_search = time.process_time() - start
        start = time.process_time()
        ae = AutoencoderTransformer(max(SEARCHED), ordered=True, random_state=seed)
        k = one_standard_error(ae.fit(X_train))
        by_fit = time.process_time() - start
        own = AutoencoderTransformer(k, random_state=seed).fit(X_train)
        report(
            f"{seed:4d}{by_search:9.1f}{search.best_params_['n_components']:8d}"
            f"{search.score(X_test):11.3f}{by_fit:9.1f}{k:8d}"
            f"{ae.truncate(k).score(X_test):11.3f}{own.score(X_test):9.3f}"
            f"{by_search / by_fit:7.1f}"
        )


def print_distance(cases: list[Case], peer: str) -> None:
    """Print by how much the first components explain less than another method."""
    report(f"{peer} minus {ORDERED}, over the cases")
    report(
        f"{'components':14}{'cases':>7}{'median':>10}{'mean':>10}{'9 of 10':>10}"
        f"{'largest':>10}   case"
    )
    widths = sorted({case.components for case in cases})
    for label, group in (*((str(w), [w]) for w in widths), ("all", widths)):
        selected = [case for case in cases if case.components in group]
        gaps = np.array([case.mean(peer) - case.mean(ORDERED) for case in selected])
        known = np.flatnonzero(np.isfinite(gaps))
        if not len(known):
            continue
        worst = selected[known[gaps[known].argmax()]]
        gaps = gaps[known]
        numbers = (np.median(gaps), gaps.mean(), np.quantile(gaps, 0.9), gaps.max())
        values = "".join(f"{format_value(value, '+'):>10}" for value in numbers)
        report(f"{label:14}{len(gaps):7d}{values}   {worst.table}, {worst.components}")
    report()


def print_cost(cases: list[Case]) -> None:
    """Print the seconds of a fit relative to those of a plain one of its width."""
    widest = {case.table: case for case in cases}  # the last one of each table
    ratios = np.array(
        [
            np.mean([r.seconds for r in case.results[ORDERED]])
            / np.mean([r.seconds for r in case.results[SKAE]])
            for case in widest.values()
        ]
    )
    known = ratios[np.isfinite(ratios)]
    report(
        f"seconds of the fit, relative to {SKAE} with as many components: median "
        f"{median(known):.2f}, mean {mean(known):.2f}, largest {known.max():.2f}"
    )
    report()


def print_means(cases: list[Case], methods: list[str]) -> None:
    """Print each method's mean over all cases and the difference of skae from it."""
    n_tables = len({case.table for case in cases})
    report(
        f"{count(len(cases), 'case')} of {count(n_tables, 'table')}: explained variance"
    )
    report(f"{'':39}{'skae minus method':^38}")
    report(
        f"{'method':12}{'cases':>7}{'mean':>10}{'median':>10}"
        f"{'mean':>12}{'s.e.':>10}{'median':>10}{'skae at least as good':>26}"
    )
    for method in methods:
        values = np.array([case.mean(method) for case in cases])
        finite = values[np.isfinite(values)]
        line = f"{method:12}{len(finite):7d}{format_value(mean(finite)):>10}"
        line += f"{format_value(median(finite)):>10}"
        if SKAE in methods and method != SKAE:
            gains = [
                (case.table, case.mean(SKAE) - case.mean(method)) for case in cases
            ]
            gain = np.array([value for _, value in gains if np.isfinite(value)])
            line += mean_and_error(by_table(gains))
            line += f"{format_value(median(gain), '+'):>10}{share(gain >= -TIE):>26}"
        report(line)
    report("Means and medians are over the cases; mean differences and their standard")
    report(
        "errors over the tables. A case in which a fit of a method failed is excluded"
    )
    report("from the statistics that need that method.")
    report()


def print_removed(cases: list[Case]) -> None:
    """Print the share of PCA's error that skae removes."""
    report("share of PCA's held-out error that skae removes, over the cases")
    report(f"{'components':14}{'cases':>7}{'median':>10}{'mean':>10}{'worst':>10}")
    widths = sorted({case.components for case in cases})
    few = [width for width in widths if width <= FEW]
    for label, group in (
        *((str(width), [width]) for width in widths),
        (f"1 to {FEW}", few),
        ("all", widths),
    ):
        removed = np.array([c.removed() for c in cases if c.components in group])
        removed = removed[np.isfinite(removed)]
        worst = removed.min() if len(removed) else np.nan
        report(
            f"{label:14}{len(removed):7d}{percent(median(removed)):>10}"
            f"{percent(mean(removed)):>10}{percent(worst):>10}"
        )
    report()


def print_rule(cases: list[Case]) -> None:
    """Print how far skae is below PCA in the worst case."""
    complete = [
        case for case in cases if np.isfinite(case.mean(SKAE) - case.mean("PCA"))
    ]
    if not complete:
        return
    gains = [case.values(SKAE) - case.values("PCA") for case in complete]
    means = np.array([gain.mean() for gain in gains])
    lowest = np.array([gain.min() for gain in gains])
    report("skae minus PCA")
    seeds = f"mean over {count(len(gains[0]), 'seed')}"
    for label, value in (
        (f"{seeds} at least -{MARGIN}", share(means >= -MARGIN)),
        (f"lowest {seeds}", format_lowest(means, complete)),
        ("lowest single fit", format_lowest(lowest, complete)),
    ):
        report(f"    {label:36}{value}")
    report()


def draw(cases: list[Case], path: Path) -> None:
    """Plot the explained variance of PCA and skae, one point per case."""
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    figure, ax = plt.subplots(figsize=(6, 6), layout="constrained")
    ax.plot([0, 1], [0, 1], color="0.4", linewidth=0.8, label="equal to PCA")
    ax.plot(
        [0, 1], [0.5, 1], "--", color="0.4", linewidth=0.8, label="half of PCA's error"
    )
    for i, width in enumerate(sorted({case.components for case in cases})):
        points = [(c.mean("PCA"), c.mean(SKAE)) for c in cases if c.components == width]
        label = count(width, "component")
        ax.scatter(*np.transpose(points), s=30, color=f"C{i}", label=label, zorder=3)
    ax.set(
        xlabel="explained variance of PCA on held-out rows",
        ylabel="explained variance of AutoencoderTransformer",
        xlim=(0, 1),
        ylim=(0, 1),
        aspect="equal",
    )
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)
    report(f"The figure is in {path}")
    report()


def format_lowest(gains: np.ndarray, cases: list[Case]) -> str:
    """Format the lowest gain and its case."""
    case = cases[gains.argmin()]
    lowest = format_value(gains.min(), "+")
    return f"{lowest}, {case.table}, n_components={case.components}"


def print_seconds(cases: list[Case], methods: dict[str, str]) -> None:
    """Print seconds per fit; `methods` maps printed names to names in the results."""
    report("seconds per fit")
    report(f"{'':12}{'means of the tables':>22}{'single fits':>20}")
    report(
        f"{'method':12}{'median':>11}{'maximum':>11}{'median':>10}{'maximum':>10}"
        "   slowest table"
    )
    for label, method in methods.items():
        fits = [
            (result.table, result.seconds)
            for case in cases
            for result in case.results[method]
            if np.isfinite(result.seconds)
        ]
        if not fits:
            report(f"{label:12}{'failed':>11}")
            continue
        seconds = np.array([second for _, second in fits])
        tables = list(dict.fromkeys(table for table, _ in fits))
        means = by_table(fits)
        report(
            f"{label:12}{np.median(means):11.3f}{means.max():11.3f}"
            f"{np.median(seconds):10.3f}{seconds.max():10.3f}"
            f"   {tables[means.argmax()]}"
        )
    report()


# Codes


def print_codes(methods: list[str], options: Options, store: ResultStore) -> None:
    """Print one line per table and number of components, then the summary."""
    widths = options.components or N_COMPONENTS["codes"]
    tables = tables_of_codes(options.folder, options.parts)
    report("codes: accuracy of classifiers on held-out rows, means over the seeds")
    titles = "".join(f"{name:>{9 * len(methods)}}  " for name in CLASSIFIERS)
    heads = ("".join(f"{method:>9}" for method in methods) + "  ") * len(CLASSIFIERS)
    report(f"{'':46}{titles}")
    report(f"{'table':20}{'rows':>6}{'cols':>6}{'n_comp.':>8}{'seeds':>6}{heads}")
    cases: list[Case] = []
    for table in tables:
        seeds = options.seeds[:1] if table.one_seed else options.seeds
        for components in filter(table.allows, widths):
            case = classify_case(table, components, methods, seeds, store)
            line = (
                f"{table.name:20}{table.n_rows:6d}{table.n_features:6d}"
                f"{components:8d}{len(seeds):6d}"
            )
            for classifier in CLASSIFIERS:
                for method in methods:
                    line += f"{format_value(case.mean(joint(method, classifier))):>9}"
                line += "  "
            report(line)
            cases.append(case)
    if not cases:
        report("No cases were selected.")
        return
    if RAW in methods:
        report(f"{RAW}: all columns, for any n_comp.")
    report()
    print_accuracies(cases, methods)
    first, *_ = CLASSIFIERS
    print_seconds(cases, {m: joint(m, first) for m in methods if m != RAW})
    print_failures(cases)


def joint(method: str, classifier: str) -> str:
    return f"{method}+{classifier}"


def classify_case(
    table: Table,
    components: int,
    methods: list[str],
    seeds: list[int],
    store: ResultStore,
) -> Case:
    names = [joint(method, name) for method in methods for name in CLASSIFIERS]
    results: dict[str, list[Result]] = {name: [] for name in names}
    for seed in seeds:
        for method in methods:
            # Raw columns do not depend on the number of components.
            width = 0 if method == RAW else components
            keys = {
                name: Key("codes", table.name, width, seed, joint(method, name))
                for name in CLASSIFIERS
            }
            if any(key not in store for key in keys.values()):
                progress(f"codes {table.name} {width} {seed} {method}")
                measure_accuracies(table, method, keys, store)
            for key in keys.values():
                results[key.method].append(store[key])
    return Case(table.name, components, results)


def measure_accuracies(
    table: Table, method: str, keys: dict[str, Key], store: ResultStore
) -> None:
    """Reduce the rows once and measure the classifiers without a stored result."""
    _, _, components, seed, _ = next(iter(keys.values()))
    X_train, X_test, y_train, y_test = table.standardised(seed)
    seconds, failure = 0.0, ""
    if method != RAW:
        try:
            with quiet():
                model, seconds = fit(method, components, seed, X_train)
                X_train, X_test = model.transform(X_train), model.transform(X_test)
        except Exception as error:  # failures are reported as results
            seconds, failure = np.nan, format_error(error)
    for name, key in keys.items():
        if key in store:
            continue
        accuracy, problem = np.nan, failure
        if not problem:
            classifier = CLASSIFIERS[name]()
            if method != RAW:
                classifier = make_pipeline(StandardScaler(), classifier)
            try:
                with quiet():
                    accuracy = classifier.fit(X_train, y_train).score(X_test, y_test)
            except Exception as error:  # as above, for codes that are not finite
                problem = format_error(error)
        store.add(key, accuracy, seconds, problem)


def print_accuracies(cases: list[Case], methods: list[str]) -> None:
    """Print means over the tables for each number of components, and over all."""
    peers = [m for m in methods if m != SKAE] if SKAE in methods else []
    report("accuracy, means over the tables; differences of skae and standard errors")
    heads = "".join(f"{method:>9}" for method in methods)
    gains = "".join(f"{f'- {peer}':>12}{'s.e.':>10}" for peer in peers)
    report(f"{'classifier':14}{'n_comp.':>8}{'tables':>8}{heads}{gains}")
    widths = sorted({case.components for case in cases})
    for classifier in CLASSIFIERS:
        for label, group in (*((str(w), [w]) for w in widths), ("all", widths)):
            selected = [case for case in cases if case.components in group]
            means = {
                m: [(c.table, c.mean(joint(m, classifier))) for c in selected]
                for m in methods
            }
            line = f"{classifier:14}{label:>8}{len({c.table for c in selected}):8d}"
            for method in methods:
                line += f"{format_value(mean(by_table(means[method]))):>9}"
            for peer in peers:
                pairs = zip(means[SKAE], means[peer], strict=True)
                gain = [(table, ours - theirs) for (table, ours), (_, theirs) in pairs]
                line += mean_and_error(by_table(gain))
            report(line)
    report("A case in which a fit of a method failed is excluded from the statistics")
    report("that need that method.")
    report()


# Statistics and formatting


def by_table(pairs: Iterable[tuple[str, float]]) -> np.ndarray:
    """Return the mean of the values of each table, ignoring NaN."""
    values: dict[str, list[float]] = {}
    for table, value in pairs:
        if np.isfinite(value):
            values.setdefault(table, []).append(value)
    return np.array([np.mean(group) for group in values.values()])


def mean(values: np.ndarray) -> float:
    return values.mean() if len(values) else np.nan


def median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else np.nan


def mean_and_error(difference: np.ndarray) -> str:
    """Format the mean and its standard error, which requires two tables."""
    if len(difference) < 2:
        return f"{format_value(mean(difference), '+'):>12}{'-':>10}"
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return f"{format_value(difference.mean(), '+'):>12}{format_value(error):>10}"


def format_value(value: float, sign: str = "") -> str:
    """Format a value with four decimals, or in scientific notation if it is large."""
    if np.isnan(value):
        return "failed"
    return f"{value:{sign}.4f}" if abs(value) < 100 else f"{value:{sign}.1e}"


def percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:z.1%}"


def share(is_true: np.ndarray) -> str:
    if not len(is_true):
        return "-"
    return f"{is_true.sum()} of {len(is_true)} ({is_true.mean():.1%})"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def print_failures(cases: list[Case]) -> None:
    """Print the failures and their error messages."""
    # Raw columns are part of several cases, but were measured once.
    results = {
        Key(*result[:5]): result
        for case in cases
        for group in case.results.values()
        for result in group
    }
    failed = [result for result in results.values() if result.error]
    report(f"Failed: {len(failed)} of {count(len(results), 'result')}.")
    for result in failed:
        report(
            f"    {result.method} on {result.table}, n_components={result.components}, "
            f"seed {result.seed}: {result.error}"
        )


if __name__ == "__main__":
    main()
