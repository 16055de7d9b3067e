"""
Generation: sampling and interpolating digits
=============================================

Can a decoder generate new digits, and what does it generate between two given ones? A
variational autoencoder keeps its codes close to the standard normal distribution, so
that codes drawn from this distribution are decoded to rows like the data. Codes from a
mixture of normal distributions that was fitted to the codes of the training rows give
rows that are more like them.
"""

# sphinx_gallery_start_ignore
# Run as a script, this file saves the figure in the folder ``--out``.
import argparse
from pathlib import Path

parser = argparse.ArgumentParser(description="Generation", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="output folder")
# The arguments of a notebook are ignored.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)
# sphinx_gallery_end_ignore

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from skae import AutoencoderTransformer

# %%
# A variational autoencoder with four components is fitted to 70% of the digits. Its
# samples are compared with those of codes from the standard normal distribution, which
# the training aims at, and with those of the simplest alternative: a Gaussian fitted to
# the codes of a PCA with four components. Without noise, samples are means, of which
# the images are smoother.

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(
    X, y, test_size=0.3, stratify=y, random_state=0
)
vae = AutoencoderTransformer(
    4,
    bottleneck="gaussian",
    hidden_layer_sizes=(128, 64),
    max_epochs=100,
    random_state=0,
).fit(X_train)
pca = PCA(4, random_state=0).fit(X_train)

n_samples = 1000
rng = np.random.default_rng(0)
Z = rng.standard_normal((n_samples, 4)) * np.sqrt(pca.explained_variance_)
images = {
    "real digits, held out": X_test,
    "variational autoencoder": vae.sample(n_samples, random_state=0, noise=False),
    "standard normal codes": vae.sample(
        n_samples, random_state=0, prior="standard", noise=False
    ),
    "Gaussian of PCA codes": pca.inverse_transform(Z),
}

# %%
# Interpolation from one digit to another is linear in the codes or, for comparison, in
# the pixels, which is a cross-fade. The midpoints are evaluated on 500 pairs of
# held-out digits of different classes.

left, right = rng.integers(len(X_test), size=(2, 2000))
differ = np.flatnonzero(y_test[left] != y_test[right])[:500]
left, right = X_test[left[differ]], X_test[right[differ]]


def interpolate(start, end, weight):
    """Interpolate between the codes of two digits, and decode the result."""
    Z = (1 - weight) * vae.transform(start) + weight * vae.transform(end)
    return vae.inverse_transform(Z)


midpoints = {
    "midpoint, codes": interpolate(left, right, 0.5),
    "midpoint, pixels": (left + right) / 2,
}

# %%
# The images are evaluated by a logistic regression fitted to the training digits: an
# image is clear if the probability of some digit exceeds 0.9.

classifier = LogisticRegression(max_iter=1000).fit(X_train / 16, y_train)


def share_of_clear(images):
    return np.mean(classifier.predict_proba(images / 16).max(axis=1) > 0.9)


clear = {name: share_of_clear(X) for name, X in (images | midpoints).items()}
print("Share of clear images")
for name, share in clear.items():
    print(f"{name:26}{share:6.3f}")

# %%
# Above, real and generated digits; below, three interpolations of codes, each with the
# interpolation of the pixels below it.

figure = plt.figure(figsize=(11, 8), layout="constrained")
figure.get_layout_engine().set(wspace=0.06)
upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1.4))


def draw(ax, tiles, n_columns):
    """Plot images side by side, separated by a blank pixel."""
    tiles = np.pad(tiles.reshape(-1, 8, 8), ((0, 0), (0, 1), (0, 1)))
    rows = [np.hstack(row) for row in tiles.reshape(-1, n_columns, 9, 9)]
    ax.imshow(np.vstack(rows), cmap="gray_r", vmin=0, vmax=16)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


for ax, (name, rows) in zip(upper.subplots(1, 4), images.items(), strict=True):
    draw(ax, rows[:36], 6)
    ax.set_title(f"{name}\n{clear[name]:.0%} are clear")

of_codes, of_pixels = (clear[name] for name in midpoints)
lower.suptitle(
    f"Clear midpoints: {of_codes:.0%} between codes, {of_pixels:.0%} between pixels"
)
steps = np.linspace(0, 1, 13)
for ax, (a, b) in zip(lower.subplots(3, 1), ((0, 6), (1, 7), (3, 5)), strict=True):
    start = X_test[[np.flatnonzero(y_test == a)[0]]]
    end = X_test[[np.flatnonzero(y_test == b)[0]]]
    path = [interpolate(start, end, weight) for weight in steps]
    path += [(1 - weight) * start + weight * end for weight in steps]
    draw(ax, np.concatenate(path), len(steps))
    ax.set_yticks([4, 13], ["codes", "pixels"])
    ax.tick_params(length=0)
    ax.set_title(f"from {a} to {b}")

# sphinx_gallery_start_ignore
figure.savefig(out / "generation.png", dpi=120)
# sphinx_gallery_end_ignore

# %%
# Of the generated digits, as many are clear as of the real ones, seven in ten, although
# the code has only four components. With codes from the standard normal distribution,
# three in ten are: some of these codes lie between those of different digits. Of the
# samples of the Gaussian, which superimpose strokes of several digits, one in twenty is
# clear. Interpolation of the codes deforms one digit into the other: from 0 to 6 the
# loop of the six closes while the rest of the zero is unchanged. Interpolation of the
# pixels superimposes both digits. Of the 500 midpoints, 23% are clear between the codes
# and 1% between the pixels. Some of the interpolated images show neither digit, as
# between 3 and 5, because the straight line between two codes passes through the codes
# of other classes.
