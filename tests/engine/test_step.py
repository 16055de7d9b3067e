"""Optimization steps: records, their verification, and what they depend on."""

import copy
import shutil
import warnings

import numpy as np
import pytest
import torch
from nets import X, same, weights_of
from numpy.testing import assert_array_equal
from sklearn.exceptions import ConvergenceWarning
from skorch.callbacks import GradientNormClipping
from torch import nn
from torch.nn import functional

from skae import AutoencoderTransformer
from skae._layers import Dropout
from skae._rows import Batch
from skae.bottlenecks import Quantized
from skae.engine import step as step_module
from skae.engine.step import Step, is_trusted
from skae.networks import MLP, Custom


class Foreign(nn.Module):
    """A layer of another package, which counts its calls."""

    n_calls = 0

    def forward(self, X):
        self.n_calls += 1
        return X


def make_step(module, **kwargs):
    """A step that reconstructs its batch, its optimizer, and an input besides it."""
    done = torch.zeros(())

    def loss(batch):
        X_hat = module(batch.target)
        rows = functional.mse_loss(X_hat, batch.target, reduction="none").sum(dim=1)
        return (rows * batch.weight).sum() * (1 + done)

    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, fused=True)
    return Step(loss, [module], optimizer, inputs=[done], **kwargs), optimizer, done


def make_module(*more):
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.GELU(), *more, nn.Linear(4, 3))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-0.5, 0.5, generator=generator)
    return module


def batches(n_batches, sizes=(8,), holes=False):
    generator = torch.Generator().manual_seed(1)
    for i in range(n_batches):
        size = sizes[i % len(sizes)]
        target = torch.randn(size, 3, generator=generator)
        weight = torch.rand(size, generator=generator)
        if i % 2:
            weight = torch.ones(1).expand(size)
        observed = target > 0 if holes and i % 3 else None
        yield Batch(target, observed, weight)


def losses_of(module, compile, n_steps=24, change=None, sizes=(8, 7), **kwargs):
    """Losses of some steps at a falling learning rate, and the step."""
    step, optimizer, done = make_step(module, compile=compile, **kwargs)
    losses = []
    for i, batch in enumerate(batches(n_steps, sizes, holes=True)):
        if change is not None and i == n_steps // 2:
            change(module, optimizer)
            step.refresh()
        optimizer.param_groups[0]["lr"] = 0.01 / (1 + i)
        done.fill_(i / n_steps)
        losses.append(step.take(batch).item())
    return losses, step


def assert_same_as_eager(make=make_module, **kwargs):
    eager, recorded = make(), make()
    expected, _ = losses_of(eager, False, **kwargs)
    actual, step = losses_of(recorded, "auto", **kwargs)
    assert actual == pytest.approx(expected, rel=1e-4)
    assert_close(recorded.state_dict(), eager.state_dict())
    return step


def assert_close(actual, expected):
    """Check that two sets of weights are equal up to rounding."""
    for name, value in expected.items():
        scale = value.double().abs().max().item()
        torch.testing.assert_close(
            actual[name], value, rtol=1e-3, atol=1e-3 * scale, msg=name
        )


def is_verified(step):
    """Whether some step was recorded, and all records agree with eager steps."""
    records = step._records.values()
    return bool(records) and all(record.is_verified for record in records)


# Recorded steps


def test_recorded_steps_equal_eager_steps_up_to_rounding():
    step = assert_same_as_eager(n_steps=80)
    assert is_verified(step)


def test_the_first_steps_are_not_recorded():
    n_steps = step_module.WARM_UP
    assert not losses_of(make_module(), "auto", n_steps=n_steps)[1]._records


def test_compile_false_records_no_step():
    assert not losses_of(make_module(), False)[1]._records


