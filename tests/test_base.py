"""What both estimators share: inputs, randomness, faults, persistence."""

import copy
import pickle
import re
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from devices import assert_same_values, device_of
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from skorch.callbacks import Callback, Freezer, GradientNormClipping, LRScheduler
from torch import nn

from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae.bottlenecks import Bottleneck, Gaussian, Quantized, Squeeze
from skae.corruptions import Corruption, Masking
from skae.engine.trainer import Trainer
from skae.losses import Huber, Loss, Mixed
from skae.networks import MLP, Conv, Custom
from skae.penalties import Contractive, KLSparsity

STATUS = Path("/proc/self/status")
BRIEF = {"hidden_layer_sizes": (8,), "max_epochs": 4, "random_state": 0}
ESTIMATORS = [AutoencoderTransformer, AutoencoderOutlierDetector]


def is_detector(estimator):
    return estimator is AutoencoderOutlierDetector


# One setting of each kind, and all of them together.
FAMILY = [
    {"network": "conv"},
    {"bottleneck": "gaussian"},
    {"bottleneck": Quantized(4, 1)},
    {"corruption": "gaussian"},
    {"corruption": "masking"},
    {"corruption": "swap"},
    {"corruption": "salt_and_pepper"},
    {"penalty": "l1"},
    {"penalty": "kl"},
    {"penalty": Contractive(n_projections=2)},
    {
        "network": "conv",
        "bottleneck": "gaussian",
        "corruption": "swap",
        "penalty": "contractive",
    },
]


def is_slow(member):
    """Whether the tests of a setting are left out of the default run."""
    return "network" in member or isinstance(member.get("penalty"), Contractive)


each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS)
# Convolutions and products of Jacobians take most of the time.
each_member = pytest.mark.parametrize(
    "member",
    [
        pytest.param(
            member,
            id="-".join(map(str, member.values())),
            marks=[pytest.mark.slow] if is_slow(member) else [],
        )
        for member in FAMILY
    ],
)


@pytest.fixture(scope="module")
def X():
    rng = np.random.default_rng(0)
    t = rng.normal(size=(60, 2))
    return t @ rng.normal(size=(2, 5)) + 0.1 * rng.normal(size=(60, 5))


def output(model, X):
    """What the estimator is for, as an array."""
    return model.transform(X) if hasattr(model, "transform") else model.predict(X)


# Inputs


@each_estimator
@pytest.mark.parametrize(
    "convert",
    [
        lambda X: X.tolist(),
        np.asfortranarray,
        pd.DataFrame,
        lambda X: pl.DataFrame(X, schema=[f"column_{i}" for i in range(X.shape[1])]),
        sparse.csr_array,
        sparse.csc_array,
        sparse.csr_matrix,
        lambda X: X[::-1][::-1],
    ],
    ids=["list", "fortran", "pandas", "polars", "csr", "csc", "csr_matrix", "view"],
)
def test_containers_give_the_same_model(estimator, convert, X):
    model = estimator(1, early_stopping=False, **BRIEF)
    plain, other = clone(model).fit(X), clone(model).fit(convert(X))
    assert_allclose(
        plain.reconstruct(X), other.reconstruct(convert(X)), rtol=1e-4, atol=1e-5
    )


@each_estimator
def test_integers_are_read_as_float64(estimator, digits):
    rows = digits[:100].astype(int)
    model = estimator(2, **BRIEF).fit(rows)
    assert model.reconstruct(rows).dtype == np.float64
    assert_array_equal(
        model.reconstruct(rows),
        estimator(2, **BRIEF).fit(digits[:100]).reconstruct(digits[:100]),
    )


@each_estimator
def test_read_only_memory_map_is_enough(estimator, X, tmp_path):
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    model = estimator(1, **BRIEF).fit(mapped)
    assert_array_equal(
        model.reconstruct(mapped), estimator(1, **BRIEF).fit(X).reconstruct(X)
    )


@each_estimator
def test_input_is_not_changed(estimator, X):
    X = X.copy()
    X[0, 0] = np.nan
    weight = np.arange(len(X), dtype=float)
    before = X.copy(), weight.copy()
    model = estimator(1, **BRIEF).fit(X, sample_weight=weight)
    model.reconstruct(X)
    model.score_samples(X)
    assert_array_equal(X, before[0])
    assert_array_equal(weight, before[1])


@each_estimator
def test_model_keeps_no_row(estimator, X):
    marked = np.column_stack([X, np.full(len(X), 123456.789)])
    marked[:, -1] += np.arange(len(X))
    model = estimator(1, **BRIEF).fit(marked)
    assert marked[7, -1].tobytes() not in pickle.dumps(model)


@each_estimator
def test_missing_entries_do_not_count_in_the_score(estimator, X):
    holes = X.copy()
    holes[::4, 2] = np.nan
    plain = {"n_estimators": 1, "error": "loss", "n_neighbors": 0}
    plain = plain if is_detector(estimator) else {}
    model = estimator(2, loss="squared_error", **plain, **BRIEF).fit(holes)
    factor = model.module_.scaler.factor.numpy(force=True)
    scaled = (holes - model.reconstruct(holes)) / factor
    scores, expected = model.score_samples(holes), -np.nanmean(scaled**2, axis=1)
    if not is_detector(estimator):
        # The scores of incomplete rows are expected ones, of several completions.
        assert (scores[::4] < expected[::4]).all()
        scores[::4] = expected[::4]
    assert_allclose(scores, expected, rtol=1e-5)


def test_missing_entries_are_filled_in_from_the_others():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 2)) @ rng.normal(size=(2, 5))
    is_missing = rng.random(X.shape) < 0.1
    holes = np.where(is_missing, np.nan, X)
    ae = AutoencoderTransformer(2, max_epochs=50, random_state=0).fit(holes)
    error = np.abs(ae.reconstruct(holes) - X)[is_missing].mean()
    assert error < 0.5 * np.abs(np.nanmean(holes, axis=0) - X)[is_missing].mean()


