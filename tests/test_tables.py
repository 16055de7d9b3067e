"""Metadata routing, data frames, and tables of numbers and categories."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import sklearn
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.datasets import load_wine
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import nn

from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae.bottlenecks import Gaussian
from skae.losses import Mixed
from skae.networks import MLP, Custom

SMALL = {"hidden_layer_sizes": (8,), "max_epochs": 5, "random_state": 0}


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


@pytest.fixture(params=[AutoencoderTransformer, AutoencoderOutlierDetector])
def estimator(request):
    return request.param(2, **SMALL)


@pytest.fixture(scope="module")
def frame():
    X = load_wine(as_frame=True).data.iloc[::3, :5]
    return X.set_axis([f"wine {i}" for i in range(len(X))])


@pytest.fixture
def weight(frame):
    return np.random.default_rng(0).integers(0, 3, len(frame)).astype(float)


# Weights


@pytest.mark.usefixtures("routing")
def test_pipeline_routes_weights_to_fit(estimator, frame, weight):
    with_request = clone(estimator).set_fit_request(sample_weight=True)
    scaler = StandardScaler().set_fit_request(sample_weight=False)
    pipeline = make_pipeline(scaler, with_request).fit(frame, sample_weight=weight)
    scaled = StandardScaler().fit_transform(frame)
    expected = estimator.fit(scaled, sample_weight=weight).score_samples(scaled)
    assert_array_equal(pipeline.score_samples(frame), expected)


@pytest.mark.usefixtures("routing")
def test_grid_search_routes_weights_to_fit_and_score(frame, weight):
    ae = AutoencoderTransformer(**SMALL)
    ae.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
    folds = [(np.arange(0, 40), np.arange(40, 60))]
    search = GridSearchCV(ae, {"n_components": [1]}, cv=folds)
    search.fit(frame, sample_weight=weight)
    train, test = folds[0]
    ae = clone(ae).set_params(n_components=1)
    ae.fit(frame.iloc[train], sample_weight=weight[train])
    expected = ae.score(frame.iloc[test], sample_weight=weight[test])
    assert search.cv_results_["split0_test_score"] == [expected]


@pytest.mark.usefixtures("routing")
def test_fit_transform_and_fit_predict_use_weights(estimator, frame, weight):
    name = "transform" if hasattr(estimator, "transform") else "predict"
    with_request = clone(estimator).set_fit_request(sample_weight=True)
    result = getattr(with_request, f"fit_{name}")(frame, sample_weight=weight)
    expected = getattr(estimator.fit(frame, sample_weight=weight), name)(frame)
    assert_array_equal(result, expected)


@pytest.mark.usefixtures("routing")
def test_weights_that_no_step_requests_are_refused(estimator, frame, weight):
    with pytest.raises(ValueError, match="sample_weight"):
        make_pipeline(estimator).fit(frame, sample_weight=weight)


# Names and containers


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_other_feature_names_raise_the_error_of_scikit_learn(estimator, frame, library):
    table = frame if library == "pandas" else pl.from_pandas(frame)
    estimator.fit(table)
    assert list(estimator.feature_names_in_) == list(frame.columns)
    other = frame.rename(columns={"ash": "soot"})
    other = other if library == "pandas" else pl.from_pandas(other)
    message = "feature names should match.*\n.*unseen at fit.*\n- soot"
    with pytest.raises(ValueError, match=message):
        estimator.score_samples(other)
    with pytest.raises(ValueError, match="must be in the same order"):
        estimator.reconstruct(frame[frame.columns[::-1]])


def test_pandas_output_has_columns_and_index_of_the_input(estimator, frame):
    estimator.set_output(transform="pandas").fit(frame)
    tables = [estimator.reconstruct(frame)]
    if hasattr(estimator, "feature_contributions"):
        tables.append(estimator.feature_contributions(frame))
        assert_allclose(tables[-1].sum(axis=1), -estimator.score_samples(frame))
    for table in tables:
        pd.testing.assert_index_equal(table.index, frame.index)
        pd.testing.assert_index_equal(table.columns, frame.columns)
    plain = estimator.set_output(transform="default").reconstruct(frame)
    assert type(plain) is np.ndarray
    assert_array_equal(tables[0], plain)


def test_polars_output_has_the_columns_of_the_input(estimator, frame):
    table = pl.from_pandas(frame)
    estimator.set_output(transform="polars").fit(table)
    assert estimator.reconstruct(table).schema == table.schema


def test_columns_are_numbered_where_the_input_is_an_array(frame):
    detector = AutoencoderOutlierDetector(2, **SMALL).fit(frame.to_numpy())
    with sklearn.config_context(transform_output="pandas"):
        contributions = detector.feature_contributions(frame.to_numpy())
    assert list(contributions.columns) == ["x0", "x1", "x2", "x3", "x4"]


def test_clone_keeps_set_output(frame):
    detector = AutoencoderOutlierDetector(2, **SMALL).set_output(transform="pandas")
    detector = clone(detector.set_output()).fit(frame)
    assert isinstance(detector.feature_contributions(frame), pd.DataFrame)


def test_unknown_output_container_is_refused(frame):
    detector = AutoencoderOutlierDetector(2, **SMALL).fit(frame)
    with pytest.raises(ValueError, match=r"output config must be in.*got arrow"):
        detector.set_output(transform="arrow").reconstruct(frame)


# Mixed columns


@pytest.fixture(scope="module")
def mixed():
    """A category that depends on a number, another number, and a rare "yes"."""
    rng = np.random.default_rng(0)
    kind = rng.integers(3, size=300)
    return pd.DataFrame(
        {
            "size": kind + 0.2 * rng.standard_normal(300),
            "noise": 100 * rng.standard_normal(300),
            "colour": np.array(["red", "green", "blue"])[kind],
            "sold": np.where(rng.random(300) < 0.2, "yes", "no"),
        }
    )


@pytest.fixture
def encoder():
    """Scales numbers, and encodes categories as columns of 0 and 1."""
    return make_column_transformer(
        (StandardScaler(), make_column_selector(dtype_include="number")),
        (
            OneHotEncoder(sparse_output=False, drop="if_binary"),
            make_column_selector(dtype_exclude="number"),
        ),
        verbose_feature_names_out=False,
    ).set_output(transform="pandas")


INDICATORS = ["colour_blue", "colour_green", "colour_red", "sold_yes"]


def test_indicators_are_reconstructed_as_probabilities(encoder, mixed):
    ae = AutoencoderTransformer(
        3, loss="mixed", max_epochs=60, early_stopping=False, random_state=0
    )
    ae.set_output(transform="pandas")
    X = encoder.fit_transform(mixed)
    X_hat = ae.fit(X).reconstruct(X)
    assert list(X.columns[ae.module_.loss.binary]) == INDICATORS
    assert X_hat[INDICATORS].stack().between(0, 1).all()
    assert X_hat["noise"].std() > 0.9  # no sigmoid is applied to numbers
    likeliest = X_hat[INDICATORS[:3]].idxmax(axis=1).str.removeprefix("colour_")
    assert (likeliest == mixed["colour"]).mean() > 0.95


def test_mixed_loss_is_cross_entropy_and_squared_error(encoder, mixed):
    X = encoder.fit_transform(mixed)
    ae = AutoencoderTransformer(2, loss="mixed", **SMALL).fit(X)
    X_hat = ae.reconstruct(X)
    p = X_hat[:, 2:]
    entropy = -np.where(X[INDICATORS] == 1, np.log(p), np.log1p(-p))
    scale = np.sqrt(X[["size", "noise"]].var(ddof=0).mean())
    squares = ((X[["size", "noise"]] - X_hat[:, :2]) / scale) ** 2
    expected = -np.hstack([entropy, squares]).mean(axis=1)
    assert_allclose(ae.score_samples(X), expected)


def test_unlikely_combination_of_values_is_an_outlier(encoder, mixed):
    pipeline = make_pipeline(
        encoder, AutoencoderOutlierDetector(loss="mixed", trim=0, random_state=0)
    )
    unlikely = mixed.iloc[[0]].assign(size=2.0, noise=0.0, colour="red", sold="no")
    usual = unlikely.assign(colour="blue")
    pipeline.fit(mixed)
    assert pipeline.predict(pd.concat([unlikely, usual])).tolist() == [-1, 1]
    detector = pipeline[-1].set_output(transform="pandas")
    shares = detector.feature_contributions(encoder.transform(unlikely))
    assert shares.iloc[0].idxmax() in ("colour_blue", "colour_red", "size")


def test_missing_indicators_are_reconstructed_as_probabilities(mixed):
    rng = np.random.default_rng(1)
    X = np.c_[mixed["size"], pd.get_dummies(mixed["colour"]).astype(float)]
    X[rng.random(X.shape) < 0.1] = np.nan
    ae = AutoencoderTransformer(2, loss="mixed", **SMALL).fit(X)
    assert ae.module_.loss.binary == [1, 2, 3]
    filled = ae.reconstruct(X)[:, 1:]
    assert ((filled > 0) & (filled < 1)).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"network": "conv", "bottleneck": Gaussian(score="elbo")},
        {"n_estimators": 2, "penalty": "contractive", "error": "loss"},
        {"bottleneck": "quantized", "corruption": "masking", "scale": None},
        {"penalty": "l1", "early_stopping": "auto", "scale": "global"},
    ],
)
def test_mixed_loss_works_with_every_other_part(settings, mixed, encoder):
    X = encoder.fit_transform(mixed).to_numpy()
    X[::7, 4] = np.nan
    detector = AutoencoderOutlierDetector(3, loss="mixed", **{**SMALL, **settings})
    detector.fit(X)
    p = detector.reconstruct(X)[:, 2:]
    assert ((p > 0) & (p < 1)).all()
    scores = detector.score_samples(X)
    assert np.isfinite(scores).all()
    assert_allclose(detector.score_samples(X[:1]), scores[:1])


@pytest.mark.parametrize(
    "binary", [[1, 2], ["b", "c"], np.array([False, True, True]), ["c", "b"]]
)
def test_binary_columns_can_be_listed(binary):
    X = pd.DataFrame(
        np.random.default_rng(0).uniform(size=(40, 3)), columns=["a", "b", "c"]
    )
    X["a"] *= 9
    ae = AutoencoderTransformer(2, loss=Mixed(binary), **SMALL).fit(X)
    assert ae.module_.loss.binary == [1, 2]
    scores = ae.score_samples(X)
    assert (ae.score_samples(X.assign(a=100.0)) < scores.min()).all()
    with pytest.raises(ValueError, match=r"needs column\(s\) b, c in \[0, 1\].*and 2"):
        ae.fit(X.assign(c=2.0))


def test_columns_listed_as_binary_must_lie_between_0_and_1(frame):
    ae = AutoencoderTransformer(2, loss=Mixed(["ash"]), **SMALL)
    with pytest.raises(ValueError, match=r"Mixed.*column\(s\) ash in \[0, 1\]"):
        ae.fit(frame)
    assert not hasattr(ae, "n_features_in_")


@pytest.mark.parametrize(
    ("binary", "message"),
    [
        ([5], "positions from 0 to 4"),
        ([-1], "positions from 0 to 4"),
        ([[0]], "positions from 0 to 4"),
        ([0.5], "positions from 0 to 4"),
        ([True, False], "one bool for each of the 5"),
        (["ash", "soot"], r"columns that X does not have: \['soot'\]"),
        ("ash", "The 'binary' parameter of Mixed"),
    ],
)
def test_columns_that_X_lacks_are_refused(binary, message, frame):
    ae = AutoencoderTransformer(2, loss=Mixed(binary), **SMALL)
    with pytest.raises(ValueError, match=message):
        ae.fit(frame)


@pytest.mark.parametrize("loss", ["mixed", Mixed([])])
def test_mixed_loss_without_binary_columns_is_squared_error(loss, frame):
    mixed = AutoencoderTransformer(2, loss=loss, **SMALL).fit(frame)
    plain = AutoencoderTransformer(2, **SMALL).fit(frame)
    assert_array_equal(mixed.transform(frame), plain.transform(frame))


def test_constant_and_rescaled_columns_are_not_binary():
    X = np.random.default_rng(0).integers(2, size=(50, 4)).astype(float)
    X[:, 1] = 1
    X[:, 2] *= 2
    ae = AutoencoderTransformer(1, loss="mixed", **SMALL).fit(X)
    assert ae.module_.loss.binary == [0, 3]


def test_rows_of_weight_zero_do_not_affect_which_columns_are_binary():
    X = np.random.default_rng(0).integers(2, size=(50, 2)).astype(float)
    X[0, 0] = 0.5
    weight = np.ones(50)
    weight[0] = 0
    ae = AutoencoderTransformer(1, loss="mixed", **SMALL)
    assert ae.fit(X, sample_weight=weight).module_.loss.binary == [0, 1]
    assert ae.fit(X).module_.loss.binary == [1]


def test_binary_columns_are_the_same_for_sparse_and_dense():
    rng = np.random.default_rng(0)
    X = (rng.random((60, 5)) < 0.3).astype(float)
    X[:, 1] *= rng.standard_normal(60)
    X[3, 2] = np.nan
    ae = AutoencoderTransformer(2, loss="mixed", **SMALL)
    dense = ae.fit(X).reconstruct(X)
    assert ae.module_.loss.binary == [0, 2, 3, 4]
    assert_allclose(ae.fit(sparse.csr_array(X)).reconstruct(X), dense, atol=1e-6)
    assert ae.module_.loss.binary == [0, 2, 3, 4]


CONTAINERS = {
    "CSR": sparse.csr_array,
    "CSC": sparse.csc_matrix,
    "float32": np.float32,
    "Fortran": np.asfortranarray,
    "frame": pd.DataFrame,
}


@pytest.mark.parametrize(
    ("estimator", "method", "width", "is_weighted"),
    [
        (AutoencoderTransformer(2, early_stopping=False), "fit", 12, True),
        (AutoencoderTransformer(2, scale="feature"), "fit", 12, False),
        (AutoencoderTransformer(2, early_stopping=False), "fit", 1100, True),
        (AutoencoderTransformer(2), "partial_fit", 12, True),
        (AutoencoderOutlierDetector(2, n_estimators=2), "fit", 12, False),
    ],
    ids=["weighted", "scaled", "wide", "piecewise", "detector"],
)
def test_fits_to_equal_values_are_equal(estimator, method, width, is_weighted):
    rng = np.random.default_rng(0)
    X = rng.random((60, width)) * (rng.random((60, width)) < 0.4)
    X = X.astype(np.float32).astype(np.float64)
    weight = rng.uniform(0.5, 2, 60) if is_weighted else None
    estimator.set_params(**SMALL)

    def fitted(table):
        return getattr(clone(estimator), method)(table, sample_weight=weight)

    dense = fitted(X)
    for name, container in CONTAINERS.items():
        other = fitted(container(X))
        assert_array_equal(other.mean_, dense.mean_, err_msg=name)
        assert other.loss_curve_ == dense.loss_curve_, name
        actual, expected = other.score_samples(X), dense.score_samples(X)
        assert_array_equal(actual, expected, err_msg=name)
        assert getattr(other, "offset_", 0) == getattr(dense, "offset_", 0), name


def test_first_partial_fit_fixes_the_binary_columns(mixed, encoder):
    X = encoder.fit_transform(mixed)
    ae = AutoencoderTransformer(2, loss="mixed", **SMALL).partial_fit(X[:200])
    ae.partial_fit(X[200:].assign(colour_red=1.0))
    assert list(X.columns[ae.module_.loss.binary]) == INDICATORS
    with pytest.raises(ValueError, match="sold_yes"):
        ae.partial_fit(X[200:].assign(sold_yes=3.0))


def test_mixed_loss_refuses_initial_pca_and_output_activation(mixed, encoder):
    X = encoder.fit_transform(mixed)
    with pytest.raises(ValueError, match=r"init='pca'.*loss='mixed'"):
        AutoencoderTransformer(2, loss="mixed", init="pca").fit(X)
    network = MLP(output_activation="identity")
    with pytest.raises(ValueError, match="loss='mixed' needs output_activation='auto'"):
        AutoencoderTransformer(2, loss="mixed", network=network).fit(X)


def test_custom_decoder_may_return_probabilities(mixed, encoder):
    X = encoder.fit_transform(mixed)[INDICATORS]
    decoder = nn.Sequential(nn.Linear(2, 4), nn.Sigmoid())
    network = Custom(nn.Linear(4, 2), decoder, output_activation="identity")
    ae = AutoencoderTransformer(2, network=network, loss="mixed", max_epochs=5)
    p = ae.fit(X).reconstruct(X)
    entropy = -np.where(X == 1, np.log(p), np.log1p(-p))
    assert_allclose(ae.score_samples(X), -entropy.mean(axis=1))
