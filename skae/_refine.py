"""Refinement of codes by least squares, starting from the encoder's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

# The map g from codes to rows; and the map from codes to rows and to the Jacobian of g,
# of shape (k, n_samples, n_features).
Generator: TypeAlias = Callable[[Tensor], Tensor]
Linearizer: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]

# Initial damping, the smallest and the largest factor after an accepted step, and the
# factor after a rejected one.
INITIAL_DAMPING, ACCEPTED_FACTORS, REJECTED_FACTOR = 0.3, (1e-3, 0.2), 10.0

# Relative increase of the squared distance, in units of machine epsilon, up to which a
# step is accepted, and difference of two generated rows that counts as zero. Rounding
# would otherwise decide near the minimum, and about components without any effect, and
# a single row would end at another code than the same row in a batch.
ROUNDING = 100

# Largest number of components for which the Jacobian is computed anew at each step.
# Three or four such steps explain as much variance as seven with updates of it, but the
# products for a Jacobian take a time in proportion to the number of components.
MAX_EXACT = 5

# Number of steps, for more components, after which the Jacobian is computed anew.
# Broyden's updates alone converge to other points than the minimum, or not in ten
# steps.
STEPS_PER_JACOBIAN = 3

# Decrease of the squared distance that a step must promise, relative to the distance,
# with a new Jacobian at each step and with updates. A row stops when it falls below,
# and for good if an updated Jacobian has not drifted by more than MAX_DRIFT for each
# component; otherwise it waits for the next Jacobian. On twelve tables, a limit of 1e-3
# raises the mean explained variance by .0004, but takes a tenth more steps.
MIN_EXACT_DECREASE, MIN_DECREASE, MAX_DRIFT = 2e-3, 3e-4, 0.03

# Number of codes that take little longer to decode in one pass than one alone.
FEW_ROWS = 64


def refine(
    generate: Generator,
    Z: Tensor,
    target: Tensor,
    max_iter: int,
    rest: Tensor | None = None,
    *,
    linearize: Linearizer | None = None,
    all_at_once: bool = False,
) -> Tensor:
    r"""Optimise codes so that they generate rows closer to the target.

    Each row's code minimises the squared distance

    .. math:: e(z) = \sum_j (x_j - g_j(z))^2

    by Levenberg-Marquardt steps s [1]_,

    .. math:: (J^\top J + \lambda \operatorname{diag} J^\top J) s = J^\top (x - g(z)),

    which are accepted unless they increase it. The Jacobian J of g is computed anew
    after each step for up to `MAX_EXACT` components. For more, it is updated by
    Broyden's rank-one formula after each step [2]_, and computed anew after
    `STEPS_PER_JACOBIAN` steps. A row is no longer evaluated when its next step promises
    to decrease the distance by less than a small share. The map g is not
    differentiated: without `linearize`, J is estimated by forward differences.

    Parameters
    ----------
    generate : callable
        The map g from codes (n_samples, k) to rows (n_samples, n_features). Unless
        `all_at_once`, it is called with any number of codes.
    Z : Tensor of shape (n_samples, k)
        Initial codes.
    target : Tensor of shape (n_samples, n_features)
        Rows x.
    max_iter : int
        Largest number of steps, accepted or not.
    rest : Tensor of shape (n_samples,), default=None
        Squared distance that no code can decrease and that is not part of e(z), as for
        targets that have been projected. It counts in the distance of which a step has
        to promise a share. None means zero.
    linearize : callable, default=None
        Maps codes to the rows g(z) and to J, of shape (k, n_samples, n_features).
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
    few_rows = 0 if all_at_once else FEW_ROWS
    problem = Problem(generate, target, rest, linearize, few_rows)
    if steps_per_jacobian(Z.shape[1]) == 1:
        return _refine_exactly(problem, Z, max_iter, all_at_once)
    if all_at_once:
        return _refine_all_at_once(problem, Z, max_iter)
    return _refine(problem, Z.clone(), max_iter)


def steps_per_jacobian(n_components: int) -> int:
    """Return the number of steps for which a Jacobian is used."""
    return 1 if n_components <= MAX_EXACT else STEPS_PER_JACOBIAN


