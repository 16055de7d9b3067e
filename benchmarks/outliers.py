"""Measure the outlier detector and compare it with other detectors.

Four settings compare how well scores rank the test rows: ROC AUC and average precision
of `AutoencoderOutlierDetector` and of the detectors of PyOD, all with their defaults,
and of the mean distance to five nearest training rows (DTE-NP [2]_) and to one (NN1):

- contaminated: ADBench's tables, fitted to training rows that include outliers;
- clean: the same tables, fitted to the inliers of the training rows only;
- odd: OddBench's tables, whose training rows are inliers, standardised by them;
- digits: each digit of MNIST in turn as the inliers: 1,000 training images of it,
  drawn with the seed, and the 10,000 test images, with pixels in [0, 1]. Here the
  reconstruction error of `AutoencoderTransformer` with 16 components is compared, too.

The last three have a second line for skae with ``trim=0``, and clean and odd a third
one with ``n_neighbors=0``, which have no ranks. Other sections measure what else a
detector returns:

- threshold: rows that `predict` flags with ``contamination="auto"``, compared with
  scikit-learn's IsolationForest: precision, recall and share of flagged test rows
  after a fit to contaminated rows, and share of flagged inliers after a fit to inliers;
- generated: the same two detectors on two clusters of 200 rows each with uniform
  outliers that keep their distance from both: share of the outliers that is found,
  share of the other training rows that is flagged, and that of new rows without
  outliers; and on eight rows, two of them outliers. This section needs no data.
- pvalues: share of the inliers among the test rows whose p-value is at most 0.05, and
  what the procedure of Benjamini and Hochberg discovers among the test rows with a
  bound of 0.1 on the share of false discoveries, after a fit to inliers and after one
  to contaminated rows; compared with an IsolationForest that is fitted to half of the
  training rows and has its p-values from the other half (split conformal prediction);
- reasons: how often the feature that contributes most is the one that was spoilt: 50
  inliers among the test rows in which one value was shifted by four standard
  deviations, and 50 in which one was exchanged for another value of its column;
  compared with KernelSHAP [3]_ over IsolationForest in the processor time that skae
  takes for the fit and the contributions, and in ten times this time (but at least the
  time for 32 coalitions of features per row);
- seconds: processor time of a fit to the contaminated training rows, with the rows that
  members hold out from each other for p-values and without, in alternation, beside
  IsolationForest.

At most 10,000 rows are drawn per table of ADBench; 30% of them are test rows,
stratified by label; features are standardised by all training rows. A result is the
mean over the seeds, then over the data sets; standard errors are those of means over
the data sets, and of paired differences where methods are compared. Ranks and the
p-value of Wilcoxon's signed-rank test are those of the data sets' means. Fits run one
after another on one thread; their processor time is measured, after each method has
been fitted once to other rows. A method that needs more than 60 seconds of processor
time for a measurement on a data set (``--limit``) is not measured with further seeds.
Its ROC AUC is missing then, shown as nan, and it is compared on the other data sets and
has no rank. From the repository root, with the
package, PyOD and shap installed::

    python benchmarks/outliers.py --data DIR

where DIR contains the data sets as adbench/*.npz (ADBench's classical tables: arrays X
and y, where 1 is an outlier) [1]_, oddbench/*.npz (arrays X_train, X_test and y_test)
and mnist.npz. The whole run takes long; it can be resumed with::

    python benchmarks/outliers.py --data DIR --csv results.csv

which appends each result (section, method, data set, seed, seconds, error message and
the measured values) to results.csv as soon as it is measured, and reads the results
that are in the file, including failures: delete the lines that are to be measured
again, for example those of skae after a change to it. Some sections, some methods, and
the data sets whose names contain a word (``--only`` is the same as ``--setting``)::

    python benchmarks/outliers.py --data DIR --setting clean odd --methods skae KNN
    python benchmarks/outliers.py --data DIR --tables wine yeast --seeds 0

References
----------
.. [1] Han, S., Hu, X., Huang, H., Jiang, M., & Zhao, Y. (2022). ADBench: Anomaly
   detection benchmark. NeurIPS 35.
.. [2] Livernoche, V., Jain, V., Hezaveh, Y., & Ravanbakhsh, S. (2024). On diffusion
   modeling for anomaly detection. ICLR.
.. [3] Lundberg, S. M., & Lee, S.-I. (2017). A unified approach to interpreting model
   predictions. NeurIPS 30.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import outliers_data
import torch
from outliers_data import FILES, DataSet, eight_rows, two_clusters
from outliers_explain import KINDS
from outliers_measures import RANKINGS, Key, Result, measure
from outliers_peers import (
    FOREST,
    KERNEL_SHAP,
    PEERS,
    SKAE,
    SKAE_CLEAN,
    SKAE_ERROR,
    TRANSFORMER,
    missing_package,
)
from results_file import append, read
from scipy.stats import rankdata, wilcoxon
from threadpoolctl import threadpool_limits

from skae import AutoencoderOutlierDetector


class Section(NamedTuple):
    """What a section compares on which data.

    Attributes
    ----------
    title : str
        First line of the output.
    source : str or None
        Key of FILES; None if the section needs no data.
    methods : tuple of str
        Methods in the order of the columns.
    column : str
        The measure that is printed for each data set.
    """

    title: str
    source: str | None
    methods: tuple[str, ...]
    column: str


SECTIONS = {
    "contaminated": Section(
        "contaminated: ROC AUC, outliers among the training rows",
        "adbench",
        (SKAE, *PEERS),
        "roc_auc",
    ),
    "clean": Section(
        "clean: ROC AUC, fitted to inliers only",
        "adbench",
        (SKAE, SKAE_CLEAN, SKAE_ERROR, *PEERS),
        "roc_auc",
    ),
    "odd": Section(
        "odd: ROC AUC, OddBench, fitted to inliers only",
        "odd",
        (SKAE, SKAE_CLEAN, SKAE_ERROR, *PEERS),
        "roc_auc",
    ),
    "digits": Section(
        "digits: ROC AUC, MNIST, fitted to images of one digit",
        "digits",
        (SKAE, SKAE_CLEAN, TRANSFORMER, *PEERS),
        "roc_auc",
    ),
    "threshold": Section(
        "threshold: share of test rows flagged, contamination='auto'",
        "adbench",
        (SKAE, FOREST),
        "flagged",
    ),
    "generated": Section(
        "generated: shares of rows flagged, contamination='auto'",
        None,
        (SKAE, FOREST),
        "recall",
    ),
    "pvalues": Section(
        "pvalues: share of inliers with p <= .05, fitted to inliers",
        "adbench",
        (SKAE, FOREST),
        "clean_alarms",
    ),
    "reasons": Section(
        "reasons: share of rows whose spoilt column contributes most, shifted values",
        "adbench",
        (SKAE, *KERNEL_SHAP),
        "shift",
    ),
    "seconds": Section(
        "seconds: processor time of a fit to contaminated rows",
        "adbench",
        (SKAE, FOREST),
        "seconds",
    ),
}
METHODS = (
    SKAE,
    SKAE_CLEAN,
    SKAE_ERROR,
    TRANSFORMER,
    *PEERS,
    FOREST,
    *KERNEL_SHAP,
)
UNRANKED = (SKAE_CLEAN, SKAE_ERROR)  # no default

# Numbers of features and of outliers of the section generated.
GENERATED_FEATURES = (2, 5, 20)
GENERATED_OUTLIERS = (5, 20, 60, 100)

SEEDS = (0, 1, 2, 3)
LIMIT = 60.0  # seconds


class ResultStore:
    """Results that have been measured, stored in a CSV file.

    Parameters
    ----------
    path : Path or None
        A CSV file, which need not exist; None stores nothing.
    limit : float
        Processor time that one measurement may take.
    """

    def __init__(self, path: Path | None, limit: float) -> None:
        self.path = path
        self.limit = limit
        self.results: dict[Key, Result] = {}
        if path is not None and path.exists():
            self.results = {result.key: result for result in read_results(path)}

    def result(self, section: str, method: str, data: DataSet, seed: int) -> Result:
        """Return the stored result, or measure and store it.

        A method that took too long with another seed is not measured again.
        """
        key = (section, method, data.name, seed)
        if key not in self.results:
            unfinished = self._unfinished(key)
            result = unfinished or measure(key, data, self.limit)
            self.results[key] = result
            values = " ".join(f"{k}={float(v)}" for k, v in result.measures.items())
            append(self.path, Result._fields, [(*result[:-1], values)])
        return self.results[key]

    def _unfinished(self, key: Key) -> Result | None:
        """Return the result of a method that took too long with another seed."""
        *case, seed = key
        for (*other, _), result in self.results.items():
            if other == case and result.is_unfinished:
                return result._replace(seed=seed)
        return None


def read_results(path: Path) -> Iterator[Result]:
    for section, method, table, seed, seconds, error, line in read(
        path, Result._fields
    ):
        pairs = (pair.split("=") for pair in line.split())
        measures = {name: float(value) for name, value in pairs}
        key = (section, method, table, int(seed))
        yield Result(*key, float(seconds), error, measures)


def main() -> None:
    arguments = parse_arguments()
    selected = select_data(arguments.data, arguments.setting, arguments.tables)
    store = ResultStore(arguments.csv, arguments.limit)
    torch.set_num_threads(1)
    report(versions())
    missing = {method: missing_package(method) for method in arguments.methods}
    for package in sorted({package for package in missing.values() if package}):
        report(f"MISSING: {package} is not installed; its methods are skipped.")
    methods = {method for method, package in missing.items() if package is None}
    with threadpool_limits(1):
        for section in arguments.setting:
            report()
            run_section(section, methods, selected, arguments, store)


def run_section(
    section: str,
    methods: set[str],
    selected: dict[str, list[str]],
    arguments: argparse.Namespace,
    store: ResultStore,
) -> None:
    source = SECTIONS[section].source
    compared = [method for method in SECTIONS[section].methods if method in methods]
    if section == "pvalues" and not hasattr(AutoencoderOutlierDetector, "p_values"):
        report("pvalues: this version of skae has no p_values.")
        compared = [method for method in compared if method != SKAE]
    if not compared:
        available = ", ".join(SECTIONS[section].methods)
        report(f"{section}: none of {available} was selected.")
    elif source is None:
        print_generated(compared, arguments.seeds, store)
    elif not selected[source]:
        report(f"{section}: no name contains {' or '.join(arguments.tables)}.")
    else:
        data = outliers_data.load(arguments.data, source, selected[source])
        results = print_section(section, compared, data, arguments.seeds, store)
        if section == "contaminated" and arguments.figure:
            draw(results, compared, arguments.figure)


def parse_arguments() -> argparse.Namespace:
    description, *_ = (__doc__ or "").split("\n\nReferences")
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help=f"folder that contains {', '.join(FILES.values())}",
    )
    parser.add_argument(
        "--setting",
        "--only",
        nargs="+",
        choices=list(SECTIONS),
        default=list(SECTIONS),
        metavar="SECTION",
        help=f"these sections only, of {', '.join(SECTIONS)}",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=METHODS,
        metavar="METHOD",
        help=f"these methods only, of {'; '.join(METHODS)}",
    )
    parser.add_argument(
        "--tables",
        nargs="+",
        default=[""],
        metavar="PART",
        help="only data sets whose name contains one of these",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=SEEDS,
        metavar="SEED",
        help=f"seeds of rows, split and method (default: {' '.join(map(str, SEEDS))})",
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=LIMIT,
        metavar="SECONDS",
        help=f"processor time of a method on a data set (default: {LIMIT:g})",
    )
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="append each result to FILE, and skip fits whose results are in it",
    )
    parser.add_argument(
        "--figure",
        type=Path,
        metavar="FILE",
        help="plot the ROC AUC of the section contaminated for each data set",
    )
    return parser.parse_args()


def select_data(
    folder: Path | None, sections: list[str], parts: list[str]
) -> dict[str, list[str]]:
    """Return the names of the selected data sets of each source; exit if none."""
    sources = dict.fromkeys(
        source for source in (SECTIONS[name].source for name in sections) if source
    )
    selected = {}
    available: list[str] = []
    for source in sources:
        if folder is None:
            sys.exit(f"MISSING: data. Give --data DIR that contains {FILES[source]}.")
        names = outliers_data.names(folder, source)
        if not names:
            sys.exit(f"MISSING: {folder / FILES[source]}.")
        selected[source] = [name for name in names if any(p in name for p in parts)]
        available += names
    if sources and not any(selected.values()):
        names = sorted(available)
        sys.exit(
            f"No name contains {' or '.join(parts)}. Data sets: {', '.join(names)}."
        )
    return selected


def report(line: str = "") -> None:
    print(line, flush=True)


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def versions() -> str:
    packages = []
    for name in ("numpy", "scikit-learn", "torch", "pyod", "shap"):
        try:
            packages.append(f"{name} {version(name)}")
        except PackageNotFoundError:  # which main reports
            continue
    return f"Python {platform.python_version()}, {', '.join(packages)}; one thread"


# A section


def print_section(
    section: str,
    methods: list[str],
    tables: Iterator[DataSet],
    seeds: list[int],
    store: ResultStore,
) -> list[Result]:
    """Print one line per data set as soon as it is measured, then the summary."""
    title, _, _, column = SECTIONS[section]
    report(f"{title}; means over {count(len(seeds), 'seed')}")
    heads = "".join(f"{name:>{width(name)}} " for name in methods)
    report(f"{'data set':29}{'rows':>7}{'cols':>6}{'outliers':>10}{heads}".rstrip())
    results: list[Result] = []
    for data in tables:
        n_rows, n_features, outliers = data.size()
        line = f"{data.name:29}{n_rows:7d}{n_features:6d}{outliers:10.1%}"
        for method in methods:
            progress(f"{section}, {data.name}, {method}")
            per_seed = [store.result(section, method, data, seed) for seed in seeds]
            mark = "*" if any(result.error for result in per_seed) else " "
            mean = table_means(per_seed, method, column)[0]
            line += f"{mean:{width(method)}.3f}{mark}"
            results += per_seed
        report(line.rstrip())
    report()
    PRINTERS[section](results, methods)
    print_failures(results)
    return results


def print_generated(methods: list[str], seeds: list[int], store: ResultStore) -> None:
    """Print what the detectors flag among generated rows, as means over the seeds."""
    report(f"{SECTIONS['generated'].title}; means over {count(len(seeds), 'seed')}")
    report(f"{'':28}" + "".join(f"{method:^36}" for method in methods).rstrip())
    heads = f"{'ROC AUC':>9}{'found':>8}{'false':>8}{'new':>8}   "
    report(f"{'rows':28}" + (heads * len(methods)).rstrip())
    cases = [
        [two_clusters(n_features, n_outliers, seed) for seed in seeds]
        for n_features in GENERATED_FEATURES
        for n_outliers in GENERATED_OUTLIERS
    ]
    cases += [[eight_rows(n, seed) for seed in seeds] for n in GENERATED_FEATURES]
    for tables in cases:
        line = f"{tables[0].name:28}"
        for method in methods:
            progress(f"generated, {tables[0].name}, {method}")
            results = [
                store.result("generated", method, table, seed)
                for table, seed in zip(tables, seeds, strict=True)
            ]
            for field in ("roc_auc", "recall", "flagged_inliers", "flagged_new"):
                mean = np.mean([result.measures[field] for result in results])
                line += f"{mean:{9 if field == 'roc_auc' else 8}.3f}"
            line += "   "
        report(line.rstrip())
    report()
    report("found: share of the outliers that is flagged; false: share of the other")
    report("training rows; new: share of new rows without outliers.")


def width(name: str) -> int:
    return max(len(name), 5) + 1


def table_means(results: list[Result], method: str, field: str) -> np.ndarray:
    """Return means over the seeds, of shape (n_tables,), in order of the results."""
    values: dict[str, list[float]] = {}
    for result in results:
        if result.method == method:
            values.setdefault(result.table, []).append(result.measures[field])
    return np.array([np.mean(per_seed) for per_seed in values.values()])


def median_seconds(results: list[Result], method: str) -> float:
    return float(
        np.median([result.seconds for result in results if result.method == method])
    )


def print_ranking(results: list[Result], methods: list[str]) -> None:
    """Print the methods by mean ROC AUC, and the difference of skae from each."""
    roc_auc = {m: table_means(results, m, "roc_auc") for m in methods}
    precision = {m: table_means(results, m, "average_precision") for m in methods}
    finished = {m: ~np.isnan(roc_auc[m]) for m in methods}
    ranked = [m for m in methods if m not in UNRANKED and finished[m].all()]
    rank = mean_ranks({m: roc_auc[m] for m in ranked})
    n_tables = len(roc_auc[methods[0]])
    report(f"means over {count(n_tables, 'data set')}")
    report(f"{'':41}{'skae minus method':^48}".rstrip())
    report(
        f"{'method':15}{'ROC AUC':>9}{'av.prec.':>10}{'rank':>7}{'ROC AUC':>12}"
        f"{'s.e.':>8}{'p':>8}{'av.prec.':>12}{'s.e.':>8}{'better':>12}{'seconds':>10}"
        f"{'finished':>12}"
    )
    for method in sorted(methods, key=lambda m: -np.nan_to_num(mean_of(roc_auc[m]))):
        both = finished[method] & finished.get(SKAE, True)
        means = mean_of(roc_auc[method]), mean_of(precision[method])
        line = f"{method:15}{means[0]:9.4f}{means[1]:10.4f}"
        line += f"{rank[method]:7.2f}" if method in rank else f"{'-':>7}"
        if method == SKAE or SKAE not in methods or not both.any():
            line += " " * 60
        else:
            gain = (roc_auc[SKAE] - roc_auc[method])[both]
            gain_in_precision = (precision[SKAE] - precision[method])[both]
            wins = f"{(gain > 0).sum()} of {len(gain)}"
            line += f"{mean_and_error(gain)}{signed_rank(gain):>8}"
            line += f"{mean_and_error(gain_in_precision)}{wins:>12}"
        done = f"{finished[method].sum()} of {n_tables}"
        report(f"{line}{median_seconds(results, method):10.3f}{done:>12}")
    report()
    report("rank: mean rank of the ROC AUC among the methods that have one, 1 is best.")
    report("p: of Wilcoxon's signed-rank test of the ROC AUC, two-sided.")
    report("better: number of data sets on which the ROC AUC of skae is higher.")
    report("seconds: median processor time of a fit.")
    report(
        "finished: number of data sets within the limit of time; means and comparisons"
    )
    report("are over these, and a method without all of them has no rank.")
    report(
        "Another failed fit (*) counts with ROC AUC 0.5 and average precision = share"
    )
    report("of outliers among the test rows.")
    report()
    print_seconds(results, methods)


def mean_of(values: np.ndarray) -> float:
    """Return the mean of the values that are not missing; NaN if all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else np.nan


