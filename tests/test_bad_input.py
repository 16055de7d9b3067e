"""Unusual tables and parameters: each works, or is refused before any training."""

import datetime
import itertools
import os
import re
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.validation import check_is_fitted

from skae import AutoencoderOutlierDetector, AutoencoderTransformer, _numeric
from skae.engine.judge import DivergenceError
from skae.engine.trainer import Trainer

BRIEF = {"max_epochs": 2, "random_state": 0, "compile": False, "n_threads": 1}
ESTIMATORS = {
    "transformer": AutoencoderTransformer(2, **BRIEF),
    "detector": AutoencoderOutlierDetector(2, n_estimators=2, **BRIEF),
}
each_estimator = pytest.mark.parametrize("kind", ESTIMATORS)

N_ROWS, N_COLUMNS = 12, 5


def numbers():
    return np.random.default_rng(0).normal(size=(N_ROWS, N_COLUMNS))


def with_value(value, where=(3, 2), dtype=np.float64):
    X = numbers().astype(dtype)
    X[where] = value
    return X


def frame(**columns):
    return pd.DataFrame(numbers(), columns=list("abcde")).assign(**columns)


def masked(threshold=1):
    X = numbers()
    return np.ma.masked_array(X, mask=np.abs(X) > threshold)


def durations():
    return np.arange(N_ROWS * N_COLUMNS).reshape(N_ROWS, -1).astype("m8[D]")


def arrow(**columns):
    return pa.table({"a": numbers()[:, 0], "b": numbers()[:, 1], **columns})


