"""Tests of skae.model_selection."""

import pickle
import warnings
from functools import partial

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from scipy.stats import spearmanr
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    get_scorer,
    precision_score,
    recall_score,
    roc_auc_score,
)
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler, scale
from sklearn.svm import OneClassSVM
from sklearn.utils.validation import _num_samples

from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae.model_selection import (
    METRICS,
    AgreementScorer,
    ArtificialOutlierScorer,
    elbow,
    explained_variance,
    one_standard_error,
    outlier_scorer,
)

LOF = LocalOutlierFactor(novelty=True)


@pytest.fixture(scope="module")
def X():
    X = np.random.default_rng(0).standard_normal((200, 3))
    X[:20] = X[:20] / 2 + 2
    return X


@pytest.fixture(scope="module")
def y():
    """Labels of half of the outliers and of some inliers; most rows have no label."""
    y = np.zeros(200, dtype=int)
    y[:10], y[50:110] = -1, 1
    return y


@pytest.fixture(scope="module")
def forest(X):
    return IsolationForest(n_estimators=20, random_state=0).fit(X)


# Scorers with labels


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("roc_auc", lambda y, s, p: roc_auc_score(y, s)),
        ("average_precision", lambda y, s, p: average_precision_score(y == -1, -s)),
        ("balanced_accuracy", lambda y, s, p: balanced_accuracy_score(y, p)),
        ("f1", lambda y, s, p: f1_score(y, p, pos_label=-1)),
        ("precision", lambda y, s, p: precision_score(y, p, pos_label=-1)),
        ("recall", lambda y, s, p: recall_score(y, p, pos_label=-1)),
    ],
)
def test_rows_without_a_label_are_not_scored(metric, expected, X, y, forest):
    known = y != 0
    expected_score = expected(
        y[known], forest.decision_function(X[known]), forest.predict(X[known])
    )
    assert outlier_scorer(metric)(forest, X, y) == pytest.approx(expected_score)


@pytest.mark.parametrize("metric", ["roc_auc", "balanced_accuracy"])
def test_scores_equal_those_of_scikit_learn_if_all_rows_are_labelled(metric, X, forest):
    y = np.where(np.arange(200) < 20, -1, 1)
    expected = get_scorer(metric)(forest, X, y)
    assert outlier_scorer(metric)(forest, X, y) == pytest.approx(expected)


@pytest.mark.parametrize("metric", ["average_precision", "f1", "precision", "recall"])
def test_outliers_are_the_positive_class_unlike_in_scikit_learn(metric, X, forest):
    y = np.where(np.arange(200) < 20, -1, 1)
    theirs = get_scorer(metric)(forest, X, y)
    assert theirs > 0.8
    assert outlier_scorer(metric)(forest, X, y) < theirs


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("sure", [True, False])
def test_best_and_worst_scores(metric, sure, X):
    class Oracle(OneClassSVM):
        def decision_function(self, X):
            return np.where(X[:, 0] > 0, 1.0, -1.0) * (1 if sure else -1)

        def predict(self, X):
            return np.sign(self.decision_function(X)).astype(int)

    y = np.where(X[:, 0] > 0, 1, -1)
    score = outlier_scorer(metric)(Oracle().fit(X), X, y)
    if sure:
        assert score == 1
    elif metric == "average_precision":
        assert score == pytest.approx(np.mean(y == -1))  # all tied below the inliers
    else:
        assert score == 0


def test_weights_are_repetitions(X, y, forest):
    weight = np.random.default_rng(0).integers(1, 4, size=200)
    repeated = np.repeat(np.arange(200), weight)
    for metric in METRICS:
        scorer = outlier_scorer(metric)
        weighted = scorer(forest, X, y, sample_weight=weight)
        assert weighted == pytest.approx(scorer(forest, X[repeated], y[repeated]))


def test_score_samples_replaces_a_missing_decision_function(X, y):
    mixture = GaussianMixture(random_state=0).fit(X)
    expected = roc_auc_score(y[y != 0], mixture.score_samples(X[y != 0]))
    assert outlier_scorer()(mixture, X, y) == pytest.approx(expected)


