"""Settings of the caller neither change results nor are they changed."""

import copy
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import warnings
from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.exceptions import ConvergenceWarning
from torch import nn

import skae
from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae._compat import get_precision
from skae._processor import environment_restored, own_settings
from skae.networks import Custom

rng = np.random.default_rng(0)
t = rng.uniform(size=40)
X = np.column_stack([t, t**2, 1 - t, rng.uniform(size=40)])
# Numbers that underflow or overflow in a product, and a missing entry.
EXTREME = np.array([[1e-300, -1e300, 0.5, np.nan], [1e-45, 3e38, 5e-324, -1e200]])
with np.errstate(over="ignore", under="ignore"):
    TABLES = {
        "float64": X,
        "float32": X.astype(np.float32),
        "one row": X[:1],
        "extreme": EXTREME,
        "extreme in float32": np.clip(EXTREME, -3e38, 3e38).astype(np.float32),
    }

BACKENDS = ("generic", "cuda", "mkldnn")
OPERATIONS = ("all", "matmul", "conv", "rnn")


def make_encoder(n_features, n_components):
    """An encoder whose weights and noise come from PyTorch's global generator."""
    return nn.Sequential(
        nn.Linear(n_features, 5), nn.Dropout(0.1), nn.Linear(5, n_components)
    )


def make_decoder(n_features, n_components):
    return nn.Linear(n_components, n_features)


# Some operations on a GPU have no deterministic algorithm; `test_gpu` covers the rest.
BRIEF = {"max_epochs": 2, "batch_size": 16, "random_state": 0, "device": "cpu"}
MODELS = {
    "default": AutoencoderTransformer(2, early_stopping=True, **BRIEF),
    "quantized": AutoencoderTransformer(
        2,
        network="conv",
        bottleneck="quantized",
        corruption="swap",
        early_stopping=True,
        **BRIEF,
    ),
    "custom": AutoencoderTransformer(
        2,
        network=Custom(make_encoder, make_decoder),
        bottleneck="gaussian",
        early_stopping=False,
        **BRIEF,
    ),
    "detector": AutoencoderOutlierDetector(2, n_estimators=2, penalty="l1", **BRIEF),
}


FOREIGN = ("quantized", "custom")


@contextmanager
def set_and_reset(set_value, value, before):
    set_value(value)
    try:
        yield
    finally:
        set_value(before)


@contextmanager
def precision(backend, value):
    """The new interface for the precision of float32."""
    before = backend.fp32_precision
    backend.fp32_precision = value
    try:
        yield
    finally:
        backend.fp32_precision = before


@contextmanager
def warnings_as_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


SWITCHES = {
    "no_grad": torch.no_grad,
    "grad disabled": lambda: set_and_reset(torch.set_grad_enabled, False, True),
    "inference_mode": torch.inference_mode,
    "autocast bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", torch.float16),
    "default float64": lambda: set_and_reset(
        torch.set_default_dtype, torch.float64, torch.float32
    ),
    "default bfloat16": lambda: set_and_reset(
        torch.set_default_dtype, torch.bfloat16, torch.float32
    ),
    "device context": lambda: torch.device("meta"),
    "default device": lambda: set_and_reset(torch.set_default_device, "meta", None),
    "matmul precision high": lambda: set_and_reset(
        torch.set_float32_matmul_precision, "high", "highest"
    ),
    "matmul precision medium": lambda: set_and_reset(
        torch.set_float32_matmul_precision, "medium", "highest"
    ),
    "new cuda tf32": lambda: precision(torch.backends.cuda.matmul, "tf32"),
    "new mkldnn bf16": lambda: precision(torch.backends.mkldnn.matmul, "bf16"),
    "new mkldnn conv bf16": lambda: precision(torch.backends.mkldnn.conv, "bf16"),
    "new generic tf32": lambda: precision(torch.backends, "tf32"),
    "deterministic": lambda: set_and_reset(
        torch.use_deterministic_algorithms, True, False
    ),
    "two threads": lambda: set_and_reset(
        torch.set_num_threads, 2, torch.get_num_threads()
    ),
    "numpy raises": lambda: np.errstate(all="raise"),
    "warnings": warnings_as_errors,
    "denormals flushed": lambda: set_and_reset(torch.set_flush_denormal, True, False),
}