def test_a_foreign_module_runs_its_own_code_at_each_step():
    foreign = Foreign()
    _, step = losses_of(make_module(foreign), "auto", n_steps=20)
    assert foreign.n_calls == 20
    assert not step._records


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (nn.Linear(1, 1), True),
        (nn.Sequential(nn.ReLU(), Foreign()), False),
        (torch.optim.AdamW([nn.Parameter(torch.zeros(1))]), True),
        (object(), False),
    ],
)
def test_parts_of_pytorch_and_skae_are_trusted(part, expected):
    assert is_trusted(part) == expected


def test_a_hook_that_is_added_later_is_called():
    calls = []

    def add_hook(module, optimizer):
        module[0].register_forward_hook(lambda *args: calls.append(1))

    losses_of(make_module(), "auto", n_steps=40, change=add_hook)
    assert len(calls) == 20


def freeze(module, optimizer):
    module[0].requires_grad_(False)


def decay(module, optimizer):
    optimizer.param_groups[0]["weight_decay"] = 0.5


def replace_activation(module, optimizer):
    activation = nn.Tanh()
    activation.approximate = module[1].approximate  # has the same attributes
    module[1] = activation


def replace_class(module, optimizer):
    module[1].__class__ = nn.Tanh


def append_activation(module, optimizer):
    module.append(nn.Tanh())


def repeat_activation(module, optimizer):
    module.append(module[1])


def append_layer(module, optimizer):
    module.append(nn.Linear(3, 3))
    with torch.no_grad():
        for parameter in module[-1].parameters():
            parameter.fill_(0.1)
    optimizer.add_param_group({"params": list(module[-1].parameters())})


def remove_activation(module, optimizer):
    del module[1]


def remove_bias(module, optimizer):
    module[0].bias = None


def replace_forward(module, optimizer):
    module[1].forward = torch.tanh


@pytest.mark.parametrize(
    "change",
    [
        freeze,
        decay,
        replace_activation,
        replace_class,
        append_activation,
        repeat_activation,
        append_layer,
        remove_activation,
        remove_bias,
        replace_forward,
    ],
)
def test_a_change_between_epochs_has_an_effect(change):
    step = assert_same_as_eager(n_steps=80, change=change)
    assert is_verified(step)
    losses = losses_of(make_module(), "auto", n_steps=80)[0]
    assert losses != losses_of(make_module(), "auto", n_steps=80, change=change)[0]


def test_gradients_may_be_changed_before_the_update():
    def clipped(compile):
        module = make_module()

        def clip():
            nn.utils.clip_grad_norm_(module.parameters(), 0.1)

        return losses_of(module, compile, n_steps=60, on_gradients=clip)

    (eager, _), (recorded, step) = clipped(False), clipped("auto")
    assert is_verified(step)
    assert recorded == pytest.approx(eager, rel=1e-4)
    assert recorded != pytest.approx(
        losses_of(make_module(), False, n_steps=60)[0], rel=1e-3
    )


def test_gradients_are_those_of_the_last_batch():
    modules = make_module(), make_module()
    steps = [
        make_step(module, compile=compile)[0]
        for module, compile in zip(modules, ("auto", False), strict=True)
    ]
    for batch in batches(40, sizes=(8, 7)):
        for step in steps:
            step.take(batch)
        for one, other in zip(*(m.parameters() for m in modules), strict=True):
            assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-6)
    assert is_verified(steps[0])


def test_attributes_that_change_between_epochs_have_an_effect():
    def stronger(module, optimizer):
        module[1].p = 0.9

    def losses(compile, change=stronger):
        module = make_module()
        module[1] = nn.Dropout(0.1)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return losses_of(module, compile, n_steps=80, change=change)[0]

    assert losses("auto") == pytest.approx(losses(False), rel=1e-4)
    assert losses("auto") != losses("auto", change=None)


class DataDependent(nn.GELU):
    """A layer whose control flow depends on values; its class is set to be torch's."""

    def forward(self, X):
        return super().forward(X) if X.sum() > 0 else X


def test_a_step_whose_control_flow_depends_on_values_runs_eagerly(monkeypatch):
    monkeypatch.setattr(DataDependent, "__module__", "torch.nn")
    step = assert_same_as_eager(lambda: make_module(DataDependent()), n_steps=40)
    assert not step._records


