"""Tune a detector with few labels or none, and choose how many components to keep.

Scorers go into ``GridSearchCV(scoring=...)``, `one_standard_error` into its ``refit``.
All of them take any estimator of scikit-learn's, alone or at the end of a `Pipeline`.
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
from sklearn.utils.validation import (
    _check_response_method,
    _num_samples,
    check_consistent_length,
    column_or_1d,
)

__all__ = [
    "AgreementScorer",
    "ArtificialOutlierScorer",
    "elbow",
    "explained_variance",
    "one_standard_error",
    "outlier_scorer",
]

# What tells how normal a row is, in order of preference.
SCORES = ("decision_function", "score_samples")

OF_SCORES: dict[str, Callable[..., float]] = {
    "roc_auc": roc_auc_score,
    "average_precision": average_precision_score,
}
OF_PREDICTIONS: dict[str, Callable[..., float]] = {
    "balanced_accuracy": balanced_accuracy_score,
    "f1": f1_score,
    "precision": precision_score,
    "recall": recall_score,
}
METRICS = OF_SCORES | OF_PREDICTIONS


def outlier_scorer(metric: str = "roc_auc") -> Callable[..., float]:
    """Scorer of an outlier detector by the rows whose label is known.

    Labels are those of `predict`: -1 for a known outlier, 1 for a known inlier, and 0
    for a row without a label, which may train but is not judged. The outliers are the
    positive class, of which scikit-learn's ``"average_precision"``, ``"f1"``,
    ``"precision"`` and ``"recall"`` take the inliers. Where all rows have a label,
    its ``"roc_auc"`` and ``"balanced_accuracy"`` say the same.

    Parameters
    ----------
    metric : {"roc_auc", "average_precision", "balanced_accuracy", "f1", \
            "precision", "recall"}, default="roc_auc"
        The first two judge the order of the scores, `decision_function` or, without
        it, `score_samples`; the others what `predict` flags.

    Returns
    -------
    scorer : callable
        As `sklearn.metrics.make_scorer` makes it: ``scorer(estimator, X, y)``, for
        `GridSearchCV`, `cross_val_score` and the like. It raises an error where no
        outlier or no inlier is known, which a search counts as its `error_score`.
        An integer `cv` splits a detector's rows in their order: pass
        ``StratifiedKFold()``, which gives each fold its share of both.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import GridSearchCV, StratifiedKFold
    >>> from sklearn.neighbors import LocalOutlierFactor
    >>> from skae.model_selection import outlier_scorer
    >>> X = np.random.default_rng(0).standard_normal((300, 2))
    >>> X[:10] = X[:10] / 10 + 4  # outliers side by side
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
    response = SCORES if metric in OF_SCORES else "predict"
    return make_scorer(labelled_score, response_method=response, metric=metric)


def labelled_score(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    *,
    metric: str,
    sample_weight: ArrayLike | None = None,
) -> float:
    """What `outlier_scorer` computes from labels and from scores or predictions."""
    y = column_or_1d(y_true)
    strange = [label for label in np.unique(y).tolist() if label not in (-1, 0, 1)]
    if strange:
        raise ValueError(
            "y must hold -1 for outliers, 1 for inliers and 0 for rows without a "
            f"label, got {strange[:5]}."
        )
    n_outliers, n_inliers = np.sum(y == -1), np.sum(y == 1)
    if not n_outliers or not n_inliers:
        raise ValueError(
            f"Of the {len(y)} rows to be scored, {n_outliers} are labelled -1 (outlier)"
            f" and {n_inliers} are labelled 1 (inlier); both are needed, and 0 is no "
            "label. Split by StratifiedKFold, into no more folds than there are known "
            "outliers."
        )
    known = y != 0
    is_outlier, response = y[known] == -1, np.asarray(y_pred)[known]
    if sample_weight is not None:
        sample_weight = np.asarray(sample_weight)[known]
    if metric in OF_SCORES:
        return OF_SCORES[metric](is_outlier, -response, sample_weight=sample_weight)
    nothing = {} if metric == "balanced_accuracy" else {"zero_division": 0.0}
    return OF_PREDICTIONS[metric](
        is_outlier, response == -1, sample_weight=sample_weight, **nothing
    )


