"""Attempts of benchmarks to fit a method: silent, limited in time, errors as text."""

from __future__ import annotations

import contextlib
import io
import signal
import warnings
from collections.abc import Iterator
from functools import partial
from types import FrameType


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress warnings and printed output."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def format_error(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


class OutOfTimeError(Exception):
    """A method has used more processor time than it is allowed to."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError as soon as the block has used this processor time.

    A single call of compiled code is not interrupted, but the error follows it. There
    is no limit on systems without interval timers (Windows).
    """
    if not hasattr(signal, "setitimer"):
        yield
        return
    previous = signal.signal(signal.SIGPROF, partial(stop, seconds))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def stop(seconds: float, number: int, frame: FrameType | None) -> None:
    raise OutOfTimeError(f"did not finish in {seconds:g} s of processor time")
