"""Find the fitted autoencoder in a pipeline or a search, and compute its input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import issparse
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from skae._arrays import as_numpy
from skae._base import BaseAutoencoder, MatrixLike
from skae._tables import check_input_shape


class AutoencoderInput(NamedTuple):
    """A fitted autoencoder and its input.

    Attributes
    ----------
    autoencoder : BaseAutoencoder
        The fitted autoencoder.
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        Input of the autoencoder: in a pipeline, the output of the previous steps.
    feature_names : ndarray of str of shape (n_features,) or None
        Names of the features of `X`, where they are known.
    """

    autoencoder: Any
    X: Any
    feature_names: np.ndarray | None


def find_autoencoder(
    estimator: Any, kind: type[BaseAutoencoder] = BaseAutoencoder
) -> BaseAutoencoder:
    """Return the fitted autoencoder in an estimator, a pipeline or a search.

    Parameters
    ----------
    estimator : estimator
        An autoencoder, a `Pipeline` that ends in one, or a search over either.
    kind : type, default=BaseAutoencoder
        Class that the autoencoder must be an instance of.

    Returns
    -------
    autoencoder : BaseAutoencoder
        Its inputs and its fitted attributes are NumPy arrays, also if it was fitted to
        tensors.

    Raises
    ------
    TypeError
        If there is no such autoencoder.
    NotFittedError
        If it is not fitted.
    """
    estimator = _best_estimator(estimator)
    last = estimator[-1] if isinstance(estimator, Pipeline) else estimator
    if not isinstance(last, kind):
        name = "autoencoder of skae" if kind is BaseAutoencoder else kind.__name__
        raise TypeError(
            f"estimator must be a fitted {name}, or a Pipeline or a search that ends "
            f"in one, got {last!r}."
        )
    check_is_fitted(last)
    return last if last._array_space is None else last._moved_to(None)


def find_autoencoder_and_input(
    estimator: Any, X: MatrixLike, kind: type[BaseAutoencoder] = BaseAutoencoder
) -> AutoencoderInput:
    """Return the fitted autoencoder in an estimator, and transform X to its input.

    Parameters
    ----------
    estimator, kind
        See `find_autoencoder`.
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        Input of `estimator`.

    Returns
    -------
    autoencoder_input : AutoencoderInput

    Raises
    ------
    TypeError, NotFittedError
        See `find_autoencoder`.
    """
    autoencoder = find_autoencoder(estimator, kind)
    estimator = _best_estimator(estimator)
    feature_names = getattr(autoencoder, "feature_names_in_", None)
    if isinstance(estimator, Pipeline) and len(estimator) > 1:
        preprocessing = estimator[:-1]
        has_names = all(
            hasattr(step, "get_feature_names_out") for _, step in preprocessing.steps
        )
        if feature_names is None and has_names:
            feature_names = preprocessing.get_feature_names_out()
        X = preprocessing.transform(X)
    X = as_numpy(X, "X")
    if not hasattr(X, "shape"):
        X = np.asarray(X)
    return AutoencoderInput(autoencoder, X, feature_names)


def resolve_input_shape(
    input_shape: Sequence[int] | None, autoencoder: Any
) -> Sequence[int] | None:
    """Return the shape of a row: `input_shape`, or that of the autoencoder if None.

    Raises ValueError if rows of the autoencoder cannot have the shape.
    """
    check_input_shape(input_shape, autoencoder.n_features_in_)
    return autoencoder.input_shape if input_shape is None else input_shape


def _best_estimator(estimator: Any) -> Any:
    """Return the best estimator of a search; return any other estimator unchanged."""
    return getattr(estimator, "best_estimator_", estimator)


def refuse_categories(display: type, autoencoder: Any) -> None:
    """Raise ValueError if a display of numbers would have to draw categories."""
    if autoencoder.is_categorical_ is not None:
        raise ValueError(
            f"{display.__name__} draws numbers, but the estimator has categorical "
            "features, by its parameter categorical_features."
        )


def to_values(rows: Any) -> np.ndarray:
    """Convert rows of numbers and categories to a dense array, of objects if needed."""
    if issparse(rows):
        return to_dense(rows)
    rows = rows.to_numpy() if hasattr(rows, "to_numpy") else np.asarray(rows)
    return rows if rows.dtype.kind == "O" else rows.astype(float)


def to_dense(rows: Any) -> np.ndarray:
    """Convert an array-like or a sparse matrix to a dense array of floats."""
    return np.asarray(rows.toarray() if issparse(rows) else rows, dtype=float)
