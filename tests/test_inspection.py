"""Tests of skae.inspection."""

import re
import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import sklearn
from matplotlib.colors import Normalize
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import false_discovery_control
from sklearn.datasets import load_wine
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

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
from skae.model_selection import elbow, explained_variance, one_standard_error

matplotlib.use("Agg")

FAST = {"hidden_layer_sizes": (16,), "max_epochs": 3, "random_state": 0}


@pytest.fixture(autouse=True)
def no_open_figures():
    plt.close("all")  # those of other modules' tests
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def images(digits):
    ae = AutoencoderTransformer(4, input_shape=(8, 8), early_stopping=True, **FAST)
    return ae.fit(digits[:300])


@pytest.fixture(scope="module")
def wine():
    return load_wine(as_frame=True).data


@pytest.fixture(scope="module")
def pipeline(wine):
    ae = AutoencoderTransformer(2, **FAST)
    return make_pipeline(StandardScaler(), ae).fit(wine)


@pytest.fixture(scope="module")
def detector(wine):
    return AutoencoderOutlierDetector(max_epochs=3, random_state=0).fit(wine)


def with_missing_entries(X):
    X = X.copy()
    X.iloc[::3, 1] = np.nan
    return X


def test_importing_inspection_does_not_import_matplotlib():
    code = "import sys, skae.inspection; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_plot_without_matplotlib_raises_import_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"LossCurveDisplay.plot requires matplotlib"):
        LossCurveDisplay([1.0, 0.5]).plot()


# Pipelines, searches and other estimators


def test_displays_accept_searches_and_pipelines(wine, pipeline):
    search = GridSearchCV(pipeline, {"autoencodertransformer__n_components": [2]}, cv=2)
    search.fit(wine)
    scaled = StandardScaler().fit_transform(wine)
    points = LatentSpaceDisplay.from_estimator(search, wine).Z
    assert_allclose(points, search.best_estimator_[-1].transform(scaled))
    display = ReconstructionDisplay.from_estimator(pipeline, wine, n_samples=200)
    assert_allclose(display.X, scaled)
    assert_allclose(display.X_hat, pipeline[-1].reconstruct(scaled))
    ticks = [t.get_text() for t in display.axes_[-1, 0].get_xticklabels()]
    assert ticks == list(wine.columns)


@pytest.mark.parametrize(
    ("display", "kind"),
    [
        (ReconstructionDisplay, "autoencoder of skae"),
        (LatentSpaceDisplay, "AutoencoderTransformer"),
        (ComponentTraversalDisplay, "AutoencoderTransformer"),
        (ComponentContributionDisplay, "AutoencoderTransformer"),
        (OutlierScoreDisplay, "AutoencoderOutlierDetector"),
        (PValueDisplay, "AutoencoderOutlierDetector"),
        (FeatureContributionDisplay, "AutoencoderOutlierDetector"),
    ],
)
def test_other_estimators_are_rejected(display, kind, digits):
    before = plt.get_fignums()
    with pytest.raises(TypeError, match=rf"must be a fitted {kind}.*PCA"):
        display.from_estimator(PCA(2).fit(digits), digits)
    assert plt.get_fignums() == before


def test_unfitted_estimators_are_rejected():
    with pytest.raises(ValueError, match="not fitted yet"):
        LossCurveDisplay.from_estimator(AutoencoderTransformer())


@pytest.mark.parametrize("method", ["subplots", "add_axes"])
def test_displays_draw_into_given_axes(method, images, detector, wine, digits):
    for draw in (
        lambda ax: LossCurveDisplay.from_estimator(images, ax=ax),
        lambda ax: ReconstructionDisplay.from_estimator(images, digits, ax=ax),
        lambda ax: LatentSpaceDisplay.from_estimator(images, digits, ax=ax),
        lambda ax: ComponentTraversalDisplay.from_estimator(images, digits, ax=ax),
        lambda ax: ComponentContributionDisplay.from_estimator(images, digits, ax=ax),
        lambda ax: OutlierScoreDisplay.from_estimator(detector, wine, ax=ax),
        lambda ax: PValueDisplay.from_estimator(detector, wine, ax=ax),
        lambda ax: FeatureContributionDisplay.from_estimator(detector, wine, ax=ax),
        lambda ax: FeatureContributionDisplay(
            digits[0], x=digits[0], input_shape=(8, 8)
        ).plot(ax),
    ):
        figure = plt.figure()
        ax = (
            figure.subplots() if method == "subplots" else figure.add_axes((0, 0, 1, 1))
        )
        display = draw(ax)
        assert display.ax_ is ax
        assert display.figure_ is figure
        assert len(plt.get_fignums()) == 1
        figure.canvas.draw()
        plt.close(figure)


# Each display


