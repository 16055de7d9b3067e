"""
A nonlinear PCA and an outlier detector
=======================================

An autoencoder learns to send data through a narrow code and back. The code is a
nonlinear PCA, and the rows that do not survive the journey are the unusual ones.
Here both uses stand beside scikit-learn's own tools: PCA on the handwritten digits,
and an isolation forest on the breast cancer data.

``python plot_digits.py --out DIR`` saves the figures in DIR, by default in
``figures`` below the current directory.
"""

# %%
# The script draws on the screen only in an interactive session.

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from skae import AutoencoderOutlierDetector, AutoencoderTransformer

if not hasattr(sys, "ps1"):
    plt.switch_backend("Agg")

parser = argparse.ArgumentParser(description="Digits and outliers", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="folder to fill")
# A gallery or a notebook has arguments of its own.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)

# %%
# Explained variance
# ------------------
# The digits are 1,797 images of 8 x 8 pixels; 30% of them are held out.

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, test_size=0.3, stratify=y, random_state=0
)

# %%
# PCA and the autoencoder are used alike: ``fit``, ``transform`` and
# ``inverse_transform``.

pca, ae = {}, {}
for n_components in (2, 12):
    pca[n_components] = PCA(n_components, random_state=0).fit(X_train)
    ae[n_components] = AutoencoderTransformer(n_components, random_state=0).fit(X_train)

# %%
# Both are judged by the share of the held-out variance, about the mean of the
# training rows, that their reconstruction explains.
# :meth:`~skae.AutoencoderTransformer.score` is this share.


def explained_variance(pca, X):
    X_hat = pca.inverse_transform(pca.transform(X))
    return 1 - np.sum((X - X_hat) ** 2) / np.sum((X - pca.mean_) ** 2)


explained = {k: (explained_variance(pca[k], X_test), ae[k].score(X_test)) for k in pca}

print("Explained variance of the held-out digits")
print(f"{'n_components':>12}{'PCA':>8}{'autoencoder':>14}")
for n_components, (of_pca, of_ae) in explained.items():
    print(f"{n_components:12d}{of_pca:8.3f}{of_ae:14.3f}")

# %%
# The maps of the held-out digits in two components: PCA can only turn and project,
# an autoencoder can also bend.

figure, axes = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
panels = zip(
    axes, ("PCA", "AutoencoderTransformer"), (pca[2], ae[2]), explained[2], strict=True
)
for ax, name, model, share in panels:
    Z = model.transform(X_test)
    for digit in range(10):
        ax.scatter(
            *Z[y_test == digit].T,
            s=22,
            color=f"C{digit}",
            edgecolor="white",
            linewidth=0.3,
            label=digit,
        )
    ax.set_title(f"{name}\n{share:.0%} of the variance explained")
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel("first component")
    ax.set_ylabel("second component")
figure.legend(
    *axes[0].get_legend_handles_labels(),
    title="digit",
    loc="outside right center",
    frameon=False,
    markerscale=1.6,
)
figure.suptitle("Held-out digits in two components")
figure.savefig(out / "digits_2_components.png", dpi=120)

# %%
# With twelve components the images come back; here is the first held-out image of
# each digit.

first = [np.flatnonzero(y_test == digit)[0] for digit in range(10)]
originals = X_test[first]
images = {
    "original": originals,
    f"PCA\n{explained[12][0]:.0%} explained": pca[12].inverse_transform(
        pca[12].transform(originals)
    ),
    f"autoencoder\n{explained[12][1]:.0%} explained": ae[12].reconstruct(originals),
}

