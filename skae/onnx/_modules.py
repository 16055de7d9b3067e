"""PyTorch modules that compute the outputs of an estimator and can be traced."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skae._base import BaseAutoencoder
from skae._categories import Categories, unknown_value
from skae._module import LIMIT, Autoencoder, Scaler
from skae._neighbors import KeptTensors, NearestRows
from skae._refine import (
    Problem,
    descend_all_at_once,
    initial_damping,
    steps_per_jacobian,
)
from skae._row_scores import row_error
from skae._whitening import Whitening

# Operator type of the node that stands for a whole refinement in a traced graph.
REFINEMENT = "Refinement"


class OutputModule(nn.Module):
    """Module whose outputs are the results of an estimator's methods.

    Parameters
    ----------
    autoencoder : TraceableAutoencoder
        Module of the estimator.
    methods : sequence of str
        Names of the methods, in the order of the outputs.
    offset : float
        Threshold of the scores.
    empty_row_score : float
        Score of rows without an observed entry.
    dtype : torch.dtype
        Type of codes and reconstructions.
    whitening : Whitening or None
        Map of the codes; None if they are not whitened.
    categories : Categories or None
        Categories of the features; None if these are numbers.
    """

    offset: Tensor
    empty_row_score: Tensor
    code_mean: Tensor
    code_scale: Tensor

    def __init__(
        self,
        autoencoder: Autoencoder,
        methods: Sequence[str],
        offset: float,
        empty_row_score: float,
        dtype: torch.dtype,
        whitening: Whitening | None,
        categories: Categories | None = None,
    ):
        super().__init__()
        self.autoencoder = autoencoder
        self.columns = None if categories is None else Columns(categories, dtype)
        self.methods = methods
        for name, value in (("offset", offset), ("empty_row_score", empty_row_score)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))
        self.dtype = dtype
        for name, values in ({} if whitening is None else whitening._asdict()).items():
            self.register_buffer(f"code_{name}", torch.from_numpy(values))
        self.is_whitened = whitening is not None

    def forward(self, X: Tensor) -> tuple[Tensor, ...]:
        X = self.columns_of(X)
        outputs = {}
        if "transform" in self.methods:
            codes = self.autoencoder.encode(X)
            if self.is_whitened:
                codes = (codes - self.code_mean) / self.code_scale
            outputs["transform"] = codes.to(self.dtype)
        if "reconstruct" in self.methods:
            X_hat = self.autoencoder(X)
            if self.columns is not None:
                X_hat = self.columns.decode(X_hat)
            outputs["reconstruct"] = X_hat.to(self.dtype)
        if set(self.methods) - outputs.keys():  # the others are based on the scores
            error = row_error(self.autoencoder, X)
            scores = -torch.where(error.isnan(), torch.inf, error)
            is_empty = X.isnan().all(dim=1)
            scores = torch.where(is_empty, self.empty_row_score, scores)
            outputs["score_samples"] = scores
            outputs["decision_function"] = scores - self.offset
            outputs["predict"] = torch.where(outputs["decision_function"] < 0, -1, 1)
        return tuple(outputs[name] for name in self.methods)

    def columns_of(self, X: Tensor) -> Tensor:
        """Return the rows that the network reads, in float64."""
        X = X.double()
        return X if self.columns is None else self.columns.encode(X)


class Columns(nn.Module):
    """Encodes numbers that stand for categories as columns, and decodes these.

    Numbers and truth values stand for themselves, other categories for their position
    among the categories of the feature.

    Parameters
    ----------
    categories : Categories
    dtype : torch.dtype
        Type of the numbers.
    """

    def __init__(self, categories: Categories, dtype: torch.dtype):
        super().__init__()
        self.n_features = len(categories.levels)
        self.first = categories.layout.first.tolist()
        self.widths = categories.layout.widths
        for j, levels in enumerate(categories.levels):
            if levels is not None:
                numbers = torch.tensor(category_numbers(levels, dtype), dtype=dtype)
                self.register_buffer(f"numbers_{j}", numbers.double())

    def encode(self, X: Tensor) -> Tensor:
        blocks = []
        for j in range(self.n_features):
            x = X[:, j : j + 1]
            numbers = getattr(self, f"numbers_{j}", None)
            if numbers is None:
                blocks.append(x)
                continue
            known = (x == numbers).double()
            is_known = known.sum(dim=1, keepdim=True) > 0
            block = torch.where(is_known, known, unknown_value(len(numbers)))
            blocks.append(torch.where(x.isnan(), torch.nan, block))
        return torch.cat(blocks, dim=1)

    def decode(self, X_hat: Tensor) -> Tensor:
        features = []
        for j, (start, width) in enumerate(zip(self.first, self.widths, strict=True)):
            block = X_hat[:, start : start + width]
            numbers = getattr(self, f"numbers_{j}", None)
            if numbers is not None:
                block = numbers[block.argmax(dim=1, keepdim=True)]
            features.append(block)
        return torch.cat(features, dim=1)


def category_numbers(levels: tuple[Any, ...], dtype: torch.dtype) -> list[float]:
    """Return the number that stands for each category of a feature in a graph.

    Raises
    ------
    ValueError
        If the type cannot distinguish them.
    """
    if any(isinstance(level, str) for level in levels):
        return [float(i) for i in range(len(levels))]
    largest = 2 / torch.finfo(dtype).eps  # up to it, the type has all integers
    inexact = [v for v in levels if isinstance(v, int) and abs(v) > largest]
    if not inexact:
        rounded = torch.tensor([float(v) for v in levels], dtype=dtype).tolist()
        counts = Counter(rounded)
        inexact = [v for v, r in zip(levels, rounded, strict=True) if counts[r] > 1]
    if inexact:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"dtype={name!r} cannot distinguish {inexact[0]}, a category of a feature, "
            "from other numbers. Use dtype='float64', or train with strings as "
            "categories, which graphs represent by their positions."
        )
    return [float(level) for level in levels]


class TraceableScaler(Scaler):
    """Scaler without a branch on whether entries are missing."""

    def forward(self, X: Tensor, *, overwrite: bool = False) -> tuple[Tensor, Tensor]:
        scaled = self.scale(X).clamp(-LIMIT, LIMIT)
        observed = ~scaled.isnan()
        scaled = torch.where(observed, scaled, self.scaled_mean)
        if self.completion is not None:
            scaled = self.completion.expectation(scaled, observed)
        return scaled.clamp(-LIMIT, LIMIT), observed


class TraceableNearestRows(NearestRows):
    """Nearest rows without a loop over blocks, and with tensors that are stored."""

    def __init__(self, neighbors: NearestRows):
        kept = neighbors.kept
        super().__init__(
            kept,
            neighbors.n_core,
            neighbors.n_neighbors,
            neighbors.n_seen,
            neighbors.n_around,
            neighbors.layout,
        )
        self.medians = neighbors.medians.cpu()
        self.spacing = neighbors.spacing.cpu()
        for name, tensor in kept.on(self.medians.device)._asdict().items():
            self.register_buffer(f"kept_{name}", tensor)

    @property
    def _tensors(self) -> KeptTensors:
        return KeptTensors(*(getattr(self, f"kept_{n}") for n in KeptTensors._fields))

    def _blocks(self, target: Any, observed: Tensor | None) -> Iterator[Any]:
        yield target, observed


class TraceableAutoencoder(Autoencoder):
    """Autoencoder whose refinement of codes is traced as a single operator.

    After tracing, the operator `REFINEMENT` is replaced by a loop over
    `RefinementRound`. Unrolled, the graph would contain the decoder once per step.
    """

    @classmethod
    def from_estimator(cls, estimator: BaseAutoencoder) -> TraceableAutoencoder:
        """Copy the float64 module of a fitted estimator to the CPU."""
        module: Any = copy.deepcopy(estimator.net_.module_in(np.dtype(np.float64)))
        module.__class__, module.scaler.__class__ = cls, TraceableScaler
        module.functions = None  # those of the original
        if module.neighbors is not None:
            module.neighbors = TraceableNearestRows(module.neighbors)
        return module.cpu().eval()

    def _refined(self, Z: Tensor, target: Tensor, max_iter: int) -> Tensor:
        if not max_iter:
            return Z
        return torch.onnx.ops.symbolic(
            f"skae::{REFINEMENT}",
            round_inputs(Z, target, max_iter),
            dtype=Z.dtype,
            shape=Z.shape,
            version=1,
        )

    def incomplete_rows(self, observed: Tensor) -> tuple[Tensor, ...]:
        return (torch.arange(observed.shape[0]),)  # without a branch on the values

    def may_have_excess(self, target: Tensor) -> bool:
        return True  # without a branch on the values

    def example_round_inputs(self, X: Tensor) -> tuple[Tensor, ...]:
        """Return example inputs of `RefinementRound` for rows X."""
        target, _ = self.scaler(X)
        Z = target.new_zeros(len(target), self.n_components)
        return round_inputs(Z, target, self.max_refinements)

    def problem(self, target: Tensor) -> Problem:
        """Return the problem that a refinement of codes solves.

        The codes that the finite differences need are decoded as one batch: one pass
        for each component would make the graph as many times as large.
        """

        def generate(Z: Tensor) -> Tensor:
            return self.output(self.decoder(Z))

        linearize = self._linearizer()
        return Problem(generate, target, linearize=linearize, few_rows=None)


def round_inputs(Z: Tensor, target: Tensor, max_iter: int) -> tuple[Tensor, ...]:
    """Return the inputs of the first `RefinementRound`."""
    n_left = torch.full_like(Z[:, 0], max_iter, dtype=torch.int64)
    has_converged = torch.zeros_like(Z[:, 0], dtype=torch.bool)
    return Z, initial_damping(Z), n_left, has_converged, target


class RefinementRound(nn.Module):
    """Steps of the refinement with one estimate of the Jacobian.

    Its outputs are the inputs of the next round.

    Parameters
    ----------
    autoencoder : TraceableAutoencoder
        Module that decodes the codes.
    """

    def __init__(self, autoencoder: TraceableAutoencoder):
        super().__init__()
        self.autoencoder = autoencoder

    def forward(
        self,
        Z: Tensor,
        damping: Tensor,
        n_left: Tensor,
        has_converged: Tensor,
        target: Tensor,
    ) -> tuple[Tensor, ...]:
        problem = self.autoencoder.problem(target)
        Z, damping, has_converged = descend_all_at_once(
            problem, Z, damping, has_converged, n_left
        )
        n_left = n_left - steps_per_jacobian(Z.shape[1])
        return Z, damping, n_left, has_converged, target
