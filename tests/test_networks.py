"""Facts about skae.networks."""

import copy
import math
import pickle
import threading
from collections import OrderedDict
from itertools import pairwise

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import callback_at
from sklearn.base import clone
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn

from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae._defaults import auto_hidden_layer_sizes
from skae._layers import (
    ChannelsFirst,
    ChannelsLast,
    CodeActivation,
    Dropout,
    QuickGELU,
    Rectifier,
    linear,
)
from skae.losses import Loss
from skae.networks import ACTIVATIONS, MLP, NETWORKS, Conv, Custom, Network, Shape

ESTIMATORS = [AutoencoderTransformer, AutoencoderOutlierDetector]
SHAPE = Shape(n_samples=50, n_features=6, encoder_width=2, n_components=2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def widths(stack):
    return [(m.in_features, m.out_features) for m in stack if isinstance(m, nn.Linear)]


def kinds(stack):
    return [type(layer) for layer in stack]


def conv_shape(input_shape, n_components=4, n_blocks=1, code_activation="identity"):
    n_features = math.prod(input_shape)
    width = n_blocks * n_components
    return Shape(50, n_features, width, n_components, input_shape, code_activation)


def rows(shape, n_samples=3, dtype=torch.float32):
    size = (n_samples, shape.n_features)
    return torch.randn(size, generator=generator(1), dtype=dtype)


def convolutions(stack):
    kinds = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)
    return [m for m in stack if isinstance(m, kinds)]


def map_sizes(encoder, X):
    sizes = []
    for layer in encoder:
        X = layer(X)
        if layer in convolutions(encoder):
            sizes.append(tuple(X.shape[1:]))
    return sizes


def n_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def same_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) for name in one
    )


def make_linear_pair(**kwargs):
    return Custom(nn.Linear(6, 2), nn.Linear(2, 6), **kwargs)


class RichModule(nn.Module):
    """Module with properties that a state dict does not contain."""

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


def n_weights(network):
    return sum(a * b for a, b in widths(network))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        # Few rows have one layer fewer.
        ((10, 6, 2), (128, 64)),
        ((500, 6, 2), (128, 64)),
        ((501, 6, 2), (256, 128, 64)),
        ((10**6, 500, 16), (256, 128, 64)),
        ((50, 500, 16), (128, 64)),
        ((50, 64, 64), (512, 256)),  # fewer than 2**20 weights
        # Wide codes of many rows.
        ((10**6, 500, 100), (2048, 1024, 512)),
        ((10**6, 20_000, 100), (512, 512, 512)),
        # Wide codes of few rows.
        ((1000, 500, 50), (512, 256, 128)),
        ((1000, 500, 100), (512, 256, 128)),
        ((1000, 500, 200), (512, 512, 256)),
        ((1000, 64, 300), (1024, 512, 256)),  # no wider than for 64 components
        ((501, 30, 64), (512, 256, 128)),
        ((398, 30, 64), (256, 128)),
        ((1, 500, 100), (512, 256)),
        # All members of an ensemble count.
        ((1000, 500, 10, 16), (64,)),
        ((1000, 500, 100, 2), (512,)),
        ((1000, 500, 100, 16), (128,)),
        ((1000, 500, 200, 16), (256,)),
    ],
)
def test_widths_have_a_ceiling_for_the_size_of_the_table(shape, expected):
    assert auto_hidden_layer_sizes(*shape) == expected


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((10, 6, 2), (64, 64, 64)),
        ((500, 6, 2), (64, 64, 64)),
        ((50, 500, 16), (64, 64, 64)),
        ((398, 30, 64), (128, 128, 128)),
        ((501, 6, 2), (128, 64, 64, 64)),
        ((5000, 6, 2), (128, 64, 64, 64)),
        ((1666, 6, 10), (128, 64, 64, 64)),  # codes no wider than a row
        ((5001, 6, 2), (256, 128, 64)),
        ((1000, 500, 10, 16), (64,)),
    ],
)
def test_plain_networks_are_deep_and_narrow_for_few_codes(shape, expected):
    assert auto_hidden_layer_sizes(*shape, is_plain=True) == expected


@pytest.mark.parametrize(
    ("settings", "widths"),
    [
        ({}, (64, 64, 64)),
        ({"init": "random"}, (128, 64)),
        ({"bottleneck": "gaussian"}, (128, 64)),
        ({"corruption": "masking"}, (128, 64)),
        ({"penalty": "contractive"}, (128, 64)),
        ({"loss": "binary_cross_entropy"}, (128, 64)),
    ],
)
def test_plain_networks_start_as_a_pca(settings, widths):
    X = np.random.default_rng(0).random((20, 5))
    ae = AutoencoderTransformer(2, max_epochs=1, **settings).fit(X)
    remainder = getattr(ae.module_.encoder, "remainder", ae.module_.encoder)
    linear = [layer for layer in remainder if isinstance(layer, nn.Linear)]
    assert tuple(layer.out_features for layer in linear[:-1]) == widths


