"""Moving average of the weights of a training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from skae._compat import copy_tensors, mix_tensors


class WeightAverage:
    r"""Exponential moving average of weights, which is updated once per epoch.

    After an epoch of n steps, which ended with the weights w,

    .. math:: \bar w \leftarrow \bar w + (1 - e^{-n / \tau}) (w - \bar w).

    The average of the iterates is nearer to the minimum than the last of them, as after
    a decrease of the learning rate, but at any time [1]_.

    Parameters
    ----------
    parameters : iterable of torch.nn.Parameter
        Trained in place.
    n_steps : float
        Time constant :math:`\tau`, in steps. 0 keeps no average: the present weights
        are in use.

    References
    ----------
    .. [1] Polyak, B. T., & Juditsky, A. B. (1992). Acceleration of stochastic
       approximation by averaging. SIAM Journal on Control and Optimization, 30(4),
       838-855.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], n_steps: float):
        self._n_steps = n_steps
        self._parameters = list(parameters) if n_steps > 0 else []
        self._is_restarted = False
        self._average = [weight.clone() for weight in self._weights]

    @property
    def _weights(self) -> list[Tensor]:
        # Recording a step moves weights to other memory.
        return [parameter.data for parameter in self._parameters]

    @property
    def is_kept(self) -> bool:
        """Whether there is an average."""
        return bool(self._parameters)

    def update(self, n_steps: int) -> None:
        """Include the present weights, after an epoch of `n_steps` steps."""
        if self._parameters:
            rate = -math.expm1(-n_steps / self._n_steps)
            mix_tensors(self._average, self._weights, rate)

    def restart(self) -> None:
        """Begin a new average with the present weights.

        While the average is in use, training goes on with it.
        """
        if self._parameters:
            copy_tensors(self._average, self._weights)
            self._is_restarted = True

    def state(self) -> list[Tensor]:
        """Return the averaged weights; none if no average is kept."""
        return self._average

    def load_state(self, state: list[Tensor]) -> None:
        """Go on from the average of another training."""
        for own, weight in zip(self._average, state, strict=True):
            own.copy_(weight)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Context in which the networks have the averaged weights."""
        if not self._parameters:
            yield
            return
        last = [weight.clone() for weight in self._weights]
        copy_tensors(self._weights, self._average)
        self._is_restarted = False
        try:
            yield
        finally:
            if not self._is_restarted:
                copy_tensors(self._weights, last)
