"""The transformer: a nonlinear PCA."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, check_random_state, check_scalar
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_array, check_is_fitted

from skae import _defaults
from skae._base import BaseAutoencoder, MatrixLike, Parts
from skae._batches import Rows
from skae.bottlenecks import Bottleneck, Deterministic
from skae.corruptions import Corruption
from skae.losses import Loss, SquaredError
from skae.networks import MLP, Conv, Network
from skae.penalties import Penalty

# Steps by which `transform` refines a code where nothing else is said, and the widest
# code for which it does: its first step takes an evaluation for each component.
N_REFINEMENTS = 10
MAX_REFINED = 16


def _bottleneck_has(name: str) -> Callable[[BaseAutoencoder], bool]:
    """Whether the chosen bottleneck has an attribute, which a method needs."""

    def check(autoencoder: BaseAutoencoder) -> bool:
        getattr(autoencoder._resolved_bottleneck(), name)  # an AttributeError tells
        return True

    return check


class AutoencoderTransformer(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseAutoencoder
):
    r"""Nonlinear PCA: a network squeezes rows into a few components and back.

    An encoder maps each row to a code of `n_components` values and a decoder
    maps the code back; both are trained together so that little is lost. With
    the default ``init`` the network starts as the PCA of the training rows and
    learns what PCA cannot say,

    .. math::

        z = P (x - \bar x) + f(x), \qquad \hat x = \bar x + P^\top z + g(z),

    where the rows of P are the principal axes, f and g are networks whose last
    layers start at zero, and all of it is trained. Training leaves the PCA only
    if rows that were held out gain by it, by more than the standard error of
    their mean gain. A code learnt by a narrow network generalises principal
    components to curved surfaces [1]_ [2]_.

    PCA's code of a row is that of the nearest point on its plane. An encoder only
    comes near the nearest point on a curved surface; so `transform` begins at the
    encoder's code and moves it, by a few Levenberg-Marquardt steps, nearer to

    .. math::

        z(x) = \arg\min_z \sum_j (\hat x_j(z) - x_j)^2,

    which is the projection index of principal curves [5]_. Held-out rows are
    judged in the same way, in three steps at most. On 26 tables, with one, two and
    five components, this removes 49 % of PCA's error on new rows on average, while
    the encoder's codes remove 38 %.

    The rest of the family are settings, which combine: ``corruption`` makes the
    autoencoder a denoising one, ``penalty`` a sparse or a contractive one,
    ``bottleneck`` a variational or a vector-quantized one, and ``network`` a
    convolutional one. What is minimised over the rows is

    .. math::

        L(x, \hat x) + \beta \, T + \lambda \, \Omega(z),

    the loss of the reconstruction of x from its corrupted version, the
    bottleneck's term T with its weight :math:`\beta`, and the penalty
    :math:`\Omega` with its weight :math:`\lambda`. Nothing is corrupted or drawn
    once the training is over: the same row always gets the same code.

    Parameters
    ----------
    n_components : int or "auto", default=2
        Width of the code, >= 1; it may exceed the number of features.
        ``"auto"`` means the square root of the number of features, rounded up.
    network : {"mlp", "conv"} or Network object, default="mlp"
        What maps rows to codes and codes to rows: fully connected layers, or
        convolutions over rows of `input_shape`, or an object of
        :mod:`skae.networks`, such as ``MLP(activation="relu")``,
        ``Conv(channels=(32, 64))`` or ``Custom(encoder=..., decoder=...)`` for
        PyTorch modules of your own.
    hidden_layer_sizes : tuple of int or "auto", default="auto"
        Widths of the encoder's hidden layers, each >= 1, mirrored by the
        decoder; ``()`` is a linear autoencoder. ``"auto"`` means 4h, 2h and h,
        where h is 64, or the first power of two from ``4 * n_components`` on
        if that is more; but no layer has more than ``2**21 / n_features`` units unless
        that is less than h. For ``"conv"`` these are layers between the
        convolutions and the code, and ``"auto"`` means none. Beside a network
        object it must be ``"auto"``.
    input_shape : tuple of int or None, default=None
        Shape of one row, for networks that look at neighbours: (length,),
        (height, width) or (channels, height, width), whose product is the
        number of features. None means (n_features,).
    bottleneck : {"deterministic", "gaussian", "quantized"} or Bottleneck object, \
            default="deterministic"
        What happens to a code between encoder and decoder: nothing; or it is
        drawn from a normal distribution, as in a variational autoencoder; or
        replaced by the nearest entry of a codebook. See :mod:`skae.bottlenecks`
        for their settings, such as ``Quantized(n_codes=64)``.
    bottleneck_weight : float, default=1.0
        Weight of the bottleneck's term in the objective, >= 0: beta of the
        variational term, or the commitment of a code to its entry.
    corruption : {"gaussian", "masking", "swap", "salt_and_pepper"}, Corruption \
            object or None, default=None
        Noise on the rows that the encoder sees in training, while the
        reconstruction is held to the clean rows: a denoising autoencoder. See
        :mod:`skae.corruptions`.
    corruption_level : float, default=0.3
        Standard deviation of ``"gaussian"``, >= 0, in the scaled space, or the
        probability, in [0, 1], that another corruption hits an entry. Noise of
        standard deviation s in the units of X has the level s where nothing is
        scaled, and ``s / np.sqrt(X.var(axis=0).mean())`` under one factor for
        all features.
    penalty : {"l1", "kl", "contractive"}, Penalty object or None, default=None
        What is added to the objective for the code: its absolute values, which
        makes it sparse and puts a rectifier on it; the divergence of its mean
        activation from a target; or the squared norm of the encoder's Jacobian.
        See :mod:`skae.penalties`.
    penalty_weight : float, default=1e-3
        Weight of the penalty, >= 0.
    loss : {"squared_error", "absolute_error", "huber", "log_error", \
            "binary_cross_entropy", "mixed"} or Loss object, default="squared_error"
        Reconstruction loss, see :mod:`skae.losses`. The cross-entropy is for data in
        [0, 1] and puts a sigmoid behind the decoder. ``"mixed"`` does so for columns
        of 0 and 1 only, and takes the squared error for the others:
        ``Mixed(binary=["a", "b"])`` names them.
    init : {"auto", "pca", "random"}, default="auto"
        Where training starts: at the PCA of the training rows or at random
        weights. ``"auto"`` means the PCA wherever network, bottleneck and loss
        can express it; ``"pca"`` raises an error where they cannot.
    scale : {"auto", "global", "feature"} or None, default="auto"
        Internal scaling, undone on the way out: one factor for all features,
        which is PCA's view of the data, or one each, or none. ``"auto"`` means
        ``"global"``. Nothing is scaled under an output activation such as the
        sigmoid, which can reach the data only in their own units; under
        ``loss="mixed"`` these are the binary columns.
    max_epochs : int or "auto", default="auto"
        Most passes over the training rows, >= 1. ``"auto"`` means as many as
        make 2500 steps from the PCA, or 4000 from a random start, but 12 at least and
        500 at most.
    batch_size : int or "auto", default="auto"
        Rows in a step, >= 1. ``"auto"`` means a sixteenth of the training rows,
        but 8 at least and 128 at most.
    learning_rate : float or "auto", default="auto"
        Learning rate of AdamW [3]_, > 0; it falls in a line to zero over the
        last 40 % of `max_epochs`. ``"auto"`` means
        ``0.004 * sqrt(batch_size / 128)``.
    weight_decay : float, default=0.01
        Weight decay of AdamW, >= 0.
    early_stopping : bool or "auto", default="auto"
        Whether to hold rows out, to return to the weights of the epoch with
        the lowest loss on them, and to stop when it falls no further.
        ``"auto"`` means whenever there are two distinct rows; up to 500 of them,
        each of five parts is held out once, and the network then learns from all
        rows, for as many epochs as were best on average.
    validation_fraction : float, default=0.1
        Share of the distinct rows held out for early stopping, in (0, 1), where
        they are held out once.
    n_iter_no_change : int, default=10
        Epochs without an improvement after which training returns to the best
        epoch and goes on with a fifth of the learning rate; the third time it
        stops.
    tol : float, default=1e-4
        Least fall of the validation loss that counts as an improvement,
        relative to the lowest so far, >= 0.
    trim : float, default=0.0
        Share of each batch's weight, in [0, 1): the rows with the highest objective,
        which are left out of the gradient, so that what few rows are like is not
        learnt [4]_. Held-out rows are judged without as many of theirs.
    warm_start : bool, default=False
        Whether another `fit` goes on from the last one's network and scale
        instead of beginning anew, and leaves them only for a significant gain
        on held-out rows. With the same rows and parameters nothing is left to
        do, and the model stays as it is; `partial_fit` trains in pieces.
    random_state : int, RandomState instance or None, default=None
        Determines the initial weights, the held-out rows and the order of the
        batches. Pass an int for the same result in every call.
    verbose : int, default=0
        1 shows one progress bar on a terminal and some twenty lines elsewhere;
        more, a line for each epoch.
    device : str or torch.device, default="auto"
        Where to train: ``"auto"`` means CUDA if there is one, else the CPU.
        ``"mps"``, which has no float64, trains but does not predict.
    callbacks : list or None, default=None
        skorch callbacks: objects, classes, or pairs of a name and one of these.
        They are copied at each fit. A learning rate scheduler among them
        replaces the one described above. Callbacks that cannot be pickled are
        left out when a fitted estimator is pickled. Those of scikit-learn are set
        by `set_callbacks`, see Notes.
    compile : "auto" or bool, default="auto"
        How a training step is computed. False: as PyTorch computes it. ``"auto"``:
        the same, but without the bookkeeping; on a CPU a step is recorded and
        replayed, which leads to the same numbers, on CUDA it becomes a graph.
        Modules that come neither with PyTorch nor with skae run as they are.
        True: by ``torch.compile``, which takes many seconds at the first step and,
        on a CPU, a C++ compiler.
    n_threads : int or "auto", default="auto"
        Threads that training may use, >= 1. ``"auto"`` is one where a step takes
        fewer than 2e7 multiplications, since a second would only delay it, else as
        many as PyTorch uses. What was before is restored.
    precision : {"float32", "tf32", "bfloat16"}, default="float32"
        Arithmetic of the products of matrices in training, each faster and less
        exact than the one before on hardware that has it. ``"tf32"`` needs CUDA.
        Weights, losses and predictions stay as they are.
    transform_max_iter : int or "auto", default="auto"
        Steps, >= 0, by which a code is moved from where the encoder puts it to
        where the decoder gives less squared error, in the scaled space and over
        the observed entries; 0 takes the encoder's word. A step costs as much as
        a row's way through the decoder, and the first one `n_components` times as
        much. ``"auto"`` means 10 where the code has 16 components at most and is to
        say which point is nearest: with the squared error, an ``MLP`` or a
        ``Conv`` without a code activation, a deterministic bottleneck, and neither
        corruption nor penalty. Else it means 0. Noise that a denoising encoder
        removes, for one, would come back. It takes effect at `fit`.

    Attributes
    ----------
    mean_ : ndarray of shape (n_features,)
        Weighted mean of the observed entries of all rows given to `fit`.
    n_components_ : int
        Width of the code.
    n_iter_ : int
        Epochs run.
    loss_curve_ : list of float
        Mean objective over the training rows in each epoch: the loss, and
        what bottleneck and penalty add to it.
    validation_loss_curve_ : list of float or None
        Mean objective over the held-out rows after each epoch, under the same
        noise each time; None if there were none.
    active_units_ : ndarray of bool of shape (n_components,)
        With a Gaussian bottleneck only: which components vary by more than
        0.01, see :class:`~skae.bottlenecks.Gaussian`.
    perplexity_ : ndarray of shape (n_codebooks,)
        With a quantized bottleneck only: how many entries of each codebook are
        in use, see :class:`~skae.bottlenecks.Quantized`.
    net_ : skorch.NeuralNet
        The net that was trained, with its `history`, trimmed for prediction.
    module_ : torch.nn.Module
        The PyTorch module, in eval mode, with its `encoder` and `decoder`, which
        work in the scaled space; `module_.encode` and `module_.decode` go from
        and to the units of the data, and between them the codes have the units
        that a user sees (`code_factor` times the encoder's).
    n_features_in_ : int
        Number of features seen during `fit`.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the features seen during `fit`, if all are strings.

    See Also
    --------
    AutoencoderOutlierDetector : Outliers by their reconstruction error.
    sklearn.decomposition.PCA : The linear case.

    Notes
    -----
    Up to 10,000 rows, equal rows are merged, their weights added, and the rows
    brought into an order of their own before anything else; so weighted,
    repeated and shuffled rows give the same model. A missing entry is read as
    the feature's mean and does not count in the loss.

    Training runs in float32. Rows in float64 are encoded and decoded in
    float64, so that a row's code does not depend on the other rows beside it.

    From scikit-learn 1.9 on, `set_callbacks` takes those of :mod:`sklearn.callback`.
    The tasks of a fit are its epochs, or folds that have epochs. Where rows are held
    out five times, a last task learns from all rows. A callback may ask for an
    estimator after each epoch, which has that epoch's weights.

    References
    ----------
    .. [1] Kramer, M. A. (1991). Nonlinear principal component analysis using
       autoassociative neural networks. AIChE Journal, 37(2), 233-243.
    .. [2] Hinton, G. E., & Salakhutdinov, R. R. (2006). Reducing the
       dimensionality of data with neural networks. Science, 313, 504-507.
    .. [3] Loshchilov, I., & Hutter, F. (2019). Decoupled weight decay
       regularization. ICLR.
    .. [4] Shen, Y., & Sanghavi, S. (2019). Learning with bad training data via
       iterative trimmed loss minimization. ICML.
    .. [5] Hastie, T., & Stuetzle, W. (1989). Principal curves. Journal of the
       American Statistical Association, 84(406), 502-516.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.decomposition import PCA
    >>> from skae import AutoencoderTransformer
    >>> X = load_iris().data
    >>> ae = AutoencoderTransformer(n_components=1, random_state=0).fit(X)
    >>> ae.transform(X[:3]).shape
    (3, 1)
    >>> float(PCA(n_components=1).fit(X).explained_variance_ratio_.sum()) < ae.score(X)
    True
    """

    _parameter_constraints: ClassVar[dict] = {
        **BaseAutoencoder._parameter_constraints,
        "transform_max_iter": [
            Interval(Integral, 0, None, closed="left"),
            StrOptions({"auto"}),
        ],
    }

    _TRAINING: ClassVar[_defaults.Training] = _defaults.TRANSFORMER

    def __init__(
        self,
        n_components: int | str = 2,
        *,
        network: str | Network = "mlp",
        hidden_layer_sizes: Sequence[int] | str = "auto",
        input_shape: Sequence[int] | None = None,
        bottleneck: str | Bottleneck = "deterministic",
        bottleneck_weight: float = 1.0,
        corruption: str | Corruption | None = None,
        corruption_level: float = 0.3,
        penalty: str | Penalty | None = None,
        penalty_weight: float = 1e-3,
        loss: str | Loss = "squared_error",
        init: str = "auto",
        scale: str | None = "auto",
        max_epochs: int | str = "auto",
        batch_size: int | str = "auto",
        learning_rate: float | str = "auto",
        weight_decay: float = 0.01,
        early_stopping: bool | str = "auto",
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        trim: float = 0.0,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
        device: str | torch.device = "auto",
        callbacks: list | None = None,
        compile: str | bool = "auto",
        n_threads: int | str = "auto",
        precision: str = "float32",
        transform_max_iter: int | str = "auto",
    ):
        self.n_components = n_components
        self.network = network
        self.hidden_layer_sizes = hidden_layer_sizes
        self.input_shape = input_shape
        self.bottleneck = bottleneck
        self.bottleneck_weight = bottleneck_weight
        self.corruption = corruption
        self.corruption_level = corruption_level
        self.penalty = penalty
        self.penalty_weight = penalty_weight
        self.loss = loss
        self.init = init
        self.scale = scale
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.trim = trim
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.device = device
        self.callbacks = callbacks
        self.compile = compile
        self.n_threads = n_threads
        self.precision = precision
        self.transform_max_iter = transform_max_iter

    def transform(self, X: MatrixLike) -> np.ndarray:
        """Encode rows.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows; NaN marks a missing entry.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            Codes, in the floating type of X.
        """
        X = self._check_X(X)
        return self._evaluate("encode", X)

    def inverse_transform(self, Z: ArrayLike) -> np.ndarray:
        """Decode codes.

        Parameters
        ----------
        Z : array-like of shape (n_samples, n_components)
            Codes, such as `transform` gives.

        Returns
        -------
        X_hat : ndarray of shape (n_samples, n_features)
            Rows in the units of the training data, in the floating type of Z.
        """
        check_is_fitted(self)
        codes: np.ndarray = check_array(
            Z, dtype=[np.float64, np.float32], input_name="Z", estimator=self
        )
        if codes.shape[1] != self.n_components_:
            raise ValueError(
                f"Z has {codes.shape[1]} components, but {type(self).__name__} was "
                f"fitted with n_components={self.n_components_}."
            )
        return self._evaluate("decode", codes)

    @available_if(_bottleneck_has("sample_prior"))
    def sample(
        self,
        n_samples: int = 1,
        random_state: int | np.random.RandomState | None = None,
    ) -> np.ndarray:
        """Make new rows: codes drawn from the prior, decoded.

        Only a variational bottleneck (``bottleneck="gaussian"``) has it.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows, >= 1.
        random_state : int, RandomState instance or None, default=None
            Determines the codes.

        Returns
        -------
        X : ndarray of shape (n_samples, n_features), float64
            In the units of the training data; the decoder adds no noise.
        """
        check_is_fitted(self)
        check_scalar(n_samples, "n_samples", Integral, min_val=1)
        codes = self._resolved_bottleneck().sample_prior(
            n_samples, self.n_components_, check_random_state(random_state)
        )
        return self._evaluate("decode", codes)

    @available_if(_bottleneck_has("n_codes"))
    def quantize(self, X: MatrixLike) -> np.ndarray:
        """Encode rows as integers: positions in the codebooks.

        Only a quantized bottleneck (``bottleneck="quantized"``) has it.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows; NaN marks a missing entry.

        Returns
        -------
        codes : ndarray of shape (n_samples, n_groups)
            Each in [0, n_codes), in the smallest unsigned integer type that
            holds them.
        """
        codes = self._evaluate("quantize", self._check_X(X))
        return codes.astype(np.min_scalar_type(self._n_codes - 1))

    @available_if(_bottleneck_has("n_codes"))
    def dequantize(self, codes: ArrayLike) -> np.ndarray:
        """Decode integers that `quantize` gave.

        Parameters
        ----------
        codes : array-like of int of shape (n_samples, n_groups)
            Each in [0, n_codes).

        Returns
        -------
        X_hat : ndarray of shape (n_samples, n_features), float64
            The rows that `reconstruct` gives.

        Raises
        ------
        ValueError
            If the codes do not fit the codebooks.
        """
        check_is_fitted(self)
        checked: np.ndarray = check_array(
            codes, dtype=None, input_name="codes", estimator=self
        )
        n_groups = self.module_.bottleneck.n_groups
        if checked.shape[1] != n_groups:
            raise ValueError(
                f"codes has {checked.shape[1]} columns, but {type(self).__name__} was "
                f"fitted with {n_groups} groups of components."
            )
        if checked.dtype.kind not in "iu":
            raise ValueError(f"codes must be integers, got dtype {checked.dtype}.")
        if checked.min() < 0 or checked.max() >= self._n_codes:
            raise ValueError(
                f"codes must be in [0, {self._n_codes}), got values between "
                f"{checked.min()} and {checked.max()}."
            )
        return self._evaluate("dequantize", checked.astype(np.float64))

    @property
    def _n_codes(self) -> int:
        return self.module_.bottleneck.codebooks.shape[1]

    def score(
        self, X: MatrixLike, y: Any = None, sample_weight: ArrayLike | None = None
    ) -> float:
        r"""Explained variance of the reconstruction.

        .. math:: 1 - \frac{\sum_{ij} w_i (x_{ij} - \hat x_{ij})^2}
                  {\sum_{ij} w_i (x_{ij} - \bar x_j)^2}

        over the observed entries, with :math:`\bar x` the training mean. A
        linear autoencoder reaches the sum of PCA's `explained_variance_ratio_`
        on its training rows.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows; NaN marks a missing entry.
        y : Ignored
            Present for API consistency by convention.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights.

        Returns
        -------
        score : float
            1 is perfect, 0 is the mean, and a worse model is negative. Rows that
            all equal the mean score 1 if they are reconstructed exactly, else 0.
        """
        X = self._check_X(X)
        residual = total = 0.0
        rows = Rows(X, weight=self._check_weight(sample_weight, X))
        for where, block in rows.blocks():
            weight = rows.weight[where, None]
            X_hat = self._evaluate("forward", block)
            residual += np.nansum(weight * (block - X_hat.astype(np.float64)) ** 2)
            total += np.nansum(weight * (block - self.mean_) ** 2)
        if total == 0:
            return 1.0 if residual == 0 else 0.0
        with np.errstate(over="ignore"):  # -inf, for rows hardly apart from the mean
            return float(1 - residual / total)

    def _check_combination(self, parts: Parts) -> None:
        super()._check_combination(parts)
        is_asked_for = self.transform_max_iter not in ("auto", 0)
        if is_asked_for and not isinstance(parts.bottleneck, Deterministic):
            raise ValueError(
                f"transform_max_iter={self.transform_max_iter} moves codes freely, "
                f"which bottleneck={self.bottleneck!r} does not allow. Use "
                "transform_max_iter='auto' or bottleneck='deterministic'."
            )

    def _max_refinements(self, parts: Parts, n_components: int) -> int:
        if self.transform_max_iter != "auto":
            return int(self.transform_max_iter)
        network = parts.network
        is_to_be_nearest = (
            isinstance(network, MLP | Conv)
            and network.code_activation in ("auto", "identity")
            and isinstance(parts.bottleneck, Deterministic)
            and isinstance(parts.loss, SquaredError)
            and parts.corruption is None
            and parts.penalty is None
        )
        can_afford = n_components <= MAX_REFINED
        return N_REFINEMENTS if is_to_be_nearest and can_afford else 0

    def _auto_n_components(self, parts: Parts, n_features: int) -> int:
        return math.ceil(math.sqrt(n_features))

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
