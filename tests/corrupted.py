"""Corrupted files: damaged by accident, or forged by someone who knows the format.

The files have the format of safetensors. One entry of their metadata is a line with a
checksum of the content and, below it, a description in JSON.
"""

import json
import re
import struct
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
from safetensors.torch import load

# Arguments of all calls of what a file must never call.
CALLS: list[tuple] = []


def canary(*args, **kwargs):
    """A function that a file may name, but that loading must not call."""
    CALLS.append(args)


class Canary:
    """A class that a file may name, but of which loading must create no object."""

    def __new__(cls, *args, **kwargs):
        canary(cls, *args)
        return super().__new__(cls)

    def __setstate__(self, state):
        canary(state)


HUGE = [-1, 0, 1, 2**20, 2**31 - 1, 2**31, 2**32, 2**40, 2**53, 2**63 - 1, 2**63, 2**64]
PATHS = ["../../etc/passwd", "/etc/passwd", "C:\\x", "", ".", "~", "a\0b", "x" * 9999]
DTYPES = ["F64", "F32", "F16", "BF16", "F8_E4M3", "F6_E2M3", "F4", "I64", "U16", "C64"]
VALUES = [None, True, "", "x", 0, -1, 1.5, [], {}, [[]], {"tensor": ["x", 0]}, *HUGE]
NAMES = [
    "os:system",
    "os:popen",
    "posix:system",
    "builtins:eval",
    "builtins:exec",
    "builtins:__import__",
    "builtins:object",
    "subprocess:Popen",
    "pickle:loads",
    "torch:load",
    "torch.hub:load",
    "torch.serialization:load",
    "torch.nn.modules.linear:Linear.__init__",
    "torch.nn.modules.module:Module",
    "skae.persistence:load",
    "skae.persistence:os.system",
    f"{__name__}:canary",
    f"{__name__}:Canary",
    "__main__:__builtins__",
    ":eval",
    "os",
    "",
]


def with_header(header: dict) -> bytes:
    """Return the begin of a file, before the data."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def header_of(content: bytes) -> tuple[dict, bytes]:
    """Return the header of a file, and the data behind it."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def description_of(content: bytes, key: str) -> str:
    """Return the description in a file, without its checksum."""
    header, _ = header_of(content)
    return header["__metadata__"][key].partition("\n")[2]


# Accidents


