"""PyTorch modules that compute the outputs of an estimator and can be traced."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skae._base import BaseAutoencoder
from skae._module import LIMIT, Autoencoder, Scaler
from skae._refine import Descent, begin_descent, descend, min_step

# Operator type of the node that stands for all steps of a refinement in a traced graph.
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
    """

    offset: Tensor
    empty_row_score: Tensor

    def __init__(
        self,
        autoencoder: Autoencoder,
        methods: Sequence[str],
        offset: float,
        empty_row_score: float,
        dtype: torch.dtype,
    ):
        super().__init__()
        self.autoencoder = autoencoder
        self.methods = methods
        for name, value in (("offset", offset), ("empty_row_score", empty_row_score)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))
        self.dtype = dtype

    def forward(self, X: Tensor) -> tuple[Tensor, ...]:
        X = X.double()
        outputs = {}
        if "transform" in self.methods:
            outputs["transform"] = self.autoencoder.encode(X).to(self.dtype)
        if "reconstruct" in self.methods:
            outputs["reconstruct"] = self.autoencoder(X).to(self.dtype)
        if set(self.methods) - outputs.keys():  # the others are based on the scores
            error = self.autoencoder.row_error(X)
            scores = -torch.where(error.isnan(), torch.inf, error)
            is_empty = X.isnan().all(dim=1)
            scores = torch.where(is_empty, self.empty_row_score, scores)
            outputs["score_samples"] = scores
            outputs["decision_function"] = scores - self.offset
            outputs["predict"] = torch.where(outputs["decision_function"] < 0, -1, 1)
        return tuple(outputs[name] for name in self.methods)


class TraceableScaler(Scaler):
    """Scaler without a branch on whether entries are missing."""

    def forward(self, X: Tensor, *, overwrite: bool = False) -> tuple[Tensor, Tensor]:
        scaled = self.scale(X).clamp(-LIMIT, LIMIT)
        observed = ~scaled.isnan()
        return torch.where(observed, scaled, self.scaled_mean), observed


class TraceableAutoencoder(Autoencoder):
    """Autoencoder whose refinement of codes is traced as a single operator.

    After tracing, the operator `REFINEMENT` is replaced by a loop over
    `RefinementStep`. Unrolled, the graph would contain the decoder once per step.
    """

    @classmethod
    def from_estimator(cls, estimator: BaseAutoencoder) -> TraceableAutoencoder:
        """Copy the float64 module of a fitted estimator to the CPU."""
        module: Any = copy.deepcopy(estimator.net_.module_in(np.dtype(np.float64)))
        module.__class__, module.scaler.__class__ = cls, TraceableScaler
        return module.cpu().eval()

    def _refined(
        self, Z: Tensor, target: Tensor, observed: Any, max_iter: int
    ) -> Tensor:
        if not max_iter:
            return Z
        return torch.onnx.ops.symbolic(
            f"skae::{REFINEMENT}",
            (*self.begin_refinement(Z, target, observed), target, observed),
            dtype=Z.dtype,
            shape=Z.shape,
            version=1,
        )

    def begin_refinement(self, Z: Tensor, target: Tensor, observed: Tensor) -> Descent:
        """Return the state before the first step.

        The codes that the finite differences need are decoded as one batch: one pass
        for each component would make the graph as many times as large.
        """

        def differences(residuals: Any, Z: Tensor, R: Tensor) -> Tensor:
            k = Z.shape[1]
            width = min_step(Z.dtype) * Z.abs().clamp(min=1)
            moved = Z[:, None] + torch.diag_embed(width)  # (n_samples, k, k)
            residuals = self.residual_function(
                _repeat_rows(target, k), _repeat_rows(observed, k)
            )
            R_moved = residuals(moved.flatten(0, 1)).unflatten(0, (-1, k))
            width = (moved - Z[:, None]).diagonal(dim1=1, dim2=2)
            return ((R_moved - R[:, None]) / width[:, :, None]).mT

        return begin_descent(self.residual_function(target, observed), Z, differences)

    def example_step_inputs(self, X: Tensor) -> tuple[Tensor, ...]:
        """Return example inputs of `RefinementStep` for rows X."""
        target, observed = self.scaler(X)
        Z = target.new_zeros(len(target), self.n_components)
        return (*self.begin_refinement(Z, target, observed), target, observed)

    def residual_function(
        self, target: Tensor, observed: Tensor
    ) -> Callable[[Tensor], Tensor]:
        """Return the function from codes to residuals, 0 at missing entries."""

        def residuals(Z: Tensor) -> Tensor:
            return (self.output(self.decoder(Z)) - target).where(observed, 0)

        return residuals


class RefinementStep(nn.Module):
    """One step of the refinement; its outputs are the inputs of the next step.

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
        R: Tensor,
        error: Tensor,
        J: Tensor,
        damping: Tensor,
        target: Tensor,
        observed: Tensor,
    ) -> tuple[Tensor, ...]:
        residuals = self.autoencoder.residual_function(target, observed)
        descent = descend(residuals, Descent(Z, R, error, J, damping))
        return (*descent, target, observed)


def _repeat_rows(values: Tensor, k: int) -> Tensor:
    """Repeat each row k times."""
    return values[:, None].expand(-1, k, -1).flatten(0, 1)  # (n_samples * k, ...)
