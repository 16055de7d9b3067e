"""Penalties: terms on the code that the objective adds to the loss.

A penalty is an object that only stores its settings; its method `build` makes the
PyTorch module that computes the term. Pass its name (``penalty="contractive"``)
or the object itself (``penalty=KLSparsity(target=0.1)``) to an estimator.
User-defined penalties derive from :class:`Penalty`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import repeat
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple

import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn
from torch.nn import functional

from skae._compat import Interval, StrOptions
from skae._layers import (
    ELEMENTWISE,
    Dropout,
    NoiseModule,
    Rectifier,
    Residual,
    exact_derivatives,
    forward_hooks,
)
from skae._storage import StoredParametersMixin

__all__ = ["L1", "Contractive", "KLSparsity", "Penalty"]


class Penalty(StoredParametersMixin, BaseEstimator, ABC):
    r"""Base class of all penalties.

    A penalty computes one number per row, and the estimators minimise

    .. math:: L(x, \hat x) + \lambda \, \Omega(z)

    where :math:`\lambda` is the estimator's `penalty_weight`.

    Attributes
    ----------
    code_activation : str
        Name of the activation on the code that this penalty implies, one of
        :data:`skae.networks.ACTIVATIONS`.
    allows_order : bool
        Whether the components may be in order of importance: the term treats the first
        ones alone as it treats all.
    suits_hidden_layers : bool
        Whether ``hidden_layer_sizes="auto"`` means hidden layers.
    needs_batch : bool
        Whether the penalty needs at least two rows at a time.
    needs_rows : bool
        Whether the module uses the encoder or its input, and not the codes alone.
    weighs_units : bool
        Whether the module receives each unit of the code times the norm of its weights
        in the first layer of the decoder. The term then does not become smaller if the
        encoder divides a unit by a factor and the decoder multiplies it by the same.
    warm_up : float
        Share of the training, in [0, 1], during which the weight of the term grows
        linearly from zero to `penalty_weight`. `partial_fit` and a resumed `fit` use
        the full weight throughout.

    See Also
    --------
    L1 : Sum of magnitudes, for sparse codes.

    Examples
    --------
    >>> import torch
    >>> from skae.penalties import Penalty
    >>> class SquaredNorm(torch.nn.Module):
    ...     def forward(self, encoder, X, Z, weight):
    ...         return Z.square().sum(dim=1)
    >>> class L2(Penalty):
    ...     def build(self):
    ...         return SquaredNorm()
    >>> L2().build()(None, None, torch.tensor([[1.0, -2.0]]), torch.ones(1))
    tensor([5.])
    """

    code_activation: ClassVar[str] = "identity"
    allows_order: ClassVar[bool] = True
    suits_hidden_layers: ClassVar[bool] = True
    needs_batch: ClassVar[bool] = False
    needs_rows: ClassVar[bool] = True
    weighs_units: ClassVar[bool] = False
    warm_up: float = 0.0
    _parameter_constraints: ClassVar[dict[str, Any]] = {}

    @abstractmethod
    def build(self) -> nn.Module:
        """Make the module that computes the term.

        Returns
        -------
        torch.nn.Module
            Called as ``module(encoder, X, Z, weight)`` with the input of the
            encoder, of shape (n_samples, n_features), the codes, of shape
            (n_samples, n_components), and the rows' positive weights, of shape
            (n_samples,). It returns the term of each row, of shape (n_samples,).
            With `weighs_units` the codes are multiplied by the norms of the units.
            If the term is a property of the batch, all rows have the same value.
        """


class L1(Penalty):
    r"""Sum of the weighted magnitudes of a code, for sparse codes [1]_.

    .. math:: \Omega(z) = \sum_j \lVert w_j \rVert \, |z_j|

    where :math:`w_j` are the weights of unit j in the first layer of the decoder.
    Without them, the term could be made small by a small code and a decoder with large
    weights [2]_. The norms are 1 if the first layer of a user-defined decoder is not a
    linear map of the code, or receives the code in another order.

    The penalty implies ``code_activation="relu"``: gradient steps make an unbounded
    code small but never exactly zero, while a rectified one is zero wherever its
    pre-activation is negative. Codes are then non-negative. A unit that is zero in a
    whole batch still receives the gradient in those rows in which its activation
    decreases the loss. Units therefore do not die. The code of a Gaussian bottleneck is
    not rectified: its means become small, but not zero.

    ``hidden_layer_sizes="auto"`` means no hidden layers: a row is then reconstructed as
    a sum of few of the decoder's columns [2]_. With the hidden layers of other codes,
    64 components at a weight of 0.01 explained .940 of the variance of held-out rows of
    breast cancer instead of .962, and .895 instead of .888 of the digits, in twenty
    times the time. Few components, such as 8 for the digits, explain more with hidden
    layers (.83 instead of .60).

    Parameters
    ----------
    warm_up : float, default=0.3
        Share of the training, in [0, 1], during which the weight of the term grows
        linearly from zero to `penalty_weight`. `partial_fit` and a resumed `fit` use
        the full weight throughout.

    See Also
    --------
    KLSparsity : Sparsity over rows instead of exact zeros.
    skae.bottlenecks.TopK : A fixed number of nonzero components per row.

    References
    ----------
    .. [1] Ranzato, M., Boureau, Y., & LeCun, Y. (2007). Sparse feature learning for
       deep belief networks. Advances in Neural Information Processing Systems, 20.
    .. [2] Olshausen, B. A., & Field, D. J. (1996). Emergence of simple-cell receptive
       field properties by learning a sparse code for natural images. Nature, 381,
       607-609.

    Examples
    --------
    >>> import torch
    >>> from skae.penalties import L1
    >>> penalty = L1().build()
    >>> penalty(None, None, torch.tensor([[1.0, -2.0]]), torch.ones(1))
    tensor([3.])
    """

    code_activation: ClassVar[str] = "relu"
    allows_order: ClassVar[bool] = False
    suits_hidden_layers: ClassVar[bool] = False
    needs_rows: ClassVar[bool] = False
    weighs_units: ClassVar[bool] = True
    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "warm_up": [Interval(Real, 0, 1, closed="both")]
    }

    def __init__(self, warm_up: float = 0.3):
        self.warm_up = warm_up

    def build(self) -> nn.Module:
        return _L1Norm()


class KLSparsity(Penalty):
    r"""Divergence of each code unit's mean activation from a target [1]_ [2]_.

    .. math::

        \Omega = \sum_j \rho \log \frac{\rho}{\hat\rho_j}
            + (1 - \rho) \log \frac{1 - \rho}{1 - \hat\rho_j}, \quad
        \hat\rho_j = \frac{\sum_i w_i \, \sigma(z_{ij})}{\sum_i w_i}

    where :math:`\sigma` is the logistic function and the sums run over the rows i
    of a batch. The term is therefore a property of the batch, the same for each of
    its rows.

    The code itself stays unbounded; only the penalty applies :math:`\sigma`. It is not
    sparse in the sense of zeros: the activation :math:`\sigma(z)` of a unit is small
    for most rows, near :math:`\rho`, but never zero, and z is then near
    :math:`\log(\rho / (1 - \rho))`, which is -2.9 for the default target.

    Parameters
    ----------
    target : float, default=0.05
        Target :math:`\rho` of the mean activation of each unit, in (0, 1).

    See Also
    --------
    L1 : Sparsity with exact zeros.

    References
    ----------
    .. [1] Lee, H., Ekanadham, C. and Ng, A. (2008). Sparse deep belief net model
       for visual area V2. Advances in Neural Information Processing Systems, 20.
    .. [2] Ng, A. (2011). Sparse autoencoder. CS294A lecture notes, Stanford
       University.

    Examples
    --------
    >>> import torch
    >>> from skae.penalties import KLSparsity
    >>> penalty = KLSparsity(target=0.5).build()
    >>> penalty(None, None, torch.tensor([[-3.0], [3.0]]), torch.ones(2))
    tensor([0., 0.])
    >>> penalty(None, None, torch.tensor([[-3.0], [3.0]]), torch.tensor([9.0, 1.0]))
    tensor([0.3715, 0.3715])
    """

    allows_order: ClassVar[bool] = False
    needs_batch: ClassVar[bool] = True
    needs_rows: ClassVar[bool] = False
    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "target": [Interval(Real, 0, 1, closed="neither")]
    }

    def __init__(self, target: float = 0.05):
        self.target = target

    def build(self) -> nn.Module:
        return _KLDivergence(self.target)


class Contractive(Penalty):
    r"""Squared Frobenius norm of the encoder's Jacobian [1]_.

    .. math::

        \Omega(x) = \lVert J(x) \rVert_F^2
            = \sum_{j, l} \left( \frac{\partial z_j}{\partial x_l} \right)^2

    A small change of a row, in the scaled space in which the network works, then
    changes its code little, except along directions in which the rows vary. The
    cost grows with the number of components. For wide codes, `n_projections` selects
    an unbiased estimate [2]_

    .. math::

        \Omega(x) \approx \frac1m \sum_{i=1}^m \lVert v_i^T J(x) \rVert^2,
        \quad v_i \in \{-1, 1\}^k \text{ random and independent.}

    Parameters
    ----------
    n_projections : int, "auto" or None, default="auto"
        Number m of random directions for each row, >= 1. None computes the exact norm,
        and ``"auto"`` does so for up to 16 components, and else takes 16 directions.

    See Also
    --------
    L1 : Sum of the magnitudes of a code.

    Notes
    -----
    The norm of a multilayer perceptron has a closed form. With it, a training step
    of a 784-128-64-12-64-128-784 network takes 2.5 to 3 times as long as without
    the penalty, and twice as long with one projection. For any other encoder, each
    row is evaluated once per component or projection. PyTorch must then be able to
    differentiate the encoder twice, and each output may depend on its own row only.
    Batch normalisation in training mode violates the latter: the penalty is then
    approximate, and running statistics are updated a second time at each step.

    References
    ----------
    .. [1] Rifai, S., Vincent, P., Muller, X., Glorot, X. and Bengio, Y. (2011).
       Contractive auto-encoders: explicit invariance during feature extraction.
       Proceedings of the 28th International Conference on Machine Learning,
       833-840.
    .. [2] Hutchinson, M. F. (1990). A stochastic estimator of the trace of the
       influence matrix for Laplacian smoothing splines. Communications in
       Statistics - Simulation and Computation, 19(2), 433-450.

    Examples
    --------
    >>> import torch
    >>> from skae.penalties import Contractive
    >>> encoder = torch.nn.Linear(3, 1)
    >>> _ = torch.nn.init.constant_(encoder.weight, 2.0)
    >>> X = torch.zeros(2, 3)
    >>> penalty = Contractive().build()
    >>> penalty(encoder, X, encoder(X), torch.ones(2)).tolist()
    [12.0, 12.0]
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_projections": [
            Interval(Integral, 1, None, closed="left"),
            StrOptions({"auto"}),
            None,
        ]
    }

    def __init__(self, n_projections: int | str | None = "auto"):
        self.n_projections = n_projections

    def build(self) -> nn.Module:
        return _SquaredJacobian(self.n_projections)


