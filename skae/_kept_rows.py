"""The training rows that a detector keeps to measure distances to them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from skae._job import Job
from skae._neighbors import (
    AROUND_FACTOR,
    CORE_SHARE,
    MAX_DISTANCES,
    MAX_ENTRIES,
    MAX_ROWS,
    MIN_ROWS,
    KeptRows,
    NearestRows,
)
from skae._prediction import evaluate
from skae._repetitions import draw_positions
from skae._rows import Rows
from skae.engine.net import AutoencoderNet

FLOAT64 = np.dtype(np.float64)


def keep_rows(job: Job, net: AutoencoderNet) -> None:
    """Let the module of a trained net keep training rows, if its score needs them."""
    module = net.module_
    module.neighbors = None
    if job.n_neighbors == 0:
        return
    earlier = job.earlier.net.module_.neighbors if job.earlier is not None else None
    if job.is_partial and earlier is not None:
        sample = _with_earlier(job, net, earlier)
    else:
        sample = _drawn(job, net, _n_kept(len(job.rows), job.rows.n_features))
    if sample.error.min() < 0:
        return  # a loss of one's own; a ratio of such errors has no meaning
    order = np.argsort(sample.error, kind="stable")
    weight = sample.weight[order]
    reached = np.cumsum(weight) / weight.sum()
    n_core = int(np.searchsorted(reached, CORE_SHARE)) + 1
    n_core = min(max(n_core, job.n_neighbors + 1), len(weight))
    kept = KeptRows(sample.scaled[order], weight)
    n_around, layout = 0, job.parts.loss.layout
    if job.has_relative_distances and layout is None:
        n_around = max(1, round(AROUND_FACTOR * math.sqrt(weight.sum())))
    neighbors = NearestRows(
        kept, n_core, job.n_neighbors, sample.n_seen, n_around, layout
    )
    module.neighbors = neighbors.to(job.device)
    neighbors.measure(sample.error[order])


class Sample(NamedTuple):
    """Rows that are kept.

    Attributes
    ----------
    scaled : ndarray of shape (n_kept, n_features)
        Rows in the scaled space.
    weight, error : ndarray of shape (n_kept,)
        Weights and reconstruction errors.
    n_seen : float
        Weight of the rows from which these were drawn.
    """

    scaled: np.ndarray
    weight: np.ndarray
    error: np.ndarray
    n_seen: float


def _n_kept(n_rows: int, n_features: int) -> int:
    """Return the largest number of rows that are kept."""
    size = max(min(MAX_ROWS, MAX_DISTANCES // n_rows), MIN_ROWS)
    return max(1, min(size, MAX_ENTRIES // n_features))


def _drawn(job: Job, net: AutoencoderNet, size: int) -> Sample:
    """Draw training rows of this call, all of them if there are no more than `size`."""
    n_seen, pool = float(job.rows.weight.sum()), job.rows.pool
    position, weight = draw_positions(pool.weight, size, _generator(job))
    rows = pool.subset(position)
    scaled = evaluate(net.module_in(FLOAT64), "scaled", rows)
    errors = evaluate(net.module_in(FLOAT64), "reconstruction_error", rows)
    return Sample(scaled, weight, errors, n_seen)


def _with_earlier(job: Job, net: AutoencoderNet, earlier: NearestRows) -> Sample:
    """Draw rows of this call of `partial_fit`, and of those that were kept before.

    A row that was passed in several calls counts once: it may be the same row in
    another epoch.
    """
    size = _n_kept(len(job.rows), job.rows.n_features)
    share = job.rows.weight.sum() / (job.rows.weight.sum() + earlier.n_seen)
    n_new = max(size - len(earlier.kept), round(size * share), 1)
    new = _drawn(job, net, n_new)
    is_new = ~earlier.contains(new.scaled)
    scaled = np.concatenate([new.scaled[is_new].astype(np.float32), earlier.kept.rows])
    weight = np.concatenate([new.weight[is_new], earlier.kept.weight])
    n_added = int(is_new.sum())
    if len(scaled) > size:
        old = n_added + _generator(job).choice(
            len(earlier.kept), size - n_added, replace=False
        )
        chosen = np.concatenate([np.arange(n_added), np.sort(old)])
        scaled, weight = scaled[chosen], weight[chosen]
    # The network has changed since the last call.
    error = evaluate(net.module_in(FLOAT64), "scaled_error", Rows(scaled.astype(float)))
    return Sample(scaled, weight, error, new.n_seen + earlier.n_seen)


def _generator(job: Job) -> np.random.Generator:
    n_epochs = 0 if job.earlier is None else len(job.earlier.net.history)
    return np.random.default_rng([job.split_seed, 3, n_epochs])
