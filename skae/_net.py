"""The skorch net: objective, epochs, early stopping, interrupts."""

from __future__ import annotations

import copy
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, LRScheduler
from skorch.history import History
from torch import Tensor, nn

from skae._batches import BLOCK_ENTRIES, Batch, Batches, Feed, Rows
from skae._defaults import DIVISOR, MAX_DIVISIONS
from skae._layers import FrozenModule, drawing_parts
from skae._module import Autoencoder, Propagation
from skae._step import Step

# The methods of a callback that are called at every batch, if it has its own.
PER_BATCH = ("on_batch_begin", "on_batch_end", "on_grad_computed")

# Records of batches that the history keeps of an epoch.
MAX_RECORDS = 1000

# Units of rounding by which a row's loss has to change to have changed.
ROUNDING = 10

# Entries of the widest layer up to which a step is recorded.
MAX_RECORDED = 2**22

# Entries of a table that stays on a GPU: 4 GB in float32.
MAX_RESIDENT = 2**30


class Split(NamedTuple):
    """Rows to train on, and rows held out to judge by (or None)."""

    train: Rows
    held_out: Rows | None


class Judgement(NamedTuple):
    """What the held-out rows say of a training.

    Attributes
    ----------
    gains, weight : ndarray of shape (n_rows,)
        By how much each row's objective fell from the start to the best epoch, and
        the rows' weights.
    n_epochs : float
        How many epochs led there.
    """

    gains: np.ndarray
    weight: np.ndarray
    n_epochs: float

    @property
    def is_significant(self) -> bool:
        """Whether the mean gain is larger than its standard error."""
        return exceeds_standard_error(self.gains, self.weight)


class Objective(nn.Module):
    r"""What training minimises, per row.

    .. math:: L(x, \hat x) + \beta \, T + \lambda \, \Omega(z)

    with the loss L of the reconstruction from a corrupted input, the term T of
    the bottleneck and the penalty :math:`\Omega` on the code.

    Parameters
    ----------
    corruption : torch.nn.Module, default=None
    bottleneck_weight : float, default=1.0
    penalty : torch.nn.Module, default=None
    penalty_weight : float, default=0.0
    """

    def __init__(
        self,
        corruption: nn.Module | None = None,
        bottleneck_weight: float = 1.0,
        penalty: nn.Module | None = None,
        penalty_weight: float = 0.0,
    ):
        super().__init__()
        self.corruption = corruption
        self.bottleneck_weight = bottleneck_weight
        self.penalty = penalty
        self.penalty_weight = penalty_weight

    def forward(self, autoencoder: Autoencoder, batch: Batch, done: Tensor) -> Tensor:
        """Each row's objective, of shape (n_rows,) or (n_members, n_rows).

        Parameters
        ----------
        autoencoder : Autoencoder
        batch : Batch
        done : Tensor of shape ()
            Share of the training that is over, in [0, 1].
        """
        propagation = autoencoder.propagate_in_training(batch, done, self.corruption)
        total = autoencoder.mean_loss(propagation)
        if propagation.term is not None:
            term = autoencoder.per_feature(propagation.term, propagation)
            total = total + self.bottleneck_weight * term
        if self.penalty is not None:
            penalty = self._penalty(autoencoder, propagation, batch.weight)
            total = total + self.penalty_weight * penalty
        return total

    def _penalty(
        self, autoencoder: Autoencoder, propagation: Propagation, weight: Tensor
    ) -> Tensor:
        assert self.penalty is not None
        encoder: Any = autoencoder.encoder
        seen = propagation.encoder_input
        Z = propagation.H[..., : autoencoder.n_components]
        if autoencoder.visible is None:
            return self.penalty(encoder, seen, Z, weight)
        members = zip(encoder.members, seen, Z, strict=True)
        return torch.stack([self.penalty(*member, weight) for member in members])


