"""Facts about skae._frames, and about `impute`."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy import sparse
from sklearn.datasets import load_iris

from skae import AutoencoderTransformer

X = np.column_stack([np.round(10 * load_iris().data), load_iris().target > 1])
NAMES = list("abcde")


def incomplete():
    rows = X.copy()
    rows[::3, 1] = rows[::5, 4] = rows[7, 2] = np.nan
    rows[9] = np.nan
    return rows


@pytest.fixture(scope="module")
def fitted():
    frame = pd.DataFrame(incomplete(), columns=NAMES)
    ae = AutoencoderTransformer(
        None, scale="feature", corruption="masking", max_epochs=3, random_state=0
    )
    return ae.fit(frame)


@pytest.fixture(scope="module")
def expected(fitted):
    rows = incomplete()
    X_hat = fitted.reconstruct(pd.DataFrame(rows, columns=NAMES))
    return np.where(np.isnan(rows), X_hat, rows)


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_observed_entries_remain_and_others_are_reconstructed(fitted, expected, dtype):
    rows = incomplete().astype(dtype)
    before = rows.copy()
    filled = fitted.impute(rows)
    assert filled.dtype == dtype
    np.testing.assert_array_equal(rows, before)
    is_observed = ~np.isnan(rows)
    np.testing.assert_array_equal(filled[is_observed], rows[is_observed])
    np.testing.assert_allclose(filled, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_complete_rows_are_copied(fitted):
    filled = fitted.impute(X)
    np.testing.assert_array_equal(filled, X)
    assert not np.shares_memory(filled, X)


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_sparse_rows_remain_sparse(fitted, expected):
    filled = fitted.impute(sparse.csc_matrix(incomplete()))
    assert filled.format == "csr"
    np.testing.assert_allclose(filled.toarray(), expected)


def test_pandas_frames_remain_frames(fitted, expected):
    rows = incomplete()
    frame = pd.DataFrame(
        {
            "a": rows[:, 0],
            "b": pd.array(rows[:, 1], dtype="Int64"),
            "c": rows[:, 2].astype(np.float32),
            "d": pd.array(rows[:, 3], dtype="Float32"),
            "e": [None if np.isnan(v) else bool(v) for v in rows[:, 4]],
        },
        index=np.arange(len(rows)) + 7,
    )
    before = frame.copy()
    filled = fitted.impute(frame)
    pd.testing.assert_frame_equal(frame, before)
    assert list(filled.dtypes.astype(str)) == [
        "float64",
        "Float64",
        "float32",
        "Float32",
        "float64",
    ]
    pd.testing.assert_index_equal(filled.index, frame.index)
    np.testing.assert_allclose(filled.to_numpy(dtype=float), expected, rtol=1e-5)


def test_columns_without_a_missing_entry_keep_their_type(fitted):
    frame = pd.DataFrame(X.astype(int), columns=NAMES).astype({"a": float})
    frame.loc[3, "a"] = np.nan
    filled = fitted.impute(frame)
    pd.testing.assert_frame_equal(filled[NAMES[1:]], frame[NAMES[1:]])
    assert not filled["a"].isna().any()


def test_polars_frames_remain_frames(fitted, expected):
    rows = incomplete()
    frame = pl.DataFrame(
        {
            "a": rows[:, 0],
            "b": [None if np.isnan(v) else int(v) for v in rows[:, 1]],
            "c": rows[:, 2].astype(np.float32),
            "d": rows[:, 3],
            "e": [None if np.isnan(v) else bool(v) for v in rows[:, 4]],
        }
    )
    before = frame.clone()
    filled = fitted.impute(frame)
    assert frame.equals(before)
    assert filled.dtypes == [pl.Float64, pl.Float64, pl.Float32, pl.Float64, pl.Float64]
    np.testing.assert_allclose(filled.to_numpy(), expected, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_arrays_become_frames_if_requested(fitted, expected):
    filled = fitted.set_output(transform="pandas").impute(incomplete())
    fitted.set_output(transform="default")
    assert list(filled.columns) == NAMES
    np.testing.assert_allclose(filled, expected)


# Categories


@pytest.fixture(scope="module")
def mixed():
    """Columns that one category determines, complete and with missing entries."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 3, 300)
    frame = pd.DataFrame(
        {
            "number": 2 * a + 0.1 * rng.normal(size=300),
            "word": np.array(["u", "v", "w"])[a],
            "category": pd.Categorical(np.array(["p", "q", "r"])[a]),
            "bool": pd.array(a > 0, dtype="boolean"),
            "object": pd.Series((a > 1).tolist(), dtype=object),
        }
    )
    incomplete = frame.copy()
    for column in frame.columns:
        incomplete.loc[rng.random(300) < 0.1, column] = None
    return frame, incomplete


