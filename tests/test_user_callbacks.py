"""skorch's callbacks: which ones work, what they find, and how they are copied."""

import copy
import pickle
import signal
import sys
import threading
import types
import warnings
from collections import OrderedDict, defaultdict, deque
from functools import partial

import numpy as np
import pytest
import skorch.callbacks
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import (
    BatchScoring,
    Callback,
    Checkpoint,
    EarlyStopping,
    EpochScoring,
    EpochTimer,
    Freezer,
    GradientNormClipping,
    Initializer,
    InputShapeSetter,
    LoadInitState,
    LRScheduler,
    MlflowLogger,
    NeptuneLogger,
    ParamMapper,
    PassthroughScoring,
    PrintLog,
    ProgressBar,
    SacredLogger,
    TensorBoard,
    TrainEndCheckpoint,
    Unfreezer,
    WandbLogger,
    WarmRestartLR,
)
from torch import nn

import skae
from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae._user_callbacks import copies
from skae.networks import MLP, Custom

SMALL = {
    "hidden_layer_sizes": (4,),
    "batch_size": 150,
    "max_epochs": 3,
    "random_state": 0,
}

# More rows than that are not cross-validated.
N_FEW, N_MANY = 300, 900


@pytest.fixture(scope="module")
def X():
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(N_MANY, 2))
    parts = [Z, np.sin(2 * Z), Z[:, :1] * Z[:, 1:]]
    return np.hstack(parts) + 0.1 * rng.normal(size=(N_MANY, 5))


class Run:
    """A run of an experiment tracker: records what it is told, and holds a lock."""

    def __init__(self, folder):
        self.dir = folder
        self.lock = threading.Lock()
        self.calls = []
        self.info = types.SimpleNamespace(run_id=1)

    def record(self, *args, **kwargs):
        self.calls.append((args, kwargs))

    add_scalar = log = log_scalar = log_metric = log_artifact = append = record
    watch = close = stop = set_terminated = record

    def __getitem__(self, name):
        return self

    def __setitem__(self, name, value):
        self.calls.append((name, value))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("neptune", "neptune.handler", "neptune.types"):
        module = types.ModuleType(name)
        module.Handler = type("Handler", (), {})
        module.File = types.SimpleNamespace(from_content=lambda text, extension: text)
        monkeypatch.setitem(sys.modules, name, module)
    return Run(tmp_path)


# Each callback: how it is created, and why it is refused.
CASES = {
    "BatchScoring": (lambda run: BatchScoring("r2"), r"Use EpochScoring"),
    "Callback": (lambda run: Callback(), None),
    "Checkpoint": (lambda run: Checkpoint(), None),
    "EarlyStopping": (lambda run: EarlyStopping(patience=2), None),
    "EpochScoring": (lambda run: EpochScoring("r2"), None),
    "EpochTimer": (lambda run: EpochTimer(), None),
    "Freezer": (lambda run: Freezer("encoder.*"), None),
    "GradientNormClipping": (lambda run: GradientNormClipping(0.1), None),
    "Initializer": (lambda run: Initializer("*.weight", fn=torch.nn.init.zeros_), None),
    "InputShapeSetter": (lambda run: InputShapeSetter(), r"Leave it out"),
    "LRScheduler": (
        lambda run: LRScheduler("ReduceLROnPlateau", monitor="valid_loss"),
        None,
    ),
    "LoadInitState": (lambda run: LoadInitState(Checkpoint()), r"warm_start"),
    "MlflowLogger": (lambda run: MlflowLogger(run, run), None),
    "NeptuneLogger": (lambda run: NeptuneLogger(run), None),
    "ParamMapper": (
        lambda run: ParamMapper("*.bias", fn=torch.nn.init.zeros_, at=2),
        None,
    ),
    "PassthroughScoring": (lambda run: PassthroughScoring("valid_loss"), None),
    "PrintLog": (lambda run: PrintLog(), None),
    "ProgressBar": (lambda run: ProgressBar(), None),
    "SacredLogger": (lambda run: SacredLogger(run), None),
    "TensorBoard": (lambda run: TensorBoard(run), None),
    "TrainEndCheckpoint": (lambda run: TrainEndCheckpoint(), None),
    "Unfreezer": (lambda run: Unfreezer("encoder.*"), None),
    "WandbLogger": (lambda run: WandbLogger(run), None),
    # No callback, but a schedule for LRScheduler.
    "WarmRestartLR": (
        lambda run: WarmRestartLR,
        r"Use LRScheduler\(policy=WarmRestartLR\)",
    ),
}


def test_it_is_decided_what_each_callback_of_skorch_does():
    assert set(skorch.callbacks.__all__) <= set(CASES)


@pytest.mark.parametrize("n_rows", [N_FEW, N_MANY])
@pytest.mark.parametrize("name", CASES)
def test_each_callback_of_skorch_works_or_is_refused(name, n_rows, X, run):
    create, reason = CASES[name]
    given = create(run)
    ae = AutoencoderTransformer(2, init="random", callbacks=[given], **SMALL)
    if reason is not None:
        with pytest.raises((TypeError, ValueError), match=f"(?s)callbacks.*{reason}"):
            ae.fit(X[:n_rows])
        assert not hasattr(ae, "net_")
        assert not run.calls
        return
    ((given_name, used),) = ae.fit(X[:n_rows]).net_.callbacks_
    assert given_name == name
    assert type(used) is type(given)
    assert used is not given
    assert ae.transform(X).shape == (N_MANY, 2)
    assert pickle.loads(pickle.dumps(ae)).net_.callbacks_ == []


