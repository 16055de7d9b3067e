"""Private names of scikit-learn, PyTorch and skorch that the package depends on.

No other module of the package uses a private name of these libraries. Each entry
states why no public name does the same.

Versions tried, unless an entry says otherwise: scikit-learn 1.7.0 and 1.9.1, skorch
1.1.0 and 1.4.0, PyTorch 2.13.0.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import _safe_indexing as safe_indexing
from sklearn.utils._array_api import (
    _convert_to_numpy,
    _max_precision_float_dtype,
    array_api_compat,
)
from sklearn.utils._metadata_requests import MetadataRequest, MethodMetadataRequest
from sklearn.utils._missing import is_pandas_na
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils._param_validation import (
    Interval,
    InvalidParameterError,
    Options,
    RealNotInt,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils._set_output import ADAPTERS_MANAGER, _get_output_config
from sklearn.utils.validation import (
    _check_feature_names_in as check_feature_names_in,
)
from sklearn.utils.validation import (
    _check_response_method as check_response_method,
)
from sklearn.utils.validation import _check_sample_weight as check_sample_weight
from sklearn.utils.validation import _num_samples as num_samples
from skorch import NeuralNet
from threadpoolctl import OpenBLASController
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # scikit-learn < 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Replacement for scikit-learn < 1.9, which has no callbacks."""

    def with_callbacks(method: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method unchanged: scikit-learn < 1.9 has no callbacks."""
        return method


__all__ = [
    "CALLBACKS_ATTRIBUTE",
    "CDIST_FORWARD",
    "FOREACH_ADD_SCALAR",
    "FUNCTIONS",
    "FUSED_ADAM",
    "IN_PLACE_FUNCTIONS",
    "LINEAR_POINTWISE",
    "METADATA_REQUESTS",
    "METADATA_REQUESTS_MODULE",
    "TO_COPY",
    "CallbackSupportMixin",
    "DocstringTooltipsMixin",
    "Interval",
    "InvalidParameterError",
    "Options",
    "RealNotInt",
    "SkorchNet",
    "StrOptions",
    "TorchDispatchMode",
    "array_library",
    "callback_context",
    "check_feature_names_in",
    "check_matplotlib_support",
    "check_response_method",
    "check_sample_weight",
    "contents",
    "copy_tensors",
    "get_precision",
    "has_callbacks",
    "has_hooks",
    "has_kernel",
    "in_place_variant",
    "inference_mode",
    "is_any_autocast_enabled",
    "is_pandas_na",
    "library_device",
    "library_to_numpy",
    "num_samples",
    "numpy_to_library",
    "own_tensors",
    "raw_function",
    "requests_frame",
    "safe_indexing",
    "schema",
    "set_output_container",
    "set_precision",
    "validate_arguments",
    "validate_parameters",
    "with_callbacks",
    "wrap_columns",
    "wrap_output",
]

# scikit-learn
#
# Imported above:
# - Interval, Options, RealNotInt, StrOptions: the constraints that BaseEstimator reads
#   from `_parameter_constraints`. With them, errors are worded as in scikit-learn.
# - InvalidParameterError: the error that they raise, a ValueError and a TypeError.
# - check_sample_weight: the validation of `sample_weight` in all of scikit-learn's
#   estimators; there is no public function for it.
# - check_feature_names_in: the names of the columns, generated where `X` had none;
#   `get_feature_names_out` of a transformer names its outputs, not its inputs.
# - check_response_method: the method of an estimator that a scorer calls, and the error
#   where there is none. `sklearn.metrics.make_scorer` uses it, but does not return it.
# - num_samples: the number of rows of anything array-like, with scikit-learn's errors.
# - safe_indexing: selects rows of arrays, frames and sparse matrices alike.
#   `sklearn.utils` exports it, and third-party packages use it, but with an underscore.
# - is_pandas_na: whether a value is pandas.NA, which cannot be compared, without
#   importing pandas.
# - check_matplotlib_support: the error of scikit-learn's displays where Matplotlib is
#   missing.

# Where `set_callbacks` stores the callbacks; a saved model leaves them out. Tried with
# scikit-learn 1.9.1; older versions have no callbacks.
CALLBACKS_ATTRIBUTE = "_skl_callbacks"

# Module of the objects that `set_fit_request` and its siblings store; persistence has
# to recognize them by the name of their module.
METADATA_REQUESTS_MODULE = "sklearn.utils._metadata_requests"
METADATA_REQUESTS: tuple[type, ...] = (MetadataRequest, MethodMetadataRequest)


def validate_parameters(estimator: Any) -> None:
    """Check an estimator's parameters against its `_parameter_constraints`.

    `BaseEstimator._validate_params` has no public counterpart: scikit-learn calls it
    through the private decorator `_fit_context`.

    Parameters
    ----------
    estimator : BaseEstimator

    Raises
    ------
    InvalidParameterError
        If a parameter has a value that its constraints exclude.
    TypeError
        If a parameter is a number of another library.
    """
    _check_numbers(estimator.get_params(deep=False), type(estimator).__name__)
    estimator._validate_params()


def validate_arguments(
    constraints: dict[str, list[Any]], arguments: dict[str, Any], caller: str
) -> None:
    """Check arguments of a function or method against constraints.

    scikit-learn validates its own functions so, by the decorator `validate_params`,
    which is private, too.

    Parameters
    ----------
    constraints : dict
        A list of constraints for each name, as in `_parameter_constraints`.
    arguments : dict
        Arguments by name. Those without constraints are not checked.
    caller : str
        Name of the function or method, for the error.

    Raises
    ------
    InvalidParameterError
        If an argument has a value that its constraints exclude.
    TypeError
        If an argument is a number of another library.
    """
    _check_numbers(arguments, caller)
    validate_parameter_constraints(constraints, arguments, caller)


def _check_numbers(arguments: dict[str, Any], caller: str) -> None:
    """Raise TypeError for numbers that the constraints of scikit-learn cannot compare.

    Their errors do not name the argument.
    """
    for name, value in arguments.items():
        if isinstance(value, Real) and not isinstance(value, int | float | np.generic):
            raise TypeError(
                f"The {name!r} parameter of {caller} must be a number of Python or "
                f"NumPy. Got {value!r} instead. Pass float({name})."
            )


def release_blas_threads() -> None:
    """Allow every thread to set the number of threads of OpenBLAS, which all share.

    Since threadpoolctl 3.8, only the first thread that sets it may do so, until it is
    restored: calls in other threads have no effect.
    """
    clear = getattr(OpenBLASController, "clear_controlling_thread", None)
    if clear is not None:
        clear(force=True)


def set_output_container(estimator: Any, transform: str) -> None:
    """Store the output container of an estimator without a `transform` method.

    `set_output` of scikit-learn exists only where `transform` does.

    Parameters
    ----------
    estimator : BaseEstimator
    transform : {"default", "pandas", "polars"}
    """
    estimator._sklearn_output_config = {"transform": transform}


def wrap_output(
    estimator: Any, values: NDArray[Any], X: Any, columns: NDArray[Any] | None = None
) -> Any:
    """Return values with as many rows as X in the container chosen by `set_output`.

    scikit-learn wraps only the methods `transform` and `fit_transform`, and names the
    columns by `get_feature_names_out`.

    Parameters
    ----------
    estimator : BaseEstimator
        A fitted estimator; its input features name the columns.
    values : ndarray of shape (n_samples, n_columns)
    X : array-like or data frame of shape (n_samples, n_features)
        Gives a data frame its index.
    columns : ndarray of shape (n_columns,) or None, default=None
        Names of the columns; None means those of the input features.

    Returns
    -------
    values : ndarray or data frame of shape (n_samples, n_columns)
    """
    container = _get_output_config("transform", estimator)["dense"]
    if container == "default":
        return values
    if columns is None:
        columns = check_feature_names_in(estimator)
    return ADAPTERS_MANAGER.adapters[container].create_container(values, X, columns)


def wrap_columns(
    estimator: Any, columns: list[NDArray[Any]], categories: Any, X: Any
) -> Any:
    """Return columns of different types in the data frame chosen by `set_output`.

    Parameters
    ----------
    estimator : BaseEstimator
        A fitted estimator; its input features name the columns.
    columns : list of ndarray of shape (n_samples,)
    categories : Categories
        Its `kinds` are the types of the columns.
    X : array-like or data frame of shape (n_samples, n_features)
        Gives a data frame of pandas its index.
    """
    container = _get_output_config("transform", estimator)["dense"]
    adapter = ADAPTERS_MANAGER.adapters[container]
    names = check_feature_names_in(estimator)
    # Of numbers, so that the adapter gives the frame its index and its names.
    frame = adapter.create_container(np.zeros((len(columns[0]), len(names))), X, names)
    library = import_module(container)
    for name, values, levels, kind in zip(
        names, columns, categories.levels, categories.kinds, strict=True
    ):
        typed: Any = values if levels is None else values.tolist()
        is_category = kind in ("category", "ordered")
        if container == "polars":
            are_words = [isinstance(value, str) for value in typed]
            dtype = library.Categorical if is_category and all(are_words) else None
            if any(are_words) and not all(are_words):
                dtype = library.Object
            frame = frame.with_columns(library.Series(name, typed, dtype=dtype))
            continue
        if is_category:  # imputed tables may have others than those of the fit
            entries = list(dict.fromkeys((*levels, *typed)))
            typed = library.Categorical(typed, entries, kind == "ordered")
        frame[name] = typed
    return frame


def requests_frame(estimator: Any) -> bool:
    """Whether `set_output` asks for data frames as the output of `transform`."""
    return _get_output_config("transform", estimator)["dense"] != "default"


# Arrays of other libraries. scikit-learn contains the package array-api-compat, which
# it does not document, and has further functions for its own estimators.


def array_library(array: Any) -> str | None:
    """Return the name of the library of an array.

    Parameters
    ----------
    array : object

    Returns
    -------
    library : str or None
        Such as ``"torch"``. None for NumPy and for an object that is no array by the
        Python array API standard.
    """
    if not array_api_compat.is_array_api_obj(array):
        return None
    namespace = array_api_compat.array_namespace(array).__name__
    library = namespace.rpartition("array_api_compat.")[2]
    return None if library == "numpy" else library


def library_device(array: Any) -> Any:
    """Return the device of an array of any library."""
    return array_api_compat.device(array)


def library_to_numpy(array: Any) -> NDArray[Any]:
    """Return a NumPy array with the values of an array of any library."""
    return _convert_to_numpy(array, array_api_compat.array_namespace(array))


def numpy_to_library(values: NDArray[Any], library: str, device: str) -> Any:
    """Return an array of a library.

    Parameters
    ----------
    values : ndarray
    library : str
        Name of a library that has been imported.
    device : str
        What `str` returns for one of its devices. The default device takes the place of
        one that does not exist.

    Returns
    -------
    array : object
        In float32 instead of float64 if the device does not have the latter.
    """
    xp = array_api_compat.array_namespace(sys.modules[library].asarray(0))
    devices = xp.__array_namespace_info__().devices()
    found = next((each for each in devices if str(each) == device), None)
    has_float64 = _max_precision_float_dtype(xp, found) == xp.float64
    if values.dtype == "float64" and not has_float64:
        values = values.astype("float32")
    return xp.asarray(values, device=found)


def has_callbacks(estimator: Any) -> bool:
    """Whether `set_callbacks` has given an estimator scikit-learn callbacks."""
    return hasattr(estimator, CALLBACKS_ATTRIBUTE)


def callback_context(estimator: Any, name: str, max_subtasks: int) -> Any:
    """Create the root callback context of a fit.

    scikit-learn's documentation tells developers of third-party estimators to call
    `_init_callback_context`; it has no public name yet. Tried with scikit-learn 1.9.1;
    older versions have no callbacks.

    Parameters
    ----------
    estimator : CallbackSupportMixin
        An estimator for which `has_callbacks` is true.
    name : str
        Name of the task.
    max_subtasks : int
        Upper bound on the number of subtasks.

    Returns
    -------
    context : sklearn.callback.CallbackContext
    """
    return estimator._init_callback_context(name, max_subtasks=max_subtasks)


class DocstringTooltipsMixin:
    """Show docstrings as tooltips in the HTML representation of an estimator.

    In a notebook, scikit-learn >= 1.9 shows the description of each parameter and
    fitted attribute as a tooltip, but only if there is a link to online
    documentation (`_doc_link_module` and `_doc_link_template`). This mixin shows the
    tooltips without a link, for which there is no public hook. It has to precede
    `BaseEstimator` in the bases of a class.
    """

    def _get_params_html(self, *args: Any, **kwargs: Any) -> Any:
        return _with_tooltips(super()._get_params_html(*args, **kwargs))  # type: ignore[misc]

    def _get_fitted_attr_html(self, *args: Any, **kwargs: Any) -> Any:
        return _with_tooltips(super()._get_fitted_attr_html(*args, **kwargs))  # type: ignore[misc]


def _with_tooltips(table: Any) -> Any:
    """Let scikit-learn's table of parameters or attributes have tooltips.

    Parameters
    ----------
    table : ParamsDict or AttrsDict
        Changed in place if it has no link to online documentation.

    Returns
    -------
    table : ParamsDict or AttrsDict
        The same object.
    """
    # Before scikit-learn 1.9, a table has neither tooltips nor a `doc_link`.
    if getattr(table, "doc_link", None) == "":
        table.doc_link = "#"
        table._html_repr = partial(_render_without_links, table._html_repr)
    return table


def _render_without_links(render: Any) -> str:
    return re.sub(r' rel="noreferrer" target="_blank" href="#[^"]*"', "", render())


# PyTorch
#
# Imported above: TorchDispatchMode, the documented way to see every operator that runs
# (https://docs.pytorch.org/docs/stable/notes/extending.html), which PyTorch keeps in a
# private module.

# An operator, one of `torch.ops.aten`; PyTorch has no public name for its type.
OpOverload: TypeAlias = Any

# Operators without a public name; a recorded training step and an exported graph
# contain them.
TO_COPY: OpOverload = torch.ops.aten._to_copy.default
CDIST_FORWARD: OpOverload = torch.ops.aten._cdist_forward.default
FOREACH_ADD_SCALAR: OpOverload = torch.ops.aten._foreach_add_.Scalar

# Operators of the fused optimizers, with the learning rate as a number or as a tensor.
FUSED_ADAM: set[OpOverload] = {
    torch.ops.aten._fused_adam_.default,
    torch.ops.aten._fused_adam_.tensor_lr,
    torch.ops.aten._fused_adamw_.default,
    torch.ops.aten._fused_adamw_.tensor_lr,
}

# Functions by the name of their operator, which they run with less overhead. The public
# `torch.nn.functional.gelu` and `mse_loss` do not accept `out`.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "gelu": torch._C._nn.gelu,
    "mse_loss": torch._C._nn.mse_loss,
}

# In-place functions that the optimizers of PyTorch call; they have no public name.
IN_PLACE_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "_foreach_add_": torch._foreach_add_,
    "_fused_adam_": torch._fused_adam_,
    "_fused_adamw_": torch._fused_adamw_,
}


# A linear layer as oneDNN computes it, with the arguments (X, weight, bias, activation,
# its numbers, its algorithm). The public functions leave it to PyTorch whether oneDNN
# or MKL multiplies. None if PyTorch was built without oneDNN.
LINEAR_POINTWISE: Callable[..., Any] | None = (
    torch.ops.mkldnn._linear_pointwise.default._op
    if hasattr(torch.ops.mkldnn, "_linear_pointwise")
    else None
)

# Whether an autocast is enabled for any type of device. The public function has to be
# called for each type.
is_any_autocast_enabled: Callable[[], bool] = torch._C._is_any_autocast_enabled

# Read and set the precision in which a backend computes float32 products, by the names
# of backend and operation. The public attributes, such as
# `torch.backends.mkldnn.matmul.fp32_precision`, take six times as long to read, which
# counts in the prediction for one row.
get_precision: Callable[[str, str], str] = torch._C._get_fp32_precision_getter
set_precision: Callable[[str, str, str], Any] = torch._C._set_fp32_precision_setter


def inference_mode() -> Any:
    """Return the context that `torch.inference_mode` enters, with less overhead."""
    return torch._C._InferenceMode(True)


def schema(operator: OpOverload) -> Any:
    """Return the schema of an operator: its name, arguments and what it writes to.

    PyTorch documents the schema only for operators that a user registers.

    Parameters
    ----------
    operator : torch._ops.OpOverload

    Returns
    -------
    schema : torch._C.FunctionSchema
    """
    return operator._schema


def raw_function(operator: OpOverload) -> Callable[..., Any]:
    """Return the C++ function of an operator, without the checks of its Python wrapper.

    The wrapper's share of the time of an operation on a small tensor is considerable.

    Parameters
    ----------
    operator : torch._ops.OpOverload

    Returns
    -------
    function : callable
    """
    return operator._op


def has_kernel(operator: OpOverload, device: str) -> bool:
    """Whether an operator has a kernel of its own for a device.

    PyTorch generates `out` variants for all operators; most of them have no kernel and
    copy the result of the functional operator. No public attribute distinguishes them.

    Parameters
    ----------
    operator : torch._ops.OpOverload
    device : {"CPU", "CUDA"}
        A dispatch key.
    """
    return torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), device)


def in_place_variant(operator: OpOverload) -> OpOverload | None:
    """Return the operator that writes the same result into its first argument.

    PyTorch documents that it has the same name with an underscore, but has no public
    name for its overload.

    Parameters
    ----------
    operator : torch._ops.OpOverload

    Returns
    -------
    in_place : torch._ops.OpOverload or None
        None if there is none with the same further arguments.
    """
    packet = getattr(torch.ops.aten, f"{operator.overloadpacket.__name__}_", None)
    in_place = getattr(packet, operator._overloadname, None)
    if in_place is None:
        return None
    arguments, others = schema(operator).arguments, schema(in_place).arguments
    is_same = [a.name for a in arguments] == [a.name for a in others]
    return in_place if is_same and others[0].alias_info is not None else None


def copy_tensors(destination: list[Tensor], source: list[Tensor]) -> None:
    """Copy values between tensors of equal shapes in one call.

    One call of `Tensor.copy_` for each tensor takes several times as long for the many
    small tensors of a network.

    Parameters
    ----------
    destination, source : list of Tensor
    """
    torch._foreach_copy_(destination, source)


def mix_tensors(destination: list[Tensor], source: list[Tensor], share: float) -> None:
    """Move the values of tensors by a share of their distance to others, in one call.

    Parameters
    ----------
    destination, source : list of Tensor
    share : float
    """
    torch._foreach_lerp_(destination, source, share)


def has_hooks(module: nn.Module) -> bool:
    """Whether a module itself, or one of its own parameters, has hooks.

    Submodules are not visited. Hooks can be registered and removed by public methods,
    but not listed.
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    ) or any(
        parameter is not None and parameter._backward_hooks
        for parameter in module._parameters.values()
    )


