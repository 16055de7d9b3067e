"""Facts about skae._repetitions."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skae._repetitions import are_counts, draw_positions, repetitions


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ([1, 1, 1], [1, 1, 1]),
        ([1, 2, 3], [1, 2, 3]),
        ([0.5, 1, 1.5], [1, 2, 3]),
        ([4, 6, 10], [2, 3, 5]),
        ([2e300, 4e300, 2e300], [1, 2, 1]),
        ([0.1 + 0.2, 0.3, 0.1], [3, 3, 1]),
        ([0.7, 1.3, 2.2], None),
        ([0.7e10, 1.3e10, 2.2e10 + 1], None),
        ([1e-10, 0.7, 1.3], None),
        ([1e-8, 1, 1], None),
        ([1e-7, 1, 2], None),
    ],
)
def test_weights_count_repetitions_where_they_can(weight, expected):
    assert_array_equal(repetitions(np.array(weight, float)), expected)


@pytest.mark.parametrize("size", [5, 100])
@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("negligible", [1e-6, 1e-9])
def test_rows_of_negligible_weight_are_not_kept(negligible, counted, size):
    weight = np.linspace(0.5, 1.5, 40) ** np.pi
    weight[::4] = negligible
    if counted:
        weight[weight > 0.1] = 2.0
    position, kept_weight = draw_positions(weight, size, np.random.default_rng(0))
    assert len(position) == min(size, 30)
    assert (position % 4 > 0).all()
    assert (kept_weight == 1).all()


@pytest.mark.parametrize("factor", [1, 0.1])
def test_repeated_rows_are_drawn_as_often_as_they_occur(factor):
    counts = np.array([1, 5, 2, 8] * 50)
    drawn = np.zeros(200)
    for seed in range(40):
        generator = np.random.default_rng(seed)
        position, weight = draw_positions(factor * counts, 80, generator)
        assert weight.sum() == 80
        assert (weight <= counts[position]).all()
        drawn[position] += weight
    share = drawn.reshape(50, 4).sum(axis=0) / drawn.sum()
    assert_allclose(share, counts[:4] / 16, atol=0.02)


def test_rows_of_larger_weight_are_drawn_more_often():
    weight = np.tile([0.5 + 1 / np.pi, np.pi], 100)
    n_heavy = 0
    for seed in range(20):
        position, _ = draw_positions(weight, 50, np.random.default_rng(seed))
        n_heavy += (position % 2).sum()
    assert 0.6 < n_heavy / 1000 < 0.85  # about pi / (pi + .82)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ([1, 1], True),
        ([3, 7], True),
        ([0.3 / 0.1, 1], True),
        ([0.5, 1], False),
        ([1.5, 1], False),
        ([1e30, 1e30], False),
    ],
)
def test_whole_numbers_are_counts(weight, expected):
    assert are_counts(np.array(weight, float)) is expected
