"""Facts about skae._prefixes."""

import pytest
import torch

from skae._prefixes import Prefixes, ranges_of_widths


@pytest.mark.parametrize("n_components", [1, 2, 3, 4, 5, 6, 7, 12, 16, 64, 500])
def test_ranges_contain_every_width_once_and_are_at_most_five(n_components):
    ranges = ranges_of_widths(n_components)
    widths = [width for low, high in ranges for width in range(low, high)]
    assert widths == list(range(1, n_components + 1))
    assert len(ranges) <= 5
    assert ranges[-1] == (n_components, n_components + 1)


@pytest.mark.parametrize("shape", [(50,), (3, 50)], ids=["rows", "stacked networks"])
@pytest.mark.parametrize("n_inputs", [8, 10], ids=["all", "more inputs"])
def test_inputs_are_the_first_components_and_their_number(shape, n_inputs):
    prefixes = Prefixes(n_inputs, 8)
    prefixes.generator = torch.Generator().manual_seed(0)
    Z = torch.arange(1.0, 1 + 8 * torch.Size(shape).numel()).reshape(*shape, 8)
    inputs, kept = prefixes(Z)
    n_ranges = len(prefixes.ranges)
    assert inputs.shape == (*shape[:-1], n_ranges * 50, 2 * n_inputs)
    assert kept.shape == (n_ranges, 50, 8)
    codes, told = inputs.unflatten(-2, (n_ranges, 50)).split(n_inputs, dim=-1)
    width = kept.sum(dim=-1)  # (n_ranges, 50)
    for (low, high), drawn in zip(prefixes.ranges, width, strict=True):
        assert set(drawn.tolist()) == set(range(low, high))
    assert (kept.diff(dim=-1) <= 0).all()  # ones before zeros
    expected = (Z.unsqueeze(-3) * kept).expand(codes[..., :8].shape)
    assert torch.equal(codes[..., :8], expected)
    assert not codes[..., 8:].any()
    assert torch.equal(told.argmax(dim=-1) + 1, width.long().expand(told.shape[:-1]))
    assert torch.equal(told.sum(dim=-1), torch.ones(told.shape[:-1]))
