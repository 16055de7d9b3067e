"""Compare the imputation of missing entries with that of scikit-learn.

Entries of ten tables are hidden: 10, 30 or 50 % of them at random, or 30 % by value,
where an entry of a column is the likelier to be hidden the larger it is, with a
probability in proportion to ``1 / (1 + exp(-2 x))`` for the standardized value x. The
imputers are the mean of the column, `KNNImputer` and `IterativeImputer` with their
defaults, and `AutoencoderTransformer.impute` with the setting that its documentation
names. Half of the rows are training rows; the imputers are fitted to them with their
hidden entries, and fill in both these and the hidden entries of the other half.

The result is the root mean square error of the hidden entries, in standard deviations
of their columns: of the training rows ("filled"), and of the others ("new"). At most
1,000 rows are drawn per table; constant columns are left out. A case is a table and a
way to hide entries, and its result the mean over the seeds. It uses one thread, and
seconds are processor time. From the repository root, with the package installed::

    python benchmarks/imputation.py --data DIR

where DIR contains adbench/*.npz (arrays X and y) [1]_; without it only the five tables
of scikit-learn are used. The run takes about 15 minutes for each seed. Some tables,
or other seeds::

    python benchmarks/imputation.py --data DIR --tables wine digits --seeds 0 1 2

The setting was chosen on other tables (12_fault, 37_Stamps, 39_vertebral, 47_yeast,
22_magic.gamma, 10_cover and 15_Hepatitis).

References
----------
.. [1] Han, S., Hu, X., Huang, H., Jiang, M., & Zhao, Y. (2022). ADBench: Anomaly
   detection benchmark. NeurIPS 35.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn import datasets
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

from skae import AutoencoderTransformer

BUNDLED = ("iris", "wine", "breast_cancer", "diabetes", "digits")
ADBENCH = (
    "20_letter",
    "28_pendigits",
    "41_Waveform",
    "7_Cardiotocography",
    "2_annthyroid",
)
HIDDEN: tuple[float | str, ...] = (0.1, 0.3, 0.5, "value")
MAX_ROWS = 1_000
SHARE_BY_VALUE, MAX_PROBABILITY = 0.3, 0.95


class Result(NamedTuple):
    """Errors of hidden entries in training rows and in others, and seconds."""

    filled: float
    new: float
    seconds: float


class Autoencoder:
    """The documented setting, with the methods of scikit-learn's imputers."""

    def __init__(self, seed: int):
        self.transformer = AutoencoderTransformer(
            None,
            scale="feature",
            corruption="masking",
            n_iter_no_change=30,
            random_state=seed,
        )

    def fit(self, X: np.ndarray) -> Autoencoder:
        self.transformer.fit(X)
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        return self.transformer.impute(X)


