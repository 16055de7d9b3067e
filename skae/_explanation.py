"""Features that contribute most to the errors of rows, as a data frame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


class TopFeatures(NamedTuple):
    """The features that contribute most to the error of each row.

    Attributes
    ----------
    feature : ndarray of int of shape (n_samples, n_top)
        Positions of the features, those that contribute most first.
    value, expected : ndarray of shape (n_samples, n_top)
        Entries of the rows and of their reconstructions.
    contribution, share : ndarray of shape (n_samples, n_top)
        Parts of the error, and their quotients by the error.
    """

    feature: np.ndarray
    value: np.ndarray
    expected: np.ndarray
    contribution: np.ndarray
    share: np.ndarray

    @classmethod
    def of(
        cls, X: np.ndarray, X_hat: np.ndarray, contributions: np.ndarray, top: int
    ) -> TopFeatures:
        """Select the `top` largest contributions, of all with shape (n, n_features)."""
        order = np.argsort(-contributions, axis=1, kind="stable")[:, :top]
        parts = (X, X_hat, contributions, shares(contributions))
        return cls(order, *(np.take_along_axis(part, order, axis=1) for part in parts))


def explanation_frame(
    blocks: Iterable[TopFeatures], feature_names: Sequence[str], X: Any
) -> pd.DataFrame:
    """Return a data frame with one line for each row and each of its top features.

    Parameters
    ----------
    blocks : iterable of TopFeatures
        The features of consecutive rows.
    feature_names : sequence of str
    X : array-like or data frame of shape (n_samples, n_features)
        A data frame of pandas gives the lines its index.
    """
    import pandas as pd

    is_frame = isinstance(X, pd.DataFrame)
    parts = TopFeatures(*map(np.concatenate, zip(*blocks, strict=True)))
    n_rows, n_top = parts.feature.shape
    rows = X.index if is_frame else pd.RangeIndex(n_rows)
    repeated, rank = rows.repeat(n_top), np.tile(np.arange(1, n_top + 1), n_rows)
    index = pd.MultiIndex.from_arrays(
        [*(repeated.get_level_values(i) for i in range(rows.nlevels)), rank],
        names=[*(["row"] if rows.names == [None] else rows.names), "rank"],
    )
    names = np.asarray(feature_names, dtype=object)
    columns = parts._replace(feature=names[parts.feature])._asdict()
    return pd.DataFrame({k: v.ravel() for k, v in columns.items()}, index=index)


def shares(contributions: np.ndarray) -> np.ndarray:
    """Divide contributions by their sum in each row.

    Infinite ones divide the whole among them. Zeros remain zeros.
    """
    is_infinite = np.isinf(contributions)
    has_infinite = is_infinite.any(axis=1, keepdims=True)
    parts = np.where(has_infinite, is_infinite, contributions)
    total = parts.sum(axis=1, keepdims=True)
    return parts / np.where(total > 0, total, 1)
