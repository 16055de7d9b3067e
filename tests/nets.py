"""Small nets, splits and callbacks for the tests of training."""

import copy
import pickle
import signal

import numpy as np
import torch
from skorch.callbacks import Callback
from torch import nn

from skae._module import Autoencoder, Scaler
from skae._rows import Batch, Rows
from skae.bottlenecks import Squeeze
from skae.engine.interrupt import Interruption
from skae.engine.net import AutoencoderNet
from skae.engine.networks import Split
from skae.engine.objective import Objective
from skae.engine.plan import Plan
from skae.engine.trainer import Trainer
from skae.losses import Loss, SquaredError
from skae.networks import MLP, Shape

X = np.random.default_rng(0).standard_normal((24, 2))
TRAIN, HELD_OUT = np.arange(16), np.arange(16, 24)


class ScriptedLoss(Loss):
    """The squared error in training; held-out losses are read from a list.

    The first entry is the loss of the start, the next one that of epoch 1; an entry is
    a number, or one number for each held-out row.
    """

    def __init__(self, values):
        self.values = values
        self.entries = iter(values)

    def elementwise(self, X, X_hat):
        if torch.is_grad_enabled():
            return (X - X_hat) ** 2
        entry = torch.as_tensor(next(self.entries), dtype=X.dtype)
        return entry.reshape(-1, 1).expand_as(X)


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


def make_plan(**plan):
    return Plan(
        **{
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
    )


def make_net(module=None, callbacks=(), objective=None, **plan):
    return AutoencoderNet(
        make_module() if module is None else module,
        objective=objective or Objective(),
        plan=make_plan(**plan),
        callbacks=list(callbacks),
        device="cpu",
    )


def make_split(held_out=False, X=X):
    if not held_out:
        return Split(Rows(X), None)
    return Split(Rows(X).subset(TRAIN), Rows(X).subset(HELD_OUT))


def train(net, split=None, interruption=None, seed=0, earlier=None):
    """Train a net, and return its trainer."""
    split = make_split() if split is None else split
    interruption = Interruption() if interruption is None else interruption
    trainer = Trainer(net, split, seed, interruption, earlier)
    trainer.run()
    return trainer


def history_of(net, split=None, **kwargs):
    """Train a net, and return the rows of the history of this training."""
    n_earlier = len(net.history_)
    train(net, split, **kwargs)
    return net.history[n_earlier:]


def train_by_script(values, callbacks=(), **plan):
    """A net after a training whose held-out losses are `values`."""
    plan = {"max_epochs": len(values) - 1, "early_stopping": True, **plan}
    net = make_net(make_module(ScriptedLoss(values)), callbacks, **plan)
    train(net, make_split(held_out=True))
    return net


def batch_of(module, rows):
    """A training batch of rows in the units of the data, all of weight one."""
    return Batch(*module.scaler(rows), torch.ones(len(rows)))


def global_states():
    """States of the global generators of NumPy and PyTorch."""
    return pickle.dumps(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002


def weights_of(net):
    """A copy of the weights of a net."""
    return copy.deepcopy(net.module_.state_dict())


def same(one, other):
    """Whether two dictionaries of weights are equal to the bit."""
    return all(torch.equal(one[name], other[name]) for name in one)


def callback_at(event, function):
    """A callback that calls a function of the net at one kind of event."""

    def call(self, net, **kwargs):
        function(net)

    return type("CallbackAt", (Callback,), {event: call})()


def watch_weights():
    """A list that fills with the weights after each epoch, and its callback."""
    weights = []
    return weights, callback_at(
        "on_epoch_end", lambda net: weights.append(weights_of(net))
    )


def watch_rates(event="on_epoch_end"):
    """A list that fills with learning rates, and its callback."""
    rates = []
    return rates, callback_at(
        event, lambda net: rates.append(net.optimizer_.param_groups[0]["lr"])
    )


def stop_at(epoch, event="on_epoch_end"):
    """A callback that ends the training, as skorch's callbacks do."""

    def stop(net):
        if len(net.history) == epoch:
            raise KeyboardInterrupt

    return callback_at(event, stop)


def press_ctrl_c(epoch, event="on_batch_end"):
    """A callback that sends SIGINT."""

    def press(net):
        if len(net.history) == epoch:
            signal.raise_signal(signal.SIGINT)

    return callback_at(event, press)
