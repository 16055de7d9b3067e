"""AutoencoderOutlierDetector: scores, threshold, and its members."""

import copy
import io
import pickle
from functools import partial

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
import torch
from devices import device_of
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skae import (
    AutoencoderOutlierDetector,
    AutoencoderTransformer,
    _defaults,
    _rows,
    _scores,
    load,
    outlier,
    save,
)
from skae._checks import check_parameters
from skae._explanation import shares
from skae.bottlenecks import Gaussian
from skae.losses import SquaredError
from skae.networks import Conv
from skae.outlier import auto_n_estimators

SMALL = {
    "hidden_layer_sizes": (16,),
    "max_epochs": 20,
    "batch_size": 32,
    "random_state": 0,
}


@pytest.fixture(scope="module")
def table():
    """200 points near a parabola and 12 outliers, of shape (212, 3)."""
    rng = np.random.default_rng(0)
    t = rng.uniform(-1, 1, size=200)
    inliers = np.column_stack([t, t**2, -t]) + 0.05 * rng.normal(size=(200, 3))
    return np.vstack([inliers, rng.uniform(-2, 2, size=(12, 3))])


@pytest.fixture(scope="module")
def detector(table):
    return AutoencoderOutlierDetector(1, **SMALL).fit(table)


def codes_of(detector, X):
    """Codes of each member, of shape (n_samples, n_members, n_components)."""
    rows = torch.tensor(X, dtype=torch.float32, device=device_of(detector))
    return detector.module_.encode(rows)


def test_rows_off_the_curve_have_lower_scores(detector, table):
    is_inlier = np.arange(len(table)) < 200
    assert roc_auc_score(is_inlier, detector.score_samples(table)) > 0.9


def test_decision_function_is_the_score_minus_the_offset(detector, table):
    decision = detector.decision_function(table)
    assert_array_equal(decision, detector.score_samples(table) - detector.offset_)
    assert_array_equal(detector.predict(table), np.where(decision < 0, -1, 1))


def test_detector_has_no_score_method(detector):
    assert not hasattr(detector, "score")


def test_contributions_sum_to_minus_the_score(detector, table):
    X = table.copy()
    X[::3, 1] = np.nan
    contributions = detector.feature_contributions(X)
    assert contributions.shape == X.shape
    assert contributions.dtype == np.float64
    assert (contributions >= 0).all()
    assert (contributions[::3, 1] == 0).all()
    assert_allclose(contributions.sum(axis=1), -detector.score_samples(X))


@pytest.mark.parametrize("bottleneck", [None, Gaussian(score="elbo")])
def test_contributions_do_not_exist_where_a_score_has_no_sum(bottleneck):
    detector = AutoencoderOutlierDetector(bottleneck=bottleneck)
    names = ("feature_contributions", "explain")
    assert not any(hasattr(detector, name) for name in names)
    detector.set_params(bottleneck="gaussian")
    assert all(hasattr(detector, name) for name in names)


def test_no_rows_are_held_out_by_default(table):
    detector = AutoencoderOutlierDetector(max_epochs=1, random_state=0).fit(table)
    assert detector.validation_loss_curve_ is None


def test_changed_feature_contributes_most(detector, table):
    row = table[[0]]
    row[0, 2] += 3
    assert detector.feature_contributions(row)[0].argmax() == 2


def test_explanations_have_the_largest_contributions(detector, table):
    rows = table[:5].copy()
    rows[0, 2] += 3
    rows[1, 1] = np.nan
    contributions = detector.feature_contributions(rows)
    X_hat = detector.reconstruct(rows)
    explanation = detector.explain(rows, top=2)
    assert explanation.index.names == ["row", "rank"]
    assert list(explanation.columns) == [
        *("feature", "value", "expected", "contribution", "share")
    ]
    for i, part in explanation.groupby(level="row"):
        top = np.argsort(-contributions[i])[:2]
        assert list(part.index.get_level_values("rank")) == [1, 2]
        assert list(part["feature"]) == [f"x{j}" for j in top]
        assert_array_equal(part["value"], rows[i, top])
        assert_array_equal(part["expected"], X_hat[i, top])
        assert_array_equal(part["contribution"], contributions[i, top])
        total = contributions[i].sum()
        assert_allclose(part["share"], contributions[i, top] / total)
    assert explanation.loc[(0, 1), "feature"] == "x2"


def test_explanations_have_names_and_index_of_a_frame(table):
    frame = pd.DataFrame(table, columns=[f"column {j}" for j in range(table.shape[1])])
    frame = frame.set_index(frame.index.astype(str) + "th").rename_axis("customer")
    detector = AutoencoderOutlierDetector(max_epochs=1, random_state=0).fit(frame)
    explanation = detector.explain(frame, top=100)
    assert explanation.index.names == ["customer", "rank"]
    assert len(explanation) == table.size
    assert set(explanation.loc["7th", "feature"]) == set(frame.columns)
    assert explanation.loc["7th", "share"].sum() == pytest.approx(1)


def test_explanations_have_all_levels_of_an_index(table):
    detector, X = AutoencoderOutlierDetector(max_epochs=1, random_state=0), table[:20]
    index = pd.MultiIndex.from_product([["a", "b"], range(10)], names=["site", "day"])
    explanation = detector.fit(X).explain(pd.DataFrame(np.asarray(X), index=index))
    assert explanation.index.names == ["site", "day", "rank"]
    assert explanation.index[-1][:2] == ("b", 9)


def test_explanations_of_sparse_rows_are_those_of_dense_ones(
    detector, table, monkeypatch
):
    expected = detector.explain(table)
    monkeypatch.setattr(outlier, "MAX_EXPLAINED_ENTRIES", 3 * table.shape[1])
    pd.testing.assert_frame_equal(detector.explain(table), expected)
    pd.testing.assert_frame_equal(detector.explain(sparse.csr_array(table)), expected)


