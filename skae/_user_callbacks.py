"""The skorch callbacks that users pass: which ones are refused, and their copies."""

from __future__ import annotations

import copy
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable
from types import MethodType
from typing import Any

import numpy as np
from skorch.callbacks import (
    BatchScoring,
    Callback,
    Checkpoint,
    EpochScoring,
    InputShapeSetter,
    LoadInitState,
    MlflowLogger,
    NeptuneLogger,
    PassthroughScoring,
    PrintLog,
    ProgressBar,
    SacredLogger,
    TensorBoard,
    TrainEndCheckpoint,
    WandbLogger,
)
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler as TorchScheduler

# Callbacks that cannot work, with the reason and what to use instead.
REFUSED: dict[type[Callback], str] = {
    BatchScoring: (
        "it takes the second part of a batch for the target, but the batches of an "
        "autoencoder are scaled rows and their weights. Use EpochScoring."
    ),
    InputShapeSetter: (
        "it builds the network anew, which has as many inputs as X has columns "
        "anyway. Leave it out."
    ),
    LoadInitState: (
        "it replaces the network, its scaling and its history at the beginning of a "
        "training. Use warm_start=True or partial_fit to continue a training, and "
        "skae.load to restore a saved estimator."
    ),
}

# Callbacks that write files, print, or send records.
_WRITERS = (
    Checkpoint,
    MlflowLogger,
    NeptuneLogger,
    PrintLog,
    ProgressBar,
    SacredLogger,
    TensorBoard,
    TrainEndCheckpoint,
    WandbLogger,
)

# Callbacks that score held-out rows, or the training rows if `on_train` is true.
_SCORERS = (EpochScoring, PassthroughScoring)

# Containers that are copied with their entries. A subclass may be more than that.
_SEQUENCES = (list, deque)
_MAPPINGS = (dict, OrderedDict, defaultdict)


def check_callbacks(callbacks: Iterable[Any] | None) -> None:
    """Check the parameter `callbacks` of an estimator.

    Raises
    ------
    TypeError
        If an entry is not a skorch callback, the class of one that can be created
        without arguments, or a pair of a name and one of these; or if it is a callback
        that cannot work.
    ValueError
        If a name is given twice.
    """
    names = []
    for entry in callbacks or []:
        callback = _callback(entry)
        is_class = isinstance(callback, type) and issubclass(callback, Callback)
        if not (is_class or isinstance(callback, Callback)):
            hint = ""
            if hasattr(callback, "on_fit_task_begin"):
                hint = " Use set_callbacks for those of scikit-learn."
            elif isinstance(callback, type) and issubclass(callback, TorchScheduler):
                hint = f" Use LRScheduler(policy={callback.__name__})."
            raise TypeError(
                "callbacks must hold skorch callbacks, their classes, or pairs of a "
                f"name and one of these, got {entry!r}." + hint
            )
        names.append((entry[0], True) if _is_pair(entry) else (_name(callback), False))
        try:
            instance = _instance(callback)
        except TypeError as error:
            raise TypeError(
                f"callbacks: {_name(callback)} cannot be created without arguments "
                f"({error}); pass an object instead of the class."
            ) from error
        for refused, reason in REFUSED.items():
            if isinstance(instance, refused):
                raise TypeError(
                    f"callbacks: {_name(callback)} cannot be used: {reason}"
                )
    counts = Counter(name for name, _ in names)
    for name, is_given in names:
        if is_given and counts[name] > 1:
            raise ValueError(
                f"callbacks must have different names, but {name!r} is used "
                f"{counts[name]} times."
            )


