"""Facts about fingerprints: what tells two values apart, in any process."""

import os
import re
import subprocess
import sys
import threading
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn

from skae._fingerprint import fingerprint
from skae.bottlenecks import Gaussian
from skae.networks import MLP


def adder(number):
    return lambda x: x + number


def doubled(x, times=2):
    return times * x


def scaled(number):
    """Return a class whose method reads a variable of this function."""

    class Scaled(nn.Module):
        def forward(self, X):
            return number * X

    return Scaled


def with_variable(value):
    return type("WithVariable", (), {"value": value})


def early():
    """Return a function that reads a variable without a value."""

    def function():
        return later

    result = function
    if result is None:
        later = 0
    return result


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


def cyclic(value):
    entries = [value]
    entries.append(entries)
    return entries


def layer(bias=0.0, is_trained=True):
    linear = nn.Linear(2, 2)
    nn.init.constant_(linear.weight, 1.0)
    nn.init.constant_(linear.bias, bias)
    return linear.requires_grad_(is_trained)


# Functions that create a value: equal calls create equal values.
VALUES = {
    "none": lambda: None,
    "true": lambda: True,
    "integer": lambda: 1,
    "number": lambda: 1.5,
    "text": lambda: "1",
    "list": lambda: [1, 2],
    "reversed list": lambda: [2, 1],
    "nested list": lambda: [[1], 2],
    "divided text": lambda: ["ab", "c"],
    "otherwise divided text": lambda: ["a", "bc"],
    "set": lambda: set("abcdefgh"),
    "smaller set": lambda: set("abcdefg"),
    "dict": lambda: {"a": 1, "b": 2},
    "exchanged dict": lambda: {"a": 2, "b": 1},
    "array": lambda: np.arange(3),
    "array of another type": lambda: np.arange(3, dtype=np.int32),
    "array of another shape": lambda: np.arange(3)[:, None],
    "names": lambda: np.array(["a", "b"], dtype=object),
    "sparse": lambda: sparse.csr_matrix(np.eye(3)),
    "other sparse": lambda: sparse.csr_matrix(np.diag([1, 1, 2.0])),
    "tensor": lambda: torch.arange(3.0),
    "tensor in bfloat16": lambda: torch.arange(3.0).bfloat16(),
    "empty tensor": lambda: torch.empty(0, 2),
    "module": layer,
    "other weights": lambda: layer(1.0),
    "frozen module": lambda: layer(is_trained=False),
    "spec": lambda: MLP((4,)),
    "other spec": lambda: MLP((5,)),
    "spec of another class": Gaussian,
    "class": lambda: nn.Tanh,
    "other class": lambda: nn.ReLU,
    "object": nn.Tanh,
    "slots": lambda: Slotted(1),
    "other slots": lambda: Slotted(2),
    "function": lambda: doubled,
    "closure": lambda: adder(1),
    "closure of another value": lambda: adder(2),
    "partial": lambda: partial(doubled, times=3),
    "other partial": lambda: partial(doubled, times=4),
    "method": lambda: Slotted(1).__init__,
    "builtin": lambda: len,
    "method of an object of Python": lambda: [1].append,
    "method of another object": lambda: [2].append,
    "method of a class": lambda: scaled(1).forward,
    "class that depends on a variable": lambda: scaled(1),
    "class that depends on another value": lambda: scaled(2),
    "object of a class": lambda: scaled(1)(),
    "object of another class": lambda: scaled(2)(),
    "variable of a class": lambda: with_variable(1),
    "other variable of a class": lambda: with_variable(2),
    "without content": lambda: with_variable(threading.Lock()),
    "method for a class": lambda: with_variable(classmethod(doubled)),
    "method without a class": lambda: with_variable(staticmethod(doubled)),
    "property": lambda: with_variable(property(doubled)),
    "cached property": lambda: with_variable(cached_property(doubled)),
    "function of objects": lambda: lambda x: x[..., 0],
    "function of other objects": lambda: lambda x: x[..., 1],
    "not implemented": lambda: NotImplemented,
    "memory format": lambda: torch.channels_last,
    "variable without a value": early,
    "package": lambda: np,
    "fields": lambda: np.zeros(2, dtype=[("a", int)]),
    "other fields": lambda: np.zeros(2, dtype=[("b", int)]),
    "objects in fields": lambda: np.array([(None,)], dtype=[("a", object)]),
    "masked array": lambda: np.ma.masked_array([1.0, 2.0], [True, False]),
    "other mask": lambda: np.ma.masked_array([1.0, 2.0], [False, True]),
    "sparse tensor": lambda: torch.eye(2).to_sparse(),
    "conjugate tensor": lambda: torch.tensor([1j]).conj(),
    "complex tensor": lambda: torch.tensor([1j]),
    "pattern": lambda: re.compile("a"),
    "other pattern": lambda: re.compile("b"),
    "random state": lambda: np.random.RandomState(0),
    "other random state": lambda: np.random.RandomState(1),
    "generator": lambda: torch.Generator().manual_seed(0),
    "cycle": lambda: cyclic(1),
    "other cycle": lambda: cyclic(2),
    "device": lambda: torch.device("cpu"),
    "type": lambda: torch.float64,
    "path": lambda: Path("folder"),
}


