"""Display of the scores of an outlier detector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score
from sklearn.utils.validation import column_or_1d

from skae._base import MatrixLike
from skae._compat import num_samples
from skae._estimators import (
    find_autoencoder,
    find_autoencoder_and_input,
)
from skae.inspection._arguments import (
    check_arguments,
    check_display,
    check_numbers,
    draws,
    is_missing,
    unique_labels,
)
from skae.inspection._drawing import get_axes
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
    training_scores : array-like of shape (n_training_samples,), default=None
        Scores of the training rows, drawn as an outline for comparison: their
        density, or without `is_outlier` the number of rows that would be in each bin
        if there were `n_samples` training rows.

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

    The training scores, with another threshold:

    >>> detector = detector.set_params(contamination=0.1).recalibrate()
    >>> display = OutlierScoreDisplay.from_estimator(detector)
    >>> int((display.scores < display.offset).sum())
    20
    """

    def __init__(
        self,
        scores: ArrayLike,
        *,
        offset: float | None = None,
        is_outlier: ArrayLike | None = None,
        training_scores: ArrayLike | None = None,
    ):
        self.scores = scores
        self.offset = offset
        self.is_outlier = is_outlier
        self.training_scores = training_scores

    @property
    def roc_auc(self) -> float | None:
        """Area under the ROC curve of the scores."""
        scores, is_outlier = self._validated()
        if is_outlier is None or is_outlier.all() or not is_outlier.any():
            return None
        return float(roc_auc_score(~is_outlier, np.nan_to_num(scores)))

    def _validated(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return scores and ground truth, after all attributes are validated."""
        check_display(self, "offset")
        scores = check_numbers(
            "scores", self.scores, ("n_samples",), allow_nonfinite=True
        )
        if self.training_scores is not None:
            shape = ("n_training_samples",)
            check_numbers(
                "training_scores", self.training_scores, shape, allow_nonfinite=True
            )
        if self.is_outlier is None:
            return scores, None
        is_outlier = check_numbers("is_outlier", self.is_outlier, scores.shape)
        wrong = (is_outlier != 0) & (is_outlier != 1)
        if wrong.any():
            raise ValueError(
                "is_outlier must be True or 1 for outliers and False or 0 for inliers, "
                f"got {is_outlier[wrong][0]:g}."
            )
        return scores, is_outlier.astype(bool)

    @classmethod
    @check_arguments
    def from_estimator(
        cls,
        estimator: Any,
        X: MatrixLike | None = None,
        y: ArrayLike | None = None,
        *,
        outlier_label: Any = -1,
        show_training: bool = False,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Plot the scores of X, or of the training rows, and the present threshold.

        Parameters
        ----------
        estimator : estimator
            A fitted `AutoencoderOutlierDetector`, or a fitted `Pipeline` or search
            that ends in one.
        X : {array-like, sparse matrix} of shape (n_samples, n_features), default=None
            Rows to score. None means the training rows, of which the scores are
            recorded in `training_scores_`.
        y : array-like of shape (n_samples,), default=None
            True labels, with at most two different values, such as those returned by
            `predict`.
        outlier_label : object, default=-1
            Label of the outliers. Pass 1 if y is 1 for outliers and 0 for inliers.
        show_training : bool, default=False
            Whether to draw the scores of the training rows beside those of X, as an
            outline. If the scores of new inliers are lower than those of the training
            rows, `recalibrate` sets a threshold from rows that are held out.
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
            If y has more than two different labels, none equal to `outlier_label`, or
            another length than X.
        """
        detector: Any = find_autoencoder(estimator, AutoencoderOutlierDetector)
        is_outlier = None
        if y is not None:
            n_rows = num_samples(detector.training_scores_ if X is None else X)
            is_outlier = _find_outliers(y, outlier_label, n_rows)
        if X is None:
            scores = detector.training_scores_
        else:
            X = find_autoencoder_and_input(estimator, X).X
            scores = detector.score_samples(X)
        is_shown = show_training and X is not None
        display = cls(
            scores,
            offset=detector.offset_,
            is_outlier=is_outlier,
            training_scores=detector.training_scores_ if is_shown else None,
        )
        return display.plot(ax, **kwargs)

    @draws
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
        scores, is_outlier = self._validated()
        self.ax_, self.figure_ = get_axes(ax)
        finite = np.isfinite(scores)
        drawn, training = scores[finite], None
        if self.training_scores is not None:
            training = np.asarray(self.training_scores, float)
            training = training[np.isfinite(training)]
            drawn = np.concatenate([drawn, training])
        style = {"bins": np.histogram_bin_edges(drawn, 50), **kwargs}
        if is_outlier is None:
            label = None if training is None else f"{len(scores)} rows"
            self.ax_.hist(scores[finite], **{"color": "C0", "label": label, **style})
            self.ax_.set_ylabel("rows")
        else:
            style = {"density": True, "alpha": 0.6, **style}
            classes = (("inliers", ~is_outlier, "C0"), ("outliers", is_outlier, "C3"))
            for name, mask, color in classes:
                label = f"{np.sum(mask)} {name}"
                if mask[finite].any():
                    own = {"color": color, "label": label, **style}
                    self.ax_.hist(scores[finite & mask], **own)
            self.ax_.set_ylabel("density of each class")
        if training is not None and len(training):
            share = len(scores) / len(training)
            outline = {
                **style,
                "weights": np.full(len(training), share),
                "histtype": "step",
                "alpha": 1.0,
                "color": "0.3",
                "label": f"{len(training)} training rows",
            }
            self.ax_.hist(training, **outline)
        if self.offset is not None:
            label = f"threshold, {self.offset:.3g}"
            self.ax_.axvline(self.offset, color="0.3", linestyle="--", label=label)
        self.ax_.set_xlabel("score (higher is more normal)")
        if self.roc_auc is not None:
            self.ax_.set_title(f"ROC AUC {self.roc_auc:.3f}")
        if self.ax_.get_legend_handles_labels()[0]:
            self.ax_.legend()
        return self


def _find_outliers(y: ArrayLike, outlier_label: Any, n_rows: int) -> np.ndarray:
    """Return which labels are `outlier_label`, or raise ValueError if y is invalid."""
    values: np.ndarray = column_or_1d(y)
    if len(values) != n_rows:
        raise ValueError(
            f"y must have a label for each of the {n_rows} rows, got {len(values)}."
        )
    if is_missing(values).any():
        raise ValueError("y must have a label for each row, got missing labels.")
    labels = unique_labels("y", values)
    if len(labels) > 2 or outlier_label not in labels:
        raise ValueError(
            "y must have two labels, one of them outlier_label="
            f"{outlier_label!r}, got {labels[:5].tolist()}."
        )
    return values == outlier_label