class Readable:
    """A table of another library, with nothing but its conversion to an array."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values.astype(dtype or self.values.dtype)


def with_duplicates():
    """A CSR matrix with an entry in two parts, and an explicit zero."""
    X = sparse.csr_array(numbers())
    data = np.append(X.data, [1.0, 0.0])
    indices = np.append(X.indices, [4, 1])
    indptr = X.indptr.copy()
    indptr[-1] += 2
    return sparse.csr_array((data, indices, indptr), shape=X.shape)


class Unreadable:
    shape = (N_ROWS, N_COLUMNS)

    def __array__(self, dtype=None, copy=None):
        raise ValueError("X cannot be read")


TIME = datetime.datetime(2026, 1, 1)
SPARSE = ["bsr", "coo", "csc", "csr", "dia", "dok", "lil"]

# Tables that are fitted.
GOOD = {
    "float64": numbers,
    "float32": lambda: numbers().astype(np.float32),
    "float16": lambda: numbers().astype(np.float16),
    "longdouble": lambda: numbers().astype(np.longdouble),
    "big-endian": lambda: numbers().astype(">f8"),
    "big-endian float32": lambda: numbers().astype(">f4"),
    "integers": lambda: (10 * numbers()).astype(np.int64),
    "small integers": lambda: (10 * numbers()).astype(np.int8),
    "unsigned integers": lambda: np.abs(10 * numbers()).astype(np.uint16),
    "booleans": lambda: numbers() > 0,
    "objects that are numbers": lambda: numbers().astype(object),
    "fractions": lambda: np.full((N_ROWS, N_COLUMNS), Fraction(1, 3), dtype=object),
    "strings of numbers": lambda: numbers().astype(str).tolist(),
    "lists": lambda: numbers().tolist(),
    "tuples": lambda: tuple(map(tuple, numbers())),
    "Fortran order": lambda: np.asfortranarray(numbers()),
    "negative strides": lambda: numbers()[::-1, ::-1],
    "every second row": lambda: np.repeat(numbers(), 2, axis=0)[::2],
    "read-only": lambda: np.broadcast_to(numbers()[0], (N_ROWS, N_COLUMNS)),
    "masked array without masked values": lambda: masked(np.inf),
    "other library": lambda: Readable(numbers()),
    "column with the name of an attribute": lambda: frame(_mask=1.0, column_names=2.0),
    "Arrow table": arrow,
    "tensor": lambda: torch.from_numpy(numbers()),
    "missing": lambda: with_value(np.nan),
    "missing row": lambda: with_value(np.nan, 3),
    "all but one missing": lambda: np.where(np.eye(N_ROWS, N_COLUMNS), 1.0, np.nan),
    "column of 1e300": lambda: with_value(1e300, (slice(None), 2)),
    "1e-300": lambda: numbers() * 1e-300,
    "subnormal": lambda: numbers() * 5e-323,
    "subnormal float32": lambda: (numbers() * 1e-42).astype(np.float32),
    "1e150": lambda: numbers() * 1e150,
    "offset of 1e8": lambda: numbers() + 1e8,
    "offset of 1e15": lambda: numbers() + 1e15,
    "columns of 1e-12 and 1e12": lambda: numbers() * np.logspace(-12, 12, 5),
    "zeros": lambda: np.zeros((N_ROWS, N_COLUMNS)),
    "equal rows": lambda: np.repeat(numbers()[:1], N_ROWS, axis=0),
    "equal columns": lambda: np.repeat(numbers()[:, :1], N_COLUMNS, axis=1),
    "constant column": lambda: with_value(7.0, (slice(None), 2)),
    "one row": lambda: numbers()[:1],
    "one column": lambda: numbers()[:, :1],
    "two rows": lambda: numbers()[:2],
    "3,000 columns": lambda: np.random.default_rng(0).normal(size=(4, 3000)),
    "frame": frame,
    "frame of integers": lambda: frame().mul(10).astype(int),
    "nullable": lambda: frame().convert_dtypes(),
    "nullable, missing": lambda: frame(c=pd.array([None, *range(1, 12)], "Int64")),
    "nullable booleans": lambda: frame(c=pd.array([None, True] * 6, "boolean")),
    "Arrow": lambda: frame().astype("float64[pyarrow]"),
    "Arrow, missing": lambda: frame(c=[None, *range(11)]).astype("double[pyarrow]"),
    "numeric categories": lambda: frame(c=pd.Categorical([1, 2] * 6)),
    "index that repeats": lambda: frame().set_axis([0] * N_ROWS),
    "multi-index": lambda: frame().set_index(["a", "b"]),
    "polars": lambda: pl.DataFrame(numbers(), schema=list("abcde")),
    "polars, missing": lambda: pl.DataFrame({"a": [None, *range(11)], "b": range(12)}),
    **{
        f"sparse {f}": lambda f=f: sparse.random_array(
            (N_ROWS, N_COLUMNS), density=0.5, format=f, rng=np.random.default_rng(0)
        )
        for f in SPARSE
    },
    "sparse zeros": lambda: sparse.csr_array((N_ROWS, N_COLUMNS)),
    "sparse duplicates": with_duplicates,
    "sparse NaN": lambda: sparse.csr_array(with_value(np.nan)),
    "sparse integers": lambda: sparse.csr_array((10 * numbers()).astype(int)),
    "sparse 64-bit indices": lambda: sparse.coo_array(numbers()).tocsr(copy=True),
}
# Tables that are refused, and a part of the message.
BAD = {
    "None": (lambda: None, "Expected 2D array, got scalar"),
    "number": (lambda: 1.0, "Expected 2D array, got scalar"),
    "string": (lambda: "words", "could not convert string"),
    "dictionary": (lambda: {"a": [1.0]}, "not 'dict'"),
    "one dimension": (lambda: numbers()[0], "got 1D array"),
    "three dimensions": (lambda: numbers()[None], "numpy.reshape"),
    "no rows": (lambda: numbers()[:0], "0 sample"),
    "no columns": (lambda: numbers()[:, :0], "0 feature"),
    "ragged": (lambda: [[1.0, 2.0], [1.0]], "inhomogeneous"),
    "complex": (lambda: numbers() + 1j, "[Cc]omplex"),
    "infinite": (lambda: with_value(np.inf), "infinity|inf"),
    "minus infinity": (lambda: with_value(-np.inf), "infinity|inf"),
    "infinite float32": (lambda: with_value(np.inf, dtype=np.float32), "infinity"),
    "sparse infinity": (lambda: sparse.csr_array(with_value(np.inf)), "infinity"),
    "sparse complex": (lambda: sparse.csr_array(numbers() + 1j), "[Cc]omplex"),
    "missing column": (
        lambda: with_value(np.nan, (slice(None), 2)),
        r"feature\(s\): 2",
    ),
    "1e300": (lambda: with_value(1e300), r"too large .* feature\(s\) 2"),
    "-1e300": (lambda: with_value(-1e300), r"too large .* feature\(s\) 2"),
    "nothing observed": (lambda: np.full((N_ROWS, N_COLUMNS), np.nan), "observed|miss"),
    "strings": (
        lambda: np.full((N_ROWS, N_COLUMNS), "a"),
        "X has a value.*'a' in column 0",
    ),
    "bytes": (
        lambda: np.full((N_ROWS, N_COLUMNS), b"a"),
        "X has a value.*b'a' in column 0",
    ),
    "objects": (
        lambda: np.full((N_ROWS, N_COLUMNS), object()),
        "X has a value.*object",
    ),
    "dictionaries": (lambda: np.full((N_ROWS, N_COLUMNS), {}), "X has a value.*{}"),
    "datetime": (
        lambda: np.full((N_ROWS, N_COLUMNS), np.datetime64("2026")),
        "X has dates",
    ),
    "timedelta": (
        lambda: np.full((N_ROWS, N_COLUMNS), np.timedelta64(1)),
        "X has dates",
    ),
    "rows of dates": (lambda: list(np.datetime64("2026") + durations()), "X has dates"),
    "durations in lists": (lambda: list(map(list, durations())), "X has dates"),
    "durations among numbers": (
        lambda: [[1.0, 2.0, duration] for duration in durations()[:, 0]],
        "X has dates",
    ),
    "objects of durations": (
        lambda: with_value(np.timedelta64(1, "D"), dtype=object),
        "X has dates",
    ),
    "column of objects of durations": (
        lambda: frame(c=pd.Series([np.timedelta64(1, "D")] * N_ROWS, dtype=object)),
        "dates.*'c'",
    ),
    "dates of another library": (lambda: Readable(durations()), "X has dates"),
    "Arrow dates": (lambda: arrow(c=[TIME] * N_ROWS), "dates.*'c'"),
    "Arrow durations": (
        lambda: arrow(c=[datetime.timedelta(1)] * N_ROWS),
        "dates.*'c'",
    ),
    "Arrow strings": (lambda: arrow(c=["x"] * N_ROWS), "'x' in column 'c'"),
    "masked": (masked, "masked array"),
    "rows of masked": (lambda: list(masked()), "masked array"),
    "void": (lambda: np.zeros(N_ROWS, dtype=[("a", float), ("b", float)]), "dtype"),
    "column of strings": (lambda: frame(c="a"), "'a' in column 'c'"),
    "column of dates": (lambda: frame(c=TIME), "dates.*'c'"),
    "column of periods": (lambda: frame(c=pd.Period("2026")), "Period.*'c'"),
    "column of intervals": (lambda: frame(c=pd.Interval(0, 1)), "Interval.*'c'"),
    "column of lists": (lambda: frame(c=[[1]] * 12), "1.* in column 'c'"),
    "categories of strings": (
        lambda: frame(c=pd.Categorical(["a"] * 12)),
        "'a' in column 'c'",
    ),
    "mixed names": (lambda: frame().rename(columns={"a": 0}), "Feature names"),
    "polars strings": (
        lambda: pl.DataFrame({"a": ["x", "y"], "b": [1, 2]}),
        "'x' in column 'a'",
    ),
    "polars dates": (
        lambda: pl.DataFrame({"a": [TIME] * 2, "b": [1, 2]}),
        "dates.*'a'",
    ),
    "unreadable": (Unreadable, "cannot be read"),
}

MISSING_NA = pd.DataFrame({"a": [1.0, 2.0], "b": [pd.NA, None]})
BAD["NA among objects"] = (MISSING_NA.copy, "<NA> in column 'b'")

# Weights, and a part of the message for those that are refused.
WEIGHTS = {
    "ones": (np.ones(N_ROWS), None),
    "integers": (np.arange(1, N_ROWS + 1), None),
    "booleans": (np.arange(N_ROWS) > 3, None),
    "one number": (2.0, None),
    "series": (pd.Series(np.ones(N_ROWS)), None),
    "large": (np.full(N_ROWS, 1e30), None),
    "small": (np.full(N_ROWS, 1e-30), None),
    "zeros": (np.zeros(N_ROWS), "weight"),
    "negative": (-np.ones(N_ROWS), "[Nn]egative"),
    "one negative": (np.arange(N_ROWS) - 1.0, "[Nn]egative"),
    "NaN": (np.full(N_ROWS, np.nan), "sample_weight.*NaN"),
    "infinite": (np.full(N_ROWS, np.inf), "sample_weight.*infinity"),
    "too large": (np.full(N_ROWS, 1e300), "sample_weight"),
    "subnormal": (np.full(N_ROWS, 5e-324), "sample_weight"),
    "too short": (np.ones(3), "sample_weight"),
    "two-dimensional": (np.ones((N_ROWS, 2)), "[Ss]ample weights"),
    "words": (["a"] * N_ROWS, "convert"),
    "string": ("balanced", "convert|sample_weight"),
    "complex": (np.ones(N_ROWS) * 1j, "[Cc]omplex"),
    "dates": (np.full(N_ROWS, np.datetime64("2026")), "sample_weight has dates"),
    "durations": ([np.timedelta64(1, "D")] * N_ROWS, "sample_weight has dates"),
    "masked": (np.ma.masked_less(np.arange(N_ROWS), 3), "sample_weight is a masked"),
}


def global_state():
    return {
        "torch generator": torch.get_rng_state().tolist(),
        "NumPy generator": str(np.random.mtrand._rand.get_state()),
        "threads": torch.get_num_threads(),
        "type": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "errors": np.geterr(),
        "filters": list(warnings.filters),
        "environment": dict(os.environ),
    }


@pytest.fixture(autouse=True, scope="module")
def working_directory(tmp_path_factory):
    """A folder for the files of fits with any text as `checkpoint`."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("folder"))
    yield
    os.chdir(before)


