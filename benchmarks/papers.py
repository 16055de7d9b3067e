"""Reproduce results of papers on autoencoders.

- hinton: squared error per image of MNIST with 30 components, compared with PCA and
  logistic PCA, which has a linear code and a sigmoid after the decoder [1]_; "encoder"
  marks errors with the encoder's codes, the others are errors with refined codes;
- curves: the same for images of curves with 6 components. The paper's data set is not
  published; the one here has images of 28 x 28 pixels, 20,000 for training and 10,000
  for testing. In each image, three points are uniform in a central square of 20 x 20,
  and the curve is the parabola B(t), 0 <= t <= 1, a quadratic Bezier curve, through
  them: the first at t = 0, the second at t = 1/2, the third at t = 1. A pixel whose
  centre has the distance d from the nearest of 256 points of the curve has the value
  exp(-d**2 / (2 * 0.5**2)): a Gaussian pen with a full width at half maximum of 1.2
  pixels. Six numbers determine an image, as in the paper;
- vincent: test error of classifiers on 10,000 rows of MNIST, from raw pixels and from
  the code of a denoising autoencoder that was fitted to these rows only [2]_;
- kingma: negative evidence lower bound of a variational autoencoder in nats per image
  of MNIST with 20 components, estimated by one draw per row. Grey values are treated
  as probabilities, as in `family.py`; the images are not binarised [3]_;
- oord: squared error per image of MNIST at 64, 128 and 256 bits by vector
  quantization, compared with product quantization by k-means of PCA codes, whose
  number is chosen on held-out rows, and with PCA at 16 bits per component [4]_.

A squared error per image is the mean over the rows of the sum over the 784 pixels, in
[0, 1]. The settings of the package's models are constants at the top of this file,
chosen on held-out training rows, never on the test rows. Results are medians over the
seeds; seconds are wall time of fits: of the code and the classifier in the section
vincent, of the whole baseline in oord, otherwise of the model. One fit to few rows
precedes the measurements. Training uses CUDA if it is available. From the repository
root, with the package installed::

    python benchmarks/papers.py --data DIR

where DIR contains mnist.npz (arrays X_train, y_train, X_test and y_test; images in
uint8); curves needs no data. The run takes long; it can be resumed with::

    python benchmarks/papers.py --data DIR --csv figures.csv

which appends the results of each model and seed to figures.csv as soon as they are
known, and reads the results that are in the file. Results are stored with their
settings: models with changed settings are measured again, but after a change to the
package or to the data delete the lines. One section, the models whose names contain a
word, and figures of images, reconstructions and codes::

    python benchmarks/papers.py --data DIR --only hinton --models skae --figure FOLDER

References
----------
.. [1] Hinton, G. E., & Salakhutdinov, R. R. (2006). Reducing the dimensionality of
   data with neural networks. Science, 313, 504-507.
.. [2] Vincent, P., Larochelle, H., Bengio, Y., & Manzagol, P.-A. (2008). Extracting
   and composing robust features with denoising autoencoders. ICML.
.. [3] Kingma, D. P., & Welling, M. (2014). Auto-encoding variational Bayes. ICLR.
.. [4] van den Oord, A., Vinyals, O., & Kavukcuoglu, K. (2017). Neural discrete
   representation learning. NeurIPS 30.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from results_file import append, read
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from skae import AutoencoderTransformer
from skae.bottlenecks import Gaussian, Quantized
from skae.corruptions import Masking
from skae.networks import MLP, Conv

# Imported dynamically: mypy would otherwise check that file, which is not fully typed.
family = import_module("family")

SIDE = 28
N_PIXELS = SIDE**2

Settings = dict[str, Any]

# Parameters of AutoencoderTransformer, chosen on held-out training rows. random_state
# and, except in OORD, n_components are set by the sections.

LOGISTIC_PCA: Settings = {
    "hidden_layer_sizes": (),
    "loss": "binary_cross_entropy",
    "max_epochs": 30,
    "batch_size": 128,
    "learning_rate": 4e-3,
    "weight_decay": 0.0,
    "early_stopping": False,
}
_HINTON: Settings = {
    "init": "pca",
    "batch_size": 128,
    "learning_rate": 2e-3,
    "early_stopping": False,
    "precision": "bfloat16",
    "transform_max_iter": 5,
}
# Errors on 10,000 held-out training rows after 8 epochs: 4.67, 4.54, 4.23, 4.29 and
# 5.03 with weight decays of .01, .1, .5, 1 and 2; at least 4.87 with noise, masks or
# dropout; 6.00 from a random start, and 10.7 with a sigmoid after the decoder.
HINTON_MLP: Settings = {
    **_HINTON,
    "network": MLP((1000, 500, 250), activation="gelu"),
    "max_epochs": 64,
    "weight_decay": 0.5,
}
_CONV = Conv((32, 64), kernel_size=5, hidden_layer_sizes=(256,))
HINTON_CONV: Settings = {
    **_HINTON,
    "network": _CONV,
    "input_shape": (SIDE, SIDE),
    "max_epochs": 22,
    "weight_decay": 0.3,
}
CURVES_MLP: Settings = {
    **_HINTON,
    "network": MLP((400, 200, 100, 50, 25), activation="gelu"),
    "max_epochs": 250,
    "weight_decay": 0.5,
}
CURVES_CONV: Settings = {
    **_HINTON,
    "network": _CONV,
    "input_shape": (SIDE, SIDE),
    "max_epochs": 40,
    "weight_decay": 0.3,
}
# Settings of the section vincent, by the name of the code; a code has N_CODE
# components. Error rates of the support vector machine on 2,000 held-out training rows:
# 4.05 % from pixels, 3.85 % with 500 components and no corruption, 3.25 and 2.95 % with
# levels of .3 and .5, and 2.95 % with 1,000 components; of logistic regression 10.2,
# 8.7, 5.3, 5.75 and 4.95 %. Neither convolutions nor another layer was better.
N_CODE = 1000
_VINCENT: Settings = {
    "network": MLP((), code_activation="relu"),
    "loss": "binary_cross_entropy",
    "max_epochs": 30,
    "batch_size": 64,
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "early_stopping": False,
}
VINCENT: dict[str, Settings] = {
    "skae, denoising": {
        **_VINCENT,
        "corruption": Masking(fill_value="low"),
        "corruption_level": 0.5,
    },
    "skae, no corruption": _VINCENT,
}
# Bounds on held-out training rows: 104.0 nats with MLP((512, 256)) after 8 epochs, with
# 11 active units; 102.1 with the convolutions after 3 epochs, with all 20 active.
KINGMA: Settings = {
    "network": _CONV,
    "input_shape": (SIDE, SIDE),
    "loss": "binary_cross_entropy",
    "bottleneck": Gaussian(),
    "max_epochs": 18,
    "batch_size": 128,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "early_stopping": False,
    "precision": "bfloat16",
}
# Errors on held-out training rows at 64 bits: 7.7 with MLP((512, 256)) after 8 epochs;
# 6.24, 6.11 and 6.07 with the convolutions after 4 epochs, for entries of 2, 4 and 8
# components.
_OORD: Settings = {
    "network": _CONV,
    "input_shape": (SIDE, SIDE),
    "max_epochs": 16,
    "batch_size": 128,
    "learning_rate": 2e-3,
    "weight_decay": 0.1,
    "early_stopping": False,
    "precision": "bfloat16",
}
# Keyed by the bits per image, which are groups * log2(n_codes).
OORD: dict[int, Settings] = {
    bits: {
        **_OORD,
        "n_components": bits // 2,
        "bottleneck": Quantized(n_codes=256, code_dim=4),
    }
    for bits in (64, 128, 256)
}

# Constants of the section curves.
PEN = 0.5  # standard deviation of the pen in pixels
MARGIN = 4  # of the square of the points, in pixels
N_POINTS = 256
CURVES_SEED = 0

# One byte per group, as in `family.product_quantized`.
BITS_PER_GROUP = 8
BITS_PER_COMPONENT = 16

CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "logistic regression": lambda: LogisticRegression(max_iter=1000),
    "SVC": lambda: SVC(kernel="rbf", C=10, gamma="scale"),
}

TEST_ERROR = "squared error per test image"
TRAIN_ERROR = "squared error per training image"
ENCODER = "encoder"
ERROR_RATE = "test error in %"


class Size(NamedTuple):
    """Sizes of the data and the training.

    Attributes
    ----------
    n_full, n_part : int
        Training images of MNIST, and those of the section vincent.
    n_test : int
        Test images of MNIST.
    n_curves, n_curves_test : int
        Training and test images of curves.
    n_choice : int
        Training rows on which the number of quantized axes is chosen.
    n_epochs : int
        Number of epochs that replaces that of the settings; 0 keeps the settings.
    """

    n_full: int
    n_part: int
    n_test: int
    n_curves: int
    n_curves_test: int
    n_choice: int
    n_epochs: int


FULL = Size(60_000, 10_000, 10_000, 20_000, 10_000, 10_000, 0)
QUICK = Size(1_500, 500, 300, 500, 200, 600, 1)


class Run(NamedTuple):
    """Arguments of a measurement, and of `family.digits`."""

    folder: Path | None
    size: Size
    seed: int


class Measurement(NamedTuple):
    """One result of a model, and the seconds of its fits."""

    quantity: str
    value: float
    seconds: float


class Model(NamedTuple):
    """One or more lines of the table.

    Attributes
    ----------
    name : str
    settings : object
        Settings on which the results depend; stored as text in the CSV file.
    measure : callable
        Yields the measurements of a run.
    paper : dict of str to float
        Results of the paper, keyed by quantity.
    """

    name: str
    settings: object
    measure: Callable[[Run], Iterator[Measurement]]
    paper: dict[str, float]


class Images(NamedTuple):
    """Training and test rows of pixels in [0, 1]."""

    X: np.ndarray
    X_test: np.ndarray


class Fitted(NamedTuple):
    """A fitted estimator and the seconds of its fit."""

    estimator: Any
    seconds: float


class Line(NamedTuple):
    """One line of the CSV file; the first five fields are its key."""

    section: str
    model: str
    settings: str
    size: str
    seed: int
    what: str
    value: float
    seconds: float
    machine: str

    @property
    def key(self) -> tuple:
        return self[:5]


class ResultStore:
    """Results that have been measured, stored in a CSV file.

    Parameters
    ----------
    path : Path or None
        A CSV file, which need not exist; None stores nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.lines: dict[tuple, list[Line]] = {}
        if path is not None and path.exists():
            for line in read_lines(path):
                self.lines.setdefault(line.key, []).append(line)

    def get(self, section: str, model: Model, run: Run) -> list[Line]:
        """Return the stored results, or measure and store them."""
        settings = " ".join(str(model.settings).split())
        size = "quick" if run.size is QUICK else "full"
        key = (section, model.name, settings, size, run.seed)
        if key not in self.lines:
            progress(f"{section}, {model.name}, seed {run.seed}")
            warm_up()
            machine = machine_name()
            lines = [Line(*key, *result, machine) for result in model.measure(run)]
            self.lines[key] = lines
            append(self.path, Line._fields, lines)
        return self.lines[key]