# What callbacks find


class Record(Callback):
    """Records the rows of the history, in a list."""

    def __init__(self):
        self.rows = []

    def on_epoch_end(self, net, **kwargs):
        self.rows.append(dict(net.history[-1]))


def test_callbacks_score_the_held_out_rows_of_the_folds(X):
    settings = {**SMALL, "max_epochs": 6, "init": "random"}
    scoring = EpochScoring("r2", lower_is_better=False)
    callbacks = [scoring, Record(), EpochTimer()]
    ae = AutoencoderTransformer(2, callbacks=callbacks, **settings).fit(X[:N_FEW])
    rows = dict(ae.net_.callbacks_)["Record"].rows
    assert len(rows) == ae.n_iter_ == len(ae.net_.history)
    expected = ae.validation_loss_curve_
    assert [row["valid_loss"] for row in rows] == expected
    assert [row["valid_loss_best"] for row in rows] == [
        loss < min(expected[:i], default=np.inf) for i, loss in enumerate(expected)
    ]
    assert all(row["r2"] < 1 and isinstance(row["r2_best"], bool) for row in rows)
    plain = AutoencoderTransformer(2, **settings).fit(X[:N_FEW])
    assert_array_equal(ae.transform(X), plain.transform(X))


@pytest.mark.parametrize("n_rows", [N_FEW, N_MANY])
@pytest.mark.parametrize(
    ("monitor", "scoring"),
    [
        ("valid_loss", []),
        ("r2", [EpochScoring("r2", lower_is_better=False)]),
        ("mine", [EpochScoring(lambda net, X, y: 1.0, name="mine")]),
    ],
)
def test_early_stopping_stops(monitor, scoring, n_rows, X):
    # An improvement by 100 % is out of reach.
    stop = EarlyStopping(
        monitor, patience=2, threshold=1.0, lower_is_better=monitor != "r2"
    )
    settings = {**SMALL, "max_epochs": 9, "init": "random"}
    ae = AutoencoderTransformer(2, callbacks=[*scoring, stop], **settings)
    ae.fit(X[:n_rows])
    assert len(ae.loss_curve_) == 3


def test_scores_are_those_of_the_reconstructions(X):
    callbacks = [
        ("named", EpochScoring("r2", on_train=True)),
        ("method", EpochScoring(None, on_train=True)),
    ]
    settings = {**SMALL, "early_stopping": False, "callbacks": callbacks}
    for rows in (X[:60].astype(np.float32), X[:60]):
        ae = AutoencoderTransformer(2, **settings).fit(rows)
        last = ae.net_.history[-1]
        assert_allclose(last["r2"], r2_score(rows, ae.reconstruct(rows)), rtol=1e-4)
        assert_allclose(last["score"], ae.score(rows), rtol=1e-5)


def test_the_score_of_a_net_leaves_missing_entries_out(X):
    holes = X[:60].copy()
    holes[::7, 1] = np.nan
    scoring = EpochScoring(None, on_train=True)
    ae = AutoencoderTransformer(2, early_stopping=False, callbacks=[scoring], **SMALL)
    residuals = holes - ae.fit(holes).reconstruct(holes)
    expected = 1 - np.nansum(residuals**2) / np.nansum((holes - ae.mean_) ** 2)
    assert_allclose(ae.net_.history[-1]["score"], expected, rtol=1e-4)


def test_datasets_have_rows_and_targets(X):
    seen = []

    class Watch(Callback):
        def on_train_begin(self, net, X, y, **kwargs):
            seen.append((len(X), X.shape, y))

        def on_epoch_begin(self, net, dataset_train, dataset_valid, **kwargs):
            seen.append((len(dataset_train), len(dataset_valid)))
            assert_array_equal(dataset_train.X, dataset_train.y)
            assert_array_equal(dataset_train[3], 2 * [dataset_train.X[3]])

    settings = {**SMALL, "max_epochs": 1, "early_stopping": True}
    AutoencoderTransformer(2, callbacks=[Watch()], **settings).fit(X[:50])
    assert seen == [(45, (45, 5), None), (45, 5)]


def test_callbacks_record_values_of_batches(X):
    class Number(Callback):
        def on_batch_begin(self, net, **kwargs):
            net.history.record_batch("number", len(net.history[-1]["batches"]))

    settings = {
        **SMALL,
        "early_stopping": True,
        "batch_size": 40,
        "callbacks": [Number],
    }
    history = AutoencoderTransformer(2, **settings).fit(X[:100]).net_.history
    assert history[-1, "batches", :, "number"] == [1, 2, 3, 4]
    assert history[-1, ("train_batch_count", "valid_batch_count")] == (3, 1)
    assert history[0, "batches", :3, "train_batch_size"] == [30, 30, 30]


