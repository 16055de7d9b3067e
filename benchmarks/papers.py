"""Print what the papers report on autoencoders, beside what the package reaches.

- hinton: squared error per image of MNIST with 30 components, beside PCA and
  logistic PCA, which is a linear code with a sigmoid behind the decoder [1]_;
  "encoder" marks errors by what the encoder says, the others those by refined codes;
- curves: the same on drawn curves with 6 components. The paper's set is not
  published; the one here has images of 28 x 28 pixels, 20,000 to train and 10,000 to
  test. Of each, three points are uniform in a square of 20 x 20 in the middle, and the
  curve is the parabola B(t), 0 <= t <= 1, a quadratic Bezier curve, through them:
  the first at t = 0, the second at t = 1/2, the third at t = 1. A pixel whose centre
  is at a distance d from the curve, by the nearest of 256 points on it, has the value
  exp(-d**2 / (2 * 0.5**2)): a Gaussian pen, 1.2 pixels wide at half its height. So
  six numbers say all about an image, as in the paper;
- vincent: test error of classifiers on 10,000 rows of MNIST, from raw pixels and from
  the code of a denoising autoencoder that was fitted to these rows alone [2]_;
- kingma: negative evidence lower bound of a variational autoencoder in nats per image
  of MNIST with 20 components, estimated by one draw per row. Grey values count as
  probabilities, as in `family.py`: nothing is binarised [3]_;
- oord: squared error per image of MNIST at 64, 128 and 256 bits by vector
  quantization, beside product quantization by k-means, with the axes of a PCA
  chosen on held-out rows, and PCA whose components take 16 bits each [4]_.

A squared error per image is the mean over the rows of the sum over the 784 pixels, in
[0, 1]. The settings of the package's models are constants at the top of this file, to
be chosen on held-out training rows, never on the test rows. Figures are medians over
the seeds; seconds, by the clock, are those of fits: of the code and the classifier in
the section vincent, of all that a baseline does in oord, else of the model. A first fit
on few rows goes before the clock. Training takes CUDA where there is one.
From the repository root, with the package installed::

    python benchmarks/papers.py --data DIR

where DIR holds mnist.npz (arrays X_train, y_train, X_test and y_test; images in
uint8); curves needs no data. All of it takes long, and can go on where it was
interrupted::

    python benchmarks/papers.py --data DIR --csv figures.csv

which appends the figures of each model and seed to figures.csv as soon as they are
known, and takes from there what is in it already. Figures belong to the settings with
which they were measured: those of changed settings are measured anew, but after a
change to the package or to the data delete the lines. One section, the models whose
names contain a word, and pictures of images, reconstructions and codes::

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
from cells import append, read
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from skae import AutoencoderTransformer
from skae.bottlenecks import Gaussian, Quantized
from skae.corruptions import Masking
from skae.networks import MLP, Conv

# Not by name: mypy would follow the import, and that file is not annotated in full.
family = import_module("family")

SIDE = 28
N_PIXELS = SIDE**2

Settings = dict[str, Any]

# Keywords of AutoencoderTransformer, to be tuned on held-out training rows;
# n_components, but for OORD, and random_state come from the sections.

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
# On 10,000 training rows held out, after 8 epochs: weight decays of .01, .1, .5, 1 and
# 2 gave 4.67, 4.54, 4.23, 4.29 and 5.03; noise, masks and dropout none below 4.87; a
# random start 6.00, and with a sigmoid behind the decoder 10.7.
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
# Of the section vincent, by the name of the code; a code has N_CODE components.
# Of 2,000 training rows held out, the support vector machine mistakes 4.05 % from
# pixels, 3.85 % with 500 components and no corruption, 3.25 and 2.95 % with levels of
# .3 and .5, and 2.95 % with 1,000 components; logistic regression 10.2, 8.7, 5.3, 5.75
# and 4.95 %. Neither convolutions nor a further layer did better.
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
# On held-out training rows, after 8 epochs: 104.0 nats with MLP((512, 256)), of whose
# units 11 are active; after 3 with the convolutions 102.1, and all 20.
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
# On held-out training rows, at 64 bits: 7.7 with MLP((512, 256)) after 8 epochs; after
# 4 with the convolutions 6.24, 6.11 and 6.07 for entries of 2, 4 and 8 components.
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
# By the bits of an image, which are groups * log2(n_codes).
OORD: dict[int, Settings] = {
    bits: {
        **_OORD,
        "n_components": bits // 2,
        "bottleneck": Quantized(n_codes=256, code_dim=4),
    }
    for bits in (64, 128, 256)
}

# Of the Gaussian pen and the square of the points in the section curves.
PEN = 0.5
MARGIN = 4
N_POINTS = 256
CURVES_SEED = 0

# A byte for each group, as `family.product_quantized` has it.
BITS_PER_GROUP = 8
BITS_PER_COMPONENT = 16

CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "logistic regression": lambda: LogisticRegression(max_iter=1000),
    "SVC": lambda: SVC(kernel="rbf", C=10, gamma="scale"),
}

TEST_ERROR = "squared error per test image"
TRAIN_ERROR = "squared error per training image"
ENCODER = "encoder"
WRONG = "test error in %"


class Size(NamedTuple):
    """How much of everything a run takes.

    Attributes
    ----------
    n_full, n_part, n_test : int
        Images of MNIST to train on, in the section vincent alone, and to test on.
    n_curves, n_curves_test : int
        Drawn curves to train and to test on.
    n_choice : int
        Training rows on which the number of axes to quantize is chosen.
    n_epochs : int
        Passes over the rows instead of those in the settings; 0 leaves them.
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
    """What a measurement is given; `family.digits` takes it, too."""

    folder: Path | None
    size: Size
    seed: int


