"""Precision, overflow, empty rows, values out of range, and sparse formats."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.decomposition import PCA

from skae import AutoencoderOutlierDetector, AutoencoderTransformer, _rows
from skae._row_scores import EXCESS_WEIGHT
from skae.losses import Loss, Mixed
from skae.outlier import finite_scores

SMALL = {"hidden_layer_sizes": (8,), "max_epochs": 5, "random_state": 0}
TRANSFORMER = AutoencoderTransformer(2, early_stopping=False, init="random", **SMALL)
DETECTOR = AutoencoderOutlierDetector(2, **SMALL)

each_estimator = pytest.mark.parametrize("estimator", [TRANSFORMER, DETECTOR], ids=str)


def curved(n_samples=60, seed=0):
    """Rows near a curved surface, exactly representable in float32."""
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(-1, 1, (2, n_samples))
    X = np.column_stack([a, b, a * b, a**2, b**2 - a])
    return (X + 0.1 * rng.standard_normal(X.shape)).astype(np.float32).astype(float)


X = curved()
# Two binary columns, and two others.
TABLE = np.column_stack([X[:, :2] > 0, X[:, 2:4]])


@pytest.fixture(scope="module")
def transformer():
    return clone(TRANSFORMER).set_params(max_epochs=20).fit(X)


@pytest.fixture(scope="module")
def detector():
    return clone(DETECTOR).fit(X)


# Precision


def low_rank():
    """Rows that a PCA of three components reconstructs up to rounding errors."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 3)) @ rng.standard_normal((3, 6))
    return (X + 100).astype(np.float32).astype(float)


PLAIN = {"n_estimators": 1, "init": "auto"}


@pytest.mark.parametrize(
    ("kind", "settings", "table"),
    [
        (AutoencoderTransformer, {"n_components": 1, "max_epochs": 30}, "curved"),
        (AutoencoderTransformer, {"init": "random"}, "curved"),
        (AutoencoderTransformer, {"n_components": 3}, "low_rank"),
        (
            AutoencoderTransformer,
            {"network": "conv", "hidden_layer_sizes": "auto"},
            "curved",
        ),
        (AutoencoderTransformer, {"bottleneck": "quantized"}, "curved"),
        (AutoencoderTransformer, {"bottleneck": "gaussian"}, "curved"),
        (AutoencoderOutlierDetector, {}, "curved"),
        (AutoencoderOutlierDetector, {"n_components": 3, **PLAIN}, "low_rank"),
        (
            AutoencoderOutlierDetector,
            {"n_components": 3, "loss": "squared_error", "error": "loss", **PLAIN},
            "low_rank",
        ),
    ],
)
def test_float32_rows_give_the_results_of_float64(kind, settings, table):
    table = X if table == "curved" else low_rank()
    fitted = kind(**{**SMALL, "early_stopping": False, **settings}).fit(table)
    rows = table.astype(np.float32)
    scores = fitted.score_samples(table)
    assert_allclose(fitted.score_samples(rows), scores, rtol=1e-9)
    if hasattr(fitted, "predict"):
        assert_array_equal(fitted.predict(rows), fitted.predict(table))
        contributions = fitted.feature_contributions(rows)
        assert_allclose(contributions.sum(axis=1), -scores, rtol=1e-9)
        return
    Z = fitted.transform(table)
    codes = fitted.transform(rows)
    assert codes.dtype == fitted.reconstruct(rows).dtype == np.float32
    atol = 1e-5 * np.where(Z.std(axis=0) > 0, Z.std(axis=0), 1)
    assert (np.abs(codes - Z) <= atol).all()
    alone = np.vstack([fitted.transform(row[None]) for row in rows[:10]])
    assert (np.abs(alone - Z[:10]) <= atol).all()
    if hasattr(fitted, "quantize"):
        assert_array_equal(fitted.quantize(rows), fitted.quantize(table))


