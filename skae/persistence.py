"""Save fitted estimators to one file and load them, without pickle.

The file has the format of safetensors [1]_. It holds the arrays and, as its metadata, a
description in JSON of the objects that contain them. Loading creates objects of known
classes and sets their attributes; it runs no code from the file.

References
----------
.. [1] https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from skae._base import BaseAutoencoder
from skae._compat import (
    CALLBACKS_ATTRIBUTE,
    METADATA_REQUESTS,
    METADATA_REQUESTS_MODULE,
)
from skae._files import read_tensor_file, replace_file, tensor_file
from skae._module import Autoencoder
from skae._processor import own_settings
from skae._storage import (
    StoredParametersMixin,
    default_parameters,
    warn_of_other_version,
)
from skae._version import __version__
from skae.engine.net import AutoencoderNet, without_batches

__all__ = ["load", "save"]

# Version of the file format, increased when older versions of skae cannot read a file.
FORMAT = 1

# Key of the file's metadata, whose value is the description.
METADATA_KEY = "skae"

# Classes of skae whose objects a file may hold without `trusted`, by the module that
# defines them. Others are the modules of PyTorch and scikit-learn's metadata requests.
KNOWN_CLASSES: dict[str, tuple[str, ...]] = {
    "skae._categorical_loss": ("CategoricalLoss",),
    "skae._categories": ("Categories", "Layout"),
    "skae._explained": ("VarianceCurve",),
    "skae._folds": ("Holdout",),
    "skae._job": (
        "Generation",
        "LossCurves",
        "Parts",
        "ResidualSums",
        "Trained",
        "TrainingScores",
    ),
    "skae._completion": ("Completion",),
    "skae._layers": (
        "BinarySigmoid",
        "BlockSoftmax",
        "ChannelsFirst",
        "ChannelsLast",
        "CodeActivation",
        "Dropout",
        "FirstComponents",
        "PrefixLinear",
        "QuickGELU",
        "Rectifier",
        "Residual",
        "StackedLinear",
    ),
    "skae._members": ("CodeWidths", "MemberSqueezes", "Members"),
    "skae._mixture": ("CodeDensity", "Mixture"),
    "skae._module": ("Autoencoder", "Scaler"),
    "skae._neighbors": ("KeptRows", "NearestRows"),
    "skae._noise": ("Noise",),
    "skae._ordered": ("Ordered",),
    "skae._prefixes": ("Prefixes",),
    "skae._row_noise": ("RowNoise",),
    "skae._summary": ("Summary",),
    "skae.bottlenecks": (
        "Deterministic",
        "Gaussian",
        "Quantized",
        "Squeeze",
        "TopK",
        "_GaussianSqueeze",
        "_QuantizedSqueeze",
        "_TopKSqueeze",
    ),
    "skae.corruptions": ("GaussianNoise", "Masking", "SaltAndPepper", "Swap"),
    "skae.losses": (
        "AbsoluteError",
        "BinaryCrossEntropy",
        "Huber",
        "LogError",
        "Mixed",
        "SquaredError",
    ),
    "skae.networks": ("Conv", "Custom", "MLP", "Shape"),
    "skae.outlier": ("AutoencoderOutlierDetector",),
    "skae.penalties": ("Contractive", "KLSparsity", "L1"),
    "skae.transformer": ("AutoencoderTransformer",),
}

# Attributes of an estimator that are not saved, since they are code.
NOT_SAVED = ("callbacks", CALLBACKS_ATTRIBUTE)


def save(estimator: BaseAutoencoder, path: str | os.PathLike[str]) -> None:
    """Save a fitted estimator to a file.

    The file is written atomically: if saving fails or is interrupted, an existing file
    is unchanged. Callbacks and the batches in `net_.history` are not saved.

    Parameters
    ----------
    estimator : AutoencoderTransformer or AutoencoderOutlierDetector
        The fitted estimator.
    path : str or path-like
        The file to write, by convention with the suffix ``".safetensors"``.

    Raises
    ------
    TypeError
        If `estimator` is not an autoencoder of skae, or contains an object that cannot
        be saved.
    NotFittedError
        If it is not fitted.
    OSError
        If the file cannot be written.

    Warns
    -----
    UserWarning
        If the estimator has callbacks.

    See Also
    --------
    load : Load the estimator.
    export_onnx : Export its predictions as a graph.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import skae
    >>> from sklearn.datasets import load_iris
    >>> X = load_iris().data
    >>> ae = skae.AutoencoderTransformer(1, max_epochs=5, random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "iris.safetensors"
    ...     skae.save(ae, path)
    ...     loaded = skae.load(path)
    >>> bool((loaded.transform(X) == ae.transform(X)).all())
    True
    """
    if not isinstance(estimator, BaseAutoencoder):
        raise TypeError(
            "estimator must be an AutoencoderTransformer or an "
            f"AutoencoderOutlierDetector, got {estimator!r}. For a Pipeline, save the "
            "last step."
        )
    check_is_fitted(estimator)
    if estimator.callbacks:
        warnings.warn("callbacks are code and are not saved.", stacklevel=2)
    replace_file(Path(path), _content_of_file(estimator))


@own_settings()
def _content_of_file(estimator: BaseAutoencoder) -> bytes:
    """Return what `save` writes."""
    state = {k: v for k, v in vars(estimator).items() if k not in NOT_SAVED}
    name = type(estimator).__name__
    writer = _Writer()
    description = {
        "format": FORMAT,
        "versions": {
            "skae": __version__,
            "sklearn": sklearn.__version__,
            "torch": torch.__version__,
        },
        "class": _qualified_name(type(estimator)),
        "state": writer.describe_mapping({**state, "callbacks": None}, name),
    }
    text = json.dumps(description, allow_nan=False)
    return tensor_file(METADATA_KEY, text, writer.tensors)


def load(
    path: str | os.PathLike[str], *, trusted: Iterable[type | Callable[..., Any]] = ()
) -> BaseAutoencoder:
    """Load an estimator from a file written by `save`.

    On the same machine, the predictions of the loaded estimator are bit-identical to
    those of the saved one. Training can be continued; of the previous training, only
    the losses are kept.

    Parameters
    ----------
    path : str or path-like
        The file.
    trusted : iterable of class or function, default=()
        Classes and functions that are not part of skae and that the file may contain,
        such as the modules of a `Custom` network. The ``__init__`` of a class is not
        called; the attributes of its objects are set.

    Returns
    -------
    estimator : AutoencoderTransformer or AutoencoderOutlierDetector
        The fitted estimator, on the CPU.

    Raises
    ------
    ValueError
        If the file was not written by `save`, or is truncated or altered. The error
        names the file, as does the next.
    TypeError
        If it contains an object of a class that is neither known nor trusted.
    OSError
        If it cannot be read.

    Warns
    -----
    InconsistentVersionWarning
        If the file was written by another version of skae. This is a subclass of
        :class:`sklearn.exceptions.InconsistentVersionWarning`. Parameters that this
        version lacked get their defaults.
    UserWarning
        If the file was written by a later version of skae, in a newer format.

    See Also
    --------
    save : Save an estimator.

    Notes
    -----
    The known classes are those of skae that estimators consist of, the modules of
    `torch.nn`, and the metadata requests of scikit-learn. They are looked up among the
    modules that are imported already; loading imports no module, and does not evaluate
    the network. The checksum in the file protects from accidents only: someone may
    write a file with another network of known classes, whose predictions are wrong or
    need much memory.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import skae
    >>> from sklearn.datasets import load_iris
    >>> X = load_iris().data
    >>> ae = skae.AutoencoderTransformer(1, max_epochs=5, random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "iris.safetensors"
    ...     skae.save(ae, path)
    ...     loaded = skae.load(path)
    >>> loaded.n_features_in_
    4
    """
    path = Path(path)
    text, tensors = read_tensor_file(path, METADATA_KEY, "skae.save")
    with _invalid_description_as_value_error(path):
        description = json.loads(text)
        is_newer = description["format"] > FORMAT
        version = description["versions"]["skae"]
    if is_newer:
        warnings.warn(
            f"{str(path)!r} was written by skae {version}, in a format that this "
            "version does not know. The loaded estimator may be wrong.",
            stacklevel=2,
        )
    with _invalid_description_as_value_error(path):
        estimator = _Reader(tensors, trusted).make_estimator(description)
    if not is_newer:
        warn_of_other_version(type(estimator).__name__, version, stacklevel=2)
    return estimator


@contextmanager
def _invalid_description_as_value_error(path: Path) -> Iterator[None]:
    """Raise any error caused by an invalid description as a ValueError."""
    try:
        yield
    except _NotTrustedError as error:
        raise TypeError(f"{str(path)!r} {error}") from None
    except Exception as error:
        raise ValueError(
            f"{str(path)!r} does not describe an estimator that this version of skae "
            f"can load: {error!r}."
        ) from error


def _qualified_name(value: Any) -> str:
    """Return the module and the name of a class or a function."""
    return f"{value.__module__}:{value.__qualname__}"


class _Writer:
    """Describes objects and collects their tensors and arrays.

    In the description, values of JSON types are themselves. Any other value is a dict
    of one item, whose key is the kind of the value; see `_Reader` for the kinds.

    Attributes
    ----------
    tensors : dict of str to Tensor
        Contiguous tensors on the CPU by their names in the file. A tensor that is
        referenced several times is contained once.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}
        # Keeps the objects alive, since an id is unique only during a lifetime.
        self._named_values: list[Any] = []

    def describe_mapping(self, values: dict[str, Any], where: str) -> dict[str, Any]:
        """Describe each value of a dict or of the attributes of an object."""
        return {
            str(name): self.describe(value, f"{where}.{name}")
            for name, value in values.items()
        }

    def describe(self, value: Any, where: str) -> Any:
        """Describe a value; `where` is its path in errors and in names of tensors."""
        if value is None or type(value) in (bool, int, str):
            return value
        if isinstance(value, np.str_):
            return str(value)
        if type(value) is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if type(value) is list:
            return self._describe_items(value, where)
        if type(value) is tuple:
            return {"tuple": self._describe_items(value, where)}
        if isinstance(value, tuple):
            return {
                "named_tuple": [
                    _qualified_name(type(value)),
                    self._describe_items(value, where),
                ]
            }
        if type(value) is set:
            return {"set": self._describe_items(sorted(value), where)}
        if isinstance(value, dict) and all(type(key) is str for key in value):
            return {"dict": self.describe_mapping(value, where)}
        if isinstance(value, Tensor):
            kind = "parameter" if isinstance(value, nn.Parameter) else "tensor"
            return {kind: [self._add_tensor(value, where), value.requires_grad]}
        if isinstance(value, np.ndarray | np.generic):
            return self._describe_array(value, where)
        if isinstance(value, np.random.RandomState):
            return {"random_state": self.describe(value.get_state(legacy=False), where)}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        if isinstance(value, os.PathLike):
            return str(os.fspath(value))
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, partial):
            parts = (value.func, value.args, value.keywords)
            return {"partial": self._describe_items(parts, where)}
        if isinstance(value, AutoencoderNet):
            return {"net": self.describe_mapping(_net_state(value), where)}
        if isinstance(value, type) or hasattr(value, "__qualname__"):
            _check_importable(value, where)
            return {"named": _qualified_name(value)}
        return self._describe_object(value, where)

    def _describe_items(self, values: Iterable[Any], where: str) -> list[Any]:
        return [self.describe(v, f"{where}.{i}") for i, v in enumerate(values)]

    def _describe_array(self, value: np.ndarray | np.generic, where: str) -> Any:
        if value.dtype.kind in "OU":
            items = np.asarray(value, object).tolist()
            return {"strings": self._describe_items(items, where)}
        if value.dtype.kind not in "biuf":
            raise TypeError(f"{where} has dtype {value.dtype}, which cannot be saved.")
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return {kind: self._add_tensor(value, where)}

    def _add_tensor(self, value: Any, where: str) -> str:
        """Add a tensor or an array to the file; return its name there."""
        if id(value) not in self._names:
            tensor = value if isinstance(value, Tensor) else torch.tensor(value)
            self.tensors[where] = tensor.detach().cpu().contiguous().clone()
            self._names[id(value)] = where
            self._named_values.append(value)
        return self._names[id(value)]

    def _describe_object(self, value: Any, where: str) -> Any:
        """Describe an object by its class and its state."""
        if not hasattr(value, "__dict__"):
            raise TypeError(f"{where} is {value!r}, which cannot be saved.")
        state: Any = value.__getstate__() if is_dataclass(type(value)) else vars(value)
        if isinstance(value, METADATA_REQUESTS):
            # The owner is the estimator or, in older versions of scikit-learn, its
            # class name. Only its class name is used, in error messages.
            owner = state["owner"]
            name = owner if isinstance(owner, str) else type(owner).__name__
            state = {**state, "owner": name}
        if isinstance(value, nn.Module):
            hooks = [name for name in vars(nn.Module()) if "hook" in name]
            if any(state.get(name) for name in hooks):
                raise TypeError(f"{where} has hooks, which cannot be saved.")
            state = {k: v for k, v in state.items() if k not in hooks}
        _check_importable(type(value), where)
        path = _qualified_name(type(value))
        return {"object": [path, self.describe_mapping(state, where)]}


