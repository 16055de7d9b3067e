"""`fit` of tables in partitions, which are read again in each epoch."""

import gc
import logging
import signal
import threading
import weakref
from collections import deque
from collections.abc import Sequence

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from scipy import sparse
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from skorch.callbacks import Callback
from variants import decoder_factory, encoder_factory

from skae import AutoencoderOutlierDetector, AutoencoderTransformer, _scan, _streamed
from skae._partitions import Partitions
from skae._pca import principal_axes
from skae._rows import Rows
from skae._split import MAX_JUDGED_ROWS
from skae._streamed import stream_rows
from skae._summary import summarize
from skae.engine import streams
from skae.engine.streams import StreamedBatches
from skae.networks import Custom

BRIEF = {"max_epochs": 3, "batch_size": 32, "random_state": 0}
NAMES = list("abcdefg")


def make_table(n_rows=1200, seed=0, missing=False):
    """Rows near a curved surface in seven dimensions."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(-1, 1, (n_rows, 2))
    curved = [t, t**2, np.sin(3 * t), t[:, :1] * t[:, 1:]]
    X = np.hstack(curved) * np.arange(1, 8) + 5
    X += 0.05 * rng.normal(size=X.shape)
    if missing:
        X[rng.random(X.shape) < 0.1] = np.nan
        X[[3, n_rows // 2]] = np.nan
    return X


def split_at(X, *bounds):
    return np.split(X, bounds)


UNEVEN = (100, 100, 430, 431, 800, 1100)


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    """Stream small tables, by a scheduler without threads."""
    monkeypatch.setattr(_streamed, "MAX_GATHERED", 100)
    with dask.config.set(scheduler="synchronous"):
        yield


def frame(X):
    return pd.DataFrame(X, columns=NAMES[: X.shape[1]])


class Readable:
    """Iterable without random access, which returns a new iterator each time."""

    def __init__(self, *parts):
        self.parts = parts

    def __iter__(self):
        return iter(self.parts)


def of_unknown_sizes(X):
    table = dd.from_pandas(frame(X), npartitions=7)
    return table.to_dask_array()


COLLECTIONS = {
    "dask array": lambda X: da.from_array(X, chunks=(173, 3)),
    "dask array of unknown sizes": of_unknown_sizes,
    "dask frame": lambda X: dd.from_pandas(frame(X), npartitions=7),
    "list of arrays": lambda X: split_at(X, *UNEVEN),
    "list of frames": lambda X: [frame(part) for part in split_at(X, *UNEVEN)],
    "polars frames": lambda X: [
        pl.DataFrame(part, schema=NAMES) for part in split_at(X, *UNEVEN)
    ],
    "iterable": lambda X: Readable(*split_at(X, *UNEVEN)),
    "generator function": lambda X: lambda: (part for part in split_at(X, *UNEVEN)),
    "one partition": lambda X: [X],
    "two partitions": lambda X: split_at(X, 500),
}
each_collection = pytest.mark.parametrize("kind", COLLECTIONS)


def streamed(X, weight=None, kind="dask array"):
    partitions = Partitions(COLLECTIONS[kind](X))
    if weight is not None:
        partitions.count()
    return stream_rows(partitions, weight)


# What the first pass finds


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@each_collection
def test_statistics_are_those_of_the_rows_in_memory(kind, missing, weighted):
    X = make_table(missing=missing)
    weight = None
    kept = ~np.isnan(X).all(axis=1)
    if weighted:
        weight = np.random.default_rng(1).integers(0, 4, len(X)).astype(float)
        kept &= weight > 0
    rows, positions = streamed(X, weight, kind)
    index = np.flatnonzero(kept)
    same = Rows(X, index, None if weight is None else weight[index])
    assert len(rows) == len(same)
    np.testing.assert_array_equal(rows.weight, same.weight)
    if positions is not None:
        np.testing.assert_array_equal(np.flatnonzero(positions >= 0), index)
    found, expected = rows.summary, summarize(same, find_binary=True)
    for name in found._fields:
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=1e-10, err_msg=name
        )
    factor = np.arange(1.0, 8.0)
    axes = [principal_axes(r, 3, expected.mean, factor, 0) for r in (rows, same)]
    for one, other in zip(*axes, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-10)
    blocks = np.concatenate([block for _, block in rows.blocks(50)])
    np.testing.assert_array_equal(blocks, X[kept])


def test_statistics_with_a_large_offset_have_as_many_digits():
    X = make_table() + 1e6
    rows = streamed(X).rows
    same = Rows(X)
    summary = summarize(same)
    np.testing.assert_allclose(rows.summary.variance, summary.variance, rtol=1e-9)
    axes = [principal_axes(r, 2, summary.mean, np.ones(7), 0)[0] for r in (rows, same)]
    np.testing.assert_allclose(*axes, atol=1e-8)


@pytest.mark.parametrize("lacking", [[0], [1], [0, 1], [3]])
def test_partitions_without_a_column_have_no_effect_on_its_covariance(lacking):
    X = make_table()
    X[:, [2, 3]] += 1e9
    parts = np.split(X, 4)
    for i in lacking:
        parts[i][:, 2] = np.nan
    rows = stream_rows(Partitions(parts), None).rows
    mean = np.nanmean(X, axis=0)
    found = rows.moments.covariance(mean, np.ones(7))
    expected = np.ma.cov(np.ma.masked_invalid(X), rowvar=False, bias=True)
    both = ~np.isnan(X[:, 2])
    np.testing.assert_allclose(np.diag(found), np.diag(expected), rtol=1e-5)
    pair = ((X - mean)[both, 2] * (X - mean)[both, 3]).mean()
    assert found[2, 3] == pytest.approx(pair, rel=1e-5)


def test_binary_columns_are_found_where_partitions_have_one_value():
    X = np.zeros((60, 3))
    X[30:, 0], X[:, 1] = 1, 2
    assert streamed(X, kind="one partition").rows.summary.is_binary.tolist() == [
        True,
        False,
        False,
    ]
    parts = stream_rows(Partitions([X[:30], X[30:]]), None).rows
    assert parts.summary.is_binary.tolist() == [True, False, False]


def test_sample_does_not_depend_on_the_order_in_which_partitions_are_read(monkeypatch):
    monkeypatch.setattr(_scan, "MAX_POOL", 60)
    monkeypatch.setattr(_scan, "sample_size", lambda n_features: 50)
    X = make_table()
    pools = []
    for scheduler in ("synchronous", "threads"):
        with dask.config.set(scheduler=scheduler):
            rows = streamed(X).rows
        np.testing.assert_array_equal(rows.pool.X, X[rows._pool_positions])
        pools.append(rows.pool.X)
    assert len(pools[0]) == 60
    np.testing.assert_array_equal(*pools)


def test_sample_of_some_rows_has_only_these(monkeypatch):
    monkeypatch.setattr(_scan, "MAX_POOL", 300)
    monkeypatch.setattr(_scan, "sample_size", lambda n_features: 50)
    X = make_table()
    rows = streamed(X, np.arange(1200.0) + 1).rows
    chosen = [(1, None), (3, np.arange(5, 90)), (6, np.array([0, 7]))]
    part = rows.of_parts(chosen)
    values = np.concatenate([block for _, block in part.blocks()])
    np.testing.assert_array_equal(
        part.pool.X[part.pool.index], values[part._pool_positions]
    )
    np.testing.assert_array_equal(part.pool.weight, part.weight[part._pool_positions])
    expected = {tuple(row) for row in values} & {tuple(row) for row in rows.pool.X}
    assert len(part.pool) == len(expected) > 30


# Held-out rows


def test_whole_partitions_are_held_out():
    X = make_table()
    parts = np.split(X, 20)
    rows = stream_rows(Partitions(parts), None).rows
    train, held_out = rows.divided(0.1, MAX_JUDGED_ROWS, seed=3)
    numbers = {part.number for part in train.parts}
    assert len(numbers) == 18
    rest = np.concatenate([part for i, part in enumerate(parts) if i not in numbers])
    np.testing.assert_array_equal(held_out.dense(slice(None)), rest)
    assert rows.divided(0.1, MAX_JUDGED_ROWS, seed=3)[1] is held_out
    others = [rows.divided(0.1, MAX_JUDGED_ROWS, seed)[0].parts for seed in range(4, 9)]
    assert any({part.number for part in other} != numbers for other in others)


@pytest.mark.parametrize(
    "sizes", [(1200,), (500, 700), (1, 1, 1198), (1100, *[20] * 5)]
)
def test_few_or_uneven_partitions_leave_most_rows_for_training(sizes):
    X = make_table()
    parts = np.split(X, np.cumsum(sizes)[:-1])
    rows = stream_rows(Partitions(parts), None).rows
    train, held_out = rows.divided(0.1, MAX_JUDGED_ROWS, seed=0)
    assert 20 <= len(held_out) <= 180
    assert len(train) + len(held_out) == 1200
    learnt = np.concatenate([block for _, block in train.blocks()])
    both = np.concatenate([learnt, held_out.dense(slice(None))])
    np.testing.assert_array_equal(np.sort(both, axis=0), np.sort(X, axis=0))


def test_number_of_judged_rows_is_limited():
    rows = stream_rows(Partitions(np.split(make_table(), 20)), None).rows
    train, held_out = rows.divided(0.1, 30, seed=0)
    assert len(held_out) == 30
    assert len(train) == 1080


# Batches


def batches_of(rows, size=32, seed=0, part=(0, 1)):
    return StreamedBatches(
        rows,
        size,
        lambda block: (torch.from_numpy(block), None),
        np.random.default_rng(seed),
        part=part,
    )


@pytest.mark.parametrize("part", [(0, 1), (0, 2), (1, 2)])
def test_generator_determines_the_next_epoch(part):
    rows = streamed(make_table(), np.arange(1200.0) + 1, "list of arrays").rows

    def epoch_of(batches):
        return torch.cat([batch.weight for batch in batches]).tolist()

    batches = batches_of(rows, part=part)
    first = epoch_of(batches)
    state = batches.rng.bit_generator.state
    second = epoch_of(batches)
    assert second != first
    other = batches_of(rows, seed=1, part=part)
    other.rng.bit_generator.state = state
    assert epoch_of(other) == second


@each_collection
def test_each_epoch_has_every_row_once_in_a_new_order(kind):
    X = make_table()
    rows = streamed(X, np.arange(1200.0) + 1, kind).rows
    batches = batches_of(rows)
    epochs = [list(batches) for _ in range(2)]
    for epoch in epochs:
        assert len(epoch) == len(batches)
        sizes = {batch.n_rows for batch in epoch}
        assert sizes <= {31, 32}
        values = np.concatenate([batch.target for batch in epoch])
        weight = np.concatenate([batch.weight for batch in epoch])
        order = weight.astype(int) - 1  # the weights are the numbers of the rows
        np.testing.assert_array_equal(np.sort(order), np.arange(1200))
        np.testing.assert_array_equal(values, X[order])
    first, second = (np.concatenate([b.target for b in epoch]) for epoch in epochs)
    assert not np.array_equal(first, second)
    again = np.concatenate([batch.target for batch in batches_of(rows)])
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("n_parts", [2, 3])
@each_collection
def test_parts_of_batches_have_every_row_once(kind, n_parts):
    X = make_table()
    rows = streamed(X, np.arange(1200.0) + 1, kind).rows
    parts = [batches_of(rows, part=(i, n_parts)) for i in range(n_parts)]
    whole = np.diff(batches_of(rows).bounds)
    for _ in range(2):
        epochs = [list(part) for part in parts]
        sizes = np.array([[batch.n_rows for batch in epoch] for epoch in epochs])
        np.testing.assert_array_equal(sizes.sum(axis=0), whole)
        assert np.ptp(sizes, axis=0).max() <= 1
        weight = np.concatenate([b.weight for epoch in epochs for b in epoch])
        order = weight.astype(int) - 1  # the weights are the numbers of the rows
        np.testing.assert_array_equal(np.sort(order), np.arange(1200))
        values = np.concatenate([b.target for epoch in epochs for b in epoch])
        np.testing.assert_array_equal(values, X[order])


@pytest.mark.parametrize("sizes", [(1200,), (700, 500), (100,) * 12])
def test_parts_share_few_partitions(sizes):
    parts = np.split(make_table(), np.cumsum(sizes)[:-1])
    rows = stream_rows(Partitions(parts), None).rows
    order = np.random.default_rng(0).permutation(len(sizes))
    spans = [rows.spans(order, low, low + 400) for low in (0, 400, 800)]
    counts = np.zeros(1200, dtype=int)
    for own in spans:
        for i, where in own.items():
            counts[rows.starts[i] : rows.starts[i + 1]][where] += 1
    assert (counts == 1).all()
    assert sum(map(len, spans)) <= len(sizes) + 2  # each end is in one partition


def test_batches_mix_partitions_and_their_order_changes():
    X = np.repeat(np.arange(12.0), 100)[:, None]
    batches = batches_of(stream_rows(Partitions(np.split(X, 12)), None).rows)
    firsts = []
    for _ in range(2):
        numbers = [np.unique(batch.target) for batch in batches]
        assert min(map(len, numbers)) >= 2
        assert np.median([len(each) for each in numbers]) >= streams.N_MIXED
        firsts.append(tuple(numbers[0]))
    assert firsts[0] != firsts[1]


def test_no_more_than_a_few_partitions_are_in_memory():
    class Counted(np.ndarray):
        alive = most = 0

        def __array_finalize__(self, other):
            pass

    class Stored(Sequence):
        def __len__(self):
            return 15

        def __getitem__(self, i):
            if not 0 <= i < 15:
                raise IndexError
            part = np.full((100, 2), float(i)).view(Counted)
            Counted.alive += 1
            Counted.most = max(Counted.most, Counted.alive)
            weak.append(weakref.finalize(part, decrease))
            return part

    weak = []

    def decrease():
        Counted.alive -= 1

    # `check_array` returns the memory of a plain view, which keeps the array alive.
    rows = stream_rows(Partitions(Stored()), None).rows
    gc.collect()
    Counted.most = Counted.alive
    for _ in batches_of(rows):
        pass
    assert 2 <= Counted.most <= streams.N_MIXED + 3


def test_waiting_time_is_logged(caplog):
    rows = streamed(make_table()).rows
    with caplog.at_level(logging.DEBUG, "skae"):
        list(batches_of(rows))
    (record,) = caplog.records
    assert 0 < record.waiting_time < record.epoch_time


# Both estimators


@pytest.mark.parametrize("kind", ["dask frame", "iterable", "one partition"])
def test_explained_variance_is_that_of_training_in_memory(kind):
    X = make_table()
    settings = {"max_epochs": 40, "batch_size": 64, "random_state": 0}
    scores = []
    for data in (COLLECTIONS[kind](X), X):
        model = AutoencoderTransformer(2, **settings).fit(data)
        has_names = hasattr(model, "feature_names_in_")
        scores.append(model.score(frame(X) if has_names else X))
    assert scores[0] == pytest.approx(scores[1], abs=0.01)
    assert scores[0] > 0.95


@pytest.mark.parametrize("missing", [False, True])
def test_start_is_the_pca_of_all_rows(missing):
    X = make_table(missing=missing)
    # No epoch counts, so that the initial weights remain.
    settings = {"max_epochs": 1, "learning_rate": 1e-30, "random_state": 0}
    rows = X[~np.isnan(X).all(axis=1)]
    models = [
        AutoencoderTransformer(2, **settings).fit(data)
        for data in (COLLECTIONS["dask array"](X), X)
    ]
    codes = [model.transform(rows) for model in models]
    np.testing.assert_allclose(*codes, atol=1e-4)
    np.testing.assert_allclose(models[0].mean_, models[1].mean_, rtol=1e-12)


def test_small_collections_give_the_fit_of_an_array(monkeypatch):
    monkeypatch.setattr(_streamed, "MAX_GATHERED", 2**20)
    X = make_table(300)
    expected = AutoencoderTransformer(2, **BRIEF).fit(X)
    for kind in ("dask array", "dask frame", "list of arrays", "generator function"):
        model = AutoencoderTransformer(2, **BRIEF).fit(COLLECTIONS[kind](X))
        np.testing.assert_array_equal(
            model.reconstruct(frame(X) if kind == "dask frame" else X),
            expected.reconstruct(X),
        )


def test_the_same_seed_gives_the_same_model():
    X = make_table()
    codes = []
    for scheduler in ("synchronous", "threads"):
        with dask.config.set(scheduler=scheduler):
            model = AutoencoderTransformer(2, **BRIEF)
            codes.append(model.fit(COLLECTIONS["dask frame"](X)).transform(frame(X)))
    np.testing.assert_array_equal(*codes)
    model.set_params(random_state=1).fit(COLLECTIONS["dask frame"](X))
    assert not np.array_equal(model.transform(frame(X)), codes[0])


def test_names_and_types_are_those_of_the_partitions():
    X = make_table().astype(np.float32)
    model = AutoencoderTransformer(2, **BRIEF).fit(COLLECTIONS["dask frame"](X))
    assert model.feature_names_in_.tolist() == NAMES
    assert model.n_features_in_ == 7
    assert model.transform(frame(X)).dtype == np.float32
    with pytest.raises(ValueError, match="feature names should match"):
        model.transform(frame(X)[NAMES[::-1]])
    unnamed = AutoencoderTransformer(2, **BRIEF).fit(COLLECTIONS["dask array"](X))
    assert not hasattr(unnamed, "feature_names_in_")


VARIANTS = [
    {"corruption": "masking"},
    {"penalty": "l1", "n_components": 4},
    {"bottleneck": "gaussian"},
    {"bottleneck": "quantized"},
    {"ordered": True},
    {"n_components": 0.9},
    {"whiten": True},
    {"loss": "mixed"},
    {"early_stopping": False},
    {"init": "random", "trim": 0.1},
    {"network": "conv", "input_shape": (7,)},
    {"network": Custom(encoder_factory, decoder_factory)},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_variants_learn_from_partitions(variant):
    X = make_table(missing=True)
    settings = {"n_components": 2, **BRIEF, **variant}
    model = AutoencoderTransformer(**settings).fit(COLLECTIONS["dask array"](X))
    assert model.n_iter_ >= 1
    known = X[~np.isnan(X).all(axis=1)]
    assert np.isfinite(model.transform(known)).all()
    if "whiten" in variant:
        codes = model.transform(known)
        np.testing.assert_allclose(codes.mean(axis=0), 0, atol=1e-6)
        np.testing.assert_allclose(codes.var(axis=0, ddof=1), 1, atol=1e-6)
    if model.bottleneck in ("gaussian", "quantized"):
        name = {"gaussian": "active_units_", "quantized": "perplexity_"}
        assert len(getattr(model, name[model.bottleneck])) >= 1
    if model.bottleneck == "gaussian":
        rows = model.sample(1000, random_state=0)
        np.testing.assert_allclose(rows.mean(axis=0), np.nanmean(X, axis=0), atol=0.5)


def test_convolutions_learn_images_from_partitions(digits):
    parts = np.array_split(digits[:600], 6)
    settings = {"network": "conv", "input_shape": (8, 8), **BRIEF}
    model = AutoencoderTransformer(4, **settings).fit(parts)
    assert model.score(digits) > 0.4


def test_a_list_of_images_is_refused_as_before(digits):
    images = list(digits.reshape(-1, 8, 8))
    for shape in (None, (8, 8)):
        model = AutoencoderTransformer(network="conv", input_shape=shape)
        with pytest.raises(ValueError, match=r"reshape\(X, "):
            model.fit(images)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"early_stopping": True},
        {"n_neighbors": 0},
        {"n_estimators": 1},
        {"contamination": 0.05, "bottleneck": "gaussian"},
    ],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
def test_training_scores_are_those_of_the_same_model(settings, weighted):
    X = make_table(missing=True)
    weight = None
    if weighted:
        weight = np.random.default_rng(1).integers(0, 3, len(X)).astype(float)
    model = AutoencoderOutlierDetector(max_epochs=3, random_state=0, **settings)
    model.fit(COLLECTIONS["dask array"](X), sample_weight=weight)
    np.testing.assert_allclose(
        model.training_scores_, model.score_samples(X), rtol=1e-9
    )
    if "contamination" in settings:
        used = np.ones(len(X)) if weight is None else weight
        used = used * ~np.isnan(X).all(axis=1)
        flagged = np.average(model.predict(X) == -1, weights=used)
        assert flagged == pytest.approx(0.05, abs=0.002)
    if model.module_.n_members > 1 and "bottleneck" not in settings:
        others = make_table(200, seed=1, missing=True)
        p_values = model.p_values(others)
        model.fit(X, sample_weight=weight)
        assert p_values.mean() == pytest.approx(model.p_values(others).mean(), abs=0.02)


def test_detectors_find_the_same_outliers_as_in_memory():
    X = make_table()
    X[:20] += 6 * np.random.default_rng(2).normal(size=(20, 7))
    settings = {"contamination": 0.02, "random_state": 0}
    one = AutoencoderOutlierDetector(**settings).fit_predict(np.array_split(X, 9))
    other = AutoencoderOutlierDetector(**settings).fit_predict(X)
    assert np.mean(one != other) < 0.01
    assert set(np.unique(one)) == {-1, 1}


def test_weights_may_be_a_dask_array():
    X = make_table()
    weight = np.random.default_rng(1).integers(0, 3, len(X)).astype(float)
    codes = [
        AutoencoderTransformer(2, **BRIEF)
        .fit(COLLECTIONS["dask array"](X), sample_weight=given)
        .transform(X)
        for given in (weight, da.from_array(weight, chunks=100))
    ]
    np.testing.assert_array_equal(*codes)
    model = AutoencoderTransformer(2, **BRIEF)
    with pytest.raises(ValueError, match="sample_weight"):
        model.fit(COLLECTIONS["dask array"](X), sample_weight=weight[:-1])


@pytest.mark.parametrize("n_parts", [2, 5])  # of different lengths, and of equal ones
@pytest.mark.parametrize("kind", ["dask array", "list of arrays", "array"])
@pytest.mark.parametrize("container", [list, tuple])
def test_weights_are_not_in_partitions(kind, n_parts, container):
    X = make_table(1001 if n_parts == 2 else 1000)
    weight = container(np.array_split(np.ones(len(X)), n_parts))
    data = X if kind == "array" else COLLECTIONS[kind](X)
    with pytest.raises(ValueError, match=r"np\.concatenate\(sample_weight\)"):
        AutoencoderTransformer(2, **BRIEF).fit(data, sample_weight=weight)


def test_weights_of_zero_leave_rows_out():
    X = make_table()
    X[::3] += 1000
    weight = np.where(np.arange(1200) % 3, 1.0, 0.0)
    model = AutoencoderTransformer(2, **BRIEF)
    model.fit(np.array_split(X, 7), sample_weight=weight)
    np.testing.assert_allclose(model.mean_, X[weight > 0].mean(axis=0))


def test_warm_start_goes_on():
    X = make_table()
    model = AutoencoderTransformer(2, warm_start=True, **BRIEF)
    model.fit(COLLECTIONS["dask array"](X))
    before = model.n_iter_
    model.fit(COLLECTIONS["dask array"](X))
    assert model.n_iter_ > before


def test_rows_for_validation_may_be_an_array():
    X = make_table()
    model = AutoencoderTransformer(2, **BRIEF)
    model.fit(np.array_split(X, 7), X_val=make_table(100, seed=1))
    assert model.validation_loss_curve_ is not None
    with pytest.raises(TypeError, match=r"X_val\.compute"):
        model.fit(np.array_split(X, 7), X_val=COLLECTIONS["dask array"](X))


def test_pipelines_pass_partitions_on():
    model = make_pipeline(FunctionTransformer(), AutoencoderTransformer(2, **BRIEF))
    model.fit(COLLECTIONS["dask frame"](make_table()))
    assert model[-1].n_features_in_ == 7


# Errors


def fails_at(number, error):
    parts = np.array_split(make_table(), 7)

    def load():
        for i, part in enumerate(parts):
            if i == number and fails_at.armed:
                raise error
            yield part

    return load


@pytest.mark.parametrize("armed", [True, False], ids=["first pass", "later pass"])
def test_errors_of_loading_are_raised_and_no_thread_is_left(armed, monkeypatch):
    fails_at.armed = armed
    if not armed:  # fails from the second pass on
        scan = _streamed.stream_rows

        def arm(*args):
            result = scan(*args)
            fails_at.armed = True
            return result

        monkeypatch.setattr("skae._tables.stream_rows", arm)
    model = AutoencoderTransformer(2, **BRIEF)
    with pytest.raises(OSError, match="disk"):
        model.fit(fails_at(4, OSError("no disk")))
    assert not hasattr(model, "net_")
    assert not [t for t in threading.enumerate() if t.name.startswith("skae")]


@pytest.fixture
def default_sigint():
    """Python's handler, which a process in the background of a shell does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupt_leaves_a_fitted_model_and_no_thread(default_sigint):
    class Interrupts(Callback):
        def on_epoch_end(self, net, **kwargs):
            signal.raise_signal(signal.SIGINT)

    model = AutoencoderTransformer(2, **{**BRIEF, "callbacks": [Interrupts()]})
    with pytest.raises(KeyboardInterrupt):
        model.fit(COLLECTIONS["dask array"](make_table()))
    assert model.n_iter_ == 1
    assert not [t for t in threading.enumerate() if t.name.startswith("skae")]


