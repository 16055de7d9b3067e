"""Invalid arguments of displays: errors before anything is computed or drawn."""

import inspect
import re

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba_array
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV

import skae.inspection
from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae.inspection import (
    ComponentContributionDisplay,
    ComponentSelectionDisplay,
    ComponentTraversalDisplay,
    FeatureContributionDisplay,
    LatentSpaceDisplay,
    LossCurveDisplay,
    OutlierScoreDisplay,
    PValueDisplay,
    ReconstructionDisplay,
)
from skae.inspection._arguments import CONSTRAINTS

matplotlib.use("Agg")

N_ROWS, N_FEATURES = 30, 6
X = np.random.default_rng(0).standard_normal((N_ROWS, N_FEATURES))


class Counted(AutoencoderTransformer):
    """A transformer that fails a test where it predicts, or is fitted again."""

    def transform(self, X):
        raise AssertionError("computed before all arguments were checked")

    reconstruct = component_contributions = transform


class CountedDetector(AutoencoderOutlierDetector):
    def score_samples(self, X):
        raise AssertionError("computed before all arguments were checked")

    reconstruct = feature_contributions = p_values = score_samples


class NeverFitted(PCA):
    def fit(self, X, y=None):
        raise AssertionError("fitted before all arguments were checked")


@pytest.fixture(scope="module")
def transformer():
    return Counted(2, hidden_layer_sizes=(), max_epochs=1, random_state=0).fit(X)


@pytest.fixture(scope="module")
def detector():
    settings = {"hidden_layer_sizes": (4,), "max_epochs": 1, "random_state": 0}
    fitted = AutoencoderOutlierDetector(**settings).fit(X)
    fitted.__class__ = CountedDetector
    return fitted


@pytest.fixture(scope="module")
def search():
    return GridSearchCV(PCA(), {"n_components": [1, 2]}, cv=2).fit(X)


@pytest.fixture(autouse=True)
def no_open_figures():
    plt.close("all")
    yield
    plt.close("all")


# Valid arguments of the constructors, with shapes 3 components, 4 steps, 6 features.
VALID = {
    ComponentContributionDisplay: {"contributions": np.ones((3, 6))},
    ComponentSelectionDisplay: {"n_components": [1, 2, 3], "scores": np.ones((3, 2))},
    ComponentTraversalDisplay: {"steps": np.ones((3, 4)), "X_hat": np.ones((3, 4, 6))},
    FeatureContributionDisplay: {"contributions": np.ones(6)},
    LatentSpaceDisplay: {"Z": np.arange(10.0).reshape(5, 2)},
    LossCurveDisplay: {"loss_curve": [2.0, 1.0]},
    OutlierScoreDisplay: {"scores": [-1.0, -2.0, -3.0]},
    PValueDisplay: {"p_values": [0.5, 0.1]},
    ReconstructionDisplay: {"X": np.ones((2, 6)), "X_hat": np.ones((2, 6))},
}
DISPLAYS = list(VALID)

COUNTS = [0, -1, 1.5, "2", None, np.nan]
TEXTS = [5, ["a"], b"a"]
FLAGS = ["no", 1, None]
SHAPES = [(2, 2), (6.0,), (0, 6), "6", 6, (1, 1, 2, 3)]
NAMES = [["a"] * 5, "abcdef", [["a"] * 6], []]

