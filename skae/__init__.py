"""Autoencoders as scikit-learn estimators."""

from skae._show_versions import show_versions
from skae._version import __version__
from skae.export import export_onnx
from skae.outlier import AutoencoderOutlierDetector
from skae.persistence import load, save
from skae.transformer import AutoencoderTransformer

__all__ = [
    "AutoencoderOutlierDetector",
    "AutoencoderTransformer",
    "__version__",
    "export_onnx",
    "load",
    "save",
    "show_versions",
]
