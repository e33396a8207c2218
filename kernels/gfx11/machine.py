"""Run a gfx11 kernel's machine code on the CPU: no GPU, no driver, nothing of the source language.

    out = launch(read_kernel("gemv.hsaco"), grid=(N // 4, 1, 1), block=(128, 1, 1), args=[w, x, scale, out, N, K, G])

All waves that stand at the same instruction execute it together; waves part at branches and meet again at the lowest
address. What is modelled: registers, exec masks, LDS, barriers, global memory with bounds. What is not: time, caches,
the hazards that s_waitcnt and s_delay_alu guard against, scratch memory, waves of 64 lanes, NaN payloads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .code_object import KernelCode
from .decode import Instruction, decode
from .memory import Memory
from .memory_access import memory_step
from .packed import packed_step
from .registers import EXEC, LANES, VCC, Group, Registers
from .scalar import scalar_step
from .start import Span, first_registers, merged
from .vector import carry_step, compare_step, dual_step, vector_step

Array = NDArray[Any]
Step = Callable[[Registers, Group], None]
WAVES_AT_ONCE = 2048
LONGEST = 5_000_000  # instructions of one batch before a kernel counts as endless
NO_EFFECT = (
    "S_NOP", "S_WAITCNT", "S_DELAY_ALU", "S_CLAUSE", "S_SENDMSG", "S_SET_INST_PREFETCH_DISTANCE", "S_WAIT_IDLE",
    "S_SLEEP", "S_WAITCNT_DEPCTR", "S_WAITCNT_VSCNT", "S_WAITCNT_LGKMCNT", "S_WAITCNT_VMCNT", "S_WAITCNT_EXPCNT",
    "S_SETPRIO", "BUFFER_GL0_INV", "BUFFER_GL1_INV", "S_ROUND_MODE", "S_ICACHE_INV",
)  # fmt: skip
BRANCHES: dict[str, Callable[[Registers, Group], Array]] = {
    "S_BRANCH": lambda regs, group: np.ones_like(regs.scc[group]),
    "S_CBRANCH_SCC0": lambda regs, group: ~regs.scc[group], "S_CBRANCH_SCC1": lambda regs, group: regs.scc[group],
    "S_CBRANCH_VCCZ": lambda regs, group: regs.scalar[VCC, group] == 0,
    "S_CBRANCH_VCCNZ": lambda regs, group: regs.scalar[VCC, group] != 0,
    "S_CBRANCH_EXECZ": lambda regs, group: regs.scalar[EXEC, group] == 0,
    "S_CBRANCH_EXECNZ": lambda regs, group: regs.scalar[EXEC, group] != 0,
}  # fmt: skip


@dataclass
class Run:
    """What a launch executed: instructions by mnemonic, counted once for each wave."""

    executed: Counter[str] = field(default_factory=Counter)
    waves: int = 0


def launch(
    kernel: KernelCode, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], *, dynamic_lds: int = 0
) -> Run:
    """Execute a kernel over a grid; arrays among `args` are written in place.

    Args:
        kernel: from read_kernel.
        grid, block: workgroups, and threads of one, in x, y, z.
        args: for each pointer a contiguous numpy array or its Span (None: null), for each value an int or float.
            Pointers into the same memory see each other's writes.
        dynamic_lds: bytes of LDS beyond the kernel's own.
    Returns:
        What was executed.
    Raises:
        ValueError: arguments that do not fit, an instruction that is not modelled, scratch memory, an endless kernel.
        IndexError: an access outside every buffer or outside LDS.
        ImportError: tinygrad, which decodes, is not installed.
    """
    if kernel.scratch:
        raise ValueError(f"kernel: {kernel.name} uses {kernel.scratch} bytes of scratch memory, which is not modelled")
    explicit = [a for a in kernel.arguments if not a.kind.startswith("hidden_")]
    if len(args) != len(explicit):
        raise ValueError(f"args: got {len(args)}, must be the {len(explicit)} that {kernel.name} takes")
    regions, args = merged([Span.of(a) if isinstance(a, np.ndarray) else a for a in args])
    program = decode(kernel.text)
    per_group = -(-int(np.prod(block)) // LANES)
    ids = [(x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0])]
    at_once = max(1, WAVES_AT_ONCE // per_group)
    done = Run()
    for first in range(0, len(ids), at_once):
        batch = ids[first : first + at_once]
        memory = Memory(
            [*regions, np.zeros(kernel.kernarg + 64, np.uint8), np.zeros(64, np.uint8)],
            len(batch),
            kernel.lds + dynamic_lds,
        )
        regs = first_registers(kernel, memory, batch, grid, block, args, per_group, dynamic_lds)
        _execute(program, regs, memory, done)
        for i, region in enumerate(regions):
            region[:] = memory.contents(i)
    return done


def _step(one: Instruction, memory: Memory) -> Step | None:
    """Return what an instruction does, or None if it has no effect here."""
    if one.name in NO_EFFECT or one.form == "MUBUF":
        return None
    if one.form in ("SOP1", "SOP2", "SOPC", "SOPK"):
        return scalar_step(one)
    if one.form == "VOPD":
        return dual_step(one)
    if one.form == "VOP3P":
        return packed_step(one)
    if one.form in ("SMEM", "GLOBAL", "FLAT", "DS"):
        return memory_step(one, memory)
    if one.name.startswith("V_CMP"):
        return compare_step(one)
    if one.form == "VOP3SD":
        return carry_step(one)
    if one.form in ("VOP1", "VOP2", "VOP3"):
        return vector_step(one)
    raise ValueError(f"{one}: this instruction is not modelled")


def _execute(program: list[Instruction], regs: Registers, memory: Memory, done: Run) -> None:
    place = {one.offset: i for i, one in enumerate(program)}
    control = {i for i, one in enumerate(program) if one.name in BRANCHES or one.name in ("S_BARRIER", "S_ENDPGM")}
    steps: dict[int, Step | None] = {}
    pc = np.zeros(regs.waves, np.int64)
    live, waiting = np.ones(regs.waves, np.bool_), np.zeros(regs.waves, np.bool_)
    done.waves += regs.waves
    spent = 0
    with np.errstate(all="ignore"):
        while live.any():
            ready = live & ~waiting
            if not ready.any():  # every wave that is left stands at a barrier
                waiting[:] = False
                continue
            at = int(pc[ready].min())
            chosen = ready & (pc == at)
            group: Group = slice(None) if chosen.all() else np.flatnonzero(chosen)
            size = int(chosen.sum())
            while at not in control:
                if at not in steps:
                    steps[at] = _step(program[at], memory)
                run = steps[at]
                if run is not None:
                    run(regs, group)
                    done.executed[program[at].name] += size
                at, spent = at + 1, spent + 1
            spent += 1
            if spent > LONGEST:
                raise ValueError(f"kernel: still at {program[at]} after {LONGEST:,} instructions; it does not end")
            one = program[at]
            done.executed[one.name] += size
            if one.name == "S_ENDPGM":
                live[group] = False
            elif one.name == "S_BARRIER":
                pc[group], waiting[group] = at + 1, True
                _release(live, waiting, memory.group_of)
            else:
                target = place[one.offset + 4 + 4 * ((one.raw.simm16 ^ 0x8000) - 0x8000)]
                pc[group] = np.where(BRANCHES[one.name](regs, group), target, at + 1)


def _release(live: Array, waiting: Array, group_of: Array) -> None:
    """Let the workgroups go on whose every live wave stands at the barrier."""
    held = np.bincount(group_of[live & ~waiting], minlength=int(group_of.max()) + 1)
    waiting &= held[group_of] > 0
