"""Validation of parameters and data before training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data
from skorch.callbacks import Callback

from skae._build import pca_obstacle
from skae._compat import check_sample_weight, validate_parameters
from skae._job import Job, Parts, Settings, Trained
from skae._parameters import first_difference, snapshot
from skae._processor import threads_for
from skae._rows import Table, canonical_rows
from skae._summary import Summary, summarize, value_range
from skae.bottlenecks import BOTTLENECKS
from skae.corruptions import CORRUPTIONS
from skae.losses import LOSSES, Loss
from skae.networks import NETWORKS, are_sizes
from skae.penalties import PENALTIES

# An instance of `BaseAutoencoder`, whose module imports this one.
Estimator: TypeAlias = Any

# Arguments of `validate_data` in all methods.
_X_SETTINGS: dict[str, Any] = {
    "accept_sparse": "csr",
    "dtype": [np.float64, np.float32],
    "ensure_all_finite": "allow-nan",
}


def check_fit(
    estimator: Estimator,
    X: Any,
    sample_weight: ArrayLike | None,
    *,
    earlier: Trained | None,
    is_partial: bool = False,
) -> Job:
    """Validate the parameters and the data of a fit.

    The estimator is not changed.

    Parameters
    ----------
    estimator : AutoencoderTransformer or AutoencoderOutlierDetector
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
    sample_weight : array-like of shape (n_samples,) or None
    earlier : Trained or None
        The model from which training continues.
    is_partial : bool, default=False
        Whether this is a `partial_fit`.

    Returns
    -------
    job : Job
        Validated inputs of the fit.

    Raises
    ------
    TypeError, ValueError
        If a parameter or the data are invalid.
    """
    parts = check_parameters(estimator)
    device = resolve_device(estimator.device)
    _check_precision(estimator, device)
    parameters = _snapshot(estimator)
    if earlier is not None:
        _check_same_structure(estimator._STRUCTURE, parameters, earlier)
    X, feature_names = _check_training_data(estimator, X, earlier)
    n_features = X.shape[1]
    estimator._check_width(n_features)
    rows = canonical_rows(X, check_weight(sample_weight, X))
    find_binary = earlier is None and parts.loss.needs_binary_columns
    with threads_for(len(rows) * n_features, estimator.n_threads):
        summary = summarize(rows, find_binary=find_binary)
    if earlier is None:
        loss = parts.loss.bind(summary.is_binary, feature_names)
    else:
        loss = earlier.net.module_.loss
    parts = parts._replace(loss=loss)
    names = np.arange(n_features) if feature_names is None else feature_names
    is_continued = is_partial and earlier is not None
    _check_summary(summary, names, may_lack_features=is_continued)
    _check_range(estimator, loss, summary.low, summary.high, names)
    needs_two_rows = estimator.early_stopping not in ("auto", False) and not is_partial
    if needs_two_rows and len(rows) < 2:
        raise ValueError(
            "early_stopping=True needs at least two distinct rows with a positive "
            f"weight, got n_samples={len(rows)}."
        )
    input_shape = tuple(estimator.input_shape or (n_features,))
    n_components, n_channels = _resolve_n_components(estimator, parts, input_shape)
    return Job(
        settings=Settings.from_estimator(estimator),
        parts=parts,
        parameters=parameters,
        rows=rows,
        summary=summary,
        feature_names=feature_names,
        input_shape=input_shape,
        n_components=n_components,
        n_channels=n_channels,
        ensemble=estimator._ensemble(parts, n_features),
        max_refinements=estimator._max_refinements(parts, n_components),
        defaults=estimator._TRAINING_DEFAULTS,
        device=device,
        error=estimator._resolve_error(parts),
        seed=_draw_seed(estimator.random_state),
        is_partial=is_partial,
        earlier=earlier,
        digest=rows.digest() if estimator.warm_start and not is_partial else "",
    )


# Parameters


def check_parameters(estimator: Estimator) -> Parts:
    """Validate all parameters, and return the spec objects that they name."""
    validate_parameters(estimator)
    _check_callbacks(estimator.callbacks)
    network = estimator.network
    if isinstance(network, str):
        sizes = estimator.hidden_layer_sizes
        network = NETWORKS[network](hidden_layer_sizes=sizes)
    elif estimator.hidden_layer_sizes != "auto":
        raise ValueError(
            f"hidden_layer_sizes={estimator.hidden_layer_sizes!r} and "
            f"network={network!r} set the same parameter: pass the sizes to the "
            "network object, and leave hidden_layer_sizes at 'auto'."
        )
    parts = Parts(
        network,
        resolve_spec(estimator.bottleneck, BOTTLENECKS),
        resolve_spec(estimator.corruption, CORRUPTIONS),
        resolve_spec(estimator.penalty, PENALTIES),
        resolve_spec(estimator.loss, LOSSES),
    )
    for part in parts:
        if isinstance(part, BaseEstimator):
            validate_parameters(part)
    _check_combination(estimator, parts)
    estimator._check_combination(parts)
    return parts


def resolve_spec(part: Any, names: dict[str, type]) -> Any:
    """Return the spec object for a name, or a copy of a spec object."""
    if part is None:
        return None
    return names[part]() if isinstance(part, str) else clone(part)


def _check_combination(estimator: Estimator, parts: Parts) -> None:
    """Raise ValueError if two valid parameters cannot be combined."""
    activation = parts.network.output_activation
    allowed = parts.loss.output_activations
    if (
        parts.loss.bounds is not None
        and activation not in allowed
        and not parts.network.decoder_may_end_in_activation
    ):
        raise ValueError(
            f"loss={estimator.loss!r} needs output_activation="
            f"{' or '.join(map(repr, allowed))}, but network={estimator.network!r} has "
            f"output_activation={activation!r}."
        )
    if parts.corruption is not None:
        parts.corruption.check_level(estimator.corruption_level)
    for name in ("corruption", "penalty"):
        part = getattr(parts, name)
        if part is not None and part.needs_batch and estimator.batch_size == 1:
            raise ValueError(
                f"{name}={getattr(estimator, name)!r} compares the rows of a batch, "
                "which is not possible with batch_size=1. Use batch_size >= 2."
            )
    if estimator.init == "pca":
        obstacle = pca_obstacle(parts)
        if obstacle is not None:
            raise ValueError(
                f"init='pca' is not possible with {obstacle}="
                f"{getattr(estimator, obstacle)!r}, with which the initial network "
                "cannot be a linear map. Use init='auto' or init='random'."
            )


def _check_same_structure(
    names: Sequence[str], parameters: dict[str, Any], earlier: Trained
) -> None:
    """Raise ValueError if training would continue with a network of other structure.

    Parameters
    ----------
    names : sequence of str
        Parameters that determine the structure.
    parameters : dict
        Present parameters of the estimator.
    earlier : Trained
        Model from which training would continue.
    """
    name = first_difference(names, parameters, earlier.parameters)
    if name is not None:
        raise ValueError(
            f"{name}={parameters[name]!r} differs from the value with which the "
            f"network was built, {earlier.parameters[name]!r}: training cannot "
            "continue. Set it back, or call fit with warm_start=False, which builds a "
            "new network."
        )


def _snapshot(estimator: Estimator) -> dict[str, Any]:
    """Return copies of the parameters that determine the trained model."""
    names = (field.name for field in fields(Settings))
    return snapshot(estimator, [*estimator._STRUCTURE, *names])


def _check_callbacks(callbacks: list | tuple | None) -> None:
    for entry in callbacks or []:
        callback = entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry
        is_class = isinstance(callback, type) and issubclass(callback, Callback)
        if not (is_class or isinstance(callback, Callback)):
            hint = ""
            if hasattr(callback, "on_fit_task_begin"):
                hint = " Use set_callbacks for those of scikit-learn."
            raise TypeError(
                "callbacks must hold skorch callbacks, their classes, or pairs of a "
                f"name and one of these, got {entry!r}." + hint
            )


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device, which must be available; ``"auto"`` prefers CUDA."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device must be 'auto' or a device that PyTorch can use here, such as "
            f"'cpu'; got {device!r} ({error})"
        ) from error
    return resolved


def _check_precision(estimator: Estimator, device: torch.device) -> None:
    if estimator.precision == "tf32" and device.type != "cuda":
        raise ValueError(
            f"precision='tf32' needs a CUDA device, but device={estimator.device!r} is "
            f"'{device.type}' here. Use 'float32'."
        )


def _draw_seed(random_state: Any) -> int:
    return int(check_random_state(random_state).randint(np.iinfo(np.int32).max))


# Data


def check_X(estimator: Estimator, X: Any) -> Table:
    """Validate rows for a fitted estimator; return a float array or a CSR matrix."""
    return validate_data(estimator, X, reset=False, **_X_SETTINGS)


def _check_training_data(
    estimator: Estimator, X: Any, earlier: Trained | None
) -> tuple[Table, Any]:
    """Return X as a float array or a CSR matrix, and its feature names or None."""
    if earlier is not None:
        return check_X(estimator, X), earlier.feature_names
    # `validate_data` sets attributes of an estimator. Here it is given a copy, so that
    # a fit that fails leaves the estimator unchanged.
    copied = type(estimator)(**estimator.get_params(deep=False))
    X = validate_data(copied, X, reset=True, **_X_SETTINGS)
    return X, getattr(copied, "feature_names_in_", None)


def check_weight(sample_weight: ArrayLike | None, X: Table) -> np.ndarray | None:
    """Validate `sample_weight`; return it as float64 of shape (n_samples,)."""
    if sample_weight is None:
        return None
    return check_sample_weight(
        sample_weight, X, dtype=np.float64, ensure_non_negative=True
    )


def check_input_shape(input_shape: Any, n_features: int) -> None:
    """Raise ValueError unless `input_shape` is None or has `n_features` values."""
    if input_shape is None:
        return
    if not (1 <= len(input_shape) <= 3 and are_sizes(input_shape)):
        raise ValueError(
            "input_shape must be (length,), (height, width) or (channels, height, "
            f"width), all integers >= 1, got {input_shape!r}."
        )
    if math.prod(input_shape) != n_features:
        raise ValueError(
            f"input_shape={input_shape!r} has {math.prod(input_shape)} values, but X "
            f"has {n_features} features."
        )


def _check_summary(
    summary: Summary, names: np.ndarray, *, may_lack_features: bool
) -> None:
    """Raise ValueError if a feature has no observed value or too large values.

    Parameters
    ----------
    summary : Summary
    names : ndarray of shape (n_features,)
        Names or positions of the features, for the error message.
    may_lack_features : bool
        Whether some features, but not all, may have no observed value.
    """
    is_missing = np.isnan(summary.mean)
    missing = np.flatnonzero(is_missing)
    if len(missing) and (is_missing.all() or not may_lack_features):
        raise ValueError(
            "X has no observed value, among rows with a positive weight, in "
            f"{len(missing)} feature(s): {_join_names(names[missing])}. Drop features "
            "without any value."
        )
    large = np.flatnonzero(~is_missing & ~np.isfinite(summary.variance))
    if len(large):
        raise ValueError(
            "X has values too large for their variance to be computed, in "
            f"feature(s) {_join_names(names[large])}."
        )


def check_range(estimator: Estimator, loss: Loss, X: Table) -> None:
    """Raise ValueError if rows to be scored lie outside the range of the loss."""
    if loss.bounds is None:
        return
    n_features = X.shape[1]
    names = getattr(estimator, "feature_names_in_", np.arange(n_features))
    bounded = loss.bounded_columns(n_features)
    low, high = value_range(X if bounded.all() else X[:, bounded])
    lows, highs = (np.where(bounded, value, np.nan) for value in (low, high))
    _check_range(estimator, loss, lows, highs, names)


def _check_range(
    estimator: Estimator,
    loss: Loss,
    low: np.ndarray,
    high: np.ndarray,
    names: np.ndarray,
) -> None:
    """Raise ValueError if features have values outside the range of the loss.

    Parameters
    ----------
    estimator : AutoencoderTransformer or AutoencoderOutlierDetector
    loss : Loss
        Loss that is bound to the columns of X, see `Loss.bind`.
    low, high : ndarray of shape (n_features,)
        Smallest and largest value of each feature, NaN if it has no observed value.
    names : ndarray of shape (n_features,)
        Names or positions of the features, for the error message.
    """
    if loss.bounds is None:
        return
    bounded = loss.bounded_columns(len(low))
    least, most = loss.bounds
    smallest = np.fmin.reduce(low[bounded], initial=np.nan)
    largest = np.fmax.reduce(high[bounded], initial=np.nan)
    if smallest < least or largest > most:
        where = (
            "all of X" if bounded.all() else f"column(s) {_join_names(names[bounded])}"
        )
        raise ValueError(
            f"loss={estimator.loss!r} needs {where} in [{least:g}, {most:g}], got "
            f"values between {smallest:g} and {largest:g}. "
            "Use sklearn.preprocessing.MinMaxScaler(clip=True) to scale them."
        )


def _resolve_n_components(
    estimator: Estimator, parts: Parts, input_shape: tuple[int, ...]
) -> tuple[int, int]:
    """Return the width of the code, and its number of channels.

    In a feature-map code, so many consecutive components belong to one position. Any
    other code is one position with all components.
    """
    fixed = parts.network.code_shape(input_shape)
    if fixed is None:
        n_components = estimator.n_components
        if isinstance(n_components, str):
            n_components = estimator._auto_n_components(parts, math.prod(input_shape))
        return int(n_components), int(n_components)
    n_components, n_channels = math.prod(fixed), fixed[1]
    if estimator.n_components not in ("auto", n_components):
        raise ValueError(
            f"network={estimator.network!r} has a code of {n_components} components "
            f"(positions and channels {fixed}), but n_components is "
            f"{estimator.n_components}. Use n_components='auto'."
        )
    return n_components, n_channels


def _join_names(names: np.ndarray) -> str:
    """Return the first five names as text for an error message."""
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
