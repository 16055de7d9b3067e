"""Settings of Sphinx: ``python -m sphinx -W --keep-going docs docs/_build/html``.

The build runs the examples, which takes minutes. ``-D plot_gallery=0`` leaves out their
output and figures, and ``-D sphinx_gallery_conf.filename_pattern=digits`` runs only
those whose names match.
"""

import importlib.util
import os
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
    "myst_parser",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "auto_examples/README.rst", "auto_examples/*.ipynb"]
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

# Prompts and output are not copied.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

sphinx_gallery_conf = {
    "examples_dirs": str(ROOT / "examples"),
    "gallery_dirs": "auto_examples",
    "backreferences_dir": "auto_examples/backreferences",
    "doc_module": ("skae",),
    "within_subsection_order": "FileNameSortKey",
    "capture_repr": ("_repr_html_",),
    "abort_on_example_error": True,
    "image_srcset": ["2x"],
    "log_level": {"backreference_missing": "info"},  # classes without an example
    "remove_config_comments": True,
    "show_signature": False,
    "write_computation_times": False,
    "parallel": True,  # as many processes as ``-j``; plot_service.py runs alone
}

# Pages need no network: MathJax is a file of a package, not of a server.
mathjax_package = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent
mathjax_path = "tex-svg.js"

html_theme = "pydata_sphinx_theme"
html_title = "skae"
html_logo = "_static/logo.svg"
html_favicon = "_static/logo.svg"
html_baseurl = os.environ.get("READTHEDOCS_CANONICAL_URL", "")
html_context = {"html_baseurl": html_baseurl}
html_static_path = [
    "_static",
    str(mathjax_package / "static" / "mathjax" / mathjax_path),
]
html_css_files = ["skae.css"]
html_show_sourcelink = False
# Pages without pages below them have nothing to list.
html_sidebars = {
    page: [] for page in ("index", "getting_started", "choosing", "faq", "limits")
}
html_theme_options = {
    "logo": {"text": "skae", "alt_text": "skae, to the landing page"},
    "header_links_before_dropdown": 7,
    "navbar_align": "left",
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
