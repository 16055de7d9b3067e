"""Searches on a Dask cluster, and predictions on Dask collections.

The cluster has two processes on this machine. The code of docs/scale.rst runs here.
"""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from unittest.mock import patch

import cloudpickle
import dask
import dask.array as da
import dask.dataframe as dd
import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from dask.distributed import Client, LocalCluster
from distributed.deploy.subprocess import SubprocessCluster
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import BaseEstimator, clone
from sklearn.compose import make_column_transformer
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from skorch.callbacks import Callback

import skae
from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae._processor import torch_threads
from skae.distributed import map_rows

ROOT = Path(__file__).parents[1]
SMALL = {"max_epochs": 3, "early_stopping": False, "random_state": 0}
DETECTOR_METHODS = (
    "score_samples",
    "decision_function",
    "predict",
    "p_values",
    "reconstruct",
    "feature_contributions",
)
TRANSFORMER_METHODS = ("score_samples", "transform", "reconstruct")

# Classes of this module are unknown to the workers.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def code_of_page():
    """The Python code of docs/scale.rst, a list for each title."""
    text = (ROOT / "docs" / "scale.rst").read_text()
    parts = re.split(r"^(.+)\n[=~-]+\n", text, flags=re.MULTILINE)[1:]
    pattern = r"^( *)\.\. code-block:: python\n\n((?:\1   .*\n|\n)+)"
    return {
        title: [
            textwrap.dedent(code)
            for _, code in re.findall(pattern, part, flags=re.MULTILINE)
        ]
        for title, part in zip(parts[::2], parts[1::2], strict=True)
    }


PAGE = code_of_page()


@pytest.fixture(scope="module", autouse=True)
def environment_restored():
    """Undo changes of the environment: a LocalCluster sets variables of its workers."""
    with patch.dict(os.environ):
        yield


@pytest.fixture(scope="module")
def page():
    """Variables of the page after its first code, which starts the cluster."""
    variables = {}
    exec(PAGE["Which engine for what"][0], variables)
    yield variables
    variables["client"].close()
    variables["cluster"].close()


@pytest.fixture(scope="module")
def client(page):
    return page["client"]


@pytest.fixture(scope="module")
def frame():
    X = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    X[::7, 1] = np.nan
    index = pd.date_range("2020", periods=len(X), freq="h", name="time")
    return pd.DataFrame(X, columns=list("abcde"), index=index)


@pytest.fixture(scope="module")
def X(frame):
    return frame.to_numpy(np.float64)


@pytest.fixture(scope="module")
def detector(X):
    return AutoencoderOutlierDetector(**SMALL).fit(X)


@pytest.fixture(scope="module")
def transformer(frame):
    return AutoencoderTransformer(2, **SMALL).fit(frame)


@pytest.fixture
def search():
    return GridSearchCV(AutoencoderTransformer(**SMALL), {"n_components": [1, 2]}, cv=2)


class Reporter(BaseEstimator):
    """Predicts a property of the process and the thread that it is called in."""

    def __init__(self, report):
        self.report = report

    def fit(self, X, y=None):
        return self

    def __sklearn_is_fitted__(self):
        return True

    def predict(self, X):
        return np.full(len(X), self.report())


# Imports


def run_in_fresh_interpreter(code):
    environment = {**os.environ, "PYTHONPATH": str(Path(skae.__file__).parents[1])}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(command, check=True, env=environment)


def test_package_imports_no_engine():
    run_in_fresh_interpreter(
        """
        import sys
        import skae
        import skae.distributed
        engines = {"dask", "distributed", "ray", "accelerate", "pyspark"}
        assert not engines & set(sys.modules), engines & set(sys.modules)
        """
    )


def test_without_dask_other_rows_are_refused():
    run_in_fresh_interpreter(
        """
        import sys
        sys.modules["dask"] = None  # importing it raises ImportError
        from skae.distributed import map_rows
        try:
            map_rows(None, "predict", [[1.0]])
        except TypeError as error:
            assert "must be a dask.array.Array or a dask.dataframe" in str(error)
        else:
            raise AssertionError
        """
    )


# Searching


