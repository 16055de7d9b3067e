"""Facts about skae._batches."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from skae import _batches
from skae._batches import (
    Batches,
    Feed,
    Rows,
    batch_bounds,
    canonical_rows,
    count_batches,
    is_repeated,
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


def global_states():
    """Of the generators that nothing may draw from."""
    return pickle.dumps(np.random.get_state()), torch.get_rng_state().tolist()  # noqa: NPY002


def content(rows):
    """What a fit sees: dense rows and their weights, in order."""
    return rows.dense(slice(None)) + 0.0, rows.weight


def assert_same_content(one, other):
    for a, b in zip(content(one), content(other), strict=True):
        np.testing.assert_array_equal(a, b)


# Rows


def test_all_rows_count_once_by_default(table):
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


def test_dense_positions_count_within_the_index(table):
    rows = Rows(table, np.array([6, 3, 1]))
    np.testing.assert_array_equal(rows.dense(slice(1, 3)), X[[3, 1]])
    np.testing.assert_array_equal(rows.dense(np.array([2, 0])), X[[1, 6]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dense_keeps_the_type(dtype):
    assert Rows(X.astype(dtype)).dense(slice(2)).dtype == dtype
    assert Rows(sparse.csr_array(X.astype(dtype))).dense(slice(2)).dtype == dtype


def test_stored_rows_keep_their_container(table):
    stored = Rows(table, np.array([4, 2])).stored()
    assert sparse.issparse(stored) == sparse.issparse(table)
    dense = stored.toarray() if sparse.issparse(stored) else stored
    np.testing.assert_array_equal(dense, X[[4, 2]])


def test_all_stored_rows_are_the_table_itself(table):
    assert Rows(table).stored() is table


def test_a_subset_of_a_subset_points_at_the_table():
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
def test_blocks_walk_over_all_rows_in_order(table, size):
    rows = Rows(table, np.arange(8)[::-1])
    wheres, blocks = zip(*rows.blocks(size), strict=True)
    np.testing.assert_array_equal(np.concatenate(blocks), X[::-1])
    for where, block in zip(wheres, blocks, strict=True):
        np.testing.assert_array_equal(X[::-1][where], block)
        assert len(block) <= size


def test_blocks_are_bounded_by_their_entries(monkeypatch):
    monkeypatch.setattr(_batches, "BLOCK_ENTRIES", 7)
    assert [len(block) for _, block in Rows(X).blocks()] == [2, 2, 2, 2]


def test_a_block_holds_a_row_at_least(monkeypatch):
    monkeypatch.setattr(_batches, "BLOCK_ENTRIES", 1)
    assert [len(block) for _, block in Rows(X).blocks()] == [1] * 8


# Blocks to predict


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 200), st.integers(2, 20))
def test_batches_have_nearly_equal_sizes_and_no_lone_row(n_rows, batch_size):
    sizes = np.diff(batch_bounds(n_rows, batch_size))
    assert len(sizes) == count_batches(n_rows, batch_size)
    assert sizes.sum() == n_rows
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(2, n_rows)
    assert max(sizes) <= batch_size + (n_rows % 2 and batch_size == 2)


def test_batches_of_one_row_are_given_to_those_who_ask_for_them():
    assert np.diff(batch_bounds(3, 1)).tolist() == [1, 1, 1]


def test_batches_are_dense_tensors_of_the_type_of_the_table():
    table = sparse.csr_array(X.astype(np.float32))
    batch, weight = next(iter(Batches(Rows(table), 4)))
    assert batch.layout == torch.strided
    assert batch.dtype == torch.float32
    assert weight.dtype == torch.float64


def test_batches_keep_the_order(table):
    batches = torch.cat([batch for batch, _ in Batches(Rows(table), 3)])
    np.testing.assert_array_equal(batches, X)


# Feed


def negated(block):
    """What the network may see: it uses the memory of the block."""
    target = torch.from_numpy(block)
    missing = target.isnan()
    target.neg_().nan_to_num_()
    return target.float(), ~missing if missing.any() else None


def fed(rows, batch_size=3, seed=None, **kwargs):
    rng = None if seed is None else np.random.default_rng(seed)
    return Feed(rows, batch_size, negated, rng, **kwargs)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 60),
    st.integers(1, 20),
    st.booleans(),
    st.sampled_from([0, 1000]),
    st.sampled_from([1, 7, 1000]),
)
def test_a_pass_feeds_each_row_once_with_its_weight(
    n_rows, batch_size, shuffle, max_resident, n_chunk
):
    table = np.arange(1.0, n_rows + 1)[:, None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_batches, "CHUNK_ENTRIES", n_chunk)
        feed = fed(
            Rows(table, weight=table[:, 0] + 1),
            batch_size,
            0 if shuffle else None,
            max_resident=max_resident,
        )
        for _ in range(2):
            batches = list(feed)
            values = -torch.cat([batch.target[:, 0] for batch in batches])
            weights = torch.cat([batch.weight for batch in batches])
            assert len(batches) == len(feed)
            assert sorted(values.tolist()) == table[:, 0].tolist()
            assert torch.equal(weights, values + 1)


@pytest.mark.parametrize("max_resident", [0, 1000])
def test_a_feed_prepares_rows_and_leaves_the_table_alone(table, max_resident):
    feed = fed(Rows(table), max_resident=max_resident)
    for _ in range(2):
        target = torch.cat([batch.target.clone() for batch in feed])
        np.testing.assert_array_equal(target, -X)
    dense = table.toarray() if sparse.issparse(table) else table
    np.testing.assert_array_equal(dense, X)


def test_what_is_kept_prepared_is_fed_like_what_is_not():
    one, other = (fed(Rows(X), seed=3, max_resident=n) for n in (0, 1000))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.target, b.target)


def test_a_feed_shuffles_anew_at_each_pass():
    feed = fed(Rows(X), seed=0)
    first, second = (torch.cat([batch.target for batch in feed]) for _ in range(2))
    assert not np.array_equal(first, -X)
    assert not torch.equal(first, second)


def test_the_same_generator_feeds_the_same_batches():
    one, other = fed(Rows(X), seed=5), fed(Rows(X), seed=5)
    for _ in range(2):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a.target, b.target)


def test_a_feed_tells_what_was_observed():
    holes = X.copy()
    holes[1, 2] = np.nan
    (batch,) = fed(Rows(holes), 8)
    np.testing.assert_array_equal(batch.observed, ~np.isnan(holes))
    assert batch.target[1, 2] == 0
    assert next(iter(fed(Rows(X), 8))).observed is None


def test_equal_weights_take_one_number():
    (batch,) = fed(Rows(X).normalised(), 8)
    assert is_repeated(batch.weight)
    (batch,) = fed(Rows(X, weight=np.full(8, 3.0)).normalised(), 8, seed=0)
    assert is_repeated(batch.weight)
    assert (batch.weight == 1).all()
    (batch,) = fed(Rows(X, weight=np.arange(1.0, 9)).normalised(), 8)
    assert not is_repeated(batch.weight)


def test_feeding_leaves_the_global_generators_alone():
    before = global_states()
    list(fed(Rows(X), seed=0))
    assert global_states() == before


# Canonical rows


@settings(deadline=None, max_examples=30)
@given(TABLES, st.data())
def test_order_is_nothing(table, data):
    order = data.draw(st.permutations(range(len(table))))
    assert_same_content(canonical_rows(table[order], None), canonical_rows(table, None))


@settings(deadline=None, max_examples=30)
@given(TABLES, st.data())
def test_weight_is_repetition(table, data):
    counts = data.draw(hnp.arrays(np.int64, len(table), elements=st.integers(0, 3)))
    counts[0] += 1
    assert_same_content(
        canonical_rows(table, counts.astype(float)),
        canonical_rows(np.repeat(table, counts, axis=0), None),
    )


@settings(deadline=None, max_examples=30)
@given(TABLES, st.data())
def test_sparse_rows_are_as_dense_ones(table, data):
    weight = data.draw(
        hnp.arrays(np.float64, len(table), elements=st.sampled_from([0.0, 0.5, 2.0]))
    )
    weight[-1] = 1
    assert_same_content(
        canonical_rows(sparse.csr_array(table), weight), canonical_rows(table, weight)
    )


@settings(deadline=None, max_examples=30)
@given(TABLES)
def test_canonical_rows_differ_and_keep_the_total_weight(table):
    rows = canonical_rows(table, None)
    values = content(rows)[0]
    distinct = {tuple(None if np.isnan(v) else v for v in row) for row in values}
    assert len(distinct) == len(rows)
    assert rows.weight.sum() == len(table)


def test_equal_rows_are_merged_into_one():
    rows = canonical_rows(np.array([[1.0], [2.0], [1.0]]), np.array([1.0, 2.0, 4.0]))
    merged = dict(zip(rows.dense(slice(None))[:, 0], rows.weight, strict=True))
    assert merged == {1: 5, 2: 2}


def test_negative_zero_is_zero():
    assert len(canonical_rows(np.array([[0.0], [-0.0]]), None)) == 1


def test_all_nan_are_one():
    bits = np.array([0x7FF8000000000000, 0xFFF8000000000001], dtype=np.uint64)
    assert len(canonical_rows(bits.view(np.float64)[:, None], None)) == 1


def test_the_type_of_the_table_does_not_change_the_order():
    table = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    one, other = canonical_rows(table, None), canonical_rows(table.astype(float), None)
    np.testing.assert_array_equal(one.index, other.index)


@pytest.mark.parametrize("maximum", [3, 100])
def test_rows_of_weight_zero_are_dropped(monkeypatch, maximum):
    monkeypatch.setattr(_batches, "MAX_CANONICAL_ROWS", maximum)
    rows = canonical_rows(X, np.array([0, 1, 0, 2.5, 0, 0, 3, 0]))
    kept = dict(zip(rows.index, rows.weight, strict=True))
    assert kept == {1: 1, 3: 2.5, 6: 3}


def test_many_rows_are_taken_as_they_are(monkeypatch):
    monkeypatch.setattr(_batches, "MAX_CANONICAL_ROWS", 7)
    rows = canonical_rows(np.ones((8, 2)), None)
    assert len(rows) == 8
    monkeypatch.setattr(_batches, "MAX_CANONICAL_ROWS", 8)
    assert len(canonical_rows(np.ones((8, 2)), None)) == 1


def test_canonical_rows_do_not_depend_on_the_size_of_blocks(monkeypatch):
    whole = canonical_rows(X, None)
    monkeypatch.setattr(_batches, "BLOCK_ENTRIES", 4)
    assert_same_content(canonical_rows(X, None), whole)


def test_canonical_rows_take_any_table_and_leave_it_alone(table):
    rows = canonical_rows(table, None)
    assert rows.X is table
    assert_same_content(rows, canonical_rows(X, None))
    dense = table.toarray() if sparse.issparse(table) else table
    np.testing.assert_array_equal(dense, X)


# Digest


def some_tables():
    """The same rows in a table of their own, and how each may differ."""
    X = np.random.default_rng(0).integers(0, 3, (12, 4)).astype(float)
    weight = np.arange(1.0, 13)
    other = X.copy()
    other[3, 2] += 1
    swapped = X.copy()
    swapped[:, 0] = X[::-1, 0]
    return (X, weight), [(other, weight), (swapped, weight), (X, weight[::-1])]


@pytest.mark.parametrize("container", [np.asarray, sparse.csr_array])
def test_equal_rows_have_equal_digests_and_others_have_not(container):
    (X, weight), others = some_tables()
    digest = Rows(container(X), weight=weight).digest()
    assert Rows(container(X.copy()), weight=weight.copy()).digest() == digest
    assert Rows(container(X)).subset(np.arange(12)).digest() != digest
    for other, its_weight in others:
        assert Rows(container(other), weight=its_weight).digest() != digest


def test_the_digest_does_not_depend_on_the_size_of_blocks(monkeypatch):
    (X, weight), _ = some_tables()
    whole = Rows(X, weight=weight).digest()
    monkeypatch.setattr(_batches, "BLOCK_ENTRIES", 8)
    assert Rows(np.asfortranarray(X), weight=weight).digest() == whole
