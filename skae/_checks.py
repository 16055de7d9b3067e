"""Validation of parameters and data before training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, validate_data

from skae._agreement import agreed_table
from skae._build import build_scaler
from skae._categorical_loss import CategoricalLoss
from skae._categories import (
    Categories,
    column_values,
    find_categorical,
    numeric_part,
)
from skae._checkpoint import open_checkpoint, stored_seed
from skae._compat import check_sample_weight, num_samples, validate_parameters
from skae._job import (
    Ensemble,
    Job,
    Parts,
    Settings,
    Trained,
    pca_obstacle,
    starts_at_pca,
)
from skae._module import LIMIT
from skae._numeric import columns_of, is_frame, numeric, refuse_masked
from skae._parameters import first_difference, snapshot
from skae._partitions import Partitions
from skae._pca import count_needed
from skae._processor import threads_for
from skae._rows import Rows, Table, canonical_form, canonical_rows, empty_rows
from skae._sources import is_partitioned
from skae._split import split_rows
from skae._streamed import load_small, stream_rows
from skae._summary import Summary, summarize
from skae._user_callbacks import check_callbacks
from skae.bottlenecks import BOTTLENECKS
from skae.corruptions import CORRUPTIONS
from skae.engine.processes import current_processes
from skae.losses import LOSSES, Loss
from skae.networks import NETWORKS, are_sizes
from skae.penalties import PENALTIES

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


def check_fit(
    estimator: Estimator,
    X: Any,
    sample_weight: ArrayLike | None,
    *,
    X_val: Any = None,
    sample_weight_val: ArrayLike | None = None,
    earlier: Trained | None,
    is_partial: bool = False,
    array_space: tuple[str, str] | None = None,
) -> Job:
    """Validate the parameters and the data of a fit.

    The estimator is not changed.

    Parameters
    ----------
    estimator : AutoencoderTransformer or AutoencoderOutlierDetector
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
    sample_weight : array-like of shape (n_samples,) or None
    X_val : {array-like, sparse matrix} of shape (n_val, n_features), default=None
    sample_weight_val : array-like of shape (n_val,), default=None
    earlier : Trained or None
        The model from which training continues.
    is_partial : bool, default=False
        Whether this is a `partial_fit`.
    array_space : tuple of str, default=None
        See `Job`.

    Returns
    -------
    job : Job
        Validated inputs of the fit.

    Raises
    ------
    TypeError, ValueError
        If a parameter or the data are invalid.
    """
    together = current_processes().together
    parts, device, parameters = together(partial(_check_settings, estimator, earlier))
    X, (feature_names, categories) = agreed_table(
        partial(_check_training_data, estimator, X, sample_weight, earlier, is_partial),
        estimator.get_params(),
        sample_weight is None,
        X_val is None,
    )
    n_features = n_columns = X.shape[1]
    if categories is not None:
        _check_categorical(estimator, parts)
        n_features = categories.layout.n_features
    estimator._check_width(n_features)
    validation_rows = together(
        partial(
            _check_validation_rows,
            estimator,
            X_val,
            sample_weight_val,
            X,
            feature_names,
            categories,
        )
    )
    if earlier is None:
        _warn_channels_last(estimator.input_shape)
    rows, positions = _rows_of(X, sample_weight, estimator)
    names = np.arange(n_features) if feature_names is None else feature_names
    if categories is not None:
        names = names[categories.layout.feature]  # of the columns
    if len(rows) == 0:
        raise no_observed_value(names)
    find_binary = earlier is None and parts.loss.needs_binary_columns
    with threads_for(len(rows) * n_columns, estimator.n_threads):
        summary = summarize(rows, find_binary=find_binary)
    if earlier is None:
        scale = estimator._resolve_scale(parts, summary, categories is not None)
        loss = _resolve_loss(estimator, n_features, scale, categories is not None)
        loss = _bound_loss(loss, summary, feature_names, categories)
    else:
        scale = earlier.scale
        loss = earlier.net.module_.loss
    parts = parts._replace(loss=loss)
    is_continued = is_partial and earlier is not None
    _check_summary(summary, names, may_lack_features=is_continued)
    _check_range(estimator, loss, summary.low, summary.high, names)
    _check_magnitude(estimator, summary, names, earlier)
    holds_out = estimator.early_stopping not in ("auto", False) and not is_partial
    if holds_out and validation_rows is None and len(rows) < 2:
        raise ValueError(
            "early_stopping=True needs at least two distinct rows with a positive "
            f"weight, got n_samples={len(rows)}."
        )
    input_shape = tuple(estimator.input_shape or (n_columns,))
    n_components, n_channels = _resolve_n_components(
        estimator,
        parts,
        input_shape,
        n_features,
        scale,
        min(len(rows), n_columns),
        earlier,
    )
    ensemble, n_kept = estimator._ensemble(parts, n_features, n_columns, scale), 0
    if earlier is not None:
        n_kept = _count_kept(estimator, ensemble, earlier, is_partial)
    if earlier is not None and ensemble is not None and n_kept:
        _check_same_start(parts, estimator.init, earlier)
        ensemble = ensemble.additional(earlier.net.module_)
    seed = _draw_seed(estimator.random_state)
    # Where each process has drawn its own, that of the first one.
    seed = current_processes().share(lambda: seed)
    job = Job(
        settings=Settings.from_estimator(estimator, scale),
        parts=parts,
        parameters=parameters,
        rows=rows,
        positions=positions,
        summary=summary,
        feature_names=feature_names,
        categories=categories,
        input_shape=input_shape,
        n_components=n_components,
        n_channels=n_channels,
        ensemble=ensemble,
        n_kept=n_kept,
        max_refinements=estimator._max_refinements(parts, n_components),
        # The columns of categories are not normally distributed.
        completes_rows=estimator._completes_rows and categories is None,
        is_ordered=estimator._has_ordered_components,
        share=estimator._requested_share,
        defaults=estimator._training_defaults(parts, ensemble, n_columns, scale),
        device=device,
        error=estimator._resolve_error(parts, scale),
        n_neighbors=estimator._resolve_n_neighbors(parts),
        has_relative_distances=estimator._has_relative_distances(n_features, scale),
        seed=seed,
        split_seed=seed,
        is_partial=is_partial,
        earlier=earlier,
        validation_rows=validation_rows,
        whiten=estimator._whitens_codes,
        array_space=array_space,
    )
    together(partial(_check_validation_range, estimator, job, names))
    job = _with_checkpoint(estimator, job)
    if earlier is not None:
        # With the seed alone, each resumed fit would repeat the same random numbers,
        # and additional members would equal those before.
        entropy = [job.seed, len(earlier.net.history), n_kept]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        return replace(job, seed=seed)
    return job if job.share is None else _with_needed_components(estimator, job)


def _with_checkpoint(estimator: Estimator, job: Job) -> Job:
    """Return a job with the file from which it goes on, and with the seed of this fit.

    A `partial_fit` has none.
    """
    if estimator.checkpoint is None or job.is_partial:
        return job
    processes = current_processes()
    checkpoint = processes.together(
        partial(open_checkpoint, estimator, job, processes.size)
    )
    if not processes.any(estimator.random_state is None):
        return replace(job, checkpoint=checkpoint)
    seed = stored_seed(checkpoint, job.seed)
    return replace(job, checkpoint=checkpoint, seed=seed, split_seed=seed)


# Parameters


def _check_settings(
    estimator: Estimator, earlier: Trained | None
) -> tuple[Parts, torch.device, dict[str, Any]]:
    """Validate all parameters; return spec objects, the device and the structure."""
    parts = check_parameters(estimator)
    device = resolve_device(estimator.device)
    _check_precision(estimator, device)
    parameters = snapshot(estimator, (*estimator._STRUCTURE, "init"))
    if earlier is not None:
        _check_same_structure(estimator._STRUCTURE, parameters, earlier)
    return parts, device, parameters


def check_parameters(estimator: Estimator) -> Parts:
    """Validate all parameters, and return the spec objects that they name."""
    validate_parameters(estimator)
    check_callbacks(estimator.callbacks)
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
        # Which loss "auto" means depends on the rows, but these checks do not.
        _resolve_loss(estimator, 1, estimator.scale, False),
    )
    for part in parts:
        if isinstance(part, BaseEstimator):
            validate_parameters(part)
    network.check_activations()
    _check_combination(estimator, parts)
    estimator._check_combination(parts)
    return parts


def resolve_spec(part: Any, names: dict[str, type]) -> Any:
    """Return the spec object for a name, or a copy of a spec object."""
    if part is None:
        return None
    return names[part]() if isinstance(part, str) else clone(part)


def _resolve_loss(
    estimator: Estimator, n_features: int, scale: str | None, has_categories: bool
) -> Any:
    """Return the spec object of the loss; ``"auto"`` depends on the rows."""
    name = estimator.loss
    if isinstance(name, str) and name == "auto":
        name = estimator._auto_loss(n_features, scale, has_categories)
    return resolve_spec(name, LOSSES)


def _bound_loss(
    loss: Loss,
    summary: Summary,
    feature_names: np.ndarray | None,
    categories: Categories | None,
) -> Loss:
    """Return the loss for the columns of a table, see `Loss.bind`."""
    if categories is None:
        return loss.bind(summary.is_binary, feature_names)
    layout = categories.layout
    is_binary = summary.is_binary
    if is_binary is not None:
        is_binary = is_binary[layout.first] & ~categories.is_categorical
    loss = loss.bind(is_binary, feature_names)
    n_rows = tuple(summary.weight[layout.first].tolist())
    return CategoricalLoss(loss, layout, n_rows)


def _check_categorical(estimator: Estimator, parts: Parts) -> None:
    """Raise ValueError if parameters do not allow categorical features."""
    network, reason = parts.network, None
    if network.depends_on_order or estimator.input_shape is not None:
        name = "network" if network.depends_on_order else "input_shape"
        reason = (
            "which needs features in the order of an image or a signal. Use a network "
            "of dense layers and input_shape=None"
        )
    elif network.output_activation != "auto":
        name = "network"
        reason = (
            f"which has output_activation={network.output_activation!r}, but their "
            "outputs need a softmax. Use output_activation='auto'"
        )
    if reason is not None:
        raise ValueError(
            f"categorical_features={estimator.categorical_features!r} selects "
            f"categorical features, which is not possible with {name}="
            f"{getattr(estimator, name)!r}, {reason}, or categorical_features=None."
        )


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


def _check_same_start(parts: Parts, init: str, earlier: Trained) -> None:
    """Raise ValueError if additional members would have another initial structure.

    A network that starts as a PCA has a linear layer that others do not have.
    """
    before = earlier.parameters["init"]
    if starts_at_pca(parts, init) != starts_at_pca(parts, before):
        raise ValueError(
            f"init={init!r} differs from the value with which the ensemble was built, "
            f"{before!r}: additional members must start like those before. Set it "
            "back, or call fit with warm_start=False."
        )


def _count_kept(
    estimator: Estimator, ensemble: Ensemble | None, earlier: Trained, is_partial: bool
) -> int:
    """Return how many members are kept because only additional ones are trained.

    Raises
    ------
    ValueError
        If the ensemble would get fewer members, or more in a `partial_fit`.
    """
    n_members = 1 if ensemble is None else ensemble.n_members
    n_earlier = earlier.net.module_.n_members
    if n_members == n_earlier:
        return 0
    if is_partial:
        raise ValueError(
            f"n_estimators={estimator.n_estimators!r} differs from the number of "
            f"members of the fitted ensemble, {n_earlier}: partial_fit cannot change "
            "it. Set it back, or call fit with warm_start=True, which trains "
            "additional members."
        )
    if n_members < n_earlier:
        raise ValueError(
            f"n_estimators={estimator.n_estimators!r} must be larger or equal to the "
            f"number of members of the fitted ensemble, {n_earlier}, when "
            "warm_start=True."
        )
    return n_earlier


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device, which must be available; ``"auto"`` prefers CUDA."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
        torch.Generator(resolved)  # "meta" has none
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


def _rows_of(
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


def _check_training_data(
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
    if earlier is None:  # see `_check_training_data`
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


def _check_validation_rows(
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
                f"not have: {_join_names(unseen) or 'none'}. Names of X that are "
                f"missing: {_join_names(missing) or 'none'}."
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


def _check_validation_range(estimator: Estimator, job: Job, names: np.ndarray) -> None:
    """Raise ValueError if rows for validation have values that `fit` refuses in X."""
    rows = job.validation_rows
    if rows is None:
        return
    with threads_for(rows.n_entries, estimator.n_threads):
        summary = summarize(rows)
    loss = job.parts.loss
    _check_range(estimator, loss, summary.low, summary.high, names, "X_val")
    scaler = build_scaler(job)
    large = _exceeds_limit(summary, scaler.shift.numpy(), scaler.factor.numpy())
    if large.any():
        source = ", and the training rows determine the scale"
        raise _too_large(estimator, "X_val", names[large], source)


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


def _warn_channels_last(input_shape: Sequence[int] | None) -> None:
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
    is_missing = summary.weight == 0
    missing = np.flatnonzero(is_missing)
    if len(missing) and (is_missing.all() or not may_lack_features):
        raise no_observed_value(names[missing])
    large = np.flatnonzero(~is_missing & ~np.isfinite(summary.variance))
    if len(large):
        raise ValueError(
            "X has values too large for their variance to be computed, in "
            f"feature(s) {_join_names(names[large])}."
        )


def _check_magnitude(
    estimator: Estimator, summary: Summary, names: np.ndarray, earlier: Trained | None
) -> None:
    """Raise ValueError if scaled training rows exceed what the network receives.

    Scaled by the rows' own statistics, no value can.
    """
    shift, factor, source = np.zeros(len(names)), np.ones(len(names)), ""
    if earlier is not None:
        scaler = earlier.net.module_.scaler
        shift, factor = scaler.shift.cpu().numpy(), scaler.factor.cpu().numpy()
        source = ", and the first fit determines the scale"
    elif estimator.scale is not None:
        return
    large = _exceeds_limit(summary, shift, factor)
    if large.any():
        raise _too_large(estimator, "X", names[large], source)


def _exceeds_limit(
    summary: Summary, shift: np.ndarray, factor: np.ndarray
) -> np.ndarray:
    """Return whether scaled values of each feature exceed what networks receive."""
    with np.errstate(over="ignore"):
        size = np.fmax(np.abs(summary.low - shift), np.abs(summary.high - shift))
        return size / factor > LIMIT


def _too_large(
    estimator: Estimator, parameter: str, names: np.ndarray, source: str
) -> ValueError:
    """Return the error for features whose scaled values are too large."""
    return ValueError(
        f"{parameter} has values beyond {LIMIT:g} in the internally scaled space, in "
        f"feature(s) {_join_names(names)}; scale={estimator.scale!r}{source}."
    )


def no_observed_value(names: np.ndarray) -> ValueError:
    """Return the error for features without an observed value."""
    return ValueError(
        "X has no observed value, among rows with a positive weight, in "
        f"{len(names)} feature(s): {_join_names(names)}. Drop features without any "
        "value."
    )


def _check_range(
    estimator: Estimator,
    loss: Loss,
    low: np.ndarray,
    high: np.ndarray,
    names: np.ndarray,
    parameter: str = "X",
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
    parameter : {"X", "X_val"}, default="X"
        Where the rows were passed.
    """
    if loss.bounds is None:
        return
    bounded = loss.bounded_columns(len(low))
    least, most = loss.bounds
    smallest = np.fmin.reduce(low[bounded], initial=np.nan)
    largest = np.fmax.reduce(high[bounded], initial=np.nan)
    if smallest < least or largest > most:
        where = f"all of {parameter}"
        if not bounded.all():
            table = "" if parameter == "X" else f" of {parameter}"
            where = f"column(s) {_join_names(names[bounded])}{table}"
        raise ValueError(
            f"loss={estimator.loss!r} needs {where} in [{least:g}, {most:g}], got "
            f"values between {float(smallest)!r} and {float(largest)!r}. "
            "Use sklearn.preprocessing.MinMaxScaler(clip=True) to scale them."
        )


