"""Notification of scikit-learn's callbacks (1.9 and later)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from skorch.callbacks import Callback

from skae._arrays import as_numpy
from skae._compat import callback_context, has_callbacks, safe_indexing
from skae._sources import in_memory
from skae._streamed import StreamedRows
from skae.engine.interrupt import Interruption

if TYPE_CHECKING:
    from skae._job import Job, Trained


class Task:
    """A fit or a subtask of it, of which scikit-learn's callbacks are notified.

    Without callbacks, all methods do nothing. The subtasks of a fit are its epochs,
    named ``"epoch"``.

    Parameters
    ----------
    context : sklearn.callback.CallbackContext, default=None
        Context of this task; None if there are no callbacks.
    arguments : dict, default=None
        Arguments of every notification: estimator, X, y and metadata.
    attributes : callable, default=None
        Maps a `Trained` to the fitted attributes of the estimator.
    """

    def __init__(
        self,
        context: Any = None,
        arguments: dict[str, Any] | None = None,
        attributes: Callable[[Trained], dict[str, Any]] | None = None,
    ):
        self._context = context
        self._arguments = arguments or {}
        self._attributes = attributes

    @property
    def has_callbacks(self) -> bool:
        """Whether anyone is notified."""
        return self._context is not None

    @classmethod
    def of_fit(
        cls,
        estimator: Any,
        name: str,
        max_subtasks: Callable[[], int],
        X: Any,
        y: Any,
        sample_weight: Any,
        job: Job | None = None,
    ) -> Task:
        """Begin the task of a fit.

        Parameters
        ----------
        estimator : BaseAutoencoder
        name : str
            Name of the task.
        max_subtasks : callable
            Returns an upper bound on the number of subtasks.
        X, y, sample_weight : object
            Arguments of the fit. If y is None, callbacks receive X as the target: a
            `ScoringMonitor` needs one, and an autoencoder predicts its input.
        job : Job, default=None
            The job on a table in partitions, of which callbacks receive a sample if it
            is large; None for a table in memory.
        """
        if not has_callbacks(estimator):
            return cls()
        y = as_numpy(in_memory(y), "y")
        if job is not None:
            X, y, sample_weight = _in_memory_arguments(job, y, sample_weight)
        arguments = {
            "estimator": estimator,
            "X": X,
            "y": X if y is None else y,
            "metadata": (
                None if sample_weight is None else {"sample_weight": sample_weight}
            ),
        }
        context = callback_context(estimator, name, max_subtasks())
        context = context.call_on_fit_task_begin(**arguments)
        return cls(context, arguments, estimator._attributes_of)

    def subtask(
        self,
        name: str,
        max_subtasks: int = 0,
        trained: Callable[[], Trained] | None = None,
    ) -> Task:
        """Begin a subtask of this task.

        Parameters
        ----------
        name : str
            Name of the subtask.
        max_subtasks : int, default=0
            Upper bound on the number of subtasks of the subtask.
        trained : callable, default=None
            Returns the current model.
        """
        if self._context is None:
            return self
        context = self._context.subcontext(name, max_subtasks=max_subtasks)
        context.call_on_fit_task_begin(
            **self._arguments, reconstruction_attributes=self._reconstruction(trained)
        )
        return Task(context, self._arguments, self._attributes)

    def end(self, trained: Callable[[], Trained] | None = None) -> bool:
        """End this task, and return whether a callback asks to stop.

        Parameters
        ----------
        trained : callable, default=None
            Returns the current model; None if the estimator is already fitted with it.
        """
        if self._context is None:
            return False
        return self._context.call_on_fit_task_end(
            **self._arguments, reconstruction_attributes=self._reconstruction(trained)
        )

    def epoch_callback(
        self, trained: Callable[[Any], Trained], interruption: Interruption
    ) -> EpochTasks | None:
        """Return a skorch callback that makes each epoch a subtask of this task.

        Parameters
        ----------
        trained : callable
            Maps a net to its current model.
        interruption : Interruption
            Records Ctrl-C.
        """
        if self._context is None:
            return None
        return EpochTasks(self, trained, interruption)

    def _reconstruction(
        self, trained: Callable[[], Trained] | None
    ) -> Callable[[], dict[str, Any]] | None:
        """Return a function that returns the current fitted attributes, or None."""
        attributes = self._attributes
        if trained is None or attributes is None:
            return None
        return lambda: attributes(trained())


def _in_memory_arguments(job: Job, y: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
    """Return rows of a table in partitions with the targets and weights of these."""
    rows = job.rows
    if isinstance(rows, StreamedRows):
        if y is not None:
            y = safe_indexing(y, rows.pool_index(job.positions))
        if sample_weight is not None:
            sample_weight = rows.pool.weight
    return rows.pool.X, y, sample_weight


class EpochTasks(Callback):
    """Makes each epoch a subtask, and stops training if a callback requests it.

    Parameters
    ----------
    task : Task
    trained : callable
        See `Task.epoch_callback`.
    interruption : Interruption
    """

    def __init__(
        self,
        task: Task,
        trained: Callable[[Any], Trained],
        interruption: Interruption,
    ):
        self.task = task
        self.trained = trained
        self.interruption = interruption
        self.epoch_: Task | None = None

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        self.epoch_ = self.task.subtask("epoch", trained=lambda: self.trained(net))

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        epoch, self.epoch_ = self.epoch_, None
        if epoch is not None and epoch.end(lambda: self.trained(net)):
            raise KeyboardInterrupt  # by which skorch callbacks end a training

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        if self.epoch_ is not None and not self.interruption.requested:
            self.epoch_.end()  # another skorch callback ended the training
