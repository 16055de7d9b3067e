"""Data passed from validation to training, and the result of a training."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch

from skae._defaults import TrainingDefaults
from skae._rows import Rows
from skae._summary import Summary
from skae.bottlenecks import Bottleneck
from skae.corruptions import Corruption
from skae.engine.judge import Judgement
from skae.engine.net import AutoencoderNet
from skae.engine.trainer import OptimizerState
from skae.losses import Loss
from skae.networks import Network
from skae.penalties import Penalty


class Parts(NamedTuple):
    """Spec objects of an estimator: the parameters that may be given by name."""

    network: Network
    bottleneck: Bottleneck
    corruption: Corruption | None
    penalty: Penalty | None
    loss: Loss

    @property
    def code_activation(self) -> str:
        """Value of the network's ``code_activation="auto"``."""
        if self.penalty is None or not self.bottleneck.suits_code_activation:
            return "identity"
        return self.penalty.code_activation

    @property
    def members_stack(self) -> bool:
        """Whether several such networks can be trained as one with stacked weights."""
        return (
            self.network.members_stack
            and self.bottleneck.members_stack
            and self.penalty is None
        )


class Ensemble(NamedTuple):
    """Ensemble of an ensemble of networks, which are trained together.

    Attributes
    ----------
    n_members : int
    n_visible : int
        Number of features that are input to the encoder of each member. They are drawn
        at random.
    widths : tuple of int or None
        Number of components of the code that each member uses; None means all.
    """

    n_members: int
    n_visible: int
    widths: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Settings:
    """Constructor parameters that training uses, see the estimators' docstrings."""

    bottleneck_weight: float
    corruption_level: float
    penalty_weight: float
    init: str
    scale: str | None
    max_epochs: int | str
    batch_size: int | str
    learning_rate: float | str
    weight_decay: float
    early_stopping: bool | str
    validation_fraction: float
    n_iter_no_change: int
    tol: float
    trim: float
    verbose: int
    callbacks: list | tuple | None
    compile: str | bool
    n_threads: int | str
    precision: str

    @classmethod
    def from_estimator(cls, estimator: Any) -> Self:
        """Read the parameters of an estimator."""
        return cls(**{f.name: getattr(estimator, f.name) for f in fields(cls)})


@dataclass(frozen=True)
class Job:
    """Validated inputs of one fit.

    Attributes
    ----------
    settings : Settings
    parts : Parts
        Its loss is bound to the columns of the rows, see `Loss.bind`.
    parameters : dict
        Copies of the constructor parameters that determine the model.
    rows : Rows
        All rows with a positive weight, in canonical form.
    summary : Summary
        Statistics of the features over these rows.
    feature_names : ndarray of str or None
    input_shape : tuple of int
        Shape of one row.
    n_components : int
        Width of the code.
    n_channels : int
        Number of consecutive components that belong to one position, if the code is a
        feature map; else `n_components`.
    ensemble : Ensemble or None
        None trains one network that sees all features.
    max_refinements : int
        Number of optimisation steps by which codes are refined after encoding.
    defaults : TrainingDefaults
        Values of the settings that are ``"auto"``.
    device : torch.device
    error : {"log", "loss"} or None
        Reconstruction error by which the training rows are scored; None if they are
        not scored.
    seed : int
        Seed of all random numbers of the fit.
    is_partial : bool
        Whether this is a `partial_fit`, one epoch without held-out rows.
    earlier : Trained or None
        The fitted model from which training continues.
    digest : str
        Hash of the rows, by which a warm start recognizes equal rows; empty if the fit
        does not need it.
    """

    settings: Settings
    parts: Parts
    parameters: dict[str, Any]
    rows: Rows
    summary: Summary
    feature_names: np.ndarray | None
    input_shape: tuple[int, ...]
    n_components: int
    n_channels: int
    ensemble: Ensemble | None
    max_refinements: int
    defaults: TrainingDefaults
    device: torch.device
    error: str | None
    seed: int
    is_partial: bool
    earlier: Trained | None
    digest: str


class TrainingScores(NamedTuple):
    """Scores of the training rows, from which a threshold is derived.

    Attributes
    ----------
    values : ndarray of shape (n_rows,)
        Non-positive scores of the distinct rows of the last fit.
    weight : ndarray of shape (n_rows,)
        Positive weights of these rows.
    rounding : float
        Relative difference up to which scores count as equal.
    """

    values: np.ndarray
    weight: np.ndarray
    rounding: float


class ResidualSums(NamedTuple):
    """Weighted sums of absolute residuals of the training rows.

    Attributes
    ----------
    total : ndarray of shape (n_features,) or (n_members, n_features)
        In the scaled space.
    weight : ndarray of the same shape
        Sum of the weights of the observed entries.
    """

    total: np.ndarray
    weight: np.ndarray


class LossCurves(NamedTuple):
    """Losses of all epochs by which a model was trained, over resumed fits.

    Attributes
    ----------
    train : tuple of float
        Mean objective of the training rows in each epoch.
    valid : tuple of float
        Mean objective of the held-out rows after each epoch; empty without them.
    best_epoch : int
        Number of the epoch, in `train` and from 1, whose weights the model has; 0
        for the initial weights. Where early stopping is cross-validated, the curves
        are means over the folds, and this is the number of epochs of the training on
        all rows.
    """

    train: tuple[float, ...] = ()
    valid: tuple[float, ...] = ()
    best_epoch: int = 0


@dataclass(frozen=True)
class Trained:
    """The result of a fit: the trained net, and statistics of the training rows.

    Attributes
    ----------
    net : AutoencoderNet
        Trimmed for prediction.
    parts : Parts
    parameters : dict
        Copies of the constructor parameters at the time of the fit.
    feature_names : ndarray of str or None
    n_rows : int
        Number of distinct rows of the last `fit`, or of the first `partial_fit`, from
        which ``"auto"`` of batch size and learning rate is derived in `partial_fit`.
    summary : Summary
        Statistics of the training rows; after `partial_fit`, of the rows of all calls.
    curves : LossCurves
    bottleneck_attributes : dict
        Fitted attributes that only this bottleneck has, by name.
    scores : TrainingScores or None
        None if training rows are not scored.
    residuals : ResidualSums or None
        None unless the error is ``"log"``.
    judgement : Judgement or None
        Change of the objective of the held-out rows; None without them.
    optimizer : OptimizerState or None
        State from which the next `partial_fit` continues; None after `fit`.
    digest : str
        Hash of the training rows; empty if the fit was interrupted or partial.
    """

    net: AutoencoderNet
    parts: Parts
    parameters: dict[str, Any]
    feature_names: np.ndarray | None
    n_rows: int
    summary: Summary
    curves: LossCurves
    bottleneck_attributes: dict[str, Any]
    scores: TrainingScores | None
    residuals: ResidualSums | None
    judgement: Judgement | None = None
    optimizer: OptimizerState | None = None
    digest: str = ""

    @property
    def n_features(self) -> int:
        """Number of features of the training rows."""
        return len(self.summary.mean)

    @property
    def mean(self) -> np.ndarray:
        """Mean of each feature, of shape (n_features,), see `mean_`."""
        return self.net.module_.scaler.mean.cpu().numpy().copy()

    def __getstate__(self) -> dict[str, Any]:
        # A loaded model continues training with a new optimizer.
        return vars(replace(self, judgement=None, optimizer=None))
