"""Codes improved row by row, beyond what the encoder says."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Share of the curvature that damps the first step, and what it is multiplied by
# after a step that lowered the distance and after one that did not.
DAMPING, TAKEN, REFUSED = 1e-3, 0.2, 10.0

# Units of rounding by which a distance may seem to rise: at its least, chance would
# decide, and a row alone would end elsewhere than the same row in a batch.
ROUNDING = 100


def refine(
    generate: Callable[[Tensor], Tensor],
    Z: Tensor,
    target: Tensor,
    observed: Tensor | None,
    max_iter: int,
) -> Tensor:
    r"""Move codes to where they generate rows nearer to the target.

    Each row's code descends to a least squared distance

    .. math:: e(z) = \sum_{j \text{ observed}} (g_j(z) - x_j)^2

    by Levenberg-Marquardt steps [1]_

    .. math:: (J^\top J + \lambda \operatorname{diag} J^\top J) s = -J^\top (g(z) - x),

    which are taken unless they raise it. The Jacobian J of g, from differences
    at first, then follows the steps by Broyden's rank-one updates [2]_: so g is
    evaluated k + 1 times at first, and once for each step, and need not be
    differentiated.

    Parameters
    ----------
    generate : callable
        g, from codes of shape (n_samples, k) to rows (n_samples, n_features).
    Z : Tensor of shape (n_samples, k)
        Codes to begin with.
    target : Tensor of shape (n_samples, n_features)
        Rows x.
    observed : Tensor of bool of shape (n_samples, n_features) or None
        False where an entry does not count.
    max_iter : int
        Steps to try.

    Returns
    -------
    Z : Tensor of shape (n_samples, k)

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
    """Where the codes are between two steps.

    Attributes
    ----------
    Z : Tensor of shape (n_samples, k)
    R : Tensor of shape (n_samples, n_features)
        Residuals g(z) - x, 0 where an entry does not count.
    error : Tensor of shape (n_samples,)
        Their squared lengths.
    J : Tensor of shape (n_samples, n_features, k)
    damping : Tensor of shape (n_samples,)
        Lambda.
    """

    Z: Tensor
    R: Tensor
    error: Tensor
    J: Tensor
    damping: Tensor


def descend(residuals: Callable[[Tensor], Tensor], descent: Descent) -> Descent:
    """After one more step, which may have been refused."""
    Z, R, error, J, damping = descent
    eps, tiny = torch.finfo(Z.dtype).eps, torch.finfo(Z.dtype).tiny
    curvature = J.mT @ J  # (n_samples, k, k)
    diagonal = curvature.diagonal(dim1=1, dim2=2)
    floor = (eps * diagonal.mean(dim=1, keepdim=True)).clamp(min=tiny)
    damped = curvature + torch.diag_embed(damping[:, None] * diagonal + floor)
    # Where it cannot be solved the step is not finite, and thus not taken.
    step, _ = torch.linalg.solve_ex(damped, -(J.mT @ R[:, :, None]))
    step = step[:, :, 0]
    R_new = residuals(Z + step)
    error_new = R_new.square().sum(dim=1)
    missed = R_new - R - (J @ step[:, :, None])[:, :, 0]
    length = step.square().sum(dim=1).clamp(min=narrowest(Z.dtype) ** 2)
    J = J + missed[:, :, None] * (step / length[:, None])[:, None, :]
    is_taken = error_new <= error * (1 + ROUNDING * eps)
    return Descent(
        torch.where(is_taken[:, None], Z + step, Z),
        torch.where(is_taken[:, None], R_new, R),
        torch.where(is_taken, error_new, error),
        J,
        damping * torch.where(is_taken, TAKEN, REFUSED),
    )


def narrowest(dtype: torch.dtype) -> float:
    """Difference of codes below which a difference of rows says little of J.

    Narrower, it would blow up the rows' rounding; so a row alone and the same row in
    a batch agree, and what J lacks in exactness only slows the descent.
    """
    return torch.finfo(dtype).eps ** 0.25


def _differences(residuals: Callable[[Tensor], Tensor], Z: Tensor, R: Tensor) -> Tensor:
    """Jacobian of the residuals by forward differences, (n_samples, n_features, k)."""
    width = narrowest(Z.dtype)
    columns = []
    for j in range(Z.shape[1]):
        moved = Z.clone()
        moved[:, j] += width * moved[:, j].abs().clamp(min=1)
        columns.append((residuals(moved) - R) / (moved - Z)[:, j, None])
    return torch.stack(columns, dim=2)


def begin_descent(
    residuals: Callable[[Tensor], Tensor],
    Z: Tensor,
    differences: Callable[..., Tensor] = _differences,
) -> Descent:
    """Before the first step; `residuals` maps codes to residuals."""
    R = residuals(Z)
    error = R.square().sum(dim=1)
    J = differences(residuals, Z, R)
    return Descent(Z, R, error, J, torch.full_like(error, DAMPING))