@pytest.mark.parametrize("is_plain", [False, True])
@pytest.mark.parametrize("n_components", [1, 16, 17, 40, 100, 128, 129, 500])
@pytest.mark.parametrize("n_members", [1, 16])
@pytest.mark.parametrize(("n_samples", "n_features"), [(9, 3), (700, 80), (400, 3000)])
def test_the_ceiling_leaves_room_for_the_code(
    n_samples, n_features, n_components, n_members, is_plain
):
    wide = auto_hidden_layer_sizes(10**9, n_features, n_components, n_members)
    sizes = auto_hidden_layer_sizes(
        n_samples, n_features, n_components, n_members, is_plain=is_plain
    )
    assert max(sizes) <= max(wide)
    assert list(sizes) == sorted(sizes, reverse=True)
    assert sizes[-1] >= min(n_components, n_features)
    ceiling = max(2**20, n_samples * n_features)
    layers = pairwise((n_features, *sizes, n_components))
    is_narrowest = sizes[0] < 2 * max(64, n_components)
    assert n_members * sum(a * b for a, b in layers) <= ceiling or is_narrowest


def test_the_ceiling_counts_the_training_rows():
    shapes = [Shape(n, 900, 50, 50) for n in (100, 10**5)]
    few, many = (n_weights(MLP().build(s, generator())[0]) for s in shapes)
    assert few <= 2**20 < many


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
    assert kinds(encoder) == [nn.Linear, QuickGELU, Dropout, nn.Linear]
    assert encoder[2].p == 0.25


def test_code_activation_ends_the_encoder():
    encoder, decoder = MLP((5,), code_activation="relu").build(SHAPE, generator())
    assert kinds(encoder)[-2:] == [nn.Linear, Rectifier]
    assert kinds(decoder)[-1] is nn.Linear


def test_only_a_linear_code_allows_a_pca():
    assert MLP().allows_pca
    assert MLP(code_activation="identity").allows_pca
    assert not MLP(code_activation="relu").allows_pca


@pytest.mark.parametrize(
    ("setting", "implied", "expected"),
    [
        ("auto", "identity", nn.Linear),
        ("auto", "relu", Rectifier),
        ("identity", "relu", nn.Linear),
        ("tanh", "relu", nn.Tanh),
        (nn.Softsign, "relu", nn.Softsign),
    ],
)
@pytest.mark.parametrize("network", [MLP((5,)), Conv((3,))], ids=["mlp", "conv"])
def test_auto_code_activation_is_that_of_the_penalty(
    network, setting, implied, expected
):
    network = clone(network).set_params(code_activation=setting)
    shape = Shape(50, 6, 2, 2, code_activation=implied)
    encoder, decoder = network.build(shape, generator())
    assert type(encoder[-1]) is expected
    assert expected is nn.Linear or not any(type(m) is expected for m in decoder)


@pytest.mark.parametrize("network", [MLP((5,)), Conv((3,))], ids=["mlp", "conv"])
def test_code_activation_leaves_other_encoder_outputs_unchanged(network):
    shape = Shape(50, 6, 4, 2)
    plain, _ = network.build(shape, generator())
    encoder, _ = network.build(shape._replace(code_activation="relu"), generator())
    assert type(encoder[-1]) is CodeActivation
    X = 100 * rows(shape, 20)
    out, raw = encoder(X), plain(X)
    assert (raw[:, :2] < 0).any()
    assert (raw[:, 2:] < 0).any()
    assert torch.equal(out[:, :2], raw[:, :2].relu())
    assert torch.equal(out[:, 2:], raw[:, 2:])


@pytest.mark.parametrize("kind", [MLP, Conv])
def test_codes_may_be_refined_without_a_code_activation(kind):
    assert kind().codes_may_be_refined
    assert kind(code_activation="identity").codes_may_be_refined
    assert not kind(code_activation="relu").codes_may_be_refined
    assert not make_linear_pair().codes_may_be_refined


def test_only_perceptrons_stack():
    assert MLP.members_stack
    assert not Conv.members_stack
    assert not Custom.members_stack


def test_code_shape_is_none_without_a_feature_map():
    assert MLP().code_shape((28, 28)) is None
    assert make_linear_pair().code_shape((6,)) is None


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_each_named_network_takes_hidden_layer_sizes(name):
    network = NETWORKS[name](hidden_layer_sizes=(5,))
    assert network.hidden_layer_sizes == (5,)
    network._validate_params()


@pytest.mark.parametrize(
    ("output_activation", "expected"),
    [("auto", nn.Sigmoid), ("tanh", nn.Tanh), (nn.Softsign, nn.Softsign)],
)
def test_explicit_output_activation_overrides_that_of_the_loss(
    output_activation, expected
):
    network = MLP(output_activation=output_activation)
    assert type(network.build_output(nn.Sigmoid())) is expected


@pytest.mark.parametrize("hidden", [(0,), (4, -1), (2.5,), ("a",)])
def test_widths_that_are_not_positive_integers_raise(hidden):
    with pytest.raises(ValueError, match=r"hidden_layer_sizes .*integers from 1"):
        MLP(hidden).build(SHAPE, generator())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_layer_sizes", 5),
        ("activation", "swish"),
        ("activation", "auto"),
        ("code_activation", None),
        ("output_activation", "none"),
        ("dropout", 1.0),
        ("dropout", -0.1),
    ],
)
def test_errors_name_invalid_parameters(name, value):
    with pytest.raises(InvalidParameterError, match=name):
        MLP(**{name: value})._validate_params()


def test_clone_of_mlp_has_equal_parameters():
    network = MLP((3,), activation=nn.Softsign, dropout=0.5)
    assert clone(network).get_params() == network.get_params()


