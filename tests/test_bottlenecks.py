"""Facts about skae.bottlenecks."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris, load_wine, make_blobs
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import InvalidParameterError
from torch.distributions import Normal, kl_divergence

from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae.bottlenecks import (
    BOTTLENECKS,
    DEAD_SHARE,
    Bottleneck,
    Deterministic,
    Gaussian,
    Quantized,
    Squeeze,
    TopK,
    _sum_by_index,
    _sum_by_product,
    divergence,
    divergences,
    noise_of_ppca,
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


@pytest.mark.parametrize(
    ("name", "having"),
    [
        ("allows_pca", {"deterministic", "gaussian"}),
        ("allows_order", {"deterministic", "gaussian"}),
        ("suits_hidden_layers", {"deterministic", "gaussian", "quantized"}),
        ("has_finite_codes", {"quantized"}),
        ("starts_near_pca", {"gaussian"}),
        ("has_term", {"gaussian", "quantized"}),
        ("has_plain_score", {"deterministic", "gaussian", "quantized", "topk"}),
        ("codes_may_be_refined", {"deterministic"}),
        ("members_stack", {"deterministic"}),
        ("suits_code_activation", {"deterministic", "quantized", "topk"}),
    ],
)
def test_bottlenecks_differ_in_what_they_allow(name, having):
    found = {key for key, kind in BOTTLENECKS.items() if getattr(kind(), name)}
    assert found == having


def test_codes_of_all_bottlenecks_but_two_are_continuous():
    found = {
        name: build(kind(), 3 if name != "topk" else 40).is_continuous
        for name, kind in BOTTLENECKS.items()
    }
    assert {name for name in found if not found[name]} == {"quantized", "topk"}


def test_the_start_of_a_deterministic_code_is_a_pca_with_unit_variance():
    axes = np.array([[0.6, 0.8, 0.0], [-0.8, 0.6, 0.0], [0.0, 0.0, 0.0]])
    variances = np.array([9.0, 4.0, 0.0])  # no variance beyond the rank
    start = Deterministic().start_at_pca(axes, variances, 0.5, 1.0)
    np.testing.assert_allclose(start.decoder @ start.encoder, axes.T @ axes, atol=1e-12)
    covariance = axes.T @ np.diag(variances) @ axes
    codes = start.encoder @ covariance @ start.encoder.T
    np.testing.assert_allclose(codes, np.diag([1.0, 1.0, 0.0]), atol=1e-12)


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


def test_divergences_of_the_components_sum_to_that_of_the_row():
    mu, log_var = normal(9, 3), normal(9, 3, seed=1)
    found = divergences(mu, log_var)
    assert found.shape == (9, 3)
    torch.testing.assert_close(found.sum(dim=1), divergence(mu, log_var))


def test_the_term_of_the_first_components_is_their_divergence():
    module, H = build(Gaussian(warm_up=0.5), 3), normal(9, 6)
    kept = torch.tensor([1.0, 1.0, 0.0]).expand(9, 3)
    expected = divergence(H[:, :2], H[:, 3:5])
    torch.testing.assert_close(module.prefix_term(H, kept, DONE), expected)
    half = module.prefix_term(H, kept, torch.tensor(0.25))
    torch.testing.assert_close(half, expected / 2)


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
    # The variances that remain are exp(20) and exp(-30).
    bounded = torch.tensor([[0.0, 20.0], [0.0, -30.0]])
    expected = build(Gaussian(), 1).training_code(bounded, torch.ones(2), DONE)[1]
    torch.testing.assert_close(term, expected)
    beyond = torch.tensor([[0.0, 19.5], [0.0, -29.5]])
    smaller = build(Gaussian(), 1).training_code(beyond, torch.ones(2), DONE)[1]
    assert (term > smaller).all()


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


def test_elbo_scores_are_lower_and_have_no_contributions(X):
    plain = AutoencoderOutlierDetector(
        2, bottleneck="gaussian", n_neighbors=0, **FEW_EPOCHS
    ).fit(X)
    elbo = clone(plain).set_params(bottleneck=Gaussian(score="elbo")).fit(X)
    assert (elbo.score_samples(X) < plain.score_samples(X)).all()
    np.testing.assert_array_equal(elbo.score_samples(X), elbo.score_samples(X))
    assert hasattr(plain, "feature_contributions")
    assert not hasattr(elbo, "feature_contributions")
    np.testing.assert_allclose(
        plain.feature_contributions(X).sum(axis=1), -plain.score_samples(X)
    )


# The likelihood of a Gaussian bottleneck


def linear_table(n_samples=300, seed=0):
    """Rows near a plane of three dimensions, with noise of variance 0.25."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((3, 7)) * [[4], [2], [1]]
    Z = rng.standard_normal((n_samples, 3))
    return Z @ W + 0.5 * rng.standard_normal((n_samples, 7)) + 5


