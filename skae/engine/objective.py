"""The objective that training minimises."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from skae._layers import input_norms
from skae._members import Members
from skae._module import Autoencoder, Propagation, without_refinement
from skae._rows import Batch, is_expanded


class Objective(nn.Module):
    r"""Objective of each row.

    .. math:: L(x, \hat x) + \beta \, T + \lambda \, \Omega(z)

    with the loss L of the reconstruction from a corrupted input, the term T of
    the bottleneck and the penalty :math:`\Omega` on the code.

    Parameters
    ----------
    corruption : torch.nn.Module, default=None
        Corrupts the input of the encoder.
    bottleneck_weight : float, default=1.0
        :math:`\beta`.
    penalty : torch.nn.Module, default=None
        Computes :math:`\Omega`.
    penalty_weight : float, default=0.0
        :math:`\lambda`.
    weighs_units : bool, default=False
        Whether the penalty receives each unit of the code times the norm of its weights
        in the first layer of the decoder.
    warm_up : float, default=0.0
        Share of the training during which the weight of the penalty grows from zero.
    bottleneck_warm_up : float, default=0.0
        Share of the training during which the weight of the bottleneck's term grows.
    trim : float, default=0.0
        Fraction of a batch's weight, the rows with the highest objective, from which
        the level of the decoder's noise is not learnt.
    penalty_needs_rows : bool, default=False
        Whether the penalty uses the encoder or its input, and not the codes alone.
    """

    def __init__(
        self,
        corruption: nn.Module | None = None,
        bottleneck_weight: float = 1.0,
        penalty: nn.Module | None = None,
        penalty_weight: float = 0.0,
        weighs_units: bool = False,
        warm_up: float = 0.0,
        bottleneck_warm_up: float = 0.0,
        trim: float = 0.0,
        penalty_needs_rows: bool = False,
    ):
        super().__init__()
        self.corruption = corruption
        self.penalty_needs_rows = penalty_needs_rows
        self.bottleneck_weight = bottleneck_weight
        self.penalty = penalty
        self.penalty_weight = penalty_weight
        self.weighs_units = weighs_units
        self.warm_up = warm_up
        self.bottleneck_warm_up = bottleneck_warm_up
        self.trim = trim

    @property
    def settled_from(self) -> float:
        """Share of the training from which the weights of all terms are constant."""
        return max(self.warm_up, self.bottleneck_warm_up)

    @property
    def allows_sparse(self) -> bool:
        """Whether rows need not be dense: nothing but the network reads them."""
        return self.corruption is None and not self.penalty_needs_rows

    def forward(
        self, autoencoder: Autoencoder, batch: Batch, progress: Tensor
    ) -> Tensor:
        """Objective of each row, of shape (n_rows,) or (n_members, n_rows).

        In evaluation mode and with ordered components it has another axis, that of
        several numbers of components, see `Prefixes.judged_widths`.

        Parameters
        ----------
        autoencoder : Autoencoder
            Network whose objective is computed, in training or evaluation mode.
        batch : Batch
            Scaled rows.
        progress : Tensor of shape ()
            Fraction of the training steps that are done, in [0, 1].
        """
        prefixes = autoencoder.prefixes
        if prefixes is not None and not autoencoder.training:
            widths = prefixes.judged_widths
            each = []
            for width in widths:
                refined = width <= prefixes.max_refined_width
                with nullcontext() if refined else without_refinement(autoencoder):
                    each.append(self.of_width(autoencoder, batch, progress, width))
            return torch.stack(each, dim=-1)
        return self.of_width(autoencoder, batch, progress)

    def of_width(
        self,
        autoencoder: Autoencoder,
        batch: Batch,
        progress: Tensor,
        width: int | None = None,
    ) -> Tensor:
        """Objective of each row with the first `width` components, or all if None.

        In training it is the mean over several numbers of components if these are
        ordered, see :class:`skae._prefixes.Prefixes`.
        """
        propagation = autoencoder.propagate_in_training(
            batch, progress, self.corruption, width
        )
        losses = autoencoder.losses(propagation)
        total = autoencoder.mean_training_loss(losses, propagation)
        if propagation.term is not None:
            term = autoencoder.per_feature(propagation.term, propagation)
            total = total + self.bottleneck_weight * term
        if autoencoder.prefixes is not None and autoencoder.training:
            total = total.mean(dim=0)
            losses = None if losses is None else losses[-1]  # with all components
        if self.penalty is not None:
            penalty = self._penalty(autoencoder, propagation, batch.weight)
            if self.warm_up > 0:
                penalty = penalty * (progress / self.warm_up).clamp(max=1)
            total = total + self.penalty_weight * penalty
        noise = autoencoder.noise
        if noise is not None and losses is not None and autoencoder.training:
            share = trimmed_share(self.trim, len(batch.weight))
            kept = trimmed_weight(total.detach(), batch.weight, share)
            observed = autoencoder.observed_features(propagation.observed)
            noise.update(losses.detach(), observed, kept)
        return total

    def _penalty(
        self, autoencoder: Autoencoder, propagation: Propagation, weight: Tensor
    ) -> Tensor:
        assert self.penalty is not None
        encoder: Any = autoencoder.encoder
        X = propagation.encoder_input
        Z = propagation.H[..., : autoencoder.n_components]
        if self.weighs_units:
            Z = _weighted_units(Z, autoencoder)
        if autoencoder.visible is None:
            return self.penalty(encoder, X, Z, weight)
        visible = autoencoder.visible_part(X)
        members = zip(encoder.members, visible, Z, strict=True)
        return torch.stack([self.penalty(*member, weight) for member in members])


def _weighted_units(Z: Tensor, autoencoder: Autoencoder) -> Tensor:
    """Multiply each unit by the norm of its weights in the decoder's first layer."""
    decoder: Any = autoencoder.decoder
    n_components = autoencoder.n_components
    if isinstance(decoder, Members):
        each = [input_norms(member, n_components) for member in decoder.members]
        known = [norms for norms in each if norms is not None]
        norms = torch.stack(known) if len(known) == len(each) else None
    else:
        norms = input_norms(decoder, n_components)
    if norms is None:
        return Z
    return Z * norms[..., None, :]  # (1, k) or (n_members, 1, k)


