"""Principal axes of weighted rows, from blocks of rows."""

import pickle

import numpy as np
import pytest
from scipy import sparse
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA

from skae import _pca, _rows
from skae._pca import count_needed, principal_axes
from skae._rows import Rows
from skae._summary import summarize

IRIS = load_iris().data


@pytest.fixture(params=["matrix", "products"])
def solver(request, monkeypatch):
    """Both algorithms: with the covariance matrix, and with products only."""
    if request.param == "products":
        monkeypatch.setattr(_pca, "MAX_COVARIANCE_WIDTH", 1)
    return request.param


@pytest.fixture(autouse=True)
def large_tables(monkeypatch):
    """Treat small tables as large ones, of which no dense blocks are kept."""
    monkeypatch.setattr(_pca, "MAX_KEPT_ENTRIES", 0)


def axes_of(rows, n_components, factor=None):
    factor = np.ones(rows.n_features) if factor is None else factor
    return principal_axes(rows, n_components, summarize(rows).mean, factor, seed=0)


def with_missing(X, share=0.15):
    X = X.copy()
    X[np.random.default_rng(0).random(X.shape) < share] = np.nan
    return X


def sparse_table():
    return sparse.random_array((60, 5), density=0.4, format="csr", rng=0)


def deficient_table():
    """A table whose centered rank is 2."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((30, 2)) @ rng.standard_normal((2, 6)) + 3


@pytest.mark.parametrize("container", [np.array, sparse.csr_array])
def test_axes_do_not_change_the_table(solver, container):
    X = with_missing(sparse_table().toarray())
    table = container(X)
    axes_of(Rows(table), 2)
    after = table.toarray() if sparse.issparse(table) else table
    np.testing.assert_array_equal(after, X)


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


def test_axes_are_those_of_the_selected_rows(solver):
    index = np.arange(40, 110)
    actual, expected = axes_of(Rows(IRIS, index), 2), axes_of(Rows(IRIS[index]), 2)
    np.testing.assert_allclose(actual[0], expected[0], atol=1e-9)


def test_sparse_axes_equal_dense_ones(solver):
    X = sparse_table()
    weight = np.random.default_rng(0).uniform(0.5, 2, X.shape[0])
    actual = axes_of(Rows(X, weight=weight), 3)
    expected = axes_of(Rows(X.toarray(), weight=weight), 3)
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


def test_sparse_axes_with_missing_entries_equal_dense_ones(solver):
    X = sparse_table()
    X.data = with_missing(X.data)
    actual, expected = axes_of(Rows(X), 2), axes_of(Rows(X.toarray()), 2)
    np.testing.assert_allclose(actual[0], expected[0], atol=1e-9)


def test_both_algorithms_give_the_same_axes(monkeypatch):
    direct = axes_of(Rows(IRIS), 2)
    monkeypatch.setattr(_pca, "MAX_COVARIANCE_WIDTH", 1)
    for one, other in zip(axes_of(Rows(IRIS), 2), direct, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.15])
def test_axes_do_not_depend_on_block_size(solver, monkeypatch, share):
    rows = Rows(with_missing(IRIS, share))
    whole = axes_of(rows, 2)
    monkeypatch.setattr(_rows, "BLOCK_ENTRIES", 28)
    for one, other in zip(axes_of(rows, 2), whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)


def test_few_missing_entries_hardly_change_the_axes(solver):
    complete, _ = axes_of(Rows(IRIS), 1)
    actual, _ = axes_of(Rows(with_missing(IRIS, 0.05)), 1)
    assert (complete @ actual.T).item() > 0.99


def test_covariance_is_over_rows_where_both_features_are_observed():
    X = with_missing(IRIS)
    summary = summarize(Rows(X))
    mean, variance = summary.mean, summary.variance
    axes, variances = axes_of(Rows(X), 4)
    covariance = (axes.T * variances) @ axes
    centered = np.nan_to_num(X - mean)
    observed = (~np.isnan(X)).astype(float)
    np.testing.assert_allclose(
        covariance, centered.T @ centered / (observed.T @ observed)
    )
    np.testing.assert_allclose(covariance.diagonal(), variance)


def test_features_never_observed_together_have_no_covariance():
    X = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, 2.0], [np.nan, 6.0]])
    axes, variances = axes_of(Rows(X), 2)
    np.testing.assert_allclose(axes, [[0, 1], [1, 0]], atol=1e-12)
    np.testing.assert_allclose(variances, [4, 1])


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


def test_number_of_axes_is_the_rank_of_few_rows(solver):
    axes, variances = axes_of(Rows(IRIS[[0, 60, 120]]), 3)
    assert np.count_nonzero(variances) == 2
    assert not axes[2].any()


def test_a_table_of_zeros_has_no_axes():
    axes, variances = axes_of(Rows(np.zeros((5, 3))), 2)
    assert not axes.any()
    assert not variances.any()


def test_offset_does_not_change_the_axes(solver):
    actual, variances = axes_of(Rows(deficient_table() + 1e6), 3)
    expected, _ = axes_of(Rows(deficient_table()), 3)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert np.count_nonzero(variances) == 2


def test_the_largest_entry_of_an_axis_is_positive(solver):
    X = np.random.default_rng(1).standard_normal((40, 6))
    axes, _ = axes_of(Rows(X), 5)
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    assert (largest > 0).all()


def test_variances_are_in_descending_order(solver):
    _, variances = axes_of(Rows(IRIS), 3)
    assert (np.diff(variances) < 0).all()


def test_axes_of_wide_tables_equal_those_of_pca():
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
    mean = summarize(Rows(X)).mean
    axes, variances = principal_axes(Rows(X), n_features, mean, np.ones(n_features), 0)
    assert (axes[-1] == 0).all()
    assert (variances > 0).tolist() == [True] * (n_features - 1) + [False]


def test_constant_table_has_no_axis():
    X = np.full((1000, 5), 0.1)
    axes, variances = principal_axes(
        Rows(X), 2, summarize(Rows(X)).mean, np.ones(5), seed=0
    )
    assert (axes == 0).all()
    assert (variances == 0).all()


@pytest.mark.parametrize("shape", [(60, 8), (12, 30), (40, 1500)], ids=str)
@pytest.mark.parametrize("share", [0.2, 0.7, 0.99])
def test_needed_components_are_those_of_pca(shape, share):
    rng = np.random.default_rng(0)
    X = rng.normal(size=shape) * rng.uniform(1, 5, size=shape[1])
    rows, mean = Rows(X), X.mean(axis=0)
    for factor in (np.ones(shape[1]), np.full(shape[1], 3.0)):
        found = count_needed([(rows, rows)], share, mean, factor, seed=0)
        assert found == PCA(share).fit(X).n_components_


def test_needed_components_explain_other_rows_in_the_units_of_the_data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5)) * [1, 10, 100, 1, 1]
    mean, factor = X.mean(axis=0), X.std(axis=0)
    halves = [(Rows(X[:100]), X[100:]), (Rows(X[100:]), X[:100])]
    for share in (0.5, 0.9, 0.999):
        rest, total = np.zeros(5), 0.0
        for rows, others in halves:
            own_mean = rows.X.mean(axis=0)
            axes, _ = principal_axes(rows, 5, own_mean, factor, seed=0)
            Y = (others - own_mean) / factor
            for k in range(5):
                a = axes[: k + 1]
                rest[k] += np.sum(((Y - Y @ a.T @ a) * factor) ** 2)
            total += np.sum((others - mean) ** 2)
        expected = int(np.argmax(1 - rest / total >= share)) + 1
        parts = [(rows, Rows(others)) for rows, others in halves]
        assert count_needed(parts, share, mean, factor, seed=0) == expected