class Figure(NamedTuple):
    """One number of a model, and the seconds of the fits behind it."""

    what: str
    value: float
    seconds: float


class Model(NamedTuple):
    """A line of the table, or several.

    Attributes
    ----------
    name : str
    settings : object
        Whatever the figures depend on, as far as its text tells.
    measure : callable
        Gives the figures of a run.
    paper : dict of str to float
        What the paper reports, by the figure's name.
    """

    name: str
    settings: object
    measure: Callable[[Run], Iterator[Figure]]
    paper: dict[str, float]


class Images(NamedTuple):
    """Rows of pixels in [0, 1] to train on and to test on."""

    X: np.ndarray
    X_test: np.ndarray


class Fitted(NamedTuple):
    """A fitted estimator and the seconds of its fit."""

    estimator: Any
    seconds: float


class Line(NamedTuple):
    """One line of the file of figures; the first five fields say which fit it is."""

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


class Notebook:
    """The figures that are known, and the file that keeps them.

    Parameters
    ----------
    path : Path or None
        A CSV file, which need not exist; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.lines: dict[tuple, list[Line]] = {}
        if path is not None and path.exists():
            for line in read_lines(path):
                self.lines.setdefault(line.key, []).append(line)

    def figures(self, section: str, model: Model, run: Run) -> list[Line]:
        """The figures as they were written down, or else as they are measured now."""
        settings = " ".join(str(model.settings).split())
        size = "quick" if run.size is QUICK else "full"
        key = (section, model.name, settings, size, run.seed)
        if key not in self.lines:
            progress(f"{section}, {model.name}, seed {run.seed}")
            warm_up()
            machine = machine_name()
            found = [Line(*key, *figure, machine) for figure in model.measure(run)]
            self.lines[key] = found
            append(self.path, Line._fields, found)
        return self.lines[key]


def read_lines(path: Path) -> Iterator[Line]:
    for *names, seed, what, value, seconds, machine in read(path, Line._fields):
        figure = (int(seed), what, float(value), float(seconds), machine)
        yield Line._make((*names, *figure))


def main() -> None:
    arguments = parse_arguments()
    size = QUICK if arguments.quick else FULL
    runs = [Run(arguments.data, size, seed) for seed in arguments.seeds]
    notebook = Notebook(arguments.csv)
    sections = [name for name in arguments.only if has_data(name, arguments.data)]
    if not sections:
        sys.exit("There is no section left to print.")
    if arguments.figure:
        arguments.figure.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    say(versions())
    if arguments.quick:
        say("--quick: a smoke test on few rows and epochs; its figures mean nothing.")
    say(f"Sizes: {size._asdict()}")
    with threadpool_limits(arguments.threads):
        for section in sections:
            say()
            print_section(section, arguments.models, runs, notebook)
            if arguments.figure and section in DRAWN:
                draw(section, runs[0], arguments.figure)


def parse_arguments() -> argparse.Namespace:
    description, *_ = (__doc__ or "").split("\n\nReferences")
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder that holds mnist.npz"
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
        help="of the fits, and of the rows in the section vincent (default: 0)",
    )
    parser.add_argument(
        "--threads", type=int, default=2, metavar="N", help="threads (default: 2)"
    )
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="append the figures to FILE, and skip those that are in it",
    )
    parser.add_argument(
        "--figure",
        type=Path,
        metavar="FOLDER",
        help="draw reconstructions (hinton, curves) and codes (hinton) into FOLDER",
    )
    parser.add_argument(
        "--quick", action="store_true", help="few rows, one epoch, as a smoke test"
    )
    return parser.parse_args()


def say(line: str = "") -> None:
    print(line, flush=True)


def progress(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def versions() -> str:
    names = ("numpy", "scikit-learn", "torch", "skorch")
    found = ", ".join(f"{name} {version(name)}" for name in names)
    return f"Python {platform.python_version()}, {found}; {machine_name()}"


def machine_name() -> str:
    """Where fits run, as the seconds are of little use without it."""
    n_threads = torch.get_num_threads()
    cpu = f"CPU, {n_threads} thread" + "s" * (n_threads != 1)
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} and {cpu}"
    return cpu


# A section


def has_data(section: str, folder: Path | None) -> bool:
    """Whether what the section needs is there; if not, it says so."""
    if section == "curves":
        return True
    if folder is None:
        say(f"MISSING: MNIST, for {section}. Give --data DIR that holds mnist.npz.")
        return False
    path = folder / "mnist.npz"
    if not path.exists():
        say(f"MISSING: {path}; the section {section} is left out.")
    return path.exists()


def print_section(
    section: str, words: list[str], runs: list[Run], notebook: Notebook
) -> None:
    """The figures of each model over all seeds, as soon as they are there."""
    models = [m for m in SECTIONS[section] if any(word in m.name for word in words)]
    if not models:
        names = ", ".join(model.name for model in SECTIONS[section])
        say(f"{section}: no model's name contains {' or '.join(words)}, of {names}.")
        return
    per_seed = "" if len(runs) == 1 else "   per seed"
    say(
        f"{section:9}{'what':43}{'model':45}{'value':>9}{'paper':>9}{'seconds':>9}"
        f"   {'on':22}{per_seed}".rstrip()
    )
    for model in models:
        found: dict[str, list[Line]] = {}
        for run in runs:
            for line in notebook.figures(section, model, run):
                found.setdefault(line.what, []).append(line)
        for what, lines in found.items():
            say(table_line(section, model, what, lines))
    say(NOTES[section])


def table_line(section: str, model: Model, what: str, lines: list[Line]) -> str:
    value = float(np.median([line.value for line in lines]))
    seconds = float(np.median([line.seconds for line in lines]))
    paper = f"{model.paper[what]:.2f}" if what in model.paper else "-"
    machine = "; ".join(sorted({line.machine for line in lines}))
    head = f"{section:9}{what:43}{model.name:45}{value:9.2f}{paper:>9}{seconds:9.1f}"
    if len(lines) == 1:
        return f"{head}   {machine}"
    per_seed = " ".join(f"{line.value:.2f}" for line in lines)
    return f"{head}   {machine:22}   {per_seed}"


NOTES = {
    "hinton": (
        "paper: Hinton & Salakhutdinov (2006), figure 2 B; 3.00 is of the widths\n"
        "784-1000-500-250-30, trained layer by layer first."
    ),
    "curves": (
        "paper: Hinton & Salakhutdinov (2006), figure 2 A, shows other curves, so its\n"
        "errors are no measure of these. Ours with 6 components refine their codes."
    ),
    "vincent": (
        "paper: Vincent et al. (2008), table 1, MNIST (basic): 10,000 rows to train,\n"
        "2,000 to validate, 50,000 to test. 2.80: three layers of 10 % masking,\n"
        "fine-tuned by the labels; 3.03: a support vector machine with a Gaussian\n"
        "kernel, its parameters chosen on validation rows. Ours: one layer, no\n"
        "fine-tuning, the 10,000 test rows of MNIST."
    ),
    "kingma": (
        "paper: Kingma & Welling (2014) draw the bound and give no number. Grey\n"
        "values count as probabilities: no comparison with bounds on binarised digits."
    ),
    "oord": (
        "paper: van den Oord et al. (2017) give no error on MNIST.\n"
        "perplexity: of the codebook that has the least; 256 entries at most."
    ),
}


# Fits and errors


@cache
def warm_up() -> None:
    """Imports and compilation of a first fit, before the clock runs."""
    X = np.random.default_rng(0).random((256, N_PIXELS), dtype=np.float32)
    AutoencoderTransformer(2, max_epochs=1, early_stopping=False).fit(X)


def timed(estimator: Any, *data: np.ndarray) -> Fitted:
    began = time.perf_counter()
    estimator.fit(*data)
    return Fitted(estimator, time.perf_counter() - began)


def autoencoder(settings: Settings, run: Run, **more: Any) -> AutoencoderTransformer:
    """The package's model with these settings, shortened in a quick run."""
    settings = {**settings, **more}
    if run.size.n_epochs:
        settings["max_epochs"] = run.size.n_epochs
    # A bar on standard error, where there is a terminal.
    settings = {"verbose": int(sys.stderr.isatty()), **settings}
    return AutoencoderTransformer(**settings, random_state=run.seed)


