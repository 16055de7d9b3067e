"""Facts about checkpoint: a fit that was killed goes on, and gives the same model."""

import copy
import os
import pickle
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from joblib import parallel_config
from killed import after_epoch, at_event, count_events, run_and_kill, while_writing
from numpy.testing import assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.utils.estimator_checks import check_estimator
from skorch.callbacks import Callback
from torch import nn
from variants import decoder_factory, encoder_factory

import skae
from skae import AutoencoderOutlierDetector, AutoencoderTransformer, _streamed
from skae.bottlenecks import Gaussian
from skae.engine import trainer as trainer_module
from skae.engine.checkpoint import METADATA_KEY, Checkpoint
from skae.networks import MLP, Custom

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def make_table(n_rows=150, seed=0):
    """Rows near a curved surface in seven dimensions."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(-1, 1, (n_rows, 2))
    curved = np.hstack([t, t**2, np.sin(3 * t), t[:, :1] * t[:, 1:]])
    return curved + 0.05 * rng.normal(size=curved.shape)


X = make_table()
SPARSE = sparse.random(300, 2500, 0.01, format="csr", random_state=0)
WITH_MISSING = np.where(np.random.default_rng(1).random(X.shape) < 0.1, np.nan, X)
BRIEF = {"max_epochs": 7, "batch_size": 40, "random_state": 0}
SMALL = {"hidden_layer_sizes": (8,), **BRIEF}


def transformer(n_components=2, **parameters):
    return AutoencoderTransformer(n_components, **{**SMALL, **parameters})


def detector(**parameters):
    return AutoencoderOutlierDetector(**{**BRIEF, **parameters})


def custom(encoder=encoder_factory, **parameters):
    network = Custom(encoder, decoder_factory)
    return AutoencoderTransformer(2, network=network, **{**BRIEF, **parameters})


class Centered(nn.Module):
    """Subtracts a running mean, which is in a buffer that `state_dict` leaves out."""

    def __init__(self, n_features, n_components):
        super().__init__()
        self.linear = nn.Linear(n_features, n_components)
        self.register_buffer("mean", torch.zeros(n_components), persistent=False)

    def forward(self, X):
        codes = self.linear(X)
        if self.training:
            self.mean.lerp_(codes.detach().mean(dim=0), 0.1)
        return codes - self.mean


slow = pytest.mark.slow

# The estimator, the rows, and the other arguments of fit.
CASES = {
    "default network": (AutoencoderTransformer(2, **BRIEF), X, {}),
    "held-out rows": (transformer(early_stopping=True), X, {}),
    "folds": (transformer(), X, {}),
    "folds, one by one": (
        transformer(network=MLP((8,), dropout=0.1), hidden_layer_sizes="auto"),
        X,
        {},
    ),
    "no held-out rows": (transformer(early_stopping=False), X, {}),
    "X_val": (transformer(), X, {"X_val": make_table(50, seed=1)}),
    "weights": (transformer(), X, {"sample_weight": np.arange(len(X)) % 5}),
    "missing entries": (transformer(), WITH_MISSING, {}),
    "uncompiled": (transformer(compile=False), X, {}),
    "random start": (transformer(init="random"), X, {}),
    "gaussian": (transformer(bottleneck="gaussian"), X, {}),
    "gaussian with a warm-up": (
        transformer(bottleneck=Gaussian(warm_up=0.5, score="elbo")),
        X,
        {},
    ),
    "quantized": (transformer(bottleneck="quantized"), X, {}),
    "topk": (transformer(4, bottleneck="topk", hidden_layer_sizes="auto"), X, {}),
    "ordered": (transformer(3, ordered=True), X, {}),
    "a share of the variance": (transformer(0.8), X, {}),
    "corruption and penalty": (transformer(corruption="swap", penalty="l1"), X, {}),
    "convolutions": (
        transformer(network="conv", hidden_layer_sizes="auto"),
        X,
        {},
    ),
    "global generator": (custom(), X, {}),
    "buffers": (custom(Centered), X, {}),
    "mixed loss": (transformer(loss="mixed"), (X > 0).astype(float), {}),
    "sparse rows": (
        AutoencoderTransformer(2, hidden_layer_sizes=(4,), max_epochs=6, batch_size=64),
        SPARSE,
        {},
    ),
    "detector": (detector(), X, {}),
    "detector with folds": (detector(early_stopping="auto"), X, {}),
    "detector, one by one": (detector(bottleneck="gaussian", n_estimators=3), X, {}),
}

# Cases that take long, and differ little from others.
SLOW = {
    "default network",
    "gaussian",
    "corruption and penalty",
    "convolutions",
    "detector with folds",
    "random start",
    "weights",
    "missing entries",
    "uncompiled",
    "a share of the variance",
    "mixed loss",
    "detector, one by one",
    "topk",
}


def with_checkpoint(estimator, folder):
    estimator = clone(estimator)
    if estimator.random_state is None:
        estimator.set_params(random_state=0)
    return estimator.set_params(checkpoint=folder)


def assert_same(one, other):
    """Assert that two models are equal to the bit."""
    for model in (one, other):
        assert model.n_iter_ > 0
    ours, theirs = (model.module_.state_dict() for model in (one, other))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert_array_equal(weight.numpy(), theirs[name].numpy(), name)
    assert one.loss_curve_ == other.loss_curve_
    assert_array_equal(one.validation_loss_curve_, other.validation_loss_curve_)
    names = "train_loss_best", "train_batch_count"
    assert one.net_.history[:, names] == other.net_.history[:, names]
    judgements = one.net_.judgement_, other.net_.judgement_
    if judgements != (None, None):
        for ours, theirs in zip(*judgements, strict=True):
            assert_array_equal(ours, theirs)
    if hasattr(one, "offset_"):
        assert one.offset_ == other.offset_


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


class StoppedError(Exception):
    """Ends a training after its state has been written."""


def run_and_stop(fit, monkeypatch, n_epochs):
    """Call `fit`, and stop it by an error after some epochs have been stored."""
    write, n_written = Checkpoint.write, 0

    def write_and_stop(self, state):
        nonlocal n_written
        write(self, state)
        n_written += "epoch" in state
        if n_written == n_epochs:
            raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "write", write_and_stop)
        with pytest.raises(StoppedError):
            fit()


# Fits that are killed


@needs_fork
@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=slow if c in SLOW else ()) for c in CASES]
)
def test_fit_that_was_killed_ends_with_the_same_model(case, tmp_path, always_recorded):
    estimator, rows, arguments = CASES[case]
    whole = with_checkpoint(estimator, None).fit(rows, **arguments)
    assert len(whole.loss_curve_) > 5
    killed = with_checkpoint(estimator, tmp_path)
    run_and_kill(lambda: killed.fit(rows, **arguments), after_epoch(4))
    assert len(contents(tmp_path)) == 1
    assert_same(with_checkpoint(estimator, tmp_path).fit(rows, **arguments), whole)


def test_fit_that_stops_after_each_epoch(tmp_path, monkeypatch):
    # Several epochs are worse than those before, so that the learning rate is divided.
    parameters = {"init": "random", "learning_rate": 0.1, "max_epochs": 60}
    model = transformer(early_stopping=True, n_iter_no_change=2, **parameters)
    whole = clone(model).fit(X)
    n_epochs = len(whole.loss_curve_)
    assert n_epochs < 40
    for _ in range(n_epochs):
        fit = clone(model).set_params(checkpoint=tmp_path).fit
        run_and_stop(partial(fit, X), monkeypatch, 1)
    assert_same(clone(model).set_params(checkpoint=tmp_path).fit(X), whole)


@needs_fork
def test_kill_while_the_state_is_written(tmp_path):
    whole = transformer().fit(X)
    for n_epochs in (4, 2, 1):
        fit = transformer(checkpoint=tmp_path).fit
        run_and_kill(partial(fit, X), while_writing(n_epochs))
    assert_same(transformer(checkpoint=tmp_path).fit(X), whole)


@needs_fork
@slow
@pytest.mark.parametrize("name", ["folds", "held-out rows", "detector"])
def test_kill_at_random_moments(name, tmp_path):
    estimator, rows, arguments = CASES[name]
    whole = with_checkpoint(estimator, tmp_path / "whole").fit(rows, **arguments)
    fit = with_checkpoint(estimator, tmp_path / "counted").fit
    n_events = count_events(lambda: fit(rows, **arguments))
    moments = np.random.default_rng(0).integers(1, int(0.9 * n_events), 20)
    for number in moments.tolist():
        folder = tmp_path / str(number)
        fit = with_checkpoint(estimator, folder).fit
        run_and_kill(partial(fit, rows, **arguments), at_event(number))
        assert_same(with_checkpoint(estimator, folder).fit(rows, **arguments), whole)


@needs_fork
def test_blocks_of_members_go_on_one_by_one(tmp_path):
    many = detector(n_estimators=20, max_epochs=6)
    whole = clone(many).fit(X)
    killed = clone(many).set_params(checkpoint=tmp_path)
    run_and_kill(lambda: killed.fit(X), after_epoch(8))
    assert len(contents(tmp_path)) == 2  # the first block is complete
    resumed = clone(many).set_params(checkpoint=tmp_path, n_jobs=2)
    with parallel_config("threading"):
        assert_same(resumed.fit(X), whole)
    assert_same(clone(resumed).set_params(n_jobs=None).fit(X), whole)
    assert len(contents(tmp_path)) == 2


@needs_fork
def test_rows_in_partitions(tmp_path, monkeypatch):
    monkeypatch.setattr(_streamed, "MAX_GATHERED", 100)
    parts = np.array_split(make_table(600), 7)
    estimator = transformer(max_epochs=6)
    whole = clone(estimator).fit(parts)
    killed = clone(estimator).set_params(checkpoint=tmp_path)
    run_and_kill(lambda: killed.fit(parts), after_epoch(3))
    assert len(contents(tmp_path)) == 1
    assert_same(clone(estimator).set_params(checkpoint=tmp_path).fit(parts), whole)


@pytest.mark.parametrize("make", [transformer, detector])
def test_warm_start(make, tmp_path, monkeypatch):
    def fit_twice(folder):
        model = make(warm_start=True, checkpoint=folder).fit(X)
        return model.set_params(max_epochs=10).fit(X)

    whole = fit_twice(None)
    n_first = len(make().fit(X).loss_curve_)
    run_and_stop(lambda: fit_twice(tmp_path), monkeypatch, n_first + 3)
    assert len(contents(tmp_path)) == 2
    assert_same(fit_twice(tmp_path), whole)


def test_additional_members(tmp_path, monkeypatch):
    def fit_twice(folder):
        model = detector(n_estimators=3, warm_start=True, checkpoint=folder).fit(X)
        return model.set_params(n_estimators=5).fit(X)

    whole = fit_twice(None)
    run_and_stop(lambda: fit_twice(tmp_path), monkeypatch, BRIEF["max_epochs"] + 3)
    assert_same(fit_twice(tmp_path), whole)


def test_fit_goes_on_after_an_interrupt(tmp_path, monkeypatch):
    write = Checkpoint.write

    def interrupt(self, state):
        write(self, state)
        if state["epoch"] == 3:
            raise KeyboardInterrupt

    model = transformer(checkpoint=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "write", interrupt)
        with pytest.raises(KeyboardInterrupt):
            model.fit(X)
    assert len(model.loss_curve_) == 3
    assert_same(model.fit(X), transformer().fit(X))


SEARCH = """
    import os, signal, sys
    import numpy as np
    import torch
    from sklearn.model_selection import GridSearchCV
    from torch import nn
    from skae import AutoencoderTransformer
    from skae.networks import Custom

    class Linear(nn.Linear):
        def forward(self, X):
            # A variable of the script would be compared.
            n_steps = int(os.environ.get("N_STEPS", "0")) + self.training
            os.environ["N_STEPS"] = str(n_steps)
            if n_steps == 40 and "LETHAL" in os.environ:
                os.killpg(os.getpgrp(), signal.SIGKILL)
            return super().forward(X)

    def encoder(n_features, n_components):
        return Linear(n_features, n_components)

    def decoder(n_features, n_components):
        return Linear(n_components, n_features)

    X = np.random.default_rng(0).normal(size=(60, 4))
    ae = AutoencoderTransformer(network=Custom(encoder, decoder), max_epochs=10)
    ae.set_params(random_state=0, checkpoint=sys.argv[1] or None)
    grid = {"n_components": [1, 2, 3], "learning_rate": [0.01, 0.001]}
    search = GridSearchCV(ae, grid, cv=2, n_jobs=2, error_score="raise").fit(X)
    print(search.best_params_, search.cv_results_["mean_test_score"].tolist())
