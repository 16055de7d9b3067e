"""Mean, variance and range of the columns of weighted rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse
from sklearn.preprocessing import StandardScaler
from sklearn.utils.sparsefuncs import min_max_axis

from skae._rows import MAX_CANONICAL_ROWS, Rows

# Largest number of rows for which the rounding error of a variance is estimated. With a
# total weight of 1e16, every feature would otherwise count as constant.
MAX_ROUNDED = 1e6

# Entries of a block for which statistics are computed: 1 MB in float64. The computation
# reads each block several times, which takes twice as long if it exceeds the cache.
CACHED_ENTRIES = 2**17

# Entries up to which the statistics of a sparse table are computed from dense blocks,
# which takes 0.1 s. They are then equal to those of a dense table to the bit, as are
# the fits. Above, only stored entries are read: blocks of 2e9 entries take 30 s.
MAX_DENSE_ENTRIES = 2**24

# Of features in one unit, see `share_one_unit`: their smallest number, and the smallest
# share of them that reaches both ends of the common range. Of the zeros among 8 x 8
# images of digits, 48 pixels vary and 15 % of these reach both 0 and 16; of 28 x 28
# images of one digit, 50 to 80 %. Of 48 tables with columns in different units and from
# 3 to 62 columns, none of this size has such columns.
MIN_SHARING = 40
MIN_SHARE = 0.1


class Summary(NamedTuple):
    """Weighted statistics of each feature over its observed entries.

    Attributes
    ----------
    weight : ndarray of shape (n_features,)
        Sum of the weights of the observed entries.
    mean : ndarray of shape (n_features,)
        NaN where a feature has no observed entry, here and below.
    variance : ndarray of shape (n_features,)
    deviation : ndarray of shape (n_features,)
        Square root of the variance, 1 for constant features and where the variance is
        infinite.
    low, high : ndarray of shape (n_features,)
        Smallest and largest value.
    is_binary : ndarray of bool of shape (n_features,) or None
        Which features have both values 0 and 1, and no others; None if it was not
        computed.
    """

    weight: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    deviation: np.ndarray
    low: np.ndarray
    high: np.ndarray
    is_binary: np.ndarray | None = None

    def merged(self, other: Summary) -> Summary:
        """Return the statistics of these rows and of other rows together [1]_.

        Parameters
        ----------
        other : Summary
            Statistics of the other rows.

        Returns
        -------
        summary : Summary
            `is_binary` is None.

        References
        ----------
        .. [1] Chan, T. F., Golub, G. H., & LeVeque, R. J. (1983). Algorithms for
           computing the sample variance: analysis and recommendations. The American
           Statistician, 37(3), 242-247.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # as in `summarize`
            return self._merged(other)

    def _merged(self, other: Summary) -> Summary:
        weight = self.weight + other.weight
        share = other.weight / np.maximum(weight, np.finfo(np.float64).tiny)
        difference = other.mean - self.mean
        mean = self.mean + share * difference
        variance = (1 - share) * self.variance + share * other.variance
        variance = variance + (1 - share) * share * difference**2
        for merged, own, others in (
            (mean, self.mean, other.mean),
            (variance, self.variance, other.variance),
        ):
            only_own, only_other = other.weight == 0, self.weight == 0
            merged[only_own] = own[only_own]
            merged[only_other] = others[only_other]
        low, high = np.fmin(self.low, other.low), np.fmax(self.high, other.high)
        return _without_rounding(weight, mean, variance, low, high)