def test_same_seed_gives_the_same_weights():
    for one, other in zip(
        MLP((5,)).build(SHAPE, generator(3)),
        MLP((5,)).build(SHAPE, generator(3)),
        strict=True,
    ):
        assert same_weights(one, other)


def test_different_seeds_give_different_weights():
    one, _ = MLP((5,)).build(SHAPE, generator(3))
    other, _ = MLP((5,)).build(SHAPE, generator(4))
    assert not torch.equal(one[0].weight, other[0].weight)


def test_building_does_not_change_the_global_generator():
    before = torch.get_rng_state()
    encoder, _ = MLP((5,), dropout=0.5).build(SHAPE, generator())
    encoder[2].generator = generator()
    encoder(torch.ones(3, 6))
    assert torch.equal(torch.get_rng_state(), before)


# Conv


INPUT_SHAPES = [(1,), (2,), (5,), (17,), (784,), (28, 28), (1, 5), (3, 9, 7), (2, 1, 1)]


@pytest.mark.parametrize("input_shape", INPUT_SHAPES)
@pytest.mark.parametrize("hidden", ["auto", (), (6,), [6, 5]])
def test_convolutional_encoder_and_decoder_have_the_right_shapes(input_shape, hidden):
    shape = conv_shape(input_shape)
    network = Conv((2, 3), hidden_layer_sizes=hidden)
    encoder, decoder = network.build(shape, generator())
    Z = encoder(rows(shape))
    assert Z.shape == (3, 4)
    assert decoder(Z).shape == (3, shape.n_features)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
    st.integers(1, 8),
    st.integers(1, 5),
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.sampled_from(["dense", "feature_map"]),
)
def test_convolutional_decoder_restores_every_input_size(
    input_shape, kernel, stride, channels, code
):
    network = Conv(channels, kernel_size=kernel, stride=stride, code=code)
    n_components = 2
    try:
        if code == "feature_map":
            n_components = math.prod(network.code_shape(input_shape))
        shape = conv_shape(input_shape, n_components, n_blocks=2)
        encoder, decoder = network.build(shape, generator())
    except ValueError:
        assert kernel % 2 == 0
        return
    out = encoder(rows(shape))
    assert out.shape == (3, 2 * n_components)
    assert decoder(out[:, :n_components]).shape == (3, shape.n_features)


