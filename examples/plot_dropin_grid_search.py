"""
Dropping in: how many components?
=================================

A classifier of handwritten digits sees nothing but a few components of the images. How
many it needs is found by a grid search over a pipeline, which learns the components
from one part of the training images and judges them by the other.

Import scikit-learn's ``PCA`` instead and give its name to the class below: nothing
else changes.

``python plot_dropin_grid_search.py --out DIR`` saves the figure in DIR, by default in
``figures`` below the current directory.
"""

# %%
# The script draws on the screen only in an interactive session.

import argparse
import sys
from pathlib import Path

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

if not hasattr(sys, "ps1"):
    plt.switch_backend("Agg")

parser = argparse.ArgumentParser(description="Grid search", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="folder to fill")
# A gallery or a notebook has arguments of its own.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)

# %%
# The search sees 1100 of the images and holds back a third of them. ``cv=5`` would
# judge more surely, and take five times as long.

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
print(f"parameters found: {search.best_params_}")
accuracy = search.score(X_test, y_test)
print(f"new images told right: {accuracy:.1%}")

# %%
# The same classifier on all 64 pixels is what the components are held against.

from_pixels = pipeline[1:].fit(X_train, y_train).score(X_test, y_test)
print(f"from all pixels: {from_pixels:.1%}")

# %%
# What the search saw of each number of components, and what the one that it chose does
# with new images.

figure, ax = plt.subplots(figsize=(6, 4.2), layout="constrained")
ax.plot(widths, search.cv_results_["mean_test_score"], "o-", label="images held back")
chosen = search.best_estimator_["reduce"].n_components_
ax.plot(chosen, accuracy, "*", color="C3", markersize=14, label="chosen, new images")
ax.axhline(from_pixels, color="0.5", linestyle="--", label="all pixels, new images")
ax.set(xlabel="components", ylabel="told right", xticks=widths, ylim=(0.5, 1))
ax.yaxis.set_major_formatter("{x:.0%}")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, loc="lower right")

figure.savefig(out / "dropin_grid_search.png", dpi=100)
print(f"The figure is in {out}")
