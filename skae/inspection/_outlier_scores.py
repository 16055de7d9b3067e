"""Display of the scores of an outlier detector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score
from sklearn.utils.validation import column_or_1d

from skae._base import MatrixLike
from skae.inspection._drawing import get_axes
from skae.inspection._estimators import find_autoencoder_and_input
from skae.outlier import AutoencoderOutlierDetector

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class OutlierScoreDisplay:
    """Histogram of the scores of an outlier detector, with the threshold.

    The histogram shows where the threshold lies among the scores, and with labels how
    well the scores separate inliers from outliers.

    Parameters
    ----------
    scores : array-like of shape (n_samples,)
        Scores as returned by `score_samples`; higher is more normal.
    offset : float, default=None
        Threshold; a row with a lower score is an outlier. If None, it is not drawn.
    is_outlier : array-like of bool of shape (n_samples,), default=None
        Ground truth. If given, inliers and outliers are drawn as two densities, and
        `roc_auc` is computed.

    Attributes
    ----------
    roc_auc : float or None
        Area under the ROC curve of the scores, None if `is_outlier` is None or holds
        only one class.
    ax_ : matplotlib.axes.Axes
        Axes of the plot.
    figure_ : matplotlib.figure.Figure
        Figure that contains the axes.

    See Also
    --------
    FeatureContributionDisplay : Contributions of features to scores.

    Examples
    --------
    >>> import numpy as np
    >>> from skae import AutoencoderOutlierDetector
    >>> from skae.inspection import OutlierScoreDisplay
    >>> X = np.random.default_rng(0).standard_normal((200, 3))
    >>> X[:5] += 8
    >>> y = np.where(np.arange(200) < 5, -1, 1)
    >>> detector = AutoencoderOutlierDetector(random_state=0).fit(X)
    >>> display = OutlierScoreDisplay.from_estimator(detector, X, y)
    >>> display.roc_auc > 0.9
    True
    """

    def __init__(
        self,
        scores: ArrayLike,
        *,
        offset: float | None = None,
        is_outlier: ArrayLike | None = None,
    ):
        self.scores = scores
        self.offset = offset
        self.is_outlier = is_outlier

    @property
    def roc_auc(self) -> float | None:
        """Area under the ROC curve of the scores."""
        if self.is_outlier is None:
            return None
        is_outlier = np.asarray(self.is_outlier, bool)
        if is_outlier.all() or not is_outlier.any():
            return None
        scores = np.nan_to_num(np.asarray(self.scores, float))
        return float(roc_auc_score(~is_outlier, scores))

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: MatrixLike,
        y: ArrayLike | None = None,
        *,
        outlier_label: Any = -1,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Score X and plot the scores.

        Parameters
        ----------
        estimator : estimator
            A fitted `AutoencoderOutlierDetector`, or a fitted `Pipeline` or search
            that ends in one.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows to score.
        y : array-like of shape (n_samples,), default=None
            True labels, with at most two different values, such as those returned by
            `predict`.
        outlier_label : object, default=-1
            Label of the outliers. Pass 1 if y is 1 for outliers and 0 for inliers.
        ax : matplotlib.axes.Axes, default=None
            Axes to draw into. If None, a new figure is created.
        **kwargs : dict
            Keyword arguments passed to `matplotlib.axes.Axes.hist`.

        Returns
        -------
        display : OutlierScoreDisplay

        Raises
        ------
        ValueError
            If y has more than two different labels, or none equal to `outlier_label`.
        """
        is_outlier = None
        if y is not None:
            y = column_or_1d(y)
            labels = np.unique(y)
            if len(labels) > 2 or outlier_label not in labels:
                raise ValueError(
                    "y must have two labels, one of them outlier_label="
                    f"{outlier_label!r}, got {labels[:5].tolist()}."
                )
            is_outlier = y == outlier_label
        autoencoder, X, _ = find_autoencoder_and_input(
            estimator, X, AutoencoderOutlierDetector
        )
        display = cls(
            autoencoder.score_samples(X),
            offset=autoencoder.offset_,
            is_outlier=is_outlier,
        )
        return display.plot(ax, **kwargs)

    def plot(self, ax: Axes | None = None, **kwargs: Any) -> Self:
        """Plot the histogram.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Axes to draw into. If None, a new figure is created.
        **kwargs : dict
            Keyword arguments passed to `matplotlib.axes.Axes.hist`.

        Returns
        -------
        display : OutlierScoreDisplay
            This object.
        """
        self.ax_, self.figure_ = get_axes(self, ax)
        scores = np.asarray(self.scores, float)
        finite = np.isfinite(scores)
        style = {"bins": np.histogram_bin_edges(scores[finite], 50), **kwargs}
        if self.is_outlier is None:
            self.ax_.hist(scores[finite], color="C0", **style)
            self.ax_.set_ylabel("rows")
        else:
            is_outlier = np.asarray(self.is_outlier, bool)
            style = {"density": True, "alpha": 0.6, **style}
            classes = (("inliers", ~is_outlier, "C0"), ("outliers", is_outlier, "C3"))
            for name, mask, color in classes:
                label = f"{np.sum(mask)} {name}"
                if mask[finite].any():
                    self.ax_.hist(
                        scores[finite & mask], color=color, label=label, **style
                    )
            self.ax_.set_ylabel("density of each class")
        if self.offset is not None:
            label = f"threshold, {self.offset:.3g}"
            self.ax_.axvline(self.offset, color="0.3", linestyle="--", label=label)
        self.ax_.set_xlabel("score (higher is more normal)")
        if self.roc_auc is not None:
            self.ax_.set_title(f"ROC AUC {self.roc_auc:.3f}")
        if self.ax_.get_legend_handles_labels()[0]:
            self.ax_.legend()
        return self
