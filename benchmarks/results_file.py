"""CSV files in which long benchmarks store their results."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path


def append(path: Path | None, fields: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Append rows to a file, with a header if it is new; do nothing if it is None."""
    if path is None:
        return
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(fields)
        writer.writerows(rows)


def read(path: Path, fields: Sequence[str]) -> Iterator[list[str]]:
    """Yield the rows of a file; exit if its header is not `fields`."""
    with path.open(newline="") as file:
        lines = csv.reader(file)
        header = next(lines, list(fields))
        if header != list(fields):
            sys.exit(f"{path} has other columns: its first line is {header}.")
        yield from lines
