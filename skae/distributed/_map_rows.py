"""Predictions of fitted estimators on Dask collections, chunk by chunk."""

from __future__ import annotations

import math
import pickle
import sys
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from scipy import sparse
from sklearn.utils.validation import check_is_fitted

from skae._processor import torch_threads

# Dask arrays and dataframes, and pandas objects: neither library may be installed.
Collection: TypeAlias = Any
Frame: TypeAlias = Any

# Methods that return one value, or one row of values, for each row.
METHODS = (
    "score_samples",
    "decision_function",
    "predict",
    "predict_proba",
    "p_values",
    "transform",
    "quantize",
    "reconstruct",
    "feature_contributions",
)

# Those whose result has the columns of X.
SAME_COLUMNS = ("reconstruct", "feature_contributions")

# Modules and names of the collections that are allowed.
_COLLECTIONS = {"dask.array": "Array", "dask.dataframe": "DataFrame"}


def map_rows(
    estimator: Any, method: str, X: Collection, *, meta: Any = None
) -> Collection:
    """Call a method of a fitted estimator on each chunk of a Dask collection.

    The result is a Dask collection, which is computed chunk by chunk, so that X may be
    larger than the memory. Its values are those of
    ``getattr(estimator, method)(X.compute())``.

    Parameters
    ----------
    estimator : object
        A fitted estimator of skae or scikit-learn, such as a pipeline or a search. Its
        present state is stored in the result: a later fit has no effect on it.
    method : str
        One of ``"score_samples"``, ``"decision_function"``, ``"predict"``,
        ``"predict_proba"``, ``"p_values"``, ``"transform"``, ``"quantize"``,
        ``"reconstruct"`` and ``"feature_contributions"``, which the estimator must
        have.
    X : dask.array.Array or dask.dataframe.DataFrame of shape (n_samples, n_features)
        Rows. Chunks of an array are NumPy arrays or SciPy sparse matrices; chunks along
        the columns are merged. Numbers of rows may be unknown, and partitions may be
        empty.
    meta : object, default=None
        An empty result, by which Dask knows the type of the result before it is
        computed: for an array, an ndarray of shape (0,) or (0, n_columns); for a
        dataframe, anything that Dask takes as ``meta``. None means that the method is
        called for an artificial row with the columns of X, which raises the errors of
        the method. A pipeline that refuses such a row, for example because it knows
        only some strings, needs a `meta`.

    Returns
    -------
    result : dask.array.Array, dask.dataframe.DataFrame or dask.dataframe.Series
        For an array, an array of shape (n_samples,) or (n_samples, n_columns) with the
        row chunks of X. For a dataframe, a series named `method`, or a dataframe whose
        columns are those of X (``"reconstruct"`` and ``"feature_contributions"``),
        those of `get_feature_names_out` (``"transform"``), or numbers; with the index
        and the divisions of X. The type of the values is that of the method.

    Raises
    ------
    TypeError
        If X is neither a Dask array nor a Dask dataframe, if its chunks are of another
        type than those above, or if the result of the method is sparse.
    ValueError
        If `method` is not one of those above, if X is not two-dimensional, if it has
        other columns than the rows to which the estimator was fitted, or if `meta` is
        not of the kind above. When the result is computed, if `meta` has other
        dimensions or another number of columns.
    AttributeError
        If the estimator does not have the method.
    sklearn.exceptions.NotFittedError
        If the estimator is not fitted.

    Notes
    -----
    The pickled estimator is a single node of the graph, on which all chunks depend. A
    worker receives it once, not once per chunk. Dask warns of a large graph if it has
    more than 10 MB, which does no harm.

    Each chunk is computed by one thread of PyTorch, since Dask computes as many chunks
    at once as a worker has threads. Predictions run on the CPU.

    `set_output` has no effect on the type of the result, which follows from that of X.

    Examples
    --------
    >>> import dask.array as da
    >>> from sklearn.datasets import load_digits
    >>> from skae import AutoencoderOutlierDetector
    >>> from skae.distributed import map_rows
    >>> X = load_digits().data
    >>> detector = AutoencoderOutlierDetector(max_epochs=5, random_state=0).fit(X)
    >>> scores = map_rows(detector, "score_samples", da.from_array(X, chunks=(600, 64)))
    >>> scores
    dask.array<_map_chunk, shape=(1797,), dtype=float64, chunksize=(600,), ...>
    >>> scores.compute().shape
    (1797,)
    """
    is_array = _collection_name(X) == "Array"
    check_is_fitted(estimator)
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}.")
    getattr(estimator, method)  # raises AttributeError where it is absent
    if is_array:
        return _map_array(estimator, method, X, meta)
    return _map_frame(estimator, method, X, meta)


def _collection_name(X: Any) -> str:
    """Return the name of the class of a Dask collection, without importing Dask.

    Raises
    ------
    TypeError
        If it is not one of those that are allowed.
    """
    for module_name, name in _COLLECTIONS.items():
        module = sys.modules.get(module_name)
        if module is not None and isinstance(X, getattr(module, name)):
            return name
    raise TypeError(
        "X must be a dask.array.Array or a dask.dataframe.DataFrame, got "
        f"{type(X).__module__}.{type(X).__qualname__}. For rows in memory, call the "
        "method of the estimator."
    )


