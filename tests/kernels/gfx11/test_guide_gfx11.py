"""Every instruction form of the core against the ISA guide's own pseudo-code, at the edges of its operands.

The pseudo-code is AMD's, as tinygrad's tables carry it, executed by tests/support/pseudo_code.py; NaN payloads are not
modelled.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator
from functools import cache, reduce
from pathlib import Path
from typing import Any

import pytest

from moeracle.kernels.gfx11.core import formulas
from moeracle.kernels.gfx11.decode import decode
from moeracle.kernels.gfx11.program import assemble
from moeracle.kernels.gfx11.table import encode, page
from support.gfx11 import EXEC, FULL, VCC, State, execute, tables
from support.pseudo_code import Num, Run, UnsupportedError, bits, by_name, rounded, typed

pytestmark = pytest.mark.usefixtures("toolchain")
WORDS = (
    0,
    1,
    2,
    31,
    32,
    33,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    0x7FFFFF,
    0x800000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    0xFFFFFFFE,
    0x12345678,
    0xDEADBEEF,
    0x3F800000,
    0xBF800000,
    0x40490FDB,
    0xC2C80000,
    0x7F800000,
    0xFF800000,
    0x7F7FFFFF,
    0x00000001,
    0x007FFFFF,
    0x3C003C00,
    0xBC017BFF,
    0x7C00FC00,
    0x04010001,
    0x4F000000,
    0xCF000000,
    0x4F800000,
    0x3EFFFFFF,
    0x3F000000,
    0x7FC00000,
    0x7E007E00,
)
FORMS = ("VOP1", "VOP2", "VOP3", "VOP3P", "VOP3SD", "VOPC", "SOP1", "SOP2", "SOPC")
# What the pseudo-code leaves out, or says otherwise than a kernel could use it: where it is tested, or why.
ELSEWHERE = {
    **dict.fromkeys(
        ("V_FRACT_F16", "V_FRACT_F32", "V_FRACT_F64"), "clamped below 1, as LLVM expects of it; test_fractions"
    ),
    **dict.fromkeys(
        ("V_RNDNE_F16", "V_RNDNE_F32", "V_RNDNE_F64", "S_RNDNE_F16", "S_RNDNE_F32"),
        "the guide loses the sign of a zero; IEEE's is taken",
    ),
    **dict.fromkeys(
        ("V_FREXP_EXP_I32_F32", "V_FREXP_EXP_I32_F64", "V_FREXP_EXP_I16_F16"),
        "of subnormals the guide reads the field alone",
    ),
    **dict.fromkeys(
        ("V_LDEXP_F16", "V_LDEXP_F32"), "the guide rounds the power to the format first; here one rounding"
    ),
    **dict.fromkeys(
        [f"V_WMMA_{d}_16X16X16_{a}" for d, a in (("F32", "F16"), ("F32", "BF16"), ("F16", "F16"), ("BF16", "BF16"))],
        "test_matrix_gfx11",
    ),
    **dict.fromkeys(("V_WMMA_I32_16X16X16_IU8", "V_WMMA_I32_16X16X16_IU4"), "test_matrix_gfx11"),
    **dict.fromkeys(
        [f"V_CVT_{n}NORM_{k}16_F{s}" for n, s in (("", 16), ("PK_", 16), ("PK_", 32)) for k in "IU"],
        "the guide names the conversion alone: nearest even here",
    ),
    "V_DIV_SCALE_F32": "a / b against IEEE division",
    "V_DIV_SCALE_F64": "a / b",
    "V_DIV_FMAS_F32": "a / b",
    "V_DIV_FMAS_F64": "a / b",
    "V_DIV_FIXUP_F32": "a / b",
    "V_DIV_FIXUP_F64": "a / b",
    "V_DIV_FIXUP_F16": "as the fp32 form",
    "V_READFIRSTLANE_B32": "test_lanes_gfx11",
    "V_READLANE_B32": "kernels",
    "V_WRITELANE_B32": "kernels",
    "V_PERMLANE16_B32": "test_lanes_gfx11",
    "V_PERMLANE64_B32": "a no-operation in waves of 32 lanes",
    "V_PERMLANEX16_B32": "test_lanes_gfx11",
    "V_MOVRELS_B32": "kernels",
    "V_MOVRELD_B32": "kernels",
    "V_MOVRELSD_B32": "kernels",
    "V_DOT2_F32_BF16": "the guide rounds each product; here one fma each (docs/gfx11.md)",
    "V_DOT2_F32_F16": "the same",
    "V_DOT2ACC_F32_F16": "the same",
    "V_DOT2_F16_F16": "the same; test_numbers_gfx11",
    "V_DOT2_BF16_BF16": "the same; test_numbers_gfx11",
    "V_CVT_OFF_F32_I4": "the guide's table is not in the pseudo-code; test_numbers_gfx11",
    "V_TRIG_PREOP_F64": "2 / pi in parts; test_numbers_gfx11",
    "V_MOVRELSD_2_B32": "test_numbers_gfx11",
    "V_SWAPREL_B32": "test_numbers_gfx11",
    "V_SWAP_B16": "test_numbers_gfx11",
    "V_MQSAD_U32_U8": "four of V_MSAD_U8; test_numbers_gfx11",
    "S_GETPC_B64": "calls",
    "S_SETPC_B64": "calls",
    "S_SWAPPC_B64": "calls",
    "S_MOVRELS_B32": "kernels",
    "S_MOVRELS_B64": "kernels",
    "S_MOVRELD_B32": "kernels",
    "S_MOVRELD_B64": "kernels",
}


def pick(low: bool, size: int, n: int) -> Callable[..., int]:
    """Return the smaller or larger float of n, as bits: the other beside a NaN, -0 below +0."""
    kind = f"f{size}"

    def two(a: int, b: int) -> int:
        x, y = (typed(w, kind).value for w in (a, b))
        a, b = a & (1 << size) - 1, b & (1 << size) - 1
        if x != x or y != y:
            return b if x != x else a
        first = (x < y or (x == y and bool(a >> size - 1))) if low else (x > y or (x == y and not a >> size - 1))
        return a if first else b

    return lambda *words: reduce(two, words[:n])


def packed_pick(low: bool) -> Callable[[int, int, int], int]:
    one = pick(low, 16, 2)
    return lambda a, b, c: one(a, b) | one(a >> 16, b >> 16) << 16


def middle(size: int) -> Callable[[int, int, int], int]:
    low, high = pick(True, size, 2), pick(False, size, 2)

    def run(a: int, b: int, c: int) -> int:
        if any(typed(w, f"f{size}").value != typed(w, f"f{size}").value for w in (a, b, c)):
            return low(low(a, b), c)
        return high(low(a, b), low(high(a, b), c))

    return run


def sad(width: int) -> Callable[[int, int, int], int]:
    mask = (1 << width) - 1
    return lambda a, b, c: c + sum(abs((a >> i & mask) - (b >> i & mask)) for i in range(0, 32, width)) & 0xFFFFFFFF


def masked_sad(a: int, b: int, c: int) -> int:
    parts = ((a >> i & 255, b >> i & 255) for i in range(0, 32, 8))
    return c + sum(abs(x - y) for x, y in parts if y) & 0xFFFFFFFF


def four(one: Callable[[int, int, int], int]) -> Callable[[int, int, int], int]:
    """Return the four sums of bytes in 16 bits each: four bytes of a from byte i on, beside all of b."""
    return lambda a, b, c: sum(
        (one(a >> 8 * i & 0xFFFFFFFF, b, c >> 16 * i & 0xFFFF) & 0xFFFF) << 16 * i for i in range(4)
    )


def mullit(a: int, b: int, c: int) -> int:
    x, y, z = (typed(w, "f32").value for w in (a, b, c))
    least = -typed(0x7F7FFFFF, "f32").value
    wrong = y in (least, -math.inf) or y != y or z <= 0 or z != z
    return bits(Num(least, "f32")) if wrong else bits(Num(rounded(x * y, "f32"), "f32"))


def clamped(low: int, high: int, kind: str) -> Callable[[int, int], int]:
    def one(word: int) -> int:
        x = typed(word, kind).value
        return (
            0 if x != x else max(low, min(high, math.trunc(x) if abs(x) < 1e18 else math.copysign(1e18, x)))
        ) & 0xFFFF

    return lambda a, b, *_: int(one(a)) | int(one(b)) << 16


def in_class(size: int) -> Callable[[int, int], int]:
    exponent, fraction = {16: (5, 10), 32: (8, 23), 64: (11, 52)}[size]

    def run(word: int, mask: int) -> int:
        sign, e, f = word >> size - 1 & 1, word >> fraction & (1 << exponent) - 1, word & (1 << fraction) - 1
        if e == (1 << exponent) - 1:
            which = 1 if f else (2 if sign else 9)
        else:
            which = (5 if sign else 6) if not e and not f else ((4 if sign else 7) if not e else (3 if sign else 8))
        return mask >> which & 1

    return run


def toward_zero(word: int) -> int:
    x = typed(word, "f32").value
    sign = word >> 16 & 0x8000
    if x != x or math.isinf(x):
        return sign | (0x7E00 if x != x else 0x7C00)
    half = bits(Num(rounded(min(abs(x), 65504.0), "f16"), "f16"))
    return sign | (half - 1 if typed(half, "f16").value > abs(x) else half)


def perm(high: int, low: int, select: int) -> int:
    both = high << 32 | low
    picks = [select >> 8 * i & 255 for i in range(4)]
    byte = [
        255 if p >= 13 else 0 if p == 12 else 255 * (both >> 16 * (p - 8) + 15 & 1) if p >= 8 else both >> 8 * p & 255
        for p in picks
    ]
    return int.from_bytes(bytes(byte), "little")


def leading(size: int) -> Callable[[int], int]:
    return lambda x: size - x.bit_length() if x else 0xFFFFFFFF


def trailing(x: int) -> int:
    return (x & -x).bit_length() - 1 if x else 0xFFFFFFFF


def signs(size: int) -> Callable[[int], int]:
    full = (1 << size) - 1
    return lambda x: leading(size)(x ^ full if x >> size - 1 else x)


def mirrored(size: int) -> Callable[[int], int]:
    return lambda x: int(f"{x:0{size}b}"[::-1], 2)


def mad(signed: bool) -> Callable[[int, int, int], int]:
    one = "i32" if signed else "u32"
    return lambda a, b, c: typed(a, one).value * typed(b, one).value + c & (1 << 64) - 1


# Formulas in grammar that pseudo_code.py does not read, written again from the guide's text.
BY_HAND: dict[str, Callable[..., int]] = {
    **{f"V_{n}_F{s}": pick(n == "MIN", s, 2) for n in ("MIN", "MAX") for s in (16, 32, 64)},
    **{f"V_{n}3_F{s}": pick(n == "MIN", s, 3) for n in ("MIN", "MAX") for s in (16, 32)},
    **{f"S_{n}_F{s}": pick(n == "MIN", s, 2) for n in ("MIN", "MAX") for s in (16, 32)},
    **{f"V_PK_{n}_F16": packed_pick(n == "MIN") for n in ("MIN", "MAX")},
    **{f"V_MAXMIN_F{s}": (lambda a, b, c, s=s: pick(True, s, 2)(pick(False, s, 2)(a, b), c)) for s in (16, 32)},
    **{f"V_MINMAX_F{s}": (lambda a, b, c, s=s: pick(False, s, 2)(pick(True, s, 2)(a, b), c)) for s in (16, 32)},
    "V_MED3_F32": middle(32),
    "V_MED3_F16": middle(16),
    "V_SAD_U8": sad(8),
    "V_SAD_U16": sad(16),
    "V_SAD_U32": sad(32),
    "V_SAD_HI_U8": lambda a, b, c: (sad(8)(a, b, 0) << 16) + c & 0xFFFFFFFF,
    "V_MSAD_U8": masked_sad,
    "V_QSAD_PK_U16_U8": four(sad(8)),
    "V_MQSAD_PK_U16_U8": four(masked_sad),
    "V_MULLIT_F32": mullit,
    "V_SAT_PK_U8_I16": lambda a: sum(max(0, min(255, typed(a >> 16 * i, "i16").value)) << 8 * i for i in range(2)),
    "V_PERM_B32": perm,
    "V_MAD_U64_U32": mad(False),
    "V_MAD_I64_I32": mad(True),
    "V_CVT_PK_I16_F32": clamped(-(2**15), 2**15 - 1, "f32"),
    "V_CVT_PK_U16_F32": clamped(0, 2**16 - 1, "f32"),
    "V_CVT_PK_I16_I32": clamped(-(2**15), 2**15 - 1, "i32"),
    "V_CVT_PK_U16_U32": clamped(0, 2**16 - 1, "u32"),
    **{f"V_CMP{x}_CLASS_F{s}": in_class(s) for x in ("", "X") for s in (16, 32, 64)},
    "V_CVT_PK_RTZ_F16_F32": lambda a, b: toward_zero(a) | toward_zero(b) << 16,
    "S_CVT_PK_RTZ_F16_F32": lambda a, b: toward_zero(a) | toward_zero(b) << 16,
    "V_BFREV_B32": mirrored(32),
    "S_BREV_B32": mirrored(32),
    "S_BREV_B64": mirrored(64),
    "V_CLZ_I32_U32": leading(32),
    "S_CLZ_I32_U32": leading(32),
    "S_CLZ_I32_U64": leading(64),
    "V_CTZ_I32_B32": trailing,
    "S_CTZ_I32_B32": trailing,
    "S_CTZ_I32_B64": trailing,
    "V_CLS_I32": signs(32),
    "S_CLS_I32": signs(32),
    "S_CLS_I32_I64": signs(64),
}


def forms() -> Iterator[tuple[str, Any]]:
    ins = tables()
    for form in FORMS:
        for op in getattr(ins, f"{form}Op"):
            name = re.sub(r"_E(32|64)$", "", op.name)
            if (form == "VOP3" and f"{name}_E32" in VOP12) or name not in by_name():
                continue
            yield form, op


# Grammar that pseudo_code.py does not read; those with a number in the guide's text are tested by kernels.
UNREAD = {
    "S_CEIL_F16",
    "S_FLOOR_F16",
    "V_SIN_F32",
    "V_COS_F32",
    "V_SIN_F16",
    "V_COS_F16",
    "V_FREXP_MANT_F64",
    "V_FREXP_MANT_F32",
    "V_FREXP_MANT_F16",
    "V_RCP_F16",
    "V_RSQ_F16",
    "V_EXP_F16",
    "V_FLOOR_F16",
    "V_CEIL_F16",
    "V_FMAC_DX9_ZERO_F32",
}
VOP12: set[str] = set()


@pytest.fixture(scope="module")
def known(toolchain: None) -> list[tuple[str, Any]]:
    ins = tables()
    VOP12.update(op.name for form in ("VOP1", "VOP2", "VOPC") for op in getattr(ins, f"{form}Op"))
    return list(forms())


@cache
def edges_of(seed: int) -> State:
    """Return registers that hold edges and, each fifth, other words."""
    rng, state = random.Random(seed), State()
    for r in range(10, 70):
        state.v[r] = [rng.choice(WORDS) if rng.random() < 0.8 else rng.getrandbits(32) for _ in range(32)]
        state.s[r] = rng.choice(WORDS)
    state.s[VCC], state.scc = rng.getrandbits(32), seed & 1
    return state


def setup(form: str, op: Any, seed: int) -> tuple[bytes, State, list[str], int, int]:
    """Return an instruction's bytes, a state of edges, its sources' names, and how many registers a field takes."""
    ins = tables()
    fields: dict[str, int] = {}
    names = {
        "VOP1": ["src0"],
        "VOP2": ["src0", "vsrc1"],
        "VOPC": ["src0", "vsrc1"],
        "SOP1": ["ssrc0"],
        "SOP2": ["ssrc0", "ssrc1"],
        "SOPC": ["ssrc0", "ssrc1"],
    }
    sources = names.get(form, ["src0", "src1", "src2"])
    vector = form.startswith("V")
    for i, source in enumerate(sources):
        fields[source] = (256 if vector else 0) + 10 * (i + 1)
    if form.startswith("VOP3") and ("CNDMASK" in op.name or "_CI_" in op.name):
        fields["src2"] = 30  # a lane mask
    if form != "VOPC" and form != "SOPC":
        fields["vdst" if vector else "sdst"] = (256 if vector else 0) + 60
    if form == "VOP3SD":
        fields["sdst"] = 70
    edges = edges_of(seed)
    state = State(edges.v.copy(), edges.s.copy(), edges.scc)
    kind = form
    if form == "VOP1" and "READFIRSTLANE" in op.name:
        kind = "VOP1_SDST"
    code = encode(kind, op.name, **fields)
    raw = decode(code + encode("SOPP", "S_ENDPGM", simm16=0))[0].raw
    return code, state, sources, raw.op_regs, getattr(ins, form)


def value(state: State, register: int, lane: int, words: int, vector: bool) -> int:
    at = register * 10 + 10
    return sum(int(state.v[at + i][lane] if vector else state.s[at + i]) << 32 * i for i in range(words))


def same(got: int, want: Num | None, text: str, size: int, loose: int) -> bool:
    """Say whether bits are equal, or both a NaN, or nearly equal where the guide has no formula of bits."""
    word = bits(want) & (1 << size) - 1
    if got == word:
        return True
    kinds = re.findall(r"D0(?:\[[^]]*\])?\.(\w+)", text)
    for kind, width, top in (("f16", 16, 0x7C00), ("f32", 32, 0x7F800000), ("f64", 64, 0x7FF << 52)):
        if kind in kinds or (kind == "f16" and "f16" in text):
            nan = [
                all(w >> s & (1 << width - 1) - 1 > top for w in (got, word))
                or got >> s & (1 << width) - 1 == word >> s & (1 << width) - 1
                for s in range(0, size, width)
            ]
            if all(nan):
                return True
    return bool(loose) and abs(got - word) <= loose


def mismatch(form: str, op: Any, seed: int) -> str:
    """Return what differs between the core and the guide in one execution, or ""."""
    name = re.sub(r"_E(32|64)$", "", op.name)
    text, vector = by_name()[name], form.startswith("V")
    code, before, sources, regs, _ = setup(form, op, seed)
    after = execute(code, State(before.v.copy(), before.s.copy(), before.scc))
    loose = 1 if re.search(r"_(SIN|COS|EXP|LOG|RSQ)_", name) else 0
    mask = 0
    for lane in range(32 if vector else 1):
        given = {
            "laneId": Num(lane, "u32"),
            "VCC": Num(int(before.s[VCC]), "b64"),
            "EXEC": Num(FULL, "b64"),
            "SCC": Num(before.scc, "u1"),
        }
        for i, source in enumerate(sources):
            words = regs.get(source if source in regs else source.lstrip("v"), 1)
            given[f"S{i}"] = Num(value(before, i, lane, words, vector), f"b{32 * words}")
        if "CNDMASK" in name or "_CI_" in name:
            given["VCC"] = given["S2"] = Num(int(before.s[30 if form.startswith("VOP3") else VCC]), "b64")
        given |= {"OPSEL": Num(0, "b8"), "NEG": Num(0, "b8")}
        given["OPSEL_HI"], given["S"] = Num(7, "b8"), [given.get(f"S{i}", Num(0, "b32")) for i in range(3)]
        wide = regs.get("vdst" if vector else "sdst", 1)
        given["D0"] = Num(value(before, 5, lane, 2, vector), "b64")
        if name in BY_HAND:
            args = [bits(given[f"S{i}"]) for i in range(len(sources))]
            out = {"D0": Num(BY_HAND[name](*args), "b64")}
            out |= {"EXEC": Num(bits(out["D0"]) << lane, "b64")} if "CMPX" in name else {}
            if form == "VOPC":
                out["D0"] = Num(bits(out["D0"]) << lane, "b64")
        else:
            out = Run(text, given).names
        if form == "VOPC":
            target = out["EXEC" if "CMPX" in name else "D0"]
            mask |= (bits(target) >> lane & 1) << lane
            continue
        if form == "SOPC":
            if after.scc != int(bool(out["SCC"].value)):
                return f"{name}: scc {after.scc} for {[hex(bits(given[s])) for s in ('S0', 'S1')]}"
            continue
        got = value(after, 5, lane, wide, vector)
        size = 16 if vector and re.search(r"D0\.([fuib])16", text) and "D0.b32" not in text else 32 * wide
        if size == 16 and got >> 16 != value(before, 5, lane, 1, vector) >> 16:
            return f"{name}: the upper half changed"
        if not same(got & (1 << size) - 1, out["D0"], text, size, loose):
            shown = [hex(bits(given[f"S{i}"])) for i in range(len(sources))]
            return f"{form} {name} lane {lane}: got {got:#x}, the guide says {bits(out['D0']):#x} for {shown}"
        if not vector and "SCC" in text and after.scc != int(bool(out["SCC"].value)):
            return f"{name}: scc {after.scc} for {[hex(bits(given[f'S{i}'])) for i in range(len(sources))]}"
    if form == "VOPC":
        target = int(after.s[EXEC if "CMPX" in name else VCC])
        if target != mask:
            return f"{name}: lanes {target:#x}, the guide says {mask:#x}"
    return ""


def test_every_form_is_the_guides(known: list[tuple[str, Any]]) -> None:
    seen, unread, wrong = 0, {}, []
    for form, op in known:
        name = re.sub(r"_E(32|64)$", "", op.name)
        if name in ELSEWHERE:
            continue
        try:
            code = setup(form, op, 0)[0]
        except (ValueError, RuntimeError, AssertionError):
            continue
        if assemble(decode(code + encode("SOPP", "S_ENDPGM", simm16=0)), formulas()).missing:
            continue  # no model: it stops with its name
        try:
            found = next((m for m in (mismatch(form, op, seed) for seed in range(2)) if m), "")
        except RuntimeError as error:
            found = f"{name}: {error}"
        except (UnsupportedError, KeyError, ValueError, OverflowError, TypeError) as error:
            unread[name] = f"{type(error).__name__} {error}"
            continue
        seen += 1
        if found:
            wrong.append(found)
    assert not wrong, "\n".join(wrong)
    assert set(unread) == UNREAD, unread
    assert seen > 500


def test_another_formula_is_seen(known: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    ops = {op.name: (form, op) for form, op in known}
    for name, other in (
        ("V_ADD_F32", "D0.f32 = S0.f32 - S1.f32"),
        ("V_CMP_LT_I32", "D0.u64[laneId] = S0.i32 <= S1.i32"),
    ):
        form, op = ops[f"{name}_E32"]
        assert mismatch(form, op, 0) == ""
        monkeypatch.setitem(by_name(), name, other)
        assert name in mismatch(form, op, 0)


def test_the_page_of_instructions_is_what_the_core_has(toolchain: None) -> None:
    written = Path(__file__).parents[3] / "docs" / "gfx11-instructions.md"
    made = "python -m moeracle.kernels.gfx11.table > docs/gfx11-instructions.md"
    assert written.read_text() == page(), f"make it again: {made}"
