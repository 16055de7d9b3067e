"""Errors by which memory cannot be allocated, and evaluation in smaller blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

Value = TypeVar("Value")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory of the host or of a GPU is exhausted."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # PyTorch has no class of errors for memory of the host.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


class FittingBlocks:
    """Evaluates rows at once or, where memory is exhausted, in smaller blocks.

    Parameters
    ----------
    module : Autoencoder
        The network; error messages contain its sizes.
    device : torch.device
        Device on which rows are evaluated.

    Attributes
    ----------
    size : int or None
        Largest number of rows that are evaluated at once, half of those for which the
        memory was last exhausted; None if it never was.
    """

    def __init__(self, module: Any, device: torch.device):
        self.module = module
        self.device = device
        self.size: int | None = None

    def evaluate(
        self, function: Callable[[slice], Value], n_rows: int
    ) -> Iterator[tuple[slice, Value]]:
        """Evaluate consecutive blocks of rows.

        Parameters
        ----------
        function : callable
            Maps positions of rows to their values. It is called again for rows for
            which it has failed.
        n_rows : int
            Number of all rows.

        Yields
        ------
        where : slice
            Positions of the rows in the block.
        value : object
            What the function has returned.

        Raises
        ------
        MemoryError
            If the memory is not enough for a single row.
        """
        start = 0
        while start < n_rows:
            where = slice(start, min(start + (self.size or n_rows), n_rows))
            try:
                value = function(where)
            except (MemoryError, RuntimeError) as error:
                self._reduce(where.stop - start, error)
            else:
                yield where, value
                start = where.stop
                continue
            # Here the error, which refers to the tensors of the failed call, is gone.
            free_cache(self.device)

    def _reduce(self, n_rows: int, error: Exception) -> None:
        """Halve the blocks, or raise the error if that cannot help."""
        if not is_out_of_memory(error):
            raise error
        if n_rows == 1:
            raise MemoryError(
                f"There is not enough memory on the device {str(self.device)!r} to "
                f"evaluate a single row by a network with {self.module.sizes}."
            ) from error
        self.size = n_rows // 2


def free_cache(device: torch.device) -> None:
    """Return memory that PyTorch keeps for later tensors to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
