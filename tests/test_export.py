"""Files of ONNX: they give what the estimators give."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from torch import nn
from variants import decoder_factory, encoder_factory

import skae
from skae import AutoencoderOutlierDetector, AutoencoderTransformer, export
from skae.bottlenecks import Gaussian, Quantized
from skae.losses import Huber, Loss, Mixed
from skae.networks import MLP, Conv, Custom

METHODS = [name for names in export.OUTPUTS.values() for name in names]


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).uniform(size=(40, 6))


@pytest.fixture(scope="module")
def fitted(X):
    return small(transform_max_iter=0).fit(X)


@pytest.fixture(scope="module")
def detector(X):
    return small(AutoencoderOutlierDetector).fit(X)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


def small(kind=AutoencoderTransformer, **settings):
    """An estimator that is quickly fitted and, its epochs few, not yet converged."""
    if not isinstance(settings.get("network"), MLP | Conv | Custom):
        settings = {"hidden_layer_sizes": (8,), **settings}
    return kind(max_epochs=2, early_stopping=False, random_state=0).set_params(
        **settings
    )


def run(content, X, names=None):
    """What onnxruntime makes of rows, by the names of the outputs."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = names or [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"X": X}), strict=True))


def assert_agrees(estimator, X, methods=None):
    """One graph with all outputs, on whole rows, with missing entries, and alone."""
    methods = [name for name in methods or METHODS if hasattr(estimator, name)]
    content = export.graph_of(estimator, methods, "float64").SerializeToString()
    with_missing = X.copy()
    with_missing[::3, 1] = with_missing[0] = np.nan
    for rows in (X, with_missing, X[:1], X[:7]):
        found = run(content, rows)
        for name in methods:
            expected = getattr(estimator, name)(rows)
            assert found[name].dtype == expected.dtype
            assert_allclose(found[name], expected, rtol=1e-7, atol=1e-6)
    for name, values in run(content, X[:0]).items():
        assert values.shape == (0, *getattr(estimator, name)(X).shape[1:])


CONV_2D = {"network": Conv((2, 4)), "input_shape": (2, 3)}
CUSTOM = {"network": Custom(encoder_factory, decoder_factory)}


@pytest.mark.parametrize("bottleneck", ["deterministic", "gaussian", "quantized"])
@pytest.mark.parametrize(
    "network", [{}, CONV_2D, CUSTOM], ids=["mlp", "conv", "custom"]
)
def test_every_network_with_every_bottleneck_agrees(network, bottleneck, X):
    settings = {"bottleneck": bottleneck, "transform_max_iter": 0, **network}
    if bottleneck != "deterministic":
        settings["transform_max_iter"] = "auto"
    assert_agrees(small(**settings).fit(X), X)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "absolute_error", "scale": None, "init": "random"},
        {"loss": "binary_cross_entropy", "penalty": "l1"},
        {"loss": Mixed(binary=[0, 4])},
        {"loss": Huber(delta=0.5), "scale": "feature", "hidden_layer_sizes": ()},
        {"bottleneck": Gaussian(score="elbo"), "penalty": "kl", "loss": "log_error"},
        {"bottleneck": Quantized(8, 1, shared=True), "network": "conv"},
        {
            "network": Conv((2,), code="feature_map"),
            "n_components": "auto",
            "transform_max_iter": 0,
        },
    ],
    ids=repr,
)
def test_settings_agree(settings, X):
    assert_agrees(small(**settings).fit(X), X, ["transform", "score_samples"])


@pytest.mark.parametrize(
    "settings",
    [
        {"n_components": 3},
        {"network": MLP((8,), activation="softplus"), "init": "random"},
    ],
    ids=repr,
)
def test_refined_codes_agree(settings, X):
    ae = small(**{"max_epochs": 20, **settings}).fit(X)
    raw = small(**{"max_epochs": 20, **settings, "transform_max_iter": 0}).fit(X)
    assert np.abs(ae.transform(X) - raw.transform(X)).max() > 1e-3
    assert_agrees(ae, X, ["transform"])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"n_estimators": 1, "error": "loss", "contamination": 0.1},
        {"n_estimators": 2, "bottleneck": Gaussian(score="elbo")},
        {"n_estimators": 2, "bottleneck": Quantized(4)},
    ],
    ids=repr,
)
def test_detectors_agree(settings, X):
    X = np.vstack([X, 5 + X[:2]])
    detector = small(AutoencoderOutlierDetector, **settings).fit(X)
    assert set(detector.predict(X)) == {-1, 1}
    assert_agrees(detector, X)


class OwnLoss(Loss):
    def elementwise(self, X, X_hat):
        return (X - X_hat).atan().abs()


