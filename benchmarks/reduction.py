"""Print how well the transformer reduces dimensions, beside PCA and its peers.

- variance: explained variance of held-out rows, beside PCA, kernel PCA (a Gaussian
  kernel, `fit_inverse_transform`), the same network from a random start, the same
  without the steps that move a code nearer to its row (``transform_max_iter=0``), and
  PyOD's AutoEncoder with the same width of the code; and how much of PCA's error is
  removed;
- codes: accuracy of logistic regression and of nearest neighbours on the codes, beside
  the codes of PCA and the raw columns.

All methods have their defaults, but PCA is exact (``svd_solver="full"``); PyOD's hidden
layers, (64, 32) with 32 for the code, are (64, n_components); and kernel PCA, whose
time grows with the cube of the rows, is fitted to 2,000 of them at most. PyOD scales
the features once more by itself, which is undone; columns that are constant in
training, which it would divide by 1e-8, are left alone.

At most 5,000 rows of a table are drawn, the same for all seeds; 30% of them are test
rows. Of MNIST 10,000 rows are trained on and 2,000 tested, with the first seed alone.
Features are standardised by the training rows, but MNIST's pixels are divided by 255;
codes are standardised before they are classified. Explained variance is
``1 - sum((X - X_hat)**2) / sum((X - mean)**2)`` over the test rows, with the mean of
the training rows. Cases with as many components as features or training rows, or
more, are skipped. A case is a table and a number of components, and its figure the
mean over the seeds; a standard error is that of paired differences over the tables.
It computes on one thread, and its seconds are the processor's, so that they mean the
same on a busy machine. From the repository root, with the package and PyOD installed::

    python benchmarks/reduction.py --data DIR

where DIR holds mnist.npz (arrays X_train, y_train, X_test and y_test; images in uint8)
and adbench/*.npz (arrays X and y) [1]_; without them it goes on with the tables of
scikit-learn. That takes about three hours, and can go on where it was interrupted::

    python benchmarks/reduction.py --data DIR --csv cells.csv

which appends each figure (section, table, components, seed, method, value, seconds,
error) to cells.csv as soon as it is known, and takes from there what is in it already,
failures, too: delete the lines that are to be measured again, as those of ours after a
change to it. One section, some methods, some components, and the tables whose names
contain a word, or a picture of all cases of ours and PCA's::

    python benchmarks/reduction.py --data DIR --only variance --methods skae PCA
    python benchmarks/reduction.py --data DIR --csv cells.csv --figure reduction.png
    python benchmarks/reduction.py --tables wine iris --components 2 --seeds 0

References
----------
.. [1] Han, S., Hu, X., Huang, H., Jiang, M., & Zhao, Y. (2022). ADBench: Anomaly
   detection benchmark. NeurIPS 35.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from cells import append, read
from sklearn import datasets
from sklearn.decomposition import PCA, KernelPCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from skae import AutoencoderTransformer

HAS_PYOD = find_spec("pyod") is not None

OURS = "skae"
RANDOM = "random"  # ours, from a random start
ENCODER = "encoder"  # ours, with the encoder's own codes
RAW = "raw"  # no reduction
SECTIONS = {
    "variance": ("PCA", "KernelPCA", "PyOD", RANDOM, ENCODER, OURS),
    "codes": (RAW, "PCA", OURS),
}
METHODS = ("PCA", "KernelPCA", "PyOD", RANDOM, ENCODER, RAW, OURS)
# What ours does not do in them.
LESS: dict[str, dict[str, Any]] = {
    RANDOM: {"init": "random"},
    ENCODER: {"transform_max_iter": 0},
    OURS: {},
}
N_COMPONENTS = {"variance": (1, 2, 5, 12), "codes": (2, 5, 10, 30)}
FEW = 5  # components up to which a summary is taken of its own

SEEDS = (0, 1, 2)
TEST_SIZE = 0.3
MIN_ROWS = 50
MAX_ROWS = 5_000
MAX_KERNEL_ROWS = 2_000
N_MNIST_TRAIN, N_MNIST_TEST = 10_000, 2_000
SEED_OF_ROWS = 1234
PYOD_EPS = 1e-8  # of pyod.utils.torch_utility.TorchDataset

# How far below PCA's explained variance a mean over the seeds may fall.
MARGIN = 0.003
# Explained variances as close as this are equal, and an error as small as this is none:
# a PCA that training did not leave differs from scikit-learn's by the rounding of
# float32, and 39_vertebral is of rank 5.
TIE = 1e-6

CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "logistic": lambda: LogisticRegression(max_iter=2_000),
    "neighbours": lambda: KNeighborsClassifier(5),
}


class Key(NamedTuple):
    """What was measured; in the section codes, the method is "reducer+classifier"."""

    section: str
    table: str
    components: int
    seed: int
    method: str


class Cell(NamedTuple):
    """One line of the file of cells: a `Key`, and what came out.

    Attributes
    ----------
    value : float
        Explained variance or accuracy of the test rows; NaN if it failed.
    seconds : float
        Of the processor, for the reducer's fit.
    error : str
        Why it failed; empty if it did not.
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
    """Rows and, where they are classified, labels.

    Attributes
    ----------
    split : callable
        Of a seed; gives X_train, X_test and, for the codes, y_train and y_test.
    n_rows, n_features, n_train : int
    standardise : bool
        Whether columns are standardised before anything else.
    one_seed : bool
        Whether the first seed has to do, because the table is large.
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


class Notebook:
    """The cells that are known, and the file that keeps them.

    Parameters
    ----------
    path : Path or None
        A CSV file, which need not exist; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.cells: dict[Key, Cell] = {}
        if path is not None and path.exists():
            self.cells = {Key(*cell[:5]): cell for cell in read_cells(path)}

    def __contains__(self, key: Key) -> bool:
        return key in self.cells

    def __getitem__(self, key: Key) -> Cell:
        return self.cells[key]

    def add(self, key: Key, value: float, seconds: float, error: str = "") -> None:
        cell = Cell(*key, float(value), seconds, error)
        self.cells[key] = cell
        append(self.path, Cell._fields, [cell])


