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
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from skae._compat import Interval, StrOptions
from skae._layers import NoiseModule, keep_active
from skae._storage import StoredParametersMixin

__all__ = ["Bottleneck", "Deterministic", "Gaussian", "Quantized", "Squeeze", "TopK"]


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

    @property
    def is_continuous(self) -> bool:
        """Whether a small change of the encoder's output changes the code little."""
        return True

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

    def prefix_term(self, H: Tensor, kept: Tensor, done: Tensor) -> Tensor | None:
        """Compute the term of `training_code` for some of the components.

        It is used for ordered components, see :attr:`Bottleneck.allows_order`.

        Parameters
        ----------
        H : Tensor of shape (n_samples, encoder_width)
            Output of the encoder.
        kept : Tensor of shape (..., n_samples, n_components)
            1 for the components that the decoder receives, 0 for the others.
        done : Tensor of shape ()
            Share of the training that is completed, in [0, 1].

        Returns
        -------
        Tensor of shape (..., n_samples) or None
            Term of each row; None if there is none.
        """
        return None

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


class PCAStart(NamedTuple):
    """Linear maps with which encoder and decoder start as a PCA.

    Attributes
    ----------
    encoder : ndarray of shape (encoder_width, n_features)
        Matrix of the encoder.
    encoder_bias : ndarray of shape (encoder_width,)
        Bias of the encoder; the decoder has none.
    decoder : ndarray of shape (n_features, n_components)
        Matrix of the decoder.
    code_factor : ndarray of shape (n_components,) or None
        Factors that turn codes into coordinates along the axes; None if users receive
        the codes as they are.
    noise_variance : float
        Mean variance of the residuals, per feature.
    """

    encoder: np.ndarray
    encoder_bias: np.ndarray
    decoder: np.ndarray
    code_factor: np.ndarray | None
    noise_variance: float


