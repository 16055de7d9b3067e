"""Displays: what an autoencoder has learnt, drawn with matplotlib.

They keep scikit-learn's convention [1]_: the constructor stores arrays, `plot` draws
them, and `from_estimator` computes them from a fitted estimator, which may be the last
step of a `Pipeline` or have been chosen by a search, such as `GridSearchCV`. What a
display shows of a pipeline are the rows as its last step sees them.

matplotlib is needed only where something is drawn.

References
----------
.. [1] https://scikit-learn.org/stable/developers/develop.html
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import issparse
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils.validation import check_is_fitted, column_or_1d

from skae._base import BaseAutoencoder, MatrixLike
from skae.model_selection import (
    best_of_each,
    elbow,
    explained_variance,
    find_parameter,
    least_near_best,
    mean_scores,
    standard_errors,
    tried_settings,
)
from skae.outlier import AutoencoderOutlierDetector
from skae.transformer import AutoencoderTransformer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "ComponentSelectionDisplay",
    "ComponentTraversalDisplay",
    "FeatureContributionDisplay",
    "LatentSpaceDisplay",
    "LossCurveDisplay",
    "OutlierScoreDisplay",
    "ReconstructionDisplay",
]

# Points beyond which a cloud of one colour is drawn as a density.
MAX_POINTS = 5_000

# Features up to which an axis names them all.
MAX_NAMED = 30


class LossCurveDisplay:
    """Training and validation loss of each epoch.

    Parameters
    ----------
    loss_curve : array-like of shape (n_epochs,)
        Mean objective over the training rows.
    validation_loss_curve : array-like of shape (n_epochs,), default=None
        Mean objective over the held-out rows.
    best_epoch : int, default=None
        Epoch whose weights were kept, 0 for the start; None marks none.
    estimator_name : str, default=None
        Title of the drawing.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
    figure_ : matplotlib.figure.Figure
    lines_ : list of matplotlib.lines.Line2D
        The curves, training first.
    best_line_ : matplotlib.lines.Line2D or None
        The mark of the best epoch.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skae import AutoencoderTransformer
    >>> from skae.inspection import LossCurveDisplay
    >>> X = load_iris().data
    >>> ae = AutoencoderTransformer(1, max_epochs=5, random_state=0).fit(X)
    >>> display = LossCurveDisplay.from_estimator(ae)
    >>> display.ax_.get_xlabel()
    'epoch'
    """

    def __init__(
        self,
        loss_curve: ArrayLike,
        *,
        validation_loss_curve: ArrayLike | None = None,
        best_epoch: int | None = None,
        estimator_name: str | None = None,
    ):
        self.loss_curve = loss_curve
        self.validation_loss_curve = validation_loss_curve
        self.best_epoch = best_epoch
        self.estimator_name = estimator_name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the losses of a fitted estimator.

        Where early stopping was cross-validated, the curves are means over the
        parts, and the mark is how long the network learnt from all rows.

        Parameters
        ----------
        estimator : estimator
            A fitted autoencoder, or a `Pipeline` or search that ends in one.
        name : str, default=None
            Title; None means the name of the class.
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            Passed to `matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : LossCurveDisplay
        """
        last = _last_step(estimator)
        display = cls(
            last.loss_curve_,
            validation_loss_curve=last.validation_loss_curve_,
            best_epoch=last.net_.best_epoch_,
            estimator_name=name or type(last).__name__,
        )
        return display.plot(ax, **kwargs)

    def plot(self, ax: Axes | None = None, **kwargs: Any) -> Self:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            Passed to `matplotlib.axes.Axes.plot`.

        Returns
        -------
        self : LossCurveDisplay
        """
        self.ax_, self.figure_ = _axes(self, ax)
        curves = {"training": self.loss_curve, "validation": self.validation_loss_curve}
        self.lines_ = []
        for label, curve in curves.items():
            if curve is None:
                continue
            epochs = 1 + np.arange(len(np.asarray(curve)))
            style = {"marker": "." if len(epochs) == 1 else "", **kwargs}
            self.lines_ += self.ax_.plot(epochs, curve, label=label, **style)
        self.best_line_ = None
        if self.best_epoch is not None:
            label = (
                f"kept: epoch {self.best_epoch}" if self.best_epoch else "kept: start"
            )
            self.best_line_ = self.ax_.axvline(
                self.best_epoch, color="0.5", linestyle="--", label=label
            )
        self.ax_.set(xlabel="epoch", ylabel="loss", title=self.estimator_name or "")
        self.ax_.legend()
        return self


class ReconstructionDisplay:
    """Rows beside their reconstructions.

    Images stand in two rows, originals above; other rows are drawn as profiles over
    the features, one panel each.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Originals; NaN marks a missing entry.
    X_hat : array-like of shape (n_samples, n_features)
        Reconstructions.
    input_shape : tuple of int, default=None
        (height, width) or (channels, height, width) of an image; anything else is
        a profile.
    feature_names : array-like of str of shape (n_features,), default=None

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        What holds the panels.
    axes_ : ndarray of matplotlib.axes.Axes
        The panels, of shape (2, n_samples) for images, (n_samples, 1) for profiles.
    figure_ : matplotlib.figure.Figure

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skae import AutoencoderTransformer
    >>> from skae.inspection import ReconstructionDisplay
    >>> X = load_digits().data
    >>> ae = AutoencoderTransformer(8, input_shape=(8, 8), max_epochs=5, random_state=0)
    >>> display = ReconstructionDisplay.from_estimator(ae.fit(X), X, n_samples=6)
    >>> display.axes_.shape
    (2, 6)
    """

    def __init__(
        self,
        X: ArrayLike,
        X_hat: ArrayLike,
        *,
        input_shape: Sequence[int] | None = None,
        feature_names: ArrayLike | None = None,
    ):
        self.X = X
        self.X_hat = X_hat
        self.input_shape = input_shape
        self.feature_names = feature_names

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: MatrixLike,
        *,
        n_samples: int = 8,
        random_state: int | np.random.RandomState | None = 0,
        input_shape: Sequence[int] | None = None,
        ax: Axes | None = None,
    ) -> Self:
        """Reconstruct rows of X and draw them.

        Parameters
        ----------
        estimator : estimator
            A fitted autoencoder, or a `Pipeline` or search that ends in one.
        X : {array-like, sparse matrix} of shape (n_rows, n_features)
        n_samples : int, default=8
            How many of the rows to draw, at most.
        random_state : int, RandomState instance or None, default=0
            Determines which, where there are more.
        input_shape : tuple of int, default=None
            Shape of an image; None means the estimator's.
        ax : matplotlib.axes.Axes, default=None
            What to fill; None makes a figure.

        Returns
        -------
        display : ReconstructionDisplay
        """
        last, X, names = _last_step_and_rows(estimator, X)
        rows = _safe_indexing(X, _some_rows(X.shape[0], n_samples, random_state))
        display = cls(
            _as_array(rows),
            _as_array(last.reconstruct(rows)),
            input_shape=input_shape or last.input_shape,
            feature_names=names,
        )
        return display.plot(ax)

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw originals and reconstructions.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            What to fill; None makes a figure.

        Returns
        -------
        self : ReconstructionDisplay
        """
        X, X_hat = np.asarray(self.X, float), np.asarray(self.X_hat, float)
        if _is_image(self.input_shape):
            self.ax_, self.figure_ = _axes(self, ax, (0.9 * len(X) + 1, 2.2))
            labels = ["original", "reconstruction"]
            self.axes_ = _image_panels(
                self.ax_, np.stack([X, X_hat]), labels, self.input_shape, _limits(X)
            )
            return self
        self.ax_, self.figure_ = _axes(self, ax, (7, 1 + 0.9 * len(X)))
        self.axes_ = _panels(self.ax_, len(X), 1)
        for panel, row, row_hat in zip(self.axes_[:, 0], X, X_hat, strict=True):
            panel.plot(row, ".-", color="0.6", label="original")
            panel.plot(row_hat, color="C0", label="reconstruction")
            panel.set_xticks([])
        _name_features(self.axes_[-1, 0], self.feature_names, X.shape[1])
        self.axes_[0, 0].legend(
            loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False
        )
        return self


