"""Operators that ONNX or onnxruntime lacks in float64, made of those it has.

Each function is called while a graph of PyTorch is translated, with the arguments of
the operator that it stands for, and adds its nodes to the ONNX graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxscript import opset18 as op

# The error function is tabulated at so many points of a unit, up to where it is one.
POINTS, END = 64, 6
ERF = np.array([math.erf(i / POINTS) for i in range(END * POINTS + 1)])

# Operators for which onnxruntime has no kernel in float64; they run in float32.
SINGLE = frozenset(
    {"Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cosh", "Sinh", "Tan"}
    | {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"}
    | {"GRU", "InstanceNormalization", "LSTM", "RNN"}
)

# Position of the one input of theirs that holds integers, the lengths of sequences.
INTEGER_INPUT = 4


def translations() -> dict[Any, Callable[..., Any]]:
    """What stands for which operator of PyTorch."""
    aten = torch.ops.aten
    return {
        aten.erf.default: erf,
        aten.gelu.default: gelu,
        aten.linalg_solve_ex.default: solve,
        aten._cdist_forward.default: distances,
        aten.conv1d.default: convolution,
        aten.conv2d.default: convolution,
        aten.conv3d.default: convolution,
        aten.convolution.default: general_convolution,
        aten.scalar_tensor.default: scalar_tensor,
        aten.full_like.default: full_like,
    }


def erf(self: Any) -> Any:
    r"""The error function, to 1e-13.

    Its Taylor series of five terms around the nearest point a of a table,

    .. math:: \operatorname{erf}(a + d) = \operatorname{erf}(a)
        + \frac{2}{\sqrt\pi} e^{-a^2} d \left(1 - a d + \frac{2 a^2 - 1}{3} d^2
        + \frac{a (3 - 2 a^2)}{6} d^3 + \frac{4 a^4 - 12 a^2 + 3}{30} d^4\right).
    """
    size = op.Min(op.Abs(self), _constant(float(END)))
    nearest = op.Round(_product(size, float(POINTS)))
    a = _product(nearest, 1 / POINTS)
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
    # A NaN has no place in the table; d makes a NaN of it again.
    place = op.Where(op.IsNaN(nearest), _constant(0.0), nearest)
    position: Any = op.Cast(place, to=TensorProto.INT64)
    at_a = op.Gather(_constant(ERF), position)
    return _product(op.Sign(self), _sum(at_a, _product(slope, d, series)))


def gelu(self: Any, approximate: str = "none") -> Any:
    """x times the normal distribution's share below x."""
    if approximate == "tanh":
        cubic = _sum(self, _product(self, self, self, 0.044715))
        share = op.Tanh(_product(cubic, math.sqrt(2 / math.pi)))
    else:
        share = erf(_product(self, math.sqrt(0.5)))
    return _product(self, _sum(share, 1.0), 0.5)


def solve(
    A: Any, B: Any, left: bool = True, check_errors: bool = False
) -> tuple[Any, Any]:
    """A^-1 B by Gauss and Jordan, for matrices A that are positive definite.

    They need no pivots. Each pass clears the first column of [A, B], drops it, and
    puts the first row last.
    """
    k = A.shape[-1]
    M = op.Concat(A, B, axis=2)
    for _ in range(k):
        first = op.Slice(M, _ints(0), _ints(1), _ints(1))
        row = op.Div(first, op.Slice(first, _ints(0), _ints(1), _ints(2)))
        column = op.Slice(M, _ints(0), _ints(1), _ints(2))
        cleared = op.Sub(M, op.Mul(column, row))
        others = op.Slice(cleared, _ints(1), _ints(k), _ints(1))
        M = op.Concat(others, row, axis=1)
        M = op.Slice(M, _ints(1), _ints(np.iinfo(np.int64).max), _ints(2))
    return M, _ints(0)


def distances(x1: Any, x2: Any, p: float, compute_mode: int | None = None) -> Any:
    """Euclidean distances between the rows of two batches of matrices."""
    if p != 2:  # only a module of the user's has it; export_onnx tells it as its cause
        raise NotImplementedError(f"cdist with p={p}")
    apart = op.Sub(op.Unsqueeze(x1, _ints(-2)), op.Unsqueeze(x2, _ints(-3)))
    return op.Sqrt(op.ReduceSum(op.Mul(apart, apart), _ints(-1), keepdims=0))


