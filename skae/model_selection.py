"""Scorers of outlier detectors, and rules that choose the number of components.

Scorers are passed to ``GridSearchCV(scoring=...)``, `one_standard_error` to its
``refit``. They work with any estimator of scikit-learn, alone or at the end of a
`Pipeline`. The scorers of detectors need few labels or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.stats import rankdata
from sklearn.base import BaseEstimator, clone
from sklearn.ensemble import IsolationForest
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    make_scorer,
    precision_score,
    r2_score,
    recall_score,
    roc_auc_score,
)
from sklearn.utils import assert_all_finite, check_random_state
from sklearn.utils.validation import check_consistent_length, column_or_1d

from skae._arrays import as_numpy, space_of_output, without_dispatch
from skae._compat import check_response_method, num_samples
from skae._estimators import find_autoencoder
from skae._explained import VarianceCurve
from skae.transformer import AutoencoderTransformer

__all__ = [
    "AgreementScorer",
    "ArtificialOutlierScorer",
    "elbow",
    "explained_variance",
    "one_standard_error",
    "outlier_scorer",
]

# Methods that score how normal a row is, in order of preference.
SCORE_METHODS = ("decision_function", "score_samples")

SCORE_METRICS: dict[str, Callable[..., float]] = {
    "roc_auc": roc_auc_score,
    "average_precision": average_precision_score,
}
PREDICTION_METRICS: dict[str, Callable[..., float]] = {
    "balanced_accuracy": balanced_accuracy_score,
    "f1": f1_score,
    "precision": precision_score,
    "recall": recall_score,
}
METRICS = SCORE_METRICS | PREDICTION_METRICS


def outlier_scorer(metric: str = "roc_auc") -> Callable[..., float]:
    """Make a scorer of outlier detectors from rows of which some are labelled.

    Labels are -1 for a known outlier, 1 for a known inlier, and 0 for a row without a
    label. Rows without a label are used in training but not in the score. The outliers
    are the positive class; for scikit-learn's scorers ``"average_precision"``,
    ``"f1"``, ``"precision"`` and ``"recall"`` it is the inliers. If all rows are
    labelled, scikit-learn's ``"roc_auc"`` and ``"balanced_accuracy"`` give the same
    scores as this function.

    Parameters
    ----------
    metric : {"roc_auc", "average_precision", "balanced_accuracy", "f1", \
            "precision", "recall"}, default="roc_auc"
        The score. The first two are computed from `decision_function` or, if the
        detector does not have it, `score_samples`; the others from `predict`.

    Returns
    -------
    scorer : callable
        A scorer ``scorer(estimator, X, y)`` as returned by
        `sklearn.metrics.make_scorer`, for `GridSearchCV`, `cross_val_score` and other
        functions of scikit-learn. It raises a ValueError if y labels no outlier or no
        inlier; a search then assigns its `error_score`.

    Raises
    ------
    ValueError
        If `metric` is not one of these.

    See Also
    --------
    ArtificialOutlierScorer : Scorer without labels, for clean training rows.
    AgreementScorer : Scorer without labels, for training rows with outliers.

    Notes
    -----
    For a detector, scikit-learn splits the rows without stratification if `cv` is an
    integer. Pass ``cv=StratifiedKFold()`` to have labelled outliers and inliers in each
    fold.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import GridSearchCV, StratifiedKFold
    >>> from sklearn.neighbors import LocalOutlierFactor
    >>> from skae.model_selection import outlier_scorer
    >>> X = np.random.default_rng(0).standard_normal((300, 2))
    >>> X[:10] = X[:10] / 10 + 4  # a cluster of outliers
    >>> y = np.zeros(300, dtype=int)
    >>> y[:10], y[10:40] = -1, 1
    >>> search = GridSearchCV(
    ...     LocalOutlierFactor(novelty=True),
    ...     {"n_neighbors": [2, 20]},
    ...     scoring=outlier_scorer("average_precision"),
    ...     cv=StratifiedKFold(),
    ... ).fit(X, y)
    >>> search.best_params_
    {'n_neighbors': 20}
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {sorted(METRICS)}, got {metric!r}.")
    response = SCORE_METHODS if metric in SCORE_METRICS else "predict"
    return make_scorer(labelled_score, response_method=response, metric=metric)


