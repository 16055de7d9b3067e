"""Variants of both estimators, for tests that hold for all of them.

`variants` has every setting of every parameter; `representatives`, a few of them that
differ most; `combinations`, pairs of settings. `benchmarks/foundation.py` counts the
estimator checks that the variants pass.
"""

from itertools import combinations as pairs_of

from torch import nn

from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae.bottlenecks import Gaussian, Quantized, TopK
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


# Every variant

# Some checks fit again and compare the results. A warm start trains on, so they pass
# where training has ended because it no longer improves on the held-out rows.
CONVERGED = {"warm_start": True, "max_epochs": 100, "n_iter_no_change": 3}

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
    {**CONVERGED},
    {**CONVERGED, "init": "random"},
    {"network": "conv"},
    {"network": Conv((4,), stride=3, hidden_layer_sizes=(8,)), "init": "random"},
    {"bottleneck": "gaussian"},
    {"bottleneck": Gaussian(warm_up=0.5, score="elbo"), "scale": None},
    {"bottleneck": Gaussian(noise_variance=0.1), "init": "random"},
    {"bottleneck": "quantized"},
    {"bottleneck": Quantized(8, 1, shared=True), "bottleneck_weight": 0.25},
    {"bottleneck": "topk"},
    {"n_components": 4, "bottleneck": TopK(n_active=1), "network": "conv"},
    {"corruption": "gaussian"},
    {"corruption": "masking"},
    {"corruption": "swap"},
    {"corruption": "salt_and_pepper"},
    {"corruption": GaussianNoise(clip=True), "corruption_level": 1.0},
    {"penalty": "l1"},
    {"penalty": "kl"},
    {"penalty": "contractive"},
    {"penalty": Contractive(n_projections=1), "network": "conv"},
    {"categorical_features": "from_dtype"},
    {"categorical_features": [0]},
    {"categorical_features": [0], "bottleneck": "gaussian", "corruption": "swap"},
    # A sparse convolutional variational denoiser is four arguments.
    {
        "network": "conv",
        "bottleneck": "gaussian",
        "corruption": "masking",
        "penalty": "l1",
    },
]

# Settings that exist only in the transformer.
TRANSFORMER_SETTINGS = [
    {"whiten": True},
    {"ordered": True},
    {"ordered": True, "early_stopping": "auto", "init": "random"},
    {"ordered": True, "bottleneck": "gaussian", "network": "conv", "whiten": True},
    {"n_components": 0.8},
    {"n_components": None, "early_stopping": "auto"},
]

# The detector is an ensemble by default; these settings exist only there.
DETECTOR_SETTINGS = [
    {"contamination": 0.1},
    {"n_estimators": 1},
    {"n_components": 2, "max_features": 1},
    {"n_components": "auto", "max_features": 1.0, "early_stopping": True},
    {"trim": 0.0, "error": "loss", "loss": "absolute_error"},
    {"n_estimators": 2, "network": "conv"},
    {"n_estimators": 2, "bottleneck": Gaussian(score="elbo"), **CONVERGED},
    {"n_estimators": 2, "bottleneck": Quantized(4), "corruption": "swap"},
    {"n_estimators": 2, "bottleneck": "topk", "penalty": "l1"},
    {"n_estimators": 2, "penalty": "contractive", "init": "pca"},
    {"n_estimators": 2, "network": Custom(encoder_factory, decoder_factory)},
]

# With early_stopping=True one part of the rows is held out, which takes a sixth of the
# time of the cross-validation that "auto" means.
SMALL = {"max_epochs": 10, "batch_size": 64, "early_stopping": True}


def small(estimator, **settings):
    """An estimator with a small network and a short training.

    Parameters
    ----------
    estimator : type
        One of the two estimators.
    **settings
        Parameters; they override the small ones.
    """
    sizes = {"hidden_layer_sizes": (8,)}
    if isinstance(settings.get("network"), Network):
        sizes = {}  # the network object has sizes of its own
    return estimator(**{**SMALL, **sizes, **settings})


def variants():
    """Yield both estimators with default parameters, and small ones in every setting.

    Yields
    ------
    estimator : AutoencoderTransformer or AutoencoderOutlierDetector
        Not fitted.
    """
    for estimator, own_settings in (
        (AutoencoderTransformer, TRANSFORMER_SETTINGS),
        (AutoencoderOutlierDetector, DETECTOR_SETTINGS),
    ):
        yield estimator()
        for settings in SETTINGS + own_settings:
            yield small(estimator, **settings)


# Representatives

