"""Progress of a training: a bar in a terminal, lines elsewhere, records of a logger."""

from __future__ import annotations

import logging
import math
import sys
import time
from typing import Any

from skorch.callbacks import Callback
from tqdm import tqdm

from skae.engine.interrupt import Interruption

logger = logging.getLogger("skae")

# About the number of lines that are printed without a terminal, unless verbose > 1.
MAX_LINES = 20


class Progress(Callback):
    """Shows epoch, losses and remaining time during a training.

    Parameters
    ----------
    verbose : int
        1 shows a bar if standard error is a terminal, otherwise about
        `MAX_LINES` lines on standard output; above 1, a line for each epoch.
    interruption : Interruption, default=None
        Records whether the user has pressed Ctrl-C.
    """

    def __init__(self, verbose: int, interruption: Interruption | None = None):
        self.verbose = verbose
        self.interruption = interruption

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        self.bar_ = None
        self.start_ = time.perf_counter()
        self.first_epoch_ = len(net.history)
        if self.verbose == 1 and sys.stderr.isatty():
            self.bar_ = tqdm(total=net.max_epochs, unit="epoch", desc="Training")

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        losses = _losses(net)
        done = len(net.history) - self.first_epoch_
        if self.bar_ is not None:
            self.bar_.set_postfix(losses, refresh=False)
            self.bar_.update(done - self.bar_.n)
            return
        every = 1 if self.verbose > 1 else math.ceil(net.max_epochs / MAX_LINES)
        if done % every == 0 or done == net.max_epochs or done == 1:
            self._print_line(done, net.max_epochs, losses)

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        if self.bar_ is not None:
            self.bar_.close()
        done = len(net.history) - self.first_epoch_
        if done < net.max_epochs:
            is_interrupted = self.interruption and self.interruption.requested
            ending = "interrupted" if is_interrupted else "stopped"
            best = max(net.best_epoch_ - self.first_epoch_, 0)
            print(
                f"{ending} after epoch {done}, weights of epoch {best} restored",
                flush=True,
            )

    def _print_line(self, done: int, total: int, losses: dict[str, float]) -> None:
        elapsed = time.perf_counter() - self.start_
        remaining = elapsed / done * (total - done)
        left = f"remaining {remaining:.1f} s"
        print(f"epoch {done}/{total}  {_text(losses)}  {left}", flush=True)


class EpochLog(Callback):
    """Writes records to the logger ``"skae"``.

    One for each epoch at the level DEBUG, with the attributes `epoch`, `train_loss` and
    `valid_loss` (None without held-out rows), and one at the end of a training at the
    level INFO, with `n_epochs` and `seconds`.
    """

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        self.start_ = time.perf_counter()
        self.first_epoch_ = len(net.history)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        losses = _losses(net)
        done = len(net.history) - self.first_epoch_
        logger.debug(
            "epoch %d/%d  %s",
            done,
            net.max_epochs,
            _text(losses),
            extra={
                "epoch": done,
                "train_loss": losses["loss"],
                "valid_loss": losses.get("validation"),
            },
        )

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        n_epochs = len(net.history) - self.first_epoch_
        seconds = time.perf_counter() - self.start_
        logger.info(
            "trained %d epochs in %.3f s",
            n_epochs,
            seconds,
            extra={"n_epochs": n_epochs, "seconds": seconds},
        )


def _losses(net: Any) -> dict[str, float]:
    """Return the losses of the last epoch by the names under which they are shown."""
    losses = {"loss": net.history[-1, "train_loss"]}
    if "valid_loss" in net.history[-1]:
        losses["validation"] = net.history[-1, "valid_loss"]
    return losses


def _text(losses: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.5g}" for name, value in losses.items())
