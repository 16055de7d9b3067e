"""Outlier detection by the reconstruction error of autoencoders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.sparse import issparse
from sklearn.base import OutlierMixin
from sklearn.utils import gen_batches
from sklearn.utils.validation import check_is_fitted

from skae import _defaults
from skae._arrays import follows_input
from skae._available import available_unless
from skae._base import BaseAutoencoder, MatrixLike
from skae._compat import (
    Interval,
    InvalidParameterError,
    RealNotInt,
    StrOptions,
    check_feature_names_in,
    set_output_container,
    validate_parameters,
    wrap_output,
)
from skae._conformal import conformal_p_values
from skae._explanation import TopFeatures, explanation_frame
from skae._job import Ensemble, Parts, Trained, TrainingScores
from skae._prediction import isolated_rows, score_folds, score_rows
from skae._processor import own_settings
from skae._rows import Rows, Table, empty_rows
from skae._summary import MIN_SHARING, Summary, share_one_unit
from skae._tables import category_table, check_scored_rows, check_X, is_collection
from skae._threshold import threshold
from skae.bottlenecks import Bottleneck
from skae.corruptions import Corruption
from skae.losses import LOSSES, Loss
from skae.networks import Network
from skae.penalties import Penalty

if TYPE_CHECKING:
    import pandas as pd

# Numbers of components with n_components="auto": those of the members in turn, and that
# of all members if trim=0, and of sparse codes. Codes with many components detect
# outliers better if the training rows are clean, and worse if they are not. Images need
# as many in both cases.
WIDTHS = (1, 2, 4, 8)
CLEAN_WIDTH = 16

# Largest number of members with n_estimators="auto" and features in one unit.
N_UNIT_MEMBERS = 4

# Largest number of entries that `explain` makes dense at a time: 32 MB in float64.
MAX_EXPLAINED_ENTRIES = 2**22


def _lacks_plain_score(detector: BaseAutoencoder) -> str | None:
    """Return why there are no contributions, for `available_unless`."""
    if getattr(detector._bottleneck, "has_plain_score", False):
        return None
    return (
        "it exists only if the score is a sum over the features, such as that of "
        "bottleneck='deterministic' or Gaussian(score='reconstruction'), not of "
        "Gaussian(score='elbo')."
    )


def _lacks_p_values(detector: AutoencoderOutlierDetector) -> str | None:
    """Return why there are no scores of rows that were not learnt.

    Before `fit`, this is not known, and the method raises NotFittedError.
    """
    if not detector._is_fitted() or detector._held_out_scores is not None:
        return None
    return (
        "it needs scores of rows that the network did not learn. In the last fit all "
        "rows were learnt, because there were too few distinct rows or members, or "
        "because the networks are not dense. Call recalibrate(X) with rows that were "
        "not used in fit."
    )


class AutoencoderOutlierDetector(OutlierMixin, BaseAutoencoder):
    r"""Outlier detection by autoencoders and the distances to training rows.

    An autoencoder encodes each row as a code with few components and reconstructs the
    row from the code. It learns what most rows have in common, so rows that differ from
    them reconstruct poorly [1]_. Here several small autoencoders are trained together.
    Each receives a random half of the features as input and has to reconstruct all of
    them, so it cannot simply copy a row, however many components its code has [2]_. The
    rows with the highest loss, a fifth of each batch, are left out of the gradient, so
    that the networks do not learn to reproduce outliers [3]_. The reconstruction error
    of a row is

    .. math::

        E(x) = \frac{1}{M |O|} \sum_{m=1}^M \sum_{j \in O}
            \log\left(1 + \frac{|x'_j - \hat x'_{mj}|}{s_{mj}}\right),

    where M is the number of members, O the set of the row's observed entries, x' the
    scaled row, and :math:`s_{mj}` the mean absolute residual of member m and feature j
    over the training rows. Up to a constant, this is the negative log-likelihood of
    residuals with a two-sided Pareto distribution, which has heavy tails. If the
    features share one unit, as pixels do, E is the mean loss instead, see
    `scale` and `error`.

    A network reproduces what most rows have in common, also for a row that is like no
    single training row. The score therefore also measures distances to training rows,

    .. math::

        s(x) = -\max\left(
            \left(\frac{E(x)}{\tilde E} \frac{C(x)}{\tilde C}\right)^{1/5},
            \left(\frac{D(x)}{\tilde D}\right)^{1/2}\right),

    where D is the distance to the nearest training row, C that to the nearest row of
    the core, and :math:`\tilde E`, :math:`\tilde C` and :math:`\tilde D` are the
    medians of E, C and D over the training rows. The core is the 40 % of the training
    rows with the smallest reconstruction errors. Whether training rows are clean cannot
    be seen from them; distances to all of them detect outliers best if they are, and
    distances to the core if they are not. ``n_neighbors=0`` scores by the
    reconstruction error alone, :math:`s(x) = -E(x)`.

    Inliers among images are nearer to each other where there are more of them. If at
    least 40 features have one scale (see `scale`), the score measures distances to
    several training rows in relation to their spacing,

    .. math::

        s(x) = -\max\left(
            \left(\frac{E(x)}{\tilde E}\right)^{1/10}
            \left(\frac{R(x)}{\tilde R}\right)^{2/3},
            \left(\frac{D(x)}{\tilde D}\right)^{1/2}\right), \quad
        R(x)^2 = \frac{\sum_i d(x, x_i)^2 / D(x_i)^3}{\sum_i 1 / D(x_i)},

    where d is the distance of two rows, and the sums include the
    :math:`1.25 \sqrt{n}` training rows that are nearest to x, of the n rows that are
    kept.

    With categorical features (see `categorical_features`), a category of the
    probability p has the part :math:`-\log p` in the sum E, and

    .. math::

        s(x) = -\max\left(
            \left(\frac{E(x)}{\tilde E}\right)^{1/2},
            \left(\frac{D(x)}{\tilde D}\right)^{1/4}\right).

    Parameters
    ----------
    n_components : int or "auto", default="auto"
        Number of components of the code, >= 1. It may exceed the number of features.
        ``"auto"`` means 1, 2, 4 and 8 in turn for the members of a plain ensemble
        (see `n_estimators`), because the best number differs between data sets and
        cannot be chosen without labels; all members of other ensembles get the largest
        of these. With ``trim=0``, which assumes clean training rows, all members get
        16. With one scale for all features (see `scale`), all members and a single
        network get 16, or a quarter of the number of features if that is less; images
        of one kind need more components than most tables. Otherwise a single network
        gets 1, because with more components it would also
        reproduce the outliers among the training rows. A sparse code
        (``penalty="l1"`` or ``bottleneck="topk"``) gets 16, or as many as there are
        features if there are fewer.
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
        Otherwise ``"auto"`` means ``(h,)`` for each of several members, where h is 32
        or the first power of two >= ``4 * k``, whichever is larger, and k is the
        smaller of `n_components` and the number of features. For a single network it
        means ``(4 * h, 2 * h, h)``, or ``(2 * h, h)`` for up to 500 distinct rows,
        and with ``init="pca"`` the widths of :class:`~skae.networks.MLP` for a plain
        network, where h is at least 64 and no layer has more than
        ``max(h, 2**21 // n_features)`` units. Where all encoders together would have
        more weights than X has entries, and more than ``2**20``, h is halved as long as
        it is at least k and its lower bound, and then the wider layers as long as they
        have at least h units.
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
    loss : str or Loss, default="auto"
        Reconstruction loss: ``"auto"``, ``"squared_error"``, ``"absolute_error"``,
        ``"huber"``, ``"log_error"``, ``"binary_cross_entropy"`` or ``"mixed"``, or an
        object of :mod:`skae.losses`. ``"auto"`` means ``"log_error"``, or
        ``"squared_error"`` with more than 500 features and one scale for all (see
        `scale`): most pixels of large images are nearly constant, and ``"log_error"``
        fits their medians. It also means ``"squared_error"`` with categorical features,
        see `categorical_features`.
        ``"binary_cross_entropy"`` requires data in [0, 1] and
        applies a sigmoid to the decoder's output. ``"mixed"`` does so for the columns
        that hold only 0 and 1, and uses the squared error for the others;
        ``Mixed(binary=["a", "b"])`` names the binary columns. The last two, and
        user-defined losses, need dense blocks of sparse rows, see Notes.
    init : {"auto", "pca", "random"}, default="random"
        Where training starts: at the PCA of the training rows, or at random weights.
        ``"auto"`` means ``"pca"`` if network, bottleneck, penalty and loss allow it,
        else ``"random"``. ``"pca"`` raises an error if they do not. A variational
        autoencoder starts as a probabilistic PCA, and for ``"auto"`` near it if the
        loss implies a sigmoid.
    scale : {"auto", "global", "feature"} or None, default="auto"
        Internal scaling of the rows, undone in reconstructions. ``"global"`` divides
        all features by the square root of their mean variance, which does not change
        the directions of a PCA; ``"feature"`` divides each feature by its standard
        deviation; None does not scale. ``"auto"`` means ``"global"`` if the features
        are likely to share one unit, as pixels do, else ``"feature"``, see Notes; with
        categorical features it is always ``"feature"``. The scale also determines
        ``"auto"`` of `loss`, `error`, `n_components`, `n_estimators` and `n_neighbors`.
        ``"feature"`` gives a column of rare events, such as a rare category, as much
        influence as any other: use `categorical_features`, or ``loss="mixed"`` for
        one-hot columns, and ``scale="global"`` for text. Features with a bounded
        output, such as that of a sigmoid, are never scaled, because the output can
        match them only in their own units. With ``loss="mixed"`` these are the binary
        columns.
    max_epochs : int or "auto", default="auto"
        Maximum number of passes over the training rows, >= 1. ``"auto"`` means the
        number of epochs that make 600 steps, but at most 150, or 100 for a plain
        ensemble (see `n_estimators`) with ``trim > 0``. With more than 500 features,
        it means 300 steps for such an ensemble, or 150 with one scale for all features
        (see `scale`). If there are
        more rows than these steps read, for example more than 76,800 in 600 batches of
        128, ``"auto"`` means one pass over a random sample of so many rows; all rows
        count for the scaling, for `mean_`, for rows that are held out and for the
        threshold.
    batch_size : int or "auto", default="auto"
        Number of rows in each step, >= 1. ``"auto"`` means 256, or all training rows if
        there are fewer. For a plain ensemble with ``trim > 0`` and up to 500 features,
        it means 128, or half of the training rows if that is less, but at least 16.
    learning_rate : float or "auto", default="auto"
        Initial learning rate of AdamW [4]_, > 0. It decreases linearly to zero over
        the last 40 % of `max_epochs`. ``"auto"`` means
        ``0.004 * sqrt(batch_size / 128)``, twice as much for a plain ensemble with
        ``trim > 0`` and one scale for more than 500 features, or with convolutions
        ``0.008 * min(1, batch_size / 128)`` if that is larger.
    weight_decay : float, default=0.01
        Weight decay of AdamW, >= 0.
    early_stopping : bool or "auto", default=False
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
    trim : float, default=0.2
        Fraction of each batch's weight that is left out of the gradient, in [0, 1): the
        rows with the highest objective, so that the network is not fitted to outliers
        [3]_. It is rounded up to a whole number of rows of equal weight, but one row
        remains. The same fraction of the held-out rows is left out of the validation
        loss. 0 is suitable if the training rows are known to be clean.
    n_estimators : int or "auto", default="auto"
        Number of members of the ensemble, >= 1: networks that are trained together and
        whose errors are averaged. ``"auto"`` means 16 for a plain ensemble, that is
        fully connected networks with the deterministic bottleneck and without a
        penalty, whose matrix products are computed together; it means 8 with more than
        500 features, 4 with more than 1000 and 2 with more than 8000. For all other
        networks, whose members are computed one after another, it means 1. With one
        scale for all features (see `scale`), it means at most 4. If a `fit`
        with ``warm_start=True`` has more members than the fit before, those before are
        kept as they are, and only the additional ones are trained, in the same scaling
        and with the same numbers of hidden units and components. Fewer members are an
        error. Of at least 20 distinct rows, each of at least two fully connected
        members learns three quarters, see Notes.
    max_features : "auto", int or float, default="auto"
        Number of features that each member receives as input, drawn at random: an int
        from 1 to `n_features`, or a float in (0, 1] for a fraction of them. A member
        receives the mean of each other feature, but has to reconstruct all features.
        ``"auto"`` means half of the features; a single network receives all.
    error : {"auto", "log", "loss"}, default="auto"
        Reconstruction error of a row: ``"log"`` is the mean of logarithms in the
        formula above, ``"loss"`` the mean of the row's `loss`. ``"auto"`` means
        ``"log"`` unless the bottleneck adds a term to the score, as
        ``Gaussian(score="elbo")`` does, or all features have one scale (see `scale`),
        which the formula would undo; then it means ``"loss"``.
    n_neighbors : int or "auto", default="auto"
        Which training row, counted from the nearest, the score measures distances to,
        >= 0. With 0 the score is minus the reconstruction error. ``"auto"`` means 1,
        with the second formula of the score if at least 40 features have one scale (see
        `scale`); any number means the first formula. ``"auto"`` means 0 for networks
        other than fully connected ones, since distances do not see the structure that
        convolutions use, except for images: where `input_shape` has a height and a
        width above 1 and the second formula applies, it means 1. It means 0 if the
        score has no sum over features, as with ``Gaussian(score="elbo")``. If training
        rows have negative errors, as with some losses of one's own, the score is minus
        the reconstruction error, too. If there are fewer other rows, the farthest one
        counts. See Notes on the training rows that are kept.
    contamination : float or "auto", default="auto"
        Fraction of outliers among the training rows, in (0, 0.5], which determines the
        threshold `offset_`. The fraction that is flagged is the nearest one that equal
        scores allow, which may be 0. ``"auto"`` flags the training rows behind a break
        in the distribution of their errors, see Notes; without a break it flags few of
        them, at most 1.5 % and at most eight distinct errors. It flags at least one,
        unless all have the same score.
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
    n_jobs : int or None, default=None
        Number of joblib's workers that train members at the same time. None means 1,
        unless a ``joblib.parallel_config`` sets it, for example with
        ``backend="dask"`` for workers on other machines; -1 means all processors. The
        scores are those of a serial fit, on processors of one kind.

        Members are trained in blocks, each of which is one task: as many members
        together as ``n_estimators="auto"`` means, which is 16 for most tables, and 1
        for networks other than fully connected ones. So `n_jobs` has no effect with
        ``n_estimators="auto"``. With several blocks, ``n_threads="auto"`` means one
        thread, several workers and a `verbose` above 0 print joblib's messages, and
        Ctrl-C keeps the members of the first blocks that are complete, if there are
        any.

        All members are trained together, and `n_jobs` has no effect: on a GPU; on a
        table in partitions; in several processes (``torchrun``); in
        `partial_fit`; with `callbacks`, of skorch or of scikit-learn; with early
        stopping or `X_val`, because the mean over the members decides when all stop;
        and in a first fit with ``init="pca"``, where it decides whether all remain as
        they were.
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
    offset_ : float
        Threshold of the scores: ``decision_function = score_samples - offset_``. After
        `partial_fit` it comes from the scores of the rows of all calls. `recalibrate`
        computes it anew, and any finite number may be assigned to it.
    training_scores_ : ndarray of shape (n_samples,)
        `score_samples` of the rows of the last call of `fit` or `partial_fit`, in the
        order in which they were passed, those of weight zero included. They are
        recorded in training, 8 bytes per row.
    mean_ : ndarray of shape (n_features,)
        Weighted mean of the observed entries of each feature, over all rows passed to
        the call of `fit` or `partial_fit` that built the network.
    n_components_ : int
        Number of components of the code, the largest one where members differ.
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
    active_units_ : bool ndarray of shape (n_components,) or (n_members, n_components)
        Whether each component varies by more than 0.01 over the training rows (of the
        last call), see :class:`~skae.bottlenecks.Gaussian`. Only with a Gaussian
        bottleneck.
    perplexity_ : ndarray of shape (n_codebooks,) or (n_members, n_codebooks)
        Effective number of used entries in each codebook, see
        :class:`~skae.bottlenecks.Quantized`. Only with a quantized bottleneck.
    net_ : skorch.NeuralNet
        Trained skorch net, without what only training needs. Its `history` holds the
        losses of each epoch, those of earlier fits that were resumed included.
        `net_.best_epoch_` is the epoch in this history whose weights it has; 0 means
        the initial weights.
    module_ : torch.nn.Module
        Trained PyTorch module, in eval mode. Its submodules `encoder` and `decoder`
        work in the scaled space and hold all members: with several members, the first
        axis of their tensors is that of the members. Its methods `encode` and `decode`
        take and return rows in the units of the data, and codes that are
        `code_factor` times the encoder's output.
    n_features_in_ : int
        Number of features seen during `fit`.
    is_categorical_ : ndarray of bool of shape (n_features,) or None
        Which features are categorical; None if there are none.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen during `fit`. Defined only when `X` has feature names
        that are all strings.

    See Also
    --------
    AutoencoderTransformer : Dimensionality reduction by an autoencoder.
    sklearn.ensemble.IsolationForest : Outlier detection by random partitions.

    Notes
    -----
    The defaults of `init`, `scale`, `loss`, `trim` and `early_stopping` differ from
    those of :class:`AutoencoderTransformer`. Training starts at random weights, because
    the principal axes would follow the outliers. In tables, each feature is scaled, so
    that all have the same influence on the score.

    With ``scale="auto"``, features count as values in one unit if `input_shape` is set,
    if the network is a convolution, or if the training rows look like pixels: among at
    least 40 features with more than two values, a tenth or more, but not all, have both
    the smallest and the largest value of them all. The same holds for at least 40
    features with the same two values, and no others except constants. Features that
    were standardised, or each scaled to the same range, do not count as such. The unit
    itself makes no difference. The division of each pixel by its standard deviation
    would give most weight to those that vary least. The smooth spectra of a sensor, or
    counts, whose ranges differ, are not recognised: use ``scale="global"``. The first
    `fit` or `partial_fit` decides.

    With ``contamination="auto"``, a break is an error above the median where the hazard
    of the errors falls [5]_: the density divided by the share of rows beyond it. Let s
    be the distance from the lower quartile to the median. The hazard over the next 4 s
    must be at most a third of the mean hazard between the median and the break. The
    log-likelihood ratio of the two hazards must be at least the logarithm of the number
    of distinct errors above the median. At most a quarter of the weight may lie behind
    a break; if it is more than a twentieth, at least half of it must belong to isolated
    rows, whose distance to the nearest training row is more than 1.5 times the median.
    A larger dense group, such as a cluster or a phase of a cycle, is no group of
    outliers, even if the networks reproduce it less well than the others. Farther than
    4 s from the median, the same holds for a fall from the hazard in the last part of
    this interval, which is half of it, but at least 4 s long: a break is no point
    within a long tail, such as that of the rows that `trim` leaves out if the networks
    memorise the other rows. If there are at least ten rows beyond the break, their
    lowest tenth must exceed the median error by at least a quarter of the excess of
    their highest tenth. Of several breaks, the first counts whose log-likelihood ratio
    is at least half of the largest. Without a break, at most 1.5 % of the weight and
    eight distinct errors are flagged, those behind a wide gap. Clean training rows that
    are few and isolated can lie behind a break, too. If the training rows are known to
    be clean, a number such as ``contamination=0.01`` avoids this.

    Every threshold comes from the scores of the training rows. New inliers have larger
    reconstruction errors if the networks fit the training rows closely, as with
    ``trim=0`` and few rows of many features: of 178 clean training rows of breast
    cancer with 30 features, 1 % are flagged with ``trim=0, n_neighbors=0,
    contamination=0.01``, and 21 % of other clean rows, where the defaults flag 1 % of
    both. Take the threshold from rows that are held out in such a case, with
    ``detector.set_params(contamination=0.01).recalibrate(X_held_out)``.

    For the distances, the fitted detector keeps up to 4,096 training rows in the
    internally scaled space, in float32: a random sample if there are more, of at most
    268,435,456 divided by the number of training rows (but at least 512), and of at
    most 8,388,608 entries. The distance of two rows is the root of their mean squared
    difference over the observed entries of the row; missing entries of kept rows are
    replaced by the mean. A training row is no neighbour of itself: of the training rows
    that equal a row, one does not count, so equal training rows are neighbours of each
    other. This also holds for new rows that equal a training row. In the core, one of
    the nearest rows never counts. A row whose weight is a multiple of the smallest
    weight counts as so many rows. If other weights occur, each row counts once; of too
    many rows those of larger weight are more likely to be drawn, and rows with less
    than a thousandth of the mean weight are not kept. A relative distance counts as at
    least 0.003, and in R the distance of a kept row as at least 0.3 of the median. If
    most rows have equal ones, the smallest distance above 0 is as unusual as the first
    term that as many training rows do not reach.

    Copies of a training row are no neighbours of it: up to four nearest rows, if the
    last of them is nearer than a quarter of the distance to the next row. Repeated
    measurements are such rows, which new rows do not have. The medians ignore copies at
    less than a thousandth of this distance only, unless more than 70 % of the rows have
    copies. Larger groups of similar rows are not recognised, nor are other rows that
    depend on each other, such as overlapping windows of a signal: new rows are then
    farther from the training rows than these are from each other, and more of them are
    flagged. The same holds for many columns of rare events, whose scale comes from the
    few training rows that have them.

    `partial_fit` samples the rows of all calls, in which a row that is passed several
    times counts once.

    The members of an ensemble of fully connected networks (with the deterministic
    bottleneck and without a penalty) hold out rows from each other, from which
    `p_values` are computed: the rows are divided at random into four folds, or as many
    as there are members if these are fewer, and each member learns the rows of all
    folds but one. `trim` is the fraction of the rows that a member learns. Equal rows
    are in the same fold, also in later fits that resume, in `partial_fit` and for
    members that a later fit adds. The scaling and the mean absolute residuals come from
    all rows.

    The mean absolute residuals are those of all training rows, or of 32,768 rows drawn
    at random if there are more and no entry is missing.

    Weighted, repeated and permuted rows, missing entries, sparse rows, and the
    callbacks of scikit-learn are treated as in :class:`AutoencoderTransformer`. Of
    sparse rows, the default `loss` and `error` need the reconstructions of all entries,
    which are computed for some features at a time; ``loss="squared_error"`` with
    ``error="loss"`` needs none. `feature_contributions` makes blocks of rows dense.

    A row without an observed entry is not used in training. Its score is the median
    score of the training rows, it is an inlier, and its contributions are 0.

    A value that no training row could have is an outlier, not an error: one outside the
    range of the loss, such as a new value of a binary column, or one that would
    overflow. The network reads the nearest value of the range, and the mean distance to
    it over the features, multiplied by 1e6, is subtracted from the score. `fit` refuses
    such values.

    The methods `feature_contributions` and `explain` exist only if the score is a sum
    over the features, which excludes ``bottleneck=Gaussian(score="elbo")``. In a fitted
    estimator this depends on the bottleneck of the fit, before that on the parameter
    `bottleneck`.

    References
    ----------
    .. [1] Hawkins, S., He, H., Williams, G., & Baxter, R. (2002). Outlier
       detection using replicator neural networks. DaWaK, 170-180.
    .. [2] Ho, T. K. (1998). The random subspace method for constructing decision
       forests. IEEE Transactions on Pattern Analysis and Machine Intelligence,
       20(8), 832-844.
    .. [3] Shen, Y., & Sanghavi, S. (2019). Learning with bad training data via
       iterative trimmed loss minimization. ICML.
    .. [4] Loshchilov, I., & Hutter, F. (2019). Decoupled weight decay
       regularization. ICLR.
    .. [5] Matthews, D. E., & Farewell, V. T. (1982). On testing for a constant hazard
       against a change-point alternative. Biometrics, 38(2), 463-468.

    Examples
    --------
    >>> import numpy as np
    >>> from skae import AutoencoderOutlierDetector
    >>> x = np.linspace(-1, 1, 100)
    >>> X = np.column_stack([x, x**2])
    >>> detector = AutoencoderOutlierDetector(n_components=1, random_state=0).fit(X)
    >>> detector.predict([[0.0, 0.0], [0.0, 1.0]])
    array([ 1, -1])
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseAutoencoder._parameter_constraints,
        "n_estimators": [
            Interval(Integral, 1, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "max_features": [
            Interval(Integral, 1, None, closed="left"),
            Interval(RealNotInt, 0, 1, closed="right"),
            StrOptions({"auto"}),
        ],
        "loss": [StrOptions({*LOSSES, "auto"}), Loss],
        "error": [StrOptions({"auto", "log", "loss"})],
        "n_neighbors": [
            Interval(Integral, 0, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "contamination": [StrOptions({"auto"}), Interval(Real, 0, 0.5, closed="right")],
        "n_jobs": [
            Interval(Integral, None, -1, closed="right"),
            Interval(Integral, 1, None, closed="left"),
            None,
        ],
    }

    _FITTED: ClassVar[tuple[str, ...]] = (
        *BaseAutoencoder._FITTED,
        "offset_",
        "_calibration",
    )

    # Scores of the rows that were passed to the last `recalibrate`; None if `offset_`
    # comes from the training rows, and p-values from rows that were held out.
    _calibration: TrainingScores | None = None

    # A warm start may have more members, see `n_estimators`.
    _STRUCTURE: ClassVar[tuple[str, ...]] = (
        *BaseAutoencoder._STRUCTURE,
        "max_features",
    )

    def __init__(
        self,
        n_components: int | str = "auto",
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
        loss: str | Loss = "auto",
        init: str = "random",
        scale: str | None = "auto",
        max_epochs: int | str = "auto",
        batch_size: int | str = "auto",
        learning_rate: float | str = "auto",
        weight_decay: float = 0.01,
        early_stopping: bool | str = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: float = 10,
        tol: float = 1e-4,
        trim: float = 0.2,
        n_estimators: int | str = "auto",
        max_features: float | str = "auto",
        error: str = "auto",
        n_neighbors: int | str = "auto",
        contamination: float | str = "auto",
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
        device: str | torch.device = "auto",
        callbacks: list[Any] | None = None,
        compile: str | bool = "auto",
        n_threads: int | str = "auto",
        precision: str = "float32",
        n_jobs: int | None = None,
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
        self.n_estimators = n_estimators
        self.max_features = max_features
        self.error = error
        self.n_neighbors = n_neighbors
        self.contamination = contamination
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.device = device
        self.callbacks = callbacks
        self.compile = compile
        self.n_threads = n_threads
        self.precision = precision
        self.n_jobs = n_jobs
        self.checkpoint = checkpoint
        self.categorical_features = categorical_features

    @own_settings()
    @follows_input
    def decision_function(self, X: MatrixLike) -> np.ndarray:
        """Return the difference between each row's score and the threshold.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows. NaN marks a missing entry.

        Returns
        -------
        decision : ndarray of shape (n_samples,), float64
            ``score_samples(X) - offset_``. It is negative for outliers.
        """
        return self.score_samples(X) - self.offset_

    def fit_predict(self, X: MatrixLike, y: Any = None, **kwargs: Any) -> np.ndarray:
        """Fit to X, and predict whether each of its rows is an inlier or an outlier.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Training rows, or a table in partitions as `fit` takes it. NaN marks a
            missing entry.
        y : Ignored
            Not used, present for API consistency by convention.
        **kwargs : dict
            Further arguments of `fit`.

        Returns
        -------
        labels : ndarray of int of shape (n_samples,)
            1 for inliers, -1 for outliers.
        """
        if not is_collection(self, X):
            return super().fit_predict(X, y, **kwargs)
        self.fit(X, **kwargs)
        return np.where(self.training_scores_ < self.offset_, -1, 1)

    @own_settings()
    @follows_input
    def predict(self, X: MatrixLike) -> np.ndarray:
        """Predict whether each row is an inlier or an outlier.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows. NaN marks a missing entry.

        Returns
        -------
        is_inlier : ndarray of shape (n_samples,), int
            1 for inliers, -1 for outliers, whose `decision_function` is negative.
        """
        return np.where(self.decision_function(X) < 0, -1, 1)

    @own_settings()
    @follows_input
    def recalibrate(
        self, X: MatrixLike | None = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Set `offset_` anew for the present `contamination`, without training.

        The threshold is computed from scores as in `fit`. It replaces one that was
        assigned to `offset_`. Nothing else changes: scores, the median score, which
        rows without an observed entry have, and `training_scores_` remain those of the
        training.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features), default=None
            Rows from whose scores the threshold is computed, for example rows that are
            held out from training. NaN marks a missing entry. Rows without an observed
            entry do not count. None means the recorded scores of the training rows,
            with their weights: of the last `fit` or, after `partial_fit`, of all calls.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights of the rows of X. A row of weight w counts as w equal
            rows. None means that each row has weight 1.

        Returns
        -------
        self : object
            The estimator itself.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If a parameter or the data are invalid, or if there are weights without X.
            The estimator remains as it was.

        Notes
        -----
        With ``X=None`` and the `contamination` of the last `fit` or `partial_fit`, the
        threshold is the one that this call computed, to the last bit.

        The scores of X are not added to the record of training scores: `fit`, with or
        without `warm_start`, and `partial_fit` replace the threshold by one from the
        scores of the training rows.

        Examples
        --------
        >>> import numpy as np
        >>> from skae import AutoencoderOutlierDetector
        >>> X = np.random.default_rng(0).standard_normal((300, 3))
        >>> X_train, X_held_out = X[:200], X[200:]
        >>> detector = AutoencoderOutlierDetector(random_state=0).fit(X_train)
        >>> detector = detector.set_params(contamination=0.1).recalibrate()
        >>> int((detector.training_scores_ < detector.offset_).sum())
        20
        >>> int((detector.recalibrate(X_held_out).predict(X_held_out) == -1).sum())
        10
        """
        check_is_fitted(self)
        validate_parameters(self)
        if X is not None:
            calibration = self._scores_of(X, sample_weight).in_descending_order()
        elif sample_weight is None:
            calibration = None
        else:
            raise ValueError(
                "sample_weight has the weights of the rows of X, but X is None, which "
                "means the training rows with the weights that were passed to fit. "
                "Pass X, or leave sample_weight out."
            )
        offset = self._threshold_of(calibration or self._trained.scores)
        self._calibration, self.offset_ = calibration, offset
        return self

    @available_unless(_lacks_plain_score)
    @own_settings()
    @follows_input
    def feature_contributions(self, X: MatrixLike) -> MatrixLike:
        """Return the contribution of each feature to each row's error.

        The contributions sum to minus the score. With ``n_neighbors > 0``, the share of
        a feature is the mean of its shares of the reconstruction error, of the squared
        difference from the nearest row of the core, and of that from the nearest
        training row. Where the score has no core, its share of R takes the place of the
        second, if there is one. Those of the columns of a categorical feature are
        summed.

        This method exists only if the score is a sum over the features, which
        excludes ``bottleneck=Gaussian(score="elbo")``.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows. NaN marks a missing entry.

        Returns
        -------
        contributions : ndarray or data frame of shape (n_samples, n_features), float64
            Non-negative values, 0 at missing entries. Each row sums to minus its
            `score_samples`, except for a row without an observed entry, which is 0. A
            data frame, with the columns and the index of X, if `set_output` requests
            one.

        Examples
        --------
        >>> import numpy as np
        >>> from skae import AutoencoderOutlierDetector
        >>> x = np.linspace(-1, 1, 100)
        >>> X = np.column_stack([x, x**2])
        >>> detector = AutoencoderOutlierDetector(random_state=0).fit(X)
        >>> contributions = detector.feature_contributions(X)
        >>> np.allclose(contributions.sum(axis=1), -detector.score_samples(X))
        True
        """
        check_is_fitted(self)
        return wrap_output(self, self._contributions(check_X(self, X)), X)

    @available_unless(_lacks_plain_score)
    @own_settings()
    @follows_input
    def explain(self, X: MatrixLike, top: int = 3) -> pd.DataFrame:
        """Return the features that contribute most to each row's error.

        Like `feature_contributions`, it exists only if the score is a sum over the
        features.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows. NaN marks a missing entry.
        top : int, default=3
            Number of features for each row, >= 1; at most all of them.

        Returns
        -------
        explanation : pandas.DataFrame of shape (n_samples * top, 5)
            One line for each row and each of its features, those that contribute most
            first. The first levels of the index are those of X if it is a data frame of
            pandas, otherwise the position of the row; the last one, ``"rank"``,
            counts from 1. The columns are:

            - ``"feature"``: name of the feature; x0, x1, ... if X had no names;
            - ``"value"``: entry of the row, NaN if it is missing;
            - ``"expected"``: its reconstruction, in the units of X, or the category
              with the highest probability;
            - ``"contribution"``: see `feature_contributions`;
            - ``"share"``: contribution divided by the sum over all features, in
              [0, 1]; 0 for a row without an observed entry.

        Raises
        ------
        ImportError
            If pandas is not installed.

        See Also
        --------
        skae.inspection.FeatureContributionDisplay : Plot of one row.

        Examples
        --------
        >>> from sklearn.datasets import load_wine
        >>> from skae import AutoencoderOutlierDetector
        >>> X = load_wine(as_frame=True).data
        >>> detector = AutoencoderOutlierDetector(random_state=0).fit(X)
        >>> row = X.iloc[[0]].assign(magnesium=1270)
        >>> detector.explain(row, top=1)["feature"].item()
        'magnesium'
        """
        check_is_fitted(self)
        if not isinstance(top, Integral) or isinstance(top, bool) or top < 1:
            raise InvalidParameterError(f"top must be an integer >= 1, got {top!r}.")
        rows = check_X(self, X)
        names = check_feature_names_in(self)
        given = rows if self._trained.categories is None else category_table(self, X)
        return explanation_frame(self._top_features(rows, given, int(top)), names, X)

    @available_unless(_lacks_p_values)
    @own_settings()
    @follows_input
    def p_values(self, X: MatrixLike) -> np.ndarray:
        r"""Return the conformal p-value of each row.

        It is an upper estimate of the probability that a row like the training rows has
        an error at least as large. Each member of an ensemble learns all training rows
        but those of one of K folds, see the Notes of the class. Let :math:`e_k` be the
        error, minus the score, that the members without fold :math:`S_k` assign, and
        :math:`w_i` the weights. The p-value is that of cross-conformal prediction
        [1]_,

        .. math::

            p(x) = \frac{1 + \sum_{k=1}^K \sum_{i \in S_k}
                w_i [e_k(x_i) \ge e_k(x)]}{1 + \sum_i w_i}.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows that were not used in training. NaN marks a missing entry.

        Returns
        -------
        p_values : ndarray of shape (n_samples,), float64
            Values in (0, 1]. Small values mean outliers. 1 for a row without an
            observed entry.

        Notes
        -----
        For rows from the distribution of the training rows, the probability of a
        p-value <= a is about a or less; at most about 2 a is proven for cross-conformal
        prediction in general [2]_. The ranks in different folds are averaged, so small
        p-values are rarer than that: on new inliers of the 21 tables of
        ``benchmarks/outliers.py``, after a fit to other inliers, 4.6 % of the p-values
        were <= .05. Among the test rows, with their outliers, inliers were 1.8 % of
        what ``scipy.stats.false_discovery_control(p_values) <= 0.1`` selected, as a
        mean over the tables in which a table without a selection counts as 0.

        Outliers among the training rows have large errors, too, so p-values become
        larger: after a fit to the training rows of these tables with their outliers,
        3.6 % of the new inliers had a p-value <= .05. No p-value is below
        ``1 / (1 + w)``, where w is the weight of the training rows, and a p-value of an
        outlier is seldom below the share of outliers among them. A small share of
        alarms is then found by `contamination` instead.

        Training rows that depend on each other, such as overlapping windows of a signal
        or more than five measurements of the same object, make the p-values of
        independent new rows too small, and so do few rows of many features, whose
        scaling comes from all of them: of new rows like 60 training rows with 100
        features, 7 % had a p-value <= .05, and 19 % of those like 400 rows with 300
        columns of which each has an entry other than 0 in 1 % of the rows.

        Errors that differ by rounding are equal, which counts against an alarm. A row
        of weight w counts as w rows, so weights must be numbers of rows, not shares. Of
        more than 32,768 training rows, a random sample of this size is compared. After
        `partial_fit`, rows of all calls are compared, with decreasing weights as for
        `offset_`. After ``recalibrate(X)`` the scores of new rows are compared with
        those of X, as in split conformal prediction; X must have no row that was used
        in training.

        The method does not exist if all members have learnt all rows: with a single
        network, networks other than fully connected ones, and fewer than 20 distinct
        rows. It exists after ``recalibrate(X)``.

        References
        ----------
        .. [1] Vovk, V. (2015). Cross-conformal predictors. Annals of Mathematics and
           Artificial Intelligence, 74, 9-28.
        .. [2] Barber, R. F., Candès, E. J., Ramdas, A., & Tibshirani, R. J. (2021).
           Predictive inference with the jackknife+. Annals of Statistics, 49(1),
           486-507.

        Examples
        --------
        >>> import numpy as np
        >>> from scipy.stats import false_discovery_control
        >>> from skae import AutoencoderOutlierDetector
        >>> rng = np.random.default_rng(0)
        >>> X = rng.standard_normal((500, 3))
        >>> X_new = np.vstack([rng.standard_normal((45, 3)), np.full((5, 3), 6.0)])
        >>> detector = AutoencoderOutlierDetector(random_state=0).fit(X)
        >>> is_alarm = false_discovery_control(detector.p_values(X_new)) <= 0.1
        >>> np.flatnonzero(is_alarm)
        array([45, 46, 47, 48, 49])
        """
        check_is_fitted(self)
        X = check_X(self, X)
        held_out = self._held_out_scores
        assert held_out is not None
        p_values = conformal_p_values(
            self._scores_by_fold(X),
            [(scores.values, scores.weight) for scores in held_out],
            held_out[0].rounding,
        )
        p_values[empty_rows(X)] = 1.0
        return p_values

    @property
    def _held_out_scores(self) -> tuple[TrainingScores, ...] | None:
        """Scores of rows that the networks did not learn, in one or several folds."""
        if self._calibration is not None:
            return (self._calibration,)
        return self._trained.held_out_scores

    def _scores_by_fold(self, X: Table) -> np.ndarray:
        """Score rows as those of each fold of `_held_out_scores` were scored."""
        if self._calibration is not None:
            return self._score_samples(X)[:, None]
        trained, rows = self._trained, Rows(X)
        assert trained.holdout is not None
        module = trained.net.module_for("errors_by_fold", X.dtype)
        return score_folds(module, rows, trained.holdout).by_fold

    def set_output(self, *, transform: str | None = None) -> Self:
        """Set the output container of `feature_contributions` and `reconstruct`.

        The parameter has the same name as in scikit-learn's transformers. Use
        ``sklearn.set_config(transform_output=...)`` for all estimators.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"}, default=None
            Container of the output:

            - ``"default"``: NumPy array;
            - ``"pandas"``: pandas DataFrame;
            - ``"polars"``: polars DataFrame;
            - None: leave the setting unchanged.

        Returns
        -------
        self : object
            The estimator itself.
        """
        if transform is not None:
            set_output_container(self, transform)
        return self

    @property
    def offset_(self) -> float:
        """Threshold of the scores; a row with a lower score is an outlier."""
        try:
            return vars(self)["offset_"]
        except KeyError:
            raise AttributeError(
                f"This {type(self).__name__} is not fitted yet."
            ) from None

    @offset_.setter
    def offset_(self, offset: float) -> None:
        check_is_fitted(self)
        if not isinstance(offset, Real) or isinstance(offset, bool):
            raise TypeError(
                f"offset_ must be a finite number, got {offset!r} of type "
                f"{type(offset).__name__}."
            )
        if not np.isfinite(float(offset)):
            raise ValueError(f"offset_ must be a finite number, got {offset!r}.")
        vars(self)["offset_"] = float(offset)

    @property
    def training_scores_(self) -> np.ndarray:
        """Scores of the rows of the last call of `fit` or `partial_fit`."""
        scores = self._fitted.scores_in_order
        if scores is None:
            raise AttributeError(
                f"This {type(self).__name__} was stored by a version of skae that did "
                "not record training_scores_. Fit it again."
            )
        # The score of a row without an observed entry depends on `offset_`.
        observed = np.where(np.isnan(scores), self._empty_row_score, scores)
        return self._in_array_space(observed)

    @property
    def _empty_row_score(self) -> float:
        # A row without an observed entry is an inlier, also if more than half of the
        # training rows are not.
        return max(super()._empty_row_score, self.offset_)

    def _contributions(self, X: Table) -> np.ndarray:
        contributions = self._evaluate("contributions", X)
        # NaN results from an overflow in the network, as in `score_samples`.
        contributions[np.isnan(contributions)] = np.inf
        return contributions

    def _top_features(self, X: Table, given: Table, top: int) -> Iterator[TopFeatures]:
        """Iterate over blocks of rows, since sparse ones may not fit densely.

        Parameters
        ----------
        X : ndarray or CSR matrix of shape (n_samples, n_columns)
            Validated rows.
        given : ndarray or CSR matrix of shape (n_samples, n_features)
            The same rows with categories.
        top : int
        """
        n_rows = max(1, MAX_EXPLAINED_ENTRIES // X.shape[1])
        for block in gen_batches(X.shape[0], n_rows):
            rows, values = X[block], given[block]
            values = values.toarray() if issparse(values) else values
            X_hat = self._in_features(self._evaluate_in_type("forward", rows))
            yield TopFeatures.of(values, X_hat, self._contributions(rows), top)

    # Values of "auto", and further checks of parameters

    def _resolve_scale(
        self, parts: Parts, summary: Summary, has_categories: bool
    ) -> str | None:
        if self.scale != "auto" or has_categories:
            return super()._resolve_scale(parts, summary, has_categories)
        has_shape = self.input_shape is not None or parts.network.depends_on_order
        return "global" if has_shape or share_one_unit(summary) else "feature"

    def _auto_loss(
        self, n_features: int, scale: str | None, has_categories: bool
    ) -> str:
        # The logarithmic loss neglects numbers beside the cross-entropy: the ROC AUC of
        # the errors of simulated expenses is .84 (benchmarks/mixed_tables.py), and .88
        # with the squared error.
        if has_categories:
            return "squared_error"
        # Pixels of large images are dark in most of them, and the logarithmic loss fits
        # medians: its ROC AUC is .68 where that of the squared error is .90 (MNIST).
        # With images of 8 x 8 pixels it resists outliers that resemble each other:
        # .91 and .45 (optdigits with 3 % zeros among the training rows).
        is_wide = n_features > _defaults.DETECTOR_WIDE
        return "squared_error" if scale == "global" and is_wide else "log_error"

    def _ensemble(
        self, parts: Parts, n_features: int, n_columns: int, scale: str | None
    ) -> Ensemble | None:
        n_members = self._n_members(parts, n_columns, scale)
        n_visible = self._n_visible(n_members, n_features)
        if n_members == 1 and n_visible == n_features:
            return None
        widths = None
        has_widths = self.n_components == "auto" and self.trim > 0
        if has_widths and parts.members_stack and scale != "global":
            widths = self._widths(n_members, n_features)
        n_together = self._auto_n_members(parts, n_columns, scale)
        return Ensemble(n_members, n_visible, n_together, self.n_jobs, widths)

    def _widths(self, n_members: int, n_features: int) -> tuple[int, ...]:
        """Return the number of components of each member for ``"auto"``."""
        widths = islice(cycle(WIDTHS), n_members)
        if self._n_visible(n_members, n_features) < n_features:
            return tuple(widths)
        # A member that sees all features could copy them to as many components.
        return tuple(min(width, max(1, n_features - 1)) for width in widths)

    def _n_members(self, parts: Parts, n_features: int, scale: str | None) -> int:
        """Return the number of members for `n_estimators`."""
        if self.n_estimators != "auto":
            return int(self.n_estimators)
        return self._auto_n_members(parts, n_features, scale)

    def _auto_n_members(self, parts: Parts, n_features: int, scale: str | None) -> int:
        """Return ``"auto"`` of `n_estimators`, the most members of one network.

        On tables of up to 200 features, 32 members take about as long in two networks
        as in one.
        """
        if not parts.members_stack:
            return 1
        n_members = auto_n_estimators(n_features)
        return min(n_members, N_UNIT_MEMBERS) if scale == "global" else n_members

    def _n_visible(self, n_members: int, n_features: int) -> int:
        """Return the number of input features of each member for `max_features`."""
        if isinstance(self.max_features, Integral):
            return int(self.max_features)
        if not isinstance(self.max_features, str):
            return max(1, round(float(self.max_features) * n_features))
        if n_members == 1:
            return n_features
        # On tables with two features, one input has a higher ROC AUC than two with a
        # single component: .946 and .938 (eight kinds of toy data, six draws of each).
        return max(1, round(n_features / 2))

    def _auto_n_components(
        self, parts: Parts, n_features: int, scale: str | None
    ) -> int:
        if not parts.suits_hidden_layers:  # a sparse code
            return min(CLEAN_WIDTH, n_features)
        if scale == "global" and self.trim > 0:
            return min(CLEAN_WIDTH, max(1, n_features // 4))
        n_members = self._n_members(parts, n_features, scale)
        if n_members == 1:
            return 1
        return (
            max(self._widths(n_members, n_features)) if self.trim > 0 else CLEAN_WIDTH
        )

    def _training_defaults(
        self,
        parts: Parts,
        ensemble: Ensemble | None,
        n_features: int,
        scale: str | None,
    ) -> _defaults.TrainingDefaults:
        if self.trim == 0 or not parts.members_stack or ensemble is None:
            return _defaults.DETECTOR
        if n_features <= _defaults.DETECTOR_WIDE:
            return _defaults.DETECTOR_MEMBERS
        if scale == "global":
            return _defaults.DETECTOR_WIDE_UNIT_MEMBERS
        return _defaults.DETECTOR_WIDE_MEMBERS

    def _check_width(self, n_features: int) -> None:
        super()._check_width(n_features)
        if isinstance(self.max_features, Integral) and self.max_features > n_features:
            raise ValueError(
                f"max_features={self.max_features} must be at most the number of "
                f"features, n_features={n_features}."
            )

    def _check_combination(self, parts: Parts) -> None:
        if self.error == "log" and not parts.bottleneck.has_plain_score:
            raise ValueError(
                f"error='log' measures residuals alone, but bottleneck="
                f"{self.bottleneck!r} adds its own term to the loss. Use error='auto' "
                "or error='loss'."
            )

    def _resolve_error(self, parts: Parts, scale: str | None) -> str | None:
        if self.error != "auto":
            return self.error
        has_log_error = parts.bottleneck.has_plain_score and scale != "global"
        return "log" if has_log_error else "loss"

    def _resolve_n_neighbors(
        self, parts: Parts, n_features: int, scale: str | None
    ) -> int:
        if self.n_neighbors != "auto":
            return int(self.n_neighbors)
        if not parts.bottleneck.has_plain_score:
            return 0
        if parts.network.members_stack:
            return 1
        # With distances to training images, the mean ROC AUC of convolutions on one
        # digit of MNIST is .954 instead of .869, and with a tenth of other digits among
        # the training rows .918 instead of .826 (two digits, 14 x 14 pixels). On
        # windows of series, distances detect less: .924 instead of .939.
        is_image = min((1, 1, *(self.input_shape or ()))[-2:]) > 1
        return int(is_image and self._has_relative_distances(n_features, scale))

    def _has_relative_distances(self, n_features: int, scale: str | None) -> bool:
        # On tables in different units, the mean ROC AUC with the core is .759, .833 and
        # .784 (contaminated and clean training rows of 20 tables of ADBench; OddBench),
        # and .720, .831 and .782 with relative distances. With other powers it is at
        # best .753 for contaminated rows, with .824 and .775 for the others.
        is_unit = scale == "global" and n_features >= MIN_SHARING
        return is_unit and self.n_neighbors == "auto"

    def _attributes_of(self, trained: Trained) -> dict[str, Any]:
        offset = self._threshold_of(trained.scores)
        calibrated = {"offset_": offset, "_calibration": None}
        return {**super()._attributes_of(trained), **calibrated}

    def _threshold_of(self, scores: TrainingScores | None) -> float:
        """Return the threshold for the present `contamination`."""
        assert scores is not None
        return threshold(
            finite_scores(scores.values),
            scores.weight,
            self.contamination,
            scores.rounding,
            scores.isolated,
        )

    def _scores_of(
        self, X: MatrixLike, sample_weight: ArrayLike | None
    ) -> TrainingScores:
        """Score rows that take the place of the training rows in a calibration."""
        rows = check_scored_rows(self, X, sample_weight)
        assert self._trained.scores is not None
        module = self._trained.net.module_for("row_error", rows.X.dtype)
        return self._trained.scores._replace(
            values=score_rows(module, rows),
            weight=np.array(rows.weight),
            n_seen=float(rows.weight.sum()),
            isolated=isolated_rows(module, rows),
        )


def finite_scores(scores: np.ndarray) -> np.ndarray:
    """Replace scores of -inf by a number below all others, for the threshold."""
    is_finite = np.isfinite(scores)
    lowest = scores.min(where=is_finite, initial=0.0)
    return np.where(is_finite, scores, 2 * lowest - 1)


def auto_n_estimators(n_features: int) -> int:
    """Return 16 members, or 8, 4 or 2 with more than 500, 1000 or 8000 features."""
    largest = ((500, 16), (1000, 8), (8000, 4))
    return next((n for most, n in largest if n_features <= most), 2)
