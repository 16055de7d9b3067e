"""Operations on tensors, recorded in one call of a function and then run again.

PyTorch spends more time on a small network than the network needs: each call
makes tensors, views and a graph for the gradients, and throws them away. A tape
keeps all of this from one call, and repeats only the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class Tape:
    """The arithmetic of one call of a function, in the memory of that call.

    Running it has the effect of a further call: every operation reads and
    writes the tensors that it read and wrote when it was recorded. So a caller
    puts new values into the tensors that the function reads, runs the tape, and
    finds the new results in the tensors that the function returned.

    What the function does besides operations on tensors is not repeated: a tape
    of a function that counts its calls, or that takes another way at another
    call, is wrong.

    Parameters
    ----------
    calls : list of callable
        The operations in order, their arguments bound.
    """

    def __init__(self, calls: list[Callable[[], Any]]):
        self._calls = calls

    def __len__(self) -> int:
        return len(self._calls)

    def run(self) -> None:
        """Do it all again. Gradients are not tracked."""
        with torch.inference_mode():
            for call in self._calls:
                call()


def record(
    function: Callable[[], Any], inputs: Iterable[Tensor]
) -> tuple[Any, Tape | None]:
    """Call a function, and keep what it does with tensors.

    Parameters
    ----------
    function : callable
        Without arguments; returns tensors, nested in tuples and lists. It is
        called once.
    inputs : iterable of Tensor
        Tensors whose values differ from call to call. All others that the
        function only reads are taken for constants.

    Returns
    -------
    result : Tensor, or tuple or list of them
        What the function returned, where a run leaves what it gives.
    tape : Tape or None
        None if the values of tensors decide what the function does, so that
        another call may do something else.
    """
    with _Recorder() as recorder:
        result = function()
    if recorder.is_fixed:
        result = recorder.alias(result)
    if not recorder.is_fixed or _overwrites_literals(recorder.operations):
        return result, None
    results = set(map(_storage, _tensors(result)))
    # Results are made anew, constants too: the caller may overwrite them.
    changing = results.union(map(_storage, inputs))
    operations = _needed(_changing(recorder.operations, changing), results)
    return result, Tape([_bind(operation, recorder) for operation in operations])


class Operation(NamedTuple):
    """One call of an operator of PyTorch.

    Attributes
    ----------
    operator : torch._ops.OpOverload
    args : tuple
    kwargs : dict
    outputs : tuple
        Tensors that it returned, and None where it returned none.
    """

    operator: Any
    args: tuple
    kwargs: dict
    outputs: tuple

    @property
    def read(self) -> set[int]:
        """Storages of the tensors whose values count."""
        if self.operator in CONSTANTS:
            return set()
        return {_storage(t) for t in _tensors((self.args, self.kwargs))}

    @property
    def made(self) -> set[int]:
        """Storages of the tensors that it returned and had not overwritten."""
        return {_storage(t) for t in _tensors(self.outputs)} - self.changed

    @property
    def changed(self) -> set[int]:
        """Storages of the tensors that it overwrote."""
        given = self.operator._schema.arguments
        written = [
            self.args[i] if i < len(self.args) else self.kwargs.get(argument.name)
            for i, argument in enumerate(given)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        return {_storage(t) for t in _tensors(written)}

    @property
    def draws(self) -> bool:
        """Whether it takes random numbers."""
        return torch.Tag.nondeterministic_seeded in self.operator.tags

    @property
    def is_view(self) -> bool:
        """Whether it only shows memory in another way."""
        if torch.Tag.inplace_view in self.operator.tags:
            return True
        return bool(self.made) and self.made <= self.memory and not self.changed

    @property
    def memory(self) -> set[int]:
        """Storages of all tensors that were given."""
        return {_storage(t) for t in _tensors((self.args, self.kwargs))}


class _Recorder(TorchDispatchMode):
    """While it lasts, notes every operator that runs.

    All tensors stay alive, so that no memory is used twice: that of an operation
    is its own, and a tensor is known by its place in it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.is_fixed = True
        self._aliases: dict[tuple, Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Before the call, which may change the shape of what it overwrites.
        given = self.alias(args), self.alias(kwargs)
        result = func(*args, **kwargs)
        outputs = self.alias(result if isinstance(result, tuple | list) else (result,))
        operation = Operation(func, *given, tuple(outputs))
        self.is_fixed &= _is_fixed(operation)
        if self.is_fixed:
            self.operations.append(operation)
        return result

    def alias(self, value: Any) -> Any:
        """The same, every tensor replaced by the one that stands for its memory."""
        if isinstance(value, Tensor):
            if not _is_plain(value):
                self.is_fixed = False
                return value
            return self._aliases.setdefault(_place(value), value.detach())
        if isinstance(value, tuple | list):
            return type(value)(map(self.alias, value))
        if isinstance(value, dict):
            return {name: self.alias(entry) for name, entry in value.items()}
        return value

    def is_alone(self, tensor: Tensor) -> bool:
        """Whether no other tensor shares the memory of this one."""
        storage = _storage(tensor)
        return sum(key[0] == storage for key in self._aliases) == 1


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is what its place in memory says."""
    is_dense = tensor.layout is torch.strided
    return is_dense and not tensor.is_conj() and not tensor.is_neg()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _place(tensor: Tensor) -> tuple:
    return (
        _storage(tensor),
        tensor.storage_offset(),
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from _tensors(entry)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def _is_fixed(operation: Operation) -> bool:
    """Whether it does the same with any values in the same tensors."""
    tags = operation.operator.tags
    return (
        torch.Tag.data_dependent_output not in tags
        and torch.Tag.dynamic_output_shape not in tags
    )


def _overwrites_literals(operations: list[Operation]) -> bool:
    """Whether numbers that the function wrote down do not stay what they were."""
    overwritten = set().union(*(operation.changed for operation in operations))
    literals = (o for o in operations if o.operator is aten.lift_fresh.default)
    return any(o.memory & overwritten for o in literals)


def _changing(operations: list[Operation], changing: set[int]) -> list[Operation]:
    """Leave out what gives the same each time: views, and constants.

    Parameters
    ----------
    operations : list of Operation
    changing : set of int
        Storages whose values differ from run to run.
    """
    overwritten = set().union(*(operation.changed for operation in operations))
    changing = changing | overwritten
    kept = []
    for operation in operations:
        if operation.is_view:
            continue
        # What is overwritten later has to be made anew.
        touched = operation.read | operation.made | operation.changed
        if operation.draws or touched & changing:
            changing |= operation.made
            kept.append(operation)
    return kept


def _needed(operations: list[Operation], results: set[int]) -> list[Operation]:
    """Leave out what has no effect on the results or on what was there before.

    Random numbers are always drawn: those that follow depend on it.
    """
    made = set().union(*(operation.made for operation in operations))
    overwritten = set().union(*(operation.changed for operation in operations))
    needed = results | (overwritten - made)
    kept = []
    for operation in reversed(operations):
        if operation.draws or (operation.made | operation.changed) & needed:
            needed |= operation.memory
            kept.append(operation)
    return kept[::-1]


# How operations are run again

# Operators that do not look at the values of what they are given.
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

# Functions of torch that take what the operator of their name takes, and most of
# them `out`. They are called in half the time of the operator itself.
_NAMES = """
    abs add addmm amax bmm cat clamp clamp_max clamp_min cumsum div exp gather ge gt
    le log lt maximum mean minimum mm mul neg pow reciprocal remainder rsqrt sigmoid
    sign sqrt sub sum tanh where
"""
DIRECT: dict[str, Any] = {name: getattr(torch, name) for name in _NAMES.split()}
DIRECT |= {name: getattr(torch._C._nn, name) for name in ("gelu", "mse_loss")}
DIRECT_IN_PLACE = {
    name: getattr(torch, name)
    for name in ("_foreach_add_", "_fused_adam_", "_fused_adamw_")
}

# Operators that have no form that writes into given memory, and what does.
WRITERS: dict[Any, Callable[..., Any]] = {
    aten.relu.default: lambda out, X: partial(torch.clamp_min, X, 0, out=out),
    aten.mean.default: lambda out, X, dtype=None: partial(
        torch.mean, X, list(range(X.ndim)), dtype=dtype, out=out
    ),
    aten.sum.default: lambda out, X, dtype=None: partial(
        torch.sum, X, list(range(X.ndim)), dtype=dtype, out=out
    ),
    aten.clone.default: lambda out, X, **_: partial(out.copy_, X),
    aten._to_copy.default: lambda out, X, **_: partial(out.copy_, X),
    aten.zeros_like.default: lambda out, *_, **__: out.zero_,
    aten.zeros.default: lambda out, *_, **__: out.zero_,
    aten.rand.generator: lambda out, _, generator, **__: partial(
        out.uniform_, generator=generator
    ),
    aten.randn.generator: lambda out, _, generator, **__: partial(
        out.normal_, generator=generator
    ),
}


def _bind(operation: Operation, recorder: _Recorder) -> Callable[[], Any]:
    """A call without arguments that does the operation again."""
    operator, args, kwargs, outputs = operation
    name = operator._schema.name.removeprefix("aten::")
    if operation.changed and not operation.made:
        args, kwargs = _as_one(operation)
        return partial(DIRECT_IN_PLACE.get(name, operator._op), *args, **kwargs)
    if operator in WRITERS:
        return WRITERS[operator](outputs[0], *args, **kwargs)
    if operation.changed or _reduces(operation):
        return _renewal(operation, recorder)
    if name in DIRECT:
        return partial(DIRECT[name], *args, **kwargs, out=outputs[0])
    writer = _writer(operator)
    if writer is None:
        return _renewal(operation, recorder)
    names = [a.name for a in writer._schema.arguments if a.is_out]
    return partial(
        writer._op, *args, **kwargs, **dict(zip(names, outputs, strict=True))
    )


def _reduces(operation: Operation) -> bool:
    """Whether it is a loss of all entries, whose `out` first has their shape."""
    names = [argument.name for argument in operation.operator._schema.arguments]
    return "reduction" in names and operation.outputs[0].ndim == 0


def _writer(operator: Any) -> Any:
    """The form of an operator that writes into given memory, if there is a true one.

    PyTorch makes up such a form for every operator, but most of those only copy.
    """
    given = operator._schema.arguments
    for name in operator.overloadpacket.overloads():
        writer = getattr(operator.overloadpacket, name)
        arguments = writer._schema.arguments
        rest = [a for a in arguments if not a.is_out]
        if (
            len(rest) < len(arguments)
            and [(a.name, str(a.type)) for a in rest]
            == [(a.name, str(a.type)) for a in given]
            and torch._C._dispatch_has_kernel_for_dispatch_key(writer.name(), "CPU")
        ):
            return writer
    return None


def _renewal(operation: Operation, recorder: _Recorder) -> Callable[[], None]:
    """A call that lets the outputs stand for new memory, or copies to the old."""
    operator, args, kwargs, outputs = operation
    takers = [
        None
        if old is None or _storage(old) in operation.changed
        else (old.set_ if recorder.is_alone(old) else old.copy_)
        for old in outputs
    ]

    def renew() -> None:
        result = operator(*args, **kwargs)
        many = result if isinstance(result, tuple | list) else (result,)
        for take, new in zip(takers, many, strict=True):
            if take is not None and new is not None:
                take(new)

    return renew


def _as_one(operation: Operation) -> tuple[tuple, dict]:
    """The arguments, counters that lie side by side taken as one tensor.

    The optimizers count the steps of each parameter apart; adding one to twelve
    tensors of a single number takes longer than the update of a small network.
    """
    if operation.operator is not aten._foreach_add_.Scalar:
        return operation.args, operation.kwargs
    tensors, value = operation.args
    first, size = tensors[0], tensors[0].element_size()
    is_row = all(
        t.ndim == 0 and t.data_ptr() == first.data_ptr() + i * size
        for i, t in enumerate(tensors)
    )
    if is_row:
        tensors = [first.as_strided((len(tensors),), (1,))]
    return (tensors, value), {}
