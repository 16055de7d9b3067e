"""
Drop-in replacement: detectors on toy data
==========================================

Four outlier detectors are compared on five two-dimensional data sets with uniformly
distributed outliers. Each detector is fitted to one half of the points and evaluated on
the other half.

To use scikit-learn's ``IsolationForest``, import it from ``sklearn.ensemble`` and
replace the name of the class of the first detector below. Nothing else changes.
"""

# sphinx_gallery_start_ignore
# Run as a script, this file saves the figure in the folder ``--out``.
import argparse
from pathlib import Path

parser = argparse.ArgumentParser(description="Toy data", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="output folder")
# The arguments of a notebook are ignored.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)
# sphinx_gallery_end_ignore

import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.covariance import EllipticEnvelope
from sklearn.datasets import make_blobs, make_moons
from sklearn.inspection import DecisionBoundaryDisplay
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor
from sklearn.svm import OneClassSVM

from skae import AutoencoderOutlierDetector

# %%
# In each data set, 85% of the points are inliers; the others are uniform in a square
# around them. All detectors are given the fraction of outliers.

share = 0.15
n_inliers, n_outliers = 510, 90
rng = np.random.RandomState(0)


def blobs(centers, cluster_std):
    return make_blobs(
        n_inliers, centers=centers, cluster_std=cluster_std, random_state=rng
    )[0]


moons, _ = make_moons(n_inliers, noise=0.05, random_state=rng)
toys = {
    "one blob": blobs([(0, 0)], 0.5),
    "two blobs": blobs([(-2, -2), (2, 2)], 0.5),
    "unequal blobs": blobs([(-2, -2), (2, 2)], (0.3, 1.5)),
    "moons": 4 * (moons - (0.5, 0.25)),
    "square": rng.uniform(-3, 3, (n_inliers, 2)),
}
detectors = [
    AutoencoderOutlierDetector(contamination=share, random_state=0),
    EllipticEnvelope(contamination=share, random_state=0),
    OneClassSVM(nu=share, gamma=0.1),
    LocalOutlierFactor(n_neighbors=35, contamination=share, novelty=True),
]

# %%
# Each row of the figure is a data set, each column a detector; the points outside the
# decision boundary are flagged. The number is the area under the ROC curve of the
# scores: the probability that an outlier of the test half has a lower score than an
# inlier. These numbers, and the time of the five fits, are printed too.

figure, axes = plt.subplots(
    len(toys), len(detectors), figsize=(9, 11), layout="constrained"
)
auc = np.empty(axes.shape)
seconds = np.zeros(len(detectors))
is_outlier = np.repeat([False, True], [n_inliers // 2, n_outliers // 2])
frame = np.array([(-6, -6), (6, 6)])
for i, (name, inliers) in enumerate(toys.items()):
    outliers = rng.uniform(-6, 6, (n_outliers, 2))
    X_train = np.concatenate([inliers[::2], outliers[::2]])
    X_test = np.concatenate([inliers[1::2], outliers[1::2]])
    for j, detector in enumerate(detectors):
        start = time.perf_counter()
        detector.fit(X_train)
        seconds[j] += time.perf_counter() - start
        auc[i, j] = roc_auc_score(is_outlier, -detector.decision_function(X_test))
        ax = axes[i, j]
        DecisionBoundaryDisplay.from_estimator(
            detector, frame, response_method="predict", cmap="Blues", alpha=0.4, ax=ax
        )
        ax.scatter(*X_test[~is_outlier].T, s=5, color="C0")
        ax.scatter(*X_test[is_outlier].T, s=9, color="C3", marker="^")
        ax.set(xticks=[], yticks=[])
        ax.text(0.97, 0.03, f"{auc[i, j]:.2f}", transform=ax.transAxes, ha="right")
    axes[i, 0].set_ylabel(name)

print(" ROC AUC:", ", ".join(toys))
for j, detector in enumerate(detectors):
    name = type(detector).__name__
    axes[0, j].set_title(name, fontsize="small")
    values = " ".join(f"{value:.3f}" for value in auc[:, j])
    print(f"{name:27}{values}, in {seconds[j]:.2f} s")

# sphinx_gallery_start_ignore
figure.savefig(out / "dropin_comparison.png", dpi=80)
# sphinx_gallery_end_ignore
