"""Networks: encoders and decoders.

A network is an object that only stores its settings; its method `build` makes the
PyTorch modules for data of a given shape. Pass its name (``network="mlp"``,
``network="conv"``), the object itself (``network=MLP(activation="relu")``), or
user-defined modules (``network=Custom(encoder=..., decoder=...)``) to an estimator.
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

import torch
from sklearn.base import BaseEstimator, clone
from torch import Tensor, nn

from skae._compat import Interval, StrOptions
from skae._defaults import (
    FEW_ROWS,
    SMALL_CHANNELS,
    auto_channels,
    auto_hidden_layer_sizes,
    auto_learning_rate,
)
from skae._layers import (
    ACTIVATIONS,
    ChannelsFirst,
    ChannelsLast,
    CodeActivation,
    Dropout,
    FrozenModule,
    Rectifier,
    check_activation,
    initialize,
    linear,
    make_activation,
    may_draw,
    may_mix_rows,
    random_modules,
    using_generator,
)
from skae._memory import is_out_of_memory
from skae._storage import StoredParametersMixin, default_parameters

__all__ = ["ACTIVATIONS", "MLP", "Conv", "Custom", "Network", "Shape"]

# Largest size of a layer, of a code, and of an axis: PyTorch counts with 64 bits.
MAX_SIZE = 2**31 - 1

_ACTIVATION = [StrOptions(set(ACTIVATIONS)), callable]
_ACTIVATION_OR_AUTO = [StrOptions({"auto", *ACTIVATIONS}), callable]


class Shape(NamedTuple):
    """Shapes of the data and of the code, from which a network is built.

    The estimators pass it to :meth:`Network.build`.

    Parameters
    ----------
    n_samples : int
        Number of distinct training rows.
    n_features : int
        Width of a row.
    encoder_width : int
        Number of outputs of the encoder: a multiple of `n_components`, of which
        the first `n_components` are the code. A variational bottleneck takes means
        and log-variances, twice as many.
    n_components : int
        Number of inputs of the decoder.
    input_shape : tuple of int, default=()
        Shape of one row; ``()`` means ``(n_features,)``.
    code_activation : str, default="identity"
        Activation on the code if the network's own setting is ``"auto"``.
    n_members : int, default=1
        Number of networks that are trained together.
    suits_hidden_layers : bool, default=True
        False if an :class:`MLP` with ``hidden_layer_sizes="auto"`` has no hidden
        layers, as for :class:`skae.bottlenecks.TopK` and :class:`skae.penalties.L1`.
    is_plain : bool, default=False
        Whether the network starts as a PCA and learns a deterministic code, without
        corruption and penalty. An :class:`MLP` with ``hidden_layer_sizes="auto"`` is
        deeper and narrower then.
    is_ordered : bool, default=False
        Whether the components are ordered.

    See Also
    --------
    Network : Base class of all networks.

    Examples
    --------
    >>> from skae.networks import Shape
    >>> Shape(n_samples=100, n_features=5, encoder_width=2, n_components=2).n_members
    1
    """

    n_samples: int
    n_features: int
    encoder_width: int
    n_components: int
    input_shape: tuple[int, ...] = ()
    code_activation: str = "identity"
    n_members: int = 1
    suits_hidden_layers: bool = True
    is_plain: bool = False
    is_ordered: bool = False


class Network(StoredParametersMixin, ABC):
    """Base class of all networks.

    A network defines the architecture of the encoder and the decoder. Bottleneck,
    corruption and loss are independent of it.

    Attributes
    ----------
    output_activation : str or callable
        Activation after the decoder; ``"auto"`` takes the one that the loss implies.
    code_activation : str or callable
        Activation on the code; ``"auto"`` takes the one that the penalty implies.
    allows_pca : bool
        Whether the network can start as a PCA: both its encoder and its decoder end
        in a linear layer, provided that a ``code_activation="auto"`` is the identity.
    codes_may_be_refined : bool
        Whether codes may be optimised after encoding: no activation restricts them.
    refines_held_out : bool
        Whether the codes of held-out rows are refined during training, too.
    members_stack : bool
        Whether several of these networks can be trained as one network with
        stacked weights.
    depends_on_order : bool
        Whether the order of the features matters, as in a convolution.
    decoder_may_end_in_activation : bool
        Whether the decoder itself may end in an output activation.
    draws_globally : bool
        Whether its modules may draw from PyTorch's global random generator,
        whose state is then saved and restored around every call.
    may_mix_rows : bool
        Whether the output for a row may depend on the other rows of its batch, as with
        batch normalization. Early stopping then holds rows out, since rows without a
        weight in the loss would affect the training all the same.

    See Also
    --------
    Custom : User-defined PyTorch modules, without a class of their own.

    Examples
    --------
    >>> import torch
    >>> from skae.networks import Network, Shape
    >>> class Linear(Network):
    ...     def build(self, shape, generator):
    ...         encoder = torch.nn.Linear(shape.n_features, shape.encoder_width)
    ...         decoder = torch.nn.Linear(shape.n_components, shape.n_features)
    ...         for parameter in (*encoder.parameters(), *decoder.parameters()):
    ...             torch.nn.init.uniform_(parameter, -0.1, 0.1, generator=generator)
    ...         return encoder, decoder
    >>> encoder, decoder = Linear().build(Shape(100, 5, 2, 2), torch.Generator())
    >>> decoder
    Linear(in_features=2, out_features=5, bias=True)
    """

    output_activation: Any = "auto"
    code_activation: Any = "auto"
    allows_pca: bool = False
    codes_may_be_refined: bool = False
    draws_globally: bool = False
    may_mix_rows: bool = True
    refines_held_out: ClassVar[bool] = True
    members_stack: ClassVar[bool] = False
    depends_on_order: ClassVar[bool] = False
    decoder_may_end_in_activation: ClassVar[bool] = False

    @abstractmethod
    def build(
        self, shape: Shape, generator: torch.Generator
    ) -> tuple[nn.Module, nn.Module]:
        """Make the encoder and the decoder.

        Parameters
        ----------
        shape : Shape
            Shapes of the data and of the code.
        generator : torch.Generator
            Source of the initial weights.

        Returns
        -------
        encoder : torch.nn.Module
            Maps (n_samples, n_features) to (n_samples, encoder_width).
        decoder : torch.nn.Module
            Maps (n_samples, n_components) to (n_samples, n_features).
        """

    def check_activations(self) -> None:
        """Raise an error if an activation is invalid, before a network is built.

        Raises
        ------
        TypeError, ValueError
            If `output_activation` or `code_activation` is neither ``"auto"``, nor a
            name of :data:`ACTIVATIONS`, nor a callable that returns a module.
        """
        for name in ("output_activation", "code_activation"):
            self._check_activation(name, may_be_auto=True)

    def _check_activation(self, name: str, *, may_be_auto: bool = False) -> None:
        full_name = f"{name} of {type(self).__name__}"
        check_activation(full_name, getattr(self, name), may_be_auto=may_be_auto)

    def auto_learning_rate(self, batch_size: int) -> float:
        """Return the learning rate that ``learning_rate="auto"`` means.

        Parameters
        ----------
        batch_size : int
            Number of rows in a batch.

        Returns
        -------
        float
            ``0.004 * sqrt(batch_size / 128)``, unless a network overrides it.
        """
        return auto_learning_rate(batch_size)

    def code_shape(self, input_shape: tuple[int, ...]) -> tuple[int, int] | None:
        """Return the number of positions and channels of a feature-map code.

        Parameters
        ----------
        input_shape : tuple of int
            Shape of one row, not empty.

        Returns
        -------
        tuple of two int or None
            Positions and channels; None if `n_components` is free.
        """
        return None

    def for_coordinates(self, shape: Shape) -> Network | None:
        """Return a network that takes coordinates of rows instead of the rows.

        Parameters
        ----------
        shape : Shape
            Shapes of the rows and of the code.

        Returns
        -------
        network : Network or None
            Builds encoders that begin, and decoders that end, with dense layers, which
            can be multiplied by the axes of the coordinates. Their other layers are
            those of this network for `shape`. None if there is no such network.
        """
        return None

    def build_output(self, implied: nn.Module) -> nn.Module:
        """Make the activation after the decoder.

        Parameters
        ----------
        implied : torch.nn.Module
            Activation that the loss implies, returned for
            ``output_activation="auto"``.

        Returns
        -------
        torch.nn.Module
            Maps (n_samples, n_features) to the same shape.
        """
        if self.output_activation == "auto":
            return implied
        return make_activation(self.output_activation)


class MLP(Network, BaseEstimator):
    r"""Fully connected encoder and mirrored decoder.

    With hidden widths :math:`h_1, \dots, h_m` the encoder is
    :math:`d \to h_1 \to \dots \to h_m \to k` and the decoder
    :math:`k \to h_m \to \dots \to h_1 \to d`, with an
    activation after each hidden layer. Initial weights and biases are uniform in
    :math:`\pm 1/\sqrt{\text{inputs}}`, PyTorch's default.

    Parameters
    ----------
    hidden_layer_sizes : tuple of int or "auto", default="auto"
        Encoder widths, each >= 1; ``()`` gives a linear encoder and decoder, which
        ``"auto"`` means for the sparse codes of :class:`skae.bottlenecks.TopK` and
        :class:`skae.penalties.L1`. Otherwise ``"auto"`` derives the widths from the
        shape of the data: 4h, 2h and h, or 2h and h for up to 500 distinct rows, where
        h is the larger of 64 and the smallest power of two >= ``4 * k``, and k the
        smaller of `n_components` and `n_features`. A network that starts as a PCA and
        learns a deterministic code, without corruption and penalty, has widths h, h
        and h for up to 500 rows, and 2h, h, h and h for more rows with
        ``n_samples * k <= 10_000``.
        No layer has more than ``2**21 / n_features`` units, unless that is less than h.
        Where the encoder would have more weights than X has entries, and more than
        ``2**20``, h is halved as long as it is at least k and 64, and then the wider
        layers as long as they have at least h units. Each of several members of an
        ensemble has one layer of h units, where h is at least 32.
    activation : str or callable, default="quick_gelu"
        Activation after each hidden layer: a name of :data:`ACTIVATIONS` or a
        callable that returns a module.
    code_activation : str or callable, default="auto"
        Activation on the code; ``"auto"`` is the identity unless the penalty
        implies another one (the L1 penalty implies ``"relu"``).
    output_activation : str or callable, default="auto"
        Activation after the decoder; ``"auto"`` takes the one that the loss
        implies.
    dropout : float, default=0.0
        Share of hidden units set to zero at each training step, in [0, 1).

    See Also
    --------
    Conv : Convolutional network for images and signals.
    Custom : User-defined PyTorch modules.

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

    members_stack: ClassVar[bool] = True
    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "hidden_layer_sizes": [StrOptions({"auto"}), tuple, list],
        "activation": _ACTIVATION,
        "code_activation": _ACTIVATION_OR_AUTO,
        "output_activation": _ACTIVATION_OR_AUTO,
        "dropout": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] | str = "auto",
        *,
        activation: str | Callable[[], nn.Module] = "quick_gelu",
        code_activation: str | Callable[[], nn.Module] = "auto",
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
        return self.code_activation in ("auto", "identity")

    @property
    def codes_may_be_refined(self) -> bool:  # type: ignore[override]
        return self.code_activation in ("auto", "identity")

    @property
    def draws_globally(self) -> bool:  # type: ignore[override]
        return any(map(may_draw, _activations(self)))

    @property
    def may_mix_rows(self) -> bool:  # type: ignore[override]
        return any(map(may_mix_rows, _activations(self)))

    def check_activations(self) -> None:
        self._check_activation("activation")
        super().check_activations()

    def build(
        self, shape: Shape, generator: torch.Generator
    ) -> tuple[nn.Module, nn.Module]:
        hidden = self._hidden_layer_sizes(shape)
        encoder = self._stack(
            [shape.n_features, *hidden, shape.encoder_width], generator
        )
        encoder.extend(_code_activation(self.code_activation, shape))
        decoder = self._stack(
            [shape.n_components, *reversed(hidden), shape.n_features], generator
        )
        return encoder, decoder

    def for_coordinates(self, shape: Shape) -> Network | None:
        if type(self).build is not MLP.build:  # a subclass may build other layers
            return None
        sizes = self._hidden_layer_sizes(shape)
        return clone(self).set_params(hidden_layer_sizes=sizes)

    def _hidden_layer_sizes(self, shape: Shape) -> tuple[int, ...]:
        if isinstance(self.hidden_layer_sizes, str):
            if not shape.suits_hidden_layers:
                return ()
            return auto_hidden_layer_sizes(
                shape.n_samples,
                shape.n_features,
                shape.n_components,
                shape.n_members,
                is_plain=shape.is_plain,
                is_ordered=shape.is_ordered,
            )
        return _checked_sizes("hidden_layer_sizes", self.hidden_layer_sizes)

    def _stack(
        self, widths: Sequence[int], generator: torch.Generator
    ) -> nn.Sequential:
        layers = _linears(widths, generator)
        return nn.Sequential(*_activated(layers, self.activation, self.dropout))


