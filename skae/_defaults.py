"""What "auto" means: settings derived from the shape of the data.

The numbers come from a search on twelve tables (landsat, magic.gamma,
annthyroid, fault, Cardiotocography, letter, vertebral, yeast, Hepatitis and
Waveform of ADBench; breast cancer and diabetes of scikit-learn) and were then
confirmed on twelve others.
"""

from __future__ import annotations

import math
from typing import NamedTuple

# Each time nothing improves any more, up to this often, the learning rate is
# divided by this.
MAX_DIVISIONS = 2
DIVISOR = 5


class Training(NamedTuple):
    """How long, and in what batches, an estimator trains if nothing is said.

    Attributes
    ----------
    n_steps, n_steps_from_pca : int
        Steps that the epochs of a table have to make from a random start, and from
        the PCA, where less is left to learn.
    min_epochs, max_epochs : int
        Bounds of these epochs.
    batch_share : float
        Share of the training rows in a batch.
    min_batch, max_batch : int
        Bounds of its size.
    """

    n_steps: int
    n_steps_from_pca: int
    min_epochs: int
    max_epochs: int
    batch_share: float
    min_batch: int
    max_batch: int

    def auto_batch_size(self, n_samples: int) -> int:
        """A share of the training rows within bounds."""
        n_rows = int(self.batch_share * n_samples)
        return min(max(n_rows, self.min_batch), self.max_batch)

    def auto_max_epochs(self, n_batches: int, at_pca: bool) -> int:
        """As many epochs as make the steps, within bounds."""
        n_steps = self.n_steps_from_pca if at_pca else self.n_steps
        n_epochs = math.ceil(n_steps / n_batches)
        return min(max(n_epochs, self.min_epochs), self.max_epochs)


# From the PCA, 2500 steps remove .002 less of its held-out error than 4000, and 1500
# steps .005 less, on tables of 2,100 training rows at most.
TRANSFORMER = Training(4000, 2500, 12, 500, 1 / 16, 8, 128)

# From a search on the 21 tables of `benchmarks/outliers.py` and some thirty others.
DETECTOR = Training(600, 600, 1, 150, 1.0, 8, 256)


def auto_hidden_layer_sizes(
    n_features: int, n_components: int, n_members: int = 1
) -> tuple[int, ...]:
    """Encoder widths 4h, 2h, h, or h alone for one of several members.

    h is 64, of a member 32, or the first power of two from four times `n_components`
    on if that is more. Of a network alone no layer has more than 2**21 / `n_features`
    units, unless that is less than h: very wide tables get narrower layers.
    """
    h = 2 ** math.ceil(math.log2(4 * n_components))
    if n_members > 1:
        return (max(32, h),)
    h = max(64, h)
    most = max(h, 2**21 // n_features)
    return min(4 * h, most), min(2 * h, most), h


def auto_learning_rate(batch_size: int) -> float:
    """0.004 for a batch of 128, and in proportion to the square root of its size."""
    return 4e-3 * math.sqrt(batch_size / 128)


def schedule(done: float) -> float:
    """Factor of the learning rate: one, then a line down to zero from 60 % on."""
    return min(1.0, (1 - done) / 0.4)
