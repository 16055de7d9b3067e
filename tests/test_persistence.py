"""Tests of skae.persistence: saved and loaded estimators, and rejected files."""

import copy
import importlib
import json
import os
import pickle
import pkgutil
import re
import subprocess
import sys
import textwrap
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import skops.io
import torch
from devices import assert_same_values
from numpy.testing import assert_array_equal
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback
from torch import nn
from variants import decoder_factory, encoder_factory, variants

import skae
from skae import AutoencoderOutlierDetector, AutoencoderTransformer, persistence
from skae._files import tensor_file
from skae.bottlenecks import BOTTLENECKS, Gaussian, Quantized
from skae.corruptions import CORRUPTIONS
from skae.losses import LOSSES
from skae.networks import ACTIVATIONS, MLP, NETWORKS, Custom
from skae.penalties import PENALTIES
from skae.persistence import KNOWN_CLASSES

METHODS = (
    "transform",
    "reconstruct",
    "score_samples",
    "decision_function",
    "feature_contributions",
    "predict",
    "quantize",
)


class Halves(nn.Module):
    """A module with a buffer, a number and a layer."""

    def __init__(self, n_inputs, n_outputs):
        super().__init__()
        self.layer = nn.Linear(n_inputs, n_outputs)
        self.factor = 0.5
        self.register_buffer("shift", torch.arange(float(n_outputs)))

    def forward(self, X):
        return self.factor * self.layer(X) + self.shift


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).uniform(size=(40, 6))


@pytest.fixture(scope="module")
def fitted(X):
    return AutoencoderTransformer(2, max_epochs=3, random_state=0).fit(X)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def save_and_load(estimator, path, **kwargs):
    skae.save(estimator, path)
    return skae.load(path, **kwargs)


def assert_same_predictions(a, b, X):
    for name in METHODS:
        assert hasattr(a, name) == hasattr(b, name)
        if hasattr(a, name):
            assert_same_values(getattr(a, name)(X), getattr(b, name)(X), a, b, X.dtype)


REPRESENTATIVE_VARIANTS = [
    AutoencoderTransformer(),
    AutoencoderTransformer(hidden_layer_sizes=(), scale="feature", init="random"),
    AutoencoderTransformer(network=MLP((8,), activation="relu", dropout=0.1)),
    AutoencoderTransformer(network=Custom(encoder_factory, decoder_factory)),
    AutoencoderTransformer(network="conv", bottleneck="gaussian", penalty="l1"),
    AutoencoderTransformer(bottleneck=Quantized(8, 1, shared=True)),
    AutoencoderTransformer(loss="mixed", corruption="swap"),
    AutoencoderOutlierDetector(),
    AutoencoderOutlierDetector(n_estimators=1, contamination=0.1),
    AutoencoderOutlierDetector(n_estimators=2, network="conv"),
    AutoencoderOutlierDetector(n_estimators=2, bottleneck=Gaussian(score="elbo")),
]


@pytest.fixture(
    scope="module",
    params=[
        *REPRESENTATIVE_VARIANTS,
        *(pytest.param(variant, marks=pytest.mark.slow) for variant in variants()),
    ],
    ids=repr,
)
def variant(request, X):
    """A fitted variant of one of the estimators."""
    return clone(request.param).set_params(max_epochs=2, random_state=0).fit(X)


def test_loaded_variants_predict_bit_identically(variant, X, path):
    loaded = save_and_load(variant, path, trusted=[encoder_factory, decoder_factory])
    assert type(loaded) is type(variant)
    assert vars(loaded).keys() == vars(variant).keys()
    assert repr(loaded.get_params()) == repr(variant.get_params())
    for rows in (X, X.astype(np.float32)):
        assert_same_predictions(variant, loaded, rows)


def test_variants_loaded_by_skops_predict_bit_identically(variant, X):
    written = skops.io.dumps(variant)
    factories = [encoder_factory, decoder_factory]
    untrusted = set(skops.io.get_untrusted_types(data=written))
    untrusted -= {f"{value.__module__}.{value.__name__}" for value in factories}
    assert untrusted <= documented_types()
    loaded = skops.io.loads(written, trusted=[*documented_types(), *factories])
    assert repr(loaded.get_params()) == repr(variant.get_params())
    for rows in (X, X.astype(np.float32)):
        assert_same_predictions(variant, loaded, rows)


