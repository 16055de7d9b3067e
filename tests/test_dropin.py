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
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import get_tags

from skae import AutoencoderTransformer

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


def table_of_pca():
    """The rows of the table about PCA: its names, the word beside them, the reason."""
    _, _, page = PAGE.partition("What PCA has\n------------\n")
    text = page.partition("   * - PCA")[2].partition("\n\n")[0]
    rows = [row.split("\n     -") for row in text.split("\n   * - ")[1:]]
    return [[" ".join(cell.split()) for cell in row] for row in rows]


def literals(text):
    return re.findall("``(.+?)``", text)


@pytest.fixture(scope="module")
def fitted():
    """PCA, and the transformer with and without an order, fitted to a table."""
    X = load_iris(as_frame=True).data[::2]
    settings = {"max_epochs": 1, "early_stopping": False, "random_state": 0}
    return (
        PCA().fit(X),
        AutoencoderTransformer(2, ordered=True, **settings).fit(X),
        AutoencoderTransformer(2, **settings).fit(X),
    )


def test_table_lists_what_pca_has(fitted):
    pca, _, _ = fitted
    listed = [literals(names)[0] for names, _, _ in table_of_pca() if "``" in names]
    public = {name for name in dir(pca) if not name.startswith("_")}
    assert set(listed) == public | set(pca.get_params())
    assert {name for name in listed if listed.count(name) > 1} == {"n_components"}


@pytest.mark.parametrize("row", table_of_pca(), ids=lambda row: row[0])
def test_table_is_true_of_a_fitted_transformer(row, fitted):
    pca, ordered, plain = fitted
    names, word, reason = row
    for name in re.findall(r"``(\w+(?:_(?=``)|(?=\(X\))))", reason):
        assert hasattr(ordered, name)
    if names == "array API":
        assert get_tags(pca).array_api_support
        assert get_tags(ordered).array_api_support
        return
    name, *values = literals(names)
    if values:
        exists = [False, False]
        with pytest.raises(ValueError, match="'n_components' parameter"):
            AutoencoderTransformer(ast.literal_eval(values[0])).fit([[1.0], [2.0]])
    else:
        exists = [hasattr(estimator, name) for estimator in (ordered, plain)]
    expected = {
        "same": [True, True],
        "other meaning": [True, True],
        "ordered": [True, False],
        "absent": [False, False],
    }
    assert exists == expected[word]


@pytest.mark.parametrize(
    ("n_components", "expected"), [(None, 3), (2, 2), (1e-3, 1)], ids=str
)
def test_kinds_of_n_components_that_pca_has(n_components, expected):
    X = np.random.default_rng(0).normal(size=(20, 3))
    ours = AutoencoderTransformer(n_components, max_epochs=1, early_stopping=False)
    assert ours.fit(X).n_components_ == PCA(n_components).fit(X).n_components_
    assert ours.n_components_ == expected


def test_table_is_that_of_pca_where_the_network_remains_the_pca():
    X = load_iris().data
    pca = PCA(2).fit(X)
    ours = AutoencoderTransformer(2, ordered=True, random_state=0)
    # The network is linear, and the ratios are those of the training rows.
    settings = {"hidden_layer_sizes": (), "early_stopping": False, "max_epochs": 1}
    with pytest.warns(ConvergenceWarning, match="remains the PCA"):
        ours.set_params(**settings).fit(X)
    for name in (
        "explained_variance_",
        "explained_variance_ratio_",
        "mean_",
        "n_components_",
        "noise_variance_",
    ):
        np.testing.assert_allclose(getattr(ours, name), getattr(pca, name), rtol=1e-6)
    loadings = pca.components_**2 * pca.explained_variance_[:, None]
    np.testing.assert_allclose(ours.component_contributions(X), loadings, atol=1e-5)
    assert ours.score(X) == pytest.approx(pca.explained_variance_ratio_.sum())
    assert np.all(ours.score_samples(X) <= 0)
