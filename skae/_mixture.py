"""Gaussian mixtures of weighted points, and the density of codes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import linalg
from scipy.special import logsumexp
from sklearn.cluster import kmeans_plusplus

# Number of points for each part of a mixture, and the largest number of parts.
POINTS_PER_PART, MAX_PARTS = 8, 32

# Share of a sphere in the covariance towards which those of the parts are shrunk.
SPHERICAL = 0.1

# Steps of the EM algorithm end when the mean log-likelihood of a point increases by
# less than this, in nats, or after so many of them.
MIN_GAIN, MAX_STEPS = 2e-2, 100

# Of principal axes of codes: how many there are at most, how many of them have a
# mixture, and the smallest variance of these, relative to the largest one.
MAX_AXES, MAX_MIXED, MIN_SHARE = 256, 32, 1e-2

# Variance of an axis, relative to the largest one, that is due to rounding.
ROUNDING = 1e-12

# Largest weight of the codes of all earlier calls of `partial_fit`, as in other
# statistics of earlier calls.
MAX_EARLIER_WEIGHT = 1000.0


class Mixture(NamedTuple):
    """A mixture of normal distributions.

    Attributes
    ----------
    share : ndarray of shape (n_parts,)
        Probability of each part; they sum to 1.
    mean : ndarray of shape (n_parts, n_dimensions)
    factor : ndarray of shape (n_parts, n_dimensions, n_dimensions)
        Lower triangular Cholesky factors of the covariances.
    """

    share: np.ndarray
    mean: np.ndarray
    factor: np.ndarray

    @property
    def n_dimensions(self) -> int:
        return self.mean.shape[1]

    def draw(self, n_points: int, rng: np.random.RandomState) -> np.ndarray:
        """Return points drawn at random, of shape (n_points, n_dimensions)."""
        part = rng.choice(len(self.share), n_points, p=self.share)
        points = rng.standard_normal((n_points, self.n_dimensions))
        for i in np.unique(part):
            where = part == i
            points[where] = points[where] @ self.factor[i].T + self.mean[i]
        return points

    def log_densities(self, Y: np.ndarray) -> np.ndarray:
        """Return log(share * density) of each part, of shape (n_points, n_parts)."""
        return self._log_densities(Y, _products(Y))

    def _log_densities(self, Y: np.ndarray, products: np.ndarray) -> np.ndarray:
        n_parts, n_dimensions = self.mean.shape
        precision = np.linalg.inv(self.factor @ self.factor.transpose(0, 2, 1))
        product = (precision @ self.mean[:, :, None])[:, :, 0]
        # The squares of the distances, by one product of matrices for all parts.
        squares = products @ precision.reshape(n_parts, -1).T
        squares += np.sum(self.mean * product, axis=1) - 2 * Y @ product.T
        volume = np.log(np.diagonal(self.factor, axis1=1, axis2=2)).sum(axis=1)
        constant = n_dimensions * np.log(2 * np.pi) / 2
        return np.log(self.share) - volume - constant - squares / 2


def fit_mixture(Y: np.ndarray, weight: np.ndarray, n_parts: int, seed: int) -> Mixture:
    """Fit a mixture by the EM algorithm, from means that k-means++ draws.

    Parameters
    ----------
    Y : ndarray of shape (n_points, n_dimensions)
        Points with mean 0 and covariance 1.
    weight : ndarray of shape (n_points,)
        Positive weights, as repetitions.
    n_parts : int
        Number of parts, in [1, n_points].
    seed : int
        Seed of the initial means.
    """
    centers, _ = kmeans_plusplus(
        Y, n_parts, sample_weight=weight, random_state=seed % 2**32
    )
    distance = np.square(centers).sum(axis=1) - 2 * Y @ centers.T
    return run_em(Y, weight, np.eye(n_parts)[distance.argmin(axis=1)])


def run_em(Y: np.ndarray, weight: np.ndarray, membership: np.ndarray) -> Mixture:
    """Run the EM algorithm until the likelihood hardly increases.

    Parameters
    ----------
    Y : ndarray of shape (n_points, n_dimensions)
        Points with mean 0 and covariance 1.
    weight : ndarray of shape (n_points,)
        Positive weights, as repetitions.
    membership : ndarray of shape (n_points, n_parts)
        Initial probabilities of the parts for each point.
    """
    products, weight = _products(Y), weight / weight.mean()
    last = -np.inf
    for _ in range(MAX_STEPS):
        mixture = _estimate(Y, products, weight[:, None] * membership)
        log_densities = mixture._log_densities(Y, products)
        total = logsumexp(log_densities, axis=1)
        membership = np.exp(log_densities - total[:, None])
        mean = weight @ total / len(Y)
        if mean - last < MIN_GAIN:
            break
        last = mean
    return mixture


def _products(Y: np.ndarray) -> np.ndarray:
    """Return the products of coordinates, of shape (n_points, n_dimensions ** 2)."""
    return (Y[:, :, None] * Y[:, None]).reshape(len(Y), -1)


def _estimate(Y: np.ndarray, products: np.ndarray, membership: np.ndarray) -> Mixture:
    r"""Return the parts with given members.

    Covariances are shrunk, as in [1]_, so that a part with few members has one:

    .. math:: \Sigma_c = \frac{W_c + \nu S}{n_c + \nu}, \quad
              S = 0.9 \, \frac{\sum_c W_c}{\sum_c n_c} + 0.1 \, K^{-2/d} I, \quad
              \nu = d + 2

    for K parts in d dimensions, and the scatter :math:`W_c` of :math:`n_c` members.

    References
    ----------
    .. [1] Fraley, C., & Raftery, A. E. (2007). Bayesian regularization for normal
       mixture estimation and model-based clustering. Journal of Classification, 24(2),
       155-181.
    """
    n_dimensions, n_parts = Y.shape[1], membership.shape[1]
    size = membership.sum(axis=0)
    # A part without members keeps a probability, of which the logarithm is finite.
    size = np.maximum(size, np.finfo(float).eps * size.sum())
    mean = membership.T @ Y / size[:, None]
    scatter = (membership.T @ products).reshape(n_parts, n_dimensions, n_dimensions)
    scatter -= size[:, None, None] * mean[:, :, None] * mean[:, None]
    strength = n_dimensions + 2
    shape = SPHERICAL * n_parts ** (-2 / n_dimensions) * np.eye(n_dimensions)
    shape += (1 - SPHERICAL) * scatter.sum(axis=0) / size.sum()
    covariance = (scatter + strength * shape) / (size + strength)[:, None, None]
    return Mixture(size / size.sum(), mean, np.linalg.cholesky(covariance))


class CodeDensity(NamedTuple):
    r"""A density of codes, fitted to the codes of the training rows.

    .. math:: z = \bar z + A y

    where the columns of A are the principal axes of the codes, times their standard
    deviations. The coordinates y of the first axes have a mixture of normal
    distributions, those of the others are independent and normal.

    Attributes
    ----------
    mean : ndarray of shape (n_components,)
    axes : ndarray of shape (n_components, n_axes)
        The matrix A, in descending order of the variances.
    mixture : Mixture
        Of the first coordinates.
    n_seen : float
        Weight of the training rows, of earlier calls of `partial_fit` included.
    n_points : int
        Number of the codes.
    """

    mean: np.ndarray
    axes: np.ndarray
    mixture: Mixture
    n_seen: float
    n_points: int

    def share_beside(self, n_added: float) -> float:
        """Return the share of the codes' weight if codes of a weight are added."""
        n_earlier = min(self.n_seen, MAX_EARLIER_WEIGHT)
        return n_earlier / (n_earlier + n_added)

    def draw(self, n_codes: int, rng: np.random.RandomState) -> np.ndarray:
        """Return codes drawn at random, of shape (n_codes, n_components)."""
        Y = self.mixture.draw(n_codes, rng)
        n_others = self.axes.shape[1] - Y.shape[1]
        Y = np.hstack([Y, rng.standard_normal((n_codes, n_others))])
        return self.mean + Y @ self.axes.T

    def of_first(self, width: int) -> CodeDensity:
        """Return the density of the first components, the marginal one."""
        return self._replace(mean=self.mean[:width], axes=self.axes[:width])

    @property
    def other_axes(self) -> np.ndarray:
        """The axes without a mixture, of shape (n_components, n_others)."""
        return self.axes[:, self.mixture.n_dimensions :]

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """Return codes that have the means and covariances of the parts.

        They represent the mixture, without the other axes.

        Returns
        -------
        codes : ndarray of shape (n_points, n_components)
        share : ndarray of shape (n_points,)
            Their weights, which sum to 1.
        """
        n_dimensions = self.mixture.n_dimensions
        if n_dimensions == 0:
            return self.mean[None], np.ones(1)
        steps = np.sqrt(n_dimensions) * self.mixture.factor.transpose(0, 2, 1)
        Y = self.mixture.mean[:, None] + np.concatenate([steps, -steps], axis=1)
        share = np.repeat(self.mixture.share / Y.shape[1], Y.shape[1])
        Y = Y.reshape(-1, n_dimensions)
        return self.mean + Y @ self.axes[:, :n_dimensions].T, share

    def membership(self, Z: np.ndarray) -> np.ndarray:
        """Return the probability of each part, of shape (n_codes, n_parts)."""
        Y = (Z - self.mean) @ linalg.pinv(self.axes[:, : self.mixture.n_dimensions]).T
        log_densities = self.mixture.log_densities(Y)
        return np.exp(log_densities - logsumexp(log_densities, axis=1, keepdims=True))


