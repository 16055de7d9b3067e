import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from skae._mixture import (
    MAX_PARTS,
    POINTS_PER_PART,
    Mixture,
    fit_code_density,
    fit_mixture,
    run_em,
)

CENTERS = np.array([[-4.0, 0.0], [4.0, 0.0], [0.0, 6.0]])


def clusters(n_points, seed=0):
    rng = np.random.default_rng(seed)
    return CENTERS[rng.integers(3, size=n_points)] + rng.normal(0, 0.5, (n_points, 2))


def whitened(Y):
    Y = Y - Y.mean(axis=0)
    return Y @ np.linalg.inv(np.linalg.cholesky(np.cov(Y.T, bias=True))).T


def test_densities_are_those_of_normal_distributions():
    rng = np.random.default_rng(0)
    factor = np.tril(rng.normal(size=(2, 3, 3))) + 2 * np.eye(3)
    mixture = Mixture(np.array([0.3, 0.7]), rng.normal(size=(2, 3)), factor)
    Y = rng.normal(size=(5, 3))
    expected = [
        np.log(share) + multivariate_normal(mean, L @ L.T).logpdf(Y)
        for share, mean, L in zip(*mixture, strict=True)
    ]
    assert_allclose(mixture.log_densities(Y), np.transpose(expected))


def test_points_are_drawn_from_the_mixture():
    factor = np.array([[[1.0, 0.0], [2.0, 0.5]], [[0.1, 0.0], [0.0, 0.1]]])
    mixture = Mixture(np.array([0.25, 0.75]), np.array([[9.0, 9.0], [0, 0]]), factor)
    Y = mixture.draw(20_000, np.random.RandomState(0))
    is_first = Y[:, 0] > 4
    assert_allclose(is_first.mean(), 0.25, atol=0.02)
    assert_allclose(Y[is_first].mean(axis=0), [9, 9], atol=0.1)
    assert_allclose(np.cov(Y[is_first].T), factor[0] @ factor[0].T, atol=0.15)


def test_likelihood_reaches_that_of_scikit_learn():
    Y = whitened(clusters(2000))
    expected = GaussianMixture(3, n_init=5, random_state=0).fit(Y).score(Y)
    mixture = fit_mixture(Y, np.ones(len(Y)), 3, seed=0)
    found = logsumexp(mixture.log_densities(Y), axis=1).mean()
    assert_allclose(found, expected, atol=0.02)


def test_parts_without_members_have_a_density():
    Y = whitened(clusters(50))
    membership = np.zeros((50, 3))
    membership[:, 0] = 1
    mixture = run_em(Y, np.ones(50), membership)
    assert np.isfinite(mixture.log_densities(Y)).all()
    assert_allclose(mixture.share, [1, 0, 0], atol=1e-6)


def test_weights_are_repetitions_up_to_the_shrinkage():
    Y = whitened(clusters(600))
    weight = np.where(Y[:, 0] > 0, 5, 1)
    membership = np.eye(2)[(Y[:, 1] > 0).astype(int)]
    weighted = run_em(Y, weight, membership)
    repeated = run_em(
        np.repeat(Y, weight, axis=0),
        np.ones(weight.sum()),
        np.repeat(membership, weight, axis=0),
    )
    for values, others in zip(weighted, repeated, strict=True):
        assert_allclose(values, others, atol=0.05)


# Densities of codes


def test_codes_are_drawn_like_those_given():
    rng = np.random.default_rng(0)
    Z = clusters(1500) @ rng.normal(size=(2, 2)) + [1.0, 1e3]
    density = fit_code_density(Z, np.ones(len(Z)), 0, len(Z))
    drawn = density.draw(20_000, np.random.RandomState(0))
    assert_allclose(drawn.mean(axis=0), Z.mean(axis=0), atol=0.2)
    assert_allclose(np.cov(drawn.T), np.cov(Z.T), rtol=0.1)
    # Where there are no codes, hardly any are drawn, unlike from one normal.
    gap = np.abs(Z - Z.mean(axis=0)).max(axis=1).min()
    near = np.abs(drawn - Z.mean(axis=0)).max(axis=1) < gap
    assert near.mean() < 0.02


def test_rows_of_a_large_weight_are_drawn_more_often():
    Z = clusters(600)
    weight = np.where(Z[:, 1] > 3, 8.0, 1.0)
    density = fit_code_density(Z, weight, 0, weight.sum())
    drawn = density.draw(5000, np.random.RandomState(0))
    share = weight[Z[:, 1] > 3].sum() / weight.sum()
    assert_allclose((drawn[:, 1] > 3).mean(), share, atol=0.04)


@pytest.mark.parametrize(
    "Z",
    [
        np.ones((1, 2)),
        np.ones((7, 3)),
        np.array([[0.0, 1.0], [1.0, 2.0]]),
        np.random.default_rng(0).normal(size=(5, 20)),
        np.random.default_rng(0).normal(size=(400, 300)),
        np.random.default_rng(0).normal(size=(90, 3)) * [1, 1e-9, 0],
    ],
    ids=["one row", "constant", "two rows", "few rows", "wide", "inactive"],
)
def test_density_of_degenerate_codes(Z):
    density = fit_code_density(Z, np.ones(len(Z)), 0, len(Z))
    drawn = density.draw(2000, np.random.RandomState(0))
    assert drawn.shape == (2000, Z.shape[1])
    assert_allclose(drawn.mean(axis=0), Z.mean(axis=0), atol=0.15)
    is_constant = np.ptp(Z, axis=0) == 0
    assert_allclose(drawn[:, is_constant], Z[:1, is_constant].repeat(2000, axis=0))
    assert drawn.std(axis=0).max() <= 1.2 * Z.std(axis=0).max() + 1e-12


def test_first_components_have_the_marginal_density():
    Z = np.random.default_rng(0).normal(size=(300, 4)) @ np.diag([3, 2, 1, 0.5])
    density = fit_code_density(Z, np.ones(300), 0, 300)
    first = density.of_first(2)
    drawn = density.draw(50, np.random.RandomState(1))
    assert_allclose(first.draw(50, np.random.RandomState(1)), drawn[:, :2])


def test_points_have_the_mean_and_the_covariance_of_the_mixture():
    Z = clusters(500)
    density = fit_code_density(Z, np.ones(len(Z)), 0, len(Z))
    points, share = density.points()
    drawn = density.draw(50_000, np.random.RandomState(0))
    assert_allclose(share @ points, drawn.mean(axis=0), atol=0.1)
    assert_allclose(
        np.cov(points.T, aweights=share), np.cov(drawn.T), rtol=0.1, atol=0.1
    )


def test_number_of_parts_grows_with_the_codes_of_all_calls():
    rng = np.random.default_rng(0)
    density = None
    for _ in range(60):
        Z = CENTERS[rng.integers(3, size=10)] + rng.normal(0, 0.5, (10, 2))
        density = fit_code_density(Z, np.ones(10), 0, 10, density)
    assert density.n_points == density.n_seen == 600
    assert len(density.mixture.share) > MAX_PARTS / 2 > 10 / POINTS_PER_PART
    drawn = density.draw(4000, np.random.RandomState(0))
    expected = clusters(4000)
    assert_allclose(drawn.mean(axis=0), expected.mean(axis=0), atol=0.5)
    assert_allclose(drawn.std(axis=0), expected.std(axis=0), rtol=0.15)
