"""Labels of the figures that displays create."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

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

matplotlib.use("Agg")

RNG = np.random.default_rng(0)
LONG = "a name of forty characters, or a column "
SCORES = RNG.uniform(-3, -1, 60)


def names(n):
    """Names of features, of 40 characters each."""
    return [f"{LONG[:-3]} {j:02d}" for j in range(n)]


def rows(*shape):
    return RNG.uniform(size=shape)


# Each kind of plot of each display, with long names where it has any.
DISPLAYS = {
    "component bars": lambda: ComponentContributionDisplay(
        rows(1, 30), feature_names=names(30)
    ),
    "component bars, eight": lambda: ComponentContributionDisplay(
        rows(8, 3), feature_names=names(3)
    ),
    "component bars, numbered": lambda: ComponentContributionDisplay(rows(2, 40)),
    "component map": lambda: ComponentContributionDisplay(
        rows(1, 64), input_shape=(8, 8)
    ),
    "component maps": lambda: ComponentContributionDisplay(
        rows(8, 64), input_shape=(8, 8)
    ),
    "component maps, wide": lambda: ComponentContributionDisplay(
        rows(2, 64), input_shape=(4, 16)
    ),
    "component maps, high": lambda: ComponentContributionDisplay(
        rows(2, 64), input_shape=(16, 4)
    ),
    "selection": lambda: ComponentSelectionDisplay(
        [1, 2, 4, 8],
        [[0.1, 0.1], [0.6, 0.6], [0.7, 0.7], [0.69, 0.79]],
        score_name=LONG,
        estimator_name=LONG,
    ),
    "traversal curves": lambda: ComponentTraversalDisplay(
        -1e-9 * rows(1, 7), rows(1, 7, 30), feature_names=names(30)
    ),
    "traversal curves, numbered": lambda: ComponentTraversalDisplay(
        rows(4, 3), 1e9 * rows(4, 3, 40)
    ),
    "traversal image": lambda: ComponentTraversalDisplay(
        rows(1, 1), rows(1, 1, 64), input_shape=(8, 8)
    ),
    "traversal images": lambda: ComponentTraversalDisplay(
        rows(5, 2), rows(5, 2, 64), input_shape=(8, 8)
    ),
    "feature bars": lambda: FeatureContributionDisplay(
        rows(10), x=-1e-9 * rows(10), x_hat=-1e-9 * rows(10), feature_names=names(10)
    ),
    "feature bar": lambda: FeatureContributionDisplay(rows(1), feature_names=names(1)),
    "feature map": lambda: FeatureContributionDisplay(
        rows(64), x=rows(64), input_shape=(8, 8)
    ),
    "codes": lambda: LatentSpaceDisplay(1e-9 * rows(60, 2)),
    "codes, density": lambda: LatentSpaceDisplay(rows(5_001, 3)),
    "codes, values": lambda: LatentSpaceDisplay(rows(60, 3), 1e9 * rows(60)),
    "codes, classes": lambda: LatentSpaceDisplay(rows(60, 2), np.repeat(names(3), 20)),
    "codes, forty classes": lambda: LatentSpaceDisplay(rows(40, 2), names(40)),
    "codes, histogram": lambda: LatentSpaceDisplay(
        rows(60, 1), np.repeat(names(8), [7, 7, 7, 7, 8, 8, 8, 8])
    ),
    "losses": lambda: LossCurveDisplay(
        1e-9 * rows(9),
        validation_loss_curve=rows(9),
        best_epoch=7,
        estimator_name=LONG + LONG,
    ),
    "scores": lambda: OutlierScoreDisplay(1e9 * SCORES, offset=-2e9),
    "scores, labelled": lambda: OutlierScoreDisplay(
        SCORES, offset=-2.0, is_outlier=SCORES < -2.5, training_scores=SCORES
    ),
    "p-values": lambda: PValueDisplay(rows(60) ** 4),
    "images": lambda: ReconstructionDisplay(
        rows(5, 64), rows(5, 64), input_shape=(8, 8)
    ),
    "image": lambda: ReconstructionDisplay(
        rows(1, 64), rows(1, 64), input_shape=(8, 8)
    ),
    "image, wide": lambda: ReconstructionDisplay(
        rows(1, 64), rows(1, 64), input_shape=(4, 16)
    ),
    "image, high": lambda: ReconstructionDisplay(
        rows(1, 64), rows(1, 64), input_shape=(16, 4)
    ),
    "curves": lambda: ReconstructionDisplay(
        rows(1, 30), 1e9 * rows(1, 30), feature_names=names(30)
    ),
    "curves, numbered": lambda: ReconstructionDisplay(rows(3, 40), rows(3, 40)),
}


@pytest.fixture(autouse=True)
def no_open_figures():
    plt.close("all")
    yield
    plt.close("all")


@pytest.mark.parametrize("kind", DISPLAYS)
def test_no_label_is_cut_in_a_new_figure(kind):
    display = DISPLAYS[kind]().plot()
    # A layout without room for the plots is a warning, which is an error in tests.
    display.figure_.draw_without_rendering()
    drawn = display.figure_.get_tightbbox()
    pixel = 1 / display.figure_.dpi
    width, height = display.figure_.get_size_inches()
    assert min(drawn.x0, drawn.y0) >= -pixel
    assert drawn.x1 <= width + pixel
    assert drawn.y1 <= height + pixel
    panels = getattr(display, "axes_", np.array(display.ax_))
    sizes = [ax.get_window_extent().size * pixel for ax in panels.ravel()]
    assert np.min(sizes) > 0.2


@pytest.mark.parametrize("kind", ["component map", "curves", "feature bars", "losses"])
def test_layout_of_a_given_figure_is_unchanged(kind):
    figure, ax = plt.subplots(figsize=(5, 3))
    DISPLAYS[kind]().plot(ax)
    assert figure.get_layout_engine() is None
    assert figure.get_size_inches().tolist() == [5, 3]
