"""
Numeric and categorical columns
===============================

A table of expenses has the department, the kind of expense, the city and the means of
payment, two truth values, numbers and missing values. With
``categorical_features="from_dtype"`` each categorical column is modelled by a softmax.
The detector finds unusual combinations of usual values and tells which columns
contribute to the error; the transformer fills in missing categories.
"""

# sphinx_gallery_start_ignore
# Run as a script, this file saves the figure in the folder ``--out``.
import argparse
from pathlib import Path

parser = argparse.ArgumentParser(description="Mixed tables", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="output folder")
# The arguments of a notebook are ignored.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)
# sphinx_gallery_end_ignore

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import IsolationForest
from sklearn.impute import SimpleImputer
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from skae import AutoencoderOutlierDetector, AutoencoderTransformer

# %%
# The data
# --------
# The kind of an expense depends on the department, the amount on the kind, the city,
# and the numbers of persons and nights. 3 % of the rows are outliers: filed as another
# kind, inflated and without a receipt, private purchases at a weekend, or hardware
# bought by lawyers. One entry in fifty is missing. Dates would be refused: the weekend
# and the days until an expense is handed in are what a date says here.


def drawn(rng, shares):
    """Draw a position for each row of shares that sum to one."""
    u = rng.random((len(shares), 1))
    return (u > shares.cumsum(axis=1)).sum(axis=1).clip(max=shares.shape[1] - 1)


def simulate_expenses(seed, n_rows=1500):
    """Return expenses, and which of them are outliers."""
    rng = np.random.default_rng(seed)
    departments = np.array(
        ["sales", "support", "research", "production", "marketing", "finance", "legal"]
    )
    kinds = np.array(
        ["meal", "hotel", "train", "flight", "taxi", "software", "hardware", "course"]
    )
    department = rng.choice(7, n_rows, p=[0.3, 0.2, 0.15, 0.15, 0.1, 0.06, 0.04])
    shares = [
        [0.30, 0.20, 0.15, 0.15, 0.15, 0.02, 0.01, 0.02],
        [0.20, 0.05, 0.20, 0.02, 0.10, 0.13, 0.20, 0.10],
        [0.10, 0.10, 0.15, 0.10, 0.05, 0.20, 0.20, 0.10],
        [0.10, 0.05, 0.25, 0.02, 0.10, 0.05, 0.35, 0.08],
        [0.25, 0.20, 0.15, 0.10, 0.10, 0.15, 0.02, 0.03],
        [0.20, 0.10, 0.30, 0.05, 0.10, 0.15, 0.03, 0.07],
        [0.20, 0.15, 0.30, 0.10, 0.10, 0.10, 0.01, 0.04],
    ]
    kind = drawn(rng, np.array(shares)[department])
    city = rng.choice(
        12, n_rows, p=np.array([30, 20, 12, 10, 8, 6, 4, 3, 3, 2, 1, 1]) / 100
    )
    level = np.array([1.3, 1.2, 1, 1, 0.9, 1.1, 1, 0.9, 1.5, 0.8, 1, 1.4])[city]
    persons = np.where(kind == 0, 1 + rng.poisson(1.2, n_rows), 1)
    nights = np.where(kind == 1, 1 + rng.poisson(1, n_rows), 0)
    price = np.array([28, 110, 70, 260, 24, 90, 400, 650])[kind]
    spread = np.array([0.3, 0.25, 0.4, 0.35, 0.35, 0.5, 0.6, 0.3])[kind]
    amount = price * persons * np.maximum(nights, 1) * np.exp(rng.normal(0, spread))
    amount = amount * np.where(np.isin(kind, [0, 1, 4]), level, 1)
    payments = [[0.75, 0.25, 0], [0.9, 0.02, 0.08], [0.9, 0.05, 0.05], [0.97, 0, 0.03]]
    payments += [[0.55, 0.45, 0], [0.8, 0, 0.2], [0.4, 0.02, 0.58], [0.2, 0, 0.8]]
    payment = drawn(rng, np.array(payments)[kind])
    weekend = (
        rng.random(n_rows)
        < np.array([0.06, 0.15, 0.1, 0.15, 0.1, 0.02, 0.01, 0.02])[kind]
    )
    receipt = rng.random(n_rows) < np.where(payment == 1, 0.7, 0.98)
    delay = rng.gamma(2, 5, n_rows)
    outliers = rng.choice(n_rows, round(0.03 * n_rows), replace=False)
    wrong, inflated, private, odd = np.array_split(outliers, 4)
    kind[wrong] = (kind[wrong] + rng.integers(1, 8, len(wrong))) % 8
    amount[inflated] *= rng.uniform(2.5, 5, len(inflated))
    receipt[inflated] = False
    weekend[private], payment[private] = True, 1
    kind[private] = rng.choice([5, 6, 7], len(private))
    department[odd], kind[odd], payment[odd] = 6, 6, 0
    frame = pd.DataFrame(
        {
            "department": departments[department],
            "kind": kinds[kind],
            "city": np.array(list("ABCDEFGHIJKL"))[city],
            "payment": pd.Categorical(np.array(["card", "cash", "transfer"])[payment]),
            "weekend": weekend,
            "receipt": receipt,
            "persons": persons.astype(float),
            "nights": nights.astype(float),
            "amount": amount.round(2),
            "delay": delay.round(),
        }
    )
    is_missing = rng.random(frame.shape) < 0.02
    is_missing[:, [4, 5]] = False
    return frame.mask(is_missing), np.isin(np.arange(n_rows), outliers), frame