@pytest.mark.parametrize("kernel_size", [2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_map_sizes_follow_their_equation(kernel_size, stride):
    shape = conv_shape((3, 29, 23))
    network = Conv((2, 5), kernel_size=kernel_size, stride=stride)
    encoder, _ = network.build(shape, generator())
    expected, sizes = [], (29, 23)
    for n_channels in (2, 5):
        p = (kernel_size - 1) // 2
        sizes = [math.floor((n + 2 * p - kernel_size) / stride) + 1 for n in sizes]
        expected.append((n_channels, *sizes))
    assert map_sizes(encoder, rows(shape)) == expected


@pytest.mark.parametrize("input_shape", [(17,), (9, 7), (3, 9, 7)])
def test_decoder_maps_mirror_the_encoder(input_shape):
    shape = conv_shape(input_shape)
    encoder, decoder = Conv((2, 3, 5)).build(shape, generator())
    down = map_sizes(encoder, rows(shape))
    first = input_shape if len(input_shape) == 3 else (1, *input_shape)
    up = map_sizes(decoder, encoder(rows(shape)))
    assert up == [*reversed(down[:-1]), first]


def test_signals_use_1d_and_images_2d_convolutions():
    for input_shape, expected in (
        ((9,), (nn.Conv1d, nn.ConvTranspose1d)),
        ((9, 7), (nn.Conv2d, nn.ConvTranspose2d)),
        ((3, 9, 7), (nn.Conv2d, nn.ConvTranspose2d)),
    ):
        parts = Conv((2, 3)).build(conv_shape(input_shape), generator())
        for part, kind in zip(parts, expected, strict=True):
            assert set(kinds(convolutions(part))) == {kind}


def test_rows_without_input_shape_are_signals():
    encoder, decoder = Conv((2,)).build(SHAPE, generator())
    assert encoder[0].unflattened_size == (1, 6)
    assert decoder(encoder(rows(SHAPE))).shape == (3, 6)


def test_rows_are_images_in_c_order():
    shape = conv_shape((2, 4, 3))
    encoder, _ = Conv((2,)).build(shape, generator())
    X = rows(shape)
    assert torch.equal(encoder[0](X), X.reshape(3, 2, 4, 3))


def test_an_activation_follows_each_convolution_and_hidden_layer():
    network = Conv((2, 3), hidden_layer_sizes=(5,), activation="elu")
    encoder, decoder = network.build(conv_shape((6, 6)), generator())
    assert kinds(encoder) == [
        nn.Unflatten,
        *[nn.Conv2d, nn.ELU, nn.Conv2d, nn.ELU, nn.Flatten],
        *[nn.Linear, nn.ELU, nn.Linear],
    ]
    assert kinds(decoder) == [
        *[nn.Linear, nn.ELU, nn.Linear, nn.ELU, nn.Unflatten],
        *[nn.ConvTranspose2d, nn.ELU, nn.ConvTranspose2d, nn.Flatten],
    ]
    assert widths(encoder) == [(12, 5), (5, 4)]
    assert widths(decoder) == [(4, 5), (5, 12)]


@pytest.mark.parametrize(
    ("input_shape", "channels", "hidden"),
    [
        ((28, 28), (8, 32), 256),
        ((3, 28, 28), (8, 32), 256),
        ((16, 16), (32, 128), 256),
        ((8, 8), (64, 128), 256),
        ((128,), (32, 64), 256),
        ((5,), (64, 128), 256),
        ((224, 224), (8, 32), 64),  # 2**21 // (32 * 56 * 56) is less
    ],
)
def test_automatic_channels_and_widths_follow_from_the_size_of_the_maps(
    input_shape, channels, hidden
):
    encoder, decoder = Conv().build(conv_shape(input_shape), generator())
    assert tuple(layer.out_channels for layer in convolutions(encoder)) == channels
    assert [width for _, width in widths(encoder)] == [hidden, 4]
    assert [width for width, _ in widths(decoder)] == [4, hidden]


def test_members_and_feature_maps_have_fewer_channels_and_no_hidden_layer():
    member = conv_shape((8, 8))._replace(n_members=2)
    feature_map = conv_shape((8, 8), 32 * 4)
    for network, shape in ((Conv(), member), (Conv(code="feature_map"), feature_map)):
        encoder, _ = network.build(shape, generator())
        assert [layer.out_channels for layer in convolutions(encoder)] == [16, 32]
        assert len(widths(encoder)) == (network.code == "dense")


@pytest.mark.parametrize(
    ("batch_size", "expected"), [(8, 0.001), (64, 0.004), (128, 0.008), (256, 0.008)]
)
def test_automatic_learning_rate_of_convolutions(batch_size, expected):
    assert Conv().auto_learning_rate(batch_size) == pytest.approx(expected)
    dense = 0.004 * math.sqrt(batch_size / 128)
    assert MLP().auto_learning_rate(batch_size) == pytest.approx(dense)


@pytest.mark.parametrize("input_shape", [(5, 1, 12), (5, 12, 1)])
def test_signals_of_several_channels_are_convolved_along_their_length(input_shape):
    network = Conv((2, 3), kernel_size=4, hidden_layer_sizes=())
    shape = conv_shape(input_shape)
    encoder, decoder = network.build(shape, generator())
    assert set(kinds(convolutions(encoder))) == {nn.Conv1d}
    assert convolutions(encoder)[0].in_channels == 5
    X = rows(shape)
    assert torch.equal(encoder[0](X), X.reshape(3, 5, 12))
    assert decoder(encoder(X)).shape == (3, 60)


def test_feature_map_has_only_the_code_activation():
    network = Conv((2, 3), code="feature_map", code_activation="tanh")
    encoder, decoder = network.build(conv_shape((6, 6), 12), generator())
    assert kinds(encoder) == [
        nn.Unflatten,
        *[nn.Conv2d, nn.GELU, nn.Conv2d, ChannelsLast, nn.Tanh],
    ]
    assert kinds(decoder) == [
        ChannelsFirst,
        *[nn.ConvTranspose2d, nn.GELU, nn.ConvTranspose2d, nn.Flatten],
    ]


def test_number_of_parameters_equals_a_manual_count():
    # Maps 1 x 6 x 6 -> 2 x 3 x 3 -> 3 x 2 x 2, code of 4.
    network = Conv((2, 3), hidden_layer_sizes=())
    encoder, decoder = network.build(conv_shape((6, 6)), generator())
    assert n_parameters(encoder) == (1 * 9 * 2 + 2) + (2 * 9 * 3 + 3) + (12 * 4 + 4)
    assert n_parameters(decoder) == (4 * 12 + 12) + (3 * 9 * 2 + 2) + (2 * 9 * 1 + 1)


@pytest.mark.parametrize(
    ("input_shape", "expected"),
    [
        ((28, 28), (49, 32)),
        ((3, 9, 7), (6, 32)),
        ((17,), (5, 32)),
        ((1,), (1, 32)),
    ],
)
def test_code_shape_is_positions_and_channels_of_a_feature_map(input_shape, expected):
    assert Conv(code="feature_map").code_shape(input_shape) == expected
    assert Conv().code_shape(input_shape) is None


def test_the_channels_of_a_position_are_consecutive_in_the_code():
    network = Conv(code="feature_map")
    encoder, decoder = network.build(conv_shape((28, 28), 1568), generator())
    X = rows(conv_shape((28, 28)))
    maps = encoder[:-1](X)
    assert maps.shape == (3, 32, 7, 7)
    code = encoder(X).reshape(3, 49, 32)
    for position in (0, 8, 48):
        row, column = divmod(position, 7)
        assert torch.equal(code[:, position], maps[:, :, row, column])
    assert torch.equal(decoder[0](encoder(X)), maps)


def test_the_first_block_of_a_wide_feature_map_is_the_code():
    shape = conv_shape((9, 7), 6 * 3, n_blocks=2)
    encoder, _ = Conv((2, 3), code="feature_map").build(shape, generator())
    X = rows(shape)
    maps, out = encoder[:-1](X), encoder(X)
    assert maps.shape == (3, 6, 3, 2)
    for block, found in ((maps[:, :3], out[:, :18]), (maps[:, 3:], out[:, 18:])):
        assert torch.equal(found.reshape(3, 6, 3), block.flatten(2).transpose(1, 2))


def test_code_activation_of_a_wide_feature_map_leaves_the_second_block_unchanged():
    shape = conv_shape((9, 7), 6 * 3, n_blocks=2, code_activation="relu")
    encoder, _ = Conv((2, 3), code="feature_map").build(shape, generator())
    raw, out = encoder[:-1](rows(shape)), encoder(rows(shape))
    assert torch.equal(out[:, :18], raw[:, :18].relu())
    assert torch.equal(out[:, 18:], raw[:, 18:])
    assert (out[:, 18:] < 0).any()


def test_only_a_dense_linear_code_of_convolutions_allows_a_pca():
    assert Conv().allows_pca
    assert Conv(code_activation="identity").allows_pca
    assert not Conv(code_activation="relu").allows_pca
    assert not Conv(code_activation=nn.Identity).allows_pca
    assert not Conv(code="feature_map").allows_pca


@pytest.mark.parametrize("code", ["dense", "feature_map"])
@pytest.mark.parametrize("input_shape", [(12,), (6, 6)])
def test_convolutions_draw_from_the_given_generator_only(input_shape, code):
    network = Conv((2, 3), code=code)
    n_components = math.prod(network.code_shape(input_shape) or (4,))
    shape = conv_shape(input_shape, n_components)
    before = torch.get_rng_state()
    first = network.build(shape, generator(3))
    torch.rand(5)
    torch.set_rng_state(before)
    again, other = (network.build(shape, generator(seed)) for seed in (3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    for one, same, different in zip(first, again, other, strict=True):
        assert same_weights(one, same)
        for parameter, another in zip(
            one.parameters(), different.parameters(), strict=True
        ):
            assert not torch.equal(parameter, another)


def test_initial_kernels_fill_the_range_of_one_over_root_inputs():
    shape = conv_shape((9, 9), 9 * 200)
    network = Conv((100, 200), kernel_size=3, code="feature_map")
    encoder, decoder = network.build(shape, generator())
    # A transposed kernel of size 3 at stride 2 reaches an output 2 x 2 times.
    for layer, n_inputs in (
        (convolutions(encoder)[1], 100 * 9),
        (convolutions(decoder)[0], 200 * 4),
    ):
        for tensor in (layer.weight, layer.bias):
            bound = 1 / math.sqrt(n_inputs)
            assert 0.9 * bound < tensor.abs().max() <= bound
            assert tensor.min() < -0.9 * bound


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ((), r"channels must .*>= 1, got \(\)"),
        ((4, 0), r"channels must .*integers from 1 to .*, got \(4, 0\)"),
        ([2.5], r"channels must .*integers from 1 to .*, got \[2\.5\]"),
        (("a",), r"channels must .*integers from 1 to .*, got \('a',\)"),
    ],
)
def test_channels_that_are_not_positive_integers_raise(channels, message):
    with pytest.raises(ValueError, match=message):
        Conv(channels).build(conv_shape((6, 6)), generator())


@pytest.mark.parametrize("input_shape", [(2, 3, 4, 5), (0,), (4, -1), (2.5, 4), ("a",)])
def test_input_shapes_of_no_image_or_signal_raise(input_shape):
    shape = Shape(50, 6, 2, 2, input_shape)
    with pytest.raises(ValueError, match=r"input_shape must .*got \("):
        Conv().build(shape, generator())
    with pytest.raises(ValueError, match=r"input_shape must .*got \("):
        Conv(code="feature_map").code_shape(input_shape)


def test_kernel_larger_than_its_map_raises():
    message = r"kernel_size=4 .*network=Conv\(.*input_shape=\(6, 5\) after 2 conv"
    with pytest.raises(ValueError, match=message):
        Conv((2, 2, 2), kernel_size=4).build(conv_shape((6, 5)), generator())


def test_hidden_layers_with_a_feature_map_raise():
    network = Conv((2, 3), code="feature_map", hidden_layer_sizes=(5,))
    message = r"hidden_layer_sizes .*code='feature_map', got \(5,\)"
    with pytest.raises(ValueError, match=message):
        network.build(conv_shape((6, 6), 12), generator())
    for none in ("auto", ()):
        network.set_params(hidden_layer_sizes=none)
        network.build(conv_shape((6, 6), 12), generator())


def test_feature_map_of_another_size_than_the_code_raises():
    message = "n_components must be 12 .*4 positions times 3 channels, got 10"
    with pytest.raises(ValueError, match=message):
        Conv((2, 3), code="feature_map").build(conv_shape((6, 6), 10), generator())


@pytest.mark.parametrize("hidden", [(0,), (4, -1), (2.5,)])
def test_hidden_widths_after_convolutions_are_checked(hidden):
    with pytest.raises(ValueError, match=r"hidden_layer_sizes .*integers from 1"):
        Conv((2,), hidden_layer_sizes=hidden).build(SHAPE, generator())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("channels", 16),
        ("kernel_size", 0),
        ("kernel_size", (3, 3)),
        ("stride", 0),
        ("stride", 1.5),
        ("hidden_layer_sizes", 5),
        ("code", "sparse"),
        ("activation", "auto"),
        ("code_activation", None),
        ("output_activation", "none"),
    ],
)
def test_errors_name_invalid_parameters_of_conv(name, value):
    with pytest.raises(InvalidParameterError, match=name):
        Conv(**{name: value})._validate_params()


