"""Settings of the process and of PyTorch under which the package computes.

The caller's settings, such as a default type or an autocast, have no effect on results,
and are as before when a method returns.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial, wraps
from typing import Any, TypeVar

import numpy as np
import torch
from joblib import cpu_count
from threadpoolctl import ThreadpoolController

from skae._compat import (
    get_precision,
    is_any_autocast_enabled,
    release_blas_threads,
    set_precision,
)

# Number of multiplications in a step up to which a second thread makes it slower: with
# two threads, 64 rows with an encoder 20-64-32-8 take twice as long, and 128 rows with
# 784-128-64-12 take less time.
SMALL_WORK = 2e7

Function = TypeVar("Function", bound=Callable[..., Any])

# A subnormal number, which equals zero where these are flushed.
_SUBNORMAL = 5e-324

# Types of devices that have an autocast of their own.
_AUTOCAST_TYPES = ("cpu", "cuda", "mps", "xpu")

# PyTorch sets this variable when it first imports its compiler, which the first
# optimizer of a process does. Child processes would inherit it.
_INDUCTOR_FOLDER = "TORCHINDUCTOR_CACHE_DIR"

# Pairs of backend and operation whose precision in float32 can be set.
_CPU_PRECISIONS = [("mkldnn", name) for name in ("matmul", "conv", "rnn")]
_CUDA_PRECISIONS = [("cuda", name) for name in ("matmul", "conv", "rnn")]
# The objects with the older flags `allow_tf32` of the same.
_TF32_FLAGS = (torch.backends.cudnn, torch.backends.cuda.matmul)


class own_settings:  # noqa: N801 (used as a function)
    """Context, or decorator, in which the caller's settings have no effect.

    These are NumPy's error state; PyTorch's gradient and inference modes, autocast,
    default type, default device, precision of float32, choice of algorithms in cuDNN,
    and flushing of subnormal numbers. The settings of the whole process are changed
    while at least one thread is in this context.

    A child process that was forked uses one thread within the context: threads of the
    parent's pools do not exist in the child, which would wait for them.
    """

    # Not a generator: entering takes a considerable share of a prediction for one row.

    def __enter__(self) -> None:
        self._errors = np.errstate(all="ignore")
        self._errors.__enter__()
        _PROCESS.enter()
        self._stack: ExitStack | None = None
        if (
            torch.is_inference_mode_enabled()
            or not torch.is_grad_enabled()
            or is_any_autocast_enabled()
            or torch.empty(0).device.type != "cpu"
            or _flushes_denormals()
            or _PROCESS.is_forked
        ):
            self._stack = _without_settings_of_this_thread()

    def __exit__(self, *error: Any) -> None:
        try:
            if self._stack is not None:
                self._stack.close()
        finally:
            _PROCESS.leave()
            self._errors.__exit__(*error)

    def __call__(self, function: Function) -> Function:
        @wraps(function)
        def within_own_settings(*args: Any, **kwargs: Any) -> Any:
            with own_settings():
                return function(*args, **kwargs)

        return within_own_settings  # type: ignore[return-value]


def _without_settings_of_this_thread() -> ExitStack:
    """Disable the caller's settings of this thread, until the stack is closed."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for kind in _AUTOCAST_TYPES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if _flushes_denormals():
            torch.set_flush_denormal(False)
            stack.callback(torch.set_flush_denormal, True)
        if _PROCESS.is_forked:
            stack.enter_context(torch_threads(1))
        return stack.pop_all()