class LatentSpaceDisplay:
    """Codes in the plane.

    Codes of two components are drawn as they are, wider ones on their first two
    principal axes, and a single component as a distribution. Without colours, more
    than 5,000 points become a density.

    Parameters
    ----------
    Z : array-like of shape (n_samples, n_components)
        Codes.
    y : array-like of shape (n_samples,), default=None
        Colours: classes, or numbers of more than twenty different values. A missing
        one is grey.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
    figure_ : matplotlib.figure.Figure

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skae import AutoencoderTransformer
    >>> from skae.inspection import LatentSpaceDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> ae = AutoencoderTransformer(2, max_epochs=5, random_state=0).fit(X)
    >>> display = LatentSpaceDisplay.from_estimator(ae, X, y)
    >>> display.ax_.get_ylabel()
    'second component'
    """

    def __init__(self, Z: ArrayLike, y: ArrayLike | None = None):
        self.Z = Z
        self.y = y

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: MatrixLike,
        y: ArrayLike | None = None,
        *,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Encode X and draw the codes.

        Parameters
        ----------
        estimator : estimator
            A fitted `AutoencoderTransformer`, or a `Pipeline` or search that ends in
            one.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,), default=None
            Colours.
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            Passed to `matplotlib.axes.Axes.scatter`, `hexbin` or `hist`.

        Returns
        -------
        display : LatentSpaceDisplay
        """
        last, X, _ = _last_step_and_rows(estimator, X, AutoencoderTransformer)
        Z = _as_array(last.transform(X))
        return cls(Z, y).plot(ax, **kwargs)

    def plot(self, ax: Axes | None = None, **kwargs: Any) -> Self:
        """Draw the codes.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            Passed to `matplotlib.axes.Axes.scatter`, `hexbin` or `hist`.

        Returns
        -------
        self : LatentSpaceDisplay
        """
        self.ax_, self.figure_ = _axes(self, ax)
        Z = np.asarray(self.Z)
        y = None if self.y is None else column_or_1d(self.y)
        if y is not None and len(y) != len(Z):
            raise ValueError(
                f"y must have a value for each of the {len(Z)} rows, got {len(y)}."
            )
        groups, values = _colours(y, len(Z))
        if Z.shape[1] == 1:
            # Numbers have no bars of their own.
            self._draw_line(Z[:, 0], groups if values is None else [], kwargs)
            return self
        labels = ["first component", "second component"]
        if Z.shape[1] > 2:
            Z = PCA(2, svd_solver="full").fit_transform(Z)
            labels = [f"{which} principal axis of the code" for which in ("1st", "2nd")]
        self.ax_.set(xlabel=labels[0], ylabel=labels[1])
        if y is None and len(Z) > MAX_POINTS:
            style = {"gridsize": 60, "bins": "log", "mincnt": 1, **kwargs}
            self.ax_.hexbin(*Z.T, **style)
            return self
        # Areas that add up to about the same share of the picture.
        style = {"s": float(np.clip(20_000 / len(Z), 2, 20)), "alpha": 0.8, **kwargs}
        for group in groups:
            self.ax_.scatter(
                *Z[group.where].T, label=group.label, color=group.color, **style
            )
        if values is not None:
            known = ~np.isnan(values)
            x, height = Z[known].T
            points = self.ax_.scatter(x, height, c=values[known], **style)
            self.figure_.colorbar(points, ax=self.ax_)
        if any(group.label for group in groups):
            self.ax_.legend(markerscale=max(1, 4 / math.sqrt(style["s"])))
        return self

    def _draw_line(
        self, z: np.ndarray, groups: list[_Group], kwargs: dict[str, Any]
    ) -> None:
        """A code of one component: how often which value comes."""
        style = {"bins": np.histogram_bin_edges(z, 40), "alpha": 0.6, **kwargs}
        for group in groups or [_Group(np.ones(len(z), bool), "C0", None)]:
            self.ax_.hist(z[group.where], color=group.color, label=group.label, **style)
        self.ax_.set(xlabel="component", ylabel="rows")
        if any(group.label for group in groups):
            self.ax_.legend()


class OutlierScoreDisplay:
    """Distribution of the scores, and the threshold.

    Parameters
    ----------
    scores : array-like of shape (n_samples,)
        Higher is more normal, as `score_samples` has it.
    offset : float, default=None
        Threshold below which a row is an outlier.
    is_outlier : array-like of bool of shape (n_samples,), default=None
        The truth, where it is known: the two kinds are then drawn apart, each as a
        density, and `roc_auc` says how well the scores tell them apart.

    Attributes
    ----------
    roc_auc : float or None
        None if it is not defined: without labels, or with one kind alone.
    ax_ : matplotlib.axes.Axes
    figure_ : matplotlib.figure.Figure

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
        """Score X and draw the scores.

        Parameters
        ----------
        estimator : estimator
            A fitted `AutoencoderOutlierDetector`, or a `Pipeline` or search that ends
            in one.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,), default=None
            Two labels, such as `predict` gives.
        outlier_label : object, default=-1
            Which of them marks the outliers: 1 where y is 1 for outliers and 0 else.
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            Passed to `matplotlib.axes.Axes.hist`.

        Returns
        -------
        display : OutlierScoreDisplay

        Raises
        ------
        ValueError
            If y has more than two labels, or none that marks outliers.
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
        last, X, _ = _last_step_and_rows(estimator, X, AutoencoderOutlierDetector)
        display = cls(last.score_samples(X), offset=last.offset_, is_outlier=is_outlier)
        return display.plot(ax, **kwargs)

    def plot(self, ax: Axes | None = None, **kwargs: Any) -> Self:
        """Draw the distribution.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            Passed to `matplotlib.axes.Axes.hist`.

        Returns
        -------
        self : OutlierScoreDisplay
        """
        self.ax_, self.figure_ = _axes(self, ax)
        scores = np.asarray(self.scores, float)
        finite = np.isfinite(scores)
        style = {"bins": np.histogram_bin_edges(scores[finite], 50), **kwargs}
        if self.is_outlier is None:
            self.ax_.hist(scores[finite], color="C0", **style)
            self.ax_.set_ylabel("rows")
        else:
            is_outlier = np.asarray(self.is_outlier, bool)
            style = {"density": True, "alpha": 0.6, **style}
            kinds = (("inliers", ~is_outlier, "C0"), ("outliers", is_outlier, "C3"))
            for name, where, color in kinds:
                label = f"{np.sum(where)} {name}"
                if where[finite].any():
                    self.ax_.hist(
                        scores[finite & where], color=color, label=label, **style
                    )
            self.ax_.set_ylabel("density of each kind")
        if self.offset is not None:
            label = f"threshold, {self.offset:.3g}"
            self.ax_.axvline(self.offset, color="0.3", linestyle="--", label=label)
        self.ax_.set_xlabel("score (higher is more normal)")
        if self.roc_auc is not None:
            self.ax_.set_title(f"ROC AUC {self.roc_auc:.3f}")
        if self.ax_.get_legend_handles_labels()[0]:
            self.ax_.legend()
        return self


class FeatureContributionDisplay:
    """The features that make one row strange.

    Parameters
    ----------
    contributions : array-like of shape (n_features,)
        Each feature's share of the row's error, non-negative.
    x : array-like of shape (n_features,), default=None
        The row; NaN marks a missing entry.
    x_hat : array-like of shape (n_features,), default=None
        Its reconstruction: what the other features let one expect.
    feature_names : array-like of str of shape (n_features,), default=None
        None means x0, x1, ...

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
    figure_ : matplotlib.figure.Figure
    bars_ : matplotlib.container.BarContainer

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from skae import AutoencoderOutlierDetector
    >>> from skae.inspection import FeatureContributionDisplay
    >>> X = load_wine(as_frame=True).data
    >>> detector = AutoencoderOutlierDetector(random_state=0).fit(X)
    >>> strangest = detector.score_samples(X).argmin()
    >>> display = FeatureContributionDisplay.from_estimator(detector, X, strangest)
    >>> len(display.bars_)
    10
    """

    def __init__(
        self,
        contributions: ArrayLike,
        *,
        x: ArrayLike | None = None,
        x_hat: ArrayLike | None = None,
        feature_names: ArrayLike | None = None,
    ):
        self.contributions = contributions
        self.x = x
        self.x_hat = x_hat
        self.feature_names = feature_names

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: MatrixLike,
        row: int = 0,
        *,
        max_features: int = 10,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw what makes up the error of one row.

        Parameters
        ----------
        estimator : estimator
            A fitted `AutoencoderOutlierDetector`, or a `Pipeline` or search that ends
            in one, whose score has contributions.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
        row : int, default=0
            Position of the row in X.
        max_features : int, default=10
            Features to draw, those that contribute most.
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            Passed to `matplotlib.axes.Axes.barh`.

        Returns
        -------
        display : FeatureContributionDisplay
        """
        last, X, names = _last_step_and_rows(estimator, X, AutoencoderOutlierDetector)
        if not -X.shape[0] <= row < X.shape[0]:
            raise ValueError(
                f"row must be the position of one of the {X.shape[0]} rows of X, got "
                f"{row}."
            )
        x = _safe_indexing(X, [row])
        display = cls(
            _as_array(last.feature_contributions(x))[0],
            x=_as_array(x)[0],
            x_hat=_as_array(last.reconstruct(x))[0],
            feature_names=names,
        )
        return display.plot(ax, max_features=max_features, **kwargs)

    def plot(
        self, ax: Axes | None = None, *, max_features: int = 10, **kwargs: Any
    ) -> Self:
        """Draw bars, the largest on top.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a figure.
        max_features : int, default=10
            Features to draw, those that contribute most.
        **kwargs : dict
            Passed to `matplotlib.axes.Axes.barh`.

        Returns
        -------
        self : FeatureContributionDisplay
        """
        self.ax_, self.figure_ = _axes(self, ax)
        contributions = np.asarray(self.contributions, float)
        top = np.argsort(-contributions, kind="stable")[:max_features]
        names = _names(self.feature_names, len(contributions))
        labels = [self._label(names[j], j) for j in top]
        self.bars_ = self.ax_.barh(
            np.arange(len(top)), contributions[top], **{"color": "C3", **kwargs}
        )
        self.ax_.set_yticks(np.arange(len(top)), labels)
        self.ax_.invert_yaxis()
        finite = contributions[np.isfinite(contributions)].sum()
        shown = contributions[top][np.isfinite(contributions[top])].sum()
        share = f" ({shown / finite:.0%} of it shown)" if finite > 0 else ""
        self.ax_.set_xlabel(f"share of the row's error, {finite:.3g}{share}")
        return self

    def _label(self, name: str, j: int) -> str:
        if self.x is None or self.x_hat is None:
            return name
        x, x_hat = (float(np.asarray(v)[j]) for v in (self.x, self.x_hat))
        if math.isnan(x):
            return f"{name} missing"
        return f"{name} = {x:.3g} instead of {x_hat:.3g}"


