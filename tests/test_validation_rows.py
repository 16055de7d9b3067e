"""Rows that the user passes for early stopping: `X_val` and `sample_weight_val`."""

import gc
import pickle
import re
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback, EarlyStopping

import skae._base
from skae import AutoencoderOutlierDetector, AutoencoderTransformer, _rows, _training
from skae.losses import Mixed

SMALL = {"hidden_layer_sizes": (8,), "max_epochs": 4, "random_state": 0}
NAMES = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def X():
    """Rows near a curve, whose values float32 represents exactly."""
    rng = np.random.default_rng(0)
    t = rng.uniform(-1, 1, (90, 1))
    X = t ** np.arange(1, 5) + 0.05 * rng.standard_normal((90, 4))
    return X.astype(np.float32).astype(np.float64)


@pytest.fixture(scope="module")
def X_val(X):
    return X[60:]


@pytest.fixture(scope="module")
def X_train(X):
    return X[:60]


@pytest.fixture(params=[AutoencoderTransformer, AutoencoderOutlierDetector])
def estimator(request):
    return request.param(1, **SMALL)


@pytest.fixture
def transformer():
    return AutoencoderTransformer(1, **SMALL)


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


def frame(X, names=NAMES):
    return pd.DataFrame(X, columns=list(names))


class Record(Callback):
    """Keeps the rows of a training."""

    def __deepcopy__(self, memo):
        return self

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        self.train, self.valid = np.array(dataset_train.X), np.array(dataset_valid.X)


def assert_equal_fits(actual, expected, X):
    assert actual.loss_curve_ == expected.loss_curve_
    assert actual.validation_loss_curve_ == expected.validation_loss_curve_
    assert_array_equal(actual.score_samples(X), expected.score_samples(X))


# What the rows decide


@pytest.mark.parametrize("early_stopping", ["auto", True])
def test_all_rows_are_trained_on_and_only_those_of_the_user_judge(
    early_stopping, estimator, X_train, X_val
):
    record = Record()
    estimator.set_params(early_stopping=early_stopping, callbacks=[record])
    estimator.set_params(validation_fraction=0.5).fit(X_train, X_val=X_val)
    assert sorted(map(tuple, record.train)) == sorted(map(tuple, X_train))
    assert sorted(map(tuple, record.valid)) == sorted(map(tuple, X_val))


def test_a_detector_needs_no_early_stopping_for_them(X_train, X_val):
    detector = AutoencoderOutlierDetector(1, **SMALL)
    assert detector.early_stopping is False
    detector.fit(X_train, X_val=X_val)
    expected = clone(detector).set_params(early_stopping=True)
    assert_equal_fits(detector, expected.fit(X_train, X_val=X_val), X_train)
    assert len(detector.training_scores_) == len(X_train)
    assert clone(detector).fit(X_train).validation_loss_curve_ is None


@pytest.mark.parametrize(
    ("Estimator", "learning_rate"),
    [(AutoencoderTransformer, "auto"), (AutoencoderOutlierDetector, 0.05)],
)
def test_rows_for_validation_stop_the_training(
    Estimator, learning_rate, X_train, X_val
):
    # Far from the training rows, the error soon grows.
    estimator = Estimator(1, init="random", n_iter_no_change=1, random_state=0)
    estimator.set_params(max_epochs=60, learning_rate=learning_rate)
    estimator.set_params(hidden_layer_sizes=(8,))
    n_near = clone(estimator).fit(X_train, X_val=X_train).n_iter_
    n_far = clone(estimator).fit(X_train, X_val=-9 * X_val).n_iter_
    assert n_far < n_near


@pytest.mark.parametrize("width", [4, 130])
def test_the_curve_is_the_loss_of_these_rows(width, X):
    # In a wide table, they have a part outside of the space of the training rows.
    rng = np.random.default_rng(1)
    wide = X @ rng.standard_normal((4, width)) + 0.1 * rng.standard_normal((90, width))
    A, B, weight = wide[:60], wide[60:], rng.uniform(0.5, 2, 30)
    ae = AutoencoderTransformer(1, transform_max_iter=0, **SMALL)
    ae.set_params(max_epochs=60, n_iter_no_change=np.inf)
    ae.fit(A, X_val=B, sample_weight_val=weight)
    assert ae.net_.best_epoch_ > 0
    expected = np.average(-ae.score_samples(B), weights=weight)
    assert_allclose(min(ae.validation_loss_curve_), expected, rtol=1e-5)


