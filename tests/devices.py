"""Where a model computes, and comparisons of models on different devices."""

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

# Largest difference, relative and absolute, between the results of a GPU and of a CPU,
# which add the terms of a product in different orders. On an H200 the outputs of the
# variants differ by 1e-10 in float64; refined codes in float32 lose digits.
TOLERANCE = {np.dtype(np.float32): 1e-4, np.dtype(np.float64): 1e-6}


def device_of(model):
    """The device on which a fitted estimator predicts."""
    return model.module_.scaler.mean.device


def assert_close(actual, expected, dtype=np.float64):
    """Values from a GPU and from a CPU are equal up to rounding in a type."""
    tolerance = TOLERANCE[np.dtype(dtype)]
    assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def assert_same_values(actual, expected, one, other, dtype=np.float64):
    """Values of two models are equal: to the bit on one device, else up to rounding.

    A model that was fitted on a GPU is loaded to the CPU.
    """
    if device_of(one).type == device_of(other).type:
        assert_array_equal(actual, expected)
    else:
        assert_close(actual, expected, dtype)
