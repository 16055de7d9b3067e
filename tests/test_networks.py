"""Facts about skae.networks."""

import copy
import math
import pickle
from itertools import pairwise

import joblib
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn

from skae.networks import ACTIVATIONS, MLP, Custom, Dropout, Network, Shape, linear

SHAPE = Shape(n_samples=50, n_features=6, encoder_width=2, n_components=2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def widths(stack):
    return [(m.in_features, m.out_features) for m in stack if isinstance(m, nn.Linear)]


def kinds(stack):
    return [type(layer) for layer in stack]


def same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) for name in one
    )


def make_linear_pair(**kwargs):
    return Custom(nn.Linear(6, 2), nn.Linear(2, 6), **kwargs)


class Rich(nn.Module):
    """Has all that a state dict does not tell."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 6, bias=False)
        self.tied.weight = self.first.weight
        self.norm = nn.BatchNorm1d(6)
        self.last = nn.Linear(6, 2)
        self.last.bias.requires_grad_(False)
        self.register_buffer("offset", torch.arange(6.0), persistent=False)
        self.register_buffer("absent", None)

    def forward(self, X):
        return self.last(self.norm(self.tied(self.first(X)) + self.offset))


# MLP


@pytest.mark.parametrize("hidden", [(5,), (5, 4), [5, 4, 3]])
def test_decoder_widths_mirror_the_encoder(hidden):
    encoder, decoder = MLP(hidden).build(SHAPE, generator())
    chain = [6, *hidden, 2]
    assert widths(encoder) == list(pairwise(chain))
    assert widths(decoder) == [(b, a) for a, b in reversed(widths(encoder))]


def test_auto_hidden_layers_mirror_each_other():
    encoder, decoder = MLP().build(SHAPE, generator())
    assert widths(encoder)[0][0] == widths(decoder)[-1][1] == 6
    assert widths(encoder)[-1][1] == widths(decoder)[0][0] == 2
    assert widths(decoder) == [(b, a) for a, b in reversed(widths(encoder))]


def test_no_hidden_layers_make_a_linear_autoencoder():
    encoder, decoder = MLP((), dropout=0.5).build(SHAPE, generator())
    assert kinds(encoder) == kinds(decoder) == [nn.Linear]


def test_encoder_width_may_differ_from_the_code():
    encoder, decoder = MLP((5,)).build(Shape(50, 6, 4, 2), generator())
    assert widths(encoder)[-1] == (5, 4)
    assert widths(decoder)[0] == (2, 5)


def test_an_activation_follows_each_hidden_layer_only():
    encoder, decoder = MLP((5, 4), activation="elu").build(SHAPE, generator())
    expected = [nn.Linear, nn.ELU, nn.Linear, nn.ELU, nn.Linear]
    assert kinds(encoder) == kinds(decoder) == expected


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_each_named_activation_keeps_the_shape(name):
    encoder, _ = MLP((5,), activation=name).build(SHAPE, generator())
    assert encoder(torch.ones(3, 6)).shape == (3, 2)


def test_activation_may_be_a_factory():
    encoder, _ = MLP((5,), activation=lambda: nn.Hardtanh(-2, 2)).build(
        SHAPE, generator()
    )
    assert encoder[1].max_val == 2


def test_dropout_follows_each_hidden_activation():
    encoder, decoder = MLP((5,), dropout=0.25).build(SHAPE, generator())
    assert kinds(encoder) == kinds(decoder)
    assert kinds(encoder) == [nn.Linear, nn.GELU, Dropout, nn.Linear]
    assert encoder[2].p == 0.25


def test_code_activation_ends_the_encoder():
    encoder, decoder = MLP((5,), code_activation="relu").build(SHAPE, generator())
    assert kinds(encoder)[-2:] == [nn.Linear, nn.ReLU]
    assert kinds(decoder)[-1] is nn.Linear


def test_only_a_linear_code_allows_a_pca():
    assert MLP().allows_pca
    assert not MLP(code_activation="relu").allows_pca


@pytest.mark.parametrize(
    ("output_activation", "expected"),
    [("auto", nn.Sigmoid), ("tanh", nn.Tanh), (nn.Softsign, nn.Softsign)],
)
def test_explicit_output_activation_wins_over_the_implied_one(
    output_activation, expected
):
    network = MLP(output_activation=output_activation)
    assert type(network.build_output("sigmoid")) is expected


@pytest.mark.parametrize("hidden", [(0,), (4, -1), (2.5,), ("a",)])
def test_widths_that_are_not_positive_integers_are_refused(hidden):
    with pytest.raises(ValueError, match=r"hidden_layer_sizes .*integers >= 1"):
        MLP(hidden).build(SHAPE, generator())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_layer_sizes", 5),
        ("activation", "swish"),
        ("code_activation", None),
        ("output_activation", "none"),
        ("dropout", 1.0),
        ("dropout", -0.1),
    ],
)
def test_invalid_settings_are_named(name, value):
    with pytest.raises(InvalidParameterError, match=name):
        MLP(**{name: value})._validate_params()


def test_a_cloned_mlp_keeps_its_settings():
    network = MLP((3,), activation=nn.Softsign, dropout=0.5)
    assert clone(network).get_params() == network.get_params()


def test_the_same_seed_gives_the_same_weights():
    for one, other in zip(
        MLP((5,)).build(SHAPE, generator(3)),
        MLP((5,)).build(SHAPE, generator(3)),
        strict=True,
    ):
        assert same_weights(one, other)


def test_another_seed_gives_other_weights():
    one, _ = MLP((5,)).build(SHAPE, generator(3))
    other, _ = MLP((5,)).build(SHAPE, generator(4))
    assert not torch.equal(one[0].weight, other[0].weight)


def test_building_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    encoder, _ = MLP((5,), dropout=0.5).build(SHAPE, generator())
    encoder[2].generator = generator()
    encoder(torch.ones(3, 6))
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_weights_fill_the_range_of_one_over_root_inputs():
    layer = linear(16, 2000, generator())
    for tensor in (layer.weight, layer.bias):
        assert tensor.abs().max() <= 1 / math.sqrt(16)
        torch.testing.assert_close(tensor.min().item(), -0.25, atol=1e-2, rtol=0)
        torch.testing.assert_close(tensor.max().item(), 0.25, atol=1e-2, rtol=0)
        torch.testing.assert_close(
            tensor.std().item(), 0.5 / math.sqrt(12), atol=1e-2, rtol=0
        )


# Dropout


def test_dropout_does_nothing_in_eval_mode():
    H = torch.ones(10, 10)
    assert torch.equal(Dropout(0.5).eval()(H), H)


def test_dropout_scales_what_it_keeps():
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


# Custom


def test_given_modules_are_copied():
    network = make_linear_pair()
    before = copy.deepcopy(network)
    encoder, decoder = network.build(SHAPE, generator())
    assert same_weights(encoder, network.encoder)
    with torch.no_grad():
        encoder.weight.zero_()
        decoder.weight.zero_()
    assert same_weights(network.encoder, before.encoder)
    assert same_weights(network.decoder, before.decoder)


def test_factories_are_called_with_the_shape():
    calls = []

    def encoder(n_features, n_components):
        calls.append((n_features, n_components))
        return nn.Linear(n_features, n_components)

    def decoder(n_features, n_components):
        calls.append((n_features, n_components))
        return nn.Linear(n_components, n_features)

    Custom(encoder, decoder).build(SHAPE, generator())
    assert calls == [(6, 2), (6, 2)]


@pytest.mark.parametrize("as_factory", [True, False])
def test_built_modules_are_in_float32(as_factory):
    encoder, decoder = nn.Linear(6, 2).double(), nn.Linear(2, 6).double()
    network = Custom(encoder, decoder)
    if as_factory:
        network = Custom(lambda d, k: encoder, lambda d, k: decoder)
    for part in network.build(SHAPE, generator()):
        assert part.weight.dtype == torch.float32


def test_building_leaves_the_training_mode():
    encoder, decoder = make_linear_pair().build(SHAPE, generator())
    assert encoder.training
    assert decoder.training


def test_building_leaves_running_statistics_alone():
    network = Custom(Rich(), nn.Linear(2, 6))
    encoder, _ = network.build(SHAPE, generator())
    assert encoder.norm.num_batches_tracked == 0
    assert same_weights(encoder, network.encoder)


@pytest.mark.parametrize(
    ("encoder", "decoder", "part"),
    [
        (nn.Linear(5, 2), nn.Linear(2, 6), "encoder"),
        (nn.Linear(6, 3), nn.Linear(2, 6), "encoder"),
        (nn.Linear(6, 2), nn.Linear(3, 6), "decoder"),
        (nn.Linear(6, 2), nn.Linear(2, 5), "decoder"),
        (nn.LSTM(6, 2), nn.Linear(2, 6), "encoder"),
    ],
)
def test_a_part_of_the_wrong_shape_is_named(encoder, decoder, part):
    with pytest.raises(ValueError, match=rf"The {part} of network=Custom\(\.\.\.\)"):
        Custom(encoder, decoder).build(SHAPE, generator())


@pytest.mark.parametrize("encoder", ["mlp", None, lambda d, k: "module"])
def test_what_is_no_module_is_refused(encoder):
    with pytest.raises(TypeError, match=r"The encoder of network=Custom\(\.\.\.\)"):
        Custom(encoder, nn.Linear(2, 6)).build(SHAPE, generator())


def test_custom_output_activation_wins_over_the_implied_one():
    assert type(make_linear_pair().build_output("sigmoid")) is nn.Sigmoid
    network = make_linear_pair(output_activation="identity")
    assert type(network.build_output("sigmoid")) is nn.Identity


def test_custom_networks_may_draw_globally_and_start_at_no_pca():
    assert Custom.draws_globally
    assert not MLP.draws_globally
    assert not make_linear_pair().allows_pca


def test_custom_has_no_settings_to_search_through():
    assert not hasattr(make_linear_pair(), "get_params")


def test_custom_shows_factories_by_name():
    def encoder(n_features, n_components):
        return nn.Linear(n_features, n_components)

    network = Custom(encoder, nn.Linear(2, 6))
    shown = "decoder=Linear(in_features=2, out_features=6, bias=True)"
    assert repr(network) == f"Custom(encoder=encoder, {shown})"


@pytest.fixture(params=["pickle", "deepcopy"])
def duplicate(request):
    if request.param == "deepcopy":
        return copy.deepcopy
    return lambda network: pickle.loads(pickle.dumps(network))


def test_a_copy_gives_the_same_values(duplicate):
    network = Custom(Rich(), nn.Linear(2, 6))
    twin = duplicate(network)
    X = torch.randn(5, 6, generator=generator())
    assert torch.equal(twin.encoder.eval()(X), network.encoder.eval()(X))
    assert same_weights(twin.decoder, network.decoder)


def test_a_copy_shares_no_memory(duplicate):
    network = Custom(Rich(), nn.Linear(2, 6))
    twin = duplicate(network)
    with torch.no_grad():
        twin.decoder.weight.fill_(7)
        twin.encoder.norm.running_mean.fill_(7)
    assert (network.decoder.weight != 7).all()
    assert (network.encoder.norm.running_mean != 7).all()


def test_a_copy_keeps_tied_weights(duplicate):
    encoder = duplicate(Custom(Rich(), nn.Linear(2, 6))).encoder
    assert encoder.tied.weight is encoder.first.weight


def test_a_copy_keeps_frozen_parameters(duplicate):
    encoder = duplicate(Custom(Rich(), nn.Linear(2, 6))).encoder
    frozen = [name for name, p in encoder.named_parameters() if not p.requires_grad]
    assert frozen == ["last.bias"]


def test_a_copy_keeps_buffers_and_their_persistence(duplicate):
    encoder = duplicate(Custom(Rich(), nn.Linear(2, 6))).encoder
    assert torch.equal(encoder.offset, torch.arange(6.0))
    assert encoder.absent is None
    assert encoder.norm.num_batches_tracked.dtype == torch.int64
    assert encoder.state_dict().keys() == Rich().state_dict().keys()


def test_a_copy_keeps_a_submodule_used_twice(duplicate):
    shared = nn.Linear(6, 6)
    network = duplicate(
        Custom(nn.Sequential(shared, shared, nn.Linear(6, 2)), nn.Linear(2, 6))
    )
    assert network.encoder[0] is network.encoder[1]


def test_a_copy_keeps_factories_and_the_output_activation(duplicate):
    twin = duplicate(Custom(nn.Linear, nn.Bilinear, output_activation="tanh"))
    assert twin.encoder is nn.Linear
    assert twin.decoder is nn.Bilinear
    assert twin.output_activation == "tanh"


def test_pickling_leaves_the_network_as_it_was():
    network = Custom(Rich(), nn.Linear(2, 6))
    before = copy.deepcopy(network)
    pickle.dumps(network)
    assert same_weights(network.encoder, before.encoder)
    assert network.encoder.tied.weight is network.encoder.first.weight


def test_equal_modules_have_equal_hashes():
    network = Custom(Rich(), nn.Linear(2, 6))
    assert joblib.hash(copy.deepcopy(network)) == joblib.hash(network)


def test_different_weights_have_different_hashes():
    network = Custom(Rich(), nn.Linear(2, 6))
    twin = copy.deepcopy(network)
    with torch.no_grad():
        twin.encoder.last.weight[0, 0] += 1
    assert joblib.hash(twin) != joblib.hash(network)


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 99),
)
def test_any_stack_survives_pickling(hidden, trainable, dtype, seed):
    chain = [6, *hidden, 2]
    layers = [linear(a, b, generator(seed)) for a, b in pairwise(chain)]
    encoder = nn.Sequential(*layers).to(dtype).requires_grad_(trainable)
    twin = pickle.loads(pickle.dumps(Custom(encoder, nn.Linear(2, 6)))).encoder
    assert same_weights(twin, encoder)
    assert {p.requires_grad for p in twin.parameters()} == {trainable}


def test_a_network_without_a_build_is_abstract():
    with pytest.raises(TypeError, match="build"):
        Network()
