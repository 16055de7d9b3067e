"""The skorch net: a module with its history and its callbacks."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from skorch.callbacks import Callback, LRScheduler
from skorch.dataset import Dataset
from skorch.history import History
from torch import Tensor, nn

from skae._casting import DoubleCopy
from skae._compat import SkorchNet
from skae._layers import FrozenModule, random_modules
from skae._memory import FittingBlocks
from skae._module import Autoencoder, Scaler
from skae._processor import settings_restored
from skae._row_scores import FUNCTIONS
from skae._rows import BLOCK_ENTRIES, Rows
from skae.engine.batches import Batches, RowsDataset
from skae.engine.judge import Judgement
from skae.engine.objective import Objective
from skae.engine.plan import Plan

# Attributes that only training needs, and the values that replace them.
_TRAINING_ONLY: dict[str, Any] = {
    "module": None,
    "criterion": None,
    "optimizer_": None,
    "plan": None,
    "double_": None,
    "exact_scaler_": None,
    "callbacks": [],
}

# Prefix of the names of callbacks that are not the user's.
INTERNAL = "skae-"


class StopTraining(Exception):  # noqa: N818 (no error)
    """A skorch callback has requested the end of the training."""


class AutoencoderNet(SkorchNet):
    """Adapts an autoencoder to skorch: callbacks, history, predictions.

    :class:`skae.engine.trainer.Trainer` replaces skorch's training loop and calls
    callbacks at the same points. Callbacks receive a batch as the tuple of its scaled
    rows and their weights. They have to copy tensors that they keep, since the memory
    is reused.

    Parameters
    ----------
    module : Autoencoder
        Trained in place.
    objective : Objective
        Objective that training minimises.
    plan : Plan
        Settings of the training.
    callbacks : list
        skorch callbacks.
    device : str
        Device for training.
    history : sequence of dict, default=()
        Losses of the epochs in which the module was trained before.
    best_epoch : int, default=0
        Number of the epoch whose weights the module has, 0 for the initial weights.
    verbose : int, default=0
        Whether callbacks print; the net itself never does.

    Attributes
    ----------
    callbacks_ : list of tuple of str and Callback
        Names and callbacks; after training, without those of skae.
    best_epoch_ : int
        Number of the epoch, in `history`, whose weights the module has.
    judgement_ : Judgement or None
        Comparison of the initial weights with the best epoch, over the held-out rows of
        the last training; None if no rows were held out.
    double_ : DoubleCopy or None
        Float64 copy of the module, created by the first prediction that needs it.
    exact_scaler_ : Scaler or None
        The module's scaler in float64, on a device that has this type; None after
        training.
    """

    def __init__(
        self,
        module: Autoencoder,
        *,
        objective: Objective,
        plan: Plan,
        callbacks: list[Any],
        device: str,
        history: Sequence[dict[str, Any]] = (),
        best_epoch: int = 0,
        verbose: int = 0,
    ):
        super().__init__(
            module,
            criterion=objective,
            optimizer=torch.optim.AdamW,
            optimizer__weight_decay=plan.weight_decay,
            optimizer__betas=(0.9, plan.beta2),
            optimizer__fused=True,
            optimizer__capturable=torch.device(device).type == "cuda",
            lr=plan.learning_rate,
            max_epochs=plan.max_epochs,
            batch_size=plan.batch_size,
            train_split=None,
            use_caching=False,  # batches come without predictions
            callbacks=callbacks,
            verbose=verbose,
            device=device,
        )
        self.plan = plan
        self.history_ = History(history)
        self.best_epoch_ = best_epoch
        self.judgement_: Judgement | None = None
        self.double_: DoubleCopy | None = None
        self.exact_scaler_: Scaler | None = None

    @classmethod
    def restored(
        cls,
        module: Autoencoder,
        history: Sequence[dict[str, Any]],
        best_epoch: int,
        settings: dict[str, Any],
    ) -> AutoencoderNet:
        """Create a net for predictions only, as after `trim_for_prediction`.

        Parameters
        ----------
        module : Autoencoder
        history : sequence of dict
            The losses of each epoch.
        best_epoch : int
            Number of the epoch whose weights the module has.
        settings : dict
            ``state["settings"]`` of another net.

        Returns
        -------
        net : AutoencoderNet
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
            callbacks=[],
            device="cpu",
            history=history,
            best_epoch=best_epoch,
        )
        net.__dict__.update(
            module_=module.eval(), criterion_=Objective(), initialized_=True
        )
        net.trim_for_prediction()
        return net

    # Methods of skorch's NeuralNet that are overridden

    def get_default_callbacks(self) -> list[Any]:
        """No default callbacks: the trainer records the losses."""
        return []

    def initialize_module(self) -> AutoencoderNet:
        """Use the module itself; skorch would create a new one."""
        self.exact_scaler_ = self.module.scaler
        if lacks_float64(self.device):
            self.exact_scaler_ = copy.deepcopy(self.module.scaler)
            self.module.float()
        self.module_ = self.module
        return self

    def initialize_optimizer(self) -> AutoencoderNet:
        """Create the optimizer, in which a schedule of an earlier training goes on."""
        super().initialize_optimizer()
        for group in self.optimizer_.param_groups:
            # PyTorch's schedulers need it if they do not begin with the first epoch.
            group["initial_lr"] = group["lr"]
            if self.has_own_schedule and self.history:
                group["lr"] = self.history[-1].get("event_lr", group["lr"])
        return self

    def initialize_history(self) -> AutoencoderNet:
        """Keep the history of earlier trainings."""
        return self

    def get_dataset(self, X: Any, y: None = None) -> RowsDataset:
        """Return a dataset of an array, a sparse matrix or another dataset."""
        if isinstance(X, RowsDataset):
            return X
        return RowsDataset(Rows(X.X if isinstance(X, Dataset) else X))

    def get_iterator(self, dataset: RowsDataset, training: bool = False) -> Batches:
        """Iterate over blocks of rows."""
        return Batches(dataset.rows, self.block_size)

    def forward_iter(
        self, X: Any, training: bool = False, device: str = "cpu"
    ) -> Iterator[Any]:
        """Predict blocks of rows, those of a fold by the network of this fold."""
        dataset = self.get_dataset(X)
        if not dataset.folds:
            yield from super().forward_iter(dataset, training, device)
            return
        for module, rows in dataset.folds:
            with self.using(module, self.criterion_):
                yield from super().forward_iter(RowsDataset(rows), training, device)

    def evaluation_step(self, batch: Any, training: bool = False) -> Any:
        """Predict a block of rows, in smaller ones where memory is exhausted."""
        X, weight = batch
        module, evaluate = self.module_, super().evaluation_step
        fitting = FittingBlocks(module, module.scaler.mean.device)
        parts = fitting.evaluate(
            lambda where: evaluate((X[where], weight[where]), training), len(X)
        )
        values = [value for _, value in parts]
        return values[0] if len(values) == 1 else torch.cat(values)

    def score(self, X: Any, y: None = None) -> float:
        """Return the explained variance of rows, which skorch's scoring callbacks use.

        Missing entries are left out, and the mean is that of `X`.
        """
        dataset = self.get_dataset(X)
        X = dataset.y
        observed = ~np.isnan(X)
        residuals = np.where(observed, X - self.predict(dataset), 0.0)
        centred = np.where(observed, X - np.nanmean(X, axis=0), 0.0)
        return float(1 - np.square(residuals).sum() / np.square(centred).sum())

    def call_back(
        self, method_name: str, callbacks: Sequence[Callback], **kwargs: Any
    ) -> None:
        """Call a method of the given callbacks.

        The settings of PyTorch that a callback changes are restored after each call,
        see :func:`~skae._processor.settings_restored`.

        Raises
        ------
        StopTraining
            If a callback raises KeyboardInterrupt, by which skorch's callbacks end a
            training.
        """
        for callback in callbacks:
            try:
                with settings_restored():
                    getattr(callback, method_name)(self, **kwargs)
            except KeyboardInterrupt as error:
                raise StopTraining from error

    def callbacks_with(self, method_name: str) -> list[Callback]:
        """Return the callbacks that override a method of `Callback`."""
        return [
            callback
            for _, callback in self.callbacks_
            if getattr(getattr(callback, method_name), "__func__", None)
            is not getattr(Callback, method_name)
        ]

    @property
    def has_own_schedule(self) -> bool:
        """Whether a callback sets the learning rate."""
        return any(isinstance(callback, LRScheduler) for _, callback in self.callbacks_)

    @property
    def block_size(self) -> int:
        """Number of rows that are evaluated at once, outside of training steps."""
        return max(self.batch_size, BLOCK_ENTRIES // self.module_.values_per_row)

    def set_training_mode(self, training: bool = True) -> None:
        """Set the mode of module and objective, unless both have it already."""
        if {self.module_.training, self.criterion_.training} != {training}:
            super().set_training_mode(training)

    @contextmanager
    def using(self, module: nn.Module, objective: nn.Module) -> Iterator[None]:
        """Context in which the net has another module and objective."""
        own = {"module_": self.module_, "criterion_": self.criterion_}
        self.__dict__.update(module_=module, criterion_=objective)
        try:
            yield
        finally:
            self.__dict__.update(own)

    # Predictions and storage

    def module_in(self, dtype: np.dtype) -> Autoencoder:
        """Return the module for float32 rows, or its float64 copy for float64 rows."""
        if dtype == np.float32:
            return self.module_
        if self.double_ is None:
            self.double_ = DoubleCopy(self.module_)
        return self.double_.get()

    def module_for(self, method: str, dtype: np.dtype) -> Autoencoder:
        """Return the module in the precision in which it evaluates a method for rows.

        Parameters
        ----------
        method : str
            Name of a method of the module, or of a function of `_row_scores`.
        dtype : dtype
            Floating-point type of the rows.
        """
        is_exact = method in FUNCTIONS or self.module_.needs_float64(method)
        return self.module_in(np.dtype(np.float64) if is_exact else dtype)

    def snapshot(self) -> AutoencoderNet:
        """Return a net for predictions with a copy of the present weights."""
        parts = random_modules(self.module_)
        # A generator cannot be copied, and predictions use no random numbers.
        generators = [part.generator for part in parts if part.generator is not None]
        module = copy.deepcopy(self.module_, {id(g): None for g in generators})
        if self.exact_scaler_ is not None and lacks_float64(self.device):
            module.scaler = copy.deepcopy(self.exact_scaler_)
            module.cpu()
        history = [without_batches(row) for row in self.history if "train_loss" in row]
        best = self.best_epoch_ if self.is_trimmed else len(history)
        net = AutoencoderNet.restored(module, history, best, self.state["settings"])
        net.device = self.device
        return net

    def with_module(self, module: Autoencoder) -> AutoencoderNet:
        """Return a net with another module and all other attributes of this one."""
        net = AutoencoderNet.__new__(AutoencoderNet)
        # Not by assignment, which `NeuralNet.__setattr__` intercepts.
        net.__dict__.update(vars(self), module_=module, double_=None)
        return net

    @property
    def state(self) -> dict[str, Any]:
        """Arguments of `restored` that recreate this net for predictions."""
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

    def trim_for_prediction(self) -> None:
        """Delete all that only training needs, such as the optimizer."""
        if self.exact_scaler_ is not None and lacks_float64(self.device):
            # Predictions need float64: on the CPU, with the exact scaler.
            self.module_.scaler = self.exact_scaler_
            self.module_.cpu()
        _detach_attributes(self.module_)
        for name, value in _TRAINING_ONLY.items():
            self.__dict__[name] = copy.copy(value)
        self.__dict__["callbacks_"] = [
            (name, callback)
            for name, callback in getattr(self, "callbacks_", [])
            if not name.startswith(INTERNAL)
        ]
        self.mark_as_trimmed()

    def __getstate__(self) -> dict[str, Any]:
        # Weights as arrays can be loaded without their device, memory-mapped by joblib,
        # and written by skops. Callbacks, which may hold locks or files, stay behind.
        return {**self.state, "module": FrozenModule(self.module_)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        module = state["module"].thaw()
        self.__dict__.update(vars(self.restored(**{**state, "module": module})))


def _detach_attributes(module: nn.Module) -> None:
    """Detach tensors that a foreign module has stored in its forward pass.

    A tensor with a graph behind it can be neither copied nor pickled.
    """
    for part in module.modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                vars(part)[name] = value.detach()


def lacks_float64(device: str | torch.device) -> bool:
    """Whether a device has no float64."""
    return torch.device(device).type == "mps"


def without_batches(epoch: dict[str, Any]) -> dict[str, Any]:
    """Return a row of skorch's history without the records of its batches."""
    if "batches" not in epoch:
        return epoch
    return {name: value for name, value in epoch.items() if name != "batches"}