def layers(n_features, n_components):
    """Layers of which ONNX or onnxruntime lacks some in float64."""
    return nn.Sequential(
        nn.Unflatten(1, (2, -1)),
        nn.Conv1d(2, 4, 3, padding=2, dilation=2, groups=2, bias=False),
        nn.GELU("tanh"),
        nn.ConvTranspose1d(4, 4, 3, stride=2, groups=2, output_padding=1),
        nn.AvgPool1d(2),
        *(nn.ELU(), nn.LeakyReLU(), nn.SELU(), nn.SiLU(), nn.Softplus()),
        *(nn.Flatten(), nn.LazyLinear(n_components), nn.LayerNorm(n_components)),
    )


class Recurrent(nn.Module):
    """From codes to rows, one entry after another."""

    def __init__(self, n_features, n_components):
        super().__init__()
        self.layer = nn.GRU(n_components, 1, batch_first=True)
        self.n_features = n_features

    def forward(self, Z):
        return self.layer(Z[:, None].expand(-1, self.n_features, -1))[0][:, :, 0]


def test_own_modules_and_losses_agree(X):
    network = Custom(layers, Recurrent)
    ae = small(network=network, loss=OwnLoss()).fit(X)
    methods = ["transform", "score_samples"]
    model = export.graph_of(ae, methods, "float64")
    # Without rows, onnxruntime would abort in the recurrent layer.
    for name, found in run(model.SerializeToString(), X).items():
        assert_allclose(found, getattr(ae, name)(X), atol=1e-6)


def made_by(module, *values):
    """What onnxruntime makes of the translation of a module."""
    model = export._traced(module.double(), values)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [given.name for given in session.get_inputs()]
    feed = dict(zip(names, (v.numpy() for v in values), strict=True))
    return session.run(None, feed)[0]


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


def test_the_error_function_is_exact():
    x = torch.linspace(-8, 8, 10_007, dtype=torch.float64)
    x[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    assert_allclose(
        made_by(Function(lambda x: torch.erf(x)), x), torch.erf(x), atol=1e-13
    )


def test_linear_systems_are_solved():
    J = torch.randn(7, 9, 5, dtype=torch.float64, generator=torch.Generator())
    J[:, :, 0] *= 1e5
    A, b = J.mT @ J, torch.ones(7, 5, 1, dtype=torch.float64)
    found = made_by(Function(lambda A, b: torch.linalg.solve_ex(A, b)[0]), A, b)
    assert_allclose(found, torch.linalg.solve(A, b), rtol=1e-9)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(
            4, 6, (3, 2), stride=(2, 1), padding=(2, 0), dilation=(1, 2), groups=2
        ),
        nn.ConvTranspose2d(4, 6, 3, (3, 2), (1, 0), (2, 1), groups=2, dilation=(1, 2)),
        nn.Conv3d(4, 2, 2),
    ],
    ids=repr,
)
@torch.no_grad()
def test_convolutions_are_those_of_pytorch(layer):
    sizes = (5, 6, 4)[: layer.weight.ndim - 2]
    H = torch.randn(3, 4, *sizes, dtype=torch.float64, generator=torch.Generator())
    assert_allclose(made_by(layer, H), layer(H), atol=1e-12)


# Files


def test_rows_of_float32_give_codes_of_float32(X, fitted, path):
    skae.export_onnx(fitted, path)
    rows = X.astype(np.float32)
    found = run(path, rows)["transform"]
    assert found.dtype == np.float32
    assert_allclose(found, fitted.transform(rows), atol=1e-5)


@pytest.mark.parametrize(
    ("output", "names"),
    [
        ("reconstruction", ["reconstruct"]),
        ("scores", ["score_samples", "decision_function", "predict"]),
    ],
)
def test_outputs_are_named_as_methods(output, names, detector, path):
    skae.export_onnx(detector, path, output)
    session = onnxruntime.InferenceSession(path)
    assert [given.name for given in session.get_inputs()] == ["X"]
    assert [made.name for made in session.get_outputs()] == names
    assert session.get_inputs()[0].shape == ["n_samples", 6]
    assert session.get_inputs()[0].type == "tensor(float)"


def test_metadata_tell_version_class_and_features(tmp_path):
    X = load_iris(as_frame=True).data
    ae = small(transform_max_iter=0).fit(X)
    path = tmp_path / "iris.onnx"
    skae.export_onnx(ae, path)
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert metadata["skae"] == skae.__version__
    assert metadata["estimator"] == "AutoencoderTransformer"
    assert json.loads(metadata["feature_names"]) == list(X.columns)
    assert os.listdir(tmp_path) == ["iris.onnx"]  # no weights beside it


def test_exporting_changes_and_prints_nothing(X, path, capfd):
    ae = small(transform_max_iter=0).fit(X)
    before = clone(ae).fit(X)
    state = torch.get_rng_state()
    skae.export_onnx(ae, path)
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), state)
    assert type(ae.module_) is type(before.module_)
    assert type(ae.module_.scaler) is type(before.module_.scaler)
    assert_array_equal(ae.transform(X), before.transform(X))
    ae.partial_fit(X)


