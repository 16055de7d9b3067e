"""Corruptions: training-time input noise, which makes an autoencoder a denoising one.

A corruption is a small object that only stores its settings; `build` makes the
PyTorch module that does the work once the training rows are known. Pass its
name (``corruption="masking"``) or the object itself
(``corruption=Masking(fill_value="low")``) to an estimator; derive from
:class:`Corruption` to bring your own.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from numbers import Real
from typing import ClassVar, NamedTuple

import torch
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import StrOptions
from torch import Tensor, nn

from skae._layers import NoiseModule

__all__ = [
    "Corruption",
    "GaussianNoise",
    "Masking",
    "SaltAndPepper",
    "Spread",
    "Swap",
]


class Spread(NamedTuple):
    """What a corruption may know of the training rows, in the scaled space.

    Attributes
    ----------
    mean : Tensor of shape (n_features,)
        Mean of each feature.
    low, high : Tensor of shape (n_features,)
        Least and largest value of each feature, or of all features together
        where they share one scale.
    """

    mean: Tensor
    low: Tensor
    high: Tensor


class Corruption(BaseEstimator, ABC):
    """Base of all corruptions.

    The network sees the corrupted row and is held to the clean one [1]_:

    .. math:: \\min_{f, g} \\; L(x, g(f(\\tilde x))), \\quad
        \\tilde x \\sim q_\\nu(\\tilde x \\mid x)

    with the level :math:`\\nu`, encoder f and decoder g. Rows are corrupted in
    the space in which the network works, that is after the estimator's
    ``scale``, and in training only.

    Attributes
    ----------
    is_probability : bool
        Whether the level is a probability, in [0, 1], or a standard deviation,
        >= 0.
    needs_range : bool
        Whether the corruption looks at ``low`` and ``high`` of :class:`Spread`.
    needs_batch : bool
        Whether the corruption needs at least two rows at a time.

    References
    ----------
    .. [1] Vincent, P., Larochelle, H., Lajoie, I., Bengio, Y. & Manzagol, P.-A.
       (2010). Stacked denoising autoencoders: learning useful representations
       in a deep network with a local denoising criterion. Journal of Machine
       Learning Research, 11, 3371-3408.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from skae.corruptions import Corruption, Spread
    >>> class ColumnMasking(Corruption):
    ...     def build(self, level, spread):
    ...         return MaskColumns(level, spread.mean)
    >>> class MaskColumns(nn.Module):
    ...     def __init__(self, level, mean):
    ...         super().__init__()
    ...         self.level = level
    ...         self.generator = None
    ...         self.register_buffer("mean", mean)
    ...
    ...     def forward(self, X):
    ...         u = torch.rand(X.shape[1], generator=self.generator, device=X.device)
    ...         return torch.where(u < self.level, self.mean.to(X.dtype), X)
    >>> X = torch.tensor([[0.0, 5.0], [2.0, 9.0]])
    >>> spread = Spread(X.mean(dim=0), X.amin(dim=0), X.amax(dim=0))
    >>> ColumnMasking().build(1.0, spread)(X)
    tensor([[1., 7.],
            [1., 7.]])
    """

    is_probability: ClassVar[bool] = True
    needs_range: bool = False
    needs_batch: ClassVar[bool] = False
    _parameter_constraints: ClassVar[dict] = {}

    def check_level(self, level: float) -> None:
        """Raise a ValueError unless the corruption can have this `level`.

        Parameters
        ----------
        level : float
            The estimator's ``corruption_level``.
        """
        if self.is_probability:
            allowed = "a probability in [0, 1]"
            fits = isinstance(level, Real) and 0 <= level <= 1
        else:
            allowed = "a standard deviation, finite and >= 0,"
            fits = isinstance(level, Real) and 0 <= level < math.inf
        if not fits:
            raise ValueError(
                f"corruption_level must be {allowed} for corruption={self!r}, got "
                f"{level!r}."
            )

    @abstractmethod
    def build(self, level: float, spread: Spread) -> nn.Module:
        """Make the module that corrupts rows.

        Parameters
        ----------
        level : float
            Probability for each entry, in [0, 1], or standard deviation, >= 0.
        spread : Spread
            What is known of the training rows.

        Returns
        -------
        module : torch.nn.Module
            Maps rows of shape (n_samples, n_features), without missing values,
            to corrupted rows of the same shape, type and device, and leaves
            those given as they are. It corrupts in eval mode too, and draws
            from its attribute ``generator`` only: a torch.Generator, or None
            for PyTorch's global one.
        """


class GaussianNoise(Corruption):
    """Normal noise on each entry [1]_.

    .. math:: \\tilde x_{ij} = x_{ij} + \\sigma \\varepsilon_{ij}, \\quad
        \\varepsilon_{ij} \\sim N(0, 1)

    with the level :math:`\\sigma \\ge 0` in units of the scaled data (standard
    deviations of the training rows unless ``scale=None``).

    Parameters
    ----------
    clip : bool, default=False
        Whether to clip the result to the range of the training rows, for data
        that have no values beyond it: pixels, shares, counts.

    References
    ----------
    .. [1] Vincent, P., Larochelle, H., Lajoie, I., Bengio, Y. & Manzagol, P.-A.
       (2010). Stacked denoising autoencoders: learning useful representations
       in a deep network with a local denoising criterion. Journal of Machine
       Learning Research, 11, 3371-3408.

    Examples
    --------
    >>> import torch
    >>> from skae.corruptions import GaussianNoise, Spread
    >>> X = torch.zeros(1000, 100)
    >>> spread = Spread(X.mean(dim=0), X.amin(dim=0), X.amax(dim=0))
    >>> noise = GaussianNoise().build(0.5, spread)
    >>> noise.generator = torch.Generator().manual_seed(0)
    >>> f"{noise(X).std():.1f}"
    '0.5'
    """

    is_probability: ClassVar[bool] = False
    _parameter_constraints: ClassVar[dict] = {"clip": ["boolean"]}

    def __init__(self, *, clip: bool = False):
        self.clip = clip

    @property
    def needs_range(self) -> bool:  # type: ignore[override]
        return self.clip

    def build(self, level: float, spread: Spread) -> nn.Module:
        if self.clip:
            return _ClippedNoise(level, low=spread.low, high=spread.high)
        return _Noise(level)


class Masking(Corruption):
    """One value in place of entries chosen at random [1]_.

    .. math::

        \\tilde x_{ij} = \\begin{cases}
            v_j & \\text{with probability } p \\\\
            x_{ij} & \\text{otherwise}
        \\end{cases}

    with the level p in [0, 1], independently for each entry.

    Parameters
    ----------
    fill_value : {"mean", "low", "high"}, default="mean"
        The value :math:`v_j`: the feature's mean over the training rows, which
        is also what the network sees in place of a missing entry, or an end of
        the training rows' range. ``"low"`` is black on images and zero on
        counts, the classical choice.

    References
    ----------
    .. [1] Vincent, P., Larochelle, H., Lajoie, I., Bengio, Y. & Manzagol, P.-A.
       (2010). Stacked denoising autoencoders: learning useful representations
       in a deep network with a local denoising criterion. Journal of Machine
       Learning Research, 11, 3371-3408.

    Examples
    --------
    >>> import torch
    >>> from skae.corruptions import Masking, Spread
    >>> X = torch.tensor([[0.0, 5.0], [2.0, 9.0]])
    >>> spread = Spread(X.mean(dim=0), X.amin(dim=0), X.amax(dim=0))
    >>> Masking().build(1.0, spread)(X)
    tensor([[1., 7.],
            [1., 7.]])
    """

    _parameter_constraints: ClassVar[dict] = {
        "fill_value": [StrOptions({"mean", "low", "high"})]
    }

    def __init__(self, fill_value: str = "mean"):
        self.fill_value = fill_value

    @property
    def needs_range(self) -> bool:  # type: ignore[override]
        return self.fill_value != "mean"

    def build(self, level: float, spread: Spread) -> nn.Module:
        return _Mask(level, fill=getattr(spread, self.fill_value))


class Swap(Corruption):
    """Values of other rows in place of entries chosen at random [1]_.

    .. math::

        \\tilde x_{ij} = \\begin{cases}
            x_{rj} & \\text{with probability } p \\\\
            x_{ij} & \\text{otherwise}
        \\end{cases}

    with the level p in [0, 1] and r uniform among the other rows of the batch,
    both independently for each entry. Each feature keeps its own distribution,
    whatever its kind, which suits tables of mixed columns. A lone row stays as
    it is.

    References
    ----------
    .. [1] Yoon, J., Zhang, Y., Jordon, J. & van der Schaar, M. (2020). VIME:
       extending the success of self- and semi-supervised learning to tabular
       domain. Advances in Neural Information Processing Systems, 33,
       11033-11043.

    Examples
    --------
    >>> import torch
    >>> from skae.corruptions import Spread, Swap
    >>> X = torch.tensor([[0.0, 5.0], [2.0, 9.0]])
    >>> spread = Spread(X.mean(dim=0), X.amin(dim=0), X.amax(dim=0))
    >>> Swap().build(1.0, spread)(X)
    tensor([[2., 9.],
            [0., 5.]])
    """

    needs_batch: ClassVar[bool] = True

    def build(self, level: float, spread: Spread) -> nn.Module:
        return _SwapRows(level)


class SaltAndPepper(Corruption):
    """The least or the largest value in place of entries chosen at random [1]_.

    .. math::

        \\tilde x_{ij} = \\begin{cases}
            \\text{low}_j & \\text{with probability } p / 2 \\\\
            \\text{high}_j & \\text{with probability } p / 2 \\\\
            x_{ij} & \\text{otherwise}
        \\end{cases}

    with the level p in [0, 1] and the ends of the training rows' range,
    independently for each entry.

    References
    ----------
    .. [1] Vincent, P., Larochelle, H., Lajoie, I., Bengio, Y. & Manzagol, P.-A.
       (2010). Stacked denoising autoencoders: learning useful representations
       in a deep network with a local denoising criterion. Journal of Machine
       Learning Research, 11, 3371-3408.

    Examples
    --------
    >>> import torch
    >>> from skae.corruptions import SaltAndPepper, Spread
    >>> X = torch.linspace(0, 1, 500).reshape(500, 1)
    >>> spread = Spread(X.mean(dim=0), X.amin(dim=0), X.amax(dim=0))
    >>> SaltAndPepper().build(1.0, spread)(X).unique()
    tensor([0., 1.])
    """

    needs_range: bool = True

    def build(self, level: float, spread: Spread) -> nn.Module:
        return _SaltPepper(level, low=spread.low, high=spread.high)


class _Corruptor(NoiseModule):
    """Base of the modules: a level, a generator, and what is kept of the spread."""

    def __init__(self, level: float, **kept: Tensor):
        super().__init__()
        self.level = level
        for name, tensor in kept.items():
            self.register_buffer(name, tensor)

    def choose(self, X: Tensor, probability: float) -> Tensor:
        """Entries of `X`, each True with this probability."""
        # In float32 whatever X is: half precision would round the probability.
        u = torch.rand(
            X.shape, generator=self.generator, device=X.device, dtype=torch.float32
        )
        return u < probability

    def replace(self, X: Tensor, replacement: Tensor) -> Tensor:
        """`X`, each entry replaced with probability `level`."""
        return torch.where(self.choose(X, self.level), replacement.to(X.dtype), X)


class _Noise(_Corruptor):
    """Add normal noise of standard deviation `level`."""

    def forward(self, X: Tensor) -> Tensor:
        epsilon = torch.randn(
            X.shape, generator=self.generator, device=X.device, dtype=X.dtype
        )
        return X + self.level * epsilon


class _ClippedNoise(_Noise):
    """Add normal noise, but stay between `low` and `high`."""

    low: Tensor
    high: Tensor

    def forward(self, X: Tensor) -> Tensor:
        X_tilde = super().forward(X)
        return X_tilde.clamp(self.low.to(X.dtype), self.high.to(X.dtype))


class _Mask(_Corruptor):
    """Replace entries by their feature's value of `fill`."""

    fill: Tensor

    def forward(self, X: Tensor) -> Tensor:
        return self.replace(X, self.fill)


class _SwapRows(_Corruptor):
    """Replace entries by those of other rows in the same column."""

    def forward(self, X: Tensor) -> Tensor:
        n_samples = len(X)
        if n_samples < 2:
            return X.clone()
        step = torch.randint(
            1, n_samples, X.shape, generator=self.generator, device=X.device
        )
        row = torch.arange(n_samples, device=X.device)[:, None]
        # A step of 1 to n - 1, wrapped around, reaches every row but the own.
        return self.replace(X, X.gather(0, (row + step) % n_samples))


class _SaltPepper(_Corruptor):
    """Replace entries by their feature's `low` or `high`, half each."""

    low: Tensor
    high: Tensor

    def forward(self, X: Tensor) -> Tensor:
        salt = self.choose(X, 0.5)
        return self.replace(X, torch.where(salt, self.high, self.low))


CORRUPTIONS: dict[str, type[Corruption]] = {
    "gaussian": GaussianNoise,
    "masking": Masking,
    "swap": Swap,
    "salt_and_pepper": SaltAndPepper,
}
