"""Evaluation of a fitted module on rows, in blocks of limited size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from skae._folds import Holdout
from skae._generator import isolated_generator
from skae._memory import FittingBlocks
from skae._module import Autoencoder
from skae._neighbors import are_isolated
from skae._processor import torch_threads_for
from skae._row_scores import FUNCTIONS, residual_sums, takes_sparse
from skae._rows import BLOCK_ENTRIES, Rows
from skae._sparse import SparseRows

# Entries of a layer's output in prediction on a GPU, which needs larger blocks than a
# CPU to be fully used.
DEVICE_ENTRIES = 2**24

# Largest number of units of the last hidden layer, per row, for products of its weights
# in prediction. Fewer rows take less time as dense rows.
MAX_UNITS_PER_ROW = 4


def evaluate(
    module: Autoencoder, method: str, rows: Rows, *arguments: Any
) -> np.ndarray:
    """Return what a method of the module returns for all rows.

    Parameters
    ----------
    module : Autoencoder
        Module in the floating-point type of the rows.
    method : str
        Name of a method that takes rows, as a tensor, and returns one, or of a
        function of `_row_scores`.
    rows : Rows
        Rows in the units of the data.
    *arguments : Any
        Further arguments of the function.

    Returns
    -------
    values : ndarray of shape (n_rows, ...)
    """
    return rows.shared(
        lambda part: _evaluate(module, method, part, *arguments), _joined
    )


def _joined(*arrays: np.ndarray) -> np.ndarray:
    return np.concatenate(arrays)


def _evaluate(
    module: Autoencoder, method: str, rows: Rows, *arguments: Any
) -> np.ndarray:
    values: np.ndarray = np.empty(0)
    for where, block in evaluate_blocks(module, method, rows, *arguments):
        if len(block) == len(rows):
            return block
        if where.start == 0:
            values = np.empty((len(rows), *block.shape[1:]), dtype=block.dtype)
        values[where] = block
    return values


def evaluate_blocks(
    module: Autoencoder, method: str, rows: Rows, *arguments: Any
) -> Iterator[tuple[slice, np.ndarray]]:
    """Evaluate a method of the module on blocks of rows; see `evaluate`.

    Blocks become smaller where memory is exhausted.

    Yields
    ------
    where : slice
        Positions of the rows in the block.
    values : ndarray of shape (n_block, ...)
    """
    function = FUNCTIONS.get(method)
    function = (
        getattr(module, method) if function is None else partial(function, module)
    )
    device = module.scaler.mean.device

    def evaluate_part(block: Any, part: slice) -> np.ndarray:
        X = _taken(block, part, device)
        with (
            torch.inference_mode(),
            torch_threads_for(len(X) * module.work_per_row),
            isolated_generator(module.draws_globally, 0, device),
        ):
            return function(X, *arguments).cpu().numpy()

    # The contexts end before `yield`, so that they do not affect the caller's code.
    yield from _in_parts(module, _blocks(module, method, rows), evaluate_part)


def _in_parts(
    module: Autoencoder,
    blocks: Iterator[tuple[slice, Any]],
    evaluate_part: Callable[[Any, slice], Any],
) -> Iterator[tuple[slice, Any]]:
    """Evaluate blocks of rows, in parts where memory is exhausted.

    Parameters
    ----------
    module : Autoencoder
    blocks : iterator of tuple
        Positions of rows among all rows, and these rows.
    evaluate_part : callable
        Maps rows, and positions among them, to their values.

    Yields
    ------
    where : slice
        Positions among all rows.
    values : object
        What the function has returned.
    """
    fitting = FittingBlocks(module, module.scaler.mean.device)
    for where, block in blocks:
        n_rows = where.stop - where.start
        for part, values in fitting.evaluate(partial(evaluate_part, block), n_rows):
            yield slice(where.start + part.start, where.start + part.stop), values


def _taken(block: Any, part: slice, device: torch.device) -> Any:
    """Return some rows of a block as a tensor, or as `SparseRows`."""
    if isinstance(block, SparseRows):
        return block.block(part.start, part.stop)
    # `from_numpy` needs memory that is writable and has no negative strides.
    return torch.from_numpy(np.require(block[part], requirements=["C", "W"])).to(device)


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
    return rows.shared(partial(_sum_residuals, module), _added)


def _added(*sums: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    total, weight = (sum(parts[1:], parts[0]) for parts in zip(*sums, strict=True))
    return total, weight


def _sum_residuals(module: Autoencoder, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    total: Any = 0.0
    weight: Any = 0.0
    if keeps_sparse(module, "residual_sums", rows):
        for where, X in _sparse_blocks(module, rows):
            given = torch.from_numpy(np.array(rows.weight[where]))
            with torch.inference_mode(), torch_threads_for(len(X) * module.work):
                added, counted = residual_sums(module, X, given.to(module.scaler.unit))
            total = total + added.numpy()
            weight = weight + counted.numpy()
        return total, weight
    for where, residuals in evaluate_blocks(module, "residuals", rows):
        w = rows.weight[where].reshape(-1, *[1] * (residuals.ndim - 1))
        total = total + np.nansum(w * residuals, axis=0)
        weight = weight + np.sum(w * ~np.isnan(residuals), axis=0)
    return total, weight


def mean_squared_effects(
    module: Autoencoder, codes: np.ndarray, weight: np.ndarray, deviation: np.ndarray
) -> np.ndarray:
    """Return the mean of `Autoencoder.squared_effects` over rows, one block at a time.

    Parameters
    ----------
    module : Autoencoder
        In float64.
    codes : ndarray of shape (n_rows, n_components)
    weight : ndarray of shape (n_rows,)
        Non-negative weights of the rows, not all zero.
    deviation : ndarray of shape (n_components,)

    Returns
    -------
    effects : ndarray of shape (n_components, n_features)
    """
    device = module.scaler.mean.device
    entries = BLOCK_ENTRIES if device.type == "cpu" else DEVICE_ENTRIES
    size = max(1, entries // module.widest_layer)
    share = weight / weight.sum()
    scale = torch.from_numpy(deviation).to(device)

    def effects(block: tuple[np.ndarray, np.ndarray], part: slice) -> np.ndarray:
        Z, w = (torch.from_numpy(values[part]).to(device) for values in block)
        with (
            torch.inference_mode(),
            torch_threads_for(len(Z) * module.work),
            isolated_generator(module.draws_globally, 0, device),
        ):
            return module.squared_effects(Z, w, scale).cpu().numpy()

    wheres = (slice(i, min(i + size, len(codes))) for i in range(0, len(codes), size))
    blocks = ((where, (codes[where], share[where])) for where in wheres)
    total: Any = 0.0
    for _, values in _in_parts(module, blocks, effects):
        total = total + values
    return total


def keeps_sparse(module: Autoencoder, method: str, rows: Rows) -> bool:
    """Whether a method takes these rows as `SparseRows`.

    Dense blocks of rows are needed for reconstructions of all entries, by a network
    that does not begin or end in a linear layer, on other devices than the CPU, and for
    rows with large offsets or values, of which products would lose digits. They take
    less time for a few rows.

    Parameters
    ----------
    module : Autoencoder
    method : str
        As in `evaluate`, or ``"residual_sums"``.
    rows : Rows
    """
    if not rows.are_sparse:
        return False
    if method in ("encode", "quantize"):
        needs_rows = method == "encode" and module.max_refinements
        is_taken = module.compares_sparse if needs_rows else module.reads_sparse
    else:
        is_taken = takes_sparse(module, method)
    return (
        is_taken
        and rows.n_entries > BLOCK_ENTRIES
        and len(rows) * MAX_UNITS_PER_ROW >= module.widest_inner_layer
        and module.has_precise(rows)
    )


def _blocks(
    module: Autoencoder, method: str, rows: Rows
) -> Iterator[tuple[slice, np.ndarray | SparseRows]]:
    """Iterate over blocks of rows, which remain sparse if the method takes them."""
    if keeps_sparse(module, method, rows):
        yield from _sparse_blocks(module, rows)
        return
    device = module.scaler.mean.device
    entries = BLOCK_ENTRIES if device.type == "cpu" else DEVICE_ENTRIES
    yield from rows.blocks(max(1, entries // module.values_per_row))


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


def isolated_rows(module: Autoencoder, rows: Rows) -> np.ndarray | None:
    """Return 1.0 for isolated rows and 0.0 for others, of shape (n_rows,).

    None if the module keeps no training rows, to which distances could be measured.
    """
    if module.neighbors is None:
        return None
    distance = evaluate(module, "distance", rows)
    return are_isolated(distance, rows.weight).astype(float)


class FoldScores(NamedTuple):
    """Scores of rows by all members, and by those that did not learn each fold.

    Attributes
    ----------
    all : ndarray of shape (n_rows,), float64
        As of `score_rows`.
    by_fold : ndarray of shape (n_rows, n_folds), float64
        The same for the members of each fold alone.
    isolated : ndarray of shape (n_rows,) or None
        As of `isolated_rows`.
    """

    all: np.ndarray
    by_fold: np.ndarray
    isolated: np.ndarray | None


def score_folds(module: Autoencoder, rows: Rows, holdout: Holdout) -> FoldScores:
    """Score rows by the members that did not learn each fold, in a single pass.

    Parameters
    ----------
    module : Autoencoder
    rows : Rows
        Rows in the units of the data.
    holdout : Holdout
    """
    n_errors = 1 + holdout.n_folds
    values = evaluate(module, "errors_by_fold", rows, holdout)
    errors, distance = values[:, :n_errors], values[:, n_errors:]
    isolated = None
    if module.neighbors is not None:
        isolated = are_isolated(distance[:, 0], rows.weight).astype(float)
    errors[np.isnan(errors)] = np.inf
    return FoldScores(-errors[:, 0], -errors[:, 1:], isolated)