def _refine_exactly(
    problem: Problem, Z: Tensor, max_iter: int, all_at_once: bool
) -> Tensor:
    """Refine codes with a new Jacobian at each step."""
    refined, rows = Z, None  # the rows of `descent`; None means all
    descent = Descent.begin(problem, Z, initial_damping(Z))
    has_converged = None
    for n_left in range(max_iter, 0, -1):
        proposal = descent.propose(problem, MIN_EXACT_DECREASE)
        is_going = proposal.is_worthwhile
        if has_converged is not None:
            is_going = is_going & ~has_converged
        if not is_going.all():
            if not is_going.any():
                break
            if all_at_once:
                has_converged = ~is_going
            else:
                refined = _updated(refined, rows, descent.Z)
                going = torch.where(is_going)[0]
                rows = going if rows is None else rows[going]
                problem, proposal = problem.select(going), proposal.select(going)
                descent = descent.select(going)
        advanced = descent.advance(problem, proposal, needs_jacobian=n_left > 1)
        if has_converged is not None:
            advanced = advanced.where(is_going, descent)
        descent = advanced
    return _updated(refined, rows, descent.Z)


def _updated(Z: Tensor, rows: Tensor | None, values: Tensor) -> Tensor:
    """Return codes of which those of some rows, or all, have been replaced."""
    return values if rows is None else Z.index_copy(0, rows, values)


def _refine(problem: Problem, Z: Tensor, max_iter: int) -> Tensor:
    """Refine codes in place, with updates of the Jacobian, and return them."""
    rows: Any = slice(None)
    codes, damping = Z, initial_damping(Z)
    for n_steps in steps_of_rounds(max_iter, Z.shape[1]):
        has_converged = _descend(problem, codes, damping, n_steps)
        Z[rows] = codes
        going = torch.where(~has_converged)[0]
        if not len(going):
            break
        rows = going if isinstance(rows, slice) else rows[going]
        problem = problem.select(going)
        codes, damping = codes[going], damping[going]
    return Z


def _descend(problem: Problem, Z: Tensor, damping: Tensor, n_steps: int) -> Tensor:
    """Take up to `n_steps` steps with one Jacobian and updates of it.

    Parameters
    ----------
    problem : Problem
    Z : Tensor of shape (n_samples, k)
        Codes, which are replaced.
    damping : Tensor of shape (n_samples,)
        Replaced, too.
    n_steps : int

    Returns
    -------
    has_converged : Tensor of bool of shape (n_samples,)
    """
    descent = Descent.begin(problem, Z, damping)
    has_converged = descent.drift > 0  # no row
    rows: Any = slice(None)  # the rows of `descent`
    for _ in range(n_steps):
        proposal = descent.propose(problem, MIN_DECREASE)
        is_going = proposal.is_worthwhile
        going = torch.where(is_going)[0]
        if len(going) < len(is_going):
            has_converged[rows] = ~is_going & descent.is_certain
            Z[rows], damping[rows] = descent.Z, descent.damping
            if not len(going):
                return has_converged
            rows = going if isinstance(rows, slice) else rows[going]
            problem, proposal = problem.select(going), proposal.select(going)
            descent = descent.select(going)
        descent = descent.advance_by_update(problem, proposal)
    Z[rows], damping[rows] = descent.Z, descent.damping
    return has_converged


def _refine_all_at_once(problem: Problem, Z: Tensor, max_iter: int) -> Tensor:
    """Refine codes by calls of g with a code of each row."""
    has_converged = torch.zeros(len(Z), dtype=torch.bool, device=Z.device)
    n_left, damping = max_iter, initial_damping(Z)
    for n_steps in steps_of_rounds(max_iter, Z.shape[1]):
        Z, damping, has_converged = descend_all_at_once(
            problem, Z, damping, has_converged, n_left
        )
        if has_converged.all():
            break
        n_left -= n_steps
    return Z


