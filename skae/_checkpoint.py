"""The checkpoint of a fit: which fits have one in common, and the seed of a fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy import sparse

from skae._fingerprint import fingerprint
from skae._job import Job, Trained
from skae._rows import BLOCK_ENTRIES, Rows
from skae._version import __version__
from skae.engine.checkpoint import Checkpoint, make_folder
from skae.engine.processes import current_processes

# Parameters that do not influence the result of a fit, or are represented otherwise.
NOT_COMPARED = ("checkpoint", "n_jobs", "verbose", "random_state", "warm_start")


def open_checkpoint(estimator: Any, job: Job, n_processes: int) -> Checkpoint:
    """Return the file of a fit, after its folder has been created.

    Its identity is a hash of the rows, their weights, the validation rows, the
    parameters, the model from which training continues, and the versions of skae,
    PyTorch and NumPy. The seeds are not contained.

    Parameters
    ----------
    estimator : AutoencoderTransformer or AutoencoderOutlierDetector
        With validated parameters.
    job : Job
    n_processes : int
        Number of processes that train together.

    Raises
    ------
    TypeError
        If a parameter cannot be compared with those of other fits.
    ValueError
        If the estimator has callbacks of skorch.
    OSError
        If no files can be written to the folder.
    """
    if estimator.callbacks:
        raise ValueError(
            "checkpoint and callbacks cannot be used together: the state of skorch "
            "callbacks is not stored, so that a fit that goes on would differ. Use "
            "checkpoint=None, or callbacks=None."
        )
    parameters = estimator.get_params(deep=False)
    digests = []
    for name in sorted(parameters.keys() - set(NOT_COMPARED)):
        try:
            digests.append(fingerprint(name, parameters[name]))
        except TypeError as error:
            raise TypeError(
                f"{name}={parameters[name]!r} cannot be used with checkpoint, which "
                f"compares the parameters of fits: {error}."
            ) from error
    identity = fingerprint(
        (__version__, torch.__version__, np.__version__),
        type(estimator),
        digests,
        job.feature_names,
        job.categories,
        (job.device.type, n_processes),
        list(_contents(job.rows)),
        tuple(job.summary),
        [] if job.validation_rows is None else list(_contents(job.validation_rows)),
        None if job.earlier is None else _content_of_model(job.earlier),
    )
    return Checkpoint(make_folder(estimator.checkpoint), identity)


def stored_seed(checkpoint: Checkpoint, seed: int) -> int:
    """Return the seed of the first fit with this identity, which may be this one.

    With ``random_state=None`` each fit draws a seed. A fit that goes on needs that of
    the fit that was killed, so that the first one stores it.

    Parameters
    ----------
    checkpoint : Checkpoint
    seed : int
        Seed of this fit, which is stored if there is none.
    """

    def read_or_store() -> int:
        state = checkpoint.read()
        if state is None:
            checkpoint.write({"seed": seed})
            return seed
        with checkpoint.refused():
            return int(state["seed"])

    return current_processes().share(read_or_store)


def _contents(rows: Rows) -> Iterator[str]:
    """Yield hashes of the rows, block by block, and of their weights.

    Of rows that are read in partitions, only a sample is hashed: reading all of them
    takes as long as an epoch.
    """
    yield fingerprint(len(rows), rows.pool.X.dtype)
    yield fingerprint(None if rows.is_uniform else rows.weight)
    rows = rows.pool
    if not sparse.issparse(rows.X):
        yield from (fingerprint(block) for _, block in rows.blocks())
        return
    size = max(1, BLOCK_ENTRIES * len(rows) // max(1, rows.X.nnz))
    for start in range(0, len(rows), size):
        yield fingerprint(rows.stored(slice(start, start + size)))


def _content_of_model(earlier: Trained) -> list[Any]:
    """Return what of a fitted model determines a training that continues."""
    weights = earlier.net.module_.state_dict()
    return [weights, list(earlier.curves), earlier.net.best_epoch_, earlier.holdout]
