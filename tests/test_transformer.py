"""AutoencoderTransformer as a drop-in for PCA."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from skae import AutoencoderTransformer, _prediction
from skae.networks import MLP, Custom

SMALL = {"hidden_layer_sizes": (16,), "max_epochs": 5, "random_state": 0}

# The network keeps its initial weights.
NO_TRAINING = {"learning_rate": 1e-9, "max_epochs": 2, "random_state": 0}


@pytest.fixture(scope="module")
def curve():
    """Points near a parabola, of shape (300, 3)."""
    rng = np.random.default_rng(0)
    t = rng.uniform(-1, 1, size=300)
    return np.column_stack([t, t**2, 0.1 * rng.normal(size=300)])


@pytest.fixture(scope="module")
def fitted(curve):
    return AutoencoderTransformer(2, **SMALL).fit(curve)


def explained_variance(model, X):
    X_hat = model.inverse_transform(model.transform(X))
    return 1 - ((X - X_hat) ** 2).sum() / ((X - model.mean_) ** 2).sum()


def test_default_explains_more_than_pca_on_test_digits(digits):
    train, test = train_test_split(digits, test_size=0.3, random_state=0)
    pca = explained_variance(PCA(2).fit(train), test)
    assert AutoencoderTransformer(2, random_state=0).fit(train).score(test) > pca + 0.2


def test_initial_pca_is_kept_where_training_does_not_improve_it():
    X = StandardScaler().fit_transform(load_wine().data)
    ae = AutoencoderTransformer(5, early_stopping=True, **NO_TRAINING).fit(X)
    pca = PCA(5).fit(X)
    assert ae.net_.best_epoch_ == 0
    assert_allclose(ae.transform(X), pca.transform(X), rtol=1e-4, atol=1e-5)
    assert_allclose(
        ae.reconstruct(X), pca.inverse_transform(pca.transform(X)), atol=1e-5
    )
    assert_allclose(ae.score(X), pca.explained_variance_ratio_.sum(), atol=1e-6)


def test_initial_pca_is_that_of_all_rows_in_the_units_of_X():
    X = 1000 * load_iris().data + 5e5
    # The axes come from the held-out rows, four of five, as well.
    ae = AutoencoderTransformer(
        2, early_stopping=True, validation_fraction=0.8, **NO_TRAINING
    ).fit(X)
    assert_allclose(ae.transform(X), PCA(2).fit_transform(X), rtol=1e-4, atol=0.1)


@pytest.mark.parametrize("magnitude", [1e-60, 1e60, 1e150])
def test_values_outside_the_range_of_float32_are_learnt(magnitude, curve):
    unscaled = AutoencoderTransformer(1, **SMALL).fit(curve)
    scaled = AutoencoderTransformer(1, **SMALL).fit(curve * magnitude)
    Z = scaled.transform(curve * magnitude) / magnitude
    assert_allclose(Z.std(), unscaled.transform(curve).std(), rtol=0.1)
    # The canonical order depends on the values, and the batches on the order.
    assert_allclose(scaled.score(curve * magnitude), unscaled.score(curve), atol=0.02)


def test_linear_autoencoder_explains_as_much_as_pca():
    X = load_iris().data
    ae = AutoencoderTransformer(2, hidden_layer_sizes=(), max_epochs=5, random_state=0)
    score = ae.fit(X).score(X)
    assert_allclose(score, PCA(2).fit(X).explained_variance_ratio_.sum(), atol=1e-4)
    assert not any("remainder" in name for name, _ in ae.module_.named_parameters())


def test_initial_pca_with_feature_scale_is_that_of_standardized_rows():
    X = load_wine().data
    ae = AutoencoderTransformer(2, scale="feature", **NO_TRAINING).fit(X)
    expected = PCA(2).fit_transform(StandardScaler().fit_transform(X))
    assert_allclose(ae.transform(X), expected, rtol=1e-4, atol=1e-4)


def test_initial_pca_without_scale_is_that_of_the_rows():
    X = load_iris().data
    ae = AutoencoderTransformer(2, scale=None, **NO_TRAINING)
    assert_allclose(ae.fit_transform(X), PCA(2).fit_transform(X), rtol=1e-4, atol=1e-4)
    assert (ae.module_.scaler.factor == 1).all()


def test_random_init_without_scale_leaves_the_rows_unchanged(curve):
    ae = AutoencoderTransformer(2, init="random", scale=None, **SMALL).fit(curve)
    assert (ae.module_.scaler.factor == 1).all()
    assert (ae.module_.scaler.shift == 0).all()


def test_code_may_have_more_components_than_features(curve):
    ae = AutoencoderTransformer(7, **SMALL).fit(curve)
    assert ae.transform(curve).shape == (300, 7)
    assert ae.score(curve) > 0.999


def test_auto_components_are_the_square_root_of_the_features(digits):
    ae = AutoencoderTransformer("auto", **SMALL).fit(digits)
    assert ae.n_components_ == ae.transform(digits[:2]).shape[1] == 8


def test_inverse_transform_of_transform_is_reconstruct(fitted, curve):
    assert_allclose(
        fitted.inverse_transform(fitted.transform(curve)),
        fitted.reconstruct(curve),
        rtol=1e-12,
    )


def test_score_is_explained_variance(fitted, curve):
    assert_allclose(fitted.score(curve), explained_variance(fitted, curve))


def test_score_weights_are_repetitions(fitted, curve):
    weight = np.arange(len(curve)) % 3
    assert_allclose(
        fitted.score(curve, sample_weight=weight),
        fitted.score(np.repeat(curve, weight, axis=0)),
    )


def test_score_of_constant_rows_is_one_if_they_are_reconstructed_and_zero_otherwise():
    X = np.full((5, 2), 0.1)
    ae = AutoencoderTransformer(1, **SMALL).fit(X)
    assert ae.score(X) == 1.0
    ae.module_.scaler.shift += 1  # changes the reconstruction
    assert ae.score(X) == 0.0


def test_score_samples_is_minus_the_mean_squared_error_of_scaled_entries(fitted, curve):
    factor = np.sqrt(curve.var(axis=0).mean())
    error = (((curve - fitted.reconstruct(curve)) / factor) ** 2).mean(axis=1)
    assert_allclose(fitted.score_samples(curve), -error, rtol=1e-6)


def test_inverse_transform_refuses_other_numbers_of_components(fitted):
    with pytest.raises(ValueError, match=r"Z has 3 components.*n_components=2"):
        fitted.inverse_transform(np.zeros((1, 3)))


def test_feature_names_out_are_numbered(fitted):
    assert list(fitted.get_feature_names_out()) == [
        "autoencodertransformer0",
        "autoencodertransformer1",
    ]


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_set_output_gives_frames(library, curve):
    frames = pytest.importorskip(library)
    X = frames.DataFrame(curve, **{_columns(library): ["a", "b", "c"]})
    ae = AutoencoderTransformer(2, **SMALL).set_output(transform=library)
    Z = ae.fit_transform(X)
    assert isinstance(Z, frames.DataFrame)
    assert list(Z.columns) == list(ae.get_feature_names_out())
    assert list(ae.feature_names_in_) == ["a", "b", "c"]


def _columns(library):
    return {"pandas": "columns", "polars": "schema"}[library]


def test_pipeline_classifies_digits_from_twelve_components(digits):
    y = load_digits().target
    pipeline = Pipeline(
        [
            ("scale", StandardScaler()),
            ("ae", AutoencoderTransformer(12, early_stopping=True, **SMALL)),
            ("clf", LogisticRegression(max_iter=1000)),
        ]
    )
    X_train, X_test, y_train, y_test = train_test_split(digits, y, random_state=0)
    assert pipeline.fit(X_train, y_train).score(X_test, y_test) > 0.85


@pytest.mark.slow
def test_grid_search_gives_the_same_result_in_two_processes(curve):
    y = curve[:, 0] > 0
    pipeline = Pipeline(
        [
            ("ae", AutoencoderTransformer(early_stopping=False, **SMALL)),
            ("clf", LogisticRegression()),
        ]
    )
    grid = {"ae__n_components": [1, 2], "ae__hidden_layer_sizes": [(8,), (16, 8)]}
    serial, parallel = (
        GridSearchCV(pipeline, grid, cv=2, n_jobs=n_jobs).fit(curve, y)
        for n_jobs in (1, 2)
    )
    assert serial.best_params_ == parallel.best_params_
    assert_array_equal(
        serial.cv_results_["mean_test_score"], parallel.cv_results_["mean_test_score"]
    )
    assert_array_equal(
        serial.best_estimator_["ae"].transform(curve),
        parallel.best_estimator_["ae"].transform(curve),
    )


def test_grid_search_by_score_chooses_more_components(curve):
    search = GridSearchCV(
        AutoencoderTransformer(early_stopping=True, **SMALL),
        {"n_components": [1, 3]},
        cv=2,
    ).fit(curve)
    assert search.best_params_ == {"n_components": 3}


def test_float32_rows_give_float32_codes(fitted, curve):
    assert fitted.transform(curve.astype(np.float32)).dtype == np.float32
    assert fitted.reconstruct(curve.astype(np.float32)).dtype == np.float32
    assert fitted.score_samples(curve.astype(np.float32)).dtype == np.float64
    assert fitted.inverse_transform(np.zeros((1, 2), np.float32)).dtype == np.float32


def test_code_of_a_row_does_not_depend_on_the_other_rows(fitted, curve):
    alone = np.vstack([fitted.transform(row[None]) for row in curve[:20]])
    assert_allclose(alone, fitted.transform(curve)[:20], rtol=0, atol=1e-12)


def test_init_pca_is_refused_where_it_is_impossible(curve):
    X = (curve - curve.min(axis=0)) / np.ptp(curve, axis=0)
    ae = AutoencoderTransformer(1, init="pca", **SMALL)
    with pytest.raises(ValueError, match=r"init='pca'.*loss='binary_cross_entropy'"):
        clone(ae).set_params(loss="binary_cross_entropy").fit(X)
    for network in (MLP(code_activation="relu"), MLP(output_activation="tanh")):
        ae = AutoencoderTransformer(1, init="pca", network=network, random_state=0)
        with pytest.raises(ValueError, match=r"init='pca'.*network=MLP"):
            ae.fit(curve)
        ae.set_params(init="auto", max_epochs=1).fit(curve)  # random initial weights


def test_binary_cross_entropy_refuses_values_outside_0_and_1(curve):
    ae = AutoencoderTransformer(1, loss="binary_cross_entropy", **SMALL)
    with pytest.raises(ValueError, match=r"loss='binary_cross_entropy'.*\[0, 1\]"):
        ae.fit(curve)
    X = np.clip(np.abs(curve), 0, 1)
    X_hat = ae.fit(X).reconstruct(X)
    assert X_hat.min() > 0
    assert X_hat.max() < 1
    assert (ae.score_samples(-1 - X) < -1e5).all()


def test_binary_cross_entropy_needs_probabilities(curve):
    ae = AutoencoderTransformer(
        loss="binary_cross_entropy", network=MLP(output_activation="relu")
    )
    with pytest.raises(ValueError, match=r"loss='binary_cross_entropy'.*network=MLP"):
        ae.fit(np.abs(curve))


def test_custom_decoder_may_return_probabilities():
    X = np.random.default_rng(0).uniform(size=(60, 4))
    decoder = nn.Sequential(nn.Linear(2, 4), nn.Sigmoid())
    network = Custom(nn.Linear(4, 2), decoder, output_activation="identity")
    ae = AutoencoderTransformer(2, loss="binary_cross_entropy", network=network)
    ae.set_params(max_epochs=5).fit(X)
    p = ae.reconstruct(X)
    entropy = -X * np.log(p) - (1 - X) * np.log1p(-p)
    assert_allclose(ae.score_samples(X), -entropy.mean(axis=1))


# Contributions of the components


def squared_jacobian(ae, X):
    """Mean squares of the Jacobian of `inverse_transform`, by automatic derivatives."""
    module = ae.net_.module_in(np.dtype(np.float64))

    def decode(z):
        return module.decode(z[None])[0]

    Z = torch.from_numpy(ae.set_params(whiten=False).transform(X))
    J = torch.stack([torch.func.jacrev(decode)(z) for z in Z])
    return (J**2).mean(dim=0).detach().numpy().T * Z.numpy().var(axis=0, ddof=1)[
        :, None
    ]


@pytest.mark.parametrize("offset", [0, 1e6])
@pytest.mark.parametrize("scale", ["global", "feature"])
def test_contributions_to_a_linear_network_are_squared_loadings(offset, scale):
    X = load_wine().data
    weights = 1 if scale == "global" else X.std(axis=0)
    pca = PCA(4).fit(X / weights)
    X += offset
    ae = AutoencoderTransformer(4, scale=scale, early_stopping=True, **NO_TRAINING)
    loadings = (pca.components_ * weights) ** 2 * pca.explained_variance_[:, None]
    contributions = ae.fit(X).component_contributions(X)
    assert_allclose(contributions, loadings, rtol=1e-4, atol=1e-6 * loadings.max())


@pytest.mark.parametrize(
    ("settings", "n_features"),
    [
        ({}, 6),
        ({"whiten": True, "init": "random", "scale": "feature"}, 6),
        ({"network": "conv", "input_shape": (2, 3)}, 6),
        ({"bottleneck": "gaussian", "loss": "binary_cross_entropy"}, 6),
        ({"bottleneck": "topk", "n_components": 9}, 6),
        (
            {
                "network": Custom(
                    nn.Linear(6, 2), nn.Sequential(nn.Linear(2, 6), nn.ELU())
                )
            },
            6,
        ),
    ],
    ids=str,
)
def test_contributions_are_mean_squared_derivatives(settings, n_features):
    X = np.random.default_rng(0).uniform(size=(80, n_features)) ** 2
    settings = {"n_components": 2, "early_stopping": True, "max_epochs": 5, **settings}
    ae = AutoencoderTransformer(random_state=0, **settings).fit(X)
    contributions = ae.component_contributions(X)
    assert contributions.shape == (ae.n_components_, n_features)
    ae_like = AutoencoderTransformer(random_state=0, **{**settings, "whiten": False})
    assert_allclose(contributions, squared_jacobian(ae_like.fit(X), X), rtol=1e-7)


def test_rows_without_an_effect_on_the_mean_do_not_contribute(fitted, curve):
    expected = fitted.component_contributions(curve)
    rows = np.vstack([curve, np.full((3, 3), np.nan), 5 + curve[:3]])[::-1]
    weight = np.array([0] * 3 + [1] * 303)
    assert_array_equal(fitted.component_contributions(rows, weight), expected)


def test_weights_of_contributions_are_repetitions(fitted, curve):
    weight = np.arange(len(curve)) % 3
    assert_array_equal(
        fitted.component_contributions(curve, weight),
        fitted.component_contributions(np.repeat(curve, weight, axis=0)),
    )


@pytest.mark.parametrize("convert", [sparse.csr_array, np.float32])
def test_contributions_do_not_depend_on_the_type_of_the_rows(convert, fitted, curve):
    curve = curve.astype(np.float32).astype(np.float64)
    curve[::4, 2] = np.nan
    contributions = fitted.component_contributions(convert(curve))
    assert contributions.dtype == np.float64
    assert_allclose(contributions, fitted.component_contributions(curve), rtol=1e-12)


def test_contributions_are_computed_in_blocks(monkeypatch, fitted, curve):
    expected = fitted.component_contributions(curve)
    monkeypatch.setattr(_prediction, "BLOCK_ENTRIES", 700)
    sizes = []
    module = fitted.net_.module_in(np.dtype(np.float64))
    decoder_hook = module.decoder.register_forward_hook(
        lambda _, inputs, output: sizes.append(len(output))
    )
    assert_allclose(fitted.component_contributions(curve), expected, rtol=1e-12)
    decoder_hook.remove()
    assert max(sizes) < 50


def test_contributions_of_constant_components_are_zero(fitted, curve):
    assert_array_equal(fitted.component_contributions(curve[:1]), np.zeros((2, 3)))
    same = np.repeat(curve[:1], 5, axis=0)
    assert_array_equal(fitted.component_contributions(same), np.zeros((2, 3)))


def test_contributions_need_a_row_with_an_observed_value(fitted, curve):
    with pytest.raises(ValueError, match="no observed value"):
        fitted.component_contributions(np.full((2, 3), np.nan))
    with pytest.raises(ValueError, match=r"no observed value|weight"):
        fitted.component_contributions(curve, np.zeros(len(curve)))


def test_contributions_are_absent_where_codes_are_finite():
    ae = AutoencoderTransformer(bottleneck="quantized")
    assert not hasattr(ae, "component_contributions")
    with pytest.raises(AttributeError, match="not entries of a codebook"):
        _ = ae.component_contributions
