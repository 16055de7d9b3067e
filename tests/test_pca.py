"""Facts about skae._pca."""

import pickle

import numpy as np
import pytest
from scipy import sparse
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA

from skae import _batches, _pca
from skae._batches import Rows
from skae._pca import moments, principal_axes, value_range

IRIS = load_iris().data


@pytest.fixture(params=["matrix", "products"])
def solver(request, monkeypatch):
    """Both ways to the axes: through the covariance matrix and without it."""
    if request.param == "products":
        monkeypatch.setattr(_pca, "MAX_COVARIANCE_WIDTH", 1)
    return request.param


def axes_of(rows, n_components, factor=None):
    factor = np.ones(rows.n_features) if factor is None else factor
    return principal_axes(rows, n_components, moments(rows).mean, factor, seed=0)


def with_missing(X, share=0.15):
    X = X.copy()
    X[np.random.default_rng(0).random(X.shape) < share] = np.nan
    return X


def sparse_table():
    return sparse.random_array((60, 5), density=0.4, format="csr", rng=0)


def deficient_table():
    """A table whose centred rank is 2."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((30, 2)) @ rng.standard_normal((2, 6)) + 3


# Moments


def test_moments_equal_numpy():
    mean, variance, deviation = moments(Rows(IRIS))
    np.testing.assert_allclose(mean, IRIS.mean(axis=0))
    np.testing.assert_allclose(variance, IRIS.var(axis=0))
    np.testing.assert_allclose(deviation, IRIS.std(axis=0))


def test_weighted_moments_equal_repetition():
    counts = np.random.default_rng(0).integers(1, 5, len(IRIS))
    weighted = moments(Rows(IRIS, weight=counts.astype(float)))
    repeated = np.repeat(IRIS, counts, axis=0)
    np.testing.assert_allclose(weighted.mean, repeated.mean(axis=0))
    np.testing.assert_allclose(weighted.variance, repeated.var(axis=0))


def test_moments_are_over_observed_entries():
    X = with_missing(IRIS)
    mean, variance, _ = moments(Rows(X))
    np.testing.assert_allclose(mean, np.nanmean(X, axis=0))
    np.testing.assert_allclose(variance, np.nanvar(X, axis=0))


def test_moments_count_chosen_rows_only():
    index = np.arange(20, 70)
    np.testing.assert_allclose(
        moments(Rows(IRIS, index)).mean, IRIS[index].mean(axis=0)
    )


@pytest.mark.parametrize("missing", [False, True])
def test_sparse_moments_equal_dense_ones(missing):
    X = sparse_table()
    if missing:
        X.data = with_missing(X.data)
    weight = np.random.default_rng(0).uniform(0.5, 2, X.shape[0])
    found = moments(Rows(X, weight=weight))
    expected = moments(Rows(X.toarray(), weight=weight))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other)


def test_moments_do_not_depend_on_the_size_of_blocks(monkeypatch):
    whole = moments(Rows(IRIS))
    monkeypatch.setattr(_batches, "BLOCK_ENTRIES", 28)
    for one, other in zip(moments(Rows(IRIS)), whole, strict=True):
        np.testing.assert_allclose(one, other)


def test_moments_of_float32_are_computed_in_float64():
    X = (IRIS + 1e4).astype(np.float32)
    mean, variance, _ = moments(Rows(X))
    np.testing.assert_allclose(mean, X.astype(float).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(variance, X.astype(float).var(axis=0), rtol=1e-6)


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1])
def test_a_constant_feature_has_no_variance_and_deviation_one(container, value):
    X = np.c_[np.full(1000, value), np.arange(1000.0)]
    spread = moments(Rows(container(X)))
    assert spread.variance[0] == 0
    assert spread.deviation[0] == 1
    assert spread.mean[0] == pytest.approx(value)


def test_rounding_gives_a_constant_feature_no_variance(monkeypatch):
    monkeypatch.setattr(_batches, "BLOCK_ENTRIES", 50)
    spread = moments(Rows(np.full((1000, 1), 1 / 3)))
    assert spread.variance[0] == 0
    assert spread.deviation[0] == 1


def test_a_constant_feature_of_weighted_rows_has_no_variance():
    for seed in range(5):
        weight = np.random.default_rng(seed).uniform(0.1, 2, 300)
        spread = moments(Rows(np.full((300, 1), 0.1), weight=weight))
        assert spread.variance[0] == 0


def test_a_feature_of_deviation_one_keeps_its_variance():
    spread = moments(Rows(np.array([[-1.0], [1.0]])))
    assert spread.variance[0] == spread.deviation[0] == 1


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_array])
def test_a_feature_without_observed_entries_has_no_mean(container):
    X = np.c_[np.full(5, np.nan), np.arange(5.0)]
    mean = moments(Rows(container(X))).mean
    assert np.isnan(mean).tolist() == [True, False]


@pytest.mark.parametrize("container", [np.array, sparse.csr_array])
def test_moments_and_axes_leave_the_table_alone(solver, container):
    X = with_missing(sparse_table().toarray())
    table = container(X)
    axes_of(Rows(table), 2)
    after = table.toarray() if sparse.issparse(table) else table
    np.testing.assert_array_equal(after, X)


# Axes


def test_axes_equal_those_of_pca(solver):
    axes, variances = axes_of(Rows(IRIS), 3)
    pca = PCA(3, svd_solver="full").fit(IRIS)
    np.testing.assert_allclose(axes, pca.components_, atol=1e-9)
    np.testing.assert_allclose(variances, pca.explained_variance_ * 149 / 150)


def test_axes_of_scaled_features_equal_pca_of_scaled_rows(solver):
    factor = np.array([1.0, 2.0, 5.0, 0.5])
    axes, _ = axes_of(Rows(IRIS), 2, factor)
    expected = PCA(2, svd_solver="full").fit(IRIS / factor).components_
    np.testing.assert_allclose(axes, expected, atol=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.15])
def test_weighted_axes_equal_repetition(solver, share):
    X = with_missing(IRIS, share)
    counts = np.random.default_rng(0).integers(1, 5, len(X))
    weighted = axes_of(Rows(X, weight=counts.astype(float)), 3)
    repeated = axes_of(Rows(np.repeat(X, counts, axis=0)), 3)
    for one, other in zip(weighted, repeated, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


def test_axes_of_chosen_rows_are_those_of_the_rows_alone(solver):
    index = np.arange(40, 110)
    found, expected = axes_of(Rows(IRIS, index), 2), axes_of(Rows(IRIS[index]), 2)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-9)


def test_sparse_axes_equal_dense_ones(solver):
    X = sparse_table()
    weight = np.random.default_rng(0).uniform(0.5, 2, X.shape[0])
    found = axes_of(Rows(X, weight=weight), 3)
    expected = axes_of(Rows(X.toarray(), weight=weight), 3)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


def test_sparse_axes_with_missing_entries_equal_dense_ones(solver):
    X = sparse_table()
    X.data = with_missing(X.data)
    found, expected = axes_of(Rows(X), 2), axes_of(Rows(X.toarray()), 2)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-9)


def test_both_ways_to_the_axes_agree(monkeypatch):
    direct = axes_of(Rows(IRIS), 2)
    monkeypatch.setattr(_pca, "MAX_COVARIANCE_WIDTH", 1)
    for one, other in zip(axes_of(Rows(IRIS), 2), direct, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.15])
def test_axes_do_not_depend_on_the_size_of_blocks(solver, monkeypatch, share):
    rows = Rows(with_missing(IRIS, share))
    whole = axes_of(rows, 2)
    monkeypatch.setattr(_batches, "BLOCK_ENTRIES", 28)
    for one, other in zip(axes_of(rows, 2), whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


def test_missing_entries_hardly_turn_the_axes(solver):
    complete, _ = axes_of(Rows(IRIS), 1)
    found, _ = axes_of(Rows(with_missing(IRIS, 0.05)), 1)
    assert (complete @ found.T).item() > 0.99


def test_covariance_with_missing_entries_is_over_shared_rows():
    X = with_missing(IRIS)
    mean, variance, _ = moments(Rows(X))
    covariance = _pca._covariance(Rows(X), mean, np.ones(4))
    centred = np.nan_to_num(X - mean)
    observed = (~np.isnan(X)).astype(float)
    np.testing.assert_allclose(
        covariance, centred.T @ centred / (observed.T @ observed)
    )
    np.testing.assert_allclose(covariance.diagonal(), variance)


def test_features_never_observed_together_have_no_covariance():
    X = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, 2.0], [np.nan, 6.0]])
    covariance = _pca._covariance(Rows(X), np.array([2.0, 4.0]), np.ones(2))
    np.testing.assert_array_equal(covariance, [[1, 0], [0, 4]])


def test_axes_beyond_the_rank_are_zero(solver):
    axes, variances = axes_of(Rows(deficient_table()), 5)
    assert axes.shape == (5, 6)
    np.testing.assert_allclose(axes[:2] @ axes[:2].T, np.eye(2), atol=1e-9)
    assert (variances[:2] > 0).all()
    assert not axes[2:].any()
    assert not variances[2:].any()


def test_axes_beyond_the_features_are_zero(solver):
    axes, variances = axes_of(Rows(IRIS), 7)
    assert axes.shape == (7, 4)
    assert variances.shape == (7,)
    assert not axes[4:].any()


def test_few_rows_give_as_many_axes_as_they_span(solver):
    axes, variances = axes_of(Rows(IRIS[[0, 60, 120]]), 3)
    assert np.count_nonzero(variances) == 2
    assert not axes[2].any()


def test_a_table_of_zeros_has_no_axes():
    axes, variances = axes_of(Rows(np.zeros((5, 3))), 2)
    assert not axes.any()
    assert not variances.any()


def test_an_offset_does_not_turn_the_axes(solver):
    found, variances = axes_of(Rows(deficient_table() + 1e6), 3)
    expected, _ = axes_of(Rows(deficient_table()), 3)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.count_nonzero(variances) == 2


def test_the_largest_entry_of_an_axis_is_positive(solver):
    X = np.random.default_rng(1).standard_normal((40, 6))
    axes, _ = axes_of(Rows(X), 5)
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    assert (largest > 0).all()


def test_variances_fall(solver):
    _, variances = axes_of(Rows(IRIS), 3)
    assert (np.diff(variances) < 0).all()


def test_products_with_vectors_are_as_good_as_a_wide_matrix():
    X = np.random.default_rng(0).standard_normal((12, _pca.MAX_COVARIANCE_WIDTH + 1))
    axes, variances = axes_of(Rows(X), 3)
    pca = PCA(3, svd_solver="full").fit(X)
    np.testing.assert_allclose(axes, pca.components_, atol=1e-8)
    np.testing.assert_allclose(variances, pca.explained_variance_ * 11 / 12)


def test_axes_draw_nothing_from_the_global_generator(solver):
    before = pickle.dumps(np.random.get_state())  # noqa: NPY002
    axes_of(Rows(IRIS), 2)
    assert pickle.dumps(np.random.get_state()) == before  # noqa: NPY002


@pytest.mark.parametrize("n_features", [3, 8, 20])
@pytest.mark.parametrize("seed", range(5))
def test_dependent_column_adds_no_axis(n_features, seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(500, n_features))
    X[:, -1] = X[:, :-1].sum(axis=1)
    spread = moments(Rows(X))
    axes, variances = principal_axes(
        Rows(X), n_features, spread.mean, np.ones(n_features), 0
    )
    assert (axes[-1] == 0).all()
    assert (variances > 0).tolist() == [True] * (n_features - 1) + [False]


def test_constant_table_has_no_axis():
    X = np.full((1000, 5), 0.1)
    axes, variances = principal_axes(
        Rows(X), 2, moments(Rows(X)).mean, np.ones(5), seed=0
    )
    assert (axes == 0).all()
    assert (variances == 0).all()


def test_weighted_constant_sparse_column_has_no_variance():
    rng = np.random.default_rng(1)
    weight = rng.uniform(0.1, 2, 300)
    X = sparse.csr_array(np.column_stack([np.full(300, 0.1), rng.random(300)]))
    spread = moments(Rows(X, weight=weight))
    assert spread.variance[0] == 0
    assert spread.deviation[0] == 1


# Range


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_array])
def test_the_range_is_that_of_the_observed_entries_of_chosen_rows(container):
    X = with_missing(sparse_table().toarray() - 0.3 * (np.arange(5) > 2))
    chosen = np.arange(0, 60, 2)
    low, high = value_range(Rows(container(X), chosen))
    np.testing.assert_array_equal(low, np.nanmin(X[chosen], axis=0))
    np.testing.assert_array_equal(high, np.nanmax(X[chosen], axis=0))


def test_the_range_does_not_depend_on_the_size_of_blocks(monkeypatch):
    X = with_missing(IRIS)
    whole = value_range(Rows(X))
    monkeypatch.setattr(_batches, "BLOCK_ENTRIES", 20)
    np.testing.assert_array_equal(value_range(Rows(X)), whole)


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_array])
def test_a_feature_without_observed_entries_has_no_range(container):
    X = IRIS.copy()
    X[:, 1] = np.nan
    low, high = value_range(Rows(container(X)))
    assert np.isnan([low[1], high[1]]).all()
    assert np.isfinite(low[[0, 2, 3]]).all()
