"""Validation of tables: training rows, rows to predict, and tables in partitions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_array, validate_data

from skae._categories import Categories, column_values, find_categorical, numeric_part
from skae._compat import check_sample_weight, num_samples
from skae._job import Trained
from skae._numeric import columns_of, is_frame, numeric, refuse_masked
from skae._partitions import Partitions
from skae._processor import threads_for
from skae._rows import Rows, Table, canonical_form, canonical_rows, empty_rows
from skae._sources import is_partitioned
from skae._streamed import load_small, stream_rows
from skae.engine.processes import current_processes
from skae.networks import NETWORKS, are_sizes

# An instance of `BaseAutoencoder`, whose module imports this one.
Estimator: TypeAlias = Any

# Largest number of channels of an image: red, green, blue and opacity.
MAX_IMAGE_CHANNELS = 4

# Arguments of `validate_data` in all methods.
_X_SETTINGS: dict[str, Any] = {
    "accept_sparse": "csr",
    "dtype": [np.float64, np.float32],
    "ensure_all_finite": "allow-nan",
}

# Types of arrays that validation returns unchanged.
_PLAIN_TYPES = (np.dtype(np.float64), np.dtype(np.float32))

# Smallest and largest positive weight: sums of weights times squares do not overflow.
MIN_WEIGHT, MAX_WEIGHT = 1e-100, 1e100


def check_X(estimator: Estimator, X: Any) -> Table:
    """Validate rows for a fitted estimator; return a float array or a CSR matrix."""
    with np.errstate(over="ignore", invalid="ignore"):  # in the sum of extreme values
        categories = estimator._trained.categories
        if categories is None and _is_plain_array(estimator, X):
            return X
        check_in_memory(estimator, X)
        _check_dimensions(estimator, X)
        if categories is not None:
            X = _check_array_of_columns(estimator, X)
            validate_data(estimator, X, reset=False, skip_check_array=True)
            return _encoded(estimator, X, categories)
        with numeric(X):
            X = validate_data(estimator, X, reset=False, **_X_SETTINGS)
    return _without_duplicates(X)


def check_scored_rows(
    estimator: Estimator, X: Any, sample_weight: ArrayLike | None
) -> Rows:
    """Validate weighted rows for a fitted estimator; return them in canonical form.

    Raises
    ------
    TypeError, ValueError
        As in `fit`, if the data are invalid.
    """
    X = check_X(estimator, X)
    rows = canonical_rows(X, check_weight(sample_weight, X))
    if len(rows) == 0:
        raise ValueError("X has no observed value among rows with a positive weight.")
    return rows


def is_collection(estimator: Estimator, X: Any) -> bool:
    """Whether X is a table in partitions, and not a list of images.

    Images are expected by networks that depend on the order of the columns, where
    `input_shape` is not the shape of a row of X.
    """
    if not is_partitioned(X):
        return False
    if not isinstance(X, Sequence):
        return True
    network, input_shape = estimator.network, estimator.input_shape
    network = NETWORKS.get(network) if isinstance(network, str) else network
    if not getattr(network, "depends_on_order", False):
        return True
    is_given = isinstance(input_shape, list | tuple) and are_sizes(input_shape)
    return is_given and math.prod(input_shape) == X[0].shape[1]


def check_in_memory(estimator: Estimator, X: Any) -> None:
    """Raise TypeError if X is a table in partitions, which only `fit` takes."""
    if is_collection(estimator, X):
        raise TypeError(
            f"X is a table in partitions ({type(X).__name__}), which only fit takes. "
            "Call the method of the fitted estimator for each partition, as "
            "skae.distributed.map_rows does for a Dask collection."
        )


def rows_of(
    X: Table | Partitions, sample_weight: ArrayLike | None, estimator: Estimator
) -> tuple[Rows, np.ndarray | None]:
    """Return the rows of a table, see `CanonicalForm` and `Streamed`."""
    is_streamed = isinstance(X, Partitions)
    if is_streamed and sample_weight is not None:
        X.count()
    weight = current_processes().together(partial(check_weight, sample_weight, X))
    if not is_streamed:
        return canonical_form(X, weight)
    with threads_for(math.inf, estimator.n_threads):
        return stream_rows(X, weight)


def _is_plain_array(estimator: Estimator, X: Any) -> bool:
    """Whether scikit-learn's validation certainly returns X itself.

    It takes a third of the time of a detector's prediction for one row.
    """
    return (
        type(X) is np.ndarray
        and X.ndim == 2
        and X.dtype in _PLAIN_TYPES
        and len(X) > 0
        and X.shape[1] == estimator.n_features_in_
        and not hasattr(estimator, "feature_names_in_")  # else it warns
        and math.isfinite(X.sum())  # one pass; False also for missing entries
    )


def _without_duplicates(X: Table) -> Table:
    """Return a table in which duplicate entries of a sparse matrix are summed."""
    if sparse.issparse(X) and not X.has_canonical_format:
        X = X.copy()  # of the user
        X.sum_duplicates()
    return X


def has_observed_value(X: Table, weight: np.ndarray | None = None) -> bool:
    """Whether any row with a positive weight has an observed entry."""
    has_weight = np.ones(X.shape[0], dtype=bool) if weight is None else weight > 0
    has_weight[empty_rows(X)] = False
    return bool(has_weight.any())


def check_training_data(
    estimator: Estimator,
    X: Any,
    sample_weight: ArrayLike | None,
    earlier: Trained | None,
    is_partial: bool,
) -> tuple[Table, tuple[Any, Categories | None]]:
    """Return X as a float array or a CSR matrix, and what is known of its features.

    These are their names, or None, and their categories, or None. A large table in
    partitions is returned as `Partitions`.
    """
    if is_collection(estimator, X):
        if estimator.categorical_features is not None:
            raise TypeError(
                f"categorical_features={estimator.categorical_features!r} needs a "
                "table in memory, whose categories are found before training, but X is "
                f"a {type(X).__name__} of partitions. Pass one data frame, or encode "
                "the categories as numbers and use categorical_features=None."
            )
        if is_partial:
            raise TypeError(
                "partial_fit takes one array, data frame or sparse matrix, but X is a "
                f"{type(X).__name__} of partitions. Pass one partition at a time, or "
                "the whole to fit."
            )
        X, names = _check_partitions(estimator, X, earlier)
        return X, (names, None)
    if earlier is not None:
        return check_X(estimator, X), (earlier.feature_names, earlier.categories)
    _check_dimensions(estimator, X)
    # `validate_data` sets attributes of an estimator. Here it is given a copy, so that
    # a fit that fails leaves the estimator unchanged.
    copied = type(estimator)(**estimator.get_params(deep=False))
    is_categorical = None
    if estimator.categorical_features is not None:
        X = _check_array_of_columns(estimator, X)
        is_categorical = find_categorical(X, estimator.categorical_features)
    with np.errstate(over="ignore", invalid="ignore"):  # as in `check_X`
        if is_categorical is not None:
            validate_data(copied, X, reset=True, skip_check_array=True)
            weight = check_weight(sample_weight, X)
            categories = Categories.of(X, is_categorical, weight)
            names = getattr(copied, "feature_names_in_", None)
            return _encoded(estimator, X, categories), (names, categories)
        with numeric(X):
            X = validate_data(copied, X, reset=True, **_X_SETTINGS)
    X = _without_duplicates(X)
    return X, (getattr(copied, "feature_names_in_", None), None)


def _check_array_of_columns(estimator: Estimator, X: Any, name: str = "X") -> Any:
    """Return a table whose columns can be read; other tables raise an error.

    Data frames are returned unchanged, lists as arrays of objects.
    """
    if sparse.issparse(X):
        raise TypeError(
            f"categorical_features={estimator.categorical_features!r} needs dense "
            f"rows, but {name} is sparse. Use {name}.toarray(), or "
            "categorical_features=None."
        )
    if is_frame(X):
        return X
    refuse_masked(X, name)
    if isinstance(X, list | tuple):
        try:  # NumPy would convert numbers to words where there are both
            X = np.array(X, dtype=object)
        except ValueError as error:  # rows of different lengths
            raise ValueError(f"{name} must be a table of rows: {error}") from error
    return check_array(
        X,
        dtype=None,
        ensure_all_finite=False,
        input_name=name,
        estimator=estimator,
    )


def category_table(estimator: Estimator, X: Any) -> np.ndarray:
    """Return validated rows with their categories, an array of objects.

    NaN marks a missing entry.
    """
    columns = [
        column for _, column in columns_of(_check_array_of_columns(estimator, X))
    ]
    table = np.empty((num_samples(X), len(columns)), dtype=object)
    for j, column in enumerate(columns):
        values = column_values(column)
        table[:, j] = [np.nan if value is None else value for value in values]
    return table


def _encoded(
    estimator: Estimator,
    X: Any,
    categories: Categories,
    name: str = "X",
    dtype: Any = None,
) -> np.ndarray:
    """Return the columns of features of numbers and categories.

    Parameters
    ----------
    estimator : AutoencoderTransformer or AutoencoderOutlierDetector
    X : ndarray or data frame of shape (n_samples, n_features)
    categories : Categories
    name : {"X", "X_val"}, default="X"
    dtype : dtype, default=None
        Type of the columns; None means that of the numbers.
    """
    settings = {**_X_SETTINGS, "input_name": name, "estimator": estimator}
    if dtype is not None:
        settings["dtype"] = dtype
    numbers = numeric_part(X, categories.is_categorical)
    if numbers is not None:
        with numeric(numbers, name):
            numbers = check_array(numbers, **settings)
        return categories.encode(X, numbers, name)
    if not num_samples(X):
        check_array(np.empty((0, 1)), input_name=name, estimator=estimator)
    rows = categories.encode(X, None, name)
    is_single = dtype is None and getattr(X, "dtype", None) == np.float32
    return rows.astype(np.float32 if is_single else (dtype or np.float64), copy=False)


def _check_partitions(
    estimator: Estimator, X: Any, earlier: Trained | None
) -> tuple[Table | Partitions, Any]:
    """Return a table in partitions, a small one as an array, and its feature names."""
    if getattr(X, "ndim", 2) != 2:
        _check_dimensions(estimator, X)
        raise ValueError(
            f"Expected a 2-dimensional array as X, got {X.ndim} dimension."
        )
    partitions = Partitions(X)
    probe = estimator
    if earlier is None:  # see `check_training_data`
        probe = type(estimator)(**estimator.get_params(deep=False))
    reset = earlier is None
    validate_data(probe, partitions.example, reset=reset, skip_check_array=True)
    names = getattr(probe, "feature_names_in_", None)
    if earlier is not None:
        names = earlier.feature_names
    table = load_small(partitions)
    if table is None:
        return partitions, names
    return check_array(table, estimator=estimator, **_X_SETTINGS), names


def check_validation_rows(
    estimator: Estimator,
    X_val: Any,
    sample_weight_val: ArrayLike | None,
    X: Table,
    feature_names: np.ndarray | None,
    categories: Categories | None,
) -> Rows | None:
    """Validate the rows that judge the training; return them in canonical form.

    Parameters
    ----------
    estimator : AutoencoderTransformer or AutoencoderOutlierDetector
    X_val : {array-like, sparse matrix} of shape (n_val, n_features) or None
    sample_weight_val : array-like of shape (n_val,) or None
    X : ndarray or CSR matrix of shape (n_samples, n_features)
        Validated training rows.
    feature_names : ndarray of str or None
        Their names.
    categories : Categories or None
        Their categories.

    Returns
    -------
    rows : Rows or None
        In the floating-point type of X, and sparse if X is. None without `X_val`.
    """
    if X_val is None:
        if sample_weight_val is None:
            return None
        raise ValueError(
            "sample_weight_val has the weights of the rows of X_val, but X_val is "
            "None. Pass X_val, or leave sample_weight_val out."
        )
    estimator._check_validation_rows()
    if is_collection(estimator, X_val):
        raise TypeError(
            f"X_val is a {type(X_val).__name__} of partitions, but it must be in "
            "memory: pass an array, for example X_val.compute() of a Dask collection."
        )
    with np.errstate(over="ignore", invalid="ignore"), _errors_name("X_val"):
        _check_dimensions(estimator, X_val, "X_val")
        if categories is None:
            settings = {**_X_SETTINGS, "dtype": X.dtype, "input_name": "X_val"}
            with numeric(X_val, "X_val"):
                table = check_array(X_val, estimator=estimator, **settings)
        else:
            X_val = _check_array_of_columns(estimator, X_val, "X_val")
    n_features = X.shape[1] if categories is None else categories.layout.n_features
    n_given = X_val.shape[1] if categories is not None else table.shape[1]
    _check_same_features(X_val, n_given, n_features, feature_names)
    if categories is not None:
        table = _encoded(estimator, X_val, categories, "X_val", X.dtype)
    if sparse.issparse(X) and not sparse.issparse(table):
        table = sparse.csr_array(table)  # a block of sparse rows is read as such
    table = _without_duplicates(table)
    with _errors_name("sample_weight_val"):
        weight = check_weight(sample_weight_val, table)
    rows = canonical_rows(table, weight)
    if len(rows) == 0:
        raise ValueError(
            "X_val has no row with an observed value and a positive weight. Leave it "
            "out to hold out rows of X instead."
        )
    return rows


@contextmanager
def _errors_name(parameter: str) -> Iterator[None]:
    """Context in which the messages of errors of scikit-learn name the parameter."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if parameter in str(error):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{parameter}: {error}") from error


