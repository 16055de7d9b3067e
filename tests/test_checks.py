"""Tests of the validation before training: images, tables, weights and spec objects."""

import inspect
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import validate_data
from torch import nn

from skae import (
    AutoencoderOutlierDetector,
    AutoencoderTransformer,
    _checks,
    _tables,
    bottlenecks,
    corruptions,
    losses,
    networks,
    penalties,
)
from skae._checks import check_parameters

# One epoch is too short for a good model.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(0)
BRIEF = {"max_epochs": 1, "random_state": 0}


# Images


@pytest.mark.parametrize(
    ("shape", "reshaped", "input_shape"),
    [
        ((12, 6, 7), "numpy.reshape(X, (12, -1))", "input_shape=(6, 7)"),
        ((12, 3, 6, 7), "numpy.reshape(X, (12, -1))", "input_shape=(3, 6, 7)"),
        (
            (12, 6, 7, 3),
            "numpy.moveaxis(X, -1, 1).reshape(12, -1)",
            "input_shape=(3, 6, 7)",
        ),
        ((12, 2, 3, 4, 5), "numpy.reshape(X, (12, -1))", ""),
    ],
)
@pytest.mark.parametrize("kind", ["array", "lists", "list of arrays", "tensor"])
def test_images_are_refused_with_the_way_to_reshape_them(
    shape, reshaped, input_shape, kind
):
    X = np.zeros(shape)
    images = {
        "array": X,
        "lists": X.tolist(),
        "list of arrays": list(X),
        "tensor": torch.from_numpy(X),
    }[kind]
    with pytest.raises(ValueError, match="array with dim") as refused:
        AutoencoderTransformer(network="conv", **BRIEF).fit(images)
    assert reshaped in str(refused.value)
    assert input_shape in str(refused.value)


@pytest.mark.parametrize("method", ["transform", "reconstruct", "score", "partial_fit"])
def test_fitted_estimators_refuse_images_in_the_same_way(method):
    ae = AutoencoderTransformer(**BRIEF).fit(RNG.normal(size=(20, 12)))
    with pytest.raises(ValueError, match=r"reshape\(X, \(20, -1\)\).*=\(3, 4\)"):
        getattr(ae, method)(np.zeros((20, 3, 4)))


def test_the_advice_for_images_works():
    images = RNG.uniform(size=(20, 6, 5, 3))
    X = np.moveaxis(images, -1, 1).reshape(20, -1)
    ae = AutoencoderTransformer(network="conv", input_shape=(3, 6, 5), **BRIEF).fit(X)
    first = ae.module_.encoder.remainder[0]
    maps = first(torch.from_numpy(X))
    np.testing.assert_array_equal(maps.permute(0, 2, 3, 1), images)


@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize(
    "estimator", [AutoencoderTransformer, AutoencoderOutlierDetector]
)
def test_channels_last_are_warned_about_once(estimator, network):
    X = RNG.uniform(size=(20, 6 * 5 * 3))
    model = estimator(2, network=network, input_shape=(6, 5, 3), **BRIEF)
    with pytest.warns(UserWarning, match=r"6 channels of 5 x 3.*\(3, 6, 5\)"):
        model.fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.partial_fit(X)


@pytest.mark.parametrize(
    "input_shape", [(3, 6, 5), (6, 1, 15), (1, 6, 15), (90,), (9, 10), (3, 15, 2), None]
)
def test_other_input_shapes_do_not_warn(input_shape):
    X = RNG.uniform(size=(20, 90))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        AutoencoderTransformer(input_shape=input_shape, **BRIEF).fit(X)


def test_a_code_of_positions_has_no_order():
    X = RNG.uniform(size=(20, 12))
    network = networks.Conv((2,), code="feature_map")
    ae = AutoencoderTransformer("auto", network=network, input_shape=(12,), **BRIEF)
    assert ae.fit(X).module_.n_components > 1
    with pytest.raises(ValueError, match=r"ordered=True is not possible with network"):
        ae.set_params(ordered=True).fit(X)


# Tables in partitions


@pytest.mark.parametrize(
    ("X", "network", "input_shape", "expected"),
    [
        (np.zeros((4, 6)), "mlp", None, False),
        ([[1.0, 2.0]], "mlp", None, False),
        ([np.zeros((4, 6))], "mlp", None, True),
        ([np.zeros((4, 6))], "nonsense", None, True),  # refused later
        ([np.zeros((4, 6))], "conv", None, False),  # an image
        ([np.zeros((4, 6))], "conv", (4, 6), False),
        ([np.zeros((4, 6))], "conv", [6], True),
        ([np.zeros((4, 6))], "conv", (2, 3), True),
        ([np.zeros((4, 6))], networks.Conv(), (6,), True),
        ([np.zeros((4, 6))], networks.MLP(), (4, 6), True),
        ([np.zeros((4, 6))], "conv", 6, False),
        ([np.zeros((4, 6))], "conv", ("6",), False),
        (lambda: iter([np.zeros((4, 6))]), "conv", None, True),
    ],
)
def test_partitions_are_told_from_images(X, network, input_shape, expected):
    ae = AutoencoderTransformer(network=network, input_shape=input_shape)
    assert _tables.is_collection(ae, X) == expected


