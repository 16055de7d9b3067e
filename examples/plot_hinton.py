"""
Hinton and Salakhutdinov's figure: MNIST in two components
==========================================================

A well-known figure of a paper in Science [1]_ shows handwritten digits, each encoded by
two numbers, by PCA and by a deep network. This example reproduces the figure with a
smaller network in a minute on one processor core. MNIST is downloaded from OpenML, or,
by ``python plot_hinton.py --data DIR``, read from ``mnist.npz`` in DIR.

.. [1] Hinton, G. E., & Salakhutdinov, R. R. (2006). Reducing the dimensionality of data
   with neural networks. Science, 313, 504-507.
"""

# sphinx_gallery_start_ignore
# Run as a script, this file saves the figure in the folder ``--out``.
import argparse
from pathlib import Path

parser = argparse.ArgumentParser(description="Hinton's figure", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="output folder")
parser.add_argument("--data", type=Path, help="folder with mnist.npz")
# The arguments of a notebook are ignored.
arguments = parser.parse_known_args()[0]
out = arguments.out.resolve()
out.mkdir(parents=True, exist_ok=True)
# sphinx_gallery_end_ignore

import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import fetch_openml, load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from skae import AutoencoderTransformer

# %%
# Of MNIST, 20,000 images are used for training and 5,000 for testing, not the full
# 60,000 and 10,000. Without MNIST, scikit-learn's small digits are used instead.

folder = None  # of mnist.npz; None downloads it
# sphinx_gallery_start_ignore
folder = arguments.data
# sphinx_gallery_end_ignore


def load_mnist(folder):
    """Return training and test images, with pixels in [0, 1], and their labels."""
    if folder is not None:
        with np.load(folder / "mnist.npz") as mnist:
            X_train, X_test = mnist["X_train"][:20_000], mnist["X_test"][:5_000]
            y_train, y_test = mnist["y_train"][:20_000], mnist["y_test"][:5_000]
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning for each failed attempt
            X, y = fetch_openml(
                "mnist_784", version=1, as_frame=False, return_X_y=True, n_retries=1
            )
        X_train, X_test = X[:20_000], X[60_000:65_000]
        y_train, y_test = y[:20_000], y[60_000:65_000]
    X_train, X_test = (
        X.reshape(len(X), -1).astype(np.float32) / 255 for X in (X_train, X_test)
    )
    return X_train, X_test, y_train.astype(int), y_test.astype(int)


source = "MNIST"
try:
    X_train, X_test, y_train, y_test = load_mnist(folder)
except OSError as error:  # no such file, or no network
    source = "scikit-learn's digits"
    print(f"MNIST is not available ({error}).")
    print("Give the folder of mnist.npz by --data, or run with network access.")
    print("The figure shows scikit-learn's digits of 8 x 8 pixels instead.\n")
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(
        X / 16, y, test_size=0.3, stratify=y, random_state=0
    )

# %%
# The encoder of the paper's figure is 784-1000-500-250-2, pre-trained layer by layer;
# this one is half as wide and starts as the PCA. Two figures are computed: the fraction
# of the test variance that the reconstruction explains, and the accuracy of a
# classifier by the ten nearest training codes.

models = {
    "PCA": PCA(2, random_state=0),
    "autoencoder": AutoencoderTransformer(
        2,
        hidden_layer_sizes=(512, 256, 64),
        max_epochs=20,
        early_stopping=False,
        random_state=0,
    ),
}

codes, titles = {}, {}
print(f"{source}: {len(X_train)} training images, {len(X_test)} test images")
print(f"{'':14}{'explained variance':>20}{'accuracy':>12}")
for name, model in models.items():
    Z_train, codes[name] = (
        model.fit(X_train).transform(X_train),
        model.transform(X_test),
    )
    residual = X_test - model.inverse_transform(codes[name])
    explained = 1 - np.sum(residual**2) / np.sum((X_test - model.mean_) ** 2)
    accuracy = KNeighborsClassifier(10).fit(Z_train, y_train).score(codes[name], y_test)
    titles[name] = f"{name}: {explained:.0%} of the variance,\naccuracy {accuracy:.0%}"
    print(f"{name:14}{explained:20.3f}{accuracy:12.3f}")

# %%
# The codes of up to 1,500 test images, each plotted as its digit.

figure, axes = plt.subplots(1, 2, figsize=(12, 6.4), layout="constrained")
for ax, (name, Z) in zip(axes, codes.items(), strict=True):
    Z, y = Z[:1500], y_test[:1500]
    for digit in range(10):
        ax.scatter(
            *Z[y == digit].T, s=24, marker=f"${digit}$", color=f"C{digit}", linewidth=0
        )
    ax.set_title(titles[name])
    ax.set(xlabel="first component", ylabel="second component", xticks=[], yticks=[])
    ax.spines[["top", "right"]].set_visible(False)
figure.suptitle(f"Test images of {source} in two components")
# sphinx_gallery_start_ignore
figure.savefig(out / "hinton.png", dpi=120)
# sphinx_gallery_end_ignore

# %%
# These are the results with MNIST, whose figure is also on the page :doc:`/papers`. As
# in the paper, the classes overlap in PCA's codes of MNIST, except for zeros and ones,
# and the autoencoder's codes form rays, each of one digit or of similar digits: 3 with
# 5 and 8, 4 and 7 with 9. Its two components explain 46% of the variance of test images
# instead of 16%, and the accuracy is 79% instead of 42%, although the training uses no
# labels. The classes overlap near the centre; the paper's network has twice the width,
# three times as many images and many more epochs.
