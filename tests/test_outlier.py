"""AutoencoderOutlierDetector: scores, threshold, and its members."""

import pickle

import numpy as np
import pytest
import torch
from devices import device_of
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from skae import AutoencoderOutlierDetector, load, save
from skae.bottlenecks import Gaussian
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


def test_changed_feature_contributes_most(detector, table):
    row = table[[0]]
    row[0, 2] += 3
    assert detector.feature_contributions(row)[0].argmax() == 2


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
    ("n_rows", "size", "tolerance"), [(100, 1, 0.08), (300, 20, 0.03), (300, 100, 0.03)]
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
    detector = AutoencoderOutlierDetector(1, n_estimators=1, **SMALL).fit(table)
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
