"""The threshold of an outlier detector, derived from scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skae._job import TrainingScores
from skae._threshold import threshold

ROUNDING = 1e-12


def flag(scores, contamination="auto", weight=None):
    scores = np.asarray(scores, dtype=float)
    weight = np.ones(len(scores)) if weight is None else np.asarray(weight, float)
    offset = threshold(scores, weight, contamination, ROUNDING)
    assert np.isfinite(offset)
    return scores < offset


scores_and_weights = st.lists(
    st.tuples(st.floats(-100, 100), st.integers(1, 5)), min_size=1, max_size=30
).map(lambda pairs: (np.array(pairs)[:, 0], np.array(pairs)[:, 1]))


@settings(deadline=None, max_examples=100)
@given(scores_and_weights)
def test_auto_flags_at_least_one_row_but_never_all(pairs):
    flagged = flag(pairs[0], "auto", pairs[1])
    if np.ptp(pairs[0]) == 0:
        assert not flagged.any()
    elif np.diff(np.unique(pairs[0])).max() > 1e-9:
        assert flagged.any()
    assert not flagged.all()


@settings(deadline=None, max_examples=100)
@given(scores_and_weights, st.floats(0.001, 0.5))
def test_a_number_flags_the_nearest_share(pairs, contamination):
    scores, weight = pairs
    scores = scores.round(1)  # ties, and no differences in the order of the rounding
    flagged = weight[flag(scores, contamination, weight)].sum() / weight.sum()
    shares = [weight[scores < s].sum() / weight.sum() for s in np.unique(scores)]
    nearest = min(abs(share - contamination) for share in shares)
    assert abs(abs(flagged - contamination) - nearest) < 1e-9


@settings(deadline=None, max_examples=100)
@given(scores_and_weights, st.sampled_from(["auto", 0.1, 0.37]))
def test_weights_are_repetitions(pairs, contamination):
    scores, weight = pairs
    repeated = np.repeat(scores, weight.astype(int))
    assert threshold(scores, weight, contamination, ROUNDING) == pytest.approx(
        threshold(repeated, np.ones(len(repeated)), contamination, ROUNDING), rel=1e-12
    )


def test_threshold_lies_between_two_scores():
    scores = -np.arange(10.0)
    assert threshold(scores, np.ones(10), 0.2, ROUNDING) == -7.5


@pytest.mark.parametrize(
    ("contamination", "share"),
    [(0.01, 0), (0.2, 0.4), (0.39, 0.4), (0.5, 0.4), ("auto", 0.4)],
)
def test_equal_scores_are_flagged_together(contamination, share):
    scores = np.repeat([-2.0, -1.0], [40, 60])
    assert flag(scores, contamination).mean() == share


def bulk(n):
    """Return the quantiles of errors with an exponential tail."""
    return 1 - 0.3 * np.log1p(-(np.arange(n) + 0.5) / n)


@pytest.mark.parametrize("n_outliers", [2, 20, 100])
@pytest.mark.parametrize("transform", ["identity", "huge", "tiny", "negative"])
def test_auto_flags_the_errors_behind_a_break(n_outliers, transform):
    errors = np.concatenate([bulk(400), np.linspace(5, 9, n_outliers)])
    factor, shift = {
        "identity": (1, 0),
        "huge": (1e307, 0),
        "tiny": (1e-300, 0),
        "negative": (1, -50),
    }[transform]
    flagged = flag(-(factor * errors + shift))
    assert flagged.tolist() == [False] * 400 + [True] * n_outliers


@pytest.mark.parametrize("n", [50, 400, 5000])
def test_auto_flags_few_rows_without_a_break(n):
    rng = np.random.default_rng(0)
    for errors in (bulk(n), rng.normal(size=n), rng.gamma(3, size=n), rng.random(n)):
        assert 1 <= flag(-errors).sum() <= max(1, min(0.015 * n, 8))


@pytest.mark.parametrize(
    ("draw", "n", "share"),
    [
        (lambda rng, n: rng.lognormal(size=n), 100, 0.045),
        (lambda rng, n: rng.lognormal(size=n), 10_000, 0.02),
        (lambda rng, n: (rng.standard_t(4, (n, 5)) ** 2).mean(1), 100, 0.045),
        (lambda rng, n: (rng.standard_t(4, (n, 5)) ** 2).mean(1), 10_000, 0.02),
    ],
    ids=["lognormal", "lognormal-many", "squares", "squares-many"],
)
def test_auto_flags_few_errors_of_heavy_tails(draw, n, share):
    n_draws = 60 if n < 1000 else 10
    errors = [draw(np.random.default_rng(seed), n) for seed in range(n_draws)]
    assert np.mean([flag(-e).mean() for e in errors]) <= share


@pytest.mark.parametrize("n", [300, 600, 2000])
@pytest.mark.parametrize(("share", "spread"), [(0.2, 1), (0.2, 3), (0.35, 3)])
def test_auto_flags_few_of_widely_spread_errors_behind_equal_ones(n, share, spread):
    # Like the errors of memorised rows and of those that trimming leaves out.
    rng = np.random.default_rng(0)
    flagged = []
    for _ in range(40):
        errors = 1 + 0.05 * rng.normal(size=n)
        is_left_out = rng.random(n) < share
        errors[is_left_out] = 1 + spread * rng.gamma(2, size=is_left_out.sum())
        flagged.append(flag(-errors).mean())
    assert np.median(flagged) <= 0.015


def test_auto_ignores_the_scale_of_the_weights():
    errors = np.concatenate([bulk(100), np.linspace(6, 9, 5)])
    for factor in (1e-6, 1, 1e6):
        assert flag(-errors, weight=np.full(105, factor)).sum() == 5


def test_a_group_that_is_spread_farther_than_its_distance_is_no_break():
    group = np.linspace(0, 40, 60)
    assert flag(-np.concatenate([bulk(400), 12 + group])).sum() == 60
    assert flag(-np.concatenate([bulk(400), 4 + group])).sum() < 60


@pytest.mark.parametrize(
    ("n_group", "is_isolated", "is_flagged"),
    [(80, 0, False), (80, 0.4, False), (80, 1, True), (15, 0, True), (80, None, True)],
)
def test_a_dense_group_is_flagged_only_if_it_is_small(n_group, is_isolated, is_flagged):
    errors = np.concatenate([bulk(400), np.linspace(6, 6.5, n_group)])
    isolated = None
    if is_isolated is not None:
        isolated = np.repeat([0.0, is_isolated], [400, n_group])
    weight = np.ones(len(errors))
    offset = threshold(-errors, weight, "auto", ROUNDING, isolated)
    n_flagged = (errors > -offset).sum()
    assert n_flagged == n_group if is_flagged else n_flagged <= 8


@pytest.mark.parametrize("contamination", ["auto", 0.02, 0.1])
def test_infinite_scores_are_flagged_and_do_not_move_the_threshold(contamination):
    errors = np.concatenate([bulk(380), np.linspace(6, 9, 10), np.full(10, np.inf)])
    flagged = flag(-errors, contamination)
    assert flagged[-10:].all()
    # Infinite scores count as flagged.
    expected = {"auto": 20, 0.02: 10, 0.1: 40}[contamination]
    assert flagged.sum() == expected


def test_rows_are_flagged_if_all_scores_are_infinite():
    assert flag(np.full(3, -np.inf)).all()


@pytest.mark.parametrize("contamination", ["auto", 0.1, 0.5])
@pytest.mark.parametrize("scores", [[0.0], [-3.0, -3.0], [5.0] * 3], ids=str)
def test_no_row_is_flagged_if_all_scores_are_equal(scores, contamination):
    assert not flag(scores, contamination).any()


# The record of scores


def record(values, weight=None):
    weight = np.ones(len(values)) if weight is None else weight
    return TrainingScores(np.asarray(values), weight, 1e-12, "log", weight.sum())


def test_scores_added_one_by_one_have_polynomial_weights():
    scores = record(np.zeros(1))
    for i in range(1, 50):
        scores = record(np.full(1, float(i))).added_to(scores, 1000, decay=3)
    np.testing.assert_array_equal(scores.values, np.arange(50))
    np.testing.assert_allclose(scores.weight, (np.arange(1, 51) / 50) ** 3)
    assert scores.n_seen == 50


def test_earlier_scores_have_a_limited_weight():
    scores = record(np.ones(10)).added_to(record(np.zeros(5000)), 1000, decay=3)
    np.testing.assert_allclose(scores.weight[:5000].sum(), 1000 * (1000 / 1010) ** 3)


def test_a_condensed_record_keeps_the_quantiles():
    rng = np.random.default_rng(0)
    values, weight = -rng.gamma(2, size=5000), rng.uniform(0.5, 2, size=5000)
    scores = record(values, weight)
    condensed = scores.condensed(1000)
    assert len(condensed.values) <= 500
    np.testing.assert_allclose(condensed.weight.sum(), weight.sum())
    for contamination in (0.01, 0.1, 0.5):
        offset = threshold(condensed.values, condensed.weight, contamination, ROUNDING)
        share = weight[values < offset].sum() / weight.sum()
        assert abs(share - contamination) < 0.003
    assert scores.condensed(5000) is scores


def test_records_keep_the_weight_of_isolated_rows():
    isolated = np.arange(100) % 4 == 0
    scores = record(-np.arange(100.0))._replace(isolated=isolated.astype(float))
    condensed = scores.condensed(20)
    np.testing.assert_allclose((condensed.weight * condensed.isolated).sum(), 25)
    added = scores.added_to(record(np.zeros(10)), 1000, decay=3)
    np.testing.assert_array_equal(added.isolated, [*np.ones(10), *isolated])


def test_rows_of_little_weight_are_flagged_by_the_widest_gap():
    errors = np.concatenate([[1, 1.1, 1.2], np.linspace(1.3, 2, 12), [50]])
    weight = np.concatenate([[1e20] * 3, np.ones(13)])
    assert flag(-errors, "auto", weight).sum() == 1


@pytest.mark.parametrize("side", [1, -1])
def test_an_excess_beyond_the_range_of_numbers_is_finite(side):
    errors = side * np.array([0.0, 4.0, 2.2e-308, -1.0, -2.0, -3.0])
    assert np.isfinite(threshold(-errors, np.ones(6), "auto", ROUNDING))
