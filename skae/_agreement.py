"""Whether the processes of a training were given the same."""

from __future__ import annotations

import numbers
from collections.abc import Callable
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
        Parameters of the estimator, those of spec objects included.
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
        known = (_described(parameters), options, _kind(checked[0]))
        return checked, blake2b(repr(known).encode()).digest()

    checked, own = processes.together(check_and_describe)
    _check_same(own, checked[0], processes)
    return checked


def check_agreement(job: Job) -> None:
    """Raise an error in all processes unless they were given the same.

    Raises
    ------
    ValueError
        If they were given different rows, weights or rows for validation, or continue
        from different fits.
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


def _described(parameters: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return names and values of parameters, without those that may differ.

    What does not consist of numbers and strings counts by its class.
    """
    compared = sorted(parameters.keys() - {"random_state", "device", "callbacks"})
    return [(name, _plain(parameters[name])) for name in compared]


def _plain(value: Any) -> Any:
    if isinstance(value, numbers.Number | str | None):
        return value
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return type(value).__qualname__


def _kind(X: Any) -> Any:
    """Return what all processes have to know alike before they read partitions."""
    if not isinstance(X, Partitions):
        return "in memory"
    source = X.source
    # Not a loop, which would run through all partitions of an iterable.
    _, first = next(X.read(slice(0, 1)), (0, np.empty(0)))
    digest = blake2b(first.tobytes()).digest()
    return X.format, source.n_rows, source.n_partitions, digest


def _digest(job: Job) -> bytes:
    """Return a hash of the numbers of rows, and of samples of the rows."""
    n_earlier = None if job.earlier is None else len(job.earlier.net.history)
    shapes = (job.rows.X.shape, job.rows.X.dtype, job.n_components)
    digest = blake2b(repr((shapes, job.is_partial, n_earlier)).encode())
    for rows in filter(None, (job.rows, job.validation_rows)):
        digest.update(repr(len(rows)).encode())
        sample = rows.sample()
        for values in (sample.dense(slice(None)), sample.weight):
            digest.update(np.ascontiguousarray(values).tobytes())
    return digest.digest()