def _check_same_features(
    X_val: Any, n_val: int, n_features: int, feature_names: np.ndarray | None
) -> None:
    """Raise ValueError unless the rows for validation have the columns of X.

    Parameters
    ----------
    X_val : {array-like, sparse matrix} of shape (n_rows, n_val)
        As it was passed.
    n_val, n_features : int
        Number of its columns, and of those of X.
    feature_names : ndarray of str or None
        Names of the columns of X.
    """
    probe = BaseEstimator()  # receives the names
    validate_data(probe, X_val, reset=True, skip_check_array=True)
    names = getattr(probe, "feature_names_in_", None)
    if names is not None and feature_names is not None:
        if set(names) != set(feature_names):
            unseen = np.array([name for name in names if name not in feature_names])
            missing = np.array([name for name in feature_names if name not in names])
            raise ValueError(
                "The feature names of X_val should match those of X. Names that X does "
                f"not have: {join_names(unseen) or 'none'}. Names of X that are "
                f"missing: {join_names(missing) or 'none'}."
            )
        if list(names) != list(feature_names):
            raise ValueError(
                "The feature names of X_val should match those of X: they must be in "
                "the same order as they were in X."
            )
    if n_val != n_features:
        raise ValueError(
            f"X_val has {n_val} features, but X has {n_features} features."
        )
    if (names is None) != (feature_names is None):
        named, other = ("X", "X_val") if names is None else ("X_val", "X")
        warnings.warn(
            f"{named} has feature names, but {other} does not have valid feature "
            "names: their columns are assumed to be the same, in the same order.",
            UserWarning,
            stacklevel=2,
        )


