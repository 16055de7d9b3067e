"""Share of small changes of the code that its tests notice.

A mutant is a module with one change, such as ``<`` in place of ``<=``. The operators of
cosmic-ray make them. Of all places that an operator can change, a sample is drawn, and
for each place one of its changes. The tests of the module itself (`OWN_TESTS`, and the
examples in its docstrings) judge the mutant: it is killed if one of them fails, or if
they have not ended after two minutes.

The own tests run once with the line coverage of each test. A mutant is judged by the
tests that run the changed statement, and then by the others, as far as they take less
than ten seconds together. Changes of annotations, which are never evaluated, are left
out. Everything happens in a copy of the package.

cosmic-ray and coverage are needed in addition to the package and its extra ``test``::

    pip install cosmic-ray coverage

From the repository root::

    python benchmarks/mutants.py --n-mutants 200 --seed 0 --results mutants.jsonl

``--only losses penalties`` draws from some modules, and ``--again mutants.jsonl``
judges the survivors in a file of results anew. Survivors that behave as the original
are listed in ``mutants_equivalent.py``.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

# Before NumPy is imported. A process of one thread can be forked.
os.environ.update(OMP_NUM_THREADS="1", SCIPY_ARRAY_API="1")

import coverage
import matplotlib.figure  # noqa: F401
import numpy as np
import pandas as pd  # noqa: F401
import parso.python.tree  # noqa: F401  # before cosmic_ray, which imports it in a cycle
import pytest
import sklearn.utils.estimator_checks  # noqa: F401
import skorch  # noqa: F401
import torch
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from mutants_equivalent import EQUIVALENT

ROOT = Path(__file__).parents[1]
COPIED = ("skae", "tests", "docs", "README.md", "pyproject.toml", "setup.cfg")

# For each module, the files that test it: "folder/name" is folder/test_name.py.
OWN_TESTS = {
    "_checks": ("checks", "bad_input", "validation_rows", "partitions"),
    "_training": (
        "training",
        "validation_rows",
        "folds",
        "ordered",
        "explained",
        "callbacks",
    ),
    "engine/trainer": (
        "engine/trainer",
        "training",
        "user_callbacks",
        "callbacks",
        "ordered",
        "checkpoint",
        "sparse",
        "equal_results",
    ),
    "losses": ("losses",),
    "penalties": ("penalties",),
    "bottlenecks": ("bottlenecks",),
    "outlier": ("outlier",),
    "_blocks": ("blocks", "training"),
}

# Seconds after which a mutant is killed.
TIMEOUT = 120

# Operators that need names of variables.
LEFT_OUT = ("core/VariableReplacer", "core/VariableInserter", "core/NoOp")


class Mutant(NamedTuple):
    """A change of a module: the number of an occurrence of an operator."""

    module: str
    operator: str
    occurrence: int
    line: int

    @property
    def path(self) -> str:
        return f"skae/{self.module}.py"

    def code(self) -> str:
        source = (ROOT / self.path).read_text()
        return mutate_code(source, get_operator(self.operator)(), self.occurrence)


class Test(NamedTuple):
    """Run time of a test in seconds, and the lines of each module that it runs."""

    seconds: float
    lines: dict[str, list[int]]


# The sample


def draw(modules: list[str], n_mutants: int, seed: int) -> list[Mutant]:
    """Draw places without replacement, and a change for each."""
    places = [place for module in modules for place in places_of(module)]
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(places))
    mutants = []
    for i in drawn:
        if len(mutants) == n_mutants:
            break
        mutant = places[i][rng.integers(len(places[i]))]
        if is_valid(mutant.code()):
            mutants.append(mutant)
    return mutants


def places_of(module: str) -> list[list[Mutant]]:
    """Return the mutants of a module, those of the same place together."""
    source = (ROOT / f"skae/{module}.py").read_text()
    nodes = list(ast_nodes(get_ast(source)))
    spans = list(annotations(ast.parse(source)))
    places = defaultdict(list)
    for name in operator_names():
        if name in LEFT_OUT:
            continue
        operator = get_operator(name)()
        positions = [p for node in nodes for p in operator.mutation_positions(node)]
        for i, (start, end) in enumerate(positions):
            if not any(first <= start < last for first, last in spans):
                places[start, end].append(Mutant(module, name, i, start[0]))
    return list(places.values())


def annotations(tree: ast.Module) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield the first and last position of each annotation."""
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            part = getattr(node, name, None)
            if part is not None:
                start = (part.lineno, part.col_offset)
                yield start, (part.end_lineno, part.end_col_offset)


