"""Data passed from validation to training, and the result of a training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import nn

from skae._categories import Categories
from skae._defaults import TrainingDefaults
from skae._folds import Holdout
from skae._layers import make_activation
from skae._members import has_code_widths
from skae._mixture import CodeDensity
from skae._module import Autoencoder
from skae._ordered import Ordered
from skae._row_noise import RowNoise
from skae._rows import Rows
from skae._summary import Summary
from skae.bottlenecks import Bottleneck
from skae.corruptions import Corruption
from skae.engine.checkpoint import Checkpoint
from skae.engine.judge import Judgement
from skae.engine.net import AutoencoderNet
from skae.engine.trainer import OptimizerState
from skae.losses import Loss
from skae.networks import Network, Shape
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
    def suits_hidden_layers(self) -> bool:
        """Whether ``hidden_layer_sizes="auto"`` means hidden layers."""
        bottleneck, penalty = self.bottleneck, self.penalty
        if penalty is None or not bottleneck.suits_code_activation:
            return bottleneck.suits_hidden_layers
        return bottleneck.suits_hidden_layers and penalty.suits_hidden_layers

    @property
    def is_plain(self) -> bool:
        """Whether a dense network learns a deterministic code from clean rows."""
        return self.members_stack and self.corruption is None

    @property
    def members_stack(self) -> bool:
        """Whether several such networks can be trained as one with stacked weights."""
        return (
            self.network.members_stack
            and self.bottleneck.members_stack
            and self.penalty is None
        )


def starts_at_pca(parts: Parts, init: str) -> bool:
    """Whether the initial network is the PCA of the training rows."""
    return init != "random" and pca_obstacle(parts) is None


def pca_obstacle(parts: Parts) -> str | None:
    """Return the name of the parameter that rules out ``init="pca"``, or None."""
    network = parts.network
    if not network.allows_pca:
        return "network"
    if not parts.bottleneck.allows_pca:
        return "bottleneck"
    if network.code_activation == "auto" and parts.code_activation != "identity":
        return "penalty"
    if network.output_activation == "auto":
        return None if parts.loss.allows_pca else "loss"
    is_identity = isinstance(make_activation(network.output_activation), nn.Identity)
    return None if is_identity else "network"


class Ensemble(NamedTuple):
    """An ensemble of networks.

    Attributes
    ----------
    n_members : int
    n_visible : int
        Number of features that are input to the encoder of each member. They are drawn
        at random.
    n_together : int
        Largest number of members that are trained as one network, where members can be
        trained apart from each other.
    n_jobs : int or None
        Number of workers that train members, see `joblib.Parallel`.
    widths : tuple of int or None
        Number of components of the code that each member uses; None means all.
    """

    n_members: int
    n_visible: int
    n_together: int
    n_jobs: int | None
    widths: tuple[int, ...] | None = None

    def additional(self, earlier: Autoencoder) -> Ensemble:
        """Return the ensemble of the members that a fitted module does not have yet.

        Their codes have the width of the fitted module.
        """
        n_kept, widths = earlier.n_members, None
        if has_code_widths(earlier.encoder):
            widths = self.widths or (earlier.n_components,) * self.n_members
            widths = tuple(min(w, earlier.n_components) for w in widths[n_kept:])
        return self._replace(n_members=self.n_members - n_kept, widths=widths)


@dataclass(frozen=True)
class Settings:
    """Constructor parameters that training uses, see the estimators' docstrings.

    `scale` is without ``"auto"``.
    """

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
    n_iter_no_change: float
    tol: float
    trim: float
    verbose: int
    callbacks: list[Any] | tuple[Any, ...] | None
    compile: str | bool
    n_threads: int | str
    precision: str

    @classmethod
    def from_estimator(cls, estimator: Any, scale: str | None) -> Self:
        """Read the parameters of an estimator, except for the resolved scale."""
        parameters = {f.name: getattr(estimator, f.name) for f in fields(cls)}
        return cls(**{**parameters, "scale": scale})


@dataclass(frozen=True)
class Job:
    """Validated inputs of one fit.

    Attributes
    ----------
    settings : Settings
    parts : Parts
        Its loss is bound to the columns of the rows, see `Loss.bind`.
    parameters : dict
        Copies of the constructor parameters that determine the structure of the
        network.
    rows : Rows
        All rows with a positive weight, in canonical form.
    positions : ndarray of int of shape (n_samples,) or None
        Where `rows` has each row that was passed, see `CanonicalForm`. The job on
        coordinates, see `reduction`, has those of the job on the rows.
    summary : Summary
        Statistics of the features over these rows.
    feature_names : ndarray of str or None
    categories : Categories or None
        Categories of the features, by whose columns `rows` are encoded; None if the
        features are numbers.
    input_shape : tuple of int
        Shape of one row.
    n_components : int
        Width of the code.
    n_channels : int
        Number of consecutive components that belong to one position, if the code is a
        feature map; else `n_components`.
    ensemble : Ensemble or None
        Ensemble to train, without the members that are kept; None trains one network
        that sees all features.
    n_kept : int
        Number of members of `earlier` that are kept as they are, while only additional
        members are trained; 0 if all are trained.
    max_refinements : int
        Number of optimisation steps by which codes are refined after encoding.
    completes_rows : bool
        Whether missing entries are replaced by their expectation given the others,
        instead of the mean.
    is_ordered : bool
        Whether the components are ordered.
    share : float or None
        Share of the variance that the code has to explain with the fewest of up to
        `n_components` components; None if the number is given.
    defaults : TrainingDefaults
        Values of the settings that are ``"auto"``.
    device : torch.device
    error : {"log", "loss"} or None
        Reconstruction error by which the training rows are scored; None if they are
        not scored.
    n_neighbors : int
        Number of the nearest training row, the distance to which is a part of the
        score; 0 if it has none.
    has_relative_distances : bool
        Whether a mean relative distance takes the place of that to the core.
    seed : int
        Seed of all random numbers of the fit, except for the choice of held-out rows.
    split_seed : int
        Seed of the choice of held-out rows. With a fixed `random_state`, fits that
        resume hold out the same rows, on which the network has not been trained.
    is_partial : bool
        Whether this is a `partial_fit`, one epoch without held-out rows.
    earlier : Trained or None
        The fitted model from which training continues, or whose members are kept.
    reduction : Reduction or None
        How this job was derived from one on rows of more features, if it was.
    holdout : Holdout or None
        Which rows the members do not learn, those that are kept included; None if all
        members learn all rows.
    validation_rows : Rows or None
        Rows of the user by which the training is judged, in canonical form; they are
        no part of `rows`. None holds out some of `rows`, as `settings` say.
    whiten : bool
        Whether the codes of the training rows are summarized, to be whitened.
    draws_rows : bool
        Whether densities are estimated from which rows can be drawn.
    array_space : tuple of str or None
        The fields of the `ArraySpace` of the rows that were passed; None for NumPy.
    checkpoint : Checkpoint or None
        File from which the fit goes on after it has been killed, if it has one.
    """

    settings: Settings
    parts: Parts
    parameters: dict[str, Any]
    rows: Rows
    positions: np.ndarray | None
    summary: Summary
    feature_names: np.ndarray | None
    categories: Categories | None
    input_shape: tuple[int, ...]
    n_components: int
    n_channels: int
    ensemble: Ensemble | None
    n_kept: int
    max_refinements: int
    completes_rows: bool
    is_ordered: bool
    share: float | None
    defaults: TrainingDefaults
    device: torch.device
    error: str | None
    n_neighbors: int
    has_relative_distances: bool
    seed: int
    split_seed: int
    is_partial: bool
    earlier: Trained | None
    reduction: Reduction | None = None
    holdout: Holdout | None = None
    validation_rows: Rows | None = None
    whiten: bool = False
    draws_rows: bool = False
    array_space: tuple[str, str] | None = None
    checkpoint: Checkpoint | None = None

    @property
    def is_resumed(self) -> bool:
        """Whether training starts with weights that were trained before."""
        return self.earlier is not None and not self.n_kept

    @property
    def is_plain(self) -> bool:
        """Whether a plain dense network starts as a PCA, see `Parts.is_plain`."""
        return self.parts.is_plain and starts_at_pca(self.parts, self.settings.init)

    @property
    def shape(self) -> Shape:
        """Shape from which all networks are built: that of the first fit."""
        if self.earlier is not None and self.earlier.shape is not None:
            return self.earlier.shape
        return Shape(
            len(self.rows),
            self.rows.n_features,
            self.parts.bottleneck.encoder_width(self.n_components),
            self.n_components,
            self.input_shape,
            self.parts.code_activation,
            self.n_kept + (1 if self.ensemble is None else self.ensemble.n_members),
            self.parts.suits_hidden_layers,
            self.is_plain,
            self.is_ordered,
        )


class Reduction(NamedTuple):
    """What a job on few coordinates of the rows was derived from.

    Attributes
    ----------
    job : Job
        The job on the rows.
    expand : callable
        Returns a module for the rows from one that was trained on the coordinates.
    oriented : callable
        Returns axes, of shape (n_components, n_coordinates), with the signs that they
        have as axes of the rows.
    """

    job: Job
    expand: Callable[[Autoencoder], Autoencoder]
    oriented: Callable[[np.ndarray], np.ndarray]


class TrainingScores(NamedTuple):
    """Scores of the training rows, from which a threshold is derived.

    Attributes
    ----------
    values : ndarray of shape (n_scores,)
        Scores of the distinct rows of the last fit. After `partial_fit`, also those of
        the rows of earlier calls, computed by the network of that time. Those of a
        fitted detector are in descending order, unless an earlier version stored them.
    weight : ndarray of shape (n_scores,)
        Positive weights of these rows.
    rounding : float
        Relative difference up to which scores count as equal.
    error : {"log", "loss"}
        Error that the scores are the negative of.
    n_seen : float
        Weight of all rows whose scores were added.
    isolated : ndarray of shape (n_scores,) or None
        Share of the weight of each score that belongs to isolated rows, see
        `skae._neighbors.are_isolated`. None if all count as isolated, because no
        distances are measured or the version of skae that stored them recorded none.
    """

    values: np.ndarray
    weight: np.ndarray
    rounding: float
    error: str
    n_seen: float
    isolated: np.ndarray | None = None

    def added_to(
        self, earlier: TrainingScores, max_weight: float, decay: float
    ) -> TrainingScores:
        """Return the scores of earlier calls together with these ones.

        The weight of the earlier ones is at most `max_weight`. If they have the
        weight n and these have the weight m, it is then multiplied by
        ``(n / (n + m)) ** decay``. The i-th of n rows that were added one by one so has
        a weight proportional to ``(i / n) ** decay`` until the maximum is reached.
        """
        if len(earlier.values) == 0 or len(self.values) == 0:
            return self if len(earlier.values) == 0 else earlier
        n_earlier = min(earlier.n_seen, max_weight)
        n_added = self.weight.sum()
        share = min(1.0, max_weight / earlier.weight.sum())
        share *= (n_earlier / (n_earlier + n_added)) ** decay
        return self._replace(
            values=np.concatenate([earlier.values, self.values]),
            weight=np.concatenate([share * earlier.weight, self.weight]),
            isolated=np.concatenate([earlier._all_isolated(), self._all_isolated()]),
            rounding=max(earlier.rounding, self.rounding),
            n_seen=earlier.n_seen + n_added,
        )

    def in_descending_order(self) -> TrainingScores:
        """Return the same scores sorted, which saves the sorting in later uses."""
        order = np.argsort(-self.values, kind="stable")
        arrays = {k: v for k, v in self._asdict().items() if isinstance(v, np.ndarray)}
        ordered: dict[str, Any] = {name: v[order] for name, v in arrays.items()}
        return self._replace(**ordered)

    def condensed(self, size: int) -> TrainingScores:
        """Return at most `size` scores with nearly the same weighted quantiles.

        More than `size` scores are sorted and divided into half as many groups of about
        equal weight, each of which is replaced by its weighted mean.
        """
        if len(self.values) <= size:
            return self
        order = np.argsort(self.values, kind="stable")
        values, weight = self.values[order], self.weight[order]
        reached = (np.cumsum(weight) - weight / 2) / weight.sum()
        group = np.minimum((reached * (size // 2)).astype(int), size // 2 - 1)
        starts = np.append(0, np.flatnonzero(np.diff(group)) + 1)
        total = np.add.reduceat(weight, starts)
        share = weight / np.repeat(total, np.diff(np.append(starts, len(values))))
        isolated = self._all_isolated()[order]
        return self._replace(
            values=np.add.reduceat(share * values, starts),
            weight=total,
            isolated=np.add.reduceat(share * isolated, starts),
        )

    def _all_isolated(self) -> np.ndarray:
        """Return `isolated`, ones if it is None."""
        return np.ones(len(self.values)) if self.isolated is None else self.isolated


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


class Generation(NamedTuple):
    """What rows are drawn from: the density of the codes, and the noise of the rows."""

    codes: CodeDensity
    noise: RowNoise


class LossCurves(NamedTuple):
    """Losses of all epochs by which a model was trained, over resumed fits.

    Attributes
    ----------
    train : tuple of float
        Mean objective of the training rows in each epoch.
    valid : tuple of float
        Mean objective of the held-out rows after each epoch; NaN for an epoch of a
        training without them.
    best_epoch : int
        Number of the epoch, in `train` and from 1, whose weights the model has; 0
        for the initial weights.
    """

    train: tuple[float, ...] = ()
    valid: tuple[float, ...] = ()
    best_epoch: int = 0

    @property
    def aligned_valid(self) -> tuple[float, ...]:
        """`valid` with as many entries as `train`.

        Earlier versions stored none for an epoch without held-out rows.
        """
        return self.valid + (math.nan,) * (len(self.train) - len(self.valid))


@dataclass(frozen=True)
class Trained:
    """The result of a fit: the trained net, and statistics of the training rows.

    Attributes
    ----------
    net : AutoencoderNet
        Trimmed for prediction.
    parts : Parts
    parameters : dict
        Copies of the constructor parameters that determine the structure of the
        network.
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
    warnings : tuple of str
        Messages of the warnings that `fit` issues when it has adopted this model.
    shape : Shape or None
        Shape from which the networks were built; None if the model was stored by a
        version that did not record it.
    median_score : float
        Median of the scores of the training rows, which is the score of a row without
        an observed entry.
    scores_in_order : ndarray of shape (n_samples,) or None
        Scores of all rows of the last call in the order in which they were passed, NaN
        for a row without an observed entry. None if training rows are not scored, or if
        the model was stored by a version that did not record them.
    holdout : Holdout or None
        Which rows the members did not learn; None if all members learnt all rows.
    held_out_scores : tuple of TrainingScores or None
        For each fold, the scores of its rows by the members that did not learn them;
        None without folds.
    scale : {"global", "feature"} or None
        Scaling of the features, without ``"auto"``. The default is that of the
        detector in versions that did not record it.
    code_summaries : tuple of Summary or None
        Statistics of the codes of the training rows, by which codes are whitened;
        after `partial_fit`, of the rows of all calls. With ordered components, those
        for each number of components. None if codes are not whitened.
    ordered : Ordered or None
        What was learnt for each number of components; None if they are not ordered.
    array_space : tuple of str or None
        Library and device of the rows of the last call, the fields of an `ArraySpace`,
        in which fitted attributes are returned; None for NumPy.
    categories : Categories or None
        Categories of the features, by whose columns rows are encoded; None if the
        features are numbers.
    generation : tuple of Generation or None
        What rows are drawn from; with ordered components, for each number of them. None
        if there is no method `sample`, or if the model was stored by a version that did
        not record it.
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
    warnings: tuple[str, ...] = ()
    shape: Shape | None = None
    median_score: float = 0.0
    scores_in_order: np.ndarray | None = None
    holdout: Holdout | None = None
    held_out_scores: tuple[TrainingScores, ...] | None = None
    scale: str | None = "feature"
    code_summaries: tuple[Summary, ...] | None = None
    ordered: Ordered | None = None
    array_space: tuple[str, str] | None = None
    categories: Categories | None = None
    generation: tuple[Generation, ...] | None = None

    @property
    def n_features(self) -> int:
        """Number of features of the training rows."""
        if self.categories is not None:
            return self.categories.layout.n_features
        return len(self.summary.mean)

    @property
    def learnt_module(self) -> Autoencoder:
        """Module with which training continues."""
        module = self.net.module_
        return module if self.ordered is None else self.ordered.learnt(self.net)

    def of_width(self, width: int) -> Trained:
        """Return the model of the first `width` of ordered components.

        It shares the weights of this one.
        """
        assert self.ordered is not None
        net, ordered = self.ordered.of_width(self.net, width)
        ratio = float(self.ordered.score_ratios[width - 1])
        attributes = {
            name: values[:width] for name, values in self.bottleneck_attributes.items()
        }
        return replace(
            self,
            net=net,
            bottleneck_attributes=attributes,
            optimizer=None,
            median_score=ratio * self.median_score,
            code_summaries=self.code_summaries and self.code_summaries[:width],
            generation=self.generation and self.generation[:width],
            ordered=ordered,
        )

    @property
    def total_variance(self) -> float:
        """Sum over the features of their mean squared distances to `mean`.

        As in PCA, sums of squares are divided by `n_samples` - 1.
        """
        squares = self.summary.variance + (self.summary.mean - self.mean) ** 2
        n = self.n_samples
        return float(np.nansum(squares) * n / max(n - 1, 1))

    @property
    def n_samples(self) -> float:
        """Sum of the weights or, if that is more, the number of distinct rows.

        Weights may be scaled to a sum of one.
        """
        return max(float(self.summary.weight.max()), self.n_rows)

    @property
    def mean(self) -> np.ndarray:
        """Mean of each column, of shape (n_columns,), see `mean_`."""
        return self.net.module_.scaler.mean.cpu().numpy().copy()

    def __getstate__(self) -> dict[str, Any]:
        # A loaded model continues training with a new optimizer.
        return vars(replace(self, judgement=None, optimizer=None))
