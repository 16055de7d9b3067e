"""Facts about skae._module."""

import numpy as np
import pytest
import torch
from modules import FACTOR, MEAN, SHIFT, generator, make_autoencoder, make_rows
from torch import nn

from skae import AutoencoderTransformer
from skae._module import Autoencoder, Scaler
from skae._rows import Batch
from skae.bottlenecks import Squeeze
from skae.losses import SquaredError
from skae.networks import Conv, Shape

DONE = torch.tensor(1.0)


def batch_of(module, X):
    """Return a training batch of unscaled rows with unit weights."""
    return Batch(*module.scaler(X), torch.ones(len(X)))


# Scaler


def test_scaling_is_affine():
    X = make_rows()
    scaled, observed = Scaler(MEAN, SHIFT, FACTOR).double()(X)
    np.testing.assert_allclose(scaled, (X.numpy() - SHIFT) / FACTOR)
    assert observed is None


def test_unscaling_undoes_scaling():
    X = make_rows()
    scaler = Scaler(MEAN, SHIFT, FACTOR).double()
    torch.testing.assert_close(scaler.unscale(scaler(X)[0]), X)


def test_a_large_offset_costs_no_precision_in_float32():
    X = make_rows() + 1e6
    scaler = Scaler(MEAN, SHIFT + 1e6, FACTOR)
    scaled, _ = scaler(X)
    assert scaled.dtype == torch.float32
    expected = (X.numpy() - (SHIFT + 1e6)) / FACTOR
    np.testing.assert_allclose(scaled, expected, atol=1e-6)


def test_scaled_rows_have_the_type_of_the_weights():
    X = make_rows()
    assert Scaler(MEAN, SHIFT, FACTOR)(X)[0].dtype == torch.float32
    assert Scaler(MEAN, SHIFT, FACTOR).double()(X.float())[0].dtype == torch.float64


def test_unscaling_keeps_the_type():
    scaler = Scaler(MEAN, SHIFT, FACTOR)
    assert scaler.unscale(make_rows().float()).dtype == torch.float32
    assert scaler.unscale(make_rows()).dtype == torch.float64


def test_missing_entries_are_replaced_by_the_mean():
    X = make_rows()
    X[1, 2] = X[3, 0] = torch.nan
    scaled, observed = Scaler(MEAN, SHIFT, FACTOR).double()(X)
    missing = np.isnan(X.numpy())
    filled = np.where(missing, MEAN, X)
    np.testing.assert_allclose(scaled, (filled - SHIFT) / FACTOR)
    np.testing.assert_array_equal(observed, ~missing)


def test_scaling_changes_neither_rows_nor_arrays():
    X = make_rows()
    X[0, 0] = torch.nan
    before, arrays = X.clone(), [a.copy() for a in (MEAN, SHIFT, FACTOR)]
    scaler = Scaler(*arrays)
    scaler(X)[0].add_(1)
    scaler.mean.fill_(9)
    scaler.shift.fill_(9)
    scaler.factor.fill_(9)
    np.testing.assert_array_equal(X, before)
    np.testing.assert_array_equal(arrays, [MEAN, SHIFT, FACTOR])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scaling_may_reuse_the_memory_of_its_input(dtype):
    X = make_rows().to(dtype)
    X[1, 2] = torch.nan
    scaler = Scaler(MEAN, SHIFT, FACTOR).to(dtype)
    before = X.clone()
    expected = scaler(X)
    assert torch.equal(X.nan_to_num(), before.nan_to_num())
    found = scaler(X, overwrite=True)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert not torch.equal(X.nan_to_num(), before.nan_to_num())


def test_scaling_float32_is_as_exact_as_a_shift_in_float64():
    shift = SHIFT + 1e6 + 1 / 3
    X = make_rows(100).float() * 100 + 1e6
    scaled, _ = Scaler(MEAN, shift, FACTOR)(X)
    assert scaled.dtype == torch.float32
    expected = (X.numpy().astype(float) - shift) / FACTOR
    np.testing.assert_allclose(scaled, expected, rtol=3e-7, atol=1e-7)


def test_infinite_rows_are_observed():
    X = make_rows()
    X[0, 0], X[1, 1] = torch.inf, -torch.inf  # their sum is NaN
    _, observed = Scaler(MEAN, SHIFT, FACTOR).double()(X)
    assert observed is None or observed.all()


def test_scaler_has_no_parameters():
    scaler = Scaler(MEAN, SHIFT, FACTOR)
    assert not list(scaler.parameters())
    assert {"mean", "shift", "factor"} <= scaler.state_dict().keys()


# Autoencoder


class TanhSqueeze(Squeeze):
    def forward(self, H):
        return H.tanh()


class Plus(nn.Module):
    """Corruption that adds one."""

    def forward(self, X):
        return X + 1


@torch.no_grad()
def test_reconstruction_is_the_decoded_code():
    module, X = make_autoencoder(output=nn.Tanh()), make_rows()
    torch.testing.assert_close(module(X), module.decode(module.encode(X)))


