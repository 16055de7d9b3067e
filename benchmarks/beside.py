"""Do the same tasks with skae and with other libraries.

- plane: digits in a plane. Explained variance of the reconstruction, trustworthiness
  of the plane (10 neighbours), accuracy of the five nearest neighbours in it, all of
  held-out rows, and processor seconds of `fit`, of `transform` and of
  `inverse_transform` for these rows. The methods are PCA, KernelPCA with a Gaussian
  kernel, umap-learn, encdr, PyOD's AutoEncoder and skae; with `--data`, 2,000 digits
  of MNIST, too.
- table: twelve components of tables with 16 or more columns, without UMAP, whose
  inverse is for few dimensions; needs `--data`.
- outliers: ROC AUC on tables with outliers, and seconds of `fit` and of the scores.
  The detectors are fitted to half of the rows, with the outliers in it, and score the
  other half. The methods are PyOD's IForest and AutoEncoder, scikit-learn's
  LocalOutlierFactor and skae; needs `--data`.
- can: what each estimator does with the input of a scikit-learn user; each is tried,
  and the errors are printed.

Every method has its defaults, apart from the number of components. Rows are
standardized by the training rows; pixels are divided by their maximum. PyOD's
AutoEncoder has no method that returns codes, so its own network is called; the
narrowest of its hidden layers has the number of components. "lines" counts the lines
from the construction to codes, reconstructions or scores of new rows, without
imports. Values are medians over the seeds. Each method is first fitted to a few rows,
which compiles UMAP's functions. It uses one thread. From the repository root, with
skae installed and::

    pip install umap-learn pyod lightning encdr
    python benchmarks/beside.py --data DIR

where DIR contains mnist.npz and adbench/*.npz (see benchmarks/reduction.py). The run
takes about 15 minutes. Packages that are missing are named and left out. encdr 1.2
asks for Python 3.12; ``pip install --ignore-requires-python --no-deps encdr`` installs
it on 3.11, too.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import pickle
import platform
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from attempts import format_error, quiet
from scipy.sparse import csr_matrix
from sklearn.base import clone, is_outlier_detector
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, KernelPCA
from sklearn.manifold import trustworthiness
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier, LocalOutlierFactor
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from threadpoolctl import threadpool_limits

import skae
from skae import AutoencoderOutlierDetector, AutoencoderTransformer

MISSING = "-"
N_NEIGHBORS = 10
N_MNIST = 2_000
MAX_ROWS = 5_000
WIDE = 12
MIN_FEATURES = 16
# Tables of ADBench; the first ten with enough columns are reduced, too.
MAX_TABLES = 10


# Methods that reduce. Each takes the training rows, the number of components and the
# seed, and returns functions for codes and reconstructions, or None for what it lacks.


def by_pca(X, n_components, seed):
    model = PCA(n_components, random_state=seed).fit(X)
    return model.transform, model.inverse_transform


def by_kernel_pca(X, n_components, seed):
    model = KernelPCA(
        n_components, kernel="rbf", fit_inverse_transform=True, random_state=seed
    ).fit(X)
    return model.transform, model.inverse_transform


def by_umap(X, n_components, seed):
    from umap import UMAP

    model = UMAP(n_components=n_components, random_state=seed).fit(X)
    return model.transform, model.inverse_transform


def by_encdr(X, n_components, seed):
    from encdr import ENCDR

    model = ENCDR(latent_dim=n_components, random_state=seed).fit(X)
    return model.transform, model.inverse_transform


def by_pyod(X, n_components, seed):
    from pyod.models.auto_encoder import AutoEncoder

    widths = [64, n_components]
    model = AutoEncoder(hidden_neuron_list=widths, random_state=seed, verbose=0).fit(X)
    network = model.model.eval()
    # A constant column would be divided by 1e-8 and dominate the error of new rows.
    scale = np.where(model.X_std > 0, model.X_std + 1e-8, 1.0)

    def encode(X):
        Z = torch.as_tensor((X - model.X_mean) / scale, dtype=torch.float32)
        return network.encoder(Z).detach().numpy()

    def decode(Z):
        X_hat = network.decoder(torch.as_tensor(Z)).detach().numpy()
        return X_hat * scale + model.X_mean

    return encode, decode


def by_skae(X, n_components, seed):
    model = AutoencoderTransformer(n_components, random_state=seed).fit(X)
    return model.transform, model.inverse_transform


class Method(NamedTuple):
    """A function of this file, and the package that it needs besides skae's."""

    function: Callable
    package: str | None = None

    @property
    def n_lines(self) -> int:
        """Number of lines that a user writes, without imports and blank lines."""
        lines = inspect.getsource(self.function).splitlines()[1:]
        body = textwrap.dedent("\n".join(lines)).splitlines()
        return sum(
            bool(line) and "import" not in line and not line.startswith("#")
            for line in body
        )


