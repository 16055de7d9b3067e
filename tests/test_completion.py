"""Facts about skae._completion."""

import numpy as np
import pytest
import torch
from sklearn.covariance import empirical_covariance
from sklearn.datasets import load_wine
from sklearn.preprocessing import scale

from skae import AutoencoderTransformer
from skae._completion import Completion, fit_completion
from skae._rows import Rows
from skae._summary import summarize

WINE = scale(load_wine().data)


def with_missing(X, share=0.3, seed=0):
    X = X.copy()
    X[np.random.default_rng(seed).random(X.shape) < share] = np.nan
    return X


@pytest.fixture(scope="module")
def model():
    """Return a distribution of four features, its completion, and rows."""
    rng = np.random.default_rng(0)
    loadings = rng.standard_normal((4, 2))
    noise = np.array([0.1, 0.2, 0.3, 0.4])
    center = np.array([1.0, -1.0, 0.0, 2.0])
    X = rng.multivariate_normal(center, loadings @ loadings.T + np.diag(noise), 20)
    observed = rng.random(X.shape) < 0.6
    return Completion(center, loadings, noise), X, observed


def conditional(completion, x, observed):
    """Return mean and covariance of the missing entries, by the textbook's formula."""
    W = completion.loadings.numpy()
    S = W @ W.T + np.diag(completion.noise.numpy())
    center, o, m = completion.center.numpy(), observed, ~observed
    slope = S[np.ix_(m, o)] @ np.linalg.inv(S[np.ix_(o, o)])
    mean = center[m] + slope @ (x - center)[o]
    return mean, S[np.ix_(m, m)] - slope @ S[np.ix_(o, m)]


def completed(completion, X, observed):
    given = torch.from_numpy(np.where(observed, X, 7.0))
    return completion(given, torch.from_numpy(observed)).numpy()


def test_missing_entries_become_their_conditional_mean(model):
    completion, X, observed = model
    filled = completed(completion, X, observed)
    np.testing.assert_array_equal(filled[observed], X[observed])
    for x, o, row in zip(X, observed, filled, strict=True):
        if o.any():
            np.testing.assert_allclose(row[~o], conditional(completion, x, o)[0])
        else:
            assert (row == 7).all()


def test_variations_have_the_conditional_mean_and_covariance(model):
    completion, X, observed = model
    filled = torch.from_numpy(completed(completion, X, observed))
    varied = completion.varied(filled, torch.from_numpy(observed))
    torch.testing.assert_close(varied.mean(dim=0), filled)
    assert completion.directions.shape == (8, 4)
    for i in np.flatnonzero(observed.any(axis=1) & ~observed.all(axis=1)):
        deviations = (varied[:, i] - filled[i]).numpy()
        assert (deviations[:, observed[i]] == 0).all()
        # Six sources, fewer than directions: independent ones, which estimate it.
        variance = np.diag(conditional(completion, X[i], observed[i])[1])
        estimate = np.square(deviations[:, ~observed[i]]).mean(axis=0)
        assert (estimate > 0.1 * variance).all()
        assert (estimate < 4 * variance).all()


def fitted_completion(X, **kwargs):
    rows = Rows(X, **kwargs)
    summary = summarize(rows)
    return fit_completion(rows, summary, summary.mean, summary.deviation, 0)


def test_distribution_of_complete_rows_is_their_shrunk_covariance():
    completion = fitted_completion(WINE)
    W = completion.loadings.numpy()
    covariance = W @ W.T + np.diag(completion.noise.numpy())
    expected = empirical_covariance(WINE)
    np.testing.assert_allclose(np.diag(covariance), 1)
    off_diagonal = ~np.eye(13, dtype=bool)
    ratio = covariance[off_diagonal] / expected[off_diagonal]
    np.testing.assert_allclose(ratio, ratio[0])
    assert 0.9 < ratio[0] < 1


def test_entries_are_completed_better_than_by_the_mean():
    X = with_missing(WINE)
    is_missing = np.isnan(X)
    filled = completed(fitted_completion(X), np.nan_to_num(X), ~is_missing)
    error = filled[is_missing] - WINE[is_missing]
    assert np.mean(error**2) < 0.65 * np.mean(WINE[is_missing] ** 2)


def test_independent_features_are_completed_by_the_mean():
    X = np.random.default_rng(0).standard_normal((30, 15))
    X_missing = with_missing(X)
    is_missing = np.isnan(X_missing)
    completion = fitted_completion(X_missing)
    filled = completed(completion, np.nan_to_num(X_missing), ~is_missing)
    assert np.mean((filled - X)[is_missing] ** 2) < 1.35 * np.mean(X[is_missing] ** 2)


def test_weights_count_as_repetitions():
    X = with_missing(WINE[:40])
    weight = np.arange(40) % 3 + 1.0
    weighted = fitted_completion(X, weight=weight)
    repeated = fitted_completion(np.repeat(X, weight.astype(int), axis=0))
    for name, expected in repeated.state_dict().items():
        if name in ("center", "noise"):
            torch.testing.assert_close(weighted.state_dict()[name], expected)


