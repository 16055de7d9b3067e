"""Facts about CONTRIBUTING.md."""

import doctest
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from skae import AutoencoderTransformer, losses

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
LOSS, TEST = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def loss_class(monkeypatch):
    """The class of the walk-through, as if it were part of skae.losses."""
    namespace = dict(vars(losses))
    exec(LOSS, namespace)
    monkeypatch.setattr(losses, "Cauchy", namespace["Cauchy"], raising=False)
    return losses.Cauchy


def test_the_loss_of_the_walk_through_passes_its_test(loss_class):
    namespace = {"Cauchy": loss_class, "np": np}
    exec(TEST, namespace)
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    namespace["test_cauchy_follows_its_equation"](pair)


def test_the_example_of_the_walk_through_is_correct(loss_class):
    (example,) = doctest.DocTestFinder().find(loss_class, "Cauchy", globs={})[:1]
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_an_estimator_accepts_the_loss_of_the_walk_through(loss_class):
    X = np.random.default_rng(0).normal(size=(30, 4))
    ae = AutoencoderTransformer(2, loss=loss_class(), max_epochs=2, random_state=0)
    assert ae.fit_transform(X).shape == (30, 2)
    ae.set_params(loss__scale=-1.0)
    with pytest.raises(ValueError, match="'scale' parameter of Cauchy"):
        ae.fit(X)
