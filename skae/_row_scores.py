"""Scores of rows by an autoencoder, and other comparisons with reconstructions.

Functions of a module and of rows in the units of the data. An error of float32 could be
as large as the result, the difference of two nearly equal numbers, so all are evaluated
in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from skae._completion import N_DIRECTIONS
from skae._folds import Holdout
from skae._module import LIMIT, Autoencoder, Propagation, in_blocks
from skae._neighbors import Nearness
from skae._sparse import (
    FeatureBlock,
    LinearOutput,
    SparseRows,
    compared_squares,
    feature_blocks,
    squared_distances,
    summed_losses,
)
from skae.losses import observed_mean, observed_share

# Error of a value beyond the range of the loss, or beyond LIMIT, per unit of its
# distance to the range. The largest number of features, or a mean of logarithms, cannot
# hide such an error, and one of the size of a rounding error has no effect.
EXCESS_WEIGHT = 1e6

# Share of the squares of a row below which its squared distance to its reconstruction,
# a difference of such squares in float64, has lost too many digits.
MIN_DISTANCE = 1e-7


def row_error(module: Autoencoder, X: Any) -> Tensor:
    """Compute minus the score of each row, of shape (n_samples,).

    This is the reconstruction error, combined with the distances to training rows if
    the module has `neighbors`, plus the error of values beyond the possible range. The
    errors of rows with completed entries are those of `_expected_errors`.
    """
    propagation = module.propagate(X)
    error = module.mean_over_members(_expected_errors(module, X, propagation))
    if module.neighbors is not None:
        nearness = _nearness(module, propagation)
        error = module.neighbors.combine(
            error, nearness.core_distance, nearness.distance
        )
    return _plus_excess(module, X, propagation, error)


def errors_by_fold(module: Autoencoder, X: Any, holdout: Holdout) -> Tensor:
    """Compute `row_error` of all members, and of the members of each fold alone.

    Parameters
    ----------
    module : Autoencoder
        With several members.
    X : Tensor of shape (n_samples, n_features), or SparseRows
    holdout : Holdout

    Returns
    -------
    errors : Tensor of shape (n_samples, 1 + n_folds) or (n_samples, 2 + n_folds)
        If the module has `neighbors`, the last column is the distance to the nearest
        training row.
    """
    propagation = module.propagate(X)
    by_member = _errors(module, X, propagation)
    group = torch.from_numpy(holdout.group)
    folds = [by_member[group == fold] for fold in range(holdout.n_folds)]
    errors = torch.stack([part.mean(dim=0) for part in (by_member, *folds)], dim=1)
    if module.neighbors is None:
        return _plus_excess(module, X, propagation, errors)
    nearness = _nearness(module, propagation)
    core, nearest = nearness.core_distance[:, None], nearness.distance[:, None]
    errors = module.neighbors.combine(errors, core, nearest)
    return torch.cat([_plus_excess(module, X, propagation, errors), nearest], dim=1)


def distance(module: Autoencoder, X: Any) -> Tensor:
    """Compute the distance to the nearest training row, of shape (n_samples,)."""
    assert module.neighbors is not None
    target, observed = module.scaler(X)
    return module.neighbors(module.within_range(target), observed).distance


def contributions(module: Autoencoder, X: Tensor) -> Tensor:
    """Compute each feature's share of its row's error, (n_samples, n_features)."""
    propagation = module.propagate(X)
    target = propagation.target
    observed = module.observed_features(propagation.observed)
    errors = _entry_errors(module, propagation)
    shares = module.mean_over_members(observed_share(errors, observed))
    if module.neighbors is not None:
        nearness = _nearness(module, propagation)
        shares = module.neighbors.shares(shares, target, propagation.observed, nearness)
    if not module.may_have_excess(target):
        return shares
    return shares + observed_share(_weighted_excess(module, X), observed)


def reconstruction_error(module: Autoencoder, X: Any) -> Tensor:
    """Compute each row's mean error over its observed entries, (n_samples,).

    Values beyond the possible range count as the nearest one in it. Some bottlenecks
    add a term of their own. It is in nats, and multiplied by the scale of the noise, as
    the log-likelihood is.
    """
    return module.mean_over_members(_errors(module, X, module.propagate(X)))


def spread(module: Autoencoder, X: Tensor) -> Tensor:
    """Compute the standard deviation of reconstructions over `Completion.varied`.

    Of shape (n_samples, n_features), in the units of the data; 0 for complete rows.
    """
    propagation = module.propagate(X)
    output = module.output(propagation.raw)
    variance = torch.zeros_like(output)
    for rows, varied in _varied_rows(module, propagation):
        change = module.output(module.propagate(varied).raw)
        change = change.unflatten(0, (2 * N_DIRECTIONS, -1)) - output[rows]
        variance[rows] = change.square().mean(dim=0)
    return variance.sqrt() * module.scaler.factor


def scaled(module: Autoencoder, X: Tensor) -> Tensor:
    """Scale rows, and replace missing entries by the mean.

    Values beyond the range of the loss are replaced by the nearest one in it.
    """
    return module.within_range(module.scaler(X)[0])


def scaled_error(module: Autoencoder, X: Tensor) -> Tensor:
    """Compute `reconstruction_error` of rows that `scaled` returns."""
    return reconstruction_error(module, module.scaler.unscale(X))


def residuals(module: Autoencoder, X: Tensor) -> Tensor:
    """Compute absolute residuals in the scaled space, NaN at missing entries.

    Of shape (n_samples, n_features), or (n_samples, n_members, n_features).
    """
    propagation = module.propagate(X)
    values = (propagation.target - module.output(propagation.raw)).abs()
    if propagation.observed is not None:
        values = torch.where(propagation.observed, values, torch.nan)
    return module.rows_first(values)


def excess(module: Autoencoder, X: Tensor) -> Tensor:
    """Compute the distance of each entry to the range of values that are possible.

    Of shape (n_samples, n_features), in the scaled space and at most `LIMIT`. The range
    is that of the loss or, for columns without one, up to `LIMIT`.
    """
    values = module.scaler.scale(X)
    possible = module.within_range(values.clamp(-LIMIT, LIMIT))
    distances = (values - possible).abs().clamp(max=LIMIT)
    return torch.where(distances > 0, distances, 0)  # 0 at missing entries


def row_squares(module: Autoencoder, X: SparseRows) -> Tensor:
    """Compute what the explained variance of sparse rows compares, (n_samples, 3).

    The squared distances of each row to its reconstruction and to the mean, in the
    units of the data, and the squares of which the first is a difference.
    """
    propagation = module.propagate(X)
    output, target = propagation.raw, propagation.target
    metric = module.scaler.factor.to(target.dtype)
    mean = LinearOutput(
        output.F.new_zeros(len(target), 1),
        output.weight.new_zeros(len(metric), 1),
        module.scaler.scaled_mean,
    )
    distances = squared_distances(output, target, metric)
    total = squared_distances(mean, target, metric)
    compared = compared_squares(output, target, metric)
    return torch.stack([distances, total, compared], dim=1)


def residual_sums(
    module: Autoencoder, X: SparseRows, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum the absolute residuals of each feature over its observed entries.

    Parameters
    ----------
    module : Autoencoder
    X : SparseRows of shape (n_samples, n_features)
    weight : Tensor of shape (n_samples,)
        Weights of the rows.

    Returns
    -------
    total, count : Tensor of shape (n_features,) or (n_members, n_features)
        Weighted sums of the residuals in the scaled space, and of ones.
    """
    propagation = module.propagate(X)
    output, target = propagation.raw, propagation.target
    total, count = torch.zeros_like(output.bias), torch.zeros_like(output.bias)
    for where, entries, observed, raw in feature_blocks(output, target):
        values = (entries - raw).abs()
        if observed is None:
            count[..., where] = weight.sum()
        else:
            values = torch.where(observed, values, 0)
            count[..., where] = weight @ observed.to(weight)
        total[..., where] = weight @ values
    return total, count