@torch.no_grad()
def test_codes_are_encoded_scaled_rows_after_the_bottleneck():
    module, X = make_autoencoder(), make_rows()
    module.bottleneck = TanhSqueeze()
    scaled, _ = module.scaler(X)
    torch.testing.assert_close(module.encode(X), module.encoder(scaled).tanh())


@torch.no_grad()
def test_decoding_applies_the_output_activation_then_unscales():
    module = make_autoencoder(output=nn.Sigmoid())
    Z = torch.randn(4, 2, generator=generator(), dtype=torch.float64)
    expected = torch.sigmoid(module.decoder(Z)).numpy() * FACTOR + SHIFT
    np.testing.assert_allclose(module.decode(Z), expected)


@torch.no_grad()
def test_propagation_contains_target_code_and_raw_output():
    module, X = make_autoencoder(output=nn.Sigmoid()), make_rows()
    target, observed, encoder_input, H, raw, term = module.propagate(X)
    torch.testing.assert_close(target, module.scaler(X)[0])
    assert observed is None
    assert encoder_input is target
    torch.testing.assert_close(H, module.encoder(target))
    torch.testing.assert_close(raw, module.decoder(H))
    assert term is None


@torch.no_grad()
def test_missing_entries_are_reconstructed():
    X = make_rows()
    X[0] = torch.nan
    assert make_autoencoder()(X).isfinite().all()


@torch.no_grad()
def test_training_uses_a_corrupted_input_and_a_clean_target():
    module, X = make_autoencoder(), make_rows()
    batch = batch_of(module, X)
    target = batch.target.clone()
    propagation = module.propagate_in_training(batch, DONE, Plus())
    assert torch.equal(propagation.target, target)
    torch.testing.assert_close(propagation.encoder_input, target + 1)
    torch.testing.assert_close(propagation.H, module.encoder(target + 1))
    assert torch.equal(module.propagate(X).encoder_input, target)


@torch.no_grad()
@pytest.mark.parametrize("n_steps", [0, 10])
def test_codes_of_held_out_rows_are_refined_only_if_allowed(n_steps):
    module, X = make_autoencoder().eval(), make_rows()
    module.max_refinements, module.max_validation_refinements = 10, n_steps
    raw = module.propagate_in_training(batch_of(module, X), DONE, None).raw
    plain = module.decoder(module.bottleneck(module.encoder(module.encoder_input(X))))
    assert torch.equal(raw, plain) == (n_steps == 0)


@pytest.mark.parametrize(("network", "n_steps"), [("mlp", 2), ("conv", 0)])
def test_convolutional_codes_are_refined_after_training_only(network, n_steps):
    ae = AutoencoderTransformer(2, network=network, max_epochs=1)
    ae.fit(np.random.default_rng(0).normal(size=(20, 5)))
    assert ae.module_.max_validation_refinements == n_steps
    assert ae.module_.max_refinements == 10


@torch.no_grad()
def test_a_missing_entry_is_never_corrupted():
    module, X = make_autoencoder(), make_rows()
    X[1, 2] = torch.nan
    propagation = module.propagate_in_training(batch_of(module, X), DONE, Plus())
    change = propagation.encoder_input - propagation.target
    assert change[1, 2] == 0
    assert change.sum() == change.numel() - 1


def test_widest_layer_is_the_largest_number_of_outputs():
    assert make_autoencoder(hidden=(50, 4)).widest_layer == 50
    assert make_autoencoder(hidden=()).widest_layer == 3


def test_work_is_the_number_of_multiplications_of_a_row():
    assert make_autoencoder(hidden=(50, 4)).work == 2 * (3 * 50 + 50 * 4 + 4 * 2)


def test_work_of_a_convolution_counts_each_position():
    scaler = Scaler(*np.zeros((2, 64)), np.ones(64))
    shape = Shape(9, 64, 5, 5, (8, 8))
    network = Conv((3,), hidden_layer_sizes=())
    encoder, decoder = network.build(shape, generator())
    module = Autoencoder(
        scaler, encoder, Squeeze(), decoder, nn.Identity(), SquaredError(), 5
    )
    assert module.widest_layer == 64
    assert module.work == 2 * (9 * 3 * 16 + 3 * 16 * 5)


def test_new_module_is_in_training_mode_without_hooks():
    module = make_autoencoder()
    assert module.training
    assert not any(part._forward_hooks for part in module.modules())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_code_factor_does_not_change_encoder_and_decoder(dtype):
    module, X = make_autoencoder(), make_rows()
    X, inside = X.to(dtype), module.encode(X)
    module.code_factor = torch.tensor([1e3, 1e-3], dtype=torch.float64)
    Z = module.encode(X)
    assert Z.dtype == inside.dtype
    torch.testing.assert_close(Z, (inside * module.code_factor).to(Z.dtype))
    torch.testing.assert_close(module.decode(Z), module(X), check_dtype=False)
    torch.testing.assert_close(module.propagate(X).H, inside)
