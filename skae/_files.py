"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """Write beside the file, and take its place only when all is written."""
    other = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with other.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        other.replace(path)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = str(path)  # the name that the caller knows
        with suppress(OSError):  # what failed first is what counts
            other.unlink()
        raise
