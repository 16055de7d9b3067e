"""Callbacks of scikit-learn: the tasks of a fit, their arguments and their ends."""

import importlib
import pickle
import re
import signal
import sys
import threading
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from devices import assert_same_values
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback
from torch import nn

from skae import AutoencoderOutlierDetector, AutoencoderTransformer, _scan, _streamed
from skae._compat import CALLBACKS_ATTRIBUTE
from skae.bottlenecks import Quantized
from skae.model_selection import explained_variance
from skae.networks import MLP, Custom

SMALL = {"hidden_layer_sizes": (8,), "max_epochs": 4, "random_state": 0}
ESTIMATORS = [AutoencoderTransformer, AutoencoderOutlierDetector]

each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)

callback = pytest.importorskip("sklearn.callback", reason="scikit-learn < 1.9")


class Record:
    """Records the calls of its hooks, and may request the end of the training.

    Parameters
    ----------
    stop_at : tuple of str and int, default=()
        Name and smallest id of the tasks at whose end it requests to stop.
    """

    def __init__(self, stop_at=()):
        self.stop_at = stop_at
        self.hooks = []
        self.arguments = []
        self.fitted_estimators = {}
        self.n_teardowns = 0

    def setup(self, estimator, context):
        self.root = context

    def teardown(self, estimator, context):
        self.n_teardowns += 1

    def on_fit_task_begin(self, estimator, context, *, X=None, y=None, metadata=None):
        self.hooks.append(("begin", context.task_name, context.task_id))
        self.arguments.append((X, y, metadata))

    def on_fit_task_end(
        self,
        estimator,
        context,
        *,
        X=None,
        y=None,
        metadata=None,
        fitted_estimator=None,
    ):
        self.hooks.append(("end", context.task_name, context.task_id))
        self.arguments.append((X, y, metadata))
        self.fitted_estimators.setdefault(context.task_name, []).append(
            fitted_estimator
        )
        if self.stop_at:
            name, number = self.stop_at
            return context.task_name == name and context.task_id >= number
        return None

    def tree(self):
        """Name, maximal and actual number of subtasks of each task."""
        tasks = list(self.root)
        n_subtasks = Counter(id(task.parent) for task in tasks)
        return [(t.task_name, t.max_subtasks, n_subtasks[id(t)]) for t in tasks]


class Interrupt(Record):
    """Sends SIGINT, as Ctrl-C does, at the end of the second task of a name."""

    def __init__(self, name="epoch"):
        super().__init__()
        self.name = name

    def on_fit_task_end(self, estimator, context):
        self.hooks.append(("end", context.task_name, context.task_id))
        if (context.task_name, context.task_id) == (self.name, 1):
            signal.raise_signal(signal.SIGINT)


class Fail(Record):
    """Raises an error at the end of the first epoch."""

    def on_fit_task_end(self, estimator, context):
        if context.task_name == "epoch":
            raise RuntimeError("the callback failed")


class StopInSecondEpoch(Callback):
    """Stops the training as skorch callbacks do, after a batch of the second epoch."""

    def on_batch_end(self, net, **kwargs):
        if len(net.history) == 2:
            raise KeyboardInterrupt


def encoder_factory(n_features, n_components):
    """A network with dropout, which draws from PyTorch's global generator."""
    return nn.Sequential(nn.Linear(n_features, n_components), nn.Dropout(0.2))


def explained(estimator, X, y, sample_weight=None):
    return {"explained": estimator.score(X, sample_weight=sample_weight)}


@pytest.fixture(scope="module")
def noise():
    """Rows for which no network is better than PCA."""
    return np.random.default_rng(0).normal(size=(60, 5))


@pytest.fixture(scope="module")
def X(noise):
    """Rows near a curve, of shape (60, 5)."""
    t = np.linspace(-1, 1, 60)
    curve = np.column_stack([t, t**2, np.cos(3 * t), np.sin(3 * t), t**3])
    return curve + 0.01 * noise


