"""Training by several processes, which torchrun starts."""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time

import launched
import launched_partitions
import numpy as np
import pytest
import torch
from launched import DIGITS, EXACT, SIMILAR, transformer
from numpy.testing import assert_allclose, assert_array_equal
from skorch.callbacks import Checkpoint, EpochScoring, PrintLog, ProgressBar

import skae
from skae import _streamed
from skae._partitions import Partitions
from skae._rows import Batch
from skae._streamed import stream_rows
from skae._user_callbacks import without_writers
from skae.engine import processes
from skae.engine.batches import batch_bounds, parts_of_batches
from skae.engine.division import Division
from skae.engine.processes import (
    Processes,
    alone,
    current_processes,
    joined_processes,
)

# The other fits are in the slow tests.
FEW = ["uneven batches", "folds", "ensemble, trim", "partial_fit"]
FEW_PARTITIONED = ["function", "dask array", "dask frame", "missing, trim"]
FEW_PARTITIONED += launched_partitions.DETECTORS


def launch(*arguments, n_processes=2, is_valid=True):
    """Run tests/launched.py by torchrun; return the finished process."""
    folders = [os.path.dirname(os.path.dirname(skae.__file__)), *sys.path]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    finished = subprocess.run(
        [*command, "--nproc-per-node", str(n_processes), launched.__file__, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (finished.returncode == 0) == is_valid, finished.stderr
    return finished


def launch_fits(folder, names, n_processes=2):
    """Return the output of a run, and the results of each process."""
    output = launch(str(folder), *names, n_processes=n_processes).stdout
    files = [folder / f"{rank}.json" for rank in range(n_processes)]
    return output, [json.loads(file.read_text()) for file in files]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    names = [*FEW, *(f"partitions: {name}" for name in FEW_PARTITIONED)]
    return folder, *launch_fits(folder, names)


def assert_close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        scale = np.abs(values).max()
        assert_allclose(found[name], values, atol=tolerance * scale, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW)
def test_fit_of_two_processes_equals_that_of_one(name, run):
    _, _, (first, second) = run
    assert first[name] == second[name]
    assert_close(first[name], launched.outcome(EXACT[name]()), 1e-5)


@pytest.mark.slow
def test_fit_of_two_processes_goes_on_from_a_checkpoint(run):
    folder, _, (first, second) = run
    assert first["resumed"] == second["resumed"]
    expected = launched.outcome(EXACT["held-out rows"]())
    assert_close(first["resumed"], expected, 1e-5)
    assert len(list((folder / "fits").iterdir())) == 1


@pytest.mark.slow
def test_search_of_two_processes_equals_that_of_one(run):
    _, _, (first, second) = run
    assert first["search"] == second["search"]
    found = launched.search().fit(DIGITS[:200]).cv_results_["mean_test_score"]
    assert_allclose(first["search"]["scores"], found, rtol=1e-5)


@pytest.mark.slow
def test_callback_of_one_process_ends_the_training_in_all(run):
    _, _, (first, second) = run
    assert first["stopped"] == second["stopped"]
    assert first["stopped"]["n_iter"] == 2


@pytest.mark.slow
def test_callback_of_batches_in_one_process_changes_nothing(run):
    _, _, (first, second) = run
    assert first["watched"] == second["watched"]
    expected = launched.outcome(transformer().fit(launched.WINE))
    assert_close(first["watched"], expected, 1e-5)


@pytest.mark.slow
def test_seed_of_one_process_is_that_of_all_also_with_a_checkpoint(run):
    folder, _, (first, second) = run
    assert first["seeded in one"] == second["seeded in one"]
    assert len(list((folder / "seeds").iterdir())) == 2  # the seed, and the training


@pytest.mark.slow
def test_each_process_may_train_by_itself(run):
    _, _, (first, second) = run
    assert_close(first["single"], launched.outcome(transformer().fit(DIGITS)), 1e-12)
    expected = launched.outcome(transformer().fit(DIGITS[100:]))
    assert_close(second["single"], expected, 1e-12)


@pytest.mark.slow
def test_processes_without_a_seed_train_one_network(run):
    folder, _, (first, second) = run
    assert first["unseeded"] == second["unseeded"]
    loaded = skae.load(folder / "model.safetensors")
    assert_allclose(loaded.score_samples(DIGITS), first["unseeded"]["scores"])


@pytest.mark.slow
def test_different_rows_are_refused_in_all_processes(run):
    _, _, results = run
    for result in results:
        assert "must be the same in all 2 processes" in result["different rows"]
        assert "single_process" in result["different rows"]


@pytest.mark.slow
def test_one_process_prints(run):
    _, output, _ = run
    assert output.count("epoch 1/2") == 1
    assert "log of 0" in output
    assert "log of 1" not in output


@pytest.mark.slow
def test_one_process_warns():
    assert launch("warn").stderr.count("ConvergenceWarning:") == 1


@pytest.mark.slow
def test_end_of_one_process_ends_the_run():
    start = time.perf_counter()
    finished = launch("die", is_valid=False)
    assert "exitcode  : 7" in finished.stderr
    assert time.perf_counter() - start < 60


@pytest.mark.slow
@pytest.mark.parametrize("n_processes", [2, 3])
def test_all_kinds_of_fits(n_processes, tmp_path):
    _, results = launch_fits(tmp_path, [*EXACT, *SIMILAR], n_processes)
    for name, fit in EXACT.items():
        expected = launched.outcome(fit())
        assert_close(results[0][name], expected, 1e-4)
    for name, fit in SIMILAR.items():
        expected = launched.outcome(fit())
        scores = np.mean([expected["scores"], results[0][name]["scores"]], axis=1)
        assert_allclose(scores[1], scores[0], rtol=0.15, err_msg=name)
    for name in (*EXACT, *SIMILAR):
        assert all(result[name] == results[0][name] for result in results)


# Tables in partitions


@pytest.fixture
def run_of_partitions(run):
    return [result["partitions"] for result in run[2]]


def fit_alone(name, monkeypatch):
    """Return the results of a fit of a table in partitions by this process."""
    monkeypatch.setattr(_streamed, "MAX_GATHERED", 100)
    return launched_partitions.outcome(name)


def assert_similar_fits(results, name, monkeypatch):
    """Check that processes have equal models, as good as that of this process."""
    assert all(result[name] == results[0][name] for result in results)
    if name == "unseeded":
        return
    found, alone = results[0][name], fit_alone(name, monkeypatch)
    if name in launched_partitions.FITS:
        assert abs(found["explained"] - alone["explained"]) < 0.02
        return
    training, scores = (np.array(found[key]) for key in ("training_scores", "scores"))
    assert_allclose(training, scores, rtol=1e-6)
    assert_allclose(np.median(scores), np.median(alone["scores"]), rtol=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW_PARTITIONED)
def test_fit_of_partitions_is_like_that_of_one_process(
    name, run_of_partitions, monkeypatch
):
    assert_similar_fits(run_of_partitions, name, monkeypatch)


@pytest.mark.slow
def test_small_table_in_partitions_is_loaded(run_of_partitions):
    first, second = (result["small table"] for result in run_of_partitions)
    assert first == second
    expected = launched_partitions.fit_small().score(launched_partitions.X)
    assert abs(first - expected) < 1e-3


@pytest.mark.slow
def test_processes_have_every_row_once_in_an_epoch(run_of_partitions):
    first, second = (result["seen"] for result in run_of_partitions)
    assert len(first) == len(second) == 3
    for batches, others in zip(first, second, strict=True):
        pairs = list(zip(batches, others, strict=True))
        assert all(abs(len(one) - len(other)) <= 1 for one, other in pairs)
        numbers = np.concatenate([row for pair in pairs for row in pair]).astype(int)
        assert_array_equal(np.sort(numbers), 1 + np.arange(len(launched_partitions.X)))


@pytest.mark.slow
def test_each_process_reads_its_own_partitions(run_of_partitions):
    n_partitions, n_epochs = len(launched_partitions.EVEN), 3
    n_read = n_epochs * n_partitions // 2
    epochs = []
    for rank, result in enumerate(run_of_partitions):
        before, reads = result["reads"][:-n_read], result["reads"][-n_read:]
        # Both read the first partition to learn the columns.
        others = [number for number in before if number != 0]
        assert others == [i for i in range(rank, n_partitions, 2) if i != 0]
        epochs.append(np.reshape(reads, (n_epochs, -1)))
    for numbers in np.hstack(epochs):
        assert_array_equal(np.sort(numbers), np.arange(n_partitions))
    assert len(np.unique(epochs[0], axis=0)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("case", launched_partitions.ERRORS)
def test_what_fails_in_one_process_is_raised_in_all(case, run_of_partitions):
    message = launched_partitions.ERRORS[case][1]
    for result in run_of_partitions:
        assert re.match(message, result["errors"][case])


@pytest.mark.slow
@pytest.mark.parametrize("n_processes", [2, 3])
def test_all_kinds_of_fits_of_partitions(n_processes, tmp_path, monkeypatch):
    names = [*launched_partitions.FITS, *launched_partitions.DETECTORS]
    arguments = [f"partitions: {name}" for name in names]
    _, results = launch_fits(tmp_path, arguments, n_processes)
    results = [result["partitions"] for result in results]
    for name in names:
        assert_similar_fits(results, name, monkeypatch)


# In this process, with stand-ins for the others


@pytest.mark.parametrize(("n_rows", "batch_size", "n_parts"), [(10, 4, 2), (23, 7, 3)])
def test_parts_of_batches_are_all_rows_once(n_rows, batch_size, n_parts):
    bounds = batch_bounds(n_rows, batch_size)
    parts = np.stack([parts_of_batches(bounds, i, n_parts) for i in range(n_parts)])
    assert_array_equal(parts[0, :, 0], bounds[:-1])
    assert_array_equal(parts[-1, :, 1], bounds[1:])
    assert_array_equal(parts[1:, :, 0], parts[:-1, :, 1])
    assert np.ptp(parts[..., 1] - parts[..., 0], axis=0).max() <= 1


def several(rank=0, size=2):
    others = Processes()
    others.rank, others.size = rank, size
    return others


@pytest.mark.parametrize(("smallest", "n_parts"), [(3, 1), (4, 2), (100, 2)])
def test_small_batches_are_not_divided(smallest, n_parts):
    division = Division(several(), smallest)
    assert division.part == (0, n_parts)
    assert division.is_real == (n_parts > 1)


class ShareOfOther(Processes):
    """Two processes, of which the other adds given tensors."""

    size = 2

    def __init__(self, others):
        self.others = iter(others)

    def add(self, tensors, factor=1.0):
        for tensor in tensors:
            tensor.mul_(factor).add_(next(self.others))


@pytest.mark.parametrize("trim", [0.0, 0.25])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_mean_loss_of_a_part_depends_on_all_rows(trim, is_weighted):
    losses = torch.tensor([9.0, 1.0, 2.0, 3.0, 8.0])
    weight = torch.tensor([1.0, 2.0, 0.5, 1.0, 0.5]) if is_weighted else torch.ones(5)
    parts = [slice(0, 2), slice(2, 5)]
    means = []
    for own, other in (parts, parts[::-1]):
        rest = torch.zeros(5)
        rest[other] = losses[other]
        rest_of_weight = torch.zeros(5)
        rest_of_weight[other] = weight[other]
        division = Division(ShareOfOther([rest, rest_of_weight]), 5)
        division._place = own, 5
        given = weight[own] if is_weighted else torch.ones(1).expand(len(losses[own]))
        batch = Batch(torch.zeros(len(given), 1), None, given)
        means.append(division.mean_loss(losses[own], batch, trim))
    # Without the two largest losses, or their weight.
    found = sum(
        mean * len(losses[part]) / 5 for mean, part in zip(means, parts, strict=True)
    )
    expected = (losses * weight).sum() / 5
    if trim:
        weighted, uniform = [0.0, 2.0, 0.5, 0.5, 0.0], [0.0, 1.0, 1.0, 1.0, 0.0]
        kept = torch.tensor(weighted if is_weighted else uniform)
        expected = (losses * kept).sum() / 3
    torch.testing.assert_close(found, expected)


def test_processes_of_a_library_train_alone(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes._is_one_of_several()
    with skae.distributed.single_process():
        assert not processes._is_one_of_several()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not processes._is_one_of_several()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(multiprocessing.current_process(), "_name", "LokyProcess-1")
    assert not processes._is_one_of_several()


@pytest.fixture
def two_processes(monkeypatch):
    """Let trainings believe that there is a second process, which does nothing."""
    monkeypatch.setattr(processes, "_is_one_of_several", lambda: True)
    monkeypatch.setattr(processes, "_group", several)


@pytest.mark.usefixtures("two_processes")
def test_training_within_another_is_alone():
    with joined_processes() as outer:
        assert outer.are_several
        assert current_processes() is outer
        with joined_processes() as inner:
            assert not inner.are_several
        assert current_processes() is outer
    assert not current_processes().are_several


@pytest.mark.usefixtures("two_processes")
def test_rows_that_one_process_has_read_alone_are_read_again_by_all():
    files = launched_partitions.Files()
    rows = stream_rows(Partitions(files), None).rows

    def count_reads():
        n_before = len(files.reads)
        rows.divided(0.1, 1000, seed=0)
        return len(files.reads) - n_before

    with joined_processes():
        with alone():
            assert count_reads() > 0
            assert count_reads() == 0
        assert count_reads() > 0
        assert count_reads() == 0
        with alone():
            assert count_reads() == 0


@pytest.mark.usefixtures("two_processes")
def test_two_threads_cannot_train_at_the_same_time():
    errors = []

    def fit():
        try:
            transformer().fit(DIGITS)
        except RuntimeError as error:
            errors.append(str(error))

    with joined_processes():
        thread = threading.Thread(target=fit)
        thread.start()
        thread.join()
    assert len(errors) == 1
    assert "Two threads" in errors[0]


@pytest.mark.parametrize("method", ["share", "together"])
def test_error_of_the_function_is_raised(method):
    with pytest.raises(ZeroDivisionError):
        getattr(Processes(), method)(lambda: 1 / 0)


def test_errors_that_cannot_be_pickled_are_sent_as_text():
    class RefusedError(Exception):
        def __init__(self, file, line):
            super().__init__(f"line {line} of {file}")

    sent = processes._sendable(RefusedError("a.csv", 3))
    assert str(sent) == "RefusedError: line 3 of a.csv"
    error = OSError("no disk")
    assert processes._sendable(error) is error
    assert processes._sendable(None) is None


def test_callbacks_that_write_are_for_one_process():
    scoring = ("score", EpochScoring(launched.n_held_out))
    writers = [PrintLog, ("saved", Checkpoint(f_params=None)), ProgressBar()]
    assert without_writers([*writers, scoring]) == [scoring]
