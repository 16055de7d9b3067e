"""How the processor works while a net trains: threads and tiny numbers."""

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
def threads_for(work: float) -> Iterator[None]:
    """Use a single thread while it lasts if `work` multiplications are few."""
    before = torch.get_num_threads()
    if work > SMALL_WORK or before == 1:
        yield
        return
    with threadpool_limits(1):
        torch.set_num_threads(1)
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
