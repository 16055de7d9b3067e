"""Facts about skae._refine."""

import numpy as np
import pytest
import torch
from devices import device_of
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import least_squares

from skae import AutoencoderTransformer, _refine
from skae._members import linear_end, linear_end_tangents
from skae._refine import MAX_EXACT, refine, steps_of_rounds
from skae.networks import MLP, Custom


def squared(generate, Z, X):
    return (generate(Z) - X).square().sum(dim=1)


@pytest.fixture(scope="module")
def surface():
    """Return a two-dimensional surface in five dimensions, codes, and rows near it."""
    generator = torch.Generator().manual_seed(0)
    into, out = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((2, 8), (8, 5))
    )

    def generate(Z):
        return torch.sin(Z @ into) @ out

    Z = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(50, 5, generator=generator, dtype=torch.float64)
    return generate, Z, generate(Z) + 0.1 * noise


def test_linear_map_is_inverted():
    generator = torch.Generator().manual_seed(0)
    W, X = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((3, 7), (20, 7))
    )
    Z = refine(lambda Z: Z @ W, torch.zeros(20, 3, dtype=torch.float64), X, 3)
    nearest = torch.linalg.lstsq(W.T, X.T).solution.T
    torch.testing.assert_close(Z, nearest, rtol=1e-3, atol=1e-3)


def test_repeated_refinement_converges_to_the_minimum_of_scipy(surface):
    generate, Z, X = surface
    for _ in range(30):
        Z = refine(generate, Z, X, 5)
    for code, x in zip(Z, X, strict=True):

        def residuals(z, x=x):
            return (generate(torch.from_numpy(z)[None])[0] - x).numpy()

        result = least_squares(residuals, code.numpy(), method="lm", xtol=1e-12)
        assert squared(generate, code[None], x).item() == pytest.approx(
            2 * result.cost, rel=5e-3
        )


@given(max_iter=st.integers(0, 6), seed=st.integers(0, 2**31), scale=st.floats(0, 1e3))
def test_refinement_never_increases_the_distance(surface, max_iter, seed, scale):
    generate, _, X = surface
    rng = np.random.default_rng(seed)
    Z = torch.from_numpy(scale * rng.standard_normal((50, 2)))
    refined = refine(generate, Z, X, max_iter)
    error, before = squared(generate, refined, X), squared(generate, Z, X)
    assert (error <= before * (1 + 1e-12)).all()


def test_components_without_effect_do_not_change(surface):
    generate, Z, X = surface
    wider = torch.cat([Z, torch.ones(len(Z), 1, dtype=Z.dtype)], dim=1)
    refined = refine(lambda Z: generate(Z[:, :2]), wider, X, 5)
    torch.testing.assert_close(refined[:, 2], wider[:, 2])
    torch.testing.assert_close(refined[:, :2], refine(generate, Z, X, 5))


@pytest.mark.parametrize("value", [1e200, -1e308])
def test_codes_of_rows_that_overflow_do_not_change(surface, value):
    generate, Z, X = surface
    X = X.clone()
    X[0] = value
    refined = refine(generate, Z, X, 5)
    torch.testing.assert_close(refined[0], Z[0])
    torch.testing.assert_close(refined[1:], refine(generate, Z[1:], X[1:], 5))


# Rows that have converged


class Counting:
    """A map that counts how often it is evaluated at the code of each row.

    The rows are told apart by their number, which is the last, ineffective component.
    """

    def __init__(self, generate, n_rows):
        self.generate = generate
        self.counts = np.zeros(n_rows, dtype=int)

    def __call__(self, Z):
        numbers = Z[:, -1].round().long().numpy()
        self.counts += np.bincount(numbers, minlength=len(self.counts))
        return self.generate(Z[:, :-1])


def numbered(Z):
    """Append the number of its row to each code."""
    return torch.cat([Z, torch.arange(len(Z), dtype=Z.dtype)[:, None]], dim=1)


def test_a_row_is_not_evaluated_again_when_it_has_converged(surface):
    generate, Z, X = surface
    Z = refine(generate, Z, X, 60)
    Z[25:] += 0.3
    X = torch.cat([X[:20], generate(Z[20:25]), X[25:]])  # rows 20 to 24 are exact
    counting = Counting(generate, len(Z))
    refined = refine(counting, numbered(Z), X, 10)[:, :2]
    n_initial = 1 + 3  # the code, and one difference for each component
    assert (counting.counts[:25] <= n_initial + 1).all()
    assert (counting.counts[20:25] == n_initial).all()
    assert (counting.counts[25:] > n_initial + 1).all()
    torch.testing.assert_close(refined[20:25], Z[20:25])
    error, before = squared(generate, refined, X), squared(generate, Z, X)
    assert error[25:].sum() < 0.9 * before[25:].sum()