@pytest.mark.slow
def test_search_on_cluster_gives_results_of_serial_search(client, search, X):
    serial = clone(search).fit(X)
    with joblib.parallel_config("dask"):
        search.fit(X)
    for key, values in serial.cv_results_.items():
        if "time" not in key:
            assert_array_equal(search.cv_results_[key], values)
    assert search.best_params_ == serial.best_params_
    assert_array_equal(search.transform(X), serial.transform(X))


def test_each_worker_has_one_thread(client):
    assert list(client.run(torch.get_num_threads).values()) == [1, 1]
    assert list(client.nthreads().values()) == [1, 1]


class WritesProcess(Callback):
    """Creates a file at the end of a training, named by the process and the net."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, net, **kwargs):
        (self.folder / f"{os.getpid()}-{id(net)}-{len(net.history)}").touch()


def test_skorch_callbacks_run_in_the_workers(client, search, X, tmp_path):
    search.set_params(estimator__callbacks=[WritesProcess(tmp_path)])
    with joblib.parallel_config("dask"):
        search.fit(X)
    written = {int(path.name.partition("-")[0]) for path in tmp_path.iterdir()}
    workers = set(client.run(os.getpid).values())
    assert os.getpid() in written  # the last fit, to all rows
    assert written & workers
    assert written <= workers | {os.getpid()}


def test_verbose_search_gives_the_same_results(client, search, X):
    expected = clone(search).fit(X).cv_results_["mean_test_score"]
    search.set_params(estimator__verbose=1)
    with joblib.parallel_config("dask"):
        search.fit(X)
    assert_array_equal(search.cv_results_["mean_test_score"], expected)


@pytest.mark.slow
def test_scoring_monitor_of_scikit_learn_with_scheduler_in_its_own_process(search, X):
    callback = pytest.importorskip("sklearn.callback")
    monitor = callback.ScoringMonitor(scoring={"rows": lambda ae, X, y: float(len(X))})
    search.estimator.set_callbacks(monitor)
    search.fit(X)
    serial = monitor.get_logs().data_as_pandas
    with (
        SubprocessCluster(n_workers=2, dashboard_address=":0") as cluster,
        Client(cluster),
        joblib.parallel_config("dask"),
    ):
        search.fit(X)
    logs = monitor.get_logs().data_as_pandas
    assert len(logs) > 4 * SMALL["max_epochs"]  # four fits in workers, and the last
    assert sorted(logs["task_id_path"]) == sorted(serial["task_id_path"])
    assert sorted(logs["rows"]) == sorted(serial["rows"])


def test_progress_bar_of_scikit_learn_works_on_cluster(client, search, X):
    callback = pytest.importorskip("sklearn.callback")
    expected = clone(search).fit(X).cv_results_["mean_test_score"]
    search.set_callbacks(callback.ProgressBar(max_propagation_depth=2))
    with joblib.parallel_config("dask"):
        search.fit(X)
    assert_array_equal(search.cv_results_["mean_test_score"], expected)


@pytest.mark.slow
def test_search_of_the_page(page):
    variables = dict(page)
    exec(PAGE["Searching"][0], variables)
    serial = clone(variables["search"]).fit(variables["frame"])
    assert_array_equal(
        variables["search"].cv_results_["mean_test_score"],
        serial.cv_results_["mean_test_score"],
    )


@pytest.mark.slow
def test_members_of_the_page_are_trained_by_workers(page):
    variables = dict(page)
    code = PAGE["Workers for members"][0].replace("=64", "=32, max_epochs=2")
    with joblib.parallel_config("threading"):  # the first fit needs no other processes
        exec(code, variables)
    detector = variables["detector"]
    serial = clone(detector).set_params(n_jobs=1).fit(variables["frame"])
    assert_array_equal(detector.training_scores_, serial.training_scores_)


@pytest.mark.slow
def test_workers_of_the_page_with_two_threads(monkeypatch):
    variables = {}
    for name in ("OMP", "MKL", "OPENBLAS"):
        monkeypatch.delenv(f"{name}_NUM_THREADS", raising=False)
    exec("from dask.distributed import LocalCluster", variables)
    exec(PAGE["Searching"][1], variables)
    with variables["larger"] as cluster, Client(cluster) as client:
        assert list(client.run(torch.get_num_threads).values()) == [2]


def test_each_worker_of_the_page_sees_its_own_gpu():
    variables = {}
    exec(PAGE["One worker per GPU"][0], variables)
    with variables["gpus"] as cluster, Client(cluster) as client:
        client.wait_for_workers(variables["n_gpus"])
        seen = client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
    assert sorted(seen.values()) == ["0", "1"]


# Scoring and transforming


def assert_same_rows(result, expected, values):
    """Check a computed result, and what Dask announced before (`result`)."""
    assert values.dtype == expected.dtype == result.dtype
    assert_allclose(values, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", DETECTOR_METHODS)
def test_array_gives_results_of_method(method, client, detector, X):
    rows = da.from_array(X, chunks=(60, 3))
    result = map_rows(detector, method, rows)
    expected = getattr(detector, method)(X)
    assert result.shape == expected.shape
    assert result.chunks[0] == rows.chunks[0]
    assert_same_rows(result, expected, result.compute())


@pytest.mark.parametrize("method", TRANSFORMER_METHODS)
def test_frame_gives_results_of_method(method, client, transformer, frame):
    rows = dd.from_pandas(frame, npartitions=3)
    result = map_rows(transformer, method, rows)
    values = result.compute()
    expected = getattr(transformer, method)(frame)
    assert result.divisions == rows.divisions
    pd.testing.assert_index_equal(values.index, frame.index)
    if expected.ndim == 1:
        assert result.name == values.name == method
        assert_same_rows(result, expected, values.to_numpy())
        return
    names = transformer.get_feature_names_out() if method == "transform" else "abcde"
    assert list(result.columns) == list(values.columns) == list(names)
    assert set(result.dtypes) == set(values.dtypes) == {np.dtype("float32")}
    assert_allclose(values.to_numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, int])
def test_type_of_numbers_is_that_of_the_method(dtype, detector, X):
    X = np.nan_to_num(10 * X).astype(dtype)
    result = map_rows(detector, "reconstruct", da.from_array(X, chunks=(50, -1)))
    expected = detector.reconstruct(X)
    assert result.dtype == expected.dtype
    with dask.config.set(scheduler="threads"):
        assert result.compute().dtype == expected.dtype


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
@pytest.mark.parametrize("method", ["score_samples", "predict"])
def test_schedulers_without_cluster(scheduler, method, detector, X):
    result = map_rows(detector, method, da.from_array(X, chunks=(10, -1)))
    with dask.config.set(scheduler=scheduler, num_workers=4):
        values = result.compute()
    assert_same_rows(result, getattr(detector, method)(X), values)


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_each_chunk_is_computed_by_one_thread_of_pytorch(scheduler, X):
    rows = da.from_array(X, chunks=(20, -1))
    with (
        torch_threads(2),
        dask.config.set(scheduler=scheduler, num_workers=2),
    ):
        result = map_rows(Reporter(torch.get_num_threads), "predict", rows)
        assert set(result.compute()) == {1}
        assert torch.get_num_threads() == 2


def test_chunks_are_computed_in_the_workers(client, X):
    rows = da.from_array(X, chunks=(20, -1))
    processes = map_rows(Reporter(os.getpid), "predict", rows).compute()
    assert set(processes) <= set(client.run(os.getpid).values())


def nodes_of_model(*collections):
    """Keys of the stored estimators in the graph that is computed."""
    optimized = dask.optimize(*collections)
    graphs = [collection.__dask_graph__() for collection in optimized]
    return {key for graph in graphs for key in graph if "loads" in str(key)}


@pytest.mark.parametrize("kind", ["array", "frame"])
def test_model_is_sent_once_to_a_worker(kind, client, detector, transformer, frame, X):
    if kind == "array":
        model, rows = detector, da.from_array(X, chunks=(5, -1))
    else:
        model, rows = transformer, dd.from_pandas(frame, npartitions=40)
    results = [map_rows(model, name, rows) for name in ("score_samples", "reconstruct")]
    (key,) = nodes_of_model(*results)
    n_bytes = len(cloudpickle.dumps(model))
    graph = dict(dask.optimize(results[0])[0].__dask_graph__())
    sizes = {k: len(cloudpickle.dumps(task)) for k, task in graph.items()}
    assert len(sizes) > 40
    assert sizes.pop(key) >= n_bytes
    assert max(sizes.values()) < n_bytes / 2

    def transfers(dask_worker):
        log = dask_worker.transfer_incoming_log
        return sum(str(key) in map(str, event["keys"]) for event in log)

    before = sum(client.run(transfers).values())
    dask.compute(*results)
    assert sum(client.run(transfers).values()) - before <= 1


def test_later_fit_does_not_change_the_result(X):
    ae = AutoencoderTransformer(2, **SMALL).fit(X)
    expected = ae.transform(X)
    result = map_rows(ae, "transform", da.from_array(X, chunks=(50, -1)))
    ae.fit(X[:50] ** 2)
    with dask.config.set(scheduler="synchronous"):
        assert_allclose(result.compute(), expected, rtol=1e-12, atol=1e-12)


def test_nothing_is_computed_before_compute(detector, X):
    def fail(block):
        raise AssertionError

    rows = da.from_array(X, chunks=(50, -1)).map_blocks(fail, meta=np.empty((0, 0)))
    result = map_rows(detector, "score_samples", rows)
    with pytest.raises(AssertionError), dask.config.set(scheduler="synchronous"):
        result.compute()


@pytest.mark.slow
def test_table_larger_than_the_memory_of_all_workers(client):
    workers = client.scheduler_info()["workers"]
    limit = sum(worker["memory_limit"] for worker in workers.values())
    n_features, n_rows = 1000, 4000
    n_chunks = int(1.05 * limit / (8 * n_features * n_rows)) + 1
    ae = AutoencoderTransformer(1, hidden_layer_sizes=(), **SMALL)
    ae.fit(np.random.default_rng(0).normal(size=(20, n_features)))
    rows = da.full((n_rows * n_chunks, n_features), 0.5, chunks=(n_rows, -1))
    assert rows.nbytes > limit
    scores = map_rows(ae, "score_samples", rows).compute()
    assert scores.shape == (len(rows),)
    assert_allclose(scores, ae.score_samples(np.full((1, n_features), 0.5))[0])
    # No worker was restarted because it exceeded its limit.
    assert set(client.scheduler_info()["workers"]) == set(workers)


@pytest.mark.parametrize("kind", ["array", "frame"])
def test_unknown_numbers_of_rows_and_empty_partitions(
    kind, client, detector, transformer, frame, X
):
    if kind == "array":
        rows = da.from_array(X, chunks=(50, -1))
        result = map_rows(detector, "reconstruct", rows[rows[:, 0] > 2])
        assert np.isnan(result.shape[0])
        expected = detector.reconstruct(X[X[:, 0] > 2])
    else:
        rows = dd.from_pandas(frame, npartitions=4)
        result = map_rows(transformer, "reconstruct", rows[rows["a"] > 2])
        expected = transformer.reconstruct(frame[frame["a"] > 2])
    assert 0 < len(expected) < 10
    assert_allclose(result.compute(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["predict", "reconstruct"])
def test_no_rows_at_all(method, detector, X):
    rows = da.from_array(X, chunks=(50, -1))
    with dask.config.set(scheduler="synchronous"):
        result = map_rows(detector, method, rows[rows[:, 0] > 100])
        values = result.compute()
    assert len(values) == 0
    assert values.ndim == result.ndim
    assert values.dtype == result.dtype


@pytest.mark.parametrize("chunks", [(50, -1), (50, 2)])
@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.csr_matrix])
@pytest.mark.parametrize("is_announced", [True, False])
def test_sparse_chunks(chunks, kind, is_announced, detector, X):
    X = np.nan_to_num(X) * (X > 0)
    if chunks[1] == 2 and not is_announced:
        pytest.skip("Dask cannot merge columns of an unknown kind")
    meta = None if is_announced else np.empty((0, 0))
    rows = da.from_array(X, chunks=chunks).map_blocks(kind, meta=meta)
    with dask.config.set(scheduler="synchronous"):
        scores = map_rows(detector, "score_samples", rows).compute()
    assert_allclose(scores, detector.score_samples(X), rtol=1e-12)


@pytest.mark.parametrize("container", ["default", "pandas", "polars"])
def test_set_output_has_no_effect(container, transformer, frame):
    ae = clone(transformer).set_output(transform=container).fit(frame)
    expected = transformer.transform(frame)
    rows = dd.from_pandas(frame, npartitions=2)
    with dask.config.set(scheduler="synchronous"):
        table = map_rows(ae, "transform", rows).compute()
        array = map_rows(ae.fit(expected), "transform", da.from_array(expected))
        assert type(array.compute()) is np.ndarray
    assert type(table) is pd.DataFrame
    assert_allclose(table, expected, rtol=1e-5, atol=1e-6)
    pd.testing.assert_index_equal(table.index, frame.index)


def other_estimators():
    pca_like = AutoencoderTransformer(2, **SMALL)
    observed = ["a", "c", "d", "e"]
    pipeline = make_pipeline(StandardScaler(), pca_like)
    classifier = make_pipeline(pca_like, LogisticRegression())
    search = GridSearchCV(pipeline, {"autoencodertransformer__n_components": [1]}, cv=2)
    return {
        "pipeline": (pipeline, "transform", observed),
        "search": (search, "transform", observed),
        "classifier": (classifier, "predict_proba", observed),
        "labels": (classifier, "predict", observed),
        "forest": (IsolationForest(random_state=0), "score_samples", observed),
    }


@pytest.mark.parametrize("name", other_estimators())
def test_any_fitted_estimator(name, frame):
    estimator, method, columns = other_estimators()[name]
    table = frame[columns]
    estimator.fit(table, (table["a"] > 0).astype(int))
    expected = getattr(estimator, method)(table)
    rows = dd.from_pandas(table, npartitions=3)
    with dask.config.set(scheduler="synchronous"):
        values = map_rows(estimator, method, rows).compute()
    assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    if method == "transform":
        fitted = getattr(estimator, "best_estimator_", estimator)
        assert list(values.columns) == list(fitted.get_feature_names_out())


def test_quantize_gives_columns_with_numbers(X):
    vq = AutoencoderTransformer(bottleneck="quantized", **SMALL).fit(X)
    rows = dd.from_pandas(pd.DataFrame(X).rename(columns=str), npartitions=2)
    vq.fit(rows.compute())
    with dask.config.set(scheduler="synchronous"):
        codes = map_rows(vq, "quantize", rows).compute()
    assert list(codes.columns) == list(range(codes.shape[1]))
    assert_array_equal(codes, vq.quantize(rows.compute()))


def test_meta_replaces_the_artificial_row(frame):
    table = frame.assign(kind=np.where(frame["a"] > 0, "x", "y"))
    columns = make_column_transformer(
        (OneHotEncoder(sparse_output=False), ["kind"]), remainder="passthrough"
    )
    pipeline = make_pipeline(columns, AutoencoderOutlierDetector(**SMALL)).fit(table)
    rows = dd.from_pandas(table, npartitions=2)
    with pytest.raises(ValueError, match="Found unknown categories") as caught:
        map_rows(pipeline, "score_samples", rows)
    assert "artificial rows" in caught.value.__notes__[0]
    scores = map_rows(pipeline, "score_samples", rows, meta=("score", "f8"))
    with dask.config.set(scheduler="synchronous"):
        values = scores.compute()
    assert values.name == "score"
    assert_allclose(values, pipeline.score_samples(table), rtol=1e-6)


@pytest.mark.parametrize("shape", [(0,), (0, 5)])
def test_meta_of_an_array(shape, detector, X):
    method = "score_samples" if len(shape) == 1 else "reconstruct"
    rows = da.from_array(X, chunks=(60, 2))
    result = map_rows(detector, method, rows, meta=np.empty(shape))
    with dask.config.set(scheduler="synchronous"):
        values = result.compute()
    assert_same_rows(result, getattr(detector, method)(X), values)


@pytest.mark.parametrize("meta", [1, "f8", np.empty((0, 2))])
def test_wrong_meta_of_a_frame_is_refused(meta, detector, frame):
    rows = dd.from_pandas(frame, npartitions=2)
    with pytest.raises(ValueError, match="meta must describe a data frame or a series"):
        map_rows(detector, "predict", rows, meta=meta)


@pytest.mark.parametrize(
    ("method", "meta"),
    [
        ("reconstruct", np.empty(0)),
        ("reconstruct", np.empty((0, 3))),
        ("predict", np.empty((0, 1))),
        ("reconstruct", ("score", "f8")),
        ("reconstruct", {"a": "f8", "b": "f8"}),
        ("predict", {"a": "f8"}),
    ],
)
def test_result_of_another_shape_than_meta_is_an_error(method, meta, detector, frame):
    rows = dd.from_pandas(frame, npartitions=2)
    if isinstance(meta, np.ndarray):
        rows = rows.to_dask_array(lengths=True)
    with pytest.raises(ValueError, match=f"{method!r} has the shape .* but meta has"):
        map_rows(detector, method, rows, meta=meta).compute()


@pytest.mark.parametrize("meta", [1, np.empty((3,)), np.empty((0, 1, 1)), "f8"])
def test_wrong_meta_of_an_array_is_refused(meta, detector, X):
    with pytest.raises(ValueError, match="meta must be an ndarray of shape"):
        map_rows(detector, "predict", da.from_array(X), meta=meta)


# Errors before any work


def test_other_kinds_of_rows_are_refused(detector, frame, X):
    rows = dd.from_pandas(frame, npartitions=2)
    for value in (X, frame, sparse.csr_array(X), rows["a"], dask.delayed(X), None):
        with pytest.raises(TypeError, match=r"must be a dask\.array\.Array or a"):
            map_rows(detector, "predict", value)


def test_other_kinds_of_chunks_are_refused(detector, X):
    class Chunk(np.lib.mixins.NDArrayOperatorsMixin):
        def __init__(self, shape=(0, 0)):
            self.shape, self.ndim, self.dtype = shape, 2, np.dtype(float)

        def __array_function__(self, function, types, args, kwargs):
            return self

        def __array_ufunc__(self, function, method, *args, **kwargs):
            return self

        def __getitem__(self, where):
            return self

        def astype(self, *args, **kwargs):
            return self

    rows = da.from_array(X).map_blocks(lambda block: Chunk(), meta=Chunk())
    with pytest.raises(TypeError, match="chunks of X must be NumPy arrays or SciPy"):
        map_rows(detector, "predict", rows)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (list("abcd"), "yet now missing:\n- e"),
        (list("edcba"), "must be in the same order"),
        (list("abcdee"), "unique column names"),
    ],
)
def test_other_columns_of_a_frame_are_refused(columns, message, transformer, frame):
    rows = dd.from_pandas(frame, npartitions=2)[columns]
    with pytest.raises(ValueError, match=message):
        map_rows(transformer, "transform", rows)


def test_other_shapes_of_an_array_are_refused(detector, X):
    rows = da.from_array(X)
    with pytest.raises(ValueError, match="X has 3 features, but"):
        map_rows(detector, "predict", rows[:, :3])
    with pytest.raises(ValueError, match="X must have two dimensions"):
        map_rows(detector, "predict", rows[:, 0])
    with pytest.raises(ValueError, match="known number of columns"):
        map_rows(detector, "predict", rows[:, rows[0] > 0])


def test_unfitted_estimator_is_refused(X):
    with pytest.raises(NotFittedError):
        map_rows(AutoencoderOutlierDetector(), "predict", da.from_array(X))


@pytest.mark.parametrize("method", ["fit", "explain", "score", ["predict"], None])
def test_other_methods_are_refused(method, detector, X):
    with pytest.raises(ValueError, match=r"method must be one of .*'score_samples'"):
        map_rows(detector, method, da.from_array(X))


def test_absent_method_has_the_message_of_the_estimator(transformer, frame, X):
    rows = da.from_array(X)
    conv = AutoencoderOutlierDetector(network="conv", **SMALL).fit(X)
    with pytest.raises(AttributeError, match="needs scores of rows that the network"):
        map_rows(conv, "p_values", rows)
    with pytest.raises(AttributeError, match="no attribute 'predict'"):
        map_rows(transformer, "predict", dd.from_pandas(frame, npartitions=2))


def test_sparse_result_is_refused(frame):
    encoder = OneHotEncoder(handle_unknown="ignore").fit(frame[["a"]])
    with pytest.raises(TypeError, match="'transform' is a sparse matrix"):
        map_rows(encoder, "transform", dd.from_pandas(frame[["a"]], npartitions=2))


# The page, and tools of others


def test_scoring_of_the_page(page):
    variables = dict(page)
    exec(PAGE["Scoring and transforming"][0], variables)
    frame, detector = variables["frame"], variables["detector"]
    expected = detector.score_samples(frame)
    assert_allclose(variables["scores"].compute(), expected, rtol=1e-12)
    alarms = frame[detector.p_values(frame) < 0.01]
    pd.testing.assert_frame_equal(variables["alarms"], alarms)


def test_setting_of_the_page_leaves_freed_memory_to_the_workers(monkeypatch):
    # Another cluster of this process has set it.
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    name = "distributed.nanny.pre-spawn-environ"
    before = dask.config.get(name)
    assert "MALLOC_TRIM_THRESHOLD_" in before  # else the page need not mention it
    with dask.config.set({name: before}):
        exec(PAGE["Scoring and transforming"][1], {})
        assert dask.config.get(name)["MALLOC_TRIM_THRESHOLD_"] is None
        with (
            LocalCluster(n_workers=1, dashboard_address=":0") as cluster,
            Client(cluster) as client,
        ):
            (names,) = client.run(lambda: list(os.environ)).values()
    assert "MALLOC_TRIM_THRESHOLD_" not in names


@pytest.fixture
def fitted_page(detector_of_page):
    frame, detector = detector_of_page
    return {"pd": pd, "frame": frame, "detector": detector}


@pytest.fixture(scope="module")
def detector_of_page():
    X = np.random.default_rng(0).normal(size=(300, 4))
    frame = pd.DataFrame(X, columns=list("abcd"))
    return frame, AutoencoderOutlierDetector(**SMALL).fit(frame)


@pytest.mark.filterwarnings("default")
def test_spark_of_the_page(fitted_page, monkeypatch):
    pytest.importorskip("pyspark")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    exec(PAGE["Spark"][0], fitted_page)
    scores = fitted_page["spark_scores"].toPandas()["score"]
    fitted_page["spark"].stop()
    expected = fitted_page["detector"].score_samples(fitted_page["frame"])
    assert_allclose(np.sort(scores), np.sort(expected), rtol=1e-12)


@pytest.mark.filterwarnings("default")
def test_ray_of_the_page(fitted_page, search):
    ray = pytest.importorskip("ray")
    expected = clone(search).fit(fitted_page["frame"]).cv_results_["mean_test_score"]
    variables = {**fitted_page, "search": search, "joblib": joblib}
    exec(PAGE["Ray"][0], variables)
    assert_array_equal(search.cv_results_["mean_test_score"], expected)
    exec(PAGE["Ray Data"][0], variables)
    scores = variables["ray_scores"].to_pandas()["score"]
    ray.shutdown()
    expected = variables["detector"].score_samples(variables["frame"])
    assert_allclose(np.sort(scores), np.sort(expected), rtol=1e-12)


def test_parallel_post_fit_of_dask_ml(X):
    wrappers = pytest.importorskip("dask_ml.wrappers")
    wrapped = wrappers.ParallelPostFit(AutoencoderOutlierDetector(**SMALL)).fit(X)
    with dask.config.set(scheduler="threads"):
        labels = wrapped.predict(da.from_array(X, chunks=(50, -1))).compute()
    assert_array_equal(labels, wrapped.estimator.predict(X))


def test_incremental_of_dask_ml(X):
    wrappers = pytest.importorskip("dask_ml.wrappers")
    settings = {"shuffle_blocks": False, "scoring": None}
    wrapped = wrappers.Incremental(AutoencoderTransformer(2, **SMALL), **settings)
    with dask.config.set(scheduler="synchronous"):
        wrapped.fit(da.from_array(X, chunks=(50, -1)))
        codes = wrapped.transform(da.from_array(X, chunks=(50, -1))).compute()
    expected = AutoencoderTransformer(2, **SMALL)
    for start in range(0, 200, 50):
        expected.partial_fit(X[start : start + 50])
    assert_allclose(codes, expected.transform(X), rtol=1e-12, atol=1e-12)