def convolution(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Any:
    """A convolution along any number of axes."""
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
    """A convolution, perhaps transposed: a product of matrices for each tap."""
    n_channels, *sizes = input.shape[1:]
    lost = output_padding if transposed else None
    table, out_sizes = taps(sizes, weight.shape[2:], stride, padding, dilation, lost)
    n_taps, n_outputs = table.shape
    H = op.Reshape(input, _ints(-1, n_channels, math.prod(sizes)))
    H = op.Transpose(H, perm=[2, 0, 1])  # (positions, n_samples, channels)
    H = op.Pad(H, _ints(0, 0, 0, 1, 0, 0))  # zeros, for what lies outside
    H = op.Gather(H, _constant(table))  # (taps, outputs, n_samples, channels)
    H = op.Reshape(H, _ints(n_taps, -1, n_channels))
    K = op.Reshape(weight, _ints(*weight.shape[:2], n_taps))
    K = op.Transpose(K, perm=[2, 0, 1] if transposed else [2, 1, 0])  # (taps, in, out)
    n_out = weight.shape[1] * groups if transposed else weight.shape[0]
    parts = []
    for group in range(groups):
        own_H = _part(H, 2, group, n_channels // groups)
        own_K = (
            _part(K, 1, group, n_channels // groups)
            if transposed
            else _part(K, 2, group, n_out // groups)
        )
        parts.append(op.ReduceSum(op.MatMul(own_H, own_K), _ints(0), keepdims=0))
    H = op.Concat(*parts, axis=1)  # (outputs * n_samples, channels)
    if bias is not None:
        H = op.Add(H, bias)
    H = op.Reshape(H, _ints(n_outputs, -1, n_out))
    H = op.Transpose(H, perm=[1, 2, 0])
    return op.Reshape(H, _ints(-1, n_out, *out_sizes))


def scalar_tensor(s: float, dtype: int, **others: Any) -> Any:
    """A number, which PyTorch would write with the precision of float32."""
    return _constant(np.array(s, helper.tensor_dtype_to_np_dtype(dtype)))


def full_like(
    self: Any, fill_value: float, dtype: int | None = None, **others: Any
) -> Any:
    """A number in the shape of another tensor."""
    value = _constant(np.float64(fill_value))
    like: Any = op.CastLike(value, self) if dtype is None else op.Cast(value, to=dtype)
    return op.Expand(like, op.Shape(self))


def taps(
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int] | None,
) -> tuple[np.ndarray, list[int]]:
    """Which position of its input each output of a convolution meets under each tap.

    Parameters
    ----------
    sizes, kernel : sequence of int
        Of the input and of the kernel, along each axis.
    stride, padding, dilation : sequence of int
        A number for each axis, or one for all.
    output_padding : sequence of int or None
        None unless the convolution is transposed.

    Returns
    -------
    table : ndarray of int of shape (n_taps, n_outputs)
        Where there is no such position, their number.
    out_sizes : list of int
    """
    out_sizes = []
    table = np.zeros((1, 1), dtype=np.int64)
    for axis, (n, k) in enumerate(zip(sizes, kernel, strict=True)):
        s, p, d = (v[axis % len(v)] for v in (stride, padding, dilation))
        offset = d * np.arange(k)[:, None] - p
        if output_padding is None:
            out_sizes.append((n + 2 * p - d * (k - 1) - 1) // s + 1)
            at = np.arange(out_sizes[-1]) * s + offset
        else:
            lost = output_padding[axis % len(output_padding)]
            out_sizes.append((n - 1) * s - 2 * p + d * (k - 1) + lost + 1)
            at, between = np.divmod(np.arange(out_sizes[-1]) - offset, s)
            at = np.where(between == 0, at, -1)
        at = np.where((at >= 0) & (at < n), at, -math.prod(sizes))
        table = table[:, None, :, None] * n + at[:, None, :]
        table = table.reshape(-1, math.prod(out_sizes))
    return np.where(table < 0, math.prod(sizes), table), out_sizes


def _constant(value: Any) -> Any:
    return op.Constant(value=numpy_helper.from_array(np.asarray(value)))


def _ints(*values: int) -> Any:
    return _constant(np.array(values, dtype=np.int64))


def _value(value: Any) -> Any:
    return _constant(value) if isinstance(value, float) else value


def _product(first: Any, *factors: Any) -> Any:
    for factor in factors:
        first = op.Mul(first, _value(factor))
    return first


def _sum(first: Any, second: Any) -> Any:
    return op.Add(first, _value(second))


def _part(values: Any, axis: int, i: int, size: int) -> Any:
    """Of parts of this size along an axis, the i-th."""
    if values.shape is not None and values.shape[axis] == size:
        return values
    return op.Slice(values, _ints(i * size), _ints((i + 1) * size), _ints(axis))
