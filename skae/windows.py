"""Windows of time series, for estimators that take rows.

`SlidingWindows` is a transformer for pipelines. `sliding_windows` is its function, and
`point_scores` turns one score per window into one per point of the series.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags, check_array
from sklearn.utils.validation import (
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from skae._compat import (
    Interval,
    check_feature_names_in,
    requests_frame,
    validate_arguments,
    validate_parameters,
    wrap_output,
)

__all__ = ["SlidingWindows", "point_scores", "sliding_windows"]

_SIZES: dict[str, list[Any]] = {
    "width": [Interval(Integral, 1, None, closed="left")],
    "step": [Interval(Integral, 1, None, closed="left")],
}


def sliding_windows(X: ArrayLike, width: int, step: int = 1) -> np.ndarray:
    """Return the windows of a series as a view, without copying it.

    Parameters
    ----------
    X : array-like of shape (n_points,) or (n_points, n_channels)
        The series, one row for each point in time.
    width : int
        Number of points in a window, from 1 to ``n_points``.
    step : int, default=1
        Number of points from the start of a window to the start of the next one, >= 1.

    Returns
    -------
    windows : ndarray of shape (n_windows, width) or (n_windows, n_channels, width)
        Window i begins at point ``i * step``. There are
        ``(n_points - width) // step + 1`` windows, so that up to ``step - 1`` points
        at the end are in none. It is read-only: an entry of the series is one of
        several windows.

    Raises
    ------
    ValueError
        If X does not have one or two dimensions, is empty, or if `width` or `step` is
        out of range.

    See Also
    --------
    SlidingWindows : The same as a transformer, with one row per window.
    point_scores : Scores of points from scores of windows.

    Examples
    --------
    >>> import numpy as np
    >>> from skae.windows import sliding_windows
    >>> sliding_windows(np.arange(6), width=3, step=2)
    array([[0, 1, 2],
           [2, 3, 4]])

    A window is anomalous if one of its points is:

    >>> is_fault = np.array([False, False, False, True, False, False])
    >>> sliding_windows(is_fault, width=3).any(axis=1)
    array([False,  True,  True,  True])
    """
    validate_arguments(_SIZES, {"width": width, "step": step}, "sliding_windows")
    X = np.asarray(X)
    if X.ndim not in (1, 2):
        raise ValueError(
            "X must have the shape (n_points,) or (n_points, n_channels), got an array "
            f"of shape {X.shape}."
        )
    _check_fits(width, len(X))
    return sliding_window_view(X, width, axis=0)[::step]


def point_scores(
    window_scores: ArrayLike, n_points: int, width: int, step: int = 1
) -> np.ndarray:
    """Return the mean score of the windows that contain each point.

    Parameters
    ----------
    window_scores : array-like of shape (n_windows,)
        A score of each window, as of ``score_samples`` or ``decision_function``. NaN
        does not count.
    n_points : int
        Number of points of the series, >= `width`.
    width : int
        Number of points in a window, >= 1.
    step : int, default=1
        Number of points from the start of a window to the start of the next one, >= 1.

    Returns
    -------
    scores : ndarray of shape (n_points,)
        In float64. NaN for a point that is in no window: up to ``step - 1`` points at
        the end, and those between windows if `step` exceeds `width`.

    Raises
    ------
    ValueError
        If a number is out of range, or `window_scores` does not have
        ``(n_points - width) // step + 1`` entries.

    See Also
    --------
    sliding_windows : Windows of a series.
    SlidingWindows : A transformer, whose `inverse_transform` does the same for whole
        windows.

    Notes
    -----
    A point near an end of the series is in fewer windows; the first and the last one
    are in a single window each.

    Examples
    --------
    >>> from skae.windows import point_scores
    >>> point_scores([0.0, -2.0, -4.0], n_points=5, width=3)
    array([ 0., -1., -2., -3., -4.])
    """
    validate_arguments(
        {**_SIZES, "n_points": _SIZES["width"]},
        {"n_points": n_points, "width": width, "step": step},
        "point_scores",
    )
    _check_fits(width, n_points)
    scores = column_or_1d(window_scores, dtype=np.float64)
    n_windows = (n_points - width) // step + 1
    if len(scores) != n_windows:
        raise ValueError(
            f"window_scores must have {n_windows} entries for n_points={n_points}, "
            f"width={width} and step={step}, got {len(scores)}."
        )
    windows = np.broadcast_to(scores[:, None, None], (n_windows, 1, width))
    return _mean_over_windows(windows, n_points, step)[:, 0]


class SlidingWindows(TransformerMixin, BaseEstimator):
    """Turn a series into rows, one for each window.

    It is the first step of a pipeline that detects unusual stretches of a series, or
    encodes them. It has fewer rows than the series has points, see Notes.

    Parameters
    ----------
    width : int
        Number of points in a window, >= 1.
    step : int, default=1
        Number of points from the start of a window to the start of the next one, >= 1.

    Attributes
    ----------
    n_features_in_ : int
        Number of channels of the series seen in `fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the channels. Defined only if X had names that are all strings.

    See Also
    --------
    sliding_windows : The same as a function, without copies.
    point_scores : Scores of points from scores of windows.
    AutoencoderOutlierDetector : Detects unusual windows.

    Notes
    -----
    A row holds the channels one after another, each with its points in the order of
    time. This is the layout of a network with convolutions: its `input_shape` is
    ``(width,)`` for one channel and ``(n_channels, 1, width)`` for several.

    The windows of a series with one channel are a read-only view of it; those of
    several channels are copied.

    NaN is a missing entry and remains one. Windows are counted in points, so the points
    must be equally spaced in time: ``frame.asfreq("30min")`` of pandas inserts the
    missing ones as NaN.

    In a pipeline, points go in and windows come out: ``score_samples``, ``predict`` and
    ``fit_predict`` have one entry per window, and `point_scores` turns them into one
    per point. Arguments of `fit` and of scorers with one entry per point, such as `y`
    or `sample_weight`, do not fit the windows. For these, as for cross-validation, make
    the windows first.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.pipeline import make_pipeline
    >>> from skae import AutoencoderOutlierDetector
    >>> from skae.windows import SlidingWindows, point_scores
    >>> series = np.sin(np.arange(1000) / 4)
    >>> series[500:510] = 0  # a sensor that stops
    >>> detector = make_pipeline(
    ...     SlidingWindows(25), AutoencoderOutlierDetector(random_state=0)
    ... ).fit(series)
    >>> window_scores = detector.score_samples(series)
    >>> window_scores.shape
    (976,)
    >>> scores = point_scores(window_scores, len(series), width=25)
    >>> bool(500 <= np.argmin(scores) < 510)
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = _SIZES

    def __init__(self, width: int, step: int = 1):
        self.width = width
        self.step = step

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def fit(self, X: ArrayLike, y: Any = None) -> Self:
        """Check the series and store the number and the names of its channels.

        Parameters
        ----------
        X : array-like or data frame of shape (n_points,) or (n_points, n_channels)
            The series, with at least `width` points. NaN is a missing entry.
        y : None
            Ignored.

        Returns
        -------
        self : object
            The fitted transformer.

        Raises
        ------
        ValueError
            If a parameter or X is invalid, or X has fewer than `width` points.
        """
        validate_parameters(self)
        _check_fits(self.width, len(self._checked(X, reset=True)))
        return self

    def transform(self, X: ArrayLike) -> np.ndarray:
        """Return the windows of a series.

        Parameters
        ----------
        X : array-like or data frame of shape (n_points,) or (n_points, n_channels)
            A series with the channels of that in `fit`, and at least `width` points.

        Returns
        -------
        windows : array or data frame of shape (n_windows, n_channels * width)
            See `sliding_windows` for their number. If `set_output` asks for a pandas
            frame and X is one, each row has the index of the last point of its window.

        Raises
        ------
        ValueError
            If X is invalid or has fewer than `width` points.
        """
        check_is_fitted(self)
        points = self._checked(X, reset=False)
        _check_fits(self.width, len(points))
        windows = sliding_windows(points, self.width, self.step)
        windows = windows.reshape(len(windows), -1)
        if requests_frame(self) and hasattr(X, "iloc"):
            # scikit-learn would give the rows the index of X, which is longer.
            last = X.iloc[self.width - 1 :: self.step]
            return wrap_output(self, windows, last, self.get_feature_names_out())
        return windows

    def inverse_transform(self, X: ArrayLike) -> np.ndarray:
        """Return the series of which each point is the mean over its windows.

        For reconstructions of windows this is the series that the network expects, and
        for `feature_contributions` the contribution of each channel at each point.

        Parameters
        ----------
        X : array-like or data frame of shape (n_windows, n_channels * width)
            A row for each window, in the layout of `transform`.

        Returns
        -------
        series : ndarray of shape (n_points, n_channels)
            ``(n_windows - 1) * step + width`` points. A missing entry of a window
            does not count. NaN where no window has an entry.

        Raises
        ------
        ValueError
            If X does not have ``n_channels * width`` columns.
        """
        check_is_fitted(self)
        windows = check_array(
            X, dtype=[np.float64, np.float32], ensure_all_finite="allow-nan"
        )
        n_entries = self.n_features_in_ * self.width
        if windows.shape[1] != n_entries:
            raise ValueError(
                f"X must have {n_entries} columns, n_features_in_="
                f"{self.n_features_in_} times width={self.width}, got "
                f"{windows.shape[1]}."
            )
        n_points = (len(windows) - 1) * self.step + self.width
        windows = windows.reshape(len(windows), -1, self.width)
        return _mean_over_windows(windows, n_points, self.step)

    def get_feature_names_out(
        self, input_features: ArrayLike | None = None
    ) -> np.ndarray:
        """Return names of the columns: the channel and the time before the last point.

        Parameters
        ----------
        input_features : array-like of str or None, default=None
            Names of the channels. None means `feature_names_in_`, or x0, x1, ... if X
            had no names in `fit`.

        Returns
        -------
        names : ndarray of shape (n_channels * width,) of str objects
            For example, ``load_t-2``, ``load_t-1`` and ``load_t`` for a width of 3.
        """
        check_is_fitted(self)
        channels = check_feature_names_in(self, input_features)
        times = [f"t-{lag}" if lag else "t" for lag in range(self.width - 1, -1, -1)]
        names = [f"{channel}_{time}" for channel in channels for time in times]
        return np.array(names, dtype=object)

    def _checked(self, X: Any, *, reset: bool) -> np.ndarray:
        """Return a series as an array of shape (n_points, n_channels)."""
        return validate_data(
            self,
            _as_columns(X),
            reset=reset,
            dtype=[np.float64, np.float32],
            ensure_all_finite="allow-nan",
        )


def _as_columns(X: Any) -> Any:
    """Return a series of one dimension with a second one, others as they are."""
    if not hasattr(X, "shape"):
        X = np.asarray(X)
    if len(X.shape) != 1:
        return X
    if isinstance(getattr(X, "name", None), str) and hasattr(X, "to_frame"):
        return X.to_frame()  # the column keeps the name of the series
    return np.asarray(X)[:, None]


def _check_fits(width: int, n_points: int) -> None:
    """Raise an error if a series is shorter than a window."""
    if width > n_points:
        raise ValueError(
            f"width={width} must be at most the number of points of the series, got "
            f"n_samples={n_points}."
        )


def _mean_over_windows(windows: np.ndarray, n_points: int, step: int) -> np.ndarray:
    """Return the mean of the observed entries of all windows at each point.

    Parameters
    ----------
    windows : ndarray of shape (n_windows, n_channels, width)
    n_points, step : int

    Returns
    -------
    means : ndarray of shape (n_points, n_channels)
        NaN where there is no entry.
    """
    n_windows, n_channels, width = windows.shape
    # Sums of one point of all windows at a time. Differences of cumulative sums would
    # be NaN after an infinite score.
    sums = np.zeros((n_points, n_channels))
    counts = np.zeros((n_points, n_channels))
    for start in range(width):
        entries = windows[:, :, start]
        where = slice(start, start + (n_windows - 1) * step + 1, step)
        is_observed = ~np.isnan(entries)
        sums[where] += np.where(is_observed, entries, 0.0)
        counts[where] += is_observed
    means = np.full_like(sums, np.nan)
    return np.divide(sums, counts, out=means, where=counts > 0)
