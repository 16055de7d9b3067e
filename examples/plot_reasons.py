"""
Outliers and their reasons
==========================

A detector says which rows are unusual. People who have to act on it ask why. The
outlier score of an autoencoder is a sum over the features, so each feature has its part
in it, and the reconstruction is what the other features lead one to expect.
"""

# sphinx_gallery_start_ignore
# Run as a script, this file saves the figure in the folder ``--out``.
import argparse
from pathlib import Path

parser = argparse.ArgumentParser(
    description="Outliers and their reasons", allow_abbrev=False
)
parser.add_argument("--out", type=Path, default=Path("figures"), help="output folder")
# The arguments of a notebook are ignored.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)
# sphinx_gallery_end_ignore

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits, load_wine
from sklearn.model_selection import train_test_split

from skae import AutoencoderOutlierDetector

# %%
# Images
# ------
# Six test digits are spoilt: a stroke is erased, a pixel is stuck, and so on. The
# detector is fitted to other digits, none of which is spoilt.

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
spoilt = X_test[:6].reshape(-1, 8, 8).copy()
spoilt[0, 0:2, 0:2] = 16  # a spot in a corner
spoilt[1, 3:5, :] = 0  # two lines are missing
spoilt[2, :, 7] = 12  # a bright column
spoilt[3, 6:8, 6:8] = 16
spoilt[4, 4, 4] = 16 - spoilt[4, 4, 4]  # a single pixel is inverted
spoilt[5] = spoilt[5].T  # rows and columns are swapped
spoilt = spoilt.reshape(-1, 64)

detector = AutoencoderOutlierDetector(random_state=0).fit(X_train)
score = detector.score_samples(X_test)
ranks = [1 + np.sum(score < value) for value in detector.score_samples(spoilt)]

# %%
# Above, the spoilt images; in the middle, the contribution of each pixel to the score,
# :meth:`~skae.AutoencoderOutlierDetector.feature_contributions`; below, the images that
# the detector expects, :meth:`~skae.AutoencoderOutlierDetector.reconstruct`. The title
# is the rank of the image among the test digits, where 1 is the most unusual.

parts = {
    "image": (spoilt, "gray_r", 16),
    "contributions": (detector.feature_contributions(spoilt), "Reds", None),
    "expected": (detector.reconstruct(spoilt), "gray_r", 16),
}
figure, axes = plt.subplots(3, 6, figsize=(10, 5.6), layout="constrained")
for line, (name, (rows, cmap, largest)) in zip(axes, parts.items(), strict=True):
    for ax, row in zip(line, rows, strict=True):
        ax.imshow(row.reshape(8, 8), cmap=cmap, vmin=0, vmax=largest)
        ax.set(xticks=[], yticks=[])
    line[0].set_ylabel(name)
for ax, rank in zip(axes[0], ranks, strict=True):
    ax.set_title(f"rank {rank} of {len(score)}")
# sphinx_gallery_start_ignore
figure.savefig(out / "reasons.png", dpi=120)
# sphinx_gallery_end_ignore

# %%
# The contributions are largest where the image was spoilt, and the expected image is
# close to the digit as it was. The detector misses the single pixel: no other pixel of
# the row contributes as much, but more than half of the unspoilt digits are more
# unusual. The last image is unusual as a whole, so that no few pixels explain it.

# %%
# A table
# -------
# For a table, :meth:`~skae.AutoencoderOutlierDetector.explain` lists the features that
# contribute most, with their values and the values expected from the rest of the row.
# The detector is fitted to the wines of two growers, and a wine of the third is
# explained.

wine = load_wine(as_frame=True)
is_third = wine.target == 2
detector = AutoencoderOutlierDetector(random_state=0).fit(wine.data[~is_third])
others = wine.data[is_third]
most_unusual = others.iloc[[detector.score_samples(others).argmin()]]
detector.explain(most_unusual, top=4)
