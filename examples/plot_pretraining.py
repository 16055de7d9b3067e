"""
Pre-training: an encoder for a classifier
=========================================

Does pre-training on unlabelled digits improve a network that classifies digits after
training on 50 labels? The encoder of an autoencoder is a plain PyTorch module. Here it
forms the first layers of a classifier, which is trained by skorch's
``NeuralNetClassifier`` and compared with the same network from random weights.
"""

# sphinx_gallery_start_ignore
# Run as a script, this file saves the figure in the folder ``--out``.
import argparse
from pathlib import Path

parser = argparse.ArgumentParser(description="Pre-training", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="output folder")
# The arguments of a notebook are ignored.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)
# sphinx_gallery_end_ignore

import copy

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit, train_test_split
from skorch import NeuralNetClassifier
from torch import nn

from skae import AutoencoderTransformer

# %%
# 40% of the digits are held out. PyTorch's networks take float32, and one thread: with
# few rows, several threads wait for each other.

torch.set_num_threads(1)
X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X.astype(np.float32), y, test_size=0.4, stratify=y, random_state=0
)

# %%
# First a denoising autoencoder is fitted to all training rows, without labels.

ae = AutoencoderTransformer(
    n_components=16,
    corruption="gaussian",
    corruption_level=1.0,
    max_epochs=100,
    random_state=0,
).fit(X_train)

# %%
# The input of ``ae.module_.encoder`` are scaled rows, so ``ae.module_.scaler`` is used
# with it. Both are copied, so that the autoencoder is not changed.


class RowEncoder(nn.Module):
    """Map rows in their original units to codes."""

    def __init__(self, autoencoder):
        super().__init__()
        self.scaler = copy.deepcopy(autoencoder.scaler)
        self.encoder = copy.deepcopy(autoencoder.encoder)

    def forward(self, X):
        scaled, _ = self.scaler(X)  # the second output is the mask of observed entries
        return self.encoder(scaled)


def make_classifier(is_pretrained):
    encoder = RowEncoder(ae.module_)
    if not is_pretrained:
        for layer in encoder.modules():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
    return NeuralNetClassifier(
        nn.Sequential(encoder, nn.Linear(ae.n_components, 10)),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        optimizer__momentum=0.9,
        lr=0.03,
        batch_size=10,
        iterator_valid__batch_size=1000,
        max_epochs=1,  # for each call of ``partial_fit``
        train_split=None,
        verbose=0,
    )


# %%
# Ten times, 50 training rows are drawn, five of each digit, and all layers of both
# networks are trained on them with the same settings. These were chosen on a part of
# the training rows, where they are the best for both networks. For comparison, a
# logistic regression is fitted to the pixels of the same rows.

n_epochs, n_draws = 20, 10
kinds = {"pre-trained": True, "from scratch": False}
accuracy = {name: np.zeros((n_draws, n_epochs)) for name in kinds}
of_pixels = np.zeros(n_draws)
split = StratifiedShuffleSplit(n_draws, train_size=50, random_state=0)
for draw, (labelled, _) in enumerate(split.split(X_train, y_train)):
    X_labelled, y_labelled = X_train[labelled], y_train[labelled]
    regression = LogisticRegression(max_iter=1000).fit(X_labelled, y_labelled)
    of_pixels[draw] = regression.score(X_test, y_test)
    for name, is_pretrained in kinds.items():
        torch.manual_seed(draw)
        classifier = make_classifier(is_pretrained)
        for epoch in range(n_epochs):
            classifier.partial_fit(X_labelled, y_labelled)
            accuracy[name][draw, epoch] = classifier.score(X_test, y_test)


def mean_and_error(values):
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(n_draws)


print(f"Accuracy after 50 labels, mean and standard error of {n_draws} draws")
results = {name: curves[:, -1] for name, curves in accuracy.items()}
results["logistic regression on pixels"] = of_pixels
for name, values in results.items():
    mean, error = mean_and_error(values)
    print(f"{name:30}{mean:.3f} ± {error:.3f}")

# %%
# Lines are means over the draws, bands are plus and minus two standard errors.

figure, ax = plt.subplots(figsize=(7.5, 5), layout="constrained")
epochs = np.arange(1, n_epochs + 1)
for (name, curves), color, line in zip(
    accuracy.items(), ("C0", "C1"), ("-", "--"), strict=True
):
    mean, error = mean_and_error(curves)
    ax.plot(epochs, mean, color=color, linestyle=line, linewidth=2, label=name)
    ax.fill_between(
        epochs, mean - 2 * error, mean + 2 * error, color=color, alpha=0.2, linewidth=0
    )
ax.axhline(
    of_pixels.mean(), color="0.4", linestyle=":", label="logistic regression on pixels"
)
ax.set(
    xlim=(1, n_epochs),
    xticks=[1, 5, 10, 15, 20],
    xlabel="epochs over 50 labelled rows",
    ylabel="accuracy on held-out digits",
    title="A pre-trained encoder needs fewer labels",
)
ax.yaxis.set_major_formatter("{x:.0%}")
ax.grid(axis="y", color="0.9")
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, loc="lower right")

# sphinx_gallery_start_ignore
figure.savefig(out / "pretraining.png", dpi=120)
# sphinx_gallery_end_ignore

# %%
# With 50 labels the final accuracy of the pre-trained network is 89%, that of the same
# network from scratch 84%. After three epochs the pre-trained network is better than
# the final network from scratch. From scratch, the network is less accurate than the
# logistic regression, 86%; its size pays off only with the unlabelled rows.