def _without_rounding(
    weight: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> Summary:
    """Return statistics in which a variance within the rounding error is zero.

    The rule is that of StandardScaler. `variance` is changed.
    """
    eps = np.finfo(np.float64).eps
    n_rows = np.minimum(weight, MAX_ROUNDED)
    rounding = n_rows * eps * variance + (n_rows * mean * eps) ** 2
    is_finite = np.isfinite(variance)
    is_constant = (low == high) | (is_finite & (variance <= rounding))
    variance[is_constant] = 0
    has_no_scale = is_constant | np.isposinf(variance)
    deviation = np.where(has_no_scale, 1, np.sqrt(variance))
    return Summary(weight, mean, variance, deviation, low, high)


def summarize(rows: Rows, *, find_binary: bool = False) -> Summary:
    """Compute the statistics of each feature, in one pass over dense rows.

    Parameters
    ----------
    rows : Rows
        In canonical form; the sums depend on the order of the rows.
    find_binary : bool, default=False
        Whether to compute `is_binary`.
    """
    if rows.summary is not None:
        return rows.summary
    if rows.is_uniform and not find_binary and len(rows) > MAX_CANONICAL_ROWS:
        summary = _summarize_complete(rows)
        if summary is not None:
            return summary
    low = np.full(rows.n_features, np.nan)
    high = low.copy()
    is_binary = np.ones(rows.n_features, dtype=bool) if find_binary else None
    # StandardScaler estimates rounding errors from the total weight, see MAX_ROUNDED.
    # Division by a power of two does not round.
    unit = 2.0 ** (np.frexp(rows.weight.max())[1] - 1)
    with np.errstate(over="ignore", invalid="ignore"):  # the caller checks the result
        if sparse.issparse(rows.X) and rows.n_entries > MAX_DENSE_ENTRIES:
            stored = rows.selected()
            scaler = StandardScaler(with_mean=False)
            scaler.fit(stored.astype(np.float64), sample_weight=rows.weight / unit)
            low, high = min_max_axis(stored, axis=0, ignore_nan=True)
            if is_binary is not None:
                is_binary[stored.indices[is_not_binary(stored.data)]] = False
        else:
            scaler = StandardScaler()
            for where, block in rows.blocks(max(1, CACHED_ENTRIES // rows.n_features)):
                weight = None if rows.is_uniform else rows.weight[where] / unit
                scaler.partial_fit(block.astype(np.float64), sample_weight=weight)
                low = np.fmin(low, np.fmin.reduce(block, axis=0))
                high = np.fmax(high, np.fmax.reduce(block, axis=0))
                if is_binary is not None:
                    is_binary &= ~is_not_binary(block).any(axis=0)
    low, high = low.astype(np.float64), high.astype(np.float64)
    if is_binary is not None:
        is_binary &= (low == 0) & (high == 1)
    # The variance of a constant feature may differ from 0 by rounding.
    is_constant = (scaler.scale_ == 1) & (scaler.var_ < 0.5)
    return Summary(
        np.broadcast_to(scaler.n_samples_seen_ * unit, low.shape).astype(np.float64),
        # The mean of a constant has to be exact: features are divided by their
        # deviation, which would magnify its rounding error in training.
        np.where(is_constant, low, scaler.mean_),
        np.where(is_constant, 0, scaler.var_),
        scaler.scale_,
        low,
        high,
        is_binary,
    )


def _summarize_complete(rows: Rows) -> Summary | None:
    """Compute the statistics of many rows without weights or missing entries.

    It reads a block half as often as `StandardScaler`, which allows for both.

    Returns
    -------
    summary : Summary or None
        None if an entry is missing or a statistic is not finite.
    """
    if sparse.issparse(rows.X):
        return None
    # Differences from a row: the mean of a constant feature is then exact.
    origin = rows.dense(slice(0, 1)).astype(np.float64)
    summary: Summary | None = None
    with np.errstate(over="ignore", invalid="ignore"):
        for _, block in rows.blocks(max(1, CACHED_ENTRIES // rows.n_features)):
            low, high = block.min(axis=0), block.max(axis=0)
            centered = block - origin
            mean = centered.mean(axis=0)
            centered -= mean
            variance = np.square(centered, out=centered).mean(axis=0)
            if not np.isfinite(variance).all():
                return None
            weight = np.full(len(mean), float(len(block)))
            low, high = low.astype(np.float64), high.astype(np.float64)
            added = _without_rounding(weight, mean + origin[0], variance, low, high)
            summary = added if summary is None else summary.merged(added)
    assert summary is not None  # there are many rows
    mean = np.where(summary.variance == 0, summary.low, summary.mean)
    return summary._replace(mean=mean)


def weighted_median(values: np.ndarray, weight: np.ndarray) -> float:
    """Return the median of values with positive weights.

    Where half of the weight ends between two values, it is their mean.
    """
    order = np.argsort(values, kind="stable")
    values, reached = values[order], np.cumsum(weight[order])
    half = reached[-1] / 2
    low, high = np.searchsorted(reached, [half * (1 - 1e-12), half * (1 + 1e-12)])
    return float(values[low] / 2 + values[high] / 2)


def share_one_unit(summary: Summary) -> bool:
    """Whether features are likely to be values of one bounded quantity, as pixels are.

    Of the features that take more than two values, at least `MIN_SHARING` in number,
    a tenth or more, but not all, must reach both the smallest and the largest value of
    all of them. All features do after scaling each to the same range. Features with two
    values do not count, unless all have the same two.

    The answer is the same for ``a * X + b`` with numbers a and b other than a = 0.
    """
    mean, low, high = summary.mean, summary.low, summary.high
    with np.errstate(over="ignore", invalid="ignore"):
        # The variance of two values is the largest that is possible within the range.
        is_graded = summary.variance < (1 - 1e-6) * (mean - low) * (high - mean)
    is_binary = (low < high) & ~is_graded
    counts = is_graded if is_graded.any() else is_binary
    if counts.sum() < MIN_SHARING:
        return False
    low, high = low[counts], high[counts]
    share = ((low == low.min()) & (high == high.max())).mean()
    return bool(MIN_SHARE <= share < 1 if is_graded.any() else share == 1)


def is_not_binary(values: np.ndarray) -> np.ndarray:
    """Return which values are observed and neither 0 nor 1."""
    return (values != 0) & (values != 1) & ~np.isnan(values)
