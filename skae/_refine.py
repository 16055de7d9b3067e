"""Refinement of codes by least squares, starting from the encoder's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Initial damping, the smallest and the largest factor after an accepted step, and the
# factor after a rejected one.
INITIAL_DAMPING, ACCEPTED_FACTORS, REJECTED_FACTOR = 0.3, (1e-3, 0.2), 10.0

# Relative increase of the squared distance, in units of machine epsilon, up to which a
# step is accepted, and difference of two generated rows that counts as zero. Rounding
# would otherwise decide near the minimum, and about components without any effect, and
# a single row would end at another code than the same row in a batch.
ROUNDING = 100

# Number of steps after which the Jacobian is estimated anew. Broyden's updates alone
# converge to other points than the minimum, or not in ten steps.
STEPS_PER_JACOBIAN = 3

# Decrease of the squared distance that a step must promise, relative to the distance. A
# row stops when it falls below, and for good if the Jacobian has not drifted from its
# estimate by more than MAX_DRIFT for each component; otherwise it waits for the next
# estimate, which costs an evaluation for each component. With ten steps and two
# components, a row then needs 7 evaluations instead of 13, and the mean explained
# variance of twelve tables rises by .002.
MIN_DECREASE, MAX_DRIFT = 3e-4, 0.03

# Number of codes that take little longer to decode in one pass than one alone.
FEW_ROWS = 64


def refine(
    generate: Callable[[Tensor], Tensor],
    Z: Tensor,
    target: Tensor,
    observed: Tensor | None,
    max_iter: int,
    rest: Tensor | None = None,
    *,
    all_at_once: bool = False,
) -> Tensor:
    r"""Optimise codes so that they generate rows closer to the target.

    Each row's code minimises the squared distance

    .. math:: e(z) = \sum_{j \text{ observed}} (g_j(z) - x_j)^2

    by Levenberg-Marquardt steps s [1]_,

    .. math:: (J^\top J + \lambda \operatorname{diag} J^\top J) s = -J^\top (g(z) - x),

    which are accepted unless they increase it. The Jacobian J of g is estimated by
    forward differences, is updated by Broyden's rank-one formula after each step [2]_,
    and is estimated anew after `STEPS_PER_JACOBIAN` steps. A row is no longer evaluated
    when its next step promises to decrease the distance by less than the share
    `MIN_DECREASE`. So g is evaluated at k + 1 codes at the start, at one for each step,
    and at k more for rows that have not converged after some steps. It is not
    differentiated.

    Parameters
    ----------
    generate : callable
        The map g from codes (n_samples, k) to rows (n_samples, n_features). Unless
        `all_at_once`, it is called with any number of codes.
    Z : Tensor of shape (n_samples, k)
        Initial codes.
    target : Tensor of shape (n_samples, n_features)
        Rows x.
    observed : Tensor of bool of shape (n_samples, n_features) or None
        False for the entries to ignore.
    max_iter : int
        Largest number of steps, accepted or not.
    rest : Tensor of shape (n_samples,), default=None
        Squared distance that no code can decrease and that is not part of e(z), as for
        targets that have been projected. It counts in the distance of which
        `MIN_DECREASE` is a share. None means zero.
    all_at_once : bool, default=False
        Whether g is always called with a code of each row, in their order, as the
        decoders of several networks require. The codes are the same, and g is called
        until the last row has converged.

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
    if not len(Z) or not max_iter:
        return Z
    if all_at_once:
        return _refine_all_at_once(
            Problem(generate, target, observed, rest, 0), Z, max_iter
        )
    return _refine(Problem(generate, target, observed, rest), Z.clone(), max_iter)


def _refine(problem: Problem, Z: Tensor, max_iter: int) -> Tensor:
    """Refine codes in place, and return them."""
    rows: Any = slice(None)
    codes, R, damping = Z, problem.residuals(Z), initial_damping(Z)
    for n_steps in steps_of_rounds(max_iter):
        has_converged = _descend(problem, codes, R, damping, n_steps)
        Z[rows] = codes
        going = torch.where(~has_converged)[0]
        if not len(going):
            break
        rows = going if isinstance(rows, slice) else rows[going]
        problem = problem.select(going)
        codes, R, damping = codes[going], R[going], damping[going]
    return Z


