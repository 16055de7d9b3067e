"""
How many components?
====================

A search over the number of components trains a network for each number and each fold.
With ``ordered=True`` a single fit is enough: its first k components are a code of k
components, for every k, and the rows that the fit holds out show how much of the
variance each of these codes explains.
"""

# sphinx_gallery_start_ignore
# Run as a script, this file saves the figure in the folder ``--out``.
import argparse
from pathlib import Path

parser = argparse.ArgumentParser(description="How many components?", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="output folder")
# The arguments of a notebook are ignored.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)
# sphinx_gallery_end_ignore

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split

from skae import AutoencoderTransformer
from skae.inspection import ComponentSelectionDisplay
from skae.model_selection import elbow

# %%
# One fit of 16 components to images of digits, with 64 pixels each.

X = load_digits().data / 16
X_train, X_test = train_test_split(X, random_state=0)
ae = AutoencoderTransformer(16, ordered=True, random_state=0).fit(X_train)

# %%
# The attribute has the meaning of PCA's, but it is measured on rows that were held out.

explained = ae.explained_variance_ratio_.cumsum()
for k in (1, 2, 4, 8, 16):
    print(f"{k:2d} components explain {explained[k - 1]:.1%} of the variance")

# %%
# Two rules. The elbow is where the curve bends most. A share of the variance needs a
# number of components, here of the autoencoder and of PCA.

knee = elbow(ae)
share = 0.8
enough = int(np.argmax(explained >= share)) + 1
pca = PCA(share).fit(X_train)
print(f"the elbow: {knee} components")
print(f"{share:.0%} of the variance: {enough} components, PCA {pca.n_components_}")

# %%
# ``AutoencoderTransformer(n_components=0.8)`` chooses by the second rule. Here the fit
# is there already: ``truncate`` returns a fitted estimator of fewer components.

narrow = ae.truncate(enough)
print(f"{enough} components explain {narrow.score(X_test):.1%} of the test images")

# %%
# Left, the curve of the held-out rows with its standard error, and PCA's curve of the
# training rows. Right, test images, reconstructed from more and more components of the
# same fit.

figure, (left, right) = plt.subplots(
    1, 2, figsize=(11, 4.4), layout="constrained", width_ratios=[1.2, 1]
)
ComponentSelectionDisplay.from_estimator(ae, ax=left)
linear = PCA(16).fit(X_train).explained_variance_ratio_.cumsum()
left.plot(np.arange(1, 17), linear, color="0.5", marker=".", label="PCA")
left.axhline(share, color="0.8", linewidth=1, zorder=0)
left.legend(loc="lower right")

widths = [1, 2, 4, 8, 16]
images = X_test[[0, 1, 3, 6, 7, 9]]
columns = [ae.truncate(k).reconstruct(images) for k in widths]
rows = np.stack([images, *columns], axis=1).reshape(len(images), -1, 8, 8)
right.imshow(
    np.pad(rows, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=0.5)
    .transpose(0, 2, 1, 3)
    .reshape(len(images) * 10, -1),
    cmap="gray_r",
    vmin=0,
    vmax=1,
)
right.set_xticks(np.arange(len(widths) + 1) * 10 + 4.5, ["image", *map(str, widths)])
right.set_yticks([])
right.set(title="reconstructions", xlabel="n_components")
# sphinx_gallery_start_ignore
figure.savefig(out / "how_many_components.png", dpi=150)
# sphinx_gallery_end_ignore
