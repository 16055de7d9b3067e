"""Measure the speed of training and prediction and compare it with other packages.

- small: 20-64-32-8-32-64-20 on 10,000 rows, batches of 64, 20 epochs, compared with
  PyOD's AutoEncoder, skorch, scikit-learn's MLPRegressor, a loop over a DataLoader, a
  loop over sliced batches with the fused optimizer ("best eager"), and that loop
  through `torch.compile`;
- mnist: the same for 784-128-64-12-64-128-784, 60,000 images, batches of 128;
- quality: seconds until the defaults reach the held-out error of PyOD's AutoEncoder
  after a fit with its defaults;
- predict: throughput and memory of `transform` and `score_samples` on a million
  rows, and the same and the time of one row with the defaults, beside scikit-learn's
  PCA and IsolationForest;
- growth: time per row and epoch from 10,000 to 2,000,000 rows, peak memory relative to
  the size of the data, and a memory map larger than the memory limit;
- sparse: processor time of an epoch, of `transform` and of `score_samples`, and peak
  memory, on sparse tables of 20,000 and 50,000 features, compared with scikit-learn's
  TruncatedSVD and PCA;
- search: `GridSearchCV` over six widths of the code on the digits, five folds, two
  processes, beside the same with PCA and with a hand-written loop;
- profile: the functions that a recorded step of the first two networks calls, and the
  time that each takes;
- products: times of matrix products by each library, and which one is chosen;
- variants: every variant of the autoencoder, compared with a hand-written loop;
- defaults_large: default fits of wide codes, of few wide rows and of a million rows,
  compared with PCA and a hand-written loop, in processor time;
- device: training steps, predictions and matrix products on a GPU (`--device cuda`).

Other times are wall times of `fit`, medians over `--repeats`, alternating between the
models, and are also given relative to skae. From the repository root, with the package
installed::

    python benchmarks/speed.py --data DIR

where DIR contains mnist.npz (arrays X_train and X_test; images in uint8) and
adbench/28_pendigits.npz (array X) [1]_; without them the digits of scikit-learn are
used instead, with a message. PyOD is skipped if it is not installed.

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
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetRegressor
from skorch.callbacks import Callback
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional

from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae._defaults import auto_hidden_layer_sizes
from skae._row_scores import row_error
from skae.bottlenecks import Quantized
from skae.engine import products
from skae.engine.step import Step
from skae.engine.tape import Tape
from skae.networks import MLP, Conv

try:
    from pyod.models.auto_encoder import AutoEncoder
except ImportError:
    AutoEncoder = None

SIDE = 28
N_PIXELS = SIDE**2
LEARNING_RATE = 1e-3


class Task(NamedTuple):
    """Data, network and batches of a training.

    Attributes
    ----------
    X : ndarray of shape (n_samples, n_features), float32
    widths : tuple of int
        Widths of the encoder's layers, including the code.
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
        """Return settings with which skae trains as the hand-written loops do."""
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
        """Build the same network in plain PyTorch."""
        widths = (self.X.shape[1], *self.widths)
        return nn.Sequential(stack(widths), stack(widths[::-1]))


class Options(NamedTuple):
    """Options of the command line."""

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
    report(versions())
    report(processor())
    if options.quick:
        report("--quick: a smoke test on few rows; ignore its results.")
    if AutoEncoder is None:
        report("PyOD is not installed; it is skipped.")
    torch.optim.Adam(nn.Linear(1, 1).parameters())  # triggers slow imports
    for name in arguments.only:
        report()
        SECTIONS[name](options)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, help="folder that contains mnist.npz and adbench/"
    )
    parser.add_argument(
        "--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS)
    )
    parser.add_argument("--repeats", type=int, default=5, help="fits of each model")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--device", default="cpu", help="device of the section device")
    parser.add_argument("--quick", action="store_true", help="few rows: a smoke test")
    return parser.parse_args()


def report(line: str = "", end: str = "\n") -> None:
    print(line, end=end, flush=True)


def versions() -> str:
    modules = (np, sklearn, skorch, torch)
    names = ", ".join(f"{module.__name__} {module.__version__}" for module in modules)
    return f"Python {platform.python_version()}, {names}"


def processor() -> str:
    has = torch.cpu.get_capabilities()
    return (
        f"{has.get('cpu_name', platform.machine())}, {torch.get_num_threads()} "
        f"thread(s) of PyTorch, rules of products for {products.processor()!r}"
    )