LINEAR = {"hidden_layer_sizes": (), "bottleneck": "gaussian", "random_state": 0}


SHORT = {"early_stopping": True, "max_epochs": 10}


def negative_elbo(ae, X, n_draws=200):
    """Negative ELBO in nats per row and in the units of X, at noisy codes."""
    module, rows = ae.net_.module_in(np.float64), torch.from_numpy(X)
    with torch.no_grad():
        target, _ = module.scaler(rows)
        H = module.encoder(target)
        mu, log_var = H.chunk(2, dim=1)
        level, total = module.noise.level.item(), 0
        for seed in range(n_draws):
            epsilon = torch.from_numpy(
                np.random.default_rng(seed).standard_normal(mu.shape)
            )
            raw = module.decoder(mu + (log_var / 2).exp() * epsilon)
            decoded = Normal(raw, math.sqrt(level)).log_prob(target).sum(dim=1)
            total = total + divergence(mu, log_var) - decoded
        return (total / n_draws).mean().item() + module.scaler.factor.log().sum().item()


@pytest.mark.parametrize("scale", ["global", None])
def test_linear_gaussian_autoencoder_is_probabilistic_pca(scale):
    X = linear_table()
    ae = AutoencoderTransformer(3, scale=scale, **LINEAR, **SHORT).fit(X)
    pca = PCA(3).fit(X)
    assert ae.active_units_.all()
    assert negative_elbo(ae, X) == pytest.approx(-pca.score(X), abs=0.02)
    noise = ae.module_.noise.level.item() * ae.module_.scaler.factor[0].item() ** 2
    assert noise == pytest.approx(pca.noise_variance_, rel=0.02)


def test_linear_gaussian_autoencoder_approaches_probabilistic_pca_by_training():
    X = linear_table()
    ae = AutoencoderTransformer(
        3,
        init="random",
        early_stopping=False,
        max_epochs=100,
        learning_rate=0.01,
        **LINEAR,
    ).fit(X)
    assert ae.active_units_.all()
    assert negative_elbo(ae, X, 20) == pytest.approx(-PCA(3).fit(X).score(X), abs=0.05)


def test_active_units_are_the_directions_above_the_noise():
    # Variances 9, 4, 1, 1, 1, 1: two directions exceed the mean of the last two.
    U = np.random.default_rng(0).standard_normal((64, 6))
    X = np.linalg.qr(U - U.mean(axis=0))[0] * 8 * [3, 2, 1, 1, 1, 1]
    ae = AutoencoderTransformer(4, **LINEAR, **SHORT).fit(X)
    assert ae.active_units_.tolist() == [True, True, False, False]


@pytest.mark.parametrize("weight", [0.25, 1.0, 2.0, 4.0])
def test_noise_of_ppca_is_the_mean_residual_variance(weight):
    variances, rest, d = np.array([9.0, 4.0, 2.0, 1.1]), 0.9, 10
    noise = noise_of_ppca(variances, rest, d, weight)
    residuals = [min(v, weight * noise) for v in variances] + [rest] * 6
    assert noise == pytest.approx(np.mean(residuals))


def test_noise_of_ppca_is_finite_where_the_weight_leaves_no_free_direction():
    # With both components, 4 - 2 * 2 directions are free.
    assert noise_of_ppca(np.array([9.0, 4.0]), 0.5, 4, 2.0) == pytest.approx(2.5)


def test_noise_of_ppca_is_positive_without_any_residual():
    assert noise_of_ppca(np.array([4.0, 2.0, 0.0]), 0.0, 5) == 1
    assert noise_of_ppca(np.array([4.0, 2.0]), 0.0, 2) == 1
    assert noise_of_ppca(np.zeros(2), 0.0, 4) == 1
    assert noise_of_ppca(np.zeros(2), 0.5, 4) == 0.5


@pytest.mark.parametrize("loss", ["squared_error", "binary_cross_entropy"])
def test_components_do_not_collapse(loss):
    X = load_digits().data[::3] / 16
    ae = AutoencoderTransformer(
        8, bottleneck="gaussian", loss=loss, random_state=0, **SHORT
    ).fit(X)
    assert ae.active_units_.all()
    assert ae.score(X) > PCA(8).fit(X).explained_variance_ratio_.sum() - 0.05


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_more_noise_leaves_fewer_active_units():
    X = linear_table()
    counts = []
    for noise in (0.01, 0.3, 10.0):
        ae = AutoencoderTransformer(3, **LINEAR, **SHORT)
        ae.set_params(bottleneck=Gaussian(noise_variance=noise)).fit(X)
        assert ae.module_.noise.level.item() == pytest.approx(noise)
        counts.append(int(ae.active_units_.sum()))
    assert counts[0] == 3
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 0