def test_errors_of_callbacks_leave_no_thread():
    class Raises(Callback):
        def on_batch_end(self, net, **kwargs):
            raise RuntimeError("callback")

    model = AutoencoderTransformer(2, **BRIEF, callbacks=[Raises()])
    with pytest.raises(RuntimeError, match="callback"):
        model.fit(COLLECTIONS["dask array"](make_table()))
    assert not [t for t in threading.enumerate() if t.name.startswith("skae")]


def other_columns():
    parts = [frame(part) for part in np.array_split(make_table(), 4)]
    parts[2] = parts[2].rename(columns={"c": "z"})
    return parts


def with_part(number, change):
    parts = np.array_split(make_table(), 4)
    parts[number] = change(parts[number])
    return parts


def infinite(part):
    part = part.copy()
    part[0, 0] = np.inf
    return part


def returning(value):
    return lambda: value


class OneIterator:
    """Iterable that can be read only once."""

    def __init__(self, parts):
        self.iterator = iter(parts)

    def __iter__(self):
        return self.iterator


INVALID = {
    "names": (other_columns, ValueError, "partition 2 of X has the columns"),
    "width": (
        lambda: with_part(3, lambda part: part[:, :5]),
        ValueError,
        "partition 3 of X has 5",
    ),
    "type": (
        lambda: with_part(1, lambda part: part.astype(np.float32)),
        ValueError,
        "partition 1 of X has float32",
    ),
    "infinite": (lambda: with_part(2, infinite), ValueError, "partition 2 of X"),
    "axes": (lambda: with_part(2, np.ravel), ValueError, "partition 2 of X"),
    "text": (
        lambda: with_part(2, lambda part: part.astype(str).astype(object) + "x"),
        ValueError,
        "partition 2 of X",
    ),
    "gradient": (
        lambda: (
            lambda: iter(
                with_part(2, lambda part: torch.tensor(part, requires_grad=True))
            )
        ),
        TypeError,
        "partition 2 of X is a tensor that requires grad",
    ),
    "complex": (
        lambda: with_part(2, lambda part: part * 1j),
        ValueError,
        "partition 2 of X",
    ),
    "sparse": (
        lambda: with_part(1, sparse.csr_array),
        TypeError,
        "partition 1 of X is a sparse matrix",
    ),
    "generator": (
        lambda: (part for part in np.array_split(make_table(), 4)),
        TypeError,
        "can be iterated only once",
    ),
    "iterator": (
        lambda: iter(np.array_split(make_table(), 4)),
        TypeError,
        "can be iterated only once",
    ),
    "no partition": (lambda: Readable(), ValueError, "X has no partition"),
    "no iterator": (lambda: lambda: 3, TypeError, "function that returns an iterator"),
    "function of an array": (lambda: make_table, TypeError, "returned one ndarray"),
    "function of a frame": (
        lambda: lambda: frame(make_table()),
        TypeError,
        "returned one DataFrame",
    ),
    "function of one iterator": (
        lambda: returning(iter(np.array_split(make_table(), 4))),
        TypeError,
        "can be iterated only once",
    ),
    "iterable of one iterator": (
        lambda: OneIterator(np.array_split(make_table(), 4)),
        TypeError,
        "can be iterated only once",
    ),
    "bag": (
        lambda: dask.delayed(make_table)(),
        TypeError,
        "which has no rows and columns",
    ),
    "one axis": (
        lambda: da.from_array(np.zeros(900), chunks=100),
        ValueError,
        "Expected a 2-dimensional array",
    ),
    "three axes": (
        lambda: da.zeros((50, 4, 4), chunks=10),
        ValueError,
        r"reshape\(X, \(50, -1\)\)",
    ),
    "huge": (
        lambda: with_part(2, lambda part: part * 1e200),
        ValueError,
        "too large for their variance",
    ),
    "missing column": (
        lambda: np.array_split(make_table() * [1, 1, np.nan, 1, 1, 1, 1], 4),
        ValueError,
        "no observed value",
    ),
}


