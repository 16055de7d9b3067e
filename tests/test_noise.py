"""Facts about skae._noise."""

import math

import pytest
import torch
from torch.distributions import Normal

from skae._noise import DECAY, Noise
from skae.losses import LogError, Mixed, SquaredError

ONES = torch.ones(3)


def make_noise(loss=None, is_scaled=(True, True), level=1.0, is_learnt=True, **kwargs):
    loss = SquaredError() if loss is None else loss
    return Noise(loss, torch.tensor(is_scaled), level, is_learnt, **kwargs)


def losses(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_likelihood_of_the_squared_error_is_that_of_a_normal_distribution():
    noise, residuals = make_noise(level=0.3), losses(3, 2)
    expected = -Normal(0.0, math.sqrt(0.3)).log_prob(residuals)
    actual = noise.negative_log_likelihood(residuals.square())
    torch.testing.assert_close(actual, expected)


def test_column_without_a_scale_keeps_its_loss():
    noise, values = make_noise(Mixed([1]), (True, False), 0.3), losses(3, 2)
    assert torch.equal(noise.negative_log_likelihood(values)[:, 1], values[:, 1])
    assert torch.equal(noise.energy(values)[:, 0], values[:, 0])
    torch.testing.assert_close(noise.energy(values)[:, 1], 0.6 * values[:, 1])


@pytest.mark.parametrize("shape", [(3, 2), (4, 3, 2)])
def test_level_moves_towards_the_mean_loss(shape):
    noise = make_noise(n_members=shape[0] if len(shape) == 3 else None)
    values = losses(*shape)
    noise.update(values, None, ONES)
    mean = values.mean(dim=(-2, -1)).reshape(noise.level.shape)
    torch.testing.assert_close(noise.level, DECAY + (1 - DECAY) * mean)
    for _ in range(1000):
        noise.update(values, None, ONES)
    torch.testing.assert_close(noise.level, mean)


def test_rows_of_weight_zero_and_missing_entries_do_not_count():
    noise, same = make_noise(), make_noise()
    values = torch.tensor([[0.5, torch.nan], [0.1, 0.3], [9.0, 9.0]])
    observed = torch.tensor([[True, False], [True, True], [True, True]])
    noise.update(values, observed, torch.tensor([2.0, 1.0, 0.0]))
    same.update(torch.tensor([[0.5, 0.5], [0.1, 0.3]]), None, torch.ones(2))
    torch.testing.assert_close(noise.level, same.level)


def test_batch_without_observed_entries_leaves_the_level():
    noise = make_noise()
    noise.update(torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.bool), ONES)
    assert noise.level == 1


def test_given_level_is_not_learnt():
    noise = make_noise(level=0.5, is_learnt=False)
    noise.update(losses(3, 2), None, ONES)
    assert noise.level == 0.5


@pytest.mark.parametrize("loss", [SquaredError(), LogError()], ids=str)
def test_likelihood_of_exact_reconstructions_is_bounded(loss):
    noise = make_noise(loss)
    for _ in range(3000):
        noise.update(torch.zeros(3, 2), None, ONES)
    assert noise.negative_log_likelihood(torch.zeros(3, 2)).isfinite().all()
    assert noise.level > 0


def test_level_may_change_between_forward_and_backward_pass():
    noise, values = make_noise(LogError()), losses(3, 2).requires_grad_()
    likelihood = noise.negative_log_likelihood(values)
    noise.update(values.detach(), None, ONES)
    likelihood.sum().backward()
    assert values.grad.isfinite().all()


@pytest.mark.parametrize("n_members", [None, 2])
def test_joined_members_keep_their_levels(n_members):
    first, second = make_noise(n_members=n_members), make_noise(level=2.0, n_members=3)
    joined = first.joined(second)
    n_first = n_members or 1
    assert joined.level.flatten().tolist() == [1.0] * n_first + [2.0] * 3
    assert joined.lowest.shape == joined.level.shape
    joined.update(losses(n_first + 3, 3, 2), None, ONES)
    assert (first.level == 1).all()
