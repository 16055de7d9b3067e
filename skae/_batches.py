"""Rows by index and batches by slice: dense, sparse and memory-mapped alike.

Nothing here copies a large table. Rows are chosen by an index, and only a few
batches at a time are made dense.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b
from itertools import pairwise, repeat, starmap
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

# A checked table: an array or a CSR matrix, for which SciPy has no types.
Table: TypeAlias = Any

# Above this number of rows, equal ones are not looked for: 10,000 x 784 take
# 0.1 s, and a large table meets few repetitions.
MAX_CANONICAL_ROWS = 10_000

# Entries of one dense block when data are only read, and of a layer when a network
# predicts: they stay in the cache of a CPU, where more take longer.
BLOCK_ENTRIES = 2**19

# Entries that are prepared for training at once: 1 MB in float32, near the
# processor. A table of at most four times as many is prepared only once.
CHUNK_ENTRIES = 2**18


class Rows:
    """Weighted rows of a table, chosen by an index.

    Parameters
    ----------
    X : ndarray or CSR matrix of shape (n, n_features)
        Never copied and never changed.
    index : ndarray of int of shape (n_rows,), default=None
        The rows of `X` that count, in their order. None means all.
    weight : ndarray of shape (n_rows,), default=None
        Positive weights, aligned with `index`. None means ones, which take no
        memory.
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
        self.weight = np.broadcast_to(1.0, n_rows) if weight is None else weight

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def n_features(self) -> int:
        return self.X.shape[1]

    def dense(self, where: slice | np.ndarray) -> np.ndarray:
        """The rows at these positions, as a dense array in the type of `X`."""
        block = self.X[where if self.index is None else self.index[where]]
        return block.toarray() if sparse.issparse(block) else np.asarray(block)

    def take(self, where: np.ndarray, out: np.ndarray) -> np.ndarray:
        """As `dense`, in the first rows of `out` where nothing has to be unpacked."""
        if sparse.issparse(self.X):
            return self.dense(where)
        index = where if self.index is None else self.index[where]
        # All positions are valid; any other mode would go through a buffer.
        return self.X.take(index, axis=0, out=out[: len(where)], mode="clip")

    def stored(self) -> Table:
        """All rows in the container of `X`: CSR stays CSR."""
        return self.X if self.index is None else self.X[self.index]

    def subset(self, where: np.ndarray) -> Rows:
        """The rows at these positions, as `Rows` of the same table."""
        index = where if self.index is None else self.index[where]
        return Rows(self.X, index, None if self.is_uniform else self.weight[where])

    @property
    def is_uniform(self) -> bool:
        """Whether no weights were given."""
        return self.weight.strides == (0,)

    def normalised(self, where: np.ndarray | None = None) -> Rows:
        """A subset, or all rows, with weights that have mean one."""
        rows = self if where is None else self.subset(where)
        if rows.weight.min() == rows.weight.max():
            return Rows(rows.X, rows.index)
        return Rows(rows.X, rows.index, rows.weight / rows.weight.mean())

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
    """Dense blocks of rows, and their weights, as tensors.

    Parameters
    ----------
    rows : Rows
    batch_size : int
        Largest block; see :func:`batch_bounds`.
    """

    def __init__(self, rows: Rows, batch_size: int):
        self.rows = rows
        self.batch_size = batch_size

    def __len__(self) -> int:
        return count_batches(len(self.rows), self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start, stop in pairwise(batch_bounds(len(self.rows), self.batch_size)):
            where = slice(start, stop)
            # A tensor cannot share memory that is read-only.
            yield (
                torch.from_numpy(np.require(self.rows.dense(where), None, ["C", "W"])),
                torch.from_numpy(np.array(self.rows.weight[where])),
            )


class Batch(NamedTuple):
    """Rows as the network sees them in training.

    Attributes
    ----------
    target : Tensor of shape (n_rows, n_features)
        In the scaled space, missing entries filled with the mean.
    observed : Tensor of bool of shape (n_rows, n_features) or None
        True where an entry is not missing; None if none is.
    weight : Tensor of shape (n_rows,)
        One number in memory, repeated, if all rows of a table weigh the same.
    """

    target: Tensor
    observed: Tensor | None
    weight: Tensor

    def split(self, sizes: list[int]) -> Iterator[Batch]:
        """Consecutive batches of these sizes."""
        parts = [repeat(None) if t is None else t.split(sizes) for t in self]
        return starmap(Batch, zip(*parts, strict=False))

    @property
    def n_rows(self) -> int:
        return self.weight.shape[0]

    def pick(self, order: Tensor) -> Batch:
        """The rows at these positions."""
        observed = None if self.observed is None else _pick(self.observed, order)
        return Batch(_pick(self.target, order), observed, _pick(self.weight, order))

    def clone(self) -> Batch:
        """The same in memory of its own."""
        observed = None if self.observed is None else self.observed.clone()
        return Batch(self.target.clone(), observed, self.weight.clone())


def _pick(tensor: Tensor, order: Tensor) -> Tensor:
    if is_repeated(tensor):
        return tensor[:1].expand(len(order))
    return tensor.index_select(0, order)


def is_repeated(tensor: Tensor) -> bool:
    """Whether all entries are the same number in memory."""
    return tensor.stride() == (0,)


class Feed:
    """Minibatches for training, prepared many at a time.

    Parameters
    ----------
    rows : Rows
    batch_size : int
        Largest batch; see :func:`batch_bounds`.
    prepare : callable
        Makes of a dense block of rows, an ndarray that it may overwrite, what
        `Batch` has as its `target` and its `observed`.
    rng : numpy.random.Generator, default=None
        Shuffles the rows anew at each pass. None keeps their order.
    max_resident : int, default=4 * CHUNK_ENTRIES
        Entries of the largest table that is kept prepared.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        prepare: Callable[[np.ndarray], tuple[Tensor, Tensor | None]],
        rng: np.random.Generator | None = None,
        max_resident: int = 4 * CHUNK_ENTRIES,
    ):
        self.rows = rows
        self.prepare = prepare
        self.rng = rng
        self.bounds = batch_bounds(len(rows), batch_size)
        self._order = np.arange(len(rows), dtype=np.int32)
        self._n_chunk = max(1, CHUNK_ENTRIES // int(self.bounds[1] * rows.n_features))
        self._resident: Batch | None = None
        self._buffer = np.empty((0, rows.n_features), dtype=rows.X.dtype)
        if len(rows) * rows.n_features <= max_resident:
            self._resident = self._prepared(np.array(rows.dense(slice(None))), ...)
        else:
            # New memory for each chunk would cost more than the rows in it.
            n_rows = min(len(rows), int(self.bounds[1]) * self._n_chunk)
            self._buffer = np.empty((n_rows, rows.n_features), dtype=rows.X.dtype)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __iter__(self) -> Iterator[Batch]:
        order = self._order
        if self.rng is not None:
            self.rng.shuffle(order)
        for bounds in self._chunks():
            chunk = self._chunk(order[bounds[0] : bounds[-1]])
            yield from chunk.split(np.diff(bounds).tolist())

    def _chunks(self) -> Iterator[np.ndarray]:
        """Bounds of the batches, as many at a time as make a chunk."""
        for first in range(0, len(self), self._n_chunk):
            yield self.bounds[first : first + self._n_chunk + 1]

    def _chunk(self, order: np.ndarray) -> Batch:
        if self._resident is None:
            return self._prepared(self.rows.take(order, self._buffer), order)
        return self._resident.pick(
            torch.from_numpy(order).to(self._resident.target.device)
        )

    def _prepared(self, block: np.ndarray, where: Any) -> Batch:
        target, observed = self.prepare(block)
        if self.rows.is_uniform:
            weight = torch.ones(1).expand(len(block))
        else:
            weight = torch.from_numpy(self.rows.weight[where].astype(np.float32))
        return Batch(target, observed, weight.to(target.device))


def batch_bounds(n_rows: int, batch_size: int) -> np.ndarray:
    """Where batches begin and the last one ends.

    All batches have nearly the same size and, where the rows allow it, at least
    two rows: a last batch of one row would break batch normalisation. Above 1,
    `batch_size` is exceeded by one row where this avoids a lone one.

    Returns
    -------
    bounds : ndarray of int of shape (n_batches + 1,)
    """
    n_batches = count_batches(n_rows, batch_size)
    size, n_larger = divmod(n_rows, n_batches)
    sizes = np.full(n_batches, size)
    sizes[:n_larger] += 1
    return np.concatenate([[0], sizes.cumsum()])


def count_batches(n_rows: int, batch_size: int) -> int:
    """Number of batches in which `n_rows` rows are served."""
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