@pytest.mark.parametrize("power", [-60, 60])
def test_float32_rows_are_read_by_a_model_outside_the_range_of_float32(power):
    fitted = clone(TRANSFORMER).set_params(transform_max_iter=0).fit(X * 10.0**power)
    zeros = np.zeros((2, 5), dtype=np.float32)
    X_hat = fitted.reconstruct(zeros)
    assert np.isfinite(X_hat).all()
    expected = fitted.reconstruct(zeros.astype(float))
    limit = float(np.finfo(np.float32).max)
    assert_allclose(X_hat, expected.clip(-limit, limit), rtol=1e-5, atol=1e-40)


# Overflow

EXTREMES = st.sampled_from(
    [
        (np.float32, -3.4e38),
        (np.float32, float(np.finfo(np.float32).max)),
        (np.float64, 1e20),
        (np.float64, 1e200),
        (np.float64, -1e200),
        (np.float64, -np.finfo(np.float64).max),
        (np.float64, np.finfo(np.float64).max),
    ]
)


def with_extreme_rows(dtype, value, columns):
    rows = X[:6].astype(dtype)
    rows[2, columns] = value
    return rows


@settings(max_examples=25)
@given(EXTREMES, st.lists(st.integers(0, 4), min_size=1, unique=True))
def test_extreme_values_have_finite_codes_and_never_raise_the_score(
    transformer, extreme, columns
):
    rows = with_extreme_rows(*extreme, columns)
    codes = transformer.transform(rows)
    assert np.isfinite(codes).all()
    assert_array_equal(
        np.delete(codes, 2, 0), transformer.transform(rows)[[0, 1, 3, 4, 5]]
    )
    assert np.isfinite(transformer.reconstruct(rows)).all()
    assert np.isfinite(transformer.inverse_transform(codes)).all()
    assert transformer.score(rows) <= 0
    assert transformer.score(rows) <= transformer.score(np.delete(rows, 2, 0))
    assert transformer.score(sparse.csr_array(rows)) == transformer.score(rows)
    assert transformer.score_samples(rows)[2] < -1e15


@settings(max_examples=25)
@given(EXTREMES, st.lists(st.integers(0, 4), min_size=1, unique=True))
def test_extreme_values_are_outliers(detector, extreme, columns):
    rows = with_extreme_rows(*extreme, columns)
    assert detector.predict(rows)[2] == -1
    scores = detector.score_samples(rows)
    assert np.isfinite(scores).all()
    assert scores[2] < -1e15
    assert_allclose(detector.feature_contributions(rows).sum(axis=1), -scores)
    others = np.delete(scores, 2)
    assert_allclose(others, detector.score_samples(np.delete(rows, 2, 0)))


def test_a_score_below_zero_is_not_raised_either(transformer):
    worst = clone(transformer).fit(X)
    with torch.no_grad():
        for parameter in worst.module_.encoder.parameters():
            parameter.mul_(50)
    worst.module_.max_refinements = 0
    rows = X[:6].copy()
    before = worst.score(rows)
    assert before < 0
    rows[0, 0] = 1e200
    assert worst.score(rows) <= worst.score(rows[1:]) * (1 - 1e-9)


def test_values_at_the_edge_of_float32_have_finite_reconstructions():
    rows = (X * 1e37).astype(np.float32)
    fitted = clone(TRANSFORMER).fit(rows)
    rows[0] = np.finfo(np.float32).max
    rows[1] = -rows[0]
    assert np.isfinite(fitted.transform(rows)).all()
    assert np.isfinite(fitted.reconstruct(rows)).all()


def test_values_beyond_the_limit_are_not_learnt():
    with pytest.raises(ValueError, match=r"values beyond 1e\+16 .*scale=None"):
        clone(TRANSFORMER).set_params(scale=None).fit(X * 1e20)
    fitted = clone(DETECTOR).partial_fit(X)
    before = fitted.score_samples(X)
    with pytest.raises(ValueError, match=r"values beyond 1e\+16 .* first fit"):
        fitted.partial_fit(X * 1e20)
    assert_array_equal(fitted.score_samples(X), before)


