"""Products and squared errors of sparse rows, without a dense copy of the rows.

A block of scaled rows is S - 1 c', with a sparse matrix S and one vector c for all
rows. A linear layer multiplies S and c separately, and the squared error of a linear
last layer follows from products with its weights, in a time that grows with the number
of stored entries and of weights, not with rows times columns [1]_.

References
----------
.. [1] Vincent, P., de Brebisson, A., & Bouthillier, X. (2015). Efficient exact gradient
   update for training deep networks with very large sparse targets. NeurIPS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

# Entries of a block of features in which losses are computed, over all members: it
# fits into the cache of a CPU.
FEATURE_BLOCK = 2**18

# Number of features over which products of weights are summed in their own type.
SUMMED_FEATURES = 512


class SparseRows:
    """Rows S - 1 c', of which the sparse matrix S and the vector c are stored.

    Linear layers accept such rows in place of a tensor.

    Parameters
    ----------
    bounds : Tensor of int64 of shape (n_rows + 1,)
        Row i has the stored entries from ``bounds[i]`` up to ``bounds[i + 1]``.
    columns : Tensor of int64 of shape (n_stored,)
    values : Tensor of shape (n_stored,)
        Entries of S.
    offset : Tensor of shape (n_features,)
        The vector c.
    missing : Tensor of bool of shape (n_stored,), default=None
        True for stored entries that are missing in the data. Their value is a
        replacement. None if there are none.
    """

    def __init__(
        self,
        bounds: Tensor,
        columns: Tensor,
        values: Tensor,
        offset: Tensor,
        missing: Tensor | None = None,
    ):
        self.bounds = bounds
        self.columns = columns
        self.values = values
        self.offset = offset
        self.missing = missing

    def with_values(
        self, values: Tensor, offset: Tensor, missing: Tensor | None = None
    ) -> SparseRows:
        """Return rows with other values at the same places."""
        rows = SparseRows(self.bounds, self.columns, values, offset, missing)
        vars(rows)["by_column"] = self.by_column
        return rows

    @classmethod
    def from_csr(cls, table: Any) -> SparseRows:
        """Return the rows of a CSR matrix, whose missing entries are NaN."""
        values = torch.from_numpy(np.require(table.data, requirements=["C", "W"]))
        return cls(
            torch.from_numpy(table.indptr.astype(np.int64)),
            torch.from_numpy(table.indices.astype(np.int64)),
            values,
            torch.zeros(table.shape[1], dtype=values.dtype),
        )

    # What the code that handles batches asks of a tensor

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), len(self.offset)

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    def split(self, sizes: Sequence[int]) -> Iterator[SparseRows]:
        """Iterate over consecutive blocks of these numbers of rows."""
        start = 0
        for size in sizes:
            yield self.block(start, start + size)
            start += size

    def block(self, start: int, stop: int) -> SparseRows:
        """Return consecutive rows."""
        if stop - start == len(self):
            return self
        first, last = self.bounds[[start, stop]].tolist()
        missing = None if self.missing is None else self.missing[first:last]
        if missing is not None and not missing.any():
            missing = None
        return SparseRows(
            self.bounds[start : stop + 1] - first,
            self.columns[first:last],
            self.values[first:last],
            self.offset,
            missing,
        )

    def take(self, where: Tensor) -> SparseRows:
        """Return the rows at these positions."""
        counts = self.bounds.diff()[where]
        bounds = functional.pad(counts.cumsum(0), (1, 0))
        shift = (self.bounds[:-1][where] - bounds[:-1]).repeat_interleave(counts)
        entries = torch.arange(len(shift)) + shift
        missing = None if self.missing is None else self.missing[entries]
        if missing is not None and not missing.any():
            missing = None
        return SparseRows(
            bounds, self.columns[entries], self.values[entries], self.offset, missing
        )

    @property
    def rows(self) -> Tensor:
        """The row of each stored entry, of shape (n_stored,)."""
        return torch.arange(len(self)).repeat_interleave(self.bounds.diff())

    @property
    def n_observed(self) -> Tensor:
        """Number of entries of each row that are not missing, at least 1."""
        n_observed = self.values.new_full((len(self),), self.shape[1])
        if self.missing is not None:
            n_observed -= self._row_sums(self.missing.to(self.values))
        return n_observed.clamp(min=1)

    @property
    def has_missing(self) -> Tensor:
        """Which rows have missing entries, of shape (n_rows,)."""
        if self.missing is None:
            return torch.zeros(len(self), dtype=torch.bool)
        return self._row_sums(self.missing.to(self.values)) > 0

    def dense(self) -> tuple[Tensor, Tensor | None]:
        """Return the rows as a tensor, and the mask of observed entries or None."""
        where = self.rows, self.columns
        dense = (-self.offset).repeat(len(self), 1)
        dense[where] += self.values  # no entry is stored twice
        if self.missing is None:
            return dense, None
        observed = torch.ones_like(dense, dtype=torch.bool)
        observed[where] = ~self.missing
        return dense, observed

    def double(self) -> SparseRows:
        """Return the rows in float64."""
        return self.with_values(
            self.values.double(), self.offset.double(), self.missing
        )

    def scaled(self, shift: Tensor, factor: Tensor, mean: Tensor) -> SparseRows:
        """Return (x - shift) / factor in the type of `mean`, missing entries as `mean`.

        Parameters
        ----------
        shift, factor : Tensor of shape (n_features,), float64
        mean : Tensor of shape (n_features,)
            The mean in the scaled space.
        """
        offset = ((shift + self.offset) / factor).to(mean)
        values = (self.values / factor[self.columns]).to(mean)
        missing = values.isnan()
        if not missing.any():
            return SparseRows(self.bounds, self.columns, values, offset)
        values = torch.where(missing, (mean + offset)[self.columns], values)
        return SparseRows(self.bounds, self.columns, values, offset, missing)

    def visible_to(self, visible: Tensor, mean: Tensor) -> SparseMembers:
        """Return the rows that each member of an ensemble receives.

        Parameters
        ----------
        visible : Tensor of bool of shape (n_members, 1, n_features)
            False for the features that are replaced by `mean`.
        mean : Tensor of shape (n_features,)
        """
        return SparseMembers(
            [
                self.with_values(
                    self.values * seen[self.columns],
                    torch.where(seen, self.offset, -mean),
                )
                for seen in visible[:, 0]
            ]
        )

    # Products

    def times(self, matrix: Tensor) -> Tensor:
        """Compute S times a matrix of shape (n_features, n_columns)."""
        return _bag(self.columns, self.values, self.bounds, matrix)

    def linear(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the outputs of a linear layer, of shape (n_rows, n_outputs).

        Parameters
        ----------
        weight : Tensor of shape (n_outputs, n_features)
        bias : Tensor of shape (n_outputs,) or None
        """
        outputs = _Linear.apply(weight[None], self)[0]
        return outputs if bias is None else outputs + bias

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is functional.linear and isinstance(args[0], SparseRows):
            rows, weight, *bias = args
            return rows.linear(weight, *(bias or [None]), **(kwargs or {}))
        return NotImplemented

    def row_squares(self) -> Tensor:
        """Sum the squares of the entries of each row, of shape (n_rows,)."""
        offset = self.offset[self.columns]
        stored = self._row_sums(self.values * (self.values - 2 * offset))
        return stored + self.offset.square().sum()

    def _row_sums(self, values: Tensor) -> Tensor:
        """Sum values of the stored entries over each row."""
        return _bag(
            torch.zeros_like(self.columns), values, self.bounds, values.new_ones(1, 1)
        )[:, 0]

    @cached_property
    def by_column(self) -> ByColumn:
        """The places of the stored entries in the order of their columns."""
        columns, order = self.columns.sort(stable=True)
        used, sorted_position, counts = columns.unique_consecutive(
            return_inverse=True, return_counts=True
        )
        position = torch.empty_like(order)
        position[order] = sorted_position
        bounds = functional.pad(counts.cumsum(0), (1, 0))
        return ByColumn(used, position, order, self.rows[order], bounds)

    def transposed_times(self, matrix: Tensor) -> Tensor:
        """Compute S' times a matrix (n_rows, m), for the columns that have entries."""
        _, _, order, rows, bounds = self.by_column
        return _bag(rows, self.values[order], bounds, matrix)


