"""Machine code to instructions, through PyPI tinygrad's gfx11 tables: which bits are which field, and nothing more.

What an instruction does is written in this folder; tinygrad's decoder is asked only for formats and names.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import Any

VGPR = 256  # operands from here on are vector registers
LITERAL = 255
# Formats that tinygrad's decoder leaves out, by the upper bits of their first word: (bits, value) -> name and bytes.
# Of MUBUF it has the fields; the others have no model, and their names are enough.
MUBUF = "MUBUF"
OTHER_FORMATS = {
    (6, 0b111000): (MUBUF, 8), (6, 0b111010): ("MTBUF", 8), (6, 0b111100): ("MIMG", 8), (6, 0b111110): ("EXP", 8),
    (8, 0b11001110): ("LDSDIR", 4),
}  # fmt: skip
DPP8, DPP16 = (233, 234), 250  # source codes; the second DPP8 reads inactive lanes too
# row_shl, row_shr, row_ror by 1..15, row_mirror, row_half_mirror, row_share, row_xmask; below 0x100: quad_perm
CONTROLS = {*range(0x101, 0x110), *range(0x111, 0x120), *range(0x121, 0x130), 0x140, 0x141, *range(0x150, 0x170)}
VECTOR_FIELDS = ("vdst", "src0", "src1", "vsrc1", "src2", "addr", "data", "data0", "data1", "vdata", "vaddr")
MOST_REGISTERS = 16  # of one operand
INSTALL = "tinygrad is needed to decode gfx11 machine code: pip install 'moeracle[gfx]'"


@dataclass(frozen=True)
class Operand:
    """One source: a register or constant by its number in the 9-bit source space, and its modifiers.

    Args:
        code: 0..127 scalar, 128..255 constants, 256.. vector registers.
        literal: the constant of code 255.
        neg, abs: float modifiers.
        high: a 16-bit operand is the register's upper half.
        short: of a 32-bit encoding, where registers from 128 on mean upper halves if the operand has 16 bits.
    """

    code: int
    literal: int = 0
    neg: bool = False
    abs: bool = False
    high: bool = False
    short: bool = False


@dataclass(frozen=True)
class Dpp:
    """Data-parallel primitive of source 0: its control word, masks, and whether lanes outside give 0.

    From 1 << 24 on, `control` holds the eight selectors of DPP8.
    """

    control: int
    row_mask: int
    bank_mask: int
    bound: bool
    inactive: bool


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Args:
        offset, size: bytes in .text.
        name: mnemonic in capitals, without the encoding's suffix.
        form: its encoding: "VOP1", "VOP3P", "SMEM" …
        raw: tinygrad's record, for fields that only one form has.
        sources: the source operands, in order.
        destination: vector or scalar register that receives the result, by number; -1 if none.
        high: a 16-bit result goes to the upper half.
        clamp, omod: output modifiers of VOP3.
        dpp: lane pattern of source 0, or None.
    """

    offset: int
    size: int
    name: str
    form: str
    raw: Any = None
    sources: tuple[Operand, ...] = ()
    destination: int = -1
    high: bool = False
    clamp: bool = False
    omod: int = 0
    dpp: Dpp | None = None

    def __str__(self) -> str:
        return f"{self.offset:#06x} {self.name.lower()}"


def decode(text: bytes, end: str = "S_ENDPGM", start: int = 0) -> list[Instruction]:
    """Decode the code of a kernel, or of a function that it calls, up to the padding that follows it.

    Args:
        text: machine code.
        end: an instruction that must be there.
        start: what the first instruction's offset is.
    Raises:
        ImportError: tinygrad is not installed.
        ValueError: the code does not end.
    """
    try:
        decode_inst = importlib.import_module("tinygrad.renderer.amd").decode_inst
        mubuf = importlib.import_module("tinygrad.runtime.autogen.amd.rdna3.ins").MUBUF
    except ImportError as error:
        raise ImportError(INSTALL) from error
    out: list[Instruction] = []
    at = 0
    while at < len(text):
        word = int.from_bytes(text[at : at + 4], "little")
        form, size = next((f for (n, value), f in OTHER_FORMATS.items() if word >> 32 - n == value), ("", 4))
        try:
            raw = None if form and form != MUBUF else (mubuf.from_bytes if form else decode_inst)(text[at : at + 16])
            after = text[at + raw.size() : at + raw.size() + 4] if raw else b""
            one = _instruction(start + at, raw, after) if raw else Instruction(start + at, size, form, form)
            # Which gfx11 does not have, and where the core would read beyond its registers.
            if raw and _ends_past_the_last(raw):
                one = Instruction(one.offset, one.size, f"{one.name}_PAST_V255", "UNKNOWN")
        except (ValueError, AssertionError):  # stops where it is reached; what follows is found again by its address
            one = Instruction(start + at, size, f"{form or 'UNKNOWN'}_{word:08X}", "UNKNOWN")
        if one.name == "S_CODE_END":
            break
        out.append(one)
        at += one.size
    if not any(i.name == end for i in out):
        raise ValueError(f"text: holds no {end.lower()}")
    return out


