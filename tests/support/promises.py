"""Kernels whose contract promises what a law asks only of those that promise it."""

from __future__ import annotations

from dataclasses import replace

from moeracle.target.declaration import Kernel


def promising(kernel: Kernel, promise: str | None) -> Kernel:
    """Return the kernel under its contract with that promise made; the kernel itself if there is none to make."""
    return replace(kernel, contract=replace(kernel.contract, **{promise: True})) if promise else kernel
