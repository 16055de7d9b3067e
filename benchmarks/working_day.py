"""Print what an analyst meets on a working day, beside peers, in one table.

- missing: root mean square error of imputed entries (`imputation.py`);
- categories: detection in tables with categorical columns (`mixed_tables.py`);
- graph: largest difference between ONNX graphs and their estimators (`graphs.py`);
- reasons: seconds in which 1,000 rows are explained, and the share of the error that
  the first three features contribute;
- windows: detection in windows of series and in images (`windows.py`);
- widths: settings of the user guide at the settings there (`widths.py`);
- samples: rows drawn from a variational autoencoder (`generation.py`);
- costs: processor seconds of a fit with 200 components on one thread, and elapsed
  seconds of a fit beside a busy process, which grow with any other load.

From the repository root, with the package and its extra onnx installed::

    python benchmarks/working_day.py --data DIR

where DIR contains mnist.npz, adbench/*.npz and oddbench/*.npz. It takes about a quarter
of an hour on two quiet processors; ``--full`` measures all tables of the other
benchmarks, with three seeds. All but the costs uses one thread.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import family
import generation
import graphs
import imputation
import mixed_tables
import numpy as np
import onnxruntime
import sklearn
import torch
import widths
import windows
from settings import SETTINGS
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from windows_data import REPORTED, small_digits

import skae
from skae import AutoencoderOutlierDetector, AutoencoderTransformer

NEEDED = ("mnist.npz", "adbench", "oddbench")
# A forest that tells generated rows from real ones worse than that.
MAX_SAMPLE_AUC = 0.65
COLUMNS = "{:10} {:46} {:8} {:46} {:24} {}"


class Line(NamedTuple):
    """A figure beside those of peers."""

    point: str
    what: str
    ours: float
    peers: dict[str, float]
    target: str
    is_met: bool


class Size(NamedTuple):
    """How much is measured."""

    tables: tuple[str, ...] = ("wine", "breast_cancer", "diabetes", "2_annthyroid")
    hidden: tuple[float | str, ...] = (0.3,)
    n_draws: int = 2
    oddbench_step: int = 8
    n_points: int = 1_000
    digits: tuple[int, ...] = (0, 4, 8)
    n_rows: int = 1_500
    n_seeds: int = 1


FULL = Size(
    tables=(*imputation.BUNDLED, *imputation.ADBENCH),
    hidden=imputation.HIDDEN,
    n_draws=8,
    oddbench_step=2,
    n_points=1_500,
    digits=tuple(range(10)),
    n_rows=10_000,
    n_seeds=3,
)


def main() -> None:
    arguments = parse_arguments()
    size = FULL if arguments.full else Size()
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(f"Processor: {processor()}; {multiprocessing.cpu_count()} processors")
    modules = (np, sklearn, torch, onnxruntime, skae)
    versions = (f"{module.__name__} {module.__version__}" for module in modules)
    print(f"Python {platform.python_version()}, {', '.join(versions)}")
    print(f"Seeds: 0 to {size.n_seeds - 1}; {size}\n")
    print(COLUMNS.format("point", "what", "ours", "peers", "target", "met"))
    n_lines = n_met = 0
    for name in arguments.only or SECTIONS:
        start = time.perf_counter()
        for line in SECTIONS[name](arguments.data, size):
            peers = ", ".join(f"{peer} {v:.3g}" for peer, v in line.peers.items())
            met = "yes" if line.is_met else "NO"
            print(
                COLUMNS.format(
                    line.point, line.what, f"{line.ours:.3g}", peers, line.target, met
                ),
                flush=True,
            )
            n_lines, n_met = n_lines + 1, n_met + line.is_met
        print(f"# {name}: {time.perf_counter() - start:.0f} s", flush=True)
    print(f"\n{n_met} of {n_lines} lines meet their target.")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help=f"folder with {', '.join(NEEDED)}")
    parser.add_argument("--full", action="store_true", help="all tables and seeds")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="POINT")
    arguments = parser.parse_args()
    if arguments.data is None:
        sys.exit(f"MISSING: data. Give --data DIR, a folder with {', '.join(NEEDED)}.")
    missing = [name for name in NEEDED if not (arguments.data / name).exists()]
    if missing:
        sys.exit(f"MISSING: --data {arguments.data} lacks {', '.join(missing)}.")
    return arguments


def processor() -> str:
    """Return the name of the processor, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def beats(
    point: str, what: str, means: dict[str, float], *, lower: bool = False
) -> Line:
    """Compare skae with all peers."""
    peers = dict(means)
    ours = peers.pop("skae")
    is_met = all(ours < v if lower else ours > v for v in peers.values())
    target = f"{'below' if lower else 'above'} all peers"
    return Line(point, what, ours, peers, target, is_met)


