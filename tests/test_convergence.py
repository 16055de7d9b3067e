"""Tests of the warnings about a fit that has failed."""

import re
import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from torch import nn

from skae import AutoencoderOutlierDetector, AutoencoderTransformer, _module
from skae._refine import refine
from skae.networks import Custom

X = np.random.default_rng(0).standard_normal((60, 3)) @ np.diag([3.0, 2.0, 1.0])
SETTINGS = {"hidden_layer_sizes": (8,), "max_epochs": 4, "random_state": 0}


def warnings_of_fit(model, X=X, **fit_params):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, **fit_params)
    assert all(w.category is ConvergenceWarning for w in caught)
    assert all(w.filename == __file__ for w in caught)
    return [str(w.message) for w in caught]


class Ignores(nn.Module):
    """Returns zeros in place of the last components."""

    def __init__(self, n_components, n_dead):
        super().__init__()
        self.layer = nn.Linear(3, n_components)
        self.n_alive = n_components - n_dead

    def forward(self, X):
        Z = self.layer(X)
        return nn.functional.pad(Z[:, : self.n_alive], (0, Z.shape[1] - self.n_alive))


def with_dead_units(n_components, n_dead):
    return AutoencoderTransformer(
        n_components,
        network=Custom(
            lambda n_features, n_components: Ignores(n_components, n_dead),
            lambda n_features, n_components: nn.Linear(n_components, n_features),
        ),
        transform_max_iter=0,
        max_epochs=4,
        random_state=0,
    )


def test_a_good_fit_refines_each_row_once_after_training(monkeypatch):
    n_refined = []

    def counting(generate, Z, *args, **kwargs):
        n_refined.append(len(Z))
        return refine(generate, Z, *args, **kwargs)

    monkeypatch.setattr(_module, "refine", counting)
    settings = {**SETTINGS, "init": "random", "max_epochs": 100}
    model = AutoencoderTransformer(2, early_stopping=False, **settings)
    assert warnings_of_fit(model) == []
    assert n_refined == [len(X)]  # for the median score
    assert model.module_.max_refinements == 10
    model.transform(X)
    assert n_refined == [len(X)] * 2


# The explained variance


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        (
            {"penalty": "contractive", "penalty_weight": 1e6, "init": "random"},
            "penalty_weight=1000000.0",
        ),
        ({"bottleneck": "gaussian", "bottleneck_weight": 1e3}, "bottleneck_weight"),
        ({"weight_decay": 1e3, "init": "random"}, "weight_decay=1000.0"),
        ({"learning_rate": 1e-12, "init": "random"}, "learning_rate=1e-12"),
    ],
)
def test_a_fit_that_explains_nothing_warns_and_is_adopted(settings, advice):
    model = AutoencoderTransformer(2, transform_max_iter=0, **SETTINGS | settings)
    model.set_params(max_epochs=40 if "weight_decay" in settings else 4)
    messages = warnings_of_fit(model)
    collapse = [m for m in messages if "principal components explain" in m]
    assert len(collapse) == 1
    assert advice in collapse[0]
    assert model.transform(X).shape == (60, 2)


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"bottleneck": "topk"}, "Increase max_epochs=1, or try another network"),
        ({"bottleneck": "topk", "penalty": "l1"}, "Decrease penalty_weight=0.001, or "),
        (
            {"init": "random", "n_components": 2},
            "Increase max_epochs=1, or try init='pca', or try another network",
        ),
    ],
)
def test_the_advice_names_what_the_settings_allow(settings, advice):
    model = AutoencoderTransformer(16, early_stopping=False, transform_max_iter=0)
    model.set_params(**SETTINGS | settings).set_params(max_epochs=1)
    messages = warnings_of_fit(model)
    assert messages
    for message in messages:
        assert advice in message
        assert "bottleneck_weight" not in message
        assert ("init=" in message) == ("init" in settings)


@pytest.mark.parametrize("kind", ["dense", "weighted", "missing", "constant", "trim"])
def test_a_good_fit_does_not_warn(kind):
    rows, weight, trim = X.copy(), None, 0.0
    if kind == "weighted":
        weight = np.arange(60)
    elif kind == "missing":
        rows[::3, 1] = np.nan
    elif kind == "constant":
        rows[:] = 5
    elif kind == "trim":
        rows[:3] = 1e4
        trim = 0.1
    model = AutoencoderTransformer(2, trim=trim, **SETTINGS)
    messages = warnings_of_fit(model, rows, sample_weight=weight)
    assert [m for m in messages if "max_epochs" not in m] == []


@pytest.mark.parametrize(
    "bottleneck", ["deterministic", "gaussian", "quantized", "topk"]
)
@pytest.mark.parametrize("init", ["auto", "random"])
def test_equal_rows_are_fitted_without_a_warning_of_collapse(bottleneck, init):
    # They have no variance that could be explained.
    rows = np.ones((20, 3))
    model = AutoencoderTransformer(2, bottleneck=bottleneck, init=init, **SETTINGS)
    messages = warnings_of_fit(model, rows)
    assert [m for m in messages if "principal components explain" in m] == []
    assert model.transform(rows).shape == (20, 2)


@pytest.mark.parametrize(
    ("settings", "names", "omits"),
    [
        ({"bottleneck": "topk"}, "bottleneck", "bottleneck_weight"),
        ({"bottleneck": "topk"}, "bottleneck", "init"),
        ({"network": "conv", "loss": "huber"}, "init='pca'", "Decrease"),
        ({"bottleneck": "quantized"}, "bottleneck_weight", "init"),
    ],
)
def test_the_advice_names_parameters_that_have_an_effect(settings, names, omits):
    # One epoch with tiny steps explains nothing.
    model = AutoencoderTransformer(
        2, **SETTINGS | {"init": "random", "batch_size": 60, "max_epochs": 1} | settings
    )
    (message,) = [m for m in warnings_of_fit(model) if "components explain" in m]
    assert names in message
    assert omits not in message