def test_a_checkpoint_holds_the_weights_of_its_epoch(X, run):
    callbacks = [Checkpoint(monitor=None, f_pickle="net.pkl")]
    settings = {**SMALL, "early_stopping": False, "callbacks": callbacks}
    del settings["hidden_layer_sizes"]
    ae = AutoencoderTransformer(2, network=MLP((4,), dropout=0.1), **settings)
    ae.fit(X[:60])
    assert ae.net_.history[:, "event_cp"] == [True] * 3
    weights = torch.load("params.pt")
    loaded = pickle.loads((run.dir / "net.pkl").read_bytes()).module_.state_dict()
    for name, weight in ae.module_.state_dict().items():
        assert torch.equal(weight, weights[name])
        assert torch.equal(weight, loaded[name])


def test_a_checkpoint_of_the_best_epoch_is_loaded_at_the_end(X, run):
    callbacks = [Checkpoint(monitor=lambda net: len(net.history) == 1, load_best=True)]
    settings = {**SMALL, "early_stopping": False, "callbacks": callbacks}
    settings |= {"init": "random", "learning_rate": 0.1}
    loaded = AutoencoderTransformer(2, **settings).fit(X[:60])
    # skorch restores the history, too.
    assert loaded.n_iter_ == loaded.net_.best_epoch_ == len(loaded.loss_curve_) == 1
    for name, weight in torch.load("params.pt").items():
        assert torch.equal(weight, loaded.module_.state_dict()[name])
    last = AutoencoderTransformer(2, **{**settings, "callbacks": None}).fit(X[:60])
    assert not np.allclose(last.transform(X), loaded.transform(X))


def test_print_log_prints_at_any_verbosity(X, capsys):
    settings = {**SMALL, "early_stopping": True}
    AutoencoderTransformer(2, callbacks=[PrintLog()], **settings).fit(X[:50])
    assert len(capsys.readouterr().out.splitlines()) == 2 + 3
    AutoencoderTransformer(2, callbacks=[EpochTimer()], **settings).fit(X[:50])
    assert capsys.readouterr().out == ""


def test_loggers_log_each_epoch(X, run):
    callbacks = [TensorBoard(run), EpochTimer()]
    settings = {**SMALL, "early_stopping": True, "callbacks": callbacks}
    AutoencoderTransformer(2, **settings).fit(X[:50])
    tags = [kwargs["tag"] for _, kwargs in run.calls if kwargs]
    assert tags.count("Loss/train_loss") == tags.count("Loss/valid_loss") == 3


# Errors and interruptions


class Pruned(Exception):  # noqa: N818 (no error)
    """Ends a trial of a hyperparameter search."""


class Trial:
    """A trial of a hyperparameter search, which is pruned after the second epoch."""

    def __init__(self):
        self.lock = threading.RLock()
        self.values = {}

    def report(self, value, step):
        self.values[step] = value

    def should_prune(self):
        return len(self.values) == 2


class Prune(Callback):
    """Reports the losses to a trial, as Optuna's callback for skorch does."""

    def __init__(self, trial, monitor):
        self._trial = trial
        self._monitor = monitor

    def on_epoch_end(self, net, **kwargs):
        self._trial.report(net.history[-1, self._monitor], step=len(net.history))
        if self._trial.should_prune():
            raise Pruned


def fit_in_search(model, X):
    pipeline = make_pipeline(StandardScaler(), model)
    grid = {"autoencodertransformer__n_components": [1, 2]}
    GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(X)


@pytest.mark.parametrize("n_rows", [N_FEW, N_MANY])
@pytest.mark.parametrize(
    "train",
    [
        AutoencoderTransformer.fit,
        lambda model, X: cross_val_score(model, X, cv=2, error_score="raise"),
        fit_in_search,
    ],
    ids=["fit", "cross_val_score", "search"],
)
def test_a_pruned_trial_ends_the_fit(train, n_rows, X):
    ae = AutoencoderTransformer(2, **SMALL).fit(X[:40])
    Z, trial = ae.transform(X), Trial()
    with pytest.raises(Pruned):
        train(ae.set_params(callbacks=[Prune(trial, "valid_loss")]), X[:n_rows])
    assert list(trial.values) == [1, 2]
    assert_array_equal(ae.transform(X), Z)
    new = AutoencoderTransformer(2, callbacks=[Prune(Trial(), "valid_loss")], **SMALL)
    with pytest.raises(Pruned):
        new.fit(X[:n_rows])
    assert not hasattr(new, "net_")


