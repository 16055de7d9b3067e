"""Matrix products by several libraries, and the choice between them."""

import itertools
import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from skae import AutoencoderTransformer
from skae.engine import products
from skae.engine.products import LIBRARIES, RULES, bind, choose, use

AVAILABLE = [name for name, library in LIBRARIES.items() if library.is_available()]


def randn(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=dtype)


LAYOUTS = {
    "rows": lambda X: X.contiguous(),
    "columns": lambda X: X.mT.contiguous().mT,
    "slice": lambda X: torch.cat([X, X], dim=-1)[..., : X.shape[-1]],
    "every other row": lambda X: X.repeat_interleave(2, dim=-2)[..., ::2, :],
    "every other column": lambda X: X.repeat_interleave(2, dim=-1)[..., ::2],
}

SHAPES = [
    ((5, 3), (3, 4)),
    ((1, 7), (7, 1)),
    ((1, 1), (1, 1)),
    ((33, 17), (17, 9)),
    ((64, 20), (20, 64)),
    ((2, 5, 3), (2, 3, 4)),
    ((3, 1, 6), (3, 6, 1)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("name", AVAILABLE)
def test_every_library_computes_the_product(name, shapes, dtype):
    A, B = (randn(*shape, dtype=dtype) for shape in shapes)
    biases = None, randn(shapes[1][-1], dtype=dtype), randn(1, 1, dtype=dtype)
    expected = A.double() @ B.double()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    plain, *others = LAYOUTS.values()
    layouts = [
        *itertools.product(LAYOUTS.values(), LAYOUTS.values(), [plain]),
        *((plain, plain, other) for other in others),
    ]
    for i, (of_A, of_B, of_out) in enumerate(layouts):
        bias = biases[i % 3]
        out = of_out(torch.full_like(expected, torch.nan, dtype=dtype))
        with use(name):
            calls = bind(out, of_A(A), of_B(B), bias)
        for _ in range(2):  # a second run overwrites the first
            for call in calls:
                call()
        exact = expected if bias is None else expected + bias.double()
        torch.testing.assert_close(
            out.double(), exact, rtol=tolerance, atol=10 * tolerance
        )


@pytest.mark.parametrize("name", ["auto", *AVAILABLE])
@pytest.mark.parametrize("stack", [(), (3,)])
@pytest.mark.parametrize(
    "shape", [(5, 3, 4), (3000, 20, 30), (30, 20, 3000), (40, 300, 400), (9, 1, 9)]
)
def test_products_in_new_memory_are_computed_in_parts(name, stack, shape):
    m, k, n = shape
    A, B, bias = randn(*stack, m, k), randn(*stack, k, n), randn(*stack, 1, n)
    with use(name):
        actual = products.multiply(A, B.requires_grad_(), bias)
    torch.testing.assert_close(actual, A @ B.detach() + bias, rtol=1e-4, atol=1e-4)
    assert not actual.requires_grad


def test_numpy_rounds_alike_wherever_the_memory_begins():
    memory = randn(64 * 33 + 33 * 24 + 8)
    values = randn(64, 33), randn(33, 24)
    results = []
    for offset in range(4):
        A = memory[offset:][: 64 * 33].view(64, 33).copy_(values[0])
        B = memory[offset + 64 * 33 :][: 33 * 24].view(33, 24).copy_(values[1])
        out = torch.empty(64, 24)
        with use("numpy"):
            (call,) = bind(out, A, B)
        call()
        results.append(out)
    assert all(torch.equal(results[0], other) for other in results)


# The choice


def product(m, k, n, transposed=False, stack=()):
    A = torch.empty(*stack, m, k)
    return A, torch.empty(*stack, n, k).mT if transposed else torch.empty(*stack, k, n)


SMALL, MEDIUM, LARGE = (16, 16, 16), (64, 64, 32), (128, 784, 128)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("processor", "factors", "expected"),
    [
        ("zen5", product(*LARGE), "numpy"),
        ("zen5", product(*LARGE, True), "onednn"),
        ("zen5", product(*LARGE, True, (2,)), "torch"),
        ("zen5", product(*MEDIUM, True), "numpy"),
        ("zen4", product(*LARGE), "torch"),
        ("zen4", product(*MEDIUM), "numpy"),
        ("zen4", product(*MEDIUM, True), "torch"),
        ("zen4", product(64, 256, 8, True), "numpy"),
        ("zen4", product(*MEDIUM, stack=(3,)), "numpy"),
        ("zen4", product(*SMALL, True), "numpy"),
        ("zen4", product(*SMALL, True, (3,)), "torch"),
        ("zen", product(*SMALL), "numpy"),
        ("zen", product(*MEDIUM), "torch"),
        ("x86", product(*SMALL), "numpy"),
        ("x86", product(*SMALL, stack=(3,)), "torch"),
        ("x86", product(*MEDIUM), "torch"),
        ("other", product(*SMALL), "torch"),
    ],
)
def test_the_rule_depends_on_processor_and_shape(
    monkeypatch, processor, factors, expected
):
    monkeypatch.setattr(products, "processor", lambda: processor)
    monkeypatch.setattr(products, "LIBRARIES", always_available())
    assert {choose(*factors) for _ in range(5)} == {expected}


def always_available(but=()):
    return {
        name: library._replace(is_available=lambda name=name: name not in but)
        for name, library in LIBRARIES.items()
    }


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("processor", RULES)
def test_a_missing_library_is_not_chosen(monkeypatch, processor):
    monkeypatch.setattr(products, "processor", lambda: processor)
    missing = ("numpy", "onednn")
    monkeypatch.setattr(products, "LIBRARIES", always_available(missing))
    for shape in (SMALL, MEDIUM, LARGE):
        for transposed in (False, True):
            assert choose(*product(*shape, transposed)) == "torch"


@pytest.mark.parametrize("processor", RULES)
def test_with_several_threads_pytorch_computes_large_products(monkeypatch, processor):
    monkeypatch.setattr(products, "processor", lambda: processor)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert choose(*product(*LARGE)) == "torch"
    assert choose(*product(*LARGE, True)) in ("torch", "onednn")


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize(
    ("A", "B"),
    [
        (torch.empty(3, 2, dtype=torch.bfloat16), torch.empty(2, 3).bfloat16()),
        (torch.empty(3, 2, dtype=torch.int64), torch.empty(2, 3, dtype=torch.int64)),
        (torch.empty(0, 2), torch.empty(2, 3)),
        (torch.empty(3, 0), torch.empty(0, 3)),
        (torch.empty(3, 2, device="meta"), torch.empty(2, 3, device="meta")),
        (torch.empty(1, 1, 3, 2), torch.empty(1, 1, 2, 3)),
    ],
)
def test_other_tensors_are_always_left_to_pytorch(name, A, B):
    with use(name):
        assert choose(A, B) == "torch"


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, "other"),
        ({"architecture": "arm64"}, "other"),
        ({"cpu_name": "Intel(R) Xeon(R)", "avx2": True}, "other"),
        ({"cpu_name": "Intel(R) Xeon(R)", "avx2": True, "fma3": True}, "x86"),
        ({"cpu_name": "AMD EPYC", "avx2": True, "fma3": True}, "zen"),
        ({"cpu_name": "AMD EPYC", "avx2": 1, "fma3": 1, "avx512_f": 1}, "zen4"),
        (
            {
                "cpu_name": "AMD Ryzen",
                "avx2": 1,
                "fma3": 1,
                "avx512_f": 1,
                "avx_vnni": 1,
            },
            "zen5",
        ),
    ],
)
def test_processors_are_recognized(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert products.processor.__wrapped__() == expected


@pytest.mark.parametrize(
    ("blas", "libraries", "expected"),
    [
        ("scipy-openblas", [("openblas", "SkylakeX")], True),
        ("scipy-openblas", [("openblas", "Haswell"), ("openmp", None)], True),
        ("scipy-openblas", [("openblas", "Prescott")], False),
        ("scipy-openblas", [("openblas", "Zen"), ("openblas", "Nehalem")], False),
        ("scipy-openblas", [], False),
        ("mkl-sdl", [("mkl", None), ("openblas", "Zen")], False),
        ("accelerate", [], False),
        (None, [("openblas", "Zen")], False),
    ],
)
def test_only_a_fast_openblas_is_used(monkeypatch, blas, libraries, expected):
    config = {"Build Dependencies": {"blas": {"name": blas}}} if blas else {}
    found = [
        {"internal_api": api, "architecture": architecture}
        for api, architecture in libraries
    ]
    monkeypatch.setattr(np, "show_config", lambda mode: config)
    monkeypatch.setattr(products, "threadpool_info", lambda: found)
    assert products._has_fast_openblas.__wrapped__() is expected


# The choice of the user


@pytest.mark.parametrize("name", AVAILABLE)
def test_the_user_can_choose_a_library(name):
    before = products.chosen()
    with use("auto"), use(name):
        assert products.chosen() == name
        assert choose(*product(*MEDIUM)) == choose(*product(*LARGE)) == name
        with use("torch"):
            assert choose(*product(*SMALL)) == "torch"
        assert products.chosen() == name
    assert products.chosen() == before


def test_an_unknown_library_is_an_error():
    with pytest.raises(ValueError, match=r"library must be one of .*got 'blas'"):
        use("blas").__enter__()


def test_a_library_that_pytorch_lacks_is_an_error(monkeypatch):
    monkeypatch.setattr(products, "LINEAR_POINTWISE", None)
    with pytest.raises(ValueError, match="'onednn', but PyTorch was built without"):
        use("onednn").__enter__()
    assert not LIBRARIES["onednn"].is_available()


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow  # two imports of PyTorch
def test_the_environment_chooses_a_library():
    code = (
        "from skae.engine import products as p\n"
        "print(p.chosen(), p.LIBRARIES['numpy'].is_available())"
    )
    # Kernels without fused multiplications, or a variable without effect.
    run = run_python(code, SKAE_PRODUCTS="torch", OPENBLAS_CORETYPE="Prescott")
    assert run.stdout == "torch False\n"


@pytest.mark.slow
def test_a_wrong_name_in_the_environment_is_an_error():
    run = run_python("import skae", SKAE_PRODUCTS="blas")
    assert "SKAE_PRODUCTS must be one of" in run.stderr


# In training


def fitted(library="auto", **parameters):
    X = randn(300, 12).numpy()
    settings = {"max_epochs": 10, "batch_size": 30, "early_stopping": False}
    with use(library):
        return AutoencoderTransformer(
            2, random_state=0, n_threads=1, **settings, **parameters
        ).fit(X)


@pytest.mark.parametrize("library", ["auto", *AVAILABLE])
def test_training_gives_the_same_model_by_any_library(library):
    expected, actual = fitted(compile=False), fitted(library)
    assert actual.loss_curve_ == pytest.approx(expected.loss_curve_, rel=1e-4)
    assert actual.loss_curve_ == fitted(library).loss_curve_


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_trains_the_same_model():
    expected = fitted("numpy").loss_curve_
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        result = pool.apply_async(loss_curve)
        assert result.get(timeout=60) == expected


def loss_curve():
    return fitted("numpy").loss_curve_
