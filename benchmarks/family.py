"""Measure each variant of the autoencoder and compare it with a reference.

- simple: a fully connected autoencoder, compared with a hand-written PyTorch loop,
  the package's defaults at the same size, and PCA;
- denoising: error on noisy images and signals, compared with PCA, the same network
  trained without noise, and a Savitzky-Golay filter;
- conv: network="conv" at its defaults, compared with the dense network at its
  defaults on images, patches of photographs and windows of signals; larger settings,
  compared with a dense network;
- sparse: explained variance beside that of PCA, constant components and zeros of l1
  and topk on four tables; topk and l1 at the same share of zeros; activity under kl;
- contractive: the norm of the Jacobian for several weights, and the time that the
  penalty takes;
- variational: the negative evidence lower bound, compared with a hand-written PyTorch
  VAE, and samples evaluated by a classifier;
- bounds: active units and the negative evidence lower bound of the defaults on seven
  tables, compared with a hand-written loop of the same widths, batches and epochs, with
  probabilistic PCA, and with a linear network;
- quantized: error and bits, compared with product quantization by k-means;
- outliers: ROC AUC of every variant of the detector, compared with IsolationForest;
- features: accuracy of a classifier of 100 and of 1,000 labelled rows, on codes learnt
  from unlabelled rows, compared with the pixels and with PCA;
- defaults: every setting of the user guide at its defaults on four tables: explained
  variance of held-out rows and that of PCA, constant components, zeros, seconds.

Every result is a median over the seeds; its reference is measured in the same run.
From the repository root, with the package installed::

    python benchmarks/family.py --data DIR

where DIR contains mnist.npz (arrays X_train, y_train, X_test and y_test; images in
uint8) and adbench/*.npz (arrays X and y) [1]_. It uses one thread, and seconds are
processor time, which does not depend on the load of the machine.

References
----------
.. [1] Han, S., Hu, X., Huang, H., Jiang, M., & Zhao, Y. (2022). ADBench: Anomaly
   detection benchmark. NeurIPS 35.
.. [2] Ge, T., He, K., Ke, Q., & Sun, J. (2013). Optimized product quantization for
   approximate nearest neighbor search. CVPR.
"""

from __future__ import annotations

import argparse
import copy
import math
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy
import sklearn
import skorch
import torch
from scipy.signal import savgol_filter
from settings import SETTINGS
from sklearn.base import BaseEstimator, clone
from sklearn.cluster import KMeans
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_sample_images,
    load_wine,
)
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.image import extract_patches_2d
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from skorch import NeuralNet
from skorch.callbacks import Callback, LRScheduler
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.nn import functional

from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae._defaults import auto_hidden_layer_sizes
from skae.bottlenecks import Gaussian, Quantized
from skae.corruptions import GaussianNoise, Masking
from skae.networks import MLP, Conv
from skae.penalties import Contractive, KLSparsity

SIDE = 28
N_PIXELS = SIDE**2


class Size(NamedTuple):
    """Sizes of the data and the training.

    Attributes
    ----------
    n_full, n_part : int
        Training images of the sections that use all images, and of the others.
    n_test : int
        Test images.
    n_signals : int
        Training waveforms; there are a fifth as many test waveforms.
    n_epochs : int
        Epochs over the images.
    n_samples : int
        Images sampled from a generative model.
    n_rows : int
        Rows at which Jacobians are computed.
    n_data_sets : int
        Data sets of the section outliers.
    """

    n_full: int
    n_part: int
    n_test: int
    n_signals: int
    n_epochs: int
    n_samples: int
    n_rows: int
    n_data_sets: int


FULL = Size(60_000, 20_000, 10_000, 10_000, 10, 2_000, 300, 5)
QUICK = Size(3_000, 2_000, 1_000, 1_000, 2, 200, 100, 2)


class Run(NamedTuple):
    """Arguments of a section."""

    folder: Path
    size: Size
    seed: int


class Measurement(NamedTuple):
    """One line of the table, for one seed."""

    quantity: str
    model: str
    value: float | str


class Digits(NamedTuple):
    """Images as rows of pixels in [0, 1], and their labels."""

    X_train: np.ndarray
    y_train: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    torch.optim.Adam(nn.Linear(1, 1).parameters())  # triggers slow imports
    size = QUICK if arguments.quick else FULL
    if arguments.quick:
        report("--quick: a smoke test with few rows and epochs; ignore its results.")
    report(f"Sizes: {size._asdict()}")
    report(f"Seeds: {arguments.seeds}")
    report()
    report(table_line("section", "quantity", "model", "median", "per seed"))
    began = time.process_time()
    for name in arguments.only or SECTIONS:
        print_section(name, arguments.data, size, arguments.seeds)
    report(versions())
    report(f"{time.process_time() - began:.0f} s of processor time in total")


def parse_arguments() -> argparse.Namespace:
    description, *_ = __doc__.split("\n\nReferences")
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        required=True,
        help="folder that contains mnist.npz and adbench/*.npz",
    )
    parser.add_argument(
        "--only",
        choices=list(SECTIONS),
        nargs="+",
        metavar="NAME",
        help=f"run these sections only: {', '.join(SECTIONS)}",
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2"
    )
    parser.add_argument(
        "--quick", action="store_true", help="few rows and epochs, as a smoke test"
    )
    return parser.parse_args()


# The table


def print_section(name: str, folder: Path, size: Size, seeds: Iterable[int]) -> None:
    """Print the results of a section over all seeds, or which file is missing."""
    began = time.process_time()
    lines: dict[tuple[str, str], list[float | str]] = {}
    try:
        for seed in seeds:
            for quantity, model, value in SECTIONS[name](Run(folder, size, seed)):
                lines.setdefault((quantity, model), []).append(value)
    except FileNotFoundError as error:
        report(f"MISSING: {error.filename}; the section {name!r} is skipped.")
        return
    order = list(dict.fromkeys(quantity for quantity, _ in lines))
    for quantity, model in sorted(lines, key=lambda line: order.index(line[0])):
        values = lines[quantity, model]
        per_seed = "  ".join(map(format_value, values))
        report(
            table_line(name, quantity, model, format_value(median(values)), per_seed)
        )
    report(f"{name}: {time.process_time() - began:.0f} s of processor time")
    report()


def table_line(
    section: str, quantity: str, model: str, value: str, per_seed: str
) -> str:
    return f"{section:13}{quantity:58}{model:49}{value:>9}   {per_seed}"


def median(values: list[float | str]) -> float | str:
    """Return the median of numbers, or the common value of strings."""
    if not isinstance(values[0], str):
        return float(np.median(values))
    return values[0] if len(set(values)) == 1 else "differ"