@pytest.fixture
def python_handler():
    """Python's own handler of SIGINT, also where the test runner has another."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class PressCtrlC(Callback):
    def on_batch_end(self, net, **kwargs):
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_in_the_first_epoch_leaves_a_model_and_ends_all_callbacks(
    X, run, python_handler
):
    last = [TrainEndCheckpoint(), EarlyStopping("train_loss", load_best=True)]
    callbacks = [PressCtrlC(), *last, TensorBoard(run)]
    settings = {**SMALL, "early_stopping": False, "callbacks": callbacks}
    ae = AutoencoderTransformer(2, **settings)
    with pytest.raises(KeyboardInterrupt):
        ae.fit(X[:50])
    assert ae.transform(X).shape == (N_MANY, 2)
    assert run.calls == [((), {})]  # the writer is closed


@pytest.mark.parametrize(
    "callback",
    [
        EarlyStopping(),
        Checkpoint(),
        LRScheduler("ReduceLROnPlateau", monitor="valid_loss"),
        EpochScoring("r2"),
        PassthroughScoring("valid_loss"),
        WandbLogger(None),
        EarlyStopping,
    ],
)
def test_without_held_out_rows_a_callback_that_needs_them_is_refused(callback, X):
    message = r"callbacks: \w+ (reads 'valid|scores held-out).*no rows are held out"
    ae = AutoencoderTransformer(2, callbacks=[callback], **SMALL)
    with pytest.raises(ValueError, match=message):
        ae.partial_fit(X[:50])
    with pytest.raises(ValueError, match=message):
        ae.set_params(early_stopping=False).fit(X[:50])
    with pytest.raises(ValueError, match=message):
        AutoencoderOutlierDetector(2, callbacks=[("a", callback)], **SMALL).fit(X[:50])
    assert not hasattr(ae, "net_")


@pytest.mark.parametrize(
    ("callbacks", "error", "message"),
    [
        ([("a", EpochTimer()), ("a", PrintLog())], ValueError, "'a' is used 2 times"),
        ([("EpochTimer", PrintLog()), EpochTimer], ValueError, "different names"),
        ([EpochScoring], TypeError, "EpochScoring cannot be created without arg"),
        ([None], TypeError, "got None"),
        ([("a", None)], TypeError, r"got \('a', None\)"),
        ([(1, EpochTimer())], TypeError, "pairs of a name"),
        ([["a", EpochTimer()]], TypeError, "pairs of a name"),
    ],
)
def test_callbacks_are_checked_before_training(callbacks, error, message, X):
    with pytest.raises(error, match=f"^callbacks.*{message}"):
        AutoencoderTransformer(callbacks=callbacks).fit(X)


def test_names_of_callbacks(X):
    callbacks = [("progress", EpochTimer), EpochTimer, Callback, Callback()]
    settings = {**SMALL, "early_stopping": True, "verbose": 1}
    ae = AutoencoderTransformer(2, callbacks=callbacks, **settings).fit(X[:50])
    names = [name for name, _ in ae.net_.callbacks_]
    assert names == ["progress", "EpochTimer", "Callback_1", "Callback_2"]


# Copies


class Holder(Callback):
    """Holds one object of each kind."""

    def __init__(self):
        self.numbers = [1, {"a": deque([2])}, (3, [4])]
        self.groups = defaultdict(list, a=[5]), OrderedDict(b=[6]), {7}
        self.array = np.ones(2)
        self.tensor = torch.ones(2, requires_grad=True) * 2  # has a graph
        self.rng = np.random.default_rng(0)
        self.lock = threading.Lock()
        self.trial = Trial()
        self.method = self.add
        self.same = self.numbers

    def add(self, value):
        self.numbers.append(value)


def test_a_copy_has_its_own_state_and_shares_other_objects():
    holder, stop = Holder(), EarlyStopping()
    holder.other = stop
    name, copied = copies([stop, ("a", holder)])[1]
    assert name == "a"
    copied.method(8)
    copied.numbers[1]["a"].append(0)
    copied.numbers[2][1].append(0)
    copied.groups[0]["a"].append(0)
    copied.groups[1]["b"].append(0)
    copied.groups[2].add(0)
    copied.array[:] = copied.tensor[:] = 0
    copied.rng.random()
    assert holder.numbers == [1, {"a": deque([2])}, (3, [4])]
    assert holder.groups == ({"a": [5]}, {"b": [6]}, {7})
    assert holder.array.tolist() == [1, 1]
    assert holder.tensor.tolist() == [2, 2]
    assert holder.rng.random() == np.random.default_rng(0).random()
    assert copied.same is copied.numbers
    assert copied.lock is holder.lock
    assert copied.trial is holder.trial


def test_a_callback_held_by_another_is_copied_once():
    stop, holder = EarlyStopping(), Callback()
    holder.other = stop
    stop.friend = holder
    copied_stop, copied = copies([stop, holder])
    assert copied.other is copied_stop is not stop
    assert copied_stop.friend is copied


def test_a_callback_may_define_its_copy():
    class Single(Callback):
        def __deepcopy__(self, memo):
            return self

    single = Single()
    assert copies([single, EpochTimer, ("a", Single)])[0] is single


class Locked(Record):
    """Holds a lock besides its record."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