@pytest.mark.parametrize(
    "detector",
    [
        LOF,
        make_pipeline(
            StandardScaler(), IsolationForest(n_estimators=10, random_state=0)
        ),
        AutoencoderOutlierDetector(
            n_estimators=2, hidden_layer_sizes=(4,), max_epochs=2, random_state=0
        ),
    ],
)
def test_search_with_all_scorers(detector, X, y):
    last = detector[-1] if isinstance(detector, Pipeline) else detector
    name = "n_neighbors" if last is LOF else "contamination"
    param = f"{detector.steps[-1][0]}__{name}" if last is not detector else name
    scoring = {metric: outlier_scorer(metric) for metric in METRICS}
    scoring |= {"agree": AgreementScorer(LOF), "artificial": ArtificialOutlierScorer()}
    search = GridSearchCV(
        detector,
        {param: [5, 20] if last is LOF else [0.05, 0.3]},
        scoring=scoring,
        refit="average_precision",
        cv=StratifiedKFold(2),
        error_score="raise",
    )
    search = clone(search).fit(X, y)
    for metric in scoring:
        assert np.isfinite(search.cv_results_[f"mean_test_{metric}"]).all()
    again = pickle.loads(pickle.dumps(search))
    assert again.score(X, y) == search.score(X, y)


@pytest.mark.slow
def test_n_jobs_does_not_change_the_scores(X, y):
    def search(n_jobs):
        scoring = {"labels": outlier_scorer("f1"), "none": ArtificialOutlierScorer()}
        fitted = GridSearchCV(
            LOF,
            {"n_neighbors": [5, 20]},
            scoring=scoring,
            refit=partial(one_standard_error, param="n_neighbors", metric="labels"),
            cv=StratifiedKFold(2),
            n_jobs=n_jobs,
        ).fit(X, y)
        return [fitted.cv_results_[f"mean_test_{name}"] for name in scoring]

    assert_array_equal(search(2), search(None))


def test_sample_weight_is_routed(X, y):
    with config_context(enable_metadata_routing=True):
        scorer = outlier_scorer().set_score_request(sample_weight=True)
        weight = np.where(np.arange(200) % 2, 1.0, 0.0)
        folds = StratifiedKFold(2)
        scores = cross_val_score(
            LOF, X, y, scoring=scorer, cv=folds, params={"sample_weight": weight}
        )
        expected = [
            outlier_scorer()(clone(LOF).fit(X[train]), X[odd], y[odd])
            for train, test in folds.split(X, y)
            for odd in [test[test % 2 == 1]]
        ]
    assert_allclose(scores, expected)


def test_fold_without_both_classes_raises_a_helpful_error(X, y, forest):
    few = np.where(y == 1, 0, y)
    with pytest.raises(ValueError, match=r"10 are labelled -1.* 0 are .*Stratified"):
        outlier_scorer()(forest, X, few)
    with pytest.warns(
        UserWarning, match="0 are labelled -1.*StratifiedKFold"
    ) as warned:
        scores = cross_val_score(LOF, X, y, scoring=outlier_scorer(), cv=4)
    assert np.isnan(scores).sum() == len(warned) == 4


@pytest.mark.parametrize(
    ("y", "named"),
    [([2] * 200, r"got \[2\]"), ([np.nan] * 200, "nan"), (["out"] * 200, "'out'")],
)
def test_other_labels_are_rejected(y, named, X, forest):
    with pytest.raises(ValueError, match=f"-1 for outliers, 1 for inliers.*{named}"):
        outlier_scorer()(forest, X, y)


def test_unknown_metric_is_rejected():
    with pytest.raises(ValueError, match=r"metric must be one of .*'f1'.*got 'auc'"):
        outlier_scorer("auc")


# Scorers without labels


def test_artificial_outliers_are_detected_by_a_flexible_detector():
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 400)
    X = np.column_stack([np.cos(angle), np.sin(angle)])
    score = ArtificialOutlierScorer()
    assert score(OneClassSVM(gamma=10).fit(X), X) > 0.8
    assert score(OneClassSVM(gamma=1e-3).fit(X), X) < 0.6


def test_independent_features_score_one_half():
    X = np.random.default_rng(0).standard_normal((2_000, 3))
    score = ArtificialOutlierScorer()(GaussianMixture(random_state=0).fit(X), X)
    assert score == pytest.approx(0.5, abs=0.03)


