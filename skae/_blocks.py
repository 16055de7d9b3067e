"""Blocks of an ensemble: members that are trained together, apart from the others.

The members of a block are trained as one network, whose products are computed together.
Rounding depends on the sizes of these products, and a rounding error of the first step
changes the scores of the fitted detector by a tenth of their mean. So the blocks depend
on the parameters alone, and not on the number of processes that train them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from joblib import effective_n_jobs
from joblib.parallel import get_active_backend
from sklearn.utils.parallel import Parallel, delayed
from skorch.history import History

from skae._build import Start, join_members, take_members
from skae._callbacks import Task
from skae._job import Job, starts_at_pca
from skae._layers import FrozenModule
from skae._processor import threads_for
from skae.engine.interrupt import Interruption
from skae.engine.net import AutoencoderNet
from skae.engine.networks import Split
from skae.engine.processes import current_processes


class Block(NamedTuple):
    """What a worker needs to train the members of a block.

    Attributes
    ----------
    job : Job
        The job on all members, with the seed of this block.
    module, objective : FrozenModule
        The initial network of these members, and its objective.
    split : Split
    """

    job: Job
    module: FrozenModule
    objective: FrozenModule
    split: Split

    def start(self) -> Start:
        """Return a new module and a new objective."""
        module: Any = self.module.thaw()
        objective: Any = self.objective.thaw()
        return Start(module, objective)


def n_blocks(job: Job, start: Start, split: Split, task: Task) -> int:
    """Return the number of blocks in which the members are trained.

    It is 1 where members depend on each other: where their mean objective decides when
    all stop, or whether all return to their initial weights; where callbacks see the
    network of all; and where they share weights of the objective. On a GPU, more
    members in one network take hardly more time, each block would read a table in
    partitions by itself, and several processes divide batches instead of members.
    """
    ensemble, settings = job.ensemble, job.settings
    is_compared = job.earlier is None and starts_at_pca(job.parts, settings.init)
    is_whole = (
        ensemble is None
        or job.is_partial
        or job.rows.is_streamed
        or current_processes().are_several
        or split.is_judged
        or is_compared
        or bool(settings.callbacks)
        or task.has_callbacks
        or job.device.type != "cpu"
        or any(True for _ in start.objective.parameters())
    )
    if ensemble is None or is_whole:
        return 1
    return -(-ensemble.n_members // ensemble.n_together)


def divide(job: Job, start: Start, split: Split, n_blocks: int) -> list[Block]:
    """Divide the members into blocks of about equal size, in their order.

    Each block has random numbers of its own, the first one those of the job. A step
    uses one thread unless the user has chosen a number: results differ between numbers
    of threads, and several workers share the processors.
    """
    assert job.ensemble is not None
    settings = job.settings
    if settings.n_threads == "auto":
        settings = replace(settings, n_threads=1)
    blocks = []
    for part in np.array_split(np.arange(job.ensemble.n_members), n_blocks):
        members, seed = slice(part[0], part[-1] + 1), job.seed
        if members.start > 0:
            sequence = np.random.SeedSequence([job.seed, members.start])
            seed = int(sequence.generate_state(1)[0])
        folds = split.members
        if folds is not None:
            folds = folds._replace(group=folds.group[members])
        checkpoint = job.checkpoint and job.checkpoint.of_part(part[0])
        block = Block(
            replace(job, seed=seed, settings=settings, checkpoint=checkpoint),
            FrozenModule(take_members(start.module, members)),
            FrozenModule(start.objective),
            split._replace(members=folds),
        )
        blocks.append(block)
    return blocks


def run_blocks(
    train: Callable[[Block, Interruption], Any],
    blocks: list[Block],
    interruption: Interruption,
) -> list[Any]:
    """Train the members of each block, in as many workers as `n_jobs` says.

    Parameters
    ----------
    train : callable
        Trains the members of a block, in this process or in another one.
    blocks : list of Block
    interruption : Interruption
        Records Ctrl-C.

    Returns
    -------
    runs : list of object
        What `train` returned, in the order of the blocks. After Ctrl-C, these are the
        first blocks that are complete or, if this process was training the first one,
        this one alone.

    Raises
    ------
    KeyboardInterrupt
        On Ctrl-C if no member has been trained.
    """
    settings, ensemble = blocks[0].job.settings, blocks[0].job.ensemble
    assert ensemble is not None
    verbose = 0
    # Some backends start all workers at once.
    n_jobs = min(effective_n_jobs(ensemble.n_jobs), len(blocks))
    if n_jobs > 1:
        verbose = int(settings.verbose)
        blocks = [_silent(block) for block in blocks]
    tasks = (delayed(train)(block, interruption) for block in blocks)
    runs: list[Any] = []
    # If the workers are threads, none must restore the number of threads of BLAS while
    # another one computes.
    limit = threads_for(0, settings.n_threads)
    with limit, closing(_results(tasks, n_jobs, verbose)) as results:
        while len(runs) < len(blocks) and not interruption.requested:
            try:
                with interruption.allowed():
                    run = next(results)
            except KeyboardInterrupt:
                interruption.requested = True
                break
            if not runs or not interruption.requested:
                runs.append(run)
    if not runs:
        raise KeyboardInterrupt
    return runs


def _results(
    tasks: Iterable[Any], n_jobs: int, verbose: int
) -> Generator[Any, None, None]:
    """Yield the results of tasks in their order.

    A backend that gives them only all at once, such as that of Ray, yields them after
    the last one.
    """
    backend, _ = get_active_backend()
    is_lazy = getattr(backend, "supports_return_generator", False)
    return_as = "generator" if is_lazy else "list"
    yield from Parallel(n_jobs, verbose=verbose, return_as=return_as)(tasks)


def _silent(block: Block) -> Block:
    settings = replace(block.job.settings, verbose=0)
    return block._replace(job=replace(block.job, settings=settings))


def join_nets(nets: Sequence[AutoencoderNet], n_earlier: int) -> AutoencoderNet:
    """Return the net of the members of several blocks, after the same epochs.

    Parameters
    ----------
    nets : sequence of AutoencoderNet
        Trained nets. They are not changed.
    n_earlier : int
        Number of epochs of earlier trainings in their histories.

    Returns
    -------
    net : AutoencoderNet
        The losses in its history are means over all members.
    """
    first, *others = nets
    module = first.module_
    for other in others:
        module = join_members(module, other.module_)
    net = first.with_module(module)
    weight = [other.module_.n_members for other in nets]
    history = History(first.history[:n_earlier])
    lowest = min((epoch["train_loss"] for epoch in history), default=np.inf)
    for epochs in zip(*(each.history[n_earlier:] for each in nets), strict=True):
        epoch = {**epochs[0], **_mean(epochs, weight)}
        epoch["train_loss_best"] = epoch["train_loss"] < lowest
        lowest = min(lowest, epoch["train_loss"])
        # The records of epochs before a fit was killed are not stored.
        records = zip(*(each["batches"] for each in epochs), strict=False)
        epoch["batches"] = [{**each[0], **_mean(each, weight)} for each in records]
        history.append(epoch)
    net.__dict__["history_"] = history
    return net


def _mean(records: Sequence[dict[str, Any]], weight: Sequence[int]) -> dict[str, float]:
    losses = [record["train_loss"] for record in records]
    return {"train_loss": float(np.average(losses, weights=weight))}
