"""Copies of estimator parameters, and their comparison by value."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from functools import partial
from numbers import Number
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
from sklearn.base import clone
from torch import Tensor

# NumPy does not register its bool as a number.
_NUMBERS = (Number, np.bool_)


def snapshot(estimator: Any, names: Iterable[str]) -> dict[str, Any]:
    """Return copies of parameters.

    Spec objects are cloned, so that a later ``set_params(network__activation=...)``
    does not change the copy. Modules and functions are kept by reference.

    Parameters
    ----------
    estimator : BaseEstimator
    names : iterable of str
        Names of attributes; the constructor of a subclass may have fewer parameters.
    """
    return {name: _copied(getattr(estimator, name)) for name in names}


def _copied(value: Any) -> Any:
    if hasattr(value, "get_params") and not isinstance(value, type):
        return clone(value)
    if isinstance(value, list | np.ndarray):
        return copy.deepcopy(value)
    return value


def first_difference(
    names: Iterable[str], one: Mapping[str, Any], other: Mapping[str, Any]
) -> str | None:
    """Return the first of these parameters that differs, see `_equal`, or None."""
    return next((n for n in names if not _equal(one[n], other[n], set())), None)


def _equal(one: Any, other: Any, compared: set[tuple[int, int]]) -> bool:
    """Whether two parameters are equal.

    Numbers of different types may be equal, and so may strings of different types, and
    a tuple and a list. Spec objects are compared by their parameters, array-likes by
    their entries, modules and other objects that do not define ``==`` by their
    attributes: a copy or an unpickled object equals its original.

    Parameters
    ----------
    one, other : object
    compared : set of tuple of two int
        Ids of the pairs of objects whose attributes are being compared, since
        attributes may refer to each other.
    """

    def equal(a: Any, b: Any) -> bool:
        return _equal(a, b, compared)

    if one is other:
        return True
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, str) and isinstance(other, str):
        return bool(one == other)
    if isinstance(one, _NUMBERS) and isinstance(other, _NUMBERS):
        both_nan = one != one and other != other
        return _is_bool(one) == _is_bool(other) and bool(one == other or both_nan)
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return type(one) is type(other) and equal(
            one.detach().cpu().numpy(), other.detach().cpu().numpy()
        )
    if hasattr(one, "__array__") or hasattr(other, "__array__"):
        return _equal_arrays(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, FunctionType | BuiltinFunctionType | type):
        return False
    if hasattr(one, "get_params"):
        return equal(one.get_params(deep=False), other.get_params(deep=False))
    if isinstance(one, MethodType):
        return one.__func__ is other.__func__ and equal(one.__self__, other.__self__)
    if isinstance(one, np.random.RandomState):
        return equal(one.get_state(legacy=False), other.get_state(legacy=False))
    if isinstance(one, np.random.Generator):
        return equal(one.bit_generator.state, other.bit_generator.state)
    if isinstance(one, partial):
        return all(
            equal(getattr(one, name), getattr(other, name))
            for name in ("func", "args", "keywords")
        )
    if type(one).__eq__ is not object.__eq__:  # type: ignore[comparison-overlap]
        return bool(one == other)
    if (id(one), id(other)) in compared:
        return True
    compared.add((id(one), id(other)))
    return equal(_attributes(one), _attributes(other))


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _attributes(value: Any) -> Any:
    """Return the attributes of an object, also those in slots."""
    return vars(value) if hasattr(value, "__dict__") else value.__getstate__()


def _equal_arrays(one: Any, other: Any) -> bool:
    """Whether two array-likes, of which one may be a list, have equal entries."""
    if not all(
        isinstance(x, list | tuple) or hasattr(x, "__array__") for x in (one, other)
    ):
        return False
    are_arrays = isinstance(one, np.ndarray) and isinstance(other, np.ndarray)
    if are_arrays and one.dtype != other.dtype:
        return False
    one, other = np.asarray(one), np.asarray(other)
    has_nan = one.dtype.kind == other.dtype.kind == "f"
    return bool(np.array_equal(one, other, equal_nan=has_nan))