@pytest.mark.parametrize("n_rows", [N_FEW, N_MANY])
@pytest.mark.parametrize(
    "estimator", [AutoencoderTransformer, AutoencoderOutlierDetector]
)
def test_a_callback_may_hold_what_cannot_be_copied(estimator, n_rows, X, tmp_path):
    locked = Locked()
    model = estimator(2, init="random", callbacks=[("mine", locked)], **SMALL)
    model.fit(X[:n_rows])
    ((name, used),) = model.net_.callbacks_
    assert name == "mine"
    assert [row["train_loss"] for row in used.rows] == [
        row["train_loss"] for row in model.net_.history
    ]
    assert locked.rows == []
    for twin in (copy.deepcopy(model), copy.copy(model), clone(model)):
        assert twin.callbacks[0][1].lock is locked.lock
        used = twin.fit(X[:n_rows]).net_.callbacks_[0][1]
        assert len(used.rows) == twin.n_iter_
    unpickled = pickle.loads(pickle.dumps(model))
    assert unpickled.callbacks == unpickled.net_.callbacks_ == []
    with pytest.warns(UserWarning, match="callbacks are code"):
        skae.save(model, tmp_path / "model")
    loaded = skae.load(tmp_path / "model")
    for twin in (unpickled, loaded):
        assert_array_equal(twin.reconstruct(X), model.reconstruct(X))


def test_a_clone_keeps_attributes_that_are_no_parameters_of_a_callback(X):
    record = Record()  # its constructor has no parameter `rows`
    model = AutoencoderTransformer(callbacks=(record, EpochTimer))
    twin = clone(clone(model))
    assert type(twin.callbacks) is tuple
    assert type(twin.callbacks[0]) is Record
    assert twin.callbacks[0].rows is not record.rows
    assert twin.callbacks[1] is EpochTimer
    assert clone(AutoencoderTransformer(callbacks="wrong")).callbacks == "wrong"


def test_records_that_callbacks_leave_in_the_history_are_saved(X, tmp_path):
    callbacks = [EpochScoring("r2"), PassthroughScoring("valid_loss")]
    settings = {**SMALL, "early_stopping": True, "init": "random"}
    ae = AutoencoderTransformer(2, callbacks=callbacks, **settings).fit(X[:50])
    with pytest.warns(UserWarning, match="callbacks are code"):
        skae.save(ae, tmp_path / "ae")
    for twin in (skae.load(tmp_path / "ae"), pickle.loads(pickle.dumps(ae))):
        assert (
            twin.net_.history[:, ("r2", "r2_best", "valid_loss_best")]
            == (ae.net_.history[:, ("r2", "r2_best", "valid_loss_best")])
        )


# Trainings that go on


class Rates(Callback):
    """Records the learning rate of each epoch."""

    def __init__(self):
        self.rates = []

    def on_batch_end(self, net, training, **kwargs):
        if training:
            self.rates.append(net.optimizer_.param_groups[0]["lr"])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (partial(LRScheduler, "ExponentialLR", gamma=0.5), [1, 1 / 2, 1 / 4]),
        (partial(LRScheduler, "StepLR", step_size=1, gamma=0.5), [1, 1 / 2, 1 / 4]),
        (
            partial(LRScheduler, "LambdaLR", lr_lambda=lambda i: 1 / (1 + i)),
            [1, 1 / 2, 1 / 3],
        ),
        (
            partial(LRScheduler, "ExponentialLR", gamma=0.5, step_every="batch"),
            [1, 1 / 2, 1 / 4],
        ),
    ],
    ids=["exponential", "steps", "function", "batches"],
)
def test_a_schedule_goes_on_in_partial_fit(schedule, expected, X):
    settings = {**SMALL, "batch_size": 100, "learning_rate": 0.01}
    ae = AutoencoderTransformer(2, callbacks=[Rates(), schedule()], **settings)
    rates = []
    for _ in range(3):
        rates += ae.partial_fit(X[:50]).net_.callbacks_[0][1].rates
    assert_allclose(rates, 0.01 * np.array(expected))


def test_a_schedule_goes_on_in_a_warm_start(X):
    settings = {**SMALL, "max_epochs": 2, "early_stopping": False}
    schedule = LRScheduler("LambdaLR", lr_lambda=lambda i: 0.5**i)
    ae = AutoencoderTransformer(
        2, callbacks=[schedule], warm_start=True, learning_rate=0.01, **settings
    )
    ae.fit(X[:50]).fit(X[50:100])
    assert_allclose(ae.net_.history[:, "event_lr"], 0.01 * 0.5 ** np.arange(4.0))


def test_each_training_begins_with_new_copies(X):
    class Count(Callback):
        n_begins = 0

        def on_train_begin(self, net, **kwargs):
            self.n_begins += 1

    ae = AutoencoderTransformer(2, callbacks=[Count()], warm_start=True, **SMALL)
    for i, method in enumerate((ae.fit, ae.fit, ae.partial_fit, ae.partial_fit)):
        method(X[50 * i :][:50])
        assert ae.net_.callbacks_[0][1].n_begins == 1
    assert ae.callbacks[0].n_begins == 0


class SettingsChange(Callback):
    """Change a setting of PyTorch in the middle of a training."""

    def __init__(self, change, when):
        self.change = change
        self.when = when

    def initialize(self):
        if self.when == "initialize":
            self.change()
        return self

    def on_epoch_begin(self, net, **kwargs):
        if self.when == "epoch":
            self.change()