@pytest.fixture(scope="module")
def of_categories(mixed):
    return AutoencoderTransformer(
        3, categorical_features="from_dtype", max_epochs=40, random_state=0
    ).fit(mixed[1])


def test_missing_categories_are_imputed(mixed, of_categories):
    complete, incomplete = mixed
    frame = of_categories.impute(incomplete)
    assert not frame.isna().any(axis=None)
    pd.testing.assert_series_equal(frame.dtypes, incomplete.dtypes)
    for name in frame.columns[1:]:
        is_observed = incomplete[name].notna()
        assert (frame[name] == complete[name])[is_observed].all()
        assert (frame[name] == complete[name])[~is_observed].mean() > 0.9


def test_unknown_categories_remain_and_new_levels_are_added(mixed, of_categories):
    incomplete = mixed[1].copy()
    incomplete["category"] = incomplete["category"].cat.rename_categories({"p": "new"})
    filled = of_categories.impute(incomplete)["category"]
    is_new = incomplete["category"] == "new"
    assert (filled[is_new] == "new").all()
    assert set(filled.cat.categories) == {"new", "p", "q", "r"}


def test_polars_frames_keep_types_of_categories(mixed):
    polars = pytest.importorskip("polars")
    incomplete = polars.from_pandas(mixed[1].drop(columns="object"))
    ae = AutoencoderTransformer(
        1, categorical_features="from_dtype", max_epochs=1, random_state=0
    )
    filled = ae.fit(incomplete).impute(incomplete)
    assert filled.dtypes == incomplete.dtypes
    assert filled.null_count().sum_horizontal().item() == 0


@pytest.mark.parametrize("container", ["default", "pandas", "polars"])
def test_arrays_with_categories_are_imputed(mixed, container):
    pytest.importorskip("polars")
    rows = mixed[1][["number", "word", "object"]].to_numpy(dtype=object)
    ae = AutoencoderTransformer(
        1, categorical_features=[1, 2], max_epochs=1, random_state=0
    )
    filled = ae.fit(rows).set_output(transform=container).impute(rows)
    if container != "default":
        assert next(map(str, filled.dtypes)).lower() == "float64"
        filled = filled.to_numpy()
    is_observed = ~pd.isna(rows)
    assert (filled[is_observed] == rows[is_observed]).all()
    assert not pd.isna(filled).any()


def test_categories_that_are_numbers_are_imputed_as_numbers():
    rows = np.column_stack([np.arange(30.0), np.arange(30) % 2])
    rows[::5, 1] = np.nan
    ae = AutoencoderTransformer(
        1, categorical_features=[1], max_epochs=1, random_state=0
    )
    filled = ae.fit(rows).impute(rows)
    assert filled.dtype == np.float64
    assert set(filled[:, 1]) == {0.0, 1.0}


