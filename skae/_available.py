"""Methods that exist only in some states of an estimator."""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper, wraps
from types import MethodType
from typing import Any


def available_unless(
    reason: Callable[[Any], str | None],
) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator of methods that are absent in some states of their object.

    As scikit-learn's ``available_if``, but the message of the AttributeError says why.

    Parameters
    ----------
    reason : callable
        Returns None for an object that has the method, otherwise why it has not: a
        clause that follows a colon.
    """
    return lambda method: _ConditionalMethod(method, reason)


class _ConditionalMethod:
    """Descriptor of a method, see `available_unless`."""

    def __init__(self, method: Callable[..., Any], reason: Callable[[Any], str | None]):
        self.method = method
        self.reason = reason
        update_wrapper(self, method)  # type: ignore[arg-type]

    def __get__(self, instance: Any, owner: type | None = None) -> Callable[..., Any]:
        if instance is not None:
            self._check(instance)
            return MethodType(self.method, instance)

        @wraps(self.method)
        def method(instance: Any, *args: Any, **kwargs: Any) -> Any:
            self._check(instance)
            return self.method(instance, *args, **kwargs)

        return method

    def _check(self, instance: Any) -> None:
        reason = self.reason(instance)
        if reason is not None:
            raise AttributeError(
                f"This {type(instance).__name__!r} has no attribute "
                f"{self.method.__name__!r}: {reason}"
            )