def test_loss_curves_and_best_epoch_are_drawn(images):
    display = LossCurveDisplay.from_estimator(images)
    training, validation = display.lines_
    assert_allclose(training.get_ydata(), images.loss_curve_)
    assert_allclose(validation.get_ydata(), images.validation_loss_curve_)
    assert_array_equal(training.get_xdata(), [1, 2, 3])
    assert display.best_line_.get_xdata() == [images.net_.best_epoch_] * 2
    assert display.ax_.get_title() == "AutoencoderTransformer"


def test_without_validation_loss_there_is_one_curve(detector):
    display = LossCurveDisplay.from_estimator(detector, name="mine", color="k")
    assert len(display.lines_) == 1
    assert display.lines_[0].get_color() == "k"
    assert display.ax_.get_title() == "mine"


def test_images_are_drawn_above_their_reconstructions(images, digits):
    display = ReconstructionDisplay.from_estimator(images, digits, n_samples=5)
    assert display.axes_.shape == (2, 5)
    shown = [[ax.get_images()[0].get_array() for ax in row] for row in display.axes_]
    assert_allclose(np.reshape(shown[0], (5, 64)), display.X)
    assert_allclose(np.reshape(shown[1], (5, 64)), images.reconstruct(display.X))


def test_random_state_determines_the_rows(images, digits):
    def rows(random_state):
        display = ReconstructionDisplay.from_estimator(
            images, digits, random_state=random_state
        )
        return display.X

    assert_array_equal(rows(0), rows(0))
    assert not np.array_equal(rows(0), rows(1))


def test_images_with_three_channels_are_drawn_in_colour():
    X = np.random.default_rng(0).uniform(2, 5, size=(4, 3 * 16))
    display = ReconstructionDisplay(X, X, input_shape=(3, 4, 4)).plot()
    shown = display.axes_[0, 0].get_images()[0].get_array()
    expected = (X[0] - X.min()) / np.ptp(X)
    assert_allclose(shown, expected.reshape(3, 4, 4).transpose(1, 2, 0))


def test_missing_entries_are_not_drawn(pipeline, wine):
    display = ReconstructionDisplay.from_estimator(pipeline, with_missing_entries(wine))
    display.figure_.canvas.draw()
    drawn = np.array([ax.lines[0].get_ydata() for ax in display.axes_[:, 0]])
    assert np.isnan(drawn).any()
    assert np.isfinite([ax.lines[1].get_ydata() for ax in display.axes_[:, 0]]).all()


def test_codes_of_many_components_are_projected_onto_principal_axes(images, digits):
    display = LatentSpaceDisplay.from_estimator(images, digits[:50])
    Z = PCA(2, svd_solver="full").fit_transform(images.transform(digits[:50]))
    assert_allclose(display.ax_.collections[0].get_offsets(), Z)
    assert "principal axis" in display.ax_.get_xlabel()


def test_transform_output_pandas_gives_the_same_displays(detector, wine):
    def drawn():
        rows = ReconstructionDisplay.from_estimator(detector, wine, n_samples=3)
        shares = FeatureContributionDisplay.from_estimator(detector, wine, row=4)
        return rows.X_hat, shares.contributions

    arrays = drawn()
    with sklearn.config_context(transform_output="pandas"):
        for array, from_frame in zip(arrays, drawn(), strict=True):
            np.testing.assert_array_equal(array, from_frame)


def test_histogram_with_continuous_y_counts_all_rows():
    z = np.linspace(-1, 1, 30)[:, None]
    y = np.arange(30.0)
    y[:4] = np.nan
    bars = LatentSpaceDisplay(z, y=y).plot().ax_.patches
    assert sum(bar.get_height() for bar in bars) == 30


def test_missing_classes_have_their_own_group(pipeline, wine):
    y = load_wine().target.astype(float)
    y[:10] = np.nan
    display = LatentSpaceDisplay.from_estimator(pipeline, wine, y)
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert labels == ["missing", "0.0", "1.0", "2.0"]
    sizes = [len(points.get_offsets()) for points in display.ax_.collections]
    assert sum(sizes) == len(wine)
    assert sizes[0] == 10


def test_continuous_y_is_mapped_to_a_colormap(pipeline, wine):
    y = wine["proline"].to_numpy()
    display = LatentSpaceDisplay.from_estimator(pipeline, wine, y)
    assert_array_equal(display.ax_.collections[0].get_array(), y)
    assert len(display.figure_.axes) == 2  # the second is the colorbar


def test_many_points_of_one_colour_are_drawn_as_a_density():
    Z = np.random.default_rng(0).standard_normal((6_000, 2))
    assert LatentSpaceDisplay(Z).plot().ax_.collections[0].get_array().sum() == 6_000
    coloured = LatentSpaceDisplay(Z, np.arange(6_000) % 3).plot()
    assert len(coloured.ax_.collections) == 3