@given(st.lists(st.floats(-1e9, 0) | st.just(-np.inf), min_size=1))
def test_thresholds_see_infinite_scores_as_finite_ones_below_all_others(scores):
    scores = np.array(scores)
    finite = finite_scores(scores)
    assert np.isfinite(finite).all()
    is_finite = np.isfinite(scores)
    assert_array_equal(finite[is_finite], scores[is_finite])
    if is_finite.any() and not is_finite.all():
        assert finite[~is_finite].max() < finite[is_finite].min()


# Rows without an observed entry


def with_empty_rows(table, n_empty=200):
    empty = np.full((n_empty, table.shape[1]), np.nan, dtype=table.dtype)
    mixed = np.vstack([empty[:1], table, empty[1:]])
    return mixed, np.r_[1 : 1 + len(table)]


@pytest.mark.parametrize("convert", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("maximum", [10, 10_000])
@each_estimator
def test_empty_rows_are_not_learnt(estimator, convert, maximum, monkeypatch):
    monkeypatch.setattr(_rows, "MAX_CANONICAL_ROWS", maximum)
    table, where = with_empty_rows(X)
    fitted, expected = clone(estimator), clone(estimator)
    fitted.fit(convert(table))
    expected.fit(convert(X))
    assert_array_equal(fitted.mean_, expected.mean_)
    assert_allclose(fitted.score_samples(table)[where], expected.score_samples(X))
    fitted.partial_fit(convert(table))
    expected.partial_fit(convert(X))
    assert_allclose(fitted.score_samples(table)[where], expected.score_samples(X))
    assert fitted.loss_curve_ == expected.loss_curve_


@pytest.mark.parametrize(
    "settings",
    [
        {"bottleneck": "gaussian"},
        {"bottleneck": "gaussian", "loss": "absolute_error"},
        {"bottleneck": "quantized"},
        {"penalty": "kl", "penalty_weight": 10.0},
        {"corruption": "gaussian", "corruption_level": 5.0},
    ],
)
@pytest.mark.parametrize("size", [7, 60])
def test_an_empty_row_scores_as_rows_do_after_partial_fit(settings, size):
    # The objective has terms that the score does not have.
    rows = np.random.default_rng(0).standard_normal((60, 4)) * [3, 2, 1, 1]
    model = AutoencoderTransformer(
        2, hidden_layer_sizes=(8,), random_state=0, **settings
    )
    for _ in range(5):
        for start in range(0, 60, size):
            model.partial_fit(rows[start : start + size])
    scores = model.score_samples(rows)
    (score,) = model.score_samples(np.full((1, 4), np.nan))
    low, high = np.quantile(scores, [0.1, 0.9])
    assert low <= score <= high


def test_the_score_of_an_empty_row_is_the_median_of_the_training_scores():
    weight = np.arange(len(X)) % 3 + 1
    empty = np.full((3, 5), np.nan)
    for estimator in (TRANSFORMER, DETECTOR):
        fitted = clone(estimator).fit(X, sample_weight=weight)
        scores = np.repeat(fitted.score_samples(X), weight)
        assert_allclose(fitted.score_samples(empty), np.median(scores))
        for rows in (empty.astype(np.float32), sparse.csr_array(empty)):
            assert_allclose(fitted.score_samples(rows), np.median(scores))


@pytest.mark.parametrize("contamination", ["auto", 0.01, 0.5])
@pytest.mark.parametrize("n_empty", [1, 500])
def test_empty_rows_are_inliers_without_contributions(contamination, n_empty):
    table, where = with_empty_rows(X, n_empty)
    fitted = clone(DETECTOR).set_params(contamination=contamination).fit(table)
    labels = fitted.predict(table)
    assert (np.delete(labels, where) == 1).all()
    assert_array_equal(labels[where], clone(fitted).fit(X).predict(X))
    assert not np.delete(fitted.feature_contributions(table), where, axis=0).any()


def test_the_code_of_an_empty_row_is_that_of_the_mean():
    fitted = clone(TRANSFORMER).set_params(transform_max_iter=0).fit(X)
    empty = np.full((1, 5), np.nan)
    assert_allclose(fitted.transform(empty), fitted.transform(fitted.mean_[None]))
    table, _ = with_empty_rows(X)
    assert_allclose(fitted.score(table), fitted.score(X))


@each_estimator
def test_tables_of_empty_rows_are_refused(estimator):
    empty = np.full((4, 5), np.nan)
    table = np.vstack([empty, X[:2]])
    weight = np.r_[1, 1, 1, 1, 0, 0]
    match = "X has no observed value"
    for fit in (clone(estimator).fit, clone(estimator).fit(X).partial_fit):
        with pytest.raises(ValueError, match=match):
            fit(empty)
        with pytest.raises(ValueError, match=match):
            fit(table, sample_weight=weight)
    if hasattr(estimator, "score"):
        with pytest.raises(ValueError, match=match):
            clone(estimator).fit(X).score(table, sample_weight=weight)


# Values out of the range of a loss


class Gamma(Loss):
    """A loss for values in [1, 20], whose gradient does not matter here."""

    bounds = (1.0, 20.0)
    output_activation = "softplus"

    def elementwise(self, X, X_hat):
        return (X - X_hat) ** 2


OUT_OF_RANGE = [
    ("mixed", TABLE, 0, 7.0),
    ("mixed", TABLE, 1, -1.0),
    (Mixed(binary=[0]), TABLE, 0, 1.5),
    ("binary_cross_entropy", np.abs(X).clip(0, 1), 3, 7.0),
    ("binary_cross_entropy", np.abs(X).clip(0, 1), 0, -2.0),
    (Gamma(), np.abs(X) + 1, 2, 0.0),
    (Gamma(), np.abs(X) + 1, 2, 1e100),
]

each_out_of_range = pytest.mark.parametrize(
    ("loss", "table", "column", "value"),
    OUT_OF_RANGE,
    ids=[f"{loss}-{value}" for loss, _, _, value in OUT_OF_RANGE],
)


@each_out_of_range
@pytest.mark.parametrize("settings", [{}, {"error": "loss"}], ids=str)
def test_a_value_out_of_range_is_the_clearest_outlier(
    loss, table, column, value, settings
):
    fitted = clone(DETECTOR).set_params(loss=loss, **settings).fit(table)
    rows = table[:5].copy()
    rows[3, column] = value
    scores = fitted.score_samples(rows)
    assert np.isfinite(scores).all()
    assert scores[3] < fitted.score_samples(table).min() - 1e4
    assert fitted.predict(rows)[3] == -1
    assert_allclose(fitted.feature_contributions(rows).sum(axis=1), -scores)
    assert fitted.feature_contributions(rows)[3].argmax() == column
    assert_allclose(np.delete(scores, 3), fitted.score_samples(table)[[0, 1, 2, 4]])


@each_out_of_range
def test_codes_of_values_out_of_range_are_those_at_the_bound(
    loss, table, column, value
):
    fitted = clone(TRANSFORMER).set_params(loss=loss).fit(table)
    low, high = (0, 1) if loss != OUT_OF_RANGE[-1][0] else Gamma.bounds
    rows = table[:4].copy()
    rows[2, column] = value
    at_bound = rows.copy()
    at_bound[2, column] = np.clip(value, low, high)
    assert_array_equal(fitted.transform(rows), fitted.transform(at_bound))
    assert fitted.score(rows) <= fitted.score(np.delete(rows, 2, 0)) + 1e-12


@each_out_of_range
def test_values_out_of_range_are_not_learnt(loss, table, column, value):
    rows = table.copy()
    rows[2, column] = value
    fitted = clone(TRANSFORMER).set_params(loss=loss).partial_fit(table)
    for fit in (fitted.partial_fit, clone(fitted).set_params(loss=loss).fit):
        if loss == "mixed" and fit.__name__ == "fit":
            continue  # the column is not binary
        with pytest.raises(ValueError, match=r"loss=.* needs .* got values between"):
            fit(rows)
        fit(rows, sample_weight=np.arange(len(rows)) != 2)


def test_a_rounding_error_beyond_the_range_has_no_effect():
    table = np.abs(X).clip(0, 1)
    fitted = clone(DETECTOR).set_params(loss="binary_cross_entropy").fit(table)
    table[0] = 1
    expected = fitted.score_samples(table)
    table[0] = 1 + 1e-15
    assert_allclose(fitted.score_samples(table), expected, rtol=1e-6)


@given(st.floats(0, 50))
def test_the_error_grows_with_the_distance_to_the_range(distance):
    loss = Mixed(binary=[0])
    fitted = test_the_error_grows_with_the_distance_to_the_range.fitted
    rows = np.repeat(TABLE[:1], 2, axis=0)
    rows[:, 0] = 1, 1 + distance
    inside, outside = -fitted.score_samples(rows)
    assert loss.bounds == (0, 1)
    expected = inside + EXCESS_WEIGHT * distance / TABLE.shape[1]
    assert_allclose(outside, expected, rtol=1e-9)


test_the_error_grows_with_the_distance_to_the_range.fitted = (
    clone(TRANSFORMER).set_params(loss=Mixed(binary=[0])).fit(TABLE)
)


@pytest.mark.parametrize("container", [sparse.csr_array, sparse.csr_matrix])
def test_implicit_zeros_are_within_the_range_of_the_loss(container):
    table = np.abs(X) + 1
    fitted = clone(TRANSFORMER).set_params(loss=Gamma()).fit(container(table))
    table[1, 1] = 0
    with pytest.raises(ValueError, match=r"needs all of X in \[1, 20\], got values"):
        clone(fitted).fit(container(table))
    assert fitted.score_samples(container(table))[1] < -1e5


# Sparse formats


def with_duplicates(container, **kwargs):
    """The rows X, in which each entry is the sum of two stored values, unsorted."""
    row, column = np.indices(X.shape).reshape(2, -1)[:, ::-1]
    half = X[row, column] / 2
    parts = np.tile(half, 2), (np.tile(row, 2), np.tile(column, 2))
    coo = sparse.coo_array(parts, shape=X.shape)
    if container is sparse.coo_array:
        return coo
    is_csr = container in (sparse.csr_array, sparse.csr_matrix)
    major, minor = (coo.row, coo.col) if is_csr else (coo.col, coo.row)
    order = np.argsort(major, kind="stable")
    indptr = np.r_[0, np.bincount(major).cumsum()]
    index = kwargs.get("index", np.int32)
    parts = coo.data[order], minor[order].astype(index), indptr.astype(index)
    return container(parts, shape=X.shape)


@pytest.mark.parametrize(
    ("container", "settings"),
    [
        (sparse.coo_array, {}),
        (sparse.csr_array, {}),
        (sparse.csr_matrix, {"index": np.int64}),
        (sparse.csc_array, {}),
        (sparse.csc_matrix, {"index": np.int64}),
    ],
)
def test_duplicate_entries_are_summed(container, settings):
    table = with_duplicates(container, **settings)
    data = table.data.copy()
    fitted = clone(DETECTOR).fit(table)
    expected = clone(DETECTOR).fit(sparse.csr_array(X))
    assert_array_equal(fitted.mean_, expected.mean_)
    assert_array_equal(fitted.score_samples(table), expected.score_samples(X))
    assert_array_equal(fitted.score_samples(X), expected.score_samples(X))
    assert table.nnz == 2 * X.size
    assert_array_equal(table.data, data)


def test_the_mean_of_duplicate_entries():
    table = sparse.csr_matrix(([1.0, 1, 5], [0, 0, 1], [0, 2, 3]))
    assert clone(TRANSFORMER).fit(table).mean_.tolist() == [1, 2.5]
    fitted = clone(TRANSFORMER).fit(table.toarray())
    assert_array_equal(fitted.transform(table), fitted.transform(table.toarray()))
    assert table.nnz == 3


def test_explicit_zeros_are_zeros():
    table = sparse.csr_array(X * (X > 0))
    explicit = sparse.csr_array(X)
    explicit.data[explicit.data <= 0] = 0
    assert explicit.nnz > table.nnz
    one, other = clone(DETECTOR).fit(table), clone(DETECTOR).fit(explicit)
    assert_allclose(one.score_samples(table), other.score_samples(explicit))


# Weights


@pytest.mark.parametrize("weight", [1e300, 1e-300, 5e-324])
def test_extreme_weights_are_named(weight):
    weights = np.r_[0.0, np.full(len(X) - 1, weight)]
    for method in (clone(TRANSFORMER).fit, clone(TRANSFORMER).fit(X).partial_fit):
        with pytest.raises(ValueError, match=r"sample_weight .* must be 0 or in"):
            method(X, sample_weight=weights)
    with pytest.raises(ValueError, match=r"sample_weight .* must be 0 or in"):
        clone(TRANSFORMER).fit(X).score(X, sample_weight=weights)


def test_the_scale_of_weights_does_not_matter():
    weight = np.arange(1.0, len(X) + 1)
    fits = [clone(DETECTOR).fit(X, sample_weight=c * weight) for c in (1, 2.0**300)]
    assert_array_equal(fits[0].score_samples(X), fits[1].score_samples(X))


def test_large_weights_are_not_blamed_on_large_values():
    weight = np.full(len(X), 1e90)
    fitted = clone(TRANSFORMER).fit(X * 1e150, sample_weight=weight)
    assert fitted.score(X * 1e150, sample_weight=weight) > 0
    with pytest.raises(ValueError, match="X has values too large"):
        fitted.fit(X * 1e200, sample_weight=weight)


# Never worse than PCA


def nearly_noiseless(n_samples):
    X = np.random.RandomState(4).randn(n_samples, 3)
    X[:, 1] *= 1e-5
    return X + np.array([5, 4, 3])


@pytest.mark.parametrize(
    ("n_samples", "settings"),
    [
        (100, {}),
        pytest.param(100, {"random_state": 2}, marks=pytest.mark.slow),
        (100, {"scale": "global", "early_stopping": False, "max_epochs": 3}),
        (1100, {"max_epochs": 3, "hidden_layer_sizes": (16,)}),
    ],
    ids=str,
)
def test_no_network_is_worse_than_a_pca_that_is_nearly_exact(n_samples, settings):
    X = nearly_noiseless(n_samples)
    train, test = X[: n_samples // 2], X[n_samples // 2 :]
    fitted = AutoencoderTransformer(2, **{"random_state": 0, **settings}).fit(train)
    pca = PCA(2).fit(train)
    error = np.sum((test - fitted.reconstruct(test)) ** 2)
    assert error < 1.1 * np.sum(
        (test - pca.inverse_transform(pca.transform(test))) ** 2
    )


def test_the_initial_pca_is_kept_if_training_increases_the_training_error():
    settings = {"early_stopping": False, "random_state": 0, "max_epochs": 2}
    fitted = AutoencoderTransformer(2, learning_rate=1.0, **settings).fit(X)
    assert fitted.n_iter_ == 2
    assert fitted.net_.best_epoch_ == 0
    pca = PCA(2).fit(X)
    assert_allclose(fitted.score(X), pca.explained_variance_ratio_.sum(), rtol=1e-6)
    # A training that goes on is judged by nobody.
    before = fitted.score(X)
    assert fitted.partial_fit(X).score(X) < before
