"""Values of parameters that are "auto", derived from the shape of the data."""

import numpy as np
import pytest

from skae import AutoencoderOutlierDetector
from skae._build import build_plan
from skae._checks import check_fit
from skae._defaults import TRANSFORMER


@pytest.mark.parametrize(
    ("n_rows", "n_epochs"),
    [
        (100, 500),
        (9_000, 36),
        (50_000, 12),
        (200_000, 12),
        (500_000, 5),
        (900_000, 3),
        (10**7, 1),
    ],
)
def test_many_rows_need_fewer_epochs(n_rows, n_epochs):
    batch_size = TRANSFORMER.plain.auto_batch_size(n_rows)
    n_batches = -(-n_rows // batch_size)
    assert TRANSFORMER.auto_max_epochs(n_batches, n_steps=2500) == n_epochs


def test_number_of_steps_grows_with_the_rows_up_to_a_limit():
    steps = [
        n_batches * TRANSFORMER.auto_max_epochs(n_batches, n_steps=2500)
        for n_batches in range(200, 20_000, 97)
    ]
    assert min(steps) >= 2500
    assert max(steps) <= 1.5 * TRANSFORMER.max_steps


@pytest.mark.parametrize(
    ("settings", "n_rows", "n_features", "expected"),
    [
        ({}, 10, 3, (16, 100)),
        ({}, 100, 3, (50, 100)),
        ({}, 569, 30, (128, 100)),
        ({}, 10_000, 500, (128, 8)),
        ({}, 10_000, 501, (256, 8)),
        ({}, 100, 501, (100, 100)),
        ({"trim": 0}, 100, 3, (100, 150)),
        ({"trim": 0}, 10_000, 3, (256, 15)),
        ({"n_estimators": 1}, 10_000, 3, (256, 15)),
        ({"bottleneck": "gaussian", "n_estimators": 2}, 10_000, 3, (256, 15)),
    ],
    ids=str,
)
def test_batches_and_epochs_of_a_detector(settings, n_rows, n_features, expected):
    X = np.random.default_rng(0).normal(size=(2, n_features))
    job = check_fit(AutoencoderOutlierDetector(**settings), X, None, earlier=None)
    plan = build_plan(job, n_rows, early_stopping=False)
    assert (plan.batch_size, plan.max_epochs) == expected
