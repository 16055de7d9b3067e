"""The noise of generated rows around decoded codes."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np

from skae._repetitions import are_counts

# Number of quantiles of each column, between bounds that limit their memory. They are
# denser at both ends.
MAX_LEVELS, MIN_LEVELS, MAX_ENTRIES = 129, 33, 2**18


class RowNoise(NamedTuple):
    r"""The distribution of rows around decoded codes, by columns.

    To a number, a normal random number with the variance of the residuals of the
    training rows is added. An increasing function then gives the column the
    distribution that it has over the training rows,

    .. math:: x = F^{-1}(G(\hat x(z) + s \epsilon)), \quad \epsilon \sim N(0, 1),

    with the distribution functions F of the training rows and G of generated rows
    before this step. A category is drawn with the decoded probabilities, as is the
    value of a column of zeros and ones whose decoded values are probabilities.

    Attributes
    ----------
    deviation : ndarray of shape (n_columns,)
        Root mean square of the residuals, the numbers s.
    drawn, observed : ndarray of shape (n_levels, n_columns)
        Quantiles of the functions G and F.
    is_discrete : ndarray of bool of shape (n_columns,)
        Which columns only have values that training rows have.
    is_probability : ndarray of bool of shape (n_columns,)
        In which columns decoded values are probabilities of a one.
    """

    deviation: np.ndarray
    drawn: np.ndarray
    observed: np.ndarray
    is_discrete: np.ndarray
    is_probability: np.ndarray

    @classmethod
    def of(
        cls,
        X: np.ndarray,
        weight: np.ndarray,
        X_hat: np.ndarray,
        generated: np.ndarray,
        is_bounded: np.ndarray,
        rng: np.random.RandomState,
        earlier: RowNoise | None = None,
        share: float = 0.0,
        n_kept: int = 1,
    ) -> Self:
        """Estimate the noise.

        Parameters
        ----------
        X : ndarray of shape (n_rows, n_columns)
            Training rows, with NaN where an entry is missing.
        weight : ndarray of shape (n_rows,)
            Positive weights; whole numbers count equal rows.
        X_hat : ndarray of shape (n_rows, n_columns)
            Reconstructions from their codes.
        generated : ndarray of shape (n_generated, n_columns)
            Decoded codes that were drawn at random.
        is_bounded : ndarray of bool of shape (n_columns,)
            In which columns the loss is a cross-entropy.
        rng : RandomState
        earlier : RowNoise or None, default=None
            Noise of the rows of earlier calls of `partial_fit`.
        share : float, default=0.0
            Weight of these rows, as a share of that of all rows, in [0, 1).
        n_kept : int, default=1
            Number of such objects that a model keeps, which limits the quantiles.
        """
        n_rows, n_columns = X.shape
        observed = ~np.isnan(X)
        is_seen = observed.any(axis=0)
        is_binary = (np.isin(X, (0, 1)) | ~observed).all(axis=0)
        values = np.where(is_seen, X, X_hat)
        count = weight if are_counts(weight) else np.ones(n_rows)
        share_of_row = weight / weight.sum()
        if earlier is None:
            is_binary &= is_seen
        else:  # a column without a value in this call remains as it was
            is_binary &= earlier.is_probability
            n_rows += len(earlier.observed)
            values = np.concatenate([X, earlier.observed])
            count = np.append(count, np.ones(len(earlier.observed)))
            of_earlier = _share_of_levels(len(earlier.observed))
            share_of_row = np.append((1 - share) * share_of_row, share * of_earlier)
        n_levels = MAX_ENTRIES // (n_columns * n_kept)
        n_levels = min(int(np.clip(n_levels, MIN_LEVELS, MAX_LEVELS)), n_rows)
        quantiles = _quantiles(values, share_of_row, _levels(max(n_levels, MIN_LEVELS)))
        n_distinct, n_values = _count_distinct(values, count)
        noise = cls(
            np.zeros(n_columns),
            quantiles,
            quantiles,
            2 * n_distinct <= n_values,
            is_bounded & is_binary,
        )
        return noise.around(X, weight, X_hat, generated, rng, earlier, share)

    def around(
        self,
        X: np.ndarray,
        weight: np.ndarray,
        X_hat: np.ndarray,
        generated: np.ndarray,
        rng: np.random.RandomState,
        earlier: RowNoise | None = None,
        share: float = 0.0,
    ) -> Self:
        """Return the noise for other codes of the same rows; see `of`."""
        observed = ~np.isnan(X)
        squares = np.where(observed, np.square(X - X_hat), 0)
        total = np.maximum(weight @ observed, np.finfo(float).tiny)
        variance = weight @ squares / total
        if earlier is not None:
            of_rows = (1 - share) * total / weight.sum()
            variance = of_rows * variance + share * np.square(earlier.deviation)
            variance /= of_rows + share
        deviation = np.sqrt(variance)
        noisy = generated + deviation * rng.standard_normal(generated.shape)
        levels = _levels(len(self.observed))
        drawn = np.quantile(noisy, levels, axis=0, method="weibull")
        return self._replace(deviation=deviation, drawn=drawn)

    def added(
        self, rows: np.ndarray, layout: Any, rng: np.random.RandomState
    ) -> np.ndarray:
        """Return rows drawn at random around decoded codes.

        Parameters
        ----------
        rows : ndarray of shape (n_rows, n_columns)
            Decoded codes, in the units of the data.
        layout : Layout or None
            Columns of the features, if there are categories.
        rng : RandomState
        """
        noise = rng.standard_normal(rows.shape)
        is_category = np.zeros(rows.shape[1], dtype=bool)
        if layout is not None:
            is_category = layout.is_one_hot
        result = np.empty_like(rows)
        is_number = ~(self.is_probability | is_category)
        for j in np.flatnonzero(is_number):
            noisy = rows[:, j] + self.deviation[j] * noise[:, j]
            result[:, j] = self._mapped(noisy, int(j))
        chosen = np.flatnonzero(self.is_probability)
        u = rng.random_sample((len(rows), len(chosen)))
        result[:, chosen] = u < rows[:, chosen]
        if layout is not None:
            for _, columns in layout.blocks():
                result[:, columns] = _drawn_categories(rows[:, columns], rng)
        return result

    def _mapped(self, values: np.ndarray, column: int) -> np.ndarray:
        drawn, observed = self.drawn[:, column], self.observed[:, column]
        if not self.is_discrete[column]:
            return np.interp(values, drawn, observed)
        level = np.interp(values, drawn, np.arange(len(drawn)))
        return observed[np.rint(level).astype(int)]


def _levels(n_levels: int) -> np.ndarray:
    """Return the levels of the quantiles, from 0 to 1."""
    return (1 - np.cos(np.pi * np.linspace(0, 1, max(n_levels, 2)))) / 2


def _share_of_levels(n_levels: int) -> np.ndarray:
    """Return the probability that each quantile stands for; they sum to 1."""
    bounds = np.convolve(_levels(n_levels), [0.5, 0.5], mode="valid")
    return np.diff(bounds, prepend=0, append=1)


def _count_distinct(
    values: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return how many distinct values, and how many values, each column has.

    Parameters
    ----------
    values : ndarray of shape (n_rows, n_columns)
        With NaN where a value is missing.
    count : ndarray of shape (n_rows,)
        Number of equal rows that each row stands for.
    """
    n_values = count @ ~np.isnan(values)
    values = np.sort(values, axis=0)  # missing ones are the last
    n_distinct = np.sum(np.diff(values, axis=0) > 0, axis=0) + 1
    return n_distinct, n_values