def mean_ranks(values: dict[str, np.ndarray]) -> dict[str, float]:
    """Return each method's mean rank; the method with the largest value has rank 1."""
    if not values:
        return {}
    ranks = rankdata([-value for value in values.values()], axis=0)
    return dict(zip(values, ranks.mean(axis=1), strict=True))


def signed_rank(difference: np.ndarray) -> str:
    """Format the p-value of Wilcoxon's test, which leaves out equal pairs."""
    if not difference.any():
        return "-"
    return f"{wilcoxon(difference).pvalue:.4f}"


def print_seconds(results: list[Result], methods: list[str]) -> None:
    """Print the median processor time of a fit to each data set."""
    report("processor time of a fit in seconds; medians over the seeds")
    report(f"{'data set':29}" + "".join(f"{m:>{width(m) + 1}}" for m in methods))
    for name in dict.fromkeys(result.table for result in results):
        of_table = [result for result in results if result.table == name]
        line = f"{name:29}"
        for method in methods:
            line += f"{median_seconds(of_table, method):{width(method) + 1}.2f}"
        report(line)
    line = f"{'median':29}"
    for method in methods:
        line += f"{median_seconds(results, method):{width(method) + 1}.2f}"
    report(line)
    report()


def mean_and_error(difference: np.ndarray) -> str:
    """Format the mean and its standard error, which requires two data sets."""
    if len(difference) < 2:
        return f"{difference.mean():+12.4f}{'-':>8}"
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return f"{difference.mean():+12.4f}{error:8.4f}"