def descend_all_at_once(
    problem: Problem,
    Z: Tensor,
    damping: Tensor,
    has_converged: Tensor,
    n_left: int | Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take the steps of one Jacobian, without selecting rows.

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
    descent = Descent.begin(problem, Z, damping)
    is_going = ~has_converged
    if steps_per_jacobian(Z.shape[1]) == 1:
        proposal = descent.propose(problem, MIN_EXACT_DECREASE)
        is_going = is_going & proposal.is_worthwhile
        advanced = descent.advance(problem, proposal, needs_jacobian=False)
        descent = advanced.where(is_going, descent)
        return descent.Z, descent.damping, ~is_going
    for i in range(STEPS_PER_JACOBIAN):
        proposal = descent.propose(problem, MIN_DECREASE)
        stops = ~proposal.is_worthwhile
        has_converged = has_converged | (is_going & stops & descent.is_certain)
        is_going = is_going & ~stops & (n_left > i)
        advanced = descent.advance_by_update(problem, proposal)
        descent = advanced.where(is_going, descent)
    return descent.Z, descent.damping, has_converged


def initial_damping(Z: Tensor) -> Tensor:
    """Return the damping of the first step, of shape (n_samples,)."""
    return torch.full_like(Z[:, 0], INITIAL_DAMPING)


def steps_of_rounds(max_iter: int, n_components: int) -> list[int]:
    """Return the number of steps that follow each computation of the Jacobian."""
    size = steps_per_jacobian(n_components)
    n_rounds, n_steps = divmod(max_iter, size)
    return [size] * n_rounds + [n_steps] * (n_steps > 0)


class Problem(NamedTuple):
    """Rows and the map that generates them; see `refine`.

    Attributes
    ----------
    generate : callable
    target : Tensor of shape (n_samples, n_features)
    rest : Tensor of shape (n_samples,) or None
    linearize : callable or None
    few_rows : int or None
        Number of codes to which g is applied in one pass if there are fewer rows, for
        forward differences; None means that it is applied to any number of codes in one
        pass.
    """

    generate: Generator
    target: Tensor
    rest: Tensor | None = None
    linearize: Linearizer | None = None
    few_rows: int | None = FEW_ROWS

    @property
    def may_branch(self) -> bool:
        """Whether operations may depend on values: they are not traced."""
        return self.few_rows is not None

    def residuals(self, Z: Tensor) -> Tensor:
        """Return x - g(z), of shape (n_samples, n_features)."""
        return self.target - self.generate(Z)

    def linearized(self, Z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the residuals and J, of shape (n_samples, k, n_features)."""
        if self.linearize is None:
            R = self.residuals(Z)
            return R, self.differences(Z, R)
        rows, J = self.linearize(Z)
        return self.target - rows, J.movedim(0, 1)

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
        change = rows - self.target[:, None] + R[:, None]
        is_known = change.abs() > noise[:, None, None]
        return torch.where(is_known, change, 0) / width[:, :, None]

    def select(self, rows: Tensor) -> Problem:
        """Return the problem of the rows at these positions."""
        rest = None if self.rest is None else self.rest[rows]
        return self._replace(target=self.target[rows], rest=rest)


class Descent(NamedTuple):
    """State of the optimisation between two steps.

    Attributes
    ----------
    Z : Tensor of shape (n_samples, k)
        Codes.
    R : Tensor of shape (n_samples, n_features)
        Residuals x - g(z).
    error : Tensor of shape (n_samples,)
        Squared distances e(z).
    J : Tensor of shape (n_samples, k, n_features)
        Jacobian of g, or an approximation.
    damping : Tensor of shape (n_samples,)
        Damping lambda.
    drift : Tensor of shape (n_samples,)
        Sum over the updates of J of the squared error of the change of g(z) that J
        predicts, relative to the squared change.
    """

    Z: Tensor
    R: Tensor
    error: Tensor
    J: Tensor
    damping: Tensor
    drift: Tensor

    @classmethod
    def begin(cls, problem: Problem, Z: Tensor, damping: Tensor) -> Descent:
        """Return the state with a new Jacobian."""
        R, J = problem.linearized(Z)
        return cls(Z, R, (R * R).sum(dim=1), J, damping, torch.zeros_like(damping))

    def select(self, rows: Tensor) -> Descent:
        """Return the state of the rows at these positions."""
        return Descent(*(values[rows] for values in self))

    def where(self, condition: Tensor, other: Descent) -> Descent:
        """Return this state for the rows for which a condition holds, else another."""
        return Descent(
            *(
                torch.where(condition.reshape(-1, *[1] * (own.ndim - 1)), own, others)
                for own, others in zip(self, other, strict=True)
            )
        )

    def propose(self, problem: Problem, min_decrease: float) -> Proposal:
        """Return the next step, and whether a row should take it."""
        J = self.J
        # A call of `bmm` takes less time than the operator @ for a single row.
        curvature = torch.bmm(J, J.mT)  # (n_samples, k, k)
        slope = torch.bmm(J, self.R[:, :, None])  # (n_samples, k, 1)
        added = self.damping[:, None] * curvature.diagonal(dim1=1, dim2=2)
        # The step of a component without effect is zero, and none is longer than
        # 1 / (2 sqrt(eps)), which those of saturated activations would be.
        info = torch.finfo(J.dtype)
        floor = info.eps * self.error + info.tiny
        system = curvature + torch.diag_embed(added + floor[:, None])
        solution, _ = torch.linalg.solve_ex(system, slope)
        step = solution[:, :, 0]
        decrease = (step * (slope[:, :, 0] + added * step)).sum(dim=1)
        distance = self.error if problem.rest is None else self.error + problem.rest
        # A step that is not finite, from a singular system, is not taken.
        return Proposal(step, decrease, decrease > min_decrease * distance)

    def advance(
        self, problem: Problem, proposal: Proposal, *, needs_jacobian: bool
    ) -> Descent:
        """Return the state after one more step, accepted or not.

        Without `needs_jacobian`, J remains that before the step.
        """
        Z, J = self.Z + proposal.step, self.J
        if needs_jacobian:
            R, J = problem.linearized(Z)
        else:
            R = problem.residuals(Z)
        error = (R * R).sum(dim=1)
        is_accepted = self._is_accepted(error)
        nonlinearity = ((self.error - error) / proposal.decrease - 1).abs_()
        damping = self._next_damping(is_accepted, nonlinearity)
        descent = Descent(Z, R, error, J, damping, self.drift)
        if problem.may_branch and is_accepted.all():
            return descent
        return descent.where(is_accepted, self._replace(damping=damping))

    def advance_by_update(self, problem: Problem, proposal: Proposal) -> Descent:
        """Return the state after one more step, with an update of the Jacobian."""
        step = proposal.step
        Z = self.Z + step
        R = problem.residuals(Z)
        error = (R * R).sum(dim=1)
        is_accepted = self._is_accepted(error)
        change = (step[:, None] @ self.J)[:, 0]
        surprise = self.R - R - change
        nonlinearity = (surprise * surprise).sum(dim=1) / (change * change).sum(dim=1)
        # After an overflow J remains, and the next step is shorter.
        surprise = torch.where(torch.isfinite(error)[:, None], surprise, 0)
        shortest = min_step(torch.finfo(Z.dtype).eps)
        squared_length = torch.clip((step * step).sum(dim=1), shortest**2, None)
        scaled = step / squared_length[:, None]
        return Descent(
            torch.where(is_accepted[:, None], Z, self.Z),
            torch.where(is_accepted[:, None], R, self.R),
            torch.where(is_accepted, error, self.error),
            self.J + scaled[:, :, None] * surprise[:, None],
            self._next_damping(is_accepted, nonlinearity),
            self.drift + nonlinearity,
        )

    def _is_accepted(self, error: Tensor) -> Tensor:
        eps = torch.finfo(error.dtype).eps
        return error <= self.error * (1 + ROUNDING * eps)

    def _next_damping(self, is_accepted: Tensor, nonlinearity: Tensor) -> Tensor:
        # The better J predicts, the closer is the next step to that of Gauss-Newton.
        factor = torch.clip(nonlinearity, *ACCEPTED_FACTORS)
        return self.damping * torch.where(is_accepted, factor, REJECTED_FACTOR)

    @property
    def is_certain(self) -> Tensor:
        """Whether J is close enough to the Jacobian to tell that a row has converged.

        Of shape (n_samples,); False if `drift` is NaN.
        """
        return self.drift <= MAX_DRIFT * self.Z.shape[1]


class Proposal(NamedTuple):
    """The next step of each row.

    Attributes
    ----------
    step : Tensor of shape (n_samples, k)
    decrease : Tensor of shape (n_samples,)
        Decrease of the squared distance that J predicts.
    is_worthwhile : Tensor of bool of shape (n_samples,)
        Whether a row should take the step.
    """

    step: Tensor
    decrease: Tensor
    is_worthwhile: Tensor

    def select(self, rows: Tensor) -> Proposal:
        """Return the steps of the rows at these positions."""
        return Proposal(*(values[rows] for values in self))


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
