"""Records the operators that a function calls, and replays them.

In a small network, PyTorch's overhead takes longer than the arithmetic: each call
allocates tensors, creates views and builds the graph of the backward pass. A tape
reuses the tensors and views of one call, and repeats only the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from skae._compat import (
    FOREACH_ADD_SCALAR,
    FUNCTIONS,
    IN_PLACE_FUNCTIONS,
    TO_COPY,
    TorchDispatchMode,
    has_kernel,
    raw_function,
    schema,
)

aten = torch.ops.aten


class Tape:
    """Sequence of the operators that one call of a function ran, with their tensors.

    Running the tape has the effect of another call: every operator reads and
    writes the tensors that it read and wrote when it was recorded. The caller
    writes new values into the tensors that the function reads, runs the tape, and
    reads the results from the tensors that the function returned.

    Only operators on tensors are repeated. Do not record a function that changes Python
    objects, or whose control flow differs from call to call.

    Parameters
    ----------
    calls : list of callable
        The operators in order, with their arguments bound.
    """

    def __init__(self, calls: list[Callable[[], Any]]):
        self._calls = calls

    def __len__(self) -> int:
        return len(self._calls)

    def run(self) -> None:
        """Repeat all operators without tracking gradients."""
        with torch.inference_mode():
            for call in self._calls:
                call()


def record(
    function: Callable[[], Any], inputs: Iterable[Tensor]
) -> tuple[Any, Tape | None]:
    """Call a function and record the operators that it runs.

    Parameters
    ----------
    function : callable
        Function without arguments that returns tensors, nested in tuples and lists.
        It is called once.
    inputs : iterable of Tensor
        Tensors whose values differ from call to call. All other tensors that the
        function reads and does not write are constants.

    Returns
    -------
    result : Tensor, or tuple or list of them
        What the function returned; a run of the tape overwrites it.
    tape : Tape or None
        None if the control flow depends on values of tensors, so that another call
        may run other operators.
    """
    with _Recorder() as recorder:
        result = function()
    if recorder.is_replayable:
        result = recorder.alias(result)
    if not recorder.is_replayable or _overwrites_literals(recorder.operations):
        return result, None
    results = set(map(_storage, _tensors(result)))
    # Results are always recomputed, since the caller may overwrite them.
    changing = results.union(map(_storage, inputs))
    operations = _without_unused(
        _without_constants(recorder.operations, changing), results
    )
    return result, Tape([_bind(operation, recorder) for operation in operations])


class Operation(NamedTuple):
    """One call of a PyTorch operator.

    Attributes
    ----------
    operator : torch._ops.OpOverload
    args : tuple
    kwargs : dict
    outputs : tuple
        Tensors that it returned; None for a returned value that is no tensor.
    """

    operator: Any
    args: tuple
    kwargs: dict
    outputs: tuple

    @property
    def read(self) -> set[int]:
        """Storages of the tensors whose values the operator reads."""
        return set() if self.operator in CONSTANTS else self.argument_storages

    @property
    def created(self) -> set[int]:
        """Storages of the returned tensors, except arguments that it overwrites."""
        return {_storage(t) for t in _tensors(self.outputs)} - self.changed

    @property
    def changed(self) -> set[int]:
        """Storages of the tensors that the operator overwrites."""
        written = [
            self.args[i] if i < len(self.args) else self.kwargs.get(argument.name)
            for i, argument in enumerate(schema(self.operator).arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        return {_storage(t) for t in _tensors(written)}

    @property
    def is_random(self) -> bool:
        """Whether the operator draws random numbers."""
        return torch.Tag.nondeterministic_seeded in self.operator.tags

    @property
    def is_view(self) -> bool:
        """Whether the operator only returns views of its arguments."""
        if torch.Tag.inplace_view in self.operator.tags:
            return True
        is_alias = bool(self.created) and self.created <= self.argument_storages
        return is_alias and not self.changed

    @property
    def argument_storages(self) -> set[int]:
        """Storages of all arguments."""
        return {_storage(t) for t in _tensors((self.args, self.kwargs))}


class _Recorder(TorchDispatchMode):
    """Context in which every operator that runs is recorded.

    All tensors are kept alive, so that no memory is reused, and a tensor can be
    identified by its address, shape and strides.

    Attributes
    ----------
    operations : list of Operation
        The operators in the order of their calls.
    is_replayable : bool
        Whether the same operators will run in another call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.is_replayable = True
        self._aliases: dict[tuple, Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Before the call, since an in-place operator may change a tensor's shape.
        arguments = self.alias(args), self.alias(kwargs)
        result = func(*args, **kwargs)
        outputs = self.alias(result if isinstance(result, tuple | list) else (result,))
        operation = Operation(func, *arguments, tuple(outputs))
        self.is_replayable &= _is_replayable(operation)
        if self.is_replayable:
            self.operations.append(operation)
        return result

    def alias(self, value: Any) -> Any:
        """Replace each tensor by the recorded one of the same memory and layout."""
        if isinstance(value, Tensor):
            if not _is_plain(value):
                self.is_replayable = False
                return value
            return self._aliases.setdefault(_place(value), value.detach())
        if isinstance(value, tuple | list):
            return type(value)(map(self.alias, value))
        if isinstance(value, dict):
            return {name: self.alias(entry) for name, entry in value.items()}
        return value

    def owns_storage(self, tensor: Tensor) -> bool:
        """Whether no other recorded tensor shares the storage of this one."""
        storage = _storage(tensor)
        return sum(key[0] == storage for key in self._aliases) == 1


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is strided, without a lazy conjugation or negation."""
    is_dense = tensor.layout is torch.strided
    return is_dense and not tensor.is_conj() and not tensor.is_neg()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _place(tensor: Tensor) -> tuple:
    """Return memory address, layout and type, which identify a tensor."""
    return (
        _storage(tensor),
        tensor.storage_offset(),
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield all tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from _tensors(entry)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def _is_replayable(operation: Operation) -> bool:
    """Whether an operator returns no Python number and no data-dependent shape."""
    tags = operation.operator.tags
    return (
        torch.Tag.data_dependent_output not in tags
        and torch.Tag.dynamic_output_shape not in tags
    )


def _overwrites_literals(operations: list[Operation]) -> bool:
    """Whether the function overwrites tensors created from Python numbers.

    The number is not recorded, so a replay could not restore the initial value.
    """
    overwritten = set().union(*(operation.changed for operation in operations))
    literals = (o for o in operations if o.operator is aten.lift_fresh.default)
    return any(o.argument_storages & overwritten for o in literals)


def _without_constants(
    operations: list[Operation], changing: set[int]
) -> list[Operation]:
    """Return the operations without views and without those of constant results.

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
        # A tensor that a later operator overwrites has to be computed again.
        touched = operation.read | operation.created | operation.changed
        if operation.is_random or touched & changing:
            changing |= operation.created
            kept.append(operation)
    return kept


def _without_unused(operations: list[Operation], results: set[int]) -> list[Operation]:
    """Return the operations that affect results, or tensors created before recording.

    Operators that draw random numbers are always kept, since later draws depend on the
    generator's state.
    """
    created = set().union(*(operation.created for operation in operations))
    overwritten = set().union(*(operation.changed for operation in operations))
    needed = results | (overwritten - created)
    kept = []
    for operation in reversed(operations):
        if operation.is_random or (operation.created | operation.changed) & needed:
            needed |= operation.argument_storages
            kept.append(operation)
    return kept[::-1]


# How operators are replayed

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

# Functions of torch that take the arguments of the operator of the same name and, in
# addition, `out`. Calling them takes half the time of calling the operator.
_NAMES = """
    abs add addmm amax bmm cat clamp clamp_max clamp_min cumsum div exp gather ge gt
    le log lt maximum mean minimum mm mul neg pow reciprocal remainder rsqrt sigmoid
    sign sqrt sub sum tanh where
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


def _bind(operation: Operation, recorder: _Recorder) -> Callable[[], Any]:
    """Return a function without arguments that repeats the operation."""
    operator, args, kwargs, outputs = operation
    name = schema(operator).name.removeprefix("aten::")
    if operation.changed and not operation.created:
        args, kwargs = _with_joined_counters(operation)
        function = IN_PLACE_FUNCTIONS.get(name, raw_function(operator))
        return partial(function, *args, **kwargs)
    if operator in WRITERS:
        return WRITERS[operator](outputs[0], *args, **kwargs)
    if operation.changed or _is_reduced_loss(operation):
        return _call_and_replace(operation, recorder)
    if name in DIRECT:
        return partial(DIRECT[name], *args, **kwargs, out=outputs[0])
    variant = _out_variant(operator)
    if variant is None:
        return _call_and_replace(operation, recorder)
    names = [a.name for a in schema(variant).arguments if a.is_out]
    out = dict(zip(names, outputs, strict=True))
    return partial(raw_function(variant), *args, **kwargs, **out)


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


def _call_and_replace(operation: Operation, recorder: _Recorder) -> Callable[[], None]:
    """Return a function that calls the operator and replaces the recorded outputs.

    An output that shares its storage with no other tensor is set to the new memory; for
    all other outputs, values are copied.
    """
    operator, args, kwargs, outputs = operation
    assign = [
        None
        if old is None or _storage(old) in operation.changed
        else (old.set_ if recorder.owns_storage(old) else old.copy_)
        for old in outputs
    ]

    def renew() -> None:
        result = operator(*args, **kwargs)
        many = result if isinstance(result, tuple | list) else (result,)
        for put, new in zip(assign, many, strict=True):
            if put is not None and new is not None:
                put(new)

    return renew


def _with_joined_counters(operation: Operation) -> tuple[tuple, dict]:
    """Return the arguments, with adjacent step counters as one tensor.

    The optimizers count the steps of each parameter in a separate tensor. To increment
    twelve such tensors takes longer than to update a small network.
    """
    if operation.operator is not FOREACH_ADD_SCALAR:
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
