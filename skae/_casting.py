"""A copy of a module in float64 that follows its original."""

from __future__ import annotations

import copy
from itertools import chain
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skae._compat import contents, copy_tensors


class DoubleCopy:
    """Gives a module's copy in float64, up to date with the module at each call.

    The copy is made once, and its weights are updated before each use, which takes
    about as long as one row's pass through the network. If an attribute, a hook, a
    parameter or a submodule of the original has been replaced, a new copy is made; a
    foreign module with attributes that can change in place, such as lists, is copied at
    each call. So every change by hand, ``parameter.data.fill_`` included, has the same
    effect on predictions in float64 as in float32.

    Parameters
    ----------
    module : torch.nn.Module
    """

    def __init__(self, module: nn.Module):
        self._original = module
        self._copy: nn.Module | None = None
        # Dictionaries of the original's attributes, and what they referred to when it
        # was copied.
        self._attributes: list[dict[str, Any]] = []
        self._references: list[Any] = []
        self._shapes: list[torch.Size] = []
        self._is_mutable = False
        self._sources: list[Tensor] = []
        self._targets: list[Tensor] = []

    def get(self) -> Any:
        """Return the copy with the present weights and attributes of the original."""
        # Tensors created in inference mode could not be overwritten outside of it.
        with torch.inference_mode(False), torch.no_grad():
            if self._copy is None or self._is_mutable or self._has_other_parts():
                self._make_copy()
            else:
                copy_tensors(self._targets, self._sources)
        return self._copy

    def _make_copy(self) -> None:
        copied: Any = copy.deepcopy(self._original).double()
        copied.functions = {}  # the parts of the copy do not change, see `Autoencoder`
        self._copy = copied
        modules = list(self._original.modules())
        self._attributes = [
            values for module in modules for values in (vars(module), *contents(module))
        ]
        # The references keep these objects alive, so that their identities are unique.
        self._references = list(self._present_references())
        self._sources = [*self._original.parameters(), *self._original.buffers()]
        self._targets = [*self._copy.parameters(), *self._copy.buffers()]
        self._shapes = [tensor.shape for tensor in self._sources]
        self._is_mutable = any(map(_has_mutable_attributes, modules))

    def _has_other_parts(self) -> bool:
        """Whether the original refers to other objects than when it was copied."""
        # Compared as a whole: this is a considerable share of a prediction for one row.
        return (
            sum(map(len, self._attributes)) != len(self._references)
            or not all(map(is_, self._present_references(), self._references))
            or [tensor.shape for tensor in self._sources] != self._shapes
        )

    def _present_references(self) -> chain[Any]:
        """All attributes, parameters, buffers, submodules and hooks of all modules."""
        return chain.from_iterable(map(dict.values, self._attributes))


# Attributes of every module.
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))


def _has_mutable_attributes(module: nn.Module) -> bool:
    """Whether a foreign module has attributes that can be changed in place."""
    if type(module).__module__.partition(".")[0] in ("skae", "torch"):
        return False
    return any(
        isinstance(value, list | dict | set | np.ndarray | Tensor)
        for name, value in vars(module).items()
        if name not in _MODULE_ATTRIBUTES
    )
