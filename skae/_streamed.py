"""Weighted rows of a table in partitions, which is read one partition at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np

from skae._held_out import choose_held_out
from skae._moments import Moments
from skae._partitions import Partitions, Prefetched
from skae._rows import BLOCK_ENTRIES, Rows
from skae._scan import MAX_MOMENTS_WIDTH, Part, Scan, scan_partition
from skae._summary import Summary
from skae.engine.processes import current_processes

T = TypeVar("T")

# Number of entries up to which a table in partitions is loaded, and handled as one that
# was passed as an array: 128 MB in float64.
MAX_GATHERED = 2**24


class StreamedRows(Rows):
    """Weighted rows of a table in partitions.

    Only blocks of them, in order, and a sample are available; there is no access to
    single rows of the table. Of several processes, all call the methods that read rows
    and return what they found in them, and each reads a part of the partitions.

    Parameters
    ----------
    X : Partitions
    parts : sequence of Part
        Rows of each partition. The rows are numbered in this order.
    weight : ndarray of shape (n_rows,) or None
        Positive weights; None means ones.
    pool : Rows
        Sample of these rows, in memory.
    pool_positions : ndarray of int of shape (n_pool,)
        Numbers of the rows of the sample, in ascending order.
    scan : Scan or None
        What was found in these rows; None if it has to be computed when it is needed.
    """

    is_streamed = True

    def __init__(
        self,
        X: Partitions,
        parts: Sequence[Part],
        weight: np.ndarray | None,
        pool: Rows,
        pool_positions: np.ndarray,
        scan: Scan | None = None,
    ):
        self.parts = [part for part in parts if part.n_rows]
        self.starts = np.cumsum([0, *(part.n_rows for part in self.parts)])
        # An index without memory gives the number of rows.
        super().__init__(X, np.broadcast_to(0, int(self.starts[-1])), weight)
        self._pool = pool
        self._pool_positions = pool_positions
        self._known = scan
        self._results: dict[tuple[Any, ...], Any] = {}

    @property
    def pool(self) -> Rows:
        return self._pool

    def pool_index(self, positions: np.ndarray | None) -> np.ndarray:
        """Return the positions in the table of the rows of the sample.

        Parameters
        ----------
        positions : ndarray of int of shape (n_samples,) or None
            See `Streamed`.
        """
        if positions is None:
            return self._pool_positions
        return np.flatnonzero(positions >= 0)[self._pool_positions]

    def sample(self, n_rows: int | None = None) -> Rows:
        return self.pool.sample() if n_rows is None else self.pool.sample(n_rows)

    @property
    def scan(self) -> Scan:
        """What one pass over these rows finds."""
        return self._known or self._once("scan", self._scan)

    def _scan(self) -> Scan:
        weights = {}
        for part, start in zip(self.parts, self.starts, strict=False):
            stored = np.zeros(self.X.n_stored[part.number])
            own = self.weight[start : start + part.n_rows]
            stored[slice(None) if part.selected is None else part.selected] = own
            weights[part.number] = stored
        if self.is_uniform and all(part.selected is None for part in self.parts):
            weights = None  # type: ignore[assignment]
        numbers = [part.number for part in self.parts]
        return self.X.reduce(partial(scan_partition, weights), Scan.merged, numbers)

    @property
    def summary(self) -> Summary:
        scan = self.scan
        assert scan.summary is not None
        low, high = scan.summary.low, scan.summary.high
        mean = np.where(scan.summary.variance == 0, low, scan.summary.mean)
        is_binary = scan.only_binary & (low == 0) & (high == 1)
        return scan.summary._replace(mean=mean, is_binary=is_binary)

    @property
    def moments(self) -> Moments | None:
        if self.n_features > MAX_MOMENTS_WIDTH:
            return None
        return self.scan.moments

    def _once(self, name: str, compute: Callable[..., T], *arguments: Any) -> T:
        """Return the result of a function, which is called once for the same arguments.

        A result that a process has computed alone is unknown to the others, and does
        not count for all of them.
        """
        is_alone = not current_processes().are_several
        for of_all in (True, False) if is_alone else (True,):
            if (of_all, name, *arguments) in self._results:
                return self._results[of_all, name, *arguments]
        result = compute(*arguments)
        self._results[not is_alone, name, *arguments] = result
        return result

    # Access

    def spans(self, order: np.ndarray, low: int, high: int) -> dict[int, slice]:
        """Return some consecutive rows of all rows in another order of the partitions.

        Parameters
        ----------
        order : ndarray of int of shape (n_parts,)
            Positions in `parts`.
        low, high : int
            Positions of the first row, and behind the last one, in this order.

        Returns
        -------
        spans : dict of int to slice
            The rows of each partition that has any, by its position in `parts`, in this
            order.
        """
        sizes = np.diff(self.starts)[order]
        starts = np.cumsum(sizes) - sizes
        first, last = (np.clip(end - starts, 0, sizes).tolist() for end in (low, high))
        return {
            int(i): slice(a, b)
            for i, a, b in zip(order, first, last, strict=True)
            if a < b
        }

    def read(
        self, spans: Mapping[int, slice] | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Iterate over the rows of each partition.

        Parameters
        ----------
        spans : mapping of int to slice, default=None
            See `spans`; None means all rows. Partitions of an iterable that is no list
            come in their own order.

        Yields
        ------
        start : int
            Number of the first row.
        values : ndarray of shape (n_rows, n_features)
        """
        if spans is None:
            spans = self.spans(np.arange(len(self.parts)), 0, len(self))
        found = {self.parts[i].number: i for i in spans}
        for number, values in self.X.read(list(found)):
            i = found[number]
            where = spans[i]
            values = self.parts[i].select(values)[where]
            yield int(self.starts[i]) + where.start, values
            del values  # the next partition would otherwise need memory beside it

    def blocks(self, size: int | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        if size is None:
            size = max(1, BLOCK_ENTRIES // self.n_features)
        with closing(Prefetched(self.read())) as parts:
            for start, values in parts:
                for first in range(0, len(values), size):
                    block = values[first : first + size]
                    yield slice(start + first, start + first + len(block)), block

    def shared(self, compute: Callable[[Rows], T], merge: Callable[..., T]) -> T:
        processes = current_processes()
        rank, size = processes.rank, processes.size
        if not processes.are_several:
            return compute(self)
        if len(self) < size:  # a process would have no rows
            return processes.share(partial(compute, self))
        low, high = len(self) * rank // size, len(self) * (rank + 1) // size
        spans = self.spans(np.arange(len(self.parts)), low, high)
        chosen = [(i, np.arange(s.start, s.stop)) for i, s in spans.items()]
        return processes.merged(lambda: compute(self.of_parts(chosen)), merge)

    def in_memory(self) -> Rows:
        values = self.shared(_loaded, _joined)
        return Rows(values, None, None if self.is_uniform else np.array(self.weight))

    # Rows that are derived from these

    def with_weight(self, weight: np.ndarray | None) -> StreamedRows:
        pool = self.pool
        drawn = None if weight is None else weight[self._pool_positions]
        return StreamedRows(
            self.X,
            self.parts,
            weight,
            Rows(pool.X, pool.index, drawn),
            self._pool_positions,
        )

    def subset(self, where: np.ndarray) -> Rows:
        """Return the rows with these numbers, in ascending order.

        In memory, if they have no more than `MAX_GATHERED` entries.
        """
        bounds = np.searchsorted(where, self.starts)
        chosen = [
            (i, where[low:high] - self.starts[i])
            for i, (low, high) in enumerate(pairwise(bounds))
            if high > low
        ]
        rows = self.of_parts(chosen)
        return rows.in_memory() if rows.n_entries <= MAX_GATHERED else rows

    def of_parts(self, chosen: Sequence[tuple[int, np.ndarray | None]]) -> StreamedRows:
        """Return the rows of some partitions.

        Parameters
        ----------
        chosen : sequence of tuple of int and (ndarray of int or None)
            Each partition by its position in `parts`, and the positions of its rows, in
            ascending order; None means all of them.
        """
        parts, weights, drawn, positions = [], [], [], []
        n_before = 0
        for i, where in chosen:
            start, stop = self.starts[i], self.starts[i + 1]
            part = self.parts[i].subset(where)
            low, high = np.searchsorted(self._pool_positions, [start, stop])
            local = self._pool_positions[low:high] - start
            found = np.arange(low, high)
            if where is not None:
                place = np.searchsorted(where, local)
                place[place == len(where)] = 0
                is_chosen = where[place] == local if len(where) else local < 0
                local, found = place[is_chosen], found[is_chosen]
            parts.append(part)
            drawn.append(found)
            positions.append(n_before + local)
            own = self.weight[start:stop]
            weights.append(own if where is None else own[where])
            n_before += part.n_rows
        weight = None if self.is_uniform else np.concatenate(weights)
        pool = self.pool.subset(_concatenated(drawn))
        return StreamedRows(self.X, parts, weight, pool, _concatenated(positions))

    def drawn(self, n_rows: float, seed: int) -> Rows:
        """Return rows drawn at random, as of `subset`.

        All of them, if there are no more than `n_rows`; from the pool, if that is large
        enough. Others are read once for the same arguments.
        """
        if len(self) <= n_rows:
            return self
        return self._once("drawn", self._draw, int(n_rows), seed)

    def _draw(self, n_rows: int, seed: int) -> Rows:
        rng, n_pool = np.random.default_rng([seed, 1]), len(self.pool)
        if n_rows <= n_pool:
            return self.pool.subset(np.sort(rng.choice(n_pool, n_rows, replace=False)))
        sizes = np.diff(self.starts)
        counts = rng.multivariate_hypergeometric(sizes, n_rows, method="marginals")
        chosen = [
            (i, np.sort(rng.choice(int(size), int(count), replace=False)))
            for i, (size, count) in enumerate(zip(sizes, counts, strict=True))
            if count
        ]
        rows = self.of_parts(chosen)
        return rows.in_memory() if rows.n_entries <= MAX_GATHERED else rows

    def divided(
        self, fraction: float, max_held_out: int, seed: int
    ) -> tuple[StreamedRows, Rows]:
        """Return training rows and held-out rows, see `choose_held_out`.

        The held-out rows are in memory. They are read once for the same arguments.
        """
        return self._once("divided", self._divided, fraction, max_held_out, seed)

    def _divided(
        self, fraction: float, max_held_out: int, seed: int
    ) -> tuple[StreamedRows, Rows]:
        sizes, rng = np.diff(self.starts), np.random.default_rng([seed, 0])
        train, held_out = map(self.of_parts, choose_held_out(sizes, fraction, rng))
        return train, held_out.drawn(max_held_out, seed).in_memory()

    def left_out(self, positions: np.ndarray) -> tuple[StreamedRows, Any, Any]:
        X = self.X
        starts = np.cumsum([0, *X.n_stored])
        empty = _concatenated(
            [starts[number] + index for number, index in self.scan.empty.items()]
        )
        is_other = positions < 0
        is_other[empty] = False
        parts = []
        for number, start in enumerate(starts[:-1]):
            index = np.flatnonzero(is_other[start : starts[number + 1]])
            parts.append(Part(number, len(index), index))
        nothing = self.pool.subset(np.empty(0, np.intp))
        others = StreamedRows(X, parts, None, nothing, np.empty(0, np.intp))
        return others, np.flatnonzero(is_other), empty

    def dense(self, where: Any) -> np.ndarray:
        raise TypeError("Rows in partitions have no random access.")

    stored = dense

    def selected(self) -> Any:
        raise TypeError("Rows in partitions are not loaded at once.")


def _loaded(rows: Rows) -> np.ndarray:
    """Return rows as one array, one block at a time."""
    values = np.empty((len(rows), rows.n_features), rows.X.dtype)
    for where, block in rows.blocks():
        values[where] = block
    return values


def _joined(*arrays: np.ndarray) -> np.ndarray:
    return np.concatenate(arrays)


def _concatenated(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.intp), *arrays]).astype(np.intp)


