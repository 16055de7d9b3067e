"""Signs that a fit has failed, of which `fit` warns."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from skae._build import starts_near_pca
from skae._job import Job, Trained, pca_obstacle, starts_at_pca
from skae._module import Autoencoder, without_refinement
from skae._pca import principal_axes
from skae._prediction import evaluate, evaluate_blocks
from skae._rows import Rows
from skae._summary import summarize
from skae.engine.objective import trimmed_share

# A fit has failed if it explains less than this share of what PCA explains, or if more
# than this share of its components are constant.
MIN_SHARE_OF_PCA = 0.1
MAX_DEAD_SHARE = 0.1

# Share of the variance up to which what a network does not explain is rounding.
MAX_UNEXPLAINED = 1e-6

# Relative range of a component up to which it is constant, in units of machine epsilon.
ROUNDING = 10


class Comparison(NamedTuple):
    """Shares of the variance of rows that a network and their PCA explain."""

    explained: float
    explained_by_pca: float


def find_warnings(job: Job, trained: Trained) -> tuple[str, ...]:
    """Return the warnings that a completed `fit` has to issue.

    Parameters
    ----------
    job : Job
        Inputs of the fit, whose rows are those that the model was trained on.
    trained : Trained
        Result of the fit.

    Returns
    -------
    warnings : tuple of str
        Messages, each of which names a parameter to change.
    """
    messages = [_warning_of_epochs(job, trained), _warning_of_share(job, trained)]
    # Rows are scored in training for a detector, which may explain little of them.
    if job.error is None:
        messages += [_warning_of_collapse(job, trained), _warning_of_dead(job, trained)]
    return tuple(message for message in messages if message)


def _warning_of_epochs(job: Job, trained: Trained) -> str:
    max_epochs = job.settings.max_epochs
    judgement = trained.judgement
    if trained.curves.best_epoch == 0:
        return _warning_of_start(job, trained)
    if judgement is None or max_epochs == "auto":
        return ""
    if judgement.n_epochs < int(max_epochs):
        return ""
    return (
        f"The held-out error was lowest in the last epoch: max_epochs={max_epochs} "
        "ended the training before it had converged. Increase max_epochs, or use "
        "max_epochs='auto'."
    )


def _warning_of_share(job: Job, trained: Trained) -> str:
    curve = None if trained.ordered is None else trained.ordered.curve
    if job.share is None or curve is None or curve.explained.max() >= job.share:
        return ""
    kind = "held-out" if curve.is_held_out else "training"
    return (
        f"The code explains {curve.explained.max():.4g} of the variance of the {kind} "
        f"rows with all of its {job.n_components} components, less than n_components="
        f"{job.share}. This is the number of components with which a PCA explains the "
        "share, or the largest that it can have. Use another share, or an int as "
        "n_components."
    )


def _warning_of_start(job: Job, trained: Trained) -> str:
    """Return a warning of a training that has left the initial weights as they were.

    After a search of its usual length, a PCA is kept because no network is better, and
    random weights because the training has failed.
    """
    settings, max_epochs = job.settings, job.settings.max_epochs
    n_before = 0 if job.earlier is None else len(job.earlier.net.history)
    n_epochs = len(trained.net.history) - n_before
    kind = "held-out" if trained.judgement is not None else "training"
    if max_epochs != "auto" and n_epochs >= int(max_epochs):
        if _reconstructs_exactly(job, trained):
            return ""
        at_pca = starts_at_pca(job.parts, settings.init)
        start = "the PCA of the training rows" if at_pca else "as it was initialized"
        return (
            f"The network remains {start}: max_epochs={max_epochs} ended the training "
            f"before the {kind} error had decreased significantly. Increase "
            "max_epochs, or use max_epochs='auto'."
        )
    starts_at_random = not (
        starts_at_pca(job.parts, settings.init)
        or starts_near_pca(job.parts, settings.init)
    )
    if not starts_at_random or n_epochs == 0 or _reconstructs_exactly(job, trained):
        return ""
    return (
        f"The network remains as it was initialized at random: none of {n_epochs} "
        f"epochs decreased the {kind} error. {_advice(job)}"
    )


def _reconstructs_exactly(job: Job, trained: Trained) -> bool:
    """Whether nothing was left to learn, up to a millionth of the variance."""
    module = trained.net.module_in(job.rows.X.dtype)
    return not _explained_share(job, module)[0] < 1 - MAX_UNEXPLAINED


def _warning_of_collapse(job: Job, trained: Trained) -> str:
    explained, explained_by_pca = compare_with_pca(job, trained)
    # Where a PCA explains nothing, as in equal rows, there is nothing to compare with.
    if not explained < MIN_SHARE_OF_PCA * explained_by_pca or explained_by_pca == 0:
        return ""
    return (
        f"The fit explains {explained:.3f} of the variance of the training "
        f"rows, where {job.n_components} principal components explain "
        f"{explained_by_pca:.3f}. "
        f"{_advice(job)}"
    )


def _warning_of_dead(job: Job, trained: Trained) -> str:
    n_dead = count_dead_units(job, trained)
    if n_dead <= MAX_DEAD_SHARE * job.n_components:
        return ""
    return (
        f"{n_dead} of {job.n_components} components are constant over the training "
        f"rows. {_advice(job, job.parts.bottleneck.remedy)}"
    )


def _advice(job: Job, remedy: str = "") -> str:
    """Return which parameters to change, the most likely causes first."""
    settings, parts = job.settings, job.parts
    causes = [
        ("penalty_weight", parts.penalty is not None),
        ("bottleneck_weight", parts.bottleneck.has_term),
        ("corruption_level", parts.corruption is not None),
        ("weight_decay", settings.weight_decay > 0.1),
        ("trim", settings.trim > 0.5),
        ("learning_rate", settings.learning_rate != "auto"),
    ]
    found = [
        f"{name}={getattr(settings, name)!r}" for name, is_likely in causes if is_likely
    ]
    changes = [f"decrease {', or '.join(found)}"] if found else []
    if remedy:
        changes.append(remedy)
    if settings.max_epochs != "auto":
        changes.append(f"increase max_epochs={settings.max_epochs}")
    if not found:
        if settings.init == "random" and pca_obstacle(parts) is None:
            changes.append("try init='pca'")
        changes.append("try another network, bottleneck or scale")
    advice = ", or ".join(changes)
    return f"{advice[0].upper()}{advice[1:]}."


def compare_with_pca(job: Job, trained: Trained) -> Comparison:
    """Compute the explained variance of a fit, and that of a PCA of the same width.

    Both are computed in the scaled space, from a sample of the training rows without
    those that the training trims. The axes of the PCA come from one half of the sample,
    and its explained variance from the other half.

    Returns
    -------
    comparison : Comparison
        `explained_by_pca` is 1 where the fit explains enough for no PCA to be computed,
        and 0 where all rows are equal.
    """
    module = trained.net.module_in(job.rows.X.dtype)
    # Refined codes explain more, but take several times as long.
    with without_refinement(module):
        explained, rows = _explained_share(job, module)
    if not explained < MIN_SHARE_OF_PCA:
        return Comparison(explained, 1.0)  # a PCA explains no more than 1
    if module.max_refinements:
        explained, rows = _explained_share(job, module)
        if not explained < MIN_SHARE_OF_PCA:
            return Comparison(explained, 1.0)
    scaler = module.scaler
    mean, factor = scaler.mean.cpu().numpy(), scaler.factor.cpu().numpy()
    # The axes come from every other row, since those of few rows fit these rows alone.
    even, odd = (rows.subset(np.arange(start, len(rows), 2)) for start in (0, 1))
    if not len(odd) or not np.nansum(summarize(even).variance) > 0:
        return Comparison(explained, 0.0)  # all rows are equal
    axes, _ = principal_axes(even, job.n_components, mean, factor, job.seed)
    scaled = [(block - mean) / factor for _, block in odd.blocks()]
    deviation = np.nan_to_num(np.concatenate(scaled))
    total = _weighted_sum(deviation**2, odd).sum()
    found = _weighted_sum((deviation @ axes.T) ** 2, odd).sum()
    return Comparison(explained, float(found / total) if total > 0 else 0.0)


def _explained_share(job: Job, module: Autoencoder) -> tuple[float, Rows]:
    """Return the explained variance of a sample of rows, and its rows.

    The rows are those without a share that the training trims.
    """
    rows = job.rows.sample()
    with np.errstate(all="ignore"):  # an overflow gives NaN, and then no warning
        squares = evaluate(module, "residuals", rows).astype(np.float64) ** 2
        if squares.ndim == 3:  # (n_rows, n_members, n_features)
            squares = squares.mean(axis=1)
        if job.settings.trim > 0:
            share = trimmed_share(job.settings.trim, len(rows))
            n_kept = round((1 - share) * len(rows))
            kept = np.argsort(np.nanmean(squares, axis=1))[:n_kept]
            rows, squares = rows.subset(kept), squares[kept]
        scaler = module.scaler
        mean, factor = scaler.mean.cpu().numpy(), scaler.factor.cpu().numpy()
        deviations = [((block - mean) / factor) ** 2 for _, block in rows.blocks()]
        total = _weighted_sum(np.concatenate(deviations), rows)
        return 1 - float(np.sum(_weighted_sum(squares, rows) / total.sum())), rows


def count_dead_units(job: Job, trained: Trained) -> int:
    """Count the components that are constant over the training rows.

    A component beyond the rank of the rows does not count.
    """
    sample = job.rows.sample()
    # Refinement changes no component that varies to a constant.
    with without_refinement(trained.net.module_in(sample.X.dtype)):
        if not _are_constant(sample, trained).any():
            return 0
    n_dead = int(_are_constant(sample, trained).sum())
    if n_dead and len(sample) < len(job.rows):
        n_dead = int(_are_constant(job.rows, trained).sum())
    if not n_dead:
        return 0
    scaler = trained.net.module_.scaler
    mean, factor = scaler.mean.cpu().numpy(), scaler.factor.cpu().numpy()
    _, variances = principal_axes(sample, job.n_components, mean, factor, job.seed)
    return max(0, n_dead - int(np.sum(variances == 0)))


def _are_constant(rows: Rows, trained: Trained) -> np.ndarray:
    """Return which components have one value for all rows, of shape (n_components,)."""
    module = trained.net.module_in(rows.X.dtype)
    low, high = np.inf, -np.inf
    for _, codes in evaluate_blocks(module, "encode", rows):
        low, high = (
            np.minimum(low, codes.min(axis=0)),
            np.maximum(high, codes.max(axis=0)),
        )
    eps = float(np.finfo(rows.X.dtype).eps)
    return high - low <= ROUNDING * eps * np.maximum(np.abs(low), np.abs(high))


def _weighted_sum(values: np.ndarray, rows: Rows) -> np.ndarray:
    """Return the sum over the observed entries of each feature."""
    return np.nansum(rows.weight[:, None] * values, axis=0)
