"""
Displays of a fitted autoencoder
================================

Seven displays of `skae.inspection` show a fitted autoencoder: losses by epoch,
reconstructions of rows, codes of rows, the distribution of scores, the contributions of
the features to the error of a row, and traversals and contributions of the components.
They accept a pipeline as well as the autoencoder itself.
"""

# sphinx_gallery_thumbnail_number = 2

# sphinx_gallery_start_ignore
# Run as a script, this file saves the figures in the folder ``--out``.
import argparse
from pathlib import Path

parser = argparse.ArgumentParser(description="Seven displays", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="output folder")
# The arguments of a notebook are ignored.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)
# sphinx_gallery_end_ignore

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits, load_wine
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae.inspection import (
    ComponentContributionDisplay,
    ComponentTraversalDisplay,
    FeatureContributionDisplay,
    LatentSpaceDisplay,
    LossCurveDisplay,
    OutlierScoreDisplay,
    ReconstructionDisplay,
)

# %%
# Images
# ------
# Handwritten digits of 8 x 8 pixels. `input_shape` declares that rows are images; the
# network is fully connected nevertheless.

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
ae = AutoencoderTransformer(4, input_shape=(8, 8), random_state=0).fit(X_train)

# %%
# Left, training and validation loss by epoch. The weights are those of the marked
# epoch, which has the lowest loss on the held-out rows. Right, the codes, of four
# components, on their first two principal axes.

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
LossCurveDisplay.from_estimator(ae, ax=left)
LatentSpaceDisplay.from_estimator(ae, X_test, y_test, ax=right)
# sphinx_gallery_start_ignore
figure.savefig(out / "displays_training.png", dpi=120)
# sphinx_gallery_end_ignore

# %%
# Above, test digits and their reconstructions from four components. Below, in each row
# one component varies from its 5th to its 95th percentile, while the others are at
# their medians.

figure, (top, bottom) = plt.subplots(
    2, 1, figsize=(8, 7), height_ratios=(2, 4), layout="constrained"
)
ReconstructionDisplay.from_estimator(ae, X_test, ax=top)
ComponentTraversalDisplay.from_estimator(ae, X_test, ax=bottom)
# sphinx_gallery_start_ignore
figure.savefig(out / "displays_images.png", dpi=120)
# sphinx_gallery_end_ignore

# %%
# Which pixels does each component change? The maps show the mean squared change of a
# pixel when the component changes by one standard deviation.

figure, ax = plt.subplots(figsize=(7, 2.2), layout="constrained")
ComponentContributionDisplay.from_estimator(ae, X_test, ax=ax)
# sphinx_gallery_start_ignore
figure.savefig(out / "displays_components_images.png", dpi=120)
# sphinx_gallery_end_ignore

# %%
# A table
# -------
# Wines of three growers, with 13 measurements each. Bars show which of them two
# components of the wines change.

wine = load_wine(as_frame=True)
reducer = make_pipeline(
    StandardScaler().set_output(transform="pandas"),
    AutoencoderTransformer(2, random_state=0),
).fit(wine.data)

figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
ComponentContributionDisplay.from_estimator(reducer, wine.data, ax=ax)
# sphinx_gallery_start_ignore
figure.savefig(out / "displays_components.png", dpi=120)
# sphinx_gallery_end_ignore

# %%
# A pipeline of a scaler and a detector is fitted to the wines of the first two growers;
# those of the third are the outliers. Left, the scores of all wines and the threshold.
# Right, the features that contribute to the error of the wine with the lowest score:
# each bar is the share of a feature, with its value and the value expected from the
# other features, in units of the scaler.

is_outlier = wine.target == 2
detector = make_pipeline(
    StandardScaler(), AutoencoderOutlierDetector(trim=0, random_state=0)
).fit(wine.data[~is_outlier])

figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
labels = np.where(is_outlier, -1, 1)
OutlierScoreDisplay.from_estimator(detector, wine.data, labels, ax=left)
most_anomalous = detector.score_samples(wine.data).argmin()
FeatureContributionDisplay.from_estimator(detector, wine.data, most_anomalous, ax=right)
# sphinx_gallery_start_ignore
figure.savefig(out / "displays_outliers.png", dpi=120)
# sphinx_gallery_end_ignore

# %%
# An image
# --------
# With the `input_shape` of an image, the contributions are a map over the picture. The
# right panel shows the same digit with a spoilt patch.

detector = AutoencoderOutlierDetector(input_shape=(8, 8), random_state=0).fit(X_train)
pair = np.stack([X_test[0], X_test[0]])
pair.reshape(2, 8, 8)[1, 4:6, :2] = 16

figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for row, ax in enumerate(axes):
    FeatureContributionDisplay.from_estimator(detector, pair, row, ax=ax)
# sphinx_gallery_start_ignore
figure.savefig(out / "displays_contributions.png", dpi=120)
# sphinx_gallery_end_ignore