figure, axes = plt.subplots(3, 10, figsize=(11, 3.6), layout="constrained")
figure.get_layout_engine().set(h_pad=0.02, hspace=0.02)
for row, (name, rows) in zip(axes, images.items(), strict=True):
    for ax, image in zip(row, rows, strict=True):
        ax.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_color("0.8")
    row[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
figure.suptitle("Held-out digits from 12 components")
figure.savefig(out / "digits_reconstructed.png", dpi=120)

# %%
# The size of the bottleneck
# --------------------------
# In a pipeline the autoencoder is a step like any other, and a grid search finds
# the number of components that serves a classifier best.

pipeline = Pipeline(
    [
        ("ae", AutoencoderTransformer(random_state=0)),
        ("scale", StandardScaler()),
        ("classifier", LogisticRegression(max_iter=1000)),
    ]
)
search = GridSearchCV(pipeline, {"ae__n_components": [4, 8, 16]}, cv=3)
search.fit(X_train, y_train)

print("\nAccuracy of a logistic regression on the code")
print(f"{'n_components':>12}{'cross-validated':>18}")
for n_components, accuracy in zip(
    search.cv_results_["param_ae__n_components"],
    search.cv_results_["mean_test_score"],
    strict=True,
):
    print(f"{n_components:12d}{accuracy:18.3f}")
print(
    f"best: n_components={search.best_params_['ae__n_components']}, "
    f"held-out accuracy {search.score(X_test, y_test):.3f}"
)

# %%
# Outliers
# --------
# The breast cancer data hold 357 benign and 212 malignant samples. Benign is the
# normal class. 30% of the rows are held out, with all their malignant samples; of
# the malignant samples among the other rows only so many stay, drawn at random,
# that one training row in ten is malignant. Both detectors are fitted to these same
# rows without labels, at their default settings. The labels serve to thin the rows
# and to judge the scores, nothing else.

cancer = load_breast_cancer()
X, is_malignant = cancer.data, cancer.target == 0
X_train, X_test, was_malignant, is_malignant = train_test_split(
    X, is_malignant, test_size=0.3, stratify=is_malignant, random_state=0
)
benign, malignant = np.flatnonzero(~was_malignant), np.flatnonzero(was_malignant)
kept = np.random.default_rng(0).choice(malignant, round(len(benign) / 9), replace=False)
X_train = X_train[np.sort(np.concatenate([benign, kept]))]

detectors = {
    "AutoencoderOutlierDetector": AutoencoderOutlierDetector(random_state=0),
    "IsolationForest": IsolationForest(random_state=0),
}
auc = {}
for name, detector in detectors.items():
    detector.fit(X_train)
    auc[name] = roc_auc_score(is_malignant, -detector.score_samples(X_test))

print(
    f"\nOutliers: {len(X_train)} training rows, {len(kept)} of them malignant; "
    f"{len(X_test)} held-out rows, {is_malignant.sum()} of them malignant"
)
print(f"{'':28}{'ROC AUC':>8}")
for name, value in auc.items():
    print(f"{name:28}{value:8.3f}")

# %%
# The scores of the held-out rows, and each detector's threshold, its ``offset_``.
# The further apart the two classes, the nearer the area under the ROC curve is to 1.

figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
spaces = (np.geomspace, np.linspace)
for ax, space, (name, detector) in zip(axes, spaces, detectors.items(), strict=True):
    anomaly = -detector.score_samples(X_test)
    edges = space(anomaly.min(), anomaly.max(), 23)
    for value, label, color in ((False, "benign", "C0"), (True, "malignant", "C1")):
        ax.hist(
            anomaly[is_malignant == value],
            bins=edges,
            color=color,
            alpha=0.65,
            label=label,
        )
    ax.axvline(-detector.offset_, color="0.2", linestyle="--", label="threshold")
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(f"{name}\nROC AUC {auc[name]:.3f}")
    ax.set_ylabel("held-out rows")
    ax.legend(frameon=False)
axes[0].set(xscale="log", xlabel="reconstruction error (logarithmic)")
axes[1].set_xlabel("anomaly score")
figure.suptitle("Breast cancer: scores of the held-out rows")
figure.savefig(out / "outlier_scores.png", dpi=120)

# %%
# All three are saved.

print(f"\nThe figures are in {out}")