def read_lines(path: Path) -> Iterator[Line]:
    for *names, seed, what, value, seconds, machine in read(path, Line._fields):
        rest = (int(seed), what, float(value), float(seconds), machine)
        yield Line._make((*names, *rest))


def main() -> None:
    arguments = parse_arguments()
    size = QUICK if arguments.quick else FULL
    runs = [Run(arguments.data, size, seed) for seed in arguments.seeds]
    store = ResultStore(arguments.csv)
    sections = [name for name in arguments.only if has_data(name, arguments.data)]
    if not sections:
        sys.exit("None of the sections can be run.")
    if arguments.figure:
        arguments.figure.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    report(versions())
    if arguments.quick:
        report("--quick: a smoke test with few rows and epochs; ignore its results.")
    report(f"Sizes: {size._asdict()}")
    with threadpool_limits(arguments.threads):
        for section in sections:
            report()
            print_section(section, arguments.models, runs, store)
            if arguments.figure and section in DRAWN:
                draw(section, runs[0], arguments.figure)


def parse_arguments() -> argparse.Namespace:
    description, *_ = (__doc__ or "").split("\n\nReferences")
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder that contains mnist.npz"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(SECTIONS),
        default=list(SECTIONS),
        metavar="SECTION",
        help=f"these sections only, of {', '.join(SECTIONS)}",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=[""],
        metavar="WORD",
        help="only models whose name contains one of these",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[0],
        metavar="SEED",
        help="seeds of the fits, and of the rows in vincent (default: 0)",
    )
    parser.add_argument(
        "--threads", type=int, default=2, metavar="N", help="threads (default: 2)"
    )
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="append the results to FILE, and skip those that are in it",
    )
    parser.add_argument(
        "--figure",
        type=Path,
        metavar="FOLDER",
        help="save plots of reconstructions (hinton, curves), codes (hinton) in FOLDER",
    )
    parser.add_argument(
        "--quick", action="store_true", help="few rows, one epoch, as a smoke test"
    )
    return parser.parse_args()