@pytest.mark.parametrize("weight", [0.0, 0.1, 10.0])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_fits_are_finite_for_every_weight_of_the_divergence(weight):
    X = linear_table(60)
    ae = AutoencoderTransformer(
        3, bottleneck="gaussian", bottleneck_weight=weight, **FEW_EPOCHS
    )
    assert np.isfinite(ae.fit(X).transform(X)).all()


@pytest.mark.parametrize(
    "X",
    [np.ones((9, 4)), np.outer(np.arange(9.0), np.arange(4.0)), np.eye(4)],
    ids=["constant", "rank one", "as many components as features"],
)
def test_rows_without_noise_give_a_finite_likelihood(X):
    ae = AutoencoderTransformer(4, bottleneck="gaussian", **FEW_EPOCHS).fit(X)
    assert np.isfinite(ae.loss_curve_).all()
    assert np.isfinite(ae.reconstruct(X)).all()


@pytest.mark.parametrize("early_stopping", [False, True])
def test_learnt_noise_counts_weights_as_repetitions(early_stopping):
    X = linear_table(40)
    w = np.random.default_rng(0).integers(1, 4, 40)
    ae = AutoencoderTransformer(
        2, bottleneck="gaussian", early_stopping=early_stopping, **FEW_EPOCHS
    )
    weighted = clone(ae).fit(X, sample_weight=w).module_.noise.level
    repeated = clone(ae).fit(np.repeat(X, w, axis=0)).module_.noise.level
    assert torch.equal(weighted, repeated)


@pytest.mark.parametrize("loss", ["squared_error", "log_error", "mixed"])
def test_elbo_score_is_the_loss_plus_the_scaled_divergence(loss):
    X = linear_table(60)
    X[:, 0] = X[:, 0] > 5
    detector = AutoencoderOutlierDetector(
        2, bottleneck=Gaussian(score="elbo"), loss=loss, n_estimators=2, **FEW_EPOCHS
    ).fit(X)
    module = detector.net_.module_in(np.float64)
    with torch.no_grad():
        propagation = module.propagate(torch.from_numpy(X))
        losses = module.losses(propagation)
        likelihood = module.noise.negative_log_likelihood(losses)
        s = module.noise.scale  # (n_members, 1, 1)
        log_z = module.loss.log_normalizer(s) * module.noise.is_scaled
        mu, log_var = propagation.H.chunk(2, dim=2)
        term = torch.stack(
            [divergence(*pair) for pair in zip(mu, log_var, strict=True)]
        )
        elbo = s[..., 0] * ((likelihood - log_z).mean(dim=2) + term / X.shape[1])
    np.testing.assert_allclose(detector.score_samples(X), -elbo.mean(dim=0))
    assert s.shape == (2, 1, 1)
    assert s[0] != s[1]


def test_partial_fit_continues_to_learn_the_noise():
    X = linear_table()
    ae = AutoencoderTransformer(2, bottleneck="gaussian", random_state=0)
    levels = [ae.partial_fit(X).module_.noise.level.item() for _ in range(3)]
    assert len(set(levels)) == 3


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


def test_an_entry_is_dead_by_the_mean_count_of_its_codebook():
    H = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    module = train(build(Quantized(4, 1), 1), H)
    rare = DEAD_SHARE * torch.tensor([0.2, 2.0])
    module.counts[:, :2] = module.counts.mean() * rare
    module.sums[:, :2] = module.counts[:, :2, None] * torch.tensor([[[7.0], [9.0]]])
    module._replace_dead_entries(H[None], torch.ones(1, 4))
    entries = (module.sums / module.counts[:, :, None])[0, :, 0]
    replaced, kept = entries[:2]
    assert replaced <= 3
    assert kept.item() == pytest.approx(9)


def test_rows_whose_weights_underflow_change_no_entry():
    H = normal(30, 2)
    module = train(build(Quantized(2, 2), 2), H)
    before = module.codebooks.clone()
    train(module, H + 1, 1, torch.zeros(30))
    torch.testing.assert_close(module.codebooks, before)


