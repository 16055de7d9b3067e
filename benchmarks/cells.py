"""Files of figures that long benchmarks keep: CSV whose header says what they hold."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path


def append(path: Path | None, fields: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write rows at the end of a file, below a header if it is new; None keeps none."""
    if path is None:
        return
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(fields)
        writer.writerows(rows)


def read(path: Path, fields: Sequence[str]) -> Iterator[list[str]]:
    """The rows of a file; with another header the program ends."""
    with path.open(newline="") as file:
        lines = csv.reader(file)
        header = next(lines, list(fields))
        if header != list(fields):
            sys.exit(f"{path} holds other figures: its first line is {header}.")
        yield from lines
