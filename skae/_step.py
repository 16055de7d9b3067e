"""One step of training, taken in the fastest way that its parts allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from skae import _tape
from skae._batches import Batch, is_repeated

# Steps of a batch size that are taken before one is recorded: the first of all
# makes the optimizer's state, and a short training is not worth a record.
WARM_UP = 3

# Batch sizes for which a step is recorded; each takes the memory of one step.
MAX_RECORDS = 8

# Of each parameter; None if it is frozen.
Gradients: TypeAlias = list[Tensor | None]

# The packages whose modules do the same at every step, if their settings stay.
KNOWN = {"skae", "torch"}


class Step:
    """The loss of a batch, its gradients, and the update of the parameters.

    On a CPU the first steps are taken as PyTorch takes any, then one is recorded
    and replayed from there on; on a GPU it is captured as a CUDA graph. The
    arithmetic stays the same. Modules from other packages are run as they are,
    since nobody knows whether they do the same at every step.

    Parameters
    ----------
    loss : callable
        ``loss(batch, done)`` gives a tensor of shape (); `done`, of shape (), is
        the share of the training that is over.
    parts : list of object
        Modules, and other objects, that the loss calls.
    optimizer : torch.optim.Optimizer
    compile : "auto" or bool
        True compiles the loss with ``torch.compile``; False does nothing of all
        this.
    on_gradients : callable, default=None
        Called between gradients and update.
    generator : torch.Generator, default=None
        The one from which the parts draw.
    """

    def __init__(
        self,
        loss: Callable[[Batch, Tensor], Tensor],
        parts: list[Any],
        optimizer: torch.optim.Optimizer,
        *,
        compile: str | bool = "auto",
        on_gradients: Callable[[], None] | None = None,
        generator: torch.Generator | None = None,
    ):
        self._loss = torch.compile(loss, dynamic=False) if compile is True else loss
        self._parts = parts
        self._optimizer = optimizer
        self._may_repeat = compile == "auto"
        self._on_gradients = on_gradients
        self._generator = generator
        self._signature: tuple = ()
        self._latest: _Repeat | None = None
        self._forget()

    def __call__(self, batch: Batch, done: float) -> Tensor:
        """Take a step.

        Returns
        -------
        loss : Tensor of shape ()
            Of the batch, before the step. Nothing has waited for its value.
        """
        key = (batch.n_rows, batch.observed is None, is_repeated(batch.weight))
        if key in self._repeats:
            return self._repeats[key](batch, done)
        tensor = torch.tensor(float(done), device=batch.target.device)
        self._n_taken[key] += 1
        if not self._is_worth_repeating(key):
            return self._take(batch, tensor)
        if not self._repeats:
            _place_counters_in_a_row(self._optimizer)
        repeat = _Repeat(self, batch, tensor)
        self._signature = self._current_signature()
        if repeat.run is None:
            self._may_repeat = False
        else:
            self._repeats[key] = repeat
        return repeat.first_loss

    def refresh(self) -> None:
        """Forget what was recorded if anything that it rests on has changed."""
        if self._repeats and self._signature != self._current_signature():
            self._forget()

    def _forget(self) -> None:
        self._n_taken: Counter[tuple[int, bool, bool]] = Counter()
        self._repeats: dict[tuple[int, bool, bool], _Repeat] = {}

    def _is_worth_repeating(self, key: tuple[int, bool, bool]) -> bool:
        return (
            self._may_repeat
            and self._n_taken[key] > WARM_UP
            and len(self._repeats) < MAX_RECORDS
            and all(map(is_known, self._parts))
        )

    def _take(self, batch: Batch, done: Tensor) -> Tensor:
        loss = self._gradients(batch, done)
        self._update()
        return loss

    def _gradients(self, batch: Batch, done: Tensor) -> Tensor:
        self._latest = None
        self._optimizer.zero_grad()
        loss = self._loss(batch, done)
        loss.backward()
        return loss.detach()

    def _update(self) -> None:
        if self._on_gradients is not None:
            self._on_gradients()
        self._optimizer.step()

    # What a record rests on

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _modules(self) -> list[nn.Module]:
        parts = [part for part in self._parts if isinstance(part, nn.Module)]
        return [module for part in parts for module in part.modules()]

    def _tensors(self) -> list[Tensor]:
        """What lasts from step to step: weights, buffers, moments."""
        return [
            *self._parameters(),
            *(b for m in self._modules() for b in m.buffers(recurse=False)),
            *(
                value
                for state in self._optimizer.state.values()
                for value in state.values()
                if isinstance(value, Tensor)
            ),
        ]

    def _current_signature(self) -> tuple:
        settings = [
            {name: value for name, value in group.items() if name not in _CHANGING}
            for group in self._optimizer.param_groups
        ]
        return (
            [tensor.data_ptr() for tensor in self._tensors()],
            [parameter.requires_grad for parameter in self._parameters()],
            settings,
            [_settings(module) for module in self._modules()],
            all(map(is_known, self._parts)),
        )


# Entries of an optimizer's group that may change without a new record.
_CHANGING = ("params", "lr", "initial_lr")


class _Repeat:
    """A step on memory of its own, taken once and ready to be taken again.

    Attributes
    ----------
    first_loss : Tensor of shape ()
        Of the batch with which it was made.
    run : callable or None
        Does the arithmetic; None if the step cannot be repeated.
    """

    def __init__(self, step: Step, batch: Batch, done: Tensor):
        self._step = step
        self._batch = batch.clone()
        self._done = done
        self._groups = step._optimizer.param_groups
        is_cuda = done.device.type == "cuda"
        # As tensors: numbers would become constants. On CUDA they are read as float32.
        dtype = torch.float32 if is_cuda else torch.float64
        self._rates = [
            torch.tensor(group["lr"], dtype=dtype, device=done.device)
            for group in self._groups
        ]
        # What a batch brings along, and where it is put.
        self._places: list[tuple[int, Tensor]] = [
            (i, own)
            for i, (own, given) in enumerate(zip(self._batch, batch, strict=True))
            if own is not None and given is not None and not is_repeated(given)
        ]
        make = self._capture if is_cuda else self._record
        self._loss, self._gradients, self.run = make()
        self._finish_step()
        self.first_loss = self._loss.clone()

    def __call__(self, batch: Batch, done: float) -> Tensor:
        for i, own in self._places:
            own.copy_(batch[i])  # type: ignore[arg-type]
        self._done.fill_(done)
        for rate, group in zip(self._rates, self._groups, strict=True):
            rate.fill_(group["lr"])
        assert self.run is not None
        self.run()
        self._finish_step()
        return self._loss.clone()

    def _function(self) -> tuple[Tensor, Gradients]:
        """What is repeated: the step, or its gradients if someone looks at them."""
        step = self._step
        if step._on_gradients is not None:
            loss = step._gradients(self._batch, self._done)
        else:
            numbers = [group["lr"] for group in self._groups]
            self._set_rates(self._rates)
            try:
                loss = step._take(self._batch, self._done)
            finally:
                self._set_rates(numbers)
        return loss, [parameter.grad for parameter in step._parameters()]

    def _set_rates(self, rates: Iterable[Any]) -> None:
        for group, rate in zip(self._groups, rates, strict=True):
            group["lr"] = rate

    def _finish_step(self) -> None:
        step = self._step
        if step._latest is not self:
            parameters = step._parameters()
            for parameter, own in zip(parameters, self._gradients, strict=True):
                parameter.grad = own
            step._latest = self
        if step._on_gradients is not None:
            step._update()

    def _record(self) -> tuple[Tensor, Gradients, Callable[[], None] | None]:
        step = self._step
        inputs = [own for _, own in self._places]
        (loss, gradients), tape = _tape.record(
            self._function, [*inputs, self._done, *self._rates, *step._tensors()]
        )
        return loss, gradients, None if tape is None else tape.run

    def _capture(self) -> tuple[Tensor, Gradients, Callable[[], None] | None]:
        graph = torch.cuda.CUDAGraph()
        if self._step._generator is not None:
            graph.register_generator_state(self._step._generator)
        try:
            with torch.cuda.graph(graph):
                loss, gradients = self._function()
        except RuntimeError:  # something waits for a value, which no graph can hold
            return *self._function(), None
        graph.replay()  # to capture a step is not to take it
        return loss, gradients, graph.replay


def is_known(part: Any) -> bool:
    """Whether a module, or another object, does the same at every step."""
    if not isinstance(part, nn.Module):
        return _package(part) in KNOWN
    return all(_package(m) in KNOWN and not _has_hooks(m) for m in part.modules())


def _package(part: Any) -> str:
    return type(part).__module__.partition(".")[0]


def _settings(module: nn.Module) -> dict[str, Any]:
    """What a module computes with besides tensors: numbers, names, its mode."""
    plain = (int, float, str, tuple, type(None))
    return {k: v for k, v in vars(module).items() if isinstance(v, plain)}


def _has_hooks(module: nn.Module) -> bool:
    return any(p._backward_hooks for p in module.parameters(recurse=False)) or bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _place_counters_in_a_row(optimizer: torch.optim.Optimizer) -> None:
    """Let the step counts of all parameters lie side by side in memory."""
    states = [s for s in optimizer.state.values() if isinstance(s.get("step"), Tensor)]
    if states:
        row = torch.stack([state["step"] for state in states])
        for state, count in zip(states, row, strict=True):
            state["step"] = count
