"""Objects stored by another version: warnings, and parameters that it did not have."""

import copy
import inspect
import pickle

import joblib
import numpy as np
import pytest
import skops.io
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.pipeline import make_pipeline
from torch import nn

import skae
from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae._job import Trained
from skae._storage import VERSION_KEY
from skae.bottlenecks import BOTTLENECKS
from skae.corruptions import CORRUPTIONS
from skae.losses import LOSSES, Loss
from skae.networks import NETWORKS, Custom, Network
from skae.penalties import PENALTIES

each_estimator = pytest.mark.parametrize(
    "estimator", [AutoencoderTransformer, AutoencoderOutlierDetector]
)

SMALL = {"hidden_layer_sizes": (8,), "max_epochs": 2, "random_state": 0}


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).normal(size=(40, 4))


@pytest.fixture(
    scope="module", params=[AutoencoderTransformer, AutoencoderOutlierDetector]
)
def model(request, X):
    return request.param(2, early_stopping=False, **SMALL).fit(X)


# How an estimator is stored; each returns a function that loads it.


def by_pickle(model, path):
    written = pickle.dumps(model)
    return lambda: pickle.loads(written)


def by_cloudpickle(model, path):
    written = pytest.importorskip("cloudpickle").dumps(model)
    return lambda: pickle.loads(written)


def by_joblib(model, path):
    joblib.dump(model, path)
    return lambda: joblib.load(path)


def by_skops(model, path):
    written = skops.io.dumps(model)
    types = skops.io.get_untrusted_types(data=written)
    return lambda: skops.io.loads(written, trusted=types)


def by_save(model, path):
    skae.save(model, path)
    return lambda: skae.load(path)


each_store = pytest.mark.parametrize(
    "store", [by_pickle, by_cloudpickle, by_joblib, by_skops, by_save]
)


@each_store
def test_loading_what_another_version_has_stored_warns(
    store, model, X, tmp_path, monkeypatch
):
    with monkeypatch.context() as m:
        m.setattr("skae._base.__version__", "0.0.7")
        m.setattr("skae.persistence.__version__", "0.0.7")
        load = store(model, tmp_path / "model")
    name = type(model).__name__
    with pytest.warns(
        InconsistentVersionWarning, match=f"{name}.*skae 0.0.7"
    ) as record:
        loaded = load()
    (warning,) = record
    assert warning.message.original_skae_version == "0.0.7"
    if store in (by_pickle, by_save):
        assert warning.filename == __file__
    assert warning.message.current_skae_version == skae.__version__
    assert VERSION_KEY not in vars(loaded)
    assert_array_equal(loaded.score_samples(X), model.score_samples(X))


@each_store
def test_the_same_version_loads_without_warning(store, model, X, tmp_path):
    load = store(model, tmp_path / "model")  # warnings are errors
    assert vars(load()).keys() == vars(model).keys()


def test_copies_and_pipelines_load_without_warning(model, X):
    for copied in (copy.copy(model), copy.deepcopy(model), clone(model).fit(X)):
        assert_array_equal(copied.score_samples(X), model.score_samples(X))
    unfitted = pickle.loads(pickle.dumps(clone(model)))
    assert repr(unfitted.get_params()) == repr(model.get_params())
    pickle.loads(pickle.dumps(make_pipeline(model)))


def test_a_pickle_without_version_warns(model):
    state = model.__getstate__()
    assert state.pop(VERSION_KEY) == skae.__version__
    with pytest.warns(InconsistentVersionWarning, match="unknown, older version"):
        restored(type(model), state)
    assert "_trained" in state  # the state is not changed


# Parameters that an older version lacked


def restored(kind, state):
    value = kind.__new__(kind)
    value.__setstate__(state)
    return value


def parameters_of(kind):
    parameters = inspect.signature(kind).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def test_an_estimator_gets_the_default_of_each_missing_parameter(model, X):
    defaults = parameters_of(type(model))
    for name, default in defaults.items():
        state = model.__getstate__()
        del state[name]
        loaded = restored(type(model), state)
        assert getattr(loaded, name) == default
        assert loaded.get_params().keys() == model.get_params().keys()
    state = model.__getstate__()
    for name in defaults:
        del state[name]
    loaded = restored(type(model), state)
    assert_array_equal(loaded.score_samples(X), model.score_samples(X))
    clone(loaded)


SPECS = [
    kind
    for names in (BOTTLENECKS, CORRUPTIONS, LOSSES, NETWORKS, PENALTIES)
    for kind in names.values()
]


@pytest.mark.parametrize("kind", SPECS, ids=lambda kind: kind.__name__)
def test_a_spec_object_gets_the_default_of_each_missing_parameter(kind):
    spec = kind()
    for name, default in parameters_of(kind).items():
        state = dict(spec.__getstate__())
        del state[name]
        assert getattr(restored(kind, state), name) == default


class OwnLoss(Loss):
    """A loss of a user, with a parameter that has no default."""

    def __init__(self, power, factor=2.0):
        self.power = power
        self.factor = factor

    def elementwise(self, X, X_hat):
        return self.factor * (X - X_hat).abs() ** self.power


class OwnNetwork(Network):
    """A network of a user that is no BaseEstimator."""

    def __init__(self, width=3):
        self.width = width

    def build(self, shape, generator):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("spec", "name", "default"),
    [
        (Custom(nn.Linear(4, 2), nn.Linear(2, 4)), "output_activation", "auto"),
        (OwnLoss(3), "factor", 2.0),
    ],
)
def test_own_specs_get_the_defaults_of_missing_parameters(spec, name, default):
    state = dict(spec.__getstate__())
    del state[name]
    loaded = restored(type(spec), state)
    assert getattr(loaded, name) == default
    assert vars(loaded).keys() == vars(spec).keys()


def test_an_own_network_gets_the_defaults_of_missing_parameters():
    assert restored(OwnNetwork, {}).width == 3


class Few(AutoencoderTransformer):
    """A subclass whose constructor has few parameters."""

    def __init__(self, n_components=3):
        super().__init__(n_components, max_epochs=2)


def test_a_subclass_gets_the_defaults_of_its_base():
    state = Few().__getstate__()
    del state["precision"], state["n_components"]
    loaded = restored(Few, state)
    assert (loaded.precision, loaded.n_components, loaded.max_epochs) == (
        "float32",
        3,
        2,
    )


def test_training_continues_without_parameters_of_the_structure(model, X):
    state = copy.deepcopy(model.__getstate__())
    for name in model._STRUCTURE:
        if name not in ("n_components", "hidden_layer_sizes"):
            del state[name], state["_trained"].parameters[name]
    loaded = restored(type(model), state).set_params(warm_start=True)
    assert loaded.fit(X).n_iter_ == 4


def test_fields_of_the_fitted_model_have_defaults(model, X, tmp_path):
    state = copy.deepcopy(model.__getstate__())
    trained = state["_trained"]
    for name in ("shape", "judgement", "optimizer"):
        vars(trained).pop(name, None)
    vars(trained)["digest"] = "of an older version"
    loaded = pickle.loads(pickle.dumps(restored(type(model), state)))
    assert loaded._trained.shape is Trained.shape is None
    assert_array_equal(loaded.score_samples(X), model.score_samples(X))
    skae.save(loaded, tmp_path / "model")
    loaded = skae.load(tmp_path / "model").set_params(warm_start=True)
    assert loaded.fit(X).partial_fit(X).n_iter_ == 5