REDUCERS = {
    "PCA": Method(by_pca),
    "KernelPCA": Method(by_kernel_pca),
    "UMAP": Method(by_umap, "umap"),
    "encdr": Method(by_encdr, "encdr"),
    "PyOD AE": Method(by_pyod, "pyod"),
    "skae": Method(by_skae),
}


# Methods that detect. Each returns a function for scores, high for outliers.


def by_forest(X, seed):
    from pyod.models.iforest import IForest

    return IForest(random_state=seed).fit(X).decision_function


def by_pyod_autoencoder(X, seed):
    from pyod.models.auto_encoder import AutoEncoder

    return AutoEncoder(random_state=seed, verbose=0).fit(X).decision_function


def by_lof(X, seed):
    detector = LocalOutlierFactor(novelty=True).fit(X)
    return lambda X: -detector.decision_function(X)


def by_skae_detector(X, seed):
    detector = AutoencoderOutlierDetector(random_state=seed).fit(X)
    return lambda X: -detector.decision_function(X)


DETECTORS = {
    "PyOD IForest": Method(by_forest, "pyod"),
    "PyOD AE": Method(by_pyod_autoencoder, "pyod"),
    "LOF": Method(by_lof),
    "skae": Method(by_skae_detector),
}


def main() -> None:
    arguments = parse_arguments()
    logging.disable(logging.WARNING)  # of Lightning
    print_versions()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        for name, section in SECTIONS.items():
            if name in arguments.only:
                print(f"\n{name}", flush=True)
                section(arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with mnist.npz and adbench/")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    arguments = parser.parse_args()
    if arguments.data is None:
        print("No --data: digits of scikit-learn only, and no outliers.")
    elif not (arguments.data / "mnist.npz").exists():
        parser.error(f"--data {arguments.data} lacks mnist.npz.")
    elif not list((arguments.data / "adbench").glob("*.npz")):
        parser.error(f"--data {arguments.data} lacks adbench/*.npz.")
    return arguments


def print_versions() -> None:
    names = ["scikit-learn", "torch", "umap-learn", "encdr", "pyod"]
    found = [f"skae {skae.__version__}"]
    for name in names:
        with suppress(ModuleNotFoundError):
            found.append(f"{name} {version(name)}")
    print(f"{processor()}, one thread; Python {platform.python_version()}")
    print(", ".join(found))


def processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.processor()


def installed(methods: dict[str, Method]) -> dict[str, Method]:
    """Return the methods whose package is installed; name the others."""
    present = {
        name: method
        for name, method in methods.items()
        if method.package is None or find_spec(method.package)
    }
    if missing := methods.keys() - present.keys():
        print(f"MISSING, not installed: {', '.join(sorted(missing))}")
    return present


# Sections


def print_planes(arguments: argparse.Namespace) -> None:
    tables = {"digits": (load_digits().data / 16, load_digits().target)}
    if arguments.data is not None:
        with np.load(arguments.data / "mnist.npz") as file:
            rows = np.random.default_rng(0).permutation(60_000)[:N_MNIST]
            images, labels = file["X_train"][rows], file["y_train"][rows]
        tables["mnist"] = images.reshape(N_MNIST, -1) / 255, labels
    for table, (X, y) in tables.items():
        rows = compare(installed(REDUCERS), X, y, 2, arguments.seeds, standardize=False)
        print(f"{table}, {X.shape[0]} rows x {X.shape[1]}, two components")
        print_table(rows)
        print_ratio(rows)


def print_tables(arguments: argparse.Namespace) -> None:
    if arguments.data is None:
        print("needs --data")
        return
    methods = installed(REDUCERS)
    methods.pop("UMAP", None)
    tables = {}
    for name, (X, _) in load_adbench(arguments.data).items():
        if X.shape[1] >= MIN_FEATURES and len(tables) < MAX_TABLES:
            tables[name] = X
    results = {}
    for name, X in tables.items():
        results[name] = compare(methods, X, None, WIDE, arguments.seeds)
        values = ", ".join(
            f"{method} {row['explained']}" for method, row in results[name].items()
        )
        print(f"{name:20}{X.shape[0]:6d} x {X.shape[1]:<4d} explained: {values}")
    for method in methods:
        each = [float(result[method]["explained"]) for result in results.values()]
        seconds = [float(result[method]["fit s"]) for result in results.values()]
        print(
            f"{method:10} explained: mean {np.mean(each):.3f}, "
            f"fit: median {np.median(seconds):.2f} s"
        )


def compare(methods, X, y, n_components, seeds, standardize=True):
    """Return the values of each method by their names, medians over the seeds."""
    results = {}
    for name, method in methods.items():
        with quiet():
            method.function(np.random.default_rng(0).random((200, 5)), 2, 0)
        runs = [reduce(method, X, y, n_components, seed, standardize) for seed in seeds]
        results[name] = {
            key: f"{np.median([run[key] for run in runs]):.3g}" for key in runs[0]
        }
        results[name]["lines"] = str(method.n_lines)
    return results


def reduce(method, X, y, n_components, seed, standardize):
    rows = np.arange(len(X))
    train, test = train_test_split(rows, test_size=0.3, random_state=seed, stratify=y)
    if standardize:
        X = StandardScaler().fit(X[train]).transform(X)
    with quiet():
        (encode, decode), fit_seconds = timed(
            method.function, X[train], n_components, seed
        )
        Z, transform_seconds = timed(encode, X[test])
        X_hat, inverse_seconds = timed(decode, Z)
        Z_train = encode(X[train])
    error = np.sum((X[test] - X_hat) ** 2)
    result = {
        "explained": 1 - error / np.sum((X[test] - X[train].mean(axis=0)) ** 2),
        "fit s": fit_seconds,
        "transform s": transform_seconds,
        "inverse s": inverse_seconds,
    }
    if y is not None:
        result["trustworthiness"] = trustworthiness(X[test], Z, n_neighbors=N_NEIGHBORS)
        classifier = KNeighborsClassifier().fit(Z_train, y[train])
        result["5-NN accuracy"] = classifier.score(Z, y[test])
    return result


def timed(function, *arguments):
    began = time.process_time()
    result = function(*arguments)
    return result, time.process_time() - began


def print_table(rows: dict[str, dict[str, str]]) -> None:
    table = pd.DataFrame(rows).T.fillna(MISSING)
    print(table.to_string())


def print_ratio(rows: dict[str, dict[str, str]]) -> None:
    if "UMAP" in rows:
        ratio = float(rows["UMAP"]["inverse s"]) / float(rows["skae"]["inverse s"])
        print(f"inverse_transform of skae is {ratio:.0f} times faster than UMAP's")


def load_adbench(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    tables = {}
    for path in sorted((folder / "adbench").glob("*.npz")):
        with np.load(path) as file:
            X, y = file["X"], file["y"]
        rows = np.random.default_rng(0).permutation(len(X))[:MAX_ROWS]
        tables[path.stem] = X[rows], y[rows]
    return tables


def print_outliers(arguments: argparse.Namespace) -> None:
    if arguments.data is None:
        print("needs --data")
        return
    methods = installed(DETECTORS)
    warm = np.random.default_rng(0).random((200, 5))
    results: dict[str, list[np.ndarray]] = {name: [] for name in methods}
    for table, (X, y) in load_adbench(arguments.data).items():
        for name, method in methods.items():
            with quiet():
                method.function(warm, 0)
                runs = [detect(method, X, y, seed) for seed in arguments.seeds]
            results[name].append(np.median(runs, axis=0))
        line = ", ".join(f"{name} {runs[-1][0]:.3f}" for name, runs in results.items())
        print(f"{table:20} {line}", flush=True)
    for name, runs in results.items():
        area, fit_seconds, score_seconds = np.array(runs).T
        print(
            f"{name:14} ROC AUC: mean {area.mean():.3f}, fit: median "
            f"{np.median(fit_seconds):.2f} s, scores: median "
            f"{np.median(score_seconds):.3f} s, {methods[name].n_lines} lines"
        )


def detect(method, X, y, seed):
    train, test = train_test_split(
        np.arange(len(X)), test_size=0.5, random_state=seed, stratify=y
    )
    X = StandardScaler().fit(X[train]).transform(X)
    score, fit_seconds = timed(method.function, X[train], seed)
    scores, score_seconds = timed(score, X[test])
    return roc_auc_score(y[test], scores), fit_seconds, score_seconds


# What each can do


def build_estimators() -> dict[str, tuple[Callable[[], Any], str | None]]:
    """Return functions that build the estimators, and the packages that they need."""

    def umap():
        from umap import UMAP

        return UMAP(n_components=2, random_state=0)

    def encdr():
        from encdr import ENCDR

        return ENCDR(latent_dim=2, max_epochs=5, random_state=0)

    def pyod():
        from pyod.models.auto_encoder import AutoEncoder

        return AutoEncoder(random_state=0, verbose=0)

    return {
        "PCA": (lambda: PCA(2, random_state=0), None),
        "KernelPCA": (lambda: KernelPCA(2, fit_inverse_transform=True), None),
        "UMAP": (umap, "umap"),
        "encdr": (encdr, "encdr"),
        "PyOD AE": (pyod, "pyod"),
        "skae": (lambda: AutoencoderTransformer(2, random_state=0), None),
        "skae detector": (lambda: AutoencoderOutlierDetector(random_state=0), None),
    }


def fitted_to(build, X):
    return predictions(build().fit(X), X)


def codes_of_new_rows(build, X):
    assert build().fit(X).transform(X[:5]).shape == (5, 2)


def rows_from_codes(build, X):
    estimator = build().fit(X)
    assert estimator.inverse_transform(estimator.transform(X)).shape == X.shape


def missing_values(build, X):
    X = X.copy()
    X[::7, 1] = np.nan
    fitted_to(build, X)


def sparse_matrices(build, X):
    fitted_to(build, csr_matrix(X))


def weights_of_rows(build, X):
    weights = np.random.default_rng(1).exponential(size=len(X))
    weighted = predictions(build().fit(X, sample_weight=weights), X)
    assert not np.array_equal(weighted, fitted_to(build, X))


def learns_in_parts(build, X):
    build().partial_fit(X).partial_fit(X)


def few_rows(build, X):
    predictions(build().fit(X[:20]), X)


def constant_column(build, X):
    X = X * [1, 0, 1, 1, 1, 1]
    estimator = build().fit(X)
    X[0, 1] = 1.0  # a new value
    assert np.abs(predictions(estimator, X)).max() < LARGEST


def names_output(build, X):
    frame = pd.DataFrame(X, columns=[f"column {j}" for j in range(X.shape[1])])
    output = build().set_output(transform="pandas").fit_transform(frame)
    assert isinstance(output, pd.DataFrame)


def clones(build, X):
    fitted_to(lambda: clone(build()), X)


def is_pickled(build, X):
    estimator = pickle.loads(pickle.dumps(build().fit(X)))
    assert len(predictions(estimator, X)) == len(X)


def repeats(build, X):
    first = fitted_to(build, X)
    use_global_generators()
    np.testing.assert_array_equal(first, fitted_to(build, X))


def leaves_global_generators(build, X):
    use_global_generators()
    states = np.random.get_state()[1], torch.get_rng_state()  # noqa: NPY002
    build().fit(X)
    np.testing.assert_array_equal(states[0], np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(states[1], torch.get_rng_state())


def use_global_generators():
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)


def predicts_rows_alone(build, X):
    estimator = build().fit(X)
    together = predictions(estimator, X)[:5]
    single = np.concatenate([predictions(estimator, X[[i]]) for i in range(5)])
    np.testing.assert_allclose(together, single, rtol=1e-6)


def passes_estimator_checks(build, X):
    results = check_estimator(build(), on_fail=None, on_skip=None)
    failed = [r["check_name"] for r in results if r["status"] == "failed"]
    assert not failed, f"{len(failed)} of {len(results)} fail: {', '.join(failed)}"


def predictions(estimator, X):
    """Return codes or scores."""
    if hasattr(estimator, "transform"):
        return np.asarray(estimator.transform(X))
    return np.asarray(estimator.decision_function(X))


# Trials by what they show; a trial fails by raising an error.
TRIALS = {
    "missing values": missing_values,
    "sparse matrices": sparse_matrices,
    "weights of rows": weights_of_rows,
    "partial_fit": learns_in_parts,
    "20 rows": few_rows,
    "constant column": constant_column,
    "clone": clones,
    "pickle": is_pickled,
    "same seed, same result": repeats,
    "global generators untouched": leaves_global_generators,
    "a row alone as among others": predicts_rows_alone,
    "all estimator checks": passes_estimator_checks,
}
TRIALS_OF_TRANSFORMERS = {
    "codes of new rows": codes_of_new_rows,
    "rows from codes": rows_from_codes,
    "data frames as output": names_output,
}
# A score or a code beyond it, after a new value in a constant column.
LARGEST = 1e6


def print_abilities(arguments: argparse.Namespace) -> None:
    X = np.random.default_rng(0).normal(size=(140, 6))
    results: dict[str, dict[str, str]] = {}
    reasons = []
    for name, (build, package) in build_estimators().items():
        if package is not None and find_spec(package) is None:
            print(f"MISSING, not installed: {name}")
            continue
        with quiet():
            trials = TRIALS | (
                {} if is_outlier_detector(build()) else TRIALS_OF_TRANSFORMERS
            )
        results[name] = {}
        for trial, attempt in trials.items():
            try:
                with quiet():
                    attempt(build, X)
            except Exception as error:
                results[name][trial] = "no"
                reasons.append(f"{name}, {trial}: {format_error(error)}")
            else:
                results[name][trial] = "yes"
    print(pd.DataFrame(results).fillna(MISSING).to_string())
    print("\nReasons:\n" + "\n".join(reasons))


SECTIONS: dict[str, Callable[[argparse.Namespace], None]] = {
    "plane": print_planes,
    "table": print_tables,
    "outliers": print_outliers,
    "can": print_abilities,
}


if __name__ == "__main__":
    main()
