"""Threads, denormal numbers and precision during training."""

import threading
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

import skae
from skae import AutoencoderTransformer, _layers, _processor
from skae._compat import get_precision, set_precision
from skae._processor import (
    SMALL_WORK,
    flushed_denormals,
    matmul_precision,
    own_settings,
    threads_for,
    torch_threads_for,
)

SMALL, LARGE = SMALL_WORK / 2, SMALL_WORK * 2


@pytest.fixture
def two_threads(monkeypatch):
    """PyTorch and all thread pools use two threads, on as many processors."""
    monkeypatch.setattr(_processor, "cpu_count", lambda: 2)
    before = torch.get_num_threads()
    with threadpool_limits(2):
        torch.set_num_threads(2)
        yield
    torch.set_num_threads(before)


@pytest.fixture
def denormals():
    """Denormal numbers are computed with, not flushed to zero."""
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot flush denormal numbers")
    yield
    torch.set_flush_denormal(False)


def is_flushed():
    return (torch.tensor([1e-39]) * 1).item() == 0


def pool_sizes():
    return [pool["num_threads"] for pool in threadpool_info()]


def test_little_work_uses_one_thread(two_threads):
    with threads_for(SMALL):
        assert torch.get_num_threads() == 1
        assert set(pool_sizes()) == {1}


def test_much_work_keeps_the_number_of_threads(two_threads):
    pools = pool_sizes()
    with threads_for(LARGE):
        assert torch.get_num_threads() == 2
        assert pool_sizes() == pools


@pytest.mark.parametrize("context", [threads_for, torch_threads_for])
def test_threads_are_at_most_the_processors(two_threads, context, monkeypatch):
    monkeypatch.setattr(_processor, "cpu_count", lambda: 1)
    with context(LARGE):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with threads_for(LARGE, 2):  # chosen by the user
        assert torch.get_num_threads() == 2


def test_number_of_threads_is_restored(two_threads):
    pools = pool_sizes()
    with threads_for(SMALL):
        pass
    assert torch.get_num_threads() == 2
    assert pool_sizes() == pools


def test_number_of_threads_is_restored_after_an_error(two_threads):
    pools = pool_sizes()
    with pytest.raises(ZeroDivisionError), threads_for(SMALL):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2
    assert pool_sizes() == pools


def test_threads_of_torch_are_restored_without_threadpoolctl(two_threads, monkeypatch):
    limit = nullcontext()
    limit.restore_original_limits = lambda: None
    pools = SimpleNamespace(limit=lambda limits: limit)
    monkeypatch.setattr(_processor, "_pools", lambda user_api: pools)
    with pytest.raises(ZeroDivisionError), threads_for(SMALL):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("context", [threads_for, torch_threads_for])
def test_one_thread_is_one_of_mkl(two_threads, context):
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(254, 5, generator=generator)
    B = torch.randn(254, 160, generator=generator)
    torch.set_num_threads(1)
    expected = A.T @ B  # MKL rounds otherwise with two threads
    torch.set_num_threads(2)
    with threadpool_limits(1), context(SMALL):
        assert torch.equal(A.T @ B, expected)
    with context(SMALL):
        assert torch.equal(A.T @ B, expected)


@pytest.mark.parametrize("work", [SMALL, LARGE])
def test_one_thread_stays_one(two_threads, work):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threads_for(work):
        assert torch.get_num_threads() == 1
        assert set(pool_sizes()) == {1}  # BLAS follows PyTorch
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def test_denormals_are_flushed_inside_the_context(denormals):
    assert not is_flushed()
    with flushed_denormals():
        assert is_flushed()
    assert not is_flushed()


def test_flushing_ends_after_an_error(denormals):
    with pytest.raises(ZeroDivisionError), flushed_denormals():
        raise ZeroDivisionError
    assert not is_flushed()


def test_flushing_that_was_enabled_stays_enabled(denormals):
    torch.set_flush_denormal(True)
    with flushed_denormals():
        assert is_flushed()
    assert is_flushed()


