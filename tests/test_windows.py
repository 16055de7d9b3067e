"""Tests of the windows of time series."""

import pickle

import numpy as np
import pytest
import skops.io
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from skae import AutoencoderOutlierDetector, AutoencoderTransformer
from skae.networks import Conv
from skae.windows import SlidingWindows, point_scores, sliding_windows

ONE_DIMENSION = "a series of one dimension is a series with one channel"
FEWER_ROWS = "there are fewer windows than points"

WRONG_SIZES = [
    ({"width": 0}, "'width' .* Got 0 instead"),
    ({"width": -2}, "'width' .* Got -2 instead"),
    ({"width": 2.5}, "'width' .* Got 2.5 instead"),
    ({"width": "3"}, "'width' .* Got '3' instead"),
    ({"width": 3, "step": 0}, "'step' .* Got 0 instead"),
    ({"width": 3, "step": 1.0}, "'step' .* Got 1.0 instead"),
    ({"width": 9}, "width=9 must be at most .* got n_samples=8"),
]


def expected_failures(transformer):
    failures = {
        "check_fit1d": ONE_DIMENSION,
        "check_fit2d_predict1d": ONE_DIMENSION,
    }
    if transformer.width > 1:
        failures |= {
            "check_transformer_data_not_an_array": FEWER_ROWS,
            "check_transformer_general": FEWER_ROWS,
            "check_methods_sample_order_invariance": FEWER_ROWS,
            "check_methods_subset_invariance": FEWER_ROWS,
        }
    return failures


@parametrize_with_checks(
    [SlidingWindows(1), SlidingWindows(3), SlidingWindows(4, step=2)],
    expected_failed_checks=expected_failures,
)
def test_estimator_checks(estimator, check):
    check(estimator)


@pytest.fixture
def series():
    """A cycle of 20 points in two channels of different units."""
    time = np.arange(200)
    rng = np.random.default_rng(0)
    cycle = np.stack(
        [np.sin(time * np.pi / 10), 50 * np.cos(time * np.pi / 10)], axis=1
    )
    return cycle + [0.02, 1.0] * rng.standard_normal((200, 2))


def small_detector(**parameters):
    return AutoencoderOutlierDetector(max_epochs=2, random_state=0, **parameters)


@pytest.mark.parametrize("step", [1, 2, 3, 7])
@pytest.mark.parametrize("width", [1, 2, 5, 8])
@pytest.mark.parametrize("n_channels", [None, 1, 3])
def test_windows_are_the_stretches_of_the_series(n_channels, width, step):
    shape = (8,) if n_channels is None else (8, n_channels)
    X = np.random.default_rng(0).standard_normal(shape)
    windows = sliding_windows(X, width, step)
    starts = range(0, 8 - width + 1, step)
    assert_array_equal(windows, [X[i : i + width].T for i in starts])
    rows = SlidingWindows(width, step).fit_transform(X)
    assert_array_equal(rows, [X[i : i + width].T.ravel() for i in starts])


def test_windows_are_a_view_that_cannot_be_written_to():
    X = np.arange(6.0)
    for windows in (sliding_windows(X, 3), SlidingWindows(3).fit_transform(X)):
        assert np.shares_memory(windows, X)
        assert not windows.flags.writeable
    channels = np.ones((6, 2))
    assert np.shares_memory(sliding_windows(channels, 3), channels)


@pytest.mark.parametrize(("sizes", "message"), WRONG_SIZES)
def test_wrong_sizes_are_errors(sizes, message):
    X = np.zeros(8)
    with pytest.raises(ValueError, match=message):
        sliding_windows(X, **sizes)
    with pytest.raises(ValueError, match=message):
        point_scores(np.zeros(6), 8, **sizes)
    with pytest.raises(ValueError, match=message):
        SlidingWindows(**sizes).fit(X)


