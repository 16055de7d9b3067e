"""Builds the initial module, the objective and the plan of a training."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from skae._categories import Layout
from skae._completion import fit_completion, has_missing
from skae._defaults import FEW_ROWS, Recipe
from skae._generator import isolated_generator
from skae._job import Ensemble, Job, Parts, Settings, pca_obstacle, starts_at_pca
from skae._layers import (
    initialize_as_linear_map,
    take_prefixes,
    takes_inputs_in_order,
    unbounded_columns,
)
from skae._members import CodeWidths, Members, join, stack, stack_squeezes, take
from skae._memory import is_out_of_memory
from skae._module import Autoencoder, Scaler, max_validation_refinements
from skae._noise import Noise
from skae._ordered import linear_start
from skae._pca import principal_axes, residual_variance
from skae._prefixes import Prefixes
from skae._processor import threads_for
from skae._summary import Summary
from skae.corruptions import Spread
from skae.engine.batches import count_batches
from skae.engine.objective import Objective
from skae.engine.plan import Plan
from skae.engine.processes import current_processes
from skae.engine.step import is_trusted

# Largest number of ordered components for which codes of held-out rows are refined
# during training, on up to `FEW_ROWS` rows. The encoder's codes of new rows are so much
# worse there that they hide what the decoder has learnt: two of four tables remained
# PCAs. Refining more of them takes longer and finds the same epochs.
MAX_REFINED_WIDTH = 2


class Start(NamedTuple):
    """Initial module and objective of a fit.

    Attributes
    ----------
    module : Autoencoder
    objective : Objective
    pca : Autoencoder or None
        The PCA of the training rows, with which codes of ordered components are
        compared; None if there is none.
    """

    module: Autoencoder
    objective: Objective
    pca: Autoencoder | None = None


def build_start(job: Job) -> Start:
    """Build the initial module, or copy the fitted one, and the objective.

    Raises
    ------
    MemoryError
        If the network does not fit into memory.
    """
    try:
        return _build_start(job)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(
            "There is not enough memory for a network with n_components="
            f"{job.n_components} for {job.rows.n_features} features. Lower "
            "n_components, or the sizes of the layers (hidden_layer_sizes or network)."
        ) from error


def _build_start(job: Job) -> Start:
    if job.earlier is not None and job.is_resumed:
        earlier = job.earlier
        module = copy.deepcopy(earlier.learnt_module)
        pca = None if earlier.ordered is None else earlier.ordered.start(earlier.net)
    else:
        module = _build_module(job)
        _check_predictions(module, job.parts)
        has_pca = job.is_ordered and starts_at_pca(job.parts, job.settings.init)
        pca = linear_start(module) if has_pca else None
    refines = job.parts.network.refines_held_out
    n_steps = max_validation_refinements(module.n_components) if refines else 0
    for each in (module, pca):
        if each is not None:
            each.max_refinements = job.max_refinements
            each.max_validation_refinements = n_steps
            each.completes_hidden = _completes_hidden(job, each)
    start = Start(module, _build_objective(job, module), pca)
    _check_trainable(start, job)
    return start


def choose_recipe(job: Job) -> Recipe:
    """Return the recipe of the training, which depends on network and start."""
    defaults = job.defaults
    if job.is_plain:
        is_small = job.shape.n_samples <= FEW_ROWS
        return defaults.plain_few if is_small else defaults.plain
    at_pca = starts_at_pca(job.parts, job.settings.init)
    return defaults.from_pca if at_pca else defaults.from_random


def build_plan(job: Job, n_rows: int, *, early_stopping: bool) -> Plan:
    """Return the settings of a training on `n_rows` rows, without ``"auto"``."""
    settings, defaults = job.settings, job.defaults
    at_pca = starts_at_pca(job.parts, settings.init)
    recipe = choose_recipe(job)
    batch_size = settings.batch_size
    if isinstance(batch_size, str):
        batch_size = recipe.auto_batch_size(n_rows)
    max_epochs = 1 if job.is_partial else settings.max_epochs
    if isinstance(max_epochs, str):
        n_batches = count_batches(n_rows, batch_size)
        max_epochs = defaults.auto_max_epochs(n_batches, recipe.n_steps)
    learning_rate = settings.learning_rate
    if isinstance(learning_rate, str):
        rate = job.parts.network.auto_learning_rate(batch_size)
        learning_rate = recipe.rate_factor * rate
    is_first = job.earlier is None and not job.is_partial
    return Plan(
        max_epochs=int(max_epochs),
        batch_size=int(batch_size),
        learning_rate=float(learning_rate),
        weight_decay=float(settings.weight_decay),
        schedule=None if job.is_partial else recipe.schedule,
        early_stopping=early_stopping,
        # With ordered components it is decided for each number of them.
        keep_start=job.is_resumed or (at_pca and not job.is_ordered),
        n_iter_no_change=settings.n_iter_no_change,
        tol=float(settings.tol),
        trim=float(settings.trim),
        compile=settings.compile,
        precision=settings.precision,
        beta2=recipe.beta2,
        averaged_steps=recipe.averaged_steps if early_stopping else 0.0,
        settling_steps=recipe.settling_steps,
        is_exact=is_first and at_pca and not job.is_ordered,
    )


# Initialization as a PCA


def starts_near_pca(parts: Parts, init: str) -> bool:
    """Whether the initial network is a PCA up to the output activation of the loss."""
    return (
        init == "auto"
        and pca_obstacle(parts) == "loss"
        and parts.bottleneck.starts_near_pca
        and parts.loss.decoder_start(np.zeros(0)) is not None
    )


# The module


def _build_module(job: Job) -> Autoencoder:
    parts, summary = job.parts, job.summary
    n_features = job.rows.n_features
    generator = torch.Generator().manual_seed(job.seed)
    visible = _draw_visible(job.ensemble, n_features, generator, parts.loss.layout)
    n_members = 1 if job.ensemble is None else job.ensemble.n_members
    networks = [parts.network.build(job.shape, generator) for _ in range(n_members)]
    squeezes = [
        parts.bottleneck.build(job.n_components, job.n_channels, generator)
        for _ in range(n_members)
    ]
    output = parts.network.build_output(parts.loss.build_output(n_features))
    at_pca = starts_at_pca(parts, job.settings.init)
    scaler = with_completion(_scaler(job, output), job)
    code_factor, deviation = None, summary.deviation / scaler.factor.numpy()
    if at_pca or starts_near_pca(parts, job.settings.init):
        networks, code_factor, deviation = _start_at_pca(networks, job, scaler)
    (encoder, decoder), squeeze = networks[0], squeezes[0]
    prefixes = None
    if job.is_ordered:
        decoder = take_prefixes(decoder, job.n_components)
        max_refined = MAX_REFINED_WIDTH if len(job.rows) <= FEW_ROWS else 0
        prefixes = Prefixes(job.n_components, job.n_components, max_refined)
    if job.ensemble is not None:
        encoders, decoders = zip(*networks, strict=True)
        # A penalty is computed for each encoder separately.
        encoder = stack(encoders, fuse=parts.penalty is None)
        decoder, squeeze = stack(decoders), stack_squeezes(squeezes)
        if job.ensemble.widths is not None:
            widths = CodeWidths(job.ensemble.widths, job.n_components)
            encoder = nn.Sequential(encoder, widths)
    return Autoencoder(
        scaler,
        encoder,
        squeeze,
        decoder,
        output,
        parts.loss,
        n_components=job.n_components,
        code_factor=code_factor,
        draws_globally=parts.network.draws_globally,
        visible=visible,
        noise=_build_noise(job, deviation),
        prefixes=prefixes,
    )


def join_members(earlier: Autoencoder, added: Autoencoder) -> Autoencoder:
    """Return a module of the members of a fitted module and of additional ones.

    Parameters
    ----------
    earlier, added : Autoencoder
        Modules of the same structure, in the same scaled space; `earlier` may be a
        single network. They are not changed.

    Returns
    -------
    joined : Autoencoder
        In eval mode, on the device of `added`.
    """
    device = added.code_factor.device
    kept = copy.deepcopy(earlier).to(device)
    encoder, decoder, squeeze = kept.encoder, kept.decoder, kept.bottleneck
    visible, added_visible = kept.visible, added.visible
    assert added_visible is not None  # it is an ensemble
    if visible is None:
        is_fused = not isinstance(added.encoder, Members)
        encoder, decoder = stack([encoder], is_fused), stack([decoder])
        squeeze = stack_squeezes([squeeze])
        visible = torch.ones_like(added_visible[:1])
    noise = kept.noise
    if noise is not None and added.noise is not None:
        noise = noise.joined(added.noise)
    joined = Autoencoder(
        kept.scaler,
        join(encoder, added.encoder),
        join(squeeze, added.bottleneck),
        join(decoder, added.decoder),
        kept.output,
        kept.loss,
        n_components=kept.n_components,
        draws_globally=kept.draws_globally,
        visible=torch.cat([visible, added_visible]),
        noise=noise,
    )
    joined.code_factor = kept.code_factor
    joined.max_refinements = added.max_refinements
    return joined.eval()


def take_members(module: Autoencoder, members: slice) -> Autoencoder:
    """Return a module of some members, with copies of their weights."""
    taken = copy.copy(module)
    parts = {
        name: take(getattr(module, name), members)
        for name in ("encoder", "bottleneck", "decoder")
    }
    taken._modules = {**module._modules, **parts}
    assert module.visible is not None  # it is an ensemble
    taken._buffers = {**module._buffers, "visible": module.visible[members]}
    if module.noise is not None:
        taken._modules["noise"] = module.noise.taken(members)
    return taken


def _check_trainable(start: Start, job: Job) -> None:
    """Raise ValueError if the network has no weight to train."""
    parts = (start.module, start.objective)
    weights = [p for part in parts for p in part.parameters()]
    # A callback may let frozen weights be trained.
    may_train = bool(weights and job.settings.callbacks)
    if may_train or any(weight.requires_grad for weight in weights):
        return
    raise ValueError(
        f"network={type(job.parts.network).__name__}(...) has nothing to train: "
        + (
            f"requires_grad is False for all of its {len(weights)} parameters."
            if weights
            else "its modules have no parameters."
        )
    )


def _check_predictions(module: Autoencoder, parts: Parts) -> None:
    """Raise ValueError if user-defined modules cannot predict, before training.

    Predictions differ from training in the type of the rows and in the memory layout
    of the code, which may be a slice of the encoder's output.
    """
    stages: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
        (parts.network, "The encoder of network", lambda m, H: m.encoder(H)),
        (parts.bottleneck, "bottleneck", lambda m, H: m.bottleneck(H)),
        (parts.network, "The decoder of network", lambda m, H: m.decoder(H)),
        (parts.network, "The output activation of network", lambda m, H: m.output(H)),
        (
            parts.loss,
            "loss",
            lambda m, H: m.loss.elementwise_from_raw(torch.zeros_like(H), H, m.output),
        ),
    )
    if all(map(is_trusted, (module, parts.network, parts.bottleneck, parts.loss))):
        return
    for dtype in (torch.float32, torch.float64):
        # A pass through foreign modules may change them.
        copied = copy.deepcopy(module).to(dtype).eval()
        X = copied.scaler.mean.new_zeros(2, len(copied.scaler.mean), dtype=dtype)
        with torch.inference_mode(), isolated_generator(True, 0, X.device):
            values = copied.encoder_input(X)
            for part, name, compute in stages:
                full_name = f"{name}={type(part).__name__}(...)"
                values = _check_stage(full_name, compute, copied, values)


def _check_stage(
    name: str, compute: Callable[..., Any], module: Autoencoder, values: torch.Tensor
) -> torch.Tensor:
    dtype = str(values.dtype).removeprefix("torch.")
    advice = (
        "Rows in float64 are predicted in float64, by a copy of the network in this "
        "type, and a code may be a slice of a larger tensor. So a module must compute "
        "in the type of its input, and with any strides: it must not call float() or "
        "view(-1), and must create tensors by new_zeros() or with dtype=x.dtype."
    )
    try:
        output = compute(module, values)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{name} fails in {dtype}: {error}. {advice}") from error
    if output.dtype != values.dtype:
        raise ValueError(
            f"{name} returns {str(output.dtype).removeprefix('torch.')} in {dtype}. "
            f"{advice}"
        )
    return output


def _build_noise(job: Job, deviation: np.ndarray) -> Noise | None:
    """Return the noise of the decoder, or None if training minimises the loss itself.

    A level that is learnt starts at the mean loss of entries at a distance of
    `deviation`, of shape (n_features,) in the scaled space, from their reconstruction.
    """
    level, loss = job.parts.bottleneck.noise_variance, job.parts.loss
    is_scaled = loss.scaled_columns(len(deviation))
    if level is None or not is_scaled.any():
        return None
    is_learnt = isinstance(level, str)
    if is_learnt:
        columns = is_scaled if loss.layout is None else loss.layout.spread(is_scaled)
        X = torch.from_numpy(np.where(columns, deviation, 0)).float()[None]
        level = loss.elementwise(X, torch.zeros_like(X))[0].numpy()[is_scaled].mean()
    n_members = None if job.ensemble is None else job.ensemble.n_members
    return Noise(loss, torch.from_numpy(is_scaled), float(level), is_learnt, n_members)


def _draw_visible(
    ensemble: Ensemble | None,
    n_features: int,
    generator: torch.Generator,
    layout: Layout | None,
) -> torch.Tensor | None:
    """Draw the features that are input to each member.

    Categorical features have several columns, which are visible together.

    Returns
    -------
    visible : Tensor of bool of shape (n_members, 1, n_features) or None
        None without an ensemble.
    """
    if ensemble is None:
        return None
    if layout is not None:
        n_features = layout.n_features
    u = torch.rand(ensemble.n_members, 1, n_features, generator=generator)
    # The ranks of a member are a random permutation of its features.
    visible = u.argsort(dim=-1).argsort(dim=-1) < ensemble.n_visible
    return visible if layout is None else layout.spread(visible)


def build_scaler(job: Job) -> Scaler:
    """Return the scaler of a fit, on the CPU."""
    parts = job.parts
    implied = parts.loss.build_output(job.rows.n_features)
    return _scaler(job, parts.network.build_output(implied))


def _scaler(job: Job, output: nn.Module) -> Scaler:
    """Return the scaler of a fit, on the CPU, for this activation of the output."""
    if job.earlier is not None:  # additional members work in the same scaled space
        return copy.deepcopy(job.earlier.net.module_.scaler).cpu()
    parts, n_features = job.parts, job.rows.n_features
    may_scale = unbounded_columns(output, n_features)
    may_scale &= ~parts.loss.bounded_columns(n_features)
    at_pca = starts_at_pca(parts, job.settings.init)
    shift, factor = scaling(job.settings, job.summary, may_scale, at_pca)
    return Scaler(job.summary.mean, shift, factor)


def with_completion(scaler: Scaler, job: Job) -> Scaler:
    """Return the scaler, which completes missing entries if the estimator does."""
    rows = job.rows
    if job.completes_rows and job.earlier is None:
        shift, factor = scaler.shift.numpy(), scaler.factor.numpy()
        with threads_for(len(rows) * rows.n_features**2, job.settings.n_threads):
            scaler.completion = current_processes().share(
                partial(fit_completion, rows, job.summary, shift, factor, job.seed)
            )
    return scaler


def _completes_hidden(job: Job, module: Autoencoder) -> bool:
    """Return `Autoencoder.completes_hidden`."""
    corruption, completion = job.parts.corruption, module.scaler.completion
    if corruption is None or completion is None or not corruption.hides_entries:
        return False
    if job.is_resumed:
        return module.completes_hidden
    return has_missing(job.rows, job.summary)


def scaling(
    settings: Settings, summary: Summary, may_scale: np.ndarray, at_pca: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return shift and factor of `Scaler`, each of shape (n_features,)."""
    shift, factor = np.zeros_like(summary.mean), np.ones_like(summary.mean)
    if at_pca or settings.scale is not None:
        shift[may_scale] = summary.mean[may_scale]
    if settings.scale == "feature":
        factor[may_scale] = summary.deviation[may_scale]
    elif settings.scale is not None and may_scale.any():
        total = summary.variance[may_scale].mean()
        factor[may_scale] = math.sqrt(total) if total > 0 else 1
    return shift, factor


