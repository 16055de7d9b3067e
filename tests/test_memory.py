"""Tests of skae._memory: what happens when memory cannot be allocated."""

import copy
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from skae import AutoencoderOutlierDetector, AutoencoderTransformer, _memory
from skae._memory import FittingBlocks, is_out_of_memory
from skae.engine.batches import TrainingBatches
from skae.engine.networks import Network
from skae.networks import Custom

CPU = torch.device("cpu")


def in_blocks(function, n_rows):
    module = SimpleNamespace(sizes="2 features")
    return FittingBlocks(module, CPU).evaluate(function, n_rows)


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError("Unable to allocate 8. GiB for an array"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
]


class Memory:
    """What `Limited` modules may allocate, and what they were asked for."""

    max_rows = float("inf")
    max_training_rows = float("inf")
    error = ERRORS[0]
    sizes: list[int] = []  # noqa: RUF012 (set by the fixture)


class Limited(nn.Linear):
    """A linear layer that cannot allocate memory for many rows."""

    def forward(self, X):
        n_rows = X.shape[-2]
        Memory.sizes.append(n_rows)
        limit = Memory.max_training_rows if self.training else Memory.max_rows
        if n_rows > limit:
            raise Memory.error
        return super().forward(X)


def make_encoder(n_features, n_components):
    return Limited(n_features, n_components)


def make_decoder(n_features, n_components):
    return nn.Linear(n_components, n_features)


NETWORK = Custom(make_encoder, make_decoder)


@pytest.fixture(autouse=True)
def memory(monkeypatch):
    monkeypatch.setattr(Memory, "max_rows", float("inf"))
    monkeypatch.setattr(Memory, "max_training_rows", float("inf"))
    monkeypatch.setattr(Memory, "error", ERRORS[0])
    monkeypatch.setattr(Memory, "sizes", [])
    return Memory


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).normal(size=(50, 4))


def make(kind, **kwargs):
    params = {"network": NETWORK, "max_epochs": 2, "batch_size": 8, "random_state": 0}
    return kind(2, **{**params, **kwargs})


@pytest.fixture(scope="module")
def transformer(X):
    return make(AutoencoderTransformer).fit(X)


@pytest.fixture(scope="module")
def detector(X):
    return make(AutoencoderOutlierDetector, n_estimators=1).fit(X)


# Blocks


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_blocks_are_halved_until_they_fit(error):
    tried = []

    def evaluate(where):
        tried.append(where.stop - where.start)
        if tried[-1] > 3:
            raise error
        return list(range(20))[where]

    parts = list(in_blocks(evaluate, 20))
    assert sum((values for _, values in parts), []) == list(range(20))  # noqa: RUF017
    assert tried[:4] == [20, 10, 5, 2]
    assert max(tried[4:]) == 2  # it is not tried again for each block


def test_other_errors_are_raised():
    def evaluate(where):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        next(in_blocks(evaluate, 20))


def test_a_row_that_does_not_fit_is_an_error_with_the_sizes():
    def evaluate(where):
        raise ERRORS[0]

    message = r"device 'cpu' to evaluate a single row by a network with 2 features"
    with pytest.raises(MemoryError, match=message) as raised:
        next(in_blocks(evaluate, 20))
    assert raised.value.__cause__ is ERRORS[0]


def test_the_cache_is_emptied_when_the_failed_tensors_are_gone(monkeypatch):
    alive, at_release = [], []

    class Tensors:
        def __init__(self):
            alive.append(self)

        def __del__(self):
            at_release.append("freed")

    def evaluate(where):
        if where.stop - where.start > 1:
            tensors = Tensors()
            alive.clear()
            assert tensors
            raise torch.OutOfMemoryError
        return 0

    release = lambda device: at_release.append(device.type)  # noqa: E731
    monkeypatch.setattr(_memory, "free_cache", release)
    list(in_blocks(evaluate, 2))
    assert at_release == ["freed", "cpu"]


@pytest.mark.parametrize("kind", ["cuda", "mps", "cpu"])
def test_the_cache_of_the_device_is_emptied(kind, monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("cuda"))
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: emptied.append("mps"))
    _memory.free_cache(torch.device(kind))
    assert emptied == ([] if kind == "cpu" else [kind])


@pytest.mark.parametrize("error", ERRORS)
def test_errors_of_memory_are_recognised(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))


# Predictions


@pytest.mark.parametrize("max_rows", [1, 3, 20])
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("transformer", "transform"),
        ("transformer", "reconstruct"),
        ("transformer", "score_samples"),
        ("detector", "reconstruct"),
        ("detector", "score_samples"),
        ("detector", "decision_function"),
        ("detector", "predict"),
        ("detector", "feature_contributions"),
    ],
)
def test_predictions_go_on_in_smaller_blocks(
    kind, method, max_rows, X, memory, request
):
    predict = getattr(request.getfixturevalue(kind), method)
    expected = predict(X)
    memory.max_rows = max_rows
    memory.sizes.clear()
    assert_allclose(predict(X), expected, rtol=1e-9, atol=1e-12)
    assert max(memory.sizes) > max_rows


@pytest.mark.parametrize("name", ["transform", "score_samples"])
def test_predictions_that_never_fit_name_the_sizes(name, X, transformer, memory):
    memory.max_rows = 0
    with pytest.raises(MemoryError, match="with 4 features, n_components=2 and up to"):
        getattr(transformer, name)(X)
    memory.max_rows = 50
    getattr(transformer, name)(X)