class ByColumn(NamedTuple):
    """Places of the stored entries of sparse rows, in the order of their columns.

    Attributes
    ----------
    used : Tensor of shape (n_used,)
        The columns that have stored entries, in ascending order.
    position : Tensor of shape (n_stored,)
        The position in `used` of each entry's column, in the order of the rows.
    order : Tensor of shape (n_stored,)
        The positions of the entries.
    rows : Tensor of shape (n_stored,)
        Their rows.
    bounds : Tensor of shape (n_used + 1,)
        Column ``used[i]`` has the entries from ``bounds[i]`` up to ``bounds[i + 1]``.
    """

    used: Tensor
    position: Tensor
    order: Tensor
    rows: Tensor
    bounds: Tensor


class SparseMembers:
    """Rows of several networks, which stacked linear layers accept like a tensor.

    Parameters
    ----------
    members : list of SparseRows
    """

    def __init__(self, members: list[SparseRows]):
        self.members = members

    @property
    def mT(self) -> SparseColumns:
        """The rows as columns, by which a stacked layer multiplies its weights."""
        return SparseColumns(self)


class SparseColumns:
    """Rows of several networks as the second factor of a product.

    Parameters
    ----------
    rows : SparseMembers
    """

    def __init__(self, rows: SparseMembers):
        self.rows = rows

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        is_layer = function is torch.baddbmm and not kwargs
        if is_layer and isinstance(args[2], SparseColumns):
            bias, weight, columns = args
            return (_Linear.apply(weight, *columns.rows.members) + bias.mT).mT
        return NotImplemented


