"""The nearest training rows of a row, and their part in the score of a detector."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from skae._categories import Layout
from skae._sparse import SparseRows
from skae._summary import weighted_median
from skae.losses import count_observed, observed_mean

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

# Powers of the error and of the mean relative distance in the score of features in one
# unit, see `NearestRows`, and the number of rows of that mean, divided by the square
# root of the number of kept rows.
#
# On training images of MNIST (one digit against the others, 1,000 rows), the mean ROC
# AUC with clean training rows, with 5 % and with 10 % other digits among them is .966,
# .951 and .941; .940, .926 and .913 with the core instead; .964, .931 and .883 by the
# local outlier factor of 20 neighbors. A larger power of the error is better where the
# inliers are of several kinds and worse where they are of one: .822 and .964 with 0.13
# instead of .819 and .966 (five digits and one).
ERROR_POWER, AROUND_POWER = 0.1, 2 / 3
AROUND_FACTOR = 1.25

# Powers of the two terms of the score of tables with categorical features, which has no
# core: in a table of categories and their combinations, inliers are no dense core. On
# half of the tables of benchmarks/mixed_tables.py, the mean ROC AUC and average
# precision are .872 and .410 on simulated expenses and .797 and .469 on OddBench; with
# the core, .820 and .202, and .788 and .478.
CATEGORY_POWERS = 0.5, 0.25

# Smallest spacing of a kept row, relative to the median of the spacings. With 0.5, the
# ROC AUC of optdigits, with outliers of one kind among the training rows, is .68
# instead of .99.
MIN_SPACING = 0.3

# Smallest relative distance. Rows that equal a training row differ in their errors.
MIN_RATIO = 0.003

# Squared distance, relative to the mean square of a row plus one, up to which two rows
# are the same row up to rounding errors of float32.
SAME = 1e-12

# Relative rounding errors of squared distances of rows in float32, and more.
ROUNDING = 1e-5

# The same difference between positions, by which equal distances are ordered.
TIE = 1e-14

# The nearest rows of a training row, up to `MAX_COPIES`, are its copies if the last of
# them is nearer than this fraction of the distance to the next row. These are repeated
# measurements, or rows that were rounded, or stored in float32, and joined with the
# originals. New rows have no copies: with copies as neighbors, nearly all new rows are
# farther from the training rows than these are from each other.
COPY = 0.25
MAX_COPIES = 4

# The medians ignore only copies that differ by rounding, unless more than `MOST` of the
# rows have copies. In tables with discrete and continuous columns, up to 64 % have gaps
# for other reasons, and larger medians reduce the ROC AUC (mean of 60 tables of
# OddBench: .791 and .784). Where all rows are repeated, smaller medians increase it by
# .01 on clean training rows and reduce it by .09 on contaminated ones (ADBench).
ROUNDED_COPY = 1e-3
MOST = 0.7
MAX_CHECKED = 512  # rows from which this share is estimated

# A row is isolated if its distance is more than this multiple of the median distance.
# With 1.5 and 2, `contamination="auto"` flags the same rows in all tables of
# benchmarks/outliers.py; with 1.25, it flags rare clusters.
ISOLATED = 1.5

# Smallest sum of weights by which is divided. It is 0 if no row counts.
MIN_WEIGHT = 1e-100

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

    def __deepcopy__(self, memo: dict[str, Any]) -> KeptRows:
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
    """Nearest kept rows of some rows.

    Attributes
    ----------
    distance, core_distance : Tensor of shape (n_rows,)
        Distance to the nearest row, and to the nearest row of the core or, with
        `NearestRows.n_around`, mean relative distance.
    position, core_position : Tensor of int64 of shape (n_rows,)
        Positions of the nearest rows among the kept rows.
    around_squares, around_counts : Tensor of shape (n_rows, n_candidates)
        Squared distances to the rows of the mean relative distance, and how many rows
        each of them counts as. Without such rows, `n_candidates` is 0.
    around_positions : Tensor of int64 of shape (n_rows, n_candidates)
        Their positions among the kept rows.
    """

    distance: Tensor
    core_distance: Tensor
    position: Tensor
    core_position: Tensor
    around_squares: Tensor
    around_counts: Tensor
    around_positions: Tensor


class NearestRows(nn.Module):
    r"""Training rows, and the score that follows from the distances to them.

    The distance of a row to a kept row is the root of the mean squared difference in
    the scaled space, over the observed entries of the row. With the reconstruction
    error E of a row, its distance D to the k-th nearest training row and its distance C
    to the k-th nearest row of the core, its error is

    .. math:: \max\left(\left(\frac{E}{\tilde E} \frac{C}{\tilde C}\right)^{1/5},
              \left(\frac{D}{\tilde D}\right)^{1/2}\right),

    where the medians over the kept rows divide each term.

    With `n_around` > 0, C is replaced by R, the mean relative distance to so many
    nearest rows. The spacing of a kept row is its own distance D. With the distances d
    and the spacings s of these rows, R and the error are

    .. math:: R = \sqrt{\frac{\sum_i d_i^2 / s_i^3}{\sum_i 1 / s_i}}, \qquad
              \max\left(\left(\frac{E}{\tilde E}\right)^{1/10}
              \left(\frac{R}{\tilde R}\right)^{2/3},
              \left(\frac{D}{\tilde D}\right)^{1/2}\right).

    With a `layout`, which tables with categorical features have, the error is

    .. math:: \max\left(\left(\frac{E}{\tilde E}\right)^{1/2},
              \left(\frac{D}{\tilde D}\right)^{1/4}\right).

    Where inliers are scarce, they are far from each other, and s is large. The weights
    1 / s let outliers among the kept rows count less.

    A training row is no neighbour of itself: of rows that equal the row, a weight of
    one does not count; of the core, a weight of one of the nearest row never counts.
    Copies of a training row are no neighbours of it either, see `_are_copies`.

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
    n_around : int, default=0
        Number of rows of the mean relative distance; 0 means the core.
    layout : Layout, default=None
        Columns of the features, if some have several. Means are over features.
    """

    medians: Tensor
    spacing: Tensor

    def __init__(
        self,
        kept: KeptRows,
        n_core: int,
        n_neighbors: int,
        n_seen: float,
        n_around: int = 0,
        layout: Layout | None = None,
    ):
        super().__init__()
        self.kept = kept
        self.layout = layout
        self.n_around = n_around
        self.register_buffer("medians", torch.ones(3, dtype=torch.float64))
        # Relative to their median, and empty if they are not used.
        n_spacings = len(kept) if n_around else 0
        spacing = torch.ones(n_spacings, dtype=torch.float64)
        self.register_buffer("spacing", spacing)
        self.n_core = n_core
        self.n_neighbors = n_neighbors
        self.n_seen = n_seen

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "n_around" not in state:  # stored before there were relative distances
            self.n_around = 0
            self.register_buffer("spacing", torch.empty(0, dtype=torch.float64))
        self.__dict__.setdefault("layout", None)  # added after version 0.1

    @property
    def kind(self) -> tuple[int, bool]:
        """What determines how scores are computed, but for the rows."""
        return self.n_neighbors, self.n_around > 0

    @property
    def _n_candidates(self) -> int:
        """Number of nearest rows among which the neighbours are."""
        return min(self.n_neighbors + 1 + MAX_COPIES, self.n_core)

    @property
    def _tensors(self) -> KeptTensors:
        return self.kept.on(self.medians.device)

    def measure(self, errors: np.ndarray) -> None:
        """Set the medians of the kept rows, whose reconstruction errors are given."""
        weight, rows = self.kept.weight, self._tensors.rows
        with torch.inference_mode():
            copy = COPY if self._share_with_copies() > MOST else ROUNDED_COPY
            nearness = self(rows, None, copy)
        distance = nearness.distance.cpu().numpy()
        if self.n_around:
            spacing = np.maximum(distance / _typical(distance, weight), MIN_SPACING)
            self.spacing = self.spacing.new_tensor(spacing)
            nearness = self._with_relative_distance(nearness)
        core_distance = nearness.core_distance.cpu().numpy()
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
            first = self._first_term(errors / median_error, core)
            order = np.argsort(first)
            reached = np.cumsum(weight[order]) / weight.sum()
            place = min(np.searchsorted(reached, share), len(first) - 1)
            limit = max(float(first[order[place]]), 1.0)
            if is_equal.all():
                median = self._smallest_difference()
            # An unusual row may be between rows: half of it, if all have equal ones.
            median /= 4 ** (share - 0.5) * limit ** (1 / self._power)
        self.medians = self.medians.new_tensor([median_error, median_core, median])

    def _share_with_copies(self) -> float:
        """Return the share of the kept rows that have copies, from a sample."""
        every = slice(None, None, 1 + len(self.kept) // MAX_CHECKED)
        rows, weight = self._tensors.rows[every], self.kept.weight[every]
        nearest, others = self(rows, None, ROUNDED_COPY), self(rows, None)
        has_copies = (others.distance > nearest.distance).cpu().numpy()
        return float(weight[has_copies].sum() / weight.sum())

    def _smallest_difference(self) -> float:
        """Return the smallest distance of different rows, or 1 if all are equal."""
        ones = KeptRows(self.kept.rows, np.ones(len(self.kept)))
        alone = NearestRows(ones, self.n_core, 1, self.n_seen, layout=self.layout)
        alone = alone.to(self.medians.device)
        with torch.inference_mode():
            distance = alone(self._tensors.rows, None).distance
        return float(distance[distance > 0].min()) if (distance > 0).any() else 1.0

    def forward(
        self, target: Any, observed: Tensor | None, copy: float = COPY
    ) -> Nearness:
        """Find the nearest rows of scaled rows.

        Parameters
        ----------
        target : Tensor of shape (n_rows, n_features), or SparseRows
            Scaled rows in float64.
        observed : Tensor of bool of shape (n_rows, n_features) or None
            False where an entry is missing; None if none is, and for `SparseRows`.
        copy : float
            Largest ratio of the distances before and behind the copies of a row.
        """
        blocks = self._blocks(target, observed)
        parts = [self._nearest(*block, copy) for block in blocks]
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
        first = self._first_term(error.clamp(min=0) / median_error, core)
        return torch.maximum(first, ratio**self._power)

    @property
    def _power(self) -> float:
        """Power of the distance to the nearest row."""
        return POWER if self.layout is None else CATEGORY_POWERS[1]

    def _first_term(self, error: Any, core: Any) -> Any:
        """Return the first term of the score, of relative errors and distances."""
        if self.layout is not None:
            return error ** CATEGORY_POWERS[0]
        if self.n_around:
            return error**ERROR_POWER * core**AROUND_POWER
        return (error * core) ** CORE_POWER

    def shares(
        self,
        errors: Tensor,
        target: Tensor,
        observed: Tensor | None,
        nearness: Nearness,
    ) -> Tensor:
        """Divide the combined error of each row among its entries.

        The share of an entry is the mean of three: its shares of the reconstruction
        error and of the squared differences from the nearest row of the core, or of the
        mean relative distance, and from the nearest row. With a `layout`, it is that of
        the first and the last. Where a row does not differ,
        the mean is that of the others. ``benchmarks/outliers.py --setting reasons``
        measures how often the largest share is that of an entry that was spoilt.

        Parameters
        ----------
        errors : Tensor of shape (n_rows, n_features)
            Parts of the features in the reconstruction error.
        target : Tensor of shape (n_rows, n_columns)
            Scaled rows.
        observed : Tensor of bool of shape (n_rows, n_columns) or None
        nearness : Nearness
        """
        error = errors.sum(dim=1, keepdim=True)
        parts = [errors / error]
        rows = self._tensors.rows
        differences = [(target - rows[nearness.position]).square()]
        if self.n_around:
            differences.insert(0, self._squares_around(target, nearness))
        elif self.layout is None:
            by_core = (target - rows[nearness.core_position]).square()
            differences.insert(0, by_core)
        for squares in differences:
            if observed is not None:
                squares = squares * observed
            if self.layout is not None:
                squares = self.layout.summed(squares)
            parts.append(squares / squares.sum(dim=1, keepdim=True))
        share = torch.stack(parts).nanmean(dim=0)
        observed = self._of_features(observed)
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
        per_row = len(self.kept) + 2 * self._n_candidates * target.shape[1]
        per_row += 8 * self.n_around
        size = max(1, BLOCK_DISTANCES // per_row)
        for start in range(0, max(1, len(target)), size):
            if isinstance(target, SparseRows):
                yield target.block(start, min(start + size, len(target))), None
            else:
                where = slice(start, start + size)
                yield target[where], None if observed is None else observed[where]

    def _nearest(self, target: Any, observed: Tensor | None, copy: float) -> Nearness:
        """Find the nearest rows of one block."""
        kept = self._tensors
        if isinstance(target, SparseRows) and target.missing is not None:
            target, observed = target.dense()
        squares = self._relative_squares(target, observed)
        parts = squares, squares[:, : self.n_core]
        n_candidates = self._n_candidates
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
        is_own = exact[:, :1, :1] == 0
        own = torch.cat([is_own, torch.ones_like(is_own)], dim=1).to(exact)
        is_copy = is_own & self._are_copies(exact, copy)
        weight = kept.weight[candidates] * ~is_copy
        # The last candidate, if the weights do not reach the number of neighbors.
        counted = weight.cumsum(dim=2)[:, :, :-1] - own
        place = (counted < self.n_neighbors - 1e-9).sum(dim=2, keepdim=True)
        distance, core_distance = exact.gather(2, place).sqrt().squeeze(2).unbind(1)
        positions = candidates.gather(2, place).squeeze(2).unbind(1)
        around = self._around(target, observed, squares)
        nearness = Nearness._make([distance, core_distance, *positions, *around])
        return self._with_relative_distance(nearness) if self.n_around else nearness

    def _around(
        self, target: Any, observed: Tensor | None, products: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Find the rows of the mean relative distance, the last fields of `Nearness`.

        Parameters
        ----------
        target, observed
            As in `forward`.
        products : Tensor of shape (n_rows, n_kept)
            Result of `_relative_squares`.
        """
        if self.n_around == 0:
            none = products[:, :0]
            return none, none, none.long()
        n_candidates = min(self.n_around + 1, len(self.kept))
        position = products.topk(n_candidates, dim=1, largest=False).indices
        squares, size = self._squares_of_products(target, observed, position, products)
        squares = squares * (squares > SAME * (size[:, None] + 1))
        weight = self._tensors.weight[position]
        is_own = squares[:, :1] == 0
        weight = torch.cat([weight[:, :1] - is_own.to(weight), weight[:, 1:]], dim=1)
        left = self.n_around - (weight.cumsum(dim=1) - weight)
        count = torch.minimum(weight, left.clamp(min=0))
        return squares, count, position

    def _with_relative_distance(self, nearness: Nearness) -> Nearness:
        """Replace the distance to the core by the mean relative distance."""
        spacing = self.spacing[nearness.around_positions]
        weight = nearness.around_counts / spacing
        total = (weight * nearness.around_squares / spacing.square()).sum(dim=1)
        # If a single row is kept, and this is it, no row counts.
        mean = total / weight.sum(dim=1).clamp(min=MIN_WEIGHT)
        return nearness._replace(core_distance=mean.sqrt())

    def _squares_around(self, target: Tensor, nearness: Nearness) -> Tensor:
        """Return the parts of the entries in the square of the mean relative distance.

        They are correct up to a factor of the row, of shape (n_rows, n_features).
        """
        rows = self._tensors.rows
        position = nearness.around_positions
        weight = nearness.around_counts / self.spacing[position] ** 3
        weight = weight / weight.sum(dim=1, keepdim=True).clamp(min=MIN_WEIGHT)
        spread = weight.new_zeros(len(target), len(rows))
        spread = spread.scatter_add(1, position, weight)
        # Of a row that equals all of these, rounding errors are not negative parts.
        differences = target.square() - 2 * target * (spread @ rows)
        return (differences + spread @ rows.square()).clamp(min=0)

    @staticmethod
    def _are_copies(squares: Tensor, copy: float) -> Tensor:
        """Whether the nearest rows of a training row are copies of it.

        They are the rows before the last gap behind at most `MAX_COPIES` rows. Rows
        that equal the row are not counted as copies: they have a weight.

        Parameters
        ----------
        squares : Tensor of shape (n_rows, 2, n_candidates)
            Squared distances in ascending order.
        copy : float
            See `forward`.
        """
        is_other = squares > 0
        # Kept rows are rounded, which must not decide about a ratio of whole numbers.
        limit = (1 - ROUNDING) * copy**2 * squares[..., 1:]
        is_gap = is_other[..., :-1] & (squares[..., :-1] < limit)
        is_gap &= is_other.cumsum(dim=2)[..., :-1] <= MAX_COPIES
        # From the right: whether there is a gap at this place or behind it.
        is_before = is_gap.flip(2).cumsum(dim=2).flip(2) > 0
        is_before = torch.cat([is_before, torch.zeros_like(is_other[..., :1])], dim=2)
        return is_before & is_other

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
            squares, size = self._squares_of_products(
                target, None, position.flatten(1), products
            )
            return squares.reshape(position.shape), size
        differences = target[:, None, None] - self._tensors.rows[position]
        squares, size = differences.square(), target.square().mean(dim=1)
        if self.layout is None:
            if observed is not None:
                observed = observed[:, None, None]
            return observed_mean(squares, observed), size
        if observed is None:
            return squares.sum(dim=-1) / self.layout.n_features, size
        total = (squares * observed[:, None, None]).sum(dim=-1)
        known = observed[:, self.layout.first]
        return total / count_observed(known)[:, None], size

    def _of_features(self, observed: Tensor | None) -> Tensor | None:
        """Return which features are observed, from columns of them."""
        if observed is None or self.layout is None:
            return observed
        return observed[:, self.layout.first]

    def _squares_of_products(
        self, target: Any, observed: Tensor | None, position: Tensor, products: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what `_mean_squares` returns, to the precision that `SAME` allows.

        Parameters
        ----------
        target : Tensor of shape (n_rows, n_features), or SparseRows
        observed : Tensor of bool of shape (n_rows, n_features) or None
        position : Tensor of int64 of shape (n_rows, n_candidates)
        products : Tensor of shape (n_rows, n_kept)
        """
        n_observed: Any = target.shape[1]
        if self.layout is not None:
            n_observed = self.layout.n_features
        if isinstance(target, SparseRows):
            total = target.row_squares()
        elif observed is None:
            total = target.square().sum(dim=1)
        else:
            total = (target.square() * observed).sum(dim=1)
            known = self._of_features(observed)
            assert known is not None
            n_observed = known.sum(dim=1).clamp(min=1)
        kept = self._tensors
        chosen = products.gather(1, position)
        chosen = chosen - (kept.ordered_squares - kept.squares)[position]
        squares = ((chosen + total[:, None]).clamp(min=0).T / n_observed).T
        return squares, total / n_observed

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


def are_isolated(distance: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Whether rows are far from others, as bool of shape (n_rows,).

    Parameters
    ----------
    distance, weight : ndarray of shape (n_rows,)
        Distances to the nearest rows, and positive weights.
    """
    finite = np.where(np.isfinite(distance), distance, np.finfo(np.float64).max)
    return finite > ISOLATED * weighted_median(finite, weight)


def _typical(values: np.ndarray, weight: np.ndarray) -> float:
    """Return the weighted median; if it is 0, the smallest value above 0, or 1."""
    is_finite = np.isfinite(values)
    if not is_finite.any():
        return 1.0
    values, weight = values[is_finite], weight[is_finite]
    median = weighted_median(values, weight)
    return median if median > 0 else float(min(values[values > 0], default=1.0))