def report(line: str = "") -> None:
    print(line, flush=True)


def progress(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def versions() -> str:
    names = ("numpy", "scikit-learn", "torch", "skorch")
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    return f"Python {platform.python_version()}, {packages}; {machine_name()}"


def machine_name() -> str:
    """Return the device and the number of threads, on which the seconds depend."""
    n_threads = torch.get_num_threads()
    cpu = f"CPU, {n_threads} thread" + "s" * (n_threads != 1)
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} and {cpu}"
    return cpu


# A section


def has_data(section: str, folder: Path | None) -> bool:
    """Return whether the data of the section exist; report it if they do not."""
    if section == "curves":
        return True
    if folder is None:
        report(
            f"MISSING: MNIST, for {section}. Give --data DIR that contains mnist.npz."
        )
        return False
    path = folder / "mnist.npz"
    if not path.exists():
        report(f"MISSING: {path}; the section {section} is skipped.")
    return path.exists()


def print_section(
    section: str, words: list[str], runs: list[Run], store: ResultStore
) -> None:
    """Print the results of each model over all seeds as soon as they are measured."""
    models = [m for m in SECTIONS[section] if any(word in m.name for word in words)]
    if not models:
        names = ", ".join(model.name for model in SECTIONS[section])
        report(f"{section}: no name contains {' or '.join(words)}. Models: {names}.")
        return
    per_seed = "" if len(runs) == 1 else "   per seed"
    report(
        f"{section:9}{'quantity':43}{'model':45}{'value':>9}{'paper':>9}{'seconds':>9}"
        f"   {'machine':22}{per_seed}".rstrip()
    )
    for model in models:
        by_quantity: dict[str, list[Line]] = {}
        for run in runs:
            for line in store.get(section, model, run):
                by_quantity.setdefault(line.what, []).append(line)
        for quantity, lines in by_quantity.items():
            report(table_line(section, model, quantity, lines))
    report(NOTES[section])


