"""Traps around a kernel: guarded inputs, poisoned workspaces, and the comparison of bits.

Inputs are cut from larger buffers whose margins hold NaN (or, for integers, a pattern), so that a read past the end
shows in the result and a write past the end or into an input shows afterwards. Memory that the kernel allocates starts
as NaN in the first run and as another value in the second, so that an element nobody wrote cannot look right.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from moeracle.ref.weights.weight import Int4Weight

MARGIN_BYTES = 4096  # a multiple of every vector width, so that alignment is kept
INTEGER_MARGIN = 0x5A  # bytes around integers: codes 10 and 5, never a valid id
POISONS: tuple[tuple[float, int], ...] = ((float("nan"), -1), (3.0, 0))
_POISON: ContextVar[tuple[float, int] | None] = ContextVar("_POISON", default=None)
_ALLOCATIONS = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.empty_permuted.default,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.new_empty.default,
    torch.ops.aten.new_empty_strided.default,
}


class _Buffer(NamedTuple):
    name: str
    whole: torch.Tensor  # 1-D, margins included
    inner: torch.Tensor  # what the kernel gets
    original: torch.Tensor


class Guarded:
    """Guarded copies of a Problem's arguments, and whether anything wrote to them.

    Args:
        args: the op's arguments by name; tensors and Int4Weights are copied into guarded buffers, strides kept. The
            originals must stay as they are: they are what the copies are compared with.
    """

    def __init__(self, args: dict[str, Any]) -> None:
        self._buffers: list[_Buffer] = []
        self.args = {name: self._guard(name, value) for name, value in args.items()}

    def _guard(self, name: str, value: Any) -> Any:
        if isinstance(value, Int4Weight):
            zero = None if value.zero is None else self._copy(f"{name}.zero", value.zero)
            packed, scale = self._copy(f"{name}.packed", value.packed), self._copy(f"{name}.scale", value.scale)
            of = None if value.group_of is None else self._copy(f"{name}.group_of", value.group_of)
            bias = None if value.bias is None else self._copy(f"{name}.bias", value.bias)
            return replace(value, packed=packed, scale=scale, zero=zero, group_of=of, bias=bias)
        return self._copy(name, value) if isinstance(value, torch.Tensor) else value

    def _copy(self, name: str, t: torch.Tensor) -> torch.Tensor:
        buffer = _guarded_copy(name, t)
        self._buffers.append(buffer)
        return buffer.inner

    def written(self) -> str:
        """Return the name of the first argument that changed ("x", or "x (outside of it)" for its margins), or ""."""
        for name, whole, inner, original in self._buffers:
            if not same_bits(inner, original):
                return name
            edges = _edges(whole, original)
            intact = (
                same_bits(whole, _guarded_copy(name, original).whole) if len(edges) == 1 else all(map(_blank, edges))
            )
            if not intact:
                return f"{name} (outside of it)"
        return ""


def _guarded_copy(name: str, t: torch.Tensor) -> _Buffer:
    margin = MARGIN_BYTES // t.element_size()
    span = 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0
    whole = torch.empty(span + 2 * margin, dtype=t.dtype, device=t.device)
    for edge in _edges(whole, t):
        _fill(edge)
    inner = whole.as_strided(t.shape, t.stride(), margin)
    inner.copy_(t)
    return _Buffer(name, whole, inner, t)


def _edges(whole: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the margins of a contiguous tensor; all of the buffer where gaps between rows are margins too."""
    margin = MARGIN_BYTES // t.element_size()
    return (whole[:margin], whole[-margin:]) if t.is_contiguous() else (whole,)


def _fill(edge: torch.Tensor) -> None:
    if edge.is_floating_point():
        edge.fill_(torch.nan)
    else:
        edge.view(torch.uint8).fill_(INTEGER_MARGIN)


def _blank(edge: torch.Tensor) -> bool:
    blank = torch.empty_like(edge)
    _fill(blank)
    return same_bits(edge, blank)


class Poison(TorchDispatchMode):
    """While active, every torch.empty and its kin come filled with `floating` (or `integer`)."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Leave torch's compiler alone: only to be skipped by it, every process would import it first, for seconds."""
        return False

    def __init__(self, floating: float, integer: int) -> None:
        super().__init__()
        self.floating, self.integer = floating, integer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return _poison(result, self.floating, self.integer) if func in _ALLOCATIONS else result


def _poison(fresh: torch.Tensor, floating: float, integer: int) -> torch.Tensor:
    if fresh.is_floating_point() or fresh.is_complex():
        fresh.fill_(floating)
    elif fresh.dtype != torch.bool:
        unsigned = torch.iinfo(fresh.dtype).min == 0
        fresh.fill_(torch.iinfo(fresh.dtype).max if unsigned and integer < 0 else integer)
    return fresh


@functools.cache
def _skipped_by_dynamo() -> type[Poison]:
    """Return the mode for a process that has torch's compiler, which must not compile into it."""

    class Skipped(Poison):
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return True

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return Poison.__torch_dispatch__(self, func, types, args, kwargs)

    return Skipped


@contextmanager
def poisoned(run: int, floating: float | None = None, *, every: bool = True) -> Iterator[None]:
    """Poison fresh allocations with the run's own values, NaN first, 3.0 in the second run; or with a given one.

    Args:
        run: number of the run.
        floating: what floating-point memory holds instead.
        every: each allocation, whoever makes it, which makes torch several times slower; else those of `fresh` alone.
    """
    values = POISONS[run % len(POISONS)] if floating is None else (floating, 0)
    mode = _skipped_by_dynamo() if "torch._dynamo" in sys.modules else Poison
    outside = _POISON.set(values)
    try:
        with torch.no_grad(), mode(*values) if every else nullcontext():
            yield
    finally:
        _POISON.reset(outside)


def fresh(like: torch.Tensor) -> torch.Tensor:
    """Return memory for a tensor's like that nobody wrote: poisoned, where allocations are."""
    values = _POISON.get()
    return torch.empty_like(like) if values is None else _poison(torch.empty_like(like), *values)


def digest(t: torch.Tensor) -> str:
    """Return the first 16 hex digits of the sha256 of a tensor's elements, in order, whatever its strides."""
    return hashlib.sha256(_bytes(t).cpu().numpy().tobytes()).hexdigest()[:16]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Compare two tensors bit for bit: NaN equals the same NaN, -0 does not equal +0."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(_bytes(a), _bytes(b))


def different_bits(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return bool, a's shape: where two tensors of one shape and dtype differ in any bit."""
    size = a.element_size()
    return (_bytes(a).reshape(-1, size) != _bytes(b).reshape(-1, size)).any(1).reshape(a.shape)


def _bytes(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous().flatten().view(torch.uint8)
