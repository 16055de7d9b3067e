"""Data sets of `outliers.py`: tables, and how they are split."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

MAX_ROWS = 10_000
TEST_SIZE = 0.3
N_IMAGES = 1_000  # training images of a digit

# What the folder of the data must contain.
FILES = {"adbench": "adbench/*.npz", "odd": "oddbench/*.npz", "digits": "mnist.npz"}


class Split(NamedTuple):
    """Training rows, and test rows with their labels, 1 for an outlier."""

    X_train: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray


class Size(NamedTuple):
    """Numbers of rows and features, and the share of outliers among the rows."""

    n_rows: int
    n_features: int
    outliers: float


class DataSet(Protocol):
    """Data set with a name, which splits its rows with a seed."""

    @property
    def name(self) -> str: ...

    def size(self) -> Size: ...

    def split(self, seed: int, only_inliers: bool) -> Split: ...


class Table(NamedTuple):
    """Rows of shape (n_samples, n_features) and labels, 1 for an outlier."""

    name: str
    X: np.ndarray
    y: np.ndarray

    def size(self) -> Size:
        return Size(*self.X.shape, self.y.mean())

    def split(self, seed: int, only_inliers: bool) -> Split:
        """Draw rows, split them and standardise them by all training rows.

        `only_inliers` removes the outliers from the training rows afterwards.
        """
        X, y = self.X, self.y
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


class SplitTable(NamedTuple):
    """Table whose file contains the split: training rows are inliers."""

    name: str
    X_train: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray

    def size(self) -> Size:
        n_rows = len(self.X_train) + len(self.X_test)
        return Size(n_rows, self.X_train.shape[1], self.y_test.sum() / n_rows)

    def split(self, seed: int, only_inliers: bool) -> Split:
        """Return the file's split, standardised by the training rows."""
        assert only_inliers
        scaler = StandardScaler().fit(self.X_train)
        X_train, X_test = (scaler.transform(X) for X in (self.X_train, self.X_test))
        return Split(X_train, X_test, self.y_test)


class Digit(NamedTuple):
    """Images of one digit as inliers, and all test images."""

    name: str
    path: Path
    digit: int

    def size(self) -> Size:
        y_test = read_digits(self.path)["y_test"]
        n_rows = N_IMAGES + len(y_test)
        return Size(n_rows, 28 * 28, (y_test != self.digit).sum() / n_rows)

    def split(self, seed: int, only_inliers: bool) -> Split:
        """Draw training images of the digit; pixels are in [0, 1]."""
        assert only_inliers
        file = read_digits(self.path)
        candidates = np.flatnonzero(file["y_train"] == self.digit)
        rng = np.random.default_rng([seed, self.digit])
        drawn = rng.choice(candidates, N_IMAGES, replace=False)
        X_train, X_test = (
            images.reshape(len(images), -1) / 255
            for images in (file["X_train"][drawn], file["X_test"])
        )
        return Split(X_train, X_test, (file["y_test"] != self.digit).astype(int))


@cache
def read_digits(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def names(folder: Path, source: str) -> list[str]:
    """Return the names of the data sets of a key of FILES, in their order."""
    paths = list(folder.glob(FILES[source]))
    if source == "digits":
        return [f"digit {digit}" for digit in range(10)] if paths else []
    # "2_annthyroid" before "10_cover".
    stems = (path.stem for path in paths)
    return sorted(stems, key=lambda stem: (max(stem.find("_"), 0), stem))


def load(folder: Path, source: str, selected: list[str]) -> Iterator[DataSet]:
    """Yield the data sets with these names, one at a time."""
    path = folder / FILES[source]
    for name in selected:
        if source == "digits":
            yield Digit(name, path, int(name.split()[-1]))
            continue
        with np.load(path.with_name(f"{name}.npz")) as file:
            if source == "odd":
                arrays = (file["X_train"], file["X_test"], file["y_test"])
                yield SplitTable(name, *arrays)
            else:
                X, y = file["X"].astype(np.float64), file["y"].astype(int).ravel()
                yield Table(name, X, y)


# Generated rows


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