class Streamed(NamedTuple):
    """Rows of a table in partitions, see `skae._rows.CanonicalForm`.

    Attributes
    ----------
    rows : StreamedRows
        With positive weights. There may be none.
    positions : ndarray of int of shape (n_samples,) or None
        Position in `rows` of each row of the table, -1 for a row that was dropped. None
        if none was.
    """

    rows: StreamedRows
    positions: np.ndarray | None


def load_small(X: Partitions) -> np.ndarray | None:
    """Return all rows of a small table as an array, None for a larger one."""
    return X.gathered(MAX_GATHERED)


def stream_rows(X: Partitions, weight: np.ndarray | None) -> Streamed:
    """Read a table in partitions once, and drop rows as `canonical_form` does.

    Equal rows are not merged, and the rows remain in their order.

    Parameters
    ----------
    X : Partitions
        Its `n_stored` is set.
    weight : ndarray of shape (n_samples,) or None
        Non-negative weights. They need `Partitions.count`.
    """
    weights = None
    if weight is not None:
        assert X.n_stored is not None
        parts = np.split(weight, np.cumsum(X.n_stored)[:-1])
        weights = dict(enumerate(parts))
    scan = X.reduce(partial(scan_partition, weights), Scan.merged)
    ordered = sorted(scan.parts, key=lambda part: part.number)
    numbers = [part.number for part in scan.parts]
    X.record_counts(list(zip(numbers, scan.n_stored, strict=True)))
    assert X.n_stored is not None
    kept = None
    if weight is not None:
        kept = np.concatenate([p.select(weights[p.number]) for p in ordered])  # type: ignore[index]
    starts = np.cumsum([0, *(part.n_rows for part in ordered)])
    drawn = scan.drawn
    place = starts[drawn.number] + drawn.position
    first = np.argsort(place)
    pool_positions = place[first]
    drawn_weight = None if kept is None else kept[pool_positions]
    pool = Rows(drawn.values[first], None, drawn_weight)
    rows = StreamedRows(X, ordered, kept, pool, pool_positions, scan)
    return Streamed(rows, _positions(X.n_stored, ordered))


def _positions(n_stored: np.ndarray, parts: list[Part]) -> np.ndarray | None:
    if all(part.selected is None for part in parts):
        return None
    positions = np.full(n_stored.sum(), -1, dtype=np.int64)
    start = n_before = 0
    for part, n_rows in zip(parts, n_stored, strict=True):
        own = positions[start : start + n_rows]
        own[slice(None) if part.selected is None else part.selected] = np.arange(
            n_before, n_before + part.n_rows
        )
        start, n_before = start + n_rows, n_before + part.n_rows
    return positions