# Of each constructor: wrong values of each argument.
CONSTRUCTORS = {
    ComponentContributionDisplay: {
        "contributions": [
            np.ones(6),
            np.ones((3, 0)),
            np.ones((0, 6)),
            [[1, 2], [3]],
            [["a"] * 6],
            -np.ones((3, 6)),
            [[np.nan] * 6],
            1j * np.ones((3, 6)),
            None,
        ],
        "feature_names": NAMES,
        "input_shape": SHAPES,
    },
    ComponentSelectionDisplay: {
        "n_components": [[1, 2], [1, 1, 2], [3, 2, 1], 3, ["a", "b", "c"], [], None],
        "scores": [np.ones(3), np.ones((2, 2)), [], np.full((3, 2), np.nan), "abc"],
        "score_name": TEXTS,
        "estimator_name": TEXTS,
        "standard_errors": [np.ones(2), [0.1, -0.1, 0.1], [np.nan] * 3, "abc", 1],
    },
    ComponentTraversalDisplay: {
        "steps": [np.ones((3, 3)), np.ones(4), None, [[np.nan] * 4] * 3],
        "X_hat": [np.ones((3, 4)), np.ones((2, 4, 6)), np.ones((3, 4, 0)), "a"],
        "input_shape": SHAPES,
        "feature_names": NAMES,
    },
    FeatureContributionDisplay: {
        "contributions": [np.ones((1, 6)), [], -np.ones(6), ["a"] * 6, None, 1.0],
        "x": [np.ones(5), np.ones((1, 6)), ["a"] * 5],
        "x_hat": [np.ones(5), np.ones((1, 6)), ["a"] * 5],
        "feature_names": NAMES,
        "input_shape": SHAPES,
    },
    LatentSpaceDisplay: {
        "Z": [np.ones(5), np.ones((5, 0)), [], np.full((5, 2), np.nan), [["a", "b"]]],
        "y": [
            np.ones(4),
            np.ones((5, 2)),
            "abcde",
            np.array([1, 2, 3, "a", "b"], object),
        ],
    },
    LossCurveDisplay: {
        "loss_curve": [1.0, [[1.0]], ["a"], None],
        "validation_loss_curve": [[1.0], [[1.0, 2.0]], ["a", "b"], 1.0],
        "best_epoch": [3, -1, 1.5, "1", np.nan],
        "estimator_name": TEXTS,
    },
    OutlierScoreDisplay: {
        "scores": [[], 1.0, [[1.0]], ["a"], None],
        "offset": ["a", [1.0], np.nan],
        "is_outlier": [[True, False], [1, -1, 1], ["a", "b", "c"], [np.nan] * 3],
        "training_scores": [[], 1.0, [[1.0]], ["a"]],
    },
    PValueDisplay: {
        "p_values": [[], 0.5, [[0.5]], ["a"], [1.5], [-0.1], [np.nan], None],
        "level": [0, 1, -0.1, np.nan, "0.1", None, [0.1]],
    },
    ReconstructionDisplay: {
        "X": [np.ones(6), np.ones((0, 6)), np.ones((2, 0)), [["a"] * 6] * 2, None],
        "X_hat": [np.ones((2, 5)), np.ones((1, 6)), np.ones(6), None],
        "input_shape": SHAPES,
        "feature_names": NAMES,
    },
}

# Of each method: wrong values of the arguments that are not the estimator's own.
IMAGE_SHAPES = [(2, 2), (6.0,), "6", 6]
METHODS = {
    (ComponentContributionDisplay, "from_estimator"): {
        "sample_weight": [np.ones(3), -np.ones(N_ROWS)],
        "max_components": COUNTS,
        "max_features": COUNTS,
        "input_shape": IMAGE_SHAPES,
    },
    (ComponentContributionDisplay, "plot"): {
        "max_components": COUNTS,
        "max_features": COUNTS,
    },
    (ComponentSelectionDisplay, "from_search"): {
        "param": [5, "other"],
        "metric": [5, None, "other"],
        "score_name": TEXTS,
        "name": TEXTS,
        "marks": FLAGS,
    },
    (ComponentSelectionDisplay, "from_estimator"): {
        "n_components": [[], [1, 0], [1.5], 2, None, [[1, 2]], ["a"], [2, 2]],
        "param": [5, "other"],
        "cv": ["a", 1],
        "scoring": ["other", 5],
        "score_name": TEXTS,
        "name": TEXTS,
        "marks": FLAGS,
    },
    (ComponentSelectionDisplay, "plot"): {"marks": FLAGS},
    (ComponentTraversalDisplay, "from_estimator"): {
        "n_steps": COUNTS,
        "percentiles": [(5,), (5, 50, 95), (-1, 95), (5, 101), (95, 5), 5, None, "ab"],
        "max_components": COUNTS,
        "input_shape": IMAGE_SHAPES,
    },
    (ComponentTraversalDisplay, "plot"): {},
    (FeatureContributionDisplay, "from_estimator"): {
        "row": [N_ROWS, -N_ROWS - 1, 1.5, "1", None, [1]],
        "max_features": COUNTS,
        "input_shape": IMAGE_SHAPES,
    },
    (FeatureContributionDisplay, "plot"): {"max_features": COUNTS},
    (LatentSpaceDisplay, "from_estimator"): {
        "y": [np.ones(3), np.ones((N_ROWS, 2)), "a", np.array([1, "a"] * 15, object)]
    },
    (LatentSpaceDisplay, "plot"): {},
    (LossCurveDisplay, "from_estimator"): {"name": TEXTS},
    (LossCurveDisplay, "plot"): {},
    (OutlierScoreDisplay, "from_estimator"): {
        "y": [np.ones(3), np.ones((N_ROWS, 2)), np.arange(N_ROWS), [-1, np.nan] * 15],
        "outlier_label": [0, "outlier"],
        "show_training": FLAGS,
    },
    (OutlierScoreDisplay, "plot"): {},
    (PValueDisplay, "from_estimator"): {"level": [0, 1, np.nan, "0.1", None]},
    (PValueDisplay, "plot"): {},
    (ReconstructionDisplay, "from_estimator"): {
        "n_samples": COUNTS,
        "random_state": ["a", -1, 1.5, np.random.default_rng(0)],
        "input_shape": IMAGE_SHAPES,
    },
    (ReconstructionDisplay, "plot"): {},
}


