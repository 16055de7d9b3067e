"""The training loop: epochs, batches, and notification of skorch callbacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from skae._rows import Batch, Rows
from skae.engine.batches import TrainingBatches
from skae.engine.interrupt import Interruption
from skae.engine.judge import DIVISOR, Judge
from skae.engine.net import AutoencoderNet, StopTraining, lacks_float64, using_generator
from skae.engine.objective import trimmed_weight
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
    """

    optimizer: dict[Any, Any]
    shapes: list[torch.Size]
    shuffling: Any
    noise: Tensor
    device: str
    n_steps: int


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
    """

    def __init__(
        self,
        net: AutoencoderNet,
        split: Split,
        seed: int,
        interruption: Interruption,
        earlier: OptimizerState | None = None,
    ):
        net.initialize()
        self.net = net
        self.plan = net.plan
        self.split = split
        self.interruption = interruption
        self.device = torch.device(net.device)
        shuffling, noise = np.random.SeedSequence(seed).spawn(2)
        self.rng = np.random.default_rng(shuffling)
        self.generator = torch.Generator(self.device)
        self.generator.manual_seed(int(noise.generate_state(1)[0]))
        self.n_steps = 0
        if earlier is not None:
            self._restore(earlier)
        self.judge = Judge(net.module_, self.plan)
        # Fraction of the steps that are done; a tensor, since recorded steps read it.
        self._progress = torch.ones((), dtype=torch.float32, device=self.device)
        # Callbacks of each method that is called for every batch.
        self._notified_of = {
            name: net.callbacks_with(name)
            for name in ("on_batch_begin", "on_batch_end", "on_grad_computed")
        }
        self._held_out: TrainingBatches | None = None
        self._total_steps = 1

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
                    net.notify("on_train_begin", X=self.split, y=None)
                    self._run_epochs()
                is_complete = True
            except StopTraining:
                pass
            except KeyboardInterrupt:
                self.interruption.requested = True
            if net.history and "train_loss" not in net.history[-1]:
                net.history.pop()  # an epoch that has not ended
            n_epochs = len(net.history) - n_earlier
            net.judgement_ = self.judge.restore_best(n_epochs, is_complete)
            if self.judge.best_epoch > 0:
                net.best_epoch_ = n_earlier + self.judge.best_epoch
            with suppress(StopTraining):  # there is nothing left to stop
                net.notify("on_train_end", X=self.split, y=None)
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
        datasets = {
            "dataset_train": self.split.train,
            "dataset_valid": self.split.held_out,
        }
        self._total_steps = epochs * len(batches)
        with closing(self._build_step()) as self._step:
            for epoch in range(1, epochs + 1):
                net.notify("on_epoch_begin", **datasets)
                self._run_training_epoch(batches)
                losses = self._run_validation_epoch()
                with self.interruption.deferred():
                    self._judge_epoch(epoch, losses)
                net.notify("on_epoch_end", **datasets)
                if not self.judge.allows_another_epoch(not net.has_own_schedule):
                    break

    def _judge_epoch(self, epoch: int, losses: np.ndarray | None) -> None:
        """Record the losses of an epoch, which callbacks read, and judge the epoch."""
        history = self.net.history
        batches = [b for b in history[-1]["batches"] if "train_loss" in b]
        train_loss = float(
            np.average(
                [batch["train_loss"] for batch in batches],
                weights=[batch["train_batch_size"] for batch in batches],
            )
        )
        history.record("train_loss", train_loss)
        valid_loss = self.judge.judge_epoch(epoch, train_loss, losses)
        if valid_loss is not None:
            history.record("valid_loss", valid_loss)

    def _run_training_epoch(self, batches: TrainingBatches) -> None:
        """Take a step for each batch, and record the losses.

        Without callbacks that read them, losses remain on the device until the end of
        the epoch, so that steps need not wait for each other.
        """
        self.net.set_training_mode(True)
        self._step.refresh()
        watches_batches = bool(
            self._notified_of["on_batch_begin"] or self._notified_of["on_batch_end"]
        )
        losses: list[Tensor] = []
        sizes: list[int] = []
        fetched: list[Tensor] = []
        for batch in batches:
            self._notify_of_batch("on_batch_begin", batch, training=True)
            if watches_batches:
                self._step.refresh()
            losses.append(self._take_step(batch))
            sizes.append(batch.n_rows)
            if self._notified_of["on_batch_end"]:
                self._record_batches("train", losses, sizes)
                self._notify_of_batch(
                    "on_batch_end", batch, training=True, loss=losses.pop(), y_pred=None
                )
                sizes.clear()
            elif len(losses) == MAX_BATCH_RECORDS:  # a tensor per loss takes memory
                fetched.append(torch.stack(losses))
                losses.clear()
        self._record_batches("train", [*fetched, *losses], sizes)

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
                if not is_start:
                    self._notify_of_batch("on_batch_begin", batch, training=False)
                row_losses = net.criterion_(net.module_, batch, self._progress)
                if row_losses.ndim == 2:  # (n_members, n_rows)
                    row_losses = row_losses.mean(dim=0)
                all_losses.append(row_losses.cpu().numpy())
                loss = (row_losses * batch.weight).sum() / batch.weight.sum()
                if not is_start:
                    self._record_batches("valid", [loss], [batch.n_rows])
                    self._notify_of_batch(
                        "on_batch_end",
                        batch,
                        training=False,
                        loss=loss,
                        y_pred=row_losses,
                    )
        return np.concatenate(all_losses)

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
        kept = trimmed_weight(row_losses.detach(), batch.weight, self.plan.trim)
        n_rows = (1 - self.plan.trim) * batch.n_rows
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

    def _notify_of_batch(self, method: str, batch: Batch, **kwargs: Any) -> None:
        callbacks = self._notified_of[method]
        if callbacks:
            pair = batch.target, batch.weight
            self.net.call_back(method, callbacks, batch=pair, **kwargs)

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