def test_rows_that_stop_at_different_steps_are_not_mixed_up(surface):
    generate, Z, X = surface
    noise = torch.linspace(0, 2, len(Z), dtype=Z.dtype)[:, None]
    Z = Z + noise * torch.randn(Z.shape, generator=torch.Generator().manual_seed(1))
    rest = torch.linspace(0, 0.1, len(Z), dtype=Z.dtype)
    together = refine(generate, Z, X, 20, rest)
    alone = torch.cat(
        [
            refine(generate, Z[i, None], X[i, None], 20, rest[i, None])
            for i in range(len(Z))
        ]
    )
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def test_distance_that_no_code_decreases_ends_the_refinement_earlier(surface):
    generate, Z, X = surface
    counts = []
    for rest in (None, torch.zeros(50), torch.full((50,), 1e6)):
        counting = Counting(generate, len(Z))
        refine(counting, numbered(Z + 0.3), X, 10, rest)
        counts.append(counting.counts)
    np.testing.assert_array_equal(counts[0], counts[1])
    assert (counts[2] == 4).all()
    assert counts[0].mean() > 6


@pytest.mark.parametrize("max_iter", [2, 10])
def test_rows_can_be_refined_all_at_once(surface, max_iter):
    generate, Z, X = surface
    sizes = set()

    def generate_all(Z):
        sizes.add(len(Z))
        return generate(Z)

    args = (Z + 0.3, X, max_iter)
    together = refine(generate_all, *args, all_at_once=True)
    assert sizes == {50}
    torch.testing.assert_close(together, refine(generate, *args), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n_rows", [50, 200])
def test_codes_do_not_depend_on_the_library_of_a_block(surface, n_rows, monkeypatch):
    generate, Z, X = surface
    args = (Z.repeat(4, 1)[:n_rows] + 0.3, X.repeat(4, 1)[:n_rows], 10)
    expected = refine(generate, *args)
    monkeypatch.setattr(_refine, "FEW_ROWS", 1 if n_rows == 50 else 1000)
    torch.testing.assert_close(refine(generate, *args), expected, rtol=1e-9, atol=1e-9)


def test_initial_codes_remain(surface):
    generate, Z, X = surface
    for n_rows in (50, 200):
        codes = Z.repeat(4, 1)[:n_rows] + 0.3
        before = codes.clone()
        refined = refine(generate, codes, X.repeat(4, 1)[:n_rows], 10)
        assert torch.equal(codes, before)
        assert not torch.equal(codes, refined)


def test_no_rows_are_refined(surface):
    generate, Z, X = surface
    assert refine(generate, Z[:0], X[:0], 10).shape == (0, 2)


@pytest.mark.parametrize(
    ("max_iter", "expected"), [(0, []), (2, [2]), (3, [3]), (10, [3, 3, 3, 1])]
)
def test_steps_are_divided_into_rounds(max_iter, expected):
    assert steps_of_rounds(max_iter, MAX_EXACT + 1) == expected
    assert steps_of_rounds(max_iter, MAX_EXACT) == [1] * max_iter


@pytest.mark.parametrize("n_rows", [1, 50])
def test_rounding_errors_do_not_move_components_without_effect(surface, n_rows):
    generate, Z, X = surface
    wider = torch.cat([Z, torch.ones(len(Z), 1, dtype=Z.dtype)], dim=1)[:n_rows]

    def rounded(Z):
        # Rounding errors of matrix products depend on the number of rows.
        relative = torch.sin(1e6 * Z[:, 2:]) + len(Z)
        return generate(Z[:, :2]) * (1 + 1e-16 * relative)

    refined = refine(rounded, wider, X[:n_rows], 10)
    torch.testing.assert_close(refined[:, 2], wider[:, 2])


def jacobian_of_surface(generate, Z):
    """Return the rows and J, by automatic differentiation."""
    with torch.enable_grad():
        J = torch.func.vmap(torch.func.jacrev(lambda z: generate(z[None])[0]))(Z)
    return generate(Z), J.movedim(2, 0)


@pytest.mark.parametrize("all_at_once", [False, True])
def test_a_given_jacobian_replaces_the_differences(surface, all_at_once):
    generate, Z, X = surface
    counting = Counting(generate, len(Z))
    args = (Z + 0.3, X, 40)

    def linearize(Z):
        return jacobian_of_surface(generate, Z)

    with_jacobian = refine(
        lambda Z: counting(numbered(Z)),
        *args,
        linearize=linearize,
        all_at_once=all_at_once,
    )
    assert counting.counts.sum() == 0
    estimated = refine(generate, *args)
    torch.testing.assert_close(with_jacobian, estimated, rtol=0, atol=0.01)


@pytest.mark.parametrize("n_components", [1, MAX_EXACT, MAX_EXACT + 1])
def test_last_step_takes_no_jacobian(n_components):
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(n_components, 9, generator=generator, dtype=torch.float64)
    X = torch.randn(20, 9, generator=generator, dtype=torch.float64)
    calls = []

    def generate(Z):
        calls.append("rows")
        return torch.tanh(Z @ W)

    def linearize(Z):
        calls.append("both")
        Y = torch.tanh(Z @ W)
        return Y, W[:, None] * (1 - Y**2)

    Z = torch.zeros(20, n_components, dtype=torch.float64)
    refine(generate, Z, X, 2, linearize=linearize)
    exact = ["both", "both", "rows"]
    assert calls == (exact if n_components <= MAX_EXACT else ["both", "rows", "rows"])


# In the transformer


@pytest.fixture(scope="module")
def noisy_circle():
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 400)
    X = np.column_stack([np.cos(angle), np.sin(angle), np.cos(2 * angle)])
    return X + 0.05 * rng.standard_normal(X.shape)


