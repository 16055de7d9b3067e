"""Facts about skae.corruptions."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.utils._param_validation import InvalidParameterError

from skae import AutoencoderTransformer
from skae.corruptions import (
    CORRUPTIONS,
    Corruption,
    GaussianNoise,
    Masking,
    SaltAndPepper,
    Spread,
    Swap,
)

ADDING = [GaussianNoise(), GaussianNoise(clip=True)]
VARIED = [Masking(), Masking("low"), Masking("high"), Swap(), SaltAndPepper()]
CONSTANT = [
    Masking(vary_level=False), Swap(vary_level=False), SaltAndPepper(vary_level=False)
]  # fmt: skip
REPLACING = CONSTANT + VARIED
SPECS = ADDING + REPLACING
each_spec = pytest.mark.parametrize("spec", SPECS, ids=repr)
each_replacing_spec = pytest.mark.parametrize("spec", REPLACING, ids=repr)


def distinct(n_samples, n_features, dtype=torch.float64):
    """Return a table whose entries all differ, in random order."""
    generator = torch.Generator().manual_seed(3)
    X = torch.randperm(n_samples * n_features, generator=generator) + 1
    return X.reshape(n_samples, n_features).to(dtype)


def spread_of(X):
    """Return a spread without values of X, so that replaced entries differ."""
    return Spread(X.mean(dim=0) + 1e-3, X.amin(dim=0) - 0.5, X.amax(dim=0) + 0.5)


def make(spec, X, level, seed=0):
    module = spec.build(level, spread_of(X))
    module.generator = torch.Generator().manual_seed(seed)
    return module


def is_share(n_hits, n_trials, probability):
    """Return whether a count is within five standard deviations of its mean."""
    deviation = (n_trials * probability * (1 - probability)) ** 0.5
    return abs(n_hits - n_trials * probability) <= 5 * deviation


@each_spec
def test_corruption_does_not_modify_its_input(spec):
    X = distinct(20, 5)
    before = X.clone()
    X_tilde = make(spec, X, 0.5)(X)
    assert torch.equal(X, before)
    assert X_tilde.shape == X.shape
    assert not torch.equal(X_tilde, X)


@each_spec
def test_level_zero_returns_an_equal_copy(spec):
    X = distinct(20, 5)
    X_tilde = make(spec, X, 0.0)(X)
    assert torch.equal(X_tilde, X)
    assert X_tilde.data_ptr() != X.data_ptr()


@each_spec
def test_noise_differs_between_calls_and_depends_on_the_seed_only(spec):
    X = distinct(20, 5)
    one, two = make(spec, X, 0.5), make(spec, X, 0.5)
    first, second = one(X), one(X)
    assert not torch.equal(first, second)
    assert torch.equal(first, two(X))
    assert torch.equal(second, two(X))
    assert not torch.equal(first, make(spec, X, 0.5, seed=1)(X))


@each_spec
def test_global_generator_is_used_only_if_generator_is_none(spec):
    X = distinct(20, 5)
    module = make(spec, X, 0.5)
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        module(X)
        assert torch.equal(torch.get_rng_state(), before)
        module.generator = None
        module(X)
        assert not torch.equal(torch.get_rng_state(), before)


@each_spec
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_corruption_keeps_the_type(spec, dtype):
    X = distinct(20, 5)
    assert make(spec, X, 0.5)(X.to(dtype)).dtype == dtype


@each_replacing_spec
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_same_entries_are_replaced_in_each_type(spec, dtype):
    X = distinct(20, 5)  # up to 100, which bfloat16 holds exactly
    replaced = make(spec, X, 0.3)(X.to(dtype)) != X.to(dtype)
    assert torch.equal(replaced, make(spec, X, 0.3)(X) != X)


@each_spec
def test_corruption_moves_to_another_device(spec):
    X = distinct(20, 5)
    module = spec.build(0.5, spread_of(X)).to("meta")
    assert module(X.to("meta")).device.type == "meta"


@each_spec
def test_specs_and_modules_can_be_pickled_and_specs_cloned(spec):
    X = distinct(20, 5)
    loaded = pickle.loads(pickle.dumps(spec))
    assert repr(clone(spec)) == repr(loaded) == repr(spec)
    module = pickle.loads(pickle.dumps(spec.build(0.5, spread_of(X))))
    module.generator = torch.Generator().manual_seed(0)
    assert torch.equal(module(X), make(spec, X, 0.5)(X))


@pytest.mark.parametrize("spec", CONSTANT, ids=repr)
@pytest.mark.parametrize("level", [0.1, 0.8, 1])
def test_each_entry_is_replaced_with_the_stated_probability(spec, level):
    X = distinct(200, 100)
    replaced = make(spec, X, level)(X) != X
    assert is_share(replaced.sum(), X.numel(), level)
    # Independent entries, not whole rows or columns.
    for counts in (replaced.sum(dim=0), replaced.sum(dim=1)):
        n_trials = X.numel() // len(counts)
        assert all(is_share(count, n_trials, level) for count in counts)


@pytest.mark.parametrize("spec", VARIED, ids=repr)
@pytest.mark.parametrize(
    ("level", "low", "high"), [(0, 0, 0), (0.3, 0, 0.6), (0.9, 0.8, 1), (1, 1, 1)]
)
def test_share_of_a_row_is_uniform_around_the_level(spec, level, low, high):
    X = distinct(400, 300)
    replaced = make(spec, X, level)(X) != X
    shares = replaced.double().mean(dim=1)
    quantiles = torch.tensor([0.02, 0.25, 0.5, 0.75, 0.98], dtype=torch.float64)
    expected = low + (high - low) * quantiles
    # 5 standard deviations of a quantile of 400 rows, and those of 300 entries
    tolerance = 0.12 * (high - low) + 0.01 * (0 < level < 1)
    torch.testing.assert_close(
        shares.quantile(quantiles), expected, rtol=0, atol=tolerance
    )
    # Independent entries within a row.
    counts = replaced.double().mean(dim=0)
    assert (counts - level).abs().max() < 0.15


@pytest.mark.parametrize("corruption", ["masking", "salt_and_pepper"])
def test_clean_rows_are_reconstructed_better_if_the_level_varies(corruption):
    X = load_digits().data
    ae = AutoencoderTransformer(
        16, hidden_layer_sizes=(32,), corruption=corruption, corruption_level=0.5,
        max_epochs=25, early_stopping=False, transform_max_iter=0, random_state=0,
    ).fit(X[:800])  # fmt: skip
    spec = CORRUPTIONS[corruption](vary_level=False)
    constant = clone(ae).set_params(corruption=spec)
    assert ae.score(X[800:]) > constant.fit(X[:800]).score(X[800:]) + 0.03


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(REPLACING),
    st.tuples(st.integers(1, 7), st.integers(1, 4)),
    st.floats(0, 1),
    st.integers(0, 2**32),
)
def test_replaced_entries_have_valid_values(spec, shape, level, seed):
    X = distinct(*shape)
    spread = spread_of(X)
    if isinstance(spec, Masking):
        valid = getattr(spread, spec.fill_value)[None]
    else:
        valid = X if isinstance(spec, Swap) else torch.stack([spread.low, spread.high])
    X_tilde = make(spec, X, level, seed)(X)
    is_valid = (X_tilde == valid[:, None]).any(dim=0)
    assert (is_valid | (X_tilde == X)).all()


def test_a_derived_corruption_need_not_set_vary_level():
    class Exchange(Swap):
        def __init__(self, strength=1.0):
            self.strength = strength

    X = distinct(20, 5)
    assert not torch.equal(make(Exchange(), X, 0.5)(X), X)


def test_swap_draws_other_rows_uniformly_and_independently():
    X = torch.arange(4.0)[:, None].expand(4, 6000)
    X_tilde = make(Swap(), X, 1.0)(X)
    for i in range(4):
        counts = np.bincount(X_tilde[i].int(), minlength=4)
        assert counts[i] == 0
        assert all(is_share(counts[r], 6000, 1 / 3) for r in range(4) if r != i)
    agree = (X_tilde[0] == 3) & (X_tilde[1] == 3)
    assert is_share(agree.sum(), 6000, 1 / 9)


def test_swap_returns_a_copy_of_a_single_row():
    X = distinct(1, 5)
    X_tilde = make(Swap(), X, 1.0)(X)
    assert torch.equal(X_tilde, X)
    assert X_tilde.data_ptr() != X.data_ptr()


def test_salt_and_pepper_are_equally_frequent():
    X = distinct(200, 100)
    X_tilde = make(SaltAndPepper(vary_level=False), X, 0.4)(X)
    for end in (spread_of(X).low, spread_of(X).high):
        assert is_share((X_tilde == end).sum(), X.numel(), 0.2)


@pytest.mark.parametrize("level", [0.3, 2.0])
def test_gaussian_noise_is_normal_with_the_stated_deviation(level):
    X = distinct(200, 100)
    epsilon = (make(GaussianNoise(), X, level)(X) - X).flatten() / level
    assert abs(epsilon.mean()) < 5 / len(epsilon) ** 0.5
    assert abs(epsilon.std() - 1) < 5 / (2 * len(epsilon)) ** 0.5
    assert is_share((epsilon.abs() < 1).sum(), len(epsilon), 0.6827)


def test_clipped_noise_is_noise_clipped_to_the_range():
    X = distinct(20, 5)
    spread = spread_of(X)
    expected = make(GaussianNoise(), X, 100.0)(X)
    assert (expected < spread.low).any()
    assert (expected > spread.high).any()
    expected = torch.maximum(torch.minimum(expected, spread.high), spread.low)
    assert torch.equal(make(GaussianNoise(clip=True), X, 100.0)(X), expected)


@each_spec
def test_range_is_used_only_if_needs_range(spec):
    X = distinct(20, 5)
    nan = torch.full((5,), torch.nan)
    module = spec.build(1.0, spread_of(X)._replace(low=nan, high=nan))
    assert module(X).isnan().any() == spec.needs_range


def test_only_swap_needs_a_batch_and_only_gaussian_noise_has_a_deviation():
    kinds = CORRUPTIONS.items()
    assert [name for name, kind in kinds if kind.needs_batch] == ["swap"]
    assert [name for name, kind in kinds if not kind.is_probability] == ["gaussian"]


@each_spec
@pytest.mark.parametrize("level", [-0.1, np.nan, np.inf, "0.3", None])
def test_invalid_levels_raise(spec, level):
    with pytest.raises(ValueError, match="corruption_level must be") as caught:
        spec.check_level(level)
    allowed = "a probability in [0, 1]" if spec.is_probability else "finite and >= 0"
    for part in (allowed, repr(spec), f"got {level!r}."):
        assert part in str(caught.value)


@each_spec
def test_probability_above_one_raises_and_deviation_does_not(spec):
    for level in (0, 0.3, 1, np.float32(0.5)):
        spec.check_level(level)
    if spec.is_probability:
        with pytest.raises(ValueError, match=r"corruption_level .* got 1\.1\."):
            spec.check_level(1.1)
    else:
        spec.check_level(1.1)


@pytest.mark.parametrize("spec", [Masking("zero"), GaussianNoise(clip="yes")], ids=repr)
def test_errors_name_invalid_parameters(spec):
    with pytest.raises(InvalidParameterError, match=next(iter(spec.get_params()))):
        spec._validate_params()


def test_corruption_without_build_is_abstract():
    with pytest.raises(TypeError, match="build"):
        Corruption()
