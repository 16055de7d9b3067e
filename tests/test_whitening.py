"""Tests of skae._whitening: codes of mean 0 and variance 1."""

import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA

import skae
from skae import AutoencoderTransformer
from skae._summary import Summary
from skae._whitening import Whitening, sample_deviation

SMALL = {"hidden_layer_sizes": (8,), "max_epochs": 5, "early_stopping": True}

# The network keeps its initial weights, those of a PCA.
NO_TRAINING = {"learning_rate": 1e-9, "max_epochs": 2, "early_stopping": True}


def small(**settings):
    return AutoencoderTransformer(2, **{**SMALL, "random_state": 0, **settings})


def pca_like(n_components=2, **settings):
    return AutoencoderTransformer(
        n_components, **NO_TRAINING, whiten=True, random_state=0, **settings
    )


def with_missing_entries(X):
    X = X.copy()
    X[::5, 1] = np.nan
    return X


@pytest.fixture(scope="module")
def X():
    return load_iris().data[::2]


def test_codes_are_those_of_a_whitened_pca(X):
    pca = PCA(3, whiten=True).fit(X)
    ae = pca_like(3).fit(X)
    Z = pca.transform(X[:7])
    assert_allclose(ae.transform(X[:7]), Z, atol=1e-5)
    assert_allclose(ae.inverse_transform(Z), pca.inverse_transform(Z), atol=1e-5)


CONVERSIONS = [with_missing_entries, sparse.csr_array, np.float32]
SETTINGS = [
    {"hidden_layer_sizes": ()},
    {"init": "random", "scale": "feature"},
    {"network": "conv"},
    {"bottleneck": "gaussian"},
    {"bottleneck": "quantized"},
    {"bottleneck": "topk"},
    {"penalty": "l1"},
    {"corruption": "masking", "early_stopping": False},
]


