"""Early stopping: the best epoch, the end of the training, and significance."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nets import (
    HELD_OUT,
    TRAIN,
    ScriptedLoss,
    X,
    callback_at,
    history_of,
    make_module,
    make_net,
    make_plan,
    same,
    stop_at,
    train,
    train_by_script,
    watch_rates,
    watch_weights,
    weights_of,
)
from scipy.stats import sem
from skorch.callbacks import LRScheduler

from skae._rows import Rows
from skae.engine import judge as judge_module
from skae.engine import trainer as trainer_module
from skae.engine.judge import (
    DivergenceError,
    Judge,
    Judgement,
    exceeds_standard_error,
)
from skae.engine.networks import Split


@pytest.fixture
def no_divisions(monkeypatch):
    """Stop training as soon as nothing improves."""
    monkeypatch.setattr(judge_module, "MAX_DIVISIONS", 0)


@pytest.fixture
def divisions(monkeypatch):
    """Divide the learning rate by three, twice, before training stops."""
    monkeypatch.setattr(judge_module, "MAX_DIVISIONS", 2)
    monkeypatch.setattr(trainer_module, "DIVISOR", 3)


# The best epoch


def test_the_best_epoch_is_restored():
    weights, watch = watch_weights()
    net = train_by_script([5, 4, 2, 3, 2.5], [watch])
    assert net.best_epoch_ == 2
    assert same(weights_of(net), weights[1])
    assert not same(weights_of(net), weights[-1])


def test_the_start_is_restored_if_no_epoch_is_better():
    before = make_module().state_dict()
    net = train_by_script([1, 4, 2, 3])
    assert net.best_epoch_ == 0
    assert same(weights_of(net), before)


def test_without_early_stopping_the_last_weights_are_kept():
    weights, watch = watch_weights()
    net = train_by_script([5, 4, 2, 3, 2.5], [watch], early_stopping=False)
    assert net.best_epoch_ == 4
    assert net.judgement_ is None
    assert same(weights_of(net), weights[-1])


def test_a_stopped_training_ends_on_its_best_epoch():
    weights, watch = watch_weights()
    net = train_by_script([5, 1, 2, 3, 4], [watch, stop_at(3)])
    assert net.best_epoch_ == 1
    assert same(weights_of(net), weights[0])


def test_without_held_out_rows_a_stopped_training_ends_on_its_lowest_loss():
    weights, watch = watch_weights()
    net = make_net(
        callbacks=[watch, stop_at(6)],
        max_epochs=10,
        schedule=lambda s: 1 if s < 0.3 else 100,
    )
    losses = [row["train_loss"] for row in history_of(net)]
    best = int(np.argmin(losses))
    assert best < 5
    assert net.best_epoch_ == best + 1
    assert same(weights_of(net), weights[best])


# The end of the training


def test_training_stops_after_epochs_without_gain(no_divisions):
    net = train_by_script([9, 8, 7, 7.5, 7, 7.1, 1, 1], n_iter_no_change=3)
    assert len(net.history) == 5
    assert net.best_epoch_ == 2


def test_a_gain_restarts_the_count_of_epochs_without_gain(no_divisions):
    net = train_by_script([9, 8, 8, 7, 7, 6, 6, 6, 6], n_iter_no_change=2)
    assert len(net.history) == 7


def test_the_learning_rate_is_divided_before_training_stops(divisions):
    rates, watch = watch_rates()
    train_by_script(
        [9, 8, *[8.5] * 20],
        [watch],
        n_iter_no_change=2,
        learning_rate=0.9,
        schedule=lambda s: 1.0,
    )
    np.testing.assert_allclose(rates, [0.9] * 3 + [0.3] * 2 + [0.1] * 2)


def test_training_continues_from_the_best_epoch_after_a_division(divisions):
    ends, starts = [], []
    callbacks = [
        callback_at("on_epoch_end", lambda net: ends.append(weights_of(net))),
        callback_at("on_epoch_begin", lambda net: starts.append(weights_of(net))),
    ]
    train_by_script([9, 8, 8.5, 8.5, 8.5], callbacks, n_iter_no_change=2)
    assert same(starts[2], ends[1])
    assert same(starts[3], ends[0])


def test_a_gain_after_a_division_restarts_the_count(divisions):
    net = train_by_script([9, 8, 8, 8, 7, 7, 7, 7, 7, 1], n_iter_no_change=2)
    assert len(net.history) == 8


def test_a_learning_rate_callback_prevents_divisions(divisions):
    scheduler = LRScheduler(policy="StepLR", step_size=1, gamma=0.5)
    net = train_by_script([9, 8, *[8.5] * 20], [scheduler], n_iter_no_change=2)
    assert len(net.history) == 3


def test_without_early_stopping_all_epochs_are_run():
    net = train_by_script([1, 2, 2, 2, 2], n_iter_no_change=1, early_stopping=False)
    assert len(net.history) == 4


@pytest.mark.parametrize(("tol", "n_epochs"), [(0.0, 6), (0.05, 6), (0.2, 2)])
def test_a_gain_counts_if_it_exceeds_tol_times_the_best(no_divisions, tol, n_epochs):
    values = [1000 * 0.9**epoch for epoch in range(7)]
    net = train_by_script(values, n_iter_no_change=2, tol=tol)
    assert len(net.history) == n_epochs


def test_an_epoch_that_gains_less_than_tol_may_be_the_best():
    net = train_by_script([100, 99, 98], n_iter_no_change=2, tol=0.5)
    assert net.best_epoch_ == 2


# Leaving the start


def test_a_start_to_keep_is_left_for_a_significant_gain():
    gain = np.linspace(0.5, 1.5, 8)
    net = train_by_script([2, 2 - gain], keep_start=True)
    assert net.best_epoch_ == 1
    assert not same(weights_of(net), make_module().state_dict())


def test_a_start_to_keep_is_not_left_for_a_gain_by_chance():
    gain = np.array([8.0, -1, -1, -1, -1, -1, -1, -1])
    net = train_by_script([10, 10 - gain], keep_start=True)
    assert net.best_epoch_ == 0
    assert same(weights_of(net), make_module().state_dict())


def test_any_other_start_is_left_for_a_gain_by_chance():
    gain = np.array([8.0, -1, -1, -1, -1, -1, -1, -1])
    assert train_by_script([10, 10 - gain], keep_start=False).best_epoch_ == 1


def test_one_held_out_row_is_not_enough_to_leave_a_start_to_keep():
    net = make_net(
        make_module(ScriptedLoss([5, 1])),
        max_epochs=1,
        early_stopping=True,
        keep_start=True,
    )
    rows = Rows(X)
    train(net, Split(rows.subset(TRAIN), rows.subset(HELD_OUT[:1])))
    assert net.best_epoch_ == 0


def test_gains_that_rounding_explains_are_no_gains():
    start = np.linspace(1, 2, 8, dtype=np.float32)
    judge = Judge(make_module(), make_plan(early_stopping=True, keep_start=True))
    judge.judge_start(start, np.ones(8))
    judge.judge_epoch(1, 1.0, start * np.float32(1 - 2**-23))
    judgement = judge.restore_best(1, is_complete=True)
    assert not judgement.gains.any()
    assert not judgement.is_significant
    assert judge.best_epoch == 0


@pytest.mark.parametrize("early_stopping", [True, False])
@pytest.mark.parametrize("is_better", [True, False])
def test_exact_losses_decide_whether_the_start_is_kept(early_stopping, is_better):
    def copied(module):
        return copy.deepcopy(module.state_dict())

    module = make_module()
    plan = make_plan(early_stopping=early_stopping, keep_start=True)
    judge = Judge(module, plan, np.ones(8))
    start, weight = copied(module), next(module.parameters())
    if early_stopping:
        judge.judge_start(np.ones(8, dtype=np.float32), np.ones(8))
    with torch.no_grad():
        weight.add_(1)
    trained = copied(module)
    judge.judge_epoch(1, 1.0, np.full(8, 0.5, np.float32) if early_stopping else None)

    def exact_losses():
        is_start = same(copied(module), start)
        losses = np.linspace(1, 2, 8) * (1 + 1e-9 if is_start == is_better else 1)
        return losses, np.ones(8)

    judgement = judge.restore_best(1, True, exact_losses)
    assert same(copied(module), trained if is_better else start)
    assert judge.best_epoch == int(is_better)
    if early_stopping:
        assert judgement.is_significant == is_better


def test_a_judgement_holds_gains_weights_and_the_best_epoch():
    gain = np.linspace(0.5, 1.5, 8)
    judgement = train_by_script([2, 2 - gain / 2, 2 - gain, 2]).judgement_
    np.testing.assert_allclose(judgement.gains, gain, rtol=1e-6)
    assert judgement.weight.tolist() == [1] * 8
    assert judgement.n_epochs == 2
    assert judgement.mean_gain == pytest.approx(1)
    assert judgement.is_significant


def test_the_mean_gain_is_weighted():
    judgement = Judgement(np.array([1.0, -2.0]), np.array([3.0, 1.0]), 1)
    assert judgement.mean_gain == 0.25


def test_held_out_rows_are_trimmed_as_a_batch_is():
    losses = [1.0, 1, 1, 1, 1, 1, 1, 100]
    net = train_by_script([losses] * 2, trim=0.125)
    assert net.history[-1]["valid_loss"] == 1
    assert len(net.judgement_.gains) == 7


# Divergence


def test_divergence_names_the_learning_rate():
    with pytest.raises(DivergenceError, match=r"training loss .*learning_rate.*1e\+30"):
        train(make_net(learning_rate=1e30))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_is_a_divergence(value):
    with pytest.raises(DivergenceError, match=r"validation loss .*epoch 2:"):
        train_by_script([3, 2, value, 1])


def test_a_start_that_is_not_finite_is_a_divergence():
    with pytest.raises(DivergenceError, match="epoch 0"):
        train_by_script([math.nan, 1])


def test_divergence_is_a_value_error():
    assert issubclass(DivergenceError, ValueError)


# Significance


GAINS = hnp.arrays(
    np.float64, st.integers(2, 12), elements=st.floats(-10, 10, width=16)
)


@settings(max_examples=30)
@given(GAINS)
def test_with_equal_weights_the_standard_error_is_the_usual_one(gains):
    gains = gains + np.linspace(0, 1, len(gains))
    gains -= gains.mean()
    assume(sem(gains) > 1e-3)
    weight = np.ones(len(gains))
    assert exceeds_standard_error(gains + 1.01 * sem(gains), weight)
    assert not exceeds_standard_error(gains + 0.99 * sem(gains), weight)


@settings(max_examples=30)
@given(GAINS, st.data())
def test_significance_follows_its_equation(gains, data):
    weight = data.draw(
        hnp.arrays(np.float64, len(gains), elements=st.floats(0.125, 5, width=16))
    )
    gains = gains - np.average(gains, weights=weight)
    m = weight.sum() ** 2 / (weight**2).sum()
    error = math.sqrt((weight * gains**2).sum() / weight.sum() / (m - 1))
    assume(error > 1e-3)
    assert exceeds_standard_error(gains + 1.01 * error, weight)
    assert not exceeds_standard_error(gains + 0.99 * error, weight)


@settings(max_examples=30)
@given(GAINS)
def test_gains_and_losses_of_the_same_size_are_not_both_significant(gains):
    weight = np.ones(len(gains))
    both = exceeds_standard_error(gains, weight), exceeds_standard_error(-gains, weight)
    assert not all(both)


@pytest.mark.parametrize("factor", [2.0**-10, 2.0**10])
def test_significance_does_not_depend_on_the_unit_of_weights(factor):
    rng = np.random.default_rng(0)
    for _ in range(20):
        gains, weight = rng.normal(0.3, 1, 10), rng.uniform(0.1, 2, 10)
        expected = exceeds_standard_error(gains, weight)
        assert exceeds_standard_error(gains, factor * weight) == expected


def test_the_gain_of_one_row_is_not_significant():
    assert not exceeds_standard_error(np.array([5.0]), np.array([2.0]))


def test_a_constant_gain_is_significant():
    assert exceeds_standard_error(np.full(3, 0.5), np.ones(3))


def test_no_gain_is_not_significant():
    assert not exceeds_standard_error(np.zeros(3), np.ones(3))
