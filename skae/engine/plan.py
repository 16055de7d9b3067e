"""The settings of one training."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Plan(NamedTuple):
    """Settings of one training, in which ``"auto"`` has been resolved.

    Attributes
    ----------
    max_epochs : int
        Maximum number of epochs.
    batch_size : int
        Number of rows in a batch.
    learning_rate, weight_decay : float
        Parameters of AdamW.
    schedule : callable or None
        Maps the fraction of steps that are done, in [0, 1), to a factor of the learning
        rate; None is a constant learning rate. An `LRScheduler` among the callbacks
        replaces it.
    early_stopping : bool
        Whether to stop when the objective of the held-out rows no longer decreases, and
        to return to the epoch with its lowest value.
    keep_start : bool
        Whether early stopping returns to the initial weights unless the gain over them
        is significant.
    n_iter_no_change : int or inf
        Epochs without an improvement after which training returns to the best
        epoch and continues with a smaller learning rate, or stops.
    tol : float
        Smallest relative decrease of the best loss that counts as an improvement.
    trim : float, default=0.0
        Fraction of each batch's weight, in [0, 1), that is left out of the gradient:
        the rows with the highest objective.
    compile : "auto" or bool, default="auto"
        How a step is computed, see :class:`skae.engine.step.Step`.
    precision : {"float32", "tf32", "bfloat16"}, default="float32"
        Precision of matrix products; ``"bfloat16"`` runs the network under autocast.
    beta2 : float, default=0.999
        Decay of the second moment in AdamW.
    settling_steps : int, default=0
        Number of the first steps in which no epoch counts for `n_iter_no_change`.
    averaged_steps : float, default=0.0
        Time constant, in steps, of the moving average of the weights that is judged and
        returned; 0 takes the last weights.
    is_exact : bool, default=False
        Whether the trained weights are compared with the initial ones in float64, on
        the held-out rows or, without them, on the training rows. The initial weights of
        a PCA reconstruct some tables up to rounding errors, and float32 cannot tell
        whether other weights do so better.
    """

    max_epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    schedule: Callable[[float], float] | None
    early_stopping: bool
    keep_start: bool
    n_iter_no_change: float
    tol: float
    trim: float = 0.0
    compile: str | bool = "auto"
    precision: str = "float32"
    beta2: float = 0.999
    settling_steps: int = 0
    averaged_steps: float = 0.0
    is_exact: bool = False
