import ast
import html
import importlib
import inspect
import re

import numpy as np
import pytest
import sklearn
import torch
from numpydoc.docscrape import NumpyDocString
from numpydoc.validate import validate
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils._testing import assert_docstring_consistency
from sklearn.utils.fixes import parse_version

from skae import AutoencoderOutlierDetector, AutoencoderTransformer

MODULES = (
    "skae",
    "skae.networks",
    "skae.losses",
    "skae.bottlenecks",
    "skae.corruptions",
    "skae.penalties",
    "skae.inspection",
    "skae.model_selection",
    "skae.windows",
    "skae.distributed",
    "skae.export",
)

# Codes of `numpydoc.validate` that are ignored. They are those that scikit-learn
# ignores in its own docstrings.
IGNORED = {
    "GL01": "the summary begins on the line of the opening quotes",
    "GL02": "the closing quotes of a docstring of one line stand on this line",
    "RT02": "a returned value has a name",
}
IGNORED_IN_METHODS_AND_FUNCTIONS = {
    "ES01": "the summary may be all that there is to say",
    "EX01": "the example of a class shows its methods",
    "SA01": "the class refers to related classes",
}

# Parameters of both estimators of which "auto" has different meanings.
DIFFERENT_MEANING = (
    "batch_size",
    "hidden_layer_sizes",
    "learning_rate",
    "loss",
    "max_epochs",
    "n_components",
    "scale",
)
# Parameters that differ in their default only.
DIFFERENT_DEFAULT = ("early_stopping", "init", "trim")

# Fitted attributes whose descriptions mention the members of the detector.
DIFFERENT_ATTRIBUTES = ("module_", "n_components_")
# Fitted attributes that have an axis for the members of the detector.
DIFFERENT_SHAPE = ("active_units_", "perplexity_")

ESTIMATORS = (AutoencoderTransformer, AutoencoderOutlierDetector)

each_estimator = pytest.mark.parametrize("Estimator", ESTIMATORS)
needs_tooltips = pytest.mark.skipif(
    parse_version(sklearn.__version__) < parse_version("1.9"),
    reason="tooltips are new in scikit-learn 1.9",
)


def public_objects():
    """Import paths of the public classes and functions, and of their public methods.

    A method without a docstring is documented in the base class that it overrides.
    """
    paths = set()
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value):
                paths.add(f"{value.__module__}.{name}")
            elif inspect.isclass(value):
                paths.add(f"{value.__module__}.{name}")
                paths.update(public_methods(value))
    return sorted(paths)


def public_methods(Class):
    """Import paths of the methods and properties that are defined in this package."""
    for Base in Class.__mro__:
        if not Base.__module__.startswith("skae"):
            continue
        for name in vars(Base):
            if name.startswith("_"):
                continue
            member = getattr(Base, name)
            is_documented_elsewhere = member.__doc__ is None and any(
                hasattr(Other, name) for Other in Base.__mro__[1:]
            )
            if (
                inspect.isfunction(member)
                or inspect.ismethod(member)
                or isinstance(member, property)
            ) and not is_documented_elsewhere:
                yield f"{Base.__module__}.{Base.__qualname__}.{name}"


def load(path):
    """Return the class, function, method or property, and the class that it is in."""
    *module_names, name = path.split(".")
    try:
        Class = None
        parent = importlib.import_module(".".join(module_names))
    except ModuleNotFoundError:
        *module_names, class_name = module_names
        Class = parent = getattr(
            importlib.import_module(".".join(module_names)), class_name
        )
    return getattr(parent, name), Class


def is_ignored(code, path):
    """Return whether an error of `numpydoc.validate` is ignored for this object."""
    value, _ = load(path)
    if code in IGNORED:
        return True
    if not inspect.isclass(value):
        return code in IGNORED_IN_METHODS_AND_FUNCTIONS
    # A module of PyTorch without an own constructor has no parameters to document.
    return code == "PR01" and value.__init__ is torch.nn.Module.__init__


def descriptions(Estimator, section):
    """Map the names in a section of the docstring to types and descriptions."""
    entries = NumpyDocString(inspect.getdoc(Estimator))[section]
    return {name: (type_, lines) for name, type_, lines in entries}


