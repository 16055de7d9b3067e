"""
A table of numbers and words
============================

Flats for rent: size, rooms, rent, district, heating and whether there is a balcony,
with gaps. Words become columns of 0 and 1, and ``loss="mixed"`` reconstructs these as
probabilities. The detector then finds rows whose values do not go together, though
each is usual by itself, and says which; the transformer fills in the gaps.

``python plot_mixed_table.py --out DIR`` saves the figure in DIR, by default in
``figures`` below the current directory.
"""

# %%
# The script draws on the screen only in an interactive session.

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from skae import AutoencoderOutlierDetector, AutoencoderTransformer

if not hasattr(sys, "ps1"):
    plt.switch_backend("Agg")

parser = argparse.ArgumentParser(description="Mixed tables", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="folder to fill")
# A gallery or a notebook has arguments of its own.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)

# %%
# The table
# ---------
# The rent follows from size, district and balcony; old houses, most of them in the
# centre, have gas. One entry in twenty is missing.

rng = np.random.default_rng(0)
n_rows = 1500
place = rng.choice(3, n_rows, p=[0.3, 0.5, 0.2])
size = rng.gamma(9, 8, n_rows) + 15
balcony = rng.random(n_rows) < np.array([0.2, 0.6, 0.9])[place]
rent = size * np.array([19, 13, 9])[place] * rng.normal(1, 0.06, n_rows) + 60 * balcony
gas = rng.random(n_rows) < np.array([0.85, 0.3, 0.05])[place]
flats = pd.DataFrame(
    {
        "size": size,
        "rooms": np.maximum(1, np.round(size / 27 + rng.normal(0, 0.3, n_rows))),
        "rent": rent,
        "district": np.array(["centre", "ring", "suburb"])[place],
        "heating": np.where(gas, "gas", "heat pump"),
        "balcony": np.where(balcony, "yes", "no"),
    }
)
complete = flats.copy()
flats = flats.mask(rng.random(flats.shape) < 0.05)

# %%
# Forty rows are wrong: the flats of the centre are said to be in the suburbs, and the
# reverse.

is_wrong = (np.arange(n_rows) < 100) & (flats["district"].isin(["centre", "suburb"]))
elsewhere = {"centre": "suburb", "suburb": "centre"}
flats.loc[is_wrong, "district"] = flats.loc[is_wrong, "district"].map(elsewhere)
print(f"{is_wrong.sum()} of {n_rows} rows are wrong")

# %%
# The recipe
# ----------
# Numbers are scaled and words encoded. A missing word becomes a word of its own there;
# the step behind it makes it missing again, which is what the network understands.
# With ``set_output`` the columns keep their names on the way.

words = make_column_selector(dtype_exclude="number")
numbers = make_column_selector(dtype_include="number")
encoder = make_column_transformer(
    (StandardScaler(), numbers),
    (OneHotEncoder(sparse_output=False), words),
    verbose_feature_names_out=False,
).set_output(transform="pandas")


def blank_missing_words(X):
    """NaN in all columns of a word that is missing."""
    X = X.copy()
    for marker in X.filter(regex="_nan$"):
        word = marker.removesuffix("nan")
        X.loc[X[marker] == 1, X.columns.str.startswith(word)] = np.nan
        X = X.drop(columns=marker)
    return X


prepare = make_pipeline(encoder, FunctionTransformer(blank_missing_words))
X = prepare.fit_transform(flats)
print(f"{flats.shape[1]} columns become {X.shape[1]}: {', '.join(X.columns)}")

# %%
# What does not go together
# -------------------------

detector = AutoencoderOutlierDetector(loss="mixed", random_state=0)
pipeline = make_pipeline(prepare, detector).fit(flats)
forest = make_pipeline(prepare, IsolationForest(random_state=0)).fit(flats)
for name, model in (("skae", pipeline), ("IsolationForest", forest)):
    auc = roc_auc_score(is_wrong, -model.score_samples(flats))
    print(f"{name}: ROC AUC {auc:.2f}")

# %%
# The contributions come with the names of the encoded columns. Those of one word add up
# to the contribution of its original column.

detector.set_output(transform="pandas")
contributions = detector.feature_contributions(X)
origin = {
    column: name
    for column in X.columns
    for name in flats.columns
    if column == name or column.startswith(f"{name}_")
}
by_column = contributions.T.groupby(origin).sum().T[list(flats.columns)]
strangest = by_column[flats.notna().all(axis=1)].sum(axis=1).nlargest(3).index
print(flats.loc[strangest].round().to_string())

# %%
# Filling in
# ----------
# A denoising autoencoder learns to tell a value from the others: with "swap", three
# values in ten are those of another row, and have to be put right.

ae = AutoencoderTransformer(6, loss="mixed", corruption="swap", random_state=0)
ae.set_output(transform="pandas")
filled = ae.fit(X).reconstruct(X)
districts = ["district_centre", "district_ring", "district_suburb"]
unknown = flats["district"].isna() & ~is_wrong & flats["rent"].notna()
unknown &= flats["size"].notna()
p = filled.loc[unknown, districts]
truth = complete.loc[unknown, "district"]
told = p.idxmax(axis=1).str.removeprefix("district_")
print(
    f"{(told == truth).mean():.0%} of {len(truth)} missing districts filled in right; "
    f"the most frequent one would be right in {(truth == 'ring').mean():.0%}"
)

# %%
# On the left, what makes three rows strange; on the right, the probabilities of a
# missing district, by rent and size.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
labels = [
    f"{row.district}, {row.size_:.0f} m², {row.rooms:.0f} rooms,\n"
    f"{row.heating}, rent {row.rent:.0f}"
    for row in flats.loc[strangest].rename(columns={"size": "size_"}).itertuples()
]
by_column.loc[strangest].set_axis(labels).plot.barh(stacked=True, ax=left)
left.invert_yaxis()
left.margins(x=0.3)
left.set(xlabel="contribution to the error", title="Rows that do not go together")
left.legend(fontsize="small")

per_area = complete.loc[unknown, "rent"] / complete.loc[unknown, "size"]
for column, marker in zip(districts, "o^s", strict=True):
    name = column.removeprefix("district_")
    where = truth == name
    right.scatter(per_area[where], p.loc[where, column], marker=marker, label=name)
right.set(
    xlabel="rent per m²",
    ylabel="probability of the true district",
    title="Missing districts filled in",
)
right.legend(title="true district", loc="lower left")
figure.savefig(out / "mixed_table.png", dpi=150)
print(f"Saved {out / 'mixed_table.png'}")
