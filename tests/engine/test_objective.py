"""The objective of each row, and weights after trimming."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nets import X, batch_of, history_of, make_module, make_net, make_split, train
from torch import nn

from skae._members import stack
from skae._module import Autoencoder
from skae._row_scores import row_error
from skae._rows import Rows
from skae.bottlenecks import Squeeze
from skae.engine.networks import MemberFolds, Split
from skae.engine.objective import (
    Objective,
    trimmed_for_members,
    trimmed_share,
    trimmed_weight,
)
from skae.losses import SquaredError


class Cost(nn.Module):
    """A penalty of one plus the square of the code."""

    def forward(self, encoder, X, Z, weight):
        assert Z.shape == (len(X), 1)
        assert len(weight) == len(X)
        return 1 + Z.square().sum(dim=1)


class Term(Squeeze):
    """A bottleneck whose term is the share of the steps that are done."""

    def training_code(self, H, weight, done):
        return H, done.expand(len(H))


def test_the_objective_is_loss_plus_weighted_terms():
    module = make_module()
    module.bottleneck = Term()
    rows = torch.from_numpy(X[:5])
    objective = Objective(None, 3.0, Cost(), 0.5)
    with torch.no_grad():
        loss, Z = row_error(module, rows), module.encode(rows)
        total = objective(module, batch_of(module, rows), torch.tensor(0.25))
    # The term of the bottleneck is divided by the two features, as the loss is.
    torch.testing.assert_close(
        total, loss + 3 * 0.25 / 2 + 0.5 * (1 + Z.square().sum(dim=1))
    )


def test_a_row_with_fewer_observed_entries_has_a_larger_share_of_the_term():
    module = make_module()
    module.bottleneck = Term()
    rows = torch.tensor([[1.0, torch.nan]], dtype=torch.float64)
    with torch.no_grad():
        total = Objective()(module, batch_of(module, rows), torch.tensor(1.0))
        assert total == pytest.approx(row_error(module, rows) + 1)


def test_a_penalty_lowers_what_it_penalises():
    def code(objective):
        net = make_net(objective=objective, max_epochs=30)
        train(net)
        with torch.no_grad():
            return net.module_.encode(torch.from_numpy(X)).square().mean()

    assert code(Objective(None, 1.0, Cost(), 10.0)) < 0.1 * code(Objective())


def test_the_objective_receives_the_share_of_steps_done():
    calls = []

    class RecordingTerm(Term):
        def training_code(self, H, weight, done):
            calls.append((self.training, done.item()))
            return super().training_code(H, weight, done)

    def shares(training, **plan):
        calls.clear()
        module = make_module()
        module.bottleneck = RecordingTerm()
        net = make_net(module, max_epochs=2, batch_size=8, **plan)
        train(net, make_split(held_out=True))
        return [done for is_training, done in calls if is_training == training]

    assert shares(True, schedule=lambda done: 1.0) == [0, 0.25, 0.5, 0.75]
    assert set(shares(False, schedule=lambda done: 1.0)) == {1.0}
    assert set(shares(True)) == {1.0}  # without a schedule, as in partial_fit


# Trimming


losses_and_weights = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float64, n, elements=st.floats(0, 10)),
        hnp.arrays(np.int64, n, elements=st.integers(1, 4)),
        st.floats(0, 0.99),
    )
)


@settings(max_examples=100)
@given(losses_and_weights)
def test_trimming_leaves_out_a_share_of_the_weight(drawn):
    losses, weight, trim = map(torch.as_tensor, drawn)
    kept = trimmed_weight(losses, weight.double(), float(trim))
    assert (kept >= 0).all()
    assert (kept <= weight).all()
    assert kept.sum().item() == pytest.approx((1 - trim) * weight.sum().item())
    # No row is left out while a row of higher loss is kept.
    worst_kept = losses[kept > 0].max()
    assert (kept[losses < worst_kept] == weight[losses < worst_kept]).all()


@settings(max_examples=100)
@given(losses_and_weights)
def test_trimming_treats_weights_as_repetitions(drawn):
    losses, weight, trim = map(torch.as_tensor, drawn)
    kept = trimmed_weight(losses, weight.double(), float(trim))
    repeated = losses.repeat_interleave(weight)
    kept_repeated = trimmed_weight(
        repeated, torch.ones(len(repeated), dtype=torch.float64), float(trim)
    )
    mean = (losses * kept).sum()
    assert mean.item() == pytest.approx((repeated * kept_repeated).sum().item())


@pytest.mark.parametrize(
    ("trim", "n_rows", "n_left_out"),
    [
        (0.2, 8, 2),
        (0.2, 100, 20),
        (0.2, 256, 52),
        (0.07, 100, 7),
        (0.2, 1, 0),
        (0.99, 3, 2),
        (0.0, 3, 0),
    ],
)
def test_trimmed_share_is_a_whole_number_of_rows(trim, n_rows, n_left_out):
    assert trimmed_share(trim, n_rows) * n_rows == pytest.approx(n_left_out)


def test_without_trimming_the_weight_itself_is_returned():
    weight = torch.ones(4)
    assert trimmed_weight(torch.rand(2, 4), weight, 0.0) is weight


def test_each_member_is_trimmed_by_its_own_losses():
    losses = torch.tensor([[1.0, 2, 3, 4], [4, 3, 2, 1]])
    kept = trimmed_weight(losses, torch.ones(4), 0.25)
    assert kept.tolist() == [[1, 1, 1, 0], [0, 1, 1, 1]]


@pytest.mark.parametrize("n_left_out", [1, 3, 7])
def test_rows_of_equal_weight_are_trimmed_as_rows_with_weights(n_left_out):
    losses = torch.rand(5, 8, generator=torch.Generator().manual_seed(0))
    equal = torch.tensor([2.0]).expand(8)
    kept = trimmed_weight(losses, equal, n_left_out / 8)
    torch.testing.assert_close(
        kept, trimmed_weight(losses, 2 * torch.ones(8), n_left_out / 8).expand(5, 8)
    )


def test_a_share_of_a_row_of_equal_weight_is_trimmed():
    kept = trimmed_weight(torch.arange(4.0), torch.ones(1).expand(4), 0.375)
    assert kept.tolist() == [1.0, 1.0, 0.5, 0.0]


def test_trimmed_rows_have_no_gradient():
    far = np.vstack([X[:8], [[1e3, -1e3]]])
    losses = []
    for trim in (0.0, 0.2):
        net = make_net(batch_size=9, trim=trim, max_epochs=1)
        losses.append(history_of(net, make_split(X=far))[-1]["train_loss"])
    assert losses[0] > 1e4
    assert losses[1] < 10


@pytest.mark.parametrize("trim", [0.0, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("is_uniform", [True, False])
def test_members_are_trimmed_over_the_rows_that_they_learn(trim, is_uniform):
    generator = torch.Generator().manual_seed(0)
    losses = torch.randn(6, 20, generator=generator)
    is_learnt = (torch.rand(6, 20, generator=generator) < 0.7).float()
    is_learnt[4] = 0
    is_learnt[5] = 0
    is_learnt[5, 3] = 1
    weight = torch.ones(1).expand(20) if is_uniform else torch.rand(20) + 0.5
    kept = trimmed_for_members(losses, weight, is_learnt, trim)
    assert kept[is_learnt == 0].eq(0).all()
    for i in range(6):
        learnt = is_learnt[i] > 0
        n = int(learnt.sum())
        if n == 0:
            continue
        share = trimmed_share(trim, n)
        expected = trimmed_weight(losses[i, learnt], weight[learnt].clone(), share)
        torch.testing.assert_close(kept[i, learnt], expected / ((1 - share) * n))
    if is_uniform:
        torch.testing.assert_close(kept.sum(dim=1), torch.tensor([1.0] * 4 + [0, 1]))


@pytest.mark.parametrize("compile", [False, "auto"])
@pytest.mark.parametrize("trim", [0.0, 0.25])
def test_members_do_not_depend_on_rows_that_they_do_not_learn(trim, compile):
    fold = np.arange(len(X)) % 3
    group = np.array([0, 1, 2, -1])

    def weights(rows):
        module = make_module()
        encoder, decoder = (
            stack([part] * 4) for part in (module.encoder, module.decoder)
        )
        visible = torch.ones(4, 1, 2, dtype=torch.bool)
        net = make_net(
            Autoencoder(
                *(module.scaler, encoder, module.bottleneck, decoder, nn.Identity()),
                SquaredError(),
                n_components=1,
                visible=visible,
            ),
            trim=trim,
            compile=compile,
            max_epochs=40,
        )
        split = Split(Rows(rows), None, members=MemberFolds(fold, group))
        train(net, split)
        return list(net.module_.parameters())

    changed = X.copy()
    changed[fold == 1] += 3
    for one, other in zip(weights(X), weights(changed), strict=True):
        is_equal = [torch.equal(a, b) for a, b in zip(one, other, strict=True)]
        assert is_equal == [False, True, False, False]
