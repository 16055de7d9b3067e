"""Values of parameters that are ``"auto"``, derived from the shape of the data.

The numbers come from a search on twelve tables (landsat, magic.gamma, annthyroid,
fault, Cardiotocography, letter, vertebral, yeast, Hepatitis and Waveform of ADBench;
breast cancer and diabetes of scikit-learn) and were confirmed on twelve others.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple


class TrainingDefaults(NamedTuple):
    """Rules for `max_epochs` and `batch_size` if they are ``"auto"``.

    Attributes
    ----------
    n_steps, n_steps_from_pca : int
        Number of steps from random weights, and from the PCA, which needs fewer.
    min_epochs, max_epochs : int
        Bounds of the number of epochs.
    batch_share : float
        Size of a batch as a fraction of the training rows.
    min_batch, max_batch : int
        Bounds of the size of a batch.
    """

    n_steps: int
    n_steps_from_pca: int
    min_epochs: int
    max_epochs: int
    batch_share: float
    min_batch: int
    max_batch: int

    def auto_batch_size(self, n_samples: int) -> int:
        """Return the number of rows in a batch for a number of training rows."""
        n_rows = int(self.batch_share * n_samples)
        return min(max(n_rows, self.min_batch), self.max_batch)

    def auto_max_epochs(self, n_batches: int, at_pca: bool) -> int:
        """Return the number of epochs for a number of batches in an epoch."""
        n_steps = self.n_steps_from_pca if at_pca else self.n_steps
        n_epochs = math.ceil(n_steps / n_batches)
        return min(max(n_epochs, self.min_epochs), self.max_epochs)


# From the PCA, 2500 steps remove .002 less of its held-out error than 4000 steps, and
# 1500 steps .005 less, on tables of at most 2,100 training rows.
TRANSFORMER = TrainingDefaults(4000, 2500, 12, 500, 1 / 16, 8, 128)

# From a search on the 21 tables of `benchmarks/outliers.py` and about thirty others.
DETECTOR = TrainingDefaults(600, 600, 1, 150, 1.0, 8, 256)


# Number of weights that a table of any size justifies. On the digits, 40 components,
# 2**18 weights explained .004 less of the variance than 2**20; with 100 components and
# 1,000 rows, networks of more weights did not improve on the PCA.
MIN_CEILING = 2**20


def auto_hidden_layer_sizes(
    n_samples: int, n_features: int, n_components: int, n_members: int = 1
) -> tuple[int, ...]:
    """Return the encoder widths 4h, 2h, h, or only h for a member of an ensemble.

    h is the smallest power of two that is at least 4k, where k is the smaller of
    `n_components` and `n_features`, but at least 64, or 32 for a member. The layers of
    a single network have at most 2**21 / `n_features` units, unless that is less than
    h.

    All encoders together have at most 2**20 weights, or as many as the table has
    entries, if that is more: where they would have more, h is halved as long as it is
    at least k and the lower bound above, and then the wider layers are halved as long
    as they have at least h units.
    """
    ceiling = max(MIN_CEILING, n_samples * n_features)
    lowest = 32 if n_members > 1 else 64

    def widths(h: int, most: int) -> tuple[int, ...]:
        return (h,) if n_members > 1 else (min(4 * h, most), min(2 * h, most), h)

    def is_too_large(sizes: tuple[int, ...]) -> bool:
        layers = pairwise((n_features, *sizes, n_components))
        return n_members * sum(one * other for one, other in layers) > ceiling

    # A code that is wider than a row needs no wider layers: with 64 components for the
    # 30 features of breast cancer and penalty="kl", h = 256 explained .90 of the
    # variance of held-out rows in 72 s, and h = 128 all of it in 28 s.
    width = min(n_components, n_features)
    h = max(lowest, 2 ** math.ceil(math.log2(4 * width)))
    most = max(h, 2**21 // n_features)
    while is_too_large(widths(h, most)) and h // 2 >= max(lowest, width):
        h //= 2
    most = max(h, min(4 * h, most))
    while is_too_large(widths(h, most)) and most // 2 >= h:
        most //= 2
    return widths(h, most)


# Channels of two convolutions in a member of an ensemble or before a feature-map code.
SMALL_CHANNELS = (16, 32)

# Smallest and largest numbers of channels of two convolutions.
CHANNEL_BOUNDS = ((8, 64), (32, 128))


def auto_channels(layer: int, n_positions: int) -> int:
    """Return the channels of a convolution whose map has a number of positions.

    It is the largest power of two for which the map has at most 2048 values, within
    `CHANNEL_BOUNDS`. With (8, 32) channels, 10,000 images of MNIST are trained on in
    less than twice the time of the dense network; smaller images need more channels:
    with (8, 32), digits of 8 x 8 pixels have 17 % more held-out error than with
    (64, 128).
    """
    least, most = CHANNEL_BOUNDS[layer]
    n_channels = 2 ** math.floor(math.log2(max(1, 2048 / n_positions)))
    return min(max(n_channels, least), most)


def auto_learning_rate(batch_size: int) -> float:
    """Return ``0.004 * sqrt(batch_size / 128)``."""
    return 4e-3 * math.sqrt(batch_size / 128)


def schedule(done: float) -> float:
    """Return the factor of the learning rate after a fraction of the steps.

    It is 1 up to 60 % of the steps, and then decreases linearly to 0.
    """
    return min(1.0, (1 - done) / 0.4)