def test_rows_with_nothing_to_explain_have_shares_of_zero(detector, table):
    empty = np.full((1, table.shape[1]), np.nan)
    explanation = detector.explain(empty)
    assert (explanation[["contribution", "share"]] == 0).all(axis=None)
    assert explanation["value"].isna().all()


def test_infinite_contributions_divide_the_whole():
    contributions = np.array([[1.0, np.inf, 2.0, np.inf], [1.0, 0.0, 3.0, 0.0]])
    expected = [[0, 0.5, 0, 0.5], [0.25, 0, 0.75, 0]]
    assert_array_equal(shares(contributions), expected)


@pytest.mark.parametrize("top", [0, -1, 1.5, True, "3", None])
def test_number_of_explained_features_is_checked(detector, table, top):
    with pytest.raises(ValueError, match=r"top must be an integer >= 1, got"):
        detector.explain(table, top)


@pytest.mark.parametrize("contamination", [0.05, 0.1, 0.5])
def test_contamination_is_the_share_of_flagged_rows(table, contamination):
    detector = AutoencoderOutlierDetector(1, contamination=contamination, **SMALL)
    n_flagged = (detector.fit_predict(table) == -1).sum()
    assert abs(n_flagged - contamination * len(table)) <= 0.5


def test_contamination_is_the_share_of_flagged_weight(table):
    weight = np.where(np.arange(len(table)) < 200, 1, 10)
    detector = AutoencoderOutlierDetector(1, contamination=0.2, **SMALL)
    flagged = detector.fit(table, sample_weight=weight).predict(table) == -1
    assert_allclose(weight[flagged].sum() / weight.sum(), 0.2, atol=0.02)


def test_auto_threshold_flags_gross_outliers_and_few_clean_rows(table):
    detector = AutoencoderOutlierDetector(1, **SMALL)
    assert (detector.fit_predict(table[:200]) == -1).mean() <= 0.02
    gross = np.vstack([table[:200], np.full((3, 3), 50.0)])
    assert (clone(detector).fit_predict(gross)[-3:] == -1).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("contamination", ["auto", 0.3])
def test_no_row_of_a_constant_table_is_flagged(dtype, contamination):
    X = np.full((10, 3), 0.1, dtype=dtype)
    detector = AutoencoderOutlierDetector(contamination=contamination, **SMALL)
    assert (detector.fit_predict(X) == 1).all()
    assert detector.predict(X[:1] + 1)[0] == -1


def two_blobs(n_outliers, d=5):
    """400 rows of two clusters, and uniform outliers that keep their distance."""
    rng = np.random.default_rng(d)
    inliers = 0.3 * rng.normal(size=(400, d)) + 2.0
    inliers[200:] -= 4.0
    X = rng.uniform(-6, 6, size=(3 * n_outliers, d))
    distance = np.minimum(*(np.linalg.norm(X - c, axis=1) for c in (2.0, -2.0)))
    return np.vstack([inliers, X[distance > 0.3 * (np.sqrt(d) + 3)][:n_outliers]])


def five_clusters(rng, n):
    centers = 3 * np.random.default_rng(0).normal(size=(5, 8))
    return centers[rng.integers(0, 5, n)] + 0.1 * rng.normal(size=(n, 8))


def windows(rng, n):
    """Windows of a noisy sine."""
    time = rng.uniform(0, 2 * np.pi, (n, 1)) + np.arange(32) / 20
    return np.sin(time) + 0.1 * rng.normal(size=(n, 32))


