"""p_values of AutoencoderOutlierDetector: level, held-out rows, weights, files."""

import pickle

import joblib
import numpy as np
import pytest
import skops.io
from scipy import sparse
from scipy.stats import false_discovery_control

from skae import AutoencoderOutlierDetector, load, save

FAST = {"max_epochs": 6, "random_state": 0}
N_TRAIN = 160


def draw(n_rows, seed):
    """Rows of three factors and noise, of shape (n_rows, 5)."""
    axes = np.random.default_rng(0).standard_normal((3, 5))
    rng = np.random.default_rng([seed, 1])
    noise = rng.standard_normal((n_rows, 5))
    return rng.standard_normal((n_rows, 3)) @ axes + 0.3 * noise


X, NEW = draw(N_TRAIN, 0), draw(1500, 1)


def with_missing_entries(X):
    X = X.copy()
    X[np.random.default_rng(2).random(X.shape) < 0.2] = np.nan
    return X


def fit(X=X, **settings):
    return AutoencoderOutlierDetector(**{**FAST, **settings}).fit(X)


def fit_in_pieces(X, **settings):
    detector = AutoencoderOutlierDetector(**{**FAST, **settings})
    for piece in np.array_split(X, 8):
        detector.partial_fit(piece)
    return detector


def fit_again(X, n_members, **settings):
    detector = fit(X, warm_start=True, n_estimators=n_members[0], **settings)
    for n in n_members[1:]:
        detector.set_params(n_estimators=n).fit(X)
    return detector


@pytest.fixture(scope="module")
def fitted():
    return fit()


