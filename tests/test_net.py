"""Facts about skae._net."""

import copy
import math
import pickle
import signal
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import sem
from skorch.callbacks import Callback, EpochScoring, LRScheduler
from torch import nn

from skae import AutoencoderTransformer, _net
from skae._batches import Batch, Rows
from skae._module import Autoencoder, Scaler
from skae._net import (
    AutoencoderNet,
    DivergenceError,
    Interruption,
    Objective,
    Plan,
    Split,
    exceeds_standard_error,
    trimmed_weight,
)
from skae.bottlenecks import Squeeze
from skae.losses import Loss, SquaredError
from skae.networks import MLP, Dropout, Shape

X = np.random.default_rng(0).standard_normal((24, 2))
TRAIN, HELD_OUT = np.arange(16), np.arange(16, 24)


class Script(Loss):
    """The squared error in training; held-out losses are read from a list.

    Its first entry is the loss of the start, its next that of epoch 1; an
    entry is a number, or one number for each held-out row.
    """

    def __init__(self, values):
        self.values = values
        self.entries = iter(values)

    def elementwise(self, X, X_hat):
        if torch.is_grad_enabled():
            return (X - X_hat) ** 2
        entry = torch.as_tensor(next(self.entries), dtype=X.dtype)
        return entry.reshape(-1, 1).expand_as(X)


def spy_on(event, see):
    """A callback that calls a function of the net at each of one kind of event."""

    def notice(self, net, **kwargs):
        see(net)

    return type("Spy", (Callback,), {event: notice})()


def make_module(loss=None, hidden=(4,), dropout=0.0, n_features=2):
    shape = Shape(24, n_features, 1, 1)
    encoder, decoder = MLP(hidden, dropout=dropout).build(
        shape, torch.Generator().manual_seed(0)
    )
    zeros, ones = np.zeros(n_features), np.ones(n_features)
    return Autoencoder(
        Scaler(zeros, zeros, ones),
        encoder,
        Squeeze(),
        decoder,
        nn.Identity(),
        loss or SquaredError(),
        n_components=1,
    )


def make_net(module=None, callbacks=(), seed=0, objective=None, **plan):
    plan = {
        "max_epochs": 5,
        "batch_size": 8,
        "learning_rate": 0.01,
        "weight_decay": 0.0,
        "schedule": None,
        "early_stopping": False,
        "keep_start": False,
        "n_iter_no_change": 100,
        "tol": 0.0,
        **plan,
    }
    return AutoencoderNet(
        make_module() if module is None else module,
        objective=objective or Objective(),
        plan=Plan(**plan),
        seed=seed,
        callbacks=list(callbacks),
        device="cpu",
    )


def make_split(held_out=False, X=X):
    if not held_out:
        return Split(Rows(X), None)
    return Split(Rows(X).subset(TRAIN), Rows(X).subset(HELD_OUT))


def train(net, split=None, interruption=None):
    split = make_split() if split is None else split
    return net.train(split, Interruption() if interruption is None else interruption)


def train_by_script(values, callbacks=(), **plan):
    """A net after a training whose held-out losses are `values`."""
    plan = {"max_epochs": len(values) - 1, "early_stopping": True, **plan}
    net = make_net(make_module(Script(values)), callbacks, **plan)
    train(net, make_split(held_out=True))
    return net


