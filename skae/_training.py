"""Training on validated rows: held-out rows, cross-validation, and the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

from skae._build import (
    Start,
    build_plan,
    build_start,
    join_members,
    starts_at_pca,
)
from skae._callbacks import Task
from skae._convergence import find_warnings
from skae._generator import isolated_generator
from skae._job import Job, LossCurves, ResidualSums, Trained, TrainingScores
from skae._prediction import evaluate, evaluate_blocks, score_rows
from skae._processor import flushed_denormals, matmul_precision, threads_for
from skae._progress import Progress
from skae._summary import Summary, weighted_median
from skae._user_callbacks import check_trainings, copies, prints_history
from skae.engine.interrupt import Interruption
from skae.engine.judge import Judgement
from skae.engine.net import INTERNAL, AutoencoderNet, without_batches
from skae.engine.plan import Plan
from skae.engine.trainer import OptimizerState, Split, Trainer

# Up to this number of distinct rows, early stopping is cross-validated: on seven small
# tables (80 to 442 rows, one to five components) five folds removed about .05 more of
# PCA's held-out error than a tenth of the rows held out, and the worst fit was nearer
# to PCA.
MAX_CROSS_VALIDATED = 500
N_FOLDS = 5

# Lower bound of the mean residual by which residuals are divided, in standard
# deviations of the feature: the mean is 0 if a feature is reproduced exactly, such as a
# constant.
MIN_RESIDUAL = 1e-3

# Upper bound of the weight, in the mean residuals and in the scores for the threshold,
# of all rows before the last `partial_fit`: their residuals and scores were those of a
# network with less training.
MAX_EARLIER_WEIGHT = 1000.0

# Exponent with which the weight of the scores of earlier calls decreases, see
# `TrainingScores.added_to`.
SCORE_DECAY = 3.0

# Upper bound of the number of recorded scores of earlier calls of `partial_fit`.
MAX_RECORDED = 8192


# Number of training rows whose scores give the median score of a transformer, in `fit`
# and in each `partial_fit`.
MAX_MEDIAN_ROWS = 1000
MAX_PARTIAL_MEDIAN_ROWS = 32


@dataclass(frozen=True)
class TrainingRun:
    """The result of one training of a network.

    Attributes
    ----------
    net : AutoencoderNet
        The trained net.
    epochs : list of dict
        Rows of skorch's history for the epochs of this training.
    judgement : Judgement or None
        Change of the objective of the held-out rows; None without them.
    optimizer : OptimizerState or None
        State of the optimizer after a `partial_fit`; None after a `fit`.
    """

    net: AutoencoderNet
    epochs: list[dict[str, Any]]
    judgement: Judgement | None = None
    optimizer: OptimizerState | None = None


def train(job: Job, task: Task, interruption: Interruption) -> Trained:
    """Train a network on validated rows.

    Parameters
    ----------
    job : Job
        Validated inputs of the fit.
    task : Task
        Notifies scikit-learn's callbacks.
    interruption : Interruption
        Records Ctrl-C.

    Returns
    -------
    trained : Trained
        A new model; ``job.earlier`` is unchanged.

    Raises
    ------
    DivergenceError
        If a loss becomes infinite or NaN.
    KeyboardInterrupt
        On Ctrl-C before the training starts; in a `partial_fit`, and in a training of
        additional members, also before the end of the first epoch. Otherwise Ctrl-C
        ends the training early.
    """
    draws_globally = job.parts.network.draws_globally
    with isolated_generator(draws_globally, job.seed, job.device):
        with interruption.allowed():
            splits = split_rows(job)
            check_trainings(
                job.settings.callbacks,
                n_folds=len(splits),
                has_held_out_rows=splits[0].held_out is not None,
            )
            start = build_start(job)
        if len(splits) > 1:
            training = _train_by_folds(job, start, splits, task, interruption)
        else:
            training = _train_once(job, start, splits[0], task, interruption)
    is_addition = job.is_partial or job.n_kept > 0
    if is_addition and interruption.requested and not training.epochs:
        raise KeyboardInterrupt  # the estimator remains as it was
    trained = _finish(job, training)
    if not (job.is_partial or interruption.requested):
        trained = replace(trained, warnings=find_warnings(job, trained))
    return trained


def max_subtasks(job: Job) -> int:
    """Upper bound on the number of subtasks of a fit: trainings or epochs."""
    splits = split_rows(job)
    if len(splits) > 1:
        return len(splits) + 1
    return _plan(job, splits[0]).max_epochs


# Held-out rows


def split_rows(job: Job) -> list[Split]:
    """Split rows into training and held-out rows, once or once for each fold."""
    rows, settings = job.rows, job.settings
    n_rows = len(rows)
    early_stopping = settings.early_stopping
    if early_stopping == "auto":
        early_stopping = n_rows >= 2
    if job.is_partial or not early_stopping:
        return [Split(rows.normalised(), None)]
    order = np.arange(n_rows, dtype=np.int32)
    np.random.default_rng([job.split_seed, 0]).shuffle(order)
    n_held_out = min(math.ceil(settings.validation_fraction * n_rows), n_rows - 1)
    held_out = [order[:n_held_out]]
    is_automatic = settings.early_stopping == "auto" and not job.is_resumed
    if is_automatic and n_rows <= MAX_CROSS_VALIDATED:
        held_out = np.array_split(order, min(N_FOLDS, n_rows))
    return [
        Split(
            rows.normalised(np.setdiff1d(order, part)),
            rows.normalised(np.sort(part)),
        )
        for part in held_out
    ]


def _plan(job: Job, split: Split) -> Plan:
    n_rows = len(split.train)
    if job.is_partial and job.earlier is not None:
        # The batch size and the learning rate are the same for all pieces.
        n_rows = job.earlier.n_rows
    return build_plan(job, n_rows, early_stopping=split.held_out is not None)


# Trainings


def _train_once(
    job: Job,
    start: Start,
    split: Split,
    task: Task,
    interruption: Interruption,
    *,
    max_epochs: int | None = None,
    name: str = "",
    expected: Sequence[dict[str, Any]] = (),
) -> TrainingRun:
    """Train a network on one split of the rows.

    Parameters
    ----------
    start : Start
        Trained in place.
    max_epochs : int, default=None
        Number of epochs; None means that of the plan.
    name : str, default=""
        Name of this training in the progress output, if there are several.
    expected : sequence of dict, default=()
        See `Trainer`.
    """
    earlier, settings = job.earlier, job.settings
    plan = _plan(job, split)
    if max_epochs is not None:
        plan = plan._replace(max_epochs=max_epochs)
    history, best_epoch = _earlier_epochs(job)
    with interruption.allowed():
        module, objective = start
        current_model = partial(_current_model, job)
        net = AutoencoderNet(
            module,
            objective=objective,
            plan=plan,
            callbacks=_callbacks(job, task, interruption, current_model, name),
            device=str(job.device),
            history=history,
            best_epoch=best_epoch,
            verbose=max(int(settings.verbose), prints_history(settings.callbacks)),
        )
        state = earlier.optimizer if earlier and job.is_partial else None
        trainer = Trainer(net, split, job.seed, interruption, state, expected)
    with (
        threads_for(plan.batch_size * module.work, settings.n_threads),
        flushed_denormals(),
        matmul_precision(settings.precision),
    ):
        trainer.run()
    epochs = net.history[len(history) :]
    if job.is_partial and epochs:  # else a callback has stopped the only epoch
        state = trainer.optimizer_state()
    net.trim_for_prediction()
    return TrainingRun(net, epochs, net.judgement_, state)


def _earlier_epochs(job: Job) -> tuple[list[dict[str, Any]], int]:
    """Return the history of the earlier fits that are resumed, and its best epoch."""
    if job.earlier is None:
        return [], 0
    net = job.earlier.net
    return [without_batches(epoch) for epoch in net.history], net.best_epoch_


def _callbacks(
    job: Job,
    task: Task,
    interruption: Interruption,
    current_model: Any,
    name: str,
) -> list:
    """Return the callbacks of one training, in the order in which they are called.

    The first notifies scikit-learn's callbacks, the last shows the progress.
    """
    callbacks: list[Any] = []
    observer = task.epoch_callback(current_model, interruption)
    if observer is not None:
        callbacks.append((INTERNAL + "observer", observer))
    callbacks.extend(copies(job.settings.callbacks))
    if job.settings.verbose:
        progress = Progress(int(job.settings.verbose), name, interruption)
        callbacks.append((INTERNAL + "progress", progress))
    return callbacks


def _train_by_folds(
    job: Job,
    start: Start,
    splits: Sequence[Split],
    task: Task,
    interruption: Interruption,
) -> TrainingRun:
    """Cross-validate early stopping, then train the returned network on all rows.

    The number of epochs is the mean of the best numbers of epochs of the folds. If the
    initial network is a PCA, it is returned if the mean gain over the held-out rows of
    all folds is not significant, or if the last network does not reconstruct the
    training rows better. After Ctrl-C, the network of the fold with the largest mean
    gain is returned.
    """
    folds: list[TrainingRun] = []
    try:
        for i, split in enumerate(splits, start=1):
            fold = task.subtask("fold", _plan(job, split).max_epochs)
            name = f"fold {i} of {len(splits)}"
            training = _train_once(
                job, start.copy(), split, fold, interruption, name=name
            )
            folds.append(training)
            stop_requested = False
            if not interruption.requested:
                stop_requested = fold.end(partial(_finish, job, training))
            if interruption.requested:  # in the training, or in a callback
                return _best_fold(folds)
            if stop_requested:
                break
    except KeyboardInterrupt:  # between two trainings
        if not folds:
            raise
        interruption.requested = True
        return _best_fold(folds)
    judgement = _combined([fold.judgement for fold in folds if fold.judgement])
    epochs = _mean_epochs([fold.epochs for fold in folds])
    if starts_at_pca(job.parts, job.settings.init) and not judgement.is_significant:
        settings = folds[-1].net.state["settings"]
        net = AutoencoderNet.restored(start.module, *_earlier_epochs(job), settings)
        net.callbacks_ = folds[-1].net.callbacks_
        return TrainingRun(net, epochs, judgement)
    all_rows = Split(job.rows.normalised(), None)
    n_epochs = max(1, round(judgement.n_epochs))
    last = task.subtask("all-rows", n_epochs)
    try:
        training = _train_once(
            job,
            start,
            all_rows,
            last,
            interruption,
            max_epochs=n_epochs,
            name="all rows",
            expected=epochs,
        )
    except KeyboardInterrupt:
        interruption.requested = True
    if interruption.requested:
        return _best_fold(folds)
    # Nothing is held out from this training. From a PCA it is compared with the PCA.
    if not starts_at_pca(job.parts, job.settings.init) and _has_failed(training, folds):
        return _best_fold(folds)
    net = training.net
    if net.best_epoch_ == 0:  # the weights are those of the start
        net = AutoencoderNet.restored(net.module_, [], 0, net.state["settings"])
    training = TrainingRun(net, epochs, judgement)
    last.end(partial(_finish, job, training))
    return training


def _has_failed(training: TrainingRun, folds: list[TrainingRun]) -> bool:
    """Whether a training has reduced the loss by less than half as much as any fold.

    It may diverge although no fold did.
    """

    def losses(epoch: int) -> list[float]:
        return [fold.epochs[epoch]["train_loss"] for fold in folds]

    runs = (training, *folds)
    n_epochs = min(len(run.epochs) for run in runs)
    if not n_epochs:
        return False
    start, end = max(losses(0)), max(losses(n_epochs - 1))
    return end < start and training.epochs[-1]["train_loss"] > (start + end) / 2


def _best_fold(folds: list[TrainingRun]) -> TrainingRun:
    """Return the fold with the largest mean gain on its held-out rows."""

    def mean_gain(fold: TrainingRun) -> float:
        return 0.0 if fold.judgement is None else fold.judgement.mean_gain

    return max(folds, key=mean_gain)


def _combined(judgements: list[Judgement]) -> Judgement:
    """Return the judgement over the held-out rows of all folds."""
    gains, weights, n_epochs = zip(*judgements, strict=True)
    return Judgement(
        np.concatenate(gains), np.concatenate(weights), float(np.mean(n_epochs))
    )


def _mean_epochs(histories: list[list[dict]]) -> list[dict[str, Any]]:
    """Return the mean of all values of each epoch, over the folds that recorded them.

    Integers, such as counts of batches, are left out. A flag is set if it is set in
    more than half of these folds.
    """
    means: list[dict[str, Any]] = []
    for epochs in zip_longest(*histories, fillvalue={}):
        values: dict[str, list] = {}
        for epoch in epochs:
            for name, value in epoch.items():
                if isinstance(value, float | np.floating | bool | np.bool_):
                    values.setdefault(name, []).append(value)
        means.append({name: _mean(numbers) for name, numbers in values.items()})
    return means


def _mean(values: list) -> float | bool:
    are_flags = all(isinstance(value, bool | np.bool_) for value in values)
    mean = float(np.mean(values))
    return mean > 0.5 if are_flags else mean


# The fitted model


def _current_model(job: Job, net: AutoencoderNet) -> Trained:
    """Return the model of a net during its training, for scikit-learn's callbacks."""
    n_earlier = 0 if job.earlier is None else len(job.earlier.net.history)
    copied = net.snapshot()
    return _finish(job, TrainingRun(copied, copied.history[n_earlier:]))


