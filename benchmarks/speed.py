"""Print how fast the package trains and predicts, beside what its users have now.

- small: 20-64-32-8-32-64-20 on 10,000 rows, batches of 64, 20 epochs, beside PyOD's
  AutoEncoder, skorch, scikit-learn's MLPRegressor, a loop over a DataLoader, a loop
  over whole batches with the fused optimizer ("best eager"), and that loop through
  `torch.compile`;
- mnist: the same for 784-128-64-12-64-128-784, 60,000 images, batches of 128;
- quality: seconds until the defaults reach the held-out error that PyOD's
  AutoEncoder has when its own defaults are through;
- predict: throughput and memory of `transform` and `score_samples` on a million
  rows, and the time of one row;
- growth: time per row and epoch from 10,000 to 2,000,000 rows, memory beside the
  table's own, and a memory map larger than the memory that is allowed;
- search: `GridSearchCV` over six candidates with one and with two processes;
- variants: every kind of autoencoder beside a loop written by hand for it;
- device: the same steps on a GPU (with `--device cuda`).

Times are wall times of `fit`, medians over `--repeats`, all models in turns, and
each is shown as a multiple of ours. From the repository root, with the package
installed::

    python benchmarks/speed.py --data DIR

where DIR holds mnist.npz (arrays X_train and X_test; images in uint8) and
adbench/pendigits.npz (array X) [1]_; without them the digits of scikit-learn take
their place, and it says so. PyOD is left out where it is not installed.

References
----------
.. [1] Han, S., Hu, X., Huang, H., Jiang, M., & Zhao, Y. (2022). ADBench: Anomaly
   detection benchmark. NeurIPS 35.
"""

from __future__ import annotations

import argparse
import copy
import math
import platform
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sklearn
import skorch
import torch
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetRegressor
from skorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional

from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae.bottlenecks import Quantized
from skae.networks import MLP, Conv

try:
    from pyod.models.auto_encoder import AutoEncoder
except ImportError:
    AutoEncoder = None

SIDE = 28
N_PIXELS = SIDE**2
LEARNING_RATE = 1e-3


class Task(NamedTuple):
    """A network to be trained.

    Attributes
    ----------
    X : ndarray of shape (n_samples, n_features), float32
    widths : tuple of int
        Of the encoder's layers, the code last.
    batch_size, n_epochs : int
    """

    X: np.ndarray
    widths: tuple[int, ...]
    batch_size: int
    n_epochs: int

    @property
    def n_steps(self) -> int:
        return self.n_epochs * math.ceil(len(self.X) / self.batch_size)

    def settings(self) -> dict:
        """Settings that make ours train as the loops by hand do."""
        return {
            "n_components": self.widths[-1],
            "network": MLP(self.widths[:-1], activation="relu"),
            "init": "random",
            "scale": None,
            "batch_size": self.batch_size,
            "max_epochs": self.n_epochs,
            "learning_rate": LEARNING_RATE,
            "weight_decay": 0.0,
            "early_stopping": False,
            "random_state": 0,
        }

    def network(self) -> nn.Module:
        """The same network by hand."""
        widths = (self.X.shape[1], *self.widths)
        return nn.Sequential(stack(widths), stack(widths[::-1]))


class Options(NamedTuple):
    """What was asked for on the command line."""

    folder: Path | None
    repeats: int
    threads: tuple[int, ...]
    device: str
    quick: bool


def main() -> None:
    arguments = parse_arguments()
    options = Options(
        arguments.data,
        arguments.repeats,
        tuple(arguments.threads),
        arguments.device,
        arguments.quick,
    )
    say(versions())
    if options.quick:
        say("--quick: a smoke test on few rows; its figures mean nothing.")
    if AutoEncoder is None:
        say("PyOD is not installed: it is left out.")
    torch.optim.Adam(nn.Linear(1, 1).parameters())  # the first one imports for seconds
    for name in arguments.only:
        say()
        SECTIONS[name](options)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="folder of mnist.npz and adbench/")
    parser.add_argument(
        "--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS)
    )
    parser.add_argument("--repeats", type=int, default=5, help="fits of each model")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--device", default="cpu", help="of the section device")
    parser.add_argument("--quick", action="store_true", help="few rows: a smoke test")
    return parser.parse_args()


def say(line: str = "") -> None:
    print(line, flush=True)


