"""Converters of autoencoders in pipelines, called by skl2onnx."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, compose, helper, numpy_helper
from skl2onnx.common.data_types import (
    DoubleTensorType,
    Int64TensorType,
    guess_tensor_type,
)

from skae.onnx._graph import build_model
from skae.onnx._trace import OPSET
from skae.transformer import AutoencoderTransformer


def set_output_shapes(operator: Any) -> None:
    """Set the shapes and types of the outputs of a skl2onnx operator."""
    estimator = operator.raw_operator
    n_samples = operator.inputs[0].get_first_dimension()
    result = guess_tensor_type(operator.inputs[0].type)
    if isinstance(estimator, AutoencoderTransformer):
        result.shape = [n_samples, estimator.n_components_]
        operator.outputs[0].type = result
    else:
        result.shape = [n_samples, 1]
        operator.outputs[0].type = Int64TensorType([n_samples, 1])
        operator.outputs[1].type = result


def convert(scope: Any, operator: Any, container: Any) -> None:
    """Add the graph of an autoencoder to the graph of its pipeline.

    The arguments are those that skl2onnx passes to a converter.
    """
    if container.target_opset < OPSET:
        raise ValueError(
            f"target_opset={container.target_opset} is too low for an autoencoder, "
            f"which needs {OPSET} or more."
        )
    estimator = operator.raw_operator
    is_double = isinstance(operator.inputs[0].type, DoubleTensorType)
    dtype, onnx_dtype = (
        ("float64", TensorProto.DOUBLE) if is_double else ("float32", TensorProto.FLOAT)
    )
    is_transformer = isinstance(estimator, AutoencoderTransformer)
    methods = ["transform"] if is_transformer else ["predict", "decision_function"]
    prefix = scope.get_unique_operator_name("skae") + "_"
    model = build_model(estimator, methods, dtype)
    graph = compose.add_prefix_graph(model.graph, prefix)

    def add(op_type: str, inputs: list[str], output: str, **attributes: Any) -> None:
        node = helper.make_node(op_type, inputs, [output], **attributes)
        container.nodes.append(node)

    add("Identity", [operator.inputs[0].full_name], f"{prefix}X")
    container.nodes.extend(graph.node)
    container.initializers.extend(graph.initializer)
    container.node_domain_version_pair_sets.add(("", OPSET))
    names = [output.full_name for output in operator.outputs]
    if is_transformer:
        add("Identity", [f"{prefix}transform"], names[0])
        return
    column_shape = numpy_helper.from_array(np.array([-1, 1]), f"{prefix}column_shape")
    container.initializers.append(column_shape)
    add("Cast", [f"{prefix}decision_function"], f"{prefix}scores", to=onnx_dtype)
    results = (f"{prefix}predict", f"{prefix}scores")
    for result, name in zip(results, names, strict=True):
        add("Reshape", [result, column_shape.name], name)
