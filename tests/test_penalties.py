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
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn

from skae import penalties
from skae._layers import Dropout, Residual
from skae.networks import ACTIVATIONS, MLP, Shape
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
PERCEPTRONS = {
    "perceptron": perceptron(36, 5),
    "linear": perceptron(36, 5, ())[0],
    "code activation": perceptron(36, 5, code_activation="tanh"),
    "nested": nn.Sequential(nn.Identity(), perceptron(36, 5), nn.Tanh()),
    "relu, then gelu": nn.Sequential(WIDE_RELU, nn.GELU()),
    "residual": Residual(perceptron(36, 5, ())[0], perceptron(36, 5)),
}
OTHERS = {
    "look-alike": LookAlike(perceptron(36, 5, ())[0], perceptron(36, 5)),
    "in place": nn.Sequential(*perceptron(36, 5), nn.ReLU(inplace=True)),
    "activation first": nn.Sequential(nn.Tanh(), *perceptron(36, 5)),
    "layer norm": nn.Sequential(perceptron(36, 5), nn.LayerNorm(5)).double(),
    "convolutional": convolutional(),
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

    return torch.func.vmap(torch.func.jacrev(code))(X).square().sum(dim=(1, 2))


def assert_equal(actual, expected, rtol=1e-10):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol / 100)


def test_l1_is_the_sum_of_magnitudes():
    Z = normal(6, 3)
    expected = np.abs(Z.numpy()).sum(axis=1)
    np.testing.assert_allclose(L1().build()(None, None, Z, torch.ones(6)), expected)


def test_only_l1_implies_an_activation_on_the_code():
    implied = {name: spec.code_activation for name, spec in PENALTIES.items()}
    assert implied == {"l1": "relu", "kl": "identity", "contractive": "identity"}


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
        *((KLSparsity(target), "target") for target in (0, 1, "low")),
        *((Contractive(m), "n_projections") for m in (0, 1.5)),
    ],
)
def test_errors_name_parameters_out_of_range(penalty, name):
    with pytest.raises(InvalidParameterError, match=name):
        penalty._validate_params()


@pytest.mark.parametrize("penalty", [L1(), KLSparsity(0.2), Contractive(3)])
def test_penalty_can_be_cloned_and_its_module_pickled(penalty):
    penalty._validate_params()
    assert clone(penalty).get_params() == penalty.get_params()
    module = pickle.loads(pickle.dumps(penalty.build()))
    assert str(vars(module)) == str(vars(penalty.build()))


def test_penalty_without_build_is_abstract():
    with pytest.raises(TypeError, match="build"):
        Penalty()
