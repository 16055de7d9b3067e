"""Blocks of an ensemble: how many there are, what each has, and in which order."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from joblib import parallel_config
from skorch.callbacks import Callback

from skae import AutoencoderOutlierDetector, _blocks
from skae._blocks import divide, n_blocks, run_blocks
from skae._build import build_start
from skae._callbacks import Task
from skae._checks import check_fit
from skae._split import split_rows
from skae.engine.interrupt import Interruption

X = np.random.default_rng(0).normal(size=(30, 4))
OBSERVED = SimpleNamespace(has_callbacks=True)


def prepared(**settings):
    """Return the job, the start and the split of a fit."""
    detector = AutoencoderOutlierDetector(random_state=0, **settings)
    job = check_fit(detector, X, None, earlier=None)
    return job, build_start(job), split_rows(job)


def blocks_of(n_estimators=40, n_parts=3, **settings):
    return divide(*prepared(n_estimators=n_estimators, **settings), n_parts)


@pytest.mark.parametrize(
    ("settings", "task", "expected"),
    [
        ({}, Task(), 1),
        ({"n_estimators": 1, "max_features": 1.0}, Task(), 1),
        ({"n_estimators": 16}, Task(), 1),
        ({"n_estimators": 17}, Task(), 2),
        ({"n_estimators": 40}, Task(), 3),
        ({"n_estimators": 40}, OBSERVED, 1),
        ({"n_estimators": 40, "callbacks": [Callback()]}, Task(), 1),
        ({"n_estimators": 40, "early_stopping": True}, Task(), 1),
        ({"n_estimators": 40, "init": "pca"}, Task(), 1),
        ({"n_estimators": 3, "network": "conv"}, Task(), 3),
    ],
)
def test_members_that_depend_on_each_other_are_one_block(settings, task, expected):
    assert n_blocks(*prepared(**settings), task) == expected


def test_later_pieces_and_devices_other_than_the_cpu_are_one_block():
    job, *others = prepared(n_estimators=40)
    assert n_blocks(job, *others, Task()) == 3
    for changes in ({"is_partial": True}, {"device": torch.device("meta")}):
        assert n_blocks(replace(job, **changes), *others, Task()) == 1


def test_rows_that_are_streamed_and_several_processes_are_one_block(monkeypatch):
    job, *others = prepared(n_estimators=40)
    streamed = replace(job, rows=SimpleNamespace(is_streamed=True))
    assert n_blocks(streamed, *others, Task()) == 1
    processes = SimpleNamespace(are_several=True)
    monkeypatch.setattr(_blocks, "current_processes", lambda: processes)
    assert n_blocks(job, *others, Task()) == 1


def test_members_that_share_weights_of_the_objective_are_one_block():
    job, start, split = prepared(n_estimators=40)
    start = start._replace(objective=torch.nn.Linear(1, 1))
    assert n_blocks(job, start, split, Task()) == 1


def test_blocks_have_all_members_in_order_and_numbers_of_their_own():
    job, start, split = prepared(n_estimators=40)
    blocks = divide(job, start, split, 3)
    modules = [block.start().module for block in blocks]
    assert [module.n_members for module in modules] == [14, 13, 13]
    for weights in zip(
        start.module.encoder.parameters(),
        *(module.encoder.parameters() for module in modules),
        strict=True,
    ):
        assert torch.equal(weights[0], torch.cat(weights[1:]))
    seeds = [block.job.seed for block in blocks]
    assert seeds[0] == job.seed
    assert len(set(seeds)) == 3
    assert seeds == [block.job.seed for block in divide(job, start, split, 3)]


@pytest.mark.parametrize(("n_threads", "expected"), [("auto", 1), (2, 2)])
def test_a_block_uses_one_thread_unless_a_number_is_set(n_threads, expected):
    blocks = blocks_of(n_threads=n_threads)
    assert {block.job.settings.n_threads for block in blocks} == {expected}


def named_by_size(block, interruption):
    return block.start().module.n_members, block.job.settings.verbose


@pytest.mark.parametrize("n_jobs", [None, 1])
def test_blocks_are_trained_in_order_in_this_process(n_jobs, capsys):
    blocks = blocks_of(n_jobs=n_jobs, verbose=1)
    runs = run_blocks(named_by_size, blocks, Interruption())
    assert runs == [(14, 1), (13, 1), (13, 1)]
    assert "workers" not in capsys.readouterr().err  # an epoch prints its own line


def test_workers_show_no_progress_of_their_own(capsys):
    with parallel_config("threading"):
        runs = run_blocks(named_by_size, blocks_of(n_jobs=2, verbose=1), Interruption())
    assert runs == [(14, 0), (13, 0), (13, 0)]
    assert "2 concurrent workers" in capsys.readouterr().err


@pytest.mark.parametrize(("stopped_in", "n_complete"), [(14, 1), (13, 1), (0, 3)])
def test_ctrl_c_leaves_the_complete_blocks(stopped_in, n_complete):
    def train(block, interruption):
        n_members = block.start().module.n_members
        interruption.requested |= n_members == stopped_in
        return n_members

    interruption = Interruption()
    runs = run_blocks(train, blocks_of(), interruption)
    assert runs == [14, 13, 13][:n_complete]


def test_after_ctrl_c_no_further_block_is_trained():
    trained = []

    def train(block, interruption):
        trained.append(block.start().module.n_members)
        interruption.requested = True

    run_blocks(train, blocks_of(), Interruption())
    assert trained == [14]


def test_ctrl_c_without_a_complete_block_is_raised():
    def train(block, interruption):
        raise KeyboardInterrupt

    interruption = Interruption()
    with pytest.raises(KeyboardInterrupt):
        run_blocks(train, blocks_of(), interruption)
    assert interruption.requested
