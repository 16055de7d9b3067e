import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import ks_2samp

from skae._categories import Layout
from skae._row_noise import MIN_LEVELS, RowNoise


def noise_of(X, X_hat=None, generated=None, weight=None, is_bounded=None):
    return RowNoise.of(
        X,
        np.ones(len(X)) if weight is None else weight,
        X if X_hat is None else X_hat,
        X if generated is None else generated,
        np.zeros(X.shape[1], dtype=bool) if is_bounded is None else is_bounded,
        np.random.RandomState(0),
    )


def added(noise, rows, layout=None, seed=1):
    return noise.added(rows, layout, np.random.RandomState(seed))


def test_columns_get_the_distribution_of_the_training_rows():
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.lognormal(size=2000), rng.integers(0, 5, 2000)])
    generated = rng.normal(size=(2000, 2))
    noise = noise_of(X, X + 0.3, generated)
    rows = added(noise, rng.normal(size=(2000, 2)))
    assert ks_2samp(rows[:, 0], X[:, 0]).pvalue > 0.01
    shares, expected = (np.bincount(v[:, 1].astype(int)) / 2000 for v in (rows, X))
    assert_allclose(shares, expected, atol=0.04)


def test_columns_with_equal_values_have_no_others():
    X = np.random.default_rng(0).integers(0, 4, (200, 1)) * 2.5
    rows = added(noise_of(X, X + 0.1), np.linspace(-9, 20, 500)[:, None])
    assert set(np.unique(rows)) == {0.0, 2.5, 5.0, 7.5}


def test_values_are_in_the_range_of_the_training_rows():
    X = np.random.default_rng(0).normal(size=(200, 2))
    rows = added(noise_of(X), np.full((5, 2), 1e9))
    assert_allclose(rows, np.tile(X.max(axis=0), (5, 1)))


def test_order_of_values_without_residuals_is_kept():
    rng = np.random.default_rng(0)
    X = rng.exponential(size=(300, 1))
    rows = np.sort(rng.normal(size=(100, 1)), axis=0)
    found = added(noise_of(X, X, rng.normal(size=(300, 1))), rows)
    assert (np.diff(found[:, 0]) >= 0).all()


def test_deviation_is_that_of_observed_residuals_with_their_weights():
    X = np.array([[0.0, 1.0], [2.0, np.nan], [np.nan, 3.0]])
    X_hat = np.array([[1.0, 1.0], [0.0, 9.0], [9.0, 1.0]])
    noise = noise_of(X, X_hat, weight=np.array([3.0, 1.0, 1.0]))
    assert_allclose(noise.deviation, [np.sqrt(7 / 4), np.sqrt(4 / 4)])


def test_constant_columns_remain_constant():
    X = np.full((30, 1), 0.1)
    rows = added(noise_of(X, X + 1e-12, X + 1e-12), X - 1e-12)
    assert_array_equal(rows, X)


def test_weights_are_repetitions():
    X = np.arange(41.0)[:, None]
    weight = np.append(np.ones(40), 360)
    noise = noise_of(
        X, weight=weight, generated=np.random.default_rng(0).normal(size=(900, 1))
    )
    rows = added(noise, np.random.default_rng(1).normal(size=(500, 1)))
    assert_allclose((rows == 40).mean(), 0.9, atol=0.04)


def test_probabilities_are_drawn_as_zeros_and_ones():
    X = np.array([[0.0, 0.2], [1.0, 0.9], [np.nan, 0.4]])
    noise = noise_of(X, is_bounded=np.array([True, True]))
    assert_array_equal(noise.is_probability, [True, False])
    rows = added(noise, np.tile([[0.3, 0.5]], (4000, 1)))
    assert set(np.unique(rows[:, 0])) == {0.0, 1.0}
    assert_allclose(rows[:, 0].mean(), 0.3, atol=0.03)


def test_categories_are_drawn_with_their_probabilities():
    layout = Layout((1, 3, 1), (False, True, False))
    P = np.array([0.2, 0.7, 0.1])
    rows = np.tile(np.r_[5.0, P, 1.0], (5000, 1))
    rows = added(noise_of(rows), rows, layout)
    assert_array_equal(np.unique(rows[:, 1:4]), [0, 1])
    assert_array_equal(rows[:, 1:4].sum(axis=1), 1)
    assert_allclose(rows[:, 1:4].mean(axis=0), P, atol=0.03)
    assert_array_equal(rows[:, [0, 4]], np.tile([5.0, 1.0], (5000, 1)))


def test_columns_that_a_sample_never_observes():
    X = np.column_stack([np.arange(9.0), np.full(9, np.nan)])
    rows = added(noise_of(X, np.zeros((9, 2)), np.ones((20, 2))), np.ones((4, 2)))
    assert np.isfinite(rows).all()


@pytest.mark.parametrize("n_columns", [1, 30, 20_000])
def test_memory_is_bounded(n_columns):
    X = np.random.default_rng(0).normal(size=(20, n_columns))
    noise = noise_of(X)
    assert MIN_LEVELS <= len(noise.drawn) <= 129
    assert noise.drawn.size <= max(2**18, MIN_LEVELS * n_columns)


def test_rows_of_earlier_calls_count():
    rng = np.random.default_rng(0)
    noise, n_seen = None, 0
    for start in range(0, 400, 5):
        X = np.column_stack([rng.normal(size=5) + 3, rng.integers(0, 2, 5)])
        share = n_seen / (n_seen + 5)
        generated = rng.normal(size=(500, 2))
        noise = RowNoise.of(
            X,
            np.ones(5),
            X + 0.2 * (start < 200),
            generated,
            np.array([False, True]),
            np.random.RandomState(0),
            noise,
            share,
        )
        n_seen += 5
    rows = added(noise, rng.normal(size=(2000, 2)))
    assert_allclose([rows[:, 0].mean(), rows[:, 0].std()], [3, 1], atol=0.2)
    assert_allclose(noise.deviation, np.sqrt(0.2**2 / 2))
    assert_array_equal(noise.is_probability, [False, True])


@pytest.mark.parametrize("n_rows", [64, 300, 2000])
@pytest.mark.parametrize("n_generated", [64, 1024])
def test_rare_values_are_as_frequent_as_in_the_training_rows(n_rows, n_generated):
    # Of few generated values, the largest one is exceeded by more than its rank says.
    rng = np.random.default_rng(0)
    share = np.tile(np.arange(2, 22) / 100, 20)  # of the rows that have a one
    X = (np.linspace(0, 1, n_rows)[:, None] <= share).astype(float)
    noise = noise_of(X, X, rng.normal(size=(n_generated, 400)))
    rows = added(noise, rng.normal(size=(1000, 400)))
    assert_allclose(rows.mean(), X.mean(), rtol=0.03)