def _finish(job: Job, training: TrainingRun) -> Trained:
    """Combine a trained net with scores and statistics of the training rows.

    If only additional members were trained, the net becomes that of all members.
    """
    net, earlier = training.net, job.earlier
    if earlier is not None and job.n_kept:
        net = net.with_module(join_members(earlier.net.module_, net.module_))
    summary, n_rows = job.summary, len(job.rows)
    if job.is_partial and earlier is not None:
        summary, n_rows = earlier.summary.merged(summary), earlier.n_rows
    residuals = scale = None
    if job.error is not None and job.parts.bottleneck.has_plain_score:
        # Also for error="loss": the next `partial_fit` may have another error.
        residuals = _sum_residuals(job, net)
    if residuals is not None and job.error == "log":
        scale = _residual_scale(residuals, summary, net)
    net.module_.residual_scale = scale
    scores = _score_training_rows(job, net)
    return Trained(
        net=net,
        parts=job.parts,
        parameters=job.parameters,
        feature_names=job.feature_names,
        n_rows=n_rows,
        summary=summary._replace(is_binary=None),
        curves=_curves(job, training),
        bottleneck_attributes=_bottleneck_attributes(job, net),
        scores=scores,
        residuals=residuals,
        judgement=training.judgement,
        optimizer=training.optimizer,
        shape=job.shape,
        median_score=_median_score(job, training, scores),
    )


