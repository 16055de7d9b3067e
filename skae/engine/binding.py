"""How operators are repeated: functions that write into the recorded tensors.

For small tensors the overhead of a call is most of its time. Among functions that
compute the same, the one with the least overhead is taken: an in-place or an `out`
variant of PyTorch, or a function of NumPy on the same memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skae._compat import (
    FOREACH_ADD_SCALAR,
    FUNCTIONS,
    FUSED_ADAM,
    IN_PLACE_FUNCTIONS,
    TO_COPY,
    has_kernel,
    raw_function,
    schema,
)
from skae.engine import products
from skae.engine.operations import Fused, Operation, aten, storage

# A function without arguments that repeats an operation, or a part of it.
Call = Callable[[], Any]

# Number of entries from which PyTorch uses several threads for an operation on entries.
SERIAL_ENTRIES = 2**15

# Functions of torch that take the arguments of the operator of the same name and, in
# addition, `out`. Calling them takes half the time of calling the operator.
_NAMES = """
    abs add addmm amax baddbmm bmm cat clamp clamp_max clamp_min cumsum div exp gather
    ge gt le log lt maximum mean minimum mm mul neg pow reciprocal remainder rsqrt
    sigmoid sign sqrt sub sum tanh where
"""
DIRECT: dict[str, Any] = {name: getattr(torch, name) for name in _NAMES.split()}
DIRECT |= FUNCTIONS

# Operators without an `out` variant, each with a function that takes the output and the
# arguments and returns a callable that writes the result into the output.
WRITERS: dict[Any, Callable[..., Any]] = {
    aten.relu.default: lambda out, X: partial(torch.clamp_min, X, 0, out=out),
    aten.mean.default: lambda out, X, dtype=None: partial(
        torch.mean, X, list(range(X.ndim)), dtype=dtype, out=out
    ),
    aten.sum.default: lambda out, X, dtype=None: partial(
        torch.sum, X, list(range(X.ndim)), dtype=dtype, out=out
    ),
    aten.rsub.Scalar: lambda out, X, number, alpha=1: partial(
        torch.sub, torch.tensor(number, dtype=out.dtype), X, alpha=alpha, out=out
    ),
    aten.clone.default: lambda out, X, **_: partial(out.copy_, X),
    TO_COPY: lambda out, X, **_: partial(out.copy_, X),
    aten.zeros_like.default: lambda out, *_, **__: out.zero_,
    aten.zeros.default: lambda out, *_, **__: out.zero_,
    aten.rand.generator: lambda out, _, generator, **__: partial(
        out.uniform_, generator=generator
    ),
    aten.randn.generator: lambda out, _, generator, **__: partial(
        out.normal_, generator=generator
    ),
}


# Operators on tensors whose second argument may be a number.
TAKE_NUMBERS = {"add", "div", "ge", "gt", "le", "lt", "mul", "sub"}


def bind_all(
    operations: list[Operation], owns_storage: Callable[[Tensor], bool]
) -> list[Call]:
    """Return functions without arguments that repeat the operations.

    Parameters
    ----------
    operations : list of Operation
    owns_storage : callable
        Whether no other tensor shares the storage of a tensor.
    """
    calls: list[Call] = []
    # Storages of which NumPy has views, which must not be replaced. The operations that
    # read a tensor come after the one that writes it, hence the reverse order.
    viewed: set[int] = set()

    def may_replace(tensor: Tensor) -> bool:
        return owns_storage(tensor) and storage(tensor) not in viewed

    for operation in reversed(operations):
        bound = _bind_with_numpy(operation)
        if bound is not None:
            viewed |= operation.storages
        else:
            bound = [_bind(operation, may_replace)]
        calls.extend(reversed(bound))
    return calls[::-1]


def bind_plainly(operation: Operation) -> Call:
    """Return a function that repeats an operation by a function of PyTorch."""
    return _bind(operation, lambda tensor: False)


def is_serial(tensor: Tensor, max_entries: int) -> bool:
    """Whether one thread computes an operation, on at most so many entries."""
    return tensor.numel() <= max_entries or torch.get_num_threads() == 1


def is_plain_array(*tensors: Tensor) -> bool:
    """Whether tensors are contiguous, not empty, and of a type that NumPy knows."""
    return has_numpy_type(*tensors) and all(t.is_contiguous() for t in tensors)


def have_same_layout(*tensors: Tensor) -> bool:
    """Whether NumPy iterates over tensors in the order of their memory.

    They are contiguous, or are matrices whose columns are, all of the same shape.
    """
    first = tensors[0]
    return (
        has_numpy_type(*tensors)
        and all(t.shape == first.shape for t in tensors)
        and all(t.stride() == first.stride() for t in tensors)
        and (first.is_contiguous() or (first.ndim >= 2 and first.mT.is_contiguous()))
    )


def has_numpy_type(*tensors: Tensor) -> bool:
    """Whether tensors are on the CPU, not empty, and of one type that NumPy knows."""
    return all(
        t.device.type == "cpu"
        and t.dtype in (torch.float32, torch.float64)
        and t.dtype == tensors[0].dtype
        and t.numel() > 0
        for t in tensors
    )


# Functions of NumPy, and of the library that multiplies fastest


def _bind_with_numpy(operation: Operation) -> list[Call] | None:
    """Return functions that may use NumPy, or None if PyTorch's own are as fast."""
    operator, outputs = operation.operator, operation.outputs
    args, kwargs = operation.args, operation.kwargs
    if isinstance(operator, Fused):
        return operator.bind(*outputs, *args)
    if operator is FOREACH_ADD_SCALAR:
        return _increment(*args)
    if operator in _WITH_NUMPY and not kwargs:
        return _WITH_NUMPY[operator](*outputs, *args)
    return None


