"""What `sample` draws rows from, estimated from the training rows."""

from __future__ import annotations

import numpy as np

from skae._job import Generation, Job
from skae._mixture import CodeDensity, fit_code_density
from skae._module import Autoencoder
from skae._ordered import Ordered
from skae._prediction import evaluate
from skae._row_noise import RowNoise
from skae._rows import Rows
from skae.engine.net import AutoencoderNet
from skae.engine.processes import current_processes

# Number of training rows from which the density and the noise are estimated, and the
# number of their entries that limits it for wide rows.
MAX_ROWS, MIN_ROWS, MAX_ENTRIES = 2048, 64, 2**20

# Number of generated rows from which their distribution by columns is estimated.
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
    n_rows = np.clip(MAX_ENTRIES // job.rows.n_features, MIN_ROWS, MAX_ROWS)
    sample = job.rows.pool.drawn(int(n_rows), job.seed)
    before = None
    if job.is_partial and job.earlier is not None:
        before = job.earlier.generation
    if ordered is None:
        earlier = None if before is None else before[0]
        Z = evaluate(_module(net), "encode", sample)
        density = _fit_density(job, Z, sample, earlier)
        return (_with_noise(job, net, Z, sample, density, earlier),)
    densities: dict[bool, CodeDensity] = {}
    found = []
    for width in range(net.module_.n_components, 0, -1):
        part, _ = ordered.of_width(net, width)
        Z = evaluate(_module(part), "encode", sample)
        earlier = None if before is None else before[width - 1]
        is_learnt = bool(ordered.is_learnt[width - 1])
        if is_learnt not in densities:  # by the most components of this network
            densities[is_learnt] = _fit_density(job, Z, sample, earlier)
        density = densities[is_learnt].of_first(width)
        found.append(_with_noise(job, part, Z, sample, density, earlier))
    return tuple(reversed(found))


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
) -> Generation:
    rng = np.random.RandomState(job.seed % 2**32)
    codes = np.concatenate([Z, density.draw(N_GENERATED, rng)])
    decoded = evaluate(_module(net), "decode", Rows(codes))
    X_hat, generated = decoded[: len(Z)], decoded[len(Z) :]
    X = sample.dense(slice(None)).astype(np.float64)
    is_bounded = job.parts.loss.bounded_columns(X.shape[1])
    before, share = None, 0.0
    if earlier is not None:
        before = earlier.noise
        share = earlier.codes.share_beside(float(job.rows.weight.sum()))
    noise = RowNoise.of(
        X, sample.weight, X_hat, generated, is_bounded, rng, before, share
    )
    return Generation(density, noise)


def _module(net: AutoencoderNet) -> Autoencoder:
    return net.module_in(np.dtype(np.float64))
