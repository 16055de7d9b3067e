"""The adapter of docs/coming_from/pyod.rst makes a detector one of PyOD's."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pages import examples_of, failures_of
from sklearn.base import clone

from skae import AutoencoderOutlierDetector

PAGE = Path(__file__).parents[1] / "docs" / "coming_from" / "pyod.rst"
(ADAPTER,) = [
    example.source
    for example in examples_of(PAGE).examples
    if example.source.startswith("class SkaeDetector")
]


class StandIn:
    """What the adapter needs of PyOD's BaseDetector, version 3.6.7."""

    def __init__(self, contamination=0.1):
        self.contamination = contamination

    def _set_n_classes(self, y):
        self._classes = 2

    def _process_decision_scores(self):
        self.threshold_ = np.quantile(self.decision_scores_, 1 - self.contamination)
        self.labels_ = (self.decision_scores_ > self.threshold_).astype(int)
        return self

    def predict(self, X):
        return (self.decision_function(X) > self.threshold_).astype(int)


def base_of_pyod():
    return pytest.importorskip("pyod.models.base").BaseDetector


@pytest.fixture(params=[lambda: StandIn, base_of_pyod], ids=["stand-in", "PyOD"])
def adapter(request):
    namespace = {"BaseDetector": request.param(), "clone": clone}
    exec(ADAPTER, namespace)
    detector = AutoencoderOutlierDetector(2, max_epochs=10, random_state=0)
    return namespace["SkaeDetector"](detector, contamination=0.1)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((100, 4))
    X[:5] += 20
    return X


def test_scores_have_the_sign_of_pyod(adapter, rows):
    assert adapter.fit(rows) is adapter
    assert set(np.argsort(adapter.decision_scores_)[-5:]) == set(range(5))
    assert_allclose(adapter.decision_function(rows), adapter.decision_scores_)


def test_labels_are_those_of_pyod(adapter, rows):
    adapter.fit(rows)
    assert adapter.labels_.sum() == 10
    assert_array_equal(adapter.predict(rows), adapter.labels_)
    assert (adapter.labels_[:5] == 1).all()


def test_the_given_detector_is_not_fitted(adapter, rows):
    adapter.fit(rows)
    assert not hasattr(adapter.detector, "offset_")


def test_pyod_side_of_the_page_prints_what_it_says():
    pytest.importorskip("pyod")
    assert failures_of(examples_of(PAGE, with_skipped=True)) == ""