def test_code_of_one_component_is_drawn_as_a_histogram():
    z = np.random.default_rng(0).standard_normal((500, 1))
    display = LatentSpaceDisplay(z, np.arange(500) % 2).plot()
    assert sum(bar.get_height() for bar in display.ax_.patches) == 500


def test_y_of_wrong_length_is_rejected(pipeline, wine):
    with pytest.raises(ValueError, match="for each of the 178 rows, got 3"):
        LatentSpaceDisplay.from_estimator(pipeline, wine, [1, 2, 3])


def test_threshold_and_roc_auc_of_scores(detector, wine):
    y = np.where(np.arange(len(wine)) % 5 == 0, -1, 1)
    display = OutlierScoreDisplay.from_estimator(detector, wine, y)
    expected = roc_auc_score(y, detector.score_samples(wine))
    assert_allclose(display.roc_auc, expected)
    assert f"{expected:.3f}" in display.ax_.get_title()
    assert display.ax_.lines[0].get_xdata() == [detector.offset_] * 2
    other = OutlierScoreDisplay.from_estimator(
        detector, wine, (y == -1).astype(int), outlier_label=1
    )
    assert other.roc_auc == display.roc_auc


def test_histogram_without_labels_counts_all_scores(detector, wine):
    display = OutlierScoreDisplay.from_estimator(detector, with_missing_entries(wine))
    assert display.roc_auc is None
    assert sum(bar.get_height() for bar in display.ax_.patches) == len(wine)


def test_roc_auc_of_a_single_class_is_none(detector, wine):
    y = np.full(len(wine), -1)
    display = OutlierScoreDisplay.from_estimator(detector, wine, y)
    assert display.roc_auc is None


def test_p_values_up_to_the_threshold_are_alarms(detector, wine):
    rows = wine.copy()
    rows.iloc[:20] *= 3
    display = PValueDisplay.from_estimator(detector, rows, level=0.2)
    assert_allclose(display.p_values, detector.p_values(rows))
    is_alarm = false_discovery_control(display.p_values) <= 0.2
    assert display.n_alarms == is_alarm.sum() >= 20
    assert display.threshold == display.p_values[is_alarm].max()
    assert display.ax_.lines[1].get_xdata() == [display.threshold] * 2
    assert sum(bar.get_height() for bar in display.ax_.patches) == len(rows)


@pytest.mark.parametrize(
    ("p_values", "threshold", "n_alarms"),
    [
        ([0.9, 0.02, 0.5, 0.05], 0.05, 2),  # .05 = 2 * .1 / 4
        ([0.9, 0.02, 0.5, 0.051], 0.02, 1),
        ([0.04, 0.04, 0.04, 1], 0.04, 3),
        ([0.9, 0.3], None, 0),
    ],
)
def test_threshold_is_that_of_benjamini_and_hochberg(p_values, threshold, n_alarms):
    display = PValueDisplay(p_values).plot()
    assert display.threshold == threshold
    assert display.n_alarms == n_alarms
    assert len(display.ax_.lines) == (1 if threshold is None else 2)
    assert display.ax_.get_title().startswith(f"{n_alarms} alarms")


@pytest.mark.parametrize("level", [0, 1, -0.1, np.nan])
def test_level_outside_of_the_unit_interval_is_rejected(level, detector, wine):
    with pytest.raises(ValueError, match=r"'level' .* in the range \(0.0, 1.0\)"):
        PValueDisplay.from_estimator(detector, wine, level=level)


@pytest.mark.parametrize("y", [[0, 1] * 89, np.arange(178) % 3 - 1])
def test_labels_without_outlier_label_are_rejected(y, detector, wine):
    with pytest.raises(ValueError, match=r"two labels, one of them outlier_label=-1"):
        OutlierScoreDisplay.from_estimator(detector, wine, y)


def heights(container):
    """Heights of the bars of a histogram."""
    return [bar.get_height() for bar in container]


def test_training_scores_are_drawn_without_x(wine):
    weight = np.arange(len(wine)) % 3  # rows of weight zero are drawn, too
    settings = {"autoencoderoutlierdetector__sample_weight": weight}
    detector = AutoencoderOutlierDetector(max_epochs=3, random_state=0)
    model = make_pipeline(StandardScaler(), detector).fit(wine, **settings)
    display = OutlierScoreDisplay.from_estimator(model)
    assert_allclose(display.scores, model.score_samples(wine))
    assert sum(heights(display.ax_.containers[0])) == len(wine)
    assert display.ax_.lines[0].get_xdata() == [model[-1].offset_] * 2
    y = np.where(np.arange(len(wine)) % 5 == 0, -1, 1)
    labelled = OutlierScoreDisplay.from_estimator(model, y=y)
    expected = OutlierScoreDisplay.from_estimator(model, wine, y)
    assert_allclose(labelled.roc_auc, expected.roc_auc)


