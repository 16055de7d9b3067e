"""Facts about skae._row_scores."""

import numpy as np
import pytest
import torch
from modules import FACTOR, make_autoencoder, make_rows
from torch import nn

from skae import AutoencoderOutlierDetector
from skae._module import Scaler
from skae._prediction import evaluate
from skae._row_scores import contributions, row_error
from skae._rows import Rows
from skae.bottlenecks import Squeeze
from skae.losses import BinaryCrossEntropy


class ScoreTermSqueeze(Squeeze):
    def score_term(self, H):
        return torch.full((len(H),), 6.0, dtype=H.dtype)


@torch.no_grad()
def test_row_error_is_the_mean_error_in_the_scaled_space():
    module, X = make_autoencoder(), make_rows()
    errors = ((X - module(X)).numpy() / FACTOR) ** 2
    np.testing.assert_allclose(row_error(module, X), errors.mean(axis=1))


@torch.no_grad()
@pytest.mark.parametrize("missing", [False, True])
def test_contributions_sum_to_the_row_error(missing):
    module, X = make_autoencoder(), make_rows()
    if missing:
        X[1, 2] = X[3, 0] = X[3, 1] = torch.nan
    shares = contributions(module, X)
    assert shares.shape == X.shape
    assert (shares >= 0).all()
    torch.testing.assert_close(shares.sum(dim=1), row_error(module, X))


@torch.no_grad()
def test_missing_entries_do_not_count_in_the_loss():
    module, X = make_autoencoder(), make_rows()
    X[0, 1] = torch.nan
    assert contributions(module, X)[0, 1] == 0
    errors = ((X - module(X)).numpy() / FACTOR) ** 2
    np.testing.assert_allclose(row_error(module, X), np.nanmean(errors, axis=1))


@torch.no_grad()
def test_a_row_without_observed_entries_has_no_loss():
    X = torch.full((1, 3), torch.nan, dtype=torch.float64)
    assert row_error(make_autoencoder(), X).item() == 0


@torch.no_grad()
def test_loss_is_computed_from_the_values_before_the_sigmoid():
    module = make_autoencoder(BinaryCrossEntropy(), nn.Sigmoid(), hidden=())
    module.scaler = Scaler(np.zeros(3), np.zeros(3), np.ones(3)).double()
    module.decoder[-1].bias.fill_(-500)
    module.decoder[-1].weight.zero_()
    X = torch.ones(2, 3, dtype=torch.float64)
    assert row_error(module, X).tolist() == [500, 500]


@torch.no_grad()
@pytest.mark.parametrize("missing", [False, True])
def test_score_term_is_divided_by_the_number_of_observed_features(missing):
    module, X = make_autoencoder(), make_rows()
    if missing:
        X[1, 2] = X[3, 0] = X[3, 1] = torch.nan
    module.bottleneck = ScoreTermSqueeze()
    shares = contributions(module, X).sum(dim=1)
    expected = shares + 6 / (3 - X.isnan().sum(dim=1))
    torch.testing.assert_close(row_error(module, X), expected)


@pytest.fixture(scope="module")
def detector():
    X = np.random.default_rng(0).standard_normal((60, 4))
    return AutoencoderOutlierDetector(max_epochs=2, random_state=0).fit(X), X


@pytest.mark.parametrize(
    "method", ["score_samples", "p_values", "feature_contributions"]
)
@pytest.mark.parametrize("missing", [False, True])
def test_rows_are_scaled_once_for_a_score(detector, method, missing, monkeypatch):
    model, X = detector
    X = X.copy()
    X[3, 1] = np.nan if missing else 0.0
    calls, scale = [], Scaler.scale

    def counted(self, *args, **kwargs):
        calls.append(1)
        return scale(self, *args, **kwargs)

    monkeypatch.setattr(Scaler, "scale", counted)
    getattr(model, method)(X)
    assert len(calls) == 1


def test_errors_of_all_members_are_the_row_errors(detector):
    model, X = detector
    module = model.net_.module_for("errors_by_fold", X.dtype)
    errors = evaluate(module, "errors_by_fold", Rows(X), model._trained.holdout)
    assert errors.shape == (60, 6)  # of all, of four folds, and a distance
    np.testing.assert_array_equal(errors[:, 0], -model.score_samples(X))
