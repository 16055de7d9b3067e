"""An optimization step that is recorded and replayed, to reduce overhead."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from skae._compat import has_hooks
from skae._rows import Batch, is_expanded
from skae.engine.binding import are_equal_counts, flatten, is_flat, whole
from skae.engine.tape import Tape, record

# Number of steps of each batch size that run eagerly before one is recorded. The very
# first step creates the state of the optimizer, and a short training is not worth the
# time of recording.
WARM_UP = 3

# Largest number of recorded steps; each keeps the memory of one step.
MAX_RECORDS = 8

# Largest difference between a replay and an eager step that may be due to rounding in
# float32, relative to the largest entry of a tensor.
TOLERANCE = 1e-4

# PyTorch can capture one CUDA graph at a time in a process.
_CAPTURE = threading.Lock()

# Gradient of each parameter; None for a frozen one.
Gradients: TypeAlias = list[Tensor | None]

# Packages whose modules compute the same function at every step, as long as none of
# their attributes changes.
TRUSTED_PACKAGES = {"skae", "torch"}

# Entries of the state of an Adam optimizer that have the shape of the parameter.
_MOMENTS = ("exp_avg", "exp_avg_sq")

# Entries of an optimizer's parameter group that may change between replays.
_VARIABLE_SETTINGS = ("params", "lr", "initial_lr")


class Step:
    """Computes the loss of a batch and its gradients, and updates the parameters.

    On a CPU the first steps run eagerly, then one is recorded and replayed; on a GPU a
    step is captured as a CUDA graph. The results agree up to rounding, since other
    functions may compute them, see `passes` and `products`. The record is compared with
    an eager step on the same batch and weights; if they differ, a warning is issued and
    all further steps run eagerly. Modules of other packages than PyTorch
    and skae always run eagerly.

    Parameters
    ----------
    loss : callable
        Maps a `Batch` to its loss, a tensor of shape ().
    parts : list of object
        Modules and other objects that `loss` uses.
    optimizer : torch.optim.Optimizer
    inputs : list of Tensor, default=()
        Tensors other than the batch that `loss` reads and whose values the caller
        changes in place from step to step.
    compile : "auto" or bool, default="auto"
        ``"auto"`` records and replays steps; True compiles `loss` by ``torch.compile``;
        False runs all steps eagerly.
    on_gradients : callable, default=None
        Called between the backward pass and the update, without arguments.
    on_first_gradients : callable, default=None
        Called in place of `on_gradients` in the first step, which is not recorded.
    generator : torch.Generator, default=None
        Random generator that the parts use.
    """

    def __init__(
        self,
        loss: Callable[[Batch], Tensor],
        parts: list[Any],
        optimizer: torch.optim.Optimizer,
        *,
        inputs: Iterable[Tensor] = (),
        compile: str | bool = "auto",
        on_gradients: Callable[[], None] | None = None,
        on_first_gradients: Callable[[], None] | None = None,
        generator: torch.Generator | None = None,
    ):
        self._loss = torch.compile(loss, dynamic=False) if compile is True else loss
        self._parts = parts
        self._optimizer = optimizer
        self._inputs = list(inputs)
        self._may_record = compile == "auto"
        self._on_gradients = on_gradients
        self._on_first_gradients = on_first_gradients
        self._generator = generator
        self._signature: tuple[Any, ...] = ()
        # The recorded step whose gradients the parameters have now, unless callbacks
        # may have replaced them.
        self._latest: _Record | None = None
        self._discard_records()

    def take(self, batch: Batch) -> Tensor:
        """Take a step.

        Parameters
        ----------
        batch : Batch
            Scaled rows; the step may copy, but does not change them.

        Returns
        -------
        loss : Tensor of shape ()
            Loss of the batch before the update, not synchronized with the host. The
            next step may overwrite it.

        Raises
        ------
        ValueError
            If the loss depends on no parameter that is trained.
        """
        key = _kind(batch)
        record = self._records.get(key)
        if record is None:
            return self._take_and_record(key, batch)
        if record.is_verified:
            return record.replay(batch)
        loss, is_verified = record.verify(batch)
        if not is_verified:
            warnings.warn(
                "A recorded training step differs from the same step as PyTorch "
                "computes it, probably because an operator of a custom module changes "
                "more than its outputs. Training continues without recording, which is "
                "slower. Use compile=False to avoid this warning.",
                RuntimeWarning,
                stacklevel=2,
            )
            self._may_record = False
            self._discard_records()
        return loss

    def refresh(self) -> None:
        """Discard all recorded steps if anything that they depend on has changed.

        To be called after callbacks or users may have changed the network.
        """
        self._latest = None
        if self._records and self._signature != self._current_signature():
            self._discard_records()

    def state(self) -> dict[str, Any]:
        """Return which kinds of steps are recorded, see `load_state`."""
        return {
            "may_record": self._may_record,
            "n_taken": [[*kind, n] for kind, n in self._n_taken.items()],
            "recorded": [[*k, r.is_verified] for k, r in self._records.items()],
        }

    def load_state(self, state: dict[str, Any], batches: Iterable[Batch]) -> None:
        """Record the steps that were recorded in an earlier training.

        Replays round differently than eager steps, so that a training that goes on has
        to replay the same kinds of steps. To be called before the state of modules,
        optimizer and generators is loaded, in place: steps are taken, by which they
        change.

        Parameters
        ----------
        state : dict
            The `state` of the earlier step.
        batches : iterable of Batch
            The batches of an epoch.
        """
        missing = {tuple(kind): verified for *kind, verified in state["recorded"]}
        for batch in batches if missing else ():
            is_verified = missing.pop(_kind(batch), None)
            if is_verified is not None:
                for _ in range(WARM_UP + 1 + is_verified):
                    self.take(batch)
            if not missing:
                break
        self._may_record = self._may_record and state["may_record"]
        self._n_taken.clear()
        for n_rows, is_observed, has_equal_weights, n_taken in state["n_taken"]:
            self._n_taken[n_rows, is_observed, has_equal_weights] = n_taken

    def close(self) -> None:
        """Free the memory of all records."""
        self._latest = None
        self._discard_records()
        _separate_state(self._optimizer)

    def _take_and_record(self, key: tuple[int, bool, bool], batch: Batch) -> Tensor:
        """Take a step eagerly, and record it if further steps are likely to follow."""
        self._n_taken[key] += 1
        is_worth_recording = (
            self._may_record
            and isinstance(batch.target, Tensor)
            and self._n_taken[key] > WARM_UP
            and len(self._records) < MAX_RECORDS
            and all(map(is_trusted, self._parts))
        )
        if not is_worth_recording:
            return self._take_eagerly(batch)
        if not self._records and batch.target.device.type == "cpu":
            _join_state(self._optimizer)
        record = _Record(self, batch)
        self._signature = self._current_signature()
        if record.run is None:
            self._may_record = False
        else:
            self._records[key] = record
        return record.first_loss

    def _discard_records(self) -> None:
        self._n_taken: Counter[tuple[int, bool, bool]] = Counter()
        self._records: dict[tuple[int, bool, bool], _Record] = {}

    def _take_eagerly(self, batch: Batch) -> Tensor:
        loss = self._backward(batch)
        if self._on_first_gradients is None:
            self._update()
            return loss
        self._on_first_gradients()
        self._on_first_gradients = self._latest = None
        self._optimizer.step()
        return loss

    def _backward(self, batch: Batch) -> Tensor:
        self._latest = None
        self._optimizer.zero_grad()
        loss = self._loss(batch)
        if not loss.requires_grad:
            raise ValueError(
                "There is nothing to train: all weights of the network that have an "
                "effect on the loss are frozen, by callbacks, such as Freezer, or by "
                "requires_grad=False in modules of one's own. Leave some trainable."
            )
        loss.backward()
        return loss.detach()

    def _update(self, joined: JoinedUpdate | None = None) -> None:
        if self._on_gradients is not None:
            self._on_gradients()
            self._latest = None
        (self._optimizer if joined is None else joined).step()

    # State and settings on which recorded steps depend

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _modules(self) -> list[nn.Module]:
        parts = [part for part in self._parts if isinstance(part, nn.Module)]
        return [module for part in parts for module in part.modules()]

    def _state(self) -> list[Tensor]:
        """Return the tensors that persist: weights, buffers, optimizer state."""
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

    def _current_signature(self) -> tuple[Any, ...]:
        settings = [
            {k: v for k, v in group.items() if k not in _VARIABLE_SETTINGS}
            for group in self._optimizer.param_groups
        ]
        # With duplicates, since a module or a weight may be used at another place.
        parts = [part for part in self._parts if isinstance(part, nn.Module)]
        named, weights = (
            [pair for part in parts for pair in method(part, remove_duplicate=False)]
            for method in (nn.Module.named_modules, nn.Module.named_parameters)
        )
        return (
            [tensor.data_ptr() for tensor in self._state()],
            [parameter.requires_grad for parameter in self._parameters()],
            settings,
            [type(module) for _, module in named],
            # The modules themselves: a new one may get the address of a deleted one.
            named,
            [(name, weight.data_ptr()) for name, weight in weights],
            [_plain_attributes(module) for module in self._modules()],
            all(map(is_trusted, self._parts)),
        )


class _Record:
    """A step that was taken once, on a copy of the batch, and can be replayed.

    Attributes
    ----------
    first_loss : Tensor of shape ()
        Loss of the batch with which the step was recorded.
    run : callable or None
        Repeats the recorded operations; None if the step cannot be recorded.
    is_verified : bool
        Whether a replay has given the same result as an eager step.
    """

    def __init__(self, step: Step, batch: Batch):
        self.is_verified = False
        self._step = step
        self._batch = batch.clone()
        self._groups = step._optimizer.param_groups
        device = batch.target.device
        # Learning rates as tensors, since numbers would be recorded as constants.
        # On CUDA the optimizer reads them as float32.
        dtype = torch.float32 if device.type == "cuda" else torch.float64
        self._rates = [
            torch.tensor(group["lr"], dtype=dtype, device=device)
            for group in self._groups
        ]
        self._set_rate = [filler(rate) for rate in self._rates]
        # Fields of the batch that are copied at each replay: position and copy.
        self._places: list[tuple[int, Tensor]] = [
            (i, own)
            for i, (own, given) in enumerate(zip(self._batch, batch, strict=True))
            if own is not None and given is not None and not is_expanded(given)
        ]
        self._tape: Tape | None = None
        self._joined: JoinedUpdate | None = None
        take = self._capture if device.type == "cuda" else self._record
        self._loss, self._gradients, self.run = take()
        self._finish_step()
        self.first_loss = self._loss.clone()

    def replay(self, batch: Batch) -> Tensor:
        """Take a step by repeating the recorded operations."""
        self._load(batch)
        assert self.run is not None
        self.run()
        self._finish_step(is_replay=True)
        return self._loss

    def verify(self, batch: Batch) -> tuple[Tensor, bool]:
        """Take a step eagerly, and compare it with a replay.

        Returns
        -------
        loss : Tensor of shape ()
            Loss of the batch in the eager step.
        is_verified : bool
            Whether loss, gradients and state agree within rounding.
        """
        self._load(batch)
        step = self._step
        assert self.run is not None
        # What is compared is the record, with the functions that it was made with. A
        # replay by others rounds differently, which Adam magnifies without bound where
        # a gradient is zero up to rounding.
        run = self.run if self._tape is None else self._tape.run_as_recorded
        replayed = self._results(run)
        loss, gradients = self._compute()
        eager = (loss, *gradients, *step._state())
        self.is_verified = all(map(_are_close, replayed, eager))
        if self._tape is not None:
            self._tape.forget_record()
        if step._on_gradients is not None:
            step._update()
        return loss, self.is_verified

    def _results(self, run: Callable[[], None]) -> list[Tensor | None]:
        """Return loss, gradients and state after a replay, which is undone."""
        step = self._step
        state = step._state()
        before = [tensor.detach().clone() for tensor in state]
        # The replay and the eager step must draw the same random numbers.
        with _restored_generators(step._generator, self._batch.target.device):
            run()
        results = [
            None if tensor is None else tensor.detach().clone()
            for tensor in (self._loss, *self._gradients, *state)
        ]
        with torch.no_grad():
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)
        return results

    def _load(self, batch: Batch) -> None:
        """Copy the batch and the learning rates to the tensors that a replay reads."""
        for i, own in self._places:
            own.copy_(batch[i])  # type: ignore[arg-type]
        for set_rate, group in zip(self._set_rate, self._groups, strict=True):
            set_rate(group["lr"])

    def _compute(self) -> tuple[Tensor, Gradients]:
        """Compute the recorded part: the step, without its update if `on_gradients`."""
        step = self._step
        if step._on_gradients is not None:
            loss = step._backward(self._batch)
        else:
            numbers = [group["lr"] for group in self._groups]
            self._set_rates(self._rates)
            try:
                loss = step._take_eagerly(self._batch)
            finally:
                self._set_rates(numbers)
        return loss, [parameter.grad for parameter in step._parameters()]

    def _set_rates(self, rates: Iterable[Any]) -> None:
        for group, rate in zip(self._groups, rates, strict=True):
            group["lr"] = rate

    def _finish_step(self, is_replay: bool = False) -> None:
        """Set the gradients of the parameters, and update these if not recorded.

        The update after a replay is computed as a recorded one would be.
        """
        step = self._step
        if step._latest is not self:
            parameters = step._parameters()
            for parameter, own in zip(parameters, self._gradients, strict=True):
                parameter.grad = own
            step._latest = self
        if step._on_gradients is not None:
            if is_replay and self._tape is not None and self._joined is None:
                self._joined = JoinedUpdate(step._optimizer)
            step._update(self._joined)

    def _record(self) -> tuple[Tensor, Gradients, Callable[[], None] | None]:
        """Take the step on a CPU; return loss, gradients and `run`."""
        step = self._step
        batch = [own for _, own in self._places]
        inputs = [*batch, *step._inputs, *self._rates, *step._state()]
        (loss, gradients), self._tape = record(self._compute, inputs)
        return loss, gradients, None if self._tape is None else self._tape.run

    def _capture(self) -> tuple[Tensor, Gradients, Callable[[], None] | None]:
        """Take the step as a CUDA graph; return loss, gradients and `run`."""
        device = self._batch.target.device
        graph = torch.cuda.CUDAGraph()
        if self._step._generator is not None:
            graph.register_generator_state(self._step._generator)
        try:
            # By default, a capture forbids other threads to allocate memory or to wait
            # for the device, and uses a stream of the current device.
            with (
                _CAPTURE,
                torch.cuda.device(device),
                torch.cuda.graph(
                    graph,
                    stream=torch.cuda.Stream(device),
                    capture_error_mode="thread_local",
                ),
            ):
                loss, gradients = self._compute()
        except RuntimeError:  # an operation synchronizes, which a graph cannot contain
            return *self._compute(), None
        graph.replay()  # capturing a step does not run it
        return loss, gradients, graph.replay


def _kind(batch: Batch) -> tuple[int, bool, bool]:
    """Return what the steps have in common that are recorded as one."""
    return batch.n_rows, batch.observed is None, is_expanded(batch.weight)


def filler(tensor: Tensor) -> Callable[[float], Any]:
    """Return a function that fills a tensor with a number, with little overhead."""
    return tensor.fill_ if tensor.device.type != "cpu" else tensor.numpy().fill


def is_trusted(part: Any) -> bool:
    """Whether an object and its modules belong to trusted packages, without hooks."""
    if not isinstance(part, nn.Module):
        return _package(part) in TRUSTED_PACKAGES
    return all(
        _package(module) in TRUSTED_PACKAGES and not has_hooks(module)
        for module in part.modules()
    )


def _package(part: Any) -> str:
    """Return the name of the package that defines the class of an object."""
    return type(part).__module__.partition(".")[0]


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Return attributes of a module that are settings: numbers, names, functions."""
    plain = (int, float, str, tuple, type(None))
    return {
        k: v for k, v in vars(module).items() if isinstance(v, plain) or callable(v)
    }


