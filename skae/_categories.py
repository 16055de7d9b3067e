"""Tables with categorical features: which they are, and their one-hot columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from reprlib import repr as repr_
from typing import Any, NamedTuple

import numpy as np

from skae._compat import is_pandas_na, safe_indexing
from skae._numeric import columns_of, has_dates, is_frame, refuse_dates, types_of

# Largest number of categories of a feature. Each of them is a column of the network.
MAX_CATEGORIES = 4096

# What an error message of a wrong type says is allowed.
_ALLOWED = "categorical_features must be an array-like of bool, int or str, got: "


class Layout(NamedTuple):
    """The columns that encode the features of a table.

    A feature of numbers is one column. A categorical feature with K categories is a
    block of K consecutive columns, in the order of the features.

    Attributes
    ----------
    widths : tuple of int
        Number of columns of each feature.
    is_categorical : tuple of bool
        Which features are categorical.
    """

    widths: tuple[int, ...]
    is_categorical: tuple[bool, ...]

    @property
    def n_features(self) -> int:
        return len(self.widths)

    @property
    def n_columns(self) -> int:
        return sum(self.widths)

    @property
    def first(self) -> np.ndarray:
        """Position of the first column of each feature, int of shape (n_features,)."""
        return np.cumsum((0, *self.widths[:-1]))

    @property
    def feature(self) -> np.ndarray:
        """Position of the feature of each column, int of shape (n_columns,)."""
        return np.repeat(np.arange(self.n_features), self.widths)

    @property
    def is_one_hot(self) -> np.ndarray:
        """Which columns belong to categorical features, bool of shape (n_columns,)."""
        return np.repeat(np.array(self.is_categorical, dtype=bool), self.widths)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Iterate over the categorical features with the same number of categories.

        Yields
        ------
        features : ndarray of int of shape (n_blocks,)
        columns : ndarray of int of shape (n_blocks, n_categories)
        """
        widths, first = np.array(self.widths), self.first
        where = np.flatnonzero(self.is_categorical)
        for width in np.unique(widths[where]):
            features = where[widths[where] == width]
            yield features, first[features, None] + np.arange(width)

    def spread(self, values: Any) -> Any:
        """Return values of features, (..., n_features), for each column."""
        return values[..., self.feature]

    def summed(self, values: Any) -> Any:
        """Sum an array or a tensor of shape (..., n_columns) over each feature."""
        if isinstance(values, np.ndarray):
            return np.add.reduceat(values, self.first, axis=-1)
        feature = values.new_tensor(self.feature).long()
        total = values.new_zeros(*values.shape[:-1], self.n_features)
        return total.index_add(-1, feature, values)


def unknown_value(n_categories: int) -> float:
    r"""Return the entry of the columns of a category that no training row has.

    All K columns have it. The unit vectors of the known categories and this row are the
    vertices of a regular simplex: the distance of an unknown category to any other is
    that of two known ones,

    .. math:: (1 - c)^2 + (K - 1) c^2 = 2.
    """
    return (1 - (1 + n_categories) ** 0.5) / n_categories


