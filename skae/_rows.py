"""Weighted rows of dense, sparse and memory-mapped tables, selected by an index.

A large table is never copied: rows are selected by an index, and only a bounded block
of rows is dense at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from hashlib import blake2b
from itertools import repeat, starmap
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from scipy import sparse
from torch import Tensor

# A validated table: an array or a CSR matrix, for which SciPy has no types.
Table: TypeAlias = Any

T = TypeVar("T")

# Largest number of rows for which equal rows are merged: hashing 10,000 x 784 entries
# takes 0.1 s, and equal rows matter less in a larger table.
MAX_CANONICAL_ROWS = 10_000

# Entries of one dense block of rows, and of a layer's output in prediction. Larger
# blocks exceed the cache of a CPU and take longer.
BLOCK_ENTRIES = 2**19


# Size of a sample of rows, and entries of a sample of a wide table, which is dense.
MAX_SAMPLE, MIN_SAMPLE = 1000, 50
MAX_SAMPLE_ENTRIES = 2**20

# Smallest number of columns, and largest share of stored entries, of a sparse table
# whose rows are not made dense in training and prediction. In other tables the dense
# products of a block take less time, and give the same numbers as for a dense table.
MIN_SPARSE_WIDTH = 2048
MAX_SPARSE_DENSITY = 0.05


def sample_size(n_features: int) -> int:
    """Return the number of rows from which a property of all rows is estimated."""
    return max(MIN_SAMPLE, min(MAX_SAMPLE, MAX_SAMPLE_ENTRIES // n_features))


class Rows:
    """Weighted rows of a table, selected by an index.

    Parameters
    ----------
    X : ndarray or CSR matrix of shape (n, n_features)
        Never copied and never changed.
    index : ndarray of int of shape (n_rows,), default=None
        Positions in `X` of the selected rows, in order. None means all rows.
    weight : ndarray of shape (n_rows,), default=None
        Positive weights, aligned with `index`. None means ones, stored as a single
        number.
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
        self.weight = _ones(n_rows) if weight is None else weight

    # Whether the rows are read in partitions, see `skae._streamed.StreamedRows`.
    is_streamed = False

    def __getstate__(self) -> dict[str, Any]:
        # A pickled array of ones would no longer be a single number.
        return {**self.__dict__, "weight": None if self.is_uniform else self.weight}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.weight is None:
            self.weight = _ones(
                self.X.shape[0] if self.index is None else len(self.index)
            )

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def pool(self) -> Rows:
        """Rows in memory: these, or a sample of rows that are read in partitions."""
        return self

    @property
    def summary(self) -> Any:
        """Statistics of rows that are read in partitions, None of others."""
        return None

    @property
    def moments(self) -> Any:
        """Sums of products of such rows; None if there are none."""
        return None

    def shared(self, compute: Callable[[Rows], T], merge: Callable[..., T]) -> T:
        """Return what a function finds in all rows.

        Of rows that are read in partitions, each of several processes reads a part.

        Parameters
        ----------
        compute : callable
            Maps rows to a result that can be pickled.
        merge : callable
            Returns the result for all rows from those of consecutive parts of them.
        """
        return compute(self)

    @property
    def n_features(self) -> int:
        return self.X.shape[1]

    @property
    def n_entries(self) -> int:
        """Number of entries, those included that a sparse table does not store."""
        return len(self) * self.n_features

    @property
    def are_sparse(self) -> bool:
        """Whether dense blocks of the rows would take more time than the entries."""
        X = self.X
        return (
            sparse.issparse(X)
            and self.n_features >= MIN_SPARSE_WIDTH
            and X.nnz <= MAX_SPARSE_DENSITY * X.shape[0] * self.n_features
        )

    def dense(self, where: slice | np.ndarray) -> np.ndarray:
        """Return the rows at these positions, as a dense array in the type of `X`."""
        block = self.X[where if self.index is None else self.index[where]]
        return block.toarray() if sparse.issparse(block) else np.asarray(block)

    def stored(self, where: slice | np.ndarray) -> Any:
        """Return the rows of a sparse table at these positions, as a CSR matrix."""
        return self.X[where if self.index is None else self.index[where]]

    def take(self, where: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Return the rows at these positions, as `dense` does, in `out` if possible.

        Parameters
        ----------
        where : ndarray of int of shape (n_rows,)
        out : ndarray of shape (at least n_rows, n_features)
            Buffer for the rows of a dense table; those of a sparse one are new memory.
        """
        if sparse.issparse(self.X):
            return self.dense(where)
        index = where if self.index is None else self.index[where]
        # All positions are valid. Any mode other than "clip" copies to a buffer first.
        return self.X.take(index, axis=0, out=out[: len(where)], mode="clip")

    def selected(self) -> Table:
        """Return all selected rows, as an array or a CSR matrix like `X`."""
        return self.X if self.index is None else self.X[self.index]

    def subset(self, where: np.ndarray) -> Rows:
        """Return the rows at these positions, as `Rows` of the same table."""
        index = where if self.index is None else self.index[where]
        return Rows(self.X, index, None if self.is_uniform else self.weight[where])

    def sample(self, n_rows: int = MAX_SAMPLE) -> Rows:
        """Return at most `n_rows` rows, and at most `sample_size` of them.

        They are spread evenly over the order of these rows, which in canonical form is
        that of a hash.
        """
        n_rows = min(n_rows, sample_size(self.n_features))
        if len(self) <= n_rows:
            return self
        return self.subset(np.linspace(0, len(self) - 1, n_rows).astype(np.intp))

    def in_memory(self) -> Rows:
        """Return the same rows as rows of an array, if they are not in memory yet."""
        return self

    def drawn_positions(self, n_rows: float, seed: int) -> np.ndarray | None:
        """Return positions of rows drawn at random; None if there are no more rows."""
        if len(self) <= n_rows:
            return None
        rng = np.random.default_rng([seed, 1])
        return np.sort(rng.choice(len(self), int(n_rows), replace=False))

    def drawn(self, n_rows: float, seed: int) -> Rows:
        """Return at most `n_rows` of the rows, drawn at random."""
        drawn = self.drawn_positions(n_rows, seed)
        return self if drawn is None else self.subset(drawn)

    def shuffled(self, seed: int) -> np.ndarray:
        """Return the positions of all rows in random order."""
        order = np.arange(len(self), dtype=np.int32)
        np.random.default_rng([seed, 0]).shuffle(order)
        return order

    def divided(
        self, fraction: float, max_held_out: int, seed: int
    ) -> tuple[Rows, Rows]:
        """Return training rows and held-out rows, drawn at random.

        Parameters
        ----------
        fraction : float
            Share of the rows that are held out, in (0, 1).
        max_held_out : int
            Largest number of held-out rows that are returned.
        seed : int
        """
        order = self.shuffled(seed)
        n_held_out = min(math.ceil(fraction * len(self)), len(self) - 1)
        learnt, judged = order[n_held_out:], order[: min(n_held_out, max_held_out)]
        return self.subset(np.sort(learnt)), self.subset(np.sort(judged))

    def left_out(self, positions: np.ndarray) -> tuple[Rows, np.ndarray, np.ndarray]:
        """Return the rows of weight zero that have an observed entry.

        Parameters
        ----------
        positions : ndarray of int of shape (n_samples,)
            See `CanonicalForm`.

        Returns
        -------
        others : Rows
        where : ndarray of int
            Their positions in the table.
        empty : ndarray of int
            Positions in the table of the rows without an observed entry.
        """
        empty = empty_rows(self.X)
        is_left_out = positions < 0
        is_left_out[empty] = False
        where = np.flatnonzero(is_left_out)
        return Rows(self.X, where), where, empty

    @property
    def is_uniform(self) -> bool:
        """Whether all weights are one because none were given."""
        return self.weight.strides == (0,)

    def normalised(self, where: np.ndarray | None = None) -> Rows:
        """Return a subset, or all rows, with weights divided by their mean."""
        rows = self if where is None else self.subset(where)
        if rows.weight.min() == rows.weight.max():
            return rows.with_weight(None)
        return rows.with_weight(rows.weight / rows.weight.mean())

    def with_weight(self, weight: np.ndarray | None) -> Rows:
        """Return the same rows with other weights."""
        return Rows(self.X, self.index, weight)

    def blocks(self, size: int | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """Iterate over all rows in order, one bounded dense block at a time.

        Parameters
        ----------
        size : int, default=None
            Number of rows of a block; None means as many as `BLOCK_ENTRIES` allow.

        Yields
        ------
        where : slice
            Positions of the rows in the block.
        block : ndarray of shape (n_block, n_features)
        """
        if size is None:
            size = max(1, BLOCK_ENTRIES // self.n_features)
        for start in range(0, len(self), size):
            where = slice(start, min(start + size, len(self)))
            yield where, self.dense(where)


def _ones(n_rows: int) -> np.ndarray:
    """Return a vector of ones, stored as a single number."""
    # Of `np.broadcast_to`, the checks take longer than a row's pass through a layer.
    return np.ndarray(n_rows, np.float64, _ONE, strides=(0,))


# Its memory cannot be written to.
_ONE = np.float64(1.0).tobytes()


class CanonicalForm(NamedTuple):
    """Rows of a table in canonical form, see `canonical_form`.

    Attributes
    ----------
    rows : Rows
        With positive weights. There may be none.
    positions : ndarray of int of shape (n_samples,) or None
        Position in `rows` of each row of the table, -1 for a row that was dropped. None
        if `rows` are the rows of the table in their order.
    """

    rows: Rows
    positions: np.ndarray | None


def canonical_rows(X: Table, weight: np.ndarray | None) -> Rows:
    """Return rows in canonical form, see `canonical_form`."""
    return canonical_form(X, weight).rows


def canonical_form(X: Table, weight: np.ndarray | None) -> CanonicalForm:
    """Return rows in canonical form, so that fits do not depend on their order.

    Rows of weight zero, and rows without an observed entry, are dropped. Up to
    `MAX_CANONICAL_ROWS` rows, equal rows are merged into one row that has the sum of
    their weights, and the rows are sorted by a hash of their float64 bytes. Fits on
    weighted, repeated or permuted rows then process the same numbers in the same order.

    Parameters
    ----------
    X : ndarray or CSR matrix of shape (n_samples, n_features)
    weight : ndarray of shape (n_samples,) or None
        Non-negative, not all zero.

    Returns
    -------
    form : CanonicalForm
        `X` is referenced, not copied.
    """
    empty = empty_rows(X)
    if weight is None and len(empty) == 0:
        rows = Rows(X)
    else:
        is_kept = np.ones(X.shape[0], dtype=bool) if weight is None else weight > 0
        is_kept[empty] = False
        index = np.flatnonzero(is_kept)
        rows = Rows(X, index, None if weight is None else weight[index])
    if len(rows) > MAX_CANONICAL_ROWS:
        group = None if rows.index is None else np.arange(len(rows))
        return CanonicalForm(rows, _positions(rows, group))
    _, first, group = np.unique(
        _row_hashes(rows), return_index=True, return_inverse=True
    )
    index = first if rows.index is None else rows.index[first]
    weight = np.bincount(group, rows.weight).astype(np.float64)
    return CanonicalForm(Rows(X, index, weight), _positions(rows, group))


def _positions(rows: Rows, group: np.ndarray | None) -> np.ndarray | None:
    """Return the group of each row of the table, -1 for rows that are not selected."""
    if group is None or rows.index is None:
        return group
    positions = np.full(rows.X.shape[0], -1, dtype=np.int32)
    positions[rows.index] = group
    return positions


def empty_rows(X: Table) -> np.ndarray:
    """Return the positions of rows without an observed entry, in ascending order."""
    if sparse.issparse(X):
        candidates = np.flatnonzero(np.diff(X.indptr) == X.shape[1])
    else:
        candidates = np.flatnonzero(np.isnan(X[:, 0]))
    if not len(candidates):
        return candidates
    is_empty = np.zeros(len(candidates), dtype=bool)
    for where, block in Rows(X, candidates).blocks():
        is_empty[where] = np.isnan(block).all(axis=1)
    return candidates[is_empty]


def _row_hashes(rows: Rows) -> np.ndarray:
    """Return a 128-bit hash of the values of each row, as str of shape (n_rows,)."""
    hashes = []
    for _, block in rows.blocks():
        values = block.astype(np.float64)  # a copy, which is changed below
        values += 0.0  # -0.0 becomes 0.0
        values[np.isnan(values)] = np.nan  # one bit pattern for all NaN
        hashes += [blake2b(row.tobytes(), digest_size=16).hexdigest() for row in values]
    return np.array(hashes)


class Batch(NamedTuple):
    """Scaled rows of one training step.

    Attributes
    ----------
    target : Tensor of shape (n_rows, n_features)
        Scaled rows, missing entries filled with the mean.
    observed : Tensor of bool of shape (n_rows, n_features) or None
        True where an entry is not missing; None if none is.
    weight : Tensor of shape (n_rows,)
        A single number, expanded, if all rows of the table have the same weight.
    fold_weight : Tensor of shape (n_rows, n_folds) or None
        Weights in the training of the network of each fold, negligible for its held-out
        rows; None unless early stopping is cross-validated.
    is_learnt : Tensor of shape (n_rows, n_members) or None
        1 for rows that a member of an ensemble learns, 0 for others; None if all
        members learn all rows.
    """

    target: Tensor
    observed: Tensor | None
    weight: Tensor
    fold_weight: Tensor | None = None
    is_learnt: Tensor | None = None

    def split(self, sizes: list[int]) -> Iterator[Batch]:
        """Return an iterator over consecutive batches of these sizes."""
        parts = [repeat(None) if t is None else t.split(sizes) for t in self]
        return starmap(Batch, zip(*parts, strict=False))

    def block(self, where: slice) -> Batch:
        """Return consecutive rows."""
        start, stop = where.start, where.stop
        if stop - start == self.n_rows:
            return self
        _, rows, _ = self.split([start, stop - start, self.n_rows - stop])
        return rows

    @property
    def n_rows(self) -> int:
        return self.weight.shape[-1]

    def select(self, order: Tensor) -> Batch:
        """Return the rows at these positions."""
        parts = (None if t is None else _select(t, order) for t in self)
        return Batch(*parts)  # type: ignore[arg-type]

    def clone(self) -> Batch:
        """Return a copy with its own memory."""
        parts = (None if t is None else _clone(t) for t in self)
        return Batch(*parts)  # type: ignore[arg-type]


def _select(tensor: Tensor, order: Tensor) -> Tensor:
    if is_expanded(tensor):
        return tensor[:1].expand(len(order))
    return tensor.index_select(0, order)


def _clone(tensor: Tensor) -> Tensor:
    if is_expanded(tensor):
        return tensor[:1].clone().expand(len(tensor))
    return tensor.clone()


def is_expanded(tensor: Tensor) -> bool:
    """Whether a vector is a single number in memory, expanded to its length."""
    return tensor.stride() == (0,)
