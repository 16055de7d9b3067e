"""Ensembles: several networks of the same structure, computed as one module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from skae._compat import has_hooks
from skae._layers import (
    ELEMENTWISE,
    PrefixLinear,
    Residual,
    StackedLinear,
    StackedPrefixLinear,
    TangentMap,
    as_function,
    with_tangents,
)
from skae._sparse import LinearOutput
from skae.bottlenecks import Squeeze


def stack(networks: Sequence[nn.Module], fuse: bool = True) -> nn.Module:
    """Combine several networks in one module.

    Parameters
    ----------
    networks : sequence of torch.nn.Module
        Networks of the same structure; each maps (n_samples, n_inputs) to
        (n_samples, n_outputs).
    fuse : bool, default=True
        Whether networks of linear and elementwise layers may be fused: their weights
        are stacked along a first axis, and their products computed in one call.

    Returns
    -------
    torch.nn.Module
        Maps (n_networks, n_samples, n_inputs) to (n_networks, n_samples, n_outputs).
    """
    fused = _fuse(networks) if fuse else None
    return Members(networks) if fused is None else fused


def stack_squeezes(squeezes: Sequence[Squeeze]) -> Squeeze:
    """Combine the modules of several bottlenecks in one."""
    is_identity = type(squeezes[0]) is Squeeze  # for inputs of any shape
    return squeezes[0] if is_identity else MemberSqueezes(squeezes)


def encode_visible(
    encoder: nn.Module, X: Tensor, visible: Tensor, hidden: Tensor | None
) -> Tensor:
    """Return the output of the encoders of all members for the same rows.

    Parameters
    ----------
    encoder : torch.nn.Module
        Encoders of all members, a result of `stack`.
    X : Tensor of shape (n_rows, n_features)
    visible : Tensor of bool of shape (n_members, 1, n_features)
        The features that each member receives.
    hidden : Tensor of shape (n_features,) or None
        What it receives instead of the others; None means zeros.

    Returns
    -------
    Tensor of shape (n_members, n_rows, n_outputs)
    """
    if isinstance(encoder, StackedLinear):
        return encoder(X, visible, hidden)
    if isinstance(encoder, Residual):
        linear, remainder = (
            encode_visible(part, X, visible, hidden)
            for part in (encoder.linear, encoder.remainder)
        )
        return linear + remainder
    if type(encoder) is nn.Sequential and len(encoder) > 0:
        first, *others = encoder
        H = encode_visible(first, X, visible, hidden)
        for layer in others:
            H = layer(H)
        return H
    return encoder(torch.where(visible, X, 0.0 if hidden is None else hidden))


def visible_function(encoder: Any) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Return a function for `encode_visible`, without its first argument.

    It takes less time for a single row and is for immediate use, see `as_function`.
    """
    if has_hooks(encoder):
        return partial(encode_visible, encoder)
    if type(encoder) is StackedLinear:
        return encoder.forward
    if type(encoder) is Residual:
        linear = visible_function(encoder.linear)
        remainder = visible_function(encoder.remainder)
        return lambda *inputs: linear(*inputs) + remainder(*inputs)
    if type(encoder) is nn.Sequential and len(encoder) > 0:
        first, others = visible_function(encoder[0]), as_function(encoder[1:])
        return lambda *inputs: others(first(*inputs))
    return partial(encode_visible, encoder)


def join(one: Any, other: Any) -> Any:
    """Combine two stacks of networks of the same structure in one.

    Parameters
    ----------
    one, other : torch.nn.Module
        Results of `stack` or `stack_squeezes`, or sequences with such entries. Their
        members become those of the result, in this order.

    Returns
    -------
    torch.nn.Module
        With copies of all weights.
    """
    if isinstance(one, StackedLinear):
        joined = copy.deepcopy(one)
        for name in ("weight", "bias"):
            tensors = [getattr(stacked, name).detach() for stacked in (one, other)]
            setattr(joined, name, nn.Parameter(torch.cat(tensors)))
        return joined
    if isinstance(one, Members | MemberSqueezes):
        return copy.deepcopy(type(one)([*one.members, *other.members]))
    if isinstance(one, CodeWidths):
        widths = copy.deepcopy(one)
        widths.used = torch.cat([one.used, other.used])
        return widths
    if isinstance(one, Residual):
        return Residual(
            join(one.linear, other.linear), join(one.remainder, other.remainder)
        )
    if isinstance(one, nn.Sequential):
        pairs = zip(one, other, strict=True)
        return nn.Sequential(*(join(a, b) for a, b in pairs))
    return copy.deepcopy(one)  # has no weights