def table_line(section: str, model: Model, quantity: str, lines: list[Line]) -> str:
    value = float(np.median([line.value for line in lines]))
    seconds = float(np.median([line.seconds for line in lines]))
    paper = f"{model.paper[quantity]:.2f}" if quantity in model.paper else "-"
    machine = "; ".join(sorted({line.machine for line in lines}))
    head = (
        f"{section:9}{quantity:43}{model.name:45}{value:9.2f}{paper:>9}{seconds:9.1f}"
    )
    if len(lines) == 1:
        return f"{head}   {machine}"
    per_seed = " ".join(f"{line.value:.2f}" for line in lines)
    return f"{head}   {machine:22}   {per_seed}"


NOTES = {
    "hinton": (
        "paper: Hinton & Salakhutdinov (2006), figure 2 B; 3.00 is the error of\n"
        "784-1000-500-250-30, pre-trained layer by layer."
    ),
    "curves": (
        "paper: Hinton & Salakhutdinov (2006), figure 2 A, uses other curves; its\n"
        "errors are not comparable. skae with 6 components refines the codes."
    ),
    "vincent": (
        "paper: Vincent et al. (2008), table 1, MNIST (basic): 10,000 training,\n"
        "2,000 validation and 50,000 test rows. 2.80: three layers with 10 %\n"
        "masking, fine-tuned with the labels; 3.03: a support vector machine with a\n"
        "Gaussian kernel, its parameters chosen on validation rows. skae: one layer,\n"
        "no fine-tuning, the 10,000 test rows of MNIST."
    ),
    "kingma": (
        "paper: Kingma & Welling (2014) plot the bound and give no number. Grey\n"
        "values are treated as probabilities: not comparable with bounds on\n"
        "binarised digits."
    ),
    "oord": (
        "paper: van den Oord et al. (2017) give no error on MNIST.\n"
        "perplexity: minimum over the codebooks; at most 256."
    ),
}