class RecordingDetector:
    """A detector that records the rows that it scores."""

    def __init__(self):
        self.scored = []

    def score_samples(self, X):
        self.scored.append(X)
        return np.arange(_num_samples(X), dtype=float)


@pytest.mark.parametrize("n_samples", [None, 7, 500])
@pytest.mark.parametrize(
    "container",
    [
        np.asarray,
        sparse.csr_array,
        sparse.csr_matrix,
        partial(pd.DataFrame, columns=["a", "b", "b"]),
        partial(pl.DataFrame, schema=["a", "b", "c"]),
        np.ndarray.tolist,
    ],
)
def test_artificial_outliers_have_the_container_of_the_rows(container, n_samples):
    X = np.arange(120.0).reshape(40, 3)
    rows, detector = container(X), RecordingDetector()
    ArtificialOutlierScorer(n_samples=n_samples)(detector, rows)
    artificial = detector.scored[1]
    assert artificial.shape == (n_samples or 40, 3)
    if hasattr(rows, "columns"):
        assert list(artificial.columns) == list(rows.columns)
    dense = artificial.toarray() if sparse.issparse(artificial) else artificial
    for drawn, column in zip(np.asarray(dense).T, X.T, strict=True):
        assert set(drawn) <= set(column)
    positions = (np.asarray(dense) - [0, 1, 2]) // 3
    assert (positions[:, 0] != positions[:, 1]).any()


def test_artificial_outliers_keep_dtypes():
    X = pd.DataFrame({"a": [1, 2, 3], "b": pd.Categorical(["x", "y", "x"])})
    detector = RecordingDetector()
    ArtificialOutlierScorer(n_samples=5)(detector, X)
    assert_array_equal(detector.scored[1].dtypes, X.dtypes)


@pytest.mark.parametrize("scorer", [ArtificialOutlierScorer, AgreementScorer])
def test_random_state_determines_the_score(scorer, X, forest):
    assert scorer(random_state=3)(forest, X) == scorer(random_state=3)(forest, X)
    assert scorer(random_state=3)(forest, X) != scorer(random_state=4)(forest, X)
    assert clone(scorer(random_state=3)).random_state == 3


def test_missing_entries_are_supported(X):
    X = X.copy()
    X[::5, 0] = np.nan
    forest = IsolationForest(n_estimators=20, random_state=0).fit(X)
    assert 0 < ArtificialOutlierScorer()(forest, X) < 1
    assert -1 < AgreementScorer()(forest, X) <= 1


def test_agreement_is_the_rank_correlation(X, forest):
    reference = OneClassSVM(gamma=0.1)
    expected = spearmanr(
        forest.decision_function(X), clone(reference).fit(X).decision_function(X)
    )
    score = AgreementScorer(reference)(forest, X)
    assert score == pytest.approx(expected.statistic)
    assert not hasattr(reference, "offset_")


def test_agreement_of_constant_scores_is_zero(X, forest):
    forest_of_zeros = IsolationForest(n_estimators=10, random_state=0).fit(
        np.zeros((200, 3))
    )
    assert AgreementScorer()(forest_of_zeros, np.zeros((50, 3))) == 0
    assert AgreementScorer(GaussianMixture())(forest, X) != 0


@pytest.mark.parametrize("scorer", [ArtificialOutlierScorer(), AgreementScorer()])
def test_scores_that_are_not_finite_are_rejected(scorer, X):
    class Broken(RecordingDetector):
        def score_samples(self, X):
            return np.full(len(X), np.nan)

    with pytest.raises(ValueError, match="scores contains NaN"):
        scorer(Broken(), X)
    with pytest.raises(AttributeError, match="decision_function, score_samples"):
        scorer(PCA().fit(X).components_, X)


@pytest.mark.parametrize("n_samples", [0, 2.5])
def test_invalid_n_samples_is_rejected(n_samples, X, forest):
    with pytest.raises(ValueError, match=rf"integer >= 1, got {n_samples}"):
        ArtificialOutlierScorer(n_samples=n_samples)(forest, X)


# Number of components


