"""Display of codes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.decomposition import PCA
from sklearn.utils.validation import column_or_1d

from skae._base import MatrixLike
from skae._compat import num_samples
from skae._estimators import (
    find_autoencoder,
    find_autoencoder_and_input,
    to_dense,
)
from skae.inspection._arguments import (
    check_arguments,
    check_numbers,
    draws,
    is_missing,
    unique_labels,
)
from skae.inspection._drawing import get_axes, text_width
from skae.transformer import AutoencoderTransformer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Largest number of points of one colour that are drawn one by one.
MAX_POINTS = 5_000

# Largest number of different numbers in y that are taken as classes.
MAX_CLASSES = 20


class LatentSpaceDisplay:
    """Scatter plot of codes.

    Codes of two components are drawn as points. Codes of more components are projected
    onto their first two principal axes. A code of one component is drawn as a
    histogram. Without `y`, more than 5,000 points are drawn as a density, in hexagonal
    bins.

    Parameters
    ----------
    Z : array-like of shape (n_samples, n_components)
        Codes. Rows with a value that is missing or infinite are not drawn.
    y : array-like of shape (n_samples,), default=None
        Values that determine the colours. More than 20 different numbers are mapped to
        a continuous colormap; otherwise each value is a class with its own colour.
        Points with a missing value are grey.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        Axes of the plot.
    figure_ : matplotlib.figure.Figure
        Figure that contains the axes.

    See Also
    --------
    ComponentTraversalDisplay : Reconstructions of varied codes.

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
    @check_arguments
    def from_estimator(
        cls,
        estimator: Any,
        X: MatrixLike,
        y: ArrayLike | None = None,
        *,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Encode X and plot the codes.

        Parameters
        ----------
        estimator : estimator
            A fitted `AutoencoderTransformer`, or a fitted `Pipeline` or search that
            ends in one.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows to encode.
        y : array-like of shape (n_samples,), default=None
            Values that determine the colours, see `LatentSpaceDisplay`.
        ax : matplotlib.axes.Axes, default=None
            Axes to draw into. If None, a new figure is created.
        **kwargs : dict
            Keyword arguments passed to `matplotlib.axes.Axes.scatter`, `hexbin` or
            `hist`, depending on the kind of plot.

        Returns
        -------
        display : LatentSpaceDisplay
            The display, drawn.
        """
        autoencoder: Any = find_autoencoder(estimator, AutoencoderTransformer)
        _colour_groups(y, num_samples(X))
        X = find_autoencoder_and_input(estimator, X).X
        Z = to_dense(autoencoder.transform(X))
        return cls(Z, y).plot(ax, **kwargs)

    @draws
    def plot(self, ax: Axes | None = None, **kwargs: Any) -> Self:
        """Plot the codes.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Axes to draw into. If None, a new figure is created.
        **kwargs : dict
            Keyword arguments passed to `matplotlib.axes.Axes.scatter`, `hexbin` or
            `hist`, depending on the kind of plot.

        Returns
        -------
        display : LatentSpaceDisplay
            This object.
        """
        Z, groups, values = self._validated()
        labels = [group.label for group in groups if group.label is not None]
        min_size = (1.5 + text_width(labels), 1 + 0.22 * len(labels))
        self.ax_, self.figure_ = get_axes(ax, min_size=min_size)
        if Z.shape[1] == 1:
            # A histogram cannot show a continuous y.
            self._plot_histogram(Z[:, 0], groups if values is None else [], kwargs)
            return self
        labels = ["first component", "second component"]
        if Z.shape[1] > 2:
            # A single row has no principal axes, and is the mean of the rows.
            one = len(Z) == 1
            Z = np.zeros((1, 2)) if one else PCA(2, svd_solver="full").fit_transform(Z)
            labels = [f"{i} principal axis of the code" for i in ("1st", "2nd")]
        self.ax_.set(xlabel=labels[0], ylabel=labels[1])
        if self.y is None and len(Z) > MAX_POINTS:
            style = {"gridsize": 60, "bins": "log", "mincnt": 1, **kwargs}
            self.ax_.hexbin(*Z.T, **style)
            return self
        # The area covered by all points is about the same for any number of points.
        style = {"s": float(np.clip(20_000 / len(Z), 2, 20)), "alpha": 0.8, **kwargs}
        for group in groups:
            own = {"label": group.label, "color": group.color, **style}
            self.ax_.scatter(*Z[group.mask].T, **own)
        if values is not None:
            observed = ~np.isnan(values)
            first, second = Z[observed].T
            own = {"c": values[observed], **style}
            points = self.ax_.scatter(first, second, **own)
            self.figure_.colorbar(points, ax=self.ax_)
        if any(group.label for group in groups):
            size = style["s"]
            is_known = isinstance(size, (int, float)) and size > 0
            self.ax_.legend(markerscale=max(1, 4 / math.sqrt(size)) if is_known else 1)
        return self

    def _validated(self) -> tuple[np.ndarray, list[_Group], np.ndarray | None]:
        """Return the codes to draw, their groups, and values for a colormap or None."""
        Z = check_numbers(
            "Z",
            self.Z,
            ("n_samples", "n_components"),
            allow_nonfinite=True,
        )
        groups, values = _colour_groups(self.y, len(Z))
        finite = np.isfinite(Z).all(axis=1)
        if not finite.any():
            raise ValueError("Z must have a row of finite values, got none.")
        groups = [group._replace(mask=group.mask[finite]) for group in groups]
        return Z[finite], groups, None if values is None else values[finite]

    def _plot_histogram(
        self, z: np.ndarray, groups: list[_Group], kwargs: dict[str, Any]
    ) -> None:
        """Plot a histogram of a code of one component."""
        style = {"bins": np.histogram_bin_edges(z, 40), "alpha": 0.6, **kwargs}
        for group in groups or [_Group(np.ones(len(z), bool), "C0", None)]:
            own = {"color": group.color, "label": group.label, **style}
            self.ax_.hist(z[group.mask], **own)
        self.ax_.set(xlabel="component", ylabel="rows")
        if any(group.label for group in groups):
            self.ax_.legend()


class _Group(NamedTuple):
    """Points that are drawn in one colour.

    Attributes
    ----------
    mask : ndarray of bool of shape (n_samples,)
        True for the points of the group.
    color : matplotlib color
        Their colour.
    label : str or None
        Label in the legend.
    """

    mask: np.ndarray
    color: Any
    label: str | None


def _colour_groups(
    y: ArrayLike | None, n_rows: int
) -> tuple[list[_Group], np.ndarray | None]:
    """Return groups of one colour each, and values for a colormap or None.

    Raises ValueError if y is invalid.
    """
    if y is None:
        return [_Group(np.ones(n_rows, bool), "C0", None)], None
    labels: np.ndarray = column_or_1d(y)
    if len(labels) != n_rows:
        raise ValueError(
            f"y must have a value for each of the {n_rows} rows, got {len(labels)}."
        )
    is_number = labels.dtype.kind in "fiub"
    missing = is_missing(labels)
    present = unique_labels("y", labels[~missing])
    groups = [_Group(missing, "0.7", "missing")] if missing.any() else []
    if is_number and len(present) > MAX_CLASSES:
        return groups, labels.astype(float)
    for i, value in enumerate(present):
        mask = np.zeros(n_rows, bool)
        mask[~missing] = labels[~missing] == value  # pandas.NA cannot be compared
        groups.append(_Group(mask, f"C{i}", str(value)))
    return groups, None
