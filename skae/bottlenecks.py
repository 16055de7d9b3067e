"""Bottlenecks: what happens to a code between the encoder and the decoder.

A bottleneck is a small object that only stores its settings; `build` makes the
PyTorch module that does the work. Derive from :class:`Bottleneck` to bring your
own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from sklearn.base import BaseEstimator
from torch import nn

__all__ = ["Bottleneck", "Deterministic"]


class Bottleneck(BaseEstimator, ABC):
    """Base of all bottlenecks.

    Attributes
    ----------
    allows_pca : bool
        Whether a network with this bottleneck can start as a PCA, that is
        whether the decoder sees what the encoder said.
    """

    allows_pca: ClassVar[bool] = False
    _parameter_constraints: ClassVar[dict] = {}

    def encoder_width(self, n_components: int) -> int:
        """Number of values that the encoder has to give for `n_components`."""
        return n_components

    @abstractmethod
    def build(self, n_components: int, generator: torch.Generator) -> nn.Module:
        """Make the module that turns the encoder's output into a code.

        Parameters
        ----------
        n_components : int
            Width of the code.
        generator : torch.Generator
            Source of all initial values.

        Returns
        -------
        module : torch.nn.Module
            Maps the encoder's output of shape (n_samples, encoder_width) to a
            code of shape (n_samples, n_components). In eval mode the same row
            always gets the same code.
        """


class Deterministic(Bottleneck):
    """The plain bottleneck: the code is what the encoder says.

    Examples
    --------
    >>> import torch
    >>> from skae.bottlenecks import Deterministic
    >>> bottleneck = Deterministic().build(2, torch.Generator())
    >>> bottleneck(torch.tensor([[1.0, 2.0]]))
    tensor([[1., 2.]])
    """

    allows_pca: ClassVar[bool] = True

    def build(self, n_components: int, generator: torch.Generator) -> nn.Module:
        return nn.Identity()


BOTTLENECKS: dict[str, type[Bottleneck]] = {"deterministic": Deterministic}