def wrong_axes():
    """Objects that are not axes of a figure, each with a figure of its own."""
    figure, ax = plt.subplots()
    ax.remove()
    return [figure, ax, np.array(figure.subplots(1, 2)), "ax", 0, []]


def parameters_of(function):
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind not in kinds} - {"self"}


def call(display, method, arguments, transformer, detector, search):
    """Call a method with valid arguments, except for those given."""
    if method == "plot":
        return display(**VALID[display]).plot(**arguments)
    if method == "from_search":
        return display.from_search(search, **arguments)
    if display is ComponentSelectionDisplay:
        settings = {"n_components": [1, 2], **arguments}
        return display.from_estimator(NeverFitted(), X, **settings)
    is_of_scores = display in (
        FeatureContributionDisplay,
        OutlierScoreDisplay,
        PValueDisplay,
    )
    estimator = detector if is_of_scores else transformer
    data = () if display is LossCurveDisplay else (X,)
    if "outlier_label" in arguments:
        arguments = {"y": np.resize([-1, 1], N_ROWS), **arguments}
    return display.from_estimator(estimator, *data, **arguments)


def test_all_displays_and_arguments_are_in_the_tables():
    assert {d.__name__ for d in DISPLAYS} == set(skae.inspection.__all__)
    checked_elsewhere = {"estimator", "search", "X", "ax", "n_jobs"}
    for display in DISPLAYS:
        assert set(CONSTRUCTORS[display]) == parameters_of(display)
        for method in ("plot", "from_estimator", "from_search"):
            if not hasattr(display, method):
                continue
            own = parameters_of(getattr(display, method)) - checked_elsewhere
            if (display, method) == (ComponentSelectionDisplay, "from_estimator"):
                own -= {"y"}  # passed to GridSearchCV
            assert own <= set(METHODS[display, method]), (display, method)
    listed = {n for table in CONSTRUCTORS.values() for n in table}
    listed |= {name for table in METHODS.values() for name in table}
    assert set(CONSTRAINTS) <= listed


@pytest.mark.parametrize(
    ("display", "name", "value"),
    [
        pytest.param(display, name, value, id=f"{display.__name__}-{name}-{i}")
        for display, table in CONSTRUCTORS.items()
        for name, values in table.items()
        for i, value in enumerate(values)
    ],
)
def test_wrong_arguments_of_constructors_are_rejected_before_drawing(
    display, name, value
):
    shown = display(**{**VALID[display], name: value})
    # A wrong first array may not fit the others, which the message then names.
    with pytest.raises((TypeError, ValueError), match=r"\b(must|should|has)\b") as info:
        shown.plot()
    others = ("steps", "X_hat", "scores", "X", "n_components")
    names = {name, *(others if name in ("X", "X_hat", "n_components") else ())}
    assert any(re.search(rf"\b{n}\b", str(info.value)) for n in names)
    assert plt.get_fignums() == []
    assert not hasattr(shown, "ax_")


@pytest.mark.parametrize(
    ("display", "method", "name", "value"),
    [
        pytest.param(*key, name, value, id=f"{key[0].__name__}-{key[1]}-{name}-{i}")
        for key, table in METHODS.items()
        for name, values in table.items()
        for i, value in enumerate(values)
    ],
)
def test_wrong_arguments_of_methods_are_rejected_before_any_work(
    display, method, name, value, transformer, detector, search
):
    with pytest.raises((TypeError, ValueError)) as info:
        call(display, method, {name: value}, transformer, detector, search)
    named = {"cv": "cv|n_splits|n_folds|k-fold", "scoring": "scoring|scorer"}
    assert re.search(rf"\b({named.get(name, name)})", str(info.value))
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("display", "method"), METHODS, ids=lambda v: getattr(v, "__name__", v)
)
def test_ax_must_be_axes_of_a_figure(display, method, transformer, detector, search):
    for ax in wrong_axes():
        before = plt.get_fignums()
        with pytest.raises(TypeError, match=r"'ax' .* one matplotlib\.axes\.Axes"):
            call(display, method, {"ax": ax}, transformer, detector, search)
        assert plt.get_fignums() == before


