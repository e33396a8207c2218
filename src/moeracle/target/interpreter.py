"""Triton's interpreter, which runs Triton kernels on the CPU: switched on for a TARGET; whether its bf16 is right."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import lru_cache


def prepare_triton(device: str | None) -> str | None:
    """Where no GPU will run them, let Triton kernels run in the corrected interpreter; harmless without Triton.

    Args:
        device: where kernels are asked to run, or None: where they declare.
    Returns:
        None, or why Triton kernels cannot run on the CPU in this process.
    """
    if importlib.util.find_spec("triton") is None:
        return None
    interpreter = importlib.import_module("moeracle.kernels.triton.interpreter.enable")
    try:
        # Before the target's own `import triton`: afterwards @triton.jit has already chosen to compile.
        interpreter.enable_if_no_gpu()
        if device == "cpu" and not interpreter.is_interpreting():
            interpreter.enable()
            interpreter.correct()
    except RuntimeError as error:
        return str(error)
    return None


def interpreter_is_wrong() -> bool:
    """Say whether Triton kernels here run in an interpreter whose bf16 is not corrected."""
    return "triton" in sys.modules and not _bf16_is_correct()


@lru_cache(maxsize=1)
def _bf16_is_correct() -> bool:
    return bool(importlib.import_module("moeracle.kernels.triton.interpreter.enable").bf16_is_correct())
