"""What a fit of ordered components has learnt, for each number of components."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np

from skae._explained import VarianceCurve
from skae._layers import linear_part
from skae._module import Autoencoder
from skae.engine.net import AutoencoderNet


class Ordered(NamedTuple):
    """Which network decodes codes of each number of components.

    The network that was trained is used where it reconstructs held-out rows better than
    the PCA from which it started.

    Attributes
    ----------
    is_learnt : ndarray of bool of shape (n_components,)
        Whether the first 1, 2, ... components are those of the trained network; False
        for those of the PCA.
    other : AutoencoderNet or None
        The net of the other of these two networks than that of all components; None
        without a PCA.
    score_ratios : ndarray of shape (n_components,)
        Median score of a sample of the training rows, divided by that of all
        components. Those of `fit` remain in `partial_fit`.
    curve : VarianceCurve or None
        Explained variance of held-out rows, or of training rows where none are held
        out; None after `partial_fit`.
    """

    is_learnt: np.ndarray
    other: AutoencoderNet | None
    score_ratios: np.ndarray
    curve: VarianceCurve | None = None

    def learnt(self, net: AutoencoderNet) -> Autoencoder:
        """Return the trained module, for the net of all components."""
        return net.module_ if self.is_learnt[-1] else self._other_module

    def start(self, net: AutoencoderNet) -> Autoencoder | None:
        """Return the module of the PCA, if there is one."""
        if not self.is_learnt[-1]:
            return net.module_
        return None if self.other is None else self.other.module_

    @property
    def _other_module(self) -> Autoencoder:
        assert self.other is not None
        return self.other.module_

    def of_width(
        self, net: AutoencoderNet, width: int
    ) -> tuple[AutoencoderNet, Ordered]:
        """Return the net of the first `width` components, and what belongs to it.

        They share the weights of `net`, the net of all components.
        """
        nets = [net, self.other]
        if self.is_learnt[width - 1] != self.is_learnt[-1]:
            nets.reverse()
        own, other = (
            None if each is None else each.with_module(each.module_.of_width(width))
            for each in nets
        )
        assert own is not None
        ratios = self.score_ratios[:width] / self.score_ratios[width - 1]
        curve = None if self.curve is None else self.curve.of_width(width)
        return own, Ordered(self.is_learnt[:width], other, ratios, curve)


def linear_start(module: Autoencoder) -> Autoencoder:
    """Return the linear layers of a module that starts as a PCA, as another module."""
    start = module.of_width(module.n_components)
    start.encoder = linear_part(module.encoder)
    start.decoder = linear_part(module.decoder)
    return copy.deepcopy(start)
