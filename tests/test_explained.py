"""Facts about explained variance, and numbers of components derived from it."""

import pickle
import re
import warnings

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import scale

import skae
from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae._explained import RowSquares, VarianceCurve
from skae._rows import Rows
from skae.networks import Conv

WINE = scale(load_wine().data)
DIGITS = load_digits().data[:120]
CANCER = load_breast_cancer().data
LINEAR = {"hidden_layer_sizes": (), "max_epochs": 2, "random_state": 0}
BRIEF = {"hidden_layer_sizes": (8,), "max_epochs": 3, "random_state": 0}


def quiet_fit(model, X=WINE, **kwargs):
    """Fit a model whose training may be too short."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(X, **kwargs)


# Attributes of an ordered estimator


@pytest.mark.parametrize("n_components", [1, 4, 13])
def test_where_pca_remains_the_attributes_are_those_of_pca(n_components):
    settings = {**LINEAR, "ordered": True, "early_stopping": False}
    model = quiet_fit(AutoencoderTransformer(n_components, **settings))
    pca = PCA(n_components).fit(WINE)
    for name in (
        "explained_variance_ratio_",
        "explained_variance_",
        "noise_variance_",
        "n_components_",
    ):
        np.testing.assert_allclose(getattr(model, name), getattr(pca, name), rtol=1e-6)


@pytest.mark.parametrize("early_stopping", [True, "auto"])
def test_the_start_is_measured_on_rows_that_its_pca_has_not_seen(early_stopping):
    # Components of noise explain more of the rows from which they are computed.
    X = np.random.default_rng(0).normal(size=(60, 30))
    settings = {"early_stopping": early_stopping, "random_state": 0, "ordered": True}
    model = AutoencoderTransformer(5, learning_rate=1e-30, max_epochs=2, **settings)
    quiet_fit(model, X)
    assert model.net_.best_epoch_ == 0
    seen = PCA(5).fit(X).explained_variance_ratio_.sum()
    assert model.explained_variance_ratio_.sum() < seen / 2


@pytest.mark.parametrize(("X", "n_folds"), [(WINE, 5), (CANCER, 1)])
def test_a_pca_that_remains_is_measured_on_rows_that_it_has_not_seen(X, n_folds):
    model = AutoencoderTransformer(3, ordered=True, **LINEAR)
    quiet_fit(model, X)
    assert not model._trained.ordered.is_learnt[:-1].any() or model.n_iter_ == 2
    explained = model.explained_variance_ratio_.cumsum()
    scores = [
        [
            1
            - np.sum((B - pca.inverse_transform(pca.transform(B))) ** 2)
            / np.sum((B - X.mean(axis=0)) ** 2)
            for pca in (PCA(k).fit(A) for k in (1, 2, 3))
        ]
        for A, B in [
            train_test_split(X, test_size=1 / (2 * n_folds), random_state=seed)
            for seed in range(20)
        ]
    ]
    # Other folds than those of the fit.
    np.testing.assert_allclose(explained, np.mean(scores, axis=0), atol=0.03)
    assert explained[-1] < PCA(3).fit(X).explained_variance_ratio_.sum()


def test_squares_of_several_networks_have_one_unit():
    # The scale of a part of the rows may be on the other side of a power of two.
    settings = {**LINEAR, "ordered": True, "early_stopping": False}
    nets = [
        quiet_fit(AutoencoderTransformer(2, **settings), X).net_
        for X in (WINE * 0.99 / WINE.std(), WINE * 1.01 / WINE.std())
    ]
    rows = Rows(WINE)
    of_first = RowSquares.of(nets[0], rows)
    of_second = RowSquares.of(nets[1], rows, like=nets[0])
    np.testing.assert_allclose(of_second.total, of_first.total)
    np.testing.assert_allclose(of_second.residual, of_first.residual, rtol=1e-4)


def test_weights_are_repetitions_in_the_explained_variance():
    weight = np.arange(len(WINE)) % 3
    settings = {**LINEAR, "ordered": True}
    weighted = quiet_fit(AutoencoderTransformer(4, **settings), sample_weight=weight)
    repeated = quiet_fit(
        AutoencoderTransformer(4, **settings), np.repeat(WINE, weight, axis=0)
    )
    for name in ("explained_variance_ratio_", "explained_variance_", "noise_variance_"):
        np.testing.assert_allclose(
            getattr(weighted, name), getattr(repeated, name), rtol=1e-12
        )


@pytest.mark.parametrize("total", [1e-9, 1, 5, 177])
def test_the_scale_of_small_weights_changes_no_variance(total):
    weight = np.full(len(WINE), total / len(WINE))
    settings = {**LINEAR, "ordered": True}
    weighted = quiet_fit(AutoencoderTransformer(4, **settings), sample_weight=weight)
    plain = quiet_fit(AutoencoderTransformer(4, **settings))
    for name in ("explained_variance_", "noise_variance_"):
        np.testing.assert_allclose(getattr(weighted, name), getattr(plain, name))


def test_the_variance_is_that_around_the_mean_of_the_first_rows():
    settings = {**LINEAR, "ordered": True, "warm_start": True, "early_stopping": False}
    model = quiet_fit(AutoencoderTransformer(4, **settings))
    X = WINE + 30
    quiet_fit(model, X)
    squares = np.sum((X - model.reconstruct(X)) ** 2)
    expected = squares / (len(X) - 1) / (13 - 4)
    assert model.noise_variance_ == pytest.approx(expected, rel=1e-6)


def test_subclasses_may_fix_the_order():
    class Ordered(AutoencoderTransformer):
        def __init__(self, n_components=3, *, random_state=None):
            settings = {**BRIEF, "random_state": random_state}
            super().__init__(n_components, ordered=True, **settings)

    model = quiet_fit(Ordered(random_state=0))
    assert model.truncate(2).score(WINE) == model.explained_variance_curve(WINE)[1]


VARIANTS = {
    "plain": {},
    "random": {"init": "random", "max_epochs": 30},
    "gaussian": {"bottleneck": "gaussian"},
    "another loss and scale": {"loss": "huber", "scale": "feature"},
    "noisy": {"corruption": "masking", "trim": 0.2},
}


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_ratios_are_steps_of_the_curve_on_rows_for_validation(settings):
    train, rest = WINE[::2], WINE[1::2]
    model = AutoencoderTransformer(5, ordered=True, **{**BRIEF, **settings})
    quiet_fit(model, train, X_val=rest)
    curve = model.explained_variance_curve(rest)
    highest = np.maximum.accumulate(curve).clip(min=0)
    ratios = model.explained_variance_ratio_
    assert (ratios >= 0).all()
    np.testing.assert_allclose(ratios.cumsum(), highest, atol=1e-6)
    np.testing.assert_allclose(
        model.truncate(3).explained_variance_ratio_, ratios[:3], rtol=1e-12
    )


def test_without_held_out_rows_the_ratios_are_those_of_training_rows():
    model = AutoencoderTransformer(4, ordered=True, early_stopping=False, **BRIEF)
    quiet_fit(model)
    np.testing.assert_allclose(
        model.explained_variance_ratio_.cumsum(),
        np.maximum.accumulate(model.explained_variance_curve(WINE)),
        atol=1e-6,
    )


def test_each_row_is_explained_by_a_network_that_was_trained_without_it():
    # Eight random rows: a network explains them far better after having learnt them.
    X = np.random.default_rng(0).normal(size=(60, 8))
    model = AutoencoderTransformer(3, ordered=True, init="random", random_state=0)
    quiet_fit(model, X)
    assert model.explained_variance_ratio_.sum() < model.score(X) - 0.05


NAMES = ["explained_variance_ratio_", "explained_variance_", "noise_variance_"]


@pytest.mark.parametrize("name", NAMES)
def test_attributes_of_the_order_are_absent_without_it(name):
    model = AutoencoderTransformer(2, ordered=True, **BRIEF)
    assert not hasattr(model, name)
    quiet_fit(model)
    assert hasattr(model, name)
    model.partial_fit(WINE)
    with pytest.raises(
        AttributeError, match=r"not by partial_fit\. Use explained_variance_curve"
    ):
        getattr(model, name)
    with pytest.raises(AttributeError, match="ordered=True"):
        getattr(quiet_fit(AutoencoderTransformer(2, **BRIEF)), name)


def test_the_standard_error_is_that_of_random_samples():
    rng = np.random.default_rng(0)
    total = rng.chisquare(3, size=40_000)
    squares = RowSquares(total * rng.uniform(size=len(total)), total, total > 0)
    parts = [RowSquares(*(v[i::200] for v in squares)) for i in range(200)]
    found = np.mean([part.standard_error for part in parts])
    assert found == pytest.approx(
        np.std([part.explained for part in parts], ddof=1), rel=0.15
    )


@pytest.mark.parametrize(
    ("explained", "ratios", "share", "fewest"),
    [
        ([0.5, 0.7, 0.9], [0.5, 0.2, 0.2], 0.7, 2),
        ([0.5, 0.4, 0.9], [0.5, 0.0, 0.4], 0.6, 3),
        ([-0.5, 0.2, 0.1], [0.0, 0.2, 0.0], 0.3, 3),
        ([0.8], [0.8], 0.1, 1),
    ],
)
def test_a_curve_gives_ratios_and_the_fewest_components(
    explained, ratios, share, fewest
):
    curve = VarianceCurve(np.array(explained), np.zeros(len(explained)), True)
    np.testing.assert_allclose(curve.ratios, ratios, atol=1e-15)
    assert curve.fewest(share) == fewest


# n_components as a share


def missing(X):
    return np.where(np.random.default_rng(0).random(X.shape) < 0.05, np.nan, X)


TABLES = {
    "wine": WINE,
    "features of different scale": CANCER[:200],
    "digits": DIGITS,
    "float32": WINE.astype(np.float32),
    "sparse": sparse.csr_array(DIGITS),
    "missing entries": missing(WINE),
    "few rows": DIGITS[:12],
    "equal rows": np.ones((20, 3)),
    "one feature": WINE[:, :1],
}


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("X", TABLES.values(), ids=TABLES)
def test_a_share_chooses_the_fewest_components_that_explain_it(X, share):
    model = quiet_fit(AutoencoderTransformer(share, **BRIEF), X)
    k = model.n_components_
    assert model.transform(X).shape == (X.shape[0], k)
    assert len(model.explained_variance_ratio_) == k
    reached = model.explained_variance_ratio_.cumsum()
    assert (reached[:-1] < share).all()
    dense = X.toarray() if sparse.issparse(X) else X
    if np.isnan(dense).any() or np.ptp(dense) == 0:
        return
    rank = min(X.shape[1], int(0.8 * X.shape[0]))
    assert reached[-1] >= share or k == rank


@pytest.mark.parametrize("factor", [1, np.logspace(0, 2, 13)], ids=["equal", "unequal"])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_a_linear_network_has_the_components_of_pca(share, factor):
    X = WINE * factor
    settings = {**LINEAR, "early_stopping": False}
    model = quiet_fit(AutoencoderTransformer(share, **settings), X)
    pca = PCA(share).fit(X)
    assert model.n_components_ == pca.n_components_
    np.testing.assert_allclose(
        np.abs(model.transform(X)), np.abs(pca.transform(X)), atol=1e-6 * X.std()
    )


def test_a_share_is_that_of_rows_for_validation():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 6)) * [5, 4, 3, 2, 1, 1]
    X_val = rng.normal(size=(60, 6)) * [0, 1, 4, 0, 0, 0]
    model = quiet_fit(AutoencoderTransformer(0.6, **LINEAR), X, X_val=X_val)
    assert model.n_components_ == 3 > PCA(0.6).fit(X).n_components_
    assert model.explained_variance_ratio_.sum() >= 0.6


def test_a_share_that_no_code_explains_gives_all_components_and_a_warning():
    X = np.random.default_rng(0).normal(size=(100, 6))
    model = AutoencoderTransformer(0.6, init="random", **BRIEF)
    with pytest.warns(ConvergenceWarning) as warned:
        model.fit(X)
    messages = [str(each.message) for each in warned]
    pattern = r"held-out rows with all of its 4 components, less than n_components=0\.6"
    assert any(re.search(pattern, message) for message in messages)
    assert model.n_components_ == 4


@pytest.mark.slow
def test_a_default_fit_to_a_share_does_not_warn():
    for X in (WINE, scale(CANCER), DIGITS):
        AutoencoderTransformer(0.8, random_state=0).fit(X)


def test_an_estimator_of_a_share_is_an_ordered_one(tmp_path):
    model = quiet_fit(AutoencoderTransformer(0.7, **BRIEF))
    k = model.n_components_
    assert k > 1
    curve = model.explained_variance_curve(WINE)
    assert len(curve) == k
    part = model.truncate(1)
    assert part.get_params()["n_components"] == 1
    assert part.score(WINE) == curve[0]
    skae.save(model, tmp_path / "model.safetensors")
    copies = [
        pickle.loads(pickle.dumps(model)),
        skae.load(tmp_path / "model.safetensors"),
        quiet_fit(clone(model)),
    ]
    for copied in copies:
        assert copied.n_components == 0.7
        np.testing.assert_array_equal(copied.transform(WINE), model.transform(WINE))
        np.testing.assert_array_equal(
            copied.explained_variance_ratio_, model.explained_variance_ratio_
        )
    # A truncated estimator is refitted with ordered components.
    part.set_params(warm_start=True).fit(WINE)
    assert part.explained_variance_curve(WINE).shape == (1,)
    assert quiet_fit(clone(part)).explained_variance_curve(WINE).shape == (1,)


def test_training_goes_on_with_the_components_that_were_chosen():
    model = quiet_fit(AutoencoderTransformer(0.7, warm_start=True, **BRIEF))
    k = model.n_components_
    quiet_fit(model)
    assert model.n_components_ == k
    assert len(model.explained_variance_ratio_) == k
    model.partial_fit(WINE)
    assert model.n_components_ == k
    model.set_params(n_components=0.8)
    with pytest.raises(ValueError, match=r"n_components=0\.8 differs"):
        model.fit(WINE)


@pytest.mark.parametrize(
    ("n_components", "expected"), [(0.7, PCA(0.7).fit(WINE).n_components_), (None, 13)]
)
def test_partial_fit_has_the_components_of_the_pca_of_its_first_rows(
    n_components, expected
):
    model = AutoencoderTransformer(n_components, **BRIEF)
    assert model.partial_fit(WINE).n_components_ == expected
    assert model.partial_fit(WINE[:2]).n_components_ == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bottleneck": "quantized"}, "bottleneck='quantized'"),
        ({"bottleneck": "topk"}, "bottleneck='topk'"),
        ({"penalty": "l1"}, "penalty='l1'"),
        ({"network": Conv((4,), code="feature_map")}, "network=Conv"),
    ],
)
def test_a_share_of_a_code_without_order_is_refused(settings, message):
    with pytest.raises(ValueError, match=rf"n_components=0\.5.*{message}"):
        AutoencoderTransformer(0.5, **settings).fit(WINE)


# n_components=None


@pytest.mark.parametrize(
    ("X", "weight", "expected"),
    [
        (WINE, None, 13),
        (DIGITS[:9], None, 9),
        (np.repeat(DIGITS[:4], 5, axis=0), None, 4),
        (DIGITS[:9], [0, 0, 0, 1, 1, 1, 1, 1, 2], 6),
        (sparse.csr_array(DIGITS[:9]), None, 9),
    ],
    ids=["features", "rows", "distinct rows", "rows with a weight", "sparse"],
)
@pytest.mark.parametrize("ordered", [False, True])
def test_none_keeps_as_many_components_as_pca(X, weight, expected, ordered):
    model = AutoencoderTransformer(None, ordered=ordered, **BRIEF)
    quiet_fit(model, X, sample_weight=weight)
    assert model.n_components_ == expected
    assert model.score(X, sample_weight=weight) > 1 - 1e-6


# Values that are refused


@pytest.mark.parametrize("value", [0.0, 1.0, 1.5, -0.2, np.nan, "mle", 0, [0.5]])
def test_other_numbers_of_components_are_refused(value):
    with pytest.raises(ValueError, match="n_components"):
        AutoencoderTransformer(value).fit(WINE)


@pytest.mark.parametrize("value", [0.5, None])
def test_detectors_need_an_integer(value):
    with pytest.raises(ValueError, match="n_components"):
        AutoencoderOutlierDetector(value).fit(WINE)
