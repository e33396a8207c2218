"""Vector instructions: from a decoded instruction to a step that runs it for a group of waves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import numbers as n
from .decode import LITERAL, VGPR, Instruction, Operand
from .lanes import apply_dpp
from .registers import EXEC, VCC, Group, Registers
from .vector_lanes import ACROSS
from .vector_table import VECTOR, Operation

Array = NDArray[Any]
Step = Callable[[Registers, Group], None]
SIGN, REST = np.uint32(1 << 31), np.uint32((1 << 31) - 1)
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "LT": lambda a, b: a < b, "EQ": lambda a, b: a == b, "LE": lambda a, b: a <= b, "GT": lambda a, b: a > b,
    "NE": lambda a, b: a != b, "GE": lambda a, b: a >= b, "LG": lambda a, b: (a < b) | (a > b),
    "O": lambda a, b: (a == a) & (b == b), "U": lambda a, b: (a != a) | (b != b), "NGE": lambda a, b: ~(a >= b),
    "NLG": lambda a, b: ~((a < b) | (a > b)), "NGT": lambda a, b: ~(a > b), "NLE": lambda a, b: ~(a <= b),
    "NEQ": lambda a, b: ~(a == b), "NLT": lambda a, b: ~(a < b),
}  # fmt: skip
HALF_RESULTS = ("f16", "b16", "u16", "i16")


def value(regs: Registers, operand: Operand, group: Group, kind: str, bits: Array | None = None) -> Array:
    """Return a source as numbers of its kind, modifiers applied."""
    if bits is None:
        bits = regs.read(operand, group, kind)
    if kind == "f16":
        x = n.f16_to_f32(bits)
    elif kind == "f32":
        x = np.ascontiguousarray(bits).view(np.float32)
    else:
        if operand.neg or operand.abs:  # v_cndmask_b32 on floats
            bits = (bits & REST) if operand.abs else bits
            return bits ^ SIGN if operand.neg else bits
        if kind == "i16":
            return ((bits.astype(np.int32) & 0xFFFF) ^ 0x8000) - 0x8000
        signed = {"i32": np.int32, "i64": np.int64}.get(kind)
        return bits if signed is None else np.ascontiguousarray(bits).view(signed)
    x = np.abs(x) if operand.abs else x
    return -x if operand.neg else x


def store(regs: Registers, one: Instruction, group: Group, result: Array, kind: str, active: Array) -> None:
    """Round a result to its kind and write it to the destination's active lanes."""
    if kind in ("f32", "f16"):
        if one.omod:
            result = result * np.float32({1: 2.0, 2: 4.0, 3: 0.5}[one.omod])
        if one.clamp:
            result = np.where(np.isnan(result), np.float32(0), np.clip(result, 0, 1))
    elif one.clamp:
        raise ValueError(f"{one}: clamp of an integer result is not modelled")
    register, high = one.destination - VGPR, one.high
    if kind in HALF_RESULTS:
        if one.form in ("VOP1", "VOP2") and register >= 128:
            register, high = register - 128, True
        half = n.f16_bits(result) if kind == "f16" else result.astype(np.uint32)
        regs.write_half(register, group, half, active, high)
        return
    if kind == "f32":
        bits = n.bits_of(result)
    elif result.dtype.itemsize == 8:
        bits = result.view(np.uint64)
    else:
        bits = result.view(np.uint32)
    regs.write(register, group, np.broadcast_to(bits, active.shape), active)


def _sources(regs: Registers, one: Instruction, group: Group, kinds: tuple[str, ...]) -> tuple[list[Array], Array]:
    active = regs.mask(EXEC, group)
    writes, out = active, []
    for place, kind in enumerate(kinds):
        if kind == "acc":
            out.append(regs.vector[one.destination - VGPR, group].view(np.float32))
            continue
        operand, bits = one.sources[place], None
        if place == 0 and one.dpp is not None:
            bits, writes = apply_dpp(one.dpp, regs.read(operand, group, kind), active)
        out.append(value(regs, operand, group, kind, bits))
    return out, writes


def _plain(one: Instruction, operation: Operation) -> Callable[[Registers, Group], tuple[Array, str, Array]]:
    def run(regs: Registers, group: Group) -> tuple[Array, str, Array]:
        args, active = _sources(regs, one, group, operation.sources)
        return operation.compute(*args), operation.result, active

    return run


def _cndmask(one: Instruction) -> Callable[[Registers, Group], tuple[Array, str, Array]]:
    chooser = one.sources[2].code if len(one.sources) > 2 else VCC
    kind = one.name[-3:].lower()

    def run(regs: Registers, group: Group) -> tuple[Array, str, Array]:
        (a, b), active = _sources(regs, one, group, (kind, kind))
        return np.where(regs.mask(chooser, group), b, a), kind, active

    return run