def print_thresholds(results: list[Result], methods: list[str]) -> None:
    """Print what `predict` flags, as means over the data sets."""
    names = list(dict.fromkeys(result.table for result in results))
    report(f"means over {count(len(names), 'data set')}")
    report(f"{'':16}{'contaminated rows':^29}{'flagged inliers:':>29}")
    report(
        f"{'method':16}{'precision':>10}{'recall':>9}{'flagged':>10}"
        f"{'mean':>11}{'median':>9}{'worst':>9}{'seconds':>10}"
    )
    for method in methods:
        precision, recall, flagged, alarms = (
            table_means(results, method, field)
            for field in ("precision", "recall", "flagged", "flagged_inliers")
        )
        report(
            f"{method:16}{precision.mean():10.3f}{recall.mean():9.3f}"
            f"{flagged.mean():10.3f}{alarms.mean():11.3f}{np.median(alarms):9.3f}"
            f"{alarms.max():9.3f}{median_seconds(results, method):10.2f}"
            f"  (worst: {names[alarms.argmax()]})"
        )
    report()
    report("precision: 0 where nothing is flagged.")
    report("seconds: median processor time of both fits and predictions.")
    report("A failed fit (*) counts as one that flags all rows.")


def print_p_values(results: list[Result], methods: list[str]) -> None:
    """Print alarms and discoveries, as means over the data sets."""
    report("means over the data sets, with standard errors")
    report(
        f"{'method':16}{'fitted to':14}{'p <= .05':>16}{'too many':>12}"
        f"{'false disc.':>16}{'power':>16}{'seconds':>10}"
    )
    for method in methods:
        fits = [result.measures for result in results if result.method == method]
        for name in ("clean", "contaminated"):
            alarms, false, power = (
                level_and_error(table_means(results, method, f"{name}_{field}"))
                for field in ("alarms", "false", "power")
            )
            excess = sum(fit[f"{name}_alarms"] > fit[f"{name}_bound"] for fit in fits)
            report(
                f"{method:16}{name:14}{alarms:>16}{f'{excess} of {len(fits)}':>12}"
                f"{false:>16}{power:>16}{median_seconds(results, method):10.2f}"
            )
    report()
    report(
        "p <= .05: share of the inliers among the test rows; too many: number of fits"
    )
    report("with more than .05 + 2 standard errors, those of the test rows and of the")
    report("training rows that they are compared with.")
    report(
        "false disc.: share of the discoveries that are inliers; power: share of the"
    )
    report(
        "outliers that is discovered; both with an intended false discovery rate <= .1."
    )
    report("seconds: median processor time of both fits and of the p-values.")
    report("A failed fit (*) counts as one whose p-values are all 0.")