def _descend(
    problem: Problem, Z: Tensor, R: Tensor, damping: Tensor, n_steps: int
) -> Tensor:
    """Take up to `n_steps` steps with one estimate of the Jacobian.

    Parameters
    ----------
    problem : Problem
    Z : Tensor of shape (n_samples, k)
        Codes, which are replaced.
    R : Tensor of shape (n_samples, n_features)
        Their residuals, which are replaced.
    damping : Tensor of shape (n_samples,)
        Replaced, too.
    n_steps : int

    Returns
    -------
    has_converged : Tensor of bool of shape (n_samples,)
    """
    descent = Descent.begin(problem, Z, R, damping)
    has_converged = descent.drift > 0  # no row
    rows: Any = slice(None)  # the rows of `descent`
    for _ in range(n_steps):
        step, is_going = descent.propose(problem)
        going = torch.where(is_going)[0]
        if len(going) < len(step):
            has_converged[rows] = ~is_going & descent.is_certain
            Z[rows], R[rows], damping[rows] = descent.Z, descent.R, descent.damping
            if not len(going):
                return has_converged
            rows = going if isinstance(rows, slice) else rows[going]
            problem, step = problem.select(going), step[going]
            descent = Descent(*(values[going] for values in descent))
        descent = descent.advance(problem, step)
    Z[rows], R[rows], damping[rows] = descent.Z, descent.R, descent.damping
    return has_converged


def _refine_all_at_once(problem: Problem, Z: Tensor, max_iter: int) -> Tensor:
    """Refine codes by calls of g with a code of each row."""
    has_converged = torch.zeros(len(Z), dtype=torch.bool, device=Z.device)
    n_left, damping = max_iter, initial_damping(Z)
    for _ in steps_of_rounds(max_iter):
        Z, damping, has_converged = descend_all_at_once(
            problem, Z, damping, has_converged, n_left
        )
        if has_converged.all():
            break
        n_left -= STEPS_PER_JACOBIAN
    return Z