@pytest.mark.parametrize(
    "change",
    [
        lambda detector, X: setattr(detector, "offset_", -0.75),
        lambda detector, X: detector.set_params(contamination=0.3).recalibrate(),
        lambda detector, X: detector.recalibrate(X[:60]),
    ],
    ids=["assigned", "recalibrated", "recalibrated from rows"],
)
@pytest.mark.parametrize("rows", [None, slice(100)])
def test_the_present_threshold_is_drawn(change, rows, wine):
    detector = AutoencoderOutlierDetector(max_epochs=2, random_state=0).fit(wine)
    before = detector.offset_
    change(detector, wine)
    X = None if rows is None else wine[rows]
    display = OutlierScoreDisplay.from_estimator(detector, X)
    assert display.ax_.lines[0].get_xdata() == [detector.offset_] * 2
    assert display.offset != before


@pytest.mark.parametrize("is_labelled", [False, True])
def test_training_scores_are_drawn_beside_those_of_x(is_labelled, detector, wine):
    y = np.where(np.arange(60) % 5 == 0, -1, 1) if is_labelled else None
    display = OutlierScoreDisplay.from_estimator(
        detector, wine[:60], y, show_training=True
    )
    assert_array_equal(display.training_scores, detector.training_scores_)
    outline = display.ax_.patches[-1].get_xy()  # corners of the steps
    width = np.unique(outline[:, 0])[1] - np.unique(outline[:, 0])[0]
    total = outline[1:-1:2, 1].sum() * (width if is_labelled else 1)
    assert_allclose(total, 1 if is_labelled else 60)
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert "178 training rows" in labels
    alone = OutlierScoreDisplay.from_estimator(detector, show_training=True)
    assert alone.training_scores is None


@pytest.mark.parametrize("rows", [None, slice(100)])
def test_labels_of_another_length_than_the_rows_are_rejected(rows, detector, wine):
    y = np.where(np.arange(90) % 5 == 0, -1, 1)
    X = None if rows is None else wine[rows]
    with pytest.raises(ValueError, match=r"label for each of the \d+ rows, got 90"):
        OutlierScoreDisplay.from_estimator(detector, X, y)


def test_contributions_are_drawn_in_descending_order(detector, wine):
    display = FeatureContributionDisplay.from_estimator(
        detector, wine, 7, max_features=4
    )
    expected = np.sort(detector.feature_contributions(wine)[7])[::-1]
    assert_allclose([bar.get_width() for bar in display.bars_], expected[:4])
    top = detector.feature_contributions(wine)[7].argmax()
    label = display.ax_.get_yticklabels()[0].get_text()
    assert label.startswith(f"{wine.columns[top]} = {wine.iloc[7, top]:.3g} instead of")
    explanation = detector.explain(wine.iloc[[7]], top=4)
    percent = [text.get_text() for text in display.ax_.texts]
    assert percent == [f"{share:.0%}" for share in explanation["share"]]


def test_missing_entry_has_no_contribution_and_is_labelled_missing(detector, wine):
    X = wine.copy()
    X.iloc[0, 1] = np.nan
    display = FeatureContributionDisplay.from_estimator(detector, X, max_features=13)
    labels = [t.get_text() for t in display.ax_.get_yticklabels()]
    assert "malic_acid missing" in labels
    assert display.contributions[1] == 0


@pytest.fixture(scope="module")
def image_detector(digits):
    return AutoencoderOutlierDetector(input_shape=(8, 8), **FAST).fit(digits[:300])


@pytest.mark.parametrize("in_pipeline", [False, True])
def test_contributions_of_an_image_are_a_map_over_it(
    in_pipeline, image_detector, digits
):
    model, X = image_detector, digits[:9]
    if in_pipeline:
        model = make_pipeline(FunctionTransformer(lambda X: X / 2), model)
        X = 2 * X
    display = FeatureContributionDisplay.from_estimator(model, X, 4)
    expected = image_detector.feature_contributions(digits[4:5]).reshape(8, 8)
    picture, over = display.ax_.get_images()
    assert (picture, over) == (display.image_, display.map_)
    assert_array_equal(picture.get_array(), digits[4].reshape(8, 8))
    assert picture.get_cmap().name == "gray"
    assert_allclose(over.get_array(), expected)
    assert over.get_clim() == (0, expected.max())
    assert display.colorbar_.ax.get_ylabel() == "contribution to the error"
    assert display.ax_.get_xlabel() == f"row's error of {expected.sum():.3g}"
    assert not hasattr(display, "bars_")
    display.figure_.canvas.draw()