def median_seconds(
    models: dict[str, Callable[[], object]], repeats: int
) -> dict[str, float]:
    """Measure the median wall time of each model, alternating between the models."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats):
        for name, run in models.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(values)) for name, values in seconds.items()}


# Data


def small_table(n_samples: int, n_features: int = 20, seed: int = 0) -> np.ndarray:
    """Generate rows near a five-dimensional nonlinear surface, in float32."""
    rng = np.random.default_rng(seed)
    Z = rng.standard_normal((n_samples, 5), dtype=np.float32)
    W = rng.standard_normal((5, n_features), dtype=np.float32)
    X = np.tanh(Z @ W)
    X += 0.1 * rng.standard_normal(X.shape, dtype=np.float32)
    return X


def images(options: Options) -> np.ndarray:
    """Return MNIST in [0, 1], or as many enlarged digits of scikit-learn."""
    n_images = 2_000 if options.quick else 60_000
    path = None if options.folder is None else options.folder / "mnist.npz"
    if path is not None and path.exists():
        with np.load(path) as file:
            pixels = file["X_train"][:n_images].reshape(-1, N_PIXELS)
        return pixels.astype(np.float32) / 255
    report("MISSING: mnist.npz (give --data DIR). scikit-learn's digits, enlarged and")
    report("repeated, are used instead; times are comparable, errors are not.")
    small = load_digits().images.astype(np.float32) / 16
    large = np.kron(small, np.ones((1, 3, 3), np.float32))
    padded = np.pad(large, ((0, 0), (2, 2), (2, 2))).reshape(-1, N_PIXELS)
    return np.resize(padded, (n_images, N_PIXELS))


# 1 and 2. The same network in all packages


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
        report(
            f"{name}: {layers} and back, {n_samples} rows, batch {task.batch_size}, "
            f"{task.n_epochs} epochs, {n_threads} thread(s)"
        )
        losses: dict[str, float] = {}
        models = build_models(task, n_threads, losses)
        seconds = median_seconds(models, options.repeats)
        compiled = "the same through torch.compile"
        ours = seconds["skae"]
        report(f"  {'':44}{'seconds':>9}{'us/step':>9}{'ratio':>8}{'last loss':>11}")
        for model, value in seconds.items():
            per_step = value / task.n_steps * 1e6
            report(
                f"  {model:44}{value:9.3f}{per_step:9.0f}{value / ours:8.2f}"
                f"{losses[model]:11.5f}"
            )
        if compiled in seconds:
            report("  (torch.compile: without the time of compilation)")
        report(f"  {loss_differences(task)}")


def build_models(
    task: Task, n_threads: int, losses: dict[str, float]
) -> dict[str, Callable[[], None]]:
    """Return functions that train a model and store its final loss in `losses`."""
    X = task.X
    compiled = torch.compile(copy.deepcopy(task.network()), dynamic=False)

    def train_skae(**settings) -> Callable[[], float]:
        settings = {**task.settings(), "n_threads": n_threads, **settings}
        return lambda: AutoencoderTransformer(**settings).fit(X).loss_curve_[-1]

    models: dict[str, Callable[[], float]] = {
        "skae": train_skae(),
        "skae, n_threads='auto'": train_skae(n_threads="auto"),
        "skae, compile=False": train_skae(compile=False),
        "best eager: sliced batches, fused Adam": lambda: best_eager(task),
        "the same through torch.compile": lambda: best_eager(task, compiled),
        "loop over a DataLoader": lambda: with_loader(task),
        "scikit-learn MLPRegressor": lambda: with_sklearn(task),
        "skorch": lambda: with_skorch(task),
    }
    if AutoEncoder is not None:
        models["PyOD AutoEncoder"] = lambda: with_pyod(task)
    # Compile for both batch sizes before the times are measured.
    best_eager(task._replace(X=X[: 3 * task.batch_size + 5], n_epochs=2), compiled)
    last = len(X) % task.batch_size
    best_eager(task._replace(X=X[: task.batch_size + last], n_epochs=2), compiled)

    def store_loss(name: str, train: Callable[[], float]) -> Callable[[], None]:
        def run() -> None:
            losses[name] = train()

        return run

    return {name: store_loss(name, train) for name, train in models.items()}


def stack(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def best_eager(
    task: Task, network: nn.Module | None = None, device: str = "cpu"
) -> float:
    """Train by the fastest hand-written loop without compilation."""
    network = task.network() if network is None else network
    network.to(device)
    X = torch.from_numpy(task.X).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)
    for _ in range(task.n_epochs):
        losses = []
        for where in torch.randperm(len(X), device=device).split(task.batch_size):
            batch = X[where]
            optimizer.zero_grad()
            loss = functional.mse_loss(network(batch), batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def with_loader(task: Task) -> float:
    """Train by the loop of PyTorch's tutorials."""
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
        hidden_layer_sizes=sizes,
        batch_size=task.batch_size,
        max_iter=task.n_epochs,
        learning_rate_init=LEARNING_RATE,
        alpha=0.0,
        n_iter_no_change=task.n_epochs + 1,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(task.X, task.X)
    return 2 * model.loss_  # its loss is half the squared error


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


class StepRecorder(Callback):
    """Record the initial weights, and the batches and learning rates of all steps."""

    def __deepcopy__(self, memo: dict) -> StepRecorder:
        return self  # estimators copy callbacks, but the records are read after fit

    def on_train_begin(self, net, **kwargs) -> None:
        module = net.module_
        self.network = copy.deepcopy(nn.Sequential(module.encoder, module.decoder))
        self.epochs: list[list] = []

    def on_epoch_begin(self, net, **kwargs) -> None:
        self.epochs.append([])

    def on_batch_end(self, net, batch, training, **kwargs) -> None:
        rate = net.optimizer_.param_groups[0]["lr"]
        self.epochs[-1].append((batch[0].clone(), rate))


def loss_differences(task: Task) -> str:
    """Compare the losses of skae with those of eager loops over the same batches."""
    n_epochs = task.n_epochs if task.X.shape[1] < 100 else 1
    settings = {**task.settings(), "max_epochs": n_epochs}
    plain = AutoencoderTransformer(**settings).fit(task.X)
    recorder = StepRecorder()
    AutoencoderTransformer(**settings, callbacks=[recorder]).fit(task.X)
    by_rows, at_once = (eager_curve(recorder, loss) for loss in (row_mean, plain_mean))
    return (
        "largest relative difference of loss curves with the same weights and "
        f"batches, {n_epochs} epochs:\n"
        f"    skae and an eager loop {max_difference(plain.loss_curve_, by_rows):.1e}; "
        "skae and a loop with another order of summation "
        f"{max_difference(plain.loss_curve_, at_once):.1e}; "
        f"the two loops {max_difference(by_rows, at_once):.1e}"
    )


def max_difference(one: list[float], other: list[float]) -> float:
    return float(np.max(np.abs(np.divide(one, other) - 1)))


def row_mean(network: nn.Module, X: Tensor) -> Tensor:
    """Compute the mean over each row's entries, then over the rows, as skae does."""
    errors = functional.mse_loss(network(X), X, reduction="none")
    return (errors.sum(dim=1) / X.shape[1]).sum() / len(X)


def plain_mean(network: nn.Module, X: Tensor) -> Tensor:
    return functional.mse_loss(network(X), X)


