"""Bottlenecks: what happens to a code between the encoder and the decoder.

A bottleneck is a small object that only stores its settings; `build` makes the
PyTorch module that does the work. Derive from :class:`Bottleneck` and
:class:`Squeeze` to bring your own.
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
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn

from skae._layers import NoiseModule

__all__ = ["Bottleneck", "Deterministic", "Gaussian", "Quantized", "Squeeze"]


class Squeeze(nn.Module):
    """Base of the modules that bottlenecks build; by itself it changes nothing.

    Its input H, of shape (n_samples, encoder_width), is what the encoder says;
    the first `n_components` columns are the code before noise or rounding. A
    module with noise draws from the attribute `generator`, which the training
    sets.

    Attributes
    ----------
    n_values : int
        Most values that the module holds at a time for one row.
    """

    n_values: int = 1

    def forward(self, H: Tensor) -> Tensor:
        """Codes, of shape (n_samples, n_components), always the same for a row."""
        return H

    def training_code(
        self, H: Tensor, weight: Tensor, done: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Codes as the decoder meets them in training, and each row's term.

        Parameters
        ----------
        H : Tensor of shape (n_samples, encoder_width)
        weight : Tensor of shape (n_samples,)
            Positive weights of the rows.
        done : Tensor of shape ()
            Share of the training that is over, in [0, 1].

        Returns
        -------
        Z : Tensor of shape (n_samples, n_components)
        term : Tensor of shape (n_samples,) or None
            What the objective adds, `bottleneck_weight` times, to the sum of
            the row's loss over its features.
        """
        return self(H), None

    def score_term(self, H: Tensor) -> Tensor | None:
        """What a row's score counts beside its loss, of shape (n_samples,)."""
        return None


class Bottleneck(BaseEstimator, ABC):
    """Base of all bottlenecks.

    Attributes
    ----------
    allows_pca : bool
        Whether a network with this bottleneck can start as a PCA, that is
        whether the decoder sees what the encoder said.
    suits_code_activation : bool
        Whether a penalty may put the activation that it implies on the code.
    has_plain_score : bool
        Whether a row's score is its loss alone, which sums over its features.
    codes_may_be_refined : bool
        Whether any code is allowed, so that codes may be moved after encoding.
    members_stack : bool
        Whether several networks with this bottleneck can be trained as one
        network with stacked weights.
    """

    allows_pca: ClassVar[bool] = False
    suits_code_activation: ClassVar[bool] = True
    has_plain_score: bool = True
    codes_may_be_refined: ClassVar[bool] = False
    members_stack: ClassVar[bool] = False
    _parameter_constraints: ClassVar[dict] = {}

    def encoder_width(self, n_components: int) -> int:
        """Number of values that the encoder has to give for `n_components`."""
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
            Number of consecutive components that belong together: those of one
            position, if the code is a feature map, else all.
        generator : torch.Generator
            Source of all initial values.

        Returns
        -------
        module : Squeeze
        """

    def fitted_attributes(
        self, evaluate: Callable[[str], np.ndarray], weight: np.ndarray
    ) -> dict[str, Any]:
        """Fitted attributes that only this bottleneck has, by their names.

        Parameters
        ----------
        evaluate : callable
            Gives what a method of the module, ``"encode"`` or ``"quantize"``, makes
            of the training rows.
        weight : ndarray of shape (n_rows,)
            Weights of these rows.
        """
        return {}


class Deterministic(Bottleneck):
    """The plain bottleneck: the code is what the encoder says.

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

    The encoder gives the mean and the logarithm of the variance of each
    component. In training the decoder meets a draw of this distribution,

    .. math:: z_j = \mu_j + \sigma_j \epsilon_j, \quad \epsilon_j \sim N(0, 1),

    and the term keeps it near the standard normal distribution,

    .. math::

        D_{KL} = \frac12 \sum_j (\mu_j^2 + \sigma_j^2 - 1 - \log \sigma_j^2).

    Since the loss of a row is the mean over its features, so is the term:
    :math:`D_{KL}` is divided by their number. With ``bottleneck_weight=1``,
    which is beta of [2]_, and ``loss="binary_cross_entropy"`` the objective is
    the negative evidence lower bound (ELBO) in nats per feature; with the
    squared error, that of a decoder with variance 1/2 in the scaled space,
    times a constant.

    Outside training the code of a row is the mean.

    Parameters
    ----------
    warm_up : float, default=0.0
        Share of the training, in [0, 1], in which the weight of the term grows in
        a line from zero to `bottleneck_weight`. `partial_fit` knows no
        end and does not warm up.
    score : {"reconstruction", "elbo"}, default="reconstruction"
        What scores a row: the loss of the reconstruction from its mean code, or
        the negative ELBO, that is this loss plus :math:`D_{KL}` per
        feature. Neither draws.

    Notes
    -----
    A fitted estimator has the attribute ``active_units_``, a boolean for each
    component: whether the mean varies by more than 0.01 over the training rows
    [3]_. An inactive component says nothing about the row.

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

    suits_code_activation: ClassVar[bool] = False  # the prior has both signs
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
        """Codes of shape (n_samples, n_components) from the standard normal."""
        return rng.standard_normal((n_samples, n_components))

    def fitted_attributes(
        self, evaluate: Callable[[str], np.ndarray], weight: np.ndarray
    ) -> dict[str, Any]:
        mu = evaluate("encode").astype(np.float64)
        deviation = mu - np.average(mu, axis=0, weights=weight)
        variance = np.average(deviation**2, axis=0, weights=weight)
        return {"active_units_": variance > 0.01}