def _curves(job: Job, training: TrainingRun) -> LossCurves:
    """Return the loss curves of the earlier fits and of this training."""
    earlier = LossCurves() if job.earlier is None else job.earlier.curves
    n_before = 0 if job.earlier is None else len(job.earlier.net.history)
    n_best = training.net.best_epoch_ - n_before
    epochs = training.epochs
    valid = [epoch["valid_loss"] for epoch in epochs if "valid_loss" in epoch]
    return LossCurves(
        earlier.train + tuple(epoch["train_loss"] for epoch in epochs),
        earlier.valid + tuple(valid),
        len(earlier.train) + n_best if n_best > 0 else earlier.best_epoch,
    )


def _bottleneck_attributes(job: Job, net: AutoencoderNet) -> dict[str, Any]:
    """Return the fitted attributes of the bottleneck.

    In an ensemble, the first axis of each is that of the members.
    """
    rows, bottleneck = job.rows, job.parts.bottleneck

    def evaluate_rows(method: str) -> np.ndarray:
        return evaluate(net.module_for(method, rows.X.dtype), method, rows)

    if net.module_.visible is None:
        return bottleneck.fitted_attributes(evaluate_rows, rows.weight)

    def of_member(member: int) -> dict[str, Any]:
        return bottleneck.fitted_attributes(
            lambda method: evaluate_rows(method)[:, member], rows.weight
        )

    members = [of_member(i) for i in range(len(net.module_.visible))]
    return {
        name: np.stack([attributes[name] for attributes in members])
        for name in members[0]
    }


