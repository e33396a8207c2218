"""What a user's file may switch in torch for all of the process: its kernels keep it, cases and judge never see it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

TINY = 2.0**-130  # subnormal in fp32


@dataclass(frozen=True)
class TorchState:
    """Switches of torch that change what a line of code computes.

    Args:
        dtype: what torch.set_default_dtype set.
        device: what torch.set_default_device set; "cpu" where nothing did.
        flushes: whether the CPU takes subnormal numbers for 0 (torch.set_flush_denormal).
    """

    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    flushes: bool = False


PLAIN = TorchState()


def current() -> TorchState:
    """Return the switches as they are."""
    tiny = torch.full((1,), TINY, dtype=torch.float32, device="cpu")
    return TorchState(torch.get_default_dtype(), str(torch.get_default_device()), not bool((tiny * 0.5).any()))


def put(state: TorchState) -> None:
    """Set the switches."""
    torch.set_default_dtype(state.dtype)
    if str(torch.get_default_device()) != state.device:
        torch.set_default_device(None if state.device == PLAIN.device else state.device)
    torch.set_flush_denormal(state.flushes)


@contextmanager
def switched(state: TorchState | None = PLAIN) -> Iterator[None]:
    """Set the switches (None: leave them), and set them back at the end, whatever was done to them meanwhile."""
    before = current()
    if state is not None:
        put(state)
    try:
        yield
    finally:
        put(before)


def keeping(fn: Callable[..., Any], state: TorchState) -> Callable[..., Any]:
    """Return the function as it ran where the switches are `state`; what it does to them ends with the call."""

    @functools.wraps(fn)
    def run(*args: Any, **tile: Any) -> Any:
        with switched(state):
            return fn(*args, **tile)

    return run


@contextmanager
def our_arithmetic() -> Iterator[None]:
    """Undo, while judging, the switches that a user's file may have set: TF32, default dtype and device, gradients."""
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch's old and new switches were mixed, and it refuses to say
        precision = "highest"
    torch.set_float32_matmul_precision("highest")
    try:
        with switched(), torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
