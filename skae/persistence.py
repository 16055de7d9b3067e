"""Save fitted estimators to one file and load them, without pickle.

The file is in the format of safetensors [1]_: the numbers as they lie in memory, and a
description in JSON of the objects that hold them. Loading makes objects of known
classes and sets their attributes; it runs no code from the file.

References
----------
.. [1] https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

import skae
from skae._base import BaseAutoencoder
from skae._files import replace
from skae._net import AutoencoderNet

__all__ = ["load", "save"]

# Number of the format; it rises when files can no longer be read by older versions.
FORMAT = 1

# The entry of the file's metadata that has a line with a digest of all that the file
# holds and, below it, the description.
ENTRY = "skae"

# What objects may be made of without being asked for, by where their classes stand.
KNOWN = ("skae.", "torch.nn.modules.", "sklearn.utils._metadata_requests.")

# Attributes of an estimator that are code, not results.
LEFT_OUT = ("callbacks", "_skl_callbacks")


def save(estimator: BaseAutoencoder, path: str | os.PathLike) -> None:
    """Write a fitted estimator to a file.

    An interrupted save leaves an older file of this name as it was. Callbacks are not
    saved, nor the batches in `net_.history`.

    Parameters
    ----------
    estimator : AutoencoderTransformer or AutoencoderOutlierDetector
        Fitted.
    path : str or path-like
        The file to write; ``".safetensors"`` suits as its ending.

    Raises
    ------
    TypeError
        If the estimator is no autoencoder of skae, or holds an object whose content
        cannot be described.
    NotFittedError
        If it is not fitted.

    See Also
    --------
    load : The way back.

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
    ...     again = skae.load(path)
    >>> bool((again.transform(X) == ae.transform(X)).all())
    True
    """
    if not isinstance(estimator, BaseAutoencoder):
        raise TypeError(
            "estimator must be an AutoencoderTransformer or an "
            f"AutoencoderOutlierDetector, got {estimator!r}. Of a Pipeline, save the "
            "last step."
        )
    check_is_fitted(estimator)
    if estimator.callbacks:
        warnings.warn("callbacks are code and are not saved.", stacklevel=2)
    state = {k: v for k, v in vars(estimator).items() if k not in LEFT_OUT}
    writer = _Writer()
    description = {
        "format": FORMAT,
        "versions": {
            made.__name__: made.__version__ for made in (skae, sklearn, torch)
        },
        "class": _path_of(type(estimator)),
        "state": writer.mapping({**state, "callbacks": None}, type(estimator).__name__),
    }
    text = json.dumps(description, allow_nan=False)
    metadata = {ENTRY: f"{_digest(text, writer.tensors)}\n{text}"}
    replace(Path(path), serialized(writer.tensors, metadata))


def load(
    path: str | os.PathLike, *, trusted: Iterable[type | Callable] = ()
) -> BaseAutoencoder:
    """Read an estimator that `save` wrote.

    It predicts what it predicted before, to the bit on the same machine, and can be
    trained on; of its last training only the losses are known.

    Parameters
    ----------
    path : str or path-like
        The file.
    trusted : iterable of class or function, default=()
        Your own classes and functions that the estimator may hold, such as the
        modules of a `Custom` network: nothing else is imported. Their ``__init__`` is
        not called, their attributes are set.

    Returns
    -------
    estimator : AutoencoderTransformer or AutoencoderOutlierDetector
        Fitted, on the CPU.

    Raises
    ------
    ValueError
        If the file is not one of skae's, or is truncated or altered.
    TypeError
        If it holds an object of a class that is neither known nor trusted.
    OSError
        If it cannot be read.

    Warns
    -----
    UserWarning
        If a later version of skae wrote it, in a format that this one does not know.

    See Also
    --------
    save : Writes the file.
    """
    path = Path(path)
    with path.open("rb"):  # for the usual errors, which name the file
        pass
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{str(path)!r} is not a whole file of skae: {error}."
        ) from error
    if ENTRY not in metadata:
        raise ValueError(f"{str(path)!r} was not written by skae.save.")
    digest, _, text = metadata[ENTRY].partition("\n")
    if digest != _digest(text, tensors):
        raise ValueError(f"{str(path)!r} has been altered since it was saved.")
    with _sense_expected(path):
        description = json.loads(text)
        is_newer = description["format"] > FORMAT
        release = description["versions"]["skae"]
    if is_newer:
        warnings.warn(
            f"{str(path)!r} was written by skae {release}, in a format that this "
            "version does not know; what it gives may be wrong.",
            stacklevel=2,
        )
    with _sense_expected(path):
        return _Reader(tensors, trusted).estimator(description)


@contextmanager
def _sense_expected(path: Path) -> Iterator[None]:
    """Tell whatever a description without sense leads to as one error."""
    try:
        yield
    except _NotTrustedError:
        raise
    except Exception as error:
        raise ValueError(
            f"{str(path)!r} describes no estimator that this version of skae can make: "
            f"{error!r}."
        ) from error


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    """Tells this description and these numbers from all others."""
    digest = blake2b(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _path_of(thing: Any) -> str:
    """Where a class or a function is found."""
    return f"{thing.__module__}:{thing.__qualname__}"


class _Writer:
    """Describes objects; their numbers are gathered beside.

    In the description a value that JSON has stands for itself; any other is a dict of
    one entry, whose key says how to read it.

    Attributes
    ----------
    tensors : dict of str to Tensor
        Contiguous, on the CPU; a tensor in several places is in it once.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}
        self._held: list[Any] = []  # an id is unique only while its object lives

    def mapping(self, values: dict[str, Any], where: str) -> dict[str, Any]:
        return {
            str(name): self.describe(value, f"{where}.{name}")
            for name, value in values.items()
        }

    def describe(self, value: Any, where: str) -> Any:
        """The description of a value; `where` names it in errors and in the file."""
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if type(value) is list:
            return self._items(value, where)
        if type(value) is tuple:
            return {"tuple": self._items(value, where)}
        if type(value) is set:
            return {"set": self._items(sorted(value), where)}
        if isinstance(value, dict) and all(type(key) is str for key in value):
            return {"dict": self.mapping(value, where)}
        if isinstance(value, Tensor):
            kind = "parameter" if isinstance(value, nn.Parameter) else "tensor"
            return {kind: [self._name(value, where), value.requires_grad]}
        if isinstance(value, np.ndarray | np.generic):
            return self._describe_array(value, where)
        if isinstance(value, np.random.RandomState):
            return {"random_state": self.describe(value.get_state(legacy=False), where)}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, partial):
            pieces = (value.func, value.args, value.keywords)
            return {"partial": self._items(pieces, where)}
        if isinstance(value, AutoencoderNet):
            return {"net": self.mapping(_net_state(value), where)}
        if isinstance(value, type) or hasattr(value, "__qualname__"):
            _check_findable(value, where)
            return {"named": _path_of(value)}
        return self._describe_object(value, where)

    def _items(self, values: Iterable[Any], where: str) -> list[Any]:
        return [self.describe(v, f"{where}.{i}") for i, v in enumerate(values)]

    def _describe_array(self, value: np.ndarray | np.generic, where: str) -> Any:
        if value.dtype.kind in "OU":
            return {"strings": self._items(np.asarray(value, object).tolist(), where)}
        if value.dtype.kind not in "biuf":
            raise TypeError(f"{where} has dtype {value.dtype}, which cannot be saved.")
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return {kind: self._name(value, where)}

    def _name(self, value: Any, where: str) -> str:
        """The name of a tensor's or an array's numbers in the file."""
        if id(value) not in self._names:
            numbers = value if isinstance(value, Tensor) else torch.tensor(value)
            self.tensors[where] = numbers.detach().cpu().contiguous().clone()
            self._names[id(value)] = where
            self._held.append(value)
        return self._names[id(value)]

    def _describe_object(self, value: Any, where: str) -> Any:
        if not hasattr(value, "__dict__"):
            raise TypeError(f"{where} is {value!r}, which cannot be saved.")
        state = vars(value)
        if isinstance(value, nn.Module):
            empty = vars(nn.Module())
            hooks = [name for name in empty if "hook" in name]
            hooked = [name for name in hooks if state.get(name)]
            if hooked:
                raise TypeError(f"{where} has hooks, which cannot be saved.")
            state = {k: v for k, v in state.items() if k not in hooks}
        _check_findable(type(value), where)
        return {"object": [_path_of(type(value)), self.mapping(state, where)]}


