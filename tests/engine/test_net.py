"""The skorch net: callbacks, predictions, trimming and pickles."""

import pickle

import numpy as np
import pytest
import torch
from nets import (
    X,
    callback_at,
    history_of,
    make_module,
    make_net,
    make_split,
    same,
    train,
    weights_of,
)
from skorch.callbacks import Callback, EpochScoring

from skae import AutoencoderTransformer
from skae._row_scores import row_error
from skae._rows import Rows
from skae.engine import net as net_module
from skae.engine import trainer as trainer_module
from skae.engine.networks import Split


@pytest.fixture
def trained():
    net = make_net(callbacks=[callback_at("on_epoch_end", lambda net: None)])
    train(net, make_split(held_out=True))
    return net


# Trimming, snapshots and pickles


def test_trimming_drops_what_only_training_needs(trained):
    assert not trained.is_trimmed
    trained.trim_for_prediction()
    assert trained.is_trimmed
    assert trained.callbacks == []
    for name in ("module", "criterion", "optimizer_", "plan", "double_"):
        assert getattr(trained, name) is None


def test_trimming_keeps_module_and_history(trained):
    before = weights_of(trained)
    trained.trim_for_prediction()
    assert same(weights_of(trained), before)
    assert len(trained.history) == 5


def test_a_snapshot_is_trimmed_and_does_not_follow_its_original(trained):
    before = weights_of(trained)
    copied = trained.snapshot()
    train(trained)
    assert copied.is_trimmed
    assert copied.best_epoch_ == len(copied.history) == 5
    assert same(weights_of(copied), before)
    assert not same(weights_of(trained), before)
    assert not trained.is_trimmed


def test_a_snapshot_of_a_trimmed_net_keeps_its_best_epoch(trained):
    trained.best_epoch_ = 2
    trained.trim_for_prediction()
    copied = trained.snapshot()
    assert copied.best_epoch_ == 2
    assert copied.state["settings"] == trained.state["settings"]


def test_a_snapshot_is_possible_during_training_with_noise():
    snapshots = []
    watch = callback_at("on_epoch_end", lambda net: snapshots.append(net.snapshot()))
    net = make_net(make_module(dropout=0.3), callbacks=[watch])
    train(net)
    assert [len(copied.history) for copied in snapshots] == [1, 2, 3, 4, 5]
    assert same(weights_of(snapshots[-1]), weights_of(net))
    assert not same(weights_of(snapshots[0]), weights_of(net))


def test_a_pickled_net_gives_the_same_values(trained):
    loaded = pickle.loads(pickle.dumps(trained))
    rows = torch.from_numpy(X)
    with torch.no_grad():
        assert torch.equal(loaded.module_(rows), trained.module_(rows))
    assert not loaded.module_.training
    assert loaded.history == trained.history


def test_a_pickled_net_is_trimmed_and_its_original_is_not(trained):
    loaded = pickle.loads(pickle.dumps(trained))
    assert loaded.is_trimmed
    assert loaded.optimizer_ is None
    assert not trained.is_trimmed
    assert trained.optimizer_ is not None
    assert len(trained.callbacks_) == 1


def test_a_pickle_holds_the_weights_once_and_no_data():
    table = np.random.default_rng(0).standard_normal((2000, 100))
    rows = Rows(table)
    net = make_net(
        make_module(n_features=100, hidden=(100,)), max_epochs=1, batch_size=500
    )
    train(net, Split(rows.subset(np.arange(1000)), rows.subset(np.arange(1000, 2000))))
    n_bytes = 4 * sum(p.numel() for p in net.module_.parameters())
    assert len(pickle.dumps(net)) < 1.3 * n_bytes + 10_000 < table.nbytes / 10


def test_a_trimmed_net_keeps_no_data(trained):
    trained.trim_for_prediction()
    held = [
        value
        for value in vars(trained).values()
        if isinstance(value, Rows | Split | np.ndarray | torch.Tensor)
    ]
    assert not held


# Predictions


def test_skorch_predicts_with_the_net():
    net = make_net(max_epochs=1)
    train(net)
    with torch.no_grad():
        expected = net.module_(torch.from_numpy(X))
    np.testing.assert_allclose(net.predict(X), expected, rtol=1e-6)


def test_float64_rows_are_evaluated_by_a_copy_in_float64(trained):
    rows = torch.from_numpy(X)
    assert trained.module_in(np.dtype(np.float32)) is trained.module_
    double = trained.module_in(np.dtype(np.float64))
    assert {p.dtype for p in double.parameters()} == {torch.float64}
    assert {p.dtype for p in trained.module_.parameters()} == {torch.float32}
    with torch.no_grad():
        torch.testing.assert_close(
            double(rows).float(), trained.module_(rows.float()), rtol=1e-4, atol=1e-6
        )


def squared_error(net, rows, y):
    np.testing.assert_array_equal(rows, y)
    return np.square(net.predict(rows) - y).mean()


@pytest.mark.parametrize("caching", [True, False])
def test_skorch_scores_each_epoch_by_reconstructions(caching):
    scoring = EpochScoring(squared_error, name="mine", use_caching=caching)
    history = history_of(make_net(callbacks=[scoring]), make_split(held_out=True))
    plain = history_of(make_net(), make_split(held_out=True))
    for row, plain_row in zip(history, plain, strict=True):
        assert row["mine"] == pytest.approx(row["valid_loss"], rel=1e-6)
        assert row["train_loss"] == plain_row["train_loss"]


def test_skorch_scores_the_training_rows_at_the_end_of_an_epoch():
    scoring = EpochScoring(squared_error, name="mine", on_train=True)
    net = make_net(callbacks=[scoring], max_epochs=2)
    row = history_of(net)[-1]
    with torch.no_grad():
        loss = row_error(net.module_, torch.from_numpy(X)).mean()
    assert row["mine"] == pytest.approx(loss.item(), rel=1e-6)


# Callbacks and devices


def test_a_method_set_on_a_callback_instance_is_called():
    calls = []
    callback = Callback()
    callback.on_batch_end = lambda net, **kwargs: calls.append(1)
    train(make_net(callbacks=[callback], max_epochs=1))
    assert calls


def test_only_callbacks_that_define_a_method_are_listed():
    begin = callback_at("on_batch_begin", lambda net: None)
    net = make_net(callbacks=[begin, Callback()]).initialize()
    assert net.callbacks_with("on_batch_begin") == [begin]
    assert net.callbacks_with("on_batch_end") == []


def test_device_without_float64_trains_in_float32_and_keeps_the_exact_scale(
    monkeypatch,
):
    for module in (net_module, trainer_module):
        monkeypatch.setattr(module, "lacks_float64", lambda device: True)
    X = np.random.default_rng(0).normal(size=(40, 3)) + 1e6 + 1 / 3
    ae = AutoencoderTransformer(1, hidden_layer_sizes=(4,), max_epochs=2)
    ae.partial_fit(X).partial_fit(X)
    assert ae.module_.scaler.shift.dtype == torch.float64
    assert ae.module_.scaler.unit.dtype == torch.float32
    np.testing.assert_allclose(ae.mean_, X.mean(axis=0), rtol=1e-15)
    assert np.isfinite(ae.reconstruct(X)).all()
