"""Sources of tables in partitions: Dask collections, and iterables.

Dask is imported only if the user has imported it.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
from scipy import sparse

# Maps the number of a partition, and the partition as it was passed, to a result.
Reader: TypeAlias = Callable[[int, Any], Any]

# Number of results that one task of Dask merges.
FAN_IN = 8


def is_partitioned(X: Any) -> bool:
    """Whether X is a Dask collection or an iterable of two-dimensional partitions.

    Nested lists of numbers, and lists of rows, are tables in memory.

    Raises
    ------
    TypeError
        If X can be iterated only once, or is a Dask collection without columns.
    """
    if is_dask(X):
        if not isinstance(getattr(X, "ndim", None), int):
            raise TypeError(
                f"X is a {type(X).__name__} of Dask, which has no rows and columns. "
                "Pass a Dask array or a Dask dataframe."
            )
        return True
    if hasattr(X, "__next__"):
        raise TypeError(
            f"X is a {type(X).__name__}, which can be iterated only once, but each "
            "epoch reads all rows. Pass the function that returns it, a list of "
            "arrays, or an object whose __iter__ returns a new iterator."
        )
    is_array = hasattr(X, "shape") or hasattr(X, "__array__")
    if is_array or hasattr(X, "__dataframe__") or isinstance(X, type | str | bytes):
        return False
    if isinstance(X, Sequence):
        return len(X) > 0 and _is_table(X[0])
    return callable(X) or (hasattr(X, "__iter__") and not hasattr(X, "keys"))


def is_dask(X: Any) -> bool:
    """Whether X is a collection of Dask."""
    # Whoever has one has imported Dask.
    dask = sys.modules.get("dask")
    return dask is not None and bool(dask.is_dask_collection(X))


def _is_table(item: Any) -> bool:
    """Whether an item of a list is a partition: it has rows and columns."""
    if sparse.issparse(item) or hasattr(item, "columns"):
        return True
    return getattr(item, "ndim", 0) == 2 and hasattr(item, "dtype")


def in_memory(values: Any) -> Any:
    """Return a Dask collection as NumPy or pandas has it, anything else unchanged."""
    return values.compute() if is_dask(values) else values


class Source(ABC):
    """Partitions as they were passed."""

    # Number of all rows; None if it is not known before they are read.
    n_rows: int | None = None

    @property
    @abstractmethod
    def example(self) -> Any:
        """A partition with the right columns and types, which may have no rows."""

    @abstractmethod
    def read(self, numbers: Sequence[int] | None) -> Iterator[tuple[int, Any]]:
        """Iterate over partitions and their numbers.

        Parameters
        ----------
        numbers : sequence of int or None
            Partitions to be read, in this order if the source has random access. None
            means all, in their order.
        """

    @abstractmethod
    def reduce(
        self, read: Reader, merge: Callable[..., Any], numbers: Collection[int] | None
    ) -> Any:
        """Apply a function to partitions, and merge the results in a fixed order.

        Parameters
        ----------
        read : callable
        merge : callable
            Returns one result from several.
        numbers : collection of int or None
            None means all partitions. A source without partitions gives None.
        """


class DaskSource(Source):
    """Partitions of a Dask array or a Dask dataframe.

    Dask reads them, by its active scheduler: threads, or the workers of a cluster.

    Parameters
    ----------
    X : dask.array.Array or dask.dataframe.DataFrame
    """

    def __init__(self, X: Any):
        self.X = X
        if hasattr(X, "columns"):
            self._parts = list(X.to_delayed())
            return
        self._parts = list(X.rechunk({1: -1}).to_delayed().ravel())
        if not math.isnan(X.shape[0]):
            self.n_rows = int(X.shape[0])

    @property
    def example(self) -> Any:
        if hasattr(self.X, "columns"):
            from dask.dataframe.utils import make_meta

            return make_meta(self.X)
        return np.empty((0, self.X.shape[1]), self.X.dtype)

    def read(self, numbers: Sequence[int] | None) -> Iterator[tuple[int, Any]]:
        for i in range(len(self._parts)) if numbers is None else numbers:
            yield int(i), self._parts[i].compute()

    def reduce(
        self, read: Reader, merge: Callable[..., Any], numbers: Collection[int] | None
    ) -> Any:
        delayed = sys.modules["dask"].delayed
        read, merge = delayed(read, pure=False), delayed(merge, pure=False)
        chosen = range(len(self._parts)) if numbers is None else sorted(numbers)
        found = [read(int(i), self._parts[i]) for i in chosen]
        while len(found) > 1:
            groups = range(0, len(found), FAN_IN)
            found = [merge(*found[i : i + FAN_IN]) for i in groups]
        return found[0].compute() if found else None


class IterableSource(Source):
    """Partitions of an iterable, in this process.

    Parameters
    ----------
    X : iterable or callable
        Each iteration gives the same arrays or data frames. A function returns an
        iterator without arguments.
    """

    def __init__(self, X: Any):
        self.X = X

    @property
    def example(self) -> Any:
        for item in self._iterator():
            return item
        raise ValueError("X has no partition.")

    def _iterator(self) -> Iterator[Any]:
        found = self.X() if callable(self.X) else self.X
        if not hasattr(found, "__iter__"):
            raise TypeError(
                f"X must be a function that returns an iterator over arrays, but it "
                f"returned a {type(found).__name__}."
            )
        return iter(found)

    def read(self, numbers: Sequence[int] | None) -> Iterator[tuple[int, Any]]:
        if numbers is not None and isinstance(self.X, Sequence):
            yield from ((int(i), self.X[i]) for i in numbers)
            return
        wanted = None if numbers is None else set(numbers)
        for i, item in enumerate(self._iterator()):
            if wanted is None or i in wanted:
                yield i, item

    def reduce(
        self, read: Reader, merge: Callable[..., Any], numbers: Collection[int] | None
    ) -> Any:
        ordered = None if numbers is None else sorted(numbers)
        found = (read(i, item) for i, item in self.read(ordered))
        first = next(found, None)
        return reduce(merge, found, first)
