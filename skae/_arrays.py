"""Arrays of other libraries, such as PyTorch tensors, as arguments and results.

The package computes with NumPy arrays and its own tensors. An array of another library
is converted once when a public method is called, and the result once when it returns.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from sklearn import config_context, get_config
from torch import Tensor

from skae._compat import (
    array_library,
    library_device,
    library_to_numpy,
    numpy_to_library,
    requests_frame,
)

# Libraries other than NumPy whose arrays scikit-learn's checks pass to estimators.
LIBRARIES = ("torch", "cupy", "dpnp", "array_api_strict")

# Floating-point types that NumPy has too.
_NUMPY_FLOATS = (torch.float64, torch.float32, torch.float16)

Method = TypeVar("Method", bound=Callable[..., Any])


class ArraySpace(NamedTuple):
    """Library and device of arrays, by names, which can be stored.

    None stands in the place of an ArraySpace for NumPy.

    Attributes
    ----------
    library : str
        One of `LIBRARIES`.
    device : str
        Device as a string, such as ``"cuda:0"``.
    """

    library: str
    device: str

    @classmethod
    def of(cls, array: Any, name: str = "X") -> ArraySpace | None:
        """Return where an array is; None for NumPy and for all that is no array.

        Raises
        ------
        TypeError
            If it is an array of a library that is not supported.
        """
        if isinstance(array, Tensor):
            return cls("torch", str(array.device))
        if isinstance(array, np.ndarray) or (library := array_library(array)) is None:
            return None
        if library not in LIBRARIES:
            raise TypeError(
                f"{name} is an array of {library}, which is not supported. Convert it "
                "to a NumPy array or a PyTorch tensor."
            )
        return cls(library, str(library_device(array)))

    @property
    def usable(self) -> ArraySpace | None:
        """The same, or what takes its place if this process lacks it.

        The CPU takes the place of a device, NumPy that of a library.

        A model that was fitted on a GPU may be loaded without one.
        """
        if self.library != "torch":
            is_known = self.library in LIBRARIES and self.library in sys.modules
            return self if is_known else None
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError):
            return self._replace(device="cpu")
        return self

    def take(self, values: np.ndarray) -> Any:
        """Return an array of this library with the given values, on its device.

        It has the same type, but float32 in place of float64 on a device that does not
        have the latter. It may share memory with `values`.
        """
        if self.library != "torch":
            return numpy_to_library(values, self.library, self.device)
        if self.device.startswith("mps") and values.dtype == np.float64:
            values = values.astype(np.float32)
        if not values.flags.writeable or min(values.strides, default=0) < 0:
            values = values.copy()  # which PyTorch cannot represent
        return torch.from_numpy(values).to(self.device)

    def __str__(self) -> str:
        return f"{self.library} arrays on {self.device}"


def plain(space: ArraySpace | None) -> tuple[str, str] | None:
    """Return the fields as a tuple, which files hold without knowing its class."""
    return None if space is None else (space.library, space.device)


def is_dispatched() -> bool:
    """Whether the caller has set ``array_api_dispatch=True`` in scikit-learn."""
    return get_config()["array_api_dispatch"]


def space_of_output(array: Any) -> ArraySpace | None:
    """Return where results for an input are returned, by the present configuration."""
    return ArraySpace.of(array) if is_dispatched() else None


def without_dispatch() -> AbstractContextManager[Any]:
    """Context for computations on arguments that have been converted."""
    return config_context(array_api_dispatch=False)


def as_numpy(array: Any, name: str) -> Any:
    """Return a tensor, or an array of another library, as a NumPy array.

    Anything else is returned unchanged. A tensor on the CPU is not copied unless it has
    a type that NumPy lacks; its values are then in float64. Arrays of libraries other
    than PyTorch are converted only with ``array_api_dispatch=True``.

    Parameters
    ----------
    array : object
        An argument of a public method.
    name : str
        Its name, for the error message.

    Raises
    ------
    TypeError
        If it is an array that cannot be converted.
    """
    if array is None or isinstance(array, np.ndarray):
        return array
    if isinstance(array, Tensor):
        return _tensor_as_numpy(array, name)
    if isinstance(array, list | tuple):
        if len(array) and isinstance(array[0], Tensor):
            return [as_numpy(row, name) for row in array]
        return array
    if not is_dispatched() or ArraySpace.of(array, name) is None:
        return array
    return library_to_numpy(array)


def _tensor_as_numpy(tensor: Tensor, name: str) -> np.ndarray:
    if tensor.requires_grad:
        raise TypeError(
            f"{name} is a tensor that requires grad, but results have no gradients "
            f"with respect to it. Pass {name}.detach()."
        )
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise TypeError(
            f"{name} is a tensor of layout {tensor.layout}"
            f"{' and nested' if tensor.is_nested else ''}, but a dense one is needed. "
            "Pass a dense tensor, or a SciPy sparse matrix."
        )
    if tensor.is_floating_point() and tensor.dtype not in _NUMPY_FLOATS:
        tensor = tensor.to(torch.float64)  # exact
    try:
        return tensor.cpu().resolve_conj().resolve_neg().numpy()
    except (RuntimeError, TypeError) as error:
        raise TypeError(
            f"{name} is a tensor that cannot be converted to a NumPy array, of type "
            f"{tensor.dtype} on {tensor.device} ({error})"
        ) from error


def follows_input(method: Method) -> Method:
    """Decorate a method whose result is in the library and on the device of its input.

    The method receives NumPy arrays in place of tensors, except for `y`, which no
    method uses. With ``array_api_dispatch=True``, a resulting array is returned where
    the first argument is, which has to be where the rows were to which the estimator
    was fitted. Otherwise it is a NumPy array.
    """
    _, *names = inspect.signature(method).parameters

    @wraps(method)
    def converted(estimator: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_dispatched():
            # The conversion takes 2 of the 500 microseconds of a score of one row.
            if len(args) != 1 or kwargs or type(args[0]) is not np.ndarray:
                args, kwargs = _converted(names, args, kwargs)
            return method(estimator, *args, **kwargs)
        given = args[0] if args else kwargs.get(names[0])
        space = ArraySpace.of(given, names[0])
        if given is not None and estimator._is_fitted():
            _check_same_space(space, estimator, method.__name__)
        args, kwargs = _converted(names, args, kwargs)
        with without_dispatch():
            result = method(estimator, *args, **kwargs)
        if space is None or not isinstance(result, np.ndarray):
            return result
        if method.__name__ == "transform" and requests_frame(estimator):
            return result  # scikit-learn makes a data frame of it
        return space.take(result)

    return converted  # type: ignore[return-value]


def in_space_of_fit(estimator: Any, values: np.ndarray) -> Any:
    """Return the result of a method without an input, by the present configuration.

    With ``array_api_dispatch=True`` it is where the rows were to which the estimator
    was fitted; otherwise it is a NumPy array.
    """
    space = estimator._array_space if is_dispatched() else None
    return values if space is None else space.take(values)


def _converted(
    names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with NumPy arrays in place of tensors."""
    # Superfluous arguments remain, for the usual TypeError.
    named = [*zip(names, args, strict=False), *kwargs.items()]
    values = [v if k == "y" else as_numpy(v, k) for k, v in named]
    n_named = min(len(names), len(args))
    positional = (*values[:n_named], *args[n_named:])
    return positional, dict(zip(kwargs, values[n_named:], strict=True))


def _check_same_space(space: ArraySpace | None, estimator: Any, method: str) -> None:
    """Raise ValueError if an input is not where the rows passed to `fit` were.

    The message begins as that of scikit-learn's estimators.
    """
    fitted = estimator._array_space
    if space == fitted:
        return
    raise ValueError(
        f"Inputs passed to {type(estimator).__name__}.{method}() must use the same "
        "namespace and the same device as those passed to fit(): it was fitted to "
        f"{fitted or 'NumPy arrays'}, but {method} was called with "
        f"{space or 'NumPy arrays'}. Convert them, or move the estimator by "
        "sklearn.utils._array_api.move_estimator_to, which scikit-learn >= 1.9 has."
    )