def _sum_residuals(job: Job, net: AutoencoderNet) -> ResidualSums:
    """Sum the absolute residuals of the training rows and of earlier calls."""
    rows = job.rows
    total: np.ndarray = np.zeros(())
    weight: np.ndarray = np.zeros(())
    module = net.module_for("residuals", rows.X.dtype)
    for where, residuals in evaluate_blocks(module, "residuals", rows):
        w = rows.weight[where].reshape(-1, *[1] * (residuals.ndim - 1))
        total = total + np.nansum(w * residuals, axis=0)
        weight = weight + np.sum(w * ~np.isnan(residuals), axis=0)
    earlier = None if job.earlier is None else job.earlier.residuals
    if job.is_partial and earlier is not None:
        share = np.minimum(1, MAX_EARLIER_WEIGHT / np.maximum(earlier.weight, 1))
        total = total + share * earlier.total
        weight = weight + share * earlier.weight
    return ResidualSums(total, weight)


def _residual_scale(
    residuals: ResidualSums, summary: Summary, net: AutoencoderNet
) -> torch.Tensor:
    """Return the mean absolute residual of each feature, in the scaled space.

    Returns
    -------
    residual_scale : Tensor of shape (n_features,) or (n_members, 1, n_features)
    """
    module = net.module_
    deviation = summary.deviation / module.scaler.factor.cpu().numpy()
    scale = np.maximum(
        residuals.total / np.maximum(residuals.weight, 1e-300), MIN_RESIDUAL * deviation
    )
    tensor = torch.from_numpy(scale)
    if tensor.ndim == 2:  # one axis more, for the rows of a batch
        tensor = tensor[:, None]
    return tensor.to(module.code_factor.device)


