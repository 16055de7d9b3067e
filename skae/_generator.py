"""Isolation of PyTorch's global random generator from user-defined modules."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# The global generator is seeded for one network at a time.
_LOCK = threading.RLock()


def _renew_lock() -> None:
    """Replace the lock in a forked child, where its owner may not exist."""
    global _LOCK
    _LOCK = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew_lock)


@contextmanager
def isolated_generator(
    draws_globally: bool, seed: int, device: torch.device
) -> Iterator[None]:
    """Context that seeds PyTorch's global generators and restores them at the end.

    These are the generators of the CPU and of one device; other devices remain as they
    are, also uninitialized.

    Parameters
    ----------
    draws_globally : bool
        Whether modules may draw from the global generators; if not, the context has no
        effect.
    seed : int
        Seed of the global generators within the context.
    device : torch.device
        Device on which the modules compute.
    """
    if not draws_globally:
        yield
        return
    is_cuda = device.type == "cuda"
    with _LOCK, torch.random.fork_rng([device] if is_cuda else []):
        # `torch.manual_seed` would seed all devices.
        torch.default_generator.manual_seed(seed)
        if is_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def global_generators(
    draws_globally: bool, device: torch.device
) -> list[torch.Generator]:
    """Return the global generators that `isolated_generator` seeds."""
    if not draws_globally:
        return []
    generators = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    return generators
