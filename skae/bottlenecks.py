"""Bottlenecks: how a code is passed from the encoder to the decoder.

A bottleneck is an object that only stores its settings; its method `build` makes
the PyTorch module that computes codes. Pass its name
(``bottleneck="gaussian"``) or the object itself
(``bottleneck=Quantized(n_codes=64)``) to an estimator. User-defined bottlenecks
derive from :class:`Bottleneck` and :class:`Squeeze`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from skae._compat import Interval, StrOptions
from skae._layers import NoiseModule

__all__ = ["Bottleneck", "Deterministic", "Gaussian", "Quantized", "Squeeze"]


class Squeeze(nn.Module):
    """Base class of the modules that bottlenecks build; by itself, the identity.

    The input H, of shape (n_samples, encoder_width), is the output of the encoder.
    Its first `n_components` columns are the code before noise or quantization. A
    module with noise draws from its attribute ``generator``, which is set during
    training.

    Attributes
    ----------
    n_values : int
        Largest number of values that the module holds at a time for one row.

    See Also
    --------
    Bottleneck : Settings from which a module is built.

    Examples
    --------
    >>> import torch
    >>> from skae.bottlenecks import Squeeze
    >>> class Rounding(Squeeze):
    ...     def forward(self, H):
    ...         return H.round()
    >>> Rounding()(torch.tensor([[0.9, -2.2]]))
    tensor([[ 1., -2.]])
    """

    n_values: int = 1

    def __init__(self) -> None:
        super().__init__()

    def forward(self, H: Tensor) -> Tensor:
        """Compute codes without noise.

        Parameters
        ----------
        H : Tensor of shape (n_samples, encoder_width)
            Output of the encoder.

        Returns
        -------
        Tensor of shape (n_samples, n_components)
            Codes, always the same for a row.
        """
        return H

    def training_code(
        self, H: Tensor, weight: Tensor, done: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the decoder's input in training, and a term of the objective.

        Parameters
        ----------
        H : Tensor of shape (n_samples, encoder_width)
            Output of the encoder.
        weight : Tensor of shape (n_samples,)
            Positive weights of the rows.
        done : Tensor of shape ()
            Share of the training that is completed, in [0, 1].

        Returns
        -------
        Z : Tensor of shape (n_samples, n_components)
            Codes.
        term : Tensor of shape (n_samples,) or None
            Term that the objective adds, times `bottleneck_weight`, to the sum
            of the row's loss over its features.
        """
        return self(H), None

    def score_term(self, H: Tensor) -> Tensor | None:
        """Compute the term that a row's score adds to its loss, if any.

        Parameters
        ----------
        H : Tensor of shape (n_samples, encoder_width)
            Output of the encoder.

        Returns
        -------
        Tensor of shape (n_samples,) or None
            Term of each row; None if the score is the loss alone.
        """
        return None


class Bottleneck(BaseEstimator, ABC):
    """Base class of all bottlenecks.

    A bottleneck defines the width of the encoder's output, the code that the
    decoder receives, and the term that the objective and the score add to the
    loss.

    Attributes
    ----------
    allows_pca : bool
        Whether a network with this bottleneck can start as a PCA, which requires
        that the decoder receives the encoder's output unchanged.
    suits_code_activation : bool
        Whether the code may have the activation that a penalty implies.
    has_plain_score : bool
        Whether a row's score is its loss alone, which is a sum over its features.
    codes_may_be_refined : bool
        Whether every real vector is a valid code, so that codes may be optimised
        after encoding.
    members_stack : bool
        Whether several networks with this bottleneck can be trained as one
        network with stacked weights.

    See Also
    --------
    Squeeze : Module that a bottleneck builds.

    Examples
    --------
    >>> import torch
    >>> from skae.bottlenecks import Bottleneck, Squeeze
    >>> class TanhSqueeze(Squeeze):
    ...     def forward(self, H):
    ...         return H.tanh()
    >>> class Tanh(Bottleneck):
    ...     def build(self, n_components, n_channels, generator):
    ...         return TanhSqueeze()
    >>> module = Tanh().build(1, 1, torch.Generator())
    >>> module(torch.tensor([[0.5]]))
    tensor([[0.4621]])
    """

    allows_pca: ClassVar[bool] = False
    suits_code_activation: ClassVar[bool] = True
    has_plain_score: bool = True
    codes_may_be_refined: ClassVar[bool] = False
    members_stack: ClassVar[bool] = False
    _parameter_constraints: ClassVar[dict] = {}

    def encoder_width(self, n_components: int) -> int:
        """Return the number of outputs that the encoder must have.

        Parameters
        ----------
        n_components : int
            Width of the code.

        Returns
        -------
        int
            A multiple of `n_components`.
        """
        return n_components

    @abstractmethod
    def build(
        self, n_components: int, n_channels: int, generator: torch.Generator
    ) -> Squeeze:
        """Make the module that turns the encoder's output into a code.

        Parameters
        ----------
        n_components : int
            Width of the code.
        n_channels : int
            Number of consecutive components that belong to one position, if the
            code is a feature map; else `n_components`.
        generator : torch.Generator
            Source of random initial values.

        Returns
        -------
        Squeeze
            A new module.
        """

    def fitted_attributes(
        self, evaluate: Callable[[str], np.ndarray], weight: np.ndarray
    ) -> dict[str, Any]:
        """Compute the fitted attributes that only this bottleneck has.

        Parameters
        ----------
        evaluate : callable
            Takes the name of a method of the module, ``"encode"`` or
            ``"quantize"``, and returns its result for the training rows.
        weight : ndarray of shape (n_rows,)
            Weights of these rows.

        Returns
        -------
        dict
            Values of the attributes by their names.
        """
        return {}


