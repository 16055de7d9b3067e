"""The training loop: losses, noise, learning rates, callbacks and records."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from nets import (
    HELD_OUT,
    TRAIN,
    X,
    callback_at,
    global_states,
    history_of,
    make_module,
    make_net,
    make_split,
    same,
    stop_at,
    train,
    watch_rates,
    weights_of,
)
from skorch.callbacks import Callback, LRScheduler
from torch import nn

from skae._layers import Dropout
from skae._row_scores import row_error
from skae._rows import Rows
from skae.engine import trainer as trainer_module
from skae.engine.division import Division
from skae.engine.judge import DivergenceError
from skae.engine.networks import Split
from skae.engine.objective import Objective
from skae.engine.processes import Processes


def test_training_lowers_the_loss():
    history = history_of(make_net(max_epochs=30))
    assert history[-1]["train_loss"] < 0.9 * history[0]["train_loss"]


def test_the_module_is_trained_in_place_and_left_in_eval_mode():
    module = make_module()
    before = copy.deepcopy(module.state_dict())
    net = make_net(module)
    train(net)
    assert net.module_ is module
    assert not module.training
    assert not same(before, module.state_dict())


def test_the_history_has_a_row_for_each_epoch():
    history = history_of(make_net(), make_split(held_out=True))
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    assert all(math.isfinite(row["train_loss"]) for row in history)
    assert all(math.isfinite(row["valid_loss"]) for row in history)


def test_without_held_out_rows_there_is_no_validation_loss():
    assert not any("valid_loss" in row for row in history_of(make_net()))


def test_another_training_appends_to_the_history():
    net = make_net()
    first, second = history_of(net), history_of(net)
    assert [row["epoch"] for row in second] == [6, 7, 8, 9, 10]
    assert second[0]["train_loss"] < first[0]["train_loss"]
    assert net.best_epoch_ == 10


def test_losses_are_weighted_means_of_rows():
    weight = np.random.default_rng(0).uniform(0.2, 2, len(X))
    rows = Rows(X, weight=weight)
    split = Split(rows.normalised(TRAIN), rows.normalised(HELD_OUT))
    net = make_net(learning_rate=0.0, max_epochs=1, batch_size=6)
    (row,) = history_of(net, split)
    with torch.no_grad():
        losses = row_error(net.module_, torch.from_numpy(X)).numpy()
    for name, where in (("train_loss", TRAIN), ("valid_loss", HELD_OUT)):
        expected = np.average(losses[where], weights=weight[where])
        assert row[name] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("trim", "n_left"), [(0.0, 24), (0.25, 18), (0.5, 12)])
def test_the_loss_is_the_mean_over_rows_that_are_not_trimmed(trim, n_left):
    net = make_net(learning_rate=0.0, max_epochs=1, batch_size=24, trim=trim)
    (row,) = history_of(net)
    with torch.no_grad():
        losses = row_error(net.module_, torch.from_numpy(X)).sort().values
    assert row["train_loss"] == pytest.approx(losses[:n_left].mean().item(), rel=1e-6)


class TwoProcesses(Processes):
    """Two processes, of which the other one sends nothing."""

    size = 2


@pytest.mark.parametrize(
    ("size", "trim", "compile", "are_gathered"),
    [
        (1, 0.25, "auto", False),
        (2, 0.0, "auto", False),
        (2, 0.25, "auto", True),
        (2, 0.25, True, True),
    ],
)
def test_losses_of_all_processes_are_gathered_by_steps_that_are_not_recorded(
    monkeypatch, size, trim, compile, are_gathered
):
    steps, n_gathered = [], []
    gather = Division._gathered

    def spy(division, values):
        n_gathered.append(len(values))
        return gather(division, values)

    class Recorder(trainer_module.Step):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            steps.append((self, kwargs["compile"]))

        def close(self):
            self.n_recorded = len(self._records)
            super().close()

    monkeypatch.setattr(Division, "_gathered", spy)
    monkeypatch.setattr(trainer_module, "Step", Recorder)
    processes = TwoProcesses() if size == 2 else Processes()
    monkeypatch.setattr(trainer_module, "current_processes", lambda: processes)
    train(make_net(trim=trim, compile=compile))
    ((step, used),) = steps
    assert bool(n_gathered) == are_gathered
    assert (step.n_recorded == 0) == are_gathered
    assert (used is False) == are_gathered


def test_a_weight_counts_as_repetition():
    counts = np.arange(24) % 3 + 1
    weighted = Rows(X, weight=counts.astype(float)).normalised(np.arange(24))
    nets = [make_net(batch_size=100, max_epochs=3) for _ in range(2)]
    train(nets[0], Split(weighted, None))
    train(nets[1], Split(Rows(np.repeat(X, counts, axis=0)), None))
    for one, other in zip(*(net.module_.parameters() for net in nets), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_training_does_not_change_the_rows():
    table = X.copy()
    table.flags.writeable = False
    train(make_net(), make_split(held_out=True, X=table))
    np.testing.assert_array_equal(table, X)


def test_held_out_rows_do_not_affect_the_weights():
    changed = X.copy()
    changed[HELD_OUT] *= 5
    nets = [make_net() for _ in range(2)]
    train(nets[0], make_split(held_out=True))
    train(nets[1], make_split(held_out=True, X=changed))
    assert same(*(weights_of(net) for net in nets))


def test_weight_decay_shrinks_weights():
    norms = []
    for weight_decay in (0.0, 5.0):
        net = make_net(weight_decay=weight_decay)
        train(net)
        norms.append(net.module_.decoder[0].weight.norm().item())
    assert norms[1] < norms[0]


@pytest.mark.parametrize(("max_epochs", "is_recorded"), [(11, False), (12, True)])
def test_steps_are_recorded_in_long_trainings_only(
    monkeypatch, max_epochs, is_recorded
):
    monkeypatch.setattr(trainer_module, "MIN_RECORDED_STEPS", 60)
    steps = []
    take = trainer_module.Step.take

    def spy(step, batch):
        loss = take(step, batch)
        steps.append(len(step._records))
        return loss

    monkeypatch.setattr(trainer_module.Step, "take", spy)
    train(make_net(max_epochs=max_epochs, batch_size=5))  # five batches of 24 rows
    assert (steps[-1] > 0) == is_recorded


@pytest.mark.parametrize("compile", ["auto", False])
def test_steps_are_recorded_unless_compile_is_false(monkeypatch, compile):
    steps = []
    take = trainer_module.Step.take

    def spy(step, batch):
        loss = take(step, batch)
        steps.append(len(step._records))
        return loss

    monkeypatch.setattr(trainer_module.Step, "take", spy)
    train(make_net(compile=compile))
    assert (steps[-1] > 0) == (compile == "auto")


def test_large_steps_are_not_recorded(monkeypatch):
    monkeypatch.setattr(trainer_module, "MAX_RECORDED_ENTRIES", 8)
    net = make_net()
    trainer = train(net)
    assert trainer._step._may_record is False


# Noise


class Jitter(nn.Module):
    """Adds noise, and stores what it drew."""

    def __init__(self):
        super().__init__()
        self.generator = None
        self.drawn = []

    def forward(self, X):
        noise = torch.randn(X.shape, generator=self.generator)
        self.drawn.append(noise)
        return X + noise


def test_noise_is_new_in_training_and_repeated_on_held_out_rows():
    jitter = Jitter()
    net = make_net(objective=Objective(jitter), max_epochs=3, batch_size=100)
    train(net, make_split(held_out=True))
    held_out = [noise for noise in jitter.drawn if len(noise) == len(HELD_OUT)]
    trained = [noise for noise in jitter.drawn if len(noise) == len(TRAIN)]
    assert len(held_out) == 4
    assert all(torch.equal(noise, held_out[0]) for noise in held_out)
    assert len(trained) == 3
    assert not torch.equal(trained[0], trained[1])


def test_validation_does_not_affect_the_noise_of_training():
    drawn = []
    for held_out in (False, True):
        jitter = Jitter()
        net = make_net(objective=Objective(jitter), max_epochs=3, batch_size=100)
        train(net, make_split(held_out=held_out))
        drawn.append([n for n in jitter.drawn if len(n) == len(TRAIN)])
    assert all(map(torch.equal, *drawn))


def test_noise_depends_on_the_seed_and_on_no_global_state():
    before = global_states()
    drawn = []
    for seed in (0, 0, 1):
        jitter = Jitter()
        train(make_net(objective=Objective(jitter), max_epochs=1), seed=seed)
        drawn.append(jitter.drawn[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert global_states() == before


def test_the_same_seed_gives_the_same_weights():
    nets = [make_net(make_module(dropout=0.3)) for _ in range(2)]
    for net in nets:
        train(net, seed=7)
    assert same(*(weights_of(net) for net in nets))


def test_another_seed_gives_another_order_and_other_noise():
    plain = [make_net() for _ in range(2)]
    noisy = [make_net(make_module(dropout=0.3), batch_size=100) for _ in range(2)]
    for nets in (plain, noisy):
        for seed, net in zip((7, 8), nets, strict=True):
            train(net, seed=seed)
        assert not same(*(weights_of(net) for net in nets))


def test_training_does_not_change_the_global_generators():
    before = global_states()
    train(make_net(make_module(dropout=0.3)), make_split(held_out=True))
    assert global_states() == before


def test_parts_have_no_generator_after_training():
    net = make_net(make_module(dropout=0.3))
    train(net)
    parts = [part for part in net.module_.modules() if isinstance(part, Dropout)]
    assert parts
    assert all(part.generator is None for part in parts)


# The optimizer's state


def continued(net, n_trainings, split=None):
    """Train a net several times, each time from the state of the one before."""
    state = None
    for _ in range(n_trainings):
        state = train(net, split, earlier=state).optimizer_state()
    return state


def test_training_continues_from_an_optimizer_state():
    # Equal rows, since every training shuffles the rows in their original order.
    split = make_split(X=np.repeat(X[:1], 24, axis=0))
    whole = make_net(make_module(dropout=0.3), max_epochs=4)
    parts = make_net(make_module(dropout=0.3), max_epochs=1)
    one, other = continued(whole, 1, split), continued(parts, 4, split)
    # Up to rounding: the first steps of a training are not replayed.
    for a, b in zip(
        weights_of(whole).values(), weights_of(parts).values(), strict=True
    ):
        torch.testing.assert_close(a, b)
    assert one.n_steps == other.n_steps == 12
    assert one.shuffling == other.shuffling
    assert torch.equal(one.noise, other.noise)
    for name, tensor in one.optimizer[0].items():
        torch.testing.assert_close(tensor, other.optimizer[0][name])


def test_an_optimizer_state_is_a_copy_that_training_does_not_change():
    net = make_net()
    state = continued(net, 1)
    before = pickle.dumps(state)
    continued(net, 1)
    train(net, earlier=state)
    assert pickle.dumps(state) == before


def test_noise_starts_anew_on_another_type_of_device():
    state = train(make_net(make_module(dropout=0.3))).optimizer_state()
    state = state._replace(device="cuda")
    net = make_net(make_module(dropout=0.3))
    trainer = trainer_module.Trainer(
        net, make_split(), 0, trainer_module.Interruption(), state
    )
    assert not torch.equal(trainer.generator.get_state(), state.noise)
    assert trainer.n_steps == state.n_steps


# Learning rate


def test_the_schedule_sets_the_learning_rate_of_each_step():
    rates, watch = watch_rates("on_batch_end")
    train(
        make_net(
            callbacks=[watch], max_epochs=2, learning_rate=0.6, schedule=lambda s: 1 - s
        )
    )
    np.testing.assert_allclose(rates, [0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_without_a_schedule_the_learning_rate_is_constant():
    rates, watch = watch_rates("on_batch_end")
    train(make_net(callbacks=[watch], learning_rate=0.6))
    assert set(rates) == {0.6}


def test_a_learning_rate_callback_replaces_the_schedule():
    rates, watch = watch_rates()
    scheduler = LRScheduler(policy="StepLR", step_size=1, gamma=0.5)
    net = make_net(
        callbacks=[watch, scheduler],
        max_epochs=3,
        learning_rate=0.8,
        schedule=lambda s: 0.0,
    )
    train(net)
    np.testing.assert_allclose(rates, [0.8, 0.4, 0.2])


# Callbacks


@pytest.mark.parametrize("n_records", [1, 3, 4, 100])
def test_the_history_keeps_few_records_of_batches(monkeypatch, n_records):
    monkeypatch.setattr(trainer_module, "MAX_BATCH_RECORDS", n_records)
    net = make_net(learning_rate=1e-9, max_epochs=2, batch_size=5)
    for row in history_of(net):
        sizes = [batch["train_batch_size"] for batch in row["batches"]]
        losses = [batch["train_loss"] for batch in row["batches"]]
        assert len(sizes) == min(n_records, 5)
        assert sum(sizes) == 24
        assert row["train_loss"] == pytest.approx(np.average(losses, weights=sizes))
    with torch.no_grad():
        loss = row_error(net.module_, torch.from_numpy(X)).mean().item()
    assert row["train_loss"] == pytest.approx(loss, rel=1e-6)


def test_callbacks_receive_batches_as_the_network_does():
    batches = []

    class Watch(Callback):
        def on_batch_begin(self, net, batch, training, **kwargs):
            batches.append((training, *(t.clone() for t in batch)))

        def on_batch_end(self, net, batch, training, loss, **kwargs):
            assert torch.equal(batches[-1][1], batch[0])
            assert loss.shape == ()
            name = "train_loss" if training else "valid_loss"
            last = net.history[-1]["batches"][-1]
            assert last[name] == pytest.approx(loss.item(), rel=1e-6)

    train(make_net(callbacks=[Watch()], max_epochs=2), make_split(held_out=True))
    assert [training for training, *_ in batches] == [True, True, False] * 2
    targets = torch.cat([target for _, target, _ in batches[:2]])
    weights = torch.cat([weight for _, _, weight in batches[:2]])
    expected = torch.from_numpy(X[TRAIN]).float()
    assert torch.equal(targets.sort(dim=0).values, expected.sort(dim=0).values)
    assert (weights == 1).all()


def test_losses_are_recorded_before_the_callbacks_run():
    names = []
    watch = callback_at("on_epoch_end", lambda net: names.append(set(net.history[-1])))
    train(make_net(callbacks=[watch], max_epochs=2), make_split(held_out=True))
    assert len(names) == 2
    assert all({"train_loss", "valid_loss"} <= row for row in names)


def test_callbacks_on_gradients_run_at_each_step():
    calls = []

    class Halve(Callback):
        def on_grad_computed(self, net, named_parameters, **kwargs):
            for _, parameter in named_parameters:
                parameter.grad.mul_(0.5)
            calls.append(net)

    def weights(compile):
        net = make_net(callbacks=[Halve()], compile=compile)
        train(net)
        return weights_of(net)

    for recorded, eager in zip(
        weights("auto").values(), weights(False).values(), strict=True
    ):
        torch.testing.assert_close(recorded, eager, rtol=1e-3, atol=1e-5)
    assert len(calls) == 2 * 15


def test_an_epoch_that_a_callback_broke_off_is_not_in_the_history():
    net = make_net(callbacks=[stop_at(3, "on_batch_end")])
    assert [row["epoch"] for row in history_of(net)] == [1, 2]
    assert len(net.history) == 2


def test_a_callback_may_stop_before_the_first_epoch():
    net = make_net(callbacks=[stop_at(0, "on_train_begin")])
    assert history_of(net) == []
    assert same(weights_of(net), make_module().state_dict())


def test_a_callback_may_stop_at_the_end_of_training():
    net = make_net(callbacks=[stop_at(5, "on_train_end")])
    assert len(history_of(net)) == 5


def test_training_is_possible_after_a_callback_has_stopped_it():
    net = make_net(callbacks=[stop_at(3)])
    train(net)
    assert len(history_of(net)) == 5


def test_the_error_for_an_invalid_weight_counts_the_epochs_of_this_training():
    def spoil(net):
        if len(net.history) > 5:
            net.module_.decoder[0].weight.data.fill_(math.nan)

    net = make_net(callbacks=[callback_at("on_train_end", spoil)])
    train(net)
    with pytest.raises(DivergenceError, match="epoch 5"):
        train(net)