# Kinds of fits and rows: a function that fits, and one that changes all rows.
KINDS = {
    "default": (fit, np.asarray),
    "trim=0": (lambda X: fit(X, trim=0), np.asarray),
    "init=pca": (lambda X: fit(X, init="pca"), np.asarray),
    "error=loss": (lambda X: fit(X, error="loss"), np.asarray),
    "corruption": (lambda X: fit(X, corruption="swap"), np.asarray),
    "early_stopping": (lambda X: fit(X, early_stopping=True), np.asarray),
    "cross-validated": (
        lambda X: fit(X, early_stopping="auto", n_estimators=4),
        np.asarray,
    ),
    "2 members": (lambda X: fit(X, n_estimators=2), np.asarray),
    "3 members": (lambda X: fit(X, n_estimators=3), np.asarray),
    "5 members": (lambda X: fit(X, n_estimators=5), np.asarray),
    "missing": (fit, with_missing_entries),
    "sparse": (fit, lambda X: sparse.csr_array(np.where(np.abs(X) < 1, 0, X))),
    "float32": (fit, lambda X: X.astype(np.float32)),
    "discrete": (fit, lambda X: np.round(X)),
    "few values": (fit, np.sign),
    "more members": (lambda X: fit_again(X, (4, 7)), np.asarray),
    "one and more members": (lambda X: fit_again(X, (1, 5)), np.asarray),
    "resumed": (lambda X: fit_again(X, (4, 4)), np.asarray),
    "pieces": (fit_in_pieces, np.asarray),
    "fit and pieces": (lambda X: fit(X).partial_fit(X), np.asarray),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_few_rows_like_the_training_rows_have_small_p_values(kind):
    fit_rows, change = KINDS[kind]
    rows = change(np.vstack([X, NEW]))
    p_values = fit_rows(rows[:N_TRAIN]).p_values(rows[N_TRAIN:])
    assert p_values.dtype == np.float64
    assert p_values.shape == (len(NEW),)
    assert np.all((p_values > 0) & (p_values <= 1))
    for level in (0.05, 0.1, 0.2):
        # The error is that of the training rows and of the new rows.
        error = np.sqrt(level * (1 - level) * (1 / N_TRAIN + 1 / len(NEW)))
        assert np.mean(p_values <= level) <= level + 2 * error


def test_rows_are_scored_by_members_that_did_not_learn_them(fitted):
    """Training rows have errors as large as new rows, not smaller ones."""
    trained, trim = fitted._trained, fit(X[:40], trim=0, max_epochs=60)
    held_out = np.concatenate([s.values for s in trim._trained.held_out_scores])
    new = np.median(trim.score_samples(NEW))
    learnt = np.median(trim.score_samples(X[:40]))
    assert abs(np.median(held_out) - new) < 0.5 * (learnt - new)
    assert sum(len(s.values) for s in trained.held_out_scores) == N_TRAIN


@pytest.mark.parametrize("n_members", [3, 16])
def test_weights_are_repetitions_and_order_is_nothing(n_members):
    rng = np.random.default_rng(0)
    weight = rng.integers(0, 4, N_TRAIN)
    weighted = AutoencoderOutlierDetector(n_estimators=n_members, **FAST)
    expected = weighted.fit(X, sample_weight=weight).p_values(NEW)
    repeated = rng.permutation(np.repeat(X, weight, axis=0))
    p_values = fit(repeated, n_estimators=n_members).p_values(NEW)
    np.testing.assert_array_equal(p_values, expected)


def test_sparse_float32_and_dense_rows_have_the_same_p_values():
    rows = np.where(np.abs(X) < 1, 0, X).astype(np.float32)
    dense = fit(rows.astype(np.float64))
    expected = dense.p_values(NEW)
    np.testing.assert_array_equal(fit(sparse.csr_array(rows)).p_values(NEW), expected)
    np.testing.assert_array_equal(dense.p_values(sparse.csr_array(NEW)), expected)
    np.testing.assert_array_equal(fit(rows).p_values(NEW), expected)


def test_p_values_are_those_of_the_row_alone(fitted):
    alone = [fitted.p_values(row[None])[0] for row in NEW[:20]]
    np.testing.assert_array_equal(fitted.p_values(NEW[:20]), alone)


def test_an_outlier_has_the_smallest_p_value(fitted):
    rows = np.vstack([NEW[:50], np.full((1, 5), 30.0), np.full((1, 5), 1e300)])
    p_values = fitted.p_values(rows)
    np.testing.assert_array_equal(p_values[-2:], 1 / (1 + N_TRAIN))
    assert false_discovery_control(p_values)[-2:].max() <= 0.2


def test_a_row_without_an_observed_entry_has_the_largest_p_value(fitted):
    assert fitted.p_values(np.full((1, 5), np.nan)) == 1


def test_steps_that_are_recorded_give_the_same_members():
    settings = {"max_epochs": 40, "batch_size": 64, "n_estimators": 4, "trim": 0.2}
    recorded, eager = (fit(compile=c, **settings) for c in ("auto", False))
    np.testing.assert_allclose(
        recorded.score_samples(NEW), eager.score_samples(NEW), rtol=0.02, atol=0.01
    )


def test_resumed_fits_find_the_folds_again():
    detector = fit(warm_start=True, n_estimators=4)
    holdout = detector._trained.holdout
    for rows in (X, X[::-1], X[:90]):
        detector.fit(rows)
        resumed = detector._trained.holdout
        np.testing.assert_array_equal(resumed.bounds, holdout.bounds)
        assert resumed.seed == holdout.seed
    more = detector.set_params(n_estimators=6, random_state=1).fit(X)._trained.holdout
    np.testing.assert_array_equal(more.bounds, holdout.bounds)
    np.testing.assert_array_equal(more.group[:4], holdout.group)


def test_members_that_learnt_all_rows_do_not_judge():
    detector = fit_again(X, (1, 5))
    np.testing.assert_array_equal(detector._trained.holdout.group, [-1, 0, 1, 2, 3])


@pytest.mark.parametrize(
    ("settings", "n_rows"),
    [
        ({"n_estimators": 1}, N_TRAIN),
        ({"bottleneck": "gaussian", "n_estimators": 2}, N_TRAIN),
        ({"network": "conv"}, N_TRAIN),
        ({}, 19),
    ],
)
def test_p_values_need_rows_that_were_not_learnt(settings, n_rows):
    detector = AutoencoderOutlierDetector(**FAST, **settings)
    assert hasattr(detector, "p_values")  # not known before fit
    detector.fit(X[:n_rows])
    assert not hasattr(detector, "p_values")
    with pytest.raises(AttributeError) as error:
        detector.p_values(NEW)
    assert "Call recalibrate(X) with rows that were not" in str(error.value)


def test_p_values_by_other_rows_rank_their_scores():
    detector = fit(n_estimators=1)
    scores = detector.score_samples(NEW[:99])
    record = detector._trained.scores._replace(values=scores, weight=np.ones(99))
    detector._calibration = record
    p_values = detector.p_values(NEW[:99])
    expected = (1 + np.argsort(np.argsort(scores)) + 1) / 100
    np.testing.assert_array_equal(p_values, expected)


def test_scores_of_earlier_pieces_are_condensed(monkeypatch):
    monkeypatch.setattr("skae._scores.MAX_RECORDED", 80)
    detector = fit_in_pieces(X, n_estimators=4)
    assert sum(len(s.values) for s in detector._trained.held_out_scores) <= 100
    assert np.mean(detector.p_values(NEW) <= 0.1) < 0.15


def test_single_rows_can_be_learnt_in_pieces():
    detector = AutoencoderOutlierDetector(n_estimators=4, **FAST)
    for row in X[:30]:
        detector.partial_fit(row[None])
    assert np.all(np.isfinite(detector.p_values(NEW)))


def test_many_rows_are_scored_in_part(monkeypatch):
    monkeypatch.setattr("skae._scores.MAX_HELD_OUT_ROWS", 50)
    detector = fit(n_estimators=4)
    assert sum(len(s.values) for s in detector._trained.held_out_scores) == 50
    assert detector.p_values(np.full((1, 5), 1e9)) == 1 / 51


@pytest.mark.parametrize("how", ["pickle", "joblib", "save", "skops"])
def test_p_values_are_stored(how, fitted, tmp_path):
    path = tmp_path / "model"
    if how == "pickle":
        loaded = pickle.loads(pickle.dumps(fitted))
    elif how == "joblib":
        joblib.dump(fitted, path)
        loaded = joblib.load(path)
    elif how == "save":
        save(fitted, path)
        loaded = load(path)
    else:
        written = skops.io.dumps(fitted)
        untrusted = skops.io.get_untrusted_types(data=written)
        loaded = skops.io.loads(written, trusted=untrusted)
    np.testing.assert_array_equal(loaded.p_values(NEW), fitted.p_values(NEW))
    loaded.set_params(warm_start=True).fit(X)
    np.testing.assert_array_equal(
        loaded._trained.holdout.bounds, fitted._trained.holdout.bounds
    )
