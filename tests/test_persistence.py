"""Files: what comes back from them, and what is refused."""

import importlib
import json
import os
import re
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import skops.io
import torch
from numpy.testing import assert_array_equal
from safetensors import safe_open
from safetensors.torch import save_file
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
from skae.bottlenecks import BOTTLENECKS
from skae.corruptions import CORRUPTIONS
from skae.losses import LOSSES
from skae.networks import ACTIVATIONS, MLP, NETWORKS, Custom
from skae.penalties import PENALTIES

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
    """A module with a tensor, a number and a layer of its own."""

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


def there_and_back(estimator, path, **how):
    skae.save(estimator, path)
    return skae.load(path, **how)


def assert_same_predictions(a, b, X):
    for name in METHODS:
        assert hasattr(a, name) == hasattr(b, name)
        if hasattr(a, name):
            assert_array_equal(getattr(a, name)(X), getattr(b, name)(X))


@pytest.fixture(scope="module", params=list(variants()), ids=repr)
def variant(request, X):
    """Each variant of both estimators, fitted."""
    return clone(request.param).set_params(max_epochs=2, random_state=0).fit(X)


def test_every_variant_predicts_the_same_to_the_bit(variant, X, path):
    again = there_and_back(variant, path, trusted=[encoder_factory, decoder_factory])
    assert type(again) is type(variant)
    assert vars(again).keys() == vars(variant).keys()
    assert repr(again.get_params()) == repr(variant.get_params())
    for rows in (X, X.astype(np.float32)):
        assert_same_predictions(variant, again, rows)


def test_every_variant_goes_through_skops(variant, X):
    written = skops.io.dumps(variant)
    own = [encoder_factory, decoder_factory]
    untrusted = set(skops.io.get_untrusted_types(data=written))
    untrusted -= {f"{made.__module__}.{made.__name__}" for made in own}
    assert untrusted <= documented_types()
    again = skops.io.loads(written, trusted=[*documented_types(), *own])
    assert repr(again.get_params()) == repr(variant.get_params())
    for rows in (X, X.astype(np.float32)):
        assert_same_predictions(variant, again, rows)


def documented_types():
    """The types that the documentation tells users of skops to trust."""
    text = (Path(__file__).parents[1] / "docs" / "files.rst").read_text()
    return set(re.findall(r"^   ((?:skae|torch)\.[\w.]+)$", text, re.MULTILINE))


def test_every_setting_is_documented():
    named = (ACTIVATIONS, NETWORKS, BOTTLENECKS, CORRUPTIONS, PENALTIES, LOSSES)
    kinds = {kind for names in named for kind in names.values()}
    assert {f"{kind.__module__}.{kind.__name__}" for kind in kinds} <= (
        documented_types()
    )


def test_no_type_of_skae_or_torch_is_documented_in_vain():
    for path in documented_types():
        module, _, name = path.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), name), type)


def test_a_pipeline_goes_through_skops(X):
    pipeline = make_pipeline(StandardScaler(), AutoencoderTransformer(2, max_epochs=2))
    pipeline.fit(X)
    again = skops.io.loads(skops.io.dumps(pipeline), trusted=list(documented_types()))
    assert_array_equal(again.transform(X), pipeline.transform(X))
    again[-1].partial_fit(X)
    assert again[-1].n_iter_ == pipeline[-1].n_iter_ + 1


@pytest.mark.parametrize("how", ["save", "skops"])
def test_a_mixed_loss_knows_its_columns_again(how, X, path):
    X = np.column_stack([X, X > 0.5])
    detector = AutoencoderOutlierDetector(loss="mixed", max_epochs=2).fit(X)
    if how == "save":
        again = there_and_back(detector, path)
    else:
        written = skops.io.dumps(detector)
        again = skops.io.loads(written, trusted=list(documented_types()))
    assert again.module_.loss.binary == [6, 7, 8, 9, 10, 11]
    assert_same_predictions(detector, again, X)


def test_attributes_come_back(path):
    X = load_iris(as_frame=True).data
    detector = AutoencoderOutlierDetector(max_epochs=3, random_state=0).fit(X)
    again = there_and_back(detector, path)
    assert_array_equal(again.feature_names_in_, detector.feature_names_in_)
    assert again.feature_names_in_.dtype == object
    assert_array_equal(again.mean_, detector.mean_)
    for name in ("offset_", "n_iter_", "loss_curve_", "validation_loss_curve_"):
        assert getattr(again, name) == getattr(detector, name)
        assert type(getattr(again, name)) is type(getattr(detector, name))
    assert again.net_.best_epoch_ == detector.net_.best_epoch_
    assert again.net_.history[:, "train_loss"] == detector.loss_curve_
    assert again.net_.lr == detector.net_.lr
    assert "AutoencoderNet" in repr(again.net_)


