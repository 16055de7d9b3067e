"""Training on validated rows: held-out rows, cross-validation, and the result."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from skae._agreement import check_agreement
from skae._blocks import Block, divide, join_nets, n_blocks, run_blocks
from skae._build import (
    Start,
    build_plan,
    build_start,
    join_members,
)
from skae._callbacks import Task
from skae._convergence import find_warnings
from skae._explained import RowSquares, VarianceCurve
from skae._folds import Holdout, choose_holdout, row_keys
from skae._generation import fit_generation
from skae._generator import isolated_generator
from skae._job import Job, LossCurves, Trained
from skae._memory import is_out_of_memory
from skae._module import Autoencoder
from skae._ordered import Ordered
from skae._prediction import evaluate, score_rows
from skae._processor import (
    flushed_denormals,
    matmul_precision,
    own_settings,
    threads_for,
)
from skae._progress import EpochLog, Progress, logger
from skae._rows import MAX_CANONICAL_ROWS, Rows
from skae._scores import median_score, score_training_rows
from skae._span import reduced
from skae._split import MAX_JUDGED_ROWS, split_rows
from skae._summary import summarize, weighted_median
from skae._user_callbacks import (
    check_training,
    copies,
    prints_history,
    without_writers,
)
from skae._whitening import summarize_codes
from skae.engine.interrupt import Interruption
from skae.engine.judge import Judgement
from skae.engine.net import INTERNAL, AutoencoderNet, without_batches
from skae.engine.networks import MemberFolds, Split
from skae.engine.plan import Plan
from skae.engine.processes import alone, current_processes
from skae.engine.trainer import OptimizerState, Trainer, sampled_for_widths

# Number of weights of a network up to which early stopping is cross-validated: weights,
# gradients and moments of the six networks then take at most 400 MB.
MAX_FOLDED_WEIGHTS = 2**22

# Number of rows whose scores are computed with each number of ordered components.
MAX_WIDTH_ROWS = 100

# Lower bound of minus the median score by which ratios of scores are computed.
TINY = float(np.finfo(np.float64).tiny)


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
    is_learnt : ndarray of bool of shape (n_components,) or None
        With how many of ordered components the network is better than the PCA from
        which it started; None stands for all.
    pca : Autoencoder or None
        This PCA.
    curve : VarianceCurve or None
        Explained variance for each number of ordered components.
    """

    net: AutoencoderNet
    epochs: list[dict[str, Any]]
    judgement: Judgement | None = None
    optimizer: OptimizerState | None = None
    is_learnt: np.ndarray | None = None
    pca: Autoencoder | None = None
    curve: VarianceCurve | None = None


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
    with interruption.allowed():
        check_agreement(job)
    if job.checkpoint is not None:
        seeds = job.seed, job.split_seed
        job = replace(job, checkpoint=job.checkpoint.of_part(*seeds))
    draws_globally = job.parts.network.draws_globally
    with isolated_generator(draws_globally, job.seed, job.device):
        with interruption.allowed():
            is_judged = split_rows(job).is_judged
            check_training(job.settings.callbacks, has_held_out_rows=is_judged)
            job = replace(job, holdout=_holdout(job), validation_rows=_judged_rows(job))
            trained_job = reduced(job)
            start = build_start(trained_job)
            split = split_rows(trained_job, may_fold=_may_fold(trained_job, start))
            if job.holdout is not None:
                split = _with_member_folds(split, job.holdout, job.n_kept)
        n_parts = n_blocks(trained_job, start, split, task)
        if n_parts == 1:
            training = _train_network(trained_job, start, split, task, interruption)
    if n_parts > 1:  # not in the context, which a thread would wait for
        blocks = divide(trained_job, start, split, n_parts)
        training = _train_in_blocks(blocks, interruption)
        trained_job = _with_trained_members(trained_job, training)
    is_addition = job.is_partial or job.n_kept > 0
    if is_addition and interruption.requested and not training.epochs:
        raise KeyboardInterrupt  # the estimator remains as it was
    trained = _finish(trained_job, training)
    if job.share is not None and job.earlier is None and training.curve is not None:
        n_components = training.curve.fewest(job.share)
        job = replace(job, n_components=n_components)
        trained = trained.of_width(n_components)
    may_warn = current_processes().rank == 0 and not job.is_partial
    if may_warn and not interruption.requested:
        with alone():
            warnings = find_warnings(job, trained)
        trained = replace(trained, warnings=warnings)
    return trained