def _check_importable(value: Any, where: str) -> None:
    """Raise TypeError for a class or function that cannot be imported by its name.

    These are lambdas and all that is defined in a function.
    """
    resolved: Any = sys.modules.get(value.__module__)
    for name in value.__qualname__.split("."):
        resolved = getattr(resolved, name, None)
    if resolved is not value:
        raise TypeError(
            f"{where} is or contains {value!r}, which cannot be saved: it must be "
            "defined at the top level of a module."
        )


def _net_state(net: AutoencoderNet) -> dict[str, Any]:
    """Return the state of a net that is saved, without the batches of its history."""
    state = net.state
    return {**state, "history": list(map(without_batches, state["history"]))}


class _NotTrustedError(TypeError):
    """A file contains a class or a function that is neither known nor trusted."""


class _Reader:
    """Creates the objects that a `_Writer` has described.

    Parameters
    ----------
    tensors : dict of str to Tensor
        Tensors of the file.
    trusted : iterable of class or function
        Classes and functions that are allowed besides the known classes.
    """

    def __init__(self, tensors: dict[str, Tensor], trusted: Iterable[Any]):
        self._tensors = tensors
        self._trusted = {_qualified_name(value): value for value in trusted}
        self._parameters: dict[str, nn.Parameter] = {}
        self._arrays: dict[str, np.ndarray] = {}
        self._factories: dict[str, Callable[[Any], Any]] = {
            "float": float,
            "tuple": lambda items: tuple(self._make_items(items)),
            "named_tuple": self._make_named_tuple,
            "set": lambda items: set(self._make_items(items)),
            "dict": self.make_mapping,
            "tensor": lambda content: self._tensors[content[0]],
            "parameter": self._make_parameter,
            "array": self._make_array,
            "scalar": lambda name: self._tensors[name].numpy()[()],
            "strings": lambda items: np.array(self._make_items(items), dtype=object),
            "random_state": self._make_random_state,
            "device": torch.device,
            "dtype": self._make_dtype,
            "partial": self._make_partial,
            "net": self._make_net,
            "named": self.resolve,
            "object": self._make_object,
        }

    @own_settings()
    def make_estimator(self, description: dict[str, Any]) -> BaseAutoencoder:
        """Create the estimator, and check that its network fits its features.

        The network is not evaluated: its layers may have sizes that no weights confirm,
        such as a padding, and would allocate any amount of memory.
        """
        kind = self.resolve(description["class"])
        if not (isinstance(kind, type) and issubclass(kind, BaseAutoencoder)):
            raise ValueError(f"{kind!r} is not an autoencoder")
        estimator = kind.__new__(kind)
        estimator._restore(self.make_mapping(description["state"]))
        _check_consistent(estimator)
        return estimator

    def make_mapping(self, described: dict[str, Any]) -> dict[str, Any]:
        """Create the values of a dict or the attributes of an object."""
        return {name: self.make(value) for name, value in described.items()}

    def make(self, described: Any) -> Any:
        """Create a value from its description."""
        if isinstance(described, list):
            return self._make_items(described)
        if not isinstance(described, dict):
            return described
        ((kind, content),) = described.items()
        return self._factories[kind](content)

    def resolve(self, path: str) -> Any:
        """Return a trusted class or function, or a known class."""
        if path in self._trusted:
            return self._trusted[path]
        module, _, name = path.partition(":")
        value = vars(sys.modules[module]).get(name) if module in sys.modules else None
        if _is_known(value, module, name):
            return value
        raise _NotTrustedError(
            f"contains {path!r}, which is not trusted. To trust it, "
            f"pass it to load(..., trusted=[{name}])."
        )

    def _make_items(self, described: list[Any]) -> list[Any]:
        return [self.make(value) for value in described]

    def _make_array(self, name: str) -> np.ndarray:
        if name not in self._arrays:  # shared arrays stay shared
            self._arrays[name] = self._tensors[name].numpy()
        return self._arrays[name]

    def _make_parameter(self, content: list[Any]) -> nn.Parameter:
        name, requires_grad = content
        if name not in self._parameters:  # shared parameters stay shared
            tensor = self._tensors[name]
            self._parameters[name] = nn.Parameter(tensor, requires_grad)
        return self._parameters[name]

    def _make_random_state(self, described: Any) -> np.random.RandomState:
        random_state = np.random.RandomState()
        random_state.set_state(self.make(described))
        return random_state

    def _make_dtype(self, name: str) -> torch.dtype:
        dtype = getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"The file contains an unknown dtype, {name!r}.")
        return dtype

    def _make_partial(self, described: list[Any]) -> partial[Any]:
        function, args, keywords = self._make_items(described)
        return partial(function, *args, **keywords)

    def _make_named_tuple(self, content: list[Any]) -> Any:
        path, items = content
        kind = self.resolve(path)
        if not issubclass(kind, tuple):  # the constructor of another would run
            raise ValueError(f"{path} is not a named tuple")
        return kind(*self._make_items(items))

    def _make_net(self, described: dict[str, Any]) -> AutoencoderNet:
        return AutoencoderNet.restored(**self.make_mapping(described))

    def _make_object(self, content: list[Any]) -> Any:
        path, described = content
        kind = self.resolve(path)
        state = self.make_mapping(described)
        value = kind.__new__(kind)
        if is_dataclass(kind) and hasattr(kind, "__setstate__"):
            value.__setstate__(state)
            return value
        if isinstance(value, nn.Module):
            nn.Module.__init__(value)  # sets the empty dicts of hooks
        if isinstance(value, StoredParametersMixin):
            state = {**default_parameters(kind), **state}
        if isinstance(value, Autoencoder):
            value.__setstate__(state)
        vars(value).update(state)  # also in a frozen dataclass
        return value


