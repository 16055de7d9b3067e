"""
Drop-in replacement: digits in two components
=============================================

Images of handwritten digits, 64 pixels each, are reduced to two components. How well
are the digits separated in the plane, and which image does each point represent?

To use scikit-learn's ``PCA``, import it and replace the name of the class below.
Nothing else changes.
"""

# sphinx_gallery_start_ignore
# Run as a script, this file saves the figure in the folder ``--out``.
import argparse
from pathlib import Path

parser = argparse.ArgumentParser(description="Digits", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="output folder")
# The arguments of a notebook are ignored.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)
# sphinx_gallery_end_ignore

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from skae import AutoencoderTransformer

# %%
# The estimator is fitted to 70% of the images. On the others two figures are computed:
# the fraction of the variance that two components explain, and the accuracy of a
# classifier by the five nearest training images in the plane.

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.3, random_state=0)
reducer = AutoencoderTransformer(n_components=2, random_state=0)
Z_train = reducer.fit_transform(X_train)
Z_test = reducer.transform(X_test)
squared_error = ((X_test - reducer.inverse_transform(Z_test)) ** 2).sum()
explained = 1 - squared_error / ((X_test - reducer.mean_) ** 2).sum()
accuracy = KNeighborsClassifier().fit(Z_train, y_train).score(Z_test, y_test)
print(f"test images: {len(X_test)}")
print(f"explained variance: {explained:.1%}")
print(f"accuracy of five nearest neighbours: {accuracy:.1%}")

# %%
# Any point of the plane can be reconstructed as an image, here a grid of 12 x 12 points
# in the region of nearly all codes. A white frame separates the images.

low, high = np.percentile(Z_train, [2, 98], axis=0)
steps = np.linspace(low, high, 12)
grid = np.stack(np.meshgrid(steps[:, 0], steps[::-1, 1]), axis=-1)
images = reducer.inverse_transform(grid.reshape(-1, 2)).reshape(12, 12, 8, 8)
images = np.pad(images, [(0, 0), (0, 0), (1, 1), (1, 1)])

# %%
# Left, the test images in the plane, with the digit of each class at its median; right,
# the reconstructed grid.

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5.2), layout="constrained")
left.scatter(*Z_test.T, c=y_test, cmap="tab10", s=12)
for digit in range(10):
    x, y = np.median(Z_test[y_test == digit], axis=0)
    left.text(
        x,
        y,
        str(digit),
        ha="center",
        va="center",
        weight="bold",
        bbox={"boxstyle": "circle", "facecolor": "white", "edgecolor": "none"},
    )
left.set(
    xticks=[],
    yticks=[],
    title=f"{explained:.0%} of the variance, accuracy {accuracy:.0%}",
)
# Shape (12 * 10, 12 * 10): the images side by side, with their frames.
image = images.transpose(0, 2, 1, 3).reshape(120, 120)
right.imshow(image, cmap="gray_r", vmin=0, vmax=16)
right.set(xticks=[], yticks=[], title="Reconstructions of a grid of points")

# sphinx_gallery_start_ignore
figure.savefig(out / "dropin_digits.png", dpi=100)
# sphinx_gallery_end_ignore
