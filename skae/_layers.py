"""PyTorch modules and initial weights that networks are composed of."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import getattr_static
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear as linear_function

from skae._compat import has_hooks, own_tensors
from skae._generator import isolated_generator
from skae._processor import own_settings
from skae.engine import products

# Factor of the input with which the logistic function is closest to the normal
# distribution function.
LOGISTIC_SCALE = 1.702


class QuickGELU(nn.Module):
    r"""A smooth rectifier that approximates GELU, in half of its time.

    .. math:: y = x \, \sigma(1.702 \, x)

    with the logistic function :math:`\sigma` [1]_. It differs from GELU by at most
    0.021.

    References
    ----------
    .. [1] Hendrycks, D., & Gimpel, K. (2016). Gaussian error linear units (GELUs).
       arXiv:1606.08415.
    """

    def forward(self, X: Tensor) -> Tensor:
        return X * torch.sigmoid(LOGISTIC_SCALE * X)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "quick_gelu": QuickGELU,
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


def check_activation(name: str, activation: Any, *, may_be_auto: bool = False) -> None:
    """Raise an error unless `make_activation` returns a new module.

    Parameters
    ----------
    name : str
        Name of the parameter, for the error message.
    activation : object
        Value of the parameter.
    may_be_auto : bool, default=False
        Whether ``"auto"`` is allowed.

    Raises
    ------
    ValueError
        If the value is a string that is no name of `ACTIVATIONS`.
    TypeError
        If it is anything else than a string or a callable that returns a module.
    """
    names = (["auto"] if may_be_auto else []) + sorted(ACTIVATIONS)
    allowed = (
        f"{name} must be one of {names}, or a callable that returns a new "
        "torch.nn.Module when it is called without arguments"
    )
    if isinstance(activation, str):
        if activation not in names:
            raise ValueError(f"{allowed}, got {activation!r}.")
        return
    if isinstance(activation, nn.Module):
        # Each layer needs an activation of its own, which may have parameters.
        kind = type(activation)
        raise TypeError(
            f"{allowed}, got the module {activation!r}. Pass the class itself, "
            f"{kind.__name__}, or a function: lambda: {activation!r}."
        )
    if not callable(activation):
        raise TypeError(f"{allowed}, got {activation!r}.")
    try:
        with isolated_generator(may_draw(activation), 0, torch.device("cpu")):
            module = activation()
    except Exception as error:
        raise TypeError(f"{allowed}, got {activation!r}: {error}") from error
    if not isinstance(module, nn.Module):
        raise TypeError(f"{allowed}, got {activation!r}, which returns {module!r}.")


def may_draw(activation: Any) -> bool:
    """Whether an activation may draw from PyTorch's global random generator.

    ``nn.RReLU`` and user-defined modules may, the modules of `ACTIVATIONS` do not.
    """
    return not isinstance(activation, str) and activation not in ACTIVATIONS.values()


# Activations of PyTorch that combine the entries of an axis, which may be the rows.
_COMBINING = (
    nn.GLU,
    nn.LogSoftmax,
    nn.MultiheadAttention,
    nn.Softmax,
    nn.Softmax2d,
    nn.Softmin,
)


def may_mix_rows(activation: Any) -> bool:
    """Whether the output of an activation for a row may depend on other rows.

    PyTorch's activations on single entries do not, other modules may.
    """
    if not may_draw(activation):
        return False
    with isolated_generator(True, 0, torch.device("cpu")):
        module = make_activation(activation)
    is_known = type(module).__module__ == nn.ReLU.__module__
    return not is_known or isinstance(module, _COMBINING)


# Units that are set to zero


def keep_active(H: Tensor, active: Tensor, factor: float = 1.0) -> Tensor:
    """Set the inactive entries of a code to zero; units that are off can come back.

    An entry that is set to zero has no gradient. A unit that is inactive in all rows of
    a batch would therefore never change again. For such a unit, entries receive the
    gradient of the code where a step along it raises them, that is, in the rows whose
    objective decreases if the unit becomes active.

    Parameters
    ----------
    H : Tensor of shape (..., n_samples, n_units)
        Values before they are set to zero.
    active : Tensor of bool of the same shape
        True for the entries to keep.
    factor : float, default=1.0
        Factor of the gradient of units that are inactive in all rows.

    Returns
    -------
    Tensor of the shape of `H`
    """
    return _KeepActive.apply(H, active, factor)


class _KeepActive(torch.autograd.Function):
    """Function and gradient of `keep_active`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(H: Tensor, active: Tensor, factor: float) -> Tensor:
        return torch.where(active, H, 0)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor
    ) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.factor = inputs[2]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (active,) = ctx.saved_tensors
        is_off = ~active.any(dim=-2, keepdim=True)
        raised = torch.where(is_off & (gradient < 0), ctx.factor * gradient, 0)
        return torch.where(active, gradient, raised), None, None