@pytest.mark.parametrize("when", ["initialize", "epoch"])
@pytest.mark.parametrize("n_rows", [N_FEW, N_MANY])
@pytest.mark.parametrize(
    "change",
    [
        partial(torch.set_default_dtype, torch.float64),
        partial(torch.set_default_device, "meta"),
        partial(torch.set_grad_enabled, False),
        partial(torch.set_flush_denormal, False),
        partial(torch.set_num_threads, 3),
        partial(torch.set_autocast_enabled, "cpu", True),
        partial(torch.set_float32_matmul_precision, "medium"),
    ],
    ids=["dtype", "device", "grad", "denormals", "threads", "autocast", "precision"],
)
def test_a_callback_cannot_change_the_settings_of_a_training(X, change, n_rows, when):
    def settings():
        return (
            torch.get_default_dtype(),
            torch.empty(0).device,
            torch.is_grad_enabled(),
            torch.get_num_threads(),
            torch.is_autocast_enabled("cpu"),
            torch.overrides._get_current_function_mode_stack(),
        )

    before = settings()
    expected = AutoencoderTransformer(2, **SMALL).fit(X[:n_rows])
    callbacks = [SettingsChange(change, when)]
    model = AutoencoderTransformer(2, callbacks=callbacks, **SMALL).fit(X[:n_rows])
    assert settings() == before
    assert_array_equal(model.transform(X), expected.transform(X))


# Nothing to train


class FreezesInBatch(Callback):
    def on_batch_begin(self, net, **kwargs):
        net.module_.requires_grad_(False)


def _custom(trainable, *, has_weights=True):
    if not has_weights:
        return Custom(nn.Identity(), nn.Identity())
    layers = nn.Linear(5, 5), nn.Linear(5, 5)
    return Custom(*(layer.requires_grad_(trainable) for layer in layers))


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"callbacks": [Freezer("*")]}, "all weights .* Freezer"),
        (
            {"callbacks": [Freezer("encoder.*"), ("b", Freezer("decoder.*"))]},
            "all weights .* Freezer",
        ),
        ({"callbacks": [FreezesInBatch()]}, "all weights .* Freezer"),
        (
            {"callbacks": [Freezer("*"), Unfreezer("*", at=2)], "max_epochs": 2},
            "all weights .* Freezer",
        ),
        ({"network": _custom(False)}, r"network=Custom.* all of its 4 parameters"),
        (
            {"network": _custom(False), "callbacks": [EpochTimer()]},
            "all weights .* requires_grad=False",
        ),
        ({"network": _custom(True, has_weights=False)}, "Custom.* no parameters"),
    ],
)
@pytest.mark.parametrize(
    "estimator", [AutoencoderTransformer, AutoencoderOutlierDetector]
)
def test_without_a_weight_to_train_there_is_an_error(
    estimator, settings, match, method, X
):
    model = estimator(5, max_epochs=1, random_state=0).set_params(**settings)
    with pytest.raises(ValueError, match=f"(?s)nothing to train.*{match}|{match}"):
        getattr(model, method)(X[:60])
    assert not hasattr(model, "net_")


@pytest.mark.parametrize(
    ("callbacks", "network"),
    [([Freezer("*"), Unfreezer("*")], "mlp"), ([Unfreezer("*")], _custom(False))],
)
def test_weights_that_a_callback_unfreezes_are_trained(callbacks, network, X):
    ae = AutoencoderTransformer(5, network=network, callbacks=callbacks, random_state=0)
    ae.set_params(max_epochs=1, init="random", early_stopping=False).fit(X[:60])
    assert ae.n_iter_ == 1


# Changes of weights

# Enough steps that they are recorded.
RECORDED = {"hidden_layer_sizes": (8,), "init": "random", "random_state": 0}
RECORDED |= {"max_epochs": 20}


def assert_same_as_eager(callbacks, X, **settings):
    """Check that recorded steps give the model that steps of PyTorch give."""
    settings = {**RECORDED, "batch_size": len(X) // 4, **settings}
    ae = AutoencoderTransformer(2, callbacks=callbacks, **settings).fit(X)
    eager = clone(ae).set_params(compile=False).fit(X)
    assert_allclose(ae.loss_curve_, eager.loss_curve_, rtol=1e-4)
    assert_allclose(ae.reconstruct(X), eager.reconstruct(X), atol=1e-3)
    return ae


@pytest.mark.parametrize("n_rows", [200, N_MANY])
@pytest.mark.parametrize("more", [[], [GradientNormClipping(0.1)]])
def test_weights_that_join_later_are_updated_as_by_pytorch(more, n_rows, X):
    callbacks = [Freezer("encoder*"), Unfreezer("encoder*", at=5), *more]
    assert_same_as_eager(callbacks, X[:n_rows])


class Regrades(Callback):
    """Changes gradients before the update, in one of several ways."""

    def __init__(self, how):
        self.how = how

    def on_train_begin(self, net, **kwargs):
        weights = net.module_.encoder.parameters()
        self.start = [weight.detach().clone() for weight in weights]

    def on_grad_computed(self, net, named_parameters, **kwargs):
        for name, parameter in named_parameters:
            if self.how == "in place":
                parameter.grad.clamp_(-1e-3, 1e-3)
            elif self.how == "replaced":
                parameter.grad = parameter.grad.clamp(-1e-3, 1e-3)
            elif "encoder" in name:
                assert parameter.grad is not None
                parameter.grad = None


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"compile": False, "max_epochs": 4},
        {"corruption": "gaussian"},
        {"early_stopping": False},
    ],
)
def test_gradients_may_be_replaced(settings, X):
    settings = {**RECORDED, "batch_size": 50, **settings}
    expected, actual = (
        AutoencoderTransformer(2, callbacks=[Regrades(how)], **settings)
        .fit(X[:200])
        .loss_curve_
        for how in ("in place", "replaced")
    )
    assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("early_stopping", ["auto", False])