def repeated_measurements(rng, n):
    """Correlated rows; every row of a table was measured twice."""
    loadings = np.random.default_rng(0).normal(size=(2, 6))
    rows = rng.normal(size=(n // 2, 2)) @ loadings + 0.3 * rng.normal(size=(n // 2, 6))
    return np.vstack([rows, rows + 0.01 * rng.normal(size=rows.shape)])


@pytest.mark.parametrize("draw", [five_clusters, windows, repeated_measurements])
def test_auto_threshold_flags_few_rows_of_structured_tables(draw):
    rng = np.random.default_rng(0)
    X, X_new = draw(rng, 400), draw(rng, 400)
    detector = AutoencoderOutlierDetector(random_state=0)
    assert (detector.fit_predict(X) == -1).mean() <= 0.02
    assert (detector.predict(X_new) == -1).mean() <= 0.04
    detector.recalibrate(X_new)
    assert (detector.predict(X_new) == -1).mean() <= 0.02


@pytest.mark.parametrize("n_outliers", [5, 20, 60])
def test_auto_threshold_finds_well_separated_outliers(n_outliers):
    X = two_blobs(n_outliers)
    flagged = AutoencoderOutlierDetector(random_state=0).fit_predict(X) == -1
    assert flagged[400:].mean() >= 0.9
    assert flagged[:400].mean() <= 0.03


def test_auto_threshold_finds_two_of_eight_rows():
    rng = np.random.default_rng(0)
    X = np.vstack([rng.normal(size=(6, 3)), [[9.0, -8.0, 10.0], [-12.0, 9.0, 7.0]]])
    labels = AutoencoderOutlierDetector(random_state=0).fit_predict(X)
    assert labels.tolist() == [1] * 6 + [-1] * 2


@pytest.mark.parametrize(
    ("contamination", "share"), [(0.01, 0.0), (0.19, 0.0), (0.21, 0.4), (0.5, 0.4)]
)
def test_contamination_is_the_nearest_share_that_equal_rows_allow(contamination, share):
    X = np.zeros((50, 3))
    X[:20, 0] = 1  # a switch that is on in 40 % of the rows
    detector = AutoencoderOutlierDetector(1, contamination=contamination, **SMALL)
    assert (detector.fit_predict(X) == -1).mean() == share


def test_weights_are_repetitions_for_the_record_of_scores(table):
    weight = np.arange(len(table)) % 3 + 1
    weighted, repeated = (
        AutoencoderOutlierDetector(1, contamination=0.1, **SMALL) for _ in range(2)
    )
    for rows in np.array_split(np.arange(len(table)), 3):
        weighted.partial_fit(table[rows], sample_weight=weight[rows])
        repeated.partial_fit(np.repeat(table[rows], weight[rows], axis=0))
    assert weighted.offset_ == repeated.offset_


@pytest.mark.parametrize(
    ("n_rows", "size", "tolerance"), [(100, 1, 0.08), (300, 20, 0.04), (300, 100, 0.03)]
)
def test_partial_fit_in_pieces_flags_the_contamination(n_rows, size, tolerance):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(n_rows, 2)) @ rng.normal(size=(2, 5))
    X += 0.2 * rng.normal(size=X.shape)
    detector = AutoencoderOutlierDetector(
        n_estimators=2, contamination=0.1, random_state=1
    )
    for start in range(0, len(X), size):
        detector.partial_fit(X[start : start + size])
    assert abs((detector.predict(X) == -1).mean() - 0.1) <= tolerance
    detector.set_params(contamination="auto").partial_fit(X[:size])
    assert (detector.predict(X) == -1).mean() <= 0.02


def test_threshold_follows_a_change_of_the_rows(table):
    detector = AutoencoderOutlierDetector(1, contamination=0.1, **SMALL).fit(table)
    for _ in range(8):
        detector.partial_fit(np.repeat(3 * table, 3, axis=0))
    assert abs((detector.predict(3 * table) == -1).mean() - 0.1) <= 0.03


@pytest.mark.parametrize("way", ["pickle", "save"])
def test_a_loaded_detector_continues_the_record_of_scores(table, way, tmp_path):
    detector = AutoencoderOutlierDetector(1, contamination=0.1, **SMALL).fit(table)
    detector.partial_fit(table[:9])
    if way == "pickle":
        loaded = pickle.loads(pickle.dumps(detector))
    else:
        save(detector, tmp_path / "model.safetensors")
        loaded = load(tmp_path / "model.safetensors")
    n_recorded = len(detector._trained.scores.values)
    assert len(loaded.partial_fit(table[:1])._trained.scores.values) == n_recorded + 1
    assert loaded._trained.scores.n_seen == len(table) + 10
    flagged = (loaded.predict(table) == -1).mean()
    assert abs(flagged - 0.1) < 0.03  # the last row alone would give 0 or more than .9


def test_scores_of_another_error_are_not_added_to_the_record(table):
    detector = AutoencoderOutlierDetector(1, error="log", **SMALL).fit(table)
    detector.set_params(error="loss").partial_fit(table[:50])
    assert len(detector._trained.scores.values) == 50


@pytest.mark.parametrize(("dtype", "value"), [(np.float64, 1e308), (np.float32, 1e38)])
def test_row_that_overflows_the_network_is_an_outlier(detector, dtype, value):
    row = np.array([[value, -value, value]], dtype=dtype)
    scores = detector.score_samples(row)
    assert scores < -1e15
    assert detector.feature_contributions(row).sum() == pytest.approx(-scores[0])
    assert detector.predict(row) == -1


@pytest.mark.parametrize("contamination", [0, 0.51, 1, -0.1, "half"])
def test_contamination_outside_its_range_is_refused(contamination, table):
    detector = AutoencoderOutlierDetector(contamination=contamination)
    with pytest.raises(ValueError, match="'contamination' parameter"):
        detector.fit(table)


# Members


def test_one_member_with_all_features_is_a_plain_network(table):
    one = AutoencoderOutlierDetector(1, n_estimators=1, **SMALL).fit(table)
    assert one.module_.visible is None
    assert one.module_.encoder[0].weight.shape == (16, 3)


def test_members_are_stacked_in_one_module(table):
    detector = AutoencoderOutlierDetector(2, n_estimators=5, **SMALL).fit(table)
    assert detector.module_.encoder[0].weight.shape == (5, 16, 3)
    assert codes_of(detector, table[:7]).shape == (7, 5, 2)
    assert detector.reconstruct(table).shape == table.shape


def test_default_members_have_different_numbers_of_components():
    X = np.random.default_rng(0).normal(size=(40, 6))
    detector = AutoencoderOutlierDetector(max_epochs=1, random_state=0).fit(X)
    Z = codes_of(detector, X)
    assert Z.shape == (40, 16, 8)
    assert detector.n_components_ == 8
    widths = (Z != 0).any(dim=0).sum(dim=1)
    assert widths.tolist() == [1, 2, 4, 8] * 4


@pytest.mark.parametrize(
    ("max_features", "n_visible"), [("auto", 3), (1.0, 6), (0.01, 1), (4, 4), (1, 1)]
)
def test_each_member_uses_max_features(max_features, n_visible):
    X = np.random.default_rng(0).normal(size=(40, 6))
    detector = AutoencoderOutlierDetector(
        2, max_features=max_features, n_estimators=4, max_epochs=1, random_state=0
    ).fit(X)
    rows, changed = X[:1], []
    for j in range(6):
        other = rows.copy()
        other[0, j] += 1
        Z, Z_other = codes_of(detector, rows), codes_of(detector, other)
        changed.append((Z_other != Z).any(dim=2)[0])
    n_used = torch.stack(changed).sum(dim=0)
    assert n_used.tolist() == [n_visible] * 4


@pytest.mark.parametrize(("n_features", "n_visible"), [(1, 1), (2, 1), (3, 2), (9, 4)])
def test_each_member_uses_half_of_the_features(n_features, n_visible):
    X = np.random.default_rng(0).normal(size=(40, n_features))
    detector = AutoencoderOutlierDetector(max_epochs=1, random_state=0).fit(X)
    visible = detector.module_.visible
    assert visible.sum(dim=-1).flatten().tolist() == [n_visible] * 16


def test_reconstruction_and_score_are_means_of_the_members(table):
    detector = AutoencoderOutlierDetector(
        1,
        n_estimators=3,
        max_features=1.0,
        loss="absolute_error",
        error="loss",
        n_neighbors=0,
        **SMALL,
    ).fit(table)
    module = detector.net_.module_in(table.dtype)
    rows = torch.tensor(table, device=device_of(detector))
    target, _ = module.scaler(rows)
    with torch.no_grad():
        X_hat = module.decoder(module.encoder(target.expand(3, -1, -1)))
        expected = module.scaler.unscale(X_hat.mean(dim=0))
        errors = (X_hat - target).abs().mean(dim=(0, 2))
    assert_allclose(detector.reconstruct(table), expected.cpu())
    assert_allclose(detector.score_samples(table), -errors.cpu())


def test_log_error_is_relative_to_the_mean_residual(table):
    detector = AutoencoderOutlierDetector(
        1, n_estimators=1, n_neighbors=0, **SMALL
    ).fit(table)
    residuals = np.abs(table - detector.reconstruct(table))
    ratio = residuals / residuals.mean(axis=0)
    assert_allclose(detector.score_samples(table), -np.log1p(ratio).mean(axis=1))


def test_error_is_the_loss_where_the_bottleneck_adds_a_term(table):
    settings = {"bottleneck": Gaussian(score="elbo"), **SMALL}
    auto = AutoencoderOutlierDetector(1, **settings).fit(table)
    loss = AutoencoderOutlierDetector(1, error="loss", **settings).fit(table)
    assert_array_equal(auto.score_samples(table), loss.score_samples(table))
    with pytest.raises(ValueError, match="error='log'"):
        AutoencoderOutlierDetector(1, error="log", **settings).fit(table)


@pytest.mark.parametrize(
    "settings",
    [
        {"network": "conv"},
        {"bottleneck": "gaussian"},
        {"bottleneck": "quantized"},
        {"penalty": "l1"},
    ],
    ids=str,
)
def test_default_is_one_network_unless_it_is_a_plain_perceptron(table, settings):
    detector = AutoencoderOutlierDetector(max_epochs=2, random_state=0, **settings)
    assert detector.fit(table).module_.visible is None
    detector.set_params(n_estimators=2)
    assert len(detector.fit(table).module_.visible) == 2


def test_attributes_of_bottlenecks_have_a_row_for_each_member(table):
    settings = {"n_estimators": 3, "max_epochs": 2, "random_state": 0}
    detector = AutoencoderOutlierDetector(2, bottleneck="gaussian", **settings)
    assert detector.fit(table).active_units_.shape == (3, 2)
    detector = AutoencoderOutlierDetector(2, bottleneck="quantized", **settings)
    assert detector.fit(table).perplexity_.shape == (3, 1)


WIDE = _defaults.DETECTOR_WIDE


def not_interned(value):
    """A string that is equal, but not the same object, as those read from files."""
    return "".join(list(value)) if isinstance(value, str) else value


@pytest.mark.parametrize(
    ("settings", "n_features", "scale", "n_members", "n_components", "defaults"),
    [
        ({}, 6, "feature", 16, 8, _defaults.DETECTOR_MEMBERS),
        ({}, 6, "global", 4, 1, _defaults.DETECTOR_MEMBERS),
        ({}, 1, "feature", 16, 1, _defaults.DETECTOR_MEMBERS),
        ({}, 40, "global", 4, 10, _defaults.DETECTOR_MEMBERS),
        ({}, 100, "global", 4, 16, _defaults.DETECTOR_MEMBERS),
        ({}, WIDE, "feature", 16, 8, _defaults.DETECTOR_MEMBERS),
        ({}, WIDE + 1, "feature", 8, 8, _defaults.DETECTOR_WIDE_MEMBERS),
        ({}, WIDE + 1, "global", 4, 16, _defaults.DETECTOR_WIDE_UNIT_MEMBERS),
        ({"max_features": 1.0}, 3, "feature", 16, 2, _defaults.DETECTOR_MEMBERS),
        ({"max_features": 1.0}, 1, "feature", 16, 1, _defaults.DETECTOR_MEMBERS),
        ({"n_estimators": 2}, 6, "feature", 2, 2, _defaults.DETECTOR_MEMBERS),
        ({"n_estimators": 1}, 6, "feature", 1, 1, _defaults.DETECTOR),
        ({"trim": 0.0}, 6, "feature", 16, 16, _defaults.DETECTOR),
        ({"trim": 0.0}, 6, "global", 4, 16, _defaults.DETECTOR),
        ({"network": "conv"}, 6, "feature", 1, 1, _defaults.DETECTOR),
        (
            {"network": "conv", "n_estimators": 2},
            *(6, "feature", 2, 2, _defaults.DETECTOR),
        ),
    ],
)
def test_auto_depends_on_network_width_and_scale(
    settings, n_features, scale, n_members, n_components, defaults
):
    scale = not_interned(scale)
    detector = AutoencoderOutlierDetector(**settings)
    parts = check_parameters(detector)
    ensemble = detector._ensemble(parts, n_features, n_features, scale)
    assert (1 if ensemble is None else ensemble.n_members) == n_members
    found = detector._auto_n_components(parts, n_features, scale)
    assert found == n_components
    found = detector._training_defaults(parts, ensemble, n_features, scale)
    assert found is defaults
    loss = "squared_error" if (n_features > WIDE and scale == "global") else "log_error"
    assert detector._auto_loss(n_features, scale, False) == loss


@pytest.mark.parametrize("scale", ["auto", "global", "feature", None])
def test_names_are_compared_by_their_values(scale):
    X = np.random.default_rng(0).normal(size=(40, 40))
    detector = AutoencoderOutlierDetector(scale=scale, max_epochs=1, random_state=0)
    other = clone(detector)
    for name, value in detector.get_params(deep=False).items():
        other.set_params(**{name: not_interned(value)})
    expected = detector.fit(X).score_samples(X)
    assert_array_equal(other.fit(X).score_samples(X), expected)


def test_columns_share_a_scale_where_they_have_a_shape(table):
    settings = {"max_epochs": 1, "random_state": 0}
    detector = AutoencoderOutlierDetector(**settings)
    conv = AutoencoderOutlierDetector(network="conv", **settings)
    shaped = AutoencoderOutlierDetector(input_shape=(3,), **settings)
    factors = [
        model.fit(table * [1, 2, 30]).module_.scaler.factor.flatten()
        for model in (detector, conv, shaped)
    ]
    assert [len(np.unique(factor)) for factor in factors] == [3, 1, 1]


@pytest.mark.parametrize(
    ("n_neighbors", "scale", "n_features", "expected"),
    [
        ("auto", "global", 40, True),
        ("auto", "global", 39, False),
        ("auto", "feature", 40, False),
        ("auto", None, 40, False),
        (1, "global", 40, False),
    ],
)
def test_distances_of_columns_in_one_unit_are_relative_by_default(
    n_neighbors, scale, n_features, expected
):
    detector = AutoencoderOutlierDetector(n_neighbors=n_neighbors)
    assert detector._has_relative_distances(n_features, scale) is expected


@pytest.mark.parametrize(
    ("settings", "n_neighbors"),
    [
        ({"input_shape": (8, 8)}, 1),
        ({"input_shape": (4, 4, 4)}, 1),
        ({"input_shape": (8, 8), "n_neighbors": 3}, 3),
        ({"input_shape": (8, 8), "scale": "feature"}, 0),
        ({"input_shape": (8, 8), "bottleneck": Gaussian(score="elbo")}, 0),
        ({"input_shape": (4, 1, 16)}, 0),
        ({"input_shape": (64, 1)}, 0),
        ({"input_shape": (64,)}, 0),
        ({}, 0),
    ],
    ids=str,
)
def test_convolutions_measure_distances_of_images_by_default(settings, n_neighbors):
    X = np.random.default_rng(0).uniform(size=(12, 64))
    detector = AutoencoderOutlierDetector(
        network=Conv((2, 2)), max_epochs=1, random_state=0, **settings
    ).fit(X)
    found = detector.module_.neighbors
    assert (0 if found is None else found.n_neighbors) == n_neighbors


def test_many_features_give_fewer_members():
    n_features = (1, 500, 501, 1000, 1001, 8000, 8001, 10**6)
    assert list(map(auto_n_estimators, n_features)) == [16, 16, 8, 8, 4, 4, 2, 2]


@pytest.mark.parametrize(
    "settings", [{}, {"bottleneck": "gaussian"}, {"network": "conv"}], ids=str
)
def test_recorded_training_of_members_equals_eager_training(settings):
    X = np.random.default_rng(0).normal(size=(48, 6))
    X[3, 1] = np.nan
    settings = {"n_estimators": 3, "batch_size": 16, "max_epochs": 8, **settings}
    recorded, eager = (
        AutoencoderOutlierDetector(compile=compile, random_state=0, **settings).fit(
            X, sample_weight=np.arange(48) % 3 + 0.5
        )
        for compile in ("auto", False)
    )
    assert recorded.loss_curve_ == eager.loss_curve_
    assert_array_equal(recorded.score_samples(X), eager.score_samples(X))


@pytest.mark.parametrize(
    "parameter",
    [
        {"n_estimators": 0},
        {"n_estimators": 1.5},
        {"max_features": 0},
        {"max_features": 1.1},
        {"max_features": 0.0},
        {"n_jobs": 0},
        {"contamination": 0.0},
        {"contamination": 0.51},
        {"error": "square"},
        {"trim": 1.0},
        {"trim": -0.1},
    ],
    ids=str,
)
def test_error_names_the_invalid_parameter(parameter, table):
    (name,) = parameter
    with pytest.raises(ValueError, match=f"'{name}' parameter"):
        AutoencoderOutlierDetector(**parameter).fit(table)


def test_max_features_must_not_exceed_the_number_of_features(table):
    with pytest.raises(ValueError, match=r"max_features=4 .* n_features=3"):
        AutoencoderOutlierDetector(max_features=4).fit(table)


class ShiftedLoss(SquaredError):  # noqa: N818
    """Squared error minus 1, which may be negative."""

    def elementwise(self, x, x_hat):
        return super().elementwise(x, x_hat) - 1


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scale": "global"},
        {"network": "conv", "input_shape": (8, 8)},
        {"scale": "global", "bottleneck": Gaussian(score="elbo")},
        {"loss": ShiftedLoss(), "error": "loss"},
        {"n_neighbors": 0},
    ],
    ids=str,
)
def test_partial_fit_adds_scores_to_those_of_earlier_calls(settings):
    X = np.random.default_rng(0).uniform(size=(60, 64))
    detector = AutoencoderOutlierDetector(n_components=2, random_state=0, **settings)
    detector.partial_fit(X).partial_fit(X[:20])
    assert len(detector._trained.scores.values) == 80


