"""
Monitoring a fit: scikit-learn's callbacks
==========================================

Since version 1.9, scikit-learn has callbacks that monitor estimators during `fit`:
`ProgressBar` shows the progress of an estimator, pipeline or search, `ScoringMonitor`
scores the model after each epoch, and a custom callback can stop the training.
"""

# sphinx_gallery_start_ignore
# Run as a script, this file saves the figure in the folder ``--out``.
import argparse
from pathlib import Path

parser = argparse.ArgumentParser(description="Callbacks", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="output folder")
# The arguments of a notebook are ignored.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)
# sphinx_gallery_end_ignore

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

# %%
# A progress bar
# --------------
# The callback is set on the outermost estimator and propagates to its steps. For a
# search use `ProgressBar(max_propagation_depth=2)`, since the epochs of a pipeline in a
# search are two levels below it.

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, train_size=400, test_size=400, random_state=0
)
pipeline = Pipeline(
    [
        (
            "ae",
            AutoencoderTransformer(
                8, max_epochs=30, early_stopping=False, random_state=0
            ),
        ),
        ("scale", StandardScaler()),
        ("clf", LogisticRegression()),
    ]
)
pipeline.set_callbacks(ProgressBar()).fit(X_train, y_train)
print(f"accuracy on the test digits: {pipeline.score(X_test, y_test):.1%}")

# %%
# A score after each epoch
# ------------------------
# The monitor calls a function with an estimator that has the weights of the epoch. The
# function also receives the training rows, but can use others: here test digits, which
# are used neither for training nor for early stopping.


def explained(ae, X, y):
    return {"explained": ae.score(X_test)}


monitor = ScoringMonitor(scoring=explained)
ae = AutoencoderTransformer(2, early_stopping=True, random_state=0)
ae.set_callbacks(monitor).fit(X_train)

log = monitor.get_logs().data_as_pandas
epochs = log[log["task_name"] == "epoch"]
final = log[log["task_name"] == "fit"]

# %%
# On the left, the training loss and the validation loss on the held-out tenth of the
# rows. On the right, the scores recorded by the monitor, compared with a PCA.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
LossCurveDisplay.from_estimator(ae, ax=left)

number = epochs["task_id"] + 1  # task ids start at 0
right.plot(number, epochs["explained"], "C2", label="autoencoder")
best = ae.net_.best_epoch_, final["explained"].item()
right.plot(*best, "o", color="C2")
right.annotate(
    f"best epoch: {best[1]:.2f}", best, (0, 10), textcoords="offset points", ha="center"
)
pca = PCA(2).fit(X_train)
squared_error = ((X_test - pca.inverse_transform(pca.transform(X_test))) ** 2).sum()
explained_by_pca = 1 - squared_error / ((X_test - pca.mean_) ** 2).sum()
right.axhline(explained_by_pca, color="C2", linestyle=":", label="PCA")
right.set(
    xlabel="epoch",
    ylabel="explained variance",
    title="Test digits, two components",
    ylim=(0, 0.8),
)
right.legend(frameon=False)
right.spines[["top", "right"]].set_visible(False)
# sphinx_gallery_start_ignore
figure.savefig(out / "callbacks.png", dpi=120)
# sphinx_gallery_end_ignore

# %%
# A custom stopping rule
# ----------------------
# A custom callback has four methods. The keyword-only parameters name the values that
# it requests; values that no callback requests are not computed. If
# ``on_fit_task_end`` returns True, the training stops.


class StopAtHalfOfVariance:
    """Stop the training when half of the variance of its rows is explained."""

    def setup(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, X=None, fitted_estimator=None):
        return context.task_name == "epoch" and fitted_estimator.score(X) > 0.5

    def teardown(self, estimator, context):
        pass


ae.set_callbacks(StopAtHalfOfVariance()).fit(X_train)
print(f"explained variance: {ae.score(X_train):.1%} after {ae.n_iter_} epochs")