def _check_dimensions(estimator: Estimator, X: Any, parameter: str = "X") -> None:
    """Raise ValueError, which says how to reshape X, if X has three or more axes."""
    n_rows, *shape = _shape_of(X) or (0,)
    if len(shape) < 2:
        return
    reshaped = f"numpy.reshape({parameter}, ({n_rows}, -1))"
    suitable = f"input_shape={tuple(shape)}"
    if _is_channels_last(shape):
        height, width, n_channels = shape
        reshaped = f"numpy.moveaxis({parameter}, -1, 1).reshape({n_rows}, -1)"
        suitable = f"input_shape={(n_channels, height, width)}"
    elif len(shape) == 2:
        n_channels, length = shape
        suitable += (
            f", or input_shape={(n_channels, 1, length)} for windows of a signal with "
            f"{n_channels} channels"
        )
    advice = f"A row of {parameter} is one flattened sample: pass {reshaped}"
    if len(shape) <= 3:
        advice += f", and to convolutions {suitable}"
    raise ValueError(
        f"Found array with dim {1 + len(shape)}, while dim <= 2 is required by "
        f"{type(estimator).__name__}. {advice}."
    )


def _shape_of(X: Any) -> tuple[int, ...]:
    """Return the shape of an array, or of nested lists by their first entries."""
    shape = getattr(X, "shape", None)
    if shape is not None:
        return tuple(shape)
    if isinstance(X, list | tuple) and len(X) > 0:
        return (len(X), *_shape_of(X[0]))
    return ()


