"""VOP3P: packed fp16, dot products of pairs, mixed fma, and WMMA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import numbers as n
from .decode import VGPR, Instruction
from .registers import EXEC, Group, Registers

Array = NDArray[Any]
Step = Callable[[Registers, Group], None]
PAIRS: dict[str, Callable[..., Any]] = {  # values in fp32; the store rounds once
    "V_PK_ADD_F16": lambda a, b: a + b,
    "V_PK_MUL_F16": lambda a, b: a * b,
    "V_PK_FMA_F16": n.fma_f16,
    "V_PK_MIN_F16": np.fmin,
    "V_PK_MAX_F16": np.fmax,
}
U16 = np.uint32(0xFFFF)
WHOLE_PAIRS: dict[str, Callable[..., Any]] = {  # on 16-bit integers held in uint32
    "V_PK_ADD_U16": lambda a, b: a + b,
    "V_PK_SUB_U16": lambda a, b: a - b,
    "V_PK_MUL_LO_U16": lambda a, b: a * b,
    "V_PK_ADD_I16": lambda a, b: a + b,
    "V_PK_SUB_I16": lambda a, b: a - b,
    "V_PK_LSHLREV_B16": lambda s, x: x << (s & np.uint32(15)),
    "V_PK_LSHRREV_B16": lambda s, x: x >> (s & np.uint32(15)),
    "V_PK_MAD_U16": lambda a, b, c: a * b + c,
    "V_PK_MIN_U16": np.minimum,
    "V_PK_MAX_U16": np.maximum,
}


def _half(bits: Array, upper: bool) -> Array:
    return bits >> np.uint32(16) if upper else bits & U16


def _selected(one: Instruction, place: int) -> tuple[bool, bool]:
    """Return which half of a source the low and the high result take."""
    raw = one.raw
    high = bool(raw.opsel_hi2) if place == 2 else bool(raw.opsel_hi >> place & 1)
    return bool(raw.opsel >> place & 1), high


def _signed(one: Instruction, place: int, low: Array, high: Array) -> tuple[Array, Array]:
    low = -low if one.raw.neg >> place & 1 else low
    return low, -high if one.raw.neg_hi >> place & 1 else high


def _pair(
    regs: Registers, one: Instruction, group: Group, place: int, widen: Callable[[Array], Array]
) -> tuple[Array, Array]:
    bits = regs.read(one.sources[place], group, "pk16")
    lower, upper = _selected(one, place)
    return _signed(one, place, widen(_half(bits, lower)), widen(_half(bits, upper)))


def packed_step(one: Instruction) -> Step:
    """Return the step of a VOP3P instruction.

    Raises:
        ValueError: an instruction that is not modelled.
    """
    if one.clamp:
        raise ValueError(f"{one}: clamp is not modelled")
    if one.name in ("V_DOT2_F32_BF16", "V_DOT2_F32_F16"):
        return _dot2(one)
    if one.name in PAIRS:
        return _packed(one, PAIRS[one.name], n.f16_to_f32, n.f16_bits)
    if one.name in WHOLE_PAIRS:
        return _packed(one, WHOLE_PAIRS[one.name], lambda bits: bits, lambda value: value & U16)
    if one.name in ("V_FMA_MIX_F32", "V_FMA_MIXLO_F16", "V_FMA_MIXHI_F16"):
        return _mixed(one)
    if one.name in ("V_WMMA_F32_16X16X16_BF16", "V_WMMA_F32_16X16X16_F16"):
        return _wmma(one)
    raise ValueError(f"{one}: this instruction is not modelled")


def _write(regs: Registers, one: Instruction, group: Group, bits: Array) -> None:
    active = regs.mask(EXEC, group)
    regs.write(one.destination - VGPR, group, np.broadcast_to(bits, active.shape), active)


def _dot2(one: Instruction) -> Step:
    widen = n.bf16_to_f32 if one.name.endswith("BF16") else n.f16_to_f32

    def run(regs: Registers, group: Group) -> None:
        (al, ah), (bl, bh) = (_pair(regs, one, group, i, widen) for i in (0, 1))
        c = np.ascontiguousarray(regs.read(one.sources[2], group, "f32")).view(np.float32)
        _write(regs, one, group, n.bits_of(n.dot2(al, bl, ah, bh, -c if one.raw.neg & 4 else c)))

    return run


def _packed(
    one: Instruction, compute: Callable[..., Any], widen: Callable[[Array], Array], narrow: Callable[[Array], Array]
) -> Step:
    count = 3 if "FMA" in one.name or "MAD" in one.name else 2

    def run(regs: Registers, group: Group) -> None:
        pairs = [_pair(regs, one, group, i, widen) for i in range(count)]
        low, high = (narrow(compute(*(p[i] for p in pairs))) for i in (0, 1))
        _write(regs, one, group, low | (high << np.uint32(16)))

    return run


def _mixed(one: Instruction) -> Step:
    def run(regs: Registers, group: Group) -> None:
        args = []
        for place in range(3):
            upper, is_half = _selected(one, place)
            bits = regs.read(one.sources[place], group, "f32")
            x = n.f16_to_f32(_half(bits, upper)) if is_half else np.ascontiguousarray(bits).view(np.float32)
            x = np.abs(x) if one.raw.neg_hi >> place & 1 else x
            args.append(-x if one.raw.neg >> place & 1 else x)
        result = n.fma(*args)
        if one.name == "V_FMA_MIX_F32":
            _write(regs, one, group, n.bits_of(result))
            return
        active, half = regs.mask(EXEC, group), n.f16_bits(result)  # two roundings, as in AMD's pseudo-code
        half = np.broadcast_to(half, active.shape)
        regs.write_half(one.destination - VGPR, group, half, active, one.name == "V_FMA_MIXHI_F16")

    return run


def _wmma(one: Instruction) -> Step:
    """D[m][j] = C[m][j] + sum over k of A[m][k] B[k][j]; 16x16x16, one wave of 32.

    Lane l holds row l % 16 of A and column l % 16 of B in eight registers of two values; register r of C and D is row
    2r + l/16, column l % 16. The order of the sum is not published: here k ascending, each step one fma, as in the CPU
    emulation. Source: AMD GPUOpen, "How to accelerate AI applications on RDNA 3 using WMMA".
    """
    widen = n.bf16_to_f32 if one.name.endswith("BF16") else n.f16_to_f32

    def run(regs: Registers, group: Group) -> None:
        def rows(place: int) -> Array:
            first = one.sources[place].code - VGPR
            words = regs.vector[first : first + 8, group][:, :, :16]  # [8, waves, 16]
            both = np.stack([widen(words), widen(words >> np.uint32(16))], 1)  # [8, 2, waves, 16]
            return both.reshape(16, *words.shape[1:])  # [k, waves, 16]

        a, b = rows(0), rows(1)
        lanes = np.arange(32)
        c_operand = one.sources[2]
        for r in range(8):
            row = 2 * r + (lanes >> 4)
            if c_operand.code >= VGPR:
                t = regs.vector[c_operand.code - VGPR + r, group].view(np.float32)
            else:
                t = np.broadcast_to(regs.read(c_operand, group, "f32").view(np.float32), (a.shape[1], 32))
            for k in range(16):
                t = n.fma(a[k][:, row], b[k][:, lanes & 15], t)
            regs.vector[one.destination - VGPR + r, group] = n.bits_of(t)

    return run