@pytest.mark.parametrize("n_features", [130, 1100])
def test_wide_rows_have_a_few_factors(n_features):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 2)) @ rng.standard_normal((2, n_features))
    is_missing = rng.random(X.shape) < 0.2
    completion = fitted_completion(np.where(is_missing, np.nan, X))
    assert completion.loadings.shape[1] <= 64
    summary = summarize(Rows(np.where(is_missing, np.nan, X)))
    Y = (X - summary.mean) / summary.deviation
    error = (completed(completion, Y, ~is_missing) - Y)[is_missing]
    assert np.mean(error**2) < 0.4


def test_wide_complete_rows_have_no_completion():
    assert fitted_completion(np.random.default_rng(0).random((5, 1100))) is None


@pytest.mark.parametrize("n_components", [8, 12])
def test_reconstruction_does_not_explode(n_components):
    ae = AutoencoderTransformer(n_components, max_epochs=5, random_state=0)
    X = with_missing(WINE)
    is_missing = np.isnan(X)
    X_hat = ae.fit(X).reconstruct(X)
    by_mean = np.mean((WINE - ae.mean_)[is_missing] ** 2)
    assert np.mean((X_hat - WINE)[is_missing] ** 2) < 0.8 * by_mean


@pytest.mark.parametrize("n_components", [2, 8])
def test_scores_of_incomplete_rows_are_about_those_of_complete_ones(n_components):
    ae = AutoencoderTransformer(n_components, max_epochs=5, random_state=0)
    ae.fit(WINE[::2])
    new = WINE[1::2]
    X = with_missing(new)
    observed = ~np.isnan(X)
    error = np.square(ae.reconstruct(new) - new)[observed].sum()
    expected = 1 - error / np.square(new - ae.mean_)[observed].sum()
    assert abs(ae.score(X) - expected) < 0.03
    error = np.square(ae.reconstruct(X) - new)[observed].sum()
    assert ae.score(X) < 1 - error / np.square(new - ae.mean_)[observed].sum()
    complete = ae.score_samples(new).mean()
    assert ae.score_samples(X).mean() == pytest.approx(complete, rel=0.2)


def test_completion_of_a_row_does_not_depend_on_others():
    X = with_missing(WINE)
    ae = AutoencoderTransformer(3, max_epochs=3, random_state=0).fit(X)
    for method in (ae.transform, ae.reconstruct, ae.impute, ae.score_samples):
        np.testing.assert_allclose(method(X[5:6])[0], method(X)[5], rtol=0, atol=1e-9)


def test_masked_entries_are_seen_as_missing_ones():
    X = with_missing(WINE)
    setting = {"scale": "feature", "max_epochs": 2, "random_state": 0}
    masked = AutoencoderTransformer(5, corruption="masking", **setting)
    assert masked.fit(X).module_.completes_hidden
    assert not masked.fit(WINE).module_.completes_hidden
    swapped = AutoencoderTransformer(5, corruption="swap", **setting)
    assert not swapped.fit(X).module_.completes_hidden


def test_masked_training_imputes_what_no_plane_explains():
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 400)
    X = np.column_stack([np.cos(angle), np.sin(angle), np.cos(2 * angle)])
    hidden = rng.random(X.shape) < 0.2
    ae = AutoencoderTransformer(
        None,
        scale="feature",
        corruption="masking",
        init="random",
        max_epochs=60,
        early_stopping=False,
        random_state=0,
    )
    ae.fit(np.where(hidden, np.nan, X))
    new = X.copy()
    new[:, 2] = np.nan
    error = ae.impute(new)[:, 2] - X[:, 2]
    assert np.mean(error**2) < 0.2 * X[:, 2].var()


def test_detectors_read_missing_entries_as_the_mean():
    from skae import AutoencoderOutlierDetector

    detector = AutoencoderOutlierDetector(max_epochs=1, random_state=0)
    assert detector.fit(with_missing(WINE)).module_.scaler.completion is None


@pytest.mark.parametrize("scale", ["global", None, "feature"])
@pytest.mark.parametrize("corruption", [None, "masking"])
@pytest.mark.parametrize("units", [(1e-150, 1e-2, 1e6), (1e-30, 1e-12, 1e-8)], ids=str)
def test_features_in_very_different_units_are_completed(units, corruption, scale):
    X = np.random.default_rng(0).normal(size=(60, 3)) * units
    X[::3, 0] = X[1::3, 2] = np.nan
    ae = AutoencoderTransformer(
        2, scale=scale, corruption=corruption, max_epochs=2, random_state=0
    )
    assert np.isfinite(ae.fit(X).transform(X)).all()
    assert np.isfinite(ae.impute(X)).all()
    assert np.isfinite(ae.score_samples(X)).all()