def global_states():
    """Of the generators that nothing may draw from."""
    return pickle.dumps(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002


def weights_of(net):
    return copy.deepcopy(net.module_.state_dict())


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def watch_weights():
    """A list that fills with the weights after each epoch, and its callback."""
    seen = []
    return seen, spy_on("on_epoch_end", lambda net: seen.append(weights_of(net)))


def stop_at(epoch, event="on_epoch_end"):
    def stop(net):
        if len(net.history) == epoch:
            raise KeyboardInterrupt

    return spy_on(event, stop)


def press_ctrl_c(epoch, event="on_batch_end"):
    def press(net):
        if len(net.history) == epoch:
            signal.raise_signal(signal.SIGINT)

    return spy_on(event, press)


@contextmanager
def not_interrupted():
    """Fail where a `KeyboardInterrupt` would end the whole run of the tests."""
    try:
        yield
    except KeyboardInterrupt:
        pytest.fail("Ctrl-C was not deferred")


@pytest.fixture
def no_divisions(monkeypatch):
    """A training that stops at once where nothing improves."""
    monkeypatch.setattr(_net, "MAX_DIVISIONS", 0)


@pytest.fixture
def divisions(monkeypatch):
    """A training that divides its learning rate by three, twice, before it stops."""
    monkeypatch.setattr(_net, "MAX_DIVISIONS", 2)
    monkeypatch.setattr(_net, "DIVISOR", 3)


@pytest.fixture
def python_handler():
    """Python's own handler of Ctrl-C, whatever runs the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


# Training


def test_training_lowers_the_loss():
    history = train(make_net(max_epochs=30))
    assert history[-1]["train_loss"] < 0.9 * history[0]["train_loss"]


def test_the_module_is_trained_in_place_and_left_in_eval_mode():
    module = make_module()
    before = copy.deepcopy(module.state_dict())
    net = make_net(module)
    train(net)
    assert net.module_ is module
    assert not module.training
    assert not same(before, module.state_dict())


def test_training_returns_a_row_for_each_epoch():
    history = train(make_net(), make_split(held_out=True))
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    assert all(math.isfinite(row["train_loss"]) for row in history)
    assert all(math.isfinite(row["valid_loss"]) for row in history)


def test_without_held_out_rows_there_is_no_validation_loss():
    assert not any("valid_loss" in row for row in train(make_net()))


def test_training_on_returns_the_new_rows_only():
    net = make_net()
    first, second = train(net), train(net)
    assert [row["epoch"] for row in second] == [6, 7, 8, 9, 10]
    assert second[0]["train_loss"] < first[0]["train_loss"]


def test_losses_are_weighted_means_of_rows():
    weight = np.random.default_rng(0).uniform(0.2, 2, len(X))
    rows = Rows(X, weight=weight)
    split = Split(rows.normalised(TRAIN), rows.normalised(HELD_OUT))
    net = make_net(learning_rate=0.0, max_epochs=1, batch_size=6)
    (row,) = train(net, split)
    with torch.no_grad():
        losses = net.module_.row_error(torch.from_numpy(X)).numpy()
    for name, where in (("train_loss", TRAIN), ("valid_loss", HELD_OUT)):
        expected = np.average(losses[where], weights=weight[where])
        assert row[name] == pytest.approx(expected, rel=1e-6)


class Jitter(nn.Module):
    """Adds noise, and keeps what it drew."""

    def __init__(self):
        super().__init__()
        self.generator = None
        self.drawn = []

    def forward(self, X):
        noise = torch.randn(X.shape, generator=self.generator)
        self.drawn.append(noise)
        return X + noise


class Cost(nn.Module):
    """A penalty of one plus the code's square."""

    def forward(self, encoder, X, Z, weight):
        assert Z.shape == (len(X), 1)
        assert len(weight) == len(X)
        return 1 + Z.square().sum(dim=1)


class Term(Squeeze):
    """A bottleneck whose term tells how far the training is."""

    def training_code(self, H, weight, done):
        return H, done.expand(len(H))


def batch_of(module, rows):
    """A training batch of rows in their units, all of weight one."""
    return Batch(*module.scaler(rows), torch.ones(len(rows)))


def test_the_objective_is_loss_plus_weighted_terms():
    module = make_module()
    module.bottleneck = Term()
    rows = torch.from_numpy(X[:5])
    objective = Objective(None, 3.0, Cost(), 0.5)
    with torch.no_grad():
        loss, Z = module.row_error(rows), module.encode(rows)
        total = objective(module, batch_of(module, rows), torch.tensor(0.25))
    # The bottleneck's term is divided by the two features, as the loss is.
    torch.testing.assert_close(
        total, loss + 3 * 0.25 / 2 + 0.5 * (1 + Z.square().sum(dim=1))
    )


def test_a_row_with_fewer_observed_entries_has_a_larger_share_of_the_term():
    module = make_module()
    module.bottleneck = Term()
    rows = torch.tensor([[1.0, torch.nan]], dtype=torch.float64)
    with torch.no_grad():
        total = Objective()(module, batch_of(module, rows), torch.tensor(1.0))
        assert total == pytest.approx(module.row_error(rows) + 1)


def test_a_penalty_lowers_what_it_penalises():
    def code(objective):
        net = make_net(objective=objective, max_epochs=30)
        train(net)
        with torch.no_grad():
            return net.module_.encode(torch.from_numpy(X)).square().mean()

    assert code(Objective(None, 1.0, Cost(), 10.0)) < 0.1 * code(Objective())


def test_noise_is_fresh_in_training_and_repeated_on_held_out_rows():
    jitter = Jitter()
    net = make_net(objective=Objective(jitter), max_epochs=3, batch_size=100)
    train(net, make_split(held_out=True))
    held_out = [noise for noise in jitter.drawn if len(noise) == len(HELD_OUT)]
    trained = [noise for noise in jitter.drawn if len(noise) == len(TRAIN)]
    assert len(held_out) == 4
    assert all(torch.equal(noise, held_out[0]) for noise in held_out)
    assert len(trained) == 3
    assert not torch.equal(trained[0], trained[1])


def test_judging_does_not_disturb_the_noise_of_training():
    drawn = []
    for held_out in (False, True):
        jitter = Jitter()
        net = make_net(objective=Objective(jitter), max_epochs=3, batch_size=100)
        train(net, make_split(held_out=held_out))
        drawn.append([n for n in jitter.drawn if len(n) == len(TRAIN)])
    assert all(map(torch.equal, *drawn))


def test_noise_depends_on_the_seed_and_on_nothing_global():
    before = global_states()
    drawn = []
    for seed in (0, 0, 1):
        jitter = Jitter()
        train(make_net(objective=Objective(jitter), seed=seed, max_epochs=1))
        drawn.append(jitter.drawn[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert global_states() == before


def test_the_objective_is_told_how_far_the_training_is():
    seen = []

    class Told(Term):
        def training_code(self, H, weight, done):
            seen.append((self.training, done.item()))
            return super().training_code(H, weight, done)

    def shares(training, **plan):
        seen.clear()
        module = make_module()
        module.bottleneck = Told()
        net = make_net(module, max_epochs=2, batch_size=8, **plan)
        train(net, make_split(held_out=True))
        return [done for is_training, done in seen if is_training == training]

    assert shares(True, schedule=lambda done: 1.0) == [0, 0.25, 0.5, 0.75]
    assert set(shares(False, schedule=lambda done: 1.0)) == {1.0}
    assert set(shares(True)) == {1.0}  # no plan for the whole, as in partial_fit


@pytest.mark.parametrize("n_records", [1, 3, 4, 100])
def test_the_history_keeps_few_records_of_batches(monkeypatch, n_records):
    monkeypatch.setattr(_net, "MAX_RECORDS", n_records)
    net = make_net(learning_rate=1e-9, max_epochs=2, batch_size=5)
    for row in train(net):
        sizes = [batch["train_batch_size"] for batch in row["batches"]]
        losses = [batch["train_loss"] for batch in row["batches"]]
        assert len(sizes) == min(n_records, 5)
        assert sum(sizes) == 24
        assert row["train_loss"] == pytest.approx(np.average(losses, weights=sizes))
    with torch.no_grad():
        loss = net.module_.row_error(torch.from_numpy(X)).mean().item()
    assert row["train_loss"] == pytest.approx(loss, rel=1e-6)


def test_callbacks_are_told_of_batches_as_the_network_sees_them():
    seen = []

    class Note(Callback):
        def on_batch_begin(self, net, batch, training, **kwargs):
            seen.append((training, *batch))

        def on_batch_end(self, net, batch, training, loss, **kwargs):
            assert seen[-1][1] is batch[0]
            assert loss.shape == ()
            name = "train_loss" if training else "valid_loss"
            if net.history:  # the start is judged before there is one
                last = net.history[-1]["batches"][-1]
                assert last[name] == pytest.approx(loss.item(), rel=1e-6)

    train(make_net(callbacks=[Note()], max_epochs=2), make_split(held_out=True))
    assert [training for training, *_ in seen] == [False, *[True, True, False] * 2]
    targets = torch.cat([target for _, target, _ in seen[1:3]])
    weights = torch.cat([weight for _, _, weight in seen[1:3]])
    expected = torch.from_numpy(X[TRAIN]).float()
    assert torch.equal(targets.sort(dim=0).values, expected.sort(dim=0).values)
    assert (weights == 1).all()


def test_losses_are_known_before_the_callbacks_run():
    seen = []
    spy = spy_on("on_epoch_end", lambda net: seen.append(set(net.history[-1])))
    train(make_net(callbacks=[spy], max_epochs=2), make_split(held_out=True))
    assert len(seen) == 2
    assert all({"train_loss", "valid_loss"} <= names for names in seen)


def test_a_weight_counts_as_repetition():
    counts = np.arange(24) % 3 + 1
    weighted = Rows(X, weight=counts.astype(float)).normalised(np.arange(24))
    nets = [make_net(batch_size=100, max_epochs=3) for _ in range(2)]
    train(nets[0], Split(weighted, None))
    train(nets[1], Split(Rows(np.repeat(X, counts, axis=0)), None))
    for one, other in zip(*(net.module_.parameters() for net in nets), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_same_seed_gives_the_same_weights():
    nets = [make_net(make_module(dropout=0.3), seed=7) for _ in range(2)]
    for net in nets:
        train(net)
    assert same(*(weights_of(net) for net in nets))


def test_another_seed_shuffles_and_draws_otherwise():
    plain = [make_net(seed=seed) for seed in (7, 8)]
    noisy = [
        make_net(make_module(dropout=0.3), seed=seed, batch_size=100) for seed in (7, 8)
    ]
    for net in plain + noisy:
        train(net)
    assert not same(*(weights_of(net) for net in plain))
    assert not same(*(weights_of(net) for net in noisy))


def test_training_leaves_the_global_generators_alone():
    before = global_states()
    train(make_net(make_module(dropout=0.3)), make_split(held_out=True))
    assert global_states() == before


def test_parts_give_the_generator_back():
    net = make_net(make_module(dropout=0.3))
    train(net)
    parts = [part for part in net.module_.modules() if isinstance(part, Dropout)]
    assert parts
    assert all(part.generator is None for part in parts)


def test_training_leaves_the_rows_alone():
    table = X.copy()
    table.flags.writeable = False
    train(make_net(), make_split(held_out=True, X=table))
    np.testing.assert_array_equal(table, X)


def test_held_out_rows_do_not_train():
    changed = X.copy()
    changed[HELD_OUT] *= 5
    nets = [make_net() for _ in range(2)]
    train(nets[0], make_split(held_out=True))
    train(nets[1], make_split(held_out=True, X=changed))
    assert same(*(weights_of(net) for net in nets))


def test_weight_decay_shrinks_weights():
    sizes = []
    for weight_decay in (0.0, 5.0):
        net = make_net(weight_decay=weight_decay)
        train(net)
        sizes.append(net.module_.decoder[0].weight.norm().item())
    assert sizes[1] < sizes[0]


def test_step_work_grows_with_batch_and_weights():
    work = make_net(batch_size=8).step_work
    assert make_net(batch_size=16).step_work == 2 * work
    assert make_net(make_module(hidden=(8,)), batch_size=8).step_work > work


# Learning rate


def test_the_schedule_sets_the_learning_rate_of_each_step():
    rates = []
    spy = spy_on(
        "on_batch_end", lambda net: rates.append(net.optimizer_.param_groups[0]["lr"])
    )
    net = make_net(
        callbacks=[spy], max_epochs=2, learning_rate=0.6, schedule=lambda s: 1 - s
    )
    train(net)
    np.testing.assert_allclose(rates, [0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_without_a_schedule_the_learning_rate_stays():
    rates = set()
    spy = spy_on(
        "on_batch_end", lambda net: rates.add(net.optimizer_.param_groups[0]["lr"])
    )
    train(make_net(callbacks=[spy], learning_rate=0.6))
    assert rates == {0.6}


def test_a_learning_rate_callback_wins_over_the_schedule():
    rates = []
    spy = spy_on(
        "on_epoch_end", lambda net: rates.append(net.optimizer_.param_groups[0]["lr"])
    )
    scheduler = LRScheduler(policy="StepLR", step_size=1, gamma=0.5)
    net = make_net(
        callbacks=[spy, scheduler],
        max_epochs=3,
        learning_rate=0.8,
        schedule=lambda s: 0.0,
    )
    train(net)
    np.testing.assert_allclose(rates, [0.8, 0.4, 0.2])


# The best epoch


def test_the_best_epoch_is_restored():
    seen, spy = watch_weights()
    net = train_by_script([5, 4, 2, 3, 2.5], [spy])
    assert net.best_epoch_ == 2
    assert same(weights_of(net), seen[1])
    assert not same(weights_of(net), seen[-1])


def test_the_start_is_restored_if_no_epoch_is_better():
    before = make_module().state_dict()
    net = train_by_script([1, 4, 2, 3])
    assert net.best_epoch_ == 0
    assert same(weights_of(net), before)


def test_without_early_stopping_the_last_weights_stay():
    seen, spy = watch_weights()
    net = train_by_script([5, 4, 2, 3, 2.5], [spy], early_stopping=False)
    assert net.best_epoch_ == 4
    assert same(weights_of(net), seen[-1])


def test_training_stops_after_epochs_without_gain(no_divisions):
    net = train_by_script([9, 8, 7, 7.5, 7, 7.1, 1, 1], n_iter_no_change=3)
    assert len(net.history) == 5
    assert net.best_epoch_ == 2


def test_a_gain_renews_the_patience(no_divisions):
    net = train_by_script([9, 8, 8, 7, 7, 6, 6, 6, 6], n_iter_no_change=2)
    assert len(net.history) == 7


def test_the_learning_rate_is_divided_before_training_stops(divisions):
    rates = []
    spy = spy_on(
        "on_epoch_end", lambda net: rates.append(net.optimizer_.param_groups[0]["lr"])
    )
    train_by_script(
        [9, 8, *[8.5] * 20],
        [spy],
        n_iter_no_change=2,
        learning_rate=0.9,
        schedule=lambda s: 1.0,
    )
    expected = [0.9] * 3 + [0.3] * 2 + [0.1] * 2
    np.testing.assert_allclose(rates, expected)


def test_training_goes_on_from_the_best_epoch_after_a_division(divisions):
    ends, starts = [], []
    spies = [
        spy_on("on_epoch_end", lambda net: ends.append(weights_of(net))),
        spy_on("on_epoch_begin", lambda net: starts.append(weights_of(net))),
    ]
    train_by_script([9, 8, 8.5, 8.5, 8.5], spies, n_iter_no_change=2)
    assert same(starts[2], ends[1])
    assert same(starts[3], ends[0])


def test_a_gain_after_a_division_renews_the_patience(divisions):
    net = train_by_script([9, 8, 8, 8, 7, 7, 7, 7, 7, 1], n_iter_no_change=2)
    assert len(net.history) == 8


def test_a_learning_rate_callback_allows_no_division(divisions):
    scheduler = LRScheduler(policy="StepLR", step_size=1, gamma=0.5)
    net = train_by_script([9, 8, *[8.5] * 20], [scheduler], n_iter_no_change=2)
    assert len(net.history) == 3


def test_training_without_early_stopping_is_never_stuck():
    net = train_by_script([1, 2, 2, 2, 2], n_iter_no_change=1, early_stopping=False)
    assert len(net.history) == 4


@pytest.mark.parametrize(("tol", "n_epochs"), [(0.0, 6), (0.05, 6), (0.2, 2)])
def test_a_gain_counts_if_it_exceeds_tol_times_the_best(no_divisions, tol, n_epochs):
    values = [1000 * 0.9**epoch for epoch in range(7)]
    net = train_by_script(values, n_iter_no_change=2, tol=tol)
    assert len(net.history) == n_epochs


def test_a_gain_below_tol_is_still_the_best():
    net = train_by_script([100, 99, 98], n_iter_no_change=2, tol=0.5)
    assert net.best_epoch_ == 2


def test_a_worthy_start_is_left_for_a_significant_gain():
    gain = np.linspace(0.5, 1.5, 8)
    net = train_by_script([2, 2 - gain], keep_start=True)
    assert net.best_epoch_ == 1
    assert not same(weights_of(net), make_module().state_dict())


def test_a_worthy_start_is_kept_against_a_gain_by_chance():
    gain = np.array([8.0, -1, -1, -1, -1, -1, -1, -1])
    net = train_by_script([10, 10 - gain], keep_start=True)
    assert net.best_epoch_ == 0
    assert same(weights_of(net), make_module().state_dict())


def test_any_other_start_is_left_for_a_gain_by_chance():
    gain = np.array([8.0, -1, -1, -1, -1, -1, -1, -1])
    assert train_by_script([10, 10 - gain], keep_start=False).best_epoch_ == 1


def test_one_held_out_row_is_no_reason_to_leave_a_worthy_start():
    net = make_net(
        make_module(Script([5, 1])), max_epochs=1, early_stopping=True, keep_start=True
    )
    rows = Rows(X)
    train(net, Split(rows.subset(TRAIN), rows.subset(HELD_OUT[:1])))
    assert net.best_epoch_ == 0


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


# Interrupts


def test_a_callback_that_stops_the_training_is_no_interruption():
    interruption = Interruption()
    net = make_net(callbacks=[stop_at(3)])
    assert len(train(net, interruption=interruption)) == 3
    assert not interruption.seen


def test_an_epoch_that_a_callback_broke_off_is_not_in_the_history():
    net = make_net(callbacks=[stop_at(3, "on_batch_end")])
    assert [row["epoch"] for row in train(net)] == [1, 2]
    assert len(net.history) == 2


def test_a_callback_may_stop_before_the_first_epoch():
    net = make_net(callbacks=[stop_at(0, "on_train_begin")])
    assert train(net) == []
    assert same(weights_of(net), make_module().state_dict())


def test_a_stopped_training_ends_on_its_best_epoch():
    seen, spy = watch_weights()
    net = train_by_script([5, 1, 2, 3, 4], [spy, stop_at(3)])
    assert net.best_epoch_ == 1
    assert same(weights_of(net), seen[0])


def test_without_held_out_rows_a_stopped_training_ends_on_its_least_loss():
    seen, spy = watch_weights()
    net = make_net(
        callbacks=[spy, stop_at(6)],
        max_epochs=10,
        schedule=lambda s: 1 if s < 0.3 else 100,
    )
    losses = [row["train_loss"] for row in train(net)]
    best = int(np.argmin(losses))
    assert best < 5
    assert net.best_epoch_ == best + 1
    assert same(weights_of(net), seen[best])


def test_training_goes_on_after_a_callback_stopped_it():
    net = make_net(callbacks=[stop_at(3)])
    train(net)
    assert len(train(net)) == 5


@pytest.mark.parametrize("event", ["on_batch_end", "on_epoch_end", "on_train_begin"])
def test_ctrl_c_ends_the_training_and_is_seen(python_handler, event):
    epoch = 0 if event == "on_train_begin" else 2
    net = make_net(callbacks=[press_ctrl_c(epoch, event)])
    with Interruption() as interruption:
        history = train(net, interruption=interruption)
    assert interruption.seen
    assert len(history) == {"on_batch_end": 1, "on_epoch_end": 2}.get(event, 0)


def test_ctrl_c_within_the_network_is_seen_without_a_handler():
    class Interrupted(Squeeze):
        def training_code(self, H, weight, done):
            raise KeyboardInterrupt

    module = make_module()
    module.bottleneck = Interrupted()
    interruption = Interruption()
    assert train(make_net(module), interruption=interruption) == []
    assert interruption.seen


def test_ctrl_c_while_weights_are_chosen_waits(python_handler):
    calls = []

    def press(net):
        signal.raise_signal(signal.SIGINT)
        calls.append(net)

    net = make_net(callbacks=[spy_on("on_train_end", press)])
    with not_interrupted(), Interruption() as interruption:
        assert len(train(net, interruption=interruption)) == 5
    assert interruption.seen
    assert len(calls) == 1


def test_ctrl_c_is_deferred_where_it_is_not_allowed(python_handler):
    with not_interrupted(), Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.seen
        with pytest.raises(KeyboardInterrupt), interruption.allowed():
            raise AssertionError("it goes on in spite of an earlier Ctrl-C")
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_waits_where_it_is_deferred(python_handler):
    reached = []
    with (
        not_interrupted(),
        Interruption() as interruption,
        pytest.raises(KeyboardInterrupt),
        interruption.allowed(),
        interruption.deferred(),
    ):
        reached.append(signal.raise_signal(signal.SIGINT))
    assert reached


def test_ctrl_c_raises_where_it_is_allowed(python_handler):
    with not_interrupted(), Interruption() as interruption:
        with pytest.raises(KeyboardInterrupt), interruption.allowed():
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert interruption.seen


def test_nothing_is_seen_without_ctrl_c(python_handler):
    with Interruption() as interruption, interruption.allowed():
        pass
    assert not interruption.seen


def test_the_handler_is_restored(python_handler):
    with Interruption():
        assert signal.getsignal(signal.SIGINT) is not python_handler
    assert signal.getsignal(signal.SIGINT) is python_handler


def test_the_handler_is_restored_after_an_error(python_handler):
    with pytest.raises(ZeroDivisionError), Interruption():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is python_handler


def test_a_handler_of_the_users_stays(python_handler):
    def own_handler(signum, frame):
        pass

    signal.signal(signal.SIGINT, own_handler)
    with Interruption() as interruption:
        assert signal.getsignal(signal.SIGINT) is own_handler
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is own_handler
    assert not interruption.seen


def test_other_threads_keep_off_the_handler(python_handler):
    found = []

    def interrupt_nothing():
        with Interruption() as interruption, interruption.allowed():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=interrupt_nothing)
    thread.start()
    thread.join()
    assert found == [python_handler]
    assert signal.getsignal(signal.SIGINT) is python_handler


# After training


def test_trimming_drops_what_only_training_needs():
    net = make_net(callbacks=[spy_on("on_epoch_end", lambda net: None)])
    train(net, make_split(held_out=True))
    assert not net.is_trimmed
    net.trim_for_prediction()
    assert net.is_trimmed
    assert net.callbacks == net.callbacks_ == []
    for name in ("module", "optimizer_", "rng_", "generator_", "interruption"):
        assert getattr(net, name) is None


def test_trimming_leaves_module_and_history():
    net = make_net()
    train(net)
    before = weights_of(net)
    net.trim_for_prediction()
    assert same(weights_of(net), before)
    assert len(net.history) == 5


def test_a_pickled_net_gives_the_same_values():
    net = make_net()
    train(net, make_split(held_out=True))
    twin = pickle.loads(pickle.dumps(net))
    rows = torch.from_numpy(X)
    with torch.no_grad():
        assert torch.equal(twin.module_(rows), net.module_(rows))
    assert not twin.module_.training
    assert twin.history == net.history


def test_a_pickled_net_is_trimmed_and_its_original_is_not():
    net = make_net(callbacks=[spy_on("on_epoch_end", lambda net: None)])
    train(net)
    twin = pickle.loads(pickle.dumps(net))
    assert twin.is_trimmed
    assert not hasattr(twin, "optimizer_")
    assert not net.is_trimmed
    assert net.optimizer_ is not None
    assert len(net.callbacks_) == 1


def test_a_pickle_holds_the_weights_once_and_no_data():
    table = np.random.default_rng(0).standard_normal((2000, 100))
    rows = Rows(table)
    net = make_net(
        make_module(n_features=100, hidden=(100,)), max_epochs=1, batch_size=500
    )
    train(net, Split(rows.subset(np.arange(1000)), rows.subset(np.arange(1000, 2000))))
    n_bytes = 4 * sum(p.numel() for p in net.module_.parameters())
    assert len(pickle.dumps(net)) < 1.3 * n_bytes + 10_000 < table.nbytes / 10


def test_a_trimmed_net_keeps_no_data():
    table = np.random.default_rng(0).standard_normal((24, 2))
    net = make_net()
    train(net, make_split(held_out=True, X=table))
    net.trim_for_prediction()
    held = [
        value
        for value in vars(net).values()
        if isinstance(value, Rows | Split | np.ndarray | torch.Tensor)
    ]
    assert not held


def test_skorch_predicts_with_the_net():
    net = make_net(max_epochs=1)
    train(net)
    with torch.no_grad():
        expected = net.module_(torch.from_numpy(X))
    np.testing.assert_allclose(net.predict(X), expected, rtol=1e-6)


def squared_error(net, rows, y):
    return np.square(net.predict(rows) - rows.dense(slice(None))).mean()


@pytest.mark.parametrize("caching", [True, False])
def test_skorch_scores_each_epoch_by_reconstructions(caching):
    scoring = EpochScoring(squared_error, name="mine", use_caching=caching)
    history = train(make_net(callbacks=[scoring]), make_split(held_out=True))
    plain = train(make_net(), make_split(held_out=True))
    for row, plain_row in zip(history, plain, strict=True):
        assert row["mine"] == pytest.approx(row["valid_loss"], rel=1e-6)
        assert row["train_loss"] == plain_row["train_loss"]


def test_skorch_scores_the_rows_trained_on_at_the_end_of_an_epoch():
    scoring = EpochScoring(squared_error, name="mine", on_train=True)
    net = make_net(callbacks=[scoring], max_epochs=2)
    row = train(net)[-1]
    with torch.no_grad():
        loss = net.module_.row_error(torch.from_numpy(X)).mean()
    assert row["mine"] == pytest.approx(loss.item(), rel=1e-6)


# Significance


GAINS = hnp.arrays(
    np.float64, st.integers(2, 12), elements=st.floats(-10, 10, width=16)
)


@settings(deadline=None, max_examples=30)
@given(GAINS)
def test_with_equal_weights_the_standard_error_is_the_usual_one(gains):
    gains = gains + np.linspace(0, 1, len(gains))
    gains -= gains.mean()
    assume(sem(gains) > 1e-3)
    weight = np.ones(len(gains))
    assert exceeds_standard_error(gains + 1.01 * sem(gains), weight)
    assert not exceeds_standard_error(gains + 0.99 * sem(gains), weight)


@settings(deadline=None, max_examples=30)
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


@settings(deadline=None, max_examples=30)
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


def test_one_row_proves_nothing():
    assert not exceeds_standard_error(np.array([5.0]), np.array([2.0]))


def test_a_steady_gain_is_significant():
    assert exceeds_standard_error(np.full(3, 0.5), np.ones(3))


def test_no_gain_is_not_significant():
    assert not exceeds_standard_error(np.zeros(3), np.ones(3))


def test_device_without_float64_trains_in_float32_and_gives_the_exact_scale_back(
    monkeypatch,
):
    monkeypatch.setattr(AutoencoderNet, "_lacks_float64", True)
    X = np.random.default_rng(0).normal(size=(40, 3)) + 1e6 + 1 / 3
    ae = AutoencoderTransformer(1, hidden_layer_sizes=(4,), max_epochs=2)
    ae.partial_fit(X).partial_fit(X)
    assert ae.module_.scaler.shift.dtype == torch.float64
    assert ae.module_.scaler.unit.dtype == torch.float32
    np.testing.assert_allclose(ae.mean_, X.mean(axis=0), rtol=1e-15)
    assert np.isfinite(ae.reconstruct(X)).all()


def test_a_method_set_on_a_callback_is_called():
    seen = []
    callback = Callback()
    callback.on_batch_end = lambda net, **kwargs: seen.append(1)
    train(make_net(callbacks=[callback], max_epochs=1))
    assert seen


# Trimming


losses_and_weights = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float64, n, elements=st.floats(0, 10)),
        hnp.arrays(np.int64, n, elements=st.integers(1, 4)),
        st.floats(0, 0.99),
    )
)


@settings(deadline=None, max_examples=100)
@given(losses_and_weights)
def test_trimming_leaves_out_a_share_of_the_weight(drawn):
    losses, weight, trim = map(torch.as_tensor, drawn)
    kept = trimmed_weight(losses, weight.double(), float(trim))
    assert (kept >= 0).all()
    assert (kept <= weight).all()
    assert kept.sum().item() == pytest.approx((1 - trim) * weight.sum().item())
    # No row is left out for one that is worse.
    worst_kept = losses[kept > 0].max()
    assert (kept[losses < worst_kept] == weight[losses < worst_kept]).all()


@settings(deadline=None, max_examples=100)
@given(losses_and_weights)
def test_trimming_takes_weights_for_repetitions(drawn):
    losses, weight, trim = map(torch.as_tensor, drawn)
    kept = trimmed_weight(losses, weight.double(), float(trim))
    repeated = losses.repeat_interleave(weight)
    kept_repeated = trimmed_weight(
        repeated, torch.ones(len(repeated), dtype=torch.float64), float(trim)
    )
    mean = (losses * kept).sum()
    assert mean.item() == pytest.approx((repeated * kept_repeated).sum().item())


def test_each_member_is_trimmed_by_its_own_losses():
    losses = torch.tensor([[1.0, 2, 3, 4], [4, 3, 2, 1]])
    kept = trimmed_weight(losses, torch.ones(4), 0.25)
    assert kept.tolist() == [[1, 1, 1, 0], [0, 1, 1, 1]]


def test_rows_that_are_trimmed_have_no_gradient():
    far = np.vstack([X[:8], [[1e3, -1e3]]])
    nets = [make_net(batch_size=9, trim=trim, max_epochs=1) for trim in (0.0, 0.2)]
    weights = []
    for net in nets:
        net.train(make_split(X=far), Interruption())
        weights.append(net.history[-1]["train_loss"])
    assert weights[0] > 1e4
    assert weights[1] < 10


def test_held_out_rows_are_judged_trimmed():
    losses = [1.0, 1, 1, 1, 1, 1, 1, 100]
    module = make_module(Script([losses] * 2))
    net = make_net(module, early_stopping=True, max_epochs=1, trim=0.125)
    net.train(make_split(held_out=True), Interruption())
    assert net.history[-1]["valid_loss"] == 1
