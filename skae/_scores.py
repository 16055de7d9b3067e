"""Scores of the training rows, from which thresholds and p-values follow."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from skae._job import Job, ResidualSums, TrainingScores
from skae._kept_rows import keep_rows
from skae._prediction import (
    FoldScores,
    isolated_rows,
    score_folds,
    score_rows,
    sum_residuals,
)
from skae._summary import Summary, weighted_median
from skae.engine.net import AutoencoderNet

# Lower bound of the mean residual by which residuals are divided, in standard
# deviations of the feature: the mean is 0 if a feature is reproduced exactly, such as a
# constant.
MIN_RESIDUAL = 1e-3

# Number of rows from which the mean residuals are computed. The relative standard error
# of the mean of so many residuals is about half a percent.
MAX_RESIDUAL_ROWS = 2**15

# Upper bound of the weight of all rows before the last `partial_fit`, in the mean
# residuals, in the scores for the threshold and in the statistics of codes: they were
# computed with a network that had less training.
MAX_EARLIER_WEIGHT = 1000.0

# Exponent with which the weight of the scores of earlier calls decreases, see
# `TrainingScores.added_to`.
SCORE_DECAY = 3.0

# Relative difference up to which two scores count as equal.
ROUNDING = 1e3 * float(np.finfo(np.float64).eps)

# Largest number of recorded scores of rows by the members that did not learn them. The
# standard error of a p-value of .05 is then .001, and less for smaller ones.
MAX_HELD_OUT_ROWS = 2**15

# Upper bound of the number of recorded scores of earlier calls of `partial_fit`.
MAX_RECORDED = 8192


# Number of training rows whose scores give the median score of a transformer, in `fit`
# and in each `partial_fit`.
MAX_MEDIAN_ROWS = 64
MAX_PARTIAL_MEDIAN_ROWS = 32


class Scored(NamedTuple):
    """Scores of the training rows, and what they were computed with.

    All are None if training rows are not scored.

    Attributes
    ----------
    scores : TrainingScores or None
        Scores of the distinct rows; after `partial_fit`, also of earlier calls.
    in_order : ndarray of shape (n_samples,) or None
        Scores of the rows of this call in the order in which they were passed.
    held_out : tuple of TrainingScores or None
        For each fold, the scores by the members that did not learn it.
    residuals : ResidualSums or None
    """

    scores: TrainingScores | None = None
    in_order: np.ndarray | None = None
    held_out: tuple[TrainingScores, ...] | None = None
    residuals: ResidualSums | None = None


def score_training_rows(job: Job, net: AutoencoderNet, summary: Summary) -> Scored:
    """Complete the module of a trained net, if it scores rows, and score the rows.

    Parameters
    ----------
    job : Job
    net : AutoencoderNet
        Its module gets the mean residuals and the kept rows of its score.
    summary : Summary
        Statistics of the rows, those of earlier calls of `partial_fit` included.
    """
    residuals = scale = None
    if job.error is not None and job.parts.bottleneck.has_plain_score:
        # Also for error="loss": the next `partial_fit` may have another error.
        residuals = _sum_residuals(job, net)
    if residuals is not None and job.error == "log":
        scale = _residual_scale(residuals, summary, net)
    net.module_.residual_scale = scale
    keep_rows(job, net)
    if job.error is None:
        return Scored()
    by_fold = _score_folds(job, net)
    scores = _score_rows(job, net, by_fold)
    return Scored(
        scores=_with_earlier(job, net, scores).in_descending_order(),
        in_order=_scores_in_order(job, net, scores.values),
        held_out=_held_out_scores(job, net, by_fold),
        residuals=residuals,
    )


def _sum_residuals(job: Job, net: AutoencoderNet) -> ResidualSums:
    """Sum the absolute residuals of the training rows and of earlier calls.

    Of more than `MAX_RESIDUAL_ROWS` rows without a missing entry, a sample represents
    the others.
    """
    is_complete = job.summary.weight.min() >= (1 - 1e-9) * job.rows.weight.sum()
    n_drawn = MAX_RESIDUAL_ROWS if is_complete else math.inf
    rows = job.rows.drawn(n_drawn, job.split_seed)
    total, weight = sum_residuals(net.module_for("residuals", rows.X.dtype), rows)
    represented = job.rows.weight.sum() / rows.weight.sum()
    total, weight = represented * total, represented * weight
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

    It is 1 for a categorical feature, see `CategoricalLoss.residuals_from_raw`.

    Returns
    -------
    residual_scale : Tensor of shape (n_features,) or (n_members, 1, n_features)
    """
    module = net.module_
    deviation = summary.deviation / module.scaler.factor.cpu().numpy()
    scale = np.maximum(
        residuals.total / np.maximum(residuals.weight, 1e-300), MIN_RESIDUAL * deviation
    )
    layout = module.loss.layout
    if layout is not None:  # the errors of categories are cross-entropies
        scale = scale[..., layout.first]
        scale[..., np.array(layout.is_categorical)] = 1.0
    tensor = torch.from_numpy(scale)
    if tensor.ndim == 2:  # one axis more, for the rows of a batch
        tensor = tensor[:, None]
    return tensor.to(module.code_factor.device)


def _score_folds(job: Job, net: AutoencoderNet) -> FoldScores | None:
    """Score the training rows by the members that did not learn each fold.

    Of rows that are read in partitions, the sample that is in memory.
    """
    if job.error is None or job.holdout is None:
        return None
    module = net.module_for("errors_by_fold", job.rows.X.dtype)
    return score_folds(module, job.rows.pool, job.holdout)


