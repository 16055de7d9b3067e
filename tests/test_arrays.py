"""PyTorch tensors, and arrays of other libraries, as arguments and results."""

import copy
import pickle
import textwrap
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pytest
import sklearn
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils import estimator_checks, get_tags
from skorch.callbacks import Callback

import skae
from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae._arrays import ArraySpace, as_numpy
from skae.inspection import LatentSpaceDisplay, OutlierScoreDisplay
from skae.model_selection import (
    AgreementScorer,
    ArtificialOutlierScorer,
    explained_variance,
    outlier_scorer,
)

SETTINGS = {
    "hidden_layer_sizes": (4,),
    "max_epochs": 1,
    "early_stopping": False,
    "random_state": 0,
}
MODELS = {
    "transformer": AutoencoderTransformer(2, ordered=True, **SETTINGS),
    "whitened": AutoencoderTransformer(2, whiten=True, **SETTINGS),
    "gaussian": AutoencoderTransformer(2, bottleneck="gaussian", **SETTINGS),
    "quantized": AutoencoderTransformer(2, bottleneck="quantized", **SETTINGS),
    "detector": AutoencoderOutlierDetector(2, n_estimators=4, **SETTINGS),
}

# Calls with rows X and weights w; another method gives the input of some of them.
CALLS = {
    "transform": lambda m, X, w: m.transform(X),
    "inverse_transform": lambda m, X, w: m.inverse_transform(m.transform(X)),
    "reconstruct": lambda m, X, w: m.reconstruct(X),
    "impute": lambda m, X, w: m.impute(X),
    "score_samples": lambda m, X, w: m.score_samples(X),
    "score": lambda m, X, w: m.score(X, None, w),
    "score, by keyword": lambda m, X, w: m.score(X=X, sample_weight=w),
    "explained_variance_curve": lambda m, X, w: m.explained_variance_curve(X, w),
    "component_contributions": lambda m, X, w: m.component_contributions(X, w),
    "truncate": lambda m, X, w: m.truncate(1).transform(X),
    "sample": lambda m, X, w: m.sample(3, random_state=0),
    "quantize": lambda m, X, w: m.quantize(X),
    "dequantize": lambda m, X, w: m.dequantize(m.quantize(X)),
    "decision_function": lambda m, X, w: m.decision_function(X),
    "predict": lambda m, X, w: m.predict(X),
    "feature_contributions": lambda m, X, w: m.feature_contributions(X),
    "explain": lambda m, X, w: float(m.explain(X)["contribution"].sum()),
    "p_values": lambda m, X, w: m.p_values(X),
    "recalibrate": lambda m, X, w: copy.copy(m).recalibrate(X, w).offset_,
    "fit_transform": lambda m, X, w: clone(m).fit_transform(X, sample_weight=w),
    "fit_predict": lambda m, X, w: clone(m).fit_predict(X, sample_weight=w),
    "partial_fit": lambda m, X, w: clone(m).partial_fit(X, None, w).reconstruct(X),
    "X_val": lambda m, X, w: (
        clone(m)
        .set_params(early_stopping=True)
        .fit(X, X_val=X, sample_weight_val=w)
        .reconstruct(X)
    ),
    "mean_": lambda m, X, w: m.mean_,
    "training_scores_": lambda m, X, w: m.training_scores_,
    "active_units_": lambda m, X, w: m.active_units_,
    "perplexity_": lambda m, X, w: m.perplexity_,
}
# The fitted attributes remain those of the fit, whatever the configuration.
ATTRIBUTES = ("mean_", "training_scores_", "active_units_", "perplexity_")

CALLS_OF_MODELS = {
    "transformer": [
        "transform",
        "inverse_transform",
        "reconstruct",
        "impute",
        "score_samples",
        "score",
        "score, by keyword",
        "explained_variance_curve",
        "component_contributions",
        "truncate",
        "fit_transform",
        "partial_fit",
        "X_val",
        "mean_",
    ],
    "whitened": ["transform", "inverse_transform"],
    "gaussian": ["sample", "active_units_"],
    "quantized": ["quantize", "dequantize", "perplexity_"],
    "detector": [
        "score_samples",
        "decision_function",
        "predict",
        "feature_contributions",
        "explain",
        "p_values",
        "recalibrate",
        "fit_predict",
        "partial_fit",
        "X_val",
        "reconstruct",
        "mean_",
        "training_scores_",
    ],
}
PAIRS = [(kind, call) for kind, calls in CALLS_OF_MODELS.items() for call in calls]


