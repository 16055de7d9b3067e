"""Training of a large network by two processes, compared with one.

Started by `scale.py --only processes`.
"""

from __future__ import annotations

import json
import os
import time
import warnings

import numpy as np

from skae import AutoencoderTransformer
from skae.engine import division
from skae.networks import MLP

WIDTHS = (1000, 500, 250)
N_ROWS = 8192
N_FEATURES, N_COMPONENTS, BATCH_SIZE, N_EPOCHS = 784, 30, 1024, 10


def main() -> None:
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(N_ROWS, N_COMPONENTS))
    X = np.tanh(latent @ rng.normal(size=(N_COMPONENTS, N_FEATURES)) / 4)
    X = X.astype(np.float32)
    model = AutoencoderTransformer(
        N_COMPONENTS,
        network=MLP(WIDTHS, activation="relu"),
        init="random",
        batch_size=BATCH_SIZE,
        max_epochs=N_EPOCHS,
        early_stopping=False,
        n_threads=1,
        random_state=0,
    )
    waiting = []
    combine = division.Division.combine

    def timed(self: division.Division, tensors: list) -> None:
        start = time.perf_counter()
        combine(self, tensors)
        waiting.append(time.perf_counter() - start)

    division.Division.combine = timed  # type: ignore[method-assign]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X[: 2 * BATCH_SIZE])  # PyTorch's first calls take longer
        waiting.clear()
        start = time.perf_counter()
        model.fit(X)
        seconds = time.perf_counter() - start
    if int(os.environ.get("RANK", "0")) == 0:
        n_weights = sum(p.numel() for p in model.module_.parameters())
        result = {
            "seconds": seconds,
            "waiting": sum(waiting),
            "loss_curve": list(model.loss_curve_),
            "n_weights": n_weights,
        }
        print(json.dumps(result))


if __name__ == "__main__":
    main()
