"""Networks: the encoder and the decoder, described before the data are known.

A network is a small object that only stores its settings; `build` makes the
PyTorch modules once the data's shape is known. Pass its name
(``network="mlp"``), the object (``network=MLP(activation="relu")``), or your
own modules (``network=Custom(encoder=..., decoder=...)``).
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Integral, Real
from types import FunctionType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn

from skae._defaults import auto_hidden_layer_sizes

__all__ = ["ACTIVATIONS", "MLP", "Custom", "Network", "Shape"]

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

_ACTIVATION = [StrOptions(set(ACTIVATIONS)), callable]


class Shape(NamedTuple):
    """What a network has to fit.

    Attributes
    ----------
    n_samples : int
        Number of distinct training rows.
    n_features : int
        Width of a row.
    encoder_width : int
        Number of values that the encoder gives for a row.
    n_components : int
        Number of values that the decoder takes.
    """

    n_samples: int
    n_features: int
    encoder_width: int
    n_components: int


class Network(ABC):
    """Base of all networks.

    Attributes
    ----------
    output_activation : str or callable
        Activation behind the decoder; ``"auto"`` leaves it to the loss.
    allows_pca : bool
        Whether the network can start as a PCA: its encoder and its decoder end
        in a linear layer.
    draws_globally : bool
        Whether its modules may draw from PyTorch's global random generator,
        which is then set aside and restored around every call.
    """

    output_activation: Any = "auto"
    allows_pca: bool = False
    draws_globally: ClassVar[bool] = False

    @abstractmethod
    def build(
        self, shape: Shape, generator: torch.Generator
    ) -> tuple[nn.Module, nn.Module]:
        """Make the encoder and the decoder.

        Parameters
        ----------
        shape : Shape
            The data's shape and the code's.
        generator : torch.Generator
            Source of the initial weights.

        Returns
        -------
        encoder, decoder : torch.nn.Module
            Maps from (n_samples, n_features) to (n_samples, encoder_width),
            and from (n_samples, n_components) to (n_samples, n_features).
        """

    def build_output(self, implied: str) -> nn.Module:
        """Make the activation behind the decoder, `implied` by the loss."""
        name = self.output_activation
        return make_activation(implied if name == "auto" else name)


class MLP(Network, BaseEstimator):
    """Fully connected encoder and its mirror image as decoder.

    With hidden widths :math:`h_1, \\dots, h_m` the encoder is
    :math:`d \\to h_1 \\to \\dots \\to h_m \\to k` and the decoder
    :math:`k \\to h_m \\to \\dots \\to h_1 \\to d`, an activation behind each
    hidden layer. Initial weights and biases are uniform in
    :math:`\\pm 1/\\sqrt{\\text{inputs}}`, PyTorch's own choice.

    Parameters
    ----------
    hidden_layer_sizes : tuple of int or "auto", default="auto"
        Encoder widths, each >= 1; ``()`` is a linear autoencoder. ``"auto"``
        takes them from the data's shape: 4h, 2h and h, where h is 64, or the
        first power of two from ``4 * n_components`` on if that is more; but no layer
        has more than ``2**21 / n_features`` units unless that is less than h.
    activation : str or callable, default="gelu"
        Activation behind each hidden layer: a name of :data:`ACTIVATIONS` or a
        callable that returns a module.
    code_activation : str or callable, default="identity"
        Activation on the code.
    output_activation : str or callable, default="auto"
        Activation behind the decoder; ``"auto"`` takes the loss's own.
    dropout : float, default=0.0
        Share of hidden units set to zero at each training step, in [0, 1).

    Examples
    --------
    >>> import torch
    >>> from skae.networks import MLP, Shape
    >>> network = MLP(hidden_layer_sizes=(8,), activation="relu")
    >>> encoder, decoder = network.build(Shape(100, 5, 2, 2), torch.Generator())
    >>> encoder
    Sequential(
      (0): Linear(in_features=5, out_features=8, bias=True)
      (1): ReLU()
      (2): Linear(in_features=8, out_features=2, bias=True)
    )
    """

    _parameter_constraints: ClassVar[dict] = {
        "hidden_layer_sizes": [StrOptions({"auto"}), tuple, list],
        "activation": _ACTIVATION,
        "code_activation": _ACTIVATION,
        "output_activation": [StrOptions({"auto", *ACTIVATIONS}), callable],
        "dropout": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] | str = "auto",
        *,
        activation: str | Callable[[], nn.Module] = "gelu",
        code_activation: str | Callable[[], nn.Module] = "identity",
        output_activation: str | Callable[[], nn.Module] = "auto",
        dropout: float = 0.0,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.code_activation = code_activation
        self.output_activation = output_activation
        self.dropout = dropout

    @property
    def allows_pca(self) -> bool:  # type: ignore[override]
        return self.code_activation == "identity"

    def build(
        self, shape: Shape, generator: torch.Generator
    ) -> tuple[nn.Module, nn.Module]:
        hidden = self._hidden_layer_sizes(shape)
        encoder = self._stack(
            [shape.n_features, *hidden, shape.encoder_width], generator
        )
        if self.code_activation != "identity":
            encoder.append(make_activation(self.code_activation))
        decoder = self._stack(
            [shape.n_components, *reversed(hidden), shape.n_features], generator
        )
        return encoder, decoder

    def _hidden_layer_sizes(self, shape: Shape) -> tuple[int, ...]:
        if isinstance(self.hidden_layer_sizes, str):
            return auto_hidden_layer_sizes(shape.n_features, shape.n_components)
        sizes = tuple(self.hidden_layer_sizes)
        if not all(isinstance(h, Integral) and h >= 1 for h in sizes):
            raise ValueError(
                "hidden_layer_sizes must hold integers >= 1, got "
                f"{self.hidden_layer_sizes!r}."
            )
        return tuple(int(h) for h in sizes)

    def _stack(
        self, widths: Sequence[int], generator: torch.Generator
    ) -> nn.Sequential:
        """Linear layers of these widths, an activation between each two."""
        layers: list[nn.Module] = []
        for n_inputs, n_outputs in pairwise(widths):
            if layers:
                layers.append(make_activation(self.activation))
                if self.dropout > 0:
                    layers.append(Dropout(self.dropout))
            layers.append(linear(n_inputs, n_outputs, generator))
        return nn.Sequential(*layers)


class Custom(Network):
    """Your own PyTorch encoder and decoder.

    Parameters
    ----------
    encoder, decoder : torch.nn.Module or callable
        Modules, which are copied at each fit and never trained in place, or
        factories, called as ``encoder(n_features, n_components)`` and
        ``decoder(n_features, n_components)``, that return modules. The encoder
        maps rows of width `n_features` to codes of width `n_components`, the
        decoder maps them back.
    output_activation : str or callable, default="auto"
        Activation behind the decoder; ``"auto"`` takes the loss's own. Give
        ``"identity"`` if the decoder ends in one already.

    Notes
    -----
    Modules that draw from PyTorch's global random generator (an ordinary
    ``nn.Dropout``, the initial weights of a factory's layers) run with that
    generator seeded from `random_state`, set aside and restored; fits of
    custom networks in several threads therefore wait for each other.

    There is no ``get_params``: the modules are values, not settings, so a
    search varies ``network`` as a whole.

    Examples
    --------
    >>> from torch import nn
    >>> from sklearn.datasets import load_iris
    >>> from skae import AutoencoderTransformer
    >>> from skae.networks import Custom
    >>> def encoder(n_features, n_components):
    ...     return nn.Sequential(
    ...         nn.Linear(n_features, 16), nn.Tanh(), nn.Linear(16, n_components)
    ...     )
    >>> def decoder(n_features, n_components):
    ...     return nn.Linear(n_components, n_features)
    >>> network = Custom(encoder, decoder)
    >>> ae = AutoencoderTransformer(n_components=2, network=network, random_state=0)
    >>> ae.fit_transform(load_iris().data).shape
    (150, 2)
    """

    draws_globally: ClassVar[bool] = True

    def __init__(
        self,
        encoder: nn.Module | Callable[[int, int], nn.Module],
        decoder: nn.Module | Callable[[int, int], nn.Module],
        *,
        output_activation: str | Callable[[], nn.Module] = "auto",
    ):
        self.encoder = encoder
        self.decoder = decoder
        self.output_activation = output_activation

    def build(
        self, shape: Shape, generator: torch.Generator
    ) -> tuple[nn.Module, nn.Module]:
        encoder = self._make("encoder", shape.n_features, shape.encoder_width)
        decoder = self._make("decoder", shape.n_features, shape.n_components)
        _check_maps("encoder", encoder, shape.n_features, shape.encoder_width, shape)
        _check_maps("decoder", decoder, shape.n_components, shape.n_features, shape)
        return encoder, decoder

    def _make(self, part: str, n_features: int, n_components: int) -> nn.Module:
        given = getattr(self, part)
        if isinstance(given, nn.Module):
            # Training starts from the given weights and leaves them alone.
            return copy.deepcopy(given).float()
        made = given(n_features, n_components) if callable(given) else given
        if not isinstance(made, nn.Module):
            raise TypeError(
                f"The {part} of network=Custom(...) must be a torch.nn.Module or a "
                "callable (n_features, n_components) that returns one, got "
                f"{given!r}."
            )
        return made.float()

    def __repr__(self) -> str:
        # The same in every process: a function's address would tell two apart.
        encoder, decoder = (
            part.__name__ if isinstance(part, FunctionType) else repr(part)
            for part in (self.encoder, self.decoder)
        )
        return f"Custom(encoder={encoder}, decoder={decoder})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Custom:
        twin = type(self).__new__(type(self))
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        # Tensors go as arrays: PyTorch's own pickles differ between equal
        # tensors, and scikit-learn compares parameters by the hash of their
        # pickle (check_estimators_overwrite_params).
        return {
            name: _Frozen(value) if isinstance(value, nn.Module) else value
            for name, value in vars(self).items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value.thaw() if isinstance(value, _Frozen) else value)


class _Frozen:
    """A module whose parameters and buffers are kept beside it, as arrays."""

    def __init__(self, module: nn.Module):
        self.structure = copy.deepcopy(module)
        self.arrays: list[tuple[np.ndarray, bool | None]] = []
        # (submodule, "_parameters" or "_buffers", name, position in arrays);
        # a tensor shared by several places has one position.
        self.places: list[tuple[str, str, str, int]] = []
        positions: dict[int, int] = {}
        for path, part in self.structure.named_modules():
            for kind in ("_parameters", "_buffers"):
                tensors = getattr(part, kind)
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in positions:
                        positions[id(tensor)] = len(self.arrays)
                        trainable = (
                            tensor.requires_grad if kind == "_parameters" else None
                        )
                        self.arrays.append((tensor.detach().cpu().numpy(), trainable))
                    self.places.append((path, kind, name, positions[id(tensor)]))
        for path, kind, name, _ in self.places:
            getattr(self.structure.get_submodule(path), kind)[name] = None

    def thaw(self) -> nn.Module:
        module = copy.deepcopy(self.structure)
        tensors = [
            torch.from_numpy(array.copy())
            if trainable is None
            else nn.Parameter(torch.from_numpy(array.copy()), trainable)
            for array, trainable in self.arrays
        ]
        for path, kind, name, position in self.places:
            getattr(module.get_submodule(path), kind)[name] = tensors[position]
        return module


class Dropout(nn.Module):
    """Dropout that draws from a generator of its own.

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
        self.generator: torch.Generator | None = None

    def forward(self, H: Tensor) -> Tensor:
        if not self.training:
            return H
        kept = torch.rand(H.shape, generator=self.generator, device=H.device) >= self.p
        return H * kept / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def linear(n_inputs: int, n_outputs: int, generator: torch.Generator) -> nn.Linear:
    """``nn.Linear`` with PyTorch's usual initial weights, drawn from `generator`."""
    layer = nn.utils.skip_init(nn.Linear, n_inputs, n_outputs)
    bound = 1 / math.sqrt(n_inputs)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


def make_activation(activation: str | Callable[[], nn.Module]) -> nn.Module:
    """A new module for a name of `ACTIVATIONS` or from a factory."""
    if isinstance(activation, str):
        return ACTIVATIONS[activation]()
    return activation()


@torch.no_grad()
def _check_maps(
    part: str, module: nn.Module, n_inputs: int, n_outputs: int, shape: Shape
) -> None:
    """Raise unless `module` maps rows of `n_inputs` values to `n_outputs`."""
    try:
        out = copy.deepcopy(module).eval()(torch.zeros(2, n_inputs))
    except Exception as error:
        raise ValueError(
            f"The {part} of network=Custom(...) does not take rows of {n_inputs} "
            f"values (n_features is {shape.n_features}, n_components is "
            f"{shape.n_components}): {error}"
        ) from error
    found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    if found != (2, n_outputs):
        raise ValueError(
            f"The {part} of network=Custom(...) must map (n_samples, {n_inputs}) to "
            f"(n_samples, {n_outputs}), but two rows give {found}. n_features is "
            f"{shape.n_features} and n_components is {shape.n_components}."
        )


NETWORKS: dict[str, Callable[..., Network]] = {"mlp": MLP}