def print_reasons(results: list[Result], methods: list[str]) -> None:
    """Print how often the spoilt column is found, as means over the data sets."""
    report("means over the data sets, with standard errors")
    heads = "".join(f"{kind:>16}" for kind in KINDS)
    report(f"{'method':22}{heads}{'seconds':>10}")
    means = {
        (method, kind): table_means(results, method, kind)
        for method in methods
        for kind in KINDS
    }
    for method in methods:
        line = "".join(f"{level_and_error(means[method, kind]):>16}" for kind in KINDS)
        report(f"{method:22}{line}{median_seconds(results, method):10.2f}")
    for method in methods:
        if method != SKAE and SKAE in methods:
            gains = [means[SKAE, kind] - means[method, kind] for kind in KINDS]
            line = "".join(f"{level_and_error(gain):>16}" for gain in gains)
            report(f"{f'skae - {method}':22}{line}")
            line = "".join(f"{signed_rank(gain):>16}" for gain in gains)
            report(f"{'    p':22}{line}")
    chance = table_means(results, methods[0], "chance").mean()
    report(f"{'chance':22}" + f"{chance:>16.3f}" * len(KINDS))
    report()
    report("p: of Wilcoxon's signed-rank test, two-sided.")
    report("seconds: median processor time of the fit and all explanations.")
    report("A failed fit (*) counts as one that finds no column.")


