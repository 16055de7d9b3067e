"""
Watching a fit: scikit-learn's callbacks
========================================

From scikit-learn 1.9 on, estimators take callbacks that watch them while they are
fitted: `ProgressBar` shows how far a pipeline or a search has come, `ScoringMonitor`
scores what there is after each epoch, and one of your own may stop a training.

``python plot_callbacks.py --out DIR`` saves the figure in DIR, by default in
``figures`` below the current directory.
"""

# %%
# The script draws on the screen only in an interactive session.

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
from sklearn.callback import ProgressBar, ScoringMonitor
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from skae import AutoencoderTransformer
from skae.inspection import LossCurveDisplay

if not hasattr(sys, "ps1"):
    plt.switch_backend("Agg")

parser = argparse.ArgumentParser(description="Callbacks", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="folder to fill")
# A gallery or a notebook has arguments of its own.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)

# %%
# How far is it?
# --------------
# The bar goes to the outermost estimator and reaches into its steps. A search would
# need `ProgressBar(max_propagation_depth=2)`, since the epochs of a pipeline in it are
# two levels below. With 500 distinct rows at most, early stopping is cross-validated:
# five folds, then a training on all rows.

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, train_size=400, test_size=400, random_state=0
)
pipeline = Pipeline(
    [
        ("ae", AutoencoderTransformer(8, max_epochs=30, random_state=0)),
        ("scale", StandardScaler()),
        ("clf", LogisticRegression()),
    ]
)
pipeline.set_callbacks(ProgressBar()).fit(X_train, y_train)
print(f"{pipeline.score(X_test, y_test):.1%} of new digits are told apart")

# %%
# What does an epoch bring?
# -------------------------
# The monitor calls a function with an estimator that has the weights of the epoch. The
# training rows are given, too, but it may look at others: here at digits by which
# nothing is decided.


def explained(ae, X, y):
    return {"explained": ae.score(X_test)}


monitor = ScoringMonitor(scoring=explained)
ae = AutoencoderTransformer(2, early_stopping=True, random_state=0)
ae.set_callbacks(monitor).fit(X_train)

log = monitor.get_logs().data_as_pandas
epochs = log[log["task_name"] == "epoch"]
final = log[log["task_name"] == "fit"]

# %%
# On the left what the training itself goes by: the loss, and that of the tenth of the
# rows that it holds out. On the right what the monitor has seen, beside a PCA.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
LossCurveDisplay.from_estimator(ae, ax=left)

number = epochs["task_id"] + 1  # the first has 0
right.plot(number, epochs["explained"], "C2", label="autoencoder")
kept = ae.net_.best_epoch_, final["explained"].item()
right.plot(*kept, "o", color="C2")
right.annotate(
    f"kept: {kept[1]:.2f}", kept, (0, 10), textcoords="offset points", ha="center"
)
pca = PCA(2).fit(X_train)
lost = ((X_test - pca.inverse_transform(pca.transform(X_test))) ** 2).sum()
linear = 1 - lost / ((X_test - pca.mean_) ** 2).sum()
right.axhline(linear, color="C2", linestyle=":", label="PCA")
right.set(
    xlabel="epoch",
    ylabel="explained variance",
    title="What two numbers keep of new digits",
    ylim=(0, 0.8),
)
right.legend(frameon=False)
right.spines[["top", "right"]].set_visible(False)
figure.savefig(out / "callbacks.png", dpi=120)

# %%
# When is it enough?
# ------------------
# A callback of your own has four methods. The parameters after the asterisk say what it
# wants to be given; nothing is computed that no callback asks for. If it returns True
# the training stops there.


class Enough:
    """Stops a training when half of the variance of its rows is explained."""

    def setup(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, X=None, fitted_estimator=None):
        return context.task_name == "epoch" and fitted_estimator.score(X) > 0.5

    def teardown(self, estimator, context):
        pass


ae.set_callbacks(Enough()).fit(X_train)
print(f"{ae.score(X_train):.1%} of the variance after {ae.n_iter_} epochs")
print(f"The figure is in {out}")
