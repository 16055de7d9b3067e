"""Settings and fixtures shared by all tests."""

import os

# Before SciPy is imported: scikit-learn skips its array API check otherwise.
os.environ["SCIPY_ARRAY_API"] = "1"

import pytest
import torch
from sklearn.datasets import load_digits

from skae.engine import trainer

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # the tests with the oldest versions do without it
    pass
else:
    # No test fails because the machine is busy: neither by the time of one example
    # (deadline) nor by the time that it takes to generate examples (too_slow).
    settings.register_profile(
        "tests", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("tests")

# The workers of the test run share the cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits():
    """The 8 x 8 digits, of shape (1797, 64)."""
    return load_digits().data


@pytest.fixture
def always_recorded(monkeypatch):
    """Record training steps also where few follow."""
    monkeypatch.setattr(trainer, "MIN_RECORDED_STEPS", 0)


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
