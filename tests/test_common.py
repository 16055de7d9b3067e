"""Facts that hold for every variant of both estimators."""

import pickle
import re
from itertools import combinations as pairs_of

import numpy as np
import pytest
import torch
from devices import assert_same_values
from scipy import sparse
from sklearn.base import clone
from sklearn.utils.estimator_checks import (
    check_estimator,
    parametrize_with_checks,
)
from variants import (
    FACTORS,
    REFUSED,
    allowed_pairs,
    build,
    combinations,
    representatives,
    small,
    variants,
)

import skae

# Every output that has a value for each row.
METHODS = ("transform", "reconstruct", "score_samples", "feature_contributions")


FEW_EPOCHS = {"max_epochs": 2, "random_state": 0}


def on_one_line(estimator):
    return " ".join(repr(estimator).split())


def needs_missing_gpu(text):
    """Whether a check fails because PyTorch is built for CUDA but there is no GPU."""
    is_of_gpu = re.search("cuda|NVIDIA", text, re.IGNORECASE) is not None
    return is_of_gpu and not torch.cuda.is_available()


@pytest.mark.oldest
@parametrize_with_checks(list(representatives()))
def test_estimator_checks(estimator, check):
    if needs_missing_gpu(repr(check.keywords)):
        pytest.skip("needs a GPU")
    check(estimator)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", list(variants()), ids=on_one_line)
def test_every_variant_passes_all_estimator_checks(estimator):
    results = check_estimator(estimator, on_skip=None, on_fail=None)
    for result in results:
        name, status, error = (result[k] for k in ("check_name", "status", "exception"))
        if name.startswith("check_array_api") and (
            status == "skipped" or needs_missing_gpu(str(error))
        ):
            continue  # a library or a device that is not here
        assert status == "passed", f"{name}: {error!r}"


# Combinations of settings


def make_rows(kind):
    """A table of shape (24, 6) in [0, 1], and weights or None.

    Its last two columns are 0 or 1.
    """
    rng = np.random.default_rng(0)
    t = rng.uniform(size=24)
    curve = np.column_stack([t, t**2, 1 - t, rng.uniform(size=24)])
    X = np.column_stack([curve, t > 0.5, rng.uniform(size=24) > 0.5])
    weight = np.arange(24) % 3 if kind == "weighted" else None
    if kind == "float32":
        X = X.astype(np.float32)
    if kind == "missing":
        X[rng.uniform(size=X.shape) < 0.1] = np.nan
    return (sparse.csr_array(X) if kind == "sparse" else X), weight


def outputs(model, X):
    return {name: getattr(model, name)(X) for name in METHODS if hasattr(model, name)}


def assert_same_outputs(one, other, X):
    expected = outputs(other, X)
    for name, values in outputs(one, X).items():
        assert_same_values(values, expected[name], one, other, X.dtype)


@pytest.mark.oldest
@pytest.mark.parametrize(
    "combination", combinations(), ids=lambda c: "-".join(map(str, c.values()))
)
def test_settings_work_together(combination):
    X, weight = make_rows(combination["rows"])
    model = build(combination, n_components=2, **FEW_EPOCHS)
    model.fit(X, sample_weight=weight)
    shapes = {"transform": (24, 2), "score_samples": (24,)}
    for name, values in outputs(model, X).items():
        assert values.shape == shapes.get(name, (24, 6))
        assert values.dtype == (
            X.dtype if name in ("transform", "reconstruct") else float
        )
        assert np.isfinite(values).all()
    if hasattr(model, "score"):
        assert model.score(X, sample_weight=weight) <= 1
    if hasattr(model, "predict"):
        assert set(model.predict(X)) <= {-1, 1}
    assert_same_outputs(pickle.loads(pickle.dumps(model)), model, X)
    assert_same_outputs(clone(model).fit(X, sample_weight=weight), model, X)


def test_combinations_contain_every_allowed_pair():
    contained = {
        frozenset(pair) for row in combinations() for pair in pairs_of(row.items(), 2)
    }
    assert contained == set(allowed_pairs())


@pytest.mark.parametrize(
    "pair", REFUSED, ids=lambda pair: "-".join(f"{k}={v}" for k, v in sorted(pair))
)
@pytest.mark.parametrize("estimator", FACTORS["estimator"])
def test_pairs_left_out_of_the_combinations_are_refused(estimator, pair):
    X, _ = make_rows("dense")
    with pytest.raises(ValueError, match="init='pca' is not possible"):
        build({"estimator": estimator, **dict(pair)}).fit(X)


# The oldest supported versions of all dependencies


@pytest.mark.oldest
@pytest.mark.parametrize("estimator", FACTORS["estimator"].values())
def test_a_model_is_trained_used_and_stored(estimator, tmp_path):
    X, weight = make_rows("missing")
    model = small(estimator, verbose=1, **FEW_EPOCHS).fit(X, sample_weight=weight)
    assert np.isfinite(model.score_samples(X)).all()
    assert_same_outputs(pickle.loads(pickle.dumps(model)), model, X)
    skae.save(model, tmp_path / "model.safetensors")
    assert_same_outputs(skae.load(tmp_path / "model.safetensors"), model, X)
    assert_same_outputs(model.partial_fit(X), model, X)