"""


@slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
def test_search_that_was_killed_is_started_again(tmp_path):
    def run(folder, **environment):
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SEARCH), folder],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            start_new_session=True,
        )

    whole = run("")
    assert whole.returncode == 0, whole.stderr
    assert run(str(tmp_path), LETHAL="1").returncode == -9
    before = contents(tmp_path)
    assert before
    again = run(str(tmp_path))
    assert again.stdout == whole.stdout, again.stderr
    assert len(contents(tmp_path)) == 3 * 2 * 2 + 1  # each fit has a file of its own


# Fits that have ended


def test_complete_fit_is_repeated_without_training(tmp_path, monkeypatch):
    first = transformer(checkpoint=tmp_path).fit(X)
    before = contents(tmp_path)

    def fail(*args):
        raise AssertionError("a step was taken")

    monkeypatch.setattr(trainer_module.Trainer, "_take_step", fail)
    assert_same(transformer(checkpoint=tmp_path).fit(X), first)
    assert contents(tmp_path) == before


def test_fit_is_the_same_with_and_without(tmp_path):
    assert_same(transformer(checkpoint=tmp_path).fit(X), transformer().fit(X))


@pytest.mark.parametrize("kind", [str, Path])
def test_folder_is_created(kind, tmp_path):
    folder = tmp_path / "one" / "other"
    transformer(max_epochs=1, checkpoint=kind(folder)).fit(X)
    assert len(contents(folder)) == 1


def test_relative_folder_is_that_of_the_call(tmp_path, monkeypatch):
    write = Checkpoint.write

    def write_elsewhere(self, state):  # as in a worker
        os.chdir(tmp_path / "other")
        write(self, state)

    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Checkpoint, "write", write_elsewhere)
    transformer(max_epochs=2, checkpoint="fits").fit(X)
    assert len(contents(tmp_path / "fits")) == 1
    assert contents(tmp_path / "other") == {}


class Counting(nn.Module):
    """A linear layer whose output depends on the number of steps."""

    def __init__(self, n_features, n_components, wrap):
        super().__init__()
        self.layer, self.n_steps = nn.Linear(n_features, n_components), 0
        self.wrap = wrap

    def forward(self, X):
        self.n_steps += self.training
        return self.layer(X) * (1 + 0.01 * self.n_steps)

    def get_extra_state(self):
        return {"n_steps": self.wrap(self.n_steps)}

    def set_extra_state(self, state):
        self.n_steps = int(state["n_steps"])


@pytest.mark.parametrize("wrap", [int, torch.tensor, np.array])
@pytest.mark.parametrize("early_stopping", ["auto", False])
def test_extra_state_of_modules_is_stored(wrap, early_stopping, tmp_path, monkeypatch):
    encoder = partial(Counting, wrap=wrap)
    ae = custom(encoder, early_stopping=early_stopping)
    expected = clone(ae).fit(X)
    ae.set_params(checkpoint=tmp_path)
    run_and_stop(lambda: clone(ae).fit(X), monkeypatch, n_epochs=2)
    ae.fit(X)
    assert ae.loss_curve_ == expected.loss_curve_
    assert_array_equal(ae.transform(X), expected.transform(X))


def test_extra_state_that_cannot_be_stored_is_refused(tmp_path):
    ae = custom(partial(Counting, wrap=lambda n_steps: object()))
    with pytest.raises(TypeError, match=r"checkpoint=.*get_extra_state of a module"):
        ae.set_params(checkpoint=tmp_path).fit(X)


class Name:
    """A path whose name is not a text."""

    def __fspath__(self):
        return b"fits"

    def __repr__(self):
        return "Name()"


@pytest.mark.parametrize("folder", ["", "\0", "fits\0", "\ud800", Name()], ids=repr)
@pytest.mark.parametrize("make", [transformer, detector])
def test_names_of_no_folder_are_refused(make, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ae = make(checkpoint=folder)
    with pytest.raises(ValueError, match=r"checkpoint=.* is no path to a folder"):
        ae.fit(X)
    assert contents(tmp_path) == {}
    assert not hasattr(ae, "n_features_in_")


# What a file with a valid checksum may have in place of a part of the state.
ALTERED = {
    "no weights": (("weights",), {}),
    "weights that are a number": (("weights",), 1),
    "other optimizer": (("optimizer",), []),
    "number of an optimizer": (("optimizer", 0), 1.5),
    "other noise": (("noise",), [{}]),
    "other generator": (("shuffling", "bit_generator"), "MT19937"),
    "no judge": (("judge",), None),
    "large number": (("average", 0), 10**400),
    "other epochs": (("history",), [1]),
    "no step": (("step",), torch.zeros(2)),
}


@pytest.mark.parametrize("case", ALTERED)
def test_altered_state_is_refused(case, tmp_path, monkeypatch):
    (*path, last), value = ALTERED[case]
    ae = transformer(checkpoint=tmp_path)
    write = Checkpoint.write

    def write_altered(self, state):
        state = copy.copy(state)
        part = state
        for key in path:
            part[key] = copy.copy(part[key])
            part = part[key]
        part[last] = value
        write(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "write", write_altered)
        clone(ae).set_params(max_epochs=1).fit(X)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint=.*Delete it to start"):
        clone(ae).set_params(max_epochs=1).fit(X)
    assert contents(tmp_path) == before


def test_altered_seed_is_refused(tmp_path, monkeypatch):
    ae = transformer(checkpoint=tmp_path, random_state=None)
    write = Checkpoint.write
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "write", lambda self, _: write(self, {"seed": []}))
        ae.fit(X)
    with pytest.raises(ValueError, match=r"checkpoint=.*Delete it to start"):
        ae.fit(X)


def test_other_files_of_the_folder_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("kept")
    transformer(max_epochs=1, checkpoint=tmp_path).fit(X)
    assert contents(tmp_path)["notes.txt"] == b"kept"


def activated(activation):
    def encoder(n_features, n_components):
        return nn.Sequential(nn.Linear(n_features, n_components), activation())

    network = Custom(encoder, decoder_factory)
    return {"network": network, "hidden_layer_sizes": "auto"}


def scaled(factor):
    class Scaled(nn.Module):
        def forward(self, X):
            return factor * X

    return Scaled


DIFFERENT = {
    "rows": lambda f: f().fit(X + 1e-9),
    "one entry": lambda f: f().fit(np.where(X.max() == X, 0, X)),
    "fewer rows": lambda f: f().fit(X[:-1]),
    "weights": lambda f: f().fit(X, sample_weight=np.r_[2, np.ones(len(X) - 1)]),
    "validation rows": lambda f: f().fit(X, X_val=X[:9]),
    "seed": lambda f: f(random_state=1).fit(X),
    "number of components": lambda f: f(n_components=3).fit(X),
    "learning rate": lambda f: f(learning_rate=0.5).fit(X),
    "class": lambda f: detector(max_epochs=1, checkpoint=f().checkpoint).fit(X),
    "parameter of a spec": lambda f: f(bottleneck=Gaussian(warm_up=0.3)).fit(X),
    "other spec": lambda f: f(bottleneck=Gaussian(warm_up=0.4)).fit(X),
    "network": lambda f: f(**activated(nn.Tanh)).fit(X),
    "variable of a class of modules": lambda f: f(**activated(scaled(2))).fit(X),
    "other variable of a class": lambda f: f(**activated(scaled(3))).fit(X),
    "variable of a function": lambda f: f(**activated(nn.ReLU)).fit(X),
}


def test_different_fits_have_files_of_their_own(tmp_path):
    def make(**parameters):
        return transformer(**{"max_epochs": 1, "checkpoint": tmp_path, **parameters})

    make().fit(X)
    for n_files, (name, fit) in enumerate(DIFFERENT.items(), start=1):
        assert len(contents(tmp_path)) == n_files, name
        fit(make)
    assert len(contents(tmp_path)) == len(DIFFERENT) + 1


SAME = {
    "clone": lambda f: clone(f()).fit(X),
    "pickle": lambda f: pickle.loads(pickle.dumps(f())).fit(X),
    "verbose": lambda f: f(verbose=1).fit(X),
    "order of rows": lambda f: f().fit(X[::-1]),
    "equal weights": lambda f: f().fit(X, sample_weight=np.ones(len(X))),
    "read-only rows": lambda f: f().fit(np.broadcast_to(X, (1, *X.shape))[0]),
}


@pytest.mark.parametrize("name", SAME)
def test_equal_fits_share_a_file(name, tmp_path):
    def make(**parameters):
        network = {"hidden_layer_sizes": "auto", "network": MLP((4,), dropout=0.1)}
        parameters = {"max_epochs": 1, "checkpoint": tmp_path, **network, **parameters}
        return transformer(**parameters)

    make().fit(X)
    before = contents(tmp_path)
    SAME[name](make)
    assert contents(tmp_path) == before


def test_seed_is_stored_where_none_is_given(tmp_path, monkeypatch):
    def make(folder=tmp_path):
        return transformer(random_state=None, checkpoint=folder)

    run_and_stop(lambda: make().fit(X), monkeypatch, 3)
    one = make().fit(X)
    assert_same(make().fit(X), one)
    other = make(tmp_path / "other").fit(X)
    assert other.loss_curve_ != one.loss_curve_


@pytest.mark.parametrize("random_state", [None, 0])
def test_generators_of_the_user_are_left_alone(random_state, tmp_path, monkeypatch):
    def make(folder):
        return custom(random_state=random_state, max_epochs=4, checkpoint=folder)

    states = []
    run_and_stop(lambda: make(tmp_path).fit(X), monkeypatch, 2)
    for folder in (None, tmp_path):
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        make(folder).fit(X)
        number = np.random.rand()  # noqa: NPY002
        states.append((number, torch.rand(1).item()))
    assert states[0] == states[1]


def test_partial_fit_stores_nothing(tmp_path):
    transformer(checkpoint=tmp_path).partial_fit(X)
    assert contents(tmp_path) == {}


# Errors


def stop_first(folder, monkeypatch):
    run_and_stop(lambda: transformer(checkpoint=folder).fit(X), monkeypatch, 2)
    ((name, content),) = contents(folder).items()
    return folder / name, content


def altered(content):
    where = len(content) - 100
    return content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :]


DAMAGES = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "altered": altered,
    "altered description": lambda content: content.replace(b"n_steps", b"n_stepz"),
    "text": lambda content: b"no checkpoint at all",
    "altered key": lambda content: content.replace(METADATA_KEY.encode(), b"x" * 15),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_refused_and_kept(damage, tmp_path, monkeypatch):
    path, content = stop_first(tmp_path, monkeypatch)
    path.write_bytes(DAMAGES[damage](content))
    before = contents(tmp_path)
    model = transformer(checkpoint=tmp_path)
    with pytest.raises(ValueError, match=rf"{path.name}.*Delete it to start the fit"):
        model.fit(X)
    assert contents(tmp_path) == before
    assert not hasattr(model, "n_iter_")
    path.unlink()
    assert_same(model.fit(X), transformer().fit(X))


def test_file_of_another_fit_is_refused_and_kept(tmp_path, monkeypatch):
    path, _ = stop_first(tmp_path, monkeypatch)
    transformer(3, checkpoint=tmp_path / "other").fit(X)
    (foreign,) = contents(tmp_path / "other").values()
    path.write_bytes(foreign)
    with pytest.raises(ValueError, match="belongs to a fit of other rows or param"):
        transformer(checkpoint=tmp_path).fit(X)
    assert path.read_bytes() == foreign


class Wide(nn.Sequential):
    """Its constructor depends on what is not compared."""

    def __init__(self, n_features, n_components):
        width = int(os.environ.get("WIDTH", "4"))
        layers = nn.Linear(n_features, width), nn.Linear(width, n_components)
        super().__init__(*layers)


def test_other_changes_are_noticed_by_the_shapes(tmp_path, monkeypatch):
    def make():
        network = Custom(Wide, decoder_factory)
        return AutoencoderTransformer(2, network=network, checkpoint=tmp_path, **BRIEF)

    run_and_stop(lambda: make().fit(X), monkeypatch, 2)
    before = contents(tmp_path)
    monkeypatch.setenv("WIDTH", "5")
    with pytest.raises(ValueError, match=r"another network.*Delete it to start"):
        make().fit(X)
    assert contents(tmp_path) == before


def assert_write_error(model, folder, error, match):
    """Assert that a fit fails, and leaves the folder and the model as they were."""
    before, loss_curve = contents(folder), getattr(model, "loss_curve_", None)
    with pytest.raises(error, match=match) as info:
        model.fit(X)
    assert str(folder) in str(info.value)
    assert contents(folder) == before
    assert getattr(model, "loss_curve_", None) == loss_curve


def test_full_disk(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    path, content = stop_first(tmp_path, monkeypatch)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) // 2, hard))
    try:
        assert_write_error(
            transformer(checkpoint=tmp_path), tmp_path, OSError, "Choose a folder"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == content
    assert_same(transformer(checkpoint=tmp_path).fit(X), transformer().fit(X))


@pytest.mark.parametrize("is_fitted", [False, True])
@pytest.mark.parametrize("name", ["replace", "open"])
def test_error_of_the_disk(name, is_fitted, tmp_path, monkeypatch):
    model = transformer(checkpoint=tmp_path)
    if is_fitted:
        model.fit(X)
        model.set_params(learning_rate=0.1)

    def fail(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, name, fail)
        with pytest.raises(PermissionError, match=f"denied.*{tmp_path}.*writable"):
            model.fit(X)
    assert contents(tmp_path) == before
    assert hasattr(model, "n_iter_") == is_fitted


def test_folder_that_cannot_be_written_to_is_refused_before_training(
    tmp_path, monkeypatch
):
    def fail(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "touch", fail)
    monkeypatch.setattr(trainer_module, "Trainer", None)
    assert_write_error(
        transformer(checkpoint=tmp_path), tmp_path, PermissionError, "denied.*writable"
    )


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    try:
        assert_write_error(
            transformer(checkpoint=tmp_path), tmp_path, PermissionError, "writable"
        )
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("inside", [(), ("folder",)])
def test_file_instead_of_a_folder(inside, tmp_path):
    path = tmp_path / "file"
    path.write_text("kept")
    folder = path.joinpath(*inside)
    with pytest.raises(OSError, match="Choose a folder that is writable"):
        transformer(checkpoint=folder).fit(X)
    assert path.read_text() == "kept"


def test_no_folder_is_created_for_invalid_rows(tmp_path):
    folder = tmp_path / "folder"
    with pytest.raises(ValueError, match="infinity"):
        transformer(checkpoint=folder).fit(np.full((9, 2), np.inf))
    assert not folder.exists()


@pytest.mark.parametrize("make", [transformer, detector])
@pytest.mark.parametrize("value", [1, True, b"folder", ["folder"]])
def test_checkpoint_is_a_path(value, make):
    with pytest.raises(ValueError, match="'checkpoint' parameter"):
        make(checkpoint=value).fit(X)


def test_callbacks_are_refused(tmp_path):
    model = transformer(checkpoint=tmp_path, callbacks=[Callback()])
    with pytest.raises(ValueError, match="checkpoint and callbacks cannot be used"):
        model.fit(X)
    assert contents(tmp_path) == {}
    model.set_params(callbacks=[]).fit(X)


class Locked(nn.Module):
    def __getstate__(self):
        raise TypeError("cannot pickle a lock")


def test_parameter_without_content_is_refused(tmp_path):
    locked = Locked()
    network = Custom(lambda n, k: nn.Sequential(nn.Linear(n, k), locked), nn.Linear)
    model = AutoencoderTransformer(2, network=network, checkpoint=tmp_path, **BRIEF)
    with pytest.raises(TypeError, match=r"network=.* cannot be used with checkpoint"):
        model.fit(X)


# The parameter


@pytest.mark.parametrize("make", [transformer, detector])
def test_parameter_is_stored(make, tmp_path):
    model = make(checkpoint=tmp_path, max_epochs=1).fit(X)
    assert clone(model).checkpoint == tmp_path
    assert pickle.loads(pickle.dumps(model)).checkpoint == tmp_path
    path = tmp_path / "model.safetensors"
    skae.save(model, path)
    assert skae.load(path).checkpoint == str(tmp_path)


@slow
@pytest.mark.parametrize("make", [transformer, detector])
def test_estimator_checks(make, tmp_path):
    check_estimator(make(checkpoint=str(tmp_path), max_epochs=5), on_skip=None)
