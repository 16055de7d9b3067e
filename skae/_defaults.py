"""Values of parameters that are ``"auto"``, derived from the shape of the data.

The numbers come from a search on twelve tables (landsat, magic.gamma, annthyroid,
fault, Cardiotocography, letter, vertebral, yeast, Hepatitis and Waveform of ADBench;
breast cancer and diabetes of scikit-learn) and were confirmed on twelve others.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple, Self


class Recipe(NamedTuple):
    """How a network is trained from one kind of initial weights.

    Attributes
    ----------
    n_steps : int
        Number of steps if `max_epochs` is ``"auto"``.
    rate_factor : float
        Factor of the learning rate if it is ``"auto"``.
    constant_share : float
        Share of the steps before the learning rate decreases, linearly to 0.
    beta2 : float
        Decay of the second moment in AdamW.
    averaged_steps : float
        Time constant, in steps, of the moving average of the weights; 0 means none.
        Without early stopping, there is none.
    settling_steps : int
        Number of the first steps in which no epoch counts for `n_iter_no_change`.
    batch_share : float
        Size of a batch as a fraction of the training rows.
    min_batch, max_batch : int
        Bounds of the size of a batch.
    """

    n_steps: int
    rate_factor: float = 1.0
    constant_share: float = 0.6
    beta2: float = 0.999
    averaged_steps: float = 0.0
    settling_steps: int = 0
    batch_share: float = 1 / 16
    min_batch: int = 8
    max_batch: int = 128

    def auto_batch_size(self, n_samples: int) -> int:
        """Return the number of rows in a batch for a number of training rows."""
        n_rows = math.ceil(self.batch_share * n_samples)
        return min(max(n_rows, self.min_batch), self.max_batch)

    def schedule(self, done: float) -> float:
        """Return the factor of the learning rate after a fraction of the steps."""
        return min(1.0, (1 - done) / (1 - self.constant_share))


class TrainingDefaults(NamedTuple):
    """Rules for `max_epochs`, `batch_size` and `learning_rate` if they are ``"auto"``.

    Attributes
    ----------
    from_random, from_pca : Recipe
        Training from random weights, and from the PCA.
    plain, plain_few : Recipe
        Training of a plain dense network from the PCA, see `Parts.is_plain`, and the
        same on at most `FEW_ROWS` rows.
    min_epochs, max_epochs : int
        Bounds of the number of epochs.
    max_steps : int
        Number of steps, up to rounding, above which `min_epochs` does not apply.
    samples_rows : bool, default=False
        Whether a training reads only as many rows as `n_steps` batches have, drawn at
        random, where there are more.
    """

    from_random: Recipe
    from_pca: Recipe
    plain: Recipe
    plain_few: Recipe
    min_epochs: int
    max_epochs: int
    max_steps: int = 21_000
    samples_rows: bool = False

    @classmethod
    def with_one_recipe(cls, recipe: Recipe, **rules: Any) -> Self:
        """Return rules with the same recipe for all networks and starts."""
        return cls(recipe, recipe, recipe, recipe, **rules)

    def auto_max_epochs(self, n_batches: int, n_steps: int) -> int:
        """Return the number of epochs for a number of batches in an epoch."""
        n_epochs = math.ceil(n_steps / n_batches)
        fewest = min(self.min_epochs, max(1, round(self.max_steps / n_batches)))
        return min(max(n_epochs, fewest), self.max_epochs)


# Number of rows up to which smaller networks and fewer steps explain as much of the
# variance of held-out rows.
FEW_ROWS = 500

# Many rows go on to improve the fit: of 243,000 rows of Cover (10 features, two
# components), 2, 4 and 12 epochs explained .845, .858 and .874 of the variance of test
# rows, so that time alone limits the epochs.
#
# In a plain network from the PCA, with three to four times the learning rate of random
# weights, 1300 steps explain as much of the variance of held-out rows as 2500 steps
# with that rate did, and 1600 steps .006 more; up to `FEW_ROWS` rows, 700 steps are
# enough. The error on few
# rows may rise before it falls: without the settling steps, half of the small tables
# remained a PCA.
PLAIN = Recipe(
    1600,
    rate_factor=3.0,
    constant_share=0.0,
    beta2=0.95,
    averaged_steps=40.0,
    settling_steps=200,
    batch_share=1 / 8,
    min_batch=32,
)

TRANSFORMER = TrainingDefaults(
    from_random=Recipe(4000),
    from_pca=Recipe(2500),
    plain=PLAIN,
    plain_few=PLAIN._replace(n_steps=700, rate_factor=4.0),
    min_epochs=12,
    max_epochs=500,
)

# From a search on the 21 tables of `benchmarks/outliers.py` and about thirty others.
DETECTOR_RECIPE = Recipe(600, batch_share=1.0, max_batch=256)
DETECTOR = TrainingDefaults.with_one_recipe(
    DETECTOR_RECIPE, min_epochs=1, max_epochs=150, samples_rows=True
)

# Members of ensembles of perceptrons with trim > 0.
#
# On the training rows of twenty of the 21 tables (without InternetAds), divided again,
# with three seeds, 600 steps of 128 rows and 450 of 256 have the same ROC AUC as 600 of
# 256: differences of +.0009 and +.0003, standard errors .0013 and .0006. 450 of 128 and
# 300 of 256 have .002 less, which higher learning rates and other schedules do not
# regain; with SiLU instead of GELU, 300 of 256 have .005 less, and with trim=0.3 .006.
# With 90 epochs instead of 100, the point (0, 1) beside 100 points of a parabola is not
# always an outlier.
#
# With trim=0, 300 steps of 256 rows at twice the learning rate have .003 less than 600,
# and 32 hidden units .008 less than 64.
DETECTOR_MEMBERS = TrainingDefaults.with_one_recipe(
    DETECTOR_RECIPE._replace(batch_share=0.5, min_batch=16, max_batch=128),
    min_epochs=1,
    max_epochs=100,
    samples_rows=True,
)

# The same with more than `DETECTOR_WIDE` features: fewer and larger steps, because the
# update of the weights takes as long as the products.
DETECTOR_WIDE = 500
DETECTOR_WIDE_MEMBERS = TrainingDefaults.with_one_recipe(
    DETECTOR_RECIPE._replace(n_steps=300),
    min_epochs=1,
    max_epochs=100,
    samples_rows=True,
)

# The same with features in one unit. On images of one digit of MNIST, four members of
# 150 steps have the ROC AUC of four of 300 steps at half of the rate (.900), and with
# 5 % other digits among the training rows too (.890), in half of the time.
DETECTOR_WIDE_UNIT_MEMBERS = TrainingDefaults.with_one_recipe(
    DETECTOR_RECIPE._replace(n_steps=150, rate_factor=2.0),
    min_epochs=1,
    max_epochs=100,
    samples_rows=True,
)

# Number of weights that a table of any size justifies. On the digits, 40 components,
# 2**18 weights explained .004 less of the variance than 2**20; with 100 components and
# 1,000 rows, networks of more weights did not improve on the PCA.
MIN_CEILING = 2**20


# Widths of the encoder's layers in units of h, see `auto_hidden_layer_sizes`. In plain
# networks from the PCA, on the training rows of 21 tables, divided again, 2h, h, h, h
# explained .006 more of the variance than 4h, 2h, h, in half of the time of a step: .02
# more with one or two components of some thousand rows, but .008 less with five or
# twelve. Of MNIST (8,000 rows) it explained .009 less with two components and .02 less
# with twelve. Up to `FEW_ROWS` rows, h, h, h explained .006 more than 2h, h, but less
# with a quantized or a contractive code.
FEW_CODE_ENTRIES = 10_000
LAYERS, LAYERS_OF_FEW_ROWS = (4, 2, 1), (2, 1)
DEEP_LAYERS, DEEP_LAYERS_OF_FEW_ROWS = (2, 1, 1, 1), (1, 1, 1)

# The same for ordered components, with more than `FEW_CODE_ENTRIES`. The first ones
# need a deep network: on the training rows of five tables, divided again, 2h, h, h, h
# explained .01 more of the variance with the first one and the first two than 4h, 2h,
# h, and .005 less with all twelve. 4h, 2h, 2h, h explained .02 more with all twelve,
# but took more than twice the time of a plain fit.
ORDERED_LAYERS: tuple[float, ...] = (3, 1.5, 1.5, 1)


def auto_hidden_layer_sizes(
    n_samples: int,
    n_features: int,
    n_components: int,
    n_members: int = 1,
    *,
    is_plain: bool = False,
    is_ordered: bool = False,
) -> tuple[int, ...]:
    """Return the encoder widths, multiples of h; h for a member.

    h is the smallest power of two that is at least 4k, where k is the smaller of
    `n_components` and `n_features`, but at least 64, or 32 for a member. The layers of
    a single network have at most 2**21 / `n_features` units, unless that is less than
    h.

    All encoders together have at most 2**20 weights, or as many as the table has
    entries, if that is more: where they would have more, h is halved as long as it is
    at least k and the lower bound above, and then the wider layers are halved as long
    as they have at least h units.

    Parameters
    ----------
    n_samples, n_features, n_components : int
    n_members : int, default=1
    is_plain, is_ordered : bool, default=False
        See `skae.networks.Shape`.
    """
    ceiling = max(MIN_CEILING, n_samples * n_features)
    lowest = 32 if n_members > 1 else 64
    # A code that is wider than a row needs no wider layers: with 64 components for the
    # 30 features of breast cancer and penalty="kl", h = 256 explained .90 of the
    # variance of held-out rows in 72 s, and h = 128 all of it in 28 s.
    width = min(n_components, n_features)
    layers: tuple[float, ...] = LAYERS_OF_FEW_ROWS if n_samples <= FEW_ROWS else LAYERS
    if n_members > 1:
        layers = (1,)
    elif is_plain and n_samples <= FEW_ROWS:
        layers = DEEP_LAYERS_OF_FEW_ROWS
    elif is_plain and n_samples * width <= FEW_CODE_ENTRIES:
        layers = DEEP_LAYERS
    elif is_plain and is_ordered:
        layers = ORDERED_LAYERS

    def widths(h: int, most: int) -> tuple[int, ...]:
        return tuple(min(int(factor * h), most) for factor in layers)

    def is_too_large(sizes: tuple[int, ...]) -> bool:
        edges = pairwise((n_features, *sizes, n_components))
        return n_members * sum(one * other for one, other in edges) > ceiling

    h = max(lowest, 2 ** math.ceil(math.log2(4 * width)))
    most = max(h, 2**21 // n_features)
    while is_too_large(widths(h, most)) and h // 2 >= max(lowest, width):
        h //= 2
    most = max(h, min(max(layers) * h, most))
    while is_too_large(widths(h, most)) and most // 2 >= h:
        most //= 2
    return widths(h, most)


# Channels of two convolutions in a member of an ensemble or before a feature-map code.
SMALL_CHANNELS = (16, 32)

# Smallest and largest numbers of channels of two convolutions.
CHANNEL_BOUNDS = ((8, 64), (32, 128))


def auto_channels(layer: int, n_positions: int) -> int:
    """Return the channels of a convolution whose map has a number of positions.

    It is the largest power of two for which the map has at most 2048 values, within
    `CHANNEL_BOUNDS`. With (8, 32) channels, 10,000 images of MNIST are trained on in
    less than twice the time of the dense network; smaller images need more channels:
    with (8, 32), digits of 8 x 8 pixels have 17 % more held-out error than with
    (64, 128).
    """
    least, most = CHANNEL_BOUNDS[layer]
    n_channels = 2 ** math.floor(math.log2(max(1, 2048 / n_positions)))
    return min(max(n_channels, least), most)


def auto_learning_rate(batch_size: int) -> float:
    """Return ``0.004 * sqrt(batch_size / 128)``."""
    return 4e-3 * math.sqrt(batch_size / 128)
