"""
Numeric and categorical columns
===============================

A table of flats for rent has the columns size, rooms, rent, district, heating and
balcony, with missing values. The categorical columns are one-hot encoded, and
``loss="mixed"`` reconstructs the binary columns as probabilities. The detector finds
rows with unusual combinations of usual values and reports the features that contribute
to the error; the transformer imputes the missing values.

``python plot_mixed_table.py --out DIR`` saves the figure in DIR, by default in
``figures`` below the current directory.
"""

# %%
# Figures are shown on the screen only in an interactive session.

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
parser.add_argument("--out", type=Path, default=Path("figures"), help="output folder")
# Ignore the arguments of a gallery or a notebook.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)

# %%
# The data
# --------
# The rent depends on size, district and balcony; most flats in the centre have gas
# heating. One entry in twenty is missing.

rng = np.random.default_rng(0)
n_rows = 1500
district = rng.choice(3, n_rows, p=[0.3, 0.5, 0.2])
size = rng.gamma(9, 8, n_rows) + 15
balcony = rng.random(n_rows) < np.array([0.2, 0.6, 0.9])[district]
rent = size * np.array([19, 13, 9])[district] * rng.normal(1, 0.06, n_rows)
rent += 60 * balcony
gas = rng.random(n_rows) < np.array([0.85, 0.3, 0.05])[district]
flats = pd.DataFrame(
    {
        "size": size,
        "rooms": np.maximum(1, np.round(size / 27 + rng.normal(0, 0.3, n_rows))),
        "rent": rent,
        "district": np.array(["centre", "ring", "suburb"])[district],
        "heating": np.where(gas, "gas", "heat pump"),
        "balcony": np.where(balcony, "yes", "no"),
    }
)
complete = flats.copy()
flats = flats.mask(rng.random(flats.shape) < 0.05)

# %%
# Among the first hundred rows, the districts centre and suburb are exchanged.

is_wrong = (np.arange(n_rows) < 100) & (flats["district"].isin(["centre", "suburb"]))
exchange = {"centre": "suburb", "suburb": "centre"}
flats.loc[is_wrong, "district"] = flats.loc[is_wrong, "district"].map(exchange)
print(f"{is_wrong.sum()} of {n_rows} rows have a wrong district")

# %%
# Preprocessing
# -------------
# Numeric columns are scaled and categorical columns encoded. `OneHotEncoder` encodes a
# missing value as a category of its own; the next step sets the columns to NaN again,
# which the network treats as missing. With ``set_output`` the columns keep their names.

categorical = make_column_selector(dtype_exclude="number")
numeric = make_column_selector(dtype_include="number")
encoder = make_column_transformer(
    (StandardScaler(), numeric),
    (OneHotEncoder(sparse_output=False), categorical),
    verbose_feature_names_out=False,
).set_output(transform="pandas")


def restore_missing(X):
    """Set the binary columns of missing categories to NaN."""
    X = X.copy()
    for indicator in X.filter(regex="_nan$"):
        prefix = indicator.removesuffix("nan")
        X.loc[X[indicator] == 1, X.columns.str.startswith(prefix)] = np.nan
        X = X.drop(columns=indicator)
    return X


prepare = make_pipeline(encoder, FunctionTransformer(restore_missing))
X = prepare.fit_transform(flats)
print(f"{flats.shape[1]} columns are encoded as {X.shape[1]}: {', '.join(X.columns)}")

# %%
# Unusual combinations
# --------------------

detector = AutoencoderOutlierDetector(loss="mixed", random_state=0)
pipeline = make_pipeline(prepare, detector).fit(flats)
forest = make_pipeline(prepare, IsolationForest(random_state=0)).fit(flats)
for name, model in (("skae", pipeline), ("IsolationForest", forest)):
    auc = roc_auc_score(is_wrong, -model.score_samples(flats))
    print(f"{name}: ROC AUC {auc:.2f}")

# %%
# The contributions have the names of the encoded columns. Those of one categorical
# column are summed.

detector.set_output(transform="pandas")
contributions = detector.feature_contributions(X)
original_column = {
    column: name
    for column in X.columns
    for name in flats.columns
    if column == name or column.startswith(f"{name}_")
}
by_column = contributions.T.groupby(original_column).sum().T[list(flats.columns)]
most_anomalous = by_column[flats.notna().all(axis=1)].sum(axis=1).nlargest(3).index
print(flats.loc[most_anomalous].round().to_string())

# %%
# Imputation
# ----------
# A denoising autoencoder learns to predict a value from the others: with "swap", 30% of
# the values are replaced by those of other rows, and have to be corrected.

ae = AutoencoderTransformer(6, loss="mixed", corruption="swap", random_state=0)
ae.set_output(transform="pandas")
filled = ae.fit(X).reconstruct(X)
districts = ["district_centre", "district_ring", "district_suburb"]
unknown = flats["district"].isna() & ~is_wrong & flats["rent"].notna()
unknown &= flats["size"].notna()
p = filled.loc[unknown, districts]
truth = complete.loc[unknown, "district"]
imputed = p.idxmax(axis=1).str.removeprefix("district_")
print(
    f"accuracy on {len(truth)} missing districts: {(imputed == truth).mean():.0%}; "
    f"most frequent district: {(truth == 'ring').mean():.0%}"
)

# %%
# On the left, the contributions to the errors of three rows; on the right, the
# probabilities of the missing districts, by rent per square metre.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
labels = [
    f"{row.district}, {row.size_:.0f} m², {row.rooms:.0f} rooms,\n"
    f"{row.heating}, rent {row.rent:.0f}"
    for row in flats.loc[most_anomalous].rename(columns={"size": "size_"}).itertuples()
]
by_column.loc[most_anomalous].set_axis(labels).plot.barh(stacked=True, ax=left)
left.invert_yaxis()
left.margins(x=0.3)
left.set(xlabel="contribution to the error", title="Rows with the largest errors")
left.legend(fontsize="small")

per_area = complete.loc[unknown, "rent"] / complete.loc[unknown, "size"]
for column, marker in zip(districts, "o^s", strict=True):
    name = column.removeprefix("district_")
    where = truth == name
    right.scatter(per_area[where], p.loc[where, column], marker=marker, label=name)
right.set(
    xlabel="rent per m²",
    ylabel="probability of the true district",
    title="Imputation of missing districts",
)
right.legend(title="true district", loc="lower left")
figure.savefig(out / "mixed_table.png", dpi=150)
print(f"Saved {out / 'mixed_table.png'}")