def test_partial_fit_updates_the_mean_residuals(table):
    detector = AutoencoderOutlierDetector(1, n_estimators=2, **SMALL)
    detector.partial_fit(table)
    before = detector.module_.residual_scale.clone()
    detector.partial_fit(3 * table)
    assert (detector.module_.residual_scale > before).any()
    assert_allclose(
        detector.feature_contributions(table).sum(axis=1),
        -detector.score_samples(table),
    )


@pytest.mark.parametrize("seed", range(6))
def test_two_outliers_among_eight_rows_are_found(seed):
    X = [[-2, -1], [-1, -1], [-1, -2], [1, 1], [1, 2], [2, 1], [7, 4], [-5, 9]]
    detector = AutoencoderOutlierDetector(random_state=seed).fit(X)
    assert detector.predict(X).tolist() == [1] * 6 + [-1] * 2


def test_decision_function_and_offset_give_the_scores_of_outliers_exactly(table):
    detector = AutoencoderOutlierDetector(**SMALL).fit(table)
    far = table + 3
    sums = detector.decision_function(far) + detector.offset_
    assert_array_equal(sums, detector.score_samples(far))


@pytest.mark.parametrize("sparse", [{"penalty": "l1"}, {"bottleneck": "topk"}])
@pytest.mark.parametrize(("n_features", "n_components"), [(3, 3), (40, 16)])
def test_sparse_code_has_several_components(sparse, n_features, n_components):
    X = np.random.default_rng(0).normal(size=(30, n_features))
    detector = AutoencoderOutlierDetector(max_epochs=1, **sparse).fit(X)
    assert detector.n_components_ == n_components


