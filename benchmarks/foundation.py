"""Print the figures by which the foundation is judged.

- checks: how many of scikit-learn's estimator checks each variant of both
  estimators passes, beside PCA, IsolationForest and (where installed) PyOD's
  AutoEncoder;
- variance: held-out explained variance of PCA, of the same network from a random
  start and from the PCA start (the default), over many tables;
- suite: how long the tests take, and how they close.

From the repository root, with the package installed::

    python benchmarks/foundation.py --data DIR

where DIR/adbench holds ADBench's classical tables as .npz (arrays X and y) [1]_;
without them the variance is taken over scikit-learn's own tables only.

References
----------
.. [1] Han, S., Hu, X., Huang, H., Jiang, M., & Zhao, Y. (2022). ADBench: Anomaly
   detection benchmark. NeurIPS 35.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# Before SciPy is imported: scikit-learn skips its array API check otherwise.
os.environ["SCIPY_ARRAY_API"] = "1"

import numpy as np
import sklearn
from sklearn import datasets
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae.networks import Custom

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = ("checks", "variance", "suite")
ESTIMATORS = (AutoencoderTransformer, AutoencoderOutlierDetector)

N_COMPONENTS = (1, 2, 5)
SEEDS = (0, 1, 2)
MAX_ROWS = 5_000
# How far below PCA's explained variance a three-seed mean may fall.
MARGIN = 0.003

SHIPPED = ("digits", "wine", "breast_cancer", "iris", "diabetes")
ADBENCH = (
    "2_annthyroid",
    "5_campaign",
    "7_Cardiotocography",
    "10_cover",
    "12_fault",
    "15_Hepatitis",
    "17_InternetAds",
    "19_landsat",
    "20_letter",
    "22_magic.gamma",
    "24_mnist",
    "26_optdigits",
    "28_pendigits",
    "31_satimage-2",
    "33_skin",
    "37_Stamps",
    "39_vertebral",
    "41_Waveform",
    "43_WDBC",
    "45_wine",
    "47_yeast",
)


def make_encoder(n_features: int, n_components: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(n_features, 16), nn.Tanh(), nn.Linear(16, n_components)
    )


def make_decoder(n_features: int, n_components: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(n_components, 16), nn.Tanh(), nn.Linear(16, n_features)
    )


# Binary cross-entropy is not among them: the checks' data leave [0, 1].
VARIANTS = (
    {"loss": "squared_error"},
    {"loss": "absolute_error"},
    {"loss": "huber"},
    {"init": "random"},
    {"init": "pca"},
    {"scale": "global"},
    {"scale": "feature"},
    {"scale": None},
    {"network": Custom(make_encoder, make_decoder)},
    {"early_stopping": False},
    {"warm_start": True},
    {"hidden_layer_sizes": ()},
)


class Case(NamedTuple):
    """Explained variance of one table and one `n_components`, a value per seed."""

    pca: np.ndarray
    random: np.ndarray
    start: np.ndarray
    seconds: np.ndarray


def main() -> None:
    arguments = parse_arguments()
    sections = arguments.only or SECTIONS
    if "checks" in sections:
        print_checks()
    if "variance" in sections:
        print_variance(arguments.data, arguments.tables, arguments.max_epochs or "auto")
    if "suite" in sections:
        print_suite()


def parse_arguments() -> argparse.Namespace:
    description, *_ = __doc__.split("\n\nReferences")
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        choices=SECTIONS,
        action="append",
        help="print this section alone; may be given more than once",
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder that holds adbench/*.npz"
    )
    parser.add_argument(
        "--tables", type=int, metavar="N", help="variance: the first N tables only"
    )
    parser.add_argument(
        "--max-epochs",
        type=int,
        metavar="N",
        help="variance: epochs at most, instead of the estimator's own choice",
    )
    return parser.parse_args()


def say(line: str = "") -> None:
    print(line, flush=True)


# Checks


def print_checks() -> None:
    say(
        f"Estimator checks of scikit-learn {sklearn.__version__}; "
        "named variants have max_epochs=20"
    )
    say(f"{'':52}{'passed':>8}{'failed':>8}{'skipped':>8}{'seconds':>9}")
    for label, estimator in estimators_to_check():
        began = time.perf_counter()
        results = run_checks(estimator)
        seconds = time.perf_counter() - began
        by_status = {
            status: [r["check_name"] for r in results if r["status"] == status]
            for status in ("passed", "failed", "skipped")
        }
        counts = "".join(f"{len(names):8d}" for names in by_status.values())
        say(f"{label:52}{counts}{seconds:9.1f}")
        for status in ("failed", "skipped"):
            for name, times in Counter(by_status[status]).items():
                say(f"    {status}: {name}" + (f" ({times} times)" * (times > 1)))
    say()


def run_checks(estimator) -> list[dict]:
    """All the checks, none of them excused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return check_estimator(estimator, on_skip=None, on_fail=None)


def estimators_to_check() -> Iterator[tuple[str, object]]:
    for Estimator in ESTIMATORS:
        name = Estimator.__name__
        yield f"{name}()", Estimator()
        for variant in VARIANTS:
            yield f"{name}({describe(variant)})", Estimator(**variant, max_epochs=20)
    yield "PCA()", PCA()
    yield "IsolationForest()", IsolationForest()
    try:
        from pyod.models.auto_encoder import AutoEncoder
    except ImportError as error:
        say(f"PyOD's AutoEncoder is left out: {error}")
    else:
        yield "pyod AutoEncoder()", AutoEncoder(verbose=0)


def describe(variant: dict) -> str:
    return ", ".join(
        f"{name}={'Custom' if isinstance(value, Custom) else repr(value)}"
        for name, value in variant.items()
    )