def test_the_comparison_is_made_in_the_scaled_space():
    # One feature of large variance would hide the others from an unscaled sum.
    rows = X * [1e6, 1, 1]
    model = AutoencoderTransformer(2, scale="feature", **SETTINGS)
    assert [m for m in warnings_of_fit(model, rows) if "explains" in m] == []


# Dead units


@pytest.mark.parametrize(
    ("n_components", "n_dead", "warns"),
    # The rank is 3: of 13 components, 10 may be constant.
    [(3, 0, False), (3, 1, True), (13, 10, False), (13, 11, False), (13, 12, True)],
)
def test_more_than_a_tenth_of_dead_units_warns(n_components, n_dead, warns):
    messages = warnings_of_fit(with_dead_units(n_components, n_dead))
    assert len([m for m in messages if "are constant" in m]) == warns


def test_units_that_are_alive_in_few_rows_are_not_dead():
    class Rare(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, X):
            Z = self.layer(X)
            is_large = X[:, :1] > 5
            return nn.functional.pad(Z[:, :1], (0, 1)) + nn.functional.pad(
                is_large * Z[:, 1:], (1, 0)
            )

    rows = np.random.default_rng(1).standard_normal((4000, 3))
    rows[1] = [300, 0, 0]
    model = AutoencoderTransformer(
        2,
        network=Custom(
            lambda n_features, n_components: Rare(),
            lambda n_features, n_components: nn.Linear(n_components, n_features),
        ),
        transform_max_iter=0,
        max_epochs=1,
        random_state=0,
    )
    assert [m for m in warnings_of_fit(model, rows) if "constant" in m] == []


# The number of epochs


@pytest.mark.parametrize("n_rows", [60, 600])
@pytest.mark.parametrize("max_epochs", [1, "auto"])
def test_an_explicit_max_epochs_that_is_too_small_warns(n_rows, max_epochs):
    rows = np.random.default_rng(0).standard_normal((n_rows, 2))
    rows = np.c_[rows, np.sin(3 * rows)]
    model = AutoencoderTransformer(2, init="random", **SETTINGS)
    model.set_params(max_epochs=max_epochs)
    messages = warnings_of_fit(model, rows)
    assert [m for m in messages if "max_epochs" in m] == messages
    assert len(messages) == (max_epochs == 1)


def test_nothing_is_said_where_nothing_is_held_out():
    model = AutoencoderTransformer(2, early_stopping=False, **SETTINGS)
    assert warnings_of_fit(model) == []


# Where no warning is due


def test_partial_fit_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_dead_units(4, 3).partial_fit(X).partial_fit(X)


def test_the_detector_does_not_warn_of_collapse():
    model = AutoencoderOutlierDetector(2, weight_decay=1e3, **SETTINGS)
    assert warnings_of_fit(model) == []


def test_a_warning_as_an_error_leaves_the_fitted_model():
    model = with_dead_units(4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ConvergenceWarning):
            model.fit(X)
    assert model.transform(X).shape == (60, 4)


# Trainings without an effect

KEPT = "The network remains"
FEW = {"max_epochs": 2, "hidden_layer_sizes": (8,), "random_state": 0}


@pytest.mark.parametrize(
    ("estimator", "settings", "expected"),
    [
        (AutoencoderTransformer, {}, [f"{KEPT} the PCA .*before the held-out"]),
        (
            AutoencoderTransformer,
            {"early_stopping": True},
            [f"{KEPT} the PCA .*max_epochs=2"],
        ),
        (
            AutoencoderTransformer,
            {"early_stopping": False, "learning_rate": 1.0},
            [f"{KEPT} the PCA .*before the training error"],
        ),
        (
            AutoencoderOutlierDetector,
            {"init": "pca", "early_stopping": True, "learning_rate": 1.0},
            [f"{KEPT} the PCA"],
        ),
        (
            AutoencoderOutlierDetector,
            {"early_stopping": True, "learning_rate": 30.0},
            [f"{KEPT} as it was initialized: max_epochs=2"],
        ),
        (
            AutoencoderOutlierDetector,
            {"early_stopping": True, "learning_rate": 30.0, "max_epochs": "auto"},
            [f"{KEPT} as it was initialized at random: none .*learning_rate=30"],
        ),
        # A PCA that is kept after the usual search is no failure, nor is an exact one.
        (AutoencoderTransformer, {"max_epochs": "auto"}, []),
        (AutoencoderTransformer, {"n_components": 3}, []),
        (AutoencoderTransformer, {"n_components": 3, "early_stopping": False}, []),
    ],
)
def test_a_training_without_effect_warns(estimator, settings, expected):
    messages = warnings_of_fit(estimator(**{"n_components": 2, **FEW, **settings}))
    assert len(messages) == len(expected), messages
    for message, pattern in zip(messages, expected, strict=True):
        assert re.match(pattern, message), message


def test_a_resumed_fit_warns_only_if_nothing_was_ever_trained():
    model = AutoencoderTransformer(2, warm_start=True, **FEW)
    assert [m.startswith(KEPT) for m in warnings_of_fit(model)] == [True]
    assert [m.startswith(KEPT) for m in warnings_of_fit(model)] == [True]
    model.partial_fit(X)
    assert not any(m.startswith(KEPT) for m in warnings_of_fit(model))
