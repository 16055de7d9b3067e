"""Isolation of PyTorch's global random generator from user-defined modules."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# The global generator is seeded for one network at a time.
_LOCK = threading.RLock()


@contextmanager
def isolated_generator(draws_globally: bool, seed: int) -> Iterator[None]:
    """Context that seeds PyTorch's global generator and restores its state at the end.

    Parameters
    ----------
    draws_globally : bool
        Whether modules may draw from the global generator; if not, the context has no
        effect.
    seed : int
        Seed of the global generator within the context.
    """
    if not draws_globally:
        yield
        return
    with _LOCK, torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
