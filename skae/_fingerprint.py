"""A hash of parameters and tables, the same in every process."""

from __future__ import annotations

import copyreg
import os
from functools import partial
from hashlib import blake2b
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

# Number of bytes of a hash.
SIZE = 16

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def fingerprint(*values: Any) -> str:
    """Return a hash of values, which differs between different values.

    Parameters
    ----------
    values : object
        A function counts by its name, its code, its defaults and the variables of the
        function that has defined it, but not by what it calls. A class counts by its
        name. Other objects count by their class, and by what a pickle would store.

    Returns
    -------
    fingerprint : str of 32 hexadecimal digits

    Raises
    ------
    TypeError
        If an object cannot be pickled, and so has no content that could be compared.
    """
    return _digest(values, ()).hex()


def _digest(value: Any, outer: tuple[int, ...]) -> bytes:
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
        # As bytes, since NumPy lacks some types.
        values = value.detach().cpu().reshape(-1).view(torch.uint8).numpy()
        kind = (value.dtype, tuple(value.shape), value.requires_grad)
        return _hash(repr(kind), values.tobytes())
    if isinstance(value, np.ndarray) and value.dtype != object:
        return _digest_of_array(value)
    if isinstance(value, type | BuiltinFunctionType):
        return _hash("named", f"{value.__module__}:{value.__qualname__}".encode())
    outer = (*outer, id(value))
    if isinstance(value, set | frozenset):
        return _hash("set", *sorted(_digest(entry, outer) for entry in value))
    if isinstance(value, dict):
        pairs = [_hash("pair", *(_digest(v, outer) for v in p)) for p in value.items()]
        return _hash("dict", *sorted(pairs))
    content = _content(value)
    return _hash(type(value).__qualname__, *(_digest(part, outer) for part in content))


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
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, CodeType):
        return [value.co_code, value.co_consts, value.co_names]
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        defaults = value.__defaults__, value.__kwdefaults__
        return [value.__module__, value.__qualname__, value.__code__, *defaults, *cells]
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
    except TypeError as error:
        raise TypeError(f"{value!r} has no content that could be compared") from error
    if isinstance(reduced, str):
        return [value.__module__, reduced]
    function, arguments, *rest = reduced
    state, items, pairs = [*rest, None, None, None][:3]
    return [function, arguments, state, list(items or ()), list(pairs or ())]


def _digest_of_array(values: np.ndarray) -> bytes:
    shape = repr((values.dtype.str, values.shape)).encode()
    return _hash("array", shape, np.ascontiguousarray(values).tobytes())


def _hash(kind: str, *parts: bytes) -> bytes:
    """Return the hash of parts, which ends of other lengths do not give."""
    digest = blake2b(digest_size=SIZE)
    for part in (kind.encode(), *parts):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
