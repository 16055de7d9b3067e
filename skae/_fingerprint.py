"""A hash of parameters and tables, the same in every process."""

from __future__ import annotations

import copyreg
import dis
import os
import sys
from collections.abc import Iterator
from functools import cache, cached_property, partial
from hashlib import blake2b
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

# Number of bytes of a hash.
SIZE = 16

# Folders of packages that are installed.
INSTALLED = {"site-packages", "dist-packages"}

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)

# Classes of what a class has for a method, besides functions.
_METHODS = (staticmethod, classmethod, property, cached_property)


def fingerprint(*values: Any) -> str:
    """Return a hash of values, which differs between different values.

    Parameters
    ----------
    values : object
        A function counts by its name, its code, its defaults, and the variables that
        it reads: those of the function that has defined it, and the global ones. A
        class counts by its name, its bases, its methods, and its variables. Functions
        and classes of installed packages and of Python count by their name. Other
        objects count by their class, and by what a pickle would store; global
        variables and those of classes that have no such content, by their class.

    Returns
    -------
    fingerprint : str of 32 hexadecimal digits

    Raises
    ------
    TypeError
        If an object cannot be pickled, and so has no content that could be compared.
    """
    return _Digests().of(values).hex()


class _Digests:
    """Computes the hashes of the values of one fingerprint."""

    def __init__(self) -> None:
        # Functions and classes whose code has been hashed: calls may be mutual.
        self._described: dict[int, Any] = {}

    def of(self, value: Any, outer: tuple[int, ...] = ()) -> bytes:
        """Return the hash of a value.

        Parameters
        ----------
        value : object
        outer : tuple of int
            Ids of the objects that contain it, which it may contain in turn.
        """
        if id(value) in outer:
            return _hash("cycle", str(outer.index(id(value))).encode())
        if isinstance(value, np.generic):
            value = value.item()
        if type(value) in _PLAIN:
            return _hash(type(value).__name__, repr(value).encode())
        if isinstance(value, Tensor):
            return _digest_of_tensor(value)
        if _is_plain_array(value):
            return _digest_of_array(value)
        if isinstance(value, ModuleType):
            return _hash("named", value.__name__.encode())
        outer = (*outer, id(value))
        if isinstance(value, type | FunctionType):
            return self._of_code(value, outer)
        if isinstance(value, set | frozenset):
            return _hash("set", *sorted(self.of(entry, outer) for entry in value))
        if isinstance(value, dict):
            pairs = [
                _hash("pair", *(self.of(part, outer) for part in pair))
                for pair in value.items()
            ]
            return _hash("dict", *sorted(pairs))
        content = _content(value)
        name = type(value).__qualname__
        return _hash(name, *(self.of(part, outer) for part in content))

    def _of_code(self, value: Any, outer: tuple[int, ...]) -> bytes:
        """Return the hash of a function or a class."""
        module = value.__module__ or ""
        named = _hash("named", f"{module}:{value.__qualname__}".encode())
        if id(value) in self._described or _is_installed(module.partition(".")[0]):
            return named
        self._described[id(value)] = value
        if isinstance(value, type):
            content, variables = list(value.__bases__), _variables_of_class(value)
        else:
            content, variables = _content_of_function(value), _globals(value)
        parts = [self.of(part, outer) for part in content]
        for name, variable in variables:
            parts += [name.encode(), self._of_variable(variable, outer)]
        return _hash("code", named, *parts)

    def _of_variable(self, value: Any, outer: tuple[int, ...]) -> bytes:
        """Return the hash of a value, or of its class if it has no content."""
        try:
            return self.of(value, outer)
        except (TypeError, RecursionError):  # such as a lock or a connection
            return self.of(type(value), outer)


@cache
def _is_installed(package: str) -> bool:
    """Whether a package is one of Python, this one, or in a folder of packages."""
    if package == "__main__":  # whose file, in a worker, is one of joblib
        return False
    if package == "skae" or package in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(package), "__file__", None)
    return file is not None and not INSTALLED.isdisjoint(Path(file).parts)


def _content(value: Any) -> list[Any]:
    """Return what determines a value, besides the name of its class."""
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return [os.fspath(value)]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, BuiltinFunctionType):
        return [value.__module__, value.__qualname__, value.__self__]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, CodeType):
        return [value.co_code, value.co_consts, value.co_names]
    if isinstance(value, property):
        return [value.fget, value.fset, value.fdel]
    if isinstance(value, cached_property):
        return [value.func]
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, torch.Generator):
        return [value.get_state()]
    if sparse.issparse(value):
        value = value.tocsr()
        return [value.shape, value.data, value.indices, value.indptr]
    if hasattr(value, "get_params"):
        return [type(value), value.get_params(deep=False)]
    reduce = copyreg.dispatch_table.get(type(value))
    try:
        reduced = value.__reduce_ex__(4) if reduce is None else reduce(value)
    except Exception as error:  # any class may refuse it by an error of its own
        raise TypeError(f"{value!r} has no content that could be compared") from error
    if isinstance(reduced, str):
        return [getattr(value, "__module__", None), reduced]
    function, arguments, *rest = reduced
    state, items, pairs = [*rest, None, None, None][:3]
    return [function, arguments, state, list(items or ()), list(pairs or ())]


def _content_of_function(function: FunctionType) -> list[Any]:
    """Return what determines a function, besides global variables."""
    cells = [_variable_of_cell(cell) for cell in function.__closure__ or ()]
    return [function.__code__, function.__defaults__, function.__kwdefaults__, *cells]


def _variable_of_cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the variable has no value yet
        return "no value"


def _globals(function: FunctionType) -> list[tuple[str, Any]]:
    """Return the global variables that a function reads, by name."""
    names = sorted(set(_global_names(function.__code__)))
    variables = function.__globals__
    return [(name, variables[name]) for name in names if name in variables]


def _global_names(code: CodeType) -> Iterator[str]:
    """Yield names of global variables that a code and those within it read."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


def _variables_of_class(cls: type) -> list[tuple[str, Any]]:
    """Return the methods and the variables of a class, by name."""
    return [
        (name, value)
        for name, value in sorted(vars(cls).items())
        if isinstance(value, (FunctionType, *_METHODS)) or not name.startswith("__")
    ]


def _digest_of_tensor(tensor: Tensor) -> bytes:
    try:
        shape = tuple(tensor.shape)
        values = tensor.detach().cpu().to_dense().resolve_conj().resolve_neg()
        # As bytes, since NumPy lacks some types.
        content = values.reshape(-1).view(torch.uint8).numpy().tobytes()
    except (RuntimeError, ValueError) as error:  # without memory, or quantized
        raise TypeError(
            f"a tensor of type {type(tensor).__name__} has no content that could be "
            "compared"
        ) from error
    kind = (tensor.dtype, tensor.layout, shape, tensor.requires_grad)
    return _hash(repr(kind), content)


def _is_plain_array(value: Any) -> bool:
    """Whether the bytes of a value are those of an array."""
    return (
        isinstance(value, np.ndarray)
        and not value.dtype.hasobject
        and not isinstance(value, np.ma.MaskedArray)
    )


def _digest_of_array(values: np.ndarray) -> bytes:
    kind = repr((values.dtype, values.shape)).encode()
    return _hash("array", kind, np.ascontiguousarray(values).tobytes())


def _hash(kind: str, *parts: bytes) -> bytes:
    """Return the hash of parts, which ends of other lengths do not give."""
    digest = blake2b(digest_size=SIZE)
    for part in (kind.encode(), *parts):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
