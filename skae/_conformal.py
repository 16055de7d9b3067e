"""Conformal p-values: ranks of new errors among errors of rows not learnt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def conformal_p_values(
    scores: np.ndarray,
    calibration: Sequence[tuple[np.ndarray, np.ndarray]],
    rounding: float,
) -> np.ndarray:
    r"""Return the p-values of rows by cross-conformal prediction.

    .. math::

        p(x) = \frac{1 + \sum_k \sum_{i \in S_k} w_i [s_k(x_i) \le s_k(x)]}
                    {1 + \sum_i w_i}

    with the scores :math:`s_k` of a network that did not learn the rows
    :math:`S_k`. With a single such set this is split conformal prediction.

    Parameters
    ----------
    scores : ndarray of shape (n_rows, n_folds)
        Scores of the rows by the network of each fold.
    calibration : sequence of tuple of ndarray
        Scores and weights of the rows of each fold, by the network of this fold.
    rounding : float
        Relative difference up to which two scores are equal.

    Returns
    -------
    p_values : ndarray of shape (n_rows,)
        In (0, 1].
    """
    count, total = np.ones(len(scores)), 1.0
    for s, (values, weight) in zip(scores.T, calibration, strict=True):
        order = np.argsort(values, kind="stable")
        reached = np.append(0, np.cumsum(weight[order]))
        tolerance = rounding * np.abs(np.where(np.isfinite(s), s, 0))
        count += reached[np.searchsorted(values[order], s + tolerance, side="right")]
        total += reached[-1]
    return np.minimum(count / total, 1.0)
