"""The threshold of an outlier detector, derived from the scores of training rows."""

from __future__ import annotations

import numpy as np

# The rule of contamination="auto", see `threshold`. The constants were chosen on
# generated rows and on tables of scikit-learn with generated outliers, and with regard
# to the inliers that are flagged in the data sets of benchmarks/outliers.py.

# Length of the interval behind a break, in units of the scale of the errors.
WINDOW = 4.0
# Length of the second interval before a break, as a fraction of the excess there, but
# at least `WINDOW`.
LAST_PART = 0.5
# Factor by which the hazard falls at a break, at least.
FALL = 3.0
# Number of distinct errors between the median and a break, at least.
MIN_BEFORE = 2
# Largest share of the weight behind a break. A larger group, such as the rows of a
# discrete table that have no equal ones, is no group of outliers.
MAX_BEHIND = 0.25
# Largest share of the weight behind a break whose rows are not isolated. A larger dense
# group, such as a cluster or a phase of a cycle that the network reproduces less well
# than others, is no group of outliers.
MAX_DENSE = 0.05
# Of several breaks, the first with at least this fraction of the largest log-likelihood
# ratio is used; and of several gaps, if there is no break, that of the largest spacing.
SUPPORT = 0.5
# Lower bound of the nearest outliers' excess over the median error, as a fraction of
# the excess of the farthest ones; and the shares of outliers that count as such.
CLOSEST = 0.25
NEAREST_SHARE, FARTHEST_SHARE = 0.1, 0.9
# Number of distinct errors behind a break from which on this bound applies.
MIN_SPREAD = 10
# Largest share and largest number of distinct errors that are flagged if there is no
# break. A larger group that is clearly separate has a break before it.
MAX_WITHOUT_BREAK = 0.015
MAX_ERRORS_WITHOUT_BREAK = 8

# Larger excesses count as equal, so that sums of them do not overflow.
MAX_EXCESS = 1e100