def documented_types():
    """The types that the documentation lists as trusted for skops."""
    text = (Path(__file__).parents[1] / "docs" / "files.rst").read_text()
    return set(re.findall(r"^   ((?:skae|torch)\.[\w.]+)$", text, re.MULTILINE))


def test_every_spec_class_is_documented_for_skops():
    named = (ACTIVATIONS, NETWORKS, BOTTLENECKS, CORRUPTIONS, PENALTIES, LOSSES)
    kinds = {kind for names in named for kind in names.values()}
    assert {f"{kind.__module__}.{kind.__name__}" for kind in kinds} <= (
        documented_types()
    )


def test_documented_types_exist():
    for path in documented_types():
        module, _, name = path.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), name), type)


def test_pipelines_are_saved_by_skops(X):
    pipeline = make_pipeline(StandardScaler(), AutoencoderTransformer(2, max_epochs=2))
    pipeline.fit(X)
    loaded = skops.io.loads(skops.io.dumps(pipeline), trusted=list(documented_types()))
    assert_same_values(
        loaded.transform(X), pipeline.transform(X), loaded[-1], pipeline[-1]
    )
    loaded[-1].partial_fit(X)
    assert loaded[-1].n_iter_ == pipeline[-1].n_iter_ + 1


@pytest.mark.parametrize("how", ["save", "skops"])
def test_mixed_loss_keeps_its_columns(how, X, path):
    X = np.column_stack([X, X > 0.5])
    detector = AutoencoderOutlierDetector(loss="mixed", max_epochs=2).fit(X)
    if how == "save":
        loaded = save_and_load(detector, path)
    else:
        written = skops.io.dumps(detector)
        loaded = skops.io.loads(written, trusted=list(documented_types()))
    assert loaded.module_.loss.binary == [6, 7, 8, 9, 10, 11]
    assert_same_predictions(detector, loaded, X)


def test_fitted_attributes_are_loaded(path):
    X = load_iris(as_frame=True).data
    detector = AutoencoderOutlierDetector(max_epochs=3, random_state=0).fit(X)
    loaded = save_and_load(detector, path)
    assert_array_equal(loaded.feature_names_in_, detector.feature_names_in_)
    assert loaded.feature_names_in_.dtype == object
    assert_array_equal(loaded.mean_, detector.mean_)
    for name in ("offset_", "n_iter_", "loss_curve_", "validation_loss_curve_"):
        assert getattr(loaded, name) == getattr(detector, name)
        assert type(getattr(loaded, name)) is type(getattr(detector, name))
    assert loaded.net_.best_epoch_ == detector.net_.best_epoch_
    assert loaded.net_.history[:, "train_loss"] == detector.loss_curve_
    assert loaded.net_.lr == detector.net_.lr
    assert "AutoencoderNet" in repr(loaded.net_)


def test_training_continues_after_loading(X, fitted, path):
    loaded = save_and_load(fitted, path).partial_fit(X)
    assert_same_predictions(skae.load(path).partial_fit(X), loaded, X)
    assert loaded.n_iter_ == fitted.n_iter_ + 1
    loaded = skae.load(path).set_params(warm_start=True, max_epochs=1).fit(X)
    assert np.isfinite(loaded.transform(X)).all()


def test_loaded_estimators_can_be_saved_and_cloned(X, fitted, path):
    loaded = save_and_load(save_and_load(fitted, path), path)
    assert_same_predictions(fitted, loaded, X)
    clone(loaded).fit(X)


def pickled(estimator):
    return pickle.loads(pickle.dumps(estimator))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_copies_can_be_saved(copied, X, path):
    detector = AutoencoderOutlierDetector(max_epochs=1, random_state=0).fit(X)
    skae.save(copied(detector), path)
    loaded = skae.load(path)
    assert_array_equal(loaded.score_samples(X), detector.score_samples(X))


def test_random_state_continues_after_loading(X, path):
    ae = AutoencoderTransformer(
        2, max_epochs=1, random_state=np.random.RandomState(3)
    ).fit(X)
    loaded = save_and_load(ae, path)
    assert loaded.random_state.randint(10**6) == ae.random_state.randint(10**6)


