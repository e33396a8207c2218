"""The form in which arguments and results cross between the judge and a kernel's process.

Tensors lie as bytes in memory that both processes have open; a message (frames.py) says where, with dtype, shape and
strides. Nothing is pickled, and what comes back is checked like a stranger's file.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import fields
from typing import Any

import torch

from moeracle.ref.activation import Activation
from moeracle.ref.bitmodels.schedule import Schedule
from moeracle.ref.contracts.contract import SCHEDULES, Contract
from moeracle.ref.contracts.parts import Parts
from moeracle.ref.contracts.ranks import Ranks
from moeracle.ref.weights.weight import OF_BITS, Int4Weight

from .frames import WireError

PAGE = 4096
NOT_PLAIN = ("fn", "contract", "supports", "schedule")  # of a Kernel's fields: the others cross as they are
DTYPES = {str(t): t for t in vars(torch).values() if isinstance(t, torch.dtype)}
_TOGETHER = 1 << 20  # bytes of arguments that cross in one piece
PIN_FROM = 1 << 24  # bytes of arguments from which on pinning the memory pays
_AT_ONCE = 1 << 30  # Linux writes less than 2 GiB at once


def span(t: torch.Tensor) -> int:
    """Return how many elements of its storage a strided tensor reaches over."""
    return 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) if t.numel() else 0


def storage_bytes(t: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return uint8 [bytes] of a tensor's storage, and the element at which the tensor starts in it.

    A guarded argument crosses with its margins; of a view into something much larger, only what it reaches over.
    """
    size = t.element_size()
    whole = torch.empty(0, dtype=torch.uint8, device=t.device).set_(t.untyped_storage())
    reach, start = span(t) * size, int(t.storage_offset())
    if len(whole) <= 2 * reach + 4 * PAGE:
        return whole, start
    return whole[start * size : start * size + reach], 0


