"""What `sample` draws rows from, estimated from the training rows."""

from __future__ import annotations

import numpy as np

from skae._job import Generation, Job
from skae._mixture import CodeDensity, fit_code_density
from skae._module import Autoencoder
from skae._ordered import Ordered
from skae._prediction import evaluate
from skae._repetitions import draw_positions, repetitions
from skae._row_noise import RowNoise
from skae._rows import Rows
from skae.engine.net import AutoencoderNet
from skae.engine.processes import current_processes

# Number of training rows from which the density and the noise are estimated, and the
# number of their entries that limits it for wide rows.
MAX_ROWS, MIN_ROWS, MAX_ENTRIES = 2048, 64, 2**20

# With ordered components, number of entries of the rows for all numbers of components.
MAX_ENTRIES_OF_ALL = 2**23

# Largest number of generated rows from which their distribution by columns is
# estimated. Wide rows are as few as those drawn from the training rows.
N_GENERATED = 1024


def fit_generation(
    job: Job, net: AutoencoderNet, ordered: Ordered | None
) -> tuple[Generation, ...] | None:
    """Estimate the density of the codes, and the noise of the rows.

    Parameters
    ----------
    job : Job
    net : AutoencoderNet
        The trained net.
    ordered : Ordered or None

    Returns
    -------
    generation : tuple of Generation or None
        For each number of ordered components, else one. None if no rows are drawn.
    """
    if not job.draws_rows:
        return None
    return current_processes().share(lambda: _fit(job, net, ordered))


def _fit(
    job: Job, net: AutoencoderNet, ordered: Ordered | None
) -> tuple[Generation, ...]:
    sample = _drawn(job.rows.pool, _n_rows(job), job.seed)
    n_kept = 1 if ordered is None else net.module_.n_components
    before = None
    if job.is_partial and job.earlier is not None:
        before = job.earlier.generation
    if ordered is None:
        earlier = None if before is None else before[0]
        Z = evaluate(_module(net), "encode", sample)
        density = _fit_density(job, Z, sample, earlier)
        return (_with_noise(job, net, Z, sample, density, earlier),)
    densities: dict[bool, CodeDensity] = {}
    found: list[Generation] = []
    few = _drawn(sample, _n_few(job, n_kept), job.seed)
    for width in range(n_kept, 0, -1):
        part, _ = ordered.of_width(net, width)
        earlier = None if before is None else before[width - 1]
        is_learnt = bool(ordered.is_learnt[width - 1])
        rows = few if is_learnt in densities else sample
        Z = evaluate(_module(part), "encode", rows)
        if is_learnt not in densities:  # by the most components of this network
            densities[is_learnt] = _fit_density(job, Z, rows, earlier)
        density = densities[is_learnt].of_first(width)
        first = found[0] if found else None
        found.append(_with_noise(job, part, Z, rows, density, earlier, n_kept, first))
    return tuple(reversed(found))


def _n_rows(job: Job) -> int:
    return int(np.clip(MAX_ENTRIES // job.rows.n_features, MIN_ROWS, MAX_ROWS))


def _n_few(job: Job, n_kept: int) -> int:
    """Return the number of rows for the noise of fewer components, each by itself."""
    n_rows = MAX_ENTRIES_OF_ALL // (n_kept * job.rows.n_features)
    return int(np.clip(n_rows, 4 * MIN_ROWS, N_GENERATED))


def _drawn(rows: Rows, size: int, seed: int) -> Rows:
    """Return all rows if there are no more than `size`, else rows drawn at random."""
    if len(rows) <= size:
        return rows
    rng = np.random.default_rng([seed, 4])
    if repetitions(rows.weight) is not None:
        position, weight = draw_positions(rows.weight, size, rng)
        return rows.subset(position).with_weight(weight)
    drawn = rng.choice(len(rows), size, p=rows.weight / rows.weight.sum())
    position, times = np.unique(drawn, return_counts=True)
    return rows.subset(position).with_weight(times / size)


def _fit_density(
    job: Job, Z: np.ndarray, sample: Rows, earlier: Generation | None
) -> CodeDensity:
    n_seen = float(job.rows.weight.sum())
    codes = None if earlier is None else earlier.codes
    return fit_code_density(Z, sample.weight, job.seed, n_seen, codes)


def _with_noise(
    job: Job,
    net: AutoencoderNet,
    Z: np.ndarray,
    sample: Rows,
    density: CodeDensity,
    earlier: Generation | None,
    n_kept: int = 1,
    first: Generation | None = None,
) -> Generation:
    """Return the density with the noise.

    `first` is that of the most components, whose `n_kept` are kept: the quantiles of
    the training rows are the same.
    """
    rng = np.random.RandomState(job.seed % 2**32)
    n_generated = min(N_GENERATED, _n_rows(job))
    if first is not None:
        n_generated = min(n_generated, _n_few(job, n_kept))
    codes = np.concatenate([Z, density.draw(n_generated, rng)])
    decoded = evaluate(_module(net), "decode", Rows(codes))
    X_hat, generated = decoded[: len(Z)], decoded[len(Z) :]
    X = sample.dense(slice(None)).astype(np.float64)
    is_bounded = job.parts.loss.bounded_columns(X.shape[1])
    before, share = None, 0.0
    if earlier is not None:
        before = earlier.noise
        share = earlier.codes.share_beside(float(job.rows.weight.sum()))
    rows = (X, sample.weight, X_hat, generated)
    if first is not None:
        noise = first.noise.around(*rows, rng, before, share)
    else:
        noise = RowNoise.of(*rows, is_bounded, rng, before, share, n_kept)
    return Generation(density, noise)


def _module(net: AutoencoderNet) -> Autoencoder:
    return net.module_in(np.dtype(np.float64))
