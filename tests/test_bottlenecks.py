"""Facts about skae.bottlenecks."""

import pytest
import torch
from sklearn.base import clone

from skae.bottlenecks import BOTTLENECKS, Bottleneck, Deterministic


def test_deterministic_code_is_what_the_encoder_says():
    Z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    bottleneck = Deterministic().build(3, torch.Generator())
    assert torch.equal(bottleneck.train()(Z), Z)
    assert torch.equal(bottleneck.eval()(Z), Z)


def test_deterministic_bottleneck_has_nothing_to_learn():
    assert not Deterministic().build(3, torch.Generator()).state_dict()


def test_deterministic_encoder_is_as_wide_as_the_code():
    assert Deterministic().encoder_width(7) == 7


def test_deterministic_bottleneck_allows_a_pca():
    assert Deterministic().allows_pca


def test_a_new_bottleneck_allows_no_pca_unless_it_says_so():
    assert not Bottleneck.allows_pca


def test_a_bottleneck_without_a_build_is_abstract():
    with pytest.raises(TypeError, match="build"):
        Bottleneck()


@pytest.mark.parametrize("name", sorted(BOTTLENECKS))
def test_a_named_bottleneck_has_defaults_and_can_be_cloned(name):
    bottleneck = BOTTLENECKS[name]()
    assert clone(bottleneck).get_params() == bottleneck.get_params()


@pytest.mark.parametrize("name", sorted(BOTTLENECKS))
def test_a_bottleneck_gives_a_row_the_same_code_each_time_in_eval_mode(name):
    spec = BOTTLENECKS[name]()
    module = spec.build(3, torch.Generator().manual_seed(0)).eval()
    H = torch.randn(4, spec.encoder_width(3), generator=torch.Generator())
    assert module(H).shape == (4, 3)
    assert torch.equal(module(H), module(H))
