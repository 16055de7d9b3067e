"""The file from which a fit goes on that was killed.

It has the format of the files of :func:`skae.save`: tensors, and a description in JSON.
Reading it runs no code and creates no objects of classes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from skae._files import crc32, read_tensor_file, replace_file, tensor_file
from skae._fingerprint import fingerprint
from skae._memory import is_out_of_memory

# Version of the file format. Files of other versions are not read.
FORMAT = 1

# Key of the file's metadata, whose value is the description.
METADATA_KEY = "skae-checkpoint"

# The state of a training: nested dictionaries with keys of type str, and lists, of
# tensors, arrays, and values of the types of JSON.
State = dict[str, Any]


# Errors that a file raises which holds another state; PyTorch raises RuntimeError.
_INVALID = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Checkpoint(NamedTuple):
    """File for the state of one fit, in a folder with those of other fits.

    Attributes
    ----------
    folder : str
        It exists. An absolute path.
    identity : str
        Hash of all that determines the result of the fit. The file's name contains it,
        and so does the file.
    """

    folder: str
    identity: str

    @property
    def path(self) -> Path:
        """The file; it does not exist before the end of the first epoch."""
        return Path(self.folder) / f"fit-{self.identity}.safetensors"

    def of_part(self, *numbers: int) -> Self:
        """Return the file of a part of this fit, or of this fit with certain seeds."""
        return self._replace(identity=fingerprint(self.identity, numbers))

    def write(self, state: State) -> None:
        """Replace the file, which is unchanged after an error.

        Raises
        ------
        OSError
            If it cannot be written.
        TypeError
            If the state has a value of another type.
        """
        writer = _Writer()
        description = {
            "format": FORMAT,
            "identity": self.identity,
            "state": writer.describe(state),
        }
        try:
            text = json.dumps(description, allow_nan=False)
        except TypeError as error:
            raise TypeError(
                f"checkpoint={self.folder!r} cannot store the state of the network: "
                f"{error}. What get_extra_state of a module returns must consist of "
                "tensors, arrays, numbers, texts, lists, and dictionaries with texts "
                "as keys."
            ) from error
        content = tensor_file(METADATA_KEY, text, writer.joined(), crc32)
        with explained_errors(self.folder):
            # Waiting for the disk would take longer than an epoch of a small table.
            replace_file(self.path, content, is_synced=False)

    def read(self) -> State | None:
        """Return the state that was written last, or None if there is none.

        Raises
        ------
        ValueError
            If the file is truncated or altered, or belongs to another fit.
        OSError
            If it cannot be read.
        """
        path = self.path
        if not path.exists():
            return None
        with self.refused(), explained_errors(self.folder):
            text, tensors = read_tensor_file(path, METADATA_KEY, "a fit of skae", crc32)
            description = json.loads(text)
            if description["format"] != FORMAT:
                raise ValueError(f"{str(path)!r} has an unknown format.")
            if description["identity"] != self.identity:
                raise ValueError(
                    f"{str(path)!r} belongs to a fit of other rows or parameters."
                )
            return _restored(description["state"], tensors)

    @contextmanager
    def refused(self) -> Iterator[None]:
        """Context in which the file is used, whose errors say what to do with it."""
        try:
            yield
        except _INVALID as error:
            if is_out_of_memory(error):
                raise
            raise self.refusal(str(error)) from error

    def refusal(self, reason: str) -> ValueError:
        """Return the error for a file from which the fit cannot go on."""
        return ValueError(
            f"checkpoint={self.folder!r}: {reason} The fit cannot go on from the file "
            f"{self.path.name!r}, which has not been changed. Delete it to start the "
            "fit anew, or choose another folder."
        )


@contextmanager
def explained_errors(folder: str) -> Iterator[None]:
    """Context whose errors of the file system say what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        # The class follows from the number, such as PermissionError.
        raise OSError(
            error.errno,
            f"{reason}. The state of the training cannot be stored in or read from "
            f"the folder checkpoint={folder!r}, whose files are as they were. Choose "
            "a folder that is writable and has enough space, or checkpoint=None",
            error.filename,
        ) from error


def layout(values: dict[str, Any]) -> dict[str, Any]:
    """Return the shape and the type of each tensor, None for what is no tensor."""
    return {
        name: (tuple(t.shape), t.dtype) if isinstance(t, Tensor) else None
        for name, t in values.items()
    }


class _Writer:
    """Describes a state, and collects its tensors.

    A tensor is described by its kind, its type, its shape, and the number of entries of
    this type before it.
    """

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = {}
        self._sizes: dict[str, int] = {}

    def describe(self, value: Any) -> Any:
        """Describe a value."""
        if isinstance(value, dict):
            return {name: self.describe(entry) for name, entry in value.items()}
        if isinstance(value, list):
            return [self.describe(entry) for entry in value]
        if isinstance(value, Tensor):
            return {"tensor": self._add(value.detach().cpu())}
        if isinstance(value, np.ndarray):
            return {"array": self._add(torch.from_numpy(value))}
        return value

    def joined(self) -> dict[str, Tensor]:
        """Return one tensor of each type, since many small ones take more time."""
        return {name: torch.cat(parts) for name, parts in self._parts.items()}

    def _add(self, tensor: Tensor) -> list[Any]:
        name = str(tensor.dtype).removeprefix("torch.")
        start = self._sizes.get(name, 0)
        self._parts.setdefault(name, []).append(tensor.reshape(-1))
        self._sizes[name] = start + tensor.numel()
        return [name, list(tensor.shape), start]


def _restored(described: Any, tensors: dict[str, Tensor]) -> Any:
    """Return the value of a description."""
    if isinstance(described, list):
        return [_restored(entry, tensors) for entry in described]
    if not isinstance(described, dict):
        return described
    if described.keys() not in ({"array"}, {"tensor"}):
        return {name: _restored(entry, tensors) for name, entry in described.items()}
    ((kind, (name, shape, start)),) = described.items()
    tensor = tensors[name][start : start + math.prod(shape)].reshape(shape)
    return tensor.numpy() if kind == "array" else tensor


def make_folder(folder: str | os.PathLike[str]) -> str:
    """Create a folder for the files of fits, if it does not exist.

    Returns
    -------
    folder : str
        An absolute path, since workers may have another working directory.

    Raises
    ------
    OSError
        If it cannot be created, or no files can be written to it.
    ValueError
        If it is no path of text.
    """
    name = os.fspath(folder)
    if not isinstance(name, str) or not name or "\0" in name or not _is_encodable(name):
        raise ValueError(
            f"checkpoint={folder!r} is no path to a folder: it must be a text that is "
            "not empty, without null bytes, in the encoding of the file system; '.' is "
            "the current folder."
        )
    path = Path(name)
    with explained_errors(str(path)):
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{os.getpid()}-{os.urandom(4).hex()}.part"
        probe.touch(exist_ok=False)
        probe.unlink()
    return os.path.abspath(path)


def _is_encodable(name: str) -> bool:
    """Whether the file system may have a file of this name."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True
