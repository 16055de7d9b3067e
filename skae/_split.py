"""Which rows train a network, and which are held out from it."""

from __future__ import annotations

import math

import numpy as np

from skae._build import choose_recipe
from skae._job import Job
from skae.engine.networks import Split

# Up to this number of distinct rows, early stopping is cross-validated: on seven small
# tables (80 to 442 rows, one to five components) five folds removed about .05 more of
# PCA's held-out error than a tenth of the rows held out, and the worst fit was nearer
# to PCA.
MAX_CROSS_VALIDATED = 500
N_FOLDS = 5

# Largest number of held-out rows whose loss is computed. The relative standard error of
# the mean gain of so many rows is about half a percent, and after each epoch, refining
# the codes of 100,000 rows takes a sixth of the time of an epoch of 900,000 rows.
MAX_JUDGED_ROWS = 2**15


def split_rows(job: Job, *, may_fold: bool = True) -> Split:
    """Split rows into training and held-out rows, or into folds.

    Rows that the user passed for validation are the held-out rows, if there are any.
    """
    rows, settings = job.rows, job.settings
    if job.validation_rows is not None:
        return Split(rows.normalised(), job.validation_rows.normalised())
    n_rows = len(rows)
    early_stopping = settings.early_stopping
    if early_stopping == "auto":
        early_stopping = n_rows >= 2
    if job.is_partial or not early_stopping:
        return Split(rows.drawn(_max_rows(job), job.split_seed).normalised(), None)
    may_fold &= settings.early_stopping == "auto" and not job.is_resumed
    if may_fold and n_rows <= MAX_CROSS_VALIDATED and not rows.is_streamed:
        fold, order = np.empty(n_rows, dtype=np.intp), rows.shuffled(job.split_seed)
        for i, part in enumerate(np.array_split(order, min(N_FOLDS, n_rows))):
            fold[part] = i
        return Split(rows.normalised(), None, fold)
    fraction = settings.validation_fraction
    train, held_out = rows.divided(fraction, MAX_JUDGED_ROWS, job.split_seed)
    return Split(train.normalised(), held_out.normalised())


def _max_rows(job: Job) -> float:
    """Return the number of rows that a training without held-out rows reads."""
    settings, defaults = job.settings, job.defaults
    if job.is_partial or settings.max_epochs != "auto" or not defaults.samples_rows:
        return math.inf
    recipe = choose_recipe(job)
    batch_size = settings.batch_size
    if isinstance(batch_size, str):
        batch_size = recipe.auto_batch_size(len(job.rows))
    return recipe.n_steps * batch_size
