"""Explained variance: sums of squares of rows and of what a network leaves of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

import numpy as np

from skae._prediction import evaluate, keeps_sparse
from skae._row_scores import MIN_DISTANCE
from skae._rows import Rows
from skae.engine.net import AutoencoderNet

# Largest distance of an entry to its mean that is squared.
MAX_DISTANCE = 1e90


class RowSquares(NamedTuple):
    """Weighted squared distances of rows to their reconstructions and to the mean.

    Attributes
    ----------
    residual, total : ndarray of shape (n_rows,)
        In a unit that prevents overflow.
    is_possible : ndarray of bool of shape (n_rows,)
        False for rows with a value that no training row could have. Such an entry
        counts as explained no better than by the mean.
    """

    residual: np.ndarray
    total: np.ndarray
    is_possible: np.ndarray

    @classmethod
    def of(
        cls, net: AutoencoderNet, rows: Rows, like: AutoencoderNet | None = None
    ) -> Self:
        """Compute the squares of rows.

        Parameters
        ----------
        net : AutoencoderNet
        rows : Rows
            Rows in the units of the data.
        like : AutoencoderNet, default=None
            Net from which the mean and the unit of the squares are taken, so that they
            are the same for several nets. None means `net`.
        """
        module = net.module_for("forward", rows.X.dtype)
        own_mean = net.module_.scaler.mean.cpu().numpy()
        scaler = (net if like is None else like).module_.scaler
        mean = scaler.mean.cpu().numpy()
        residual, total = np.zeros((2, len(rows)))
        is_possible = np.ones(len(rows), dtype=bool)
        # Division by a power of two does not round.
        unit = 2.0 ** np.frexp(scaler.factor.cpu().numpy().max())[1]
        exact = net.module_for("row_squares", rows.X.dtype)
        has_own_mean = np.array_equal(mean, own_mean)
        if has_own_mean and keeps_sparse(exact, "row_squares", rows):
            squares = evaluate(exact, "row_squares", rows) / unit**2
            if squares[:, 0].sum() > MIN_DISTANCE * squares[:, 2].sum():
                residual, total = rows.weight * squares[:, :2].T
                return cls(residual, total, is_possible)
        for where, block in rows.blocks():
            X_hat = evaluate(module, "forward", Rows(block)).astype(np.float64)
            is_beyond = evaluate(module, "excess", Rows(block)) > 0
            with np.errstate(over="ignore"):
                distance = np.abs((block - mean) / unit).clip(max=MAX_DISTANCE)
                error = np.abs((block - X_hat) / unit).clip(max=MAX_DISTANCE)
                if net.module_.scaler.completion is not None and np.isnan(block).any():
                    spread = evaluate(exact, "spread", Rows(block)) / unit
                    error = np.hypot(error, spread.clip(max=MAX_DISTANCE))
            error = np.where(is_beyond, np.maximum(error, distance), error)
            weight = rows.weight[where]
            residual[where] = weight * np.nansum(error**2, axis=1)
            total[where] = weight * np.nansum(distance**2, axis=1)
            is_possible[where] = ~is_beyond.any(axis=1)
        return cls(residual, total, is_possible)

    @classmethod
    def joined(cls, parts: Iterable[Self]) -> Self:
        """Return the squares of several sets of rows as those of one."""
        return cls(*map(np.concatenate, zip(*parts, strict=True)))

    @property
    def explained(self) -> float:
        """Share of the variance that is explained, see `score`."""
        residual, total, is_possible = self
        return min(
            _share(residual.sum(), total.sum()),
            _share(residual[is_possible].sum(), total[is_possible].sum()),
        )

    @property
    def standard_error(self) -> float:
        """Standard error of `explained`, NaN for a single row.

        The share is a ratio of two sums over independent rows, so that its error is, to
        first order, a sum of these rows' deviations from the ratio [1]_.

        References
        ----------
        .. [1] Cochran, W. G. (1977). Sampling techniques (3rd ed.), section 2.11.
           Wiley.
        """
        total = self.total.sum()
        if total == 0:
            return 0.0
        n_rows = np.count_nonzero(self.total + self.residual)
        if n_rows < 2:
            return np.nan
        deviation = self.residual - self.residual.sum() / total * self.total
        variance = np.sum(deviation**2) * n_rows / (n_rows - 1)
        return float(np.sqrt(variance) / total)


def _share(residual: float, total: float) -> float:
    """Return the share of a sum of squares that is explained."""
    if total == 0:
        return 1.0 if residual == 0 else 0.0
    with np.errstate(over="ignore"):  # -inf if `total` is tiny
        return float(1 - residual / total)


class VarianceCurve(NamedTuple):
    """Explained variance for 1, 2, ... ordered components.

    Attributes
    ----------
    explained : ndarray of shape (n_components,)
        If early stopping is cross-validated, each row is reconstructed by the network
        that was trained without it.
    standard_error : ndarray of shape (n_components,)
        Over the rows.
    is_held_out : bool
        Whether the rows were not used in training.
    """

    explained: np.ndarray
    standard_error: np.ndarray
    is_held_out: bool

    @classmethod
    def of(cls, squares: Sequence[RowSquares], *, is_held_out: bool) -> Self:
        """Return the curve from the squares of the rows for each width."""
        explained = np.array([each.explained for each in squares])
        error = np.array([each.standard_error for each in squares])
        return cls(explained, error, is_held_out)

    def of_width(self, width: int) -> Self:
        """Return the curve up to a number of components."""
        return self._replace(
            explained=self.explained[:width],
            standard_error=self.standard_error[:width],
        )

    @property
    def ratios(self) -> np.ndarray:
        """Steps of the running maximum, non-negative, of shape (n_components,)."""
        highest = np.maximum.accumulate(self.explained).clip(min=0)
        return np.diff(highest, prepend=0.0)

    def fewest(self, share: float) -> int:
        """Return the fewest components that explain this share, all if none do."""
        enough = np.flatnonzero(self.explained >= share)
        return int(enough[0]) + 1 if len(enough) else len(self.explained)