def test_explained_variance_equals_that_of_pca_and_of_the_transformer(digits):
    X = digits[:200]
    pca = PCA(5, random_state=0).fit(X)
    expected = pca.explained_variance_ratio_.sum()
    assert explained_variance(pca, X) == pytest.approx(expected)
    ae = AutoencoderTransformer(2, hidden_layer_sizes=(8,), max_epochs=2).fit(X)
    assert explained_variance(ae, X) == pytest.approx(ae.score(X))


def test_explained_variance_of_a_pipeline_is_in_the_units_of_its_input(digits):
    X = digits[:200]
    pipeline = make_pipeline(StandardScaler(), PCA(5, random_state=0)).fit(X)
    X_hat = pipeline.inverse_transform(pipeline.transform(X))
    expected = 1 - ((X - X_hat) ** 2).sum() / ((X - X.mean(axis=0)) ** 2).sum()
    assert explained_variance(pipeline, X) == pytest.approx(expected)


def results(values, scores, name="n_components", **others):
    """The results of a search with these settings."""
    scores = np.asarray(scores, dtype=float)
    cv_results = {f"param_{name}": np.ma.array(values, dtype=object)}
    cv_results |= {f"param_{other}": np.ma.array(others[other]) for other in others}
    cv_results |= {f"split{i}_test_score": column for i, column in enumerate(scores.T)}
    return cv_results | {"mean_test_score": scores.mean(axis=1)}


def test_fewest_components_within_one_standard_error():
    # The best, 4, has a mean of 0.8 and a standard error of 0.1.
    scores = [[0.6, 0.6], [0.71, 0.71], [0.75, 0.75], [0.7, 0.9], [0.75, 0.76]]
    assert one_standard_error(results([1, 2, 3, 4, 5], scores)) == 1
    assert one_standard_error(results([5, 4, 3, 2, 1], scores)) == 4


def test_best_setting_is_chosen_among_equal_numbers_of_components():
    scores = [[0.7, 0.9], [0.75, 0.75], [0.78, 0.78], [0.78, 0.78]]
    assert one_standard_error(results([3, 2, 2, 2], scores, alpha=[1, 1, 2, 3])) == 2


def test_settings_without_a_finite_score_are_ignored():
    scores = [[np.nan, 0.9], [0.5, 0.6], [0.5, 0.6]]
    assert one_standard_error(results([1, 2, 3], scores)) == 1
    with pytest.raises(ValueError, match="No setting has a finite mean score"):
        one_standard_error(results([1, 2], [[np.nan, 1], [1, np.nan]]))


finite = st.floats(-100, 100).map(lambda value: round(value, 3))