IMPUTERS: dict[str, Callable[[int], Any]] = {
    "mean": lambda seed: SimpleImputer(keep_empty_features=True),
    "KNN": lambda seed: KNNImputer(keep_empty_features=True),
    "iterative": lambda seed: IterativeImputer(
        random_state=seed, keep_empty_features=True
    ),
    "skae": Autoencoder,
}


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    tables = load_tables(arguments.data)
    if arguments.tables:
        tables = {
            name: X
            for name, X in tables.items()
            if any(word in name for word in arguments.tables)
        }
    results: dict[tuple[str, float | str], dict[str, Result]] = {}
    print(f"{'table':20} {'hidden':>6}  filled / new: " + ", ".join(IMPUTERS))
    for name, X in tables.items():
        for hidden in HIDDEN:
            each = [measure(X, hidden, seed) for seed in arguments.seeds]
            case = {
                imputer: Result(*np.mean([r[imputer] for r in each], axis=0))
                for imputer in IMPUTERS
            }
            results[name, hidden] = case
            columns = (f"{r.filled:.3f} / {r.new:.3f}" for r in case.values())
            print(f"{name:20} {hidden!s:>6}  " + "  ".join(columns), flush=True)
    summarize(results)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with adbench/*.npz")
    parser.add_argument("--tables", nargs="+", help="words in the names of the tables")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    return parser.parse_args()


def load_tables(folder: Path | None) -> dict[str, np.ndarray]:
    """Return standardized tables without constant columns."""
    tables = {name: getattr(datasets, f"load_{name}")().data for name in BUNDLED}
    if folder is None:
        print("No --data: only the tables of scikit-learn.")
    else:
        for name in ADBENCH:
            path = folder / "adbench" / f"{name}.npz"
            if not path.exists():
                raise SystemExit(f"--data {folder} lacks adbench/{name}.npz.")
            with np.load(path) as file:
                tables[name] = file["X"]
    return {name: standardized(X) for name, X in tables.items()}


def standardized(X: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    X = X[rng.permutation(len(X))[:MAX_ROWS]].astype(float)
    X = X[:, X.std(axis=0) > 0]
    return (X - X.mean(axis=0)) / X.std(axis=0)


def measure(X: np.ndarray, hidden: float | str, seed: int) -> dict[str, Result]:
    """Return the result of each imputer."""
    rng = np.random.default_rng([seed, HIDDEN.index(hidden)])
    X = X[rng.permutation(len(X))]
    is_hidden = rng.random(X.shape) < probability(X, hidden)
    # Each row keeps an entry, and each column one of the training rows.
    rows = np.flatnonzero(is_hidden.all(axis=1))
    is_hidden[rows, rng.integers(X.shape[1], size=len(rows))] = False
    n_train = len(X) // 2
    columns = np.flatnonzero(is_hidden[:n_train].all(axis=0))
    is_hidden[rng.integers(n_train, size=len(columns)), columns] = False
    given = np.where(is_hidden, np.nan, X)
    halves = slice(None, n_train), slice(n_train, None)
    results = {}
    for name, build in IMPUTERS.items():
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            imputer = build(seed).fit(given[:n_train])
            errors = [
                rmse(imputer.transform(given[half]), X[half], is_hidden[half])
                for half in halves
            ]
        results[name] = Result(*errors, time.process_time() - start)
    return results


def probability(X: np.ndarray, hidden: float | str) -> np.ndarray:
    """Return the probability with which each entry is hidden."""
    if not isinstance(hidden, str):
        return np.full(X.shape, hidden)
    odds = 1 / (1 + np.exp(-2 * X))
    return (SHARE_BY_VALUE * odds / odds.mean(axis=0)).clip(max=MAX_PROBABILITY)


def rmse(X_filled: np.ndarray, X: np.ndarray, is_hidden: np.ndarray) -> float:
    return float(np.sqrt(np.mean((X_filled - X)[is_hidden] ** 2)))


def summarize(results: dict[tuple[str, float | str], dict[str, Result]]) -> None:
    """Print means over all cases and per table, and how often skae is best."""
    tables = list(dict.fromkeys(name for name, _ in results))
    for field in ("filled", "new"):
        print(f"\n{field}: mean over the ways to hide entries")
        n_best = n_above_mean = 0
        means = []
        for table in tables:
            cases = [case for (name, _), case in results.items() if name == table]
            row = {
                imputer: float(
                    np.mean([getattr(case[imputer], field) for case in cases])
                )
                for imputer in IMPUTERS
            }
            means.append(list(row.values()))
            n_best += row["skae"] < min(row["KNN"], row["iterative"])
            print(f"{table:20} " + "  ".join(f"{k} {v:.3f}" for k, v in row.items()))
        cases = list(results.values())
        best = [
            getattr(c["skae"], field)
            < min(getattr(c["KNN"], field), getattr(c["iterative"], field))
            for c in cases
        ]
        n_above_mean = sum(
            getattr(c["skae"], field) > getattr(c["mean"], field) for c in cases
        )
        columns = zip(IMPUTERS, np.mean(means, axis=0), strict=True)
        print(f"{'mean':20} " + "  ".join(f"{k} {v:.3f}" for k, v in columns))
        print(
            f"skae is better than KNN and iterative on {n_best} of {len(tables)} "
            f"tables and in {sum(best)} of {len(cases)} cases, worse than the mean in "
            f"{n_above_mean}."
        )
    for imputer in IMPUTERS:
        seconds = np.mean([case[imputer].seconds for case in results.values()])
        print(f"{imputer}: {seconds:.2f} s per case")


if __name__ == "__main__":
    main()
