"""Minibatches of a table in partitions: shuffled, and read while the trainer works."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from time import perf_counter
from typing import Any

import numpy as np
from torch import Tensor

from skae._partitions import Prefetched
from skae._rows import Batch
from skae.engine.batches import CHUNK_ENTRIES, batch_bounds, make_batch

# Number of partitions from which the rows of a batch come. They are in memory, and so
# is the next one.
N_MIXED = 3

# One record an epoch, with the attributes `epoch_time` and `waiting_time` in seconds.
logger = logging.getLogger("skae")


class StreamedBatches:
    """Iterable of scaled minibatches of rows that are read in partitions.

    Each iteration is one pass over the rows. The partitions come in a new random order.
    The rows of a partition are divided at random into `N_MIXED` portions, and a portion
    of each of as many partitions is shuffled together, so that every batch has rows of
    several partitions while one partition after the other is read.

    Parameters
    ----------
    rows : Rows
        Streamed rows.
    batch_size : int
        Largest number of rows in a batch; see `skae.engine.batches.batch_bounds`.
    prepare : callable
        See `skae.engine.batches.TrainingBatches`.
    rng : numpy.random.Generator
    is_learnt : callable, default=None
        See `skae.engine.batches.TrainingBatches`.
    """

    def __init__(
        self,
        rows: Any,
        batch_size: int,
        prepare: Callable[[Any], tuple[Any, Tensor | None]],
        rng: np.random.Generator,
        is_learnt: Callable[[Any], np.ndarray] | None = None,
    ):
        self.rows = rows
        self.prepare = prepare
        self.rng = rng
        self.is_learnt = is_learnt
        self._parts: Prefetched | None = None
        self.bounds = batch_bounds(len(rows), batch_size)
        n_batches = max(1, CHUNK_ENTRIES // int(self.bounds[1] * rows.n_features))
        self._chunk_bounds = np.append(self.bounds[:-1:n_batches], self.bounds[-1])

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __iter__(self) -> Iterator[Batch]:
        begin = perf_counter()
        order = self.rng.permutation(len(self.rows.parts))
        with closing(Prefetched(self.rows.read(order))) as parts:
            self._parts = parts
            start = 0
            for where, block in self._chunks(parts):
                stop = start + len(block)
                first, last = np.searchsorted(self.bounds, [start, stop])
                target, observed = self.prepare(block)
                chunk = make_batch(self.rows, where, target, observed, self.is_learnt)
                yield from chunk.split(np.diff(self.bounds[first : last + 1]).tolist())
                start = stop
            epoch_time, waiting_time = perf_counter() - begin, parts.waited
        logger.debug(
            "An epoch took %.3f s, of which the training waited %.3f s for data.",
            epoch_time,
            waiting_time,
            extra={"epoch_time": epoch_time, "waiting_time": waiting_time},
        )

    def close(self) -> None:
        """End the thread that reads partitions, also before the end of an epoch."""
        if self._parts is not None:
            self._parts.close()

    def _chunks(
        self, parts: Iterator[tuple[int, np.ndarray]]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield rows of several whole batches, and their numbers."""
        sizes = iter(np.diff(self._chunk_bounds).tolist())
        size = next(sizes)
        rest = _Mixture.of([])
        for mixture in self._mixtures(parts):
            mixture = mixture.after(rest)
            first = 0
            while size and first + size <= len(mixture.order):
                yield mixture.take(first, first + size)
                first += size
                size = next(sizes, 0)
            rest = mixture.beginning_at(first)

    def _mixtures(self, parts: Iterator[tuple[int, np.ndarray]]) -> Iterator[_Mixture]:
        """Yield shuffled portions of several partitions."""
        open_parts: list[_Portions] = []
        n_read = 0
        for start, values in parts:
            n_read += 1
            # The first partitions have fewer portions, so that they do not end at the
            # same time.
            n_portions = min(n_read, N_MIXED)
            open_parts.append(_Portions(start, values, n_portions, self.rng))
            del values
            if n_read < min(N_MIXED, len(self.rows.parts)):
                continue
            yield _Mixture.of([part.next() for part in open_parts]).shuffled(self.rng)
            open_parts = [part for part in open_parts if part.orders]
        if open_parts:
            rest = [part.all() for part in open_parts]
            yield _Mixture.of(rest).shuffled(self.rng)


class _Portions:
    """Random portions of the rows of a partition."""

    def __init__(
        self, start: int, values: np.ndarray, n_portions: int, rng: np.random.Generator
    ):
        self.start, self.values = start, values
        order = rng.permutation(len(values)).astype(np.int32)
        self.orders = np.array_split(order, n_portions)

    def next(self) -> tuple[int, np.ndarray, np.ndarray]:
        return self.start, self.values, self.orders.pop()

    def all(self) -> tuple[int, np.ndarray, np.ndarray]:
        return self.start, self.values, np.concatenate(self.orders)


class _Mixture:
    """Rows of several arrays in one order.

    Parameters
    ----------
    arrays : list of ndarray of shape (n, n_features)
    numbers : ndarray of int of shape (n_rows,)
        Number of each row among all rows.
    source, order : ndarray of int of shape (n_rows,)
        Array of each row, and its position there.
    """

    def __init__(
        self,
        arrays: list[np.ndarray],
        numbers: np.ndarray,
        source: np.ndarray,
        order: np.ndarray,
    ):
        self.arrays = arrays
        self.numbers = numbers
        self.source = source
        self.order = order

    @classmethod
    def of(cls, portions: list[tuple[int, np.ndarray, np.ndarray]]) -> _Mixture:
        """Return the rows of portions: number of the first row, array and positions."""
        empty = np.empty(0, dtype=np.intp)
        orders = [order for _, _, order in portions]
        numbers = [start + order for start, _, order in portions]
        source = np.repeat(
            np.arange(len(portions), dtype=np.int8), [len(order) for order in orders]
        )
        return cls(
            [values for _, values, _ in portions],
            np.concatenate([empty, *numbers]),
            source,
            np.concatenate([empty.astype(np.int32), *orders]),
        )

    def shuffled(self, rng: np.random.Generator) -> _Mixture:
        """Return the same rows in random order."""
        return self._at(rng.permutation(len(self.order)))

    def beginning_at(self, first: int) -> _Mixture:
        """Return a copy of the rows from a position on."""
        numbers, values = self.take(first, len(self.order))
        n_rows = len(values)
        return _Mixture(
            [values] if n_rows else [],
            numbers,
            np.zeros(n_rows, dtype=np.int8),
            np.arange(n_rows, dtype=np.int32),
        )

    def after(self, rest: _Mixture) -> _Mixture:
        """Return the rows of another mixture and then these."""
        return _Mixture(
            [*rest.arrays, *self.arrays],
            np.concatenate([rest.numbers, self.numbers]),
            np.concatenate([rest.source, self.source + np.int8(len(rest.arrays))]),
            np.concatenate([rest.order, self.order]),
        )

    def take(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of rows, and a new array with the rows themselves."""
        source, order = self.source[start:stop], self.order[start:stop]
        if not len(order):
            return self.numbers[start:stop], np.empty((0, 0))
        first = self.arrays[0]
        block = np.empty((len(order), first.shape[1]), first.dtype)
        for i, values in enumerate(self.arrays):
            chosen = np.flatnonzero(source == i)
            block[chosen] = values[order[chosen]]
        return self.numbers[start:stop], block

    def _at(self, where: np.ndarray) -> _Mixture:
        return _Mixture(
            self.arrays, self.numbers[where], self.source[where], self.order[where]
        )
