"""Base class of both estimators: fit, predictions, fitted attributes, tags."""

from __future__ import annotations

import copy
import os
import pickle
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from skae import _defaults
from skae._arrays import (
    ArraySpace,
    as_numpy,
    follows_input,
    plain,
    space_of_output,
    without_dispatch,
)
from skae._callbacks import Task
from skae._checks import check_fit
from skae._compat import (
    CallbackSupportMixin,
    DocstringTooltipsMixin,
    Interval,
    Options,
    StrOptions,
    requests_frame,
    with_callbacks,
    wrap_columns,
    wrap_output,
)
from skae._fitted import FittedAttributesMixin
from skae._job import Ensemble, Parts, Trained
from skae._prediction import evaluate, score_rows
from skae._processor import environment_restored, own_settings
from skae._rows import Rows, Table, empty_rows
from skae._sources import in_memory, is_dask
from skae._storage import (
    VERSION_KEY,
    StoredParametersMixin,
    default_parameters,
    warn_of_other_version,
)
from skae._summary import Summary
from skae._tables import check_input_shape, check_X, is_collection
from skae._training import max_subtasks, train
from skae._user_callbacks import copies
from skae._version import __version__
from skae.bottlenecks import BOTTLENECKS, Bottleneck
from skae.corruptions import CORRUPTIONS, Corruption
from skae.engine.interrupt import Interruption
from skae.engine.judge import DivergenceError
from skae.engine.processes import joined_processes
from skae.losses import LOSSES, Loss
from skae.networks import MAX_SIZE, NETWORKS, Network
from skae.penalties import PENALTIES, Penalty

# Array-likes, data frames and sparse matrices, as users pass them.
MatrixLike: TypeAlias = Any