def test_numpy_integers_are_valid_sizes():
    two, three, six = np.array([2, 3, 6])
    network = Conv((two, three), kernel_size=three, stride=two)
    shape = conv_shape((6, 6))._replace(input_shape=(six, six))
    encoder, decoder = network.build(shape, generator())
    assert decoder(encoder(rows(shape))).shape == (3, 36)


def test_clone_and_pickle_of_conv_have_equal_parameters():
    network = Conv((3,), kernel_size=5, code="feature_map", activation=nn.Softsign)
    assert clone(network).get_params() == network.get_params()
    network_copy = pickle.loads(pickle.dumps(network))
    assert network_copy.get_params() == network.get_params()


@pytest.mark.parametrize("code", ["dense", "feature_map"])
def test_built_convolutions_can_be_pickled(code):
    n_components = 4 if code == "dense" else 12
    shape = conv_shape((6, 6), n_components, 2, code_activation="relu")
    encoder, decoder = Conv((2, 3), code=code).build(shape, generator())
    twins = pickle.loads(pickle.dumps((encoder, decoder)))
    Z = encoder(rows(shape))
    assert torch.equal(twins[0](rows(shape)), Z)
    Z = Z[:, :n_components]
    assert torch.equal(twins[1](Z), decoder(Z))


@pytest.mark.parametrize("code", ["dense", "feature_map"])
@pytest.mark.parametrize("input_shape", [(12,), (6, 5)])
def test_convolutions_compute_in_float64_row_by_row(input_shape, code):
    network = Conv((2, 3), code=code)
    n_components = math.prod(network.code_shape(input_shape) or (4,))
    shape = conv_shape(input_shape, n_components, 2, code_activation="relu")
    autoencoder = nn.Sequential(*network.build(shape, generator()))
    encoder, _ = autoencoder
    weights = {name: p.double() for name, p in encoder.named_parameters()}
    X = rows(shape, 20, torch.float64)
    out = torch.func.functional_call(encoder, weights, X)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out.float(), encoder(X.float()), atol=1e-5, rtol=0)
    for i in range(3):
        single = torch.func.functional_call(encoder, weights, X[[i]])
        torch.testing.assert_close(single[0], out[i], atol=1e-12, rtol=0)


