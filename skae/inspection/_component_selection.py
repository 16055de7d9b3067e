"""Display of scores against the number of components."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from skae._base import MatrixLike
from skae._estimators import find_autoencoder, find_autoencoder_and_input
from skae._explained import VarianceCurve
from skae.inspection._arguments import (
    check_arguments,
    check_counts,
    check_display,
    check_numbers,
    draws,
)
from skae.inspection._drawing import get_axes
from skae.model_selection import (
    best_settings,
    elbow,
    explained_variance,
    find_parameter,
    mean_scores,
    read_curve,
    read_settings,
    smallest_near_best,
    standard_errors,
)
from skae.transformer import AutoencoderTransformer

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class ComponentSelectionDisplay:
    """Scores against the number of components, from a search or from one fit.

    Vertical lines mark the numbers of components chosen by three rules: the best mean
    score; the smallest number whose mean score is within one standard error of the best
    (:func:`~skae.model_selection.one_standard_error`), with a dotted horizontal line at
    this limit; and the :func:`~skae.model_selection.elbow` of the curve.

    Parameters
    ----------
    n_components : array-like of shape (n_values,)
        Distinct numbers of components, in ascending order.
    scores : array-like of shape (n_values, n_splits)
        Scores on each cross-validation split; higher is better.
    score_name : str, default=None
        Label of the y-axis. If None, "score".
    estimator_name : str, default=None
        Label of the curve in the legend.
    standard_errors : array-like of shape (n_values,), default=None
        Standard errors of the mean scores. If None, those over the splits, if there is
        more than one.

    Attributes
    ----------
    best, one_standard_error, elbow : int or None
        Numbers of components chosen by the three rules. `one_standard_error` is None
        without standard errors, `elbow` is None if the curve has no elbow.
    ax_ : matplotlib.axes.Axes
        Axes of the plot.
    figure_ : matplotlib.figure.Figure
        Figure that contains the axes.
    curve_ : matplotlib.container.ErrorbarContainer
        Mean scores with their standard errors.
    marks_ : list of matplotlib.lines.Line2D
        Vertical lines at the chosen numbers, empty if `plot` was called with
        `marks=False`.

    See Also
    --------
    LossCurveDisplay : Losses by epoch.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.decomposition import PCA
    >>> from skae.inspection import ComponentSelectionDisplay
    >>> from skae.model_selection import explained_variance
    >>> display = ComponentSelectionDisplay.from_estimator(
    ...     PCA(random_state=0),
    ...     load_digits().data,
    ...     n_components=[1, 5, 10, 20, 40, 60],
    ...     scoring=explained_variance,
    ... )
    >>> display.best, display.one_standard_error, display.elbow
    (60, 60, 20)
    """

    def __init__(
        self,
        n_components: ArrayLike,
        scores: ArrayLike,
        *,
        score_name: str | None = None,
        estimator_name: str | None = None,
        standard_errors: ArrayLike | None = None,
    ):
        self.n_components = n_components
        self.scores = scores
        self.score_name = score_name
        self.estimator_name = estimator_name
        self.standard_errors = standard_errors

    @property
    def best(self) -> Any:
        """Number of components with the highest mean score."""
        curve = self._curve()
        return curve.values[np.argmax(mean_scores(curve.scores))].item()

    @property
    def one_standard_error(self) -> Any:
        """Smallest number of components within one standard error of the best."""
        values, scores, errors = self._curve()
        if errors is None:
            return None
        return values[smallest_near_best(values, mean_scores(scores), errors)].item()

    @property
    def elbow(self) -> Any:
        """Number of components at the elbow of the curve of mean scores."""
        values, scores, _ = self._curve()
        means = scores.mean(axis=1)
        finite = np.isfinite(means)
        return elbow(values[finite], means[finite])

    def _curve(self) -> _Curve:
        """Return the attributes that are plotted, validated."""
        values = check_numbers("n_components", self.n_components, ("n_values",))
        if (np.diff(values) <= 0).any():
            raise ValueError(
                "n_components must be distinct numbers in ascending order, got "
                f"{values.tolist()}."
            )
        scores = check_numbers(
            "scores",
            self.scores,
            (len(values), "n_splits"),
            allow_nonfinite=True,
        )
        if not np.isfinite(scores).all(axis=1).any():
            raise ValueError("scores must have a row of finite scores, got none.")
        errors = standard_errors(scores) if scores.shape[1] > 1 else None
        if self.standard_errors is not None:
            shape = (len(values),)
            errors = check_numbers(
                "standard_errors", self.standard_errors, shape, low=0
            )
        return _Curve(np.asarray(self.n_components), scores, errors)

    @classmethod
    @check_arguments
    def from_search(
        cls,
        search: Any,
        *,
        param: str | None = None,
        metric: str = "score",
        score_name: str | None = None,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Plot the scores of a fitted search.

        If the search varies other parameters too, the best setting of each number of
        components is plotted.

        Parameters
        ----------
        search : GridSearchCV or RandomizedSearchCV
            The fitted search.
        param : str, default=None
            Parameter on the x-axis. If None, the parameter named ``"n_components"``
            or ending in ``"__n_components"``.
        metric : str, default="score"
            Name of the score, for a search with several metrics.
        score_name : str, default=None
            Label of the y-axis. If None, "explained variance" if the scores are known
            to be that, else `metric`.
        name : str, default=None
            Label of the curve in the legend.
        ax : matplotlib.axes.Axes, default=None
            Axes to draw into. If None, a new figure is created.
        **kwargs : dict
            Keyword arguments passed to `plot`.

        Returns
        -------
        display : ComponentSelectionDisplay
            The display, drawn.
        """
        check_is_fitted(search)
        if not hasattr(search, "cv_results_"):
            raise TypeError(
                f"search must be a fitted search, such as GridSearchCV, got {search!r}."
            )
        values, scores = best_settings(read_settings(search.cv_results_, param, metric))
        if score_name is None:
            score_name = _score_name(search, metric)
        display = cls(values, scores, score_name=score_name, estimator_name=name)
        return display.plot(ax, **kwargs)

    @classmethod
    @check_arguments
    def from_estimator(
        cls,
        estimator: Any,
        X: MatrixLike = None,
        y: ArrayLike | None = None,
        *,
        n_components: ArrayLike | None = None,
        param: str | None = None,
        cv: Any = None,
        scoring: Any = None,
        n_jobs: int | None = None,
        score_name: str | None = None,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> Self:
        """Plot the scores of an estimator with several numbers of components.

        Given `n_components`, the estimator is cross-validated with each of them.
        Otherwise it is a fitted transformer with ordered components, whose explained
        variance is plotted for each number of them, with its standard error over the
        rows, except for training rows.

        Parameters
        ----------
        estimator : estimator
            Estimator with a parameter `n_components`, or `Pipeline` with such a step,
            which is cloned. Or a fitted `AutoencoderTransformer` with ordered
            components, or a `Pipeline` or a search that ends in one.
        X : {array-like, sparse matrix} of shape (n_samples, n_features), default=None
            Rows to split into training and test rows. For a fitted estimator, test
            rows; None means the rows that its fit held out or, without early stopping,
            its training rows.
        y : array-like of shape (n_samples,), default=None
            Target, passed to the estimator and the scorer.
        n_components : array-like of int of shape (n_values,), default=None
            Numbers of components to compare. None means those of a fitted estimator;
            `y`, `param`, `cv`, `scoring` and `n_jobs` then have no effect.
        param : str, default=None
            Name of the parameter. If None, the parameter named ``"n_components"`` or
            ending in ``"__n_components"``.
        cv : int, splitter or iterable, default=None
            As in `GridSearchCV`.
        scoring : str or callable, default=None
            As in `GridSearchCV`. If None, the estimator's `score` method.
        n_jobs : int, default=None
            As in `GridSearchCV`.
        score_name : str, default=None
            Label of the y-axis. If None, "explained variance" if the scores are known
            to be that, else "score".
        name : str, default=None
            Label of the curve. If None, the name of the class that has the parameter.
        ax : matplotlib.axes.Axes, default=None
            Axes to draw into. If None, a new figure is created.
        **kwargs : dict
            Keyword arguments passed to `plot`.

        Returns
        -------
        display : ComponentSelectionDisplay
            The display, drawn.

        Examples
        --------
        One fit instead of a search:

        >>> from sklearn.datasets import load_digits
        >>> from skae import AutoencoderTransformer
        >>> from skae.inspection import ComponentSelectionDisplay
        >>> ae = AutoencoderTransformer(
        ...     4, ordered=True, hidden_layer_sizes=(32,), random_state=0
        ... ).fit(load_digits().data[:400])
        >>> display = ComponentSelectionDisplay.from_estimator(ae)
        >>> display.best
        4
        """
        if n_components is None:
            curve = _curve_of_fit(estimator, X)
            default_name = "explained variance"
            if not curve.is_held_out:
                default_name += " of training rows"
            has_errors = curve.is_held_out and np.isfinite(curve.standard_error).all()
            display = cls(
                np.arange(len(curve.explained)) + 1,
                curve.explained[:, None],
                score_name=score_name or default_name,
                estimator_name=name or "AutoencoderTransformer",
                standard_errors=curve.standard_error if has_errors else None,
            )
            return display.plot(ax, **kwargs)
        if X is None:
            raise TypeError("X must be the rows to split, since n_components is given.")
        counts = check_counts("n_components", n_components)
        params = clone(estimator).get_params()
        param = find_parameter(params, param, "the estimator")
        step = params[param.rpartition("__")[0]] if "__" in param else estimator
        search = GridSearchCV(
            estimator,
            {param: counts},
            scoring=scoring,
            cv=cv,
            n_jobs=n_jobs,
            refit=False,
            error_score="raise",
        ).fit(X, y)
        return cls.from_search(
            search,
            score_name=score_name,
            name=name or type(step).__name__,
            ax=ax,
            **kwargs,
        )

    @draws
    def plot(
        self, ax: Axes | None = None, *, marks: bool = True, **kwargs: Any
    ) -> Self:
        """Plot the scores and mark the chosen numbers of components.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Axes to draw into. If None, a new figure is created.
        marks : bool, default=True
            Whether to mark the chosen numbers. Pass False to add a second curve to the
            same axes.
        **kwargs : dict
            Keyword arguments passed to `matplotlib.axes.Axes.errorbar`.

        Returns
        -------
        display : ComponentSelectionDisplay
            This object.
        """
        values, scores, errors = self._curve()
        check_display(self, "score_name", "estimator_name")
        self.ax_, self.figure_ = get_axes(ax)
        means = scores.mean(axis=1)
        style = {
            "marker": ".",
            "capsize": 3,
            "label": self.estimator_name or "mean and standard error",
            **kwargs,
        }
        self.curve_ = self.ax_.errorbar(values, means, errors, **style)
        self.marks_: list[Any] = []
        if marks:
            self._draw_marks(values, means, errors)
        from matplotlib.ticker import MaxNLocator

        self.ax_.xaxis.set_major_locator(MaxNLocator(integer=True))
        self.ax_.set(xlabel="n_components", ylabel=self.score_name or "score")
        self.ax_.legend()
        return self

    def _draw_marks(
        self, values: np.ndarray, means: np.ndarray, errors: np.ndarray | None
    ) -> None:
        """Draw a vertical line at each chosen number, labelled with its rules."""
        chosen: dict[Any, list[str]] = {}
        rules = {
            "best": self.best,
            "one standard error": self.one_standard_error,
            "elbow": self.elbow,
        }
        for rule, value in rules.items():
            if value is not None:
                chosen.setdefault(value, []).append(rule)
        style: dict[str, Any] = {"linewidth": 1, "zorder": 0}
        for i, (value, names) in enumerate(chosen.items()):
            label = f"{', '.join(names)}: {value}"
            line = self.ax_.axvline(
                value, color=f"C{i + 2}", linestyle="--", label=label, **style
            )
            self.marks_.append(line)
        if errors is not None:
            best = np.flatnonzero(values == self.best)[0]
            level = means[best] - errors[best]
            self.ax_.axhline(level, color="0.6", linestyle=":", **style)


class _Curve(NamedTuple):
    """What a display plots.

    Attributes
    ----------
    values : ndarray of shape (n_values,)
        Numbers of components.
    scores : ndarray of shape (n_values, n_splits)
    errors : ndarray of shape (n_values,) or None
        Standard errors of the mean scores, if they are known.
    """

    values: np.ndarray
    scores: np.ndarray
    errors: np.ndarray | None


def _curve_of_fit(estimator: Any, X: MatrixLike) -> VarianceCurve:
    """Return the curve of rows, or that of the rows that a fit has held out."""
    try:
        transformer = find_autoencoder(estimator, AutoencoderTransformer)
        if X is None or transformer._trained.ordered is None:
            return read_curve(estimator)
    except (TypeError, ValueError) as error:
        raise type(error)(
            "n_components must be given, unless the estimator is a fitted transformer "
            f"with ordered components: {error}"
        ) from None
    _, rows, _ = find_autoencoder_and_input(estimator, X, AutoencoderTransformer)
    return transformer._variance_curve(rows)


def _score_name(search: Any, metric: str) -> str:
    """Return "explained variance" if the scores of a search are that, else `metric`."""
    scorer = getattr(search, "scorer_", None)
    scorer = scorer.get(metric) if isinstance(scorer, dict) else scorer
    estimator = search.estimator
    last = estimator[-1] if isinstance(estimator, Pipeline) else estimator
    is_default = search.scoring is None and isinstance(last, AutoencoderTransformer)
    if is_default or scorer is explained_variance:
        return "explained variance"
    return metric
