"""Sums of products of features, which partitions of a table add up to a covariance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from skae._rows import Rows


class Moments(NamedTuple):
    """Weighted sums of products of the features, from which a covariance follows.

    With missing entries, an entry of a matrix is a sum over the rows that have both
    features.

    Attributes
    ----------
    origin : ndarray of shape (n_features,)
        Point from which the rows are measured.
    products : ndarray of shape (n_features, n_features)
        Sums of the products of feature i and feature j.
    sums : ndarray of shape (n_features, n_features)
        Sums of feature i.
    weights : ndarray of shape (n_features, n_features)
        Sums of the weights.
    """

    origin: np.ndarray
    products: np.ndarray
    sums: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, rows: Rows, origin: np.ndarray) -> Moments:
        """Compute the sums over rows."""
        n_features = rows.n_features
        products, sums, weights = np.zeros((3, n_features, n_features))
        for where, block in rows.blocks():
            root = np.sqrt(rows.weight[where])[:, None]
            centered = (block - origin) * root
            observed = ~np.isnan(centered)
            if observed.all():
                weights += rows.weight[where].sum()
                sums += (root.T @ centered).T
            else:
                centered[~observed] = 0
                shared = observed * root
                weights += shared.T @ shared
                sums += centered.T @ shared
            products += centered.T @ centered
        return cls(origin, products, sums, weights)

    def from_origin(self, origin: np.ndarray) -> Moments:
        """Return the same sums measured from another point."""
        shift = origin - self.origin
        moved = shift[:, None] * self.sums.T
        products = self.products - moved - moved.T
        products += np.outer(shift, shift) * self.weights
        return Moments(
            origin, products, self.sums - shift[:, None] * self.weights, self.weights
        )

    def merged(self, other: Moments) -> Moments:
        """Return the sums over these rows and those of other moments together.

        They are measured from the first rows that have any value of a feature: sums
        from a far point have no digits left for the covariance.
        """
        has_values = np.diag(self.weights) > 0
        origin = np.where(has_values, self.origin, other.origin)
        with np.errstate(over="ignore", invalid="ignore"):  # the summary is checked
            pairs = zip(
                self.from_origin(origin), other.from_origin(origin), strict=True
            )
            sums = [one + another for one, another in pairs][1:]
        return Moments(origin, *sums)

    def covariance(self, mean: np.ndarray, factor: np.ndarray) -> np.ndarray:
        """Return the covariance of (x - mean) / factor."""
        products = self.from_origin(mean).products / np.outer(factor, factor)
        weights = self.weights
        return np.divide(
            products, weights, out=np.zeros_like(products), where=weights > 0
        )
