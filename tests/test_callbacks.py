"""Facts about skae._callbacks: fits that callbacks of scikit-learn watch."""

import importlib
import pickle
import re
import signal
import sys
import threading

import numpy as np
import pandas as pd
import pytest
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

from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae.bottlenecks import Quantized
from skae.networks import MLP, Custom

BRIEF = {"hidden_layer_sizes": (8,), "max_epochs": 4, "random_state": 0}
ESTIMATORS = [AutoencoderTransformer, AutoencoderOutlierDetector]

each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)

callback = pytest.importorskip("sklearn.callback", reason="scikit-learn < 1.9")


class Record:
    """Keeps what it is told, and asks for an end at some tasks.

    Parameters
    ----------
    stop_at : tuple of str and int, default=()
        Name of the tasks at which to ask for an end, and the least number.
    """

    def __init__(self, stop_at=()):
        self.stop_at = stop_at
        self.hooks = []
        self.given = []
        self.fitted = {}
        self.n_taken_down = 0

    def setup(self, estimator, context):
        self.root = context

    def teardown(self, estimator, context):
        self.n_taken_down += 1

    def on_fit_task_begin(self, estimator, context, *, X=None, y=None, metadata=None):
        self.hooks.append(("begin", context.task_name, context.task_id))
        self.given.append((X, y, metadata))

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
        self.given.append((X, y, metadata))
        self.fitted.setdefault(context.task_name, []).append(fitted_estimator)
        if self.stop_at:
            name, number = self.stop_at
            return context.task_name == name and context.task_id >= number
        return None

    def tree(self):
        """Names and greatest and true numbers of parts, task by task."""
        return [
            (task.task_name, task.max_subtasks, len(task._children_map))
            for task in self.root
        ]


class Press(Record):
    """Ctrl-C at the end of the second task of a name."""

    def __init__(self, name="epoch"):
        super().__init__()
        self.name = name

    def on_fit_task_end(self, estimator, context):
        self.hooks.append(("end", context.task_name, context.task_id))
        if (context.task_name, context.task_id) == (self.name, 1):
            signal.raise_signal(signal.SIGINT)


class Fail(Record):
    def on_fit_task_end(self, estimator, context):
        if context.task_name == "epoch":
            raise RuntimeError("the callback failed")


class Break(Callback):
    """Ends a skorch training in the midst of its second epoch."""

    def on_batch_end(self, net, **kwargs):
        if len(net.history) == 2:
            raise KeyboardInterrupt


def encoder_factory(n_features, n_components):
    """A module that draws from PyTorch's global generator."""
    return nn.Sequential(nn.Linear(n_features, n_components), nn.Dropout(0.2))


def explained(estimator, X, y, sample_weight=None):
    return {"explained": estimator.score(X, sample_weight=sample_weight)}


@pytest.fixture(scope="module")
def noise():
    """Rows of which no network learns more than a PCA."""
    return np.random.default_rng(0).normal(size=(60, 5))


@pytest.fixture(scope="module")
def X(noise):
    """Rows along a curve."""
    t = np.linspace(-1, 1, 60)
    curve = np.column_stack([t, t**2, np.cos(3 * t), np.sin(3 * t), t**3])
    return curve + 0.01 * noise


@pytest.fixture(scope="module")
def y(X):
    return (X[:, 0] > 0).astype(int)


