"""Tables with values that are not numbers: dates, words, objects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from reprlib import repr as repr_
from typing import Any

import numpy as np
from scipy import sparse


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
    TypeError, ValueError
        The error of the conversion, whose message names the first value that is not a
        number, and its column.
    """
    dates = [label for label, values in _columns(X) if _is_temporal(values)]
    if dates:
        raise TypeError(
            f"{name} has dates or durations{_listed(dates)}, which have no natural "
            "unit. Pass numbers instead, for example the days since a date, or the "
            "month and the weekday."
        )
    try:
        yield
    except (TypeError, ValueError) as error:
        found = _first_word(X)
        if found is None:
            raise
        label, value = found
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"{name} has a value that is not a number, {repr_(value)} in column "
            f"{label!r}: {error}. Encode words as numbers, for example by a "
            "OneHotEncoder, use numpy.nan where a value is missing, or leave the "
            "column out."
        ) from error


def _columns(X: Any) -> Iterator[tuple[Any, Any]]:
    """Iterate over labels and values of the columns, of an array over all at once.

    The values have a `dtype`.
    """
    if sparse.issparse(X):
        return
    if hasattr(X, "columns") and hasattr(X, "dtypes"):
        yield from zip(X.columns, _series(X), strict=True)
    elif hasattr(X, "dtype"):
        yield ..., X


def _series(frame: Any) -> Iterator[Any]:
    """Iterate over the columns of a data frame of pandas or polars."""
    if hasattr(frame, "iloc"):  # labels may repeat
        return (frame.iloc[:, i] for i in range(frame.shape[1]))
    return (frame[label] for label in frame.columns)


def _is_temporal(values: Any) -> bool:
    """Whether values are dates or durations, of NumPy, pandas, Arrow or polars."""
    dtype = values.dtype
    if hasattr(dtype, "is_temporal"):
        return bool(dtype.is_temporal())
    return getattr(dtype, "kind", None) in ("M", "m")


def _first_word(X: Any) -> tuple[Any, Any] | None:
    """Return the label of a column and a value in it that is not a number, if any."""
    if hasattr(X, "columns"):
        columns = _columns(X)
    else:
        try:
            table = np.asarray(X, dtype=object)
        except (TypeError, ValueError):  # it cannot be read at all
            return None
        columns = enumerate(table.T) if table.ndim == 2 else iter(())
    for label, column in columns:
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


def _listed(labels: list) -> str:
    """Return the first labels, nothing for those of an array."""
    if labels == [...]:
        return ""
    shown = ", ".join(repr(label) for label in labels[:5])
    return f" in the column(s) {shown}" + (", ..." if len(labels) > 5 else "")