def _is_channels_last(shape: Sequence[int]) -> bool:
    """Whether (channels, height, width) are probably (height, width, channels)."""
    return len(shape) == 3 and min(shape[:2]) > MAX_IMAGE_CHANNELS >= shape[2]


def check_weight(sample_weight: ArrayLike | None, X: Table) -> np.ndarray | None:
    """Validate `sample_weight`; return it as float64 of shape (n_samples,)."""
    if sample_weight is None:
        return None
    if isinstance(sample_weight, list | tuple) and np.ndim(sample_weight[:1]) > 1:
        raise ValueError(
            "sample_weight must have one number for each row, got a "
            f"{type(sample_weight).__name__} of arrays. Pass one array for all rows, "
            "also if X is a table in partitions: np.concatenate(sample_weight)."
        )
    with numeric(sample_weight, "sample_weight"):
        weight = check_sample_weight(
            sample_weight, X, dtype=np.float64, ensure_non_negative=True
        )
    positive = weight[weight > 0]
    if np.any((positive < MIN_WEIGHT) | (positive > MAX_WEIGHT)):
        raise ValueError(
            "sample_weight has values that are too small or too large: they must be 0 "
            f"or in [{MIN_WEIGHT:g}, {MAX_WEIGHT:g}], got positive values between "
            f"{positive.min():g} and {positive.max():g}. Divide them by their mean."
        )
    return weight