def threshold(
    scores: np.ndarray,
    weight: np.ndarray,
    contamination: float | str,
    rounding: float,
    isolated: np.ndarray | None = None,
) -> float:
    r"""Return the score below which a row is an outlier.

    The threshold is the midpoint of a gap between two different scores, so that
    rounding errors do not decide about a row. Infinite scores lie below any threshold.

    With a number as `contamination`, it is the gap below which the fraction of the
    weight is closest to this number. If flagging no row is closest, because many rows
    have the same score, the threshold lies below all finite scores.

    With ``"auto"``, it is the clearest break between the errors of most rows and those
    of the outliers. An error is minus a score. Let m be the median error, s its
    distance to the lower quartile, both robust to outliers [1]_, and
    :math:`t = (e - m) / s` the scaled excess of an error e. The hazard at t is the
    density of the excesses divided by the share p(t) of the rows beyond it. It is
    constant for exponential tails, rises for lighter ones, and falls where few rows
    separate the bulk from a group beyond it. For each excess t, the hazard over (0, t],
    with n events and exposure E, is compared with that over (t, t + 4], with n' events
    and exposure E', by the likelihood ratio of a change of the hazard at t [2]_,

    .. math:: \Lambda(t) = n \log\frac{n}{E} + n' \log\frac{n'}{E'}
              - (n + n') \log\frac{n + n'}{E + E'}, \quad
              E = \int_0^t p(u) \, du, \quad E' = \int_t^{t + 4} p(u) \, du.

    Events are distinct errors; an interval without any is extended to the next error. A
    break is a t with at least two events before, with an error beyond t + 4 and at most
    a quarter of the weight beyond t, behind which the hazard is at most a third of that
    before. If more than a twentieth of the weight is beyond t, at least half of it must
    belong to isolated rows. If there are at least ten errors beyond t, the excess of
    their lowest tenth must be at least a quarter of that of their highest tenth.

    The largest :math:`\Lambda` of a break must be at least the logarithm of the number
    of distinct errors above the median: this is the penalty of a break's two parameters
    in the Bayesian information criterion, since among more errors, some are more likely
    to look like a break by chance. Where t exceeds 4, the likelihood ratio of a fall
    from the hazard over (t - max(4, t / 2), t] must be at least as large: the hazard
    must fall at the break itself, not only somewhere before. Errors of rows that the
    network has memorised are nearly equal, and those of rows that `trim` leaves out are
    much larger and spread widely; with (0, t] alone, many points among the latter look
    like a break.

    The threshold follows the first break whose :math:`\Lambda` is at least half of the
    largest.

    If there is no break, at most 1.5 % of the weight and at most eight distinct errors
    are flagged, but at least one. The spacing of a gap is its width times the share of
    the weight beyond it; in an exponential tail, the spacings of all gaps have the same
    distribution [3]_. The threshold is the first of these gaps whose spacing is at
    least half of the largest. So at least one row is flagged, unless all scores are
    equal.

    Parameters
    ----------
    scores : ndarray of shape (n_rows,)
        Scores of the training rows.
    weight : ndarray of shape (n_rows,)
        Positive weights.
    contamination : float in (0, 0.5] or "auto"
        Fraction of the weight to be flagged.
    rounding : float
        Relative difference up to which two scores are considered equal.
    isolated : ndarray of shape (n_rows,), default=None
        Share of the weight of each row that belongs to isolated rows. None if all are.

    Returns
    -------
    offset : float
        The threshold. Rows with a lower score are outliers.

    References
    ----------
    .. [1] Rousseeuw, P. J., & Croux, C. (1993). Alternatives to the median absolute
       deviation. Journal of the American Statistical Association, 88(424), 1273-1283.
    .. [2] Matthews, D. E., & Farewell, V. T. (1982). On testing for a constant hazard
       against a change-point alternative. Biometrics, 38(2), 463-468.
    .. [3] Rényi, A. (1953). On the theory of order statistics. Acta Mathematica
       Academiae Scientiarum Hungaricae, 4, 191-231.
    """
    is_finite = np.isfinite(scores)
    if not is_finite.any():
        return -float(np.finfo(np.float64).max)
    errors, infinite = -scores[is_finite], weight[~is_finite].sum()
    weight = weight[is_finite]
    order = np.argsort(errors, kind="stable")
    errors, weight = errors[order], weight[order]
    isolated_weight = weight
    if isolated is not None:
        isolated_weight = weight * isolated[is_finite][order]
    # Runs of equal errors: the first and last error of each, and the weight up to it.
    is_gap = np.diff(errors) > rounding * np.abs(errors[1:])
    last = np.append(np.flatnonzero(is_gap), len(errors) - 1)
    first = np.append(0, last[:-1] + 1)
    reached = np.cumsum(weight)[last]
    # Not the total minus `reached`, which is inexact where little weight is beyond.
    beyond, isolated_beyond = (
        np.append(np.cumsum(values[::-1])[::-1], 0)[last + 1]
        for values in (weight, isolated_weight)
    )
    if contamination != "auto":
        flagged = 1 - reached / (reached[-1] + infinite)
        # Of two gaps at the same distance, take the one that flags more rows.
        k = int(np.argmin(np.round(np.abs(flagged - contamination), 12)))
    elif len(last) > 1:
        shares = (part / reached[-1] for part in (reached, beyond, isolated_beyond))
        k = _last_inlier(errors[last], *shares)
    else:
        k = 0
    inlier = errors[last[k]]
    if k + 1 < len(first):
        return -_midpoint(float(inlier), float(errors[first[k + 1]]))
    return -float(inlier + max(1e-9, rounding * abs(inlier)))


def _midpoint(low: float, high: float) -> float:
    """Return the midpoint of an interval, to the precision of float32 if that fits.

    The difference of a larger number and this one is then exact in float64, so that
    ``decision_function + offset_`` gives the scores of outliers to the last bit, if
    errors are not negative.
    """
    middle = low / 2 + high / 2
    if not low < middle < high:  # neighbouring numbers
        return low
    with np.errstate(over="ignore"):
        short = float(np.float32(middle))
    quarter = high / 4 - low / 4
    return short if abs(short - middle) < quarter else middle


def _last_inlier(
    errors: np.ndarray,
    reached: np.ndarray,
    beyond: np.ndarray,
    isolated_beyond: np.ndarray,
) -> int:
    """Return the position of the last error before the outliers.

    Parameters
    ----------
    errors : ndarray of shape (n_errors,)
        Distinct errors, at least two, in increasing order.
    reached, beyond, isolated_beyond : ndarray of shape (n_errors,)
        Share of the weight up to each, beyond it, and of isolated rows beyond it.
    """
    # The tolerances are for rounding errors in sums of weights.
    is_dense = (beyond > MAX_DENSE + 1e-12) & (isolated_beyond < (0.5 - 1e-12) * beyond)
    k = _find_break(errors, reached, beyond, is_dense)
    if k is not None:
        return k
    start = int(np.searchsorted(reached, 1 - MAX_WITHOUT_BREAK - 1e-12))
    start = max(start, len(errors) - 1 - MAX_ERRORS_WITHOUT_BREAK)
    start = min(start, len(errors) - 2)
    spacings = np.diff(errors[start:] / 2) * (beyond[start:-1] / beyond[start])
    return int(start + np.argmax(spacings >= SUPPORT * spacings.max()))


