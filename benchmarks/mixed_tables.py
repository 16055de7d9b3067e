"""Compare detectors on tables with categorical features.

ROC AUC and average precision of three detectors:

- skae: AutoencoderOutlierDetector(categorical_features="from_dtype");
- IsolationForest and LocalOutlierFactor on one-hot columns and standardized numbers,
  with missing values replaced by the mean or the most frequent category.

Two kinds of tables:

- expenses: the simulated table of examples/plot_mixed_table.py, with categories, truth
  values, numbers and missing values. 3 % of the rows are outliers of four kinds; the
  training rows are scored;
- OddBench: tables of which at least half of the columns are whole numbers with at most
  64 values, which count as categories. Training rows are clean, test rows are scored.

Settings were chosen by the first draws of expenses and by every other table of
OddBench, which ``--part chosen`` prints; the default is to print the others. From the
repository root, with the package installed::

    python benchmarks/mixed_tables.py --data DIR

where DIR contains the tables of OddBench as oddbench/*.npz (arrays X_train, X_test and
y_test). ``--only expenses`` needs no data.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import IsolationForest
from sklearn.impute import SimpleImputer
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits

from skae import AutoencoderOutlierDetector

# Largest number of values of a column of OddBench that counts as categories.
MAX_LEVELS = 64

# The first draw of expenses that no setting was chosen by.
FIRST_REPORTED = 100


class Table(NamedTuple):
    """A table whose rows are scored; `test` is None if these are the training rows."""

    name: str
    train: pd.DataFrame
    test: pd.DataFrame | None
    is_outlier: np.ndarray


# Tables


def expenses(seed: int, n_rows: int = 1500) -> Table:
    """Simulate expenses of employees, of which 3 % are outliers."""
    rng = np.random.default_rng(seed)
    departments = np.array(
        ["sales", "support", "research", "production", "marketing", "finance", "legal"]
    )
    kinds = np.array(
        ["meal", "hotel", "train", "flight", "taxi", "software", "hardware", "course"]
    )
    department = rng.choice(7, n_rows, p=[0.3, 0.2, 0.15, 0.15, 0.1, 0.06, 0.04])
    shares = [
        [0.30, 0.20, 0.15, 0.15, 0.15, 0.02, 0.01, 0.02],
        [0.20, 0.05, 0.20, 0.02, 0.10, 0.13, 0.20, 0.10],
        [0.10, 0.10, 0.15, 0.10, 0.05, 0.20, 0.20, 0.10],
        [0.10, 0.05, 0.25, 0.02, 0.10, 0.05, 0.35, 0.08],
        [0.25, 0.20, 0.15, 0.10, 0.10, 0.15, 0.02, 0.03],
        [0.20, 0.10, 0.30, 0.05, 0.10, 0.15, 0.03, 0.07],
        [0.20, 0.15, 0.30, 0.10, 0.10, 0.10, 0.01, 0.04],
    ]
    kind = drawn(rng, np.array(shares)[department])
    city = rng.choice(
        12, n_rows, p=np.array([30, 20, 12, 10, 8, 6, 4, 3, 3, 2, 1, 1]) / 100
    )
    level = np.array([1.3, 1.2, 1, 1, 0.9, 1.1, 1, 0.9, 1.5, 0.8, 1, 1.4])[city]
    persons = np.where(kind == 0, 1 + rng.poisson(1.2, n_rows), 1)
    nights = np.where(kind == 1, 1 + rng.poisson(1, n_rows), 0)
    price = np.array([28, 110, 70, 260, 24, 90, 400, 650])[kind]
    spread = np.array([0.3, 0.25, 0.4, 0.35, 0.35, 0.5, 0.6, 0.3])[kind]
    amount = price * persons * np.maximum(nights, 1) * np.exp(rng.normal(0, spread))
    amount = amount * np.where(np.isin(kind, [0, 1, 4]), level, 1)
    payments = [[0.75, 0.25, 0], [0.9, 0.02, 0.08], [0.9, 0.05, 0.05], [0.97, 0, 0.03]]
    payments += [[0.55, 0.45, 0], [0.8, 0, 0.2], [0.4, 0.02, 0.58], [0.2, 0, 0.8]]
    payment = drawn(rng, np.array(payments)[kind])
    weekend = (
        rng.random(n_rows)
        < np.array([0.06, 0.15, 0.1, 0.15, 0.1, 0.02, 0.01, 0.02])[kind]
    )
    receipt = rng.random(n_rows) < np.where(payment == 1, 0.7, 0.98)
    delay = rng.gamma(2, 5, n_rows)
    outliers = rng.choice(n_rows, round(0.03 * n_rows), replace=False)
    wrong, inflated, private, odd = np.array_split(outliers, 4)
    kind[wrong] = (kind[wrong] + rng.integers(1, 8, len(wrong))) % 8
    amount[inflated] *= rng.uniform(2.5, 5, len(inflated))
    receipt[inflated] = False
    weekend[private], payment[private] = True, 1
    kind[private] = rng.choice([5, 6, 7], len(private))
    department[odd], kind[odd], payment[odd] = 6, 6, 0
    frame = pd.DataFrame(
        {
            "department": departments[department],
            "kind": kinds[kind],
            "city": np.array(list("ABCDEFGHIJKL"))[city],
            "payment": pd.Categorical(np.array(["card", "cash", "transfer"])[payment]),
            "weekend": weekend,
            "receipt": receipt,
            "persons": persons.astype(float),
            "nights": nights.astype(float),
            "amount": amount.round(2),
            "delay": delay.round(),
        }
    )
    is_missing = rng.random(frame.shape) < 0.02
    is_missing[:, [4, 5]] = False
    is_outlier = np.isin(np.arange(n_rows), outliers)
    return Table(f"expenses {seed}", frame.mask(is_missing), None, is_outlier)


def drawn(rng: np.random.Generator, shares: np.ndarray) -> np.ndarray:
    """Draw a position for each row of shares that sum to one."""
    u = rng.random((len(shares), 1))
    return (u > shares.cumsum(axis=1)).sum(axis=1).clip(max=shares.shape[1] - 1)


def oddbench(folder: Path) -> list[Table]:
    """Read the tables of which at least half of the columns have few levels."""
    tables = []
    for path in sorted(folder.glob("oddbench/*.npz")):
        arrays = np.load(path)
        X = arrays["X_train"]
        is_categorical = [
            bool(np.all(x == np.round(x))) and len(np.unique(x)) <= MAX_LEVELS
            for x in X.T
        ]
        if np.mean(is_categorical) < 0.5:
            continue
        train, test = (
            pd.DataFrame(
                {
                    f"x{j}": x.astype(int).astype(str) if is_chosen else x
                    for j, (x, is_chosen) in enumerate(
                        zip(values.T, is_categorical, strict=True)
                    )
                }
            )
            for values in (X, arrays["X_test"])
        )
        tables.append(Table(path.stem, train, test, arrays["y_test"] == 1))
    if not tables:
        sys.exit(
            f"MISSING: {folder / 'oddbench'}/*.npz. Give another --data DIR, or --only "
            "expenses."
        )
    return tables


# Detectors: functions that return scores, larger ones for outliers


def skae_scores(table: Table, seed: int) -> np.ndarray:
    detector = AutoencoderOutlierDetector(
        categorical_features="from_dtype", random_state=seed
    ).fit(table.train)
    return -detector.score_samples(table.train if table.test is None else table.test)


def forest_scores(table: Table, seed: int) -> np.ndarray:
    train, test = one_hot(table)
    forest = IsolationForest(random_state=seed).fit(train)
    return -forest.score_samples(test)


def lof_scores(table: Table, seed: int) -> np.ndarray:
    train, test = one_hot(table)
    if table.test is None:
        return -LocalOutlierFactor().fit(train).negative_outlier_factor_
    return -LocalOutlierFactor(novelty=True).fit(train).score_samples(test)


def one_hot(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Return training rows and scored rows as one-hot columns and standardized ones."""
    encoder = make_column_transformer(
        (
            make_pipeline(SimpleImputer(), StandardScaler()),
            make_column_selector(dtype_include="float"),
        ),
        (
            make_pipeline(
                SimpleImputer(strategy="most_frequent"),
                OneHotEncoder(handle_unknown="ignore", sparse_output=False),
            ),
            make_column_selector(dtype_exclude="float"),
        ),
    )
    train, test = (
        None if frame is None else with_objects(frame)
        for frame in (table.train, table.test)
    )
    train = encoder.fit_transform(train)
    return train, train if test is None else encoder.transform(test)