expenses, is_outlier, complete = simulate_expenses(seed=200)
print(expenses.dtypes.to_string())

# %%
# Unusual combinations
# --------------------
# The isolation forest reads one-hot columns.

detector = AutoencoderOutlierDetector(
    categorical_features="from_dtype", random_state=0
).fit(expenses)
one_hot = make_column_transformer(
    (SimpleImputer(), make_column_selector(dtype_include="float")),
    (
        OneHotEncoder(sparse_output=False),
        make_column_selector(dtype_exclude="float"),
    ),
)
forest = make_pipeline(one_hot, IsolationForest(random_state=0)).fit(expenses)
for name, model in (("skae", detector), ("IsolationForest", forest)):
    scores = -model.score_samples(expenses)
    auc = roc_auc_score(is_outlier, scores)
    precision = average_precision_score(is_outlier, scores)
    print(f"{name}: ROC AUC {auc:.2f}, average precision {precision:.2f}")

# %%
# The contributions have the columns of the table.

detector.set_output(transform="pandas")
contributions = detector.feature_contributions(expenses)
most_anomalous = contributions.sum(axis=1).nlargest(4).index
print(expenses.loc[most_anomalous].to_string())

# %%
# A city that no training row has is a sign of an outlier, a missing one is none.

new = expenses.iloc[[0, 0, 0]].astype({"city": object})
new["city"] = ["A", None, "Z"]
for city, score in zip(new["city"], detector.score_samples(new), strict=True):
    print(f"city {city}: score {score:.3f}")

# %%
# Missing categories
# ------------------
# A denoising autoencoder learns to predict a value from the others: with "masking",
# 30 % of the values are replaced by the mean, which also replaces missing values.

ae = AutoencoderTransformer(
    8,
    categorical_features="from_dtype",
    corruption="masking",
    random_state=0,
)
filled = ae.set_output(transform="pandas").fit(expenses).reconstruct(expenses)
unknown = expenses["kind"].isna() & ~is_outlier
correct = (filled["kind"] == complete["kind"])[unknown].mean()
most_frequent = expenses["kind"].mode()[0]
frequent = (complete.loc[unknown, "kind"] == most_frequent).mean()
print(
    f"{unknown.sum()} missing kinds: {correct:.0%} are filled in correctly; "
    f"{frequent:.0%} by the most frequent kind"
)

# %%
# The contributions to the errors of four rows.

figure, ax = plt.subplots(figsize=(9, 4), layout="constrained")
labels = [
    f"{row.department}, {row.kind}, {row.payment},\n"
    f"amount {row.amount:.0f}{', weekend' if row.weekend else ''}"
    f"{'' if row.receipt else ', no receipt'}"
    for row in expenses.loc[most_anomalous].itertuples()
]
contributions.loc[most_anomalous].set_axis(labels).plot.barh(
    stacked=True, ax=ax, colormap="tab10"
)
ax.invert_yaxis()
ax.margins(x=0.25)
ax.set(xlabel="contribution to the error", title="Rows with the largest errors")
ax.legend(fontsize="small")
# sphinx_gallery_start_ignore
figure.savefig(out / "mixed_table.png", dpi=150)
# sphinx_gallery_end_ignore
