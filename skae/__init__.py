"""Autoencoders as scikit-learn estimators."""

from skae.outlier import AutoencoderOutlierDetector
from skae.transformer import AutoencoderTransformer

__all__ = ["AutoencoderOutlierDetector", "AutoencoderTransformer"]
__version__ = "0.1.0.dev0"
