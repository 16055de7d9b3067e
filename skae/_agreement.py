"""Whether the processes of a training were given the same."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import fields
from hashlib import blake2b
from typing import Any

import numpy as np

from skae._job import Job
from skae._partitions import Partitions
from skae.engine.processes import Processes, current_processes


def agreed_table(
    check: Callable[[], tuple[Any, Any]], parameters: dict[str, Any], *options: Any
) -> tuple[Any, Any]:
    """Return what a function returns that validates X, in all processes at once.

    Partitions are not read in common unless all processes have the same kind of table
    and the same parameters, with which they send the same messages.

    Parameters
    ----------
    check : callable
        Returns a table or `Partitions`, and something else.
    parameters : dict
        Parameters of the estimator.
    *options : Any
        What else has to be the same.

    Raises
    ------
    ValueError
        In all processes, if these differ.
    """
    processes = current_processes()
    if not processes.are_several:
        return check()

    def check_and_describe() -> tuple[tuple[Any, Any], bytes]:
        checked = check()
        known = (_numbers(parameters), options, _kind(checked[0]))
        return checked, blake2b(repr(known).encode()).digest()

    checked, own = processes.together(check_and_describe)
    _check_same(own, checked[0], processes)
    return checked


def check_agreement(job: Job) -> None:
    """Raise an error in all processes unless they were given the same.

    Raises
    ------
    ValueError
        If they were given different rows, weights or parameters.
    """
    processes = current_processes()
    if processes.are_several:
        _check_same(_digest(job), job.rows.X, processes)


def _check_same(own: bytes, X: Any, processes: Processes) -> None:
    if not processes.any(processes.share(lambda: own) != own):
        return
    given = f"has the shape {X.shape}"
    if isinstance(X, Partitions):
        given = "is read in partitions"
    raise ValueError(
        "X, sample_weight and the parameters of the estimator must be the same in "
        f"all {processes.size} processes, which train one network together; here "
        f"X {given} in process {processes.rank}. Pass all rows in each process, in the "
        "same order. Fit different estimators within "
        "skae.distributed.single_process()."
    )


def _numbers(parameters: dict[str, Any]) -> list[Any]:
    """Return the parameters that are numbers, strings or None.

    Without those that may differ.
    """
    compared = sorted(parameters.keys() - {"random_state", "device"})
    given = [parameters[name] for name in compared]
    return [x for x in given if isinstance(x, numbers.Number | str | None)]


def _kind(X: Any) -> Any:
    """Return what all processes have to know alike before they read partitions."""
    if not isinstance(X, Partitions):
        return "in memory"
    source = X.source
    first = [values.tobytes() for _, values in X.read(slice(0, 1))]
    return X.format, source.n_rows, source.n_partitions, blake2b(*first).digest()


def _digest(job: Job) -> bytes:
    """Return a hash of settings, of the number of rows, and of a sample of the rows."""
    settings = {f.name: getattr(job.settings, f.name) for f in fields(job.settings)}
    sample = job.rows.sample()
    shapes = (job.rows.X.shape, job.rows.X.dtype, len(job.rows), job.n_components)
    known = repr((_numbers(settings), shapes, job.is_partial))
    digest = blake2b(known.encode())
    for values in (sample.dense(slice(None)), sample.weight):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.digest()
