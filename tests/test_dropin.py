"""Tests of the drop-in examples, which also run with scikit-learn's classes."""

import ast
import importlib.util
import io
import re
import tokenize
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator

matplotlib.use("Agg")

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "dropin.rst").read_text()
SCRIPTS = sorted((ROOT / "examples").glob("plot_dropin_*.py"))

# Scripts that take more than a few seconds.
SLOW = ("plot_dropin_comparison", "plot_dropin_grid_search")

# Replacements made by the sed command in `docs/dropin.rst`, and those of class names.
REPLACEMENTS = dict(re.findall(r"-e 's/([^/]+)/([^/]+)/g'", PAGE))
NAMES = {ours: theirs for ours, theirs in REPLACEMENTS.items() if " " not in ours}


def for_sklearn(text):
    for ours, theirs in REPLACEMENTS.items():
        text = text.replace(ours, theirs)
    return text


def renamed(text):
    """Replace the names of our classes in an output or the name of a column."""
    for ours, theirs in NAMES.items():
        text = text.replace(ours, theirs).replace(ours.lower(), theirs.lower())
    return text


def tokens(text):
    """The tokens of a script; a string or a comment is a single token."""
    return [
        token.string for token in tokenize.generate_tokens(io.StringIO(text).readline)
    ]


def kind(value):
    """The type and shape of a value, without its numbers."""
    if isinstance(value, np.ndarray):
        return "array", value.shape, value.dtype
    if isinstance(value, pd.DataFrame):
        return value.shape, [(renamed(name), value[name].dtype) for name in value]
    if isinstance(value, pd.Series):
        return value.shape, value.dtype, list(value.index)
    if isinstance(value, dict):
        return {key: kind(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [kind(item) for item in value]
    name = renamed(type(value).__name__)
    if isinstance(value, BaseEstimator) and name not in NAMES.values():
        # Shapes of its arrays may differ, for example those of a search.
        return name, {
            key: kind(item) if isinstance(item, dict) else renamed(type(item).__name__)
            for key, item in vars(value).items()
        }
    return name


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a script; return its variables, its output and its image files."""

    def run(text, name):
        out = tmp_path.resolve() / name
        monkeypatch.setattr("sys.argv", ["script", "--out", str(out)])
        namespace = {"__name__": "__main__"}
        exec(compile(text, name, "exec"), namespace)
        variables = {
            renamed(key): value
            for key, value in namespace.items()
            if not key.startswith("__")
        }
        printed = capsys.readouterr().out.replace(str(out), "")
        return variables, printed, sorted(out.iterdir())

    yield run
    plt.close("all")


def test_page_replaces_import_and_name_of_each_class():
    assert NAMES == {
        "AutoencoderTransformer": "PCA",
        "AutoencoderOutlierDetector": "IsolationForest",
    }
    assert {ours for ours in REPLACEMENTS if ours not in NAMES} == {
        f"from skae import {name}" for name in NAMES
    }


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_replacing_changes_one_import_and_the_name_of_the_class(script):
    ours = script.read_text()
    theirs = for_sklearn(ours)
    lines = zip(ours.splitlines(), theirs.splitlines(), strict=True)
    imports = [pair for pair in lines if "import" in pair[0] and pair[0] != pair[1]]
    assert len(imports) == 1
    assert imports[0] in REPLACEMENTS.items()
    without = [
        text.replace(line, "")
        for text, line in zip((ours, theirs), imports[0], strict=True)
    ]
    # This also fails if a string or a comment contains the name of the class.
    assert [NAMES.get(word, word) for word in tokens(without[0])] == tokens(without[1])
    assert "skae" not in tokens(theirs)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_scripts_only_call_the_class_and_catch_no_error(script):
    nodes = list(ast.walk(ast.parse(script.read_text())))
    names = [node for node in nodes if isinstance(node, ast.Name) and node.id in NAMES]
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    assert names
    assert all(name in called for name in names)
    assert not any(isinstance(node, ast.Try) for node in nodes)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(script, marks=pytest.mark.slow if script.stem in SLOW else ())
        for script in SCRIPTS
    ],
    ids=lambda script: script.stem,
)
def test_both_versions_give_the_same_kinds_of_results(script, run):
    text = script.read_text()
    ours, printed, pictures = run(text, "ours")
    theirs, their_printed, their_pictures = run(for_sklearn(text), "theirs")
    assert {key: kind(value) for key, value in ours.items()} == {
        key: kind(value) for key, value in theirs.items()
    }
    # The numbers differ, since another class was used.
    assert printed != their_printed
    number = r" *-?\d+(\.\d+)?"
    assert re.sub(number, "", renamed(printed)) == re.sub(number, "", their_printed)
    assert pictures
    assert [picture.name for picture in pictures] == [
        picture.name for picture in their_pictures
    ]
    for pair in zip(pictures, their_pictures, strict=True):
        mine, other = map(plt.imread, pair)
        assert mine.shape == other.shape
        assert not np.array_equal(mine, other)


@pytest.mark.parametrize("suite", ["pca", "svd", "incremental", "kernel"])
def test_reasons_are_documented(suite, monkeypatch):
    # The script sets the variable when it is imported.
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    path = ROOT / "benchmarks" / "peers_tests.py"
    spec = importlib.util.spec_from_file_location("peers_tests", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = " ".join(PAGE.replace("``", "").split())
    for _, reason in script.MEANINGLESS[suite]:
        assert f"* - {reason} -" in page