def evaluator(one: Instruction) -> Callable[[Registers, Group], tuple[Array, str, Array]]:
    """Return the function that computes a VOP1, VOP2 or VOP3 instruction's result without writing it.

    Raises:
        ValueError: an instruction that is not modelled.
    """
    if one.name in ("V_CNDMASK_B32", "V_CNDMASK_B16"):
        return _cndmask(one)
    if one.name in ("V_FMAAK_F32", "V_FMAMK_F32"):
        literal = Operand(LITERAL, one.raw.literal)
        a, b = one.sources[:2]
        one = replace(one, sources=(a, b, literal) if one.name == "V_FMAAK_F32" else (a, literal, b))
    if one.name not in VECTOR:
        raise ValueError(f"{one}: this instruction is not modelled")
    return _plain(one, VECTOR[one.name])


def vector_step(one: Instruction) -> Step:
    """Return the step of a VOP1, VOP2 or VOP3 instruction that writes vector registers."""
    if one.name in ACROSS:
        return ACROSS[one.name](one)
    if one.name in ("V_ADD_CO_CI_U32", "V_SUB_CO_CI_U32", "V_SUBREV_CO_CI_U32"):
        return carry_step(one)
    compute = dot2acc(one) if one.name.startswith("V_DOT2ACC") else evaluator(one)

    def run(regs: Registers, group: Group) -> None:
        result, kind, active = compute(regs, group)
        store(regs, one, group, result, kind, active)

    return run


def compare_step(one: Instruction) -> Step:
    """Return the step of V_CMP_* (writes a lane mask) or V_CMPX_* (writes exec)."""
    _, relation, kind = one.name.replace("V_CMPX", "V_CMP").split("_", 2)[0:1] + one.name.rsplit("_", 2)[1:]
    kind = kind.lower()
    if relation not in COMPARE or kind not in ("f32", "f16", "u32", "i32", "u16", "i16", "u64", "i64"):
        raise ValueError(f"{one}: this instruction is not modelled")
    target = EXEC if one.name.startswith("V_CMPX") else one.destination if one.destination >= 0 else VCC
    test = COMPARE[relation]

    def run(regs: Registers, group: Group) -> None:
        (a, b), active = _sources(regs, one, group, (kind, kind))
        regs.set_mask(target, group, test(a, b) & active)

    return run


def carry_step(one: Instruction) -> Step:
    """Return the step of V_ADD_CO_U32 and its kin, and of V_MAD_U64_U32, V_MAD_I64_I32."""
    name = one.name
    carry_out = one.raw.sdst.offset if one.form == "VOP3SD" else VCC
    carry_in = one.sources[2].code if len(one.sources) > 2 and "_CI_" in name else VCC

    def run(regs: Registers, group: Group) -> None:
        if name.startswith("V_MAD"):
            kind = "i32" if name == "V_MAD_I64_I32" else "b32"
            wide = np.int64 if kind == "i32" else np.uint64
            (a, b, c), active = _sources(regs, one, group, (kind, kind, "i64" if kind == "i32" else "b64"))
            store(regs, one, group, a.astype(wide) * b.astype(wide) + c, "b64", active)
            return  # its carry out is not used by compilers
        (a, b), active = _sources(regs, one, group, ("b32", "b32"))
        if "SUBREV" in name:
            a, b = b, a
        a64, b64 = a.astype(np.int64), b.astype(np.int64)
        extra = regs.mask(carry_in, group).astype(np.int64) if "_CI_" in name else np.int64(0)
        total = a64 + b64 + extra if "ADD" in name else a64 - b64 - extra
        regs.set_mask(carry_out, group, np.broadcast_to((total < 0) | (total >> 32 > 0), active.shape) & active)
        store(regs, one, group, (total & 0xFFFFFFFF).astype(np.uint32), "b32", active)

    return run


def dual_step(one: Instruction) -> Step:
    """Return the step of a VOPD pair: both read before either writes."""
    raw = one.raw
    halves = []
    for x in "xy":
        name = getattr(raw, f"op{x}").name.replace("V_DUAL_", "V_")
        first = Operand(getattr(raw, f"src{x}0").offset, getattr(raw, "literal", 0))
        second = Operand(getattr(raw, f"vsrc{x}1").offset)
        literal = SimpleNamespace(literal=getattr(raw, "literal", 0))
        half = Instruction(
            one.offset, one.size, name, "VOPD", literal, (first, second), getattr(raw, f"vdst{x}").offset
        )
        halves.append((half, dot2acc(half) if name.startswith("V_DOT2ACC") else evaluator(half)))

    def run(regs: Registers, group: Group) -> None:
        results = [(half, compute(regs, group)) for half, compute in halves]
        for half, (result, kind, active) in results:
            store(regs, half, group, result, kind, active)

    return run


def dot2acc(one: Instruction) -> Callable[[Registers, Group], tuple[Array, str, Array]]:
    """Return the evaluator of V_DOT2ACC_F32_{F16,BF16}: destination += a.low*b.low, then += a.high*b.high."""
    widen = n.bf16_to_f32 if one.name.endswith("BF16") else n.f16_to_f32

    def run(regs: Registers, group: Group) -> tuple[Array, str, Array]:
        (a, b, c), active = _sources(regs, one, group, ("b32", "b32", "acc"))
        high = np.uint32(16)
        return n.dot2(widen(a), widen(b), widen(a >> high), widen(b >> high), c), "f32", active

    return run


def _dot2acc_step(one: Instruction) -> Step:
    compute = dot2acc(one)
    return lambda regs, group: store(regs, one, group, *compute(regs, group))
