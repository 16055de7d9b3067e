"""The variants of both estimators that every estimator check runs on.

`benchmarks/foundation.py` counts the checks of the same list.
"""

from torch import nn

from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae.bottlenecks import Gaussian, Quantized
from skae.corruptions import GaussianNoise
from skae.losses import Huber
from skae.networks import MLP, Conv, Custom, Network
from skae.penalties import Contractive


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
    {"loss": "log_error"},
    {"loss": Huber(delta=0.5)},
    {"loss": "mixed"},
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
    {"early_stopping": "auto"},
    {"trim": 0.3},
    {"warm_start": True},
    {"warm_start": True, "init": "random"},
    {"network": "conv"},
    {"network": Conv((4,), stride=3, hidden_layer_sizes=(8,)), "init": "random"},
    {"bottleneck": "gaussian"},
    {"bottleneck": Gaussian(warm_up=0.5, score="elbo"), "scale": None},
    {"bottleneck": "quantized"},
    {"bottleneck": Quantized(8, 1, shared=True), "bottleneck_weight": 0.25},
    {"corruption": "gaussian"},
    {"corruption": "masking"},
    {"corruption": "swap"},
    {"corruption": "salt_and_pepper"},
    {"corruption": GaussianNoise(clip=True), "corruption_level": 1.0},
    {"penalty": "l1"},
    {"penalty": "kl"},
    {"penalty": "contractive"},
    {"penalty": Contractive(n_projections=1), "network": "conv"},
    # A sparse convolutional variational denoiser is four arguments.
    {
        "network": "conv",
        "bottleneck": "gaussian",
        "corruption": "masking",
        "penalty": "l1",
    },
]


# Those that only a detector has, which is an ensemble in all the others.
DETECTOR_SETTINGS = [
    {"contamination": 0.1},
    {"n_estimators": 1},
    {"n_components": 2, "max_features": 1},
    {"n_components": "auto", "max_features": 1.0, "early_stopping": True},
    {"trim": 0.0, "error": "loss", "loss": "absolute_error"},
    {"n_estimators": 2, "network": "conv"},
    {"n_estimators": 2, "bottleneck": Gaussian(score="elbo"), "warm_start": True},
    {"n_estimators": 2, "bottleneck": Quantized(4), "corruption": "swap"},
    {"n_estimators": 2, "penalty": "contractive", "init": "pca"},
    {"n_estimators": 2, "network": Custom(encoder_factory, decoder_factory)},
]


# Rows are held out once, which takes a sixth of the time of cross-validation; the
# estimators as they come do what they do.
BRIEF = {"max_epochs": 10, "batch_size": 64, "early_stopping": True}


def variants():
    """Both estimators as they come, and small and brief ones in every setting."""
    for estimator, own_settings in (
        (AutoencoderTransformer, []),
        (AutoencoderOutlierDetector, DETECTOR_SETTINGS),
    ):
        yield estimator()
        for settings in SETTINGS + own_settings:
            sizes = {"hidden_layer_sizes": (8,)}
            if isinstance(settings.get("network"), Network):
                sizes = {}  # the object has its own
            yield estimator(**{**BRIEF, **sizes, **settings})