def test_weights_without_a_gradient_keep_their_values(early_stopping, X):
    settings = {"early_stopping": early_stopping, "weight_decay": 0.1}
    ae = assert_same_as_eager([Regrades("removed")], X[:200], **settings)
    start = ae.net_.callbacks_[0][1].start
    assert all(map(torch.equal, ae.module_.encoder.parameters(), start))
    assert ae.loss_curve_[-1] < ae.loss_curve_[0]


FOLDED = {"hidden_layer_sizes": (4,), "max_epochs": 4, "random_state": 0}


class Changes(Callback):
    """Sets the biases of the encoder, in one of several ways, at one of its calls."""

    def __init__(self, method, how, at=1):
        self.method, self.how, self.at = method, how, at
        self.n_calls = 0

    def _change(self, net, training=True, **kwargs):
        self.n_calls += training
        if self.n_calls != self.at or not training:
            return
        for parameter in net.module_.encoder.parameters():
            if parameter.ndim > 1:
                continue
            new = torch.full_like(parameter, 0.25)
            if self.how == "data":
                parameter.data = new
            else:
                with torch.no_grad():
                    parameter.copy_(new)

    def __getattribute__(self, name):
        changes = name.startswith("on_") and name == object.__getattribute__(
            self, "method"
        )
        return object.__getattribute__(self, "_change" if changes else name)


class Watches(Callback):
    """Records, at the beginning of each epoch, the share of biases that are 0.25."""

    def __init__(self):
        self.shares = []

    def on_epoch_begin(self, net, dataset_valid=None, **kwargs):
        folds = [] if dataset_valid is None else dataset_valid.folds or []
        shares = []
        for module in [net.module_, *(module for module, _ in folds)]:
            biases = [p for p in module.encoder.parameters() if p.ndim == 1]
            shares.append(float((torch.cat(biases) == 0.25).float().mean()))
        self.shares.append(shares)


# Networks that are stacked, or averaged, or both, or neither.
KINDS = {
    "stacked": ({}, N_FEW),
    "side by side": ({"corruption": "gaussian"}, N_FEW),
    "averaged": ({"early_stopping": True}, N_FEW),
    "plain": ({"early_stopping": False}, N_FEW),
}


@pytest.mark.parametrize("how", ["in place", "data"])
@pytest.mark.parametrize(
    ("method", "at"),
    [("on_epoch_begin", 2), ("on_epoch_end", 1), ("on_train_begin", 1)],
)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_a_callback_changes_are_trained_on(kind, method, at, how, X):
    settings, n_rows = KINDS[kind]
    callbacks = [Changes(method, how, at), Watches()]
    ae = AutoencoderTransformer(2, callbacks=callbacks, **FOLDED, **settings)
    is_late = method != "on_train_begin"
    warns = is_late and "early_stopping" not in settings
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        ae.fit(X[:n_rows])
    messages = [str(w.message) for w in caught if w.category is UserWarning]
    assert len(messages) == warns, messages
    assert all("Changes has changed weights" in message for message in messages)
    shares = ae.net_.callbacks_[1][1].shares
    assert shares[is_late][0] == 1.0
    if not is_late:  # nothing is learnt yet
        assert shares[0] == len(shares[0]) * [1.0]
    assert shares[-1][0] < 1.0


@pytest.mark.parametrize("method", ["on_batch_begin", "on_batch_end"])
def test_a_change_within_an_epoch_warns(method, X):
    ae = AutoencoderTransformer(2, callbacks=[Changes(method, "in place", 3)], **FOLDED)
    with pytest.warns(UserWarning, match="early_stopping=True"):
        ae.fit(X[:N_FEW])


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("kind", ["stacked", "side by side"])
def test_a_mapper_of_parameters_is_called_for_each_network(kind, at, X):
    fill = partial(torch.nn.init.constant_, val=0.25)
    callbacks = [ParamMapper("encoder*.bias", fn=fill, at=at), Watches()]
    ae = AutoencoderTransformer(2, callbacks=callbacks, **FOLDED, **KINDS[kind][0])
    shares = ae.fit(X[:N_FEW]).net_.callbacks_[1][1].shares
    assert shares[at - 1] == 6 * [1.0]