def take(stacked: Any, members: slice) -> Any:
    """Return some members of a stack of networks, the inverse of `join`.

    Parameters
    ----------
    stacked : torch.nn.Module
        Result of `stack` or `stack_squeezes`, or a sequence with such entries.
    members : slice
        Positions of the members.

    Returns
    -------
    torch.nn.Module
        With copies of their weights.
    """
    if isinstance(stacked, StackedLinear):
        taken = copy.copy(stacked)
        taken._parameters = {
            name: nn.Parameter(whole[members].detach().clone(), whole.requires_grad)
            for name, whole in stacked.named_parameters()
        }
        return taken
    if isinstance(stacked, Members | MemberSqueezes):
        return copy.deepcopy(type(stacked)(stacked.members[members]))
    if isinstance(stacked, CodeWidths):
        widths = copy.deepcopy(stacked)
        widths.used = stacked.used[members].clone()
        return widths
    if isinstance(stacked, Residual):
        return Residual(take(stacked.linear, members), take(stacked.remainder, members))
    if isinstance(stacked, nn.Sequential):
        return nn.Sequential(*(take(part, members) for part in stacked))
    return copy.deepcopy(stacked)  # has no weights


def stack_if_fused(networks: Sequence[nn.Module]) -> nn.Module | None:
    """Combine several networks in one module of stacked weights, or return None.

    See `stack`; None if their layers cannot be stacked, or have weights in common.
    """
    stacked = _fuse(networks)
    if stacked is None:
        return None
    n_parameters, n_stacked = (
        len(list(module.parameters())) for module in (networks[0], stacked)
    )
    return stacked if n_parameters == n_stacked else None


def set_to_slices(networks: Sequence[nn.Module], stacked: nn.Module) -> None:
    """Let networks use the memory of the stacked weights.

    Parameters
    ----------
    networks : sequence of torch.nn.Module
    stacked : torch.nn.Module
        Result of `stack_if_fused` for networks of the same structure.
    """
    stacked_layers = [p for p in stacked.modules() if isinstance(p, StackedLinear)]
    for i, network in enumerate(networks):
        kinds = (nn.Linear, PrefixLinear)
        layers = [part for part in network.modules() if type(part) in kinds]
        for layer, whole in zip(layers, stacked_layers, strict=True):
            layer.weight.data = whole.weight.data[i]
            layer.bias.data = whole.bias.data[i, :, 0]


