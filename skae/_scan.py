"""What one pass over the partitions of a table finds: statistics and a sample."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np

from skae._moments import Moments
from skae._rows import Rows, empty_rows, sample_size
from skae._summary import Summary, is_not_binary, summarize

# Number of rows that are drawn from all rows when these are first read, and the number
# of entries of this sample, which remains in memory: 64 MB in float64.
MAX_POOL, MAX_POOL_ENTRIES = 2**15, 2**23

# Number of features up to which the covariance matrix is computed. The PCA of a wider
# table is that of a sample of its rows.
MAX_MOMENTS_WIDTH = 2048


class Part(NamedTuple):
    """Selected rows of one partition.

    Attributes
    ----------
    number : int
        Number of the partition.
    n_rows : int
        Number of the selected rows.
    selected : ndarray of int of shape (n_rows,) or None
        Their positions in the partition, in ascending order. None if all are selected.
    """

    number: int
    n_rows: int
    selected: np.ndarray | None

    def select(self, values: np.ndarray) -> np.ndarray:
        """Return the selected ones of the rows of the partition."""
        return values if self.selected is None else values[self.selected]

    def subset(self, where: np.ndarray | None) -> Part:
        """Return some of the rows, at these positions among the selected ones."""
        if where is None:
            return self
        index = where if self.selected is None else self.selected[where]
        return Part(self.number, len(index), index)


class Drawn(NamedTuple):
    """Rows that were drawn from partitions, those with the smallest of random keys.

    Attributes
    ----------
    key : ndarray of shape (n_drawn,)
    number, position : ndarray of int of shape (n_drawn,)
        Partition of each row, and its position among the selected rows of it.
    values : ndarray of shape (n_drawn, n_features)
    """

    key: np.ndarray
    number: np.ndarray
    position: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, number: int, rows: Rows, size: int) -> Drawn:
        """Draw rows of one partition, which does not depend on other partitions."""
        key = np.random.default_rng([number, len(rows)]).random(len(rows))
        chosen = _smallest(key, size)
        numbers = np.full(len(chosen), number)
        return cls(key[chosen], numbers, chosen, rows.dense(chosen))

    @classmethod
    def merged(cls, drawn: Sequence[Drawn], size: int) -> Drawn:
        """Draw from the rows that were drawn from several partitions."""
        joined = [np.concatenate(arrays) for arrays in zip(*drawn, strict=True)]
        chosen = _smallest(joined[0], size)
        return cls(*(array[chosen] for array in joined))


def _smallest(key: np.ndarray, size: int) -> np.ndarray:
    """Return the positions of the smallest keys, in ascending order."""
    if len(key) <= size:
        return np.arange(len(key))
    return np.sort(np.argpartition(key, size)[:size])


class Scan(NamedTuple):
    """What one pass over partitions finds.

    Attributes
    ----------
    parts : tuple of Part
        Rows with a positive weight and an observed entry.
    n_stored : tuple of int
        Number of all rows of each of these partitions.
    empty : dict
        Positions of rows without an observed entry, for partitions that have any.
    summary : Summary or None
        Statistics of these rows; None if there are none.
    only_binary : ndarray of bool of shape (n_features,)
        Whether each feature has no values other than 0 and 1.
    moments : Moments or None
        None for a wide table.
    drawn : Drawn
    """

    parts: tuple[Part, ...]
    n_stored: tuple[int, ...]
    empty: dict[int, np.ndarray]
    summary: Summary | None
    only_binary: np.ndarray
    moments: Moments | None
    drawn: Drawn

    @classmethod
    def merged(cls, *scans: Scan) -> Scan:
        """Return what is found in all partitions of several scans."""
        if len(scans) == 1:
            return scans[0]
        summaries = [scan.summary for scan in scans if scan.summary is not None]
        moments = [scan.moments for scan in scans if scan.moments is not None]
        size = pool_size(len(scans[0].only_binary))
        return cls(
            sum((scan.parts for scan in scans), ()),
            sum((scan.n_stored for scan in scans), ()),
            {n: rows for scan in scans for n, rows in scan.empty.items()},
            reduce(Summary.merged, summaries) if summaries else None,
            np.logical_and.reduce([scan.only_binary for scan in scans]),
            reduce(Moments.merged, moments) if moments else None,
            Drawn.merged([scan.drawn for scan in scans], size),
        )


def pool_size(n_features: int) -> int:
    """Return the number of rows of the sample that remains in memory."""
    return max(sample_size(n_features), min(MAX_POOL, MAX_POOL_ENTRIES // n_features))


def scan_partition(
    weights: dict[int, np.ndarray] | None, number: int, values: np.ndarray
) -> Scan:
    """Find what `Scan` has in one partition.

    Parameters
    ----------
    weights : dict or None
        Weights of the rows of each partition, 0 for rows that are left out; None means
        ones.
    """
    n_features = values.shape[1]
    empty = empty_rows(values)
    index = weight = None
    if weights is not None or len(empty):
        is_kept = np.ones(len(values), dtype=bool)
        if weights is not None:
            is_kept = weights[number] > 0
        is_kept[empty] = False
        if not is_kept.all():
            index = np.flatnonzero(is_kept).astype(np.int32)
        if weights is not None:
            weight = weights[number][is_kept]
    rows = Rows(values, index, weight)
    summary = moments = None
    only_binary = np.ones(n_features, dtype=bool)
    if len(rows):
        summary = summarize(rows)
        for _, block in rows.blocks():
            only_binary &= ~is_not_binary(block).any(axis=0)
        if n_features <= MAX_MOMENTS_WIDTH:
            with np.errstate(over="ignore", invalid="ignore"):  # checked by the summary
                moments = Moments.of(rows, np.nan_to_num(summary.mean))
    return Scan(
        (Part(number, len(rows), index),),
        (len(values),),
        {number: empty} if len(empty) else {},
        summary,
        only_binary,
        moments,
        Drawn.of(number, rows, pool_size(n_features)),
    )
