"""The transformer: a nonlinear PCA."""

from __future__ import annotations

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import _check_sample_weight, check_array, check_is_fitted

from skae._base import BaseAutoencoder
from skae._batches import Rows


class AutoencoderTransformer(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseAutoencoder
):
    """Nonlinear PCA."""

    def __init__(
        self,
        n_components=2,
        *,
        network="mlp",
        hidden_layer_sizes="auto",
        bottleneck="deterministic",
        loss="squared_error",
        init="auto",
        scale="auto",
        max_epochs="auto",
        batch_size="auto",
        learning_rate="auto",
        weight_decay=0.01,
        early_stopping="auto",
        validation_fraction=0.1,
        n_iter_no_change=10,
        tol=1e-4,
        warm_start=False,
        random_state=None,
        verbose=0,
        device="auto",
        callbacks=None,
    ):
        self.n_components = n_components
        self.network = network
        self.hidden_layer_sizes = hidden_layer_sizes
        self.bottleneck = bottleneck
        self.loss = loss
        self.init = init
        self.scale = scale
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.device = device
        self.callbacks = callbacks

    def transform(self, X) -> np.ndarray:
        """Encode rows.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows; NaN marks a missing entry.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_components)
            Codes, in the floating type of X.
        """
        X = self._check_X(X)
        return self._evaluate("encode", X, self.n_components_)

    def inverse_transform(self, Z) -> np.ndarray:
        """Decode codes.

        Parameters
        ----------
        Z : array-like of shape (n_samples, n_components)
            Codes, such as `transform` gives.

        Returns
        -------
        X_hat : ndarray of shape (n_samples, n_features)
            Rows in the units of the training data, in the floating type of Z.
        """
        check_is_fitted(self)
        Z = check_array(
            Z, dtype=[np.float64, np.float32], input_name="Z", estimator=self
        )
        if Z.shape[1] != self.n_components_:
            raise ValueError(
                f"Z has {Z.shape[1]} components, but {type(self).__name__} was fitted "
                f"with n_components={self.n_components_}."
            )
        return self._evaluate("decode", Z, self.n_features_in_)

    def score(self, X, y=None, sample_weight=None) -> float:
        """Explained variance of the reconstruction.

        .. math:: 1 - \\frac{\\sum_{ij} w_i (x_{ij} - \\hat x_{ij})^2}
                  {\\sum_{ij} w_i (x_{ij} - \\bar x_j)^2}

        over the observed entries, with :math:`\\bar x` the training mean. A
        linear autoencoder reaches the sum of PCA's `explained_variance_ratio_`
        on its training rows.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Rows; NaN marks a missing entry.
        y : Ignored
            Present for API consistency by convention.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights.

        Returns
        -------
        score : float
            1 is perfect, 0 is the mean, and a worse model is negative. Rows that
            all equal the mean score 1 if they are reconstructed exactly, else 0.
        """
        X = self._check_X(X)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(
                sample_weight, X, dtype=np.float64, ensure_non_negative=True
            )
        residual = total = 0.0
        rows = Rows(X, weight=sample_weight)
        for where, block in rows.blocks():
            weight = rows.weight[where, None]
            X_hat = self._evaluate("forward", block, X.shape[1])
            residual += np.nansum(weight * (block - X_hat.astype(np.float64)) ** 2)
            total += np.nansum(weight * (block - self.mean_) ** 2)
        if total == 0:
            return 1.0 if residual == 0 else 0.0
        return float(1 - residual / total)

    @property
    def _n_features_out(self) -> int:
        return self.n_components_

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
