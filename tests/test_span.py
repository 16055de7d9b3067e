"""Training on coordinates in the space that few wide rows span."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from scipy.spatial.distance import pdist
from sklearn.decomposition import PCA
from skorch.callbacks import Callback

from skae import AutoencoderOutlierDetector, AutoencoderTransformer, _training
from skae._build import build_start
from skae._checks import check_fit
from skae._module import Scaler
from skae._rows import Rows
from skae._span import Span, reduced
from skae.losses import Huber
from skae.networks import MLP, Conv

N_ROWS, N_FEATURES = 15, 40
FAST = {
    "hidden_layer_sizes": (6,),
    "max_epochs": 6,
    "early_stopping": True,
    "random_state": 0,
}


@pytest.fixture(scope="module")
def X():
    """Rows near a curve, of shape (15, 40), far from the origin."""
    rng = np.random.default_rng(0)
    t = np.linspace(0, 3, N_ROWS)[:, None]
    waves = np.sin(t + rng.uniform(0, 6, N_FEATURES))
    return 100 + 5 * waves + 0.1 * rng.standard_normal((N_ROWS, N_FEATURES))


@pytest.fixture(scope="module")
def others(X):
    """Rows outside of the space that X spans."""
    return X[:7] + np.random.default_rng(1).standard_normal((7, N_FEATURES))


def job_of(X, weight=None, **settings):
    ae = AutoencoderTransformer(**{**FAST, **settings})
    return check_fit(ae, X, weight, earlier=None)


def span_of(rows, factor=2.0):
    mean = rows.dense(slice(None)).astype(np.float64).mean(axis=0)
    return Span.of(rows, Scaler(mean, mean, np.full(len(mean), factor)), seed=0)


class MySubclass(MLP):
    def build(self, shape, generator):
        return super().build(shape, generator)


# Coordinates


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("container", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize("index", [None, np.array([4, 0, 9, 3])])
def test_coordinates_keep_distances_and_axes_are_orthonormal(
    dtype, container, index, X
):
    rows = Rows(container(X.astype(dtype)), index)
    span = span_of(rows)
    assert_allclose(pdist(span.coordinates), pdist(rows.dense(slice(None))) / 2)
    rank = len(rows) - 1
    axes = span.times_axes(np.eye(rank))
    assert_allclose(axes @ axes.T, np.eye(rank), atol=1e-6)
    scaled = (rows.dense(slice(None)) - span.scaler.mean.numpy()) / 2
    assert_allclose(scaled @ axes.T, span.coordinates, atol=1e-4)


def test_no_coordinate_has_most_of_the_variance(X):
    """The optimizer takes steps of similar size along all coordinates."""
    X = X * np.geomspace(1, 0.01, N_ROWS)[:, None]
    variances = span_of(Rows(X)).coordinates.var(axis=0)
    spectrum = np.linalg.svd(X - X.mean(axis=0), compute_uv=False) ** 2
    assert variances.max() / variances.sum() < 0.6 < spectrum[0] / spectrum.sum()


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_coordinates_of_tables_of_any_scale(scale, X):
    (one, other) = (reduced(job_of(table)) for table in (X, (X - 100) * scale))
    assert one.reduction is not None
    distances = [np.sort(pdist(job.rows.X)) for job in (one, other)]  # in any order
    assert_allclose(*distances, rtol=1e-6)


def test_dependent_rows_have_as_many_coordinates_as_their_rank(X):
    X = np.concatenate([X[:4], X[:4].mean(axis=0, keepdims=True)])
    assert reduced(job_of(X)).rows.n_features == 3


# Expanded modules


@torch.no_grad()
@pytest.mark.parametrize("sizes", [(), (6,), (8, 6, 4)])
@pytest.mark.parametrize("weight", [None, np.linspace(0.5, 2, N_ROWS)])
def test_expanded_module_equals_the_one_on_coordinates(sizes, weight, X, others):
    job = job_of(X, weight, hidden_layer_sizes=sizes, transform_max_iter=0)
    on_coordinates = reduced(job)
    module = build_start(on_coordinates).module
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():  # weights as after training
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    expanded = on_coordinates.reduction.expand(module)
    module, expanded = module.double().eval(), expanded.double()
    original = build_start(job)[0]
    assert str(expanded.encoder) == str(original.encoder)
    assert str(expanded.decoder) == str(original.decoder)
    assert (expanded.work, expanded.widest_layer) == (
        original.work,
        original.widest_layer,
    )
    # Of rows outside of the span, the encoder receives their projection.
    span = on_coordinates.reduction.expand.args[0]
    axes = span.times_axes(np.eye(on_coordinates.rows.n_features)).astype(float)
    mean, factor = span.scaler.mean.numpy(), span.scaler.factor.numpy()
    for rows in (X, others):
        scaled = (rows - mean) / factor
        inside = torch.from_numpy(scaled @ axes.T)
        Z = expanded.encode(torch.from_numpy(rows)).numpy()
        assert_allclose(Z, factor[0] * module.encode(inside).numpy(), atol=2e-4)
        X_hat = module(inside).numpy() @ axes * factor + mean
        assert_allclose(expanded(torch.from_numpy(rows)).numpy(), X_hat, atol=2e-4)


# Fits


@pytest.fixture
def widths(monkeypatch):
    """Numbers of features of the rows on which fits are trained."""
    found = []

    def record(job):
        found.append(job.rows.n_features)
        return build_start(job)

    monkeypatch.setattr(_training, "build_start", record)
    return found


def test_few_wide_rows_are_trained_on_in_coordinates(X, others, widths):
    ae = AutoencoderTransformer(1, **FAST).fit(X)
    assert widths == [N_ROWS - 1]
    assert ae.n_features_in_ == N_FEATURES
    assert_allclose(ae.mean_, X.mean(axis=0))
    pca = PCA(1).fit(X)
    total = np.square(X - pca.mean_).sum()
    found = np.square(pca.inverse_transform(pca.transform(X)) - pca.mean_).sum()
    assert ae.score(X) > found / total - 1e-6
    Z = ae.transform(others)
    assert_allclose(ae.inverse_transform(Z), ae.reconstruct(others))
    assert ae.partial_fit(X).score(X) > 0
    assert widths == [N_ROWS - 1, N_FEATURES]


def test_losses_are_those_of_the_rows(X, widths):
    settings = {**FAST, "hidden_layer_sizes": (), "early_stopping": False}
    ae = AutoencoderTransformer(1, **{**settings, "max_epochs": 1}).fit(X)
    before = AutoencoderTransformer(1, **settings, callbacks=[Callback()])
    before.set_params(max_epochs=1).fit(X)
    assert widths == [N_ROWS - 1, N_FEATURES]
    assert_allclose(ae.loss_curve_, before.loss_curve_, rtol=1e-2)


def test_without_a_gain_the_fit_is_the_pca(widths):
    X = np.random.default_rng(0).standard_normal((30, 200))
    ae = AutoencoderTransformer(3, **FAST).fit(X)
    assert widths == [29]
    assert ae.net_.best_epoch_ == 0
    assert_allclose(ae.transform(X), PCA(3).fit_transform(X), atol=1e-4)


def test_weighted_repeated_sparse_and_float32_rows_give_the_same_fit(X, widths):
    X = X.astype(np.float32).astype(np.float64)
    counts = np.arange(N_ROWS) % 3 + 1
    repeated = AutoencoderTransformer(2, **FAST).fit(np.repeat(X, counts, axis=0))
    order = np.random.default_rng(0).permutation(N_ROWS)
    for table in (X, X.astype(np.float32), sparse.csr_array(X)):
        ae = AutoencoderTransformer(2, **FAST)
        ae.fit(table[order], sample_weight=counts[order])
        assert_array_equal(ae.transform(X), repeated.transform(X))
    assert widths == [N_ROWS - 1] * 4


def test_fits_with_a_callback_of_scikit_learn_see_the_rows(X, widths):
    callback = pytest.importorskip("sklearn.callback")
    monitor = callback.ScoringMonitor(scoring=lambda ae, X, y: {"r2": ae.score(X)})
    ae = AutoencoderTransformer(1, **FAST)
    ae.set_callbacks(monitor).fit(X)
    fit, *epochs = monitor.get_logs().data
    assert widths == [N_ROWS - 1]
    assert len(epochs) == ae.n_iter_
    assert fit["r2"] == ae.score(X)
    best = ae.net_.best_epoch_
    assert best == 0 or epochs[best - 1]["r2"] == pytest.approx(fit["r2"])


@pytest.mark.parametrize(
    "settings",
    [
        {"callbacks": [Callback()]},
        {"scale": "feature"},
        {"scale": None},
        {"loss": "huber"},
        {"loss": Huber()},
        {"bottleneck": "gaussian"},
        {"bottleneck": "topk"},
        {"corruption": "masking"},
        {"penalty": "contractive"},
        {"init": "random"},
        {"network": MLP((6,), code_activation="relu")},
        {"network": MySubclass((6,))},
        {"network": Conv((4,))},
    ],
)
def test_other_objectives_and_networks_are_trained_on_the_rows(settings, X):
    if "network" in settings:
        settings = {**settings, "hidden_layer_sizes": "auto"}
    job = job_of(X, **settings)
    assert reduced(job) is job


def test_other_tables_are_trained_on_the_rows(X):
    missing = X.copy()
    missing[3, 5] = np.nan
    tiny = np.zeros_like(X)
    tiny[0, 0] = 1e-200  # whose square is zero
    for table in (missing, tiny, X[:, :20], np.tile(X[:1], (5, 1))):
        job = job_of(table, early_stopping="auto")
        assert reduced(job) is job
    ensemble = check_fit(
        AutoencoderOutlierDetector(init="pca", scale="global", **FAST),
        X,
        None,
        earlier=None,
    )
    assert reduced(ensemble) is ensemble


def test_columns_in_which_few_rows_differ_are_trained_in_coordinates():
    rare = np.eye(N_ROWS)[:, np.arange(N_FEATURES) % N_ROWS]  # one row in a column
    for table in (rare, sparse.csr_array(rare)):
        job = job_of(table, early_stopping="auto")
        assert reduced(job).rows.n_features < N_FEATURES