class _L1Norm(nn.Module):
    """Compute the sum of the magnitudes of each row's code."""

    def forward(
        self, encoder: nn.Module, X: Tensor, Z: Tensor, weight: Tensor
    ) -> Tensor:
        # The derivative at 0 is 0: a unit that is off comes back if that decreases the
        # loss, and pays the penalty only then.
        return Z.abs().sum(dim=1)


class _KLDivergence(nn.Module):
    """Compute KL(target || mean activation), summed over the code's units."""

    def __init__(self, target: float):
        super().__init__()
        self.target = target

    def forward(
        self, encoder: nn.Module, X: Tensor, Z: Tensor, weight: Tensor
    ) -> Tensor:
        rho = self.target
        # 1 - rho_hat is the mean of sigmoid(-z). Logarithms of both stay exact
        # where the sigmoid saturates.
        log_rho_hat = _log_mean(functional.logsigmoid(Z), weight)
        log_complement = _log_mean(functional.logsigmoid(-Z), weight)
        divergence = rho * (math.log(rho) - log_rho_hat)
        divergence = divergence + (1 - rho) * (math.log1p(-rho) - log_complement)
        return divergence.sum().expand(len(Z))


def _log_mean(log_values: Tensor, weight: Tensor) -> Tensor:
    """Compute the logarithm of the rows' weighted mean of ``exp(log_values)``."""
    weight = weight.to(log_values.dtype)
    # torch.logsumexp(log_values + weight.log()) would lose three digits in float32
    # where log_values is -1e4.
    peak = log_values.detach().amax(dim=0)
    mean = (weight / weight.sum()) @ (log_values - peak).exp()
    return peak + mean.log()