def test_infinite_values_nan_and_numpy_scalars_are_loaded(path, X, fitted):
    ae = AutoencoderTransformer(2, max_epochs=1, random_state=0).fit(X)
    ae.values_ = [np.inf, -np.inf, np.float32(0.1), (1, 2)]
    ae.mapping_ = {"a": float("nan")}
    loaded = save_and_load(ae, path)
    assert loaded.values_ == ae.values_
    assert type(loaded.values_[2]) is np.float32
    assert np.isnan(loaded.mapping_["a"])


@dataclass(frozen=True)
class Record:
    """A frozen dataclass with __getstate__ and __setstate__."""

    weights: np.ndarray
    names: tuple
    cache: dict | None = None

    def __getstate__(self):
        return {"weights": self.weights, "names": self.names}

    def __setstate__(self, state):
        vars(self).update(state, cache={})


@dataclass(frozen=True)
class PlainRecord:
    count: int


def test_frozen_dataclasses_are_saved(X, path):
    ae = AutoencoderTransformer(2, max_epochs=1, random_state=0).fit(X)
    record = Record(np.arange(3.0), ("a", "b"), cache={"key": object()})
    ae.records_ = [record, PlainRecord(3)]
    with pytest.raises(TypeError, match=r"Record', which is not trusted"):
        save_and_load(ae, path)
    loaded, plain = skae.load(path, trusted=[Record, PlainRecord]).records_
    assert_array_equal(loaded.weights, record.weights)
    assert (loaded.names, loaded.cache) == (("a", "b"), {})
    assert plain == PlainRecord(3)


def test_metadata_requests_are_saved(X, path):
    with config_context(enable_metadata_routing=True):
        ae = AutoencoderTransformer(2, max_epochs=1, random_state=0)
        ae.set_fit_request(sample_weight=True)
        loaded = save_and_load(ae.fit(X), path)
        assert repr(loaded.get_metadata_routing()) == repr(ae.get_metadata_routing())


def test_shared_weights_stay_shared(X, path):
    layer = nn.Linear(6, 6)
    encoder = nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(6, 2))
    ae = AutoencoderTransformer(
        2, network=Custom(encoder, nn.Linear(2, 6)), max_epochs=1, random_state=0
    ).fit(X)
    loaded = save_and_load(ae, path)
    assert loaded.module_.encoder[0].weight is loaded.module_.encoder[2].weight
    assert_same_predictions(ae, loaded, X)


# Custom classes


def test_custom_modules_load_only_if_trusted(X, path):
    network = Custom(Halves(6, 2), Halves(2, 6))
    ae = AutoencoderTransformer(2, network=network, max_epochs=2, random_state=0)
    skae.save(ae.fit(X), path)
    with pytest.raises(TypeError, match=r"Halves.*not trusted.*trusted=\[Halves\]"):
        skae.load(path)
    loaded = skae.load(path, trusted=[Halves])
    assert_same_predictions(ae, loaded, X)


def test_functions_load_only_if_trusted(X, path):
    network = Custom(encoder_factory, decoder_factory)
    ae = AutoencoderTransformer(2, network=network, max_epochs=1, random_state=0)
    skae.save(ae.fit(X), path)
    with pytest.raises(TypeError, match=r"encoder_factory', which is not trusted"):
        skae.load(path, trusted=[decoder_factory])


def test_partial_of_a_pytorch_class_is_loaded_as_activation(X, path):
    network = MLP((4,), activation=partial(nn.LeakyReLU, negative_slope=0.3))
    ae = AutoencoderTransformer(2, network=network, max_epochs=1, random_state=0)
    loaded = save_and_load(ae.fit(X), path)
    assert_same_predictions(ae, loaded, X)
    assert loaded.network.activation.keywords == {"negative_slope": 0.3}


@pytest.mark.parametrize(
    "activation", [lambda: nn.Tanh(), partial(lambda: nn.Tanh())], ids=["", "partial"]
)
def test_lambdas_are_rejected_when_saving(activation, X, path):
    network = MLP((4,), activation=activation)
    ae = AutoencoderTransformer(2, network=network, max_epochs=1, random_state=0)
    with pytest.raises(TypeError, match=r"network\.activation.*cannot be saved"):
        skae.save(ae.fit(X), path)
    assert os.listdir(path.parent) == []


