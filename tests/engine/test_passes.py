"""Passes over recorded operations: what they replace, and when they must not."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from skae.engine.passes import overwrite_inputs
from skae.engine.tape import record


def randn(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=dtype)


def assert_replays(function, X, n_calls=None, tolerance=1e-5):
    """Check results for new values of X, and the number of functions called."""
    result, tape = record(function, [X])
    if n_calls is not None:
        assert len(tape) == n_calls
    for _ in range(2):
        X.copy_(2 * torch.randn(X.shape, dtype=X.dtype))
        with np.errstate(all="ignore"):
            tape.run()
        for actual, expected in zip(results(result), results(function()), strict=True):
            scale = expected.double().abs().max().item()
            torch.testing.assert_close(
                actual, expected, rtol=tolerance, atol=tolerance * scale
            )
    X.copy_(torch.randn(X.shape, dtype=X.dtype))
    with np.errstate(all="ignore"):
        tape.run_as_recorded()
    for actual, expected in zip(results(result), results(function()), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def results(value):
    return list(value) if isinstance(value, tuple | list) else [value]


# Sums that are reduced to one number

W = randn(6)

SUMS = {
    "mean of rows": (lambda X: X.exp().sum(dim=1).div(4).mean(), 2),
    "constant weights": (lambda X: (X.exp().mean(dim=1) * W).sum() / 6, 2),
    "constant first": (lambda X: (W[:, None] * X.exp()).sum(), 2),
    "negative": (lambda X: -X.exp().sum(dim=[0, 1]) * 2, 2),
    "two": (lambda X: X.exp().sum(dim=1).mean() + (X * X).sum(dim=0).mean(), 5),
    # One sum alone, and sums that do not lead to one number.
    "single": (lambda X: X.exp().sum(), 2),
    "rows": (lambda X: X.exp().sum(dim=1) / 2, 3),
    # Not linear in one tensor.
    "product": (lambda X: (X.exp() * X).sum(dim=1).mean(), 3),
    "denominator": (lambda X: 1 / X.exp().sum(dim=1).mean(), None),
    # Read by others.
    "shared": (lambda X: (lambda s: s.mean() + s.max())(X.exp().sum(dim=1)), None),
    "a result": (lambda X: (lambda s: (s, s.mean()))(X.exp().sum(dim=1)), None),
    # Overwritten in between.
    "in place": (
        lambda X: (lambda Y: Y.sum(dim=1).mean() + Y.mul_(2).sum())(X * 1),
        None,
    ),
    # Of types or layouts that NumPy does not take.
    "half": (lambda X: X.bfloat16().sum(dim=1).mean(), None),
    "columns": (lambda X: X.t().contiguous().t().exp().sum(dim=1).mean(), None),
    "integer": (lambda X: (X > 0).long().sum(dim=1).sum(), None),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SUMS)
def test_sums_up_to_one_number_are_one_product(name, dtype):
    function, n_calls = SUMS[name]
    if dtype == torch.float64 and name in ("constant weights", "constant first"):
        n_calls = None  # the constant changes the type
    X = randn(6, 4, dtype=dtype)
    assert_replays(lambda: function(X), X, n_calls)


def test_the_coefficients_of_a_sum_may_not_change():
    X, weight = randn(6, 4), randn(6)
    result, tape = record(lambda: (X.sum(dim=1) * weight).sum() / 2, [X, weight])
    weight.copy_(torch.arange(6.0))
    tape.run()
    torch.testing.assert_close(result, (X.sum(dim=1) * weight).sum() / 2)


# Squared error


def losses_and_gradient(loss):
    layer = nn.Linear(4, 4)

    def function(X):
        X_hat = layer(X)
        value = loss(X_hat, X)
        return value.detach(), *torch.autograd.grad(value, list(layer.parameters()))

    return function


def rows(X_hat, X):
    return functional.mse_loss(X_hat, X, reduction="none").sum(dim=1)


SQUARED = {
    "mean": (lambda X_hat, X: rows(X_hat, X).mean() / 4, 9),
    "double": (lambda X_hat, X: rows(X_hat, X).sum() * 3, 9),
    # Unequal factors, or those that differ from call to call.
    "weights": (lambda X_hat, X: (rows(X_hat, X) * W).mean(), None),
    "robust": (lambda X_hat, X: rows(X_hat, X).sqrt().mean(), None),
    "changing": (lambda X_hat, X: (rows(X_hat, X) * X[:, 0].detach()).mean(), None),
    # The residuals are read by others, or there are two sums.
    "twice": (lambda X_hat, X: rows(X_hat, X).mean() + rows(X_hat, 2 * X).sum(), None),
    "reduced": (functional.mse_loss, None),
}


@pytest.mark.parametrize("name", SQUARED)
def test_the_squared_error_shares_its_residuals(name):
    loss, n_calls = SQUARED[name]
    X = randn(6, 4)
    function = losses_and_gradient(loss)
    assert_replays(lambda: function(X), X, None, tolerance=1e-4)
    if n_calls is not None:
        names = called(record(lambda: function(X), [X])[1])
        assert names.count("subtract") == 1
        assert "mse_loss" not in names


def called(tape):
    """Names of the functions that a tape calls."""
    return [getattr(getattr(c, "func", c), "__name__", "") for c in tape.calls]


# Operations that overwrite their input

IN_PLACE = {
    "relu": (lambda X: torch.relu(X @ X), "relu_"),
    "number": (lambda X: (X @ X) * 2, "mul_"),
    "tensor": (lambda X: (X @ X) + X, "add_"),
    "chain": (lambda X: (((X @ X) + X) * 2).sigmoid(), "sigmoid_"),
}

NOT_IN_PLACE = {
    "input": lambda X: torch.relu(X),
    "a result": lambda X: (lambda Y: (Y, torch.relu(Y)))(X @ X),
    "read later": lambda X: (lambda Y: torch.relu(Y) + Y)(X @ X),
    "read before": lambda X: (lambda Y: (Y @ X, torch.relu(Y)))(X @ X),
    "itself": lambda X: (lambda Y: Y * Y.t())(X @ X),
    "larger": lambda X: (X @ X)[:1] + X,
    "other type": lambda X: (X @ X) > 0,
    "view": lambda X: torch.relu((X @ X).t()),
    "part": lambda X: torch.relu((X @ X)[:2]),
    "state": lambda X: X.add_(0) * 2,
    "overwritten after it was read": lambda X: (
        lambda Y: (Y.exp(), torch.relu(Y.add_(1)))
    )(X @ X),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_an_input_that_nothing_else_reads_is_overwritten(name):
    function, method = IN_PLACE[name]
    X = randn(4, 4)
    assert_replays(lambda: function(X), X)
    assert method in called(record(lambda: function(X), [X])[1])


@pytest.mark.parametrize("name", NOT_IN_PLACE)
def test_other_inputs_are_not_overwritten(name):
    X = randn(4, 4)
    assert_replays(lambda: NOT_IN_PLACE[name](X), X)
    names = called(record(lambda: NOT_IN_PLACE[name](X), [X])[1])
    assert not {"relu_", "mul_", "gt_"} & set(names)


def test_state_that_is_no_input_is_not_overwritten():
    count = torch.zeros(3)
    result, tape = record(lambda: count.add_(1) * 2, [])
    for _ in range(3):
        tape.run()
    assert (count == 4).all()
    assert (result == 8).all()


def test_passes_leave_the_record_as_it_is():
    assert overwrite_inputs([], set()) == []
