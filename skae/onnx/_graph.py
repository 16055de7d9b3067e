"""ONNX models of fitted estimators."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, compose, helper, numpy_helper

from skae._base import BaseAutoencoder
from skae._generator import isolated_generator
from skae._processor import own_settings
from skae._refine import steps_of_rounds
from skae._version import __version__
from skae.onnx._modules import (
    REFINEMENT,
    OutputModule,
    RefinementRound,
    TraceableAutoencoder,
)
from skae.onnx._operators import FLOAT32_ONLY, SEQUENCE_LENGTHS_INPUT
from skae.onnx._trace import OPSET, trace


@own_settings()
def build_model(
    estimator: BaseAutoencoder, methods: Sequence[str], dtype: str
) -> onnx.ModelProto:
    """Build the ONNX model of some methods of a fitted estimator.

    Parameters
    ----------
    estimator : BaseAutoencoder
        The fitted estimator.
    methods : sequence of str
        Methods whose results are the outputs, in this order and with these names.
    dtype : {"float32", "float64"}
        Type of the input ``"X"``, of codes and of reconstructions.

    Returns
    -------
    model : onnx.ModelProto
        Checked model with the metadata of the estimator.
    """
    autoencoder = TraceableAutoencoder.from_estimator(estimator)
    module = OutputModule(
        autoencoder,
        methods,
        getattr(estimator, "offset_", 0.0),
        estimator._empty_row_score,
        getattr(torch, dtype),
        estimator._whitening,
        estimator._trained.categories,
    )
    # PyTorch specializes a graph for a single row, so there must be more than one.
    rows = torch.zeros(3, estimator.n_features_in_, dtype=module.dtype)
    with (
        torch.no_grad(),
        isolated_generator(autoencoder.draws_globally, 0, torch.device("cpu")),
    ):
        model = trace(module, (rows,), ["X"], methods)
        nodes = [node for node in model.graph.node if node.op_type == REFINEMENT]
        if nodes:
            args = autoencoder.example_round_inputs(module.columns_of(rows))
            body = trace(RefinementRound(autoencoder), args).graph
            n_rounds = len(
                steps_of_rounds(autoencoder.max_refinements, autoencoder.n_components)
            )
            for node in nodes:
                _replace_by_loop(model.graph, node, body, n_rounds)
    _fold_constant_casts(model.graph)
    _insert_float32_casts(model.graph)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n_samples"
    model = helper.make_model(
        model.graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=model.ir_version,
        producer_name="skae",
        producer_version=__version__,
    )
    helper.set_model_props(model, _metadata(estimator))
    onnx.checker.check_model(model, full_check=True)
    return model


def _metadata(estimator: BaseAutoencoder) -> dict[str, str]:
    """Return the metadata of the file, see the notes of `skae.export_onnx`."""
    metadata = {"skae": __version__, "estimator": type(estimator).__name__}
    names = getattr(estimator, "feature_names_in_", None)
    if names is not None:
        metadata["feature_names"] = json.dumps(list(names))
    categories = estimator._trained.categories
    if categories is not None:
        metadata["categories"] = json.dumps(categories.levels)
    return metadata


def _replace_by_loop(graph: Any, node: Any, body: Any, n_iter: int) -> None:
    """Replace a node of `graph` by a loop over the graph `body`.

    The inputs of the node are the inputs of the first iteration, its output is the
    first output of the last one. The outputs of an iteration are the inputs of the next
    one.
    """
    (result,) = node.output
    prefix = f"{result}_"
    body = compose.add_prefix_graph(body, prefix)
    # An ONNX loop passes the iteration number and a condition to its body, which
    # returns the condition for the next iteration.
    iteration = helper.make_tensor_value_info(
        f"{prefix}iteration", TensorProto.INT64, []
    )
    condition = helper.make_tensor_value_info(
        f"{prefix}condition", TensorProto.BOOL, []
    )
    next_condition = helper.make_tensor_value_info(
        f"{prefix}next_condition", TensorProto.BOOL, []
    )
    # The initializers are copied into the body, since skl2onnx does not resolve names
    # of the outer graph.
    body = helper.make_graph(
        [
            *body.node,
            helper.make_node("Identity", [condition.name], [next_condition.name]),
        ],
        f"{prefix}body",
        [iteration, condition, *body.input],
        [next_condition, *body.output],
        body.initializer,
    )
    count = numpy_helper.from_array(np.array(n_iter), f"{prefix}count")
    start = numpy_helper.from_array(np.array(True), f"{prefix}start")
    graph.initializer.extend([count, start])
    loop = helper.make_node(
        "Loop",
        [count.name, start.name, *node.input],
        [result, *(f"{prefix}last_{i}" for i in range(1, len(node.input)))],
        body=body,
    )
    position = list(graph.node).index(node)
    graph.node.remove(node)
    graph.node.insert(position, loop)


def _fold_constant_casts(graph: Any) -> None:
    """Replace casts of a constant to the type of another constant by their result.

    onnxruntime warns about each of them, and about constants without any use, when it
    loads the graph.
    """
    constants = {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    for node in graph.node:
        if node.op_type == "CastLike" and constants.keys() >= set(node.input):
            value, like = (constants[name] for name in node.input)
            tensor = numpy_helper.from_array(value.astype(like.dtype))
            (result,) = node.output
            node.CopyFrom(helper.make_node("Constant", [], [result], value=tensor))
    used = {name for node in graph.node for name in node.input}
    used.update(value.name for value in graph.output)
    for node in list(graph.node):
        if node.op_type == "Constant" and node.output[0] not in used:
            graph.node.remove(node)


def _insert_float32_casts(graph: Any) -> None:
    """Insert casts around operators that onnxruntime does not have in float64."""

    def cast(name: str, result: str, dtype: int) -> Any:
        return helper.make_node("Cast", [name], [result], to=dtype)

    nodes = []
    for node in graph.node:
        if node.op_type not in FLOAT32_ONLY:
            nodes.append(node)
            continue
        output_casts = []
        for i, name in enumerate(node.input):
            if name and i != SEQUENCE_LENGTHS_INPUT:
                node.input[i] = f"{node.output[0]}_float32_{i}"
                nodes.append(cast(name, node.input[i], TensorProto.FLOAT))
        for i, name in enumerate(node.output):
            if name:
                node.output[i] = f"{name}_float32"
                output_casts.append(cast(node.output[i], name, TensorProto.DOUBLE))
        nodes.extend([node, *output_casts])
    del graph.node[:]
    graph.node.extend(nodes)