class Replaces(Changes):
    def _change(self, net, training=True, **kwargs):
        layer = next(m for m in net.module_.encoder.modules() if hasattr(m, "bias"))
        layer.bias = nn.Parameter(torch.zeros_like(layer.bias))
        if self.how == "register":
            net.optimizer_.add_param_group({"params": [layer.bias]})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "method", ["on_train_begin", "on_epoch_begin", "on_epoch_end", "on_batch_begin"]
)
def test_a_parameter_that_is_replaced_is_an_error(method, kind, X):
    settings, n_rows = KINDS[kind]
    ae = AutoencoderTransformer(2, callbacks=[Replaces(method, "")], **FOLDED)
    with pytest.raises(ValueError, match=r"Replaces has replaced .*bias.* in place"):
        ae.set_params(**settings).fit(X[:n_rows])
    assert not hasattr(ae, "net_")


def test_a_replaced_parameter_that_the_optimizer_knows_is_trained(X):
    callbacks = [Replaces("on_train_begin", "register")]
    settings = {**FOLDED, "init": "random", "early_stopping": False}
    ae = AutoencoderTransformer(2, callbacks=callbacks, **settings).fit(X[:N_FEW])
    layer = next(m for m in ae.module_.encoder.modules() if hasattr(m, "bias"))
    assert (layer.bias != 0).any()


class Restructures(Changes):
    """Changes the structure of the decoder in the way that `how` names."""

    def _change(self, net, training=True, **kwargs):
        self.n_calls += training
        if self.n_calls != self.at or not training:
            return
        decoder = net.module_.decoder
        if self.how == "replaced":
            decoder[1] = nn.Tanh()
        elif self.how == "class":
            decoder[1].__class__ = nn.Tanh
        elif self.how == "added":
            decoder.append(nn.Linear(5, 5))
        elif self.how == "removed":
            del decoder[1]
        elif self.how == "parameter":
            decoder[0].more = nn.Parameter(torch.zeros(1))
        elif self.how == "no bias":
            decoder[0].bias = None


STRUCTURES = {
    "replaced": r"replaced the module 'module_\.decoder\.1'",
    "class": r"replaced the class of the module 'module_\.decoder\.1'",
    "added": r"added the module 'module_\.decoder\.3'",
    "removed": r"\w+ the module 'module_\.decoder\.[12]'",
    "parameter": r"added the parameter 'decoder\.0\.more'",
    "no bias": r"removed the parameter 'decoder\.0\.bias'",
}


@pytest.mark.parametrize("kind", ["stacked", "side by side"])
@pytest.mark.parametrize("method", ["on_train_begin", "on_batch_end"])
@pytest.mark.parametrize("how", STRUCTURES)
def test_a_structure_that_folds_do_not_have_is_an_error(how, method, kind, X):
    ae = AutoencoderTransformer(2, callbacks=[Restructures(method, how)], **FOLDED)
    message = f"Restructures has {STRUCTURES[how]}.*early_stopping=True"
    with pytest.raises(ValueError, match=message):
        ae.set_params(init="random", **KINDS[kind][0]).fit(X[:N_FEW])


@pytest.mark.parametrize("how", ["added", "parameter"])
def test_an_added_parameter_that_is_not_trained_is_an_error(how, X):
    callbacks = [Restructures("on_epoch_begin", how)]
    ae = AutoencoderTransformer(2, callbacks=callbacks, early_stopping=True, **FOLDED)
    with pytest.raises(ValueError, match=r"has added the parameter .*add_param_group"):
        ae.set_params(init="random").fit(X[:N_FEW])


@pytest.mark.parametrize("how", ["replaced", "class", "no bias"])
@pytest.mark.parametrize("at", [1, 10])
def test_without_folds_modules_may_be_replaced(at, how, X):
    callbacks = [Restructures("on_epoch_begin", how, at)]
    ae = assert_same_as_eager(callbacks, X[:200], early_stopping=False)
    layer, activation = ae.module_.decoder[0], ae.module_.decoder[1]
    assert layer.bias is None or type(activation) is nn.Tanh


class Looks(Callback):
    """Is called wherever a callback can be, and changes nothing."""

    def _look(self, net, **kwargs):
        pass

    on_train_begin = on_train_end = on_epoch_begin = on_epoch_end = _look
    on_batch_begin = on_batch_end = _look

    def on_grad_computed(self, net, named_parameters, **kwargs):
        pass


@pytest.mark.parametrize("callback", [GradientNormClipping(1e9), Looks()])
@pytest.mark.parametrize(
    ("estimator", "settings", "n_rows"),
    [
        (AutoencoderTransformer, {}, N_FEW),
        (AutoencoderTransformer, {"bottleneck": "gaussian"}, N_FEW),
        (AutoencoderTransformer, {"early_stopping": True}, N_FEW),
        (AutoencoderTransformer, {"early_stopping": False, "penalty": "l1"}, N_MANY),
        (AutoencoderOutlierDetector, {}, N_FEW),
    ],
)
def test_a_callback_that_changes_nothing_gives_the_same_model(
    estimator, settings, n_rows, callback, X
):
    # The gradients of odd numbers of weights end within a vector of the processor.
    common = {"hidden_layer_sizes": (13, 7), "max_epochs": 5, "random_state": 0}
    model = estimator(2, **common, **settings).fit(X[:n_rows])
    twin = clone(model).set_params(callbacks=[callback]).fit(X[:n_rows])
    assert len(model.loss_curve_) == len(twin.loss_curve_)
    assert_array_equal(twin.reconstruct(X), model.reconstruct(X))
