"""Weights that count repetitions, and rows drawn by their weights."""

from __future__ import annotations

import numpy as np

# Largest number of equal rows that a weight may count. Larger numbers are more likely
# to be weights of another kind that happen to be whole.
MAX_COUNT = 1e6

# Weights that do not count rows are negligible below this fraction of their mean. Rows
# with such weights are not kept.
NEGLIGIBLE = 1e-3


def draw_positions(
    weight: np.ndarray, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw rows without replacement, as many as `size` if there are more.

    A row that stands for several rows can be drawn as often, see `repetitions`. Other
    weights are proportional to the probability that a row is drawn next.

    Returns
    -------
    position : ndarray of int64 of shape (n_drawn,)
        In increasing order.
    weight : ndarray of shape (n_drawn,)
        Number of rows that each of them stands for.
    """
    counts = repetitions(weight)
    if counts is None:
        position = np.flatnonzero(weight >= NEGLIGIBLE * weight.mean())
        if len(position) > size:
            share = weight[position] / weight[position].sum()
            position = np.sort(rng.choice(position, size, replace=False, p=share))
        return position, np.ones(len(position))
    if len(counts) <= size:
        return np.arange(len(counts)), counts
    reached = np.cumsum(counts)
    drawn = rng.choice(int(reached[-1]), size, replace=False)
    position, number = np.unique(
        np.searchsorted(reached, drawn, side="right"), return_counts=True
    )
    return position, number.astype(float)


def repetitions(weight: np.ndarray) -> np.ndarray | None:
    """Return how many rows of the table each distinct row stands for.

    Weights that are whole multiples of the smallest one, or of one, count repetitions,
    whatever their scale. None for other weights.
    """
    for counts in (weight / weight.min(), weight):
        if are_counts(counts):
            whole = counts.round()
            return whole / np.gcd.reduce(whole.astype(np.int64))
    return None


def are_counts(weight: np.ndarray) -> bool:
    """Whether weights are whole numbers, of rows that each of them stands for."""
    return bool(
        weight.min() >= 1 - 1e-6
        and weight.max() <= MAX_COUNT
        and np.abs(weight - weight.round()).max() <= 1e-6
    )