@contextmanager
def _restored_generators(
    generator: torch.Generator | None, device: torch.device
) -> Iterator[None]:
    """Context that restores a generator and PyTorch's global one at its end."""
    state = None if generator is None else generator.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    if generator is not None and state is not None:
        generator.set_state(state)


def _are_close(replayed: Tensor | None, eager: Tensor | None) -> bool:
    """Whether two results are equal up to rounding."""
    if replayed is None or eager is None:
        return replayed is eager
    # Usually they are equal to the bit, which takes much less time to find out.
    if torch.equal(replayed, eager) or eager.numel() == 0:
        return True
    if not eager.is_floating_point():
        return False
    largest = eager.detach().abs().nan_to_num(posinf=0.0).max().item()
    return torch.allclose(
        replayed, eager, rtol=TOLERANCE, atol=TOLERANCE * largest, equal_nan=True
    )


def _join_state(optimizer: torch.optim.Optimizer) -> None:
    """Store parameters, and the optimizer's tensors, as parts of one tensor each.

    A replay then updates them by one operation, see `binding.join_lists`.
    """
    states = [s for s in optimizer.state.values() if isinstance(s.get("step"), Tensor)]
    if states:
        joined = torch.stack([state["step"] for state in states])
        for state, count in zip(states, joined, strict=True):
            state["step"] = count
    for group in optimizer.param_groups:
        parameters = _flattened_parameters(optimizer, group)
        if parameters:
            for p, part in zip(parameters, flatten(_data(parameters)), strict=True):
                p.data = part
        for name in _MOMENTS:
            values = [optimizer.state[p][name] for p in parameters]
            for p, part in zip(parameters, flatten(values), strict=True):
                optimizer.state[p][name] = part


