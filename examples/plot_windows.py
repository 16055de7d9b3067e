"""
Faults in a load curve
======================

A time series becomes rows by cutting it into overlapping windows. A detector scores the
windows, and the score of a point is the mean over the windows that contain it. The
network's reconstruction of the windows, put together again, is the curve that it
expects: also where values are missing.
"""

# sphinx_gallery_start_ignore
# Run as a script, this file saves the figure in the folder ``--out``.
import argparse
from pathlib import Path

parser = argparse.ArgumentParser(description="Load curve", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="output folder")
# The arguments of a notebook are ignored.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)
# sphinx_gallery_end_ignore

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.dates import DateFormatter
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

from skae import AutoencoderOutlierDetector
from skae.windows import SlidingWindows, point_scores

# %%
# The load of a building, every half hour: twelve weeks without faults, and two weeks
# with four. Workdays have two peaks, weekends one.

rng = np.random.default_rng(0)


def make_load(start, n_days):
    time = pd.date_range(start, periods=48 * n_days, freq="30min")
    hour = time.hour + time.minute / 60
    morning = np.exp(-(((hour - 8) / 2) ** 2)) * np.where(time.day_of_week < 5, 1, 0.3)
    evening = np.exp(-(((hour - 19) / 3) ** 2))
    size = np.repeat(rng.normal(30, 3, n_days), 48)
    load = 40 + size * (morning + evening) + rng.normal(0, 1.5, len(time))
    return pd.Series(load, index=time, name="load")


train = make_load("2024-01-01", 84)
load = make_load("2024-03-25", 14)

is_fault = pd.Series(False, index=load.index)
faults = {
    "stuck": slice("2024-03-26 10:00", "2024-03-26 18:00"),
    "drift": slice("2024-03-29 00:00", "2024-03-29 20:00"),
    "no peak": slice("2024-04-02 05:00", "2024-04-02 11:00"),
    "spikes": slice("2024-04-05 12:00", "2024-04-05 17:00"),
}
load[faults["stuck"]] = load[faults["stuck"]].iloc[0]
load[faults["drift"]] += np.linspace(0, 20, len(load[faults["drift"]]))
load[faults["no peak"]] = 40 + rng.normal(0, 1.5, len(load[faults["no peak"]]))
load[faults["spikes"]] += 15 * rng.choice([-1, 0, 0, 1], len(load[faults["spikes"]]))
for when in faults.values():
    is_fault[when] = True

# Twelve hours were not recorded.
load["2024-03-31 06:00":"2024-03-31 18:00"] = np.nan

# %%
# A window is a day. ``input_shape`` tells the detector that a row is a series, whose
# values have one unit.

WIDTH = 48
detector = AutoencoderOutlierDetector(input_shape=(WIDTH,), random_state=0)
pipeline = make_pipeline(SlidingWindows(WIDTH), detector).fit(train)
scores = point_scores(pipeline.score_samples(load), len(load), WIDTH)
print(f"ROC AUC of the points: {roc_auc_score(is_fault, -scores):.3f}")

# %%
# The threshold belongs to windows: those below it are flagged. The expected curve is
# the mean of their reconstructions at each point.

windows = pipeline[0]
is_flagged = pipeline.predict(load) == -1
last = load.index[WIDTH - 1 :]
print(f"{is_flagged.mean():.0%} of the windows are flagged, the first one that ends at")
print(last[is_flagged][0])
expected = windows.inverse_transform(detector.reconstruct(windows.transform(load)))

# %%
# Above, the recorded and the expected curve, and the faults. In the gap, the
# reconstruction continues the curve. Below, the scores of the points: they rise around
# a fault, because windows contain it that begin up to a day earlier.

figure, axes = plt.subplots(2, 1, figsize=(12, 6), sharex=True, layout="constrained")
axes[0].plot(load, color="0.3", linewidth=1, label="recorded")
axes[0].plot(load.index, expected, color="C0", linewidth=1.5, label="expected")
axes[0].set(ylabel="load in kW", ylim=(20, 105))
axes[0].legend(loc="upper left", ncols=2, frameon=False)
axes[1].plot(load.index, -scores, color="C1")
axes[1].axhline(-detector.offset_, color="0.5", linestyle=":")
axes[1].set(ylabel="minus the score")
axes[1].text(load.index[300], 0.02 - detector.offset_, "threshold of windows")
axes[1].xaxis.set_major_formatter(DateFormatter("%d %B"))
for name, when in faults.items():
    axes[0].text(load[when].index[0], 92, name, color="C3")
    for ax in axes:
        ax.axvspan(*load[when].index[[0, -1]], color="C3", alpha=0.15)
for ax in axes:
    ax.spines[["top", "right"]].set_visible(False)

# sphinx_gallery_start_ignore
figure.savefig(out / "windows.png", dpi=100)
# sphinx_gallery_end_ignore
