"""Facts about skae._layers."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from skae._layers import (
    BinarySigmoid,
    Dropout,
    NoiseModule,
    QuickGELU,
    Rectifier,
    Residual,
    StackedLinear,
    as_function,
    exact_derivatives,
    forward_hooks,
    initialize_as_linear_map,
    input_norms,
    linear,
    random_modules,
    unbounded_columns,
    using_generator,
    with_tangents,
)
from skae.networks import MLP, Conv, Shape


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Random modules


class UserNoise(nn.Module):
    """Noise module without the base class."""

    def __init__(self, generator=None):
        super().__init__()
        self.generator = generator


def test_random_modules_have_a_generator_attribute():
    own = UserNoise(generator())
    module = nn.Sequential(nn.Linear(2, 2), Dropout(0.5), UserNoise(), own)
    assert random_modules(module, own) == [module[1], module[2], own, own]
    assert random_modules(NoiseModule())[0].generator is None


def test_random_modules_exclude_generators_of_other_types():
    gan = nn.Module()
    gan.generator = nn.Linear(2, 2)
    settings = UserNoise("philox")
    assert random_modules(gan, settings) == []


@pytest.mark.parametrize("kind", ["module", "parameter", "buffer", "property"])
def test_random_modules_exclude_registered_and_computed_generators(kind):
    module = nn.Module()
    if kind == "property":
        module = type("Computed", (nn.Module,), {"generator": property(id)})()
    else:
        getattr(module, f"register_{kind}")("generator", None)
    with using_generator(generator(), module):
        assert random_modules(module) == []


def test_dropout_is_the_identity_in_eval_mode():
    H = torch.ones(10, 10)
    assert torch.equal(Dropout(0.5).eval()(H), H)


def test_dropout_scales_the_remaining_entries():
    layer = Dropout(0.2)
    layer.generator = generator()
    out = layer(torch.ones(100, 100))
    torch.testing.assert_close(out.unique(), torch.tensor([0, 1.25]))
    assert abs((out == 0).float().mean().item() - 0.2) < 0.02


def test_dropout_draws_from_its_generator():
    layer, H = Dropout(0.5), torch.ones(10, 10)
    layer.generator = generator()
    first, second = layer(H), layer(H)
    layer.generator = generator()
    assert torch.equal(layer(H), first)
    assert not torch.equal(second, first)


def test_dropout_keeps_the_type():
    layer = Dropout(0.5)
    layer.generator = generator()
    assert layer(torch.ones(3, 3, dtype=torch.float64)).dtype == torch.float64


# Layers


def test_residual_adds_the_remainder():
    linear, X = nn.Linear(3, 3), torch.arange(-6.0, 6.0).reshape(4, 3)
    torch.testing.assert_close(Residual(linear, nn.Tanh())(X), linear(X) + X.tanh())


# Output activations


def test_binary_sigmoid_leaves_other_columns_unchanged():
    raw = torch.tensor([[2.0, -3.0, 0.5]])
    out = BinarySigmoid(np.array([True, False, True]))(raw)
    assert torch.equal(out[:, 1], raw[:, 1])
    assert torch.equal(out[:, [0, 2]], raw[:, [0, 2]].sigmoid())


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (nn.Identity(), [True, True]),
        (BinarySigmoid(np.array([True, False])), [False, True]),
        (nn.Sigmoid(), [False, False]),
        (nn.Softplus(), [False, False]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_unbounded_columns_are_those_that_the_output_leaves_unchanged(output, expected):
    assert unbounded_columns(output, 2).tolist() == expected


# Tools


def test_forward_hooks_are_removed_even_after_an_error():
    layer, shapes = nn.Linear(3, 2), []
    with forward_hooks([layer], lambda _, inputs, output: shapes.append(output.shape)):
        layer(torch.zeros(5, 3))
    with pytest.raises(RuntimeError), forward_hooks([layer], print):
        layer(torch.zeros(5, 4))
    assert shapes == [(5, 2)]
    assert not layer._forward_hooks


# Initial weights


def test_initial_weights_fill_the_range_of_one_over_root_inputs():
    layer = linear(16, 2000, generator())
    for tensor in (layer.weight, layer.bias):
        assert tensor.abs().max() <= 1 / math.sqrt(16)
        torch.testing.assert_close(tensor.min().item(), -0.25, atol=1e-2, rtol=0)
        torch.testing.assert_close(tensor.max().item(), 0.25, atol=1e-2, rtol=0)
        torch.testing.assert_close(
            tensor.std().item(), 0.5 / math.sqrt(12), atol=1e-2, rtol=0
        )


MATRIX = np.array([[0.5, -2, 3], [1, 0.25, -4]])


@torch.no_grad()
@pytest.mark.parametrize("hidden", [(), (5,), (5, 4)])
def test_network_starts_as_exactly_the_matrix(hidden):
    encoder, decoder = MLP(hidden).build(Shape(9, 3, 2, 2), generator())
    X = torch.arange(-6.0, 6.0).reshape(4, 3)
    started = initialize_as_linear_map(encoder, MATRIX)
    assert torch.equal(started(X), X @ torch.tensor(MATRIX.T).float())
    Z = torch.arange(-4.0, 4.0).reshape(4, 2)
    started = initialize_as_linear_map(decoder, MATRIX.T)
    assert torch.equal(started(Z), Z @ torch.tensor(MATRIX).float())


@torch.no_grad()
def test_a_convolutional_network_starts_as_exactly_the_matrix():
    encoder, decoder = Conv((4, 2)).build(Shape(9, 3, 2, 2), generator())
    X = torch.arange(-6.0, 6.0).reshape(4, 3)
    assert torch.equal(
        initialize_as_linear_map(encoder, MATRIX)(X), X @ torch.tensor(MATRIX.T).float()
    )
    Z = torch.arange(-4.0, 4.0).reshape(4, 2)
    assert torch.equal(
        initialize_as_linear_map(decoder, MATRIX.T)(Z), Z @ torch.tensor(MATRIX).float()
    )


def test_a_linear_network_takes_the_matrix_itself():
    encoder, _ = MLP(()).build(Shape(9, 3, 2, 2), generator())
    assert initialize_as_linear_map(encoder, MATRIX) is encoder


def test_the_nonlinear_remainder_has_gradients_at_the_start():
    encoder, _ = MLP((5,)).build(Shape(9, 3, 2, 2), generator())
    started = initialize_as_linear_map(encoder, MATRIX)
    started(torch.ones(4, 3)).square().sum().backward()
    assert started.linear.weight.grad.abs().min() > 0
    assert started.linear.bias.grad.abs().min() > 0
    assert encoder[-1].weight.grad.abs().max() > 0
    assert encoder[-1].bias.grad.abs().min() > 0


def test_all_weights_have_gradients_after_one_step():
    encoder, _ = MLP((5, 4), activation="tanh").build(Shape(9, 3, 2, 2), generator())
    started = initialize_as_linear_map(encoder, MATRIX)
    optimizer = torch.optim.SGD(started.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        started(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()
    assert all(p.grad.abs().max() > 0 for p in started.parameters())


def test_starting_does_not_change_the_matrix_and_the_global_generator():
    matrix, before = MATRIX.copy(), torch.get_rng_state()
    encoder, _ = MLP((5,)).build(Shape(9, 3, 2, 2), generator())
    nn.init.zeros_(initialize_as_linear_map(encoder, matrix).linear.weight)
    np.testing.assert_array_equal(matrix, MATRIX)
    assert torch.equal(torch.get_rng_state(), before)


# Codes with zeros


@pytest.mark.parametrize("exact", [False, True])
def test_rectifier_gives_a_dead_unit_the_gradient_that_raises_it(exact):
    H = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], requires_grad=True)
    slope = torch.tensor([[2.0, 2.0], [-2.0, -2.0]])
    rectifier = Rectifier()
    if exact:
        with exact_derivatives(rectifier):
            Z = rectifier(H)
    else:
        Z = rectifier(H)
    assert Z.tolist() == [[1.0, 0.0], [0.0, 0.0]]
    (Z * slope).sum().backward()
    assert H.grad.tolist() == [[2.0, 0.0], [0.0, 0.0 if exact else -2.0]]
    assert rectifier.revives


def test_input_norms_are_those_of_the_first_layer():
    mlp = MLP((4,)).build(Shape(9, 6, 3, 3), generator())[1]
    norms = mlp[0].weight.norm(dim=0)
    torch.testing.assert_close(input_norms(mlp, 3), norms)
    stacked = nn.Sequential(StackedLinear([mlp[0], mlp[0]]))
    torch.testing.assert_close(input_norms(stacked, 3), torch.stack([norms, norms]))
    both = Residual(mlp[0], mlp)
    torch.testing.assert_close(input_norms(both, 3), norms * math.sqrt(2))
    code = Conv((2,), code="feature_map")
    maps = code.build(Shape(9, 16, 8, 8, (4, 4)), generator())[1]
    torch.testing.assert_close(
        input_norms(maps, 8), maps[1].weight.flatten(1).norm(dim=1).repeat(4)
    )


def test_input_norms_are_unknown_without_a_linear_first_layer():
    assert input_norms(nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2)), 3) is None
    assert input_norms(nn.Identity(), 3) is None


# Functions of networks


class Plus(nn.Module):
    """A layer of a class that the package does not know."""

    def forward(self, X):
        return X + 1


NETWORKS = {
    "linear": lambda: linear(3, 3, generator()),
    "nested": lambda: nn.Sequential(
        nn.Sequential(linear(3, 4, generator()), nn.GELU()), linear(4, 3, generator())
    ),
    "residual": lambda: Residual(
        linear(3, 3, generator()),
        nn.Sequential(linear(3, 3, generator(1)), nn.Tanh(), Dropout(0.5)),
    ),
    "other": lambda: nn.Sequential(Plus(), linear(3, 3, generator()), nn.LayerNorm(3)),
    "stacked": lambda: StackedLinear([linear(3, 3, generator(i)) for i in range(2)]),
    "empty": nn.Sequential,
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_function_of_a_network_computes_its_output(kind):
    network = NETWORKS[kind]().eval()
    X = torch.randn(2, 5, 3, generator=generator())
    assert torch.equal(as_function(network)(X), network(X))


@pytest.mark.parametrize("kind", NETWORKS)
def test_function_of_a_network_calls_hooks(kind):
    network = NETWORKS[kind]().eval()
    calls = []
    X = torch.randn(2, 5, 3, generator=generator())
    with forward_hooks(list(network.modules()), lambda *args: calls.append(args)):
        as_function(network)(X)
    assert len(calls) == len(list(network.modules()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_rows", [1, 15, 16, 500])
def test_stacked_layers_predict_what_each_layer_predicts(n_rows, dtype):
    layers = [nn.Linear(20, 30, dtype=dtype) for _ in range(3)]
    stacked = StackedLinear(layers)
    X = torch.linspace(-1, 1, 3 * n_rows * 20, dtype=dtype).view(3, n_rows, 20)
    expected = torch.stack([layer(x) for layer, x in zip(layers, X, strict=True)])
    assert stacked(X).requires_grad
    with torch.inference_mode():
        predicted = stacked(X)
    for actual in (stacked(X), predicted):
        torch.testing.assert_close(actual, expected)


# Derivatives

DIFFERENTIABLE = {
    "linear": lambda: nn.Linear(3, 4),
    "sequential": lambda: nn.Sequential(
        nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)
    ),
    "residual": lambda: Residual(
        nn.Linear(3, 4), nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 4))
    ),
    "identity and dropout": lambda: nn.Sequential(
        nn.Identity(), Dropout(0.5), nn.Linear(3, 4), nn.Sigmoid()
    ),
    "in place": lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True)),
    "elementwise first": lambda: Residual(
        nn.Linear(3, 3), nn.Sequential(nn.Tanh(), nn.Linear(3, 3))
    ),
}


@pytest.mark.parametrize("n_rows", [1, 5])
@pytest.mark.parametrize("kind", DIFFERENTIABLE)
def test_tangents_are_derivatives_of_the_output(kind, n_rows):
    network = DIFFERENTIABLE[kind]().double().eval()
    X = torch.randn(n_rows, 3, generator=generator(), dtype=torch.float64)
    T = torch.eye(3, dtype=torch.float64)[:, None]
    with torch.inference_mode():
        Y, J = with_tangents(network)(X.clone(), T)
    expected = [torch.autograd.functional.jacobian(network, x[None])[0] for x in X]
    torch.testing.assert_close(Y, network(X).detach())
    J = J.expand(3, *Y.shape).movedim(0, 2)[..., None, :]
    torch.testing.assert_close(J, torch.stack(expected), rtol=1e-3, atol=1e-3)


def test_tangents_of_stacked_layers_are_those_of_each_layer():
    networks = [DIFFERENTIABLE["residual"]().double() for _ in range(2)]
    stacked = Residual(
        StackedLinear([network.linear for network in networks]),
        nn.Sequential(
            StackedLinear([network.remainder[0] for network in networks]),
            nn.SiLU(),
            StackedLinear([network.remainder[2] for network in networks]),
        ),
    )
    X = torch.randn(2, 5, 3, generator=generator(), dtype=torch.float64)
    T = torch.eye(3, dtype=torch.float64)
    with torch.inference_mode():
        Y, J = with_tangents(stacked)(X, T[:, None, None])
        for i, network in enumerate(networks):
            Y_i, J_i = with_tangents(network)(X[i], T[:, None])
            torch.testing.assert_close(Y[i], Y_i)
            torch.testing.assert_close(J[:, i], J_i)


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)),
        nn.Sequential(nn.Linear(3, 4), nn.Softmax(dim=1)),
        Residual(nn.Linear(3, 4), nn.Sequential(UserNoise(), nn.Linear(3, 4))),
    ],
)
def test_other_layers_have_no_tangents(network):
    assert with_tangents(nn.Linear(3, 3), network) is None


def test_layers_with_hooks_have_no_tangents():
    network = DIFFERENTIABLE["residual"]()
    with forward_hooks([network.remainder[1]], lambda *args: None):
        assert with_tangents(network) is None
    assert with_tangents(network) is not None


def test_quick_gelu_is_close_to_gelu():
    X = torch.linspace(-8, 8, 2001, dtype=torch.float64)
    Y = QuickGELU()(X)
    torch.testing.assert_close(Y, X * torch.sigmoid(1.702 * X))
    assert (Y - nn.functional.gelu(X)).abs().max() < 0.021
