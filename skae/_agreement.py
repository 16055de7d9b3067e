"""Whether the processes of a training were given the same."""

from __future__ import annotations

from dataclasses import fields, replace
from hashlib import blake2b

import numpy as np

from skae._job import Job
from skae.engine.processes import Processes


def agreed(job: Job, processes: Processes) -> Job:
    """Return the job with the random seeds of the first process.

    Parameters
    ----------
    job : Job
    processes : Processes

    Raises
    ------
    ValueError
        In all processes, if they were given different rows, weights or parameters, or
        rows that are read in partitions.
    """
    if job.rows.is_streamed:
        raise ValueError(
            f"A table in partitions cannot be trained on by {processes.size} processes "
            "together. Use one process, within skae.distributed.single_process(), or "
            "pass X as one array, such as a memory-mapped file."
        )
    own = _digest(job)
    if processes.any(processes.share(lambda: own) != own):
        raise ValueError(
            "X, sample_weight and the parameters of the estimator must be the same in "
            f"all {processes.size} processes, which train one network together; here "
            f"X has the shape {job.rows.X.shape} in process {processes.rank}. Load all "
            "rows in each process, in the same order. Fit different estimators within "
            "skae.distributed.single_process()."
        )
    seed, split_seed = processes.share(lambda: (job.seed, job.split_seed))
    return replace(job, seed=seed, split_seed=split_seed)


def _digest(job: Job) -> bytes:
    """Return a hash of settings, of the number of rows, and of a sample of the rows."""
    given = [getattr(job.settings, field.name) for field in fields(job.settings)]
    numbers = [value for value in given if isinstance(value, int | float | str | None)]
    sample = job.rows.sample()
    shapes = (job.rows.X.shape, job.rows.X.dtype, len(job.rows), job.n_components)
    digest = blake2b(repr((numbers, shapes, job.is_partial)).encode())
    for values in (sample.dense(slice(None)), sample.weight):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.digest()