def test_training_goes_on_from_a_file(X, fitted, path):
    again = there_and_back(fitted, path).partial_fit(X)
    assert_same_predictions(skae.load(path).partial_fit(X), again, X)
    assert again.n_iter_ == fitted.n_iter_ + 1
    again = skae.load(path).set_params(warm_start=True, max_epochs=1).fit(X)
    assert np.isfinite(again.transform(X)).all()


def test_a_loaded_estimator_is_saved_and_pickled_like_any(X, fitted, path):
    again = there_and_back(there_and_back(fitted, path), path)
    assert_same_predictions(fitted, again, X)
    clone(again).fit(X)


def test_a_random_state_draws_on_where_it_was(X, path):
    ae = AutoencoderTransformer(
        2, max_epochs=1, random_state=np.random.RandomState(3)
    ).fit(X)
    again = there_and_back(ae, path)
    assert again.random_state.randint(10**6) == ae.random_state.randint(10**6)


def test_numbers_that_json_lacks_come_back(path, X, fitted):
    ae = AutoencoderTransformer(2, max_epochs=1, random_state=0).fit(X)
    ae.loss_curve_ = [np.inf, -np.inf, np.float32(0.1), (1, 2)]
    ae.validation_loss_curve_ = {"a": float("nan")}
    again = there_and_back(ae, path)
    assert again.loss_curve_ == ae.loss_curve_
    assert type(again.loss_curve_[2]) is np.float32
    assert np.isnan(again.validation_loss_curve_["a"])


def test_shared_weights_stay_shared(X, path):
    layer = nn.Linear(6, 6)
    encoder = nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(6, 2))
    ae = AutoencoderTransformer(
        2, network=Custom(encoder, nn.Linear(2, 6)), max_epochs=1, random_state=0
    ).fit(X)
    again = there_and_back(ae, path)
    assert again.module_.encoder[0].weight is again.module_.encoder[2].weight
    assert_same_predictions(ae, again, X)


# Your own classes


def test_own_modules_load_only_from_trusted_classes(X, path):
    network = Custom(Halves(6, 2), Halves(2, 6))
    ae = AutoencoderTransformer(2, network=network, max_epochs=2, random_state=0)
    skae.save(ae.fit(X), path)
    with pytest.raises(TypeError, match=r"Halves.*not trusted.*trusted=\[Halves\]"):
        skae.load(path)
    again = skae.load(path, trusted=[Halves])
    assert_same_predictions(ae, again, X)


def test_functions_load_only_if_trusted(X, path):
    network = Custom(encoder_factory, decoder_factory)
    ae = AutoencoderTransformer(2, network=network, max_epochs=1, random_state=0)
    skae.save(ae.fit(X), path)
    with pytest.raises(TypeError, match=r"encoder_factory', which is not trusted"):
        skae.load(path, trusted=[decoder_factory])


def test_activations_may_be_classes_of_pytorch_and_partials(X, path):
    network = MLP((4,), activation=partial(nn.LeakyReLU, negative_slope=0.3))
    ae = AutoencoderTransformer(2, network=network, max_epochs=1, random_state=0)
    again = there_and_back(ae.fit(X), path)
    assert_same_predictions(ae, again, X)
    assert again.network.activation.keywords == {"negative_slope": 0.3}


@pytest.mark.parametrize(
    "activation", [lambda: nn.Tanh(), partial(lambda: nn.Tanh())], ids=["", "partial"]
)
def test_what_no_name_leads_to_is_refused_when_saving(activation, X, path):
    network = MLP((4,), activation=activation)
    ae = AutoencoderTransformer(2, network=network, max_epochs=1, random_state=0)
    with pytest.raises(TypeError, match=r"network\.activation.*cannot be saved"):
        skae.save(ae.fit(X), path)
    assert os.listdir(path.parent) == []


def test_hooks_are_refused(X, path):
    ae = AutoencoderTransformer(2, max_epochs=1, random_state=0).fit(X)
    ae.module_.encoder.register_forward_hook(lambda *_: None)
    with pytest.raises(TypeError, match=r"module\._modules\.encoder has hooks"):
        skae.save(ae, path)


