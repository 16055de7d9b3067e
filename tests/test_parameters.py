"""Comparison of estimator parameters by value."""

import copy
import pickle
from functools import partial

import numpy as np
import pandas as pd
import pytest
import sklearn
import torch
from sklearn.base import clone
from torch import nn

from skae import AutoencoderTransformer
from skae._parameters import first_difference
from skae._parameters import snapshot as snapshot_of
from skae.bottlenecks import Gaussian, Quantized
from skae.corruptions import Masking
from skae.losses import Huber, Mixed
from skae.networks import MLP, Conv, Custom

NAN = float("nan")


def double(x):
    return 2 * x


def triple(x):
    return 3 * x


def make_linear(n_inputs=2, n_outputs=3, seed=0):
    """A layer with weights that depend on the seed alone."""
    layer = nn.Linear(n_inputs, n_outputs)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-1, 1, generator=generator)
    return layer


def make_encoder(n_features, n_components):
    return nn.Linear(n_features, n_components)


def make_decoder(n_features, n_components):
    return nn.Linear(n_components, n_features)


def changed(module, change):
    module = copy.deepcopy(module)
    change(module)
    return module


def wide_mixed(last):
    """A loss of forty columns."""
    return Mixed([*[True] * 39, last])


class Linked:
    """An object that refers to itself."""

    def __init__(self, value):
        self.value = value
        self.itself = self


same_lambda = lambda x: x  # noqa: E731
same_array = np.array([1.0, NAN])

EQUAL = {
    "int and float": (1, 1.0),
    "int and NumPy integer": (3, np.int64(3)),
    "float and NumPy float": (0.5, np.float32(0.5)),
    "bool and NumPy bool": (True, np.True_),
    "strings": ("mlp", "m" + "lp"),
    "string and NumPy string": ("mlp", np.str_("mlp")),
    "columns": (pd.Series([True, False]), pd.Series([True, False])),
    "indices": (Mixed(pd.Index(["a", "b"])), Mixed(pd.Index(["a", "b"]))),
    "tuple and list": ((8, 4), [8, 4]),
    "nested": ([(1, 2), {"a": (3,)}], ((1.0, 2), {"a": [3]})),
    "dictionaries in another order": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "arrays": (np.arange(3), np.arange(3)),
    "arrays with NaN": (np.array([1.0, NAN]), np.array([1.0, NAN])),
    "the same array": (same_array, same_array),
    "arrays of strings": (np.array(["a", "b"]), np.array(["a", "b"])),
    "tensors": (torch.ones(2), torch.ones(2)),
    "a tensor with and without gradient": (torch.ones(1, requires_grad=True),) * 2,
    "functions": (double, double),
    "built-in functions": (len, len),
    "the same lambda": (same_lambda, same_lambda),
    "classes": (MLP, MLP),
    "partials": (partial(double, 1, y=[2]), partial(double, 1, y=(2,))),
    "random states": (np.random.RandomState(0), np.random.RandomState(0)),
    "spec objects": (MLP((8,)), MLP([8])),
    "nested spec objects": ({"network": MLP((8,))}, {"network": MLP((8,))}),
    "modules": (make_linear(), make_linear()),
    "modules of modules": (
        nn.Sequential(make_linear(), nn.Dropout(0.1)),
        nn.Sequential(make_linear(), nn.Dropout(0.1)),
    ),
    "custom with factories": (
        Custom(make_encoder, make_decoder),
        Custom(make_encoder, make_decoder),
    ),
    "custom with partials": (
        Custom(partial(make_encoder, n_components=2), make_decoder),
        Custom(partial(make_encoder, n_components=2), make_decoder),
    ),
    "custom with modules": (
        Custom(make_linear(), make_linear()),
        Custom(make_linear(), make_linear()),
    ),
    "mixed of forty columns": (wide_mixed(True), wide_mixed(True)),
    "objects that refer to themselves": (Linked(1), Linked(1)),
}