# Fits and errors


@cache
def warm_up() -> None:
    """Fit once, so that imports and compilation are not part of the measured time."""
    X = np.random.default_rng(0).random((256, N_PIXELS), dtype=np.float32)
    AutoencoderTransformer(2, max_epochs=1, early_stopping=False).fit(X)


def timed(estimator: Any, *data: np.ndarray) -> Fitted:
    began = time.perf_counter()
    estimator.fit(*data)
    return Fitted(estimator, time.perf_counter() - began)


def autoencoder(settings: Settings, run: Run, **more: Any) -> AutoencoderTransformer:
    """Return a model with these settings, with fewer epochs in a quick run."""
    settings = {**settings, **more}
    if run.size.n_epochs:
        settings["max_epochs"] = run.size.n_epochs
    # Show a progress bar if standard error is a terminal.
    settings = {"verbose": int(sys.stderr.isatty()), **settings}
    return AutoencoderTransformer(**settings, random_state=run.seed)


def error_per_image(X: np.ndarray, X_hat: np.ndarray) -> float:
    """Compute the mean over the rows of the sum over the pixels of (x - x_hat)**2."""
    return float(np.mean(np.sum((X - X_hat) ** 2, axis=1), dtype=np.float64))


def mnist(run: Run) -> Images:
    """Return all images of the run, in a random order that depends on the seed."""
    data = family.digits(run, run.size.n_full)
    return Images(data.X_train, data.X_test)


# Hinton & Salakhutdinov


