"""Statistics of codes, and the map of codes to mean 0 and variance 1."""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple, Self

import numpy as np

from skae._job import Job
from skae._ordered import Ordered
from skae._prediction import evaluate, evaluate_blocks
from skae._rows import Rows
from skae._scores import MAX_EARLIER_WEIGHT
from skae._summary import Summary, summarize
from skae.engine.net import AutoencoderNet

# Standard deviation of a component, relative to the largest one, up to which it is due
# to rounding.
ROUNDING = 100 * float(np.finfo(np.float64).eps)


class Whitening(NamedTuple):
    """Affine map of codes, separate for each component.

    Attributes
    ----------
    mean, scale : ndarray of shape (n_components,), float64
        A code z becomes ``(z - mean) / scale``.
    """

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, codes: Summary) -> Self:
        """Return the map that gives these codes the mean 0 and the variance 1.

        The scale of a constant component is 1.
        """
        deviation = sample_deviation(codes)
        return cls(codes.mean, np.where(deviation > 0, deviation, 1))

    def apply(self, Z: np.ndarray) -> np.ndarray:
        """Return whitened codes, in float64."""
        return (Z - self.mean) / self.scale

    def undo(self, Z: np.ndarray) -> np.ndarray:
        """Return the codes that `apply` maps to these ones, in float64.

        Codes may be the first components alone.
        """
        largest = np.finfo(np.float64).max
        mean, scale = (values[: Z.shape[1]] for values in self)
        with np.errstate(over="ignore"):
            return (Z * scale + mean).clip(-largest, largest)


def sample_deviation(codes: Summary) -> np.ndarray:
    """Return the standard deviation of each component, of shape (n_components,).

    Sums of squares are divided by n - 1, as in PCA, where n is the weight of the rows,
    but by n / 2 at least: weights may sum to 1. It is 0 for a constant component, and
    for one that varies by no more than rounding errors of the others.
    """
    n = codes.weight
    is_constant = (codes.variance == 0) | ~np.isfinite(codes.variance)
    deviation = np.where(is_constant, 0, codes.deviation)
    deviation = deviation * np.sqrt(n / np.maximum(n - 1, n / 2))
    return np.where(deviation > ROUNDING * deviation.max(), deviation, 0)


def summarize_codes(
    job: Job, net: AutoencoderNet, ordered: Ordered | None
) -> tuple[Summary, ...] | None:
    """Return the statistics of the codes of the training rows, if they are whitened.

    With ordered components, there are codes for each number of components. In a
    `partial_fit` the statistics include those of the earlier calls, as of codes at that
    time and of at most `MAX_EARLIER_WEIGHT` rows.
    """
    if not job.whiten:
        return None
    nets = [net]
    if ordered is not None:
        widths = range(1, net.module_.n_components + 1)
        nets = [ordered.of_width(net, width)[0] for width in widths]
    summaries = tuple(_summarize(job, each) for each in nets)
    earlier = None if job.earlier is None else job.earlier.code_summaries
    if not job.is_partial or earlier is None:
        return summaries
    return tuple(
        _merged(before, now) for before, now in zip(earlier, summaries, strict=True)
    )


def _merged(earlier: Summary, added: Summary) -> Summary:
    weight = np.minimum(earlier.weight, MAX_EARLIER_WEIGHT)
    return earlier._replace(weight=weight).merged(added)


def _summarize(job: Job, net: AutoencoderNet) -> Summary:
    module = net.module_in(np.dtype(np.float64))
    if not job.rows.is_streamed:
        codes = evaluate(module, "encode", job.rows)
        return summarize(Rows(codes, weight=job.rows.weight))

    def of_blocks(rows: Rows) -> Summary:
        summaries = (
            summarize(Rows(codes, weight=rows.weight[where]))
            for where, codes in evaluate_blocks(module, "encode", rows)
        )
        return reduce(Summary.merged, summaries)

    return job.rows.shared(
        of_blocks, lambda *summaries: reduce(Summary.merged, summaries)
    )
