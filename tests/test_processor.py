"""Threads, denormal numbers and precision during training."""

from contextlib import nullcontext

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from skae import _processor
from skae._processor import (
    SMALL_WORK,
    flushed_denormals,
    matmul_precision,
    threads_for,
)

SMALL, LARGE = SMALL_WORK / 2, SMALL_WORK * 2


@pytest.fixture
def two_threads():
    """PyTorch and all thread pools use two threads."""
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
    monkeypatch.setattr(_processor, "threadpool_limits", lambda limits: nullcontext())
    with pytest.raises(ZeroDivisionError), threads_for(SMALL):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("work", [SMALL, LARGE])
def test_one_thread_stays_one(work):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threads_for(work):
        assert torch.get_num_threads() == 1
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


def test_tf32_is_enabled_inside_the_context():
    before = torch.get_float32_matmul_precision()
    for name, expected in (("tf32", "high"), ("float32", before)):
        with matmul_precision(name):
            assert torch.get_float32_matmul_precision() == expected
    assert torch.get_float32_matmul_precision() == before