def format_value(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def report(line: str = "") -> None:
    print(line, flush=True)


def versions() -> str:
    modules = (np, scipy, sklearn, skorch, torch)
    names = ", ".join(f"{module.__name__} {module.__version__}" for module in modules)
    return f"Python {platform.python_version()}, {names}; one thread"


# Data and metrics


@cache
def load_mnist(folder: Path) -> Digits:
    with np.load(folder / "mnist.npz") as file:
        arrays = {name: file[name] for name in Digits._fields}
    for name in ("X_train", "X_test"):
        pixels = arrays[name].reshape(-1, N_PIXELS)
        arrays[name] = pixels.astype(np.float32) / 255
    return Digits(**arrays)


def digits(run: Run, n_train: int) -> Digits:
    """Return training images drawn with the seed, and the test images."""
    X_train, y_train, X_test, y_test = load_mnist(run.folder)
    drawn = np.random.default_rng(run.seed).permutation(len(X_train))[:n_train]
    n_test = run.size.n_test
    return Digits(X_train[drawn], y_train[drawn], X_test[:n_test], y_test[:n_test])


def row_counts(X: np.ndarray, X_test: np.ndarray, models: str = "all") -> Measurement:
    return Measurement("training and test rows", models, f"{len(X)}, {len(X_test)}")


def hold_out(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split off a tenth of the rows for the choice of a setting."""
    n_held_out = len(X) // 10
    return X[n_held_out:], X[:n_held_out]


def mean_squared_error(X: np.ndarray, X_hat: np.ndarray) -> float:
    return float(np.mean((X - X_hat) ** 2, dtype=np.float64))


def pca_error(X: np.ndarray, X_test: np.ndarray, n_components: int) -> float:
    pca = PCA(n_components, svd_solver="covariance_eigh").fit(X)
    return mean_squared_error(X_test, pca.inverse_transform(pca.transform(X_test)))


def measure_seconds(action: Callable[[], object]) -> float:
    began = time.process_time()
    action()
    return time.process_time() - began


def n_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def train_by_hand(
    module: nn.Module,
    X: np.ndarray,
    loss: Callable[[nn.Module, Tensor], Tensor],
    batch_size: int,
    n_epochs: int,
) -> None:
    """Train with Adam at learning rate 1e-3 over shuffled batches."""
    rows = torch.from_numpy(X)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for _ in range(n_epochs):
        for where in torch.randperm(len(rows)).split(batch_size):
            optimizer.zero_grad()
            loss(module, rows[where]).backward()
            optimizer.step()


def settings_as_by_hand(run: Run, batch_size: int) -> dict:
    """Return settings with which the package trains as `train_by_hand` does."""
    return {
        "init": "random",
        "scale": None,
        "max_epochs": run.size.n_epochs,
        "batch_size": batch_size,
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "early_stopping": False,
        # Replaces the package's learning-rate schedule.
        "callbacks": [LRScheduler("LambdaLR", lr_lambda=constant)],
        "random_state": run.seed,
    }


def constant(epoch: int) -> float:
    return 1.0


# 1. Simple


def simple(run: Run) -> Iterator[Measurement]:
    """Train 784-128-64-12-64-128-784, ReLU (also of the code) and sigmoid output."""
    data, n_epochs = digits(run, run.size.n_full), run.size.n_epochs
    X, X_test = data.X_train, data.X_test
    network = MLP(
        (128, 64),
        activation="relu",
        code_activation="relu",
        output_activation="sigmoid",
    )
    same = AutoencoderTransformer(12, network=network, **settings_as_by_hand(run, 64))
    weights = initial_weights(same, X)
    by_hand, reshuffled = simple_network(), simple_network()
    by_hand.load_state_dict(weights)
    # The effect of another order of the rows on the error.
    reshuffled.load_state_dict(weights)
    torch.manual_seed(run.seed)
    default = AutoencoderTransformer(
        12, hidden_layer_sizes=(128, 64), max_epochs=n_epochs, random_state=run.seed
    )
    seconds = {
        "skae, same settings": measure_seconds(lambda: same.fit(X)),
        "hand-written PyTorch": measure_seconds(
            lambda: train_by_hand(by_hand, X, simple_loss, 64, n_epochs)
        ),
        "hand-written PyTorch, other order of rows": measure_seconds(
            lambda: train_by_hand(reshuffled, X, simple_loss, 64, n_epochs)
        ),
        "skae, defaults": measure_seconds(lambda: default.fit(X)),
    }
    module = same.module_
    layers = [*module.encoder, *module.decoder, module.output]
    is_same = [*map(repr, layers)] == [*map(repr, by_hand)]

    yield row_counts(X, X_test)
    yield Measurement("same layers as by hand", "skae, same settings", str(is_same))
    error = "mean squared error, 12 components"
    for model, X_hat in (
        ("skae, same settings", same.reconstruct(X_test)),
        ("hand-written PyTorch", reconstruct_by_hand(by_hand, X_test)),
        (
            "hand-written PyTorch, other order of rows",
            reconstruct_by_hand(reshuffled, X_test),
        ),
        ("skae, defaults", default.reconstruct(X_test)),
    ):
        yield Measurement(error, model, mean_squared_error(X_test, X_hat))
    yield Measurement(error, "PCA", pca_error(X, X_test, 12))
    for model, value in seconds.items():
        yield Measurement("seconds", model, value)
    yield full_batch_difference(same, X[:2000], X_test)


def full_batch_difference(
    autoencoder: AutoencoderTransformer, X: np.ndarray, X_test: np.ndarray
) -> Measurement:
    """Compare 50 steps of full-batch training, independent of order, with a loop."""
    settings = {"batch_size": len(X), "max_epochs": 50}
    same = clone(autoencoder).set_params(**settings)
    by_hand = simple_network()
    by_hand.load_state_dict(initial_weights(same, X))
    train_by_hand(by_hand, X, simple_loss, len(X), settings["max_epochs"])
    ours = mean_squared_error(X_test, same.fit(X).reconstruct(X_test))
    theirs = mean_squared_error(X_test, reconstruct_by_hand(by_hand, X_test))
    return Measurement(
        "relative difference to by hand, 50 full-batch steps",
        "skae, same settings",
        abs(ours / theirs - 1),
    )


@torch.no_grad()
def reconstruct_by_hand(module: nn.Module, X: np.ndarray) -> np.ndarray:
    return module(torch.from_numpy(X)).numpy()


def initial_weights(
    autoencoder: AutoencoderTransformer, X: np.ndarray
) -> dict[str, Tensor]:
    """Return the initial weights of a fit, as those of one sequence of layers.

    The loops are compared from the same weights, because the initial weights determine
    which units of the code are dead, and this affects the error more than any
    difference between the loops.
    """
    start = clone(autoencoder).set_params(learning_rate=1e-30, max_epochs=1).fit(X)
    layers = [*start.module_.encoder, *start.module_.decoder, start.module_.output]
    return nn.Sequential(*layers).state_dict()


def simple_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(784, 128),
        nn.ReLU(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 12),
        nn.ReLU(),
        nn.Linear(12, 64),
        nn.ReLU(),
        nn.Linear(64, 128),
        nn.ReLU(),
        nn.Linear(128, 784),
        nn.Sigmoid(),
    )


def simple_loss(module: nn.Module, X: Tensor) -> Tensor:
    return functional.mse_loss(module(X), X)


# 2. Denoising

LEVEL = 0.3
CORRUPTIONS = {
    "gaussian": GaussianNoise(clip=True),
    "masking": Masking(fill_value="low"),
    "swap": "swap",
    "salt_and_pepper": "salt_and_pepper",
}


def denoising(run: Run) -> Iterator[Measurement]:
    yield from denoised_images(run)
    yield from denoised_signals(run)


def denoised_images(run: Run) -> Iterator[Measurement]:
    """Reconstruct clean images from noisy test images."""
    data = digits(run, run.size.n_part)
    X, X_valid = hold_out(data.X_train)
    network = AutoencoderTransformer(
        128,
        hidden_layer_sizes=(512,),
        scale=None,
        corruption_level=LEVEL,
        max_epochs=run.size.n_epochs,
        random_state=run.seed,
    )
    plain = clone(network).fit(data.X_train)
    yield row_counts(data.X_train, data.X_test, "images")
    # The noise is the same for all seeds.
    rng = np.random.default_rng(1234)
    for name, corruption in CORRUPTIONS.items():
        noisy, noisy_valid = (
            corrupted(rows, name, rng) for rows in (data.X_test, X_valid)
        )
        denoiser = clone(network).set_params(corruption=corruption).fit(data.X_train)
        pca = best_pca(X, X_valid, noisy_valid)
        quantity = f"mean squared error, {name}"
        for model, X_hat in (
            ("skae, trained with noise", denoiser.reconstruct(noisy)),
            ("skae, same network without noise", plain.reconstruct(noisy)),
            ("PCA, n_components chosen", pca(noisy)),
            ("noisy image", noisy),
        ):
            yield Measurement(quantity, model, mean_squared_error(data.X_test, X_hat))


def corrupted(X: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
    """Add noise of `LEVEL` to pixels in [0, 1], without using the package."""
    if name == "gaussian":
        noise = LEVEL * rng.standard_normal(X.shape, dtype=np.float32)
        return np.clip(X + noise, 0, 1)
    replacement = {
        "masking": lambda: np.zeros_like(X),
        "swap": lambda: rng.permuted(X, axis=0),
        "salt_and_pepper": lambda: rng.integers(2, size=X.shape).astype(X.dtype),
    }[name]()
    return np.where(rng.random(X.shape) < LEVEL, replacement, X)


def best_pca(
    X: np.ndarray, X_valid: np.ndarray, noisy_valid: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a PCA of clean rows that denoises the validation rows best.

    With codes t of the clean rows and c of the noisy ones, each component adds
    the mean of (c - t)^2 - t^2 = c^2 - 2 c t to the squared error.
    """
    pca = PCA(svd_solver="covariance_eigh").fit(X)
    clean, noisy = pca.transform(X_valid), pca.transform(noisy_valid)
    added = np.mean(noisy**2 - 2 * noisy * clean, axis=0)
    axes = pca.components_[: np.argmin(np.cumsum(added)) + 1]
    return lambda rows: pca.mean_ + (rows - pca.mean_) @ axes.T @ axes


LENGTH = 128
DECIBELS = 5.0


def denoised_signals(run: Run) -> Iterator[Measurement]:
    """Denoise waveforms, with white noise of the same level in training and test."""
    rng = np.random.default_rng(run.seed)
    X, X_test = (
        waveforms(run.size.n_signals, rng),
        waveforms(run.size.n_signals // 5, rng),
    )
    deviation = math.sqrt(np.mean(X**2) / 10 ** (DECIBELS / 10))
    noisy, noisy_test = (
        rows + deviation * rng.standard_normal(rows.shape, dtype=np.float32)
        for rows in (X, X_test)
    )
    network = AutoencoderTransformer(
        64,
        corruption="gaussian",
        corruption_level=deviation,
        scale=None,
        max_epochs=2 * run.size.n_epochs,
        random_state=run.seed,
    )
    dense = clone(network).set_params(hidden_layer_sizes=(512, 256)).fit(X)
    convolving = clone(network).set_params(network=Conv((16, 32), kernel_size=9)).fit(X)
    yield row_counts(X, X_test, "signals")
    window, order = best_savgol(X, noisy)
    smooth = savgol_filter(noisy_test, window, order)
    quantity = f"signal-to-noise ratio in dB, length {LENGTH}"
    for model, X_hat in (
        ("skae, network='mlp'", dense.reconstruct(noisy_test)),
        ("skae, network='conv'", convolving.reconstruct(noisy_test)),
        ("Savitzky-Golay, window and order chosen", smooth),
        ("PCA, n_components chosen", best_pca(X, X, noisy)(noisy_test)),
        ("noisy signal", noisy_test),
    ):
        yield Measurement(quantity, model, signal_to_noise(X_test, X_hat))


def waveforms(n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Generate sums of three decaying chirps with different onsets."""

    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (n_samples, 3, 1))

    time_since = np.arange(LENGTH) / LENGTH - uniform(0, 0.5)
    cycles = time_since * (uniform(2, 16) + time_since * uniform(-4, 4)) + uniform(0, 1)
    envelope = uniform(0.3, 1) * np.exp(-uniform(2, 8) * time_since)
    chirps = np.where(time_since >= 0, envelope * np.sin(2 * np.pi * cycles), 0)
    return chirps.sum(axis=1).astype(np.float32)


def best_savgol(X: np.ndarray, noisy: np.ndarray) -> tuple[int, int]:
    """Choose the window length and order that denoise the training waveforms best."""
    settings = [
        (w, order) for w in range(5, 42, 2) for order in range(2, 7) if order < w
    ]
    return max(settings, key=lambda s: signal_to_noise(X, savgol_filter(noisy, *s)))


def signal_to_noise(X: np.ndarray, X_hat: np.ndarray) -> float:
    """Compute the ratio in decibels, over all rows together."""
    return 10 * math.log10(np.mean(X**2) / mean_squared_error(X, X_hat))


# 3. Convolutional


class Grid(NamedTuple):
    """Training and test rows whose features form a grid, and a width of the code."""

    X: np.ndarray
    X_test: np.ndarray
    input_shape: tuple[int, ...]
    n_components: int
    settings: dict


def conv(run: Run) -> Iterator[Measurement]:
    """Compare convolutional with dense networks, at the defaults and with settings."""
    yield from conv_at_defaults(run)
    yield from conv_with_settings(run)


def conv_at_defaults(run: Run) -> Iterator[Measurement]:
    """Compare error, explained variance and processor seconds of both networks."""
    for name, grid in grids(run).items():
        yield row_counts(grid.X, grid.X_test, name)
        errors, seconds = {}, {}
        for network in ("mlp", "conv"):
            ae = AutoencoderTransformer(
                grid.n_components,
                network=network,
                input_shape=grid.input_shape,
                random_state=run.seed,
                **grid.settings,
            )
            seconds[network] = measure_seconds(partial(ae.fit, grid.X))
            errors[network] = mean_squared_error(
                grid.X_test, ae.reconstruct(grid.X_test)
            )
            model = f"skae, network={network!r}"
            where = f", {name}"
            yield Measurement(f"mean squared error{where}", model, errors[network])
            yield Measurement(
                f"explained variance{where}", model, ae.score(grid.X_test)
            )
            yield Measurement(f"seconds of fit{where}", model, seconds[network])
            yield Measurement(f"epochs{where}", model, len(ae.loss_curve_))
            yield Measurement(f"parameters{where}", model, n_parameters(ae.module_))
        ratio = "skae, 'conv' divided by 'mlp'"
        for quantity, values in (
            ("mean squared error", errors),
            ("seconds of fit", seconds),
        ):
            yield Measurement(
                f"{quantity}, {name}", ratio, values["conv"] / values["mlp"]
            )


def grids(run: Run) -> dict[str, Grid]:
    """Return images, patches and windows, with 8 or 12 components."""
    data = digits(run, run.size.n_part // 2)
    image = (data.X_train, data.X_test, (SIDE, SIDE), 12)
    n_epochs = {"max_epochs": run.size.n_epochs + 2}
    small = train_test_split(load_digits().data, test_size=0.3, random_state=run.seed)
    rng = np.random.default_rng(run.seed)
    n_signals = run.size.n_signals // 3
    windows = waveforms(n_signals, rng), waveforms(n_signals, rng)
    return {
        f"MNIST, {n_epochs['max_epochs']} epochs": Grid(*image, n_epochs),
        "MNIST": Grid(*image, {}),
        "digits of scikit-learn": Grid(*small, (8, 8), 8, {}),
        "grey patches": Grid(*patches(run, "grey"), (16, 16), 8, {}),
        "colour patches": Grid(*patches(run, "colour"), (3, 16, 16), 12, {}),
        "windows of a signal": Grid(*windows, (LENGTH,), 12, {}),
    }


def patches(run: Run, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Draw patches of two photographs; those for the test from their right third."""
    generator = np.random.RandomState(run.seed)
    n_rows = {"train": run.size.n_signals // 3, "test": 2_000}
    parts: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for image in load_sample_images().images:
        border = 2 * image.shape[1] // 3
        for part, pixels in (("train", image[:, :border]), ("test", image[:, border:])):
            drawn = extract_patches_2d(
                pixels / np.float32(255),
                (16, 16),
                max_patches=n_rows[part] // 2,
                random_state=generator,
            )
            if kind == "grey":
                drawn = drawn.mean(axis=-1, keepdims=True)
            rows = np.moveaxis(drawn, -1, 1).reshape(len(drawn), -1)
            parts[part].append(rows.astype(np.float32))
    return np.concatenate(parts["train"]), np.concatenate(parts["test"])


def conv_with_settings(run: Run) -> Iterator[Measurement]:
    """Compare a convolutional with a dense network of at least as many parameters."""
    data = digits(run, run.size.n_part)
    X, X_test = data.X_train, data.X_test
    settings = {"max_epochs": run.size.n_epochs, "random_state": run.seed}
    image = {"input_shape": (1, SIDE, SIDE)}
    networks = {
        "skae, Conv((16, 32), hidden_layer_sizes=(128,))": {
            "network": Conv((16, 32), hidden_layer_sizes=(128,)),
            **image,
        },
        "skae, network='mlp'": {},
    }
    yield row_counts(X, X_test)
    for n_components in (12, 30):
        fitted = {
            model: AutoencoderTransformer(n_components, **network, **settings).fit(X)
            for model, network in networks.items()
        }
        yield from measure_errors(fitted, X_test, f", {n_components} components")
        error = pca_error(X, X_test, n_components)
        yield Measurement(
            f"squared error per image, {n_components} components",
            "PCA",
            N_PIXELS * error,
        )
    feature_map = AutoencoderTransformer(
        "auto", network=Conv((16, 32), code="feature_map"), **image, **settings
    ).fit(X)
    yield from measure_errors(
        {"skae, Conv((16, 32), code='feature_map')": feature_map}, X_test, ", 7x7x32"
    )
    for shape in ((3, 9, 7), (101,)):
        yield Measurement(
            f"input_shape={shape} is kept", "skae, network='conv'", keeps_shape(shape)
        )


def measure_errors(
    fitted: dict[str, AutoencoderTransformer], X_test: np.ndarray, where: str
) -> Iterator[Measurement]:
    for model, autoencoder in fitted.items():
        yield Measurement(
            f"parameters{where}", model, n_parameters(autoencoder.module_)
        )
    errors = {
        model: mean_squared_error(X_test, autoencoder.reconstruct(X_test))
        for model, autoencoder in fitted.items()
    }
    for model, error in errors.items():
        yield Measurement(f"mean squared error{where}", model, error)
    for model, error in errors.items():
        yield Measurement(f"squared error per image{where}", model, N_PIXELS * error)


def keeps_shape(shape: tuple[int, ...]) -> str:
    """Return whether reconstructions have the input shape with both kinds of code."""
    X = np.random.default_rng(0).normal(size=(64, math.prod(shape)))
    is_kept = [
        AutoencoderTransformer(
            "auto", network=Conv(code=code), input_shape=shape, max_epochs=1
        )
        .fit(X)
        .reconstruct(X)
        .shape
        == X.shape
        for code in ("dense", "feature_map")
    ]
    return str(all(is_kept))


# 4. Sparse

WIDTHS = (8, 32, 64)
L1_WEIGHTS = (1e-4, 1e-3, 1e-2)
KL_WEIGHTS = (1e-4, 1e-3, 1e-2)
TARGET = 0.05

# Weights between which the error of l1 is interpolated at the zeros of topk.
LADDER = (0.003, 0.01, 0.03)


def sparse(run: Run) -> Iterator[Measurement]:
    """Measure sparse codes at the defaults, for several widths and weights."""
    for name, _, X in default_tables(run):
        X_train, X_test = train_test_split(X, test_size=0.3, random_state=run.seed)
        yield row_counts(X_train, X_test, name)
        for k in WIDTHS:
            for weight in L1_WEIGHTS:
                model = AutoencoderTransformer(k, penalty="l1", penalty_weight=weight)
                yield Measurement(
                    f"{name}: explained variance, {k} components",
                    f"skae, l1, weight {weight:g}",
                    outcome(run, model, X_train, X_test),
                )
            model = AutoencoderTransformer(k, bottleneck="topk")
            yield Measurement(
                f"{name}: explained variance, {k} components",
                f"skae, topk, {max(1, k // 8)} active",
                outcome(run, model, X_train, X_test),
            )
    X_train, X_test = train_test_split(X, test_size=0.3, random_state=run.seed)
    yield from equal_zeros(run, X_train, X_test)
    yield from divergence_from_target(run, X_train, X_test)


def outcome(
    run: Run, model: AutoencoderTransformer, X: np.ndarray, X_test: np.ndarray
) -> str:
    """Fit a model and return the columns of the sections sparse and defaults.

    They are the explained variance of the test rows beside that of PCA at the same
    width, the number of components that are constant and the share of zeros in the
    codes of the training rows, and the seconds of the fit.
    """
    model.set_params(random_state=run.seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        seconds = measure_seconds(lambda: model.fit(X))
    Z = model.transform(X)
    n_dead = int(np.sum(Z.max(axis=0) == Z.min(axis=0)))
    pca = pca_score(X, X_test, min(model.n_components_, *X.shape))
    line = (
        f"{model.score(X_test):.3f} (PCA {pca:.3f}), {n_dead} of {Z.shape[1]} "
        f"constant, {np.mean(Z == 0):.2f} zeros, {seconds:.1f} s"
    )
    return line + ", warns" if caught else line


def equal_zeros(run: Run, X: np.ndarray, X_test: np.ndarray) -> Iterator[Measurement]:
    """Compare topk with l1 at the same share of zeros in the codes of test rows.

    The error of l1 is interpolated linearly between the weights of a ladder.
    """
    zeros, errors = [], []
    models = {f"skae, l1, weight {w:g}": {"penalty_weight": w} for w in LADDER}
    for settings in models.values():
        settings["penalty"] = "l1"
    models["skae, topk"] = {"bottleneck": "topk"}
    for model, settings in models.items():
        network = AutoencoderTransformer(64, random_state=run.seed, **settings)
        network.fit(X)
        zeros.append(float(np.mean(network.transform(X_test) == 0)))
        errors.append(mean_squared_error(X_test, network.reconstruct(X_test)))
        yield Measurement("MNIST, 64 components: share of zeros", model, zeros[-1])
        yield Measurement("MNIST, 64 components: squared error", model, errors[-1])
    *ladder, target = zeros
    order = np.argsort(ladder)
    error = np.interp(target, np.take(ladder, order), np.take(errors, order))
    is_covered = min(ladder) <= target <= max(ladder)
    yield Measurement(
        "MNIST, 64 components: squared error",
        "skae, l1, at the zeros of topk",
        float(error) if is_covered else "outside",
    )


def divergence_from_target(
    run: Run, X: np.ndarray, X_test: np.ndarray
) -> Iterator[Measurement]:
    """Measure the logistic function of the codes, which the KL penalty uses."""
    for weight in KL_WEIGHTS:
        model = f"skae, kl, weight {weight:g}"
        network = AutoencoderTransformer(
            64,
            hidden_layer_sizes=(256,),
            penalty=KLSparsity(TARGET),
            penalty_weight=weight,
            max_epochs=run.size.n_epochs,
            random_state=run.seed,
        ).fit(X)
        active = torch.sigmoid(encoder_output(network.module_, X_test))
        small = (active <= 1e-2 * active.max()).float().mean().item()
        error = mean_squared_error(X_test, network.reconstruct(X_test))
        mean = f"MNIST, kl: mean sigmoid(z), target {TARGET}"
        yield Measurement(mean, model, active.mean().item())
        share = "MNIST, kl: share of sigmoid(z) below 1e-2 of the largest"
        yield Measurement(share, model, small)
        yield Measurement("MNIST, kl: squared error", model, error)


@torch.no_grad()
def encoder_output(module: nn.Module, X: np.ndarray) -> Tensor:
    """Return the encoder's output for rows in their original units."""
    scaled, _ = module.scaler(torch.from_numpy(X))
    return module.encoder(scaled)


# 5. Contractive

CONTRACTIVE_WEIGHTS = (0, 1e-4, 1e-3, 1e-2, 1e-1)
N_REPEATS = 3


def contractive(run: Run) -> Iterator[Measurement]:
    """Measure the Jacobian of codes of 12 components for increasing weights."""
    data = digits(run, run.size.n_part)
    X, X_test = data.X_train, data.X_test
    network = AutoencoderTransformer(
        12, max_epochs=run.size.n_epochs, random_state=run.seed
    )
    yield row_counts(X, X_test)
    for weight in CONTRACTIVE_WEIGHTS:
        model = f"skae, contractive, weight {weight:g}"
        penalised = clone(network).set_params(
            penalty="contractive" if weight else None, penalty_weight=weight
        )
        module = penalised.fit(X).module_
        norm = squared_jacobian(module, X_test[: run.size.n_rows]).mean().item()
        spread = encoder_output(module, X_test).var(dim=0).sum().item()
        error = mean_squared_error(X_test, penalised.reconstruct(X_test))
        yield Measurement("squared norm of the Jacobian, test rows", model, norm)
        yield Measurement(
            "squared norm over the variance of the codes", model, norm / spread
        )
        yield Measurement("mean squared error", model, error)
    yield Measurement("mean squared error", "PCA", pca_error(X, X_test, 12))
    yield from exactness(run, X, X_test)
    yield from cost(run, X)


def squared_jacobian(module: nn.Module, X: np.ndarray) -> Tensor:
    """Compute the squared Frobenius norm of the encoder's Jacobian at each row."""
    scaled, _ = module.scaler(torch.from_numpy(X))
    J = vmap(jacrev(lambda row: module.encoder(row[None])[0]))(scaled)
    return J.detach().square().sum(dim=(1, 2))


def exactness(run: Run, X: np.ndarray, X_test: np.ndarray) -> Iterator[Measurement]:
    """Compare the penalty with `jacrev` in float64."""
    rows = X_test[: run.size.n_rows].astype(np.float64)
    for network in ("mlp", "conv"):
        autoencoder = AutoencoderTransformer(
            12,
            network=network,
            input_shape=(SIDE, SIDE),
            init="random",
            max_epochs=1,
            random_state=run.seed,
        )
        module = copy.deepcopy(autoencoder.fit(X[:1000]).module_).double()
        scaled, _ = module.scaler(torch.from_numpy(rows))
        Z, weight = module.encoder(scaled), torch.ones(len(scaled))
        norm = Contractive().build()(module.encoder, scaled, Z, weight)
        exact = squared_jacobian(module, rows)
        difference = ((norm - exact).abs() / exact).max().item()
        yield Measurement(
            "largest relative difference to jacrev",
            f"skae, network={network!r}",
            difference,
        )


def cost(run: Run, X: np.ndarray) -> Iterator[Measurement]:
    """Measure seconds per epoch with and without the penalty, alternating."""
    penalties = {
        "skae, plain": None,
        "skae, contractive": Contractive(),
        "skae, contractive, n_projections=1": Contractive(n_projections=1),
    }
    seconds: dict[str, list[float]] = {model: [] for model in penalties}
    for _ in range(N_REPEATS):
        for model, penalty in penalties.items():
            autoencoder = AutoencoderTransformer(
                12,
                penalty=penalty,
                max_epochs=2,
                early_stopping=False,
                callbacks=[Stopwatch()],
                random_state=run.seed,
            ).fit(X)
            seconds[model].append(min(autoencoder.net_.history[:, "seconds"]))
    for model, values in seconds.items():
        yield Measurement("seconds per epoch", model, float(np.median(values)))
    plain = np.array(seconds["skae, plain"])
    for model, values in seconds.items():
        yield Measurement(
            "ratio to seconds of plain", model, float(np.median(values / plain))
        )


class Stopwatch(Callback):
    """Record the seconds of each epoch in the history of the net."""

    def on_epoch_begin(self, net: NeuralNet, **kwargs) -> None:
        self.began_ = time.process_time()

    def on_epoch_end(self, net: NeuralNet, **kwargs) -> None:
        net.history.record("seconds", time.process_time() - self.began_)


# 6. Variational

N_LATENT = 20
MIN_PROBABILITY = 0.9


def variational(run: Run) -> Iterator[Measurement]:
    """Measure bounds in nats and samples of a standard VAE and of the defaults."""
    data, n_epochs = digits(run, run.size.n_full), run.size.n_epochs
    X, X_test = data.X_train, data.X_test
    torch.manual_seed(run.seed)
    by_hand = VAE()
    same = AutoencoderTransformer(
        N_LATENT,
        network=MLP((400,), activation="relu"),
        loss="binary_cross_entropy",
        bottleneck="gaussian",
        **settings_as_by_hand(run, 128),
    )
    seconds = {
        "skae, same settings": measure_seconds(lambda: same.fit(X)),
        "hand-written PyTorch": measure_seconds(
            lambda: train_by_hand(by_hand, X, VAE.loss, 128, n_epochs)
        ),
    }
    yield row_counts(X, X_test, "same settings, by hand, classifier")
    ours = negative_elbo(same.module_.encoder, same.module_.decoder, X_test)
    theirs = negative_elbo(by_hand.encoder, by_hand.decoder, X_test)
    quantity = f"negative ELBO in nats, {N_LATENT} components"
    yield Measurement(quantity, "skae, same settings", ours)
    yield Measurement(quantity, "hand-written PyTorch", theirs)
    yield Measurement(quantity, "difference", ours - theirs)
    for model, value in seconds.items():
        yield Measurement("seconds", model, value)

    X_part = X[: run.size.n_part]
    yield row_counts(X_part, X_test, "defaults, PCA")
    default = AutoencoderTransformer(
        N_LATENT, bottleneck="gaussian", max_epochs=n_epochs, random_state=run.seed
    ).fit(X_part)
    for model, autoencoder in (
        ("skae, same settings", same),
        ("skae, defaults", default),
    ):
        n_active = int(autoencoder.active_units_.sum())
        yield Measurement(f"active units of {N_LATENT}", model, n_active)
    error = mean_squared_error(X_test, default.reconstruct(X_test))
    yield Measurement("mean squared error", "skae, defaults", error)
    pca = pca_error(X_part, X_test, N_LATENT)
    yield Measurement("mean squared error", "PCA", pca)
    yield from sample_quality(run, data, same, default)


# 6b. Bounds

# Components of each table. The first three are standardised, the others have entries in
# [0, 1].
N_LATENT_OF = {
    "breast cancer": 8,
    "wine": 6,
    "diabetes": 5,
    "digits": 8,
    "digits, cross-entropy": 8,
    "MNIST": 16,
    "MNIST, cross-entropy": 16,
}
LOADERS = {
    "breast cancer": load_breast_cancer,
    "wine": load_wine,
    "diabetes": load_diabetes,
}
N_BOUND_ROWS = 10_000
N_DRAWS = 5


def bounds(run: Run) -> Iterator[Measurement]:
    """Compare the defaults of a variational autoencoder with a hand-written loop."""
    for table, k in N_LATENT_OF.items():
        yield from bounds_of(run, table, k)


def bounds_of(run: Run, table: str, k: int) -> Iterator[Measurement]:
    X, X_test = bound_table(run, table)
    is_binary = table.endswith("cross-entropy")
    settings = {
        "bottleneck": "gaussian",
        "loss": "binary_cross_entropy" if is_binary else "squared_error",
        "random_state": run.seed,
    }
    ours = AutoencoderTransformer(k, **settings)
    seconds = {"skae, defaults": measure_seconds(lambda: ours.fit(X))}
    by_hand = TableVAE(X, k, is_binary, run.seed)
    rows = by_hand.scale(X)
    # As many epochs as ours ran, those after the best one included.
    batch_size, n_epochs = ours.net_.batch_size, len(ours.loss_curve_)
    seconds["hand-written PyTorch"] = measure_seconds(
        lambda: train_by_hand(by_hand, rows, TableVAE.loss, batch_size, n_epochs)
    )
    models = {"skae, defaults": as_table_vae(ours, X, k, is_binary)}
    models["hand-written PyTorch"] = by_hand
    bound, explained = f"negative ELBO in nats, {table}", f"explained variance, {table}"
    if not is_binary:
        linear = AutoencoderTransformer(k, hidden_layer_sizes=(), **settings)
        models["skae, linear"] = as_table_vae(linear.fit(X), X, k, is_binary)
        pca = PCA(k).fit(X.astype(np.float64))
        yield Measurement(bound, "probabilistic PCA", float(-pca.score(X_test)))
    total = mean_squared_error(X_test, X.mean(axis=0))
    yield Measurement(explained, "PCA", 1 - pca_error(X, X_test, k) / total)
    for model, vae in models.items():
        quantity = f"active units of {k}, {table}"
        yield Measurement(quantity, model, vae.n_active(X))
        yield Measurement(bound, model, vae.negative_elbo(X_test))
        yield Measurement(explained, model, vae.explained_variance(X_test))
    for model, value in seconds.items():
        yield Measurement(f"seconds, {table}", model, value)


def bound_table(run: Run, table: str) -> tuple[np.ndarray, np.ndarray]:
    """Return training and test rows in float32."""
    if table.startswith("MNIST"):
        data = digits(run, min(N_BOUND_ROWS, run.size.n_part))
        return data.X_train, data.X_test
    if table.startswith("digits"):
        X = load_digits().data / 16
    else:
        X = StandardScaler().fit_transform(LOADERS[table]().data)
    X = X.astype(np.float32)
    X_train, X_test = train_test_split(X, test_size=0.3, random_state=run.seed)
    return X_train, X_test


class TableVAE(nn.Module):
    """Hand-written variational autoencoder, and the evaluation of both.

    Under the squared error the decoder's variance is a parameter that is learnt.
    """

    def __init__(self, X: np.ndarray, k: int, is_binary: bool, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        d, self.k, self.is_binary = X.shape[1], k, is_binary
        self.mean = np.zeros(d) if is_binary else X.mean(axis=0, dtype=np.float64)
        variance = X.var(axis=0, dtype=np.float64).mean()
        self.factor = 1.0 if is_binary else math.sqrt(variance)
        widths = [d, *auto_hidden_layer_sizes(len(X), d, k)]
        self.encoder = relu_network([*widths, 2 * k])
        self.decoder = relu_network([k, *reversed(widths)])
        self.log_noise = nn.Parameter(torch.zeros(()))
        self.center = torch.from_numpy(self.scale(X)).mean(dim=0)

    def scale(self, X: np.ndarray) -> np.ndarray:
        return ((X - self.mean) / self.factor).astype(np.float32)

    def loss(self, X: Tensor) -> Tensor:
        return self.row_bound(X, torch.randn(len(X), self.k)).mean()

    def row_bound(self, X: Tensor, epsilon: Tensor) -> Tensor:
        """Compute the negative ELBO of scaled rows in nats, in their own units."""
        mu, log_var = self.encoder(X).chunk(2, dim=1)
        raw = self.decoder(mu + torch.exp(log_var / 2) * epsilon)
        if self.is_binary:
            return row_negative_elbo(X, raw, mu, log_var)
        log_noise = self.log_noise + math.log(2 * math.pi * self.factor**2)
        squares = (X - raw) ** 2 / self.log_noise.exp() + log_noise
        divergence = (mu**2 + log_var.exp() - 1 - log_var) / 2
        return squares.sum(dim=1) / 2 + divergence.sum(dim=1)

    @torch.no_grad()
    def negative_elbo(self, X: np.ndarray) -> float:
        rows = torch.from_numpy(self.scale(X))
        generator = torch.Generator().manual_seed(0)
        draws = [
            self.row_bound(rows, torch.randn(len(X), self.k, generator=generator))
            for _ in range(N_DRAWS)
        ]
        return torch.stack(draws).mean().item()

    @torch.no_grad()
    def n_active(self, X: np.ndarray) -> float:
        mu = self.encoder(torch.from_numpy(self.scale(X)))[:, : self.k]
        return float((mu.var(dim=0) > 0.01).sum())

    @torch.no_grad()
    def explained_variance(self, X: np.ndarray) -> float:
        rows = torch.from_numpy(self.scale(X))
        X_hat = self.decoder(self.encoder(rows)[:, : self.k])
        X_hat = X_hat.sigmoid() if self.is_binary else X_hat
        total = ((rows - self.center) ** 2).sum()
        return 1 - float(((rows - X_hat) ** 2).sum() / total)


def as_table_vae(
    autoencoder: AutoencoderTransformer, X: np.ndarray, k: int, is_binary: bool
) -> TableVAE:
    """Return the networks of a fitted autoencoder, to be evaluated as those by hand."""
    vae, module = TableVAE(X, k, is_binary, 0), autoencoder.module_
    vae.encoder, vae.decoder = module.encoder, module.decoder
    vae.mean, vae.factor = module.scaler.shift.numpy(), float(module.scaler.factor[0])
    if not is_binary:
        vae.log_noise = nn.Parameter(module.noise.level.log())
    return vae


def relu_network(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_inputs, n_outputs in pairwise(widths):
        layers += [nn.Linear(n_inputs, n_outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class VAE(nn.Module):
    """Variational autoencoder of PyTorch's examples."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(N_PIXELS, 400), nn.ReLU(), nn.Linear(400, 2 * N_LATENT)
        )
        self.decoder = nn.Sequential(
            nn.Linear(N_LATENT, 400), nn.ReLU(), nn.Linear(400, N_PIXELS)
        )

    def loss(self, X: Tensor) -> Tensor:
        """Compute the negative ELBO, mean over the rows."""
        mu, log_var = self.encoder(X).chunk(2, dim=1)
        Z = mu + torch.exp(log_var / 2) * torch.randn_like(mu)
        return row_negative_elbo(X, self.decoder(Z), mu, log_var).mean()


def row_negative_elbo(X: Tensor, logits: Tensor, mu: Tensor, log_var: Tensor) -> Tensor:
    """Compute the negative ELBO of each row in nats: cross-entropy plus divergence."""
    cross_entropy = functional.binary_cross_entropy_with_logits(
        logits, X, reduction="none"
    )
    divergence = (mu**2 + log_var.exp() - 1 - log_var) / 2
    return cross_entropy.sum(dim=1) + divergence.sum(dim=1)


@torch.no_grad()
def negative_elbo(encoder: nn.Module, decoder: nn.Module, X: np.ndarray) -> float:
    """Estimate the mean over the rows by one fixed draw per row from the posterior."""
    rows = torch.from_numpy(X)
    mu, log_var = encoder(rows).chunk(2, dim=1)
    epsilon = torch.randn(mu.shape, generator=torch.Generator().manual_seed(0))
    logits = decoder(mu + torch.exp(log_var / 2) * epsilon)
    return row_negative_elbo(rows, logits, mu, log_var).mean().item()


def sample_quality(
    run: Run,
    data: Digits,
    same: AutoencoderTransformer,
    default: AutoencoderTransformer,
) -> Iterator[Measurement]:
    """Measure the share of samples that a classifier assigns to a digit confidently."""
    classifier = train_classifier(data, run.seed)
    real = probabilities(classifier, data.X_test)
    accuracy = float(np.mean(real.argmax(axis=1) == data.y_test))
    yield Measurement("test accuracy", "convolutional classifier", accuracy)
    n_samples = run.size.n_samples
    options = {"random_state": run.seed, "prior": "standard", "noise": False}
    quantity = f"share of samples with a digit of p > {MIN_PROBABILITY}"
    for model, X in (
        ("skae, same settings", same.sample(n_samples, **options)),
        ("skae, defaults", default.sample(n_samples, **options)),
        (
            "Gaussian fitted to PCA codes",
            pca_samples(data.X_train, n_samples, run.seed),
        ),
        ("real digits", data.X_test),
    ):
        is_confident = probabilities(classifier, X).max(axis=1) > MIN_PROBABILITY
        yield Measurement(quantity, model, float(is_confident.mean()))


def train_classifier(data: Digits, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    classifier = nn.Sequential(
        nn.Unflatten(1, (1, SIDE, SIDE)),
        nn.Conv2d(1, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 10),
    )
    labels = torch.from_numpy(data.y_train.astype(np.int64))
    rows = torch.from_numpy(data.X_train)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    for _ in range(3):
        for where in torch.randperm(len(rows)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(classifier(rows[where]), labels[where]).backward()
            optimizer.step()
    return classifier


@torch.no_grad()
def probabilities(classifier: nn.Module, X: np.ndarray) -> np.ndarray:
    """Predict the probabilities of the classes, for rows clipped to [0, 1]."""
    rows = torch.from_numpy(np.clip(X, 0, 1).astype(np.float32))
    return classifier(rows).softmax(dim=1).numpy()


def pca_samples(X: np.ndarray, n_samples: int, seed: int) -> np.ndarray:
    """Sample rows from a normal distribution over the codes of a PCA."""
    pca = PCA(N_LATENT, svd_solver="covariance_eigh").fit(X)
    epsilon = np.random.default_rng(seed).standard_normal((n_samples, N_LATENT))
    return pca.inverse_transform(epsilon * np.sqrt(pca.explained_variance_))


# 7. Quantized

N_CODES = 256
GROUPS = (2, 4, 8)
CODE_DIM = 4
AXES_PER_GROUP = (2, 4, 8, 16)


def quantized(run: Run) -> Iterator[Measurement]:
    """Compare codebooks of 256 entries with k-means at the same number of bits."""
    data = digits(run, run.size.n_part)
    X, X_test = data.X_train, data.X_test
    yield row_counts(X, X_test)
    for n_groups in GROUPS:
        autoencoder = AutoencoderTransformer(
            n_groups * CODE_DIM,
            hidden_layer_sizes=(256, 128),
            bottleneck=Quantized(n_codes=N_CODES, code_dim=CODE_DIM),
            max_epochs=run.size.n_epochs,
            random_state=run.seed,
        ).fit(X)
        reconstructions = {
            "skae, bottleneck='quantized'": autoencoder.reconstruct(X_test),
            "k-means of PCA codes, n_components chosen": pca_quantized(
                X, X_test, n_groups, run.seed
            ),
            "k-means of bands of pixels": bands_quantized(
                X, X_test, n_groups, run.seed
            ),
        }
        where = f", {8 * n_groups} bits"
        for model, X_hat in reconstructions.items():
            error = N_PIXELS * mean_squared_error(X_test, X_hat)
            yield Measurement(f"squared error per image{where}", model, error)
        yield from codebook_usage(autoencoder, X, where)
    yield from shared_codebook(run, X, X_test)


def shared_codebook(
    run: Run, X: np.ndarray, X_test: np.ndarray
) -> Iterator[Measurement]:
    """Use one codebook for all positions of a feature map, or for all patches."""
    autoencoder = AutoencoderTransformer(
        "auto",
        network=Conv((32, 16), kernel_size=5, code="feature_map"),
        input_shape=(1, SIDE, SIDE),
        bottleneck=Quantized(n_codes=N_CODES, shared=True),
        max_epochs=run.size.n_epochs,
        random_state=run.seed,
    ).fit(X)
    codes = autoencoder.quantize(X_test)
    X_hat = autoencoder.reconstruct(X_test)
    model = "skae, Quantized(shared=True), feature map"
    where = f", {8 * codes.shape[1]} bits"
    error = f"squared error per image{where}"
    yield Measurement(error, model, N_PIXELS * mean_squared_error(X_test, X_hat))
    of_patches = patches_quantized(X, X_test, run.seed)
    yield Measurement(
        error,
        "k-means of patches of 4 x 4 pixels",
        N_PIXELS * mean_squared_error(X_test, of_patches),
    )
    yield from codebook_usage(autoencoder, X, where)
    difference = np.abs(autoencoder.dequantize(codes) - X_hat).max()
    yield Measurement("dtype of the codes", model, str(codes.dtype))
    yield Measurement(
        "largest |dequantize(quantize(X)) - reconstruct(X)|", model, float(difference)
    )


def codebook_usage(
    autoencoder: AutoencoderTransformer, X: np.ndarray, where: str
) -> Iterator[Measurement]:
    """Measure the smallest perplexity and the smallest share of used entries."""
    codes = autoencoder.quantize(X)
    n_codebooks = len(autoencoder.perplexity_)
    shares = [
        len(np.unique(codes[:, group::n_codebooks])) / N_CODES
        for group in range(n_codebooks)
    ]
    model = f"skae, minimum of {n_codebooks} codebooks"
    yield Measurement(
        f"perplexity of {N_CODES} entries{where}",
        model,
        float(autoencoder.perplexity_.min()),
    )
    yield Measurement(f"share of used entries{where}", model, min(shares))


def pca_quantized(
    X: np.ndarray, X_test: np.ndarray, n_groups: int, seed: int
) -> np.ndarray:
    """Reconstruct test rows by product quantization of PCA codes.

    The number of axes is chosen on validation rows.
    """
    X_part, X_valid = hold_out(X)

    def validation_error(n_axes: int) -> float:
        X_hat = axes_quantized(X_part, X_valid, n_axes, n_groups, seed)
        return mean_squared_error(X_valid, X_hat)

    n_axes = min((n * n_groups for n in AXES_PER_GROUP), key=validation_error)
    return axes_quantized(X, X_test, n_axes, n_groups, seed)


def axes_quantized(
    X: np.ndarray, X_test: np.ndarray, n_axes: int, n_groups: int, seed: int
) -> np.ndarray:
    pca = PCA(n_axes, svd_solver="covariance_eigh").fit(X)
    groups = allocate_axes(pca.explained_variance_, n_groups)
    Z_hat = product_quantized(pca.transform(X), pca.transform(X_test), groups, seed)
    return pca.inverse_transform(Z_hat)


def allocate_axes(variances: np.ndarray, n_groups: int) -> list[list[int]]:
    """Allocate axes to groups of equal size and similar product of variances [2]_."""
    groups: list[list[int]] = [[] for _ in range(n_groups)]
    logarithms = np.log(variances / variances.min())
    for axis in range(len(variances)):
        not_full = [g for g in groups if len(g) < len(variances) // n_groups]
        min(not_full, key=lambda group: logarithms[group].sum()).append(axis)
    return groups


def bands_quantized(
    X: np.ndarray, X_test: np.ndarray, n_groups: int, seed: int
) -> np.ndarray:
    bands = np.split(np.arange(N_PIXELS), n_groups)
    return product_quantized(X, X_test, bands, seed)


def product_quantized(
    X: np.ndarray, X_test: np.ndarray, groups: Iterable, seed: int
) -> np.ndarray:
    """Replace each group of columns of the test rows by the nearest k-means centre."""
    X_hat = np.empty_like(X_test)
    for group in groups:
        kmeans = KMeans(N_CODES, random_state=seed).fit(X[:, group])
        X_hat[:, group] = kmeans.cluster_centers_[kmeans.predict(X_test[:, group])]
    return X_hat


def patches_quantized(X: np.ndarray, X_test: np.ndarray, seed: int) -> np.ndarray:
    """Quantize the patches of the test rows, one per position of the feature map."""
    patches = split_patches(X)
    drawn = np.random.default_rng(seed).choice(len(patches), 50_000, replace=False)
    kmeans = KMeans(N_CODES, random_state=seed).fit(patches[drawn])
    X_hat = kmeans.cluster_centers_[kmeans.predict(split_patches(X_test))]
    return X_hat.reshape(-1, 7, 7, 4, 4).swapaxes(2, 3).reshape(-1, N_PIXELS)


def split_patches(X: np.ndarray) -> np.ndarray:
    """Split each image into patches of 4 x 4 pixels, one per row."""
    return X.reshape(-1, 7, 4, 7, 4).swapaxes(2, 3).reshape(-1, 16)


# 8. Outliers

# The smallest data sets of ADBench.
DATA_SETS = ("15_Hepatitis", "45_wine", "39_vertebral", "37_Stamps", "43_WDBC")
VARIANTS = {
    "plain": {},
    "network='conv'": {"network": "conv"},
    **{f"corruption={name!r}": {"corruption": name} for name in CORRUPTIONS},
    **{f"penalty={name!r}": {"penalty": name} for name in ("l1", "kl", "contractive")},
    "bottleneck='gaussian'": {"bottleneck": "gaussian"},
    "bottleneck=Gaussian(score='elbo')": {"bottleneck": Gaussian(score="elbo")},
    "bottleneck='quantized'": {"bottleneck": "quantized"},
}


def outliers(run: Run) -> Iterator[Measurement]:
    """Measure every variant of the detector on data sets of ADBench."""
    data_sets = [
        split_data_set(run, name) for name in DATA_SETS[: run.size.n_data_sets]
    ]
    detectors: dict[str, BaseEstimator] = {
        f"skae, {name}": AutoencoderOutlierDetector(**settings, random_state=run.seed)
        for name, settings in VARIANTS.items()
    }
    detectors["IsolationForest"] = IsolationForest(random_state=run.seed)
    for model, detector in detectors.items():
        areas, differences = [], []
        began = time.process_time()
        for X_train, X_test, y_test in data_sets:
            detector.fit(X_train)
            scores = detector.score_samples(X_test)
            areas.append(roc_auc_score(y_test, -scores))
            differences.append(np.abs(scores - detector.score_samples(X_test)).max())
        seconds = (time.process_time() - began) / len(data_sets)
        quantity = f"mean ROC AUC over {len(data_sets)} data sets"
        yield Measurement(quantity, model, float(np.mean(areas)))
        yield Measurement(
            "largest difference between two calls", model, max(differences)
        )
        yield Measurement("seconds per data set", model, seconds)


def split_data_set(run: Run, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return standardised training and test rows, and the labels of the test rows."""
    with np.load(run.folder / "adbench" / f"{name}.npz") as file:
        X, y = file["X"].astype(np.float64), file["y"]
    X_train, X_test, _, y_test = train_test_split(
        X, y, test_size=0.3, stratify=y, random_state=run.seed
    )
    scaler = StandardScaler().fit(X_train)
    return scaler.transform(X_train), scaler.transform(X_test), y_test


# 9. Features for a classifier with few labels

N_DRAWS = 5


def features(run: Run) -> Iterator[Measurement]:
    """Measure classifiers of codes that were learnt without labels."""
    for name, data in (
        ("digits", small_digits(run)),
        ("MNIST", digits(run, min(run.size.n_part, 10_000))),
    ):
        yield row_counts(data.X_train, data.X_test, name)
        encoders: dict[str, BaseEstimator] = {
            "pixels": FunctionTransformer(),
            "PCA": PCA(min(50, data.X_train.shape[1] // 2), random_state=run.seed),
            "skae, 32 codes, denoising": AutoencoderTransformer(
                32, corruption="masking", random_state=run.seed
            ),
            "skae, the guide": AutoencoderTransformer(
                **SETTINGS["features"], random_state=run.seed
            ),
        }
        for model, encoder in encoders.items():
            seconds = measure_seconds(lambda e=encoder, d=data: e.fit(d.X_train))
            yield Measurement(f"{name}: seconds", model, seconds)
            Z_train, Z_test = map(encoder.transform, (data.X_train, data.X_test))
            for n_labels in (100, 1000):
                accuracies = [
                    accuracy_with_labels(data, Z_train, Z_test, n_labels, draw)
                    for draw in range(N_DRAWS)
                ]
                quantity = f"{name}: accuracy with {n_labels} labels"
                yield Measurement(quantity, model, float(np.median(accuracies)))


def small_digits(run: Run) -> Digits:
    """Return the 8 x 8 digits of scikit-learn, with 1,200 training rows."""
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(
        (X / 16).astype(np.float32), y, train_size=1200, stratify=y, random_state=0
    )
    return Digits(X_train, y_train, X_test, y_test)


def accuracy_with_labels(
    data: Digits, Z_train: np.ndarray, Z_test: np.ndarray, n_labels: int, seed: int
) -> float:
    """Return the test accuracy of a logistic regression on a balanced draw of rows.

    Its regularisation is chosen by cross-validation on the labelled rows.
    """
    rng = np.random.default_rng(seed)
    labelled = np.concatenate(
        [
            rng.choice(np.flatnonzero(data.y_train == c), n_labels // 10, replace=False)
            for c in range(10)
        ]
    )
    scale = Z_train[labelled].std()
    search = GridSearchCV(
        LogisticRegression(max_iter=300), {"C": [0.01, 0.1, 1.0, 10.0]}, cv=3
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        search.fit(Z_train[labelled] / scale, data.y_train[labelled])
    return float(search.score(Z_test / scale, data.y_test))


# 10. Defaults


def defaults(run: Run) -> Iterator[Measurement]:
    """Measure every setting of the user guide that is a model."""
    for name, shape, X in default_tables(run):
        X_train, X_test = train_test_split(X, test_size=0.3, random_state=run.seed)
        yield row_counts(X_train, X_test, name)
        for row, settings in SETTINGS.items():
            model = AutoencoderTransformer(**settings)
            if row == "conv":
                model.set_params(input_shape=shape)
            if row == "binary_cross_entropy" and (X.min() < 0 or X.max() > 1):
                continue  # refused, as documented
            line = outcome(run, model, X_train, X_test)
            yield Measurement(f"{name}: explained variance", row, line)


def default_tables(run: Run) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
    """Yield names, shapes of a row and rows of the section defaults."""
    images = digits(run, min(run.size.n_part, 10_000)).X_train
    yield "digits", (8, 8), load_digits().data / 16
    for name, load in (("breast cancer", load_breast_cancer), ("wine", load_wine)):
        X = StandardScaler().fit_transform(load().data)
        yield name, (X.shape[1],), X
    yield "MNIST", (SIDE, SIDE), images


def pca_score(X: np.ndarray, X_test: np.ndarray, n_components: int) -> float:
    """Return the share of the variance of the test rows that a PCA explains."""
    variance = mean_squared_error(X_test, X.mean(axis=0))
    return 1 - pca_error(X, X_test, n_components) / variance


SECTIONS: dict[str, Callable[[Run], Iterator[Measurement]]] = {
    "simple": simple,
    "denoising": denoising,
    "conv": conv,
    "sparse": sparse,
    "contractive": contractive,
    "variational": variational,
    "bounds": bounds,
    "quantized": quantized,
    "outliers": outliers,
    "features": features,
    "defaults": defaults,
}


if __name__ == "__main__":
    main()