def _check_consistent(estimator: BaseAutoencoder) -> None:
    """Raise ValueError if the parts of a loaded estimator do not fit each other."""
    net = estimator._trained.net
    module = net.module_
    if not (isinstance(net, AutoencoderNet) and isinstance(module, Autoencoder)):
        raise ValueError("it has no autoencoder")
    scaler, n_features = module.scaler, estimator.n_features_in_
    shapes = {
        tuple(values.shape) for values in (scaler.mean, scaler.shift, scaler.factor)
    }
    n_columns, categories = n_features, estimator._trained.categories
    if categories is not None:
        n_columns = categories.layout.n_columns
    if shapes != {(n_columns,)} or estimator._trained.n_features != n_features:
        raise ValueError("the network does not fit n_features_in_")
    if module.loss.layout != (None if categories is None else categories.layout):
        raise ValueError("the network does not fit the categories")
    if module.code_factor.shape != (module.n_components,):
        raise ValueError("the network does not fit n_components")
    for name in ("encoder", "bottleneck", "decoder", "output"):
        if not isinstance(getattr(module, name), nn.Module):
            raise ValueError(f"its {name} is no module")


def _is_known(value: Any, module: str, name: str) -> bool:
    """Return whether objects of a class are loaded without `trusted`.

    Parameters
    ----------
    value : object
        Attribute `name` of the module `module`; known only if it is a class that is
        defined there by this name.
    """
    if not isinstance(value, type):
        return False
    if (value.__module__, value.__qualname__) != (module, name):
        return False
    if module.startswith("torch.nn.modules."):
        return issubclass(value, nn.Module)
    if module == METADATA_REQUESTS_MODULE:
        return value in METADATA_REQUESTS
    return name in KNOWN_CLASSES.get(module, ())
