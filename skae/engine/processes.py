"""Training by several processes at once, each on a part of every batch.

The processes are those of :mod:`torch.distributed`, such as ``torchrun`` starts. Each
of them calls the same methods of the same estimators in the same order. Gradients are
summed over the processes, and what is computed once is sent to all of them.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from skae.engine.binding import is_flat, whole

T = TypeVar("T")


class Processes:
    """The process by itself: the base class, whose methods need no communication.

    Attributes
    ----------
    rank : int
        Number of this process, from 0.
    size : int
        Number of processes.
    """

    rank = 0
    size = 1

    @property
    def are_several(self) -> bool:
        return self.size > 1

    def share(self, compute: Callable[[], T]) -> T:
        """Return what a function returns in the first process.

        In the others it is not called. What it raises is raised in all processes.
        During the call there are no other processes, see `alone`.

        Parameters
        ----------
        compute : callable
            Without arguments; its result can be pickled.
        """
        return compute()

    def together(self, compute: Callable[[], T]) -> T:
        """Return what a function returns in this process.

        All processes call it. What it raises in one of them is raised in all, and if it
        raises in several, the error of the first of these.

        Parameters
        ----------
        compute : callable
            Without arguments.
        """
        return compute()

    def merged(self, compute: Callable[[], T], merge: Callable[..., T]) -> T:
        """Return the results of a function in all processes, merged by the first one.

        Parameters
        ----------
        compute : callable
            Without arguments; its result can be pickled. For errors see `together`.
        merge : callable
            Returns one result from those of all processes, in their order.
        """
        return compute()

    def concatenate(self, values: np.ndarray) -> np.ndarray:
        """Return the arrays of all processes, joined along the first axis."""
        return values

    def add(self, tensors: Sequence[Tensor], factor: float = 1.0) -> None:
        """Replace tensors by their weighted sums over the processes, in place.

        Parameters
        ----------
        tensors : sequence of Tensor
        factor : float, default=1.0
            Weight of the tensors of this process.
        """

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of the first process, in place."""

    def any(self, flag: bool) -> bool:
        """Whether the flag is True in any process."""
        return flag


class _Group(Processes):
    """The processes of :mod:`torch.distributed`."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        # NCCL, the backend for GPUs, has no collectives for memory of the host.
        self._host = dist.new_group(backend="gloo")

    def share(self, compute: Callable[[], T]) -> T:
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            outcome[0], error = _outcome(compute)
            outcome[1] = _sendable(error)
        dist.broadcast_object_list(outcome, group=self._host, device=_HOST)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def together(self, compute: Callable[[], T]) -> T:
        result, error = _outcome(compute)
        if self.any(error is not None):
            errors: list[Any] = [None] * self.size
            dist.all_gather_object(errors, _sendable(error), group=self._host)
            first = next(i for i, each in enumerate(errors) if each is not None)
            raise error if first == self.rank and error else errors[first]
        return result

    def merged(self, compute: Callable[[], T], merge: Callable[..., T]) -> T:
        own = self.together(compute)
        found: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(own, found, group=self._host)
        return self.share(lambda: merge(*(found or ())))

    def concatenate(self, values: np.ndarray) -> np.ndarray:
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, values, group=self._host)
        return np.concatenate(parts)

    def add(self, tensors: Sequence[Tensor], factor: float = 1.0) -> None:
        def add_flat(flat: Tensor, group: Any) -> None:
            dist.all_reduce(flat.mul_(factor), group=group)

        self._apply(tensors, add_flat)

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        def broadcast(flat: Tensor, group: Any) -> None:
            dist.broadcast(flat, src=0, group=group)

        self._apply(tensors, broadcast)

    def any(self, flag: bool) -> bool:
        count = torch.tensor([int(flag)])
        dist.all_reduce(count, group=self._host)
        return bool(count.item())

    def _apply(self, tensors: Sequence[Tensor], collective: Callable[..., Any]) -> None:
        """Apply a collective to all tensors of each type and device at once."""
        kinds = {(tensor.device, tensor.dtype) for tensor in tensors}
        for kind in sorted(kinds, key=str):
            alike = [t.detach() for t in tensors if (t.device, t.dtype) == kind]
            group = self._host if kind[0] == _HOST else None
            if is_flat(alike):  # the gradients of a recorded step
                collective(whole(alike), group=group)
                continue
            sizes = [tensor.numel() for tensor in alike]
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            collective(flat, group=group)
            for tensor, part in zip(alike, flat.split(sizes), strict=True):
                tensor.copy_(part.view_as(tensor))


def _outcome(compute: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """Return what a function returns in this process alone, and what it raises."""
    try:
        with alone():
            return compute(), None
    except Exception as error:
        return None, error


def _sendable(error: Exception | None) -> Exception | None:
    """Return an error that can be pickled, as not all of other packages can."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