@pytest.mark.parametrize("X", [np.float64(3.0), np.zeros((4, 2, 2))])
def test_a_series_has_one_or_two_dimensions(X):
    with pytest.raises(ValueError, match=r"X must have the shape \(n_points,\) or"):
        sliding_windows(X, 2)
    with pytest.raises(ValueError, match=r"Expected 2D array|Found array with dim 3"):
        SlidingWindows(2).fit(X)


def test_transform_needs_a_whole_window_and_the_channels_of_fit():
    transformer = SlidingWindows(4).fit(np.zeros((8, 2)))
    with pytest.raises(ValueError, match=r"width=4 must be at most .* n_samples=3"):
        transformer.transform(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="is expecting 2 features"):
        transformer.transform(np.zeros((8, 3)))


@pytest.mark.parametrize("step", [1, 2, 3, 7])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_point_scores_are_means_over_the_windows_of_a_point(width, step):
    n_points = 23
    scores = np.random.default_rng(0).standard_normal((n_points - width) // step + 1)
    expected = np.full(n_points, np.nan)
    for point in range(n_points):
        of_point = [
            score
            for i, score in enumerate(scores)
            if i * step <= point < i * step + width
        ]
        if of_point:
            expected[point] = np.mean(of_point)
    assert_allclose(point_scores(scores, n_points, width, step), expected, rtol=1e-12)


def test_an_infinite_score_spoils_only_the_points_of_its_window():
    scores = point_scores([0.0, -np.inf, -1.0, -1.0, -3.0], n_points=7, width=3)
    assert_array_equal(scores, [0, *[-np.inf] * 3, -5 / 3, -2, -3])


@pytest.mark.parametrize("n_scores", [0, 5, 7, 8])
def test_point_scores_need_one_score_of_each_window(n_scores):
    with pytest.raises(ValueError, match="window_scores must have 6 entries"):
        point_scores(np.zeros(n_scores), n_points=8, width=3)


def test_point_scores_are_those_of_labels_too():
    assert_allclose(point_scores([1, 1, -1], 4, 2), [1, 1, 0, -1])
    with pytest.raises(ValueError, match="1d array"):
        point_scores(np.zeros((3, 2)), 4, 2)


@pytest.mark.parametrize("step", [1, 3])
def test_inverse_transform_gives_the_series_back(series, step):
    transformer = SlidingWindows(10, step).fit(series)
    windows = transformer.transform(series)
    n_points = (len(windows) - 1) * step + 10
    assert_allclose(transformer.inverse_transform(windows), series[:n_points])
    with pytest.raises(ValueError, match=r"X must have 20 columns, .* got 10"):
        transformer.inverse_transform(windows[:, :10])


def test_inverse_transform_ignores_missing_entries():
    transformer = SlidingWindows(2).fit(np.zeros(4))
    windows = [[1.0, np.nan], [4.0, np.nan], [np.nan, 6.0]]
    assert_array_equal(
        transformer.inverse_transform(windows)[:, 0], [1.0, 4.0, np.nan, 6.0]
    )


def test_gaps_remain_missing(series):
    series[50:60, 0] = np.nan
    series[90:130] = np.nan  # longer than a window
    detector = make_pipeline(SlidingWindows(20), small_detector()).fit(series)
    windows = detector[0].transform(series)
    assert np.isnan(windows[45, 5:15]).all()
    scores = detector.score_samples(series)
    assert np.isfinite(scores).all()
    assert np.isfinite(point_scores(scores, len(series), 20)).all()
    filled = detector[0].inverse_transform(detector[-1].reconstruct(windows))
    assert np.isfinite(filled).all()


def test_names_are_channels_and_times():
    transformer = SlidingWindows(3).fit(np.zeros((5, 2)))
    assert transformer.get_feature_names_out().tolist() == [
        *("x0_t-2", "x0_t-1", "x0_t"),
        *("x1_t-2", "x1_t-1", "x1_t"),
    ]
    assert transformer.get_feature_names_out(["a", "b"])[3] == "b_t-2"


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("output", ["pandas", "polars"])
@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_in_and_out(library, output, step):
    library = pytest.importorskip(library)
    pytest.importorskip(output)
    values = {"load": np.arange(10.0), "wind": np.arange(10.0) ** 2}
    frame = library.DataFrame(values)
    transformer = SlidingWindows(3, step).set_output(transform=output)
    windows = transformer.fit_transform(frame)
    assert type(windows).__module__.startswith(output)
    assert list(windows.columns) == list(transformer.get_feature_names_out())
    assert list(windows.columns)[2:4] == ["load_t", "wind_t-2"]
    X = np.stack(list(values.values()), axis=1)
    assert_array_equal(windows.to_numpy(), SlidingWindows(3, step).fit_transform(X))

    one = transformer.fit_transform(frame["load"])
    assert list(one.columns) == ["load_t-2", "load_t-1", "load_t"]
    assert transformer.feature_names_in_.tolist() == ["load"]
    with pytest.raises(ValueError, match="feature names should match"):
        transformer.transform(frame[["wind"]])


@pytest.mark.parametrize("step", [1, 3])
def test_a_window_has_the_index_of_its_last_point(step):
    pandas = pytest.importorskip("pandas")
    index = pandas.date_range("2024-01-01", periods=10, freq="30min")
    frame = pandas.DataFrame({"load": np.arange(10.0)}, index=index)
    transformer = SlidingWindows(4, step).set_output(transform="pandas")
    for X in (frame, frame["load"]):
        windows = transformer.fit_transform(X)
        assert_array_equal(windows.index, index[3::step])
        assert_array_equal(windows["load_t"], frame["load"].iloc[3::step])


def test_a_pipeline_scores_windows(series):
    series[120:126, 0] = 0.0
    detector = make_pipeline(
        StandardScaler(),
        SlidingWindows(20),
        AutoencoderOutlierDetector(random_state=0),
    )
    labels = detector.fit_predict(series)
    scores = detector.score_samples(series)
    assert labels.shape == scores.shape == (181,)
    assert set(labels) == {-1, 1}
    assert_array_equal(detector.predict(series), labels)
    assert 120 <= np.argmin(point_scores(scores, 200, 20)) < 126
    again = clone(detector).fit(series)
    assert_array_equal(again.score_samples(series), scores)


@pytest.mark.parametrize("n_channels", [1, 2])
def test_rows_have_the_layout_of_convolutions(series, n_channels):
    shape = (20,) if n_channels == 1 else (n_channels, 1, 20)
    codes = make_pipeline(
        SlidingWindows(20, step=5),
        AutoencoderTransformer(
            2, network=Conv((4,)), input_shape=shape, max_epochs=2, random_state=0
        ),
    ).fit_transform(series[:, :n_channels])
    assert codes.shape == (37, 2)
    # As for an image of one row and n_channels colours.
    rows = SlidingWindows(20).fit_transform(series)
    assert_array_equal(rows[7].reshape(2, 1, 20)[:, 0], series[7:27].T)


def test_contributions_name_the_channel_and_the_time():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"load": np.sin(np.arange(100.0)), "wind": 1.0})
    detector = make_pipeline(SlidingWindows(5), small_detector(n_neighbors=0))
    for step in (detector[0], detector[-1]):
        step.set_output(transform="pandas")
    detector.fit(frame)
    contributions = detector[-1].feature_contributions(detector[0].transform(frame))
    assert contributions.columns[0] == "load_t-4"
    assert contributions.index[0] == 4


def test_files_of_pipelines(series, tmp_path):
    detector = make_pipeline(SlidingWindows(10), small_detector()).fit(series)
    expected = detector.score_samples(series)
    path = tmp_path / "pipeline.skops"
    skops.io.dump(detector, path)
    trusted = skops.io.get_untrusted_types(file=path)
    assert "skae.windows.SlidingWindows" in trusted
    for copy in (
        skops.io.load(path, trusted=trusted),
        pickle.loads(pickle.dumps(detector)),
    ):
        assert_array_equal(copy.score_samples(series), expected)
