"""What holds for every test: one thread, and one moeracle, in the processes that tests start as well.

Two processes on two cores are faster with one thread each, and nothing may depend on the thread count. Nor on the time:
`leap_an_hour_a_look` makes every clock leap, for tests of what must come out alike on slow machines.
"""

import importlib.util
import itertools
import os
import time
from pathlib import Path

import pytest
import torch

from moeracle.kernels.gfx11 import machine
from moeracle.kernels.triton.interpreter import enable as interpreter
from moeracle.properties.simulate.orders import same_atomics


@pytest.fixture
def leap_an_hour_a_look(monkeypatch):
    """Return a function after whose call an hour passes between any two looks at a clock."""

    def leap(*spared):
        for clock in {"time", "monotonic", "perf_counter", "process_time", "thread_time"}.difference(spared):
            for name, unit in ((clock, 1), (f"{clock}_ns", 10**9)):
                monkeypatch.setattr(time, name, itertools.count(0, 3600 * unit).__next__)

    return leap


def pytest_configure() -> None:
    """Prepare this process, and those that tests start, before any test module is imported.

    Triton either interprets or compiles for the whole life of a process, which is settled when it is first imported.
    Without a GPU it interprets, and corrected, in every test process, whichever tests run and in which order, unless
    TRITON_INTERPRET says otherwise. PYTHONPATH becomes absolute: in another folder `PYTHONPATH=src` would find nothing.
    """
    if importlib.util.find_spec("triton"):
        interpreter.enable_if_no_gpu()
    if os.environ.get("PYTHONPATH"):
        found = (str(Path(path).absolute()) for path in os.environ["PYTHONPATH"].split(os.pathsep) if path)
        os.environ["PYTHONPATH"] = os.pathsep.join(found)


@pytest.fixture(autouse=True)
def _begins_alike():
    """Threads, draws, orders of atomics and of workgroups are those of the test, not of the tests before it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    machine._launches.clear()
    with same_atomics(0):
        yield
