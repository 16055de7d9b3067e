"""
Drop-in replacement: choosing the number of components
======================================================

A classifier of handwritten digits is trained on a few components of the images. Their
number is chosen by a grid search over a pipeline, which is fitted to one part of the
training images and scored on the other.

To use scikit-learn's ``PCA``, import it and replace the name of the class below.
Nothing else changes.
"""

# sphinx_gallery_start_ignore
# Run as a script, this file saves the figure in the folder ``--out``.
import argparse
from pathlib import Path

parser = argparse.ArgumentParser(description="Grid search", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="output folder")
# The arguments of a notebook are ignored.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)
# sphinx_gallery_end_ignore

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    StratifiedShuffleSplit,
    train_test_split,
)
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from skae import AutoencoderTransformer

# %%
# The search uses 1100 of the images and holds out a third of them. ``cv=5`` would be
# more precise, and take five times as long.

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, train_size=1100, stratify=y, random_state=0
)
pipeline = Pipeline(
    [
        ("reduce", AutoencoderTransformer(random_state=0)),
        ("scale", StandardScaler()),
        ("classify", LogisticRegression(max_iter=1000)),
    ]
)
widths = [2, 4, 8]
split = StratifiedShuffleSplit(n_splits=1, test_size=1 / 3, random_state=0)
search = GridSearchCV(pipeline, {"reduce__n_components": widths}, cv=split)
search.fit(X_train, y_train)
print(f"best parameters: {search.best_params_}")
accuracy = search.score(X_test, y_test)
print(f"accuracy on test images: {accuracy:.1%}")

# %%
# For comparison, the accuracy of the same classifier on all 64 pixels.

from_pixels = pipeline[1:].fit(X_train, y_train).score(X_test, y_test)
print(f"accuracy with all pixels: {from_pixels:.1%}")

# %%
# The score of each number of components in the search, and the accuracy of the best one
# on the test images.

figure, ax = plt.subplots(figsize=(6, 4.2), layout="constrained")
ax.plot(widths, search.cv_results_["mean_test_score"], "o-", label="held-out images")
chosen = search.best_estimator_["reduce"].n_components_
ax.plot(chosen, accuracy, "*", color="C3", markersize=14, label="chosen, test images")
ax.axhline(from_pixels, color="0.5", linestyle="--", label="all pixels, test images")
ax.set(xlabel="components", ylabel="accuracy", xticks=widths, ylim=(0.5, 1))
ax.yaxis.set_major_formatter("{x:.0%}")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, loc="lower right")

# sphinx_gallery_start_ignore
figure.savefig(out / "dropin_grid_search.png", dpi=100)
# sphinx_gallery_end_ignore