def max_subtasks(job: Job) -> int:
    """Upper bound on the number of subtasks of a fit, its epochs."""
    # Whether the rows are folded depends on the network, which is not built yet.
    with alone():  # one of several processes asks for it
        splits = [split_rows(job, may_fold=may_fold) for may_fold in (True, False)]
    return max(_plan(job, split).max_epochs for split in splits)


# Held-out rows


def _may_fold(job: Job, start: Start) -> bool:
    """Whether early stopping may be cross-validated, see `Split.fold`."""
    parts = (start.module, start.objective)
    n_weights = sum(p.numel() for part in parts for p in part.parameters())
    return not job.parts.network.may_mix_rows and n_weights <= MAX_FOLDED_WEIGHTS


def _holdout(job: Job) -> Holdout | None:
    """Return the rows that the members of an ensemble do not learn, if any."""
    earlier, ensemble = job.earlier, job.ensemble
    if ensemble is None or not job.parts.members_stack:
        return None
    known = None if earlier is None else earlier.holdout
    if job.is_resumed:  # rows that a member has learnt cannot be held out from it
        return known
    widths = ensemble.widths or (job.n_components,) * ensemble.n_members
    if known is not None:
        return known.extended(widths)
    # A `partial_fit` may begin with few rows.
    # Of many rows that are read in partitions, all keys would take much memory.
    rows = None if job.is_partial or job.rows.is_streamed else job.rows
    return choose_holdout(rows, widths, job.split_seed, job.n_kept)


def _with_member_folds(split: Split, holdout: Holdout, n_kept: int) -> Split:
    """Return the split with the training rows that the trained members do not learn."""
    fold, group = holdout.fold_of(split.train), holdout.group[n_kept:]
    return split._replace(members=MemberFolds(fold, group))


def _judged_rows(job: Job) -> Rows | None:
    """Return the rows of the user that judge the training, independent of their order.

    Many rows, which are not in canonical form, are sorted by a random number that
    depends on their values, and at most `MAX_JUDGED_ROWS` of them are returned.
    """
    rows = job.validation_rows
    if rows is None or len(rows) <= min(MAX_CANONICAL_ROWS, MAX_JUDGED_ROWS):
        return rows
    order = np.lexsort((rows.weight, row_keys(rows, job.split_seed)))
    return rows.subset(order[:MAX_JUDGED_ROWS])


def _plan(job: Job, split: Split) -> Plan:
    n_rows = len(split.train)
    if job.is_partial and job.earlier is not None:
        # The batch size and the learning rate are the same for all pieces.
        n_rows = job.earlier.n_rows
    return build_plan(job, n_rows, early_stopping=split.is_judged)


# The training


def _train_network(
    job: Job, start: Start, split: Split, task: Task, interruption: Interruption
) -> TrainingRun:
    """Train a network, the module of `start`, in place.

    Raises
    ------
    MemoryError
        If the memory is not enough for a step.
    """
    plan = _plan(job, split)
    try:
        return _train_by_plan(job, plan, start, split, task, interruption)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(
            f"There is not enough memory on the device {str(job.device)!r} to train a "
            f"network with {start.module.sizes} with batch_size={plan.batch_size}. "
            "Lower batch_size, or the sizes of the layers (n_components, "
            "hidden_layer_sizes or network)."
        ) from error


def _train_by_plan(
    job: Job,
    plan: Plan,
    start: Start,
    split: Split,
    task: Task,
    interruption: Interruption,
) -> TrainingRun:
    earlier, settings = job.earlier, job.settings
    verbose = max(int(settings.verbose), prints_history(settings.callbacks))
    history, best_epoch = _earlier_epochs(job)
    with interruption.allowed():
        module, objective, pca = start
        current_model = partial(_current_model, job)
        net = AutoencoderNet(
            module,
            objective=objective,
            plan=plan,
            callbacks=_callbacks(job, task, interruption, current_model),
            device=str(job.device),
            history=history,
            best_epoch=best_epoch,
            verbose=0 if current_processes().rank else verbose,
        )
        state = earlier.optimizer if earlier and job.is_partial else None
        trainer = Trainer(
            net,
            split,
            job.seed,
            interruption,
            state,
            pca,
            job.checkpoint,
            job.parts.network.draws_globally,
        )
    with (
        threads_for(plan.batch_size * module.work, settings.n_threads),
        flushed_denormals(),
        matmul_precision(settings.precision),
    ):
        trainer.run()
        is_learnt = _learnt_widths(job, trainer)
    curve = _variance_curve(job, trainer, is_learnt)
    trainer.networks.release()
    epochs = net.history[len(history) :]
    if job.is_partial and epochs:  # else a callback has stopped the only epoch
        state = trainer.optimizer_state()
    net.trim_for_prediction()
    return TrainingRun(net, epochs, net.judgement_, state, is_learnt, pca, curve)