def _find_break(
    errors: np.ndarray,
    reached: np.ndarray,
    beyond: np.ndarray,
    is_dense: np.ndarray,
) -> int | None:
    """Return the position of the last error before the clearest break, if any.

    There is no break after an error for which `is_dense` is true.
    """

    def quantile(share: np.ndarray | float) -> np.ndarray:
        # The tolerance is for rounding errors in sums of weights.
        return np.searchsorted(reached, np.asarray(share) - 1e-12)

    middle = int(quantile(0.5))
    scale = errors[middle] - errors[quantile(0.25)]
    candidates = np.arange(middle + MIN_BEFORE, len(errors) - 1)
    if scale <= 0 or len(candidates) == 0:
        return None
    with np.errstate(over="ignore"):
        excess = ((errors - errors[middle]) / scale).clip(-MAX_EXCESS, MAX_EXCESS)
    exposure = np.append(0, np.cumsum(beyond[:-1] * np.diff(excess)))
    is_possible = beyond[candidates] <= MAX_BEHIND
    is_possible &= excess[candidates] + WINDOW <= excess[-1]
    candidates = candidates[is_possible]
    n_before = candidates - middle
    before = exposure[candidates] - exposure[middle]
    end = excess[candidates] + WINDOW
    within = np.searchsorted(excess, end, side="right") - 1  # last error in the window
    n_behind = within - candidates
    behind = np.where(
        n_behind == 0,
        exposure[candidates + 1],
        exposure[within] + beyond[within] * (end - excess[within]),
    )
    behind -= exposure[candidates]
    # Few candidates pass this test, so that the others take little time.
    falls = FALL * n_behind * before <= n_before * behind
    candidates, n_before, before, n_behind, behind = (
        values[falls] for values in (candidates, n_before, before, n_behind, behind)
    )
    if len(candidates) == 0:
        return None
    # The last part of the interval before each candidate.
    length = np.maximum(WINDOW, LAST_PART * excess[candidates])
    start = np.maximum(excess[candidates] - length, 0)
    latest = np.searchsorted(excess, start, side="right") - 1  # last error before it
    n_last = candidates - latest
    last = exposure[candidates] - exposure[latest]
    last -= beyond[latest] * (start - excess[latest])
    share, n_beyond = beyond[candidates], len(errors) - 1 - candidates
    nearest = excess[quantile(1 - share * (1 - NEAREST_SHARE))]
    farthest = excess[quantile(1 - share * (1 - FARTHEST_SHARE))]
    is_break = (
        ~is_dense[candidates]
        & (n_behind * last < n_last * behind)
        & ((nearest >= CLOSEST * farthest) | (n_beyond < MIN_SPREAD))
    )
    # A break adds two parameters, its position and a hazard. The Bayesian information
    # criterion subtracts half the logarithm of the number of events for each.
    penalty = np.log(len(errors) - middle - 1)
    is_break &= _evidence(n_last, last, n_behind, behind) >= penalty
    evidence = np.where(is_break, _evidence(n_before, before, n_behind, behind), 0)
    if evidence.max() < penalty:
        return None
    first = np.argmax(evidence >= SUPPORT * evidence.max())
    return int(candidates[first])


def _evidence(
    n_before: np.ndarray, before: np.ndarray, n_behind: np.ndarray, behind: np.ndarray
) -> np.ndarray:
    """Return the log-likelihood ratio of two hazards and a constant one."""
    return (
        _log_likelihood(n_before, before)
        + _log_likelihood(n_behind, behind)
        - _log_likelihood(n_before + n_behind, before + behind)
    )


def _log_likelihood(n_events: np.ndarray, exposure: np.ndarray) -> np.ndarray:
    """Return the maximum of the log-likelihood of a constant hazard, plus n_events."""
    # The bounds apply where the product is 0 or where there is no exposure.
    tiny = np.finfo(np.float64).tiny
    return n_events * (
        np.log(np.maximum(n_events, 1)) - np.log(np.maximum(exposure, tiny))
    )
