"""Display of rows and their reconstructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_random_state

from skae._base import MatrixLike
from skae._compat import safe_indexing
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class ReconstructionDisplay:
    """Rows and their reconstructions.

    Images are drawn in two lines, the originals above their reconstructions. Other rows
    are drawn as curves over the features, each in its own panel.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Original rows, NaN where an entry is missing.
    X_hat : array-like of shape (n_samples, n_features)
        Reconstructed rows.
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
        Panels, of shape (2, n_samples) for images and (n_samples, 1) for curves.
    figure_ : matplotlib.figure.Figure
        Figure that contains the axes.

    See Also
    --------
    FeatureContributionDisplay : Reconstruction errors by feature.
    ComponentTraversalDisplay : Reconstructions of varied codes.

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
    @check_arguments
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
        """Reconstruct rows of X and plot them.

        Parameters
        ----------
        estimator : estimator
            A fitted autoencoder, or a fitted `Pipeline` or search that ends in one.
        X : {array-like, sparse matrix} of shape (n_rows, n_features)
            Rows to draw from.
        n_samples : int, default=8
            Largest number of rows to plot, >= 1.
        random_state : int, RandomState instance or None, default=0
            Determines which rows are plotted, if X has more than `n_samples`. Pass an
            int for the same rows in each call.
        input_shape : tuple of int, default=None
            Shape of an image, see `ReconstructionDisplay`. If None, the estimator's
            parameter `input_shape`.
        ax : matplotlib.axes.Axes, default=None
            Axes to fill with panels. If None, a new figure is created.

        Returns
        -------
        display : ReconstructionDisplay
            The display, drawn.
        """
        input_shape = resolve_input_shape(input_shape, find_autoencoder(estimator))
        autoencoder, X, feature_names = find_autoencoder_and_input(estimator, X)
        refuse_categories(cls, autoencoder)
        rows = safe_indexing(X, _draw_positions(X.shape[0], n_samples, random_state))
        display = cls(
            to_dense(rows),
            to_dense(autoencoder.reconstruct(rows)),
            input_shape=input_shape,
            feature_names=feature_names,
        )
        return display.plot(ax)

    @draws
    def plot(self, ax: Axes | None = None) -> Self:
        """Plot originals and reconstructions.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Axes to fill with panels. If None, a new figure is created.

        Returns
        -------
        display : ReconstructionDisplay
            This object.
        """
        X = check_numbers(
            "X", self.X, ("n_samples", "n_features"), allow_nonfinite=True
        )
        X_hat = check_numbers("X_hat", self.X_hat, X.shape, allow_nonfinite=True)
        check_input_shape(self.input_shape, X.shape[1])
        check_feature_names(self.feature_names, X.shape[1])
        if is_image(self.input_shape):
            self.ax_, self.figure_ = get_axes(ax, (0.9 * len(X) + 1.5, 2.2))
            labels = ["original", "reconstruction"]
            self.axes_ = draw_images(
                self.ax_,
                np.stack([X, X_hat]),
                labels,
                self.input_shape,
                value_limits(X),
            )
            return self
        height = feature_label_height(self.feature_names, X.shape[1])
        self.ax_, self.figure_ = get_axes(ax, (7, 0.5 + 0.9 * len(X) + height))
        self.axes_ = add_panels(self.ax_, len(X), 1)
        for panel, row, row_hat in zip(self.axes_[:, 0], X, X_hat, strict=True):
            panel.plot(row, ".-", color="0.6", label="original")
            panel.plot(row_hat, color="C0", label="reconstruction")
            panel.set_xticks([])
        label_features(self.axes_[-1, 0], self.feature_names, X.shape[1])
        self.axes_[0, 0].legend(
            loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False
        )
        return self


def _draw_positions(
    n_rows: int, n_samples: int, random_state: int | np.random.RandomState | None
) -> np.ndarray:
    """Draw at most `n_samples` positions of rows at random, in ascending order."""
    if n_rows <= n_samples:
        return np.arange(n_rows)
    rng = check_random_state(random_state)
    return np.sort(rng.choice(n_rows, n_samples, replace=False))