def fingerprints():
    return {name: fingerprint(make()) for name, make in VALUES.items()}


def test_equal_values_have_equal_fingerprints():
    assert fingerprints() == fingerprints()


def test_different_values_have_different_fingerprints():
    assert len(set(fingerprints().values())) == len(VALUES)


def test_values_of_other_types_may_be_equal():
    assert fingerprint(np.float64(1.5)) == fingerprint(1.5)
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint(np.eye(3)) == fingerprint(np.asfortranarray(np.eye(3)))


def test_default_of_a_function_counts():
    before = fingerprint(doubled)
    doubled.__defaults__ = (5,)
    try:
        assert fingerprint(doubled) != before
    finally:
        doubled.__defaults__ = (2,)


WIDTH = 4


def wide(width=None):
    return WIDTH if width is None else width


def calls_wide():
    return [(lambda: wide())() for _ in range(2)]


class CallsWide:
    @property
    def width(self):
        return calls_wide()


@pytest.mark.parametrize(
    "value", [wide, calls_wide, CallsWide, CallsWide(), partial(wide), [wide]]
)
def test_global_variables_count(value, monkeypatch):
    before = fingerprint(value)
    monkeypatch.setitem(globals(), "WIDTH", 5)
    assert fingerprint(value) != before


@pytest.mark.parametrize("value", [calls_wide, CallsWide, CallsWide()])
def test_code_of_called_functions_counts(value, monkeypatch):
    before = fingerprint(value)
    monkeypatch.setattr(wide, "__code__", doubled.__code__)
    assert fingerprint(value) != before


def test_global_variable_without_content_counts_by_its_class(monkeypatch):
    before = fingerprint(wide)
    monkeypatch.setitem(globals(), "WIDTH", threading.Lock())
    locked = fingerprint(wide)
    assert locked != before
    monkeypatch.setitem(globals(), "WIDTH", threading.Lock())
    assert fingerprint(wide) == locked


@pytest.mark.parametrize("value", [nn.Linear, nn.init.zeros_, MLP])
def test_code_of_installed_packages_counts_by_its_name(value, monkeypatch):
    before = fingerprint(value)
    monkeypatch.setattr(value, "added", 1, raising=False)
    assert fingerprint(value) == before


WITHOUT_CONTENT = {
    "lock": threading.Lock,
    "parametrized": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
    "without memory": lambda: torch.empty(2, device="meta"),
    "without a shape": lambda: nn.LazyLinear(2).weight,
}


@pytest.mark.parametrize("name", WITHOUT_CONTENT)
def test_object_without_content_is_refused(name):
    with pytest.raises(TypeError, match="has no content that could be compared"):
        fingerprint([WITHOUT_CONTENT[name]()])


@pytest.mark.slow
def test_other_processes_find_the_same():
    code = "import test_fingerprint as t; print(sorted(t.fingerprints().items()))"
    found = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env={
                **os.environ,
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
