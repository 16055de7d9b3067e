"""Principal axes of weighted rows, from which networks are initialized.

Sums are computed in float64, over blocks of rows and over observed entries only. Sparse
and memory-mapped tables are never converted to dense arrays as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy import linalg, sparse
from scipy.sparse.linalg import LinearOperator, eigsh
from sklearn.utils.extmath import svd_flip

from skae._rows import Rows
from skae._summary import summarize

# Up to this number of features the covariance matrix is computed and decomposed; above,
# an iterative solver needs only its products with vectors.
MAX_COVARIANCE_WIDTH = 1024

# Number of axes that the iterative solver computes first where it is not known how many
# are needed.
FIRST_TRIED = 16

# Entries up to which the iterative solver keeps the rows of any table as dense blocks.
# The axes of a sparse table are then equal to those of a dense one to the bit.
MAX_KEPT_ENTRIES = 2**20


def principal_axes(
    rows: Rows,
    n_components: int,
    mean: np.ndarray,
    factor: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the leading principal axes of (x - mean) / factor.

    Parameters
    ----------
    rows : Rows
        Weighted rows, with NaN where an entry is missing.
    n_components : int
        Number of axes. It may exceed the rank; the axes beyond it are zero.
    mean, factor : ndarray of shape (n_features,)
        Center and scale of the features.
    seed : int
        Seed of the initial vector of the iterative solver, for wide tables.

    Returns
    -------
    axes : ndarray of shape (n_components, n_features)
        Orthonormal rows in order of decreasing variance, zero beyond the rank.
        The entry of largest magnitude of each is positive, as in
        :class:`sklearn.decomposition.PCA`.
    variances : ndarray of shape (n_components,)
        Variance along each axis, 0 beyond the rank.
    """
    n_features, moments = rows.n_features, rows.moments
    rank = min(n_components, n_features, len(rows))
    if moments is not None or n_features <= MAX_COVARIANCE_WIDTH:
        covariance = (
            _covariance(rows, mean, factor)
            if moments is None
            else moments.covariance(mean, factor)
        )
        variances, vectors = linalg.eigh(
            covariance, subset_by_index=[n_features - rank, n_features - 1]
        )
    else:
        rank = min(rank, n_features - 1)
        covariance = _covariance_operator(rows.pool, mean, factor)
        first = np.random.default_rng(seed).standard_normal(n_features)
        if not covariance.matvec(first).any():
            return np.zeros((n_components, n_features)), np.zeros(n_components)
        variances, vectors = eigsh(covariance, k=rank, v0=first)
    order = np.argsort(variances)[::-1]
    variances, vectors = variances[order], vectors[:, order]
    # Due to rounding, a zero variance is computed as a small number: in the products
    # relative to the largest variance, in the centered rows relative to the mean.
    eps = np.finfo(np.float64).eps
    rounding = 100 * n_features * eps * variances.max() + np.sum(
        (100 * eps * mean / factor) ** 2
    )
    real = variances > rounding
    axes = np.zeros((n_components, n_features))
    axes[:rank][real] = svd_flip(None, vectors.T, u_based_decision=False)[1][real]
    return axes, np.pad(np.where(real, variances, 0), (0, n_components - rank))


def count_needed(
    parts: Sequence[tuple[Rows, Rows]],
    share: float,
    mean: np.ndarray,
    factor: np.ndarray,
    seed: int,
) -> int:
    """Return the fewest principal components that explain a share of the variance.

    Parameters
    ----------
    parts : sequence of tuple of Rows and Rows
        Rows whose principal axes are computed, and rows whose variance these axes have
        to explain. Of the latter, a sample is used. The sums of squares of all parts
        are added.
    share : float
        In (0, 1), of the variance in the units of the data.
    mean, factor : ndarray of shape (n_features,)
        Center of the variance to be explained, and scale of the features. The axes of a
        part start from the mean of its rows.
    seed : int
        See `principal_axes`.

    Returns
    -------
    n_components : int
        At least 1, and at most the smaller number of features and of rows of a part.
    """
    n_features = len(mean)
    largest = min(n_features, *(len(rows) for rows, _ in parts))
    is_iterative = n_features > MAX_COVARIANCE_WIDTH
    tried = min(FIRST_TRIED, largest) if is_iterative else largest
    while True:
        rest, total = np.zeros(tried), 0.0
        for rows, others in parts:
            own_mean, sample = summarize(rows).mean, others.sample()
            axes, _ = principal_axes(rows, tried, own_mean, factor, seed)
            rest += _squares_left(sample, axes, own_mean, factor)[1:]
            total += _squares_left(sample, axes[:0], mean, factor)[0]
        enough = np.flatnonzero(rest <= (1 - share) * total)
        if len(enough):
            return int(enough[0]) + 1
        if tried == largest:
            # Beyond the rank, a component explains nothing.
            return int(np.argmin(rest)) + 1
        tried = min(2 * tried, largest)


