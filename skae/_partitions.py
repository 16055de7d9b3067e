"""Tables in partitions, which are validated when they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy import sparse
from sklearn.utils.validation import check_array

from skae._arrays import as_numpy
from skae._numeric import numeric
from skae._sources import (
    ALL,
    DaskSource,
    IterableSource,
    Numbers,
    Source,
    is_dask,
)
from skae.engine.processes import current_processes

Item = TypeVar("Item")


class Format(NamedTuple):
    """What all partitions have in common.

    Attributes
    ----------
    n_features : int
    dtype : numpy.dtype
        float64 or float32.
    columns : tuple or None
        Labels of the columns of data frames; None for arrays.
    """

    n_features: int
    dtype: np.dtype
    columns: tuple[Any, ...] | None

    @classmethod
    def of(cls, example: Any) -> Format:
        """Return the format of partitions that are like an example."""
        values = _as_array(example, "X")
        return cls(values.shape[1], values.dtype, _columns(example))

    def array(self, number: int, partition: Any, copy: bool = False) -> np.ndarray:
        """Validate a partition; return it as an array of this format.

        With ``copy=True``, it has memory of its own.

        Raises
        ------
        TypeError, ValueError
            If it has other columns, or values that are not allowed.
        """
        name = f"partition {number} of X"
        columns = _columns(partition)
        if columns != self.columns:
            raise ValueError(
                f"All partitions must have the same columns: {name} has "
                f"{_described(columns)}, but the first one has "
                f"{_described(self.columns)}."
            )
        values = _as_array(partition, name, copy)
        if values.shape[1] != self.n_features:
            raise ValueError(
                f"All partitions must have the same number of columns: {name} has "
                f"{values.shape[1]}, but the first one has {self.n_features}."
            )
        if values.dtype != self.dtype and len(values):
            raise ValueError(
                f"All partitions must have the same type: {name} has {values.dtype}, "
                f"but the first one has {self.dtype}. Cast them to one of these types."
            )
        return values.astype(self.dtype, copy=False)


def _as_array(partition: Any, name: str, copy: bool = False) -> np.ndarray:
    """Return a partition as an array in float64 or float32."""
    partition = as_numpy(partition, name)
    if sparse.issparse(partition):
        raise TypeError(
            f"{name} is a sparse matrix. Partitions must be dense: pass a sparse "
            "matrix that fits into memory as a whole, or dense partitions."
        )
    try:
        # The sum of the values may overflow.
        with np.errstate(over="ignore", invalid="ignore"), numeric(partition, name):
            return check_array(
                partition,
                dtype=[np.float64, np.float32],
                copy=copy,
                ensure_all_finite="allow-nan",
                ensure_min_samples=0,
                input_name=name,
            )
    except (TypeError, ValueError) as error:
        if name in str(error):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: {error}") from error


def _columns(partition: Any) -> tuple[Any, ...] | None:
    columns = getattr(partition, "columns", None)
    return None if columns is None else tuple(columns)


def _described(columns: tuple[Any, ...] | None) -> str:
    return "no names of columns" if columns is None else f"the columns {list(columns)}"


class Partitions:
    """Table in partitions, which are validated when they are read.

    Parameters
    ----------
    X : dask.array.Array, dask.dataframe.DataFrame, iterable or callable
        See `skae._sources.is_partitioned`.

    Attributes
    ----------
    source : Source
    example : object
        A partition with the right columns and types, as it was passed.
    format : Format
    n_stored : ndarray of int of shape (n_partitions,) or None
        Number of rows of each partition; None until `count` or `stream_rows` has read
        them.
    """

    def __init__(self, X: Any):
        self.source: Source = DaskSource(X) if is_dask(X) else IterableSource(X)
        self.example = self.source.example
        self.format = Format.of(self.example)
        self.n_stored: np.ndarray | None = None

    @property
    def dtype(self) -> np.dtype:
        return self.format.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, 0 while it is not known, and of columns."""
        n_rows = 0 if self.n_stored is None else int(self.n_stored.sum())
        return n_rows, self.format.n_features

    def read(self, numbers: Numbers = ALL) -> Iterator[tuple[int, np.ndarray]]:
        """Iterate over partitions as arrays, and their numbers; see `Source.read`.

        Raises
        ------
        ValueError
            If the partitions are others than when they were read before.
        """
        for number, partition in self.source.read(numbers):
            values = self.format.array(number, partition, self.source.reuses_memory)
            _check_same_rows(self.n_stored, number, len(values))
            yield number, values
            del partition, values  # the next one would otherwise need memory beside it

    def reduce(
        self,
        read: Callable[[int, np.ndarray], Any],
        merge: Callable[..., Any],
        numbers: Sequence[int] | None = None,
    ) -> Any:
        """Apply a function to partitions as arrays; see `Source.reduce`.

        Of several processes, each reads every n-th partition, and all get the result
        for all partitions.

        Parameters
        ----------
        numbers : sequence of int, default=None
            Partitions in ascending order; None means all.
        """
        processes = current_processes()
        rank, size = processes.rank, processes.size
        own = slice(rank, None, size) if numbers is None else numbers[rank::size]
        reader = partial(_read, self.format, self.n_stored, read)
        return processes.merged(
            partial(self.source.reduce, reader, merge, own),
            partial(_merged, merge),
        )

    def count(self) -> None:
        """Count the rows of each partition."""
        self.record_counts(self.reduce(_count, _joined) or [])

    def record_counts(self, counts: Sequence[tuple[int, int]]) -> None:
        """Set `n_stored`.

        Parameters
        ----------
        counts : sequence of tuple of int
            Number of each partition, and number of its rows.

        Raises
        ------
        ValueError
            If a partition is missing: the processes have different numbers of them.
        """
        numbers, n_stored = np.array(sorted(counts), dtype=np.int64).reshape(-1, 2).T
        if not np.array_equal(numbers, np.arange(len(numbers))):
            raise ValueError(
                "X must have the same partitions in all processes, but of "
                f"{numbers.max() + 1} partitions some were found in none of them."
            )
        self.n_stored = n_stored

    def gathered(self, max_entries: int) -> np.ndarray | None:
        """Return all rows as one array, or None if they have more entries."""
        n_features = self.format.n_features
        known = self.source.n_rows
        if known is not None and known * n_features > max_entries:
            return None
        found, n_entries = [np.empty((0, n_features), self.dtype)], 0
        for _, values in self.read():
            n_entries += values.size
            if n_entries > max_entries:
                return None
            found.append(values)
        return np.concatenate(found)


