"""Scalar instructions: SOP1, SOP2, SOPC, SOPK. Each works on one value a wave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import numbers as n
from .decode import LITERAL, Instruction, Operand
from .registers import EXEC, Group, Registers
from .scalar_table import NARROW_SECOND, ONE, RELATIONS, TWO, TWO_WIDE, U, floats, shift_of, signed

Array = NDArray[Any]
Step = Callable[[Registers, Group], None]


def _missing(one: Instruction) -> ValueError:
    return ValueError(f"{one}: this instruction is not modelled")


def _operand(one: Instruction, field: str) -> Operand:
    return Operand(getattr(one.raw, field).offset, getattr(one.raw, "literal", 0) if hasattr(one.raw, "literal") else 0)


def scalar_step(one: Instruction) -> Step:
    """Return the step of a SOP1, SOP2, SOPC or SOPK instruction.

    Raises:
        ValueError: an instruction that is not modelled.
    """
    return {"SOP1": _one, "SOP2": _two, "SOPC": _compare, "SOPK": _constant}[one.form](one)


def _two(one: Instruction) -> Step:
    name = one.name.removeprefix("S_")
    a, b, target = _operand(one, "ssrc0"), _operand(one, "ssrc1"), one.raw.sdst.offset
    wide = name in TWO_WIDE
    fn = TWO_WIDE.get(name) or TWO.get(name)
    if name in ("FMAC_F32", "FMAAK_F32", "FMAMK_F32"):
        return _fma(one, name, a, b, target)
    if fn is None:
        raise _missing(one)
    second = 1 if name in NARROW_SECOND or not wide else 2

    def run(regs: Registers, group: Group) -> None:
        x, y = regs.read_scalar(a, group, 2 if wide else 1), regs.read_scalar(b, group, second)
        result, scc = fn(x, y, regs.scc[group])
        regs.write_scalar(target, group, result, 2 if wide else 1)
        regs.scc[group] = scc

    return run


def _fma(one: Instruction, name: str, a: Operand, b: Operand, target: int) -> Step:
    third = Operand(target) if name == "FMAC_F32" else Operand(LITERAL, one.raw.literal)
    order = (a, third, b) if name == "FMAMK_F32" else (a, b, third)

    def run(regs: Registers, group: Group) -> None:
        x, y, z = (floats(np.ascontiguousarray(regs.read_scalar(o, group))) for o in order)
        regs.write_scalar(target, group, n.bits_of(n.fma(x, y, z)))

    return run


def _one(one: Instruction) -> Step:
    name = one.name.removeprefix("S_")
    source, target = _operand(one, "ssrc0"), one.raw.sdst.offset
    if name.endswith("_SAVEEXEC_B32"):
        pair = TWO[name.removesuffix("_SAVEEXEC_B32").replace("AND_NOT0", "AND_NOT1") + "_B32"]
        swapped = "NOT0" in name  # s_and_not0: ~source & exec; s_and_not1: source & ~exec

        def save(regs: Registers, group: Group) -> None:
            old, value = regs.scalar[EXEC, group].copy(), regs.read_scalar(source, group)
            result, scc = pair(old, value, regs.scc[group]) if swapped else pair(value, old, regs.scc[group])
            regs.write_scalar(target, group, old)
            regs.scalar[EXEC, group] = result
            regs.scc[group] = scc

        return save
    fn = ONE.get(name)
    if fn is None:
        raise _missing(one)
    words = 2 if name.endswith("B64") else 1

    def run(regs: Registers, group: Group) -> None:
        result, scc = fn(regs.read_scalar(source, group, words), regs.scc[group])
        regs.write_scalar(target, group, result, words)
        regs.scc[group] = scc

    return run


def _compare(one: Instruction) -> Step:
    parts = one.name.split("_")  # S_CMP_GE_U32
    a, b = _operand(one, "ssrc0"), _operand(one, "ssrc1")
    if len(parts) != 4 or parts[2] not in RELATIONS:
        if parts[1] == "BITCMP1" or parts[1] == "BITCMP0":
            want = np.uint32(int(parts[1][-1]))

            def bit(regs: Registers, group: Group) -> None:
                x, y = regs.read_scalar(a, group), regs.read_scalar(b, group)
                regs.scc[group] = ((x >> shift_of(y)) & U(1)) == want

            return bit
        raise _missing(one)
    view: Callable[[Array], Array] = {"I32": signed, "F32": floats}.get(parts[3], lambda x: x)
    words, test = 2 if parts[3].endswith("64") else 1, RELATIONS[parts[2]]

    def run(regs: Registers, group: Group) -> None:
        x, y = (np.ascontiguousarray(regs.read_scalar(o, group, words)) for o in (a, b))
        regs.scc[group] = test(view(x), view(y))

    return run


def _constant(one: Instruction) -> Step:
    name, target = one.name.removeprefix("S_"), one.raw.sdst.offset
    word = ((one.raw.simm16 ^ 0x8000) - 0x8000) & 0xFFFFFFFF
    value, here = U(word), Operand(target)

    def run(regs: Registers, group: Group) -> None:
        old = regs.read_scalar(here, group)
        same = np.full_like(old, value)
        if name == "MOVK_I32":
            regs.write_scalar(target, group, same)
        elif name == "ADDK_I32":
            result, regs.scc[group] = TWO["ADD_I32"](old, same, regs.scc[group])
            regs.write_scalar(target, group, result)
        elif name == "MULK_I32":
            regs.write_scalar(target, group, old * same)
        elif name.startswith("CMPK_"):
            _, relation, kind = name.split("_")
            right = same if kind == "I32" else np.full_like(old, U(one.raw.simm16))
            regs.scc[group] = (
                RELATIONS[relation](signed(old), signed(right)) if kind == "I32" else RELATIONS[relation](old, right)
            )

    if not (
        name in ("MOVK_I32", "ADDK_I32", "MULK_I32", "VERSION")
        or name.startswith("CMPK_")
        or name.startswith("WAITCNT")
    ):
        raise _missing(one)
    return run
