"""Several networks of the same structure that work as one, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from skae._layers import ELEMENTWISE, Residual, StackedLinear
from skae.bottlenecks import Squeeze


class Ensemble(NamedTuple):
    """How many networks are trained side by side, and how they differ.

    Attributes
    ----------
    n_members : int
    visible : Tensor of bool of shape (n_members, 1, n_features)
        Features that each member's encoder sees.
    widths : tuple of int or None
        Units of the code that each member uses, >= 0; None is all of them.
    """

    n_members: int
    visible: Tensor
    widths: tuple[int, ...] | None


def stack(networks: Sequence[nn.Module], fuse: bool = True) -> nn.Module:
    """Make one module of several, the first axis of whose tensors counts them.

    Parameters
    ----------
    networks : sequence of torch.nn.Module
        Of the same structure; each maps (n_samples, n_inputs) to
        (n_samples, n_outputs).
    fuse : bool, default=True
        Whether networks that consist of linear and elementwise layers may become
        one with their weights in common tensors, whose products are computed
        together.

    Returns
    -------
    stacked : torch.nn.Module
        Maps (n_networks, n_samples, n_inputs) to (n_networks, n_samples, n_outputs).
    """
    fused = _fused(networks) if fuse else None
    return Members(networks) if fused is None else fused


def stack_squeezes(squeezes: Sequence[Squeeze]) -> Squeeze:
    """As `stack`, for the modules of bottlenecks."""
    plain = type(squeezes[0]) is Squeeze  # changes nothing, whatever the shape
    return squeezes[0] if plain else MemberSqueezes(squeezes)


class Members(nn.Module):
    """Networks one after another, each with its own slice of the input.

    Parameters
    ----------
    members : sequence of torch.nn.Module
    """

    members: Any

    def __init__(self, members: Sequence[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, X: Tensor) -> Tensor:
        pairs = zip(self.members, X, strict=True)
        return torch.stack([member(own) for member, own in pairs])


class MemberSqueezes(Squeeze):
    """The bottlenecks of several networks.

    Parameters
    ----------
    members : sequence of Squeeze
    """

    members: Any

    def __init__(self, members: Sequence[Squeeze]):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.n_values = len(members) * members[0].n_values

    def forward(self, H: Tensor) -> Tensor:
        return torch.stack([member(own) for member, own in self._pairs(H)])

    def training_code(
        self, H: Tensor, weight: Tensor, done: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        pairs = [
            member.training_code(own, weight, done) for member, own in self._pairs(H)
        ]
        codes, terms = zip(*pairs, strict=True)
        return torch.stack(codes), None if terms[0] is None else torch.stack(terms)

    def score_term(self, H: Tensor) -> Tensor | None:
        terms = [member.score_term(own) for member, own in self._pairs(H)]
        return None if terms[0] is None else torch.stack(terms)

    def quantize(self, H: Tensor) -> Tensor:
        """Positions in the codebooks, of shape (n_members, n_samples, n_groups)."""
        return torch.stack([member.quantize(own) for member, own in self._pairs(H)])

    def look_up(self, codes: Tensor) -> Tensor:
        """Entries at these positions, (n_members, n_samples, n_components)."""
        return torch.stack([member.look_up(own) for member, own in self._pairs(codes)])

    def _pairs(self, values: Tensor) -> Iterator[tuple[Any, Tensor]]:
        return zip(self.members, values, strict=True)


class CodeWidths(nn.Module):
    """Sets the units of the code to zero that a member does not use.

    Parameters
    ----------
    widths : sequence of int
        Units that each member uses, the first of its code.
    n_components : int
        Units that its code has.
    """

    used: Tensor

    def __init__(self, widths: Sequence[int], n_components: int):
        super().__init__()
        used = torch.arange(n_components) < torch.tensor(widths)[:, None, None]
        self.register_buffer("used", used.float())  # (n_members, 1, n_components)

    def forward(self, H: Tensor) -> Tensor:
        return H * self.used


def _fused(networks: Sequence[Any]) -> Any:
    """The networks as one of stacked layers, or None where some cannot be stacked."""
    first = networks[0]
    if type(first) is nn.Linear and first.bias is not None:
        return StackedLinear(networks)
    if type(first) is nn.Sequential:
        layers = list(map(_fused, zip(*networks, strict=True)))
        return None if None in layers else nn.Sequential(*layers)
    if type(first) is Residual:
        linear = _fused([network.linear for network in networks])
        remainder = _fused([network.remainder for network in networks])
        return None if None in (linear, remainder) else Residual(linear, remainder)
    return first if type(first) in ELEMENTWISE else None