def _start_at_pca(
    networks: list[tuple[nn.Module, nn.Module]], job: Job, scaler: Scaler
) -> tuple[list[tuple[nn.Module, nn.Module]], np.ndarray | None, np.ndarray]:
    """Initialize networks as the PCA of the rows.

    If the loss implies an output activation, the decoder is linear before it, and
    reconstructs the mean exactly and small deviations from it approximately.

    Returns
    -------
    networks : list of tuple of torch.nn.Module
        Encoders and decoders.
    code_factor : ndarray of shape (n_components,) or None
    deviation : ndarray of shape (n_features,)
        Standard deviation of the residuals in the scaled space.
    """
    rows, mean, factor = job.rows, scaler.mean.numpy(), scaler.factor.numpy()
    with threads_for(len(rows) * rows.n_features**2, job.settings.n_threads):
        axes, variances = current_processes().share(
            partial(principal_axes, rows, job.n_components, mean, factor, job.seed)
        )
    if job.reduction is not None:
        axes = job.reduction.oriented(axes)
    total = np.sum(job.summary.variance / factor**2)
    rest = residual_variance(total, variances, rows.n_features)
    start = job.parts.bottleneck.start_at_pca(
        axes, variances, rest, job.settings.bottleneck_weight
    )
    center = (mean - scaler.shift.numpy()) / factor
    bias = start.encoder_bias - start.encoder @ center
    decoder_start = job.parts.loss.decoder_start(center)
    assert decoder_start is not None
    raw, slope = decoder_start
    started = [
        (
            initialize_as_linear_map(encoder, start.encoder, bias),
            initialize_as_linear_map(decoder, start.decoder * slope[:, None], raw),
        )
        for encoder, decoder in networks
    ]
    # If all features have the same factor, the codes that users receive have the units
    # of the data, as those of a PCA have.
    code_factor = start.code_factor
    if code_factor is not None and np.ptp(factor) == 0:
        code_factor = code_factor * factor[0]
    deviation = np.full(rows.n_features, math.sqrt(start.noise_variance))
    return started, code_factor, deviation


