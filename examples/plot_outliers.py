"""
Anomaly detection: breast cancer
================================

Which samples do not belong, and what is strange about them? An autoencoder that has
learnt what most rows have in common cannot reproduce the others, and its
reconstruction error tells so feature by feature. Here it stands beside
scikit-learn's isolation forest.

``python plot_outliers.py --out DIR`` saves the figure in DIR, by default in
``figures`` below the current directory.
"""

# %%
# The script draws on the screen only in an interactive session.

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from skae import AutoencoderOutlierDetector

if not hasattr(sys, "ps1"):
    plt.switch_backend("Agg")

parser = argparse.ArgumentParser(description="Outliers", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="folder to fill")
# A gallery or a notebook has arguments of its own.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)

# %%
# The breast cancer data hold 357 benign and 212 malignant samples, each described by
# 30 measurements. 30% of the rows are held out. Of the others the detectors are given
# the benign ones only: what is normal is known, what is not may be anything.

cancer = load_breast_cancer()
X, is_malignant = cancer.data, cancer.target == 0
X_train, X_test, was_malignant, is_malignant = train_test_split(
    X, is_malignant, test_size=0.3, stratify=is_malignant, random_state=0
)
X_train = X_train[~was_malignant]

# %%
# Both detectors are used alike. ``trim=0`` tells the autoencoder that none of its
# training rows is to be left out as a suspected outlier; the rest are defaults.

detectors = {
    "autoencoder": AutoencoderOutlierDetector(trim=0, random_state=0),
    "isolation forest": IsolationForest(random_state=0),
}
anomaly, auc = {}, {}
print(
    f"{len(X_train)} training rows, all benign; {len(X_test)} held-out rows, "
    f"{is_malignant.sum()} of them malignant"
)
print(f"{'':18}{'ROC AUC':>8}{'malignant flagged':>20}{'benign flagged':>17}")
for name, detector in detectors.items():
    detector.fit(X_train)
    anomaly[name] = -detector.score_samples(X_test)
    auc[name] = roc_auc_score(is_malignant, anomaly[name])
    is_flagged = detector.predict(X_test) == -1
    print(
        f"{name:18}{auc[name]:8.3f}{is_flagged[is_malignant].mean():20.0%}"
        f"{is_flagged[~is_malignant].mean():17.0%}"
    )

# %%
# What makes a row strange?
# :meth:`~skae.AutoencoderOutlierDetector.feature_contributions` divides its
# reconstruction error among its features, and
# :meth:`~skae.AutoencoderOutlierDetector.reconstruct` tells which values the network
# expected instead. Both are asked for the malignant sample A and the benign sample B
# that have the largest errors in their classes.

detector = detectors["autoencoder"]
strangest = [
    np.argmax(np.where(is_malignant == value, anomaly["autoencoder"], 0))
    for value in (True, False)
]
contributions = detector.feature_contributions(X_test[strangest])
shares = contributions / contributions.sum(axis=1, keepdims=True)
expected = detector.reconstruct(X_test[strangest])


def rounded(value):
    return f"{value:,.0f}" if value > 100 else f"{value:.2g}"


# %%
# Left, both scores of every held-out row, with the detectors' thresholds; right, the
# five measurements that contribute most to the errors of A and B.

figure = plt.figure(figsize=(12, 5.8), layout="constrained")
left, right = figure.subfigures(1, 2, wspace=0.03)

ax = left.subplots()
for value, label, color in ((False, "benign", "C0"), (True, "malignant", "C1")):
    ax.scatter(
        anomaly["isolation forest"][is_malignant == value],
        anomaly["autoencoder"][is_malignant == value],
        s=30,
        color=color,
        marker="^" if value else "o",
        edgecolor="white",
        linewidth=0.4,
        label=label,
    )
lines = {"color": "0.4", "linestyle": "--", "linewidth": 1}
ax.axhline(-detector.offset_, **lines)
ax.axvline(-detectors["isolation forest"].offset_, **lines, label="threshold")
for row, letter in zip(strangest, "AB", strict=True):
    ax.annotate(
        letter,
        (anomaly["isolation forest"][row], anomaly["autoencoder"][row]),
        xytext=(7, -4),
        textcoords="offset points",
        weight="bold",
    )
ax.set(
    yscale="log",
    xlabel=f"score of the isolation forest: ROC AUC {auc['isolation forest']:.2f}",
    ylabel=f"error of the autoencoder (log): ROC AUC {auc['autoencoder']:.2f}",
    title="Both find most malignant samples ...",
)
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False)

axes = right.subplots(2, 1, sharex=True)
axes[0].set_title("... and the autoencoder tells by what")
for i, (ax, letter, row) in enumerate(zip(axes, "AB", strangest, strict=True)):
    largest = np.argsort(shares[i])[:-6:-1]
    labels = [
        f"{cancer.feature_names[j]}\n"
        f"{rounded(X_test[row, j])}, expected {rounded(expected[i, j])}"
        for j in largest
    ]
    kind, color = ("malignant", "C1") if is_malignant[row] else ("benign", "C0")
    ax.barh(labels, shares[i, largest], color=color)
    ax.invert_yaxis()
    ax.xaxis.set_major_formatter("{x:.0%}")
    ax.spines[["top", "right"]].set_visible(False)
    ax.text(0.97, 0.08, f"{letter}, {kind}", transform=ax.transAxes, ha="right")
    print(f"\n{letter} ({kind})")
    for label, share in zip(labels, shares[i, largest], strict=True):
        print(f"{share:5.0%}  {label.replace(chr(10), ': ')}")
axes[1].set_xlabel("share of the row's reconstruction error")

figure.savefig(out / "outliers.png", dpi=120)
print(f"\nThe figure is in {out}")

# %%
# The two agree on most rows. The forest ranks them a little better, with an area under
# the ROC curve of 0.94 against 0.91: most malignant samples have measurements that are
# extreme by themselves, and these a forest's cuts find. At its own threshold the forest
# flags 91% of the malignant and 18% of the benign samples, the autoencoder 69% and 6%.
# What only the autoencoder gives is the reason. A is strange above all for its "area
# error" (in these data, the standard error of the mean area of the cell nuclei): 200,
# where 76 would fit the rest of the row. B, benign but beyond both thresholds, is no
# matter of one measurement; its largest share of the error is 18%.
