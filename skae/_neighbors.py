"""The nearest training rows of a row, and their part in the score of a detector."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from skae._sparse import SparseRows
from skae._summary import weighted_median
from skae.losses import observed_mean

# Largest number of training rows that are kept, and bounds of their entries and of the
# distances that are computed for all training rows. With 4,096 of up to 7,000 rows, the
# ROC AUC is that with all rows (ten tables with clean and contaminated rows, and nine
# of OddBench); with 1,024, it is .01 less on clean rows.
MAX_ROWS, MIN_ROWS = 4096, 512
MAX_ENTRIES = 2**23
MAX_DISTANCES = 2**28

# Share of the kept rows, those with the smallest reconstruction errors, that are the
# core: rows that are inliers even if many of the training rows are outliers.
CORE_SHARE = 0.4

# Powers of the two terms of the score, see `NearestRows`. A larger `POWER` is better on
# clean and worse on contaminated training rows: on the tables of ADBench, the mean ROC
# AUC is .845 and .753 with 0.5, and .848 and .749 with 0.533. The ratio of the powers
# determines the ranks. Their size determines how far the scores spread: with powers 2.5
# times as large, far outliers hid nearer ones from the rule of contamination="auto".
CORE_POWER, POWER = 0.2, 0.5

# Smallest relative distance. Rows that equal a training row differ in their errors.
MIN_RATIO = 0.003

# Squared distance, relative to the mean square of a row plus one, up to which two rows
# are the same row up to rounding errors of float32.
SAME = 1e-12

# The same difference between positions, by which equal distances are ordered.
TIE = 1e-14

# A row is a near copy if its distance is less than this fraction of the distance to the
# row that is `N_BEHIND` places farther. Rows that were rounded or stored in float32 and
# joined with the originals are such rows, and new rows have none. Larger fractions
# reject neighbors in tables with discrete and continuous columns: with 0.01 the ROC AUC
# of some tables of OddBench is .1 less.
COPY = 1e-3
N_BEHIND = 2

# Distances that are computed at a time.
BLOCK_DISTANCES = 2**21


class KeptRows:
    """Scaled training rows in float32, which copies of a module share.

    Parameters
    ----------
    rows : ndarray of shape (n_kept, n_features)
        Missing entries are replaced by the mean.
    weight : ndarray of shape (n_kept,)
        Positive weights; a row of weight w counts as w rows.
    """

    def __init__(self, rows: np.ndarray, weight: np.ndarray):
        self.rows = rows.astype(np.float32)
        self.weight = weight

    def __len__(self) -> int:
        return len(self.weight)

    def __copy__(self) -> KeptRows:
        return self

    def __deepcopy__(self, memo: dict) -> KeptRows:
        return self

    def on(self, device: torch.device) -> KeptTensors:
        """Return the rows as tensors on a device."""
        tensors = _TENSORS.setdefault(self, {})
        if device not in tensors:
            # Tensors created in inference mode could not be used outside of it.
            with torch.inference_mode(False):
                tensors[device] = self._on(device)
        return tensors[device]

    def _on(self, device: torch.device) -> KeptTensors:
        rows = torch.from_numpy(self.rows).to(device).double()
        weight = torch.from_numpy(self.weight).to(device)
        squares = rows.square().sum(dim=1)
        # Of rows at the same distance, the first is the nearest, whatever the rounding
        # errors of the products.
        positions = torch.arange(len(rows), device=device)
        step = TIE * (rows.shape[1] + squares.max())
        return KeptTensors(rows, weight, squares, squares + 10 * step * positions)


# Tensors of kept rows by device.
_TENSORS: WeakKeyDictionary[KeptRows, dict[torch.device, KeptTensors]]
_TENSORS = WeakKeyDictionary()


class KeptTensors(NamedTuple):
    """Kept rows as tensors.

    Attributes
    ----------
    rows : Tensor of shape (n_kept, n_features), float64
    weight, squares : Tensor of shape (n_kept,)
        Weights, and sums of the squares of the entries.
    ordered_squares : Tensor of shape (n_kept,)
        The same plus a multiple of the position that is negligible, but larger than
        rounding errors.
    """

    rows: Tensor
    weight: Tensor
    squares: Tensor
    ordered_squares: Tensor


class Nearness(NamedTuple):
    """Nearest kept rows of some rows; all of shape (n_rows,).

    Attributes
    ----------
    distance, core_distance : Tensor
        Distance to the nearest row and to the nearest row of the core.
    position, core_position : Tensor of int64
        Positions of these among the kept rows.
    """

    distance: Tensor
    core_distance: Tensor
    position: Tensor
    core_position: Tensor


class NearestRows(nn.Module):
    r"""Training rows, and the score that follows from the distances to them.

    The distance of a row to a kept row is the root of the mean squared difference in
    the scaled space, over the observed entries of the row. With the reconstruction
    error E of a row, its distance D to the k-th nearest training row and its distance C
    to the k-th nearest row of the core, its error is

    .. math:: \max\left(\left(\frac{E}{\tilde E} \frac{C}{\tilde C}\right)^{1/5},
              \left(\frac{D}{\tilde D}\right)^{1/2}\right),

    where the medians over the kept rows divide each term.

    A training row is no neighbour of itself: of rows that equal the row, a weight of
    one does not count; of the core, a weight of one of the nearest row never counts.
    Near copies do not count either, see `_are_copies`.

    Parameters
    ----------
    kept : KeptRows
        Training rows, those of the core first.
    n_core : int
        Number of rows of the core.
    n_neighbors : int
        The number k, at least 1.
    n_seen : float
        Weight of all training rows, from which these were drawn.
    """

    medians: Tensor

    def __init__(self, kept: KeptRows, n_core: int, n_neighbors: int, n_seen: float):
        super().__init__()
        self.kept = kept
        self.register_buffer("medians", torch.ones(3, dtype=torch.float64))
        self.n_core = n_core
        self.n_neighbors = n_neighbors
        self.n_seen = n_seen

    @property
    def _tensors(self) -> KeptTensors:
        return self.kept.on(self.medians.device)

    def measure(self, errors: np.ndarray) -> None:
        """Set the medians of the kept rows, whose reconstruction errors are given."""
        weight, rows = self.kept.weight, self._tensors.rows
        with torch.inference_mode():
            nearness = self(rows, None)
        core_distance = nearness.core_distance.cpu().numpy()
        distance = nearness.distance.cpu().numpy()
        median_error, median_core = (
            _typical(values, weight) for values in (errors, core_distance)
        )
        median = _typical(distance, weight)
        is_equal = distance == 0
        share = weight[is_equal].sum() / weight.sum()
        if share > 0.5:
            # Where most rows have equal ones, the smallest distance is as unusual as
            # the first term that as many rows do not reach.
            core = np.maximum(core_distance / median_core, MIN_RATIO)
            first = (errors / median_error * core) ** CORE_POWER
            order = np.argsort(first)
            reached = np.cumsum(weight[order]) / weight.sum()
            place = min(np.searchsorted(reached, share), len(first) - 1)
            limit = max(float(first[order[place]]), 1.0)
            if is_equal.all():
                median = self._smallest_difference()
            # An unusual row may be between rows: half of it, if all have equal ones.
            median /= 4 ** (share - 0.5) * limit ** (1 / POWER)
        self.medians = self.medians.new_tensor([median_error, median_core, median])

    def _smallest_difference(self) -> float:
        """Return the smallest distance of different rows, or 1 if all are equal."""
        ones = KeptRows(self.kept.rows, np.ones(len(self.kept)))
        alone = NearestRows(ones, self.n_core, 1, self.n_seen).to(self.medians.device)
        with torch.inference_mode():
            distance = alone(self._tensors.rows, None).distance
        return float(distance[distance > 0].min()) if (distance > 0).any() else 1.0

    def forward(self, target: Any, observed: Tensor | None) -> Nearness:
        """Find the nearest rows of scaled rows.

        Parameters
        ----------
        target : Tensor of shape (n_rows, n_features), or SparseRows
            Scaled rows in float64.
        observed : Tensor of bool of shape (n_rows, n_features) or None
            False where an entry is missing; None if none is, and for `SparseRows`.
        """
        parts = [self._nearest(*block) for block in self._blocks(target, observed)]
        if len(parts) == 1:
            return parts[0]
        return Nearness(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def combine(self, error: Tensor, core_distance: Tensor, distance: Tensor) -> Tensor:
        """Combine reconstruction errors and distances, all of shape (n_rows,).

        Negative errors, which a loss of one's own may have, count as 0.
        """
        median_error, median_core, median = self.medians.unbind()
        core = (core_distance / median_core).clamp(min=MIN_RATIO)
        ratio = (distance / median).clamp(min=MIN_RATIO)
        by_core = (error.clamp(min=0) / median_error * core) ** CORE_POWER
        return torch.maximum(by_core, ratio**POWER)

    def shares(
        self,
        errors: Tensor,
        target: Tensor,
        observed: Tensor | None,
        nearness: Nearness,
    ) -> Tensor:
        """Divide the combined error of each row among its entries.

        The share of an entry is the mean of three: its shares of the reconstruction
        error and of the squared differences from the nearest row of the core and from
        the nearest row. Where a row does not differ, the mean is that of the others. On
        20 tables of ADBench with one spoilt entry per row, shifted or exchanged, it is
        the largest share in .92 and .32 of the rows; the share of the error alone in
        .89 and .27, and the shares of the larger term in .83 and .27.

        Parameters
        ----------
        errors, target : Tensor of shape (n_rows, n_features)
            Parts of the entries in the reconstruction error, and scaled rows.
        observed : Tensor of bool of shape (n_rows, n_features) or None
        nearness : Nearness
        """
        error = errors.sum(dim=1, keepdim=True)
        parts = [errors / error]
        for position in (nearness.core_position, nearness.position):
            squares = (target - self._tensors.rows[position]).square()
            if observed is not None:
                squares = squares * observed
            parts.append(squares / squares.sum(dim=1, keepdim=True))
        share = torch.stack(parts).nanmean(dim=0)
        if observed is None:
            observed = torch.ones_like(errors, dtype=torch.bool)
        even = observed / observed.sum(dim=1, keepdim=True).clamp(min=1)
        combined = self.combine(error[:, 0], nearness.core_distance, nearness.distance)
        return combined[:, None] * torch.where(share.isnan(), even, share)

    # Search

    def _blocks(
        self, target: Any, observed: Tensor | None
    ) -> Iterator[tuple[Any, Tensor | None]]:
        """Divide rows into blocks of limited memory."""
        per_row = len(self.kept) + 2 * (self.n_neighbors + 3) * target.shape[1]
        size = max(1, BLOCK_DISTANCES // per_row)
        for start in range(0, max(1, len(target)), size):
            if isinstance(target, SparseRows):
                yield target.block(start, min(start + size, len(target))), None
            else:
                where = slice(start, start + size)
                yield target[where], None if observed is None else observed[where]

    def _nearest(self, target: Any, observed: Tensor | None) -> Nearness:
        """Find the nearest rows of one block."""
        kept = self._tensors
        if isinstance(target, SparseRows) and target.missing is not None:
            target, observed = target.dense()
        squares = self._relative_squares(target, observed)
        parts = squares, squares[:, : self.n_core]
        n_candidates = min(self.n_neighbors + 1 + N_BEHIND, self.n_core)
        # Of shape (n_rows, 2, n_candidates): among all rows and among the core.
        candidates = torch.stack(
            [part.topk(n_candidates, dim=1, largest=False).indices for part in parts], 1
        )
        # The products lose digits of small distances.
        exact, size = self._mean_squares(target, observed, candidates, squares)
        size = (size + 1)[:, None, None]
        exact = exact * (exact > SAME * size)
        place = torch.arange(n_candidates, device=exact.device)
        order = (exact + TIE * size * place).topk(n_candidates, dim=2, largest=False)
        exact = exact.gather(2, order.indices)
        candidates = candidates.gather(2, order.indices)
        is_own = (exact[:, :1, :1] == 0).to(exact)
        own = torch.cat([is_own, torch.ones_like(is_own)], dim=1)
        weight = kept.weight[candidates] * ~self._are_copies(exact)
        # The last candidate, if the weights do not reach the number of neighbors.
        counted = weight.cumsum(dim=2)[:, :, :-1] - own
        place = (counted < self.n_neighbors - 1e-9).sum(dim=2, keepdim=True)
        distance, core_distance = exact.gather(2, place).sqrt().squeeze(2).unbind(1)
        return Nearness(
            distance, core_distance, *candidates.gather(2, place).squeeze(2).unbind(1)
        )

    @staticmethod
    def _are_copies(squares: Tensor) -> Tensor:
        """Whether rows are near copies, of which new rows have none.

        They are much nearer than the rows `N_BEHIND` places farther. Equal rows are not
        counted as copies.

        Parameters
        ----------
        squares : Tensor of shape (n_rows, 2, n_candidates)
            Squared distances in ascending order.
        """
        behind = squares[:, :, N_BEHIND:]
        before = squares[:, :, : behind.shape[2]]
        is_copy = (before > 0) & (before < COPY**2 * behind)
        none = torch.zeros_like(squares[:, :, behind.shape[2] :], dtype=torch.bool)
        return torch.cat([is_copy, none], dim=2)

    def _mean_squares(
        self,
        target: Any,
        observed: Tensor | None,
        position: Tensor,
        products: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return mean squared differences from kept rows, and mean squares of the rows.

        Of sparse rows, they follow from the products of `_relative_squares`, in float64
        to the precision that `SAME` allows.

        Parameters
        ----------
        target : Tensor of shape (n_rows, n_features), or SparseRows
        observed : Tensor of bool of shape (n_rows, n_features) or None
        position : Tensor of int64 of shape (n_rows, 2, n_candidates)
        products : Tensor of shape (n_rows, n_kept)

        Returns
        -------
        squares : Tensor of shape (n_rows, 2, n_candidates)
        size : Tensor of shape (n_rows,)
        """
        if isinstance(target, SparseRows):
            total = target.row_squares()
            chosen = products.gather(1, position.flatten(1)).reshape(position.shape)
            kept = self._tensors
            chosen -= (kept.ordered_squares - kept.squares)[position]
            n_features = target.shape[1]
            squares = (chosen + total[:, None, None]).clamp(min=0) / n_features
            return squares, total / n_features
        differences = target[:, None, None] - self._tensors.rows[position]
        if observed is not None:
            observed = observed[:, None, None]
        squares = observed_mean(differences.square(), observed)
        return squares, target.square().mean(dim=1)

    def _relative_squares(self, target: Any, observed: Tensor | None) -> Tensor:
        """Return sums of squared differences up to rounding and a constant of the row.

        Products of matrices give them, of shape (n_rows, n_kept).
        """
        kept = self._tensors
        if isinstance(target, SparseRows):
            return kept.ordered_squares - 2 * target.linear(kept.rows, None)
        if observed is None:
            return torch.addmm(kept.ordered_squares, target, kept.rows.T, alpha=-2)
        known = observed.to(target)
        squares = known @ kept.rows.square().T - 2 * (target * known) @ kept.rows.T
        return squares + (kept.ordered_squares - kept.squares)

    def contains(self, rows: np.ndarray) -> np.ndarray:
        """Return whether rows, of shape (n_rows, n_features), are among those kept."""
        found = np.empty(len(rows), dtype=bool)
        with torch.inference_mode():
            X = torch.from_numpy(rows).to(self.medians)
            for start in range(0, len(X), BLOCK_DISTANCES // len(self.kept) + 1):
                block = X[start : start + BLOCK_DISTANCES // len(self.kept) + 1]
                squares = self._relative_squares(block, None)
                nearest = squares.argmin(dim=1)[:, None, None]
                exact, size = self._mean_squares(block, None, nearest, squares)
                is_same = exact.flatten() <= SAME * (size + 1)
                found[start : start + len(block)] = is_same.cpu().numpy()
        return found


def _typical(values: np.ndarray, weight: np.ndarray) -> float:
    """Return the weighted median; if it is 0, the smallest value above 0, or 1."""
    is_finite = np.isfinite(values)
    if not is_finite.any():
        return 1.0
    values, weight = values[is_finite], weight[is_finite]
    median = weighted_median(values, weight)
    return median if median > 0 else float(min(values[values > 0], default=1.0))
