"""Mean, variance and range of weighted columns, and how they are merged."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse
from sklearn.datasets import load_iris

from skae import _summary
from skae._rows import Rows
from skae._summary import summarize, weighted_median

IRIS = load_iris().data


@pytest.fixture(autouse=True)
def stored_entries(monkeypatch):
    """Read only the stored entries of small sparse tables, as of large ones."""
    monkeypatch.setattr(_summary, "MAX_DENSE_ENTRIES", 0)


each_container = pytest.mark.parametrize("container", [np.asarray, sparse.csr_array])


def with_missing(X, share=0.15):
    X = X.copy()
    X[np.random.default_rng(0).random(X.shape) < share] = np.nan
    return X


def sparse_table():
    return sparse.random_array((60, 5), density=0.4, format="csr", rng=0)


def assert_close(one, other, **tolerance):
    """Check that two summaries are equal up to rounding."""
    for name in ("weight", "mean", "variance", "deviation", "low", "high"):
        np.testing.assert_allclose(
            getattr(one, name), getattr(other, name), err_msg=name, **tolerance
        )


# Mean and variance


def test_mean_and_variance_equal_those_of_numpy():
    summary = summarize(Rows(IRIS))
    np.testing.assert_allclose(summary.mean, IRIS.mean(axis=0))
    np.testing.assert_allclose(summary.variance, IRIS.var(axis=0))
    np.testing.assert_allclose(summary.deviation, IRIS.std(axis=0))
    assert summary.weight.tolist() == [150] * 4


def test_weights_are_repetitions():
    counts = np.random.default_rng(0).integers(1, 5, len(IRIS))
    weighted = summarize(Rows(IRIS, weight=counts.astype(float)))
    repeated = np.repeat(IRIS, counts, axis=0)
    np.testing.assert_allclose(weighted.mean, repeated.mean(axis=0))
    np.testing.assert_allclose(weighted.variance, repeated.var(axis=0))
    assert_close(weighted, summarize(Rows(repeated)))


def test_statistics_are_over_observed_entries():
    X = with_missing(IRIS)
    summary = summarize(Rows(X))
    np.testing.assert_allclose(summary.mean, np.nanmean(X, axis=0))
    np.testing.assert_allclose(summary.variance, np.nanvar(X, axis=0))
    np.testing.assert_array_equal(summary.weight, (~np.isnan(X)).sum(axis=0))


def test_statistics_are_those_of_the_selected_rows():
    index = np.arange(20, 70)
    assert_close(summarize(Rows(IRIS, index)), summarize(Rows(IRIS[index])))


@pytest.mark.parametrize("missing", [False, True])
def test_sparse_statistics_equal_dense_ones(missing):
    X = sparse_table()
    if missing:
        X.data = with_missing(X.data)
    weight = np.random.default_rng(0).uniform(0.5, 2, X.shape[0])
    actual = summarize(Rows(X, weight=weight))
    assert_close(actual, summarize(Rows(X.toarray(), weight=weight)))


def test_statistics_do_not_depend_on_block_size(monkeypatch):
    X = with_missing(IRIS)
    whole = summarize(Rows(X), find_binary=True)
    monkeypatch.setattr(_summary, "CACHED_ENTRIES", 28)
    blocks = summarize(Rows(X), find_binary=True)
    assert_close(blocks, whole)
    np.testing.assert_array_equal(blocks.low, whole.low)
    np.testing.assert_array_equal(blocks.high, whole.high)


def test_statistics_of_float32_are_computed_in_float64():
    X = (IRIS + 1e4).astype(np.float32)
    summary = summarize(Rows(X))
    np.testing.assert_allclose(summary.mean, X.astype(float).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(summary.variance, X.astype(float).var(axis=0), rtol=1e-6)
    assert summary.low.dtype == np.float64


@each_container
def test_the_table_is_not_changed(container):
    X = with_missing(sparse_table().toarray())
    table = container(X.copy())
    summarize(Rows(table), find_binary=True)
    after = table.toarray() if sparse.issparse(table) else table
    np.testing.assert_array_equal(after, X)


# Constant and missing features


@each_container
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1])
def test_a_constant_feature_has_no_variance_and_deviation_one(container, value):
    X = np.c_[np.full(1000, value), np.arange(1000.0)]
    summary = summarize(Rows(container(X)))
    assert summary.variance[0] == 0
    assert summary.deviation[0] == 1
    assert summary.mean[0] == value  # exactly, since it is subtracted from the rows


def test_rounding_gives_a_constant_feature_no_variance(monkeypatch):
    monkeypatch.setattr(_summary, "CACHED_ENTRIES", 50)
    summary = summarize(Rows(np.full((1000, 1), 1 / 3)))
    assert summary.variance[0] == 0
    assert summary.deviation[0] == 1


def test_a_constant_feature_of_weighted_rows_has_no_variance():
    for seed in range(5):
        weight = np.random.default_rng(seed).uniform(0.1, 2, 300)
        summary = summarize(Rows(np.full((300, 1), 0.1), weight=weight))
        assert summary.variance[0] == 0


def test_a_constant_sparse_feature_of_weighted_rows_has_no_variance():
    rng = np.random.default_rng(1)
    weight = rng.uniform(0.1, 2, 300)
    X = sparse.csr_array(np.column_stack([np.full(300, 0.1), rng.random(300)]))
    summary = summarize(Rows(X, weight=weight))
    assert summary.variance[0] == 0
    assert summary.deviation[0] == 1


def test_a_feature_of_deviation_one_keeps_its_variance():
    summary = summarize(Rows(np.array([[-1.0], [1.0]])))
    assert summary.variance[0] == summary.deviation[0] == 1


@each_container
def test_a_feature_without_observed_entries_has_no_mean_and_no_range(container):
    X = np.c_[np.full(5, np.nan), np.arange(5.0)]
    summary = summarize(Rows(container(X)))
    assert summary.weight.tolist() == [0, 5]
    for name in ("mean", "low", "high"):
        assert np.isnan(getattr(summary, name)).tolist() == [True, False]


# Range and binary features


@each_container
def test_the_range_is_over_observed_entries_of_selected_rows(container):
    X = with_missing(sparse_table().toarray() - 0.3 * (np.arange(5) > 2))
    selected = np.arange(0, 60, 2)
    summary = summarize(Rows(container(X), selected))
    np.testing.assert_array_equal(summary.low, np.nanmin(X[selected], axis=0))
    np.testing.assert_array_equal(summary.high, np.nanmax(X[selected], axis=0))


@each_container
def test_binary_features_have_both_values_and_no_others(container):
    X = np.array(
        [
            # binary, missing entries, constant, another value, negative, fractions
            [0.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0],
            [1.0, np.nan, 0.0, 1.0, 1.0, -1.0, 0.5],
            [1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0],
        ]
    )
    summary = summarize(Rows(container(X)), find_binary=True)
    expected = [True, True, False, False, False, False, False]
    assert summary.is_binary.tolist() == expected
    assert summarize(Rows(container(X))).is_binary is None


# Weighted median


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(1, 4)), min_size=1))
def test_weighted_median_is_that_of_repeated_values(pairs):
    values, weight = np.array(pairs, dtype=float).T
    repeated = np.repeat(values, weight.astype(int))
    assert weighted_median(values, weight) == np.median(repeated)
    assert weighted_median(values, weight / 7) == np.median(repeated)


# Merging


@st.composite
def pieces(draw):
    """Two tables with weights: with NaN, constants, missing columns and offsets."""
    n_features = draw(st.integers(1, 4))
    offset = draw(
        hnp.arrays(
            np.float64, n_features, elements=st.sampled_from([0.0, 0.1, -1e4, 1e8])
        )
    )
    values = st.sampled_from([0.0, 0.0, 1.0, -2.5, 7.25, np.nan])

    def piece():
        n_rows = draw(st.integers(1, 8))
        X = draw(hnp.arrays(np.float64, (n_rows, n_features), elements=values))
        X[:, draw(hnp.arrays(bool, n_features))] = draw(values)  # constant or missing
        weight = draw(
            hnp.arrays(np.float64, n_rows, elements=st.sampled_from([0.5, 1.0, 3.0]))
        )
        return X + offset, weight

    return piece(), piece()


@given(pieces())
def test_merged_statistics_equal_those_of_all_rows(drawn):
    (A, a), (B, b) = drawn
    merged = summarize(Rows(A, weight=a)).merged(summarize(Rows(B, weight=b)))
    whole = summarize(Rows(np.vstack([A, B]), weight=np.concatenate([a, b])))
    np.testing.assert_allclose(merged.weight, whole.weight)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(merged.variance, whole.variance, rtol=1e-7)
    np.testing.assert_allclose(merged.deviation, whole.deviation, rtol=1e-7)
    np.testing.assert_array_equal(merged.low, whole.low)
    np.testing.assert_array_equal(merged.high, whole.high)
    np.testing.assert_array_equal(merged.variance == 0, whole.variance == 0)


@given(pieces())
def test_merging_is_symmetric_and_does_not_change_its_arguments(drawn):
    one, other = (summarize(Rows(X, weight=weight)) for X, weight in drawn)
    before = [array.copy() for array in (*one[:6], *other[:6])]
    assert_close(one.merged(other), other.merged(one), rtol=1e-7, atol=1e-14)
    for array, expected in zip((*one[:6], *other[:6]), before, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_a_variance_that_overflows_is_infinite():
    X = np.array([[1e200], [-1e200]])
    whole, merged = (
        summarize(Rows(X)),
        summarize(Rows(X[:1])).merged(summarize(Rows(X[1:]))),
    )
    for summary in (whole, merged):
        assert not np.isfinite(summary.variance).any()
        assert summary.deviation == 1


# Many rows

MANY = np.random.default_rng(0).normal(3, [1, 5, 1e-3], (70, 3))


def with_entry(value):
    X = MANY.copy()
    X[5, 1] = value
    return X


@pytest.mark.parametrize(
    "X",
    [
        MANY,
        MANY.astype(np.float32),
        MANY[:, ::-1],
        np.asfortranarray(MANY),
        MANY * [1, 0, 0] + [0, 0.1, 3.7],  # constants
        MANY * 1e-9 + 1e6,
        MANY * 1e-200,
        with_entry(np.nan),
        with_entry(1e300),
        np.full((70, 3), np.pi),
    ],
)
@pytest.mark.parametrize("block", [12, 10**6])
def test_statistics_of_many_rows_are_those_of_few(X, block, monkeypatch):
    monkeypatch.setattr(_summary, "CACHED_ENTRIES", block)
    few = summarize(Rows(X))
    monkeypatch.setattr(_summary, "MAX_CANONICAL_ROWS", 0)
    assert (_summary._summarize_complete(Rows(X)) is None) == bool(
        np.isnan(X).any() or not np.isfinite(few.variance).all()
    )
    many = summarize(Rows(X))
    assert_close(many, few, rtol=1e-6, atol=0)
    constant = few.variance == 0
    np.testing.assert_array_equal(many.mean[constant], few.mean[constant])