@dataclass(frozen=True)
class Categories:
    """Categories of the features of a table, by which its rows are encoded.

    Attributes
    ----------
    levels : tuple
        For each categorical feature the tuple of its categories, in their order: str,
        bool, int or float. None for a feature of numbers.
    kinds : tuple of str
        For each feature what its column in a data frame was: ``"number"``,
        ``"string"``, ``"bool"``, ``"category"``, or ``"ordered"`` for ordered
        categories. Features of arrays and lists are ``"number"`` or ``"string"``.
    """

    levels: tuple[tuple[Any, ...] | None, ...]
    kinds: tuple[str, ...]

    @classmethod
    def of(
        cls,
        X: Any,
        is_categorical: np.ndarray,
        weight: np.ndarray | None,
        name: str = "X",
    ) -> Categories:
        """Find the categories of the rows with a positive weight.

        Parameters
        ----------
        X : ndarray or data frame of shape (n_samples, n_features)
        is_categorical : ndarray of bool of shape (n_features,)
        weight : ndarray of shape (n_samples,) or None
        name : str, default="X"
            What messages call X.

        Raises
        ------
        TypeError
            If a feature has dates, or categories of a type that cannot be stored.
        ValueError
            If a feature has infinite values, too many categories or, among rows with a
            positive weight, none.
        """
        levels: list[tuple[Any, ...] | None] = []
        kinds = []
        for (label, column), is_chosen in zip(
            columns_of(X), is_categorical, strict=True
        ):
            if not is_chosen:
                levels.append(None)
                kinds.append("number")
                continue
            values = _values(column, label, name)
            if weight is not None:
                values = [v for v, w in zip(values, weight, strict=True) if w > 0]
            found = _levels(values, column)
            _check_number(found, label, name)
            levels.append(found)
            kinds.append(_kind(column, found))
        return cls(tuple(levels), tuple(kinds))

    @property
    def layout(self) -> Layout:
        """Columns of the features."""
        widths = tuple(1 if levels is None else len(levels) for levels in self.levels)
        return Layout(widths, tuple(levels is not None for levels in self.levels))

    @property
    def is_categorical(self) -> np.ndarray:
        """Which features are categorical, bool of shape (n_features,)."""
        return np.array(self.layout.is_categorical)

    @property
    def are_numbers(self) -> bool:
        """Whether rows of categories and numbers are arrays of numbers."""
        return set(self.kinds) <= {"number"}

    def encode(self, X: Any, numbers: np.ndarray | None, name: str = "X") -> np.ndarray:
        """Return the columns that encode rows.

        Parameters
        ----------
        X : ndarray or data frame of shape (n_samples, n_features)
        numbers : ndarray of shape (n_samples, n_numbers) or None
            Validated columns of the features of numbers; None if there are none.
        name : str, default="X"
            What messages call X.

        Returns
        -------
        rows : ndarray of shape (n_samples, n_columns)
            In the floating-point type of `numbers`, else float64. NaN in all columns of
            a missing category, and `unknown_value` in those of one that no training row
            has.
        """
        n_rows = len(X) if numbers is None else len(numbers)
        dtype = np.float64 if numbers is None else numbers.dtype
        rows = np.zeros((n_rows, self.layout.n_columns), dtype=dtype)
        position, used = 0, 0
        for (label, column), levels in zip(columns_of(X), self.levels, strict=True):
            if levels is None:
                assert numbers is not None
                rows[:, position] = numbers[:, used]
                position, used = position + 1, used + 1
                continue
            block = rows[:, position : position + len(levels)]
            _fill_one_hot(block, _values(column, label, name), levels)
            position += len(levels)
        return rows

    def decode(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return the features of rows that are encoded, or reconstructed, by columns.

        Parameters
        ----------
        rows : ndarray of shape (n_samples, n_columns)

        Returns
        -------
        features : list of ndarray of shape (n_samples,)
            Numbers or, in arrays of objects, the categories with the largest entries.
        """
        features = []
        for start, levels in zip(self.layout.first, self.levels, strict=True):
            if levels is None:
                features.append(rows[:, start])
                continue
            block = rows[:, start : start + len(levels)]
            entries = np.empty(len(levels), dtype=object)
            entries[:] = levels
            features.append(entries[block.argmax(axis=1)])
        return features

    def decoded_array(self, rows: np.ndarray) -> np.ndarray:
        """Return what `decode` returns as one array, of numbers where all are."""
        return self.as_numbers(self.decoded_table(rows), rows.dtype)

    def decoded_table(self, rows: np.ndarray) -> np.ndarray:
        """Return what `decode` returns as one array of objects."""
        table = np.empty((len(rows), len(self.levels)), dtype=object)
        for j, values in enumerate(self.decode(rows)):
            table[:, j] = values
        return table

    def as_numbers(self, table: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Return a table of objects as numbers, unchanged if some would be others."""
        if not self.are_numbers:
            return table
        found = set(table[:, self.is_categorical].ravel().tolist())
        is_exact = all(_is_exact(value, dtype) for value in found)
        return table.astype(dtype) if is_exact else table

    def of_features(self, values: np.ndarray) -> np.ndarray:
        """Return entries of columns by features, NaN for categorical ones."""
        return np.where(self.is_categorical, np.nan, values[..., self.layout.first])

    def column_names(self, feature_names: np.ndarray | None) -> np.ndarray:
        """Return the name, or the position, of the feature of each column."""
        names = feature_names
        if names is None:
            names = np.arange(self.layout.n_features)
        return names[self.layout.feature]


def find_categorical(X: Any, categorical_features: Any) -> np.ndarray | None:
    """Return which features of a table are categorical.

    Parameters
    ----------
    X : {array-like, data frame} of shape (n_samples, n_features)
    categorical_features : "from_dtype", array-like or None
        Parameter of the estimators.

    Returns
    -------
    is_categorical : ndarray of bool of shape (n_features,) or None
        None if there are none.

    Raises
    ------
    ValueError
        If the parameter does not select features of this table. The messages are those
        of HistGradientBoostingClassifier.
    """
    if categorical_features is None:
        return None
    if isinstance(categorical_features, str):  # "from_dtype"
        if not is_frame(X):
            return None
        types = [dtype for _, dtype in types_of(X)]
        columns = [column for _, column in columns_of(X)]
        found = list(map(_is_categorical, types, columns))
        return np.array(found) if any(found) else None
    chosen = np.asarray(categorical_features)
    if chosen.size == 0:
        return None
    if chosen.dtype.kind not in "ibUO":
        raise ValueError(f"{_ALLOWED}{chosen.dtype.name}.")
    if chosen.dtype.kind == "O":
        kinds = {type(entry) for entry in chosen.ravel()}
        if kinds != {str}:
            names = sorted(kind.__name__ for kind in kinds)
            raise ValueError(f"{_ALLOWED}{', '.join(names)}.")
    labels = [label for label, _ in columns_of(X)]
    if chosen.dtype.kind in "UO":
        return _of_names(chosen, labels if is_frame(X) else None)
    return _of_positions(chosen, len(labels))


def _of_names(chosen: np.ndarray, names: list[Any] | None) -> np.ndarray:
    if names is None:
        raise ValueError(
            "categorical_features should be passed as an array of integers or as a "
            "boolean mask when the model is fitted on data without feature names."
        )
    for name in chosen.ravel().tolist():
        if name not in names:
            raise ValueError(
                f"categorical_features has an item value '{name}' which is not a valid "
                f"feature name of the training data. Observed feature names: {names}"
            )
    return np.isin(np.array(names, dtype=object), chosen.ravel().astype(object))


def _of_positions(chosen: np.ndarray, n_features: int) -> np.ndarray | None:
    if chosen.dtype.kind == "b":
        if chosen.shape != (n_features,):
            raise ValueError(
                "categorical_features set as a boolean mask must have shape "
                f"(n_features,), got: {chosen.shape}"
            )
        return chosen if chosen.any() else None
    if chosen.max() >= n_features or chosen.min() < 0:
        raise ValueError(
            "categorical_features set as integer indices must be in [0, n_features - 1]"
        )
    is_categorical = np.zeros(n_features, dtype=bool)
    is_categorical[chosen] = True
    return is_categorical


def numeric_part(X: Any, is_categorical: np.ndarray) -> Any:
    """Return the features of numbers of a table, None if there are none."""
    where = np.flatnonzero(~is_categorical)
    return safe_indexing(X, where, axis=1) if len(where) else None


# Columns


def _is_categorical(dtype: Any, column: Any) -> bool:
    """Whether a column of a data frame has categories, by its type.

    Types are compared by their names, which pandas, polars and Arrow have in common.
    Columns of objects are categorical if they have words or truth values.
    """
    name = str(dtype).lower()
    if name == "str" or name.startswith(
        ("bool", "categor", "dictionary", "enum", "large_string", "string", "utf8")
    ):
        return True
    if name != "object":
        return False
    return any(isinstance(value, str | bool | np.bool_) for value in column)


def column_values(column: Any) -> list[Any]:
    """Return the values of a column as objects of Python, None where one is missing."""
    values = column.to_list() if hasattr(column, "to_list") else column.tolist()
    values = [v.item() if isinstance(v, np.generic) else v for v in values]
    values = [float(v) if isinstance(v, np.longdouble) else v for v in values]
    return [None if _is_missing(v) else v for v in values]


def _values(column: Any, label: Any, name: str) -> list[Any]:
    """Return the values of a categorical column, see `column_values`.

    Parameters
    ----------
    column : ndarray or column of a data frame, of shape (n_samples,)
    label : object
        Its name or position, for error messages.
    name : str
        What messages call the table.
    """
    if has_dates(column):
        refuse_dates(name, [label])
    values = column_values(column)
    for value in values:
        if value is None or isinstance(value, str | bool):
            continue
        if not isinstance(value, int | float):
            raise TypeError(
                f"{name} has {repr_(value)} of type {type(value).__name__} in the "
                f"categorical column {label!r}. Categories must be strings, numbers or "
                "booleans: convert the column, for example by astype(str)."
            )
        if value in (float("inf"), -float("inf")):
            raise ValueError(
                f"Input {name} contains infinity in the categorical column {label!r}."
            )
    return values


def _is_exact(value: Any, dtype: np.dtype) -> bool:
    """Whether a category is a number that a floating-point type has."""
    if isinstance(value, int):
        return abs(value) <= 2 ** (np.finfo(dtype).nmant + 1)
    return isinstance(value, float) and float(dtype.type(value)) == value


def _is_missing(value: Any) -> bool:
    if value is None or is_pandas_na(value):
        return True
    is_different = value != value  # True of NaN; of an array, an array
    return isinstance(is_different, bool | np.bool_) and bool(is_different)


def _levels(values: list[Any], column: Any) -> tuple[Any, ...]:
    """Return the categories that occur, in the order of their type or of value."""
    # Of equal values, such as 1 and True, the one whose type has the first name, so
    # that the order of the rows has no influence.
    typed = {(type(value).__name__, value) for value in values if value is not None}
    found = dict.fromkeys(v for _, v in sorted(typed, key=lambda pair: pair[0]))
    if getattr(column.dtype, "ordered", False):
        order = {value: i for i, value in enumerate(column.dtype.categories)}
        return tuple(sorted(found, key=lambda value: order[value]))
    return tuple(sorted(found, key=lambda value: (isinstance(value, str), value)))


def _check_number(levels: tuple[Any, ...], label: Any, name: str) -> None:
    if not levels:
        raise ValueError(
            f"{name} has no observed value, among rows with a positive weight, in 1 "
            f"feature(s): {label}. Drop features without any value."
        )
    if len(levels) > MAX_CATEGORIES:
        raise ValueError(
            f"{name} has {len(levels)} categories in the column {label!r}, which is "
            f"categorical by categorical_features; at most {MAX_CATEGORIES} are "
            "possible. Leave the column out if it identifies rows, or join its rare "
            "categories."
        )


def _kind(column: Any, levels: tuple[Any, ...]) -> str:
    """Return the entry of `Categories.kinds` of a categorical column."""
    name = str(column.dtype).lower()
    if name.startswith(("categor", "dictionary", "enum")):
        is_ordered = getattr(column.dtype, "ordered", False)
        return "ordered" if is_ordered else "category"
    if all(isinstance(level, bool) for level in levels):
        return "bool" if not isinstance(column, np.ndarray) else "number"
    is_number = all(isinstance(level, Real) for level in levels)
    return "number" if is_number else "string"


def _fill_one_hot(
    block: np.ndarray, values: Sequence[Any], levels: tuple[Any, ...]
) -> None:
    """Set the columns of one categorical feature, which are zero."""
    position = {level: i for i, level in enumerate(levels)}
    position[None] = len(levels)  # a missing category
    n_known = len(levels)
    codes = np.array([position.get(value, n_known + 1) for value in values])
    known = np.flatnonzero(codes < n_known)
    block[known, codes[known]] = 1
    block[codes == n_known] = np.nan
    block[codes > n_known] = unknown_value(n_known)