def test_sums_by_index_are_those_of_the_product_on_a_gpu():
    indices = torch.tensor([[0, 2, 2, 0, 3], [1, 1, 1, 0, 0]])
    values = normal(2, 5, 3)
    expected = torch.zeros(2, 4, 3)
    for (c, i), index in np.ndenumerate(indices.numpy()):
        expected[c, index] += values[c, i]
    for compute in (_sum_by_index, _sum_by_product):
        torch.testing.assert_close(compute(values, indices, 4), expected)


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
    "parameters",
    [
        *({"warm_up": -0.1}, {"warm_up": 1.1}, {"score": "loss"}),
        *({"noise_variance": 0.0}, {"noise_variance": -0.5}),
    ],
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
    codebook = ae.module_.bottleneck.codebooks[0].numpy(force=True)
    positions = ae.transform(digits[:9].astype(np.float32)).reshape(-1, 4)
    distances = np.abs(positions[:, None] - codebook).sum(axis=2)
    assert distances.min(axis=1).max() == 0


def test_user_defined_bottlenecks_need_only_build(X):
    class NoisySqueeze(Squeeze):
        generator = None

        def training_code(self, H, weight, done):
            noise = torch.randn(H.shape, generator=self.generator, device=H.device)
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


# TopK


@pytest.mark.parametrize(
    ("n_components", "n_active", "expected"),
    [(64, "auto", 8), (15, "auto", 1), (1, "auto", 1), (5, 5, 5), (5, 2, 2)],
)
def test_topk_keeps_the_largest_components_rectified(n_components, n_active, expected):
    H = normal(50, n_components)
    Z = build(TopK(n_active), n_components)(H)
    rank = H.argsort(dim=1, descending=True).argsort(dim=1)
    torch.testing.assert_close(Z, H.clamp(min=0) * (rank < expected), rtol=0, atol=0)


def test_topk_keeps_no_more_of_equal_components():
    assert (build(TopK(2), 5)(torch.ones(3, 5)) > 0).sum(dim=1).tolist() == [2, 2, 2]


def test_topk_code_in_training_is_that_outside():
    H, module = normal(9, 16), build(TopK(3), 16)
    Z, term = module.train().training_code(H, torch.ones(9), DONE)
    assert term is None
    assert torch.equal(Z, module.eval()(H))


def test_topk_gives_unused_components_the_gradient_that_raises_them():
    H = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, -1.0]], requires_grad=True)
    slope = torch.tensor([[1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
    Z, _ = build(TopK(1), 3).training_code(H, torch.ones(2), DONE)
    (Z * slope).sum().backward()
    # Only one of the three can be active in a row.
    expected = torch.tensor([[1.0, -1 / 3, -1 / 3], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(H.grad, expected)


@pytest.mark.parametrize("table", [load_iris, load_wine])
def test_topk_of_more_components_than_features_converges_in_deep_networks(table):
    rows = StandardScaler().fit_transform(table().data)
    ae = AutoencoderTransformer(
        64, bottleneck="topk", hidden_layer_sizes=(256, 128, 64), max_epochs=20,
        early_stopping=False, random_state=0,
    )  # fmt: skip
    with warnings.catch_warnings():  # a few components are still constant
        warnings.simplefilter("ignore", ConvergenceWarning)
        ae.fit(rows)
    assert ae.score(rows) > 0.5


@pytest.mark.parametrize("seed", [0, 1])
def test_topk_training_is_stable_in_small_batches(seed):
    # In batches of 12 rows, most of 16 components are unused.
    rng = np.random.RandomState(0)
    rows = rng.randn(200, 2) @ rng.randn(2, 6)
    ae = AutoencoderTransformer(
        16, bottleneck="topk", early_stopping=False, max_epochs=34, random_state=seed
    ).fit(rows)
    assert ae.score(rows) > 0.9
    assert np.count_nonzero(ae.transform(rows).any(axis=0)) > 8


@pytest.mark.parametrize("n_active", [0, 1.5, "all", None])
def test_error_names_n_active_out_of_range(n_active, X):
    ae = AutoencoderTransformer(2, bottleneck=TopK(n_active))
    with pytest.raises(InvalidParameterError, match="n_active"):
        ae.fit(X)


def test_topk_of_more_components_than_there_are_is_an_error(X):
    with pytest.raises(ValueError, match="n_active must be at most n_components=2"):
        AutoencoderTransformer(2, bottleneck=TopK(3)).fit(X)


@pytest.mark.parametrize("kind", [AutoencoderTransformer, AutoencoderOutlierDetector])
def test_topk_implies_a_linear_network_unless_layers_are_set(kind, X):
    settings = {"bottleneck": "topk", "max_epochs": 1, "random_state": 0}
    weights = [
        sum("weight" in name for name, _ in fitted.net_.module_.named_parameters())
        for fitted in (
            kind(2, **settings).fit(X),
            kind(2, hidden_layer_sizes=(4,), **settings).fit(X),
        )
    ]
    assert weights == [2, 4]
