"""Fits of tables in partitions by the processes of a run, see `launched.py`."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import ClassVar
from unittest.mock import patch

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
from launched import RANK, detector, transformer
from skorch.callbacks import Callback

from skae import _streamed
from skae.bottlenecks import Quantized
from skae.distributed import single_process
from skae.networks import MLP

N_ROWS = 1200
UNEVEN = (100, 100, 430, 431, 800, 1100)


def make_table():
    """Rows near a curved surface in seven dimensions."""
    rng = np.random.default_rng(0)
    t = rng.uniform(-1, 1, (N_ROWS, 2))
    curved = [t, t**2, np.sin(3 * t), t[:, :1] * t[:, 1:]]
    X = np.hstack(curved) * np.arange(1, 8) + 5
    return X + 0.05 * rng.normal(size=X.shape)


X = make_table()
EVEN = np.split(X, 12)
WEIGHT = np.arange(N_ROWS) + 1.0
MISSING = np.where(np.random.default_rng(1).random(X.shape) < 0.1, np.nan, X)
MISSING[[3, 700]] = np.nan


def frame(rows):
    return pd.DataFrame(rows, columns=list("abcdefg"))


class Files(Sequence):
    """Partitions with random access, which record what is read."""

    def __init__(self, fails=lambda n_reads: False):
        self.fails = fails
        self.reads = []

    def __len__(self):
        return len(EVEN)

    def __getitem__(self, i):
        if i >= len(EVEN):
            raise IndexError
        self.reads.append(i)
        if self.fails(len(self.reads)):
            raise OSError("no disk")
        return EVEN[i].copy()


class Seen(Callback):
    """Records the numbers of the rows of each epoch, which are their weights."""

    epochs: ClassVar[list] = []  # the training has a copy of the callback

    def on_epoch_begin(self, net, **kwargs):
        self.epochs.append([])

    def on_batch_begin(self, net, batch, training, **kwargs):
        if training:
            numbers = batch[1].numpy() * WEIGHT.mean()
            self.epochs[-1].append(np.rint(numbers).astype(int).tolist())


class Fails(Callback):
    """Raises an error in a method."""

    def __init__(self, name):
        self.name = name

    def _fail(self, name):
        if name == self.name:
            raise ZeroDivisionError("by a callback")

    def on_train_begin(self, net, **kwargs):
        self._fail("on_train_begin")

    def on_epoch_begin(self, net, **kwargs):
        self._fail("on_epoch_begin")

    def on_epoch_end(self, net, **kwargs):
        self._fail("on_epoch_end")

    def on_train_end(self, net, **kwargs):
        self._fail("on_train_end")


# Fits whose explained variance is that of one process.
FITS = {
    "list": lambda: fit(np.split(X, UNEVEN)),
    "function": lambda: fit(lambda: (part for part in np.split(X, UNEVEN))),
    "dask array": lambda: fit(da.from_array(X, chunks=((100, 330, 1, 469, 300), 3))),
    "dask frame": lambda: fit(dd.from_pandas(frame(X), npartitions=7)),
    "one partition": lambda: fit([X]),
    "two partitions": lambda: fit(np.split(X, [400])),
    "weights": lambda: fit(np.split(X, UNEVEN), weight=np.arange(N_ROWS) % 3.0),
    "missing, trim": lambda: fit(np.split(MISSING, UNEVEN), trim=0.1),
    "unseeded": lambda: fit(EVEN, n_components=0.8, random_state=None),
    "ordered": lambda: fit(EVEN, ordered=True, whiten=True),
}

# Those of a detector, whose scores of the training rows are compared.
DETECTORS = {
    "ensemble": lambda: detector().fit(np.split(X, UNEVEN)),
    "few left out": lambda: detector().fit(
        np.split(MISSING, UNEVEN), sample_weight=np.arange(N_ROWS) > 0
    ),
    "one network": lambda: detector(n_estimators=1, trim=0.05).fit(lambda: iter(EVEN)),
}
if find_spec("sklearn.callback"):  # scikit-learn 1.9
    DETECTORS["observed"] = lambda: (
        detector(early_stopping=True).set_callbacks(Monitor()).fit(EVEN)
    )


class Monitor:
    """Callback of scikit-learn, which the first process notifies of each epoch."""

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None):
        assert len(fitted_estimator.training_scores_) == N_ROWS


def fit(partitions, *, weight=None, X_val=None, **parameters):
    defaults = {"n_components": 2, "max_epochs": 10, "batch_size": 64}
    model = transformer(**{**defaults, **parameters})
    return model.fit(partitions, sample_weight=weight, X_val=X_val)


def fit_again(*, is_fitted):
    """Fit an estimator that this process may have fitted alone."""
    model = transformer(warm_start=True, max_epochs=1)
    if is_fitted:
        with single_process():
            model.fit(X)
    return model.fit(X)


def outcome(name):
    """Return the numbers by which fits by different processes are compared."""
    model = {**FITS, **DETECTORS}[name]()
    rows = frame(X) if hasattr(model, "feature_names_in_") else X
    rows = MISSING if name == "few left out" else rows
    result = {
        "loss_curve": list(model.loss_curve_),
        "scores": model.score_samples(rows).tolist(),
    }
    if hasattr(model, "training_scores_"):
        result["training_scores"] = model.training_scores_.tolist()
    else:
        result["explained"] = model.score(rows)
    return result


def changed(partition):
    parts = list(EVEN)
    parts[partition] = parts[partition] + 1.0
    return parts


# What is refused, or fails in the second process alone, and the error.
DIFFERENT = "ValueError: X, sample_weight and the parameters .* must be the same"
ERRORS = {
    "array in one": (lambda: fit(X if RANK else EVEN), DIFFERENT),
    "other partitions": (lambda: fit(changed(0) if RANK else EVEN), DIFFERENT),
    "other number": (lambda: fit(EVEN[:7] if RANK else EVEN), DIFFERENT),
    "other number of a function": (
        lambda: fit(lambda: iter(EVEN if RANK else EVEN[:7])),
        "ValueError: X must have the same partitions in all processes",
    ),
    "weights in one": (
        lambda: fit(EVEN, weight=WEIGHT if RANK else None),
        DIFFERENT,
    ),
    "other weights": (lambda: fit(EVEN, weight=WEIGHT + RANK), DIFFERENT),
    "invalid weights": (
        lambda: fit(EVEN, weight=WEIGHT[RANK:]),
        "ValueError: sample_weight.shape",
    ),
    "other parameters": (
        lambda: fit(EVEN, n_components=0.9 if RANK else 2),
        DIFFERENT,
    ),
    "other layers": (
        lambda: fit(X, hidden_layer_sizes=(8 + RANK,)),
        DIFFERENT,
    ),
    "other network": (
        lambda: fit(X, network=MLP((8,), activation="relu" if RANK else "tanh")),
        DIFFERENT,
    ),
    "other bottleneck": (
        lambda: fit(X, bottleneck=Quantized(n_codes=8 + RANK)),
        DIFFERENT,
    ),
    "other rows for validation": (lambda: fit(X, X_val=X[: 50 + RANK]), DIFFERENT),
    "fitted in one": (lambda: fit_again(is_fitted=RANK == 1), DIFFERENT),
    "invalid parameter": (
        lambda: fit(X, n_components=2 - 3 * RANK),
        "InvalidParameterError: The 'n_components' parameter",
    ),
    "unknown device": (
        lambda: fit(X, device="nowhere" if RANK else "cpu"),
        "ValueError: device must be 'auto' or a device",
    ),
    "checkpoint and callbacks": (
        lambda: fit(X, callbacks=[Seen()] * RANK, checkpoint="unused"),
        "ValueError: checkpoint and callbacks cannot be used together",
    ),
    "values of the rows for validation": (
        lambda: fit(
            X / X.max() / 4 + 0.5, loss="binary_cross_entropy", X_val=X[:9] * RANK
        ),
        "ValueError: loss='binary_cross_entropy' needs all of X_val",
    ),
    **{
        f"callback at {name}": (
            lambda name=name: fit(X, callbacks=[Fails(name)] * RANK),
            "ZeroDivisionError: by a callback",
        )
        for name in ("on_train_begin", "on_epoch_begin", "on_epoch_end", "on_train_end")
    },
    "partial_fit in one": (
        lambda: transformer().partial_fit(EVEN if RANK else X),
        "TypeError: partial_fit takes one array",
    ),
    "invalid array": (
        lambda: fit(X * 1j if RANK else X),
        "ValueError: Complex data",
    ),
    "invalid weights of an array": (
        lambda: fit(X, weight=-WEIGHT if RANK else WEIGHT),
        "ValueError: .*egative",
    ),
    "invalid rows for validation": (
        lambda: fit(EVEN, X_val=X[:, RANK:]),
        "ValueError: X_val has 6 features",
    ),
    "first read": (
        lambda: fit(Files(lambda n: RANK == 1 and n == 1)),
        "OSError: no disk",
    ),
    "first pass": (
        lambda: fit(Files(lambda n: RANK == 1 and n == 10)),
        "OSError: no disk",
    ),
    "epoch": (
        lambda: fit(Files(lambda n: RANK == 1 and n == 40)),
        "OSError: no disk",
    ),
}


def error_of(fit):
    try:
        fit()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def fit_small():
    """Fit a table that is loaded, as an array is."""
    return fit(EVEN)


def fit_all(names):
    """Return what this process finds in fits of tables in partitions, by name."""
    results = {"small table": fit_small().score(X)}
    with patch.object(_streamed, "MAX_GATHERED", 100):
        results |= {name: outcome(name) for name in names}
        files = Files()
        settings = {"max_epochs": 3, "early_stopping": False}
        fit(np.split(X, UNEVEN), weight=WEIGHT, callbacks=[Seen()], **settings)
        fit(files, batch_size=100, **settings)
        results["seen"], results["reads"] = Seen.epochs, files.reads
        results["errors"] = {name: error_of(make) for name, (make, _) in ERRORS.items()}
    return results
