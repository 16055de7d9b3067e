"""
Tuning: number of components, settings of a detector
====================================================

How many components should a code have? And how are the settings of an outlier detector
chosen when few rows or none are labelled? :mod:`skae.model_selection` has scorers and
rules for scikit-learn's ``GridSearchCV``, and :mod:`skae.inspection` a display for the
first question.
"""

# sphinx_gallery_start_ignore
# Run as a script, this file saves the figures in the folder ``--out``.
import argparse
from pathlib import Path

parser = argparse.ArgumentParser(description="Tuning", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="output folder")
# The arguments of a notebook are ignored.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)
# sphinx_gallery_end_ignore

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, train_test_split
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skae import AutoencoderTransformer
from skae.inspection import ComponentSelectionDisplay
from skae.model_selection import (
    AgreementScorer,
    explained_variance,
    one_standard_error,
    outlier_scorer,
)

# %%
# The number of components
# ------------------------
# The breast cancer data: 569 samples with 30 measurements. The explained variance of
# held-out rows rarely falls when components are added, so the best number is the last
# one tried. The elbow of the curve is the number that explains most of the variance.
# The autoencoder is compared with PCA, whose own score is a likelihood;
# `explained_variance` is passed as its scorer.
#
# If the codes are used for another task, its score is the criterion. The accuracy of a
# classifier is the same for many numbers of components up to random variation, and the
# one-standard-error rule chooses the smallest of them: `one_standard_error` is passed
# as ``refit``.

cancer = load_breast_cancer()
X = StandardScaler().fit_transform(cancer.data)
ae = AutoencoderTransformer(max_epochs=20, early_stopping=False, random_state=0)
numbers = [1, 2, 3, 4, 6, 8, 10, 12]

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
display = ComponentSelectionDisplay.from_estimator(
    ae, X, n_components=numbers, cv=3, ax=left
)
ComponentSelectionDisplay.from_estimator(
    PCA(random_state=0),
    X,
    n_components=numbers,
    cv=3,
    scoring=explained_variance,
    marks=False,
    ax=left,
)
print(f"explained variance: best {display.best}, elbow {display.elbow}")

classifier = make_pipeline(StandardScaler(), ae, LogisticRegression())
search = GridSearchCV(
    classifier,
    {"autoencodertransformer__n_components": numbers},
    cv=3,
    refit=one_standard_error,
).fit(cancer.data, cancer.target)
display = ComponentSelectionDisplay.from_search(
    search, score_name="accuracy", name="classifier of codes", ax=right
)
print(f"accuracy: best {display.best}, one standard error {display.one_standard_error}")
# sphinx_gallery_start_ignore
figure.savefig(out / "tuning_components.png", dpi=120)
# sphinx_gallery_end_ignore

# %%
# A detector with a few labels
# ----------------------------
# The inliers are the 357 benign samples, the outliers 40 of the malignant ones. Half of
# the rows are test rows. Of the training rows, 10 outliers and 50 inliers are labelled;
# the others have the label 0, unlabelled. They are used for training but not for
# scoring.

is_malignant = cancer.target == 0
rows = np.append(np.flatnonzero(~is_malignant), np.flatnonzero(is_malignant)[:40])
X_train, X_test, was_malignant, is_malignant = train_test_split(
    cancer.data[rows],
    is_malignant[rows],
    test_size=0.5,
    stratify=is_malignant[rows],
    random_state=0,
)
y_train = np.zeros(len(X_train), dtype=int)
y_train[np.flatnonzero(was_malignant)[:10]] = -1
y_train[np.flatnonzero(~was_malignant)[:50]] = 1

# %%
# The important parameter of the local outlier factor is the number of neighbours.
# `StratifiedKFold` gives each fold the same proportions of the labels.

pipeline = make_pipeline(StandardScaler(), LocalOutlierFactor(novelty=True))
neighbors = [2, 5, 10, 20, 50, 100]
search = GridSearchCV(
    pipeline,
    {"localoutlierfactor__n_neighbors": neighbors},
    scoring={"labels": outlier_scorer("roc_auc"), "agreement": AgreementScorer()},
    refit="labels",
    cv=StratifiedKFold(5),
).fit(X_train, y_train)

# %%
# Without labels
# --------------
# `AgreementScorer` computes the rank correlation with the scores of an isolation
# forest. It uses no labels. The scores of both scorers for each setting, compared with
# the area under the ROC curve on the test rows:

test_auc = [
    roc_auc_score(
        ~is_malignant,
        pipeline.set_params(localoutlierfactor__n_neighbors=k)
        .fit(X_train)
        .decision_function(X_test),
    )
    for k in neighbors
]
scorers = {
    "10 + 50 labels: ROC AUC in cross-validation": "labels",
    "no labels: rank correlation with a forest": "agreement",
}
figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
for ax, (title, name) in zip(axes, scorers.items(), strict=True):
    scores = search.cv_results_[f"mean_test_{name}"]
    best = scores.argmax()
    ax.plot(neighbors, test_auc, "o-", color="0.6", label="ROC AUC on test rows")
    ax.plot(neighbors, scores, "s-", color="C0", label="cross-validated score")
    ax.axvline(
        neighbors[best],
        color="C3",
        linestyle="--",
        label=f"chosen: {neighbors[best]}, {test_auc[best]:.3f} on test rows",
    )
    ax.set(xscale="log", xlabel="n_neighbors", title=title)
    ax.set_xticks(neighbors, neighbors)
    ax.minorticks_off()
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    print(f"{name}: n_neighbors={neighbors[best]}, ROC AUC {test_auc[best]:.3f}")
default = test_auc[neighbors.index(20)]
print(f"default: n_neighbors=20, ROC AUC {default:.3f}; best: {max(test_auc):.3f}")
# sphinx_gallery_start_ignore
figure.savefig(out / "tuning_detector.png", dpi=120)
# sphinx_gallery_end_ignore

# %%
# Here both choices are good, and better than the default. The default of the local
# outlier factor suits few data sets; the defaults of
# :class:`~skae.AutoencoderOutlierDetector` are hard to improve without labels, as the
# measurements on the documentation's page on tuning show.