def versions() -> str:
    modules = (np, sklearn, skorch, torch)
    found = ", ".join(f"{module.__name__} {module.__version__}" for module in modules)
    return f"Python {platform.python_version()}, {found}"


def median_seconds(
    models: dict[str, Callable[[], object]], repeats: int
) -> dict[str, float]:
    """Median wall time of each model, all of them in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats):
        for name, run in models.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(values)) for name, values in seconds.items()}


# Data


def small_table(n_samples: int, n_features: int = 20, seed: int = 0) -> np.ndarray:
    """Rows near a curved surface of five dimensions, in float32."""
    rng = np.random.default_rng(seed)
    Z = rng.standard_normal((n_samples, 5), dtype=np.float32)
    W = rng.standard_normal((5, n_features), dtype=np.float32)
    X = np.tanh(Z @ W)
    X += 0.1 * rng.standard_normal(X.shape, dtype=np.float32)
    return X


def images(options: Options) -> np.ndarray:
    """MNIST in [0, 1], or as many rows of small digits blown up to its size."""
    n_images = 2_000 if options.quick else 60_000
    path = None if options.folder is None else options.folder / "mnist.npz"
    if path is not None and path.exists():
        with np.load(path) as file:
            pixels = file["X_train"][:n_images].reshape(-1, N_PIXELS)
        return pixels.astype(np.float32) / 255
    say("MISSING: mnist.npz (give --data DIR). scikit-learn's digits, blown up and")
    say("repeated, take its place; times mean the same, errors do not.")
    small = load_digits().images.astype(np.float32) / 16
    large = np.kron(small, np.ones((1, 3, 3), np.float32))
    padded = np.pad(large, ((0, 0), (2, 2), (2, 2))).reshape(-1, N_PIXELS)
    return np.resize(padded, (n_images, N_PIXELS))


# 1 and 2. The same network by everyone


def print_small(options: Options) -> None:
    n_epochs = 2 if options.quick else 20
    task = Task(small_table(10_000), (64, 32, 8), 64, n_epochs)
    print_task("small", task, options)


def print_mnist(options: Options) -> None:
    n_epochs = 1 if options.quick else 5
    print_task("mnist", Task(images(options), (128, 64, 12), 128, n_epochs), options)


def print_task(name: str, task: Task, options: Options) -> None:
    n_samples, n_features = task.X.shape
    layers = "-".join(map(str, (n_features, *task.widths)))
    for n_threads in options.threads:
        torch.set_num_threads(n_threads)
        say(
            f"{name}: {layers} and back, {n_samples} rows, batch {task.batch_size}, "
            f"{task.n_epochs} epochs, {n_threads} thread(s)"
        )
        losses: dict[str, float] = {}
        models = contestants(task, n_threads, losses)
        seconds = median_seconds(models, options.repeats)
        compiled = "the same through torch.compile"
        ours = seconds["ours"]
        say(f"  {'':44}{'seconds':>9}{'us/step':>9}{'/ ours':>8}{'last loss':>11}")
        for model, value in seconds.items():
            per_step = value / task.n_steps * 1e6
            say(
                f"  {model:44}{value:9.3f}{per_step:9.0f}{value / ours:8.2f}"
                f"{losses[model]:11.5f}"
            )
        if compiled in seconds:
            say("  (torch.compile: without the seconds of its first call)")
        say(f"  {agreement(task)}")


def contestants(
    task: Task, n_threads: int, losses: dict[str, float]
) -> dict[str, Callable[[], None]]:
    """What fits the task, by name; each leaves its last epoch's loss in `losses`."""
    X = task.X
    compiled = torch.compile(copy.deepcopy(task.network()), dynamic=False)

    def ours(**settings) -> Callable[[], float]:
        settings = {**task.settings(), "n_threads": n_threads, **settings}
        return lambda: AutoencoderTransformer(**settings).fit(X).loss_curve_[-1]

    models: dict[str, Callable[[], float]] = {
        "ours": ours(),
        "ours, n_threads='auto'": ours(n_threads="auto"),
        "ours, compile=False": ours(compile=False),
        "best eager: whole batches, fused Adam": lambda: best_eager(task),
        "the same through torch.compile": lambda: best_eager(task, compiled),
        "loop over a DataLoader": lambda: with_loader(task),
        "scikit-learn MLPRegressor": lambda: with_sklearn(task),
        "skorch": lambda: with_skorch(task),
    }
    if AutoEncoder is not None:
        models["PyOD AutoEncoder"] = lambda: with_pyod(task)
    # What is compiled is compiled before the clock runs.
    best_eager(task._replace(X=X[: 3 * task.batch_size + 5], n_epochs=2), compiled)
    last = len(X) % task.batch_size
    best_eager(task._replace(X=X[: task.batch_size + last], n_epochs=2), compiled)

    def keeping(name: str, run: Callable[[], float]) -> Callable[[], None]:
        def keep() -> None:
            losses[name] = run()

        return keep

    return {name: keeping(name, run) for name, run in models.items()}


