"""What "auto" means: settings derived from the shape of the data."""

from __future__ import annotations

import math


def auto_n_components(n_features: int) -> int:
    """Width of the code: the square root of the number of features, rounded up."""
    return math.ceil(math.sqrt(n_features))


def auto_batch_size(n_samples: int) -> int:
    return min(64, max(8, n_samples // 20))


def auto_max_epochs(n_batches: int) -> int:
    return max(20, math.ceil(3000 / n_batches))


def auto_learning_rate(n_samples: int) -> float:
    return 2e-3


def schedule(done: float) -> float:
    return 1 - done
