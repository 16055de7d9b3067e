"""ONNX graphs of fitted estimators. The public functions are in `skae.export`."""
