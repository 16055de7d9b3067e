"""Fits in a forked process that is killed at a given moment."""

import os
import signal
import sys
import traceback

from skae.engine import checkpoint


def run_and_kill(fit, prepare):
    """Call `prepare` and `fit` in a forked process, which must be killed by SIGKILL."""
    child = os.fork()
    if child == 0:
        try:
            prepare()
            fit()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)  # without the clean-up of the parent's objects
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"not killed, status {status}"
    assert os.WTERMSIG(status) == signal.SIGKILL


# What `prepare` may be: it changes this process, which ends soon.


def after_epoch(number):
    """Kill the process after the state of an epoch has been written."""
    return lambda: _kill_at_write(number, checkpoint.replace_file)


def while_writing(number):
    """Kill the process in the middle of writing the state of an epoch."""

    def write_half(path, content, **_):
        path.with_name(f".{path.name}.part").write_bytes(content[: len(content) // 2])

    return lambda: _kill_at_write(number, write_half)


def at_event(number):
    """Kill the process at a call or a return of a function, of Python or of C."""

    def kill_at(n_events):
        if n_events == number:
            _kill()

    return lambda: _count(kill_at)


def count_events(fit):
    """Return the number of calls and returns of functions in a fit."""
    counts = [0]

    def record(n_events):
        counts[0] = n_events

    before = sys.getprofile()
    _count(record)
    try:
        fit()
    finally:
        sys.setprofile(before)
    return counts[0]


def _count(notify):
    n_events = 0

    def count(*event):
        nonlocal n_events
        n_events += 1
        notify(n_events)

    sys.setprofile(count)


def _kill_at_write(number, last):
    write, n_writes = checkpoint.replace_file, 0

    def replace_file(path, content, **settings):
        nonlocal n_writes
        n_writes += 1
        if n_writes < number:
            write(path, content, **settings)
        else:
            last(path, content, **settings)
            _kill()

    checkpoint.replace_file = replace_file


def _kill():
    os.kill(os.getpid(), signal.SIGKILL)
