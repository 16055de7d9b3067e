"""
Dropping in: outliers around two blobs
======================================

Points of two clusters, and a few that are strewn over the plane. A detector learns
from all of them, without being told which is which, and then judges new points.

Import scikit-learn's ``IsolationForest`` instead, from ``sklearn.ensemble``, and give
its name to the class below: nothing else changes.

``python plot_dropin_isolation.py --out DIR`` saves the figure in DIR, by default in
``figures`` below the current directory.
"""

# %%
# The script draws on the screen only in an interactive session.

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import TwoSlopeNorm
from sklearn.datasets import make_blobs
from sklearn.inspection import DecisionBoundaryDisplay
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from skae import AutoencoderOutlierDetector

if not hasattr(sys, "ps1"):
    plt.switch_backend("Agg")

parser = argparse.ArgumentParser(description="Two blobs", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="folder to fill")
# A gallery or a notebook has arguments of its own.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)

# %%
# One point in six is strewn. Half of all points are for training.

inliers, _ = make_blobs(
    500, centers=[(-2, -2), (2, 2)], cluster_std=(0.4, 0.7), random_state=0
)
outliers = np.random.default_rng(0).uniform(-5, 5, (100, 2))
X = np.concatenate([inliers, outliers])
is_outlier = np.repeat([False, True], [500, 100])
X_train, X_test, was_outlier, is_outlier = train_test_split(
    X, is_outlier, test_size=0.5, stratify=is_outlier, random_state=0
)
detector = AutoencoderOutlierDetector(contamination=1 / 6, random_state=0)
detector.fit(X_train)

# %%
# A point whose score falls below ``offset_`` is an outlier. The decision function is
# the score less this offset: its sign tells.

score = detector.score_samples(X_test)
decision = detector.decision_function(X_test)
flagged = detector.predict(X_test) == -1
print(f"flagged: scores below {detector.offset_:.2f}")
print(f"ROC AUC: {roc_auc_score(is_outlier, -score):.3f}")
print(f"of {is_outlier.sum()} outliers flagged: {flagged[is_outlier].mean():.0%}")
print(f"of {(~is_outlier).sum()} inliers flagged: {flagged[~is_outlier].mean():.0%}")

# %%
# Left, the boundary between inliers and outliers; right, how deep inside or how far
# outside the places of the plane lie. Points are the new ones.

figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
titles = {"predict": "Inlier or outlier", "decision_function": "Decision function"}
for ax, (method, title) in zip(axes, titles.items(), strict=True):
    display = DecisionBoundaryDisplay.from_estimator(
        detector,
        X,
        response_method=method,
        cmap="RdBu",
        norm=TwoSlopeNorm(0),
        alpha=0.6,
        ax=ax,
    )
    for value, name, color in ((False, "of a blob", "C0"), (True, "strewn", "C3")):
        ax.scatter(
            *X_test[is_outlier == value].T,
            s=20,
            color=color,
            edgecolor="white",
            linewidth=0.4,
            label=name,
        )
    ax.set(title=title, aspect="equal", xticks=[], yticks=[])
axes[0].legend(loc="upper left")
figure.colorbar(display.surface_, ax=axes[1], label="negative: outlier")

figure.savefig(out / "dropin_isolation.png", dpi=100)
print(f"The figure is in {out}")
