"""Display of decoded rows along each component."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from skae._base import MatrixLike
from skae._estimators import (
    find_autoencoder,
    find_autoencoder_and_input,
    refuse_categories,
    resolve_input_shape,
    to_dense,
)
from skae._tables import check_input_shape
from skae.inspection._arguments import (
    check_arguments,
    check_feature_names,
    check_numbers,
    check_percentiles,
    draws,
)
from skae.inspection._drawing import (
    add_panels,
    draw_images,
    feature_label_height,
    get_axes,
    is_image,
    label_features,
    value_limits,
)
from skae.transformer import AutoencoderTransformer

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class ComponentTraversalDisplay:
    """Decoded rows as each component of the code varies.

    Each line of the plot varies one component of the median code from low to high, and
    keeps the others fixed.

    Parameters
    ----------
    steps : array-like of shape (n_components, n_steps)
        Values of the component that varies.
    X_hat : array-like of shape (n_components, n_steps, n_features)
        Decoded rows.
    input_shape : tuple of int, default=None
        Shape of one row, (height, width) or (channels, height, width) of an image. With
        None or another length, rows are drawn as curves.
    feature_names : array-like of str of shape (n_features,), default=None
        Names on the axis of the features. If None, they are numbered.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        Axes that contain the panels.
    axes_ : ndarray of matplotlib.axes.Axes
        Panels, of shape (n_components, n_steps) for images and (n_components, 1) for
        curves.
    figure_ : matplotlib.figure.Figure
        Figure that contains the axes.

    See Also
    --------
    LatentSpaceDisplay : Scatter plot of the codes.

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
    @check_arguments
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
        """Vary each component of the codes of X and plot the decoded rows.

        Parameters
        ----------
        estimator : estimator
            A fitted `AutoencoderTransformer`, or a fitted `Pipeline` or search that
            ends in one.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows whose codes determine the median and the range of each component.
        n_steps : int, default=7
            Number of evenly spaced values of each component, >= 1.
        percentiles : tuple of float, default=(5, 95)
            Percentiles of the codes that are the range of each component, in
            [0, 100], in ascending order.
        max_components : int, default=8
            Largest number of components to vary, >= 1; the first ones are taken.
        input_shape : tuple of int, default=None
            Shape of an image, see `ComponentTraversalDisplay`. If None, the
            estimator's parameter `input_shape`.
        ax : matplotlib.axes.Axes, default=None
            Axes to fill with panels. If None, a new figure is created.

        Returns
        -------
        display : ComponentTraversalDisplay
            The display, drawn.
        """
        check_percentiles(percentiles)
        autoencoder: Any = find_autoencoder(estimator, AutoencoderTransformer)
        input_shape = resolve_input_shape(input_shape, autoencoder)
        _, X, feature_names = find_autoencoder_and_input(estimator, X)
        refuse_categories(cls, autoencoder)
        Z = to_dense(autoencoder.transform(X))
        low, median, high = np.percentile(
            Z, (percentiles[0], 50, percentiles[1]), axis=0
        )
        n_components = min(Z.shape[1], max_components)
        steps = np.linspace(low, high, n_steps, axis=1)[:n_components]
        codes = np.tile(median, (n_components, n_steps, 1))
        i = np.arange(n_components)
        codes[i, :, i] = steps  # component i varies in line i
        X_hat = autoencoder.inverse_transform(codes.reshape(-1, Z.shape[1]))
        display = cls(
            steps,
            X_hat.reshape(n_components, n_steps, -1),
            input_shape=input_shape,
            feature_names=feature_names,
        )
        return display.plot(ax)

    @draws
    def plot(self, ax: Axes | None = None) -> Self:
        """Plot a line of images, or one panel of curves, for each component.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Axes to fill with panels. If None, a new figure is created.

        Returns
        -------
        display : ComponentTraversalDisplay
            This object.
        """
        X_hat = check_numbers(
            "X_hat",
            self.X_hat,
            ("n_components", "n_steps", "n_features"),
            allow_nonfinite=True,
        )
        n_components, n_steps, n_features = X_hat.shape
        steps = check_numbers("steps", self.steps, (n_components, n_steps))
        check_input_shape(self.input_shape, n_features)
        check_feature_names(self.feature_names, n_features)
        if is_image(self.input_shape):
            size = (0.9 * n_steps + 1, 0.9 * n_components + 0.4)
            self.ax_, self.figure_ = get_axes(ax, size)
            labels = [f"component {i}" for i in range(n_components)]
            self.axes_ = draw_images(
                self.ax_, X_hat, labels, self.input_shape, value_limits(X_hat)
            )
            return self
        height = feature_label_height(self.feature_names, n_features)
        self.ax_, self.figure_ = get_axes(ax, (7, 0.5 + 1.3 * n_components + height))
        self.axes_ = add_panels(self.ax_, n_components, 1)
        from matplotlib import colormaps

        colors = colormaps["viridis"](np.linspace(0, 0.9, n_steps))
        for i, panel in enumerate(self.axes_[:, 0]):
            for k, row in enumerate(X_hat[i]):
                # The legend lists the first and the last value only.
                value = f"{steps[i, k]:.3g}" if k in (0, n_steps - 1) else None
                panel.plot(row, ".-", color=colors[k], label=value)
            panel.set_ylabel(f"component {i}")
            panel.set_xticks([])
            panel.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        label_features(self.axes_[-1, 0], self.feature_names, n_features)
        return self