def stack(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def best_eager(task: Task, network: nn.Module | None = None) -> float:
    """The fastest loop that one writes by hand without compiling anything."""
    network = task.network() if network is None else network
    X = torch.from_numpy(task.X)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)
    for _ in range(task.n_epochs):
        losses = []
        for where in torch.randperm(len(X)).split(task.batch_size):
            batch = X[where]
            optimizer.zero_grad()
            loss = functional.mse_loss(network(batch), batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def with_loader(task: Task) -> float:
    """The loop of PyTorch's tutorials."""
    network = task.network()
    rows = torch.utils.data.TensorDataset(torch.from_numpy(task.X))
    loader = torch.utils.data.DataLoader(rows, task.batch_size, shuffle=True)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    for _ in range(task.n_epochs):
        total = 0.0
        for (batch,) in loader:
            optimizer.zero_grad()
            loss = functional.mse_loss(network(batch), batch)
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total / len(loader)


def with_sklearn(task: Task) -> float:
    sizes = (*task.widths, *task.widths[-2::-1])
    model = MLPRegressor(
        sizes,
        batch_size=task.batch_size,
        max_iter=task.n_epochs,
        learning_rate_init=LEARNING_RATE,
        alpha=0.0,
        n_iter_no_change=task.n_epochs + 1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(task.X, task.X)
    return 2 * model.loss_  # it halves the squared error


def with_skorch(task: Task) -> float:
    net = NeuralNetRegressor(
        task.network(),
        optimizer=torch.optim.Adam,
        lr=LEARNING_RATE,
        batch_size=task.batch_size,
        max_epochs=task.n_epochs,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
    )
    net.fit(task.X, task.X)
    return net.history[-1, "train_loss"]


def with_pyod(task: Task) -> float:
    model = AutoEncoder(
        hidden_neuron_list=list(task.widths),
        epoch_num=task.n_epochs,
        batch_size=task.batch_size,
        lr=LEARNING_RATE,
        batch_norm=False,
        dropout_rate=0.0,
        optimizer_params={},
        preprocessing=False,
        verbose=0,
    )
    model.fit(task.X)
    X = torch.from_numpy(task.X)
    with torch.inference_mode():
        return float(functional.mse_loss(model.model(X), X))


class Watch(Callback):
    """Keeps the first weights, and the batches and learning rates of all steps."""

    def on_train_begin(self, net, **kwargs) -> None:
        module = net.module_
        self.network = copy.deepcopy(nn.Sequential(module.encoder, module.decoder))
        self.epochs: list[list] = []

    def on_epoch_begin(self, net, **kwargs) -> None:
        self.epochs.append([])

    def on_batch_end(self, net, batch, training, **kwargs) -> None:
        rate = net.optimizer_.param_groups[0]["lr"]
        self.epochs[-1].append((batch[0].clone(), rate))


def agreement(task: Task) -> str:
    """How far our losses are from those of an eager loop over the same batches."""
    n_epochs = min(task.n_epochs, 20 if task.X.shape[1] < 100 else 1)
    settings = {**task.settings(), "max_epochs": n_epochs}
    plain = AutoencoderTransformer(**settings).fit(task.X)
    watched = AutoencoderTransformer(**settings, callbacks=[("watch", Watch())])
    watch = dict(watched.fit(task.X).net_callbacks_)["watch"]
    optimizer = torch.optim.Adam(watch.network.parameters(), fused=True)
    curve = []
    for epoch in watch.epochs:
        total = n_rows = 0.0
        for batch, rate in epoch:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            loss = functional.mse_loss(watch.network(batch), batch)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
            n_rows += len(batch)
        curve.append(total / n_rows)
    apart = np.max(np.abs(np.array(plain.loss_curve_) / curve - 1))
    return (
        f"from the same weights, over the same batches, {n_epochs} epochs: largest "
        f"relative difference of the loss curve to an eager loop's {apart:.1e}"
    )
