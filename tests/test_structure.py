"""The layout of the package: the order of imports, and who asks specs for a class."""

import ast
import re
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import skae
from skae import bottlenecks, corruptions, losses, networks, penalties

ROOT = Path(skae.__file__).parent
FILES = {
    ".".join(("skae", *path.relative_to(ROOT).with_suffix("").parts)): path
    for path in sorted(ROOT.rglob("*.py"))
}
TREES = {
    name.removesuffix(".__init__"): ast.parse(path.read_text())
    for name, path in FILES.items()
}

SPECS = {
    name: module.__name__
    for module in (bottlenecks, corruptions, losses, networks, penalties)
    for name in module.__all__
    if isinstance(getattr(module, name), type)
}


def imports_of(name):
    """Modules of the package that a module imports anywhere, also for types only."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    own = {module for module in found if module in TREES and module != name}
    return own - {"skae"}


def test_imports_have_no_cycle():
    graph = {name: imports_of(name) for name in TREES}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == set(TREES)


@pytest.mark.parametrize("name", TREES)
def test_modules_do_not_import_the_package_that_imports_them(name):
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            assert "skae" not in [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "skae":
            assert all(f"skae.{alias.name}" in TREES for alias in node.names)


def test_no_engine_part_knows_estimators_or_validation():
    above = {"skae._base", "skae._checks", "skae._training", "skae._build", "skae._job"}
    for name in TREES:
        if name.startswith("skae.engine"):
            assert not imports_of(name) & above, name


@pytest.mark.parametrize("name", TREES)
def test_only_its_own_module_asks_for_the_class_of_a_spec(name):
    for node in ast.walk(TREES[name]):
        is_check = isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance"
        if not is_check:
            continue
        classes = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
        assert all(SPECS.get(c, name) == name for c in classes), ast.unparse(node)


@cache
def layers():
    """Layers of the modules by the page on the architecture, numbered from the top."""
    page = (ROOT.parent / "docs" / "architecture.rst").read_text()
    table = page[page.index("   * - layer") : page.index("Rules that hold everywhere")]
    found = {}
    for number, row in enumerate(table.split("   * - ")[2:]):
        modules = row.split("     - ")[1]
        found |= dict.fromkeys(re.findall(r"``([\w./]+)``", modules), number)
    return found


def layer_of(name):
    path = FILES.get(name, FILES.get(f"{name}.__init__")).relative_to(ROOT).as_posix()
    package = f"{path.partition('/')[0]}/"
    return layers().get(path, layers().get(package))


@pytest.mark.parametrize("name", sorted(TREES.keys() - {"skae"}))
def test_modules_import_from_their_own_layer_and_below(name):
    assert layer_of(name) is not None, "missing in docs/architecture.rst"
    above = [other for other in imports_of(name) if layer_of(other) < layer_of(name)]
    # The package of the engine itself has a docstring only.
    assert [other for other in above if other != "skae.engine"] == []
