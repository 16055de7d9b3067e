"""Autoencoders as scikit-learn estimators."""

from skae.export import export_onnx
from skae.outlier import AutoencoderOutlierDetector
from skae.persistence import load, save
from skae.transformer import AutoencoderTransformer

__all__ = [
    "AutoencoderOutlierDetector",
    "AutoencoderTransformer",
    "export_onnx",
    "load",
    "save",
]
__version__ = "0.1.0.dev0"