class ComponentTraversalDisplay:
    """What the decoder makes of each component.

    Each line moves one component of a typical code from low to high.

    Parameters
    ----------
    steps : array-like of shape (n_components, n_steps)
        Values of the component that is moved.
    X_hat : array-like of shape (n_components, n_steps, n_features)
        Decoded rows.
    input_shape : tuple of int, default=None
        (height, width) or (channels, height, width) of an image; anything else is a
        profile.
    feature_names : array-like of str of shape (n_features,), default=None

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        What holds the panels.
    axes_ : ndarray of matplotlib.axes.Axes
        The panels, of shape (n_components, n_steps) for images, (n_components, 1) for
        profiles.
    figure_ : matplotlib.figure.Figure

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skae import AutoencoderTransformer
    >>> from skae.inspection import ComponentTraversalDisplay
    >>> X = load_digits().data
    >>> ae = AutoencoderTransformer(3, input_shape=(8, 8), max_epochs=5, random_state=0)
    >>> display = ComponentTraversalDisplay.from_estimator(ae.fit(X), X)
    >>> display.axes_.shape
    (3, 7)
    """

    def __init__(
        self,
        steps: ArrayLike,
        X_hat: ArrayLike,
        *,
        input_shape: Sequence[int] | None = None,
        feature_names: ArrayLike | None = None,
    ):
        self.steps = steps
        self.X_hat = X_hat
        self.input_shape = input_shape
        self.feature_names = feature_names

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: MatrixLike,
        *,
        n_steps: int = 7,
        percentiles: tuple[float, float] = (5, 95),
        max_components: int = 8,
        input_shape: Sequence[int] | None = None,
        ax: Axes | None = None,
    ) -> Self:
        """Move along the components of the codes of X and draw what is decoded.

        Parameters
        ----------
        estimator : estimator
            A fitted `AutoencoderTransformer`, or a `Pipeline` or search that ends in
            one.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Their codes say what is low, typical (the median) and high.
        n_steps : int, default=7
            Values of each component, evenly spaced.
        percentiles : tuple of float, default=(5, 95)
            From where to where among the codes, in [0, 100].
        max_components : int, default=8
            Components to move, the first ones.
        input_shape : tuple of int, default=None
            Shape of an image; None means the estimator's.
        ax : matplotlib.axes.Axes, default=None
            What to fill; None makes a figure.

        Returns
        -------
        display : ComponentTraversalDisplay
        """
        last, X, names = _last_step_and_rows(estimator, X, AutoencoderTransformer)
        Z = _as_array(last.transform(X))
        low, typical, high = np.percentile(Z, (percentiles[0], 50, percentiles[1]), 0)
        n_components = min(Z.shape[1], max_components)
        steps = np.linspace(low, high, n_steps, axis=1)[:n_components]
        codes = np.tile(typical, (n_components, n_steps, 1))
        moved = np.arange(n_components)
        codes[moved, :, moved] = steps
        X_hat = last.inverse_transform(codes.reshape(-1, Z.shape[1]))
        display = cls(
            steps,
            X_hat.reshape(n_components, n_steps, -1),
            input_shape=input_shape or last.input_shape,
            feature_names=names,
        )
        return display.plot(ax)

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw a line of panels, or a panel, for each component.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            What to fill; None makes a figure.

        Returns
        -------
        self : ComponentTraversalDisplay
        """
        steps, X_hat = np.asarray(self.steps), np.asarray(self.X_hat, float)
        n_components, n_steps, n_features = X_hat.shape
        if _is_image(self.input_shape):
            size = (0.9 * n_steps + 1, 0.9 * n_components + 0.4)
            self.ax_, self.figure_ = _axes(self, ax, size)
            labels = [f"component {i}" for i in range(n_components)]
            self.axes_ = _image_panels(
                self.ax_, X_hat, labels, self.input_shape, _limits(X_hat)
            )
            return self
        self.ax_, self.figure_ = _axes(self, ax, (7, 1 + 1.3 * n_components))
        self.axes_ = _panels(self.ax_, n_components, 1)
        from matplotlib import colormaps

        colors = colormaps["viridis"](np.linspace(0, 0.9, n_steps))
        for i, panel in enumerate(self.axes_[:, 0]):
            for k, row in enumerate(X_hat[i]):
                # Only the ends in the legend.
                value = f"{steps[i, k]:.3g}" if k in (0, n_steps - 1) else None
                panel.plot(row, ".-", color=colors[k], label=value)
            panel.set_ylabel(f"component {i}")
            panel.set_xticks([])
            panel.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        _name_features(self.axes_[-1, 0], self.feature_names, n_features)
        return self


class ComponentSelectionDisplay:
    """Scores against the number of components, and which numbers rules choose.

    The marks are the number with the best mean score, the least within one standard
    error of it (see :func:`~skae.model_selection.one_standard_error`; the dotted line
    is that far below the best), and the :func:`~skae.model_selection.elbow`.

    Parameters
    ----------
    n_components : array-like of shape (n_values,)
        Different numbers, ascending.
    scores : array-like of shape (n_values, n_splits)
        Higher is better.
    score_name : str, default=None
        What the scores are; None means "score".
    estimator_name : str, default=None
        Name of the curve.

    Attributes
    ----------
    best, one_standard_error, elbow : int or None
        What the rules choose; None where one does not apply: the second to a single
        split, the third to a curve without a bend.
    ax_ : matplotlib.axes.Axes
    figure_ : matplotlib.figure.Figure
    curve_ : matplotlib.container.ErrorbarContainer
        Means and standard errors.
    marks_ : list of matplotlib.lines.Line2D

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.decomposition import PCA
    >>> from skae.inspection import ComponentSelectionDisplay
    >>> from skae.model_selection import explained_variance
    >>> display = ComponentSelectionDisplay.from_estimator(
    ...     PCA(random_state=0),
    ...     load_digits().data,
    ...     n_components=[1, 5, 10, 20, 40, 60],
    ...     scoring=explained_variance,
    ... )
    >>> display.best, display.one_standard_error, display.elbow
    (60, 60, 20)
    """

    def __init__(
        self,
        n_components: ArrayLike,
        scores: ArrayLike,
        *,
        score_name: str | None = None,
        estimator_name: str | None = None,
    ):
        self.n_components = n_components
        self.scores = scores
        self.score_name = score_name
        self.estimator_name = estimator_name

    @property
    def best(self) -> Any:
        """The number with the highest mean score."""
        means = mean_scores(np.asarray(self.scores, float))
        return np.asarray(self.n_components)[np.argmax(means)].item()

    @property
    def one_standard_error(self) -> Any:
        """The least number within one standard error of the best."""
        values, scores = np.asarray(self.n_components), np.asarray(self.scores, float)
        if scores.shape[1] < 2:
            return None
        return values[least_near_best(values, scores)].item()

    @property
    def elbow(self) -> Any:
        """Where the curve of the means bends most."""
        means = np.asarray(self.scores, float).mean(axis=1)
        known = np.isfinite(means)
        return elbow(np.asarray(self.n_components)[known], means[known])

    @classmethod
    def from_search(
        cls,
        search: Any,
        *,
        param: str | None = None,
        metric: str = "score",
        score_name: str | None = None,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Draw what a search has found.

        Where other parameters vary along, the best setting of each number counts.

        Parameters
        ----------
        search : GridSearchCV or RandomizedSearchCV
            Fitted.
        param : str, default=None
            The parameter on the horizontal axis; None means the one named
            ``"n_components"`` or ending in ``"__n_components"``.
        metric : str, default="score"
            Which score, if there are several.
        score_name : str, default=None
            What it is; None means "explained variance" if so, else `metric`.
        name : str, default=None
            Name of the curve.
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        display : ComponentSelectionDisplay
        """
        check_is_fitted(search)
        if not hasattr(search, "cv_results_"):
            raise TypeError(
                f"search must be a fitted search, such as GridSearchCV, got {search!r}."
            )
        values, scores = best_of_each(tried_settings(search.cv_results_, param, metric))
        if score_name is None:
            score_name = _score_name(search, metric)
        display = cls(values, scores, score_name=score_name, estimator_name=name)
        return display.plot(ax, **kwargs)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: MatrixLike,
        y: ArrayLike | None = None,
        *,
        n_components: ArrayLike,
        param: str | None = None,
        cv: Any = None,
        scoring: Any = None,
        n_jobs: int | None = None,
        score_name: str | None = None,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Cross-validate an estimator with several numbers of components.

        Parameters
        ----------
        estimator : estimator
            With a parameter `n_components`, or a `Pipeline` with such a step. It is
            cloned.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,), default=None
        n_components : array-like of int of shape (n_values,)
            Numbers to try.
        param : str, default=None
            Name of the parameter; None means the one named ``"n_components"`` or
            ending in ``"__n_components"``.
        cv : int, splitter or iterable, default=None
            As in `GridSearchCV`.
        scoring : str or callable, default=None
            As in `GridSearchCV`; None means the estimator's `score`.
        n_jobs : int, default=None
            As in `GridSearchCV`.
        score_name : str, default=None
            What the scores are; None means "explained variance" if so, else "score".
        name : str, default=None
            Name of the curve; None means the name of the class with the parameter.
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a figure.
        **kwargs : dict
            Passed to `plot`.

        Returns
        -------
        display : ComponentSelectionDisplay
        """
        params = estimator.get_params()
        param = find_parameter(params, param, "the estimator")
        owner = params[param.rpartition("__")[0]] if "__" in param else estimator
        search = GridSearchCV(
            estimator,
            {param: np.asarray(n_components).tolist()},
            scoring=scoring,
            cv=cv,
            n_jobs=n_jobs,
            refit=False,
            error_score="raise",
        ).fit(X, y)
        return cls.from_search(
            search,
            score_name=score_name,
            name=name or type(owner).__name__,
            ax=ax,
            **kwargs,
        )

    def plot(
        self, ax: Axes | None = None, *, marks: bool = True, **kwargs: Any
    ) -> Self:
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Where to draw; None makes a figure.
        marks : bool, default=True
            Whether to mark what the rules choose; False for a second curve.
        **kwargs : dict
            Passed to `matplotlib.axes.Axes.errorbar`.

        Returns
        -------
        self : ComponentSelectionDisplay
        """
        values, scores = np.asarray(self.n_components), np.asarray(self.scores, float)
        if scores.ndim != 2 or len(scores) != len(values):
            raise ValueError(
                f"scores must have the shape ({len(values)}, n_splits), a line for "
                f"each of n_components, got {scores.shape}."
            )
        self.ax_, self.figure_ = _axes(self, ax)
        means = scores.mean(axis=1)
        errors = standard_errors(scores) if scores.shape[1] > 1 else None
        style = {
            "marker": ".",
            "capsize": 3,
            "label": self.estimator_name or "mean and standard error",
            **kwargs,
        }
        self.curve_ = self.ax_.errorbar(values, means, errors, **style)
        self.marks_: list[Any] = []
        if marks:
            self._mark(values, means, errors)
        from matplotlib.ticker import MaxNLocator

        self.ax_.xaxis.set_major_locator(MaxNLocator(integer=True))
        self.ax_.set(xlabel="n_components", ylabel=self.score_name or "score")
        self.ax_.legend()
        return self

    def _mark(
        self, values: np.ndarray, means: np.ndarray, errors: np.ndarray | None
    ) -> None:
        """A vertical line for each number that is chosen, named by its rules."""
        chosen: dict[Any, list[str]] = {}
        rules = {
            "best": self.best,
            "one standard error": self.one_standard_error,
            "elbow": self.elbow,
        }
        for rule, value in rules.items():
            if value is not None:
                chosen.setdefault(value, []).append(rule)
        style: dict[str, Any] = {"linewidth": 1, "zorder": 0}
        for i, (value, names) in enumerate(chosen.items()):
            label = f"{', '.join(names)}: {value}"
            line = self.ax_.axvline(
                value, color=f"C{i + 2}", linestyle="--", label=label, **style
            )
            self.marks_.append(line)
        if errors is not None:
            best = np.flatnonzero(values == self.best)[0]
            level = means[best] - errors[best]
            self.ax_.axhline(level, color="0.6", linestyle=":", **style)


