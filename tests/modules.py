"""A small autoencoder with a scaler, and rows for it."""

import numpy as np
import torch
from torch import nn

from skae._module import Autoencoder, Scaler
from skae.bottlenecks import Squeeze
from skae.losses import SquaredError
from skae.networks import MLP, Shape

MEAN, SHIFT, FACTOR = np.array([[1.0, -2, 3], [1, -2, 0], [2, 0.5, 4]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_rows(n_rows=5):
    return torch.randn(n_rows, 3, generator=generator(), dtype=torch.float64) + 1


def make_autoencoder(loss=None, output=None, hidden=(4,), **kwargs):
    encoder, decoder = MLP(hidden).build(Shape(9, 3, 2, 2), generator())
    return Autoencoder(
        Scaler(MEAN, SHIFT, FACTOR),
        encoder,
        Squeeze(),
        decoder,
        output or nn.Identity(),
        loss or SquaredError(),
        n_components=2,
        **kwargs,
    ).double()