def _product(out: Tensor, A: Tensor, B: Tensor) -> list[Call]:
    return products.bind(out, A, B)


def _product_and_bias(out: Tensor, bias: Tensor, A: Tensor, B: Tensor) -> list[Call]:
    return products.bind(out, A, B, bias)


def _sum(
    out: Tensor, X: Tensor, dims: list[int], keepdim: bool = False
) -> list[Call] | None:
    """Sum over rows or columns of a matrix, or of a stack: a product with ones."""
    if not is_plain_array(out) or not has_numpy_type(X) or X.ndim not in (2, 3):
        return None
    *stack, m, n = X.shape
    axes = [dim % X.ndim - X.ndim for dim in dims]
    if axes == [-2]:
        A, B, total = X.new_ones(*stack, 1, m), X, out.view(*stack, 1, n)
    elif axes == [-1]:
        A, B, total = X, X.new_ones(*stack, n, 1), out.view(*stack, m, 1)
    else:
        return None
    if products.choose(A, B) != "numpy":
        return None
    if stack:
        return products.bind(total, A, B)
    # A product of a vector and a matrix has less overhead.
    a, b = (A[0], B) if axes == [-2] else (A, B[:, 0])
    return [partial(np.dot, a.numpy(), b.numpy(), out.view(-1).numpy())]


def _function(function: Callable[..., Any]) -> Callable[..., list[Call] | None]:
    """Return a binder of a function of entries that NumPy computes in less time."""

    def bind(out: Tensor, X: Tensor) -> list[Call] | None:
        if not have_same_layout(out, X) or not is_serial(X, SERIAL_ENTRIES):
            return None
        return [partial(function, X.numpy(), out.numpy())]

    return bind


def _increment(tensors: list[Tensor], value: float) -> list[Call] | None:
    """Increment step counters that are one tensor, see `join_lists`."""
    if len(tensors) != 1 or not is_plain_array(*tensors):
        return None
    counts = tensors[0].numpy()
    return [partial(np.add, counts, np.array(value, counts.dtype), counts)]


