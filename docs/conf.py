"""Settings of Sphinx: ``python -m sphinx -W --keep-going docs docs/_build/html``."""

import re
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

# The docstrings give each parameter's type, in words; and a method that fulfils what
# its base class promises, without words of its own, is described there.
autodoc_typehints = "none"
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
numpydoc_show_class_members = False  # the template lists them

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


def mend_types(app, what, name, obj, options, lines):
    """Make what stands behind ``name :`` one line of plain text, in place.

    In a raw docstring a backslash does not join its line to the next, and reST takes
    a name such as ``n_features_in_`` for a link.
    """
    text = re.sub(r" *\\\n +", " ", "\n".join(lines))
    lines[:] = [
        re.sub(r"_(?=[,)])", r"\\_", line) if re.match(r"\w+ : ", line) else line
        for line in text.split("\n")
    ]


def skip_fields(app, what, name, obj, skip, options):
    """Leave out the fields of named tuples, which are described as attributes."""
    return True if str(obj.__doc__).startswith("Alias for field number") else None


def setup(app):
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("autodoc-process-docstring", mend_types, priority=400)  # numpydoc: 500