@pytest.fixture
def n_trainings(monkeypatch):
    """A list to which each training appends."""
    started = []

    def run(self, original=Trainer.run):
        started.append(self)
        return original(self)

    monkeypatch.setattr(Trainer, "run", run)
    return started


def copied(X):
    """Return a copy by value of anything that a test passes."""
    if isinstance(X, np.memmap | np.ndarray):
        return X.copy()
    return X.copy() if hasattr(X, "copy") else X


def assert_unchanged(X, before):
    if sparse.issparse(X):
        X, before = X.tocoo(), before.tocoo()
        np.testing.assert_array_equal(X.data, before.data)
    elif isinstance(X, pd.DataFrame):
        pd.testing.assert_frame_equal(X, before)
    elif isinstance(X, np.ndarray) and X.dtype.kind in "biufc":
        np.testing.assert_array_equal(np.asarray(X), np.asarray(before))


def fit(estimator, X, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        return estimator.fit(X, **kwargs)


def assert_works(estimator, X):
    """Assert that a fitted estimator has finite results, of the shapes of X."""
    n_samples = np.shape(X)[0]
    assert estimator.score_samples(X).shape == (n_samples,)
    assert np.isfinite(estimator.score_samples(X)).all()
    assert np.isfinite(np.asarray(estimator.reconstruct(X), dtype=float)).all()
    if hasattr(estimator, "transform"):
        assert np.isfinite(np.asarray(estimator.transform(X), dtype=float)).all()
    else:
        assert set(np.asarray(estimator.predict(X))) <= {-1, 1}


@each_estimator
@pytest.mark.parametrize("name", GOOD)
def test_unusual_tables_are_fitted(kind, name):
    X = GOOD[name]()
    before, state = copied(X), global_state()
    estimator = fit(clone(ESTIMATORS[kind]), X)
    assert_works(estimator, X)
    assert_unchanged(X, before)
    assert global_state() == state


@each_estimator
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("name", BAD)
def test_bad_tables_are_refused_before_training(kind, name, method, n_trainings):
    make, message = BAD[name]
    X, estimator = make(), clone(ESTIMATORS[kind])
    attributes, state = dict(vars(estimator)), global_state()
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        getattr(estimator, method)(X)
    assert not n_trainings
    assert vars(estimator) == attributes
    assert global_state() == state


@pytest.fixture(scope="module")
def fitted():
    return {kind: fit(clone(e), numbers()) for kind, e in ESTIMATORS.items()}


@each_estimator
@pytest.mark.parametrize(
    "name", [name for name in BAD if name not in ("missing column", "nothing observed")]
)
def test_bad_tables_are_refused_by_fitted_estimators(kind, name, fitted):
    make, _ = BAD[name]
    if name in ("1e300", "-1e300"):  # an outlier
        assert np.isfinite(fitted[kind].score_samples(make())).all()
        return
    warnings.simplefilter("ignore", UserWarning)  # of names; pytest restores filters
    with pytest.raises((ValueError, TypeError)):
        fitted[kind].score_samples(make())


@each_estimator
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(kind, name, n_trainings):
    weight, message = WEIGHTS[name]
    estimator = clone(ESTIMATORS[kind])
    if message is None:
        assert_works(fit(estimator, numbers(), sample_weight=weight), numbers())
        return
    attributes, state = dict(vars(estimator)), global_state()
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        estimator.fit(numbers(), sample_weight=weight)
    assert not n_trainings
    assert vars(estimator) == attributes
    assert global_state() == state


@pytest.mark.parametrize("library", [pd, pl])
def test_check_of_numbers_takes_no_column_out_of_a_frame(library, monkeypatch):
    X = library.DataFrame({name: numbers()[:, 0] for name in "abc"})
    monkeypatch.setattr(_numeric, "columns_of", None)  # it takes long for many columns
    with _numeric.numeric(X):
        pass


# Parameters


def without_address(value):
    """Return a name that is the same in all processes."""
    return re.sub("0x[0-9A-Fa-f]+", "", repr(value))


class Odd:
    """An object that no parameter takes."""

    def __repr__(self):
        return "Odd()"


ODD = [
    *(None, True, False, 0, 1, 2, -1, 10**9, 2**63, 0.0, -0.0, 0.5, 1.0, 1.5, -1.0),
    *(1e-300, 1e300, np.nan, np.inf, -np.inf, 1j, "", "auto", "mlp", "none", "\0"),
    *(
        b"auto",
        (),
        [],
        {},
        set(),
        (0,),
        (4,),
        [4, 4],
        (2.5,),
        ("a",),
        (-1, 3),
        (10**9,),
    ),
    *(np.int64(3), np.float32(0.5), np.bool_(True), np.array(2), np.array([1, 2])),
    *(np.str_("auto"), Fraction(1, 2), torch.tensor(1), Odd, Odd(), len, range(3)),
    *(
        np.random.default_rng(0),
        np.random.RandomState(0),
        torch.nn.ReLU,
        torch.nn.ReLU(),
    ),
]

# Values of the numbers below that take long, although they are allowed.
SLOW = {"max_epochs": 100, "n_estimators": 50, "hidden_layer_sizes": 100}


# Parameters that depend on the machine, or draw from the global generator by design.
EXCLUDED = {"n_jobs", "n_threads", "verbose", "compile"}


def names_of(estimator):
    return sorted(set(estimator.get_params()) - EXCLUDED)


def is_slow(name, value):
    if isinstance(value, np.ndarray | torch.Tensor):
        return False
    largest = value if isinstance(value, int | float) else 0
    if isinstance(value, tuple | list):
        largest = max([v for v in value if isinstance(v, int)], default=0)
    return name in SLOW and largest > SLOW[name]


def assert_works_or_is_refused(estimator, X, names):
    """Assert that a fit has finite results, or an error names a parameter."""
    started, state = [], global_state()
    attributes, before = dict(vars(estimator)), copied(X)
    original = Trainer.run

    def run(self):
        started.append(self)
        return original(self)

    error = None
    Trainer.run = run
    try:
        fit(estimator, X)
    except (ValueError, TypeError, MemoryError) as raised:
        error = raised
    finally:
        Trainer.run = original
    if error is None:
        assert_works(estimator, X)
    elif isinstance(error, DivergenceError):  # of a learning rate that is allowed
        assert "learning_rate" in str(error)
    else:
        assert not started, f"refused after training: {error!r}"
        assert any(name in str(error) for name in [*names, "X"]), repr(error)
        assert vars(estimator) == attributes
        with pytest.raises(NotFittedError):
            check_is_fitted(estimator)
    assert_unchanged(X, before)
    if estimator.random_state is None:  # the global generator gives the seed
        state["NumPy generator"] = global_state()["NumPy generator"]
    assert global_state() == state


def settings_of(kind):
    """Strategy of parameters with odd values, and of usual values of others."""
    names = names_of(ESTIMATORS[kind])
    odd = st.dictionaries(st.sampled_from(names), st.sampled_from(ODD), max_size=2)
    usual = st.fixed_dictionaries(
        {}, optional={name: st.sampled_from(values) for name, values in USUAL.items()}
    )
    return st.tuples(usual, odd)


USUAL = {
    "bottleneck": ["deterministic", "gaussian", "quantized"],
    "network": ["mlp", "conv"],
    "corruption": ["gaussian", "masking", "swap"],
    "penalty": ["l1", "kl", "contractive"],
    "loss": ["squared_error", "absolute_error", "binary_cross_entropy", "mixed"],
    "init": ["pca", "random"],
    "scale": ["global", "feature", None],
    "early_stopping": [True, False],
    "trim": [0.0, 0.5],
}
TABLES = ["float32", "missing", "booleans", "zeros", "one row", "sparse csr", "frame"]


FEW = [None, -1, 2**63, np.nan, (0,), Odd()]


@each_estimator
@pytest.mark.parametrize("value", FEW, ids=without_address)
def test_odd_values_of_each_parameter(kind, value):
    check_odd(kind, value)


@pytest.mark.slow
@each_estimator
@pytest.mark.parametrize("value", ODD, ids=without_address)
def test_more_odd_values_of_each_parameter(kind, value):
    check_odd(kind, value)


def check_odd(kind, value):
    for name in names_of(ESTIMATORS[kind]):
        if not is_slow(name, value):
            estimator = clone(ESTIMATORS[kind]).set_params(**{name: value})
            assert_works_or_is_refused(estimator, numbers(), [name])


@each_estimator
@settings(max_examples=15)
@given(data=st.data())
def test_crossed_parameters(kind, data):
    check_crossed(kind, data)


@pytest.mark.slow
@each_estimator
@settings(max_examples=1000, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_many_crossed_parameters(kind, data):
    check_crossed(kind, data)


def check_crossed(kind, data):
    usual, odd = data.draw(settings_of(kind))
    given = {**usual, **odd}
    table = data.draw(st.sampled_from(TABLES))
    if any(is_slow(*item) for item in itertools.chain(given.items())):
        return
    estimator = clone(ESTIMATORS[kind]).set_params(**given)
    assert_works_or_is_refused(estimator, GOOD[table](), list(given))
