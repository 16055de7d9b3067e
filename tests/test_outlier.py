import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from skae import AutoencoderOutlierDetector
from skae.outlier import threshold

BRIEF = {"hidden_layer_sizes": (16,), "max_epochs": 20, "random_state": 0}


@pytest.fixture(scope="module")
def table():
    """Points near a parabola and, last, twelve that are not; (212, 3)."""
    rng = np.random.default_rng(0)
    t = rng.uniform(-1, 1, size=200)
    inliers = np.column_stack([t, t**2, -t]) + 0.05 * rng.normal(size=(200, 3))
    return np.vstack([inliers, rng.uniform(-2, 2, size=(12, 3))])


@pytest.fixture(scope="module")
def detector(table):
    return AutoencoderOutlierDetector(1, **BRIEF).fit(table)


def test_rows_off_the_curve_have_lower_scores(detector, table):
    is_inlier = np.arange(len(table)) < 200
    assert roc_auc_score(is_inlier, detector.score_samples(table)) > 0.9


def test_decision_function_is_the_score_beyond_the_offset(detector, table):
    decision = detector.decision_function(table)
    assert_array_equal(decision, detector.score_samples(table) - detector.offset_)
    assert_array_equal(detector.predict(table), np.where(decision < 0, -1, 1))


def test_there_is_no_score(detector):
    assert not hasattr(detector, "score")


def test_contributions_sum_to_minus_the_score(detector, table):
    X = table.copy()
    X[::3, 1] = np.nan
    contributions = detector.feature_contributions(X)
    assert contributions.shape == X.shape
    assert contributions.dtype == np.float64
    assert (contributions >= 0).all()
    assert (contributions[::3, 1] == 0).all()
    assert_allclose(contributions.sum(axis=1), -detector.score_samples(X))


def test_contributions_point_at_the_changed_feature(detector, table):
    row = table[[0]]
    row[0, 2] += 3
    assert detector.feature_contributions(row)[0].argmax() == 2


@pytest.mark.parametrize("contamination", [0.05, 0.1, 0.5])
def test_contamination_flags_its_share_of_the_rows(table, contamination):
    detector = AutoencoderOutlierDetector(1, contamination=contamination, **BRIEF)
    n_flagged = (detector.fit_predict(table) == -1).sum()
    assert abs(n_flagged - contamination * len(table)) <= 0.5


def test_contamination_flags_its_share_of_the_weight(table):
    weight = np.where(np.arange(len(table)) < 200, 1, 10)
    detector = AutoencoderOutlierDetector(1, contamination=0.2, **BRIEF)
    flagged = detector.fit(table, sample_weight=weight).predict(table) == -1
    assert_allclose(weight[flagged].sum() / weight.sum(), 0.2, atol=0.02)


def test_auto_threshold_spares_clean_rows_and_finds_gross_ones(table):
    detector = AutoencoderOutlierDetector(1, **BRIEF)
    assert (detector.fit_predict(table[:200]) == -1).mean() <= 0.02
    gross = np.vstack([table[:200], np.full((3, 3), 50.0)])
    assert (clone(detector).fit_predict(gross)[-3:] == -1).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("contamination", ["auto", 0.3])
def test_no_row_of_a_constant_table_is_an_outlier(dtype, contamination):
    X = np.full((10, 3), 0.1, dtype=dtype)
    detector = AutoencoderOutlierDetector(contamination=contamination, **BRIEF)
    assert (detector.fit_predict(X) == 1).all()
    assert detector.predict(X[:1] + 1)[0] == -1


def test_partial_fit_sets_the_threshold_from_the_rows_given(table):
    detector = AutoencoderOutlierDetector(1, contamination=0.1, **BRIEF)
    for _ in range(3):
        detector.partial_fit(table)
    assert abs((detector.predict(table) == -1).mean() - 0.1) < 0.01


scores_and_weights = st.lists(
    st.tuples(st.floats(-100, 0), st.integers(1, 5)), min_size=1, max_size=30
).map(lambda pairs: (np.array(pairs)[:, 0], np.array(pairs)[:, 1]))


@settings(deadline=None, max_examples=100)
@given(scores_and_weights, st.sampled_from(["auto", 0.05, 0.1, 0.37, 0.5]))
def test_threshold_flags_some_row_but_never_all(pairs, contamination):
    scores, weight = pairs
    offset = threshold(scores, weight, contamination, rounding=1e-12)
    flagged = scores < offset
    if np.ptp(scores) == 0:
        assert not flagged.any()
    elif np.diff(np.unique(scores)).max() > 1e-9:
        assert flagged.any()
    assert not flagged.all()


@settings(deadline=None, max_examples=100)
@given(scores_and_weights, st.sampled_from(["auto", 0.1, 0.37]))
def test_threshold_counts_weights_as_repetitions(pairs, contamination):
    scores, weight = pairs
    repeated = np.repeat(scores, weight.astype(int))
    assert threshold(scores, weight, contamination, 1e-12) == threshold(
        repeated, np.ones(len(repeated)), contamination, 1e-12
    )


def test_threshold_lies_between_two_scores():
    scores = -np.arange(10.0)
    assert threshold(scores, np.ones(10), 0.2, rounding=1e-12) == -7.5


@pytest.mark.parametrize(("dtype", "value"), [(np.float64, 1e308), (np.float32, 1e38)])
def test_row_that_overflows_the_network_is_an_outlier(detector, dtype, value):
    row = np.array([[value, -value, value]], dtype=dtype)
    assert detector.score_samples(row) == -np.inf
    assert detector.feature_contributions(row).sum() == np.inf
    assert detector.predict(row) == -1


@pytest.mark.parametrize("contamination", [0, 0.51, 1, -0.1, "half"])
def test_contamination_outside_its_range_is_refused(contamination, table):
    detector = AutoencoderOutlierDetector(contamination=contamination)
    with pytest.raises(ValueError, match="'contamination' parameter"):
        detector.fit(table)