def is_valid(code: str) -> bool:
    """Whether Python can compile a module."""
    try:
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
            compile(code, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def changed(mutant: Mutant) -> tuple[str, str]:
    """Return the lines that differ, before and after the change."""
    before = (ROOT / mutant.path).read_text().splitlines()
    after = mutant.code().splitlines()
    pairs = enumerate(zip(before, after, strict=False))
    first = next(i for i, (old, new) in pairs if old != new)
    n_lines = 1 + max(0, len(before) - len(after))
    old = before[first : first + n_lines]
    new = after[first : first + n_lines + len(after) - len(before)]
    return tuple(" ".join(line.strip() for line in lines) for lines in (old, new))


# Runs of the tests


class Plugin:
    """Selects tests, and records the time and the lines of each.

    Parameters
    ----------
    names : list of str or None
        Tests that run, in this order; None means all.
    measured : coverage.Coverage or None
        Records the lines.
    """

    def __init__(self, names: list[str] | None = None, measured: Any = None):
        self.names = names
        self.measured = measured
        self.seconds: dict[str, float] = {}
        self.first_failed = ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list) -> None:
        if self.names is not None:
            known = {item.nodeid: item for item in items}
            items[:] = [known[name] for name in self.names if name in known]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Any:
        if self.measured is not None:
            self.measured.switch_context(item.nodeid)
        start = time.process_time()
        result = yield
        self.seconds[item.nodeid] = time.process_time() - start
        return result

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.first_failed:
            self.first_failed = report.nodeid