@pytest.fixture(scope="module")
def y(X):
    return (X[:, 0] > 0).astype(int)


@pytest.fixture
def python_handler():
    """Python's default handler of SIGINT, restored afterwards."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def wide_terminal(monkeypatch):
    """A terminal that is wide enough for the names of nested tasks."""
    monkeypatch.setenv("COLUMNS", "200")


# The tree of tasks


@each_estimator
@pytest.mark.parametrize("early_stopping", [True, False])
def test_epochs_are_subtasks_of_fit(estimator, early_stopping, X):
    record = Record()
    model = estimator(1, early_stopping=early_stopping, **SMALL).set_callbacks(record)
    model.fit(X)
    epochs = [(hook, "epoch", i) for i in range(4) for hook in ("begin", "end")]
    assert record.hooks == [("begin", "fit", 0), *epochs, ("end", "fit", 0)]
    assert record.tree() == [("fit", 4, 4), *4 * [("epoch", 0, 0)]]
    assert record.n_teardowns == 1


def test_epochs_are_subtasks_of_a_fit_with_folds(X):
    record = Record()
    settings = {**SMALL, "init": "random"}
    AutoencoderTransformer(1, **settings).set_callbacks(record).fit(X)
    assert record.tree() == [("fit", 4, 4), *4 * [("epoch", 0, 0)]]


def test_early_stopping_gives_fewer_epochs_than_announced(noise):
    record = Record()
    settings = {**SMALL, "max_epochs": 500, "n_iter_no_change": 1}
    ae = AutoencoderTransformer(1, early_stopping=True, **settings)
    ae.set_callbacks(record).fit(noise)
    assert record.tree()[0] == ("fit", 500, ae.n_iter_)
    assert ae.n_iter_ < 500


@each_estimator
def test_each_partial_fit_has_its_own_root_task(estimator, X):
    first, second = Record(), Record()
    model = estimator(1, **SMALL).set_callbacks(first).partial_fit(X)
    model.set_callbacks(second).partial_fit(X)
    for record in (first, second):
        assert record.tree() == [("partial-fit", 1, 1), ("epoch", 0, 0)]
    assert [fitted.n_iter_ for fitted in second.fitted_estimators["epoch"]] == [2]
    model.set_callbacks().partial_fit(X)
    assert (len(first.hooks), len(second.hooks)) == (4, 4)


def test_epochs_of_additional_members_are_subtasks(X):
    settings = {"warm_start": True, "early_stopping": False, **SMALL}
    detector = AutoencoderOutlierDetector(n_estimators=2, **settings).fit(X)
    record = Record()
    detector.set_params(n_estimators=3).set_callbacks(record).fit(X)
    assert record.tree()[0] == ("fit", 4, 4)
    fitted = record.fitted_estimators["epoch"]
    assert [estimator.n_iter_ for estimator in fitted] == [5, 6, 7, 8]
    assert {estimator.module_.n_members for estimator in fitted} == {3}
    assert_array_equal(fitted[-1].score_samples(X), detector.score_samples(X))


# Arguments of the hooks


def test_hooks_receive_the_arguments_of_fit(X, y):
    record = Record()
    frame, weight = pd.DataFrame(X, columns=list("abcde")), np.ones(len(X))
    AutoencoderTransformer(1, **SMALL).set_callbacks(record).fit(frame, y, weight)
    for got_X, got_y, metadata in record.arguments:
        assert got_X is frame
        assert got_y is y
        assert metadata == {"sample_weight": weight}


def test_y_is_X_for_hooks_where_fit_has_no_y(X):
    record = Record()
    AutoencoderTransformer(1, **SMALL).set_callbacks(record).fit(X)
    assert all(
        got_X is got_y is X and metadata is None
        for got_X, got_y, metadata in record.arguments
    )


@each_estimator
def test_hooks_receive_an_estimator_fitted_so_far(estimator, X):
    record = Record()
    model = estimator(1, early_stopping=False, **SMALL).set_callbacks(record).fit(X)
    fitted = record.fitted_estimators["epoch"]
    assert [estimator.n_iter_ for estimator in fitted] == [1, 2, 3, 4]
    assert [estimator.net_.best_epoch_ for estimator in fitted] == [1, 2, 3, 4]
    assert fitted[-1].loss_curve_ == model.loss_curve_
    reconstructions = [estimator.reconstruct(X) for estimator in fitted]
    assert_array_equal(reconstructions[-1], model.reconstruct(X))
    assert not np.allclose(reconstructions[0], reconstructions[-1])
    if estimator is AutoencoderOutlierDetector:
        assert_allclose(fitted[-1].decision_function(X), model.decision_function(X))


@each_estimator
@pytest.mark.parametrize(
    "parameters",
    [
        {"early_stopping": "auto"},
        {"early_stopping": True},
        {"bottleneck": "gaussian", "corruption": "swap"},
        {"bottleneck": Quantized(4, 1), "penalty": "contractive"},
        {"network": MLP((8,), dropout=0.3), "hidden_layer_sizes": "auto"},
        {
            "network": Custom(encoder_factory, lambda d, k: nn.Linear(k, d)),
            "hidden_layer_sizes": "auto",
        },
    ],
)
def test_callbacks_do_not_change_the_fit(estimator, parameters, X):
    settings = {**SMALL, "early_stopping": False, **parameters}
    expected = estimator(1, **settings).fit(X)
    record = Record()
    model = estimator(1, **settings).set_callbacks(record).fit(X)
    assert len(record.fitted_estimators["epoch"]) >= 4
    assert_array_equal(model.reconstruct(X), expected.reconstruct(X))
    assert_array_equal(model.score_samples(X), expected.score_samples(X))
    assert model.loss_curve_ == expected.loss_curve_
    assert model.validation_loss_curve_ == expected.validation_loss_curve_
    assert pickle.dumps(model.net_.history) == pickle.dumps(expected.net_.history)


# How a fit ends


def test_callback_can_stop_training(X):
    record = Record(stop_at=("epoch", 1))
    ae = AutoencoderTransformer(1, early_stopping=True, **SMALL)
    ae.set_callbacks(record).fit(X)
    assert ae.n_iter_ == 2
    curve = ae.validation_loss_curve_
    assert ae.net_.best_epoch_ in (0, 1 + int(np.argmin(curve)))
    assert record.hooks[-1] == ("end", "fit", 0)


def test_unfinished_epoch_ends_without_an_estimator(X):
    record = Record()
    ae = AutoencoderTransformer(
        1, early_stopping=False, callbacks=[StopInSecondEpoch()], **SMALL
    )
    ae.set_callbacks(record).fit(X)
    assert record.hooks[-2:] == [("end", "epoch", 1), ("end", "fit", 0)]
    first, unfinished = record.fitted_estimators["epoch"]
    assert first.n_iter_ == 1
    assert unfinished is None


@pytest.mark.parametrize(
    ("record", "settings", "error"),
    [
        (Record, {"learning_rate": 1e30}, ValueError),
        (Record, {"callbacks": [Callback()], "max_epochs": 0}, ValueError),
        (Fail, {}, RuntimeError),
    ],
)
@each_estimator
def test_error_tears_callbacks_down(estimator, record, settings, error, X):
    callbacks = [record(), callback.ProgressBar()]
    model = estimator(1, **{**SMALL, **settings}).set_callbacks(*callbacks)
    attributes = set(vars(model))
    with pytest.raises(error):
        model.fit(X)
    assert set(vars(model)) == attributes
    assert getattr(model, CALLBACKS_ATTRIBUTE) == callbacks
    # Parameters are checked before callbacks are set up.
    assert callbacks[0].n_teardowns == (0 if "max_epochs" in settings else 1)
    assert all("Progress" not in type(t).__name__ for t in threading.enumerate())
    with pytest.raises(NotFittedError):
        model.score_samples(X)
    model.set_callbacks().set_params(learning_rate="auto", max_epochs=2).fit(X)


@each_estimator
@pytest.mark.parametrize("early_stopping", [True, "auto", False])
def test_ctrl_c_tears_callbacks_down(estimator, early_stopping, X, python_handler):
    interrupt, bar = Interrupt(), callback.ProgressBar()
    model = estimator(1, early_stopping=early_stopping, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        model.set_callbacks(interrupt, bar).fit(X)
    assert interrupt.hooks[-1] == ("end", "epoch", 1)
    assert interrupt.n_teardowns == 1
    assert all("Progress" not in type(t).__name__ for t in threading.enumerate())
    assert model.n_iter_ == 2
    assert model.reconstruct(X).shape == X.shape


# Copies


def test_clones_and_pickles_keep_callbacks(X):
    monitor = callback.ScoringMonitor(scoring=explained)
    ae = AutoencoderTransformer(1, **SMALL).set_callbacks(monitor).fit(X)
    assert getattr(clone(ae), CALLBACKS_ATTRIBUTE) == [monitor]
    twin = pickle.loads(pickle.dumps(ae))
    (unpickled,) = getattr(twin, CALLBACKS_ATTRIBUTE)
    assert unpickled.get_logs().data == monitor.get_logs().data
    assert_same_values(twin.reconstruct(X), ae.reconstruct(X), twin, ae)


def test_fitted_estimator_keeps_no_callback_context(X):
    ae = AutoencoderTransformer(1, **SMALL).set_callbacks(Record())
    ae.partial_fit(X)
    assert [name for name, _ in ae.net_.callbacks_] == []
    assert not hasattr(ae, "_callback_fit_ctx")


@pytest.mark.parametrize("max_gathered", [10, 10_000])
@pytest.mark.parametrize("max_pool", [20, 1000])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("of_dask", [False, True])
def test_arguments_of_a_table_in_partitions_belong_together(
    of_dask, weighted, max_pool, max_gathered, X, monkeypatch
):
    monkeypatch.setattr(_streamed, "MAX_GATHERED", max_gathered)
    monkeypatch.setattr(_scan, "pool_size", lambda n_features: max_pool)
    array = pytest.importorskip("dask.array")
    weight = np.arange(len(X)) % 3.0 if weighted else None
    y = array.from_array(X[:, 0], chunks=7) if of_dask else X[:, 0]
    record = Record()
    model = AutoencoderTransformer(1, **SMALL).set_callbacks(record)
    model.fit(np.array_split(X, 4), y, weight)
    assert len(record.arguments) >= 4
    for rows, target, metadata in record.arguments:
        np.testing.assert_array_equal(rows[:, 0], target)
        if weighted:
            where = [np.flatnonzero((row == X).all(axis=1))[0] for row in rows]
            np.testing.assert_array_equal(metadata["sample_weight"], weight[where])
        assert len(rows) == len(X) if max_gathered > 10 else len(rows) >= 20


# scikit-learn's own callbacks


@pytest.mark.parametrize("weight", [None, np.linspace(0, 2, 60)])
def test_scoring_monitor_scores_each_epoch_and_the_final_model(weight, X):
    monitor = callback.ScoringMonitor(scoring=explained)
    settings = {**SMALL, "max_epochs": 30, "init": "random"}
    ae = AutoencoderTransformer(1, early_stopping=True, **settings)
    ae.set_callbacks(monitor).fit(X, sample_weight=weight)
    fit, *epochs = monitor.get_logs().data
    assert len(epochs) == ae.n_iter_
    assert ae.net_.best_epoch_ > 0
    final = ae.score(X, sample_weight=weight)
    assert fit["explained"] == final
    assert_allclose(epochs[ae.net_.best_epoch_ - 1]["explained"], final, rtol=1e-12)


def test_scoring_monitor_takes_functions_but_no_names_for_a_transformer(X):
    monitor = callback.ScoringMonitor(scoring={"explained": explained_variance})
    ae = AutoencoderTransformer(1, **SMALL).set_callbacks(monitor).fit(X)
    assert_allclose(monitor.get_logs().data[0]["explained"], ae.score(X))
    ae = clone(ae).set_callbacks(callback.ScoringMonitor(scoring="r2"))
    with pytest.raises(AttributeError, match="predict"):
        ae.fit(X)
    assert not hasattr(ae, "net_")


def test_scoring_monitor_uses_y(X, y):
    monitor = callback.ScoringMonitor(scoring="roc_auc")
    detector = AutoencoderOutlierDetector(1, **SMALL).set_callbacks(monitor)
    detector.fit(X, y)
    scores = monitor.get_logs().data
    assert len(scores) == 5
    assert scores[0]["roc_auc"] == roc_auc_score(y, detector.decision_function(X))


@each_estimator
def test_progress_bar_ends_at_100_percent(estimator, X, capsys, wide_terminal):
    model = estimator(1, **SMALL).set_callbacks(callback.ProgressBar()).fit(X)
    out = capsys.readouterr().out
    assert re.search(rf"{estimator.__name__} - fit .* 100%", out)
    assert not re.search(r" \d\d?%", out)
    assert len(model.loss_curve_) == 4


def test_progress_bar_shows_the_step_of_a_pipeline(X, y, capsys, wide_terminal):
    pipeline = make_pipeline().set_callbacks(callback.ProgressBar())
    pipeline.fit(X, y)
    out = capsys.readouterr().out
    assert re.search(r"- fit-transform-ae \| AutoencoderTransformer - fit", out)
    assert "fold" not in out


@pytest.mark.parametrize("n_jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_callbacks_see_the_fits_of_a_grid_search(n_jobs, X, y, capsys, wide_terminal):
    monitor = callback.ScoringMonitor(scoring=explained)
    pipeline = make_pipeline(early_stopping=True)
    pipeline["ae"].set_callbacks(monitor)
    search = GridSearchCV(pipeline, {"ae__n_components": [1, 2]}, cv=2, n_jobs=n_jobs)
    search.set_callbacks(callback.ProgressBar(max_propagation_depth=2)).fit(X, y)
    out = capsys.readouterr().out
    fits = re.findall(r"\| AutoencoderTransformer - fit #1 .* (\d+)%", out)
    assert fits == 5 * ["100"]
    log = monitor.get_logs().data_as_pandas
    epochs = log[log["task_name"] == "epoch"]
    assert epochs.groupby("parent_task_id_path").size().tolist() == 5 * [4]
    rows = pipeline["scale"].fit_transform(X)
    refitted = log[log["task_id_path"] == (0, 1, 1)]
    assert refitted["explained"].item() == search.best_estimator_["ae"].score(rows)


def make_pipeline(**settings):
    return Pipeline(
        [
            ("scale", StandardScaler()),
            ("ae", AutoencoderTransformer(1, **SMALL, **settings)),
            ("clf", LogisticRegression()),
        ]
    )


def test_callbacks_of_the_other_library_are_refused(X):
    bar = callback.ProgressBar()
    with pytest.raises(TypeError, match=r"must hold skorch callbacks.*set_callbacks"):
        AutoencoderTransformer(callbacks=[bar]).fit(X)
    with pytest.raises(TypeError, match="FitCallback"):
        AutoencoderTransformer().set_callbacks(Callback())


# An older scikit-learn


def test_estimators_work_with_scikit_learn_without_callbacks(X, monkeypatch):
    monkeypatch.delattr(callback, "with_callbacks")
    for name in [name for name in sys.modules if re.match(r"skae(\.|$)", name)]:
        monkeypatch.delitem(sys.modules, name)
    skae = importlib.import_module("skae")
    for estimator in ESTIMATORS:
        model = getattr(skae, estimator.__name__)(1, **SMALL)
        assert not hasattr(model, "set_callbacks")
        expected = estimator(1, **SMALL).fit(X).partial_fit(X).reconstruct(X)
        assert_array_equal(model.fit(X).partial_fit(X).reconstruct(X), expected)