# The functions that return one tensor with a row for each row of X.
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    function.__name__: function
    for function in (
        contributions,
        distance,
        errors_by_fold,
        excess,
        reconstruction_error,
        residuals,
        row_error,
        row_squares,
        scaled,
        scaled_error,
        spread,
    )
}


def takes_sparse(module: Autoencoder, name: str) -> bool:
    """Whether a function can be computed from `SparseRows`.

    These are functions that compare rows with reconstructions, but do not return any.
    """
    if name in ("residual_sums", "row_squares"):
        return module.compares_sparse
    if name in ("distance", "errors_by_fold", "reconstruction_error", "row_error"):
        has_residuals = module.residual_scale is not None
        is_alike = has_residuals or not module.loss.depends_on_column
        return is_alike and module.compares_sparse
    return False


# Parts of errors


def _errors(module: Autoencoder, X: Any, propagation: Propagation) -> Tensor:
    """Compute `reconstruction_error` before the average over the members."""
    if isinstance(X, SparseRows):
        return _sparse_errors(module, X, propagation)
    errors = _entry_errors(module, propagation)
    term = module.bottleneck.score_term(propagation.H)
    if term is not None and module.noise is not None:
        errors = module.noise.energy(errors)
        term = module.noise.scale.squeeze(-1) * term
    error = observed_mean(errors, module.observed_features(propagation.observed))
    if term is not None:
        error = error + module.per_feature(term, propagation)
    return error


