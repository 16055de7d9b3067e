"""The training loop: epochs, batches, and notification of skorch callbacks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from skae._generator import global_generators
from skae._layers import using_generator
from skae._memory import FittingBlocks, free_cache, is_out_of_memory
from skae._module import Autoencoder
from skae._processor import settings_restored
from skae._rows import Batch, Rows, sample_size
from skae._sparse import SparseRows
from skae.engine.averaging import WeightAverage
from skae.engine.batches import (
    MAX_RESIDENT_CPU,
    RowsDataset,
    TrainingBatches,
    count_batches,
)
from skae.engine.checkpoint import Checkpoint, layout
from skae.engine.division import MIN_PART, Division
from skae.engine.interrupt import Interruption
from skae.engine.judge import DIVISOR, Judge, exceeds_standard_error
from skae.engine.net import (
    AutoencoderNet,
    StopTraining,
    lacks_float64,
    without_batches,
)
from skae.engine.networks import Network, Networks, Split
from skae.engine.notifier import Notifier
from skae.engine.objective import trimmed_for_members, trimmed_share, trimmed_weight
from skae.engine.processes import current_processes
from skae.engine.step import Step, filler
from skae.engine.streams import StreamedBatches

# Largest number of records of batches in the history of an epoch.
MAX_BATCH_RECORDS = 1000

# Number of entries of the widest layer up to which a step is recorded on a CPU. A
# recorded step keeps the memory of all intermediate results.
MAX_RECORDED_ENTRIES = 2**23

# Number of steps of a training from which recording a step saves time.
MIN_RECORDED_STEPS = 60

# Number of entries of a batch from which products of sparse rows save time. A smaller
# dense step takes no longer, and may be recorded.
MIN_SPARSE_ENTRIES = 2**17

# Number of rows, times the number of ordered components, with which these are compared.
MAX_COMPARED = 2**13

# Largest ratio of gradients of the encoder to those of the decoder at which the former
# consist of rounding errors. Measured: 1e-6 to 1e-5 in float32 at a PCA.
ROUNDING = 1e-4

# Standard deviation of the gradient that replaces these errors, a typical one of them.
# It makes a step of a fifth of the learning rate.
ROUNDING_ERROR = 2.5e-9

# Number of entries up to which a scaled table is kept on a GPU: 4 GB in float32.
MAX_RESIDENT = 2**30

# Function that maps a batch to the objective of each row, of shape (n_rows,).
RowLosses: TypeAlias = Callable[..., Tensor]

# Iterables of batches, of rows in memory and in partitions.
AnyBatches: TypeAlias = TrainingBatches | StreamedBatches


class HeldOut(NamedTuple):
    """Held-out rows that are evaluated after each epoch.

    Attributes
    ----------
    row_losses : callable
        Computes the objective of the rows of a batch.
    batches : TrainingBatches or StreamedBatches
    weight : ndarray of shape (n_rows,)
        Weights of the rows.
    is_part : bool
        Whether other processes evaluate the other rows.
    may_divide : bool
        Whether a batch may be evaluated in several blocks.
    """

    row_losses: RowLosses
    batches: AnyBatches
    weight: np.ndarray
    is_part: bool
    may_divide: bool


class OptimizerState(NamedTuple):
    """State, besides the weights, from which the next `partial_fit` continues.

    Attributes
    ----------
    optimizer : dict
        State of each parameter in the optimizer.
    shapes : list of torch.Size
        Shapes of these parameters.
    shuffling : dict
        State of the NumPy bit generator that shuffles rows.
    noise : Tensor
        State of the PyTorch generator that random modules use.
    device : str
        Device type of this generator.
    n_steps : int
        Number of steps taken.
    rates : list of tuple of float
        Initial and next learning rate of each parameter group.
    """

    optimizer: dict[Any, Any]
    shapes: list[torch.Size]
    shuffling: Any
    noise: Tensor
    device: str
    n_steps: int
    rates: list[tuple[float, float]]


class Trainer:
    """Trains a net on one split of the rows.

    Parameters
    ----------
    net : AutoencoderNet
        Its module is trained in place.
    split : Split
        Training rows and held-out rows.
    seed : int
        Seed of the shuffling, and of all random modules in the network.
    interruption : Interruption
        Records Ctrl-C, which ends the training.
    earlier : OptimizerState, default=None
        State of the optimizer and the generators to continue from.
    pca : Autoencoder, default=None
        The PCA with which `compare_with_pca` compares the network.
    checkpoint : Checkpoint, default=None
        File to which the state of the training is written after each epoch, and from
        which the training goes on if it exists. The net has no callbacks of users then.
    draws_globally : bool, default=False
        Whether the network draws from PyTorch's global generators.
    """

    def __init__(
        self,
        net: AutoencoderNet,
        split: Split,
        seed: int,
        interruption: Interruption,
        earlier: OptimizerState | None = None,
        pca: Autoencoder | None = None,
        checkpoint: Checkpoint | None = None,
        draws_globally: bool = False,
    ):
        with settings_restored():  # it initializes the callbacks, too
            net.initialize()
        self.net = net
        self.plan = net.plan
        self.split = split
        self.interruption = interruption
        self.device = torch.device(net.device)
        shuffling, noise, first = np.random.SeedSequence(seed).spawn(3)
        self.rng = np.random.default_rng(shuffling)
        self._first_rng = np.random.default_rng(first)
        self.generator = torch.Generator(self.device)
        self.processes = current_processes()
        n_train = len(split.train)
        smallest = n_train // count_batches(n_train, self.plan.batch_size)
        self.division = Division(self.processes, smallest)
        # Each process draws its own noise, for its own rows.
        rank = self.processes.rank
        self.generator.manual_seed(int(noise.generate_state(rank + 1)[rank]))
        self.n_steps = 0
        self.pca = pca
        self._fitting = FittingBlocks(net.module_, self.device)
        self.checkpoint = checkpoint
        self._generators = [
            self.generator,
            *global_generators(draws_globally, self.device),
        ]
        self._best_before = net.best_epoch_
        self._start_losses: np.ndarray | None = None
        self._earlier = earlier
        if earlier is not None:
            self._restore(earlier)
        # Callbacks of each method that is called for every batch.
        self._notified_of = {
            name: net.callbacks_with(name)
            for name in ("on_batch_begin", "on_batch_end", "on_grad_computed")
        }
        # Of several processes, the first one alone may have callbacks.
        self._watches_batches = self.processes.any(
            bool(
                self._notified_of["on_batch_begin"] or self._notified_of["on_batch_end"]
            )
        )
        self.networks = Networks(
            net.module_, net.criterion_, split, may_stack=not self._keeps_sparse
        )
        self.notifier = Notifier(net, self.networks)
        if self.networks.folds:
            group = net.optimizer_.param_groups[0]
            group["params"] = self.networks.parameters()
        modules = nn.ModuleList(module for module, _ in self.networks.trained)
        self.judge = Judge(modules, self.plan, split.train.weight)
        self._datasets = {
            "dataset_train": RowsDataset(split.train.pool),
            "dataset_valid": self._held_out_dataset(),
        }
        # Fraction of the steps that are done; a tensor, since recorded steps read it.
        self._progress = torch.ones((), dtype=torch.float32, device=self.device)
        self._set_progress = filler(self._progress)
        self._held_out: list[HeldOut] = []
        self._total_steps = 1
        self._n_earlier = len(net.history)
        self._lowest = self._lowest_losses()

    def run(self) -> None:
        """Train for `max_epochs`, or until early stopping, a callback or Ctrl-C.

        Afterwards the module has the weights chosen by `Judge.restore_best` and is in
        evaluation mode, and the attributes `judgement_` and `best_epoch_` of the net
        are set.

        Raises
        ------
        DivergenceError
            If a loss, or without held-out rows a weight, becomes infinite or NaN.
        """
        net = self.net
        n_earlier = self._n_earlier
        is_complete = False
        with using_generator(self.generator, *self.networks.all_parts):
            self._judge_start()
            try:
                with self.interruption.allowed():
                    self._notify(
                        "on_train_begin", X=self._datasets["dataset_train"], y=None
                    )
                    self._resume_schedule()
                    self._run_epochs()
                is_complete = True
            except StopTraining:
                pass
            except KeyboardInterrupt:
                self.interruption.requested = True
            if net.history and "train_loss" not in net.history[-1]:
                net.history.pop()  # an epoch that has not ended
            n_epochs = len(net.history) - n_earlier
            self.networks.share_weights()
            exact = [partial(self.processes.share, self._exact_losses)]
            if self.networks.folds:  # nothing is held out from the network itself
                exact.append(partial(self.processes.share, self._exact_training_losses))
            net.judgement_ = self.judge.restore_best(
                n_epochs, is_complete, *(exact if self._is_exact else ())
            )
            if self.judge.best_epoch > 0:
                net.best_epoch_ = n_earlier + self.judge.best_epoch
            self.processes.together(self._notify_of_end)
            self._copy_first()
            # A callback may have restored an earlier epoch and its history.
            net.best_epoch_ = min(net.best_epoch_, len(net.history))
        net.set_training_mode(False)
        if not self.plan.early_stopping:
            # The losses of an epoch are those before its last update.
            self.judge.check_weights(n_epochs)

    def optimizer_state(self) -> OptimizerState:
        """Return the states from which another training can continue.

        They are those of the optimizer itself, which must not take further steps.
        """
        optimizer = self.net.optimizer_
        return OptimizerState(
            optimizer.state_dict()["state"],
            [p.shape for group in optimizer.param_groups for p in group["params"]],
            self.rng.bit_generator.state,
            self.generator.get_state(),
            self.device.type,
            self.n_steps,
            [(group["initial_lr"], group["lr"]) for group in optimizer.param_groups],
        )

    def _restore(self, earlier: OptimizerState) -> None:
        optimizer = self.net.optimizer_
        shapes = [p.shape for group in optimizer.param_groups for p in group["params"]]
        # Parts of the module may have been replaced by others since.
        if shapes == earlier.shapes:
            state = {**optimizer.state_dict(), "state": _copied(earlier.optimizer)}
            optimizer.load_state_dict(state)
        self.rng.bit_generator.state = earlier.shuffling
        if earlier.device == self.device.type:
            self.generator.set_state(earlier.noise)
        self.n_steps = earlier.n_steps

    def _resume_schedule(self) -> None:
        """Set the learning rate with which a callback's schedule goes on.

        Only some of PyTorch's schedulers do so themselves.
        """
        if self._earlier is None or not self.net.has_own_schedule:
            return
        groups = self.net.optimizer_.param_groups
        for group, (initial, rate) in zip(groups, self._earlier.rates, strict=False):
            if group["initial_lr"] == initial:  # else learning_rate has been changed
                group["lr"] = rate

    def _build_step(self) -> Step:
        net = self.net
        compile: str | bool = self.plan.compile
        # In these cases, "auto" means False.
        n_entries = self.plan.batch_size * net.module_.widest_layer
        is_large = self.device.type == "cpu" and n_entries > MAX_RECORDED_ENTRIES
        is_short = self._total_steps < MIN_RECORDED_STEPS
        if self.device.type == "mps" or is_large or is_short:
            compile = compile is True
        if self._compares_all_rows:  # messages between processes cannot be recorded
            compile = False
        watches_gradients = bool(self._notified_of["on_grad_computed"])
        return Step(
            self._batch_loss,
            [*self.networks.parts, net.module_.loss, net.optimizer_],
            net.optimizer_,
            inputs=[self._progress],
            compile=compile,
            on_gradients=(
                self._finish_gradients
                if watches_gradients or self.division.is_real
                else None
            ),
            on_first_gradients=self._finish_gradients,
            generator=self.generator,
        )

    # Epochs

    def _judge_start(self) -> None:
        """Compute the objective of the held-out rows with the initial weights."""
        if not self.split.is_judged:
            return
        self._held_out = list(self._held_out_batches())
        losses = self._run_validation_epoch(is_start=True)
        assert losses is not None
        self.judge.judge_start(losses, self._held_out_weight)

    @property
    def _held_out_weight(self) -> np.ndarray:
        return np.concatenate([rows.weight for _, rows in self.networks.judged])

    def _held_out_batches(self) -> Iterator[HeldOut]:
        """Yield the held-out rows, of several processes each a part."""
        networks, (rank, size) = self.networks, self.division.part
        # Callbacks of batches receive the rows of one network.
        stacked = None if self._watches_batches else networks.stacked_held_out()
        if stacked is not None:
            rows, sizes = stacked
            at_once = self._make_batches(rows, training=False, size=len(rows))
            losses = partial(networks.stacked_row_losses, sizes=sizes)
            yield HeldOut(losses, at_once, self._held_out_weight, False, False)
            return
        for network, rows in networks.judged:
            is_part = len(rows) >= MIN_PART * size > MIN_PART
            if is_part:
                rows = rows.subset(np.array_split(np.arange(len(rows)), size)[rank])
            batches = self._make_batches(rows, training=False)
            yield HeldOut(network.row_losses, batches, rows.weight, is_part, True)

    def _run_epochs(self) -> None:
        net, epochs = self.net, self.plan.max_epochs
        batches = self._make_batches(self.split.train, training=True)
        self._total_steps = epochs * len(batches)
        average = WeightAverage(self.networks.parameters(), self.plan.averaged_steps)
        self.notifier.average = average
        with closing(batches), closing(self._build_step()) as self._step:
            epoch, is_last = self._resume(batches, average)
            while not is_last:
                epoch += 1
                self._notify("on_epoch_begin", **self._datasets)
                self._run_training_epoch(batches)
                self.networks.share_weights()
                average.update(len(batches))
                with average.in_use():
                    self._copy_first()
                    losses = self._run_validation_epoch()
                    with self.interruption.deferred():
                        self._judge_epoch(epoch, losses)
                    self._notify("on_epoch_end", **self._datasets)
                n_divisions = self.judge.n_divisions
                goes_on = self.judge.allows_another_epoch(not net.has_own_schedule)
                if self.judge.n_divisions > n_divisions:
                    average.restart()
                is_last = epoch == epochs or not goes_on
                self._write_checkpoint(epoch, is_last, batches, average)

    # The state between two epochs

    def _write_checkpoint(
        self, epoch: int, is_last: bool, batches: AnyBatches, average: WeightAverage
    ) -> None:
        """Write the state after an epoch, of several processes in the first."""
        checkpoint = self.checkpoint
        if checkpoint is not None:
            state = self._state(batches, average)
            state.update(epoch=epoch, is_last=is_last)
            self.processes.share(lambda: checkpoint.write(state))

    def _resume(self, batches: AnyBatches, average: WeightAverage) -> tuple[int, bool]:
        """Go on from the checkpoint, if there is one.

        Returns
        -------
        epoch : int
            Number of epochs that are done.
        is_last : bool
            Whether the training has ended with them.
        """
        state = self._read_checkpoint()
        if state is None or self.checkpoint is None:
            return 0, False
        with self.checkpoint.refused():
            self._load_state(state, batches, average)
            return state["epoch"], state["is_last"]

    def _read_checkpoint(self) -> dict[str, Any] | None:
        """Return the state from which the training goes on, or None.

        Raises
        ------
        ValueError
            If it is not that of these networks.
        """
        if self.checkpoint is None:
            return None
        state = self.processes.share(self.checkpoint.read)
        if state is None:
            return None
        with self.checkpoint.refused():
            pairs = [
                (self._modules.state_dict(), state["weights"]),
                (self._other_buffers(), state["buffers"]),
                (self.judge.state()["best_weights"], state["judge"]["best_weights"]),
            ]
            is_other = any(layout(own) != layout(stored) for own, stored in pairs)
        if is_other:
            raise self.checkpoint.refusal(
                "The stored weights are those of another network, probably because the "
                "code of one of its classes or functions has changed since."
            )
        return state

    def _state(self, batches: AnyBatches, average: WeightAverage) -> dict[str, Any]:
        """Return all that determines the further training, see `_load_state`."""
        states = self.net.optimizer_.state
        history = self.net.history[self._n_earlier :]
        return {
            "weights": self._modules.state_dict(),
            "buffers": self._other_buffers(),
            "average": average.state(),
            "optimizer": [states.get(p, {}) for p in self._trained_parameters],
            "n_steps": self.n_steps,
            "step": self._step.state(),
            "batches": batches.state(),
            "shuffling": self.rng.bit_generator.state,
            # Of several processes, each draws its own noise.
            "noise": [
                self.processes.concatenate(generator.get_state().numpy()[None])
                for generator in self._generators
            ],
            "judge": self.judge.state(),
            "history": [without_batches(epoch) for epoch in history],
        }

    def _load_state(
        self, state: dict[str, Any], batches: AnyBatches, average: WeightAverage
    ) -> None:
        """Go on from the state of another training of the same rows and networks.

        Tensors are changed in place, since recorded steps read them.
        """
        if not self.processes.are_several:  # they would have to take as many steps
            self._set_training_mode(True)
            self._step.load_state(state["step"], batches)
        self._modules.load_state_dict(state["weights"])
        for name, buffer in self._other_buffers().items():
            buffer.copy_(state["buffers"][name])
        self.networks.share_weights()
        average.load_state(state["average"])
        pairs = zip(self._trained_parameters, state["optimizer"], strict=True)
        for parameter, values in pairs:
            own = self.net.optimizer_.state[parameter]
            for name, value in values.items():
                if name not in own:
                    own[name] = torch.empty_like(value, device=parameter.device)
                own[name].copy_(value)
        self.n_steps = state["n_steps"]
        batches.load_state(state["batches"])
        self.rng.bit_generator.state = state["shuffling"]
        for generator, states in zip(self._generators, state["noise"], strict=True):
            generator.set_state(torch.from_numpy(states[self.processes.rank]))
        self.judge.load_state(state["judge"])
        self.net.history.extend({**epoch, "batches": []} for epoch in state["history"])
        self._lowest = self._lowest_losses()

    @property
    def _modules(self) -> nn.ModuleList:
        """Networks and objectives that are trained."""
        return nn.ModuleList(self.networks.parts)

    def _other_buffers(self) -> dict[str, Tensor]:
        """Return buffers of modules that their `state_dict` leaves out."""
        modules = self._modules
        names = modules.state_dict().keys()
        return {name: b for name, b in modules.named_buffers() if name not in names}

    @property
    def _trained_parameters(self) -> list[nn.Parameter]:
        groups = self.net.optimizer_.param_groups
        return [parameter for group in groups for parameter in group["params"]]

    def _lowest_losses(self) -> dict[str, float]:
        """Return the lowest training and validation loss so far."""
        history = self.net.history
        return {
            name: min((e[name] for e in history if name in e), default=math.inf)
            for name in ("train_loss", "valid_loss")
        }

    def _judge_epoch(self, epoch: int, valid_losses: np.ndarray | None) -> None:
        """Record the losses of an epoch, which callbacks read, and judge the epoch."""
        records = self.net.history[-1]["batches"]
        batches = [batch for batch in records if "train_loss" in batch]
        own = [(batch["train_loss"], batch["train_batch_size"]) for batch in batches]
        losses, sizes = self.processes.concatenate(np.array(own)).T
        train_loss = float(np.average(losses, weights=sizes))
        self._record_loss("train_loss", train_loss)
        # The held-out rows are judged by the full weights of the penalty and of the
        # bottleneck's term, which training does not minimise yet while they grow.
        settled_from = self.net.criterion_.settled_from
        done = self.n_steps / self._total_steps
        is_settled = self.plan.schedule is None or done >= settled_from
        is_settled &= self.n_steps >= self.plan.settling_steps
        valid_loss = self.judge.judge_epoch(
            epoch, train_loss, valid_losses, counts=is_settled
        )
        if valid_loss is not None:
            self._record_loss("valid_loss", valid_loss)

    def _record_loss(self, name: str, loss: float) -> None:
        """Record a loss of the epoch, and whether it is the lowest so far."""
        self.net.history.record(name, loss)
        self.net.history.record(f"{name}_best", loss < self._lowest[name])
        self._lowest[name] = min(loss, self._lowest[name])

    def _run_training_epoch(self, batches: AnyBatches) -> None:
        """Take a step for each batch, and record the losses.

        Without callbacks that read them, losses remain on a GPU until the end of the
        epoch, so that steps need not wait for each other.
        """
        self._set_training_mode(True)
        if self.net.callbacks_:  # which may have changed the network
            self.networks.freeze_as_first()
            self._step.refresh()
        is_cpu = self.device.type == "cpu"
        losses: list[Any] = []
        sizes: list[int] = []
        fetched: list[Tensor] = []
        for batch in self.division.located(batches):
            if self._watches_batches:
                with self._notifying_of_batch(batch, training=True) as outputs:
                    self.networks.freeze_as_first()
                    self._step.refresh()
                    # A copy, since callbacks may keep it.
                    outputs.update(loss=self._take_step(batch).clone(), y_pred=None)
                continue
            loss = self._take_step(batch)
            losses.append(loss.item() if is_cpu else loss.clone())
            sizes.append(batch.n_rows)
            if len(losses) == MAX_BATCH_RECORDS and not is_cpu:  # tensors take memory
                fetched.append(torch.stack(losses))
                losses.clear()
        self._record_batches("train", [*fetched, *losses], sizes)
        self.net.history.record("train_batch_count", len(batches))

    @torch.no_grad()
    def _run_validation_epoch(self, is_start: bool = False) -> np.ndarray | None:
        """Return the objective of each held-out row, of shape (n_rows,), or None.

        Random modules draw the same numbers in each epoch, so that epochs differ by
        their weights only. Callbacks are not notified of the evaluation before the
        first epoch.
        """
        if not self._held_out:
            return None
        self._set_training_mode(False)
        self._progress.fill_(1.0)
        with _same_noise(self.generator):
            parts = [self._held_out_losses(part, is_start) for part in self._held_out]
        if not is_start:
            n_batches = sum(len(part.batches) for part in self._held_out)
            self.net.history.record("valid_batch_count", n_batches)
        losses = np.concatenate(parts)
        return losses if losses.ndim == 1 else self._mean_over_widths(losses, is_start)

    def _held_out_losses(self, part: HeldOut, is_start: bool) -> np.ndarray:
        """Return the objective of held-out rows, those of the other processes too."""
        all_losses = []
        rest = torch.from_numpy(np.array(part.weight))
        for batch in part.batches:
            with self._notifying_of_batch(batch, False, is_start) as outputs:
                row_losses = self._fitting_losses(part, batch)
                weight = rest[: len(row_losses)].to(row_losses)
                rest = rest[len(row_losses) :]
                all_losses.append(row_losses.cpu().numpy())
                if row_losses.ndim == 2:
                    row_losses = row_losses.mean(dim=1)
                loss = (row_losses * weight).sum() / weight.sum()
                outputs.update(loss=loss, y_pred=row_losses)
        losses = np.concatenate(all_losses)
        if part.is_part:
            return self.processes.concatenate(losses)
        return self.processes.share(lambda: losses)

    def _fitting_losses(self, part: HeldOut, batch: Batch) -> Tensor:
        """Return the objective of rows, in smaller blocks where memory is exhausted."""
        if not part.may_divide:
            return part.row_losses(batch, progress=self._progress)
        parts = self._fitting.evaluate(
            lambda where: part.row_losses(batch.block(where), progress=self._progress),
            batch.n_rows,
        )
        return torch.cat([losses for _, losses in parts])

    def _mean_over_widths(self, losses: np.ndarray, is_start: bool) -> np.ndarray:
        """Return the mean objective of rows over numbers of components, (n_rows,).

        Where the PCA is better on average, it counts, since it will be used.

        Parameters
        ----------
        losses : ndarray of shape (n_rows, n_widths)
        is_start : bool
            Whether they are those before the first epoch.
        """
        # A training that goes on starts from other weights.
        if is_start and self.pca is not None and not self.plan.keep_start:
            self._start_losses = losses
        elif self._start_losses is not None:
            start, weight = self._start_losses, self._held_out_weight
            losses = np.where(weight @ (losses - start) > 0, start, losses)
        return losses.mean(axis=1)

    @property
    def _is_exact(self) -> bool:
        """Whether the initial and the best weights are compared in float64.

        Refining the codes of many rows in float64 would take longer than an epoch.
        """
        if not self.plan.is_exact or lacks_float64(self.device):
            return False
        held_out = self.split.held_out
        return held_out is None or len(held_out) <= sample_size(held_out.n_features)

    def _exact_losses(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the objective of rows in float64, and their weights.

        These are the held-out rows or, if there are none, a sample of the training
        rows.
        """
        judged = self.networks.judged
        if not judged:
            return self._exact_training_losses()
        losses = [self._exact_losses_of(*pair) for pair in judged]
        return np.concatenate(losses), self._held_out_weight

    def _exact_training_losses(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the objective of a sample of the training rows, as `_exact_losses`."""
        rows = self.split.train.sample()
        return self._exact_losses_of(self.networks.first, rows), rows.weight

    def compare_with_pca(self) -> np.ndarray:
        """Compare the network with the PCA for each number of ordered components.

        If the network is better with none, it becomes the PCA by its initial weights.

        Returns
        -------
        is_learnt : ndarray of bool of shape (n_components,)
            Whether the mean gain of the held-out rows is larger than its standard error
            and that of the training rows, where the network has learnt the held-out
            ones, is positive; without held-out rows, whether the latter is positive.
            All True if the network is the PCA.
        """
        assert self.pca is not None
        judged, first = self.networks.judged, self.networks.first
        n_components = self.pca.n_components
        train = [(first, sampled_for_widths(self.split.train, n_components))]
        held_out = [
            (network, sampled_for_widths(rows, n_components))
            for network, rows in judged
        ]
        is_learnt = self.processes.share(
            lambda: self._are_better(held_out or train, is_held_out=bool(held_out))
        )
        if self.networks.folds:
            is_learnt &= self.processes.share(
                lambda: self._are_better(train, is_held_out=False)
            )
        if not is_learnt.any():
            self.judge.restore_start()
            self.net.best_epoch_ = self._best_before
            is_learnt[:] = True
        return is_learnt

    def _are_better(
        self, judged: list[tuple[Network, Rows]], *, is_held_out: bool
    ) -> np.ndarray:
        """Return whether networks are better than the PCA, for each width."""
        assert self.pca is not None
        copied = copy.deepcopy(self.pca)
        if lacks_float64(self.device):
            copied.float()
        pca = Network(copied.to(self.device), self.networks.first.objective)
        with using_generator(self.generator, pca.module, *self.networks.all_parts):
            losses = [
                [self._exact_losses_of(n, rows, True) for n in (pca, network)]
                for network, rows in judged
            ]
        weight = np.concatenate([rows.weight for _, rows in judged])
        before, after = (np.concatenate(part) for part in zip(*losses, strict=True))
        is_better = exceeds_standard_error if is_held_out else _is_positive
        pairs = zip(before.T, after.T, strict=True)
        return np.array([is_better(*self.judge.gains(*p, weight)) for p in pairs])

    @torch.no_grad()
    def _exact_losses_of(
        self, network: Network, rows: Rows, of_each_width: bool = False
    ) -> np.ndarray:
        """Return the objective of rows, in float64 where the device has it.

        Of shape (n_rows,) or, for each number of components, (n_rows, n_components).
        """
        is_double = not lacks_float64(self.device)
        dtype = torch.float64 if is_double else torch.float32
        # The generator cannot be copied.
        memo = {id(self.generator): self.generator}
        module, objective = copy.deepcopy((network.module, network.objective), memo)
        exact = Network(module.to(dtype).eval(), objective.to(dtype).eval())
        compute = exact.row_losses_of_widths if of_each_width else exact.row_losses
        progress = torch.ones((), dtype=dtype, device=self.device)

        def losses(where: slice, block: np.ndarray, part: slice) -> np.ndarray:
            X = torch.from_numpy(np.array(block[part]))
            weight = torch.from_numpy(np.array(rows.weight[where][part])).to(dtype)
            if is_double:
                target, observed = module.scaler(X.to(self.device))
            else:
                target, observed = self._prepare(X.numpy())
            batch = Batch(target, observed, weight.to(self.device))
            return compute(batch, progress).cpu().numpy()

        parts = []
        with _same_noise(self.generator):
            for where, block in rows.blocks(self.net.block_size):
                evaluate = partial(losses, where, block)
                parts += [v for _, v in self._fitting.evaluate(evaluate, len(block))]
        return np.concatenate(parts)

    def _set_training_mode(self, training: bool) -> None:
        self.net.set_training_mode(training)
        self.networks.set_training_mode(training)

    def _held_out_dataset(self) -> RowsDataset | None:
        """Return the held-out rows, which `net` predicts by the network of their fold.

        They are in the order of the folds.
        """
        if self.split.fold is None:
            held_out = self.split.held_out
            return None if held_out is None else RowsDataset(held_out)
        parts = [(module, rows) for (module, _), rows in self.networks.judged]
        order = np.argsort(self.split.fold, kind="stable")
        return RowsDataset(self.split.train.subset(order), parts)

    # Several processes

    @cached_property
    def _compares_all_rows(self) -> bool:
        """Whether weights of rows depend on rows of other processes."""
        has_members = self.split.members is not None
        return self.division.is_real and (self.plan.trim > 0 or has_members)

    def _finish_gradients(self) -> None:
        """Combine the gradients of all processes, and notify callbacks."""
        if self.division.is_real:
            groups = self.net.optimizer_.param_groups
            gradients = [p.grad for group in groups for p in group["params"]]
            self.division.combine([g for g in gradients if g is not None])
            self.division.combine(self._learnt_buffers())
        if self.n_steps == 1:  # not in a training that goes on
            self._replace_rounding_errors()
        if self._notified_of["on_grad_computed"]:
            self._notify_of_gradients()

    def _replace_rounding_errors(self) -> None:
        """Replace gradients of encoders that consist of rounding errors.

        The residuals of a PCA are orthogonal to its axes, so that its code has no
        gradient. The optimizer turns rounding errors of the first step into a step
        whose direction depends on the processor and the number of threads. Random
        numbers of their size, which are the same everywhere, serve as well: without
        any step, two components explain .006 less of the variance.
        """
        for module, _ in self.networks.trained:
            encoder, decoder = (
                [p.grad for p in part.parameters() if p.grad is not None]
                for part in (module.encoder, module.decoder)
            )
            # A gradient of NaN, which is not to be hidden, is no rounding error.
            if not _largest(encoder) <= ROUNDING * _largest(decoder):
                continue
            for gradient in encoder:
                if gradient.any():
                    values = ROUNDING_ERROR * self._first_rng.standard_normal(
                        gradient.shape, dtype=np.float32
                    )
                    gradient.copy_(torch.from_numpy(values))

    def _learnt_buffers(self) -> list[Tensor]:
        """Return buffers that training may change, such as codebooks."""
        parts: list[nn.Module | None] = []
        for module, objective in self.networks.trained:
            parts += [module.encoder, module.bottleneck, module.decoder, module.noise]
            parts.append(objective)
        buffers = [b for part in parts if part is not None for b in part.buffers()]
        return [buffer for buffer in buffers if buffer.is_floating_point()]

    def _copy_first(self) -> None:
        """Give all processes the weights of the first.

        On processors of different makes, equal updates differ by rounding errors.
        """
        if self.processes.are_several:
            self.networks.share_weights()
            parts = self.networks.all_parts
            values = [t for part in parts for t in part.state_dict().values()]
            self.processes.copy_first([t for t in values if isinstance(t, Tensor)])

    def _notify(self, method_name: str, **kwargs: Any) -> None:
        """Notify callbacks; what ends the training in one process ends it in all."""
        self.processes.together(partial(self.notifier.notify, method_name, **kwargs))

    # Steps

    def _make_batches(
        self, rows: Rows, training: bool, size: int | None = None
    ) -> AnyBatches:
        """Return scaled batches, shuffled for training or in order for validation."""
        if rows.is_streamed:
            members = self.split.members
            return StreamedBatches(
                rows,
                self.plan.batch_size,
                self._prepare,
                self.rng,
                members.is_learnt if members else None,
                self.division.part,
            )
        is_cuda = self.device.type == "cuda"
        n_evaluated = self.net.block_size
        if self._keeps_sparse:
            n_evaluated = max(self.plan.batch_size, self.net.module_.sparse_block_size)
        make = partial(
            TrainingBatches,
            rows,
            size or (self.plan.batch_size if training else n_evaluated),
            self._prepare,
            self.rng if training else None,
            self.split.fold_weight() if training else None,
            self.split.members.is_learnt if training and self.split.members else None,
            is_copied=is_cuda,
            keeps_sparse=self._keeps_sparse,
            part=self.division.part if training else (0, 1),
        )
        try:
            return make(max_resident=MAX_RESIDENT if is_cuda else MAX_RESIDENT_CPU)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        free_cache(self.device)
        return make(max_resident=0)  # a chunk of the scaled table at a time

    @cached_property
    def _keeps_sparse(self) -> bool:
        """Whether batches remain sparse, for the whole training."""
        net, plan = self.net, self.plan
        n_entries = plan.batch_size * self.split.train.n_features
        return (
            n_entries >= MIN_SPARSE_ENTRIES
            and not self._watches_batches
            and plan.precision == "float32"
            and plan.compile is not True
            and net.criterion_.allows_sparse
            and net.module_.trains_sparse(self.split.train)
        )

    def _prepare(self, block: Any) -> tuple[Any, Tensor | None]:
        """Return scaled rows and the mask of observed entries, on the device."""
        has_exact = lacks_float64(self.device)
        scaler = self.net.exact_scaler_ if has_exact else self.net.module_.scaler
        assert scaler is not None
        if isinstance(block, SparseRows):
            return scaler(block)
        X = torch.from_numpy(block).to(scaler.mean.device)
        target, observed = scaler(X, overwrite=True)
        if observed is not None:
            observed = observed.to(self.device)
        return target.to(self.device), observed

    def _take_step(self, batch: Batch) -> Tensor:
        """Take an optimization step at the scheduled learning rate."""
        # `partial_fit` has no schedule. A progress of 1 also ends the warm-up of a
        # Gaussian bottleneck.
        schedule = self.plan.schedule
        progress = 1.0 if schedule is None else self.n_steps / self._total_steps
        if schedule is not None and not self.net.has_own_schedule:
            factor = schedule(progress) / DIVISOR**self.judge.n_divisions
            for group in self.net.optimizer_.param_groups:
                group["lr"] = self.plan.learning_rate * factor
        self.n_steps += 1
        self._set_progress(progress)
        loss = self._step.take(batch)
        self.notifier.has_trained = True
        if self._watches_batches:
            self.networks.share_weights()
            self.networks.share_gradients()
        return loss

    def _batch_loss(self, batch: Batch) -> Tensor:
        """Return the loss of the network to be returned, of shape ()."""
        return self.networks.loss(batch, self._mean_loss)

    def _mean_loss(self, network: Network, batch: Batch) -> Tensor:
        """Return the weighted mean objective over rows and members; see `Networks`."""
        uses_bfloat16 = self.plan.precision == "bfloat16"
        with torch.autocast(batch.target.device.type, torch.bfloat16, uses_bfloat16):
            row_losses = network.objective(network.module, batch, self._progress)
        if self._compares_all_rows:
            return self.division.mean_loss(row_losses, batch, self.plan.trim)
        trim, n_rows = self.plan.trim, batch.n_rows
        if batch.is_learnt is not None:
            kept = trimmed_for_members(
                row_losses.detach(), batch.weight, batch.is_learnt.T, trim
            )
            return (row_losses * kept).sum() / len(kept)
        share = trimmed_share(trim, n_rows)
        kept = trimmed_weight(row_losses.detach(), batch.weight, share)
        losses = (row_losses * kept).sum(dim=-1) / ((1 - share) * n_rows)
        return losses if batch.weight.ndim == 2 else losses.mean()

    # Callbacks

    def _record_batches(self, prefix: str, losses: list[Any], sizes: list[int]) -> None:
        """Record the losses of batches in the history, in at most `MAX_BATCH_RECORDS`.

        If there are more batches, a record is the mean over several of them.
        """
        if not losses:
            return
        records = self.net.history[-1]["batches"]
        if isinstance(losses[0], Tensor):
            losses = torch.hstack(losses).tolist()
        values = np.array(losses)
        n_records = min(len(values), MAX_BATCH_RECORDS)
        starts = np.arange(n_records) * len(values) // n_records
        size = np.add.reduceat(sizes, starts)
        loss = np.add.reduceat(values * sizes, starts) / size
        records.extend(
            {f"{prefix}_loss": a, f"{prefix}_batch_size": b}
            for a, b in zip(loss.tolist(), size.tolist(), strict=True)
        )

    @contextmanager
    def _notifying_of_batch(
        self, batch: Batch, training: bool, is_start: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Context of the evaluation of a batch, of which callbacks are notified.

        Parameters
        ----------
        batch : Batch
        training : bool
            Whether a step is taken.
        is_start : bool, default=False
            Whether this is the evaluation before the first epoch, of which nobody is
            notified.

        Yields
        ------
        outputs : dict
            To be filled with the `loss` of the batch, and with `y_pred`.
        """
        outputs: dict[str, Any] = {}
        if is_start:
            yield outputs
            return
        pair, notified_of = (batch.target, batch.weight), self._notified_of
        self.net.history.new_batch()  # in which callbacks may record values
        self.notifier.call(
            "on_batch_begin",
            notified_of["on_batch_begin"],
            batch=pair,
            training=training,
        )
        yield outputs
        prefix = "train" if training else "valid"
        self.net.history.record_batch(f"{prefix}_loss", outputs["loss"].item())
        self.net.history.record_batch(f"{prefix}_batch_size", batch.n_rows)
        self.notifier.call(
            "on_batch_end",
            notified_of["on_batch_end"],
            batch=pair,
            training=training,
            **outputs,
        )

    def _notify_of_end(self) -> None:
        errors: tuple[type[Exception], ...] = (StopTraining,)  # nothing left to stop
        if not self.net.history:
            errors += (IndexError,)  # some callbacks of skorch read the last epoch
        for _, callback in self.net.callbacks_:
            with suppress(*errors):
                self.net.call_back(
                    "on_train_end",
                    [callback],
                    X=self._datasets["dataset_train"],
                    y=None,
                )

    def _notify_of_gradients(self) -> None:
        """Notify callbacks of each network's gradients, which they may change."""
        self.networks.share_weights()
        shared = self.networks.share_gradients()
        named: list[Iterable[Any]] = [self.net.get_all_learnable_params()]
        named += [
            nn.ModuleList(fold).named_parameters() for fold in self.networks.folds
        ]
        for named_parameters in named:
            self.net.call_back(
                "on_grad_computed",
                self._notified_of["on_grad_computed"],
                named_parameters=named_parameters,
                training=True,
            )
        self.networks.collect_gradients(shared)


def _largest(gradients: list[Tensor]) -> float:
    """Return the largest absolute value of gradients, 0 if there are none.

    NaN if any is NaN.
    """
    sizes = [g.abs().max().item() for g in gradients if g.numel()]
    return float(np.max(sizes, initial=0.0))


def _is_positive(gains: np.ndarray, weight: np.ndarray) -> bool:
    """Whether the weighted mean of gains is positive."""
    return bool(weight @ gains > 0)


def _copied(value: Any) -> Any:
    """Return a copy of nested dictionaries of tensors and numbers."""
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    return value.clone() if isinstance(value, Tensor) else value


@contextmanager
def _same_noise(generator: torch.Generator) -> Iterator[None]:
    """Context in which the generator draws the same numbers every time."""
    state = generator.get_state()
    generator.manual_seed(0)
    try:
        yield
    finally:
        generator.set_state(state)


def sampled_for_widths(rows: Rows, n_components: int) -> Rows:
    """Return a sample of rows, which are decoded with each number of components."""
    return rows.sample(max(1, MAX_COMPARED // n_components))
