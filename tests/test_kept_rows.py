"""Facts about skae._kept_rows."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import roc_auc_score

from skae import AutoencoderOutlierDetector, _kept_rows
from skae._kept_rows import _n_kept
from skae._neighbors import CORE_SHARE, MAX_ENTRIES, MAX_ROWS, MIN_ROWS
from skae.losses import SquaredError

SMALL = {"n_estimators": 2, "max_epochs": 2, "random_state": 0}
rng = np.random.default_rng(0)
X = rng.normal(size=(90, 3)) @ rng.normal(size=(3, 4))


def fitted(**settings):
    return AutoencoderOutlierDetector(**SMALL, **settings)


def kept(detector):
    """Return the kept rows in the units of the data."""
    module = detector.module_
    factor, shift = module.scaler.factor.cpu(), module.scaler.shift.cpu()
    return module.neighbors.kept.rows * factor.numpy() + shift.numpy()


def test_all_rows_are_kept_where_there_are_few():
    detector = fitted().fit(X)
    assert_allclose(np.sort(kept(detector), axis=0), np.sort(X, axis=0), rtol=1e-5)


def test_the_core_has_the_smallest_errors():
    # The networks are the same with and without neighbors.
    errors = -fitted(n_neighbors=0).fit(X).score_samples(kept(fitted().fit(X)))
    n_core = fitted().fit(X).module_.neighbors.n_core
    assert n_core == round(CORE_SHARE * len(X))
    assert errors[:n_core].max() <= errors[n_core:].min() + 1e-6


@pytest.mark.parametrize(
    ("n_rows", "n_features", "expected"),
    [
        (100, 5, MAX_ROWS),
        (60_000, 5, MAX_ROWS),
        (10**5, 5, 2684),
        (10**7, 5, MIN_ROWS),
        (10**5, 10**5, MAX_ENTRIES // 10**5),
        (10, 10**8, 1),
    ],
)
def test_number_of_kept_rows_is_bounded(n_rows, n_features, expected):
    assert _n_kept(n_rows, n_features) == expected


def test_a_sample_is_kept_where_there_are_many_rows(monkeypatch):
    monkeypatch.setattr(_kept_rows, "MAX_ROWS", 30)
    monkeypatch.setattr(_kept_rows, "MIN_ROWS", 10)
    detector = fitted().fit(X)
    assert len(kept(detector)) == 30
    assert_array_equal(kept(fitted().fit(X[::-1])), kept(detector))
    assert_allclose(detector.training_scores_, detector.score_samples(X), rtol=1e-12)


def test_no_row_is_kept_without_neighbors():
    assert fitted(n_neighbors=0).fit(X).module_.neighbors is None
    assert fitted(bottleneck="gaussian").fit(X).module_.neighbors is not None


class ShiftedLoss(SquaredError):  # noqa: N818
    """Squared error minus 1, which may be negative."""

    def elementwise(self, x, x_hat):
        return super().elementwise(x, x_hat) - 1


def test_negative_errors_are_scores_alone():
    detector = fitted(loss=ShiftedLoss(), error="loss").fit(X)
    assert detector.module_.neighbors is None
    alone = fitted(loss=ShiftedLoss(), error="loss", n_neighbors=0).fit(X)
    assert_array_equal(detector.score_samples(X), alone.score_samples(X))
    assert np.isfinite(detector.score_samples(X)).all()


def test_partial_fit_keeps_rows_of_all_calls_once(monkeypatch):
    detector = fitted()
    for _ in range(2):
        for piece in np.array_split(X, 3):
            detector.partial_fit(piece)
    assert len(kept(detector)) == len(X)
    monkeypatch.setattr(_kept_rows, "MAX_ROWS", 40)
    monkeypatch.setattr(_kept_rows, "MIN_ROWS", 10)
    detector.partial_fit(X[:10] + 1)
    assert len(kept(detector)) == 40
    is_close = np.isclose(kept(detector)[:, None], X[:10] + 1, rtol=1e-4)
    n_new = is_close.all(axis=2).any(axis=1).sum()
    assert 1 <= n_new <= 10  # a share of 10 of 190 rows


@pytest.mark.parametrize(
    ("settings", "n_around"),
    [
        ({"scale": "global"}, 12),
        ({"input_shape": (6, 7)}, 12),
        ({"scale": "global", "n_neighbors": 1}, 0),
        ({"scale": "feature"}, 0),
        ({"scale": None}, 0),
    ],
    ids=str,
)
def test_rows_in_one_unit_have_relative_distances(settings, n_around):
    Y = np.tile(X, 11)[:, :42]
    detector = fitted(**settings).fit(Y)
    assert detector.module_.neighbors.n_around == n_around
    few = fitted(**{**settings, "input_shape": None}).fit(Y[:, :39])
    assert few.module_.neighbors.n_around == 0
    # The number follows the rows of all calls.
    detector.partial_fit(Y + 1)
    assert detector.module_.neighbors.n_around == (17 if n_around else 0)
    detector.set_params(n_neighbors=1).partial_fit(Y)
    assert detector.module_.neighbors.n_around == 0


def test_outliers_near_dense_rows_differ_from_scattered_inliers():
    generator = np.random.default_rng(0)
    scattered = 10 + generator.normal(size=(500, 42))
    dense = 0.1 * generator.normal(size=(400, 42))
    near = 0.5 * generator.normal(size=(50, 42))  # outliers
    test = np.vstack([scattered[400:], dense[300:], near])
    y = np.arange(len(test)) >= 200
    auc = {}
    for n_neighbors in ("auto", 1):
        detector = fitted(scale="global", n_neighbors=n_neighbors)
        detector.fit(np.vstack([scattered[:400], dense[:300]]))
        auc[n_neighbors] = roc_auc_score(y, -detector.score_samples(test))
    assert auc["auto"] > 0.95
    assert auc[1] < 0.8


def test_missing_entries_of_kept_rows_are_the_mean():
    Y = X.copy()
    Y[::2, 1] = np.nan
    detector = fitted().fit(Y)
    n_mean = np.isclose(kept(detector)[:, 1], detector.mean_[1], atol=1e-6).sum()
    assert n_mean == 45
    assert np.isfinite(detector.score_samples(Y)).all()