def test_a_pca_is_left_only_for_rows_that_reconstruct_better(X_train, X_val):
    ae = AutoencoderTransformer(1, **{**SMALL, "max_epochs": 60})
    linear = clone(ae).set_params(hidden_layer_sizes=(), learning_rate=1e-30)
    on_axis = linear.fit(X_train).reconstruct(X_val)
    assert ae.fit(X_train, X_val=X_val).net_.best_epoch_ > 0
    assert ae.fit(X_train, X_val=on_axis).net_.best_epoch_ == 0


@pytest.mark.parametrize("copies", [1, 5])
def test_a_single_row_replaces_random_weights_but_no_pca(copies, X_train, X_val):
    row = np.repeat(X_val[:1], copies, axis=0)
    ae = AutoencoderTransformer(1, **SMALL)
    assert ae.fit(X_train, X_val=row).net_.best_epoch_ == 0
    assert ae.set_params(init="random").fit(X_train, X_val=row).net_.best_epoch_ > 0


def test_mean_scale_axes_and_steps_do_not_depend_on_them(estimator, X_train, X_val):
    estimator.set_params(init="auto", n_iter_no_change=np.inf)
    fits = [
        clone(estimator).fit(X_train, X_val=rows)
        for rows in (X_val, 5 + 3 * X_val, X_train)
    ]
    for fitted in fits[1:]:
        assert fitted.loss_curve_ == fits[0].loss_curve_
        assert fitted.validation_loss_curve_ != fits[0].validation_loss_curve_
        for name in ("mean", "shift", "factor"):
            values = [getattr(f.module_.scaler, name).numpy() for f in (fitted, *fits)]
            assert_array_equal(values[0], values[1])
        assert_array_equal(fitted.mean_, X_train.mean(axis=0))


def test_a_single_training_row_may_be_judged(transformer, X_train, X_val):
    transformer.set_params(early_stopping=True)
    with pytest.raises(ValueError, match="at least two distinct rows"):
        transformer.fit(X_train[:1])
    transformer.fit(X_train[:1], X_val=X_val)
    assert len(transformer.validation_loss_curve_) == 4


# Containers, weights and order


CONTAINERS = [
    np.ndarray.tolist,
    np.float32,
    np.asfortranarray,
    sparse.csr_array,
    sparse.csc_matrix,
    sparse.coo_array,
]
FRAMES = [
    lambda X: pl.DataFrame(X, schema=NAMES),
    lambda X: frame(X).convert_dtypes(),
]


@pytest.mark.parametrize(
    ("Estimator", "dtype"),
    [(AutoencoderTransformer, np.float64), (AutoencoderOutlierDetector, np.float32)],
)
@pytest.mark.parametrize("containers", [CONTAINERS, FRAMES], ids=["arrays", "frames"])
def test_equal_values_in_other_containers_give_equal_fits(
    containers, Estimator, dtype, X_train, X_val
):
    A, B = X_train.astype(dtype), X_val.copy()
    B[::5, 1], B[1::5, 2] = np.nan, 0
    plain = np.array
    if containers is FRAMES:
        A, plain = frame(A), frame
    expected = Estimator(1, **SMALL).fit(A, X_val=plain(B))
    for container in containers:
        assert_equal_fits(Estimator(1, **SMALL).fit(A, X_val=container(B)), expected, A)


@pytest.mark.parametrize("train", [np.array, sparse.csr_array])
@pytest.mark.parametrize("validation", [np.array, sparse.csr_array])
def test_tables_may_be_dense_or_sparse(train, validation, estimator, X_train, X_val):
    B = np.where(X_val < 0, 0, X_val)
    B[::3, 1], B[:, 3] = np.nan, np.nan  # a column without any value
    expected = clone(estimator).fit(X_train, X_val=B)
    actual = clone(estimator).fit(train(X_train), X_val=validation(B))
    assert_equal_fits(actual, expected, X_train)