def _map_array(estimator: Any, method: str, X: Collection, meta: Any) -> Collection:
    import dask.array

    if X.ndim != 2:
        raise ValueError(
            f"X must have two dimensions, rows and columns, got {X.ndim}: its shape is "
            f"{X.shape}."
        )
    if math.isnan(X.shape[1]):
        raise ValueError(
            "X must have a known number of columns. Call X.compute_chunk_sizes() first."
        )
    if meta is None:
        result = _call_with_note(estimator, method, _example_row(X))
        meta = _as_array(result, method)[:0]
    elif not (isinstance(meta, np.ndarray) and meta.ndim in (1, 2) and len(meta) == 0):
        raise ValueError(
            "meta must be an ndarray of shape (0,) or (0, n_columns) for a Dask array, "
            f"got {meta!r}."
        )
    is_table = meta.ndim == 2
    return dask.array.map_blocks(
        _map_chunk,
        X.rechunk({1: -1}),
        _shared(estimator),
        method=method,
        template=meta,
        chunks=(X.chunks[0], (meta.shape[1],)) if is_table else (X.chunks[0],),
        drop_axis=None if is_table else 1,
        meta=meta,
    )


def _map_frame(estimator: Any, method: str, X: Collection, meta: Any) -> Collection:
    from dask.dataframe.utils import make_meta, meta_nonempty

    if meta is None:
        rows = meta_nonempty(make_meta(X))
        result = _call_with_note(estimator, method, rows)
        columns = _column_names(estimator, method, X)
        meta = _as_frame(result, method, rows, columns).iloc[:0]
    else:
        given, meta = meta, make_meta(meta, index=make_meta(X).index)
        if not hasattr(meta, "iloc"):
            raise ValueError(
                "meta must describe a data frame or a series for a Dask dataframe, got "
                f"{given!r}."
            )
    return X.map_partitions(
        _map_chunk,
        _shared(estimator),
        method=method,
        template=meta,
        meta=meta,
        align_dataframes=False,
    )


def _shared(estimator: Any) -> Any:
    """Return a Dask node that is the estimator, in its present state."""
    import cloudpickle
    from dask import delayed

    # The key follows from the bytes: results for one estimator share this node.
    return delayed(pickle.loads, pure=True)(cloudpickle.dumps(estimator))


def _map_chunk(X: Any, estimator: Any, *, method: str, template: Any) -> Any:
    """Return the result of the method for a chunk; `template` for an empty one.

    Parameters
    ----------
    X : ndarray, sparse matrix or DataFrame of shape (n_rows, n_features)
    estimator : object
    method : str
    template : ndarray, DataFrame or Series
        An empty result.
    """
    if X.shape[0] == 0:
        return template
    with torch_threads(1):
        result = getattr(estimator, method)(X)
    if np.shape(result)[1:] != template.shape[1:]:
        raise ValueError(
            f"The result of {method!r} has the shape {np.shape(result)}, but meta has "
            f"the shape {template.shape}. Pass a meta with as many dimensions and "
            "columns."
        )
    if isinstance(template, np.ndarray):
        return _as_array(result, method)
    return _as_frame(result, method, X, getattr(template, "columns", None))


def _as_array(result: Any, method: str) -> np.ndarray:
    """Return the result of a method as an array.

    Raises
    ------
    TypeError
        If it is sparse.
    """
    if sparse.issparse(result):
        raise TypeError(
            f"The result of {method!r} is a sparse matrix, which is not supported. "
            "Let the estimator return a dense array."
        )
    return np.asarray(result)


def _as_frame(
    result: Any, method: str, X: Frame, columns: Sequence[Any] | None
) -> Frame:
    """Return the result of a method as a data frame or a series with the index of X."""
    import pandas as pd

    if isinstance(result, pd.DataFrame):
        return result  # its columns may have several types
    values = _as_array(result, method)
    if values.ndim == 1:
        return pd.Series(values, index=X.index, name=method)
    return pd.DataFrame(values, index=X.index, columns=columns)


def _column_names(estimator: Any, method: str, X: Frame) -> Sequence[Any] | None:
    """Return the names of the columns of a result; None means numbers."""
    if method in SAME_COLUMNS:
        return X.columns
    if method == "transform":
        # A search has no method that names its output.
        return getattr(estimator, "best_estimator_", estimator).get_feature_names_out()
    return None


def _example_row(X: Collection) -> Any:
    """Return a row of zeros, of the kind of which the chunks of an array are."""
    from dask.array.utils import meta_from_array

    kind = meta_from_array(X)
    row = np.zeros((1, X.shape[1]), dtype=X.dtype)
    if sparse.issparse(kind):
        return type(kind)(row)
    if isinstance(kind, np.ndarray):
        return row
    raise TypeError(
        "The chunks of X must be NumPy arrays or SciPy sparse matrices, got "
        f"{type(kind).__module__}.{type(kind).__qualname__}. Convert them by "
        "X.map_blocks."
    )


def _call_with_note(estimator: Any, method: str, X: Any) -> Any:
    """Call a method with artificial rows; an error says that they were artificial."""
    try:
        return getattr(estimator, method)(X)
    except Exception as error:
        error.add_note(
            f"map_rows called {method!r} for artificial rows with the columns of X, to "
            "find out the type of its result. If these columns are valid, pass `meta`."
        )
        raise