@given(
    scores=hnp.arrays(
        float, st.tuples(st.integers(1, 8), st.integers(2, 5)), elements=finite
    ),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_one_standard_error_property(scores, data):
    values = data.draw(
        st.lists(st.integers(1, 5), min_size=len(scores), max_size=len(scores))
    )
    chosen = one_standard_error(results(values, scores))
    means = scores.mean(axis=1)
    best = means.argmax()
    error = scores[best].std(ddof=1) / np.sqrt(scores.shape[1])
    near = means >= means[best] - error
    assert near[chosen]
    assert values[chosen] == min(np.array(values)[near])
    # With more splits, the standard error is smaller and the choice not smaller.
    doubled = one_standard_error(results(values, np.hstack([scores, scores])))
    assert values[doubled] >= values[chosen]


def test_search_is_refitted_with_the_chosen_setting(digits):
    pipeline = make_pipeline(StandardScaler(with_std=False), PCA(random_state=0))
    search = GridSearchCV(
        pipeline,
        {"pca__n_components": [1, 2, 3], "pca__whiten": [True, False]},
        scoring=explained_variance,
        refit=one_standard_error,
    ).fit(digits[:100])
    means = search.cv_results_["mean_test_score"]
    assert search.best_index_ == one_standard_error(search.cv_results_)
    assert search.best_estimator_[-1].n_components_ == 3
    assert means[search.best_index_] == means.max()


@pytest.mark.parametrize(
    ("cv_results", "settings", "message"),
    [
        (results([1], [[1, 2]], "alpha"), {}, "no parameters n_components, .'alpha'"),
        (
            results([1], [[1, 2]], "a__n_components", b__n_components=[2]),
            {},
            r"2 parameters n_components, \['a__n_components', 'b__n_components'\]",
        ),
        (results([1], [[1, 2]]), {"param": "k"}, r"param must be one of .*got 'k'"),
        (results([1], [[1, 2]]), {"metric": "r2"}, r"one of \['score'\], got 'r2'"),
        (results(["auto", 2], [[1, 2]] * 2), {}, "must be numbers, got 'auto'"),
        (results([1], [[1]]), {}, "at least two splits"),
    ],
)
def test_invalid_results_are_rejected(cv_results, settings, message):
    with pytest.raises(ValueError, match=message):
        one_standard_error(cv_results, **settings)


def test_settings_without_the_parameter_are_rejected():
    cv_results = results([1, 2], [[1, 2], [1, 2]])
    cv_results["param_n_components"][1] = np.ma.masked
    with pytest.raises(ValueError, match="n_components must be set in all settings"):
        one_standard_error(cv_results)


def test_param_selects_another_parameter():
    scores = [[0.8, 0.9], [0.85, 0.86]]
    cv_results = results([3, 2], scores, "clf__depth", n_components=[1, 2])
    assert one_standard_error(cv_results, param="clf__depth") == 1
    assert one_standard_error(cv_results) == 0


# The elbow

curves = st.lists(finite, min_size=3, max_size=12)


def heights(k, s):
    """Heights of a curve above its chord."""
    return s - s[0] - (k - k[0]) / (k[-1] - k[0]) * (s[-1] - s[0])


@given(curves, st.data())
@settings(max_examples=100, deadline=None)
def test_elbow_property(s, data):
    k = data.draw(
        st.lists(
            st.integers(1, 500), min_size=len(s), max_size=len(s), unique=True
        ).map(sorted)
    )
    k, s = np.array(k), np.array(s)
    height = heights(k, s)
    result = elbow(k, s)
    if height.max() <= 0:
        assert result is None
        return
    # Exclude heights that are rounding errors.
    assume(height.max() > 1e-8 * np.ptp(s) + 1e-14 * np.abs(s).max())
    assert result in k[1:-1]
    assert height[k == result][0] >= height.max() - 1e-8 * np.ptp(s)
    # The elbow does not depend on the order of the points.
    order = data.draw(st.permutations(range(len(s))))
    assert elbow(k[order], s[order]) == result
    # Nor does it depend on the units, unless rounding breaks a tie.
    assume(np.sum(height > height.max() - 1e-6 * np.ptp(s)) == 1)
    assume(np.ptp(s) > 1e-6)  # the offset would round the curve away
    assert elbow(3 * k + 5, 7 * s - 2) == 3 * result + 5


@given(st.integers(3, 30), st.floats(-50, 50), st.floats(-50, 50))
@example(3, 1e-12, 32.0)
@settings(deadline=None)
def test_straight_curve_has_no_elbow(n, slope, start):
    k = np.arange(n)
    assert elbow(k, start + slope * k) is None


@given(st.integers(3, 30), st.floats(1.1, 4))
@settings(deadline=None)
def test_only_concave_curves_have_an_elbow(n, power):
    k = np.arange(1, n + 1)
    assert elbow(k, (k / n) ** power) is None
    assert 1 < elbow(k, (k / n) ** (1 / power)) < n


def test_corner_is_the_elbow():
    k = np.arange(1, 11)
    assert elbow(k, np.minimum(k, 4)) == 4
    assert elbow(k, 0.1 * k + np.minimum(k, 7)) == 7
    assert type(elbow(k, np.minimum(k, 4))) is int


def test_curves_of_fewer_than_three_points_have_no_elbow():
    assert elbow([1, 2], [0.1, 0.9]) is None
    assert elbow([1], [0.1]) is None


@pytest.mark.parametrize(
    ("k", "s", "message"),
    [
        ([1, 1, 2], [0, 1, 2], "distinct numbers"),
        ([1, 2, 3], [0, 1], "inconsistent numbers of samples"),
        ([1, 2, 3], [0, np.nan, 1], "scores contains NaN"),
        (["a", "b", "c"], [0, 1, 2], "n_components must be numbers"),
        ([[1, 2], [3, 4]], [0, 1], "should be a 1d array"),
    ],
)
def test_invalid_curves_are_rejected(k, s, message):
    with pytest.raises(ValueError, match=message):
        elbow(k, s)


# One estimator with ordered components

CANCER = load_breast_cancer().data[:60]


@pytest.fixture(scope="module")
def ordered():
    X = scale(load_wine().data)
    settings = {"hidden_layer_sizes": (8,), "max_epochs": 20, "random_state": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return AutoencoderTransformer(8, ordered=True, **settings).fit(X)


def test_the_elbow_of_an_ordered_estimator_is_that_of_its_ratios(ordered):
    explained = ordered.explained_variance_ratio_.cumsum()
    expected = elbow(np.arange(1, 9), explained)
    assert 1 < expected < 8
    assert elbow(ordered) == expected
    assert elbow(make_pipeline(StandardScaler(), ordered)) == expected
    assert elbow(ordered.truncate(2)) is None


def test_one_standard_error_of_an_ordered_estimator_is_over_the_rows(ordered):
    curve = ordered._trained.ordered.curve
    best = curve.explained.argmax()
    limit = curve.explained[best] - curve.standard_error[best]
    expected = int(np.argmax(curve.explained >= limit)) + 1
    k = one_standard_error(ordered)
    assert k == expected
    assert type(k) is int
    assert ordered.truncate(k).n_components_ == k
    assert one_standard_error(pickle.loads(pickle.dumps(ordered))) == expected


def test_a_search_over_ordered_estimators_has_the_curve_of_the_best():
    X = scale(load_wine().data)
    search = GridSearchCV(
        AutoencoderTransformer(4, ordered=True, max_epochs=3, random_state=0),
        {"hidden_layer_sizes": [(4,), (8,)]},
        cv=2,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(X)
    assert one_standard_error(search) == one_standard_error(search.best_estimator_)


@pytest.mark.parametrize("choose", [elbow, one_standard_error])
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PCA(2).fit(CANCER), TypeError, "AutoencoderTransformer"),
        (lambda: (1, 2, 3), TypeError, "estimator"),
        (lambda: AutoencoderTransformer(ordered=True), NotFittedError, "fit"),
        (lambda: brief().fit(CANCER), ValueError, "no order.*ordered=True"),
        (
            lambda: brief(ordered=True).fit(CANCER).partial_fit(CANCER),
            ValueError,
            "not by partial_fit",
        ),
    ],
    ids=["another class", "a tuple", "not fitted", "not ordered", "partial_fit"],
)
def test_other_estimators_are_refused(choose, make, error, message):
    with pytest.raises(error, match=message):
        choose(make())