def tooltip(name, type_, lines):
    text = "<br>".join(html.escape(line) for line in lines)
    return f"{name}: {html.escape(type_)}<br><br>{text}"


@pytest.mark.parametrize("path", public_objects())
def test_docstring_follows_numpydoc(path):
    errors = [
        error for error in validate(path)["errors"] if not is_ignored(error[0], path)
    ]
    assert errors == []


@pytest.mark.parametrize("path", public_objects())
def test_docstring_has_no_continuation_line(path):
    # In a raw docstring, a backslash does not join its line to the next one. Two of
    # them end a line of a formula.
    value, _ = load(path)
    assert re.findall(r"^.*[^\\]\\$", value.__doc__, flags=re.MULTILINE) == []


def test_estimators_describe_shared_parameters_alike():
    shared = set.intersection(*(set(E._get_param_names()) for E in ESTIMATORS))
    assert shared.issuperset(DIFFERENT_MEANING + DIFFERENT_DEFAULT)
    assert_docstring_consistency(
        ESTIMATORS,
        include_params=sorted(shared.difference(DIFFERENT_MEANING)),
        ignore_types=DIFFERENT_DEFAULT,
    )


def test_estimators_describe_shared_attributes_alike():
    shared = set.intersection(*(set(descriptions(E, "Attributes")) for E in ESTIMATORS))
    assert shared.issuperset(DIFFERENT_ATTRIBUTES + DIFFERENT_SHAPE)
    assert_docstring_consistency(
        ESTIMATORS,
        include_attrs=sorted(shared.difference(DIFFERENT_ATTRIBUTES)),
        ignore_types=DIFFERENT_SHAPE,
    )


@each_estimator
def test_documented_defaults_are_those_of_the_signature(Estimator):
    documented = {
        name: ast.literal_eval(type_.partition("default=")[2])
        for name, (type_, _) in descriptions(Estimator, "Parameters").items()
    }
    parameters = inspect.signature(Estimator).parameters.values()
    assert documented == {parameter.name: parameter.default for parameter in parameters}


@each_estimator
def test_documented_strings_are_those_that_are_accepted(Estimator):
    for name, (type_, lines) in descriptions(Estimator, "Parameters").items():
        text = "\n".join([type_, *lines])
        for constraint in Estimator._parameter_constraints[name]:
            for option in getattr(constraint, "options", ()):
                shown = f'"{option}"' if isinstance(option, str) else f"np.{option}"
                assert shown in text, (name, option)


@needs_tooltips
@each_estimator
def test_html_has_description_of_each_parameter(Estimator):
    text = Estimator()._repr_html_()
    for name, entry in descriptions(Estimator, "Parameters").items():
        assert tooltip(name, *entry) in text


@needs_tooltips
@each_estimator
def test_html_has_description_of_each_fitted_attribute(Estimator):
    X = np.random.default_rng(0).normal(size=(20, 3))
    estimator = Estimator(max_epochs=1, random_state=0).fit(X)
    text = estimator._repr_html_()
    for name, entry in descriptions(Estimator, "Attributes").items():
        assert (tooltip(name, *entry) in text) == hasattr(estimator, name)


@needs_tooltips
@each_estimator
def test_html_of_pipeline_has_description_of_each_parameter(Estimator):
    text = make_pipeline(StandardScaler(), Estimator())._repr_html_()
    for name, entry in descriptions(Estimator, "Parameters").items():
        assert tooltip(name, *entry) in text


@needs_tooltips
@each_estimator
def test_html_has_no_link_without_online_documentation(Estimator):
    assert "href=" not in clone(Estimator())._repr_html_()


@needs_tooltips
@each_estimator
def test_html_links_to_online_documentation(Estimator, monkeypatch):
    monkeypatch.setattr(Estimator, "_doc_link_module", "skae")
    monkeypatch.setattr(
        Estimator, "_doc_link_template", "https://a.test/{estimator_name}"
    )
    text = Estimator()._repr_html_()
    link = f"https://a.test/{Estimator.__name__}#:~:text=penalty_weight"
    assert link in text