def state():
    """All settings that a switch, or the package, may change."""
    kinds = ("cpu", "cuda")
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": [torch.is_autocast_enabled(kind) for kind in kinds],
        "autocast type": [torch.get_autocast_dtype(kind) for kind in kinds],
        "type": torch.get_default_dtype(),
        "device": torch.get_default_device().type,
        "precision": [get_precision(a, b) for a in BACKENDS for b in OPERATIONS[:1]]
        + [get_precision(a, b) for a in BACKENDS[1:] for b in OPERATIONS[1:]],
        "cudnn": (
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
        ),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "numpy": np.geterr(),
        "denormals": 5e-324 == 0.0,  # flushed numbers equal zero
        "generator": torch.default_generator.get_state().numpy().tobytes(),
        "filters": list(warnings.filters),
    }


def each_result(model):
    """Yield the name and the result of every call, of all methods that there are."""
    model = pickle.loads(pickle.dumps(model))  # not fitted
    yield "fit", model.fit(X).loss_curve_
    yield "fit, held out", model.validation_loss_curve_
    yield "mean", model.mean_
    yield "partial_fit", model.partial_fit(X).loss_curve_
    if hasattr(model, "offset_"):
        yield "offset", model.offset_
    for name in (
        "transform",
        "reconstruct",
        "score_samples",
        "decision_function",
        "predict",
        "feature_contributions",
        "quantize",
        "score",
    ):
        if hasattr(model, name):
            for kind, table in TABLES.items():
                yield f"{name}, {kind}", getattr(model, name)(table)
    if hasattr(model, "inverse_transform"):
        yield "inverse_transform", model.inverse_transform(np.eye(2))
        yield "inverse_transform", model.inverse_transform(np.eye(2, dtype="f"))
    if hasattr(model, "sample"):
        yield "sample", model.sample(3, random_state=0)
    if hasattr(model, "dequantize"):
        yield "dequantize", model.dequantize(model.quantize(X))
    loaded = pickle.loads(pickle.dumps(model))
    yield "copied", copy.deepcopy(model).partial_fit(X).loss_curve_
    yield "unpickled", loaded.score_samples(X)
    yield "trained on", loaded.partial_fit(X).loss_curve_


@pytest.fixture(scope="module")
def expected():
    """Function that returns the results of a model under PyTorch's defaults."""
    return cache(lambda name: list(each_result(MODELS[name])))


def assert_same_results(found, expected):
    assert len(found) == len(expected)
    for (name, value), (_, other) in zip(found, expected, strict=True):
        value, other = np.asarray(value), np.asarray(other)
        assert value.dtype == other.dtype, name
        assert_array_equal(value, other, err_msg=name)


# Settings that reach modules of users, bottlenecks and noise.
DEEP = ("grad disabled", "inference_mode", "default float64", "default device")


@pytest.mark.parametrize(
    ("switch", "model"),
    [
        pytest.param(
            switch,
            model,
            marks=[pytest.mark.slow] if model in FOREIGN and switch not in DEEP else [],
        )
        for switch in SWITCHES
        for model in MODELS
    ],
)
def test_a_switch_changes_nothing_and_is_not_changed(switch, model, expected):
    results = expected(model)  # also imports what a first fit imports
    found = []
    with SWITCHES[switch]():
        before = state()
        for name, value in each_result(MODELS[model]):
            assert state() == before, name
            found.append((name, value))
    assert_same_results(found, results)


def test_every_public_method_has_the_settings_of_the_package():
    exempt = {
        "get_params",
        "set_params",
        "set_output",
        "get_metadata_routing",
        "get_feature_names_out",
        "set_callbacks",
        # They call the methods of the package.
        "fit_transform",
        "fit_predict",
    }
    for estimator in (AutoencoderTransformer, AutoencoderOutlierDetector):
        for name in dir(estimator):
            if name.startswith("_") or name.endswith("_request") or name in exempt:
                continue
            member = estimator.__dict__.get(name)
            for base in estimator.__mro__:
                member = base.__dict__.get(name, member) if member is None else member
            if isinstance(member, property):
                continue
            method = getattr(estimator, name)
            while method.__code__ is not own_settings()(len).__code__:
                assert hasattr(method, "__wrapped__"), name
                method = method.__wrapped__


