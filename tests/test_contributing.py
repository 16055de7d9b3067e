"""Facts about CONTRIBUTING.md."""

import doctest
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone

from skae import AutoencoderTransformer, corruptions
from skae.corruptions import Spread

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
CLASS, MODULE, TEST = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def corruption_class(monkeypatch):
    """The class of the walk, as if it were part of skae.corruptions."""
    namespace = dict(vars(corruptions))
    exec(CLASS + MODULE, namespace)
    corruption = namespace["SpanMasking"]
    monkeypatch.setattr(corruptions, "SpanMasking", corruption, raising=False)
    return corruption


def test_the_corruption_of_the_walk_passes_its_test(corruption_class):
    namespace = {"SpanMasking": corruption_class, "Spread": Spread, "torch": torch}
    exec(TEST, namespace)
    X = torch.arange(1.0, 1001.0).reshape(100, 10)
    namespace["test_span_masking_hides_one_run_of_each_row"](X)


def test_the_example_of_the_walk_is_correct(corruption_class):
    finder = doctest.DocTestFinder()
    (example,) = finder.find(corruption_class, "SpanMasking", globs={})[:1]
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_an_estimator_accepts_the_corruption_of_the_walk(corruption_class):
    X = np.random.default_rng(0).normal(size=(30, 4))
    ae = AutoencoderTransformer(2, max_epochs=2, early_stopping=False, random_state=0)
    corrupted = clone(ae).set_params(corruption=corruption_class()).fit(X)
    assert corrupted.transform(X).shape == (30, 2)
    assert corrupted.loss_curve_ != ae.fit(X).loss_curve_


def test_the_files_and_names_of_the_walk_exist():
    root = Path(__file__).parents[1]
    for path in re.findall(r"`((?:skae|tests|docs|benchmarks)/[\w/]+\.\w+)`", TEXT):
        assert (root / path).exists(), path
    assert "\nSPECS = " in (root / "tests/test_corruptions.py").read_text()