@pytest.mark.parametrize(
    "Estimator", [AutoencoderTransformer, AutoencoderOutlierDetector]
)
@pytest.mark.parametrize("case", INVALID)
def test_invalid_partitions_are_refused(Estimator, case):
    make, error, message = INVALID[case]
    model = Estimator(**BRIEF)
    with pytest.raises(error, match=message):
        model.fit(make())
    assert not hasattr(model, "n_features_in_")


CHANGES = {
    "rows lost": lambda parts: [*parts[:-1], parts[-1][1:]],
    "partition lost": lambda parts: parts[:-1],
    "partition added": lambda parts: [*parts, parts[0]],
}


# One pass reads the example and one, or with weights two, measures the table; after
# the first complete one, another begins.
@pytest.mark.parametrize("n_same", [3, 4, 5])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_partitions_that_change_between_passes_are_refused(change, weighted, n_same):
    passes = []

    def load():
        passes.append(0)
        parts = np.array_split(make_table(), 7)
        return iter(parts if len(passes) <= n_same else CHANGES[change](parts))

    model = AutoencoderTransformer(2, early_stopping=False, **BRIEF)
    weight = np.ones(1200) + np.arange(1200) % 2 if weighted else None
    with pytest.raises(ValueError, match="Each iteration over X must return"):
        model.fit(load, sample_weight=weight)


