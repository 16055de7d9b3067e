"""Facts about skae.penalties."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit, rel_entr
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn

from skae import AutoencoderOutlierDetector, AutoencoderTransformer, penalties
from skae._layers import (
    Dropout,
    Residual,
    exact_derivatives,
    takes_inputs_in_order,
)
from skae._rows import Batch
from skae.bottlenecks import Gaussian
from skae.engine.objective import Objective
from skae.networks import ACTIVATIONS, MLP, Conv, Custom, Shape
from skae.penalties import L1, PENALTIES, Contractive, KLSparsity, Penalty


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def perceptron(n_features, n_outputs, hidden=(16, 8), **settings):
    generator = torch.Generator().manual_seed(0)
    shape = Shape(100, n_features, n_outputs, n_outputs)
    return MLP(hidden, **settings).build(shape, generator)[0].double()


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 6, 6)),
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.GroupNorm(2, 4),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(36, 5),
    ).double()


class LookAlike(Residual):
    """Subclass of Residual that computes something else."""

    def forward(self, X):
        return self.linear(X) * self.remainder(X)


WIDE_RELU = perceptron(36, 5, (72,), activation="relu")
RECTIFIED = perceptron(36, 5, code_activation="relu")
with torch.no_grad():
    RECTIFIED[-2].bias[0] = -100  # a unit that is zero for all rows
PERCEPTRONS = {
    "perceptron": perceptron(36, 5),
    "linear": perceptron(36, 5, ())[0],
    "code activation": perceptron(36, 5, code_activation="tanh"),
    "nested": nn.Sequential(nn.Identity(), perceptron(36, 5), nn.Tanh()),
    "relu, then gelu": nn.Sequential(WIDE_RELU, nn.GELU()),
    "residual": Residual(perceptron(36, 5, ())[0], perceptron(36, 5)),
    "rectified": RECTIFIED,
}
OTHERS = {
    "look-alike": LookAlike(perceptron(36, 5, ())[0], perceptron(36, 5)),
    "in place": nn.Sequential(*perceptron(36, 5), nn.ReLU(inplace=True)),
    "activation first": nn.Sequential(nn.Tanh(), *perceptron(36, 5)),
    "layer norm": nn.Sequential(perceptron(36, 5), nn.LayerNorm(5)).double(),
    "convolutional": convolutional(),
    "rectified, not a perceptron": nn.Sequential(nn.Unflatten(1, (36,)), RECTIFIED),
}
ENCODERS = PERCEPTRONS | OTHERS


def term(encoder, X, n_components, penalty=None, seed=0):
    module = (penalty or Contractive()).build()
    module.generator = torch.Generator().manual_seed(seed)
    Z = encoder(X)[:, :n_components]
    return module(encoder, X, Z, torch.ones(len(X), dtype=X.dtype))


def squared_jacobian(encoder, X, n_components):
    def code(x):
        return encoder(x[None])[0, :n_components]

    with exact_derivatives(encoder):
        J = torch.func.vmap(torch.func.jacrev(code))(X)
    return J.square().sum(dim=(1, 2))


def assert_equal(actual, expected, rtol=1e-10):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol / 100)


def test_l1_is_the_sum_of_magnitudes():
    Z = normal(6, 3)
    expected = np.abs(Z.numpy()).sum(axis=1)
    np.testing.assert_allclose(L1().build()(None, None, Z, torch.ones(6)), expected)


def test_only_l1_implies_an_activation_on_the_code():
    implied = {name: spec.code_activation for name, spec in PENALTIES.items()}
    assert implied == {"l1": "relu", "kl": "identity", "contractive": "identity"}


@pytest.mark.parametrize(
    ("name", "having"),
    [
        ("weighs_units", {"l1"}),
        ("needs_batch", {"kl"}),
        ("needs_rows", {"contractive"}),
        ("allows_order", {"contractive"}),
        ("suits_hidden_layers", {"kl", "contractive"}),
    ],
)
def test_penalties_differ_in_what_they_need(name, having):
    found = {key for key, spec in PENALTIES.items() if getattr(spec, name)}
    assert found == having


def kl(Z, weight, target=0.1):
    return KLSparsity(target).build()(None, None, Z, weight)


def test_kl_follows_its_equation_for_every_row():
    Z, w = 3 * normal(6, 4), np.array([0.5, 1, 2, 3, 1, 1])
    rho, rho_hat = 0.1, np.average(expit(Z.numpy()), axis=0, weights=w)
    expected = rel_entr(rho, rho_hat) + rel_entr(1 - rho, 1 - rho_hat)
    actual = kl(Z, torch.from_numpy(w))
    np.testing.assert_allclose(actual, np.full(6, expected.sum()))


def test_kl_is_zero_at_the_target():
    Z = torch.full((5, 3), logit(0.1), dtype=torch.float64)
    assert kl(Z, torch.arange(1.0, 6)).abs().max() < 1e-14


def test_kl_counts_a_weight_as_repetitions():
    Z, times = normal(3, 2), torch.tensor([1, 2, 3])
    repeated = kl(Z.repeat_interleave(times, dim=0), torch.ones(6))
    assert_equal(kl(Z, times.double()), repeated[:3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("z", [-1e4, 1e4])
def test_kl_is_exact_where_the_sigmoid_saturates(z, dtype):
    Z = torch.full((4, 1), z, dtype=dtype, requires_grad=True)
    divergence = kl(Z, torch.ones(4, dtype=torch.float64))
    divergence.mean().backward()
    slope = 0.9 if z > 0 else -0.1  # 1 - rho or -rho
    entropy = 0.1 * math.log(0.1) + 0.9 * math.log(0.9)
    expected = torch.full((4,), entropy + slope * z, dtype=dtype)
    assert_equal(divergence, expected, 1e-6)
    assert_equal(Z.grad, torch.full((4, 1), slope / 4, dtype=dtype), 1e-6)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (None, 1e-10)])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_contractive_is_exact_with_every_activation(activation, dtype, rtol):
    encoder = perceptron(30, 3, activation=activation).to(dtype)
    X = normal(20, 30, dtype=dtype or torch.float64)
    assert_equal(term(encoder, X, 3), squared_jacobian(encoder, X, 3), rtol)


@pytest.mark.parametrize("n_components", [3, 5])
@pytest.mark.parametrize("name", ENCODERS)
def test_contractive_and_its_gradient_agree_with_the_jacobian(name, n_components):
    encoder = ENCODERS[name]
    X, g = normal(20, 36), normal(20, seed=1)
    weights = list(encoder.parameters())
    actual, expected = (
        function(encoder, X, n_components) for function in (term, squared_jacobian)
    )
    assert_equal(actual, expected)
    gradients = (
        torch.autograd.grad(value, weights, g, materialize_grads=True)
        for value in (actual, expected)
    )
    for gradient, expected in zip(*gradients, strict=True):
        assert_equal(gradient, expected)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 6),
    st.integers(1, 12),
    st.lists(st.integers(1, 12), max_size=3),
    st.integers(1, 4),
    st.integers(0, 3),
)
@example(20, 4, [16, 8], 3, 0)  # a first layer wider than the rows
@example(20, 60, [16, 8], 3, 0)  # and one that is narrower
@example(20, 60, [8], 3, 0)
@example(20, 60, [], 3, 0)
def test_contractive_is_exact_for_any_widths(n, n_features, hidden, k, n_other_outputs):
    encoder = perceptron(n_features, k + n_other_outputs, tuple(hidden))
    X = normal(n, n_features)
    assert_equal(term(encoder, X, k), squared_jacobian(encoder, X, k))


@pytest.mark.parametrize("name", ENCODERS)
def test_closed_form_is_used_for_perceptrons_only(name):
    assert (penalties._as_perceptron(ENCODERS[name]) is None) == (name in OTHERS)


@pytest.mark.parametrize("max_entries", [2**22, 7 * 3 * 72, 1])
@pytest.mark.parametrize("n_projections", [None, 2])
@pytest.mark.parametrize(
    ("name", "widest"),
    [("relu, then gelu", 72), ("residual", 36), ("convolutional", 36)],
)
def test_term_without_gradients_is_computed_in_chunks(
    name, widest, n_projections, max_entries, monkeypatch
):
    encoder = ENCODERS[name]
    X, penalty = normal(20, 36), Contractive(n_projections)
    expected = term(encoder, X, 3, penalty).detach()
    sizes, squared_jacobian = [], penalties._squared_jacobian

    def record(encoder, X, V):
        sizes.append(len(X))
        return squared_jacobian(encoder, X, V)

    monkeypatch.setattr(penalties, "_squared_jacobian", record)
    monkeypatch.setattr(penalties, "MAX_ENTRIES", max_entries)
    with torch.no_grad():
        assert_equal(term(encoder, X, 3, penalty), expected)
    n_entries = widest * (n_projections or 3)
    assert sizes[0] == max(1, min(20, max_entries // n_entries))
    assert sum(sizes) == 20


def test_dropout_does_not_change_the_term_in_eval_mode():
    plain, dropped = perceptron(9, 3), perceptron(9, 3, dropout=0.5).eval()
    X = normal(5, 9)
    assert_equal(term(dropped, X, 3), term(plain, X, 3))


def test_term_and_code_share_a_dropout_mask():
    encoder = nn.Sequential(nn.Linear(9, 6), Dropout(0.5), nn.Linear(6, 3)).double()
    X, dropout = normal(5, 9), encoder[1]
    Z = encoder(X)
    dropout.generator = torch.Generator().manual_seed(3)
    actual = Contractive().build()(encoder, X, Z, torch.ones(5))
    kept = torch.rand(5, 6, generator=torch.Generator().manual_seed(3)) >= 0.5
    J = encoder[2].weight @ (2 * kept[:, :, None] * encoder[0].weight)
    assert_equal(actual, J.square().sum(dim=(1, 2)))


@pytest.mark.parametrize("n_projections", [1, 4])
@pytest.mark.parametrize("name", ["residual", "code activation", "convolutional"])
def test_estimate_is_unbiased_and_independent_for_each_row(name, n_projections):
    encoder = ENCODERS[name]
    X = normal(1, 36).repeat(2000, 1)
    with torch.no_grad():
        estimates = term(encoder, X, 5, Contractive(n_projections))
        exact = term(encoder, X[:1], 5)
    standard_error = estimates.std() / math.sqrt(2000)
    assert 0 < standard_error < exact / math.sqrt(2000 * n_projections)
    assert (estimates.mean() - exact).abs() < 3 * standard_error


@pytest.mark.parametrize(("k", "same"), [(16, None), (17, 16)])
def test_projections_replace_the_norm_of_wide_codes(k, same):
    encoder, X = perceptron(9, k), normal(6, 9)
    assert torch.equal(term(encoder, X, k), term(encoder, X, k, Contractive(same)))


def test_estimate_draws_from_its_generator_only():
    encoder, X = perceptron(9, 4), normal(6, 9)
    before = torch.get_rng_state()
    first, again, other = (
        term(encoder, X, 4, Contractive(2), seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("penalty", "name"),
    [
        *((L1(share), "warm_up") for share in (-0.1, 1.1, None)),
        *((KLSparsity(target), "target") for target in (0, 1, "low")),
        *((Contractive(m), "n_projections") for m in (0, 1.5)),
    ],
)
def test_errors_name_parameters_out_of_range(penalty, name):
    with pytest.raises(InvalidParameterError, match=name):
        penalty._validate_params()


@pytest.mark.parametrize("penalty", [L1(), L1(0.5), KLSparsity(0.2), Contractive(3)])
def test_penalty_can_be_cloned_and_its_module_pickled(penalty):
    penalty._validate_params()
    assert clone(penalty).get_params() == penalty.get_params()
    module = pickle.loads(pickle.dumps(penalty.build()))
    assert str(vars(module)) == str(vars(penalty.build()))


def test_penalty_without_build_is_abstract():
    with pytest.raises(TypeError, match="build"):
        Penalty()


# Sparse codes


class OwnPenalty(Penalty):
    """The sum of a rectified code, without weights and without warm-up."""

    code_activation = "relu"

    def build(self):
        return penalties._L1Norm()


@pytest.fixture(scope="module")
def images():
    return load_digits().data[:200]


def share_of_dead(Z):
    return np.mean(np.ptp(Z, axis=0) == 0)


@pytest.mark.parametrize(
    "settings",
    [
        {"penalty": "l1"},
        {"penalty": L1(warm_up=0.0)},
        {"penalty": OwnPenalty()},
        {"penalty": "l1", "corruption": "masking"},
        {"penalty": "l1", "network": MLP((32,), activation="relu")},
        {
            "penalty": "l1",
            "penalty_weight": 0.01,
            "network": Conv((16, 32)),
            "input_shape": (8, 8),
        },
        {
            "penalty": "l1",
            "network": Conv((4, 8), code="feature_map"),
            "input_shape": (8, 8),
        },
        {"penalty": "l1", "bottleneck": "topk"},
        {"penalty": None, "bottleneck": "topk"},
        {"penalty": "contractive", "network": MLP((32,), code_activation="relu")},
    ],
    ids=repr,
)
def test_units_of_a_sparse_code_do_not_die(settings, images):
    ae = AutoencoderTransformer(
        32, penalty_weight=0.05, max_epochs=30, early_stopping=False, random_state=0
    ).set_params(**settings)
    if "network" not in settings:
        ae.set_params(hidden_layer_sizes=(32,))
    ae.fit(images)
    assert share_of_dead(ae.transform(images)) <= 0.05
    assert ae.score(images) > 0.3


@pytest.mark.parametrize("settings", [{"penalty": "l1"}, {"bottleneck": "topk"}])
def test_units_do_not_die_in_partial_fit(settings, images):
    ae = AutoencoderTransformer(
        32, hidden_layer_sizes=(32,), penalty_weight=0.02, random_state=0, **settings
    )
    for _ in range(30):
        ae.partial_fit(images)
    assert share_of_dead(ae.transform(images)) <= 0.05
    assert ae.score(images) > 0.3


def test_units_of_an_ensemble_do_not_die(images):
    detector = AutoencoderOutlierDetector(
        16, n_estimators=2, penalty="l1", penalty_weight=0.02, random_state=0
    ).fit(images)
    Z = detector.net_.module_in(images.dtype).encode(torch.from_numpy(images))
    assert (Z.amax(dim=0) > Z.amin(dim=0)).float().mean() >= 0.95


def test_zeros_increase_and_explained_variance_decreases_with_the_weight(images):
    scores, zeros = [], []
    for weight in (1e-4, 1e-2, 1e-1):
        ae = AutoencoderTransformer(
            32, hidden_layer_sizes=(32,), penalty="l1", penalty_weight=weight,
            max_epochs=40, early_stopping=False, random_state=0,
        ).fit(images)  # fmt: skip
        scores.append(ae.score(images))
        zeros.append(np.mean(ae.transform(images) == 0))
    assert zeros == sorted(zeros)
    assert zeros[-1] > zeros[0] + 0.3
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] > 0.4


@pytest.mark.parametrize(
    ("settings", "is_linear"),
    [
        ({"penalty": "l1"}, True),
        ({"penalty": "kl"}, False),
        # The code of these is not rectified.
        ({"penalty": "l1", "bottleneck": "gaussian"}, False),
    ],
)
def test_l1_needs_no_hidden_layers(images, settings, is_linear):
    ae = AutoencoderTransformer(8, max_epochs=1, **settings).fit(images[:50])
    layers = [m for m in ae.module_.encoder.modules() if isinstance(m, torch.nn.Linear)]
    assert (len(layers) == 1) == is_linear


def test_penalty_does_not_depend_on_how_code_and_decoder_split_the_scale(images):
    ae = AutoencoderTransformer(
        32, hidden_layer_sizes=(8,), penalty="l1", max_epochs=1, random_state=0
    )
    module = ae.fit(images[:50]).module_.double()
    target, _ = module.scaler(torch.from_numpy(images))
    batch = Batch(target, None, torch.ones(len(images)))
    objective = Objective(None, 1.0, L1().build(), 1.0, weighs_units=True)
    before = objective(module, batch, torch.tensor(1.0))
    with torch.no_grad():
        module.encoder[2].weight.mul_(0.1)
        module.encoder[2].bias.mul_(0.1)
        module.decoder[0].weight.mul_(10)
    assert_equal(objective(module, batch, torch.tensor(1.0)), before)


def test_weight_of_the_penalty_grows_during_the_warm_up(images):
    ae = AutoencoderTransformer(2, network=MLP((), code_activation="relu"))
    module = ae.set_params(max_epochs=1).fit(images[:50]).module_
    batch = Batch(
        module.scaler(torch.from_numpy(images))[0], None, torch.ones(len(images))
    )
    plain, full, half, after = (
        Objective(None, 1.0, L1().build(), weight, True, 0.4)(
            module, batch, torch.tensor(done)
        )
        for weight, done in ((0.0, 1.0), (1.0, 0.4), (1.0, 0.2), (1.0, 0.9))
    )
    assert (full > plain).any()
    assert_equal(half - plain, (full - plain) / 2, 1e-3)
    assert_equal(after, full, 1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"penalty": L1(warm_up=0.8), "penalty_weight": 0.3},
        {"bottleneck": Gaussian(warm_up=0.8), "bottleneck_weight": 30.0},
    ],
    ids=repr,
)
def test_epochs_of_the_warm_up_do_not_end_the_training(settings, images):
    # At the full weight, the held-out rows are worse until the end of the warm-up.
    ae = AutoencoderTransformer(
        16, hidden_layer_sizes=(16,), max_epochs=40, n_iter_no_change=1,
        early_stopping=True, random_state=0, **settings,
    )  # fmt: skip
    assert len(ae.fit(images).loss_curve_) >= 32


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_training_that_continues_uses_the_full_weight(method, images):
    ae = AutoencoderTransformer(
        8, hidden_layer_sizes=(8,), penalty="l1", penalty_weight=0.1, max_epochs=15,
        early_stopping=False, warm_start=True, random_state=0,
    ).fit(images)  # fmt: skip
    before = ae.loss_curve_[-1]
    getattr(ae.set_params(max_epochs=1, learning_rate=1e-6), method)(images)
    assert ae.loss_curve_[-1] == pytest.approx(before, rel=0.05)


# Decoders of one's own


class _Decoder(nn.Module):
    """A decoder whose first layer is not what its submodules suggest."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.last = nn.Linear(6, 5)
        self.first = nn.Linear(6, 6)

    def forward(self, Z):
        if self.kind == "late":
            return self.last(self.first(Z))
        factor, Z = (10, Z) if self.kind == "scaled" else (1, Z.flip(1))
        return self.last(factor * Z)