@pytest.mark.parametrize("code", ["dense", "feature_map"])
def test_vmap_over_members_equals_each_member(code):
    n_components = 4 if code == "dense" else 12
    shape = conv_shape((6, 6), n_components, code_activation="relu")
    members = [
        nn.Sequential(*Conv((2, 3), code=code).build(shape, generator(seed)))
        for seed in range(3)
    ]
    parameters, buffers = torch.func.stack_module_state(members)

    def call(parameters, buffers, X):
        return torch.func.functional_call(members[0], (parameters, buffers), X)

    X = rows(shape)
    out = torch.func.vmap(call, in_dims=(0, 0, None))(parameters, buffers, X)
    expected = torch.stack([member(X) for member in members])
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("code", ["dense", "feature_map"])
def test_every_parameter_of_convolutions_has_a_gradient(code):
    n_components = 4 if code == "dense" else 12
    shape = conv_shape((6, 6), n_components)
    encoder, decoder = Conv((2, 3), code=code).build(shape, generator())
    (decoder(encoder(rows(shape))) ** 2).sum().backward()
    for parameter in [*encoder.parameters(), *decoder.parameters()]:
        assert parameter.grad.abs().sum() > 0


# Custom


def test_module_instances_are_copied():
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


def test_built_modules_are_in_training_mode():
    encoder, decoder = make_linear_pair().build(SHAPE, generator())
    assert encoder.training
    assert decoder.training


def test_building_does_not_update_running_statistics():
    network = Custom(RichModule(), nn.Linear(2, 6))
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
def test_error_names_a_part_of_the_wrong_shape(encoder, decoder, part):
    with pytest.raises(ValueError, match=rf"The {part} of network=Custom\(\.\.\.\)"):
        Custom(encoder, decoder).build(SHAPE, generator())


@pytest.mark.parametrize("encoder", ["mlp", None, lambda d, k: "module"])
def test_part_that_is_not_a_module_raises(encoder):
    with pytest.raises(TypeError, match=r"The encoder of network=Custom\(\.\.\.\)"):
        Custom(encoder, nn.Linear(2, 6)).build(SHAPE, generator())


class Foreign(nn.Module):
    """A layer of a user, whose forward pass and attributes differ in each test."""

    def __init__(self, n_inputs, n_outputs, forward=lambda layer, X: layer(X)):
        super().__init__()
        self.layer = nn.Linear(n_inputs, n_outputs)
        self.function = forward

    def forward(self, X):
        return self.function(self.layer, X)


def make_foreign(forward, n_encoded=2):
    return Custom(Foreign(6, n_encoded), Foreign(2, 6, forward))


