"""Completion of rows with missing entries by a normal distribution of the rows."""

from __future__ import annotations

import numpy as np
import torch
from scipy import linalg
from torch import Tensor, nn

from skae._pca import MAX_COVARIANCE_WIDTH, principal_axes
from skae._rows import BLOCK_ENTRIES, Rows
from skae._summary import Summary

# Largest number of features of which the whole correlation matrix is estimated; of
# more, as many axes of the rows as `MAX_AXES`, and a variance of its own for the rest
# of each feature.
MAX_WIDTH, MAX_AXES = 128, 64

# Smallest and largest number of rows from which the distribution is estimated, and the
# multiplications of one step of the EM algorithm that determine the number between.
MIN_ROWS, MAX_ROWS, MAX_WORK = 500, 10_000, 2**28

# Entries of the sample of rows with more features than `MAX_WIDTH`.
MAX_ENTRIES = 2**20

# Largest number of steps of the EM algorithm, and the mean change of the completed
# entries, in standard deviations, below which it ends.
MAX_STEPS, MIN_CHANGE = 20, 1e-2

# Smallest share of a feature's variance that belongs to the feature alone. Without it,
# a feature that others determine exactly would need a division by zero.
MIN_NOISE = 1e-3

# Smallest variance of this noise, as a share of the largest one. Features in units so
# different have no common scale, and the variances of the smallest could become zero.
MIN_NOISE_RATIO = 1e-24

# Number of directions in which completed rows are varied, see `Completion.varied`.
N_DIRECTIONS = 8