# Without gradients the Jacobian is computed for chunks of rows, with at most this
# number of values in the widest layer.
MAX_ENTRIES = 2**22

# Number of random directions with n_projections="auto". A fit of 1,200 digits with the
# exact norm of 200 components takes 45 times as long as one without the penalty.
N_AUTO_PROJECTIONS = 16

# Elementwise layers whose second derivative is zero.
PIECEWISE_LINEAR = (nn.ReLU, nn.LeakyReLU, Rectifier, Dropout, nn.Dropout)


class _SquaredJacobian(NoiseModule):
    """Compute the squared Frobenius norm of dz/dx, exactly or by random projections.

    The functions below compute sum_v ||v^T J||^2, which is ||J||_F^2 for unit
    vectors v. V, of shape (n_samples or 1, n_directions, n_components), contains the
    vectors v of each row; the first axis has length 1 if they are the same for all
    rows.
    """

    def __init__(self, n_projections: int | str | None):
        super().__init__()
        self.n_projections = n_projections

    def forward(
        self, encoder: nn.Module, X: Tensor, Z: Tensor, weight: Tensor
    ) -> Tensor:
        V = self._directions(Z)
        if torch.is_grad_enabled():
            return _squared_jacobian(encoder, X, V)
        n_entries = V.shape[1] * _widest_layer(encoder, X)
        n_rows = max(1, MAX_ENTRIES // n_entries)
        directions = repeat(V) if len(V) == 1 else V.split(n_rows)
        pairs = zip(X.split(n_rows), directions, strict=False)
        return torch.cat([_squared_jacobian(encoder, *pair) for pair in pairs])

    def _directions(self, Z: Tensor) -> Tensor:
        """Return unit vectors, or random v with E[sum_v v v^T] = I."""
        n_samples, n_components = Z.shape
        m = self.n_projections
        if m == "auto" and n_components > N_AUTO_PROJECTIONS:
            m = N_AUTO_PROJECTIONS
        if not isinstance(m, Integral):
            return torch.eye(n_components, dtype=Z.dtype, device=Z.device)[None]
        shape = (n_samples, m, n_components)
        bits = torch.randint(2, shape, generator=self.generator, device=Z.device)
        return (2 * bits - 1).to(Z.dtype) / math.sqrt(m)


def _squared_jacobian(encoder: nn.Module, X: Tensor, V: Tensor) -> Tensor:
    """Compute sum_v ||v^T J||^2 of each row, by the closed form if there is one."""
    perceptron = _as_perceptron(encoder)
    if perceptron is None:
        return _squared_products(encoder, X, V)
    return _squared_chain(perceptron, X, V).expand(len(X))


class _Perceptron(NamedTuple):
    """Layers of a multilayer perceptron, with an optional linear skip connection.

    Attributes
    ----------
    layers : list of torch.nn.Module
        Linear and elementwise layers; the first is linear.
    skip : torch.nn.Linear or None
        Linear map from the input, added to the output of the layers.
    """

    layers: list[nn.Module]
    skip: nn.Linear | None


def _as_perceptron(encoder: nn.Module) -> _Perceptron | None:
    """Return the layers, or None if the encoder is not a multilayer perceptron."""
    chain: nn.Module = encoder
    skip: nn.Linear | None = None
    if type(encoder) is Residual:  # the PCA start
        chain, skip = encoder.remainder, encoder.linear
    layers = _flatten(chain)
    is_perceptron = (
        layers
        and type(layers[0]) is nn.Linear
        and type(skip) in (nn.Linear, type(None))
        and all(map(_is_linear_or_elementwise, layers))
    )
    return _Perceptron(layers, skip) if is_perceptron else None


def _flatten(module: nn.Module) -> list[nn.Module]:
    """Return the layers of nested ``nn.Sequential``, without ``nn.Identity``."""
    if type(module) is nn.Sequential:
        return [layer for part in module for layer in _flatten(part)]
    return [] if type(module) is nn.Identity else [module]


def _is_linear_or_elementwise(layer: nn.Module) -> bool:
    # Exact types, since a subclass may compute anything. An in-place layer
    # overwrites the input at which its derivative is needed.
    is_inplace = getattr(layer, "inplace", False)
    return type(layer) in (nn.Linear, *ELEMENTWISE) and not is_inplace


def _squared_chain(perceptron: _Perceptron, X: Tensor, V: Tensor) -> Tensor:
    """Compute sum_v ||v^T J||^2 by the chain rule, of shape (n_samples or 1,).

    For linear layers W_1, ..., W_L, elementwise layers with derivatives D_1, D_2, ...
    and a linear skip connection P,

        V J = V P + A W_1,  A = V W_L D_{L-1} ... W_2 D_1.

    With an activation on the code, A begins with V D_L instead of V.
    """
    layers, skip = perceptron
    H = X
    factors: list[Tensor] = []
    for layer in layers:
        if isinstance(layer, nn.Linear):
            H = layer(H)
            factors.append(layer.weight)
        else:
            H, D = _value_and_derivative(layer, H)
            factors.append(D[:, None, :])
    # Outputs of the encoder after the code (log-variances) are not penalised.
    V = functional.pad(V, (0, H.shape[1] - V.shape[2]))
    W, *inner = factors
    A = V
    for factor in reversed(inner):
        A = A @ factor if factor.ndim == 2 else A * factor
    if skip is None:
        return _squared_norm(A, W)
    P = skip.weight
    cross = (A * (V @ (P @ W.mT))).sum(dim=(1, 2))
    return _squared_norm(V, P) + 2 * cross + _squared_norm(A, W)


def _value_and_derivative(layer: nn.Module, H: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output of an elementwise layer and its derivative at each entry.

    Both come from one call, so that they share a dropout mask.
    """
    with_graph = torch.is_grad_enabled() and H.requires_grad
    with torch.enable_grad():
        if not with_graph:
            H = H.detach().requires_grad_()
        activated = layer(H)
        (D,) = torch.autograd.grad(
            activated.sum(),
            H,
            create_graph=with_graph and type(layer) not in PIECEWISE_LINEAR,
            retain_graph=with_graph,
        )
    return activated, D


def _squared_norm(A: Tensor, W: Tensor) -> Tensor:
    """Compute ||A_i W||_F^2 for each i, without A W where that costs more.

    Parameters
    ----------
    A : Tensor of shape (n_samples or 1, n_directions, width)
    W : Tensor of shape (width, n_features)

    Returns
    -------
    Tensor of shape (n_samples or 1,)
    """
    n_vectors, (width, n_features) = A.shape[0] * A.shape[1], W.shape
    if n_vectors * n_features <= width * (n_vectors + n_features):
        return (A @ W).square().sum(dim=(1, 2))
    # <A, A G> with G = W W^T is quadratic in A and in W, so its gradient is twice
    # the gradient with one of the two factors A, and one of the two factors W, held
    # constant. This saves two of five products in the backward pass, a tenth of the
    # training step.
    A_const, W_const = A.detach(), W.detach()
    AG = A_const @ (W @ W_const.mT)
    by_W = (A_const * AG).sum(dim=(1, 2))
    by_A = (A * AG.detach()).sum(dim=(1, 2))
    return 2 * (by_W + by_A) - 3 * by_W.detach()


def _squared_products(encoder: nn.Module, X: Tensor, V: Tensor) -> Tensor:
    """Compute sum_v ||v^T J||^2 of any encoder by vector-Jacobian products.

    Each row is repeated for each direction, so that one ordinary backward pass is
    enough. Batched gradients (``is_grads_batched``) would save a quarter of the time
    of a convolution, but with them PyTorch 2.13 fails on the second derivatives of
    some layers, and those of batch normalisation are all zero.
    """
    create_graph = torch.is_grad_enabled()
    (n_samples, n_features), (_, n_directions, n_components) = X.shape, V.shape
    V = V.expand(n_samples, -1, -1).flatten(0, 1)
    with torch.enable_grad():
        X = X.detach().repeat_interleave(n_directions, dim=0).requires_grad_()
        with exact_derivatives(encoder):
            Z = encoder(X)[:, :n_components]
            (VJ,) = torch.autograd.grad(Z, X, V, create_graph=create_graph)
    VJ = VJ.reshape(n_samples, n_directions, n_features)
    return VJ.square().sum(dim=(1, 2))


def _widest_layer(encoder: nn.Module, X: Tensor) -> int:
    """Return the largest number of values that a layer outputs for one row."""
    X = X[:2]  # batch normalisation in training mode rejects a single row
    sizes = [X.numel()]

    def record(layer: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    with forward_hooks(encoder.modules(), record):
        encoder(X)
    return max(1, max(sizes) // max(1, len(X)))


PENALTIES: dict[str, type[Penalty]] = {
    "l1": L1,
    "kl": KLSparsity,
    "contractive": Contractive,
}