def on_other_device(X):
    strict = pytest.importorskip("array_api_strict")
    return strict.asarray(X, device=strict.Device("device1"))


LIBRARIES = {
    "numpy": np.asarray,
    "torch": torch.asarray,
    "strict": on_other_device,
}


def dispatched():
    return sklearn.config_context(array_api_dispatch=True)


def rows(dtype=np.float64):
    rng = np.random.default_rng(0)
    t = rng.standard_normal(24)
    X = np.column_stack([t, t**2, -t]) + 0.1 * rng.standard_normal((24, 3))
    return X.astype(dtype), np.arange(24) % 3 + 1.0


X64 = torch.asarray(rows()[0])


@pytest.fixture(scope="module")
def fitted():
    """Return a function that fits a model, once for each of its arguments."""
    cache = {}

    def fit(kind, library, dtype=np.float64):
        key = kind, library, dtype
        if key not in cache:
            with dispatched():
                X = LIBRARIES[library](rows(dtype)[0])
                cache[key] = clone(MODELS[kind]).fit(X)
        return cache[key]

    return fit


def assert_same_array(actual, expected, like):
    """An array is where another is, and has given values and their type."""
    assert type(actual) is type(like)
    assert getattr(actual, "device", "cpu") == getattr(like, "device", "cpu")
    with dispatched():
        actual = as_numpy(actual, "actual")
    assert actual.dtype == expected.dtype
    assert_array_equal(actual, expected)


def assert_result(actual, expected, like):
    if isinstance(expected, np.ndarray):
        assert_same_array(actual, expected, like)
    else:
        assert type(actual) is float
        assert actual == expected


# Methods and libraries


def test_every_public_method_with_an_array_is_tested():
    for kind, model in MODELS.items():
        tested = {call for other, call in PAIRS if type(MODELS[other]) is type(model)}
        for name in dir(type(model)):
            method = getattr(type(model), name)
            if name.startswith(("_", "set_", "get_")) or not callable(method):
                continue
            if name == "fit":  # a part of all other calls
                continue
            assert name in tested, f"{kind}.{name}"


@pytest.mark.parametrize("kind", MODELS)
def test_every_array_attribute_is_where_the_rows_of_fit_were(kind, fitted):
    one, other = fitted(kind, "numpy"), fitted(kind, "torch")
    names = [name for name in dir(one) if name.endswith("_") and name[0] != "_"]
    arrays = [
        name for name in names if isinstance(getattr(one, name, None), np.ndarray)
    ]
    assert "mean_" in arrays
    for name in arrays:
        assert_same_array(getattr(other, name), getattr(one, name), X64)


@pytest.mark.parametrize(
    ("library", "dtype"),
    [
        ("numpy", np.float64),
        ("torch", np.float64),
        ("torch", np.float32),
        ("strict", np.float64),
    ],
)
@pytest.mark.parametrize(("kind", "call"), PAIRS, ids=lambda name: name)
def test_results_are_where_the_input_is(kind, call, library, dtype, fitted):
    X, w = rows(dtype)
    expected = CALLS[call](fitted(kind, "numpy", dtype), X, w)
    make = LIBRARIES[library]
    with dispatched():
        actual = CALLS[call](fitted(kind, library, dtype), make(X), make(w))
    assert_result(actual, expected, make(X))


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize(("kind", "call"), PAIRS, ids=lambda name: name)
def test_without_dispatch_tensors_come_out_as_arrays(kind, call, library, fitted):
    X, w = rows()
    expected = CALLS[call](fitted(kind, "numpy"), X, w)
    model = fitted(kind, library)
    like = LIBRARIES[library](X) if call in ATTRIBUTES else X
    for make in (torch.asarray, np.asarray):
        assert_result(CALLS[call](model, make(X), make(w)), expected, like)


