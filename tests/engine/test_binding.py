"""How recorded operators are repeated."""

import numpy as np
import pytest
import torch

from skae.engine.binding import ALIGNMENT, flatten
from skae.engine.tape import record


def randn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


SHAPES = [(3, 5), (16,), (), (1, 4, 2), (17,)]


def test_flattened_tensors_are_aligned_parts_of_one_memory():
    tensors = [randn(*shape) for shape in SHAPES]
    parts = flatten(tensors)
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1
    for part, tensor in zip(parts, tensors, strict=True):
        assert torch.equal(part, tensor)
        assert part.is_contiguous()
        assert part.storage_offset() % ALIGNMENT == 0


def adam(parameters, gradients, moments, squares, steps):
    torch._fused_adamw_(
        parameters,
        gradients,
        moments,
        squares,
        [],
        steps,
        lr=0.1,
        beta1=0.9,
        beta2=0.99,
        weight_decay=0.1,
        eps=1e-8,
        amsgrad=False,
        maximize=False,
    )


def lists(arrange):
    """Parameters, moments and steps of an optimizer."""
    parameters, moments, squares = (
        arrange([factor * randn(*shape) for shape in SHAPES]) for factor in (1, 0.1, 0)
    )
    return parameters, moments, squares, [torch.zeros(()) for _ in SHAPES]


def every_other(tensors):
    """Parts of one memory with others in between, as those of frozen parameters."""
    return flatten([u for t in tensors for u in (t, torch.ones(3))])[::2]


@pytest.mark.parametrize(
    ("arrange", "is_joined"),
    [
        (flatten, True),
        (every_other, False),
        (list, False),
        (lambda t: flatten(t)[::-1], False),
    ],
    ids=["joined", "gaps", "separate", "reversed"],
)
def test_an_update_of_joined_tensors_equals_one_of_each(arrange, is_joined):
    ours = lists(arrange)
    others = [[t.clone() for t in values] for values in ours]
    X = torch.tensor(1.0)
    shapes = [p.shape for p in ours[0]]

    def update(values):
        parameters, moments, squares, steps = values
        gradients = [X * torch.ones(shape) * 0.3 for shape in shapes]
        torch._foreach_add_(steps, 1.0)
        adam(parameters, gradients, moments, squares, steps)
        return gradients

    tensors = [t for values in ours for t in values]
    gradients, tape = record(lambda: update(ours), [X, *tensors])
    update(others)
    for value in (2.0, -1.0):
        X.fill_(value)
        tape.run()
        expected = update(others)
    for actual, reference in zip(
        [gradients, *ours[:3]], [expected, *others[:3]], strict=True
    ):
        for a, b in zip(actual, reference, strict=True):
            torch.testing.assert_close(a, b)
    n_updated = [len(c.args[0]) for c in tape.calls if "adam" in str(c)]
    assert n_updated == [1 if is_joined else len(SHAPES)]


def test_what_lies_between_parameters_is_not_updated():
    """A parameter that is frozen after another has been joined with it."""
    memory = flatten([randn(4), torch.ones(3), randn(5)])
    frozen = memory[1].clone()
    moments, squares = (
        flatten([torch.zeros_like(m) for m in memory]) for _ in range(2)
    )
    steps = [torch.ones(()) for _ in memory]
    X = torch.tensor(1.0)

    def update():
        gradients = [X * torch.ones_like(m) for m in memory[::2]]
        adam(memory[::2], gradients, moments[::2], squares[::2], steps[::2])
        return gradients

    _, tape = record(update, [X, *memory, *moments, *squares, *steps])
    tape.run()
    assert torch.equal(memory[1], frozen)


def test_counters_that_are_one_tensor_are_incremented_at_once():
    counters = list(torch.zeros(5))
    _, tape = record(lambda: torch._foreach_add_(counters, 1.0), counters)
    tape.run()
    assert [c.item() for c in counters] == [2.0] * 5
    assert len(tape) == 1


@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("is_transposed", [True, False])
@pytest.mark.parametrize("shape", [(6, 4), (3, 6, 4), (1, 1), (2, 3, 6, 4)])
def test_sums_over_rows_are_replayed(shape, is_transposed, keepdim):
    X = randn(*shape)
    if is_transposed:
        X = X.mT.contiguous().mT
    for dim in range(len(shape)):
        for dims in ([dim], [dim - len(shape)], sorted({0, dim})):
            result, tape = record(
                lambda d=dims: (X * 2).sum(dim=d, keepdim=keepdim), [X]
            )
            X.copy_(torch.randn(shape))
            tape.run()
            torch.testing.assert_close(result, 2 * X.sum(dim=dims, keepdim=keepdim))


@pytest.mark.parametrize(
    "function",
    [
        lambda X: (X + 1).mul(2).sub(3).div(7),
        lambda X: torch.add(X, 2, alpha=3),
        lambda X: torch.ops.aten.add.Scalar(X, 2, 3),
        lambda X: torch.ops.aten.sub_.Scalar(X * 1, 2, 3),
        lambda X: torch.div(X, 0.3, rounding_mode="floor"),
        lambda X: 1 - X,
        lambda X: 2.5 - X * 0.1,
        lambda X: (X > 0.1) & (X <= 1) | (X < -1) | (X >= 3),
        lambda X: (X.long() * 2 + 1).float(),
        lambda X: (X > 0) * 2.5,
        lambda X: X.double() / 3,
    ],
)
def test_numbers_are_operands_of_the_same_type(function):
    X = randn(5, 5)
    result, tape = record(lambda: function(X), [X])
    X.copy_(3 * torch.randn(5, 5))
    tape.run()
    torch.testing.assert_close(result, function(X))


@pytest.mark.parametrize("function", [torch.exp, torch.tanh, torch.exp_, torch.tanh_])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_functions_of_entries_are_exact_to_rounding(function, dtype):
    X = torch.cat([randn(1000), torch.tensor([0.0, -0.0, 90.0, -90.0, 1e-30])])
    X = torch.cat([X, torch.tensor([torch.inf, -torch.inf, torch.nan])]).to(dtype)
    result, tape = record(lambda: function(X * 1), [X])
    X.copy_(-X)
    with np.errstate(all="ignore"):
        tape.run()
    expected = function(X.double())
    rtol = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        result.double(), expected.to(dtype).double(), rtol=rtol, atol=0, equal_nan=True
    )


def test_memory_that_numpy_reads_is_not_replaced():
    """The convolution has no variant that writes into memory."""
    X, kernel, B = randn(3, 1, 6), randn(1, 1, 3), randn(4, 5)
    W = B.clone()

    def function():
        return torch.conv1d(X, kernel)[:, 0] @ W, torch.conv1d(X, kernel)

    result, tape = record(function, [X])
    for _ in range(2):
        X.copy_(torch.randn(X.shape))
        tape.run()
        for actual, expected in zip(result, function(), strict=True):
            torch.testing.assert_close(actual, expected)
