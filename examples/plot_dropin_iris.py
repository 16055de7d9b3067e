"""
Drop-in replacement: iris
=========================

Flowers of three species, each described by four lengths, are reduced to two
components without using the species. How accurately can the lengths be reconstructed?

To use scikit-learn's ``PCA``, import it and replace the name of the class below.
Nothing else changes.
"""

# sphinx_gallery_start_ignore
# Run as a script, this file saves the figure in the folder ``--out``.
import argparse
from pathlib import Path

parser = argparse.ArgumentParser(description="Iris", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="output folder")
# The arguments of a notebook are ignored.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)
# sphinx_gallery_end_ignore

import matplotlib.pyplot as plt
from sklearn.datasets import load_iris

from skae import AutoencoderTransformer

# %%
# The input is a data frame, and so are the codes. The error of the reconstruction is
# compared with the variance, which is the error of the mean.

iris = load_iris(as_frame=True)
reducer = AutoencoderTransformer(n_components=2, random_state=0)
reducer.set_output(transform="pandas")
codes = reducer.fit_transform(iris.data)
residuals = iris.data - reducer.inverse_transform(codes)
squared_error = (residuals**2).sum()
variance = ((iris.data - reducer.mean_) ** 2).sum()
print(f"components: {reducer.n_components_}, of {reducer.n_features_in_} features")
print(f"explained variance: {1 - squared_error.sum() / variance.sum():.2%}")

# %%
# Left, the codes of the flowers, on axes named after the columns of the codes; right,
# the error of each length.

figure = plt.figure(figsize=(10, 4.6), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(3, 2))
ax = left.subplots()
for species, name in enumerate(iris.target_names):
    rows = codes[iris.target == species].to_numpy()
    ax.scatter(*rows.T, s=30, edgecolor="white", linewidth=0.4, label=name)
x_name, y_name = reducer.get_feature_names_out()
ax.set(xlabel=x_name, ylabel=y_name)
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, loc="upper center")

ax = right.subplots()
names = [name.removesuffix(" (cm)") for name in reducer.feature_names_in_]
bars = ax.barh(names, squared_error / variance, color="0.6")
ax.bar_label(bars, fmt="{:.1%}", padding=3)
ax.set(xlabel="unexplained fraction of the variance", xticks=[0, 0.04, 0.08, 0.12])
ax.xaxis.set_major_formatter("{x:.0%}")
ax.invert_yaxis()
ax.spines[["top", "right"]].set_visible(False)

# sphinx_gallery_start_ignore
figure.savefig(out / "dropin_iris.png", dpi=100)
# sphinx_gallery_end_ignore