@pytest.mark.parametrize(
    ("fitted_to", "given"),
    [("numpy", "torch"), ("torch", "numpy"), ("torch", "strict")],
)
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("transformer", "transform"),
        ("transformer", "inverse_transform"),
        ("transformer", "reconstruct"),
        ("transformer", "score"),
        ("quantized", "dequantize"),
        ("detector", "score_samples"),
        ("detector", "predict"),
        ("detector", "recalibrate"),
    ],
)
def test_input_from_elsewhere_than_in_fit_is_refused(
    kind, method, fitted_to, given, fitted
):
    X = LIBRARIES[given](rows()[0])
    model = fitted(kind, fitted_to)
    message = rf"{type(model).__name__}.{method}\(\) must use the same namespace"
    with dispatched(), pytest.raises(ValueError, match=message):
        getattr(model, method)(X)


def test_lists_are_numpy_arrays(fitted):
    X = rows()[0]
    with dispatched():
        Z = fitted("transformer", "numpy").transform(X.tolist())
        assert type(Z) is np.ndarray
        with pytest.raises(ValueError, match="must use the same namespace"):
            fitted("transformer", "torch").transform(X.tolist())


def test_unknown_libraries_are_refused():
    class Array:
        __array_namespace__ = staticmethod(lambda api_version=None: sklearn)
        shape = (2, 2)

    with dispatched(), pytest.raises(TypeError, match="X is an array of sklearn"):
        clone(MODELS["transformer"]).fit(Array())


def test_not_fitted_is_the_first_error():
    with dispatched(), pytest.raises(sklearn.exceptions.NotFittedError):
        clone(MODELS["detector"]).predict(torch.zeros(2, 3))


# Kinds of tensors

READ = {
    "float64": X64,
    "float32": X64.float(),
    "float16": X64.half(),
    "bfloat16": X64.bfloat16(),
    "float8": X64.to(torch.float8_e4m3fn),
    "int32": (10 * X64).int(),
    "uint8": (10 * X64.abs()).to(torch.uint8),
    "bool": X64 > 0,
    "columns": X64.T.contiguous().T,
    "every second row": torch.cat([X64, X64])[::2],
    "flipped": X64.flip(0),
    "negative view": torch.complex(X64, X64).conj().imag,
    "expanded": X64[:, :1].expand(-1, 3),
    "missing": torch.where(X64 > 2, torch.nan, X64),
    "parameter": torch.nn.Parameter(X64, requires_grad=False),
}

REFUSED = {
    "requires grad": (lambda: X64.clone().requires_grad_(), TypeError, r"X\.detach"),
    "parameter": (lambda: torch.nn.Parameter(X64), TypeError, r"X\.detach"),
    "meta": (lambda: X64.to("meta"), TypeError, "X is a tensor that cannot"),
    "COO": (lambda: X64.to_sparse(), TypeError, "X is a tensor of layout"),
    "CSR": (lambda: X64.to_sparse_csr(), TypeError, "X is a tensor of layout"),
    "nested": (
        lambda: torch.nested.nested_tensor([X64[0], X64[1]]),
        TypeError,
        "nested",
    ),
    "masked": (
        lambda: torch.masked.masked_tensor(X64, X64 > 0),
        TypeError,
        "X is a tensor that cannot",
    ),
    "conjugate": (lambda: torch.complex(X64, X64).conj(), ValueError, "Complex data"),
    "infinite": (lambda: torch.full((4, 3), torch.inf), ValueError, "infinity"),
    "one row": (lambda: X64[0], ValueError, "Expected 2D array"),
    "one value": (lambda: X64[0, 0], ValueError, "Expected 2D array"),
    "three axes": (lambda: X64[None], ValueError, "array with dim 3"),
    "empty": (lambda: X64[:0], ValueError, "0 sample"),
}


