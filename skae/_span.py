"""Training in the space that a few wide rows span, in coordinates of their axes.

Fewer rows than features span a small space, outside of which their reconstructions need
not reach. A network whose first and last layers are dense can be trained on the
coordinates of the rows instead: the squared distance is the same, and the layers take
as many numbers as there are rows. Afterwards these layers are multiplied by the axes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from scipy import linalg, sparse
from torch import nn

from skae._build import scaling, with_completion
from skae._job import Job, Reduction, starts_at_pca
from skae._layers import first_layers, last_layers
from skae._module import Autoencoder, Scaler
from skae._processor import threads_for
from skae._rows import BLOCK_ENTRIES, Rows
from skae._summary import MAX_DENSE_ENTRIES, summarize
from skae.networks import Network

# On 28 tables of 30 to 300 rows (images, texts, advertisements, counts, categories and
# generated factors, with Gaussian or heavy tails, some standardized; 49 fits of two and
# five components), networks that were trained on coordinates explained .004 more of the
# variance of test rows (standard error .002; the worst .022 less, the best .048 more)
# in a third of the time, with a kurtosis of the columns above 10 as below.

# Smallest ratio of features to rows. Nearer to one, the coordinates save little time.
MIN_RATIO = 2

# Largest number of rows: their products with each other are decomposed in cubic time.
MAX_ROWS = 2000

# Variance, relative to the largest one, up to which an axis is due to rounding. That of
# products of rows is computed up to the machine epsilon times the largest variance.
MIN_VARIANCE = 1e-10


class Span(NamedTuple):
    r"""Orthonormal axes of the space that centered rows span.

    With the singular value decomposition :math:`X - \mu = U S V^\top` and a random
    rotation Q, the axes are :math:`V Q`, and the coordinates of the rows
    :math:`U S Q`. Without the rotation most coordinates would have small variances,
    and the optimizer, which takes steps of similar size along all of them, would fit
    their noise; the columns of a wide table usually have similar variances.

    Attributes
    ----------
    rows : Rows
        The rows X.
    scaler : Scaler
        Mean :math:`\mu` and factor f of the rows.
    coordinates : ndarray of shape (n_rows, rank)
        Coordinates of the rows along the axes.
    combinations : ndarray of shape (n_rows, rank)
        :math:`U S^{-1} Q`: the axes are these linear combinations of the rows.
    """

    rows: Rows
    scaler: Scaler
    coordinates: np.ndarray
    combinations: np.ndarray

    @classmethod
    def of(cls, rows: Rows, scaler: Scaler, seed: int) -> Span:
        """Compute the axes from the products of the rows with each other."""
        products = np.zeros((len(rows), len(rows)))
        for _, block in _scaled_columns(rows, scaler):
            products += block @ block.T
        variances, U = linalg.eigh(products, overwrite_a=True, check_finite=False)
        real = variances > MIN_VARIANCE * variances[-1]
        U, S = U[:, real], np.sqrt(variances[real])
        rng = np.random.default_rng([seed, 1])
        Q, _ = np.linalg.qr(rng.standard_normal((len(S), len(S))))
        return cls(rows, scaler, U * S @ Q, U / S @ Q)

    def times_axes(self, matrix: np.ndarray) -> np.ndarray:
        """Multiply a matrix of shape (m, rank) by the axes, (m, n_features)."""
        product = np.empty((len(matrix), self.rows.n_features), np.float32)
        left = matrix @ self.combinations.T
        for where, block in _scaled_columns(self.rows, self.scaler):
            product[:, where] = left @ block
        return product

    def oriented(self, axes: np.ndarray) -> np.ndarray:
        """Return axes of the coordinates with their signs in the space of the rows.

        There, the entry of largest magnitude of each is positive.
        """
        in_space = self.times_axes(axes)
        largest = np.abs(in_space).argmax(axis=1)
        signs = np.sign(in_space[np.arange(len(axes)), largest])
        return axes * np.where(signs < 0, -1, 1)[:, None]


def reduced(job: Job) -> Job:
    """Return a job on the coordinates of the rows, or the job itself.

    It is the job itself unless the rows are few and have no missing entry, and
    objective and network depend on the features only by way of distances and dense
    layers.
    """
    network = _reduced_network(job)
    if network is None:
        return job
    with threads_for(len(job.rows) ** 2 * job.rows.n_features, job.settings.n_threads):
        span = Span.of(job.rows, _scaler(job), job.seed)
    if span.coordinates.size == 0:  # all rows are equal
        return job
    rows = Rows(span.coordinates, None, job.rows.weight)
    return replace(
        job,
        rows=rows,
        parts=job.parts._replace(network=network),
        # The coordinates are centered: a mean other than zero is due to rounding.
        summary=summarize(rows)._replace(mean=np.zeros(rows.n_features)),
        input_shape=(rows.n_features,),
        completes_rows=False,  # no entry is missing
        reduction=Reduction(job, partial(_expanded, span), span.oriented),
    )


def _reduced_network(job: Job) -> Network | None:
    """Return the network that is trained on coordinates, or None if none can be."""
    rows, parts, settings = job.rows, job.parts, job.settings
    is_wide = rows.n_features >= MIN_RATIO * len(rows) and len(rows) <= MAX_ROWS
    is_first = job.earlier is None and not job.is_partial
    if not (is_wide and is_first) or rows.is_streamed:
        return None
    if job.validation_rows is not None:  # they are outside of the space
        return None
    if sparse.issparse(rows.X) and rows.n_entries > MAX_DENSE_ENTRIES:
        return None
    if job.summary.weight.min() < (1 - 1e-9) * rows.weight.sum():  # entries are missing
        return None
    is_invariant = (
        starts_at_pca(parts, settings.init)
        and parts.loss.is_squared_distance
        and not parts.bottleneck.has_term
        and parts.bottleneck.noise_variance is None
        and parts.corruption is None
        and parts.penalty is None
        and job.ensemble is None
        and settings.scale == "global"
    )
    # Callbacks find the rows and the network of the estimator.
    if not is_invariant or settings.callbacks:
        return None
    return parts.network.for_coordinates(job.shape)


def _scaler(job: Job) -> Scaler:
    may_scale = np.ones(job.rows.n_features, dtype=bool)
    shift, factor = scaling(job.settings, job.summary, may_scale, at_pca=True)
    return with_completion(Scaler(job.summary.mean, shift, factor), job)


def _expanded(span: Span, module: Autoencoder) -> Autoencoder:
    """Return a module for rows from one that was trained on their coordinates.

    Parameters
    ----------
    span : Span
        Axes of the coordinates.
    module : Autoencoder
        It is not changed.

    Returns
    -------
    Autoencoder
        In eval mode, on the device of `module`.
    """
    module = copy.deepcopy(module)
    # The coordinates are scaled rows, which are scaled again, and centered.
    ratio, factor = float(module.scaler.factor[0]), float(span.scaler.factor[0])
    for layer in first_layers(module.encoder):
        weight = layer.weight.detach().double().cpu().numpy()
        _set_weight(layer, span.times_axes(weight / ratio))
    for layer in last_layers(module.decoder):
        both = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()
        product = span.times_axes(ratio * both.double().cpu().numpy().T).T
        _set_weight(layer, product[:, :-1])
        layer.bias = nn.Parameter(torch.from_numpy(product[:, -1].copy()))
    expanded = Autoencoder(
        copy.deepcopy(span.scaler),
        module.encoder.cpu(),
        module.bottleneck.cpu(),
        module.decoder.cpu(),
        module.output,
        module.loss,
        n_components=module.n_components,
        draws_globally=module.draws_globally,
        prefixes=module.prefixes,
    )
    # Codes have the units of the coordinates, but users receive those of the data.
    expanded.code_factor = factor * module.code_factor.cpu()
    expanded.max_refinements = module.max_refinements
    expanded.max_validation_refinements = module.max_validation_refinements
    return expanded.eval().to(module.scaler.mean.device)


def _set_weight(layer: nn.Linear, weight: np.ndarray) -> None:
    layer.weight = nn.Parameter(torch.from_numpy(np.ascontiguousarray(weight)))
    layer.out_features, layer.in_features = weight.shape


def _scaled_columns(rows: Rows, scaler: Scaler) -> Iterator[tuple[slice, np.ndarray]]:
    """Iterate over blocks of columns of the scaled rows, in float64."""
    is_sparse = sparse.issparse(rows.X)
    X = rows.selected().tocsc() if is_sparse else rows.X
    mean, factor = scaler.mean.numpy(), scaler.factor.numpy()
    size = max(1, BLOCK_ENTRIES // len(rows))
    for start in range(0, rows.n_features, size):
        where = slice(start, start + size)
        if is_sparse:
            block = X[:, where].toarray()
        else:
            block = X[:, where] if rows.index is None else X[rows.index, where]
        yield where, (block.astype(np.float64) - mean[where]) / factor[where]
