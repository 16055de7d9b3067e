"""Facts about skae._processor."""

from contextlib import nullcontext

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from skae import _processor
from skae._processor import (
    SMALL_WORK,
    flushed_denormals,
    precision_of,
    threads_for,
)

SMALL, LARGE = SMALL_WORK / 2, SMALL_WORK * 2


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    with threadpool_limits(2):
        torch.set_num_threads(2)
        yield
    torch.set_num_threads(before)


@pytest.fixture
def keeps_denormals():
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


def test_much_work_keeps_its_threads(two_threads):
    pools = pool_sizes()
    with threads_for(LARGE):
        assert torch.get_num_threads() == 2
        assert pool_sizes() == pools


def test_threads_are_given_back(two_threads):
    pools = pool_sizes()
    with threads_for(SMALL):
        pass
    assert torch.get_num_threads() == 2
    assert pool_sizes() == pools


def test_threads_are_given_back_after_an_error(two_threads):
    pools = pool_sizes()
    with pytest.raises(ZeroDivisionError), threads_for(SMALL):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2
    assert pool_sizes() == pools


def test_threads_of_torch_are_given_back_whatever_its_library(two_threads, monkeypatch):
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


def test_tiny_numbers_are_flushed_while_it_lasts(keeps_denormals):
    assert not is_flushed()
    with flushed_denormals():
        assert is_flushed()
    assert not is_flushed()


def test_tiny_numbers_are_back_after_an_error(keeps_denormals):
    with pytest.raises(ZeroDivisionError), flushed_denormals():
        raise ZeroDivisionError
    assert not is_flushed()


def test_flushing_that_was_on_stays_on(keeps_denormals):
    torch.set_flush_denormal(True)
    with flushed_denormals():
        assert is_flushed()
    assert is_flushed()


def test_a_number_of_threads_overrules_the_work(two_threads):
    before = torch.get_num_threads()
    with threads_for(SMALL, 3):
        assert torch.get_num_threads() == 3
    with threads_for(LARGE, 1):
        assert torch.get_num_threads() == 1
        assert set(pool_sizes()) == {1}
    assert torch.get_num_threads() == before


def test_tf32_is_on_while_it_is_asked_for():
    before = torch.get_float32_matmul_precision()
    for name, expected in (("tf32", "high"), ("float32", before)):
        with precision_of(name):
            assert torch.get_float32_matmul_precision() == expected
    assert torch.get_float32_matmul_precision() == before
