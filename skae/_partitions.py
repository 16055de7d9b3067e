"""Tables in partitions, which are validated when they are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np
from scipy import sparse
from sklearn.utils.validation import check_array

from skae._sources import DaskSource, IterableSource, Source, is_dask

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
    columns: tuple | None

    @classmethod
    def of(cls, example: Any) -> Format:
        """Return the format of partitions that are like an example."""
        values = _as_array(example, "X")
        return cls(values.shape[1], values.dtype, _columns(example))

    def array(self, number: int, partition: Any) -> np.ndarray:
        """Validate a partition; return it as an array of this format.

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
        values = _as_array(partition, name)
        if values.shape[1] != self.n_features:
            raise ValueError(
                f"All partitions must have the same number of columns: {name} has "
                f"{values.shape[1]}, but the first one has {self.n_features}."
            )
        if values.dtype != self.dtype:
            raise ValueError(
                f"All partitions must have the same type: {name} has {values.dtype}, "
                f"but the first one has {self.dtype}. Cast them to one of these types."
            )
        return values


def _as_array(partition: Any, name: str) -> np.ndarray:
    """Return a partition as an array in float64 or float32."""
    if sparse.issparse(partition):
        raise TypeError(
            f"{name} is a sparse matrix. Partitions must be dense: pass a sparse "
            "matrix that fits into memory as a whole, or dense partitions."
        )
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # in the sum of the values
            return check_array(
                partition,
                dtype=[np.float64, np.float32],
                ensure_all_finite="allow-nan",
                ensure_min_samples=0,
                input_name=name,
            )
    except (TypeError, ValueError) as error:
        if name in str(error):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: {error}") from error


def _columns(partition: Any) -> tuple | None:
    columns = getattr(partition, "columns", None)
    return None if columns is None else tuple(columns)


def _described(columns: tuple | None) -> str:
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

    def read(
        self, numbers: Sequence[int] | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Iterate over partitions as arrays, and their numbers; see `Source.read`.

        Raises
        ------
        ValueError
            If the partitions are others than when they were read before.
        """
        n_read = 0
        for number, partition in self.source.read(numbers):
            values = self.format.array(number, partition)
            self._check_same_rows(number, len(values))
            n_read += 1
            yield number, values
            del partition, values  # the next one would otherwise need memory beside it
        if numbers is not None and n_read < len(numbers):
            raise ValueError(
                f"Only {n_read} of {len(numbers)} partitions of X were found when it "
                "was read again. Each iteration over X must return all of them."
            )

    def _check_same_rows(self, number: int, n_rows: int) -> None:
        if self.n_stored is None:
            return
        before = self.n_stored[number] if number < len(self.n_stored) else 0
        if before != n_rows:
            raise ValueError(
                f"Partition {number} of X had {before} rows when it was first read, "
                f"and has {n_rows} now. Each iteration over X must return the same "
                "rows."
            )

    def reduce(
        self,
        read: Callable[[int, np.ndarray], Any],
        merge: Callable[..., Any],
        numbers: Collection[int] | None = None,
    ) -> Any:
        """Apply a function to partitions as arrays; see `Source.reduce`."""
        return self.source.reduce(partial(_read, self.format, read), merge, numbers)

    def count(self) -> None:
        """Count the rows of each partition."""
        counts = self.reduce(_count, _joined) or []
        self.n_stored = np.array([n for _, n in sorted(counts)], dtype=np.int64)

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


def _read(format: Format, read: Callable, number: int, partition: Any) -> Any:
    return read(number, format.array(number, partition))


def _count(number: int, values: np.ndarray) -> list[tuple[int, int]]:
    return [(number, len(values))]


def _joined(*counts: list) -> list:
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
