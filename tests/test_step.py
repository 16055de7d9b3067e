"""Facts about skae._step."""

import copy
import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional

from skae import _step
from skae._batches import Batch
from skae._step import Step, is_known


class Foreign(nn.Module):
    """A layer from elsewhere, which counts its calls."""

    n_calls = 0

    def forward(self, X):
        self.n_calls += 1
        return X


def make_step(module, device="cpu", **kwargs):
    """A step that reproduces its batch, and its optimizer."""

    def loss(batch, done):
        X_hat = module(batch.target)
        rows = functional.mse_loss(X_hat, batch.target, reduction="none").sum(dim=1)
        return (rows * batch.weight).sum() * (1 + done)

    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, fused=True)
    return Step(loss, [module], optimizer, **kwargs), optimizer


def make_module(*more):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.GELU(), *more, nn.Linear(4, 3))


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


def losses_of(module, compile, steps=24, change=None, **kwargs):
    """Losses of some steps at a falling learning rate, and the step."""
    sizes = kwargs.pop("sizes", (8, 7))
    step, optimizer = make_step(module, compile=compile, **kwargs)
    losses = []
    for i, batch in enumerate(batches(steps, sizes, holes=True)):
        if change is not None and i == steps // 2:
            change(module, optimizer)
            step.refresh()
        optimizer.param_groups[0]["lr"] = 0.01 / (1 + i)
        losses.append(step(batch, i / steps).item())
    return losses, step


def assert_same_as_eager(make=make_module, **kwargs):
    eager, _ = losses_of(make(), False, **kwargs)
    fast, step = losses_of(make(), "auto", **kwargs)
    assert fast == eager
    return step


def test_recorded_steps_are_those_of_pytorch_to_the_last_bit():
    step = assert_same_as_eager(steps=80)
    assert step._repeats


def test_the_first_steps_are_not_recorded():
    assert not losses_of(make_module(), "auto", steps=_step.WARM_UP)[1]._repeats


def test_nothing_is_recorded_without_need():
    assert not losses_of(make_module(), False)[1]._repeats


def test_a_foreign_module_runs_its_own_code_at_each_step():
    foreign = Foreign()
    _, step = losses_of(make_module(foreign), "auto", steps=20)
    assert foreign.n_calls == 20
    assert not step._repeats


@pytest.mark.parametrize(
    ("part", "known"),
    [
        (nn.Linear(1, 1), True),
        (nn.Sequential(nn.ReLU(), Foreign()), False),
        (torch.optim.AdamW([nn.Parameter(torch.zeros(1))]), True),
        (object(), False),
    ],
)
def test_known_is_what_comes_with_pytorch_or_skae(part, known):
    assert is_known(part) == known


def test_a_hook_that_comes_later_is_called():
    seen = []

    def hook(module, optimizer):
        module[0].register_forward_hook(lambda *args: seen.append(1))

    losses_of(make_module(), "auto", steps=40, change=hook)
    assert len(seen) == 20


def freeze(module, optimizer):
    module[0].requires_grad_(False)


def decay(module, optimizer):
    optimizer.param_groups[0]["weight_decay"] = 0.5


@pytest.mark.parametrize("change", [freeze, decay])
def test_a_change_between_epochs_is_obeyed(change):
    step = assert_same_as_eager(steps=80, change=change)
    assert step._repeats
    assert (
        losses_of(make_module(), "auto", steps=80)[0]
        != (losses_of(make_module(), "auto", steps=80, change=change)[0])
    )


def test_gradients_may_be_changed_before_the_update():
    def clipped(compile):
        module = make_module()

        def clip():
            nn.utils.clip_grad_norm_(module.parameters(), 0.1)

        losses, step = losses_of(module, compile, steps=60, on_gradients=clip)
        return losses, bool(step._repeats)

    (eager, _), (fast, was_recorded) = clipped(False), clipped("auto")
    assert was_recorded
    assert fast == eager
    assert fast != losses_of(make_module(), False, steps=60)[0]


def test_gradients_are_those_of_the_last_batch():
    modules = make_module(), make_module()
    steps = [
        make_step(module, compile=way)[0]
        for module, way in zip(modules, ("auto", False), strict=True)
    ]
    for i, batch in enumerate(batches(40, sizes=(8, 7))):
        for step in steps:
            step(batch, i / 40)
        for a, b in zip(*(m.parameters() for m in modules), strict=True):
            assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-6)
    assert steps[0]._repeats


def test_settings_that_change_between_epochs_are_obeyed():
    def stronger(module, optimizer):
        module[1].p = 0.9

    def losses(compile, change=stronger):
        module = make_module()
        module[1] = nn.Dropout(0.1)
        torch.manual_seed(3)
        return losses_of(module, compile, steps=80, change=change)[0]

    assert losses("auto") == pytest.approx(losses(False), rel=1e-4)
    assert losses("auto") != losses("auto", change=None)


class Looking(nn.GELU):
    """One that looks at values; it poses as a part of PyTorch."""

    def forward(self, X):
        return super().forward(X) if X.sum() > 0 else X


def test_a_step_that_looks_at_values_is_taken_as_it_is(monkeypatch):
    monkeypatch.setattr(Looking, "__module__", "torch.nn")
    step = assert_same_as_eager(lambda: make_module(Looking()), steps=40)
    assert not step._repeats


def test_records_are_few(monkeypatch):
    monkeypatch.setattr(_step, "MAX_RECORDS", 2)
    sizes = (5, 6, 7, 8, 9)
    step = assert_same_as_eager(steps=100, sizes=sizes)
    assert len(step._repeats) == 2


def test_weights_that_are_loaded_are_trained_on():
    module = make_module()
    start = copy.deepcopy(module.state_dict())
    step, _ = make_step(module)
    (batch,) = batches(1)
    first = step(batch, 0.0).item()
    for _ in range(20):
        last = step(batch, 0.0).item()
    assert last < first
    module.load_state_dict(start)
    assert step(batch, 0.0).item() == pytest.approx(first)


@pytest.mark.skipif(shutil.which("g++") is None, reason="it needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # PyTorch's own, about its own parts
def test_compiled_steps_are_nearly_those_of_pytorch():
    eager, _ = losses_of(make_module(), False, steps=6, sizes=(8,))
    compiled, _ = losses_of(make_module(), True, steps=6, sizes=(8,))
    assert compiled == pytest.approx(eager, rel=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="it needs CUDA")
def test_graphs_on_a_gpu_are_steps_of_pytorch():
    def losses(compile):
        module = make_module().cuda()
        optimizer = torch.optim.AdamW(
            module.parameters(), lr=0.01, fused=True, capturable=True
        )

        def loss(batch, done):
            return functional.mse_loss(module(batch.target), batch.target)

        step = Step(loss, [module], optimizer, compile=compile)
        return [
            step(Batch(*(t if t is None else t.cuda() for t in batch)), 0.0).item()
            for batch in batches(30)
        ]

    assert losses("auto") == pytest.approx(losses(False), rel=1e-4)