def _bag(columns: Tensor, values: Tensor, bounds: Tensor, matrix: Tensor) -> Tensor:
    """Compute the product of a CSR matrix and a dense one."""
    return functional.embedding_bag(
        columns,
        matrix,
        bounds,
        mode="sum",
        per_sample_weights=values,
        include_last_offset=True,
    )


def _take(matrix: Tensor, rows: Tensor) -> Tensor:
    """Return rows of a matrix, which may be a transposed view, in contiguous memory."""
    if matrix.stride(0) == 1:
        return matrix.T.index_select(1, rows).T.contiguous()
    return matrix.index_select(0, rows)


class _Linear(torch.autograd.Function):
    """The products (S - 1 c') W' of several networks, with the gradients of W.

    W has the shape (n_members, n_outputs, n_features).
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, *members: SparseRows) -> Tensor:
        ctx.members, ctx.weight = members, weight
        products = []
        for W, rows in zip(weight, members, strict=True):
            used, position, *_ = rows.by_column
            columns = _take(W.T, used)  # (n_used, n_outputs)
            product = _bag(position, rows.values, rows.bounds, columns)
            products.append(product - W @ rows.offset)
        return torch.stack(products)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # In the memory layout of the weight.
        of_weight = torch.empty_like(ctx.weight)
        for out, g, rows in zip(of_weight, gradient, ctx.members, strict=True):
            torch.mul(-g.sum(dim=0)[:, None], rows.offset, out=out)
            out.T[rows.by_column.used] += rows.transposed_times(g)
        return of_weight, *[None] * len(ctx.members)


# Linear last layers


class LinearOutput(NamedTuple):
    """Reconstructions F W' + b before the last linear layer is computed.

    With several members, all have a first axis of length n_members.

    Attributes
    ----------
    F : Tensor of shape (n_rows, n_units)
        Input of the layer.
    weight : Tensor of shape (n_features, n_units)
        W.
    bias : Tensor of shape (n_features,)
        b.
    """

    F: Tensor
    weight: Tensor
    bias: Tensor

    @property
    def suits_products(self) -> bool:
        """Whether products of the weights take less time than the reconstructions.

        These need 3 products of n_rows x n_units x n_features to train, and the others
        2 of n_units x n_units x n_features.
        """
        n_rows, n_units = self.F.shape[-2:]
        return 2 * n_units <= 3 * n_rows

    def dense(self) -> Tensor:
        """Compute the reconstructions."""
        if self.F.ndim == 2:
            return torch.addmm(self.bias, self.F, self.weight.T)
        return torch.baddbmm(self.bias[:, None], self.F, self.weight.mT)

    def features(self, where: slice) -> LinearOutput:
        """Return the reconstructions of some features."""
        return LinearOutput(self.F, self.weight[..., where, :], self.bias[..., where])


def squared_distances(
    output: LinearOutput, target: SparseRows, metric: Tensor | None = None
) -> Tensor:
    r"""Compute the squared distances of rows to their reconstructions.

    .. math:: \sum_j m_j^2 (x_j - \hat x_j)^2

    over the observed entries.

    Parameters
    ----------
    output : LinearOutput
    target : SparseRows
    metric : Tensor of shape (n_features,), default=None
        Factor m of each feature; None means ones.

    Returns
    -------
    Tensor of shape (n_rows,) or (n_members, n_rows)
    """
    output, target = _measured(output, target, metric)
    dtype = output.F.dtype
    if not torch.is_grad_enabled():  # gradients need no more digits than float32 has
        output = LinearOutput(*(tensor.double() for tensor in output))
        target = target.double()
    if output.F.ndim == 3:
        return _SquaredDistance.apply(*output, target).to(dtype)
    single = (tensor[None] for tensor in output)
    return _SquaredDistance.apply(*single, target)[0].to(dtype)


def compared_squares(
    output: LinearOutput, target: SparseRows, metric: Tensor | None = None
) -> Tensor:
    """Compute the squares of which `squared_distances` are differences.

    A distance that is a fraction of them has lost as many digits.
    """
    output, target = _measured(output, target, metric)
    squares = target._row_sums(target.values.square())
    a = output.bias + target.offset
    return squares + a.square().sum(dim=-1, keepdim=True)


def _measured(
    output: LinearOutput, target: SparseRows, metric: Tensor | None
) -> tuple[LinearOutput, SparseRows]:
    """Multiply each feature by its factor."""
    if metric is None:
        return output, target
    return (
        LinearOutput(output.F, output.weight * metric[:, None], output.bias * metric),
        target.with_values(
            target.values * metric[target.columns],
            target.offset * metric,
            target.missing,
        ),
    )


class _SquaredDistance(torch.autograd.Function):
    r"""Squared distances of S - 1 c' and F W' + 1 b', and their gradients.

    With a = b + c,

    .. math:: |f W' + a - s|^2 = f W'W f' + 2 f (W'a - W's) + |a|^2 - 2 a's + |s|^2,

    and the gradients are sums of products of the same kind.
    """

    @staticmethod
    def forward(
        ctx: Any, F: Tensor, weight: Tensor, bias: Tensor, target: SparseRows
    ) -> Tensor:
        ctx.save_for_backward(F, weight, bias)
        ctx.target = target
        ctx.halves, ctx.left_out = [], []
        members = zip(F, weight, bias, strict=True)
        return torch.stack([_distances(ctx, *member, target) for member in members])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        F, weight, bias = ctx.saved_tensors
        # In the memory layout of the weight.
        of_weight, of_bias = torch.empty_like(weight), torch.empty_like(bias)
        twice = 2 * gradient[..., None]
        members = zip(
            twice * F,
            twice,
            F,
            weight,
            bias,
            ctx.left_out,
            of_weight,
            of_bias,
            strict=True,
        )
        for member in members:
            _add_gradients(ctx.target, *member)
        return twice * torch.stack(ctx.halves), of_weight, of_bias, None


def _distances(
    ctx: Any, F: Tensor, weight: Tensor, bias: Tensor, target: SparseRows
) -> Tensor:
    """Compute the squared distances of one member."""
    used, position, *_ = target.by_column
    a = bias + target.offset
    W_used, a_used = _take(weight, used), a[used]
    crossed = _bag(position, target.values, target.bounds, W_used)
    gram, projected = _products(weight, a)
    # The sums below are differences of larger ones, so they need more digits.
    linear = projected - crossed.double()
    # Half of the gradient with respect to F, without the missing entries.
    half = F.double() @ gram + linear
    values = target.values.double()
    products = values * (values - 2 * a_used.double()[position])
    constant = target._row_sums(products) + a.double().square().sum()
    distances = (F * (half + linear)).sum(dim=1) + constant
    # The residuals at missing entries, which do not count.
    left_out = None
    if target.missing is not None:
        rows, where = target.rows[target.missing], position[target.missing]
        residuals = (F[rows] * W_used[where]).sum(dim=1) + a_used[where]
        residuals -= target.values[target.missing]
        distances.index_add_(0, rows, -residuals.double().square())
        half.index_add_(0, rows, -(residuals[:, None] * W_used[where]).double())
        left_out = rows, where, residuals
    ctx.halves.append(half.to(F.dtype))
    ctx.left_out.append(left_out)
    return distances.clamp_(min=0).to(F.dtype)


def _add_gradients(
    target: SparseRows,
    scaled: Tensor,
    twice: Tensor,
    F: Tensor,
    weight: Tensor,
    bias: Tensor,
    left_out: tuple[Tensor, Tensor, Tensor] | None,
    of_weight: Tensor,
    of_bias: Tensor,
) -> None:
    """Compute the gradients of the last layer of one member, in the last two.

    `scaled` are the rows of F multiplied by `twice`, of shape (n_rows, 1).
    """
    used = target.by_column.used
    a, total = bias + target.offset, scaled.sum(dim=0)
    # Of W: W (F' F) + a (1' F) - S' F, with rows multiplied by the gradient.
    torch.matmul(weight, scaled.T @ F, out=of_weight)
    of_weight.addr_(a, total)
    torch.add(weight @ total, a * twice.sum(), out=of_bias)
    wide = torch.cat([scaled, twice], dim=1)
    product = target.transposed_times(wide)
    if left_out is not None:
        rows, where, residuals = left_out
        product.index_add_(0, where, residuals[:, None] * wide[rows])
    of_weight[used] -= product[:, :-1]
    of_bias[used] -= product[:, -1]


def _products(weight: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Compute W'W and W'a in float64, from products over some features each.

    In float32, a sum over all features would have a rounding error thirty times as
    large. At a PCA, where the gradient of the codes is zero, AdamW divides by it.
    """
    n_units = weight.shape[1]
    gram = weight.new_zeros(n_units, n_units, dtype=torch.float64)
    projected = weight.new_zeros(n_units, dtype=torch.float64)
    for rows, values in zip(
        weight.split(SUMMED_FEATURES), a.split(SUMMED_FEATURES), strict=True
    ):
        gram += rows.T @ rows
        projected += rows.T @ values
    return gram, projected


