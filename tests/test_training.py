"""Folds, interrupts, pieces and warm starts: what a training returns."""

import copy
import math
import pickle
import signal

import numpy as np
import pytest
import sklearn
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from skorch.callbacks import Callback
from torch import nn

import skae
from skae import AutoencoderOutlierDetector, AutoencoderTransformer, _split
from skae._row_scores import residuals
from skae._rows import Rows
from skae.engine import trainer
from skae.engine.networks import Networks, Split
from skae.losses import Mixed
from skae.networks import MLP, Custom


@pytest.fixture(scope="module")
def X(digits):
    return digits[:400, 20:40]


@pytest.fixture
def python_handler():
    """Python's own handler of SIGINT, also where the test runner has another."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Shared(Callback):
    """A callback that is not copied, so that a test can read it."""

    def __deepcopy__(self, memo):
        return self


class RaiseInBatch(Callback):
    def on_batch_end(self, net, training=False, **kwargs):
        if training:
            raise RuntimeError("failed")


class PressCtrlC(Shared):
    """Presses Ctrl-C in an epoch of one of several trainings."""

    def __init__(self, training=1, epoch=1):
        self.training = training
        self.epoch = epoch
        self.n_trainings = self.n_epochs = 0

    def on_train_begin(self, net, **kwargs):
        self.n_trainings += 1
        self.n_epochs = 0

    def on_batch_begin(self, net, training=False, **kwargs):
        if (self.n_trainings, self.n_epochs) == (self.training, self.epoch - 1):
            signal.raise_signal(signal.SIGINT)

    def on_epoch_end(self, net, **kwargs):
        self.n_epochs += 1


# Pieces: what a piece lacks does not damage what was learnt before


def pieces_of(X):
    lacking = X[200:260].copy()
    lacking[:, 3] = np.nan
    constant = X[200:260].copy()
    constant[:, 3] = constant[0, 3]
    return {
        "a missing column": [X[:200], lacking],
        "a constant column": [X[:200], constant],
        "a missing, then a constant column": [X[:200], lacking, constant],
        "single rows after a piece": [X[:200], *X[200:230, None]],
        "single rows only": list(X[:60, None]),
        "one row twice": [X[:1], X[:1]],
    }


@pytest.mark.parametrize("case", list(pieces_of(np.zeros((300, 4)))))
@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e6])
def test_odd_pieces_leave_scores_finite_and_columns_in_use(case, unit, X):
    X = X + np.random.default_rng(0).normal(scale=0.1, size=X.shape)
    X = X * np.where(np.arange(X.shape[1]) == 3, unit, 1.0)
    detector = AutoencoderOutlierDetector(random_state=0)
    for piece in pieces_of(X)[case]:
        detector.partial_fit(piece)
    assert np.isfinite(detector.score_samples(X)).all()
    if case == "one row twice" or (case == "single rows only" and unit != 1):
        return  # a first piece of one row tells nothing of the columns' units
    spoiled = X[300:340].copy()
    spoiled[:, 3] += 1000 * X[:, 3].std()
    contributions = detector.feature_contributions(spoiled)
    assert np.mean(contributions.argmax(axis=1) == 3) > 0.9
    assert (detector.feature_contributions(X[300:340]).argmax(axis=1) != 3).any()


def test_residual_means_of_pieces_are_those_of_all_rows(X):
    # Without steps, the residuals of all pieces are those of the same network.
    settings = {"random_state": 0, "learning_rate": 1e-30}
    whole = AutoencoderOutlierDetector(**settings).partial_fit(X[:200])
    pieces = AutoencoderOutlierDetector(**settings).partial_fit(X[:200])
    for start in range(0, 200, 50):
        pieces.partial_fit(X[start : start + 50])
    assert_allclose(pieces.score_samples(X), whole.score_samples(X), rtol=1e-6)


@pytest.mark.parametrize("errors", [("loss", "log"), ("log", "loss", "log")])
def test_residual_means_survive_a_change_of_the_error(errors, X):
    first, *others, last = errors
    detector = AutoencoderOutlierDetector(error=first, random_state=0).fit(X)
    for error in others:
        detector.set_params(error=error).partial_fit(X)
    lacking = X[:30].copy()
    lacking[:, 2] = np.nan
    detector.set_params(error=last).partial_fit(lacking)
    scale = detector.module_.residual_scale.squeeze(1).numpy(force=True)
    assert scale[:, 2].min() > 0.1 * np.median(scale)


def test_a_piece_without_any_value_is_refused(X):
    detector = AutoencoderOutlierDetector(random_state=0).partial_fit(X)
    offset = detector.offset_
    with pytest.raises(ValueError, match="no observed value"):
        detector.partial_fit(np.full((3, X.shape[1]), np.nan))
    assert detector.offset_ == offset


def test_a_piece_with_huge_weights_is_refused(X):
    detector = AutoencoderOutlierDetector(random_state=0, max_epochs=2).fit(X)
    scores = detector.score_samples(X)
    with pytest.raises(ValueError, match=r"sample_weight .* too large"):
        detector.partial_fit(X, sample_weight=np.full(len(X), 1e307))
    assert_array_equal(detector.score_samples(X), scores)


def test_pieces_have_the_learning_rate_and_the_batch_size_of_the_first(X):
    class Record(Shared):
        def __init__(self):
            self.settings = []

        def on_epoch_end(self, net, **kwargs):
            (group,) = net.optimizer_.param_groups
            self.settings.append((group["lr"], net.batch_size))

    record = Record()
    ae = AutoencoderTransformer(2, random_state=0, callbacks=[record])
    for piece in (X[:300], X[300:340], X[:1], X):
        ae.partial_fit(piece)
        ae = pickle.loads(pickle.dumps(ae)).set_params(callbacks=[record])
    assert len(set(record.settings)) == 1
    ae.set_params(learning_rate=0.5, batch_size=3).partial_fit(X)
    assert record.settings[-1] == (0.5, 3)


# A call that fails changes nothing


@pytest.mark.parametrize(
    "estimator", [AutoencoderTransformer, AutoencoderOutlierDetector]
)
@pytest.mark.parametrize("after", ["fit", "partial_fit"])
@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"callbacks": [RaiseInBatch()]}, RuntimeError),
        ({"learning_rate": 1e30}, ValueError),
        ({"callbacks": [PressCtrlC]}, KeyboardInterrupt),
    ],
)
def test_partial_fit_that_fails_leaves_the_model(
    estimator, after, settings, error, X, python_handler
):
    network = MLP((8,), dropout=0.5)
    model = estimator(2, network=network, max_epochs=2, random_state=0)
    getattr(model, after)(X)
    before = vars(model).copy()
    expected = model.score_samples(X)
    model.set_params(**settings)
    with pytest.raises(error):
        model.partial_fit(X)
    assert not model.module_.training
    assert_array_equal(model.score_samples(X), expected)
    assert vars(model)["_trained"] is before["_trained"]
    model.set_params(callbacks=None, learning_rate="auto").partial_fit(X)
    assert not np.array_equal(model.score_samples(X), expected)


class RaiseAtEnd:
    """A scikit-learn callback that raises when a fit is over."""

    def __init__(self, method):
        self.method = method

    def setup(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context, **kwargs):
        pass

    def on_fit_task_end(self, estimator, context, **kwargs):
        if self.method == "on_fit_task_end" and context.parent is None:
            raise RuntimeError("failed")

    def teardown(self, estimator, context):
        if self.method == "teardown":
            raise RuntimeError("failed")


@pytest.mark.parametrize("method", ["on_fit_task_end", "teardown"])
@pytest.mark.parametrize("call", ["fit", "partial_fit"])
def test_a_callback_that_raises_at_the_end_leaves_the_model(method, call, X):
    pytest.importorskip("sklearn.callback")
    ae = AutoencoderTransformer(2, max_epochs=2, random_state=0).fit(X)
    Z = ae.transform(X)
    ae.set_callbacks(RaiseAtEnd(method))
    with pytest.raises(RuntimeError, match="failed"):
        getattr(ae, call)(X[:100])
    assert_array_equal(ae.transform(X), Z)
    new = AutoencoderTransformer(2, max_epochs=2).set_callbacks(RaiseAtEnd(method))
    with pytest.raises(RuntimeError, match="failed"):
        getattr(new, call)(X)
    assert not hasattr(new, "n_features_in_")


@pytest.mark.parametrize(
    "estimator", [AutoencoderTransformer, AutoencoderOutlierDetector]
)
@pytest.mark.parametrize("call", ["fit", "partial_fit"])
def test_an_update_that_diverges_is_an_error(estimator, call, X):
    model = estimator(2, random_state=0, early_stopping=False, max_epochs=1)
    model.fit(X)
    scores = model.score_samples(X)
    model.set_params(learning_rate=1e38, batch_size=1000)
    with pytest.raises(ValueError, match="diverged"):
        getattr(model, call)(X)
    if call == "fit":
        assert not hasattr(model, "module_")
    else:
        assert_array_equal(model.score_samples(X), scores)


def test_training_continues_with_a_replaced_part(X):
    ae = AutoencoderTransformer(2, random_state=0).partial_fit(X)
    ae.module_.encoder = nn.Linear(20, 2)
    for _ in range(5):
        ae.partial_fit(X)
    assert np.isfinite(ae.transform(X)).all()


def test_training_continues_with_a_module_that_stores_its_output(X):
    class Storing(nn.Linear):
        def forward(self, X):
            self.output = super().forward(X)
            return self.output

    network = Custom(Storing(20, 2), nn.Linear(2, 20))
    ae = AutoencoderTransformer(2, network=network, random_state=0)
    for _ in range(3):
        ae.partial_fit(X)
    assert ae.n_iter_ == 3


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_training_continues_without_gradients_outside(context, X):
    expected = AutoencoderTransformer(2, random_state=0).partial_fit(X).partial_fit(X)
    with context():
        ae = AutoencoderTransformer(2, random_state=0).partial_fit(X).partial_fit(X)
    assert_array_equal(
        ae.partial_fit(X).transform(X), expected.partial_fit(X).transform(X)
    )


def test_rows_held_out_from_members_do_not_depend_on_the_first_piece(X):
    pieces, found = (X[:3], X[:100]), []
    for piece in pieces:
        detector = AutoencoderOutlierDetector(1, n_estimators=3, random_state=0)
        found.append(detector.partial_fit(piece)._trained.holdout)
    assert_allclose(found[0].bounds, found[1].bounds, rtol=0)
    assert found[0].group.tolist() == found[1].group.tolist()


def test_partial_fit_leaves_the_model_that_it_continues_from(X):
    ae = AutoencoderTransformer(2, random_state=0).partial_fit(X)
    module, Z = ae.module_, ae.transform(X)
    weights = {name: t.clone() for name, t in module.state_dict().items()}
    ae.partial_fit(X)
    assert ae.module_ is not module
    assert all(torch.equal(t, weights[n]) for n, t in module.state_dict().items())
    assert not np.array_equal(ae.transform(X), Z)


# Parameters set between calls


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({}, {"learning_rate": 0.1}),
        ({}, {"weight_decay": 0.9}),
        ({}, {"batch_size": 7}),
        ({}, {"trim": 0.5}),
        ({"penalty": "l1"}, {"penalty_weight": 10.0}),
        ({"bottleneck": "gaussian"}, {"bottleneck_weight": 10.0}),
        ({"corruption": "gaussian"}, {"corruption_level": 2.0}),
        ({}, {"corruption": "masking"}),
    ],
)
@pytest.mark.parametrize("is_pickled", [False, True])
def test_parameters_set_between_calls_of_partial_fit_count(
    settings, change, is_pickled, X
):
    def fitted(change):
        ae = AutoencoderTransformer(4, random_state=0, **settings).partial_fit(X)
        if is_pickled:
            ae = pickle.loads(pickle.dumps(ae))
        return ae.set_params(**change).partial_fit(X)

    assert not np.array_equal(fitted({}).transform(X), fitted(change).transform(X))


def test_callbacks_set_between_calls_of_partial_fit_are_called(X):
    class Count(Shared):
        n_calls = 0

        def on_epoch_end(self, net, **kwargs):
            self.n_calls += 1

    count = Count()
    ae = AutoencoderTransformer(2, random_state=0).partial_fit(X)
    ae.set_params(callbacks=[count]).partial_fit(X)
    assert count.n_calls == 1


def test_device_set_between_calls_of_partial_fit_is_checked(X):
    ae = AutoencoderTransformer(2, random_state=0).partial_fit(X)
    with pytest.raises(ValueError, match="device must be"):
        ae.set_params(device="none").partial_fit(X)


def test_pieces_continue_with_the_optimizer_and_the_noise(X):
    # Adam's first steps have the size of the learning rate in every coordinate.
    settings = {"random_state": 0, "corruption": "gaussian", "batch_size": 400}
    ae = AutoencoderTransformer(2, **settings).partial_fit(X).partial_fit(X)
    states = ae._trained.optimizer
    assert {int(state["step"]) for state in states.optimizer.values()} == {2}
    assert states.n_steps == 2
    losses = ae.loss_curve_
    again = AutoencoderTransformer(2, **settings).partial_fit(X)
    without = pickle.loads(pickle.dumps(again))
    assert without._trained.optimizer is None
    assert again.partial_fit(X).loss_curve_ == losses
    assert without.partial_fit(X).loss_curve_ != losses


# Parameters are compared by value


def make_activation():
    return nn.Tanh()


def make_encoder(n_features, n_components):
    return nn.Linear(n_features, n_components)


def make_decoder(n_features, n_components):
    return nn.Linear(n_components, n_features)


@pytest.mark.parametrize(
    "settings",
    [
        {"network": MLP((8,), activation=make_activation)},
        {"network": Custom(make_encoder, make_decoder)},
        {"network": Custom(nn.Linear(20, 2), nn.Linear(2, 20))},
        {"n_components": np.int64(2), "hidden_layer_sizes": [8]},
    ],
)
@pytest.mark.parametrize("print_changed_only", [False, True])
def test_training_continues_with_equal_parameters(settings, print_changed_only, X):
    ae = AutoencoderTransformer(**{"n_components": 2, **settings}).partial_fit(X)
    with sklearn.config_context(print_changed_only=print_changed_only):
        ae.partial_fit(X)
        ae = pickle.loads(pickle.dumps(ae)).partial_fit(X)
    assert ae.n_iter_ == 3


def test_training_does_not_continue_with_other_columns():
    X = (np.random.default_rng(0).random((100, 50)) > 0.5).astype(float)
    ae = AutoencoderTransformer(2, loss=Mixed(list(range(40)))).partial_fit(X)
    ae.set_params(loss=Mixed([*range(39), 45]))
    with pytest.raises(ValueError, match="loss="):
        ae.partial_fit(X)


def test_training_does_not_continue_with_a_network_changed_in_place(X):
    ae = AutoencoderTransformer(2, network=MLP((8,))).partial_fit(X)
    ae.set_params(network__activation="relu")
    with pytest.raises(ValueError, match="network="):
        ae.partial_fit(X)


class Small(AutoencoderTransformer):
    """A subclass whose constructor has few parameters."""

    def __init__(self, n_components=2, warm_start=False):
        super().__init__(
            n_components, max_epochs=2, random_state=0, warm_start=warm_start
        )


def test_training_of_a_subclass_with_few_parameters_continues(X):
    ae = Small().partial_fit(X).partial_fit(X)
    assert ae.n_iter_ == 2
    assert Small(warm_start=True).fit(X).fit(X[:200]).n_iter_ >= 2


# Warm starts


def test_an_estimator_given_to_a_callback_can_be_fitted(X):
    callback = pytest.importorskip("sklearn.callback")
    estimators = []

    def score(estimator, X, y):
        estimators.append(estimator)
        return {"score": 0.0}

    settings = {"max_epochs": 2, "early_stopping": False, "warm_start": True}
    ae = AutoencoderTransformer(2, random_state=0, **settings)
    ae.set_callbacks(callback.ScoringMonitor(scoring=score)).fit(X)
    first = estimators[0]
    assert first.n_iter_ == 1
    assert first.fit(X).n_iter_ == 3
    assert first.partial_fit(X).n_iter_ == 4


@pytest.mark.parametrize("early_stopping", [False, True, "auto"])
@pytest.mark.parametrize(
    ("estimator", "settings"),
    [
        (AutoencoderTransformer, {}),
        (AutoencoderTransformer, {"init": "random"}),
        (AutoencoderOutlierDetector, {}),
        (
            AutoencoderOutlierDetector,
            {"network": Custom(nn.Linear(20, 1), nn.Linear(1, 20))},
        ),
    ],
)
def test_every_warm_fit_trains_for_max_epochs(estimator, settings, early_stopping, X):
    model = estimator(
        1,
        max_epochs=1,
        warm_start=True,
        early_stopping=early_stopping,
        random_state=0,
        **settings,
    )
    curves = [model.fit(X).loss_curve_ for _ in range(5)]
    assert [len(curve) for curve in curves] == [1, 2, 3, 4, 5]
    assert all(curve == curves[-1][: len(curve)] for curve in curves)
    # The network that is cross-validated may be the initial one, without epochs.
    assert (
        model.n_iter_
        == len(model.net_.history)
        in ((4, 5) if early_stopping == "auto" else (5,))
    )


def test_warm_fits_without_early_stopping_learn(X):
    ae = AutoencoderTransformer(
        1, init="random", max_epochs=1, warm_start=True, random_state=0
    ).set_params(early_stopping=False)
    scores = [ae.fit(X).score(X) for _ in range(5)]
    assert np.all(np.diff(scores) > 0)


class RecordRows(Shared):
    """Records the first batch of each training, and the held-out rows."""

    def __init__(self):
        self.batches, self.held_out = [], []

    def on_epoch_begin(self, net, dataset_valid=None, **kwargs):
        self.is_first = True
        self.held_out.append(None if dataset_valid is None else dataset_valid.X)

    def on_batch_begin(self, net, batch, training=False, **kwargs):
        if training and self.is_first:
            self.batches.append(batch[0].clone())
            self.is_first = False


@pytest.mark.parametrize("resume", ["fit", "partial_fit"])
def test_resumed_trainings_draw_other_numbers(resume, X):
    record = RecordRows()
    ae = AutoencoderTransformer(
        1, max_epochs=1, warm_start=True, early_stopping=resume == "fit"
    ).set_params(random_state=0, callbacks=[record])
    ae.fit(X)
    for _ in range(3):
        ae = pickle.loads(pickle.dumps(ae)).set_params(callbacks=[record])
        getattr(ae, resume)(X)
    for i, batch in enumerate(record.batches):
        assert not any(torch.equal(batch, other) for other in record.batches[:i])
    if resume == "fit":  # the held-out rows stay held out
        assert all(map(np.array_equal, record.held_out, record.held_out[1:]))


def test_resumed_trainings_draw_other_dropout(X):
    encoder = nn.Sequential(nn.Dropout(0.5), nn.Linear(20, 1))
    settings = {"network": Custom(encoder, nn.Linear(1, 20)), "random_state": 0}
    ae = AutoencoderTransformer(1, batch_size=400, learning_rate=1e-9, **settings)
    losses = [ae.partial_fit(X).loss_curve_[-1] for _ in range(3)]
    assert np.ptp(losses) > 1e-4


GROWING = [
    ({}, 4, 8),
    ({}, 1, 3),
    ({}, 2, 4),
    ({"trim": 0.0}, 1, 2),
    ({"n_components": 3, "hidden_layer_sizes": (5,)}, 2, 3),
    ({"max_features": 7}, 1, 2),
    ({"max_features": 1.0}, 1, 2),
    ({"init": "pca", "scale": "global"}, 2, 3),
    ({"early_stopping": True}, 2, 3),
    ({"early_stopping": "auto"}, 1, 2),
    ({"network": "conv"}, 1, 3),
    ({"network": MLP((8,), dropout=0.2)}, 2, 3),
    ({"network": Custom(nn.Linear(20, 2), nn.Linear(2, 20)), "n_components": 2}, 1, 3),
    ({"bottleneck": "gaussian"}, 1, 3),
    ({"bottleneck": "quantized"}, 2, 3),
    ({"penalty": "l1"}, 1, 2),
    ({"penalty": "contractive"}, 2, 3),
    ({"loss": "mixed"}, 2, 3),
]


def member_residuals(detector, X):
    """Absolute residuals in float64, of shape (n_rows, n_members, n_features)."""
    module = detector.net_.module_in(np.dtype(np.float64))
    with torch.no_grad():
        values = residuals(module, torch.from_numpy(X)).numpy()
    return values if values.ndim == 3 else values[:, None]


def growing(**settings):
    return AutoencoderOutlierDetector(
        **{"max_epochs": 2, "warm_start": True, "random_state": 0, **settings}
    )


@pytest.mark.parametrize(("settings", "first", "then"), GROWING)
def test_more_estimators_keep_the_members(settings, first, then, X):
    X = X.astype(np.float64)
    detector = growing(n_estimators=first, **settings).fit(X[:300])
    before, n_iter = member_residuals(detector, X), detector.n_iter_
    module, mean = detector.module_, detector.mean_
    weights = copy.deepcopy(module.state_dict())
    detector.set_params(n_estimators=then, contamination=0.1).fit(X)
    residuals = member_residuals(detector, X)
    assert residuals.shape == (len(X), then, X.shape[1])
    assert_allclose(residuals[:, :first], before, rtol=1e-9, atol=1e-12)
    # The additional members differ from each other and from those before.
    flat = residuals.swapaxes(0, 1).reshape(then, -1)
    assert len(np.unique(flat[:, ::7].round(9), axis=0)) == then
    # The others see what those before see: their scaled space.
    assert_array_equal(detector.mean_, mean)
    assert detector.n_iter_ == len(detector.net_.history) >= n_iter
    assert len(detector.loss_curve_) >= 3
    # The threshold and the residual scales are those of all members, for these rows.
    assert (detector.predict(X) == -1).sum() == 40
    if detector.module_.residual_scale is not None:
        scale = detector.module_.residual_scale[:, 0].numpy()
        assert_allclose(scale, np.maximum(residuals.mean(axis=0), scale.min()), 1e-5)
    assert all(torch.equal(module.state_dict()[k], v) for k, v in weights.items())


def test_the_weights_of_kept_members_are_equal_to_the_bit(X):
    detector = growing(n_estimators=4).fit(X)
    before = detector.module_
    after = detector.set_params(n_estimators=8).fit(X).module_
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    assert all(torch.equal(one, other[:4]) for one, other in pairs)
    assert torch.equal(before.visible, after.visible[:4])
    # n_components="auto" goes on with the widths 1, 2, 4 and 8.
    widths = after.encoder[1].used.sum(dim=(1, 2)).tolist()
    assert widths == [1, 2, 4, 8, 1, 2, 4, 8]


@pytest.mark.parametrize("store", ["pickle", "save", "deepcopy"])
def test_stored_ensembles_grow(store, X, tmp_path):
    detector = growing(n_estimators=1).fit(X)
    for n_estimators in (2, 3):
        if store == "save":
            skae.save(detector, tmp_path / "model")
            detector = skae.load(tmp_path / "model")
        elif store == "pickle":
            detector = pickle.loads(pickle.dumps(detector))
        else:
            detector = copy.deepcopy(detector)
        detector.set_params(n_estimators=n_estimators).fit(X)
        assert detector.module_.n_members == n_estimators
    assert detector.partial_fit(X).n_iter_ == 7


@pytest.mark.parametrize(("first", "then"), [("pca", "random"), ("random", "auto")])
def test_additional_members_start_like_those_before(first, then, X):
    detector = growing(n_components=2, n_estimators=2, init=first).fit(X)
    detector.set_params(n_estimators=3, init=then)
    with pytest.raises(ValueError, match=f"init='{then}' differs from .*'{first}'"):
        detector.fit(X)
    assert detector.set_params(n_estimators=2).fit(X).n_iter_ == 4  # trains on


@pytest.mark.parametrize(
    "change",
    [
        {"max_epochs": "auto"},
        {"batch_size": 7, "learning_rate": 1e-3, "weight_decay": 0.1},
        {"early_stopping": "auto", "tol": 0.1},
        {"trim": 0.0},
        {"corruption": "masking", "corruption_level": 0.1},
        {"scale": None, "init": "auto"},
        {"error": "loss", "contamination": 0.2},
        {"random_state": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("n_estimators", [2, 3])
def test_parameters_of_the_training_change_between_warm_fits(change, n_estimators, X):
    detector = growing(n_estimators=2, init="pca", max_epochs=1).fit(X[:100])
    detector.set_params(n_estimators=n_estimators, **change).fit(X[50:90])
    assert detector.n_iter_ > 1
    assert detector.module_.n_members == n_estimators
    assert set(detector.predict(X)) == {-1, 1}


def test_additional_members_have_the_widths_of_the_first_fit(monkeypatch):
    monkeypatch.setattr("skae._defaults.MIN_CEILING", 10**4)
    X = np.random.default_rng(0).normal(size=(900, 100))
    detector = growing(n_components=20, n_estimators=1, max_epochs=1).fit(X)
    detector.fit(X[:50]).set_params(n_estimators=2)
    detector.fit(X[:90])  # so few rows alone would give narrower layers
    widths = [layer.weight.shape[1] for layer in detector.module_.encoder[::2]]
    assert widths == [256, 128, 64, 20]
    other = growing(n_components=20, n_estimators=1, max_epochs=1).fit(X[:90])
    assert other.module_.encoder[0].weight.shape[0] == 64


def test_an_equal_number_of_estimators_trains_on(X):
    detector = growing(n_estimators=16).fit(X)
    before = detector.module_
    detector.set_params(n_estimators="auto").fit(X)  # 16
    assert (detector.n_iter_, detector.module_.n_members) == (4, 16)
    pairs = zip(before.parameters(), detector.module_.parameters(), strict=True)
    assert not any(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    ("method", "n_estimators", "message"),
    [
        ("fit", 2, "n_estimators=2 must be larger or equal to .*, 3, when warm_start"),
        ("partial_fit", 2, "n_estimators=2 differs from .*, 3: partial_fit cannot"),
        ("partial_fit", "auto", "n_estimators='auto' differs from"),
    ],
)
def test_other_numbers_of_estimators_are_refused(method, n_estimators, message, X):
    detector = growing(n_estimators=3).fit(X)
    scores = detector.score_samples(X)
    with pytest.raises(ValueError, match=message):
        getattr(detector.set_params(n_estimators=n_estimators), method)(X)
    assert_array_equal(detector.score_samples(X), scores)
    fewer = detector.set_params(n_estimators=2, warm_start=False).fit(X)
    assert fewer.module_.n_members == 2


@pytest.mark.usefixtures("python_handler")
@pytest.mark.parametrize(("epoch", "n_members"), [(1, 2), (2, 3)])
def test_ctrl_c_leaves_trained_members_only(epoch, n_members, X):
    detector = growing(n_estimators=2).fit(X)
    detector.set_params(n_estimators=3, callbacks=[PressCtrlC(epoch=epoch)])
    with pytest.raises(KeyboardInterrupt):
        detector.fit(X)
    assert detector.module_.n_members == n_members
    assert np.isfinite(detector.score_samples(X)).all()


def test_a_warm_fit_that_diverges_leaves_no_model(X):
    detector = growing(n_estimators=2).fit(X)
    with pytest.raises(ValueError, match="diverged"):
        detector.set_params(n_estimators=3, learning_rate=1e30, trim=0.0).fit(X)
    assert not hasattr(detector, "module_")
    detector.set_params(learning_rate="auto").fit(X)
    assert detector.module_.n_members == 3


@pytest.mark.parametrize(
    "estimator", [AutoencoderTransformer, AutoencoderOutlierDetector]
)
def test_training_with_infinite_patience_does_not_stop(estimator, X):
    model = estimator(
        1, early_stopping=True, tol=10.0, max_epochs=8, random_state=0, init="random"
    )
    assert model.set_params(n_iter_no_change=1).fit(X).n_iter_ == 3
    assert model.set_params(n_iter_no_change=np.inf).fit(X).n_iter_ == 8
    assert model.net_.best_epoch_ == 1 + np.argmin(model.validation_loss_curve_)
    for value in (-np.inf, np.nan, 2.5):
        with pytest.raises(ValueError, match="n_iter_no_change"):
            model.set_params(n_iter_no_change=value).fit(X)


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("resume", ["fit", "partial_fit"])
def test_epochs_count_over_all_fits(early_stopping, resume, X):
    ae = AutoencoderTransformer(
        2,
        init="random",
        hidden_layer_sizes=(8,),
        max_epochs=8,
        early_stopping=early_stopping,
        n_iter_no_change=50,
        warm_start=True,
        random_state=0,
    ).fit(X[:200])
    first = ae.loss_curve_
    getattr(ae, resume)(X[200:])
    curve = ae.loss_curve_
    assert ae.n_iter_ == len(curve) == len(ae.net_.history) > len(first) == 8
    assert curve[:8] == first
    best = ae.net_.best_epoch_
    assert best == ae._trained.curves.best_epoch
    if early_stopping and resume == "fit":
        assert best == 9 + int(np.argmin(ae.validation_loss_curve_[8:]))
    else:
        assert best == len(curve)


@pytest.mark.parametrize(
    "estimator", [AutoencoderTransformer, AutoencoderOutlierDetector]
)
def test_both_loss_curves_have_one_entry_for_each_epoch(estimator, X):
    settings = {"hidden_layer_sizes": (8,), "max_epochs": 2, "random_state": 0}
    model = estimator(1, warm_start=True, **settings)
    is_judged: list[bool] = []

    def check():
        curve = model.validation_loss_curve_
        assert model.n_iter_ == len(model.loss_curve_) == len(is_judged)
        if not any(is_judged):
            assert curve is None
            return
        assert_array_equal(np.isfinite(curve), is_judged)
        assert_array_equal(
            curve, pickle.loads(pickle.dumps(model)).validation_loss_curve_
        )

    for call, early_stopping in [
        ("partial_fit", True),
        ("fit", False),
        ("fit", True),
        ("partial_fit", True),
        ("fit", False),
        ("fit", True),
    ]:
        model.set_params(early_stopping=early_stopping)
        n_before = len(is_judged)
        getattr(model, call)(X)
        n_new = model.n_iter_ - n_before
        is_judged += n_new * [call == "fit" and early_stopping]
        check()


def test_a_resumed_fit_without_gain_keeps_its_best_epoch(X):
    ae = AutoencoderTransformer(
        2,
        init="random",
        max_epochs=5,
        early_stopping=True,
        warm_start=True,
        random_state=0,
    ).fit(X)
    best = ae.net_.best_epoch_
    # Steps that change no weight.
    ae.set_params(learning_rate=1e-30).fit(X[::-1][:300])
    assert ae.net_.best_epoch_ == best
    assert ae.n_iter_ > 5


# Steps


@pytest.mark.parametrize(
    ("settings", "most_entries", "expected"),
    [
        ({"max_epochs": 4}, 10**6, "auto"),
        ({"max_epochs": 3}, 10**6, False),  # fewer steps than MIN_RECORDED_STEPS
        ({"max_epochs": 4}, 10, False),
        ({"max_epochs": 4, "compile": False}, 10**6, False),
        ({"max_epochs": 3, "compile": True}, 10, True),
    ],
)
def test_steps_are_recorded_where_that_saves_time(
    settings, most_entries, expected, X, monkeypatch
):
    found = []

    class Step(trainer.Step):
        def __init__(self, *args, compile, **kwargs):
            found.append(compile)
            super().__init__(*args, compile=False, **kwargs)

    monkeypatch.setattr(trainer, "Step", Step)
    monkeypatch.setattr(trainer, "MIN_RECORDED_STEPS", 4)
    monkeypatch.setattr(trainer, "MAX_RECORDED_ENTRIES", most_entries)
    settings = {"batch_size": 40, "early_stopping": False, **settings}
    AutoencoderTransformer(2, **settings).fit(X[:40])
    assert found == [expected]


class RecordRates(Shared):
    def __init__(self):
        self.rates = []

    def on_batch_end(self, net, training=False, **kwargs):
        if training:
            self.rates.append(net.optimizer_.param_groups[0]["lr"])


def test_the_learning_rate_decreases_in_fit_and_is_constant_in_partial_fit(X):
    record = RecordRates()
    ae = AutoencoderTransformer(
        *(2,), learning_rate=0.01, max_epochs=5, early_stopping=False, batch_size=50
    ).set_params(callbacks=[record])
    ae.fit(X)
    assert len(record.rates) == 5 * 8
    assert record.rates[0] == 0.01
    assert (np.diff(record.rates) <= 0).all()
    assert record.rates[-1] < 0.002
    record.rates.clear()
    ae.partial_fit(X)
    assert set(record.rates) == {0.01}


@pytest.mark.parametrize("settings", [{}, {"early_stopping": False}, {"ordered": True}])
def test_the_start_is_compared_with_the_best_weights_in_float64(
    settings, X, monkeypatch
):
    dtypes = []
    exact_losses = trainer.Trainer._exact_losses_of

    def record(*args):
        losses = exact_losses(*args)
        dtypes.append(losses.dtype)
        return losses

    monkeypatch.setattr(trainer.Trainer, "_exact_losses_of", record)
    AutoencoderTransformer(2, max_epochs=2, random_state=0, **settings).fit(X)
    assert set(dtypes) == {np.dtype(np.float64)}


def test_the_start_is_not_compared_where_it_is_no_pca(X, monkeypatch):
    def fail(*args):
        raise AssertionError

    monkeypatch.setattr(trainer.Trainer, "_exact_losses_of", fail)
    AutoencoderTransformer(2, init="random", max_epochs=2, random_state=0).fit(X)


def test_a_fit_whose_steps_change_nothing_keeps_the_start(X):
    ae = AutoencoderTransformer(2, learning_rate=1e-30, max_epochs=2, random_state=0)
    ae.fit(X)
    assert len(ae.validation_loss_curve_) == len(ae.loss_curve_) == 2
    assert ae.net_.best_epoch_ == 0
    pca = PCA(2).fit(X)
    expected = pca.inverse_transform(pca.transform(X))
    assert_allclose(ae.reconstruct(X), expected, atol=1e-5)


def test_reasons_for_warnings_are_looked_for_after_fit_only(X, monkeypatch):
    calls = []

    def find(job, trained):
        calls.append(job.is_partial)
        return ()

    monkeypatch.setattr(skae._training, "find_warnings", find)
    AutoencoderTransformer(2, max_epochs=1).fit(X).partial_fit(X)
    AutoencoderTransformer(2, max_epochs=1).partial_fit(X)
    assert calls == [False]


def test_records_of_many_batches_are_means_over_several(X, monkeypatch):
    settings = {"max_epochs": 1, "batch_size": 10, "early_stopping": False}
    histories = []
    for n_records in (1000, 3):
        monkeypatch.setattr(trainer, "MAX_BATCH_RECORDS", n_records)
        ae = AutoencoderTransformer(2, random_state=0, **settings).fit(X[:70])
        histories.append(ae.net_.history[-1])
    whole, few = ([b for b in h["batches"] if "train_loss" in b] for h in histories)
    assert (len(whole), len(few)) == (7, 3)
    sizes = [batch["train_batch_size"] for batch in few]
    assert sizes == [20, 20, 30]
    losses = np.array([batch["train_loss"] for batch in whole])
    means = [losses[:2].mean(), losses[2:4].mean(), losses[4:].mean()]
    assert_allclose([batch["train_loss"] for batch in few], means)
    assert_allclose(*[history["train_loss"] for history in histories])


@pytest.mark.parametrize(
    ("gains", "weight", "expected"),
    [
        ([1.0, -2.0], [1.0, 1.0], False),
        ([1.0, -2.0], [3.0, 1.0], True),
        ([1.0, -1.0], [1.0, 1.0], False),
    ],
)
def test_a_gain_is_positive_by_its_weighted_mean(gains, weight, expected):
    assert trainer._is_positive(np.array(gains), np.array(weight)) is expected


# Folds


class RecordNetworks(Shared):
    """Records the held-out rows, the losses and the weights of one training."""

    def on_train_begin(self, net, dataset_train=None, **kwargs):
        self.n_trainings = getattr(self, "n_trainings", 0) + 1

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        self.rows = dataset_train.X, dataset_valid.X
        self.score = net.score(dataset_valid)


def test_folds_are_trained_side_by_side_with_the_returned_network():
    X = load_iris().data
    record = RecordNetworks()
    ae = AutoencoderTransformer(1, random_state=0, max_epochs=60, callbacks=[record])
    ae.fit(X)
    assert record.n_trainings == 1
    n_distinct = len(np.unique(X, axis=0))
    for rows in record.rows:  # all rows train, and all are held out once
        assert len(rows) == n_distinct
        assert len(np.unique(rows, axis=0)) == n_distinct
    assert ae.n_iter_ == len(ae.loss_curve_) == len(ae.validation_loss_curve_)
    assert 1 <= ae.net_.best_epoch_ == 1 + int(np.argmin(ae.validation_loss_curve_))


class RecordHeldOut(Shared):
    def __init__(self):
        self.shapes = []

    def on_batch_begin(self, net, batch=None, training=False, **kwargs):
        if not training:
            self.shapes.append(tuple(batch[0].shape))


def test_callbacks_of_batches_receive_the_held_out_rows_of_one_fold_at_a_time(X):
    record = RecordHeldOut()
    ae = AutoencoderTransformer(2, max_epochs=1, random_state=0, callbacks=[record])
    ae.fit(X[:100])
    assert record.shapes == [(20, 20)] * 5


def test_held_out_rows_are_predicted_by_the_network_of_their_fold():
    # Each row is a direction of its own, which only a network trained on it can know.
    X = np.random.default_rng(0).normal(size=(40, 60))
    record = RecordNetworks()
    ae = AutoencoderTransformer(
        20,
        init="random",
        hidden_layer_sizes=(64,),
        n_iter_no_change=np.inf,
        max_epochs=200,
        random_state=0,
        callbacks=[record],
    ).fit(X)
    assert ae.score(X) > record.score + 0.2
    assert ae.loss_curve_[-1] < ae.validation_loss_curve_[-1] - 0.2


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_stacked_folds_train_as_separate_ones(activation, monkeypatch):
    X = load_iris().data
    X[::7, 2] = np.nan
    settings = {
        "network": MLP((8,), activation=activation),
        "trim": 0.1,
        "max_epochs": 10,
        "random_state": 0,
    }
    weight = np.random.default_rng(0).integers(1, 4, len(X))
    stacked = AutoencoderTransformer(2, **settings).fit(X, sample_weight=weight)
    monkeypatch.setattr("skae.engine.networks._stack", lambda networks: None)
    separate = AutoencoderTransformer(2, **settings).fit(X, sample_weight=weight)
    for name in ("loss_curve_", "validation_loss_curve_"):
        assert_allclose(getattr(stacked, name), getattr(separate, name), rtol=1e-3)
    assert_allclose(stacked.reconstruct(X), separate.reconstruct(X), atol=1e-2)


def test_the_network_does_not_keep_the_memory_of_the_folds():
    ae = AutoencoderTransformer(1, random_state=0, max_epochs=3).fit(load_iris().data)
    for parameter in ae.module_.parameters():
        assert parameter.is_contiguous()
        assert parameter.untyped_storage().nbytes() == parameter.nbytes


def test_weights_of_a_fold_are_those_of_the_other_rows():
    weight = np.array([1.0, 2.0, 1.0, 4.0, 2.0, 2.0])
    fold = np.array([0, 0, 1, 1, 2, 2])
    rows = Rows(np.eye(6), weight=weight).normalised()
    per_fold = Split(rows, None, fold).fold_weight()
    assert per_fold.shape == (6, 3)
    for i in range(3):
        assert_allclose(per_fold[fold == i, i], 0, atol=1e-15)
        kept = per_fold[fold != i, i]
        assert_allclose(kept / kept[0], weight[fold != i] / weight[fold != i][0])
    assert_allclose(per_fold.sum(axis=0), 6)


def test_folds_that_keep_the_start_return_the_pca():
    noise = np.random.default_rng(0).normal(size=(50, 8))
    ae = AutoencoderTransformer(2, max_epochs=20, random_state=0).fit(noise)
    assert ae.net_.best_epoch_ == 0
    assert ae.n_iter_ == len(ae.loss_curve_) == len(ae.validation_loss_curve_) > 0
    pca = PCA(2).fit(noise)
    assert_allclose(
        ae.reconstruct(noise), pca.inverse_transform(pca.transform(noise)), atol=1e-5
    )


class Freeze(Shared):
    """Freezes the first linear layer of the encoder, and changes another."""

    def on_train_begin(self, net, **kwargs):
        for parameter in net.module_.encoder.linear.parameters():
            parameter.requires_grad_(False)
        with torch.no_grad():
            net.module_.decoder.linear.bias.fill_(1.0)


@pytest.mark.parametrize("stacks", [True, False])
def test_folds_follow_what_callbacks_do_to_the_network(stacks, monkeypatch):
    X = load_iris().data
    if not stacks:
        monkeypatch.setattr("skae.engine.networks._stack", lambda networks: None)
    seen = []
    copy_first = Networks.copy_first

    def spy(networks):
        copy_first(networks)
        biases = [n.module.decoder.linear.bias for n in networks.folds]
        seen.extend(float(bias.detach().mean()) for bias in biases)
        encoder = networks.trained[-1].module.encoder
        seen.append(encoder.linear.weight.requires_grad)

    monkeypatch.setattr(Networks, "copy_first", spy)
    settings = {"random_state": 0, "max_epochs": 2, "scale": None}
    AutoencoderTransformer(1, **settings, callbacks=[Freeze()]).fit(X)
    *biases, is_trained = seen
    assert_allclose(biases, [1.0] * 5)
    assert not is_trained


class ClipGradients(Shared):
    """Records the gradients of each network."""

    def __init__(self):
        self.norms = []

    def on_grad_computed(self, net, named_parameters, **kwargs):
        gradients = [p.grad for _, p in named_parameters]
        self.norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
        for gradient in gradients:
            gradient.zero_()


@pytest.mark.parametrize("stacks", [True, False])
def test_callbacks_receive_the_gradients_of_all_networks(stacks, monkeypatch):
    if not stacks:
        monkeypatch.setattr("skae.engine.networks._stack", lambda networks: None)
    clip = ClipGradients()
    ae = AutoencoderTransformer(
        1, random_state=0, max_epochs=12, batch_size=200, callbacks=[clip]
    ).fit(load_iris().data)
    assert len(clip.norms) == 6 * 12
    assert min(clip.norms) > 0
    assert_allclose(ae.validation_loss_curve_, ae.validation_loss_curve_[0], rtol=1e-3)


def test_ctrl_c_in_folds_returns_the_best_epoch(python_handler):
    X = load_iris().data
    press = PressCtrlC(1, epoch=5)
    ae = AutoencoderTransformer(1, random_state=0, init="random", callbacks=[press])
    with pytest.raises(KeyboardInterrupt):
        ae.fit(X)
    assert ae.n_iter_ == len(ae.loss_curve_) == 4
    assert np.isfinite(ae.transform(X)).all()


# What a method may do depends on the fit


@pytest.mark.parametrize(
    ("fitted", "later", "method", "exists"),
    [
        ("deterministic", "gaussian", "sample", False),
        ("deterministic", "quantized", "quantize", False),
        ("deterministic", "quantized", "dequantize", False),
        ("gaussian", "deterministic", "sample", True),
        ("quantized", "gaussian", "quantize", True),
        ("quantized", "gaussian", "sample", False),
    ],
)
def test_methods_exist_by_the_bottleneck_of_the_fit(fitted, later, method, exists, X):
    ae = AutoencoderTransformer(2, bottleneck=fitted, max_epochs=1)
    assert hasattr(ae, method) is exists
    ae.fit(X).set_params(bottleneck=later)
    assert hasattr(ae, method) is exists
    assert hasattr(pickle.loads(pickle.dumps(ae)), method) is exists


def test_contributions_exist_by_the_bottleneck_of_the_fit(X):
    from skae.bottlenecks import Gaussian

    elbo = Gaussian(score="elbo")
    detector = AutoencoderOutlierDetector(max_epochs=1).fit(X)
    assert hasattr(detector.set_params(bottleneck=elbo), "feature_contributions")
    detector = AutoencoderOutlierDetector(bottleneck=elbo, max_epochs=1).fit(X)
    detector.set_params(bottleneck="deterministic")
    assert not hasattr(detector, "feature_contributions")


def test_a_detector_trains_on_a_sample_of_many_rows():
    X = np.random.default_rng(0).normal(size=(2000, 3))
    detector = AutoencoderOutlierDetector(
        n_estimators=2, hidden_layer_sizes=(2,), batch_size=2, random_state=0
    ).fit(X)
    assert detector.n_iter_ == 1
    assert detector.net_.history[-1]["train_batch_count"] == 600
    np.testing.assert_allclose(detector.mean_, X.mean(axis=0))
    detector.set_params(max_epochs=1).fit(X)
    assert detector.net_.history[-1]["train_batch_count"] == 1000


@pytest.mark.parametrize("is_complete", [True, False])
def test_mean_residuals_come_from_a_sample_of_complete_rows(monkeypatch, is_complete):
    X = np.random.default_rng(0).normal(size=(1000, 3))
    if not is_complete:
        X[::5, 0] = np.nan
    detector = AutoencoderOutlierDetector(
        n_estimators=2, hidden_layer_sizes=(2,), max_epochs=1, random_state=0
    )
    scale = detector.fit(X).module_.residual_scale.numpy()
    total_weight = detector._trained.residuals.weight
    monkeypatch.setattr("skae._scores.MAX_RESIDUAL_ROWS", 200)
    sampled = detector.fit(X).module_.residual_scale.numpy()
    assert (scale != sampled).any() == is_complete
    np.testing.assert_allclose(sampled, scale, rtol=0.2)
    np.testing.assert_allclose(detector._trained.residuals.weight, total_weight)


def normalizing_encoder(n_features, n_components):
    return nn.Sequential(nn.Linear(n_features, n_components), nn.BatchNorm1d(2))


def plain_decoder(n_features, n_components):
    return nn.Linear(n_components, n_features)


class OwnActivation(nn.Module):
    def forward(self, H):
        return torch.tanh(H - H.mean(dim=0))


class OwnNetwork(MLP):
    may_mix_rows = True


@pytest.mark.parametrize(
    ("settings", "is_folded"),
    [
        ({}, True),
        ({"network": "conv"}, True),
        ({"network": MLP((4,), activation="tanh")}, True),
        ({"network": MLP((4,), activation=OwnActivation)}, False),
        ({"network": OwnNetwork((4,))}, False),
        ({"network": Custom(normalizing_encoder, plain_decoder)}, False),
        ({"hidden_layer_sizes": (50,)}, False),
    ],
)
def test_networks_that_mix_rows_or_are_large_hold_rows_out(
    settings, is_folded, X, monkeypatch
):
    if "hidden_layer_sizes" in settings:
        monkeypatch.setattr(skae._training, "MAX_FOLDED_WEIGHTS", 200)
    record = RecordNetworks()
    ae = AutoencoderTransformer(2, max_epochs=1, random_state=0, callbacks=[record])
    ae.set_params(init="random", **settings).fit(X[:40])
    n_train, n_held_out = map(len, record.rows)
    assert (n_train, n_held_out) == ((40, 40) if is_folded else (36, 4))
    assert ae.validation_loss_curve_ is not None


def test_held_out_rows_are_no_part_of_batch_statistics(X):
    class Reads(Callback):
        def on_train_begin(self, net, X=None, **kwargs):
            self.rows = X.X

    ae = AutoencoderTransformer(
        2,
        network=Custom(normalizing_encoder, plain_decoder),
        batch_size=40,
        max_epochs=300,
        random_state=0,
        callbacks=[Reads()],
    ).fit(X[:40])
    rows = torch.from_numpy(ae.net_.callbacks_[0][1].rows)
    layer, norm = ae.module_.encoder
    scaled, _ = ae.module_.scaler(rows)
    assert len(rows) == 36
    assert norm.num_batches_tracked > 0
    mean = layer(scaled.float()).mean(dim=0).detach()
    assert_allclose(norm.running_mean, mean, atol=0.1 * norm.running_var.max() ** 0.5)


@pytest.mark.parametrize("n_judged", [20, 1000])
def test_a_bounded_number_of_held_out_rows_is_judged(n_judged, monkeypatch):
    monkeypatch.setattr(_split, "MAX_JUDGED_ROWS", n_judged)
    X = np.random.default_rng(0).standard_normal((1000, 4))
    seen = {}

    class Record(Callback):
        def on_train_begin(self, net, **kwargs):
            seen["train"] = len(kwargs["X"])

        def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
            seen["valid"] = np.array(dataset_valid.X)
            seen["rows"] = np.array(dataset_train.X)

        def __deepcopy__(self, memo):
            return self

    ae = AutoencoderTransformer(
        2, max_epochs=1, validation_fraction=0.2, random_state=0, callbacks=[Record()]
    )
    ae.fit(X)
    assert seen["train"] == 800
    assert len(seen["valid"]) == min(200, n_judged)
    assert not set(map(tuple, seen["valid"])) & set(map(tuple, seen["rows"]))


class FirstGradientIsNaN(torch.autograd.Function):
    """The identity, whose gradient is NaN in one entry when it is first computed."""

    n_calls = 0

    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        FirstGradientIsNaN.n_calls += 1
        if FirstGradientIsNaN.n_calls > 1:
            return gradient
        return gradient * torch.tensor([1.0, math.nan])


class EncoderWithInvalidGradient(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part
        self.first, self.second = nn.Linear(5, 2), nn.Linear(2, 2)

    def forward(self, X):
        if self.part == "all":
            return FirstGradientIsNaN.apply(self.second(self.first(X)))
        return self.second(FirstGradientIsNaN.apply(self.first(X)))


@pytest.mark.parametrize("part", ["all", "some"])
def test_invalid_gradient_of_the_first_step_is_not_replaced(part, monkeypatch):
    monkeypatch.setattr(FirstGradientIsNaN, "n_calls", 0)
    network = Custom(
        encoder=lambda *sizes: EncoderWithInvalidGradient(part),
        decoder=lambda *sizes: nn.Linear(2, 5),
    )
    X = np.random.default_rng(0).normal(size=(100, 5))
    ae = AutoencoderTransformer(
        2, network=network, init="random", early_stopping=False, compile=False
    )
    with pytest.raises(ValueError, match="diverged"):
        ae.set_params(max_epochs=2, random_state=0).fit(X)
