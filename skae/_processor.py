"""How the processor works while a net trains: threads, precision, tiny numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

# Multiplications in one step below which a second thread costs more than it
# gives: 64 rows through 20-64-32-8 take twice as long on two threads, 128 rows
# through 784-128-64-12 less.
SMALL_WORK = 2e7


@contextmanager
def threads_for(work: float, n_threads: int | str = "auto") -> Iterator[None]:
    """Use as many threads as `work` is worth while it lasts.

    Parameters
    ----------
    work : float
        Number of multiplications in a step.
    n_threads : int or "auto", default="auto"
        ``"auto"`` is a single one if there is little to do, else as many as are
        in use already.
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
    """Round numbers below 1e-38 to zero while it lasts.

    Gradients and moments that fade away, of constant features or of units that
    are never active, would otherwise slow a step down a hundredfold.
    """
    already = (torch.tensor([1e-39]) * 1).item() == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(already)


@contextmanager
def precision_of(name: str) -> Iterator[None]:
    """Let a GPU multiply matrices in TF32 while it lasts, if that is the `name`."""
    before = torch.get_float32_matmul_precision()
    if name == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
