"""Export fitted estimators as ONNX graphs [1]_, which run without Python.

The graphs are traced by PyTorch and computed in float64, the precision in which the
estimators predict rows of float64. Operators that onnxruntime has in float32 only are
composed of other operators.

References
----------
.. [1] https://onnx.ai
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

from sklearn.utils.validation import check_is_fitted

from skae._base import BaseAutoencoder
from skae._files import replace_file
from skae.outlier import AutoencoderOutlierDetector
from skae.transformer import AutoencoderTransformer

__all__ = ["export_onnx", "register_skl2onnx"]

# Methods that each value of `output` stands for, if the estimator has them.
METHODS = {
    "codes": ("transform",),
    "reconstruction": ("reconstruct",),
    "scores": ("score_samples", "decision_function", "predict"),
}


def export_onnx(
    estimator: BaseAutoencoder,
    path: str | os.PathLike[str],
    output: str = "codes",
    *,
    dtype: str = "float32",
) -> None:
    """Write the predictions of a fitted estimator as a graph to an ONNX file.

    The graph has one input, ``"X"``, of shape (n_samples, n_features), for any number
    of rows, with NaN where an entry is missing. Each output has the name of the method
    whose result it is. Scaling, the refinement and whitening of codes and the threshold
    of a detector are part of the graph; the validation of X is not.

    Parameters
    ----------
    estimator : AutoencoderTransformer or AutoencoderOutlierDetector
        The fitted estimator.
    path : str or path-like
        The file to write, by convention with the suffix ``".onnx"``.
    output : {"codes", "reconstruction", "scores"}, default="codes"
        Outputs of the graph:

        - ``"codes"``: `transform`, of a transformer only;
        - ``"reconstruction"``: `reconstruct`;
        - ``"scores"``: `score_samples`, and for a detector also `decision_function`
          and `predict`.
    dtype : {"float32", "float64"}, default="float32"
        Type of X, of codes and of reconstructions. Scores are float64 and labels int64.
        Intermediate results are float64 in either case.

    Raises
    ------
    ImportError
        If onnx or onnxscript is not installed.
    TypeError
        If `estimator` is not an autoencoder of skae.
    NotFittedError
        If it is not fitted.
    ValueError
        If it does not have this output, contains a custom module that cannot be
        expressed in ONNX, or has categories that are numbers which `dtype` cannot
        distinguish.

    See Also
    --------
    save : Save the estimator itself.
    register_skl2onnx : Export pipelines.

    Notes
    -----
    The metadata of the file hold the version of skae (``"skae"``), the class of the
    estimator (``"estimator"``) and, if the estimator has `feature_names_in_`, these
    names as a JSON list (``"feature_names"``). With categorical features, they hold the
    categories of each feature as a JSON list, null for features of numbers
    (``"categories"``). In X and in reconstructions, numbers and truth values stand for
    themselves; if a feature has other categories, the position in this list stands for
    each of them. Any other number is a category that no training row has.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> import onnxruntime
    >>> import skae
    >>> from sklearn.datasets import load_iris
    >>> X = load_iris().data.astype(np.float32)
    >>> detector = skae.AutoencoderOutlierDetector(max_epochs=5, random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "iris.onnx"
    ...     skae.export_onnx(detector, path, output="scores")
    ...     session = onnxruntime.InferenceSession(path)
    >>> (labels,) = session.run(["predict"], {"X": X})
    >>> bool((labels == detector.predict(X)).all())
    True
    """
    _check_installed("onnx", "onnxscript")
    from skae.onnx._graph import build_model

    if not isinstance(estimator, BaseAutoencoder):
        raise TypeError(
            "estimator must be an AutoencoderTransformer or an "
            f"AutoencoderOutlierDetector, got {estimator!r}. To export a Pipeline, use "
            "skl2onnx, see skae.export.register_skl2onnx."
        )
    check_is_fitted(estimator)
    methods = _resolve_methods(estimator, output)
    if dtype not in ("float32", "float64"):
        raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}.")
    model = build_model(estimator, methods, dtype)
    replace_file(Path(path), model.SerializeToString())


def register_skl2onnx() -> None:
    """Register converters with skl2onnx for pipelines that contain an autoencoder.

    A transformer is converted to `transform`. A detector at the end of a pipeline has
    the same outputs as an `IsolationForest`: ``"label"``, the result of `predict`, and
    ``"scores"``, the result of `decision_function`, both of shape (n_samples, 1).

    Raises
    ------
    ImportError
        If skl2onnx, onnx or onnxscript is not installed.

    See Also
    --------
    export_onnx : Export an estimator alone, with any of its outputs.

    Notes
    -----
    The steps before the autoencoder compute in the type of the rows that are passed to
    skl2onnx. Pass rows of float64 for float64.

    Examples
    --------
    >>> import skae.export
    >>> import skl2onnx
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> X = load_iris().data
    >>> ae = skae.AutoencoderTransformer(1, max_epochs=5, random_state=0)
    >>> pipeline = make_pipeline(StandardScaler(), ae).fit(X)
    >>> skae.export.register_skl2onnx()
    >>> model = skl2onnx.to_onnx(pipeline, X[:1])
    >>> model.graph.output[0].name
    'variable'
    """
    _check_installed("onnx", "onnxscript", "skl2onnx")
    from skl2onnx import update_registered_converter

    from skae.onnx._pipeline import convert, set_output_shapes

    for kind in (AutoencoderTransformer, AutoencoderOutlierDetector):
        update_registered_converter(
            kind, f"Skae{kind.__name__}", set_output_shapes, convert
        )


def _check_installed(*names: str) -> None:
    """Raise ImportError for the first of these packages that is not installed."""
    for name in names:
        try:
            import_module(name)
        except ImportError as error:
            raise ImportError(
                f'{name} is needed to export to ONNX: pip install "skae[onnx]".'
            ) from error


def _resolve_methods(estimator: BaseAutoencoder, output: str) -> list[str]:
    """Return the methods of the estimator that `output` stands for."""
    allowed = {
        name: [method for method in methods if hasattr(estimator, method)]
        for name, methods in METHODS.items()
    }
    if not allowed.get(output):
        names = [name for name, methods in allowed.items() if methods]
        raise ValueError(
            f"output must be one of {names} for {type(estimator).__name__}, got "
            f"{output!r}."
        )
    return allowed[output]