_HOST = torch.device("cpu")
_ALONE = Processes()
_CURRENT: ContextVar[Processes] = ContextVar("processes", default=_ALONE)
_MAY_JOIN: ContextVar[bool] = ContextVar("may_join", default=True)

# One training at a time may communicate: the order of messages has to be the same in
# all processes.
_LOCK = threading.Lock()


def current_processes() -> Processes:
    """Return the processes that take part in the present training."""
    return _CURRENT.get()


@contextmanager
def alone() -> Iterator[None]:
    """Context of what not all processes do, or each in its own way.

    There are no other processes in it, so that nothing waits for them.
    """
    token = _CURRENT.set(_ALONE)
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextmanager
def single_process() -> Iterator[None]:
    """Context in which each process fits estimators by itself.

    A run of ``torchrun`` or ``accelerate launch`` has several processes, which
    otherwise train every network together.

    Yields
    ------
    None

    Examples
    --------
    >>> import numpy as np
    >>> from skae import AutoencoderTransformer
    >>> from skae.distributed import single_process
    >>> X_own = np.random.default_rng(0).normal(size=(100, 4))  # of this process
    >>> with single_process():
    ...     ae = AutoencoderTransformer(2, max_epochs=1, random_state=0).fit(X_own)
    """
    token = _MAY_JOIN.set(False)
    try:
        yield
    finally:
        _MAY_JOIN.reset(token)


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Context of a training by all processes of :mod:`torch.distributed`, if any.

    These are the processes of the default group, which is created if ``torchrun`` or
    ``accelerate launch`` has started this process. Processes that were started by a
    library such as joblib, and trainings that are part of another one, are alone.

    Raises
    ------
    RuntimeError
        If another thread of this process trains at the same time.
    """
    if _CURRENT.get().are_several or not _is_one_of_several():
        with alone():
            yield _ALONE
        return
    if not _LOCK.acquire(blocking=False):
        raise RuntimeError(
            "Two threads of a process cannot train at the same time in a run of "
            "several processes (torchrun, accelerate launch)."
        )
    token = _CURRENT.set(_group())
    try:
        yield _CURRENT.get()
    finally:
        _CURRENT.reset(token)
        _LOCK.release()


def _is_one_of_several() -> bool:
    """Whether this process is one of several that are to train together."""
    if not (_MAY_JOIN.get() and dist.is_available()):
        return False
    if dist.is_initialized():
        return dist.get_world_size() > 1
    # The processes of joblib and multiprocessing inherit the environment.
    is_child = multiprocessing.current_process().name != "MainProcess"
    is_launched = dist.is_torchelastic_launched() and not is_child
    return is_launched and int(os.environ["WORLD_SIZE"]) > 1


def _group() -> _Group:
    """Return the processes of the default group, which is created if there is none."""
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group()
        atexit.register(_leave)
    return _group_of(dist.group.WORLD)


@cache
def _group_of(world: Any) -> _Group:
    return _Group()


def _leave() -> None:
    """Leave the default group before the interpreter ends.

    Its threads must have ended by then, and no other reference may keep them.
    """
    _group_of.cache_clear()
    if dist.is_initialized():
        dist.destroy_process_group()
