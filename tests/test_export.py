"""Tests of skae.export: ONNX graphs give the results of the estimators."""

import json
import os
import subprocess
import sys
import textwrap
from functools import partial

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
from torch.nn import functional
from variants import decoder_factory, encoder_factory

import skae
from skae import AutoencoderOutlierDetector, AutoencoderTransformer, export
from skae._row_scores import row_error
from skae.bottlenecks import Gaussian, Quantized
from skae.losses import LOSSES, Huber, Loss, Mixed
from skae.networks import MLP, Conv, Custom
from skae.onnx._graph import build_model
from skae.onnx._modules import TraceableAutoencoder
from skae.onnx._trace import trace

METHODS = [name for names in export.METHODS.values() for name in names]


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).uniform(size=(40, 6))


@pytest.fixture(scope="module")
def many_columns():
    X = np.random.default_rng(0).uniform(size=(30, 42))
    return np.vstack([X, 5 + X[:2]])


@pytest.fixture(scope="module")
def fitted(X):
    return small(transform_max_iter=0).fit(X)


# A detector of one network, without distances to training rows: half of the graph.
PLAIN = {"n_estimators": 1, "n_neighbors": 0}


@pytest.fixture(scope="module")
def detector(X):
    return small(AutoencoderOutlierDetector, **PLAIN).fit(X)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


def small(kind=AutoencoderTransformer, **settings):
    """A small estimator that is fitted quickly."""
    if isinstance(settings.get("network", "mlp"), str):
        settings = {"hidden_layer_sizes": (8,), **settings}
    return kind(max_epochs=2, early_stopping=False, random_state=0).set_params(
        **settings
    )


@pytest.fixture(scope="module")
def scores_path(detector, tmp_path_factory):
    """A file with the scores of `detector`, in float32."""
    path = tmp_path_factory.mktemp("scores") / "model.onnx"
    skae.export_onnx(detector, path, "scores")
    return path