@pytest.mark.parametrize("is_dispatched", [False, True])
@pytest.mark.parametrize("kind", READ)
def test_kinds_of_tensors_that_are_read(kind, is_dispatched, fitted):
    X = READ[kind]
    before = X.clone()
    dtype = np.float32 if X.dtype == torch.float32 else np.float64
    values = np.array(X.tolist(), dtype)
    expected = fitted("whitened", "numpy").transform(values)
    model = fitted("whitened", "torch" if is_dispatched else "numpy")
    with sklearn.config_context(array_api_dispatch=is_dispatched):
        actual = model.transform(X)
    assert_same_array(actual, expected, torch.zeros(1) if is_dispatched else expected)
    assert torch.equal(torch.nan_to_num(X.double()), torch.nan_to_num(before.double()))


@pytest.mark.parametrize("is_dispatched", [False, True])
@pytest.mark.parametrize("method", ["fit", "partial_fit", "transform"])
@pytest.mark.filterwarnings("ignore:.*prototype:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_kinds_of_tensors_that_are_refused(kind, method, is_dispatched, fitted):
    make, error, message = REFUSED[kind]
    model = copy.copy(fitted("transformer", "torch" if is_dispatched else "numpy"))
    state = vars(model).copy()
    if is_dispatched and kind == "meta" and method == "transform":
        error, message = ValueError, "fitted to torch arrays on cpu"
    with sklearn.config_context(array_api_dispatch=is_dispatched):
        with pytest.raises(error, match=message):
            getattr(model, method)(make())
        assert sklearn.get_config()["array_api_dispatch"] == is_dispatched
    assert vars(model) == state


@pytest.mark.parametrize("name", ["sample_weight", "X_val", "sample_weight_val"])
def test_errors_name_the_argument(name):
    X, w = map(torch.asarray, rows())
    arguments = {"X_val": X, "sample_weight_val": w}
    arguments[name] = (X if name == "X_val" else w).clone().requires_grad_()
    with pytest.raises(TypeError, match=rf"{name} is .* requires grad"):
        clone(MODELS["detector"]).fit(X, **arguments)


def test_lists_of_tensors_are_read():
    expected = clone(MODELS["transformer"]).fit_transform(X64.numpy())
    for X in (list(X64), tuple(X64)):
        assert_array_equal(clone(MODELS["transformer"]).fit_transform(X), expected)
    with pytest.raises(TypeError, match=r"X\.detach"):
        clone(MODELS["transformer"]).fit(list(X64.clone().requires_grad_()))


def test_a_tensor_on_the_cpu_is_not_copied():
    assert np.shares_memory(as_numpy(X64, "X"), X64.numpy())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_results_belong_to_no_graph(context):
    with context(), dispatched():
        Z = clone(MODELS["transformer"]).fit_transform(X64.clone())
    assert not Z.requires_grad
    assert not Z.is_inference()


def test_read_only_and_reversed_results_become_tensors():
    values = np.arange(6.0).reshape(3, 2)
    read_only = values.copy()
    read_only.flags.writeable = False
    space = ArraySpace("torch", "cpu")
    for array in (read_only, values[::-1], values.T, np.float32(values), values > 2):
        assert_array_equal(space.take(array), array)
        assert space.take(array).numpy().dtype == array.dtype
    space.take(read_only).zero_()
    assert_array_equal(read_only, values)


# Models: what is kept where


def saved(model, tmp_path):
    skae.save(model, tmp_path / "model.safetensors")
    return skae.load(tmp_path / "model.safetensors")


def dumped(model, tmp_path):
    joblib.dump(model, tmp_path / "model.joblib")
    return joblib.load(tmp_path / "model.joblib")


def dumped_by_skops(model, tmp_path):
    skops = pytest.importorskip("skops.io")
    data = skops.dumps(model)
    return skops.loads(data, trusted=skops.get_untrusted_types(data=data))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(
    "stored",
    [
        saved,
        dumped,
        dumped_by_skops,
        lambda model, _: pickle.loads(pickle.dumps(model)),
        lambda model, _: copy.deepcopy(model),
        lambda model, _: copy.copy(model),
    ],
    ids=["save", "joblib", "skops", "pickle", "deepcopy", "copy"],
)
def test_stored_models_have_the_library_of_their_fit(stored, library, fitted, tmp_path):
    make = LIBRARIES[library]
    model, X = fitted("detector", library), make(rows()[0])
    loaded = stored(model, tmp_path)
    with dispatched():
        expected = as_numpy(model.score_samples(X), "expected")
        assert_same_array(loaded.score_samples(X), expected, X)
    assert_same_array(loaded.mean_, fitted("detector", "numpy").mean_, X)


def test_a_stored_name_imports_no_library(fitted):
    model = copy.copy(fitted("detector", "numpy"))
    for library in ("cupy", "os"):
        fields = (library, "0")
        model._trained = replace(model._trained, array_space=fields)
        assert type(model.mean_) is np.ndarray


def test_a_model_fitted_on_a_missing_device_is_on_the_cpu(fitted):
    model = copy.copy(fitted("detector", "torch"))
    model._trained = replace(model._trained, array_space=("torch", "cuda:99"))
    assert model.mean_.device.type == "cpu"
    with dispatched():
        assert model.predict(X64).device.type == "cpu"


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_attributes_follow_the_last_rows(method):
    model = clone(MODELS["detector"]).set_params(warm_start=True)
    with dispatched():
        for make in (np.asarray, torch.asarray, np.asarray):
            X = make(rows()[0])
            getattr(model, method)(X)
            for name in ("mean_", "training_scores_"):
                assert type(getattr(model, name)) is type(X)
        clone(model)
    getattr(model, method)(X64)
    assert type(model.mean_) is np.ndarray


def test_attributes_are_copies(fitted):
    model = fitted("detector", "torch")
    model.mean_.zero_()
    model.training_scores_.zero_()
    assert model.mean_.any()
    assert model.training_scores_.any()


def test_estimators_are_moved_between_libraries(fitted):
    array_api = pytest.importorskip("sklearn.utils._array_api")
    if not hasattr(array_api, "move_estimator_to"):
        pytest.skip("scikit-learn >= 1.9 calls the method")
    X = rows()[0]
    with dispatched():
        moved = array_api.move_estimator_to(fitted("detector", "torch"), np, "cpu")
        assert_array_equal(moved.predict(X), fitted("detector", "numpy").predict(X))
        xp, _, device = array_api.get_namespace_and_device(X64)
        back = array_api.move_estimator_to(moved, xp, device)
        assert_array_equal(back.predict(X64), moved.predict(X))
        unfitted = array_api.move_estimator_to(clone(moved), xp, device)
        assert not hasattr(unfitted, "mean_")
    assert type(moved.mean_) is np.ndarray
    assert type(fitted("detector", "torch").mean_) is torch.Tensor


class Configuration(Callback):
    """Records scikit-learn's configuration during the training."""

    def on_epoch_end(self, net, **kwargs):
        net.history.record("dispatch", sklearn.get_config()["array_api_dispatch"])


def test_the_configuration_is_restored():
    model = clone(MODELS["transformer"]).set_params(callbacks=[Configuration()])
    with dispatched():
        model.fit(X64)
        assert sklearn.get_config()["array_api_dispatch"]
    assert model.net_.history[-1, "dispatch"] is False
    assert not sklearn.get_config()["array_api_dispatch"]


@pytest.mark.parametrize("is_dispatched", [False, True])
def test_callbacks_receive_arrays(is_dispatched):
    callback = pytest.importorskip("sklearn.callback")

    def scores_of(X, y):
        monitor = callback.ScoringMonitor(scoring="roc_auc")
        clone(MODELS["detector"]).set_callbacks(monitor).fit(X, y)
        return [row["roc_auc"] for row in monitor.get_logs().data]

    X, y = rows()[0], np.where(np.arange(24) < 4, -1, 1)
    with sklearn.config_context(array_api_dispatch=is_dispatched):
        # NumPy refuses a tensor of this kind.
        tensors = torch.asarray(X), torch._neg_view(torch.asarray(-y))
        assert scores_of(*tensors) == scores_of(X, y)


# With scikit-learn


def test_the_tag_is_that_of_pca():
    for model in MODELS.values():
        assert get_tags(model).array_api_support
    assert get_tags(PCA()).array_api_support


NUMPY, TORCH = ("numpy", None), ("torch", "cpu")


@pytest.mark.parametrize("kind", ["transformer", "detector"])
def test_values_pass_the_estimator_checks(kind):
    model = MODELS[kind]
    name = type(model).__name__
    estimator_checks.check_array_api_input(name, model, *TORCH, check_values=True)
    if not hasattr(estimator_checks, "check_array_api_mixed_inputs"):
        pytest.skip("scikit-learn >= 1.9 has the other checks")
    estimator_checks.check_array_api_same_namespace(name, model, "torch")
    place = estimator_checks.NamespaceAndDevice
    for X, other in ((NUMPY, TORCH), (TORCH, NUMPY)):
        estimator_checks.check_array_api_mixed_inputs(
            name, model, place(*X), place(*other), check_values=True
        )


def test_pipelines_and_searches_keep_tensors():
    pipeline = Pipeline([("scale", MinMaxScaler()), ("ae", MODELS["transformer"])])
    search = GridSearchCV(clone(pipeline), {"ae__n_components": [1, 2]}, cv=2)
    expected = clone(search).fit(X64.numpy())
    with dispatched():
        search.fit(X64)
        Z = search.transform(X64)
        X_hat = search.inverse_transform(Z)
    assert type(Z) is type(X_hat) is torch.Tensor
    assert_allclose(Z, expected.transform(X64.numpy()), rtol=1e-6, atol=1e-6)
    assert search.best_params_ == expected.best_params_


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_set_output_wins_for_rows(container):
    pytest.importorskip(container)
    model = clone(MODELS["transformer"]).set_output(transform=container)
    with dispatched():
        outputs = model.fit_transform(X64), model.transform(X64), model.reconstruct(X64)
        assert type(model.score_samples(X64)) is torch.Tensor
    for frame in outputs:
        assert type(frame).__module__.startswith(container)
        assert len(frame) == len(X64)


@pytest.mark.parametrize("is_dispatched", [False, True])
@pytest.mark.parametrize(
    "scorer",
    [
        ArtificialOutlierScorer(random_state=0),
        AgreementScorer(random_state=0),
        outlier_scorer(),
        outlier_scorer("f1"),
    ],
)
def test_scorers_accept_tensors(scorer, is_dispatched, fitted):
    X, y = rows()[0], np.where(np.arange(24) < 4, -1, 1)
    expected = scorer(fitted("detector", "numpy"), X, y)
    model = fitted("detector", "torch" if is_dispatched else "numpy")
    with sklearn.config_context(array_api_dispatch=is_dispatched):
        for labels in (y, torch.asarray(y)):
            assert scorer(model, torch.asarray(X), labels) == pytest.approx(expected)


@pytest.mark.parametrize("is_dispatched", [False, True])
def test_explained_variance_accepts_tensors(is_dispatched, fitted):
    expected = explained_variance(fitted("transformer", "numpy"), rows()[0])
    model = fitted("transformer", "torch" if is_dispatched else "numpy")
    with sklearn.config_context(array_api_dispatch=is_dispatched):
        assert explained_variance(model, X64) == pytest.approx(expected)


@pytest.mark.parametrize("is_dispatched", [False, True])
def test_displays_hold_arrays(is_dispatched, fitted):
    library = "torch" if is_dispatched else "numpy"
    with sklearn.config_context(array_api_dispatch=is_dispatched):
        codes = LatentSpaceDisplay.from_estimator(fitted("transformer", library), X64)
        scores = OutlierScoreDisplay.from_estimator(
            fitted("detector", library), X64, show_training=True
        )
    assert type(codes.Z) is type(scores.scores) is np.ndarray
    assert type(scores.training_scores) is np.ndarray


def test_the_code_of_the_documentation_runs():
    page = (Path(__file__).parents[1] / "docs" / "tables.rst").read_text()
    section = page[page.index("PyTorch tensors\n---") :]
    code = section[
        section.index("   import os") : section.index("\nAs in scikit-learn")
    ]
    names = {}
    exec(textwrap.dedent(code), names)
    assert type(names["is_outlier"]) is torch.Tensor
    assert type(names["scores"]) is np.ndarray
