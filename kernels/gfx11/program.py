"""Decoded instructions as the compiled core takes them: one record each, formulas chosen by name, branches resolved.

Fused forms become the plain one (V_FMAC_F32 is V_FMA_F32 whose third source is its destination); the halves of a VOPD
pair become two records, the first of which writes after the second has read. What has no formula stops where it is
reached.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from .decode import LITERAL, VGPR, Instruction, Operand

VCC, NULL, EXEC = 106, 124, 126
(SHORT, DEFER, GLC, SIGNED, HALF, HIGH, RETURN, HAS_SADDR, HAS_VADDR, TWO, INDEXED) = (
    1 << i for i in range(11)
)  # source/state.h
RECORD = np.dtype(
    [("run", "u8"), ("offset", "i8"), ("op", "i4"), ("address", "i4"), ("next", "i4"), ("target", "i4"), ("dst", "i4"),
     ("sdst", "i4"), ("src", "i4", 4), ("size", "i4"), ("flags", "i4"), ("extra", "i4"), ("literal", "u4"),
     ("dpp", "i4"),
     *((name, "u1") for name in ("neg", "abs", "high", "high2", "neg_high", "clamp", "omod", "dst_high", "row_mask",
                                 "bank_mask", "bound", "fetch_inactive"))], align=True,
)  # fmt: skip
NO_EFFECT = (
    "S_NOP", "S_WAITCNT", "S_DELAY_ALU", "S_CLAUSE", "S_SENDMSG", "S_SET_INST_PREFETCH_DISTANCE", "S_WAIT_IDLE",
    "S_SLEEP", "S_WAITCNT_DEPCTR", "S_WAITCNT_VSCNT", "S_WAITCNT_LGKMCNT", "S_WAITCNT_VMCNT", "S_WAITCNT_EXPCNT",
    "S_SETPRIO", "BUFFER_GL0_INV", "BUFFER_GL1_INV", "S_ICACHE_INV", "S_DCACHE_INV", "S_GL1_INV", "S_VERSION",
    "S_WAKEUP", "S_TTRACEDATA_IMM", "S_TTRACEDATA", "S_INCPERFLEVEL", "S_DECPERFLEVEL", "DS_NOP", "V_PIPEFLUSH",
    "V_PERMLANE64_B32",  # in waves of 32 lanes the guide makes it a no-operation
)  # fmt: skip
WIDTH = {"8": 1, "16": 2, "32": 4, "64": 8, "96": 12, "128": 16, "256": 32, "512": 64}
CHANGES = (
    "SWAP", "CMPSWAP", "ADD", "SUB", "RSUB", "MIN_I", "MIN_U", "MAX_I", "MAX_U", "AND", "OR", "XOR", "INC", "DEC",
    "ADD_F", "MIN_F", "MAX_F", "CSUB", "CMPSWAP_F",
)  # fmt: skip
FUSED = {
    "V_FMAC_F32": "V_FMA_F32", "V_FMAC_F16": "V_FMA_F16", "V_FMAC_DX9_ZERO_F32": "V_FMA_DX9_ZERO_F32",
    "V_PK_FMAC_F16": "V_PK_FMA_F16", "V_DOT2ACC_F32_F16": "V_DOT2_F32_F16", "V_DOT2ACC_F32_BF16": "V_DOT2_F32_BF16",
    "V_DOT2C_F32_F16": "V_DOT2_F32_F16",
}  # fmt: skip
WITH_LITERAL = {
    "V_FMAAK_F32": "V_FMA_F32",
    "V_FMAMK_F32": "V_FMA_F32",
    "V_FMAAK_F16": "V_FMA_F16",
    "V_FMAMK_F16": "V_FMA_F16",
}
HARDWARE = {("S_GETREG", 1): "READ_MODE", ("S_GETREG", 29): "READ_CLOCK", ("S_SETREG", 1): "WRITE_MODE"}
CARRIES = {"ADD": 0, "SUB": 1, "SUBREV": 3}


@dataclass(frozen=True)
class Program:
    """Records for the core, and where each came from.

    Args:
        records: of dtype RECORD; the last one is past the end and stops.
        origin: the instruction of each record but the last.
        index_of: by address // 4: the record there, -1 where none starts.
        missing: instructions with no formula, once each.
    """

    records: np.ndarray[Any, Any]
    origin: list[Instruction]
    index_of: np.ndarray[Any, Any]
    missing: list[Instruction]


def assemble(instructions: Iterable[Instruction], formulas: Mapping[str, int]) -> Program:
    """Turn decoded instructions into records.

    Args:
        instructions: in the order of their addresses, of one or more functions.
        formulas: number of each formula of the core, by name.
    """
    made: list[tuple[Instruction, dict[str, Any]]] = []
    starts: dict[int, int] = {}
    missing: dict[str, Instruction] = {}
    for one in instructions:
        starts[one.offset] = len(made)
        for fields in _records(one):
            op = formulas.get(fields.pop("formula"), -1)
            if op < 0:
                missing.setdefault(one.name, one)
            made.append((one, fields | {"op": op}))
    records = np.zeros(len(made) + 1, RECORD)
    records["dpp"], records["op"], records["sdst"], records["target"] = -1, -1, NULL, len(made)
    records["next"] = np.arange(1, len(made) + 2)
    for i, (one, fields) in enumerate(made):
        record = records[i]
        record["address"] = one.offset
        for name, value in fields.items():
            if name == "src":
                record["src"][: len(value)] = value
            elif name == "target":
                record["target"] = starts.get(value, len(made))
            else:
                record[name] = value
    index_of = np.full(max(starts, default=0) // 4 + 2, -1, np.int32)
    index_of[[address // 4 for address in starts]] = list(starts.values())
    return Program(records, [one for one, _ in made], index_of, list(missing.values()))


def _records(one: Instruction) -> list[dict[str, Any]]:
    if one.name in NO_EFFECT:
        return [{"formula": "NO_EFFECT"}]
    if one.form == "VOPD":
        return _pair(one)
    return [FORMS[one.form](one) if one.form in FORMS else {"formula": ""}]


def _vector(one: Instruction) -> dict[str, Any]:
    name, raw, sources = one.name, one.raw, list(one.sources)
    made: dict[str, Any] = {
        "dst": one.destination - VGPR if one.destination >= VGPR else one.destination,
        "dst_high": one.high,
    }
    own = Operand(one.destination, high=one.high, short=bool(sources) and sources[0].short)
    if name in FUSED:
        sources, name = [*sources[:2], own], FUSED[name]
    if name in WITH_LITERAL:
        literal = Operand(LITERAL, raw.literal)
        sources = [*sources[:2], literal] if "AK" in name else [sources[0], literal, sources[1]]
        name = WITH_LITERAL[name]
    if name in ("V_DOT2_F16_F16", "V_DOT2_BF16_BF16") and any(s.neg or s.abs for s in sources):
        return {"formula": ""}
    if name.startswith("V_CMP"):
        made["sdst"] = EXEC if name.startswith("V_CMPX") else one.destination if one.destination >= 0 else VCC
        name = name.replace("V_CMPX", "V_CMP")  # the same test, written to exec
    if "_CO_" in name:
        made["extra"] = CARRIES[name.split("_")[1]] | (4 if "_CI_" in name else 0)
    if one.form == "VOP3SD":
        made["sdst"] = raw.sdst.offset
    elif "_CO_CI_" in name:
        made["sdst"] = VCC
    if (name.startswith("V_CNDMASK") or "_CI_" in name) and len(sources) < 3:
        sources.append(Operand(VCC))
    if name.startswith(("V_PK_FMA", "V_DOT2_F32")):
        made["high2"] = 7
    made |= {"formula": name, "src": [s.code for s in sources], "literal": max((s.literal for s in sources), default=0),
             "clamp": one.clamp, "omod": one.omod, "flags": SHORT if sources and sources[0].short else 0}  # fmt: skip
    for field in ("neg", "abs", "high"):
        made[field] = sum(getattr(s, field) << i for i, s in enumerate(sources))
    return made | _dpp(one)


def _dpp(one: Instruction) -> dict[str, Any]:
    if one.dpp is None:
        return {}
    return {"dpp": one.dpp.control, "row_mask": one.dpp.row_mask, "bank_mask": one.dpp.bank_mask,
            "bound": one.dpp.bound, "fetch_inactive": one.dpp.inactive}  # fmt: skip


def _packed(one: Instruction) -> dict[str, Any]:
    raw = one.raw
    return {
        "formula": one.name, "dst": one.destination - VGPR, "src": [s.code for s in one.sources],
        "literal": max(s.literal for s in one.sources), "neg": raw.neg, "neg_high": raw.neg_hi, "high": raw.opsel,
        "high2": raw.opsel_hi | raw.opsel_hi2 << 2, "clamp": one.clamp,
        "extra": 1 if "MIXLO" in one.name else 2 if "MIXHI" in one.name else 0, **_dpp(one),
    }  # fmt: skip


def _pair(one: Instruction) -> list[dict[str, Any]]:
    raw, literal = one.raw, getattr(one.raw, "literal", 0)
    halves = []
    for x in "xy":
        name = getattr(raw, f"op{x}").name.replace("V_DUAL_", "V_")
        sources: tuple[Operand, ...] = (
            Operand(getattr(raw, f"src{x}0").offset, literal),
            Operand(getattr(raw, f"vsrc{x}1").offset),
        )
        if name == "V_MOV_B32":
            sources = (sources[0],)
        half = Instruction(
            one.offset,
            one.size,
            name,
            "VOP2",
            SimpleNamespace(literal=literal),
            sources,
            getattr(raw, f"vdst{x}").offset,
        )
        halves.append(_vector(half))
    halves[0]["flags"] |= DEFER
    return halves


def _scalar(one: Instruction) -> dict[str, Any]:
    raw, name = one.raw, one.name
    sources = [getattr(raw, field).offset for field in ("ssrc0", "ssrc1") if hasattr(type(raw), field)]
    made = {"literal": getattr(raw, "literal", 0), "size": one.size}
    if name.startswith("S_SENDMSG_RTN"):  # of a register that only a debugger has: nothing; else the time
        return {"formula": "READ_CLOCK_PAIR" if "B64" in name else "READ_CLOCK", "sdst": raw.sdst.offset, "size": 32}
    if hasattr(type(raw), "sdst"):
        made["sdst"] = raw.sdst.offset
    if name in ("S_FMAC_F32", "S_FMAC_F16", "S_FMAAK_F32", "S_FMAMK_F32"):
        third = made["sdst"] if name.startswith("S_FMAC") else LITERAL
        sources = [sources[0], third, sources[1]] if name == "S_FMAMK_F32" else [*sources, third]
        name = f"S_FMA_{name[-3:]}"
    return {"formula": name, "src": sources, **made}


def _constant(one: Instruction) -> dict[str, Any]:
    raw, here = one.raw, one.raw.sdst.offset
    word = ((raw.simm16 ^ 0x8000) - 0x8000) & 0xFFFFFFFF
    plain = {
        "S_MOVK_I32": "S_MOV_B32",
        "S_CMOVK_I32": "S_CMOV_B32",
        "S_ADDK_I32": "S_ADD_I32",
        "S_MULK_I32": "S_MUL_I32",
    }
    if one.name in ("S_MOVK_I32", "S_CMOVK_I32"):
        return {"formula": plain[one.name], "src": [LITERAL], "sdst": here, "literal": word}
    if one.name in plain:
        return {"formula": plain[one.name], "src": [here, LITERAL], "sdst": here, "literal": word}
    if one.name.startswith("S_CMPK_"):
        return {"formula": one.name.replace("CMPK", "CMP"), "src": [here, LITERAL],
                "literal": word if one.name.endswith("I32") else raw.simm16}  # fmt: skip
    if one.name == "S_CALL_B64":
        return {"formula": one.name, "sdst": here, "target": _branched(one), "size": one.size}
    register = HARDWARE.get((one.name[:8], raw.simm16 & 63), "")
    return {"formula": register, "extra": raw.simm16 >> 6 & 31, "size": (raw.simm16 >> 11 & 31) + 1, "sdst": here,
            "src": [LITERAL if "IMM32" in one.name else here], "literal": getattr(raw, "literal", 0)}  # fmt: skip


def _branched(one: Instruction) -> int:
    return one.offset + 4 + 4 * int((one.raw.simm16 ^ 0x8000) - 0x8000)


def _control(one: Instruction) -> dict[str, Any]:
    raw, usual = one.raw, {"S_DENORM_MODE": 15, "S_ROUND_MODE": 0}
    if one.name in usual:
        return {"formula": "NO_EFFECT" if raw.simm16 == usual[one.name] else ""}
    if one.name.startswith(("S_BRANCH", "S_CBRANCH")):
        return {"formula": one.name, "target": _branched(one)}
    if one.name in ("S_TRAP", "S_SETHALT"):
        return {"formula": "S_TRAP", "extra": raw.simm16}
    return {"formula": one.name}


def _scalar_load(one: Instruction) -> dict[str, Any]:
    raw = one.raw
    if not one.name.startswith(("S_LOAD_", "S_BUFFER_LOAD_")):
        return {"formula": ""}
    other, formula = raw.soffset.offset, "LOAD_SCALAR_BUFFER" if "BUFFER" in one.name else "LOAD_SCALAR"
    return {"formula": formula, "src": [raw.sbase.offset, other], "sdst": raw.sdata.offset,
            "size": WIDTH[one.name.rsplit("_B", 1)[1]], "offset": (raw.offset ^ 1 << 20) - (1 << 20),
            "flags": 0 if other == NULL else HAS_SADDR}  # fmt: skip


def _change(what: str, kind: str) -> int:
    letter = {"I": "_I", "U": "_U", "F": "_F"}.get(kind, "") if what in ("MIN", "MAX") else "_F" if kind == "F" else ""
    return CHANGES.index(what + letter) if what + letter in CHANGES else -1


def _global(one: Instruction) -> dict[str, Any]:
    raw, space = one.raw, one.form
    scalar = raw.saddr.offset
    made: dict[str, Any] = {"src": [raw.addr.offset, scalar, raw.data.offset, 0], "dst": raw.vdst.offset - VGPR,
                            "offset": (raw.offset ^ 1 << 12) - (1 << 12), "flags": 0}  # fmt: skip
    if scalar not in (NULL, 127) and space != "FLAT":
        made["flags"] |= HAS_SADDR
    if raw.sve if space == "SCRATCH" else True:
        made["flags"] |= HAS_VADDR
    return _memory(one, space, made)


def _buffer(one: Instruction) -> dict[str, Any]:
    raw = one.raw
    if raw.tfe:
        return {"formula": ""}
    flags = (HAS_VADDR if raw.offen else 0) | (INDEXED if raw.idxen else 0)
    made = {"src": [raw.vaddr.offset, raw.srsrc.offset, raw.vdata.offset, 0], "dst": raw.vdata.offset - VGPR,
            "sdst": raw.soffset.offset, "offset": raw.offset, "flags": flags}  # fmt: skip
    return _memory(one, "BUFFER", made)


def _memory(one: Instruction, space: str, made: dict[str, Any]) -> dict[str, Any]:
    """Add what a load, store or atomic does to where it does it."""
    found = re.fullmatch(r"[A-Z]+_(LOAD|STORE)_(D16_)?(HI_)?([BUI])(\d+)", one.name)
    if found:
        way, half, upper, kind, size = found.groups()
        made["flags"] |= (
            (SIGNED if kind == "I" else 0) | (HALF if half and way == "LOAD" else 0) | (HIGH if upper else 0)
        )
        return {"formula": f"{way}_{space}", "size": WIDTH[size], **made}
    atomic = re.fullmatch(r"[A-Z]+_ATOMIC_([A-Z]+)_([BUIF])(\d+)", one.name)
    if not atomic or _change(*atomic.groups()[:2]) < 0:
        return {"formula": ""}
    size = WIDTH[atomic[3]]
    if atomic[1] == "CMPSWAP":
        made["src"][3] = made["src"][2] + size // 4
    made["flags"] |= RETURN if one.raw.glc else 0
    return {"formula": f"ATOMIC_{space}", "size": size, "extra": _change(atomic[1], atomic[2]), **made}


def _local(one: Instruction) -> dict[str, Any]:
    raw = one.raw
    sources = [raw.addr.offset, NULL, raw.data0.offset, raw.data1.offset]
    made: dict[str, Any] = {"src": sources, "dst": raw.vdst.offset - VGPR, "flags": HAS_VADDR}
    made["offset"] = raw.offset0 | raw.offset1 << 8
    if raw.gds:
        return {"formula": ""}
    if one.name in ("DS_BPERMUTE_B32", "DS_PERMUTE_B32", "DS_SWIZZLE_B32"):
        return {"formula": one.name, **made}
    found = re.fullmatch(r"DS_(LOAD|STORE)_(2ADDR_)?(STRIDE64_)?([BUI])(\d+)(_D16)?(_HI)?", one.name)
    if found:
        way, two, stride, kind, size, half, upper = found.groups()
        made["flags"] |= (
            (SIGNED if kind == "I" else 0) | (HALF if half and way == "LOAD" else 0) | (HIGH if upper else 0)
        )
        if two:
            unit = WIDTH[size] * (64 if stride else 1)
            made |= {
                "offset": raw.offset0 * unit,
                "extra": (raw.offset1 - raw.offset0) * unit,
                "flags": made["flags"] | TWO,
            }
        return {"formula": f"{way}_DS", "size": WIDTH[size], **made}
    atomic = re.fullmatch(r"DS_([A-Z]+)(_RTN)?_([BUIF])(\d+)", one.name)
    what = {"STOREXCHG": "SWAP", "CMPSTORE": "CMPSWAP"}.get(atomic[1], atomic[1]) if atomic else ""
    if not atomic or _change(what, atomic[3]) < 0:
        return {"formula": ""}
    if what != "CMPSWAP":
        made["src"][3] = 0
    made["flags"] |= RETURN if atomic[2] else 0
    return {"formula": "ATOMIC_DS", "size": WIDTH[atomic[4]], "extra": _change(what, atomic[3]), **made}


FORMS: dict[str, Callable[[Instruction], dict[str, Any]]] = {
    **dict.fromkeys(("VOP1", "VOP2", "VOP3", "VOPC", "VOP3SD"), _vector), "VOP3P": _packed,
    "SOPP": _control, "SOPK": _constant,
    **dict.fromkeys(("SOP1", "SOP2", "SOPC"), _scalar), "SMEM": _scalar_load, "DS": _local,
    **dict.fromkeys(("GLOBAL", "FLAT", "SCRATCH"), _global), "MUBUF": _buffer,
}  # fmt: skip
