"""Plots of fitted autoencoders, drawn with matplotlib.

The displays follow scikit-learn's conventions [1]_: the constructor stores arrays,
`plot` draws them, and `from_estimator` computes them from a fitted estimator. The
estimator may be an autoencoder, a `Pipeline` that ends in one, or a fitted search over
either, such as `GridSearchCV`. For a pipeline, a display shows the rows as transformed
by the steps before the autoencoder.

matplotlib is imported only when a display is drawn.

References
----------
.. [1] https://scikit-learn.org/stable/developers/develop.html
"""

from skae.inspection._component_contributions import ComponentContributionDisplay
from skae.inspection._component_selection import ComponentSelectionDisplay
from skae.inspection._component_traversal import ComponentTraversalDisplay
from skae.inspection._feature_contributions import FeatureContributionDisplay
from skae.inspection._latent_space import LatentSpaceDisplay
from skae.inspection._loss_curve import LossCurveDisplay
from skae.inspection._outlier_scores import OutlierScoreDisplay
from skae.inspection._p_values import PValueDisplay
from skae.inspection._reconstruction import ReconstructionDisplay

__all__ = [
    "ComponentContributionDisplay",
    "ComponentSelectionDisplay",
    "ComponentTraversalDisplay",
    "FeatureContributionDisplay",
    "LatentSpaceDisplay",
    "LossCurveDisplay",
    "OutlierScoreDisplay",
    "PValueDisplay",
    "ReconstructionDisplay",
]
