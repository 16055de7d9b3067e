"""Sources of tables in partitions: Dask collections, and iterables.

Dask is imported only if the user has imported it.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
from scipy import sparse

# Maps the number of a partition, and the partition as it was passed, to a result.
Reader: TypeAlias = Callable[[int, Any], Any]

# Numbers of partitions: a slice of all numbers, or some of them in an order.
Numbers: TypeAlias = slice | Sequence[int]

ALL = slice(None)

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
    # Whether a partition may use memory that the next one overwrites.
    reuses_memory = False

    @property
    @abstractmethod
    def n_partitions(self) -> int | None:
        """Number of partitions; None if it is not known before they are read."""

    @property
    @abstractmethod
    def example(self) -> Any:
        """A partition with the right columns and types, which may have no rows."""

    @abstractmethod
    def read(self, numbers: Numbers) -> Iterator[tuple[int, Any]]:
        """Iterate over partitions and their numbers.

        Parameters
        ----------
        numbers : slice or sequence of int
            Partitions to be read, in this order if the source has random access.
        """

    @abstractmethod
    def reduce(self, read: Reader, merge: Callable[..., Any], numbers: Numbers) -> Any:
        """Apply a function to partitions, and merge the results in a fixed order.

        Parameters
        ----------
        read : callable
        merge : callable
            Returns one result from several.
        numbers : slice or sequence of int
            In ascending order. No partitions give None.
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

    @property
    def n_partitions(self) -> int:
        return len(self._parts)

    def read(self, numbers: Numbers) -> Iterator[tuple[int, Any]]:
        for i in _listed(numbers, self.n_partitions):
            yield i, self._parts[i].compute()

    def reduce(self, read: Reader, merge: Callable[..., Any], numbers: Numbers) -> Any:
        delayed = sys.modules["dask"].delayed
        read, merge = delayed(read, pure=False), delayed(merge, pure=False)
        chosen = _listed(numbers, self.n_partitions)
        found = [read(i, self._parts[i]) for i in chosen]
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
        self.reuses_memory = not isinstance(X, Sequence)
        # Number of partitions of the first complete iteration.
        self._n_partitions = len(X) if isinstance(X, Sequence) else None

    @property
    def n_partitions(self) -> int | None:
        return len(self.X) if isinstance(self.X, Sequence) else None

    @property
    def example(self) -> Any:
        for item in self._iterator():
            return item
        raise ValueError("X has no partition.")

    def _iterator(self) -> Iterator[Any]:
        """Iterate over X, and close its iterator if that is left before the end."""
        found = self.X() if callable(self.X) else self.X
        if _is_table(found) or not hasattr(found, "__iter__"):
            raise TypeError(
                "X must be a function that returns an iterator over arrays or data "
                f"frames, but it returned one {type(found).__name__}. Pass a table in "
                "memory or a Dask collection as it is."
            )
        yield from found

    def read(self, numbers: Numbers) -> Iterator[tuple[int, Any]]:
        if isinstance(self.X, Sequence):
            self._check_same_number(len(self.X))
            yield from ((i, self.X[i]) for i in _listed(numbers, len(self.X)))
            return
        wanted = numbers if isinstance(numbers, slice) else set(numbers)
        n_read = 0
        for item in self._iterator():
            if _is_wanted(wanted, n_read):
                yield n_read, item
            n_read += 1
        self._check_same_number(n_read)

    def _check_same_number(self, n_read: int) -> None:
        """Raise an error if an iteration has found another number of partitions."""
        if self._n_partitions is None:
            self._n_partitions = n_read
            if not any(True for _ in self._iterator()):
                raise TypeError(
                    f"X is a {type(self.X).__name__} that can be iterated only once, "
                    "but each epoch reads all rows. Each call or iteration must start "
                    "anew: pass the generator function itself, a list of arrays, or "
                    "an object whose __iter__ returns a new iterator."
                )
        if n_read != self._n_partitions:
            raise ValueError(
                f"X had {self._n_partitions} partitions when it was first read, and "
                f"has {n_read} now. Each iteration over X must return all of them."
            )

    def reduce(self, read: Reader, merge: Callable[..., Any], numbers: Numbers) -> Any:
        found = (read(i, item) for i, item in self.read(numbers))
        first = next(found, None)
        return reduce(merge, found, first)


def _listed(numbers: Numbers, n_partitions: int) -> list[int]:
    """Return the numbers of partitions one by one."""
    if isinstance(numbers, slice):
        return list(range(n_partitions)[numbers])
    return [int(number) for number in numbers]


def _is_wanted(wanted: slice | set[int], number: int) -> bool:
    """Whether a partition is among those to be read."""
    return number in (
        range(number + 1)[wanted] if isinstance(wanted, slice) else wanted
    )
