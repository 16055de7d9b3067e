"""
Drop-in replacement: outliers around two blobs
==============================================

The inliers are points of two clusters, the outliers a few points that are uniformly
distributed in the plane. A detector is fitted to both, without labels, and then applied
to test points.

To use scikit-learn's ``IsolationForest``, import it from ``sklearn.ensemble`` and
replace the name of the class below. Nothing else changes.
"""

# sphinx_gallery_start_ignore
# Run as a script, this file saves the figure in the folder ``--out``.
import argparse
from pathlib import Path

parser = argparse.ArgumentParser(description="Two blobs", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="output folder")
# The arguments of a notebook are ignored.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)
# sphinx_gallery_end_ignore

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import TwoSlopeNorm
from sklearn.datasets import make_blobs
from sklearn.inspection import DecisionBoundaryDisplay
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from skae import AutoencoderOutlierDetector

# %%
# One point in six is an outlier. Half of all points are used for training.

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
# A point whose score is below ``offset_`` is predicted to be an outlier. The decision
# function is the score minus this offset, so its sign is the prediction.

score = detector.score_samples(X_test)
decision = detector.decision_function(X_test)
flagged = detector.predict(X_test) == -1
print(f"threshold of the scores: {detector.offset_:.2f}")
print(f"ROC AUC: {roc_auc_score(is_outlier, -score):.3f}")
print(f"flagged of {is_outlier.sum()} outliers: {flagged[is_outlier].mean():.0%}")
print(f"flagged of {(~is_outlier).sum()} inliers: {flagged[~is_outlier].mean():.0%}")

# %%
# Left, the predicted boundary between inliers and outliers; right, the decision
# function. The points are the test points.

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
    for value, name, color in ((False, "inlier", "C0"), (True, "outlier", "C3")):
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
figure.colorbar(
    display.surface_, ax=axes[1], label="decision function (negative: outlier)"
)

# sphinx_gallery_start_ignore
figure.savefig(out / "dropin_isolation.png", dpi=100)
# sphinx_gallery_end_ignore
