"""
Overfitting: an overcomplete code and few rows
==============================================

With more components than features and only a few rows, a network can overfit its
training rows. How far are training and test errors apart, and which regularization
helps: noise on the input, a penalty on the encoder's Jacobian, or early stopping?
"""

# sphinx_gallery_start_ignore
# Run as a script, this file saves the figure in the folder ``--out``.
import argparse
from pathlib import Path

parser = argparse.ArgumentParser(description="Overfitting", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="output folder")
# The arguments of a notebook are ignored.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)
# sphinx_gallery_end_ignore

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from skorch.callbacks import Callback

from skae import AutoencoderTransformer
from skae.penalties import Contractive

# %%
# Only 150 of the 1,797 digits are used for training. A code of 100 components for 64
# pixels is overcomplete and does not force any compression. Training starts from random
# weights; with the default, a PCA of 100 components, every row would be reconstructed
# exactly from the start.

X = load_digits().data
X_train, X_test = train_test_split(X, train_size=150, random_state=0)

common = {
    "n_components": 100,
    "hidden_layer_sizes": (128, 128, 128),
    "init": "random",
    "max_epochs": 80,
    "random_state": 0,
}
variants = {
    "plain": {},
    "contractive": {"penalty": Contractive(n_projections=1), "penalty_weight": 1e-3},
    "denoising": {"corruption": "gaussian", "corruption_level": 0.6},
}

# %%
# Errors are fractions of the variance about the training mean. A skorch callback
# computes them after each epoch, with the module that is being trained.


def error(X_hat, X):
    return np.sum((X - X_hat) ** 2) / np.sum((X - X_train.mean(axis=0)) ** 2)


class Errors(Callback):
    """Record the errors of training and held-out rows after each epoch."""

    def on_epoch_end(self, net, **kwargs):
        net.module_.eval()
        for name, X in (("train", X_train), ("test", X_test)):
            with torch.no_grad():
                X_hat = net.module_(torch.from_numpy(X)).numpy()
            net.history.record(name, error(X_hat, X))


curves, final = {}, {}
print(f"{'':14}{'early stopping':>16}{'epochs':>8}{'training':>10}{'held out':>10}")
for name, settings in variants.items():
    for stops in (False, True):
        ae = AutoencoderTransformer(
            **common, **settings, early_stopping=stops, callbacks=[Errors()]
        ).fit(X_train)
        if not stops:
            curves[name] = np.array(ae.net_.history[:, ("train", "test")])
        final[name, stops] = (1 - ae.score(X_train), 1 - ae.score(X_test))
        print(
            f"{name:14}{'yes' if stops else 'no':>16}{ae.n_iter_:8d}"
            f"{final[name, stops][0]:10.3f}{final[name, stops][1]:10.3f}"
        )

# %%
# Errors by epoch without early stopping, and the final errors of the six fits.

colors = dict(zip(variants, ("C1", "0.2", "C0"), strict=True))
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
for name, (train, test) in ((name, curve.T) for name, curve in curves.items()):
    epochs = np.arange(1, len(test) + 1)
    left.plot(epochs, test, color=colors[name], label=name)
    left.plot(epochs, train, color=colors[name], linestyle="--")
left.set(
    xlabel="epoch",
    ylabel="error (fraction of the variance)",
    ylim=(0, 1),
    title="Without regularization the network overfits",
)
for style, rows in (("-", "held-out rows"), ("--", "training rows")):
    left.plot([], [], color="0.7", linestyle=style, label=rows)
left.legend(frameon=False)

for position, ((name, _), (train, test)) in enumerate(final.items()):
    right.plot([train, test], 2 * [position], color=colors[name], linewidth=2)
    right.plot(train, position, "o", color=colors[name], markerfacecolor="white")
    right.plot(test, position, "o", color=colors[name])
    right.annotate(
        f"{test:.2f}", (test, position), (8, 0), textcoords="offset points", va="center"
    )
right.set(
    xlabel="error (fraction of the variance)",
    title="Noise helps most, early stopping helps the others",
    xlim=(0, 0.6),
    yticks=range(len(final)),
    yticklabels=[f"{name}, stopped" if stops else f"{name}" for name, stops in final],
)
right.invert_yaxis()
for ax in (left, right):
    ax.spines[["top", "right"]].set_visible(False)
# sphinx_gallery_start_ignore
figure.savefig(out / "overfitting.png", dpi=120)
# sphinx_gallery_end_ignore

# %%
# The plain network overfits: its training error is 5%, its held-out error 45%, and the
# held-out error even rises in the second half of the training, while the training error
# still falls. Noise on the input (denoising) helps most, with a held-out error of 36%:
# each row is different in each epoch, and both errors fall until the end. The
# contractive penalty has a smaller effect at this weight. Early stopping narrows every
# gap between the errors, and lowers the held-out error of the plain and of the
# contractive network. The denoising network is not stopped early, and is worse with
# early stopping because 15 rows are held out of its training.