class Conv(Network, BaseEstimator):
    r"""Convolutional encoder and mirrored decoder, for images and signals.

    Each number in `channels` is a convolution with kernel size :math:`k`, stride
    :math:`s`, and zero padding :math:`p = \lfloor (k - 1) / 2 \rfloor` on both
    sides. Along each axis, it turns :math:`n` entries into

    .. math:: n' = \lfloor (n + 2p - k) / s \rfloor + 1

    entries. The decoder's transposed convolutions reproduce the same sizes in
    reverse order, including odd ones [1]_. Initial weights and biases are uniform in
    :math:`\pm 1/\sqrt{\text{inputs}}`, where inputs is the number of values that
    are summed for one output. Convolutional layers were first trained by
    backpropagation in [2]_.

    Parameters
    ----------
    channels : tuple of int or "auto", default="auto"
        Channels of the encoder's convolutions, each >= 1. ``"auto"`` is two
        convolutions, each with the largest power of two of channels for which its map
        has at most 2048 values, but with 8 to 64 channels in the first one and 32 to
        128 in the second: (8, 32) for images of 28 x 28 pixels, (64, 128) for 8 x 8.
        It is (16, 32) for a member of an ensemble, and with ``code="feature_map"``.
    kernel_size : int, default=3
        Size of the kernel along each axis, >= 1. An odd kernel fits every input;
        an even one needs at least two entries along each axis of every map to
        which it is applied.
    stride : int, default=2
        Stride along each axis, >= 1.
    hidden_layer_sizes : tuple of int or "auto", default="auto"
        Widths, each >= 1, of dense layers between the last map and the code,
        mirrored by the decoder. ``"auto"`` is one layer of 4h units, where h is the
        larger of 64 and the smallest power of two >= ``4 * n_components``; but of at
        most ``2**21 / n`` units, where n is the number of values of the last map,
        unless that is less than h, and less where it would have more weights than X
        has entries, as in :class:`MLP`. It is ``()`` for a member of an ensemble, and
        with ``code="feature_map"``.
    code : {"dense", "feature_map"}, default="dense"
        ``"dense"``: dense layers compute the code. ``"feature_map"``: the code
        is the last map itself, with the channels of a position next to each other;
        `n_components` must be positions times channels, and there are no hidden
        layers.
    activation : str or callable, default="gelu"
        Activation after each convolution and each hidden layer: a name of
        :data:`ACTIVATIONS` or a callable that returns a module.
    code_activation : str or callable, default="auto"
        Activation on the code; ``"auto"`` is the identity unless the penalty
        implies another one (the L1 penalty implies ``"relu"``).
    output_activation : str or callable, default="auto"
        Activation after the decoder; ``"auto"`` takes the one that the loss
        implies.

    See Also
    --------
    MLP : Fully connected network.
    Custom : User-defined PyTorch modules.

    Notes
    -----
    Rows of X are flattened; the estimator's `input_shape` is the shape of one row:
    (length,) for a signal, (C, 1, length) for a signal with C channels, (H, W) for an
    image, or (C, H, W) for an image with C channels. Images of shape (H, W, C) have to
    be transposed: ``np.moveaxis(images, -1, 1).reshape(len(images), -1)``. An axis of
    length 1 is not convolved, so an image of height 1 is a signal.

    References
    ----------
    .. [1] Dumoulin, V., & Visin, F. (2016). A guide to convolution arithmetic
       for deep learning. arXiv:1603.07285.
    .. [2] LeCun, Y., Boser, B., Denker, J. S., Henderson, D., Howard, R. E.,
       Hubbard, W., & Jackel, L. D. (1989). Backpropagation applied to
       handwritten zip code recognition. Neural Computation, 1(4), 541-551.

    Examples
    --------
    >>> import torch
    >>> from skae.networks import Conv, Shape
    >>> shape = Shape(100, 28 * 28, 10, 10, input_shape=(28, 28))
    >>> encoder, decoder = Conv().build(shape, torch.Generator())
    >>> encoder
    Sequential(
      (0): Unflatten(dim=1, unflattened_size=(1, 28, 28))
      (1): Conv2d(1, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
      (2): GELU(approximate='none')
      (3): Conv2d(8, 32, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
      (4): GELU(approximate='none')
      (5): Flatten(start_dim=1, end_dim=-1)
      (6): Linear(in_features=1568, out_features=256, bias=True)
      (7): GELU(approximate='none')
      (8): Linear(in_features=256, out_features=10, bias=True)
    )
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "channels": [StrOptions({"auto"}), tuple, list],
        "kernel_size": [Interval(Integral, 1, None, closed="left")],
        "stride": [Interval(Integral, 1, None, closed="left")],
        "hidden_layer_sizes": [StrOptions({"auto"}), tuple, list],
        "code": [StrOptions({"dense", "feature_map"})],
        "activation": _ACTIVATION,
        "code_activation": _ACTIVATION_OR_AUTO,
        "output_activation": _ACTIVATION_OR_AUTO,
    }

    def __init__(
        self,
        channels: Sequence[int] | str = "auto",
        *,
        kernel_size: int = 3,
        stride: int = 2,
        hidden_layer_sizes: Sequence[int] | str = "auto",
        code: str = "dense",
        activation: str | Callable[[], nn.Module] = "gelu",
        code_activation: str | Callable[[], nn.Module] = "auto",
        output_activation: str | Callable[[], nn.Module] = "auto",
    ):
        self.channels = channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.hidden_layer_sizes = hidden_layer_sizes
        self.code = code
        self.activation = activation
        self.code_activation = code_activation
        self.output_activation = output_activation

    @property
    def allows_pca(self) -> bool:  # type: ignore[override]
        return self.code == "dense" and self.codes_may_be_refined

    @property
    def codes_may_be_refined(self) -> bool:  # type: ignore[override]
        return self.code_activation in ("auto", "identity")

    @property
    def draws_globally(self) -> bool:  # type: ignore[override]
        return any(map(may_draw, _activations(self)))

    @property
    def may_mix_rows(self) -> bool:  # type: ignore[override]
        return any(map(may_mix_rows, _activations(self)))

    def check_activations(self) -> None:
        self._check_activation("activation")
        super().check_activations()

    # The refinement of held-out codes would take about as long as the training.
    refines_held_out: ClassVar[bool] = False
    depends_on_order: ClassVar[bool] = True

    def auto_learning_rate(self, batch_size: int) -> float:
        # With .008 instead of .004, 10,000 rows of MNIST have 4 % less held-out error
        # after five epochs; small tables, which have small batches, are overfitted.
        rate = 8e-3 * min(1, batch_size / 128)
        return max(rate, super().auto_learning_rate(batch_size))

    def code_shape(self, input_shape: tuple[int, ...]) -> tuple[int, int] | None:
        if self.code == "dense":
            return None
        n_channels, *sizes = self._maps(input_shape, is_small=True)[-1]
        return math.prod(sizes), n_channels

    def build(
        self, shape: Shape, generator: torch.Generator
    ) -> tuple[nn.Module, nn.Module]:
        maps = self._maps(
            shape.input_shape or (shape.n_features,),
            is_small=self.code == "feature_map" or shape.n_members > 1,
        )
        first, last = maps[0], maps[-1]
        flat = math.prod(last)
        hidden = self._hidden_layer_sizes(flat, shape)
        if self.code == "dense":
            down = self._convolutions(maps, generator)
            encode = [
                make_activation(self.activation),
                nn.Flatten(),
                *self._dense([flat, *hidden, shape.encoder_width], generator),
            ]
            decode = [
                *self._dense([shape.n_components, *reversed(hidden), flat], generator),
                make_activation(self.activation),
                nn.Unflatten(1, last),
            ]
        else:
            self._check_n_components(shape, last)
            # The last convolution also computes encoder outputs that are not code,
            # such as log-variances.
            n_blocks = shape.encoder_width // shape.n_components
            widened = (n_blocks * last[0], *last[1:])
            down = self._convolutions([*maps[:-1], widened], generator)
            encode = [ChannelsLast(last[0])]
            decode = [ChannelsFirst(last)]
        up = self._transposed_convolutions(maps, generator)
        encoder = nn.Sequential(
            nn.Unflatten(1, first),
            *down,
            *encode,
            *_code_activation(self.code_activation, shape),
        )
        decoder = nn.Sequential(*decode, *up, nn.Flatten())
        return encoder, decoder

    def _maps(
        self, input_shape: tuple[int, ...], *, is_small: bool
    ) -> list[tuple[int, ...]]:
        """Return shapes (channels, *sizes) of the input and after each convolution.

        Parameters
        ----------
        input_shape : tuple of int
        is_small : bool
            Whether ``channels="auto"`` means the smaller numbers.
        """
        sizes = tuple(input_shape)
        if not 1 <= len(sizes) <= 3 or not are_sizes(sizes):
            raise ValueError(
                "input_shape must be (length,), (H, W), (C, H, W) or (C, 1, length), "
                f"integers >= 1, with network='conv', got {input_shape!r}."
            )
        k, s, p = self._window
        first, sizes = (sizes[0], sizes[1:]) if len(sizes) == 3 else (1, sizes)
        convolved = [int(n) for n in sizes if n > 1] or [1]
        maps: list[tuple[int, ...]] = [(int(first), *convolved)]
        for layer, n_channels in enumerate(self._channels(is_small)):
            sizes = tuple((n + 2 * p - k) // s + 1 for n in maps[-1][1:])
            if min(sizes) < 1:
                raise ValueError(
                    f"kernel_size={self.kernel_size} does not fit a map of shape "
                    f"{maps[-1][1:]}, which network={self!r} computes from "
                    f"input_shape={input_shape!r} after {len(maps) - 1} convolutions. "
                    "An odd kernel_size fits every input."
                )
            n_channels = n_channels or auto_channels(layer, math.prod(sizes))
            maps.append((n_channels, *sizes))
        return maps

    @property
    def _window(self) -> tuple[int, int, int]:
        """Kernel size k, stride s and padding p."""
        k = int(self.kernel_size)
        return k, int(self.stride), (k - 1) // 2

    def _channels(self, is_small: bool) -> tuple[int, ...] | tuple[None, ...]:
        """Return the channels; None where they depend on the size of the map."""
        if isinstance(self.channels, str):
            return SMALL_CHANNELS if is_small else (None, None)
        if len(self.channels) == 0:
            raise ValueError(
                f"channels must hold at least one integer >= 1, got {self.channels!r}."
            )
        return _checked_sizes("channels", self.channels)

    def _hidden_layer_sizes(self, flat: int, shape: Shape) -> tuple[int, ...]:
        """Return the widths of the dense layers after a map of `flat` values."""
        if isinstance(self.hidden_layer_sizes, str):
            if self.code == "feature_map" or shape.n_members > 1:
                return ()
            # One layer, of 4h units for any number of rows.
            n_samples = max(shape.n_samples, FEW_ROWS + 1)
            return auto_hidden_layer_sizes(n_samples, flat, shape.n_components)[:1]
        sizes = _checked_sizes("hidden_layer_sizes", self.hidden_layer_sizes)
        if sizes and self.code == "feature_map":
            raise ValueError(
                "hidden_layer_sizes must be 'auto' or () with code='feature_map', got "
                f"{self.hidden_layer_sizes!r}."
            )
        return sizes

    def _check_n_components(self, shape: Shape, last: tuple[int, ...]) -> None:
        """Raise an error unless the last map has as many values as the code."""
        if shape.n_components != math.prod(last):
            raise ValueError(
                f"n_components must be {math.prod(last)} with code='feature_map', "
                f"{math.prod(last[1:])} positions times {last[0]} channels, got "
                f"{shape.n_components}."
            )

    def _dense(
        self, widths: Sequence[int], generator: torch.Generator
    ) -> list[nn.Module]:
        return _activated(_linears(widths, generator), self.activation)

    def _convolutions(
        self, maps: Sequence[tuple[int, ...]], generator: torch.Generator
    ) -> list[nn.Module]:
        layers: list[nn.Module] = []
        k, s, p = self._window
        for (n_inputs, *sizes), (n_outputs, *_) in pairwise(maps):
            kind = nn.Conv1d if len(sizes) == 1 else nn.Conv2d
            layer = nn.utils.skip_init(kind, n_inputs, n_outputs, k, s, p)
            layers.append(initialize(layer, n_inputs * k ** len(sizes), generator))
        return _activated(layers, self.activation)

    def _transposed_convolutions(
        self, maps: Sequence[tuple[int, ...]], generator: torch.Generator
    ) -> list[nn.Module]:
        layers: list[nn.Module] = []
        k, s, p = self._window
        for (n_inputs, *_), (n_outputs, *sizes) in pairwise(reversed(maps)):
            kind = nn.ConvTranspose1d if len(sizes) == 1 else nn.ConvTranspose2d
            # The remainder that the floor in the size formula discards.
            padding = tuple((n + 2 * p - k) % s for n in sizes)
            layer = nn.utils.skip_init(kind, n_inputs, n_outputs, k, s, p, padding)
            # At most this number of kernels, s entries apart, overlap at one output.
            n_overlaps = math.ceil(k / s) ** len(sizes)
            layers.append(initialize(layer, n_inputs * n_overlaps, generator))
        return _activated(layers, self.activation)


class Custom(Network):
    """User-defined PyTorch encoder and decoder.

    The modules need not follow any interface beyond the shapes of their inputs and
    outputs.

    Parameters
    ----------
    encoder, decoder : torch.nn.Module or callable
        Modules, which are copied at each fit and never trained in place, or
        factories, called as ``encoder(n_features, n_components)`` and
        ``decoder(n_features, n_components)``, that return modules. The encoder
        maps rows of width `n_features` to codes of width `n_components`, the
        decoder maps codes to rows. Under a Gaussian bottleneck the encoder needs
        twice as many outputs, the means followed by the logarithms of the
        variances, and its factory is called with ``2 * n_components``.
    output_activation : str or callable, default="auto"
        Activation after the decoder; ``"auto"`` takes the one that the loss
        implies. Use ``"identity"`` if the decoder already ends in an activation.

    See Also
    --------
    MLP : Fully connected network.
    Conv : Convolutional network for images and signals.

    Notes
    -----
    Modules are trained in float32, and predict rows in float64 by a copy in float64.
    They have to compute in the type of their input: ``x.new_zeros(n)`` instead of
    ``torch.zeros(n)``, and no ``x.float()``. This is checked before training, as are
    the shapes. Parameters with ``requires_grad=False`` remain as they are; at least one
    must be trained. Submodules may have any name; a plain attribute called `generator`
    that is None is set to a ``torch.Generator`` during training.

    Modules may draw from PyTorch's global random generator (``nn.Dropout``, the
    initial weights of a factory's layers). During a fit that generator is seeded
    from `random_state`, and its state is restored afterwards. Fits of custom
    networks in several threads therefore run one after another.

    There is no ``get_params``: modules are not settings, so a parameter search
    varies ``network`` as a whole.

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

    decoder_may_end_in_activation: ClassVar[bool] = True
    draws_globally: bool = True

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
        value = getattr(self, part)
        if isinstance(value, nn.Module):
            # Training starts from these weights and does not modify them.
            return _copied(part, value).float()
        allowed = (
            f"The {part} of network=Custom(...) must be a torch.nn.Module or a "
            "callable (n_features, n_components) that returns one"
        )
        if not callable(value):
            raise TypeError(f"{allowed}, got {value!r}.")
        try:
            module = value(n_features, n_components)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise TypeError(
                f"{allowed}; called with ({n_features}, {n_components}), {value!r} "
                f"raises {type(error).__name__}: {error}"
            ) from error
        if not isinstance(module, nn.Module):
            raise TypeError(f"{allowed}, got {value!r}, which returns {module!r}.")
        return module.float()

    def __repr__(self) -> str:
        # A function's address would differ between processes.
        encoder, decoder = (
            part.__name__ if isinstance(part, FunctionType) else repr(part)
            for part in (self.encoder, self.decoder)
        )
        return f"Custom(encoder={encoder}, decoder={decoder})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Custom:
        duplicate = type(self).__new__(type(self))
        vars(duplicate).update(copy.deepcopy(vars(self), memo))
        return duplicate

    def __getstate__(self) -> dict[str, Any]:
        # Tensors are pickled as arrays: PyTorch's own pickles differ between equal
        # tensors, and scikit-learn compares parameters by the hash of their
        # pickle (check_estimators_overwrite_params).
        return {
            name: FrozenModule(value) if isinstance(value, nn.Module) else value
            for name, value in vars(self).items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in {**default_parameters(type(self)), **state}.items():
            is_frozen = isinstance(value, FrozenModule)
            setattr(self, name, value.thaw() if is_frozen else value)


def _activations(network: MLP | Conv) -> tuple[str | Callable[[], nn.Module], ...]:
    return network.activation, network.code_activation, network.output_activation


def _linears(widths: Sequence[int], generator: torch.Generator) -> list[nn.Module]:
    """Return linear layers from each width to the next."""
    return [linear(a, b, generator) for a, b in pairwise(widths)]


def _activated(
    layers: Sequence[nn.Module],
    activation: str | Callable[[], nn.Module],
    dropout: float = 0.0,
) -> list[nn.Module]:
    """Insert an activation, and dropout if its rate is positive, between layers."""
    stack: list[nn.Module] = []
    for layer in layers:
        if stack:
            stack.append(make_activation(activation))
            if dropout > 0:
                stack.append(Dropout(dropout))
        stack.append(layer)
    return stack


def _code_activation(
    activation: str | Callable[[], nn.Module], shape: Shape
) -> list[nn.Module]:
    """Return the last module of the encoder, or nothing for the identity."""
    name = shape.code_activation if activation == "auto" else activation
    if name == "identity":
        return []
    # Units of a code that are zero for all rows have to come back.
    module = Rectifier() if name == "relu" else make_activation(name)
    if shape.encoder_width == shape.n_components:
        return [module]
    return [CodeActivation(module, shape.n_components)]


def are_sizes(values: Sequence[Any]) -> bool:
    """Return whether all values are integers from 1 to `MAX_SIZE`."""
    return all(isinstance(v, Integral) and 1 <= int(v) <= MAX_SIZE for v in values)


def _checked_sizes(name: str, sizes: Sequence[Any]) -> tuple[int, ...]:
    """Convert sizes to int; raise an error if they are not `are_sizes`."""
    if not are_sizes(sizes):
        raise ValueError(
            f"{name} must hold integers from 1 to {MAX_SIZE}, got {sizes!r}."
        )
    return tuple(int(size) for size in sizes)


@torch.no_grad()
def _check_maps(
    part: str, module: nn.Module, n_inputs: int, n_outputs: int, shape: Shape
) -> None:
    """Raise an error unless `module` maps `n_inputs` values to `n_outputs`."""
    module = _copied(part, module).eval()
    for n_rows, text in ((2, "two rows give"), (1, "one row gives")):
        X = torch.zeros(n_rows, n_inputs, dtype=torch.float32)
        try:
            with using_generator(torch.Generator(), module):
                output = module(X)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            hint = ""
            if random_modules(module):
                hint = (
                    " An attribute `generator` that is None is set to a "
                    "torch.Generator during training; use another name for anything "
                    "else."
                )
            raise ValueError(
                f"The {part} of network=Custom(...) does not accept {n_rows} row(s) of "
                f"{n_inputs} values (n_features is {shape.n_features}, n_components is "
                f"{shape.n_components}): {error}.{hint}"
            ) from error
        result: Any = type(output).__name__
        if isinstance(output, Tensor):
            result = tuple(output.shape)
            if output.dtype != X.dtype:
                raise ValueError(
                    f"The {part} of network=Custom(...) must compute in the type of "
                    f"its input, but returns {output.dtype} for rows of {X.dtype}."
                )
        if result != (n_rows, n_outputs):
            raise ValueError(
                f"The {part} of network=Custom(...) must map (n_samples, {n_inputs}) "
                f"to (n_samples, {n_outputs}), but {text} {result}. n_features is "
                f"{shape.n_features} and n_components is {shape.n_components}."
            )


def _copied(part: str, module: nn.Module) -> nn.Module:
    """Return a deep copy of a user-defined module."""
    try:
        return copy.deepcopy(module)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise TypeError(
            f"The {part} of network=Custom(...) cannot be copied by copy.deepcopy, "
            f"which each fit does: {error}. It must not have attributes such as locks, "
            "open files or generators."
        ) from error


NETWORKS: dict[str, Callable[..., Network]] = {"mlp": MLP, "conv": Conv}
