"""Facts about skae._neighbors."""

import copy
import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from skae import _neighbors
from skae._neighbors import CORE_POWER, MIN_RATIO, POWER, KeptRows, NearestRows
from skae._sparse import SparseRows

rng = np.random.default_rng(0)
KEPT = rng.normal(size=(12, 4)).astype(np.float32).astype(np.float64)
ROWS = rng.normal(size=(7, 4))


def neighbors_of(kept, weight=None, n_core=5, k=1):
    weight = np.ones(len(kept)) if weight is None else np.asarray(weight, float)
    return NearestRows(KeptRows(kept, weight), n_core, k, weight.sum())


def find(neighbors, X, observed=None):
    mask = None if observed is None else torch.from_numpy(observed)
    return neighbors(torch.from_numpy(X), mask)


def expected_distances(X, kept, observed):
    squares = (X[:, None] - kept) ** 2 * observed[:, None]
    return np.sqrt(squares.sum(axis=2) / observed.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_distances_are_those_to_the_kth_row(k, share):
    observed = rng.random(ROWS.shape) >= share
    observed[:, 0] = True
    found = find(neighbors_of(KEPT, k=k), ROWS, observed if share else None)
    distances = expected_distances(ROWS, KEPT, observed)
    rows = np.arange(len(ROWS))
    assert_allclose(found.distance, np.sort(distances, axis=1)[:, k - 1])
    assert_allclose(distances[rows, found.position], found.distance)
    # Of the core, the nearest row never counts.
    assert_allclose(found.core_distance, np.sort(distances[:, :5], axis=1)[:, k])
    assert_allclose(distances[rows, found.core_position], found.core_distance)


def test_a_row_is_no_neighbor_of_itself():
    found = find(neighbors_of(KEPT), KEPT)
    distances = expected_distances(KEPT, KEPT, np.ones(KEPT.shape))
    assert_allclose(found.distance, np.sort(distances, axis=1)[:, 1])
    # In float32, a row is still the same row.
    rounded = KEPT + 1e-8 * rng.normal(size=KEPT.shape)
    assert_allclose(find(neighbors_of(KEPT), rounded).distance, found.distance, 1e-6)


def test_equal_rows_are_neighbors_of_each_other():
    weight = np.where(np.arange(12) == 3, 2, 1)
    found = find(neighbors_of(KEPT, weight), KEPT)
    assert_array_equal(found.distance == 0, weight == 2)
    repeated = np.repeat(KEPT, weight, axis=0)
    assert_array_equal(find(neighbors_of(repeated), KEPT).distance == 0, weight == 2)


@pytest.mark.parametrize("k", [1, 2])
def test_weights_are_repetitions(k):
    weight = np.arange(12) % 3 + 1
    weighted = neighbors_of(KEPT, weight, n_core=5, k=k)
    n_core = weight[:5].sum()
    repeated = neighbors_of(np.repeat(KEPT, weight, axis=0), None, n_core, k)
    for X in (ROWS, KEPT):
        one, other = find(weighted, X), find(repeated, X)
        assert_array_equal(one.distance, other.distance)
        assert_array_equal(one.core_distance, other.core_distance)


def test_sparse_rows_have_the_distances_of_dense_ones():
    X = ROWS * (rng.random(ROWS.shape) < 0.4)
    stored = SparseRows.from_csr(sparse.csr_array(X))
    neighbors = neighbors_of(KEPT)
    for one, other in zip(neighbors(stored, None), find(neighbors, X), strict=True):
        assert_allclose(one, other)


def test_blocks_do_not_change_distances(monkeypatch):
    neighbors = neighbors_of(KEPT)
    at_once = find(neighbors, ROWS)
    monkeypatch.setattr(_neighbors, "BLOCK_DISTANCES", 40)
    for one, other in zip(find(neighbors, ROWS), at_once, strict=True):
        assert_array_equal(one, other)
    assert len(find(neighbors, ROWS[:0]).distance) == 0


def test_combined_error_is_the_larger_term():
    neighbors = neighbors_of(KEPT)
    neighbors.medians = torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64)
    error, core, distance = torch.rand(3, 50, dtype=torch.float64) * 9
    combined = neighbors.combine(error, core, distance)
    first = (error / 2 * core / 3) ** CORE_POWER
    assert_allclose(combined, torch.maximum(first, (distance / 4) ** POWER))
    nothing = torch.zeros(1, dtype=torch.float64)
    assert neighbors.combine(nothing, nothing, nothing) == pytest.approx(
        MIN_RATIO**POWER
    )


