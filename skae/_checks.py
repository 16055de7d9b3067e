"""Validation of parameters and data before training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state

from skae._agreement import agreed_table
from skae._build import build_scaler
from skae._categorical_loss import CategoricalLoss
from skae._categories import Categories
from skae._checkpoint import open_checkpoint, stored_seed
from skae._compat import validate_parameters
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
from skae._parameters import first_difference, snapshot
from skae._pca import count_needed
from skae._processor import threads_for
from skae._split import split_rows
from skae._summary import Summary, summarize
from skae._tables import (
    check_training_data,
    check_validation_rows,
    join_names,
    no_observed_value,
    rows_of,
    warn_channels_last,
)
from skae._user_callbacks import check_callbacks
from skae.bottlenecks import BOTTLENECKS
from skae.corruptions import CORRUPTIONS
from skae.engine.processes import current_processes
from skae.losses import LOSSES, Loss
from skae.networks import NETWORKS
from skae.penalties import PENALTIES

# An instance of `BaseAutoencoder`, whose module imports this one.
Estimator: TypeAlias = Any


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
        partial(check_training_data, estimator, X, sample_weight, earlier, is_partial),
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
            check_validation_rows,
            estimator,
            X_val,
            sample_weight_val,
            X,
            feature_names,
            categories,
        )
    )
    if earlier is None:
        warn_channels_last(estimator.input_shape)
    rows, positions = rows_of(X, sample_weight, estimator)
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
        n_neighbors=estimator._resolve_n_neighbors(parts, n_features, scale),
        has_relative_distances=estimator._has_relative_distances(n_features, scale),
        seed=seed,
        split_seed=seed,
        is_partial=is_partial,
        earlier=earlier,
        validation_rows=validation_rows,
        whiten=estimator._whitens_codes,
        draws_rows=estimator._draws_rows(parts),
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
            f"feature(s) {join_names(names[large])}."
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
        f"feature(s) {join_names(names)}; scale={estimator.scale!r}{source}."
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
            where = f"column(s) {join_names(names[bounded])}{table}"
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