class Completion(nn.Module):
    r"""Replaces missing entries by their expectation given the observed ones.

    Rows are taken as normally distributed, with K common factors and noise of each
    feature,

    .. math:: x = m + W t + e, \quad t \sim N(0, I_K), \quad
        e \sim N(0, \operatorname{diag} \psi).

    With the index o for the observed features, the expectation of all features is
    [1]_

    .. math:: m + W (I + W_o^\top \Psi_o^{-1} W_o)^{-1} W_o^\top \Psi_o^{-1}
        (x_o - m_o).

    Parameters
    ----------
    center : ndarray of shape (n_features,)
        :math:`m`, in the scaled space.
    loadings : ndarray of shape (n_features, K)
        :math:`W`.
    noise : ndarray of shape (n_features,)
        :math:`\psi > 0`.

    References
    ----------
    .. [1] Tipping, M. E., & Bishop, C. M. (1999). Probabilistic principal component
       analysis. Journal of the Royal Statistical Society B, 61(3), 611-622.
    """

    center: Tensor
    loadings: Tensor
    noise: Tensor
    directions: Tensor

    def __init__(self, center: np.ndarray, loadings: np.ndarray, noise: np.ndarray):
        super().__init__()
        self.register_buffer("center", torch.from_numpy(center))
        self.register_buffer("loadings", torch.from_numpy(loadings))
        self.register_buffer("noise", torch.from_numpy(noise))
        directions = _directions(loadings, noise)
        self.register_buffer("directions", torch.from_numpy(directions))

    def forward(self, X: Tensor, observed: Tensor) -> Tensor:
        """Complete rows. Those without an observed entry are returned unchanged.

        Parameters
        ----------
        X : Tensor of shape (n_samples, n_features)
            Scaled rows, with any finite value where an entry is missing.
        observed : Tensor of bool of shape (n_samples, n_features)
        """
        is_incomplete = ~observed.all(dim=1) & observed.any(dim=1)
        positions = is_incomplete.nonzero()[:, 0]
        for rows in positions.split(max(1, BLOCK_ENTRIES // self.loadings.numel())):
            # In float64: features that are nearly collinear lose digits.
            exact = X[rows].to(self.center.dtype)
            completed = self.expectation(exact, observed[rows]).to(X.dtype)
            X = X.index_copy(0, rows, completed)
        return X

    def expectation(self, X: Tensor, observed: Tensor) -> Tensor:
        """Complete rows without a branch on values, as a recorded step needs it."""
        center = self.center.to(X.dtype)
        explained = self._explained((X - center)[:, :, None], observed)[:, :, 0]
        is_filled = ~observed & observed.any(dim=1, keepdim=True)
        return torch.where(is_filled, center + explained, X)

    def varied(self, X: Tensor, observed: Tensor) -> Tensor:
        r"""Return several completions of each row, whose mean is the expectation.

        They are :math:`\tilde x \pm \delta_i`, of a normal distribution with the
        conditional covariance of the missing entries: :math:`\delta_i` is the part of
        a direction :math:`y_i` that the observed entries leave open. The outer
        products of all :math:`y_i` have the mean :math:`W W^\top + \Psi`; a few of them
        stand for all.

        Parameters
        ----------
        X : Tensor of shape (n_samples, n_features)
            Completed rows.
        observed : Tensor of bool of shape (n_samples, n_features)

        Returns
        -------
        Tensor of shape (2 * N_DIRECTIONS, n_samples, n_features)
        """
        Y = self.directions.T.to(X.dtype)[None]
        rest = torch.where(observed[:, :, None], 0, Y - self._explained(Y, observed))
        rest = rest.movedim(2, 0)  # (N_DIRECTIONS, n_samples, n_features)
        return torch.cat([X + rest, X - rest])

    def _explained(self, R: Tensor, observed: Tensor) -> Tensor:
        """Return W times the expectation of t, for centered rows.

        Parameters
        ----------
        R : Tensor of shape (n_samples, n_features, m)
            Several centered rows with the same observed entries; the first length may
            be 1, which stands for all.
        observed : Tensor of bool of shape (n_samples, n_features)
        """
        W, deviation = self.loadings.to(R.dtype), self.noise.to(R.dtype).sqrt()
        V = observed[:, :, None] * (W / deviation[:, None])  # (n_samples, d, K)
        identity = torch.eye(W.shape[1], dtype=R.dtype, device=R.device)
        slope = V.mT @ (R / deviation[:, None])  # (n_samples, K, m)
        factors, _ = torch.linalg.solve_ex(V.mT @ V + identity, slope)
        return W @ factors


def _directions(loadings: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return the directions of `Completion.varied`, (N_DIRECTIONS, n_features)."""
    n_sources = sum(loadings.shape)  # K factors, and the noise of each feature
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((n_sources, N_DIRECTIONS))
    if n_sources >= N_DIRECTIONS:  # then orthogonal ones represent the others better
        drawn = np.sqrt(n_sources) * linalg.qr(drawn, mode="economic")[0]
    of_factors, of_noise = np.split(drawn, [loadings.shape[1]])
    return (loadings @ of_factors + np.sqrt(noise)[:, None] * of_noise).T


# Estimation


def fit_completion(
    rows: Rows, summary: Summary, shift: np.ndarray, factor: np.ndarray, seed: int
) -> Completion | None:
    """Estimate the normal distribution of rows, from a sample of them.

    Of up to `MAX_WIDTH` features, the EM algorithm [1]_ estimates mean and covariance,
    which is shrunk towards its diagonal. The share of the shrinkage is that of Ledoit
    and Wolf [2]_, but at most d / (d + n) for d features with n observed entries each:
    their estimate for few entries may be 1.

    Parameters
    ----------
    rows : Rows
        Weighted rows in the units of the data.
    summary : Summary
        Statistics of all rows.
    shift, factor : ndarray of shape (n_features,)
        Scaling of the features.
    seed : int
        Seed of the choice of the sample.

    Returns
    -------
    completion : Completion or None
        None for rows of more than `MAX_COVARIANCE_WIDTH` features of which no entry is
        missing: their axes would take long, and are hardly ever needed.

    References
    ----------
    .. [1] Dempster, A. P., Laird, N. M., & Rubin, D. B. (1977). Maximum likelihood
       from incomplete data via the EM algorithm. Journal of the Royal Statistical
       Society B, 39(1), 1-38.
    .. [2] Ledoit, O., & Wolf, M. (2004). A well-conditioned estimator for
       large-dimensional covariance matrices. Journal of Multivariate Analysis, 88(2),
       365-411.
    """
    n_features = rows.n_features
    if n_features > MAX_COVARIANCE_WIDTH and not has_missing(rows, summary):
        return None
    n_rows = np.clip(MAX_WORK // n_features**3, MIN_ROWS, MAX_ROWS)
    if n_features > MAX_WIDTH:
        n_rows = np.clip(MAX_ENTRIES // n_features, 100, MIN_ROWS)
    sample = rows.pool.drawn(int(n_rows), seed)
    Y = (sample.dense(slice(None)) - summary.mean) / summary.deviation
    if n_features <= MAX_WIDTH:
        mean, covariance, share = _estimate(Y, sample.weight)
        variances, vectors = linalg.eigh(covariance)
        loadings = vectors * np.sqrt((1 - share) * variances.clip(min=0))
        noise = share * np.diag(covariance)
    else:
        mean = np.zeros(n_features)
        share = _shrinkage(
            np.nan_to_num(Y), sample.weight, _observed_share(Y, sample.weight)
        )
        axes, variances = principal_axes(
            sample, min(MAX_AXES, len(sample)), summary.mean, summary.deviation, seed
        )
        loadings = axes.T * np.sqrt((1 - share) * variances)
        noise = 1 - np.square(loadings).sum(axis=1)
    unit = summary.deviation / factor  # of Y, in the scaled space
    noise = unit**2 * noise.clip(min=MIN_NOISE)
    return Completion(
        (summary.mean - shift) / factor + unit * mean,
        unit[:, None] * loadings,
        noise.clip(min=max(MIN_NOISE_RATIO * noise.max(), np.finfo(np.float32).tiny)),
    )


def has_missing(rows: Rows, summary: Summary) -> bool:
    """Whether an entry of rows with these statistics is missing."""
    return bool(summary.weight.min() < (1 - 1e-9) * rows.weight.sum())


def _estimate(
    Y: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Estimate mean, covariance, and the share of its shrinkage.

    Parameters
    ----------
    Y : ndarray of shape (n_rows, n_features)
        Standardized rows, with NaN where an entry is missing.
    weight : ndarray of shape (n_rows,)
    """
    observed = ~np.isnan(Y)
    is_complete = observed.all()
    n_features, total = Y.shape[1], weight.sum()
    completed = np.where(observed, Y, 0)
    mean, shrunk = np.zeros(n_features), np.eye(n_features)
    for step in range(1 if is_complete else MAX_STEPS):
        before = completed
        uncertainty = np.zeros((n_features, n_features))
        if not is_complete:
            completed, uncertainty = _expected(Y, observed, weight, mean, shrunk)
        mean = weight @ completed / total
        centered = completed - mean
        covariance = (centered.T * weight) @ centered / total + uncertainty
        share = _shrinkage(centered, weight, _observed_share(Y, weight))
        variance = np.diag(covariance)
        shrunk = (1 - share) * covariance + np.diag(share * variance + MIN_NOISE)
        change = np.sqrt(weight @ np.square(completed - before).mean(axis=1) / total)
        if step and change < MIN_CHANGE:  # the first step completes rows by the mean
            break
    return mean, covariance, share


def _expected(
    Y: np.ndarray,
    observed: np.ndarray,
    weight: np.ndarray,
    mean: np.ndarray,
    covariance: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the expected rows, and the weighted mean of their covariances.

    With the precision P, the missing entries of a row have the covariance
    inv(P_mm), and their expectation is ``mean_m - inv(P_mm) P_mo (y_o - mean_o)``.
    """
    precision = torch.from_numpy(linalg.inv(covariance))
    n_features = len(mean)
    completed, total = np.empty_like(Y), np.zeros((n_features, n_features))
    size = max(1, BLOCK_ENTRIES // n_features**2)
    for start in range(0, len(Y), size):
        where = slice(start, start + size)
        is_missing = torch.from_numpy(~observed[where]).double()
        R = torch.from_numpy(np.where(observed[where], Y[where] - mean, 0))
        P_mm = precision * is_missing[:, :, None] * is_missing[:, None]
        factor = torch.linalg.cholesky(P_mm + torch.diag_embed(1 - is_missing))
        inverse = torch.cholesky_inverse(factor)
        inverse = inverse * is_missing[:, :, None] * is_missing[:, None]
        expected = R - (inverse @ (R @ precision)[:, :, None])[:, :, 0]
        completed[where] = expected.numpy() + mean
        w = torch.from_numpy(np.array(weight[where]))
        total += torch.einsum("n,nij->ij", w, inverse).numpy()
    return completed, total / weight.sum()


def _observed_share(Y: np.ndarray, weight: np.ndarray) -> float:
    return float(weight @ np.mean(~np.isnan(Y), axis=1) / weight.sum())


def _shrinkage(Y: np.ndarray, weight: np.ndarray, observed_share: float) -> float:
    """Return the share of the shrinkage of a covariance, see `fit_completion`.

    Parameters
    ----------
    Y : ndarray of shape (n_rows, n_features)
        Completed and centered rows.
    weight : ndarray of shape (n_rows,)
    observed_share : float
    """
    n_rows, n_features = Y.shape
    total = weight.sum()
    scaled = Y * np.sqrt(weight / total)[:, None]
    products = scaled.T @ scaled if n_features <= n_rows else scaled @ scaled.T
    trace, squares = np.trace(products), np.square(products).sum()
    distance = squares - trace**2 / n_features
    fourth = weight @ np.square(np.square(Y).sum(axis=1)) / total
    error = (fourth - squares) / total
    share = 1.0 if error >= distance else max(error, 0.0) / distance
    n_observed = observed_share * total
    return float(min(share, n_features / (n_features + n_observed)))