def _squares_left(
    rows: Rows, axes: np.ndarray, mean: np.ndarray, factor: np.ndarray
) -> np.ndarray:
    """Return the sum of squares that the first 0, 1, ... axes leave, in units of rows.

    Returns
    -------
    squares : ndarray of shape (n_components + 1,)
    """
    rest = np.concatenate([(block - mean) / factor for _, block in rows.blocks()])
    scale = np.where(np.isnan(rest), 0, np.sqrt(rows.weight)[:, None] * factor)
    rest = np.nan_to_num(rest)
    squares = [np.sum((scale * rest) ** 2)]
    for axis in axes:
        rest -= np.outer(rest @ axis, axis)
        squares.append(np.sum((scale * rest) ** 2))
    return np.array(squares)


def residual_variance(total: float, variances: np.ndarray, n_features: int) -> float:
    """Return the mean variance of the directions that a PCA leaves out.

    Parameters
    ----------
    total : float
        Sum of the variances of all features.
    variances : ndarray of shape (n_components,)
        Variances along the axes, 0 beyond the rank.
    n_features : int
        Number of features.

    Returns
    -------
    float
        0 if no direction is left out, and if the difference is due to rounding.
    """
    n_left = n_features - len(variances)
    rest = total - variances.sum()
    return float(rest / n_left) if n_left > 0 and rest > 1e-9 * total else 0.0


def _covariance(rows: Rows, mean: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Compute the covariance, each entry over rows that have both features."""
    n_features = rows.n_features
    products = np.zeros((n_features, n_features))
    weights = np.zeros((n_features, n_features))
    for where, block in rows.blocks():
        root = np.sqrt(rows.weight[where])[:, None]
        centered = (block - mean) / factor * root
        observed = ~np.isnan(centered)
        if observed.all():
            weights += rows.weight[where].sum()
        else:
            centered[~observed] = 0
            shared = observed * root
            weights += shared.T @ shared
        products += centered.T @ centered
    return np.divide(products, weights, out=products, where=weights > 0)


def _covariance_operator(
    rows: Rows, mean: np.ndarray, factor: np.ndarray
) -> LinearOperator:
    """Return the covariance as an operator, whose products are passes over the rows.

    Missing entries are replaced by the feature's mean.
    """
    n_features = rows.n_features
    total = rows.weight.sum()
    is_small = rows.n_entries <= MAX_KEPT_ENTRIES
    is_sparse = sparse.issparse(rows.X) and not is_small
    if is_sparse:
        stored = rows.selected().astype(np.float64)
        missing = np.isnan(stored.data)
        stored.data[missing] = mean[stored.indices[missing]]

    def blocks() -> Iterator[tuple[slice, Any]]:
        if is_sparse:
            yield slice(None), stored
            return
        for where, block in rows.blocks():
            yield where, np.where(np.isnan(block), mean, block)

    kept = list(blocks()) if is_small else None

    def multiply(vector: np.ndarray) -> np.ndarray:
        scaled = vector.ravel() / factor
        product = np.zeros(n_features)
        for where, block in kept or blocks():
            projected = (block @ scaled - mean @ scaled) * rows.weight[where]
            product += block.T @ projected - mean * projected.sum()
        return product / factor / total

    return LinearOperator((n_features, n_features), matvec=multiply, dtype=np.float64)
