"""Rows by index and batches by slice: dense, sparse and memory-mapped alike.

Nothing here copies the data. Rows are chosen by an index, and only one batch at
a time is made dense.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

# A checked table: an array or a CSR matrix, for which SciPy has no types.
Table: TypeAlias = Any

# Above this number of rows, equal ones are not looked for: 10,000 x 784 take
# 0.1 s, and a large table meets few repetitions.
MAX_CANONICAL_ROWS = 10_000

# Entries of one dense block when data are only read: 32 MB in float64.
BLOCK_ENTRIES = 2**22


class Rows:
    """Weighted rows of a table, chosen by an index.

    Parameters
    ----------
    X : ndarray or CSR matrix of shape (n, n_features)
        Never copied and never changed.
    index : ndarray of int of shape (n_rows,), default=None
        The rows of `X` that count, in their order. None means all.
    weight : ndarray of shape (n_rows,), default=None
        Positive weights, aligned with `index`. None means ones.
    """

    def __init__(
        self,
        X: Table,
        index: np.ndarray | None = None,
        weight: np.ndarray | None = None,
    ):
        self.X = X
        self.index = index
        n_rows = X.shape[0] if index is None else len(index)
        self.weight = np.ones(n_rows) if weight is None else weight

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def n_features(self) -> int:
        return self.X.shape[1]

    def dense(self, where: slice | np.ndarray) -> np.ndarray:
        """The rows at these positions, as a dense array in the type of `X`."""
        block = self.X[where if self.index is None else self.index[where]]
        return block.toarray() if sparse.issparse(block) else np.asarray(block)

    def stored(self) -> Table:
        """All rows in the container of `X`: CSR stays CSR."""
        return self.X if self.index is None else self.X[self.index]

    def subset(self, where: np.ndarray) -> Rows:
        """The rows at these positions, as `Rows` of the same table."""
        index = where if self.index is None else self.index[where]
        return Rows(self.X, index, self.weight[where])

    def normalised(self, where: np.ndarray) -> Rows:
        """A subset whose weights have mean one."""
        rows = self.subset(where)
        rows.weight = rows.weight / rows.weight.mean()
        return rows

    def digest(self) -> str:
        """A hash of all values and weights, in their order."""
        content = blake2b(np.ascontiguousarray(self.weight).tobytes())
        if sparse.issparse(self.X):
            table = self.stored()
            for part in (table.data, table.indices, table.indptr):
                content.update(part.tobytes())
        else:
            for _, block in self.blocks():
                content.update(np.ascontiguousarray(block).tobytes())
        return content.hexdigest()

    def blocks(self, size: int | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """Walk over all rows in order, a bounded dense block at a time.

        Parameters
        ----------
        size : int, default=None
            Rows of a block; None means as many as `BLOCK_ENTRIES` allow.

        Yields
        ------
        where : slice
            Positions of the block's rows.
        block : ndarray of shape (n_block, n_features)
        """
        if size is None:
            size = max(1, BLOCK_ENTRIES // self.n_features)
        for start in range(0, len(self), size):
            where = slice(start, min(start + size, len(self)))
            yield where, self.dense(where)


class Batches:
    """Minibatches of rows and their weights, as tensors.

    All batches have nearly the same size and, where the rows allow it, at least
    two rows: a last batch of one row would break batch normalisation.

    Parameters
    ----------
    rows : Rows
    batch_size : int
        Largest batch; above 1, it is exceeded by one row where this avoids a
        lone one.
    rng : numpy.random.Generator, default=None
        Shuffles the rows anew at each pass. None keeps their order.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        rng: np.random.Generator | None = None,
    ):
        self.rows = rows
        self.batch_size = batch_size
        self.rng = rng

    def __len__(self) -> int:
        return count_batches(len(self.rows), self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        n_rows = len(self.rows)
        order = np.arange(n_rows) if self.rng is None else self.rng.permutation(n_rows)
        for where in np.array_split(order, len(self)):
            yield (
                torch.from_numpy(self.rows.dense(where)),
                torch.from_numpy(self.rows.weight[where]),
            )


def count_batches(n_rows: int, batch_size: int) -> int:
    """Number of batches in which `Batches` serves `n_rows` rows."""
    if batch_size == 1:
        return n_rows
    return min(-(-n_rows // batch_size), max(1, n_rows // 2))


def canonical_rows(X: Table, weight: np.ndarray | None) -> Rows:
    """Rows in a form in which repetition is weight and order is nothing.

    Rows of weight zero are dropped. Up to `MAX_CANONICAL_ROWS` rows, equal rows
    are merged into one that has the sum of their weights, and the rows are
    sorted by a hash of their float64 bytes. So a fit on weighted, on repeated
    and on permuted rows sees the same numbers in the same order.

    Parameters
    ----------
    X : ndarray or CSR matrix of shape (n_samples, n_features)
    weight : ndarray of shape (n_samples,) or None
        Non-negative, not all zero.

    Returns
    -------
    rows : Rows
        Positive weights; `X` itself is kept by reference.
    """
    if weight is None:
        rows = Rows(X)
    else:
        rows = Rows(X).subset(np.flatnonzero(weight > 0))
        rows.weight = weight[rows.index]
    if len(rows) > MAX_CANONICAL_ROWS:
        return rows
    _, first, group = np.unique(
        _row_hashes(rows), return_index=True, return_inverse=True
    )
    index = first if rows.index is None else rows.index[first]
    return Rows(X, index, np.bincount(group, weights=rows.weight))


def _row_hashes(rows: Rows) -> np.ndarray:
    """A 128-bit hash of each row's values, as strings of shape (n_rows,)."""
    hashes = []
    for _, block in rows.blocks():
        values = block.astype(np.float64)  # a copy, free to be changed
        values += 0.0  # -0.0 becomes 0.0
        values[np.isnan(values)] = np.nan  # one bit pattern for all NaN
        hashes += [blake2b(row.tobytes(), digest_size=16).hexdigest() for row in values]
    return np.array(hashes)