@pytest.mark.parametrize("kind", ["complete", "missing", "kept", "zero error"])
def test_shares_sum_to_the_combined_error(kind):
    neighbors = neighbors_of(KEPT)
    X = KEPT if kind == "kept" else ROWS
    observed = rng.random(X.shape) < 0.7 if kind == "missing" else None
    if observed is not None:
        observed[:, 1] = True
    nearness = find(neighbors, X, observed)
    errors = rng.random(X.shape) * (kind != "zero error")
    if observed is not None:
        errors *= observed
    mask = None if observed is None else torch.from_numpy(observed)
    shares = neighbors.shares(
        torch.from_numpy(errors), torch.from_numpy(X), mask, nearness
    ).numpy()
    combined = neighbors.combine(
        torch.from_numpy(errors.sum(axis=1)), nearness.core_distance, nearness.distance
    )
    assert_allclose(shares.sum(axis=1), combined)
    assert shares.min() >= 0
    if observed is not None:
        assert (shares[~observed] == 0).all()


def test_medians_are_those_of_the_kept_rows():
    neighbors = neighbors_of(KEPT, n_core=5)
    errors = rng.random(12)
    neighbors.measure(errors)
    found = find(neighbors, KEPT)
    values = errors, found.core_distance, found.distance
    low = [np.sort(v)[5] for v in values]
    high = [np.sort(v)[6] for v in values]
    assert (low <= neighbors.medians.numpy()).all()
    assert (neighbors.medians.numpy() <= high).all()


def test_distances_are_unusual_where_most_rows_have_equal_ones():
    errors = np.linspace(1, 9, 12)
    nothing = torch.zeros(1, dtype=torch.float64)
    for weight in ([2] * 9 + [1] * 3, [2] * 12):
        neighbors = neighbors_of(KEPT, weight=weight)
        neighbors.measure(errors)
        found = find(neighbors, KEPT)
        scores = neighbors.combine(
            torch.from_numpy(errors), found.core_distance, nothing.expand(12)
        )
        smallest = found.distance[found.distance > 0]
        if len(smallest) == 0:
            smallest = find(neighbors_of(KEPT), KEPT).distance
        unusual = neighbors.combine(nothing, nothing, smallest.min())
        share = np.sum(weight, where=(scores <= unusual + 1e-9).numpy()) / sum(weight)
        assert share >= 18 / 21
    equal = neighbors_of(np.ones((3, 2)), n_core=2)
    equal.measure(np.zeros(3))
    assert (equal.medians > 0).all()


def test_near_copies_are_no_neighbors():
    twins = np.vstack([KEPT, KEPT + 1e-4])
    found = find(neighbors_of(twins, n_core=12), KEPT)
    alone = find(neighbors_of(KEPT), KEPT)
    assert_allclose(found.distance, alone.distance, atol=1e-3)


def test_equal_distances_have_the_first_row_as_the_nearest():
    one_hot = np.eye(8)[rng.integers(0, 8, (60, 3))].reshape(60, 24)
    kept = np.unique(one_hot, axis=0)
    neighbors = neighbors_of(kept, n_core=20)
    together = find(neighbors, one_hot)
    for i in range(60):
        alone = find(neighbors, one_hot[i : i + 1])
        assert alone.position == together.position[i]
        assert alone.core_position == together.core_position[i]


def test_copies_share_rows_and_pickles_store_them_in_float32():
    neighbors = neighbors_of(KEPT)
    assert copy.deepcopy(neighbors).kept is neighbors.kept
    assert copy.copy(neighbors.kept) is neighbors.kept
    find(neighbors, ROWS)  # makes the tensors in float64
    large = KeptRows(np.zeros((1000, 100)), np.ones(1000))
    large.on(torch.device("cpu"))
    assert len(pickle.dumps(large)) < 1000 * 100 * 4 + 10_000
    loaded = pickle.loads(pickle.dumps(neighbors))
    assert_array_equal(find(loaded, ROWS).distance, find(neighbors, ROWS).distance)