# Training scores, and thresholds that are assigned or computed anew

BRIEF = {
    "hidden_layer_sizes": (8,),
    "n_estimators": 2,
    "max_epochs": 2,
    "batch_size": 32,
    "random_state": 0,
}


def brief(**settings):
    return AutoencoderOutlierDetector(1, **{**BRIEF, **settings})


def with_nan(X, rows, columns):
    X = X.copy()
    X[rows, columns] = np.nan
    return X


# Rows and weights of each kind, from a table of 212 rows and three columns.
KINDS = {
    "plain": lambda X: (X, None),
    "weighted": lambda X: (X, np.arange(len(X)) % 3 + 0.5),
    "zero weights": lambda X: (X, np.arange(len(X)) % 3),
    "repeated": lambda X: (np.repeat(X, np.arange(len(X)) % 3, axis=0), None),
    "permuted": lambda X: (X[np.random.default_rng(0).permutation(len(X))], None),
    "empty rows": lambda X: (with_nan(X, slice(0, None, 9), slice(None)), None),
    "missing": lambda X: (with_nan(X, slice(0, None, 4), 1), None),
    "empty, repeated, weighted": lambda X: (
        np.tile(with_nan(X, slice(0, None, 9), slice(None)), (2, 1)),
        np.arange(2 * len(X)) % 4,
    ),
    "sparse": lambda X: (sparse.csr_array(np.where(X < 0, 0, X)), None),
    "sparse, zero weights": lambda X: (
        sparse.csr_matrix(np.where(X < 0, 0, X)),
        np.arange(len(X)) % 2,
    ),
    "float32": lambda X: (X.astype(np.float32), None),
    "frame": lambda X: (pd.DataFrame(X, columns=["a", "b", "c"]), None),
    "weight zero, beyond any training row": lambda X: (
        np.vstack([X, np.full((2, 3), 1e300)]),
        np.arange(len(X) + 2) < len(X),
    ),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.parametrize("maximum", [20, 10_000])  # rows up to which equal ones merge
@each_kind
def test_training_scores_are_the_scores_of_the_rows_in_order(
    kind, maximum, table, monkeypatch
):
    monkeypatch.setattr(_rows, "MAX_CANONICAL_ROWS", maximum)
    X, weight = KINDS[kind](table)
    detector = brief().fit(X, sample_weight=weight)
    scores, expected = detector.training_scores_, detector.score_samples(X)
    assert scores.dtype == np.float64
    assert scores.shape == (X.shape[0],)
    assert_allclose(scores, expected, rtol=1e-5 if kind == "float32" else 1e-12)


def test_only_rows_of_weight_zero_are_evaluated_for_training_scores(table, monkeypatch):
    X = np.vstack([table, table, np.full((5, 3), np.nan)])
    weight = np.r_[np.ones(len(table)), np.zeros(len(table)), np.ones(5)]
    n_evaluated = []

    def counting(score, module, rows, *args):
        n_evaluated.append(len(rows))
        return score(module, rows, *args)

    for name in ("score_rows", "score_folds"):
        score = getattr(_scores, name)
        monkeypatch.setattr(_scores, name, partial(counting, score))
    brief().fit(np.vstack([table, table]))
    assert n_evaluated == [len(table)]
    brief().fit(X, sample_weight=weight)
    assert n_evaluated == [len(table)] * 3


def test_labels_of_rows_in_partitions_are_those_of_the_rows(table):
    detector = AutoencoderOutlierDetector(1, max_epochs=1, random_state=0)
    labels = detector.fit_predict(np.array_split(table, 3))
    assert set(labels) == {-1, 1}
    assert_array_equal(labels, clone(detector).fit_predict(table))


def test_training_scores_of_equal_rows_are_equal(table):
    weight = np.arange(len(table)) % 3
    order = np.random.default_rng(0).permutation(len(table))
    weighted = brief().fit(table, sample_weight=weight).training_scores_
    repeated = brief().fit(np.repeat(table, weight, axis=0)).training_scores_
    permuted = brief().fit(table[order], sample_weight=weight[order]).training_scores_
    assert_array_equal(repeated, np.repeat(weighted, weight))
    # Rows of weight zero are evaluated in the order in which they were passed.
    assert_allclose(permuted, weighted[order], rtol=1e-14)


@pytest.mark.parametrize("error", ["log", "loss"])
def test_training_scores_are_those_of_the_last_call(error, table):
    detector = brief(error=error).partial_fit(table[:100])
    detector.partial_fit(table[90:99], sample_weight=[0, 1, 2] * 3)
    expected = detector.score_samples(table[90:99])
    assert_allclose(detector.training_scores_, expected, rtol=1e-12)
    detector.set_params(warm_start=True).fit(table[50:])
    expected = detector.score_samples(table[50:])
    assert_allclose(detector.training_scores_, expected, rtol=1e-12)
    detector.set_params(n_estimators=3).fit(table)  # keeps the first two members
    expected = detector.score_samples(table)
    assert_allclose(detector.training_scores_, expected, rtol=1e-12)


def test_training_scores_of_wide_rows_are_in_the_order_of_the_rows():
    # These rows are trained on in coordinates of the space that they span.
    X = np.random.default_rng(0).normal(size=(20, 90))
    X[3], weight = X[7], np.arange(20) % 4
    detector = brief(init="pca", loss="squared_error", scale="global", n_estimators=1)
    detector.fit(X, sample_weight=weight)
    assert_allclose(detector.training_scores_, detector.score_samples(X), rtol=1e-10)


@pytest.mark.parametrize(
    "settings",
    [
        {"network": "conv"},
        {"bottleneck": Gaussian(score="elbo")},
        {"bottleneck": "quantized", "penalty": "l1"},
        {"loss": "mixed"},
        {"early_stopping": True, "trim": 0.0},
        {"error": "loss"},
    ],
    ids=str,
)
def test_training_scores_of_variants_are_the_scores(settings, table):
    X, weight = KINDS["empty, repeated, weighted"](table)
    X[:, 0] = np.where(np.isnan(X[:, 0]), np.nan, X[:, 0] > 0)
    detector = brief(**settings).fit(X, sample_weight=weight)
    expected = detector.score_samples(X)
    assert_allclose(detector.training_scores_, expected, rtol=1e-10)


def test_training_scores_of_rows_that_remain_sparse():
    X = sparse.random_array((40, 2100), density=0.02, rng=0, format="csr")
    weight = np.arange(40) % 3
    detector = brief(max_epochs=1, loss="squared_error", error="loss", compile=False)
    detector.fit(
        sparse.vstack([X, X[:9]], format="csr"), sample_weight=[*weight] + [1] * 9
    )
    expected = detector.score_samples(X)
    assert_allclose(detector.training_scores_[:40], expected, rtol=1e-10)


def test_a_change_of_the_returned_training_scores_has_no_effect(table):
    detector = brief().fit(table)
    offset = detector.offset_
    detector.training_scores_[:] = -1.0
    assert len(np.unique(detector.training_scores_)) > 100
    assert detector.recalibrate().offset_ == offset


def test_training_scores_and_offset_are_absent_before_fit(table):
    detector = brief()
    for name in ("offset_", "training_scores_"):
        assert not hasattr(detector, name)
        with pytest.raises(AttributeError, match="is not fitted yet"):
            getattr(detector, name)
    with pytest.raises(NotFittedError):
        detector.offset_ = -1.0
    transformer = AutoencoderTransformer(1, max_epochs=1).fit(table)
    assert not hasattr(transformer, "training_scores_")


def test_training_scores_are_absent_if_an_older_version_stored_the_model(table):
    detector = brief().fit(table)
    state = pickle.loads(pickle.dumps(detector))
    vars(state._trained).pop("scores_in_order")
    vars(state).pop("_calibration")
    assert not hasattr(state, "training_scores_")
    with pytest.raises(AttributeError, match="stored by a version of skae"):
        _ = state.training_scores_
    assert state.recalibrate().offset_ == detector.offset_
    loaded = pickle.loads(pickle.dumps(state))
    assert loaded.partial_fit(table[:9]).training_scores_.shape == (9,)


def test_predictions_follow_an_assigned_offset(table):
    model = make_pipeline(StandardScaler(), brief()).fit(table)
    detector, rows = model[-1], table[[0, 200, 0]]
    rows[2] = np.nan
    scores = model.score_samples(table)
    for value in (np.float64(-1.25), np.float32(-0.25), -3, -0.0):
        detector.offset_ = value
        assert type(detector.offset_) is float
        assert detector.offset_ == value
        assert_array_equal(model.decision_function(table), scores - float(value))
        assert_array_equal(model.predict(table), np.where(scores < value, -1, 1))
        assert model.predict(rows)[2] == 1  # a row without an observed entry
    assert_array_equal(model.score_samples(table), scores)
    assert_array_equal(np.isnan(detector.training_scores_), False)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (np.nan, ValueError),
        (-np.inf, ValueError),
        (np.float32("inf"), ValueError),
        ("low", TypeError),
        (None, TypeError),
        (True, TypeError),
        ([-1.0], TypeError),
        (np.array([-1.0]), TypeError),
        (1j, TypeError),
    ],
    ids=str,
)
def test_an_offset_that_is_no_finite_number_is_refused(value, error, table):
    detector = brief().fit(table)
    offset = detector.offset_
    with pytest.raises(error, match="offset_ must be a finite number"):
        detector.offset_ = value
    assert detector.offset_ == offset


