"""Arguments of a HIP kernel as C takes them: tensors as pointers, numbers by their width."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from moeracle.ref.errors import require

Long = ctypes.c_int64


def span(t: torch.Tensor) -> int:
    """Return the bytes from a tensor's first element to the end of its last."""
    if not t.numel():
        return 0
    return (sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1) * t.element_size()


def number(argument: Any, i: int) -> Any:
    """Return argument i as a ctypes value: a pointer, 32 bits, fp32, or a Long.

    Raises:
        ValueError: it is something else, or does not fit.
    """
    if isinstance(argument, torch.Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, Long):
        return argument
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    require(
        isinstance(argument, int), f"argument {i}: got {type(argument).__name__}, must be a tensor, int, float or Long"
    )
    require(-(2**31) <= argument < 2**32, f"argument {i}: got {argument}, must fit in 32 bits (or be a Long)")
    return ctypes.c_int32(argument)
