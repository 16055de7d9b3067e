"""What both estimators share: fit, encode, decode, reconstruct, score."""

from __future__ import annotations

import copy
import math
import pickle
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.base import BaseEstimator, clone
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils._set_output import ADAPTERS_MANAGER, _get_output_config
from sklearn.utils.validation import (
    _check_feature_names_in,
    _check_sample_weight,
    check_is_fitted,
    validate_data,
)
from skorch.callbacks import Callback
from torch import nn

from skae import _defaults
from skae._batches import (
    BLOCK_ENTRIES,
    Rows,
    Table,
    canonical_rows,
    count_batches,
)
from skae._callbacks import CallbackSupportMixin, Task, with_callbacks
from skae._layers import BinarySigmoid, make_activation, start_at_map
from skae._members import CodeWidths, Ensemble, stack, stack_squeezes
from skae._module import Autoencoder, Scaler
from skae._net import (
    AutoencoderNet,
    DivergenceError,
    Interruption,
    Judgement,
    Objective,
    Plan,
    Split,
)
from skae._pca import Moments, are_binary, moments, principal_axes, value_range
from skae._processor import flushed_denormals, precision_of, threads_for
from skae._progress import Progress
from skae.bottlenecks import BOTTLENECKS, Bottleneck, Deterministic
from skae.corruptions import CORRUPTIONS, Corruption, Spread
from skae.losses import LOSSES, Loss, Mixed
from skae.networks import NETWORKS, Custom, Network, Shape, are_sizes
from skae.penalties import PENALTIES, Penalty

# What users hand over: array-likes, data frames, sparse matrices.
MatrixLike: TypeAlias = Any

# How X is checked wherever it enters.
_CHECK_X: dict[str, Any] = {
    "accept_sparse": "csr",
    "dtype": [np.float64, np.float32],
    "ensure_all_finite": "allow-nan",
}

# The parameters on which the trained network does not depend.
_BESIDE = (
    "callbacks",
    "compile",
    "contamination",
    "device",
    "n_threads",
    "verbose",
    "warm_start",
)

# Up to this number of distinct rows, early stopping is cross-validated: on seven small
# tables (80 to 442 rows, one to five components) five folds removed about .05 more of
# PCA's held-out error than a tenth of the rows held out, and the worst fit was nearer
# to PCA.
MAX_FOLDED = 500
N_FOLDS = 5

# What the history tells of an epoch.
LOSSES_KEPT = ("train_loss", "valid_loss")

# What the validation of X has set when a fit begins.
_FROM_VALIDATION = ("n_features_in_", "feature_names_in_")

# Entries of a layer when a network predicts on a GPU, which is idle with few.
DEVICE_ENTRIES = 2**24

# PyTorch's global generator is set aside for one network at a time.
_GLOBAL_GENERATOR = threading.RLock()


class Parts(NamedTuple):
    """The objects behind the parameters that may be given as strings."""

    network: Network
    bottleneck: Bottleneck
    corruption: Corruption | None
    penalty: Penalty | None
    loss: Loss
    output: nn.Module

    @property
    def code_activation(self) -> str:
        """What ``code_activation="auto"`` of the network stands for."""
        if self.penalty is None or not self.bottleneck.suits_code_activation:
            return "identity"
        return self.penalty.code_activation

    def can_be_scaled(self, n_features: int) -> np.ndarray:
        """Which columns need not keep their own units, of shape (n_features,)."""
        is_free = isinstance(self.output, nn.Identity | BinarySigmoid)
        columns = np.full(n_features, is_free)
        if self.loss.bounds is not None:
            bounded = self.loss.binary if isinstance(self.loss, Mixed) else slice(None)
            columns[bounded] = False
        return columns


class Job(NamedTuple):
    """What one fit is about, once everything has been checked.

    Attributes
    ----------
    parts : Parts
    rows : Rows
        All rows that count, in canonical form.
    spread : Moments
        Of these rows.
    splits : list of Split
        Into rows to train on and rows held out; several for cross-validation.
    seed : int
    resume : bool
        Whether training goes on from the fitted network.
    one_epoch : bool
        Whether this is a `partial_fit`.
    fingerprint : str
        Tells these rows and parameters from others.
    is_settled : bool
        Whether the fitted network has learnt all there is from them.
    """

    parts: Parts
    rows: Rows
    spread: Moments
    splits: list[Split]
    seed: int
    resume: bool
    one_epoch: bool
    fingerprint: str
    is_settled: bool