def descend_all_at_once(
    problem: Problem,
    Z: Tensor,
    damping: Tensor,
    has_converged: Tensor,
    n_left: int | Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the steps of one estimate of the Jacobian, without selecting rows.

    The number of operations does not depend on the values, so that it can be traced.

    Parameters
    ----------
    problem : Problem
    Z : Tensor of shape (n_samples, k)
    damping : Tensor of shape (n_samples,)
    has_converged : Tensor of bool of shape (n_samples,)
        Rows that take no more steps.
    n_left : int or Tensor of int
        Number of steps that may still be taken.

    Returns
    -------
    Z, damping, has_converged
        After these steps.
    """
    descent = Descent.begin(problem, Z, problem.residuals(Z), damping)
    is_going = ~has_converged
    for i in range(STEPS_PER_JACOBIAN):
        step, is_worthwhile = descent.propose(problem)
        has_converged = has_converged | (is_going & ~is_worthwhile & descent.is_certain)
        is_going = is_going & is_worthwhile & (n_left > i)
        pairs = zip(descent.advance(problem, step), descent, strict=True)
        descent = Descent(
            *(
                torch.where(is_going.reshape(-1, *[1] * (new.ndim - 1)), new, old)
                for new, old in pairs
            )
        )
    return descent.Z, descent.damping, has_converged


def initial_damping(Z: Tensor) -> Tensor:
    """Return the damping of the first step, of shape (n_samples,)."""
    return torch.full_like(Z[:, 0], INITIAL_DAMPING)


def steps_of_rounds(max_iter: int) -> list[int]:
    """Return the number of steps that follow each estimate of the Jacobian."""
    n_rounds, n_steps = divmod(max_iter, STEPS_PER_JACOBIAN)
    return [STEPS_PER_JACOBIAN] * n_rounds + [n_steps] * (n_steps > 0)


class Problem(NamedTuple):
    """Rows and the map that generates them; see `refine`.

    Attributes
    ----------
    generate : callable
    target : Tensor of shape (n_samples, n_features)
    observed : Tensor of bool of shape (n_samples, n_features) or None
    rest : Tensor of shape (n_samples,) or None
    few_rows : int or None
        Number of codes to which g is applied in one pass if there are fewer rows; None
        means that it is applied to any number of codes in one pass.
    """

    generate: Callable[[Tensor], Tensor]
    target: Tensor
    observed: Tensor | None
    rest: Tensor | None = None
    few_rows: int | None = FEW_ROWS

    def residuals(self, Z: Tensor) -> Tensor:
        """Return g(z) - x, 0 for ignored entries, of shape (n_samples, n_features)."""
        R = self.generate(Z) - self.target
        return R if self.observed is None else torch.where(self.observed, R, 0)

    def differences(self, Z: Tensor, R: Tensor) -> Tensor:
        """Estimate J by forward differences, of shape (n_samples, k, n_features)."""
        n_samples, k = Z.shape
        width = min_step(torch.finfo(Z.dtype).eps) * torch.clip(Z.abs(), 1, None)
        # (k, n_samples, k), in which code i is moved along component i
        moved = Z + torch.diag_embed(width).movedim(1, 0)
        width = (moved - Z).sum(dim=0)  # as rounded
        if self.few_rows is None:
            parts = [moved]
        else:  # one pass for one component, or for several
            size = max(1, self.few_rows // n_samples)
            parts = [moved[i : i + size] for i in range(0, k, size)]
        each = [self.generate(codes.reshape(-1, k)) for codes in parts]
        rows = torch.cat(each).reshape(k, -1, R.shape[1])
        rows = rows.movedim(0, 1)  # (n_samples, k, n_features)
        noise = ROUNDING * torch.finfo(Z.dtype).eps * torch.amax(rows.abs(), (1, 2))
        change = rows - self.target[:, None] - R[:, None]
        is_known = change.abs() > noise[:, None, None]
        if self.observed is not None:
            is_known = is_known & self.observed[:, None]
        return torch.where(is_known, change, 0) / width[:, :, None]

    def select(self, rows: Tensor) -> Problem:
        """Return the problem of the rows at these positions."""
        observed = None if self.observed is None else self.observed[rows]
        rest = None if self.rest is None else self.rest[rows]
        return self._replace(target=self.target[rows], observed=observed, rest=rest)


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
    J : Tensor of shape (n_samples, k, n_features)
        Approximate Jacobian of the residuals.
    damping : Tensor of shape (n_samples,)
        Damping lambda.
    drift : Tensor of shape (n_samples,)
        Sum over the steps of the squared error of the residuals that J predicts,
        relative to the squared change that it predicts.
    """

    Z: Tensor
    R: Tensor
    error: Tensor
    J: Tensor
    damping: Tensor
    drift: Tensor

    @classmethod
    def begin(cls, problem: Problem, Z: Tensor, R: Tensor, damping: Tensor) -> Descent:
        """Return the state with a new estimate of the Jacobian."""
        error = (R * R).sum(dim=1)
        J = problem.differences(Z, R)
        return cls(Z, R, error, J, damping, torch.zeros_like(error))

    def propose(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """Return the next step, (n_samples, k), and whether a row should take it."""
        J = self.J
        info = torch.finfo(J.dtype)
        curvature = J @ J.swapaxes(1, 2)  # (n_samples, k, k)
        slope = -(J @ self.R[:, :, None])  # (n_samples, k, 1)
        identity = torch.eye(J.shape[1], dtype=J.dtype, device=J.device)
        diagonal = curvature * identity
        mean = diagonal.sum(dim=(1, 2)) / J.shape[1]
        floor = torch.clip(info.eps * mean, info.tiny, None)
        damping = self.damping[:, None, None] * diagonal
        floor = floor[:, None, None] * identity
        step, _ = torch.linalg.solve_ex(curvature + damping + floor, slope)
        decrease = (step * slope).sum(dim=(1, 2))  # half of it if the damping is large
        distance = self.error if problem.rest is None else self.error + problem.rest
        # A step that is not finite, from a singular system, is not taken.
        return step[:, :, 0], decrease > MIN_DECREASE * distance

    def advance(self, problem: Problem, step: Tensor) -> Descent:
        """Return the state after one more step, accepted or not; see `refine`."""
        Z, R, error, J, damping, drift = self
        eps = torch.finfo(Z.dtype).eps
        Z_new = Z + step
        R_new = problem.residuals(Z_new)
        error_new = (R_new * R_new).sum(dim=1)
        change = (step[:, None] @ J)[:, 0]
        surprise = R_new - R - change
        nonlinearity = (surprise * surprise).sum(dim=1) / (change * change).sum(dim=1)
        squared_length = torch.clip((step * step).sum(dim=1), min_step(eps) ** 2, None)
        # After an overflow J remains, and the next step is shorter.
        surprise = torch.where(torch.isfinite(error_new)[:, None], surprise, 0)
        scaled = step / squared_length[:, None]
        is_accepted = error_new <= error * (1 + ROUNDING * eps)
        # The better J predicts, the closer is the next step to that of Gauss-Newton.
        factor = torch.clip(nonlinearity, *ACCEPTED_FACTORS)
        return Descent(
            torch.where(is_accepted[:, None], Z_new, Z),
            torch.where(is_accepted[:, None], R_new, R),
            torch.where(is_accepted, error_new, error),
            J + scaled[:, :, None] * surprise[:, None],
            damping * torch.where(is_accepted, factor, REJECTED_FACTOR),
            drift + nonlinearity,
        )

    @property
    def is_certain(self) -> Tensor:
        """Whether J is close enough to the Jacobian to tell that a row has converged.

        Of shape (n_samples,); False if `drift` is NaN.
        """
        return self.drift <= MAX_DRIFT * self.Z.shape[1]


def min_step(eps: float) -> float:
    """Return the smallest step in a code from which J can be estimated.

    Smaller steps would amplify rounding errors of the generated rows, and a single row
    would differ from the same row in a batch. A less exact J only slows convergence.

    Parameters
    ----------
    eps : float
        Machine epsilon of the codes.
    """
    return eps**0.25