class Rectifier(nn.Module):
    """Rectification of a code, max(z, 0), with units that can come back.

    Attributes
    ----------
    revives : bool
        Whether units that are zero in a whole batch receive a gradient in training
        mode, see `keep_active`; if False, the gradient is that of ``nn.ReLU``.
    """

    revives: bool = True

    def forward(self, H: Tensor) -> Tensor:
        if self.training and self.revives:
            return keep_active(H, H > 0)
        return H.relu()


@contextmanager
def exact_derivatives(*modules: nn.Module) -> Iterator[None]:
    """Context in which each `Rectifier` in these modules has its true derivative."""
    rectifiers = [
        part
        for module in modules
        for part in module.modules()
        if isinstance(part, Rectifier)
    ]
    for part in rectifiers:
        part.revives = False
    try:
        yield
    finally:
        for part in rectifiers:
            del part.revives  # back to the attribute of the class


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
    modules need not derive from `NoiseModule`. A submodule, parameter or buffer of
    this name, also one that is registered as None, and a property are no source of
    random numbers.
    """
    return [part for module in modules for part in module.modules() if _is_random(part)]


def _is_random(module: nn.Module) -> bool:
    value = vars(module).get("generator", module)
    if value is module:  # no attribute of the instance
        value = getattr_static(type(module), "generator", module)
    return isinstance(value, torch.Generator | None)


@contextmanager
def using_generator(generator: torch.Generator, *modules: nn.Module) -> Iterator[None]:
    """Context in which `random_modules` of these modules use this generator."""
    parts = random_modules(*modules)
    for part in parts:
        part.generator = generator
    try:
        yield
    finally:
        for part in parts:
            part.generator = None


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
ELEMENTWISE = (*ACTIVATIONS.values(), Rectifier, Dropout, nn.Dropout)


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
            # (n_members, n_outputs, n_inputs) and (n_members, n_outputs, 1)
            weight = torch.stack([layer.weight for layer in layers])
            bias = torch.stack([layer.bias for layer in layers])[:, :, None]
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    def forward(
        self, X: Tensor, visible: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tensor:
        """Compute the layers of all members.

        In memory, the rows are the last axis of the result: the products of narrow
        layers then take half of the time, because rows are more numerous than units.

        Parameters
        ----------
        X : Tensor of shape (n_members, n_rows, n_inputs) or (n_rows, n_inputs)
            Inputs of each member, or with `visible` the inputs that all have in common.
        visible : Tensor of bool of shape (n_members, 1, n_inputs), default=None
            The inputs that each member receives; for the others it receives `hidden`.
            Instead of the inputs, the weights are masked, so that a single product
            computes all members.
        hidden : Tensor of shape (n_inputs,), default=None
            None means zeros.

        Returns
        -------
        Tensor of shape (n_members, n_rows, n_outputs)
        """
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if visible is None:
            # For few rows, the choice of a library would take longer than the product.
            is_dense = isinstance(X, Tensor)  # else columns of sparse rows
            if torch.is_inference_mode_enabled() and is_dense and X.shape[1] >= 16:
                return products.multiply(weight, X.mT, bias).mT
            return torch.baddbmm(bias, weight, X.mT).mT
        masked = weight * visible
        if hidden is not None:
            bias = bias + (weight - masked) @ hidden[:, None]
        # (n_members * n_outputs, n_inputs)
        flat = masked.flatten(end_dim=1)
        H = torch.addmm(bias.flatten(end_dim=1), flat, X.mT)
        return H.unflatten(0, weight.shape[:2]).mT

    def extra_repr(self) -> str:
        n_members, n_outputs, n_inputs = self.weight.shape
        return f"{n_members} x ({n_inputs}, {n_outputs})"


class PrefixLinear(nn.Linear):
    r"""First layer of a decoder that takes the first k of K ordered components.

    .. math:: y = W_{:, :k} z_{1:k} + c_k + b

    The column :math:`c_k` tells the layers after this one how many components there
    are. The weight, of shape (n_outputs, 2 K), consists of W and the columns c. The
    width of an input is k or, in training, 2 K: the components, zero beyond the first
    k, and a one at the position of k among zeros.
    """

    @staticmethod
    def replace(layer: nn.Linear) -> None:
        """Let a linear layer take its first inputs; columns c of zeros are added."""
        with torch.no_grad():
            weight = torch.cat([layer.weight, torch.zeros_like(layer.weight)], dim=1)
        layer.weight = nn.Parameter(weight, layer.weight.requires_grad)
        layer.in_features *= 2
        layer.__class__ = PrefixLinear

    @classmethod
    def identity(cls, n_inputs: int) -> PrefixLinear:
        """Return a layer whose output is its input, padded with zeros."""
        layer: Any = _UninitializedLinear(n_inputs, n_inputs)
        with torch.no_grad():
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)
        cls.replace(layer)
        return layer

    def of_width(self, width: int) -> tuple[Tensor, Tensor]:
        """Return weight and bias for inputs of a width."""
        if width == self.in_features:
            return self.weight, self.bias
        n_inputs = self.in_features // 2
        return self.weight[:, :width], self.bias + self.weight[:, n_inputs + width - 1]

    def forward(self, Z: Tensor) -> Tensor:
        return linear_function(Z, *self.of_width(Z.shape[-1]))


class StackedPrefixLinear(StackedLinear):
    """`PrefixLinear` layers of the same size, computed as one batched product."""

    def of_width(self, width: int) -> tuple[Tensor, Tensor]:
        """Return weight and bias for inputs of a width."""
        n_inputs = self.weight.shape[2] // 2
        if width == 2 * n_inputs:
            return self.weight, self.bias
        told = self.weight[:, :, n_inputs + width - 1, None]
        return self.weight[:, :, :width], self.bias + told

    def forward(
        self, X: Tensor, visible: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tensor:
        assert visible is None  # it is no layer of an encoder
        weight, bias = self.of_width(X.shape[-1])
        return torch.baddbmm(bias, weight, X.mT).mT


def take_prefixes(decoder: nn.Module, n_components: int) -> nn.Module:
    """Return a decoder that also takes the first of its components, see `PrefixLinear`.

    Parameters
    ----------
    decoder : torch.nn.Module
        Takes codes of `n_components` values. Its first layers are replaced if they are
        linear and certainly nothing else receives these values; otherwise a layer is
        put before the decoder.
    n_components : int
    """
    layers = _input_layers(decoder)
    if layers is None:
        return nn.Sequential(PrefixLinear.identity(n_components), decoder)
    for layer in layers:
        PrefixLinear.replace(layer)
    return decoder


def _input_layers(network: Any) -> list[nn.Linear] | None:
    """Return the linear layers that alone receive the input of a network.

    None if the input may be used elsewhere: by a module of unknown type, or by a hook.
    """
    if has_hooks(network):
        return None
    if type(network) is Residual:
        found: list[nn.Linear] = []
        for part in network.children():
            layers = _input_layers(part)
            if layers is None:
                return None
            found += layers
        return found
    if type(network) is nn.Sequential and len(network):
        return _input_layers(network[0])
    is_linear = type(network) is nn.Linear and network.bias is not None
    return [network] if is_linear else None


class FirstComponents(nn.Module):
    """Keep the first components of each block of an encoder's output.

    Parameters
    ----------
    n_components : int
        Width of a block: codes, or means and log-variances.
    n_kept : int
        Number of components to keep.
    """

    def __init__(self, n_components: int, n_kept: int):
        super().__init__()
        self.n_components = n_components
        self.n_kept = n_kept

    def forward(self, H: Tensor) -> Tensor:
        blocks = H.unflatten(-1, (-1, self.n_components))
        return blocks[..., : self.n_kept].flatten(-2)

    def extra_repr(self) -> str:
        return f"{self.n_kept} of {self.n_components}"


def linear_part(network: nn.Module) -> nn.Module:
    """Return a copy of the linear layer to which a `Residual` adds, or of a network."""
    part = network.linear if type(network) is Residual else network
    return copy.deepcopy(part)


def as_function(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function that computes the output of a network in less time.

    A call of a module takes longer than its operation for a single row. The function
    calls only modules of other kinds than those of this package, and those with hooks.
    It is for immediate use: it does not follow changes of the network.
    """
    functions: list[Callable[[Tensor], Tensor]] = []
    _append_functions(network, functions)

    def run(X: Tensor) -> Tensor:
        for function in functions:
            X = function(X)
        return X

    return run