def bounded(
    point: str, what: str, ours: float, peers: dict[str, float], bound: float
) -> Line:
    """Compare skae with a bound."""
    return Line(point, what, ours, peers, f"at most {bound:.3g}", ours <= bound)


# The sections


def missing(folder: Path, size: Size) -> Iterator[Line]:
    torch.set_num_threads(1)
    tables = imputation.load_tables(folder)
    cases = [
        imputation.measure(tables[name], hidden, seed)
        for name in size.tables
        for hidden in size.hidden
        for seed in range(size.n_seeds)
    ]
    for field, rows in (("filled", "training rows"), ("new", "new rows")):
        means = {
            imputer: float(np.mean([getattr(case[imputer], field) for case in cases]))
            for imputer in imputation.IMPUTERS
        }
        yield beats("missing", f"RMSE of hidden entries, {rows}", means, lower=True)


def categories(folder: Path, size: Size) -> Iterator[Line]:
    first = mixed_tables.FIRST_REPORTED
    draws = [mixed_tables.expenses(first + i) for i in range(size.n_draws)]
    others = mixed_tables.oddbench(folder)[1 :: size.oddbench_step]
    for name, tables in (("expenses", draws), ("OddBench", others)):
        means = {}
        for detector, scores in mixed_tables.DETECTORS.items():
            measures = [
                mixed_tables.measures(table, scores(table, seed))
                for table in tables
                for seed in range(size.n_seeds)
            ]
            means[detector] = np.mean(measures, axis=0)
        for i, what in enumerate(("ROC AUC", "average precision")):
            means_of = {key: float(value[i]) for key, value in means.items()}
            yield beats("categories", f"{what}, {name}", means_of)


def graph(folder: Path, size: Size) -> Iterator[Line]:
    what = "largest difference, all losses and errors"
    yield bounded("graph", what, graphs.largest_difference("float64"), {}, 1e-7)


def reasons(folder: Path, size: Size) -> Iterator[Line]:
    for name, load in (("breast cancer", load_breast_cancer), ("digits", load_digits)):
        X = np.resize(load().data, (1_000, load().data.shape[1]))
        detector = AutoencoderOutlierDetector(random_state=0).fit(X[:400])
        scoring = family.measure_seconds(partial(detector.score_samples, X))
        seconds = family.measure_seconds(partial(detector.explain, X, top=3))
        what = f"seconds for 1,000 rows, {name}"
        yield bounded("reasons", what, seconds, {"score_samples": scoring}, 5)
        share = float(detector.explain(X, top=3)["share"].sum() / len(X))
        means = {"skae": share, "equal shares": 3 / X.shape[1]}
        yield beats("reasons", f"share of the first three features, {name}", means)


def series_and_images(folder: Path, size: Size) -> Iterator[Line]:
    detectors = {"skae": "skae, input_shape", "conv": "skae, conv", "LOF": "LOF"}
    for clean in (True, False):
        means = {
            name: np.mean(
                [
                    windows.detect(
                        detectors[name], series, 100 + seed, size.n_points, clean=clean
                    )
                    for series in REPORTED.values()
                    for seed in range(size.n_seeds)
                ],
                axis=0,
            )
            for name in ("skae", "LOF")
        }
        kind = "clean" if clean else "faulty"
        for i, what in enumerate(("windows", "points")):
            values = {name: float(mean[i]) for name, mean in means.items()}
            yield beats("windows", f"ROC AUC of {what}, {kind} series", values)
    areas = {
        name: [
            windows.recognize(detector, small_digits(), digit, 100).rows
            for digit in size.digits
        ]
        for name, detector in detectors.items()
    }
    values = {name: float(np.mean(each)) for name, each in areas.items()}
    yield beats("windows", "ROC AUC, one digit and others", values)