@pytest.mark.parametrize(
    "write", [skae.save, pytest.param(skae.export_onnx, marks=pytest.mark.slow)]
)
def test_files_are_the_same_under_other_settings(write, tmp_path):
    model = AutoencoderTransformer(2, transform_max_iter=0, **BRIEF).fit(X)
    write(model, tmp_path / "plain")
    with (
        torch.inference_mode(),
        torch.device("meta"),
        SWITCHES["default float64"](),
        np.errstate(all="raise"),
    ):
        write(model, tmp_path / "other")
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "other").read_bytes()


def test_a_model_that_is_loaded_in_inference_mode_trains_on(tmp_path):
    model = AutoencoderTransformer(2, **BRIEF).fit(X)
    skae.save(model, tmp_path / "model")
    with torch.inference_mode(), torch.device("meta"):
        loaded = skae.load(tmp_path / "model")
    assert_array_equal(
        loaded.partial_fit(X).transform(X), model.partial_fit(X).transform(X)
    )


def test_settings_of_the_process_are_those_of_all_threads():
    """The first thread that enters changes them, the last that leaves restores them."""
    torch.set_default_dtype(torch.float64)
    try:
        entered, leave = threading.Barrier(3), [threading.Event(), threading.Event()]
        left = threading.Event()

        def work(event):
            with own_settings():
                entered.wait(timeout=300)
                event.wait(timeout=300)
            left.set()

        threads = [threading.Thread(target=work, args=(event,)) for event in leave]
        for thread in threads:
            thread.start()
        entered.wait(timeout=300)
        assert torch.get_default_dtype() == torch.float32
        leave[0].set()
        left.wait(timeout=300)
        assert torch.get_default_dtype() == torch.float32
        leave[1].set()
        for thread in threads:
            thread.join()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_an_inherited_precision_remains_inherited():
    with precision(torch.backends, "tf32"):
        with own_settings():
            assert get_precision("mkldnn", "conv") == "ieee"
        assert get_precision("mkldnn", "conv") == "tf32"
        torch.backends.fp32_precision = "ieee"
        assert get_precision("mkldnn", "conv") == "ieee"


# Forked processes

FORKED = """
    import multiprocessing
    import os
    import numpy as np, torch
    from skae import AutoencoderTransformer, AutoencoderOutlierDetector
    from skae.networks import MLP

    environment = dict(os.environ)
    torch.set_num_threads(2)
    X = np.random.default_rng(0).uniform(size=(3000, 40))
    model = AutoencoderTransformer(2, network=MLP((300,)), max_epochs=1, device="cpu",
                                   transform_max_iter=0, random_state=0).fit(X)
    detector = AutoencoderOutlierDetector(n_estimators=2, max_epochs=1, n_threads=2,
                                          device="cpu", random_state=0).fit(X[:200])
    model.reconstruct(X[:1]), model.reconstruct(X), torch.ones(10**7).sum()
    assert dict(os.environ) == environment

    def work(queue):
        queue.put(float(np.abs(model.reconstruct(X[:1]) - row).max()))
        queue.put(float(np.abs(model.reconstruct(X) - whole).max()))
        queue.put(float(np.abs(detector.score_samples(X[:1])).max()))
        detector.fit(X[:200]).predict(X)
        queue.put(float(np.abs(model.partial_fit(X).score(X))))
        queue.put(torch.get_num_threads())

    row, whole = model.reconstruct(X[:1]), model.reconstruct(X)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=work, args=(queue,), daemon=True)
    process.start()
    values = [queue.get(timeout=100) for _ in range(5)]
    process.join(100)
    assert process.exitcode == 0
    assert max(values[:2]) < 1e-12, values
    assert values[4] == 2, values
    print("done")
"""


@pytest.mark.parametrize("before", [None, "relative"])
def test_variables_that_pytorch_sets_are_restored(before, tmp_path, monkeypatch):
    name = "TORCHINDUCTOR_CACHE_DIR"
    monkeypatch.chdir(tmp_path)  # PyTorch creates the folder
    monkeypatch.setenv(name, before or "")
    if before is None:
        monkeypatch.delenv(name)
    with environment_restored():
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        cache_dir()  # as the import of the compiler does
        assert os.environ.get(name) != before
    assert os.environ.get(name) == before


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that can fork")
def test_a_forked_child_does_not_hang():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FORKED)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout == "done\n", done.stderr
