"""Tables with values that are not numbers: dates, words, objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import date, time, timedelta
from reprlib import repr as repr_
from typing import Any

import numpy as np
from scipy import sparse

# Types of dates and durations among objects.
_DATES = np.datetime64 | np.timedelta64 | date | time | timedelta


@contextmanager
def numeric(X: Any, name: str = "X") -> Iterator[None]:
    """Context in which a table is converted to numbers.

    Parameters
    ----------
    X : {array-like, sparse matrix, data frame} of shape (n_samples, n_features)
        As it was passed.
    name : str, default="X"
        What messages call it.

    Raises
    ------
    TypeError
        If it has dates or durations, which NumPy would convert to numbers of an
        arbitrary unit.
    ValueError
        If it is a masked array with masked values, whose mask NumPy would drop.
    TypeError, ValueError
        The error of the conversion, whose message names the first value that is not a
        number, and its column.
    """
    refuse_masked(X, name)
    refuse_dates(name, _labels(X, _is_temporal))
    try:
        yield
    except (TypeError, ValueError) as error:
        found = _first_word(X)
        if found is None:
            raise
        label, value = found
        if isinstance(value, _DATES):
            refuse_dates(name, [label])
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"{name} has a value that is not a number, {repr_(value)} in column "
            f"{label!r}: {error}. Encode words as numbers, for example by a "
            "OneHotEncoder, or name the column in categorical_features, or take all "
            "columns of words of a data frame by categorical_features='from_dtype'; "
            "use numpy.nan where a value is missing, or leave the column out."
        ) from error
    refuse_dates(name, _dated_objects(X))


def refuse_masked(X: Any, name: str) -> None:
    """Raise ValueError if a table is a masked array with masked values."""
    if _is_masked(X):
        raise ValueError(
            f"{name} is a masked array, whose masked values would count as if they "
            "were observed. Pass an array with numpy.nan in their place, such as "
            "numpy.ma.filled(array.astype(float), numpy.nan)."
        )


def refuse_dates(name: str, labels: list[Any]) -> None:
    """Raise TypeError if there are labels of columns with dates or durations."""
    if labels:
        raise TypeError(
            f"{name} has dates or durations{_listed(labels)}, which have no natural "
            "unit. Pass numbers instead, for example the days since a date, or the "
            "month and the weekday: of a pandas column, (c - c.min()).dt.days, "
            "c.dt.month and c.dt.dayofweek, of which the last two may be categorical "
            "features; of a duration, c.dt.total_seconds()."
        )


def _is_masked(X: Any) -> bool:
    """Whether an array, or a row in a list, has masked values."""
    rows = X if isinstance(X, list | tuple) else (X,)
    masked = np.ma.MaskedArray
    return any(isinstance(row, masked) and np.ma.is_masked(row) for row in rows)


def is_frame(X: Any) -> bool:
    """Whether X is a data frame of pandas or polars, or a table of Arrow."""
    return hasattr(X, "columns") and (hasattr(X, "dtypes") or _is_arrow(X))


def _is_arrow(X: Any) -> bool:
    return hasattr(X, "column_names")


def types_of(X: Any) -> Iterable[tuple[Any, Any]]:
    """Return labels and types of the columns, of an array ``...`` and its type.

    Lists, and other objects without a type, have none.
    """
    if is_frame(X):
        if _is_arrow(X):
            return [(label, values.dtype) for label, values in columns_of(X)]
        return zip(X.columns, X.dtypes, strict=True)
    return [(..., X.dtype)] if hasattr(X, "dtype") else []


def _labels(X: Any, holds: Callable[[Any], bool]) -> list[Any]:
    """Return the labels of the columns for whose type a condition holds.

    Many columns share one type, which is looked at once.
    """
    pairs = list(types_of(X))
    distinct = {id(dtype): dtype for _, dtype in pairs}
    found = {key for key, dtype in distinct.items() if holds(dtype)}
    return [label for label, dtype in pairs if id(dtype) in found]


def columns_of(X: Any) -> Iterator[tuple[Any, Any]]:
    """Iterate over labels and values of the columns of a data frame or an array.

    The labels of an array are positions. The values have a `dtype`. Each takes
    microseconds, which are many for many columns.
    """
    if not is_frame(X):
        yield from enumerate(X.T)
    elif hasattr(X, "iloc"):  # labels may repeat
        yield from ((label, X.iloc[:, i]) for i, label in enumerate(X.columns))
    elif _is_arrow(X):
        pairs = zip(X.column_names, X.columns, strict=True)
        yield from ((label, np.asarray(values)) for label, values in pairs)
    else:
        yield from ((label, X[label]) for label in X.columns)


def _is_temporal(dtype: Any) -> bool:
    """Whether a type is one of dates or durations, of NumPy, pandas or polars."""
    if hasattr(dtype, "is_temporal"):
        return bool(dtype.is_temporal())
    return getattr(dtype, "kind", None) in ("M", "m")


def _is_object(dtype: Any) -> bool:
    # Some types of polars equal NumPy's of objects.
    return isinstance(dtype, np.dtype) and dtype.kind == "O"


def _dated_objects(X: Any) -> list[Any]:
    """Return labels of columns of objects among which are dates or durations of NumPy.

    NumPy converts them to numbers, too. Lists are converted to an array.
    """
    if sparse.issparse(X):
        return []
    if not is_frame(X):
        values = X if hasattr(X, "dtype") else np.asarray(X)
        is_dated = _is_temporal(values.dtype) or _has_dated_object(values)
        return [...] if is_dated else []
    objects = set(_labels(X, _is_object))
    if not objects:
        return []
    pairs = ((k, values) for k, values in columns_of(X) if k in objects)
    return [label for label, values in pairs if _has_dated_object(values)]


def has_dates(column: Any) -> bool:
    """Whether a column has dates or durations, by its type or among its objects."""
    if _is_temporal(column.dtype):
        return True
    categories = getattr(column.dtype, "categories", None)  # a type of pandas
    if categories is not None and _is_temporal(getattr(categories, "dtype", None)):
        return True
    if not _is_object(column.dtype):
        return False
    # Those that stand for a missing value differ from themselves.
    return any(isinstance(value, _DATES) and value == value for value in column)


def _has_dated_object(values: Any) -> bool:
    if not _is_object(values.dtype):
        return False
    kinds = np.datetime64 | np.timedelta64
    return any(isinstance(value, kinds) for value in np.asarray(values).ravel())


def _first_word(X: Any) -> tuple[Any, Any] | None:
    """Return the label of a column and a value in it that is not a number, if any."""
    if not is_frame(X):
        try:
            X = np.asarray(X, dtype=object)
        except (TypeError, ValueError):  # it cannot be read at all
            return None
        if X.ndim != 2:
            return None
    for label, column in columns_of(X):
        is_object = column.dtype == object  # in which scikit-learn refuses pandas.NA
        for value in column:
            if not (_is_number(value) or (_is_na(value) and not is_object)):
                return label, value
    return None


def _is_number(value: Any) -> bool:
    """Whether NumPy converts a value to a number, or refuses it as a complex one."""
    if value is None or isinstance(value, complex):
        return True
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _is_na(value: Any) -> bool:
    """Whether a value is pandas.NA."""
    return type(value).__name__ == "NAType"


def _listed(labels: list[Any]) -> str:
    """Return the first labels, nothing for those of an array."""
    if labels == [...]:
        return ""
    shown = ", ".join(repr(label) for label in labels[:5])
    return f" in the column(s) {shown}" + (", ..." if len(labels) > 5 else "")