def fit_code_density(
    Z: np.ndarray,
    weight: np.ndarray,
    seed: int,
    n_seen: float,
    earlier: CodeDensity | None = None,
) -> CodeDensity:
    """Fit a density to codes.

    Parameters
    ----------
    Z : ndarray of shape (n_codes, n_components)
    weight : ndarray of shape (n_codes,)
        Positive weights, as repetitions.
    seed : int
    n_seen : float
        Weight of the rows that the codes represent.
    earlier : CodeDensity or None, default=None
        Density of the codes of earlier calls of `partial_fit`, which few points
        represent.

    Returns
    -------
    density : CodeDensity
        Its mixture has a part for each `POINTS_PER_PART` codes, but `MAX_PARTS` at
        most. After `partial_fit` it may have half as many, until it is started anew.
    """
    n_points = len(Z)
    rest: Any = 0.0
    weight = weight / weight.sum()
    if earlier is not None:
        share = earlier.share_beside(n_seen)
        points, weight_of_points = earlier.points()
        Z = np.concatenate([points, Z])
        weight = np.append(share * weight_of_points, (1 - share) * weight)
        rest = share * earlier.other_axes @ earlier.other_axes.T
        n_seen, n_points = n_seen + earlier.n_seen, n_points + earlier.n_points
    mean = weight @ Z
    centered = Z - mean
    covariance = (centered.T * weight) @ centered + rest
    variance, vectors = linalg.eigh(covariance)
    variance, vectors = variance[::-1][:MAX_AXES], vectors[:, ::-1][:, :MAX_AXES]
    varies = variance > ROUNDING * max(variance[0], np.finfo(float).tiny)
    axes = vectors[:, varies] * np.sqrt(variance[varies])
    n_mixed = min(MAX_MIXED, np.sum(variance[varies] > MIN_SHARE * variance[0]))
    if n_mixed == 0:  # constant codes
        trivial = Mixture(np.ones(1), np.zeros((1, 0)), np.zeros((1, 0, 0)))
        return CodeDensity(mean, axes, trivial, n_seen, n_points)
    Y = centered @ (vectors[:, :n_mixed] / np.sqrt(variance[:n_mixed]))
    n_parts = min(max(n_points // POINTS_PER_PART, 1), MAX_PARTS, len(Z))
    if earlier is not None and n_parts < 2 * len(earlier.mixture.share):
        mixture = run_em(Y, weight, earlier.membership(Z))
    else:
        mixture = fit_mixture(Y, weight, n_parts, seed)
    return CodeDensity(mean, axes, mixture, n_seen, n_points)
