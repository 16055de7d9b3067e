"""Print the figures by which the foundation is judged.

- checks: how many of scikit-learn's estimator checks each variant of both
  estimators passes, beside PCA, IsolationForest and (where installed) PyOD's
  AutoEncoder;
- variance: held-out explained variance of PCA, of the same network from a random
  start and from the PCA start (the default), over many tables;
- memory: time and memory that a large sparse table takes;
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

from skae import AutoencoderTransformer

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from variants import variants

SECTIONS = ("checks", "variance", "memory", "suite")

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


# The tables on which the training defaults were chosen (skae/_defaults.py).
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
    say(f"Estimator checks of scikit-learn {sklearn.__version__}")
    say(f"{'passed':>8}{'failed':>8}{'skipped':>8}{'seconds':>9}")
    for label, estimator in estimators_to_check():
        began = time.perf_counter()
        results = run_checks(estimator)
        seconds = time.perf_counter() - began
        by_status = {
            status: [r["check_name"] for r in results if r["status"] == status]
            for status in ("passed", "failed", "skipped")
        }
        counts = "".join(f"{len(names):8d}" for names in by_status.values())
        say(f"{counts}{seconds:9.1f}  {label}")
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
    for estimator in (*variants(), PCA(), IsolationForest()):
        yield " ".join(repr(estimator).split()), estimator
    try:
        from pyod.models.auto_encoder import AutoEncoder
    except ImportError as error:
        say(f"PyOD's AutoEncoder is left out: {error}")
    else:
        yield "pyod AutoEncoder()", AutoEncoder(verbose=0)


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
    cases: dict[str, list[Case]] = {}
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
            cases.setdefault(name, []).append(case)
    say()
    tuned = [c for name, those in cases.items() if name in TUNED_ON for c in those]
    fresh = [c for name, those in cases.items() if name not in TUNED_ON for c in those]
    for label, those in (
        ("tables on which no default was chosen", fresh),
        ("tables on which the defaults were chosen", tuned),
        ("all tables", fresh + tuned),
    ):
        if those:
            print_summary(label, those)


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


def print_summary(label: str, cases: list[Case]) -> None:
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
    say(f"{len(cases)} cases: {label}")
    for name, value in lines.items():
        say(f"    {name:50}{value:>20}")
    say()


def share(is_true: np.ndarray) -> str:
    return f"{is_true.sum()} of {len(is_true)} ({is_true.mean():.1%})"


# Memory

# In a process of its own, so that the peak is its own.
LARGE_AND_SPARSE = """
import resource
import time
import numpy as np
from scipy import sparse
from skae import AutoencoderTransformer

def report(what):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = time.perf_counter() - began
    print(f"{what:12}{seconds:8.1f} s, peak {peak:.2f} GiB", flush=True)

rng = np.random.default_rng(0)
shape, n_stored = (100_000, 20_000), 2_000_000
where = tuple(rng.integers(size, size=n_stored) for size in shape)
X = sparse.csr_array((rng.random(n_stored), where), shape=shape)
began = time.perf_counter()
report("before")
ae = AutoencoderTransformer(n_components=2, max_epochs=1, random_state=0).fit(X)
report("fit, 1 epoch")
ae.transform(X)
report("transform")
"""


def print_memory() -> None:
    say("100,000 x 20,000 sparse rows of density 0.001, default network")
    subprocess.run([sys.executable, "-c", LARGE_AND_SPARSE], check=True)
    say()


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
