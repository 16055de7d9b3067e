"""Measure each setting of the user guide that trains a model.

Printed for each row and table:

- the share of the variance of held-out rows that the model explains, and that of a
  peer: PCA of the same width; for denoising, the noisy rows themselves, and the PCA of
  the noisy rows; for sparse codes, PCA of as many components as a row has nonzero ones;
  for compression, product quantization by k-means of the same bits; for completion, the
  mean of the column. The robust rows are fitted to training rows of which a twentieth
  is noise. For features, it is the accuracy of a classifier of 100 labelled
  rows, on codes, rows and a PCA;
- the number of dead components, whose codes of the training rows vary by less than
  1e-6 of the largest variance; for compression, the entries of the codebooks that no
  training row uses;
- seconds of processor time.

A row is useful if it is at most .01 below the first peer, and at most one in a hundred
parts of its code is dead.

The tables are the digits and breast cancer of scikit-learn, and MNIST, with at most
``--rows`` rows, of which 70 % are training rows. From the repository root, with the
package installed::

    python benchmarks/widths.py --data DIR

where DIR contains mnist.npz. It uses one thread.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import family
import numpy as np
import torch
from settings import SETTINGS
from sklearn.cluster import KMeans
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from skae import AutoencoderTransformer

ROBUST = ("huber", "log_error", "trim")  # rows for training rows with outliers
LEVEL = 0.3
DENOISED = (2, 32, None)  # numbers of components; two do not suit the task
DEAD = 1e-6  # share of the largest variance of a component


class Table(NamedTuple):
    """Training and test rows, their classes, and the shape of a row."""

    X: np.ndarray
    X_test: np.ndarray
    y: np.ndarray
    y_test: np.ndarray
    shape: tuple[int, ...]


class Result(NamedTuple):
    """Explained variance or accuracy, beside peers, and the dead parts of a code."""

    value: float
    peers: dict[str, float]
    n_dead: int
    n_parts: int
    seconds: float
    warns: bool

    @property
    def is_useful(self) -> bool:
        """Whether the model is as good as the first peer, and uses its code."""
        first = next(iter(self.peers.values()))
        return self.value > first - 0.01 and self.n_dead <= 0.01 * self.n_parts


def tables(folder: Path | None, n_rows: int) -> dict[str, Table]:
    """Return the tables; MNIST needs a folder."""
    digits, cancer = load_digits(), load_breast_cancer()
    scaled = StandardScaler().fit_transform(cancer.data)
    each = {
        "digits": (digits.data / 16, digits.target, (8, 8)),
        "breast cancer": (scaled, cancer.target, (30,)),
    }
    if folder is not None:
        with np.load(folder / "mnist.npz") as file:
            pixels, y = file["X_train"].reshape(-1, 784), file["y_train"]
        drawn = np.random.default_rng(0).permutation(len(pixels))[:n_rows]
        images = pixels[drawn].astype(np.float32) / 255
        each["MNIST"] = (images, y[drawn], (28, 28))
    return {
        name: Table(
            *train_test_split(X[:n_rows], y[:n_rows], test_size=0.3, random_state=0),
            shape,
        )
        for name, (X, y, shape) in each.items()
    }


def measure(row: str, table: Table, seed: int = 0) -> Result:
    """Fit the model of a setting of the user guide."""
    settings = dict(SETTINGS[row])
    if row == "conv":
        settings["input_shape"] = table.shape
    if settings.get("loss") == "binary_cross_entropy":
        scaler = MinMaxScaler(clip=True).fit(table.X)
        X, X_test = map(scaler.transform, (table.X, table.X_test))
        table = table._replace(X=X, X_test=X_test)
    if row in ROBUST:
        table = table._replace(X=with_outliers(table.X))
    model = AutoencoderTransformer(**settings, random_state=seed)
    start = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(table.X)
    seconds = time.process_time() - start
    value, peers = PEERS.get(row, beside_pca)(model, table)
    if row == "quantized":
        dead = unused_entries(model, table.X)
    else:
        variances = model.transform(table.X).var(axis=0)
        dead = int(np.sum(variances < DEAD * variances.max())), len(variances)
    return Result(value, peers, *dead, seconds, bool(caught))


def with_outliers(X: np.ndarray) -> np.ndarray:
    """Replace a twentieth of the rows by noise of three standard deviations."""
    rng = np.random.default_rng(1234)
    X = X.copy()
    spoilt = rng.random(len(X)) < 0.05
    noise = rng.standard_normal((spoilt.sum(), X.shape[1]))
    X[spoilt] = X.mean(axis=0) + 3 * np.sqrt(X.var(axis=0).mean()) * noise
    return X


def explained_variance(table: Table, X_hat: np.ndarray) -> float:
    center = table.X_test.mean(axis=0)
    return float(
        1 - np.sum((table.X_test - X_hat) ** 2) / np.sum((table.X_test - center) ** 2)
    )


def fitted_pca(model: AutoencoderTransformer, X: np.ndarray) -> PCA:
    """Return a PCA of as many components as the model has, if there are as many."""
    return PCA(min(model.n_components_, *X.shape), random_state=0).fit(X)


def through(pca: PCA, X: np.ndarray) -> np.ndarray:
    return pca.inverse_transform(pca.transform(X))


Outcome = tuple[float, dict[str, float]]


def beside_pca(model: AutoencoderTransformer, table: Table) -> Outcome:
    pca = fitted_pca(model, table.X)
    of_pca = explained_variance(table, through(pca, table.X_test))
    explained = explained_variance(table, model.reconstruct(table.X_test))
    return explained, {"PCA": of_pca}


def beside_narrow_pca(model: AutoencoderTransformer, table: Table) -> Outcome:
    """Compare with a PCA of as many components as a sparse code has nonzero entries."""
    n_active = np.count_nonzero(model.transform(table.X), axis=1).mean()
    k = min(max(1, round(n_active)), *table.X.shape)
    pca = PCA(k, random_state=0).fit(table.X)
    of_pca = explained_variance(table, through(pca, table.X_test))
    return model.score(table.X_test), {f"PCA of {k}": of_pca}


def beside_nothing(model: AutoencoderTransformer, table: Table) -> Outcome:
    """Compare a code as wide as a row with the mean: a PCA of this width is exact."""
    return model.score(table.X_test), {"mean": 0.0}


def beside_rows(model: AutoencoderTransformer, table: Table) -> Outcome:
    """Compare the accuracy of classifiers of codes, of rows and of a PCA."""
    pca = PCA(min(50, table.X.shape[1] // 2), random_state=0).fit(table.X)
    encoders: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "codes": model.transform,
        "rows": np.asarray,
        "PCA": pca.transform,
    }
    accuracy = {
        name: float(np.mean([accuracy_of(table, encode, draw) for draw in range(3)]))
        for name, encode in encoders.items()
    }
    return accuracy.pop("codes"), accuracy


def accuracy_of(
    table: Table, encode: Callable[[np.ndarray], np.ndarray], draw: int
) -> float:
    """Return the accuracy on the test rows, with 100 labels."""
    labelled, _ = train_test_split(
        np.arange(len(table.X)), train_size=100, stratify=table.y, random_state=draw
    )
    Z, Z_test = encode(table.X[labelled]), encode(table.X_test)
    search = GridSearchCV(
        LogisticRegression(max_iter=300), {"C": [0.01, 0.1, 1.0, 10.0]}, cv=3
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(Z / Z.std(), table.y[labelled])
    return float(search.score(Z_test / Z.std(), table.y_test))


def beside_noise(model: AutoencoderTransformer, table: Table) -> Outcome:
    """Reconstruct clean test rows from noisy ones."""
    noisy = with_noise(table, model.corruption)
    pca = fitted_pca(model, table.X)
    peers = {
        "noisy rows": explained_variance(table, noisy),
        "PCA": explained_variance(table, through(pca, noisy)),
    }
    return explained_variance(table, model.reconstruct(noisy)), peers


def with_noise(table: Table, kind: str) -> np.ndarray:
    """Add noise of `LEVEL` to the test rows, without using the package."""
    rng = np.random.default_rng(1234)
    X = table.X_test
    if kind == "gaussian":
        deviation = np.sqrt(table.X.var(axis=0).mean())
        return X + LEVEL * deviation * rng.standard_normal(X.shape)
    low, high = table.X.min(axis=0), table.X.max(axis=0)
    other = {
        "masking": np.broadcast_to(table.X.mean(axis=0), X.shape),
        "swap": rng.permuted(X, axis=0),
        "salt_and_pepper": np.where(rng.random(X.shape) < 0.5, low, high),
    }[kind]
    return np.where(rng.random(X.shape) < LEVEL, other, X)


def beside_mean(model: AutoencoderTransformer, table: Table) -> Outcome:
    """Fill in hidden entries of the test rows; the others are known."""
    is_hidden = np.random.default_rng(1234).random(table.X_test.shape) < LEVEL
    is_hidden[is_hidden.all(axis=1), 0] = False
    given = np.where(is_hidden, np.nan, table.X_test)
    center = np.where(is_hidden, table.X.mean(axis=0), table.X_test)
    by_mean = explained_variance(table, center)
    return explained_variance(table, model.impute(given)), {"mean": by_mean}


def beside_k_means(model: AutoencoderTransformer, table: Table) -> Outcome:
    """Compare with k-means in each group of the codes of a PCA, with the same bits."""
    n_codes, n_groups = 256, model.quantize(table.X[:1]).shape[1]
    pca = PCA(model.n_components, random_state=0).fit(table.X)
    codes, codes_test = pca.transform(table.X), pca.transform(table.X_test)
    for group in range(n_groups):
        columns = slice(group, None, n_groups)
        k_means = KMeans(min(n_codes, len(codes)), random_state=0, n_init=1)
        k_means.fit(codes[:, columns])
        nearest = k_means.predict(codes_test[:, columns])
        codes_test[:, columns] = k_means.cluster_centers_[nearest]
    X_hat = pca.inverse_transform(codes_test)
    explained = explained_variance(table, model.reconstruct(table.X_test))
    return explained, {"k-means": explained_variance(table, X_hat)}


def unused_entries(model: AutoencoderTransformer, X: np.ndarray) -> tuple[int, int]:
    """Return the number of entries without a training row, and of all entries."""
    codes = model.quantize(X)
    n_entries = min(256, len(X))
    n_used = sum(len(np.unique(column)) for column in codes.T)
    return n_entries * codes.shape[1] - n_used, n_entries * codes.shape[1]


PEERS: dict[str, Callable[[AutoencoderTransformer, Table], Outcome]] = {
    "gaussian corruption": beside_noise,
    "masking": beside_noise,
    "swap": beside_noise,
    "salt_and_pepper": beside_noise,
    "impute": beside_mean,
    "features": beside_rows,
    "l1": beside_narrow_pca,
    "topk": beside_narrow_pca,
    "kl": beside_nothing,
    "quantized": beside_k_means,
}


def results(
    folder: Path | None, n_rows: int, rows: list[str], seed: int = 0
) -> Iterator[tuple[str, str, Result]]:
    """Yield the name of a row and of a table, and the result."""
    for name, table in tables(folder, n_rows).items():
        for row in rows:
            yield row, name, measure(row, table, seed)


def denoised(
    folder: Path, n_rows: int
) -> Iterator[tuple[str, int | None, dict[str, float]]]:
    """Denoise signals and patches of photographs by codes of several widths.

    Yield the name of the rows, the number of components, and the ratio of the squared
    range of the clean test rows to the mean squared error, in decibels: of the setting
    of the guide, of the noisy rows, and of the PCA whose width denoises the training
    rows best.
    """
    rng = np.random.default_rng(0)
    run = family.Run(folder, family.QUICK._replace(n_signals=3 * n_rows), 0)
    for name, (X, X_test) in {
        "signals": (family.waveforms(n_rows, rng), family.waveforms(1_000, rng)),
        "patches": family.patches(run, "grey"),
    }.items():
        deviation = LEVEL * np.sqrt(X.var(axis=0).mean())
        noisy, noisy_test = (
            rows + deviation * rng.standard_normal(rows.shape, dtype=np.float32)
            for rows in (X, X_test)
        )
        peers = {
            "noisy": decibels(X_test, noisy_test),
            "PCA": decibels(X_test, family.best_pca(X, X, noisy)(noisy_test)),
        }
        for k in DENOISED:
            denoiser = AutoencoderTransformer(
                **{**SETTINGS["gaussian corruption"], "n_components": k}, random_state=0
            )
            X_hat = denoiser.fit(X).reconstruct(noisy_test)
            yield name, k, {"skae": decibels(X_test, X_hat), **peers}


def decibels(X: np.ndarray, X_hat: np.ndarray) -> float:
    return float(10 * np.log10(np.ptp(X) ** 2 / np.mean((X - X_hat) ** 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with mnist.npz")
    parser.add_argument("--rows", type=int, default=10_000, help="largest table")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if "gaussian corruption" in arguments.only:
        for name, k, means in denoised(arguments.data, 2_000):
            columns = ", ".join(f"{model} {v:.1f}" for model, v in means.items())
            print(f"{name:14} {k!s:4} components, decibels: {columns}", flush=True)
    for row, name, result in results(
        arguments.data, arguments.rows, arguments.only, arguments.seed
    ):
        peers = ", ".join(f"{peer} {v:.3f}" for peer, v in result.peers.items())
        print(
            f"{name:14} {row:22} {result.value:7.3f} ({peers}), "
            f"{result.n_dead} of {result.n_parts} dead, {result.seconds:.1f} s"
            f"{', warns' if result.warns else ''}"
            f"{'' if result.is_useful else ', NOT USEFUL'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
