"""Contexts for threads, matrix precision and subnormal numbers during training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

# Number of multiplications in a step up to which a second thread makes it slower: with
# two threads, 64 rows with an encoder 20-64-32-8 take twice as long, and 128 rows with
# 784-128-64-12 take less time.
SMALL_WORK = 2e7


@contextmanager
def threads_for(work: float, n_threads: int | str = "auto") -> Iterator[None]:
    """Context in which PyTorch and BLAS use a suitable number of threads.

    Parameters
    ----------
    work : float
        Number of multiplications in a step.
    n_threads : int or "auto", default="auto"
        ``"auto"`` is one thread up to `SMALL_WORK` multiplications, and PyTorch's
        present number of threads above.
    """
    before = torch.get_num_threads()
    if n_threads == "auto":
        n_threads = before if work > SMALL_WORK else 1
    if n_threads == before:
        yield
        return
    with threadpool_limits(n_threads):
        torch.set_num_threads(int(n_threads))
        try:
            yield
        finally:
            torch.set_num_threads(before)


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Context in which subnormal numbers, below 1e-38, are rounded to zero.

    Gradients and optimizer moments of constant features and of inactive units decay to
    such numbers, which make a step a hundred times slower.
    """
    was_flushed = (torch.tensor([1e-39]) * 1).item() == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_flushed)


@contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    """Context in which a GPU multiplies matrices in TF32 if `name` is ``"tf32"``."""
    before = torch.get_float32_matmul_precision()
    if name == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
