"""Facts about skae._neighbors."""

import copy
import pickle

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse

from skae import _neighbors
from skae._neighbors import (
    AROUND_POWER,
    CORE_POWER,
    ERROR_POWER,
    MIN_RATIO,
    MIN_SPACING,
    POWER,
    KeptRows,
    NearestRows,
)
from skae._sparse import SparseRows

rng = np.random.default_rng(0)
KEPT = rng.normal(size=(12, 4)).astype(np.float32).astype(np.float64)
ROWS = rng.normal(size=(7, 4))


def neighbors_of(kept, weight=None, n_core=5, k=1, n_around=0):
    weight = np.ones(len(kept)) if weight is None else np.asarray(weight, float)
    kept = KeptRows(kept, weight)
    neighbors = NearestRows(kept, n_core, k, weight.sum(), n_around)
    if n_around:
        neighbors.measure(np.ones(len(weight)))  # spacings
    return neighbors


with_and_without_around = pytest.mark.parametrize("n_around", [0, 4])


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


@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("is_kept", [False, True])
def test_relative_distances_are_weighted_by_spacings(share, is_kept):
    X = KEPT if is_kept else ROWS
    n_around = 4
    observed = rng.random(X.shape) >= share
    observed[:, 0] = True
    neighbors = neighbors_of(KEPT, n_around=n_around)
    found = find(neighbors, X, observed if share else None).core_distance
    among = expected_distances(KEPT, KEPT, np.ones(KEPT.shape))
    spacing = np.sort(among, axis=1)[:, 1]
    spacing = np.maximum(spacing / np.median(spacing), MIN_SPACING)
    distances = expected_distances(X, KEPT, observed)
    if is_kept:
        np.fill_diagonal(distances, np.inf)
    for i, order in enumerate(np.argsort(distances, axis=1)[:, :n_around]):
        ratio = distances[i, order] / spacing[order]
        assert_allclose(found[i] ** 2, np.average(ratio**2, weights=1 / spacing[order]))


def test_relative_distances_of_few_rows_are_finite():
    for kept in (KEPT[:1], KEPT[:2], np.ones((5, 4))):
        neighbors = neighbors_of(kept, n_core=1, n_around=8)
        for X in (kept, ROWS):
            found = find(neighbors, X)
            ones = torch.ones(len(X), dtype=torch.float64)
            scores = neighbors.combine(ones, found.core_distance, found.distance)
            assert torch.isfinite(scores).all()


def test_rows_near_a_lone_row_are_far_in_relation():
    # 30 rows at a spacing of 1, and four at a spacing of 5, which are outliers.
    kept = np.zeros((34, 2))
    kept[:30, 0], kept[30:, 0] = np.arange(30), 60 + 5 * np.arange(4)
    neighbors = neighbors_of(kept, n_core=12, n_around=7)
    found = find(neighbors, np.array([[15.5, 0.0], [67.5, 0.0]])).core_distance
    assert found[1] > 10 * found[0]


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


@with_and_without_around
@pytest.mark.parametrize("k", [1, 2])
def test_weights_are_repetitions(k, n_around):
    weight = np.arange(12) % 3 + 1
    weighted = neighbors_of(KEPT, weight, 5, k, n_around)
    n_core = weight[:5].sum()
    repeated = neighbors_of(np.repeat(KEPT, weight, axis=0), None, n_core, k, n_around)
    for X in (ROWS, KEPT):
        one, other = find(weighted, X), find(repeated, X)
        assert_array_equal(one.distance, other.distance)
        assert_allclose(one.core_distance, other.core_distance, rtol=1e-12)


@with_and_without_around
def test_sparse_rows_have_the_distances_of_dense_ones(n_around):
    X = ROWS * (rng.random(ROWS.shape) < 0.4)
    stored = SparseRows.from_csr(sparse.csr_array(X))
    neighbors = neighbors_of(KEPT, n_around=n_around)
    for one, other in zip(neighbors(stored, None), find(neighbors, X), strict=True):
        assert_allclose(one, other)


@with_and_without_around
def test_blocks_do_not_change_distances(monkeypatch, n_around):
    neighbors = neighbors_of(KEPT, n_around=n_around)
    at_once = find(neighbors, ROWS)
    monkeypatch.setattr(_neighbors, "BLOCK_DISTANCES", 40)
    for one, other in zip(find(neighbors, ROWS), at_once, strict=True):
        assert_allclose(one, other, rtol=1e-12)
    assert len(find(neighbors, ROWS[:0]).distance) == 0


@with_and_without_around
def test_combined_error_is_the_larger_term(n_around):
    neighbors = neighbors_of(KEPT, n_around=n_around)
    neighbors.medians = torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64)
    error, core, distance = torch.rand(3, 50, dtype=torch.float64) * 9
    combined = neighbors.combine(error, core, distance)
    if n_around:
        first = (error / 2) ** ERROR_POWER * (core / 3) ** AROUND_POWER
    else:
        first = (error / 2 * core / 3) ** CORE_POWER
    assert_allclose(combined, torch.maximum(first, (distance / 4) ** POWER))
    nothing = torch.zeros(1, dtype=torch.float64)
    assert neighbors.combine(nothing, nothing, nothing) == pytest.approx(
        MIN_RATIO**POWER
    )