def test_the_number_of_records_is_bounded(monkeypatch):
    monkeypatch.setattr(step_module, "MAX_RECORDS", 2)
    step = assert_same_as_eager(n_steps=100, sizes=(5, 6, 7, 8, 9))
    assert len(step._records) == 2


def test_closing_a_step_frees_its_records():
    _, step = losses_of(make_module(), "auto")
    assert step._records
    step.close()
    assert not step._records


def storages(tensors):
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def states(optimizer, name):
    return [state[name] for state in optimizer.state.values()]


def test_tensors_share_memory_only_until_a_step_is_closed():
    module = make_module()
    step, optimizer, _ = make_step(module)
    parameters = list(module.parameters())
    for batch in batches(12):
        step.take(batch)
    moments = [states(optimizer, name) for name in ("exp_avg", "exp_avg_sq")]
    assert is_verified(step)
    assert all(len(storages(tensors)) == 1 for tensors in (parameters, *moments))
    before = [p.detach().clone() for p in parameters]
    step.close()
    assert list(module.parameters()) == parameters  # the same objects
    assert all(map(torch.equal, parameters, before))
    for name in ("exp_avg", "exp_avg_sq", "step"):
        assert len(storages(states(optimizer, name))) == len(parameters)
    for tensor in (*parameters, *states(optimizer, "exp_avg")):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_a_frozen_parameter_between_others_keeps_its_value():
    module = make_module()
    step, optimizer, _ = make_step(module)
    optimizer.param_groups[0]["weight_decay"] = 0.5
    taken = list(batches(40))
    for batch in taken[:20]:
        step.take(batch)
    module[0].bias.requires_grad_(False)
    bias, n_states = module[0].bias.detach().clone(), len(optimizer.state)
    step.refresh()
    for batch in taken[20:]:
        step.take(batch)
    assert is_verified(step)
    assert torch.equal(module[0].bias, bias)
    assert len(optimizer.state) == n_states


def test_a_parameter_without_state_gets_none_from_a_record():
    module = make_module()
    module[0].weight.requires_grad_(False)
    step, optimizer, _ = make_step(module)
    for batch in batches(12):
        step.take(batch)
    assert is_verified(step)
    assert module[0].weight not in optimizer.state


def test_loaded_weights_are_trained():
    module = make_module()
    start = copy.deepcopy(module.state_dict())
    step, _, _ = make_step(module)
    (batch,) = batches(1)
    first = step.take(batch).item()
    for _ in range(20):
        last = step.take(batch).item()
    assert last < first
    module.load_state_dict(start)
    assert step.take(batch).item() == pytest.approx(first)


# Verification of the first replay


class Hidden:
    """State that a custom operator changes without declaring it."""

    n_calls = 0


@torch.library.custom_op("skae_tests::count_calls", mutates_args=())
def count_calls(X: torch.Tensor) -> torch.Tensor:
    """One more at each call, whatever X is: a counter in Python."""
    Hidden.n_calls += 1
    return torch.full((), 1.0 + Hidden.n_calls)


@torch.library.custom_op("skae_tests::increment", mutates_args=())
def increment(X: torch.Tensor) -> torch.Tensor:
    """Change X in place, which `mutates_args` does not declare."""
    X.add_(1.0)
    return torch.zeros(())


class CountingLayer(nn.Module):
    """A layer that multiplies its input by the number of calls."""

    def forward(self, X):
        return X * torch.ops.skae_tests.count_calls(torch.zeros_like(X))


