"""Display of the effect of each component on each feature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from skae._base import MatrixLike
from skae._estimators import (
    find_autoencoder,
    find_autoencoder_and_input,
    resolve_input_shape,
)
from skae._tables import check_input_shape, check_weight
from skae.inspection._arguments import (
    check_arguments,
    check_feature_names,
    check_numbers,
    draws,
)
from skae.inspection._drawing import (
    MAX_NAMED_FEATURES,
    add_panels,
    feature_label_height,
    get_axes,
    is_image,
    label_features,
    resolve_feature_names,
    split_channels,
)
from skae.transformer import AutoencoderTransformer

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class ComponentContributionDisplay:
    """Mean squared effect of each component of the code on each feature.

    There is a panel of bars for each component, with the same features and the same
    scale in all panels, or for images, a map. The label of a panel has the component's
    share of the sum of all contributions.

    Parameters
    ----------
    contributions : array-like of shape (n_components, n_features)
        Contributions, as `AutoencoderTransformer.component_contributions` returns them,
        >= 0.
    feature_names : array-like of str of shape (n_features,), default=None
        Names on the axis of the features, if there are at most 30 of them. If None,
        x0, x1, and so on.
    input_shape : tuple of int, default=None
        Shape of one row, (height, width) or (channels, height, width) of an image, of
        which the sum over the channels is drawn as a map. With None or another length,
        contributions are drawn as bars.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        Axes that contain the panels.
    axes_ : ndarray of matplotlib.axes.Axes
        Panels, of shape (n_components, 1) for bars and (1, n_components) for maps.
    colorbar_ : matplotlib.colorbar.Colorbar or None
        Colour bar of the maps; None for bars.
    figure_ : matplotlib.figure.Figure
        Figure that contains the axes.

    See Also
    --------
    ComponentTraversalDisplay : Decoded rows along each component.
    FeatureContributionDisplay : Contributions of the features to the error of a row.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from skae import AutoencoderTransformer
    >>> from skae.inspection import ComponentContributionDisplay
    >>> X = load_wine(as_frame=True).data
    >>> ae = AutoencoderTransformer(2, max_epochs=5, random_state=0)
    >>> pipeline = make_pipeline(StandardScaler(), ae).fit(X)
    >>> display = ComponentContributionDisplay.from_estimator(
    ...     pipeline, X, max_features=5
    ... )
    >>> len(display.axes_[0, 0].patches)
    5
    """

    def __init__(
        self,
        contributions: ArrayLike,
        *,
        feature_names: ArrayLike | None = None,
        input_shape: Sequence[int] | None = None,
    ):
        self.contributions = contributions
        self.feature_names = feature_names
        self.input_shape = input_shape

    @classmethod
    @check_arguments
    def from_estimator(
        cls,
        estimator: Any,
        X: MatrixLike,
        sample_weight: ArrayLike | None = None,
        *,
        max_components: int = 8,
        max_features: int = MAX_NAMED_FEATURES,
        input_shape: Sequence[int] | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Compute the contributions along the rows of X and plot them.

        Parameters
        ----------
        estimator : estimator
            A fitted `AutoencoderTransformer`, or a fitted `Pipeline` or search that
            ends in one. It must have the method `component_contributions`.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows along which the effects are averaged.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights of the rows. None means equal weights.
        max_components : int, default=8
            Largest number of components to draw, >= 1; the first ones are drawn.
        max_features : int, default=30
            Largest number of features to draw as bars, >= 1; those with the largest
            sums over all components are drawn, in the order of the columns.
        input_shape : tuple of int, default=None
            Shape of an image, see `ComponentContributionDisplay`. If None, the
            estimator's parameter `input_shape`. ``(n_features,)`` draws bars.
        ax : matplotlib.axes.Axes, default=None
            Axes to fill with panels. If None, a new figure is created.
        **kwargs : dict
            Keyword arguments passed to `matplotlib.axes.Axes.bar`, or for images to
            `matplotlib.axes.Axes.imshow`.

        Returns
        -------
        display : ComponentContributionDisplay
            The display, drawn.
        """
        autoencoder: Any = find_autoencoder(estimator, AutoencoderTransformer)
        component_contributions = autoencoder.component_contributions
        input_shape = resolve_input_shape(input_shape, autoencoder)
        sample_weight = check_weight(sample_weight, X)
        _, X, feature_names = find_autoencoder_and_input(estimator, X)
        display = cls(
            component_contributions(X, sample_weight),
            feature_names=feature_names,
            input_shape=input_shape,
        )
        return display.plot(
            ax, max_components=max_components, max_features=max_features, **kwargs
        )

    @draws
    def plot(
        self,
        ax: Axes | None = None,
        *,
        max_components: int = 8,
        max_features: int = MAX_NAMED_FEATURES,
        **kwargs: Any,
    ) -> Self:
        """Plot a panel for each component.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Axes to fill with panels. If None, a new figure is created.
        max_components : int, default=8
            Largest number of components to draw, >= 1; the first ones are drawn.
        max_features : int, default=30
            Largest number of features to draw as bars, >= 1; those with the largest
            sums over all components are drawn, in the order of the columns.
        **kwargs : dict
            Keyword arguments passed to `matplotlib.axes.Axes.bar`, or for images to
            `matplotlib.axes.Axes.imshow`.

        Returns
        -------
        display : ComponentContributionDisplay
            This object.
        """
        contributions = check_numbers(
            "contributions", self.contributions, ("n_components", "n_features"), low=0
        )
        n_features = contributions.shape[1]
        check_input_shape(self.input_shape, n_features)
        check_feature_names(self.feature_names, n_features)
        total = contributions.sum()
        shares = contributions.sum(axis=1) / (total if total > 0 else 1)
        shown = contributions[:max_components]
        labels = [f"component {i}\n{shares[i]:.0%}" for i in range(len(shown))]
        if is_image(self.input_shape):
            self._plot_maps(ax, shown, labels, kwargs)
        else:
            order = np.argsort(-contributions.sum(axis=0), kind="stable")
            self._plot_bars(ax, shown, np.sort(order[:max_features]), labels, kwargs)
        return self

    def _plot_maps(
        self,
        ax: Axes | None,
        contributions: np.ndarray,
        labels: list[str],
        kwargs: dict[str, Any],
    ) -> None:
        """Plot a map for each component, in a line."""
        self.ax_, self.figure_ = get_axes(ax, (1.5 * len(labels) + 1.5, 2.2))
        self.axes_ = add_panels(self.ax_, 1, len(labels))
        maps = [
            split_channels(row, self.input_shape).sum(axis=0) for row in contributions
        ]
        limits = {} if "norm" in kwargs else {"vmin": 0, "vmax": np.max(maps) or 1.0}
        for panel, values, label in zip(self.axes_[0], maps, labels, strict=True):
            image = panel.imshow(values, **{**limits, **kwargs})
            panel.set(xticks=[], yticks=[], xlabel=label)
        self.colorbar_ = self.figure_.colorbar(
            image, ax=self.ax_, label="mean squared effect", shrink=0.7
        )

    def _plot_bars(
        self,
        ax: Axes | None,
        contributions: np.ndarray,
        features: np.ndarray,
        labels: list[str],
        kwargs: dict[str, Any],
    ) -> None:
        """Plot the contributions to some features as bars, one component below another.

        Parameters
        ----------
        features : ndarray of int
            Columns to draw, in ascending order.
        """
        n_features = contributions.shape[1]
        names = np.array(resolve_feature_names(self.feature_names, n_features))
        height = feature_label_height(names[features], len(features))
        self.ax_, self.figure_ = get_axes(ax, (7, 0.5 + 1.1 * len(labels) + height))
        self.axes_ = add_panels(self.ax_, len(labels), 1)
        self.colorbar_ = None
        contributions = contributions[:, features]
        is_named = len(features) <= MAX_NAMED_FEATURES
        positions = np.arange(len(features)) if is_named else features
        for panel, heights, label in zip(
            self.axes_[:, 0], contributions, labels, strict=True
        ):
            panel.bar(positions, heights, **kwargs)
            panel.set_ylabel(label, rotation=0, ha="right", va="center")
            panel.set(ylim=(0, 1.05 * contributions.max() or 1.0), xticks=[])
        self.axes_[0, 0].set_title("mean squared effect")
        label_features(self.axes_[-1, 0], names[features], len(features))