class Members(nn.Module):
    """Networks that are evaluated one after another.

    Parameters
    ----------
    members : sequence of torch.nn.Module
        Member i is evaluated on slice i of the first axis of the input.
    """

    members: Any

    def __init__(self, members: Sequence[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, X: Tensor) -> Tensor:
        pairs = zip(self.members, X, strict=True)
        return torch.stack([member(X_member) for member, X_member in pairs])


class MemberSqueezes(Squeeze):
    """Bottlenecks that are evaluated one after another.

    Parameters
    ----------
    members : sequence of Squeeze
        Member i is evaluated on slice i of the first axis of the input.
    """

    members: Any

    def __init__(self, members: Sequence[Squeeze]):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.n_values = len(members) * members[0].n_values

    @property
    def is_continuous(self) -> bool:
        return all(member.is_continuous for member in self.members)

    def forward(self, H: Tensor) -> Tensor:
        return torch.stack([member(values) for member, values in self._pairs(H)])

    def training_code(
        self, H: Tensor, weight: Tensor, done: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        pairs = [
            member.training_code(values, weight, done)
            for member, values in self._pairs(H)
        ]
        codes, terms = zip(*pairs, strict=True)
        return torch.stack(codes), None if terms[0] is None else torch.stack(terms)

    def score_term(self, H: Tensor) -> Tensor | None:
        terms = [member.score_term(values) for member, values in self._pairs(H)]
        return None if terms[0] is None else torch.stack(terms)

    def quantize(self, H: Tensor) -> Tensor:
        """Return codebook indices, of shape (n_members, n_samples, n_groups)."""
        return torch.stack(
            [member.quantize(values) for member, values in self._pairs(H)]
        )

    def look_up(self, codes: Tensor) -> Tensor:
        """Return codebook entries, of shape (n_members, n_samples, n_components)."""
        return torch.stack(
            [member.look_up(indices) for member, indices in self._pairs(codes)]
        )

    def _pairs(self, values: Tensor) -> Iterator[tuple[Any, Tensor]]:
        return zip(self.members, values, strict=True)


class CodeWidths(nn.Module):
    """Set the components to zero that a member does not use.

    Parameters
    ----------
    widths : sequence of int
        Number of components that each member uses, the first of its code.
    n_components : int
        Number of components of a code.
    """

    used: Tensor

    def __init__(self, widths: Sequence[int], n_components: int):
        super().__init__()
        used = torch.arange(n_components) < torch.tensor(widths)[:, None, None]
        self.register_buffer("used", used.float())  # (n_members, 1, n_components)

    def forward(self, H: Tensor) -> Tensor:
        return H * self.used


def has_code_widths(encoder: nn.Module) -> bool:
    """Whether members use different numbers of components."""
    return any(isinstance(part, CodeWidths) for part in encoder.modules())


def _fuse(networks: Sequence[Any]) -> Any:
    """Return one network of stacked layers, or None if the layers cannot be stacked."""
    first = networks[0]
    if type(first) is nn.Linear and first.bias is not None:
        return StackedLinear(networks)
    if type(first) is PrefixLinear:
        return StackedPrefixLinear(networks)
    if type(first) is nn.Sequential:
        layers = list(map(_fuse, zip(*networks, strict=True)))
        return None if None in layers else nn.Sequential(*layers)
    if type(first) is Residual:
        linear = _fuse([network.linear for network in networks])
        remainder = _fuse([network.remainder for network in networks])
        return None if None in (linear, remainder) else Residual(linear, remainder)
    return first if type(first) in ELEMENTWISE else None


# Networks of sparse rows


def starts_linear(network: Any) -> bool:
    """Whether a network passes its input to linear layers only, so it may be sparse."""
    if has_hooks(network):
        return False
    if type(network) in (nn.Linear, StackedLinear):
        return True
    if type(network) is nn.Sequential:
        return len(network) > 0 and starts_linear(network[0])
    if type(network) is Residual:
        return starts_linear(network.linear) and starts_linear(network.remainder)
    return type(network) is Members and all(map(starts_linear, network.members))


def linear_end(network: nn.Module) -> Callable[[Tensor], LinearOutput] | None:
    """Return a network without the product of its last linear layer.

    None if its output is not that of a linear layer, or a sum of several.
    """
    branches = _branches(network)
    if branches is None:
        return None

    def compute(Z: Tensor) -> LinearOutput:
        units, weights, biases = [], [], []
        for body, layer in branches:
            F = Z
            for part in body:
                F = part(F)
            weight, bias = layer.weight, layer.bias
            if isinstance(layer, PrefixLinear | StackedPrefixLinear):
                weight, bias = layer.of_width(F.shape[-1])
            units.append(F)
            weights.append(weight)
            biases.append(bias[..., 0] if isinstance(layer, StackedLinear) else bias)
        if len(units) == 1:
            return LinearOutput(units[0], weights[0], biases[0])
        bias = torch.stack(biases).sum(dim=0)
        return LinearOutput(torch.cat(units, dim=-1), torch.cat(weights, dim=-1), bias)

    return compute


def linear_end_tangents(network: nn.Module) -> TangentMap | None:
    """Return `with_tangents` of a network without its last linear layer.

    Its outputs are the units of `linear_end`. None if a layer allows neither.
    """
    branches = _branches(network)
    if branches is None:
        return None
    functions = [with_tangents(*body) for body, _ in branches]
    if None in functions:
        return None

    def compute(Z: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
        units, tangents = [], []
        for function in functions:
            assert function is not None
            F, T_F = function(Z, T)
            units.append(F)
            tangents.append(T_F.expand(len(T), *F.shape))
        return torch.cat(units, dim=-1), torch.cat(tangents, dim=-1)

    return compute


def _branches(network: Any) -> list[tuple[list[nn.Module], Any]] | None:
    """Return the linear layers of which the output is a sum, each with those before."""
    if has_hooks(network):
        return None
    if type(network) in (StackedLinear, StackedPrefixLinear):
        return [([], network)]
    if type(network) in (nn.Linear, PrefixLinear):
        return None if network.bias is None else [([], network)]
    if type(network) is nn.Sequential and len(network) > 0:
        *before, end = network
        last = _branches(end)
        return last and [([*before, *body], layer) for body, layer in last]
    if type(network) is Residual:
        one, other = _branches(network.linear), _branches(network.remainder)
        return None if one is None or other is None else one + other
    return None