def _check_same_rows(n_stored: np.ndarray | None, number: int, n_rows: int) -> None:
    """Raise ValueError if a partition has another number of rows than before."""
    if n_stored is None:
        return
    before = n_stored[number] if number < len(n_stored) else 0
    if before != n_rows:
        raise ValueError(
            f"Partition {number} of X had {before} rows when it was first read, "
            f"and has {n_rows} now. Each iteration over X must return the same rows."
        )


def _read(
    format: Format,
    n_stored: np.ndarray | None,
    read: Callable[..., Any],
    number: int,
    partition: Any,
) -> Any:
    values = format.array(number, partition)
    _check_same_rows(n_stored, number, len(values))
    return read(number, values)


def _merged(merge: Callable[..., Any], *found: Any) -> Any:
    """Merge results of processes, of which those without partitions have None."""
    results = [each for each in found if each is not None]
    return merge(*results) if results else None


def _count(number: int, values: np.ndarray) -> list[tuple[int, int]]:
    return [(number, len(values))]


def _joined(*counts: list[Any]) -> list[Any]:
    return [entry for part in counts for entry in part]


class Prefetched(Iterator[Item]):
    """Iterator whose next item a thread obtains while the present one is in use.

    Parameters
    ----------
    items : iterator
        Only the thread uses it.

    Attributes
    ----------
    waited : float
        Seconds for which the caller has waited for items.
    """

    def __init__(self, items: Iterator[Item]):
        self.waited = 0.0
        self._items = items
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="skae-partitions")
        self._next = self._thread.submit(next, items, None)

    def __next__(self) -> Item:
        start = perf_counter()
        item = self._next.result()  # raises the errors of the thread
        self.waited += perf_counter() - start
        if item is None:
            raise StopIteration
        self._next = self._thread.submit(next, self._items, None)
        return item

    def close(self) -> None:
        """End the thread, after the item that it is obtaining."""
        self._thread.shutdown(wait=True, cancel_futures=True)
