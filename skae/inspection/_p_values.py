"""Display of the p-values of an outlier detector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from skae._base import MatrixLike
from skae._estimators import find_autoencoder_and_input
from skae.inspection._arguments import (
    check_arguments,
    check_display,
    check_numbers,
    draws,
)
from skae.inspection._drawing import get_axes
from skae.outlier import AutoencoderOutlierDetector

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class PValueDisplay:
    """Histogram of p-values, with the threshold of a false discovery rate.

    The p-values of rows like the training rows are uniformly distributed, or larger,
    and those of outliers are small. The Benjamini-Hochberg procedure [1]_ chooses the
    threshold: the rows up to it are alarms, of which at most the fraction `level` is
    false on average.

    Parameters
    ----------
    p_values : array-like of shape (n_samples,)
        Values in [0, 1], as returned by `p_values`.
    level : float, default=0.1
        False discovery rate, in (0, 1).

    Attributes
    ----------
    threshold : float or None
        Largest p-value of an alarm; None if there is no alarm.
    n_alarms : int
        Number of p-values up to the threshold.
    ax_ : matplotlib.axes.Axes
        Axes of the plot.
    figure_ : matplotlib.figure.Figure
        Figure that contains the axes.

    See Also
    --------
    OutlierScoreDisplay : Histogram of scores.
    scipy.stats.false_discovery_control : Adjusted p-values, at most `level` for alarms.

    References
    ----------
    .. [1] Benjamini, Y., & Hochberg, Y. (1995). Controlling the false discovery rate: a
       practical and powerful approach to multiple testing. Journal of the Royal
       Statistical Society B, 57(1), 289-300.

    Examples
    --------
    >>> import numpy as np
    >>> from skae import AutoencoderOutlierDetector
    >>> from skae.inspection import PValueDisplay
    >>> X = np.random.default_rng(0).standard_normal((500, 3))
    >>> X_train, X_new = X[:400], X[400:]
    >>> X_new[:10] += 8
    >>> detector = AutoencoderOutlierDetector(random_state=0).fit(X_train)
    >>> PValueDisplay.from_estimator(detector, X_new).n_alarms
    10
    """

    def __init__(self, p_values: ArrayLike, *, level: float = 0.1):
        self.p_values = p_values
        self.level = level

    @property
    def threshold(self) -> float | None:
        """Largest p-value of an alarm."""
        ascending = np.sort(self._validated())
        allowed = self.level * np.arange(1, len(ascending) + 1) / len(ascending)
        # The tolerance is for rounding errors in products and quotients.
        alarms = np.flatnonzero(ascending <= allowed * (1 + 1e-12))
        return float(ascending[alarms[-1]]) if len(alarms) else None

    @property
    def n_alarms(self) -> int:
        """Number of p-values up to the threshold."""
        threshold = self.threshold
        if threshold is None:
            return 0
        return int(np.sum(self._validated() <= threshold))

    def _validated(self) -> np.ndarray:
        """Return the p-values, after all attributes are validated."""
        check_display(self, "level")
        return check_numbers("p_values", self.p_values, ("n_samples",), low=0, high=1)

    @classmethod
    @check_arguments
    def from_estimator(
        cls,
        estimator: Any,
        X: MatrixLike,
        *,
        level: float = 0.1,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Compute the p-values of X and plot them.

        Parameters
        ----------
        estimator : estimator
            A fitted `AutoencoderOutlierDetector`, or a fitted `Pipeline` or search
            that ends in one.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows that were not used in training.
        level : float, default=0.1
            False discovery rate, in (0, 1).
        ax : matplotlib.axes.Axes, default=None
            Axes to draw into. If None, a new figure is created.
        **kwargs : dict
            Keyword arguments passed to `matplotlib.axes.Axes.hist`.

        Returns
        -------
        display : PValueDisplay

        Raises
        ------
        ValueError
            If `level` is not in (0, 1).
        """
        detector, X, _ = find_autoencoder_and_input(
            estimator, X, AutoencoderOutlierDetector
        )
        return cls(detector.p_values(X), level=level).plot(ax, **kwargs)

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
        display : PValueDisplay
            This object.
        """
        p_values, threshold = self._validated(), self.threshold
        self.ax_, self.figure_ = get_axes(ax)
        style = {"bins": 40, "range": (0, 1), "color": "C0", **kwargs}
        counts, _, _ = self.ax_.hist(p_values, **style)
        self.ax_.axhline(
            len(p_values) / len(counts),
            color="0.5",
            linestyle=":",
            label="uniform distribution",
        )
        if threshold is not None:
            self.ax_.axvline(
                threshold,
                color="C3",
                linestyle="--",
                label=f"threshold, {threshold:.3g}",
            )
        self.ax_.set(
            xlabel="p-value",
            ylabel="rows",
            title=f"{self.n_alarms} alarms at a false discovery rate of {self.level:g}",
        )
        self.ax_.legend()
        return self
