"""Minibatches of a table in partitions: shuffled, and read while the trainer works."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from torch import Tensor

from skae._partitions import Prefetched
from skae._rows import Batch
from skae.engine.batches import (
    CHUNK_ENTRIES,
    batch_bounds,
    make_batch,
    parts_of_batches,
)
from skae.engine.processes import current_processes

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
    part : tuple of int, default=(0, 1)
        Which part of each batch is returned, from 0, and the number of parts. Each part
        has rows of its own partitions, which are consecutive ones in the order of the
        epoch. Rows of the partitions at its ends may belong to the parts before and
        after it, so that no row is left out and the parts are equally large.

    Attributes
    ----------
    bounds, parts : ndarray of int
        See `skae.engine.batches.TrainingBatches`.
    """

    def __init__(
        self,
        rows: Any,
        batch_size: int,
        prepare: Callable[[Any], tuple[Any, Tensor | None]],
        rng: np.random.Generator,
        is_learnt: Callable[[Any], np.ndarray] | None = None,
        part: tuple[int, int] = (0, 1),
    ):
        self.rows = rows
        self.prepare = prepare
        self.rng = rng
        self.is_learnt = is_learnt
        self.part = part
        self._read: Prefetched[Any] | None = None
        self.bounds = batch_bounds(len(rows), batch_size)
        self.parts = parts_of_batches(self.bounds, *part)
        # Where the rows of this part begin and end in the order of an epoch.
        self._low, self._high = (self.parts - self.bounds[:-1, None]).sum(axis=0)
        self._sizes = np.diff(self.parts).ravel()
        # The same batches in all parts.
        n_chunk_rows = int(self.bounds[1]) / part[1]
        self._n_chunk = max(1, int(CHUNK_ENTRIES / (n_chunk_rows * rows.n_features)))

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __iter__(self) -> Iterator[Batch]:
        begin = perf_counter()
        number, n_parts = self.part
        # All processes draw the same order, and then each draws its own numbers.
        order = self.rng.permutation(len(self.rows.parts))
        own = self.rng
        if n_parts > 1:
            # The state of a generator does not contain how many it has spawned.
            own = np.random.default_rng([int(self.rng.integers(2**63)), number])
        spans = self.rows.spans(order, self._low, self._high)
        with closing(Prefetched(self.rows.read(spans))) as read:
            self._read = read
            chunks = self._chunks(self._mixtures(read, len(spans), own))
            # What fails in one of several processes ends the epoch in all of them.
            obtain = partial(current_processes().together, partial(next, chunks, None))
            for sizes, found in zip(
                self._chunk_sizes(), iter(obtain, None), strict=True
            ):
                where, block = found
                target, observed = self.prepare(block)
                chunk = make_batch(self.rows, where, target, observed, self.is_learnt)
                yield from chunk.split(sizes.tolist())
            epoch_time, waiting_time = perf_counter() - begin, read.waited
        logger.debug(
            "An epoch took %.3f s, of which the training waited %.3f s for data.",
            epoch_time,
            waiting_time,
            extra={"epoch_time": epoch_time, "waiting_time": waiting_time},
        )

    def state(self) -> dict[str, np.ndarray]:
        """Return what changes from pass to pass: nothing but the generator."""
        return {}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Go on from the `state` of another training."""

    def close(self) -> None:
        """End the thread that reads partitions, also before the end of an epoch."""
        if self._read is not None:
            self._read.close()

    def _chunk_sizes(self) -> Iterator[np.ndarray]:
        """Yield the numbers of rows of the batches of each chunk."""
        for first in range(0, len(self), self._n_chunk):
            yield self._sizes[first : first + self._n_chunk]

    def _chunks(
        self, mixtures: Iterator[_Mixture]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield rows of several whole batches, and their numbers."""
        sizes = (int(sizes.sum()) for sizes in self._chunk_sizes())
        size = next(sizes)
        rest = _Mixture.of([])
        for mixture in mixtures:
            mixture = mixture.after(rest)
            first = 0
            while size and first + size <= len(mixture.order):
                yield mixture.take(first, first + size)
                first += size
                size = next(sizes, 0)
            rest = mixture.beginning_at(first)

    def _mixtures(
        self,
        parts: Iterator[tuple[int, np.ndarray]],
        n_parts: int,
        rng: np.random.Generator,
    ) -> Iterator[_Mixture]:
        """Yield shuffled portions of several partitions."""
        open_parts: list[_Portions] = []
        n_read = 0
        for start, values in parts:
            n_read += 1
            # The first partitions have fewer portions, so that they do not end at the
            # same time.
            n_portions = min(n_read, N_MIXED)
            open_parts.append(_Portions(start, values, n_portions, rng))
            del values
            if n_read < min(N_MIXED, n_parts):
                continue
            yield _Mixture.of([part.next() for part in open_parts]).shuffled(rng)
            open_parts = [part for part in open_parts if part.orders]
        if open_parts:
            rest = [part.all() for part in open_parts]
            yield _Mixture.of(rest).shuffled(rng)


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
