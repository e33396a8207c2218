"""The instructions that reach memory: SMEM, GLOBAL, FLAT and DS."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .decode import VGPR, Instruction, Operand
from .lanes import bpermute, swizzle
from .memory import Memory, load_words, save_words
from .registers import EXEC, NULL, Group, Registers

Array = NDArray[Any]
WIDTH = {
    "B8": 1,
    "U8": 1,
    "I8": 1,
    "B16": 2,
    "U16": 2,
    "I16": 2,
    "B32": 4,
    "U32": 4,
    "F32": 4,
    "B64": 8,
    "B96": 12,
    "B128": 16,
}
WIDTH |= {"B256": 32, "B512": 64}


def _signed(x: Array, bits: int) -> Array:
    half = np.uint32(1 << (bits - 1))
    return (x ^ half) - half


def _sign_extend(kind: str, words: list[Array]) -> list[Array]:
    return [_signed(words[0], WIDTH[kind] * 8)] if kind in ("I8", "I16") else words


def memory_step(one: Instruction, memory: Memory) -> Callable[[Registers, Group], None]:
    """Return the step of an SMEM, GLOBAL, FLAT or DS instruction.

    Raises:
        ValueError: an instruction that is not modelled.
    """
    if one.form == "SMEM":
        return _scalar_load(one, memory)
    if one.form == "DS":
        return _lds(one, memory)
    found = re.fullmatch(r"(?:GLOBAL|FLAT)_(LOAD|STORE)_(D16_)?(HI_)?(\w+?)", one.name)
    if found and found.group(4) in WIDTH:
        return _global(one, memory, *found.groups())
    atomic = re.fullmatch(r"GLOBAL_ATOMIC_(ADD_U32|ADD_F32|MAX_I32|MAX_U32|SWAP_B32|CMPSWAP_B32)", one.name)
    if atomic:
        return _atomic(one, memory, atomic.group(1))
    raise ValueError(f"{one}: this instruction is not modelled")


def _scalar_load(one: Instruction, memory: Memory) -> Callable[[Registers, Group], None]:
    raw = one.raw
    kind = one.name.rsplit("_", 1)[1]
    if kind not in WIDTH or not one.name.startswith("S_LOAD_"):
        if one.name in ("S_DCACHE_INV", "S_GL1_INV"):
            return lambda regs, group: None
        raise ValueError(f"{one}: this instruction is not modelled")
    base, target, size = raw.sbase.offset, raw.sdata.offset, WIDTH[kind]
    offset = (raw.offset ^ (1 << 20)) - (1 << 20)

    def run(regs: Registers, group: Group) -> None:
        address = regs.read_scalar(Operand(base), group, 2) + np.uint64(offset & (1 << 64) - 1)
        if raw.soffset.offset != NULL:
            address = address + regs.read_scalar(Operand(raw.soffset.offset), group).astype(np.uint64)
        active = np.ones(address.shape, np.bool_)
        words = load_words(memory.arena, memory.places(address, size, active, one) & ~3, size)
        for i, word in enumerate(words):
            regs.scalar[target + i, group] = word

    return run


def _addresses(one: Instruction) -> Callable[[Registers, Group], Array]:
    raw = one.raw
    vector, scalar = Operand(raw.addr.offset), raw.saddr.offset
    offset = np.uint64(((raw.offset ^ (1 << 12)) - (1 << 12)) & (1 << 64) - 1)

    def run(regs: Registers, group: Group) -> Array:
        if scalar in (NULL, 127) or one.form == "FLAT":
            return regs.read(vector, group, "b64") + offset
        return (
            regs.read(vector, group, "b32").astype(np.uint64)
            + regs.read_scalar(Operand(scalar), group, 2)[:, None]
            + offset
        )

    return run


def _global(
    one: Instruction, memory: Memory, way: str, half: str | None, upper: str | None, kind: str
) -> Callable[[Registers, Group], None]:
    where, size, raw = _addresses(one), WIDTH[kind], one.raw

    def load(regs: Registers, group: Group) -> None:
        active = regs.mask(EXEC, group)
        words = _sign_extend(kind, load_words(memory.arena, memory.places(where(regs, group), size, active, one), size))
        if half:
            regs.write_half(raw.vdst.offset - VGPR, group, words[0], active, bool(upper))
            return
        for i, word in enumerate(words):
            regs.write(raw.vdst.offset - VGPR + i, group, word, active)

    def save(regs: Registers, group: Group) -> None:
        active, first = regs.mask(EXEC, group), raw.data.offset - VGPR
        words = [regs.vector[first + i, group] for i in range((size + 3) // 4)]
        words = [words[0] >> np.uint32(16)] if upper else words
        save_words(memory.arena, memory.places(where(regs, group), size, active, one), active, words, size)

    return load if way == "LOAD" else save


def _atomic(one: Instruction, memory: Memory, what: str) -> Callable[[Registers, Group], None]:
    """Atomics act wave by wave, lane by lane, in ascending order."""
    where, raw = _addresses(one), one.raw

    def run(regs: Registers, group: Group) -> None:
        active, first = regs.mask(EXEC, group), raw.data.offset - VGPR
        at, data = memory.places(where(regs, group), 4, active, one), regs.vector[first, group]
        expected = regs.vector[first + 1, group] if what == "CMPSWAP_B32" else data
        old = _one_by_one(memory.arena, at, active, what, data, expected)
        if raw.glc:
            regs.write(raw.vdst.offset - VGPR, group, old, active)

    return run


def _combined(what: str, before: Any, new: Any, expected: Any) -> Any:
    if what == "ADD_F32":
        return np.float32(before.view(np.float32) + new.view(np.float32)).view(np.uint32)
    if what == "MAX_I32":
        return max(before.view(np.int32), new.view(np.int32)).view(np.uint32)
    if what == "CMPSWAP_B32":
        return new if before == expected else before
    return {
        "ADD_U32": lambda: np.uint32((int(before) + int(new)) & 0xFFFFFFFF),
        "MAX_U32": lambda: max(before, new),
        "SWAP_B32": lambda: new,
    }[what]()


def _lds_atomic(one: Instruction, memory: Memory, what: str) -> Callable[[Registers, Group], None]:
    raw = one.raw
    address, data = Operand(raw.addr.offset), raw.data0.offset - VGPR

    def run(regs: Registers, group: Group) -> None:
        active, base = regs.mask(EXEC, group), regs.read(address, group, "b32")
        offsets = np.broadcast_to(base, active.shape) + np.uint32(raw.offset0 | raw.offset1 << 8)
        at, new = memory.lds_places(offsets, 4, active, group, one), regs.vector[data, group]
        old = _one_by_one(memory.lds, at, active, what, new, new)
        if "_RTN_" in one.name:
            regs.write(raw.vdst.offset - VGPR, group, old, active)

    return run


def _one_by_one(arena: Array, at: Array, active: Array, what: str, new: Array, expected: Array) -> Array:
    """Combine lane after lane, in ascending order, with words of an arena; return what each lane found there."""
    words, old = arena[: arena.size // 4 * 4].view(np.uint32), np.zeros_like(new)
    for wave, lane in np.argwhere(active):
        cell = at[wave, lane] >> 2
        old[wave, lane] = before = words[cell]
        words[cell] = _combined(what, before, new[wave, lane], expected[wave, lane])
    return old


def _lds(one: Instruction, memory: Memory) -> Callable[[Registers, Group], None]:
    raw = one.raw
    offset = raw.offset0 | raw.offset1 << 8
    target = raw.vdst.offset - VGPR
    address, data = Operand(raw.addr.offset), Operand(raw.data0.offset)
    if one.name in ("DS_BPERMUTE_B32", "DS_SWIZZLE_B32"):

        def across(regs: Registers, group: Group) -> None:
            active = regs.mask(EXEC, group)
            if one.name == "DS_SWIZZLE_B32":
                moved = swizzle(offset, regs.read(address, group, "b32"), active)
            else:
                moved = bpermute(
                    regs.read(address, group, "b32") + np.uint32(offset), regs.read(data, group, "b32"), active
                )
            regs.write(target, group, moved, active)

        return across
    atomic = re.fullmatch(r"DS_(ADD|MAX)(?:_RTN)?_(U32|I32|F32)", one.name)
    if atomic:
        return _lds_atomic(one, memory, f"{atomic.group(1)}_{atomic.group(2)}")
    found = re.fullmatch(r"DS_(LOAD|STORE)_(2ADDR_)?(STRIDE64_)?(\w+?)(_D16)?(_HI)?", one.name)
    if not found or found.group(4) not in WIDTH:
        raise ValueError(f"{one}: this instruction is not modelled")
    way, two, stride, kind, half, upper = found.groups()
    size = WIDTH[kind]
    unit = size * (64 if stride else 1)
    offsets = (raw.offset0 * unit, raw.offset1 * unit) if two else (offset,)
    sources = (data.code - VGPR, raw.data1.offset - VGPR)

    def run(regs: Registers, group: Group) -> None:
        active, base = regs.mask(EXEC, group), regs.read(address, group, "b32")
        base = np.broadcast_to(base, active.shape)
        for i, extra in enumerate(offsets):
            at = memory.lds_places(base + np.uint32(extra), size, active, group, one)
            count = (size + 3) // 4
            if way == "STORE":
                words = [regs.vector[sources[i] + j, group] for j in range(count)]
                words = [words[0] >> np.uint32(16)] if upper else words
                save_words(memory.lds, at, active, words, size)
                continue
            words = _sign_extend(kind, load_words(memory.lds, at, size))
            if half:
                regs.write_half(target, group, words[0], active, bool(upper))
                continue
            for j, word in enumerate(words):
                regs.write(target + i * count + j, group, word, active)

    return run