def test_modules_with_hooks_are_rejected(X, path):
    ae = AutoencoderTransformer(2, max_epochs=1, random_state=0).fit(X)
    ae.module_.encoder.register_forward_hook(lambda *_: None)
    with pytest.raises(TypeError, match=r"module\._modules\.encoder has hooks"):
        skae.save(ae, path)


def test_callbacks_are_not_saved_and_raise_a_warning(X, path):
    ae = AutoencoderTransformer(2, max_epochs=1, random_state=0, callbacks=[Callback()])
    ae.fit(X)
    with pytest.warns(UserWarning, match="callbacks are code and are not saved") as log:
        skae.save(ae, path)
    assert log[0].filename == __file__
    assert skae.load(path).callbacks is None


@pytest.mark.parametrize("estimator", [nn.Linear(1, 1), 3, None])
def test_other_objects_are_rejected(estimator, path):
    with pytest.raises(TypeError, match="estimator must be an AutoencoderTransformer"):
        skae.save(estimator, path)


def test_unfitted_estimators_are_rejected(path):
    with pytest.raises(NotFittedError):
        skae.save(AutoencoderTransformer(), path)
    assert not path.exists()


# Invalid files


def test_missing_file_raises_file_not_found_error(path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        skae.load(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_truncated_files_are_rejected(share, fitted, path):
    skae.save(fitted, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"model\.safetensors' is not a complete file"):
        skae.load(path)


def test_files_with_an_altered_bit_are_rejected(fitted, path):
    skae.save(fitted, path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for where in rng.integers(8, len(content), size=200):
        altered = bytearray(content)
        altered[where] ^= 1 << rng.integers(8)
        path.write_bytes(altered)
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            skae.load(path)


@pytest.mark.parametrize(
    "content", [b"", b"not a model", b"\x80\x04K\x01.", b"\xff" * 64, b"{}" * 40]
)
def test_files_in_other_formats_are_rejected(content, path):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a complete file of skae"):
        skae.load(path)


def test_other_safetensors_files_are_rejected(path):
    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"was not written by skae\.save"):
        skae.load(path)


def rewrite(path, change):
    """Rewrite a file with a changed description and a valid digest."""
    with safe_open(path, framework="pt") as file:
        _, text = file.metadata()[persistence.METADATA_KEY].split("\n")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    description = json.loads(text)
    change(description)
    text = json.dumps(description)
    path.write_bytes(tensor_file(persistence.METADATA_KEY, text, tensors))


def test_newer_format_raises_a_warning(X, fitted, path):
    skae.save(fitted, path)
    rewrite(path, lambda d: d.update(format=persistence.FORMAT + 1))
    message = "in a format that this version does not know"
    with pytest.warns(UserWarning, match=message) as record:
        loaded = skae.load(path)
    assert [warning.filename for warning in record] == [__file__]
    assert_same_predictions(fitted, loaded, X)


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "builtins:eval",
        "torch.serialization:load",
        "skae.persistence:save",
        "torch.nn.modules.linear:torch.load",
        "sklearn.linear_model:LogisticRegression",
        "skae.persistence:Path",  # imported into a module of skae
        "skae.persistence:nn.Linear",
        "skae.engine.net:StopTraining",  # not a class whose objects are saved
        "skae:AutoencoderTransformer",  # not the module that defines it
        "skae.transformer:nn",
        "torch.nn.modules.linear:Parameter",
        "sklearn.utils._metadata_requests:MetadataRouter",
    ],
)
def test_other_classes_and_functions_are_not_trusted(name, fitted, path):
    skae.save(fitted, path)
    rewrite(path, lambda d: d["state"].update(network={"named": name}))
    with pytest.raises(TypeError, match="which is not trusted"):
        skae.load(path)


def all_modules():
    """All modules of skae that can be imported."""
    found = pkgutil.walk_packages(skae.__path__, "skae.")
    return [importlib.import_module(module.name) for module in found]