def run(content, X, names=None):
    """The outputs of onnxruntime for rows X, by name."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = names or [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"X": X}), strict=True))


def assert_agrees(estimator, X, methods=None):
    """Compare a graph on complete rows, with missing entries, and on a single row."""
    methods = [name for name in methods or METHODS if hasattr(estimator, name)]
    content = build_model(estimator, methods, "float64").SerializeToString()
    with_missing = X.copy()
    with_missing[::3, 1] = with_missing[0] = np.nan
    for rows in (X, with_missing, X[:1], X[:7]):
        result = run(content, rows)
        for name in methods:
            expected = getattr(estimator, name)(rows)
            assert result[name].dtype == expected.dtype
            assert_allclose(result[name], expected, rtol=1e-7, atol=1e-6)
    for name, values in run(content, X[:0]).items():
        assert values.shape == (0, *getattr(estimator, name)(X).shape[1:])


CONV_2D = {"network": Conv((2, 4)), "input_shape": (2, 3)}
CUSTOM = {"network": Custom(encoder_factory, decoder_factory)}


@pytest.mark.parametrize(
    ("network", "bottleneck"),
    [
        pytest.param(CUSTOM, "deterministic", id="custom-deterministic"),
        *(
            pytest.param(
                network, bottleneck, marks=pytest.mark.slow, id=f"{name}-{bottleneck}"
            )
            for name, network in {"mlp": {}, "conv": CONV_2D, "custom": CUSTOM}.items()
            for bottleneck in ("deterministic", "gaussian", "quantized", "topk")
            if f"{name}-{bottleneck}" != "custom-deterministic"
        ),
    ],
)
def test_networks_and_bottlenecks_agree(network, bottleneck, X):
    settings = {"bottleneck": bottleneck, "transform_max_iter": 0, **network}
    if bottleneck != "deterministic":
        settings["transform_max_iter"] = "auto"
    assert_agrees(small(**settings).fit(X), X)


def test_whitened_codes_agree(X):
    ae = small(whiten=True, transform_max_iter=0).fit(X)
    assert_agrees(ae, X, ["transform", "reconstruct"])


MIXED_LOSS = {"loss": Mixed(binary=[0, 4]), "init": "random"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({}, "float64"),
        (MIXED_LOSS, "float32"),
        ({}, "float32"),
        (MIXED_LOSS, "float64"),
    ],
    ids=str,
)
def test_empty_rows_and_extreme_values_agree(settings, dtype, X):
    X = X.astype(dtype)
    X[:, [0, 4]] = X[:, [0, 4]] > 0.5
    detector = small(AutoencoderOutlierDetector, **PLAIN, **settings).fit(X)
    autoencoder = small(transform_max_iter=2, **settings).fit(X)
    rows = X[:6].copy()
    rows[0] = np.nan
    rows[1, 1] = -3.4e38
    rows[2] = np.finfo(dtype).max
    rows[3, 4] = 7
    for estimator, methods in (
        (detector, ["score_samples", "decision_function", "predict"]),
        (autoencoder, ["transform", "reconstruct", "score_samples"]),
    ):
        content = build_model(estimator, methods, dtype).SerializeToString()
        result = run(content, rows)
        for name in methods:
            expected = getattr(estimator, name)(rows)
            assert np.isfinite(expected).all()
            assert result[name].dtype == expected.dtype
            # Where an operator has float32 only, an error may overflow to infinity.
            assert_allclose(
                result[name].clip(min=-1e15), expected.clip(min=-1e15), 1e-5, 1e-5
            )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [AutoencoderTransformer, AutoencoderOutlierDetector])
@pytest.mark.parametrize("error", ["loss", "log", "auto"])
@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.slow
def test_all_losses_and_errors_agree(loss, error, kind, dtype, saturating):
    assert_agrees_with_saturated_outputs(loss, error, kind, dtype, saturating)


@pytest.mark.parametrize("loss", ["mixed", "binary_cross_entropy"])
def test_cross_entropies_agree(loss, saturating):
    detector = partial(AutoencoderOutlierDetector, n_neighbors=0)
    assert_agrees_with_saturated_outputs(loss, "loss", detector, "float32", saturating)


@pytest.fixture(scope="module")
def saturating():
    """Binary columns that are determined by two components, and entries in [0, 1]."""
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(200, 2))
    binary, entries = (Z @ rng.normal(size=(2, 4)) for _ in range(2))
    return np.hstack([binary > 0, entries.clip(0, 1)])


def assert_agrees_with_saturated_outputs(loss, error, kind, dtype, X):
    """Compare a graph and an estimator whose outputs saturate, and on unusual rows."""
    X = X.copy()
    if loss != "binary_cross_entropy":
        X[:, 4:] = 300 + 1e3 * X[:, 4:]
    estimator = kind(2, loss=loss, max_epochs=60, n_threads=1, random_state=0)
    if isinstance(estimator, AutoencoderOutlierDetector):
        estimator.set_params(error=error, n_estimators=1)
    elif error != "loss":
        pytest.skip("A transformer has no parameter `error`.")
    estimator.fit(X)
    missing = np.where(np.random.default_rng(0).random(X.shape) < 0.3, np.nan, X)
    unusual = [1 - X, 3 * X - 1, 1e6 * X, -1e30 * X, np.full_like(X[:1], np.nan)]
    rows = np.vstack([X, missing, *unusual]).astype(dtype)
    methods = [name for name in METHODS if hasattr(estimator, name)]
    result = run(build_model(estimator, methods, dtype).SerializeToString(), rows)
    accuracy = 1e-5 if dtype == "float32" else 1e-7
    for name in methods:
        expected = getattr(estimator, name)(rows)
        size = np.abs(expected).max(axis=-1, keepdims=True)
        assert_allclose(result[name] / size, expected / size, rtol=0, atol=accuracy)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": Mixed(binary=[0, 4]), "transform_max_iter": 0},
        *(
            pytest.param(settings, marks=pytest.mark.slow)
            for settings in (
                {"loss": Mixed(binary=[0, 4])},
                {"bottleneck": Quantized(8, 1, shared=True), "network": "conv"},
                {"loss": "absolute_error", "scale": None, "init": "random"},
                {"loss": "binary_cross_entropy", "penalty": "l1"},
                {
                    "loss": Huber(delta=0.5),
                    "scale": "feature",
                    "hidden_layer_sizes": (),
                },
                {
                    "bottleneck": Gaussian(score="elbo"),
                    "penalty": "kl",
                    "loss": "log_error",
                },
                {
                    "network": Conv((2,), code="feature_map"),
                    "n_components": "auto",
                    "transform_max_iter": 0,
                },
            )
        ),
    ],
    ids=repr,
)
def test_settings_agree(settings, X):
    assert_agrees(small(**settings).fit(X), X, ["transform", "score_samples"])


@pytest.mark.parametrize(
    "settings",
    [
        {"n_components": 3},
        pytest.param(
            {"network": MLP((8,), activation="softplus"), "init": "random"},
            marks=pytest.mark.slow,
        ),
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
        {"bottleneck": "gaussian"},
        {"network": "conv"},
    ],
    ids=repr,
)
@pytest.mark.slow
def test_parts_of_ordered_codes_agree(settings, X):
    ae = small(n_components=2, ordered=True, **settings).fit(X)
    assert_agrees(ae.truncate(1), X, ["transform", "score_samples"])


@pytest.mark.parametrize(
    "settings",
    [
        {"n_estimators": 1, "error": "loss", "contamination": 0.1},
        pytest.param({}, marks=pytest.mark.slow),
        *(
            pytest.param(
                {"n_estimators": 2, "bottleneck": bottleneck}, marks=pytest.mark.slow
            )
            for bottleneck in (Gaussian(score="elbo"), Quantized(4))
        ),
    ],
    ids=repr,
)
def test_detectors_agree(settings, X):
    X = np.vstack([X, 5 + X[:2]])
    detector = small(AutoencoderOutlierDetector, **settings).fit(X)
    assert set(detector.predict(X)) == {-1, 1}
    assert_agrees(detector, X)


ONE_UNIT = {"scale": "global", "n_estimators": 1, "contamination": 0.1}


@pytest.mark.slow
def test_detectors_of_rows_in_one_unit_agree(many_columns):
    detector = small(AutoencoderOutlierDetector, **ONE_UNIT).fit(many_columns)
    assert_agrees(detector, many_columns)


def test_traced_modules_of_rows_in_one_unit_have_the_same_errors(many_columns):
    detector = small(AutoencoderOutlierDetector, **ONE_UNIT).fit(many_columns)
    module = TraceableAutoencoder.from_estimator(detector)
    assert module.neighbors.n_around > 0
    error = row_error(module, torch.from_numpy(many_columns)).detach()
    assert_allclose(-error, detector.score_samples(many_columns))


class OwnLoss(Loss):
    def elementwise(self, X, X_hat):
        return (X - X_hat).atan().abs()


def layers(n_features, n_components):
    """Layers, some of which are not available in float64 in ONNX or onnxruntime."""
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
    """A recurrent decoder, with one step for each feature."""

    def __init__(self, n_features, n_components):
        super().__init__()
        self.layer = nn.GRU(n_components, 1, batch_first=True)
        self.n_features = n_features

    def forward(self, Z):
        return self.layer(Z[:, None].expand(-1, self.n_features, -1))[0][:, :, 0]


@pytest.mark.slow
def test_custom_modules_and_losses_agree(X):
    network = Custom(layers, Recurrent)
    ae = small(network=network, loss=OwnLoss()).fit(X)
    methods = ["transform", "score_samples"]
    model = build_model(ae, methods, "float64")
    # `assert_agrees` also runs zero rows, where onnxruntime aborts in recurrent layers.
    for name, output in run(model.SerializeToString(), X).items():
        assert_allclose(output, getattr(ae, name)(X), atol=1e-6)


def run_module(module, *values):
    """The output of onnxruntime for a traced module."""
    model = trace(module.double(), values)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [node.name for node in session.get_inputs()]
    feed = dict(zip(names, (v.numpy() for v in values), strict=True))
    return session.run(None, feed)[0]


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


def test_error_function_is_accurate():
    x = torch.linspace(-8, 8, 10_007, dtype=torch.float64)
    x[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    assert_allclose(
        run_module(Function(lambda x: torch.erf(x)), x), torch.erf(x), atol=1e-13
    )


@pytest.mark.parametrize(
    "function",
    [
        functional.logsigmoid,
        functional.softplus,
        lambda x: torch.logaddexp(x, -x),
        lambda x: torch.logaddexp(x, x),
        lambda x: functional.log_softmax(
            torch.stack([x, -x / 2]).clamp(-1e30, 1e30), 0
        ),
        lambda x: functional.binary_cross_entropy_with_logits(
            x, torch.full_like(x, 0.3), reduction="none"
        ),
    ],
    ids=["logsigmoid", "softplus", "logaddexp", "equal", "log_softmax", "entropy"],
)
def test_logarithms_of_sums_of_exponentials_are_accurate(function):
    sizes = [0, 1e-20, 1e-9, 0.3, 20, 36, 40, 800, 1e5, 1e30, np.inf]
    x = torch.tensor([*sizes, *(-v for v in sizes), np.nan], dtype=torch.float64)
    result = run_module(Function(lambda x: function(x)), x)
    assert_allclose(result, function(x), rtol=1e-14, atol=1e-15)


def test_loading_a_graph_prints_nothing(scores_path, capfd):
    onnxruntime.InferenceSession(scores_path)
    assert capfd.readouterr() == ("", "")


def test_linear_systems_are_solved():
    J = torch.randn(7, 9, 5, dtype=torch.float64, generator=torch.Generator())
    J[:, :, 0] *= 1e5
    A, b = J.mT @ J, torch.ones(7, 5, 1, dtype=torch.float64)
    result = run_module(Function(lambda A, b: torch.linalg.solve_ex(A, b)[0]), A, b)
    assert_allclose(result, torch.linalg.solve(A, b), rtol=1e-9)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(
            4, 6, (3, 2), stride=(2, 1), padding=(2, 0), dilation=(1, 2), groups=2
        ),
        nn.ConvTranspose2d(4, 6, 3, (3, 2), (1, 0), (2, 1), groups=2, dilation=(1, 2)),
        pytest.param(nn.Conv3d(4, 2, 2), marks=pytest.mark.slow),
    ],
    ids=repr,
)
@torch.no_grad()
def test_convolutions_agree(layer):
    sizes = (5, 6, 4)[: layer.weight.ndim - 2]
    H = torch.randn(3, 4, *sizes, dtype=torch.float64, generator=torch.Generator())
    assert_allclose(run_module(layer, H), layer(H), atol=1e-12)


# Files


def test_float32_rows_give_float32_codes(X, fitted, path):
    skae.export_onnx(fitted, path)
    rows = X.astype(np.float32)
    result = run(path, rows)["transform"]
    assert result.dtype == np.float32
    assert_allclose(result, fitted.transform(rows), atol=1e-5)


@pytest.mark.parametrize(
    ("output", "names"),
    [
        ("reconstruction", ["reconstruct"]),
        ("scores", ["score_samples", "decision_function", "predict"]),
    ],
)
def test_outputs_have_the_names_of_methods(output, names, detector, scores_path, path):
    if output == "scores":
        path = scores_path
    else:
        skae.export_onnx(detector, path, output)
    session = onnxruntime.InferenceSession(path)
    assert [node.name for node in session.get_inputs()] == ["X"]
    assert [node.name for node in session.get_outputs()] == names
    assert session.get_inputs()[0].shape == ["n_samples", 6]
    assert session.get_inputs()[0].type == "tensor(float)"


def test_metadata_hold_version_class_and_feature_names(tmp_path):
    X = load_iris(as_frame=True).data
    ae = small(transform_max_iter=0).fit(X)
    path = tmp_path / "iris.onnx"
    skae.export_onnx(ae, path)
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert metadata["skae"] == skae.__version__
    assert metadata["estimator"] == "AutoencoderTransformer"
    assert json.loads(metadata["feature_names"]) == list(X.columns)
    assert os.listdir(tmp_path) == ["iris.onnx"]  # no separate file of weights


def test_export_has_no_side_effects_and_no_output(X, path, capfd):
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


def test_interrupted_export_keeps_the_existing_file(monkeypatch, fitted, path):
    path.write_bytes(b"old")

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        skae.export_onnx(fitted, path, "reconstruction")
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


# Errors


def test_codes_of_a_detector_are_rejected(detector, path):
    match = r"output must be one of \['reconstruction', 'scores'\] .*got 'codes'"
    with pytest.raises(ValueError, match=match):
        skae.export_onnx(detector, path)


@pytest.mark.parametrize("output", ["code", "transform", None])
def test_unknown_outputs_are_rejected(output, fitted, path):
    with pytest.raises(ValueError, match="output must be one of"):
        skae.export_onnx(fitted, path, output)


def test_unknown_dtypes_are_rejected(fitted, path):
    with pytest.raises(ValueError, match="dtype must be 'float32' or 'float64'"):
        skae.export_onnx(fitted, path, dtype="float16")


def test_other_objects_and_unfitted_estimators_are_rejected(path):
    with pytest.raises(TypeError, match="estimator must be an AutoencoderTransformer"):
        skae.export_onnx(nn.Linear(1, 1), path)
    with pytest.raises(NotFittedError):
        skae.export_onnx(AutoencoderTransformer(), path)
    assert not path.exists()


class Branching(nn.Linear):
    """A module with a data-dependent branch, which cannot be traced."""

    def forward(self, X):
        return super().forward(X) if X.sum() > 0 else super().forward(-X)


class Unknown(nn.Linear):
    """A module with an operator that ONNX does not have."""

    def forward(self, X):
        return torch.special.airy_ai(super().forward(X))


@pytest.mark.parametrize(
    ("kind", "cause"), [(Branching, "data-dependent"), (Unknown, "airy_ai")]
)
def test_modules_that_cannot_be_expressed_in_onnx_are_rejected(
    kind, cause, X, path, capfd
):
    network = Custom(lambda n, k: kind(n, k).requires_grad_(False), decoder_factory)
    ae = small(network=network).fit(X)
    with pytest.raises(ValueError, match=rf"cannot be expressed in ONNX.*{cause}"):
        skae.export_onnx(ae, path)
    assert not path.exists()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "skl2onnx"])
def test_import_error_names_the_missing_package(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    match = rf'{name} is needed to export to ONNX.*pip install "skae\[onnx\]"'
    with pytest.raises(ImportError, match=match):
        export.register_skl2onnx()
    if name != "skl2onnx":
        with pytest.raises(ImportError, match=match):
            skae.export_onnx(None, "")


def test_importing_skae_does_not_import_onnx():
    code = """
        import sys, skae
        print([name for name in sys.modules if "onnx" in name.partition(".")[0]])
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# Pipelines