def _score_name(search: Any, metric: str) -> str:
    """What the scores of a search are."""
    scorer = getattr(search, "scorer_", None)
    scorer = scorer.get(metric) if isinstance(scorer, dict) else scorer
    estimator = search.estimator
    last = estimator[-1] if isinstance(estimator, Pipeline) else estimator
    is_own = search.scoring is None and isinstance(last, AutoencoderTransformer)
    if is_own or scorer is explained_variance:
        return "explained variance"
    return metric


# Estimators


def _last_step(
    estimator: Any, kind: type[BaseAutoencoder] = BaseAutoencoder
) -> BaseAutoencoder:
    """The fitted autoencoder at the end of whatever holds it."""
    found = _found(estimator)
    last = found[-1] if isinstance(found, Pipeline) else found
    if not isinstance(last, kind):
        wanted = "autoencoder of skae" if kind is BaseAutoencoder else kind.__name__
        raise TypeError(
            f"estimator must be a fitted {wanted}, or a Pipeline or a search that ends "
            f"in one, got {last!r}."
        )
    check_is_fitted(last)
    return last


def _found(estimator: Any) -> Any:
    """What a search has found; anything else is itself."""
    return getattr(estimator, "best_estimator_", estimator)


class _Seen(NamedTuple):
    """What the last step sees."""

    last: Any
    X: Any
    names: np.ndarray | None


