"""Values of parameters that are ``"auto"``, derived from the shape of the data.

The numbers come from a search on twelve tables (landsat, magic.gamma, annthyroid,
fault, Cardiotocography, letter, vertebral, yeast, Hepatitis and Waveform of ADBench;
breast cancer and diabetes of scikit-learn) and were confirmed on twelve others.
"""

from __future__ import annotations

import math
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


def auto_hidden_layer_sizes(
    n_features: int, n_components: int, n_members: int = 1
) -> tuple[int, ...]:
    """Return the encoder widths 4h, 2h, h, or only h for a member of an ensemble.

    h is the smallest power of two that is at least four times `n_components`, but at
    least 64, or 32 for a member. The layers of a single network have at most
    2**21 / `n_features` units, unless that is less than h.
    """
    h = 2 ** math.ceil(math.log2(4 * n_components))
    if n_members > 1:
        return (max(32, h),)
    h = max(64, h)
    most = max(h, 2**21 // n_features)
    return min(4 * h, most), min(2 * h, most), h


def auto_learning_rate(batch_size: int) -> float:
    """Return ``0.004 * sqrt(batch_size / 128)``."""
    return 4e-3 * math.sqrt(batch_size / 128)


def schedule(done: float) -> float:
    """Return the factor of the learning rate after a fraction of the steps.

    It is 1 up to 60 % of the steps, and then decreases linearly to 0.
    """
    return min(1.0, (1 - done) / 0.4)
