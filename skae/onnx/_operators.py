"""Operators that ONNX or onnxruntime does not have in float64.

Each function translates one operator of PyTorch. It is called by PyTorch's exporter
with the arguments of that operator, and adds nodes of available operators to the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxscript import opset18 as op

from skae._compat import CDIST_FORWARD

# Table of the error function on [0, ERF_MAX], where erf(ERF_MAX) rounds to 1.
POINTS_PER_UNIT, ERF_MAX = 64, 6
ERF = np.array(
    [math.erf(i / POINTS_PER_UNIT) for i in range(ERF_MAX * POINTS_PER_UNIT + 1)]
)

# Operators for which onnxruntime has no float64 kernel. They are computed in float32.
FLOAT32_ONLY = frozenset(
    {"Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cosh", "Sinh", "Tan"}
    | {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"}
    | {"GRU", "InstanceNormalization", "LSTM", "RNN"}
)

# Position of the only integer input of these operators: the sequence lengths of the
# recurrent layers, which must not be cast.
SEQUENCE_LENGTHS_INPUT = 4


def translation_table() -> dict[Any, Callable[..., Any]]:
    """Return the translations by operator of PyTorch."""
    aten = torch.ops.aten
    return {
        aten.erf.default: erf,
        aten.gelu.default: gelu,
        aten.log_sigmoid.default: log_sigmoid,
        aten.logaddexp.default: logaddexp,
        aten.linalg_solve_ex.default: solve,
        CDIST_FORWARD: distances,
        aten.conv1d.default: convolution,
        aten.conv2d.default: convolution,
        aten.conv3d.default: convolution,
        aten.convolution.default: general_convolution,
        aten.scalar_tensor.default: scalar_tensor,
        aten.full_like.default: full_like,
    }


def erf(self: Any) -> Any:
    r"""Compute the error function to 1e-13.

    The Taylor series of five terms around the nearest point a of a table is

    .. math:: \operatorname{erf}(a + d) = \operatorname{erf}(a)
        + \frac{2}{\sqrt\pi} e^{-a^2} d \left(1 - a d + \frac{2 a^2 - 1}{3} d^2
        + \frac{a (3 - 2 a^2)}{6} d^3 + \frac{4 a^4 - 12 a^2 + 3}{30} d^4\right).
    """
    size = op.Min(op.Abs(self), _constant(float(ERF_MAX)))
    nearest = op.Round(_product(size, float(POINTS_PER_UNIT)))
    a = _product(nearest, 1 / POINTS_PER_UNIT)
    d = op.Sub(size, a)
    square = _product(a, a)
    c_2 = _product(_sum(_product(square, 2.0), -1.0), 1 / 3)
    c_3 = _product(a, _sum(_product(square, -2.0), 3.0), 1 / 6)
    c_4 = _product(
        _sum(_product(square, _sum(_product(square, 4.0), -12.0)), 3.0), 1 / 30
    )
    series = _sum(c_3, _product(d, c_4))
    series = _sum(c_2, _product(d, series))
    series = op.Sub(_product(d, series), a)
    series = _sum(_product(d, series), 1.0)
    slope = _product(op.Exp(op.Neg(square)), 2 / math.sqrt(math.pi))
    # NaN is not a valid index. The result is still NaN, since d is NaN.
    index = op.Where(op.IsNaN(nearest), _constant(0.0), nearest)
    position: Any = op.Cast(index, to=TensorProto.INT64)
    at_a = op.Gather(_constant(ERF), position)
    return _product(op.Sign(self), _sum(at_a, _product(slope, d, series)))


def gelu(self: Any, approximate: str = "none") -> Any:
    """Compute the GELU: x times the standard normal distribution function of x."""
    if approximate == "tanh":
        cubic = _sum(self, _product(self, self, self, 0.044715))
        scaled = op.Tanh(_product(cubic, math.sqrt(2 / math.pi)))
    else:
        scaled = erf(_product(self, math.sqrt(0.5)))
    return _product(self, _sum(scaled, 1.0), 0.5)


def log_sigmoid(self: Any) -> Any:
    r"""Compute the logarithm of the sigmoid.

    .. math:: \log \sigma(x) = \min(x, 0) - \log(1 + e^{-|x|})

    The logarithm of a rounded sigmoid would be -inf for x < -709, and exact up to 1e-2
    only for x = 35.
    """
    return op.Sub(op.Min(self, _constant(0.0)), _log_1_plus_exp_minus(op.Abs(self)))


def logaddexp(self: Any, other: Any) -> Any:
    """Compute log(exp(x) + exp(y)) without overflow."""
    larger = op.Max(self, other)
    difference = op.Abs(op.Sub(self, other))
    # Equal infinities have no difference.
    difference = op.Where(op.IsNaN(difference), _constant(0.0), difference)
    return op.Add(larger, _log_1_plus_exp_minus(difference))


def solve(
    A: Any, B: Any, left: bool = True, check_errors: bool = False
) -> tuple[Any, Any]:
    """Solve AX = B by Gauss-Jordan elimination, for positive definite matrices A.

    No pivoting is needed for these. Each pass eliminates the first column of [A, B],
    removes it, and moves the first row to the end.
    """
    k = A.shape[-1]
    M = op.Concat(A, B, axis=2)
    for _ in range(k):
        first = op.Slice(M, _ints(0), _ints(1), _ints(1))
        row = op.Div(first, op.Slice(first, _ints(0), _ints(1), _ints(2)))
        column = op.Slice(M, _ints(0), _ints(1), _ints(2))
        eliminated = op.Sub(M, op.Mul(column, row))
        others = op.Slice(eliminated, _ints(1), _ints(k), _ints(1))
        M = op.Concat(others, row, axis=1)
        M = op.Slice(M, _ints(1), _ints(np.iinfo(np.int64).max), _ints(2))
    return M, _ints(0)


def distances(x1: Any, x2: Any, p: float, compute_mode: int | None = None) -> Any:
    """Compute Euclidean distances between the rows of two batches of matrices."""
    if p != 2:  # only in modules of users; the message ends up in that of export_onnx
        raise NotImplementedError(f"cdist with p={p}")
    differences = op.Sub(op.Unsqueeze(x1, _ints(-2)), op.Unsqueeze(x2, _ints(-3)))
    return op.Sqrt(
        op.ReduceSum(op.Mul(differences, differences), _ints(-1), keepdims=0)
    )


def convolution(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Any:
    """Compute a convolution along any number of axes."""
    return general_convolution(
        input, weight, bias, stride, padding, dilation, False, (0,), groups
    )


def general_convolution(
    input: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    """Compute a convolution or transposed convolution, one matrix product per tap.

    A tap is one position of the kernel.
    """
    n_channels, *sizes = input.shape[1:]
    table, out_sizes = input_positions(
        sizes,
        weight.shape[2:],
        stride,
        padding,
        dilation,
        output_padding if transposed else None,
    )
    n_taps, n_outputs = table.shape
    H = op.Reshape(input, _ints(-1, n_channels, math.prod(sizes)))
    H = op.Transpose(H, perm=[2, 0, 1])  # (positions, n_samples, channels)
    H = op.Pad(H, _ints(0, 0, 0, 1, 0, 0))  # a last position of zeros, for the padding
    H = op.Gather(H, _constant(table))  # (taps, outputs, n_samples, channels)
    H = op.Reshape(H, _ints(n_taps, -1, n_channels))
    K = op.Reshape(weight, _ints(*weight.shape[:2], n_taps))
    K = op.Transpose(K, perm=[2, 0, 1] if transposed else [2, 1, 0])  # (taps, in, out)
    n_out = weight.shape[1] * groups if transposed else weight.shape[0]
    outputs = []
    for group in range(groups):
        H_group = _slice_group(H, 2, group, n_channels // groups)
        K_group = (
            _slice_group(K, 1, group, n_channels // groups)
            if transposed
            else _slice_group(K, 2, group, n_out // groups)
        )
        outputs.append(op.ReduceSum(op.MatMul(H_group, K_group), _ints(0), keepdims=0))
    H = op.Concat(*outputs, axis=1)  # (outputs * n_samples, channels)
    if bias is not None:
        H = op.Add(H, bias)
    H = op.Reshape(H, _ints(n_outputs, -1, n_out))
    H = op.Transpose(H, perm=[1, 2, 0])
    return op.Reshape(H, _ints(-1, n_out, *out_sizes))


def scalar_tensor(s: float, dtype: int, **kwargs: Any) -> Any:
    """Return a constant, which PyTorch's own translation would round to float32."""
    return _constant(np.array(s, helper.tensor_dtype_to_np_dtype(dtype)))