def test_pixels_of_larger_contributions_are_more_opaque(image_detector, digits):
    for settings in ({}, {"cmap": "viridis"}, {"norm": Normalize(0, 0.1)}):
        over = FeatureContributionDisplay.from_estimator(
            image_detector, digits, **settings
        ).map_
        values = np.linspace(*over.get_clim(), 200)
        opacity = over.to_rgba(values)[:, 3]
        assert opacity[0] == 0
        assert 0.8 < opacity[-1] < 1  # the picture shows through
        assert (np.diff(opacity) >= 0).all()


def test_spoilt_patch_is_the_largest_part_of_the_map(digits):
    detector = AutoencoderOutlierDetector(input_shape=(8, 8), random_state=0)
    digit = digits[:1].copy()
    digit.reshape(8, 8)[1:3, :2] = 16
    display = FeatureContributionDisplay.from_estimator(detector.fit(digits), digit)
    largest = np.argsort(display.map_.get_array(), axis=None)[-4:]
    assert sorted(largest) == [8, 9, 16, 17]


@pytest.mark.parametrize("shape", [None, (64,), [64], (64, 1, 1), (2, 1, 32)])
def test_rows_without_the_shape_of_an_image_have_bars(shape, digits):
    display = FeatureContributionDisplay(digits[0], input_shape=shape).plot()
    assert len(display.bars_) == 10
    assert not display.ax_.get_images()


def test_given_shape_replaces_that_of_the_estimator(image_detector, digits):
    def draw(shape):
        return FeatureContributionDisplay.from_estimator(
            image_detector, digits, input_shape=shape
        )

    assert len(draw((64,)).bars_) == 10
    assert draw([4, 16]).map_.get_array().shape == (4, 16)
    assert draw((4, 4, 4)).map_.get_array().shape == (4, 4)


@pytest.mark.parametrize("n_channels", [1, 2, 3, 4])
def test_map_is_the_sum_over_channels(n_channels):
    rng = np.random.default_rng(0)
    contributions, x = rng.uniform(1, 2, size=(2, n_channels, 4, 5))
    display = FeatureContributionDisplay(
        contributions.ravel(), x=x.ravel(), input_shape=x.shape
    ).plot()
    assert_allclose(display.map_.get_array(), contributions.sum(axis=0))
    shown = display.image_.get_array()
    if n_channels == 3:
        assert_allclose(shown, np.moveaxis((x - x.min()) / np.ptp(x), 0, -1))
    else:
        assert_allclose(shown, x.mean(axis=0))


def test_missing_pixels_are_blank_and_contribute_nothing(image_detector, digits):
    X = digits[:1].copy()
    X[0, 20:30] = np.nan
    display = FeatureContributionDisplay.from_estimator(image_detector, X)
    is_missing = np.isnan(X[0]).reshape(8, 8)
    assert_array_equal(np.ma.getmaskarray(display.image_.get_array()), is_missing)
    opacity = display.map_.to_rgba(display.map_.get_array())[..., 3]
    assert (opacity[is_missing] == 0).all()
    assert (opacity[~is_missing] > 0).any()


@pytest.mark.parametrize("kind", [FeatureContributionDisplay, ReconstructionDisplay])
def test_pixels_with_a_missing_channel_are_blank(kind):
    x = np.random.default_rng(0).uniform(size=(3, 4, 5))
    x[1, 2, 3] = np.nan
    if kind is FeatureContributionDisplay:
        settings = {"x": x.ravel(), "input_shape": x.shape}
        shown = kind(np.zeros(60), **settings).plot().image_
    else:
        panels = kind(x.reshape(1, -1), np.zeros((1, 60)), input_shape=x.shape).plot()
        shown = panels.axes_[0, 0].get_images()[0]
    assert_array_equal(shown.get_array()[..., 3], np.isfinite(x).all(axis=0))


def test_map_without_a_picture_and_without_contributions():
    display = FeatureContributionDisplay(np.zeros(64), input_shape=(8, 8)).plot()
    assert display.image_ is None
    assert display.map_.get_clim() == (0, 1)
    display.figure_.canvas.draw()


def test_infinite_contributions_are_drawn_as_the_largest():
    contributions = np.arange(16.0)
    contributions[3] = np.inf
    display = FeatureContributionDisplay(contributions, input_shape=(4, 4)).plot()
    shown = display.map_.get_array()
    assert not np.ma.is_masked(shown)
    assert shown[0, 3] == shown.max() == display.map_.get_clim()[1] == 15
    assert display.colorbar_.extend == "max"
    display.figure_.canvas.draw()


