"""Mutants that behave as the original, see ``mutants.py``.

The keys are the module, the lines before and the lines after the change; the values say
why no test can fail.
"""

from __future__ import annotations

BOTH = "both branches compute the same values, up to rounding: "

EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "_training",
        "if n_parts > 1:  # not in the context, which a thread would wait for",
        "if n_parts != 1:  # not in the context, which a thread would wait for",
    ): "there is at least one part",
    (
        "_training",
        "is_addition = job.is_partial or job.n_kept > 0",
        "is_addition = job.is_partial or job.n_kept != 0",
    ): "the number is not negative",
    (
        "engine/trainer",
        "MAX_RECORDED_ENTRIES = 2**23",
        "MAX_RECORDED_ENTRIES = 2** 22",
    ): BOTH + "a recorded step takes more memory and less time",
    (
        "engine/trainer",
        "self._total_steps = 1",
        "self._total_steps = 0",
    ): "the number is set again before it is read",
    (
        "engine/trainer",
        "if self.judge.n_divisions > n_divisions:",
        "if self.judge.n_divisions != n_divisions:",
    ): "the number never decreases",
    (
        "engine/trainer",
        "if len(losses) == MAX_BATCH_RECORDS and not is_cpu:  # tensors take memory",
        "if not len(losses) == MAX_BATCH_RECORDS and not is_cpu:"
        "  # tensors take memory",
    ): BOTH + "losses on a GPU are joined earlier",
    (
        "engine/trainer",
        "if len(losses) == MAX_BATCH_RECORDS and not is_cpu:  # tensors take memory",
        "if len(losses) is MAX_BATCH_RECORDS and not is_cpu:  # tensors take memory",
    ): BOTH + "losses on a GPU are joined later",
    (
        "engine/trainer",
        "pairs = zip(before.T, after.T, strict=True)",
        "pairs = zip(before.T, after.T, strict=False)",
    ): "both have a row for each number of components",
    (
        "losses",
        "@staticmethod @once_differentiable",
        "@once_differentiable",
    ): "PyTorch calls the function of the class, not of an instance",
    (
        "losses",
        "and X_hat.numel() > 2 * _PIECE_ENTRIES",
        "and X_hat.numel() > 3 * _PIECE_ENTRIES",
    ): BOTH + "larger gradients are computed piece by piece",
    (
        "penalties",
        "MAX_ENTRIES = 2**22",
        "MAX_ENTRIES = 2** 23",
    ): BOTH + "chunks of rows are larger",
    (
        "penalties",
        "if n_vectors * n_features <= width * (n_vectors + n_features):",
        "if n_vectors * n_features <= width * (n_vectors / n_features):",
    ): BOTH + "the products have another order",
    (
        "penalties",
        "if n_vectors * n_features <= width * (n_vectors + n_features):",
        "if not n_vectors * n_features <= width * (n_vectors + n_features):",
    ): BOTH + "the products have another order",
    (
        "penalties",
        "warm_up: float = 0.0",
        "warm_up: float = -1.0",
    ): "numbers up to 0 mean that there is no warm-up",
    (
        "bottlenecks",
        "if len(positive) == 0:",
        "if len(positive) <= 0:",
    ): "a length is not negative",
    (
        "bottlenecks",
        'if values.device.type == "cpu":',
        'if not values.device.type == "cpu":',
    ): BOTH + "the second one is for GPUs",
    (
        "bottlenecks",
        'if values.device.type == "cpu":',
        'if values.device.type is not "cpu":',
    ): BOTH + "the second one is for GPUs",
    (
        "outlier",
        'has_widths = self.n_components == "auto" and self.trim > 0',
        'has_widths = self.n_components == "auto" and self.trim != 0',
    ): "the share is not negative",
    (
        "_blocks",
        "seed = int(sequence.generate_state(1)[0])",
        "seed = int(sequence.generate_state(1)[ -1])",
    ): "there is one number",
}
