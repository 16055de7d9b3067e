"""Data sets of `windows.py`: simulated series with faults, and images of digits.

Settings are compared on `TUNING` and digits of MNIST; results are reported on
`REPORTED` and digits of scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from scipy.signal import lfilter
from sklearn.datasets import load_digits

# Mean share of the points of a series that are in a fault.
FAULTY = 0.05


class Series(NamedTuple):
    """A series of shape (n_points, n_channels), and which of its points are faults."""

    values: np.ndarray
    is_fault: np.ndarray


Fault = Callable[[Generator, np.ndarray, slice], None]


class Kind(NamedTuple):
    """A kind of series.

    Attributes
    ----------
    normal : callable
        Draws values of shape (n_points, n_channels).
    faults : tuple of callable
        Each changes a stretch of the values in place.
    lengths : tuple of two int
        Shortest and longest fault.
    width : int
        Number of points in a window.
    """

    normal: Callable[[Generator, int], np.ndarray]
    faults: tuple[Fault, ...]
    lengths: tuple[int, int]
    width: int


def draw(kind: Kind, rng: Generator, n_points: int, *, faults: bool = True) -> Series:
    """Draw a series, with faults at random places that do not overlap."""
    values = kind.normal(rng, n_points)
    is_fault = np.zeros(n_points, dtype=bool)
    i = 0
    while faults and is_fault.mean() < FAULTY:
        length = int(rng.integers(kind.lengths[0], kind.lengths[1] + 1))
        start = int(rng.integers(kind.width, n_points - length - kind.width))
        around = slice(start - kind.width, start + length + kind.width)
        if is_fault[around].any():
            continue
        where = slice(start, start + length)
        kind.faults[i % len(kind.faults)](rng, values, where)
        is_fault[where] = True
        i += 1
    return Series(values, is_fault)


def sign(rng: Generator) -> int:
    return int(rng.choice([-1, 1]))


def noise(rng: Generator, n_points: int, memory: float = 0.0) -> np.ndarray:
    """Draw an autoregressive process of variance 1."""
    steps = rng.standard_normal(n_points + 200) * np.sqrt(1 - memory**2)
    return lfilter([1], [1, -memory], steps)[200:]


def any_channel(rng: Generator, values: np.ndarray, where: slice) -> np.ndarray:
    """Return a stretch of a channel, as a view."""
    return values[where, rng.integers(values.shape[1])]


# Faults of any series.


def spikes(rng: Generator, values: np.ndarray, where: slice) -> None:
    """A few single values are off by two to four deviations."""
    stretch = any_channel(rng, values, where)
    hit = rng.random(len(stretch)) < 0.3
    hit[[0, -1]] = True
    size = rng.uniform(2, 4, hit.sum()) * rng.choice([-1, 1], hit.sum())
    stretch[hit] += size * values.std(axis=0).mean()


def flat(rng: Generator, values: np.ndarray, where: slice) -> None:
    """A channel keeps its value."""
    stretch = any_channel(rng, values, where)
    stretch[:] = stretch[0]


def drift(rng: Generator, values: np.ndarray, where: slice) -> None:
    """A channel drifts away by 1.5 deviations."""
    stretch = any_channel(rng, values, where)
    size = 1.5 * sign(rng) * values.std(axis=0).mean()
    stretch += size * np.linspace(0, 1, len(stretch))


def shift(rng: Generator, values: np.ndarray, where: slice) -> None:
    """The level of a channel is off by one deviation."""
    stretch = any_channel(rng, values, where)
    stretch += sign(rng) * values.std(axis=0).mean()


def burst(rng: Generator, values: np.ndarray, where: slice) -> None:
    """Noise of 0.6 deviations is added."""
    stretch = any_channel(rng, values, where)
    stretch += 0.6 * values.std(axis=0).mean() * rng.standard_normal(len(stretch))


def fast(rng: Generator, values: np.ndarray, where: slice) -> None:
    """Time runs 1.6 times as fast."""
    time = np.arange(len(values))
    moved = where.start + 1.6 * (time[where] - where.start)
    for channel in values.T:
        channel[where] = np.interp(moved, time, channel)


def mirrored(rng: Generator, values: np.ndarray, where: slice) -> None:
    """A channel has the opposite sign around its mean."""
    stretch = any_channel(rng, values, where)
    stretch[:] = 2 * stretch.mean() - stretch


def halved(rng: Generator, values: np.ndarray, where: slice) -> None:
    """A channel varies half as much around its mean."""
    stretch = any_channel(rng, values, where)
    stretch[:] = stretch.mean() + 0.5 * (stretch - stretch.mean())


def exchanged(rng: Generator, values: np.ndarray, where: slice) -> None:
    """A channel has values of another time."""
    channel = values[:, rng.integers(values.shape[1])]
    length = where.stop - where.start
    start = int(rng.integers(0, len(values) - length))
    channel[where] = channel[start : start + length].copy()


# Series that are reported.


def load(rng: Generator, n_points: int) -> np.ndarray:
    """Half-hourly load: two peaks on workdays, one on weekends, the weather."""
    hour = np.arange(n_points) / 2 % 24
    is_weekend = np.arange(n_points) // 48 % 7 >= 5
    morning = np.exp(-(((hour - 8) / 2) ** 2))
    evening = np.exp(-(((hour - 19) / 3) ** 2))
    base = 0.4 * np.sin(2 * np.pi * (hour - 9) / 24)
    curve = base + evening + np.where(is_weekend, 0.3, 1.0) * morning
    daily = np.repeat(1 + 0.1 * rng.standard_normal(n_points // 48 + 1), 48)[:n_points]
    weather = 0.15 * noise(rng, n_points, 0.99)
    return (daily * curve + weather + 0.05 * rng.standard_normal(n_points))[:, None]


def missing_cycle(rng: Generator, values: np.ndarray, where: slice) -> None:
    """The cycle is missing: only a twentieth of it is left."""
    stretch = values[where, 0]
    stretch[:] = values.mean() + 0.05 * (stretch - stretch.mean())


def sensors(rng: Generator, n_points: int) -> np.ndarray:
    """Three sensors of a process with two slow states, of which one is delayed."""
    first = noise(rng, n_points + 5, 0.95)
    second = noise(rng, n_points + 5, 0.9)
    channels = (
        first[5:] + 0.5 * second[5:],
        np.tanh(first[:-5]) - 0.5 * second[5:],
        0.7 * first[5:] * second[5:] + second[5:],
    )
    clean = np.stack(channels, axis=1)
    return clean + 0.1 * rng.standard_normal(clean.shape)


def heart(rng: Generator, n_points: int) -> np.ndarray:
    """Beats of three waves, at intervals that vary by some percent."""
    intervals = 40 * (1 + 0.05 * noise(rng, n_points // 30 + 5, 0.7))
    beats = np.cumsum(np.maximum(intervals, 25)) - rng.uniform(0, 40)
    time = np.arange(n_points)[:, None]
    values = 0.04 * rng.standard_normal(n_points) + 0.1 * noise(rng, n_points, 0.99)
    for height, delay, spread in ((0.2, -7.0, 2.5), (1.0, 0.0, 1.0), (0.35, 9.0, 4.0)):
        heights = height * (1 + 0.08 * rng.standard_normal(len(beats)))
        waves = heights * np.exp(-(((time - beats - delay) / spread) ** 2))
        values += waves.sum(axis=1)
    return values[:, None]


def machine(rng: Generator, n_points: int) -> np.ndarray:
    """A machine that changes between three levels, with a ripple of the level."""
    durations = rng.integers(60, 180, n_points // 60 + 1)
    levels = np.repeat(rng.integers(0, 3, len(durations)), durations)[:n_points]
    smooth = lfilter([0.3], [1, -0.7], levels.astype(float))
    phase = 2 * np.pi * np.cumsum(0.04 + 0.02 * levels)
    ripple = 0.25 * np.sin(phase + rng.uniform(0, 6))
    return (smooth + ripple + 0.08 * rng.standard_normal(n_points))[:, None]


def tones(rng: Generator, n_points: int) -> np.ndarray:
    """Three tones whose strengths vary slowly."""
    time = np.arange(n_points)
    values = 0.15 * rng.standard_normal(n_points)
    for frequency in (1 / 40, 1 / 17, 1 / 9.3):
        strength = np.exp(0.3 * noise(rng, n_points, 0.995))
        values += strength * np.sin(2 * np.pi * (frequency * time + rng.uniform()))
    return values[:, None]


REPORTED = {
    "load": Kind(load, (spikes, flat, drift, missing_cycle, fast), (12, 48), 48),
    "sensors": Kind(sensors, (flat, shift, exchanged), (12, 40), 24),
    "heart": Kind(heart, (fast, mirrored, halved, exchanged), (30, 60), 60),
    "level shifts": Kind(machine, (shift, drift, flat), (16, 48), 32),
    "noise bursts": Kind(tones, (burst,), (8, 40), 40),
}


# Series on which settings are compared.


def traffic(rng: Generator, n_points: int) -> np.ndarray:
    """Counts per hour with rush hours on workdays."""
    hour = np.arange(n_points) % 24
    is_workday = np.arange(n_points) // 24 % 7 < 5
    rush = np.exp(-(((hour - 8) / 1.5) ** 2)) + np.exp(-(((hour - 17) / 2) ** 2))
    calm = np.exp(-(((hour - 14) / 5) ** 2))
    mean = 20 + 200 * np.where(is_workday, rush + 0.4 * calm, 0.7 * calm)
    factor = np.exp(0.1 * noise(rng, n_points, 0.97))
    return rng.poisson(mean * factor).astype(float)[:, None]


def breath(rng: Generator, n_points: int) -> np.ndarray:
    """Breaths whose rate and depth vary."""
    rate = np.exp(0.1 * noise(rng, n_points, 0.99)) / 25
    phase = 2 * np.pi * np.cumsum(rate)
    depth = np.exp(0.15 * noise(rng, n_points, 0.99))
    wave = np.sin(phase) + 0.3 * np.sin(2 * phase + 0.5)
    return (depth * wave + 0.08 * rng.standard_normal(n_points))[:, None]


def valve(rng: Generator, n_points: int) -> np.ndarray:
    """A valve that opens and closes, and the temperature behind it."""
    durations = rng.integers(8, 25, n_points // 8 + 2)
    state = np.repeat(np.arange(len(durations)) % 2, durations)[:n_points]
    temperature = lfilter([0.1], [1, -0.9], 3.0 * state - 1.5)
    channels = np.stack([state + 0.0, temperature], axis=1)
    return channels + 0.05 * rng.standard_normal(channels.shape)


def rotor(rng: Generator, n_points: int) -> np.ndarray:
    """Two vibrations of a rotor, a quarter of a turn apart, with a varying speed."""
    speed = 1 / 20 + 0.005 * noise(rng, n_points, 0.99)
    phase = 2 * np.pi * np.cumsum(speed)
    channels = (
        np.sin(phase) + 0.3 * np.sin(3 * phase),
        np.cos(phase) - 0.2 * np.cos(2 * phase),
    )
    clean = np.stack(channels, axis=1)
    return clean + 0.15 * rng.standard_normal(clean.shape)


def swell(rng: Generator, n_points: int) -> np.ndarray:
    """Waves of the sea: a narrow band of frequencies."""
    narrow = lfilter([1], [1, -1.84, 0.95], rng.standard_normal(n_points + 300))[300:]
    narrow /= narrow.std()
    return (narrow + 0.05 * rng.standard_normal(n_points))[:, None]


TUNING = {
    "traffic": Kind(traffic, (exchanged, halved, spikes, flat), (10, 30), 24),
    "breath": Kind(breath, (flat, mirrored, burst, fast), (15, 50), 50),
    "valve": Kind(valve, (exchanged, drift, flat), (15, 40), 30),
    "rotor": Kind(rotor, (shift, mirrored, halved), (10, 40), 32),
    "swell": Kind(swell, (fast, burst, spikes, drift), (15, 45), 36),
}


class Images(NamedTuple):
    """Images as rows of pixels, and the digits that they show."""

    pixels: np.ndarray
    digits: np.ndarray
    shape: tuple[int, int]


def small_digits() -> Images:
    """Return scikit-learn's digits of 8 x 8 pixels."""
    digits = load_digits()
    return Images(digits.data, digits.target, (8, 8))


def mnist(folder: Path) -> Images:
    """Return training images of MNIST, reduced to 14 x 14 pixels."""
    with np.load(folder / "mnist.npz") as arrays:
        images = arrays["X_train"][:20_000].reshape(-1, 14, 2, 14, 2)
        digits = arrays["y_train"][:20_000]
    return Images(images.mean(axis=(2, 4)).reshape(-1, 196), digits, (14, 14))