_WITH_NUMPY: dict[Any, Callable[..., list[Call] | None]] = {
    aten.mm.default: _product,
    aten.bmm.default: _product,
    aten.addmm.default: _product_and_bias,
    aten.baddbmm.default: _product_and_bias,
    aten.sum.dim_IntList: _sum,
    # For 64 x 64 entries in float32, PyTorch takes 4 us and 11 us, NumPy 2 us.
    aten.exp.default: _function(np.exp),
    aten.exp_.default: _function(np.exp),
    aten.tanh.default: _function(np.tanh),
    aten.tanh_.default: _function(np.tanh),
}


# Lists of tensors

# Number of entries to a multiple of which the tensors of `flatten` are aligned: 64
# bytes in float32, which is the width of a vector and of a line of the cache.
ALIGNMENT = 16


def flatten(tensors: list[Tensor]) -> list[Tensor]:
    """Copy tensors into one piece of memory, of which they become parts.

    `join_lists` recognizes such tensors.

    Parameters
    ----------
    tensors : list of Tensor
        Contiguous, of the same type and device.
    """
    starts = _aligned_starts(tensors)
    memory = tensors[0].new_zeros(starts[-1])
    parts = [
        memory[start : start + t.numel()].view(t.shape)
        for start, t in zip(starts, tensors, strict=False)
    ]
    for part, tensor in zip(parts, tensors, strict=True):
        part.copy_(tensor)
    return parts


def join_lists(
    operation: Operation, move: Callable[[Tensor, Tensor], None]
) -> Operation:
    """Replace lists of tensors by lists of one tensor if they are `flatten`'s.

    An optimizer takes longer to iterate over the tensors of a small network than to
    update them.

    Parameters
    ----------
    operation : Operation
    move : callable
        Called with a gradient and memory, lets the gradient use this memory.
    """
    if operation.operator is FOREACH_ADD_SCALAR:
        tensors, value = operation.args
        if not is_flat(tensors, alignment=1):
            return operation
        return operation.replace(args=([whole(tensors)], value))
    if operation.operator not in FUSED_ADAM:
        return operation
    parameters, gradients, means, squares, largest, steps = operation.args
    lists = parameters, means, squares
    if (
        largest
        or not all(map(is_flat, lists))
        or not all(g.is_contiguous() and g.numel() > 0 for g in gradients)
        or any(g.untyped_storage().nbytes() != g.nbytes for g in gradients)
        or len({storage(g) for g in gradients}) < len(gradients)
        or any(g.dtype != parameters[0].dtype for g in gradients)
        or not are_equal_counts(steps)
    ):
        return operation
    for gradient, memory in zip(gradients, flatten(gradients), strict=True):
        move(gradient, memory)
    vectors = [[whole(tensors)] for tensors in (parameters, gradients, means, squares)]
    return operation.replace(args=(*vectors, [], steps[:1]))


def are_equal_counts(counts: list[Tensor]) -> bool:
    """Whether an optimizer has updated parameters equally often.

    It has not if some were frozen before. The corrections of Adam then differ.
    """
    first, *others = (count.item() for count in counts)
    return all(count == first for count in others)


def is_flat(tensors: list[Tensor], alignment: int = ALIGNMENT) -> bool:
    """Whether tensors are consecutive parts of the same memory."""
    first, size = tensors[0], tensors[0].element_size()
    starts = _aligned_starts(tensors, alignment)
    return all(
        t.is_contiguous()
        and t.dtype == first.dtype
        and storage(t) == storage(first)
        and t.data_ptr() == first.data_ptr() + start * size
        for start, t in zip(starts, tensors, strict=False)
    )


def whole(tensors: list[Tensor]) -> Tensor:
    """Return the memory of tensors for which `_is_flat` is true, as a vector."""
    first, last = tensors[0], tensors[-1]
    end = last.storage_offset() + last.numel()
    return first.as_strided((end - first.storage_offset(),), (1,))