def test_skorch_predicts_in_smaller_blocks(X, transformer, memory):
    net = transformer.net_
    expected = net.predict(X.astype(np.float32))
    memory.max_rows = 5
    memory.sizes.clear()
    assert_allclose(net.predict(X.astype(np.float32)), expected, rtol=1e-5, atol=1e-6)
    assert max(memory.sizes) > 5


# Training


@pytest.mark.parametrize(
    "params",
    [
        {"early_stopping": True},
        {"early_stopping": True, "ordered": True},
        {"early_stopping": False},
    ],
    ids=str,
)
def test_validation_goes_on_in_smaller_blocks(params, X, memory):
    estimator = make(AutoencoderTransformer, **params)
    expected = estimator.fit(X)
    memory.max_rows = 3
    memory.sizes.clear()
    limited = make(AutoencoderTransformer, **params).fit(X)
    assert max(memory.sizes) > 8  # the batches of training are not those that failed
    assert_allclose(limited.transform(X), expected.transform(X), rtol=1e-4, atol=1e-5)
    assert limited.n_iter_ == expected.n_iter_


@pytest.mark.parametrize(
    ("params", "method"),
    [
        ({"early_stopping": False}, "row_losses"),
        ({"ordered": True}, "row_losses_of_widths"),
    ],
    ids=["all components", "each width"],
)
def test_comparison_with_the_start_goes_on_in_smaller_blocks(
    params, method, monkeypatch
):
    X = np.random.default_rng(0).normal(size=(50, 4))
    X[:, 2:] = X[:, :2] ** 2
    compute, sizes = getattr(Network, method), []

    def limited(self, batch, progress):
        if batch.target.dtype == torch.float64:
            sizes.append(batch.n_rows)
            if batch.n_rows > 3:
                raise torch.OutOfMemoryError
        return compute(self, batch, progress)

    def fit():
        return make(AutoencoderTransformer, network="mlp", **params).fit(X)

    expected = fit()
    monkeypatch.setattr(Network, method, limited)
    limited_fit = fit()
    assert max(sizes) > 3 >= min(sizes)
    assert_allclose(limited_fit.transform(X), expected.transform(X), atol=1e-6)


MESSAGE = (
    r"train a network with 4 features, n_components=2 .* with batch_size=8\. Lower "
    r"batch_size, or the sizes of the layers"
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("kind", [AutoencoderTransformer, AutoencoderOutlierDetector])
def test_training_names_the_parameters_to_lower(kind, error, X, memory):
    memory.max_training_rows, memory.error = 4, error
    estimator = make(kind)
    with pytest.raises(MemoryError, match=MESSAGE) as raised:
        estimator.fit(X)
    assert raised.value.__cause__ is error
    assert not hasattr(estimator, "mean_")
    memory.max_training_rows = 8
    estimator.fit(X)


@pytest.mark.parametrize("how", ["fit", "warm start", "partial_fit"])
def test_the_estimator_is_unchanged_after_the_error(how, X, transformer, memory):
    estimator = copy.deepcopy(transformer).set_params(warm_start=how == "warm start")
    before = estimator.transform(X)
    memory.max_training_rows = 4
    with pytest.raises(MemoryError, match=r"with batch_size=8\. Lower"):
        getattr(estimator, how if how == "partial_fit" else "fit")(X)
    assert_array_equal(estimator.transform(X), before)
    assert estimator.n_iter_ == transformer.n_iter_


class NoMemory(nn.Linear):
    """A linear layer for which the memory is not enough at one of its uses."""

    def __init__(self, use, n_features, n_components):
        self.use = use
        self._fail_if(use == "construction")
        super().__init__(n_features, n_components)

    def _fail_if(self, is_met):
        if is_met:
            raise Memory.error

    def forward(self, X):
        self._fail_if(self.use == "first call")
        self._fail_if(self.use == "float64" and X.dtype == torch.float64)
        return super().forward(X)

    def __deepcopy__(self, memo):
        self._fail_if(self.use == "copy")
        new = NoMemory(self.use, self.in_features, self.out_features)
        new.load_state_dict(self.state_dict())
        return new


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("use", ["construction", "copy", "first call", "float64"])
def test_network_that_does_not_fit_is_an_error_of_memory(use, error, X, memory):
    memory.error = error
    encoder = partial(NoMemory, use)
    estimator = make(AutoencoderTransformer, network=Custom(encoder, make_decoder))
    with pytest.raises(MemoryError, match=r"n_components=2 for 4 features\. Lower"):
        estimator.fit(X)
    assert not hasattr(estimator, "mean_")


def test_other_errors_of_a_training_are_not_changed(X, memory):
    memory.max_training_rows, memory.error = 4, RuntimeError("another error")
    with pytest.raises(RuntimeError, match="another error"):
        make(AutoencoderTransformer).fit(X)


def test_a_table_that_does_not_fit_is_scaled_in_chunks(X, monkeypatch):
    expected = make(AutoencoderTransformer).fit(X).transform(X)
    prepared, failed = TrainingBatches._prepared, []

    def limited(self, block, where):
        if where is ...:
            failed.append(len(block))
            raise torch.OutOfMemoryError
        return prepared(self, block, where)

    monkeypatch.setattr(TrainingBatches, "_prepared", limited)
    fitted = make(AutoencoderTransformer).fit(X)
    assert failed
    assert_allclose(fitted.transform(X), expected, rtol=1e-4, atol=1e-5)
