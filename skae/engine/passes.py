"""Rewriting of recorded operations: fewer and cheaper ones with the same results.

Each pass takes and returns a list of operations. The results agree with those of the
operations that are replaced up to rounding.
"""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skae._compat import in_place_variant
from skae.engine.binding import (
    Call,
    is_plain_array,
    is_serial,
)
from skae.engine.operations import Fused, Operation, aten, place, storage, tensors_in
from skae.engine.products import SERIAL_VECTOR_WORK

# Operators that are linear in one tensor if their other arguments are constant.
LINEAR = {
    aten.div.Scalar,
    aten.div.Tensor,
    aten.mean.default,
    aten.mean.dim,
    aten.mul.Scalar,
    aten.mul.Tensor,
    aten.neg.default,
    aten.sum.default,
    aten.sum.dim_IntList,
}


def simplify(operations: list[Operation], kept: set[int]) -> list[Operation]:
    """Apply all passes.

    Parameters
    ----------
    operations : list of Operation
        Without views.
    kept : set of int
        Storages that the caller reads or writes.
    """
    for rewrite in (fold_sums, share_residuals, overwrite_inputs):
        operations = rewrite(operations, kept)
    return operations


# Sums that are reduced to one number


def fold_sums(operations: list[Operation], kept: set[int]) -> list[Operation]:
    """Replace sums, means and constant factors that lead to one number.

    Together they are linear in the tensor that they begin with: a dot product with
    constant coefficients, which are computed once, by automatic differentiation.
    """
    uses = _uses(operations)
    changing = kept | {s for o in operations for s in o.created | o.changed}
    folded: dict[int, Operation | None] = {}
    for i in reversed(range(len(operations))):
        if i in folded:
            continue
        chain = _linear_chain(i, operations, uses, changing, kept)
        if len(chain) < 2:
            continue
        first, last = operations[chain[-1]], operations[i]
        source = _linear_argument(first, changing)
        out = last.outputs[0]
        is_stable = not any(
            storage(source) in operations[j].changed for j in uses[storage(source)]
        )
        if (
            not is_stable
            or not is_plain_array(source, out)
            or source.numel() < 2
            or not is_serial(source, SERIAL_VECTOR_WORK)
        ):
            continue
        slope = _slope([operations[j] for j in reversed(chain)], source, changing)
        folded |= dict.fromkeys(chain)
        folded[i] = Operation(Fused(_dot), (source, slope), {}, (out,))
    return [
        replaced
        for i, operation in enumerate(operations)
        if (replaced := folded.get(i, operation)) is not None
    ]


def _linear_chain(
    last: int,
    operations: list[Operation],
    uses: dict[int, list[int]],
    changing: set[int],
    kept: set[int],
) -> list[int]:
    """Return the positions of linear operations up to one number, the last one first.

    Nothing else reads their intermediate results.
    """
    if _linear_argument(operations[last], changing) is None:
        return []
    if operations[last].outputs[0].numel() != 1:
        return []
    chain: list[int] = []
    i = last
    while True:
        source = _linear_argument(operations[i], changing)
        if source is None:
            return chain
        chain.append(i)
        users = uses[storage(source)]
        if len(users) != 2 or users[1] != i or storage(source) in kept:
            return chain
        producer = operations[users[0]]
        if len(producer.outputs) != 1 or producer.outputs[0] is not source:
            return chain
        i = users[0]


def _linear_argument(operation: Operation, changing: set[int]) -> Any:
    """Return the argument in which an operation is linear; None if there is none."""
    if operation.operator not in LINEAR or operation.kwargs:
        return None
    varying = [t for t in tensors_in(operation.args) if storage(t) in changing]
    if len(varying) != 1:
        return None
    is_first = operation.args[0] is varying[0]
    is_product = operation.operator is aten.mul.Tensor
    return varying[0] if is_first or is_product else None


def _slope(chain: list[Operation], source: Tensor, changing: set[int]) -> Tensor:
    """Differentiate the result of a chain of linear operations, in order."""
    with torch.enable_grad():
        start = value = source.detach().clone().requires_grad_()
        for operation in chain:
            varying = _linear_argument(operation, changing)
            args = [value if a is varying else a for a in operation.args]
            value = operation.operator(*args)
        (slope,) = torch.autograd.grad(value.sum(), start)
    return slope.contiguous()


def _dot(out: Tensor, X: Tensor, slope: Tensor) -> list[Call]:
    x, c = X.view(-1).numpy(), slope.view(-1).numpy()
    return [partial(np.dot, x, c, out.view(()).numpy())]


# Squared error and its derivative