def check_input_shape(input_shape: Any, n_features: int) -> None:
    """Raise ValueError unless `input_shape` is None or has `n_features` values."""
    if input_shape is None:
        return
    is_shape = isinstance(input_shape, (tuple, list)) and 1 <= len(input_shape) <= 3
    if not (is_shape and are_sizes(input_shape)):
        raise ValueError(
            "input_shape must be (length,), (height, width), (channels, height, width) "
            f"or (channels, 1, length), all integers >= 1, got {input_shape!r}."
        )
    if math.prod(input_shape) != n_features:
        raise ValueError(
            f"input_shape={input_shape!r} has {math.prod(input_shape)} values, but X "
            f"has {n_features} features."
        )


def warn_channels_last(input_shape: Sequence[int] | None) -> None:
    """Warn if `input_shape` is probably (height, width, channels)."""
    if input_shape is None or not _is_channels_last(input_shape):
        return
    first, second, last = input_shape
    warnings.warn(
        f"input_shape={tuple(input_shape)} means {first} channels of {second} x {last} "
        f"pixels. For images of {first} x {second} pixels with {last} channel(s) use "
        f"input_shape={(last, first, second)}, with the channels first in each row: "
        f"numpy.moveaxis(images, -1, 1).reshape(len(images), -1).",
        UserWarning,
        stacklevel=2,
    )


def no_observed_value(names: np.ndarray) -> ValueError:
    """Return the error for features without an observed value."""
    return ValueError(
        "X has no observed value, among rows with a positive weight, in "
        f"{len(names)} feature(s): {join_names(names)}. Drop features without any "
        "value."
    )


def join_names(names: np.ndarray) -> str:
    """Return the first five names as text for an error message."""
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
