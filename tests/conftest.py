"""What all tests share."""

import os

# Before SciPy is imported: scikit-learn skips its array API check otherwise.
os.environ["SCIPY_ARRAY_API"] = "1"

import pytest
import torch
from sklearn.datasets import load_digits

# The workers of the test run share the cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits():
    """The 8 x 8 digits, of shape (1797, 64)."""
    return load_digits().data
