"""The loss of tables with categorical features: a cross-entropy for each of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skae._categories import Layout
from skae._layers import BlockSoftmax
from skae.losses import MIN_DERIVATIVE, MIN_MEAN, Loss

# Smallest probability of which the logarithm is taken.
MIN_P = 1e-30


class CategoricalLoss(Loss):
    r"""Cross-entropy for categorical features, another loss for all others.

    .. math:: \ell(x_j, \hat x_j) = -\log \hat p_j(x_j)

    for a categorical feature with the category :math:`x_j`, whose predicted
    probabilities :math:`\hat p_j` are the softmax of the decoder's outputs in the
    feature's block of columns. Losses have one column for each feature.

    A category that no training row has gets the probability 1 / (1 + n), less than that
    of a category that occurs once in n training rows.

    Parameters
    ----------
    loss : Loss
        Loss of the features of numbers, bound to the features.
    layout : Layout
        Columns of the features.
    n_rows : tuple of float
        Weight of the training rows in which each feature is observed.
    """

    def __init__(self, loss: Loss, layout: Layout, n_rows: tuple[float, ...]):
        self.loss: Any = loss
        self.layout: Any = layout
        self.n_rows = n_rows

    @property
    def bounds(self) -> tuple[float, float] | None:  # type: ignore[override]
        return self.loss.bounds

    @property
    def output_activations(self) -> tuple[str, ...]:
        return ("auto",)

    @property
    def allows_pca(self) -> bool:
        return self.loss.allows_pca

    def bounded_columns(self, n_features: int) -> np.ndarray:
        return self._in_columns(self.loss.bounded_columns(self.layout.n_features))

    def build_output(self, n_features: int) -> nn.Module:
        return self._softmax(self.loss.build_output(self.layout.n_features))

    def decoder_start(self, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        is_given = len(mean) > 0
        first = self.layout.first if is_given else []
        start = self.loss.decoder_start(mean[first])
        if start is None or not is_given:
            return start
        # Of probabilities p that sum to one, the softmax of log p + d / p is p + d up
        # to first order for all deviations d that sum to zero.
        p = mean.clip(MIN_MEAN, 1)
        raw, slope = np.log(p), 1 / (p + MIN_DERIVATIVE)
        is_number = ~np.array(self.layout.is_categorical)
        for values, given in zip((raw, slope), start, strict=True):
            values[first[is_number]] = given[is_number]
        return raw, slope

    def scaled_columns(self, n_features: int) -> np.ndarray:
        scaled = self.loss.scaled_columns(self.layout.n_features)
        return scaled & ~np.array(self.layout.is_categorical)

    def noise_scale(self, level: Tensor) -> Tensor:
        return self.loss.noise_scale(level)

    def log_normalizer(self, scale: Tensor) -> Tensor:
        return self.loss.log_normalizer(scale)

    def elementwise(self, X: Tensor, X_hat: Tensor) -> Tensor:
        output = self._parts_on(X.device)
        numbers = self.loss.elementwise(*map(output.of_features, (X, X_hat)))
        blocks = [
            output.cross_entropy(X, output.block(X_hat, i).clamp(MIN_P).log(), i)
            for i in range(output.n_kinds)
        ]
        return output.joined_features(numbers, blocks)

    def elementwise_from_raw(self, X: Tensor, raw: Tensor, output: nn.Module) -> Tensor:
        if not isinstance(output, BlockSoftmax):
            return self.elementwise(X, output(raw))
        numbers = self.loss.elementwise_from_raw(
            output.of_features(X), output.of_features(raw), output.output
        )
        blocks = [
            output.cross_entropy(X, output.block(raw, i).log_softmax(dim=-1), i)
            for i in range(output.n_kinds)
        ]
        return output.joined_features(numbers, blocks)

    def residuals_from_raw(self, X: Tensor, raw: Tensor, output: nn.Module) -> Tensor:
        """Compute absolute residuals, and for categories the odds (1 - p) / p.

        The logarithm of one plus the odds is the cross-entropy -log p.
        """
        assert isinstance(output, BlockSoftmax)
        numbers = self.loss.residuals_from_raw(
            output.of_features(X), output.of_features(raw), output.output
        )
        blocks = []
        for i in range(output.n_kinds):
            p = output.probability(X, output.block(raw, i).softmax(dim=-1), i)
            blocks.append(1 / p.clamp(min=MIN_P) - 1)
        return output.joined_features(numbers, blocks)

    def _parts_on(self, device: torch.device) -> BlockSoftmax:
        return self._softmax(nn.Identity()).to(device)

    def _softmax(self, output: nn.Module) -> BlockSoftmax:
        return BlockSoftmax(output, self.layout, 1 / (1 + np.array(self.n_rows)))

    def _in_columns(self, of_features: np.ndarray) -> np.ndarray:
        """Return a mask of columns from one of features, False for categorical ones."""
        return self.layout.spread(of_features) & ~self.layout.is_one_hot
