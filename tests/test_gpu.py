"""Every kind of model on a GPU; `benchmarks/gpu.sh` runs these tests."""

import pickle

import joblib
import numpy as np
import pytest
import sklearn
import torch
from devices import assert_close, device_of
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.utils.estimator_checks import check_array_api_input
from variants import representatives, variants

import skae
from skae import AutoencoderOutlierDetector, AutoencoderTransformer

METHODS = (
    "transform",
    "reconstruct",
    "score_samples",
    "feature_contributions",
    "decision_function",
    "predict",
    "quantize",
)

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


def on_one_line(estimator):
    return " ".join(repr(estimator).split())


@pytest.fixture(scope="module")
def X():
    """A table of shape (96, 6) in [0, 1]; two columns are 0 or 1."""
    rng = np.random.default_rng(0)
    t = rng.uniform(size=96)
    curve = np.column_stack([t, t**2, 1 - t, rng.uniform(size=96)])
    return np.column_stack([curve, t > 0.5, rng.uniform(size=96) > 0.5])


def assert_same_outputs(one, other, rows):
    for name in METHODS:
        if hasattr(one, name):
            values = getattr(one, name)(rows)
            assert np.isfinite(values).all()
            assert_close(values, getattr(other, name)(rows), rows.dtype)


@pytest.mark.usefixtures("always_recorded")
@pytest.mark.parametrize(
    "estimator", [*representatives(), *variants()], ids=on_one_line
)
def test_variant_on_a_gpu_is_its_copy_on_the_cpu(estimator, X):
    model = clone(estimator).set_params(
        device="cuda", max_epochs=8, batch_size=16, random_state=0
    )
    model.fit(X).partial_fit(X)
    twin = pickle.loads(pickle.dumps(model))
    assert device_of(model).type == "cuda"
    assert device_of(twin).type == "cpu"
    assert all(tensor.device.type == "cpu" for tensor in twin.module_.parameters())
    assert_same_outputs(model, twin, X)
    if not model.module_.max_refinements:
        assert_same_outputs(model, twin, X.astype(np.float32))
    if hasattr(model, "inverse_transform"):
        Z = model.transform(X)
        assert_close(model.inverse_transform(Z), twin.inverse_transform(Z))
    if hasattr(model, "score"):
        assert_close(model.score(X), twin.score(X))
    if hasattr(model, "sample"):
        samples = [each.sample(7, random_state=0) for each in (model, twin)]
        assert_close(*samples)
    twin.partial_fit(X)  # on the GPU again
    assert device_of(twin).type == "cuda"


@pytest.mark.parametrize("estimator", list(representatives()), ids=on_one_line)
def test_fits_on_a_gpu_with_one_seed_are_equal(estimator, X):
    model = clone(estimator).set_params(device="cuda", random_state=0)
    one, other = clone(model).fit(X), clone(model).fit(X)
    assert_array_equal(one.reconstruct(X), other.reconstruct(X))


def test_convolutions_in_float32_have_its_precision(X):
    # PyTorch's default is TF32, with three digits.
    model = AutoencoderTransformer(
        2, network="conv", transform_max_iter=0, device="cuda", random_state=0
    ).fit(X)
    double, single = model.transform(X), model.transform(X.astype(np.float32))
    assert np.abs(single - double).max() < 1e-5 * double.std()


def test_fits_in_threads_do_not_disturb_each_other(X):
    model = AutoencoderTransformer(2, init="random", device="cuda", random_state=0)
    expected = clone(model).fit(X).reconstruct(X)
    found = joblib.Parallel(n_jobs=4, backend="threading")(
        joblib.delayed(lambda: clone(model).fit(X).reconstruct(X))() for _ in range(8)
    )
    for X_hat in found:
        assert_array_equal(X_hat, expected)


def in_tf32():
    return torch.backends.cudnn.flags(allow_tf32=True, benchmark=True)


@pytest.mark.parametrize(
    "setting",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cuda", torch.float16),
        lambda: torch.device("cuda"),
        in_tf32,
    ],
)
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_settings_of_the_caller_change_nothing(setting, network, X):
    model = AutoencoderTransformer(
        2, network=network, max_epochs=3, device="cuda", random_state=0
    )
    expected = clone(model).fit(X)
    with setting():
        found = clone(model).fit(X).partial_fit(X).reconstruct(X)
    # cuDNN may choose another algorithm under another precision of the caller.
    expected = expected.partial_fit(X).reconstruct(X)
    assert_allclose(found, expected, rtol=0, atol=0 if network == "mlp" else 1e-5)


@pytest.mark.parametrize("kind", [AutoencoderTransformer, AutoencoderOutlierDetector])
def test_files_of_a_gpu_model_are_loaded_without_one(kind, X, tmp_path):
    model = kind(2, device="cuda", max_epochs=2, random_state=0).fit(X)
    skae.save(model, tmp_path / "model.safetensors")
    loaded = skae.load(tmp_path / "model.safetensors")
    assert device_of(loaded).type == "cpu"
    assert_close(loaded.reconstruct(X), model.reconstruct(X))


CALLS = {
    "fit_transform": lambda model, X: clone(model).fit_transform(X),
    "inverse_transform": lambda model, X: model.inverse_transform(model.transform(X)),
    "reconstruct": lambda model, X: model.reconstruct(X),
    "score_samples": lambda model, X: model.score_samples(X),
    "score": lambda model, X: torch.tensor(model.score(X), device=X.device),
    "fit_predict": lambda model, X: clone(model).fit_predict(X),
    "decision_function": lambda model, X: model.decision_function(X),
    "feature_contributions": lambda model, X: model.feature_contributions(X),
    "mean_": lambda model, X: model.mean_,
    "training_scores_": lambda model, X: model.training_scores_,
}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("kind", [AutoencoderTransformer, AutoencoderOutlierDetector])
def test_tensors_on_a_gpu_come_in_and_go_out(kind, device, X):
    model = kind(2, device=device, max_epochs=2, random_state=0)
    rows, host = torch.asarray(X, device="cuda"), torch.asarray(X)
    weight = torch.ones(len(X), device="cuda")
    with sklearn.config_context(array_api_dispatch=True):
        on_host = clone(model).fit(host, sample_weight=weight)
        model.fit(rows, sample_weight=weight.cpu())
        for name, call in CALLS.items():
            if hasattr(model, name):
                found, expected = call(model, rows), call(on_host, host)
                assert found.device == rows.device
                assert expected.device.type == "cpu"
                assert found.dtype == expected.dtype
                assert torch.equal(found.cpu(), expected)
        with pytest.raises(ValueError, match="the same device as those passed to fit"):
            model.score_samples(host)
        for loaded in (pickle.loads(pickle.dumps(model)), model):
            assert loaded.mean_.device == rows.device
            assert loaded.score_samples(rows).device == rows.device
    # Without dispatch, rows may be anywhere.
    assert_array_equal(model.score_samples(rows), model.score_samples(X))
    assert type(model.score_samples(rows)) is np.ndarray
    assert_array_equal(clone(model).fit(rows).mean_, model.mean_.cpu())


def test_estimator_checks_of_tensors_on_a_gpu():
    for estimator in representatives():
        check_array_api_input(
            type(estimator).__name__, estimator, "torch", "cuda", "float64"
        )


def test_an_earlier_model_continues_on_another_device(X):
    ae = AutoencoderTransformer(2, device="cpu", random_state=0).partial_fit(X)
    for device in ("cuda", "cpu", torch.device("cuda", 0)):
        ae.set_params(device=device).partial_fit(X)
        assert device_of(ae).type == torch.device(device).type
    assert ae.n_iter_ == 4