def test_only_listed_classes_of_skae_are_known():
    reader, known = persistence._Reader({}, []), set()
    for module in [skae, *all_modules()]:
        for name, value in vars(module).items():
            names = {f"{module.__name__}:{name}"}
            if hasattr(value, "__module__") and hasattr(value, "__qualname__"):
                names.add(f"{module.__name__}:{value.__qualname__}")
            for path in names:
                with suppress(persistence._NotTrustedError):
                    assert reader.resolve(path) is value
                    known.add(path)
    listed = {f"{m}:{name}" for m, names in KNOWN_CLASSES.items() for name in names}
    assert known == listed


def test_known_classes_are_those_documented_for_skops():
    of_skae = {path for path in documented_types() if path.startswith("skae.")}
    listed = {f"{m}.{name}" for m, names in KNOWN_CLASSES.items() for name in names}
    # A file describes the first two by others, and does not hold pipelines.
    others = {
        "skae._layers.FrozenModule",
        "skae.engine.net.AutoencoderNet",
        "skae.windows.SlidingWindows",
    }
    assert listed == of_skae - others


@pytest.mark.parametrize("where", ["estimator", "network"])
def test_a_parameter_that_the_file_lacks_gets_its_default(where, X, path):
    network = MLP((4,), activation="relu")
    ae = AutoencoderTransformer(2, network=network, max_epochs=1, random_state=0)
    skae.save(ae.fit(X), path)

    def remove(description):
        state = description["state"]
        if where == "network":
            state = state["network"]["object"][1]
        del state["activation" if where == "network" else "tol"]

    rewrite(path, remove)
    loaded = skae.load(path)
    assert loaded.tol == 1e-4
    assert loaded.network.activation == ("quick_gelu" if where == "network" else "relu")
    assert_same_predictions(ae, loaded, X)


def test_loading_imports_no_module(monkeypatch, fitted, path):
    skae.save(fitted, path)
    module = "skae.inspection._drawing"
    rewrite(path, lambda d: d["state"].update(network={"named": f"{module}:Axes"}))
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(TypeError, match="which is not trusted"):
        skae.load(path)
    assert module not in sys.modules


@pytest.mark.parametrize("kind", ["tuple", "pickle", "object", "net"])
def test_invalid_values_are_rejected(kind, fitted, path):
    skae.save(fitted, path)
    rewrite(path, lambda d: d["state"].update(network={kind: 3}))
    with pytest.raises(ValueError, match="does not describe an estimator"):
        skae.load(path)


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"format": "1"}', "[" * 100_000], ids=range(5)
)
def test_invalid_descriptions_are_rejected(text, path):
    path.write_bytes(tensor_file(persistence.METADATA_KEY, text, {}))
    with pytest.raises(ValueError, match="does not describe an estimator"):
        skae.load(path)


def test_inconsistent_n_features_is_rejected(fitted, path):
    skae.save(fitted, path)
    rewrite(path, lambda d: d["state"].update(n_features_in_=9))
    with pytest.raises(ValueError, match="does not describe an estimator"):
        skae.load(path)


# Writing


def test_interrupted_save_keeps_the_existing_file(monkeypatch, X, fitted, path):
    skae.save(fitted, path)
    before = path.read_bytes()

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        skae.save(AutoencoderTransformer(1, max_epochs=1).fit(X), path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_loaded_estimator_does_not_depend_on_its_file(X, fitted, path):
    skae.save(fitted, path)
    loaded = skae.load(path)
    with path.open("r+b") as file:  # in place, as `cp` does
        file.write(b"\1" * path.stat().st_size)
    assert_array_equal(loaded.score_samples(X), fitted.score_samples(X))


def test_missing_folder_raises_file_not_found_error(fitted, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.model'$"):
        skae.save(fitted, tmp_path / "nowhere" / "model")


def test_equal_estimators_give_equal_files(fitted, path, tmp_path):
    skae.save(fitted, path)
    skae.save(fitted, tmp_path / "other")
    assert path.read_bytes() == (tmp_path / "other").read_bytes()


def test_loading_does_not_unpickle(fitted, path):
    skae.save(fitted, path)
    code = f"""
        import pickle, torch, skae
        def fail(*args, **kwargs): raise AssertionError("unpickled")
        pickle.load = pickle.loads = pickle.Unpickler = torch.load = fail
        print(skae.load({str(path)!r}).n_features_in_)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "6\n"
