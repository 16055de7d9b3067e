"""Gradients of the objective of every variant, compared with finite differences."""

import numpy as np
import pytest
import torch
from variants import DETECTOR_SETTINGS, SETTINGS

from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae._layers import using_generator
from skae.bottlenecks import _QuantizedSqueeze, _TopKSqueeze
from skae.engine.trainer import Trainer, _same_noise

# Half of the difference of two weights, relative to their size.
STEP = 1e-6


class Reached(Exception):  # noqa: N818 (no error)
    """Training is about to start."""


@pytest.fixture
def captured(monkeypatch):
    """Function that returns the trainer of a fit before its first step."""
    trainers = []

    def run(self):
        trainers.append(self)
        raise Reached

    monkeypatch.setattr(Trainer, "run", run)

    def capture(estimator, X):
        with pytest.raises(Reached):
            estimator.fit(X)
        return trainers[-1]

    return capture


def rows(settings):
    """Curved rows with a missing entry; of images for convolutions."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(40, 2))
    X = np.tanh(latent @ rng.normal(size=(2, 6))) + 0.1 * rng.normal(size=(40, 6))
    if settings.get("loss") in ("mixed", "binary_cross_entropy"):
        X[:, :3] = X[:, :3] > 0
        X[:, 3:] = 1 / (1 + np.exp(-X[:, 3:]))
    X[3, 4] = np.nan
    return X


class ObjectiveOfWeights:
    """The loss of a batch as a function of the weights, in float64.

    Parameters
    ----------
    trainer : Trainer
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.parts = trainer.networks.all_parts
        for part in self.parts:
            part.double()
        trainer._set_training_mode(True)
        batch = next(iter(trainer._make_batches(trainer.split.train, training=True)))
        self.batch = batch._replace(
            **{
                name: value.double()
                for name, value in batch._asdict().items()
                if torch.is_tensor(value) and value.is_floating_point()
            }
        )
        trainer._progress = torch.tensor(0.5, dtype=torch.float64)
        self.buffers = [b for part in self.parts for b in part.buffers()]
        self.before = [b.clone() for b in self.buffers]
        self.weights = trainer.networks.parameters()
        parts = trainer.net.module_.bottleneck.modules()
        if any(isinstance(part, _QuantizedSqueeze | _TopKSqueeze) for part in parts):
            # By their definitions, what these pass to the encoder is no derivative.
            self.weights = list(trainer.net.module_.decoder.parameters())

    def __call__(self):
        trainer = self.trainer
        for buffer, value in zip(self.buffers, self.before, strict=True):
            buffer.copy_(value)
        with (
            torch.random.fork_rng(),
            using_generator(trainer.generator, *self.parts),
            _same_noise(trainer.generator),
        ):
            torch.manual_seed(0)  # of layers that draw from the global generator
            return trainer._batch_loss(self.batch)

    def gradient(self):
        """Return the gradient by backpropagation, a tensor for each parameter."""
        for weight in self.weights:
            weight.grad = None
        self().backward()
        return [
            torch.zeros_like(w) if w.grad is None else w.grad.clone()
            for w in self.weights
        ]

    @torch.no_grad()
    def derivative(self, directions):
        """Return the derivative in a direction, by a central difference."""
        losses = []
        for sign in (1, -2):
            for weight, direction in zip(self.weights, directions, strict=True):
                weight.add_(direction, alpha=sign * STEP)
            losses.append(self().item())
        for weight, direction in zip(self.weights, directions, strict=True):
            weight.add_(direction, alpha=STEP)
        return (losses[0] - losses[1]) / (2 * STEP)


CASES = [
    *[(AutoencoderTransformer, settings) for settings in SETTINGS],
    *[(AutoencoderOutlierDetector, settings) for settings in DETECTOR_SETTINGS],
]


@pytest.mark.parametrize(("kind", "settings"), CASES, ids=lambda value: str(value)[:70])
def test_gradients_equal_finite_differences(kind, settings, captured):
    # The loss of a step with folds is that of one of the networks that it trains.
    settings = {
        "n_components": 2,
        "random_state": 0,
        **settings,
        "early_stopping": False,
    }
    estimator = kind(**settings)
    objective = ObjectiveOfWeights(captured(estimator, rows(settings)))
    gradient = objective.gradient()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        directions = [
            torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in gradient
        ]
        expected = objective.derivative(directions)
        actual = sum(
            (g * d).sum().item() for g, d in zip(gradient, directions, strict=True)
        )
        scale = sum(
            (g * d).abs().sum().item()
            for g, d in zip(gradient, directions, strict=True)
        )
        assert abs(actual - expected) <= 1e-5 * scale + 1e-7