def _check_findable(thing: Any, where: str) -> None:
    """Raise for what no name leads to, such as a lambda or a local class."""
    found: Any = sys.modules.get(thing.__module__)
    for name in thing.__qualname__.split("."):
        found = getattr(found, name, None)
    if found is not thing:
        raise TypeError(
            f"{where} is or holds {thing!r}, which cannot be saved: it must be defined "
            "at the top of a module."
        )


def _net_state(net: AutoencoderNet) -> dict[str, Any]:
    """What is kept of a net: all but the batches of its history."""
    essentials = net.essentials
    history = [
        {name: value for name, value in epoch.items() if name != "batches"}
        for epoch in essentials["history"]
    ]
    return {**essentials, "history": history}


class _NotTrustedError(TypeError):
    """A file names a class or a function that is neither known nor trusted."""


class _Reader:
    """Makes the objects that a `_Writer` has described.

    Parameters
    ----------
    tensors : dict of str to Tensor
    trusted : iterable of class or function
    """

    def __init__(self, tensors: dict[str, Tensor], trusted: Iterable[Any]):
        self._tensors = tensors
        self._trusted = {_path_of(thing): thing for thing in trusted}
        self._parameters: dict[str, nn.Parameter] = {}
        self._makers: dict[str, Callable[[Any], Any]] = {
            "float": float,
            "tuple": lambda values: tuple(self._items(values)),
            "set": lambda values: set(self._items(values)),
            "dict": self.mapping,
            "tensor": lambda described: self._tensors[described[0]],
            "parameter": self._parameter,
            "array": lambda name: self._tensors[name].numpy(),
            "scalar": lambda name: self._tensors[name].numpy()[()],
            "strings": lambda values: np.array(self._items(values), dtype=object),
            "random_state": self._random_state,
            "device": torch.device,
            "dtype": self._dtype,
            "partial": self._partial,
            "net": self._net,
            "named": self.named,
            "object": self._object,
        }

    def estimator(self, description: dict[str, Any]) -> BaseAutoencoder:
        """The estimator, after one row has gone through its network."""
        kind = self.named(description["class"])
        if not (isinstance(kind, type) and issubclass(kind, BaseAutoencoder)):
            raise ValueError(f"{kind!r} is no autoencoder")
        estimator = kind.__new__(kind)
        estimator.__dict__.update(self.mapping(description["state"]))
        row = np.zeros((1, estimator.n_features_in_))
        if estimator._evaluate("forward", row).shape != row.shape:
            raise ValueError("the network does not suit n_features_in_")
        return estimator

    def mapping(self, described: dict[str, Any]) -> dict[str, Any]:
        return {name: self.make(value) for name, value in described.items()}

    def make(self, described: Any) -> Any:
        if isinstance(described, list):
            return self._items(described)
        if not isinstance(described, dict):
            return described
        ((kind, content),) = described.items()
        return self._makers[kind](content)

    def named(self, path: str) -> Any:
        """A class or function that is trusted, or a known class."""
        if path in self._trusted:
            return self._trusted[path]
        module, _, name = path.partition(":")
        if f"{module}.".startswith(KNOWN):
            found = getattr(importlib.import_module(module), name, None)
            if isinstance(found, type):
                return found
        raise _NotTrustedError(
            f"The file holds {path!r}, which is not trusted. If it is your own, pass "
            f"it by load(..., trusted=[{name}])."
        )

    def _items(self, described: list[Any]) -> list[Any]:
        return [self.make(value) for value in described]

    def _parameter(self, described: list[Any]) -> nn.Parameter:
        name, requires_grad = described
        if name not in self._parameters:
            tensor = self._tensors[name]
            self._parameters[name] = nn.Parameter(tensor, requires_grad)
        return self._parameters[name]

    def _random_state(self, described: Any) -> np.random.RandomState:
        random_state = np.random.RandomState()
        random_state.set_state(self.make(described))
        return random_state

    def _dtype(self, name: str) -> torch.dtype:
        found = getattr(torch, name, None)
        if not isinstance(found, torch.dtype):
            raise ValueError(f"The file holds an unknown dtype, {name!r}.")
        return found

    def _partial(self, described: list[Any]) -> partial:
        function, args, keywords = self._items(described)
        return partial(function, *args, **keywords)

    def _net(self, described: dict[str, Any]) -> AutoencoderNet:
        return AutoencoderNet.restored(**self.mapping(described))

    def _object(self, described: list[Any]) -> Any:
        path, state = described
        kind = self.named(path)
        made = kind.__new__(kind)
        if isinstance(made, nn.Module):
            nn.Module.__init__(made)  # no hooks
        vars(made).update(self.mapping(state))
        return made
