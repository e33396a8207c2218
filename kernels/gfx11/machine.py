"""Run a gfx11 kernel's machine code on the CPU: no GPU, no driver, nothing of the source language.

    run = launch(read_kernel("gemv.hsaco"), grid=(N // 4, 1, 1), block=(128, 1, 1), args=[w, x, scale, out, N, K, G])

Workgroups run one after another, the waves of one until each waits at a barrier or ends. What is modelled: registers,
exec masks, LDS, scratch, barriers, calls, global memory with bounds. What is not: time, caches, the hazards that
s_waitcnt and s_delay_alu guard against, waves of 64 lanes, NaN payloads.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from .arguments import FIRST, Span, address_of, packed, regions_of, words
from .code_object import BASE, MOST_LDS, MOST_SCRATCH, USER_SGPRS, KernelCode
from .core import Launch, Region, core, formulas
from .decode import Instruction, decode
from .elf import FUNCTION
from .faults import describe, raised
from .lines import line_table
from .program import NO_EFFECT, Program, assemble

LANES = 32
LONGEST = 50_000_000  # instructions of one wave before a kernel counts as endless
TURN = 20_000_000  # instructions between two looks at what Python wants, e.g. Ctrl-C
ORDERS = ("forward", "backward", "shuffled")
VARIED = "varied"  # a kernel's first launch forward, its second backward, later ones shuffled: as a GPU, no order twice


@dataclass(frozen=True)
class Order:
    """In which order workgroups, waves and lanes that meet (atomics, stores to one place) run.

    Args:
        way: "forward", "backward", "shuffled" or "varied".
        seed: of the shuffle.
        fill: what registers, LDS and scratch hold at first: 0, or a seed of noise.
    """

    way: str = VARIED
    seed: int = 0
    fill: int = 0


_order: ContextVar[Order] = ContextVar("gfx11_order", default=Order())  # noqa: B039 - frozen
_launches: Counter[tuple[str, str]] = Counter()
EXECUTED: Counter[str] = Counter()  # by every launch of this process, as Run.executed


@contextmanager
def in_order(way: str, seed: int = 0, fill: int = 0) -> Iterator[None]:
    """Run every launch inside in one order.

    Args:
        way: "forward", "backward" or "shuffled"; "varied", which holds outside, is another one each time a kernel is
            launched: forward, backward, then shuffled.
        seed: of the shuffle.
        fill: what registers, LDS and scratch hold at first: 0, or a seed of noise.
    Raises:
        ValueError: another order.
    """
    if way not in (*ORDERS, VARIED):
        raise ValueError(f"order: got {way!r}, must be one of {', '.join((*ORDERS, VARIED))}")
    token = _order.set(Order(way, seed, fill))
    try:
        yield
    finally:
        _order.reset(token)


@dataclass
class Run:
    """What a launch executed.

    Args:
        executed: instructions by mnemonic, counted once for each wave; waits and hints are not counted.
        waves: how many there were.
        instructions: how many they executed, waits and hints too.
        unwritten: where a wave read a register that it had not written, as "v17 at k.hip:12 (v_add_f32)".
    """

    executed: Counter[str] = field(default_factory=Counter)
    waves: int = 0
    instructions: int = 0
    unwritten: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Loaded:
    """A kernel's program for the core, its entry, and where each address comes from."""

    program: Program
    entry: int
    line_of: Callable[[int], str]