def in_fork(call: Callable[[], int], folder: Path, output: Path) -> int:
    """Return the exit status of a call in a forked process, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.alarm(TIMEOUT)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.chdir(folder)
        os.environ["PYTHONPATH"] = str(folder)
        sys.path[:] = [str(folder), *(p for p in sys.path if Path(p) != ROOT)]
        status = 99
        try:
            status = call()
            assert Path(sys.modules["skae"].__file__).is_relative_to(folder)
        finally:
            sys.stdout.flush()
            os._exit(int(status))
    _, status = os.waitpid(pid, 0)
    with suppress(ProcessLookupError):  # processes that the tests have started
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status)


def run_tests(paths: list[str], plugin: Plugin) -> int:
    """Run the tests in some files in this process."""
    # Otherwise pytest would import a module with examples a second time.
    import_module("skae")
    settings = ("-n0", "-x", "-q", "--no-header", "-p", "no:cacheprovider")
    return pytest.main([*settings, *paths], plugins=[plugin])


def test_files(module: str) -> list[str]:
    """Return the files that test a module, with the module itself for its examples."""
    names = map(Path, OWN_TESTS[module])
    tests = [str("tests" / name.with_name(f"test_{name.name}.py")) for name in names]
    return [*tests, f"skae/{module}.py"]


def record(file: str, folder: Path) -> dict[str, Test]:
    """Run the tests in a file, which must pass, with line coverage."""
    report = folder / "tests.json"
    modules = {str(folder / f"skae/{module}.py"): module for module in OWN_TESTS}

    def run() -> int:
        measured = coverage.Coverage(
            data_file=None, config_file=False, include=list(modules)
        )
        plugin = Plugin(measured=measured)
        signal.alarm(0)
        measured.start()
        status = run_tests([file], plugin)
        measured.stop()
        data = measured.get_data()
        tests: dict[str, Any] = {n: [s, {}] for n, s in plugin.seconds.items()}
        for path in data.measured_files():
            for line, names in data.contexts_by_lineno(path).items():
                for name in names:
                    if name in tests:
                        tests[name][1].setdefault(modules[path], []).append(line)
        report.write_text(json.dumps(tests))
        # Some modules have no examples.
        return 0 if status == pytest.ExitCode.NO_TESTS_COLLECTED else status

    output = folder / "output"
    if in_fork(run, folder, output) != 0:
        sys.exit(output.read_text())
    return as_tests(json.loads(report.read_text()))


def as_tests(found: dict[str, Any]) -> dict[str, Test]:
    return {name: Test(*test) for name, test in found.items()}


def recorded(files: list[str], folder: Path, kept: Path | None) -> dict[str, Test]:
    """Return the tests in some files, if possible from a file of earlier recordings."""
    known = json.loads(kept.read_text()) if kept and kept.exists() else {}
    tests = {}
    for file in files:
        read = [file, *(f"skae/{module}.py" for module in OWN_TESTS)]
        text = "".join((ROOT / path).read_text() for path in read)
        key = f"{file} {hashlib.sha256(text.encode()).hexdigest()}"
        if key not in known:
            known[key] = record(file, folder)
            if kept:
                kept.write_text(json.dumps(known))
        tests.update(as_tests(known[key]))
    return tests


def select(mutant: Mutant, tests: dict[str, Test], most: float) -> list[str]:
    """Return tests that take `most` seconds, in the order in which they run.

    Tests that run different lines of the same block take turns, the fastest first.
    """
    statement, block = surroundings(mutant)
    ranks: Counter[tuple[int, ...]] = Counter()
    order = {}
    for name in sorted(tests, key=lambda name: tests[name].seconds):
        lines = block.intersection(tests[name].lines.get(mutant.module, ()))
        path = tuple(sorted(lines))
        order[name] = (lines.isdisjoint(statement), ranks[path])
        ranks[path] += 1
    names, seconds = [], 0.0
    for name in sorted(order, key=order.__getitem__):
        seconds += tests[name].seconds
        if names and seconds > most:
            break
        names.append(name)
    return names


def surroundings(mutant: Mutant) -> tuple[set[int], set[int]]:
    """Return the lines of the innermost statement, without its body, and of a block.

    The block is the statement with its body, such as both branches of a condition, or
    the function or module of a statement without a body.
    """
    source = (ROOT / mutant.path).read_text()
    statement, block = {mutant.line}, set(range(1, 1 + len(source.splitlines())))
    for node in ast.walk(ast.parse(source)):  # outer statements first
        if not isinstance(node, ast.stmt):
            continue
        if not node.lineno <= mutant.line <= node.end_lineno:
            continue
        lines = set(range(node.lineno, node.end_lineno + 1))
        body = getattr(node, "body", None)
        if body is None or mutant.line < body[0].lineno:
            end = node.end_lineno + 1 if body is None else body[0].lineno
            statement = set(range(node.lineno, end))
            block = lines if body else block
        elif isinstance(node, ast.FunctionDef):
            block = lines
    return statement, block


def judge(mutant: Mutant, names: list[str], folder: Path) -> dict[str, Any]:
    """Run tests of a mutant."""
    path = folder / mutant.path
    report = folder / "failed"
    report.write_text("")

    def run() -> int:
        plugin = Plugin(names)
        status = run_tests(test_files(mutant.module), plugin)
        report.write_text(plugin.first_failed)
        return status

    start = time.perf_counter()
    path.write_text(mutant.code())
    try:
        status = in_fork(run, folder, folder / "output")
    finally:
        shutil.copyfile(ROOT / mutant.path, path)
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        sys.exit(f"no tests for {mutant}")
    old, new = changed(mutant)
    return {
        **mutant._asdict(),
        "old": old,
        "new": new,
        "killed": status != 0,
        "by": report.read_text() or ("" if status == 0 else f"exit status {status}"),
        "n_tests": len(names),
        "seconds": round(time.perf_counter() - start, 1),
    }


# The script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-mutants", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10, help="for each mutant")
    parser.add_argument("--only", nargs="+", choices=OWN_TESTS, default=[*OWN_TESTS])
    parser.add_argument("--part", nargs="+", choices=OWN_TESTS, help="of the sample")
    parser.add_argument("--results", type=Path, help="file that results are added to")
    parser.add_argument("--recordings", type=Path, help="file that keeps coverage")
    parser.add_argument("--again", type=Path, help="results whose survivors run again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.again:
        mutants = [
            Mutant(*(result[name] for name in Mutant._fields))
            for result in read(options.again)
            if not result["killed"] and not is_equivalent(result)
        ]
    else:
        mutants = draw(options.only, options.n_mutants, options.seed)
    if options.results and options.results.exists():
        known = [Mutant(*(r[k] for k in Mutant._fields)) for r in read(options.results)]
        mutants = [mutant for mutant in mutants if mutant not in known]
    if options.part:
        mutants = [mutant for mutant in mutants if mutant.module in options.part]
    mutants.sort(key=lambda mutant: (list(OWN_TESTS).index(mutant.module), mutant))
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for copied in COPIED:
            target = folder / copied
            if (ROOT / copied).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / copied, target, ignore=ignored)
            else:
                shutil.copyfile(ROOT / copied, target)
        recordings = {
            module: recorded(test_files(module), folder, options.recordings)
            for module in dict.fromkeys(mutant.module for mutant in mutants)
        }
        # Python tells by the second of a change whether bytecode is out of date.
        sys.dont_write_bytecode = True
        for module in OWN_TESTS:
            path = folder / f"skae/{module}.py"
            for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
                compiled.unlink()
        for mutant in mutants:
            names = select(mutant, recordings[mutant.module], options.seconds)
            result = judge(mutant, names, folder)
            counts[show(result)] += 1
            if options.results:
                with options.results.open("a") as file:
                    file.write(json.dumps(result) + "\n")
    n_other = counts.total() - counts["equivalent"]
    print(
        f"{counts.total()} mutants, {counts['killed']} killed, {counts['survived']} "
        f"survived, {counts['equivalent']} equivalent; "
        f"{counts['killed'] / max(1, n_other):.1%} of those not equivalent killed"
    )


def read(results: Path) -> list[dict[str, Any]]:
    """Return the results in a file."""
    return [json.loads(line) for line in results.read_text().splitlines()]


def show(result: dict[str, Any]) -> str:
    """Print what became of a mutant, and return it in a word."""
    kind = "killed" if result["killed"] else "survived"
    if kind == "survived" and is_equivalent(result):
        kind = "equivalent"
    place = f"{result['module']}:{result['line']}"
    print(f"{kind:10} {place:22} {result['seconds']:5.1f} s  {result['by']}")
    print(f"    - {result['old']}\n    + {result['new']}", flush=True)
    return kind


def is_equivalent(result: dict[str, Any]) -> bool:
    return (result["module"], result["old"].strip(), result["new"]) in EQUIVALENT


if __name__ == "__main__":
    main()