def _aligned_starts(tensors: list[Tensor], alignment: int = ALIGNMENT) -> list[int]:
    """Return the position at which each tensor begins in `flatten`, and the end."""
    sizes = [-(-t.numel() // alignment) * alignment for t in tensors]
    return [0, *accumulate(sizes)]


# Functions of PyTorch


def _bind(operation: Operation, may_replace: Callable[[Tensor], bool]) -> Call:
    """Return a function without arguments that repeats the operation."""
    operator, outputs = operation.operator, operation.outputs
    args, kwargs = operation.args, operation.kwargs
    name = schema(operator).name.removeprefix("aten::")
    if name.removesuffix("_") in TAKE_NUMBERS:
        X, number, *others = args
        names = [argument.name for argument in schema(operator).arguments[2:]]
        args = (X, _as_tensor(number, X))
        kwargs = kwargs | dict(zip(names, others, strict=False))
    if operation.changed and not operation.created:
        return partial(_in_place_function(operator, name), *args, **kwargs)
    if operator in WRITERS:
        return WRITERS[operator](outputs[0], *args, **kwargs)
    if operation.changed or _is_reduced_loss(operation):
        return _call_and_replace(operation, may_replace)
    if name in DIRECT:
        return partial(DIRECT[name], *args, **kwargs, out=outputs[0])
    variant = _out_variant(operator)
    if variant is None:
        return _call_and_replace(operation, may_replace)
    names = [a.name for a in schema(variant).arguments if a.is_out]
    out = dict(zip(names, outputs, strict=True))
    return partial(raw_function(variant), *args, **kwargs, **out)


def _as_tensor(value: Any, X: Any) -> Any:
    """Return a number as a tensor, which PyTorch would otherwise make at each call."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and isinstance(X, Tensor) and X.is_floating_point():
        return torch.tensor(value, dtype=X.dtype, device=X.device)
    return value


def _in_place_function(operator: Any, name: str) -> Callable[..., Any]:
    """Return the function of an in-place operator that has the least overhead."""
    if name in IN_PLACE_FUNCTIONS:
        return IN_PLACE_FUNCTIONS[name]
    is_method = name.endswith("_") and hasattr(Tensor, name)
    if is_method and torch.Tag.pointwise in operator.tags:
        return getattr(Tensor, name)
    return raw_function(operator)


def _is_reduced_loss(operation: Operation) -> bool:
    """Whether the operator is a loss that is reduced to one number.

    Such an operator is not called with `out`, since its `out` variant first resizes
    `out` to the shape of the entries.
    """
    names = [argument.name for argument in schema(operation.operator).arguments]
    return "reduction" in names and operation.outputs[0].ndim == 0


def _out_variant(operator: Any) -> Any:
    """Return the `out` variant of an operator, or None.

    PyTorch generates such a variant for every operator. Variants without a kernel of
    their own only copy the result, and are not returned.
    """
    expected = [(a.name, str(a.type)) for a in schema(operator).arguments]
    for name in operator.overloadpacket.overloads():
        variant = getattr(operator.overloadpacket, name)
        arguments = schema(variant).arguments
        inputs = [(a.name, str(a.type)) for a in arguments if not a.is_out]
        has_out = len(inputs) < len(arguments)
        if has_out and inputs == expected and has_kernel(variant, "CPU"):
            return variant
    return None


def _call_and_replace(
    operation: Operation, may_replace: Callable[[Tensor], bool]
) -> Call:
    """Return a function that calls the operator and replaces the recorded outputs.

    An output that shares its storage with nothing else is set to the new memory; for
    all other outputs, values are copied.
    """
    operator, outputs = operation.operator, operation.outputs
    args, kwargs = operation.args, operation.kwargs
    assign = [
        None
        if old is None or storage(old) in operation.changed
        else (old.set_ if may_replace(old) else old.copy_)
        for old in outputs
    ]

    def renew() -> None:
        result = operator(*args, **kwargs)
        many = result if isinstance(result, tuple | list) else (result,)
        for put, new in zip(assign, many, strict=True):
            if put is not None and new is not None:
                put(new)

    return renew