class Projection(NamedTuple):
    r"""Distances of rows to reconstructions, in as many dimensions as there are units.

    With W = Q R, the columns of Q orthonormal,

    .. math:: |f W' + a - s|^2 = |f R' - p|^2 + r^2, \quad p = (s - a) Q,
        \quad r^2 = |s - a|^2 - |p|^2.

    Attributes
    ----------
    R : Tensor of shape (n_units, n_units), or (min(n_units, n_features), n_units)
    target : Tensor of shape (n_rows, len(R) + 1)
        p, and r as the last column.
    """

    R: Tensor
    target: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, target: SparseRows) -> Projection:
        """Project rows on the columns of W, in float64.

        Missing entries count with their replacements.
        """
        Q, R = torch.linalg.qr(weight.double())
        a = (bias + target.offset).double()
        values = target.values.double()
        projected = _bag(target.columns, values, target.bounds, Q) - a @ Q
        products = values * (values - 2 * a[target.columns])
        square = target._row_sums(products) + a.square().sum()
        rest = (square - projected.square().sum(dim=1)).clamp(min=0).sqrt()
        return cls(R, torch.cat([projected, rest[:, None]], dim=1))

    def generate(self, F: Tensor) -> Tensor:
        """Return the projection of reconstructions F W', in the type of F."""
        projected = F @ self.R.to(F.dtype).T
        return functional.pad(projected, (0, 1))