class ArtificialOutlierScorer(BaseEstimator):
    r"""Scorer without labels: how well held-out rows rank above artificial outliers.

    An artificial outlier takes each feature from a held-out row of its own, so it has
    their marginal distributions, but not what ties the features together [1]_. The
    score is the area under the ROC curve,

    .. math::

        P(s(x) > s(\tilde x)), \quad
        \tilde x_j = x_{i_j, j}, \; i_j \text{ uniform on } 1, \dots, n,

    ties counting one half, of the detector's scores s. Ranking data above a reference
    distribution amounts to estimating the density level sets [2]_. That helps only
    where the rows are clean: with outliers among them it rewards a detector for
    learning what they are like, and chose no better than chance, or worse.

    Parameters
    ----------
    n_samples : int or None, default=None
        Number of artificial outliers, >= 1; None means as many as held-out rows.
    random_state : int, RandomState instance or None, default=0
        Determines them. With an int all settings of a search meet the same ones.

    See Also
    --------
    AgreementScorer : For training rows with outliers among them.
    outlier_scorer : With labels.

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
            With `decision_function` or `score_samples`, higher for more normal rows.
        X : {array-like, sparse matrix} of shape (n_rows, n_features)
            Held-out rows.
        y : ignored
        **kwargs : ignored

        Returns
        -------
        score : float in [0, 1]
        """
        n_samples = _num_samples(X) if self.n_samples is None else self.n_samples
        if not isinstance(n_samples, Integral) or n_samples < 1:
            raise ValueError(
                f"n_samples must be None or an integer >= 1, got {n_samples!r}."
            )
        scores = _scores(estimator, X)
        rng = check_random_state(self.random_state)
        artificial = _scores(estimator, _columns_apart(X, int(n_samples), rng))
        is_row = np.repeat([1, 0], [len(scores), len(artificial)])
        return float(roc_auc_score(is_row, np.concatenate([scores, artificial])))


class AgreementScorer(BaseEstimator):
    r"""Scorer without labels: how far the scores agree with those of a reference.

    Detectors err in different ways, so one that ranks rows as another, quite different
    one does is less likely to be wrong [1]_. The reference is fitted to the held-out
    rows themselves; the score is Spearman's correlation of the ranks,

    .. math::

        \rho = \operatorname{corr}(\operatorname{rank} s(x_i),
            \operatorname{rank} s'(x_i)).

    It is meant for rows with outliers among them. There it chose somewhat better than
    chance, but no better than the defaults of the detectors that were measured; where
    the rows are clean, `ArtificialOutlierScorer` is better.

    Parameters
    ----------
    reference : estimator or None, default=None
        With `fit` and with `decision_function` or `score_samples`; it is cloned.
        None means `sklearn.ensemble.IsolationForest`, which needs neither scaling nor
        settings.
    random_state : int, RandomState instance or None, default=0
        Determines the default reference. With an int all settings of a search meet
        the same one.

    See Also
    --------
    ArtificialOutlierScorer : For training rows that are clean.
    outlier_scorer : With labels.

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
    >>> X[::10] = X[::10] / 10 + 4  # outliers side by side
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
            With `decision_function` or `score_samples`, higher for more normal rows.
        X : {array-like, sparse matrix} of shape (n_rows, n_features)
            Held-out rows.
        y : ignored
        **kwargs : ignored

        Returns
        -------
        score : float in [-1, 1]
            0 where the detector or the reference scores all rows alike.
        """
        reference = (
            IsolationForest(random_state=self.random_state)
            if self.reference is None
            else clone(self.reference)
        )
        ranks = rankdata(_scores(estimator, X))
        usual = rankdata(_scores(reference.fit(X), X))
        if np.ptp(ranks) == 0 or np.ptp(usual) == 0:
            return 0.0
        return float(np.corrcoef(ranks, usual)[0, 1])


def _scores(estimator: Any, X: Any) -> np.ndarray:
    """How normal each row is, of shape (n_rows,)."""
    scores = np.asarray(_check_response_method(estimator, SCORES)(X))
    assert_all_finite(scores, input_name="scores")
    return scores


