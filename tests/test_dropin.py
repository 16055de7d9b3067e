"""Examples that run with scikit-learn's classes, too, as `docs/dropin.rst` says."""

import ast
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

# What the page tells sed to put in place of what, and which of it are names.
REPLACEMENTS = dict(re.findall(r"-e 's/([^/]+)/([^/]+)/g'", PAGE))
NAMES = {ours: theirs for ours, theirs in REPLACEMENTS.items() if " " not in ours}


def for_sklearn(text):
    for ours, theirs in REPLACEMENTS.items():
        text = text.replace(ours, theirs)
    return text


def renamed(text):
    """An output or a column, with the names of the other classes."""
    for ours, theirs in NAMES.items():
        text = text.replace(ours, theirs).replace(ours.lower(), theirs.lower())
    return text


def tokens(text):
    """The words of a script; strings and comments are one each."""
    return [
        token.string for token in tokenize.generate_tokens(io.StringIO(text).readline)
    ]


def kind(value):
    """What a value is, whatever the numbers in it."""
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
        # Its arrays may have other shapes: a search finds a width of its own.
        return name, {
            key: kind(item) if isinstance(item, dict) else renamed(type(item).__name__)
            for key, item in vars(value).items()
        }
    return name


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a script; what is left in its namespace, its output and its pictures."""

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


def test_page_has_an_import_and_a_name_of_each_class():
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
    # A string, a docstring or a comment that named the class would differ here.
    assert [NAMES.get(word, word) for word in tokens(without[0])] == tokens(without[1])
    assert "skae" not in tokens(theirs)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_class_is_only_called_and_no_error_is_caught(script):
    nodes = list(ast.walk(ast.parse(script.read_text())))
    names = [node for node in nodes if isinstance(node, ast.Name) and node.id in NAMES]
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    assert names
    assert all(name in called for name in names)
    assert not any(isinstance(node, ast.Try) for node in nodes)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_both_versions_do_the_same(script, run):
    text = script.read_text()
    ours, printed, pictures = run(text, "ours")
    theirs, their_printed, their_pictures = run(for_sklearn(text), "theirs")
    assert {key: kind(value) for key, value in ours.items()} == {
        key: kind(value) for key, value in theirs.items()
    }
    # Another class was at work: its numbers are others.
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
