"""scikit-learn's callbacks, which it has from 1.9 on: a fit as a tree of tasks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from skorch.callbacks import Callback

try:
    from sklearn.callback import CallbackSupportMixin, with_callbacks
except ImportError:  # scikit-learn < 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Gives no `set_callbacks`."""

    def with_callbacks(method: Callable) -> Callable:
        """The method as it is."""
        return method


class Task:
    """A fit, or a part of it, that callbacks are told of; silent if there are none.

    The parts of a fit are its epochs, called ``"epoch"``. Where several networks are
    trained, they are ``"fold"``, once for each, and ``"all-rows"``, unless the folds
    speak for the start; and the epochs are parts of these.

    Parameters
    ----------
    context : sklearn.callback.CallbackContext or None
        Of this task; None if there are no callbacks.
    given : dict
        What callbacks are told at each call: estimator, X, y and metadata.
    """

    def __init__(self, context: Any = None, given: dict[str, Any] | None = None):
        self._context = context
        self._given = given or {}

    @classmethod
    def of_fit(
        cls, estimator: Any, name: str, max_parts: int, X: Any, y: Any, weight: Any
    ) -> Task:
        """A fit that begins.

        Parameters
        ----------
        estimator : BaseAutoencoder
        name : str
        max_parts : int
            Most parts that the fit will have.
        X, y, weight : object
            What the user gave. Without y the rows are their own targets, as they
            are for the network: a `ScoringMonitor` scores nothing that has none.
        """
        if not hasattr(estimator, "_skl_callbacks"):
            return cls()
        given = {
            "estimator": estimator,
            "X": X,
            "y": X if y is None else y,
            "metadata": None if weight is None else {"sample_weight": weight},
        }
        context = estimator._init_callback_context(name, max_subtasks=max_parts)
        return cls(context.call_on_fit_task_begin(**given), given)

    def part(
        self, name: str, max_parts: int = 0, fitted: Callable[[], dict] | None = None
    ) -> Task:
        """A part that begins.

        Parameters
        ----------
        name : str
        max_parts : int, default=0
            Most parts that it will have itself.
        fitted : callable, default=None
            Gives the attributes of an estimator that is fitted so far.
        """
        if self._context is None:
            return self
        context = self._context.subcontext(name, max_subtasks=max_parts)
        context.call_on_fit_task_begin(**self._given, reconstruction_attributes=fitted)
        return Task(context, self._given)

    def end(self, fitted: Callable[[], dict] | None = None) -> bool:
        """Tell that it is over, and whether no more of its kind are wanted."""
        if self._context is None:
            return False
        return self._context.call_on_fit_task_end(
            **self._given, reconstruction_attributes=fitted
        )

    def epochs(self, fitted: Callable[[Any], dict]) -> EpochParts | None:
        """What lets the epochs of a net be parts of this task, if that is of use.

        Parameters
        ----------
        fitted : callable
            Gives the attributes of an estimator with the net as it is at the moment.
        """
        return None if self._context is None else EpochParts(self, fitted)


class EpochParts(Callback):
    """Makes each epoch a part of a task, and stops the training when asked to.

    Parameters
    ----------
    task : Task
    fitted : callable
        See `Task.epochs`.
    """

    def __init__(self, task: Task, fitted: Callable[[Any], dict]):
        self.task = task
        self.fitted = fitted
        self.epoch_: Task | None = None

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        self.epoch_ = self.task.part("epoch", fitted=partial(self.fitted, net))

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        epoch, self.epoch_ = self.epoch_, None
        if epoch is not None and epoch.end(partial(self.fitted, net)):
            raise KeyboardInterrupt  # so skorch's callbacks end a training

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        if self.epoch_ is not None and not net.interruption.seen:
            self.epoch_.end()  # another callback has broken it off