def _train_in_blocks(blocks: list[Block], interruption: Interruption) -> TrainingRun:
    """Train the members of each block, and combine their networks."""
    runs = run_blocks(_train_block, blocks, interruption)
    n_earlier = len(_earlier_epochs(blocks[0].job)[0])
    net = join_nets([run.net for run in runs], n_earlier)
    return TrainingRun(net, net.history[n_earlier:])


@own_settings()
def _train_block(block: Block, interruption: Interruption) -> TrainingRun:
    """Train the members of a block, in a process of joblib or in this one."""
    job = block.job
    with isolated_generator(job.parts.network.draws_globally, job.seed, job.device):
        return _train_network(job, block.start(), block.split, Task(), interruption)


def _with_trained_members(job: Job, training: TrainingRun) -> Job:
    """Return a job on the members that were trained before Ctrl-C."""
    if job.holdout is None:
        return job
    n_members = job.n_kept + training.net.module_.n_members
    return replace(job, holdout=job.holdout.of_first(n_members))


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
) -> list[Any]:
    """Return the callbacks of the training, in the order in which they are called.

    The first notifies scikit-learn's callbacks, the last ones show and log the
    progress. Of several processes, the first one alone does so and has callbacks that
    write.
    """
    if current_processes().rank:
        return without_writers(copies(job.settings.callbacks))
    callbacks: list[Any] = []
    observer = task.epoch_callback(current_model, interruption)
    if observer is not None:
        callbacks.append((INTERNAL + "observer", observer))
    callbacks.extend(copies(job.settings.callbacks))
    if job.settings.verbose:
        progress = Progress(int(job.settings.verbose), interruption)
        callbacks.append((INTERNAL + "progress", progress))
    if logger.isEnabledFor(logging.INFO):
        callbacks.append((INTERNAL + "log", EpochLog()))
    return callbacks


# The fitted model


def _current_model(job: Job, net: AutoencoderNet) -> Trained:
    """Return the model of a net during its training, for scikit-learn's callbacks."""
    n_earlier = 0 if job.earlier is None else len(job.earlier.net.history)
    copied = net.snapshot()
    with alone():  # one of several processes asks for it
        return _finish(job, TrainingRun(copied, copied.history[n_earlier:]))


def _finish(job: Job, training: TrainingRun) -> Trained:
    """Combine a trained net with scores and statistics of the training rows.

    If only additional members were trained, the net becomes that of all members.
    """
    net = training.net
    if job.reduction is not None:
        expand = job.reduction.expand
        net = net.with_module(expand(net.module_))
        pca = None if training.pca is None else expand(training.pca)
        training = replace(training, net=net, pca=pca)
        job = job.reduction.job
    earlier = job.earlier
    if earlier is not None and job.n_kept:
        net = net.with_module(join_members(earlier.net.module_, net.module_))
    net, ordered = _ordered(job, training, net)
    summary, n_rows = job.summary, len(job.rows)
    if job.is_partial and earlier is not None:
        summary, n_rows = earlier.summary.merged(summary), earlier.n_rows
    scored = score_training_rows(job, net, summary)
    return Trained(
        net=net,
        parts=job.parts,
        parameters=job.parameters,
        feature_names=job.feature_names,
        categories=job.categories,
        n_rows=n_rows,
        summary=summary._replace(is_binary=None),
        curves=_curves(job, training),
        bottleneck_attributes=_bottleneck_attributes(job, net),
        scores=scored.scores,
        residuals=scored.residuals,
        judgement=training.judgement,
        optimizer=training.optimizer,
        shape=job.shape,
        median_score=median_score(job, net, scored.scores),
        scores_in_order=scored.in_order,
        holdout=job.holdout,
        held_out_scores=scored.held_out,
        scale=job.settings.scale,
        code_summaries=summarize_codes(job, net, ordered),
        ordered=ordered,
        array_space=job.array_space,
        generation=fit_generation(job, net, ordered),
    )


def _learnt_widths(job: Job, trainer: Trainer) -> np.ndarray | None:
    """Return `TrainingRun.is_learnt`."""
    earlier = None if job.earlier is None else job.earlier.ordered
    if trainer.pca is None or job.is_partial:
        return None
    is_learnt = trainer.compare_with_pca()
    if earlier is not None and trainer.judge.best_epoch == 0:
        return earlier.is_learnt  # the network is as it was
    return is_learnt


