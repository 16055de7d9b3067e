"""Matrix products by the library that computes them fastest on this processor.

PyTorch multiplies by one library, on x86 processors by Intel's MKL. Two others are at
hand: oneDNN, which is a part of PyTorch, and the BLAS of NumPy, usually OpenBLAS, on
the same memory. Which one is fastest depends on the processor, and on the sizes and
strides of the matrices. `RULES` states which one is chosen. The choice depends on
nothing else, so that a machine always computes the same numbers; no times are measured.

The results of the libraries agree up to rounding. `use`, or the environment variable
``SKAE_PRODUCTS``, choose one library for all products.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_info
from torch import Tensor

from skae._compat import LINEAR_POINTWISE

# A function without arguments that computes a product, or adds a bias to it.
Call = Callable[[], Any]

# Environment variable that sets the initial choice, also in processes of joblib.
VARIABLE = "SKAE_PRODUCTS"

# Kernels of OpenBLAS that use fused multiplications on vectors. OpenBLAS chooses older
# ones if the environment variable OPENBLAS_CORETYPE demands them.
FAST_KERNELS = {"haswell", "zen", "skylakex", "cooperlake", "sapphirerapids"}

# Number of multiplications up to which OpenBLAS computes a product of matrices, and one
# with a vector, in one thread.
SERIAL_WORK, SERIAL_VECTOR_WORK = 2**18, 2**13


class Library(NamedTuple):
    """A library that multiplies matrices.

    Attributes
    ----------
    is_available : callable
        Whether it can be used in this process.
    supports : callable
        Whether it can multiply two matrices, or stacks of matrices.
    bind : callable
        Called with `out`, `A`, `B` and `bias`, see `bind`.
    """

    is_available: Callable[[], bool]
    supports: Callable[[Tensor, Tensor], bool]
    bind: Callable[[Tensor, Tensor, Tensor, Tensor | None], list[Call]]


class Rule(NamedTuple):
    """Products for which one library is chosen, on one kind of processor.

    Attributes
    ----------
    library : str
        Key of `LIBRARIES`.
    max_work : float
        Largest number of multiplications.
    is_transposed : bool or None, default=None
        Whether the columns of the second factor are contiguous, as in
        ``X @ weight.mT``, rather than its rows; None means either.
    max_columns : float, default=inf
        Largest number of columns of the second factor.
    max_stack : float, default=inf
        Largest number of matrices that are multiplied in one call.
    dtype : torch.dtype or None, default=None
        Type of the factors; None means any.
    """

    library: str
    max_work: float
    is_transposed: bool | None = None
    max_columns: float = math.inf
    max_stack: float = math.inf
    dtype: torch.dtype | None = None

    def applies(self, A: Tensor, B: Tensor) -> bool:
        """Whether the rule is for this product."""
        *stack, _, n_columns = B.shape
        return (
            self.is_transposed in (None, B.stride(-1) != 1 and n_columns > 1)
            and _work(A, B) <= self.max_work
            and n_columns <= self.max_columns
            and math.prod(stack) <= self.max_stack
            and self.dtype in (None, B.dtype)
        )


# The first rule that applies is taken, and PyTorch's own product if none does.
#
# Measured on an AMD EPYC of the Zen 4 generation, one thread, with products of 16 to
# 512 rows and columns. A call of NumPy takes 0.4 us less than one of PyTorch. In
# addition, with kernels for AVX-512 and in float32, OpenBLAS takes between 0.4 and 0.8
# of the time of MKL up to 2**18 multiplications; above 2**19 the times are equal. If
# the second factor is transposed, it is slower above 2**14. Up to 8 columns it takes
# less than half of the time of MKL, and for stacks of matrices in float64 between 0.25
# and 0.9. With kernels for AVX2 it is at least as fast as MKL up to 2**16. On Zen 5,
# MKL reaches half of the rate of the processor (128 x 784 x 128: 241 us, OpenBLAS 124,
# oneDNN 120). On processors of Intel, MKL uses AVX-512, and only the overhead of a call
# is saved.
RULES: dict[str, list[Rule]] = {
    "zen5": [
        Rule("numpy", math.inf, is_transposed=False),
        Rule("numpy", 2**20, is_transposed=True, max_stack=1),
        Rule("onednn", math.inf, is_transposed=True),
    ],
    "zen4": [
        Rule("numpy", math.inf, is_transposed=False, max_columns=8),
        Rule("numpy", math.inf, is_transposed=False, dtype=torch.float64),
        Rule("numpy", 2**19, is_transposed=False, max_columns=256),
        Rule("numpy", 2**20, is_transposed=True, max_columns=8),
        Rule("numpy", 2**14, is_transposed=True, max_stack=1),
    ],
    "zen": [
        Rule("numpy", 2**20, max_columns=8),
        Rule("numpy", 2**16, is_transposed=False),
        Rule("numpy", 2**15, is_transposed=True, max_stack=1),
    ],
    "x86": [Rule("numpy", 2**14, max_stack=1)],
    "other": [],
}


@contextmanager
def use(library: str) -> Iterator[None]:
    """Context in which one library computes all products that it can compute.

    It applies to the thread that enters it, and to steps that are recorded in it.

    Parameters
    ----------
    library : {"auto", "torch", "onednn", "numpy"}
        ``"auto"`` chooses by `RULES`.

    Raises
    ------
    ValueError
        If there is no such library, or if it is not available in this process.

    Examples
    --------
    >>> import numpy as np
    >>> from skae import AutoencoderTransformer
    >>> from skae.engine import products
    >>> X = np.random.default_rng(0).normal(size=(200, 5))
    >>> with products.use("torch"):
    ...     model = AutoencoderTransformer(2, max_epochs=5, random_state=0).fit(X)
    """
    token = _CHOICE.set(_checked("library", library))
    try:
        yield
    finally:
        _CHOICE.reset(token)


def choose(A: Tensor, B: Tensor) -> str:
    """Return the library for the product of two matrices, or of stacks of them.

    Parameters
    ----------
    A : Tensor of shape (..., m, k)
    B : Tensor of shape (..., k, n)

    Returns
    -------
    library : str
        Key of `LIBRARIES`.
    """
    if not _is_ordinary(A, B):
        return "torch"
    library = chosen()
    if library == "auto":
        library = _by_rule(A, B)
    return library if LIBRARIES[library].supports(A, B) else "torch"


def bind(out: Tensor, A: Tensor, B: Tensor, bias: Tensor | None = None) -> list[Call]:
    """Return functions that write a product, plus a bias, into `out`.

    Parameters
    ----------
    out : Tensor of shape (..., m, n)
    A : Tensor of shape (..., m, k)
    B : Tensor of shape (..., k, n)
    bias : Tensor, default=None
        Of a shape that can be broadcast to that of `out`. None means no bias.

    Returns
    -------
    calls : list of callable
        To be called in this order, without arguments.
    """
    return LIBRARIES[choose(A, B)].bind(out, A, B, bias)


def multiply(A: Tensor, B: Tensor, bias: Tensor) -> Tensor:
    """Return a product plus a bias; no gradients are tracked.

    Parameters
    ----------
    A : Tensor of shape (..., m, k)
    B : Tensor of shape (..., k, n)
    bias : Tensor
        Of a shape that can be broadcast to that of the product.

    Returns
    -------
    product : Tensor of shape (..., m, n)
    """
    A, B = A.detach(), B.detach()
    out = A.new_empty(*A.shape[:-1], B.shape[-1])
    library = choose(A, B)
    parts = _parts(out, A, B) if library == "numpy" else [(out, A, B)]
    for part in parts:
        for call in LIBRARIES[library].bind(*part, None):
            call()
    return out.add_(bias.detach())


def chosen() -> str:
    """Return the library that `use` or the environment have chosen, or ``"auto"``."""
    return _CHOICE.get()


# The rule


def _by_rule(A: Tensor, B: Tensor) -> str:
    # With several threads, OpenBLAS and PyTorch would compete for the same cores.
    is_vector = 1 in (A.shape[-2], B.shape[-1])
    may_use_numpy = torch.get_num_threads() == 1 or _work(A, B) <= (
        SERIAL_VECTOR_WORK if is_vector else SERIAL_WORK
    )
    for rule in RULES[processor()]:
        library = LIBRARIES[rule.library]
        if (
            rule.applies(A, B)
            and library.supports(A, B)
            and library.is_available()
            and (may_use_numpy or rule.library != "numpy")
        ):
            return rule.library
    return "torch"


@cache
def processor() -> str:
    """Return the kind of the processor, a key of `RULES`."""
    has: dict[str, Any] = dict(torch.cpu.get_capabilities())
    if not (has.get("avx2") and has.get("fma3")):
        return "other"
    if "AMD" not in str(has.get("cpu_name")):
        return "x86"
    if not has.get("avx512_f"):
        return "zen"
    # Zen 5 has the instructions AVX-VNNI, and full-width units for AVX-512.
    return "zen5" if has.get("avx_vnni") else "zen4"


def _work(A: Tensor, B: Tensor) -> int:
    """Number of multiplications of one product."""
    return A.shape[-2] * A.shape[-1] * B.shape[-1]


def _parts(
    out: Tensor, A: Tensor, B: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Split a product along its rows or, if these are fewer, along its columns.

    OpenBLAS has as many threads as the process allows. It computes the parts in one
    thread, and so to the same numbers, whatever this number is.
    """
    size = max(1, SERIAL_WORK // (min(out.shape[-2:]) * A.shape[-1]))
    if out.shape[-2] >= out.shape[-1]:
        for part, rows in zip(out.split(size, -2), A.split(size, -2), strict=True):
            yield part, rows, B
    else:
        for part, columns in zip(out.split(size, -1), B.split(size, -1), strict=True):
            yield part, A, columns


def _is_ordinary(A: Tensor, B: Tensor) -> bool:
    """Whether these are matrices of a type that NumPy knows, on the CPU, not empty."""
    return (
        A.device.type == B.device.type == "cpu"
        and A.dtype == B.dtype
        and A.dtype in (torch.float32, torch.float64)
        and A.ndim == B.ndim
        and A.ndim in (2, 3)
        and A.numel() > 0
        and B.numel() > 0
    )


# The libraries


def _bind_torch(out: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> list[Call]:
    if bias is None:
        return [partial(torch.mm if A.ndim == 2 else torch.bmm, A, B, out=out)]
    function = torch.addmm if A.ndim == 2 else torch.baddbmm
    return [partial(function, bias, A, B, out=out)]


def _bind_numpy(out: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> list[Call]:
    calls = [_numpy_product(out.numpy(), A.numpy(), B.numpy())]
    return calls if bias is None else [*calls, partial(out.add_, bias)]


def _numpy_product(c: np.ndarray, a: np.ndarray, b: np.ndarray) -> Call:
    # `np.dot` takes 0.4 us less than `np.matmul`, but its `out` has to be contiguous.
    if c.ndim == 2 and c.flags.c_contiguous:
        return partial(np.dot, a, b, c)
    if c.ndim == 2 and c.flags.f_contiguous:
        return partial(np.dot, b.T, a.T, c.T)
    return partial(np.matmul, a, b, c)


def _bind_onednn(out: Tensor, A: Tensor, B: Tensor, bias: Tensor | None) -> list[Call]:
    assert LINEAR_POINTWISE is not None
    fused = bias if bias is not None and bias.shape == out.shape[1:] else None
    # Computes x @ weight.mT, and returns new memory.
    product = partial(LINEAR_POINTWISE, A, B.mT, fused, "none", [], "")
    calls: list[Call] = [lambda: out.copy_(product())]
    if bias is None or fused is not None:
        return calls
    return [*calls, partial(out.add_, bias)]


@cache
def _has_fast_openblas() -> bool:
    """Whether NumPy multiplies by OpenBLAS, with kernels for this processor."""
    config: Any = np.show_config(mode="dicts")
    blas = config.get("Build Dependencies", {}).get("blas", {}).get("name", "")
    libraries = [x for x in threadpool_info() if x["internal_api"] == "openblas"]
    return (
        "openblas" in str(blas).lower()
        and bool(libraries)
        and all(str(x["architecture"]).lower() in FAST_KERNELS for x in libraries)
    )


def _has_onednn() -> bool:
    return LINEAR_POINTWISE is not None and torch.backends.mkldnn.is_available()


LIBRARIES: dict[str, Library] = {
    "torch": Library(lambda: True, lambda A, B: True, _bind_torch),
    "onednn": Library(
        _has_onednn, lambda A, B: A.dtype == torch.float32 and A.ndim == 2, _bind_onednn
    ),
    "numpy": Library(_has_fast_openblas, lambda A, B: True, _bind_numpy),
}


def _checked(name: str, library: str) -> str:
    """Return the name of a library, or raise an error if it cannot be used."""
    allowed = ["auto", *LIBRARIES]
    if library not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {library!r}.")
    # NumPy can always multiply, even if it is not fast.
    if library == "onednn" and not _has_onednn():
        raise ValueError(f"{name} is {library!r}, but PyTorch was built without it.")
    return library


# The choice of the user: of all threads, and of the present one.
_DEFAULT = _checked(
    f"The environment variable {VARIABLE}", os.environ.get(VARIABLE) or "auto"
)
_CHOICE: ContextVar[str] = ContextVar("library", default=_DEFAULT)
