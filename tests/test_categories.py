"""Tables with categorical features: `categorical_features` of both estimators."""

import json
import pickle
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import skae
from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae._categorical_loss import CategoricalLoss
from skae._categories import Categories, Layout, find_categorical, unknown_value
from skae._layers import BlockSoftmax
from skae.inspection import (
    ComponentTraversalDisplay,
    FeatureContributionDisplay,
    ReconstructionDisplay,
)
from skae.losses import LogError, Mixed, SquaredError
from skae.networks import MLP

ESTIMATORS = [AutoencoderTransformer, AutoencoderOutlierDetector]
SMALL = {"hidden_layer_sizes": (8,), "max_epochs": 4, "random_state": 0}
NATIVE = {**SMALL, "categorical_features": "from_dtype"}
COLUMNS = ["size", "city", "sold", "kind"]


def make_frame(n_rows=90, seed=0):
    """Sizes, and three categories that follow from them: strings, bool, category."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, n_rows)
    return pd.DataFrame(
        {
            "size": 5.0 * group + rng.normal(size=n_rows),
            "city": np.array(["Ulm", "Bonn", "Köln"])[group],
            "sold": group > 0,
            "kind": pd.Categorical(np.array(["flat", "flat", "house"])[group]),
        }
    )


@pytest.fixture
def frame():
    return make_frame()


@pytest.fixture(scope="module", params=ESTIMATORS)
def fitted(request):
    return request.param(**NATIVE).fit(make_frame())


def as_polars(frame):
    kind = pl.Series(frame["kind"].astype(str).tolist()).cast(pl.Categorical)
    return pl.from_pandas(frame.assign(kind="")).with_columns(kind=kind)


def as_strings(frame):
    return frame.astype({"kind": "string", "city": "category", "sold": "boolean"})


# Which features are categorical


@pytest.mark.parametrize(
    "given",
    ["from_dtype", ["city", "sold", "kind"], [1, 2, 3], [False, True, True, True]],
    ids=str,
)
def test_features_are_selected_by_type_name_position_or_mask(frame, given):
    model = AutoencoderTransformer(**{**NATIVE, "categorical_features": given})
    model.fit(frame)
    assert_array_equal(model.is_categorical_, [False, True, True, True])
    assert model.n_features_in_ == 4
    assert_array_equal(model.feature_names_in_, COLUMNS)


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(["a", "b"], dtype=object),
        pd.Series(["a", "b"], dtype="string"),
        pd.Series(["a", "b"], dtype="category"),
        pd.Series([3, 4], dtype="category"),
        pd.Series([True, False]),
        pd.Series([True, None], dtype="boolean"),
        pd.Series([True, None], dtype=object),
        pd.Series(["a", None], dtype=pd.ArrowDtype(pa.string())),
        pl.Series(["a", "b"]),
        pl.Series(["a", "b"], dtype=pl.Categorical),
        pl.Series(["a", "b"], dtype=pl.Enum(["a", "b"])),
        pl.Series([True, None]),
    ],
    ids=lambda column: f"{type(column).__module__[:6]}-{column.dtype}",
)
def test_types_of_categorical_columns(column):
    frame = type(column.to_frame())({"x": column, "y": [1.0, 2.0]})
    assert find_categorical(frame, "from_dtype").tolist() == [True, False]


@pytest.mark.parametrize("values", [[1, 2], [1.5, None], [1, None]])
@pytest.mark.parametrize("dtype", [object, float])
def test_columns_of_numbers_are_not_categorical(values, dtype):
    frame = pd.DataFrame({"x": pd.Series(values, dtype=dtype)})
    assert find_categorical(frame, "from_dtype") is None


def test_fits_without_categorical_features_are_those_of_numbers():
    X = np.random.default_rng(0).integers(0, 3, (30, 2)).astype(float)
    X[::4, 1] = np.nan
    for given in ("from_dtype", [], [False, False]):
        model = AutoencoderTransformer(1, **SMALL, categorical_features=given).fit(X)
        assert model.is_categorical_ is None
        plain = AutoencoderTransformer(1, **SMALL).fit(X)
        assert_array_equal(model.transform(X), plain.transform(X))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["street"], "'street' which is not a valid feature name"),
        ([True, False], r"must have shape \(n_features,\), got: \(2,\)"),
        ([7], r"must be in \[0, n_features - 1\]"),
        ([-1], r"must be in \[0, n_features - 1\]"),
        ([0.5], "must be an array-like of bool, int or str, got: float64"),
        ([None], "must be an array-like of bool, int or str, got: NoneType"),
        ("by_type", "must be a str among {'from_dtype'}"),
    ],
    ids=str,
)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_wrong_selections_are_refused(estimator, given, message, frame):
    model = estimator(**{**NATIVE, "categorical_features": given})
    with pytest.raises(ValueError, match=message):
        model.fit(frame)


def test_names_need_a_data_frame(frame):
    model = AutoencoderTransformer(**{**NATIVE, "categorical_features": ["city"]})
    with pytest.raises(ValueError, match="data without feature names"):
        model.fit(frame.to_numpy())


# Containers


@pytest.mark.parametrize("convert", [as_polars, as_strings, pd.DataFrame.to_numpy])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_tables_give_equal_models(estimator, convert, frame):
    expected = estimator(**NATIVE).fit(frame)
    other = convert(frame)
    model = estimator(**{**NATIVE, "categorical_features": [1, 2, 3]}).fit(other)
    assert_array_equal(model.score_samples(other), expected.score_samples(frame))


def test_nested_lists_are_tables(frame):
    rows = frame.to_numpy().tolist()
    model = AutoencoderTransformer(**{**NATIVE, "categorical_features": [1, 2, 3]})
    assert model.fit(rows).reconstruct(rows)[0, 1] in ("Ulm", "Bonn", "Köln")


def test_arrays_of_numbers_remain_arrays_of_numbers():
    rng = np.random.default_rng(0)
    codes = rng.integers(3, 6, (60, 2))
    for dtype in (np.float32, np.float64):
        X = np.column_stack([codes, rng.normal(size=60)]).astype(dtype)
        model = AutoencoderTransformer(2, **{**SMALL, "categorical_features": [0, 1]})
        X_hat = model.fit(X).reconstruct(X)
        assert X_hat.dtype == model.transform(X).dtype == dtype
        assert set(X_hat[:, :2].ravel()) <= {3, 4, 5}


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_reconstructions_have_the_types_of_the_columns(container, frame):
    X = frame if container == "pandas" else as_polars(frame)
    model = AutoencoderTransformer(2, **NATIVE).set_output(transform=container).fit(X)
    X_hat = model.reconstruct(X)
    assert list(X_hat.columns) == COLUMNS
    assert [str(t) for t in X_hat.dtypes] == [str(t) for t in X.dtypes]
    if container == "pandas":
        assert_array_equal(X_hat.index, X.index)


def test_ordered_categories_remain_ordered(frame):
    order = pd.CategoricalDtype(["house", "loft", "flat"], ordered=True)
    X = frame.astype({"kind": order})
    model = AutoencoderTransformer(2, **NATIVE).set_output(transform="pandas").fit(X)
    assert list(model.reconstruct(X)["kind"].cat.categories) == ["house", "flat"]
    assert model.reconstruct(X)["kind"].cat.ordered


def test_codes_are_decoded_to_categories(frame):
    model = AutoencoderTransformer(2, **NATIVE).fit(frame)
    rows = model.inverse_transform(model.transform(frame))
    X_hat = model.reconstruct(frame)
    assert_allclose(rows[:, 0].astype(float), X_hat[:, 0].astype(float))
    assert_array_equal(rows[:, 1:], X_hat[:, 1:])
    assert set(rows[:, 1]) <= {"Ulm", "Bonn", "Köln"}


def test_categories_are_learnt(frame):
    model = AutoencoderTransformer(2, categorical_features="from_dtype", random_state=0)
    X_hat = model.fit(frame).reconstruct(frame)
    assert (X_hat[:, 1] == frame["city"]).mean() > 0.9
    assert model.score(frame) > 0.9


def test_samples_have_categories(frame):
    model = AutoencoderTransformer(2, bottleneck="gaussian", **NATIVE).fit(frame)
    rows = model.sample(5, random_state=0)
    assert rows.shape == (5, 4)
    assert set(rows[:, 3]) <= {"flat", "house"}


def test_quantized_codes_are_decoded_to_categories(frame):
    model = AutoencoderTransformer(2, bottleneck="quantized", **NATIVE).fit(frame)
    rows = model.dequantize(model.quantize(frame))
    assert_array_equal(rows, model.reconstruct(frame))


# Missing and unknown categories


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_missing_categories_do_not_count(fitted, missing, frame):
    X = frame.astype({"city": object})
    X.loc[0, "city"] = missing
    score = fitted.score_samples(X)[0]
    assert np.isfinite(score)
    if hasattr(fitted, "feature_contributions"):
        contributions = fitted.feature_contributions(X)[0]
        assert contributions[1] == 0
        assert_allclose(contributions.sum(), -score)


def test_unusual_combinations_of_usual_categories_are_found():
    X = make_frame(300)
    X.loc[0, "city"], X.loc[1, "sold"] = "Köln", True
    X.loc[:1, ["size", "kind"]] = [[0.0, "flat"], [0.0, "flat"]]
    X.loc[0, "sold"], X.loc[1, "city"] = False, "Ulm"
    detector = AutoencoderOutlierDetector(
        categorical_features="from_dtype", random_state=0
    ).fit(X)
    assert set(np.argsort(detector.score_samples(X))[:2]) == {0, 1}
    contributions = detector.feature_contributions(X)
    assert (
        contributions[:2, 1:3].sum(axis=1) > contributions[:2, [0, 3]].sum(axis=1)
    ).all()


def test_categories_need_dense_rows():
    tags = AutoencoderTransformer(categorical_features="from_dtype").__sklearn_tags__()
    assert not tags.input_tags.sparse
    assert tags.input_tags.categorical
    assert tags.input_tags.string
    assert AutoencoderTransformer().__sklearn_tags__().input_tags.sparse


def test_rows_may_have_missing_categories_in_training(frame):
    X = frame.astype({"city": object})
    X.loc[::4, "city"] = None
    model = AutoencoderTransformer(2, **NATIVE).fit(X)
    assert set(model.reconstruct(X)[:, 1]) <= {"Ulm", "Bonn", "Köln"}


def test_a_missing_category_has_no_weight_in_the_mean_over_features():
    layout = Layout((1, 40), (False, True))
    loss = CategoricalLoss(SquaredError(), layout, (10.0, 10.0))
    assert loss.elementwise(torch.rand(3, 41), torch.rand(3, 41)).shape == (3, 2)


def test_unknown_categories_are_a_sign_of_an_outlier(fitted, frame):
    known, missing, unknown = (frame.astype({"city": object}) for _ in range(3))
    missing.loc[:, "city"] = None
    unknown.loc[:, "city"] = "Rom"
    scores = {
        name: fitted.score_samples(X).mean()
        for name, X in (("known", known), ("missing", missing), ("unknown", unknown))
    }
    assert scores["unknown"] < scores["known"]
    assert scores["unknown"] < scores["missing"]
    if hasattr(fitted, "feature_contributions"):
        contributions = fitted.feature_contributions(unknown)
        assert_allclose(contributions.sum(axis=1), -fitted.score_samples(unknown))
        assert (contributions.argmax(axis=1) == 1).mean() > 0.9


def test_unknown_categories_are_read_as_missing(frame):
    model = AutoencoderTransformer(2, **NATIVE).fit(frame)
    missing, unknown = (frame.astype({"city": object}) for _ in range(2))
    missing["city"], unknown["city"] = None, "Rom"
    assert_array_equal(model.transform(unknown), model.transform(missing))
    assert_array_equal(model.reconstruct(unknown), model.reconstruct(missing))


@pytest.mark.parametrize("n_categories", [1, 2, 5, 300])
def test_an_unknown_category_is_as_far_as_any_other(n_categories):
    c = unknown_value(n_categories)
    known = np.eye(n_categories)[0]
    assert_allclose(np.sum((known - c) ** 2), 2)
    assert c < 0


def test_categories_of_rows_without_weight_are_unknown(frame):
    X = frame.astype({"city": object})
    X.loc[0, "city"] = "Rom"
    weight = np.ones(len(X))
    weight[0] = 0
    model = AutoencoderOutlierDetector(**NATIVE).fit(X, sample_weight=weight)
    without = AutoencoderOutlierDetector(**NATIVE).fit(X[1:])
    assert_array_equal(model.score_samples(X), without.score_samples(X))
    assert_allclose(model.training_scores_, model.score_samples(X))


# What is refused


@pytest.mark.parametrize(
    "dates",
    [
        pd.Series(pd.date_range("2026-01-01", periods=90)),
        pd.Series(pd.date_range("2026-01-01", periods=90).date),
        pd.Series(pd.date_range("2026-01-01", periods=90), dtype="category"),
        pd.Series(pd.to_timedelta(np.arange(90), unit="h")),
    ],
    ids=lambda dates: f"{dates.dtype}",
)
@pytest.mark.parametrize("given", ["from_dtype", ["day"]], ids=str)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_dates_are_refused(estimator, given, dates, frame):
    model = estimator(**{**NATIVE, "categorical_features": given})
    with pytest.raises(TypeError, match=r"dates or durations.*'day'.*dt\.month"):
        model.fit(frame[["size", "city"]].assign(day=dates))


def test_sparse_tables_are_refused():
    model = AutoencoderTransformer(**{**SMALL, "categorical_features": [0]})
    with pytest.raises(TypeError, match=r"categorical_features=\[0\] needs dense"):
        model.fit(sparse.csr_array(np.eye(8)))


@pytest.mark.parametrize("given", ["from_dtype", [0]], ids=str)
def test_partitions_are_refused(given, frame):
    model = AutoencoderTransformer(**{**NATIVE, "categorical_features": given})
    with pytest.raises(TypeError, match=r"categorical_features=.* in memory"):
        model.fit([frame[:40], frame[40:]])


@pytest.mark.parametrize(
    "settings",
    [
        {"network": "conv", "hidden_layer_sizes": "auto"},
        {"input_shape": (4,)},
        {"network": MLP((8,), output_activation="tanh"), "hidden_layer_sizes": "auto"},
    ],
    ids=str,
)
def test_networks_without_a_softmax_per_feature_are_refused(settings, frame):
    model = AutoencoderTransformer(**{**NATIVE, **settings})
    with pytest.raises(
        ValueError, match=f"categorical_features.*{next(iter(settings))}="
    ):
        model.fit(frame)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ((1, 2), TypeError, "type tuple in the categorical column 'city'"),
        (np.ones(2), TypeError, "type ndarray in the categorical column 'city'"),
        (Fraction(1, 2), TypeError, "type Fraction in the categorical column 'city'"),
        (Decimal("0.5"), TypeError, "type Decimal in the categorical column 'city'"),
        (np.inf, ValueError, "infinity in the categorical column 'city'"),
        (1 + 2j, TypeError, "type complex in the categorical column 'city'"),
    ],
    ids=str,
)
def test_values_that_are_no_categories_are_refused(value, error, message, frame):
    X = frame.astype({"city": object})
    X.at[3, "city"] = value
    with pytest.raises(error, match=message):
        AutoencoderTransformer(**NATIVE).fit(X)


def test_a_feature_without_a_category_is_refused(frame):
    X = frame.assign(city=pd.Series([None] * 90, dtype="string"))
    with pytest.raises(ValueError, match=r"no observed value.*city"):
        AutoencoderTransformer(**NATIVE).fit(X)


def test_a_feature_that_identifies_rows_is_refused(monkeypatch, frame):
    monkeypatch.setattr("skae._categories.MAX_CATEGORIES", 10)
    X = frame.assign(city=[f"city {i}" for i in range(90)])
    with pytest.raises(ValueError, match="90 categories in the column 'city'"):
        AutoencoderTransformer(**NATIVE).fit(X)


def test_new_names_and_widths_are_refused(fitted, frame):
    with pytest.raises(ValueError, match="feature names should match"):
        fitted.score_samples(frame.rename(columns={"city": "town"}))
    rows = frame.to_numpy()
    model = AutoencoderTransformer(**{**NATIVE, "categorical_features": [1, 2, 3]})
    with pytest.raises(ValueError, match="3 features"):
        model.fit(rows).score_samples(rows[:, :3])


def test_words_among_the_numbers_are_refused(fitted, frame):
    X = frame.astype({"size": object})
    X.at[0, "size"] = "large"
    with pytest.raises(ValueError, match="'large' in column 'size'"):
        fitted.score_samples(X)


@pytest.mark.parametrize("values", [[1, True, 1.0, 2], ["a", 0, False, 3.5]], ids=str)
def test_categories_do_not_depend_on_the_order_of_the_rows(values):
    found = []
    for entries in (values, values[::-1]):
        X = np.array(entries, dtype=object)[:, None]
        (levels,) = Categories.of(X, np.array([True]), None).levels
        found.append([(type(level), level) for level in levels])
    assert found[0] == found[1]


# Training


def test_validation_rows_have_the_categories_of_the_training_rows(frame):
    X_val = make_frame(30, seed=1).astype({"city": object})
    X_val.loc[0, "city"] = "Rom"
    model = AutoencoderTransformer(2, **NATIVE).fit(frame, X_val=X_val)
    assert np.isfinite(model.validation_loss_curve_).all()


def test_the_first_call_of_partial_fit_fixes_the_categories(frame):
    for estimator in ESTIMATORS:
        model = estimator(**NATIVE).partial_fit(frame)
        new = make_frame(30, seed=1).astype({"city": object})
        new.loc[0, "city"] = "Rom"
        model.partial_fit(new)
        assert model.n_features_in_ == 4
        assert np.isfinite(model.score_samples(new)).all()


def test_a_warm_start_goes_on(frame):
    model = AutoencoderOutlierDetector(warm_start=True, **NATIVE).fit(frame)
    model.fit(frame)
    assert model.n_iter_ == 8
    model.set_params(categorical_features=None)
    with pytest.raises(ValueError, match="categorical_features=None differs"):
        model.fit(frame)


def test_weights_are_repetitions(frame):
    weight = np.random.default_rng(0).integers(1, 4, len(frame))
    for estimator in ESTIMATORS:
        one = estimator(**NATIVE).fit(frame, sample_weight=weight)
        other = estimator(**NATIVE).fit(frame.loc[frame.index.repeat(weight)])
        assert_array_equal(one.score_samples(frame), other.score_samples(frame))


@pytest.mark.parametrize("loss", ["squared_error", "absolute_error", "huber", "mixed"])
@pytest.mark.parametrize("bottleneck", ["deterministic", "gaussian", "topk"])
def test_losses_of_numbers_and_bottlenecks(loss, bottleneck, frame):
    X = frame.assign(flag=(frame["size"] > 3).astype(float))
    for estimator in ESTIMATORS:
        model = estimator(loss=loss, bottleneck=bottleneck, **NATIVE).fit(X)
        assert np.isfinite(model.score_samples(X)).all()


def test_binary_columns_are_named_among_all_features(frame):
    X = frame.assign(flag=(frame["size"] > 3).astype(float))
    for binary in (["flag"], [4], "auto"):
        model = AutoencoderTransformer(loss=Mixed(binary), **NATIVE).fit(X)
        flags = model.reconstruct(X)[:, 4].astype(float)
        assert ((flags > 0) & (flags < 1)).all()


@pytest.mark.parametrize(
    "corruption", ["swap", "masking", "salt_and_pepper", "gaussian"]
)
def test_corruptions(corruption, frame):
    model = AutoencoderTransformer(2, corruption=corruption, **NATIVE).fit(frame)
    assert np.isfinite(model.score_samples(frame)).all()


@pytest.mark.parametrize("corruption", ["swap", "masking"])
def test_the_columns_of_a_feature_are_corrupted_together(corruption):
    from skae.corruptions import Masking, Spread, Swap

    spec = {"swap": Swap, "masking": Masking}[corruption]()
    codes = torch.randint(0, 4, (500,), generator=torch.Generator().manual_seed(0))
    X = nn.functional.one_hot(codes, 4).float()
    feature = torch.zeros(4, dtype=torch.int64)
    spread = Spread(X.mean(dim=0), X.amin(dim=0), X.amax(dim=0), feature)
    module = spec.build(0.5, spread)
    module.generator = torch.Generator().manual_seed(0)
    corrupted = module(X)
    is_masked = (corrupted == spread.mean).all(dim=1)
    is_one_hot = (corrupted.sum(dim=1) == 1) & (corrupted.amax(dim=1) == 1)
    assert (is_masked | is_one_hot).all()
    assert not torch.equal(corrupted, X)


def test_the_columns_of_a_feature_are_visible_together(frame):
    model = AutoencoderOutlierDetector(**NATIVE).fit(frame)
    visible = model.module_.visible[:, 0]
    layout = model.module_.loss.layout
    for start, width in zip(layout.first, layout.widths, strict=True):
        block = visible[:, start : start + width]
        assert (block == block[:, :1]).all()
    assert (visible[:, layout.first].sum(dim=1) == 2).all()


def test_ordered_components(frame):
    model = AutoencoderTransformer(2, ordered=True, **NATIVE).fit(frame)
    assert model.explained_variance_curve(frame).shape == (2,)
    assert set(model.truncate(1).reconstruct(frame)[:, 3]) <= {"flat", "house"}


def test_training_starts_near_the_pca_of_the_columns(frame):
    settings = {**NATIVE, "early_stopping": False, "max_epochs": 1}
    model = AutoencoderTransformer(2, learning_rate=1e-12, **settings).fit(frame)
    assert (model.reconstruct(frame)[:, 1] == frame["city"]).mean() > 0.9


def test_contributions_of_components_belong_to_features(frame):
    model = AutoencoderTransformer(2, **NATIVE).fit(frame)
    assert model.component_contributions(frame).shape == (2, 4)


def test_mean_has_no_value_for_categories(frame):
    model = AutoencoderTransformer(2, **NATIVE).fit(frame)
    assert_allclose(model.mean_[0], frame["size"].mean())
    assert np.isnan(model.mean_[1:]).all()


# Around scikit-learn


def test_pipelines_and_column_transformers(frame):
    native = AutoencoderOutlierDetector(**NATIVE)
    scaler = make_column_transformer(
        (StandardScaler(), ["size"]),
        remainder="passthrough",
        verbose_feature_names_out=False,
    ).set_output(transform="pandas")
    assert set(make_pipeline(scaler, native).fit_predict(frame)) <= {-1, 1}
    columns = make_column_transformer(
        (AutoencoderTransformer(2, **NATIVE), ["city", "kind", "size"]),
        ("passthrough", ["size"]),
    )
    assert columns.fit_transform(frame).shape == (90, 3)


def test_grid_search(frame):
    search = GridSearchCV(
        AutoencoderTransformer(**NATIVE), {"n_components": [1, 2]}, cv=2
    ).fit(frame)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_fitted_estimators_are_stored(fitted, frame, tmp_path):
    expected = fitted.score_samples(frame)
    pickled = pickle.loads(pickle.dumps(fitted))
    assert_array_equal(pickled.score_samples(frame), expected)
    skae.save(fitted, tmp_path / "model.safetensors")
    loaded = skae.load(tmp_path / "model.safetensors")
    assert_array_equal(loaded.score_samples(frame), expected)
    assert_array_equal(loaded.reconstruct(frame), fitted.reconstruct(frame))
    assert_array_equal(loaded.is_categorical_, fitted.is_categorical_)
    assert clone(fitted).categorical_features == "from_dtype"


def test_a_checkpoint_belongs_to_the_categories(frame, tmp_path):
    settings = {**NATIVE, "checkpoint": tmp_path}
    AutoencoderTransformer(2, **settings).fit(frame)
    AutoencoderTransformer(2, **settings).fit(frame)
    assert len(list(tmp_path.iterdir())) == 1
    other = frame.replace({"city": {"Ulm": "Umm"}})
    AutoencoderTransformer(2, **settings).fit(other)
    assert len(list(tmp_path.iterdir())) == 2


def test_contributions_have_the_columns_of_the_user(frame):
    detector = AutoencoderOutlierDetector(**NATIVE).set_output(transform="pandas")
    contributions = detector.fit(frame).feature_contributions(frame)
    assert list(contributions.columns) == COLUMNS
    assert_allclose(contributions.sum(axis=1), -detector.score_samples(frame))


def test_p_values(frame):
    detector = AutoencoderOutlierDetector(**NATIVE).fit(frame)
    assert ((detector.p_values(frame) > 0) & (detector.p_values(frame) <= 1)).all()


def test_one_row_has_the_score_that_it_has_in_a_table(fitted, frame):
    together = fitted.score_samples(frame)
    alone = [fitted.score_samples(frame[i : i + 1])[0] for i in range(5)]
    assert_allclose(alone, together[:5], rtol=1e-9)


# Parts


def test_encoded_rows_are_decoded():
    X = np.array([[1.5, "b", True], [2.5, None, False], [0.0, "a", None]], dtype=object)
    categories = Categories.of(X, np.array([False, True, True]), None)
    assert categories.levels == (None, ("a", "b"), (False, True))
    rows = categories.encode(X, X[:, :1].astype(float))
    nan = np.nan
    expected = [[1.5, 0, 1, 0, 1], [2.5, nan, nan, 1, 0], [0.0, 1, 0, nan, nan]]
    assert_array_equal(rows, expected)
    decoded = categories.decoded_array(np.nan_to_num(rows))
    assert_array_equal(decoded[0], X[0])


def test_the_softmax_and_its_loss_are_those_of_each_feature():
    layout = Layout((1, 3, 2, 3, 1), (False, True, True, True, False))
    loss = CategoricalLoss(LogError(), layout, (9.0,) * 5)
    raw = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)).double()
    output = loss.build_output(10).double()
    assert isinstance(output, BlockSoftmax)
    X_hat = output(raw)
    X = torch.zeros(6, 10).double()
    X[:, [0, 9]] = 0.5
    X[:, [2, 4, 8]] = 1
    X[0, 1:4] = unknown_value(3)
    losses = loss.elementwise_from_raw(X, raw, output)
    for j, (start, width) in enumerate(zip(layout.first, layout.widths, strict=True)):
        columns = slice(start, start + width)
        if width == 1:
            assert_array_equal(X_hat[:, columns], raw[:, columns])
            expected = LogError().elementwise(X[:, start], raw[:, start])
        else:
            assert_allclose(X_hat[:, columns], raw[:, columns].softmax(dim=1))
            expected = -(X[:, columns] * X_hat[:, columns].log()).sum(dim=1)
            if j == 1:
                expected[0] = np.log(10)
        assert_allclose(losses[:, j], expected)
    assert_allclose(loss.elementwise(X, X_hat), losses)
    residuals = loss.residuals_from_raw(X, raw, output)
    assert_allclose(residuals[:, 1:4].log1p(), losses[:, 1:4])


def test_the_start_of_the_decoder_reproduces_the_mean_and_small_deviations():
    layout = Layout((3, 1), (True, False))
    loss = CategoricalLoss(SquaredError(), layout, (9.0, 9.0))
    mean = np.array([0.2, 0.3, 0.5, 7.0])
    raw, slope = loss.decoder_start(mean)
    change = 1e-3 * np.array([1, -2, 1, 5])
    output = loss.build_output(4)
    X_hat = output(torch.from_numpy(np.stack([raw, raw + slope * change])))
    assert_allclose(X_hat[0], mean)
    assert_allclose(X_hat[1] - X_hat[0], change, rtol=0.3)


def test_explanations_have_the_values_of_the_user(frame):
    detector = AutoencoderOutlierDetector(**NATIVE).fit(frame)
    X = frame.astype({"city": object})
    X.loc[0, "city"] = "Rom"
    explanation = detector.explain(X, top=4)
    first = explanation.loc[0].set_index("feature")
    assert first.index[0] == "city"
    assert first.loc["city", "value"] == "Rom"
    assert first.loc["city", "expected"] in ("Ulm", "Bonn", "Köln")
    assert_allclose(first.loc["size", "value"], X["size"][0])
    by_row = explanation["contribution"].groupby(level=0).sum()
    assert_allclose(by_row, -detector.score_samples(X))


def test_displays_have_categories_or_refuse_them(frame):
    detector = AutoencoderOutlierDetector(**NATIVE).fit(frame)
    display = FeatureContributionDisplay.from_estimator(detector, frame)
    labels = [label.get_text() for label in display.ax_.get_yticklabels()]
    assert any("city = Köln instead of " in label for label in labels)
    model = AutoencoderTransformer(2, **NATIVE).fit(frame)
    for refusing in (ReconstructionDisplay, ComponentTraversalDisplay):
        with pytest.raises(ValueError, match=r"draws numbers.*categorical_features"):
            refusing.from_estimator(model, frame)


def test_a_graph_takes_numbers_and_positions_of_words(fitted, frame):
    onnxruntime = pytest.importorskip("onnxruntime")
    graph = pytest.importorskip("skae.onnx._graph")
    levels = fitted._trained.categories.levels
    X = frame.astype({"city": object})
    X.loc[0, "city"], X.loc[1, "city"] = None, "Rom"
    numbers = X[["size"]].to_numpy()
    for j, name in enumerate(COLUMNS[1:], start=1):
        position = {level: float(i) for i, level in enumerate(levels[j])}
        position[None] = np.nan
        column = [position.get(value, -1.0) for value in X[name].tolist()]
        numbers = np.column_stack([numbers, column])
    methods = ["score_samples", "reconstruct"]
    model = graph.build_model(fitted, methods, "float64")
    session = onnxruntime.InferenceSession(model.SerializeToString())
    scores, rows = session.run(methods, {"X": numbers})
    assert_allclose(scores, fitted.score_samples(X))
    X_hat = fitted.reconstruct(X)
    assert_allclose(rows[:, 0], X_hat[:, 0].astype(float))
    assert [levels[1][int(i)] for i in rows[:, 1]] == X_hat[:, 1].tolist()
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["categories"])[1] == list(levels[1])


@pytest.mark.parametrize(
    ("levels", "dtype"),
    [
        ((2**24 + 1, 2**24 + 2), "float32"),
        ((2**60 + 1, 2**60 + 2), "float64"),
        ((10**400, 1), "float64"),
        ((0.1, 0.1 + 1e-12), "float32"),
    ],
    ids=str,
)
def test_graphs_refuse_categories_that_their_type_cannot_distinguish(
    levels, dtype, tmp_path
):
    pytest.importorskip("onnxscript")
    X = np.array([[float(i), levels[i % 2]] for i in range(20)], dtype=object)
    model = AutoencoderTransformer(1, **SMALL, categorical_features=[1]).fit(X)
    with pytest.raises(ValueError, match=f"dtype='{dtype}' cannot distinguish"):
        skae.export_onnx(model, tmp_path / "x.onnx", dtype=dtype)