@pytest.mark.parametrize(
    "display",
    [d for d in DISPLAYS if "kwargs" in inspect.signature(d.plot).parameters],
)
def test_arguments_that_matplotlib_rejects_leave_no_figure(display):
    figure, ax = plt.subplots()
    shown = display(**VALID[display]).plot()  # a figure of an earlier call stays
    for given in (None, ax):
        before = plt.get_fignums()
        with pytest.raises((AttributeError, TypeError), match="unknown"):
            shown.plot(given, unknown=1)
        assert plt.get_fignums() == before
    assert plt.fignum_exists(figure.number)


@pytest.mark.parametrize(
    ("display", "arguments"),
    [
        (LatentSpaceDisplay, {}),
        (LatentSpaceDisplay, {"Z": np.ones((5, 1)), "y": list("aabbb")}),
        (LatentSpaceDisplay, {"y": list("aabbb")}),
        (LossCurveDisplay, {}),
        (OutlierScoreDisplay, {}),
        (OutlierScoreDisplay, {"is_outlier": [0, 0, 1]}),
        (PValueDisplay, {}),
    ],
)
def test_keyword_arguments_replace_the_styles_of_displays(display, arguments):
    ax = display(**{**VALID[display], **arguments}).plot(color="k", label="own").ax_
    artists = [*ax.collections, *ax.patches] or ax.lines
    assert {artist.get_label() for artist in ax.get_children()} >= {"own"}
    for artist in artists:
        name = "get_color" if artist in ax.lines else "get_facecolor"
        assert to_rgba_array(getattr(artist, name)())[0, :3].tolist() == [0, 0, 0]


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT])
def test_missing_classes_of_any_kind_are_grey(missing):
    y = np.array(["a", missing, "b", "a", missing], dtype=object)
    ax = LatentSpaceDisplay(VALID[LatentSpaceDisplay]["Z"], y).plot().ax_
    assert [len(points.get_offsets()) for points in ax.collections] == [2, 2, 1]


def test_codes_that_are_not_finite_are_not_drawn():
    Z = np.arange(18.0).reshape(6, 3)
    Z[1, 0], Z[2, 1] = np.nan, np.inf
    for n_components in (1, 2, 3):
        display = LatentSpaceDisplay(Z[:, :n_components], list("aabbbb")).plot()
        n_finite = np.isfinite(Z[:, :n_components]).all(axis=1).sum()
        bars = sum(bar.get_height() for bar in display.ax_.patches)
        points = sum(len(points.get_offsets()) for points in display.ax_.collections)
        assert bars + points == n_finite
    assert len(LatentSpaceDisplay(Z[:1]).plot().ax_.collections) == 1


def test_estimators_that_are_classes_are_rejected():
    with pytest.raises(TypeError, match="Cannot clone"):
        ComponentSelectionDisplay.from_estimator(PCA, X, n_components=[1])


def test_bools_are_positions(detector):
    with pytest.raises(AssertionError, match="computed"):
        FeatureContributionDisplay.from_estimator(detector, X, True)


def test_fit_without_an_epoch_has_an_empty_curve():
    display = LossCurveDisplay([], best_epoch=0).plot()
    assert len(display.lines_[0].get_xdata()) == 0


def test_bars_of_infinite_contributions_are_as_long_as_the_largest():
    display = FeatureContributionDisplay([np.inf, np.nan, 3.0, 2.0]).plot()
    display.figure_.draw_without_rendering()
    assert [bar.get_width() for bar in display.bars_] == [3, 3, 2, 0]


@pytest.mark.parametrize("s", [0, None, 5, [5] * 2])
def test_size_of_points_may_be_any_that_matplotlib_accepts(s):
    Z = VALID[LatentSpaceDisplay]["Z"]
    assert LatentSpaceDisplay(Z[:4], list("aabb")).plot(s=s).ax_.get_legend()
