"""The examples of the gallery, and the code of the pages beside the user guide."""

import ast
import builtins
import doctest
import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EXAMPLES = sorted((ROOT / "examples").glob("plot_*.py"))
# The other pages with prompts are those of tests/test_guide.py.
PAGES = [DOCS / "theory.rst"]
# Their code needs rows and estimators of the reader, and is not run. The architecture
# quotes the source.
QUOTING = sorted(
    page
    for page in DOCS.glob("*.rst")
    if "code-block:: python" in page.read_text() and page.stem != "architecture"
)
# What the reader has: rows, labels, axes, and estimators that are fitted to them.
GIVEN = {
    *("X", "y", "X_train", "X_test", "y_test", "X_held_out", "X_of_this_process"),
    *("frame", "labels", "load", "series", "weight", "pair", "row"),
    *("ae", "detector", "model", "pipeline", "grid"),
    *("ax", "left", "right", "top", "bottom"),
}

HIDDEN = re.compile(
    r"^ *# sphinx_gallery_start_ignore\n(.*?)^ *# sphinx_gallery_end_ignore\n",
    re.DOTALL | re.MULTILINE,
)


def names(code, context):
    """Return the names that are read (`ast.Load`) or bound (`ast.Store`)."""
    nodes = list(ast.walk(ast.parse(code)))
    found = {
        node.id
        for node in nodes
        if isinstance(node, ast.Name) and isinstance(node.ctx, context)
    }
    if context is ast.Store:
        found |= {
            (alias.asname or alias.name).partition(".")[0]
            for node in nodes
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
    return found


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_a_page_that_needs_nothing_hidden(example):
    text = example.read_text()
    docstring = ast.get_docstring(ast.parse(text))
    title, underline = docstring.splitlines()[:2]
    assert underline == "=" * len(title)
    # Notebooks and pages lack the lines that save figures.
    hidden = "\n".join(re.sub(r"(?m)^ +", "", block) for block in HIDDEN.findall(text))
    assert "--out" in hidden
    assert "--out" not in HIDDEN.sub("", text)
    shown = HIDDEN.sub("", text)
    needed = names(shown, ast.Load) & names(hidden, ast.Store)
    assert needed <= names(shown, ast.Store)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_figures_are_complete_where_the_gallery_shows_them(example):
    # The gallery shows and closes the figures of a block when the block ends.
    for block in re.split(r"(?m)^# %%.*$", example.read_text()):
        n_created = len(re.findall(r"plt\.(?:subplots|figure)\(", block))
        assert n_created == block.count("figure.savefig(")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_has_one_place_in_the_list_by_task(example):
    listed = re.findall(
        r"\.\./examples/(plot_\w+\.py)", (DOCS / "examples.rst").read_text()
    )
    assert listed.count(example.name) == 1
    assert len(listed) == len(EXAMPLES)


def test_every_page_is_in_a_table_of_contents():
    pages = {
        path.relative_to(DOCS).with_suffix("").as_posix()
        for path in DOCS.rglob("*.rst")
        if not {"api", "auto_examples", "_templates", "_build"} & set(path.parts)
    }
    listed = {"index"}
    for page in pages:
        text = (DOCS / f"{page}.rst").read_text()
        for block in re.findall(r"\.\. toctree::\n((?:   .*\n|\n)*)", text):
            for entry in re.findall(r"^   (?!:)(.+)$", block, re.MULTILINE):
                target = re.sub(r".*<(.+)>", r"\1", entry)
                path = (DOCS / page).parent / target
                listed.add(path.resolve().relative_to(DOCS.resolve()).as_posix())
    assert pages <= listed


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_page_prints_what_it_says(page):
    result = doctest.testfile(str(page), module_relative=False)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("page", QUOTING, ids=lambda path: path.stem)
def test_page_imports_what_its_code_uses(page):
    known = GIVEN | set(dir(builtins))
    for code in re.findall(
        r"\.\. code-block:: python\n\n((?: {3}.*\n|\n)+)", page.read_text()
    ):
        code = textwrap.dedent(code)
        arguments = {
            node.arg for node in ast.walk(ast.parse(code)) if isinstance(node, ast.arg)
        }
        functions = set(re.findall(r"^ *(?:def|class) (\w+)", code, re.MULTILINE))
        known |= names(code, ast.Store) | arguments | functions
        assert names(code, ast.Load) <= known
