"""Evaluation of a fitted module on rows, in blocks of limited size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from skae._generator import isolated_generator
from skae._module import Autoencoder
from skae._processor import torch_threads_for
from skae._rows import BLOCK_ENTRIES, Rows

# Entries of a layer's output in prediction on a GPU, which needs larger blocks than a
# CPU to be fully used.
DEVICE_ENTRIES = 2**24


def evaluate(module: Autoencoder, method: str, rows: Rows) -> np.ndarray:
    """Return what a method of the module returns for all rows.

    Parameters
    ----------
    module : Autoencoder
        Module in the floating-point type of the rows.
    method : str
        Name of a method that takes rows, as a tensor, and returns one.
    rows : Rows
        Rows in the units of the data.

    Returns
    -------
    values : ndarray of shape (n_rows, ...)
    """
    values: np.ndarray = np.empty(0)
    for where, block in evaluate_blocks(module, method, rows):
        if len(block) == len(rows):
            return block
        if where.start == 0:
            values = np.empty((len(rows), *block.shape[1:]), dtype=block.dtype)
        values[where] = block
    return values


def evaluate_blocks(
    module: Autoencoder, method: str, rows: Rows
) -> Iterator[tuple[slice, np.ndarray]]:
    """Evaluate a method of the module on blocks of rows; see `evaluate`.

    Yields
    ------
    where : slice
        Positions of the rows in the block.
    values : ndarray of shape (n_block, ...)
    """
    device = module.scaler.mean.device
    entries = BLOCK_ENTRIES if device.type == "cpu" else DEVICE_ENTRIES
    for where, block in rows.blocks(max(1, entries // module.values_per_row)):
        # `from_numpy` needs memory that is writable and has no negative strides.
        X = torch.from_numpy(np.require(block, requirements=["C", "W"]))
        # The contexts end before `yield`, so that they do not affect the caller's code.
        with (
            torch.inference_mode(),
            torch_threads_for(len(block) * module.work_per_row),
            isolated_generator(module.draws_globally, 0, device),
        ):
            values = getattr(module, method)(X.to(device)).cpu().numpy()
        yield where, values


def score_rows(module: Autoencoder, rows: Rows) -> np.ndarray:
    """Return minus the error of each row, of shape (n_rows,), in float64.

    An error that is NaN because values overflow in the network counts as infinite. Rows
    without an observed entry score 0.

    Parameters
    ----------
    module : Autoencoder
    rows : Rows
        Rows in the units of the data.
    """
    errors = evaluate(module, "row_error", rows).astype(np.float64, copy=False)
    errors[np.isnan(errors)] = np.inf
    return np.negative(errors, out=errors)
