"""Measure the difference between ONNX graphs and their estimators.

Over all losses and errors, on rows with binary columns that are determined by two
components, so that outputs saturate, on incomplete rows and on rows unlike the training
rows. From the repository root, with the package and its extra onnx installed::

    python benchmarks/graphs.py
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnxruntime

from skae import AutoencoderOutlierDetector, AutoencoderTransformer, export
from skae._base import BaseAutoencoder
from skae.losses import LOSSES
from skae.onnx._graph import build_model


def main() -> None:
    for dtype in ("float32", "float64"):
        print(f"{dtype}: largest difference {largest_difference(dtype):.1e}")


def largest_difference(dtype: str) -> float:
    """Return it for all outputs, in units of the largest value of a row."""
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(200, 2))
    binary, entries = (Z @ rng.normal(size=(2, 4)) for _ in range(2))
    X = np.hstack([binary > 0, entries.clip(0, 1)])
    return max(
        difference(estimator.fit(X), X.astype(dtype))
        for loss in LOSSES
        for estimator in estimators(loss)
    )


def estimators(loss: str) -> Iterator[BaseAutoencoder]:
    settings = {"loss": loss, "max_epochs": 60, "n_threads": 1, "random_state": 0}
    yield AutoencoderTransformer(2, **settings)
    for error in ("loss", "log"):
        yield AutoencoderOutlierDetector(2, error=error, n_estimators=1, **settings)


def difference(estimator: BaseAutoencoder, X: np.ndarray) -> float:
    """Compare the results on rows X, incomplete ones and unusual ones."""
    incomplete = np.where(np.random.default_rng(0).random(X.shape) < 0.3, np.nan, X)
    rows = np.vstack([X, incomplete, 1 - X, 3 * X - 1, 1e6 * X])
    methods = [
        method
        for each in export.METHODS.values()
        for method in each
        if hasattr(estimator, method)
    ]
    model = build_model(estimator, methods, X.dtype.name)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    largest = 0.0
    for method, values in zip(methods, session.run(methods, {"X": rows}), strict=True):
        expected = getattr(estimator, method)(rows)
        scale = np.abs(expected).max(axis=-1, keepdims=True)
        largest = max(largest, float(np.max(np.abs(values - expected) / scale)))
    return largest


if __name__ == "__main__":
    main()