def own_tensors(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Return the tensors that a module itself stores, without its submodules'.

    The public iterators leave out entries that are None, and a tensor that replaces one
    of these has to be put into the dictionary.

    Parameters
    ----------
    module : torch.nn.Module

    Returns
    -------
    tensors : dict
        With the keys ``"parameters"`` and ``"buffers"``, each a dictionary of names
        and tensors that belongs to the module: changing it changes the module.
    """
    return {"parameters": module._parameters, "buffers": module._buffers}


def contents(module: nn.Module) -> tuple[dict[Any, Any], ...]:
    """Return the dictionaries of a module's parameters, buffers, submodules and hooks.

    The public iterators also visit submodules, and take too long to be called at each
    prediction.

    Parameters
    ----------
    module : torch.nn.Module
    """
    return (
        module._parameters,
        module._buffers,
        module._modules,
        module._forward_hooks,
        module._forward_pre_hooks,
    )


# skorch


class SkorchNet(NeuralNet):
    """A skorch net whose private hooks have public names.

    skorch sets the mode of the modules at each batch, by `_set_training`, and marks
    nets that cannot be trained any more, by `_trimmed_for_prediction`. Neither has a
    public name. skorch's own `trim_for_prediction` keeps objects that prediction does
    not need.
    """

    def set_training_mode(self, training: bool = True) -> None:
        """Set the training mode of all modules; a subclass may override it.

        Parameters
        ----------
        training : bool, default=True
            False is evaluation mode.
        """
        super()._set_training(training)

    def _set_training(self, training: bool = True) -> None:
        self.set_training_mode(training)

    @property
    def is_trimmed(self) -> bool:
        """Whether all that only training needs has been deleted."""
        return getattr(self, "_trimmed_for_prediction", False)

    def mark_as_trimmed(self) -> None:
        """Mark the net as trimmed, so that skorch refuses to train it."""
        # Not by assignment, which `NeuralNet.__setattr__` intercepts.
        self.__dict__["_trimmed_for_prediction"] = True