@pytest.mark.parametrize("shape", [(4, 4), (8, 9), (8, 0), (1, 8, 8, 1), 8, (8.0, 8.0)])
@pytest.mark.parametrize(
    "draw",
    [
        lambda ae, X, shape: FeatureContributionDisplay(X[0], input_shape=shape).plot(),
        lambda ae, X, shape: ReconstructionDisplay(X, X, input_shape=shape).plot(),
        lambda ae, X, shape: ComponentContributionDisplay(
            X[:3], input_shape=shape
        ).plot(),
        lambda ae, X, shape: ComponentTraversalDisplay(
            X[:2, :1], X[:2, None], input_shape=shape
        ).plot(),
        lambda ae, X, shape: ReconstructionDisplay.from_estimator(
            ae, X, input_shape=shape
        ),
        lambda ae, X, shape: FeatureContributionDisplay.from_estimator(
            ae, X, input_shape=shape
        ),
    ],
)
def test_shape_that_does_not_fit_is_rejected(draw, shape, image_detector, digits):
    value = re.escape(repr(shape))
    with pytest.raises(
        ValueError, match=rf"input_shape(={value} has|.*, got {value}\.)"
    ):
        draw(image_detector, digits[:9], shape)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("name", ["x", "x_hat"])
def test_rows_of_another_length_than_the_contributions_are_rejected(name):
    with pytest.raises(
        ValueError, match=rf"^{name} must .* \(64,\).*got shape \(63,\)"
    ):
        FeatureContributionDisplay(np.zeros(64), **{name: np.zeros(63)}).plot()
    assert plt.get_fignums() == []


def test_row_out_of_range_is_rejected(detector, wine):
    with pytest.raises(ValueError, match="one of the 178 rows of X, got 178"):
        FeatureContributionDisplay.from_estimator(detector, wine, 178)


def test_traversal_varies_one_component_of_the_median_code(images, digits):
    display = ComponentTraversalDisplay.from_estimator(
        images, digits, n_steps=3, percentiles=(10, 90), max_components=2
    )
    assert display.axes_.shape == (2, 3)
    Z = images.transform(digits)
    code = np.median(Z, axis=0)
    code[1] = np.percentile(Z[:, 1], 90)
    assert_allclose(display.steps[1, 2], code[1])
    assert_allclose(display.X_hat[1, 2], images.inverse_transform(code[None])[0])


def test_traversal_does_not_depend_on_whitening(wine):
    X = StandardScaler().fit_transform(wine)
    displays = [
        ComponentTraversalDisplay.from_estimator(
            AutoencoderTransformer(2, whiten=whiten, **FAST).fit(X), X
        )
        for whiten in (False, True)
    ]
    assert_allclose(displays[0].X_hat, displays[1].X_hat, atol=1e-9)


def test_contributions_of_components_have_the_features_on_the_axis(pipeline, wine):
    display = ComponentContributionDisplay.from_estimator(pipeline, wine)
    X = pipeline[:-1].transform(wine)
    contributions = pipeline[-1].component_contributions(X)
    assert_array_equal(display.contributions, contributions)
    assert display.axes_.shape == (2, 1)
    for panel, row in zip(display.axes_[:, 0], contributions, strict=True):
        assert_allclose([bar.get_height() for bar in panel.patches], row)
    labels = [label.get_text() for label in display.axes_[1, 0].get_xticklabels()]
    assert labels == list(wine.columns)
    share = contributions[0].sum() / contributions.sum()
    assert display.axes_[0, 0].get_ylabel() == f"component 0\n{share:.0%}"


def test_only_the_largest_contributions_of_components_are_drawn():
    contributions = [[0, 1, 2, 0], [5, 1, 1, 0], [0, 0, 0, 0]]
    display = ComponentContributionDisplay(contributions)
    display.plot(max_features=2, max_components=2, color="C3")
    assert display.axes_.shape == (2, 1)
    heights = [[bar.get_height() for bar in ax.patches] for ax in display.axes_[:, 0]]
    assert heights == [[0, 2], [5, 1]]
    labels = [label.get_text() for label in display.axes_[1, 0].get_xticklabels()]
    assert labels == ["x0", "x2"]


def test_many_features_of_components_are_at_their_columns():
    contributions = np.ones((1, 50))
    contributions[0, 3] = 0
    display = ComponentContributionDisplay(contributions).plot(max_features=49)
    centers = [bar.get_x() + bar.get_width() / 2 for bar in display.axes_[0, 0].patches]
    assert_allclose(centers, np.delete(np.arange(50), 3))


