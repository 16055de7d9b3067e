"""Handling of Ctrl-C during a fit."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interruption:
    """Context in which Ctrl-C is recorded, and raised only inside `allowed`.

    So Ctrl-C ends the training, but the result of the training is still completed and
    stored in the estimator. Only Python's default handler of SIGINT is replaced, and
    only in the main thread.

    Attributes
    ----------
    requested : bool
        Whether the user has pressed Ctrl-C.
    """

    def __init__(self) -> None:
        self.requested = False
        self._is_allowed = False

    def __enter__(self) -> Interruption:
        self._is_active = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self._is_active:
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_active:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Context that raises KeyboardInterrupt on Ctrl-C, or on entry after one."""
        self._is_allowed = True
        try:
            if self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._is_allowed = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Context inside `allowed` that raises KeyboardInterrupt only at its end."""
        self._is_allowed = False
        yield
        self._is_allowed = True
        if self.requested:
            raise KeyboardInterrupt

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.requested = True
        if self._is_allowed:
            signal.default_int_handler(signum, frame)