def fitted_to(frame, categorical_features=("x",)):
    ae = AutoencoderTransformer(
        1, categorical_features=list(categorical_features), max_epochs=2, random_state=0
    )
    return ae.fit(frame)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2], "category"),
        ([0.5, 2.0], "category"),
        ([True, False], "category"),
        ([1, 2], "Int64"),
        ([1, 2], "int64[pyarrow]"),
        ([True, False], "boolean"),
        (["a", "b"], "string[pyarrow]"),
        ([1, "a"], object),
        (["a", 1], object),
    ],
    ids=str,
)
def test_pandas_columns_of_categories_keep_their_type(values, dtype):
    column = pd.Series([*values, None] * 10, dtype=object).astype(dtype)
    frame = pd.DataFrame({"y": np.arange(30.0), "x": column})
    filled = fitted_to(frame).impute(frame)
    assert filled["x"].dtype == frame["x"].dtype
    assert set(filled["x"]) <= set(values)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 2], pl.Int8),
        ([0.5, 2.0], pl.Float32),
        ([True, False], pl.Boolean),
        (["a", "b"], pl.Categorical),
        (["a", "b"], pl.Enum(["b", "a"])),
    ],
    ids=str,
)
def test_polars_columns_of_categories_keep_their_type(values, dtype):
    column = pl.Series([*values, None] * 10, dtype=dtype)
    frame = pl.DataFrame({"y": np.arange(30.0), "x": column})
    filled = fitted_to(frame).impute(frame)
    assert filled["x"].dtype == dtype
    assert set(filled["x"]) <= set(values)


@pytest.mark.parametrize(
    "column",
    [
        pd.Series([np.nan] * 3),
        pd.Series([None] * 3, dtype="category"),
        pd.Series(["a", None, None], dtype="category"),
        pl.Series([None] * 3),
        pl.Series([None] * 3, dtype=pl.Float64),
        pl.Series(["a", None, None], dtype=pl.Enum(["a"])),
    ],
    ids=lambda column: f"{type(column).__module__[:6]}-{column.dtype}",
)
def test_a_column_without_the_categories_of_the_fit_receives_them(column):
    library = pd if isinstance(column, pd.Series) else pl
    ae = fitted_to(library.DataFrame({"y": np.arange(30.0), "x": ["b", "c"] * 15}))
    filled = ae.impute(library.DataFrame({"y": [1.0, 2.0, 3.0], "x": column}))
    assert set(list(filled["x"])[1:]) <= {"b", "c"}


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_observed_categories_that_are_unknown_remain():
    frame = pd.DataFrame({"y": np.arange(30.0), "x": ["b", "c"] * 15})
    ae = fitted_to(frame.astype({"x": "category"})).set_output(transform="pandas")
    filled = ae.impute(np.array([[1.0, "a"], [2.0, None]], dtype=object))
    assert filled["x"][0] == "a"
    assert filled["x"][1] in ("b", "c")


@pytest.mark.parametrize("container", ["pandas", "polars"])
def test_frames_of_words_and_numbers(container):
    X = np.array([[float(i), [3, "b"][i % 2]] for i in range(30)], dtype=object)
    ae = fitted_to(X, [1]).set_output(transform=container)
    assert list(ae.impute(X)["x1"]) == X[:, 1].tolist()
    assert set(ae.reconstruct(X)["x1"]) <= {3, "b"}


@pytest.mark.parametrize("number_type", [np.float32, np.float64])
@pytest.mark.parametrize("first", [2**24, 2**60])
def test_integers_that_identify_categories_are_exact(first, number_type):
    ids = [first + 1, first + 2, first + 3]
    frame = pd.DataFrame(
        {
            "y": np.arange(30, dtype=number_type),
            "x": pd.array([*ids, None, *ids, *ids] * 3, dtype="Int64"),
        }
    )
    ae = fitted_to(frame)
    assert set(ae.reconstruct(frame)[:, 1]) <= set(ids)
    array = frame.to_numpy(dtype=object, na_value=None)
    for X in (frame, array):
        filled = ae.impute(X) if X is frame else fitted_to(X, [1]).impute(X)
        assert set(np.asarray(filled, dtype=object)[:, 1]) <= set(ids)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_pandas_frames_of_sparse_columns_remain_frames(dtype):
    rows = incomplete().astype(dtype)
    frame = pd.DataFrame.sparse.from_spmatrix(sparse.csr_matrix(rows), columns=NAMES)
    ae = AutoencoderTransformer(2, max_epochs=2, random_state=0).fit(frame)
    filled = ae.impute(frame)
    pd.testing.assert_series_equal(filled.dtypes, frame.dtypes)
    is_observed = ~np.isnan(rows)
    np.testing.assert_array_equal(filled.to_numpy()[is_observed], rows[is_observed])
    assert not filled.isna().any(axis=None)