@pytest.mark.parametrize("n_channels", [1, 3])
def test_contributions_of_components_to_images_are_maps(n_channels):
    contributions = np.random.default_rng(0).uniform(size=(2, n_channels * 12))
    display = ComponentContributionDisplay(
        contributions, input_shape=(n_channels, 3, 4)
    ).plot()
    maps = contributions.reshape(2, n_channels, 3, 4).sum(axis=1)
    for panel, values in zip(display.axes_[0], maps, strict=True):
        assert_allclose(panel.images[0].get_array(), values)
        assert panel.images[0].get_clim() == (0, maps.max())
    ComponentContributionDisplay(np.zeros((2, 12)), input_shape=(3, 4)).plot()


def test_traversal_labels_the_features_of_a_table(pipeline, wine):
    display = ComponentTraversalDisplay.from_estimator(
        pipeline, with_missing_entries(wine)
    )
    assert display.axes_.shape == (2, 1)
    ticks = [t.get_text() for t in display.axes_[-1, 0].get_xticklabels()]
    assert ticks == list(wine.columns)
    assert len(display.axes_[0, 0].lines) == 7


# Number of components


@pytest.fixture(scope="module")
def search(digits):
    """A search over the number of components and another parameter."""
    return GridSearchCV(
        make_pipeline(StandardScaler(with_std=False), PCA(random_state=0)),
        {"pca__n_components": [20, 1, 5, 10], "pca__whiten": [True, False]},
        scoring=explained_variance,
        refit=one_standard_error,
        cv=4,
    ).fit(digits[:400])


def test_curve_of_a_search_shows_means_and_standard_errors(search):
    display = ComponentSelectionDisplay.from_search(search)
    line, _, bars = display.curve_
    assert_array_equal(line.get_xdata(), [1, 5, 10, 20])
    means = search.cv_results_["mean_test_score"].reshape(4, 2).max(axis=1)
    assert_allclose(line.get_ydata(), means[[1, 2, 3, 0]])
    ends = np.array([bar[:, 1] for bar in bars[0].get_segments()])
    errors = display.scores.std(axis=1, ddof=1) / 2  # four splits
    assert_allclose(np.diff(ends)[:, 0], 2 * errors)
    assert display.ax_.get_ylabel() == "explained variance"


def test_marks_are_at_the_numbers_chosen_by_the_rules(search):
    display = ComponentSelectionDisplay.from_search(search)
    chosen = search.best_params_["pca__n_components"]
    assert (display.best, display.one_standard_error) == (20, chosen)
    labels = [line.get_label() for line in display.marks_]
    assert labels == ["best, one standard error: 20", "elbow: 5"]
    assert [line.get_xdata()[0] for line in display.marks_] == [20, 5]


def test_rules_with_different_choices_have_separate_marks():
    scores = [[0.1, 0.1], [0.6, 0.6], [0.7, 0.7], [0.69, 0.79]]
    display = ComponentSelectionDisplay([1, 2, 3, 4], scores).plot()
    assert (display.best, display.one_standard_error, display.elbow) == (4, 3, 2)
    assert len({line.get_color() for line in display.marks_}) == 3
    assert display.ax_.lines[-1].get_ydata() == pytest.approx([0.69] * 2)


def test_from_estimator_equals_a_search(digits):
    pipeline = make_pipeline(StandardScaler(with_std=False), PCA(random_state=0))
    display = ComponentSelectionDisplay.from_estimator(
        pipeline, digits[:100], n_components=np.array([2, 1]), cv=2
    )
    search = GridSearchCV(pipeline, {"pca__n_components": [1, 2]}, cv=2)
    scores = search.fit(digits[:100]).cv_results_
    assert_allclose(display.scores[:, 1], scores["split1_test_score"])
    assert display.ax_.get_ylabel() == "score"  # a log-likelihood
    assert display.curve_.get_label() == "PCA"


def test_scores_of_the_transformer_are_labelled_explained_variance(wine):
    display = ComponentSelectionDisplay.from_estimator(
        make_pipeline(StandardScaler(), AutoencoderTransformer(**FAST)),
        wine[:30],
        n_components=[1],
        cv=2,
    )
    assert display.ax_.get_ylabel() == "explained variance"
    assert display.elbow is None


def test_curve_without_marks(search, digits):
    display = ComponentSelectionDisplay.from_search(search)
    other = ComponentSelectionDisplay.from_search(
        search, ax=display.ax_, marks=False, name="again", color="k"
    )
    assert other.marks_ == []
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert labels.count("again") == 1
    assert len(labels) == 4