REPRESENTATIVES = [
    (AutoencoderTransformer, {"early_stopping": "auto", "max_epochs": 2}),
    (AutoencoderTransformer, {"network": "conv"}),
    (AutoencoderTransformer, {"bottleneck": "gaussian", "init": "random"}),
    (AutoencoderTransformer, {"loss": "mixed", "warm_start": True}),
    (AutoencoderTransformer, {"ordered": True}),
    (AutoencoderTransformer, {"categorical_features": [0]}),
    (AutoencoderOutlierDetector, {"categorical_features": [0]}),
    (
        AutoencoderTransformer,
        {"network": Custom(encoder_factory, decoder_factory), "scale": None},
    ),
    (AutoencoderOutlierDetector, {"early_stopping": False}),
    (AutoencoderOutlierDetector, {"n_estimators": 1, "bottleneck": "quantized"}),
    (
        AutoencoderOutlierDetector,
        {"n_estimators": 2, "bottleneck": Gaussian(score="elbo"), "warm_start": True},
    ),
    (
        AutoencoderOutlierDetector,
        {"n_estimators": 2, "penalty": "kl", "corruption": "masking", "trim": 0.0},
    ),
    (
        AutoencoderOutlierDetector,
        {"penalty": "contractive", "init": "pca", "contamination": 0.1},
    ),
]


def representatives():
    """Yield a few variants that share as little code as possible.

    Each kind of network, bottleneck and penalty occurs, and a single network as well as
    an ensemble.

    Yields
    ------
    estimator : AutoencoderTransformer or AutoencoderOutlierDetector
        Not fitted.
    """
    for estimator, settings in REPRESENTATIVES:
        yield small(estimator, **{"max_epochs": 4, **settings})


# Pairs of settings


def _named_by_value(*values):
    return {value: value for value in values}


# Values by parameter and label; "rows" says what the table is like. The first value of
# each parameter goes with all others.
FACTORS = {
    "estimator": {
        "transformer": AutoencoderTransformer,
        "detector": AutoencoderOutlierDetector,
    },
    "network": {
        "mlp": "mlp",
        "conv": "conv",
        "relu": MLP((8,), activation="relu", dropout=0.1),
        "custom": Custom(encoder_factory, decoder_factory),
    },
    "bottleneck": {
        "deterministic": "deterministic",
        "gaussian": "gaussian",
        "elbo": Gaussian(score="elbo"),
        "quantized": "quantized",
        "topk": "topk",
    },
    "corruption": _named_by_value(
        None, "gaussian", "masking", "swap", "salt_and_pepper"
    ),
    "penalty": _named_by_value(None, "l1", "kl", "contractive"),
    "loss": _named_by_value(
        "squared_error",
        "absolute_error",
        "huber",
        "log_error",
        "binary_cross_entropy",
        "mixed",
    ),
    "init": _named_by_value("auto", "random", "pca"),
    "scale": _named_by_value("auto", "global", "feature", None),
    "early_stopping": _named_by_value(False, True, "auto"),
    "trim": _named_by_value(0.0, 0.3),
    "warm_start": _named_by_value(False, True),
    "compile": _named_by_value("auto", False),
    "batch_size": _named_by_value(8, 7, "auto"),
    "rows": _named_by_value("dense", "float32", "missing", "sparse", "weighted"),
}

# Pairs that `fit` refuses with a ValueError: an initial PCA needs a network that can be
# linear from the rows to the reconstruction.
REFUSED = [
    frozenset({("init", "pca"), other})
    for other in (
        ("network", "custom"),
        ("bottleneck", "quantized"),
        ("bottleneck", "topk"),
        ("penalty", "l1"),
        ("loss", "binary_cross_entropy"),
        ("loss", "mixed"),
    )
]


def allowed_pairs():
    """Return all pairs of settings of two parameters that `fit` accepts.

    Returns
    -------
    pairs : list of frozenset
        Each of two tuples of parameter and label.
    """
    return [
        pair
        for one, other in pairs_of(FACTORS, 2)
        for a in FACTORS[one]
        for b in FACTORS[other]
        if (pair := frozenset({(one, a), (other, b)})) not in REFUSED
    ]


def combinations():
    """Return combinations of settings that contain every allowed pair (all-pairs).

    Each combination begins with the first pair that no earlier one contains. The other
    parameters follow in order, each with the label that adds most such pairs.

    Returns
    -------
    combinations : list of dict
        Labels by parameter.
    """
    missing = dict.fromkeys(allowed_pairs())  # a set in a fixed order
    rows = []
    while missing:
        row = dict(sorted(next(iter(missing))))
        for factor in FACTORS:
            if factor not in row:
                row[factor] = _best_label(row, factor, missing)
        for pair in pairs_of(row.items(), 2):
            missing.pop(frozenset(pair), None)
        rows.append({factor: row[factor] for factor in FACTORS})
    return rows


def _best_label(row, factor, missing):
    """Return the allowed label that adds most missing pairs; of several, the first."""
    pairs = {
        label: {frozenset({item, (factor, label)}) for item in row.items()}
        for label in FACTORS[factor]
    }
    allowed = [label for label in pairs if pairs[label].isdisjoint(REFUSED)]
    return max(allowed, key=lambda label: len(pairs[label] & missing.keys()))


def build(combination, **settings):
    """Return the estimator of a combination.

    Parameters
    ----------
    combination : dict
        Labels by parameter; those left out have the first value.
    **settings
        Further parameters.
    """
    values = {
        factor: labels[combination.get(factor, next(iter(labels)))]
        for factor, labels in FACTORS.items()
    }
    del values["rows"]
    return small(values.pop("estimator"), **values, **settings)