def test_a_resumed_fit_to_partitions_keeps_the_names():
    X = RNG.normal(size=(30, 3))
    parts = [pd.DataFrame(part, columns=list("abc")) for part in np.split(X, 2)]
    ae = AutoencoderTransformer(1, warm_start=True, **BRIEF)
    for _ in range(2):
        assert ae.fit(parts).feature_names_in_.tolist() == ["a", "b", "c"]
    with pytest.raises(ValueError, match="feature names should match"):
        ae.fit([part[["b", "a", "c"]] for part in parts])


@pytest.mark.parametrize("shape", [(12,), (12, 3, 4)])
def test_collections_with_other_numbers_of_axes_are_refused(shape):
    X = pytest.importorskip("dask.array").zeros(shape, chunks=4)
    with pytest.raises(ValueError, match=r"Expected a 2-dim|array with dim 3"):
        AutoencoderTransformer(1, **BRIEF).fit(X)


# Rows and weights


@pytest.mark.parametrize(
    ("X", "weight", "expected"),
    [
        ([[np.nan, 1.0]], None, True),
        ([[np.nan, np.nan]], None, False),
        ([[np.nan, np.nan], [0.0, 1.0]], [1.0, 0.0], False),
        ([[np.nan, np.nan], [0.0, 1.0]], [0.0, 1.0], True),
    ],
)
def test_only_rows_with_a_weight_have_observed_values(X, weight, expected):
    weight = None if weight is None else np.array(weight)
    assert _tables.has_observed_value(np.array(X), weight) is expected


@pytest.mark.parametrize("kind", [list, tuple])
def test_weights_in_partitions_are_refused_and_lists_of_numbers_taken(kind):
    X = np.zeros((4, 2))
    weight = _tables.check_weight(kind([1, 2.0, 0, 3]), X)
    np.testing.assert_array_equal(weight, [1.0, 2.0, 0.0, 3.0])
    with pytest.raises(ValueError, match=rf"a {kind.__name__} of arrays.*concatenate"):
        _tables.check_weight(kind([np.ones(2), np.ones(2)]), X)


@pytest.mark.parametrize(
    ("X", "weight", "n_rows"),
    [
        ([[1.0, 2.0], [np.nan, 1.0]], None, 2),
        ([[1.0, 2.0], [np.nan, 1.0]], [0.0, 1.0], 1),
        ([[np.nan, np.nan]], None, 0),
        ([[1.0, 2.0], [np.nan, np.nan]], [0.0, 1.0], 0),
    ],
)
def test_scored_rows_need_an_observed_value(X, weight, n_rows):
    detector = AutoencoderOutlierDetector(1, **BRIEF).fit(RNG.normal(size=(30, 2)))
    if n_rows:
        assert len(_tables.check_scored_rows(detector, X, weight)) == n_rows
    else:
        with pytest.raises(ValueError, match="X has no observed value among rows"):
            _tables.check_scored_rows(detector, X, weight)


@pytest.mark.parametrize(("share", "n_components"), [(0.5, 1), (0.99999999, 3)])
def test_a_share_becomes_the_number_of_components_that_pca_needs(share, n_components):
    X = RNG.normal(size=(60, 1)) * [1, 2, 3] + 0.01 * RNG.normal(size=(60, 3))
    transformer = AutoencoderTransformer(share, ordered=True, **BRIEF)
    job = _checks.check_fit(transformer, X, None, earlier=None)
    assert job.n_components == job.n_channels == n_components


@pytest.mark.parametrize("name", ["corruption", "penalty"])
def test_parts_that_compare_rows_need_more_than_one_in_a_batch(name):
    part = {"corruption": "swap", "penalty": "kl"}[name]
    X = RNG.normal(size=(30, 3))
    for settings in ({name: part, "batch_size": 2}, {"batch_size": 1}):
        transformer = AutoencoderTransformer(1, **settings, **BRIEF)
        assert len(_checks.check_fit(transformer, X, None, earlier=None).rows) == 30
    transformer.set_params(**{name: part})
    with pytest.raises(ValueError, match=f"{name}='{part}' compares the rows"):
        _checks.check_fit(transformer, X, None, earlier=None)


def test_additional_members_start_like_those_before_which_are_kept():
    X = RNG.normal(size=(30, 3))
    settings = {"n_estimators": 2, "warm_start": True, **BRIEF}
    detector = AutoencoderOutlierDetector(1, **settings).fit(X)
    before = list(detector.module_.encoder.parameters())
    detector.set_params(init="pca", n_estimators=3)
    with pytest.raises(ValueError, match="init='pca' differs from the value"):
        detector.fit(X)
    detector.set_params(init="random").fit(X)
    after = list(detector.module_.encoder.parameters())
    for first, all_members in zip(before, after, strict=True):
        assert len(all_members) == 3
        assert torch.equal(all_members[:2], first)