@pytest.mark.parametrize("in_pipeline", [False, True])
@pytest.mark.parametrize("with_rows", [False, True])
def test_component_selection_takes_one_ordered_estimator(in_pipeline, with_rows):
    X = load_wine().data
    settings = {"hidden_layer_sizes": (8,), "random_state": 0}
    ae = AutoencoderTransformer(4, ordered=True, **settings)
    scaled = StandardScaler().fit_transform(X)
    model = make_pipeline(StandardScaler(), ae) if in_pipeline else ae
    rows = X if in_pipeline else scaled
    model.fit(rows)
    display = ComponentSelectionDisplay.from_estimator(
        model, rows if with_rows else None, name="one fit"
    )
    explained = (
        ae.explained_variance_curve(scaled)
        if with_rows
        else ae._trained.ordered.curve.explained
    )
    x, y = display.curve_[0].get_data()
    np.testing.assert_array_equal(x, [1, 2, 3, 4])
    np.testing.assert_allclose(y, explained)
    assert (display.standard_errors > 0).all()
    assert display.best == explained.argmax() + 1
    assert display.one_standard_error <= display.best
    if not with_rows:
        assert display.one_standard_error == one_standard_error(model)
        assert display.elbow == elbow(np.arange(1, 5), explained)
    assert display.ax_.get_ylabel() == "explained variance"
    assert "one fit" in [t.get_text() for t in display.ax_.get_legend().get_texts()]


def test_component_selection_of_few_rows_or_training_rows_has_no_errors():
    X = load_wine().data
    ae = AutoencoderTransformer(
        3, ordered=True, early_stopping=False, max_epochs=1, random_state=0
    ).fit(X)
    display = ComponentSelectionDisplay.from_estimator(ae)
    assert display.ax_.get_ylabel() == "explained variance of training rows"
    assert display.one_standard_error is None
    display = ComponentSelectionDisplay.from_estimator(ae, X[:1])
    assert display.one_standard_error is None
    # Rows can be given although partial_fit records no curve.
    display = ComponentSelectionDisplay.from_estimator(ae.partial_fit(X), X)
    assert display.one_standard_error is not None
    assert display.ax_.get_ylabel() == "explained variance"
    with pytest.raises(ValueError, match="not by partial_fit"):
        ComponentSelectionDisplay.from_estimator(ae)


def test_component_selection_of_one_fit_needs_ordered_components():
    ae = AutoencoderTransformer(1, random_state=0, max_epochs=1, early_stopping=False)
    with pytest.raises(ValueError, match="ordered=True"):
        ComponentSelectionDisplay.from_estimator(ae.fit(load_wine().data))
    with pytest.raises(TypeError, match="AutoencoderTransformer"):
        ComponentSelectionDisplay.from_estimator(PCA(2).fit(load_wine().data))
    with pytest.raises(TypeError, match="X must be the rows to split"):
        ComponentSelectionDisplay.from_estimator(ae, n_components=[1, 2])


def test_single_split_has_no_standard_error():
    display = ComponentSelectionDisplay([1, 2, 3], [[0.1], [0.5], [0.6]]).plot()
    assert display.one_standard_error is None
    assert [line.get_label() for line in display.marks_] == ["best: 3", "elbow: 2"]


@pytest.mark.parametrize("scores", [[0.1, 0.2, 0.3], [[0.1, 0.2, 0.3]]])
def test_scores_of_wrong_shape_are_rejected(scores):
    with pytest.raises(ValueError, match=r"shape \(3, n_splits\).* got "):
        ComponentSelectionDisplay([1, 2, 3], scores).plot()
    assert plt.get_fignums() == []


def test_metric_selects_one_of_several_scores(digits):
    search = GridSearchCV(
        PCA(random_state=0),
        {"n_components": [1, 2]},
        scoring={
            "kept": explained_variance,
            "minus": lambda pca, X, y=None: -pca.n_components_,
        },
        refit=False,
        cv=2,
    ).fit(digits[:50])
    display = ComponentSelectionDisplay.from_search(search, metric="kept")
    assert display.ax_.get_ylabel() == "explained variance"
    display = ComponentSelectionDisplay.from_search(search, metric="minus")
    assert display.ax_.get_ylabel() == "minus"
    with pytest.raises(ValueError, match=r"metric must be one of \['kept', 'minus'\]"):
        ComponentSelectionDisplay.from_search(search)


def test_invalid_searches_and_estimators_are_rejected(digits):
    with pytest.raises(TypeError, match=r"must be a fitted search.*PCA"):
        ComponentSelectionDisplay.from_search(PCA(2).fit(digits))
    with pytest.raises(ValueError, match="not fitted yet"):
        ComponentSelectionDisplay.from_search(GridSearchCV(PCA(), {}))
    with pytest.raises(ValueError, match="has no parameters n_components"):
        ComponentSelectionDisplay.from_estimator(
            StandardScaler(), digits, n_components=[1]
        )
    with pytest.raises(
        ValueError, match=r"2 parameters .*'a__n_components'.*set param"
    ):
        ComponentSelectionDisplay.from_estimator(
            Pipeline([("a", PCA()), ("b", PCA())]), digits, n_components=[1]
        )
    assert plt.get_fignums() == []