class BaseAutoencoder(CallbackSupportMixin, BaseEstimator, ABC):
    """Fit and use an autoencoder; what it is used for is left to subclasses."""

    # How the last fit that ran to its end is told from another, see `_fingerprint`.
    _settled: str | None

    # The parameters that make a network what it is, which training on cannot change.
    _STRUCTURE: ClassVar[tuple[str, ...]] = (
        "n_components",
        "network",
        "hidden_layer_sizes",
        "input_shape",
        "bottleneck",
        "penalty",  # it may imply an activation on the code
        "loss",
    )

    # What "auto" means for the training.
    _TRAINING: ClassVar[_defaults.Training]

    _parameter_constraints: ClassVar[dict] = {
        "n_components": [
            Interval(Integral, 1, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "network": [StrOptions(set(NETWORKS)), Network],
        "hidden_layer_sizes": [StrOptions({"auto"}), tuple, list],
        "input_shape": [tuple, list, None],
        "bottleneck": [StrOptions(set(BOTTLENECKS)), Bottleneck],
        "bottleneck_weight": [Interval(Real, 0, None, closed="left")],
        "corruption": [StrOptions(set(CORRUPTIONS)), Corruption, None],
        "corruption_level": [Interval(Real, 0, None, closed="left")],
        "penalty": [StrOptions(set(PENALTIES)), Penalty, None],
        "penalty_weight": [Interval(Real, 0, None, closed="left")],
        "loss": [StrOptions(set(LOSSES)), Loss],
        "init": [StrOptions({"auto", "pca", "random"})],
        "scale": [StrOptions({"auto", "global", "feature"}), None],
        "max_epochs": [
            Interval(Integral, 1, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "batch_size": [
            Interval(Integral, 1, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "learning_rate": [
            Interval(Real, 0, None, closed="neither"),
            StrOptions({"auto"}),
        ],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "early_stopping": ["boolean", StrOptions({"auto"})],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "trim": [Interval(Real, 0, 1, closed="left")],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "device": [str, torch.device],
        "callbacks": [list, tuple, None],
        "compile": ["boolean", StrOptions({"auto"})],
        "n_threads": [
            Interval(Integral, 1, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "precision": [StrOptions({"float32", "tf32", "bfloat16"})],
    }

    @abstractmethod
    def _auto_n_components(self, parts: Parts, n_features: int) -> int:
        """What ``n_components="auto"`` means."""

    # Doors: these validate.

    def fit(
        self, X: MatrixLike, y: Any = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Train the network to reproduce the rows of X.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows to learn from. NaN marks a missing entry.
        y : Ignored
            Present for API consistency by convention.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights; a row of weight w counts like w equal rows.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            If a parameter or the data are invalid, before any training, which
            leaves the estimator as it was; or if the training diverges, which
            leaves it not fitted.
        KeyboardInterrupt
            On Ctrl-C, after the best epoch so far has become the fitted model.
        """
        resume = self.warm_start and self._is_fitted()
        return self._fit(X, y, sample_weight, resume=resume)

    def partial_fit(
        self, X: MatrixLike, y: Any = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Train for one epoch over the rows of X.

        The first call builds the network and fixes its start, its scale and
        `mean_`; on a fitted estimator, training goes on from where it is.
        Nothing is held out, and the learning rate stays constant. A detector's
        `offset_` comes from the rows of the last call.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows to learn from. NaN marks a missing entry.
        y : Ignored
            Present for API consistency by convention.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights; a row of weight w counts like w equal rows.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError, KeyboardInterrupt
            As in `fit`.
        """
        resume = self._is_fitted()
        return self._fit(X, y, sample_weight, resume=resume, one_epoch=True)

    def reconstruct(self, X: MatrixLike) -> MatrixLike:
        """Send rows through the code and back.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows; NaN marks a missing entry.

        Returns
        -------
        X_hat : ndarray or data frame of shape (n_samples, n_features)
            Reconstructions in the units of X, at the missing entries too. A data
            frame, with the columns and the index of X, if `set_output` asks for one.
        """
        return self._like_X(self._evaluate("forward", self._check_X(X)), X)

    def score_samples(self, X: MatrixLike) -> np.ndarray:
        """Minus the reconstruction error of each row: higher is more normal.

        The error is the row's `loss` in the scaled space, averaged over its
        observed entries; a detector measures it as its `error` says.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows; NaN marks a missing entry.

        Returns
        -------
        scores : ndarray of shape (n_samples,), float64
            Non-positive.

        Raises
        ------
        ValueError
            If X lies outside the range that the loss is made for.
        """
        X = self._check_X(X)
        self._check_bounds(X, self.module_.loss)
        return self._score_samples(X)

    # Rooms: these trust.

    def _score_samples(self, X: Table | Rows) -> np.ndarray:
        scores = self._evaluate("row_error", X).astype(np.float64, copy=False)
        # NaN is what overflow in the network leaves: an error beyond all numbers.
        scores[np.isnan(scores)] = np.inf
        return np.negative(scores, out=scores)

    def _fit(
        self,
        X: MatrixLike,
        y: Any,
        sample_weight: ArrayLike | None,
        *,
        resume: bool,
        one_epoch: bool = False,
    ) -> Self:
        with self._all_or_nothing(), Interruption() as interruption:
            self._fit_watched(X, y, sample_weight, resume, one_epoch, interruption)
        if interruption.seen:
            raise KeyboardInterrupt
        return self

    # Its context is an attribute; so callbacks are taken down before any is taken back.
    @with_callbacks
    def _fit_watched(
        self,
        X: MatrixLike,
        y: Any,
        sample_weight: ArrayLike | None,
        resume: bool,
        one_epoch: bool,
        interruption: Interruption,
    ) -> None:
        """Fit, and let scikit-learn's callbacks watch it."""
        with interruption.allowed():
            job = self._validate(X, sample_weight, resume, one_epoch)
        name = "partial-fit" if one_epoch else "fit"
        task = Task.of_fit(self, name, self._max_parts(job), X, y, sample_weight)
        if job.is_settled:
            net = self.net_
            history: list[dict] = []
        else:
            with isolated(job.parts.network.draws_globally, job.seed):
                net, history = self._learn(job, task, interruption)
            # A fit that ran to its end has no more to learn from these rows.
            ran_to_its_end = not (one_epoch or interruption.seen)
            self._settled = job.fingerprint if ran_to_its_end else None
        self._finish(job, net, history)
        if not interruption.seen:
            task.end(dict)  # nothing is missing

    # Validate

    def _validate(
        self,
        X: MatrixLike,
        sample_weight: ArrayLike | None,
        resume: bool,
        one_epoch: bool,
    ) -> Job:
        """Check everything that can be wrong before any training."""
        parts = self._check_parameters(resume)
        X = self._check_X(X, reset=not resume)
        self._check_width(X.shape[1])
        rows = canonical_rows(X, self._check_weight(sample_weight, X))
        parts = self._settle_columns(parts, rows, resume)
        self._check_bounds(X, parts.loss)
        with threads_for(len(rows) * rows.n_features, self.n_threads):
            spread = moments(rows)
        if not (resume and one_epoch):  # a piece of the data may be odd
            self._check_spread(spread)
        seed = self._draw_seed()
        is_warm = self.warm_start and not one_epoch
        fingerprint = self._fingerprint(rows) if is_warm else ""
        return Job(
            parts,
            rows,
            spread,
            self._splits(rows, seed, resume, one_epoch),
            seed,
            resume,
            one_epoch,
            fingerprint,
            # Of own modules nobody can tell whether they are still the same.
            is_settled=resume
            and is_warm
            and fingerprint == self._settled
            and not isinstance(parts.network, Custom),
        )

    def _check_parameters(self, resume: bool) -> Parts:
        """Check all parameters, and make objects of the strings among them."""
        self._validate_params()
        _check_callbacks(self.callbacks)
        self._check_precision(self._resolve_device())
        network = self.network
        if isinstance(network, str):
            network = NETWORKS[network](hidden_layer_sizes=self.hidden_layer_sizes)
        elif self.hidden_layer_sizes != "auto":
            raise ValueError(
                f"hidden_layer_sizes={self.hidden_layer_sizes!r} and "
                f"network={network!r} set the same thing: give the sizes to the "
                "network object, and leave hidden_layer_sizes at 'auto'."
            )
        bottleneck = _resolve(self.bottleneck, BOTTLENECKS)
        corruption = _resolve(self.corruption, CORRUPTIONS)
        penalty = _resolve(self.penalty, PENALTIES)
        loss = _resolve(self.loss, LOSSES)
        for part in (network, bottleneck, corruption, penalty, loss):
            if isinstance(part, BaseEstimator):
                part._validate_params()
        output = network.build_output(make_activation(loss.output_activation))
        parts = Parts(network, bottleneck, corruption, penalty, loss, output)
        self._check_combination(parts)
        if resume:
            self._check_same_network()
        return parts

    def _resolved_bottleneck(self) -> Bottleneck:
        """The bottleneck as an object, also where the parameter is not valid."""
        if isinstance(self.bottleneck, str):
            return BOTTLENECKS.get(self.bottleneck, Deterministic)()
        return self.bottleneck

    def _check_combination(self, parts: Parts) -> None:
        """Raise where two valid parameters make no sense together."""
        activation = parts.network.output_activation
        allowed = ["auto"]
        if not isinstance(parts.loss, Mixed):
            allowed.append(parts.loss.output_activation)
        if (
            parts.loss.bounds is not None
            and activation not in allowed
            and not isinstance(parts.network, Custom)
        ):
            raise ValueError(
                f"loss={self.loss!r} needs output_activation="
                f"{' or '.join(map(repr, allowed))}, but network={self.network!r} has "
                f"output_activation={activation!r}."
            )
        if parts.corruption is not None:
            parts.corruption.check_level(self.corruption_level)
        for name, part in (
            ("corruption", parts.corruption),
            ("penalty", parts.penalty),
        ):
            if part is not None and part.needs_batch and self.batch_size == 1:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} compares the rows of a batch and "
                    "makes no sense with batch_size=1. Use at least two rows."
                )
        if self.init == "pca":
            hindrance = _pca_hindrance(parts)
            if hindrance is not None:
                raise ValueError(
                    f"init='pca' is not possible with {hindrance}="
                    f"{getattr(self, hindrance)!r}, which leaves no network that can "
                    "start as a linear map. Use init='auto' or init='random'."
                )

    def _check_same_network(self) -> None:
        """Raise if training is to go on with another network than it began with."""
        for name in self._STRUCTURE:
            value = getattr(self, name)
            if repr(value) != self._structure[name]:
                raise ValueError(
                    f"{name}={value!r} is not what the network was built with, "
                    f"{self._structure[name]}: training cannot go on. Set it back, or "
                    "fit anew with warm_start=False."
                )

    def _resolve_device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"device must be 'auto' or a device that PyTorch can use here, such as "
                f"'cpu'; got {self.device!r} ({error})"
            ) from error
        return device

    def _check_precision(self, device: torch.device) -> None:
        if self.precision == "tf32" and device.type != "cuda":
            raise ValueError(
                f"precision='tf32' needs a CUDA device, but device={self.device!r} is "
                f"'{device.type}' here. Use 'float32'."
            )

    def _check_X(self, X: MatrixLike, *, reset: bool = False) -> Table:
        """X as a float array or CSR matrix; with `reset`, its width is learnt."""
        if not reset:
            check_is_fitted(self)
        return validate_data(self, X, reset=reset, **_CHECK_X)

    def _settle_columns(self, parts: Parts, rows: Rows, resume: bool) -> Parts:
        """The parts with a loss that knows which columns it treats in which way."""
        if resume:
            module = self.module_
            return parts._replace(loss=module.loss, output=module.output)
        if not isinstance(parts.loss, Mixed):
            return parts
        names = getattr(self, "feature_names_in_", None)
        loss = parts.loss.bind(are_binary(rows), names)
        output = parts.output
        if isinstance(loss, Mixed) and parts.network.output_activation == "auto":
            output = loss.build_output(rows.n_features)
        return parts._replace(loss=loss, output=output)

    def _check_width(self, n_features: int) -> None:
        """Raise unless the parameters suit rows of this width."""
        if self.input_shape is None:
            return
        sizes = self.input_shape
        if not (1 <= len(sizes) <= 3 and are_sizes(sizes)):
            raise ValueError(
                "input_shape must be (length,), (height, width) or (channels, height, "
                f"width), all integers >= 1, got {sizes!r}."
            )
        if math.prod(sizes) != n_features:
            raise ValueError(
                f"input_shape={sizes!r} has {math.prod(sizes)} values, but X has "
                f"{n_features} features."
            )

    def _check_weight(
        self, sample_weight: ArrayLike | None, X: Table
    ) -> np.ndarray | None:
        if sample_weight is None:
            return None
        return _check_sample_weight(
            sample_weight, X, dtype=np.float64, ensure_non_negative=True
        )

    def _check_bounds(self, X: Table, loss: Loss) -> None:
        if loss.bounds is None:
            return
        low, high = loss.bounds
        where = "all of X"
        if isinstance(loss, Mixed):
            names = getattr(self, "feature_names_in_", np.arange(X.shape[1]))
            X = X[:, loss.binary]
            where = f"column(s) {_listed(names[loss.binary])}"
        values = X.data if sparse.issparse(X) else X
        least, most = np.nanmin(values, initial=high), np.nanmax(values, initial=low)
        if least < low or most > high:
            raise ValueError(
                f"loss={self.loss!r} needs {where} in [{low:g}, {high:g}], got values "
                f"between {least:g} and {most:g}. sklearn.preprocessing.MinMaxScaler"
                "(clip=True) brings them there."
            )

    def _draw_seed(self) -> int:
        random_state = check_random_state(self.random_state)
        return int(random_state.randint(np.iinfo(np.int32).max))

    def _splits(
        self, rows: Rows, seed: int, resume: bool, one_epoch: bool
    ) -> list[Split]:
        """Hold rows out for early stopping, if there is any."""
        n_rows = len(rows)
        early_stopping = self.early_stopping
        if early_stopping == "auto":
            early_stopping = n_rows >= 2
        elif early_stopping and n_rows < 2:
            raise ValueError(
                "early_stopping=True needs at least two distinct rows with a positive "
                f"weight, got n_samples={n_rows}."
            )
        if one_epoch or not early_stopping:
            return [Split(rows.normalised(), None)]
        order = np.arange(n_rows, dtype=np.int32)
        np.random.default_rng([seed, 0]).shuffle(order)
        n_held_out = min(math.ceil(self.validation_fraction * n_rows), n_rows - 1)
        parts = [order[:n_held_out]]
        if self.early_stopping == "auto" and n_rows <= MAX_FOLDED and not resume:
            parts = np.array_split(order, min(N_FOLDS, n_rows))
        return [
            Split(
                rows.normalised(np.setdiff1d(order, part)),
                rows.normalised(np.sort(part)),
            )
            for part in parts
        ]

    def _fingerprint(self, rows: Rows) -> str:
        """What tells one fit from another: the rows and the parameters."""
        parameters = {
            name: value
            for name, value in self.get_params(deep=False).items()
            if name not in _BESIDE
        }
        return blake2b((repr(parameters) + rows.digest()).encode()).hexdigest()

    # Learn

    def _max_parts(self, job: Job) -> int:
        """Most parts that callbacks will be told of, see `Task`."""
        if job.is_settled:
            return 0
        if len(job.splits) > 1:
            return len(job.splits) + 1
        return self._plan(job, job.splits[0]).max_epochs

    def _learn(
        self, job: Job, task: Task, interruption: Interruption
    ) -> tuple[AutoencoderNet, list[dict]]:
        """A trained net, and what is to be told of its epochs."""
        if len(job.splits) > 1:
            return self._learn_by_folds(job, task, interruption)
        (split,) = job.splits
        return self._learn_from(split, self._plan(job, split), job, task, interruption)

    def _learn_by_folds(
        self, job: Job, task: Task, interruption: Interruption
    ) -> tuple[AutoencoderNet, list[dict]]:
        """As `_learn`, with a net for each split, and one more.

        It learns from all rows, for as many epochs as were best on average; if the
        gains of all held-out rows together are not significant, it stays at a start
        worth keeping.
        """
        histories = []
        judgements = []
        for i, split in enumerate(job.splits, start=1):
            plan = self._plan(job, split)
            fold = task.part("fold", plan.max_epochs)
            part = f"fold {i} of {len(job.splits)}"
            net, history = self._learn_from(split, plan, job, fold, interruption, part)
            fitted = partial(self._as_fitted, job, net)
            is_enough = not interruption.seen and fold.end(fitted)
            if interruption.seen:  # in the training, or by a callback
                return net, history
            histories.append(history)
            judgements.append(net.judgement_)
            if is_enough:
                break
        gains, weights, n_epochs = zip(*judgements, strict=True)
        judgement = Judgement(
            np.concatenate(gains), np.concatenate(weights), float(np.mean(n_epochs))
        )
        if self._starts_at_pca(job.parts) and not judgement.is_significant:
            net.module_.load_state_dict(self._build_module(job).state_dict())
            net.best_epoch_ = 0
        else:
            everything = Split(job.rows.normalised(), None)
            n_epochs = max(1, round(judgement.n_epochs))
            plan = self._plan(job, everything)._replace(max_epochs=n_epochs)
            last = task.part("all-rows", n_epochs)
            net, _ = self._learn_from(
                everything, plan, job, last, interruption, "all rows"
            )
            if not interruption.seen:
                last.end(partial(self._as_fitted, job, net))
        return net, _mean_history(histories)

    def _learn_from(
        self,
        split: Split,
        plan: Plan,
        job: Job,
        task: Task,
        interruption: Interruption,
        part: str = "",
    ) -> tuple[AutoencoderNet, list[dict]]:
        """A net that was trained on one split, and its epochs."""
        with interruption.allowed():
            net = self._build_net(job, plan, part)
        return net, self._train(net, split, job, task, interruption)

    def _as_fitted(self, job: Job, net: AutoencoderNet) -> dict[str, Any]:
        """The attributes of an estimator that is fitted with the net as it is now."""
        fitted = copy.copy(self)
        fitted._finish(job, net.snapshot(), net.epochs_of_training)
        return dict(vars(fitted))

    # Build

    def _build_net(self, job: Job, plan: Plan, part: str) -> AutoencoderNet:
        """The skorch net that will train: a new one unless an old one can go on."""
        if not job.resume:
            self._forget(but=_FROM_VALIDATION)
            module = self._build_module(job)
        elif not job.one_epoch:
            module = copy.deepcopy(self.module_)
        elif self.net_.is_trimmed:
            module = self.module_
        else:
            return self.net_  # with its optimizer
        module.max_refinements = self._max_refinements(job.parts, module.n_components)
        return AutoencoderNet(
            module,
            objective=self._build_objective(job, module.scaler),
            plan=plan,
            seed=job.seed,
            callbacks=self._make_callbacks(part),
            device=str(self._resolve_device()),
        )

    def _build_module(self, job: Job) -> Autoencoder:
        """The PyTorch module, scaled for the rows and at its start."""
        parts, rows = job.parts, job.rows
        input_shape = tuple(self.input_shape or (rows.n_features,))
        generator = torch.Generator().manual_seed(job.seed)
        ensemble = self._ensemble(parts, rows.n_features, generator)
        n_members = 1 if ensemble is None else ensemble.n_members
        n_components, n_channels = self._resolve_n_components(parts, input_shape)
        shape = Shape(
            len(rows),
            rows.n_features,
            parts.bottleneck.encoder_width(n_components),
            n_components,
            input_shape,
            parts.code_activation,
            n_members,
        )
        networks = [parts.network.build(shape, generator) for _ in range(n_members)]
        squeezes = [
            parts.bottleneck.build(n_components, n_channels, generator)
            for _ in range(n_members)
        ]
        at_pca = self._starts_at_pca(parts)
        shift, factor = self._scaling(job.spread, parts, at_pca)
        code_factor = None
        if at_pca:
            networks, code_factor = self._started_at_pca(
                networks, job, n_components, factor
            )
        (encoder, decoder), squeeze = networks[0], squeezes[0]
        if ensemble is not None:
            encoders, decoders = zip(*networks, strict=True)
            # A penalty is given the encoders one by one.
            encoder = stack(encoders, fuse=parts.penalty is None)
            decoder, squeeze = stack(decoders), stack_squeezes(squeezes)
            if ensemble.widths is not None:
                used = CodeWidths(ensemble.widths, n_components)
                encoder = nn.Sequential(encoder, used)
        return Autoencoder(
            Scaler(job.spread.mean, shift, factor),
            encoder,
            squeeze,
            decoder,
            parts.output,
            parts.loss,
            n_components=n_components,
            code_factor=code_factor,
            draws_globally=parts.network.draws_globally,
            visible=None if ensemble is None else ensemble.visible,
        )

    def _started_at_pca(
        self,
        networks: list[tuple[nn.Module, nn.Module]],
        job: Job,
        n_components: int,
        factor: np.ndarray,
    ) -> tuple[list[tuple[nn.Module, nn.Module]], np.ndarray]:
        """The networks as the PCA of the rows, and the factor of their codes."""
        rows, mean = job.rows, job.spread.mean
        with threads_for(len(rows) * rows.n_features**2, self.n_threads):
            axes, variances = principal_axes(rows, n_components, mean, factor, job.seed)
        # Inside, the code has unit variance, which trains better; outside, the
        # units of the data where one factor scales them all, as a PCA's has.
        deviation = np.sqrt(np.where(variances > 0, variances, 1))
        started = [
            (
                start_at_map(encoder, axes / deviation[:, None]),
                start_at_map(decoder, axes.T * deviation),
            )
            for encoder, decoder in networks
        ]
        return started, deviation * (factor[0] if np.ptp(factor) == 0 else 1)

    def _ensemble(
        self, parts: Parts, n_features: int, generator: torch.Generator
    ) -> Ensemble | None:
        """Several networks to be trained side by side; None is one that sees all."""
        return None

    def _max_refinements(self, parts: Parts, n_components: int) -> int:
        """Steps that bring a code nearer to its row than the encoder does."""
        return 0

    def _resolve_n_components(
        self, parts: Parts, input_shape: tuple[int, ...]
    ) -> tuple[int, int]:
        """Width of the code, and how many consecutive components form a position."""
        network = parts.network
        fixed = network.code_shape(input_shape)
        if fixed is None:
            n_components = self.n_components
            if n_components == "auto":
                n_components = self._auto_n_components(parts, math.prod(input_shape))
            return int(n_components), int(n_components)
        n_components, n_channels = math.prod(fixed), fixed[1]
        if self.n_components not in ("auto", n_components):
            raise ValueError(
                f"network={self.network!r} has a code of {n_components} components "
                f"(positions and channels {fixed}), but n_components is "
                f"{self.n_components}. Use n_components='auto'."
            )
        return n_components, n_channels

    def _build_objective(self, job: Job, scaler: Scaler) -> Objective:
        """What training minimises: the loss, and all that is added to it."""
        parts = job.parts
        corruption = penalty = None
        if parts.corruption is not None:
            spread = self._corruption_spread(job, parts.corruption, scaler)
            corruption = parts.corruption.build(self.corruption_level, spread)
        if parts.penalty is not None:
            penalty = parts.penalty.build()
        return Objective(
            corruption, self.bottleneck_weight, penalty, self.penalty_weight
        )

    def _corruption_spread(
        self, job: Job, corruption: Corruption, scaler: Scaler
    ) -> Spread:
        """What a corruption may know of the rows, in the scaled space."""
        mean, shift, factor = (
            t.cpu().numpy() for t in (scaler.mean, scaler.shift, scaler.factor)
        )
        low = high = mean
        if corruption.needs_range:
            low, high = value_range(job.rows)
            # A piece of the data may have no value of a feature.
            low, high = np.fmin(low, mean), np.fmax(high, mean)
            if np.ptp(factor) == 0:  # features that share a scale share a range
                low, high = np.full_like(low, low.min()), np.full_like(high, high.max())
        scaled = [(values - shift) / factor for values in (mean, low, high)]
        return Spread(*(torch.from_numpy(values).float() for values in scaled))

    def _check_spread(self, spread: Moments) -> None:
        """Raise if a feature is wholly missing or too large to be scaled."""
        names = getattr(self, "feature_names_in_", np.arange(len(spread.mean)))
        missing = np.flatnonzero(np.isnan(spread.mean))
        if len(missing):
            raise ValueError(
                "X has no observed value, among rows with a positive weight, in "
                f"{len(missing)} feature(s): {_listed(names[missing])}. Drop what is "
                "always missing."
            )
        large = np.flatnonzero(~np.isfinite(spread.variance))
        if len(large):
            raise ValueError(
                "X has values too large for their variance to be computed, in "
                f"feature(s) {_listed(names[large])}."
            )

    def _starts_at_pca(self, parts: Parts) -> bool:
        return self.init != "random" and _pca_hindrance(parts) is None

    def _scaling(
        self, spread: Moments, parts: Parts, at_pca: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Shift and factor of each feature for the internal affine map."""
        shift, factor = np.zeros_like(spread.mean), np.ones_like(spread.mean)
        # A bounded output reaches the data only in their own units.
        where = parts.can_be_scaled(len(shift))
        if at_pca or self.scale is not None:
            shift[where] = spread.mean[where]
        if self.scale == "feature":
            factor[where] = spread.deviation[where]
        elif self.scale is not None and where.any():
            total = spread.variance[where].mean()
            factor[where] = math.sqrt(total) if total > 0 else 1
        return shift, factor

    def _plan(self, job: Job, split: Split) -> Plan:
        """How to train: what `"auto"` means for these rows, and when to stop."""
        n_rows = len(split.train)
        at_pca = self._starts_at_pca(job.parts)
        batch_size = self.batch_size
        if batch_size == "auto":
            batch_size = self._TRAINING.auto_batch_size(n_rows)
        max_epochs = 1 if job.one_epoch else self.max_epochs
        if max_epochs == "auto":
            n_batches = count_batches(n_rows, batch_size)
            max_epochs = self._TRAINING.auto_max_epochs(n_batches, at_pca)
        learning_rate = self.learning_rate
        if learning_rate == "auto":
            learning_rate = _defaults.auto_learning_rate(batch_size)
        return Plan(
            max_epochs=int(max_epochs),
            batch_size=int(batch_size),
            learning_rate=float(learning_rate),
            weight_decay=float(self.weight_decay),
            schedule=None if job.one_epoch else _defaults.schedule,
            early_stopping=split.held_out is not None,
            keep_start=job.resume or at_pca,
            n_iter_no_change=self.n_iter_no_change,
            tol=float(self.tol),
            trim=float(self.trim),
            compile=self.compile,
            precision=self.precision,
        )

    def _make_callbacks(self, part: str) -> list:
        """Copies of the user's callbacks, since skorch changes them, and ours."""
        callbacks = copy.deepcopy(list(self.callbacks or []))
        if self.verbose:
            callbacks.append(("progress", Progress(int(self.verbose), part)))
        return callbacks

    # Train and finish

    def _train(
        self,
        net: AutoencoderNet,
        split: Split,
        job: Job,
        task: Task,
        interruption: Interruption,
    ) -> list[dict]:
        """Run the epochs; only `partial_fit` keeps what would run more of them."""
        with (
            threads_for(net.step_work, self.n_threads),
            flushed_denormals(),
            precision_of(self.precision),
        ):
            observer = task.epochs(partial(self._as_fitted, job))
            history = net.train(split, interruption, observer)
        if not job.one_epoch:
            net.trim_for_prediction()
        return history

    def _finish(self, job: Job, net: AutoencoderNet, history: list[dict]) -> None:
        """Turn a trained net into fitted attributes."""
        self.net_ = net
        self._structure = {name: repr(getattr(self, name)) for name in self._STRUCTURE}
        self.n_components_ = net.module_.n_components
        self.mean_ = net.module_.scaler.mean.cpu().numpy().copy()
        self.loss_curve_ = getattr(self, "loss_curve_", []) + [
            epoch["train_loss"] for epoch in history
        ]
        judged = [epoch["valid_loss"] for epoch in history if "valid_loss" in epoch]
        earlier = getattr(self, "validation_loss_curve_", None)
        self.validation_loss_curve_ = (earlier or []) + judged or None
        self.n_iter_ = len(self.loss_curve_)
        for name, value in self._learnt_codes(job.rows).items():
            setattr(self, name, value)

    def _learnt_codes(self, rows: Rows) -> dict[str, Any]:
        """What only this bottleneck has learnt; of members, one row for each."""
        bottleneck = self._resolved_bottleneck()
        evaluate = partial(self._evaluate, X=rows)
        if self.module_.visible is None:
            return bottleneck.fitted_attributes(evaluate, rows.weight)

        def learnt_by(member: int) -> dict[str, Any]:
            return bottleneck.fitted_attributes(
                lambda method: evaluate(method)[:, member], rows.weight
            )

        learnt = [learnt_by(i) for i in range(len(self.module_.visible))]
        return {name: np.stack([one[name] for one in learnt]) for name in learnt[0]}

    def _forget(self, but: tuple[str, ...] = ()) -> None:
        """Drop what an earlier fit has learnt."""
        for name in list(vars(self)):
            is_learnt = name in ("_structure", "_settled") or (
                name.endswith("_") and not name.startswith("_")
            )
            if is_learnt and name not in but:
                delattr(self, name)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Take every attribute back if something fails."""
        before = dict(self.__dict__)
        try:
            yield
        except BaseException as error:
            self.__dict__.clear()
            self.__dict__.update(before)
            if isinstance(error, DivergenceError):
                # An earlier fit's weights must not pass for the ones asked for.
                self._forget()
            raise

    # Use

    @property
    def module_(self) -> Autoencoder:
        """The PyTorch module, in eval mode."""
        return self.net_.module_

    def _evaluate(self, method: str, X: Table | Rows) -> np.ndarray:
        """What a method of the module gives for all rows."""
        rows = X if isinstance(X, Rows) else Rows(X)
        out: np.ndarray = np.empty(0)
        for where, result in self._blocks_of(method, rows):
            if len(result) == len(rows):
                return result
            if where.start == 0:
                shape = (len(rows), *result.shape[1:])
                out = np.empty(shape, dtype=result.dtype)
            out[where] = result
        return out

    def _blocks_of(self, method: str, rows: Rows) -> Iterator[tuple[slice, np.ndarray]]:
        """Run a method of the module over rows, a bounded block at a time.

        It computes in the type of X, also where the training was in float32:
        then one row alone and the same row in a batch agree to 1e-15 in float64.
        """
        module = self.net_.module_in(rows.X.dtype)
        run = getattr(module, method)
        device = module.scaler.mean.device
        entries = BLOCK_ENTRIES if device.type == "cpu" else DEVICE_ENTRIES
        n_block = max(1, entries // module.values_per_row)
        with torch.inference_mode(), isolated(module.draws_globally, 0):
            for where, block in rows.blocks(n_block):
                # A tensor cannot share memory that is read-only or runs backwards.
                own = torch.from_numpy(np.require(block, requirements=["C", "W"]))
                yield where, run(own.to(device)).cpu().numpy()

    def _like_X(self, values: np.ndarray, X: MatrixLike) -> MatrixLike:
        """Values for each entry of X, in the container that `set_output` asks for."""
        container = _get_output_config("transform", self)["dense"]
        if container == "default":
            return values
        adapter = ADAPTERS_MANAGER.adapters[container]
        return adapter.create_container(values, X, _check_feature_names_in(self))

    def _is_fitted(self) -> bool:
        return hasattr(self, "net_")

    def __sklearn_is_fitted__(self) -> bool:
        return self._is_fitted()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.allow_nan = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if self._is_fitted() and self.callbacks is not None:
            # Only another fit needs them; what cannot be pickled stays behind.
            kept = [entry for entry in self.callbacks if _can_be_pickled(entry)]
            state = {**state, "callbacks": kept}
        return state


def _mean_history(histories: list[list[dict]]) -> list[dict]:
    """Mean losses of several trainings, for as long as all of them ran."""
    return [
        {
            name: float(np.mean([epoch[name] for epoch in epochs]))
            for name in LOSSES_KEPT
        }
        for epochs in zip(*histories, strict=False)
    ]


@contextmanager
def isolated(draws_globally: bool, seed: int) -> Iterator[None]:
    """Set PyTorch's global generator aside for modules that draw from it."""
    if not draws_globally:
        yield
        return
    with _GLOBAL_GENERATOR, torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _resolve(part: Any, names: dict[str, type]) -> Any:
    """The object behind a name; an object comes as a copy, so that none is shared."""
    if part is None:
        return None
    return names[part]() if isinstance(part, str) else clone(part)


def _pca_hindrance(parts: Parts) -> str | None:
    """Name of the part with which a network cannot start as a PCA, if any."""
    if not parts.network.allows_pca:
        return "network"
    if not parts.bottleneck.allows_pca:
        return "bottleneck"
    if parts.network.code_activation == "auto" and parts.code_activation != "identity":
        return "penalty"
    if isinstance(parts.loss, Mixed):
        return "loss"
    if not isinstance(parts.output, nn.Identity):
        return "loss" if parts.network.output_activation == "auto" else "network"
    return None


def _listed(names: np.ndarray) -> str:
    """The first of these names, for an error."""
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")


def _check_callbacks(callbacks: list | tuple | None) -> None:
    for entry in callbacks or []:
        callback = entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry
        is_class = isinstance(callback, type) and issubclass(callback, Callback)
        if not (is_class or isinstance(callback, Callback)):
            hint = ""
            if hasattr(callback, "on_fit_task_begin"):
                hint = " Use set_callbacks for those of scikit-learn."
            raise TypeError(
                "callbacks must hold skorch callbacks, their classes, or pairs of a "
                f"name and one of these, got {entry!r}." + hint
            )


def _can_be_pickled(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True
