"""Settings that the user guide names for its tasks."""

from __future__ import annotations

from typing import Any

from skae.corruptions import Masking
from skae.networks import MLP

# By a name of the row. A row with an alternative is there twice.
DENOISING = {"n_components": None, "corruption_level": 0.3}
SETTINGS: dict[str, dict[str, Any]] = {
    "no settings": {},
    "whiten": {"whiten": True},
    "impute": {
        "n_components": None,
        "scale": "feature",
        "corruption": "masking",
        "n_iter_no_change": 30,
    },
    "ordered": {"n_components": 32, "ordered": True},
    "0.9": {"n_components": 0.9},
    "hidden_layer_sizes": {"hidden_layer_sizes": (128, 64)},
    "relu, dropout": {"network": MLP(activation="relu", dropout=0.1)},
    "binary_cross_entropy": {"loss": "binary_cross_entropy"},
    "mixed": {"loss": "mixed"},
    "huber": {"loss": "huber"},
    "log_error": {"loss": "log_error"},
    "trim": {"trim": 0.1},
    "conv": {"network": "conv"},
    "gaussian corruption": {"corruption": "gaussian", **DENOISING},
    "masking": {"corruption": "masking", **DENOISING},
    "swap": {"corruption": "swap", **DENOISING},
    "salt_and_pepper": {"corruption": "salt_and_pepper", **DENOISING},
    "features": {
        "n_components": 512,
        "network": MLP((256,), activation="relu", code_activation="relu"),
        "corruption": Masking(vary_level=False),
        "corruption_level": 0.5,
    },
    "l1": {"n_components": 64, "penalty": "l1", "penalty_weight": 1e-2},
    "kl": {"n_components": 64, "penalty": "kl"},
    "topk": {"n_components": 64, "bottleneck": "topk"},
    "contractive": {"n_components": 16, "penalty": "contractive"},
    "gaussian": {"n_components": 8, "bottleneck": "gaussian"},
    "quantized": {"n_components": 8, "bottleneck": "quantized"},
}