def test_an_interrupted_export_leaves_the_old_file(monkeypatch, fitted, path):
    path.write_bytes(b"old")

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        skae.export_onnx(fitted, path, "reconstruction")
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


# What is refused


def test_a_detector_has_no_codes(detector, path):
    match = r"output must be one of \['reconstruction', 'scores'\] .*got 'codes'"
    with pytest.raises(ValueError, match=match):
        skae.export_onnx(detector, path)


@pytest.mark.parametrize("output", ["code", "transform", None])
def test_unknown_outputs_are_refused(output, fitted, path):
    with pytest.raises(ValueError, match="output must be one of"):
        skae.export_onnx(fitted, path, output)


def test_unknown_types_are_refused(fitted, path):
    with pytest.raises(ValueError, match="dtype must be 'float32' or 'float64'"):
        skae.export_onnx(fitted, path, dtype="float16")


def test_only_fitted_autoencoders_are_written(path):
    with pytest.raises(TypeError, match="estimator must be an AutoencoderTransformer"):
        skae.export_onnx(nn.Linear(1, 1), path)
    with pytest.raises(NotFittedError):
        skae.export_onnx(AutoencoderTransformer(), path)
    assert not path.exists()


class Branching(nn.Linear):
    """Does what depends on the numbers, which no graph can."""

    def forward(self, X):
        return super().forward(X) if X.sum() > 0 else super().forward(-X)


class Unknown(nn.Linear):
    """Holds an operator that ONNX does not have."""

    def forward(self, X):
        return torch.special.airy_ai(super().forward(X))


@pytest.mark.parametrize(
    ("kind", "cause"), [(Branching, "data-dependent"), (Unknown, "airy_ai")]
)
def test_what_onnx_cannot_express_is_an_error(kind, cause, X, path, capfd):
    network = Custom(lambda n, k: kind(n, k).requires_grad_(False), decoder_factory)
    ae = small(network=network).fit(X)
    with pytest.raises(ValueError, match=rf"cannot write in ONNX.*{cause}"):
        skae.export_onnx(ae, path)
    assert not path.exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "skl2onnx"])
def test_a_missing_package_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    match = rf'{name} is needed .*pip install "skae\[onnx\]"'
    with pytest.raises(ImportError, match=match):
        export.register_skl2onnx()
    if name != "skl2onnx":
        with pytest.raises(ImportError, match=match):
            skae.export_onnx(None, "")


def test_onnx_is_imported_only_where_it_is_needed():
    code = """
        import sys, skae
        print([name for name in sys.modules if "onnx" in name.partition(".")[0]])
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# Pipelines


def as_graph(pipeline, X, **how):
    skl2onnx = pytest.importorskip("skl2onnx")
    export.register_skl2onnx()
    return skl2onnx.to_onnx(pipeline, X[:1], **how).SerializeToString()


def test_skl2onnx_writes_a_pipeline_with_a_transformer(X):
    ae = small(n_components=1, network=MLP((4,)))
    pipeline = make_pipeline(StandardScaler(), ae, MinMaxScaler()).fit(X)
    rows = X.astype(np.float32)
    found = run(as_graph(pipeline, rows), rows)["variable"]
    assert found.dtype == np.float32
    assert_allclose(found, pipeline.transform(rows.astype(float)), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_skl2onnx_writes_a_detector_as_an_isolation_forest(dtype, X):
    X = np.vstack([X, 5 + X[:2]])
    pipeline = make_pipeline(StandardScaler(), small(AutoencoderOutlierDetector)).fit(X)
    rows = X.astype(dtype)
    found = run(as_graph(pipeline, rows), rows)
    assert_array_equal(found["label"][:, 0], pipeline.predict(X))
    scores = pipeline.decision_function(X)
    assert_allclose(found["scores"][:, 0], scores, atol=1e-5)
    if dtype == "float32":  # the only type that the forest's converter has
        forest = IsolationForest(n_estimators=2).fit(rows)
        like = run(as_graph(forest, rows, target_opset={"": 18, "ai.onnx.ml": 3}), rows)
        assert {k: (v.dtype, v.shape) for k, v in found.items()} == {
            k: (v.dtype, v.shape) for k, v in like.items()
        }


def test_two_autoencoders_go_into_one_pipeline(X):
    first = small(n_components=3, transform_max_iter=0)
    second = small(n_components=1, transform_max_iter=0)
    pipeline = make_pipeline(first, second).fit(X)
    found = run(as_graph(pipeline, X), X)["variable"]
    assert_allclose(found, pipeline.transform(X), atol=1e-6)


def test_a_low_opset_is_refused(X, fitted):
    with pytest.raises(ValueError, match="target_opset=15 is too low"):
        as_graph(fitted, X, target_opset=15)
