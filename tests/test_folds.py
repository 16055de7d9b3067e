"""Folds of rows, which members of an ensemble do not learn."""

import numpy as np
import pytest
from scipy import sparse

from skae._folds import MIN_ROWS, Holdout, choose_holdout, row_keys
from skae._rows import Rows

X = np.random.default_rng(0).standard_normal((400, 5))
X[::3, 1] = 0
X[::7, 2] = np.nan
WIDTHS = (1, 2, 4, 8)


@pytest.mark.parametrize(
    "container",
    [
        np.asfortranarray,
        sparse.csr_array,
        lambda X: X[:, ::1].astype(np.float64, copy=True),
        lambda X: np.where(X == 0, -0.0, X),
        lambda X: np.where(np.isnan(X), -np.nan, X),
    ],
)
def test_keys_depend_on_values_alone(container):
    np.testing.assert_array_equal(row_keys(Rows(container(X)), 3), row_keys(Rows(X), 3))


def test_stored_zeros_and_blocks_do_not_change_keys(monkeypatch):
    rows = sparse.csr_array(X)
    rows.data[::5] = 0
    expected = row_keys(Rows(rows.toarray()), 0)
    monkeypatch.setattr("skae._folds.BLOCK_ENTRIES", 40)
    monkeypatch.setattr("skae._rows.BLOCK_ENTRIES", 40)
    for table in (rows, rows.toarray()):
        np.testing.assert_array_equal(row_keys(Rows(table), 0), expected)


def test_rows_in_float32_have_the_keys_of_equal_rows_in_float64():
    short = X.astype(np.float32)
    keys = [row_keys(Rows(table), 0) for table in (short, short.astype(np.float64))]
    np.testing.assert_array_equal(*keys)


@pytest.mark.parametrize("values", [[0.0, 1.0], [-1.0, 0.0, 1.0, 2.0], np.arange(64.0)])
def test_keys_of_discrete_rows_are_uniform(values):
    grid = np.stack(np.meshgrid(*[values] * (12 // len(values) or 2)), -1)
    rows = np.unique(grid.reshape(-1, grid.shape[-1]), axis=0)
    keys = row_keys(Rows(rows), 1)
    assert len(np.unique(keys)) == len(rows)
    counts = np.bincount(keys >> 61, minlength=4)
    assert np.all(np.abs(counts - len(rows) / 4) <= 4 * np.sqrt(len(rows)) + 1)


@pytest.mark.parametrize("n_members", [2, 3, 4, 5, 8, 16, 18])
def test_folds_and_groups_have_nearly_equal_sizes(n_members):
    widths = np.resize(WIDTHS, n_members)
    holdout = choose_holdout(Rows(X), widths, seed=0)
    assert holdout.n_folds == min(4, n_members)
    assert np.ptp(np.bincount(holdout.fold_of(Rows(X)))) <= 1
    assert np.ptp(np.bincount(holdout.group)) <= 1


def test_groups_of_sixteen_members_have_the_same_widths():
    holdout = choose_holdout(Rows(X), WIDTHS * 4, seed=0)
    np.testing.assert_array_equal(holdout.group, np.repeat(np.arange(4), 4))


def test_equal_rows_are_in_the_same_fold_of_any_table():
    holdout = choose_holdout(Rows(X), WIDTHS, seed=0)
    fold = holdout.fold_of(Rows(X))
    order = np.random.default_rng(0).permutation(len(X))[:50]
    np.testing.assert_array_equal(holdout.fold_of(Rows(X[order])), fold[order])
    np.testing.assert_array_equal(holdout.fold_of(Rows(X, order)), fold[order])
    repeated = choose_holdout(Rows(np.repeat(X, 2, axis=0)), WIDTHS, seed=0)
    np.testing.assert_array_equal(repeated.bounds, holdout.bounds)


def test_the_seed_determines_the_folds():
    one, other = (
        choose_holdout(Rows(X), WIDTHS, seed).fold_of(Rows(X)) for seed in (0, 1)
    )
    assert 0.15 < np.mean(one == other) < 0.35


def test_few_rows_and_single_members_have_no_folds():
    few = np.repeat(X[: MIN_ROWS - 1], 3, axis=0)
    assert choose_holdout(Rows(few), WIDTHS, seed=0) is None
    assert choose_holdout(Rows(X[:MIN_ROWS]), WIDTHS, seed=0) is not None
    assert choose_holdout(Rows(X), (1,), seed=0) is None


def test_rows_that_come_in_pieces_are_divided_without_knowing_them():
    holdout = choose_holdout(None, WIDTHS, seed=0)
    counts = np.bincount(holdout.fold_of(Rows(X)), minlength=4)
    assert np.all(np.abs(counts - 100) < 40)


def test_additional_members_join_the_smallest_groups():
    holdout = Holdout(0, np.array([10, 20]), np.array([-1, 0, 1, 1, 2]))
    extended = holdout.extended((4, 1, 2))
    np.testing.assert_array_equal(extended.group[:5], holdout.group)
    np.testing.assert_array_equal(extended.group[5:], [1, 0, 2])