def eager_curve(recorder: StepRecorder, loss_of: Callable) -> list[float]:
    """Return the losses by epoch of an eager loop over the recorded batches."""
    network = copy.deepcopy(recorder.network)
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    curve = []
    for epoch in recorder.epochs:
        losses = []
        for batch, rate in epoch:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            loss = loss_of(network, batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curve.append(np.average(losses, weights=[len(batch) for batch, _ in epoch]))
    return curve


# 3. Time to a target error


class TimeToTarget(Callback):
    """Record the time at which the error of held-out rows reaches a target."""

    def __init__(self, X: np.ndarray, target: float):
        self.X = torch.from_numpy(X)
        self.target = target
        self.seconds = math.nan
        self.error = math.inf

    def __deepcopy__(self, memo: dict) -> TimeToTarget:
        return self

    def start(self) -> TimeToTarget:
        self.began = time.perf_counter()
        return self

    def on_train_begin(self, net, **kwargs) -> None:
        self.evaluate(net)

    def on_epoch_end(self, net, **kwargs) -> None:
        self.evaluate(net)

    def evaluate(self, net) -> None:
        now = time.perf_counter()
        module = net.module_.eval()
        with torch.inference_mode():
            error = float(functional.mse_loss(module(self.X), self.X))
        module.train()
        self.error = min(self.error, error)
        if error <= self.target and math.isnan(self.seconds):
            self.seconds = now - self.began
        self.began += time.perf_counter() - now  # exclude the evaluation


def print_quality(options: Options) -> None:
    if AutoEncoder is None:
        report("quality: MISSING, PyOD is not installed.")
        return
    torch.set_num_threads(1)
    report("quality: both with defaults, code of 32 as in PyOD, one thread;")
    report("standardised columns, a fifth of the rows held out")
    report(
        f"  {'':11}{'rows':>7}{'PyOD: s':>9}{'error':>8}{'skae: s to it':>15}"
        f"{'ratio':>8}{'skae random: s':>16}{'ratio':>8}{'skae whole fit: s':>20}"
        f"{'error':>8}"
    )
    for name, X in quality_tables(options):
        X_train, X_test = train_test_split(X, test_size=0.2, random_state=0)
        scaler = StandardScaler().fit(X_train)
        X_train = scaler.transform(X_train).astype(np.float32)
        X_test = scaler.transform(X_test).astype(np.float32)
        began = time.perf_counter()
        pyod = AutoEncoder(preprocessing=False, verbose=0).fit(X_train)
        pyod_seconds = time.perf_counter() - began
        test = torch.from_numpy(X_test)
        with torch.inference_mode():
            target = float(functional.mse_loss(pyod.model.eval()(test), test))
        reached, total = time_to(target, X_train, X_test, "auto")
        random, _ = time_to(target, X_train, X_test, "random")
        report(
            f"  {name:11}{len(X_train):7d}{pyod_seconds:9.1f}{target:8.4f}"
            f"{reached.seconds:15.3f}{pyod_seconds / reached.seconds:8.1f}"
            f"{random.seconds:16.3f}{pyod_seconds / random.seconds:8.1f}"
            f"{total:20.1f}{reached.error:8.4f}"
        )


def time_to(
    target: float, X: np.ndarray, X_test: np.ndarray, init: str
) -> tuple[TimeToTarget, float]:
    """Fit with defaults; return the time to the target and that of the whole fit."""
    reached = TimeToTarget(X_test, target)
    model = AutoencoderTransformer(32, init=init, random_state=0, callbacks=[reached])
    reached.start()
    began = time.perf_counter()
    model.fit(X)
    return reached, time.perf_counter() - began


def quality_tables(options: Options) -> Iterator[tuple[str, np.ndarray]]:
    yield "digits", load_digits().data
    path = None
    if options.folder is not None:
        path = options.folder / "adbench" / "28_pendigits.npz"
    if path is not None and path.exists():
        with np.load(path) as file:
            yield "pendigits", file["X"].astype(np.float64)
    else:
        report("  MISSING: adbench/28_pendigits.npz (give --data DIR).")
    yield "mnist", images(options)


# 4 and 5. Predictions


def print_predict(options: Options) -> None:
    torch.set_num_threads(1)
    n_rows = 50_000 if options.quick else 1_000_000
    X = small_table(n_rows)
    ae = AutoencoderTransformer(
        8, hidden_layer_sizes=(64, 32), max_epochs=2, random_state=0
    ).fit(X[:1000])
    module, rows = ae.module_, torch.from_numpy(X)

    def in_batches(function: Callable[[Tensor], Tensor], size: int) -> Callable:
        def run() -> None:
            with torch.inference_mode():
                for batch in rows.split(size):
                    function(batch)

        return run

    report(f"predict: 20-64-32-8, {n_rows} rows in float32, one thread")
    layers = {
        "transform": module.encoder,
        "score_samples": lambda X: module.decoder(module.encoder(X)),
    }
    modules = {"transform": module.encode, "score_samples": module}
    for method in ("transform", "score_samples"):
        models = {"skae": lambda m=method: getattr(ae, m)(X)}
        for size in (10_000, 100_000):
            models[f"module, {size}"] = in_batches(modules[method], size)
            models[f"layers, {size}"] = in_batches(layers[method], size)
        seconds = median_seconds(models, options.repeats)
        ours = seconds.pop("skae")
        fastest = {
            kind: min(s for name, s in seconds.items() if name.startswith(kind))
            for kind in ("module", "layers")
        }
        report(
            f"  {method:14}{ours:7.3f} s; throughput relative to the PyTorch module "
            f"{fastest['module'] / ours:.2f}, to its layers without scaling and "
            f"validation {fastest['layers'] / ours:.2f}"
        )
    for method in ("transform", "score_samples"):
        report(f"  {method:14}{run_script(PREDICTION_MEMORY, n_rows, method)}")
    print_row(options)


def print_row(options: Options) -> None:
    """Compare predictions of default models with scikit-learn's, in processor time."""
    n_rows = 50_000 if options.quick else 1_000_000
    n_calls = 20 if options.quick else 1000
    settings = {"max_epochs": 2} if options.quick else {}
    X = small_table(n_rows).astype(np.float64)
    ae = AutoencoderTransformer(random_state=0, **settings).fit(X[:4000])
    detector = AutoencoderOutlierDetector(random_state=0, **settings).fit(X[:4000])
    pca, forest = PCA(2).fit(X[:4000]), IsolationForest(random_state=0).fit(X[:4000])
    row, code = X[:1], ae.transform(X[:1])
    report(f"predict: defaults, 20 columns in float64, {n_rows} rows and one row")
    report("  processor time of all rows (one call) and of one row (median of calls)")
    groups: list[tuple[str, dict[str, tuple[Callable, np.ndarray]]]] = [
        (
            "PCA.transform",
            {
                "PCA.transform": (pca.transform, row),
                "transform": (ae.transform, row),
                "inverse_transform": (ae.inverse_transform, code),
                "reconstruct": (ae.reconstruct, row),
            },
        ),
        (
            "IsolationForest.score_samples",
            {
                "IsolationForest.score_samples": (forest.score_samples, row),
                "score_samples": (detector.score_samples, row),
                "decision_function": (detector.decision_function, row),
                "predict": (detector.predict, row),
                "feature_contributions": (detector.feature_contributions, row),
            },
        ),
    ]
    for peer, methods in groups:
        ones = processor_times(methods, n_calls)
        for name, (method, example) in methods.items():
            rows = np.resize(X, (n_rows, example.shape[1]))
            began = time.process_time()
            method(rows)
            seconds = time.process_time() - began
            if name == peer:
                peer_seconds = seconds
            report(
                f"  {name:32}{seconds:8.2f} s{seconds / peer_seconds:9.1f}"
                f"{ones[name] * 1e6:9.0f} us{ones[name] / ones[peer]:8.1f}"
            )
        report(f"  (second and fourth column: relative to {peer})")


def processor_times(
    methods: dict[str, tuple[Callable, np.ndarray]], n_calls: int
) -> dict[str, float]:
    """Return the median processor time of each method for a row, in alternation."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(n_calls):
        for name, (method, row) in methods.items():
            began = time.process_time()
            method(row)
            times[name].append(time.process_time() - began)
    return {name: float(np.median(values)) for name, values in times.items()}


# 6. Growth


class EpochTimes(Callback):
    """Record the seconds of each epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __deepcopy__(self, memo: dict) -> EpochTimes:
        return self

    def on_epoch_begin(self, net, **kwargs) -> None:
        self.began = time.perf_counter()

    def on_epoch_end(self, net, **kwargs) -> None:
        self.seconds.append(time.perf_counter() - self.began)


def print_growth(options: Options) -> None:
    torch.set_num_threads(1)
    report("growth: 20-64-32-8, batch 128, float32, a tenth held out, one thread")
    report(f"  {'rows':>9}{'epochs':>8}{'us per row and epoch':>22}{'whole fit':>11}")
    sizes = (10_000, 20_000) if options.quick else (10_000, 100_000, 500_000, 2_000_000)
    for n_rows in sizes:
        n_epochs = max(3, min(30, 600_000 // n_rows))
        X, times = small_table(n_rows), EpochTimes()
        began = time.perf_counter()
        build_transformer(n_epochs, callbacks=[times]).fit(X)
        whole = (time.perf_counter() - began) / n_rows / n_epochs * 1e6
        median = np.median(times.seconds) / n_rows * 1e6
        report(f"  {n_rows:9d}{n_epochs:8d}{median:22.2f}{whole:11.2f}")
    n_rows = 100_000 if options.quick else 2_000_000
    report("growth: peak memory of data and fit, relative to the data")
    for estimator in ("AutoencoderTransformer", "AutoencoderOutlierDetector"):
        for shape in ((n_rows, 20), (n_rows // 20, 400)):
            output = run_script(FIT_MEMORY, *shape, estimator)
            report(f"  {estimator:28}{shape!s:16}{output}")
    n_rows = 100_000 if options.quick else 1_500_000
    with tempfile.TemporaryDirectory() as folder:
        output = run_script(MAPPED, Path(folder) / "table.npy", n_rows, 100)
    report(f"growth: {output}")


def build_transformer(n_epochs: int, **settings) -> AutoencoderTransformer:
    return AutoencoderTransformer(
        8,
        hidden_layer_sizes=(64, 32),
        batch_size=128,
        max_epochs=n_epochs,
        random_state=0,
        **settings,
    )


def run_script(script: str, *arguments: object) -> str:
    """Run a script in a separate process, to measure its memory; return its output."""
    if not Path("/proc/self/clear_refs").exists():
        return "MISSING: requires Linux's /proc"
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        return f"FAILED: {process.stderr.strip().splitlines()[-1]}"
    return process.stdout.strip()


MEMORY = """
import sys
import numpy as np
import torch
import skae

torch.set_num_threads(1)

def status(field):
    with open("/proc/self/status") as lines:
        values = [line.split()[1] for line in lines if line.startswith(field + ":")]
    return int(values[0]) * 1024

def peak_above(action):
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the peak
    action()
    return status("VmHWM") - before

def table(n_rows, n_features):
    X = np.empty((n_rows, n_features), dtype=np.float32)
    rng = np.random.default_rng(0)
    for block in np.array_split(X, 100):
        rng.standard_normal(out=block, dtype=np.float32)
    return X

def make(name="AutoencoderTransformer"):
    return getattr(skae, name)(
        8, hidden_layer_sizes=(64, 32), batch_size=128, max_epochs=1, random_state=0
    )
"""

FIT_MEMORY = (
    MEMORY
    + """
n_rows, n_features, name = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
make(name).fit(table(20_000, n_features))  # memory that the libraries keep
X = table(n_rows, n_features)
above = peak_above(lambda: make(name).fit(X))
print(f"{1 + above / X.nbytes:.3f} (data {X.nbytes / 2**20:.0f} MiB)")
"""
)

PREDICTION_MEMORY = (
    MEMORY
    + """
n_rows, method = int(sys.argv[1]), sys.argv[2]
X = table(n_rows, 20)
model = make().fit(X[:1000])
getattr(model, method)(X[:10_000])
above = peak_above(lambda: getattr(model, method)(X))
size = getattr(model, method)(X).nbytes
print(f"peak memory above input and output: {(above - size) / 2**20:.0f} MiB")
"""
)

MAPPED = (
    MEMORY
    + """
import resource

path, n_rows, n_features = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
X = np.lib.format.open_memmap(path, "w+", np.float32, (n_rows, n_features))
rng = np.random.default_rng(0)
for block in np.array_split(X, 100):
    rng.standard_normal(out=block, dtype=np.float32)
del X, block
make().fit(table(2000, n_features))
limit = status("VmData") + 128 * 2**20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
X = np.load(path, mmap_mode="r")
model = make().fit(X)
print(
    f"memory map of {X.nbytes / 2**20:.0f} MiB, limit of 128 MiB of memory: fitted, "
    f"explained variance of 1000 rows {model.score(X[:1000]):.3f}"
)
try:
    np.array(X)
except MemoryError:
    print("  (a copy of it raises MemoryError)")
"""
)


# 7. Sparse rows


SPARSE = """
import resource
import sys
import time
import warnings
import numpy as np
import torch
from scipy import sparse
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfTransformer
from skorch.callbacks import Callback
from skae import AutoencoderOutlierDetector, AutoencoderTransformer

torch.set_num_threads(1)
warnings.simplefilter("ignore", ConvergenceWarning)
model, n_rows, n_features, n_words = sys.argv[1], *map(int, sys.argv[2:])

class Clock(Callback):
    def on_epoch_begin(self, net, **kwargs):
        self.start = time.process_time()

    def on_epoch_end(self, net, **kwargs):
        seconds["epoch"] = time.process_time() - self.start

def timed(name, action):
    start = time.process_time()
    action()
    seconds[name] = time.process_time() - start

# Documents of 20 topics, each with its own distribution of words.
rng = np.random.default_rng(0)
topics = rng.dirichlet(np.full(n_features, 0.02), size=20).cumsum(axis=1)
topic = np.repeat(rng.integers(20, size=n_rows), n_words)
words = np.empty(n_rows * n_words, dtype=int)
for i, cumulative in enumerate(topics):
    u = rng.random(np.sum(topic == i))
    words[topic == i] = np.searchsorted(cumulative, u).clip(max=n_features - 1)
counts = np.ones(len(words)), (np.arange(n_rows).repeat(n_words), words)
X = TfidfTransformer().fit_transform(
    sparse.coo_array(counts, shape=(n_rows, n_features)).tocsr()
)
X_new = sparse.vstack([X] * 5).tocsr()
seconds = {}
common = dict(random_state=0, max_epochs=1, callbacks=[Clock()])
estimator = {
    "transformer": lambda: AutoencoderTransformer(2, **common),
    "detector": lambda: AutoencoderOutlierDetector(**common),
    "detector, squared error": lambda: AutoencoderOutlierDetector(
        loss="squared_error", error="loss", **common
    ),
    "TruncatedSVD": lambda: TruncatedSVD(2, random_state=0),
    "PCA": lambda: PCA(2, svd_solver="arpack", random_state=0),
}[model]()
timed("fit", lambda: estimator.fit(X))
if hasattr(estimator, "transform"):
    timed("transform", lambda: estimator.transform(X_new))
else:
    timed("score_samples", lambda: estimator.score_samples(X_new))
times = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(f"{times}, peak memory {peak:.2f} GiB")
"""


def print_sparse(options: Options) -> None:
    for n_rows, n_features, n_words, models in (
        (20_000, 20_000, 22, ("transformer", "TruncatedSVD", "PCA")),
        (2_000, 50_000, 52, ("detector", "detector, squared error")),
    ):
        if options.quick:
            n_rows //= 10
        report(
            f"sparse: {n_rows} x {n_features}, at most {n_words} entries per row; "
            f"predictions of {5 * n_rows} rows; processor time"
        )
        for model in models:
            result = run_script(SPARSE, model, n_rows, n_features, n_words)
            report(f"  {model:24}{result}")


# 8. Search


class LoopAutoencoder(TransformerMixin, BaseEstimator):
    """The network of the transformer's defaults, trained by a hand-written loop."""

    def __init__(
        self,
        n_components: int = 2,
        hidden: tuple[int, ...] = (256, 128, 64),
        batch_size: int = 64,
        n_epochs: int = 100,
    ):
        self.n_components = n_components
        self.hidden = hidden
        self.batch_size = batch_size
        self.n_epochs = n_epochs

    def fit(self, X, y=None):
        torch.set_num_threads(1)
        self.mean_, self.scale_ = X.mean(axis=0), np.sqrt(X.var(axis=0).mean())
        widths = (X.shape[1], *self.hidden, self.n_components)
        scaled = ((X - self.mean_) / self.scale_).astype(np.float32)
        task = Task(scaled, widths[1:], self.batch_size, self.n_epochs)
        self.network_ = nn.Sequential(
            *(
                nn.GELU() if isinstance(layer, nn.ReLU) else layer
                for half in task.network()
                for layer in half
            )
        )
        best_eager(task, self.network_)
        return self

    def score(self, X, y=None):
        scaled = ((X - self.mean_) / self.scale_).astype(np.float32)
        with torch.inference_mode():
            X_hat = self.network_(torch.from_numpy(scaled)).numpy()
        return 1 - np.square(scaled - X_hat).sum() / np.square(scaled).sum()


def print_search(options: Options) -> None:
    X = load_digits().data
    grid = {"n_components": [2, 3, 4, 6, 8, 12]}
    settings = {"max_epochs": 3} if options.quick else {}
    model = AutoencoderTransformer(random_state=0, **settings)
    # The loop has the network and the number of steps of one of the fits.
    fitted = clone(model).set_params(n_components=8).fit(X[: len(X) * 4 // 5])
    linear = [m for m in fitted.module_.encoder.modules() if isinstance(m, nn.Linear)]
    hidden = tuple(layer.out_features for layer in linear if layer.out_features > 8)
    loop = LoopAutoencoder(
        hidden=hidden, batch_size=fitted.net_.batch_size, n_epochs=fitted.n_iter_
    )
    report("search: six widths on the digits, five folds, two processes, seconds")
    report(f"  (skae at eight components: {fitted.n_iter_} epochs, hidden {hidden})")
    searches = {"skae": model, "hand-written loop": loop, "PCA": PCA()}
    seconds: dict[str, list[float]] = {name: [] for name in searches}
    for _ in range(2):  # the first starts the processes
        for name, estimator in searches.items():
            search = GridSearchCV(estimator, grid, cv=5, n_jobs=2)
            began = time.perf_counter()
            search.fit(X)
            seconds[name].append(time.perf_counter() - began)
    for name, (cold, warm) in seconds.items():
        report(
            f"  {name:20}{cold:8.1f}, once the processes run {warm:8.1f}, relative to "
            f"skae {warm / seconds['skae'][1]:.2f}"
        )
    few = AutoencoderTransformer(max_epochs=3, early_stopping=False, random_state=0)
    scores = [
        GridSearchCV(few, grid, cv=5, n_jobs=n_jobs).fit(X).cv_results_
        for n_jobs in (1, 2)
    ]
    is_equal = bool(
        np.array_equal(scores[0]["mean_test_score"], scores[1]["mean_test_score"])
    )
    report(f"  equal scores with one and with two processes: {is_equal}")


# What a recorded step consists of


def print_profile(options: Options) -> None:
    torch.set_num_threads(1)
    for name, task in (
        ("small", Task(small_table(2_000), (64, 32, 8), 64, 4)),
        ("mnist", Task(images(options)[:2_000], (128, 64, 12), 128, 8)),
    ):
        for library in ("torch", "auto"):
            with products.use(library):
                tape = recorded_step(task)
            report(f"profile, {name}: functions and microseconds, products: {library}")
            total = 0.0
            for call in tape.calls:
                microseconds = 1e6 * least_seconds(call, options)
                total += microseconds
                report(f"  {describe(call):60}{microseconds:9.2f}")
            report(f"  {f'all {len(tape)}, one after the other':60}{total:9.2f}")
            whole = 1e6 * least_seconds(tape.run, options)
            report(f"  {'a replay':60}{whole:9.2f}")


def recorded_step(task: Task) -> Tape:
    """Return the tape of the first batch size that a training records."""
    tapes = []
    close = Step.close

    def keep(step: Step) -> None:
        tapes.extend(record._tape for record in step._records.values())
        close(step)

    Step.close = keep
    try:
        AutoencoderTransformer(**task.settings(), n_threads=1).fit(task.X)
    finally:
        Step.close = close
    return tapes[0]


def least_seconds(call: Callable[[], object], options: Options) -> float:
    """Measure the least time of a call: others interrupt it on a machine with load."""
    times = []
    with torch.inference_mode(), np.errstate(all="ignore"):
        for _ in range(20 if options.quick else 500):
            began = time.perf_counter()
            for _ in range(4):
                call()
            times.append((time.perf_counter() - began) / 4)
    return min(times)


def describe(call: Callable) -> str:
    """Return the name of a function and the shapes of its arguments."""
    function, args = getattr(call, "func", call), getattr(call, "args", ())
    name = getattr(function, "__name__", "") or "an operator of PyTorch"
    shapes = [str(tuple(a.shape)) for a in args if hasattr(a, "shape")]
    lists = [f"{len(a)} tensor(s)" for a in args if isinstance(a, list)]
    return f"{name} {', '.join([*shapes, *lists])}"


def print_products(options: Options) -> None:
    torch.set_num_threads(1)
    names = list(products.LIBRARIES)
    report("products: microseconds by each library, and the choice")
    report(f"  {'':34}{''.join(f'{name:>10}' for name in names)}{'choice':>10}")
    for dtype in (torch.float32, torch.float64):
        for *stack, m, k, n in (
            (64, 20, 64),
            (64, 64, 32),
            (64, 32, 8),
            (128, 784, 128),
            (128, 128, 784),
            (1024, 256, 128),
            (16, 64, 20, 32),
        ):
            for form in ("X @ W.T", "X @ W", "X.T @ Y"):
                A = torch.randn(*stack, m, k, dtype=dtype)
                B = torch.randn(*stack, k, n, dtype=dtype)
                if form == "X.T @ Y":
                    A = A.mT.contiguous().mT
                elif form == "X @ W.T":
                    B = B.mT.contiguous().mT
                out = torch.empty(*stack, m, n, dtype=dtype)
                line = f"  {str(dtype)[6:]} {(*stack, m, k, n)!s:18}{form:8}"
                for name in names:
                    with products.use(name):
                        is_used = products.choose(A, B) == name
                        (call,) = products.bind(out, A, B)
                    seconds = least_seconds(call, options) if is_used else math.nan
                    line += f"{1e6 * seconds:10.2f}"
                report(f"{line}{products.choose(A, B):>10}")


# 9. Variants


def print_variants(options: Options) -> None:
    torch.set_num_threads(1)
    n_epochs = 1 if options.quick else 10
    table = Task(small_table(10_000), (64, 32, 8), 64, n_epochs)
    image_task = Task(images(options)[:6_000], (8,), 128, max(1, n_epochs // 2))
    report(
        "variants: seconds of a fit and of a hand-written loop (fused Adam), and their "
        "ratio"
    )
    report(f"  {'':26}{'skae':>8}{'by hand':>9}{'ratio':>8}")
    for name, (settings, loss) in VARIANTS.items():
        is_conv = name.startswith("conv")
        task = image_task if is_conv else table
        settings = {**task.settings(), **settings}
        if is_conv:
            settings |= {"input_shape": (SIDE, SIDE)}
        seconds = median_seconds(
            {
                "skae": lambda s=settings, t=task: AutoencoderTransformer(**s).fit(t.X),
                "by hand": lambda s=settings, t=task, f=loss: by_hand(t, s, f),
            },
            options.repeats,
        )
        ours, hand = seconds["skae"], seconds["by hand"]
        report(f"  {name:26}{ours:8.3f}{hand:9.3f}{hand / ours:8.2f}")


Loss = Callable[[nn.Module, Tensor], Tensor]


def by_hand(task: Task, settings: dict, loss: Loss) -> None:
    """Train the layers of skae by a hand-written loop over sliced batches."""
    ae = AutoencoderTransformer(**{**settings, "max_epochs": 1}).fit(task.X[:200])
    module = ae.module_.train()
    layers = nn.Sequential(module.encoder, module.decoder)
    layers.low, layers.high = torch.zeros(()), torch.ones(())
    layers.codebook = torch.randn(2, 256, 4)
    layers.counts, layers.sums = torch.ones(2, 256), layers.codebook.clone()
    X = torch.from_numpy(task.X)
    optimizer = torch.optim.Adam(layers.parameters(), lr=LEARNING_RATE, fused=True)
    for _ in range(task.n_epochs):
        for where in torch.randperm(len(X)).split(task.batch_size):
            optimizer.zero_grad()
            loss(layers, X[where]).backward()
            optimizer.step()


def plain(layers: nn.Module, X: Tensor) -> Tensor:
    return functional.mse_loss(layers(X), X)


def corrupted_by(corrupt: Callable[[nn.Module, Tensor], Tensor]) -> Loss:
    def loss(layers: nn.Module, X: Tensor) -> Tensor:
        return functional.mse_loss(layers(corrupt(layers, X)), X)

    return loss


def gaussian_noise(layers: nn.Module, X: Tensor) -> Tensor:
    return X + 0.3 * torch.randn_like(X)


def masking(layers: nn.Module, X: Tensor) -> Tensor:
    return torch.where(torch.rand_like(X) < 0.3, layers.low, X)


def swap(layers: nn.Module, X: Tensor) -> Tensor:
    rows = torch.randint(len(X), X.shape)
    return torch.where(torch.rand_like(X) < 0.3, X.gather(0, rows), X)


def salt_and_pepper(layers: nn.Module, X: Tensor) -> Tensor:
    value = torch.where(torch.rand_like(X) < 0.5, layers.low, layers.high)
    return torch.where(torch.rand_like(X) < 0.3, value, X)


def penalised_by(penalty: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    def loss(layers: nn.Module, X: Tensor) -> Tensor:
        X = X.detach().requires_grad_()
        Z = layers[0](X)
        error = functional.mse_loss(layers[1](Z), X.detach())
        return error + 1e-3 * penalty(X, Z)

    return loss


def l1(X: Tensor, Z: Tensor) -> Tensor:
    return Z.abs().sum(dim=1).mean()


def kl(X: Tensor, Z: Tensor) -> Tensor:
    rho, active = 0.05, torch.sigmoid(Z).mean(dim=0)
    on, off = rho / active, (1 - rho) / (1 - active)
    return (rho * on.log() + (1 - rho) * off.log()).sum()


def contractive(X: Tensor, Z: Tensor) -> Tensor:
    gradients = (
        torch.autograd.grad(Z[:, j].sum(), X, create_graph=True)[0]
        for j in range(Z.shape[1])
    )
    return sum(gradient.square().sum() for gradient in gradients) / len(X)


def variational(layers: nn.Module, X: Tensor) -> Tensor:
    mu, log_var = layers[0](X).chunk(2, dim=1)
    Z = mu + torch.exp(log_var / 2) * torch.randn_like(mu)
    divergence = (mu.square() + log_var.exp() - 1 - log_var).sum(dim=1) / 2
    return functional.mse_loss(layers[1](Z), X) + divergence.mean() / X.shape[1]


def quantized(layers: nn.Module, X: Tensor) -> Tensor:
    """Compute a straight-through VQ loss: two codebooks of 256 x 4, moving averages."""
    H = layers[0](X)
    groups = H.reshape(len(H), 2, 4).transpose(0, 1)
    with torch.no_grad():
        codes = torch.cdist(groups, layers.codebook).argmin(dim=2)
        one_hot = functional.one_hot(codes, 256).float()
        layers.counts.lerp_(one_hot.sum(dim=1), 0.1)
        layers.sums.lerp_(one_hot.mT @ groups, 0.1)
        layers.codebook = layers.sums / layers.counts[:, :, None].clamp(min=1e-5)
        entries = layers.codebook.gather(1, codes[:, :, None].expand(-1, -1, 4))
        Q = entries.transpose(0, 1).reshape(len(H), -1)
    error = functional.mse_loss(layers[1](H + (Q - H).detach()), X)
    return error + (H - Q).square().sum(dim=1).mean() / X.shape[1]


VARIANTS: dict[str, tuple[dict, Loss]] = {
    "plain": ({}, plain),
    "conv": ({"network": Conv((8, 16))}, plain),
    "corruption gaussian": ({"corruption": "gaussian"}, corrupted_by(gaussian_noise)),
    "corruption masking": ({"corruption": "masking"}, corrupted_by(masking)),
    "corruption swap": ({"corruption": "swap"}, corrupted_by(swap)),
    "corruption salt_and_pepper": (
        {"corruption": "salt_and_pepper"},
        corrupted_by(salt_and_pepper),
    ),
    "penalty l1": ({"penalty": "l1"}, penalised_by(l1)),
    "penalty kl": ({"penalty": "kl"}, penalised_by(kl)),
    "penalty contractive": ({"penalty": "contractive"}, penalised_by(contractive)),
    "bottleneck gaussian": ({"bottleneck": "gaussian"}, variational),
    "bottleneck quantized": ({"bottleneck": Quantized(256, 4)}, quantized),
}


# 10. Large and wide tables with default parameters


class LargeTable(NamedTuple):
    """A table whose fit takes long for its size or its width.

    Attributes
    ----------
    name : str
    n_rows, n_test, n_features, n_components : int
    n_latent : int
        Dimension of the nonlinear surface near which the rows are.
    """

    name: str
    n_rows: int
    n_test: int
    n_features: int
    n_components: int
    n_latent: int

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Generate training and test rows in float64."""
        rng = np.random.default_rng(0)
        n_rows = self.n_rows + self.n_test
        Z = rng.standard_normal((n_rows, self.n_latent))
        W = rng.standard_normal((self.n_latent, self.n_features))
        X = np.tanh(Z @ W * 1.5 / math.sqrt(self.n_latent))
        X += 0.1 * rng.standard_normal(X.shape)
        return X[: self.n_rows], X[self.n_rows :]


LARGE_TABLES = (
    LargeTable("wide code", 1_000, 1_000, 500, 100, 30),
    LargeTable("wide code", 1_000, 1_000, 500, 200, 30),
    LargeTable("wide rows", 150, 500, 20_000, 2, 4),
    LargeTable("many rows", 1_000_000, 10_000, 10, 2, 4),
)


def print_defaults_large(options: Options) -> None:
    torch.set_num_threads(1)
    report(
        "defaults_large: fits with default parameters, one thread, seconds of "
        "processor time;\n  explained variance of test rows; the loop trains the same "
        "network from random\n  weights, with Adam, for 2500 steps of the same size or "
        "at least two epochs"
    )
    report(f"  {'':10}{'rows':>9}{'columns':>9}{'codes':>7}", end="")
    report("".join(f"{name:>9}{'':9}" for name in ("skae", "PCA", "loop")))
    for table in LARGE_TABLES:
        if options.quick:
            table = table._replace(
                n_rows=min(table.n_rows, 2_000),
                n_features=min(table.n_features, 200),
                n_components=min(table.n_components, 20),
            )
        X, X_test = table.rows()
        k = table.n_components
        ae = AutoencoderTransformer(k, random_state=0, n_threads=1)
        pca = PCA(k, svd_solver="full" if min(X.shape) <= 1000 else "covariance_eigh")
        models: dict[str, Callable[[], Callable]] = {
            "skae": lambda m=ae, X=X: m.fit(X).reconstruct,
            "PCA": lambda m=pca, X=X: reconstruction_by_pca(m.fit(X)),
            "loop": lambda k=k, X=X: large_by_hand(X, k),
        }
        with threadpool_limits(1):
            results = [timed_explained(fit, X, X_test) for fit in models.values()]
        line = "".join(f"{seconds:9.2f}{value:9.4f}" for seconds, value in results)
        report(f"  {table.name:10}{len(X):9d}{X.shape[1]:9d}{k:7d}{line}")


def reconstruction_by_pca(pca: PCA) -> Callable[[np.ndarray], np.ndarray]:
    return lambda X: pca.inverse_transform(pca.transform(X))


def timed_explained(
    fit: Callable[[], Callable], X: np.ndarray, X_test: np.ndarray
) -> tuple[float, float]:
    """Return the processor time of a fit, and the explained variance of test rows."""
    began = time.process_time()
    reconstruct = fit()
    seconds = time.process_time() - began
    residual = np.square(X_test - reconstruct(X_test)).sum()
    return seconds, 1 - residual / np.square(X_test - X.mean(axis=0)).sum()


def large_by_hand(X: np.ndarray, n_components: int) -> Callable:
    """Train the default network by a hand-written loop."""
    n_samples, n_features = X.shape
    sizes = auto_hidden_layer_sizes(n_samples, n_features, n_components)
    batch_size = min(max(n_samples // 16, 8), 128)
    n_epochs = max(2, math.ceil(2500 / math.ceil(n_samples / batch_size)))
    mean, scale = X.mean(axis=0), math.sqrt(X.var(axis=0).mean())
    rows = ((X - mean) / scale).astype(np.float32)
    task = Task(rows, (*sizes, n_components), batch_size, n_epochs)
    network = task.network()
    best_eager(task, network)

    def reconstruct(X: np.ndarray) -> np.ndarray:
        rows = torch.from_numpy(((X - mean) / scale).astype(np.float32))
        with torch.inference_mode():
            return network(rows).numpy() * scale + mean

    return reconstruct


# 11. Device


class Rates(NamedTuple):
    """Rates of large matrix products in TFLOP/s: what the device can reach."""

    float32: float
    tf32: float
    bfloat16: float


def print_device(options: Options) -> None:
    if options.device == "cpu" and not options.quick:
        report("device: skipped, requires --device cuda (or --quick, a smoke test).")
        return
    torch.set_num_threads(1)
    rates = measure_rates(options)
    X = images(options)
    report(f"device: {device_name(options.device)}; large products: ", end="")
    report(", ".join(f"{k} {v:.3g} TFLOP/s" for k, v in rates._asdict().items()))
    report(
        "  the ratio is that to a hand-written loop in float32 (sliced batches, fused "
        "Adam),\n  the share that of the rate of large products"
    )
    report(
        f"  {'training':14}{'batch':>7}{'precision':>11}{'us/step':>9}"
        f"{'loop':>9}{'ratio':>7}{'TFLOP/s':>9}{'share':>7}"
    )
    # The shortest first: a time limit may end the run.
    widths = (1000, 500, 250, 30)
    tasks = {
        "small": Task(small_table(10_000), (64, 32, 8), 64, 20),
        "large batches": Task(X, widths, 8192, 40),
        "mnist": Task(X, widths, 128, 4),
    }
    for name, task in tasks.items():
        if options.quick:
            task = task._replace(X=task.X[:2000], n_epochs=2)
        print_device_training(name, task, options, rates)
    print_device_predictions(options)


def device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device}, {platform.machine()}"


def synchronize(options: Options) -> None:
    if torch.device(options.device).type == "cuda":
        torch.cuda.synchronize(options.device)


def print_device_training(
    name: str, task: Task, options: Options, rates: Rates
) -> None:
    settings = {**task.settings(), "device": options.device}
    n_weights = sum(a * b for a, b in pairwise((task.X.shape[1], *task.widths)))
    # 2 operations x 3 products (forward, gradients of weights and of inputs) x 2 for
    # encoder and decoder.
    n_operations = 12 * n_weights * len(task.X) * task.n_epochs
    # The overhead of small steps, most of their time, does not depend on the precision.
    is_large = task.batch_size > 1000
    precisions = [name for name in rates._fields if is_large or name == "float32"]
    if torch.device(options.device).type == "cpu" and "tf32" in precisions:
        precisions.remove("tf32")
    models: dict[str, Callable[[], object]] = {
        precision: lambda p=precision: AutoencoderTransformer(
            **settings, precision=p
        ).fit(task.X)
        for precision in precisions
    }
    models["loop"] = lambda: best_eager(task, device=options.device)
    seconds = median_seconds(models, options.repeats)
    loop = seconds.pop("loop")
    for precision, value in seconds.items():
        rate = n_operations / value / 1e12
        report(
            f"  {name:14}{task.batch_size:7d}{precision:>11}"
            f"{value / task.n_steps * 1e6:9.0f}{loop / task.n_steps * 1e6:9.0f}"
            f"{loop / value:7.2f}{rate:9.3g}{rate / getattr(rates, precision):7.2f}"
        )


def print_device_predictions(options: Options) -> None:
    """Measure predictions of an array, and of a tensor that is on the device."""
    X = small_table(20_000 if options.quick else 1_000_000)
    settings = {"max_epochs": 1, "batch_size": 8192, "device": options.device}
    transformer = AutoencoderTransformer(8, **settings).fit(X[:100_000])
    detector = AutoencoderOutlierDetector(8, **settings).fit(X[:100_000])
    resident = torch.from_numpy(X).to(options.device)

    def on_device(function: Callable[[Tensor], Tensor], size: int) -> Callable:
        def run() -> None:
            with torch.inference_mode():
                for rows in resident.split(size):
                    function(rows)
            synchronize(options)

        return run

    encoder = transformer.module_.encoder
    # Scores are computed in float64.
    scorer = detector._trained.net.module_for("row_error", np.dtype(np.float64))
    calls: dict[str, Callable[[], object]] = {
        "transform": lambda: transformer.transform(X),
        "transform, resident": on_device(transformer.module_.encode, 50_000),
        "the encoder alone, resident": on_device(encoder, 50_000),
        "score_samples": lambda: detector.score_samples(X),
        "scores, resident": on_device(lambda X: row_error(scorer, X.double()), 10_000),
    }
    report(f"  {'prediction':28}{'seconds':>9}{'million rows/s':>16}")
    for name, value in median_seconds(calls, options.repeats).items():
        report(f"  {name:28}{value:9.3f}{len(X) / value / 1e6:16.2f}")
    rows = {
        "transform, one row": lambda: transformer.transform(X[:1]),
        "score_samples, one row": lambda: detector.score_samples(X[:1]),
    }
    for name, value in median_seconds(rows, 10 * options.repeats).items():
        report(f"  {name:28}{value * 1e6:9.0f} us")


def measure_rates(options: Options) -> Rates:
    """Measure the rates of large matrix products on the device."""
    size = 256 if options.quick else 8192
    rates = []
    for name, dtype in (
        ("float32", torch.float32),
        ("tf32", torch.float32),
        ("bfloat16", torch.bfloat16),
    ):
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        A = torch.randn(size, size, device=options.device, dtype=dtype)

        def multiply(A: Tensor = A) -> None:
            for _ in range(5):
                A @ A
            synchronize(options)

        multiply()
        seconds = median_seconds({name: multiply}, options.repeats)[name]
        rates.append(5 * 2 * size**3 / seconds / 1e12)
    torch.backends.cuda.matmul.allow_tf32 = False
    return Rates(*rates)


SECTIONS: dict[str, Callable[[Options], None]] = {
    "small": print_small,
    "mnist": print_mnist,
    "quality": print_quality,
    "predict": print_predict,
    "growth": print_growth,
    "sparse": print_sparse,
    "search": print_search,
    "profile": print_profile,
    "products": print_products,
    "variants": print_variants,
    "defaults_large": print_defaults_large,
    "device": print_device,
}


if __name__ == "__main__":
    main()