class IncrementingLayer(nn.Module):
    """A layer that counts its calls in a buffer, and multiplies by them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, X):
        torch.ops.skae_tests.increment(self.count)
        return X * self.count


WARNING = "recorded training step differs"


def assert_falls_back(make, **kwargs):
    """Check that a warning is given, and that all steps are as without records."""
    Hidden.n_calls = 0
    eager, checked = make(), make()
    expected, _ = losses_of(eager, False, **kwargs)
    Hidden.n_calls = 0
    with pytest.warns(RuntimeWarning, match=WARNING) as caught:
        actual, step = losses_of(checked, "auto", **kwargs)
    assert len(caught) == 1
    assert not step._records
    assert actual == expected
    assert same(checked.state_dict(), eager.state_dict())


@pytest.fixture(params=[CountingLayer, IncrementingLayer])
def layer(request, monkeypatch):
    """A layer with a wrongly declared operator whose class is set to be torch's."""
    monkeypatch.setattr(request.param, "__module__", "torch.test")
    return request.param


def test_an_undeclared_change_of_state_is_detected(layer):
    assert_falls_back(lambda: make_module(layer()))


def test_an_undeclared_change_of_state_is_detected_with_callbacks(layer):
    calls = []
    assert_falls_back(
        lambda: make_module(layer()), on_gradients=lambda: calls.append(1)
    )
    assert len(calls) == 2 * 24


def test_a_foreign_layer_with_such_an_operator_gives_no_warning():
    step = assert_same_as_eager(lambda: make_module(IncrementingLayer()))
    assert not step._records


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "converted", [torch.fx.symbolic_trace, torch.jit.script], ids=["fx", "script"]
)
def test_an_undeclared_change_in_a_converted_module_is_detected(converted):
    def make():
        # The classes of these modules are PyTorch's, but not the operator they call.
        return make_module(converted(CountingLayer()))

    assert not is_trusted(CountingLayer())
    assert is_trusted(make())
    assert_falls_back(make)


def test_training_continues_if_verification_has_changed_hidden_state(monkeypatch):
    class HiddenCount(nn.Module):
        """The operator depends on X: a replay calls it, and counts a call too many."""

        def forward(self, X):
            return X * torch.ops.skae_tests.count_calls(X.detach())

    monkeypatch.setattr(HiddenCount, "__module__", "torch.test")
    with pytest.warns(RuntimeWarning, match=WARNING):
        losses, step = losses_of(make_module(HiddenCount()), "auto")
    assert np.isfinite(losses).all()
    assert not step._records


def test_an_estimator_trains_on_after_the_warning(monkeypatch):
    monkeypatch.setattr(IncrementingLayer, "__module__", "torch.test")

    network = Custom(
        nn.Sequential(nn.Linear(2, 3), IncrementingLayer(), nn.Linear(3, 1)),
        nn.Linear(1, 2),
    )

    def fitted(compile):
        return AutoencoderTransformer(
            1,
            network=network,
            max_epochs=8,
            batch_size=8,
            early_stopping=False,
            random_state=0,
            compile=compile,
            device="cpu",  # what is replayed on a GPU are its kernels alone
        ).fit(X)

    eager = fitted(False)
    with pytest.warns(RuntimeWarning, match=WARNING):
        checked = fitted("auto")
    assert checked.loss_curve_ == eager.loss_curve_
    assert_array_equal(checked.transform(X), eager.transform(X))


@pytest.mark.parametrize("n_replays", [1, 2])
def test_a_step_is_compared_with_an_eager_one_once(monkeypatch, n_replays):
    compared = []
    verify = step_module._Record.verify

    def spy(record, batch):
        compared.append(record)
        return verify(record, batch)

    monkeypatch.setattr(step_module._Record, "verify", spy)
    n_steps = step_module.WARM_UP + 1 + n_replays
    step, _, _ = make_step(make_module())
    (batch,) = batches(1)
    for _ in range(n_steps):
        step.take(batch)
    assert len(compared) == 1


def test_buffers_pass_the_verification():
    step = assert_same_as_eager(lambda: make_module(nn.BatchNorm1d(4)), n_steps=60)
    assert is_verified(step)


