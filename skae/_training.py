"""Training on validated rows: held-out rows, cross-validation, and the result."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

from skae._build import Start, build_plan, build_start, starts_at_pca
from skae._callbacks import Task
from skae._generator import isolated_generator
from skae._job import Job, LossCurves, ResidualSums, Trained, TrainingScores
from skae._parameters import are_equal
from skae._prediction import evaluate, evaluate_blocks, score_rows
from skae._processor import flushed_denormals, matmul_precision, threads_for
from skae._progress import Progress
from skae._summary import Summary
from skae.engine.interrupt import Interruption
from skae.engine.judge import Judgement
from skae.engine.net import AutoencoderNet, without_batches
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

# Upper bound of the weight, in the mean residuals, of all rows before the last
# `partial_fit`: their residuals were those of a network with less training.
MAX_EARLIER_WEIGHT = 1000.0


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
        On Ctrl-C before the training starts, and in a `partial_fit` before the end of
        the epoch. Otherwise Ctrl-C ends the training early.
    """
    if is_up_to_date(job):
        assert job.earlier is not None
        return _finish(
            job, TrainingRun(job.earlier.net.snapshot(), []), digest=job.digest
        )
    with (
        isolated_generator(job.parts.network.draws_globally, job.seed),
        torch.inference_mode(False),  # a caller may have disabled gradients
        torch.enable_grad(),
    ):
        with interruption.allowed():
            start = build_start(job)
        splits = split_rows(job)
        if len(splits) > 1:
            training = _train_by_folds(job, start, splits, task, interruption)
        else:
            training = _train_once(job, start, splits[0], task, interruption)
    if job.is_partial and interruption.requested and not training.epochs:
        raise KeyboardInterrupt  # the estimator remains as it was
    # The digest lets a later warm start on the same rows skip training.
    is_complete = not (job.is_partial or interruption.requested)
    return _finish(job, training, digest=job.digest if is_complete else "")


def is_up_to_date(job: Job) -> bool:
    """Whether a warm start can skip training: same rows and same parameters."""
    earlier = job.earlier
    return (
        earlier is not None
        and not job.is_partial
        and job.digest == earlier.digest != ""
        and job.parts.network.is_determined_by_parameters
        and are_equal(job.parameters, earlier.parameters)
    )


def max_subtasks(job: Job) -> int:
    """Upper bound on the number of subtasks of a fit: trainings or epochs."""
    if is_up_to_date(job):
        return 0
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
    np.random.default_rng([job.seed, 0]).shuffle(order)
    n_held_out = min(math.ceil(settings.validation_fraction * n_rows), n_rows - 1)
    held_out = [order[:n_held_out]]
    is_automatic = settings.early_stopping == "auto" and job.earlier is None
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
    """
    earlier = job.earlier
    plan = _plan(job, split)
    if max_epochs is not None:
        plan = plan._replace(max_epochs=max_epochs)
    # The epochs of earlier fits, which this training resumes.
    history = [] if earlier is None else earlier.net.history
    history = [without_batches(epoch) for epoch in history]
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
            best_epoch=0 if earlier is None else earlier.net.best_epoch_,
        )
        state = earlier.optimizer if earlier and job.is_partial else None
        trainer = Trainer(net, split, job.seed, interruption, state)
    with (
        threads_for(plan.batch_size * module.work, job.settings.n_threads),
        flushed_denormals(),
        matmul_precision(job.settings.precision),
    ):
        trainer.run()
    epochs = net.history[len(history) :]
    if job.is_partial and epochs:  # else a callback has stopped the only epoch
        state = trainer.optimizer_state()
    net.trim_for_prediction()
    return TrainingRun(net, epochs, net.judgement_, state)


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
        callbacks.append(("observer", observer))
    # Copies, since skorch changes callbacks.
    callbacks.extend(copy.deepcopy(list(job.settings.callbacks or [])))
    if job.settings.verbose:
        progress = Progress(int(job.settings.verbose), name, interruption)
        callbacks.append(("progress", progress))
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
    initial network is a PCA and the mean gain over the held-out rows of all folds is
    not significant, the initial network is returned. After Ctrl-C, the network of the
    fold with the largest mean gain is returned.
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
        net = AutoencoderNet.restored(start.module, [], 0, settings)
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
        )
    except KeyboardInterrupt:
        interruption.requested = True
    if interruption.requested:
        return _best_fold(folds)
    training = TrainingRun(training.net, epochs, judgement)
    last.end(partial(_finish, job, training))
    return training


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
    """Return the mean losses of each epoch over the folds that ran it."""
    return [
        {
            name: float(np.mean([epoch[name] for epoch in epochs if epoch]))
            for name in ("train_loss", "valid_loss")
        }
        for epochs in zip_longest(*histories)
    ]


# The fitted model


def _current_model(job: Job, net: AutoencoderNet) -> Trained:
    """Return the model of a net during its training, for scikit-learn's callbacks."""
    n_earlier = 0 if job.earlier is None else len(job.earlier.net.history)
    copied = net.snapshot()
    return _finish(job, TrainingRun(copied, copied.history[n_earlier:]))


def _finish(job: Job, training: TrainingRun, *, digest: str = "") -> Trained:
    """Combine a trained net with scores and statistics of the training rows."""
    net, earlier = training.net, job.earlier
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
    return Trained(
        net=net,
        parts=job.parts,
        parameters=job.parameters,
        feature_names=job.feature_names,
        n_rows=n_rows,
        summary=summary._replace(is_binary=None),
        curves=_curves(job, training),
        bottleneck_attributes=_bottleneck_attributes(job, net),
        scores=_score_training_rows(job, net) if job.error is not None else None,
        residuals=residuals,
        judgement=training.judgement,
        optimizer=training.optimizer,
        digest=digest,
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
        return evaluate(net.module_in(rows.X.dtype), method, rows)

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
    module = net.module_in(rows.X.dtype)
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


def _score_training_rows(job: Job, net: AutoencoderNet) -> TrainingScores:
    rows = job.rows
    return TrainingScores(
        score_rows(net.module_in(rows.X.dtype), rows),
        np.array(rows.weight),
        rounding=1e3 * float(np.finfo(rows.X.dtype).eps),
    )