def share_residuals(operations: list[Operation], kept: set[int]) -> list[Operation]:
    r"""Let the mean squared error and its derivative share the residuals.

    .. math:: L = c \sum_{ij} r_{ij}^2, \quad \partial L / \partial r_{ij} = 2 c r_{ij}

    This applies after `fold_sums`, if c is the same for all entries.
    """
    operations = list(operations)
    uses = _uses(operations)
    changed = {s for o in operations for s in o.changed}
    backward = {
        (place(o.args[1]), place(o.args[2])): i
        for i, o in enumerate(operations)
        if o.operator is aten.mse_loss_backward.default and o.args[3:] == (0,)
    }
    for i, operation in enumerate(operations):
        if operation.operator is not aten.mse_loss.default:
            continue
        X_hat, X = operation.args[:2]
        (error,) = operation.outputs
        users, j = uses[storage(error)], backward.get((place(X_hat), place(X)))
        if (
            j is None
            or operation.args[2:] != (0,)
            or len(users) != 2
            or not _is_sum(operations[users[1]])
            or not changed.isdisjoint({storage(X_hat), storage(X)})
        ):
            continue
        (total,), slope = operations[users[1]].outputs, operations[users[1]].args[1]
        upstream, (gradient,) = operations[j].args[0], operations[j].outputs
        is_constant = not any(
            storage(upstream) in o.created | o.changed for o in operations
        )
        if (
            not is_constant
            or storage(upstream) in kept
            or not is_plain_array(X_hat, X, gradient)
            or not is_serial(X, SERIAL_VECTOR_WORK)
            or slope.unique().numel() + upstream.unique().numel() > 2
        ):
            continue
        R, c = torch.empty_like(X), slope.view(-1)[0].item()
        factor = 2 * upstream.reshape(-1)[0].item()
        operations[i] = Operation(Fused(_subtract), (X_hat, X), {}, (R,))
        operations[users[1]] = Operation(Fused(_sum_of_squares), (R, c), {}, (total,))
        operations[j] = Operation(Fused(_multiply), (R, factor), {}, (gradient,))
    return operations


def _is_sum(operation: Operation) -> bool:
    return isinstance(operation.operator, Fused) and operation.operator.bind is _dot


def _subtract(out: Tensor, X: Tensor, Y: Tensor) -> list[Call]:
    return [partial(np.subtract, X.numpy(), Y.numpy(), out.numpy())]


def _multiply(out: Tensor, X: Tensor, number: float) -> list[Call]:
    x = X.numpy()
    return [partial(np.multiply, x, np.array(number, x.dtype), out.numpy())]


def _sum_of_squares(out: Tensor, X: Tensor, factor: float) -> list[Call]:
    x, total = X.view(-1).numpy(), out.view(()).numpy()
    return [
        partial(np.dot, x, x, total),
        partial(np.multiply, total, np.array(factor, x.dtype), total),
    ]


# Operations that may overwrite their input


def overwrite_inputs(operations: list[Operation], kept: set[int]) -> list[Operation]:
    """Let an operation on entries overwrite its input if nothing else reads it.

    An in-place function has less overhead, and needs less memory.
    """
    operations = list(operations)
    uses = _uses(operations)
    for i, operation in enumerate(operations):
        in_place = _in_place(operation)
        if in_place is None:
            continue
        source, (out,) = operation.args[0], operation.outputs
        *earlier, last = uses[storage(source)]
        others = tensors_in((operation.args[1:], operation.kwargs))
        if (
            last == i
            and earlier
            and storage(source) not in kept
            and place(source)[1:] == place(out)[1:]
            and source.untyped_storage().nbytes() == source.nbytes
            and all(storage(t) != storage(source) for t in others)
            and all(_only_writes(operations[j], source) for j in earlier)
            and operations[earlier[0]].created == {storage(source)}
        ):
            for j in earlier:
                operations[j] = _with_other_output(operations[j], out)
            operations[i] = operation.replace(
                operator=in_place, args=(out, *operation.args[1:])
            )
            uses[storage(out)][:0] = earlier
    return operations


def _only_writes(operation: Operation, out: Tensor) -> bool:
    """Whether the only output of an operation is `out`, new or overwritten."""
    if len(operation.outputs) != 1 or operation.outputs[0] is not out:
        return False
    arguments = list(tensors_in((operation.args, operation.kwargs)))
    if operation.changed:
        is_first = arguments[0] is out and operation.changed == {storage(out)}
        return is_first and all(storage(t) != storage(out) for t in arguments[1:])
    return all(storage(t) != storage(out) for t in arguments)


def _with_other_output(operation: Operation, out: Tensor) -> Operation:
    """Return an operation that writes into other memory, see `_only_writes`."""
    if operation.changed:
        operation = operation.replace(args=(out, *operation.args[1:]))
    return operation.replace(outputs=(out,))


def _in_place(operation: Operation) -> Any:
    """Return the in-place variant of an operator on entries, or None."""
    operator, outputs = operation.operator, operation.outputs
    args = operation.args
    if (
        isinstance(operator, Fused)
        or torch.Tag.pointwise not in operator.tags
        or operation.changed
        or len(outputs) != 1
        or not args
        or not isinstance(args[0], Tensor)
    ):
        return None
    return in_place_variant(operator)


def _uses(operations: list[Operation]) -> dict[int, list[int]]:
    """Return the positions of the operations that use each storage."""
    uses: dict[int, list[int]] = defaultdict(list)
    for i, operation in enumerate(operations):
        for address in operation.storages:
            uses[address].append(i)
    return uses