@pytest.fixture(scope="module")
def fitted(noisy_circle):
    ae = AutoencoderTransformer(2, early_stopping=True, max_epochs=30, random_state=0)
    return ae.fit(noisy_circle[:300])


def encoder_output(ae, X):
    """Return the codes of `transform` before refinement."""
    module = ae.net_.module_in(np.dtype(np.float64))
    with torch.no_grad():
        scaled, _ = module.scaler(torch.from_numpy(X).to(device_of(ae)))
        return (module.encoder(scaled) * module.code_factor).numpy(force=True)


def test_refined_codes_reconstruct_better_than_encoder_outputs(fitted, noisy_circle):
    X = noisy_circle[300:]
    X_hat_encoder = fitted.inverse_transform(encoder_output(fitted, X))
    error = np.sum((X - fitted.reconstruct(X)) ** 2, axis=1)
    encoder_error = np.sum((X - X_hat_encoder) ** 2, axis=1)
    assert (error <= encoder_error + 1e-12).all()
    assert error.sum() < 0.9 * encoder_error.sum()


def test_zero_steps_return_the_encoder_output(noisy_circle):
    ae = AutoencoderTransformer(2, max_epochs=2, random_state=0, transform_max_iter=0)
    ae.fit(noisy_circle)
    expected = encoder_output(ae, noisy_circle)
    np.testing.assert_allclose(ae.transform(noisy_circle), expected)


def test_validation_loss_uses_at_most_three_refinement_steps(noisy_circle):
    ae = AutoencoderTransformer(
        1, max_epochs=3, random_state=0, early_stopping=True, init="random"
    )
    first_loss = {}
    for max_iter in (0, 1, 3, "auto", 30):
        ae.set_params(transform_max_iter=max_iter).fit(noisy_circle)
        first_loss[max_iter] = ae.validation_loss_curve_[0]
    assert first_loss[0] > first_loss[1] > first_loss[3]
    assert first_loss[3] == first_loss["auto"] == first_loss[30]


def test_code_of_an_incomplete_row_is_that_of_its_completion(noisy_circle, fitted):
    X = noisy_circle[300:].copy()
    X[:, 2] = np.nan
    scaler = fitted.module_.scaler
    completed = scaler.unscale(scaler(torch.from_numpy(X))[0]).numpy()
    codes = fitted.transform(completed)
    np.testing.assert_allclose(fitted.transform(X), codes, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "parameters",
    [
        {"corruption": "masking"},
        {"penalty": "l1"},
        {"penalty": "contractive"},
        {"bottleneck": "gaussian"},
        {"bottleneck": "quantized"},
        {"loss": "absolute_error"},
        {"network": MLP(code_activation="sigmoid")},
        {
            "network": Custom(
                encoder=torch.nn.Linear, decoder=lambda d, k: torch.nn.Linear(k, d)
            )
        },
        {"n_components": 17},
    ],
)
def test_auto_does_not_refine_where_codes_are_constrained(parameters, noisy_circle):
    ae = AutoencoderTransformer(max_epochs=1, early_stopping=False, random_state=0)
    ae.set_params(**parameters).fit(noisy_circle)
    codes = ae.transform(noisy_circle)
    ae.set_params(transform_max_iter=0).fit(noisy_circle)
    np.testing.assert_array_equal(ae.transform(noisy_circle), codes)