def damaged(content: bytes, seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield any number of damaged versions of a file, and what was done to it.

    Parameters
    ----------
    content : bytes
        The file, in the format of safetensors.
    seed : int
    """
    rng = np.random.default_rng(seed)
    ways = [
        _flip,
        _truncate,
        _extend,
        _overwrite,
        _repeat,
        _resize_header,
        _edit_header,
    ]
    while True:
        way = ways[rng.integers(len(ways))]
        result = way(content, rng)
        if result != content:
            yield way.__name__, result


def _flip(content, rng):
    """Flip a few bits."""
    values = bytearray(content)
    for where in rng.integers(len(values), size=rng.integers(1, 5)):
        values[where] ^= 1 << rng.integers(8)
    return bytes(values)


def _truncate(content, rng):
    return content[: rng.integers(len(content))]


def _extend(content, rng):
    return content + rng.bytes(rng.integers(1, 100))


def _overwrite(content, rng):
    """Replace a part by zeros or by random bytes."""
    start, length = rng.integers(len(content)), rng.integers(1, 1000)
    part = content[start : start + length]
    noise = bytes(len(part)) if rng.random() < 0.5 else rng.bytes(len(part))
    return content[:start] + noise + content[start + length :]


def _repeat(content, rng):
    """Replace a part by another part of the file."""
    start, other, length = rng.integers(len(content), size=3)
    part = content[other : other + length]
    return content[:start] + part + content[start + len(part) :]


def _resize_header(content, rng):
    """Declare another length of the header."""
    (length,) = struct.unpack("<Q", content[:8])
    lengths = [0, 1, length - 1, length + 1, len(content), 10**8, 2**63, 2**64 - 1]
    return struct.pack("<Q", lengths[rng.integers(len(lengths))]) + content[8:]


def _edit_header(content, rng):
    """Change the declared shape, type, place or name of a tensor."""
    header, data = header_of(content)
    names = [name for name in header if name != "__metadata__"]
    name = names[rng.integers(len(names))]
    match rng.integers(7):
        case 0:
            n_axes = rng.integers(1, 4)
            header[name]["shape"] = [max(0, _choice(HUGE, rng)) for _ in range(n_axes)]
        case 1:
            # Nothing is too large for a tensor without entries.
            header[name]["shape"] = [0, max(0, _choice(HUGE, rng))]
            start = header[name]["data_offsets"][0]
            header[name]["data_offsets"] = [start, start]
        case 2:
            header[name]["dtype"] = _choice(DTYPES, rng)
        case 3:
            header[name]["data_offsets"] = [_choice(HUGE, rng), _choice(HUGE, rng)]
        case 4:
            header[_choice(PATHS, rng)] = header.pop(name)
        case 5:
            header[name] = _choice(VALUES, rng)
        case 6:
            header["__metadata__"] = _choice(VALUES, rng)
    return with_header(header) + data


# Forgeries


def forged(
    content: bytes, seed: int, key: str, write: Callable[[str, dict], bytes]
) -> Iterator[tuple[str, bytes]]:
    """Yield any number of files with another description and a valid checksum.

    Parameters
    ----------
    content : bytes
        The file, in the format of safetensors.
    seed : int
    key : str
        Key of the metadata whose value is the checksum and the description.
    write : callable
        Returns the content of a file for a description and a dict of tensors.

    Yields
    ------
    how : str
        What was done to the file. The string begins with ``"name "``, followed by a
        name, if this class or function replaces another one or a value.
    content : bytes
    """
    rng = np.random.default_rng(seed)
    description = description_of(content, key)
    tensors = load(content)
    while True:
        how, text = _forge(description, rng)
        yield how, write(text, tensors)


def _forge(description, rng):
    """Return what was done, and another description."""
    value = json.loads(description)
    places = list(_places(value))
    match rng.integers(5):
        case 0:
            name = _choice(NAMES, rng) if rng.random() < 0.5 else installed_name(rng)
            classes = [(at, i) for at, i in places if _is_class(at[i])]
            if classes:
                at, i = classes[rng.integers(len(classes))]
                at[i] = name
                return f"name {name}", json.dumps(value)
            at, i = places[rng.integers(len(places))]
            at[i] = {"named": name}
            return f"name {name}", json.dumps(value)
        case 1:
            name = _choice(NAMES, rng) if rng.random() < 0.5 else installed_name(rng)
            kinds = {
                "named": name,
                "object": [name, {"x": 1}],
                "named_tuple": [name, ["true"]],
                "partial": [{"named": name}, {"tuple": ["true"]}, {"dict": {}}],
            }
            kind = _choice(list(kinds), rng)
            at, i = places[rng.integers(len(places))]
            at[i] = {kind: kinds[kind]}
            return f"name {name}", json.dumps(value)
        case 2:
            at, i = places[rng.integers(len(places))]
            at[i] = _choice(VALUES, rng)
            return "value", json.dumps(value)
        case 3:
            at, i = places[rng.integers(len(places))]
            at[i] = "<nested>"
            opened, closed = _choice([("[", "]"), ('{"tuple": [', "]}")], rng)
            depth = int(rng.choice([100, 3000, 100_000]))
            nested = opened * depth + closed * depth
            return "nested", json.dumps(value).replace('"<nested>"', nested)
        case _:
            # Every number at once, such as sizes that agree with each other.
            number = str(_choice(HUGE, rng))
            return "numbers", re.sub(r"(?<=[ \[])\d+(?=[,\]}])", number, description)


def _places(value):
    """Yield each container in nested values with each of its keys or indices."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in list(pairs):
        yield value, key
        if isinstance(entry, dict | list):
            yield from _places(entry)


def _is_class(value):
    return isinstance(value, str) and re.fullmatch(r"[\w.]+:\w+", value) is not None


def installed_name(rng) -> str:
    """Return a random class or function of a random installed package.

    The package is not imported.
    """
    while True:
        names = _names_in(_choice(_source_files(_choice(_distributions(), rng)), rng))
        if names:
            return _choice(names, rng)


@cache
def _distributions():
    found = {
        distribution.name: distribution for distribution in metadata.distributions()
    }
    return [name for name in sorted(found) if _source_files(name)]


@cache
def _source_files(distribution):
    """Return the modules of a distribution, at most a thousand."""
    files = metadata.files(distribution) or []
    return [str(f) for f in files if f.suffix == ".py" and ".." not in f.parts][:1000]


@cache
def _names_in(file):
    """Return the classes and functions that a module defines, by its source."""
    for folder in map(Path, sys.path):
        if (folder / file).is_file():
            text = (folder / file).read_text(encoding="utf-8", errors="replace")
            module = (
                file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            )
            found = re.findall(r"^(?:class|def) (\w+)", text, re.MULTILINE)
            return [f"{module}:{name}" for name in found]
    return []


def _choice(values, rng):
    return values[rng.integers(len(values))]
