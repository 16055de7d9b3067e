"""The part of each batch on which one of several processes trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from torch import Tensor

from skae._rows import Batch, is_expanded
from skae.engine.batches import TrainingBatches
from skae.engine.objective import trimmed_for_members, trimmed_share, trimmed_weight
from skae.engine.processes import Processes
from skae.engine.streams import StreamedBatches

# Number of rows from which a process gets a part of its own: batch normalisation needs
# two.
MIN_PART = 2


class Division:
    """Divides batches between processes, and combines their gradients.

    All processes draw the same batches, and each computes the loss of its part of the
    rows. The gradient of the mean over the batch is the mean of the gradients of the
    parts, weighted by their numbers of rows.

    Parameters
    ----------
    processes : Processes
    smallest : int
        Number of rows of the smallest batch. If it is too small to be divided, each
        process trains on all rows.

    Attributes
    ----------
    part : tuple of int
        Number of the part of this process, and number of parts.
    """

    def __init__(self, processes: Processes, smallest: int):
        self.processes = processes
        self.part = (0, 1)
        if processes.are_several and smallest >= MIN_PART * processes.size:
            self.part = (processes.rank, processes.size)
        # Where the present batch has the rows of this process, and its number of rows.
        self._place = slice(0, 1), 1

    @property
    def is_real(self) -> bool:
        """Whether there are several parts."""
        return self.part[1] > 1

    def located(self, batches: TrainingBatches | StreamedBatches) -> Iterable[Batch]:
        """Return the parts of batches, and record which rows of the batches they are.

        This has to be known by the time that a part is used.
        """
        if not self.is_real:
            return batches
        return self._located(batches)

    def _located(self, batches: TrainingBatches | StreamedBatches) -> Iterator[Batch]:
        sizes = np.diff(batches.bounds).tolist()
        places = (batches.parts - batches.bounds[:-1, None]).tolist()
        for batch, (start, stop), size in zip(batches, places, sizes, strict=True):
            self._place = slice(start, stop), size
            yield batch

    def combine(self, tensors: list[Tensor]) -> None:
        """Replace gradients of a part by those of the batch, in place.

        Also moving averages over batches, such as those of codebooks.
        """
        where, n_rows = self._place
        self.processes.add(tensors, (where.stop - where.start) / n_rows)

    def mean_loss(self, row_losses: Tensor, batch: Batch, trim: float) -> Tensor:
        """Return the mean loss of a part whose weights depend on the whole batch.

        Parameters
        ----------
        row_losses : Tensor of shape (..., n_part)
        batch : Batch
            The part.
        trim : float
            Share of the weight of the whole batch that is left out, see
            :func:`trimmed_weight`.

        Returns
        -------
        loss : Tensor of shape () or (n_networks,)
        """
        where, n_rows = self._place
        losses, weight = self._gathered(row_losses.detach()), batch.weight
        if is_expanded(weight):
            weight = weight[:1].expand(n_rows)
        else:
            weight = self._gathered(weight)
        if batch.is_learnt is not None:
            is_learnt = self._gathered(batch.is_learnt.T)
            kept = trimmed_for_members(losses, weight, is_learnt, trim)
        else:
            share = trimmed_share(trim, n_rows)
            kept = trimmed_weight(losses, weight, share) / ((1 - share) * n_rows)
        # A mean over the part, as `combine` expects.
        sums = (row_losses * kept[..., where]).sum(dim=-1) * (n_rows / batch.n_rows)
        return sums if weight.ndim == 2 else sums.mean()

    def _gathered(self, values: Tensor) -> Tensor:
        """Return values of all rows of the batch; the last axis is that of rows."""
        where, n_rows = self._place
        whole = values.new_zeros(*values.shape[:-1], n_rows)
        whole[..., where] = values
        self.processes.add([whole])
        return whole
