"""Iterators over rows: minibatches for training, and dense blocks for skorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from skorch.dataset import Dataset
from torch import Tensor, nn

from skae._rows import Batch, Rows, Table
from skae._sparse import SparseRows

# Number of entries that are scaled at once: 1 MB in float32, which fits into the cache
# of a CPU.
CHUNK_ENTRIES = 2**18

# Number of entries up to which a table is scaled once and kept.
MAX_RESIDENT_CPU = 2**20

# The same for a table that is kept on a GPU: 64 MB in float32. Copying the positions of
# the rows of a chunk to the GPU waits until it has taken all steps before.
DEVICE_CHUNK_ENTRIES = 2**24


class Batches:
    """Iterable of dense blocks of rows and their weights, as tensors.

    The prediction methods of the skorch net use it.

    Parameters
    ----------
    rows : Rows
    batch_size : int
        Largest number of rows in a block; see :func:`batch_bounds`.
    """

    def __init__(self, rows: Rows, batch_size: int):
        self.rows = rows
        self.batch_size = batch_size

    def __len__(self) -> int:
        return count_batches(len(self.rows), self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start, stop in pairwise(batch_bounds(len(self.rows), self.batch_size)):
            where = slice(start, stop)
            # `from_numpy` warns about read-only memory.
            yield (
                torch.from_numpy(np.require(self.rows.dense(where), None, ["C", "W"])),
                torch.from_numpy(np.array(self.rows.weight[where])),
            )


class RowsDataset(Dataset):
    """Rows as a dataset of skorch, whose target is its input.

    Callbacks receive it. Nothing is copied unless an attribute is asked for.

    Parameters
    ----------
    rows : Rows
    folds : list of tuple of torch.nn.Module and Rows, default=()
        Networks and the rows that each of them predicts, in the order of `rows`.
        Empty means that the net's own network predicts all rows.

    Attributes
    ----------
    X : ndarray or CSR matrix of shape (n_rows, n_features)
        The rows.
    y : ndarray of shape (n_rows, n_features)
        The rows, as a dense array.
    """

    def __init__(self, rows: Rows, folds: Sequence[tuple[nn.Module, Rows]] = ()):
        self.rows = rows
        self.folds = folds

    @property
    def X(self) -> Table:
        return self.rows.selected()

    @property
    def y(self) -> np.ndarray:
        return self.rows.dense(slice(None))

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), self.rows.n_features

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> tuple[np.ndarray, np.ndarray]:
        row = self.rows.dense(np.arange(len(self))[i])
        return row, row


class TrainingBatches:
    """Iterable of scaled minibatches for training.

    Rows are scaled in chunks of several batches, or once if the table is small. Each
    iteration is one pass over the rows.

    Parameters
    ----------
    rows : Rows
    batch_size : int
        Largest number of rows in a batch; see :func:`batch_bounds`.
    prepare : callable
        Maps a block of rows, an ndarray that it may overwrite or `SparseRows`, to the
        `target` and the `observed` of a `Batch`.
    rng : numpy.random.Generator, default=None
        Shuffles the rows before each pass. None keeps their order.
    fold_weight : ndarray of shape (n_rows, n_folds), default=None
        The `fold_weight` of the batches.
    is_learnt : callable, default=None
        Maps positions of rows to the `is_learnt` of a batch.
    max_resident : int, default=MAX_RESIDENT_CPU
        Number of entries up to which a table is scaled once and kept in memory.
    is_copied : bool, default=False
        Whether `prepare` copies the block, to a GPU, and so never overwrites it.
    keeps_sparse : bool, default=False
        Whether the batches of a sparse table are `SparseRows`.
    part : tuple of int, default=(0, 1)
        Which part of each batch is returned, from 0, and the number of parts, which
        differ by at most one row.

    Attributes
    ----------
    bounds : ndarray of int of shape (n_batches + 1,)
        Positions at which batches begin, see :func:`batch_bounds`.
    parts : ndarray of int of shape (n_batches, 2)
        Positions at which the returned part of each batch begins and ends.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        prepare: Callable[[Any], tuple[Any, Tensor | None]],
        rng: np.random.Generator | None = None,
        fold_weight: np.ndarray | None = None,
        is_learnt: Callable[[Any], np.ndarray] | None = None,
        max_resident: int = MAX_RESIDENT_CPU,
        is_copied: bool = False,
        keeps_sparse: bool = False,
        part: tuple[int, int] = (0, 1),
    ):
        self.rows = rows
        self.keeps_sparse = keeps_sparse
        self.prepare = prepare
        self.rng = rng
        self.fold_weight = fold_weight
        self.is_learnt = is_learnt
        self.bounds = batch_bounds(len(rows), batch_size)
        self.parts = parts_of_batches(self.bounds, *part)
        self._order = np.arange(len(rows), dtype=np.int32)
        is_resident = rows.n_entries <= max_resident
        n_entries = DEVICE_CHUNK_ENTRIES if is_resident and is_copied else CHUNK_ENTRIES
        self._n_chunk = max(1, n_entries // int(self.bounds[1] * rows.n_features))
        self._resident: Batch | None = None
        self._buffer = np.empty((0, rows.n_features), dtype=rows.X.dtype)
        if keeps_sparse:
            n_stored = rows.X.nnz / rows.X.shape[0] * self.bounds[1]
            self._n_chunk = max(1, CHUNK_ENTRIES // int(max(1, n_stored)))
        elif is_resident:
            # Scaled in float64, float32 rows give the batches of equal float64 rows. In
            # a larger table, or on a GPU, this would cost time or memory.
            is_small = rows.n_entries <= MAX_RESIDENT_CPU
            dtype = np.float64 if is_small else rows.X.dtype
            block = rows.dense(slice(None))
            if is_copied:  # `from_numpy` warns about read-only memory
                block = np.require(block, dtype, ["C", "W"])
            else:
                block = np.array(block, dtype)
            self._resident = self._prepared(block, ...)
        else:
            # Allocating memory for each chunk costs more than copying its rows.
            n_rows = min(len(rows), int(self.bounds[1]) * self._n_chunk)
            self._buffer = np.empty((n_rows, rows.n_features), dtype=rows.X.dtype)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __iter__(self) -> Iterator[Batch]:
        order = self._order
        if self.rng is not None:
            self.rng.shuffle(order)
        for parts in self._chunks():
            where = np.concatenate([order[start:stop] for start, stop in parts])
            yield from self._chunk(where).split(np.diff(parts).ravel().tolist())

    def state(self) -> dict[str, np.ndarray]:
        """Return the order of the rows, which the next pass shuffles again."""
        return {"order": self._order}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Go on from the order of rows of another training."""
        self._order[:] = state["order"]

    def close(self) -> None:
        """Free what reads the rows, which is nothing here."""

    def _chunks(self) -> Iterator[np.ndarray]:
        """Yield the `parts` of the batches of each chunk."""
        for first in range(0, len(self), self._n_chunk):
            yield self.parts[first : first + self._n_chunk]

    def _chunk(self, order: np.ndarray) -> Batch:
        if self.keeps_sparse:
            return self._prepared(SparseRows.from_csr(self.rows.stored(order)), order)
        if self._resident is None:
            return self._prepared(self.rows.take(order, self._buffer), order)
        return self._resident.select(
            torch.from_numpy(order).to(self._resident.target.device)
        )

    def _prepared(self, block: Any, where: Any) -> Batch:
        target, observed = self.prepare(block)
        batch = make_batch(self.rows, where, target, observed, self.is_learnt)
        if self.fold_weight is None:
            return batch
        values = self.fold_weight[where].astype(np.float32)
        return batch._replace(fold_weight=torch.from_numpy(values).to(target.device))


def make_batch(
    rows: Rows,
    where: Any,
    target: Any,
    observed: Tensor | None,
    is_learnt: Callable[[Any], np.ndarray] | None,
) -> Batch:
    """Return a batch of scaled rows.

    Parameters
    ----------
    rows : Rows
        All rows, with their weights.
    where : ndarray of int, or an index of all rows
        Positions of the rows of the batch.
    target, observed : Tensor
        See `Batch`.
    is_learnt : callable or None
        See `TrainingBatches`.
    """
    if rows.is_uniform:
        weight = torch.ones(1).expand(len(target))
    else:
        weight = torch.from_numpy(rows.weight[where].astype(np.float32))
    learnt = None
    if is_learnt is not None:
        learnt = torch.from_numpy(is_learnt(where)).to(target.device)
    return Batch(target, observed, weight.to(target.device), None, learnt)


def batch_bounds(n_rows: int, batch_size: int) -> np.ndarray:
    """Return the positions at which batches begin, and the end of the last one.

    The sizes of the batches differ by at most one. With ``batch_size > 1``, a batch has
    at least two rows, if there are two, since batch normalisation needs them; for this,
    a batch may have ``batch_size + 1`` rows.

    Returns
    -------
    bounds : ndarray of int of shape (n_batches + 1,)
    """
    n_batches = count_batches(n_rows, batch_size)
    size, n_larger = divmod(n_rows, n_batches)
    sizes = np.full(n_batches, size)
    sizes[:n_larger] += 1
    return np.concatenate([[0], sizes.cumsum()])


def parts_of_batches(bounds: np.ndarray, number: int, n_parts: int) -> np.ndarray:
    """Return where one of the parts of each batch begins and ends, (n_batches, 2)."""
    starts, sizes = bounds[:-1], np.diff(bounds)
    ends = [starts + sizes * i // n_parts for i in (number, number + 1)]
    return np.stack(ends, axis=1)


def count_batches(n_rows: int, batch_size: int) -> int:
    """Return the number of batches of `n_rows` rows, see `batch_bounds`."""
    if batch_size == 1:
        return n_rows
    return min(-(-n_rows // batch_size), max(1, n_rows // 2))
