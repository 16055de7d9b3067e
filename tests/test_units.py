"""Which rows are taken for values of one bounded quantity."""

import pickle

import numpy as np
import pytest
from scipy import sparse
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.preprocessing import StandardScaler, minmax_scale

from skae import AutoencoderOutlierDetector
from skae._rows import Rows
from skae._summary import share_one_unit, summarize

RNG = np.random.default_rng(0)
IMAGES, LABELS = load_digits(return_X_y=True)
WIDE = RNG.lognormal(size=(200, 60)) * RNG.lognormal(sigma=3, size=60)
RARE = (RNG.random((200, 60)) < RNG.uniform(0.02, 0.5, 60)).astype(float)


def one_unit(X, **weight):
    return share_one_unit(summarize(Rows(X, **weight)))


ONE_UNIT = {
    "images": IMAGES,
    **{f"images of {digit}": IMAGES[digit == LABELS] for digit in (0, 1, 6, 9)},
    "images of two values": (IMAGES > 8).astype(float)[:, IMAGES.max(axis=0) > 8],
    "columns of two values": RARE,
}
DIFFERENT_UNITS = {
    "measurements": load_breast_cancer().data,
    "many columns": WIDE,
    "counts": RNG.poisson(RNG.lognormal(sigma=2, size=60), (200, 60)).astype(float),
    "standardised": StandardScaler().fit_transform(WIDE),
    "standardised images": StandardScaler().fit_transform(IMAGES),
    "standardised columns of two values": StandardScaler().fit_transform(RARE),
    "scaled to the same range": minmax_scale(WIDE),
    "measurements and columns of two values": np.hstack([WIDE[:, :8], RARE]),
    "scaled measurements and two values": np.hstack([minmax_scale(WIDE)[:, :8], RARE]),
    "few columns": IMAGES[:, 18:38],
    "one row": IMAGES[:1],
    "constant": np.ones((20, 60)),
}
each_table = pytest.mark.parametrize(
    ("X", "expected"),
    [(X, True) for X in ONE_UNIT.values()]
    + [(X, False) for X in DIFFERENT_UNITS.values()],
    ids=[*ONE_UNIT, *DIFFERENT_UNITS],
)


@each_table
def test_unit_of_kinds_of_tables(X, expected):
    assert one_unit(X) == expected


@each_table
@pytest.mark.parametrize(("factor", "shift"), [(1 / 255, 0), (-3.7, 0.1), (1e9, 1e3)])
def test_unit_does_not_depend_on_the_units_of_all_features(X, expected, factor, shift):
    assert one_unit(factor * X + shift) == expected


@each_table
def test_unit_of_weighted_sparse_and_float32_rows(X, expected):
    counts = RNG.integers(1, 4, len(X))
    repeated = np.repeat(X, counts, axis=0)
    assert one_unit(repeated) == one_unit(X, weight=counts.astype(float)) == expected
    assert one_unit(X[::-1, ::-1].astype(np.float32)) == expected
    assert one_unit(sparse.csr_array(X)) == expected


def test_unit_of_rows_with_missing_entries():
    X = IMAGES.copy()
    X[RNG.random(X.shape) < 0.1] = np.nan
    X[:, 0] = np.nan
    assert one_unit(X)


def fitted(X, **settings):
    settings = {"max_epochs": 1, "hidden_layer_sizes": (2,), **settings}
    return AutoencoderOutlierDetector(random_state=0, **settings).fit(X)


def scale_of(detector):
    factor = detector.module_.scaler.factor.numpy(force=True)
    return "global" if np.ptp(factor) == 0 else "feature"


@pytest.mark.parametrize(
    ("X", "scale"),
    [(IMAGES[:40], "global"), (RARE, "global"), (WIDE, "feature")],
    ids=["images", "columns of two values", "measurements"],
)
def test_scale_follows_the_unit(X, scale):
    detector = fitted(X)
    assert scale_of(detector) == scale
    same = fitted(X, scale=scale)
    np.testing.assert_array_equal(detector.training_scores_, same.training_scores_)


@pytest.mark.parametrize(
    "settings", [{"input_shape": (6, 10)}, {"network": "conv"}], ids=str
)
def test_a_shape_means_one_unit(settings):
    settings["hidden_layer_sizes"] = "auto"
    assert scale_of(fitted(WIDE[:40], **settings)) == "global"
    assert scale_of(fitted(WIDE[:40], scale="feature", **settings)) == "feature"


def test_auto_of_tables_in_different_units_is_as_written():
    auto = fitted(WIDE)
    settings = {"scale": "feature", "loss": "log_error", "error": "log"}
    same = fitted(WIDE, n_estimators=16, **settings)
    np.testing.assert_array_equal(auto.training_scores_, same.training_scores_)
    assert auto.n_components_ == 8


@pytest.mark.parametrize(
    ("n_features", "loss"), [(64, "log_error"), (576, "squared_error")]
)
def test_auto_of_rows_in_one_unit_is_as_written(n_features, loss):
    X = np.tile(IMAGES[:40], 9)[:, :n_features]
    auto = fitted(X)
    settings = {"scale": "global", "loss": loss, "error": "loss"}
    same = fitted(X, n_estimators=4, n_components=16, **settings)
    np.testing.assert_array_equal(auto.training_scores_, same.training_scores_)
    contributions = auto.feature_contributions(X)
    np.testing.assert_allclose(contributions.sum(axis=1), -auto.training_scores_)


def test_loss_of_auto_follows_an_explicit_error():
    log = fitted(IMAGES[:40], error="log")
    assert log.module_.residual_scale is not None
    assert fitted(IMAGES[:40]).module_.residual_scale is None


def continued_in_pieces(detector, X):
    return detector.partial_fit(X)


def continued_by_warm_start(detector, X):
    return detector.set_params(warm_start=True).fit(X)


def continued_with_more_members(detector, X):
    return detector.set_params(warm_start=True, n_estimators=6).fit(X)


@pytest.mark.parametrize(
    "proceed",
    [continued_in_pieces, continued_by_warm_start, continued_with_more_members],
)
@pytest.mark.parametrize(
    ("first", "next_"),
    [(IMAGES[:60], WIDE[:60, :1] + IMAGES[:60]), (WIDE, RARE)],
    ids=["one unit", "different units"],
)
def test_the_first_fit_determines_scale_and_error(proceed, first, next_):
    detector = pickle.loads(pickle.dumps(fitted(first, n_estimators=4)))
    error = detector._trained.scores.error
    scale = scale_of(detector)
    proceed(detector, next_)
    assert scale_of(detector) == scale
    assert detector._trained.scores.error == error


def test_models_of_earlier_versions_had_a_scale_for_each_feature():
    detector = fitted(WIDE)
    del vars(detector._trained)["scale"]
    detector.partial_fit(WIDE)
    assert detector.module_.residual_scale is not None
