"""
How many of these alarms are false?
===================================

A detector has learnt from clean rows, and a batch of new rows arrives, some of which
are outliers. A threshold of the scores raises alarms, but does not say how many of them
are false. The p-value of a row does: it is the share of rows like the training rows
that would have so large an error. The procedure of Benjamini and Hochberg turns the
p-values of a batch into alarms of which, on average, at most a chosen share is false,
the false discovery rate.

Here the rows are tumours of the breast cancer data. The detector learns from benign
ones only.
"""

# sphinx_gallery_start_ignore
# Run as a script, this file saves the figure in the folder ``--out``.
import argparse
from pathlib import Path

parser = argparse.ArgumentParser(description="False alarms", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="output folder")
# The arguments of a notebook are ignored.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)
# sphinx_gallery_end_ignore

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import false_discovery_control
from sklearn.datasets import load_breast_cancer

from skae import AutoencoderOutlierDetector
from skae.inspection import PValueDisplay

# %%
# 200 benign tumours for training; the other 157, and 40 malignant ones, are new.

X, is_benign = load_breast_cancer(return_X_y=True)
rng = np.random.default_rng(0)
benign = rng.permutation(X[is_benign == 1])
malignant = rng.permutation(X[is_benign == 0])
detector = AutoencoderOutlierDetector(random_state=0).fit(benign[:200])
X_new = np.vstack([benign[200:], malignant[:40]])
is_outlier = np.arange(len(X_new)) >= len(benign) - 200

# %%
# Each member of the detector's ensemble has not learnt a quarter of the training rows.
# Their errors are those of new rows, and with them the errors of the batch are
# compared. No further rows are needed.

p_values = detector.p_values(X_new)
for level in (0.05, 0.1, 0.2):
    is_alarm = false_discovery_control(p_values) <= level
    n_false = np.sum(is_alarm & ~is_outlier)
    print(f"level {level:.2f}: {is_alarm.sum()} alarms, {n_false} of them false")

# %%
# Left, the p-values of the batch. Those of benign tumours are uniformly distributed.
# Right, the share of false alarms in 200 other batches, each of 100 benign and 25
# malignant tumours drawn at random. A single batch may have a larger share than the
# chosen one; their mean does not.

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
PValueDisplay.from_estimator(detector, X_new, level=0.1, ax=left)

p_benign = detector.p_values(benign[200:])
p_malignant = detector.p_values(malignant)
levels = np.linspace(0.02, 0.5, 25)
share, found = np.zeros((2, 200, len(levels)))
for i in range(len(share)):
    drawn = [rng.choice(p_benign, 100, False), rng.choice(p_malignant, 25, False)]
    adjusted = false_discovery_control(np.concatenate(drawn))
    is_alarm = adjusted[:, None] <= levels
    share[i] = is_alarm[:100].sum(axis=0) / np.maximum(is_alarm.sum(axis=0), 1)
    found[i] = is_alarm[100:].mean(axis=0)

right.plot(levels, share.mean(axis=0), label="false alarms, share of the alarms")
right.fill_between(levels, *np.quantile(share, [0.1, 0.9], axis=0), alpha=0.2)
right.plot(levels, found.mean(axis=0), label="outliers found, share of the outliers")
right.plot(levels, levels, color="0.5", linestyle=":", label="chosen share")
right.set(xlabel="false discovery rate that was chosen", ylim=(0, 1))
right.legend()

# sphinx_gallery_start_ignore
figure.savefig(out / "false_alarms.png", dpi=100)
# sphinx_gallery_end_ignore