class Deterministic(Bottleneck):
    """Plain bottleneck: the code is the encoder's output.

    The decoder receives the code without noise, and the objective has no
    additional term.

    See Also
    --------
    Gaussian : Variational bottleneck.
    Quantized : Vector quantization.

    Examples
    --------
    >>> import torch
    >>> from skae.bottlenecks import Deterministic
    >>> bottleneck = Deterministic().build(2, 2, torch.Generator())
    >>> bottleneck(torch.tensor([[1.0, 2.0]]))
    tensor([[1., 2.]])
    """

    allows_pca: ClassVar[bool] = True
    codes_may_be_refined: ClassVar[bool] = True
    members_stack: ClassVar[bool] = True

    def build(
        self, n_components: int, n_channels: int, generator: torch.Generator
    ) -> Squeeze:
        return Squeeze()


class Gaussian(Bottleneck):
    r"""Variational bottleneck: a code is a normal distribution [1]_.

    The encoder computes the mean and the logarithm of the variance of each
    component. In training the decoder receives a sample of this distribution,

    .. math:: z_j = \mu_j + \sigma_j \epsilon_j, \quad \epsilon_j \sim N(0, 1),

    and the objective adds the divergence from the standard normal distribution,

    .. math::

        D_{KL} = \frac12 \sum_j (\mu_j^2 + \sigma_j^2 - 1 - \log \sigma_j^2).

    The loss of a row is a mean over its features, so :math:`D_{KL}` is divided by
    their number. With ``bottleneck_weight=1``, which is beta in [2]_, and
    ``loss="binary_cross_entropy"`` the objective is the negative evidence lower
    bound (ELBO) in nats per feature. With the squared error it is, up to a constant
    factor, that of a decoder with variance 1/2 in the scaled space.

    Outside training the code of a row is the mean.

    Parameters
    ----------
    warm_up : float, default=0.0
        Share of the training, in [0, 1], during which the weight of the term grows
        linearly from zero to `bottleneck_weight`. `partial_fit` has no last epoch
        and does not warm up.
    score : {"reconstruction", "elbo"}, default="reconstruction"
        Score of a row: the loss of the reconstruction from its mean code, or the
        negative ELBO, which is this loss plus :math:`D_{KL}` per feature. Neither
        draws random numbers.

    See Also
    --------
    Deterministic : The same code without a distribution.

    Notes
    -----
    A fitted estimator has the attribute ``active_units_``, one bool for each
    component: whether its mean has a variance above 0.01 over the training rows
    [3]_. The code of an inactive component does not depend on the row.

    References
    ----------
    .. [1] Kingma, D. P., & Welling, M. (2014). Auto-encoding variational Bayes.
       ICLR.
    .. [2] Higgins, I., et al. (2017). beta-VAE: Learning basic visual concepts
       with a constrained variational framework. ICLR.
    .. [3] Burda, Y., Grosse, R., & Salakhutdinov, R. (2016). Importance weighted
       autoencoders. ICLR.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skae import AutoencoderTransformer
    >>> X = load_iris().data
    >>> vae = AutoencoderTransformer(2, bottleneck="gaussian", random_state=0).fit(X)
    >>> vae.sample(5, random_state=0).shape
    (5, 4)
    """

    # The prior is symmetric; a rectified mean would not be.
    suits_code_activation: ClassVar[bool] = False
    _parameter_constraints: ClassVar[dict] = {
        "warm_up": [Interval(Real, 0, 1, closed="both")],
        "score": [StrOptions({"reconstruction", "elbo"})],
    }

    def __init__(self, *, warm_up: float = 0.0, score: str = "reconstruction"):
        self.warm_up = warm_up
        self.score = score

    @property
    def has_plain_score(self) -> bool:  # type: ignore[override]
        return self.score == "reconstruction"

    def encoder_width(self, n_components: int) -> int:
        return 2 * n_components

    def build(
        self, n_components: int, n_channels: int, generator: torch.Generator
    ) -> Squeeze:
        return _GaussianSqueeze(self.warm_up, not self.has_plain_score)

    def sample_prior(
        self, n_samples: int, n_components: int, rng: np.random.RandomState
    ) -> np.ndarray:
        """Draw codes from the standard normal distribution.

        Parameters
        ----------
        n_samples : int
            Number of codes.
        n_components : int
            Width of a code.
        rng : numpy.random.RandomState
            Source of the random numbers.

        Returns
        -------
        ndarray of shape (n_samples, n_components)
            Codes.
        """
        return rng.standard_normal((n_samples, n_components))

    def fitted_attributes(
        self, evaluate: Callable[[str], np.ndarray], weight: np.ndarray
    ) -> dict[str, Any]:
        mu = evaluate("encode").astype(np.float64)
        deviation = mu - np.average(mu, axis=0, weights=weight)
        variance = np.average(deviation**2, axis=0, weights=weight)
        return {"active_units_": variance > 0.01}