@pytest.mark.parametrize("bottleneck", ["gaussian", "quantized"])
def test_refinement_with_constrained_codes_raises(bottleneck, noisy_circle):
    ae = AutoencoderTransformer(bottleneck=bottleneck, transform_max_iter=3)
    with pytest.raises(ValueError, match=r"transform_max_iter=3 .* bottleneck="):
        ae.fit(noisy_circle)


def test_warm_start_uses_the_current_number_of_steps(noisy_circle):
    ae = AutoencoderTransformer(
        1, max_epochs=3, random_state=0, early_stopping=False, warm_start=True
    )
    ae.fit(noisy_circle).set_params(transform_max_iter=0).fit(noisy_circle)
    expected = encoder_output(ae, noisy_circle)
    np.testing.assert_allclose(ae.transform(noisy_circle), expected)


@pytest.mark.parametrize("n_components", [1, 2, MAX_EXACT, MAX_EXACT + 1])
@pytest.mark.parametrize("has_missing", [False, True])
def test_a_row_alone_has_the_code_that_it_has_in_a_batch(n_components, has_missing):
    rng = np.random.default_rng(0)
    X = np.tanh(rng.standard_normal((600, 7)) @ rng.standard_normal((7, 12)))
    ae = AutoencoderTransformer(n_components, max_epochs=10, random_state=0)
    ae.fit(X[:300])
    if has_missing:
        X[rng.random(X.shape) < 0.1] = np.nan
    X[300:310] *= 20  # far from all training rows
    Z = ae.transform(X)
    for size in (1, 2, 7):
        parts = [ae.transform(X[i : i + size]) for i in range(280, 330, size)]
        alone = np.concatenate(parts)
        np.testing.assert_allclose(alone, Z[280 : 280 + len(alone)], 0, 1e-7)
    rounded = ae.transform(X.astype(np.float32))
    assert np.abs(rounded - Z)[:300].max() <= 1e-4 * Z[:300].std(axis=0).max() + 1e-6


def test_sparse_rows_are_refined_with_tangents():
    ae = AutoencoderTransformer(2, max_epochs=1, random_state=0)
    network = ae.fit(np.random.default_rng(0).random((60, 5))).module_.decoder
    Z = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    function = linear_end_tangents(network)
    with torch.no_grad():
        F, J = function(Z, torch.eye(2)[:, None])
        output = linear_end(network)(Z)
        torch.testing.assert_close(F, output.F)
        rows = J @ output.weight.T
    of_rows = [torch.autograd.functional.jacobian(network, z[None])[0, :, 0] for z in Z]
    expected = torch.stack(of_rows).movedim(2, 0)
    torch.testing.assert_close(rows, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
@pytest.mark.parametrize("n_components", [1, 6])
def test_saturated_networks_have_bounded_codes(activation, n_components):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 4)) @ rng.normal(size=(4, 8))
    network = MLP((4, 4), activation=activation)
    ae = AutoencoderTransformer(
        n_components, network=network, init="random", max_epochs=60, random_state=0
    ).fit(X)
    assert np.abs(ae.transform(np.concatenate([X, 1e3 * X]))).max() < 1e9


@pytest.mark.parametrize("n_components", [2, 6])
def test_far_rows_have_the_same_codes_alone_and_in_a_batch(n_components):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 4)) @ rng.normal(size=(4, 8))
    X += 0.3 * np.sin(2 * X)
    far = 1e6 * X[:60]
    ae = AutoencoderTransformer(n_components, max_epochs=40, random_state=0).fit(X)
    alone = np.concatenate([ae.transform(row[None]) for row in far])
    np.testing.assert_allclose(
        ae.transform(far), alone, rtol=0, atol=1e-7 * np.abs(alone).max()
    )
