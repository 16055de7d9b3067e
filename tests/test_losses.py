"""Facts about skae.losses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.base import clone
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn
from torch.nn import functional

from skae.losses import (
    _PIECE_ENTRIES,
    LOSSES,
    AbsoluteError,
    BinaryCrossEntropy,
    Huber,
    LogError,
    Loss,
    Mixed,
    SquaredError,
    _pieces,
    observed_mean,
    observed_share,
)

TABLES = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 5), st.integers(1, 4)),
    elements=st.floats(0, 9),
)


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    X = 3 * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    return X, 3 * torch.randn(6, 4, generator=generator, dtype=torch.float64)


@pytest.fixture
def unit_pair():
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(6, 4, generator=generator, dtype=torch.float64)
    return X, torch.rand(6, 4, generator=generator, dtype=torch.float64)


def test_squared_error_is_the_square(pair):
    X, X_hat = pair
    expected = functional.mse_loss(X_hat, X, reduction="none")
    torch.testing.assert_close(SquaredError().elementwise(X, X_hat), expected)


def test_absolute_error_is_the_magnitude(pair):
    X, X_hat = pair
    expected = np.abs(X.numpy() - X_hat.numpy())
    np.testing.assert_allclose(AbsoluteError().elementwise(X, X_hat), expected)


def test_losses_of_a_residual_of_three_with_default_parameters():
    X, X_hat = torch.tensor([[4.0]]), torch.tensor([[1.0]])
    expected = {
        "squared_error": 9.0,
        "absolute_error": 3.0,
        "huber": 2.5,
        "log_error": np.log(7.0),
    }
    for name, value in expected.items():
        assert LOSSES[name]().elementwise(X, X_hat).item() == pytest.approx(value)


@pytest.mark.parametrize("delta", [0.3, 1.0, 2.5])
def test_huber_follows_its_equation(pair, delta):
    X, X_hat = pair
    r = np.abs(X.numpy() - X_hat.numpy())
    assert (r > delta).any()
    assert (r < delta).any()
    expected = np.where(r <= delta, r**2 / 2, delta * (r - delta / 2))
    np.testing.assert_allclose(Huber(delta).elementwise(X, X_hat), expected)


@pytest.mark.parametrize("delta", [0, -1.0, "1"])
def test_huber_delta_that_is_not_positive_raises(delta):
    with pytest.raises(InvalidParameterError, match="delta"):
        Huber(delta)._validate_params()


@pytest.mark.parametrize("scale", [0.1, 0.5, 3.0])
def test_log_error_follows_its_equation(pair, scale):
    X, X_hat = pair
    expected = np.log(1 + np.abs(X.numpy() - X_hat.numpy()) / scale)
    np.testing.assert_allclose(LogError(scale).elementwise(X, X_hat), expected)


@pytest.mark.parametrize("scale", [0, -1.0, "1"])
def test_log_error_scale_that_is_not_positive_raises(scale):
    with pytest.raises(InvalidParameterError, match="scale"):
        LogError(scale)._validate_params()


def test_binary_cross_entropy_follows_its_equation(unit_pair):
    X, X_hat = unit_pair
    x, p = X.numpy(), X_hat.numpy()
    expected = -x * np.log(p) - (1 - x) * np.log(1 - p)
    np.testing.assert_allclose(BinaryCrossEntropy().elementwise(X, X_hat), expected)


def test_binary_cross_entropy_is_equal_from_logits_and_probabilities(unit_pair):
    X, _ = unit_pair
    raw = torch.linspace(-4, 4, X.numel(), dtype=torch.float64).reshape(X.shape)
    loss = BinaryCrossEntropy()
    torch.testing.assert_close(
        loss.elementwise_from_raw(X, raw, nn.Sigmoid()),
        loss.elementwise(X, torch.sigmoid(raw)),
    )


@pytest.mark.parametrize(("x", "raw"), [(0.0, 200.0), (1.0, -200.0)])
def test_binary_cross_entropy_is_exact_where_the_sigmoid_saturates(x, raw):
    raw = torch.tensor([[raw]], requires_grad=True)
    loss = BinaryCrossEntropy().elementwise_from_raw(
        torch.tensor([[x]]), raw, nn.Sigmoid()
    )
    loss.backward()
    assert loss.item() == 200
    assert abs(raw.grad.item()) == 1


@pytest.mark.parametrize(("x", "raw"), [(0.0, -200.0), (1.0, 200.0)])
def test_binary_cross_entropy_of_a_certain_correct_value_is_zero(x, raw):
    loss = BinaryCrossEntropy().elementwise_from_raw(
        torch.tensor([[x]]), torch.tensor([[raw]]), nn.Sigmoid()
    )
    assert loss.item() == 0


def test_binary_cross_entropy_of_a_certain_wrong_value_is_100():
    loss = BinaryCrossEntropy().elementwise(torch.ones(1, 1), torch.zeros(1, 1))
    assert loss.item() == 100


def test_binary_cross_entropy_applies_other_output_activations():
    output = nn.Hardsigmoid()
    X, raw = torch.tensor([[0.25, 1.0]]), torch.tensor([[1.0, 2.0]])
    loss = BinaryCrossEntropy()
    torch.testing.assert_close(
        loss.elementwise_from_raw(X, raw, output), loss.elementwise(X, output(raw))
    )


@pytest.mark.parametrize("loss", [SquaredError(), AbsoluteError(), Huber()])
def test_loss_from_raw_applies_the_output_activation(pair, loss):
    X, raw = pair
    torch.testing.assert_close(
        loss.elementwise_from_raw(X, raw, nn.Tanh()), loss.elementwise(X, raw.tanh())
    )


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_loss_is_not_negative(unit_pair, name):
    X, X_hat = unit_pair
    assert (LOSSES[name]().elementwise(X, X_hat) >= 0).all()


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_keeps_the_type(unit_pair, name, dtype):
    X, X_hat = (tensor.to(dtype) for tensor in unit_pair)
    assert LOSSES[name]().elementwise(X, X_hat).dtype == dtype


def test_only_binary_cross_entropy_is_bounded_with_a_sigmoid_everywhere():
    implied = {
        name: (loss.output_activation, loss.bounds) for name, loss in LOSSES.items()
    }
    assert implied.pop("binary_cross_entropy") == ("sigmoid", (0, 1))
    assert implied.pop("mixed") == ("identity", (0, 1))  # in some columns
    assert set(implied.values()) == {("identity", None)}


def test_mixed_is_cross_entropy_of_binary_and_squared_error_of_other_columns(
    pair, unit_pair
):
    (X, raw), (p, _) = pair, unit_pair
    X[:, [0, 3]] = (X[:, [0, 3]] > 0).double()
    mixed = Mixed([0, 3])
    X_hat = torch.where(torch.tensor([True, False, False, True]), p, raw)
    entropy = BinaryCrossEntropy().elementwise(X[:, [0, 3]], p[:, [0, 3]])
    for loss in (mixed, Mixed(), Mixed(np.array([True, False, False, True]))):
        result = loss.elementwise(X, X_hat)
        torch.testing.assert_close(result[:, [0, 3]], entropy)
        torch.testing.assert_close(
            result[:, 1:3], SquaredError().elementwise(X, raw)[:, 1:3]
        )
    output = mixed.build_output(4)
    torch.testing.assert_close(
        mixed.elementwise_from_raw(X, raw, output), mixed.elementwise(X, output(raw))
    )


def test_columns_of_negative_entries_are_not_binary():
    X = torch.tensor([[0.0, -1.0, 1.0, 2.0], [1.0, 1.0, 1.0, 0.0]])
    X_hat = torch.full((2, 4), 0.5)
    squares = SquaredError().elementwise(X, X_hat)
    result = Mixed().elementwise(X, X_hat)
    torch.testing.assert_close(result[:, 1:], squares[:, 1:])
    assert (result[:, 0] != squares[:, 0]).all()


@pytest.mark.parametrize("binary", [[3], [-1], [0.5], [[0]], [True, False], ["a"]])
def test_wrong_columns_of_mixed_are_named(binary):
    with pytest.raises(
        ValueError, match=r"positions from 0 to 2, |does not have: \['a"
    ):
        Mixed(binary).bind(np.array([True, False, True]), None)


def test_mixed_binds_to_the_binary_columns_of_a_table():
    is_binary = np.array([True, False, True])
    assert Mixed().bind(is_binary, None).binary == [0, 2]
    assert Mixed(["b"]).bind(is_binary, ["a", "b", "c"]).binary == [1]
    assert Mixed([False, True, True]).bind(is_binary, None).binary == [1, 2]
    assert type(Mixed([]).bind(is_binary, None)) is SquaredError
    assert type(Mixed().bind(~is_binary & is_binary, None)) is SquaredError
    for name in {*LOSSES} - {"mixed"}:
        loss = LOSSES[name]()
        assert loss.bind(is_binary, None) is loss
        assert not loss.needs_binary_columns
    assert Mixed.needs_binary_columns


def test_bounded_columns_follow_the_bounds():
    bounded = {
        name: LOSSES[name]().bind(np.array([True, False]), None).bounded_columns(2)
        for name in LOSSES
    }
    assert bounded.pop("binary_cross_entropy").tolist() == [True, True]
    assert bounded.pop("mixed").tolist() == [True, False]
    assert not any(columns.any() for columns in bounded.values())


def test_loss_makes_its_output_activation():
    assert type(Huber().build_output(3)) is nn.Identity
    assert type(BinaryCrossEntropy().build_output(3)) is nn.Sigmoid
    output = Mixed([2]).build_output(3)
    assert output.is_binary.tolist() == [False, False, True]


def test_loss_accepts_its_own_output_activation_alone():
    assert Huber().output_activations == ("auto", "identity")
    assert BinaryCrossEntropy().output_activations == ("auto", "sigmoid")
    assert Mixed().output_activations == ("auto",)


def test_only_unbounded_losses_allow_a_pca_start():
    denied = {name for name, loss in LOSSES.items() if not loss().allows_pca}
    assert denied == {"binary_cross_entropy", "mixed"}


def test_only_the_squared_error_refines_codes():
    refined = {name for name, loss in LOSSES.items() if loss().codes_may_be_refined}
    assert refined == {"squared_error"}


def test_mixed_is_exact_where_its_sigmoid_saturates():
    mixed = Mixed([0])
    raw = torch.tensor([[-200.0, 1e6]], requires_grad=True)
    loss = mixed.elementwise_from_raw(torch.ones(1, 2), raw, mixed.build_output(2))
    loss[:, 0].sum().backward()
    assert loss[0, 0] == 200
    assert raw.grad.tolist() == [[-1.0, 0.0]]


# The likelihood


SCALED = [SquaredError(), AbsoluteError(), LogError(), LogError(scale=2.0)]


@pytest.mark.parametrize("loss", SCALED, ids=str)
@pytest.mark.parametrize("level", [0.01, 0.2])
def test_density_of_a_loss_has_mass_one_and_the_level_as_mean_loss(loss, level):
    scale = loss.noise_scale(torch.tensor(level, dtype=torch.float64))
    log_z = loss.log_normalizer(scale)
    # Integrals over x >= 0, with x = exp(t).
    t = torch.linspace(-30, 300, 200_001, dtype=torch.float64)[None]
    x = t.exp()
    losses = loss.elementwise(x, torch.zeros_like(x))
    density = 2 * (-losses / scale - log_z + t).exp()
    assert torch.trapezoid(density, t).item() == pytest.approx(1, rel=1e-6)
    mean = torch.trapezoid((losses * density).nan_to_num(), t)
    assert mean.item() == pytest.approx(level, rel=1e-6)


@pytest.mark.parametrize("loss", [*SCALED, Huber(), Mixed([0])], ids=str)
def test_level_that_is_most_likely_is_the_mean_loss(loss):
    levels = torch.linspace(0.05, 0.5, 451, dtype=torch.float64)
    s = loss.noise_scale(levels)
    likelihood = 0.2 / s + loss.log_normalizer(s)
    assert levels[likelihood.argmin()].item() == pytest.approx(0.2, abs=1e-3)


def test_only_columns_without_a_likelihood_of_their_own_have_a_scale():
    assert SquaredError().scaled_columns(2).tolist() == [True, True]
    assert BinaryCrossEntropy().scaled_columns(2).tolist() == [False, False]
    assert Mixed([1]).scaled_columns(3).tolist() == [True, False, True]


@pytest.mark.parametrize("loss", [SquaredError(), BinaryCrossEntropy(), Mixed([1])])
def test_decoder_start_reconstructs_the_mean(loss):
    mean = np.array([0.4, 0.2, 0.9])
    raw, slope = loss.decoder_start(mean)
    output = loss.build_output(3)
    moved = [output(torch.from_numpy(raw + step * slope)) for step in (0, 1e-3)]
    np.testing.assert_allclose(moved[0], mean)
    ratio = (moved[1] - moved[0]).numpy() / 1e-3
    assert ((ratio > 0.6) & (ratio < 1.001)).all()


def test_decoder_start_is_finite_for_entries_that_are_always_equal():
    raw, slope = BinaryCrossEntropy().decoder_start(np.array([0.0, 1.0]))
    assert np.isfinite(raw).all()
    assert np.isfinite(slope).all()


def test_decoder_start_of_one_binary_column_is_the_logit():
    mean = np.array([0.25])
    raw, slope = Mixed([0]).decoder_start(mean)
    np.testing.assert_allclose(raw, np.log([1 / 3]))
    np.testing.assert_array_equal(slope, BinaryCrossEntropy().decoder_start(mean)[1])
    assert Mixed([]).decoder_start(np.zeros(0))[0].shape == (0,)


@pytest.mark.parametrize("activation", ["tanh", "elu"])
def test_loss_with_another_activation_has_no_decoder_start(activation):
    class Bounded(Loss):
        output_activation = activation

        def elementwise(self, X, X_hat):
            return (X - X_hat).square()

    assert Bounded().decoder_start(np.zeros(2)) is None
    assert not Bounded().allows_pca


def test_loss_without_elementwise_is_abstract():
    with pytest.raises(TypeError, match="elementwise"):
        Loss()


def test_clone_of_a_loss_has_equal_parameters():
    assert clone(Huber(delta=0.25)).get_params() == {"delta": 0.25}


@settings(deadline=None, max_examples=30)
@given(TABLES, st.data())
def test_observed_shares_sum_to_the_mean_of_the_observed(loss, data):
    observed = data.draw(hnp.arrays(bool, loss.shape))
    shares = observed_share(torch.from_numpy(loss), torch.from_numpy(observed)).numpy()
    for row, mask, share in zip(loss, observed, shares, strict=True):
        expected = row[mask].mean() if mask.any() else 0
        # The least numbers have no halves.
        np.testing.assert_allclose(share.sum(), expected, atol=1e-300)
        assert (share[~mask] == 0).all()


@settings(deadline=None, max_examples=20)
@given(TABLES)
def test_observed_none_equals_all_observed(loss):
    loss = torch.from_numpy(loss)
    torch.testing.assert_close(
        observed_share(loss, None),
        observed_share(loss, torch.ones_like(loss, dtype=bool)),
    )


@settings(deadline=None, max_examples=30)
@given(TABLES, st.data())
def test_mean_of_observed_entries_is_the_sum_of_their_shares(loss, data):
    observed = data.draw(st.none() | hnp.arrays(bool, loss.shape))
    loss = torch.from_numpy(loss)
    observed = None if observed is None else torch.from_numpy(observed)
    mean = observed_mean(loss, observed)
    assert mean.shape == (len(loss),)
    torch.testing.assert_close(mean, observed_share(loss, observed).sum(dim=1))


@pytest.mark.parametrize(("name", "expected"), [("identity", True), ("relu", False)])
def test_a_network_that_ends_in_a_linear_layer_can_start_as_pca(name, expected):
    class OwnError(SquaredError):
        output_activation = "".join(list(name))  # equal, and another object

    assert OwnError().allows_pca is expected


def test_the_mean_of_members_is_that_of_their_features():
    loss = torch.arange(24.0).reshape(2, 3, 4)
    expected = torch.tensor([[1.5, 5.5, 9.5], [13.5, 17.5, 21.5]])
    torch.testing.assert_close(observed_mean(loss, None), expected)
    torch.testing.assert_close(observed_mean(loss, torch.ones(3, 4) > 0), expected)


@pytest.mark.parametrize("reduce", [observed_share, observed_mean])
def test_missing_entry_has_zero_gradient_even_if_its_loss_is_nan(reduce):
    loss = torch.tensor([[1.0, torch.nan, 1.0]], requires_grad=True)
    reduce(loss, torch.tensor([[True, False, True]])).sum().backward()
    assert loss.grad.tolist() == [[0.5, 0, 0.5]]


@pytest.mark.parametrize(
    ("shape", "n_pieces"), [((700, 400), 5), ((3, 300, 310), 6), ((40, 90, 100), 6)]
)
def test_pieces_fit_into_the_cache(shape, n_pieces):
    X = torch.arange(float(np.prod(shape))).reshape(shape)
    pieces = list(_pieces(X + 1, X))
    assert len(pieces) == n_pieces
    assert max(piece.numel() for _, piece in pieces) <= _PIECE_ENTRIES
    assert pieces[0][1].numel() == max(piece.numel() for _, piece in pieces)
    assert torch.equal(torch.cat([piece.flatten() for _, piece in pieces]), X.flatten())
    assert all(torch.equal(first, second + 1) for first, second in pieces)


def test_large_log_errors_have_gradients_of_the_rows_too():
    X, X_hat = torch.randn(2, 700, 400, requires_grad=True).unbind()
    loss = LogError().elementwise(X, X_hat)
    assert "LogError" not in type(loss.grad_fn).__name__
    from_rows, from_outputs = torch.autograd.grad(loss.sum(), (X, X_hat))
    torch.testing.assert_close(from_rows, -from_outputs)


@pytest.mark.parametrize("shape", [(700, 400), (3, 300, 310), (40, 90, 100)], ids=str)
@pytest.mark.parametrize("rows_last", [False, True])
@pytest.mark.parametrize("is_shared", [False, True])
def test_large_log_errors_have_the_gradient_of_small_ones(shape, rows_last, is_shared):
    def draw(shape):
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return values.mT.contiguous().mT if rows_last else values

    generator = torch.Generator().manual_seed(0)
    X = draw(shape[1:] if is_shared and len(shape) == 3 else shape)
    X_hat = draw(shape)
    X_hat[..., :5, :] = X[..., :5, :]  # residuals of zero have the gradient zero
    factor = torch.rand(shape[:-1], generator=generator, dtype=torch.float64)
    gradients = []
    for losses in (
        LogError(0.3).elementwise(X, X_hat.requires_grad_()),
        ((X - X_hat).abs() / 0.3).log1p(),
    ):
        (factor * losses.sum(dim=-1)).sum().backward()
        gradients.append(X_hat.grad)
        X_hat.grad = None
    assert "LogError" in type(LogError().elementwise(X, X_hat).grad_fn).__name__
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)