def test_callbacks_are_left_out_with_a_warning(X, path):
    ae = AutoencoderTransformer(2, max_epochs=1, random_state=0, callbacks=[Callback()])
    with pytest.warns(UserWarning, match="callbacks are code and are not saved"):
        skae.save(ae.fit(X), path)
    assert skae.load(path).callbacks is None


@pytest.mark.parametrize("estimator", [nn.Linear(1, 1), 3, None])
def test_only_autoencoders_are_saved(estimator, path):
    with pytest.raises(TypeError, match="estimator must be an AutoencoderTransformer"):
        skae.save(estimator, path)


def test_only_fitted_ones_are_saved(path):
    with pytest.raises(NotFittedError):
        skae.save(AutoencoderTransformer(), path)
    assert not path.exists()


# Files that are not as they should be


def test_a_missing_file_is_an_error_of_the_system(path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        skae.load(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_truncated_files_are_refused(share, fitted, path):
    skae.save(fitted, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"model\.safetensors' is not a whole file"):
        skae.load(path)


def test_every_altered_byte_is_noticed(fitted, path):
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
def test_foreign_files_are_refused(content, path):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a whole file of skae"):
        skae.load(path)


def test_other_files_of_safetensors_are_refused(path):
    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"was not written by skae\.save"):
        skae.load(path)


def rewritten(path, change):
    """The file with another description, and a digest that suits it."""
    with safe_open(path, framework="pt") as file:
        _, text = file.metadata()[persistence.ENTRY].split("\n")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    description = json.loads(text)
    change(description)
    text = json.dumps(description)
    digest = persistence._digest(text, tensors)
    save_file(tensors, path, {persistence.ENTRY: f"{digest}\n{text}"})


def test_a_newer_format_gives_a_warning(X, fitted, path):
    skae.save(fitted, path)
    rewritten(path, lambda d: d.update(format=persistence.FORMAT + 1))
    with pytest.warns(UserWarning, match="in a format that this version does not know"):
        again = skae.load(path)
    assert_same_predictions(fitted, again, X)


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "builtins:eval",
        "torch.serialization:load",
        "skae.persistence:save",
        "torch.nn.modules.linear:torch.load",
        "sklearn.linear_model:LogisticRegression",
    ],
)
def test_no_other_code_is_reached_from_a_file(name, fitted, path):
    skae.save(fitted, path)
    rewritten(path, lambda d: d["state"].update(network={"named": name}))
    with pytest.raises(TypeError, match="which is not trusted"):
        skae.load(path)


@pytest.mark.parametrize("kind", ["tuple", "pickle", "object", "net"])
def test_a_description_that_makes_no_sense_is_refused(kind, fitted, path):
    skae.save(fitted, path)
    rewritten(path, lambda d: d["state"].update(network={kind: 3}))
    with pytest.raises(ValueError, match="describes no estimator"):
        skae.load(path)


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"format": "1"}', "[" * 100_000], ids=range(5)
)
def test_what_is_no_description_is_refused(text, path):
    metadata = {persistence.ENTRY: f"{persistence._digest(text, {})}\n{text}"}
    save_file({}, path, metadata)
    with pytest.raises(ValueError, match="describes no estimator"):
        skae.load(path)


def test_weights_that_do_not_fit_are_refused(fitted, path):
    skae.save(fitted, path)
    rewritten(path, lambda d: d["state"].update(n_features_in_=9))
    with pytest.raises(ValueError, match="describes no estimator"):
        skae.load(path)


# Writing


def test_an_interrupted_save_leaves_the_old_file(monkeypatch, X, fitted, path):
    skae.save(fitted, path)
    before = path.read_bytes()

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        skae.save(AutoencoderTransformer(1, max_epochs=1).fit(X), path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_folder_that_is_not_there_is_named(fitted, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.model'$"):
        skae.save(fitted, tmp_path / "nowhere" / "model")


def test_equal_estimators_give_equal_files(fitted, path, tmp_path):
    skae.save(fitted, path)
    skae.save(fitted, tmp_path / "other")
    assert path.read_bytes() == (tmp_path / "other").read_bytes()


def test_pickle_is_not_even_imported_for_loading(fitted, path):
    """Nothing is unpickled: the functions that would do it are gone."""
    skae.save(fitted, path)
    code = f"""
        import pickle, torch, skae
        def refuse(*args, **kwargs): raise AssertionError("unpickled")
        pickle.load = pickle.loads = pickle.Unpickler = torch.load = refuse
        print(skae.load({str(path)!r}).n_features_in_)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "6\n"
