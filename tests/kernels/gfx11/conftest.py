"""gfx11 tests need a compiler for gfx11 and tinygrad's decoder; without them they are skipped, and counted."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from moeracle.kernels.toolchain.compilers import ToolchainError, gfx_compiler


def missing() -> str | None:
    """Say what is missing to compile and decode gfx11 code, or None."""
    if importlib.util.find_spec("tinygrad") is None:
        return "tinygrad is not installed: pip install 'moeracle[gfx]'"
    try:
        gfx_compiler("gfx1151")
    except ToolchainError as error:
        return str(error)
    return None


@pytest.fixture(scope="session")
def toolchain(of_this_session: Path):
    """Skip where nothing can be compiled; build into a folder of the session's own."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOERACLE_CACHE", str(of_this_session / "moeracle-cache"))
        yield