def _last_step_and_rows(
    estimator: Any, X: MatrixLike, kind: type[BaseAutoencoder] = BaseAutoencoder
) -> _Seen:
    """The autoencoder, X as it comes to it, and the names of its features."""
    last = _last_step(estimator, kind)
    found = _found(estimator)
    names = getattr(last, "feature_names_in_", None)
    if isinstance(found, Pipeline) and len(found) > 1:
        before = found[:-1]
        has_names = all(
            hasattr(step, "get_feature_names_out") for _, step in before.steps
        )
        if names is None and has_names:
            names = before.get_feature_names_out()
        X = before.transform(X)
    if not hasattr(X, "shape"):
        X = np.asarray(X)
    return _Seen(last, X, names)


def _some_rows(
    n_rows: int, n_samples: int, random_state: int | np.random.RandomState | None
) -> np.ndarray:
    if n_rows <= n_samples:
        return np.arange(n_rows)
    rng = check_random_state(random_state)
    return np.sort(rng.choice(n_rows, n_samples, replace=False))


def _as_array(rows: Any) -> np.ndarray:
    """Rows of any kind as a dense array of floats."""
    return np.asarray(rows.toarray() if issparse(rows) else rows, dtype=float)


# Drawing


def _axes(
    display: Any, ax: Axes | None, figsize: tuple[float, float] | None = None
) -> tuple[Axes, Any]:
    check_matplotlib_support(f"{type(display).__name__}.plot")
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=figsize)
    return ax, ax.get_figure(root=True)


