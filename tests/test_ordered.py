"""Facts about ordered components: `AutoencoderTransformer(ordered=True)`."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_wine
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import scale
from torch import nn
from variants import decoder_factory, encoder_factory

import skae
from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae._layers import PrefixLinear
from skae.bottlenecks import Gaussian, Quantized
from skae.networks import MLP, Conv, Custom

X = scale(load_wine().data)
SMALL = {
    "n_components": 4,
    "ordered": True,
    "hidden_layer_sizes": (8,),
    "max_epochs": 4,
    "early_stopping": True,
    "random_state": 0,
}


def fitted(X=X, sample_weight=None, **settings):
    own_network = not isinstance(settings.get("network", ""), str)
    sizes = {"hidden_layer_sizes": "auto"} if own_network else {}
    model = AutoencoderTransformer(**{**SMALL, **sizes, **settings})
    return model.fit(X, sample_weight=sample_weight)


@pytest.fixture(scope="module")
def model():
    return fitted(early_stopping=False)


class ScaledLinear(nn.Linear):
    """A first layer that is not known to be linear in its inputs."""

    def forward(self, Z):
        return super().forward(2 * Z)


def scaled_decoder(n_features, n_components):
    return nn.Sequential(ScaledLinear(n_components, 8), nn.Linear(8, n_features))


VARIANTS = {
    "folds": {"early_stopping": "auto", "max_epochs": 2},
    "one held-out part": {},
    "no held-out rows": {"early_stopping": False},
    "random": {"init": "random"},
    "linear": {"hidden_layer_sizes": ()},
    "conv": {"network": Conv((4,), hidden_layer_sizes=(8,))},
    "custom": {"network": Custom(encoder_factory, decoder_factory)},
    "unknown first layer": {"network": Custom(encoder_factory, scaled_decoder)},
    "gaussian": {"bottleneck": "gaussian"},
    "elbo": {"bottleneck": Gaussian(score="elbo", warm_up=0.5), "init": "random"},
    "noisy": {"corruption": "masking", "penalty": "contractive", "trim": 0.2},
    "mixed": {"loss": "mixed"},
    "rectified": {"network": MLP((8,), code_activation="relu")},
    "overcomplete": {"n_components": 15},
    "auto": {"n_components": "auto"},
    "one component": {"n_components": 1},
}


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_truncated_estimators_are_fitted_estimators(settings):
    model = fitted(**settings)
    curve = model.explained_variance_curve(X)
    n_components = model.n_components_
    assert curve.shape == (n_components,)
    for k in {1, (n_components + 1) // 2, n_components}:
        part = model.truncate(k)
        assert part.n_components == part.n_components_ == k
        assert part.score(X) == curve[k - 1]
        Z = part.transform(X)
        assert Z.shape == (len(X), k)
        assert len(part.get_feature_names_out()) == k
        np.testing.assert_allclose(part.transform(X[5:6]), Z[5:6], rtol=0, atol=1e-7)
        np.testing.assert_allclose(
            part.inverse_transform(Z), part.reconstruct(X), atol=1e-7
        )
        assert np.isfinite(part.score_samples(X)).all()
        # The first components of the first ones are those of all.
        assert part.truncate(1).score(X) == pytest.approx(curve[0], abs=1e-12)
        stored = pickle.loads(pickle.dumps(part))
        np.testing.assert_array_equal(stored.transform(X), Z)


@pytest.mark.parametrize(
    "settings", [{}, {"bottleneck": "gaussian"}, {"init": "random"}], ids=str
)
def test_training_goes_on(settings):
    for part in (fitted(**settings), fitted(**settings).truncate(2)):
        before = part.transform(X)
        part.partial_fit(X)
        assert np.abs(part.transform(X) - before).max() > 0
        part.set_params(warm_start=True).fit(X)
        assert part.explained_variance_curve(X).shape == (part.n_components_,)


@pytest.mark.parametrize("settings", [{}, {"bottleneck": "gaussian"}], ids=str)
def test_models_are_saved_and_loaded(settings, tmp_path):
    model = fitted(**settings)
    skae.save(model, tmp_path / "model.safetensors")
    loaded = skae.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(
        loaded.explained_variance_curve(X), model.explained_variance_curve(X)
    )
    part = model.truncate(2)
    skae.save(part, tmp_path / "part.safetensors")
    loaded = skae.load(tmp_path / "part.safetensors")
    np.testing.assert_array_equal(loaded.transform(X), part.transform(X))


def test_truncate_copies(model):
    part = model.truncate(2)
    before = model.explained_variance_curve(X)
    with torch.no_grad():
        for parameter in part.module_.parameters():
            parameter.fill_(0.1)
    np.testing.assert_array_equal(model.explained_variance_curve(X), before)
    assert model.n_components == 4
    assert clone(part).n_components == 2


def test_inverse_transform_takes_the_first_columns(model):
    Z = model.transform(X)
    for k in range(1, 5):
        assert model.inverse_transform(Z[:, :k]).shape == X.shape
    np.testing.assert_allclose(
        model.inverse_transform(Z), model.reconstruct(X), atol=1e-7
    )
    # Zeros are values of a component, which is not the same as none.
    zeros = np.zeros((1, 3))
    with_zeros = model.inverse_transform(np.hstack([Z[:1, :1], zeros]))
    assert np.abs(model.inverse_transform(Z[:1, :1]) - with_zeros).max() > 1e-6
    with pytest.raises(ValueError, match=r"Z has 5 components, .* ordered comp"):
        model.inverse_transform(np.zeros((2, 5)))


def test_components_without_order_have_no_part():
    plain = fitted(ordered=False, max_epochs=1)
    for name in ("truncate", "explained_variance_curve"):
        assert not hasattr(plain, name)
        assert not hasattr(AutoencoderTransformer(), name)
        assert hasattr(AutoencoderTransformer(ordered=True), name)
        assert not hasattr(AutoencoderOutlierDetector(), name)
        # It depends on the fit, not on a parameter that was set later.
        assert not hasattr(clone(plain).fit(X).set_params(ordered=True), name)
    with pytest.raises(ValueError, match="Z has 2 components"):
        plain.inverse_transform(np.zeros((1, 2)))


@pytest.mark.parametrize("k", [0, 5, -1, 2.0, "2", None])
def test_truncate_refuses_other_numbers(model, k):
    with pytest.raises((ValueError, TypeError), match="k"):
        model.truncate(k)


@pytest.mark.parametrize(
    "settings",
    [
        {"bottleneck": "quantized"},
        {"bottleneck": Quantized(8)},
        {"bottleneck": "topk"},
        {"penalty": "l1"},
        {"penalty": "kl"},
        {"network": Conv((2,), code="feature_map"), "n_components": "auto"},
    ],
    ids=str,
)
def test_codes_that_cannot_be_ordered_are_refused(settings):
    with pytest.raises(ValueError, match="ordered=True is not possible with") as error:
        fitted(**settings)
    name = next(iter(settings))
    assert f"{name}=" in str(error.value)


@pytest.mark.parametrize("value", [1, "yes", None])
def test_ordered_must_be_a_bool(value):
    with pytest.raises(ValueError, match=r"'ordered' parameter .* must be"):
        fitted(ordered=value)


@pytest.mark.parametrize("name", ["truncated", "all"])
def test_order_is_a_part_of_the_structure(name):
    model = fitted(max_epochs=1)
    model = model.truncate(2) if name == "truncated" else model
    with pytest.raises(ValueError, match="ordered=False differs"):
        model.set_params(ordered=False).partial_fit(X)


def explained_by_pca(train, test):
    pca = PCA(svd_solver="full").fit(train)
    Z, total = pca.transform(test), ((test - pca.mean_) ** 2).sum()
    return np.cumsum((Z**2).sum(axis=0)) / total


@pytest.mark.parametrize(
    "settings", [{"early_stopping": True}, {"early_stopping": "auto"}], ids=str
)
def test_where_nothing_is_learnt_the_components_are_those_of_pca(settings):
    rng = np.random.default_rng(0)
    train, test = rng.standard_normal((2, 60, 6)) * [6, 5, 4, 3, 2, 1]
    model = fitted(train, n_components=5, max_epochs=20, **settings)
    curve, expected = (
        model.explained_variance_curve(test),
        explained_by_pca(train, test),
    )
    np.testing.assert_allclose(curve, expected[:5], atol=2e-3)
    Z = PCA(5, svd_solver="full").fit(train).transform(test)
    for k in range(1, 6):
        np.testing.assert_allclose(
            np.abs(model.truncate(k).transform(test)), np.abs(Z[:, :k]), atol=0.1
        )


@pytest.mark.parametrize(
    ("init", "is_resumed", "is_bounded"),
    [("pca", False, True), ("random", False, False), ("pca", True, False)],
)
def test_the_pca_bounds_the_loss_of_held_out_rows(init, is_resumed, is_bounded):
    # Other weights, which are not kept, do not.
    losses = []
    for learning_rate in (1e-30, 1.0):  # the start, and worse weights
        model = AutoencoderTransformer(init=init, warm_start=True, **SMALL)
        if is_resumed:
            model.fit(X)
        model.set_params(learning_rate=learning_rate, max_epochs=1)
        losses.append(model.fit(X).validation_loss_curve_[-1])
    start, later = losses
    assert (later <= start * (1 + 1e-5)) == is_bounded


def test_pca_is_kept_for_the_widths_at_which_it_is_better():
    # A curve with noise: two components explain what is not noise. All five of the PCA
    # explain everything, which no network improves.
    rng = np.random.default_rng(1)
    t = rng.uniform(-2, 2, size=(400, 1))
    curve = np.hstack([t, t**2, np.sin(2 * t), 0.1 * rng.standard_normal((400, 2))])
    train, test = np.split(curve + 0.1 * rng.standard_normal((400, 5)), 2)
    settings = {"max_epochs": 60, "learning_rate": 0.02, "early_stopping": "auto"}
    model = fitted(train, n_components=5, hidden_layer_sizes=(16,), **settings)
    explained, pca = model.explained_variance_curve(test), explained_by_pca(train, test)
    assert explained[0] > pca[0] + 0.1
    assert (explained > pca - 0.01).all()
    np.testing.assert_allclose(explained[4], 1, atol=1e-6)
    # Codes of all components are those of the PCA.
    Z = PCA(5, svd_solver="full").fit(train).transform(test)
    np.testing.assert_allclose(np.abs(model.transform(test)), np.abs(Z), atol=1e-4)
    # Training goes on with the network, not with the PCA.
    continued = model.partial_fit(train)
    assert np.abs(np.abs(continued.transform(test)) - np.abs(Z)).max() > 1e-3


def test_first_components_are_better_than_those_of_an_unordered_code():
    settings = {"max_epochs": 40, "early_stopping": False, "hidden_layer_sizes": (16,)}
    ordered = fitted(init="random", **settings)
    plain = fitted(init="random", ordered=False, **settings)
    total = (X**2).sum()
    for k in (1, 2):
        Z = np.zeros((len(X), 4))
        Z[:, :k] = plain.transform(X)[:, :k]
        cut = 1 - ((X - plain.inverse_transform(Z)) ** 2).sum() / total
        first = ordered.inverse_transform(ordered.transform(X)[:, :k])
        assert 1 - ((X - first) ** 2).sum() / total > cut + 0.02
        assert ordered.truncate(k).score(X) > cut + 0.05


def test_sampled_codes_have_a_prior_of_their_own_width():
    part = fitted(bottleneck="gaussian").truncate(2)
    assert part.sample(3, random_state=0).shape == (3, X.shape[1])
    assert part.active_units_.shape == (2,)


def test_weights_are_repetitions():
    weight = np.arange(len(X)) % 3
    one = fitted(sample_weight=weight).explained_variance_curve(X)
    other = fitted(np.repeat(X, weight, axis=0)).explained_variance_curve(X)
    np.testing.assert_allclose(one, other, atol=1e-9)


def test_float32_rows_have_the_codes_of_float64():
    part = fitted().truncate(2)
    rows = X.astype(np.float32)
    one, other = part.transform(rows), part.transform(rows.astype(np.float64))
    assert one.dtype == np.float32
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * other.std())


def test_missing_entries_are_left_out():
    rows = X.copy()
    rows[np.random.default_rng(0).uniform(size=X.shape) < 0.1] = np.nan
    model = fitted(rows)
    assert np.isfinite(model.explained_variance_curve(rows)).all()
    assert np.isfinite(model.truncate(1).transform(rows)).all()


def test_sparse_rows_are_fitted_as_dense_ones():
    rng = np.random.default_rng(0)
    rows = sparse.random_array((600, 400), density=0.03, rng=rng, format="csr")
    settings = {"max_epochs": 2, "early_stopping": False, "batch_size": 400}
    one, other = fitted(rows, **settings), fitted(rows.toarray(), **settings)
    np.testing.assert_allclose(
        one.explained_variance_curve(rows),
        other.explained_variance_curve(rows.toarray()),
        atol=1e-3,
    )


def test_wide_tables_are_fitted_in_coordinates_of_their_rows():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 3)) @ rng.standard_normal((3, 120))
    rows += 0.1 * rng.standard_normal(rows.shape)
    model = fitted(rows, max_epochs=3, early_stopping=False)
    curve = model.explained_variance_curve(rows)
    assert (curve >= explained_by_pca(rows, rows)[:4] - 1e-3).all()
    assert model.truncate(2).score(rows) == curve[1]


def test_order_can_be_searched():
    search = GridSearchCV(
        AutoencoderTransformer(**{**SMALL, "max_epochs": 1}),
        {"ordered": [True, False]},
        cv=2,
    ).fit(X)
    assert len(search.cv_results_["mean_test_score"]) == 2


@pytest.mark.parametrize("n_inputs", [1, 2, 4])
def test_prefix_linear_is_told_the_width(n_inputs):
    layer = nn.Linear(n_inputs, 3)
    plain = nn.Linear(n_inputs, 3)
    plain.load_state_dict(layer.state_dict())
    PrefixLinear.replace(layer)
    Z = torch.randn(5, n_inputs)
    torch.testing.assert_close(layer(Z), plain(Z))
    with torch.no_grad():
        layer.weight[:, n_inputs:].normal_()
    for width in range(1, n_inputs + 1):
        kept = Z * (torch.arange(n_inputs) < width)
        told = torch.eye(n_inputs)[width - 1].expand(5, -1)
        whole = layer(torch.cat([kept, told], dim=1))
        torch.testing.assert_close(layer(Z[:, :width]), whole)


def test_whitened_codes_of_each_width_have_unit_variance():
    model = fitted(whiten=True)
    for k in range(1, 5):
        part = model.truncate(k)
        Z = part.transform(X)
        np.testing.assert_allclose(Z.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(Z.std(axis=0, ddof=1), 1, rtol=1e-6)
        decoded = part.inverse_transform(Z)
        np.testing.assert_allclose(decoded, part.reconstruct(X), atol=1e-4)
    assert model.inverse_transform(model.transform(X)[:, :2]).shape == X.shape
    model.partial_fit(X)
    assert len(model._trained.code_summaries) == 4


def test_a_row_without_entries_has_the_median_score_of_each_width():
    model = fitted(early_stopping=False)
    empty = np.full((1, X.shape[1]), np.nan)
    for _ in range(2):
        assert model.truncate(4).score_samples(empty) == model.score_samples(empty)
        for k in (1, 2):
            part = model.truncate(k)
            median = np.median(part.score_samples(X))
            np.testing.assert_allclose(part.score_samples(empty), median, rtol=0.15)
        model.partial_fit(X)


def test_the_curve_respects_weights(model):
    weight = np.arange(len(X)) % 3
    curve = model.explained_variance_curve(X, weight)
    assert curve[1] == model.truncate(2).score(X, sample_weight=weight)
    np.testing.assert_allclose(
        curve, model.explained_variance_curve(np.repeat(X, weight, axis=0)), rtol=1e-9
    )


class OtherUse(nn.Module):
    """A decoder that uses the code in a second place."""

    def __init__(self, n_features, n_components, use):
        super().__init__()
        self.first = nn.Linear(n_components, 8)
        self.last = nn.Linear(8, n_features)
        self.skip = nn.Linear(n_components, n_features)
        self.use = use

    def forward(self, Z):
        decoded = self.last(torch.tanh(self.first(Z)))
        return {
            "skip": lambda: decoded + self.skip(Z),
            "last": lambda: decoded + Z[:, -1:],
            "gate": lambda: decoded * Z.square().sum(dim=-1, keepdim=True),
        }[self.use]()


def without_bias(n_features, n_components):
    return nn.Sequential(
        nn.Linear(n_components, 8, bias=False), nn.Linear(8, n_features)
    )


def with_hook(n_features, n_components):
    layer = nn.Linear(n_components, n_features)
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0].tanh(),))
    return layer


@pytest.mark.parametrize(
    "decoder",
    [
        *(partial(OtherUse, use=use) for use in ("skip", "last", "gate")),
        without_bias,
        with_hook,
        lambda n_features, n_components: nn.Linear(
            n_components, n_features, bias=False
        ),
    ],
    ids=["skip", "last", "gate", "without bias", "hook", "linear"],
)
def test_decoders_of_ones_own_take_the_first_components(decoder):
    network = Custom(encoder=encoder_factory, decoder=decoder)
    settings = {"early_stopping": False, "max_epochs": 40, "transform_max_iter": 0}
    model = fitted(network=network, learning_rate=0.01, **settings)
    # Training and prediction compute the same: the last loss is that of the scores.
    errors = [-model.truncate(k).score_samples(X).mean() for k in range(1, 5)]
    assert min(errors) * 0.9 < model.loss_curve_[-1] < max(errors) * 1.1


def test_ratios_of_scores_are_those_of_the_medians():
    X = np.random.default_rng(0).normal(size=(100, 4)) * [8, 4, 2, 1]
    ae = AutoencoderTransformer(3, ordered=True, max_epochs=1, random_state=0).fit(X)
    medians = [np.median(ae.truncate(k).score_samples(X)) for k in (1, 2, 3)]
    ratios = ae._trained.ordered.score_ratios
    np.testing.assert_allclose(ratios, np.array(medians) / medians[-1], rtol=1e-5)
