"""Translation of a PyTorch module to ONNX."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from onnx import inliner
from torch import Tensor, nn

from skae.onnx._operators import translation_table

# For later operator sets onnxruntime lacks float64 kernels, such as that of Softplus.
OPSET = 18


def trace(
    module: nn.Module,
    args: tuple[Tensor, ...],
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Any:
    """Translate a module to an ONNX model for any number of rows.

    Parameters
    ----------
    module : nn.Module
        The module.
    args : tuple of Tensor
        Example inputs. The first dimension of each is the number of rows, >= 2, since
        PyTorch specializes a graph for a dimension of 1.
    input_names, output_names : sequence of str or None
        Names of the inputs and outputs of the graph.

    Returns
    -------
    model : onnx.ModelProto

    Raises
    ------
    ValueError
        If the module cannot be expressed in ONNX.
    """
    n_samples = torch.export.Dim("n_samples")
    try:
        with _silence_torch():
            program = torch.export.export(
                module,
                args,
                dynamic_shapes=tuple({0: n_samples} for _ in args),
                strict=False,
            )
            exported: Any = torch.onnx.export(
                program,
                dynamo=True,
                input_names=input_names,
                output_names=output_names,
                opset_version=OPSET,
                custom_translation_table=translation_table(),
                optimize=False,  # runtimes optimize graphs themselves, in less time
                verbose=False,
            )
    except Exception as error:
        raise ValueError(
            "The network, or another part of the estimator, cannot be expressed in "
            f"ONNX for any number of rows: {_root_cause(error)}"
        ) from error
    return inliner.inline_local_functions(exported.model_proto)


def _root_cause(error: BaseException) -> str:
    """Return the first line of the message of the error that caused all others."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0]


@contextmanager
def _silence_torch() -> Iterator[None]:
    """Suppress the output, the warnings and the log messages of PyTorch's exporter."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    discarded = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(discarded):
            warnings.simplefilter("ignore")
            with redirect_stderr(discarded):
                yield
    finally:
        logger.setLevel(level)