def test_they_have_the_type_of_the_training_rows(estimator, X_train, X_val):
    A, B = (1e4 + X_train).astype(np.float32), 1e4 + X_val / 3
    rounded = clone(estimator).fit(A, X_val=B.astype(np.float32))
    assert_equal_fits(clone(estimator).fit(A, X_val=B), rounded, A)
    with pytest.raises(ValueError, match=r"X_val .* too large for dtype\('float32'\)"):
        estimator.fit(A, X_val=1e40 * B)


def test_a_memory_map_for_validation_is_read_from_its_file(
    estimator, X_train, X_val, tmp_path
):
    np.save(tmp_path / "rows.npy", X_val)
    table = np.load(tmp_path / "rows.npy", mmap_mode="r")
    actual = clone(estimator).fit(X_train, X_val=table)
    assert_equal_fits(actual, estimator.fit(X_train, X_val=X_val), X_train)


def with_duplicates(X):
    """A matrix that stores each entry twice, half of it each time."""
    table = sparse.csr_array(X)
    data, indices = np.repeat(table.data / 2, 2), np.repeat(table.indices, 2)
    return sparse.csr_array((data, indices, 2 * table.indptr), shape=table.shape)


@pytest.mark.parametrize("container", [np.array, sparse.csc_array, with_duplicates])
def test_rows_for_validation_are_sparse_where_the_training_rows_are(container):
    rng = np.random.default_rng(0)
    shape = (180, 2100)
    X = np.where(rng.random(shape) < 0.02, rng.random(shape), 0)
    ae = AutoencoderTransformer(1, hidden_layer_sizes=(4,), random_state=0)
    ae.set_params(max_epochs=1, batch_size=120)
    A = sparse.csr_array(X[:140])
    actual = clone(ae).fit(A, X_val=container(X[140:]))
    expected = ae.fit(X[:140], X_val=X[140:])
    curves = (actual.validation_loss_curve_, expected.validation_loss_curve_)
    assert_allclose(*curves, rtol=1e-5)


SAME_ROWS = {
    "permuted": lambda X, w: (X[::-1], w[::-1]),
    "repeated": lambda X, w: (np.repeat(X, w, axis=0), None),
    "of weight zero": lambda X, w: (np.r_[X, X + 9], np.r_[w, 0 * w]),
    "without a value": lambda X, w: (np.r_[np.full((2, 4), np.nan), X], np.r_[7, 7, w]),
    "scaled weights": lambda X, w: (X, 8 * w),
}


@pytest.mark.parametrize("case", SAME_ROWS)
def test_weights_are_repetitions_and_order_is_nothing(case, estimator, X_train, X_val):
    weight = np.arange(len(X_val)) % 3
    expected = clone(estimator).fit(X_train, X_val=X_val, sample_weight_val=weight)
    rows, weight = SAME_ROWS[case](X_val, weight)
    actual = clone(estimator).fit(X_train, X_val=rows, sample_weight_val=weight)
    assert_equal_fits(actual, expected, X_train)


def test_weights_count(estimator, X_train, X_val):
    weight = np.arange(len(X_val)) % 3
    weighted = clone(estimator).fit(X_train, X_val=X_val, sample_weight_val=weight)
    unweighted = estimator.fit(X_train, X_val=X_val)
    assert unweighted.validation_loss_curve_ != weighted.validation_loss_curve_


@pytest.mark.parametrize("n_judged", [20, 1000])
def test_order_of_many_rows_is_nothing(n_judged, monkeypatch, X_train, X_val):
    monkeypatch.setattr(_rows, "MAX_CANONICAL_ROWS", 10)
    monkeypatch.setattr(_training, "MAX_CANONICAL_ROWS", 10)
    monkeypatch.setattr(_training, "MAX_JUDGED_ROWS", n_judged)
    weight = 1.0 + np.arange(len(X_val))
    found = []
    for order in (slice(None), slice(None, None, -1)):
        record = Record()
        ae = AutoencoderTransformer(1, callbacks=[record], **SMALL)
        ae.fit(X_train, X_val=X_val[order], sample_weight_val=weight[order])
        found.append((record.valid.tolist(), ae.validation_loss_curve_))
    assert found[0] == found[1]
    assert len(record.valid) == min(n_judged, len(X_val))