def _score_rows(
    job: Job, net: AutoencoderNet, by_fold: FoldScores | None
) -> TrainingScores:
    """Score the training rows of this call."""
    assert job.error is not None
    rows = job.rows
    if by_fold is None or rows.is_streamed:
        module = net.module_for("row_error", rows.X.dtype)
        values, isolated = score_rows(module, rows), isolated_rows(module, rows)
    else:
        values, isolated = by_fold.all, by_fold.isolated
    return TrainingScores(
        values,
        np.array(rows.weight),
        rounding=ROUNDING,
        error=job.error,
        n_seen=float(rows.weight.sum()),
        isolated=isolated,
    )


def _scores_in_order(job: Job, net: AutoencoderNet, scores: np.ndarray) -> np.ndarray:
    """Return the scores of all rows that were passed, in their order.

    Only rows of weight zero are evaluated.

    Parameters
    ----------
    job : Job
    net : AutoencoderNet
    scores : ndarray of shape (n_rows,)
        Scores of the rows of the job.

    Returns
    -------
    in_order : ndarray of shape (n_samples,)
        NaN for rows without an observed entry. It is `scores` itself if the rows of the
        job are those that were passed.
    """
    if job.positions is None:
        return scores
    in_order = scores[job.positions]
    others, where, empty = job.rows.left_out(job.positions)
    if len(others):
        module = net.module_for("row_error", others.X.dtype)
        in_order[where] = score_rows(module, others)
    in_order[empty] = np.nan
    return in_order


def _with_earlier(
    job: Job, net: AutoencoderNet, scores: TrainingScores
) -> TrainingScores:
    """Add the scores of earlier calls in a `partial_fit`."""
    earlier = None if job.earlier is None else job.earlier.scores
    if earlier is None or not _continues(job, net, earlier):
        return scores
    earlier = earlier.condensed(MAX_RECORDED)
    return scores.added_to(earlier, MAX_EARLIER_WEIGHT, SCORE_DECAY)


def _continues(job: Job, net: AutoencoderNet, earlier: TrainingScores) -> bool:
    """Whether earlier scores are of the same kind as those of this `partial_fit`."""
    assert job.earlier is not None
    neighbors = [each.module_.neighbors for each in (job.earlier.net, net)]
    before, now = (None if each is None else each.kind for each in neighbors)
    return job.is_partial and earlier.error == job.error and before == now


def _held_out_scores(
    job: Job, net: AutoencoderNet, by_fold: FoldScores | None
) -> tuple[TrainingScores, ...] | None:
    """Return the scores of the training rows in each fold by the members without it.

    Of more than `MAX_HELD_OUT_ROWS` rows, a sample is recorded. In `partial_fit`, the
    scores of earlier calls are added as in `_with_earlier`.
    """
    if job.error is None or job.holdout is None or by_fold is None:
        return None
    rows, scores = job.rows.pool, by_fold.by_fold
    drawn = rows.drawn_positions(MAX_HELD_OUT_ROWS, job.split_seed)
    if drawn is not None:
        rows, scores = rows.subset(drawn), scores[drawn]
    fold = job.holdout.fold_of(rows)
    held_out = tuple(
        TrainingScores(
            scores[fold == i, i],
            np.array(rows.weight[fold == i]),
            rounding=ROUNDING,
            error=job.error,
            n_seen=float(rows.weight[fold == i].sum()),
        )
        for i in range(job.holdout.n_folds)
    )
    earlier = None if job.earlier is None else job.earlier.held_out_scores
    if earlier is not None and _continues(job, net, earlier[0]):
        n_folds = len(held_out)
        held_out = tuple(
            added.added_to(
                scored.condensed(MAX_RECORDED // n_folds),
                MAX_EARLIER_WEIGHT / n_folds,
                SCORE_DECAY,
            )
            for scored, added in zip(earlier, held_out, strict=True)
        )
    return tuple(scores.in_descending_order() for scores in held_out)


def median_score(job: Job, net: AutoencoderNet, scores: TrainingScores | None) -> float:
    """Return the median score of the training rows.

    If the training rows are not scored otherwise, it is the median of at most
    `MAX_MEDIAN_ROWS` of them. In a `partial_fit`, for which scoring all rows would take
    longer than training, it is a running mean of the medians of at most
    `MAX_PARTIAL_MEDIAN_ROWS` rows of each call, weighted as scores of a detector are.
    """
    if scores is not None:
        return weighted_median(scores.values, scores.weight)
    n_scored = MAX_MEDIAN_ROWS
    module = net.module_for("row_error", job.rows.X.dtype)
    if job.is_partial:
        n_scored = MAX_PARTIAL_MEDIAN_ROWS
        module = net.module_  # a copy in float64 takes time
    rows = job.rows.sample(n_scored)
    median = weighted_median(score_rows(module, rows), rows.weight)
    if not job.is_partial or job.earlier is None or not np.isfinite(median):
        return median
    n_earlier = min(float(job.earlier.summary.weight.max()), MAX_EARLIER_WEIGHT)
    n_added = float(job.summary.weight.max())
    n_earlier *= (n_earlier / (n_earlier + n_added)) ** SCORE_DECAY
    share = n_added / (n_earlier + n_added)
    return (1 - share) * job.earlier.median_score + share * median