def trimmed_share(trim: float, n_rows: int) -> float:
    """Return the share of a batch's weight to leave out, for a whole number of rows.

    With a share of 0.2 and eight rows of equal weight, two rows are left out: an
    outlier that keeps half of its weight is reproduced all the same. At least one row
    remains.
    """
    # The product of a share such as 0.07 and a number of rows can exceed an integer by
    # a rounding error.
    n_left_out = min(math.ceil(round(trim * n_rows, 6)), n_rows - 1)
    return n_left_out / n_rows


def trimmed_for_members(
    losses: Tensor, weight: Tensor, is_learnt: Tensor, trim: float
) -> Tensor:
    """Return the weights of rows for each member, trimmed as in `trimmed_weight`.

    A member does not count the rows that it does not learn, see `trimmed_share`.

    Parameters
    ----------
    losses : Tensor of shape (n_members, n_rows)
    weight : Tensor of shape (n_rows,)
    is_learnt : Tensor of shape (n_members, n_rows)
        1 for rows that a member learns, 0 for others.
    trim : float
        Share of the weight that is left out, in [0, 1).

    Returns
    -------
    kept : Tensor of shape (n_members, n_rows)
        Divided by the number of rows that are learnt and not left out, so that the
        weighted sum of losses is a mean. All zero for a member that learns no row.
    """
    n_learnt = is_learnt.sum(dim=-1, keepdim=True)
    if trim == 0:
        return weight * is_learnt / n_learnt.clamp(min=1)
    # As in `trimmed_share`, but in float32, whose rounding errors are larger. The
    # number of rows to leave out is the next integer.
    n_left_out = (trim * n_learnt - 1e-3).minimum(n_learnt - 1)
    if not is_expanded(weight):
        share = n_left_out.ceil() / n_learnt.clamp(min=1)
        kept = trimmed_weight(losses, weight * is_learnt, share)
        return kept / ((1 - share) * n_learnt).clamp(min=1)
    # As many candidates as a member that learns all rows leaves out.
    n_most = min(math.ceil(round(trim * losses.shape[-1], 6)), losses.shape[-1])
    highest = losses.masked_fill(is_learnt == 0, -torch.inf).topk(n_most).indices
    rank = torch.arange(n_most, device=losses.device)
    rest = is_learnt.gather(-1, highest) * (rank >= n_left_out)
    kept = is_learnt.scatter(-1, highest, rest)
    return kept / kept.sum(dim=-1, keepdim=True).clamp(min=1)


def trimmed_weight(losses: Tensor, weight: Tensor, trim: float | Tensor) -> Tensor:
    """Return the weights of rows, reduced to 0 for those with the highest losses.

    The last of these rows keeps a part of its weight, so that a row of weight w counts
    as w equal rows.

    Parameters
    ----------
    losses : Tensor of shape (..., n_rows)
    weight : Tensor of shape (n_rows,) or of the shape of `losses`
        Non-negative.
    trim : float or Tensor of shape (..., 1)
        Share of the weight that is left out, in [0, 1).

    Returns
    -------
    kept : Tensor of the shape of `losses`, or `weight` itself without trimming
        At most `weight`; along the rows it sums to ``(1 - trim) * weight.sum()``.
    """
    if not isinstance(trim, Tensor):
        if trim == 0:
            return weight
        n_left_out = trim * len(weight)
        if is_expanded(weight) and abs(n_left_out - round(n_left_out)) < 1e-6:
            # Rows of equal weight need not be sorted, which takes four times as long.
            highest = losses.topk(round(n_left_out), sorted=False).indices
            return weight.expand_as(losses).scatter(-1, highest, 0.0)
    order = losses.argsort(dim=-1)
    ascending = weight.expand_as(losses).gather(-1, order)
    cumulative = ascending.cumsum(dim=-1)
    total = weight.sum(dim=-1, keepdim=True)
    remaining = (1 - trim) * total - (cumulative - ascending)
    kept = torch.minimum(remaining.clamp(min=0), ascending)
    return torch.zeros_like(kept).scatter(-1, order, kept)
