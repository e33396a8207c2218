"""Tests run on one thread: two processes on two cores are then faster, and nothing may depend on the thread count.

Nor on the time: `leap_an_hour_a_look` makes every clock leap, for tests of what must come out alike on slow machines.
"""

import itertools
import time

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def leap_an_hour_a_look(monkeypatch):
    """Return a function after whose call an hour passes between any two looks at a clock."""

    def leap(*spared):
        for clock in {"time", "monotonic", "perf_counter", "process_time", "thread_time"}.difference(spared):
            for name, unit in ((clock, 1), (f"{clock}_ns", 10**9)):
                monkeypatch.setattr(time, name, itertools.count(0, 3600 * unit).__next__)

    return leap