few_epochs = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
X_FOREIGN = np.random.default_rng(0).normal(size=(30, 6))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_only_modules_of_users_are_evaluated_before_training(estimator, monkeypatch):
    evaluated = []
    monkeypatch.setattr(
        "skae._build._check_stage", lambda name, *rest: evaluated.append(name)
    )
    settings = {"n_components": 2, "max_epochs": 1, "hidden_layer_sizes": (3,)}
    estimator(**settings, corruption="masking", penalty="l1").fit(X_FOREIGN)
    assert not evaluated
    network = make_foreign(lambda layer, X: layer(X))
    estimator(2, network=network, max_epochs=1).fit(X_FOREIGN)
    assert evaluated


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda layer, X: layer(X.float()), "fails in float64"),
        (lambda layer, X: layer(X + torch.zeros(2)).float(), "returns float32 in floa"),
        (lambda layer, X: layer(X).to(torch.float16), "type of its input"),
        (lambda layer, X: layer(X) + torch.zeros(6, dtype=torch.float64), "type of it"),
        (lambda layer, X: layer(X).squeeze(), "one row gives"),
    ],
)
def test_modules_that_cannot_predict_are_refused_before_training(
    estimator, forward, message
):
    model = estimator(2, network=make_foreign(forward), max_epochs=1)
    called = []
    model.set_params(callbacks=[callback_at("on_train_begin", called.append)])
    with pytest.raises(ValueError, match=rf"decoder of network=Custom.*{message}"):
        model.fit(X_FOREIGN)
    assert not called


@few_epochs
def test_modules_that_need_a_contiguous_code_are_refused_only_with_a_sliced_code():
    flatten = make_foreign(lambda layer, Z: layer(Z.view(-1).view(len(Z), -1)), 4)
    ae = AutoencoderTransformer(2, network=flatten, bottleneck="gaussian", max_epochs=1)
    with pytest.raises(ValueError, match=r"decoder of network=Custom.*view"):
        ae.fit(X_FOREIGN)
    flatten.encoder = nn.Linear(6, 2)
    ae.set_params(bottleneck="deterministic").fit(X_FOREIGN).transform(X_FOREIGN)


@pytest.mark.parametrize("part", ["network", "output activation", "loss"])
def test_every_part_has_to_compute_in_the_type_of_its_input(part):
    class Single(nn.Module):
        def forward(self, X):
            return X.float()

    class SingleLoss(Loss):
        def elementwise(self, X, X_hat):
            return (X - X_hat).float() ** 2

    settings = {
        "network": {"network": MLP((4,), activation=Single)},
        "output activation": {"network": MLP((4,), output_activation=Single)},
        "loss": {"loss": SingleLoss()},
    }[part]
    with pytest.raises(ValueError, match=rf"{part}.* float64"):
        AutoencoderTransformer(2, max_epochs=1, **settings).fit(X_FOREIGN)


# Names of attributes that modules of the package and skorch use themselves.
NAMES = [
    *("generator", "encoder", "decoder", "scaler", "weight", "bias", "bottleneck"),
    *("output", "loss", "code_factor", "visible", "residual_scale", "members"),
    *("linear", "remainder", "mean", "unit", "module", "criterion", "transposed"),
    *("work", "widest_layer", "n_components", "max_refinements", "structure"),
]


@few_epochs
def test_submodules_may_have_any_name(tmp_path):
    def chain(n_inputs, n_outputs):
        layers = {name: nn.Linear(3, 3) for name in NAMES}
        first, last = nn.Linear(n_inputs, 3), nn.Linear(3, n_outputs)
        return nn.Sequential(OrderedDict(first=first, **layers, last=last))

    for estimator in ESTIMATORS:
        network = Custom(chain(6, 2), chain(2, 6))
        model = estimator(2, network=network, max_epochs=1, random_state=0)
        X_hat = model.fit(X_FOREIGN).reconstruct(X_FOREIGN)
        model = pickle.loads(pickle.dumps(model))
        np.testing.assert_array_equal(model.reconstruct(X_FOREIGN), X_hat)
        model.partial_fit(X_FOREIGN).score_samples(X_FOREIGN.astype(np.float32))


@few_epochs
def test_an_optional_submodule_called_generator_is_no_source_of_random_numbers():
    class Optional(nn.Linear):
        def __init__(self, generator):
            super().__init__(6, 2)
            self.register_module("generator", generator)

        def forward(self, X):
            Z = super().forward(X)
            return Z if self.generator is None else self.generator(Z)

    for generator_module in (None, nn.Linear(2, 2)):
        network = Custom(Optional(generator_module), nn.Linear(2, 6))
        AutoencoderTransformer(2, network=network, max_epochs=1).fit(X_FOREIGN)


def test_an_attribute_called_generator_for_something_else_is_refused_by_name():
    class Optional(nn.Linear):
        generator = None

        def forward(self, X):
            Z = super().forward(X)
            return Z if self.generator is None else self.generator(Z)

    network = Custom(Optional(6, 2), nn.Linear(2, 6))
    with pytest.raises(ValueError, match=r"attribute `generator`.*another name"):
        AutoencoderTransformer(2, network=network, max_epochs=1).fit(X_FOREIGN)


@pytest.mark.parametrize("as_factory", [True, False])
def test_modules_that_cannot_be_copied_are_refused_by_name(as_factory):
    encoder = nn.Linear(6, 2)
    encoder.lock = threading.Lock()
    network = Custom((lambda d, k: encoder) if as_factory else encoder, nn.Linear(2, 6))
    with pytest.raises(TypeError, match=r"encoder of network=Custom.*copied.*lock"):
        AutoencoderTransformer(2, network=network, max_epochs=1).fit(X_FOREIGN)


def test_custom_output_activation_overrides_that_of_the_loss():
    assert type(make_linear_pair().build_output(nn.Sigmoid())) is nn.Sigmoid
    network = make_linear_pair(output_activation="identity")
    assert type(network.build_output(nn.Sigmoid())) is nn.Identity