@with_and_without_around
@pytest.mark.parametrize("kind", ["complete", "missing", "kept", "zero error"])
def test_shares_sum_to_the_combined_error(kind, n_around):
    neighbors = neighbors_of(KEPT, n_around=n_around)
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


def test_shares_of_a_relative_distance_are_those_of_its_squares():
    neighbors = neighbors_of(KEPT, n_around=4)
    X = torch.from_numpy(ROWS)
    found = neighbors(X, None)
    squares = neighbors._squares_around(X, found).mean(dim=1)
    spacing = neighbors.spacing[found.around_positions]
    weight = found.around_counts
    factor = (weight / spacing**3).sum(dim=1) / (weight / spacing).sum(dim=1)
    assert_allclose(squares * factor, found.core_distance**2)


@with_and_without_around
def test_medians_are_those_of_the_kept_rows(n_around):
    neighbors = neighbors_of(KEPT, n_core=5, n_around=n_around)
    errors = rng.random(12)
    neighbors.measure(errors)
    found = find(neighbors, KEPT)
    values = errors, found.core_distance, found.distance
    low = [np.sort(v)[5] for v in values]
    high = [np.sort(v)[6] for v in values]
    assert (low <= neighbors.medians.numpy()).all()
    assert (neighbors.medians.numpy() <= high).all()


@with_and_without_around
def test_distances_are_unusual_where_most_rows_have_equal_ones(n_around):
    errors = np.linspace(1, 9, 12)
    nothing = torch.zeros(1, dtype=torch.float64)
    for weight in ([2] * 9 + [1] * 3, [2] * 12):
        neighbors = neighbors_of(KEPT, weight=weight, n_around=n_around)
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


def repeated(X, n_copies, size):
    """Return rows and `n_copies` further measurements of each."""
    noise = np.random.default_rng(1)
    copies = [X + size * noise.normal(size=X.shape) for _ in range(n_copies)]
    return np.vstack([X, *copies]).astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("size", [1e-5, 1e-3, 0.03])
@pytest.mark.parametrize("n_copies", [1, 2, _neighbors.MAX_COPIES])
def test_copies_of_a_row_are_no_neighbors_of_it(n_copies, size):
    kept = repeated(KEPT, n_copies, size)
    found = find(neighbors_of(kept, n_core=len(kept)), kept)
    alone = find(neighbors_of(KEPT, n_core=len(KEPT)), KEPT)
    for distance, expected in zip(found[:2], alone[:2], strict=True):
        expected = np.tile(expected, n_copies + 1)
        assert_allclose(distance, expected, atol=5 * size, rtol=1e-6)


def test_larger_groups_are_no_copies():
    kept = repeated(KEPT, _neighbors.MAX_COPIES + 1, 0.01)
    assert find(neighbors_of(kept, n_core=len(kept)), kept).distance.max() < 0.1


def test_rounding_does_not_decide_about_copies():
    # Next to each row are rows at distances of 1 and 4 units.
    positions = (5.0 * np.arange(40)[:, None] + [0, 1]).ravel()
    kept = np.repeat(positions[:, None] / 3, 4, axis=1).astype(np.float32)
    found = find(neighbors_of(kept, n_core=80), np.repeat(positions[:, None] / 3, 4, 1))
    assert_allclose(found.distance[1:-1], 1 / 3, rtol=1e-5)


def test_copies_are_neighbors_of_other_rows():
    kept = repeated(KEPT, 1, 0.01)
    distances = expected_distances(ROWS, kept, np.ones(ROWS.shape, bool))
    found = find(neighbors_of(kept), ROWS)
    assert_allclose(found.distance, distances.min(axis=1), rtol=1e-9)


@pytest.mark.parametrize(("n_repeated", "ignores_copies"), [(12, True), (6, False)])
def test_medians_ignore_copies_that_most_rows_have(n_repeated, ignores_copies):
    kept = np.vstack([KEPT[:n_repeated], KEPT + 0.01])[::-1].copy()
    neighbors = neighbors_of(kept, n_core=5)
    neighbors.measure(rng.random(len(kept)))
    alone = neighbors_of(KEPT, n_core=5)
    alone.measure(rng.random(12))
    distance, expected = neighbors.medians[2], alone.medians[2]
    assert (distance > 0.9 * expected) == ignores_copies
    assert (distance < 0.1 * expected) != ignores_copies


@pytest.mark.parametrize("seed", range(6))
def test_medians_of_relative_distances_are_no_rounding_errors(seed):
    images = np.random.default_rng(seed).uniform(size=(40, 48))
    kept = images.astype(np.float32).astype(float)
    neighbors = neighbors_of(kept, weight=[61] + [1] * 39, n_core=20, n_around=12)
    assert neighbors.medians[1] > 0.1
    together = find(neighbors, images[:6])
    alone = [find(neighbors, images[i : i + 1]).core_distance[0] for i in range(6)]
    assert_allclose(together.core_distance, alone, rtol=1e-9)


def test_states_without_relative_distances_are_restored():
    neighbors = neighbors_of(KEPT)
    state = {k: v for k, v in vars(neighbors).items() if k != "n_around"}
    state["_buffers"] = {"medians": neighbors.medians}
    restored = NearestRows.__new__(NearestRows)
    restored.__setstate__(state)
    assert_array_equal(find(restored, ROWS).distance, find(neighbors, ROWS).distance)


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
