"""Minibatches for training, and blocks for skorch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import global_states
from scipy import sparse

from skae._rows import Rows, is_expanded
from skae.engine import batches as batches_module
from skae.engine.batches import Batches, TrainingBatches, batch_bounds, count_batches

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


# Blocks for skorch


@settings(max_examples=30)
@given(st.integers(1, 200), st.integers(2, 20))
def test_batches_have_nearly_equal_sizes_and_no_lone_row(n_rows, batch_size):
    sizes = np.diff(batch_bounds(n_rows, batch_size))
    assert len(sizes) == count_batches(n_rows, batch_size)
    assert sizes.sum() == n_rows
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(2, n_rows)
    assert max(sizes) <= batch_size + (n_rows % 2 and batch_size == 2)


def test_batches_of_one_row_are_possible():
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


# TrainingBatches


def negated(block):
    """A target in the memory of the block, and which entries were observed."""
    target = torch.from_numpy(block)
    missing = target.isnan()
    target.neg_().nan_to_num_()
    return target.float(), ~missing if missing.any() else None


def make_feed(rows, batch_size=3, seed=None, **kwargs):
    rng = None if seed is None else np.random.default_rng(seed)
    return TrainingBatches(rows, batch_size, negated, rng, **kwargs)


@settings(max_examples=30)
@given(
    st.integers(1, 60),
    st.integers(1, 20),
    st.booleans(),
    st.sampled_from([0, 1000]),
    st.sampled_from([1, 7, 1000]),
)
def test_a_pass_yields_each_row_once_with_its_weight(
    n_rows, batch_size, shuffle, max_resident, n_chunk
):
    table = np.arange(1.0, n_rows + 1)[:, None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches_module, "CHUNK_ENTRIES", n_chunk)
        feed = make_feed(
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
def test_a_feed_prepares_rows_without_changing_the_table(table, max_resident):
    feed = make_feed(Rows(table), max_resident=max_resident)
    for _ in range(2):
        target = torch.cat([batch.target.clone() for batch in feed])
        np.testing.assert_array_equal(target, -X)
    dense = table.toarray() if sparse.issparse(table) else table
    np.testing.assert_array_equal(dense, X)


def test_resident_rows_equal_rows_prepared_in_chunks():
    one, other = (make_feed(Rows(X), seed=3, max_resident=n) for n in (0, 1000))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.target, b.target)


@pytest.mark.parametrize("read_only", [False, True])
def test_rows_for_a_gpu_are_copied_once_and_selected_in_large_chunks(
    read_only, monkeypatch
):
    """`prepare` copies the block to the GPU, in the test to other memory."""
    monkeypatch.setattr(batches_module, "CHUNK_ENTRIES", X.size)
    blocks = []

    def prepare(block):
        blocks.append(block)
        assert block.flags.writeable
        return negated(block.copy())

    table = X.copy()
    table.flags.writeable = not read_only
    rows, settings = Rows(table), {"max_resident": 1000}
    rng, other_rng = np.random.default_rng(3), np.random.default_rng(3)
    feed = TrainingBatches(rows, 3, prepare, rng, is_copied=True, **settings)
    assert len(blocks) == 1
    assert np.shares_memory(blocks[0], table) == (not read_only)
    monkeypatch.setattr(batches_module, "CHUNK_ENTRIES", 1)
    on_cpu = TrainingBatches(rows, 3, negated, other_rng, **settings)
    large = TrainingBatches(rows, 3, prepare, is_copied=True, **settings)
    assert len(list(large._chunks())) == 1 < len(list(on_cpu._chunks()))
    for a, b in zip(feed, on_cpu, strict=True):
        assert torch.equal(a.target, b.target)
    np.testing.assert_array_equal(table, X)


def test_a_feed_shuffles_before_each_pass():
    feed = make_feed(Rows(X), seed=0)
    first, second = (torch.cat([batch.target for batch in feed]) for _ in range(2))
    assert not np.array_equal(first, -X)
    assert not torch.equal(first, second)


def test_generators_with_the_same_seed_give_the_same_batches():
    one, other = make_feed(Rows(X), seed=5), make_feed(Rows(X), seed=5)
    for _ in range(2):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a.target, b.target)


def test_a_feed_yields_the_mask_of_observed_entries():
    holes = X.copy()
    holes[1, 2] = np.nan
    (batch,) = make_feed(Rows(holes), 8)
    np.testing.assert_array_equal(batch.observed, ~np.isnan(holes))
    assert batch.target[1, 2] == 0
    assert next(iter(make_feed(Rows(X), 8))).observed is None


def test_equal_weights_are_stored_as_one_number():
    (batch,) = make_feed(Rows(X).normalised(), 8)
    assert is_expanded(batch.weight)
    (batch,) = make_feed(Rows(X, weight=np.full(8, 3.0)).normalised(), 8, seed=0)
    assert is_expanded(batch.weight)
    assert (batch.weight == 1).all()
    (batch,) = make_feed(Rows(X, weight=np.arange(1.0, 9)).normalised(), 8)
    assert not is_expanded(batch.weight)


def test_a_feed_does_not_change_the_global_generators():
    before = global_states()
    list(make_feed(Rows(X), seed=0))
    assert global_states() == before
