"""The outlier detector: rows that the network cannot reproduce."""

from __future__ import annotations

from numbers import Real
from typing import ClassVar

import numpy as np
from sklearn.base import OutlierMixin
from sklearn.utils._param_validation import Interval, StrOptions

from skae._base import BaseAutoencoder
from skae._batches import Rows
from skae._net import AutoencoderNet


class AutoencoderOutlierDetector(OutlierMixin, BaseAutoencoder):
    """Outliers."""

    _parameter_constraints: ClassVar[dict] = {
        **BaseAutoencoder._parameter_constraints,
        "contamination": [StrOptions({"auto"}), Interval(Real, 0, 0.5, closed="right")],
    }

    def __init__(
        self,
        n_components="auto",
        *,
        network="mlp",
        hidden_layer_sizes="auto",
        bottleneck="deterministic",
        loss="squared_error",
        init="random",
        scale="feature",
        max_epochs="auto",
        batch_size="auto",
        learning_rate="auto",
        weight_decay=0.01,
        early_stopping="auto",
        validation_fraction=0.1,
        n_iter_no_change=10,
        tol=1e-4,
        contamination="auto",
        warm_start=False,
        random_state=None,
        verbose=0,
        device="auto",
        callbacks=None,
    ):
        self.n_components = n_components
        self.network = network
        self.hidden_layer_sizes = hidden_layer_sizes
        self.bottleneck = bottleneck
        self.loss = loss
        self.init = init
        self.scale = scale
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.contamination = contamination
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.device = device
        self.callbacks = callbacks

    def decision_function(self, X) -> np.ndarray:
        """How far inside the threshold each row lies.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows; NaN marks a missing entry.

        Returns
        -------
        decision : ndarray of shape (n_samples,), float64
            ``score_samples(X) - offset_``; negative is an outlier.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X) -> np.ndarray:
        """Tell inliers from outliers.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows; NaN marks a missing entry.

        Returns
        -------
        is_inlier : ndarray of shape (n_samples,), int
            1 for inliers, -1 for outliers.
        """
        return np.where(self.decision_function(X) < 0, -1, 1)

    def feature_contributions(self, X) -> np.ndarray:
        """Share of each feature in the reconstruction error of each row.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows; NaN marks a missing entry.

        Returns
        -------
        contributions : ndarray of shape (n_samples, n_features), float64
            Non-negative; each row sums to ``-score_samples``; 0 at missing
            entries.
        """
        X = self._check_X(X)
        self._check_bounds(X, self.module_.loss)
        return self._evaluate("contributions", X, X.shape[1]).astype(np.float64)

    def _finish(self, rows: Rows, net: AutoencoderNet, history: list[dict]) -> None:
        super()._finish(rows, net, history)
        self.offset_ = threshold(
            self._score_samples(rows),
            rows.weight,
            self.contamination,
            rounding=1e3 * np.finfo(rows.X.dtype).eps,
        )


def threshold(
    scores: np.ndarray,
    weight: np.ndarray,
    contamination: float | str,
    rounding: float,
) -> float:
    """Score below which a row is an outlier.

    The candidates are the gaps between different scores, and a threshold lies
    in the middle of its gap, so that rounding never decides about a row. A
    fraction takes the gap below which the share of the weight is nearest to it.
    ``"auto"`` takes the first gap above

    .. math:: m - 3 \\cdot 1.4826 \\, \\operatorname{median} |t - m|,
              \\quad t = -\\sqrt[3]{-\\text{score}}, \\; m = \\operatorname{median} t.

    The cube root makes a sum of squares nearly normal [1]_, and median and
    median deviation are not moved by the outliers. In either case at least one
    row is flagged, unless all scores are equal.

    Parameters
    ----------
    scores : ndarray of shape (n_rows,)
        Scores of the training rows, non-positive.
    weight : ndarray of shape (n_rows,)
        Positive weights.
    contamination : float in (0, 0.5] or "auto"
        Share of the weight to be flagged.
    rounding : float
        Relative difference up to which scores count as equal.

    Returns
    -------
    offset : float

    References
    ----------
    .. [1] Wilson, E. B., & Hilferty, M. M. (1931). The distribution of
       chi-square. Proceedings of the National Academy of Sciences, 17(12).
    """
    order = np.argsort(scores, kind="stable")
    scores, weight = scores[order], weight[order]
    is_gap = np.diff(scores) > rounding * np.abs(scores[:-1])
    gaps = np.flatnonzero(is_gap)
    if len(gaps) == 0:
        return float(scores[0] - max(1e-9, rounding * abs(scores[0])))
    if contamination == "auto":
        t = -np.cbrt(-scores)
        middle = _weighted_median(t, weight)
        spread = 1.4826 * _weighted_median(np.abs(t - middle), weight)
        n_flagged = np.sum(t < middle - 3 * spread)
        gap = gaps[np.argmin(np.abs(gaps + 1 - n_flagged))]
    else:
        flagged = np.cumsum(weight)[gaps] / weight.sum()
        # Of two gaps that are equally near, the one that flags more.
        nearest = np.argmin(np.round(np.abs(flagged - contamination), 12)[::-1])
        gap = gaps[::-1][nearest]
    return float((scores[gap] + scores[gap + 1]) / 2)


def _weighted_median(values: np.ndarray, weight: np.ndarray) -> float:
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weight[order])
    return values[order][np.searchsorted(reached, reached[-1] / 2)]