def by_joblib(detector, folder):
    file = io.BytesIO()
    joblib.dump(detector, file)
    file.seek(0)
    return joblib.load(file)


def by_save(detector, folder):
    save(detector, folder / "model.safetensors")
    return load(folder / "model.safetensors")


def by_skops(detector, folder):
    written = skops.io.dumps(detector)
    types = skops.io.get_untrusted_types(data=written)
    return skops.io.loads(written, trusted=types)


WAYS = {
    "pickle": lambda detector, folder: pickle.loads(pickle.dumps(detector)),
    "copy": lambda detector, folder: copy.copy(detector),
    "deepcopy": lambda detector, folder: copy.deepcopy(detector),
    "joblib": by_joblib,
    "save": by_save,
    "skops": by_skops,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_assigned", [True, False])
def test_training_scores_and_thresholds_are_stored(way, is_assigned, table, tmp_path):
    X, weight = KINDS["empty, repeated, weighted"](table)
    detector = brief(contamination=0.2).fit(X, sample_weight=weight)
    offset = detector.offset_
    detector.recalibrate(table[::2])
    if is_assigned:
        detector.offset_ = -1.2
    loaded = WAYS[way](detector, tmp_path)
    assert loaded.offset_ == detector.offset_
    assert type(loaded.offset_) is float
    assert_array_equal(loaded.training_scores_, detector.training_scores_)
    assert_array_equal(loaded.predict(table), detector.predict(table))
    assert_array_equal(loaded._calibration.values, detector._calibration.values)
    assert loaded.recalibrate().offset_ == offset
    assert detector.offset_ != offset


def test_a_clone_has_neither_scores_nor_threshold(table):
    detector = brief().fit(table)
    detector.offset_ = -1.2
    cloned = clone(detector.recalibrate(table))
    assert not hasattr(cloned, "offset_")
    assert not hasattr(cloned, "training_scores_")
    assert cloned._calibration is None


CALLS = {
    "fit": lambda detector, X: detector.fit(X),
    "warm_start": lambda detector, X: detector.set_params(warm_start=True).fit(X),
    "partial_fit": lambda detector, X: detector.partial_fit(X),
    "recalibrate": lambda detector, X: detector.recalibrate(),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_next_call_replaces_the_threshold(call, table):
    expected, assigned, calibrated = (brief(contamination=0.1) for _ in range(3))
    for detector in (expected, assigned, calibrated):
        detector.fit(table)
    assigned.offset_ = -99.0
    calibrated.recalibrate(3 * table)
    assert calibrated.offset_ < expected.offset_
    for detector in (expected, assigned, calibrated):
        CALLS[call](detector, table[:50])
        assert detector.offset_ == expected.offset_
        assert detector._calibration is None


@pytest.mark.parametrize("call", ["fit", "warm_start", "partial_fit"])
def test_a_call_that_fails_keeps_the_threshold(call, table):
    detector = brief().fit(table).recalibrate(table[:99])
    calibration, scores = detector._calibration, detector.training_scores_
    detector.offset_ = -1.2
    with pytest.raises(ValueError, match="no observed value"):
        CALLS[call](detector, np.full((4, 3), np.nan))
    assert detector.offset_ == -1.2
    assert detector._calibration is calibration
    assert_array_equal(detector.training_scores_, scores)


@pytest.mark.parametrize("contamination", ["auto", 0.1])
@each_kind
def test_recalibration_gives_the_threshold_of_the_fit(kind, contamination, table):
    X, weight = KINDS[kind](table)
    expected = brief(contamination=contamination).fit(X, sample_weight=weight)
    other = "auto" if contamination == 0.1 else 0.4
    detector = brief(contamination=other).fit(X, sample_weight=weight)
    assert detector.offset_ != expected.offset_
    detector.set_params(contamination=contamination)
    assert detector.recalibrate() is detector
    assert detector.offset_ == expected.offset_
    assert detector._calibration is None


@pytest.mark.parametrize("n_calls", [0, 1, 3])
def test_recorded_scores_need_not_be_sorted_again(n_calls, table):
    detector = brief().fit(table)
    for start in range(n_calls):
        detector.partial_fit(table[start::5])
    detector.recalibrate(table[::2])
    records = (detector._trained.scores, *detector._trained.held_out_scores)
    for record in (*records, detector._calibration):
        assert (np.diff(record.values) <= 0).all()


def test_recalibration_gives_the_threshold_of_partial_fit(table):
    expected, detector = brief(contamination=0.1), brief(contamination=0.4)
    for rows in (table[:100], table[100:], table[::5]):
        expected.partial_fit(rows)
        detector.partial_fit(rows)
    assert detector.offset_ != expected.offset_
    detector.set_params(contamination=0.1).recalibrate()
    assert detector.offset_ == expected.offset_


@each_kind
def test_recalibration_flags_the_contamination_of_the_rows_given(kind, table):
    detector = brief(contamination=0.1).fit(table + 0.3)
    X, weight = KINDS[kind](table)
    if kind == "frame":
        X = X.to_numpy()
    before = detector.score_samples(X), detector.training_scores_
    detector.set_params(contamination=0.2).recalibrate(X, weight)
    weight = np.ones(X.shape[0]) if weight is None else 1.0 * weight
    scores = detector.score_samples(X)
    dense = X.toarray() if sparse.issparse(X) else X
    is_counted = ~np.isnan(dense).all(axis=1)
    weight = weight * is_counted
    share = weight[scores < detector.offset_].sum() / weight.sum()
    assert abs(share - 0.2) < 0.02
    # Scores remain; an empty row has at least the threshold.
    raised = np.maximum(before[0], detector.offset_)
    assert_array_equal(scores, np.where(is_counted, before[0], raised))
    assert_array_equal(detector.training_scores_, before[1])


def test_weights_are_repetitions_in_a_recalibration(table):
    detector, X = brief(contamination=0.15).fit(table), 2 * table
    weight = np.arange(len(X)) % 4
    offset = detector.recalibrate(X, weight).offset_
    order = np.random.default_rng(0).permutation(len(X))
    empty = np.full((3, 3), np.nan)
    for rows, w in (
        (np.repeat(X, weight, axis=0), None),
        (X[order], weight[order]),
        (X[weight > 0], weight[weight > 0]),
        (np.vstack([X, empty]), np.append(weight, [5, 5, 0])),
        (sparse.csr_array(X), weight),
        (X.tolist(), list(weight)),
    ):
        assert detector.recalibrate().recalibrate(rows, w).offset_ == offset


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"contamination": 0.6}, (), "'contamination' parameter"),
        ({"contamination": "half"}, (), "'contamination' parameter"),
        ({}, (None, np.ones(212)), "sample_weight .* but X is None"),
        ({}, (np.ones((5, 2)),), "2 features, but .* expecting 3 features"),
        ({}, (np.ones(5),), "Expected 2D array"),
        ({}, (np.full((5, 3), np.inf),), "infinity"),
        ({}, (np.ones((5, 3)), np.ones(4)), r"sample_weight.shape == \(4,\)"),
        ({}, (np.ones((5, 3)), -np.ones(5)), "Negative values"),
        ({}, (np.ones((5, 3)), np.full(5, 1e-200)), "sample_weight has values"),
        ({}, (np.full((5, 3), np.nan),), "no observed value"),
        ({}, (with_nan(np.ones((2, 3)), 0, slice(None)), [1, 0]), "no observed value"),
    ],
    ids=str,
)
def test_a_recalibration_that_fails_changes_nothing(
    settings, arguments, message, table
):
    detector = brief().fit(table).recalibrate(table[:99])
    detector.offset_, calibration = -1.2, detector._calibration
    detector.set_params(**settings)
    with pytest.raises(ValueError, match=message):
        detector.recalibrate(*arguments)
    assert detector.offset_ == -1.2
    assert detector._calibration is calibration


def test_recalibration_needs_a_fitted_estimator(table):
    for arguments in ((), (table,)):
        with pytest.raises(NotFittedError):
            brief(contamination=7).recalibrate(*arguments)


def test_rows_that_overflow_the_network_count_in_a_recalibration(table):
    detector = brief(contamination=0.1).fit(table)
    X = np.vstack([table[:90], np.full((10, 3), 1e300)])
    flagged = detector.recalibrate(X).predict(X) == -1
    assert flagged.tolist() == [False] * 90 + [True] * 10
