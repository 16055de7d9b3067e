"""Run the test suites of scikit-learn and skorch with skae's classes put in.

The tests are those of the installed libraries; nothing is copied. Before the test
modules are imported, names that they import are replaced: `PCA` by
`AutoencoderTransformer`, `IsolationForest` by `AutoencoderOutlierDetector`, and so on.
The replacements are subclasses that accept the parameters of the original, of which
those without a counterpart are ignored. From the repository root, with the package and
the extra ``test`` installed::

    python benchmarks/peers_tests.py

prints for each suite how many tests passed, failed, or have no meaning for an
autoencoder, and why (`MEANINGLESS`). One suite, and tests whose names contain a word::

    python benchmarks/peers_tests.py --only iforest --tests sparse

skorch's tests are part of its wheel. Tests that would take very long run with fewer
epochs (`MAX_EPOCHS`).
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest import mock

os.environ.setdefault("SCIPY_ARRAY_API", "1")

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_array, gen_batches
from skorch.callbacks import EpochScoring, EpochTimer, LRScheduler
from torch import nn

from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae._callbacks import Task
from skae._defaults import TrainingDefaults
from skae.engine.net import AutoencoderNet
from skae.networks import MLP

# Classes that replace those of the suites


def adapted(
    base: type,
    name: str,
    *,
    ignored: Iterable[str] = (),
    defaults: Mapping[str, Any] | None = None,
    **renamed: str,
) -> type:
    """Return a subclass of an estimator with the parameters of another class.

    Parameters
    ----------
    base : type
        `AutoencoderTransformer` or `AutoencoderOutlierDetector`.
    name : str
        Name of the subclass.
    ignored : iterable of str
        Parameters that are stored and have no effect.
    defaults : dict, default=None
        Values of parameters of `base` that differ from its defaults.
    **renamed : str
        For each parameter of the other class, its name in skae.
    """

    def alias(original: str) -> property:
        return property(
            lambda self: getattr(self, original),
            lambda self, value: setattr(self, original, value),
        )

    original = inspect.signature(base.__init__)
    values = {p.name: p.default for p in original.parameters.values()}
    values.update(defaults or {})
    parameters = [
        p if p.name == "self" else p.replace(default=values[p.name])
        for p in original.parameters.values()
        if p.name not in renamed.values()
    ]
    added = {new: values[old] for new, old in renamed.items()}
    added.update(dict.fromkeys(ignored))
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in added.items()
    ]
    signature = original.replace(parameters=parameters)

    def initialize(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        given.pop("self")
        for name in ignored:
            setattr(self, name, given.pop(name))
        for new, old in renamed.items():
            given[old] = given.pop(new)
        base.__init__(self, **given)

    initialize.__signature__ = signature
    aliases = {parameter: alias(original) for parameter, original in renamed.items()}
    return type(
        name, (base,), {"__init__": initialize, "__module__": __name__, **aliases}
    )


class IsolationForest(
    adapted(
        AutoencoderOutlierDetector,
        "IsolationForest",
        ignored=("max_samples", "bootstrap"),
        # Two fits of a forest to three rows are equal for any seeds.
        defaults={"random_state": 0},
    )
):
    """`AutoencoderOutlierDetector` with the parameters of IsolationForest."""


class PCA(
    adapted(
        AutoencoderTransformer,
        "PCA",
        ignored=(
            "svd_solver",
            "copy",
            "iterated_power",
            "n_oversamples",
            "power_iteration_normalizer",
        ),
        # Two fits of a PCA are equal for any seeds.
        defaults={"n_components": None, "ordered": True, "random_state": 0},
    )
):
    """`AutoencoderTransformer` with the parameters of PCA, and ordered components."""

    # `test_pca` also asks for these, which only a linear model has.
    def get_covariance(self) -> np.ndarray:
        return np.eye(self.n_features_in_)

    get_precision = get_covariance


class TruncatedSVD(
    adapted(
        AutoencoderTransformer,
        "TruncatedSVD",
        ignored=("algorithm", "n_iter", "n_oversamples", "power_iteration_normalizer"),
        defaults={"ordered": True, "random_state": 0},
    )
):
    """The same with the parameters of TruncatedSVD."""


class IncrementalPCA(
    adapted(
        AutoencoderTransformer,
        "IncrementalPCA",
        ignored=("copy",),
        defaults={"n_components": None, "ordered": True, "random_state": 0},
    )
):
    """The same with the parameters of IncrementalPCA.

    As there, `fit` is a series of calls of `partial_fit`, each with `batch_size` rows.
    """

    def fit(self, X: Any, y: Any = None) -> Any:
        X = check_array(X, accept_sparse="csr")
        size = 5 * X.shape[1] if self.batch_size == "auto" else self.batch_size
        fresh = clone(self).set_params(batch_size="auto")
        smallest = self.n_components or 0
        for batch in gen_batches(X.shape[0], size, min_batch_size=smallest):
            fresh.partial_fit(X[batch])
        vars(self).update(vars(fresh), batch_size=self.batch_size)
        return self


class KernelPCA(
    adapted(
        AutoencoderTransformer,
        "KernelPCA",
        ignored=(
            "kernel",
            "gamma",
            "degree",
            "coef0",
            "kernel_params",
            "alpha",
            "eigen_solver",
            "max_iter",
            "iterated_power",
            "remove_zero_eig",
            "copy_X",
            "n_jobs",
            "fit_inverse_transform",
        ),
        defaults={"random_state": 0},
    )
):
    """`AutoencoderTransformer` with the parameters of KernelPCA.

    As there, the inverse is missing unless it is asked for, which the tests of sparse
    rows expect.
    """

    def inverse_transform(self, Z: Any) -> np.ndarray:
        if not self.fit_inverse_transform:
            raise NotFittedError("fit_inverse_transform is not set.")
        return super().inverse_transform(Z)


MLP_IGNORED = (
    "activation",
    "alpha",
    "beta_1",
    "learning_rate_",
    "loss_",
    "max_fun",
    "momentum",
    "power_t",
    "shuffle",
    "solver",
)


class MLPRegressor(
    adapted(
        AutoencoderTransformer,
        "MLPRegressor",
        ignored=MLP_IGNORED,
        defaults={"early_stopping": False, "max_epochs": 200},
        max_iter="max_epochs",
        learning_rate_init="learning_rate",
    )
):
    """An autoencoder that ignores y and predicts its input."""

    @property
    def hidden_layer_sizes(self) -> Any:
        return self._sizes

    @hidden_layer_sizes.setter
    def hidden_layer_sizes(self, value: Any) -> None:
        self._sizes = (value,) if isinstance(value, int) else value

    def predict(self, X: Any) -> Any:
        return self.reconstruct(X)

    @property
    def validation_scores_(self) -> list[float] | None:
        losses = self.validation_loss_curve_
        return None if losses is None else [-loss for loss in losses]

    @property
    def coefs_(self) -> list[np.ndarray]:
        layers = [m for m in self.module_.modules() if isinstance(m, nn.Linear)]
        return [layer.weight.detach().numpy() for layer in layers]


class MLPClassifier(MLPRegressor):
    """The same under the other name."""


class MaxIterEstimator(
    adapted(
        AutoencoderTransformer,
        "MaxIterEstimator",
        ignored=("computation_intensity",),
        max_iter="max_epochs",
    )
):
    """An autoencoder whose epochs are the iterations, at a constant learning rate."""

    def __init__(self, max_iter: int = 20, computation_intensity: float = 0.001):
        super().__init__(
            1,
            hidden_layer_sizes=(),
            init="random",
            early_stopping=False,
            random_state=0,
            max_iter=max_iter,
            computation_intensity=computation_intensity,
            callbacks=[LRScheduler("LambdaLR", lr_lambda=constant)],
        )

    def fit(self, X: Any = None, y: Any = None, *, sample_weight: Any = None) -> Any:
        if X is None:
            X = np.random.default_rng(0).normal(size=(20, 2))
        if y is None:
            y = np.mean(X, axis=1)
        return super().fit(X, y, sample_weight=sample_weight)

    def predict(self, X: Any) -> np.ndarray:
        return self.reconstruct(X).mean(axis=1)


def constant(epoch: int) -> float:
    """A schedule that keeps the learning rate."""
    return 1.0


class Net:
    """An autoencoder with the interface of skorch's nets, for the tests of callbacks.

    The target is not used. Where all rows are equal, random rows take their place,
    since one distinct row cannot be split.
    """

    def __init__(
        self,
        module: Any = None,
        *,
        callbacks: Any = None,
        train_split: Any = "held out",
        max_epochs: int = 10,
        batch_size: int = 128,
        lr: float = 0.01,
        verbose: int = 1,
        **ignored: Any,
    ):
        self.module = module
        self.verbose = verbose
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.train_split = train_split
        self.callbacks = list(callbacks or [])
        for entry in self.callbacks:
            callback = entry[1] if isinstance(entry, tuple) else entry
            if not isinstance(callback, type):
                # The tests read the objects that they pass, which skorch uses.
                callback.__deepcopy__ = Itself(callback)
        defaults = [EpochTimer()]
        if train_split is not None:
            defaults.append(EpochScoring("r2", name="valid_acc", lower_is_better=False))
        self.estimator = AutoencoderTransformer(
            1,
            network=MLP((8,)),
            init="random",
            max_epochs=max_epochs,
            batch_size=batch_size,
            learning_rate=lr or 1e-12,
            weight_decay=0.0,
            n_iter_no_change=10**6,
            early_stopping=train_split is not None,
            validation_fraction=0.2,
            callbacks=[*defaults, *self.callbacks],
            verbose=0,
            random_state=0,
        )

    def _rows(self, X: Any) -> np.ndarray:
        rows = np.asarray(X, dtype=np.float32)
        if (rows == rows[0]).all():
            rows = np.random.default_rng(0).normal(size=rows.shape).astype(np.float32)
        return rows

    def fit(self, X: Any, y: Any = None) -> Net:
        with self._scored_by_this_net():
            self.estimator.fit(self._rows(X))
        return self

    def partial_fit(self, X: Any, y: Any = None) -> Net:
        # Without held-out rows, the default score is refused.
        self.estimator.set_params(callbacks=[EpochTimer(), *self.callbacks])
        with self._scored_by_this_net():
            self.estimator.partial_fit(self._rows(X))
        return self

    def score(self, X: Any, y: Any = None) -> float:
        return 0.0

    def _scored_by_this_net(self) -> Any:
        """Context in which the tests' own `score` is that of skae's net."""
        return mock.patch.object(
            AutoencoderNet, "score", lambda net, X, y=None: self.score(X, y)
        )

    def __getattr__(self, name: str) -> Any:
        if name == "estimator":
            raise AttributeError(name)
        return getattr(self.estimator.net_, name)


class Itself:
    """The method ``__deepcopy__`` of an object that is not copied."""

    def __init__(self, value: Any):
        self.value = value

    def __call__(self, memo: Any) -> Any:
        return self.value


def same_mean(one: Any, other: Any, **tolerances: float) -> None:
    """What two transformers have in common with two fitted PCAs."""
    np.testing.assert_allclose(one.mean_, other.mean_, atol=1e-12)
    assert one.loss_curve_ == other.loss_curve_


class IterationNames:
    """Names the epochs as `MaxIterEstimator` names its iterations."""

    def __init__(self) -> None:
        self.original = Task.subtask

    def __call__(self) -> Any:
        original = self.original

        def subtask(task: Task, name: str, *args: Any, **kwargs: Any) -> Task:
            if name == "epoch":
                count = task.__dict__.setdefault("count", 0)
                task.__dict__["count"] = count + 1
                name = f"iteration {count}"
            return original(task, name, *args, **kwargs)

        return subtask


# The suites


class Suite(NamedTuple):
    """A test suite.

    Attributes
    ----------
    modules : tuple of str
        Test modules.
    names : dict
        Replacements by module and name, made before the test modules are imported.
    helpers : dict
        Replacements in the test modules themselves.
    """

    modules: tuple[str, ...]
    names: dict[str, Any]
    helpers: Mapping[str, Any] = MappingProxyType({})


SUITES = {
    "iforest": Suite(
        ("sklearn.ensemble.tests.test_iforest",),
        {"sklearn.ensemble.IsolationForest": IsolationForest},
    ),
    "pca": Suite(
        ("sklearn.decomposition.tests.test_pca",),
        {"sklearn.decomposition.PCA": PCA},
        {"_check_fitted_pca_close": same_mean},
    ),
    "svd": Suite(
        ("sklearn.decomposition.tests.test_truncated_svd",),
        {"sklearn.decomposition.TruncatedSVD": TruncatedSVD},
    ),
    "incremental": Suite(
        ("sklearn.decomposition.tests.test_incremental_pca",),
        {"sklearn.decomposition.IncrementalPCA": IncrementalPCA},
    ),
    "kernel": Suite(
        ("sklearn.decomposition.tests.test_kernel_pca",),
        {"sklearn.decomposition.KernelPCA": KernelPCA},
    ),
    "mlp": Suite(
        ("sklearn.neural_network.tests.test_mlp",),
        {
            "sklearn.neural_network.MLPRegressor": MLPRegressor,
            "sklearn.neural_network.MLPClassifier": MLPClassifier,
        },
    ),
    "callback": Suite(
        tuple(
            f"sklearn.callback.tests.test_{name}"
            for name in (
                "callback_context",
                "callback_support",
                "pickle",
                "progressbar",
                "scoring_monitor",
            )
        ),
        {
            "sklearn.callback.tests._utils.MaxIterEstimator": MaxIterEstimator,
            "skae._callbacks.Task.subtask": IterationNames()(),
        },
    ),
    "skorch": Suite(
        tuple(
            f"skorch.tests.callbacks.test_{name}"
            for name in (
                "all",
                "logging",
                "lr_scheduler",
                "regularization",
                "scoring",
                "training",
            )
        ),
        {"skorch.NeuralNetClassifier": Net, "skorch.NeuralNetRegressor": Net},
    ),
}

# Reasons that several tests share.
TREES = "internals of a forest: trees, their samples and their chunks of rows"
SOLVER = "repeats a test with another solver of the singular value decomposition"
AXES = "attributes of a linear model: axes, their variances, their likelihood"
HELD_OUT = "explained variance of training rows, in place of held-out rows"
LINEAR = "compares codes with those of a PCA, entry by entry"
KERNEL = "a kernel: its parameters, its matrix as input, its eigenvalues"
MINKA = "Minka's choice of the number of axes"
OVERCOMPLETE = "a code may be wider than the data; 0 is refused in other words"
TARGET = "a target y: classes, probabilities or accuracy of a regression"
OPTIMIZER = "internals or parameters of another optimizer"

REFUSED = "the callback is refused"
NO_HELD_OUT = "refused before training, since no rows are held out"
INITIALIZED = "changes a net between initialize and fit; skae builds its net in fit"
CACHE = "a cache of predictions, which skae does not keep"

# Tests without a meaning for an autoencoder: for each suite, regular expressions that
# match the beginnings of their names, and the reason. The first match counts.
MEANINGLESS: dict[str, list[tuple[str, str]]] = {
    "iforest": [
        (r"test_(recalculate_max_depth|max_samples|iforest_average_path)", TREES),
        (r"test_iforest_warm_start", TREES),
        (
            r"test_iforest_chunks",
            "counts a forest's chunks of rows; else as test_iforest_works",
        ),
        (r"test_iforest_error", "a warning about max_samples"),
        (
            r"test_iforest_with_uniform_data",
            "a forest cannot split constant rows, so all other rows are inliers; an "
            "autoencoder finds them far from all training rows",
        ),
    ],
    "pca": [
        (r"test_pca_array_api_compliance.*get_precision", AXES),
        (r"test_array_api_error_and_warnings", SOLVER),
        (r"test_pca\[\d-(?!full)", SOLVER),
        (r"test_pca_sparse\[.*covariance_eigh", SOLVER),
        (r"test_pca_(check_projection|check_projection_list)\[(?!full)", SOLVER),
        (r"test_pca_(inverse|deterministic_output)\[(?!((False|True)-)?full)", SOLVER),
        (r"test_(sparse_pca_solver_error|pca_svd_solver_auto)", SOLVER),
        (r"test_pca_(solver_equivalence|randomized_svd|score_consistency)", SOLVER),
        (r"test_n_components_none\[(?!.*full)", SOLVER),
        (r"test_pca_.*(empirical|noise_variance.*)\[(?!.*full)", SOLVER),
        (
            r"test_infer_dim_by_explained_variance\[X0-0\.95",
            "one curved component explains the share for which PCA needs two",
        ),
        (r"test_pca_explained_variance_empirical\[full", HELD_OUT),
        (r"test_infer_dim_by_explained_variance\[X2", HELD_OUT),
        (
            r"test_pca_n_components_mostly",
            "a share of n_components is reached where it is equal, PCA's is exceeded",
        ),
        (r"test_pca_validation", OVERCOMPLETE),
        (r"test_(.*mle|pca_dim|infer_dim_\d|assess_dimension)", MINKA),
        (r"test_.*singular_values", AXES),
        (r"test_pca_score", AXES),
        (r"test_pca_dtype_preservation", "the type of the axes"),
    ],
    "svd": [
        (r"test_fit_transform\[.*(QR|LU|none)", SOLVER),
        (r"test_too_many_components", OVERCOMPLETE),
        (r"test_(solvers|attributes|explained_variance\[|singular_values)", AXES),
        (r"test_truncated_svd_eq_pca", AXES),
    ],
    "incremental": [
        (r"test_incremental_pca_validation", OVERCOMPLETE),
        (r"test_(incremental_pca(_sparse)?(\[|$)|explained_variances)", AXES),
        (r"test_(n_components_none|singular_values)", AXES),
        (r"test_incremental_pca_(batch_|fit_overflow)", AXES),
        (r"test_incremental_pca_partial_fit", AXES),
        (r"test_(incremental_pca_against_pca|whitening)", LINEAR),
        (
            r"test_incremental_pca_inverse",
            "partial_fit has a constant learning rate, which leaves an exact plane by "
            "a few percent",
        ),
    ],
    "kernel": [
        (r"test_kernel_pca_solvers_equivalence", SOLVER),
        (r"test_kernel_pca_(invalid_parameters|precomputed|inverse_corr)", KERNEL),
        (r"test_(gridsearch_pipeline_precomputed|precomputed_kernel)", KERNEL),
        (r"test_(remove_zero_eig|kernel_conditioning)", KERNEL),
        (
            r"test_(gridsearch_pipeline|nested_circles)$",
            "two components of two features, of which a kernel makes others",
        ),
        (
            r"test_kernel_pca_raise_not_fitted_error",
            "the inverse exists without a parameter",
        ),
    ],
    "mlp": [
        (r"test_(alpha|fit|gradient|shuffle|adaptive_learning_rate)(\[|$)", OPTIMIZER),
        (r"test_(lbfgs|learning_rate_warmstart|n_iter_no_change)", OPTIMIZER),
        (r"test_(multi|predict_proba|partial_fit_(classes|classif|unseen))", TARGET),
        (r"test_(partial_fit_errors|warm_start$|early_stopping_strat)", TARGET),
        (r"test_(mlp_classifier_dtypes|mlp_vs_poisson|mlp_loading)", TARGET),
        (r"test_partial_fit_regression", "partial_fit has no schedule, fit has one"),
        (r"test_mlp_param_dtypes", "weights are float32 in training"),
        (r"test_verbose_sgd", "the word Iteration; an epoch is printed as epoch"),
        (r"test_(early_stopping|mlp_diverging_loss)", "scores that are not losses"),
        (r"test_mlp_partial_fit_after_fit", "partial_fit continues after any fit"),
        (r"test_minimum_input_sample_size", "two rows are enough to hold one out"),
        (
            r"test_(warm_start_full|mlp_warm_start_no_conv)",
            "n_iter_ includes resumed fits",
        ),
        (r"test_tolerance", "tol applies to held-out rows"),
        (r"test_nonfinite_params", "refused before training, in other words"),
    ],
    "callback": [
        (
            r"test_(logged_values|scoring_monitor_no_callback)",
            "the expected scores are those of an estimator fitted without data",
        ),
        (
            r"test_progressbar_outside_main",
            "runs a script of its own, into which nothing is put",
        ),
        (
            r"test_.*reconstruction_attributes",
            "sets n_iter_, which follows from the network and cannot be set",
        ),
    ],
    "skorch": [
        (r"TestBatchScoring", f"{REFUSED}: batches have no target"),
        (r"TestLoadInitState|TestInputShapeSetter", f"{REFUSED}: builds the net"),
        (r"TestTrainEndCheckpoint::test_train_end_with_load", f"{REFUSED}: loads it"),
        (r"Test.*::test_(no_error_when_no_valid|default_without_val)", NO_HELD_OUT),
        (r"TestReduceLROnPlateau::.*with_string.valid_loss", NO_HELD_OUT),
        (r"TestPrintLog::test_(?!keys|print)", INITIALIZED),
        (r"Test.*::test_(lr_scheduler_set_params|no_parameter_updates)", INITIALIZED),
        (r"TestParamMapper::test_(subzero|freez|unfreez|schedule)", INITIALIZED),
        (r"TestEpochScoring::test_scoring_uses_best_score_when_cont", INITIALIZED),
        (r"TestLRCallbacks::.*_fallback", "the batches of earlier fits are not kept"),
        (r"TestParamMapper::test_initialization", "names of layers of a classifier"),
        (r"Test.*Control|.*(caching|share_cache|input_is|subclassing_epoch)", CACHE),
        (r"TestEpochScoring::test_target_extractor", CACHE),
        (r"TestEpochScoring::test_(correct|.*accuracy)", TARGET),
        (r"TestEpochScoring::test_without_target_data", "a function splits the rows"),
        (r"TestPassthrougScoring::test_correct_valid", "sizes of validation batches"),
        (r"Test.*::test_(lr|reduce_lr)_.*record", "a learning rate of 123"),
        (r"TestEarlyStopping::test_weights_restore", "datasets as input"),
        (r"TestEarlyStopping::test_stopping_big", "the scale of another loss"),
        (r"TestEarlyStopping::test_.*_stop(ping)?$", "a module that cannot learn"),
        (r"TestCheckpoint::test_automatically_load", "weights that are one number"),
    ],
}


# For each suite, tests that run with at most this number of epochs where the number is
# "auto": regular expressions as above.
MAX_EPOCHS: dict[str, list[tuple[str, int]]] = {
    # 85,000 rows of 100 features, to find out whether a fit crashes.
    "iforest": [("test_iforest_with_n_jobs_does_not_segfault", 1)],
    # 110 pairs of fits to 1,000 rows of 300 features, which have to be equal.
    # Two fits of 200 components to noise, of which a sum of variances is compared.
    "pca": [("test_pca_sparse", 2), ("test_variance_correctness", 2)],
}


# The plugin, which runs in a process for each suite


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--suite")
    parser.addoption("--report")


def pytest_configure(config: Any) -> None:
    suite = SUITES[config.getoption("--suite")]
    torch.set_num_threads(1)
    for path, replacement in suite.names.items():
        owner, _, name = path.rpartition(".")
        setattr(_resolve(owner), name, replacement)
    config.pluginmanager.register(Report(Path(config.getoption("--report"))))


def _resolve(path: str) -> Any:
    """Return a module, or an attribute of one."""
    try:
        return import_module(path)
    except ModuleNotFoundError:
        owner, _, name = path.rpartition(".")
        return getattr(_resolve(owner), name)


def pytest_collection_modifyitems(config: Any, items: list) -> None:
    name = config.getoption("--suite")
    for module in {item.module for item in items}:
        for helper, replacement in SUITES[name].helpers.items():
            setattr(module, helper, replacement)
    for item in items:
        reason = meaningless(name, item.nodeid.partition("::")[2])
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=f"{MARK}{reason}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: Any) -> Any:
    name, test = item.config.getoption("--suite"), item.nodeid.partition("::")[2]
    limits = [n for word, n in MAX_EPOCHS.get(name, ()) if re.match(word, test)]
    if not limits:
        return (yield)
    original = TrainingDefaults.auto_max_epochs

    def limited(*args: Any) -> int:
        return min(limits[0], original(*args))

    with mock.patch.object(TrainingDefaults, "auto_max_epochs", limited):
        return (yield)


MARK = "meaningless: "


def meaningless(suite: str, test: str) -> str | None:
    """Return why a test has no meaning for an autoencoder, or None."""
    for pattern, reason in MEANINGLESS[suite]:
        if re.match(pattern, test):
            return reason
    return None


class Report:
    """Writes the outcome of each test to a file."""

    def __init__(self, path: Path):
        self.path = path
        self.outcomes: dict[str, tuple[str, str]] = {}

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            lines = report.longreprtext.splitlines()
            self.outcomes[report.nodeid] = ("failed", lines[-1])

    def pytest_runtest_logreport(self, report: Any) -> None:
        test = report.nodeid.partition("::")[2]
        if report.skipped:
            reason = str(report.longrepr[2] if report.longrepr else "")
            reason = reason.removeprefix("Skipped: ")
            kind = "meaningless" if reason.startswith(MARK) else "skipped"
            self.outcomes[test] = (kind, reason.removeprefix(MARK))
        elif report.failed:
            lines = report.longreprtext.splitlines()
            errors = [line[1:].strip() for line in lines if line.startswith("E ")]
            self.outcomes[test] = ("failed", errors[0] if errors else lines[-1])
        elif report.when == "call":
            self.outcomes[test] = ("passed", "")

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(json.dumps(self.outcomes))


# The script


def run(name: str, word: str | None) -> dict[str, tuple[str, str]]:
    """Run a suite in another process, and return the outcomes by test."""
    suite = SUITES[name]
    files = [str(import_module_path(module)) for module in suite.modules]
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        process = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-p", "peers_tests"),
                *("-c", os.devnull, "--rootdir", folder, "-p", "no:cacheprovider"),
                *("-q", "--suite", name, "--report", str(report), *files),
                *(() if word is None else ("-k", word)),
            ],
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            check=False,
        )
        if not report.exists():
            sys.exit(process.stdout + process.stderr)
        return json.loads(report.read_text())


def import_module_path(module: str) -> Path:
    """Return the file of a module of an installed package, without importing it."""
    package, *parts = module.split(".")
    (folder,) = import_module(package).__path__
    return Path(folder).joinpath(*parts).with_suffix(".py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SUITES, default=list(SUITES))
    parser.add_argument("--tests", help="a word that the names of the tests contain")
    options = parser.parse_args()
    n_failed = 0
    for name in options.only:
        outcomes = run(name, options.tests)
        counts = Counter(kind for kind, _ in outcomes.values())
        n_failed += counts["failed"]
        kinds = ("passed", "meaningless", "skipped", "failed")
        print(f"{name}: " + ", ".join(f"{counts[kind]} {kind}" for kind in kinds))
        for kind in kinds[1:]:
            reasons = Counter(reason for k, reason in outcomes.values() if k == kind)
            if kind == "failed":
                for test, (_, reason) in outcomes.items():
                    if outcomes[test][0] == "failed":
                        print(f"  failed  {test}: {reason}")
            else:
                for reason, count in reasons.most_common():
                    print(f"  {kind:11s} {count:4d}  {reason}")
        print(flush=True)
    sys.exit(min(n_failed, 1))


if __name__ == "__main__":
    main()