class BaseAutoencoder(
    StoredParametersMixin,
    FittedAttributesMixin,
    DocstringTooltipsMixin,
    CallbackSupportMixin,
    BaseEstimator,
    ABC,
):
    """Base class of the two estimators: training, prediction, fitted attributes."""

    # All attributes that a fit sets.
    _FITTED: ClassVar[tuple[str, ...]] = (
        "_trained",
        "n_features_in_",
        "feature_names_in_",
    )

    # Parameters that determine the structure of the network; training cannot continue
    # after they have changed. A penalty may imply an activation on the code.
    _STRUCTURE: ClassVar[tuple[str, ...]] = (
        "n_components",
        "network",
        "hidden_layer_sizes",
        "input_shape",
        "bottleneck",
        "penalty",
        "loss",
        "categorical_features",
    )

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_components": [
            Interval(Integral, 1, MAX_SIZE, closed="both"),
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
        "n_iter_no_change": [
            Interval(Integral, 1, None, closed="left"),
            Options(Real, {np.inf}),
        ],
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
        "checkpoint": [str, os.PathLike, None],
        "categorical_features": [StrOptions({"from_dtype"}), "array-like", None],
    }

    # Public methods

    @own_settings()
    def fit(
        self,
        X: MatrixLike,
        y: Any = None,
        sample_weight: ArrayLike | None = None,
        *,
        X_val: MatrixLike | None = None,
        sample_weight_val: ArrayLike | None = None,
    ) -> Self:
        """Train the network to reconstruct the rows of X.

        With ``warm_start=True``, training resumes from the network of the previous
        fit, for up to `max_epochs` further epochs.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Training rows. NaN marks a missing entry. Also a table in partitions, which
            may be larger than the memory: a Dask array, a Dask dataframe, a list of
            two-dimensional arrays or data frames, another iterable that returns a new
            iterator over them each time, or a function that does. More than 16,777,216
            entries are not loaded at once but read again in each epoch, and whole
            partitions are held out.
        y : Ignored
            Not used, present for API consistency by convention.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights. A row of weight w counts as w equal rows. None means
            that each row has weight 1. Also a Dask array or series.
        X_val : {array-like, sparse matrix} of shape (n_val, n_features), default=None
            Rows for early stopping, in place of rows that are held out from X. The
            loss on them decides when training stops, which epoch is returned, and
            whether an initial PCA remains; a single row cannot replace a PCA. Nothing
            else depends on them: they are not used in the mean, the scale, the axes or
            the threshold. `validation_fraction` then has no effect, and early stopping
            is not cross-validated. At most 32,768 of them are used, drawn at random. A
            transformer with ``early_stopping=False`` refuses them; an outlier detector
            stops by them whatever its `early_stopping`. In a pipeline,
            ``Pipeline(..., transform_input=["X_val"])`` transforms them as X.
        sample_weight_val : array-like of shape (n_val,), default=None
            Non-negative weights of the rows of `X_val`, as `sample_weight` of those of
            X.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        TypeError
            If X can be iterated only once.
        ValueError
            If a parameter or the data are invalid. This is raised before training and
            leaves the estimator as it was. Also if the training diverges, which
            leaves the estimator unfitted.
        MemoryError
            If the memory is not enough for the network or its training. The message
            names the sizes of the network and, in the training, `batch_size`; the
            estimator is as it was.
        OSError
            If no files can be written to the folder `checkpoint`. The estimator
            remains as it was.
        KeyboardInterrupt
            On Ctrl-C, after the estimator has been fitted with the weights of the best
            epoch so far, which are the initial ones before the first epoch has ended.

        Warns
        -----
        ConvergenceWarning
            When the estimator is fitted, if a given `max_epochs` has ended the training
            while the held-out error still decreased, or before it had decreased, so
            that the initial weights are kept; and if no epoch was better than random
            initial weights. A transformer also warns if no code explains the share of
            the variance that `n_components` requests, if more than a tenth of its
            components are constant over the training rows, apart from those beyond the
            rank of the rows, and if it explains less than a tenth of the variance that
            a PCA with as many components explains.
        """
        is_resumed = isinstance(self.warm_start, bool | np.bool_) and self.warm_start
        earlier = self._trained if is_resumed and self._is_fitted() else None
        try:
            with self._restored_after_error():
                self._fit(
                    X,
                    y,
                    sample_weight,
                    X_val=X_val,
                    sample_weight_val=sample_weight_val,
                    earlier=earlier,
                )
        except DivergenceError:
            # The weights of an earlier fit would not match the present parameters.
            self._clear_fitted_attributes()
            raise
        for message in self._trained.warnings:
            # One level is that of the decorator.
            warnings.warn(message, ConvergenceWarning, stacklevel=3)
        return self

    @own_settings()
    def partial_fit(
        self, X: MatrixLike, y: Any = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Train for one epoch on the rows of X.

        The first call builds the network and determines its initial weights, its
        scaling and `mean_`. Later calls, and calls on an estimator that `fit` has
        trained, continue with this network. No rows are held out, and the learning rate
        is constant.

        Parameters of the training that are changed between two calls take effect at the
        next call, for example `learning_rate`, `penalty_weight`, `corruption_level`,
        `callbacks` and `device`. Parameters of the network cannot change.

        A call that fails leaves the estimator as it was: after an error, after a
        training that diverges, and after Ctrl-C before the epoch has ended.

        An outlier detector updates the mean residuals of its score as running means
        over the calls, in which the rows before the last call count as at most 1,000
        rows. Its `offset_` is computed from a record of the scores of all calls, each
        computed at the end of its call. The scores of earlier calls also count as at
        most 1,000 rows, and their weight decreases with the cube of the number of rows
        seen so far, because they were computed by a network with less training.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Training rows. NaN marks a missing entry.
        y : Ignored
            Not used, present for API consistency by convention.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights. A row of weight w counts as w equal rows. None means
            that each row has weight 1.

        Returns
        -------
        self : object
            The fitted estimator.

        Raises
        ------
        ValueError
            If a parameter or the data are invalid, if a parameter of the network
            differs from that of the first call, or if the training diverges.
        MemoryError
            If the memory is not enough for the training, as in `fit`.
        KeyboardInterrupt
            On Ctrl-C.
        """
        earlier = self._trained if self._is_fitted() else None
        with self._restored_after_error():
            return self._fit(X, y, sample_weight, earlier=earlier, is_partial=True)

    @own_settings()
    @follows_input
    def reconstruct(self, X: MatrixLike) -> MatrixLike:
        """Encode rows and decode their codes.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows. NaN marks a missing entry.

        Returns
        -------
        X_hat : ndarray or data frame of shape (n_samples, n_features)
            Reconstructions in the units of X, also of the missing entries, in the
            floating-point type of X. A data frame, with the columns and the index of X,
            if `set_output` requests one. With categorical features, an array of objects
            with categories and numbers, see `categorical_features`.
        """
        check_is_fitted(self)
        X_hat = self._evaluate_in_type("forward", check_X(self, X))
        return self._in_features(X_hat, X)

    @own_settings()
    @follows_input
    def score_samples(self, X: MatrixLike) -> np.ndarray:
        """Return minus the error of each row.

        A high score means a normal row. For a transformer, the error is the row's
        `loss` in the scaled space, averaged over the observed entries. For an outlier
        detector, it is the formula in the description of the class, which combines the
        reconstruction error, determined by the parameter `error`, with distances to
        training rows if `n_neighbors` is not 0.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows. NaN marks a missing entry.

        Returns
        -------
        scores : ndarray of shape (n_samples,), float64
            Non-positive scores. A row without an observed entry has the median score
            of the training rows. A value outside the range of the loss adds 1e6 times
            its distance to the range to the entry's error, and so does a value beyond
            1e16 in the internally scaled space; a distance counts as at most 1e16.
            -inf if the network overflows.
        """
        check_is_fitted(self)
        return self._score_samples(check_X(self, X))

    # Fitting

    @with_callbacks  # type: ignore[untyped-decorator]
    def _fit(
        self,
        X: MatrixLike,
        y: Any,
        sample_weight: ArrayLike | None,
        *,
        earlier: Trained | None,
        is_partial: bool = False,
        X_val: MatrixLike | None = None,
        sample_weight_val: ArrayLike | None = None,
    ) -> Self:
        is_in_memory = not is_dask(X)
        space = space_of_output(X) if is_in_memory else None
        X = as_numpy(X, "X") if is_in_memory else X
        sample_weight = as_numpy(in_memory(sample_weight), "sample_weight")
        X_val = as_numpy(X_val, "X_val")
        sample_weight_val = as_numpy(sample_weight_val, "sample_weight_val")
        with (
            without_dispatch(),
            Interruption() as interruption,
            environment_restored(),
            joined_processes() as processes,
        ):
            # Ctrl-C raises KeyboardInterrupt during validation. Later it ends the
            # training, and is raised when the estimator has its fitted attributes.
            with interruption.allowed():
                job = check_fit(
                    self,
                    X,
                    sample_weight,
                    X_val=X_val,
                    sample_weight_val=sample_weight_val,
                    earlier=earlier,
                    is_partial=is_partial,
                    array_space=plain(space),
                )
            name = "partial-fit" if is_partial else "fit"
            # Of several processes, the first one notifies scikit-learn's callbacks.
            observed = self if processes.rank == 0 else None
            task = Task.of_fit(
                observed,
                name,
                lambda: max_subtasks(job),
                X,
                y,
                sample_weight,
                job if is_collection(self, X) else None,
            )
            trained = train(job, task, interruption)
            self._adopt(trained)
            if not interruption.requested:
                task.end(lambda: trained)
        if interruption.requested:
            raise KeyboardInterrupt
        return self

    def _adopt(self, trained: Trained) -> None:
        """Replace all fitted attributes by those of the result of a training."""
        attributes = self._attributes_of(trained)
        self._clear_fitted_attributes()
        self.__dict__.update(attributes)

    def _attributes_of(self, trained: Trained) -> dict[str, Any]:
        """Return the fitted attributes that follow from the result of a training."""
        attributes: dict[str, Any] = {
            "_trained": trained,
            "n_features_in_": trained.n_features,
        }
        if trained.feature_names is not None:
            attributes["feature_names_in_"] = trained.feature_names
        return attributes

    def _clear_fitted_attributes(self) -> None:
        """Remove all fitted attributes."""
        for name in self._FITTED:
            self.__dict__.pop(name, None)

    @contextmanager
    def _restored_after_error(self) -> Iterator[None]:
        """Restore the fitted attributes if a callback raises after they were set."""
        before = {k: v for k, v in vars(self).items() if k in self._FITTED}
        try:
            yield
        except Exception:  # after KeyboardInterrupt the model is complete
            self._clear_fitted_attributes()
            self.__dict__.update(before)
            raise

    # Methods that the subclasses override

    @abstractmethod
    def _auto_n_components(
        self, parts: Parts, n_features: int, scale: str | None
    ) -> int:
        """Return the width of the code for ``n_components="auto"``."""

    def _resolve_scale(
        self, parts: Parts, summary: Summary, has_categories: bool
    ) -> str | None:
        """Return `scale` without ``"auto"``."""
        if self.scale != "auto":
            return self.scale
        return "feature" if has_categories else "global"

    def _auto_loss(
        self, n_features: int, scale: str | None, has_categories: bool
    ) -> str:
        """Return the name of the loss for ``loss="auto"``, where it is allowed.

        Parameters
        ----------
        scale : {"global", "feature"} or None
            The resolved value, here and in the methods below.
        """
        return "squared_error"

    def _ensemble(
        self, parts: Parts, n_features: int, n_columns: int, scale: str | None
    ) -> Ensemble | None:
        """Return the ensemble to train, or None for one network with all features.

        The columns that encode the features determine the time of the training.
        """
        return None

    @abstractmethod
    def _training_defaults(
        self,
        parts: Parts,
        ensemble: Ensemble | None,
        n_features: int,
        scale: str | None,
    ) -> _defaults.TrainingDefaults:
        """Return rules for the parameters of the training that are ``"auto"``."""

    def _max_refinements(self, parts: Parts, n_components: int) -> int:
        """Return the number of steps by which `transform` refines the code."""
        return 0

    @property
    def _completes_rows(self) -> bool:
        """Whether missing entries are replaced by their expectation, not the mean."""
        return False

    @property
    def _has_ordered_components(self) -> bool:
        """Whether a fit orders the components, by its parameters."""
        return False

    @property
    def _requested_share(self) -> float | None:
        """Share of the variance that the code has to explain, if that is given."""
        return None

    def _resolve_error(self, parts: Parts, scale: str | None) -> str | None:
        """Return the error that scores rows, ``"log"`` or ``"loss"``.

        None means that training rows are not scored.
        """
        return None

    def _resolve_n_neighbors(
        self, parts: Parts, n_features: int, scale: str | None
    ) -> int:
        """Return the number of the nearest row whose distance is a part of scores."""
        return 0

    def _has_relative_distances(self, n_features: int, scale: str | None) -> bool:
        """Return whether scores have a mean relative distance to several rows."""
        return False

    @property
    def _whitens_codes(self) -> bool:
        """Whether the next fit whitens codes."""
        return False

    def _draws_rows(self, parts: Parts) -> bool:
        """Return whether `sample` exists, for which `fit` estimates densities."""
        return False

    def _check_combination(self, parts: Parts) -> None:
        """Raise ValueError if valid parameters cannot be combined."""
        return

    def _check_validation_rows(self) -> None:
        """Raise ValueError if parameters do not allow rows passed for validation."""
        return

    def _check_width(self, n_features: int) -> None:
        """Raise ValueError if a parameter does not suit the number of features."""
        check_input_shape(self.input_shape, n_features)

    # Private prediction methods; except in the first, the rows are already validated

    def _evaluate(self, method: str, X: Table) -> np.ndarray:
        """Return what a method of the module returns for rows.

        Training runs in float32. Rows in float64 are evaluated in float64, in which the
        results for a row alone and for the same row in a batch agree to 1e-15. Rows in
        float32 are evaluated in float64 where float32 is not exact enough, which
        `Autoencoder.needs_float64` decides; the type of the result is then float64.
        """
        return evaluate(self._trained.net.module_for(method, X.dtype), method, Rows(X))

    def _evaluate_in_type(self, method: str, X: Table) -> np.ndarray:
        """Return what `_evaluate` returns, in the floating-point type of X."""
        return cast(self._evaluate(method, X), X.dtype)

    def _score_samples(self, X: Table) -> np.ndarray:
        scores = self._score_rows(Rows(X))
        scores[empty_rows(X)] = self._empty_row_score
        return scores

    def _score_rows(self, rows: Rows) -> np.ndarray:
        """Return the scores of rows with observed entries."""
        module = self._trained.net.module_for("row_error", rows.X.dtype)
        return score_rows(module, rows)

    @property
    def _empty_row_score(self) -> float:
        """Score of a row without an observed entry: the median training score."""
        return self._trained.median_score

    def _in_features(self, rows: np.ndarray, X: Any = None) -> Any:
        """Return rows of the network as rows of the user.

        Parameters
        ----------
        rows : ndarray of shape (n_samples, n_columns)
            In the units of the data; of categories, the one with the largest entry is
            returned.
        X : array-like or data frame of shape (n_samples, n_features), default=None
            Gives a data frame, if `set_output` requests one, its index. None returns an
            array.
        """
        categories = self._trained.categories
        if X is None:
            return rows if categories is None else categories.decoded_array(rows)
        if categories is None:
            return wrap_output(self, rows, X)
        if not requests_frame(self):
            return categories.decoded_array(rows)
        return wrap_columns(self, categories.decode(rows), categories, X)

    # scikit-learn's protocols

    def __sklearn_is_fitted__(self) -> bool:
        return self._is_fitted()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        has_categories = self.categorical_features is not None
        tags.input_tags.sparse = not has_categories
        tags.input_tags.string = tags.input_tags.categorical = has_categories
        tags.input_tags.allow_nan = True
        tags.array_api_support = True
        return tags

    def __sklearn_array_api_convert__(self, converter: Callable[[Any], Any]) -> Self:
        """Return a copy whose inputs and array attributes are in another library.

        `move_estimator_to` of scikit-learn >= 1.9 calls it.

        Parameters
        ----------
        converter : callable
            Maps an array to one with the same values.
        """
        if not self._is_fitted():
            return clone(self)
        return self._moved_to(ArraySpace.of(converter(self.mean_)))

    def _moved_to(self, space: ArraySpace | None) -> Self:
        """Return a fitted copy for inputs in a library and on a device."""
        moved = copy.copy(self)
        moved._trained = replace(self._trained, array_space=plain(space))
        return moved

    def __sklearn_clone__(self) -> Self:
        # Callbacks are not cloned by their constructor: they may hold what cannot be
        # copied, and attributes that are no parameters.
        if "callbacks" not in self.get_params(deep=False):
            return super().__sklearn_clone__()
        bare = object.__new__(type(self))
        bare.__dict__.update(vars(self), callbacks=None)
        cloned = super(BaseAutoencoder, bare).__sklearn_clone__()
        cloned.callbacks = _copied_callbacks(self.callbacks)
        return cloned

    def __copy__(self) -> Self:
        new = object.__new__(type(self))
        new.__dict__.update(vars(self))
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = memo[id(self)] = object.__new__(type(self))
        state = copy.deepcopy({**vars(self), "callbacks": None}, memo)
        new.__dict__.update(state, callbacks=_copied_callbacks(self.callbacks))
        return new

    def __getstate__(self) -> dict[str, Any]:
        state = {**super().__getstate__(), VERSION_KEY: __version__}
        if self._is_fitted() and self.callbacks is not None:
            # Only another fit needs callbacks, so those that cannot be pickled may be
            # left out.
            kept = [entry for entry in self.callbacks if _can_be_pickled(entry)]
            state = {**state, "callbacks": kept}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        warn_of_other_version(type(self).__name__, state.pop(VERSION_KEY, None))
        self._restore(state)

    def _restore(self, state: dict[str, Any]) -> None:
        """Set the attributes of a stored estimator.

        Parameters that the version that stored it lacked get their defaults.
        """
        super().__setstate__(state)
        if self._is_fitted():
            defaults = default_parameters(type(self))
            for name in (*self._STRUCTURE, "init"):
                self._trained.parameters.setdefault(name, defaults[name])


def cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Cast to a floating-point type; values beyond its range become its largest."""
    if values.dtype == dtype:
        return values
    largest = np.finfo(dtype).max
    return values.clip(-largest, largest).astype(dtype)


def _copied_callbacks(callbacks: Any) -> Any:
    """Return a copy of the parameter `callbacks`, which may be of an invalid type."""
    if not isinstance(callbacks, list | tuple):
        return callbacks
    return type(callbacks)(copies(callbacks))


def _can_be_pickled(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True