def full_like(
    self: Any, fill_value: float, dtype: int | None = None, **kwargs: Any
) -> Any:
    """Return a constant in the shape of another tensor."""
    value = _constant(np.float64(fill_value))
    like: Any = op.CastLike(value, self) if dtype is None else op.Cast(value, to=dtype)
    return op.Expand(like, op.Shape(self))


def input_positions(
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int] | None,
) -> tuple[np.ndarray, list[int]]:
    """Compute the input position that each tap of a convolution reads for each output.

    Parameters
    ----------
    sizes : sequence of int
        Size of the input along each axis.
    kernel : sequence of int
        Size of the kernel along each axis.
    stride, padding, dilation : sequence of int
        One value for each axis, or a single value for all axes.
    output_padding : sequence of int or None
        Output padding of a transposed convolution, None for a convolution that is not
        transposed.

    Returns
    -------
    table : ndarray of int of shape (n_taps, n_outputs)
        Flat positions in the input. In the padding, the number of input positions,
        `prod(sizes)`.
    out_sizes : list of int
        Size of the output along each axis.
    """
    out_sizes = []
    table = np.zeros((1, 1), dtype=np.int64)
    for axis, (n, k) in enumerate(zip(sizes, kernel, strict=True)):
        s, p, d = (v[axis % len(v)] for v in (stride, padding, dilation))
        offset = d * np.arange(k)[:, None] - p
        if output_padding is None:
            out_sizes.append((n + 2 * p - d * (k - 1) - 1) // s + 1)
            position = np.arange(out_sizes[-1]) * s + offset
        else:
            extra = output_padding[axis % len(output_padding)]
            out_sizes.append((n - 1) * s - 2 * p + d * (k - 1) + extra + 1)
            position, remainder = np.divmod(np.arange(out_sizes[-1]) - offset, s)
            position = np.where(remainder == 0, position, -1)
        # In the padding: negative enough that the flat position is negative, too.
        is_inside = (position >= 0) & (position < n)
        position = np.where(is_inside, position, -math.prod(sizes))
        table = table[:, None, :, None] * n + position[:, None, :]
        table = table.reshape(-1, math.prod(out_sizes))
    return np.where(table < 0, math.prod(sizes), table), out_sizes


def _constant(value: Any) -> Any:
    """Add a constant node."""
    return op.Constant(value=numpy_helper.from_array(np.asarray(value)))


def _ints(*values: int) -> Any:
    """Add a constant one-dimensional tensor of integers."""
    return _constant(np.array(values, dtype=np.int64))


def _operand(value: Any) -> Any:
    """Convert a float to a constant; return a node unchanged."""
    return _constant(value) if isinstance(value, float) else value


def _log_1_plus_exp_minus(x: Any) -> Any:
    """Compute log(1 + exp(-x)) for x >= 0."""
    return op.Log(_sum(op.Exp(op.Neg(x)), 1.0))


def _product(first: Any, *factors: Any) -> Any:
    """Multiply nodes or floats elementwise; the first is a node."""
    for factor in factors:
        first = op.Mul(first, _operand(factor))
    return first


def _sum(first: Any, second: Any) -> Any:
    """Add a node or a float to a node."""
    return op.Add(first, _operand(second))


def _slice_group(values: Any, axis: int, i: int, size: int) -> Any:
    """Return the i-th group of `size` entries along an axis."""
    if values.shape is not None and values.shape[axis] == size:
        return values
    return op.Slice(values, _ints(i * size), _ints((i + 1) * size), _ints(axis))