def convert_pipeline(pipeline, X, **kwargs):
    skl2onnx = pytest.importorskip("skl2onnx")
    export.register_skl2onnx()
    return skl2onnx.to_onnx(pipeline, X[:1], **kwargs).SerializeToString()


@pytest.mark.parametrize("whiten", [pytest.param(False, marks=pytest.mark.slow), True])
def test_pipeline_with_a_transformer_is_converted(whiten, X):
    ae = small(n_components=1, network=MLP((4,)), whiten=whiten, transform_max_iter=0)
    pipeline = make_pipeline(StandardScaler(), ae, MinMaxScaler()).fit(X)
    rows = X.astype(np.float32)
    result = run(convert_pipeline(pipeline, rows), rows)["variable"]
    assert result.dtype == np.float32
    assert_allclose(result, pipeline.transform(rows.astype(float)), atol=1e-5)


@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)]
)
def test_pipeline_with_a_detector_has_the_outputs_of_an_isolation_forest(dtype, X):
    X = np.vstack([X, 5 + X[:2]])
    detector = small(AutoencoderOutlierDetector, **PLAIN)
    pipeline = make_pipeline(StandardScaler(), detector).fit(X)
    rows = X.astype(dtype)
    result = run(convert_pipeline(pipeline, rows), rows)
    assert_array_equal(result["label"][:, 0], pipeline.predict(X))
    scores = pipeline.decision_function(X)
    assert_allclose(result["scores"][:, 0], scores, atol=1e-5)
    if dtype == "float32":  # the only type that the forest's converter has
        forest = IsolationForest(n_estimators=2).fit(rows)
        like = run(
            convert_pipeline(forest, rows, target_opset={"": 18, "ai.onnx.ml": 3}), rows
        )
        assert {k: (v.dtype, v.shape) for k, v in result.items()} == {
            k: (v.dtype, v.shape) for k, v in like.items()
        }


@pytest.mark.slow
def test_pipeline_with_two_autoencoders_is_converted(X):
    first = small(n_components=3, transform_max_iter=0)
    second = small(n_components=1, transform_max_iter=0)
    pipeline = make_pipeline(first, second).fit(X)
    result = run(convert_pipeline(pipeline, X), X)["variable"]
    assert_allclose(result, pipeline.transform(X), atol=1e-6)


def test_low_target_opset_is_rejected(X, fitted):
    with pytest.raises(ValueError, match="target_opset=15 is too low"):
        convert_pipeline(fitted, X, target_opset=15)
