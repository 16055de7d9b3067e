"""
Dropping in: digits in two components
=====================================

Images of handwritten digits, 64 pixels each, become points in the plane. Which digits
are told apart there, and what does each place of the plane stand for?

Import scikit-learn's ``PCA`` instead and give its name to the class below: nothing
else changes.

``python plot_dropin_digits.py --out DIR`` saves the figure in DIR, by default in
``figures`` below the current directory.
"""

# %%
# The script draws on the screen only in an interactive session.

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from skae import AutoencoderTransformer

if not hasattr(sys, "ps1"):
    plt.switch_backend("Agg")

parser = argparse.ArgumentParser(description="Digits", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="folder to fill")
# A gallery or a notebook has arguments of its own.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)

# %%
# The plane is learnt from 70% of the images. The others are judged: by how much of
# their variance two numbers explain, and by how often the five nearest of the training
# images in the plane tell which digit it is.

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.3, random_state=0)
reducer = AutoencoderTransformer(n_components=2, random_state=0)
Z_train = reducer.fit_transform(X_train)
Z_test = reducer.transform(X_test)
lost = ((X_test - reducer.inverse_transform(Z_test)) ** 2).sum()
explained = 1 - lost / ((X_test - reducer.mean_) ** 2).sum()
accuracy = KNeighborsClassifier().fit(Z_train, y_train).score(Z_test, y_test)
print(f"new images: {len(X_test)}")
print(f"variance explained: {explained:.1%}")
print(f"digits told right: {accuracy:.1%}")

# %%
# Any place of the plane can be turned into an image, whether a digit lies there or
# not: here 12 x 12 of them, over the part where nearly all digits are. A white frame
# parts the images.

low, high = np.percentile(Z_train, [2, 98], axis=0)
steps = np.linspace(low, high, 12)
places = np.stack(np.meshgrid(steps[:, 0], steps[::-1, 1]), axis=-1)
images = reducer.inverse_transform(places.reshape(-1, 2)).reshape(12, 12, 8, 8)
images = np.pad(images, [(0, 0), (0, 0), (1, 1), (1, 1)])

# %%
# Left, the new images, each class with its digit at its median; right, the plane.

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
    title=f"{explained:.0%} of the variance, {accuracy:.0%} told right",
)
# Rows of images, with the pixels of an image as rows and columns within.
image = images.transpose(0, 2, 1, 3).reshape(120, 120)
right.imshow(image, cmap="gray_r", vmin=0, vmax=16)
right.set(xticks=[], yticks=[], title="What each place stands for")

figure.savefig(out / "dropin_digits.png", dpi=100)
print(f"The figure is in {out}")