def print_times(results: list[Result], methods: list[str]) -> None:
    """Print the seconds of a fit, and their ratio with and without held-out rows."""
    if SKAE not in methods:
        return
    report(f"{'skae':29}{'held out':>10}{'without':>10}{'ratio':>8}")
    names = dict.fromkeys(result.table for result in results)
    ratios = []
    for name in names:
        fits = [r.measures for r in results if (r.table, r.method) == (name, SKAE)]
        seconds, without, ratio = (
            np.median([fit[field] for fit in fits])
            for field in ("seconds", "without", "ratio")
        )
        report(f"{name:29}{seconds:10.2f}{without:10.2f}{ratio:8.2f}")
        ratios.append(ratio)
    ratios = [ratio for ratio in ratios if np.isfinite(ratio)]
    if ratios:
        report(
            f"median ratio {np.median(ratios):.2f}, "
            f"{min(ratios):.2f} to {max(ratios):.2f}"
        )
    for method in methods:
        report(f"{method}: median {median_seconds(results, method):.2f} s")
    report()
    report("held out: each member learns three quarters of the rows; medians over the")
    report("seeds, in processor time, the scores of the training rows included.")


def level_and_error(values: np.ndarray) -> str:
    if len(values) < 2:
        return f"{values.mean():.3f}"
    error = values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.3f} +- {error:.3f}"


