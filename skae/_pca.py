"""Mean, spread and principal axes of weighted rows: where a network may start.

Sums run over blocks of rows in float64, so that sparse and mapped tables are
never made dense as a whole, and over observed entries only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy import linalg, sparse
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.preprocessing import StandardScaler
from sklearn.utils.extmath import svd_flip
from sklearn.utils.sparsefuncs import min_max_axis

from skae._batches import Rows

# Up to this width the covariance matrix is formed and solved directly; beyond,
# its products with vectors are enough for the leading axes.
MAX_COVARIANCE_WIDTH = 1024

# Entries of a block whose moments are taken: 1 MB in float64. The work passes over
# each several times, which takes twice as long where they leave the cache.
CACHED_ENTRIES = 2**17


class Moments(NamedTuple):
    """Weighted mean and spread of each feature over its observed entries.

    Attributes
    ----------
    mean : ndarray of shape (n_features,)
        NaN where a feature has no observed entry.
    variance : ndarray of shape (n_features,)
    deviation : ndarray of shape (n_features,)
        Square root of the variance, 1 for constant features.
    """

    mean: np.ndarray
    variance: np.ndarray
    deviation: np.ndarray


def moments(rows: Rows) -> Moments:
    """Mean, variance and standard deviation of the features of `rows`."""
    with np.errstate(over="ignore", invalid="ignore"):  # left to the caller
        if sparse.issparse(rows.X):
            # Without a dense block: 2e9 entries, 2e6 of them stored, take 30 s.
            scaler = StandardScaler(with_mean=False)
            scaler.fit(rows.stored().astype(np.float64), sample_weight=rows.weight)
        else:
            scaler = StandardScaler()
            for where, block in rows.blocks(max(1, CACHED_ENTRIES // rows.n_features)):
                weight = None if rows.is_uniform else rows.weight[where]
                scaler.partial_fit(block.astype(np.float64), sample_weight=weight)
    # What rounding leaves of a constant's variance is none.
    is_constant = (scaler.scale_ == 1) & (scaler.var_ < 0.5)
    mean = scaler.mean_
    if is_constant.any():
        # Exactly, or training would blow up what rounding leaves of their residuals.
        mean = np.where(is_constant, value_range(rows)[0], mean)
    return Moments(mean, np.where(is_constant, 0, scaler.var_), scaler.scale_)


def value_range(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest observed value of each feature, of shape (n_features,)."""
    if sparse.issparse(rows.X):
        low, high = min_max_axis(rows.stored(), axis=0, ignore_nan=True)
    else:
        low = np.full(rows.n_features, np.nan)
        high = low.copy()
        for _, block in rows.blocks():
            low = np.fmin(low, np.fmin.reduce(block, axis=0))
            high = np.fmax(high, np.fmax.reduce(block, axis=0))
    return low.astype(np.float64), high.astype(np.float64)


def are_binary(rows: Rows) -> np.ndarray:
    """Which features have both 0 and 1 and nothing else, missing entries aside."""
    is_odd = np.zeros(rows.n_features, dtype=bool)
    if sparse.issparse(rows.X):
        stored = rows.stored()
        is_odd[stored.indices[_is_odd(stored.data)]] = True
    else:
        for _, block in rows.blocks():
            is_odd |= _is_odd(block).any(axis=0)
    low, high = value_range(rows)
    return ~is_odd & (low == 0) & (high == 1)


def _is_odd(values: np.ndarray) -> np.ndarray:
    return (values != 0) & (values != 1) & ~np.isnan(values)


def principal_axes(
    rows: Rows,
    n_components: int,
    mean: np.ndarray,
    factor: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Leading principal axes of (x - mean) / factor.

    Parameters
    ----------
    rows : Rows
    n_components : int
        May exceed the rank; the axes beyond it are zero.
    mean, factor : ndarray of shape (n_features,)
        Centre and scale of the features.
    seed : int
        Seed of the iterative solver's first vector, for wide tables.

    Returns
    -------
    axes : ndarray of shape (n_components, n_features)
        Orthonormal rows in order of falling variance, zero beyond the rank.
        The largest entry of each in magnitude is positive, as in
        :class:`sklearn.decomposition.PCA`.
    variances : ndarray of shape (n_components,)
        Variance along each axis, 0 beyond the rank.
    """
    n_features = rows.n_features
    rank = min(n_components, n_features, len(rows))
    if n_features <= MAX_COVARIANCE_WIDTH:
        covariance = _covariance(rows, mean, factor)
        variances, vectors = linalg.eigh(
            covariance, subset_by_index=[n_features - rank, n_features - 1]
        )
    else:
        rank = min(rank, n_features - 1)
        covariance = _covariance_operator(rows, mean, factor)
        first = np.random.default_rng(seed).standard_normal(n_features)
        if not covariance.matvec(first).any():
            return np.zeros((n_components, n_features)), np.zeros(n_components)
        variances, vectors = eigsh(covariance, k=rank, v0=first)
    order = np.argsort(variances)[::-1]
    variances, vectors = variances[order], vectors[:, order]
    # Rounding leaves a little variance along axes that have none: in the products
    # relative to the largest, in the centred rows relative to the mean.
    eps = np.finfo(np.float64).eps
    rounding = 100 * n_features * eps * variances.max() + np.sum(
        (100 * eps * mean / factor) ** 2
    )
    real = variances > rounding
    axes = np.zeros((n_components, n_features))
    axes[:rank][real] = svd_flip(None, vectors.T, u_based_decision=False)[1][real]
    return axes, np.pad(np.where(real, variances, 0), (0, n_components - rank))


def _covariance(rows: Rows, mean: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Covariance matrix, each entry over the rows that have both features."""
    n_features = rows.n_features
    products = np.zeros((n_features, n_features))
    weights = np.zeros((n_features, n_features))
    for where, block in rows.blocks():
        root = np.sqrt(rows.weight[where])[:, None]
        centred = (block - mean) / factor * root
        observed = ~np.isnan(centred)
        if observed.all():
            weights += rows.weight[where].sum()
        else:
            centred[~observed] = 0
            shared = observed * root
            weights += shared.T @ shared
        products += centred.T @ centred
    return np.divide(products, weights, out=products, where=weights > 0)


def _covariance_operator(
    rows: Rows, mean: np.ndarray, factor: np.ndarray
) -> LinearOperator:
    """Products of the covariance matrix with a vector, one pass over the rows each.

    A missing entry counts as the feature's mean.
    """
    n_features = rows.n_features
    total = rows.weight.sum()
    if sparse.issparse(rows.X):
        stored = rows.stored().astype(np.float64)
        missing = np.isnan(stored.data)
        stored.data[missing] = mean[stored.indices[missing]]

    def blocks() -> Iterator[tuple[slice, Any]]:
        if sparse.issparse(rows.X):
            yield slice(None), stored
            return
        for where, block in rows.blocks():
            yield where, np.where(np.isnan(block), mean, block)

    def multiply(vector: np.ndarray) -> np.ndarray:
        scaled = vector.ravel() / factor
        product = np.zeros(n_features)
        for where, block in blocks():
            projected = (block @ scaled - mean @ scaled) * rows.weight[where]
            product += block.T @ projected - mean * projected.sum()
        return product / factor / total

    return LinearOperator((n_features, n_features), matvec=multiply, dtype=np.float64)
