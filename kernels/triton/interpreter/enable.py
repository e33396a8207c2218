"""Triton on the CPU, with its bf16 defects corrected, and never silently without the correction.

Triton's interpreter keeps bf16 as raw uint16 and calculates on the raw bits: dot, +, *, max, comparisons and sums are
wrong, fp32 -> bf16 truncates, and 254 subnormals do not survive bf16 -> fp32 (3.6 to 3.9). `bf16` holds the
corrections. This module decides when to switch them on, and must therefore be imported before triton.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

SWITCH = "TRITON_INTERPRET"
ON = ("1", "true", "on", "yes", "y")


def wanted() -> bool:
    """Say whether the environment asks for the interpreter (TRITON_INTERPRET=1, true, on, yes or y)."""
    return os.environ.get(SWITCH, "").strip().lower() in ON


def is_interpreting() -> bool:
    """Say whether triton is imported and was imported as the interpreter."""
    standard: Any = sys.modules.get("triton.language.standard")
    return standard is not None and type(standard.sum).__name__ == "InterpretedFunction"


def is_corrected() -> bool:
    """Say whether triton is imported as the interpreter and calculates bf16 correctly."""
    if not is_interpreting():
        return False
    from moeracle.kernels.triton.interpreter import bf16 as interpreter_bf16

    return interpreter_bf16.is_corrected()


def enable() -> None:
    """Make every Triton kernel defined from now on run on the CPU.

    Raises:
        RuntimeError: triton was imported before, without its interpreter; half of it would stay compiled.
    """
    if "triton" in sys.modules and not is_interpreting():
        raise RuntimeError(
            f"triton: was imported without {SWITCH}=1, so its kernels cannot run on the CPU; "
            f"import moeracle.kernels (or set {SWITCH}=1) before triton"
        )
    os.environ[SWITCH] = "1"


def correct() -> None:
    """Replace the interpreter's bf16 arithmetic by correct arithmetic; a second call changes nothing.

    Raises:
        RuntimeError: triton does not run as the interpreter, so there is nothing to correct.
        ImportError: triton is not installed.
    """
    if "triton" not in sys.modules:
        enable()
    import triton.language  # noqa: F401  the corrections reach into an imported triton

    if not is_interpreting():
        raise RuntimeError(f"triton: was imported without {SWITCH}=1, its interpreter is not in use")
    from moeracle.kernels.triton.interpreter import bf16 as interpreter_bf16

    interpreter_bf16.apply()


def enable_if_no_gpu() -> None:
    """Switch the corrected interpreter on where there is no GPU; call this before `import triton`.

    An interpreter that the user switched on is corrected also where there is a GPU. TRITON_INTERPRET=0 means: compile
    only; kernels import, and a launch without a GPU is Triton's own error.

    Raises:
        RuntimeError: no GPU, and triton was imported before without its interpreter.
    """
    compile_only = os.environ.get(SWITCH, "").strip() != "" and not wanted()
    if wanted() or is_interpreting() or not (compile_only or torch.cuda.is_available()):
        enable()
        correct()


def bf16_is_correct() -> bool:
    """Run small kernels and say whether bf16 casts, arithmetic, comparisons, reductions and dots agree with torch.

    Where triton is compiled for a GPU there is nothing to correct and the answer is True. In an interpreter nobody
    corrected it is False: a bf16 run there proves nothing and must not be judged.

    Returns:
        bool; the answer is calculated anew each time, in about 30 ms.
    """
    if "triton" not in sys.modules:
        enable_if_no_gpu()
        import triton.language  # noqa: F401
    if not is_interpreting():
        return True
    from moeracle.kernels.triton.interpreter import check as interpreter_check

    return interpreter_check.bf16_agrees_with_torch()
