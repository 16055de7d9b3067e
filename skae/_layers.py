"""PyTorch modules and initial weights that networks are composed of."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skae._compat import own_tensors

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def make_activation(activation: str | Callable[[], nn.Module]) -> nn.Module:
    """Return a new module for a name of `ACTIVATIONS` or from a factory."""
    if isinstance(activation, str):
        return ACTIVATIONS[activation]()
    return activation()


# Random modules


class NoiseModule(nn.Module):
    """Base class of the modules that draw random numbers.

    Attributes
    ----------
    generator : torch.Generator or None
        Source of the random numbers, set during training; None is PyTorch's
        global generator.
    """

    generator: torch.Generator | None = None


def random_modules(*modules: nn.Module) -> list[Any]:
    """Return the submodules that draw from an attribute `generator`.

    An attribute of this name counts if it is None or a torch.Generator. User-defined
    modules need not derive from `NoiseModule`.
    """
    return [
        part
        for module in modules
        for part in module.modules()
        if hasattr(part, "generator")
        and isinstance(part.generator, torch.Generator | None)
    ]


class Dropout(NoiseModule):
    """Dropout with its own random generator.

    ``nn.Dropout`` can only draw from PyTorch's global generator.

    Parameters
    ----------
    p : float
        Share of entries set to zero in training mode, in [0, 1); the others
        are multiplied by 1 / (1 - p).
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, H: Tensor) -> Tensor:
        if not self.training:
            return H
        kept = torch.rand(H.shape, generator=self.generator, device=H.device) >= self.p
        return H * kept / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


# Layers that compute each output from the input at the same position alone.
ELEMENTWISE = (*ACTIVATIONS.values(), Dropout, nn.Dropout)


# Layers


class Residual(nn.Module):
    """A linear map plus a nonlinear remainder, linear(x) + remainder(x)."""

    def __init__(self, linear: nn.Linear, remainder: nn.Module):
        super().__init__()
        self.linear = linear
        self.remainder = remainder

    def forward(self, X: Tensor) -> Tensor:
        return self.linear(X) + self.remainder(X)


class StackedLinear(nn.Module):
    """Linear layers of the same size, computed as one batched product.

    Parameters
    ----------
    layers : sequence of torch.nn.Linear
        Layer i is evaluated on slice i of the first axis of the input.
    """

    def __init__(self, layers: Sequence[nn.Linear]):
        super().__init__()
        with torch.no_grad():
            # (n_members, n_inputs, n_outputs) and (n_members, 1, n_outputs)
            weight = torch.stack([layer.weight.mT for layer in layers]).contiguous()
            bias = torch.stack([layer.bias for layer in layers])[:, None]
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    def forward(self, X: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, X, self.weight)

    def extra_repr(self) -> str:
        n_members, n_inputs, n_outputs = self.weight.shape
        return f"{n_members} x ({n_inputs}, {n_outputs})"


class CodeActivation(nn.Module):
    """An activation on the code; the other encoder outputs remain unchanged.

    Parameters
    ----------
    activation : torch.nn.Module
        Activation on the first `n_components` columns.
    n_components : int
        Width of the code, which comes first in a row.
    """

    def __init__(self, activation: nn.Module, n_components: int):
        super().__init__()
        self.activation = activation
        self.n_components = n_components

    def forward(self, H: Tensor) -> Tensor:
        Z, rest = H[:, : self.n_components], H[:, self.n_components :]
        return torch.cat([self.activation(Z), rest], dim=1)


class ChannelsLast(nn.Module):
    """Flatten feature maps to codes that keep the channels of a position together.

    Parameters
    ----------
    n_channels : int
        Channels of the code. A map with a multiple of this number of channels is
        flattened to several codes, one after the other.
    """

    def __init__(self, n_channels: int):
        super().__init__()
        self.n_channels = n_channels

    def forward(self, H: Tensor) -> Tensor:
        H = H.unflatten(1, (-1, self.n_channels))  # (n_samples, blocks, channels, ...)
        return H.movedim(2, -1).flatten(1)  # (n_samples, blocks * ... * channels)

    def extra_repr(self) -> str:
        return f"n_channels={self.n_channels}"


class ChannelsFirst(nn.Module):
    """Reshape codes that keep the channels of a position together to feature maps.

    Parameters
    ----------
    map_shape : tuple of int
        Shape (channels, *sizes) of a map.
    """

    def __init__(self, map_shape: tuple[int, ...]):
        super().__init__()
        self.map_shape = map_shape

    def forward(self, Z: Tensor) -> Tensor:
        n_channels, *sizes = self.map_shape
        H = Z.unflatten(1, (*sizes, n_channels))  # (n_samples, ..., channels)
        return H.movedim(-1, 1)  # (n_samples, channels, ...)

    def extra_repr(self) -> str:
        return f"map_shape={self.map_shape}"


