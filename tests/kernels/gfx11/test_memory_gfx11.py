"""Every form of memory access by itself: each width, each atomic, and buffers with their range check."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from moeracle.kernels.gfx11.code_object import BASE
from moeracle.kernels.gfx11.core import formulas
from moeracle.kernels.gfx11.decode import decode
from moeracle.kernels.gfx11.program import assemble
from moeracle.kernels.gfx11.table import encode
from support.gfx11 import FULL, State, execute, tables

pytestmark = pytest.mark.usefixtures("toolchain")
BYTES = {"8": 1, "16": 2, "32": 4, "64": 8, "96": 12, "128": 16}
EDGES = (0, 1, 5, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x3F800000, 0xBFC00000, 0x42280000)
FLOATS = (0, 0x3F800000, 0xBFC00000, 0x42280000, 0x7F800000, 0x00000001, 0xC2280000)
LANE = np.arange(32, dtype=np.uint64)
OFFSET = 32  # of the instruction


def memory() -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).integers(0, 256, 4096, dtype=np.uint8)


def signed(word: int, size: int) -> int:
    return word - (1 << 8 * size) if word >> 8 * size - 1 else word


def real(word: int, size: int) -> float:
    return float(struct.unpack("<f" if size == 4 else "<d", word.to_bytes(size, "little"))[0])


def word_of(x: float, size: int) -> int:
    return int.from_bytes(struct.pack("<f" if size == 4 else "<d", x), "little")


def edge(n: int, kind: str, size: int) -> int:
    """Return an edge of a format; as fp64, an fp32's bits are its upper half."""
    edges = FLOATS if kind == "F" else EDGES
    words = [edges[(n + 2 * i) % len(edges)] for i in range(size // 4)]
    return words[0] << 8 * size - 32 if kind == "F" else sum(word << 32 * i for i, word in enumerate(words))


def smaller(way: Callable[..., Any], read: Callable[[int, int], Any]) -> Callable[..., int]:
    return lambda old, data, expected, size: way((old, data), key=lambda word: read(word, size))


# What memory holds afterwards, from the guide's text.
CHANGES: dict[str, Callable[[int, int, int, int], int]] = {
    "SWAP": lambda old, data, expected, size: data,
    "CMPSWAP": lambda old, data, expected, size: data if old == expected else old,
    "CMPSWAP_F": lambda old, data, expected, size: data if real(old, size) == real(expected, size) else old,
    "ADD": lambda old, data, expected, size: old + data,
    "SUB": lambda old, data, expected, size: old - data,
    "RSUB": lambda old, data, expected, size: data - old,
    "CSUB": lambda old, data, expected, size: max(old - data, 0),
    "MIN_U": lambda old, data, expected, size: min(old, data),
    "MAX_U": lambda old, data, expected, size: max(old, data),
    "MIN_I": smaller(min, signed),
    "MAX_I": smaller(max, signed),
    "AND": lambda old, data, expected, size: old & data,
    "OR": lambda old, data, expected, size: old | data,
    "XOR": lambda old, data, expected, size: old ^ data,
    "INC": lambda old, data, expected, size: 0 if old >= data else old + 1,
    "DEC": lambda old, data, expected, size: data if old == 0 or old > data else old - 1,
    "ADD_F": lambda old, data, expected, size: word_of(
        float(np.float32(real(old, 4)) + np.float32(real(data, 4))), size
    ),
    "MIN_F": smaller(min, real),
    "MAX_F": smaller(max, real),
}
SAME = {"STOREXCHG": "SWAP", "CMPSTORE": "CMPSWAP"}


def forms(space: str, pattern: str) -> Iterator[tuple[str, re.Match[str]]]:
    """Return the operations of a format that match and have a model."""
    end = encode("SOPP", "S_ENDPGM", simm16=0)
    for op in getattr(tables(), f"{space}Op"):
        found = re.fullmatch(pattern, op.name)
        if found and not assemble(decode(code_of(space, op.name) + end), formulas()).missing:
            yield op.name, found


def code_of(space: str, name: str) -> bytes:
    """Encode an access at v[1:2] (in a buffer: of s[8:11]) with its data in v4 on and its result in v20 on."""
    if space == "DS":
        return encode(space, name, addr=257, data0=260, data1=262, vdst=276, offset0=OFFSET)
    if space == "MUBUF":
        data = 276 if "LOAD" in name else 260
        return encode(space, name, vaddr=257, vdata=data, srsrc=8, soffset=128, offset=OFFSET, offen=1, glc=1)
    fields = {"sve": 1} if space == "SCRATCH" else {}
    return encode(space, name, addr=257, data=260, vdst=276, saddr=124, offset=OFFSET, glc=1, **fields)


def state_of(space: str, offsets: np.ndarray[Any, Any], records: int = 4096) -> State:
    state = State()
    base = BASE if space in ("GLOBAL", "FLAT") else 0
    address = offsets.astype(np.uint64) + np.uint64(base)
    state.v[1], state.v[2] = (address & np.uint64(FULL)).astype(np.uint32), (address >> np.uint64(32)).astype(np.uint32)
    state.s[8:12] = BASE & FULL, BASE >> 32, records, 3 << 28
    return state


def run(space: str, code: bytes, state: State, held: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Execute an access on 4 KiB of memory, or of scratch (1 KiB a lane); return what they hold."""
    if space == "SCRATCH":
        state.lds[: 32 << 10] = np.tile(held[:1024], 32)
    mine = held.copy()
    execute(code, state, mine)
    return state.lds[: 32 << 10] if space == "SCRATCH" else mine


@pytest.mark.parametrize("space", ["GLOBAL", "FLAT", "SCRATCH", "MUBUF"])
def test_loads_of_every_width(space: str) -> None:
    held, seen = memory(), 0
    offsets = LANE * (16 if space == "SCRATCH" else 64)
    for name, found in forms(space, r"[A-Z]+_LOAD_(D16_)?(HI_)?([BUI])(\d+)"):
        half, upper, kind, size = found[1], found[2], found[3], BYTES[found[4]]
        state = state_of(space, offsets)
        state.v[20:24] = 0xAAAA5555
        run(space, code_of(space, name), state, held)
        for lane in (0, 3, 31):
            at = int(offsets[lane]) + OFFSET
            word = int.from_bytes(held[at : at + size].tobytes(), "little")
            if kind == "I":
                word = signed(word, size)
            if half:
                word = (word & 0xFFFF) << 16 | 0x5555 if upper else 0xAAAA0000 | word & 0xFFFF
            got = [int(state.v[20 + i, lane]) for i in range(4)]
            want = [word >> 32 * i & FULL for i in range(max(size // 4, 1))]
            assert got == want + [0xAAAA5555] * (4 - len(want)), f"{name}, lane {lane}"
        seen += 1
    assert seen == 14


@pytest.mark.parametrize("space", ["GLOBAL", "FLAT", "SCRATCH", "MUBUF"])
def test_stores_of_every_width(space: str) -> None:
    held, seen = memory(), 0
    step = 16 if space == "SCRATCH" else 64
    for name, found in forms(space, r"[A-Z]+_STORE_(D16_HI_)?B(\d+)"):
        size, state = BYTES[found[2]], state_of(space, LANE * step)
        state.v[4:8] = np.arange(128, dtype=np.uint32).reshape(4, 32) * 0x01234567 + 0x89ABCDEF
        got = run(space, code_of(space, name), state, held)
        want = np.tile(held[:1024], 32) if space == "SCRATCH" else held.copy()
        for lane in range(32):
            data = state.v[4:8, lane].tobytes()
            at = lane * step + OFFSET + (lane << 10 if space == "SCRATCH" else 0)
            want[at : at + size] = np.frombuffer(data[2:] if found[1] else data, np.uint8)[:size]
        assert np.array_equal(got, want), name
        seen += 1
    assert seen == 8


@pytest.mark.parametrize("space", ["GLOBAL", "FLAT", "MUBUF"])
def test_atomics_leave_what_the_guide_says_and_return_what_was_there(space: str) -> None:
    held, seen = memory(), 0
    for name, found in forms(space, r"[A-Z]+_ATOMIC_([A-Z]+)_([BUIF])(\d+)"):
        what, kind, size = found[1], found[2], BYTES[found[3]]
        key = f"{what}_{kind}" if what in ("MIN", "MAX") or kind == "F" else what
        state, mask = state_of(space, LANE * 64), (1 << 8 * size) - 1
        want, before = held.copy(), []
        words = size // 4
        for lane in range(32):
            old, data, expected = (edge(lane + step, kind, size) for step in (0, 3, lane % 2))
            at = lane * 64 + OFFSET
            want[at : at + size] = held[at : at + size] = np.frombuffer(old.to_bytes(size, "little"), np.uint8)
            for i in range(words):
                state.v[4 + i, lane] = data >> 32 * i & FULL
                state.v[4 + words + i, lane] = expected >> 32 * i & FULL
            after = CHANGES[key](old, data, expected, size) & mask
            want[at : at + size] = np.frombuffer(after.to_bytes(size, "little"), np.uint8)
            before.append(old)
        got = run(space, code_of(space, name), state, held)
        first = 4 if space == "MUBUF" else 20
        returned = [sum(int(state.v[first + i, lane]) << 32 * i for i in range(words)) for lane in range(32)]
        assert np.array_equal(got, want), name
        assert returned == before, name
        seen += 1
    assert seen == 31


def test_lds_atomics_leave_what_the_guide_says_and_return_what_was_there() -> None:
    seen = 0
    for name, found in forms("DS", r"DS_([A-Z]+)_RTN_([BUIF])(\d+)"):
        what, kind, size = SAME.get(found[1], found[1]), found[2], BYTES[found[3]]
        key = f"{what}_{kind}" if what in ("MIN", "MAX") or kind == "F" else what
        words, state = size // 4, state_of("DS", LANE * 64)
        before, after = [], []
        for lane in range(32):
            old, data, expected = (edge(lane + step, kind, size) for step in (0, 3, lane % 2))
            for i in range(words):
                state.v[40 + i, lane], state.v[4 + i, lane] = old >> 32 * i & FULL, data >> 32 * i & FULL
                state.v[6 + i, lane] = expected >> 32 * i & FULL
            before.append(old)
            after.append(CHANGES[key](old, data, expected, size) & (1 << 8 * size) - 1)
        first = encode("DS", f"DS_STORE_B{8 * size}", addr=257, data0=296, offset0=OFFSET)
        execute(first + code_of("DS", name), state)
        got = [int.from_bytes(state.lds[lane * 64 + OFFSET :][:size].tobytes(), "little") for lane in range(32)]
        assert got == after, name
        assert [sum(int(state.v[20 + i, lane]) << 32 * i for i in range(words)) for lane in range(32)] == before, name
        seen += 1
    assert seen == 35


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("B128", 4), ("B96", 3), ("B64", 2), ("2ADDR_B32", 2), ("2ADDR_STRIDE64_B32", 2), ("2ADDR_B64", 4),
        ("2ADDR_STRIDE64_B64", 4),
    ],
)  # fmt: skip
def test_lds_stores_and_loads_of_several_words(form: str, words: int) -> None:
    two, wide = "2ADDR" in form, words if "2ADDR" not in form else words // 2
    unit = 4 * wide * (64 if "STRIDE64" in form else 1)
    state, other = state_of("DS", LANE * (64 if two and unit < 64 else 16)), 3
    state.v[4:8] = np.arange(128, dtype=np.uint32).reshape(4, 32) + 1000
    places = {"offset0": 1, "offset1": other} if two else {"offset0": 16}
    code = encode("DS", f"DS_STORE_{form}", addr=257, data0=260, data1=260 + wide, **places)
    execute(code + encode("DS", f"DS_LOAD_{form}", addr=257, vdst=276, **places), state)
    assert np.array_equal(state.v[20 : 20 + words], state.v[4 : 4 + words])
    first = unit if two else 16
    assert state.lds[first : first + 4].view(np.uint32)[0] == 1000
    if two:
        assert state.lds[other * unit : other * unit + 4].view(np.uint32)[0] == state.v[4 + wide, 0]


NARROW = {"U8": 1, "I8": 1, "U16": 2, "I16": 2}


@pytest.mark.parametrize("name", ["U8", "I8", "U16", "I16", "U8_D16", "I8_D16_HI", "U16_D16", "U16_D16_HI"])
def test_lds_loads_of_bytes_and_halves(name: str) -> None:
    state, size = state_of("DS", LANE * 4), NARROW[name.split("_")[0]]
    state.v[4], state.v[20] = 0x80FF817F, 0x11112222
    execute(
        encode("DS", "DS_STORE_B32", addr=257, data0=260) + encode("DS", f"DS_LOAD_{name}", addr=257, vdst=276), state
    )
    word = 0x80FF817F & (1 << 8 * size) - 1
    word = signed(word, size) & FULL if name.startswith("I") else word
    if "D16" in name:
        word = word << 16 & FULL | 0x2222 if "HI" in name else 0x11110000 | word & 0xFFFF
    assert state.v[20].tolist() == [word] * 32


def buffered(name: str, records: int, select: int = 3, **fields: int) -> tuple[State, np.ndarray[Any, Any]]:
    state, held = state_of("MUBUF", LANE * 16, records), np.arange(1024, dtype=np.uint32)
    state.s[11], state.s[12] = select << 28, 64
    state.v[4:8] = 7
    names = {"vaddr": 257, "srsrc": 8, "soffset": 128, "offen": 1, "vdata": 276 if "LOAD" in name else 260, "glc": 1}
    execute(encode("MUBUF", name, **(names | fields)), state, held)
    return state, held


def test_a_buffer_reads_zero_and_drops_what_lies_outside() -> None:
    whole = np.arange(128, dtype=np.uint32).reshape(32, 4).T
    got = buffered("BUFFER_LOAD_B128", 200)[0].v[20:24]
    assert np.array_equal(got, np.where(whole < 50, whole, 0)), "word by word"
    with_scalar = buffered("BUFFER_LOAD_B128", 200, soffset=12)[0].v[20:24]
    assert np.array_equal(with_scalar, np.where(whole + 16 < 50, whole + 16, 0)), "the scalar offset shortens it"
    held = buffered("BUFFER_STORE_B128", 200)[1]
    assert held[:50].tolist() == [7] * 50
    assert held[50:].tolist() == list(range(50, 1024))
    state, held = buffered("BUFFER_ATOMIC_ADD_U64", 204)
    assert held[48:54].view(np.uint64)[0] == (49 << 32 | 48) + (7 << 32 | 7)
    assert held[52:54].tolist() == [52, 53], "an atomic is done whole or not at all"
    assert state.v[4, 13:].tolist() == [0] * 19
    assert state.v[4, 12] == 48


def test_a_buffer_of_structures_checks_index_and_offset() -> None:
    def load(select: int, **fields: int) -> list[int]:
        state = state_of("MUBUF", LANE, 6)
        state.s[9] = BASE >> 32 | 16 << 16  # structures of 16 bytes
        state.s[11], state.v[2] = select << 28, 12
        code = encode("MUBUF", "BUFFER_LOAD_B32", vaddr=257, vdata=276, srsrc=8, soffset=128, idxen=1, **fields)
        return [int(x) for x in execute(code, state, np.arange(1024, dtype=np.uint32)).v[20]]

    assert load(1) == [4 * i for i in range(6)] + [0] * 26
    assert load(0, offen=1) == [4 * i + 3 for i in range(6)] + [0] * 26
    assert load(0, offen=1, offset=4) == [0] * 32, "behind the structure"
    assert load(2) == [4 * i for i in range(32)]


def test_a_scalar_load_through_a_buffer_reads_zero_behind_its_end() -> None:
    state = state_of("MUBUF", LANE, 24)
    code = encode("SMEM", "S_BUFFER_LOAD_B128", sbase=8, sdata=20, soffset=124, offset=16)
    assert execute(code, state, np.arange(1024, dtype=np.uint32)).s[20:24].tolist() == [4, 5, 0, 0]


@pytest.mark.parametrize(("word", "bits"), [(1, 1 << 30), (3, 1 << 23)])
def test_swizzled_buffers_are_refused(word: int, bits: int) -> None:
    state = state_of("MUBUF", LANE)
    state.s[8 + word] |= bits
    with pytest.raises(RuntimeError, match="fault 11"):
        execute(code_of("MUBUF", "BUFFER_LOAD_B32"), state, memory())
