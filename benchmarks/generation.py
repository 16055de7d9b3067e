"""Measure how well generated rows can be told from real ones.

Half of the rows of a table are training rows. Each generator is fitted to them and
generates as many rows as there are others. A random forest, cross-validated in five
folds, then tells generated rows from the held-out real rows: a ROC AUC of .5 means that
it cannot. Held-out rows are compared, so that copies of training rows have no
advantage. The AUC behind a slash is that of all rows, if all of them are training rows.
It may be below .5 where columns of generated rows have values of real ones. As a check
against copies, the median distance of a generated row to the closest training row is
printed, divided by that of a held-out row: copies would have 0.

The generators:

- skae: ``AutoencoderTransformer(bottleneck="gaussian", ...)`` with the setting that the
  user guide names, and its method `sample`;
- standard prior: the same model, ``sample(prior="standard", noise=False)``;
- mixture: scikit-learn's GaussianMixture of the standardized rows;
- PCA mixture: the same after a PCA of 95 % of the variance;
- copula: the same after a QuantileTransformer to normal columns, which is undone;
- columns: each column shuffled by itself.

BIC chooses the number of components of all mixtures. For these peers categories are
one-hot columns, of which the largest one is taken.

A result is the mean over the seeds, each of which divides the rows anew. At most 1,000
rows are drawn per table; constant columns are left out. It uses one thread. From the
repository root, with the package installed::

    python benchmarks/generation.py --data DIR

where DIR contains adbench/*.npz (arrays X and y) [1]_ and oddbench/*.npz (array
X_train); without it only the four tables of scikit-learn are used. The run takes a few
minutes for each seed. The setting was chosen on other tables, which ``--part chosen``
measures.

References
----------
.. [1] Han, S., Hu, X., Huang, H., Jiang, M., & Zhao, Y. (2022). ADBench: Anomaly
   detection benchmark. NeurIPS 35.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn import datasets
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import QuantileTransformer, StandardScaler

from skae import AutoencoderTransformer

REPORTED = (
    "iris",
    "wine",
    "breast_cancer",
    "diabetes",
    "adbench/22_magic.gamma",
    "adbench/41_Waveform",
    "oddbench/KidneyTransplants",
)
CHOSEN = (
    "adbench/12_fault",
    "adbench/19_landsat",
    "adbench/37_Stamps",
    "adbench/39_vertebral",
    "adbench/47_yeast",
    "oddbench/EcoregionSoil",
    "oddbench/HousePriceSales",
    "oddbench/LabBloodTest",
    "oddbench/PatientHealthMonitor",
    "oddbench/VehicleTelemetry",
)
# Tables of which whole numbers with at most this many values are categories.
MIXED, MAX_LEVELS = ("KidneyTransplants",), 20
MAX_ROWS = 1_000
SIZES = (1, 2, 4, 8, 16, 32)


class Table(NamedTuple):
    """Rows, and which columns are categories, numbered from 0."""

    name: str
    X: np.ndarray
    is_category: np.ndarray


class Result(NamedTuple):
    """Results of one generator, fitted to half of the rows.

    Attributes
    ----------
    auc : float
        ROC AUC of a forest that tells generated rows from held-out rows.
    auc_of_all : float
        The same for the training rows, if all rows are training rows.
    distance : float
        Relative distance to the closest training row.
    """

    auc: float
    auc_of_all: float
    distance: float


# Generators: functions of a table of training rows, a number of rows and a seed


def documented(table: Table, seed: int) -> AutoencoderTransformer:
    return AutoencoderTransformer(
        8,
        bottleneck="gaussian",
        scale="feature",
        categorical_features=table.is_category,
        random_state=seed,
    ).fit(table.X)


def skae(table: Table, n_rows: int, seed: int) -> np.ndarray:
    return documented(table, seed).sample(n_rows, random_state=seed)


def standard_prior(table: Table, n_rows: int, seed: int) -> np.ndarray:
    return documented(table, seed).sample(
        n_rows, random_state=seed, prior="standard", noise=False
    )


def mixture(table: Table, n_rows: int, seed: int) -> np.ndarray:
    X = one_hot(table)
    scaler = StandardScaler().fit(X)
    rows = drawn(scaler.transform(X), n_rows, seed)
    return without_one_hot(scaler.inverse_transform(rows), table)


def pca_mixture(table: Table, n_rows: int, seed: int) -> np.ndarray:
    X = one_hot(table)
    scaler = StandardScaler().fit(X)
    pca = PCA(0.95, random_state=seed).fit(scaler.transform(X))
    codes = drawn(pca.transform(scaler.transform(X)), n_rows, seed)
    rows = scaler.inverse_transform(pca.inverse_transform(codes))
    return without_one_hot(rows, table)


def copula(table: Table, n_rows: int, seed: int) -> np.ndarray:
    X = one_hot(table)
    quantiles = QuantileTransformer(
        n_quantiles=min(len(X), 1000), output_distribution="normal", random_state=seed
    ).fit(X)
    rows = drawn(quantiles.transform(X), n_rows, seed)
    return without_one_hot(quantiles.inverse_transform(rows), table)


def columns(table: Table, n_rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(table.X), size=(n_rows, table.X.shape[1]))
    return np.take_along_axis(table.X, drawn, axis=0)


GENERATORS: dict[str, Callable[[Table, int, int], np.ndarray]] = {
    "skae": skae,
    "standard prior": standard_prior,
    "mixture": mixture,
    "PCA mixture": pca_mixture,
    "copula": copula,
    "columns": columns,
}


def drawn(X: np.ndarray, n_rows: int, seed: int) -> np.ndarray:
    """Return rows of a mixture with the number of components of the lowest BIC."""
    models = [
        GaussianMixture(size, reg_covar=1e-3, random_state=seed, max_iter=1000).fit(X)
        for size in SIZES
        if 4 * size <= len(X)
    ]
    best = min(models, key=lambda model: model.bic(X))
    return best.sample(n_rows)[0]


def one_hot(table: Table) -> np.ndarray:
    """Return the columns of a table, with those of zeros and ones for categories."""
    blocks = [
        np.eye(int(x.max()) + 1)[x.astype(int)] if is_category else x[:, None]
        for x, is_category in zip(table.X.T, table.is_category, strict=True)
    ]
    return np.hstack(blocks)


def without_one_hot(rows: np.ndarray, table: Table) -> np.ndarray:
    """Undo `one_hot`, by the largest of the columns of a category."""
    widths = np.where(table.is_category, table.X.max(axis=0) + 1, 1).astype(int)
    blocks = np.split(rows, np.cumsum(widths)[:-1], axis=1)
    return np.column_stack(
        [
            block.argmax(axis=1) if is_category else block[:, 0]
            for block, is_category in zip(blocks, table.is_category, strict=True)
        ]
    )


# Measures


def measure(table: Table, seed: int) -> dict[str, Result]:
    """Return the results of all generators for one division of the rows."""
    order = np.random.default_rng(seed).permutation(len(table.X))
    half = len(order) // 2
    train, real = table.X[order[:half]], table.X[order[half:]]
    # Of categories that no training row has, no generator knows.
    known = np.all(
        [np.isin(real[:, j], train[:, j]) for j in np.flatnonzero(table.is_category)]
        or [np.ones(len(real), dtype=bool)],
        axis=0,
    )
    real = real[known]
    scaler = StandardScaler().fit(train)
    nearest = NearestNeighbors(n_neighbors=1).fit(scaler.transform(train))

    def distance(X: np.ndarray) -> float:
        return float(np.median(nearest.kneighbors(scaler.transform(X))[0]))

    results = {}
    for name, generate in GENERATORS.items():
        rows = np.asarray(
            generate(table._replace(X=train), len(real), seed), dtype=float
        )
        relative = distance(rows) / max(distance(real), np.finfo(float).tiny)
        other = np.asarray(generate(table, len(table.X), seed), dtype=float)
        results[name] = Result(
            auc(real, rows, seed), auc(table.X, other, seed), relative
        )
    return results


def auc(real: np.ndarray, generated: np.ndarray, seed: int) -> float:
    """Return the ROC AUC with which a forest tells generated rows from real ones."""
    X = np.vstack([real, generated])
    y = np.repeat([0, 1], [len(real), len(generated)])
    forest = RandomForestClassifier(100, random_state=seed)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    P = cross_val_predict(forest, X, y, cv=folds, method="predict_proba")
    return float(roc_auc_score(y, P[:, 1]))


# Tables


def load_tables(names: tuple[str, ...], folder: Path | None) -> list[Table]:
    tables = []
    for name in names:
        kind, _, file = name.rpartition("/")
        if not kind:
            X = getattr(datasets, f"load_{name}")().data
        elif folder is None:
            print(f"No --data: without {name}.")
            continue
        else:
            path = folder / f"{name}.npz"
            if not path.exists():
                raise SystemExit(f"--data {folder} lacks {name}.npz.")
            with np.load(path) as arrays:
                X = arrays["X" if kind == "adbench" else "X_train"]
        tables.append(prepared(file, X.astype(float)))
    return tables


def prepared(name: str, X: np.ndarray) -> Table:
    X = X[np.random.default_rng(0).permutation(len(X))[:MAX_ROWS]]
    X = X[:, X.std(axis=0) > 0]
    levels = [np.unique(x) for x in X.T]
    is_category = np.array(
        [
            name in MIXED and len(values) <= MAX_LEVELS and np.all(values % 1 == 0)
            for values in levels
        ]
    )
    for j in np.flatnonzero(is_category):
        X[:, j] = np.searchsorted(levels[j], X[:, j])
    return Table(name, X, is_category)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    names = CHOSEN if arguments.part == "chosen" else REPORTED
    words = arguments.tables or [""]
    names = tuple(name for name in names if any(word in name for word in words))
    print("ROC AUC: held out / all (relative distance to the closest training row)")
    print(f"{'table':16}" + "".join(f"{name:>19}" for name in GENERATORS))
    results = []
    for table in load_tables(names, arguments.data):
        each = [measure(table, seed) for seed in arguments.seeds]
        results.append(
            {g: Result(*np.mean([r[g] for r in each], axis=0)) for g in GENERATORS}
        )
        print_row(table.name, results[-1])
    if results:
        mean = {
            g: Result(*np.mean([r[g] for r in results], axis=0)) for g in GENERATORS
        }
        print_row("mean", mean)


def print_row(name: str, results: dict[str, Result]) -> None:
    cells = (
        f"{r.auc:.3f}/{r.auc_of_all:.3f} ({r.distance:.2f})" for r in results.values()
    )
    print(f"{name:16}" + "".join(f"{cell:>19}" for cell in cells), flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with adbench and oddbench")
    parser.add_argument("--tables", nargs="+", help="words in the names of the tables")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--part", choices=("reported", "chosen"), default="reported")
    return parser.parse_args()


if __name__ == "__main__":
    main()