class Bottleneck(StoredParametersMixin, BaseEstimator, ABC):
    """Base class of all bottlenecks.

    A bottleneck defines the width of the encoder's output, the code that the
    decoder receives, and the term that the objective and the score add to the
    loss.

    Attributes
    ----------
    allows_pca : bool
        Whether a network with this bottleneck can start as a PCA, see
        `start_at_pca`.
    allows_order : bool
        Whether the components may be in order of importance: a code of which all but
        the first components are zero is a code, too.
    suits_hidden_layers : bool
        Whether ``hidden_layer_sizes="auto"`` means hidden layers.
    remedy : str
        What to change if components are constant over the rows, for a warning of `fit`.
    starts_near_pca : bool
        Whether a network with this bottleneck starts near a PCA for ``init="auto"``
        if only the output activation of the loss keeps it from being one.
    suits_code_activation : bool
        Whether the code may have the activation that a penalty implies.
    has_plain_score : bool
        Whether a row's score is its loss alone, which is a sum over its features.
    codes_may_be_refined : bool
        Whether every real vector is a valid code, so that codes may be optimised
        after encoding.
    has_finite_codes : bool
        Whether a component takes finitely many values, so that no derivative along it
        exists.
    members_stack : bool
        Whether several networks with this bottleneck can be trained as one
        network with stacked weights.
    has_term : bool
        Whether the objective has a term that `bottleneck_weight` multiplies.
    noise_variance : float, "auto" or None
        Level of the decoder's noise, see :class:`Gaussian`, if the objective is a
        likelihood; None if it is the loss.
    warm_up : float
        Share of the training during which the weight of the term grows, in [0, 1].
        Early stopping does not end the training before.

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
    allows_order: ClassVar[bool] = False
    suits_hidden_layers: ClassVar[bool] = True
    remedy: ClassVar[str] = ""
    starts_near_pca: ClassVar[bool] = False
    suits_code_activation: ClassVar[bool] = True
    has_plain_score: bool = True
    codes_may_be_refined: ClassVar[bool] = False
    has_finite_codes: ClassVar[bool] = False
    members_stack: ClassVar[bool] = False
    has_term: ClassVar[bool] = True
    noise_variance: float | str | None = None
    warm_up: float = 0.0
    _parameter_constraints: ClassVar[dict[str, Any]] = {}

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

    def start_at_pca(
        self, axes: np.ndarray, variances: np.ndarray, rest: float, weight: float
    ) -> PCAStart:
        """Compute the linear maps with which encoder and decoder start as a PCA.

        Called only if `allows_pca` is True. By default each component of the encoder's
        output has unit variance, which trains better than the variance of the data.

        Parameters
        ----------
        axes : ndarray of shape (n_components, n_features)
            Principal axes in the scaled space, zero beyond the rank.
        variances : ndarray of shape (n_components,)
            Variances along the axes, 0 beyond the rank.
        rest : float
            Mean variance of the other directions, 0 if there are none.
        weight : float
            The parameter `bottleneck_weight`.

        Returns
        -------
        PCAStart
            The maps, and the variance of the residuals.
        """
        deviation = np.sqrt(np.where(variances > 0, variances, 1))
        return PCAStart(
            axes / deviation[:, None],
            np.zeros(len(axes)),
            axes.T * deviation,
            deviation,
            rest,
        )

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
    allows_order: ClassVar[bool] = True
    codes_may_be_refined: ClassVar[bool] = True
    members_stack: ClassVar[bool] = True
    has_term: ClassVar[bool] = False

    def build(
        self, n_components: int, n_channels: int, generator: torch.Generator
    ) -> Squeeze:
        return Squeeze()


class Gaussian(Bottleneck):
    r"""Variational bottleneck: a code is a normal distribution [1]_.

    The encoder computes the mean and the logarithm of the variance of each
    component. In training the decoder receives a sample of this distribution,

    .. math:: z_j = \mu_j + \sigma_j \epsilon_j, \quad \epsilon_j \sim N(0, 1),

    and the objective of a row is the negative evidence lower bound (ELBO) in nats,
    divided by the number of its observed features,

    .. math::

        \frac{1}{|O|} \Big( -\sum_{j \in O} \log p(x_j \mid \hat x_j)
        + \beta D_{KL} \Big), \quad
        D_{KL} = \frac12 \sum_j (\mu_j^2 + \sigma_j^2 - 1 - \log \sigma_j^2),

    with the divergence of the code from the standard normal distribution and
    :math:`\beta` = `bottleneck_weight` [2]_. The `loss` determines the distribution of
    an entry around its reconstruction, in the scaled space:

    - ``"binary_cross_entropy"``, and ``"mixed"`` in binary columns: a Bernoulli
      distribution;
    - ``"squared_error"``, and ``"mixed"`` in other columns: a normal distribution with
      the variance `noise_variance`;
    - every other loss l: the density :math:`\exp(-l / s) / Z(s)`, where s is such that
      `noise_variance` is the mean of l: a Laplace distribution for
      ``"absolute_error"``, one with heavy tails for ``"log_error"``. The ``"huber"``
      loss and losses of your own have the scale of a power of the residual, see
      :meth:`skae.losses.Loss.noise_scale`.

    Outside training the code of a row is the mean.

    Parameters
    ----------
    warm_up : float, default=0.0
        Share of the training, in [0, 1], during which the weight of the divergence
        grows linearly from zero to `bottleneck_weight`. `partial_fit` has no last epoch
        and does not warm up.
    score : {"reconstruction", "elbo"}, default="reconstruction"
        Score of a row: the loss of the reconstruction from its mean code, or the
        negative ELBO with :math:`\beta = 1` at this code, times the scale s of the
        noise and without the constant log Z(s). It is the loss plus
        :math:`s D_{KL} / |O|`, where s is 2 `noise_variance` for the squared error and
        1 for the cross-entropy; in a table with both, the cross-entropy is multiplied
        by s, too. Neither draws random numbers.
    noise_variance : float or "auto", default="auto"
        Variance of the noise, > 0, in the scaled space; for losses other than the
        squared error, the mean loss of an entry. ``"auto"`` learns it as a moving
        average over the training steps, which is its maximum-likelihood value [5]_.
        The rows that `trim` leaves out do not count. A larger value has the same effect
        on the code as a larger `bottleneck_weight`.

    See Also
    --------
    Deterministic : The same code without a distribution.

    Notes
    -----
    A fitted estimator has the attribute ``active_units_``, one bool for each
    component: whether its mean has a variance above 0.01 over the training rows
    [3]_. The code of an inactive component does not depend on the row.

    With ``init="auto"`` the network starts as the probabilistic PCA of the training
    rows [4]_, of which all axes with more variance than the noise are active. A linear
    autoencoder stays there, since this maximises the ELBO. If the loss implies a
    sigmoid, the network starts near it. Networks that cannot start as a PCA, and those
    with ``init="random"``, can lose components early in the training, when the
    divergence decreases faster than the loss; ``warm_up=0.2`` or so helps.

    The ELBO itself keeps a component inactive if the component would reduce the loss by
    less than its divergence costs: directions with less variance than
    `bottleneck_weight` times the noise, and those of more components than the data have
    directions. To keep more components, reduce `bottleneck_weight`, or set
    `noise_variance` to a value below the learnt one, ``module_.noise.level``. The
    distribution of the codes then differs more from the standard normal one. The method
    `sample` of a transformer draws from a mixture fitted to the codes.

    References
    ----------
    .. [1] Kingma, D. P., & Welling, M. (2014). Auto-encoding variational Bayes.
       ICLR.
    .. [2] Higgins, I., et al. (2017). beta-VAE: Learning basic visual concepts
       with a constrained variational framework. ICLR.
    .. [3] Burda, Y., Grosse, R., & Salakhutdinov, R. (2016). Importance weighted
       autoencoders. ICLR.
    .. [4] Tipping, M. E., & Bishop, C. M. (1999). Probabilistic principal component
       analysis. Journal of the Royal Statistical Society B, 61(3), 611-622.
    .. [5] Rybkin, O., Daniilidis, K., & Levine, S. (2021). Simple and effective VAE
       training with calibrated decoders. ICML.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skae import AutoencoderTransformer
    >>> X = load_iris().data
    >>> vae = AutoencoderTransformer(2, bottleneck="gaussian", random_state=0).fit(X)
    >>> vae.sample(5, random_state=0).shape
    (5, 4)
    """

    allows_pca: ClassVar[bool] = True
    # From random weights, the divergence decreases faster than the loss: on 10,000
    # images of MNIST, 4 of 16 components remained active, and 16 from this start.
    starts_near_pca: ClassVar[bool] = True
    allows_order: ClassVar[bool] = True
    # The prior is symmetric; a rectified mean would not be.
    suits_code_activation: ClassVar[bool] = False
    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "warm_up": [Interval(Real, 0, 1, closed="both")],
        "score": [StrOptions({"reconstruction", "elbo"})],
        "noise_variance": [
            Interval(Real, 0, None, closed="neither"),
            StrOptions({"auto"}),
        ],
    }

    def __init__(
        self,
        *,
        warm_up: float = 0.0,
        score: str = "reconstruction",
        noise_variance: float | str = "auto",
    ):
        self.noise_variance = noise_variance
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

    def start_at_pca(
        self, axes: np.ndarray, variances: np.ndarray, rest: float, weight: float
    ) -> PCAStart:
        noise: Any = self.noise_variance
        if isinstance(noise, str):
            noise = noise_of_ppca(variances, rest, axes.shape[1], weight)
        # Decoder and posterior of a probabilistic PCA [4]_, in which the weight of the
        # divergence multiplies the noise. An axis with less variance than that is
        # not used; the posterior of its component is the prior.
        limit = max(weight * noise, np.finfo(np.float32).tiny)
        length = np.sqrt(np.maximum(variances - limit, 0))
        variances = np.maximum(variances, limit)
        log_var = np.log(limit / variances).clip(*LOG_VAR_BOUNDS)
        return PCAStart(
            np.vstack([axes * (length / variances)[:, None], np.zeros_like(axes)]),
            np.concatenate([np.zeros(len(axes)), log_var]),
            axes.T * length,
            None,  # the codes have the scale of the prior
            noise,
        )

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

    has_finite_codes: ClassVar[bool] = True

    _parameter_constraints: ClassVar[dict[str, Any]] = {
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


class TopK(Bottleneck):
    r"""Sparse code: only the largest components of each row are kept [1]_ [2]_.

    .. math::

        z_j = \begin{cases}
            \max(h_j, 0) & \text{if } h_j \text{ is among the } m \text{ largest of
            the row} \\
            0 & \text{otherwise}
        \end{cases}

    where h is the output of the encoder and m is `n_active`. Codes are non-negative and
    have at most m nonzero entries. There is no term in the objective, and no weight to
    choose.

    A component that no row of a batch uses still receives a gradient in those rows in
    which its activation decreases the objective, so that it comes back: the gradient
    of the code times ``n_active / n_components``, since all such components change
    together and at most `n_active` of them can become active in a row.

    ``hidden_layer_sizes="auto"`` means no hidden layers, as in [1]_ and [2]_: a row is
    then reconstructed as a sum of few of the decoder's columns. With the hidden layers
    of other bottlenecks, 64 components explained .71 of the variance of held-out digits
    instead of .84.

    Parameters
    ----------
    n_active : int or "auto", default="auto"
        Number m of components that are kept in each row, in [1, n_components].
        ``"auto"`` means ``n_components // 8``, but at least 1.

    See Also
    --------
    skae.penalties.L1 : Sparse codes with a number of zeros that depends on the row.

    References
    ----------
    .. [1] Makhzani, A., & Frey, B. (2013). k-sparse autoencoders. arXiv:1312.5663.
    .. [2] Gao, L., et al. (2024). Scaling and evaluating sparse autoencoders.
       arXiv:2406.04093.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skae import AutoencoderTransformer
    >>> X = load_digits().data
    >>> ae = AutoencoderTransformer(
    ...     32, bottleneck="topk", max_epochs=5, random_state=0
    ... ).fit(X)
    >>> int((ae.transform(X) > 0).sum(axis=1).max())
    4
    """

    has_term: ClassVar[bool] = False
    suits_hidden_layers: ClassVar[bool] = False
    remedy: ClassVar[str] = "increase n_active of TopK"

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_active": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
    }

    def __init__(self, n_active: int | str = "auto"):
        self.n_active = n_active

    def build(
        self, n_components: int, n_channels: int, generator: torch.Generator
    ) -> Squeeze:
        n_active = self.n_active
        if n_active == "auto":
            n_active = max(1, n_components // 8)
        if int(n_active) > n_components:
            raise ValueError(
                f"bottleneck={self!r} keeps more components than there are: n_active "
                f"must be at most n_components={n_components}."
            )
        return _TopKSqueeze(int(n_active))


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
        term = self._warmed_up(divergence(mu, log_var), done)
        return mu + torch.exp(log_var / 2) * eps, term

    def prefix_term(self, H: Tensor, kept: Tensor, done: Tensor) -> Tensor:
        term = (divergences(*_mean_and_log_var(H)) * kept).sum(dim=-1)
        return self._warmed_up(term, done)

    def _warmed_up(self, term: Tensor, done: Tensor) -> Tensor:
        if self.warm_up > 0:
            return term * (done / self.warm_up).clamp(max=1)
        return term

    def score_term(self, H: Tensor) -> Tensor | None:
        return divergence(*_mean_and_log_var(H)) if self.scores_elbo else None


class _TopKSqueeze(Squeeze):
    """Keep the largest components of each row, rectified."""

    def __init__(self, n_active: int):
        super().__init__()
        self.n_active = n_active

    @property
    def is_continuous(self) -> bool:
        return False

    def forward(self, H: Tensor) -> Tensor:
        return torch.where(self._active(H), H, 0)

    def training_code(
        self, H: Tensor, weight: Tensor, done: Tensor
    ) -> tuple[Tensor, None]:
        # The class's docstring explains the factor, without which deep networks with
        # many components diverge on small tables.
        return keep_active(H, self._active(H), self.n_active / H.shape[-1]), None

    @torch.no_grad()
    def _active(self, H: Tensor) -> Tensor:
        """Return which entries are kept, a bool tensor of the shape of `H`."""
        # Of equal entries only as many are kept as are allowed.
        largest = H.topk(self.n_active, dim=-1).indices
        is_largest = torch.zeros_like(H).scatter(-1, largest, 1.0)
        return (is_largest > 0) & (H > 0)


def noise_of_ppca(
    variances: np.ndarray, rest: float, n_features: int, weight: float = 1.0
) -> float:
    r"""Compute the noise variance of a probabilistic PCA by maximum likelihood.

    With a weight :math:`\beta` of the divergence, each of the r axes that are used has
    the residual variance :math:`\beta \sigma^2`, every other direction its whole
    variance. The mean of these residual variances is

    .. math:: \sigma^2 = \frac{\sum_{j > r} \lambda_j}{d - \beta r},

    which for :math:`\beta = 1` is the mean variance of the other directions [1]_. Axes
    are used if :math:`\lambda_j > \beta \sigma^2`.

    Parameters
    ----------
    variances : ndarray of shape (n_components,)
        Variances along the principal axes, in descending order.
    rest : float
        Mean variance of the other directions, 0 if there are none.
    n_features : int
        Number d of features.
    weight : float, default=1.0
        Weight :math:`\beta`, >= 0.

    Returns
    -------
    float
        If the axes explain all the variance, so that the noise has no maximum or
        several, half of what still leaves all of them active; 1 if there is no
        variance.

    References
    ----------
    .. [1] Tipping, M. E., & Bishop, C. M. (1999). Probabilistic principal component
       analysis. Journal of the Royal Statistical Society B, 61(3), 611-622.
    """
    positive = variances[variances > 0]
    if len(positive) == 0:
        return rest if rest > 0 else 1.0
    left = rest * max(n_features - len(variances), 0)
    if left == 0 and n_features >= weight * len(positive):
        # No direction is left out; every variance below has at least this likelihood.
        return float(positive[-1] / (2 * max(weight, 1)))
    for n_used in range(len(positive), 0, -1):
        n_free = n_features - weight * n_used
        if n_free <= 0:
            continue
        noise = (left + positive[n_used:].sum()) / n_free
        if noise > 0 and positive[n_used - 1] > weight * noise:
            return float(noise)
    return float((left + positive.sum()) / n_features)


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


def divergences(mu: Tensor, log_var: Tensor) -> Tensor:
    """Compute the divergence of each component, of the shape of `mu`."""
    return (mu.square() + log_var.exp() - 1 - log_var) / 2


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

    @property
    def is_continuous(self) -> bool:
        return False

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
        n_codebooks = len(self.codebooks)
        weight = weight.to(V).repeat(self.n_groups).reshape(n_codebooks, -1)  # (C, m)
        indices = self._by_codebook(codes)
        weighted = torch.cat([weight[:, :, None], V * weight[:, :, None]], dim=2)
        totals = _sum_by_index(weighted, indices, self.counts.shape[1])
        self.counts.lerp_(totals[:, :, 0], 1 - self.decay)
        self.sums.lerp_(totals[:, :, 1:], 1 - self.decay)
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


def _sum_by_index(values: Tensor, indices: Tensor, n_sums: int) -> Tensor:
    """Return sums of the values with each index, of shape (C, n_sums, D).

    Parameters
    ----------
    values : Tensor of shape (C, m, D)
    indices : Tensor of shape (C, m)
        In [0, n_sums).
    n_sums : int
    """
    if values.device.type == "cpu":
        sums = values.new_zeros(len(values), n_sums, values.shape[2])
        return sums.scatter_add_(1, indices[:, :, None].expand_as(values), values)
    # On a GPU `scatter_add_` adds in an order that varies from call to call.
    return _sum_by_product(values, indices, n_sums)


def _sum_by_product(values: Tensor, indices: Tensor, n_sums: int) -> Tensor:
    """Return what `_sum_by_index` returns, by a product of matrices."""
    with torch.autocast(values.device.type, enabled=False):
        is_index = indices[:, :, None] == torch.arange(n_sums, device=indices.device)
        return is_index.to(values.dtype).transpose(1, 2) @ values


BOTTLENECKS: dict[str, type[Bottleneck]] = {
    "deterministic": Deterministic,
    "gaussian": Gaussian,
    "quantized": Quantized,
    "topk": TopK,
}