def draw(results: list[Result], methods: list[str], path: Path) -> None:
    """Plot the ROC AUC of all methods on each data set."""
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    names = list(dict.fromkeys(result.table for result in results))
    areas = {method: table_means(results, method, "roc_auc") for method in methods}
    order = np.argsort(areas[SKAE])
    figure, ax = plt.subplots(figsize=(7, 0.27 * len(names) + 1), layout="constrained")
    for method, area in areas.items():
        marker, color, size = {
            SKAE: ("o", "C0", 55),
            "IForest": ("^", "C1", 35),
            "KNN": ("s", "C2", 25),
        }.get(method, ("|", "0.6", 60))
        label = method if color != "0.6" else None
        z_order = 3 if method == SKAE else 2
        ax.scatter(
            area[order],
            range(len(names)),
            s=size,
            color=color,
            marker=marker,
            label=label,
            zorder=z_order,
        )
    ax.scatter([], [], s=60, color="0.6", marker="|", label="other detectors")
    ax.set_yticks(range(len(names)), [names[i] for i in order])
    ax.set(xlabel="ROC AUC on test rows")
    ax.grid(axis="y", color="0.92")
    ax.axvline(0.5, color="0.4", linestyle="--", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4)
    figure.savefig(path, dpi=150)
    report(f"The figure is in {path}")


def print_failures(results: list[Result]) -> None:
    failed = [result for result in results if result.error]
    report(f"Failed: {len(failed)} of {count(len(results), 'fit')}.")
    for result in failed:
        report(
            f"    {result.method} on {result.table}, seed {result.seed}: {result.error}"
        )


PRINTERS: dict[str, Callable[[list[Result], list[str]], None]] = {
    **dict.fromkeys(RANKINGS, print_ranking),
    "threshold": print_thresholds,
    "pvalues": print_p_values,
    "reasons": print_reasons,
    "seconds": print_times,
}


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


if __name__ == "__main__":
    main()
