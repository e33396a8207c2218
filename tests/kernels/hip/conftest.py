"""The .hip files of these tests, their builds in one folder of the session, and a launch in one line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from moeracle.kernels.hip.runtime.launch import HipKernel, hip_kernel

HERE = Path(__file__).parent


@pytest.fixture(scope="session", autouse=True)
def _own_cache(of_this_session: Path):
    """Build anew: a test that finds yesterday's build proves nothing about today's compiler."""
    if "MOERACLE_CACHE" in os.environ:
        yield
        return
    os.environ["MOERACLE_CACHE"] = str(of_this_session / "moeracle-cache")
    yield
    del os.environ["MOERACLE_CACHE"]


@pytest.fixture
def primitive() -> Callable[..., HipKernel]:
    """Return f(name, **macros) → that kernel of primitives.hip."""
    return lambda name, **macros: hip_kernel(HERE / "primitives.hip", name, **macros)


@pytest.fixture
def planted() -> Callable[..., HipKernel]:
    """Return f(name, **macros) → that kernel of faults.hip."""
    return lambda name, **macros: hip_kernel(HERE / "faults.hip", name, **macros)
