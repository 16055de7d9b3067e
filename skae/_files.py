"""Atomic writing of files."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Write a file atomically: after an error, an existing file is unchanged.

    The content is written to a temporary file in the same folder, which then replaces
    the file.

    Parameters
    ----------
    path : Path
        The file to write.
    content : bytes
        Its content.

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
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = str(path)  # not the temporary file, unknown to the caller
        with suppress(OSError):  # raise the first error, not one of the clean-up
            temporary.unlink()
        raise
