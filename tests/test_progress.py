"""Progress of the training, as lines or as a bar."""

import logging
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from skorch.history import History

from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae._progress import Progress
from skae.engine.interrupt import Interruption


def make_net(max_epochs, n_earlier=0):
    """A net with the attributes that `Progress` reads, after `n_earlier` epochs."""
    history = History()
    net = SimpleNamespace(
        max_epochs=max_epochs,
        history=history,
        best_epoch_=n_earlier,
    )
    for _ in range(n_earlier):
        add_epoch(net)
    return net


def add_epoch(net, valid_loss=None):
    net.history.new_epoch()
    net.history.record("train_loss", 1 / len(net.history))
    if valid_loss is not None:
        net.history.record("valid_loss", valid_loss)


def show(net, n_epochs, verbose=1, valid_loss=None, requested=False):
    """Report a training of `n_epochs` epochs, after which Ctrl-C was pressed or not."""
    interruption = Interruption()
    interruption.requested = requested
    progress = Progress(verbose, interruption=interruption)
    progress.on_train_begin(net, X=None, y=None)
    for _ in range(n_epochs):
        add_epoch(net, valid_loss)
        progress.on_epoch_end(net)
    progress.on_train_end(net, X=None, y=None)
    return progress


@pytest.fixture
def show_on_terminal(capsys, monkeypatch):
    """Like `show`, with a standard error that is a terminal."""

    def show_with_terminal(*args, **kwargs):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        return show(*args, **kwargs)

    return show_with_terminal


def test_without_a_terminal_lines_go_to_standard_output(capsys):
    show(make_net(3), 3)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert not err
    assert len(lines) == 3
    for done, line in enumerate(lines, start=1):
        assert re.fullmatch(rf"epoch {done}/3  loss \S+  remaining \d+\.\d s", line)


def test_line_contains_both_losses(capsys):
    show(make_net(1), 1, valid_loss=0.25)
    assert "epoch 1/1  loss 1  validation 0.25  " in capsys.readouterr().out


@pytest.mark.parametrize("max_epochs", [1, 20, 21, 39, 40, 100, 997, 5000])
def test_about_twenty_lines_include_first_and_last_epoch(capsys, max_epochs):
    show(make_net(max_epochs), max_epochs)
    lines = capsys.readouterr().out.splitlines()
    assert min(max_epochs, 10) <= len(lines) <= 22
    assert lines[0].startswith(f"epoch 1/{max_epochs} ")
    assert lines[-1].startswith(f"epoch {max_epochs}/{max_epochs} ")
    assert len(set(lines)) == len(lines)


def test_verbose_2_gives_a_line_for_each_epoch(capsys):
    show(make_net(60), 60, verbose=2)
    assert len(capsys.readouterr().out.splitlines()) == 60


def test_verbose_2_gives_lines_on_a_terminal_too(show_on_terminal, capsys):
    show_on_terminal(make_net(60), 60, verbose=2)
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 60
    assert not err


def test_terminal_shows_a_bar(show_on_terminal, capsys):
    show_on_terminal(make_net(4), 4, valid_loss=0.25)
    out, err = capsys.readouterr()
    assert "Training" in err
    assert "4/4" in err
    assert "validation=0.25" in err
    assert not out


def test_the_bar_is_closed_when_training_ends_early(show_on_terminal, capsys):
    progress = show_on_terminal(make_net(4), 2)
    out, err = capsys.readouterr()
    assert progress.bar_.disable
    assert "2/4" in err
    assert err.endswith("\n")
    assert "stopped after epoch 2" in out


@pytest.mark.parametrize(
    ("requested", "ending"), [(False, "stopped"), (True, "interrupted")]
)
def test_early_end_names_the_epoch_of_the_restored_weights(capsys, requested, ending):
    net = make_net(50)
    net.best_epoch_ = 1
    show(net, 3, requested=requested)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{ending} after epoch 3, weights of epoch 1 restored"


def test_complete_training_has_no_closing_line(capsys):
    show(make_net(3), 3)
    assert "after epoch" not in capsys.readouterr().out


def test_epochs_are_counted_from_the_start_of_this_training(capsys):
    show(make_net(2, n_earlier=5), 2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]


def test_restored_epoch_is_counted_from_the_start_of_this_training(capsys):
    net = make_net(50, n_earlier=5)
    net.best_epoch_ = 7
    show(net, 3)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "stopped after epoch 3, weights of epoch 2 restored"


def test_end_before_the_first_epoch_is_reported(capsys):
    show(make_net(5), 0)
    out = capsys.readouterr().out
    assert out == "stopped after epoch 0, weights of epoch 0 restored\n"


@pytest.fixture
def X():
    return np.random.default_rng(0).normal(size=(60, 4))


@pytest.mark.parametrize(
    "Estimator", [AutoencoderTransformer, AutoencoderOutlierDetector]
)
def test_a_fit_is_logged_where_the_level_allows_it(Estimator, X, caplog, capsys):
    estimator = Estimator(max_epochs=3, early_stopping=False, random_state=0)
    estimator.fit(X)
    assert not caplog.records
    with caplog.at_level(logging.INFO, logger="skae"):
        estimator.fit(X)
    (end,) = caplog.records
    assert (end.levelname, end.n_epochs) == ("INFO", 3)
    assert end.seconds > 0
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="skae"):
        estimator.fit(X)
    *epochs, end = caplog.records
    assert [record.epoch for record in epochs] == [1, 2, 3]
    assert [record.train_loss for record in epochs] == estimator.loss_curve_
    assert {record.valid_loss for record in epochs} == {None}
    assert capsys.readouterr() == ("", "")


def test_records_have_the_loss_of_held_out_rows(X, caplog):
    ae = AutoencoderTransformer(max_epochs=2, early_stopping=True, random_state=0)
    with caplog.at_level(logging.DEBUG, logger="skae"):
        ae.fit(X)
    losses = [record.valid_loss for record in caplog.records[:-1]]
    assert losses == ae.validation_loss_curve_
    assert "validation" in caplog.records[0].getMessage()


def test_logging_does_not_change_the_model(X, caplog):
    ae = AutoencoderTransformer(max_epochs=3, random_state=0)
    codes = ae.fit_transform(X)
    with caplog.at_level(logging.DEBUG, logger="skae"):
        np.testing.assert_array_equal(ae.fit_transform(X), codes)
