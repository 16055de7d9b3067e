"""Ctrl-C during a fit: when it raises, and which handlers are replaced."""

import signal
import threading
from contextlib import contextmanager

import pytest
from nets import (
    callback_at,
    history_of,
    make_module,
    make_net,
    press_ctrl_c,
    stop_at,
    weights_of,
)

from skae.bottlenecks import Squeeze
from skae.engine.interrupt import Interruption


@contextmanager
def not_interrupted():
    """Fail where a `KeyboardInterrupt` would end the whole test run."""
    try:
        yield
    except KeyboardInterrupt:
        pytest.fail("Ctrl-C was not deferred")


# The context itself


def test_ctrl_c_is_deferred_where_it_is_not_allowed(python_handler):
    with not_interrupted(), Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt), interruption.allowed():
            raise AssertionError("the body ran in spite of an earlier Ctrl-C")
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_waits_until_the_end_of_a_deferred_part(python_handler):
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
    assert interruption.requested


def test_nothing_is_requested_without_ctrl_c(python_handler):
    with Interruption() as interruption, interruption.allowed():
        pass
    assert not interruption.requested


def test_the_handler_is_restored(python_handler):
    with Interruption():
        assert signal.getsignal(signal.SIGINT) is not python_handler
    assert signal.getsignal(signal.SIGINT) is python_handler


def test_the_handler_is_restored_after_an_error(python_handler):
    with pytest.raises(ZeroDivisionError), Interruption():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is python_handler


def test_a_handler_of_the_user_is_not_replaced(python_handler):
    def own_handler(signum, frame):
        pass

    signal.signal(signal.SIGINT, own_handler)
    with Interruption() as interruption:
        assert signal.getsignal(signal.SIGINT) is own_handler
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is own_handler
    assert not interruption.requested


def test_other_threads_do_not_replace_the_handler(python_handler):
    handlers = []

    def enter():
        with Interruption() as interruption, interruption.allowed():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [python_handler]
    assert signal.getsignal(signal.SIGINT) is python_handler


# In a training


def test_a_callback_that_stops_the_training_is_no_interruption():
    interruption = Interruption()
    net = make_net(callbacks=[stop_at(3)])
    assert len(history_of(net, interruption=interruption)) == 3
    assert not interruption.requested


@pytest.mark.parametrize("event", ["on_batch_end", "on_epoch_end", "on_train_begin"])
def test_ctrl_c_ends_the_training_and_is_recorded(python_handler, event):
    epoch = 0 if event == "on_train_begin" else 2
    net = make_net(callbacks=[press_ctrl_c(epoch, event)])
    with Interruption() as interruption:
        history = history_of(net, interruption=interruption)
    assert interruption.requested
    assert len(history) == {"on_batch_end": 1, "on_epoch_end": 2}.get(event, 0)


def test_ctrl_c_within_the_network_is_recorded_without_a_handler():
    class Interrupted(Squeeze):
        def training_code(self, H, weight, done):
            raise KeyboardInterrupt

    module = make_module()
    module.bottleneck = Interrupted()
    interruption = Interruption()
    assert history_of(make_net(module), interruption=interruption) == []
    assert interruption.requested


def test_ctrl_c_while_weights_are_restored_is_deferred(python_handler):
    calls = []

    def press(net):
        signal.raise_signal(signal.SIGINT)
        calls.append(weights_of(net))

    net = make_net(callbacks=[callback_at("on_train_end", press)])
    with not_interrupted(), Interruption() as interruption:
        assert len(history_of(net, interruption=interruption)) == 5
    assert interruption.requested
    assert len(calls) == 1
