"""Display of the features that contribute to the error of a row."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from skae._base import MatrixLike
from skae._compat import safe_indexing
from skae.inspection._drawing import get_axes, resolve_feature_names
from skae.inspection._estimators import find_autoencoder_and_input, to_dense
from skae.outlier import AutoencoderOutlierDetector

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class FeatureContributionDisplay:
    """Contributions of the features to the reconstruction error of one row.

    Horizontal bars show which features make a row an outlier.

    Parameters
    ----------
    contributions : array-like of shape (n_features,)
        Contribution of each feature to the error of the row, >= 0.
    x : array-like of shape (n_features,), default=None
        The row, NaN where an entry is missing.
    x_hat : array-like of shape (n_features,), default=None
        Reconstruction of the row: the values expected from the other features.
    feature_names : array-like of str of shape (n_features,), default=None
        Names of the features. If None, they are named x0, x1, ...

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        Axes of the plot.
    figure_ : matplotlib.figure.Figure
        Figure that contains the axes.
    bars_ : matplotlib.container.BarContainer
        Bars of the features, largest contribution first.

    See Also
    --------
    OutlierScoreDisplay : Distribution of the scores.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from skae import AutoencoderOutlierDetector
    >>> from skae.inspection import FeatureContributionDisplay
    >>> X = load_wine(as_frame=True).data
    >>> detector = AutoencoderOutlierDetector(random_state=0).fit(X)
    >>> i = detector.score_samples(X).argmin()
    >>> display = FeatureContributionDisplay.from_estimator(detector, X, i)
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
        """Plot the contributions of the features to the error of one row of X.

        Parameters
        ----------
        estimator : estimator
            A fitted `AutoencoderOutlierDetector`, or a fitted `Pipeline` or search
            that ends in one. It must have the method `feature_contributions`.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows to score.
        row : int, default=0
            Position in X of the row to plot, in [-n_samples, n_samples).
        max_features : int, default=10
            Largest number of features to draw; those that contribute most are drawn.
        ax : matplotlib.axes.Axes, default=None
            Axes to draw into. If None, a new figure is created.
        **kwargs : dict
            Keyword arguments passed to `matplotlib.axes.Axes.barh`.

        Returns
        -------
        display : FeatureContributionDisplay
            The display, drawn.
        """
        autoencoder, X, feature_names = find_autoencoder_and_input(
            estimator, X, AutoencoderOutlierDetector
        )
        if not -X.shape[0] <= row < X.shape[0]:
            raise ValueError(
                f"row must be the position of one of the {X.shape[0]} rows of X, got "
                f"{row}."
            )
        x = safe_indexing(X, [row])
        display = cls(
            to_dense(autoencoder.feature_contributions(x))[0],
            x=to_dense(x)[0],
            x_hat=to_dense(autoencoder.reconstruct(x))[0],
            feature_names=feature_names,
        )
        return display.plot(ax, max_features=max_features, **kwargs)

    def plot(
        self, ax: Axes | None = None, *, max_features: int = 10, **kwargs: Any
    ) -> Self:
        """Plot the contributions as horizontal bars, the largest on top.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Axes to draw into. If None, a new figure is created.
        max_features : int, default=10
            Largest number of features to draw; those that contribute most are drawn.
        **kwargs : dict
            Keyword arguments passed to `matplotlib.axes.Axes.barh`.

        Returns
        -------
        display : FeatureContributionDisplay
            This object.
        """
        self.ax_, self.figure_ = get_axes(self, ax)
        contributions = np.asarray(self.contributions, float)
        top = np.argsort(-contributions, kind="stable")[:max_features]
        names = resolve_feature_names(self.feature_names, len(contributions))
        labels = [self._label(names[j], j) for j in top]
        self.bars_ = self.ax_.barh(
            np.arange(len(top)), contributions[top], **{"color": "C3", **kwargs}
        )
        self.ax_.set_yticks(np.arange(len(top)), labels)
        self.ax_.invert_yaxis()
        total = contributions[np.isfinite(contributions)].sum()
        shown = contributions[top][np.isfinite(contributions[top])].sum()
        share = f" ({shown / total:.0%} shown)" if total > 0 else ""
        self.ax_.set_xlabel(f"contribution to the row's error of {total:.3g}{share}")
        return self

    def _label(self, name: str, j: int) -> str:
        """Return the label of feature j: its name, value and reconstruction."""
        if self.x is None or self.x_hat is None:
            return name
        x, x_hat = (float(np.asarray(v)[j]) for v in (self.x, self.x_hat))
        if math.isnan(x):
            return f"{name} missing"
        return f"{name} = {x:.3g} instead of {x_hat:.3g}"
