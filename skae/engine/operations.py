"""Operators that were recorded, with the tensors that they read and write."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from skae._compat import schema

aten = torch.ops.aten

# Operators that read only the shape and the type of their arguments.
CONSTANTS = {
    aten.empty_like.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.new_empty.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
}


@dataclasses.dataclass(frozen=True)
class Fused:
    """An operator in place of several of PyTorch's.

    Attributes
    ----------
    bind : callable
        Called with the outputs and the arguments of an operation; returns functions
        without arguments that compute the outputs when they are called in this order.
    """

    bind: Callable[..., list[Callable[[], Any]]]


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """One call of a PyTorch operator.

    The sets of storages are those at the first time they are asked for.

    Attributes
    ----------
    operator : torch._ops.OpOverload or Fused
        A fused operator only returns new tensors.
    args : tuple
    kwargs : dict
    outputs : tuple
        Tensors that it returned; None for a returned value that is no tensor.
    """

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Any, ...]

    @cached_property
    def read(self) -> set[int]:
        """Storages of the tensors whose values the operator reads."""
        return set() if self.operator in CONSTANTS else self.argument_storages

    @cached_property
    def created(self) -> set[int]:
        """Storages of the returned tensors, except arguments that it overwrites."""
        return {storage(t) for t in tensors_in(self.outputs)} - self.changed

    @cached_property
    def changed(self) -> set[int]:
        """Storages of the tensors that the operator overwrites."""
        if isinstance(self.operator, Fused):
            return set()
        written = [
            self.args[i] if i < len(self.args) else self.kwargs.get(argument.name)
            for i, argument in enumerate(schema(self.operator).arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        return {storage(t) for t in tensors_in(written)}

    @cached_property
    def is_random(self) -> bool:
        """Whether the operator draws random numbers."""
        return torch.Tag.nondeterministic_seeded in self.operator.tags

    @cached_property
    def is_view(self) -> bool:
        """Whether the operator only returns views of its arguments."""
        if torch.Tag.inplace_view in self.operator.tags:
            return True
        is_alias = bool(self.created) and self.created <= self.argument_storages
        return is_alias and not self.changed

    @cached_property
    def argument_storages(self) -> set[int]:
        """Storages of all arguments."""
        return {storage(t) for t in tensors_in((self.args, self.kwargs))}

    def replace(self, **changes: Any) -> Operation:
        """Return a new operation with other values of some attributes."""
        return dataclasses.replace(self, **changes)

    @cached_property
    def storages(self) -> set[int]:
        """Storages of all arguments and outputs."""
        return self.argument_storages | {storage(t) for t in tensors_in(self.outputs)}


def storage(tensor: Tensor) -> int:
    """Return the address of a tensor's storage, which identifies it."""
    return tensor.untyped_storage().data_ptr()


def place(tensor: Tensor) -> tuple[Any, ...]:
    """Return memory address, layout and type, which identify a tensor."""
    return (
        storage(tensor),
        tensor.storage_offset(),
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
    )


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield all tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for entry in value:
            if isinstance(entry, Tensor):  # without another generator
                yield entry
            else:
                yield from tensors_in(entry)
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))
