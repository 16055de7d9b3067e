"""Folds of rows, each of which some members of an ensemble do not learn.

The fold of a row depends on its values and on a seed alone, so that it does not depend
on the order of the rows, equal rows share it, and a later fit finds it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from skae._rows import BLOCK_ENTRIES, Rows

# Largest number of folds. Members learn three quarters of the rows then; with more
# folds they would learn more, but fewer members would judge a row that they did not
# learn.
MAX_FOLDS = 4

# Smallest number of distinct rows that are divided into folds. With fewer rows, no
# p-value could be below .05, and members need all of the rows.
MIN_ROWS = 20

# Keys of rows are non-negative numbers below this one.
N_KEYS = 2**63


class Holdout(NamedTuple):
    """Which rows the members of an ensemble do not learn.

    Attributes
    ----------
    seed : int
        Seed of the keys of the rows, see `row_keys`.
    bounds : ndarray of int64 of shape (n_folds - 1,)
        Smallest key in each fold but the first, in ascending order.
    group : ndarray of int of shape (n_members,)
        Fold whose rows each member does not learn; -1 for a member that learns all.
    """

    seed: int
    bounds: np.ndarray
    group: np.ndarray

    @property
    def n_folds(self) -> int:
        return len(self.bounds) + 1

    def fold_of(self, rows: Rows) -> np.ndarray:
        """Return the fold of each row, int8 of shape (n_rows,)."""
        fold = np.empty(len(rows), dtype=np.int8)
        for where, keys in _key_blocks(rows, self.seed):
            fold[where] = np.searchsorted(self.bounds, keys, side="right")
        return fold

    def of_first(self, n_members: int) -> Holdout:
        """Return the holdout of the first members alone."""
        return self._replace(group=self.group[:n_members])

    def extended(self, widths: Sequence[int]) -> Holdout:
        """Return the holdout with additional members, whose codes have these widths."""
        sizes = np.bincount(self.group[self.group >= 0], minlength=self.n_folds)
        added = _deal(widths, np.argsort(sizes, kind="stable"))
        return self._replace(group=np.concatenate([self.group, added]))


def choose_holdout(
    rows: Rows | None, widths: Sequence[int], seed: int, n_kept: int = 0
) -> Holdout | None:
    """Return folds for an ensemble that is trained for the first time.

    Parameters
    ----------
    rows : Rows or None
        Rows that are divided into folds of equal size. None divides the keys of all
        possible rows instead, for rows that come in pieces.
    widths : sequence of int
        Number of components of each member. As far as possible, the groups of members
        get the same mix of them.
    seed : int
    n_kept : int, default=0
        Number of members before these, which have learnt all rows.

    Returns
    -------
    holdout : Holdout or None
        None for fewer than two members, or fewer than `MIN_ROWS` distinct rows.
    """
    n_folds = min(MAX_FOLDS, len(widths))
    if n_folds < 2:
        return None
    shares = np.arange(1, n_folds)
    if rows is None:
        bounds = N_KEYS // n_folds * shares
    else:
        keys = np.unique(row_keys(rows, seed))
        if len(keys) < MIN_ROWS:
            return None
        bounds = keys[len(keys) * shares // n_folds]
    kept = np.full(n_kept, -1)
    group = np.concatenate([kept, _deal(widths, np.arange(n_folds))])
    return Holdout(seed, bounds, group)


def _deal(widths: Sequence[int], folds: np.ndarray) -> np.ndarray:
    """Return a fold for each member; members in the order of their widths take turns.

    For widths of 1, 2, 4, 8 in turn, 16 members and four folds, these are consecutive
    members.
    """
    group = np.empty(len(widths), dtype=np.intp)
    group[np.argsort(widths, kind="stable")] = np.resize(folds, len(widths))
    return group


def row_keys(rows: Rows, seed: int) -> np.ndarray:
    """Return a random number for each row, a hash of its values.

    Returns
    -------
    keys : ndarray of int64 of shape (n_rows,)
        In [0, N_KEYS). Equal for equal rows, dense or sparse, in float32 or float64.
    """

    def compute(part: Rows) -> np.ndarray:
        keys = np.empty(len(part), dtype=np.int64)
        for where, block in _key_blocks(part, seed):
            keys[where] = block
        return keys

    return rows.shared(compute, lambda *keys: np.concatenate(keys))


def _key_blocks(rows: Rows, seed: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Iterate over the keys of blocks of rows, see `row_keys`."""
    rng = np.random.default_rng([seed, 2])
    factors = rng.integers(2**63, size=rows.n_features, dtype=np.uint64) * 2 + 1
    if sparse.issparse(rows.X):
        size = max(1, BLOCK_ENTRIES // max(1, rows.X.nnz // max(1, rows.X.shape[0])))
        for start in range(0, len(rows), size):
            block = rows.stored(slice(start, min(start + size, len(rows))))
            # A zero that is stored adds 0, as those that are not stored.
            added = _mixed(_bits(block.data)) * factors[block.indices]
            reached = np.append(np.uint64(0), np.cumsum(added, dtype=np.uint64))
            yield slice(start, start + size), _as_keys(np.diff(reached[block.indptr]))
    else:
        for where, block in rows.blocks():
            added = _mixed(_bits(block)) * factors
            yield where, _as_keys(added.sum(axis=1, dtype=np.uint64))


def _as_keys(sums: np.ndarray) -> np.ndarray:
    return (_mixed(sums) >> np.uint64(1)).astype(np.int64)


def _bits(values: np.ndarray) -> np.ndarray:
    """Return the bits of numbers in float64, the same for 0 and -0 and for all NaN."""
    values = values.astype(np.float64)  # a copy, which is changed below
    values += 0.0  # -0.0 becomes 0.0
    values[np.isnan(values)] = np.nan
    return values.view(np.uint64)


def _mixed(bits: np.ndarray) -> np.ndarray:
    """Map 64-bit numbers to others one to one, 0 to 0; each bit depends on many [1]_.

    References
    ----------
    .. [1] Steele, G. L., Lea, D., & Flood, C. H. (2014). Fast splittable pseudorandom
       number generators. OOPSLA, 453-472.
    """
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