def _columns_apart(X: Any, n_samples: int, rng: np.random.RandomState) -> Any:
    """Rows whose features come each from another row, in the container of X."""
    if not hasattr(X, "shape"):
        X = np.asarray(X)
    n_rows, n_features = X.shape
    drawn = (rng.randint(n_rows, size=n_samples) for _ in range(n_features))
    if sparse.issparse(X):
        columns = X.tocsc()
        parts = [columns[:, [j]][rows] for j, rows in enumerate(drawn)]
        return sparse.hstack(parts, format="csr")
    if hasattr(X, "iloc"):  # pandas
        frame = X.iloc[np.zeros(n_samples, int)].reset_index(drop=True)
        for j, rows in enumerate(drawn):
            frame.isetitem(j, X.iloc[rows, j].array)
        return frame
    if hasattr(X, "to_series"):  # polars
        return type(X)([X.to_series(j)[rows] for j, rows in enumerate(drawn)])
    return np.column_stack([X[rows, j] for j, rows in enumerate(drawn)])


def explained_variance(
    estimator: Any, X: Any, y: object = None, **kwargs: object
) -> float:
    r"""Scorer of a transformer: the share of the variance that its codes keep.

    .. math::

        1 - \frac{\sum_i \|x_i - \hat x_i\|^2}{\sum_i \|x_i - \bar x\|^2},

    with the mean and the reconstructions of the rows given, in the units of X. It
    compares whatever has an `inverse_transform`, such as `PCA`, whose `score` is a
    likelihood, and pipelines with a scaler, inside of which
    `AutoencoderTransformer.score` sees scaled rows.

    Parameters
    ----------
    estimator : estimator
        Fitted, with `transform` and `inverse_transform`.
    X : array-like of shape (n_samples, n_features)
        Held-out rows.
    y : ignored
    **kwargs : ignored

    Returns
    -------
    score : float
        At most 1.

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
    cv_results: Mapping[str, Any], *, param: str | None = None, metric: str = "score"
) -> int:
    r"""The fewest components whose mean score is within one standard error of the best.

    With mean scores :math:`\bar s_i` over m splits, best at b, and the standard
    deviation :math:`\sigma_b` of its m scores, it chooses among the settings of

    .. math::

        \bar s_i \ge \bar s_b - \sigma_b / \sqrt m

    one with the least `n_components` [1]_, [2]_: of several, such as those that differ
    in another parameter, the one with the highest mean, then the first. Pass the
    function itself to a search, ``GridSearchCV(..., refit=one_standard_error)``.

    Parameters
    ----------
    cv_results : dict
        As in `GridSearchCV.cv_results_`. A setting whose mean score is not finite is
        passed over.
    param : str, default=None
        The parameter to keep small; its values must be numbers. None means the one
        named ``"n_components"`` or ending in ``"__n_components"``.
    metric : str, default="score"
        Name of the score, if there are several. To pass it, or `param`, to a search:
        ``refit=functools.partial(one_standard_error, metric="r2")``.

    Returns
    -------
    best_index : int
        Index of the setting.

    Notes
    -----
    A search that is given a callable to `refit` has no `best_score_`; it is
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
    """
    values, scores = tried_settings(cv_results, param, metric)
    if scores.shape[1] < 2:
        raise ValueError("one_standard_error needs at least two splits, got 1.")
    return least_near_best(values, scores)


def elbow(n_components: ArrayLike, scores: ArrayLike) -> Any:
    r"""Where a curve of scores bends most: its largest height above its chord.

    The chord joins the curve's ends. With k from :math:`k_1` to :math:`k_K`,

    .. math::

        \arg\max_k \; s(k) - s(k_1)
            - \frac{k - k_1}{k_K - k_1} (s(k_K) - s(k_1)).

    This is Kneedle [1]_ without its smoothing, and depends on neither the units nor
    the offset of the axes, but on where the curve ends: a longer tail moves the
    elbow to the right.

    Parameters
    ----------
    n_components : array-like of shape (n_values,)
        Different numbers, in any order.
    scores : array-like of shape (n_values,)
        Higher is better.

    Returns
    -------
    elbow : int or float or None
        One of `n_components`, the least of several equally high. None where the curve
        rises nowhere above its chord: it is straight or convex, or shorter than
        three points.

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
    x, s = column_or_1d(n_components), column_or_1d(scores)
    check_consistent_length(x, s)
    for name, values in (("n_components", x), ("scores", s)):
        if not np.issubdtype(values.dtype, np.number):
            raise ValueError(f"{name} must be numbers, got {values[:5].tolist()}.")
        assert_all_finite(values, input_name=name)
    order = np.argsort(x)
    x, s = x[order], s[order].astype(float)
    if len(np.unique(x)) < len(x):
        raise ValueError(f"n_components must be different numbers, got {x.tolist()}.")
    if len(x) < 3:
        return None
    chord = s[0] + (x - x[0]) / (x[-1] - x[0]) * (s[-1] - s[0])
    height = s - chord
    # Of the scores, whose differences may be small beside them, and of the chord.
    rounding = 8 * np.finfo(float).eps * np.abs(s).max() + 1e-9 * np.ptp(s)
    if height.max() <= rounding:
        return None
    return x[np.argmax(height >= height.max() - rounding)].item()