class Quantized(Bottleneck):
    r"""Vector quantization: a code consists of entries of finite codebooks [1]_.

    The components are split into groups of `code_dim`, and each group is replaced
    by the nearest entry of its codebook e,

    .. math:: q = \arg\min_i \lVert z - e_i \rVert, \qquad \hat z = e_q.

    The gradient is passed straight through to z, and the objective adds the
    commitment term :math:`\lVert z - e_q \rVert^2`, which keeps z near its entry.
    The loss of a row is a mean over its features, so the term is divided by their
    number.

    The entries are exponential moving averages of the codes assigned to them. An
    entry with hardly any assignments is dead; it is replaced by a code of the
    current batch.

    Parameters
    ----------
    n_codes : int, default=256
        Number of entries of each codebook, in [2, 2**24]. A group then takes
        ``log2(n_codes)`` bits.
    code_dim : int or "auto", default="auto"
        Number of components in a group, >= 1; the last group may be narrower.
        ``"auto"`` means the channels of one position where the code is a feature
        map (``Conv(..., code="feature_map")``), else 4.
    shared : bool, default=False
        Whether all groups share one codebook, as the positions of a feature map
        do in a VQ-VAE. `code_dim` must then divide `n_components`.
    decay : float, default=0.9
        Decay of the moving averages at each step, in [0, 1).

    See Also
    --------
    Deterministic : Continuous codes.

    Notes
    -----
    `transform` returns the entries. A fitted estimator has the attribute
    ``perplexity_``, of shape (n_codebooks,): the exponential of the entropy of
    how often the training rows use the entries, at most `n_codes`. A transformer
    has the methods `quantize` and `dequantize`.

    References
    ----------
    .. [1] van den Oord, A., Vinyals, O., & Kavukcuoglu, K. (2017). Neural
       discrete representation learning. NeurIPS 30.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skae import AutoencoderTransformer
    >>> from skae.bottlenecks import Quantized
    >>> X = load_digits().data
    >>> bottleneck = Quantized(n_codes=16, code_dim=2)
    >>> vq = AutoencoderTransformer(
    ...     4, bottleneck=bottleneck, max_epochs=20, random_state=0
    ... ).fit(X)
    >>> codes = vq.quantize(X)
    >>> codes.shape, codes.dtype, int(codes.max()) < 16
    ((1797, 2), dtype('uint8'), True)
    >>> vq.dequantize(codes).shape
    (1797, 64)
    """

    _parameter_constraints: ClassVar[dict] = {
        "n_codes": [Interval(Integral, 2, 2**24, closed="both")],
        "code_dim": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
        "shared": ["boolean"],
        "decay": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(
        self,
        n_codes: int = 256,
        code_dim: int | str = "auto",
        *,
        shared: bool = False,
        decay: float = 0.9,
    ):
        self.n_codes = n_codes
        self.code_dim = code_dim
        self.shared = shared
        self.decay = decay

    def build(
        self, n_components: int, n_channels: int, generator: torch.Generator
    ) -> Squeeze:
        code_dim = self.code_dim
        if code_dim == "auto":
            code_dim = n_channels if n_channels < n_components else AUTO_CODE_DIM
        code_dim = min(int(code_dim), n_components)
        if self.shared and n_components % code_dim:
            raise ValueError(
                f"bottleneck={self!r} shares one codebook of width {code_dim}, which "
                f"must divide n_components={n_components}."
            )
        return _QuantizedSqueeze(
            n_components, self.n_codes, code_dim, self.shared, self.decay
        )

    def fitted_attributes(
        self, evaluate: Callable[[str], np.ndarray], weight: np.ndarray
    ) -> dict[str, Any]:
        codes = evaluate("quantize").astype(np.int64)
        n_codebooks = 1 if self.shared else codes.shape[1]
        usage = np.zeros((n_codebooks, self.n_codes))
        for group, column in enumerate(codes.T):
            usage[group % n_codebooks] += np.bincount(column, weight, self.n_codes)
        share = usage / usage.sum(axis=1, keepdims=True)
        log_share = np.log(share, out=np.zeros_like(share), where=share > 0)
        return {"perplexity_": np.exp(-(share * log_share).sum(axis=1))}


# code_dim="auto" without channels: four components use the bits of a byte well.
AUTO_CODE_DIM = 4

# An entry is dead if its count is at most this share of the mean count.
DEAD_SHARE = 0.05

# In float32 a log-variance outside these bounds only causes overflow.
LOG_VAR_BOUNDS = (-30.0, 20.0)


class _GaussianSqueeze(Squeeze, NoiseModule):
    """Sample codes from their distribution in training, else return the mean."""

    def __init__(self, warm_up: float, scores_elbo: bool):
        super().__init__()
        self.warm_up = warm_up
        self.scores_elbo = scores_elbo

    def forward(self, H: Tensor) -> Tensor:
        mu, _ = H.chunk(2, dim=1)
        return mu

    def training_code(
        self, H: Tensor, weight: Tensor, done: Tensor
    ) -> tuple[Tensor, Tensor]:
        mu, log_var = _mean_and_log_var(H)
        eps = torch.randn(
            mu.shape, generator=self.generator, dtype=mu.dtype, device=mu.device
        )
        term = divergence(mu, log_var)
        if self.warm_up > 0:
            term = term * (done / self.warm_up).clamp(max=1)
        return mu + torch.exp(log_var / 2) * eps, term

    def score_term(self, H: Tensor) -> Tensor | None:
        return divergence(*_mean_and_log_var(H)) if self.scores_elbo else None


def _mean_and_log_var(H: Tensor) -> tuple[Tensor, Tensor]:
    mu, log_var = H.chunk(2, dim=1)
    return mu, log_var.clamp(*LOG_VAR_BOUNDS)


def divergence(mu: Tensor, log_var: Tensor) -> Tensor:
    """Compute the Kullback-Leibler divergence of N(mu, exp(log_var)) from N(0, 1).

    Parameters
    ----------
    mu, log_var : Tensor of shape (n_samples, n_components)
        Means and logarithms of the variances.

    Returns
    -------
    Tensor of shape (n_samples,)
        Divergence of each row, in nats.
    """
    return (mu.square() + log_var.exp() - 1 - log_var).sum(dim=1) / 2


class _QuantizedSqueeze(Squeeze, NoiseModule):
    """Replace groups of components by the nearest entries of codebooks.

    Symbols of the shapes: G groups use C codebooks, where C = G or C = 1, of K
    entries of width D. Each codebook quantizes m = n_samples * G / C vectors.
    """

    codebooks: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(
        self,
        n_components: int,
        n_codes: int,
        code_dim: int,
        shared: bool,
        decay: float,
    ):
        super().__init__()
        self.n_components = n_components
        self.n_groups = math.ceil(n_components / code_dim)
        self.code_dim = code_dim
        self.decay = decay
        self.n_values = self.n_groups * n_codes
        n_codebooks = 1 if shared else self.n_groups
        size = (n_codebooks, n_codes)
        self.register_buffer("codebooks", torch.zeros(*size, code_dim))
        # Moving averages of the number and of the sum of the vectors of each entry.
        self.register_buffer("counts", torch.zeros(size))
        self.register_buffer("sums", torch.zeros(*size, code_dim))

    def forward(self, H: Tensor) -> Tensor:
        return self.look_up(self.quantize(H))

    def training_code(
        self, H: Tensor, weight: Tensor, done: Tensor
    ) -> tuple[Tensor, Tensor]:
        codes = self.quantize(H)
        Q = self.look_up(codes)
        if self.training:
            with torch.no_grad():
                self._update_codebooks(self._vectors(H.to(self.sums)), codes, weight)
        # Straight-through estimator: the value of Q, the gradient of H.
        return H + (Q - H).detach(), (H - Q).square().sum(dim=1)

    @torch.no_grad()
    def quantize(self, H: Tensor) -> Tensor:
        """Return the indices of the nearest entries, of shape (n_samples, n_groups)."""
        # A matrix product would round differently for different batches.
        distances = torch.cdist(
            self._vectors(H),
            self.codebooks,
            compute_mode="donot_use_mm_for_euclid_dist",
        )  # (C, m, K)
        return self._by_row(distances.argmin(dim=2))

    def look_up(self, codes: Tensor) -> Tensor:
        """Return the entries at these indices, of shape (n_samples, n_components)."""
        indices = self._by_codebook(codes)  # (C, m)
        entries = self.codebooks.gather(
            1, indices[:, :, None].expand(-1, -1, self.code_dim)
        )  # (C, m, D)
        n_samples = codes.shape[0]
        entries = entries.reshape(-1, n_samples, self.code_dim)  # (G, n_samples, D)
        return entries.transpose(0, 1).reshape(n_samples, -1)[:, : self.n_components]

    def _vectors(self, H: Tensor) -> Tensor:
        """Return groups of components, the last padded with zeros, as (C, m, D)."""
        n_padded = self.n_groups * self.code_dim - self.n_components
        groups = nn.functional.pad(H, (0, n_padded))
        # len(H) would become a constant when the module is traced.
        groups = groups.reshape(H.shape[0], self.n_groups, self.code_dim)
        groups = groups.transpose(0, 1)  # (G, n_samples, D)
        return groups.reshape(len(self.codebooks), -1, self.code_dim)

    def _by_codebook(self, codes: Tensor) -> Tensor:
        """Reshape from (n_samples, G) to (C, m)."""
        return codes.T.reshape(len(self.codebooks), -1)

    def _by_row(self, codes: Tensor) -> Tensor:
        """Reshape from (C, m) to (n_samples, G)."""
        return codes.reshape(self.n_groups, -1).T

    def _update_codebooks(self, V: Tensor, codes: Tensor, weight: Tensor) -> None:
        """Update the moving averages with the vectors V, of shape (C, m, D)."""
        n_codebooks, _, code_dim = self.codebooks.shape
        weight = weight.to(V).repeat(self.n_groups).reshape(n_codebooks, -1)  # (C, m)
        indices = self._by_codebook(codes)
        counts = torch.zeros_like(self.counts).scatter_add_(1, indices, weight)
        sums = torch.zeros_like(self.sums).scatter_add_(
            1, indices[:, :, None].expand(-1, -1, code_dim), V * weight[:, :, None]
        )
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        self._replace_dead_entries(V, weight)
        self.codebooks.copy_(self.sums / self.counts[:, :, None])

    def _replace_dead_entries(self, V: Tensor, weight: Tensor) -> None:
        """Replace dead entries by vectors of the batch, sampled by weight."""
        K = self.counts.shape[1]
        mean = self.counts.mean(dim=1, keepdim=True)
        dead = self.counts <= DEAD_SHARE * mean
        # Sampled for all entries: counting the dead ones would synchronise a GPU.
        cumulated = weight.cumsum(dim=1)
        u = torch.rand(
            self.counts.shape, generator=self.generator, device=weight.device
        )
        indices = torch.searchsorted(cumulated, u * cumulated[:, -1:], right=True)
        indices = indices.clamp(max=weight.shape[1] - 1)  # (C, K)
        vectors = V.gather(1, indices[:, :, None].expand(-1, -1, V.shape[2]))
        # With the mean count of the batch a new entry is not dead at the next step.
        count = weight.sum(dim=1, keepdim=True) / K
        self.counts.copy_(torch.where(dead, count, self.counts))
        self.sums.copy_(
            torch.where(dead[:, :, None], vectors * count[:, :, None], self.sums)
        )


BOTTLENECKS: dict[str, type[Bottleneck]] = {
    "deterministic": Deterministic,
    "gaussian": Gaussian,
    "quantized": Quantized,
}
