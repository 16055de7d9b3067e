"""Axes, image panels and feature labels, shared by the displays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

# Largest number of features whose names are drawn along an axis.
MAX_NAMED_FEATURES = 30

# Space between two panels, as a share of the size of a panel.
PANEL_GAP = 0.06


def get_axes(
    ax: Axes | None,
    figsize: tuple[float, float] | None = None,
    *,
    min_size: tuple[float, float] = (0, 0),
) -> tuple[Axes, Any]:
    """Return the axes to draw into and their figure.

    Parameters
    ----------
    ax : matplotlib.axes.Axes or None
        If None, a new figure is created. Its layout makes room for labels.
    figsize : tuple of float, default=None
        Width and height of a new figure, in inches. If None, matplotlib's default.
    min_size : tuple of float, default=(0, 0)
        Least width and height of a new figure, in inches.

    Returns
    -------
    ax : matplotlib.axes.Axes
    figure : matplotlib.figure.Figure
    """
    if ax is None:
        import matplotlib.pyplot as plt

        size = np.maximum(figsize or plt.rcParams["figure.figsize"], min_size)
        _, ax = plt.subplots(figsize=tuple(size), layout="constrained")
    return ax, ax.figure.figure  # of a subfigure, the whole figure


def text_width(texts: Sequence[str]) -> float:
    """Return the approximate width of the longest text in a new figure, in inches."""
    from matplotlib import rcParams

    # The mean width of a character is about 0.6 times the font size, in points.
    return max(map(len, texts), default=0) * 0.6 * rcParams["font.size"] / 72


def add_panels(ax: Axes, n_rows: int, n_columns: int) -> np.ndarray:
    """Add a grid of inset axes to `ax`, which itself becomes invisible.

    Returns
    -------
    panels : ndarray of matplotlib.axes.Axes of shape (n_rows, n_columns)
    """
    ax.set_axis_off()
    width, height = 1 / n_columns, 1 / n_rows
    panels = [
        ax.inset_axes(
            (
                j * width,
                1 - (i + 1) * height,
                width * (1 - PANEL_GAP * (n_columns > 1)),
                height * (1 - PANEL_GAP * (n_rows > 1)),
            )
        )
        for i in range(n_rows)
        for j in range(n_columns)
    ]
    return np.array(panels, dtype=object).reshape(n_rows, n_columns)


def is_image(input_shape: Sequence[int] | None) -> bool:
    """Return whether rows of this shape are drawn as images, not as signals."""
    return (
        input_shape is not None
        and len(input_shape) in (2, 3)
        and min(input_shape[-2:]) > 1
    )


def value_limits(X: np.ndarray) -> tuple[float, float]:
    """Return the least and the largest finite value, drawn as black and white."""
    finite = X[np.isfinite(X)]
    return (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)


def draw_images(
    ax: Axes,
    images: np.ndarray,
    labels: Sequence[str],
    input_shape: Sequence[int] | None,
    limits: tuple[float, float],
) -> np.ndarray:
    """Draw a grid of images, with a label beside each row of the grid.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Axes that are filled with panels.
    images : ndarray of shape (n_rows, n_columns, n_features)
        The images, flattened.
    labels : sequence of str of length n_rows
        A label for each row of the grid.
    input_shape : tuple of int
        Shape of an image, (height, width) or (channels, height, width).
    limits : tuple of float
        Values that are drawn as black and as white.

    Returns
    -------
    panels : ndarray of matplotlib.axes.Axes of shape (n_rows, n_columns)
    """
    n_rows, n_columns, _ = images.shape
    panels = add_panels(ax, n_rows, n_columns)
    for row_panels, row_images, label in zip(panels, images, labels, strict=True):
        for panel, image in zip(row_panels, row_images, strict=True):
            draw_image(panel, image, input_shape, limits)
            # The labels then have a fixed distance from the left edge of `ax`, however
            # the panels are resized, which the layout of the figure relies on.
            panel.set_anchor("W")
        row_panels[0].set_ylabel(label, rotation=0, ha="right", va="center")
    return panels


def split_channels(row: np.ndarray, input_shape: Sequence[int] | None) -> np.ndarray:
    """Return the image of a row, of shape (n_channels, height, width)."""
    assert input_shape is not None
    return row.reshape(-1, *input_shape[-2:])


def draw_image(
    ax: Axes,
    row: np.ndarray,
    input_shape: Sequence[int] | None,
    limits: tuple[float, float],
) -> AxesImage:
    """Draw one row as an image: in colour if it has three channels, else their mean.

    Pixels with a missing channel are blank.
    """
    low, high = limits
    image = split_channels(row, input_shape)
    ax.set(xticks=[], yticks=[])
    if len(image) != 3:
        return ax.imshow(image.mean(axis=0), cmap="gray", vmin=low, vmax=high)
    is_missing = np.isnan(image).any(axis=0)
    scaled = np.where(is_missing, 0, (image - low) / (high - low or 1)).clip(0, 1)
    opacity = [~is_missing] if is_missing.any() else []
    return ax.imshow(np.stack([*scaled, *opacity], axis=-1))


def resolve_feature_names(
    feature_names: ArrayLike | None, n_features: int
) -> list[str]:
    """Return the feature names as a list of str; by default x0, x1, ..."""
    if feature_names is None:
        return [f"x{j}" for j in range(n_features)]
    return [str(name) for name in np.asarray(feature_names)]


def feature_label_height(feature_names: ArrayLike | None, n_features: int) -> float:
    """Return the height below the panels that `label_features` needs, in inches."""
    if feature_names is None or n_features > MAX_NAMED_FEATURES:
        return 0.5
    return max(0.5, text_width(resolve_feature_names(feature_names, n_features)))


def label_features(ax: Axes, feature_names: ArrayLike | None, n_features: int) -> None:
    """Label the features on the x-axis, by name if there are names and not too many."""
    if feature_names is not None and n_features <= MAX_NAMED_FEATURES:
        names = resolve_feature_names(feature_names, n_features)
        ax.set_xticks(np.arange(n_features), names, rotation=90)
    else:
        from matplotlib.ticker import MaxNLocator

        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("feature")
