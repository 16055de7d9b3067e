"""Display of training and validation losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from skae._estimators import find_autoencoder
from skae.inspection._arguments import (
    check_arguments,
    check_display,
    check_numbers,
    draws,
)
from skae.inspection._drawing import get_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class LossCurveDisplay:
    """Training and validation loss of each epoch.

    Each curve is a mean over rows. The mark is the epoch whose weights the estimator
    has: the best epoch with early stopping, else the last one.

    Parameters
    ----------
    loss_curve : array-like of shape (n_epochs,)
        Mean objective over the training rows in each epoch.
    validation_loss_curve : array-like of shape (n_epochs,), default=None
        Mean objective over the held-out rows after each epoch; NaN for an epoch without
        them.
    best_epoch : int, default=None
        Epoch whose weights were restored, in [0, n_epochs]; 0 for the initial weights.
        If None, no epoch is marked.
    estimator_name : str, default=None
        Title of the plot.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
        Axes of the plot.
    figure_ : matplotlib.figure.Figure
        Figure that contains the axes.
    lines_ : list of matplotlib.lines.Line2D
        The training curve and, if there is one, the validation curve.
    best_line_ : matplotlib.lines.Line2D or None
        Vertical line at the best epoch.

    See Also
    --------
    ComponentSelectionDisplay : Scores by the number of components.

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
    @check_arguments
    def from_estimator(
        cls,
        estimator: Any,
        *,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Plot the losses of a fitted estimator.

        Parameters
        ----------
        estimator : estimator
            A fitted autoencoder, or a fitted `Pipeline` or search that ends in one.
        name : str, default=None
            Title of the plot. If None, the name of the estimator's class.
        ax : matplotlib.axes.Axes, default=None
            Axes to draw into. If None, a new figure is created.
        **kwargs : dict
            Keyword arguments passed to `matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : LossCurveDisplay
            The display, drawn.
        """
        autoencoder = find_autoencoder(estimator)
        display = cls(
            autoencoder.loss_curve_,
            validation_loss_curve=autoencoder.validation_loss_curve_,
            best_epoch=autoencoder._trained.curves.best_epoch,
            estimator_name=name or type(autoencoder).__name__,
        )
        return display.plot(ax, **kwargs)

    @draws
    def plot(self, ax: Axes | None = None, **kwargs: Any) -> Self:
        """Plot the loss curves.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Axes to draw into. If None, a new figure is created.
        **kwargs : dict
            Keyword arguments passed to `matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : LossCurveDisplay
            This object.
        """
        curves = self._curves()
        self.ax_, self.figure_ = get_axes(ax)
        self.lines_ = []
        for label, curve in curves.items():
            epochs = 1 + np.arange(len(curve))
            marker = "." if np.isfinite(curve).sum() == 1 else ""
            style = {"marker": marker, "label": label, **kwargs}
            self.lines_ += self.ax_.plot(epochs, curve, **style)
        self.best_line_ = None
        if self.best_epoch is not None:
            label = f"weights of epoch {self.best_epoch}"
            self.best_line_ = self.ax_.axvline(
                self.best_epoch, color="0.5", linestyle="--", label=label
            )
        self.ax_.set(xlabel="epoch", ylabel="loss")
        self.ax_.set_title(self.estimator_name or "", wrap=True)
        self.ax_.legend()
        return self

    def _curves(self) -> dict[str, np.ndarray]:
        """Return the curves by name, after all attributes are validated."""
        check_display(self, "best_epoch", "estimator_name")
        training = check_numbers(
            "loss_curve",
            self.loss_curve,
            ("n_epochs",),
            allow_nonfinite=True,
            min_length=0,  # a fit may be interrupted in its first epoch
        )
        curves, n_epochs = {"training": training}, len(training)
        if self.validation_loss_curve is not None:
            curves["validation"] = check_numbers(
                "validation_loss_curve",
                self.validation_loss_curve,
                (n_epochs,),
                allow_nonfinite=True,
            )
        if self.best_epoch is not None and self.best_epoch > n_epochs:
            raise ValueError(
                f"best_epoch must be None or in [0, {n_epochs}], the number of epochs "
                f"in loss_curve, got {self.best_epoch}."
            )
        return curves
