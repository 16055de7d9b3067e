"""
Pictures of what was learnt
===========================

`skae.inspection` draws six pictures of a fitted autoencoder: how the loss fell, what is
left of a row, where rows lie in the code, how scores are distributed, which features
make a row strange, and what each component stands for. They take a pipeline as well as
the autoencoder itself.

``python plot_displays.py --out DIR`` saves the figures in DIR, by default in
``figures`` below the current directory.
"""

# %%
# The script draws on the screen only in an interactive session.

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits, load_wine
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae.inspection import (
    ComponentTraversalDisplay,
    FeatureContributionDisplay,
    LatentSpaceDisplay,
    LossCurveDisplay,
    OutlierScoreDisplay,
    ReconstructionDisplay,
)

if not hasattr(sys, "ps1"):
    plt.switch_backend("Agg")

parser = argparse.ArgumentParser(description="Six pictures", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="folder to fill")
# A gallery or a notebook has arguments of its own.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)

# %%
# Images
# ------
# Handwritten digits of 8 x 8 pixels. `input_shape` says that rows are images; the
# network is fully connected all the same.

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
ae = AutoencoderTransformer(4, input_shape=(8, 8), random_state=0).fit(X_train)

# %%
# How far it trained, and which epoch was kept: the one with the lowest loss on rows
# that were held out.

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
LossCurveDisplay.from_estimator(ae, ax=left)

# %%
# Codes of four components are drawn on their first two principal axes.

LatentSpaceDisplay.from_estimator(ae, X_test, y_test, ax=right)
figure.savefig(out / "displays_training.png", dpi=120)

# %%
# New digits, and what four numbers keep of them.

figure, (top, bottom) = plt.subplots(
    2, 1, figsize=(8, 7), height_ratios=(2, 4), layout="constrained"
)
ReconstructionDisplay.from_estimator(ae, X_test, ax=top)

# %%
# Each line moves one component, from its 5th to its 95th percentile, while the others
# stay at their medians.

ComponentTraversalDisplay.from_estimator(ae, X_test, ax=bottom)
figure.savefig(out / "displays_images.png", dpi=120)

# %%
# A table
# -------
# Wines of three growers, the third of them the strangers: a detector learns from the
# first two, behind a scaler. Its threshold is drawn with the scores of all wines.

wine = load_wine(as_frame=True)
is_stranger = wine.target == 2
detector = make_pipeline(
    StandardScaler(), AutoencoderOutlierDetector(trim=0, random_state=0)
).fit(wine.data[~is_stranger])

figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
labels = np.where(is_stranger, -1, 1)
OutlierScoreDisplay.from_estimator(detector, wine.data, labels, ax=left)

# %%
# Why is the strangest wine strange? Each bar is a feature's share of the error, beside
# its value and the one that the other features let expect, in units of the scaler.

strangest = detector.score_samples(wine.data).argmin()
FeatureContributionDisplay.from_estimator(detector, wine.data, strangest, ax=right)
figure.savefig(out / "displays_outliers.png", dpi=120)
print(f"The figures are in {out}")
