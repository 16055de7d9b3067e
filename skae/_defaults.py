"""What "auto" means: settings derived from the shape of the data.

The numbers come from a search on twelve tables (landsat, magic.gamma,
annthyroid, fault, Cardiotocography, letter, vertebral, yeast, Hepatitis and
Waveform of ADBench; breast cancer and diabetes of scikit-learn) and were then
confirmed on twelve others.
"""

from __future__ import annotations

import math

# Training steps that a table gets, and the bounds of the epochs that make them.
N_STEPS = 4000
MIN_EPOCHS = 12
MAX_EPOCHS = 500

# Each time nothing improves any more, up to this often, the learning rate is
# divided by this.
MAX_DIVISIONS = 2
DIVISOR = 5


def auto_hidden_layer_sizes(n_features: int, n_components: int) -> tuple[int, ...]:
    """Encoder widths 4h, 2h, h.

    h is 64, or the first power of two from four times `n_components` on if that
    is more. No layer has more than 2**21 / `n_features` units, unless that is less
    than h: very wide tables get narrower layers.
    """
    h = max(64, 2 ** math.ceil(math.log2(4 * n_components)))
    most = max(h, 2**21 // n_features)
    return min(4 * h, most), min(2 * h, most), h


def auto_batch_size(n_samples: int) -> int:
    """A sixteenth of the training rows, but 8 at least and 128 at most."""
    return min(max(n_samples // 16, 8), 128)


def auto_learning_rate(batch_size: int) -> float:
    """0.004 for a batch of 128, and in proportion to the square root of its size."""
    return 4e-3 * math.sqrt(batch_size / 128)


def auto_max_epochs(n_batches: int) -> int:
    """As many epochs as make 4000 steps, but 12 at least and 500 at most."""
    return min(max(math.ceil(N_STEPS / n_batches), MIN_EPOCHS), MAX_EPOCHS)


def schedule(done: float) -> float:
    """Factor of the learning rate: one, then a line down to zero from 60 % on."""
    return min(1.0, (1 - done) / 0.4)
