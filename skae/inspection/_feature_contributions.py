"""Display of the features that contribute to the error of a row."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from skae._base import MatrixLike
from skae._compat import is_pandas_na, num_samples, safe_indexing
from skae._estimators import (
    find_autoencoder,
    find_autoencoder_and_input,
    resolve_input_shape,
    to_dense,
    to_values,
)
from skae._explanation import shares
from skae._tables import check_input_shape
from skae.inspection._arguments import (
    check_arguments,
    check_feature_names,
    check_numbers,
    draws,
)
from skae.inspection._drawing import (
    draw_image,
    get_axes,
    is_image,
    resolve_feature_names,
    split_channels,
    text_width,
    value_limits,
)
from skae.outlier import AutoencoderOutlierDetector

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

# Opacity of the map at the largest contribution: the picture shows through.
MAX_OPACITY = 0.85


class FeatureContributionDisplay:
    """Contributions of the features to the reconstruction error of one row.

    Horizontal bars show which features make a row an outlier, as
    `AutoencoderOutlierDetector.explain` does in a table: beside each bar is the share
    of the row's error. In an image, it is a map
    over the picture, more opaque where the contribution is larger.

    Parameters
    ----------
    contributions : array-like of shape (n_features,)
        Contribution of each feature to the error of the row, >= 0. Infinite ones are
        drawn like the largest finite one.
    x : array-like of shape (n_features,), default=None
        The row, NaN where an entry is missing.
    x_hat : array-like of shape (n_features,), default=None
        Reconstruction of the row: the values expected from the other features.
    feature_names : array-like of str of shape (n_features,), default=None
        Names of the features. If None, they are named x0, x1, ...
    input_shape : tuple of int, default=None
        Shape of one row, (height, width) or (channels, height, width) of an image. With
        None or another length, the contributions are drawn as bars. The picture is in
        colour if it has three channels, otherwise their mean in grey; the contributions
        are summed over the channels. Missing pixels are blank.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        Axes of the plot.
    figure_ : matplotlib.figure.Figure
        Figure that contains the axes.
    bars_ : matplotlib.container.BarContainer
        Bars of the features, largest contribution first. Not for images.
    map_ : matplotlib.image.AxesImage
        Map of the contributions, only for images.
    image_ : matplotlib.image.AxesImage or None
        Picture under the map, only for images. None if `x` is None.
    colorbar_ : matplotlib.colorbar.Colorbar
        Colour bar of the map, only for images.

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

    A map over a digit of which a part is spoilt:

    >>> from sklearn.datasets import load_digits
    >>> X = load_digits().data
    >>> detector = AutoencoderOutlierDetector(input_shape=(8, 8), random_state=0).fit(X)
    >>> digit = X[:1].copy()
    >>> digit.reshape(8, 8)[1:3, :2] = 16
    >>> display = FeatureContributionDisplay.from_estimator(detector, digit)
    >>> display.map_.get_array().shape
    (8, 8)
    """

    def __init__(
        self,
        contributions: ArrayLike,
        *,
        x: ArrayLike | None = None,
        x_hat: ArrayLike | None = None,
        feature_names: ArrayLike | None = None,
        input_shape: Sequence[int] | None = None,
    ):
        self.contributions = contributions
        self.x = x
        self.x_hat = x_hat
        self.feature_names = feature_names
        self.input_shape = input_shape

    @classmethod
    @check_arguments
    def from_estimator(
        cls,
        estimator: Any,
        X: MatrixLike,
        row: int = 0,
        *,
        max_features: int = 10,
        input_shape: Sequence[int] | None = None,
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
            Largest number of bars to draw, >= 1; the features that contribute most are
            drawn.
        input_shape : tuple of int, default=None
            Shape of an image, see `FeatureContributionDisplay`. If None, the
            estimator's parameter `input_shape`. ``(n_features,)`` draws bars.
        ax : matplotlib.axes.Axes, default=None
            Axes to draw into. If None, a new figure is created.
        **kwargs : dict
            Keyword arguments passed to `matplotlib.axes.Axes.barh`, or for an image to
            `matplotlib.axes.Axes.imshow`, which draws the map.

        Returns
        -------
        display : FeatureContributionDisplay
            The display, drawn.
        """
        autoencoder: Any = find_autoencoder(estimator, AutoencoderOutlierDetector)
        feature_contributions = autoencoder.feature_contributions
        input_shape = resolve_input_shape(input_shape, autoencoder)
        n_rows = num_samples(X)
        if not -n_rows <= row < n_rows:
            raise ValueError(
                f"row must be the position of one of the {n_rows} rows of X, got {row}."
            )
        _, X, feature_names = find_autoencoder_and_input(estimator, X)
        x = safe_indexing(X, [int(row)])
        display = cls(
            to_dense(feature_contributions(x))[0],
            x=to_values(x)[0],
            x_hat=to_values(autoencoder.reconstruct(x))[0],
            feature_names=feature_names,
            input_shape=input_shape,
        )
        return display.plot(ax, max_features=max_features, **kwargs)

    @draws
    def plot(
        self, ax: Axes | None = None, *, max_features: int = 10, **kwargs: Any
    ) -> Self:
        """Plot the contributions as horizontal bars, or as a map over an image.

        The largest contribution is the bar on top.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Axes to draw into. If None, a new figure is created.
        max_features : int, default=10
            Largest number of bars to draw, >= 1; the features that contribute most are
            drawn.
        **kwargs : dict
            Keyword arguments passed to `matplotlib.axes.Axes.barh`, or for an image to
            `matplotlib.axes.Axes.imshow`, which draws the map.

        Returns
        -------
        display : FeatureContributionDisplay
            This object.
        """
        contributions = check_numbers(
            "contributions",
            self.contributions,
            ("n_features",),
            low=0,
            allow_nonfinite=True,
        )
        n_features = len(contributions)
        for name, row in (("x", self.x), ("x_hat", self.x_hat)):
            if row is not None and not _has_categories(row, n_features):
                check_numbers(name, row, (n_features,), allow_nonfinite=True)
        check_input_shape(self.input_shape, n_features)
        check_feature_names(self.feature_names, n_features)
        if is_image(self.input_shape):
            self._plot_map(ax, contributions, kwargs)
        else:
            self._plot_bars(ax, contributions, max_features, kwargs)
        return self

    def _plot_map(
        self, ax: Axes | None, contributions: np.ndarray, kwargs: dict[str, Any]
    ) -> None:
        """Plot the picture and the contributions over it."""
        self.ax_, self.figure_ = get_axes(ax)
        values = split_channels(contributions, self.input_shape).sum(axis=0)
        total = _finite_sum(contributions)
        high = values[np.isfinite(values)].max(initial=0) or 1.0
        limits = {} if "norm" in kwargs else {"vmin": 0, "vmax": high}
        style = {**limits, **kwargs, "cmap": _fade_in(kwargs.get("cmap"))}
        self.image_ = None
        if self.x is not None:
            x = np.asarray(self.x, float)
            self.image_ = draw_image(self.ax_, x, self.input_shape, value_limits(x))
        # imshow leaves out infinite values. They are drawn as the largest finite one.
        self.map_ = self.ax_.imshow(values.clip(max=high), **style)
        self.ax_.set(xticks=[], yticks=[], xlabel=f"row's error of {total:.3g}")
        self.colorbar_ = self.figure_.colorbar(
            self.map_,
            ax=self.ax_,
            label="contribution to the error",
            extend="max" if np.isinf(values).any() else "neither",
        )

    def _plot_bars(
        self,
        ax: Axes | None,
        contributions: np.ndarray,
        max_features: int,
        kwargs: dict[str, Any],
    ) -> None:
        """Plot the largest contributions as bars."""
        top = np.argsort(-contributions, kind="stable")[:max_features]
        # As in a map, infinite values are drawn as the largest finite one.
        high = contributions[np.isfinite(contributions)].max(initial=0) or 1.0
        lengths = np.nan_to_num(contributions[top], posinf=high)
        names = resolve_feature_names(self.feature_names, len(contributions))
        labels = [self._label(names[j], j) for j in top]
        total, shown = _finite_sum(contributions), _finite_sum(contributions[top])
        share = f" ({shown / total:.0%} shown)" if total > 0 else ""
        xlabel = f"contribution to the row's error of {total:.3g}{share}"
        width = text_width(labels) + text_width([xlabel])
        min_size = (0.3 + width, 0.8 + 0.2 * len(top))
        self.ax_, self.figure_ = get_axes(ax, min_size=min_size)
        self.bars_ = self.ax_.barh(
            np.arange(len(top)), lengths, **{"color": "C3", **kwargs}
        )
        percent = [f"{share:.0%}" for share in shares(contributions[None])[0, top]]
        self.ax_.bar_label(self.bars_, percent, padding=3)
        self.ax_.margins(x=0.12)  # for the label of the longest bar
        self.ax_.set_yticks(np.arange(len(top)), labels)
        self.ax_.invert_yaxis()
        self.ax_.set_xlabel(xlabel)

    def _label(self, name: str, j: int) -> str:
        """Return the label of feature j: its name, value and reconstruction."""
        if self.x is None or self.x_hat is None:
            return name
        x, x_hat = (np.asarray(v)[j] for v in (self.x, self.x_hat))
        if x is None or is_pandas_na(x) or x != x:
            return f"{name} missing"
        return f"{name} = {_as_text(x)} instead of {_as_text(x_hat)}"


def _has_categories(row: Any, n_features: int) -> bool:
    """Whether a row of this length has values that are not numbers."""
    values = np.asarray(row)
    return values.dtype.kind in "OU" and values.shape == (n_features,)


def _as_text(value: Any) -> str:
    """Return a number with three digits, or a category as text."""
    is_number = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
    return f"{float(value):.3g}" if is_number else str(value)


def _finite_sum(values: np.ndarray) -> float:
    """Return the sum of the finite values."""
    return values[np.isfinite(values)].sum()


def _fade_in(cmap: Colormap | str | None) -> Colormap:
    """Return a colormap, by default red, that is transparent at its start."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    # One hue is told from the grey of the picture at every opacity.
    opaque = ListedColormap(["red"]) if cmap is None else colormaps.get_cmap(cmap)
    colors = opaque(np.linspace(0, 1, 256))
    colors[:, 3] *= np.linspace(0, MAX_OPACITY, 256)
    return ListedColormap(colors)