def _panels(ax: Axes, n_rows: int, n_columns: int) -> np.ndarray:
    """Axes in rows and columns, all inside of one."""
    ax.set_axis_off()
    gap = 0.06
    width, height = 1 / n_columns, 1 / n_rows
    panels = [
        ax.inset_axes(
            (
                j * width,
                1 - (i + 1) * height,
                width * (1 - gap * (n_columns > 1)),
                height * (1 - gap * (n_rows > 1)),
            )
        )
        for i in range(n_rows)
        for j in range(n_columns)
    ]
    return np.array(panels, dtype=object).reshape(n_rows, n_columns)


def _is_image(input_shape: Sequence[int] | None) -> bool:
    return input_shape is not None and len(input_shape) in (2, 3)


def _limits(X: np.ndarray) -> tuple[float, float]:
    """What is black and what is white: the range of the finite values."""
    finite = X[np.isfinite(X)]
    return (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)


def _image_panels(
    ax: Axes,
    images: np.ndarray,
    labels: Sequence[str],
    input_shape: Sequence[int] | None,
    limits: tuple[float, float],
) -> np.ndarray:
    """Labelled rows of panels, with images of shape (n_rows, n_columns, n_features)."""
    n_rows, n_columns, _ = images.shape
    panels = _panels(ax, n_rows, n_columns)
    for line, values, label in zip(panels, images, labels, strict=True):
        for panel, image in zip(line, values, strict=True):
            _draw_image(panel, image, input_shape, limits)
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
    return panels


