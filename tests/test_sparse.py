"""Sparse rows that are never made dense: products, gradients, fits and predictions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from torch import nn
from torch.nn import functional
from variants import SMALL

from skae import (
    AutoencoderOutlierDetector,
    AutoencoderTransformer,
    _completion,
    _kept_rows,
    _module,
    _pca,
    _prediction,
    _rows,
    _sparse,
    _summary,
)
from skae._layers import Residual, StackedLinear
from skae._members import Members, linear_end, starts_linear
from skae._sparse import LinearOutput, Projection, SparseRows
from skae.bottlenecks import Gaussian
from skae.engine import trainer
from skae.losses import LOSSES, Huber, LogError, Loss, SquaredError
from skae.networks import MLP, Conv, Custom
from skae.penalties import PENALTIES

N_FEATURES = 40


def make_table(seed=0, n_rows=60, density=0.15, missing=False, dtype=np.float64):
    """A CSR table with empty rows, an empty column and a stored zero."""
    rng = np.random.default_rng(seed)
    table = sparse.random_array(
        (n_rows, N_FEATURES), density=density, format="csr", rng=rng, dtype=dtype
    )
    parts = rng.random((n_rows, 2)) @ rng.random((2, N_FEATURES))
    rows, columns = table.tocoo().coords
    table.data *= parts[rows, columns].astype(dtype) / 2
    table.data[rows % 9 == 0] = 0
    table.data[columns == 3] = 0
    table.eliminate_zeros()
    table.data[0] = 0
    if missing:
        table.data[1::7] = np.nan
    return table


@pytest.fixture
def all_sparse(monkeypatch):
    """Keep rows of small and of dense sparse tables sparse, in several blocks."""
    monkeypatch.setattr(_rows, "MIN_SPARSE_WIDTH", 1)
    monkeypatch.setattr(_rows, "MAX_SPARSE_DENSITY", 1.0)
    monkeypatch.setattr(trainer, "MIN_SPARSE_ENTRIES", 0)
    monkeypatch.setattr(_module, "BLOCK_ENTRIES", 1000)
    monkeypatch.setattr(_prediction, "BLOCK_ENTRIES", 1000)
    monkeypatch.setattr(_sparse, "FEATURE_BLOCK", 2000)
    monkeypatch.setattr(_sparse, "SUMMED_FEATURES", 16)


@pytest.fixture
def n_dense(monkeypatch):
    """The numbers of rows that have been made dense."""
    sizes = []
    dense = _rows.Rows.dense

    def counted(self, where):
        block = dense(self, where)
        sizes.append(len(block))
        return block

    monkeypatch.setattr(_rows.Rows, "dense", counted)
    return sizes


# Products


def scaled_rows(seed=0, missing=False, n_rows=12):
    """Sparse rows in a scaled space, and the same rows and their mask as tensors."""
    rng = np.random.default_rng(seed)
    table = make_table(seed, n_rows, missing=missing)
    shift, factor = rng.random((2, N_FEATURES)) + 0.5
    mean = torch.from_numpy(rng.random(N_FEATURES))
    rows = SparseRows.from_csr(table)
    scaled = rows.scaled(torch.from_numpy(shift), torch.from_numpy(factor), mean)
    dense = torch.from_numpy((table.toarray() - shift) / factor)
    return scaled, torch.where(dense.isnan(), mean, dense), ~dense.isnan()


def tensors(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True)
        for s in shapes
    ]


def assert_same_gradients(one, other, inputs):
    assert_allclose(one.detach(), other.detach(), rtol=1e-9, atol=1e-12)
    weights = torch.randn(one.shape, dtype=one.dtype)
    gradients = [
        torch.autograd.grad((weights * value).sum(), inputs) for value in (one, other)
    ]
    for ours, expected in zip(*gradients, strict=True):
        assert_allclose(ours, expected, rtol=1e-9, atol=1e-10)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.booleans())
def test_products_of_sparse_rows_and_their_gradients(seed, missing):
    rows, dense, _ = scaled_rows(seed, missing)
    weight, bias = tensors((5, N_FEATURES), (5,))
    assert_same_gradients(
        functional.linear(rows, weight, bias),
        functional.linear(dense, weight, bias),
        (weight, bias),
    )


def test_members_multiply_the_features_that_they_see():
    rows, dense, _ = scaled_rows(missing=True)
    visible = torch.rand(3, 1, N_FEATURES) < 0.5
    mean = torch.rand(N_FEATURES, dtype=torch.float64)
    weight, bias = tensors((3, 5, N_FEATURES), (3, 5, 1))
    assert_same_gradients(
        torch.baddbmm(bias, weight, rows.visible_to(visible, mean).mT),
        torch.baddbmm(bias, weight, torch.where(visible, dense, mean).mT),
        (weight, bias),
    )


def dense_sum(losses, observed):
    return torch.where(observed, losses, 0).sum(dim=-1)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.booleans(), st.integers(0, 2))
def test_squared_distances_and_their_gradients(seed, missing, n_members):
    rows, dense, observed = scaled_rows(seed, missing)
    members = (n_members,) if n_members else ()
    F, weight, bias = tensors(
        (*members, 12, 6), (*members, N_FEATURES, 6), (*members, N_FEATURES), seed=seed
    )
    X_hat = F @ weight.mT + bias[..., None, :]
    assert_same_gradients(
        _sparse.squared_distances(LinearOutput(F, weight, bias), rows),
        dense_sum((X_hat - dense) ** 2, observed),
        (F, weight, bias),
    )
    metric = torch.rand(N_FEATURES, dtype=torch.float64)
    with torch.no_grad():
        measured = _sparse.squared_distances(
            LinearOutput(F, weight, bias), rows, metric
        )
    expected = dense_sum((metric * (X_hat - dense)) ** 2, observed).detach()
    assert_allclose(measured, expected, rtol=1e-9)


@pytest.mark.parametrize("loss", [SquaredError(), LogError(), Huber(0.3)], ids=repr)
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("members", [(), (2,)])
def test_losses_of_some_features_at_a_time(loss, missing, members, all_sparse):
    rows, dense, observed = scaled_rows(missing=missing)
    F, weight, bias = tensors(
        (*members, 12, 6), (*members, N_FEATURES, 6), (*members, N_FEATURES)
    )
    X_hat = F @ weight.mT + bias[..., None, :]

    def compute(block):
        return loss.elementwise(block.target.expand_as(block.raw), block.raw)

    def summed():
        return _sparse.summed_losses(compute, LinearOutput(F, weight, bias), rows)

    expected = dense_sum(loss.elementwise(dense.expand_as(X_hat), X_hat), observed)
    assert_same_gradients(summed(), expected, (F, weight, bias))
    with torch.no_grad():
        assert_allclose(summed(), expected.detach(), rtol=1e-12)


@pytest.mark.parametrize("n_units", [6, N_FEATURES + 5])
def test_a_projection_keeps_all_distances(n_units):
    rows, dense, _ = scaled_rows()
    F, weight, bias = tensors((12, n_units), (N_FEATURES, n_units), (N_FEATURES,))
    weight = weight.detach()
    weight[:, 2] = 0  # a network that starts at a PCA has units without weights
    bias = bias.detach()
    projection = Projection.of(weight, bias, rows)
    distances = (projection.generate(F) - projection.target).square().sum(dim=1)
    expected = (F @ weight.T + bias - dense).square().sum(dim=1)
    assert_allclose(distances.detach(), expected.detach(), rtol=1e-9)


def test_selected_rows_of_sparse_rows():
    rows, dense, observed = scaled_rows(missing=True)
    where = torch.tensor([7, 0, 3, 3])
    taken, mask = rows.take(where).dense()
    assert_allclose(taken, dense[where])
    assert mask is None or torch.equal(mask, observed[where])
    parts = list(rows.split([5, 4, 3]))
    assert_allclose(torch.cat([part.dense()[0] for part in parts]), dense)
    assert_array_equal(rows.has_missing, ~observed.all(dim=1))
    assert_array_equal(rows.n_observed, observed.sum(dim=1))


def test_rows_without_stored_entries():
    rows = SparseRows.from_csr(sparse.csr_array((4, 6)))
    weight, bias = tensors((3, 6), (3,))
    assert_allclose(rows.linear(weight, bias).detach(), bias.detach().expand(4, 3))
    F, last, b = tensors((4, 2), (6, 2), (6,))
    distances = _sparse.squared_distances(LinearOutput(F, last, b), rows)
    expected = (F @ last.T + b).square().sum(dim=1)
    assert_same_gradients(distances, expected, (F, last, b))


def test_products_of_weights_are_summed_in_float64():
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(np.linalg.qr(rng.standard_normal((10**5, 2)))[0]).float()
    gram, _ = _sparse._products(weight, torch.ones(len(weight)))
    exact = weight.double().T @ weight.double()
    plain = weight.T @ weight
    assert (gram - exact).abs().max() < 0.2 * (plain - exact).abs().max()


# Settings


@pytest.mark.parametrize("name", LOSSES)
def test_losses_that_do_not_depend_on_the_column(name):
    loss = LOSSES[name]()
    if loss.depends_on_column:
        assert not loss.is_squared_distance
        return
    X, X_hat = torch.rand(2, 3, 5)
    order = torch.tensor([4, 1, 0])
    expected = loss.elementwise(X, X_hat)[:, order]
    assert torch.equal(loss.elementwise(X[:, order], X_hat[:, order]), expected)
    assert loss.is_squared_distance is (name == "squared_error")


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_that_need_no_rows(name):
    penalty = PENALTIES[name]()
    Z, weight = torch.rand(4, 3), torch.ones(4)
    if penalty.needs_rows:
        with pytest.raises((AttributeError, TypeError)):
            penalty.build()(None, None, Z, weight)
    else:
        assert penalty.build()(None, None, Z, weight).shape == (4,)


# Networks


LINEAR = nn.Linear(4, 4)
STACKED = StackedLinear([LINEAR, LINEAR])


@pytest.mark.parametrize(
    ("network", "starts", "ends"),
    [
        (LINEAR, True, True),
        (nn.Sequential(LINEAR, nn.ReLU(), LINEAR), True, True),
        (nn.Sequential(LINEAR, nn.ReLU()), True, False),
        (nn.Sequential(nn.ReLU(), LINEAR), False, True),
        (Residual(LINEAR, nn.Sequential(LINEAR, nn.Tanh(), LINEAR)), True, True),
        (Residual(LINEAR, nn.Sequential(nn.Tanh(), LINEAR)), False, True),
        (nn.Sequential(STACKED, nn.ReLU(), STACKED), True, True),
        (Members([LINEAR, LINEAR]), True, False),
        (nn.Sequential(), False, False),
        (nn.Linear(4, 4, bias=False), True, False),
        (nn.Bilinear(4, 4, 4), False, False),
    ],
)
def test_first_and_last_layers_that_are_linear(network, starts, ends):
    assert starts_linear(network) is starts
    decoder = linear_end(network)
    assert (decoder is not None) is ends
    if decoder is not None:
        Z = torch.randn(2, 3, 4) if "Stacked" in repr(network) else torch.randn(3, 4)
        assert_allclose(
            decoder(Z).dense().detach(), network(Z).detach(), rtol=1e-5, atol=1e-6
        )


def test_networks_with_hooks_receive_dense_rows():
    hooked = nn.Linear(4, 4)
    hooked.register_forward_hook(lambda *_: None)
    assert not starts_linear(nn.Sequential(hooked, nn.ReLU()))
    assert linear_end(nn.Sequential(nn.ReLU(), hooked)) is None


# Estimators

TRANSFORMER, DETECTOR = AutoencoderTransformer, AutoencoderOutlierDetector


def linear_encoder(n_features, n_components):
    return nn.Sequential(
        nn.Linear(n_features, 8), nn.Tanh(), nn.Linear(8, n_components)
    )


def linear_decoder(n_features, n_components):
    return nn.Linear(n_components, n_features)


class Weighted(Loss):
    """A loss that differs between columns."""

    def elementwise(self, X, X_hat):
        return torch.arange(1, X.shape[-1] + 1) * (X - X_hat) ** 2


KEPT = [
    (TRANSFORMER, {"init": "random"}),
    (TRANSFORMER, {"hidden_layer_sizes": ()}),
    (TRANSFORMER, {"scale": "feature", "init": "random"}),
    (TRANSFORMER, {"scale": None, "init": "random", "early_stopping": False}),
    (TRANSFORMER, {"n_components": 5, "init": "random", "trim": 0.3}),
    (TRANSFORMER, {"init": "random", "transform_max_iter": 0, "weight_decay": 0}),
    (TRANSFORMER, {"init": "random", "loss": "absolute_error"}),
    (TRANSFORMER, {"init": "random", "penalty": "l1"}),
    (TRANSFORMER, {"init": "random", "penalty": "kl", "loss": "huber"}),
    (TRANSFORMER, {"bottleneck": "topk", "n_components": 4}),
    (TRANSFORMER, {"bottleneck": "quantized", "n_components": 4}),
    (TRANSFORMER, {"init": "random", "network": MLP((8,), dropout=0.2)}),
    (TRANSFORMER, {"network": Custom(linear_encoder, linear_decoder)}),
    (TRANSFORMER, {"init": "random", "batch_size": 4}),  # too small for products
    (DETECTOR, {}),
    (DETECTOR, {"loss": "squared_error", "error": "loss"}),
    (DETECTOR, {"loss": "squared_error"}),
    (DETECTOR, {"n_estimators": 1, "loss": "huber", "error": "loss"}),
    (DETECTOR, {"scale": None, "max_features": 0.3}),
    (DETECTOR, {"bottleneck": "topk"}),
]

# These need dense rows, a block at a time.
DENSE = [
    (TRANSFORMER, {"network": Conv((2,))}),
    (TRANSFORMER, {"bottleneck": Gaussian()}),
    (TRANSFORMER, {"corruption": "masking"}),
    (TRANSFORMER, {"corruption": "gaussian", "loss": "huber"}),
    (TRANSFORMER, {"penalty": "contractive"}),
    (TRANSFORMER, {"loss": "binary_cross_entropy"}),
    (TRANSFORMER, {"loss": "mixed"}),
    (TRANSFORMER, {"loss": Weighted()}),
    (TRANSFORMER, {"precision": "bfloat16"}),
    (DETECTOR, {"network": Custom(linear_encoder, linear_decoder)}),
]


def make(estimator, kwargs):
    sizes = {"hidden_layer_sizes": (8,)}
    if not isinstance(kwargs.get("network", "mlp"), str):
        sizes = {}
    common = {**SMALL, "batch_size": 16, "max_epochs": 2, "random_state": 0}
    if estimator is DETECTOR:
        common["n_estimators"] = 2
    return estimator(**{**common, **sizes, **kwargs})


def is_sparse(model, table):
    net = model.net_
    return net.module_.trains_sparse(_rows.Rows(table))


def assert_same_predictions(one, other, sparse_rows, dense_rows, **tolerance):
    """Compare one model's predictions of sparse rows and another's of dense ones."""
    names = ["score_samples"]
    if hasattr(one, "transform"):
        names.append("quantize" if hasattr(one, "quantize") else "transform")
        assert_allclose(one.score(sparse_rows), other.score(dense_rows), **tolerance)
    for name in names:
        assert_allclose(
            getattr(one, name)(sparse_rows),
            getattr(other, name)(dense_rows),
            **tolerance,
        )


@pytest.mark.parametrize(
    ("estimator", "kwargs", "missing"),
    [(*case, False) for case in KEPT] + [(*case, True) for case in KEPT + DENSE],
)
def test_fits_of_sparse_and_dense_rows_are_equal(
    estimator, kwargs, missing, all_sparse, n_dense
):
    table = make_table(missing=missing)
    rows = table.toarray()
    model = make(estimator, kwargs)
    dense = clone(model).fit(rows)
    kept = model.fit(table)
    assert_allclose(kept.loss_curve_, dense.loss_curve_, rtol=2e-5)
    assert_same_predictions(kept, dense, table, rows, rtol=2e-3, atol=2e-3)
    # One model gives the same predictions up to rounding in float64.
    assert_same_predictions(kept, kept, table, rows, rtol=1e-6, atol=1e-6)
    assert_allclose(kept.reconstruct(table), kept.reconstruct(rows), atol=1e-6)


@pytest.mark.parametrize(("estimator", "kwargs"), KEPT)
def test_these_settings_keep_rows_sparse(estimator, kwargs, all_sparse):
    assert is_sparse(make(estimator, kwargs).fit(make_table()), make_table())


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.float64])
@pytest.mark.parametrize("convert", ["tocsr", "tocsc", "tocoo"])
def test_formats_and_types_of_sparse_tables(dtype, convert, all_sparse):
    table = make_table()
    table.data = np.ceil(9 * table.data)
    model = make(TRANSFORMER, {"init": "random"}).fit(table)
    given = getattr(table.astype(dtype), convert)()
    same = clone(model).fit(given)
    codes = same.transform(given)
    assert codes.dtype == (np.float32 if dtype == np.float32 else np.float64)
    assert_allclose(same.loss_curve_, model.loss_curve_, rtol=1e-5)
    assert_allclose(codes, model.transform(table), rtol=1e-3, atol=1e-3)
    assert_allclose(same.score_samples(given), model.score_samples(table), atol=1e-3)


@pytest.mark.parametrize("kwargs", [{"init": "random"}, {}])
def test_training_goes_on_with_sparse_rows(kwargs, all_sparse):
    table = make_table()
    model = make(TRANSFORMER, {**kwargs, "warm_start": True, "early_stopping": False})
    fits = []
    for rows in (table, table.toarray()):
        one = clone(model).partial_fit(rows[:30]).partial_fit(rows[30:])
        one.fit(rows).fit(rows)
        fits.append(one)
    assert_allclose(fits[0].loss_curve_, fits[1].loss_curve_, rtol=5e-3)


def test_weights_are_repetitions_and_order_is_nothing(all_sparse):
    table = make_table()
    weight = np.arange(len(table.indptr) - 1) % 3
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(60), weight))
    model = make(TRANSFORMER, {"init": "random"})
    weighted = clone(model).fit(table, sample_weight=weight)
    repeated = clone(model).fit(table[order])
    assert_array_equal(weighted.transform(table), repeated.transform(table))


def test_the_same_seed_gives_the_same_model(all_sparse):
    table = make_table()
    for estimator in (TRANSFORMER, DETECTOR):
        model = make(estimator, {})
        scores = [clone(model).fit(table).score_samples(table) for _ in range(2)]
        assert_array_equal(*scores)


def test_a_row_that_is_reproduced_exactly_has_no_error(all_sparse):
    """Its error is the difference of products, which are rounded."""
    rng = np.random.default_rng(0)
    rows = np.zeros((60, N_FEATURES))
    rows[:, :2] = rng.random((60, 2)) * (rng.random((60, 2)) < 0.7)
    table = sparse.csr_array(rows)
    model = make(TRANSFORMER, {"hidden_layer_sizes": (), "early_stopping": False})
    model.set_params(max_epochs=1, learning_rate=1e-12).fit(rows)
    assert is_sparse(model, table)
    assert_allclose(
        model.score_samples(table), model.score_samples(rows), rtol=1e-3, atol=1e-20
    )
    assert model.score(table) == model.score(rows)


@pytest.mark.parametrize(
    ("offset", "value"), [(1e5, 1.0), (0.0, 1e18)], ids=["offset", "value"]
)
def test_large_numbers_make_rows_dense(offset, value, all_sparse):
    table = make_table()
    rows = table.toarray()
    rows[:, 0] += offset
    model = make(TRANSFORMER, {"init": "random", "scale": "feature"}).fit(rows)
    rows[0, 1] = value
    table = sparse.csr_array(rows)
    assert not is_sparse(model, table)
    assert_array_equal(model.score_samples(table), model.score_samples(rows))


def test_predictions_of_a_row_alone_and_in_a_batch(all_sparse):
    table = make_table()
    for estimator, kwargs in ((TRANSFORMER, {}), (DETECTOR, {"loss": "squared_error"})):
        model = make(estimator, kwargs).fit(table)
        name = "transform" if estimator is TRANSFORMER else "score_samples"
        predict = getattr(model, name)
        alone = np.concatenate([predict(table[i : i + 1]) for i in range(5)])
        assert_allclose(alone, predict(table)[:5], atol=1e-7)


@pytest.mark.parametrize(
    ("estimator", "kwargs"),
    [
        (TRANSFORMER, {}),
        (TRANSFORMER, {"init": "random", "loss": "absolute_error"}),
        (DETECTOR, {}),
        (DETECTOR, {"loss": "squared_error", "error": "loss"}),
    ],
)
def test_no_more_than_samples_of_rows_are_made_dense(
    estimator, kwargs, all_sparse, n_dense, monkeypatch
):
    monkeypatch.setattr(_rows, "MAX_CANONICAL_ROWS", 0)
    monkeypatch.setattr(_rows, "MAX_SAMPLE_ENTRIES", 1)
    monkeypatch.setattr(_rows, "MIN_SAMPLE", 5)
    monkeypatch.setattr(_summary, "MAX_DENSE_ENTRIES", 0)
    monkeypatch.setattr(_pca, "MAX_KEPT_ENTRIES", 0)
    monkeypatch.setattr(_pca, "MAX_COVARIANCE_WIDTH", 0)
    monkeypatch.setattr(_completion, "MAX_COVARIANCE_WIDTH", 0)
    monkeypatch.setattr(_kept_rows, "MAX_ROWS", 50)
    monkeypatch.setattr(_kept_rows, "MIN_ROWS", 50)
    table = make_table(n_rows=300)
    model = make(estimator, kwargs).fit(table)
    assert sum(n_dense) < 100
    n_dense.clear()
    model.score_samples(table)
    if estimator is TRANSFORMER:
        model.transform(table)
        model.score(table)
    assert sum(n_dense) == 0


def test_callbacks_of_batches_receive_dense_rows(all_sparse):
    from skorch.callbacks import Callback

    shapes = []

    class Watch(Callback):
        def on_batch_begin(self, net, batch, training, **kwargs):
            shapes.append(torch.as_tensor(batch[0]).shape[1])

    table = make_table()
    make(TRANSFORMER, {}).set_params(callbacks=[Watch()]).fit(table)
    assert set(shapes) == {N_FEATURES}


def test_hooks_added_in_training_receive_dense_rows(all_sparse):
    from skorch.callbacks import Callback

    received = []

    class AddHook(Callback):
        def on_epoch_begin(self, net, **kwargs):
            if len(net.history) == 2:
                net.module_.encoder.register_forward_pre_hook(
                    lambda module, inputs: received.append(inputs[0])
                )

    table = make_table()
    model = make(TRANSFORMER, {}).set_params(callbacks=[AddHook()], max_epochs=2)
    model.fit(table)
    assert received
    assert all(isinstance(X, torch.Tensor) for X in received)