class _Process:
    """Settings of the whole process, and the threads that need them.

    Attributes
    ----------
    is_forked : bool
        Whether this process is a forked child of one that had imported the package.
    """

    def __init__(self) -> None:
        self.is_forked = False
        self._lock = threading.Lock()
        self._local = threading.local()
        # Number of threads that need these settings, and of those that want TF32.
        self._n_threads = self._n_tf32 = 0
        self._restore: list[Callable[[], Any]] = []
        self._flags: list[Any] = []

    def enter(self) -> None:
        """Have the settings of the package until `leave`; calls may be nested."""
        depth = getattr(self._local, "depth", 0)
        if not depth:
            self._count(1, 0)
        self._local.depth = depth + 1

    def leave(self) -> None:
        self._local.depth -= 1
        if not self._local.depth:
            self._count(-1, 0)

    @contextmanager
    def precision(self, name: str) -> Iterator[None]:
        """Context in which a GPU uses TF32 unless another thread needs float32."""
        uses_tf32 = name == "tf32"
        self.enter()
        self._local.uses_tf32 = uses_tf32
        self._count(0, uses_tf32)
        try:
            yield
        finally:
            self._count(0, -uses_tf32)
            self._local.uses_tf32 = False
            self.leave()

    def forget_other_threads(self) -> None:
        """Count the present thread alone: a forked child has no other."""
        self.is_forked = True
        self._lock = threading.Lock()
        is_within = getattr(self._local, "depth", 0) > 0
        self._n_tf32 = int(getattr(self._local, "uses_tf32", False))
        if self._n_threads and not is_within:
            self._leave()
        self._n_threads = int(is_within)

    def _count(self, change: int, change_of_tf32: int) -> None:
        with self._lock:
            if not self._n_threads:
                self._enter()
            self._n_threads += change
            self._n_tf32 += change_of_tf32
            if not self._n_threads:
                self._leave()
            elif torch.backends.cuda.is_built():
                self._set_tf32(self._n_tf32 == self._n_threads)

    def _enter(self) -> None:
        if (dtype := torch.get_default_dtype()) != torch.float32:
            torch.set_default_dtype(torch.float32)
            self._restore.append(partial(torch.set_default_dtype, dtype))
        for key in _CPU_PRECISIONS:
            if get_precision(*key) not in ("none", "ieee"):
                self._restore.append(_restoration(*key))
                set_precision(*key, "ieee")
        if torch.backends.cuda.is_built():
            self._restore.extend(_restoration(*key) for key in _CUDA_PRECISIONS)
            self._flags = [flags for flags in _TF32_FLAGS if _is_readable(flags)]
            for flags in self._flags:  # restored before the precisions, which they set
                before = flags.allow_tf32
                self._restore.append(partial(setattr, flags, "allow_tf32", before))
            # The choice of an algorithm by its speed differs from run to run.
            for name, value in (("deterministic", True), ("benchmark", False)):
                before = getattr(torch.backends.cudnn, name)
                restore = partial(setattr, torch.backends.cudnn, name, before)
                self._restore.append(restore)
                setattr(torch.backends.cudnn, name, value)

    def _set_tf32(self, is_tf32: bool) -> None:
        """Let a GPU compute in TF32 or in float32.

        The older flags are set, too: if they differ from the precisions, PyTorch
        raises an error where it reads them, as `torch.export` does.
        """
        for flags in self._flags:
            flags.allow_tf32 = is_tf32
        for key in _CUDA_PRECISIONS:
            set_precision(*key, "tf32" if is_tf32 else "ieee")

    def _leave(self) -> None:
        while self._restore:
            self._restore.pop()()


@contextmanager
def environment_restored() -> Iterator[None]:
    """Context that restores the environment variable that PyTorch sets."""
    before = os.environ.get(_INDUCTOR_FOLDER)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_INDUCTOR_FOLDER, None)
        elif os.environ.get(_INDUCTOR_FOLDER) != before:
            os.environ[_INDUCTOR_FOLDER] = before


def _is_readable(flags: Any) -> bool:
    """Return whether the flag `allow_tf32` agrees with the precisions.

    It does not if the caller has set one of these; PyTorch then cannot read it.
    """
    try:
        flags.allow_tf32  # noqa: B018
    except RuntimeError:
        return False
    return True


def _restoration(backend: str, operation: str) -> Callable[[], None]:
    """Return a function that sets the precision of an operation to its present value.

    A value that is inherited from the backend remains inherited.
    """
    value = get_precision(backend, operation)
    if value == get_precision(backend, "all"):
        value = "none"
    return partial(set_precision, backend, operation, value)


_PROCESS = _Process()

if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_PROCESS.forget_other_threads)


# Threads


@contextmanager
def threads_for(work: float, n_threads: int | str = "auto") -> Iterator[None]:
    """Context in which PyTorch and BLAS use a suitable number of threads.

    Parameters
    ----------
    work : float
        Number of multiplications in a step.
    n_threads : int or "auto", default="auto"
        ``"auto"`` is one thread up to `SMALL_WORK` multiplications. Above, it is
        PyTorch's present number of threads, but at most the number of processors that
        this process may use. In a forked child process it is always one.
    """
    if _PROCESS.is_forked:
        n_threads = 1
    elif n_threads == "auto":
        n_threads = _auto_threads(work)
    with (
        torch_threads(int(n_threads)),
        _pools("openmp").limit(limits=n_threads),  # of this thread
        _BLAS.limited(int(n_threads)),
    ):
        yield


