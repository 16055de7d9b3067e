"""Evaluation of a fitted module on blocks of rows."""

import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from nets import global_states, make_module
from numpy.testing import assert_array_equal
from scipy import sparse
from torch import nn

from skae import AutoencoderTransformer, _generator, _rows
from skae import _prediction as prediction
from skae._prediction import evaluate, evaluate_blocks, score_rows
from skae._rows import Rows
from skae.networks import Custom

X = np.random.default_rng(0).standard_normal((12, 2)).astype(np.float32)


def with_noise(n_features, n_components):
    """An encoder that draws from the global generator in evaluation mode, too."""
    return nn.Sequential(nn.Linear(n_features, n_components), Jitter())


def make_decoder(n_features, n_components):
    return nn.Linear(n_components, n_features)


class Jitter(nn.Module):
    def forward(self, X):
        return X + torch.rand_like(X)


@pytest.fixture
def module():
    module = make_module().eval()
    module.draws_globally = True
    return module


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of one to three rows."""
    monkeypatch.setattr(prediction, "BLOCK_ENTRIES", 12)


@pytest.mark.usefixtures("small_blocks")
def test_blocks_hold_all_rows_in_order(module):
    wheres, blocks = zip(*evaluate_blocks(module, "forward", Rows(X)), strict=True)
    assert len(blocks) > 2
    assert [where.start for where in wheres[1:]] == [
        where.stop for where in wheres[:-1]
    ]
    with torch.no_grad():
        expected = module(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(np.concatenate(blocks), expected, rtol=1e-6)
    assert_array_equal(evaluate(module, "forward", Rows(X)), np.concatenate(blocks))


def test_values_do_not_depend_on_block_size(module, monkeypatch):
    module = module.double()
    rows = Rows(X.astype(float))
    whole = evaluate(module, "encode", rows)
    monkeypatch.setattr(prediction, "BLOCK_ENTRIES", 12)
    np.testing.assert_allclose(evaluate(module, "encode", rows), whole, rtol=1e-13)


@pytest.mark.parametrize(
    "convert",
    [np.asfortranarray, sparse.csr_array, lambda X: X[::-1][::-1], lambda X: X],
    ids=["fortran", "csr", "view", "read-only"],
)
def test_every_table_is_evaluated(module, convert):
    expected = evaluate(module, "forward", Rows(X))
    table = convert(X.copy())
    if isinstance(table, np.ndarray):
        table.flags.writeable = False
    np.testing.assert_allclose(
        evaluate(module, "forward", Rows(table)), expected, rtol=1e-6
    )


# Between two blocks


@pytest.mark.usefixtures("small_blocks")
def test_the_consumer_is_not_in_inference_mode(module):
    weight = nn.Parameter(torch.ones(2))
    modes = []
    for _, values in evaluate_blocks(module, "forward", Rows(X)):
        modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
        (torch.from_numpy(values) * weight).sum().backward()
    assert len(modes) > 2
    assert set(modes) == {(False, True)}
    assert weight.grad is not None


@pytest.mark.usefixtures("small_blocks")
def test_the_consumer_draws_from_its_own_random_state(module):
    module.bottleneck = nn.Sequential(module.bottleneck, Jitter())
    module.bottleneck.n_values = 1
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = torch.rand(20).tolist()
        torch.manual_seed(3)
        blocks = evaluate_blocks(module, "forward", Rows(X))
        draws = [torch.rand(1).item() for _ in blocks]
    assert len(draws) > 2
    assert draws == expected[: len(draws)]


@pytest.mark.usefixtures("small_blocks")
def test_the_states_are_restored_if_the_consumer_stops_early(module):
    before = global_states()
    blocks = evaluate_blocks(module, "forward", Rows(X))
    next(blocks)
    assert global_states() == before
    assert not torch.is_inference_mode_enabled()
    blocks.close()
    assert global_states() == before


@pytest.mark.usefixtures("small_blocks")
def test_another_thread_can_predict_between_two_blocks(module):
    results = []

    def predict():
        results.append(evaluate(module, "forward", Rows(X)))

    for _ in evaluate_blocks(module, "forward", Rows(X)):
        # Ends only if the consumer does not hold the lock of the global generator.
        thread = threading.Thread(target=predict, daemon=True)
        thread.start()
        thread.join(timeout=300)
        assert not thread.is_alive()
    assert len(results) > 2
    for values in results:
        assert_array_equal(values, results[0])


def test_the_lock_is_held_while_a_block_is_evaluated(module, monkeypatch):
    events = []

    @contextmanager
    def watched(*args):
        events.append("enter")
        with _generator.isolated_generator(*args):
            yield
        events.append("exit")

    monkeypatch.setattr(prediction, "isolated_generator", watched)
    monkeypatch.setattr(prediction, "BLOCK_ENTRIES", 12)
    for _ in evaluate_blocks(module, "forward", Rows(X)):
        events.append("consume")
    assert events == ["enter", "exit", "consume"] * (len(events) // 3)
    assert len(events) > 6


def test_foreign_modules_predict_the_same_in_every_thread(monkeypatch):
    monkeypatch.setattr(_rows, "BLOCK_ENTRIES", 12)
    model = AutoencoderTransformer(
        1,
        network=Custom(with_noise, make_decoder),
        max_epochs=1,
        batch_size=4,
        random_state=0,
    ).fit(X)
    before = global_states()
    expected = model.reconstruct(X)
    results = []

    def predict():
        results.extend(model.reconstruct(X) for _ in range(10))

    threads = [threading.Thread(target=predict) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 30
    for X_hat in results:
        assert_array_equal(X_hat, expected)
    assert global_states() == before


# Scores


def test_an_overflow_in_the_network_scores_minus_infinity(module):
    with torch.no_grad():
        for parameter in module.decoder.parameters():
            parameter.mul_(1e4)
    rows = X.copy()
    rows[3] = 3e38
    scores = score_rows(module, Rows(rows))
    assert scores.dtype == np.float64
    assert scores[3] == -np.inf
    assert np.isfinite(np.delete(scores, 3)).all()
    assert (scores <= 0).all()