def check_training(callbacks: Iterable[Any] | None, *, has_held_out_rows: bool) -> None:
    """Check that the callbacks suit the training of a fit.

    Parameters
    ----------
    callbacks : list or None
        Entries that `check_callbacks` accepts.
    has_held_out_rows : bool
        Whether there are held-out rows.

    Raises
    ------
    ValueError
        If a callback needs held-out rows but there are none.
    """
    instances = [_instance(_callback(entry)) for entry in callbacks or []]
    if not has_held_out_rows:
        unknown = {"valid_loss", "valid_loss_best"}
        for callback in instances:
            if isinstance(callback, _SCORERS) and not callback.on_train:
                raise ValueError(
                    f"callbacks: {_name(callback)} scores held-out rows, but no rows "
                    "are held out, since early_stopping is False or this is a "
                    "partial_fit. Use on_train=True, or fit with early_stopping=True."
                )
            monitor = getattr(callback, "monitor", None)
            if isinstance(callback, WandbLogger) and callback.save_model:
                monitor = "valid_loss_best"
            if isinstance(monitor, str) and monitor in unknown:
                raise ValueError(
                    f"callbacks: {_name(callback)} reads {monitor!r}, but no rows are "
                    "held out, since early_stopping is False or this is a "
                    "partial_fit. Let it read 'train_loss' or 'train_loss_best', or "
                    "fit with early_stopping=True."
                )


def without_writers(callbacks: Iterable[Any]) -> list[Any]:
    """Return the entries that do not write files, print, or send records."""
    return [e for e in callbacks if not isinstance(_instance(_callback(e)), _WRITERS)]


def copies(callbacks: Iterable[Any] | None) -> list[Any]:
    """Return copies of callbacks for one training, which changes them.

    A copy has its own numbers, strings, containers and arrays. All other objects that a
    callback holds are shared with the copy: a trial, a writer or a lock belongs to the
    world outside and often cannot be copied. A class with a method ``__deepcopy__``
    decides for itself.

    Parameters
    ----------
    callbacks : list or None
        Callbacks, classes of callbacks, and pairs of a name and one of these.
    """
    memo: dict[int, Any] = {}
    return [_copied(entry, memo) for entry in callbacks or []]


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """Return a copy of a callback or of a value that it holds, see `copies`.

    Parameters
    ----------
    memo : dict
        Copies by the id of their originals, which attributes may hold several times.
    """
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, Callback):
        return _copied_callback(value, memo)
    if isinstance(value, MethodType) and isinstance(value.__self__, Callback):
        return MethodType(value.__func__, _copied(value.__self__, memo))
    if isinstance(value, Tensor):
        return value.detach().clone()  # one with a graph cannot be copied otherwise
    if isinstance(value, np.ndarray | np.random.Generator | np.random.RandomState):
        return copy.deepcopy(value)
    if type(value) is tuple:
        return tuple(_copied(entry, memo) for entry in value)
    if type(value) in (set, Counter, bytearray):
        return copy.copy(value)
    if type(value) in _SEQUENCES + _MAPPINGS:
        new = memo[id(value)] = copy.copy(value)
        items = value.items() if type(value) in _MAPPINGS else enumerate(value)
        for key, entry in items:
            new[key] = _copied(entry, memo)
        return new
    return value


def _copied_callback(callback: Callback, memo: dict[int, Any]) -> Callback:
    if hasattr(callback, "__deepcopy__"):
        return copy.deepcopy(callback)
    new = memo[id(callback)] = object.__new__(type(callback))
    for name, value in vars(callback).items():
        vars(new)[name] = _copied(value, memo)
    return new


def prints_history(callbacks: Iterable[Any] | None) -> bool:
    """Whether a callback prints a table of the epochs, which skorch does if verbose."""
    instances = (_instance(_callback(entry)) for entry in callbacks or [])
    return any(isinstance(callback, PrintLog) for callback in instances)


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)


def _callback(entry: Any) -> Any:
    return entry[1] if _is_pair(entry) else entry


def _instance(callback: Any) -> Callback:
    return callback() if isinstance(callback, type) else callback


def _name(callback: Any) -> str:
    cls = callback if isinstance(callback, type) else type(callback)
    return cls.__name__