@lru_cache(maxsize=256)
def _program(path: str, digest: int, name: str, code: _ByIdentity) -> Loaded:
    kernel = code.kernel
    body = decode(kernel.text, start=kernel.symbol.address)
    if any(one.name in ("S_SWAPPC_B64", "S_SETPC_B64", "S_CALL_B64") for one in body):
        body += _functions(kernel)
    program = assemble(body, formulas())
    return Loaded(program, int(program.index_of[kernel.symbol.address // 4]), line_table(kernel.elf.sections))


class _ByIdentity:
    """A kernel that a cache tells apart by the other parts of the key."""

    def __init__(self, kernel: KernelCode) -> None:
        self.kernel = kernel

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity)

    def __hash__(self) -> int:
        return 0


def _functions(kernel: KernelCode) -> list[Instruction]:
    """Decode the functions of the code object that are no kernels: what a kernel may call."""
    elf, out = kernel.elf, []
    spans = {(s.address, s.size) for n, s in elf.symbols.items() if s.kind == FUNCTION and f"{n}.kd" not in elf.symbols}
    for address, size in sorted(spans):
        if size:
            out += decode(bytes(elf.image[address : address + size]), end="S_SETPC_B64", start=address)
    return out


def program_of(kernel: KernelCode) -> Loaded:
    """Return a kernel's program, decoded once."""
    return _program(str(kernel.path), hash(bytes(kernel.elf.image)), kernel.name, _ByIdentity(kernel))


def launch(
    kernel: KernelCode, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], *, dynamic_lds: int = 0,
    order: Order | None = None, checks: bool = True,
) -> Run:  # fmt: skip
    """Execute a kernel over a grid; arrays among `args` are written in place.

    Args:
        kernel: from read_kernel.
        grid, block: workgroups, and threads of one, in x, y, z.
        args: for each pointer a contiguous numpy array or its Span (None: null), for each value an int, a float, a
            ctypes value or bytes. Pointers into the same memory see each other's writes.
        dynamic_lds: bytes of LDS beyond the kernel's own.
        order: None: that of the innermost in_order, else "varied".
        checks: report LDS that nobody has written, and races of waves in LDS.
    Returns:
        What was executed.
    Raises:
        ValueError: arguments or sizes that do not fit, an instruction that is not modelled, an endless kernel.
        IndexError: an access outside every buffer, outside LDS or outside scratch.
        MachineFault: anything else that is undefined on a GPU.
        ImportError: tinygrad, which decodes, is not installed.
    """
    order = _resolved(order or _order.get(), kernel)
    _check_sizes(kernel, block, dynamic_lds)
    given = [Span.of(a) if isinstance(a, np.ndarray) else a for a in args]
    bounds = regions_of([a for a in given if isinstance(a, Span) and a.size])
    segment = packed(kernel, grid, block, given, bounds, dynamic_lds)
    loaded = program_of(kernel)
    records = loaded.program.records.copy()
    core().moeracle_gfx_link(ctypes.c_void_p(records.ctypes.data), ctypes.c_int64(len(records)))
    image = np.frombuffer(kernel.elf.image, np.uint8).copy()
    packet = _packet(grid, block)
    regions = (Region * (FIRST + len(bounds)))(
        *(Region(a.ctypes.data, a.nbytes, i == 0) for i, a in enumerate((image, segment, packet))),
        *(Region(start, end - start, 1) for start, end in bounds),
    )
    groups, counts = _groups(grid, order), np.zeros(len(records), np.uint64)
    user = _user_registers(kernel)
    unwritten, registers = np.zeros(len(records), np.uint8), np.zeros(len(records), np.int32)
    index_of = loaded.program.index_of
    state = Launch(
        records.ctypes.data, counts.ctypes.data, ctypes.addressof(regions), groups.ctypes.data, user.ctypes.data,
        len(user), len(groups), len(regions), len(records), (ctypes.c_int64 * 3)(*grid), (ctypes.c_int64 * 3)(*block),
        kernel.lds + dynamic_lds, (kernel.scratch + 3) // 4 * 4, max(kernel.vgprs, 8), kernel.first_system_sgpr,
        (ctypes.c_int64 * 3)(*kernel.workgroup_ids), loaded.entry, LONGEST, order.seed, ORDERS.index(order.way),
        order.fill, checks, BASE, index_of.ctypes.data, len(index_of), unwritten.ctypes.data, registers.ctypes.data,
    )  # fmt: skip
    while state.done_groups < len(groups):
        if core().moeracle_gfx_run(ctypes.byref(state), ctypes.c_int64(TURN)):
            group = groups[min(state.done_groups, len(groups) - 1)]
            raise raised(
                describe(state.fault, kernel, loaded, tuple(int(i) for i in group), bounds, given), state.fault
            )
    return _run(loaded, counts, unwritten, registers, len(groups) * -(-int(np.prod(block)) // LANES), state.executed)


def _resolved(order: Order, kernel: KernelCode) -> Order:
    key = (str(kernel.path), kernel.name)
    if order.way != VARIED:
        return order
    number = _launches[key]
    _launches[key] += 1
    return replace(order, way=ORDERS[min(number, 2)], seed=number)


def _check_sizes(kernel: KernelCode, block: Sequence[int], dynamic_lds: int) -> None:
    threads = int(np.prod(block))
    most = min(1024, int(kernel.facts.get(".max_flat_workgroup_size", 1024)))
    if not 0 < threads <= most:
        raise ValueError(
            f"block: got {tuple(block)}, must hold 1 to {most} threads (the most that {kernel.shown} takes)"
        )
    if not 0 <= kernel.lds + dynamic_lds <= MOST_LDS:
        total = f"{kernel.lds} of its own and {dynamic_lds} dynamic"
        raise ValueError(f"shared: {kernel.shown} needs {total} bytes of LDS, a workgroup has {MOST_LDS}")
    if kernel.scratch > MOST_SCRATCH:
        raise ValueError(
            f"kernel: {kernel.shown} uses {kernel.scratch:,} bytes of scratch a lane, at most {MOST_SCRATCH:,}"
        )


def _packet(grid: Sequence[int], block: Sequence[int]) -> Any:
    packet = np.zeros(64, np.uint8)
    packet[4:10] = np.array(block, np.uint16).view(np.uint8)
    packet[12:24] = np.array([g * b for g, b in zip(grid, block, strict=True)], np.uint32).view(np.uint8)
    return packet


def _groups(grid: Sequence[int], order: Order) -> Any:
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.int64) for n in reversed(grid)), indexing="ij")
    groups = np.stack([x.ravel(), y.ravel(), z.ravel()], 1)
    if order.way == "backward":
        groups = groups[::-1]
    if order.way == "shuffled":
        groups = groups[np.random.Generator(np.random.Philox(key=order.seed)).permutation(len(groups))]
    return np.ascontiguousarray(groups)


def _user_registers(kernel: KernelCode) -> Any:
    sizes, out = dict(USER_SGPRS), []
    regions = {"kernarg_segment_ptr": 1, "dispatch_ptr": 2}
    for what in kernel.user_sgprs:
        out += words(address_of(regions[what]) if what in regions else 0, sizes[what])
    return np.array(out, np.int32)


def _run(loaded: Loaded, counts: Any, unwritten: Any, registers: Any, waves: int, instructions: int) -> Run:
    done = Run(waves=waves, instructions=int(instructions))
    seen: set[int] = set()
    for i, one in enumerate(loaded.program.origin):
        if counts[i] and one.name not in NO_EFFECT and one.offset not in seen:
            done.executed[one.name] += int(counts[i])
        seen.add(one.offset)
        if unwritten[i]:
            number = int(registers[i])
            name = f"v{number - 256}" if number >= 256 else {106: "vcc", 125: "m0"}.get(number, f"s{number}")
            line = loaded.line_of(one.offset)
            done.unwritten.append(f"{name} at {line or hex(one.offset)} ({one.name.lower()})")
    EXECUTED.update(done.executed)
    return done