def test_neither_table_is_changed(estimator, X_train, X_val):
    table = sparse.csr_array(X_val)
    table.indices = table.indices[::-1].copy()  # not in order
    table.has_sorted_indices = table.has_canonical_format = False
    before = table.copy()
    rows = X_val.copy()
    rows.flags.writeable = False
    for tables in (rows, table):
        clone(estimator).fit(X_train, X_val=tables)
    assert_array_equal(table.indices, before.indices)
    assert_array_equal(table.data, before.data)
    assert_array_equal(rows, X_val)


# Errors


ERRORS = {
    "fewer features": (lambda X: {"X_val": X[:, :3]}, "X_val has 3 features, but X"),
    "one-dimensional": (lambda X: {"X_val": X[0]}, "X_val: Expected 2D array"),
    "images": (
        lambda X: {"X_val": X.reshape(-1, 2, 2)},
        r"A row of X_val .* numpy.reshape\(X_val",
    ),
    "no rows": (lambda X: {"X_val": X[:0]}, r"X_val: Found array with 0 sample\(s\)"),
    "infinity": (lambda X: {"X_val": X / 0}, "X_val contains infinity"),
    "complex": (lambda X: {"X_val": X * 1j}, "X_val: Complex data"),
    "text": (
        lambda X: {"X_val": [["a"] * 4]},
        "X_val has a value that is not a number",
    ),
    "no values": (lambda X: {"X_val": np.nan * X}, "X_val has no row with an observed"),
    "overflow": (
        lambda X: {"X_val": 1e30 * X},
        r"X_val has values beyond 1e\+16 .* feature\(s\) 0, 1, 2, 3; .* training rows",
    ),
    "weights alone": (
        lambda X: {"sample_weight_val": np.ones(len(X))},
        "sample_weight_val has the weights of the rows of X_val, but X_val is None",
    ),
    "too few weights": (
        lambda X: {"X_val": X, "sample_weight_val": np.ones(3)},
        r"sample_weight_val: .*\(3,\), expected \(30,\)",
    ),
    "negative weights": (
        lambda X: {"X_val": X, "sample_weight_val": -np.ones(len(X))},
        "sample_weight_val: Negative values",
    ),
    "weights of zero": (
        lambda X: {"X_val": X, "sample_weight_val": np.zeros(len(X))},
        "sample_weight_val|X_val has no row",
    ),
    "missing weights": (
        lambda X: {"X_val": X, "sample_weight_val": np.full(len(X), np.nan)},
        "sample_weight_val: .*NaN",
    ),
    "huge weights": (
        lambda X: {"X_val": X, "sample_weight_val": np.full(len(X), 1e200)},
        "sample_weight_val: .*too large",
    ),
}


@pytest.fixture
def no_training(monkeypatch):
    def train(*args):
        raise AssertionError("the training has begun")

    monkeypatch.setattr(skae._base, "train", train)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_parameter_before_any_training(case, estimator, X_train, X_val):
    arguments, message = ERRORS[case]
    with np.errstate(all="ignore"):
        passed = arguments(X_val)
    with pytest.raises(ValueError, match=message):
        estimator.fit(X_train, **passed)
    assert not hasattr(estimator, "n_features_in_")


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("off", [False, np.False_])
def test_a_transformer_without_early_stopping_refuses_them(
    off, transformer, X_train, X_val
):
    transformer.set_params(early_stopping=off)
    with pytest.raises(ValueError, match=r"X_val .* early_stopping=False"):
        transformer.fit(X_train, X_val=X_val)


@pytest.mark.usefixtures("no_training")
def test_columns_must_have_the_same_names_in_the_same_order(estimator, X_train, X_val):
    A = frame(X_train)
    with pytest.raises(ValueError, match=r"names of X_val .*not have: z\..*missing: d"):
        estimator.fit(A, X_val=frame(X_val, "abcz"))
    with pytest.raises(ValueError, match=r"X_val has|names of X_val .* missing: d"):
        estimator.fit(A, X_val=frame(X_val).iloc[:, :3])
    with pytest.raises(ValueError, match=r"names of X_val .* the same order"):
        estimator.fit(A, X_val=frame(X_val, "abdc"))


