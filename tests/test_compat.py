"""Private names of scikit-learn, PyTorch and skorch, and where they are used."""

import ast
import importlib
import inspect
import pkgutil
import re
from functools import partial
from numbers import Integral
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import BaseEstimator
from skorch.callbacks import Callback
from skorch.exceptions import SkorchTrainingImpossibleError
from torch import nn

import skae
from skae import _compat
from skae._compat import Interval

PACKAGE = Path(skae.__file__).parent
LIBRARIES = ("sklearn", "skorch", "torch")

# Conventions of third-party code: what an estimator declares for scikit-learn, and the
# methods of named tuples, which are documented.
DOCUMENTED = {"_parameter_constraints", "_replace", "_asdict", "_fields"}

# Private attributes of every PyTorch module, such as `_parameters`.
MODULE_ATTRIBUTES = {name for name in vars(nn.Module()) if name.startswith("_")}


def is_private(name):
    return name.startswith("_") and not name.endswith("__") and name not in DOCUMENTED


def sources():
    return [p for p in sorted(PACKAGE.rglob("*.py")) if p.name != "_compat.py"]


def defined_names(tree):
    """Names of the functions, classes and attributes that a module defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and node.module:
            # Private modules of the package, `from skae import _batches`.
            yield from (alias.name for alias in node.names if "skae" in node.module)


def foreign_names(tree, own):
    """Yield the line and the name of each use of a private name of a library.

    Parameters
    ----------
    tree : ast.Module
    own : set of str
        Names that the package defines.
    """
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom() | ast.Import():
                prefix = getattr(node, "module", None) or ""
                names = [f"{prefix}.{alias.name}".strip(".") for alias in node.names]
                is_foreign = is_private_path
            case ast.Attribute():
                names = [node.attr]
                is_foreign = partial(is_foreign_attribute, own=own)
            case ast.keyword(arg=str()):
                names = [node.arg]
                is_foreign = partial(is_foreign_attribute, own=own)
            case ast.Constant(value=str()):
                names = [node.value]
                is_foreign = is_foreign_text
            case _:
                continue
        line = getattr(node, "lineno", None)
        yield from ((line, name) for name in names if is_foreign(name))


def is_private_path(path):
    first, *rest = path.split(".")
    return first in LIBRARIES and any(map(is_private, rest))


def is_foreign_attribute(name, own):
    stored_by_sklearn = name.startswith(("_sklearn_", "_skl_"))
    return is_private(name) and (name not in own or stored_by_sklearn)


def is_foreign_text(text):
    """Whether a string is the name of a private attribute or module of a library."""
    if re.fullmatch(r"[\w.]+", text) is None:
        return False
    is_attribute = text in MODULE_ATTRIBUTES or text.startswith("_skl_")
    return is_attribute or is_private_path(text.strip("."))


def test_private_names_of_libraries_are_used_in_one_module_only():
    trees = {path: ast.parse(path.read_text()) for path in sources()}
    own = {name for tree in trees.values() for name in defined_names(tree)}
    uses = [
        f"{path.relative_to(PACKAGE.parent)}:{line}: {name}"
        for path, tree in trees.items()
        for line, name in sorted(foreign_names(tree, own))
    ]
    assert not uses, "\n".join(["", *uses])


def test_private_methods_of_libraries_are_overridden_in_one_module_only():
    overridden = [
        f"{inspect.getsourcefile(kind)}: {kind.__qualname__}.{name}"
        for kind in classes()
        for name in vars(kind)
        for base in kind.__mro__[1:]
        if base.__module__.startswith(LIBRARIES)
        and is_private(name)
        # Set by metaclasses and by scikit-learn's `__init_subclass__`.
        and not name.startswith(("_abc_", "_sklearn_", "_backward_cls"))
        and name in vars(base)
    ]
    assert not overridden, "\n".join(["", *overridden])


def classes():
    """All classes of the package that do not belong to `_compat`."""
    found = {}
    for info in pkgutil.walk_packages(skae.__path__, "skae."):
        if info.name != _compat.__name__:
            module = importlib.import_module(info.name)
            for kind in vars(module).values():
                if isinstance(kind, type) and kind.__module__ == info.name:
                    found[kind] = None
    return list(found)


@pytest.mark.parametrize(
    "line",
    [
        "from sklearn.utils._param_validation import Interval",
        "import torch._C",
        "from sklearn.utils import _safe_indexing",
        "estimator._validate_params()",
        "tensor._version",
        "estimator._sklearn_output_config = {}",
        "vars(net).update(_trimmed_for_prediction=True)",
        "getattr(module, '_parameters')",
        "prefix = 'sklearn.utils._metadata_requests.'",
    ],
)
def test_each_kind_of_private_use_is_noticed(line):
    tree = ast.parse(line)
    assert len(list(foreign_names(tree, set(defined_names(tree))))) == 1


@pytest.mark.parametrize(
    "line",
    ["from skae import _batches", "self._own = self._own", "parts._replace(a=1)"],
)
def test_private_names_of_the_package_are_allowed(line):
    tree = ast.parse(line)
    assert not list(foreign_names(tree, set(defined_names(tree))))


# The module itself


def test_every_exported_name_exists():
    assert all(hasattr(_compat, name) for name in _compat.__all__)


def test_parameters_are_checked_against_their_constraints():
    class Estimator(BaseEstimator):
        _parameter_constraints = {"alpha": [Interval(Integral, 0, None, closed="left")]}  # noqa: RUF012

        def __init__(self, alpha=1):
            self.alpha = alpha

    _compat.validate_parameters(Estimator())
    with pytest.raises(ValueError, match="'alpha' parameter of Estimator"):
        _compat.validate_parameters(Estimator(alpha=-1))


def test_values_come_in_the_container_that_was_set():
    frame = pd.DataFrame(np.eye(2), columns=["a", "b"], index=[5, 6])
    estimator = BaseEstimator()
    estimator.feature_names_in_ = frame.columns.to_numpy(dtype=object)
    estimator.n_features_in_ = 2
    assert _compat.wrap_output(estimator, np.eye(2), frame).shape == (2, 2)
    _compat.set_output_container(estimator, "pandas")
    wrapped = _compat.wrap_output(estimator, np.eye(2), frame)
    pd.testing.assert_frame_equal(wrapped, frame)


def test_schema_tells_what_an_operator_writes_to():
    arguments = _compat.schema(torch.ops.aten.add_.Tensor).arguments
    assert [a.name for a in arguments if a.alias_info is not None] == ["self"]


def test_raw_function_is_the_operator():
    add = _compat.raw_function(torch.ops.aten.add.Tensor)
    assert add(torch.ones(2), torch.ones(2)).tolist() == [2, 2]


def test_generated_out_variants_have_no_kernel_of_their_own():
    assert _compat.has_kernel(torch.ops.aten.addmm.out, "CPU")
    assert not _compat.has_kernel(torch.ops.aten.relu.out, "CPU")


def test_functions_accept_memory_for_their_result():
    X, out = torch.linspace(-1, 1, 3), torch.empty(3)
    _compat.FUNCTIONS["gelu"](X, out=out)
    assert torch.equal(out, nn.functional.gelu(X))


def test_in_place_functions_change_their_tensors():
    counters = [torch.zeros(()), torch.ones(())]
    _compat.IN_PLACE_FUNCTIONS["_foreach_add_"](counters, 1)
    assert [c.item() for c in counters] == [1, 2]


def test_tensors_are_copied_across_types():
    sources = [torch.ones(2), torch.full((1,), 3.0)]
    destinations = [torch.zeros(2, dtype=torch.float64), torch.zeros(1)]
    _compat.copy_tensors(destinations, sources)
    assert [tensor.tolist() for tensor in destinations] == [[1.0, 1.0], [3.0]]


@pytest.mark.parametrize(
    "register",
    [
        lambda m: m.register_forward_hook(lambda *_: None),
        lambda m: m.register_forward_pre_hook(lambda *_: None),
        lambda m: m.register_full_backward_hook(lambda *_: None),
        lambda m: m.register_full_backward_pre_hook(lambda *_: None),
        lambda m: m.weight.register_hook(lambda gradient: None),
    ],
)
def test_hooks_of_a_module_and_its_parameters_are_seen(register):
    module = nn.Linear(1, 1)
    assert not _compat.has_hooks(module)
    register(module)
    assert _compat.has_hooks(module)
    assert not _compat.has_hooks(nn.Sequential(module))


def test_own_tensors_are_those_of_the_module_itself():
    module = nn.Sequential(nn.BatchNorm1d(2, affine=False))
    assert _compat.own_tensors(module) == {"parameters": {}, "buffers": {}}
    tensors = _compat.own_tensors(module[0])
    assert tensors["parameters"] == {"weight": None, "bias": None}
    assert set(tensors["buffers"]) == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


class CountingNet(_compat.SkorchNet):
    """Counts how often skorch sets the training mode."""

    n_calls = 0

    def set_training_mode(self, training=True):
        self.n_calls += 1
        super().set_training_mode(training)


def test_skorch_sets_the_mode_by_the_public_method():
    net = CountingNet(
        nn.Linear,
        module__in_features=1,
        module__out_features=1,
        criterion=nn.MSELoss,
        train_split=None,
        verbose=0,
        callbacks=[Callback()],
    )
    net.initialize()
    net.evaluation_step((torch.ones(1, 1), torch.ones(1, 1)))
    assert net.n_calls == 1
    assert not net.module_.training


def test_a_trimmed_net_cannot_be_trained():
    net = CountingNet(
        nn.Linear,
        module__in_features=1,
        module__out_features=1,
        criterion=nn.MSELoss,
        train_split=None,
        verbose=0,
    )
    net.initialize()
    assert not net.is_trimmed
    net.mark_as_trimmed()
    assert net.is_trimmed
    with pytest.raises(SkorchTrainingImpossibleError, match="trimmed for prediction"):
        net.partial_fit(np.ones((2, 1), np.float32), np.ones((2, 1), np.float32))
