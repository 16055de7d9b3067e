"""Files: atomic writing, and text and tensors in the format of safetensors [1]_.

References
----------
.. [1] https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import os
import secrets
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from skae._processor import own_settings


def blake2(parts: Iterable[Any]) -> str:
    """Return a hash of bytes that nobody can find other bytes for."""
    digest = blake2b()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def crc32(parts: Iterable[Any]) -> str:
    """Return a checksum of bytes, in a fifth of the time of `blake2`."""
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return f"{checksum:08x}"


def tensor_file(
    key: str,
    text: str,
    tensors: dict[str, Tensor],
    checksum: Callable[[Iterable[Any]], str] = blake2,
) -> bytes:
    """Return the content of a file of a text and tensors, see `read_tensor_file`.

    Parameters
    ----------
    key : str
        Key of the file's metadata. Its value is one line with the checksum of the whole
        content and, below it, the text.
    text : str
    tensors : dict of str to Tensor
        Contiguous tensors on the CPU, none of which shares memory with another.
    checksum : callable, default=blake2
        Returns the checksum of an iterable of bytes.
    """
    return serialize(tensors, {key: f"{checksum(_parts(text, tensors))}\n{text}"})


def read_tensor_file(
    path: Path,
    key: str,
    writer: str,
    checksum: Callable[[Iterable[Any]], str] = blake2,
) -> tuple[str, dict[str, Tensor]]:
    """Return the text and the tensors of a file, see `tensor_file`.

    Parameters
    ----------
    path : Path
    key : str
    writer : str
        What writes files with this key, for error messages.
    checksum : callable, default=blake2
        That of `tensor_file`.

    Raises
    ------
    ValueError
        If the file is truncated or altered, or was not written by `writer`.
    OSError
        If it cannot be read.
    """
    with path.open("rb"):  # raises the usual OSError, which names the file
        pass
    try:
        with own_settings(), safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # The tensors of other files are not read.
            names = file.keys() if key in metadata else []
            # Copies, since the tensors are views of the file, which may be overwritten.
            tensors = {name: file.get_tensor(name).clone() for name in names}
    except OSError as error:  # of the mapping into memory, without the file's name
        raise OSError(f"{str(path)!r} cannot be read: {error}.") from error
    # PyTorch raises the last two for shapes that safetensors accepts.
    except (SafetensorError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{str(path)!r} is not a complete file of skae: {error}."
        ) from error
    if key not in metadata:
        raise ValueError(f"{str(path)!r} was not written by {writer}.")
    found, _, text = metadata[key].partition("\n")
    if found != checksum(_parts(text, tensors)):
        raise ValueError(f"{str(path)!r} has been altered since it was saved.")
    return text, tensors


def _parts(text: str, tensors: dict[str, Tensor]) -> Iterator[Any]:
    """Yield the bytes of the text and of the names and values of the tensors."""
    yield text.encode()
    for name in sorted(tensors):
        tensor = tensors[name]
        yield repr((name, tensor.dtype, tuple(tensor.shape))).encode()
        if tensor.numel():  # a view of an empty copy as bytes raises
            yield tensor.reshape(-1).view(torch.uint8).numpy().data


def replace_file(path: Path, content: bytes, *, is_synced: bool = True) -> None:
    """Write a file atomically: after an error, an existing file is unchanged.

    The content is written to a temporary file in the same folder, which then replaces
    the file.

    Parameters
    ----------
    path : Path
        The file to write.
    content : bytes
        Its content.
    is_synced : bool, default=True
        Whether to wait until the content is on the disk, so that a power failure does
        not lose it, either.

    Raises
    ------
    OSError
        If the file cannot be written. The error names `path`.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            if is_synced:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = str(path)  # not the temporary file, unknown to the caller
        with suppress(OSError):  # raise the first error, not one of the clean-up
            temporary.unlink()
        raise