def _variance_curve(
    job: Job, trainer: Trainer, is_learnt: np.ndarray | None
) -> VarianceCurve | None:
    """Return the explained variance of held-out rows for each number of components.

    Where the PCA is kept, it is that of a PCA of the other rows, see `_pcas`. It is
    that of training rows where none are held out. In a `partial_fit` there is none,
    since it would take longer than the epoch.
    """
    if not job.is_ordered or job.is_partial:
        return None
    networks, net, n_components = trainer.networks, trainer.net, job.n_components
    judged = networks.judged or [(networks.first, trainer.split.train)]
    is_pca = np.zeros(n_components, dtype=bool) if is_learnt is None else ~is_learnt
    if trainer.pca is not None and trainer.judge.best_epoch == 0:
        # The network has its initial weights: those of the PCA, unless it was resumed.
        is_pca |= not job.is_resumed
    modules = [network.module for network, _ in judged]
    pcas = _pcas(job, trainer) if is_pca.any() else modules
    squares: list[list[RowSquares]] = [[] for _ in range(n_components)]
    for module, pca, (_, rows) in zip(modules, pcas, judged, strict=True):
        learnt, kept = (net.with_module(each).snapshot() for each in (module, pca))
        sample = sampled_for_widths(rows, n_components)
        for k, found in enumerate(squares):
            used = kept if is_pca[k] else learnt
            part = used.with_module(used.module_.of_width(k + 1))
            found.append(RowSquares.of(part, sample, like=net))
    return VarianceCurve.of(
        [RowSquares.joined(parts) for parts in squares],
        is_held_out=bool(networks.judged),
    )


def _pcas(job: Job, trainer: Trainer) -> list[Autoencoder]:
    """Return a PCA for each part of the held-out rows, of the rows without this part.

    The PCA that is kept is that of all rows, which would explain more of the held-out
    rows than of new ones.
    """
    assert trainer.pca is not None
    n_parts = max(1, len(trainer.networks.judged))
    if job.validation_rows is not None or not trainer.networks.judged:
        return [trainer.pca] * n_parts
    pcas = []
    for rows in trainer.split.training_parts():
        part = replace(job, rows=rows, summary=summarize(rows), earlier=None)
        pca = build_start(part).pca
        assert pca is not None
        pcas.append(pca)
    return pcas


def _ordered(
    job: Job, training: TrainingRun, net: AutoencoderNet
) -> tuple[AutoencoderNet, Ordered | None]:
    """Return the net of all components, and what was learnt for fewer of them."""
    if not job.is_ordered:
        return net, None
    n_components = net.module_.n_components
    is_learnt, other = training.is_learnt, None
    if is_learnt is None:
        is_learnt = np.ones(n_components, dtype=bool)
    if training.pca is not None:
        pca = training.pca.eval().to(net.module_.scaler.mean.device)
        other = net.with_module(pca)
    if not is_learnt[-1]:
        assert other is not None
        net, other = other, net
    earlier = None if job.earlier is None else job.earlier.ordered
    if job.is_partial and earlier is not None:  # scores would take as long as the epoch
        return net, Ordered(is_learnt, other, earlier.score_ratios)
    ordered = Ordered(is_learnt, other, np.ones(n_components), training.curve)
    rows = job.rows.sample(MAX_WIDTH_ROWS)
    medians = np.empty(n_components)
    for width in range(1, n_components + 1):
        part, _ = ordered.of_width(net, width)
        median = weighted_median(score_rows(part.module_, rows), rows.weight)
        medians[width - 1] = min(median, -TINY)
    return net, ordered._replace(score_ratios=medians / medians[-1])


def _curves(job: Job, training: TrainingRun) -> LossCurves:
    """Return the loss curves of the earlier fits and of this training."""
    earlier = LossCurves() if job.earlier is None else job.earlier.curves
    n_before = 0 if job.earlier is None else len(job.earlier.net.history)
    n_best = training.net.best_epoch_ - n_before
    epochs = training.epochs
    return LossCurves(
        earlier.train + tuple(epoch["train_loss"] for epoch in epochs),
        earlier.aligned_valid
        + tuple(epoch.get("valid_loss", math.nan) for epoch in epochs),
        len(earlier.train) + n_best if n_best > 0 else earlier.best_epoch,
    )


def _bottleneck_attributes(job: Job, net: AutoencoderNet) -> dict[str, Any]:
    """Return the fitted attributes of the bottleneck.

    In an ensemble, the first axis of each is that of the members. Of rows that are read
    in partitions, they are those of a sample.
    """
    rows, bottleneck = job.rows.pool, job.parts.bottleneck

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