def labelled_score(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    metric: str,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Compute a metric of `outlier_scorer` from labels and scores or predictions.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        Labels: -1 for outliers, 1 for inliers, 0 for rows without a label.
    y_pred : array-like of shape (n_samples,)
        Scores of a detector or, for the metrics in `PREDICTION_METRICS`, predictions.
    metric : str
        One of `METRICS`.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the rows.

    Returns
    -------
    value : float

    Raises
    ------
    ValueError
        If there are other labels, or no labelled outlier or inlier.
    """
    y_true, y_pred = as_numpy(y_true, "y_true"), as_numpy(y_pred, "y_pred")
    sample_weight = as_numpy(sample_weight, "sample_weight")
    y = column_or_1d(y_true)
    unknown = [label for label in np.unique(y).tolist() if label not in (-1, 0, 1)]
    if unknown:
        raise ValueError(
            "y must hold -1 for outliers, 1 for inliers and 0 for rows without a "
            f"label, got {unknown[:5]}."
        )
    n_outliers, n_inliers = np.sum(y == -1), np.sum(y == 1)
    if not n_outliers or not n_inliers:
        raise ValueError(
            f"y must contain labelled outliers and inliers, but of {len(y)} rows "
            f"{n_outliers} are labelled -1 (outlier) and {n_inliers} are labelled 1 "
            "(inlier). For cross-validation, use StratifiedKFold with no more folds "
            "than there are labelled outliers."
        )
    is_labelled = y != 0
    is_outlier, response = y[is_labelled] == -1, np.asarray(y_pred)[is_labelled]
    if sample_weight is not None:
        sample_weight = np.asarray(sample_weight)[is_labelled]
    if metric in SCORE_METRICS:
        return SCORE_METRICS[metric](is_outlier, -response, sample_weight=sample_weight)
    options = {} if metric == "balanced_accuracy" else {"zero_division": 0.0}
    return PREDICTION_METRICS[metric](
        is_outlier, response == -1, sample_weight=sample_weight, **options
    )


class ArtificialOutlierScorer(BaseEstimator):
    r"""Scorer of outlier detectors that compares test rows with artificial outliers.

    It needs no labels. Each feature of an artificial outlier is taken from a test row
    that is drawn at random for this feature. So the artificial outliers have the
    marginal distributions of the test rows, but their features are independent [1]_.
    The score is the area under the ROC curve,

    .. math::

        P(s(x) > s(\tilde x)), \quad
        \tilde x_j = x_{i_j, j}, \; i_j \text{ uniform on } 1, \dots, n,

    where s are the scores of the detector, and ties count one half. Ranking data above
    a reference distribution is equivalent to estimating density level sets [2]_. Use
    this scorer only if the training rows are clean: with outliers among them, it
    rewards detectors that have learned the outliers, and in measurements it selected
    settings no better than chance, or worse.

    Parameters
    ----------
    n_samples : int or None, default=None
        Number of artificial outliers, >= 1. If None, the number of test rows.
    random_state : int, RandomState instance or None, default=0
        Determines the artificial outliers. With an int, all settings of a search are
        scored with the same ones.

    See Also
    --------
    AgreementScorer : Scorer without labels, for training rows with outliers.
    outlier_scorer : Scorer with labels.

    References
    ----------
    .. [1] Hastie, T., Tibshirani, R., & Friedman, J. (2009). The elements of
       statistical learning (2nd ed.), section 14.2.4. Springer.
    .. [2] Steinwart, I., Hush, D., & Scovel, C. (2005). A classification framework
       for anomaly detection. Journal of Machine Learning Research, 6, 211-232.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn.svm import OneClassSVM
    >>> from skae.model_selection import ArtificialOutlierScorer
    >>> angle = np.random.default_rng(0).uniform(0, 2 * np.pi, 200)
    >>> X = np.column_stack([np.cos(angle), np.sin(angle)])
    >>> search = GridSearchCV(
    ...     OneClassSVM(), {"gamma": [0.1, 10]}, scoring=ArtificialOutlierScorer()
    ... ).fit(X)
    >>> search.best_params_
    {'gamma': 10}
    """

    def __init__(
        self,
        *,
        n_samples: int | None = None,
        random_state: int | np.random.RandomState | None = 0,
    ):
        self.n_samples = n_samples
        self.random_state = random_state

    def __call__(
        self, estimator: Any, X: Any, y: object = None, **kwargs: object
    ) -> float:
        """Score a fitted detector.

        Parameters
        ----------
        estimator : estimator
            Fitted detector with `decision_function` or `score_samples`, which are
            higher for more normal rows.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Test rows.
        y : Ignored
            Not used, present for API consistency.
        **kwargs : dict
            Ignored. Searches pass, for example, `sample_weight`.

        Returns
        -------
        score : float
            In [0, 1], 0.5 for a detector that does not distinguish test rows from
            artificial outliers.
        """
        n_samples = num_samples(X) if self.n_samples is None else self.n_samples
        if not isinstance(n_samples, Integral) or n_samples < 1:
            raise ValueError(
                f"n_samples must be None or an integer >= 1, got {n_samples!r}."
            )
        scores = _scores(estimator, X)
        rng = check_random_state(self.random_state)
        artificial = _scores(estimator, _draw_columns(X, int(n_samples), rng))
        is_row = np.repeat([1, 0], [len(scores), len(artificial)])
        return float(roc_auc_score(is_row, np.concatenate([scores, artificial])))


class AgreementScorer(BaseEstimator):
    r"""Scorer of outlier detectors that compares them with a reference detector.

    It needs no labels. Detectors of different kinds make different errors, so a
    detector that ranks the rows like another kind of detector is less likely to be
    wrong [1]_. The reference is fitted to the test rows. The score is Spearman's rank
    correlation of the scores s of the detector with those of the reference, s',

    .. math::

        \rho = \operatorname{corr}(\operatorname{rank} s(x_i),
            \operatorname{rank} s'(x_i)).

    Use it if there are outliers among the rows. In measurements on such rows, it
    selected settings that were somewhat better than chance, but no better than the
    defaults of the detectors. For clean rows, `ArtificialOutlierScorer` is better.

    Parameters
    ----------
    reference : estimator or None, default=None
        Reference detector, with `fit` and with `decision_function` or `score_samples`.
        It is cloned. If None, an `sklearn.ensemble.IsolationForest`, which needs no
        scaling and little tuning.
    random_state : int, RandomState instance or None, default=0
        Determines the default reference. With an int, all settings of a search are
        compared with the same one.

    See Also
    --------
    ArtificialOutlierScorer : Scorer without labels, for clean training rows.
    outlier_scorer : Scorer with labels.

    References
    ----------
    .. [1] Ma, M. Q., Zhao, Y., Zhang, X., & Akoglu, L. (2023). The need for
       unsupervised outlier model selection: A review and evaluation of internal
       evaluation strategies. ACM SIGKDD Explorations Newsletter, 25(1), 19-35.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn.neighbors import LocalOutlierFactor
    >>> from skae.model_selection import AgreementScorer
    >>> X = np.random.default_rng(0).standard_normal((300, 2))
    >>> X[::10] = X[::10] / 10 + 4  # a cluster of outliers
    >>> search = GridSearchCV(
    ...     LocalOutlierFactor(novelty=True),
    ...     {"n_neighbors": [2, 50]},
    ...     scoring=AgreementScorer(),
    ...     cv=2,
    ... ).fit(X)
    >>> search.best_params_
    {'n_neighbors': 50}
    """

    def __init__(
        self,
        reference: Any = None,
        *,
        random_state: int | np.random.RandomState | None = 0,
    ):
        self.reference = reference
        self.random_state = random_state

    def __call__(
        self, estimator: Any, X: Any, y: object = None, **kwargs: object
    ) -> float:
        """Score a fitted detector.

        Parameters
        ----------
        estimator : estimator
            Fitted detector with `decision_function` or `score_samples`, which are
            higher for more normal rows.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Test rows.
        y : Ignored
            Not used, present for API consistency.
        **kwargs : dict
            Ignored. Searches pass, for example, `sample_weight`.

        Returns
        -------
        score : float
            In [-1, 1], 0 if all scores of the detector or of the reference are equal.
        """
        reference = (
            IsolationForest(random_state=self.random_state)
            if self.reference is None
            else clone(self.reference)
        )
        ranks = rankdata(_scores(estimator, X))
        X = as_numpy(X, "X")  # which any reference accepts
        with without_dispatch():
            reference_ranks = rankdata(_scores(reference.fit(X), X))
        if np.ptp(ranks) == 0 or np.ptp(reference_ranks) == 0:
            return 0.0
        return float(np.corrcoef(ranks, reference_ranks)[0, 1])


def _scores(estimator: Any, X: Any) -> np.ndarray:
    """Return the scores of a detector, of shape (n_samples,), higher is more normal."""
    scores = check_response_method(estimator, SCORE_METHODS)(X)
    scores = np.asarray(as_numpy(scores, "scores"))
    assert_all_finite(scores, input_name="scores")
    return scores


def _draw_columns(X: Any, n_samples: int, rng: np.random.RandomState) -> Any:
    """Draw each column of X independently, and return them in the container of X."""
    space = space_of_output(X)
    X = as_numpy(X, "X")
    if not hasattr(X, "shape"):
        X = np.asarray(X)
    n_rows, n_features = X.shape
    positions = (rng.randint(n_rows, size=n_samples) for _ in range(n_features))
    if sparse.issparse(X):
        columns = X.tocsc()
        drawn = [columns[:, [j]][rows] for j, rows in enumerate(positions)]
        return sparse.hstack(drawn, format="csr")
    if hasattr(X, "iloc"):  # pandas
        frame = X.iloc[np.zeros(n_samples, int)].reset_index(drop=True)
        for j, rows in enumerate(positions):
            frame.isetitem(j, X.iloc[rows, j].array)
        return frame
    if hasattr(X, "to_series"):  # polars
        return type(X)([X.to_series(j)[rows] for j, rows in enumerate(positions)])
    table = np.column_stack([X[rows, j] for j, rows in enumerate(positions)])
    return table if space is None else space.take(table)


def explained_variance(
    estimator: Any, X: Any, y: object = None, **kwargs: object
) -> float:
    r"""Score a transformer by the share of the variance that it reconstructs.

    The score is

    .. math::

        1 - \frac{\sum_i \|x_i - \hat x_i\|^2}{\sum_i \|x_i - \bar x\|^2},

    with the mean and the reconstructions of the rows X, in their units. It makes all
    transformers with an `inverse_transform` comparable: also `PCA`, whose `score` is a
    log-likelihood, and pipelines with a scaler, where `AutoencoderTransformer.score` is
    computed from scaled rows.

    Parameters
    ----------
    estimator : estimator
        Fitted transformer with `transform` and `inverse_transform`.
    X : array-like of shape (n_samples, n_features)
        Test rows.
    y : Ignored
        Not used, present for API consistency.
    **kwargs : dict
        Ignored. Searches pass, for example, `sample_weight`.

    Returns
    -------
    score : float
        At most 1, which is a perfect reconstruction.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.decomposition import PCA
    >>> from skae.model_selection import explained_variance
    >>> X = load_iris().data
    >>> pca = PCA(2).fit(X)
    >>> round(explained_variance(pca, X), 4)
    0.9777
    >>> round(float(pca.explained_variance_ratio_.sum()), 4)
    0.9777
    """
    X_hat = estimator.inverse_transform(estimator.transform(X))
    return float(r2_score(X, X_hat, multioutput="variance_weighted"))


def one_standard_error(
    cv_results: Any, *, param: str | None = None, metric: str = "score"
) -> int:
    r"""Choose the fewest components within one standard error of the best mean score.

    Let :math:`\bar s_i` be the mean score of setting i over m splits, b the setting
    with the best mean score, and :math:`\sigma_b` the standard deviation of its m
    scores. Of the settings with

    .. math::

        \bar s_i \ge \bar s_b - \sigma_b / \sqrt m

    it chooses the one with the smallest `n_components` [1]_, [2]_. If several settings
    have this number, such as those that differ in another parameter, it chooses the one
    with the highest mean score, then the first. Pass the function itself to a search:
    ``GridSearchCV(..., refit=one_standard_error)``.

    From a fitted transformer with ordered components, it chooses without a search. The
    scores are then the explained variances of the rows that its fit held out, for each
    number of components, and :math:`\sigma_b / \sqrt m` is the standard error over
    these rows.

    Parameters
    ----------
    cv_results : dict or estimator
        Results of a search, as in `GridSearchCV.cv_results_`. Settings whose mean score
        is not finite are ignored. Or an `AutoencoderTransformer` that was fitted with
        ``ordered=True`` and early stopping, or a `Pipeline` or a search that ends in
        one; the other parameters must then have their default values.
    param : str, default=None
        Name of the parameter to be small, whose values must be numbers. If None, the
        parameter named ``"n_components"`` or ending in ``"__n_components"``.
    metric : str, default="score"
        Name of the score, for a search with several metrics. To set this or `param` in
        a search, pass ``refit=functools.partial(one_standard_error, metric="r2")``.

    Returns
    -------
    best_index : int
        Index of the chosen setting in `cv_results`. For an estimator, the chosen number
        of components itself: ``estimator.truncate(one_standard_error(estimator))``.

    Raises
    ------
    TypeError
        If `cv_results` is neither a dict nor such an estimator.
    ValueError
        If there is only one split, no such parameter or score, more than one parameter
        `n_components`, a value that is not a number, or no finite mean score. If the
        components of the estimator have no order, or its last fit held out no rows.

    Notes
    -----
    A search with a callable `refit` has no attribute `best_score_`. The score is
    ``search.cv_results_["mean_test_score"][search.best_index_]``.

    References
    ----------
    .. [1] Breiman, L., Friedman, J. H., Olshen, R. A., & Stone, C. J. (1984).
       Classification and regression trees, section 3.4.3. Wadsworth.
    .. [2] Hastie, T., Tibshirani, R., & Friedman, J. (2009). The elements of
       statistical learning (2nd ed.), section 7.10. Springer.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.decomposition import PCA
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from skae.model_selection import one_standard_error
    >>> X, y = load_wine(return_X_y=True)
    >>> search = GridSearchCV(
    ...     make_pipeline(StandardScaler(), PCA(), LogisticRegression()),
    ...     {"pca__n_components": [1, 2, 3, 4]},
    ...     refit=one_standard_error,
    ... ).fit(X, y)
    >>> search.cv_results_["mean_test_score"].round(2)
    array([0.85, 0.96, 0.96, 0.94])
    >>> search.best_params_
    {'pca__n_components': 2}

    One fit instead of a search:

    >>> from skae import AutoencoderTransformer
    >>> pipe = make_pipeline(
    ...     StandardScaler(),
    ...     AutoencoderTransformer(5, ordered=True, max_epochs=20, random_state=0),
    ... ).fit(X)
    >>> k = one_standard_error(pipe)
    >>> pipe[-1].truncate(k).n_components_ == k
    True
    """
    if not isinstance(cv_results, Mapping):
        if (param, metric) != (None, "score"):
            raise ValueError(
                "param and metric name results of a search, but cv_results is an "
                f"estimator; got param={param!r} and metric={metric!r}."
            )
        curve = read_curve(cv_results, needs_held_out_rows=True)
        n_components = np.arange(len(curve.explained)) + 1
        return 1 + smallest_near_best(n_components, *curve[:2])
    values, scores = read_settings(cv_results, param, metric)
    if scores.shape[1] < 2:
        raise ValueError("one_standard_error needs at least two splits, got 1.")
    return smallest_near_best(values, mean_scores(scores), standard_errors(scores))


def elbow(n_components: Any, scores: ArrayLike | None = None) -> Any:
    r"""Find the elbow of a curve of scores: its largest height above its chord.

    The chord is the straight line between the ends of the curve. For numbers of
    components k from :math:`k_1` to :math:`k_K` with scores s(k), the elbow is

    .. math::

        \arg\max_k \; s(k) - s(k_1)
            - \frac{k - k_1}{k_K - k_1} (s(k_K) - s(k_1)).

    This is the Kneedle algorithm [1]_ without smoothing. The elbow does not depend on
    the units and the offset of the axes, but it depends on the range of the curve: a
    longer tail moves it to the right.

    Parameters
    ----------
    n_components : array-like of shape (n_values,) or estimator
        Distinct numbers of components, in any order. Or an `AutoencoderTransformer`
        that was fitted with ``ordered=True``, or a `Pipeline` or a search that ends in
        one: then the curve is ``explained_variance_ratio_.cumsum()``.
    scores : array-like of shape (n_values,), default=None
        Scores; higher is better. None with an estimator.

    Returns
    -------
    elbow : int or float or None
        One of `n_components`, the smallest if several are equally high above the chord.
        None if the curve is nowhere above its chord, as a straight or a convex curve,
        or has fewer than three points.

    Raises
    ------
    ValueError
        If the values are not finite numbers, or `n_components` are not distinct. If the
        components of the estimator have no order.
    TypeError
        If `scores` are missing, and if `n_components` is another estimator.

    References
    ----------
    .. [1] Satopaa, V., Albrecht, J., Irwin, D., & Raghavan, B. (2011). Finding a
       "kneedle" in a haystack: Detecting knee points in system behavior. ICDCS
       Workshops, 166-171.

    Examples
    --------
    >>> from skae.model_selection import elbow
    >>> elbow([1, 2, 3, 4, 5], [0.5, 0.8, 0.85, 0.88, 0.9])
    2
    >>> elbow([1, 2, 3], [0.2, 0.4, 0.6]) is None
    True
    """
    if (scores is None) != hasattr(n_components, "fit"):
        raise TypeError(
            "elbow takes numbers of components and their scores, or a fitted estimator "
            f"alone; got {n_components!r} and scores={scores!r}."
        )
    if scores is None:
        ratios = read_curve(n_components).ratios
        n_components, scores = np.arange(len(ratios)) + 1, ratios.cumsum()
    x, s = column_or_1d(n_components), column_or_1d(scores)
    check_consistent_length(x, s)
    for name, values in (("n_components", x), ("scores", s)):
        if not np.issubdtype(values.dtype, np.number):
            raise ValueError(f"{name} must be numbers, got {values[:5].tolist()}.")
        assert_all_finite(values, input_name=name)
    order = np.argsort(x)
    x, s = x[order], s[order].astype(float)
    if len(np.unique(x)) < len(x):
        raise ValueError(f"n_components must be distinct numbers, got {x.tolist()}.")
    if len(x) < 3:
        return None
    chord = s[0] + (x - x[0]) / (x[-1] - x[0]) * (s[-1] - s[0])
    height = s - chord
    # Rounding errors of scores far from zero, and of the chord.
    tolerance = 8 * np.finfo(float).eps * np.abs(s).max() + 1e-9 * np.ptp(s)
    if height.max() <= tolerance:
        return None
    return x[np.argmax(height >= height.max() - tolerance)].item()


# Curves of ordered components


def read_curve(estimator: Any, *, needs_held_out_rows: bool = False) -> VarianceCurve:
    """Return the explained variance of the rows that a fit has held out.

    Parameters
    ----------
    estimator : AutoencoderTransformer, Pipeline or search
        Fitted with ordered components.
    needs_held_out_rows : bool, default=False
        Whether training rows, by which no number of components is chosen, and a single
        held-out row are refused.

    Raises
    ------
    TypeError
        If there is no such estimator.
    ValueError
        If its components have no order, or `fit` has not computed the curve.
    """
    transformer = find_autoencoder(estimator, AutoencoderTransformer)
    ordered = transformer._trained.ordered
    if ordered is None:
        raise ValueError(
            f"The components of {transformer!r} have no order. Use ordered=True."
        )
    if ordered.curve is None:
        raise ValueError(
            "The explained variance of each number of components is computed at the "
            "end of fit, and not by partial_fit."
        )
    if not needs_held_out_rows:
        return ordered.curve
    if not ordered.curve.is_held_out:
        raise ValueError(
            "The fit held out no rows, and training rows are explained best by all "
            "components. Use early_stopping='auto', or pass X_val to fit."
        )
    if np.isnan(ordered.curve.standard_error).any():
        raise ValueError("one_standard_error needs at least two held-out rows, got 1.")
    return ordered.curve


# Results of a search


class Settings(NamedTuple):
    """Values of a parameter in the settings of a search, and their scores.

    Attributes
    ----------
    values : ndarray of shape (n_settings,)
        Value of the parameter in each setting.
    scores : ndarray of shape (n_settings, n_splits)
        Scores of each setting.
    """

    values: np.ndarray
    scores: np.ndarray


def read_settings(
    cv_results: Mapping[str, Any], param: str | None, metric: str
) -> Settings:
    """Read the values of a parameter and the scores from the results of a search.

    Parameters
    ----------
    cv_results : dict
        Results, as in `GridSearchCV.cv_results_`.
    param : str or None
        Name of the parameter. If None, the only parameter `n_components`.
    metric : str
        Name of the score.

    Returns
    -------
    settings : Settings

    Raises
    ------
    ValueError
        If there is no such parameter or score, more than one parameter `n_components`,
        a value that is not a number, or no finite mean score.
    """
    names = [key.removeprefix("param_") for key in cv_results if key[:6] == "param_"]
    param = find_parameter(names, param, "the search")
    values: np.ma.MaskedArray = np.ma.asarray(
        cv_results[f"param_{param}"], dtype=object
    )
    if np.ma.getmaskarray(values).any():
        raise ValueError(f"{param} must be set in all settings of the search.")
    for value in values:
        if not isinstance(value, Real) or isinstance(value, bool):
            raise ValueError(f"{param} must be numbers, got {value!r}.")
    is_share = [value < 1 for value in values]
    if any(is_share) and not all(is_share) and param.endswith("n_components"):
        raise ValueError(
            f"{param} must be numbers of components, or shares of the variance below "
            f"1, but not both; got {list(values)}."
        )
    scores = list(_split_scores(cv_results, metric))
    if not scores:
        means = [key for key in cv_results if key.startswith("mean_test_")]
        names = [key.removeprefix("mean_test_") for key in means]
        raise ValueError(f"metric must be one of {names}, got {metric!r}.")
    settings = Settings(np.array(list(values)), np.column_stack(scores))
    if not np.isfinite(settings.scores.mean(axis=1)).any():
        raise ValueError(f"No setting has a finite mean {metric}.")
    return settings


def _split_scores(cv_results: Mapping[str, Any], metric: str) -> Iterator[np.ndarray]:
    """Yield the scores of all settings, split by split."""
    i = 0
    while (key := f"split{i}_test_{metric}") in cv_results:
        yield np.asarray(cv_results[key], dtype=float)
        i += 1


def find_parameter(names: Iterable[str], param: str | None, where: str) -> str:
    """Return `param` or, if it is None, the only parameter named n_components.

    Raises ValueError if it is not one of `names`, or if there is not exactly one
    parameter n_components; `where` says whose parameters they are.
    """
    names = sorted(names)
    if param is not None:
        if param not in names:
            raise ValueError(f"param must be one of {names}, got {param!r}.")
        return param
    candidates = [name for name in names if name.split("__")[-1] == "n_components"]
    if len(candidates) != 1:
        raise ValueError(
            f"{where} has {len(candidates) or 'no'} parameters n_components, "
            f"{candidates or names}: set param to the name of the parameter."
        )
    return candidates[0]


def mean_scores(scores: np.ndarray) -> np.ndarray:
    """Return the mean score of each setting, -inf where it is not finite."""
    means = scores.mean(axis=1)
    return np.where(np.isfinite(means), means, -np.inf)


def standard_errors(scores: np.ndarray) -> np.ndarray:
    """Return the standard errors of the mean scores, of shape (n_settings,)."""
    return scores.std(axis=1, ddof=1) / np.sqrt(scores.shape[1])


def smallest_near_best(
    values: np.ndarray, means: np.ndarray, errors: np.ndarray
) -> int:
    """Return the index of the smallest value within one standard error of the best.

    Parameters
    ----------
    values : ndarray of shape (n_settings,)
        Value of the parameter in each setting.
    means, errors : ndarray of shape (n_settings,)
        Mean score of each setting and its standard error.

    Returns
    -------
    index : int
        Of several settings with this value, the one with the highest mean score.
    """
    best = np.argmax(means)
    near = np.flatnonzero(means >= means[best] - errors[best])
    # lexsort sorts by its last key first.
    return int(near[np.lexsort((-means[near], values[near]))[0]])


def best_settings(settings: Settings) -> Settings:
    """Return the best setting of each value, in ascending order of the values."""
    order = np.lexsort((-mean_scores(settings.scores), settings.values))
    values, scores = settings.values[order], settings.scores[order]
    is_first = np.append(True, np.diff(values) > 0)
    return Settings(values[is_first], scores[is_first])