class Exhausted:
    """Iterable that returns one iterator each time."""

    def __init__(self, parts):
        self.parts = iter(parts)

    def __iter__(self):
        return self.parts


def function_of_one_generator(parts):
    generator = (part for part in parts)
    return lambda: generator


def function_of_views_of_one_generator(parts):
    generator = (part for part in parts)
    return lambda: map(np.asarray, generator)


@pytest.mark.parametrize("max_gathered", [100, 2**24])
@pytest.mark.parametrize(
    "make", [Exhausted, function_of_one_generator, function_of_views_of_one_generator]
)
def test_what_can_be_iterated_once_is_refused(make, max_gathered, monkeypatch):
    monkeypatch.setattr(_streamed, "MAX_GATHERED", max_gathered)
    model = AutoencoderTransformer(2, **BRIEF)
    with pytest.raises(TypeError, match="can be iterated only once"):
        model.fit(make(split_at(make_table(), *UNEVEN)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_partitions_may_be_tensors(dtype):
    tensors = [torch.tensor(part).to(dtype) for part in split_at(make_table(), *UNEVEN)]
    arrays = [np.asarray(part.tolist()).reshape(-1, 7) for part in tensors]
    if dtype == torch.float32:
        arrays = [part.astype(np.float32) for part in arrays]
    model = AutoencoderTransformer(2, **BRIEF)
    for is_list in (False, True):
        make = list if is_list else lambda parts: lambda: iter(parts)
        codes = [model.fit(make(x)).transform(arrays[0]) for x in (tensors, arrays)]
        np.testing.assert_array_equal(*codes)


@pytest.mark.parametrize("empty", [np.empty((0, 7)), frame(np.empty((0, 7)))])
@pytest.mark.parametrize("max_gathered", [100, 2**24])
def test_empty_partitions_may_have_another_type(empty, max_gathered, monkeypatch):
    monkeypatch.setattr(_streamed, "MAX_GATHERED", max_gathered)
    parts = split_at(make_table().astype(np.float32), *UNEVEN)
    if hasattr(empty, "columns"):
        parts = [frame(part) for part in parts]
        empty = empty.astype(object)
    model = AutoencoderTransformer(2, **BRIEF).fit([*parts, empty])
    assert model.transform(parts[0]).dtype == np.float32


class Closed:
    """Iterator over partitions that counts how many of its kind are open."""

    n_open = 0

    def __init__(self, parts):
        self.parts = iter(parts)
        self.is_open = True
        Closed.n_open += 1

    def __iter__(self):
        return self

    def __next__(self):
        try:
            return next(self.parts)
        except StopIteration:
            self.close()
            raise

    def close(self):
        Closed.n_open -= self.is_open
        self.is_open = False


@pytest.mark.parametrize("max_gathered", [100, 2**24])
def test_iterators_are_closed(max_gathered, monkeypatch):
    monkeypatch.setattr(_streamed, "MAX_GATHERED", max_gathered)
    parts = split_at(make_table(), *UNEVEN)
    AutoencoderTransformer(2, **BRIEF).fit(lambda: Closed(parts))
    assert Closed.n_open == 0


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
@pytest.mark.parametrize("max_gathered", [100, 2**24])
def test_partitions_may_use_the_same_memory(dtype, max_gathered, monkeypatch):
    monkeypatch.setattr(_streamed, "MAX_GATHERED", max_gathered)
    parts = np.split((100 * make_table()).astype(dtype), 8)

    def overwriting():
        buffer = np.empty_like(parts[0])
        for part in parts:
            buffer[:] = part
            yield buffer

    model = AutoencoderTransformer(2, **BRIEF)
    codes = [
        model.fit(data).transform(parts[0])
        for data in (overwriting, lambda: iter(parts))
    ]
    np.testing.assert_array_equal(*codes)


@pytest.mark.parametrize("kind", ["dask array", "dask frame", "list of arrays"])
def test_other_methods_refuse_partitions_before_any_work(kind):
    X = make_table()
    data = COLLECTIONS[kind](X)
    transformer = AutoencoderTransformer(2, **BRIEF)
    with pytest.raises(TypeError, match=r"skae\.distributed\.map_rows"):
        transformer.fit_transform(data)
    assert not hasattr(transformer, "n_features_in_")
    for model in (transformer, AutoencoderOutlierDetector(**BRIEF)):
        with pytest.raises(TypeError, match="one partition at a time"):
            model.partial_fit(data)
    transformer.fit(X)
    for method in ("transform", "reconstruct", "score_samples", "score"):
        with pytest.raises(TypeError, match=r"skae\.distributed\.map_rows"):
            getattr(transformer, method)(data)


def test_nested_lists_and_lists_of_rows_are_tables():
    X = make_table(40)
    codes = [
        AutoencoderTransformer(2, **BRIEF).fit(data).transform(X)
        for data in (X, X.tolist(), list(X), tuple(X), deque(X), [list(x) for x in X])
    ]
    for other in codes[1:]:
        np.testing.assert_array_equal(codes[0], other)


def test_workers_of_a_cluster_read_the_partitions():
    distributed = pytest.importorskip("distributed")
    X = make_table()
    model = AutoencoderTransformer(2, **BRIEF)
    expected = model.fit(COLLECTIONS["dask array"](X)).transform(X)
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    )
    with (
        dask.config.set(scheduler=None),
        cluster,
        distributed.Client(cluster),
    ):
        codes = model.fit(COLLECTIONS["dask array"](X)).transform(X)
    np.testing.assert_array_equal(codes, expected)