class Plan(NamedTuple):
    """How to train.

    Attributes
    ----------
    max_epochs, batch_size : int
    learning_rate, weight_decay : float
        Of AdamW.
    schedule : callable or None
        Maps the share of steps done, in [0, 1), to a factor of the learning
        rate. It gives way to an `LRScheduler` among the callbacks.
    early_stopping : bool
        Whether to stop by, and return to, the best epoch of the held-out rows.
    keep_start : bool
        Whether to leave the starting weights only for a significant gain.
    n_iter_no_change : int
        Epochs without an improvement after which training goes back to the
        best epoch and on from there with a smaller learning rate, or stops.
    tol : float
        Least improvement that counts, relative to the best loss.
    trim : float
        Share of each batch's weight, its rows with the highest objective, that is
        left out, in [0, 1).
    compile : "auto" or bool
        How to take a step, see :class:`skae._step.Step`.
    precision : str
        ``"bfloat16"`` if matrices are to be multiplied in it.
    """

    max_epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    schedule: Callable[[float], float] | None
    early_stopping: bool
    keep_start: bool
    n_iter_no_change: int
    tol: float
    trim: float = 0.0
    compile: str | bool = "auto"
    precision: str = "float32"


class DivergenceError(ValueError):
    """The loss became infinite or NaN while training."""


