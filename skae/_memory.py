"""Recognition of errors by which memory cannot be allocated."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory of the host or of a GPU is exhausted."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # PyTorch has no class of errors for memory of the host.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
