"""The ELF file of a code object: sections, symbols, the image that a loader would make of it, and the bundle around it.

Formats: ELF-64; https://llvm.org/docs/AMDGPUUsage.html (flags, relocations); https://clang.llvm.org/docs/ClangOffloadBundler.html.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

AMDGPU, BUNDLE = 224, b"__CLANG_OFFLOAD_BUNDLE__"
GFX11 = {
    0x41: "gfx1100", 0x46: "gfx1101", 0x47: "gfx1102", 0x44: "gfx1103", 0x43: "gfx1150", 0x4A: "gfx1151",
    0x55: "gfx1152", 0x58: "gfx1153", 0x54: "gfx11-generic",
}  # fmt: skip
OTHERS = {
    0x2C: "gfx900", 0x2F: "gfx906", 0x30: "gfx908", 0x3F: "gfx90a", 0x4C: "gfx942", 0x4F: "gfx950", 0x33: "gfx1010",
    0x36: "gfx1030", 0x48: "gfx1200", 0x4E: "gfx1201", 0x59: "gfx12-generic",
}  # fmt: skip
VERSIONS = {1: 3, 2: 4, 3: 5, 4: 6}  # code object versions by EI_ABIVERSION
ABS64, RELATIVE64 = 3, 13
FUNCTION = 2


@dataclass(frozen=True)
class Symbol:
    """A symbol's address, size in bytes and kind (2: a function)."""

    address: int
    size: int
    kind: int


@dataclass(frozen=True)
class Elf:
    """A code object as a loader sees it.

    Args:
        arch: e.g. "gfx1151".
        version: of the code object's format, 3 to 6.
        image: bytes at their addresses, relocations applied for an image at `base`.
        symbols: by name.
        sections: bytes by name.
    """

    arch: str
    version: int
    image: bytearray
    symbols: dict[str, Symbol]
    sections: dict[str, bytes]


def read_elf(path: str | Path, base: int) -> Elf:
    """Read a code object, or the gfx11 part of a bundle of several.

    Args:
        path: a .hsaco, .co or bundle, as clang, hipcc --genco or Triton write them.
        base: the device address at which its image will lie.
    Raises:
        ValueError: no such file, another architecture, a format that is not known; in one line.
    """
    try:
        data = _unbundled(Path(path).read_bytes(), path)
    except OSError as error:
        raise ValueError(f"path: got {path}, must be a code object that can be read ({error.strerror})") from None
    if data[:5] != b"\x7fELF\x02" or len(data) < 64 or struct.unpack_from("<H", data, 18)[0] != AMDGPU:
        raise ValueError(f"path: got {path}, must be an AMD GPU code object (ELF-64, machine 224)")
    flags, version = struct.unpack_from("<I", data, 48)[0], VERSIONS.get(data[8])
    arch = GFX11.get(flags & 0xFF)
    if arch is None:
        other = OTHERS.get(flags & 0xFF, f"machine {flags & 0xFF:#x}")
        covered = "gfx11 (gfx1100 to gfx1153): the encodings of gfx12, gfx10 and CDNA are not covered"
        raise ValueError(f"path: {path} is compiled for {other}, must be for {covered}")
    if version is None:
        raise ValueError(f"path: {path} has ABI version {data[8]}, must be a code object of version 3, 4, 5 or 6")
    try:
        return _read(data, arch, version, base)
    except (struct.error, ValueError, IndexError, KeyError) as error:
        raise ValueError(f"path: {path} is damaged: {error}") from None


def _unbundled(data: bytes, path: str | Path) -> bytes:
    if data[:4] == b"CCOB":
        raise ValueError(
            f"path: {path} is a compressed bundle; compile with --no-offload-compress or --no-gpu-bundle-output"
        )
    if not data.startswith(BUNDLE):
        return data
    (count,) = struct.unpack_from("<Q", data, len(BUNDLE))
    at, targets = len(BUNDLE) + 8, []
    for _ in range(min(count, 64)):
        offset, size, length = struct.unpack_from("<QQQ", data, at)
        target = data[at + 24 : at + 24 + length].decode(errors="replace")
        at += 24 + length
        if "gfx11" in target and size:
            return data[offset : offset + size]
        targets.append(target)
    raise ValueError(f"path: {path} is a bundle for {', '.join(targets)}, must hold a part for gfx11")


def _text(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


def _read(data: bytes, arch: str, version: int, base: int) -> Elf:
    segments, headers = struct.unpack_from("<QQ", data, 32)
    segment_size, segment_count, size, count, names = struct.unpack_from("<HHHHH", data, 54)
    loads = [struct.unpack_from("<IIQQQQQQ", data, segments + segment_size * i) for i in range(segment_count)]
    loads = [load for load in loads if load[0] == 1]
    if max((load[3] + load[6] for load in loads), default=0) > 1 << 30:
        raise ValueError("its segments are larger than 1 GiB")
    image = bytearray(max((load[3] + load[6] for load in loads), default=0) + 64)
    for _, _, offset, address, _, filed, _, _ in loads:
        image[address : address + filed] = data[offset : offset + filed]
    raw = [struct.unpack_from("<IIQQQQIIQQ", data, headers + size * i) for i in range(count)]
    strings = raw[names][4]
    sections = {_text(data, strings + r[0]): (data[r[4] : r[4] + r[5]] if r[1] != 8 else b"") for r in raw}
    table = ".symtab" if ".symtab" in sections else ".dynsym"
    symbols, listed = {}, sections[table]
    text = sections[".strtab" if table == ".symtab" else ".dynstr"]
    for at in range(0, len(listed) - 23, 24):
        name, info, _, _, value, length = struct.unpack_from("<IBBHQQ", listed, at)
        symbols[_text(text, name)] = Symbol(value, length, info & 15)
    _relocate(image, sections, base)
    return Elf(arch, version, image, symbols, sections)


def _relocate(image: bytearray, sections: dict[str, bytes], base: int) -> None:
    entries, dynamic = sections.get(".rela.dyn", b""), sections.get(".dynsym", b"")
    for at in range(0, len(entries) - 23, 24):
        place, info, addend = struct.unpack_from("<QQq", entries, at)
        kind, symbol = info & 0xFFFFFFFF, info >> 32
        if kind == ABS64:
            value = struct.unpack_from("<Q", dynamic, 24 * symbol + 8)[0] + addend
        elif kind == RELATIVE64:
            value = addend
        else:
            raise ValueError(f"relocation {kind} is not known here")
        struct.pack_into("<Q", image, place, base + value)
