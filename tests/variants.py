"""The variants of both estimators that every estimator check runs on.

`benchmarks/foundation.py` counts the checks of the same list.
"""

from torch import nn

from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae.losses import Huber
from skae.networks import MLP, Custom


def encoder_factory(n_features, n_components):
    return nn.Sequential(
        nn.Linear(n_features, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, n_components)
    )


def decoder_factory(n_features, n_components):
    return nn.Sequential(
        nn.Linear(n_components, 8), nn.Tanh(), nn.Linear(8, n_features)
    )


SETTINGS = [
    {},
    {"init": "random"},
    {"init": "pca"},
    {"loss": "absolute_error"},
    {"loss": "huber"},
    {"loss": Huber(delta=0.5)},
    {"scale": None},
    {"scale": "global"},
    {"scale": "feature"},
    {"scale": None, "init": "random"},
    {"hidden_layer_sizes": ()},
    {"hidden_layer_sizes": (8, 4), "bottleneck": "deterministic"},
    {"network": MLP((16, 8), activation="relu", code_activation="relu", dropout=0.1)},
    {"network": Custom(encoder_factory, decoder_factory)},
    {"n_components": "auto", "batch_size": 7, "learning_rate": 0.01},
    {"early_stopping": False},
    {"warm_start": True},
    {"warm_start": True, "init": "random"},
]


BRIEF = {"max_epochs": 20, "batch_size": 64}


def variants():
    """Both estimators as they come, and small and brief ones in every setting."""
    for estimator in (AutoencoderTransformer, AutoencoderOutlierDetector):
        yield estimator()
        for settings in SETTINGS:
            sizes = {} if "network" in settings else {"hidden_layer_sizes": (8,)}
            yield estimator(**{**BRIEF, **sizes, **settings})
    yield AutoencoderOutlierDetector(
        contamination=0.1, hidden_layer_sizes=(8,), **BRIEF
    )