@each_estimator
def test_row_without_any_entry_gets_the_median_score(estimator, X):
    model = estimator(1, **BRIEF).fit(X)
    lost = np.full((1, 5), np.nan)
    median = np.median(model.score_samples(X))
    assert_allclose(model.score_samples(lost), median, rtol=0.1)
    assert np.isfinite(model.reconstruct(lost)).all()


@each_estimator
def test_column_that_is_always_missing_is_refused_by_name(estimator, X):
    frame = pd.DataFrame(X, columns=list("abcde"))
    frame["d"] = np.nan
    with pytest.raises(ValueError, match=r"no observed value.* d\."):
        estimator(1, **BRIEF).fit(frame)
    holes = X.copy()
    holes[10:, 3] = np.nan
    with pytest.raises(ValueError, match=r"no observed value.* 3\."):
        estimator(1, **BRIEF).fit(holes, sample_weight=np.arange(60) >= 10)


@each_estimator
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinity_is_refused_in_fit_and_in_use(estimator, value, X):
    bad = X.copy()
    bad[3, 3] = value
    with pytest.raises(ValueError, match="infinity"):
        estimator(1, **BRIEF).fit(bad)
    model = estimator(1, **BRIEF).fit(X)
    for method in (model.reconstruct, model.score_samples, model.partial_fit):
        with pytest.raises(ValueError, match="infinity"):
            method(bad)
    with pytest.raises(ValueError, match="infinity"):
        model.reconstruct(sparse.csr_array(bad))


@each_estimator
def test_values_too_large_to_be_squared_are_refused(estimator, X):
    with pytest.raises(ValueError, match="too large"):
        estimator(1, **BRIEF).fit(X * 1e200)


@each_estimator
@pytest.mark.parametrize(
    "shape", [(1, 5), (2, 5), (3, 1), (2, 1), (1, 1), (4, 9)], ids=str
)
def test_small_tables_fit(estimator, shape):
    rows = np.random.default_rng(0).normal(size=shape)
    model = estimator(6, **BRIEF).fit(rows)
    assert np.isfinite(model.reconstruct(rows)).all()
    assert model.n_components_ == 6


@each_estimator
def test_constant_columns_come_back_exactly(estimator, X):
    rows = np.column_stack([X, np.full(len(X), 0.1), np.zeros(len(X))])
    model = estimator(2, init="pca", early_stopping=False, **BRIEF).fit(rows)
    assert_allclose(model.reconstruct(rows)[:, 5:], rows[:, 5:], atol=1e-6)


@each_estimator
@pytest.mark.parametrize("convert", [np.asarray, sparse.csr_array])
def test_wide_constant_table_fits(estimator, convert):
    rows = convert(np.full((5, 1100), 0.1))
    model = estimator(1, init="pca", **BRIEF).fit(rows)
    assert_allclose(model.reconstruct(rows), 0.1, atol=1e-6)


@each_estimator
def test_last_batch_of_one_row_does_not_break_batch_normalisation(estimator, X):
    network = Custom(
        nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)),
        nn.Linear(1, 5),
    )
    model = estimator(
        1, network=network, batch_size=8, early_stopping=False, max_epochs=2
    )
    assert np.isfinite(model.fit(X[:9]).reconstruct(X)).all()


def test_large_offset_costs_no_precision(X):
    near = AutoencoderTransformer(1, **BRIEF).fit(X)
    far = AutoencoderTransformer(1, **BRIEF).fit(X + 1e6)
    assert_allclose(near.score(X), far.score(X + 1e6), atol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="needs the memory in /proc")
def test_wide_sparse_table_is_never_made_dense():
    # The peak of `resource.getrusage` includes that of the process that started it.
    script = """
    import re
    import warnings
    from pathlib import Path
    import numpy as np
    from scipy import sparse
    from sklearn.exceptions import ConvergenceWarning
    from skae import AutoencoderTransformer

    rng = np.random.default_rng(0)
    shape, n_stored = (20_000, 20_000), 400_000
    where = tuple(rng.integers(size, size=n_stored) for size in shape)
    X = sparse.csr_array((rng.random(n_stored), where), shape=shape)
    warnings.simplefilter("ignore", ConvergenceWarning)  # after one epoch
    ae = AutoencoderTransformer(2, max_epochs=1, random_state=0)
    print(ae.fit(X).transform(X).shape)
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 2**20)
    """
    shape, peak = run_python(script).split("\n")[:2]
    assert shape == "(20000, 2)"
    assert float(peak) < 1.1  # GiB; dense, the table alone takes 3


@pytest.mark.parametrize("container", [sparse.csr_array, sparse.csr_matrix])
def test_sparse_rows_without_stored_entries_are_scored(container):
    rows = (np.random.default_rng(0).random((40, 4)) < 0.3).astype(float)
    ae = AutoencoderTransformer(1, loss="binary_cross_entropy", **BRIEF).fit(rows)
    zeros = np.zeros((2, 4))
    assert_allclose(ae.score_samples(container(zeros)), ae.score_samples(zeros))


@pytest.mark.parametrize(
    "columns", [pd.Index(["a", "b"]), pd.Series([True, True, False])]
)
def test_training_continues_with_columns_named_by_pandas(columns):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"a": rng.integers(0, 2, 40), "b": rng.integers(0, 2, 40), "c": rng.random(40)}
    )
    ae = AutoencoderTransformer(1, loss=Mixed(columns), warm_start=True, **BRIEF)
    assert ae.fit(frame).partial_fit(frame).n_iter_ > 0


# Weights and order


@each_estimator
@pytest.mark.parametrize("container", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("network", ["mlp", MLP((8,), dropout=0.2)])
def test_weights_are_repetitions_and_order_is_nothing(estimator, container, network, X):
    weight = np.arange(len(X)) % 4
    shuffled = np.random.default_rng(0).permutation(len(X))
    model = estimator(1, network=network, batch_size=7, max_epochs=4, random_state=0)
    weighted = clone(model).fit(container(X), sample_weight=weight)
    repeated = clone(model).fit(container(np.repeat(X, weight, axis=0)))
    permuted = clone(model).fit(container(X[shuffled]), sample_weight=weight[shuffled])
    for other in (repeated, permuted):
        assert_array_equal(weighted.reconstruct(X), other.reconstruct(X))
        assert getattr(weighted, "offset_", 0) == getattr(other, "offset_", 0)


@each_estimator
@each_member
def test_weights_are_repetitions_throughout_the_family(estimator, member, X):
    weight = np.arange(len(X)) % 4
    model = estimator(1, batch_size=7, **BRIEF, **member)
    weighted = clone(model).fit(X, sample_weight=weight)
    repeated = clone(model).fit(np.repeat(X, weight, axis=0)[::-1])
    assert_array_equal(weighted.reconstruct(X), repeated.reconstruct(X))
    assert getattr(weighted, "offset_", 0) == getattr(repeated, "offset_", 0)


@each_estimator
def test_weights_matter(estimator, X):
    weight = np.where(X[:, 0] > 0, 100, 1)
    heavy = estimator(1, **BRIEF).fit(X, sample_weight=weight)
    assert_allclose(heavy.mean_, np.average(X, axis=0, weights=weight))
    assert (
        np.abs(heavy.reconstruct(X) - estimator(1, **BRIEF).fit(X).reconstruct(X)).max()
        > 0.01
    )


@each_estimator
def test_negative_weights_are_refused(estimator, X):
    with pytest.raises(ValueError, match="Negative values"):
        estimator(1, **BRIEF).fit(X, sample_weight=-np.ones(len(X)))


# Randomness


@each_estimator
def test_same_seed_gives_the_same_model_and_another_seed_another(estimator, X):
    first, again, other = (
        estimator(1, init="random", **{**BRIEF, "random_state": seed})
        .fit(X)
        .reconstruct(X)
        for seed in (0, 0, 1)
    )
    assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@each_estimator
@pytest.mark.parametrize(
    "network",
    [
        "mlp",
        MLP(dropout=0.1),
        MLP(activation=nn.RReLU),
        Custom(
            lambda d, k: nn.Sequential(nn.Linear(d, k), nn.Dropout(0.1)),
            lambda d, k: nn.Linear(k, d),
        ),
    ],
)
def test_global_random_states_stay_as_they_are(estimator, network, X):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    model = estimator(1, network=network, max_epochs=2, random_state=0)
    model.fit(X).partial_fit(X)
    output(model, X)
    model.score_samples(X)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert_array_equal(np.random.get_state()[1], numpy_state[1])
    assert np.random.get_state()[2] == numpy_state[2]


@each_member
def test_the_family_draws_from_the_random_state_alone(member, X):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    ae = AutoencoderTransformer(1, **BRIEF, **member).fit(X)
    again = clone(ae).fit(X)
    assert_array_equal(ae.transform(X), again.transform(X))
    other = clone(ae).set_params(random_state=1).fit(X)
    assert ae.loss_curve_ != other.loss_curve_
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert_array_equal(np.random.get_state()[1], numpy_state[1])
    assert np.random.get_state()[2] == numpy_state[2]


def test_no_random_state_draws_from_the_global_generator(X):
    ae = AutoencoderTransformer(1, init="random", **{**BRIEF, "random_state": None})
    np.random.seed(0)
    first = ae.fit_transform(X)
    assert not np.array_equal(ae.fit_transform(X), first)
    np.random.seed(0)
    assert_array_equal(ae.fit_transform(X), first)


def test_custom_networks_fitted_in_threads_do_not_disturb_each_other(X):
    network = Custom(
        lambda d, k: nn.Sequential(nn.Linear(d, 4), nn.Dropout(0.5), nn.Linear(4, k)),
        lambda d, k: nn.Linear(k, d),
    )
    ae = AutoencoderTransformer(1, network=network, max_epochs=5, random_state=0)
    expected = clone(ae).fit_transform(X)
    found = joblib.Parallel(n_jobs=3, backend="threading")(
        joblib.delayed(clone(ae).fit_transform)(X) for _ in range(3)
    )
    for Z in found:
        assert_array_equal(Z, expected)


# Training


def test_early_stopping_returns_the_epoch_with_the_lowest_validation_loss(X):
    ae = AutoencoderTransformer(
        1,
        init="random",
        hidden_layer_sizes=(8,),
        early_stopping=True,
        random_state=2,
    )
    ae.fit(X)
    best = int(np.argmin(ae.validation_loss_curve_)) + 1
    assert ae.net_.best_epoch_ == best
    assert ae.n_iter_ == len(ae.loss_curve_) == len(ae.validation_loss_curve_)
    assert best < ae.n_iter_ < 1000


def count_trainings(monkeypatch):
    """A list that fills with the splits of all further trainings."""
    splits = []
    run = Trainer.run

    def spy(trainer):
        splits.append(trainer.split)
        return run(trainer)

    monkeypatch.setattr(Trainer, "run", spy)
    return splits


def test_small_tables_are_cross_validated(monkeypatch):
    t = np.linspace(-1, 1, 60)
    curve = np.column_stack([t, t**2, t**3])
    splits = count_trainings(monkeypatch)
    ae = AutoencoderTransformer(1, max_epochs=60, random_state=0).fit(curve)
    (split,) = splits
    assert split.held_out is None
    assert len(split.train) == 60
    assert_array_equal(np.bincount(split.fold), [12] * 5)
    assert ae.n_iter_ == len(ae.net_.history) >= ae.net_.best_epoch_ >= 1
    assert ae.n_iter_ == len(ae.loss_curve_) == len(ae.validation_loss_curve_) <= 60
    assert ae.score(curve) > PCA(1).fit(curve).explained_variance_ratio_.sum() + 0.05


def test_cross_validation_keeps_a_start_without_significant_gain(X):
    noise = np.random.default_rng(0).normal(size=(50, 8))
    ae = AutoencoderTransformer(2, max_epochs=20, random_state=0).fit(noise)
    pca = PCA(2).fit(noise)
    assert ae.net_.best_epoch_ == 0
    assert ae.n_iter_ == len(ae.loss_curve_) == len(ae.validation_loss_curve_) > 0
    assert_allclose(
        ae.reconstruct(noise),
        pca.inverse_transform(pca.transform(noise)),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("n_rows", "early_stopping", "n_folds"),
    [(60, True, 0), (60, False, 0), (501, "auto", 0), (500, "auto", 5), (3, "auto", 3)],
)
def test_only_small_tables_are_cross_validated(
    monkeypatch, n_rows, early_stopping, n_folds
):
    splits = count_trainings(monkeypatch)
    rows = np.random.default_rng(0).normal(size=(n_rows, 3))
    AutoencoderTransformer(
        1, early_stopping=early_stopping, init="random", **BRIEF
    ).fit(rows)
    (split,) = splits
    assert split.n_folds == n_folds


def test_without_early_stopping_every_epoch_is_run(X):
    ae = AutoencoderTransformer(1, early_stopping=False, **BRIEF).fit(X)
    assert ae.n_iter_ == 4
    assert ae.validation_loss_curve_ is None


@each_estimator
def test_early_stopping_of_one_distinct_row_is_refused(estimator, X):
    rows = np.repeat(X[:1], 5, axis=0)
    with pytest.raises(ValueError, match=r"early_stopping=True.*n_samples=1"):
        estimator(1, early_stopping=True, **BRIEF).fit(rows)
    assert estimator(1, **BRIEF).fit(rows).validation_loss_curve_ is None


def test_warm_start_goes_on_where_rows_or_parameters_are_new(X):
    parameters = {**BRIEF, "early_stopping": False}
    ae = AutoencoderTransformer(1, init="random", warm_start=True, **parameters)
    first = ae.fit(X).score(X)
    assert ae.set_params(max_epochs=30).fit(X).score(X) > first
    assert ae.n_iter_ == 34
    assert ae.fit(X[::2]).n_iter_ > 34


def test_warm_start_trains_after_a_fit_without_it(X):
    ae = AutoencoderTransformer(1, init="random", **BRIEF).fit(X)
    epochs = ae.n_iter_
    assert ae.set_params(warm_start=True).fit(X).n_iter_ > epochs


def test_warm_start_trains_after_partial_fit_on_the_same_rows(X):
    ae = AutoencoderTransformer(1, warm_start=True, **BRIEF).partial_fit(X)
    assert ae.fit(X).n_iter_ == 5


def test_warm_start_with_another_network_is_refused(X):
    ae = AutoencoderTransformer(1, warm_start=True, **BRIEF).fit(X)
    with pytest.raises(ValueError, match=r"n_components=2.*was built, 1"):
        ae.set_params(n_components=2).fit(X)
    assert ae.transform(X).shape == (60, 1)


def test_partial_fit_learns_one_epoch_at_a_time(X):
    ae = AutoencoderTransformer(
        1, init="random", hidden_layer_sizes=(8,), random_state=0
    )
    ae.partial_fit(X[:30])
    first, mean = ae.score(X), ae.mean_
    for _ in range(30):
        ae.partial_fit(X)
    assert ae.n_iter_ == 31
    assert ae.score(X) > first + 0.1
    assert_array_equal(ae.mean_, mean)
    assert_allclose(mean, X[:30].mean(axis=0))


def test_partial_fit_continues_after_fit_in_a_copy(X):
    ae = AutoencoderTransformer(1, init="random", **BRIEF).fit(X)
    module, epochs = ae.module_, ae.n_iter_
    before = copy.deepcopy(module.state_dict())
    assert ae.partial_fit(X).n_iter_ == epochs + 1
    assert ae.module_ is not module
    after = ae.module_.state_dict()
    assert all(torch.equal(module.state_dict()[k], v) for k, v in before.items())
    assert not all(torch.equal(after[k], v) for k, v in before.items())


@each_estimator
def test_the_net_is_trimmed_after_fit_and_partial_fit(estimator, X):
    model = estimator(1, callbacks=[Callback()], **BRIEF)
    for method in ("fit", "partial_fit", "partial_fit"):
        net = getattr(model, method)(X).net_
        assert net.is_trimmed
        assert net.optimizer_ is None
        assert net.callbacks == []
        assert net.module_ is model.module_
        assert not net.module_.training


def test_partial_fit_continues_with_the_state_of_the_optimizer(X):
    ae = AutoencoderTransformer(1, init="random", **BRIEF).partial_fit(X)
    loaded = pickle.loads(pickle.dumps(ae))
    optimizer = ae._trained.optimizer
    before = copy.deepcopy(optimizer)
    assert ae.partial_fit(X)._trained.optimizer.n_steps == 2 * before.n_steps
    # The second call has changed a copy of the state.
    assert optimizer.n_steps == before.n_steps
    for one, other in zip(
        optimizer.optimizer.values(), before.optimizer.values(), strict=True
    ):
        assert all(torch.equal(one[name], other[name]) for name in one)
    # A loaded model begins with a new optimizer, and takes other steps.
    assert loaded._trained.optimizer is None
    assert not np.array_equal(loaded.partial_fit(X).reconstruct(X), ae.reconstruct(X))


@each_estimator
def test_partial_fit_that_fails_leaves_the_model_as_it_was(estimator, X):
    # More than one batch: the loss of a batch is that before its step.
    model = estimator(1, batch_size=8, **BRIEF).fit(X)
    before, trained = output(model, X), model._trained
    for rows, parameters in (
        (X, {"learning_rate": 1e30}),
        (X[:, :3], {}),
        (np.full_like(X, np.inf), {}),
        (X, {"learning_rate": -1}),
    ):
        with pytest.raises(ValueError):  # noqa: PT011
            model.set_params(**{"learning_rate": "auto", **parameters}).partial_fit(
                rows
            )
        assert model._trained is trained
        assert_array_equal(output(model, X), before)


def test_modules_given_as_instances_are_not_trained_in_place(X):
    encoder, decoder = nn.Linear(5, 1), nn.Linear(1, 5)
    before = encoder.weight.detach().clone()
    ae = AutoencoderTransformer(
        1, network=Custom(encoder, decoder), max_epochs=3, random_state=0
    )
    first = ae.fit(X).reconstruct(X)
    assert torch.equal(encoder.weight, before)
    assert not torch.equal(ae.module_.encoder.weight.cpu(), before)
    assert_array_equal(ae.fit(X).reconstruct(X), first)
    assert_array_equal(clone(ae).fit(X).reconstruct(X), first)


def test_wrong_width_of_a_custom_network_is_refused(X):
    ae = AutoencoderTransformer(2, network=Custom(nn.Linear(5, 3), nn.Linear(3, 5)))
    with pytest.raises(
        ValueError, match=r"encoder of network=Custom.*n_components is 2"
    ):
        ae.fit(X)


def test_own_loss_is_trained_and_scored(X):
    class Quartic(Loss):
        def elementwise(self, X, X_hat):
            return (X - X_hat) ** 4

    ae = AutoencoderTransformer(1, loss=Quartic(), scale=None, **BRIEF).fit(X)
    error = ((X - ae.reconstruct(X)) ** 4).mean(axis=1)
    assert_allclose(ae.score_samples(X), -error, rtol=1e-5)


def test_own_bottleneck_shapes_the_code(X):
    class Tanh(Squeeze):
        def forward(self, H):
            return H.tanh()

    class Squash(Bottleneck):
        def build(self, n_components, n_channels, generator):
            return Tanh()

    ae = AutoencoderTransformer(2, bottleneck=Squash(), **BRIEF)
    assert np.abs(ae.fit_transform(X)).max() < 1
    with pytest.raises(ValueError, match=r"init='pca'.*bottleneck=Squash"):
        ae.set_params(init="pca").fit(X)


def test_callbacks_are_copied_and_called(X):
    class Count(Callback):
        calls = 0

        def on_epoch_end(self, net, **kwargs):
            self.calls += 1
            assert net.history[-1, "train_loss"] > 0
            net.history.record("calls", self.calls)

    count = Count()
    ae = AutoencoderTransformer(1, callbacks=[count], early_stopping=True, **BRIEF).fit(
        X
    )
    assert count.calls == 0
    assert ae.net_.history[:, "calls"] == [1, 2, 3, 4]


@pytest.mark.parametrize("early_stopping", ["auto", True, False])
def test_callback_that_stops_the_training_leaves_a_fitted_model(early_stopping, X):
    class Stop(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 2:
                raise KeyboardInterrupt

    ae = AutoencoderTransformer(
        1, callbacks=[("stop", Stop)], early_stopping=early_stopping, **BRIEF
    ).fit(X)
    assert len(ae.loss_curve_) == 2
    assert ae.n_iter_ == len(ae.net_.history) <= 2
    assert ae.transform(X).shape == (60, 1)


def test_verbose_prints_lines_where_there_is_no_terminal(X, capsys):
    AutoencoderTransformer(1, verbose=1, early_stopping=True, **BRIEF).fit(X)
    out = capsys.readouterr().out
    assert re.match(r"epoch 1/4  loss \S+  validation \S+  remaining \S+ s\n", out)
    assert AutoencoderTransformer(1, **BRIEF).fit(X)
    assert capsys.readouterr().out == ""


# The family


@each_estimator
@each_member
def test_nothing_is_drawn_in_use(estimator, member, X):
    model = estimator(1, **BRIEF, **member).fit(X)
    for method in ("reconstruct", "score_samples"):
        once = getattr(model, method)(X)
        assert_array_equal(once, getattr(model, method)(X))
        alone = np.concatenate([getattr(model, method)(row[None]) for row in X])
        assert_allclose(once, alone, rtol=1e-10, atol=1e-12)


@each_estimator
@each_member
def test_the_family_takes_missing_sparse_and_piecewise_rows(estimator, member, X):
    holes = np.where(np.random.default_rng(0).random(X.shape) < 0.1, np.nan, X)
    model = estimator(1, **BRIEF, **member).fit(holes)
    assert np.isfinite(model.reconstruct(holes)).all()
    assert np.isfinite(model.score_samples(holes)).all()
    dense = clone(model).fit(X)
    from_sparse = clone(model).fit(sparse.csr_array(X))
    assert_allclose(dense.reconstruct(X), from_sparse.reconstruct(X), atol=1e-8)
    before = dense.reconstruct(X)
    assert not np.array_equal(dense.partial_fit(X).reconstruct(X), before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("corruption", "level"), [("gaussian", 0.5), ("masking", 0.4), ("swap", 0.3)]
)
def test_training_with_noise_learns_to_remove_it(corruption, level):
    rng = np.random.default_rng(0)
    t = rng.uniform(-3, 3, (600, 1))
    X = np.hstack([t, t**2, np.sin(t), np.cos(t), -t, t**3 / 9])
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    train, test = X[:400], X[400:]
    if corruption == "gaussian":
        noisy = test + level * rng.standard_normal(test.shape)
    else:
        other = 0 if corruption == "masking" else rng.permutation(test)
        noisy = np.where(rng.random(test.shape) < level, other, test)
    settings = {"hidden_layer_sizes": (32,), "max_epochs": 150, "random_state": 0}
    plain = AutoencoderTransformer(4, **settings).fit(train)
    denoising = AutoencoderTransformer(
        4, corruption=corruption, corruption_level=level, **settings
    ).fit(train)
    error = [np.mean((m.reconstruct(noisy) - test) ** 2) for m in (plain, denoising)]
    assert error[1] < 0.8 * error[0]
    assert error[1] < 0.7 * np.mean((noisy - test) ** 2)


@pytest.mark.parametrize("scale", ["feature", "global", None])
def test_a_corruption_knows_the_range_of_what_shares_a_scale(scale, X):
    known = []

    class Curious(Corruption):
        needs_range = True

        def build(self, level, spread):
            known.append(spread)
            return nn.Identity()

    X = X * [1, 2, 3, 4, 5] + 7
    X[3, 2] = np.nan
    ae = AutoencoderTransformer(1, corruption=Curious(), scale=scale, **BRIEF).fit(X)
    shift, factor = (
        getattr(ae.module_.scaler, name).numpy(force=True)
        for name in ("shift", "factor")
    )
    ends = np.nanmin(X, axis=0), np.nanmax(X, axis=0)
    if scale != "feature":
        ends = np.full(5, ends[0].min()), np.full(5, ends[1].max())
    *statistics, feature = known[0]
    assert feature is None  # each feature is one column
    for found, expected in zip(statistics, (ae.mean_, *ends), strict=True):
        scaled = (expected - shift) / factor
        assert_allclose(found.numpy(force=True), scaled, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", ["feature", "global"])
def test_rows_are_corrupted_in_the_scaled_space(scale, X):
    seen = []

    class Watch(nn.Module):
        def forward(self, X):
            if self.training:
                seen.append(X)
            return X

    class Watching(Corruption):
        def build(self, level, spread):
            return Watch()

    ae = AutoencoderTransformer(1, corruption=Watching(), scale=scale, **BRIEF)
    ae.set_params(early_stopping=False, max_epochs=1).fit(1000 * X + 5)
    variance = torch.cat(seen).var(dim=0, correction=0)
    assert variance.mean().item() == pytest.approx(1, rel=1e-4)


def test_l1_makes_codes_sparse_and_more_so_with_its_weight(digits):
    shares = []
    for weight in (1e-3, 1e-1):
        ae = AutoencoderTransformer(
            16,
            penalty="l1",
            penalty_weight=weight,
            hidden_layer_sizes=(32,),
            max_epochs=20,
            random_state=0,
        )
        Z = ae.fit_transform(digits)
        shares.append(np.mean(Z / Z.max() < 1e-3))
    assert 0.05 < shares[0] < shares[1] - 0.1


def test_kl_brings_the_mean_activity_to_its_target(X):
    ae = AutoencoderTransformer(
        4, penalty=KLSparsity(0.2), penalty_weight=10, **{**BRIEF, "max_epochs": 100}
    ).fit(X)
    factor = ae.module_.code_factor.numpy(force=True)
    activity = 1 / (1 + np.exp(-ae.transform(X) / factor))
    assert_allclose(activity.mean(axis=0), 0.2, rtol=0.2)


@pytest.mark.parametrize(
    "network", ["mlp", pytest.param("conv", marks=pytest.mark.slow)]
)
def test_contraction_flattens_the_encoder(network, X):
    norms = []
    for weight in (0.0, 1.0):
        ae = AutoencoderTransformer(
            2,
            network=network,
            penalty="contractive",
            penalty_weight=weight,
            **{**BRIEF, "max_epochs": 20},
        ).fit(X)
        rows = torch.from_numpy(X).float().to(device_of(ae))
        J = torch.func.vmap(torch.func.jacrev(ae.module_.encoder))(rows[:, None])
        norms.append(J.square().sum().item())
    assert norms[1] < 0.5 * norms[0]


@each_estimator
def test_a_feature_map_is_a_code(estimator, X):
    network = Conv((4, 3), code="feature_map")
    model = estimator("auto", network=network, max_epochs=4, random_state=0).fit(X)
    assert model.n_components_ == 2 * 3  # five values, three, two; three channels
    assert model.reconstruct(X).shape == X.shape
    with pytest.raises(ValueError, match=r"6 components.*n_components is 2"):
        model.set_params(n_components=2).fit(X)


def test_a_later_piece_may_lack_a_feature(X):
    ae = AutoencoderTransformer(1, corruption="salt_and_pepper", **BRIEF).fit(X)
    piece = X.copy()
    piece[:, 2] = np.nan
    assert np.isfinite(ae.partial_fit(piece).loss_curve_).all()


def test_rows_are_read_in_their_shape(digits):
    ae = AutoencoderTransformer(
        2, network="conv", input_shape=(8, 8), max_epochs=1, random_state=0
    )
    kinds = {type(part) for part in ae.fit(digits).module_.encoder.modules()}
    assert nn.Conv2d in kinds
    kinds = {
        type(part)
        for part in ae.set_params(input_shape=None)
        .fit(digits)
        .module_.encoder.modules()
    }
    assert nn.Conv1d in kinds


# Persistence


@each_estimator
@pytest.mark.parametrize("fitted", [False, True])
@pytest.mark.parametrize("way", ["pickle", "joblib", "deepcopy", "clone"])
def test_copies_behave_alike(estimator, fitted, way, X, tmp_path):
    model = estimator(
        1, loss=Huber(0.5), network=MLP((8,)), max_epochs=2, random_state=0
    )
    if fitted:
        model.fit(X)
    if way == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    elif way == "joblib":
        joblib.dump(model, tmp_path / "model")
        twin = joblib.load(tmp_path / "model")
    else:
        twin = {"deepcopy": copy.deepcopy, "clone": clone}[way](model)
    assert repr(twin) == repr(model)
    if fitted and way != "clone":
        assert_same_values(output(twin, X), output(model, X), twin, model)
        assert twin.net_.module_ is twin.module_
        twin.partial_fit(X)
    else:
        with pytest.raises(NotFittedError):
            output(twin, X)


@each_estimator
def test_pickle_of_a_fitted_model_holds_the_module_once_and_no_optimizer(estimator):
    rows = np.random.default_rng(0).normal(size=(50, 200))
    model = estimator(2, hidden_layer_sizes=(100,), max_epochs=1, random_state=0)
    module = model.fit(rows).module_
    tensors = list(module.parameters())
    if module.scaler.completion is not None:
        tensors.extend(module.scaler.completion.buffers())
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert len(pickle.dumps(model)) < 1.2 * size
    model.partial_fit(rows)
    assert len(pickle.dumps(model)) < 1.2 * size


def test_callbacks_that_cannot_be_pickled_stay_behind(X):
    class Local(Callback):
        pass

    schedule = LRScheduler("StepLR", step_size=1)
    ae = AutoencoderTransformer(1, callbacks=[Local(), schedule], **BRIEF).fit(X)
    twin = pickle.loads(pickle.dumps(ae))
    assert [type(callback) for callback in twin.callbacks] == [LRScheduler]
    assert len(ae.callbacks) == 2


# Speed


@pytest.mark.usefixtures("always_recorded")
@each_member
def test_recorded_training_is_eager_training_up_to_rounding(X, member):
    X, batches = X[:48], {"batch_size": 16, "early_stopping": False}
    holes = X.copy()
    holes[3, 1] = np.nan
    settings = {**BRIEF, **batches, "max_epochs": 8, "n_components": 2, **member}
    for rows, weight in ((X, None), (holes, np.arange(48) % 3 + 0.5)):
        recorded, eager = (
            AutoencoderTransformer(**settings, compile=way).fit(
                rows, sample_weight=weight
            )
            for way in ("auto", False)
        )
        assert recorded.loss_curve_ == pytest.approx(eager.loss_curve_, rel=1e-4)
        assert_allclose(
            recorded.transform(rows), eager.transform(rows), rtol=1e-3, atol=1e-3
        )


@pytest.mark.usefixtures("always_recorded")
@pytest.mark.parametrize(
    "callback",
    [GradientNormClipping(gradient_clip_value=0.01), Freezer("encoder.*")],
    ids=["clipping", "freezing"],
)
def test_callbacks_reach_gradients_and_weights(X, callback):
    settings = {**BRIEF, "max_epochs": 8, "init": "random"}
    curves = [
        AutoencoderTransformer(1, callbacks=callbacks, compile=way, **settings)
        .fit(X)
        .loss_curve_
        for callbacks, way in (
            (None, "auto"),
            ([callback], "auto"),
            ([callback], False),
        )
    ]
    assert_allclose(curves[1], curves[2], rtol=1e-4)
    assert curves[0] != curves[1]


def leaky(n_features, n_components):
    return nn.Sequential(
        nn.Linear(n_features, 8), nn.RReLU(), nn.Linear(8, n_components)
    )


def mirrored(n_features, n_components):
    return leaky(n_components, n_features)


class Anneal(Callback):
    """Lets the weight of the bottleneck's term grow with the epochs."""

    def on_epoch_begin(self, net, **kwargs):
        net.criterion_.bottleneck_weight = len(net.history) / 8


@pytest.mark.usefixtures("always_recorded")
@pytest.mark.parametrize(
    "settings",
    [
        # It overwrites one tensor and returns another.
        {"network": Custom(leaky, mirrored), "hidden_layer_sizes": "auto"},
        {"bottleneck": "gaussian", "callbacks": [Anneal()]},
    ],
    ids=["noise in place", "annealing"],
)
def test_what_a_record_could_miss_is_not_missed(X, settings):
    settings = {**BRIEF, "max_epochs": 8, **settings}
    recorded, eager = (
        AutoencoderTransformer(2, compile=way, **settings).fit(X)
        for way in ("auto", False)
    )
    assert recorded.loss_curve_ == pytest.approx(eager.loss_curve_, rel=1e-5)


def test_scores_follow_a_training_that_goes_on(X):
    ae = AutoencoderTransformer(1, init="random", **BRIEF)
    seen = [ae.partial_fit(X).score(X) for _ in range(8)]
    assert len(set(seen)) == 8


@each_estimator
def test_training_leaves_the_number_of_threads_alone(X, estimator):
    before = torch.get_num_threads()
    curves = []
    for n_threads in (1, 2, "auto"):
        model = estimator(1, n_threads=n_threads, **BRIEF).fit(X)
        curves.append(model.loss_curve_)
        assert torch.get_num_threads() == before
    assert curves[0] == pytest.approx(curves[1])
    assert curves[0] == curves[2]


@each_member
def test_the_family_trains_in_bfloat16(X, member):
    settings = {**BRIEF, "n_components": 2, **member}
    ae = AutoencoderTransformer(precision="bfloat16", **settings).fit(X)
    assert np.isfinite(ae.loss_curve_).all()


def test_bfloat16_trains_a_little_differently(X):
    exact, brief = (
        AutoencoderTransformer(1, precision=precision, **BRIEF).fit(X)
        for precision in ("float32", "bfloat16")
    )
    assert brief.loss_curve_ != exact.loss_curve_
    assert brief.loss_curve_ == pytest.approx(exact.loss_curve_, rel=0.1)
    assert brief.transform(X).dtype == np.float64


# Faults


def test_every_wrong_parameter_is_named_before_any_training(X):
    wrong = {
        "n_components": 0,
        "network": "convolutional",
        "hidden_layer_sizes": 8,
        "input_shape": 5,
        "bottleneck": "tight",
        "bottleneck_weight": -1,
        "corruption": "blur",
        "corruption_level": -0.1,
        "penalty": "l2",
        "penalty_weight": -1,
        "loss": "mse",
        "init": "zeros",
        "scale": "minmax",
        "max_epochs": 0,
        "batch_size": 0,
        "learning_rate": 0,
        "weight_decay": -1,
        "early_stopping": "yes",
        "validation_fraction": 1.0,
        "n_iter_no_change": 0,
        "tol": -1,
        "warm_start": "yes",
        "random_state": "seed",
        "verbose": -1,
        "device": 3,
        "callbacks": "EarlyStopping",
        "compile": "yes",
        "n_threads": 0,
        "precision": "half",
    }
    for name, value in wrong.items():
        for method in ("fit", "partial_fit"):
            with pytest.raises(ValueError, match=f"'{name}' parameter"):
                getattr(AutoencoderTransformer(**{name: value}), method)(X)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"hidden_layer_sizes": (8, 0)}, r"hidden_layer_sizes.*\(8, 0\)"),
        ({"hidden_layer_sizes": (8,), "network": MLP()}, "hidden_layer_sizes.*network"),
        ({"network": MLP(activation="swish")}, "'activation' parameter of MLP"),
        ({"network": MLP(dropout=1)}, "'dropout' parameter of MLP"),
        ({"loss": Huber(delta=0)}, "'delta' parameter of Huber"),
        (
            {"precision": "tf32", "device": "cpu"},
            "precision='tf32' needs a CUDA.*'cpu'",
        ),
        ({"device": "quantum"}, "device must be 'auto'.*'quantum'"),
        ({"device": "meta"}, "device must be 'auto'.*'meta'"),
        ({"input_shape": (2, 3)}, r"input_shape=\(2, 3\) has 6 .* X has 5"),
        ({"input_shape": (5, 0)}, r"input_shape must be .*\(5, 0\)"),
        ({"input_shape": (5, 1, 1, 1)}, r"input_shape must be .*\(5, 1, 1, 1\)"),
        (
            {"corruption": "swap", "corruption_level": 1.5},
            r"corruption_level must be a probability.*corruption=Swap\(\), got 1\.5",
        ),
        ({"corruption": "swap", "batch_size": 1}, "corruption='swap'.*batch_size=1"),
        ({"penalty": "kl", "batch_size": 1}, "penalty='kl'.*batch_size=1"),
        ({"penalty": "l1", "init": "pca"}, "init='pca'.*penalty='l1'"),
        ({"bottleneck": "quantized", "init": "pca"}, "init='pca'.*bottleneck='quan"),
        (
            {"bottleneck": Gaussian(noise_variance=0)},
            "'noise_variance' parameter of Gau",
        ),
        ({"bottleneck": Gaussian(warm_up=2)}, "'warm_up' parameter of Gaussian"),
        ({"corruption": Masking("zero")}, "'fill_value' parameter of Masking"),
        ({"penalty": KLSparsity(1.0)}, "'target' parameter of KLSparsity"),
        (
            {"n_components": 3, "bottleneck": Quantized(4, 2, shared=True)},
            "shared=True.*n_components=3",
        ),
        (
            {"network": Conv(code="feature_map"), "n_components": 2},
            "feature_map.*n_components is 2",
        ),
        (
            {"network": Conv((2, 2, 2), kernel_size=4)},
            r"kernel_size=4 does not fit.*input_shape=\(5,\) after 2 conv",
        ),
    ],
)
def test_settings_that_make_no_sense_are_named(parameters, message, X):
    with pytest.raises(ValueError, match=message):
        AutoencoderTransformer(**parameters).fit(X)


def test_callbacks_that_are_none_are_named(X):
    with pytest.raises(TypeError, match=r"callbacks must hold skorch callbacks.*print"):
        AutoencoderTransformer(callbacks=[print]).fit(X)


def test_failed_fit_leaves_an_earlier_model_as_it_was(X):
    ae = AutoencoderTransformer(1, **BRIEF).fit(X)
    Z = ae.transform(X)
    with pytest.raises(ValueError, match="infinity"):
        ae.fit(np.full((3, 2), np.inf))
    with pytest.raises(ValueError, match="loss="):
        ae.set_params(loss="binary_cross_entropy").fit(X[:, :2])
    assert ae.n_features_in_ == 5
    assert_array_equal(ae.transform(X), Z)


@each_estimator
@pytest.mark.parametrize("early_stopping", [True, False])
def test_divergence_names_its_likely_cause_and_leaves_nothing_fitted(
    estimator, early_stopping, X
):
    model = estimator(1, early_stopping=early_stopping, **BRIEF).fit(X)
    model.set_params(learning_rate=1e30)
    with pytest.raises(ValueError, match=r"diverged.*learning_rate.*1e\+30"):
        model.fit(X)
    with pytest.raises(NotFittedError):
        output(model, X)
    assert not hasattr(model, "n_features_in_")


@pytest.mark.parametrize(
    ("estimator", "early_stopping"),
    [
        ("AutoencoderTransformer", True),
        pytest.param("AutoencoderTransformer", False, marks=pytest.mark.slow),
        pytest.param("AutoencoderOutlierDetector", True, marks=pytest.mark.slow),
        pytest.param("AutoencoderOutlierDetector", False, marks=pytest.mark.slow),
    ],
)
def test_interrupt_leaves_the_best_epoch_fitted(estimator, early_stopping):
    script = f"""
    import os, signal, threading
    import numpy as np
    from skorch.callbacks import Callback
    from skae import {estimator}

    class Alarm(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 3:
                # From outside, in the middle of a later step.
                send = lambda: os.kill(os.getpid(), signal.SIGINT)
                threading.Timer(0.2, send).start()

    # Whatever started the tests may have disabled Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    X = np.random.default_rng(0).normal(size=(500, 10))
    model = {estimator}(
        2, early_stopping={early_stopping}, max_epochs=10**6, n_iter_no_change=10**6,
        random_state=0, callbacks=[Alarm()],
    )
    try:
        model.fit(X)
    except KeyboardInterrupt:
        print("interrupted")
    curve = model.validation_loss_curve_ or model.loss_curve_
    print(3 <= model.n_iter_ < 10**5)
    print(model.net_.best_epoch_ in (0, int(np.argmin(curve)) + 1))
    print(model.reconstruct(X).shape, model.predict(X).shape
          if hasattr(model, "predict") else "")
    print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    """
    lines = run_python(script).split("\n")
    assert lines[:3] == ["interrupted", "True", "True"]
    assert lines[3].startswith("(500, 10)")
    assert lines[4] == "True"


def test_fit_works_in_a_thread_that_is_not_the_main_one(X):
    ae = AutoencoderTransformer(1, **BRIEF)
    thread = threading.Thread(target=ae.fit, args=(X,))
    thread.start()
    thread.join()
    assert ae.transform(X).shape == (60, 1)


def run_python(script):
    """Output of a script in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=1200,  # guards against a hang only
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