def _resolve_n_components(
    estimator: Estimator,
    parts: Parts,
    input_shape: tuple[int, ...],
    n_features: int,
    scale: str | None,
    rank: int,
    earlier: Trained | None,
) -> tuple[int, int]:
    """Return the width of the code, that of a fitted model, and its number of channels.

    In a feature-map code, so many consecutive components belong to one position. Any
    other code is one position with all components. Where `n_components` is None or a
    share, the width is `rank`, the smaller number of rows and features.
    """
    fixed = parts.network.code_shape(input_shape)
    if fixed is not None and estimator._has_ordered_components:
        raise ValueError(
            f"{estimator._reason_of_order} is not possible with network="
            f"{estimator.network!r}: the components of its code are positions of a "
            "map, of which none can be left out. Use ordered=False and "
            "n_components='auto', or a dense code."
        )
    if fixed is None:
        n_components = estimator.n_components
        if earlier is not None:
            n_components = earlier.net.module_.n_components
        elif isinstance(n_components, str):
            n_components = estimator._auto_n_components(parts, n_features, scale)
        elif not isinstance(n_components, Integral):
            n_components = rank
        return int(n_components), int(n_components)
    n_components, n_channels = math.prod(fixed), fixed[1]
    if estimator.n_components not in ("auto", n_components):
        raise ValueError(
            f"network={estimator.network!r} has a code of {n_components} components "
            f"(positions and channels {fixed}), but n_components is "
            f"{estimator.n_components}. Use n_components='auto'."
        )
    return n_components, n_channels


def _with_needed_components(estimator: Estimator, job: Job) -> Job:
    """Return a job with as many components as PCA needs for a share of the variance."""
    assert job.share is not None
    rows, scaler, split = job.rows, build_scaler(job), split_rows(job)
    others = split.held_out_parts() or [split.train]
    with threads_for(len(rows) * rows.n_features**2, job.settings.n_threads):
        n_components = count_needed(
            list(zip(split.training_parts(), others, strict=True)),
            job.share,
            scaler.mean.numpy(),
            scaler.factor.numpy(),
            job.seed,
        )
    return replace(
        job,
        n_components=n_components,
        n_channels=n_components,
        max_refinements=estimator._max_refinements(job.parts, n_components),
    )


def _join_names(names: np.ndarray) -> str:
    """Return the first five names as text for an error message."""
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