@pytest.fixture
def python_handler():
    """Python's own handler of Ctrl-C, whatever runs the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def wide_screen(monkeypatch):
    """Room for the names of nested tasks."""
    monkeypatch.setenv("COLUMNS", "200")


# The tree of tasks


@each_estimator
@pytest.mark.parametrize("early_stopping", [True, False])
def test_epochs_are_parts_of_a_fit(estimator, early_stopping, X):
    record = Record()
    model = estimator(1, early_stopping=early_stopping, **BRIEF).set_callbacks(record)
    model.fit(X)
    epochs = [(hook, "epoch", i) for i in range(4) for hook in ("begin", "end")]
    assert record.hooks == [("begin", "fit", 0), *epochs, ("end", "fit", 0)]
    assert record.tree() == [("fit", 4, 4), *4 * [("epoch", 0, 0)]]
    assert record.n_taken_down == 1


def test_folds_and_the_training_on_all_rows_are_parts(X):
    record = Record()
    settings = {**BRIEF, "init": "random"}
    AutoencoderTransformer(1, **settings).set_callbacks(record).fit(X)
    tasks = [task for task in record.tree() if task[0] != "epoch"]
    assert tasks[:-1] == [("fit", 6, 6), *5 * [("fold", 4, 4)]]
    name, most, true = tasks[-1]
    assert name == "all-rows"
    assert most == true <= 4


def test_a_start_that_the_folds_speak_for_is_not_trained_from(noise):
    record = Record()
    ae = AutoencoderTransformer(1, **BRIEF).set_callbacks(record).fit(noise)
    assert ae.net_.best_epoch_ == 0
    assert record.tree()[0] == ("fit", 6, 5)
    assert record.fitted["fit"][0].score(noise) == ae.score(noise)


def test_an_early_end_leaves_epochs_out(noise):
    record = Record()
    settings = {**BRIEF, "max_epochs": 500, "n_iter_no_change": 1}
    ae = AutoencoderTransformer(1, early_stopping=True, **settings)
    ae.set_callbacks(record).fit(noise)
    assert record.tree()[0] == ("fit", 500, ae.n_iter_)
    assert ae.n_iter_ < 500


@each_estimator
def test_each_partial_fit_is_a_tree_of_its_own(estimator, X):
    first, second = Record(), Record()
    model = estimator(1, **BRIEF).set_callbacks(first).partial_fit(X)
    net = model.net_
    model.set_callbacks(second).partial_fit(X)
    assert model.net_ is net
    for record in (first, second):
        assert record.tree() == [("partial-fit", 1, 1), ("epoch", 0, 0)]
    assert [fitted.n_iter_ for fitted in second.fitted["epoch"]] == [2]
    model.set_callbacks().partial_fit(X)
    assert (len(first.hooks), len(second.hooks)) == (4, 4)


def test_nothing_left_to_learn_has_no_parts(X):
    ae = AutoencoderTransformer(1, warm_start=True, **BRIEF).fit(X)
    record = Record()
    ae.set_callbacks(record).fit(X)
    assert record.tree() == [("fit", 0, 0)]
    assert record.hooks == [("begin", "fit", 0), ("end", "fit", 0)]


# What callbacks are given


def test_callbacks_are_given_what_fit_was_given(X, y):
    record = Record()
    frame, weight = pd.DataFrame(X, columns=list("abcde")), np.ones(len(X))
    AutoencoderTransformer(1, **BRIEF).set_callbacks(record).fit(frame, y, weight)
    for got_X, got_y, metadata in record.given:
        assert got_X is frame
        assert got_y is y
        assert metadata == {"sample_weight": weight}


def test_without_y_rows_are_their_own_targets(X):
    record = Record()
    AutoencoderTransformer(1, **BRIEF).set_callbacks(record).fit(X)
    assert all(
        got_X is got_y is X and metadata is None
        for got_X, got_y, metadata in record.given
    )


@each_estimator
def test_after_each_epoch_there_is_an_estimator_of_its_own(estimator, X):
    record = Record()
    model = estimator(1, early_stopping=False, **BRIEF).set_callbacks(record).fit(X)
    fitted = record.fitted["epoch"]
    assert [one.n_iter_ for one in fitted] == [1, 2, 3, 4]
    assert [one.net_.best_epoch_ for one in fitted] == [1, 2, 3, 4]
    assert fitted[-1].loss_curve_ == model.loss_curve_
    reconstructions = [one.reconstruct(X) for one in fitted]
    assert_array_equal(reconstructions[-1], model.reconstruct(X))
    assert not np.allclose(reconstructions[0], reconstructions[-1])
    if estimator is AutoencoderOutlierDetector:
        assert_allclose(fitted[-1].decision_function(X), model.decision_function(X))


@each_estimator
@pytest.mark.parametrize(
    "member",
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
def test_being_watched_changes_nothing(estimator, member, X):
    settings = {**BRIEF, "early_stopping": False, **member}
    alone = estimator(1, **settings).fit(X)
    record = Record()
    watched = estimator(1, **settings).set_callbacks(record).fit(X)
    assert len(record.fitted["epoch"]) >= 4
    assert_array_equal(watched.reconstruct(X), alone.reconstruct(X))
    assert_array_equal(watched.score_samples(X), alone.score_samples(X))
    assert watched.loss_curve_ == alone.loss_curve_
    assert watched.validation_loss_curve_ == alone.validation_loss_curve_
    assert pickle.dumps(watched.net_.history) == pickle.dumps(alone.net_.history)


# Ends


def test_a_callback_ends_the_training(X):
    record = Record(stop_at=("epoch", 1))
    ae = AutoencoderTransformer(1, early_stopping=True, **BRIEF)
    ae.set_callbacks(record).fit(X)
    assert ae.n_iter_ == 2
    curve = ae.validation_loss_curve_
    assert ae.net_.best_epoch_ in (0, 1 + int(np.argmin(curve)))
    assert record.hooks[-1] == ("end", "fit", 0)


def test_an_end_of_one_fold_is_not_that_of_another(X):
    record = Record(stop_at=("epoch", 0))
    AutoencoderTransformer(1, **BRIEF).set_callbacks(record).fit(X)
    folds = [task for task in record.tree() if task[0] == "fold"]
    assert folds == 5 * [("fold", 4, 1)]


def test_an_end_asked_for_at_a_fold_leaves_out_the_others(X):
    record = Record(stop_at=("fold", 1))
    settings = {**BRIEF, "init": "random"}
    ae = AutoencoderTransformer(1, **settings).set_callbacks(record).fit(X)
    ended = [name for hook, name, _ in record.hooks if hook == "end"]
    others = [name for name in ended if name != "epoch"]
    assert others == ["fold", "fold", "all-rows", "fit"]
    assert ae.transform(X).shape == (60, 1)


def test_an_epoch_that_was_broken_off_ends_without_a_model(X):
    record = Record()
    ae = AutoencoderTransformer(1, early_stopping=False, callbacks=[Break()], **BRIEF)
    ae.set_callbacks(record).fit(X)
    assert record.hooks[-2:] == [("end", "epoch", 1), ("end", "fit", 0)]
    first, broken_off = record.fitted["epoch"]
    assert first.n_iter_ == 1
    assert broken_off is None


@pytest.mark.parametrize(
    ("watcher", "settings", "error"),
    [
        (Record, {"learning_rate": 1e30}, ValueError),
        (Record, {"callbacks": [Callback()], "max_epochs": 0}, ValueError),
        (Fail, {}, RuntimeError),
    ],
)
@each_estimator
def test_an_error_takes_callbacks_down(estimator, watcher, settings, error, X):
    watchers = [watcher(), callback.ProgressBar()]
    model = estimator(1, **{**BRIEF, **settings}).set_callbacks(*watchers)
    attributes = set(vars(model))
    with pytest.raises(error):
        model.fit(X)
    assert set(vars(model)) == attributes
    assert model._skl_callbacks == watchers
    # Where the parameters are wrong, there is nothing to take down.
    assert watchers[0].n_taken_down == (0 if "max_epochs" in settings else 1)
    assert all("Progress" not in type(t).__name__ for t in threading.enumerate())
    with pytest.raises(NotFittedError):
        model.score_samples(X)
    model.set_callbacks().set_params(learning_rate="auto", max_epochs=2).fit(X)


@each_estimator
@pytest.mark.parametrize("early_stopping", [True, "auto", False])
def test_ctrl_c_takes_callbacks_down(estimator, early_stopping, X, python_handler):
    press, bar = Press(), callback.ProgressBar()
    model = estimator(1, early_stopping=early_stopping, **BRIEF)
    with pytest.raises(KeyboardInterrupt):
        model.set_callbacks(press, bar).fit(X)
    assert press.hooks[-1] == ("end", "epoch", 1)
    assert press.n_taken_down == 1
    assert all("Progress" not in type(t).__name__ for t in threading.enumerate())
    assert model.n_iter_ == 2
    assert model.reconstruct(X).shape == X.shape


def test_ctrl_c_between_folds_leaves_a_fitted_model(X, python_handler):
    press = Press("fold")
    ae = AutoencoderTransformer(1, **BRIEF).set_callbacks(press)
    with pytest.raises(KeyboardInterrupt):
        ae.fit(X)
    assert press.hooks[-1] == ("end", "fold", 1)
    assert ae.transform(X).shape == (60, 1)


# Copies


def test_clones_and_pickles_keep_callbacks(X):
    monitor = callback.ScoringMonitor(scoring=explained)
    ae = AutoencoderTransformer(1, **BRIEF).set_callbacks(monitor).fit(X)
    assert clone(ae)._skl_callbacks[0] is monitor
    twin = pickle.loads(pickle.dumps(ae))
    assert twin._skl_callbacks[0].get_logs().data == monitor.get_logs().data
    assert_array_equal(twin.reconstruct(X), ae.reconstruct(X))


def test_a_fit_keeps_no_rows_for_callbacks(X):
    ae = AutoencoderTransformer(1, **BRIEF).set_callbacks(Record())
    ae.partial_fit(X)
    assert [name for name, _ in ae.net_.callbacks_] == []
    assert not hasattr(ae, "_callback_fit_ctx")


# scikit-learn's own callbacks


@pytest.mark.parametrize("weight", [None, np.linspace(0, 2, 60)])
def test_monitor_scores_each_epoch_and_the_end(weight, X):
    monitor = callback.ScoringMonitor(scoring=explained)
    ae = AutoencoderTransformer(1, early_stopping=True, **{**BRIEF, "max_epochs": 30})
    ae.set_callbacks(monitor).fit(X, sample_weight=weight)
    fit, *epochs = monitor.get_logs().data
    assert len(epochs) == ae.n_iter_
    assert ae.net_.best_epoch_ > 0
    final = ae.score(X, sample_weight=weight)
    assert fit["explained"] == final
    assert_allclose(epochs[ae.net_.best_epoch_ - 1]["explained"], final, rtol=1e-12)


def test_monitor_ranks_with_the_labels_given(X, y):
    monitor = callback.ScoringMonitor(scoring="roc_auc")
    detector = AutoencoderOutlierDetector(1, **BRIEF).set_callbacks(monitor)
    detector.fit(X, y)
    scores = monitor.get_logs().data
    assert len(scores) == 5
    assert scores[0]["roc_auc"] == roc_auc_score(y, detector.decision_function(X))


@each_estimator
def test_progress_bar_runs_to_its_end(estimator, X, capsys, wide_screen):
    model = estimator(1, **BRIEF).set_callbacks(callback.ProgressBar()).fit(X)
    out = capsys.readouterr().out
    assert re.search(rf"{estimator.__name__} - fit .* 100%", out)
    assert not re.search(r" \d\d?%", out)
    assert model.n_iter_ == 4


def test_progress_bar_shows_the_step_of_a_pipeline(X, y, capsys, wide_screen):
    pipeline = make_pipeline().set_callbacks(callback.ProgressBar())
    pipeline.fit(X, y)
    out = capsys.readouterr().out
    assert re.search(r"- fit-transform-ae \| AutoencoderTransformer - fit", out)
    for i in range(5):
        assert re.search(rf"AutoencoderTransformer - fold #{i} .* 100%", out)


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_callbacks_reach_into_a_search(n_jobs, X, y, capsys, wide_screen):
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
            ("ae", AutoencoderTransformer(1, **BRIEF, **settings)),
            ("clf", LogisticRegression()),
        ]
    )


def test_callbacks_in_the_wrong_place_are_sent_to_the_right_one(X):
    bar = callback.ProgressBar()
    with pytest.raises(TypeError, match=r"must hold skorch callbacks.*set_callbacks"):
        AutoencoderTransformer(callbacks=[bar]).fit(X)
    with pytest.raises(TypeError, match="FitCallback"):
        AutoencoderTransformer().set_callbacks(Callback())


# An older scikit-learn


def test_without_callbacks_in_scikit_learn_there_are_none(X, monkeypatch):
    monkeypatch.delattr(callback, "with_callbacks")
    for name in [name for name in sys.modules if re.match(r"skae(\.|$)", name)]:
        monkeypatch.delitem(sys.modules, name)
    skae = importlib.import_module("skae")
    for estimator in ESTIMATORS:
        model = getattr(skae, estimator.__name__)(1, **BRIEF)
        assert not hasattr(model, "set_callbacks")
        expected = estimator(1, **BRIEF).fit(X).partial_fit(X).reconstruct(X)
        assert_array_equal(model.fit(X).partial_fit(X).reconstruct(X), expected)