class AutoencoderNet(NeuralNet):
    """A skorch net whose rows are their own targets.

    It differs from a plain net in what an autoencoder needs: whole-batch slices
    with a generator of their own, weighted rows, the judgement of every epoch
    before the callbacks run, the best epoch's weights at the end, and a
    `KeyboardInterrupt` of the user's that is told apart from one by which a
    skorch callback stops the training. Callbacks are given a batch as its rows in
    the scaled space and their weights; what they keep of it they have to copy, since
    its memory is used again.

    Parameters
    ----------
    module : Autoencoder
        Trained in place.
    objective : Objective
    plan : Plan
    seed : int
        Seed of shuffling, and of all noise in the network.
    callbacks : list
        skorch callbacks.
    device : str

    Attributes
    ----------
    best_epoch_ : int
        Epoch whose weights the module has, 0 for the start.
    judgement_ : Judgement or None
        Of the last training; None if nothing was held out.
    """

    def __init__(
        self,
        module: Autoencoder,
        *,
        objective: Objective,
        plan: Plan,
        seed: int,
        callbacks: list,
        device: str,
    ):
        super().__init__(
            module,
            criterion=objective,
            optimizer=torch.optim.AdamW,
            optimizer__weight_decay=plan.weight_decay,
            optimizer__fused=True,
            optimizer__capturable=torch.device(device).type == "cuda",
            lr=plan.learning_rate,
            max_epochs=plan.max_epochs,
            batch_size=plan.batch_size,
            train_split=None,
            use_caching=False,  # batches come without predictions
            callbacks=callbacks,
            verbose=0,
            device=device,
        )
        self.plan = plan
        self.seed = seed
        self.best_epoch_ = 0
        self.judgement_: Judgement | None = None
        self._as_float64: tuple[list, Autoencoder] | None = None

    @classmethod
    def restored(
        cls,
        module: Autoencoder,
        history: list[dict],
        best_epoch: int,
        settings: dict[str, Any],
    ) -> AutoencoderNet:
        """A net that was trained elsewhere, as `trim_for_prediction` leaves it.

        Parameters
        ----------
        module : Autoencoder
        history : list of dict
            The losses of each epoch.
        best_epoch : int
            Epoch whose weights the module has.
        settings : dict
            Those of `Plan` that a skorch net shows.
        """
        plan = Plan(
            **settings,
            schedule=None,
            early_stopping=False,
            keep_start=False,
            n_iter_no_change=1,
            tol=0.0,
        )
        net = cls(
            module,
            objective=Objective(),
            plan=plan,
            seed=0,
            callbacks=[],
            device="cpu",
        )
        net.__dict__.update(
            history_=History(history),
            module_=module.eval(),
            criterion_=Objective(),
            initialized_=True,
            best_epoch_=best_epoch,
        )
        net.trim_for_prediction()
        return net

    @property
    def essentials(self) -> dict[str, Any]:
        """What outlives the training, as `restored` takes it."""
        return {
            "module": self.module_,
            "history": list(self.history),
            "best_epoch": self.best_epoch_,
            "settings": {
                "max_epochs": self.max_epochs,
                "batch_size": self.batch_size,
                "learning_rate": self.lr,
                "weight_decay": self.optimizer__weight_decay,
            },
        }

    # What the net is made of

    def get_default_callbacks(self) -> list:
        """None: the net keeps its own losses."""
        return []

    def initialize_module(self) -> AutoencoderNet:
        """Take the module as it is; skorch would build it anew."""
        if self._lacks_float64:
            self._exact_scaler = [copy.deepcopy(self.module.scaler)]
            self.module.float()
        self.module_ = self.module
        return self

    def initialize(self) -> AutoencoderNet:
        """Initialize module, optimizer, callbacks and random streams."""
        super().initialize()
        shuffling, noise = np.random.SeedSequence(self.seed).spawn(2)
        self.rng_ = np.random.default_rng(shuffling)
        self.generator_ = torch.Generator(self.device)
        self.generator_.manual_seed(int(noise.generate_state(1)[0]))
        self.n_steps_ = 0
        self._watchers = {name: self._overriding(name) for name in PER_BATCH}
        self._has_own_schedule = any(
            isinstance(callback, LRScheduler) for _, callback in self.callbacks_
        )
        self.step_ = Step(
            self._batch_loss,
            [self.module_, self.module_.loss, self.criterion_, self.optimizer_],
            self.optimizer_,
            compile=self._compile,
            on_gradients=(
                self._notify_of_gradients
                if self._watchers["on_grad_computed"]
                else None
            ),
            generator=self.generator_,
        )
        return self

    def _overriding(self, method: str) -> list[Callback]:
        """The callbacks that do something in this method."""
        return [
            callback
            for _, callback in self.callbacks_
            if getattr(getattr(callback, method), "__func__", None)
            is not getattr(Callback, method)
        ]

    def get_dataset(self, X: Any, y: None = None) -> Any:
        """Rows as they are, anything else as skorch's dataset."""
        return X if isinstance(X, Rows) else super().get_dataset(X, y)

    def get_iterator(self, dataset: Any, training: bool = False) -> Batches:
        """Blocks of `Rows`, or of any skorch dataset of an array, in their units."""
        rows = dataset if isinstance(dataset, Rows) else Rows(dataset.X)
        return Batches(rows, self._block_size)

    def _feed(self, rows: Rows, training: bool) -> Feed:
        """Rows in the scaled space, shuffled to train on or in order to judge by."""
        is_cuda = torch.device(self.device).type == "cuda"
        return Feed(
            rows,
            self.batch_size if training else self._block_size,
            self._prepare,
            self.rng_ if training else None,
            **({"max_resident": MAX_RESIDENT} if is_cuda else {}),
        )

    @property
    def _block_size(self) -> int:
        return max(self.batch_size, BLOCK_ENTRIES // self.module_.values_per_row)

    def _prepare(self, block: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Scaled rows, and which entries were observed, on the device."""
        scaler = self._exact_scaler[0] if self._lacks_float64 else self.module_.scaler
        X = torch.from_numpy(block).to(scaler.mean.device)
        target, observed = scaler(X, overwrite=True)
        if observed is not None:
            observed = observed.to(self.device)
        return target.to(self.device), observed

    @property
    def _lacks_float64(self) -> bool:
        return torch.device(self.device).type == "mps"

    @property
    def _compile(self) -> str | bool:
        """How to take a step: a record must stay small, since it keeps all results."""
        device = torch.device(self.device).type
        n_entries = self.batch_size * self.module_.widest_layer
        if device == "mps" or (device == "cpu" and n_entries > MAX_RECORDED):
            return self.plan.compile is True
        return self.plan.compile

    @property
    def step_work(self) -> int:
        """Multiplications in one training step, roughly."""
        return self.batch_size * self.module.work

    # Epochs

    def train(
        self,
        split: Split,
        interruption: Interruption,
        observer: Callback | None = None,
    ) -> list[dict]:
        """Train for `max_epochs` epochs, or until something ends it earlier.

        Parameters
        ----------
        split : Split
        interruption : Interruption
            Tells the user's Ctrl-C from a callback's wish to stop.
        observer : skorch.callbacks.Callback, default=None
            One more callback, called before the others, in this training only.

        Returns
        -------
        history : list of dict
            The new rows of skorch's history, one for each finished epoch.

        Raises
        ------
        DivergenceError
            If a loss becomes infinite or NaN.
        """
        if not self.initialized_:
            self.initialize()
        self.interruption = interruption
        self._first_epoch = len(self.history)
        self._in_callback = False
        with (
            _noise_from(self.generator_, self.module_, self.criterion_),
            self._observed_by(observer),
        ):
            self._start_judging(split.held_out)
            try:
                with interruption.allowed():
                    self.notify("on_train_begin", X=split, y=None)
                    self.fit_loop(split)
            except KeyboardInterrupt:
                # skorch's callbacks, too, stop the training by raising it.
                interruption.seen |= not self._in_callback
            self._choose_weights()
            self.notify("on_train_end", X=split, y=None)
        self._set_training(False)
        self._as_float64 = None  # a recorded step leaves the tensors' versions alone
        if self._lacks_float64:
            # Predictions need it: back to the CPU, with the exact scale.
            self.module_.cpu().scaler = self._exact_scaler.pop()
            self.trim_for_prediction()
        return self.epochs_of_training

    @contextmanager
    def _observed_by(self, observer: Callback | None) -> Iterator[None]:
        """While it lasts, there is one more callback, before the others."""
        if observer is None:
            yield
            return
        self.callbacks_.insert(0, ("observer", observer))
        try:
            yield
        finally:
            self.callbacks_.pop(0)

    def fit_loop(
        self, X: Split, y: None = None, epochs: int | None = None, **fit_params: Any
    ) -> AutoencoderNet:
        """Run epochs; judge each before the callbacks see it."""
        epochs = self.max_epochs if epochs is None else epochs
        train = self._feed(X.train, training=True)
        datasets = {"dataset_train": X.train, "dataset_valid": X.held_out}
        self._total_steps = epochs * len(train)
        for _ in range(epochs):
            self.notify("on_epoch_begin", **datasets)
            self._run_training_epoch(train)
            self._run_validation_epoch()
            with self.interruption.deferred():
                self._judge_epoch()
            self.notify("on_epoch_end", **datasets)
            if not self._is_worth_going_on():
                break
        self._finished = True
        return self

    def notify(self, method_name: str, **kwargs: Any) -> None:
        """Call the net's own hook, then the callbacks', and know which is which."""
        getattr(self, method_name)(self, **kwargs)
        self._in_callback = True
        for _, callback in self.callbacks_:
            getattr(callback, method_name)(self, **kwargs)
        self._in_callback = False

    def _run_training_epoch(self, feed: Feed) -> None:
        """One step for each batch; the losses are fetched at the end."""
        self._set_training(True)
        self.step_.refresh()
        losses: list[Tensor] = []
        sizes: list[int] = []
        fetched: list[Tensor] = []
        for batch in feed:
            self._notify_of_batch("on_batch_begin", batch, training=True)
            if self._watchers["on_batch_begin"] or self._watchers["on_batch_end"]:
                self.step_.refresh()
            losses.append(self._take_step(batch))
            sizes.append(batch.n_rows)
            if self._watchers["on_batch_end"]:
                self._record_batches("train", losses, sizes)
                self._notify_of_batch(
                    "on_batch_end", batch, training=True, loss=losses.pop(), y_pred=None
                )
                sizes.clear()
            elif len(losses) == MAX_RECORDS:  # they would take more than the rows
                fetched.append(torch.stack(losses))
                losses.clear()
        self._record_batches("train", [*fetched, *losses], sizes)

    @torch.no_grad()
    def _run_validation_epoch(self) -> None:
        """The objective of the held-out rows, each kept for the judgement."""
        if self._held_out is None:
            return
        self._set_training(False)
        done = torch.ones((), device=self.device)
        with _same_noise(self.generator_):
            for batch in self._held_out:
                self._notify_of_batch("on_batch_begin", batch, training=False)
                row_losses = self.criterion_(self.module_, batch, done)
                if row_losses.ndim == 2:  # of several members
                    row_losses = row_losses.mean(dim=0)
                self._held_out_losses.append(row_losses.cpu().numpy())
                loss = (row_losses * batch.weight).sum() / batch.weight.sum()
                if self.history:
                    self._record_batches("valid", [loss], [batch.n_rows])
                self._notify_of_batch(
                    "on_batch_end", batch, training=False, loss=loss, y_pred=row_losses
                )

    def _record_batches(self, prefix: str, losses: list, sizes: list[int]) -> None:
        """Write batches into the history, so many to a record that it stays small."""
        if not losses:
            return
        records = self.history[-1]["batches"]
        values = torch.hstack(losses).double().cpu().numpy()
        n_records = min(len(values), MAX_RECORDS)
        starts = np.arange(n_records) * len(values) // n_records
        size = np.add.reduceat(sizes, starts)
        loss = np.add.reduceat(values * sizes, starts) / size
        records.extend(
            {f"{prefix}_loss": a, f"{prefix}_batch_size": b}
            for a, b in zip(loss.tolist(), size.tolist(), strict=True)
        )

    def _notify_of_batch(self, method: str, batch: Batch, **kwargs: Any) -> None:
        """Call the callbacks that have something to do at every batch."""
        if not self._watchers[method]:
            return
        self._in_callback = True
        for callback in self._watchers[method]:
            pair = batch.target, batch.weight
            getattr(callback, method)(self, batch=pair, **kwargs)
        self._in_callback = False

    def _notify_of_gradients(self) -> None:
        self._in_callback = True
        for callback in self._watchers["on_grad_computed"]:
            callback.on_grad_computed(
                self, named_parameters=self.get_all_learnable_params(), training=True
            )
        self._in_callback = False

    def _take_step(self, batch: Batch) -> Tensor:
        """One optimization step at the scheduled learning rate."""
        # Single epochs, of `partial_fit`, are no share of anything.
        done = self.n_steps_ / self._total_steps if self.plan.schedule else 1.0
        if self.plan.schedule is not None and not self._has_own_schedule:
            factor = self.plan.schedule(done) / DIVISOR**self._n_divisions
            for group in self.optimizer_.param_groups:
                group["lr"] = self.lr * factor
        self.n_steps_ += 1
        return self.step_(batch, done)

    def _batch_loss(self, batch: Batch, done: Tensor) -> Tensor:
        """The objective's weighted mean over a batch, and its members, of shape ()."""
        is_brief = self.plan.precision == "bfloat16"
        with torch.autocast(batch.target.device.type, torch.bfloat16, is_brief):
            row_losses = self.criterion_(self.module_, batch, done)
        kept = trimmed_weight(row_losses.detach(), batch.weight, self.plan.trim)
        n_rows = (1 - self.plan.trim) * batch.n_rows
        return (row_losses * kept).sum(dim=-1).mean() / n_rows

    def _set_training(self, training: bool = True) -> None:
        # A walk through all parts, at each step, only where it changes anything.
        if {self.module_.training, self.criterion_.training} != {training}:
            super()._set_training(training)

    # The judgement of epochs

    def _start_judging(self, held_out: Rows | None) -> None:
        """Take the starting weights as the best so far."""
        self._finished = False
        self._epochs_without_gain = 0
        self._n_divisions = 0
        self._start_weights = self._best_weights = self._copy_weights()
        self._best_loss = math.inf
        self._held_out_losses: list[np.ndarray] = []
        self._held_out = None
        if held_out is not None:
            self._held_out = self._feed(held_out, training=False)
            self._run_validation_epoch()
            self._held_out_weight = held_out.weight
            self._start_losses = self._best_losses = self._take_held_out_losses()
            self._best_loss = self._held_out_mean(self._start_losses)
            _check_finite(self._best_loss, 0, "The validation loss", self.lr)

    def _is_worth_going_on(self) -> bool:
        """Whether to train on; if nothing improved, from the best epoch, slower."""
        if not self.plan.early_stopping:
            return True
        if self._epochs_without_gain < self.plan.n_iter_no_change:
            return True
        if self._n_divisions == MAX_DIVISIONS or self._has_own_schedule:
            return False
        self._n_divisions += 1
        self._epochs_without_gain = 0
        self.module_.load_state_dict(self._best_weights)
        return True

    def _judge_epoch(self) -> None:
        """Record the epoch's losses, and its weights if it is the best so far."""
        batches = [b for b in self.history[-1]["batches"] if "train_loss" in b]
        losses = [batch["train_loss"] for batch in batches]
        sizes = [batch["train_batch_size"] for batch in batches]
        loss = float(np.average(losses, weights=sizes))
        self.history.record("train_loss", loss)
        _check_finite(loss, len(self.history), "The training loss", self.lr)
        if self._held_out_losses:
            row_losses = self._take_held_out_losses()
            loss = self._held_out_mean(row_losses)
            self.history.record("valid_loss", loss)
            _check_finite(loss, len(self.history), "The validation loss", self.lr)
        self._epochs_without_gain += 1
        if loss < self._best_loss - self.plan.tol * abs(self._best_loss):
            self._epochs_without_gain = 0
        if loss < self._best_loss:
            self._best_loss = loss
            self._best_weights = self._copy_weights()
            self.best_epoch_ = len(self.history)
            if self.plan.early_stopping:
                self._best_losses = row_losses

    def _choose_weights(self) -> None:
        """End on the best epoch's weights, or the last one's without a judge.

        A start worth keeping, such as a PCA, is left only if the mean paired
        gain over the held-out rows exceeds its standard error.
        """
        if self.history and "train_loss" not in self.history[-1]:
            self.history.pop()  # an epoch that was not finished
        if self._finished and not self.plan.early_stopping:
            self.best_epoch_ = len(self.history)
            return
        weights = self._best_weights
        if self.plan.early_stopping:
            kept = self._kept(self._best_losses)
            gains = self._start_losses - self._best_losses
            # What the losses' own rounding would explain is no gain.
            rounding = ROUNDING * np.finfo(gains.dtype).eps * np.abs(self._start_losses)
            gains[np.abs(gains) <= rounding] = 0
            self.judgement_ = Judgement(
                gains[kept > 0],
                kept[kept > 0],
                max(self.best_epoch_ - self._first_epoch, 0),
            )
            if self.plan.keep_start and not self.judgement_.is_significant:
                weights, self.best_epoch_ = self._start_weights, self._first_epoch
        self.module_.load_state_dict(weights)

    def _take_held_out_losses(self) -> np.ndarray:
        losses = np.concatenate(self._held_out_losses)
        self._held_out_losses.clear()
        return losses

    def _held_out_mean(self, losses: np.ndarray) -> float:
        """Weighted mean of the held-out rows, trimmed as a batch is."""
        return float(np.average(losses, weights=self._kept(losses)))

    def _kept(self, losses: np.ndarray) -> np.ndarray:
        weight = torch.from_numpy(np.array(self._held_out_weight))
        return trimmed_weight(torch.from_numpy(losses), weight, self.plan.trim).numpy()

    def _copy_weights(self) -> dict[str, Tensor]:
        return {name: t.clone() for name, t in self.module_.state_dict().items()}

    # After training, or in its course

    @property
    def epochs_of_training(self) -> list[dict]:
        """The rows of the history for the finished epochs of the last training."""
        return [row for row in self.history[self._first_epoch :] if "train_loss" in row]

    def snapshot(self) -> AutoencoderNet:
        """A net to predict with, which has the present weights and keeps them."""
        own = self.generator_  # a part that draws refers to it, and is not to copy it
        module = copy.deepcopy(self.module_, {id(own): own})
        for part in drawing_parts(module):
            part.generator = None
        if self._lacks_float64 and self._exact_scaler:
            module.cpu().scaler = copy.deepcopy(self._exact_scaler[0])
        history = [dict(row) for row in self.history if "train_loss" in row]
        best = self.best_epoch_ if self.is_trimmed else len(history)
        settings = self.essentials["settings"]
        net = AutoencoderNet.restored(module, history, best, settings)
        net.device = self.device
        return net

    def module_in(self, dtype: np.dtype) -> Autoencoder:
        """The module with weights of this type, kept until it changes."""
        if dtype == np.float32:
            return self.module_
        tensors = [*self.module_.parameters(), *self.module_.buffers()]
        state = [(id(tensor), tensor._version) for tensor in tensors]
        if self._as_float64 is None or self._as_float64[0] != state:
            self._as_float64 = state, copy.deepcopy(self.module_).double()
        return self._as_float64[1]

    @property
    def is_trimmed(self) -> bool:
        """Whether all that training needs has been dropped."""
        return getattr(self, "_trimmed_for_prediction", False)

    def trim_for_prediction(self) -> None:
        """Drop all that only training needs: optimizer, callbacks, generators."""
        for name in list(vars(self)):
            if name in _TRAINING_ONLY or name.startswith("_held_out"):
                self.__dict__[name] = None
        self.__dict__.update(callbacks=[], callbacks_=[], _trimmed_for_prediction=True)

    def __getstate__(self) -> dict[str, Any]:
        # The weights go as arrays, which load without the device they were on, are
        # mapped by joblib, and are all that `skops` can write.
        return {**self.essentials, "module": FrozenModule(self.module_)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        module = state["module"].thaw()
        self.__dict__.update(vars(self.restored(**{**state, "module": module})))


_TRAINING_ONLY = {
    "interruption",
    "module",
    "criterion",
    "optimizer_",
    "rng_",
    "generator_",
    "step_",
    "plan",
    "_start_weights",
    "_best_weights",
    "_start_losses",
    "_best_losses",
}


def trimmed_weight(losses: Tensor, weight: Tensor, trim: float) -> Tensor:
    """Weights of rows when those with the highest losses are left out.

    A row on the border keeps a part of its weight, so that weights are
    repetitions here, too.

    Parameters
    ----------
    losses : Tensor of shape (..., n_rows)
    weight : Tensor of shape (n_rows,)
        Non-negative.
    trim : float
        Share of the weight to be left out, in [0, 1).

    Returns
    -------
    kept : Tensor of the shape of `losses`, or `weight` itself without trimming
        At most `weight`; along the rows it sums to ``(1 - trim) * weight.sum()``.
    """
    if trim == 0:
        return weight
    order = losses.argsort(dim=-1)
    ascending = weight.expand_as(losses).gather(-1, order)
    reached = ascending.cumsum(dim=-1)
    room = (1 - trim) * weight.sum() - (reached - ascending)
    kept = torch.minimum(room.clamp(min=0), ascending)
    return torch.zeros_like(kept).scatter(-1, order, kept)


def exceeds_standard_error(gains: np.ndarray, weight: np.ndarray) -> bool:
    """Whether the weighted mean of `gains` is larger than its standard error.

    .. math::

        \\bar g = \\frac{\\sum w_i g_i}{\\sum w_i}, \\quad
        s^2 = \\frac{\\sum w_i (g_i - \\bar g)^2}{\\sum w_i} \\, \\frac{1}{m - 1},
        \\quad m = \\frac{(\\sum w_i)^2}{\\sum w_i^2}

    with m Kish's effective number of rows [1]_. One row alone proves nothing.

    Parameters
    ----------
    gains, weight : ndarray of shape (n_rows,)

    References
    ----------
    .. [1] Kish, L. (1965). Survey Sampling. Wiley.
    """
    effective = weight.sum() ** 2 / (weight**2).sum()
    if effective <= 1 + 1e-9:
        return False
    mean = np.average(gains, weights=weight)
    variance = np.average((gains - mean) ** 2, weights=weight) / (effective - 1)
    return bool(mean > math.sqrt(variance))


def _check_finite(loss: float, epoch: int, what: str, learning_rate: float) -> None:
    if not math.isfinite(loss):
        raise DivergenceError(
            f"{what} became {loss} in epoch {epoch}: the training diverged. The "
            f"likely cause is a learning_rate that is too high ({learning_rate:g}), or "
            "features of very different scale (see the parameter scale)."
        )


@contextmanager
def _noise_from(generator: torch.Generator, *modules: nn.Module) -> Iterator[None]:
    """While it lasts, every part of `modules` that draws, draws from `generator`."""
    parts = drawing_parts(*modules)
    for part in parts:
        part.generator = generator
    try:
        yield
    finally:
        for part in parts:
            part.generator = None


@contextmanager
def _same_noise(generator: torch.Generator) -> Iterator[None]:
    """While it lasts, `generator` draws what it drew the last time."""
    state = generator.get_state()
    generator.manual_seed(0)
    try:
        yield
    finally:
        generator.set_state(state)


class Interruption:
    """While it lasts, Ctrl-C is noted, and raised only where that is allowed.

    So the training ends at once, but what follows it is finished. It acts in
    the main thread and over Python's own handler only.

    Attributes
    ----------
    seen : bool
        Whether the user wanted to interrupt.
    """

    def __init__(self) -> None:
        self.seen = False
        self._is_allowed = False

    def __enter__(self) -> Interruption:
        self._active = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self._active:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._active:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """While it lasts, Ctrl-C raises `KeyboardInterrupt`, an earlier one too."""
        self._is_allowed = True
        try:
            if self.seen:
                raise KeyboardInterrupt
            yield
        finally:
            self._is_allowed = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside `allowed`: while it lasts, Ctrl-C waits for its end."""
        self._is_allowed = False
        yield
        self._is_allowed = True
        if self.seen:
            raise KeyboardInterrupt

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.seen = True
        if self._is_allowed:
            signal.default_int_handler(signum, frame)