def test_names_of_one_table_only_are_warned_about(estimator, X_train, X_val):
    message = "X has feature names, but X_val does not"
    with pytest.warns(UserWarning, match=message):
        estimator.fit(frame(X_train), X_val=X_val)
    with pytest.warns(UserWarning, match="X_val has feature names, but X does not"):
        estimator.fit(X_train, X_val=frame(X_val))


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("loss", "where"),
    [
        ("binary_cross_entropy", "all of X_val"),
        (Mixed(["b"]), r"column\(s\) b of X_val"),
    ],
)
def test_values_outside_the_range_of_the_loss_are_refused(
    loss, where, transformer, X_train, X_val
):
    A = frame(np.clip(X_train, 0, 1))
    transformer.set_params(loss=loss)
    with pytest.raises(ValueError, match=rf"needs {where} in \[0, 1\]"):
        transformer.fit(A, X_val=frame(X_val))


def test_a_fit_that_refuses_them_leaves_the_model(estimator, X_train, X_val):
    scores = estimator.fit(X_train).score_samples(X_train)
    for warm_start in (False, True):
        estimator.set_params(warm_start=warm_start)
        with pytest.raises(ValueError, match="X_val has 3 features"):
            estimator.fit(X_train, X_val=X_val[:, :3])
        assert_array_equal(estimator.score_samples(X_train), scores)


# Other methods, resumed fits, copies


def test_callbacks_may_read_their_loss(X_train, X_val):
    monitor = EarlyStopping(monitor="valid_loss", patience=2, threshold=10)
    detector = AutoencoderOutlierDetector(1, **{**SMALL, "max_epochs": 20})
    detector.set_params(callbacks=[monitor])
    with pytest.raises(ValueError, match="reads 'valid_loss', but no rows"):
        detector.fit(X_train)
    detector.fit(X_train, X_val=X_val)
    assert len(detector.loss_curve_) == 3


def test_a_resumed_fit_is_judged_by_the_rows_that_it_receives(
    estimator, X_train, X_val
):
    estimator.set_params(warm_start=True, early_stopping=True)
    estimator.fit(X_train).fit(X_train, X_val=X_val)
    record = Record()
    estimator.set_params(callbacks=[record]).fit(X_train, X_val=2 * X_val)
    assert sorted(map(tuple, record.valid)) == sorted(map(tuple, 2 * X_val))
    assert len(estimator.validation_loss_curve_) == 12
    with pytest.raises(ValueError, match=r"X_val has values beyond 1e\+16"):
        estimator.fit(X_train, X_val=1e30 * X_val)


def test_additional_members_are_judged_by_them(X_train, X_val):
    detector = AutoencoderOutlierDetector(1, n_estimators=2, warm_start=True, **SMALL)
    detector.fit(X_train).set_params(n_estimators=3).fit(X_train, X_val=X_val)
    curve = detector.validation_loss_curve_
    assert np.isnan(curve[:4]).all()
    assert np.isfinite(curve[4:]).all()


def test_partial_fit_takes_none(estimator, X_train, X_val):
    with pytest.raises(TypeError, match="X_val"):
        estimator.partial_fit(X_train, X_val=X_val)
    estimator.fit(X_train, X_val=X_val).partial_fit(X_train)
    assert np.isnan(estimator.validation_loss_curve_[-1])


@pytest.mark.parametrize("settings", [{}, {"bottleneck": "gaussian"}, {"trim": 0.3}])
def test_the_same_seed_gives_the_same_fit(settings, estimator, X_train, X_val):
    estimator.set_params(**settings)
    first, second = (clone(estimator).fit(X_train, X_val=X_val) for _ in range(2))
    assert_equal_fits(first, second, X_train)


