"""Measure estimator checks, explained variance, memory and the test suite.

- checks: number of scikit-learn's estimator checks that each variant of both
  estimators passes, compared with PCA, IsolationForest and (if installed) PyOD's
  AutoEncoder;
- variance: held-out explained variance of PCA, and of the same network from a random
  start and from the PCA start (the default), on many data sets;
- memory: time and memory of a fit to a large sparse matrix;
- suite: run time and result of the tests.

From the repository root, with the package installed::

    python benchmarks/foundation.py --data DIR

where DIR/adbench contains ADBench's classical data sets as .npz files (arrays X and y)
[1]_; without them only scikit-learn's own data sets are used for the variance.

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

# Must be set before SciPy is imported: scikit-learn otherwise skips its array API
# check.
os.environ["SCIPY_ARRAY_API"] = "1"

import numpy as np
import sklearn
from sklearn import datasets
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from skae import AutoencoderTransformer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from variants import variants

SECTIONS = ("checks", "variance", "memory", "suite")

N_COMPONENTS = (1, 2, 5)
SEEDS = (0, 1, 2)
MAX_ROWS = 5_000
# Tolerance of a three-seed mean below PCA's explained variance.
MARGIN = 0.003

SKLEARN_DATA = ("digits", "wine", "breast_cancer", "iris", "diabetes")
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


# The data sets on which the training defaults were chosen (skae/_defaults.py).
TUNED_ON = {
    "breast_cancer",
    "diabetes",
    "2_annthyroid",
    "7_Cardiotocography",
    "12_fault",
    "15_Hepatitis",
    "19_landsat",
    "20_letter",
    "22_magic.gamma",
    "39_vertebral",
    "41_Waveform",
    "47_yeast",
}


class Case(NamedTuple):
    """Explained variance of one data set and one `n_components`, a value per seed.

    Attributes
    ----------
    pca, random, start : ndarray of shape (n_seeds,)
        Of PCA, of a network from random weights, and of one from the PCA start.
    seconds : ndarray of shape (n_seeds,)
        Of the fit from the PCA start.
    """

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
    if "memory" in sections:
        print_memory()
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
        help="run this section only; may be given more than once",
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder that contains adbench/*.npz"
    )
    parser.add_argument(
        "--tables", type=int, metavar="N", help="variance: the first N data sets only"
    )
    parser.add_argument(
        "--max-epochs",
        type=int,
        metavar="N",
        help="variance: maximum number of epochs, instead of the default",
    )
    return parser.parse_args()


def report(line: str = "") -> None:
    print(line, flush=True)


# Checks


def print_checks() -> None:
    report(f"Estimator checks of scikit-learn {sklearn.__version__}")
    report(f"{'passed':>8}{'failed':>8}{'skipped':>8}{'seconds':>9}")
    for label, estimator in estimators_to_check():
        began = time.perf_counter()
        results = run_checks(estimator)
        seconds = time.perf_counter() - began
        by_status = {
            status: [r["check_name"] for r in results if r["status"] == status]
            for status in ("passed", "failed", "skipped")
        }
        counts = "".join(f"{len(names):8d}" for names in by_status.values())
        report(f"{counts}{seconds:9.1f}  {label}")
        for status in ("failed", "skipped"):
            for name, times in Counter(by_status[status]).items():
                report(f"    {status}: {name}" + (f" ({times} times)" * (times > 1)))
    report()


def run_checks(estimator) -> list[dict]:
    """Run all checks, without expected failures."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return check_estimator(estimator, on_skip=None, on_fail=None)


def estimators_to_check() -> Iterator[tuple[str, object]]:
    for estimator in (*variants(), PCA(), IsolationForest()):
        yield " ".join(repr(estimator).split()), estimator
    try:
        from pyod.models.auto_encoder import AutoEncoder
    except ImportError as error:
        report(f"PyOD's AutoEncoder is skipped: {error}")
    else:
        yield "pyod AutoEncoder()", AutoEncoder(verbose=0)


# Variance


