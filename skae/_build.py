"""Builds the initial module, the objective and the plan of a training."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from skae import _defaults
from skae._job import Ensemble, Job, Parts, Settings
from skae._layers import initialize_as_linear_map, make_activation, unbounded_columns
from skae._members import CodeWidths, stack, stack_squeezes
from skae._module import Autoencoder, Scaler
from skae._pca import principal_axes
from skae._processor import threads_for
from skae._summary import Summary
from skae.corruptions import Spread
from skae.engine.batches import count_batches
from skae.engine.objective import Objective
from skae.engine.plan import Plan
from skae.networks import Shape


class Start(NamedTuple):
    """Initial module and objective of a fit, copied for each training.

    Attributes
    ----------
    module : Autoencoder
    objective : Objective
    """

    module: Autoencoder
    objective: Objective

    def copy(self) -> Start:
        """Return copies that can be trained in place."""
        return copy.deepcopy(self)


def build_start(job: Job) -> Start:
    """Build the initial module, or copy the fitted one, and the objective."""
    if job.earlier is None:
        module = _build_module(job)
    else:
        module = copy.deepcopy(job.earlier.net.module_)
    module.max_refinements = job.max_refinements
    return Start(module, _build_objective(job, module.scaler))


def build_plan(job: Job, n_rows: int, *, early_stopping: bool) -> Plan:
    """Return the settings of a training on `n_rows` rows, without ``"auto"``."""
    settings, defaults = job.settings, job.defaults
    at_pca = starts_at_pca(job.parts, settings.init)
    batch_size = settings.batch_size
    if isinstance(batch_size, str):
        batch_size = defaults.auto_batch_size(n_rows)
    max_epochs = 1 if job.is_partial else settings.max_epochs
    if isinstance(max_epochs, str):
        n_batches = count_batches(n_rows, batch_size)
        max_epochs = defaults.auto_max_epochs(n_batches, at_pca)
    learning_rate = settings.learning_rate
    if isinstance(learning_rate, str):
        learning_rate = _defaults.auto_learning_rate(batch_size)
    return Plan(
        max_epochs=int(max_epochs),
        batch_size=int(batch_size),
        learning_rate=float(learning_rate),
        weight_decay=float(settings.weight_decay),
        schedule=None if job.is_partial else _defaults.schedule,
        early_stopping=early_stopping,
        keep_start=job.earlier is not None or at_pca,
        n_iter_no_change=settings.n_iter_no_change,
        tol=float(settings.tol),
        trim=float(settings.trim),
        compile=settings.compile,
        precision=settings.precision,
    )


# Initialization as a PCA


def starts_at_pca(parts: Parts, init: str) -> bool:
    """Whether the initial network is the PCA of the training rows."""
    return init != "random" and pca_obstacle(parts) is None


def pca_obstacle(parts: Parts) -> str | None:
    """Return the name of the parameter that rules out ``init="pca"``, or None."""
    network = parts.network
    if not network.allows_pca:
        return "network"
    if not parts.bottleneck.allows_pca:
        return "bottleneck"
    if network.code_activation == "auto" and parts.code_activation != "identity":
        return "penalty"
    if network.output_activation == "auto":
        return None if parts.loss.allows_pca else "loss"
    is_identity = isinstance(make_activation(network.output_activation), nn.Identity)
    return None if is_identity else "network"


# The module


def _build_module(job: Job) -> Autoencoder:
    parts, summary = job.parts, job.summary
    n_features = job.rows.n_features
    generator = torch.Generator().manual_seed(job.seed)
    visible = _draw_visible(job.ensemble, n_features, generator)
    n_members = 1 if job.ensemble is None else job.ensemble.n_members
    shape = Shape(
        len(job.rows),
        n_features,
        parts.bottleneck.encoder_width(job.n_components),
        job.n_components,
        job.input_shape,
        parts.code_activation,
        n_members,
    )
    networks = [parts.network.build(shape, generator) for _ in range(n_members)]
    squeezes = [
        parts.bottleneck.build(job.n_components, job.n_channels, generator)
        for _ in range(n_members)
    ]
    output = parts.network.build_output(parts.loss.build_output(n_features))
    at_pca = starts_at_pca(parts, job.settings.init)
    may_scale = unbounded_columns(output, n_features)
    may_scale &= ~parts.loss.bounded_columns(n_features)
    shift, factor = _scaling(job.settings, summary, may_scale, at_pca)
    code_factor = None
    if at_pca:
        networks, code_factor = _start_at_pca(networks, job, factor)
    (encoder, decoder), squeeze = networks[0], squeezes[0]
    if job.ensemble is not None:
        encoders, decoders = zip(*networks, strict=True)
        # A penalty is computed for each encoder separately.
        encoder = stack(encoders, fuse=parts.penalty is None)
        decoder, squeeze = stack(decoders), stack_squeezes(squeezes)
        if job.ensemble.widths is not None:
            widths = CodeWidths(job.ensemble.widths, job.n_components)
            encoder = nn.Sequential(encoder, widths)
    return Autoencoder(
        Scaler(summary.mean, shift, factor),
        encoder,
        squeeze,
        decoder,
        output,
        parts.loss,
        n_components=job.n_components,
        code_factor=code_factor,
        draws_globally=parts.network.draws_globally,
        visible=visible,
    )


def _draw_visible(
    ensemble: Ensemble | None, n_features: int, generator: torch.Generator
) -> torch.Tensor | None:
    """Draw the features that are input to each member.

    Returns
    -------
    visible : Tensor of bool of shape (n_members, 1, n_features) or None
        None without an ensemble.
    """
    if ensemble is None:
        return None
    u = torch.rand(ensemble.n_members, 1, n_features, generator=generator)
    # The ranks of a member are a random permutation of its features.
    return u.argsort(dim=-1).argsort(dim=-1) < ensemble.n_visible


def _scaling(
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
    networks: list[tuple[nn.Module, nn.Module]], job: Job, factor: np.ndarray
) -> tuple[list[tuple[nn.Module, nn.Module]], np.ndarray]:
    """Initialize networks as the PCA of the rows; also return `code_factor`."""
    rows, mean = job.rows, job.summary.mean
    with threads_for(len(rows) * rows.n_features**2, job.settings.n_threads):
        axes, variances = principal_axes(rows, job.n_components, mean, factor, job.seed)
    # Inside the network each component has unit variance, which trains better. If all
    # features have the same factor, `code_factor` gives the codes that users receive
    # the units of the data, as those of a PCA have.
    deviation = np.sqrt(np.where(variances > 0, variances, 1))
    started = [
        (
            initialize_as_linear_map(encoder, axes / deviation[:, None]),
            initialize_as_linear_map(decoder, axes.T * deviation),
        )
        for encoder, decoder in networks
    ]
    return started, deviation * (factor[0] if np.ptp(factor) == 0 else 1)


# The objective


def _build_objective(job: Job, scaler: Scaler) -> Objective:
    parts, settings = job.parts, job.settings
    corruption = penalty = None
    if parts.corruption is not None:
        spread = _spread(job, scaler)
        corruption = parts.corruption.build(settings.corruption_level, spread)
    if parts.penalty is not None:
        penalty = parts.penalty.build()
    return Objective(
        corruption, settings.bottleneck_weight, penalty, settings.penalty_weight
    )


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
    return Spread(*(torch.from_numpy(values).float() for values in scaled))
