"""Calling a kernel: fresh memory poisoned, torch's switches kept, and whatever it raises said in one line."""

from __future__ import annotations

import inspect
import traceback
from pathlib import Path
from typing import Any

import torch

from ..cases.case import Case
from ..cases.kernel_like import KernelLike, takes_extra
from ..cases.optable import OPS
from ..common.endings import Ended
from ..common.guard import poisoned
from ..common.torch_state import switched
from ..simulate import Simulation

__all__ = ["call", "call_here", "ending_of", "one_line", "wait_for_device", "wrong_signature"]

_ROOT = Path(__file__).parents[1]
_OURS = ("trial", "common/guard.py", "common/torch_state.py", "laws/bench.py", "golden/replay.py")
_NOT_THE_KERNEL = (str(Path(torch.__file__).parent), *(str(_ROOT / name) for name in _OURS))
_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")
_OF_DEVICE = ("CUDA error", "HIP error", "CUDA driver error", "[CUDA]")


def call(
    kernel: KernelLike, args: dict[str, Any], run: int, case: Case | None = None, poison: float | None = None
) -> Any:
    """Call the kernel on its arguments, fresh memory poisoned for this run or with a value, and wait for it.

    A kernel in a process of its own (a function with a method `remote`) is called there; what it wrote into its
    arguments then stands in these.

    Args:
        kernel: whose function is called.
        args: the op's arguments by name, in order, on the kernel's device.
        run: number of the run, which decides what fresh memory holds.
        case: what the arguments belong to; None: a probe.
        poison: what fresh memory holds instead.
    Returns:
        Whatever the kernel returned.
    Raises:
        Exception: what the kernel raised; Ended where it was no Exception, or ended the kernel's process.
        KeyboardInterrupt: whoever waited gave up; its message says what for: only there a hanging kernel is reported.
    """
    try:
        if hasattr(kernel.fn, "remote"):
            return kernel.fn.remote(args, run, case, poison)
        output = call_here(kernel, args, run, poison)
        wait_for_device()
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"{kernel.name} had not returned from {case or 'a probe'}") from interrupt
    return output


def call_here(kernel: KernelLike, args: dict[str, Any], run: int, poison: float | None = None) -> Any:
    """Call the kernel here, without waiting for the device; arguments and exceptions are those of `call`.

    Args:
        kernel, args, run, poison: as in `call`.
    Returns:
        Whatever the kernel returned.
    """
    # What a kernel switches in torch ends with its call. A simulation, wrapped or not, asks for unwritten memory by the
    # name `fresh`, and is spared a look at each of its operations.
    every = not isinstance(getattr(inspect.unwrap(kernel.fn), "__self__", None), Simulation)
    try:
        with poisoned(run, poison, every=every), switched(None):
            return kernel.fn(*args.values())
    except TypeError as error:
        complaint = wrong_signature(kernel)
        if complaint:
            raise TypeError(complaint) from error
        raise
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit, GeneratorExit, or a kernel's own
        raise Ended("call", f"raised {one_line(error)}") from error


def wait_for_device() -> None:
    """Wait until whatever runs on a GPU has ended, on every stream, and raise what went wrong there."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def ending_of(error: Exception) -> tuple[str, tuple[str, ...]]:
    """Return the tier and the lines of whatever `call` raised."""
    if isinstance(error, Ended):
        return error.tier, error.lines
    text = _text(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in text.lower() for sign in _OF_MEMORY):
        tier = "memory"
    else:
        tier = "device" if any(sign in text for sign in _OF_DEVICE) else "call"
    return tier, (f"raised {one_line(error)}",)


def wrong_signature(kernel: KernelLike) -> str:
    """Say in one line that a kernel cannot take its op's arguments, and which they are; "" where it can, or may."""
    op = OPS[kernel.op]
    try:
        inspect.signature(kernel.fn).bind(*op.arguments, *([op.extra] if op.extra and takes_extra(kernel) else []))
    except TypeError:
        takes = f"{kernel.name}{inspect.signature(kernel.fn)}"
        return (
            f"{takes} cannot be called with the {len(op.arguments)} arguments of {op.name}; "
            f"must be {op.signature(kernel.name)} (moeracle op {op.name} explains each)"
        )
    except ValueError:  # a builtin function shows no signature
        return ""
    return ""


def one_line(error: BaseException) -> str:
    """Return "Type: message (file:line)" of an exception, on one line; the place is the kernel's, not torch's or ours.

    Where the kernel was not even entered (too few parameters, say), there is no place.
    """
    text = " ".join(_text(error).split()) or "no message"
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_KERNEL)]
    where = f" ({theirs[-1].filename}:{theirs[-1].lineno})" if theirs else ""
    return "".join(c if c.isprintable() else "?" for c in f"{type(error).__name__}: {text[:300]}{where}")


def _text(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException as worse:
        return f"its text cannot be read, that raised {type(worse).__name__}"
    return text.encode("utf-8", "backslashreplace").decode()  # a lone surrogate can be written nowhere