def print_variance(
    folder: Path | None, n_tables: int | None, max_epochs: int | str
) -> None:
    tables = find_tables(folder)[:n_tables]
    report(
        f"Held-out explained variance, means over {len(SEEDS)} seeds, "
        f"max_epochs={max_epochs}"
    )
    report(
        f"{'data set':20}{'rows':>6}{'cols':>6}{'n_comp.':>8}{'PCA':>9}{'random':>9}"
        f"{'default':>9}{'gain':>9}{'seconds':>9}"
    )
    cases: dict[str, list[Case]] = {}
    for name, load in tables:
        for n_components in N_COMPONENTS:
            n_rows, n_features = load(SEEDS[0]).shape
            if n_components >= n_features:
                continue
            case = measure(load, n_components, max_epochs)
            pca, random, start = case.pca.mean(), case.random.mean(), case.start.mean()
            report(
                f"{name:20}{n_rows:6d}{n_features:6d}{n_components:8d}{pca:9.4f}"
                f"{random:9.4f}{start:9.4f}{start - pca:+9.4f}"
                f"{np.median(case.seconds):9.1f}"
            )
            cases.setdefault(name, []).append(case)
    report()
    tuned = [c for name, group in cases.items() if name in TUNED_ON for c in group]
    other = [c for name, group in cases.items() if name not in TUNED_ON for c in group]
    for label, group in (
        ("data sets on which no default was chosen", other),
        ("data sets on which the defaults were chosen", tuned),
        ("all data sets", other + tuned),
    ):
        if group:
            print_summary(label, group)


def find_tables(folder: Path | None) -> list[tuple[str, Callable[[int], np.ndarray]]]:
    """Return names and functions that load rows for a seed; report missing files."""
    tables = [(name, load_sklearn(name)) for name in SKLEARN_DATA]
    missing = []
    for name in ADBENCH:
        path = None if folder is None else folder / "adbench" / f"{name}.npz"
        if path is not None and path.exists():
            tables.append((name, load_file(path)))
        else:
            missing.append(name)
    if missing:
        reason = "no --data" if folder is None else f"not in {folder / 'adbench'}"
        report(
            f"MISSING ({reason}): {len(missing)} of {len(ADBENCH)} ADBench data sets,"
        )
        report(textwrap.fill(", ".join(missing), 88, break_on_hyphens=False))
        report(f"The other {len(tables)} data sets are used.")
        report()
    return tables


def load_sklearn(name: str) -> Callable[[int], np.ndarray]:
    X = getattr(datasets, f"load_{name}")().data
    return lambda seed: X


def load_file(path: Path) -> Callable[[int], np.ndarray]:
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
    """Fit PCA and networks from both starts to the training rows of each seed."""
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
    """Compute explained variance as `AutoencoderTransformer.score` does."""
    X_hat = pca.inverse_transform(pca.transform(X))
    return 1 - np.sum((X - X_hat) ** 2) / np.sum((X - pca.mean_) ** 2)


def print_summary(label: str, cases: list[Case]) -> None:
    pca, random, start = (
        np.array([getattr(case, name) for case in cases])
        for name in ("pca", "random", "start")
    )
    gain = start - pca
    mean_gain = gain.mean(axis=1)
    pca_error = 1 - pca.mean(axis=1)
    # The ratio is undefined where the error of PCA is 0.
    is_positive = pca_error > 1e-9
    removed = mean_gain[is_positive] / pca_error[is_positive]
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
    report(f"{len(cases)} cases: {label}")
    for name, value in lines.items():
        report(f"    {name:50}{value:>20}")
    report()


def share(is_true: np.ndarray) -> str:
    return f"{is_true.sum()} of {len(is_true)} ({is_true.mean():.1%})"


# Memory

# Run in a separate process, so that the peak memory is that of the fit.
LARGE_AND_SPARSE = """
import resource
import time
import numpy as np
from scipy import sparse
from skae import AutoencoderTransformer

def report(stage):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = time.perf_counter() - began
    print(f"{stage:12}{seconds:8.1f} s, peak {peak:.2f} GiB", flush=True)

rng = np.random.default_rng(0)
shape, n_stored = (100_000, 20_000), 2_000_000
indices = tuple(rng.integers(size, size=n_stored) for size in shape)
X = sparse.csr_array((rng.random(n_stored), indices), shape=shape)
began = time.perf_counter()
report("before")
ae = AutoencoderTransformer(n_components=2, max_epochs=1, random_state=0).fit(X)
report("fit, 1 epoch")
ae.transform(X)
report("transform")
"""


def print_memory() -> None:
    report("100,000 x 20,000 sparse rows of density 0.001, default network")
    subprocess.run([sys.executable, "-c", LARGE_AND_SPARSE], check=True)
    report()


# Suite


def print_suite() -> None:
    report("python -m pytest -q")
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
            report(f"    {line}")
    report(lines[-1])
    report(f"{seconds:.1f} s, exit status {run.returncode}")
    report()


if __name__ == "__main__":
    main()
