"""Fitted attributes of the estimators, read from the result of the last fit."""

from __future__ import annotations

from typing import Any

import numpy as np

from skae._arrays import ArraySpace
from skae._job import Trained
from skae._whitening import Whitening
from skae.bottlenecks import BOTTLENECKS, Deterministic
from skae.engine.net import AutoencoderNet


class FittedAttributesMixin:
    """Properties for the fitted attributes, which do not exist before `fit`."""

    # The result of the last fit, from which all attributes below are derived.
    _trained: Trained

    bottleneck: Any  # constructor parameter

    def _is_fitted(self) -> bool:
        return "_trained" in vars(self)

    @property
    def net_(self) -> AutoencoderNet:
        """The skorch net that was trained, with its `history`."""
        return self._fitted.net

    @property
    def module_(self) -> Any:
        """Trained PyTorch module, in eval mode.

        Its submodules `encoder` and `decoder` work in the scaled space. Its methods
        `encode` and `decode` take and return rows in the units of the data, and codes
        that are `code_factor` times the encoder's output, not whitened. With several
        members, the first axis of the encoder's and the decoder's tensors is that of
        the members.
        """
        return self._fitted.net.module_

    @property
    def mean_(self) -> np.ndarray:
        """Mean of each feature over the rows of the call that built the network."""
        mean, categories = self._fitted.mean, self._fitted.categories
        if categories is not None:
            mean = categories.of_features(mean)
        return self._in_array_space(mean)

    @property
    def is_categorical_(self) -> np.ndarray | None:
        """Which features are categorical, a bool array; None if there are none."""
        categories = self._fitted.categories
        return None if categories is None else categories.is_categorical

    @property
    def n_components_(self) -> int:
        """Width of the code."""
        return self.module_.n_components

    @property
    def n_iter_(self) -> int:
        """Number of epochs for which the network was trained."""
        return len(self._fitted.net.history)

    @property
    def loss_curve_(self) -> list[float]:
        """Mean objective of the training rows in each epoch."""
        return list(self._fitted.curves.train)

    @property
    def validation_loss_curve_(self) -> list[float] | None:
        """Mean objective of the held-out rows after each epoch, or None."""
        valid = self._fitted.curves.aligned_valid
        return None if np.isnan(valid).all() else list(valid)

    @property
    def _fitted(self) -> Trained:
        """Result of the last fit; AttributeError before `fit`, for `hasattr`."""
        if not self._is_fitted():
            raise AttributeError(f"This {type(self).__name__} is not fitted yet.")
        return self._trained

    @property
    def _array_space(self) -> ArraySpace | None:
        """Where inputs must be, and arrays among the fitted attributes are.

        None means NumPy.
        """
        fields = self._fitted.array_space
        return None if fields is None else ArraySpace(*fields).usable

    def _in_array_space(self, values: np.ndarray) -> Any:
        """Return a fitted attribute as an array of the library of the last fit."""
        space = self._array_space
        return values if space is None else space.take(values.copy())

    @property
    def _whitening(self) -> Whitening | None:
        """Map that `transform` applies to codes; None if they are not whitened."""
        codes = self._fitted.code_summaries
        return None if codes is None else Whitening.of(codes[-1])

    @property
    def _bottleneck(self) -> Any:
        """Bottleneck of the last fit or, before `fit`, of the parameter.

        `hasattr` reads it before any validation, so an unknown name counts as
        ``"deterministic"``.
        """
        if self._is_fitted():
            return self._trained.parts.bottleneck
        if isinstance(self.bottleneck, str):
            return BOTTLENECKS.get(self.bottleneck, Deterministic)()
        return self.bottleneck

    def _bottleneck_attribute(self, name: str) -> Any:
        try:
            values = self._fitted.bottleneck_attributes[name]
        except KeyError:
            raise AttributeError(
                f"{type(self).__name__} has no attribute {name!r} with this bottleneck."
            ) from None
        return self._in_array_space(values)

    @property
    def active_units_(self) -> np.ndarray:
        """Which components vary, a bool array; only with a Gaussian bottleneck."""
        return self._bottleneck_attribute("active_units_")

    @property
    def perplexity_(self) -> np.ndarray:
        """Effective number of used codebook entries; only if codes are quantized."""
        return self._bottleneck_attribute("perplexity_")