@pytest.mark.parametrize(
    ("settings", "convert"),
    [
        *((settings, np.array) for settings in SETTINGS),
        *(({}, convert) for convert in CONVERSIONS),
        *(({"transform_max_iter": 0}, convert) for convert in CONVERSIONS),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_whitening_is_a_map_of_each_component_that_is_undone(settings, convert, X):
    X = convert(X)
    plain, whitened = (small(whiten=w, **settings).fit(X) for w in (False, True))
    Z, codes = whitened.transform(X), plain.transform(X)
    assert Z.dtype == codes.dtype == X.dtype
    assert_allclose(Z.mean(axis=0), 0, atol=1e-6)
    deviation = codes.std(axis=0, ddof=1)
    assert_allclose(Z.std(axis=0, ddof=1), deviation > 0, atol=1e-6)
    scale = np.where(deviation > 0, deviation, 1)
    assert_allclose(Z, (codes - codes.mean(axis=0)) / scale, atol=2e-5)
    atol = 1e-4 if X.dtype == np.float32 else 1e-9
    assert_allclose(whitened.inverse_transform(Z), whitened.reconstruct(X), atol=atol)
    for name in ("reconstruct", "score_samples", "score", "quantize"):
        if hasattr(plain, name):
            assert_array_equal(getattr(whitened, name)(X), getattr(plain, name)(X))
    if hasattr(plain, "sample"):
        assert_array_equal(
            whitened.sample(3, random_state=0), plain.sample(3, random_state=0)
        )


def test_weights_are_repetitions(X):
    weight = np.arange(len(X)) % 3
    weighted = small(whiten=True).fit(X, sample_weight=weight)
    repeated = small(whiten=True).fit(np.repeat(X, weight, axis=0))
    assert_array_equal(weighted.transform(X), repeated.transform(X))
    Z = np.repeat(weighted.transform(X), weight, axis=0)
    assert_allclose(Z.std(axis=0, ddof=1), 1)


def test_weights_that_sum_to_one_give_a_finite_variance(X):
    Z = pca_like().fit(X, sample_weight=np.full(len(X), 1 / len(X))).transform(X)
    assert_allclose(Z.var(axis=0), 0.5)


@pytest.mark.parametrize("n_rows", [1, 2, 3])
def test_constant_components_become_zero(n_rows):
    X = np.array([[1e6, 0.1, 3.0]] * n_rows)
    ae = small(whiten=True, early_stopping="auto").fit(X)
    assert_array_equal(ae.transform(X), np.zeros((n_rows, 2)))
    assert_allclose(ae.inverse_transform(np.zeros((1, 2))), X[:1], rtol=1e-5)


def test_components_beyond_the_rank_become_zero(X):
    X = X @ np.outer([1.0, 2.0, 3.0, 4.0], [1.0, -1.0, 0.5, 0.1]) + 1e3
    Z = pca_like(4).fit(X).transform(X)
    assert_allclose(Z.std(axis=0, ddof=1), [1, 0, 0, 0], atol=1e-6)


def test_a_variation_within_rounding_is_constant():
    variance = np.array([1.0, 1e-30, 0.0, np.inf])
    deviation = np.array([1.0, 1e-15, 1.0, 1.0])
    codes = Summary(np.full(4, 9.0), np.zeros(4), variance, deviation, None, None)
    assert_array_equal(sample_deviation(codes)[1:], 0)
    assert_array_equal(Whitening.of(codes).scale[1:], 1)


def test_float32_rows_have_the_codes_of_float64_rounded(X):
    # The encoder's bias is 1e5 times the deviation of the codes.
    ae = small(whiten=True, transform_max_iter=0, init="random").fit(X)
    with_bias = ae.module_.encoder
    last = [p for name, p in with_bias.named_parameters() if name.endswith("bias")][-1]
    last.data += 1e5
    ae.set_params(warm_start=True, max_epochs=1, learning_rate=1e-9).fit(X)
    rows = X.astype(np.float32)
    exact = ae.transform(rows.astype(np.float64))
    assert_allclose(ae.transform(rows), exact, atol=1e-4)
    Z = exact.astype(np.float32)
    expected = ae.inverse_transform(Z.astype(np.float64))
    assert_allclose(ae.inverse_transform(Z), expected, rtol=1e-5, atol=1e-5)


def test_partial_fit_whitens_by_the_rows_of_all_calls(X):
    ae = pca_like()
    for part in (X[:30], X[30:-1], X[-1:]):
        ae.partial_fit(part)
    Z = ae.transform(X)
    assert_allclose(Z.mean(axis=0), 0, atol=1e-5)
    assert_allclose(Z.std(axis=0, ddof=1), 1, atol=1e-5)


def test_rows_of_earlier_calls_count_as_at_most_a_thousand():
    X = np.random.default_rng(0).normal(size=(5000, 3))
    ae = pca_like(1).partial_fit(X)
    ae.partial_fit(X[:1000])
    assert_allclose(ae._trained.code_summaries[-1].weight, 2000)


@pytest.mark.parametrize("resume", ["warm start", "partial_fit"])
def test_it_takes_effect_at_the_next_fit(resume, X):
    ae = small(**NO_TRAINING, warm_start=True).fit(X)
    codes = ae.transform(X)
    ae.set_params(whiten=True)
    assert_array_equal(ae.transform(X), codes)
    fit = ae.fit if resume == "warm start" else ae.partial_fit
    assert_allclose(fit(X[:50]).transform(X[:50]).std(axis=0, ddof=1), 1)
    ae.set_params(whiten=False)
    assert_allclose(fit(X).transform(X), codes, atol=1e-5)


def test_a_warm_start_whitens_by_its_own_rows(X):
    ae = small(whiten=True, warm_start=True).fit(X)
    ae.fit(X[:40])
    assert_allclose(ae.transform(X[:40]).std(axis=0, ddof=1), 1)


def test_codes_of_any_size_can_be_decoded(X):
    ae = small(whiten=True).fit(1e3 * X)
    for dtype in (np.float32, np.float64):
        Z = np.full((1, 2), np.finfo(dtype).max)
        X_hat = ae.inverse_transform(Z)
        assert X_hat.dtype == dtype
        assert (
            np.isfinite(X_hat).all()
            == np.isfinite(small().fit(1e3 * X).inverse_transform(Z)).all()
        )


@pytest.mark.parametrize("is_file", [False, True])
def test_stored_estimators_keep_it(is_file, tmp_path, X):
    ae = small(whiten=True).fit(X)
    if is_file:
        skae.save(ae, tmp_path / "ae.skae")
        loaded = skae.load(tmp_path / "ae.skae")
    else:
        loaded = pickle.loads(pickle.dumps(ae))
    assert_array_equal(loaded.transform(X), ae.transform(X))
    assert_allclose(
        clone(ae).set_params(warm_start=False).fit(X).transform(X), ae.transform(X)
    )


def test_models_of_versions_without_it_are_not_whitened(X):
    ae = small().fit(X)
    codes = ae.transform(X)
    vars(ae)["whiten"] = True
    state = pickle.loads(pickle.dumps(ae))
    vars(state._trained).pop("code_summaries")
    del state.whiten
    loaded = pickle.loads(pickle.dumps(state))
    assert loaded.get_params()["whiten"] is False
    assert_array_equal(loaded.transform(X), codes)