DIFFERENT = {
    "numbers": (1, 2),
    "bool and int": (True, 1),
    "NumPy bool and float": (np.False_, 0.0),
    "number and string": (1, "1"),
    "string and None": ("auto", None),
    "columns": (pd.Series([True, False]), pd.Series([True, True])),
    "indices": (Mixed(pd.Index(["a", "b"])), Mixed(pd.Index(["a", "c"]))),
    "lengths": ((8,), (8, 8)),
    "entries": ([8, 4], [8, 5]),
    "string and tuple": ("ab", ("a", "b")),
    "keys": ({"a": 1}, {"b": 1}),
    "arrays": (np.array([1.0, NAN]), np.array([NAN, 1.0])),
    "shapes": (np.zeros(2), np.zeros((2, 1))),
    "types of arrays": (np.zeros(2), np.zeros(2, dtype=np.float32)),
    "tensor and array": (torch.zeros(2), np.zeros(2, dtype=np.float32)),
    "tensors": (torch.ones(2), torch.zeros(2)),
    "functions": (double, triple),
    "lambdas with the same code": (lambda x: x, lambda x: x),
    "classes": (MLP, Conv),
    "function and its partial": (double, partial(double)),
    "functions of partials": (partial(double, 1), partial(triple, 1)),
    "arguments of partials": (partial(double, x=1), partial(double, x=2)),
    "random states": (np.random.RandomState(0), np.random.RandomState(1)),
    "types of spec objects": (MLP(), Conv()),
    "spec object and string": (MLP(), "mlp"),
    "parameters of spec objects": (MLP((8,)), MLP((9,))),
    "weights of modules": (make_linear(), make_linear(seed=1)),
    "modes of modules": (nn.Dropout(0.1), nn.Dropout(0.1).eval()),
    "attributes of modules": (nn.Dropout(0.1), nn.Dropout(0.2)),
    "one weight": (
        make_linear(),
        changed(make_linear(), lambda m: m.weight.data[0, 0].add_(1)),
    ),
    "a buffer": (
        nn.BatchNorm1d(2),
        changed(nn.BatchNorm1d(2), lambda m: m.running_mean.add_(1)),
    ),
    "a submodule": (
        nn.Sequential(make_linear(), nn.ReLU()),
        nn.Sequential(make_linear(), nn.Tanh()),
    ),
    "custom with factories": (
        Custom(make_encoder, make_decoder),
        Custom(make_decoder, make_encoder),
    ),
    "custom with lambdas": (
        Custom(lambda d, k: nn.Linear(d, k), make_decoder),
        Custom(lambda d, k: nn.Linear(d, k), make_decoder),
    ),
    "custom with modules": (
        Custom(make_linear(), make_linear()),
        Custom(make_linear(), make_linear(seed=1)),
    ),
    "the last of forty columns": (wide_mixed(True), wide_mixed(False)),
    "objects that refer to themselves": (Linked(1), Linked(2)),
}


def are_equal(one, other):
    return first_difference(one, one, other) is None


def test_equal_values_are_equal():
    for name, (one, other) in EQUAL.items():
        assert are_equal({"a": one}, {"a": other}), name
        assert are_equal({"a": other}, {"a": one}), name
        assert first_difference(["a"], {"a": one}, {"a": other}) is None, name


def test_different_values_are_different():
    for name, (one, other) in DIFFERENT.items():
        assert not are_equal({"a": one}, {"a": other}), name
        assert not are_equal({"a": other}, {"a": one}), name
        assert first_difference(["a"], {"a": one}, {"a": other}) == "a", name


@pytest.mark.parametrize("print_changed_only", [True, False])
def test_the_representation_of_objects_is_not_compared(print_changed_only):
    with sklearn.config_context(print_changed_only=print_changed_only):
        test_equal_values_are_equal()
        test_different_values_are_different()


def test_the_first_difference_is_in_the_order_of_the_names():
    one, other = {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 0, "c": 0}
    assert first_difference(["c", "b"], one, other) == "c"
    assert first_difference(["a", "b", "c"], one, other) == "b"
    assert first_difference(["a"], one, other) is None


# Snapshots


def snapshot(model):
    return snapshot_of(model, model.get_params(deep=False))


SPECS = {
    "network": MLP((8, 4), dropout=0.1),
    "bottleneck": Quantized(4, 1),
    "loss": Huber(0.5),
    "corruption": Masking(),
}
PARAMETERS = [
    {},
    SPECS,
    {"network": Custom(make_linear(5, 2), make_linear(2, 5))},
    {"network": Custom(make_encoder, make_decoder), "bottleneck": Gaussian()},
    {"loss": wide_mixed(True), "callbacks": []},
    {"random_state": np.random.RandomState(0)},
]


@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v)), clone]
)
def test_snapshots_of_copies_are_equal(parameters, copied):
    model = AutoencoderTransformer(**parameters)
    assert are_equal(snapshot(copied(model)), snapshot(model))


def test_a_snapshot_equals_its_copies():
    before = snapshot(AutoencoderTransformer(**SPECS))
    assert are_equal(pickle.loads(pickle.dumps(before)), before)
    assert are_equal(copy.deepcopy(before), before)


def test_a_snapshot_does_not_follow_changes_of_spec_objects():
    model = clone(AutoencoderTransformer(**SPECS))
    before = snapshot(model)
    model.set_params(network__dropout=0.2)
    present = snapshot(model)
    assert not are_equal(present, before)
    assert first_difference(present, present, before) == "network"
    model.set_params(network__dropout=0.1)
    assert are_equal(snapshot(model), before)


def test_a_snapshot_does_not_follow_changes_of_a_spec_object_in_place():
    network = MLP((8,))
    model = AutoencoderTransformer(network=network)
    before = snapshot(model)
    network.activation = "relu"
    assert first_difference(["network"], snapshot(model), before) == "network"


def test_a_snapshot_does_not_follow_changes_of_lists():
    sizes = [8, 4]
    model = AutoencoderTransformer(hidden_layer_sizes=sizes)
    before = snapshot(model)
    sizes.append(2)
    assert not are_equal(snapshot(model), before)


def test_a_snapshot_has_only_the_requested_parameters():
    model = AutoencoderTransformer(3, learning_rate=0.1)
    assert snapshot_of(model, ["learning_rate"]) == {"learning_rate": 0.1}