def _draw_image(
    ax: Axes,
    row: np.ndarray,
    input_shape: Sequence[int] | None,
    limits: tuple[float, float],
) -> None:
    """A row as an image; channels are colours if there are three, else averaged."""
    assert input_shape is not None
    low, high = limits
    image = row.reshape(-1, *input_shape[-2:])  # (n_channels, height, width)
    if len(image) == 3:
        scaled = (image - low) / (high - low or 1)
        ax.imshow(np.nan_to_num(scaled).clip(0, 1).transpose(1, 2, 0))
    else:
        ax.imshow(image.mean(axis=0), cmap="gray", vmin=low, vmax=high)
    ax.set(xticks=[], yticks=[])


def _names(feature_names: ArrayLike | None, n_features: int) -> list[str]:
    if feature_names is None:
        return [f"x{j}" for j in range(n_features)]
    return [str(name) for name in np.asarray(feature_names)]


def _name_features(ax: Axes, feature_names: ArrayLike | None, n_features: int) -> None:
    if feature_names is not None and n_features <= MAX_NAMED:
        names = _names(feature_names, n_features)
        ax.set_xticks(np.arange(n_features), names, rotation=90)
    else:
        from matplotlib.ticker import MaxNLocator

        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("feature")


class _Group(NamedTuple):
    """Points of one colour."""

    where: np.ndarray
    color: Any
    label: str | None


def _colours(
    y: np.ndarray | None, n_rows: int
) -> tuple[list[_Group], np.ndarray | None]:
    """Groups of one colour each; and numbers to be coloured by their size, or None."""
    if y is None:
        return [_Group(np.ones(n_rows, bool), "C0", None)], None
    is_number = y.dtype.kind in "fiub"
    missing = np.array([v is None or v != v for v in y])
    found = np.unique(y[~missing])
    groups = [_Group(missing, "0.7", "missing")] if missing.any() else []
    if is_number and len(found) > 20:
        return groups, y.astype(float)
    groups += [_Group(y == value, f"C{i}", str(value)) for i, value in enumerate(found)]
    return groups, None
