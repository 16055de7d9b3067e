"""Facts about n_jobs: members of a detector that are trained by joblib's workers."""

import os
import pickle
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from joblib import parallel_config, register_parallel_backend
from joblib.parallel import ThreadingBackend
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import check_estimator
from skorch.callbacks import Callback
from torch import nn

import skae._training
from skae import AutoencoderOutlierDetector
from skae._rows import Rows
from skae.engine.judge import DivergenceError
from skae.networks import MLP, Custom

# Few steps, in which rounding errors, that may depend on addresses in memory, do not
# grow.
BRIEF = {"max_epochs": 2, "batch_size": 100, "random_state": 0, "compile": False}

# More members than are trained as one network.
MANY = 20


@pytest.fixture(scope="module")
def X():
    rng = np.random.default_rng(0)
    return rng.normal(size=(200, 3)) @ rng.normal(size=(3, 8))


class Recorder(nn.Module):
    """Leaves a file with the number of each process that trains it."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def forward(self, X):
        if self.training:
            (Path(self.folder) / str(os.getpid())).touch()
        return X


class Failing(nn.Module):
    def forward(self, X):
        if self.training:
            raise RuntimeError("no more memory")
        return X


class Silent(Callback):
    pass


def drop_out(n_features, n_components):
    return nn.Sequential(nn.Linear(n_features, n_components), nn.Dropout(0.5))


def linear(n_features, n_components):
    return nn.Linear(n_components, n_features)


def recorded(folder):
    def encoder(n_features, n_components):
        return nn.Sequential(Recorder(folder), nn.Linear(n_features, n_components))

    return Custom(encoder, linear)


def processes(folder):
    return {int(path.name) for path in folder.iterdir()}


SEPARATE = {
    "perceptrons": {"n_estimators": MANY},
    "several sizes of blocks": {"n_estimators": 33, "n_components": 3, "trim": 0.0},
    "log error": {"n_estimators": MANY, "scale": "global", "error": "log"},
    "corruption": {"n_estimators": MANY, "corruption": "swap"},
    "convolutions": {"n_estimators": 3, "network": "conv", "n_components": 5},
    "variational": {"n_estimators": 3, "bottleneck": "gaussian", "n_components": 2},
    "quantized": {"n_estimators": 3, "bottleneck": "quantized", "n_components": 2},
    "penalty": {"n_estimators": 3, "penalty": "contractive", "n_components": 2},
    "dropout": {"n_estimators": MANY, "network": MLP((8,), dropout=0.2)},
    "PyTorch's dropout": {"n_estimators": 3, "network": Custom(drop_out, linear)},
    "two threads": {"n_estimators": MANY, "n_threads": 2},
}
TOGETHER = {
    "default": {},
    "early stopping": {"n_estimators": MANY, "early_stopping": True, "max_epochs": 20},
    "cross-validated": {"early_stopping": "auto", "max_epochs": 20},
    "PCA": {"n_estimators": MANY, "init": "pca"},
    "callbacks": {"n_estimators": MANY, "callbacks": [Silent()]},
    "one member": {"n_estimators": 1},
}


def assert_equal_fits(one, other, X):
    scores = one.score_samples(X)
    atol = 1e-5 * np.abs(scores).mean()
    np.testing.assert_allclose(other.score_samples(X), scores, rtol=0, atol=atol)
    np.testing.assert_allclose(other.offset_, one.offset_, rtol=0, atol=atol)
    np.testing.assert_allclose(other.loss_curve_, one.loss_curve_, rtol=1e-5)
    assert other.n_iter_ == one.n_iter_
    assert other.module_.n_members == one.module_.n_members


@pytest.mark.filterwarnings("ignore:The held-out error")  # of brief trainings
@pytest.mark.parametrize(
    "backend", [pytest.param("loky", marks=pytest.mark.slow), "threading"]
)
@pytest.mark.parametrize("name", [*SEPARATE, *TOGETHER])
def test_scores_are_those_of_a_serial_fit(X, name, backend):
    settings = {**BRIEF, **{**SEPARATE, **TOGETHER}[name]}
    serial = AutoencoderOutlierDetector(**settings).fit(X)
    with parallel_config(backend, n_jobs=2):
        parallel = AutoencoderOutlierDetector(**settings).fit(X)
    assert_equal_fits(serial, parallel, X)


@pytest.mark.parametrize("kind", ["sparse", "missing", "weights", "memory map"])
def test_kinds_of_rows(X, kind, tmp_path):
    weight = None
    if kind == "sparse":
        X = sparse.csr_matrix(np.where(X > 1, X, 0))
    elif kind == "missing":
        X = np.where(X > 2, np.nan, X)
    elif kind == "weights":
        weight = np.arange(1, 201)
    else:
        np.save(tmp_path / "X.npy", X)
        X = np.load(tmp_path / "X.npy", mmap_mode="r")
    fits = [
        AutoencoderOutlierDetector(n_estimators=MANY, n_jobs=n_jobs, **BRIEF).fit(
            X, sample_weight=weight
        )
        for n_jobs in (None, 2)
    ]
    assert_equal_fits(*fits, X)


def test_members_are_trained_in_other_processes(X, tmp_path):
    detector = AutoencoderOutlierDetector(
        network=recorded(str(tmp_path)), n_estimators=2, n_jobs=2, **BRIEF
    )
    detector.fit(X)
    assert processes(tmp_path) - {os.getpid()}
    assert os.getpid() not in processes(tmp_path)


def test_without_jobs_members_are_trained_in_this_process(X, tmp_path):
    network = recorded(str(tmp_path))
    AutoencoderOutlierDetector(network=network, n_estimators=2, **BRIEF).fit(X)
    assert processes(tmp_path) == {os.getpid()}


@pytest.mark.slow
def test_dask_trains_members_in_processes_of_its_own(X, tmp_path):
    distributed = pytest.importorskip("distributed")
    settings = {"network": recorded(str(tmp_path)), "n_estimators": 2, **BRIEF}
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
        ) as cluster,
        distributed.Client(cluster) as client,
        parallel_config("dask"),
    ):
        parallel = AutoencoderOutlierDetector(**settings).fit(X)
        workers = set(client.run(os.getpid).values())
        found = processes(tmp_path)
        many = AutoencoderOutlierDetector(n_estimators=MANY, **BRIEF).fit(X)
    assert found
    assert found <= workers
    assert_equal_fits(AutoencoderOutlierDetector(**settings).fit(X), parallel, X)
    serial = AutoencoderOutlierDetector(n_estimators=MANY, **BRIEF).fit(X)
    assert_equal_fits(serial, many, X)


def test_blocks_have_other_random_numbers(X):
    settings = {"n_estimators": 2, "network": "conv", "max_features": 1.0}
    detector = AutoencoderOutlierDetector(**settings, n_components=2, **BRIEF).fit(X)
    one, other = detector.module_.decoder.members
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_history_has_the_mean_losses_of_all_blocks(X, monkeypatch):
    runs, original = [], skae._training._train_network

    def train(*args):
        runs.append(original(*args))
        return runs[-1]

    monkeypatch.setattr(skae._training, "_train_network", train)
    detector = AutoencoderOutlierDetector(n_estimators=21, **BRIEF).fit(X)
    n_members = [run.net.module_.n_members for run in runs]
    assert n_members == [11, 10]
    curves = [run.net.history[:, "train_loss"] for run in runs]
    expected = np.average(curves, axis=0, weights=n_members)
    np.testing.assert_allclose(detector.loss_curve_, expected)
    history = detector.net_.history
    batches = np.array(history[:, "batches", :, "train_loss"])
    np.testing.assert_allclose(batches.mean(axis=1), expected)
    is_lowest = [curve == min(expected[: i + 1]) for i, curve in enumerate(expected)]
    assert history[:, "train_loss_best"] == is_lowest
    assert detector.n_iter_ == detector.net_.best_epoch_ == 2


# Fits that go on


@pytest.mark.parametrize("n_members", [MANY, 3 * MANY], ids=["resumed", "additional"])
def test_warm_starts(X, n_members):
    fits = []
    for n_jobs in (None, 2):
        detector = AutoencoderOutlierDetector(
            n_estimators=MANY, warm_start=True, n_jobs=n_jobs, **BRIEF
        ).fit(X)
        fits.append(detector.set_params(n_estimators=n_members).fit(X))
    assert_equal_fits(*fits, X)
    expected = 4 if n_members == MANY else 2
    assert len(fits[0].net_.history) >= expected


def test_partial_fits(X):
    fits = [
        AutoencoderOutlierDetector(n_estimators=MANY, n_jobs=n_jobs, **BRIEF)
        .partial_fit(X[:100])
        .partial_fit(X[100:])
        for n_jobs in (None, 2)
    ]
    assert_equal_fits(*fits, X)


# Errors and Ctrl-C


@pytest.mark.parametrize("backend", ["sequential", "threading"])
def test_divergence_leaves_the_estimator_unfitted(X, backend):
    detector = AutoencoderOutlierDetector(n_estimators=MANY, **BRIEF)
    detector.fit(X).set_params(learning_rate=1e30, loss="squared_error")
    with (
        parallel_config(backend, n_jobs=2),
        pytest.raises(DivergenceError, match="diverged"),
    ):
        detector.fit(X)
    with pytest.raises(NotFittedError):
        detector.score_samples(X)


@pytest.mark.parametrize("n_estimators", ["auto", MANY])
@pytest.mark.parametrize("n_jobs", [0, 1.5, "all"])
def test_invalid_n_jobs_are_refused_whatever_the_number_of_members(
    X, n_jobs, n_estimators
):
    detector = AutoencoderOutlierDetector(n_estimators=n_estimators, n_jobs=n_jobs)
    with pytest.raises(ValueError, match="'n_jobs' parameter"):
        detector.fit(X)


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_error_of_a_worker_is_raised_and_leaves_the_estimator_as_it_was(X, n_jobs):
    def failing(n_features, n_components):
        return nn.Sequential(Failing(), nn.Linear(n_features, n_components))

    detector = AutoencoderOutlierDetector(n_estimators=2, n_jobs=n_jobs, **BRIEF)
    scores = detector.fit(X).score_samples(X)
    detector.set_params(network=Custom(failing, linear))
    with pytest.raises(RuntimeError, match="no more memory"):
        detector.fit(X)
    np.testing.assert_array_equal(detector.score_samples(X), scores)


def interrupted_after(n_blocks, monkeypatch):
    """Press Ctrl-C when so many blocks have been trained."""
    n_trained, original = [0], skae._training._train_network

    def train(*args):
        if n_trained[0] == n_blocks:
            raise KeyboardInterrupt
        n_trained[0] += 1
        return original(*args)

    monkeypatch.setattr(skae._training, "_train_network", train)


def test_interrupt_keeps_the_members_that_are_trained(X, monkeypatch):
    settings = {"n_estimators": 3 * MANY, "warm_start": True, **BRIEF}
    whole = AutoencoderOutlierDetector(**settings).fit(X)
    detector = AutoencoderOutlierDetector(**settings)
    with monkeypatch.context() as context:
        interrupted_after(2, context)
        with pytest.raises(KeyboardInterrupt):
            detector.fit(X)
    assert detector.module_.n_members == 30
    assert detector.p_values(X).shape == (200,)
    for kept, weight in zip(
        detector.module_.parameters(), whole.module_.parameters(), strict=True
    ):
        torch.testing.assert_close(kept, weight[:30])
    detector.fit(X)  # trains the others
    assert detector.module_.n_members == 3 * MANY
    assert detector.p_values(X).shape == (200,)


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_interrupt_before_any_member_is_trained(X, monkeypatch, n_jobs):
    detector = AutoencoderOutlierDetector(n_estimators=MANY, n_jobs=n_jobs, **BRIEF)
    interrupted_after(0, monkeypatch)
    backend = parallel_config("threading") if n_jobs else nullcontext()
    with backend, pytest.raises(KeyboardInterrupt):
        detector.fit(X)
    with pytest.raises(NotFittedError):
        detector.score_samples(X)


class WithoutGenerator(ThreadingBackend):
    """Returns all results at once, as the backends of Ray and Spark do."""

    supports_retrieve_callback = False
    supports_return_generator = False


def test_backends_that_return_all_results_at_once(X, monkeypatch):
    register_parallel_backend("without generator", WithoutGenerator)
    detector = AutoencoderOutlierDetector(n_estimators=MANY, **BRIEF)
    serial = clone(detector).fit(X)
    with parallel_config("without generator"):
        for n_jobs in (None, 2):
            assert_equal_fits(
                serial, clone(detector).set_params(n_jobs=n_jobs).fit(X), X
            )
        interrupted_after(1, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            detector.fit(X)
    assert not hasattr(detector, "n_features_in_")


def test_there_are_no_more_workers_than_blocks(X):
    n_workers = []

    class Counting(ThreadingBackend):
        def configure(self, n_jobs=1, **kwargs):
            n_workers.append(n_jobs)
            return super().configure(n_jobs, **kwargs)

    register_parallel_backend("counting", Counting)
    detector = AutoencoderOutlierDetector(n_estimators=MANY, n_jobs=10**6, **BRIEF)
    with parallel_config("counting"):
        detector.fit(X)
    assert n_workers == [2]


# scikit-learn


@pytest.mark.parametrize(
    "backend", ["threading", pytest.param("loky", marks=pytest.mark.slow)]
)
def test_nested_in_a_search(X, backend):
    results = []
    for n_jobs in (None, 2):
        search = GridSearchCV(
            AutoencoderOutlierDetector(n_estimators=MANY, n_jobs=n_jobs, **BRIEF),
            {"trim": [0.0, 0.2]},
            scoring=mean_score,
            cv=2,
            n_jobs=n_jobs,
        )
        with parallel_config(backend):
            search.fit(X)
        results.append(search.cv_results_["mean_test_score"])
    np.testing.assert_allclose(*results, rtol=1e-5)


def mean_score(detector, X, y=None):
    return detector.score_samples(X).mean()


@pytest.mark.slow
def test_estimator_checks():
    detector = AutoencoderOutlierDetector(
        2, network=MLP((4,), dropout=0.1), n_estimators=17, n_jobs=2, max_epochs=2
    )
    with parallel_config("threading"):
        check_estimator(detector, on_skip=None)


def test_number_of_jobs_is_a_parameter_of_the_estimator_alone(X):
    detector = AutoencoderOutlierDetector(n_estimators=MANY, n_jobs=2, **BRIEF)
    with parallel_config("threading"):
        detector.fit(X)
    assert clone(detector).n_jobs == 2
    loaded = pickle.loads(pickle.dumps(detector))
    assert loaded.n_jobs == 2
    np.testing.assert_array_equal(loaded.score_samples(X), detector.score_samples(X))


@pytest.mark.parametrize("n_jobs", [1.5, "2"])
def test_number_of_jobs_is_an_integer_or_none(X, n_jobs):
    with pytest.raises(ValueError, match="n_jobs"):
        AutoencoderOutlierDetector(n_jobs=n_jobs).fit(X)


# What is sent to workers


@pytest.mark.parametrize("weight", [None, np.array([1.0, 2.0])], ids=["none", "given"])
def test_pickled_rows_keep_their_kind_of_weights(weight):
    rows = Rows(np.eye(2), None, weight)
    loaded = pickle.loads(pickle.dumps(rows))
    assert loaded.is_uniform == (weight is None)
    np.testing.assert_array_equal(loaded.weight, rows.weight)