class Quantized(Bottleneck):
    r"""Vector quantization: a code is one of finitely many [1]_.

    The components are cut into groups of `code_dim`, and each group is replaced
    by the nearest entry of its codebook e,

    .. math:: q = \arg\min_i \lVert z - e_i \rVert, \qquad \hat z = e_q.

    The gradient passes straight through to z, and the term keeps z near its
    entry, :math:`\lVert z - e_q \rVert^2`. Since the loss of a row is the mean
    over its features, the term, too, is divided by their number.

    Entries follow the mean of the codes that choose them by exponential moving
    averages. One that is hardly chosen any more is dead; it moves to a code of
    the current batch.

    Parameters
    ----------
    n_codes : int, default=256
        Number of entries of each codebook, >= 2. A group then takes
        ``log2(n_codes)`` bits.
    code_dim : int or "auto", default="auto"
        Number of components in a group, >= 1; the last group may be narrower.
        ``"auto"`` means the channels of one position where the code is a feature
        map (``Conv(..., code="feature_map")``), else 4.
    shared : bool, default=False
        Whether all groups share one codebook, as the positions of a feature
        map do in a VQ-VAE. `code_dim` must then divide `n_components`.
    decay : float, default=0.9
        Share of the moving averages that a step keeps, in [0, 1).

    Notes
    -----
    `transform` gives the chosen entries. A fitted estimator has the attribute
    ``perplexity_``, of shape (n_codebooks,): the exponential of the entropy of
    the entries' use by the training rows, at most `n_codes`. A transformer has
    the methods `quantize` and `dequantize`.

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
        use = np.zeros((n_codebooks, self.n_codes))
        for group, column in enumerate(codes.T):
            use[group % n_codebooks] += np.bincount(column, weight, self.n_codes)
        share = use / use.sum(axis=1, keepdims=True)
        log_share = np.log(share, out=np.zeros_like(share), where=share > 0)
        return {"perplexity_": np.exp(-(share * log_share).sum(axis=1))}


# Components of a group where nothing else tells: four share a byte well.
AUTO_CODE_DIM = 4

# An entry is dead when it is chosen this often or less, relative to the mean.
DEAD = 0.05

# Beyond them a log-variance has no effect in float32 but overflow.
LOG_VAR_BOUNDS = (-30.0, 20.0)


class _GaussianSqueeze(Squeeze, NoiseModule):
    """Draws codes from their distribution in training, else gives the mean."""

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
        mu, log_var = _moments_of(H)
        eps = torch.randn(
            mu.shape, generator=self.generator, dtype=mu.dtype, device=mu.device
        )
        term = divergence(mu, log_var)
        if self.warm_up > 0:
            term = term * (done / self.warm_up).clamp(max=1)
        return mu + torch.exp(log_var / 2) * eps, term

    def score_term(self, H: Tensor) -> Tensor | None:
        return divergence(*_moments_of(H)) if self.scores_elbo else None


def _moments_of(H: Tensor) -> tuple[Tensor, Tensor]:
    mu, log_var = H.chunk(2, dim=1)
    return mu, log_var.clamp(*LOG_VAR_BOUNDS)


def divergence(mu: Tensor, log_var: Tensor) -> Tensor:
    """Kullback-Leibler divergence of N(mu, exp(log_var)) from N(0, 1), per row.

    Parameters
    ----------
    mu, log_var : Tensor of shape (n_samples, n_components)

    Returns
    -------
    divergence : Tensor of shape (n_samples,)
        In nats.
    """
    return (mu.square() + log_var.exp() - 1 - log_var).sum(dim=1) / 2


class _QuantizedSqueeze(Squeeze, NoiseModule):
    """Replaces groups of components by entries of codebooks.

    Shapes: G groups share C codebooks, C = G or C = 1, of K entries of width D;
    m vectors look for their entry in each codebook, m = n_samples * G / C.
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
        # Moving averages of how often, and by the sum of which, an entry is chosen.
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
                self._follow(self._vectors(H.to(self.sums)), codes, weight)
        # Straight through: the value of Q, the gradient of H.
        return H + (Q - H).detach(), (H - Q).square().sum(dim=1)

    @torch.no_grad()
    def quantize(self, H: Tensor) -> Tensor:
        """Positions of the nearest entries, of shape (n_samples, n_groups)."""
        # Without products of matrices, whose rounding depends on the batch.
        distances = torch.cdist(
            self._vectors(H),
            self.codebooks,
            compute_mode="donot_use_mm_for_euclid_dist",
        )  # (C, m, K)
        return self._ungrouped(distances.argmin(dim=2))

    def look_up(self, codes: Tensor) -> Tensor:
        """Entries at these positions, of shape (n_samples, n_components)."""
        chosen = self._grouped(codes)  # (C, m)
        entries = self.codebooks.gather(
            1, chosen[:, :, None].expand(-1, -1, self.code_dim)
        )  # (C, m, D)
        n_samples = codes.shape[0]
        entries = entries.reshape(-1, n_samples, self.code_dim)  # (G, n_samples, D)
        return entries.transpose(0, 1).reshape(n_samples, -1)[:, : self.n_components]

    def _vectors(self, H: Tensor) -> Tensor:
        """Groups of components, the last one filled with zeros, as (C, m, D)."""
        missing = self.n_groups * self.code_dim - self.n_components
        groups = nn.functional.pad(H, (0, missing))
        # Not len(H), which a trace for any number of rows would take for a constant.
        groups = groups.reshape(H.shape[0], self.n_groups, self.code_dim)
        groups = groups.transpose(0, 1)  # (G, n_samples, D)
        return groups.reshape(len(self.codebooks), -1, self.code_dim)

    def _grouped(self, codes: Tensor) -> Tensor:
        """From (n_samples, G) to (C, m)."""
        return codes.T.reshape(len(self.codebooks), -1)

    def _ungrouped(self, codes: Tensor) -> Tensor:
        """From (C, m) to (n_samples, G)."""
        return codes.reshape(self.n_groups, -1).T

    def _follow(self, V: Tensor, codes: Tensor, weight: Tensor) -> None:
        """Move the entries towards the vectors that chose them; revive the dead."""
        n_codebooks, _, code_dim = self.codebooks.shape
        weight = weight.to(V).repeat(self.n_groups).reshape(n_codebooks, -1)  # (C, m)
        chosen = self._grouped(codes)
        counts = torch.zeros_like(self.counts).scatter_add_(1, chosen, weight)
        sums = torch.zeros_like(self.sums).scatter_add_(
            1, chosen[:, :, None].expand(-1, -1, code_dim), V * weight[:, :, None]
        )
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        self._revive(V, weight)
        self.codebooks.copy_(self.sums / self.counts[:, :, None])

    def _revive(self, V: Tensor, weight: Tensor) -> None:
        """Put dead entries on vectors of the batch, drawn by their weight."""
        K = self.counts.shape[1]
        mean = self.counts.mean(dim=1, keepdim=True)
        dead = self.counts <= DEAD * mean
        # Drawn for all entries, dead or not: looking would make a device wait.
        below = weight.cumsum(dim=1)
        u = torch.rand(
            self.counts.shape, generator=self.generator, device=weight.device
        )
        drawn = torch.searchsorted(below, u * below[:, -1:], right=True)
        drawn = drawn.clamp(max=weight.shape[1] - 1)  # (C, K)
        vectors = V.gather(1, drawn[:, :, None].expand(-1, -1, V.shape[2]))
        # As if it had been chosen as often as the others, so that it gets a chance.
        usual = weight.sum(dim=1, keepdim=True) / K
        self.counts.copy_(torch.where(dead, usual, self.counts))
        self.sums.copy_(
            torch.where(dead[:, :, None], vectors * usual[:, :, None], self.sums)
        )


BOTTLENECKS: dict[str, type[Bottleneck]] = {
    "deterministic": Deterministic,
    "gaussian": Gaussian,
    "quantized": Quantized,
}