def _ends_past_the_last(raw: Any) -> bool:
    """Say whether an operand of several vector registers begins so late that it would end past v255."""
    near = {name: getattr(raw, name).offset for name in VECTOR_FIELDS if hasattr(type(raw), name)}
    near = {name: code for name, code in near.items() if code > VGPR + 255 - MOST_REGISTERS + 1}
    if not near:
        return False
    widths = {name: bits for name, (_, bits, _) in raw.operands.items()}
    name = raw.op.name
    if hasattr(type(raw), "saddr") and raw.saddr.offset not in (124, 127):  # the vector register is a 32-bit offset
        widths["addr"] = 32
    if type(raw).__name__ == MUBUF and not (raw.offen and raw.idxen):
        widths["vaddr"] = 32
    # Without glc an atomic returns nothing, and a comparison returns half of its data; MUBUF returns into vdata.
    if "ATOMIC" in name and "vdst" in widths:
        widths["vdst"] = 32 if not raw.glc else widths["vdst"] // (2 if "CMPSWAP" in name else 1)
    return any(code + -(-widths.get(field, 32) // 32) > VGPR + 256 for field, code in near.items())


def _instruction(at: int, raw: Any, after: bytes) -> Instruction:
    form = type(raw).__name__
    base = form.split("_")[0]
    name = raw.op.name if base != "VOPD" else "VOPD"
    for suffix in ("_E32", "_E64"):
        name = name.removesuffix(suffix)
    if base not in ("VOP1", "VOP2", "VOP3", "VOP3P", "VOP3SD", "VOPC"):
        return Instruction(at, raw.size(), name, base, raw)
    dpp, size = None, raw.size()
    if form.endswith("DPP16"):
        dpp = Dpp(raw.dpp, raw.row_mask, raw.bank_mask, bool(raw.bc), bool(raw.fi))
    first = raw.src0.offset if hasattr(type(raw), "src0") else 0
    behind = first in DPP8 or (first == DPP16 and dpp is None)  # a word that tinygrad's decoder leaves out
    word, size = int.from_bytes(after, "little"), size + 4 * behind
    if first in DPP8:  # a register and eight selectors of three bits
        dpp = Dpp(1 << 24 | word >> 8, 15, 15, True, first == DPP8[1])
    elif behind:
        dpp = Dpp(word >> 8 & 511, word >> 28, word >> 24 & 15, bool(word >> 19 & 1), bool(word >> 18 & 1))
    if dpp and dpp.control < 1 << 24 and not (dpp.control < 0x100 or dpp.control in CONTROLS):
        return Instruction(at, size, f"{name}_DPP_{dpp.control:03X}", "UNKNOWN")  # a pattern that gfx11 does not have
    names = [n for n in ("src0", "vsrc1", "src1", "src2") if hasattr(type(raw), n)]
    sources = tuple(_operand(raw, field, i, base, form.endswith("DPP16")) for i, field in enumerate(names))
    if behind:
        sources = (replace(sources[0], code=VGPR + (word & 0xFF)), *sources[1:])
    destination = raw.vdst.offset if hasattr(type(raw), "vdst") else -1
    opsel = getattr(raw, "opsel", 0)
    return Instruction(
        at, size, name, base, raw, sources, destination,
        high=base == "VOP3" and bool(opsel >> 3 & 1),
        clamp=bool(getattr(raw, "clmp", 0)), omod=getattr(raw, "omod", 0), dpp=dpp,
    )  # fmt: skip


def _operand(raw: Any, field: str, place: int, base: str, dpp: bool) -> Operand:
    register = raw.vsrc0 if dpp and place == 0 else getattr(raw, field)
    code = register.offset
    literal = getattr(raw, "literal", 0) if code == LITERAL else 0
    neg, magnitude, high = getattr(raw, "neg", 0), getattr(raw, "abs", 0), getattr(raw, "opsel", 0)
    if dpp and place < 2 and base in ("VOP1", "VOP2", "VOPC"):
        neg = getattr(raw, f"src{place}_neg") << place
        magnitude = getattr(raw, f"src{place}_abs") << place
    short = base in ("VOP1", "VOP2", "VOPC")
    return Operand(
        code, literal, bool(neg >> place & 1), bool(magnitude >> place & 1),
        high=not short and bool(high >> place & 1), short=short,
    )  # fmt: skip