# Output activations


class BinarySigmoid(nn.Module):
    """Sigmoid on some columns, the identity on the others.

    Parameters
    ----------
    is_binary : ndarray of bool of shape (n_features,)
        True for the columns with a sigmoid.
    """

    is_binary: Tensor

    def __init__(self, is_binary: np.ndarray):
        super().__init__()
        self.register_buffer("is_binary", torch.from_numpy(is_binary))

    def forward(self, raw: Tensor) -> Tensor:
        return torch.where(self.is_binary, raw.sigmoid(), raw)


def unbounded_columns(output: nn.Module, n_features: int) -> np.ndarray:
    """Return which columns an output activation leaves unchanged.

    Parameters
    ----------
    output : torch.nn.Module
        Activation after the decoder.
    n_features : int
        Number of columns.

    Returns
    -------
    ndarray of bool of shape (n_features,)
        All columns under ``nn.Identity``, those without a sigmoid under
        `BinarySigmoid`, none under any other module.
    """
    if isinstance(output, BinarySigmoid):
        return ~output.is_binary.cpu().numpy()
    return np.full(n_features, isinstance(output, nn.Identity))


# Initial weights


def linear(n_inputs: int, n_outputs: int, generator: torch.Generator) -> nn.Linear:
    """Return an ``nn.Linear`` with PyTorch's usual initial weights from `generator`."""
    layer = nn.utils.skip_init(nn.Linear, n_inputs, n_outputs)
    return initialize(layer, n_inputs, generator)


def initialize(layer: Any, fan_in: int, generator: torch.Generator) -> Any:
    """Draw weights and biases uniformly from +-1/sqrt(fan_in), in place."""
    bound = 1 / math.sqrt(fan_in)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


def initialize_as_linear_map(network: nn.Module, matrix: np.ndarray) -> nn.Module:
    r"""Initialize a network as a linear map; all its weights can still be trained.

    A network without hidden layers gets the matrix as its weights. Any other network
    f is added to a linear layer with these weights, and the last layer of f starts at
    zero:

    .. math:: x \mapsto W x + f(x), \quad f = 0 \text{ at first.}

    Parameters
    ----------
    network : torch.nn.Module
        Ends in a linear layer or in a transposed convolution.
    matrix : ndarray of shape (n_outputs, n_inputs)
        W.

    Returns
    -------
    torch.nn.Module
        The network itself, or a `Residual`.
    """
    layers: list[Any] = [
        part for part in network.modules() if getattr(part, "weight", None) is not None
    ]
    last = layers[-1]
    if len(layers) == 1:
        linear, initialized = last, network
    else:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        linear = nn.utils.skip_init(nn.Linear, matrix.shape[1], matrix.shape[0])
        initialized = Residual(linear, network)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(matrix))
        linear.bias.zero_()
    return initialized


# Storage and hooks of modules


class FrozenModule:
    """A module whose parameters and buffers are stored separately, as arrays.

    PyTorch's own pickles differ between equal tensors; those of arrays do not.

    Parameters
    ----------
    module : torch.nn.Module
        Module to store; it is not modified.
    """

    def __init__(self, module: nn.Module):
        self.arrays: list[tuple[np.ndarray, bool | None]] = []
        # (submodule, "parameters" or "buffers", name, index in arrays); all names of a
        # shared tensor have the same index.
        self.places: list[tuple[str, str, str, int]] = []
        indices: dict[int, int] = {}
        for path, part in module.named_modules():
            for kind, own in own_tensors(part).items():
                for name, tensor in own.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in indices:
                        indices[id(tensor)] = len(self.arrays)
                        requires_grad = (
                            tensor.requires_grad if kind == "parameters" else None
                        )
                        array = tensor.detach().cpu().numpy()
                        self.arrays.append((array, requires_grad))
                    self.places.append((path, kind, name, indices[id(tensor)]))
        # The copy has None in place of each tensor.
        self.structure = copy.deepcopy(module, dict.fromkeys(indices))

    def thaw(self) -> nn.Module:
        """Return a new module with copies of the stored parameters and buffers."""
        module = copy.deepcopy(self.structure)
        tensors = [
            torch.from_numpy(array.copy())
            if requires_grad is None
            else nn.Parameter(torch.from_numpy(array.copy()), requires_grad)
            for array, requires_grad in self.arrays
        ]
        for path, kind, name, index in self.places:
            own_tensors(module.get_submodule(path))[kind][name] = tensors[index]
        return module


@contextmanager
def forward_hooks(
    layers: Iterable[nn.Module], hook: Callable[[Any, Any, Any], None]
) -> Iterator[None]:
    """Call ``hook(layer, inputs, output)`` after each forward pass of these layers."""
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
