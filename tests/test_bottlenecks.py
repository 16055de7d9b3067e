"""Facts about skae.bottlenecks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.utils._param_validation import InvalidParameterError
from torch.distributions import Normal, kl_divergence

from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae.bottlenecks import (
    BOTTLENECKS,
    Bottleneck,
    Deterministic,
    Gaussian,
    Quantized,
    Squeeze,
    divergence,
)
from skae.networks import MLP, Conv

DONE = torch.tensor(1.0)
FEW_EPOCHS = {"max_epochs": 15, "hidden_layer_sizes": (16,), "random_state": 0}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))


def build(spec, n_components, n_channels=None, seed=0):
    module = spec.build(n_components, n_channels or n_components, generator())
    module.generator = generator(seed)
    return module


def train(module, H, n_steps=100, weight=None):
    weight = torch.ones(len(H)) if weight is None else weight
    for _ in range(n_steps):
        module.train().training_code(H, weight, DONE)
    return module.eval()


@pytest.fixture(scope="module")
def X():
    return make_blobs(200, 6, centers=4, random_state=0)[0]


# All


@pytest.mark.parametrize("name", sorted(BOTTLENECKS))
def test_named_bottleneck_has_valid_defaults_and_can_be_cloned(name):
    bottleneck = BOTTLENECKS[name]()
    bottleneck._validate_params()
    assert clone(bottleneck).get_params() == bottleneck.get_params()


@pytest.mark.parametrize("name", sorted(BOTTLENECKS))
def test_code_of_a_row_is_deterministic_outside_training(name):
    spec = BOTTLENECKS[name]()
    H = normal(40, spec.encoder_width(3))
    module = train(build(spec, 3), H, 3)
    assert module(H).shape == (40, 3)
    assert torch.equal(module(H), module(H))
    torch.testing.assert_close(module(H[:1]), module(H)[:1], rtol=0, atol=0)


def test_bottlenecks_do_not_allow_a_pca_by_default():
    assert not Bottleneck.allows_pca


def test_bottleneck_without_build_is_abstract():
    with pytest.raises(TypeError, match="build"):
        Bottleneck()


# Deterministic


def test_deterministic_code_is_the_encoder_output():
    H, module = normal(5, 3), build(Deterministic(), 3)
    Z, term = module.train().training_code(H, torch.ones(5), torch.tensor(0.5))
    assert torch.equal(Z, H)
    assert term is None
    assert torch.equal(module.eval()(H), H)
    assert module.score_term(H) is None


def test_deterministic_bottleneck_has_no_parameters():
    assert not build(Deterministic(), 3).state_dict()
    assert Deterministic().encoder_width(7) == 7
    assert Deterministic().allows_pca


# Gaussian


def test_the_divergence_is_that_of_normal_distributions():
    mu, log_var = normal(6, 3), normal(6, 3, seed=1)
    expected = kl_divergence(Normal(mu, (log_var / 2).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(divergence(mu, log_var), expected)


def test_the_divergence_of_the_prior_itself_is_zero():
    assert divergence(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0


def test_gaussian_code_is_the_mean_outside_training():
    H = normal(5, 6)
    assert torch.equal(build(Gaussian(), 3)(H), H[:, :3])


def test_gaussian_training_code_has_the_encoded_mean_and_variance():
    H = torch.tensor([[3.0, -1.0, math.log(4.0), math.log(0.01)]]).expand(20_000, -1)
    Z, term = build(Gaussian(), 2).training_code(H, torch.ones(20_000), DONE)
    torch.testing.assert_close(Z.mean(0), torch.tensor([3.0, -1.0]), atol=0.1, rtol=0)
    torch.testing.assert_close(Z.std(0), torch.tensor([2.0, 0.1]), atol=0, rtol=0.05)
    torch.testing.assert_close(term, divergence(H[:, :2], H[:, 2:]))


def test_only_the_deterministic_bottleneck_stacks_and_refines():
    for name, kind in BOTTLENECKS.items():
        assert kind.members_stack == (name == "deterministic")
        assert kind.codes_may_be_refined == (name == "deterministic")


def test_gaussian_noise_is_drawn_from_the_generator_at_each_call():
    H, weight, before = normal(9, 4), torch.ones(9), torch.get_rng_state()
    module = build(Gaussian(), 2)
    first, second = (module.training_code(H, weight, DONE)[0] for _ in range(2))
    assert not torch.equal(first, second)
    again = build(Gaussian(), 2).training_code(H, weight, DONE)[0]
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)


def test_samples_have_gradients_of_mean_and_variance():
    H = normal(9, 4).requires_grad_()
    Z, _ = build(Gaussian(), 2).training_code(H, torch.ones(9), DONE)
    Z.square().sum().backward()
    assert (H.grad != 0).all()


@pytest.mark.parametrize(("done", "share"), [(0.0, 0), (0.1, 0.25), (0.4, 1), (1.0, 1)])
def test_warm_up_increases_the_weight_of_the_term_linearly(done, share):
    H, weight = normal(9, 4), torch.ones(9)
    module = build(Gaussian(warm_up=0.4), 2)
    _, term = module.training_code(H, weight, torch.tensor(done))
    torch.testing.assert_close(term, share * divergence(H[:, :2], H[:, 2:]))


def test_extreme_variances_stay_finite():
    H = torch.tensor([[0.0, 1e4], [0.0, -1e4]])
    Z, term = build(Gaussian(), 1).training_code(H, torch.ones(2), DONE)
    assert Z.isfinite().all()
    assert term.isfinite().all()


def test_score_term_is_the_divergence_for_the_elbo_only():
    H = normal(9, 4)
    assert build(Gaussian(), 2).score_term(H) is None
    term = build(Gaussian(score="elbo"), 2).score_term(H)
    torch.testing.assert_close(term, divergence(H[:, :2], H[:, 2:]))


def test_active_units_are_those_whose_mean_varies():
    mu = np.column_stack([np.zeros(100), np.tile([-0.2, 0.2], 50), np.full(100, 9.0)])
    attributes = Gaussian().fitted_attributes(lambda method: mu, np.ones(100))
    assert attributes["active_units_"].tolist() == [False, True, False]


def test_active_units_count_weights_as_repetitions():
    mu = np.array([[0.0], [1.0]])
    rare = Gaussian().fitted_attributes(lambda method: mu, np.array([999.0, 1.0]))
    assert not rare["active_units_"][0]


def test_large_weight_of_the_term_makes_all_units_inactive(X):
    ae = AutoencoderTransformer(3, bottleneck="gaussian", **FEW_EPOCHS)
    assert ae.fit(X).active_units_.any()
    assert not ae.set_params(bottleneck_weight=1e4).fit(X).active_units_.any()


def test_samples_are_rows_decoded_from_the_prior(X):
    ae = AutoencoderTransformer(3, bottleneck="gaussian", **FEW_EPOCHS).fit(X)
    samples = ae.sample(7, random_state=1)
    codes = np.random.RandomState(1).standard_normal((7, 3))
    np.testing.assert_array_equal(samples, ae.inverse_transform(codes))
    assert ae.sample().shape == (1, 6)
    for n_samples, error in ((0, ValueError), (2.5, TypeError)):
        with pytest.raises(error, match="n_samples"):
            ae.sample(n_samples)


def test_only_a_variational_bottleneck_samples():
    assert hasattr(AutoencoderTransformer(bottleneck="gaussian"), "sample")
    assert hasattr(AutoencoderTransformer(bottleneck=Gaussian()), "sample")
    for bottleneck in ("deterministic", "quantized", Quantized(), "unknown", 3):
        assert not hasattr(AutoencoderTransformer(bottleneck=bottleneck), "sample")


def test_elbo_scores_are_lower_and_have_no_contributions(X):
    plain = AutoencoderOutlierDetector(2, bottleneck="gaussian", **FEW_EPOCHS).fit(X)
    elbo = clone(plain).set_params(bottleneck=Gaussian(score="elbo")).fit(X)
    assert (elbo.score_samples(X) < plain.score_samples(X)).all()
    np.testing.assert_array_equal(elbo.score_samples(X), elbo.score_samples(X))
    assert hasattr(plain, "feature_contributions")
    assert not hasattr(elbo, "feature_contributions")
    np.testing.assert_allclose(
        plain.feature_contributions(X).sum(axis=1), -plain.score_samples(X)
    )


# Quantized


@settings(max_examples=30, deadline=None)
@given(
    n_components=st.integers(1, 9),
    code_dim=st.integers(1, 10),
    n_codes=st.integers(2, 9),
    shared=st.booleans(),
)
def test_codes_are_the_nearest_entries(n_components, code_dim, n_codes, shared):
    code_dim = min(code_dim, n_components)
    shared = shared and n_components % code_dim == 0
    spec = Quantized(n_codes, code_dim, shared=shared)
    H = normal(30, n_components)
    module = train(build(spec, n_components), H, 3)
    codes = module.quantize(H)
    n_groups = math.ceil(n_components / code_dim)
    assert codes.shape == (30, n_groups)
    Z = module(H)
    assert Z.shape == H.shape
    assert torch.equal(Z, module.look_up(codes))
    for group in range(n_groups):
        columns = slice(group * code_dim, (group + 1) * code_dim)
        width = H[:, columns].shape[1]
        entries = module.codebooks[0 if shared else group, :, :width]
        distances = torch.cdist(H[:, columns], entries)
        chosen = distances.gather(1, codes[:, [group]])
        torch.testing.assert_close(chosen[:, 0], distances.amin(1))
        assert torch.equal(Z[:, columns], entries[codes[:, group]])


def test_quantization_has_a_straight_through_gradient():
    H = normal(20, 4).requires_grad_()
    module = train(build(Quantized(5, 2), 4), H.detach(), 3)
    Z, _ = module.training_code(H, torch.ones(20), DONE)
    (Z * 3).sum().backward()
    torch.testing.assert_close(Z.detach(), module(H).detach())
    assert (H.grad == 3).all()


def test_gradient_of_the_term_moves_codes_to_their_entries():
    H = normal(20, 4).requires_grad_()
    module = train(build(Quantized(5, 2), 4), H.detach(), 3)
    _, term = module.training_code(H, torch.ones(20), DONE)
    residual = (H - module(H)).detach()
    torch.testing.assert_close(term.detach(), residual.square().sum(1))
    term.sum().backward()
    torch.testing.assert_close(H.grad, 2 * residual)


def test_entries_converge_to_the_means_of_their_codes():
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    H = centres.repeat(50, 1) + 0.1 * normal(200, 2)
    module = train(build(Quantized(4, 2, decay=0.9), 2), H, 300)
    codes = module.quantize(H)[:, 0]
    assert len(codes.unique()) == 4
    for code in codes.unique():
        expected = H[codes == code].mean(0)
        torch.testing.assert_close(
            module.codebooks[0, code], expected, atol=1e-3, rtol=0
        )


def test_entries_are_weighted_means():
    H = torch.tensor([[0.0], [1.0], [50.0]])
    weight = torch.tensor([3.0, 1.0, 4.0])
    module = train(build(Quantized(2, 1, decay=0.5), 1), H, 200, weight)
    entries = module.codebooks[0, :, 0].sort().values
    torch.testing.assert_close(entries, torch.tensor([0.25, 50.0]))


def test_dead_entries_are_replaced():
    H = normal(256, 2)
    module = build(Quantized(32, 2), 2)
    train(module, H[:1], 400)  # a single code uses one entry
    assert len(train(module, H, 400).quantize(H).unique()) >= 16


def test_entries_do_not_change_outside_training():
    H, module = normal(30, 2), train(build(Quantized(5, 2), 2), normal(30, 2))
    before = module.codebooks.clone()
    module.training_code(H + 1, torch.ones(30), DONE)  # as on held-out rows
    module(H + 1)
    assert torch.equal(module.codebooks, before)


def test_replacement_of_dead_entries_draws_from_the_generator_only():
    before = torch.get_rng_state()
    one, other = (train(build(Quantized(5, 2), 2), normal(30, 2)) for _ in range(2))
    assert torch.equal(one.codebooks, other.codebooks)
    assert torch.equal(torch.get_rng_state(), before)


def test_auto_code_dim_is_the_number_of_channels_or_four():
    assert build(Quantized(), 12).code_dim == 4
    assert build(Quantized(), 3).code_dim == 3
    assert build(Quantized(), 12, n_channels=6).code_dim == 6
    assert build(Quantized(code_dim=2), 12, n_channels=6).code_dim == 2


def test_a_shared_codebook_needs_equal_groups():
    with pytest.raises(ValueError, match=r"shared=True.*4.*n_components=6"):
        build(Quantized(shared=True, code_dim=4), 6)


@pytest.mark.parametrize(
    "parameters",
    [{"n_codes": 1}, {"code_dim": 0}, {"decay": 1.0}, {"shared": "yes"}],
)
def test_errors_name_invalid_parameters_of_quantized(parameters):
    with pytest.raises(InvalidParameterError, match=next(iter(parameters))):
        Quantized(**parameters)._validate_params()


@pytest.mark.parametrize(
    "parameters", [{"warm_up": -0.1}, {"warm_up": 1.1}, {"score": "loss"}]
)
def test_errors_name_invalid_parameters_of_gaussian(parameters):
    with pytest.raises(InvalidParameterError, match=next(iter(parameters))):
        Gaussian(**parameters)._validate_params()


@pytest.mark.parametrize(
    ("n_codes", "dtype"), [(256, np.uint8), (257, np.uint16), (70_000, np.uint32)]
)
def test_quantized_codes_have_the_smallest_type(X, n_codes, dtype):
    bottleneck = Quantized(n_codes, 2)
    ae = AutoencoderTransformer(
        3, bottleneck=bottleneck, **{**FEW_EPOCHS, "max_epochs": 1}
    ).fit(X)
    codes = ae.quantize(X)
    assert codes.dtype == dtype
    assert codes.shape == (200, 2)


def test_dequantized_codes_are_the_reconstruction(X):
    ae = AutoencoderTransformer(4, bottleneck=Quantized(8, 2), **FEW_EPOCHS).fit(X)
    np.testing.assert_array_equal(ae.dequantize(ae.quantize(X)), ae.reconstruct(X))
    assert len(np.unique(ae.transform(X), axis=0)) <= 64


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([[0, 8]], r"\[0, 8\).*0 and 8"),
        ([[-1, 0]], r"\[0, 8\).*-1 and 0"),
        ([[0, 0, 0]], "3 columns.*2 groups"),
        ([[0.5, 0]], "integers.*float64"),
    ],
)
def test_invalid_quantized_codes_raise(X, codes, message):
    ae = AutoencoderTransformer(4, bottleneck=Quantized(8, 2), **FEW_EPOCHS).fit(X)
    with pytest.raises(ValueError, match=message):
        ae.dequantize(codes)


def test_only_a_quantized_bottleneck_quantizes():
    for name in ("quantize", "dequantize"):
        assert hasattr(AutoencoderTransformer(bottleneck="quantized"), name)
        assert not hasattr(AutoencoderTransformer(), name)
        assert not hasattr(AutoencoderTransformer(bottleneck="gaussian"), name)


def test_perplexity_is_the_effective_number_of_entries():
    codes = np.array([[0, 0], [1, 0], [2, 0], [3, 0]])
    attributes = Quantized(8).fitted_attributes(lambda method: codes, np.ones(4))
    np.testing.assert_allclose(attributes["perplexity_"], [4, 1])
    shared = Quantized(8, shared=True).fitted_attributes(
        lambda method: codes, np.ones(4)
    )
    share = np.array([5, 1, 1, 1]) / 8
    np.testing.assert_allclose(
        shared["perplexity_"], [np.exp(-(share * np.log(share)).sum())]
    )


def test_most_entries_are_used(digits):
    ae = AutoencoderTransformer(
        4, bottleneck=Quantized(16, 2), max_epochs=30, random_state=0
    ).fit(digits)
    assert (ae.perplexity_ > 8).all()


def test_positions_of_a_feature_map_share_a_codebook(digits):
    ae = AutoencoderTransformer(
        "auto",
        network=Conv((8, 4), code="feature_map"),
        input_shape=(8, 8),
        bottleneck=Quantized(16, shared=True),
        max_epochs=3,
        random_state=0,
    ).fit(digits)
    assert ae.n_components_ == 2 * 2 * 4
    assert ae.quantize(digits).shape == (1797, 2 * 2)
    assert ae.perplexity_.shape == (1,)
    codebook = ae.module_.bottleneck.codebooks[0].numpy()
    positions = ae.transform(digits[:9].astype(np.float32)).reshape(-1, 4)
    distances = np.abs(positions[:, None] - codebook).sum(axis=2)
    assert distances.min(axis=1).max() == 0


def test_user_defined_bottlenecks_need_only_build(X):
    class NoisySqueeze(Squeeze):
        generator = None

        def training_code(self, H, weight, done):
            noise = torch.randn(H.shape, generator=self.generator)
            return H + noise, H.square().sum(dim=1)

    class UserDefined(Bottleneck):
        def build(self, n_components, n_channels, generator):
            return NoisySqueeze()

    ae = AutoencoderTransformer(
        2, bottleneck=UserDefined(), early_stopping=True, **FEW_EPOCHS
    )
    ae.fit(X)
    inactive = clone(ae).set_params(bottleneck_weight=1e4).fit(X)
    assert np.var(inactive.transform(X)) < 0.01 * np.var(ae.transform(X))


def test_code_activation_of_a_penalty_is_not_applied_to_a_gaussian_code(X):
    ae = AutoencoderTransformer(2, penalty="l1", **FEW_EPOCHS)
    assert ae.fit_transform(X).min() >= 0
    assert ae.set_params(bottleneck="gaussian").fit_transform(X).min() < 0
    own = MLP((16,), code_activation="relu")
    ae.set_params(network=own, hidden_layer_sizes="auto")
    assert ae.fit_transform(X).min() >= 0