def test_nothing_of_the_rows_is_kept(estimator, X_train, X_val):
    table = X_val.copy()
    estimator.fit(X_train, X_val=table)
    reference = weakref.ref(table)
    del table
    gc.collect()
    assert reference() is None
    stored = pickle.dumps(estimator)
    values = {row.tobytes() for row in X_val} | {
        row.astype(np.float32).tobytes() for row in X_val
    }
    assert not any(value in stored for value in values)
    loaded = pickle.loads(stored)
    assert_array_equal(loaded.score_samples(X_val), estimator.score_samples(X_val))


# Metadata routing


def test_fit_transform_and_fit_predict_pass_them_on(estimator, X_train, X_val):
    name = "transform" if hasattr(estimator, "transform") else "predict"
    result = getattr(clone(estimator), f"fit_{name}")(X_train, X_val=X_val)
    expected = getattr(estimator.fit(X_train, X_val=X_val), name)(X_train)
    assert_array_equal(result, expected)


@pytest.mark.usefixtures("routing")
def test_a_pipeline_transforms_them_as_the_training_rows(estimator, X_train, X_val):
    weight = 1.0 + np.arange(len(X_val)) % 2
    step = clone(estimator).set_fit_request(X_val=True, sample_weight_val=True)
    steps = [("scaler", StandardScaler()), ("autoencoder", step)]
    pipeline = Pipeline(steps, transform_input=["X_val"])
    pipeline.fit(X_train, X_val=X_val, sample_weight_val=weight)
    scaler = StandardScaler().fit(X_train)
    A, B = scaler.transform(X_train), scaler.transform(X_val)
    expected = estimator.fit(A, X_val=B, sample_weight_val=weight)
    assert_equal_fits(pipeline[-1], expected, A)


@pytest.mark.usefixtures("routing")
def test_a_pipeline_of_two_steps_passes_them_through_the_transformer(X_train, X_val):
    steps = [
        ("reduce", AutoencoderTransformer(3, **SMALL).set_fit_request(X_val=True)),
        ("find", AutoencoderOutlierDetector(1, **SMALL).set_fit_request(X_val=True)),
    ]
    first, second = (clone(step) for _, step in steps)
    pipeline = Pipeline(steps, transform_input=["X_val"]).fit(X_train, X_val=X_val)
    first.fit(X_train, X_val=X_val)
    Z, Z_val = first.transform(X_train), first.transform(X_val)
    assert_equal_fits(pipeline[-1], second.fit(Z, X_val=Z_val), Z)


@pytest.mark.usefixtures("routing")
def test_a_pipeline_without_a_request_refuses_them(estimator, X_train, X_val):
    pipeline = Pipeline([("ae", estimator)], transform_input=["X_val"])
    with pytest.raises(ValueError, match="X_val"):
        pipeline.fit(X_train, X_val=X_val)


@pytest.mark.parametrize("routes", [False, True])
def test_a_search_passes_them_to_every_fit(routes, transformer, X_train, X_val):
    folds = [(np.arange(0, 40), np.arange(40, 60))]
    ae = clone(transformer)
    with sklearn.config_context(enable_metadata_routing=routes):
        if routes:
            ae.set_fit_request(X_val=True)
        search = GridSearchCV(ae, {"n_components": [2]}, cv=folds)
        search.fit(X_train, X_val=X_val)
    expected = transformer.set_params(n_components=2).fit(X_train, X_val=X_val)
    assert_equal_fits(search.best_estimator_, expected, X_train)
    expected.fit(X_train[:40], X_val=X_val)
    score = expected.score(X_train[40:])
    assert search.cv_results_["split0_test_score"] == [score]


def test_the_example_of_the_documentation_runs():
    page = (Path(__file__).parents[1] / "docs" / "tuning.rst").read_text()
    section = page.partition("Early stopping by rows of your own")[2]
    code = re.search(r"code-block:: python\n\n((?: {3}.*\n|\n)+)", section)[1]
    names = {}
    with sklearn.config_context():
        exec(re.sub(r"^ {3}", "", code, flags=re.MULTILINE), names)
    pipeline, X_train, X_val = (names[n] for n in ("pipeline", "X_train", "X_val"))
    scaler = StandardScaler().fit(X_train)
    assert_array_equal(pipeline[0].mean_, scaler.mean_)
    assert pipeline[1].validation_loss_curve_ is not None
    assert names["ae"].score(X_val) > 0.9
