"""Which partitions of a table are held out from training."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np

# Number of partitions from which whole partitions are held out. Of fewer ones, one
# partition would be too large a part of the rows.
MIN_WHOLE = 5

# Partitions by their positions, and the positions of the chosen rows, in ascending
# order; None means all of them.
Chosen: TypeAlias = list[tuple[int, np.ndarray | None]]


def choose_held_out(
    sizes: np.ndarray, fraction: float, rng: np.random.Generator
) -> tuple[Chosen, Chosen]:
    """Divide partitions into those to train on and those that are held out.

    Whole partitions are held out, about the given fraction of the rows; rows of the
    largest partition if there are fewer than `MIN_WHOLE` partitions.

    Parameters
    ----------
    sizes : ndarray of int of shape (n_partitions,)
        Numbers of rows.
    fraction : float
        In (0, 1).
    rng : numpy.random.Generator

    Returns
    -------
    train, held_out : list of tuple of int and (ndarray of int or None)
    """
    order, n_rows = rng.permutation(len(sizes)), int(sizes.sum())
    target = min(math.ceil(fraction * n_rows), n_rows - 1)
    if len(sizes) >= MIN_WHOLE:
        whole, n_held_out = [], 0
        for i in order:
            # A partition that is much too large is left out, unless it is the last.
            if n_held_out + sizes[i] <= 1.5 * target:
                whole.append(int(i))
                n_held_out += sizes[i]
            if n_held_out >= target:
                break
        whole = whole or [int(np.argmin(sizes))]
        rest = sorted(set(range(len(sizes))) - set(whole))
        return [(i, None) for i in rest], [(i, None) for i in sorted(whole)]
    train: Chosen = [(i, None) for i in range(len(sizes))]
    largest = int(np.argmax(sizes))
    target = min(target, int(sizes[largest]) - 1) or 1
    is_held_out = np.zeros(sizes[largest], dtype=bool)
    is_held_out[rng.choice(len(is_held_out), target, replace=False)] = True
    train[largest] = (largest, np.flatnonzero(~is_held_out))
    return train, [(largest, np.flatnonzero(is_held_out))]