def _append_functions(
    network: nn.Module, functions: list[Callable[[Tensor], Tensor]]
) -> None:
    """Append functions to a list whose composition computes a network's output."""
    kind = type(network)
    if has_hooks(network):
        functions.append(network)
    elif kind is nn.Sequential:
        for layer in network:  # type: ignore[attr-defined]
            _append_functions(layer, functions)
    elif kind is nn.Identity:
        pass
    elif kind is Residual:
        linear = as_function(network.linear)  # type: ignore[arg-type]
        remainder = as_function(network.remainder)  # type: ignore[arg-type]
        functions.append(lambda X: linear(X) + remainder(X))
    elif kind is nn.Linear:
        weight: Any = network.weight
        bias: Any = network.bias
        functions.append(lambda X: linear_function(X, weight, bias))
    else:
        is_known = kind in ELEMENTWISE or kind.__module__.partition(".")[0] == "skae"
        functions.append(network.forward if is_known else network)


# Layers whose weights depend on the width of the input.
_PREFIX_LAYERS = (PrefixLinear, StackedPrefixLinear)

# Function that maps an input and tangents of it to the output and its tangents.
TangentMap: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def with_tangents(*networks: nn.Module) -> TangentMap | None:
    """Return a function that computes outputs and their derivatives.

    The derivatives are exact up to those of the activations, which are estimated by
    forward differences. As an activation is evaluated once more, and not once for each
    derivative, this takes less time than differences of the network's outputs.

    Parameters
    ----------
    *networks : torch.nn.Module
        In evaluation mode; each receives the output of the one before.

    Returns
    -------
    function : callable or None
        The function maps inputs (..., n_samples, n_inputs) and tangents (n_tangents,
        ..., n_samples, n_inputs), or of a shape that can be broadcast to it, to outputs
        and tangents of the same kind. None if a network has other layers than linear
        and elementwise ones, or hooks. As for `as_function`, it is for immediate use.
    """
    functions: list[TangentMap] = []
    if not all(_append_tangents(network, functions) for network in networks):
        return None

    def run(X: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
        for function in functions:
            X, T = function(X, T)
        return X, T

    return run


def _append_tangents(network: nn.Module, functions: list[TangentMap]) -> bool:
    """Append functions to a list, as `_append_functions`; return whether it can be."""
    kind = type(network)
    if has_hooks(network):
        return False
    if kind is nn.Sequential:
        return all(_append_tangents(layer, functions) for layer in network)  # type: ignore[attr-defined]
    if kind is Residual:
        parts = [with_tangents(network.linear), with_tangents(network.remainder)]  # type: ignore[arg-type]
        if None in parts:
            return False
        functions.append(partial(_summed, parts))
    elif kind is nn.Linear:
        functions.append(partial(_linear_tangents, network.weight, network.bias))
    elif kind in _PREFIX_LAYERS:
        functions.append(partial(_prefix_tangents, network))
    elif kind is StackedLinear:
        functions.append(partial(_stacked_tangents, network.weight, network.bias))
    elif kind in ELEMENTWISE and kind is not nn.Identity:
        functions.append(partial(_elementwise_tangents, network.forward))
    else:
        return kind is nn.Identity
    return True


def _summed(parts: Any, X: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
    (Y, T_linear), (remainder, T) = (part(X, T) for part in parts)
    return Y + remainder, T_linear + T


def _linear_tangents(
    weight: Any, bias: Any, X: Tensor, T: Tensor
) -> tuple[Tensor, Tensor]:
    return linear_function(X, weight, bias), linear_function(T, weight)


def _prefix_tangents(layer: Any, X: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
    weight, _ = layer.of_width(X.shape[-1])
    return layer(X), T @ weight.mT


def _stacked_tangents(
    weight: Any, bias: Any, X: Tensor, T: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.baddbmm(bias, weight, X.mT).mT, T @ weight.mT


def _elementwise_tangents(function: Any, X: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
    # Near the fourth root of the machine epsilon, as `skae._refine.min_step`. Adding a
    # power of two causes few rounding errors.
    width = 2.0 ** round(math.log2(torch.finfo(X.dtype).eps) / 4)
    moved = function(X + width)  # before `function(X)`, which may overwrite X
    Y = function(X)
    return Y, T * moved.sub_(Y).mul_(1 / width)


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


def input_norms(network: nn.Module, n_inputs: int) -> Tensor | None:
    """Return the norm of the first layer's weights for each input of a network.

    Parameters
    ----------
    network : torch.nn.Module
        Takes rows of `n_inputs` values. Its first layer with weights is taken to be
        the first in the order of its submodules.
    n_inputs : int
        Number of inputs.

    Returns
    -------
    norms : Tensor of shape (n_inputs,) or (n_networks, n_inputs), or None
        Differentiable. The second shape is that of stacked networks. None if the first
        layer is no linear map of the inputs whose weights are known.
    """
    if isinstance(network, Residual):
        parts = [input_norms(part, n_inputs) for part in network.children()]
        if any(norms is None for norms in parts):
            return None
        return torch.stack(parts).square().sum(dim=0).sqrt()  # type: ignore[arg-type]
    if isinstance(network, nn.Linear) and network.in_features == n_inputs:
        return _norm(network.weight, 0)
    if isinstance(network, StackedLinear) and network.weight.shape[2] == n_inputs:
        return _norm(network.weight, 1)
    if isinstance(network, nn.ConvTranspose1d | nn.ConvTranspose2d):
        # Maps come from `ChannelsFirst`: the channels of a position are consecutive.
        return _norm(network.weight.flatten(1), 1).repeat(
            n_inputs // network.in_channels
        )
    for part in network.children():
        if isinstance(part, Residual) or any(True for _ in part.parameters()):
            return input_norms(part, n_inputs)
    return None


def first_layers(network: nn.Module) -> list[Any]:
    """Return the layers of a network whose weights `input_norms` takes."""
    if isinstance(network, Residual):
        return [layer for part in network.children() for layer in first_layers(part)]
    if isinstance(network, nn.Linear | nn.ConvTranspose1d | nn.ConvTranspose2d):
        return [network]
    for part in network.children():
        if isinstance(part, Residual) or any(True for _ in part.parameters()):
            return first_layers(part)
    return []


def last_layers(network: nn.Module) -> list[Any]:
    """Return the dense layers whose sum is the output of a network; see `Residual`."""
    if isinstance(network, Residual):
        return [layer for part in network.children() for layer in last_layers(part)]
    if isinstance(network, nn.Linear):
        return [network]
    return last_layers(network[-1]) if isinstance(network, nn.Sequential) else []


@torch.no_grad()
def takes_inputs_in_order(network: nn.Module, n_inputs: int) -> bool:
    """Whether `input_norms` returns the norms of a network's inputs.

    It is a guess for user-defined networks, which may scale or reorder their inputs
    before the first layer, or apply their layers in another order.

    Parameters
    ----------
    network : torch.nn.Module
        Takes rows of `n_inputs` values. It is not changed.
    n_inputs : int
        Number of inputs.
    """
    network = copy.deepcopy(network).eval()
    norms = input_norms(network, n_inputs)
    layers = first_layers(network)
    if norms is None or norms.shape != (n_inputs,) or not layers:
        return False
    received: list[Tensor] = []

    def record(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        received.append(inputs[0].movedim(1, -1).flatten(1))  # as in `ChannelsLast`

    rows = torch.eye(n_inputs, dtype=norms.dtype, device=norms.device)
    with forward_hooks(layers, record):
        network(rows)
    return len(received) == len(layers) and all(
        values.shape == rows.shape and torch.equal(values, rows) for values in received
    )


def _norm(weight: Tensor, dim: int) -> Tensor:
    # The derivative of the norm of zeros would be NaN.
    return (weight.square().sum(dim=dim) + torch.finfo(weight.dtype).tiny).sqrt()


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


class BlockSoftmax(nn.Module):
    """Softmax on each block of columns, another activation on the other columns.

    Parameters
    ----------
    output : torch.nn.Module
        Activation of values with one column for each feature.
    layout : Layout
        Columns of the features.
    unlikely : ndarray of shape (n_features,)
        Probability of a category that no training row has, for each feature.
    """

    first: Tensor
    numbers: Tensor
    is_one_hot: Tensor
    column_order: Tensor
    feature_order: Tensor

    def __init__(self, output: nn.Module, layout: Any, unlikely: np.ndarray):
        super().__init__()
        self.output = output
        blocks = list(layout.blocks())
        self.n_kinds = len(blocks)
        first, is_categorical = layout.first, np.array(layout.is_categorical)
        numbers = np.flatnonzero(~is_categorical)
        features = np.concatenate([numbers, *(features for features, _ in blocks)])
        columns = [columns.ravel() for _, columns in blocks]
        positions = {
            "first": first,
            "numbers": numbers,
            "feature_order": np.argsort(features),
            "column_order": np.argsort(np.concatenate([first[numbers], *columns])),
            "is_one_hot": layout.is_one_hot,
            **{f"block_{i}": columns for i, (_, columns) in enumerate(blocks)},
            **{f"unlikely_{i}": unlikely[where] for i, (where, _) in enumerate(blocks)},
        }
        for name, values in positions.items():
            self.register_buffer(name, torch.from_numpy(values))

    def forward(self, raw: Tensor) -> Tensor:
        numbers = self.output(self.of_features(raw))[..., self.numbers]
        blocks = [self.block(raw, i).softmax(-1) for i in range(self.n_kinds)]
        joined = torch.cat([numbers, *(block.flatten(-2) for block in blocks)], dim=-1)
        return joined[..., self.column_order]

    def of_features(self, values: Tensor) -> Tensor:
        """Return the first column of each feature, of shape (..., n_features)."""
        return values[..., self.first]

    def block(self, values: Tensor, kind: int) -> Tensor:
        """Return the columns of the features with one number of categories.

        Parameters
        ----------
        values : Tensor of shape (..., n_columns)
        kind : int
            Position in `Layout.blocks`.

        Returns
        -------
        Tensor of shape (..., n_blocks, n_categories)
        """
        return values[..., getattr(self, f"block_{kind}")]

    def probability(self, X: Tensor, P: Tensor, kind: int) -> Tensor:
        """Return the probability of the category of each row, (..., n_blocks).

        Parameters
        ----------
        X : Tensor of shape (..., n_columns)
            Encoded rows.
        P : Tensor of shape (..., n_blocks, n_categories)
            Probabilities of the categories of the features of `block`.
        kind : int
            Position in `Layout.blocks`.
        """
        x = self.block(X, kind)
        unlikely = getattr(self, f"unlikely_{kind}").to(P)
        return torch.where(x.sum(dim=-1) > 0, (x * P).sum(dim=-1), unlikely)

    def cross_entropy(self, X: Tensor, log_P: Tensor, kind: int) -> Tensor:
        """Return minus the logarithm of `probability`, from those of probabilities."""
        x = self.block(X, kind)
        entropy = -(x * log_P).sum(dim=-1)
        unlikely = getattr(self, f"unlikely_{kind}").to(log_P)
        return torch.where(x.sum(dim=-1) > 0, entropy, -unlikely.log())

    def joined_features(self, numbers: Tensor, blocks: list[Tensor]) -> Tensor:
        """Join values of features of numbers and of categorical ones.

        Parameters
        ----------
        numbers : Tensor of shape (..., n_features)
            Values, of which those of categorical features are not used.
        blocks : list of Tensor of shape (..., n_blocks)
            Values of the features of each block.

        Returns
        -------
        Tensor of shape (..., n_features)
        """
        parts = torch.cat([numbers[..., self.numbers], *blocks], dim=-1)
        return parts[..., self.feature_order]


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
        `BinarySigmoid`, those without a softmax under `BlockSoftmax` if its other
        activation leaves them unchanged, none under any other module.
    """
    if isinstance(output, BlockSoftmax):
        unbounded = ~output.is_one_hot.cpu().numpy()
        first = output.first.cpu().numpy()
        unbounded[first] &= unbounded_columns(output.output, len(first))
        return unbounded
    if isinstance(output, BinarySigmoid):
        return ~output.is_binary.cpu().numpy()
    return np.full(n_features, isinstance(output, nn.Identity))


# Initial weights


def linear(n_inputs: int, n_outputs: int, generator: torch.Generator) -> nn.Linear:
    """Return an ``nn.Linear`` with PyTorch's usual initial weights from `generator`."""
    layer: nn.Linear = _UninitializedLinear(n_inputs, n_outputs)
    layer.__class__ = nn.Linear
    return initialize(layer, n_inputs, generator)


class _UninitializedLinear(nn.Linear):
    """A layer with arbitrary weights, as `nn.utils.skip_init` makes in more time."""

    def reset_parameters(self) -> None:
        """Draw nothing from PyTorch's global generator."""


def initialize(layer: Any, fan_in: int, generator: torch.Generator) -> Any:
    """Draw weights and biases uniformly from +-1/sqrt(fan_in), in place."""
    bound = 1 / math.sqrt(fan_in)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


def initialize_as_linear_map(
    network: nn.Module, matrix: np.ndarray, bias: np.ndarray | None = None
) -> nn.Module:
    r"""Initialize a network as a linear map; all its weights can still be trained.

    A network without hidden layers gets the matrix as its weights. Any other network
    f is added to a linear layer with these weights, and the last layer of f starts at
    zero:

    .. math:: x \mapsto W x + b + f(x), \quad f = 0 \text{ at first.}

    Parameters
    ----------
    network : torch.nn.Module
        Ends in a linear layer or in a transposed convolution.
    matrix : ndarray of shape (n_outputs, n_inputs)
        W.
    bias : ndarray of shape (n_outputs,), default=None
        b; None means zeros.

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
        if bias is not None:
            linear.bias.copy_(torch.from_numpy(bias))
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
        # The copy has None in place of each tensor, and of the generators that random
        # modules have during a training.
        generators = [id(part.generator) for part in random_modules(module)]
        self.structure = copy.deepcopy(module, dict.fromkeys([*indices, *generators]))

    @own_settings()
    def thaw(self) -> nn.Module:
        """Return a new module with copies of the stored parameters and buffers."""
        module = copy.deepcopy(self.structure)
        # Not memory of NumPy, which is aligned to fewer bytes: products of the same
        # numbers at other addresses may differ by rounding.
        tensors = [
            torch.tensor(array)
            if requires_grad is None
            else nn.Parameter(torch.tensor(array), requires_grad)
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