def _quantiles(
    values: np.ndarray, weight: np.ndarray, levels: np.ndarray
) -> np.ndarray:
    """Return the quantiles of each column, of shape (n_levels, n_columns).

    Parameters
    ----------
    values : ndarray of shape (n_rows, n_columns)
        With NaN where a value is missing, not in all rows.
    weight : ndarray of shape (n_rows,)
        Positive weights.
    levels : ndarray of shape (n_levels,)
    """
    order = np.argsort(values, axis=0)  # missing ones are the last
    values = np.take_along_axis(values, order, axis=0)
    reached = np.cumsum(weight[order] * ~np.isnan(values), axis=0)
    reached /= reached[-1]  # 1 at the last value, and at missing ones behind it
    quantiles = np.empty((len(levels), values.shape[1]))
    for j in range(values.shape[1]):
        place = np.searchsorted(reached[:, j], levels)
        quantiles[:, j] = values[place, j]
    return quantiles


def _drawn_categories(P: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Draw one of the last axis of probabilities, as zeros and a one."""
    reached = P.cumsum(axis=-1)
    u = rng.random_sample(P.shape[:-1])[..., None] * reached[..., -1:]
    chosen = np.minimum((reached <= u).sum(axis=-1), P.shape[-1] - 1)
    return np.eye(P.shape[-1])[chosen]