# Parameters of spec objects

MODULES = (networks, bottlenecks, corruptions, penalties, losses)
SPECS = [
    spec
    for module in MODULES
    for name in module.__all__
    if inspect.isclass(spec := getattr(module, name))
    and not inspect.isabstract(spec)
    and getattr(spec, "_parameter_constraints", None)
]
ARGUMENTS = [(spec, name) for spec in SPECS for name in spec._parameter_constraints] + [
    (networks.Custom, name) for name in ("encoder", "decoder", "output_activation")
]
WRONG = [
    *(None, "nonsense", -1, 0, 2.5, np.nan, object(), {}, [], ("a",), [0], [-1, 2]),
    *(nn.ReLU(), nn.ReLU, nn.Linear, torch.relu, torch.zeros(2), np.zeros((2, 2))),
    *(lambda: None, lambda *sizes: None),
]


@pytest.mark.parametrize(
    ("spec", "name"), ARGUMENTS, ids=lambda value: getattr(value, "__name__", value)
)
def test_wrong_values_of_spec_objects_are_named(spec, name):
    others = {}
    if spec is networks.Custom:
        others = {"encoder": nn.Linear(6, 2), "decoder": nn.Linear(2, 6)}
    parameter = next(
        parameter
        for parameter, module in zip(
            ("network", "bottleneck", "corruption", "penalty", "loss"),
            MODULES,
            strict=True,
        )
        if spec.__name__ in module.__all__
    )
    X = RNG.uniform(size=(12, 6)).round()
    messages = []
    for value in WRONG:
        ae = AutoencoderTransformer(2, **BRIEF)
        ae.set_params(**{parameter: spec(**{**others, name: value})})
        try:
            ae.fit(X)
        except (TypeError, ValueError) as error:
            messages.append(str(error))
    assert len(messages) >= len(WRONG) // 2
    assert [message for message in messages if name not in message] == []


ACTIVATIONS = [
    (spec, name)
    for spec in (networks.MLP, networks.Conv)
    for name in ("activation", "code_activation", "output_activation")
]


@pytest.mark.parametrize(("spec", "name"), ACTIVATIONS)
@pytest.mark.parametrize(
    "value",
    [nn.ReLU(), torch.relu, nn.Threshold, lambda: None],
    ids=["module", "function", "class with arguments", "factory of None"],
)
def test_callables_that_make_no_activation_are_refused_before_the_data_is_read(
    spec, name, value
):
    ae = AutoencoderTransformer(2, network=spec(**{name: value}))
    with pytest.raises(TypeError, match=f"{name} of {spec.__name__} must be one of"):
        check_parameters(ae)


def test_the_error_for_an_activation_instance_says_what_to_pass():
    ae = AutoencoderTransformer(network=networks.MLP(activation=nn.ReLU()))
    with pytest.raises(TypeError, match=r"the module ReLU\(\).*the class itself, ReLU"):
        check_parameters(ae)


class Table(np.ndarray):
    pass


PLAIN = np.random.default_rng(0).standard_normal((30, 3))


@pytest.mark.parametrize(
    ("X", "is_plain"),
    [
        (PLAIN[:1], True),
        (PLAIN[::2].astype(np.float32), True),
        (PLAIN[:4].T[:3].T, True),
        (PLAIN[:, :2], False),  # another width
        (PLAIN[:0], False),
        (PLAIN[0], False),
        (PLAIN[:4].astype(">f8"), False),
        (PLAIN[:4].astype(np.float16), False),
        (PLAIN[:4] > 0, False),
        (np.where(PLAIN > 1, np.nan, PLAIN), False),
        (np.where(PLAIN > 1, np.inf, PLAIN), False),
        (np.full((2, 3), 1e308), False),  # its sum overflows
        (PLAIN[:4].tolist(), False),
        (PLAIN[:4].view(Table), False),  # a subclass
    ],
)
def test_plain_arrays_are_those_that_validation_returns_unchanged(X, is_plain):
    ae = AutoencoderTransformer(1, max_epochs=1).fit(PLAIN)
    with np.errstate(all="ignore"):
        assert _tables._is_plain_array(ae, X) == is_plain
        if is_plain:
            settings = _tables._X_SETTINGS
            assert validate_data(ae, X, reset=False, **settings) is X
            assert _tables.check_X(ae, X) is X


def test_arrays_are_not_plain_where_columns_have_names():
    frame = pd.DataFrame(PLAIN, columns=list("abc"))
    ae = AutoencoderTransformer(1, max_epochs=1).fit(frame)
    with pytest.warns(UserWarning, match="feature names"):
        ae.transform(PLAIN)
