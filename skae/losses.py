"""Reconstruction losses.

A loss is an object that only stores its settings. Pass its name
(``loss="huber"``) or the object itself (``loss=Huber(delta=0.5)``) to an
estimator. User-defined losses derive from :class:`Loss`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from skae._compat import Interval, StrOptions
from skae._layers import BinarySigmoid, make_activation
from skae._storage import StoredParametersMixin

__all__ = [
    "AbsoluteError",
    "BinaryCrossEntropy",
    "Huber",
    "LogError",
    "Loss",
    "Mixed",
    "SquaredError",
]


# Bounds of a mean of entries in [0, 1], so that its logit is finite, and a number that
# is added to the derivative of the sigmoid before it is inverted.
MIN_MEAN, MIN_DERIVATIVE = 1e-3, 0.05


class Loss(StoredParametersMixin, BaseEstimator, ABC):
    r"""Base class of all reconstruction losses.

    A loss computes one non-negative number per entry, and the estimators average
    it over the observed entries of a row:

    .. math:: L(x, \hat x) = \frac{1}{|O|} \sum_{j \in O} \ell(x_j, \hat x_j)

    where O is the set of entries of the row that are not missing. Entries are
    compared in the scaled space in which the network works, that is, after the
    estimator's ``scale``.

    Attributes
    ----------
    output_activation : str
        Name of the activation after the decoder that this loss implies, one of
        :data:`skae.networks.ACTIVATIONS`.
    bounds : tuple of two floats or None
        Closed range in which the data must lie, None for the real line.
    needs_binary_columns : bool
        Whether `bind` uses its argument `is_binary`.
    codes_may_be_refined : bool
        Whether codes that minimise the squared error also minimise this loss.
    depends_on_column : bool
        Whether the loss of an entry may depend on its column, or on other entries of
        its row. If False, the losses of a sparse row are computed for some of its
        columns at a time.
    is_squared_distance : bool
        Whether the loss of an entry is the square of its residual. The loss of a sparse
        row then needs no reconstruction of all its entries.
    degree : float
        Power of the residual to which the loss is proportional. A variational
        bottleneck derives the likelihood of a row from it, see `noise_scale`.

    See Also
    --------
    SquaredError : The loss of PCA.

    Examples
    --------
    >>> import torch
    >>> from skae.losses import Loss
    >>> class Quartic(Loss):
    ...     def elementwise(self, X, X_hat):
    ...         return (X - X_hat) ** 4
    >>> Quartic().elementwise(torch.tensor([[0.0, 2.0]]), torch.zeros(1, 2))
    tensor([[ 0., 16.]])
    """

    output_activation: ClassVar[str] = "identity"
    bounds: ClassVar[tuple[float, float] | None] = None
    needs_binary_columns: ClassVar[bool] = False
    codes_may_be_refined: ClassVar[bool] = False
    depends_on_column: ClassVar[bool] = True
    is_squared_distance: ClassVar[bool] = False
    degree: ClassVar[float] = 2.0
    # Columns of the features, if some features are encoded by several, see
    # `skae._categorical_loss`. Losses then have a column for each feature.
    layout: Any = None
    _parameter_constraints: ClassVar[dict[str, Any]] = {}

    @property
    def output_activations(self) -> tuple[str, ...]:
        """Values of a network's ``output_activation`` allowed under `bounds`."""
        return ("auto", self.output_activation)

    @property
    def allows_pca(self) -> bool:
        """Whether a network with this loss can start as a PCA."""
        return self.output_activation == "identity"

    @abstractmethod
    def elementwise(self, X: Tensor, X_hat: Tensor) -> Tensor:
        """Compute the loss of each entry.

        Parameters
        ----------
        X, X_hat : Tensor of shape (n_samples, n_features)
            Rows and their reconstructions, without missing values.

        Returns
        -------
        Tensor of shape (n_samples, n_features)
            Non-negative losses.
        """

    def elementwise_from_raw(self, X: Tensor, raw: Tensor, output: nn.Module) -> Tensor:
        """Compute the loss of each entry from the decoder's pre-activations.

        Override this method where computing ``output(raw)`` first would lose
        precision.

        Parameters
        ----------
        X, raw : Tensor of shape (n_samples, n_features)
            Rows, and the decoder's output before its activation.
        output : torch.nn.Module
            Activation that turns `raw` into the reconstruction.

        Returns
        -------
        Tensor of shape (n_samples, n_features)
            Non-negative losses.
        """
        return self.elementwise(X, output(raw))

    def bind(
        self,
        is_binary: np.ndarray | None,
        feature_names: Sequence[str] | np.ndarray | None,
    ) -> Loss:
        """Return the loss for the columns of one table.

        Parameters
        ----------
        is_binary : ndarray of bool of shape (n_features,) or None
            True for the columns that contain both 0 and 1, and no other values
            except missing ones. None unless `needs_binary_columns` is True.
        feature_names : sequence of str of length n_features or None
            Names of the columns; None if they have none.

        Returns
        -------
        Loss
            This object, unless a subclass treats columns differently.
        """
        return self

    def bounded_columns(self, n_features: int) -> np.ndarray:
        """Return which columns must lie in `bounds`.

        Parameters
        ----------
        n_features : int
            Number of columns.

        Returns
        -------
        ndarray of bool of shape (n_features,)
            True for the columns that are bounded.
        """
        return np.full(n_features, self.bounds is not None)

    def build_output(self, n_features: int) -> nn.Module:
        """Make the activation after the decoder that this loss implies.

        Parameters
        ----------
        n_features : int
            Number of columns.

        Returns
        -------
        torch.nn.Module
            Maps pre-activations of shape (n_samples, n_features) to
            reconstructions of the same shape.
        """
        return make_activation(self.output_activation)

    def decoder_start(self, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Return a linear approximation of the inverse of the output activation.

        Parameters
        ----------
        mean : ndarray of shape (n_features,)
            Mean of the rows in the scaled space.

        Returns
        -------
        raw, slope : ndarray of shape (n_features,)
            Values before the activation whose activation is the mean, and the factors
            by which these change for small changes of the reconstruction. None instead
            of both if the activation has no inverse that is known.
        """
        if self.output_activation != "identity":
            return None
        return mean, np.ones_like(mean)

    def residuals_from_raw(self, X: Tensor, raw: Tensor, output: nn.Module) -> Tensor:
        """Compute the residuals of which a detector takes the logarithm.

        Parameters
        ----------
        X, raw : Tensor of shape (n_samples, n_features)
            Rows, and the decoder's output before its activation.
        output : torch.nn.Module
            Activation that turns `raw` into the reconstruction.

        Returns
        -------
        Tensor of shape (n_samples, n_features)
            Absolute residuals.
        """
        return (X - output(raw)).abs()

    # The likelihood of a row, for a variational bottleneck

    def scaled_columns(self, n_features: int) -> np.ndarray:
        """Return in which columns the likelihood has a scale.

        Parameters
        ----------
        n_features : int
            Number of columns.

        Returns
        -------
        ndarray of bool of shape (n_features,)
            False for the columns in which the loss itself is a negative
            log-likelihood, as the cross-entropy is.
        """
        return np.full(n_features, True)

    def noise_scale(self, level: Tensor) -> Tensor:
        r"""Compute the scale of the density for a level of noise.

        With the scale s, an entry has the density

        .. math:: p(x \mid \hat x) = \exp(-\ell(x, \hat x) / s) / Z(s).

        Parameters
        ----------
        level : Tensor
            Mean losses, > 0.

        Returns
        -------
        Tensor of the same shape
            The scales s at which these mean losses are most likely, which are also
            those at which they are expected: `degree` times the level if the loss is
            proportional to a power of the residual.
        """
        return self.degree * level

    def log_normalizer(self, scale: Tensor) -> Tensor:
        """Compute log Z(s) of the density in `noise_scale`, up to a constant.

        Parameters
        ----------
        scale : Tensor
            Scales s, > 0.

        Returns
        -------
        Tensor of the same shape
            Logarithms of the integral of the density's numerator.
        """
        return scale.log() / self.degree


class SquaredError(Loss):
    r"""Squared error, the loss of PCA.

    .. math:: \ell(x, \hat x) = (x - \hat x)^2

    See Also
    --------
    Huber : Grows linearly for large residuals.

    Examples
    --------
    >>> import torch
    >>> from skae.losses import SquaredError
    >>> SquaredError().elementwise(torch.tensor([[3.0]]), torch.tensor([[1.0]]))
    tensor([[4.]])
    """

    codes_may_be_refined: ClassVar[bool] = True
    depends_on_column: ClassVar[bool] = False
    is_squared_distance: ClassVar[bool] = True

    def elementwise(self, X: Tensor, X_hat: Tensor) -> Tensor:
        return functional.mse_loss(X_hat, X, reduction="none")

    def log_normalizer(self, scale: Tensor) -> Tensor:
        return (math.pi * scale).log() / 2  # a normal distribution of variance s / 2


class AbsoluteError(Loss):
    r"""Absolute error.

    .. math:: \ell(x, \hat x) = |x - \hat x|

    Large residuals have less influence than under the squared error.

    See Also
    --------
    Huber : Quadratic for small residuals.
    LogError : Large residuals have even less influence.

    Examples
    --------
    >>> import torch
    >>> from skae.losses import AbsoluteError
    >>> AbsoluteError().elementwise(torch.tensor([[3.0]]), torch.tensor([[1.0]]))
    tensor([[2.]])
    """

    degree: ClassVar[float] = 1.0
    depends_on_column: ClassVar[bool] = False

    def elementwise(self, X: Tensor, X_hat: Tensor) -> Tensor:
        return (X - X_hat).abs()

    def log_normalizer(self, scale: Tensor) -> Tensor:
        return (2 * scale).log()  # a Laplace distribution


class Huber(Loss):
    r"""Huber loss: quadratic for small residuals, linear for large ones [1]_.

    .. math::

        \ell(x, \hat x) = \begin{cases}
            \frac12 r^2 & |r| \le \delta \\
            \delta (|r| - \frac12 \delta) & |r| > \delta
        \end{cases}, \quad r = x - \hat x

    Parameters
    ----------
    delta : float, default=1.0
        Residual at which the loss becomes linear, > 0, in units of the scaled
        data (standard deviations of the training rows unless ``scale=None``).

    See Also
    --------
    AbsoluteError : Linear for all residuals.

    References
    ----------
    .. [1] Huber, P. J. (1964). Robust estimation of a location parameter.
       Annals of Mathematical Statistics, 35(1), 73-101.

    Examples
    --------
    >>> import torch
    >>> from skae.losses import Huber
    >>> Huber(delta=1.0).elementwise(torch.tensor([[3.0]]), torch.tensor([[1.0]]))
    tensor([[1.5000]])
    """

    depends_on_column: ClassVar[bool] = False
    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "delta": [Interval(Real, 0, None, closed="neither")]
    }

    def __init__(self, delta: float = 1.0):
        self.delta = delta

    def elementwise(self, X: Tensor, X_hat: Tensor) -> Tensor:
        return functional.huber_loss(X_hat, X, reduction="none", delta=self.delta)


class LogError(Loss):
    r"""Logarithm of the residual.

    .. math:: \ell(x, \hat x) = \log(1 + |x - \hat x| / s)

    Up to a factor and a constant, this is the negative log-likelihood of residuals
    with the heavy tails of a two-sided Pareto distribution. Doubling a large residual
    adds a constant, so that outliers have hardly any influence on the gradient: a
    redescending M-estimator, like Cauchy's [1]_.

    Parameters
    ----------
    scale : float, default=0.5
        Residual s, > 0, up to which the loss is nearly the absolute error, in units
        of the scaled data (standard deviations of the training rows unless
        ``scale=None``).

    See Also
    --------
    AbsoluteError : Linear for all residuals.

    References
    ----------
    .. [1] Holland, P. W., & Welsch, R. E. (1977). Robust regression using
       iteratively reweighted least-squares. Communications in Statistics - Theory
       and Methods, 6(9), 813-827.

    Examples
    --------
    >>> import torch
    >>> from skae.losses import LogError
    >>> LogError(scale=1.0).elementwise(torch.tensor([[3.0]]), torch.tensor([[1.0]]))
    tensor([[1.0986]])
    """

    depends_on_column: ClassVar[bool] = False
    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "scale": [Interval(Real, 0, None, closed="neither")]
    }

    def __init__(self, scale: float = 0.5):
        self.scale = scale

    def elementwise(self, X: Tensor, X_hat: Tensor) -> Tensor:
        if _may_be_cached(X, X_hat):
            return _CachedLogError.apply(X.expand_as(X_hat), X_hat, self.scale)
        return ((X - X_hat).abs() / self.scale).log1p()

    def noise_scale(self, level: Tensor) -> Tensor:
        return level / (1 + level)

    def log_normalizer(self, scale: Tensor) -> Tensor:
        # A two-sided Pareto distribution with the exponent 1 / s.
        return (2 * self.scale * scale / (1 - scale)).log()


class _CachedLogError(torch.autograd.Function):
    """`LogError` in pieces that fit into the cache of a CPU.

    The operations on whole tensors would read and write main memory.
    """

    @staticmethod
    def forward(ctx: Any, X: Tensor, X_hat: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(X, X_hat)
        ctx.scale = scale
        losses = X - X_hat
        for (piece,) in _pieces(losses):
            piece.abs_().div_(scale).log1p_()
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        X, X_hat = ctx.saved_tensors
        gradient = X_hat - X
        memory: Tensor | None = None  # of the first piece, which is the largest
        for factor, piece in _pieces(grad, gradient):
            if memory is None:
                memory = distance = piece.abs()
            else:
                own = memory.flatten()[: piece.numel()].view(piece.shape)
                distance = torch.abs(piece, out=own)
            piece.sign_().div_(distance.add_(ctx.scale)).mul_(factor)
        return None, gradient, None


# Number of entries of a piece: 256 KB in float32, of which some fit into the cache.
_PIECE_ENTRIES = 2**16


def _may_be_cached(X: Tensor, X_hat: Tensor) -> bool:
    """Whether a gradient for the reconstructions alone is computed on a CPU."""
    return (
        torch.is_grad_enabled()
        and X_hat.requires_grad
        and not X.requires_grad
        and X.dtype == X_hat.dtype
        and X.device.type == X_hat.device.type == "cpu"
        and X_hat.ndim in (2, 3)
        and X_hat.numel() > 2 * _PIECE_ENTRIES
        and not torch.compiler.is_compiling()
    )


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split tensors of the same shape into pieces, in the memory order of the last."""
    strides = tensors[-1].stride()
    order = sorted(range(len(strides)), key=lambda axis: -strides[axis])
    tensors = tuple(tensor.permute(order) for tensor in tensors)
    per_slice = tensors[-1][0].numel()
    n_slices = max(1, _PIECE_ENTRIES // per_slice)
    for piece in zip(*(tensor.split(n_slices) for tensor in tensors), strict=True):
        if piece[-1].ndim < 3 or per_slice <= _PIECE_ENTRIES:
            yield piece
        else:
            yield from _pieces(*(tensor[0] for tensor in piece))


class BinaryCrossEntropy(Loss):
    r"""Cross-entropy between entries in [0, 1] and reconstructed probabilities.

    .. math:: \ell(x, \hat x) = -x \log \hat x - (1 - x) \log(1 - \hat x)

    It implies a sigmoid after the decoder. The estimators compute it from the
    values before the sigmoid, which is exact even where the sigmoid saturates.
    Computed from probabilities, logarithms are at least -100, as in PyTorch.

    See Also
    --------
    Mixed : For tables in which only some columns are binary.

    Examples
    --------
    >>> import torch
    >>> from skae.losses import BinaryCrossEntropy
    >>> BinaryCrossEntropy().elementwise(torch.tensor([[1.0]]), torch.tensor([[0.5]]))
    tensor([[0.6931]])
    """

    output_activation: ClassVar[str] = "sigmoid"
    bounds: ClassVar[tuple[float, float] | None] = (0.0, 1.0)

    def elementwise(self, X: Tensor, X_hat: Tensor) -> Tensor:
        return functional.binary_cross_entropy(X_hat, X, reduction="none")

    def elementwise_from_raw(self, X: Tensor, raw: Tensor, output: nn.Module) -> Tensor:
        if isinstance(output, nn.Sigmoid):
            return functional.binary_cross_entropy_with_logits(raw, X, reduction="none")
        return self.elementwise(X, output(raw))

    def decoder_start(self, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = mean.clip(MIN_MEAN, 1 - MIN_MEAN)
        return np.log(p / (1 - p)), 1 / (p * (1 - p) + MIN_DERIVATIVE)

    def scaled_columns(self, n_features: int) -> np.ndarray:
        return np.full(n_features, False)


class Mixed(Loss):
    r"""Cross-entropy for binary columns, squared error for all others.

    .. math::

        \ell(x_j, \hat x_j) = \begin{cases}
            -x_j \log \hat x_j - (1 - x_j) \log(1 - \hat x_j) & j \in B \\
            (x_j - \hat x_j)^2 & j \notin B
        \end{cases}

    A table of numbers and one-hot columns is reconstructed as numbers and
    probabilities [1]_. The decoder's outputs in the columns B pass through a sigmoid,
    and these columns are not scaled. Without binary columns, this is the squared
    error.

    Parameters
    ----------
    binary : "auto" or array-like, default="auto"
        The columns B: their positions, their names, or one bool for each column.
        ``"auto"`` selects the columns in which the training rows contain both 0 and
        1, and no other values except missing ones.

    See Also
    --------
    BinaryCrossEntropy : Cross-entropy for all columns.

    References
    ----------
    .. [1] Udell, M., Horn, C., Zadeh, R., & Boyd, S. (2016). Generalized low rank
       models. Foundations and Trends in Machine Learning, 9(1), 1-118.

    Examples
    --------
    >>> import torch
    >>> from skae.losses import Mixed
    >>> X = torch.tensor([[0.0, 3.0], [1.0, 5.0]])
    >>> X_hat = torch.tensor([[0.5, 1.0], [0.5, 5.0]])
    >>> Mixed(binary=[0]).elementwise(X, X_hat)
    tensor([[0.6931, 4.0000],
            [0.6931, 0.0000]])
    """

    bounds: ClassVar[tuple[float, float] | None] = (0.0, 1.0)
    needs_binary_columns: ClassVar[bool] = True
    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "binary": [StrOptions({"auto"}), "array-like"]
    }

    def __init__(self, binary: str | ArrayLike = "auto"):
        self.binary: Any = binary

    @property
    def output_activations(self) -> tuple[str, ...]:
        return ("auto",)

    @property
    def allows_pca(self) -> bool:
        return False

    def bind(
        self,
        is_binary: np.ndarray | None,
        feature_names: Sequence[str] | np.ndarray | None,
    ) -> Loss:
        """Return the loss with the positions of the binary columns.

        Parameters
        ----------
        is_binary : ndarray of bool of shape (n_features,)
            True for the columns that contain both 0 and 1, and no other values
            except missing ones. Ignored unless ``binary="auto"``.
        feature_names : sequence of str of length n_features or None
            Names of the columns; None if they have none.

        Returns
        -------
        Loss
            `Mixed`, with `binary` as a list of positions, or `SquaredError` if there
            are no binary columns.

        Raises
        ------
        ValueError
            If `binary` does not select columns of this table.
        """
        assert is_binary is not None  # `needs_binary_columns` is True
        if not isinstance(self.binary, str):
            is_binary = self._is_binary(len(is_binary), feature_names)
        if not is_binary.any():
            return SquaredError()
        return Mixed(np.flatnonzero(is_binary).tolist())

    # The methods below need the positions of the columns, that is, a bound loss.

    def bounded_columns(self, n_features: int) -> np.ndarray:
        return self._is_binary(n_features)

    def build_output(self, n_features: int) -> nn.Module:
        return BinarySigmoid(self._is_binary(n_features))

    def decoder_start(self, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raw, slope = mean.copy(), np.ones_like(mean)
        if len(mean) > 0:
            binary = self._is_binary(len(mean))
            start = BinaryCrossEntropy().decoder_start(mean[binary])
            raw[binary], slope[binary] = start
        return raw, slope

    def scaled_columns(self, n_features: int) -> np.ndarray:
        return ~self._is_binary(n_features)

    def log_normalizer(self, scale: Tensor) -> Tensor:
        return SquaredError().log_normalizer(scale)

    def elementwise(self, X: Tensor, X_hat: Tensor) -> Tensor:
        if isinstance(self.binary, str):  # not bound: select columns by these rows
            rows = X.flatten(end_dim=-2)
            is_binary = ((rows == 0) | (rows == 1)).all(dim=0)
            is_binary &= rows.amin(dim=0) < rows.amax(dim=0)
        else:
            is_binary = torch.from_numpy(self._is_binary(X.shape[-1])).to(X.device)
        # The cross-entropy is defined in [0, 1] only.
        entropy = BinaryCrossEntropy().elementwise(
            torch.where(is_binary, X, 0), torch.where(is_binary, X_hat, 0)
        )
        return torch.where(is_binary, entropy, SquaredError().elementwise(X, X_hat))

    def elementwise_from_raw(self, X: Tensor, raw: Tensor, output: nn.Module) -> Tensor:
        if not isinstance(output, BinarySigmoid):
            return self.elementwise(X, output(raw))
        entropy = functional.binary_cross_entropy_with_logits(raw, X, reduction="none")
        squares = functional.mse_loss(raw, X, reduction="none")
        return torch.where(output.is_binary, entropy, squares)

    def _is_binary(
        self, n_features: int, feature_names: Sequence[str] | np.ndarray | None = None
    ) -> np.ndarray:
        """Return a mask of the columns that the list `binary` selects."""
        binary = np.asarray(self.binary)
        is_binary = np.zeros(n_features, dtype=bool)
        if binary.size == 0:
            return is_binary
        if binary.dtype == bool and binary.shape == (n_features,):
            return binary
        if binary.ndim == 1 and binary.dtype.kind in "OU":  # names
            names = () if feature_names is None else feature_names
            positions = {name: i for i, name in enumerate(names)}
            unknown = [name for name in binary.tolist() if name not in positions]
            if unknown:
                raise ValueError(
                    f"binary={self.binary!r} names columns that X does not have: "
                    f"{unknown}."
                )
            binary = np.array([positions[name] for name in binary.tolist()])
        is_position = binary.dtype.kind in "iu" and binary.ndim == 1
        if not is_position or binary.min() < 0 or binary.max() >= n_features:
            raise ValueError(
                f"binary={self.binary!r} must be positions from 0 to {n_features - 1}, "
                f"names, or one bool for each of the {n_features} columns; or 'auto'."
            )
        is_binary[binary] = True
        return is_binary


def observed_share(loss: Tensor, observed: Tensor | None) -> Tensor:
    """Divide entries by the number of observed entries in their row.

    Parameters
    ----------
    loss : Tensor of shape (..., n_samples, n_features)
        Losses of all entries.
    observed : Tensor of bool of shape (n_samples, n_features) or None
        False where an entry is missing; None if none is.

    Returns
    -------
    Tensor of shape (..., n_samples, n_features)
        Each row sums to the mean over its observed entries; 0 where an entry is
        missing.
    """
    if observed is None:
        return loss / loss.shape[-1]
    return torch.where(observed, loss, 0) / count_observed(observed)


def observed_mean(loss: Tensor, observed: Tensor | None) -> Tensor:
    """Compute the mean of each row over its observed entries.

    Parameters
    ----------
    loss : Tensor of shape (..., n_samples, n_features)
        Losses of all entries.
    observed : Tensor of bool of shape (n_samples, n_features) or None
        False where an entry is missing; None if none is. It may have the first axes of
        `loss`.

    Returns
    -------
    Tensor of shape (..., n_samples)
        Means, 0 for rows without observed entries.
    """
    if observed is None:
        # The gradient of Tensor.mean takes one more pass over the entries.
        return loss.sum(dim=-1) / loss.shape[-1]
    total = torch.where(observed, loss, 0).sum(dim=-1)
    return total / count_observed(observed).squeeze(-1)


def count_observed(observed: Tensor) -> Tensor:
    """Return each row's number of observed entries, at least 1, (..., n_samples, 1)."""
    return observed.sum(dim=-1, keepdim=True).clamp(min=1)


LOSSES: dict[str, type[Loss]] = {
    "squared_error": SquaredError,
    "absolute_error": AbsoluteError,
    "huber": Huber,
    "log_error": LogError,
    "binary_cross_entropy": BinaryCrossEntropy,
    "mixed": Mixed,
}