class JoinedUpdate:
    """Takes the steps of an optimizer as replays do, see `binding.join_lists`.

    An update of each parameter by itself would round differently.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        With parameters and state as `_join_state` stores them; otherwise it takes the
        steps itself.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self._optimizer = optimizer
        groups = [_JoinedGroup.of(optimizer, group) for group in optimizer.param_groups]
        self._groups = [group for group in groups if group is not None]
        self._is_joined = len(self._groups) == len(groups)

    def step(self) -> None:
        """Update the parameters by their present gradients."""
        if not self._is_joined or not all(g.is_ready for g in self._groups):
            self._optimizer.step()
            return
        for group in self._groups:
            group.step()


class _JoinedGroup(NamedTuple):
    """A group of parameters of an optimizer, and another optimizer of the whole.

    Attributes
    ----------
    settings : dict
        The group.
    parameters : list of Parameter
        Those with a gradient.
    gradients : list of Tensor
        Parts of the gradient of the whole.
    counts : list of Tensor
        Numbers of steps of the parameters.
    optimizer : torch.optim.Optimizer
        Of one parameter, whose memory and state are those of all.
    """

    settings: dict[str, Any]
    parameters: list[nn.Parameter]
    gradients: list[Tensor]
    counts: list[Tensor]
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(
        cls, optimizer: torch.optim.Optimizer, settings: dict[str, Any]
    ) -> _JoinedGroup | None:
        """Join a group, or return None if its parameters have no common memory."""
        parameters = [p for p in settings["params"] if p.grad is not None]
        states = [optimizer.state[p] for p in parameters]
        lists = [_data(parameters), *([s.get(m) for s in states] for m in _MOMENTS)]
        are_tensors = all(isinstance(t, Tensor) for part in lists for t in part)
        if not parameters or not are_tensors or not all(map(is_flat, lists)):
            return None
        gradients = flatten([torch.zeros_like(p) for p in parameters])
        value, mean, square, gradient = map(whole, (*lists, gradients))
        joined = nn.Parameter(value)
        joined.grad = gradient
        make: Any = type(optimizer)
        one = make([{**settings, "params": [joined]}])
        counts = [state["step"] for state in states]
        moments = dict(zip(_MOMENTS, (mean, square), strict=True))
        one.state[joined] = {"step": counts[0], **moments}
        return cls(settings, parameters, gradients, counts, one)

    @property
    def is_ready(self) -> bool:
        """Whether the group can be updated at once.

        The same parameters have a gradient as before, and have been updated equally
        often.
        """
        n_gradients = sum(p.grad is not None for p in self.settings["params"])
        are_given = all(p.grad is not None for p in self.parameters)
        are_the_same = are_given and n_gradients == len(self.parameters)
        return are_the_same and are_equal_counts(self.counts)

    def step(self) -> None:
        """Update all parameters of the group."""
        for part, parameter in zip(self.gradients, self.parameters, strict=True):
            assert parameter.grad is not None
            part.copy_(parameter.grad)
        (group,) = self.optimizer.param_groups
        group.update((k, v) for k, v in self.settings.items() if k != "params")
        self.optimizer.step()
        for count in self.counts[1:]:
            count.copy_(self.counts[0])


def _separate_state(optimizer: torch.optim.Optimizer) -> None:
    """Give each tensor of `_join_state` its own memory.

    Otherwise a file with one of them would contain all.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if _shares_memory(parameter):
                parameter.data = parameter.data.clone()
            for name, value in state.items():
                if isinstance(value, Tensor) and _shares_memory(value):
                    state[name] = value.clone()


def _flattened_parameters(
    optimizer: torch.optim.Optimizer, group: dict[str, Any]
) -> list[nn.Parameter]:
    """Return the parameters of a group that an Adam optimizer updates together."""
    return [
        p
        for p in group["params"]
        if p.numel() > 0
        and p.dtype == torch.float32
        and all(
            isinstance(t, Tensor) and t.is_contiguous() and t.shape == p.shape
            for t in (p, *(optimizer.state.get(p, {}).get(name) for name in _MOMENTS))
        )
    ]


def _data(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach() for parameter in parameters]


def _shares_memory(tensor: Tensor) -> bool:
    """Whether a tensor is a part of a larger one."""
    return tensor.untyped_storage().nbytes() > tensor.nbytes
