"""Fitted estimators and fits in several threads, and in other processes."""

import multiprocessing
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from joblib import Parallel, delayed
from sklearn.base import clone
from threadpoolctl import threadpool_info, threadpool_limits
from variants import representatives

from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae._processor import threads_for

N_THREADS = 8
METHODS = [
    *("transform", "reconstruct", "score_samples", "decision_function", "predict"),
    *("p_values", "feature_contributions", "quantize"),
]

rng = np.random.default_rng(0)
X = np.tanh(rng.normal(size=(120, 2)) @ rng.normal(size=(2, 6)))
X += 0.1 * rng.normal(size=X.shape)

each_representative = pytest.mark.parametrize(
    "estimator",
    [e.set_params(random_state=0) for e in representatives()],
    ids=lambda e: str(e)[:60],
)
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def run_together(functions):
    """Call functions in threads that begin at the same time; return the results."""
    barrier = threading.Barrier(len(functions))

    def run(function):
        barrier.wait(timeout=300)
        return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        return list(pool.map(run, functions))


def blas_threads():
    return sorted(
        (pool["filepath"], pool["num_threads"])
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    )


def results_of(estimator, rows):
    names = [name for name in METHODS if hasattr(estimator, name)]
    return {name: np.asarray(getattr(estimator, name)(rows)) for name in names}


def assert_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(actual[name], values, err_msg=name)


@each_representative
def test_threads_predict_with_one_estimator(estimator):
    estimator = clone(estimator).fit(X)
    blocks = [X[i : i + 1 + 3 * i] for i in range(N_THREADS)]
    expected = [results_of(estimator, block) for block in blocks]
    fresh = clone(estimator).fit(X)  # without what a first call computes and keeps

    def predict(block):
        return [results_of(fresh, block) for _ in range(5)]

    found = run_together([lambda block=block: predict(block) for block in blocks])
    for several, results in zip(found, expected, strict=True):
        for actual in several:
            assert_equal(actual, results)


@each_representative
def test_fits_in_two_threads_are_those_of_one(estimator):
    others = [clone(estimator), clone(estimator).set_params(random_state=1)]
    expected = [results_of(clone(other).fit(X), X) for other in others]
    before = blas_threads(), torch.get_num_threads()
    fitted = run_together([lambda e=e: clone(e).fit(X) for e in others for _ in "ab"])
    assert (blas_threads(), torch.get_num_threads()) == before
    for i, each in enumerate(fitted):
        assert_equal(results_of(each, X), expected[i // 2])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_overlapping_fits_restore_the_number_of_threads_of_blas(order):
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        contexts = [threads_for(1.0, n_threads) for n_threads in (1, 2, 1)]
        for context in contexts:
            context.__enter__()
        for i in order:
            context = contexts[i]
            run_together([lambda context=context: context.__exit__(None, None, None)])
        assert blas_threads() == before


SETTINGS = {"random_state": 0, "max_epochs": 2, "n_threads": 2}
ESTIMATORS = [
    AutoencoderTransformer(2, **SETTINGS),
    AutoencoderOutlierDetector(2, n_estimators=2, **SETTINGS),
]


def fitted_results(estimator, earlier):
    """Results of a new fit, and of an estimator that was fitted before."""
    return results_of(clone(estimator).fit(X), X), results_of(earlier, X)


def send_results(connection, *args):
    connection.send(fitted_results(*args))


def in_process(method, *args):
    """Call `fitted_results` in a process that is started by a method."""
    context = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_results, args=(sender, *args))
    process.start()
    sender.close()  # so that an end of the process without a result is noticed
    assert receiver.poll(300)
    found = receiver.recv()
    process.join()
    return found


def in_loky(*args):
    return Parallel(2)(delayed(fitted_results)(*args) for _ in range(2))[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
@pytest.mark.skipif(sys.platform == "win32", reason="needs a system that can fork")
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn", "loky"])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_other_processes_fit_and_predict_after_threads_of_the_parent(estimator, method):
    rows = np.tile(X, (40, 1))  # enough for several threads of BLAS
    earlier = clone(estimator).fit(X)
    run_together([lambda: earlier.score_samples(rows) for _ in range(4)])
    torch.ones(500, 500) @ torch.ones(500, 500)
    expected = fitted_results(estimator, earlier)
    start = in_loky if method == "loky" else lambda *a: in_process(method, *a)
    for actual, results in zip(start(estimator, earlier), expected, strict=True):
        assert actual.keys() == results.keys()
        for name, values in results.items():
            # A forked process uses one thread.
            np.testing.assert_allclose(actual[name], values, rtol=1e-4, atol=1e-5)