def read_cells(path: Path) -> Iterator[Cell]:
    for section, table, components, seed, method, *rest in read(path, Cell._fields):
        key = Key(section, table, int(components), int(seed), method)
        value, seconds, error = rest
        yield Cell(*key, float(value), float(seconds), error)


class Options(NamedTuple):
    """What was asked for on the command line."""

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
    notebook = Notebook(arguments.csv)
    torch.set_num_threads(1)
    say(versions())
    with threadpool_limits(1):
        for section in arguments.only:
            say()
            methods = [m for m in SECTIONS[section] if m in options.methods]
            if "PyOD" in methods and not HAS_PYOD:
                say("MISSING: PyOD is not installed; its AutoEncoder is left out.")
                methods.remove("PyOD")
            if not methods:
                say(f"{section}: no method left of {', '.join(SECTIONS[section])}.")
            elif section == "variance":
                print_variance(methods, options, notebook)
            else:
                print_codes(methods, options, notebook)


def parse_arguments() -> argparse.Namespace:
    description, *_ = (__doc__ or "").split("\n\nReferences")
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder that holds mnist.npz and adbench/*.npz",
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
        help=f"widths of the code (default: {defaults})",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=list(SEEDS),
        metavar="SEED",
        help=f"of split and method (default: {' '.join(map(str, SEEDS))})",
    )
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="append each figure to FILE, and skip those that are in it",
    )
    parser.add_argument(
        "--figure",
        type=Path,
        metavar="FILE",
        help="draw the explained variances of PCA and ours into FILE",
    )
    return parser.parse_args()


def say(line: str = "") -> None:
    print(line.rstrip(), flush=True)


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def versions() -> str:
    names = ["numpy", "scikit-learn", "torch", *(["pyod"] if HAS_PYOD else [])]
    found = ", ".join(f"{name} {version(name)}" for name in names)
    return f"Python {platform.python_version()}, {found}; one thread"


# Data


def tables_of_variance(folder: Path | None, parts: list[str]) -> list[Table]:
    """scikit-learn's tables and all of ADBench's; what is left out is said."""
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
        say(f"MISSING: ADBench's tables ({why_not(folder, 'adbench/*.npz')}).")
    sources += [(path.stem, partial(unlabelled, path.stem, path)) for path in paths]
    tables = chosen(sources, parts)
    for table in tables:
        if table.n_rows < MIN_ROWS:
            say(f"{table.name} is left out: it has {table.n_rows} rows.")
    return [table for table in tables if table.n_rows >= MIN_ROWS]


def tables_of_codes(folder: Path | None, parts: list[str]) -> list[Table]:
    """Tables with classes; what is missing is said."""
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
            say(f"MISSING: {name} ({why_not(folder, file)}).")
    return chosen(sources, parts)


def why_not(folder: Path | None, file: str) -> str:
    return "no --data" if folder is None else f"there is no {folder / file}"


def chosen(sources: list[Source], parts: list[str]) -> list[Table]:
    return [make() for name, make in sources if any(part in name for part in parts)]


def unlabelled(name: str, source: Path | Callable[[], Any]) -> Table:
    X, _ = rows_and_labels(source)
    return make_table(name, [drawn(X)])


def labelled(name: str, source: Path | Callable[[], Any]) -> Table:
    X, y = rows_and_labels(source)
    return make_table(name, [drawn(X), drawn(y)])


def rows_and_labels(source: Path | Callable[[], Any]) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(source, Path):
        with np.load(source) as file:
            return file["X"].astype(np.float64), file["y"].ravel()
    bunch = source()
    return np.asarray(bunch.data, dtype=np.float64), np.asarray(bunch.target)


def drawn(values: np.ndarray) -> np.ndarray:
    """The same rows at each call, whatever the seed of the fits."""
    if len(values) <= MAX_ROWS:
        return values
    rng = np.random.default_rng(SEED_OF_ROWS)
    return values[rng.choice(len(values), MAX_ROWS, replace=False)]


def make_table(name: str, arrays: list[np.ndarray]) -> Table:
    """A table that is split anew for each seed, by class where there are labels."""
    X, *y = arrays

    def split(seed: int) -> list[np.ndarray]:
        settings = {"stratify": y[0]} if y else {}
        return train_test_split(
            *arrays, test_size=TEST_SIZE, random_state=seed, **settings
        )

    n_rows, n_features = X.shape
    return Table(name, split, n_rows, n_features, n_train=len(split(0)[0]))


def mnist(name: str, path: Path) -> Table:
    """Images as rows of pixels in [0, 1]; the split is the one they come with."""
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
    """A method with its defaults, as far as it can be compared with them."""
    if method == "PCA":
        return PCA(n_components, svd_solver="full")
    if method == "KernelPCA":
        return KernelPCA(
            n_components, kernel="rbf", fit_inverse_transform=True, random_state=seed
        )
    if method == "PyOD":
        pyod = import_module("pyod.models.auto_encoder")
        widths = [64, n_components]  # its default is [64, 32]
        return pyod.AutoEncoder(hidden_neuron_list=widths, random_state=seed, verbose=0)
    return AutoencoderTransformer(n_components, random_state=seed, **LESS[method])


def fit(method: str, n_components: int, seed: int, X: np.ndarray) -> tuple[Any, float]:
    """The fitted method and its seconds."""
    warm_up(method)
    if method == "KernelPCA" and len(X) > MAX_KERNEL_ROWS:
        rng = np.random.default_rng(seed)
        X = X[rng.choice(len(X), MAX_KERNEL_ROWS, replace=False)]
    began = time.process_time()
    model = build(method, n_components, seed).fit(X)
    return model, time.process_time() - began


@cache
def warm_up(method: str) -> None:
    """Imports and compilation of a first fit, before the clock runs."""
    X = np.random.default_rng(0).standard_normal((200, 5))
    # What fails here is counted where it fails on a table.
    with contextlib.suppress(Exception):
        build(method, 2, 0).fit(X)


def reconstruct(model: Any, X: np.ndarray) -> np.ndarray:
    if hasattr(model, "inverse_transform"):
        return model.inverse_transform(model.transform(X))
    return reconstruct_by_pyod(model, X)


def reconstruct_by_pyod(detector: Any, X: np.ndarray) -> np.ndarray:
    """By the network inside, between the detector's own scaling and its inverse.

    PyOD divides by the training rows' standard deviation plus 1e-8, and so by 1e-8
    where a column was constant: one test row that differs there then spoils the whole
    table (explained variance -16 instead of 0.23 on 5_campaign). Such columns are left
    as they are here.
    """
    scale = np.where(detector.X_std > PYOD_EPS, detector.X_std + PYOD_EPS, 1.0)
    Z = torch.as_tensor((X - detector.X_mean) / scale, dtype=torch.float32)
    detector.model.eval()
    with torch.no_grad():
        Z_hat = detector.model(Z.to(detector.device)).cpu().numpy()
    return Z_hat * scale + detector.X_mean


def explained_variance(X: np.ndarray, X_hat: np.ndarray, mean: np.ndarray) -> float:
    return 1 - np.sum((X - X_hat) ** 2) / np.sum((X - mean) ** 2)


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


# Variance


class Case(NamedTuple):
    """One table and one width of the code: the cells of each method, one per seed."""

    table: str
    components: int
    cells: dict[str, list[Cell]]

    def values(self, method: str) -> np.ndarray:
        return np.array([cell.value for cell in self.cells[method]])

    def mean(self, method: str) -> float:
        """Over the seeds; NaN if a fit failed."""
        return self.values(method).mean()

    def removed(self) -> float:
        """Share of PCA's error; NaN where there is nothing to remove."""
        left = 1 - self.mean("PCA")
        return 1 - (1 - self.mean(OURS)) / left if left > TIE else np.nan


def print_variance(methods: list[str], options: Options, notebook: Notebook) -> None:
    """One line per case, as soon as it is done, then what they come to."""
    seeds, widths = options.seeds, options.components or N_COMPONENTS["variance"]
    tables = tables_of_variance(options.folder, options.parts)
    has_both = OURS in methods and "PCA" in methods
    say(
        f"variance: of held-out rows, explained; means over {count(len(seeds), 'seed')}"
    )
    heads = "".join(f"{method:>11}" for method in methods)
    say(
        f"{'table':20}{'rows':>6}{'wide':>6}{'n_comp.':>8}{heads}"
        f"{'removed' if has_both else '':>10}"
    )
    cases: list[Case] = []
    for table in tables:
        for components in filter(table.allows, widths):
            case = measure_case(table, components, methods, seeds, notebook)
            figures = "".join(f"{figure(case.mean(m)):>11}" for m in methods)
            say(
                f"{table.name:20}{table.n_rows:6d}{table.n_features:6d}"
                f"{components:8d}{figures}"
                f"{percent(case.removed()) if has_both else '':>10}"
            )
            cases.append(case)
    if not cases:
        say("There is no such case.")
        return
    if has_both:
        say("removed: share of PCA's error that is not left by ours.")
    say()
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
    notebook: Notebook,
) -> Case:
    cells: dict[str, list[Cell]] = {method: [] for method in methods}
    for seed in seeds:
        for method in methods:
            key = Key("variance", table.name, components, seed, method)
            if key not in notebook:
                progress(" ".join(map(str, key)))
                notebook.add(key, *measure_variance(table, key))
            cells[method].append(notebook[key])
    return Case(table.name, components, cells)


def measure_variance(table: Table, key: Key) -> tuple[float, float, str]:
    """Explained variance, seconds, and what went wrong."""
    X_train, X_test = table.standardised(key.seed)
    seconds = np.nan
    try:
        with quiet():
            model, seconds = fit(key.method, key.components, key.seed, X_train)
            X_hat = reconstruct(model, X_test)
    except Exception as error:  # a failure is a result of the method
        return np.nan, seconds, in_words(error)
    value = explained_variance(X_test, X_hat, X_train.mean(axis=0))
    if not np.isfinite(value):
        return np.nan, seconds, "The reconstruction is not finite."
    return value, seconds, ""


def print_means(cases: list[Case], methods: list[str]) -> None:
    """Each method over all cases, and how far ours is from it."""
    n_tables = len({case.table for case in cases})
    say(
        f"{count(len(cases), 'case')} of {count(n_tables, 'table')}: explained variance"
    )
    say(f"{'':39}{'ours minus theirs':^38}")
    say(
        f"{'method':12}{'cases':>7}{'mean':>10}{'median':>10}"
        f"{'mean':>12}{'s.e.':>10}{'median':>10}{'ours at least theirs':>26}"
    )
    for method in methods:
        values = np.array([case.mean(method) for case in cases])
        fine = values[np.isfinite(values)]
        line = f"{method:12}{len(fine):7d}{figure(mean(fine)):>10}"
        line += f"{figure(median(fine)):>10}"
        if OURS in methods and method != OURS:
            gains = [
                (case.table, case.mean(OURS) - case.mean(method)) for case in cases
            ]
            gain = np.array([value for _, value in gains if np.isfinite(value)])
            line += mean_and_error(by_table(gains))
            line += f"{figure(median(gain), '+'):>10}{share(gain >= -TIE):>26}"
        say(line)
    say("Means and medians over the cases; means of ours minus theirs, and their")
    say("standard errors, over the tables. A case in which a fit of a method failed")
    say("is left out of the figures that need that method.")
    say()


def print_removed(cases: list[Case]) -> None:
    """Medians of the share of PCA's error that ours removes."""
    say("share of PCA's held-out error that ours removes, over the cases")
    say(f"{'components':14}{'cases':>7}{'median':>10}{'mean':>10}{'worst':>10}")
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
        say(
            f"{label:14}{len(removed):7d}{percent(median(removed)):>10}"
            f"{percent(mean(removed)):>10}{percent(worst):>10}"
        )
    say()


def print_rule(cases: list[Case]) -> None:
    """The rule that ours is never worse than PCA."""
    known = [case for case in cases if np.isfinite(case.mean(OURS) - case.mean("PCA"))]
    if not known:
        return
    gains = [case.values(OURS) - case.values("PCA") for case in known]
    means = np.array([gain.mean() for gain in gains])
    lowest = np.array([gain.min() for gain in gains])
    say("never worse than PCA: ours minus PCA")
    seeds = f"mean over {count(len(gains[0]), 'seed')}"
    for what, value in (
        (f"{seeds} at least -{MARGIN}", share(means >= -MARGIN)),
        (f"lowest {seeds}", place(means, known)),
        ("lowest single fit", place(lowest, known)),
    ):
        say(f"    {what:36}{value}")
    say()


def draw(cases: list[Case], path: Path) -> None:
    """Each case as a point: PCA's explained variance and ours."""
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    figure, ax = plt.subplots(figsize=(6, 6), layout="constrained")
    ax.plot([0, 1], [0, 1], color="0.4", linewidth=0.8, label="no better than PCA")
    ax.plot([0, 1], [0.5, 1], "--", color="0.4", linewidth=0.8, label="half its error")
    for i, width in enumerate(sorted({case.components for case in cases})):
        points = [(c.mean("PCA"), c.mean(OURS)) for c in cases if c.components == width]
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
    say(f"The figure is in {path}")
    say()


def place(gains: np.ndarray, cases: list[Case]) -> str:
    """The lowest, and where it is."""
    case = cases[gains.argmin()]
    return f"{figure(gains.min(), '+')}, {case.table}, n_components={case.components}"


def print_seconds(cases: list[Case], methods: dict[str, str]) -> None:
    """What a fit takes; `methods` are their names here and in the cells."""
    say("seconds of a fit")
    say(f"{'':12}{'means of the tables':>22}{'single fits':>20}")
    say(
        f"{'method':12}{'median':>11}{'maximum':>11}{'median':>10}{'maximum':>10}"
        "   slowest table"
    )
    for label, method in methods.items():
        fits = [
            (cell.table, cell.seconds)
            for case in cases
            for cell in case.cells[method]
            if np.isfinite(cell.seconds)
        ]
        if not fits:
            say(f"{label:12}{'failed':>11}")
            continue
        seconds = np.array([second for _, second in fits])
        tables = list(dict.fromkeys(table for table, _ in fits))
        means = by_table(fits)
        say(
            f"{label:12}{np.median(means):11.3f}{means.max():11.3f}"
            f"{np.median(seconds):10.3f}{seconds.max():10.3f}"
            f"   {tables[means.argmax()]}"
        )
    say()


# Codes


def print_codes(methods: list[str], options: Options, notebook: Notebook) -> None:
    """One line per table and width of the code, then what they come to."""
    widths = options.components or N_COMPONENTS["codes"]
    tables = tables_of_codes(options.folder, options.parts)
    say("codes: accuracy of classifiers on held-out rows, means over the seeds")
    titles = "".join(f"{name:>{9 * len(methods)}}  " for name in CLASSIFIERS)
    heads = ("".join(f"{method:>9}" for method in methods) + "  ") * len(CLASSIFIERS)
    say(f"{'':46}{titles}")
    say(f"{'table':20}{'rows':>6}{'wide':>6}{'n_comp.':>8}{'seeds':>6}{heads}")
    cases: list[Case] = []
    for table in tables:
        seeds = options.seeds[:1] if table.one_seed else options.seeds
        for components in filter(table.allows, widths):
            case = classify_case(table, components, methods, seeds, notebook)
            line = (
                f"{table.name:20}{table.n_rows:6d}{table.n_features:6d}"
                f"{components:8d}{len(seeds):6d}"
            )
            for classifier in CLASSIFIERS:
                for method in methods:
                    line += f"{figure(case.mean(joint(method, classifier))):>9}"
                line += "  "
            say(line)
            cases.append(case)
    if not cases:
        say("There is no such case.")
        return
    if RAW in methods:
        say(f"{RAW}: all columns, whatever n_comp. says.")
    say()
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
    notebook: Notebook,
) -> Case:
    names = [joint(method, name) for method in methods for name in CLASSIFIERS]
    cells: dict[str, list[Cell]] = {name: [] for name in names}
    for seed in seeds:
        for method in methods:
            # Raw columns are the same whatever the width of the code.
            width = 0 if method == RAW else components
            keys = {
                name: Key("codes", table.name, width, seed, joint(method, name))
                for name in CLASSIFIERS
            }
            if any(key not in notebook for key in keys.values()):
                progress(f"codes {table.name} {width} {seed} {method}")
                measure_accuracies(table, method, keys, notebook)
            for key in keys.values():
                cells[key.method].append(notebook[key])
    return Case(table.name, components, cells)


def measure_accuracies(
    table: Table, method: str, keys: dict[str, Key], notebook: Notebook
) -> None:
    """One reduction for all classifiers, and the cells that are not yet known."""
    _, _, components, seed, _ = next(iter(keys.values()))
    X_train, X_test, y_train, y_test = table.standardised(seed)
    seconds, reason = 0.0, ""
    if method != RAW:
        try:
            with quiet():
                model, seconds = fit(method, components, seed, X_train)
                X_train, X_test = model.transform(X_train), model.transform(X_test)
        except Exception as error:  # a failure is a result of the method
            seconds, reason = np.nan, in_words(error)
    for name, key in keys.items():
        if key in notebook:
            continue
        accuracy, problem = np.nan, reason
        if not problem:
            classifier = CLASSIFIERS[name]()
            if method != RAW:
                classifier = make_pipeline(StandardScaler(), classifier)
            try:
                with quiet():
                    accuracy = classifier.fit(X_train, y_train).score(X_test, y_test)
            except Exception as error:  # as above: codes that are not finite
                problem = in_words(error)
        notebook.add(key, accuracy, seconds, problem)


def print_accuracies(cases: list[Case], methods: list[str]) -> None:
    """Means over the tables for each width of the code, and over all."""
    peers = [m for m in methods if m != OURS] if OURS in methods else []
    say("accuracy, means over the tables; ours minus theirs and its standard error")
    heads = "".join(f"{method:>9}" for method in methods)
    gains = "".join(f"{f'- {peer}':>12}{'s.e.':>10}" for peer in peers)
    say(f"{'classifier':14}{'n_comp.':>8}{'tables':>8}{heads}{gains}")
    widths = sorted({case.components for case in cases})
    for classifier in CLASSIFIERS:
        for label, group in (*((str(w), [w]) for w in widths), ("all", widths)):
            those = [case for case in cases if case.components in group]
            means = {
                m: [(c.table, c.mean(joint(m, classifier))) for c in those]
                for m in methods
            }
            line = f"{classifier:14}{label:>8}{len({c.table for c in those}):8d}"
            for method in methods:
                line += f"{figure(mean(by_table(means[method]))):>9}"
            for peer in peers:
                pairs = zip(means[OURS], means[peer], strict=True)
                gain = [(table, ours - theirs) for (table, ours), (_, theirs) in pairs]
                line += mean_and_error(by_table(gain))
            say(line)
    say("A case in which a fit of a method failed is left out of the means that need")
    say("that method.")
    say()


# Figures


def by_table(figures: Iterable[tuple[str, float]]) -> np.ndarray:
    """Means of each table's figures, those that are NaN left out."""
    values: dict[str, list[float]] = {}
    for table, value in figures:
        if np.isfinite(value):
            values.setdefault(table, []).append(value)
    return np.array([np.mean(those) for those in values.values()])


def mean(values: np.ndarray) -> float:
    return values.mean() if len(values) else np.nan


def median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else np.nan


def mean_and_error(difference: np.ndarray) -> str:
    """Mean over the tables and its standard error, which takes two tables."""
    if len(difference) < 2:
        return f"{figure(mean(difference), '+'):>12}{'-':>10}"
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return f"{figure(difference.mean(), '+'):>12}{figure(error):>10}"


def figure(value: float, sign: str = "") -> str:
    """Four digits behind the point; fewer where a reconstruction went astray."""
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
    """What failed, and why."""
    # Raw columns are in the cases of several widths, but were measured once.
    cells = {
        Key(*cell[:5]): cell
        for case in cases
        for those in case.cells.values()
        for cell in those
    }
    failed = [cell for cell in cells.values() if cell.error]
    say(f"Failed: {len(failed)} of {count(len(cells), 'figure')}.")
    for cell in failed:
        say(
            f"    {cell.method} on {cell.table}, n_components={cell.components}, "
            f"seed {cell.seed}: {cell.error}"
        )


if __name__ == "__main__":
    main()
