"""Values of parameters that are "auto", derived from the shape of the data."""

import pytest

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
