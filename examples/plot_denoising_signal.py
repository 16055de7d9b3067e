"""
Denoising: a one-dimensional signal
===================================

How much noise can be removed from signals of a known kind? A Savitzky-Golay filter
assumes that they are smooth. An autoencoder learns from examples that each signal is a
burst of a wave with a jump at some time.
"""

# sphinx_gallery_start_ignore
# Run as a script, this file saves the figure in the folder ``--out``.
import argparse
from pathlib import Path

parser = argparse.ArgumentParser(description="Denoised signal", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="output folder")
# The arguments of a notebook are ignored.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)
# sphinx_gallery_end_ignore

import matplotlib.pyplot as plt
import numpy as np
from scipy.signal import savgol_filter

from skae import AutoencoderTransformer

# %%
# Each waveform has 128 samples of a burst with random position, width, frequency and
# phase, and a jump of random height at a random time. The noise is Gaussian.

length, noise_level = 128, 0.4
time = np.arange(length) / length
rng = np.random.default_rng(0)


def make_waveforms(n_samples):
    def draw(low, high):
        return rng.uniform(low, high, size=(n_samples, 1))

    burst = np.exp(-(((time - draw(0.2, 0.8)) / draw(0.05, 0.2)) ** 2) / 2)
    wave = np.sin(2 * np.pi * (draw(4, 16) * time + draw(0, 1)))
    jump = draw(-1, 1) * (time > draw(0, 1))
    return burst * wave + jump


def with_noise(X):
    return X + noise_level * rng.standard_normal(X.shape)


def snr(X_hat, X):
    """Compute the signal-to-noise ratio in decibels."""
    return 10 * np.log10(np.sum(X**2) / np.sum((X_hat - X) ** 2))


X_train, X_test = make_waveforms(2000), make_waveforms(500)
X_noisy = with_noise(X_test)

# %%
# The window and the degree of the filter are those that are best on the training
# waveforms.

settings = [
    {"window_length": window_length, "polyorder": degree}
    for degree in range(1, 6)
    for window_length in range(degree + 1 + degree % 2, 42, 2)
]
X_train_noisy = with_noise(X_train)
best = max(settings, key=lambda kw: snr(savgol_filter(X_train_noisy, **kw), X_train))

# %%
# The autoencoder is trained with new noise in each epoch, of the same level as in the
# test: ``corruption_level`` is in units of the standard deviation of the training rows.

ae = AutoencoderTransformer(
    n_components=32,
    corruption="gaussian",
    corruption_level=noise_level / np.sqrt(X_train.var(axis=0).mean()),
    max_epochs=60,
    early_stopping=False,
    random_state=0,
).fit(X_train)

denoised = {
    "Savitzky-Golay filter": savgol_filter(X_noisy, **best),
    "Autoencoder": ae.reconstruct(X_noisy),
}

print("Signal-to-noise ratio of the test waveforms, in decibels")
print(f"{'noisy':24}{snr(X_noisy, X_test):6.1f}")
for name, X_hat in denoised.items():
    print(f"{name:24}{snr(X_hat, X_test):6.1f}")
print(f"best filter: {best}")

# %%
# The first three test waveforms; the ratios are those of all 500.

figure, axes = plt.subplots(
    3, 2, figsize=(11, 7), sharex=True, sharey=True, layout="constrained"
)
for column, color, (name, X_hat) in zip(
    axes.T, ("C1", "C0"), denoised.items(), strict=True
):
    column[0].set_title(
        f"{name}: from {snr(X_noisy, X_test):.1f} dB to {snr(X_hat, X_test):.1f} dB"
    )
    for ax, noisy, clean, estimate in zip(column, X_noisy, X_test, X_hat, strict=False):
        ax.plot(time, noisy, ".", color="0.7", markersize=5, label="noisy")
        ax.plot(time, clean, color="0.15", linewidth=1.2, label="true")
        ax.plot(time, estimate, color=color, linewidth=2, label=name)
        ax.spines[["top", "right"]].set_visible(False)
    column[-1].set_xlabel("time")
handles = axes[0, 0].lines + axes[0, 1].lines[-1:]
figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)

# sphinx_gallery_start_ignore
figure.savefig(out / "denoising_signal.png", dpi=120)
# sphinx_gallery_end_ignore

# %%
# The filter gains 5.8 decibels and the autoencoder 10.4: its remaining error has about
# a third of the energy of the filter's. The filter uses one window for slow and fast
# waves and therefore leaves ripples where the signal is constant. The output of the
# autoencoder is almost constant there and follows the bursts. Both smooth the jumps,
# whose exact time cannot be inferred from the noisy samples.