@cache
def _pools(user_api: str) -> ThreadpoolController:
    """Return the thread pools of ``"blas"`` or ``"openmp"``.

    To find them takes milliseconds. A limit is restored for all pools that are found.
    """
    return ThreadpoolController().select(user_api=user_api)


class _BlasThreads:
    """Number of threads of BLAS, which all threads of the process share.

    Contexts in several threads may overlap. The last one to be entered determines the
    number, and the original one is restored after the last one to be left.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entered: dict[object, int] = {}
        self._first: Any = None

    @contextmanager
    def limited(self, n_threads: int) -> Iterator[None]:
        """Context in which BLAS uses a number of threads."""
        token = object()
        with self._lock:
            limiter = self._limit(n_threads)
            if not self._entered:
                self._first = limiter  # it has recorded the original numbers
            self._entered[token] = n_threads
        try:
            yield
        finally:
            with self._lock:
                self._leave(token)

    def forget_other_threads(self) -> None:
        """Start anew in a forked child process, which has one thread."""
        self.__init__()  # type: ignore[misc]  # the lock may have been held

    def _limit(self, n_threads: int) -> Any:
        release_blas_threads()
        limiter = _pools("blas").limit(limits=n_threads)
        release_blas_threads()
        return limiter

    def _leave(self, token: object) -> None:
        if self._entered.pop(token, None) is None:  # entered before a fork
            return
        if self._entered:
            self._limit(next(reversed(self._entered.values())))
            return
        release_blas_threads()
        self._first.restore_original_limits()
        release_blas_threads()


_BLAS = _BlasThreads()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_BLAS.forget_other_threads)


@contextmanager
def torch_threads_for(work: float) -> Iterator[None]:
    """Context in which PyTorch uses one thread for little work, as `threads_for`.

    It does not limit the threads of BLAS, which would take longer than a prediction for
    one row.

    Parameters
    ----------
    work : float
        Number of multiplications.
    """
    with torch_threads(1 if _PROCESS.is_forked else _auto_threads(work)):
        yield


def _auto_threads(work: float) -> int:
    """Return the number of threads for a number of multiplications."""
    if work <= SMALL_WORK:
        return 1
    # PyTorch does not know the limit of a container.
    return min(torch.get_num_threads(), cpu_count())


@contextmanager
def torch_threads(n_threads: int) -> Iterator[None]:
    """Context in which PyTorch uses a number of threads in the present thread.

    The number is set even if PyTorch reports it already: it reports that of OpenMP,
    which MKL does not follow once PyTorch has set a number for MKL.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Settings that other code changes


@contextmanager
def settings_restored() -> Iterator[None]:
    """Context that undoes changes of PyTorch's settings, as by a callback.

    These are the default type and device, the gradient mode, autocast, the number of
    threads, the precision of float32 on the CPU, and flushing of subnormal numbers. The
    default device is the CPU within `own_settings`.
    """
    dtype = torch.get_default_dtype()
    has_gradients = torch.is_grad_enabled()
    n_threads = torch.get_num_threads()
    flushes = _flushes_denormals()
    autocast = {kind: torch.is_autocast_enabled(kind) for kind in _AUTOCAST_TYPES}
    precisions = {key: get_precision(*key) for key in _CPU_PRECISIONS}
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        if torch.empty(0).device.type != "cpu":
            torch.set_default_device(None)
        torch.set_grad_enabled(has_gradients)
        if torch.get_num_threads() != n_threads:
            torch.set_num_threads(n_threads)
        if _flushes_denormals() != flushes:
            torch.set_flush_denormal(flushes)
        for kind, is_enabled in autocast.items():
            if torch.is_autocast_enabled(kind) != is_enabled:
                torch.set_autocast_enabled(kind, is_enabled)
        for key, precision in precisions.items():
            if get_precision(*key) != precision:
                set_precision(*key, precision)


# Numbers


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Context in which subnormal numbers, below 1e-38, are rounded to zero.

    Gradients and optimizer moments of constant features and of inactive units decay to
    such numbers, which make a step a hundred times slower.
    """
    was_flushed = _flushes_denormals()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_flushed)


def _flushes_denormals() -> bool:
    """Whether the present thread rounds subnormal numbers to zero."""
    return _SUBNORMAL == 0.0


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Context in which a GPU multiplies matrices in TF32 if `name` is ``"tf32"``.

    While fits with other settings run in other threads of the process, it does not.
    """
    with _PROCESS.precision(name):
        yield
