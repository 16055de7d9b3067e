"""Settings of Sphinx: ``python -m sphinx -W --keep-going docs docs/_build/html``."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the checkout, not a skae installed elsewhere

import skae  # noqa: E402

project = "skae"
copyright = "the skae developers"
version = release = skae.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
default_role = "literal"  # `name` is a parameter or a method, as in scikit-learn
smartquotes = False  # "auto" is a string
toc_object_entries_show_parents = "hide"

# The docstrings name the types of parameters. A method without a docstring is
# documented in the base class that it overrides.
autodoc_typehints = "none"
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
numpydoc_show_class_members = False  # listed by the template

html_theme = "pydata_sphinx_theme"
html_title = "skae"
html_static_path = ["_static"]
html_css_files = ["skae.css"]
html_show_sourcelink = False
# Only the reference has pages below it, which a sidebar can list.
html_sidebars = {
    page.stem: [] for page in (ROOT / "docs").glob("*.rst") if page.stem != "api"
}
html_theme_options = {
    "navigation_with_keys": False,
    "show_prev_next": False,
    "footer_start": ["copyright"],
    "footer_end": [],
}


def skip_fields(app, what, name, obj, skip, options):
    """Skip the fields of named tuples, which are documented as attributes."""
    return True if str(obj.__doc__).startswith("Alias for field number") else None


def setup(app):
    app.connect("autodoc-skip-member", skip_fields)