def error_per_image(X: np.ndarray, X_hat: np.ndarray) -> float:
    """Mean over the rows of the sum over the pixels of (x - x_hat)**2."""
    return float(np.mean(np.sum((X - X_hat) ** 2, axis=1), dtype=np.float64))


def mnist(run: Run) -> Images:
    """All images of the run, in an order drawn by the seed."""
    data = family.digits(run, run.size.n_full)
    return Images(data.X_train, data.X_test)


# Hinton & Salakhutdinov


@cache
def curves(size: Size) -> Images:
    """The curves that the module's docstring describes, always the same."""
    rng = np.random.default_rng(CURVES_SEED)
    shape = (size.n_curves + size.n_curves_test, 3, 2)
    points = rng.uniform(MARGIN, SIDE - MARGIN, shape).astype(np.float32)
    # A block at a time stays in the processor's cache.
    blocks = np.array_split(points, max(1, len(points) // 200))
    images = np.concatenate([drawn(block) for block in blocks])
    return Images(images[: size.n_curves], images[size.n_curves :])


def drawn(points: np.ndarray) -> np.ndarray:
    """Images, as rows, of parabolas through points of shape (n, 3, 2)."""
    start, middle, end = points.swapaxes(0, 1)  # (n, 2) each
    control = 2 * middle - (start + end) / 2  # puts B(1/2) on the middle point
    centres = np.arange(SIDE, dtype=np.float32) + 0.5
    nearest = np.full((len(points), SIDE, SIDE), np.inf, dtype=np.float32)
    for t in np.linspace(0, 1, N_POINTS, dtype=np.float32):
        at = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end  # (n, 2)
        squares = (at[:, :, None] - centres) ** 2  # (n, 2, SIDE)
        distance = squares[:, 0, :, None] + squares[:, 1, None, :]
        np.minimum(nearest, distance, out=nearest)
    return np.exp(-nearest / (2 * PEN**2)).reshape(-1, N_PIXELS)


# None is PCA.
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
# With the paper's errors per test image.
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
    """Fitted once, for figures and pictures."""
    settings = REDUCERS[section][name]
    X = images_of(section, run).X
    if settings is None:
        return timed(PCA(n_components, svd_solver="covariance_eigh"), X)
    return timed(autoencoder(settings, run, n_components=n_components), X)


def rebuilt(estimator: Any, X: np.ndarray) -> np.ndarray:
    return estimator.inverse_transform(estimator.transform(X))


def reduction_errors(
    section: str, name: str, n_components: int, run: Run
) -> Iterator[Figure]:
    estimator, seconds = reducer(section, name, n_components, run)
    X, X_test = images_of(section, run)
    for what, rows in ((TEST_ERROR, X_test), (TRAIN_ERROR, X[: len(X_test)])):
        error = error_per_image(rows, rebuilt(estimator, rows))
        yield Figure(what, error, seconds)
        if getattr(estimator, "transform_max_iter", "auto") != "auto":
            error = error_per_image(rows, rebuilt_by_encoder(estimator, rows))
            yield Figure(f"{what}, {ENCODER}", error, seconds)


@torch.no_grad()
def rebuilt_by_encoder(model: AutoencoderTransformer, X: np.ndarray) -> np.ndarray:
    """Images from the codes that the encoder gives, before they are refined."""
    module = model.module_
    scaled, _ = module.scaler(torch.from_numpy(X))
    raw = module.decoder(module.encoder(scaled))
    return module.scaler.unscale(module.output(raw)).numpy()


# Pictures, by section: models to draw, with their numbers of components.
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
        draw_rebuilt(section, run, X_test[:N_DRAWN], folder)
        return
    labels = family.digits(run, run.size.n_full).y_test
    # The first digit of each kind.
    draw_rebuilt(section, run, X_test[np.unique(labels, return_index=True)[1]], folder)
    draw_plane(run, X_test, labels, folder)


def draw_rebuilt(section: str, run: Run, X: np.ndarray, folder: Path) -> None:
    """Images in a row, and their reconstructions in rows below."""
    import matplotlib.pyplot as plt

    rows = {"original": X}
    for name, n_components in DRAWN[section]:
        progress(f"{section}, picture, {name}, {n_components} components")
        estimator, _ = reducer(section, name, n_components, run)
        rows[f"{name.split(',')[0]}, {n_components}"] = rebuilt(estimator, X)
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
    """Codes of two components, coloured by digit: PCA's and ours."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 5.5), layout="constrained")
    for ax, name in zip(axes, ("PCA", "skae, 784-1000-500-250"), strict=True):
        progress(f"hinton, picture, {name}, 2 components")
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
    say(f"The picture is in {path}")


# Vincent et al.

PIXELS = "pixels"
# By the code and the classifier that the paper comes nearest to.
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
    return {} if paper is None else {WRONG: paper}


@cache
def denoiser(code: str, run: Run) -> Fitted:
    """Fitted once, for both classifiers."""
    X = family.digits(run, run.size.n_part).X_train
    return timed(autoencoder(VINCENT[code], run, n_components=N_CODE), X)


def classification_error(code: str, classifier: str, run: Run) -> Iterator[Figure]:
    X, y, X_test, y_test = family.digits(run, run.size.n_part)
    seconds = 0.0
    if code != PIXELS:
        denoising, seconds = denoiser(code, run)
        X, X_test = denoising.transform(X), denoising.transform(X_test)
    model, more_seconds = timed(CLASSIFIERS[classifier](), X, y)
    wrong = 100 * float(np.mean(model.predict(X_test) != y_test))
    yield Figure(WRONG, wrong, seconds + more_seconds)


# Kingma & Welling


def variational(run: Run) -> Iterator[Figure]:
    X = mnist(run).X
    model, seconds = timed(autoencoder(KINGMA, run, n_components=family.N_LATENT), X)
    module = model.module_
    yield from bounds(module.encoder, module.decoder, run, seconds)
    yield Figure("active units", float(model.active_units_.sum()), seconds)


def by_hand(run: Run) -> Iterator[Figure]:
    """The model of PyTorch's examples, 784-400-20, for as many epochs as ours."""
    n_epochs = run.size.n_epochs or KINGMA["max_epochs"]
    torch.manual_seed(run.seed)
    model = family.VAE()
    began = time.perf_counter()
    family.train_by_hand(model, mnist(run).X, family.VAE.loss, 128, n_epochs)
    seconds = time.perf_counter() - began
    yield from bounds(model.encoder, model.decoder, run, seconds)


def bounds(
    encoder: torch.nn.Module, decoder: torch.nn.Module, run: Run, seconds: float
) -> Iterator[Figure]:
    """Of the test rows, and of as many training rows."""
    X, X_test = mnist(run)
    for what, rows in (("test", X_test), ("training", X[: len(X_test)])):
        bound = family.negative_elbo(encoder, decoder, rows)
        yield Figure(f"negative ELBO in nats per {what} image", bound, seconds)


# van den Oord et al.

KMEANS = {
    "k-means of PCA codes": "axes",
    "k-means of bands of pixels": "bands",
    "PCA, 16 bits a component": "halves",
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
    # By bits, ours first: both lists are in the order of the bits.
    n = len(KMEANS)
    return [m for i, own in enumerate(ours) for m in (own, *theirs[n * i : n * i + n])]


def vector_quantized(bits: int, run: Run) -> Iterator[Figure]:
    X, X_test = mnist(run)
    model, seconds = timed(autoencoder(OORD[bits], run), X)
    n_groups = model.quantize(X_test[:1]).shape[1]
    taken = n_groups * np.log2(model.bottleneck.n_codes)
    if round(taken, 6) != bits:
        raise ValueError(f"OORD[{bits}] takes {taken:g} bits per image.")
    error = error_per_image(X_test, model.reconstruct(X_test))
    yield Figure(TEST_ERROR, error, seconds)
    error = error_per_image(X, model.reconstruct(X))
    yield Figure(TRAIN_ERROR, error, seconds)
    yield Figure("perplexity", float(model.perplexity_.min()), seconds)


def baseline(kind: str, bits: int, run: Run) -> Iterator[Figure]:
    """What takes as many bits without a network."""
    X, X_test = mnist(run)
    began = time.perf_counter()
    with warnings.catch_warnings():
        # Bands at the edge of the images have fewer distinct rows than entries.
        warnings.simplefilter("ignore", ConvergenceWarning)
        if kind == "halves":
            X_hat = half_precision(X, X_test, bits // BITS_PER_COMPONENT)
        elif kind == "axes":
            X_hat = axes_quantized(X, X_test, bits // BITS_PER_GROUP, run)
        else:
            # In as equal parts as 784 pixels allow.
            bands = np.array_split(np.arange(N_PIXELS), bits // BITS_PER_GROUP)
            X_hat = family.product_quantized(X, X_test, bands, run.seed)
    seconds = time.perf_counter() - began
    yield Figure(TEST_ERROR, error_per_image(X_test, X_hat), seconds)


def half_precision(X: np.ndarray, X_test: np.ndarray, n_components: int) -> np.ndarray:
    pca = PCA(n_components, svd_solver="covariance_eigh").fit(X)
    Z = pca.transform(X_test).astype(np.float16)
    return pca.inverse_transform(Z.astype(X.dtype))


def axes_quantized(
    X: np.ndarray, X_test: np.ndarray, n_groups: int, run: Run
) -> np.ndarray:
    """Product quantization of as many axes as suit held-out training rows."""
    X_part, X_valid = family.hold_out(X[: run.size.n_choice])

    def validation_error(n_axes: int) -> float:
        X_hat = family.axes_quantized(X_part, X_valid, n_axes, n_groups, run.seed)
        return error_per_image(X_valid, X_hat)

    # Beyond half the pixels there is hardly a variance left.
    numbers = [n * n_groups for n in family.AXES_PER_GROUP]
    n_axes = min((n for n in numbers if n <= N_PIXELS // 2), key=validation_error)
    return family.axes_quantized(X, X_test, n_axes, n_groups, run.seed)


SECTIONS: dict[str, list[Model]] = {
    "hinton": reducers("hinton"),
    "curves": reducers("curves"),
    "vincent": classifiers(),
    "kingma": [
        Model("skae", (family.N_LATENT, KINGMA), variational, {}),
        Model("PyTorch by hand, 784-400", KINGMA["max_epochs"], by_hand, {}),
    ],
    "oord": quantizers(),
}


if __name__ == "__main__":
    main()
