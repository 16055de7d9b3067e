"""Refinement of codes by least squares, starting from the encoder's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Initial damping, and its factors after an accepted and after a rejected step.
INITIAL_DAMPING, ACCEPTED_FACTOR, REJECTED_FACTOR = 1e-3, 0.2, 10.0

# Relative increase of the squared distance, in units of machine epsilon, up to which a
# step is accepted. Near the minimum rounding would otherwise decide, and a single row
# would end at another code than the same row in a batch.
ROUNDING = 100


def refine(
    generate: Callable[[Tensor], Tensor],
    Z: Tensor,
    target: Tensor,
    observed: Tensor | None,
    max_iter: int,
) -> Tensor:
    r"""Optimise codes so that they generate rows closer to the target.

    Each row's code minimises the squared distance

    .. math:: e(z) = \sum_{j \text{ observed}} (g_j(z) - x_j)^2

    by Levenberg-Marquardt steps s [1]_,

    .. math:: (J^\top J + \lambda \operatorname{diag} J^\top J) s = -J^\top (g(z) - x),

    which are accepted unless they increase it. The Jacobian J of g is initialised by
    forward differences and then updated by Broyden's rank-one formula [2]_. So g is
    evaluated k + 1 times at the start and once per step, and is not differentiated.

    Parameters
    ----------
    generate : callable
        The map g from codes (n_samples, k) to rows (n_samples, n_features).
    Z : Tensor of shape (n_samples, k)
        Initial codes.
    target : Tensor of shape (n_samples, n_features)
        Rows x.
    observed : Tensor of bool of shape (n_samples, n_features) or None
        False for the entries to ignore.
    max_iter : int
        Number of steps, accepted or not.

    Returns
    -------
    Tensor of shape (n_samples, k)
        Refined codes.

    References
    ----------
    .. [1] Marquardt, D. W. (1963). An algorithm for least-squares estimation of
       nonlinear parameters. SIAM Journal, 11(2), 431-441.
    .. [2] Broyden, C. G. (1965). A class of methods for solving nonlinear
       simultaneous equations. Mathematics of Computation, 19(92), 577-593.
    """

    def residuals(Z: Tensor) -> Tensor:
        R = generate(Z) - target
        return R if observed is None else R.where(observed, 0)

    descent = begin_descent(residuals, Z)
    for _ in range(max_iter):
        descent = descend(residuals, descent)
    return descent.Z


class Descent(NamedTuple):
    """State of the optimisation between two steps.

    Attributes
    ----------
    Z : Tensor of shape (n_samples, k)
        Codes.
    R : Tensor of shape (n_samples, n_features)
        Residuals g(z) - x, 0 for ignored entries.
    error : Tensor of shape (n_samples,)
        Squared distances e(z).
    J : Tensor of shape (n_samples, n_features, k)
        Approximate Jacobian of the residuals.
    damping : Tensor of shape (n_samples,)
        Damping lambda.
    """

    Z: Tensor
    R: Tensor
    error: Tensor
    J: Tensor
    damping: Tensor


def descend(residuals: Callable[[Tensor], Tensor], descent: Descent) -> Descent:
    """Return the state after one more step, accepted or not; see `refine`."""
    Z, R, error, J, damping = descent
    eps, tiny = torch.finfo(Z.dtype).eps, torch.finfo(Z.dtype).tiny
    curvature = J.mT @ J  # (n_samples, k, k)
    diagonal = curvature.diagonal(dim1=1, dim2=2)
    floor = (eps * diagonal.mean(dim=1, keepdim=True)).clamp(min=tiny)
    damped = curvature + torch.diag_embed(damping[:, None] * diagonal + floor)
    # A singular system gives a step that is not finite, which is rejected.
    step, _ = torch.linalg.solve_ex(damped, -(J.mT @ R[:, :, None]))
    step = step[:, :, 0]
    R_new = residuals(Z + step)
    error_new = R_new.square().sum(dim=1)
    prediction_error = R_new - R - (J @ step[:, :, None])[:, :, 0]
    squared_length = step.square().sum(dim=1).clamp(min=min_step(Z.dtype) ** 2)
    J = J + prediction_error[:, :, None] * (step / squared_length[:, None])[:, None, :]
    is_accepted = error_new <= error * (1 + ROUNDING * eps)
    return Descent(
        torch.where(is_accepted[:, None], Z + step, Z),
        torch.where(is_accepted[:, None], R_new, R),
        torch.where(is_accepted, error_new, error),
        J,
        damping * torch.where(is_accepted, ACCEPTED_FACTOR, REJECTED_FACTOR),
    )


def min_step(dtype: torch.dtype) -> float:
    """Return the smallest step in a code from which J can be estimated.

    Smaller steps would amplify rounding errors of the generated rows, and a single row
    would differ from the same row in a batch. A less exact J only slows convergence.
    """
    return torch.finfo(dtype).eps ** 0.25


def _differences(residuals: Callable[[Tensor], Tensor], Z: Tensor, R: Tensor) -> Tensor:
    """Compute J by forward differences, of shape (n_samples, n_features, k)."""
    step = min_step(Z.dtype)
    columns = []
    for j in range(Z.shape[1]):
        Z_step = Z.clone()
        Z_step[:, j] += step * Z[:, j].abs().clamp(min=1)
        columns.append((residuals(Z_step) - R) / (Z_step - Z)[:, j, None])
    return torch.stack(columns, dim=2)


def begin_descent(
    residuals: Callable[[Tensor], Tensor],
    Z: Tensor,
    differences: Callable[..., Tensor] = _differences,
) -> Descent:
    """Return the initial state.

    Parameters
    ----------
    residuals : callable
        Maps codes (n_samples, k) to residuals (n_samples, n_features).
    Z : Tensor of shape (n_samples, k)
        Initial codes.
    differences : callable, default=_differences
        Computes the Jacobian of `residuals`, with the signature of `_differences`.
    """
    R = residuals(Z)
    error = R.square().sum(dim=1)
    J = differences(residuals, Z, R)
    return Descent(Z, R, error, J, torch.full_like(error, INITIAL_DAMPING))
