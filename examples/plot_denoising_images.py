"""
Denoising: patches of a photograph
==================================

Can a network that was trained on patches of a photograph remove noise from it? It is
trained on the left third of a photograph to reconstruct a patch from a noisy version of
it, and then denoises the right part; it is compared with two filters and a PCA.
"""

# sphinx_gallery_start_ignore
# Run as a script, this file saves the figure in the folder ``--out``.
import argparse
from pathlib import Path

parser = argparse.ArgumentParser(description="Denoised image", allow_abbrev=False)
parser.add_argument("--out", type=Path, default=Path("figures"), help="output folder")
# The arguments of a notebook are ignored.
out = parser.parse_known_args()[0].out.resolve()
out.mkdir(parents=True, exist_ok=True)
# sphinx_gallery_end_ignore

import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import gaussian_filter, median_filter
from sklearn.datasets import load_sample_image
from sklearn.decomposition import PCA
from sklearn.feature_extraction.image import (
    extract_patches_2d,
    reconstruct_from_patches_2d,
)

from skae import AutoencoderTransformer

# %%
# The photograph is converted to grey values from 0 to 1. The left third is the training
# part, a strip beside it is used to choose the settings of the other methods, and the
# rest is the test part.

image = load_sample_image("china.jpg").mean(axis=2) / 255
train, valid, test = image[:, :210], image[:, 210:260], image[:, 260:]

noise_level = 0.1
rng = np.random.default_rng(0)
noisy_valid = valid + noise_level * rng.standard_normal(valid.shape)
noisy_test = test + noise_level * rng.standard_normal(test.shape)


def psnr(image, reference):
    """Compute the peak signal-to-noise ratio in decibels of values in [0, 1]."""
    return -10 * np.log10(np.mean((image - reference) ** 2))


# %%
# Rows are patches of 8 x 8 pixels. All overlapping patches of an image are extracted
# and denoised separately, and each pixel is the mean over the patches that contain it.

side = 8


def denoise(image, reconstruct):
    patches = extract_patches_2d(image, (side, side)).reshape(-1, side**2)
    patches = reconstruct(patches.astype(np.float32)).reshape(-1, side, side)
    return reconstruct_from_patches_2d(patches, image.shape)


patches = extract_patches_2d(train, (side, side), max_patches=20_000, random_state=0)
X_train = patches.reshape(-1, side**2).astype(np.float32)  # (n_samples, n_features)

# %%
# The autoencoder is trained with noise of the same level: ``corruption_level`` is in
# units of the standard deviation of the training rows. Denoising does not require a
# narrow code; this one has twice as many components as a patch has pixels.

ae = AutoencoderTransformer(
    n_components=2 * side**2,
    hidden_layer_sizes=(256,),
    corruption="gaussian",
    corruption_level=noise_level / np.sqrt(X_train.var(axis=0).mean()),
    max_epochs=12,
    early_stopping=False,
    random_state=0,
).fit(X_train)

# %%
# The other methods: a PCA projects each patch onto its first components, a filter
# computes the mean or the median of neighbouring pixels. Their settings are chosen on
# the validation part.


def pca_denoiser(n_components):
    pca = PCA(n_components).fit(X_train)
    return lambda image: denoise(
        image, lambda X: pca.inverse_transform(pca.transform(X))
    )


candidates = {
    "median filter": [
        lambda image, size=size: median_filter(image, size) for size in (2, 3, 5)
    ],
    "Gaussian filter": [
        lambda image, width=width: gaussian_filter(image, width)
        for width in np.linspace(0.4, 1.2, 9)
    ],
    "PCA": [pca_denoiser(n_components) for n_components in range(4, 40, 4)],
    "autoencoder": [lambda image: denoise(image, ae.reconstruct)],
}
denoised = {"noisy": noisy_test}
for name, methods in candidates.items():
    method = max(methods, key=lambda method: psnr(method(noisy_valid), valid))
    denoised[name] = method(noisy_test)

print("Peak signal-to-noise ratio of the test part, in decibels")
for name, result in denoised.items():
    print(f"{name:16}{psnr(result, test):6.1f}")

# %%
# A detail of the test part; the ratios are those of the whole test part.

shown = slice(70, 250), slice(0, 240)
figure, axes = plt.subplots(2, 3, figsize=(12, 6.6), layout="constrained")
axes[0, 0].imshow(test[shown], cmap="gray", vmin=0, vmax=1)
axes[0, 0].set_title("original")
for ax, (name, result) in zip(axes.flat[1:], denoised.items(), strict=True):
    ax.imshow(result[shown], cmap="gray", vmin=0, vmax=1)
    ax.set_title(f"{name}: {psnr(result, test):.1f} dB")
for ax in axes.flat:
    ax.set_axis_off()

# sphinx_gallery_start_ignore
figure.savefig(out / "denoising_images.png", dpi=120)
# sphinx_gallery_end_ignore

# %%
# The result of the autoencoder is 5.9 decibels better than the noisy image and 2.8
# better than the best of the other methods, with little more than half of their squared
# error. The filters and the PCA treat all patches alike: the setting that preserves the
# roofs leaves noise in the sky. The autoencoder smooths the sky and preserves the edges
# and bars of the temple. It also removes details as weak as the noise, such as the
# boats.