def _expected_errors(module: Autoencoder, X: Any, propagation: Propagation) -> Tensor:
    """Compute `_errors`, for incomplete rows their mean over `Completion.varied`.

    The reconstruction of a completed row is closer to the observed entries than that
    of the complete row would be, since the completion agrees with the other rows. The
    mean over several completions estimates the error of the complete row at these
    entries; for a squared error, it is that of the expected reconstruction plus the
    variance between completions [1]_.

    References
    ----------
    .. [1] Rubin, D. B. (1987). Multiple imputation for nonresponse in surveys. Wiley.
    """
    errors = _errors(module, X, propagation)
    for rows, varied in _varied_rows(module, propagation):
        assert propagation.observed is not None
        observed = propagation.observed[rows]
        n_varied = 2 * N_DIRECTIONS
        each = module.propagate(varied)._replace(observed=observed.repeat(n_varied, 1))
        values = _errors(module, varied, each).unflatten(-1, (n_varied, -1))
        errors = errors.index_copy(-1, rows, values.mean(dim=-2))
    return errors


def _varied_rows(
    module: Autoencoder, propagation: Propagation
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over blocks of the incomplete rows.

    Yields
    ------
    rows : Tensor of int of shape (n_block,)
        Their positions.
    varied : Tensor of shape (n_varied * n_block, n_features)
        Completions of each, in the units of the data.
    """
    completion, observed = module.scaler.completion, propagation.observed
    if completion is None or observed is None:
        return
    for rows in module.incomplete_rows(observed):
        varied = completion.varied(propagation.target[rows], observed[rows])
        yield rows, module.scaler.unscale(varied.flatten(0, 1))


def _sparse_errors(
    module: Autoencoder, X: SparseRows, propagation: Propagation
) -> Tensor:
    """Compute `_errors` of rows that remain sparse."""
    output, target = propagation.raw, propagation.target
    is_distance = (
        module.residual_scale is None
        and module.loss.is_squared_distance
        and output.suits_products
    )
    if is_distance:
        total = squared_distances(output, target)
    else:
        total = summed_losses(
            lambda block: _block_errors(module, block), output, target
        )
    error = total / target.n_observed
    term = module.bottleneck.score_term(propagation.H)
    if term is not None:
        error = error + module.per_feature(term, propagation)
    if not is_distance:
        return error
    # Of rows that are close to their reconstructions, products have too few digits.
    is_near = total <= MIN_DISTANCE * compared_squares(output, target)
    for near in in_blocks(is_near.reshape(-1, len(X)).any(dim=0), module.widest_layer):
        dense = X.take(near).dense()[0]
        error[..., near] = _errors(module, dense, module.propagate(dense))
    return error


def _entry_errors(module: Autoencoder, propagation: Propagation) -> Tensor:
    """Return log(1 + |x - x_hat| / residual_scale) of each entry, or its loss."""
    if module.residual_scale is None:
        losses = module.losses(propagation)
        assert losses is not None  # the rows are dense
        return losses
    target, raw = propagation.target, propagation.raw
    residuals = module.loss.residuals_from_raw(target, raw, module.output)
    return (residuals / module.residual_scale).log1p()


def _block_errors(module: Autoencoder, block: FeatureBlock) -> Tensor:
    """Return what `_entry_errors` returns, for some features."""
    if module.residual_scale is None:
        return module.block_losses(block)
    scale = module.residual_scale[..., block.where]
    return ((block.target - block.raw).abs() / scale).log1p()


def _nearness(module: Autoencoder, propagation: Propagation) -> Nearness:
    """Find the nearest training rows of each row."""
    assert module.neighbors is not None
    target = propagation.target
    if not isinstance(target, SparseRows):
        target = target.contiguous()  # see `Autoencoder.propagate`
    return module.neighbors(target, propagation.observed)


def _plus_excess(
    module: Autoencoder, X: Any, propagation: Propagation, errors: Tensor
) -> Tensor:
    """Add the error of values that no training row could have, see `excess`.

    Parameters
    ----------
    module : Autoencoder
    X : Tensor of shape (n_samples, n_features), or SparseRows
        Sparse rows have no such values.
    propagation : Propagation
    errors : Tensor of shape (n_samples,) or (n_samples, n_errors)
    """
    if isinstance(X, SparseRows) or not module.may_have_excess(propagation.target):
        return errors
    observed = module.observed_features(propagation.observed)
    added = observed_mean(_weighted_excess(module, X), observed)
    return errors + added.reshape(-1, *[1] * (errors.ndim - 1))


def _weighted_excess(module: Autoencoder, X: Tensor) -> Tensor:
    """Return the errors that belong to `excess`, of shape (n_samples, n_features)."""
    errors = EXCESS_WEIGHT * excess(module, X)
    return errors if module.loss.layout is None else module.loss.layout.summed(errors)