def with_objects(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame whose categories are objects, None where one is missing."""
    names = frame.select_dtypes(exclude="float").columns
    objects = frame[names].astype(object)
    return frame.assign(**objects.where(objects.notna(), np.nan))


DETECTORS: dict[str, Callable[[Table, int], np.ndarray]] = {
    "skae": skae_scores,
    "IsolationForest": forest_scores,
    "LOF": lof_scores,
}


# Report


def tables_of(arguments: argparse.Namespace) -> Iterator[tuple[str, list[Table]]]:
    is_chosen = arguments.part == "chosen"
    if arguments.only != "oddbench":
        first = 0 if is_chosen else FIRST_REPORTED
        yield "expenses", [expenses(first + i) for i in range(arguments.draws)]
    if arguments.only != "expenses":
        if arguments.data is None:
            sys.exit("MISSING: data. Give --data DIR, or --only expenses.")
        yield "OddBench", oddbench(arguments.data)[0 if is_chosen else 1 :: 2]


def report(section: str, tables: list[Table], n_seeds: int) -> None:
    """Print the means over the seeds of each table, then over the tables."""
    width = max(len(table.name) for table in tables)
    print(f"\n{section}: ROC AUC and average precision")
    print(" " * width, *(f"{name:>17}" for name in DETECTORS))
    means = []
    for table in tables:
        each = [
            [measures(table, scores(table, seed)) for seed in range(n_seeds)]
            for scores in DETECTORS.values()
        ]
        means.append(np.mean(each, axis=1))
        print_line(f"{table.name:{width}}", means[-1])
    print_line(f"{'mean':{width}}", np.mean(means, axis=0))
    best = np.array(means)
    wins = (best[:, :1] >= best.max(axis=1, keepdims=True))[:, 0].sum(axis=0)
    print(f"skae is best on {wins[0]} and {wins[1]} of {len(tables)} tables")


def measures(table: Table, scores: np.ndarray) -> tuple[float, float]:
    y = table.is_outlier
    return float(roc_auc_score(y, scores)), float(average_precision_score(y, scores))


def print_line(label: str, values: np.ndarray) -> None:
    print(label, *(f"{roc:10.3f} {ap:.3f} " for roc, ap in values), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Detectors on tables with categorical features", allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, help="folder with oddbench/*.npz")
    parser.add_argument("--only", choices=["expenses", "oddbench"])
    parser.add_argument(
        "--part",
        choices=["reported", "chosen"],
        default="reported",
        help="the tables that settings were not, or were, chosen by",
    )
    parser.add_argument("--draws", type=int, default=8, help="draws of expenses")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of each detector")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # of peers that do not converge or find duplicates
    with threadpool_limits(1):
        for section, tables in tables_of(arguments):
            report(section, tables, arguments.seeds)


if __name__ == "__main__":
    main()
