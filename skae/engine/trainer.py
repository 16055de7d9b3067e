"""The training loop: epochs, batches, and notification of skorch callbacks."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from skae._layers import using_generator
from skae._processor import settings_restored
from skae._rows import Batch, Rows, sample_size
from skae.engine.batches import RowsDataset, TrainingBatches
from skae.engine.interrupt import Interruption
from skae.engine.judge import DIVISOR, Judge
from skae.engine.net import AutoencoderNet, StopTraining, lacks_float64
from skae.engine.objective import trimmed_share, trimmed_weight
from skae.engine.step import Step

# Largest number of records of batches in the history of an epoch.
MAX_BATCH_RECORDS = 1000

# Number of entries of the widest layer up to which a step is recorded on a CPU. A
# recorded step keeps the memory of all intermediate results.
MAX_RECORDED_ENTRIES = 2**22

# Number of steps of a training from which recording a step saves time.
MIN_RECORDED_STEPS = 60

# Number of entries up to which a scaled table is kept on a GPU: 4 GB in float32.
MAX_RESIDENT = 2**30


class Split(NamedTuple):
    """Rows to train on, and held-out rows or None."""

    train: Rows
    held_out: Rows | None


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
    expected : sequence of dict, default=()
        Values of each epoch that callbacks find in the history if this training does
        not compute them: without held-out rows, their losses in other trainings.
    """

    def __init__(
        self,
        net: AutoencoderNet,
        split: Split,
        seed: int,
        interruption: Interruption,
        earlier: OptimizerState | None = None,
        expected: Sequence[dict[str, Any]] = (),
    ):
        with settings_restored():  # it initializes the callbacks, too
            net.initialize()
        self.net = net
        self.plan = net.plan
        self.split = split
        self.interruption = interruption
        self.expected = expected
        self.device = torch.device(net.device)
        shuffling, noise = np.random.SeedSequence(seed).spawn(2)
        self.rng = np.random.default_rng(shuffling)
        self.generator = torch.Generator(self.device)
        self.generator.manual_seed(int(noise.generate_state(1)[0]))
        self.n_steps = 0
        self._earlier = earlier
        if earlier is not None:
            self._restore(earlier)
        self.judge = Judge(net.module_, self.plan, split.train.weight)
        held_out = split.held_out
        self._datasets = {
            "dataset_train": RowsDataset(split.train),
            "dataset_valid": None if held_out is None else RowsDataset(held_out),
        }
        # Fraction of the steps that are done; a tensor, since recorded steps read it.
        self._progress = torch.ones((), dtype=torch.float32, device=self.device)
        # Callbacks of each method that is called for every batch.
        self._notified_of = {
            name: net.callbacks_with(name)
            for name in ("on_batch_begin", "on_batch_end", "on_grad_computed")
        }
        self._watches_batches = bool(
            self._notified_of["on_batch_begin"] or self._notified_of["on_batch_end"]
        )
        self._held_out: TrainingBatches | None = None
        self._total_steps = 1
        # Lowest training and validation loss so far.
        self._lowest: dict[str, float] = {}
        for name in ("train_loss", "valid_loss"):
            losses = [epoch[name] for epoch in net.history if name in epoch]
            self._lowest[name] = min(losses, default=math.inf)

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
        n_earlier = len(net.history)
        is_complete = False
        with using_generator(self.generator, net.module_, net.criterion_):
            self._judge_start()
            try:
                with self.interruption.allowed():
                    net.notify(
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
            net.judgement_ = self.judge.restore_best(
                n_epochs, is_complete, self._exact_losses if self._is_exact else None
            )
            if self.judge.best_epoch > 0:
                net.best_epoch_ = n_earlier + self.judge.best_epoch
            self._notify_of_end()
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
        watches_gradients = bool(self._notified_of["on_grad_computed"])
        return Step(
            self._batch_loss,
            [net.module_, net.module_.loss, net.criterion_, net.optimizer_],
            net.optimizer_,
            inputs=[self._progress],
            compile=compile,
            on_gradients=self._notify_of_gradients if watches_gradients else None,
            generator=self.generator,
        )

    # Epochs

    def _judge_start(self) -> None:
        """Compute the objective of the held-out rows with the initial weights."""
        if self.split.held_out is not None:
            self._held_out = self._make_batches(self.split.held_out, training=False)
            losses = self._run_validation_epoch(is_start=True)
            assert losses is not None
            self.judge.judge_start(losses, self.split.held_out.weight)

    def _run_epochs(self) -> None:
        net, epochs = self.net, self.plan.max_epochs
        batches = self._make_batches(self.split.train, training=True)
        self._total_steps = epochs * len(batches)
        with closing(self._build_step()) as self._step:
            for epoch in range(1, epochs + 1):
                net.notify("on_epoch_begin", **self._datasets)
                self._run_training_epoch(batches)
                losses = self._run_validation_epoch()
                with self.interruption.deferred():
                    self._judge_epoch(epoch, losses)
                net.notify("on_epoch_end", **self._datasets)
                if not self.judge.allows_another_epoch(not net.has_own_schedule):
                    break

    def _judge_epoch(self, epoch: int, losses: np.ndarray | None) -> None:
        """Record the losses of an epoch, which callbacks read, and judge the epoch."""
        history = self.net.history
        records = history[-1]["batches"]
        batches = [batch for batch in records if "train_loss" in batch]
        train_loss = float(
            np.average(
                [batch["train_loss"] for batch in batches],
                weights=[batch["train_batch_size"] for batch in batches],
            )
        )
        self._record_loss("train_loss", train_loss)
        # The held-out rows are judged by the full weights of the penalty and of the
        # bottleneck's term, which training does not minimise yet while they grow.
        settled_from = self.net.criterion_.settled_from
        done = self.n_steps / self._total_steps
        is_settled = self.plan.schedule is None or done >= settled_from
        valid_loss = self.judge.judge_epoch(
            epoch, train_loss, losses, counts=is_settled
        )
        expected = self.expected[epoch - 1] if epoch <= len(self.expected) else {}
        if valid_loss is None:
            valid_loss = expected.get("valid_loss")
        if valid_loss is not None:
            self._record_loss("valid_loss", valid_loss)
        for name, value in expected.items():
            if name not in history[-1]:
                history.record(name, value)

    def _record_loss(self, name: str, loss: float) -> None:
        """Record a loss of the epoch, and whether it is the lowest so far."""
        self.net.history.record(name, loss)
        self.net.history.record(f"{name}_best", loss < self._lowest[name])
        self._lowest[name] = min(loss, self._lowest[name])

    def _run_training_epoch(self, batches: TrainingBatches) -> None:
        """Take a step for each batch, and record the losses.

        Without callbacks that read them, losses remain on the device until the end of
        the epoch, so that steps need not wait for each other.
        """
        self.net.set_training_mode(True)
        self._step.refresh()
        losses: list[Tensor] = []
        sizes: list[int] = []
        fetched: list[Tensor] = []
        for batch in batches:
            if self._watches_batches:
                with self._notifying_of_batch(batch, training=True) as outputs:
                    self._step.refresh()
                    outputs.update(loss=self._take_step(batch), y_pred=None)
                continue
            losses.append(self._take_step(batch))
            sizes.append(batch.n_rows)
            if len(losses) == MAX_BATCH_RECORDS:  # a tensor per loss takes memory
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
        if self._held_out is None:
            return None
        net = self.net
        net.set_training_mode(False)
        self._progress.fill_(1.0)
        all_losses = []
        with _same_noise(self.generator):
            for batch in self._held_out:
                with self._notifying_of_batch(batch, False, is_start) as outputs:
                    row_losses = net.criterion_(net.module_, batch, self._progress)
                    if row_losses.ndim == 2:  # (n_members, n_rows)
                        row_losses = row_losses.mean(dim=0)
                    all_losses.append(row_losses.cpu().numpy())
                    loss = (row_losses * batch.weight).sum() / batch.weight.sum()
                    outputs.update(loss=loss, y_pred=row_losses)
        if not is_start:
            net.history.record("valid_batch_count", len(all_losses))
        return np.concatenate(all_losses)

    @property
    def _is_exact(self) -> bool:
        """Whether the initial and the best weights are compared in float64.

        Refining the codes of many rows in float64 would take longer than an epoch.
        """
        if not self.plan.is_exact or lacks_float64(self.device):
            return False
        held_out = self.split.held_out
        return held_out is None or len(held_out) <= sample_size(held_out.n_features)

    @torch.no_grad()
    def _exact_losses(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the objective of rows in float64, and their weights.

        These are the held-out rows or, if there are none, a sample of the training
        rows.
        """
        rows, net = self.split.held_out, self.net
        if rows is None:
            rows = self.split.train.sample()
        # The generator cannot be copied.
        module, objective = copy.deepcopy(
            (net.module_, net.criterion_), {id(self.generator): self.generator}
        )
        module, objective = module.double().eval(), objective.double().eval()
        progress = torch.ones((), dtype=torch.float64, device=self.device)
        losses = []
        with _same_noise(self.generator):
            for where, block in rows.blocks(net.block_size):
                X = torch.from_numpy(np.array(block)).to(self.device)
                weight = torch.from_numpy(np.array(rows.weight[where]))
                target, observed = module.scaler(X)
                batch = Batch(target, observed, weight.to(self.device))
                row_losses = objective(module, batch, progress)
                if row_losses.ndim == 2:  # (n_members, n_rows)
                    row_losses = row_losses.mean(dim=0)
                losses.append(row_losses.cpu().numpy())
        return np.concatenate(losses), rows.weight

    # Steps

    def _make_batches(self, rows: Rows, training: bool) -> TrainingBatches:
        """Return scaled batches, shuffled for training or in order for validation."""
        is_cuda = self.device.type == "cuda"
        return TrainingBatches(
            rows,
            self.plan.batch_size if training else self.net.block_size,
            self._prepare,
            self.rng if training else None,
            **({"max_resident": MAX_RESIDENT} if is_cuda else {}),
        )

    def _prepare(self, block: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Return scaled rows and the mask of observed entries, on the device."""
        has_exact = lacks_float64(self.device)
        scaler = self.net.exact_scaler_ if has_exact else self.net.module_.scaler
        assert scaler is not None
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
        self._progress.fill_(progress)
        return self._step.take(batch)

    def _batch_loss(self, batch: Batch) -> Tensor:
        """Return the weighted mean objective over rows and members, of shape ()."""
        uses_bfloat16 = self.plan.precision == "bfloat16"
        with torch.autocast(batch.target.device.type, torch.bfloat16, uses_bfloat16):
            row_losses = self.net.criterion_(self.net.module_, batch, self._progress)
        share = trimmed_share(self.plan.trim, len(batch.weight))
        kept = trimmed_weight(row_losses.detach(), batch.weight, share)
        n_rows = (1 - share) * batch.n_rows
        return (row_losses * kept).sum(dim=-1).mean() / n_rows

    # Callbacks

    def _record_batches(self, prefix: str, losses: list, sizes: list[int]) -> None:
        """Record the losses of batches in the history, in at most `MAX_BATCH_RECORDS`.

        If there are more batches, a record is the mean over several of them.
        """
        if not losses:
            return
        records = self.net.history[-1]["batches"]
        values = torch.hstack(losses).double().cpu().numpy()
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
        self.net.call_back(
            "on_batch_begin",
            notified_of["on_batch_begin"],
            batch=pair,
            training=training,
        )
        yield outputs
        prefix = "train" if training else "valid"
        self.net.history.record_batch(f"{prefix}_loss", outputs["loss"].item())
        self.net.history.record_batch(f"{prefix}_batch_size", batch.n_rows)
        self.net.call_back(
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
        self.net.call_back(
            "on_grad_computed",
            self._notified_of["on_grad_computed"],
            named_parameters=self.net.get_all_learnable_params(),
            training=True,
        )


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