# The objective


def _build_objective(job: Job, module: Autoencoder) -> Objective:
    parts, settings, scaler = job.parts, job.settings, module.scaler
    corruption = penalty = None
    weighs_units, warm_up = False, 0.0
    if parts.corruption is not None:
        spread = _spread(job, scaler)
        corruption = parts.corruption.build(settings.corruption_level, spread)
    if parts.penalty is not None:
        penalty = parts.penalty.build()
        weighs_units = parts.penalty.weighs_units and _norms_are_known(module)
        # A network that is trained on has adapted to the full weight.
        warm_up = 0.0 if job.is_partial or job.earlier else parts.penalty.warm_up
    return Objective(
        corruption,
        settings.bottleneck_weight,
        penalty,
        settings.penalty_weight,
        weighs_units,
        float(warm_up),
        float(parts.bottleneck.warm_up),
        settings.trim,
        parts.penalty is not None and parts.penalty.needs_rows,
    )


def _norms_are_known(module: Autoencoder) -> bool:
    """Whether the weights of the decoder's first layer belong to the units in order."""
    decoder = module.decoder
    is_fused = module.visible is not None and not isinstance(decoder, Members)
    if is_fused:  # fused layers, which are in order
        return True
    decoders = decoder.members if isinstance(decoder, Members) else [decoder]
    return all(takes_inputs_in_order(part, module.n_components) for part in decoders)


def _spread(job: Job, scaler: Scaler) -> Spread:
    """Return mean and range of the rows in the scaled space, for a corruption."""
    mean, shift, factor = (
        t.cpu().numpy() for t in (scaler.mean, scaler.shift, scaler.factor)
    )
    summary = job.summary
    if job.is_partial and job.earlier is not None:
        summary = job.earlier.summary.merged(summary)
    low, high = np.fmin(summary.low, mean), np.fmax(summary.high, mean)
    if np.ptp(factor) == 0:  # all features have the same scale, so also one range
        low, high = np.full_like(low, low.min()), np.full_like(high, high.max())
    scaled = [(values - shift) / factor for values in (mean, low, high)]
    layout = job.parts.loss.layout
    feature = None if layout is None else torch.from_numpy(layout.feature)
    at, least, most = (torch.from_numpy(values).float() for values in scaled)
    return Spread(at, least, most, feature)