# Results of a search


class Settings(NamedTuple):
    """What a search has tried.

    Attributes
    ----------
    values : ndarray of shape (n_settings,)
        Of the parameter.
    scores : ndarray of shape (n_settings, n_splits)
    """

    values: np.ndarray
    scores: np.ndarray


def tried_settings(
    cv_results: Mapping[str, Any], param: str | None, metric: str
) -> Settings:
    """What a search has tried of a parameter, and how it was scored.

    Parameters
    ----------
    cv_results : dict
        As in `GridSearchCV.cv_results_`.
    param : str or None
        The parameter; None means the only `n_components`.
    metric : str
        Name of the score.

    Returns
    -------
    settings : Settings

    Raises
    ------
    ValueError
        If there is no such parameter or score, several parameters could be meant, a
        value is no number, or no setting has a finite score.
    """
    tried = [key.removeprefix("param_") for key in cv_results if key[:6] == "param_"]
    param = find_parameter(tried, param, "the search")
    values: np.ma.MaskedArray = np.ma.asarray(
        cv_results[f"param_{param}"], dtype=object
    )
    if np.ma.getmaskarray(values).any():
        raise ValueError(f"{param} must be set in all settings of the search.")
    for value in values:
        if not isinstance(value, Real) or isinstance(value, bool):
            raise ValueError(f"{param} must be numbers to be compared, got {value!r}.")
    scores = list(_splits(cv_results, metric))
    if not scores:
        means = [key for key in cv_results if key.startswith("mean_test_")]
        names = [key.removeprefix("mean_test_") for key in means]
        raise ValueError(f"metric must be one of {names}, got {metric!r}.")
    settings = Settings(np.array(list(values)), np.column_stack(scores))
    if not np.isfinite(settings.scores.mean(axis=1)).any():
        raise ValueError(f"No setting has a finite mean {metric}.")
    return settings


def _splits(cv_results: Mapping[str, Any], metric: str) -> Iterator[np.ndarray]:
    """Scores of all settings, split by split."""
    i = 0
    while (key := f"split{i}_test_{metric}") in cv_results:
        yield np.asarray(cv_results[key], dtype=float)
        i += 1


def find_parameter(names: Iterable[str], param: str | None, where: str) -> str:
    """`param` if it is among the names, or the only n_components that is."""
    names = sorted(names)
    if param is not None:
        if param not in names:
            raise ValueError(f"param must be one of {names}, got {param!r}.")
        return param
    found = [name for name in names if name.split("__")[-1] == "n_components"]
    if len(found) != 1:
        raise ValueError(
            f"{where} has {len(found) or 'no'} parameters n_components, "
            f"{found or names}: say which one is meant by param."
        )
    return found[0]


def mean_scores(scores: np.ndarray) -> np.ndarray:
    """Mean of each setting, minus infinity where it is not finite."""
    means = scores.mean(axis=1)
    return np.where(np.isfinite(means), means, -np.inf)


def standard_errors(scores: np.ndarray) -> np.ndarray:
    """Of the mean scores, of shape (n_settings,)."""
    return scores.std(axis=1, ddof=1) / np.sqrt(scores.shape[1])


def least_near_best(values: np.ndarray, scores: np.ndarray) -> int:
    """Position of the least value within one standard error of the best.

    Parameters
    ----------
    values : ndarray of shape (n_settings,)
    scores : ndarray of shape (n_settings, n_splits)
    """
    means = mean_scores(scores)
    best = np.argmax(means)
    near = np.flatnonzero(means >= means[best] - standard_errors(scores)[best])
    # The last key is the first to sort by.
    return int(near[np.lexsort((-means[near], values[near]))[0]])


def best_of_each(settings: Settings) -> Settings:
    """For each value, ascending, the setting with the highest mean score."""
    order = np.lexsort((-mean_scores(settings.scores), settings.values))
    values, scores = settings.values[order], settings.scores[order]
    is_first = np.append(True, np.diff(values) > 0)
    return Settings(values[is_first], scores[is_first])
