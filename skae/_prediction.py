"""Evaluation of a fitted module on rows, in blocks of limited size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from skae._folds import Holdout
from skae._generator import isolated_generator
from skae._module import Autoencoder
from skae._processor import torch_threads_for
from skae._rows import BLOCK_ENTRIES, Rows
from skae._sparse import SparseRows

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
    for where, X in _blocks(module, method, rows):
        # The contexts end before `yield`, so that they do not affect the caller's code.
        with (
            torch.inference_mode(),
            torch_threads_for(len(X) * module.work_per_row),
            isolated_generator(module.draws_globally, 0, device),
        ):
            values = getattr(module, method)(X).cpu().numpy()
        yield where, values


def sum_residuals(module: Autoencoder, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Sum the absolute residuals of each feature over its observed entries.

    Parameters
    ----------
    module : Autoencoder
        In float64.
    rows : Rows
        Rows in the units of the data.

    Returns
    -------
    total, weight : ndarray of shape (n_features,) or (n_members, n_features)
        Weighted sums of the residuals, in the scaled space, and of ones.
    """
    total: Any = 0.0
    weight: Any = 0.0
    if module.keeps_sparse("residual_sums", rows):
        for where, X in _sparse_blocks(module, rows):
            given = torch.from_numpy(np.array(rows.weight[where]))
            with torch.inference_mode(), torch_threads_for(len(X) * module.work):
                added, counted = module.residual_sums(X, given.to(module.scaler.unit))
            total = total + added.numpy()
            weight = weight + counted.numpy()
        return total, weight
    for where, residuals in evaluate_blocks(module, "residuals", rows):
        w = rows.weight[where].reshape(-1, *[1] * (residuals.ndim - 1))
        total = total + np.nansum(w * residuals, axis=0)
        weight = weight + np.sum(w * ~np.isnan(residuals), axis=0)
    return total, weight


def _blocks(
    module: Autoencoder, method: str, rows: Rows
) -> Iterator[tuple[slice, torch.Tensor | SparseRows]]:
    """Iterate over blocks of rows, which remain sparse if the method takes them."""
    if module.keeps_sparse(method, rows):
        yield from _sparse_blocks(module, rows)
        return
    device = module.scaler.mean.device
    entries = BLOCK_ENTRIES if device.type == "cpu" else DEVICE_ENTRIES
    for where, block in rows.blocks(max(1, entries // module.values_per_row)):
        # `from_numpy` needs memory that is writable and has no negative strides.
        X = torch.from_numpy(np.require(block, requirements=["C", "W"]))
        yield where, X.to(device)


def _sparse_blocks(
    module: Autoencoder, rows: Rows
) -> Iterator[tuple[slice, SparseRows]]:
    size = module.sparse_block_size
    for start in range(0, len(rows), size):
        where = slice(start, min(start + size, len(rows)))
        yield where, SparseRows.from_csr(rows.stored(where))


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


class FoldScores(NamedTuple):
    """Scores of rows by all members, and by those that did not learn each fold.

    Attributes
    ----------
    all : ndarray of shape (n_rows,), float64
        As of `score_rows`.
    by_fold : ndarray of shape (n_rows, n_folds), float64
        The same for the members of each fold alone.
    """

    all: np.ndarray
    by_fold: np.ndarray


def score_folds(module: Autoencoder, rows: Rows, holdout: Holdout) -> FoldScores:
    """Score rows by the members that did not learn each fold, in a single pass.

    Parameters
    ----------
    module : Autoencoder
    rows : Rows
        Rows in the units of the data.
    holdout : Holdout
    """
    n_folds = holdout.n_folds
    errors = np.empty((len(rows), 1 + n_folds))  # of all members, and for each fold
    for where, block in evaluate_blocks(module, "member_errors", rows):
        errors[where, 0] = block.mean(axis=1)
        for fold in range(n_folds):
            errors[where, 1 + fold] = block[:, holdout.group == fold].mean(axis=1)
    if module.neighbors is not None:
        distances = evaluate(module, "distances", rows)
        device = module.neighbors.medians.device
        parts = (errors, distances[:, :1], distances[:, 1:])
        terms = (torch.from_numpy(part).to(device) for part in parts)
        errors = module.neighbors.combine(*terms).cpu().numpy()
    errors += evaluate(module, "excess_error", rows)[:, None]
    errors[np.isnan(errors)] = np.inf
    return FoldScores(-errors[:, 0], -errors[:, 1:])