# Losses that need every entry


class FeatureBlock(NamedTuple):
    """Some features of rows and of their reconstructions, as dense tensors.

    Attributes
    ----------
    where : slice
        Positions of the features.
    target : Tensor of shape (n_rows, n_block)
    observed : Tensor of bool of shape (n_rows, n_block) or None
        False where an entry is missing; None if none is.
    raw : Tensor of shape (n_rows, n_block) or (n_members, n_rows, n_block)
        The reconstructions.
    """

    where: slice
    target: Tensor
    observed: Tensor | None
    raw: Tensor


def feature_blocks(output: LinearOutput, target: SparseRows) -> Iterator[FeatureBlock]:
    """Iterate over blocks of features, of which all rows are dense at a time."""
    n_rows, n_features = target.shape
    n_values = output.F[..., 0].numel()  # per feature
    size = max(1, FEATURE_BLOCK // n_values)
    # The stored entries in the order of their features.
    columns, order = target.columns.sort(stable=True)
    rows, values = target.rows[order], target.values[order]
    missing = None if target.missing is None else target.missing[order]
    starts = torch.arange(0, n_features + size, size).clamp(max=n_features)
    bounds = torch.searchsorted(columns, starts).tolist()
    for i, start in enumerate(starts[:-1].tolist()):
        where = slice(start, min(start + size, n_features))
        stored = slice(bounds[i], bounds[i + 1])
        entries = rows[stored], columns[stored] - start
        dense = (-target.offset[where]).repeat(n_rows, 1)
        dense[entries] += values[stored]  # no entry is stored twice
        observed = None
        if missing is not None and missing[stored].any():
            observed = torch.ones_like(dense, dtype=torch.bool)
            observed[entries] = ~missing[stored]
        yield FeatureBlock(where, dense, observed, output.features(where).dense())


def summed_losses(
    loss: Callable[[FeatureBlock], Tensor], output: LinearOutput, target: SparseRows
) -> Tensor:
    """Sum a loss over the observed entries of each row.

    Reconstructions are computed for a block of features at a time.

    Parameters
    ----------
    loss : callable
        Computes the losses of a block, of the shape of `raw`. A loss is a function of
        the entry and its reconstruction alone.
    output : LinearOutput
    target : SparseRows

    Returns
    -------
    Tensor of shape (n_rows,) or (n_members, n_rows)
        Differentiable with respect to the tensors of `output`.
    """
    if torch.is_grad_enabled():
        return _SummedLosses.apply(*output, target, loss)
    total = output.F.new_zeros(output.F.shape[:-1])
    for block in feature_blocks(output, target):
        total += _summed(loss(block), block.observed)
    return total


def _summed(losses: Tensor, observed: Tensor | None) -> Tensor:
    if observed is not None:
        losses = torch.where(observed, losses, 0)
    return losses.sum(dim=-1)


class _SummedLosses(torch.autograd.Function):
    """Function and gradient of `summed_losses`.

    The derivatives of the losses are kept from the forward pass, and nothing else of
    the size of the rows.
    """

    @staticmethod
    def forward(
        ctx: Any,
        F: Tensor,
        weight: Tensor,
        bias: Tensor,
        target: SparseRows,
        loss: Callable[[FeatureBlock], Tensor],
    ) -> Tensor:
        total = F.new_zeros(F.shape[:-1])
        ctx.derivatives = []
        for block in feature_blocks(LinearOutput(F, weight, bias), target):
            raw = block.raw.requires_grad_()
            with torch.enable_grad():
                summed = _summed(loss(block._replace(raw=raw)), block.observed)
                (derivative,) = torch.autograd.grad(summed.sum(), raw)
            total += summed.detach()
            ctx.derivatives.append((block.where, derivative))
        ctx.save_for_backward(F, weight, bias)
        return total

    @staticmethod
    def backward(
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        F, weight, bias = ctx.saved_tensors
        of_F, of_weight, of_bias = map(torch.zeros_like, (F, weight, bias))
        scaled = gradient[..., None] * F  # (n_rows, n_units)
        for where, derivative in ctx.derivatives:
            of_F += derivative @ weight[..., where, :]
            of_weight[..., where, :] = (scaled.mT @ derivative).mT
            of_bias[..., where] = (gradient[..., None, :] @ derivative)[..., 0, :]
        ctx.derivatives.clear()
        return of_F * gradient[..., None], of_weight, of_bias, None, None