@cache
def curves(size: Size) -> Images:
    """Generate the curves of the module's docstring, the same in each call."""
    rng = np.random.default_rng(CURVES_SEED)
    shape = (size.n_curves + size.n_curves_test, 3, 2)
    points = rng.uniform(MARGIN, SIDE - MARGIN, shape).astype(np.float32)
    # Blocks fit into the processor's cache.
    blocks = np.array_split(points, max(1, len(points) // 200))
    images = np.concatenate([draw_curves(block) for block in blocks])
    return Images(images[: size.n_curves], images[size.n_curves :])


def draw_curves(points: np.ndarray) -> np.ndarray:
    """Draw parabolas through points of shape (n, 3, 2), one image per row."""
    start, middle, end = points.swapaxes(0, 1)  # (n, 2) each
    control = 2 * middle - (start + end) / 2  # so that B(1/2) is the middle point
    centres = np.arange(SIDE, dtype=np.float32) + 0.5
    nearest = np.full((len(points), SIDE, SIDE), np.inf, dtype=np.float32)
    for t in np.linspace(0, 1, N_POINTS, dtype=np.float32):
        at = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end  # (n, 2)
        squares = (at[:, :, None] - centres) ** 2  # (n, 2, SIDE)
        distance = squares[:, 0, :, None] + squares[:, 1, None, :]
        np.minimum(nearest, distance, out=nearest)
    return np.exp(-nearest / (2 * PEN**2)).reshape(-1, N_PIXELS)


# None stands for PCA.
REDUCERS: dict[str, dict[str, Settings | None]] = {
    "hinton": {
        "PCA": None,
        "logistic PCA": LOGISTIC_PCA,
        "skae, 784-1000-500-250": HINTON_MLP,
        "skae, convolutional": HINTON_CONV,
    },
    "curves": {
        "PCA": None,
        "logistic PCA": LOGISTIC_PCA,
        "skae, 784-400-200-100-50-25": CURVES_MLP,
        "skae, convolutional": CURVES_CONV,
    },
}
# Model, number of components, and the paper's error per test image.
REDUCED: dict[str, list[tuple[str, int, float | None]]] = {
    "hinton": [
        ("PCA", 30, 13.87),
        ("logistic PCA", 30, 8.01),
        ("skae, 784-1000-500-250", 30, 3.00),
        ("skae, convolutional", 30, 3.00),
    ],
    "curves": [
        ("PCA", 6, None),
        ("PCA", 18, None),
        ("logistic PCA", 6, None),
        ("logistic PCA", 18, None),
        ("skae, 784-400-200-100-50-25", 6, None),
        ("skae, convolutional", 6, None),
    ],
}


def reducers(section: str) -> list[Model]:
    return [
        Model(
            f"{name}, {n_components} components",
            (n_components, REDUCERS[section][name]),
            partial(reduction_errors, section, name, n_components),
            {}
            if paper is None
            else {TEST_ERROR: paper, f"{TEST_ERROR}, {ENCODER}": paper},
        )
        for name, n_components, paper in REDUCED[section]
    ]


def images_of(section: str, run: Run) -> Images:
    return mnist(run) if section == "hinton" else curves(run.size)


@cache
def reducer(section: str, name: str, n_components: int, run: Run) -> Fitted:
    """Return a fitted model, which is cached for results and plots."""
    settings = REDUCERS[section][name]
    X = images_of(section, run).X
    if settings is None:
        return timed(PCA(n_components, svd_solver="covariance_eigh"), X)
    return timed(autoencoder(settings, run, n_components=n_components), X)


def reconstruct(estimator: Any, X: np.ndarray) -> np.ndarray:
    return estimator.inverse_transform(estimator.transform(X))


def reduction_errors(
    section: str, name: str, n_components: int, run: Run
) -> Iterator[Measurement]:
    estimator, seconds = reducer(section, name, n_components, run)
    X, X_test = images_of(section, run)
    for quantity, rows in ((TEST_ERROR, X_test), (TRAIN_ERROR, X[: len(X_test)])):
        error = error_per_image(rows, reconstruct(estimator, rows))
        yield Measurement(quantity, error, seconds)
        if getattr(estimator, "transform_max_iter", "auto") != "auto":
            error = error_per_image(rows, reconstruct_unrefined(estimator, rows))
            yield Measurement(f"{quantity}, {ENCODER}", error, seconds)


@torch.no_grad()
def reconstruct_unrefined(model: AutoencoderTransformer, X: np.ndarray) -> np.ndarray:
    """Reconstruct images from the encoder's codes, without refinement."""
    module = model.module_
    scaled, _ = module.scaler(torch.from_numpy(X))
    raw = module.decoder(module.encoder(scaled))
    return module.scaler.unscale(module.output(raw)).numpy()


# Models whose reconstructions are plotted, with their numbers of components.
DRAWN = {
    "hinton": (("skae, 784-1000-500-250", 30), ("PCA", 30)),
    "curves": (("skae, 784-400-200-100-50-25", 6), ("PCA", 6)),
}
N_DRAWN = 10


def draw(section: str, run: Run, folder: Path) -> None:
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    X_test = images_of(section, run).X_test
    if section == "curves":
        draw_reconstructions(section, run, X_test[:N_DRAWN], folder)
        return
    labels = family.digits(run, run.size.n_full).y_test
    first = np.unique(labels, return_index=True)[1]  # image of each digit
    draw_reconstructions(section, run, X_test[first], folder)
    draw_plane(run, X_test, labels, folder)


def draw_reconstructions(section: str, run: Run, X: np.ndarray, folder: Path) -> None:
    """Plot a row of images, and their reconstructions in the rows below."""
    import matplotlib.pyplot as plt

    rows = {"original": X}
    for name, n_components in DRAWN[section]:
        progress(f"{section}, plot, {name}, {n_components} components")
        estimator, _ = reducer(section, name, n_components, run)
        rows[f"{name.split(',')[0]}, {n_components}"] = reconstruct(estimator, X)
    figure, axes = plt.subplots(
        len(rows), len(X), figsize=(0.8 * len(X) + 1, 0.85 * len(rows)), squeeze=False
    )
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for ax, image in zip(line, images, strict=True):
            ax.imshow(image.reshape(SIDE, SIDE), cmap="gray_r", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.tight_layout(pad=0.3)
    save(figure, folder / f"{section}_reconstructions.png")


def draw_plane(run: Run, X: np.ndarray, labels: np.ndarray, folder: Path) -> None:
    """Plot codes of two components by PCA and skae, coloured by digit."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 5.5), layout="constrained")
    for ax, name in zip(axes, ("PCA", "skae, 784-1000-500-250"), strict=True):
        progress(f"hinton, plot, {name}, 2 components")
        Z = reducer("hinton", name, 2, run).estimator.transform(X)
        for digit in range(10):
            of_digit = labels == digit
            color = f"C{digit}"
            ax.scatter(*Z[of_digit].T, s=3, color=color, label=str(digit), alpha=0.7)
        ax.set(title="PCA" if name == "PCA" else f"{name}-2", xticks=[], yticks=[])
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=10,
        markerscale=4,
        frameon=False,
    )
    save(figure, folder / "hinton_plane.png")


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=100)
    report(f"The figure is in {path}")


# Vincent et al.

PIXELS = "pixels"
# Error rates of the paper, by the most similar code and classifier here.
VINCENT_PAPER = {
    (PIXELS, "SVC"): 3.03,
    ("skae, denoising", "SVC"): 2.80,
    ("skae, denoising", "logistic regression"): 2.80,
}


def classifiers() -> list[Model]:
    return [
        Model(
            f"{code}, {classifier}",
            (N_CODE, VINCENT.get(code), CLASSIFIERS[classifier]()),
            partial(classification_error, code, classifier),
            paper_error(code, classifier),
        )
        for code in (PIXELS, *VINCENT)
        for classifier in CLASSIFIERS
    ]


def paper_error(code: str, classifier: str) -> dict[str, float]:
    paper = VINCENT_PAPER.get((code, classifier))
    return {} if paper is None else {ERROR_RATE: paper}


@cache
def denoiser(code: str, run: Run) -> Fitted:
    """Return a fitted autoencoder, which is cached for both classifiers."""
    X = family.digits(run, run.size.n_part).X_train
    return timed(autoencoder(VINCENT[code], run, n_components=N_CODE), X)


def classification_error(code: str, classifier: str, run: Run) -> Iterator[Measurement]:
    X, y, X_test, y_test = family.digits(run, run.size.n_part)
    seconds = 0.0
    if code != PIXELS:
        denoising, seconds = denoiser(code, run)
        X, X_test = denoising.transform(X), denoising.transform(X_test)
    model, more_seconds = timed(CLASSIFIERS[classifier](), X, y)
    error_rate = 100 * float(np.mean(model.predict(X_test) != y_test))
    yield Measurement(ERROR_RATE, error_rate, seconds + more_seconds)


# Kingma & Welling


def variational(run: Run) -> Iterator[Measurement]:
    X = mnist(run).X
    model, seconds = timed(autoencoder(KINGMA, run, n_components=family.N_LATENT), X)
    module = model.module_
    yield from bounds(module.encoder, module.decoder, run, seconds)
    yield Measurement("active units", float(model.active_units_.sum()), seconds)


def by_hand(run: Run) -> Iterator[Measurement]:
    """Train the model of PyTorch's examples, 784-400-20, for as many epochs as skae."""
    n_epochs = run.size.n_epochs or KINGMA["max_epochs"]
    torch.manual_seed(run.seed)
    model = family.VAE()
    began = time.perf_counter()
    family.train_by_hand(model, mnist(run).X, family.VAE.loss, 128, n_epochs)
    seconds = time.perf_counter() - began
    yield from bounds(model.encoder, model.decoder, run, seconds)


def bounds(
    encoder: torch.nn.Module, decoder: torch.nn.Module, run: Run, seconds: float
) -> Iterator[Measurement]:
    """Compute the bound of the test rows, and of as many training rows."""
    X, X_test = mnist(run)
    for split, rows in (("test", X_test), ("training", X[: len(X_test)])):
        bound = family.negative_elbo(encoder, decoder, rows)
        yield Measurement(f"negative ELBO in nats per {split} image", bound, seconds)


# van den Oord et al.

KMEANS = {
    "k-means of PCA codes": "axes",
    "k-means of bands of pixels": "bands",
    "PCA, 16 bits per component": "halves",
}


def quantizers() -> list[Model]:
    ours = [
        Model(f"skae, {bits} bits", settings, partial(vector_quantized, bits), {})
        for bits, settings in OORD.items()
    ]
    theirs = [
        Model(f"{name}, {bits} bits", kind, partial(baseline, kind, bits), {})
        for bits in OORD
        for name, kind in KMEANS.items()
    ]
    # Sorted by bits, skae first: both lists are in the order of the bits.
    n = len(KMEANS)
    return [m for i, our in enumerate(ours) for m in (our, *theirs[n * i : n * i + n])]


def vector_quantized(bits: int, run: Run) -> Iterator[Measurement]:
    X, X_test = mnist(run)
    model, seconds = timed(autoencoder(OORD[bits], run), X)
    n_groups = model.quantize(X_test[:1]).shape[1]
    n_bits = n_groups * np.log2(model.bottleneck.n_codes)
    if round(n_bits, 6) != bits:
        raise ValueError(f"OORD[{bits}] has {n_bits:g} bits per image.")
    error = error_per_image(X_test, model.reconstruct(X_test))
    yield Measurement(TEST_ERROR, error, seconds)
    error = error_per_image(X, model.reconstruct(X))
    yield Measurement(TRAIN_ERROR, error, seconds)
    yield Measurement("perplexity", float(model.perplexity_.min()), seconds)


def baseline(kind: str, bits: int, run: Run) -> Iterator[Measurement]:
    """Measure a baseline that uses the same number of bits without a network."""
    X, X_test = mnist(run)
    began = time.perf_counter()
    with warnings.catch_warnings():
        # k-means warns of bands at the edge, which have fewer distinct rows than
        # entries.
        warnings.simplefilter("ignore", ConvergenceWarning)
        if kind == "halves":
            X_hat = half_precision(X, X_test, bits // BITS_PER_COMPONENT)
        elif kind == "axes":
            X_hat = axes_quantized(X, X_test, bits // BITS_PER_GROUP, run)
        else:
            # Parts of the 784 pixels whose sizes differ by at most one.
            bands = np.array_split(np.arange(N_PIXELS), bits // BITS_PER_GROUP)
            X_hat = family.product_quantized(X, X_test, bands, run.seed)
    seconds = time.perf_counter() - began
    yield Measurement(TEST_ERROR, error_per_image(X_test, X_hat), seconds)


def half_precision(X: np.ndarray, X_test: np.ndarray, n_components: int) -> np.ndarray:
    pca = PCA(n_components, svd_solver="covariance_eigh").fit(X)
    Z = pca.transform(X_test).astype(np.float16)
    return pca.inverse_transform(Z.astype(X.dtype))


def axes_quantized(
    X: np.ndarray, X_test: np.ndarray, n_groups: int, run: Run
) -> np.ndarray:
    """Reconstruct test rows by product quantization of PCA codes.

    The number of axes is chosen on held-out training rows.
    """
    X_part, X_valid = family.hold_out(X[: run.size.n_choice])

    def validation_error(n_axes: int) -> float:
        X_hat = family.axes_quantized(X_part, X_valid, n_axes, n_groups, run.seed)
        return error_per_image(X_valid, X_hat)

    # Axes beyond half of the pixels have hardly any variance.
    numbers = [n * n_groups for n in family.AXES_PER_GROUP]
    n_axes = min((n for n in numbers if n <= N_PIXELS // 2), key=validation_error)
    return family.axes_quantized(X, X_test, n_axes, n_groups, run.seed)


SECTIONS: dict[str, list[Model]] = {
    "hinton": reducers("hinton"),
    "curves": reducers("curves"),
    "vincent": classifiers(),
    "kingma": [
        Model("skae", (family.N_LATENT, KINGMA), variational, {}),
        Model("hand-written PyTorch, 784-400", KINGMA["max_epochs"], by_hand, {}),
    ],
    "oord": quantizers(),
}


if __name__ == "__main__":
    main()
