"""Early stopping: which epoch's weights are kept, and when training stops."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from skae.engine.objective import trimmed_share, trimmed_weight
from skae.engine.plan import Plan

# After `n_iter_no_change` epochs without an improvement the learning rate is divided by
# DIVISOR, at most MAX_DIVISIONS times.
MAX_DIVISIONS = 2
DIVISOR = 5

# Relative change of a row's loss that is ignored, in units of machine epsilon.
ROUNDING = 10


# Function without arguments that returns losses and weights of rows.
Losses: TypeAlias = Callable[[], tuple[np.ndarray, np.ndarray]]


class DivergenceError(ValueError):
    """The loss became infinite or NaN during training."""


class Judgement(NamedTuple):
    """How a training changed the objective of the held-out rows.

    Attributes
    ----------
    gains : ndarray of shape (n_rows,)
        Decrease of each row's objective from the initial weights to the best epoch.
    weight : ndarray of shape (n_rows,)
        Positive weights of the rows.
    n_epochs : int
        Number of the best epoch, 0 for the initial weights.
    """

    gains: np.ndarray
    weight: np.ndarray
    n_epochs: int

    @property
    def mean_gain(self) -> float:
        """Weighted mean of the gains."""
        return float(np.average(self.gains, weights=self.weight))

    @property
    def is_significant(self) -> bool:
        """Whether the mean gain is larger than its standard error."""
        return exceeds_standard_error(self.gains, self.weight)


class Judge:
    """Compares the epochs of one training and keeps the weights of the best one.

    With held-out rows the best epoch is the one with the lowest objective on them,
    without them the one with the lowest training loss.

    Parameters
    ----------
    module : torch.nn.Module
        The module that is trained, with its initial weights.
    plan : Plan
        Settings of the training.
    weight : ndarray of shape (n_rows,), default=None
        Weights of the rows by which `restore_best` judges. `judge_start` replaces them.

    Attributes
    ----------
    best_epoch : int
        Number of the best epoch so far, from 1; 0 for the initial weights.
    n_divisions : int
        Number of times that the learning rate has been divided.
    """

    def __init__(self, module: nn.Module, plan: Plan, weight: np.ndarray | None = None):
        self.best_epoch = 0
        self.n_divisions = 0
        self._module = module
        self._plan = plan
        self._start_weights = self._best_weights = self._copy_weights()
        self._best_loss = math.inf
        self._epochs_without_gain = 0
        self._start_losses = self._best_losses = np.empty(0)
        self._weight = np.empty(0) if weight is None else weight

    def judge_start(self, losses: np.ndarray, weight: np.ndarray) -> None:
        """Record the objective of the held-out rows before the first epoch.

        Parameters
        ----------
        losses, weight : ndarray of shape (n_rows,)
            Objective and weight of each row.

        Raises
        ------
        DivergenceError
            If the mean objective is not finite.
        """
        self._weight = weight
        self._start_losses = self._best_losses = losses
        self._best_loss = self._mean(losses)
        self._check_finite("The validation loss", self._best_loss, 0)

    def judge_epoch(
        self,
        epoch: int,
        train_loss: float,
        losses: np.ndarray | None,
        *,
        counts: bool = True,
    ) -> float | None:
        """Compare an epoch with the best one so far, and keep its weights if better.

        Parameters
        ----------
        epoch : int
            Number of the epoch, from 1.
        train_loss : float
            Mean objective of the training rows during the epoch.
        losses : ndarray of shape (n_rows,) or None
            Objective of the held-out rows after the epoch, if there are any.
        counts : bool, default=True
            Whether an epoch without an improvement counts for `n_iter_no_change`.

        Returns
        -------
        valid_loss : float or None
            Weighted mean of `losses`.

        Raises
        ------
        DivergenceError
            If a loss is not finite.
        """
        self._check_finite("The training loss", train_loss, epoch)
        loss, valid_loss = train_loss, None
        if losses is not None:
            loss = valid_loss = self._mean(losses)
            self._check_finite("The validation loss", loss, epoch)
        self._epochs_without_gain += counts
        if loss < self._best_loss - self._plan.tol * abs(self._best_loss):
            self._epochs_without_gain = 0
        if loss < self._best_loss:
            self._best_loss = loss
            self._best_weights = self._copy_weights()
            self.best_epoch = epoch
            if losses is not None:
                self._best_losses = losses
        return valid_loss

    def state(self) -> dict[str, Any]:
        """Return what changes from epoch to epoch, see `load_state`."""
        return {
            "best_epoch": self.best_epoch,
            "n_divisions": self.n_divisions,
            "epochs_without_gain": self._epochs_without_gain,
            # Infinity, before the first loss, is no number of JSON.
            "best_loss": self._best_loss if math.isfinite(self._best_loss) else None,
            "best_losses": self._best_losses,
            "best_weights": dict(self._best_weights),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from the state of another judge of the same training.

        To be called after `judge_start`.
        """
        self.best_epoch = state["best_epoch"]
        self.n_divisions = state["n_divisions"]
        self._epochs_without_gain = state["epochs_without_gain"]
        best_loss = state["best_loss"]
        self._best_loss = math.inf if best_loss is None else best_loss
        self._best_losses = state["best_losses"].copy()
        best = state["best_weights"]
        self._best_weights = {
            name: own.clone().copy_(best[name])
            if isinstance(own, Tensor)
            else best[name]
            for name, own in self._start_weights.items()
        }

    def check_weights(self, epoch: int) -> None:
        """Raise DivergenceError unless all weights are finite.

        Parameters
        ----------
        epoch : int
            Number of the last epoch, for the error message.
        """
        for tensor in self._module.parameters():
            if not tensor.isfinite().all():
                self._check_finite("A weight", math.nan, epoch)

    def allows_another_epoch(self, can_divide: bool) -> bool:
        """Whether training continues.

        After `n_iter_no_change` epochs without an improvement it continues from the
        best epoch with a smaller learning rate, or ends if that is not possible.

        Parameters
        ----------
        can_divide : bool
            Whether the learning rate may be divided: no callback schedules it.
        """
        if not self._plan.early_stopping:
            return True
        if self._epochs_without_gain < self._plan.n_iter_no_change:
            return True
        if self.n_divisions == MAX_DIVISIONS or not can_divide:
            return False
        self.n_divisions += 1
        self._epochs_without_gain = 0
        self._module.load_state_dict(self._best_weights)
        return True

    def restore_best(
        self,
        n_epochs: int,
        is_complete: bool,
        exact_losses: Losses | None = None,
        exact_training_losses: Losses | None = None,
    ) -> Judgement | None:
        """Load the final weights of the training into the module.

        These are the weights of the best epoch; without early stopping, those of the
        last epoch if the training is complete. With ``plan.keep_start`` they are the
        initial weights unless the mean gain of the held-out rows exceeds its standard
        error. Without early stopping they are the initial weights if `exact_losses` is
        given and the mean gain of the training rows is not positive.

        Parameters
        ----------
        n_epochs : int
            Number of epochs that were run.
        is_complete : bool
            False if the user or a callback ended the training early.
        exact_losses : callable, default=None
            Returns the objectives in float64 with the present weights, and the weights
            of the rows: held-out rows, or without early stopping training rows. None
            judges by the losses of the training.
        exact_training_losses : callable, default=None
            Returns the same for training rows. With ``plan.keep_start``, their mean
            gain has to be positive, too.

        Returns
        -------
        judgement : Judgement or None
            None without early stopping.
        """
        if not self._plan.early_stopping:
            if is_complete:
                self.best_epoch = n_epochs
            else:
                self._module.load_state_dict(self._best_weights)
            if exact_losses is not None and n_epochs > 0:
                self.check_weights(n_epochs)
                self._best_weights = self._copy_weights()
                self._compare_exactly(exact_losses)
                gain = self._judgement().mean_gain
                self._check_finite("The training loss", gain, n_epochs)
                if gain <= 0:
                    self._module.load_state_dict(self._start_weights)
                    self.best_epoch = 0
            return None
        if exact_losses is not None and self.best_epoch > 0:
            self._compare_exactly(exact_losses)
        judgement = self._judgement()
        self._module.load_state_dict(self._best_weights)
        if not self._plan.keep_start or self.best_epoch == 0:
            return judgement
        is_better = judgement.is_significant
        if is_better and exact_training_losses is not None:
            self._compare_exactly(exact_training_losses)
            is_better = self._judgement().mean_gain > 0
        if not is_better:
            self._module.load_state_dict(self._start_weights)
            self.best_epoch = 0
        return judgement

    def restore_start(self) -> None:
        """Load the initial weights, after `restore_best`."""
        self._module.load_state_dict(self._start_weights)
        self.best_epoch = 0

    def _compare_exactly(self, exact_losses: Losses) -> None:
        """Compute the losses of the best and of the initial weights in float64."""
        self._module.load_state_dict(self._start_weights)
        self._start_losses, self._weight = exact_losses()
        self._module.load_state_dict(self._best_weights)
        self._best_losses, _ = exact_losses()

    def _judgement(self) -> Judgement:
        """Compare the losses of the best and of the initial weights."""
        gains, weight = self.gains(self._start_losses, self._best_losses, self._weight)
        return Judgement(gains, weight, self.best_epoch)

    def gains(
        self, before: np.ndarray, after: np.ndarray, weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the decrease of the losses of rows, and the weights of these rows.

        Rows are left out as in a batch.
        """
        kept = self._trimmed_weight(after, weight)
        gains = before - after
        # Differences within the rounding error of the losses are no gain.
        eps = np.finfo(gains.dtype).eps
        gains[np.abs(gains) <= ROUNDING * eps * np.abs(before)] = 0
        return gains[kept > 0], kept[kept > 0]

    def _mean(self, losses: np.ndarray) -> float:
        """Return the weighted mean over the held-out rows, trimmed like a batch."""
        return float(
            np.average(losses, weights=self._trimmed_weight(losses, self._weight))
        )

    def _trimmed_weight(self, losses: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Return the weights after the rows with the highest losses are left out."""
        share = trimmed_share(self._plan.trim, len(weight))
        kept = trimmed_weight(
            torch.from_numpy(losses), torch.from_numpy(np.array(weight)), share
        )
        return kept.numpy()

    def _copy_weights(self) -> dict[str, Any]:
        """Return copies of weights, and of what `get_extra_state` returns."""
        return {
            name: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
            for name, value in self._module.state_dict().items()
        }

    def _check_finite(self, name: str, loss: float, epoch: int) -> None:
        if not math.isfinite(loss):
            raise DivergenceError(
                f"{name} became {loss} in epoch {epoch}: the training diverged. The "
                f"likely cause is a learning_rate that is too high "
                f"({self._plan.learning_rate:g}), or features of very different scale "
                "(see the parameter scale)."
            )


def exceeds_standard_error(gains: np.ndarray, weight: np.ndarray) -> bool:
    r"""Whether the weighted mean of `gains` is larger than its standard error.

    .. math::

        \bar g = \frac{\sum w_i g_i}{\sum w_i}, \quad
        s^2 = \frac{\sum w_i (g_i - \bar g)^2}{\sum w_i} \, \frac{1}{m - 1},
        \quad m = \frac{(\sum w_i)^2}{\sum w_i^2}

    with m Kish's effective number of rows [1]_. The gain of a single row, which has no
    standard error, is never significant.

    Parameters
    ----------
    gains, weight : ndarray of shape (n_rows,)
        Decrease of the objective of each row, and positive weights.

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