# Variance


def print_variance(
    folder: Path | None, n_tables: int | None, max_epochs: int | str
) -> None:
    tables = find_tables(folder)[:n_tables]
    say(
        f"Held-out explained variance, means over {len(SEEDS)} seeds, "
        f"max_epochs={max_epochs}"
    )
    say(
        f"{'table':20}{'rows':>6}{'wide':>6}{'n_comp.':>8}{'PCA':>9}{'random':>9}"
        f"{'default':>9}{'gain':>9}{'seconds':>9}"
    )
    cases = []
    for name, load in tables:
        for n_components in N_COMPONENTS:
            n_rows, n_features = load(SEEDS[0]).shape
            if n_components >= n_features:
                continue
            case = measure(load, n_components, max_epochs)
            pca, random, start = case.pca.mean(), case.random.mean(), case.start.mean()
            say(
                f"{name:20}{n_rows:6d}{n_features:6d}{n_components:8d}{pca:9.4f}"
                f"{random:9.4f}{start:9.4f}{start - pca:+9.4f}"
                f"{np.median(case.seconds):9.1f}"
            )
            cases.append(case)
    say()
    print_summary(cases, len(tables))


def find_tables(folder: Path | None) -> list[tuple[str, Callable[[int], np.ndarray]]]:
    """Names, and functions that give the rows for a seed; what is missing is said."""
    tables = [(name, shipped(name)) for name in SHIPPED]
    missing = []
    for name in ADBENCH:
        path = None if folder is None else folder / "adbench" / f"{name}.npz"
        if path is not None and path.exists():
            tables.append((name, stored(path)))
        else:
            missing.append(name)
    if missing:
        reason = "no --data" if folder is None else f"not in {folder / 'adbench'}"
        say(f"MISSING ({reason}): {len(missing)} of ADBench's {len(ADBENCH)} tables,")
        say(textwrap.fill(", ".join(missing), 88, break_on_hyphens=False))
        say(f"This run goes on with the {len(tables)} others.")
        say()
    return tables


def shipped(name: str) -> Callable[[int], np.ndarray]:
    X = getattr(datasets, f"load_{name}")().data
    return lambda seed: X


def stored(path: Path) -> Callable[[int], np.ndarray]:
    def load(seed: int) -> np.ndarray:
        with np.load(path) as file:
            X = file["X"].astype(np.float64)
        if len(X) <= MAX_ROWS:
            return X
        rng = np.random.default_rng(1234 + seed)
        return X[rng.choice(len(X), MAX_ROWS, replace=False)]

    return load


def measure(
    load: Callable[[int], np.ndarray], n_components: int, max_epochs: int | str
) -> Case:
    """Fit PCA and both starts to the training rows of each seed."""
    fits = []
    for seed in SEEDS:
        X_train, X_test = train_test_split(load(seed), test_size=0.3, random_state=seed)
        scaler = StandardScaler().fit(X_train)
        X_train, X_test = scaler.transform(X_train), scaler.transform(X_test)
        settings = {"max_epochs": max_epochs, "random_state": seed}
        pca = PCA(n_components, svd_solver="full").fit(X_train)
        random = AutoencoderTransformer(n_components, init="random", **settings)
        random.fit(X_train)
        began = time.perf_counter()
        start = AutoencoderTransformer(n_components, **settings).fit(X_train)
        seconds = time.perf_counter() - began
        fits.append(
            (
                explained_variance_of_pca(pca, X_test),
                random.score(X_test),
                start.score(X_test),
                seconds,
            )
        )
    return Case(*np.array(fits).T)


def explained_variance_of_pca(pca: PCA, X: np.ndarray) -> float:
    """The measure of `AutoencoderTransformer.score`: about the training mean."""
    X_hat = pca.inverse_transform(pca.transform(X))
    return 1 - np.sum((X - X_hat) ** 2) / np.sum((X - pca.mean_) ** 2)


def print_summary(cases: list[Case], n_tables: int) -> None:
    pca, random, start = (
        np.array([getattr(case, name) for case in cases])
        for name in ("pca", "random", "start")
    )
    gain = start - pca
    mean_gain = gain.mean(axis=1)
    left_by_pca = 1 - pca.mean(axis=1)
    # Where PCA leaves nothing there is nothing to remove.
    has_rest = left_by_pca > 1e-9
    removed = mean_gain[has_rest] / left_by_pca[has_rest]
    lines = {
        f"three-seed mean at least PCA's - {MARGIN}": share(mean_gain >= -MARGIN),
        "worst difference to PCA, any single fit": f"{gain.min():+.4f}",
        "worst difference to PCA, any three-seed mean": f"{mean_gain.min():+.4f}",
        "PCA start at least as good as the random start": share(
            start.mean(axis=1) >= random.mean(axis=1)
        ),
        "share of PCA's held-out error removed, median": f"{np.median(removed):.1%}",
        "share of PCA's held-out error removed, mean": f"{removed.mean():.1%}",
    }
    say(f"Over {len(cases)} cases from {n_tables} tables")
    for label, value in lines.items():
        say(f"{label:50}{value:>24}")
    say()


def share(is_true: np.ndarray) -> str:
    return f"{is_true.sum()} of {len(is_true)} ({is_true.mean():.1%})"


# Suite


def print_suite() -> None:
    say("python -m pytest -q")
    began = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    lines = run.stdout.strip().splitlines() or ["no output"]
    for line in lines[:-1]:
        if line.startswith(("FAILED", "ERROR")):
            say(f"    {line}")
    say(lines[-1])
    say(f"{seconds:.1f} s, exit status {run.returncode}")
    say()


if __name__ == "__main__":
    main()
