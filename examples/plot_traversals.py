"""
What a component does: traversals
=================================

The decoder turns any code into a row, so the meaning of a component can be seen: it is
varied from low to high, the others stay as they are, and each code is decoded. The
codes of a variational autoencoder are spread like a normal distribution, without gaps,
so that all codes between those of the data are decoded to rows like the data.
"""

# sphinx_gallery_start_ignore
# Run as a script, this file saves the figure in the folder ``--out``.
import argparse
from pathlib import Path

parser = argparse.ArgumentParser(description="Traversals", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="output folder")
# The arguments of a notebook are ignored.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)
# sphinx_gallery_end_ignore

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from skae import AutoencoderTransformer
from skae.inspection import ComponentTraversalDisplay

X, y = load_digits(return_X_y=True)

# %%
# With two components, all codes fit in one picture: a grid of codes, each decoded to an
# image. Equal shares of the rows lie between neighbouring lines of the grid.

plane = AutoencoderTransformer(2, bottleneck="gaussian", random_state=0).fit(X)
Z = plane.transform(X)
n_steps = 15
steps = np.quantile(Z, np.linspace(0.02, 0.98, n_steps), axis=0)
# Shape (n_steps, n_steps, 2); the second component grows upwards.
grid = np.stack(np.meshgrid(steps[:, 0], steps[::-1, 1]), axis=-1)
images = plane.inverse_transform(grid.reshape(-1, 2))
images = images.reshape(n_steps, n_steps, 8, 8)
images = np.pad(images, [(0, 0), (0, 0), (1, 1), (1, 1)])  # a white frame

# %%
# With six components a picture has a line for each:
# :class:`~skae.inspection.ComponentTraversalDisplay` varies one component of the median
# code from the 5th to the 95th percentile of the data's codes.

vae = AutoencoderTransformer(
    6, bottleneck="gaussian", input_shape=(8, 8), random_state=0
).fit(X)
print(
    f"explained variance: {plane.score(X):.0%} by 2, {vae.score(X):.0%} by 6 components"
)

figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5.8), layout="constrained")
left.imshow(
    images.transpose(0, 2, 1, 3).reshape(10 * n_steps, -1),
    cmap="gray_r",
    vmin=0,
    vmax=16,
)
left.set(
    xticks=[],
    yticks=[],
    xlabel="first component",
    ylabel="second component",
    title="Every code of two components is an image",
)
ComponentTraversalDisplay.from_estimator(vae, X, n_steps=9, ax=right)
# sphinx_gallery_start_ignore
figure.savefig(out / "traversals.png", dpi=120)
# sphinx_gallery_end_ignore

# %%
# Left, the digits pass into each other. Along the borders they are clear; images in the
# middle belong to codes that several digits share. Right, no component stands for
# a single property such as slant or thickness. The components of a variational
# autoencoder may be rotated without a change of the loss, so do not expect a meaning of
# each. If their order matters, use ``ordered=True``.
