"""Dimensionality reduction by an autoencoder."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, check_random_state, check_scalar
from sklearn.utils.validation import check_array, check_is_fitted

from skae import _defaults
from skae._arrays import follows_input, in_space_of_fit
from skae._available import available_unless
from skae._base import BaseAutoencoder, MatrixLike, cast
from skae._compat import (
    Interval,
    RealNotInt,
    StrOptions,
    requests_frame,
    validate_arguments,
    wrap_columns,
    wrap_output,
)
from skae._explained import RowSquares, VarianceCurve
from skae._frames import filled, missing_entries
from skae._job import Ensemble, Parts
from skae._numeric import numeric
from skae._prediction import evaluate, evaluate_blocks, mean_squared_effects
from skae._processor import own_settings
from skae._rows import Rows, canonical_rows
from skae._summary import summarize
from skae._tables import (
    category_table,
    check_in_memory,
    check_weight,
    check_X,
    has_observed_value,
)
from skae._whitening import sample_deviation
from skae.bottlenecks import Bottleneck
from skae.corruptions import Corruption
from skae.losses import Loss
from skae.networks import MAX_SIZE, Network
from skae.penalties import Penalty

# Meaning of transform_max_iter="auto": number of refinement steps, and the largest
# number of components for which codes are refined. The first step evaluates the
# decoder once for each component.
N_REFINEMENTS = 10
MAX_REFINED = 16
# The same for ordered components. On the digits, 20 ordered components explain .943 of
# the variance with refined codes and .903 with others.
MAX_REFINED_ORDERED = 64

_SAMPLE_CONSTRAINTS: dict[str, list[Any]] = {
    "prior": [StrOptions({"mixture", "standard"})],
    "noise": ["boolean"],
}


def _lacks_prior(autoencoder: BaseAutoencoder) -> str | None:
    """Return why no rows can be drawn, for `available_unless`."""
    if hasattr(autoencoder._bottleneck, "sample_prior"):
        return None
    return (
        "it exists only with a variational bottleneck, such as bottleneck='gaussian'."
    )


def _lacks_order(transformer: AutoencoderTransformer) -> str | None:
    """Return why the components have no order, for `available_unless`."""
    if transformer._is_fitted():
        is_ordered = transformer._trained.ordered is not None
    else:
        is_ordered = transformer._has_ordered_components
    if is_ordered:
        return None
    return "it exists only after a fit with ordered=True, or n_components in (0, 1)."


def _lacks_codebook(autoencoder: BaseAutoencoder) -> str | None:
    """Return why codes are no integers, for `available_unless`."""
    if hasattr(autoencoder._bottleneck, "n_codes"):
        return None
    return "it exists only with a quantized bottleneck, such as bottleneck='quantized'."


def _lacks_derivatives(autoencoder: BaseAutoencoder) -> str | None:
    """Return why decoded rows have no derivatives, for `available_unless`."""
    if not autoencoder._bottleneck.has_finite_codes:
        return None
    return (
        "it exists only with a bottleneck whose codes vary continuously, such as "
        "bottleneck='deterministic', not entries of a codebook."
    )


class AutoencoderTransformer(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseAutoencoder
):
    r"""Dimensionality reduction by an autoencoder, a nonlinear PCA.

    An encoder maps each row to a code of `n_components` values, and a decoder maps
    the code back to a row. Both networks are trained together to minimize the
    reconstruction loss. With the default ``init``, they start as the PCA of the
    training rows, to which they add nonlinear terms,

    .. math::

        z = P (x - \bar x) + f(x), \qquad \hat x = \bar x + P^\top z + g(z).

    The rows of P are the principal axes, and the last layers of the networks f and g
    start at zero. All weights are trained, those of P included. With early stopping,
    the trained weights replace the PCA only if the loss on held-out rows decreases by
    more than the standard error of its mean decrease. With few components, such a
    code extends PCA from planes to curved surfaces [1]_ [2]_.

    The PCA of a row is the nearest point on a plane. An encoder only approximates the
    nearest point on a curved surface. Therefore `transform` starts at the encoder's
    code and refines it, by a few Levenberg-Marquardt steps, towards

    .. math::

        z(x) = \arg\min_z \sum_j (\hat x_j(z) - x_j)^2,

    which is the projection index of principal curves [5]_. The loss on held-out rows
    is computed with refined codes, too, in at most three steps. On 26 data sets, with
    one, two and five components, refined codes remove 49 % of PCA's error on new rows
    on average, and the encoder's codes 38 %.

    Other kinds of autoencoders are settings, which can be combined: `corruption` gives
    a denoising autoencoder, `penalty` a sparse or contractive one, `bottleneck` a
    variational or vector-quantized one, and `network` a convolutional one. Training
    minimizes the mean over the rows of

    .. math::

        L(x, \hat x) + \beta \, T + \lambda \, \Omega(z),

    where L is the `loss` between a row and its reconstruction from the corrupted row,
    T is the bottleneck's term with the weight :math:`\beta` (`bottleneck_weight`), and
    :math:`\Omega` is the penalty with the weight :math:`\lambda` (`penalty_weight`).
    For a variational autoencoder L is the negative log-likelihood that belongs to the
    loss.
    After training there is neither corruption nor sampling: equal rows always get equal
    codes.

    Parameters
    ----------
    n_components : int, float, "auto" or None, default=2
        Number of components of the code:

        - an int >= 1, which may exceed the number of features;
        - a float in (0, 1): the fewest components that explain at least this share of
          the variance of the held-out rows or, without early stopping, of the training
          rows. The network learns as many ordered components as a PCA of the other rows
          needs for this share, and is then cut. If no number of components explains the
          share, all are kept, with a warning. Implies `ordered`. `fit` takes as long as
          for all of these components. `partial_fit` keeps them, and `fit` with
          `warm_start` keeps those that were chosen;
        - ``"auto"``: the square root of the number of features, rounded up;
        - None: the smaller number of features and of rows with a positive weight, as
          PCA has; up to 10,000 rows, of distinct ones. It suits denoising (see
          `corruption`): the noise prevents that so wide a code copies its input, and a
          narrow code may lose more of a row than the noise spoils.
    network : {"mlp", "conv"} or Network, default="mlp"
        Architecture of encoder and decoder: fully connected layers (``"mlp"``),
        convolutions over rows of shape `input_shape` (``"conv"``), or an object of
        :mod:`skae.networks`, such as ``MLP(activation="relu")``,
        ``Conv(channels=(32, 64))`` or ``Custom(encoder=..., decoder=...)`` for your
        own PyTorch modules.
    hidden_layer_sizes : tuple of int or "auto", default="auto"
        Numbers of units of the encoder's hidden layers, each >= 1; the decoder has the
        same layers in reverse order. ``()`` gives a linear encoder and decoder, which
        ``"auto"`` means for a sparse code (``penalty="l1"`` or ``bottleneck="topk"``).
        Otherwise ``"auto"`` means ``(4 * h, 2 * h, h)``, or ``(2 * h, h)`` for up to
        500 distinct rows, where h is 64 or the first power of two >= ``4 * k``,
        whichever is larger, and k is the smaller of `n_components` and the number of
        features. A network that starts as a PCA and learns a deterministic code,
        without corruption and penalty, as by default, has ``(h, h, h)`` for up to 500
        rows and ``(2 * h, h, h, h)`` for more rows up to ``n_samples * k = 10_000``.
        No layer has more than
        ``max(h, 2**21 // n_features)`` units. Where the encoder would have more weights
        than X has entries, and more than ``2**20``, h is halved as long as it is at
        least k and 64, and then the wider layers as long as they have at least h units.
        With ``network="conv"`` these are layers between the convolutions and the code,
        see :class:`~skae.networks.Conv`. With a network object, the value must be
        ``"auto"``.
    input_shape : tuple of int or None, default=None
        Shape of one row, for networks that use the order of the features, such as
        convolutions: (length,), (height, width) or (channels, height, width), and
        (channels, 1, length) for a signal with several channels. The product of its
        entries must be the number of features. None means (n_features,).
    bottleneck : str or Bottleneck, default="deterministic"
        How the encoder's output becomes the code:

        - ``"deterministic"``: unchanged;
        - ``"gaussian"``: drawn from a normal distribution in training, as in a
          variational autoencoder; the loss is then a negative log-likelihood with
          learnt noise, see :class:`~skae.bottlenecks.Gaussian`;
        - ``"quantized"``: replaced by the nearest entries of codebooks, one for every
          four components, see :class:`~skae.bottlenecks.Quantized`;
        - ``"topk"``: the largest components of each row, one in eight, are kept and
          rectified; all others are zero.

        The objects of :mod:`skae.bottlenecks` have further settings, for example
        ``Quantized(n_codes=64)``.
    bottleneck_weight : float, default=1.0
        Weight of the bottleneck's term in the objective, >= 0: beta of a variational
        autoencoder, or the weight of the commitment loss of a quantized code.
    corruption : str, Corruption or None, default=None
        Noise on the encoder's input in training. The reconstruction is compared with
        the clean rows, as in a denoising autoencoder. Either ``"gaussian"``,
        ``"masking"``, ``"swap"`` or ``"salt_and_pepper"``, or an object of
        :mod:`skae.corruptions`. None means no noise.
    corruption_level : float, default=0.3
        For ``corruption="gaussian"``, the standard deviation of the noise in the scaled
        space, >= 0; for the other corruptions, the mean share of the entries that are
        replaced, in [0, 1]. By default the share varies over the rows, see
        :class:`~skae.corruptions.Masking`.
        Gaussian noise of standard deviation s in the units of X has the level s if
        ``scale=None``, and ``s / np.sqrt(X.var(axis=0).mean())`` if
        ``scale="global"``.
    penalty : {"l1", "kl", "contractive"}, Penalty or None, default=None
        Term on the code that is added to the objective:

        - ``"l1"``: the sum of absolute values, each component times the norm of its
          weights in the decoder's first layer, for a sparse code; the network's
          ``code_activation="auto"`` then means ReLU;
        - ``"kl"``: the Kullback-Leibler divergence of each component's mean
          activation, a value in (0, 1), from a small target; no code is exactly zero;
        - ``"contractive"``: the squared Frobenius norm of the encoder's Jacobian.

        The objects of :mod:`skae.penalties` have further settings. None means no
        penalty.
    penalty_weight : float, default=1e-3
        Weight of the penalty in the objective, >= 0. With ``penalty="l1"`` it grows
        from zero over the first three tenths of the training.
    loss : str or Loss, default="squared_error"
        Reconstruction loss: ``"squared_error"``, ``"absolute_error"``, ``"huber"``,
        ``"log_error"``, ``"binary_cross_entropy"`` or ``"mixed"``, or an object of
        :mod:`skae.losses`. ``"binary_cross_entropy"`` requires data in [0, 1] and
        applies a sigmoid to the decoder's output. ``"mixed"`` does so for the columns
        that hold only 0 and 1, and uses the squared error for the others;
        ``Mixed(binary=["a", "b"])`` names the binary columns. The last two, and
        user-defined losses, need dense blocks of sparse rows, see Notes.
    init : {"auto", "pca", "random"}, default="auto"
        Where training starts: at the PCA of the training rows, or at random weights.
        ``"auto"`` means ``"pca"`` if network, bottleneck, penalty and loss allow it,
        else ``"random"``. ``"pca"`` raises an error if they do not. A variational
        autoencoder starts as a probabilistic PCA, and for ``"auto"`` near it if the
        loss implies a sigmoid.
    scale : {"auto", "global", "feature"} or None, default="auto"
        Internal scaling of the rows, undone in reconstructions. ``"global"`` divides
        all features by the square root of their mean variance, which does not change
        the directions of a PCA; ``"feature"`` divides each feature by its standard
        deviation; None does not scale. ``"auto"`` means ``"global"``, and ``"feature"``
        with categorical features, since columns beside them have different units.
        Features with a bounded output, such as that of a sigmoid, are never scaled,
        because the output can match them only in their own units. With ``loss="mixed"``
        these are the binary columns.
    max_epochs : int or "auto", default="auto"
        Maximum number of passes over the training rows, >= 1. ``"auto"`` means the
        number of epochs that make 1600 steps of a plain dense network from a PCA, which
        is the default, or 700 steps on up to 500 distinct rows; 2500 steps of other
        networks from a PCA, and 4000 steps from random weights; but at most 500 epochs,
        and at least 12 or as many as make 21,000 steps. A network is plain if its
        bottleneck is deterministic, without corruption and penalty.
    batch_size : int or "auto", default="auto"
        Number of rows in each step, >= 1. ``"auto"`` means an eighth of the training
        rows in a plain network from a PCA, but at least 32, and a sixteenth in others,
        but at least 8; at most 128.
    learning_rate : float or "auto", default="auto"
        Initial learning rate of AdamW [4]_, > 0. It decreases linearly to zero, in a
        plain network from a PCA from the first step on, in others over the last 40 %
        of `max_epochs`. ``"auto"`` means ``0.004 * sqrt(batch_size / 128)``; in a plain
        network from a PCA three times as much, and four times on up to 500 distinct
        rows; with convolutions ``0.008 * min(1, batch_size / 128)`` if that is larger.
    weight_decay : float, default=0.01
        Weight decay of AdamW, >= 0.
    early_stopping : bool or "auto", default="auto"
        Whether to hold out rows, to stop training when the loss on them no longer
        decreases, and to return the weights of the epoch with the lowest such loss;
        without it, the weights of the last epoch are returned, or those of the initial
        PCA if the loss on the training rows is not lower. Also with it, an initial PCA
        remains unless the mean decrease of the loss on the held-out rows exceeds its
        standard error, which the decrease on a handful of rows seldom does. ``"auto"``
        means True if there are at least two distinct rows; with up to 500 distinct
        rows, early stopping is then cross-validated: the network is trained on all
        rows, side by side with five others, each of which lacks one of five folds and
        is judged by the rows of this fold. Rows are held out instead in a fit that
        resumes (see `warm_start`), for networks of more than 4,194,304 weights, and for
        those with modules of one's own (``Custom``, or an activation that is none of
        PyTorch's activations of single entries), in which the rows of a
        batch may depend on each other, as in batch normalization. Rows passed to `fit`
        as `X_val` take the place of held-out rows and of folds.
    validation_fraction : float, default=0.1
        Fraction of the distinct rows to hold out for early stopping, in (0, 1). At most
        32,768 of them are used. There are none where early stopping is cross-validated,
        or where `X_val` is passed to `fit`.
    n_iter_no_change : int or np.inf, default=10
        Number of epochs without an improvement, >= 1, after which training returns to
        the best epoch and continues with a fifth of the learning rate. The third time,
        training stops; with a learning rate scheduler in `callbacks`, it stops the
        first time. With ``np.inf``, training never stops before `max_epochs`; the
        weights are those of the best epoch all the same.
    tol : float, default=1e-4
        Minimum decrease of the validation loss, relative to its lowest value so far,
        that counts as an improvement, >= 0.
    trim : float, default=0.0
        Fraction of each batch's weight that is left out of the gradient, in [0, 1): the
        rows with the highest objective, so that the network is not fitted to outliers
        [3]_. It is rounded up to a whole number of rows of equal weight, but one row
        remains. The same fraction of the held-out rows is left out of the validation
        loss. 0 is suitable if the training rows are known to be clean.
    warm_start : bool, default=False
        Whether `fit` resumes training from the network and the scaling of the previous
        fit instead of starting anew. Each such fit trains for up to `max_epochs`
        further epochs, with a new optimizer and learning rate schedule, also if neither
        rows nor parameters have changed. With early stopping, the weights then change
        only if the loss on held-out rows decreases significantly. Parameters of the
        network cannot change. Use `partial_fit` to train on successive pieces of the
        data.
    random_state : int, RandomState instance or None, default=None
        Controls the randomness of training: initial weights, held-out rows, order of
        the batches, and noise. Pass an int for reproducible results across multiple
        function calls.
    verbose : int, default=0
        Verbosity level. 0 is silent; 1 shows a progress bar in a terminal and about
        twenty lines elsewhere; larger values print a line for each epoch. Independent
        of it, the logger ``"skae"`` has a record of each training at the level INFO,
        and of each epoch at the level DEBUG.
    device : str or torch.device, default="auto"
        Device for training. ``"auto"`` means CUDA if it is available, else the CPU.
        ``"mps"`` has no float64 and is used for training only; predictions then run
        on the CPU, as do those of every model that is loaded from a file.
    callbacks : list or None, default=None
        List of skorch callbacks: objects, classes, or pairs of a name and one of these.
        Each training works on copies of them, which share what is not plain data, such
        as a writer or a trial; those of the last training are in `net_.callbacks_`,
        which is not pickled. Callbacks that cannot work with an autoencoder are refused
        before training. A learning rate scheduler among them replaces the schedule
        described under `learning_rate`. An exception of a callback, such as that of a
        pruned trial, ends the fit and leaves the estimator as it was. Callbacks that
        cannot be pickled are dropped when a fitted estimator is pickled. The callbacks
        of scikit-learn are set by `set_callbacks`, see Notes.
    compile : bool or "auto", default="auto"
        How to compute a training step:

        - False: as ordinary PyTorch code;
        - ``"auto"``: with less overhead and, up to rounding, the same numbers. On a
          CPU the step is recorded once and replayed, and the library that is fastest
          on this processor multiplies matrices. It is chosen by the processor and the
          shapes alone, so that a fit can be repeated to the bit on a machine; the
          environment variable ``SKAE_PRODUCTS`` chooses one for all products:
          ``"torch"``, ``"numpy"`` or ``"onednn"``. On CUDA the step becomes a CUDA
          graph. If the record differs from the same step without recording, a warning
          is issued and training continues as with False. Trainings of fewer than 60
          steps, and modules that belong neither to PyTorch nor to skae, also run as
          with False;
        - True: with ``torch.compile``, which takes many seconds at the first step
          and, on a CPU, needs a C++ compiler.
    n_threads : int or "auto", default="auto"
        Maximum number of threads in training, >= 1. ``"auto"`` means one if a step
        takes fewer than 2e7 multiplications, because further threads would slow it
        down, else the number of threads that PyTorch uses, at most the number of
        processors that the process may use. Predictions follow the same rule. A forked
        child process always uses one thread. The previous number is restored
        afterwards.
    precision : {"float32", "tf32", "bfloat16"}, default="float32"
        Precision of the matrix products in training. Each is faster and less exact
        than the one before, on hardware that supports it. ``"tf32"`` requires CUDA. The
        precision of weights, losses and predictions does not change. PyTorch's global
        settings of the precision have no effect.
    transform_max_iter : int or "auto", default="auto"
        Maximum number of steps, >= 0, by which `transform` refines the encoder's code
        to reduce the squared error of its reconstruction, in the scaled space. Missing
        entries count with their expectation, see Notes. 0 returns the encoder's output
        unchanged. A step costs as
        much as decoding the row and, with more than 5 components in every third step
        only, `n_components` times as much in addition. A row takes no more steps when
        the next one promises to reduce its error by less than 0.2 %, or 0.03 % with
        more than 5 components.
        ``"auto"`` means 10 if the code has at most 16 components (64 with
        ``ordered=True``) and stands for the nearest point: with the squared error, an
        ``MLP`` or a ``Conv`` without an activation on the code, a deterministic
        bottleneck, and neither corruption nor penalty. Otherwise it means 0; with a
        denoising autoencoder, for example, refinement would bring back the noise that
        the encoder removes. It takes effect at `fit`.
    whiten : bool, default=False
        Whether `transform` gives each component the mean 0 and the variance 1 over the
        training rows, as ``PCA(whiten=True)`` does; `inverse_transform` undoes it. The
        sum of squares is divided by ``n_samples - 1``, where rows count by their
        weights, but by half of `n_samples` at least. A constant component becomes 0.
        The components of a nonlinear code may be correlated, and remain so: each is
        scaled alone, so that it keeps its meaning. The zeros of a sparse code do not
        remain zero. Reconstructions, `sample`, `quantize` and `score` do not depend on
        it. It takes effect at `fit`, which encodes the training rows once more; with
        `warm_start`, they are the rows of the last call. In `partial_fit`, they are
        those of all calls, each encoded at the end of its call, and the rows before the
        last call count as at most 1,000 rows.
    ordered : bool, default=False
        Whether the components are in order of importance, as those of a PCA are: the
        first k of K components alone are a code of k components. `inverse_transform`
        then takes the first columns of a code, `truncate` returns a fitted estimator of
        the first components, and `explained_variance_curve` the explained variance of
        each number of them. True if `n_components` is a float. See Notes.
    checkpoint : str, path-like or None, default=None
        Folder in which `fit` stores the state of the training after each epoch, one
        file per fit. It is created if it does not exist. The same fit, if its process
        was killed, goes on after the last epoch that was stored, and ends with the same
        weights: with one thread on the same machine to the bit, in several processes
        (``torchrun``) up to rounding. The file of a complete fit remains, and the same
        fit is repeated from it without training. The folder may be deleted at any time
        that no fit uses it.

        Fits are the same if they have the same rows, weights, `X_val`, parameters,
        kind of device, and versions of skae, PyTorch and NumPy; `verbose` and a
        number of jobs are not compared. Others have files of their own, so that all
        fits of a search may use one folder. Functions are compared by their name,
        their code and the variables that they read, classes by their name, methods and
        variables, those of installed packages by their name alone, and tables in
        partitions by a sample and the statistics of all rows.
        With ``random_state=None``, the first fit stores its seed in the folder, and the
        same fit repeats its model.

        A file that is damaged, or belongs to another fit, raises ValueError and is not
        changed; an error of the file system raises OSError. The `callbacks` of skorch
        have a state of their own, which is not stored, so that they raise ValueError.
        scikit-learn's callbacks are notified of the remaining epochs. `partial_fit`
        stores nothing. Writing the state after an epoch takes 3 to 5 milliseconds in a
        default fit of 1,000 rows.
    categorical_features : "from_dtype" or array-like or None, default=None
        Which features are categorical, as in
        :class:`~sklearn.ensemble.HistGradientBoostingClassifier`:

        - None: none, all are numbers;
        - ``"from_dtype"``: the columns of a data frame of pandas, polars or Arrow with
          categories, strings or truth values, and columns of objects among which are
          strings or truth values; none in an array;
        - names of columns, their positions, or one bool for each.

        A categorical feature is one-hot encoded, and its columns are not scaled. Its
        loss is the cross-entropy of the probabilities that a softmax predicts; `loss`
        is that of the other features. Means are over features, not over columns. `fit`,
        or the first `partial_fit`, determines the categories, which are strings, truth
        values or numbers, at most 4,096 of a feature.

        Entries such as None and NaN are missing values. A category that no training row
        has is read as a missing value, but has the loss of a category of probability
        ``1 / (1 + n)``, where n is the number of training rows: it is a sign of an
        outlier. Rows that are returned have categories, in an array of objects unless
        all are numbers that the type of the rows has. The entry of `mean_` is NaN.

        Dates, sparse rows and tables in partitions raise a TypeError; networks that
        depend on the order of the features or set an `output_activation`, a ValueError.

    Attributes
    ----------
    mean_ : ndarray of shape (n_features,)
        Weighted mean of the observed entries of each feature, over all rows passed to
        the call of `fit` or `partial_fit` that built the network.
    n_components_ : int
        Number of components of the code.
    explained_variance_ratio_ : ndarray of shape (`n_components_`,)
        Share of the variance that each component explains in addition to those before
        it: the steps of the running maximum of `explained_variance_curve`, >= 0, for
        the held-out rows or, without early stopping, the training rows. Where early
        stopping is cross-validated, each row is reconstructed by the network that was
        trained without it, and where the PCA is kept, by a PCA of the other rows. PCA's
        own ratios, which are those of its training rows, are higher. Computed from at
        most 1,000 and at most ``8192 // n_components`` rows of each fold. Only with
        ordered components, after `fit`.
    explained_variance_ : ndarray of shape (`n_components_`,)
        `explained_variance_ratio_` times the sum of the variances of all features.
        Only with ordered components, after `fit`.
    noise_variance_ : float
        Variance that is not explained, divided by the number of dimensions that the
        code leaves out, ``min(n_features, n_samples) - n_components_``, as in PCA; 0 if
        there are none. Rows count by their weights, if these sum to more than the
        number of distinct rows. Only with ordered components, after `fit`.
    n_iter_ : int
        Number of epochs of the returned network's training, those of earlier fits that
        were resumed included.
    loss_curve_ : list of float
        Mean objective over the training rows in each epoch: the loss plus the weighted
        terms of bottleneck and penalty. Calls that resume training append to it.
    validation_loss_curve_ : list of float or None
        Mean objective over the held-out rows, or over the rows of `X_val`, after each
        epoch, computed with the same noise each time. Where early stopping is
        cross-validated, each row is evaluated by the network that was trained without
        it. As long as `loss_curve_`: an epoch of a training without held-out rows, such
        as a `partial_fit`, has NaN. None if rows were never held out.
    active_units_ : bool ndarray of shape (n_components,)
        Whether each component varies by more than 0.01 over the training rows (of the
        last call), see :class:`~skae.bottlenecks.Gaussian`. Only with a Gaussian
        bottleneck.
    perplexity_ : ndarray of shape (n_codebooks,)
        Effective number of used entries in each codebook, see
        :class:`~skae.bottlenecks.Quantized`. Only with a quantized bottleneck.
    net_ : skorch.NeuralNet
        Trained skorch net, without what only training needs. Its `history` holds the
        losses of each epoch, those of earlier fits that were resumed included.
        `net_.best_epoch_` is the epoch in this history whose weights it has; 0 means
        the initial weights.
    module_ : torch.nn.Module
        Trained PyTorch module, in eval mode. Its submodules `encoder` and `decoder`
        work in the scaled space. Its methods `encode` and `decode` take and return
        rows in the units of the data, and codes as `transform` returns them
        without `whiten` (`code_factor` times the encoder's output).
    n_features_in_ : int
        Number of features seen during `fit`.
    is_categorical_ : ndarray of bool of shape (n_features,) or None
        Which features are categorical; None if there are none.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen during `fit`. Defined only when `X` has feature names
        that are all strings.

    See Also
    --------
    AutoencoderOutlierDetector : Outlier detection by the reconstruction error.
    sklearn.decomposition.PCA : Linear dimensionality reduction.

    Notes
    -----
    With up to 10,000 rows, `fit` first merges equal rows, adds their weights, and sorts
    the rows by their content. Weighted, repeated and permuted rows therefore give the
    same model.

    The loss ignores missing entries. The network reads a missing entry as its
    expectation given the observed entries of the row, for a normal distribution of the
    training rows with mean m and covariance S,

    .. math:: \tilde x_u = m_u + S_{uo} S_{oo}^{-1} (x_o - m_o),

    where o stands for the observed and u for the missing features. So the observed
    entries determine a code only as far as they tell about the others, and are not
    fitted exactly by a code that has as many components. EM estimates m and S [7]_,
    from at most 10,000 rows, and S is shrunk towards its diagonal [8]_; of more than
    128 features, S has 64 factors and noise of each feature. Above 1,024 features, fits
    without missing entries have no such distribution, and the network reads the mean.
    Rows without an observed entry are not used in training, and their code is that of
    the mean.

    The scores of a row with missing entries are means over 16 completions with the
    conditional covariance of these entries, as in multiple imputation [9]_. `score` and
    `score_samples` then estimate what they would be, at the observed entries, if the
    row were complete. On wine with 30 % missing and 8 components, `score` of new rows
    is .88; with complete rows, it is .87 at the same entries.

    To impute, train to predict entries that are hidden from the encoder:
    ``AutoencoderTransformer(None, scale="feature", corruption="masking",
    n_iter_no_change=30)``. If entries of the training rows are missing, the encoder
    receives hidden entries as it does missing ones, completed from the others. With as
    many components as features, training starts at the expectation, and replaces it
    only if held-out rows are predicted better.

    The network reads a value outside the range of the loss as the nearest value of the
    range, and a value beyond 1e16 in the internally scaled space as 1e16. `fit` refuses
    such values; `score_samples` and `score` count them as errors.

    A plain network from a PCA, see `max_epochs`, is trained with a decay of the second
    moment of 0.95 instead of 0.999. With early stopping, an epoch is judged by, and
    the network receives, an exponential moving average of the weights with a time
    constant of 40 steps, and epochs of the first 200 steps do not count for
    `n_iter_no_change`.

    Where X has at least twice as many columns as distinct rows, these are 2000 at most,
    and no entry is missing, the network is trained on the coordinates of the rows in
    the space that they span, and its first and last layers are then multiplied by the
    axes of this space. That takes as long as for a table of as many columns as rows.
    It needs an ``MLP``, a start as a PCA, the squared error, a deterministic
    bottleneck, no corruption, penalty, skorch callback or `X_val`, and a common factor
    of all features (`scale`). The encoder then ignores what is outside of this space.

    Training runs in float32. Rows in float64 are encoded and decoded in float64, so
    that the code of a row does not depend on the other rows in the same call. Rows in
    float32 are also scored in float64, and encoded in float64 where codes are refined
    or quantized, so that the results differ from those of float64 by rounding only.

    On a CPU, the rows of a sparse matrix with at least 2,048 features, of which at most
    5 % are stored, remain sparse if the network begins and ends in linear layers, and
    in training, if a batch has at least 131,072 entries, stored or not. The time then
    grows with the number of stored entries and of weights. With
    ``loss="squared_error"`` no reconstruction is computed for training, `transform`,
    `score` and `score_samples`; with ``"absolute_error"``, ``"huber"`` and
    ``"log_error"``, those of some features at a time. Other losses, a corruption,
    ``penalty="contractive"``, ``bottleneck="gaussian"``, convolutions,
    ``compile=True``, ``precision="bfloat16"``, callbacks that receive batches, and
    `reconstruct` need dense rows, one block at a time, as do
    rows with missing entries. Results for sparse and dense rows agree within
    rounding.

    With ``ordered=True`` the network learns codes of 1, 2, ..., K components at once,
    by nested dropout [6]_. For a row with the code :math:`z_1, \dots, z_K`, training
    minimizes the mean of

    .. math:: L(x, g_k(z_1, \dots, z_k))

    over k = 1, k = 2, k = K, and one number k drawn at random from each of two ranges
    between. The first layer of the decoder g has biases that depend on k. The term of a
    variational autoencoder is that of the first k components. For each k, the trained
    network replaces the PCA of k components only if it is better on held-out rows, as
    without order. ``truncate(k).transform`` refines codes for k components; the first k
    columns of `transform`, which are refined for K components, reconstruct rows less
    well. If the PCA is kept for k but not for K components, or the other way round,
    the codes come from different networks. Therefore decode the codes of
    ``truncate(k)`` by its own `inverse_transform`. Ordered components need a
    deterministic or a Gaussian bottleneck, a dense code, and no penalty for sparse
    codes.

    Some methods exist only with certain bottlenecks: `sample` with a Gaussian one,
    `quantize` and `dequantize` with a quantized one, and `component_contributions`
    with all others. In a fitted estimator this depends
    on the bottleneck of the fit, before that on the parameter `bottleneck`.

    With scikit-learn >= 1.9, `set_callbacks` accepts the callbacks of
    :mod:`sklearn.callback`. The subtasks of a fit are its epochs. A callback may
    request a fitted estimator after each epoch; it has the weights of that epoch.

    References
    ----------
    .. [1] Kramer, M. A. (1991). Nonlinear principal component analysis using
       autoassociative neural networks. AIChE Journal, 37(2), 233-243.
    .. [2] Hinton, G. E., & Salakhutdinov, R. R. (2006). Reducing the
       dimensionality of data with neural networks. Science, 313, 504-507.
    .. [3] Shen, Y., & Sanghavi, S. (2019). Learning with bad training data via
       iterative trimmed loss minimization. ICML.
    .. [4] Loshchilov, I., & Hutter, F. (2019). Decoupled weight decay
       regularization. ICLR.
    .. [5] Hastie, T., & Stuetzle, W. (1989). Principal curves. Journal of the
       American Statistical Association, 84(406), 502-516.
    .. [6] Rippel, O., Gelbart, M. A., & Adams, R. P. (2014). Learning ordered
       representations with nested dropout. ICML, 1746-1754.
    .. [7] Dempster, A. P., Laird, N. M., & Rubin, D. B. (1977). Maximum likelihood
       from incomplete data via the EM algorithm. Journal of the Royal Statistical
       Society B, 39(1), 1-38.
    .. [8] Ledoit, O., & Wolf, M. (2004). A well-conditioned estimator for
       large-dimensional covariance matrices. Journal of Multivariate Analysis, 88(2),
       365-411.
    .. [9] Rubin, D. B. (1987). Multiple imputation for nonresponse in surveys. Wiley.

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

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseAutoencoder._parameter_constraints,
        "transform_max_iter": [
            Interval(Integral, 0, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "whiten": ["boolean"],
        "ordered": ["boolean"],
        "n_components": [
            Interval(Integral, 1, MAX_SIZE, closed="both"),
            Interval(RealNotInt, 0, 1, closed="neither"),
            StrOptions({"auto"}),
            None,
        ],
    }

    _STRUCTURE: ClassVar[tuple[str, ...]] = (*BaseAutoencoder._STRUCTURE, "ordered")

    def __init__(
        self,
        n_components: int | float | str | None = 2,
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
        n_iter_no_change: float = 10,
        tol: float = 1e-4,
        trim: float = 0.0,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
        device: str | torch.device = "auto",
        callbacks: list[Any] | None = None,
        compile: str | bool = "auto",
        n_threads: int | str = "auto",
        precision: str = "float32",
        transform_max_iter: int | str = "auto",
        whiten: bool = False,
        ordered: bool = False,
        checkpoint: str | os.PathLike[str] | None = None,
        categorical_features: str | ArrayLike | None = None,
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
        self.whiten = whiten
        self.ordered = ordered
        self.checkpoint = checkpoint
        self.categorical_features = categorical_features

    def fit_transform(
        self, X: MatrixLike, y: Any = None, **fit_params: Any
    ) -> np.ndarray:
        """Fit to X, and encode its rows.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Training rows, in memory. NaN marks a missing entry.
        y : Ignored
            Not used, present for API consistency by convention.
        **fit_params : dict
            Further arguments of `fit`.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            Codes, as of `transform`.

        Raises
        ------
        TypeError
            If X is a table in partitions, which `fit` takes. Then call
            ``skae.distributed.map_rows`` for the codes.
        """
        check_in_memory(self, X)
        return super().fit_transform(X, y, **fit_params)

    @own_settings()
    @follows_input
    def transform(self, X: MatrixLike) -> np.ndarray:
        """Encode rows.

        The encoder's codes are refined by up to `transform_max_iter` steps, and
        whitened if the estimator was fitted with ``whiten=True``.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows. NaN marks a missing entry.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            Codes, in the floating-point type of X. A data frame if `set_output`
            requests one.
        """
        check_is_fitted(self)
        X = check_X(self, X)
        whitening = self._whitening
        if whitening is None:
            return self._evaluate_in_type("encode", X)
        # Division by a small deviation would magnify the rounding of float32.
        module = self._trained.net.module_in(np.dtype(np.float64))
        return cast(whitening.apply(evaluate(module, "encode", Rows(X))), X.dtype)

    @own_settings()
    @follows_input
    def inverse_transform(self, Z: ArrayLike) -> np.ndarray:
        """Decode codes.

        Parameters
        ----------
        Z : array-like of shape (n_samples, n_components)
            Codes, such as those returned by `transform`. After a fit with
            ``ordered=True`` it may have fewer columns, the first of such codes; those
            of ``truncate(k)`` are decoded by ``truncate(k)``.

        Returns
        -------
        X_hat : ndarray of shape (n_samples, n_features)
            Rows in the units of the training data, in the floating-point type of Z.

        Raises
        ------
        ValueError
            If Z does not have `n_components_` columns; if the components are ordered,
            if it has more.
        """
        check_is_fitted(self)
        with numeric(Z, "Z"):
            codes: np.ndarray = check_array(
                Z, dtype=[np.float64, np.float32], input_name="Z", estimator=self
            )
        n_given, n_components = codes.shape[1], self.n_components_
        is_ordered = self._trained.ordered is not None
        if n_given > n_components or (n_given < n_components and not is_ordered):
            raise ValueError(
                f"Z has {n_given} components, but {type(self).__name__} was "
                f"fitted with n_components={n_components}"
                f"{' ordered components' if is_ordered else ''}."
            )
        whitening = self._whitening
        if whitening is None:
            return self._in_features(self._evaluate_in_type("decode", codes))
        X_hat = cast(self._evaluate("decode", whitening.undo(codes)), codes.dtype)
        return self._in_features(X_hat)

    @own_settings()
    @follows_input
    def impute(self, X: MatrixLike) -> MatrixLike:
        """Fill in missing entries by those of `reconstruct`.

        Observed entries remain as they are. The setting for this purpose is
        ``AutoencoderTransformer(None, scale="feature", corruption="masking",
        n_iter_no_change=30)``, see Notes of the class.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows. NaN marks a missing entry, as do None and NA in data frames.

        Returns
        -------
        X_filled : ndarray, data frame or CSR matrix of shape (n_samples, n_features)
            A pandas or polars frame for such a frame, with its columns and index: in
            columns with a missing entry, integers and booleans become float64 unless
            they are categorical, and all else is unchanged. A CSR matrix for a sparse
            matrix. Otherwise an array in the floating-point type of X, of objects if
            some are not numbers that this type has, or a data frame if `set_output`
            requests one.
            A row without an observed entry becomes the reconstruction of the mean.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn.datasets import load_iris
        >>> from skae import AutoencoderTransformer
        >>> X = load_iris().data
        >>> X[::5, 2] = np.nan
        >>> ae = AutoencoderTransformer(
        ...     None, scale="feature", corruption="masking", random_state=0
        ... )
        >>> bool(np.isnan(ae.fit(X).impute(X)).any())
        False
        """
        check_is_fitted(self)
        checked = check_X(self, X)
        given, categories = checked, self._trained.categories
        if categories is not None:
            given = category_table(self, X)
            # The columns of a category are missing together.
            where = missing_entries(checked[:, categories.layout.first])
        else:
            where = missing_entries(checked)
        # Each missing entry belongs to one of the incomplete rows.
        incomplete, row = np.unique(where[0], return_inverse=True)
        values = np.empty(len(row), dtype=given.dtype)
        if len(incomplete):
            module = self._trained.net.module_for("forward", checked.dtype)
            rows = Rows(checked, incomplete)
            for block, X_hat in evaluate_blocks(module, "forward", rows):
                part = slice(*np.searchsorted(row, [block.start, block.stop]))
                found = cast(X_hat, checked.dtype)
                if categories is not None:
                    found = categories.decoded_table(found)
                values[part] = found[row[part] - block.start, where[1][part]]
        if categories is None:
            is_categorical = np.zeros(self.n_features_in_, dtype=bool)
        else:
            is_categorical = categories.is_categorical
        result = filled(X, given, where, values, is_categorical)
        if not isinstance(result, np.ndarray):
            return result
        if categories is None:
            return wrap_output(self, result, X)
        if not requests_frame(self):
            return categories.as_numbers(result, checked.dtype)
        columns = [
            column.astype(checked.dtype) if levels is None else column
            for column, levels in zip(result.T, categories.levels, strict=True)
        ]
        return wrap_columns(self, columns, categories, X)

    @available_unless(_lacks_order)
    @own_settings()
    def truncate(self, k: int) -> AutoencoderTransformer:
        """Return a fitted estimator of the first k components.

        Its codes are refined for k components, so that they reconstruct rows better
        than the first k columns of this estimator's codes. Where held-out rows were
        reconstructed best by the PCA of k components, it is this PCA. Its codes must be
        decoded by its own `inverse_transform`: this estimator may use the PCA for all
        components and the trained network for k, or the other way round.

        This method exists only with ``ordered=True``.

        Parameters
        ----------
        k : int
            Number of components, in [1, `n_components_`].

        Returns
        -------
        truncated : AutoencoderTransformer
            A copy with ``n_components=k``, which shares nothing with this estimator.

        Examples
        --------
        >>> from sklearn.datasets import load_wine
        >>> from sklearn.preprocessing import scale
        >>> from skae import AutoencoderTransformer
        >>> X = scale(load_wine().data)
        >>> ae = AutoencoderTransformer(
        ...     3, ordered=True, max_epochs=5, early_stopping=False, random_state=0
        ... ).fit(X)
        >>> ae.truncate(1).transform(X).shape
        (178, 1)
        """
        check_is_fitted(self)
        check_scalar(k, "k", Integral, min_val=1, max_val=self.n_components_)
        # A copy of the estimator has the attributes of both, such as feature names.
        return copy.deepcopy(self._of_width(int(k)))

    @available_unless(_lacks_order)
    @own_settings()
    @follows_input
    def explained_variance_curve(
        self, X: MatrixLike, sample_weight: ArrayLike | None = None
    ) -> np.ndarray:
        """Return the explained variance of rows for each number of components.

        This method exists only with ``ordered=True``.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows. NaN marks a missing entry.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights of the rows. None means equal weights.

        Returns
        -------
        curve : ndarray of shape (`n_components_`,), float64
            ``truncate(k).score(X)`` at k - 1. The curve need not increase everywhere,
            since every number of components has codes of its own.

        Examples
        --------
        >>> from sklearn.datasets import load_wine
        >>> from sklearn.preprocessing import scale
        >>> from skae import AutoencoderTransformer
        >>> X = scale(load_wine().data)
        >>> ae = AutoencoderTransformer(
        ...     3, ordered=True, max_epochs=5, early_stopping=False, random_state=0
        ... ).fit(X)
        >>> ae.explained_variance_curve(X).shape
        (3,)
        """
        return self._variance_curve(X, sample_weight).explained

    def _variance_curve(
        self, X: MatrixLike, sample_weight: ArrayLike | None = None
    ) -> VarianceCurve:
        """Return the explained variance of rows, and its standard error."""
        check_is_fitted(self)
        rows = self._weighted_rows(X, sample_weight)
        widths = range(1, self.n_components_ + 1)
        nets = (self._of_width(width).net_ for width in widths)
        squares = [RowSquares.of(net, rows) for net in nets]
        return VarianceCurve.of(squares, is_held_out=True)

    @property
    def _held_out_curve(self) -> VarianceCurve:
        """Explained variance of the rows that `fit` held out.

        Raises AttributeError, which names `explained_variance_ratio_`, without it.
        """
        ordered = self._fitted.ordered
        if ordered is None:
            raise AttributeError(
                f"{type(self).__name__} has no attribute 'explained_variance_ratio_': "
                "its components have no order. Use ordered=True."
            )
        if ordered.curve is None:
            raise AttributeError(
                f"{type(self).__name__} has no attribute 'explained_variance_ratio_': "
                "it is computed at the end of fit, and not by partial_fit. Use "
                "explained_variance_curve(X)."
            )
        return ordered.curve

    @property
    def explained_variance_ratio_(self) -> np.ndarray:
        """Share of the variance that each ordered component explains in addition."""
        return self._in_array_space(self._held_out_curve.ratios)

    @property
    def explained_variance_(self) -> np.ndarray:
        """Variance that each ordered component explains in addition."""
        ratios = self._held_out_curve.ratios
        return self._in_array_space(ratios * self._fitted.total_variance)

    @property
    def noise_variance_(self) -> float:
        """Mean variance of the directions that ordered components leave out."""
        unexplained = 1 - self._held_out_curve.ratios.sum()
        trained = self._fitted
        n_left = min(trained.n_features, trained.n_samples) - self.n_components_
        return unexplained * trained.total_variance / n_left if n_left > 0 else 0.0

    def _of_width(self, width: int) -> AutoencoderTransformer:
        """Return an estimator of the first components, which shares the weights."""
        estimator = copy.copy(self)
        # Not by `set_params`, which a subclass may not let set them.
        estimator.n_components, estimator.ordered = width, True
        trained = self._trained.of_width(width)
        parameters = {**trained.parameters, "n_components": width, "ordered": True}
        estimator._adopt(replace(trained, parameters=parameters))
        return estimator

    @available_unless(_lacks_derivatives)
    @own_settings()
    @follows_input
    def component_contributions(
        self, X: MatrixLike, sample_weight: ArrayLike | None = None
    ) -> np.ndarray:
        r"""Return the mean squared effect of each component on each feature.

        .. math:: c_{kj} = s_k^2 \, \frac{1}{\sum_i w_i} \sum_i w_i \left(
                  \frac{\partial \hat x_j}{\partial z_k}(z_i) \right)^2

        Here :math:`z_i` is the code of row i, :math:`\hat x` the decoder's output, and
        :math:`s_k` the standard deviation of component k over the rows of X. The effect
        is a slope times a standard deviation: to first order, the change of a feature
        when the component changes by one standard deviation while the other components
        are fixed. Codes are those of `transform`; the factors of a code, those of
        `whiten` included, cancel out.

        For a network with PCA's weights and its training rows, these are the squared
        loadings, ``pca.components_**2 * pca.explained_variance_[:, None]``: as in PCA,
        the sum of squares in :math:`s_k^2` is divided by ``n - 1``, where n is the sum
        of the weights, but by half of n at least. Their sum over the components is then
        the variance of a feature that the code explains, and their sum over the
        features the variance that a component explains. Nonlinear components may be
        correlated, and their effects may depend on each other. The sums are then no
        shares of the variance, but contributions can still be compared.

        This method does not exist with a quantized bottleneck, whose codes have
        finitely many values.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows. NaN marks a missing entry. Rows without an observed entry do not
            count.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights. A row of weight w counts as w equal rows. None means
            equal weights.

        Returns
        -------
        contributions : ndarray of shape (n_components, n_features), float64
            Non-negative, in squared units of the features. 0 for a component that is
            constant over the rows.

        Raises
        ------
        ValueError
            If no row with a positive weight has an observed entry.

        See Also
        --------
        skae.inspection.ComponentContributionDisplay : Plot of the contributions.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skae import AutoencoderTransformer
        >>> iris = load_iris()
        >>> ae = AutoencoderTransformer(1, random_state=0).fit(iris.data)
        >>> contributions = ae.component_contributions(iris.data)
        >>> contributions.shape
        (1, 4)
        >>> iris.feature_names[contributions[0].argmax()]
        'petal length (cm)'
        """
        check_is_fitted(self)
        X = check_X(self, X)
        rows = canonical_rows(X, check_weight(sample_weight, X))
        if len(rows) == 0:
            raise ValueError(
                "X has no observed value among rows with a positive weight, so that "
                "its component contributions are not defined."
            )
        module = self._trained.net.module_in(np.dtype(np.float64))
        codes = evaluate(module, "encode", rows)
        summary = summarize(Rows(codes, weight=rows.weight))
        deviation = sample_deviation(summary)
        effects = mean_squared_effects(module, codes, rows.weight, deviation)
        categories = self._trained.categories
        return effects if categories is None else categories.layout.summed(effects)

    @available_unless(_lacks_prior)
    @own_settings()
    def sample(
        self,
        n_samples: int = 1,
        random_state: int | np.random.RandomState | None = None,
        *,
        prior: str = "mixture",
        noise: bool = True,
    ) -> Any:
        r"""Generate rows like the training rows.

        Codes are drawn at random and decoded. This method exists only with a
        variational bottleneck, such as ``bottleneck="gaussian"``. With a small
        `bottleneck_weight`, that is nearly a deterministic autoencoder.

        Parameters
        ----------
        n_samples : int, default=1
            Number of rows, >= 1.
        random_state : int, RandomState instance or None, default=None
            Controls all that is drawn at random. Pass an int for reproducible results
            across multiple function calls.
        prior : {"mixture", "standard"}, default="mixture"
            Distribution of the codes:

            - ``"mixture"``: a mixture of up to 32 normal distributions, which `fit` has
              fitted to the codes of up to 2,048 training rows [1]_ [2]_;
            - ``"standard"``: the standard normal distribution, from which the codes of
              the training rows differ.
        noise : bool, default=True
            Whether rows scatter as the training rows do:

            - True: to a decoded number a normal random number with the variance of the
              column's residuals is added. An increasing function then gives the column
              the distribution F that it has over the training rows,

              .. math:: x_j = F_j^{-1}(G_j(\hat x_j(z) + s_j \epsilon_j)), \quad
                        \epsilon_j \sim N(0, 1),

              where :math:`G_j` is the distribution of generated values before this
              step. A column with many equal values, such as integers, so has only
              values of training rows. A category is drawn with the decoded
              probabilities, as is a column of zeros and ones under a cross-entropy;
            - False: rows are the means that the decoder returns, and categories the
              most probable ones. For images, which noise would spoil.

        Returns
        -------
        X : ndarray or data frame of shape (n_samples, n_features)
            Rows in the units of the training data, in float64; an array of objects if
            some categories are not numbers. A data frame if `set_output` requests one,
            with the names of the features and with categories as in the training frame.

        Raises
        ------
        ValueError
            If the model was saved by a version of skae that fitted no mixture, which
            ``prior="mixture"`` and ``noise=True`` need.

        References
        ----------
        .. [1] Tomczak, J., & Welling, M. (2018). VAE with a VampPrior. AISTATS.
        .. [2] Ghosh, P., Sajjadi, M. S. M., Vergari, A., Black, M., & Scholkopf, B.
           (2020). From variational to deterministic autoencoders. ICLR.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skae import AutoencoderTransformer
        >>> vae = AutoencoderTransformer(bottleneck="gaussian", max_epochs=20)
        >>> vae.fit(load_iris().data).sample(3, random_state=0).shape
        (3, 4)
        """
        check_is_fitted(self)
        check_scalar(n_samples, "n_samples", Integral, min_val=1)
        arguments = {"prior": prior, "noise": noise}
        validate_arguments(_SAMPLE_CONSTRAINTS, arguments, "sample")
        rng = check_random_state(random_state)
        generation = self._trained.generation
        if generation is None and (prior == "mixture" or noise):
            raise ValueError(
                "This model was fitted by a version of skae without the mixture and "
                "the noise of sample. Fit it again, or pass prior='standard' and "
                "noise=False."
            )
        if generation is not None and prior == "mixture":
            codes = generation[-1].codes.draw(n_samples, rng)
        else:
            codes = self._bottleneck.sample_prior(n_samples, self.n_components_, rng)
        rows = self._evaluate_in_type("decode", codes)
        if generation is not None and noise:
            categories = self._trained.categories
            layout = None if categories is None else categories.layout
            rows = generation[-1].noise.added(rows, layout, rng)
        if requests_frame(self):
            return self._in_features(rows, rows)
        return in_space_of_fit(self, self._in_features(rows))

    @available_unless(_lacks_codebook)
    @own_settings()
    @follows_input
    def quantize(self, X: MatrixLike) -> np.ndarray:
        """Encode rows as integers, the indices of codebook entries.

        An integer stands for a group of components, by default for four: a code of
        eight components is two integers. ``Quantized(code_dim=1)`` makes them eight.

        This method exists only with a quantized bottleneck, such as
        ``bottleneck="quantized"``.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows. NaN marks a missing entry.

        Returns
        -------
        codes : ndarray of shape (n_samples, n_groups)
            Indices in [0, n_codes), in the smallest unsigned integer type that can
            hold them.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skae import AutoencoderTransformer
        >>> X = load_iris().data
        >>> vq = AutoencoderTransformer(bottleneck="quantized", max_epochs=20).fit(X)
        >>> codes = vq.quantize(X)
        >>> codes.shape, codes.dtype
        ((150, 1), dtype('uint8'))
        >>> vq.dequantize(codes).shape
        (150, 4)
        """
        check_is_fitted(self)
        codes = self._evaluate("quantize", check_X(self, X))
        return codes.astype(np.min_scalar_type(self._n_codes - 1))

    @available_unless(_lacks_codebook)
    @own_settings()
    @follows_input
    def dequantize(self, codes: ArrayLike) -> np.ndarray:
        """Decode integers returned by `quantize`.

        This method exists only with a quantized bottleneck, such as
        ``bottleneck="quantized"``.

        Parameters
        ----------
        codes : array-like of int of shape (n_samples, n_groups)
            Indices of codebook entries, in [0, n_codes).

        Returns
        -------
        X_hat : ndarray of shape (n_samples, n_features), float64
            Rows in the units of the training data, equal to those that `reconstruct`
            returns for the quantized rows.

        Raises
        ------
        ValueError
            If the codes do not have one column for each codebook, are not integers,
            or lie outside [0, n_codes).
        """
        check_is_fitted(self)
        checked: np.ndarray = check_array(
            codes, dtype=None, input_name="codes", estimator=self
        )
        n_groups = self.module_.bottleneck.n_groups
        if checked.shape[1] != n_groups:
            raise ValueError(
                f"codes has {checked.shape[1]} columns, but {type(self).__name__} was "
                f"fitted with n_groups={n_groups} groups of components."
            )
        if checked.dtype.kind not in "iu":
            raise ValueError(f"codes must be integers, got dtype {checked.dtype}.")
        if checked.min() < 0 or checked.max() >= self._n_codes:
            raise ValueError(
                f"codes must be in [0, {self._n_codes}), got values between "
                f"{checked.min()} and {checked.max()}."
            )
        rows = self._evaluate("dequantize", checked.astype(np.float64))
        return self._in_features(rows)

    @property
    def _n_codes(self) -> int:
        """Number of entries of a codebook."""
        return self.module_.bottleneck.codebooks.shape[1]

    @own_settings()
    @follows_input
    def score(
        self, X: MatrixLike, y: Any = None, sample_weight: ArrayLike | None = None
    ) -> float:
        r"""Return the explained variance of the reconstruction.

        .. math:: 1 - \frac{\sum_{ij} w_i (x_{ij} - \hat x_{ij})^2}
                  {\sum_{ij} w_i (x_{ij} - \bar x_j)^2}

        The sums are over the observed entries, and :math:`\bar x` is `mean_`. In rows
        with missing entries, the variance of :math:`\hat x_{ij}` over several
        completions is added to its squared error, see Notes of the class. For a
        linear autoencoder with the PCA's weights and its training rows, this is the
        sum of PCA's `explained_variance_ratio_`.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows. NaN marks a missing entry.
        y : Ignored
            Not used, present for API consistency by convention.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights of the rows. None means equal weights.

        Returns
        -------
        score : float
            At most 1. 1 is a perfect reconstruction, and 0 is as good as
            reconstructing each row as the mean. If all rows equal the mean, 1 if they
            are reconstructed exactly, else 0. A row with a value that no training row
            could have, because it is outside the range of the loss or would overflow,
            never raises the score.

        Raises
        ------
        ValueError
            If no row with a positive weight has an observed entry.
        """
        check_is_fitted(self)
        rows = self._weighted_rows(X, sample_weight)
        return RowSquares.of(self.net_, rows).explained

    def _weighted_rows(self, X: MatrixLike, sample_weight: ArrayLike | None) -> Rows:
        """Validate rows whose explained variance is computed."""
        X = check_X(self, X)
        rows = Rows(X, weight=check_weight(sample_weight, X))
        if not has_observed_value(X, rows.weight):
            raise ValueError(
                "X has no observed value among rows with a positive weight, so that "
                "its explained variance is not defined."
            )
        return rows

    @property
    def _completes_rows(self) -> bool:
        return True

    @property
    def _has_ordered_components(self) -> bool:
        return bool(self.ordered) or self._requested_share is not None

    @property
    def _requested_share(self) -> float | None:
        n_components = self.n_components
        if isinstance(n_components, Real) and 0 < n_components < 1:
            return float(n_components)
        return None

    @property
    def _reason_of_order(self) -> str:
        """The parameter that orders the components, for error messages."""
        if self.ordered:
            return "ordered=True"
        return f"n_components={self.n_components}, which orders the components,"

    def _check_combination(self, parts: Parts) -> None:
        is_ordered = self._has_ordered_components
        for name in ("bottleneck", "penalty"):
            part = getattr(parts, name)
            if is_ordered and part is not None and not part.allows_order:
                raise ValueError(
                    f"{self._reason_of_order} is not possible with {name}="
                    f"{getattr(self, name)!r}. Use ordered=False and an int as "
                    "n_components, or "
                    + (
                        "bottleneck='deterministic' or 'gaussian'."
                        if name == "bottleneck"
                        else "penalty=None or 'contractive'."
                    )
                )
        is_requested = self.transform_max_iter not in ("auto", 0)
        if is_requested and not parts.bottleneck.codes_may_be_refined:
            raise ValueError(
                f"transform_max_iter={self.transform_max_iter} refines codes, which "
                f"bottleneck={self.bottleneck!r} does not allow. Use "
                "transform_max_iter='auto' or bottleneck='deterministic'."
            )

    def _draws_rows(self, parts: Parts) -> bool:
        return hasattr(parts.bottleneck, "sample_prior")

    @property
    def _whitens_codes(self) -> bool:
        return bool(self.whiten)

    def _max_refinements(self, parts: Parts, n_components: int) -> int:
        if self.transform_max_iter != "auto":
            return int(self.transform_max_iter)
        code_is_nearest_point = (
            parts.network.codes_may_be_refined
            and parts.bottleneck.codes_may_be_refined
            and parts.loss.codes_may_be_refined
            and parts.corruption is None
            and parts.penalty is None
        )
        most = MAX_REFINED_ORDERED if self._has_ordered_components else MAX_REFINED
        is_refined = code_is_nearest_point and n_components <= most
        return N_REFINEMENTS if is_refined else 0

    def _training_defaults(
        self,
        parts: Parts,
        ensemble: Ensemble | None,
        n_features: int,
        scale: str | None,
    ) -> _defaults.TrainingDefaults:
        return _defaults.TRANSFORMER

    def _check_validation_rows(self) -> None:
        if not self.early_stopping:
            raise ValueError(
                "X_val is passed to fit, but early_stopping=False makes no use of it. "
                "Use early_stopping='auto' or True, or leave X_val out."
            )

    def _auto_n_components(
        self, parts: Parts, n_features: int, scale: str | None
    ) -> int:
        return math.ceil(math.sqrt(n_features))

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
