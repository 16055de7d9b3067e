"""Tables with their missing entries filled in, of the kind in which they came."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from skae._rows import Table


def missing_entries(X: Table) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of the missing entries, in ascending order of the rows.

    Parameters
    ----------
    X : ndarray or CSR matrix of shape (n_samples, n_features)
    """
    if not sparse.issparse(X):
        rows, columns = np.nonzero(np.isnan(X))
        return rows, columns
    is_missing = np.isnan(X.data)
    rows = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
    return rows[is_missing], X.indices[is_missing]


def filled(
    given: Any,
    X: Table,
    where: tuple[np.ndarray, np.ndarray],
    values: np.ndarray,
    is_categorical: np.ndarray,
) -> Any:
    """Return a copy of a table with its missing entries replaced.

    Parameters
    ----------
    given : array-like, data frame or sparse matrix of shape (n_samples, n_features)
        Table as the user passed it.
    X : ndarray or CSR matrix of shape (n_samples, n_features)
        The same as floating-point numbers, or as numbers and categories.
    where : tuple of ndarray of int
        Result of `missing_entries` for X.
    values : ndarray of shape (n_missing,)
        In the type of X.
    is_categorical : ndarray of bool of shape (n_features,)

    Returns
    -------
    filled : data frame, CSR matrix or ndarray
        Of a pandas or polars frame, a frame with the same columns and index; columns
        without a missing entry are unchanged, the others keep their type if it is a
        floating-point one or has categories, and become float64 otherwise. Of a sparse
        matrix, a CSR matrix. Of anything else, an array in the type of `X`.
    """
    if sparse.issparse(X) and not hasattr(given, "isetitem"):
        result = X.copy()
        result.data[np.isnan(X.data)] = values
        return result
    if hasattr(given, "isetitem"):
        return _filled_pandas(given, where, values, is_categorical)
    if hasattr(given, "with_columns"):
        return _filled_polars(given, where, values, is_categorical)
    result = X.copy()
    result[where] = values
    return result


def _filled_pandas(
    frame: Any,
    where: tuple[np.ndarray, np.ndarray],
    values: np.ndarray,
    is_categorical: np.ndarray,
) -> Any:
    result = frame.copy()
    rows, columns = where
    for j in np.unique(columns):
        column = frame.iloc[:, j].copy()
        sparse_type = column.dtype if hasattr(column, "sparse") else None
        if sparse_type is not None:  # of which pandas cannot set entries
            column = column.sparse.to_dense()
        is_here = columns == j
        found: Any = values[is_here]
        if is_categorical[j]:
            found = found.tolist()
            column = _pandas_column_for(column, found)
        else:
            if getattr(column.dtype, "kind", "O") != "f":
                is_plain = isinstance(column.dtype, np.dtype)
                column = column.astype("float64" if is_plain else "Float64")
            found = found.astype(getattr(column.dtype, "numpy_dtype", column.dtype))
        column.iloc[rows[is_here]] = found
        if sparse_type is not None:
            column = column.astype(sparse_type)
        result.isetitem(j, column)
    return result


def _pandas_column_for(column: Any, categories: list[Any]) -> Any:
    """Return a column of a type that can have these categories."""
    if hasattr(column, "cat"):
        known = set(column.cat.categories)
        return column.cat.add_categories(
            [level for level in dict.fromkeys(categories) if level not in known]
        )
    is_number = column.dtype.kind in "iuf"
    if is_number and any(isinstance(level, str | bool) for level in categories):
        return column.astype(object)  # of numbers, for example if all are NaN
    return column


def _filled_polars(
    frame: Any,
    where: tuple[np.ndarray, np.ndarray],
    values: np.ndarray,
    is_categorical: np.ndarray,
) -> Any:
    rows, columns = where
    replaced = []
    for j in np.unique(columns):
        column = frame.to_series(int(j))
        is_here = columns == j
        found = values[is_here].tolist()
        if is_categorical[j]:
            replaced.append(_polars_column_with(column, rows[is_here].tolist(), found))
            continue
        column = column.clone() if column.dtype.is_float() else column.cast(float)
        replaced.append(column.scatter(rows[is_here], found))
    return frame.with_columns(replaced)


def _polars_column_with(column: Any, rows: list[Any], categories: list[Any]) -> Any:
    """Return a column with these categories in some rows."""
    dtype = column.dtype
    if column.null_count() == len(column):
        dtype = None  # it says nothing about the categories
    elif hasattr(dtype, "categories") and hasattr(dtype.categories, "to_list"):  # Enum
        known = dtype.categories.to_list()
        dtype = type(dtype)(list(dict.fromkeys((*known, *categories))))
    entries = column.to_list()
    for row, category in zip(rows, categories, strict=True):
        entries[row] = category
    return type(column)(column.name, entries, dtype=dtype)