def _score_training_rows(job: Job, net: AutoencoderNet) -> TrainingScores | None:
    """Score the training rows; in `partial_fit`, add the scores of earlier calls."""
    if job.error is None:
        return None
    rows = job.rows
    scores = TrainingScores(
        score_rows(net.module_for("row_error", rows.X.dtype), rows),
        np.array(rows.weight),
        rounding=1e3 * float(np.finfo(np.float64).eps),
        error=job.error,
        n_seen=float(rows.weight.sum()),
    )
    earlier = None if job.earlier is None else job.earlier.scores
    if not job.is_partial or earlier is None or earlier.error != scores.error:
        return scores
    earlier = earlier.condensed(MAX_RECORDED)
    return scores.added_to(earlier, MAX_EARLIER_WEIGHT, SCORE_DECAY)


def _median_score(
    job: Job, training: TrainingRun, scores: TrainingScores | None
) -> float:
    """Return the median score of the training rows.

    If the training rows are not scored otherwise, it is the median of at most
    `MAX_MEDIAN_ROWS` of them. In a `partial_fit`, for which scoring all rows would take
    longer than training, it is a running mean of the medians of at most
    `MAX_PARTIAL_MEDIAN_ROWS` rows of each call, weighted as scores of a detector are.
    """
    if scores is not None:
        return weighted_median(scores.values, scores.weight)
    n_scored = MAX_MEDIAN_ROWS
    module = training.net.module_for("row_error", job.rows.X.dtype)
    if job.is_partial:
        n_scored = MAX_PARTIAL_MEDIAN_ROWS
        module = training.net.module_  # a copy in float64 takes time
    rows = job.rows.sample(n_scored)
    median = weighted_median(score_rows(module, rows), rows.weight)
    if not job.is_partial or job.earlier is None or not np.isfinite(median):
        return median
    n_earlier = min(float(job.earlier.summary.weight.max()), MAX_EARLIER_WEIGHT)
    n_added = float(job.summary.weight.max())
    n_earlier *= (n_earlier / (n_earlier + n_added)) ** SCORE_DECAY
    share = n_added / (n_earlier + n_added)
    return (1 - share) * job.earlier.median_score + share * median