def test_explicit_number_of_threads_is_used_for_any_work(two_threads):
    before = torch.get_num_threads()
    with threads_for(SMALL, 3):
        assert torch.get_num_threads() == 3
    with threads_for(LARGE, 1):
        assert torch.get_num_threads() == 1
        assert set(pool_sizes()) == {1}
    assert torch.get_num_threads() == before


# Precision on a GPU


@pytest.fixture
def gpu_build(monkeypatch):
    """Settings of a build for GPUs, which a build for CPUs has as well."""
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    before = gpu_settings()
    yield
    assert gpu_settings() == before


def gpu_precisions():
    return [get_precision("cuda", name) for name in ("matmul", "conv", "rnn")]


def gpu_settings():
    return [
        *gpu_precisions(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
    ]


FLOAT32 = ["ieee", "ieee", "ieee", True, False, False, False]
TF32 = ["tf32", "tf32", "tf32", True, False, True, True]


@pytest.mark.usefixtures("gpu_build")
def test_precision_is_that_of_the_parameter_inside_the_context():
    with own_settings():
        assert gpu_settings() == FLOAT32
        with matmul_precision("tf32"):
            assert gpu_settings() == TF32
        assert gpu_settings() == FLOAT32
        with matmul_precision("float32"):
            assert gpu_settings() == FLOAT32


@pytest.mark.usefixtures("gpu_build")
def test_convolutions_have_the_precision_of_float32_by_default():
    assert gpu_settings()[1] == "tf32"  # PyTorch's default
    with own_settings():
        assert gpu_settings() == FLOAT32


@pytest.mark.usefixtures("gpu_build")
def test_tf32_ends_while_another_thread_needs_float32():
    found = []

    def work():
        with own_settings():
            found.append(gpu_settings())

    with matmul_precision("tf32"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert gpu_settings() == TF32
    assert found == [FLOAT32]


@pytest.mark.usefixtures("gpu_build")
def test_a_build_for_gpus_exports_a_graph(tmp_path):
    # torch.export reads the older flags, which fails if they and the precisions differ.
    X = np.random.default_rng(0).normal(size=(20, 3))
    ae = AutoencoderTransformer(1, max_epochs=1, random_state=0).fit(X)
    skae.export_onnx(ae, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").exists()


@pytest.mark.usefixtures("gpu_build")
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_precisions_of_the_caller_are_restored(precision):
    set_precision("cuda", "conv", precision)
    set_precision("cuda", "matmul", precision)
    try:
        with own_settings():
            assert gpu_precisions() == ["ieee"] * 3
        assert gpu_precisions() == [precision, precision, "tf32"]
    finally:
        set_precision("cuda", "conv", "tf32")
        set_precision("cuda", "matmul", "none")


@pytest.mark.usefixtures("gpu_build")
def test_settings_are_restored_after_an_error():
    torch.backends.cudnn.benchmark = True
    with pytest.raises(ZeroDivisionError), own_settings(), matmul_precision("tf32"):
        raise ZeroDivisionError
    assert torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False


# Predictions


@pytest.mark.parametrize(("work", "n_threads"), [(SMALL, 1), (LARGE, 2)])
def test_little_work_of_a_prediction_uses_one_thread(two_threads, work, n_threads):
    with torch_threads_for(work):
        assert torch.get_num_threads() == n_threads
    assert torch.get_num_threads() == 2


def test_predictions_of_one_row_use_one_thread(two_threads, monkeypatch):
    seen = []
    forward = _layers.linear_function

    def spy(X, *parameters):
        seen.append((len(X), torch.get_num_threads()))
        return forward(X, *parameters)

    X = np.random.default_rng(0).normal(size=(50, 4))
    ae = AutoencoderTransformer(2, early_stopping=False, max_epochs=1).fit(X)
    monkeypatch.setattr(_processor, "SMALL_WORK", 2 * ae.module_.work_per_row)
    monkeypatch.setattr(_layers, "linear_function", spy)
    ae.transform(X[:1])
    assert {n_threads for _, n_threads in seen} == {1}
    ae.transform(X)
    assert 2 in {n_threads for _, n_threads in seen}