def _channels_first():
    return nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.ConvTranspose1d(2, 1, 3), nn.Flatten()
    )


@pytest.mark.parametrize(
    ("decoder", "is_known"),
    [
        (nn.Linear(6, 5), True),
        (nn.Sequential(nn.Dropout(0.1), nn.Linear(6, 5), nn.ReLU()), True),
        (nn.Sequential(nn.Unflatten(1, (6, 1)), nn.ConvTranspose1d(6, 1, 5)), True),
        (_channels_first(), False),
        (nn.Sequential(nn.Tanh(), nn.Linear(6, 5)), False),
        (nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Linear(3, 3)), False),
        (_Decoder("late"), False),
        (_Decoder("scaled"), False),
        (_Decoder("flipped"), False),
    ],
)
def test_units_are_weighed_only_if_their_weights_are_known(decoder, is_known):
    assert takes_inputs_in_order(decoder, 6) == is_known


@pytest.mark.parametrize(
    "network", [MLP(()), MLP((8,)), Conv(), Conv(channels=(4,), hidden_layer_sizes=())]
)
def test_units_of_the_networks_of_the_package_are_weighed(network):
    shape = Shape(100, 16, 6, 6, (4, 4))
    _, decoder = network.build(shape, torch.Generator().manual_seed(0))
    assert takes_inputs_in_order(decoder, 6)


def test_units_of_a_feature_map_are_weighed():
    network = Conv(channels=(4, 2), code="feature_map")
    shape = Shape(100, 64, 8, 8, (8, 8))
    _, decoder = network.build(shape, torch.Generator().manual_seed(0))
    assert takes_inputs_in_order(decoder, 8)


def test_l1_accepts_a_decoder_whose_first_submodule_is_used_last():
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.ConvTranspose1d(3, 1, 1)
            self.first = nn.Linear(5, 12)

        def forward(self, Z):
            return self.last(self.first(Z).unflatten(1, (3, 4))).flatten(1)

    rows = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)).numpy()
    network = Custom(lambda n, k: nn.Linear(n, k), lambda n, k: Decoder())
    ae = AutoencoderTransformer(
        5, network=network, penalty="l1", early_stopping=False, max_epochs=2
    )
    assert ae.fit(rows).transform(rows).shape == (30, 5)
