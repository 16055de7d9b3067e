"""Tapes: operators that are recorded and replayed."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from skae.engine.tape import record


def replayed(function, inputs, others=()):
    """Results of a tape for new values in `inputs`, and results of a call."""
    function()  # what only the first call creates exists from now on
    result, tape = record(function, [*inputs, *others])
    for tensor in inputs:
        tensor.copy_(torch.randn(tensor.shape, dtype=tensor.dtype))
    before = [t.clone() for t in others]
    tape.run()
    actual = [t.clone() for t in flat(result)] + [t.clone() for t in others]
    for tensor, value in zip(others, before, strict=True):
        tensor.copy_(value)
    expected = [t.clone() for t in flat(function())] + [t.clone() for t in others]
    return actual, expected


def flat(result):
    return [result] if isinstance(result, torch.Tensor) else list(result)


def assert_replays(function, inputs, others=()):
    actual, expected = replayed(function, inputs, others)
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b)


def assert_close(a, b, tolerance=1e-5):
    """Check that two results are equal up to rounding."""
    assert a.dtype == b.dtype
    largest = b.detach().double().nan_to_num(posinf=0.0, neginf=0.0).abs()
    scale = largest.max().item() if b.numel() else 0.0
    torch.testing.assert_close(
        a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True
    )


def randn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


UNARY = {
    "relu": torch.relu,
    "gelu": functional.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": functional.softplus,
    "square": torch.square,
    "t": lambda X: X.t() @ X,
    "chunk": lambda X: X.chunk(2, dim=1)[0].repeat(1, 2),
    "softmax": lambda X: X.softmax(dim=1),
    "other type": lambda X: X.float().double(),
    "half": lambda X: X / 2,
    "power": lambda X: X.abs() ** 1.5,
    "centre": lambda X: X - X.mean(),
    "cat": lambda X: torch.cat([X[:, 1:], X[:, :1]], dim=1),
    "where": lambda X: torch.where(X > 0, X, -1.0),
    "clamp": lambda X: X.clamp(-0.5, 0.5),
    "pad": lambda X: functional.pad(X, (1, -1)),
    "sum": lambda X: X + X.sum(dim=0, keepdim=True),
    "in_place": lambda X: X.clone().mul_(3).add_(1),
    "squeeze_": lambda X: X * (X.sum(dim=0, keepdim=True) * 1).squeeze_(0),
    "weights": lambda X: X * (X.new_ones(4) @ X),
}


@settings(max_examples=40)
@given(st.lists(st.sampled_from(sorted(UNARY)), min_size=1, max_size=6))
def test_a_run_equals_a_call_up_to_rounding(names):
    # In float64, since some of these functions magnify rounding errors.
    X = randn(4, 4).double()
    W = nn.Parameter(randn(4, 4).double())

    def function():
        H = X @ W
        for name in names:
            H = UNARY[name](H)
        loss = functional.mse_loss(H, torch.zeros_like(H))
        return loss.detach(), *torch.autograd.grad(loss, W)

    with np.errstate(all="ignore"):
        actual, expected = replayed(function, [X])
    assume(all(t.abs().max() < 1e30 for t in expected))  # no overflow in float32
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b)


LAYERS = {
    "linear": (nn.Linear(12, 3), (5, 12)),
    "conv": (nn.Conv1d(2, 3, 3), (5, 2, 9)),
    "transposed": (nn.ConvTranspose2d(2, 1, 3, stride=2), (5, 2, 4, 4)),
    "norm": (nn.BatchNorm1d(4), (5, 4)),
    "pool": (nn.MaxPool2d(2), (5, 1, 4, 4)),
    "layer norm": (nn.LayerNorm(4), (5, 4)),
    "flat": (nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.Flatten()), (5, 1, 5, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_and_their_buffers_are_replayed(name):
    layer, shape = LAYERS[name]
    layer = copy.deepcopy(layer)
    X = randn(*shape)

    def function():
        layer.zero_grad()
        loss = layer(X).square().sum()
        if list(layer.parameters()):
            loss.backward()
        return [loss.detach(), *(p.grad for p in layer.parameters())]

    assert_replays(function, [X], list(layer.buffers()))


def written(X):
    """A new table into which rows are written."""
    table = X.new_zeros(4, 4)
    table[0] = X[1]
    table[X > 0] = 2.0
    return table


OPERATIONS = {
    "sort": lambda X: X.sort(dim=1),
    "topk": lambda X: X.topk(2, dim=1),
    "max": lambda X: X.max(dim=1),
    "var_mean": lambda X: torch.var_mean(X, dim=0),
    "unbind": lambda X: torch.stack(X.unbind(0)[::-1]),
    "written": written,
    "index_put": lambda X: torch.zeros(4, 4).index_put(
        (torch.tensor([0, 0, 1]),), X[:3], accumulate=True
    ),
    "ones": lambda X: torch.ones(4, 4).add_(X),
    "arange": lambda X: torch.arange(4.0).mul_(X[0]),
    "transpose_": lambda X: (X * 1).transpose_(0, 1) @ X,
    "unsqueeze_": lambda X: (X * 1).unsqueeze_(0) + 1,
    "counts": lambda X: (X > 0).sum() + (X > 1).any(),
    "bfloat16": lambda X: (X.bfloat16() @ X.bfloat16()).float(),
    "cdist": lambda X: torch.cdist(X, X + 1),
    "view of an input": lambda X: (X.t(), X * 2),
    "twice": lambda X: (lambda Y: (Y, Y.t(), Y.sum()))(X * 2),
    "empty": lambda X: (X[:0] * 2, X * 2),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_of_all_kinds_are_replayed(name):
    X = randn(4, 4)
    assert_replays(lambda: OPERATIONS[name](X), [X])


@pytest.mark.parametrize(
    "layer",
    [
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)),
        nn.GRU(4, 3),
        nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0),
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
        nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_of_pytorch_replay_their_gradients(layer):
    # In float64: some of these gradients are small differences of large numbers.
    layer = copy.deepcopy(layer).double()
    X = randn(5, 3, 4).double()

    def function():
        layer.zero_grad()
        output = layer(X)
        output = output[0] if isinstance(output, tuple) else output
        loss = output.square().sum()
        loss.backward()
        return [loss.detach(), *(p.grad for p in layer.parameters())]

    assert_replays(function, [X], list(layer.buffers()))


def test_dropout_continues_the_global_generator():
    X = randn(50)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        functional.dropout(X, 0.5)
        expected = [functional.dropout(X, 0.5) for _ in range(2)]
        torch.manual_seed(0)
        result, tape = record(lambda: functional.dropout(X, 0.5), [X])
        for value in expected:
            tape.run()
            assert torch.equal(result, value)


@pytest.mark.parametrize(
    "draw",
    [
        lambda g: torch.rand(3, generator=g),
        lambda g: torch.randn(3, generator=g),
        lambda g: torch.randint(5, (3,), generator=g),
        lambda g: torch.empty(3).bernoulli_(0.5, generator=g),
    ],
)
def test_random_numbers_continue_the_generator(draw):
    one, other = (torch.Generator().manual_seed(7) for _ in range(2))
    result, tape = record(lambda: draw(one) * 1, [])
    draw(other)
    for _ in range(2):
        tape.run()
        assert torch.equal(result, draw(other))


def test_unused_random_numbers_are_drawn():
    generator = torch.Generator().manual_seed(0)

    def function():
        torch.rand(3, generator=generator)
        return torch.rand(3, generator=generator)

    first, tape = record(function, [])
    first = first.clone()
    tape.run()
    assert len(tape) == 2


def test_views_and_constants_are_not_repeated():
    X, C = randn(4, 3), randn(3, 4)
    result, tape = record(lambda: X.t().reshape(3, 4) + (C * 2).exp(), [X])
    assert len(tape) == 1  # the sum
    X.fill_(1)
    tape.run()
    assert torch.equal(result, 1 + (C * 2).exp())


def test_unused_results_are_not_computed():
    X = randn(3)

    def function():
        X.exp()
        return X * 2

    assert len(record(function, [X])[1]) == 1


def test_new_memory_that_is_overwritten_is_initialized_again():
    X = randn(3)
    result, tape = record(lambda: torch.zeros_like(X).add_(X), [X])
    for _ in range(2):
        tape.run()
    assert torch.equal(result, X)


def test_changes_of_existing_tensors_are_repeated():
    count = torch.zeros(())
    _, tape = record(lambda: count.add_(1), [])
    tape.run()
    tape.run()
    assert count == 3


@pytest.mark.parametrize(
    "function",
    [
        lambda X: X * X.sum().item(),
        lambda X: X * 2 if X.sum() > 0 else X,
        lambda X: X[X > 0],
        lambda X: X.nonzero(),
    ],
)
def test_a_function_whose_control_flow_depends_on_values_has_no_tape(function):
    X = randn(3)
    result, tape = record(lambda: function(X), [X])
    assert tape is None
    assert torch.equal(result, function(X))


def test_an_update_of_the_weights_is_replayed():
    X, rate = randn(8, 3), torch.tensor(0.01, dtype=torch.float64)
    layers = [nn.Linear(3, 3), nn.Linear(3, 3)]
    layers[1].load_state_dict(layers[0].state_dict())

    def make_step(layer):
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01, fused=True)

        def step():
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            loss = layer(X).square().mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        step()
        return step, optimizer

    (step, optimizer), (eager, _) = map(make_step, layers)
    eager()
    state = [t for s in optimizer.state.values() for t in s.values()]
    loss, tape = record(step, [X, rate, *layers[0].parameters(), *state])
    for value in (0.01, 0.1, 0.001):
        rate.fill_(value)
        tape.run()
        assert_close(loss, eager())
    for a, b in zip(*(layer.parameters() for layer in layers), strict=True):
        assert_close(a, b)


def test_a_function_that_overwrites_a_literal_has_no_tape():
    X = randn(3)

    def function():
        total = torch.tensor(0.0)
        total += X.sum()
        return total

    assert record(function, [X])[1] is None


def test_a_constant_result_that_the_caller_overwrites_is_computed_again():
    result, tape = record(lambda: torch.ones(2) * 3, [])
    result.fill_(0)
    tape.run()
    assert (result == 3).all()


def test_conjugates_and_sparse_tensors_have_no_tape():
    X = randn(3, 3)
    assert record(lambda: torch.complex(X, X).conj() * 1, [X])[1] is None
    assert record(lambda: X.to_sparse().to_dense(), [X])[1] is None
