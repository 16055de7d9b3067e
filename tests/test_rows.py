"""Weighted rows of a table: selection, blocks and canonical form."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal
from scipy import sparse

from skae import _rows
from skae._rows import (
    Batch,
    Rows,
    canonical_form,
    canonical_rows,
    empty_rows,
    is_expanded,
)

# Few values, so that rows repeat.
TABLES = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 12), st.integers(1, 3)),
    elements=st.sampled_from([-0.0, 0.0, 1.0, -2.5, np.nan]),
)
X = np.arange(24.0).reshape(8, 3)
X[2, 1] = 0


@pytest.fixture(params=["ndarray", "fortran", "csr_array", "csr_matrix", "memmap"])
def table(request, tmp_path):
    """X in a container that cannot be written to."""
    if request.param.startswith("csr"):
        container = getattr(sparse, request.param)(X)
        container.data.flags.writeable = False
        return container
    if request.param == "memmap":
        np.save(tmp_path / "X.npy", X)
        return np.load(tmp_path / "X.npy", mmap_mode="r")
    container = X.copy(order="F" if request.param == "fortran" else "C")
    container.flags.writeable = False
    return container


def content(rows):
    """The dense rows and their weights, in order."""
    return rows.dense(slice(None)) + 0.0, rows.weight


def assert_same_content(one, other):
    for a, b in zip(content(one), content(other), strict=True):
        np.testing.assert_array_equal(a, b)


# Rows


def test_all_rows_have_weight_one_by_default(table):
    rows = Rows(table)
    assert len(rows) == 8
    assert rows.n_features == 3
    assert rows.weight.tolist() == [1] * 8


def test_rows_keep_their_table_by_reference(table):
    rows = Rows(table).subset(np.array([1, 2]))
    assert rows.X is table


@pytest.mark.parametrize("where", [slice(2, 5), np.array([5, 0, 0])])
def test_dense_gives_the_rows_at_these_positions(table, where):
    block = Rows(table).dense(where)
    assert type(block) is np.ndarray
    np.testing.assert_array_equal(block, X[where])


def test_dense_positions_refer_to_the_index(table):
    rows = Rows(table, np.array([6, 3, 1]))
    np.testing.assert_array_equal(rows.dense(slice(1, 3)), X[[3, 1]])
    np.testing.assert_array_equal(rows.dense(np.array([2, 0])), X[[1, 6]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dense_keeps_the_type(dtype):
    assert Rows(X.astype(dtype)).dense(slice(2)).dtype == dtype
    assert Rows(sparse.csr_array(X.astype(dtype))).dense(slice(2)).dtype == dtype


def test_stored_rows_keep_their_container(table):
    stored = Rows(table, np.array([4, 2])).selected()
    assert sparse.issparse(stored) == sparse.issparse(table)
    dense = stored.toarray() if sparse.issparse(stored) else stored
    np.testing.assert_array_equal(dense, X[[4, 2]])


def test_all_stored_rows_are_the_table_itself(table):
    assert Rows(table).selected() is table


def test_a_subset_of_a_subset_refers_to_the_table():
    rows = Rows(X, weight=np.arange(8.0)).subset(np.array([7, 5, 3, 1]))
    rows = rows.subset(np.array([2, 0]))
    assert rows.index.tolist() == [3, 7]
    assert rows.weight.tolist() == [3, 7]


def test_normalised_weights_have_mean_one_and_keep_their_ratios():
    rows = Rows(X, weight=np.arange(8.0))
    normalised = rows.normalised(np.array([1, 2, 3]))
    np.testing.assert_allclose(normalised.weight, [0.5, 1, 1.5])
    assert rows.weight.tolist() == list(range(8))


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_blocks_hold_all_rows_in_order(table, size):
    rows = Rows(table, np.arange(8)[::-1])
    wheres, blocks = zip(*rows.blocks(size), strict=True)
    np.testing.assert_array_equal(np.concatenate(blocks), X[::-1])
    for where, block in zip(wheres, blocks, strict=True):
        np.testing.assert_array_equal(X[::-1][where], block)
        assert len(block) <= size


def test_blocks_are_bounded_by_their_entries(monkeypatch):
    monkeypatch.setattr(_rows, "BLOCK_ENTRIES", 7)
    assert [len(block) for _, block in Rows(X).blocks()] == [2, 2, 2, 2]


def test_a_block_has_at_least_one_row(monkeypatch):
    monkeypatch.setattr(_rows, "BLOCK_ENTRIES", 1)
    assert [len(block) for _, block in Rows(X).blocks()] == [1] * 8


# Canonical rows


@settings(max_examples=30)
@given(TABLES, st.data())
def test_canonical_rows_do_not_depend_on_order(table, data):
    order = data.draw(st.permutations(range(len(table))))
    assert_same_content(canonical_rows(table[order], None), canonical_rows(table, None))


@settings(max_examples=30)
@given(TABLES, st.data())
def test_canonical_rows_treat_weights_as_repetitions(table, data):
    counts = data.draw(hnp.arrays(np.int64, len(table), elements=st.integers(0, 3)))
    counts[0] += 1
    assert_same_content(
        canonical_rows(table, counts.astype(float)),
        canonical_rows(np.repeat(table, counts, axis=0), None),
    )


@settings(max_examples=30)
@given(TABLES, st.data())
def test_canonical_sparse_rows_equal_dense_ones(table, data):
    weight = data.draw(
        hnp.arrays(np.float64, len(table), elements=st.sampled_from([0.0, 0.5, 2.0]))
    )
    weight[-1] = 1
    assert_same_content(
        canonical_rows(sparse.csr_array(table), weight), canonical_rows(table, weight)
    )


@pytest.mark.parametrize("maximum", [0, 100])
@settings(max_examples=30)
@given(TABLES, st.data())
def test_positions_of_canonical_rows_lead_to_equal_rows(maximum, table, data):
    weight = data.draw(
        st.none()
        | hnp.arrays(np.float64, len(table), elements=st.sampled_from([0.0, 0.5, 2.0]))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_rows, "MAX_CANONICAL_ROWS", maximum)
        rows, positions = canonical_form(table, weight)
    is_kept = ~np.isnan(table).all(axis=1)
    if weight is not None:
        is_kept &= weight > 0
    if positions is None:
        positions = np.arange(len(table))
        assert len(rows) == len(table)
    assert_array_equal(positions >= 0, is_kept)
    assert_array_equal(rows.dense(positions[is_kept]), table[is_kept])
    counts = np.ones(len(table)) if weight is None else weight
    expected = np.bincount(positions[is_kept], counts[is_kept], len(rows))
    assert_array_equal(rows.weight, expected)


@settings(max_examples=30)
@given(TABLES)
def test_canonical_rows_are_distinct_and_keep_the_total_weight(table):
    rows = canonical_rows(table, None)
    values = content(rows)[0]
    distinct = {tuple(None if np.isnan(v) else v for v in row) for row in values}
    assert len(distinct) == len(rows)
    assert not np.isnan(values).all(axis=1).any()
    assert rows.weight.sum() == np.sum(~np.isnan(table).all(axis=1))


@pytest.mark.parametrize("convert", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("maximum", [3, 100])
def test_rows_without_an_observed_entry_have_weight_zero(convert, maximum, monkeypatch):
    monkeypatch.setattr(_rows, "MAX_CANONICAL_ROWS", maximum)
    monkeypatch.setattr(_rows, "BLOCK_ENTRIES", 2)
    table = X.copy()
    table[[0, 4, 7]] = np.nan
    table[2, 1:] = np.nan
    assert empty_rows(convert(table)).tolist() == [0, 4, 7]
    weight = np.arange(1.0, 9)
    assert_same_content(
        canonical_rows(convert(table), weight),
        canonical_rows(
            np.delete(table, [0, 4, 7], axis=0), np.delete(weight, [0, 4, 7])
        ),
    )


def test_equal_rows_are_merged_into_one():
    rows = canonical_rows(np.array([[1.0], [2.0], [1.0]]), np.array([1.0, 2.0, 4.0]))
    merged = dict(zip(rows.dense(slice(None))[:, 0], rows.weight, strict=True))
    assert merged == {1: 5, 2: 2}


def test_negative_zero_equals_zero():
    assert len(canonical_rows(np.array([[0.0], [-0.0]]), None)) == 1


def test_all_nan_are_equal():
    bits = np.array([0x7FF8000000000000, 0xFFF8000000000001], dtype=np.uint64)
    table = np.column_stack([bits.view(np.float64), np.ones(2)])
    assert len(canonical_rows(table, None)) == 1


def test_the_type_of_the_table_does_not_change_the_order():
    table = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    one, other = canonical_rows(table, None), canonical_rows(table.astype(float), None)
    np.testing.assert_array_equal(one.index, other.index)


@pytest.mark.parametrize("maximum", [3, 100])
def test_rows_of_weight_zero_are_dropped(monkeypatch, maximum):
    monkeypatch.setattr(_rows, "MAX_CANONICAL_ROWS", maximum)
    rows = canonical_rows(X, np.array([0, 1, 0, 2.5, 0, 0, 3, 0]))
    kept = dict(zip(rows.index, rows.weight, strict=True))
    assert kept == {1: 1, 3: 2.5, 6: 3}


def test_many_rows_are_not_merged(monkeypatch):
    monkeypatch.setattr(_rows, "MAX_CANONICAL_ROWS", 7)
    rows = canonical_rows(np.ones((8, 2)), None)
    assert len(rows) == 8
    monkeypatch.setattr(_rows, "MAX_CANONICAL_ROWS", 8)
    assert len(canonical_rows(np.ones((8, 2)), None)) == 1


def test_canonical_rows_do_not_depend_on_block_size(monkeypatch):
    whole = canonical_rows(X, None)
    monkeypatch.setattr(_rows, "BLOCK_ENTRIES", 4)
    assert_same_content(canonical_rows(X, None), whole)


def test_canonical_rows_do_not_change_the_table(table):
    rows = canonical_rows(table, None)
    assert rows.X is table
    assert_same_content(rows, canonical_rows(X, None))
    dense = table.toarray() if sparse.issparse(table) else table
    np.testing.assert_array_equal(dense, X)


# Batches


def make_batch(n_rows=6, observed=True, expanded=False):
    target = torch.arange(2.0 * n_rows).reshape(n_rows, 2)
    weight = torch.ones(1).expand(n_rows) if expanded else torch.arange(n_rows) + 1.0
    return Batch(target, target > 3 if observed else None, weight)


@pytest.mark.parametrize("observed", [True, False])
@pytest.mark.parametrize("expanded", [True, False])
def test_selected_and_split_batches_agree(observed, expanded):
    batch = make_batch(observed=observed, expanded=expanded)
    batch = batch._replace(is_learnt=torch.rand(batch.n_rows, 3))
    selected = [batch.select(torch.tensor(where)) for where in ([0, 1, 2, 3], [4, 5])]
    for one, other in zip(batch.split([4, 2]), selected, strict=True):
        assert one.n_rows == other.n_rows
        assert torch.equal(one.target, other.target)
        assert torch.equal(one.weight, other.weight)
        assert torch.equal(one.is_learnt, other.is_learnt)
        assert is_expanded(one.weight) == is_expanded(other.weight) == expanded
        assert (one.observed is None) == (other.observed is None) == (not observed)
        if observed:
            assert torch.equal(one.observed, other.observed)


def test_a_cloned_batch_owns_its_memory():
    batch = make_batch()
    batch = batch._replace(
        fold_weight=torch.rand(batch.n_rows, 2), is_learnt=torch.rand(batch.n_rows, 3)
    )
    copied = batch.clone()
    for one, other in zip(batch, copied, strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr()
    assert make_batch(observed=False).clone().observed is None


@pytest.mark.parametrize("index", [None, np.array([6, 3, 1, 0, 7])])
def test_taken_rows_equal_dense_ones(table, index):
    rows, where = Rows(table, index), np.array([4, 0, 2])
    out = np.empty((5, 3))
    taken = rows.take(where, out)
    np.testing.assert_array_equal(taken, rows.dense(where))
    assert np.shares_memory(taken, out) == (not sparse.issparse(table))