def suitable_widths(folder: Path, size: Size) -> Iterator[Line]:
    torch.set_num_threads(1)
    for name, k, means in widths.denoised(folder, size.n_rows):
        ours = means.pop("skae")
        what, is_met = f"decibels, {name}, {k} components", ours > means["noisy"]
        # Two components are shown as a width that does not suit the task.
        target = "none" if k == 2 else "above noisy"
        yield Line("widths", what, ours, means, target, is_met or k == 2)
    of_mnist = folder if size == FULL else None
    for row, table, result in widths.results(of_mnist, size.n_rows, list(SETTINGS)):
        quantity = "accuracy" if row == "features" else "explained variance"
        what = f"{quantity}, {row}, {table}"
        peer = next(iter(result.peers))
        target = f"as {peer}, 1 % dead"
        peers = {**result.peers, "dead": result.n_dead}
        yield Line("widths", what, result.value, peers, target, result.is_useful)


def samples(folder: Path, size: Size) -> Iterator[Line]:
    """Distinguish drawn rows from real ones by a forest: .5 is the best."""
    fields = {"auc_of_all": "rows of the fit", "auc": "rows that were held out"}
    results = []
    for table in generation.load_tables(generation.REPORTED, folder):
        runs = [generation.measure(table, seed) for seed in range(size.n_seeds)]
        results += runs
        yield sampled(f"ROC AUC, {table.name}, rows of the fit", runs, "auc_of_all")
    for field, rows in fields.items():
        yield sampled(f"ROC AUC, all tables, {rows}", results, field)


def sampled(what: str, runs: list[Any], field: str) -> Line:
    """Compare the means of a field of the results of all generators."""
    means = {
        name: float(np.mean([getattr(run[name], field) for run in runs]))
        for name in runs[0]
    }
    return bounded("samples", what, means.pop("skae"), means, MAX_SAMPLE_AUC)


def costs(folder: Path, size: Size) -> Iterator[Line]:
    X = load_digits().data[:1_200]
    narrow, wide = (
        family.measure_seconds(
            partial(AutoencoderTransformer(k, n_threads=1, random_state=0).fit, X)
        )
        for k in (2, 200)
    )
    pca = family.measure_seconds(lambda: PCA().fit(X))
    what = "seconds, 200 components, 1,200 x 64"
    peers = {"2 components": narrow, "PCA": pca}
    yield bounded("costs", what, wide, peers, 20 * narrow)
    torch.set_num_threads(multiprocessing.cpu_count())
    for n_threads in ("auto", 1):
        alone = seconds_of_fit(X, n_threads=n_threads)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.apply_async(spin)
            busy = seconds_of_fit(X, n_threads=n_threads)
        what = f"seconds beside a busy process, n_threads={n_threads}"
        yield bounded("costs", what, busy, {"alone": alone}, 3 * alone)


def seconds_of_fit(X: np.ndarray, **settings: Any) -> float:
    start = time.perf_counter()
    AutoencoderTransformer(random_state=0, **settings).fit(X)
    return time.perf_counter() - start


def spin() -> None:
    """Keep a processor busy until the process is ended."""
    while True:
        pass


SECTIONS: dict[str, Callable[[Path, Size], Iterator[Line]]] = {
    "missing": missing,
    "categories": categories,
    "graph": graph,
    "reasons": reasons,
    "windows": series_and_images,
    "widths": suitable_widths,
    "samples": samples,
    "costs": costs,
}


if __name__ == "__main__":
    main()