def rounded(size: int) -> int:
    """Return a size in bytes, rounded up to whole pages."""
    return -(-size // PAGE) * PAGE


def write_at(memory: int, at: int, content: torch.Tensor) -> None:
    """Write uint8 [bytes] of the CPU into the memory."""
    view = memoryview(content.numpy())  # type: ignore[arg-type]
    while len(view):
        done = os.pwrite(memory, view[:_AT_ONCE], at)
        view, at = view[done:], at + done


def read_at(memory: int, at: int, size: int) -> torch.Tensor:
    """Return a copy of `size` bytes of the memory, uint8.

    Raises:
        WireError: it is shorter than that.
    """
    content = torch.empty(size, dtype=torch.uint8)
    view = memoryview(content.numpy())  # type: ignore[arg-type]
    while len(view):
        done = os.preadv(memory, [view[:_AT_ONCE]], at)
        if not done:
            raise WireError("memory that was cut short")
        view, at = view[done:], at + done
    return content


def settle(tensors: Iterable[torch.Tensor]) -> None:
    """Wait for copies to or from the devices of some tensors, which go on while this process does."""
    for device in {t.device for t in tensors if t.device.type != "cpu"}:
        torch.cuda.synchronize(device)


class Window:
    """The memory that judge and child share, mapped into this process, for copies to and from a device.

    The judge looks at nothing here: it copies bytes out, and looks at the copy. The memory cannot be made shorter
    (client.py seals it), so that no copy can end this process.

    Args:
        memory: its descriptor.
        whole: map all that there is of it, however long the other process has made it.
    """

    def __init__(self, memory: int, whole: bool = False) -> None:
        self.memory, self.size, self.whole = memory, 0, whole
        self.map: mmap.mmap | None = None
        self.pinned = 0  # address of what a GPU's driver holds in place
        self.pins = True

    def grow(self, size: int) -> None:
        """Map at least so many bytes of the memory, and make it as long."""
        if size <= self.size:
            return
        if os.fstat(self.memory).st_size < size:
            os.ftruncate(self.memory, rounded(size))
        self.unpin()
        self.size = os.fstat(self.memory).st_size if self.whole else rounded(size)
        self.map = mmap.mmap(self.memory, self.size)

    def bytes_at(self, at: int, size: int) -> torch.Tensor:
        """Return uint8 [size] of the memory itself."""
        self.grow(at + size)
        assert self.map is not None
        return torch.frombuffer(self.map, dtype=torch.uint8, count=size, offset=at)

    def pin(self) -> None:
        """Let a GPU copy at its full speed, where its driver can; elsewhere the copies are slower, no more."""
        if self.pinned or not self.pins or not self.size:
            return
        whole = self.bytes_at(0, self.size)
        try:
            done = int(torch.cuda.cudart().cudaHostRegister(whole.data_ptr(), self.size, 0)) == 0
        except Exception:
            done = False
        if done:
            self.pinned = whole.data_ptr()
            return
        self.pins = False
        with suppress(Exception):  # whoever asks next for the last error must not be told of this one
            torch.zeros(1, device="cuda")

    def unpin(self) -> None:
        """Let go of what is pinned, before it is mapped anew or not at all."""
        if self.pinned:
            with suppress(Exception):
                torch.cuda.synchronize()
                torch.cuda.cudart().cudaHostUnregister(self.pinned)
        self.pinned = 0

    def close(self) -> None:
        """Let go of everything."""
        self.unpin()
        self.map, self.size = None, 0


class Inputs:
    """The tensors of one call in the memory: written by the judge, and read again to see what became of them.

    Small ones cross, and are compared, all together: system calls cost more than their bytes. Large ones of a device
    cross by a window, and what came back is compared on the device.

    Args:
        at: where the first begins.
        shared: whether what lies in the same storage crosses once, and is shared there, too.
        window: by which large ones cross; None: by system calls.
    """

    def __init__(self, at: int, shared: bool = False, window: Window | None = None) -> None:
        self.start = self.end = at
        self.known: dict[tuple[int, int], int] | None = {} if shared else None  # by address and size, where it lies
        self.placed: list[tuple[torch.Tensor, torch.Tensor, int]] = []  # storage, its bytes on the CPU, where they are
        self.together: bytearray | None = None
        self.window = window

    @property
    def by_window(self) -> bool:
        """Whether they cross by a window."""
        return self.window is not None and self.end - self.start > _TOGETHER

    def place(self, t: torch.Tensor) -> dict[str, Any]:
        """Return a tensor's description, behind those before it; `write` takes its bytes over."""
        whole, start = storage_bytes(t)
        at, key = self.end, (whole.data_ptr(), len(whole))
        if self.known is not None and len(whole):
            at = self.known.setdefault(key, at)
        if at == self.end:
            self.placed.append((whole, whole if self.window is not None else whole.cpu(), at))
            self.end += rounded(len(whole))
        return {"dtype": str(t.dtype), "shape": list(t.shape), "strides": list(t.stride()), "start": start, "at": at,
                "bytes": len(whole)}  # fmt: skip

    def write(self, memory: int) -> None:
        """Write every tensor's bytes into the memory."""
        if self.window is not None and self.by_window:
            self.window.grow(self.end + self.end // 2)  # results, too: what is pinned is pinned once
            if self.end >= PIN_FROM:
                self.window.pin()
            for whole, _, at in self.placed:
                self.window.bytes_at(at, len(whole)).copy_(whole, non_blocking=True)
            settle([whole for whole, _, _ in self.placed])
            return
        self.placed = [(whole, content.cpu(), at) for whole, content, at in self.placed]
        if self.end - self.start > _TOGETHER:
            for _, content, at in self.placed:
                write_at(memory, at, content)
            return
        self.together = bytearray(self.end - self.start)
        for _, content, at in self.placed:
            self.together[at - self.start : at - self.start + len(content)] = memoryview(content.numpy())  # type: ignore[arg-type]
        os.pwrite(memory, self.together, self.start)

    def read(self, memory: int) -> None:
        """Take what has changed in the memory over into the tensors.

        Raises:
            WireError: it is shorter than they are.
        """
        if self.window is not None and self.by_window:
            self._compare(self.window)
            return
        if self.together is not None and os.pread(memory, len(self.together), self.start) == self.together:
            return
        for whole, content, at in self.placed:
            back = read_at(memory, at, len(content))
            if not torch.equal(back, content):
                whole.copy_(back)

    def _compare(self, window: Window) -> None:
        """Take copies of all of them to their device, and compare there."""
        filled = [(whole, at) for whole, _, at in self.placed if len(whole)]
        backs = [window.bytes_at(at, len(whole)).to(whole.device, copy=True, non_blocking=True) for whole, at in filled]
        settle(backs)
        for back, (whole, _) in zip(backs, filled, strict=True):
            if not torch.equal(back, whole):
                whole.copy_(back)


def arguments(args: dict[str, Any], place: Callable[[torch.Tensor], dict[str, Any]]) -> list[Any]:
    """Return an op's arguments as JSON, each tensor as what `place` says of it."""

    def sent(value: Any) -> Any:
        if isinstance(value, Int4Weight):
            parts = {field.name: sent(getattr(value, field.name)) for field in fields(value)}
            return {"weight": parts, "bits": value.bits}
        return {"tensor": place(value)} if isinstance(value, torch.Tensor) else {"value": value}

    return [sent(value) for value in args.values()]


def received(sent: list[Any], tensor: Callable[[dict[str, Any]], torch.Tensor]) -> list[Any]:
    """Return arguments from what `arguments` made of them, each tensor made by `tensor`."""

    def value_of(one: dict[str, Any]) -> Any:
        if "weight" in one:
            parts = {name: value_of(field) for name, field in one["weight"].items()}
            return OF_BITS[one["bits"]](**parts)
        return tensor(one["tensor"]) if "tensor" in one else one["value"]

    return [value_of(one) for one in sent]


def check_header(header: Any, most: int) -> tuple[torch.dtype, tuple[int, ...], int]:
    """Return dtype, shape and bytes of a tensor that a child describes.

    Args:
        header: what it said.
        most: bytes that the memory holds.
    Raises:
        WireError: it is no such description, or contradicts itself.
    """
    if not isinstance(header, dict) or header.get("dtype") not in DTYPES:
        raise WireError("a tensor of no dtype")
    for name in ("shape", "strides"):
        numbers = header.get(name)
        if not isinstance(numbers, list) or len(numbers) > 64 or not all(_is_count(n) for n in numbers):
            raise WireError("a tensor of no shape")
    dtype, shape = DTYPES[header["dtype"]], tuple(header["shape"])
    size = math.prod(shape) * dtype.itemsize
    stated, at = header.get("bytes", -1), header.get("at")
    if stated is not None and (stated != size or not _is_count(at) or at + size > most):
        raise WireError("a tensor whose bytes are not where it says")
    return dtype, shape, size


def largest_results(used: int) -> int:
    """Return how many bytes the results of one call may have, by the bytes of its arguments: more is not sent over."""
    return max(1 << 30, 16 * used)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def plain_contract(rules: Contract) -> dict[str, Any]:
    """Return a contract as JSON, which `contract_from` reads."""
    said = {field.name: getattr(rules, field.name) for field in fields(rules)}
    said |= {name: None if said[name] is None else str(said[name]) for name in ("parts", "ranks")}
    said["activation"] = str(rules.activation)
    return said | {name: None if said[name] is None else vars(said[name]) for name in SCHEDULES}


def contract_from(said: dict[str, Any]) -> Contract:
    """Return the contract that a child said a kernel declares, checked as if it were declared here.

    Raises:
        ValueError: it is none.
    """
    known = {name: _tuples(value) for name, value in said.items()}
    try:
        schedules = {name: _schedule(known[name]) for name in SCHEDULES}
        parts = None if known["parts"] is None else Parts.parse(known["parts"])
        ranks = None if known["ranks"] is None else Ranks.parse(known["ranks"])
        activation = Activation.parse(known["activation"])
        return Contract(**{**known, **schedules, "parts": parts, "ranks": ranks, "activation": activation})
    except (TypeError, KeyError, AttributeError):
        raise WireError("a contract that is none") from None


def _schedule(said: dict[str, Any] | None) -> Schedule | None:
    return None if said is None else Schedule(**{name: _tuples(value) for name, value in said.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
