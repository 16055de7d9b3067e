"""Copies in float64 that follow their originals."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from devices import assert_same_values
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from skae import AutoencoderTransformer
from skae._casting import DoubleCopy
from skae.networks import Custom

X = np.random.default_rng(0).standard_normal((20, 3))


class Gain(nn.Module):
    """A layer with a plain attribute, and a buffer that may be None."""

    def __init__(self):
        super().__init__()
        self.gain = 1.0
        self.register_buffer("shift", None)

    def forward(self, X):
        X = self.gain * X
        return X if self.shift is None else X + self.shift


def make_module():
    return nn.Sequential(nn.Linear(3, 4), Gain(), nn.BatchNorm1d(4)).eval()


def outputs(module, rows=X):
    """Outputs in float64, by a copy that was made for them alone."""
    with torch.no_grad():
        return copy.deepcopy(module).double()(torch.from_numpy(rows)).numpy()


def outputs_of_copy(double, rows=X):
    with torch.no_grad():
        return double.get()(torch.from_numpy(rows)).numpy()


def fill_weights(module):
    module[0].weight.data.fill_(0.5)


def step_of_optimizer(module):
    module.zero_grad()
    module(torch.ones(2, 3)).sum().backward()
    torch.optim.SGD(module.parameters(), lr=0.5).step()


def set_attribute(module):
    module[1].gain = 3.0


def replace_parameter(module):
    module[0].weight = nn.Parameter(torch.full((4, 3), 0.25))


def replace_parameter_by_another_shape(module):
    module[0].bias = None


def replace_submodule(module):
    module[1] = nn.Tanh()


def replace_submodule_of_the_same_class(module):
    module[0] = nn.Linear(3, 4)


def fill_buffer(module):
    module[2].running_mean.fill_(7.0)


def set_buffer_that_was_none(module):
    module[1].shift = torch.ones(4)


def load_weights(module):
    state = module.state_dict()
    module.load_state_dict({name: 2 * value for name, value in state.items()})


CHANGES = [
    fill_weights,
    step_of_optimizer,
    set_attribute,
    replace_parameter,
    replace_parameter_by_another_shape,
    replace_submodule,
    replace_submodule_of_the_same_class,
    fill_buffer,
    set_buffer_that_was_none,
    load_weights,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_follows_changes_of_its_original(change):
    module = make_module()
    double = DoubleCopy(module)
    before = outputs_of_copy(double)
    assert_array_equal(before, outputs(module))
    change(module)
    after = outputs_of_copy(double)
    assert_array_equal(after, outputs(module))
    assert not np.array_equal(after, before)


def test_a_copy_follows_a_change_back():
    module = make_module()
    double = DoubleCopy(module)
    before = outputs_of_copy(double)
    module[1].shift = torch.ones(4)
    outputs_of_copy(double)
    module[1].shift = None
    assert_array_equal(outputs_of_copy(double), before)


def test_a_copy_follows_the_mode_of_its_original():
    module = make_module()
    double = DoubleCopy(module)
    assert not double.get().training
    module.train()
    assert double.get().training
    assert double.get()[2].training


def test_the_original_keeps_its_type_and_values():
    module = make_module()
    before = copy.deepcopy(module.state_dict())
    double = DoubleCopy(module)
    with torch.no_grad():
        double.get()(torch.from_numpy(X))
        double.get()[0].weight.fill_(0)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert_array_equal(outputs_of_copy(double), outputs(module))


def test_integers_and_bools_keep_their_type():
    copied = DoubleCopy(make_module()).get()
    assert copied[2].num_batches_tracked.dtype == torch.int64


def test_the_copy_is_made_once():
    module = make_module()
    double = DoubleCopy(module)
    first = double.get()
    fill_weights(module)
    assert double.get() is first
    replace_submodule(module)
    assert double.get() is not first


@pytest.mark.parametrize("made_in_inference", [True, False])
def test_a_copy_works_inside_and_outside_of_inference_mode(made_in_inference):
    module = make_module()
    double = DoubleCopy(module)
    for inference in (made_in_inference, not made_in_inference):
        for change in (fill_weights, set_attribute, load_weights):
            change(module)
            with torch.inference_mode(inference):
                copied = double.get()
                actual = copied(torch.from_numpy(X)).numpy(force=True)
            assert_array_equal(actual, outputs(module))
    assert not any(p.is_inference() for p in copied.parameters())


def test_the_gradient_mode_of_the_caller_does_not_matter():
    module = make_module()
    double = DoubleCopy(module)
    for _ in range(2):
        with torch.enable_grad():
            assert double.get()(torch.from_numpy(X)).requires_grad
            assert torch.is_grad_enabled()


# Estimators


@pytest.fixture
def model():
    return AutoencoderTransformer(
        1, init="random", max_epochs=2, early_stopping=False, random_state=0
    ).fit(X)


def fill_decoder(module):
    for parameter in module.decoder.parameters():
        parameter.data.fill_(0.1)


def refine(module):
    module.max_refinements = 0 if module.max_refinements else 10


def move_code(module):
    module.code_factor.mul_(2)


def replace_decoder(module):
    module.decoder = nn.Linear(1, 3, device=module.scaler.mean.device)


@pytest.mark.parametrize("change", [fill_decoder, refine, move_code, replace_decoder])
@pytest.mark.parametrize("method", ["transform", "reconstruct"])
def test_predictions_in_float64_follow_the_module(model, change, method):
    before = getattr(model, method)(X)
    change(model.module_)
    double = getattr(model, method)(X)
    assert double.dtype == np.float64
    loaded = pickle.loads(pickle.dumps(model))  # makes a copy of its own
    assert_same_values(double, getattr(loaded, method)(X), model, loaded)
    unchanged = {
        ("fill_decoder", "transform"),
        ("move_code", "reconstruct"),
        ("replace_decoder", "transform"),
    }
    if (change.__name__, method) not in unchanged:
        assert not np.allclose(double, before, rtol=1e-5, atol=1e-6)


def test_a_pickled_model_follows_its_own_module(model):
    before = model.reconstruct(X)
    loaded = pickle.loads(pickle.dumps(model))
    assert_same_values(loaded.reconstruct(X), before, loaded, model)
    fill_decoder(loaded.module_)
    assert not np.allclose(loaded.reconstruct(X), before)
    assert_array_equal(model.reconstruct(X), before)


class Recurrent(nn.Module):
    """Reads each row as a sequence of numbers."""

    def __init__(self, n_components):
        super().__init__()
        self.lstm = nn.LSTM(1, n_components, batch_first=True)

    def forward(self, X):
        return self.lstm(X[:, :, None])[0][:, -1]


def make_recurrent(n_features, n_components):
    return Recurrent(n_components)


def make_linear(n_features, n_components):
    return nn.Linear(n_components, n_features)


def test_recurrent_layers_predict_in_float64():
    network = Custom(make_recurrent, make_linear)
    model = AutoencoderTransformer(
        2, network=network, max_epochs=2, batch_size=8, random_state=0
    ).fit(X)
    Z = model.transform(X)
    assert Z.dtype == np.float64
    assert_allclose(Z, model.transform(X.astype(np.float32)), rtol=1e-4, atol=1e-5)
    alone = np.concatenate([model.transform(row[None]) for row in X])
    assert_allclose(Z, alone, rtol=1e-12)
    with torch.no_grad():
        for parameter in model.module_.encoder.parameters():
            parameter.mul_(1.5)
    assert_allclose(
        model.transform(X),
        model.transform(X.astype(np.float32)),
        rtol=1e-4,
        atol=1e-5,
    )
    assert not np.allclose(model.transform(X), Z)


def test_threads_share_a_model(model):
    expected = pickle.loads(pickle.dumps(model)).reconstruct(X)
    model = pickle.loads(pickle.dumps(model))  # without a copy in float64
    barrier = threading.Barrier(2)
    results = []

    def predict():
        barrier.wait(timeout=300)
        results.extend(model.reconstruct(X) for _ in range(20))

    threads = [threading.Thread(target=predict) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 40
    for X_hat in results:
        assert_array_equal(X_hat, expected)
