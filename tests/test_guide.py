"""The code of the pages of the user guide runs and prints what the pages say."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import matplotlib
import pytest
from pages import RoundedChecker, examples_of, failures_of

import skae

matplotlib.use("Agg")

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {
    page.relative_to(DOCS).with_suffix("").as_posix(): page
    for page in (
        *(DOCS / f"{name}.rst" for name in ("getting_started", "choosing")),
        *(DOCS / f"{name}.rst" for name in ("faq", "limits")),
        *(DOCS / "guide").glob("*.rst"),
        *(DOCS / "coming_from").glob("*.rst"),
    )
}
# Pages without code.
WITHOUT_CODE = {"limits", "coming_from/index"}
# Pages whose code takes more than a few seconds.
SLOW = {
    "choosing",
    "coming_from/pca",
    "faq",
    "guide/features",
    "guide/generate",
    "guide/images",
    "guide/reduce",
    "guide/sequences",
    "guide/tables",
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
        for name in sorted(PAGES.keys() - WITHOUT_CODE)
    ],
)
def test_page_prints_what_it_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # pages write files
    assert failures_of(examples_of(PAGES[name])) == ""


@pytest.mark.parametrize(
    ("want", "got", "is_equal"),
    [
        ("score 0.70\n", "score 0.72\n", True),
        ("score 0.70\n", "score 0.79\n", False),
        ("area 2000.0\n", "area 2090.0\n", True),
        ("area 2000.0\n", "area 2190.0\n", False),
        ("(540, 2)\n", "(541, 2)\n", False),
        ("[0.5  0.68]\n", "[0.51 0.7]\n", True),
        ("[0.5 0.68]\n", "[0.5]\n", False),
        ("PCA 0.70\n", "skae 0.70\n", False),
    ],
)
def test_outputs_are_compared_up_to_rounding(want, got, is_equal):
    flags = doctest.NORMALIZE_WHITESPACE
    assert RoundedChecker().check_output(want, got, flags) == is_equal


@pytest.mark.parametrize("name", sorted(PAGES))
def test_all_code_of_a_page_is_run(name):
    text = PAGES[name].read_text()
    assert "code-block:: python" not in text  # which is not run
    examples = examples_of(PAGES[name]).examples
    assert bool(examples) == (name not in WITHOUT_CODE)
    is_skipped = any(doctest.SKIP in example.options for example in examples)
    assert is_skipped == (name == "coming_from/pyod")  # see test_pyod_adapter.py


def test_guide_names_every_example_and_no_other():
    text = "\n".join(page.read_text() for page in PAGES.values())
    examples = {path.name for path in (DOCS.parent / "examples").glob("plot_*.py")}
    assert set(re.findall(r"plot_\w+\.py", text)) == examples


TASKS = [
    "reduce",
    "detect",
    "denoise",
    "features",
    "compress",
    "generate",
    "tables",
    "images",
    "sequences",
]
LIBRARIES = ["pca", "isolation_forest", "pyod", "skorch", "keras", "pythae"]


@pytest.mark.parametrize(
    ("folder", "names"), [("guide", TASKS), ("coming_from", LIBRARIES)]
)
def test_index_lists_the_pages_of_its_folder(folder, names):
    pages = {page.stem for page in (DOCS / folder).glob("*.rst")}
    assert pages == {"index", *names}
    index = (DOCS / folder / "index.rst").read_text()
    assert all(f":doc:`{name}`" in index for name in names)
    assert re.findall(r"^   (\w+)$", index, re.MULTILINE) == names  # its toctree


MODULES = [
    "networks",
    "bottlenecks",
    "corruptions",
    "penalties",
    "losses",
    "windows",
    "inspection",
    "model_selection",
]
# Base classes and helpers, for those who write settings of their own.
INTERNAL = {
    "ACTIVATIONS",
    "Bottleneck",
    "Corruption",
    "Deterministic",
    "Loss",
    "Network",
    "Penalty",
    "Shape",
    "Spread",
    "Squeeze",
}


def public_names(estimator):
    """Return the parameters and methods of an estimator, without metadata routing."""
    methods = [
        name
        for name, _ in inspect.getmembers(estimator, inspect.isroutine)
        if name in vars(estimator) and not re.match(r"_|set_\w+_request", name)
    ]
    return [*inspect.signature(estimator).parameters, *methods]


@pytest.mark.parametrize(
    "names",
    [
        public_names(skae.AutoencoderTransformer),
        public_names(skae.AutoencoderOutlierDetector),
        *(
            set(importlib.import_module(f"skae.{module}").__all__) - INTERNAL
            for module in MODULES
        ),
    ],
    ids=["transformer", "detector", *MODULES],
)
def test_guide_mentions_every_public_name(names):
    text = "\n".join(page.read_text() for page in PAGES.values())
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []
