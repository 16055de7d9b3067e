"""Rows drawn from a fitted model: `sample`, and what `fit` estimates for it."""

import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from nets import global_states
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score

import skae
from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae._row_noise import MIN_LEVELS, RowNoise
from skae.bottlenecks import Gaussian, Quantized
from skae.losses import Mixed

X = load_iris().data
FEW_EPOCHS = {"max_epochs": 5, "early_stopping": False, "random_state": 0}
SETTINGS = {"bottleneck": "gaussian", **FEW_EPOCHS}
WAYS = [(p, n) for p in ("mixture", "standard") for n in (True, False)]


@pytest.fixture(scope="module")
def fitted():
    return AutoencoderTransformer(2, **SETTINGS).fit(X)


def make_frame():
    target = load_iris().target
    return pd.DataFrame(
        {
            "length": X[:, 0],
            "kind": pd.Categorical(np.array(["b", "a", "c"])[target]),
            "wide": X[:, 1] > 3,
            "name": np.array(["x", "y", "z"], dtype=object)[target],
        }
    )


# The rows


def test_samples_of_the_standard_prior_without_noise_are_decoded_codes(fitted):
    samples = fitted.sample(7, 1, prior="standard", noise=False)
    codes = np.random.RandomState(1).standard_normal((7, 2))
    assert_array_equal(samples, fitted.inverse_transform(codes))


def test_samples_of_the_mixture_without_noise_are_decoded_codes(fitted):
    samples = fitted.sample(7, 1, noise=False)
    density = fitted._trained.generation[-1].codes
    codes = density.draw(7, np.random.RandomState(1))
    assert_array_equal(samples, fitted.inverse_transform(codes))


def test_default_samples_resemble_the_rows_most():
    model = AutoencoderTransformer(
        2, bottleneck="gaussian", scale="feature", random_state=0
    ).fit(X)
    forest = RandomForestClassifier(30, random_state=0)
    y = np.repeat([0, 1], len(X))

    def auc(**options):
        rows = np.vstack([X, model.sample(len(X), random_state=0, **options)])
        return cross_val_score(forest, rows, y, scoring="roc_auc").mean()

    found = {way: auc(prior=way[0], noise=way[1]) for way in WAYS}
    assert min(found, key=found.get) == ("mixture", True)
    assert found["mixture", True] < 0.75
    assert found["standard", False] > 0.85


def test_samples_have_the_distribution_of_each_column(fitted):
    rows = fitted.sample(5000, random_state=0)
    assert_allclose(rows.mean(axis=0), X.mean(axis=0), rtol=0.1)
    assert_allclose(rows.std(axis=0), X.std(axis=0), rtol=0.1)
    assert (rows.min(axis=0) >= X.min(axis=0)).all()
    assert (rows.max(axis=0) <= X.max(axis=0)).all()


def test_samples_are_not_copies_of_training_rows(fitted):
    rows = fitted.sample(1000, random_state=0)
    distance = np.linalg.norm(rows[:, None] - X[None], axis=2).min(axis=1)
    assert np.median(distance) > 0.1


@pytest.mark.parametrize(("prior", "noise"), WAYS)
def test_same_seed_gives_the_same_rows(fitted, prior, noise):
    options = {"prior": prior, "noise": noise}
    before = global_states()
    rows = fitted.sample(9, 3, **options)
    assert rows.shape == (9, 4)
    assert_array_equal(rows, fitted.sample(9, random_state=3, **options))
    assert_array_equal(rows, fitted.sample(9, np.random.RandomState(3), **options))
    assert (rows != fitted.sample(9, 4, **options)).any()
    assert global_states() == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_samples": 0}, ValueError, "n_samples"),
        ({"n_samples": 2.5}, TypeError, "n_samples"),
        ({"prior": "normal"}, ValueError, "'prior' parameter of sample.*'standard'"),
        ({"noise": "yes"}, ValueError, "'noise' parameter of sample"),
    ],
)
def test_errors_name_the_argument(fitted, arguments, error, message):
    with pytest.raises(error, match=message):
        fitted.sample(**arguments)


def test_one_row_is_the_default(fitted):
    assert fitted.sample().shape == (1, 4)


# Tables


def test_data_frames_have_the_columns_of_the_training_frame():
    frame = make_frame()
    model = AutoencoderTransformer(2, categorical_features="from_dtype", **SETTINGS)
    rows = model.fit(frame).set_output(transform="pandas").sample(400, random_state=0)
    assert rows.columns.tolist() == frame.columns.tolist()
    assert rows["kind"].dtype == frame["kind"].dtype
    assert rows["wide"].dtype == bool
    assert set(rows["name"]) == {"x", "y", "z"}
    shares = rows["kind"].value_counts(normalize=True).sort_index()
    assert_allclose(shares, 1 / 3, atol=0.15)


def test_polars_frames():
    polars = pytest.importorskip("polars")
    model = AutoencoderTransformer(2, categorical_features="from_dtype", **SETTINGS)
    rows = model.fit(make_frame()).set_output(transform="polars").sample(3, 0)
    assert rows.columns == ["length", "kind", "wide", "name"]
    assert rows.schema["kind"] == polars.Categorical


def test_categories_without_noise_are_the_most_probable_ones():
    frame = make_frame()
    frame["rare"] = np.where(np.arange(150) % 10 == 0, "rare", "usual")
    model = AutoencoderTransformer(2, categorical_features="from_dtype", **SETTINGS)
    model.fit(frame)
    assert set(model.sample(400, 0, noise=False)[:, 4]) == {"usual"}
    assert_allclose(np.mean(model.sample(2000, 0)[:, 4] == "rare"), 0.1, atol=0.05)


def test_binary_columns_under_a_cross_entropy_are_drawn():
    table = np.column_stack([X, load_iris().target == 1])
    model = AutoencoderTransformer(2, loss=Mixed(), **SETTINGS).fit(table)
    assert_array_equal(np.unique(model.sample(300, 0)[:, 4]), [0, 1])
    assert len(np.unique(model.sample(300, 0, noise=False)[:, 4])) > 100
    drawn = model.sample(4000, 0)[:, 4].mean()
    assert_allclose(drawn, 1 / 3, atol=0.1)


@pytest.mark.parametrize("loss", ["absolute_error", "huber", "log_error"])
def test_other_losses(loss):
    model = AutoencoderTransformer(2, loss=loss, **SETTINGS).fit(X)
    rows = model.sample(2000, random_state=0)
    assert_allclose(rows.mean(axis=0), X.mean(axis=0), rtol=0.1)


@pytest.mark.parametrize(
    "table",
    [
        X[:1],
        X[:3],
        np.full((20, 3), 7.1),
        np.where(np.random.default_rng(0).random(X.shape) < 0.3, np.nan, X),
        sparse.random(200, 40, 0.1, format="csr", random_state=0),
        X.astype(np.float32),
    ],
    ids=["one row", "three rows", "constant", "missing", "sparse", "float32"],
)
@pytest.mark.parametrize("n_components", [2, 50])
def test_tables_of_every_kind(table, n_components):
    rows = AutoencoderTransformer(n_components, **SETTINGS).fit(table).sample(30, 0)
    assert rows.shape == (30, table.shape[1])
    assert rows.dtype == np.float64
    dense = table.toarray() if sparse.issparse(table) else table
    assert (rows >= np.nanmin(dense, axis=0)).all()
    assert (rows <= np.nanmax(dense, axis=0)).all()


def test_wide_rows_are_generated_in_as_small_a_number_as_they_are_drawn(monkeypatch):
    n_entries = []
    of = RowNoise.of

    def recorded(X, weight, X_hat, generated, *args):
        n_entries.extend([X.size, X_hat.size, generated.size])
        return of(X, weight, X_hat, generated, *args)

    monkeypatch.setattr(RowNoise, "of", recorded)
    table = sparse.random(100, 20_000, 1e-3, format="csr", random_state=0)
    AutoencoderTransformer(2, **{**SETTINGS, "max_epochs": 1}).fit(table)
    assert len(n_entries) == 3
    assert max(n_entries) <= 64 * 20_000


# Fits


def test_weights_are_repetitions():
    rng = np.random.default_rng(0)
    weight = rng.integers(0, 4, len(X))
    repeated = rng.permutation(np.repeat(X, weight, axis=0))
    model = AutoencoderTransformer(2, **SETTINGS)
    rows = model.fit(X, sample_weight=weight).sample(20, 0)
    assert_array_equal(rows, model.fit(repeated).sample(20, 0))


@pytest.mark.parametrize("n_columns", [1, 2])
@pytest.mark.parametrize("how", ["rows", "weights", "weights of a large table"])
def test_values_that_repeat_have_no_others(how, n_columns):
    # Equal rows are one row for `fit`. The values repeat nevertheless.
    values = np.arange(10.0 if n_columns == 1 else 100.0)
    table = np.column_stack([values % 10, values // 10])[:, :n_columns]
    weight = None if how == "rows" else np.full(len(table), 30)
    if how == "rows":
        table = np.repeat(table, 30, axis=0)
    if how == "weights of a large table":
        table, weight = np.tile(table, (30, 1)), None
    model = AutoencoderTransformer(1, **SETTINGS).fit(table, sample_weight=weight)
    assert set(np.unique(model.sample(200, 0))) <= set(range(10))


def test_a_scale_of_weights_makes_no_column_discrete():
    weight = np.random.default_rng(0).uniform(size=len(X))
    table = np.random.default_rng(1).normal(size=X.shape)
    model = AutoencoderTransformer(2, **SETTINGS)
    for scale in (1e-30, 1.0, 1e30):
        model.fit(table, sample_weight=scale * weight)
        assert not model._trained.generation[-1].noise.is_discrete.any()


@pytest.mark.parametrize("counted", [False, True])
def test_few_rows_with_most_of_the_weight_are_found_among_many(counted):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(6000, 3))
    heavy = np.arange(6000) % 300 == 0
    table[heavy] += 20
    weight = np.where(heavy, 1000.0, 1.0 if counted else rng.uniform(0.5, 1.5, 6000))
    model = AutoencoderTransformer(2, **SETTINGS).fit(table, sample_weight=weight)
    rows = model.sample(4000, 0)
    expected = np.average(table, axis=0, weights=weight)
    assert_allclose(rows.mean(axis=0), expected, rtol=0.05)


def test_rows_of_weight_zero_have_no_influence():
    weight = np.repeat([1.0, 0.0], [50, 100])
    model = AutoencoderTransformer(2, **SETTINGS).fit(X, sample_weight=weight)
    assert model.sample(300, 0)[:, 2].max() <= X[:50, 2].max()


@pytest.mark.parametrize("size", [1, 10])
def test_partial_fit_learns_from_all_calls(size):
    order = np.random.default_rng(0).permutation(len(X))[: 30 * size]
    model = AutoencoderTransformer(2, **SETTINGS)
    for start in range(0, len(order), size):
        model.partial_fit(X[order[start : start + size]])
    rows, expected = model.sample(4000, 0), X[order]
    assert_allclose(rows.mean(axis=0), expected.mean(axis=0), rtol=0.15)
    assert_allclose(rows.std(axis=0), expected.std(axis=0), rtol=0.3)


@pytest.mark.parametrize("loss", ["squared_error", "mixed"])
def test_columns_that_a_call_lacks_remain_as_they_were(loss):
    rng = np.random.default_rng(0)
    binary, integer = rng.integers(0, 2, 300), rng.integers(0, 5, 300)
    table = np.column_stack([binary, integer, rng.normal(size=300)]).astype(float)
    model = AutoencoderTransformer(2, loss=loss, **SETTINGS).partial_fit(table[:200])
    before = model._trained.generation[-1].noise
    table[200:, :2] = np.nan
    noise = model.partial_fit(table[200:])._trained.generation[-1].noise
    rows = model.sample(300, 0)
    assert_array_equal(np.unique(rows[:, 0]), [0, 1])
    assert_array_equal(np.unique(rows[:, 1]), np.arange(5))
    assert_allclose(noise.deviation[:2], before.deviation[:2])
    assert noise.deviation[2] != before.deviation[2]
    assert noise.is_probability[0] == before.is_probability[0] == (loss == "mixed")


def test_warm_start_forgets_earlier_rows():
    model = AutoencoderTransformer(2, warm_start=True, **SETTINGS).fit(X)
    assert model.fit(X[:50]).sample(300, 0)[:, 2].max() <= X[:50, 2].max()


def test_codes_of_ordered_components_have_the_marginal_density():
    model = AutoencoderTransformer(3, ordered=True, **SETTINGS).fit(X)
    generation = model._trained.generation
    assert [len(each.codes.mean) for each in generation] == [1, 2, 3]
    is_learnt = model._trained.ordered.is_learnt
    for width in (1, 2):
        part = model.truncate(width)
        assert part.sample(3, 0).shape == (3, 4)
        if is_learnt[width - 1] == is_learnt[2]:
            assert_array_equal(
                generation[width - 1].codes.axes, generation[2].codes.axes[:width]
            )


@pytest.mark.slow
def test_noise_of_many_ordered_components_takes_little_memory():
    table = np.random.default_rng(0).normal(size=(400, 300)).cumsum(axis=1)
    model = AutoencoderTransformer(40, ordered=True, **SETTINGS).fit(table)
    noises = [each.noise for each in model._trained.generation]
    assert {id(noise.observed) for noise in noises} == {id(noises[0].observed)}
    assert sum(noise.drawn.size for noise in noises) <= 40 * MIN_LEVELS * 300
    for width in (3, 40):
        rows = model.truncate(width).sample(3000, 0)
        assert_allclose(rows.std(axis=0), table.std(axis=0), rtol=0.2)
        residuals = table - model.truncate(width).reconstruct(table)
        deviation = noises[width - 1].deviation
        assert_allclose(deviation, np.sqrt(np.mean(residuals**2, axis=0)), rtol=0.2)


def test_whitening_changes_no_rows(fitted):
    whitened = clone(fitted).set_params(whiten=True).fit(X)
    assert_array_equal(whitened.sample(5, 0), fitted.sample(5, 0))


@pytest.mark.parametrize("ordered", [False, True])
def test_saved_models_sample_the_same_rows(ordered, tmp_path):
    model = AutoencoderTransformer(2, ordered=ordered, **SETTINGS).fit(X)
    skae.save(model, tmp_path / "model.safetensors")
    loaded = skae.load(tmp_path / "model.safetensors")
    pickled = pickle.loads(pickle.dumps(model))
    for prior, noise in WAYS:
        rows = model.sample(5, 0, prior=prior, noise=noise)
        assert_array_equal(loaded.sample(5, 0, prior=prior, noise=noise), rows)
        assert_array_equal(pickled.sample(5, 0, prior=prior, noise=noise), rows)


def test_a_loaded_model_is_saved_in_a_file_of_the_same_size(tmp_path):
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    skae.save(AutoencoderTransformer(4, ordered=True, **SETTINGS).fit(X), first)
    skae.save(skae.load(first), second)
    assert second.stat().st_size == first.stat().st_size


@pytest.mark.parametrize("options", [{}, {"prior": "standard"}, {"noise": False}])
def test_models_of_earlier_versions_say_what_is_missing(fitted, options):
    model = pickle.loads(pickle.dumps(fitted))
    model._trained = replace(model._trained, generation=None)
    assert model.sample(2, 0, prior="standard", noise=False).shape == (2, 4)
    with pytest.raises(ValueError, match="prior='standard' and noise=False"):
        model.sample(2, **options)
    model.partial_fit(X)
    assert model.sample(2, **options).shape == (2, 4)


@pytest.mark.parametrize(
    "model",
    [
        AutoencoderTransformer(2, **FEW_EPOCHS),
        AutoencoderOutlierDetector(
            2, bottleneck="gaussian", n_estimators=2, max_epochs=2, random_state=0
        ),
    ],
    ids=["deterministic", "detector"],
)
def test_models_that_do_not_sample_pay_nothing(model):
    model.fit(X).partial_fit(X)
    assert not hasattr(model, "sample")
    assert model._trained.generation is None


def test_only_a_variational_bottleneck_samples():
    assert hasattr(AutoencoderTransformer(bottleneck="gaussian"), "sample")
    assert hasattr(AutoencoderTransformer(bottleneck=Gaussian()), "sample")
    for bottleneck in ("deterministic", "quantized", Quantized(), "unknown", 3):
        assert not hasattr(AutoencoderTransformer(bottleneck=bottleneck), "sample")
