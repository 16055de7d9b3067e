"""What the processes of a run of torchrun do; `test_processes.py` starts it."""

import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback, EpochScoring, PrintLog

import skae
from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae.distributed import single_process
from skae.engine.checkpoint import Checkpoint

DIGITS = load_digits().data[:600] / 16
WINE = StandardScaler().fit_transform(load_wine().data)
RANK = int(os.environ.get("RANK", "0"))


class StopFirst(Callback):
    """Ends the training after two epochs, in the first process alone."""

    def on_epoch_end(self, net, **kwargs):
        if RANK == 0 and len(net.history) == 2:
            raise KeyboardInterrupt


def log(text):
    print(f"log of {RANK}: {text}")


class Batches(Callback):
    """Is notified of each batch."""

    def on_batch_end(self, net, **kwargs):
        pass


def n_held_out(net, X, y=None):
    return len(X)


class Die(Callback):
    """Ends the second process after the first epoch, as the kernel may."""

    def on_epoch_end(self, net, **kwargs):
        if RANK == 1:
            os._exit(7)


def transformer(**parameters):
    defaults = {"n_components": 4, "max_epochs": 4, "random_state": 0}
    return AutoencoderTransformer(**{**defaults, **parameters})


def detector(**parameters):
    defaults = {"max_epochs": 3, "random_state": 0}
    return AutoencoderOutlierDetector(**{**defaults, **parameters})


# Fits that are equal up to rounding.
EXACT = {
    "PCA": lambda: transformer().fit(DIGITS),
    "folds from a PCA": lambda: transformer().fit(WINE),
    "ordered": lambda: transformer(ordered=True, max_epochs=2).fit(DIGITS),
    "held-out rows": lambda: transformer(init="random").fit(DIGITS),
    "uneven batches": lambda: transformer(init="random", batch_size=25).fit(DIGITS),
    "folds": lambda: transformer(init="random").fit(WINE),
    "no held-out rows": lambda: transformer(init="random", early_stopping=False).fit(
        DIGITS
    ),
    "small batches": lambda: transformer(init="random", batch_size=3).fit(WINE[:40]),
    "weights": lambda: transformer(init="random").fit(
        DIGITS, sample_weight=np.arange(len(DIGITS)) % 5
    ),
    "missing entries": lambda: transformer(init="random").fit(
        np.where(DIGITS > 0.9, np.nan, DIGITS)
    ),
    "trim": lambda: transformer(init="random", trim=0.1).fit(DIGITS),
    "uncompiled": lambda: transformer(init="random", compile=False).fit(DIGITS),
    "convolutions": lambda: transformer(
        init="random", network="conv", input_shape=(8, 8), max_epochs=2
    ).fit(DIGITS),
    "contractive": lambda: transformer(init="random", penalty="contractive").fit(
        DIGITS
    ),
    "validation rows": lambda: transformer(init="random").fit(
        DIGITS[:400], X_val=DIGITS[400:]
    ),
    "partial_fit": lambda: (
        transformer(init="random").partial_fit(DIGITS).partial_fit(DIGITS)
    ),
    "warm start": lambda: (
        transformer(init="random", warm_start=True).fit(DIGITS).fit(DIGITS)
    ),
    "ensemble": lambda: detector(init="random").fit(WINE),
    "ensemble, trim": lambda: detector(init="random", trim=0.05).fit(DIGITS),
    "one network": lambda: detector(init="random", n_estimators=1).fit(WINE),
}

# Fits whose random numbers or sums over a batch are others in each process.
SIMILAR = {
    "gaussian": lambda: transformer(bottleneck="gaussian", max_epochs=20).fit(DIGITS),
    "quantized": lambda: transformer(
        n_components=8, bottleneck="quantized", max_epochs=20
    ).fit(DIGITS),
    "corruption": lambda: transformer(
        corruption="masking", corruption_level=0.2, max_epochs=20
    ).fit(DIGITS),
    "sparse": lambda: transformer(n_components=16, penalty="kl", max_epochs=20).fit(
        DIGITS
    ),
}


def outcome(model):
    """Return the numbers by which fits in different runs are compared."""
    rows = DIGITS if model.n_features_in_ == 64 else WINE
    result = {
        "loss_curve": list(model.loss_curve_),
        "scores": model.score_samples(rows).tolist(),
        "n_iter": model.n_iter_,
    }
    if hasattr(model, "sample"):
        result["samples"] = model.sample(20, random_state=0, noise=False).tolist()
    if model.validation_loss_curve_ is not None:
        result["validation_loss_curve"] = list(model.validation_loss_curve_)
    return result


def search():
    parameters = {"n_components": [1, 2]}
    return GridSearchCV(transformer(init="random", max_epochs=2), parameters, cv=2)


def fit_again(folder):
    """Return the outcome of a fit that goes on after an error of the disk."""
    model, write = transformer(init="random", checkpoint=folder), Checkpoint.write

    def fail(self, state):
        if state["epoch"] == 3:
            raise OSError(28, "No space left on device")
        write(self, state)

    Checkpoint.write = fail
    try:
        model.fit(DIGITS)
    except OSError as error:
        assert error.errno == 28  # noqa: PT017
    finally:
        Checkpoint.write = write
    assert not hasattr(model, "n_iter_")
    return outcome(model.fit(DIGITS))


def fit_few(folder):
    """Return the results of fits that need several processes, by name."""
    results = {"resumed": fit_again(folder / "fits")}
    callbacks = [StopFirst(), EpochScoring(n_held_out)]
    results["stopped"] = outcome(transformer(callbacks=callbacks).fit(DIGITS))
    callbacks = [Batches()] if RANK == 0 else None
    results["watched"] = outcome(transformer(callbacks=callbacks).fit(WINE))
    model = transformer(init="random", checkpoint=folder / "seeds")
    model.set_params(random_state=None if RANK else 0)
    results["seeded in one"] = outcome(model.fit(DIGITS))
    with single_process():
        results["single"] = outcome(transformer().fit(DIGITS[RANK * 100 :]))
    found = search().fit(DIGITS[:200]).cv_results_["mean_test_score"]
    results["search"] = {"scores": found.tolist()}
    return results


def main(folder, names):
    """Fit estimators by name; write what each process found, and a model."""
    from launched_partitions import fit_all  # which imports this module

    results = fit_few(folder)
    fits = {**EXACT, **SIMILAR}
    results |= {name: outcome(fits[name]()) for name in names if name in fits}
    of_partitions = [name.split(": ")[1] for name in names if name not in fits]
    results["partitions"] = fit_all(of_partitions) if of_partitions else {}
    transformer(verbose=2, callbacks=[PrintLog(sink=log)], max_epochs=2).fit(DIGITS)
    unseeded = transformer(random_state=None, max_epochs=2).fit(DIGITS)
    results["unseeded"] = outcome(unseeded)
    skae.save(unseeded, folder / "model.safetensors")
    try:
        transformer().fit(DIGITS[RANK:])
    except ValueError as error:
        results["different rows"] = str(error)
    (folder / f"{RANK}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", ConvergenceWarning)
    if sys.argv[1] == "die":
        transformer(callbacks=[Die()], max_epochs=100).fit(DIGITS)
    elif sys.argv[1] == "warn":
        warnings.simplefilter("always", ConvergenceWarning)
        transformer(max_epochs=1).fit(DIGITS)
    else:
        main(Path(sys.argv[1]), sys.argv[2:])