def test_custom_networks_may_draw_globally_and_cannot_start_as_pca():
    assert Custom.draws_globally
    assert not make_linear_pair().allows_pca


@pytest.mark.parametrize("kind", [MLP, Conv])
@pytest.mark.parametrize("name", ["activation", "code_activation", "output_activation"])
def test_only_foreign_activations_may_draw_globally(kind, name):
    assert not kind().draws_globally
    assert not kind(**{name: "tanh"}).draws_globally
    assert not kind(**{name: nn.Tanh}).draws_globally
    assert kind(**{name: nn.RReLU}).draws_globally


@pytest.mark.parametrize("kind", [MLP, Conv])
def test_only_modules_that_combine_rows_may_mix_them(kind):
    def mixes(activation):
        return kind(activation=activation).may_mix_rows

    assert not any(map(mixes, ["tanh", nn.Tanh, nn.Mish, lambda: nn.LeakyReLU(0.2)]))
    assert not any(map(mixes, [nn.PReLU, nn.RReLU, lambda: nn.GELU("tanh")]))
    assert mixes(lambda: nn.Softmax(dim=0))
    assert mixes(lambda: nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()))
    assert mixes(OwnActivation)


class OwnActivation(nn.Module):
    def forward(self, X):
        return X - X.mean(dim=0)


def test_only_custom_networks_may_end_in_an_activation():
    assert Custom.decoder_may_end_in_activation
    for kind in (MLP, Conv):
        assert not kind.decoder_may_end_in_activation


def test_custom_has_no_get_params():
    assert not hasattr(make_linear_pair(), "get_params")


def test_repr_of_custom_has_the_names_of_factories():
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


def test_copy_computes_the_same_values(duplicate):
    network = Custom(RichModule(), nn.Linear(2, 6))
    network_copy = duplicate(network)
    X = torch.randn(5, 6, generator=generator())
    assert torch.equal(network_copy.encoder.eval()(X), network.encoder.eval()(X))
    assert same_weights(network_copy.decoder, network.decoder)


def test_copy_shares_no_memory(duplicate):
    network = Custom(RichModule(), nn.Linear(2, 6))
    network_copy = duplicate(network)
    with torch.no_grad():
        network_copy.decoder.weight.fill_(7)
        network_copy.encoder.norm.running_mean.fill_(7)
    assert (network.decoder.weight != 7).all()
    assert (network.encoder.norm.running_mean != 7).all()


def test_copy_keeps_tied_weights(duplicate):
    encoder = duplicate(Custom(RichModule(), nn.Linear(2, 6))).encoder
    assert encoder.tied.weight is encoder.first.weight


def test_copy_keeps_frozen_parameters(duplicate):
    encoder = duplicate(Custom(RichModule(), nn.Linear(2, 6))).encoder
    frozen = [name for name, p in encoder.named_parameters() if not p.requires_grad]
    assert frozen == ["last.bias"]


def test_copy_keeps_buffers_and_their_persistence(duplicate):
    encoder = duplicate(Custom(RichModule(), nn.Linear(2, 6))).encoder
    assert torch.equal(encoder.offset, torch.arange(6.0))
    assert encoder.absent is None
    assert encoder.norm.num_batches_tracked.dtype == torch.int64
    assert encoder.state_dict().keys() == RichModule().state_dict().keys()


def test_copy_keeps_shared_submodules(duplicate):
    shared = nn.Linear(6, 6)
    network = duplicate(
        Custom(nn.Sequential(shared, shared, nn.Linear(6, 2)), nn.Linear(2, 6))
    )
    assert network.encoder[0] is network.encoder[1]


def test_copy_keeps_factories_and_the_output_activation(duplicate):
    network_copy = duplicate(Custom(nn.Linear, nn.Bilinear, output_activation="tanh"))
    assert network_copy.encoder is nn.Linear
    assert network_copy.decoder is nn.Bilinear
    assert network_copy.output_activation == "tanh"


def test_pickling_does_not_change_the_network():
    network = Custom(RichModule(), nn.Linear(2, 6))
    before = copy.deepcopy(network)
    pickle.dumps(network)
    assert same_weights(network.encoder, before.encoder)
    assert network.encoder.tied.weight is network.encoder.first.weight


def test_equal_modules_have_equal_hashes():
    network = Custom(RichModule(), nn.Linear(2, 6))
    assert joblib.hash(copy.deepcopy(network)) == joblib.hash(network)


def test_different_weights_have_different_hashes():
    network = Custom(RichModule(), nn.Linear(2, 6))
    network_copy = copy.deepcopy(network)
    with torch.no_grad():
        network_copy.encoder.last.weight[0, 0] += 1
    assert joblib.hash(network_copy) != joblib.hash(network)


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 99),
)
def test_any_sequence_of_layers_can_be_pickled(hidden, trainable, dtype, seed):
    chain = [6, *hidden, 2]
    layers = [linear(a, b, generator(seed)) for a, b in pairwise(chain)]
    encoder = nn.Sequential(*layers).to(dtype).requires_grad_(trainable)
    encoder_copy = pickle.loads(pickle.dumps(Custom(encoder, nn.Linear(2, 6)))).encoder
    assert same_weights(encoder_copy, encoder)
    assert {p.requires_grad for p in encoder_copy.parameters()} == {trainable}


def test_network_without_build_is_abstract():
    with pytest.raises(TypeError, match="build"):
        Network()
