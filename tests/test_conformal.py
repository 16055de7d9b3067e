"""Conformal p-values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skae._conformal import conformal_p_values

SCORES = st.sampled_from([-np.inf, -7.0, -2.5, -1.0, -0.5, 0.0])


@given(
    hnp.arrays(float, (4, 2), elements=SCORES),
    *(hnp.arrays(float, st.integers(0, 6), elements=SCORES) for _ in range(2)),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60)
def test_p_values_follow_their_equation(scores, first, second, seed):
    rng = np.random.default_rng(seed)
    calibration = [
        (s, rng.integers(1, 4, len(s)).astype(float)) for s in (first, second)
    ]
    total = 1 + sum(weight.sum() for _, weight in calibration)
    expected = [
        (
            1
            + sum(
                w[values <= s].sum()
                for s, (values, w) in zip(row, calibration, strict=True)
            )
        )
        / total
        for row in scores
    ]
    np.testing.assert_array_equal(
        conformal_p_values(scores, calibration, 1e-12), expected
    )
    repeated = [
        (np.repeat(s, w.astype(int)), np.ones(int(w.sum()))) for s, w in calibration
    ]
    np.testing.assert_array_equal(conformal_p_values(scores, repeated, 1e-12), expected)


@pytest.mark.parametrize("sign", [-1, 1])
def test_scores_that_differ_by_rounding_are_ties(sign):
    values = np.array([-3.0, -2.0, -1.0])
    scores = np.array([[-2.0 * (1 + sign * 1e-14)]])
    p_values = conformal_p_values(scores, [(values, np.ones(3))], 1e-12)
    np.testing.assert_array_equal(p_values, [3 / 4])


def test_fractional_weights_never_give_more_than_one():
    rng = np.random.default_rng(0)
    calibration = [(-rng.random(1000), rng.random(1000)) for _ in range(3)]
    assert conformal_p_values(np.zeros((1, 3)), calibration, 1e-12) == 1.0