def test_noise_passes_the_verification():
    def losses(compile):
        layer = Dropout(0.3)
        layer.generator = torch.Generator().manual_seed(5)
        module = make_module(layer)
        return losses_of(module, compile, n_steps=60, generator=layer.generator)

    (eager, _), (recorded, step) = losses(False), losses("auto")
    assert is_verified(step)
    assert recorded == pytest.approx(eager, rel=1e-4)


def test_global_noise_passes_the_verification():
    def losses(compile):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return losses_of(make_module(nn.Dropout(0.3)), compile, n_steps=60)

    (eager, _), (recorded, step) = losses(False), losses("auto")
    assert is_verified(step)
    assert recorded == pytest.approx(eager, rel=1e-4)


ORDINARY = {
    "dropout": {"network": MLP((8,), dropout=0.3)},
    "batch norm": {
        "network": Custom(
            # A bias before the norm would have a gradient of rounding errors alone.
            nn.Sequential(
                nn.Linear(2, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 2)
            ),
            nn.Linear(2, 2),
        )
    },
    "global dropout": {
        "network": Custom(
            nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.3), nn.Linear(8, 2)),
            nn.Linear(2, 2),
        )
    },
    "codebooks": {"bottleneck": Quantized(4, 1)},
    "gaussian": {"bottleneck": "gaussian"},
    "clipping": {"callbacks": [GradientNormClipping(0.01)]},
    "corruption": {"corruption": "swap", "trim": 0.1},
}


@pytest.mark.parametrize("parameters", ORDINARY.values(), ids=ORDINARY)
def test_ordinary_networks_train_as_without_records(monkeypatch, parameters):
    verified = []
    verify = step_module._Record.verify

    def spy(record, batch):
        result = verify(record, batch)
        verified.append(result[1])
        return result

    monkeypatch.setattr(step_module._Record, "verify", spy)
    rows = np.tile(X, (2, 1)) + np.arange(48)[:, None]

    def fitted(compile):
        settings = {"max_epochs": 8, "batch_size": 16, "early_stopping": False}
        model = AutoencoderTransformer(
            2, compile=compile, random_state=0, **settings, **parameters
        )
        return model.fit(rows)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ConvergenceWarning)
        eager, recorded = fitted(False), fitted("auto")
    assert verified
    assert all(verified)
    assert recorded.loss_curve_ == pytest.approx(eager.loss_curve_, rel=1e-3)
    assert_close(weights_of(recorded.net_), weights_of(eager.net_))


# Compilers and GPUs


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.slow  # the compiler takes most of the time of this file
@pytest.mark.filterwarnings("ignore")  # PyTorch's own, about its own parts
def test_compiled_steps_nearly_equal_eager_steps():
    eager, _ = losses_of(make_module(), False, n_steps=6, sizes=(8,))
    compiled, _ = losses_of(make_module(), True, n_steps=6, sizes=(8,))
    assert compiled == pytest.approx(eager, rel=1e-4)


def gpu_losses(compile, make=make_module, generator=None):
    module = make().cuda()
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=0.01, fused=True, capturable=True
    )

    def loss(batch):
        return functional.mse_loss(module(batch.target), batch.target)

    step = Step(loss, [module], optimizer, compile=compile, generator=generator)
    losses = [
        step.take(Batch(*(t if t is None else t.cuda() for t in batch))).item()
        for batch in batches(30)
    ]
    return losses, step


@pytest.mark.cuda
def test_graphs_on_a_gpu_equal_eager_steps():
    (eager, _), (captured, step) = gpu_losses(False), gpu_losses("auto")
    assert captured == pytest.approx(eager, rel=1e-4)
    assert is_verified(step)


@pytest.mark.cuda
def test_graphs_on_a_gpu_draw_as_eager_steps_do():
    def losses(compile):
        layer = Dropout(0.3)
        layer.generator = torch.Generator("cuda").manual_seed(5)
        return gpu_losses(compile, lambda: make_module(layer), layer.generator)

    (eager, _), (captured, step) = losses(False), losses("auto")
    assert is_verified(step)
    assert captured == pytest.approx(eager, rel=1e-4)
