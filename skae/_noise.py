"""The noise of a probabilistic decoder: its level, and likelihoods of the losses."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from skae.losses import Loss

# Decay of the moving average, at each step, from which a level is learnt.
DECAY = 0.98

# Smallest learnt level, relative to the initial one: without it, the likelihood of rows
# that are reproduced exactly, such as constant ones, would have no bound.
MIN_LEVEL = 1e-6


class Noise(nn.Module):
    r"""Distribution of the entries of a row around its reconstruction.

    .. math:: p(x \mid \hat x) = \exp(-\ell(x, \hat x) / s) / Z(s)

    with the scale s that belongs to the level of the noise, the mean loss that it
    causes (see `Loss.noise_scale`). Columns in which the loss is a negative
    log-likelihood itself have the scale 1.

    Parameters
    ----------
    loss : Loss
        Its methods `noise_scale` and `log_normalizer` are used.
    is_scaled : Tensor of bool of shape (n_features,)
        False for the columns with the scale 1.
    level : float
        Level of the noise, or its initial value.
    is_learnt : bool
        Whether `update` changes the level.
    n_members : int or None, default=None
        Number of networks, each with a level of its own; None if there is only one, and
        its tensors have no axis for members.

    Attributes
    ----------
    level : Tensor of shape () or (n_members, 1, 1)
        Mean loss of an entry in the scaled space.
    """

    level: Tensor
    lowest: Tensor
    is_scaled: Tensor

    def __init__(
        self,
        loss: Loss,
        is_scaled: Tensor,
        level: float,
        is_learnt: bool,
        n_members: int | None = None,
    ):
        super().__init__()
        self.loss: Any = loss
        self.is_learnt = is_learnt
        shape = () if n_members is None else (n_members, 1, 1)
        lowest = max(MIN_LEVEL * level, MIN_LEVEL**2) if is_learnt else level
        self.register_buffer("level", torch.full(shape, max(level, lowest)))
        self.register_buffer("lowest", torch.full(shape, lowest))
        self.register_buffer("is_scaled", is_scaled)

    @property
    def scale(self) -> Tensor:
        """The scale s, of the shape of `level`."""
        # A copy, since `update` may change the level before a backward pass.
        return self.loss.noise_scale(self.level.clone())

    def negative_log_likelihood(self, losses: Tensor) -> Tensor:
        """Compute -log p of each entry.

        Parameters
        ----------
        losses : Tensor of shape (n_samples, n_features), or (n_members, ...)
            Losses of the entries.

        Returns
        -------
        Tensor of the same shape
        """
        s = self.scale
        scaled = losses / s + self.loss.log_normalizer(s)
        return torch.where(self.is_scaled, scaled, losses)

    def energy(self, losses: Tensor) -> Tensor:
        """Compute ``s * (-log p - log Z(s))`` of each entry, which is non-negative.

        In the columns that have a scale, this is the loss itself.
        """
        return torch.where(self.is_scaled, losses, self.scale * losses)

    def joined(self, other: Noise) -> Noise:
        """Return the noise of the members of both, in this order."""
        noise = copy.deepcopy(self)
        noise.level = torch.cat([self.level.reshape(-1, 1, 1), other.level])
        noise.lowest = torch.cat([self.lowest.reshape(-1, 1, 1), other.lowest])
        return noise

    def taken(self, members: slice) -> Noise:
        """Return the noise of some members."""
        noise = copy.deepcopy(self)
        noise.level, noise.lowest = self.level[members], self.lowest[members]
        return noise

    @torch.no_grad()
    def update(self, losses: Tensor, observed: Tensor | None, weight: Tensor) -> None:
        """Move the level towards the mean loss of a batch, if it is learnt.

        Parameters
        ----------
        losses : Tensor of shape (n_samples, n_features), or (n_members, ...)
            Losses of the entries.
        observed : Tensor of bool of shape (n_samples, n_features) or None
            False where an entry is missing; None if none is.
        weight : Tensor of shape (n_samples,), or (n_members, n_samples)
            Non-negative weights of the rows.
        """
        if not self.is_learnt:
            return
        counts = self.is_scaled
        if observed is not None:
            counts = counts & observed
        total = torch.where(counts, losses, 0).sum(dim=-1)  # (..., n_samples)
        size = counts.sum(dim=-1).to(total)  # (n_samples,) or ()
        size = (weight * size).sum(dim=-1).expand(total.shape[:-1])
        mean = (weight * total).sum(dim=-1) / size.clamp(min=1e-30)
        moved = self.level.lerp(mean.to(self.level).view_as(self.level), 1 - DECAY)
        moved = torch.maximum(moved, self.lowest)
        is_known = size.reshape(self.level.shape) > 0
        self.level.copy_(torch.where(is_known, moved, self.level))