def brief(**settings):
    settings = {"early_stopping": False, "max_epochs": 1, **settings}
    return AutoencoderTransformer(hidden_layer_sizes=(4,), random_state=0, **settings)


def test_training_rows_choose_no_number_of_components():
    model = brief(ordered=True).fit(CANCER)
    with pytest.raises(ValueError, match="held out no rows"):
        one_standard_error(model)


def test_names_of_results_are_refused_for_an_estimator(ordered):
    for names in ({"param": "n_components"}, {"metric": "r2"}):
        with pytest.raises(ValueError, match="cv_results is an estimator"):
            one_standard_error(ordered, **names)


def test_one_held_out_row_has_no_standard_error():
    model = brief(ordered=True, early_stopping=True).fit(CANCER, X_val=CANCER[:1])
    with pytest.raises(ValueError, match="at least two held-out rows"):
        one_standard_error(model)


@pytest.mark.parametrize("arguments", [([1, 2, 3],), (PCA(), [0.1, 0.2])], ids=str)
def test_an_elbow_needs_scores_or_one_estimator(arguments):
    with pytest.raises(TypeError, match="fitted estimator alone"):
        elbow(*arguments)


def test_shares_and_numbers_of_components_are_not_compared():
    results = {
        "param_ae__n_components": [0.9, 2],
        "split0_test_score": [0.95, 0.94],
        "split1_test_score": [0.95, 0.94],
    }
    with pytest.raises(ValueError, match="shares of the variance"):
        one_standard_error(results)
