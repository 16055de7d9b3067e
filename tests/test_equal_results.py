"""Results that must be equal: of repeated fits, kinds of steps, types and units."""

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.decomposition import PCA
from variants import representatives, variants

from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae.engine.trainer import Trainer

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def make_rows():
    """Curved rows between 0 and 1, exactly representable in float32."""
    rng = np.random.default_rng(0)
    X = np.tanh(rng.normal(size=(90, 2)) @ rng.normal(size=(2, 6)))
    X = (1 + X + 0.1 * rng.normal(size=X.shape)) / 2
    return X.clip(0, 1).astype(np.float32).astype(np.float64)


X = make_rows()


def seeded(estimators, marks=()):
    """Parameters of a test: estimators with a random state."""
    return [
        pytest.param(
            each.set_params(random_state=0),
            id=" ".join(str(each).split())[:90],
            marks=marks,
        )
        for each in estimators
    ]


each_variant = pytest.mark.parametrize(
    "estimator", seeded(representatives()) + seeded(variants(), pytest.mark.slow)
)


def brief(estimator, **settings):
    """A fitted clone after few steps, in which rounding errors hardly grow."""
    settings = {"max_epochs": 2, "early_stopping": False, **settings}
    return clone(estimator).set_params(**settings).fit(X)


@each_variant
def test_repeated_fits_are_equal(estimator):
    one, other = brief(estimator), brief(estimator)
    assert one.loss_curve_ == other.loss_curve_
    np.testing.assert_array_equal(one.score_samples(X), other.score_samples(X))


@each_variant
def test_recorded_steps_give_the_model_of_plain_ones(estimator, always_recorded):
    recorded, plain = (brief(estimator, compile=value) for value in ("auto", False))
    np.testing.assert_allclose(recorded.loss_curve_, plain.loss_curve_, rtol=1e-4)
    scores = plain.score_samples(X)
    atol = 1e-3 * np.abs(scores).mean()
    np.testing.assert_allclose(recorded.score_samples(X), scores, rtol=1e-3, atol=atol)


@each_variant
def test_float32_rows_give_the_model_of_float64_rows(estimator):
    double = brief(estimator)
    single = clone(double).fit(X.astype(np.float32))
    np.testing.assert_allclose(single.loss_curve_, double.loss_curve_, rtol=1e-6)
    np.testing.assert_allclose(
        single.score_samples(X), double.score_samples(X), rtol=1e-5, atol=1e-9
    )


# The PCA of the start


class Reached(Exception):  # noqa: N818 (no error)
    """Training is about to start."""


@pytest.fixture
def initial_module(monkeypatch):
    """Function that returns the network of a fit before its first step."""
    modules = []

    def run(self):
        modules.append(self.net.module_.eval())
        raise Reached

    monkeypatch.setattr(Trainer, "run", run)

    def build(estimator, rows, **kwargs):
        with pytest.raises(Reached):
            estimator.fit(rows, **kwargs)
        return modules[-1]

    return build


def up_to_sign(Z, expected):
    return Z * np.sign((Z * expected).sum(axis=0))


@pytest.mark.parametrize("kind", ["dense", "sparse", "weighted", "offset", "repeated"])
@pytest.mark.parametrize("ordered", [False, True])
def test_the_start_is_the_pca_of_scikit_learn(kind, ordered, initial_module):
    rows, weight, fitted = X, None, X
    if kind == "sparse":
        rows = fitted = np.where(X > 0.5, X, 0)
        rows = sparse.csr_array(rows)
    elif kind == "offset":
        rows = fitted = X + 1000
    elif kind == "repeated":
        rows = fitted = np.repeat(X, 3, axis=0)
    elif kind == "weighted":
        weight = np.arange(len(X)) % 4
        fitted = np.repeat(X, weight, axis=0)
    estimator = AutoencoderTransformer(3, init="pca", ordered=ordered, random_state=0)
    module = initial_module(estimator, rows, sample_weight=weight).double()
    pca = PCA(3, svd_solver="full").fit(fitted)
    dense = rows.toarray() if sparse.issparse(rows) else rows
    with torch.no_grad():
        Z = module.encode(torch.from_numpy(dense)).numpy()
        X_hat = module(torch.from_numpy(dense)).numpy()
    expected = pca.transform(dense)
    Z = Z * expected.std() / Z.std()
    np.testing.assert_allclose(up_to_sign(Z, expected), expected, atol=2e-5)
    np.testing.assert_allclose(
        X_hat, pca.inverse_transform(expected), atol=1e-5 * max(1, np.abs(dense).max())
    )


@pytest.mark.parametrize(
    ("settings", "is_replaced"),
    [
        ({}, True),
        ({"ordered": True}, True),
        ({"network": "conv"}, True),
        ({"early_stopping": True}, True),
        ({"loss": "absolute_error"}, False),  # whose gradient is not zero
        ({"init": "random"}, False),
    ],
    ids=str,
)
def test_the_first_step_from_a_pca_does_not_follow_rounding_errors(
    settings, is_replaced, monkeypatch
):
    def first_step(scale):
        """Return the gradients of the first step if rounding errors are others."""
        found = []

        def replace_rounding_errors(self, original=Trainer._replace_rounding_errors):
            encoders = [module.encoder for module, _ in self.networks.trained]
            gradients = [p.grad for e in encoders for p in e.parameters()]
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(scale)
            original(self)
            found.extend(g.clone() for g in gradients if g is not None)

        defaults = {"early_stopping": False, "max_epochs": 2, "random_state": 0}
        model = AutoencoderTransformer(2, **{**defaults, **settings})
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "_replace_rounding_errors", replace_rounding_errors)
            model.fit(X)
        return found

    same = map(torch.equal, first_step(1.0), first_step(-0.5))
    assert all(same) is is_replaced


# Units

UNITS = np.array([1e-12, 1e12, 1.0, 1e-6, 1e6, 1e3])


@pytest.mark.parametrize("kind", [AutoencoderTransformer, AutoencoderOutlierDetector])
def test_units_of_the_columns_do_not_matter(kind):
    estimator = kind(2, scale="feature", max_epochs=2, random_state=0)
    plain, scaled = clone(estimator).fit(X), clone(estimator).fit(X * UNITS)
    np.testing.assert_allclose(
        scaled.score_samples(X * UNITS), plain.score_samples(X), rtol=2e-2
    )
    X_hat = scaled.reconstruct(X * UNITS) / UNITS
    np.testing.assert_allclose(X_hat, plain.reconstruct(X), atol=0.02)


@pytest.mark.parametrize("kind", [AutoencoderTransformer, AutoencoderOutlierDetector])
def test_large_offsets_do_not_matter(kind):
    estimator = kind(2, scale="feature", max_epochs=2, random_state=0)
    plain, shifted = clone(estimator).fit(X), clone(estimator).fit(X + 1e8)
    # Rows are drawn in the order of a hash of their values.
    scores = shifted.score_samples(X + 1e8), plain.score_samples(X)
    assert np.corrcoef(*scores)[0, 1] > 0.98
    X_hat = shifted.reconstruct(X + 1e8) - 1e8
    np.testing.assert_allclose(X_hat, plain.reconstruct(X), atol=0.02)
