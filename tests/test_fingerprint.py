"""Facts about fingerprints: what tells two values apart, in any process."""

import os
import re
import subprocess
import sys
import threading
from functools import partial
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


def test_object_without_content_is_refused():
    with pytest.raises(TypeError, match="has no content that could be compared"):
        fingerprint([threading.Lock()])


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
