"""Fixtures shared by the tests of the engine."""

import signal

import pytest


@pytest.fixture
def python_handler():
    """Python's default handler of Ctrl-C, whatever runs the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _always_recorded(always_recorded):
    """Short trainings are enough for these tests."""
