"""Records the operators that a function calls, and replays them.

In a small network, PyTorch's overhead takes longer than the arithmetic: each call
allocates tensors, creates views and builds the graph of the backward pass. A tape
reuses the tensors and views of one call, and repeats only the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from skae._compat import TorchDispatchMode, inference_mode
from skae.engine.binding import bind_all, bind_plainly, join_lists
from skae.engine.operations import Operation, aten, place, storage, tensors_in
from skae.engine.passes import simplify


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
    operations : list of Operation
        The operators in order, without those that need not be repeated.
    recorder : _Recorder
        Its tensors are those of the operations.
    kept : set of int
        Storages that the caller reads or writes.

    Attributes
    ----------
    calls : list of callable
        Functions without arguments that `run` calls in this order.
    """

    def __init__(
        self, operations: list[Operation], recorder: _Recorder, kept: set[int]
    ):
        joined = [join_lists(o, recorder.move) for o in simplify(operations, kept)]
        # Anew, since gradients may have been moved to other storages.
        self._recorded = [operation.replace() for operation in operations]
        self.calls = bind_all([o.replace() for o in joined], recorder.owns_storage)

    def __len__(self) -> int:
        return len(self.calls)

    def run(self) -> None:
        """Repeat all operators, or others with the same effect up to rounding."""
        with inference_mode():
            for call in self.calls:
                call()

    def run_as_recorded(self) -> None:
        """Repeat all operators by the same functions of PyTorch.

        Can be called until `forget_record`.
        """
        with inference_mode():
            for operation in self._recorded:
                bind_plainly(operation)()

    def forget_record(self) -> None:
        """Free the memory that only `run_as_recorded` needs."""
        self._recorded = []


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
    results = set(map(storage, tensors_in(result)))
    # Results are always recomputed, since the caller may overwrite them.
    changing = results.union(map(storage, inputs))
    operations = _without_unused(
        _without_constants(recorder.operations, changing), results
    )
    return result, Tape(operations, recorder, changing)


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
        self._aliases: dict[tuple[Any, ...], Tensor] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
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
            return self._aliases.setdefault(place(value), value.detach())
        if isinstance(value, tuple | list):
            return type(value)(map(self.alias, value))
        if isinstance(value, dict):
            return {name: self.alias(entry) for name, entry in value.items()}
        return value

    def move(self, tensor: Tensor, memory: Tensor) -> None:
        """Let a tensor that owns its storage, and its views, use other memory.

        Parameters
        ----------
        tensor : Tensor
            Contiguous.
        memory : Tensor
            Of the same number of entries.
        """
        address = storage(tensor)
        for alias in [t for key, t in self._aliases.items() if key[0] == address]:
            offset = memory.storage_offset() + alias.storage_offset()
            del self._aliases[place(alias)]
            alias.set_(memory.untyped_storage(), offset, alias.shape, alias.stride())
            self._aliases[place(alias)] = alias

    def owns_storage(self, tensor: Tensor) -> bool:
        """Whether no other recorded tensor shares the storage of this one."""
        address = storage(tensor)
        return sum(key[0] == address for key in self._aliases) == 1


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is strided, without a lazy conjugation or negation."""
    is_dense = tensor.layout is torch.strided
    return is_dense and not tensor.is_conj() and not tensor.is_neg()


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
