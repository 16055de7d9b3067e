"""Facts about skae._members."""

import pytest
import torch
from torch import nn

from skae._layers import QuickGELU, Residual, StackedLinear, linear
from skae._members import CodeWidths, Members, encode_visible, stack, stack_squeezes
from skae.bottlenecks import Deterministic, Gaussian, Quantized, Squeeze
from skae.networks import MLP, Conv, Shape

SHAPE = Shape(9, 6, 2, 2)
DONE = torch.tensor(1.0)


def encoders(network, n_members=3, shape=SHAPE):
    generator = torch.Generator().manual_seed(0)
    return [network.build(shape, generator)[0] for _ in range(n_members)]


def random_rows(*shape):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def member_outputs(members, X):
    return torch.stack([member(own) for member, own in zip(members, X, strict=True)])


@pytest.mark.parametrize(
    "network",
    [
        MLP((5, 4)),
        MLP((5,), activation="tanh", code_activation="relu"),
        MLP(()),
        Conv((3,), hidden_layer_sizes=(4,)),
    ],
    ids=str,
)
@pytest.mark.parametrize("fuse", [True, False])
def test_stack_computes_the_outputs_of_its_members(network, fuse):
    members = [member.double() for member in encoders(network)]
    X = random_rows(3, 7, 6)
    torch.testing.assert_close(stack(members, fuse)(X), member_outputs(members, X))


def test_perceptrons_become_batched_products():
    stacked = stack(encoders(MLP((5, 4))))
    kinds = [type(layer) for layer in stacked]
    assert kinds == [StackedLinear, QuickGELU, StackedLinear, QuickGELU, StackedLinear]
    assert stacked[0].weight.shape == (3, 5, 6)


def test_residual_networks_become_batched_products():
    generator = torch.Generator().manual_seed(0)
    members = [
        Residual(linear(6, 2, generator), encoder).double()
        for encoder in encoders(MLP((5,)))
    ]
    stacked = stack(members)
    X = random_rows(3, 7, 6)
    assert type(stacked) is Residual
    torch.testing.assert_close(stacked(X), member_outputs(members, X))


@pytest.mark.parametrize(
    "network",
    [
        Conv((3,)),
        MLP((5,), activation=lambda: nn.Softmax(dim=0)),
        MLP(activation=Squeeze),
    ],
    ids=["conv", "softmax over rows", "unknown"],
)
def test_other_networks_are_evaluated_one_after_another(network):
    assert type(stack(encoders(network))) is Members


@pytest.mark.parametrize("hidden", [None, random_rows(6)], ids=["zeros", "given"])
@pytest.mark.parametrize("kind", ["mlp", "linear", "residual", "widths", "conv"])
def test_a_product_for_all_members_gives_the_output_for_the_visible_inputs(
    kind, hidden
):
    network = {"conv": Conv((3,)), "linear": MLP(())}.get(kind, MLP((5, 4)))
    members = encoders(network)
    if kind == "residual":
        generator = torch.Generator().manual_seed(0)
        members = [Residual(linear(6, 2, generator), member) for member in members]
    encoder = stack(members).double()
    if kind == "widths":
        encoder = nn.Sequential(encoder, CodeWidths((1, 2, 1), 2))
    X, visible = random_rows(7, 6), random_rows(3, 1, 6) > 0
    inputs = torch.where(visible, X, 0.0 if hidden is None else hidden)
    torch.testing.assert_close(
        encode_visible(encoder, X, visible, hidden), encoder(inputs)
    )


def test_rows_are_last_in_the_memory_of_a_batched_product():
    stacked = stack(encoders(MLP((5, 4)))).double()
    visible = torch.ones(3, 1, 6, dtype=torch.bool)
    for outputs in (
        stacked(random_rows(3, 7, 6)),
        encode_visible(stacked, random_rows(7, 6), visible, None),
    ):
        assert outputs.shape == (3, 7, 2)
        assert outputs.mT.is_contiguous()


def test_members_do_not_share_weights():
    members = encoders(MLP((5,)))
    stacked = stack(members)
    stacked(random_rows(3, 7, 6).float())[0].sum().backward()
    assert all(
        grad[0].abs().sum() > 0 for grad in (p.grad for p in stacked.parameters())
    )
    assert all((p.grad[1:] == 0).all() for p in stacked.parameters())


def test_deterministic_bottlenecks_become_one_identity():
    squeezes = [Deterministic().build(2, 2, torch.Generator()) for _ in range(3)]
    assert stack_squeezes(squeezes) is squeezes[0]


@pytest.mark.parametrize(
    ("bottleneck", "width"),
    [(Gaussian(score="elbo"), 4), (Quantized(4, 1), 2), (Gaussian(), 4)],
    ids=str,
)
def test_stacked_bottlenecks_compute_the_outputs_of_each(bottleneck, width):
    generator = torch.Generator().manual_seed(0)
    squeezes = [bottleneck.build(2, 2, generator) for _ in range(3)]
    stacked = stack_squeezes(squeezes).eval()
    H = random_rows(3, 7, width).float()
    torch.testing.assert_close(stacked(H), member_outputs(squeezes, H))
    terms = [s.score_term(own) for s, own in zip(squeezes, H, strict=True)]
    if terms[0] is None:
        assert stacked.score_term(H) is None
    else:
        torch.testing.assert_close(stacked.score_term(H), torch.stack(terms))
    for squeeze in squeezes:
        squeeze.generator = torch.Generator().manual_seed(3)
    Z, term = stacked.training_code(H, torch.ones(7), DONE)
    assert Z.shape == (3, 7, 2)
    assert term.shape == (3, 7)
    assert stacked.n_values == 3 * squeezes[0].n_values


def test_each_member_has_its_own_codebook():
    generator = torch.Generator().manual_seed(0)
    squeezes = [Quantized(4, 1).build(2, 2, generator) for _ in range(3)]
    for squeeze in squeezes:
        squeeze.codebooks.normal_(generator=generator)
    stacked = stack_squeezes(squeezes)
    H = random_rows(3, 7, 2).float()
    codes = stacked.quantize(H)
    assert codes.shape == (3, 7, 2)
    torch.testing.assert_close(stacked.look_up(codes), member_outputs(squeezes, H))


def test_each_member_uses_the_first_components_of_its_code():
    H = torch.ones(3, 2, 4)
    used = CodeWidths((0, 1, 4), 4)(H)[:, 0].sum(dim=1)
    assert used.tolist() == [0, 1, 4]
