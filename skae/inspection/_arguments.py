"""Validation of the arguments of displays, before anything is computed or drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from numbers import Integral, Real
from typing import Any, TypeVar, cast

import numpy as np

from skae._compat import (
    Interval,
    InvalidParameterError,
    check_matplotlib_support,
    is_pandas_na,
    validate_arguments,
)

Method = TypeVar("Method", bound=Callable[..., Any])

_COUNT = [Interval(Integral, 1, None, closed="left")]

# Constraints of the arguments that do not depend on the data, by name: a name means the
# same in all displays. Not listed are data, shapes, and what the estimators,
# `GridSearchCV` or matplotlib validate themselves.
CONSTRAINTS: dict[str, list[Any]] = {
    "best_epoch": [Interval(Integral, 0, None, closed="left"), None],
    "estimator_name": [str, None],
    "level": [Interval(Real, 0, 1, closed="neither")],
    "marks": ["boolean"],
    "max_components": _COUNT,
    "max_features": _COUNT,
    "metric": [str],
    "n_samples": _COUNT,
    "n_steps": _COUNT,
    "name": [str, None],
    "offset": [Interval(Real, None, None, closed="both"), None],
    "param": [str, None],
    "random_state": ["random_state"],
    "row": [Integral],
    "score_name": [str, None],
    "show_training": ["boolean"],
}


def check_arguments(method: Method) -> Method:
    """Decorate a method of a display that draws: validate its arguments when called.

    The arguments in `CONSTRAINTS` and `ax` are validated, also those that the method
    receives as `kwargs` and passes on. The method must not be called without
    matplotlib: the error names the method.
    """
    parameters = signature(method)
    caller = method.__qualname__

    @wraps(method)
    def checked(*args: Any, **kwargs: Any) -> Any:
        arguments = parameters.bind(*args, **kwargs).arguments
        arguments.update(arguments.pop("kwargs", {}))
        validate_arguments(CONSTRAINTS, arguments, caller)
        check_matplotlib_support(caller)
        _check_axes(arguments.get("ax"), caller)
        return method(*args, **kwargs)

    return cast(Method, checked)


def draws(plot: Method) -> Method:
    """Decorate `plot` of a display: `check_arguments`, and no figure after an error.

    A figure that `plot` has created is closed if drawing fails, for example because
    matplotlib rejects a keyword argument.
    """

    @wraps(plot)
    def closing(self: Any, ax: Any = None, *args: Any, **kwargs: Any) -> Any:
        earlier = getattr(self, "figure_", None)
        try:
            return plot(self, ax, *args, **kwargs)
        except BaseException:
            figure = getattr(self, "figure_", None)
            if ax is None and figure is not earlier:
                import matplotlib.pyplot as plt

                plt.close(figure)
            raise

    return check_arguments(cast(Method, closing))


def check_display(display: Any, *names: str) -> None:
    """Validate attributes of a display that are in `CONSTRAINTS`.

    Raises InvalidParameterError, a ValueError and a TypeError.
    """
    values = {name: getattr(display, name) for name in names}
    validate_arguments(CONSTRAINTS, values, type(display).__name__)


def check_numbers(
    name: str,
    values: Any,
    shape: Sequence[int | str],
    *,
    low: float = -np.inf,
    high: float = np.inf,
    allow_nonfinite: bool = False,
    min_length: int = 1,
) -> np.ndarray:
    """Return an array of floats of a shape, or raise ValueError.

    Parameters
    ----------
    name : str
        Name of the argument, for the error.
    values : array-like
        The argument.
    shape : sequence of int or str
        Length of each axis. The name of a length stands for any length >= `min_length`.
    low, high : float
        Least and largest value.
    allow_nonfinite : bool, default=False
        Whether there may be infinite values and NaN.
    min_length : int, default=1
        Least length of an axis with a named length.

    Returns
    -------
    array : ndarray of float
    """
    expected = _format_shape(shape)
    message = f"{name} must be an array of numbers of shape {expected}"
    try:
        kind = np.asarray(values).dtype.kind
        array = np.asarray(values, float) if kind in "biufO" else None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{message}, got {_shorten(values)}.") from error
    if array is None:
        raise ValueError(f"{message}, got {_shorten(values)}.")
    _check_shape(message, array.shape, shape, min_length)
    nonfinite = array[~np.isfinite(array)]
    if len(nonfinite) and not allow_nonfinite:
        raise ValueError(f"{name} must be finite, got {nonfinite[0]:g}.")
    outside = array[(array < low) | (array > high)]
    if len(outside):
        raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {outside[0]:g}.")
    return array


def check_feature_names(feature_names: Any, n_features: int) -> None:
    """Raise ValueError unless there are no names, or one for each feature."""
    if feature_names is not None:
        message = f"feature_names must be None or an array of shape ({n_features},)"
        _check_shape(message, np.shape(feature_names), (n_features,))


def check_percentiles(percentiles: Any) -> None:
    """Raise ValueError unless these are two numbers in [0, 100] in ascending order."""
    values = check_numbers("percentiles", percentiles, (2,), low=0, high=100)
    if values[0] > values[1]:
        raise ValueError(
            f"percentiles must be in ascending order, got {percentiles!r}."
        )


def check_counts(name: str, values: Any) -> list[int]:
    """Return distinct integers >= 1 as a list, or raise ValueError."""
    array = check_numbers(name, values, ("n_values",), low=1)
    if (array % 1 != 0).any() or len(np.unique(array)) < len(array):
        raise ValueError(
            f"{name} must be distinct integers >= 1, got {_shorten(values)}."
        )
    return array.astype(int).tolist()


def is_missing(y: np.ndarray) -> np.ndarray:
    """Return which values of a column are None, NaN or pandas.NA."""
    return np.array([v is None or is_pandas_na(v) or v != v for v in y], bool)


def unique_labels(name: str, y: np.ndarray) -> np.ndarray:
    """Return the sorted different values of a column without missing ones.

    Raises ValueError if they cannot be sorted.
    """
    try:
        return np.unique(y)
    except TypeError as error:
        kinds = sorted({type(v).__name__ for v in y})
        raise ValueError(
            f"{name} must have values of one kind, such as numbers or strings, got "
            f"{' and '.join(kinds)}."
        ) from error


def _check_axes(ax: Any, caller: str) -> None:
    """Raise InvalidParameterError unless `ax` is None or axes of a figure."""
    if ax is None:
        return
    from matplotlib.axes import Axes

    if not isinstance(ax, Axes) or ax.get_figure() is None:
        raise InvalidParameterError(
            f"The 'ax' parameter of {caller} must be one matplotlib.axes.Axes, which "
            f"belongs to a figure, or None. Got {_shorten(ax)} instead."
        )


def _check_shape(
    message: str,
    actual: tuple[int, ...],
    shape: Sequence[int | str],
    min_length: int = 1,
) -> None:
    """Raise ValueError, which begins with the message, if a shape is another one."""
    is_same = len(actual) == len(shape) and all(
        n >= min_length if isinstance(length, str) else n == length
        for n, length in zip(actual, shape, strict=True)
    )
    if not is_same:
        raise ValueError(f"{message}, got shape {actual}.")


def _format_shape(shape: Sequence[int | str]) -> str:
    """Return a shape as it is written in docstrings."""
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _shorten(value: Any) -> str:
    """Return the representation of a value, in one line of at most 100 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
