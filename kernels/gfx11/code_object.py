"""A compiled .hsaco: one kernel's machine code, its descriptor and its argument layout, read from the ELF file.

Formats: https://llvm.org/docs/AMDGPUUsage.html (kernel descriptor, metadata in MessagePack), ELF-64.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DESCRIPTOR = 64  # bytes
WAVE32 = 1 << 10  # of kernel_code_properties
# Bits of kernel_code_properties, in the order in which their SGPRs come, and how many SGPRs each takes.
USER_SGPRS = (
    ("private_segment_buffer", 4), ("dispatch_ptr", 2), ("queue_ptr", 2), ("kernarg_segment_ptr", 2),
    ("dispatch_id", 2), ("flat_scratch_init", 2), ("private_segment_size", 1),
)  # fmt: skip


@dataclass(frozen=True)
class Argument:
    """One kernel argument: bytes `offset` .. `offset + size` of the kernarg segment; kind as in the metadata."""

    offset: int
    size: int
    kind: str


@dataclass(frozen=True)
class KernelCode:
    """One kernel of a code object.

    Args:
        name: its symbol.
        text: machine code from its entry to the end of .text.
        lds, kernarg, scratch: bytes of fixed LDS, of arguments, and of private memory a lane.
        vgprs: vector registers a lane may use.
        user_sgprs: names of what is preloaded in SGPRs, in order.
        first_system_sgpr: where the workgroup's numbers are preloaded: after the user SGPRs and their padding.
        workgroup_ids: for x, y, z: whether the workgroup's number is preloaded.
        arguments: explicit and hidden ones.
    """

    name: str
    text: bytes
    lds: int
    kernarg: int
    scratch: int
    vgprs: int
    user_sgprs: tuple[str, ...]
    first_system_sgpr: int
    workgroup_ids: tuple[bool, bool, bool]
    arguments: tuple[Argument, ...]


def read_kernel(path: str | Path, name: str | None = None) -> KernelCode:
    """Read one kernel of a .hsaco.

    Args:
        path: the code object, as clang and lld write it.
        name: the kernel's symbol, or None where the file holds exactly one.
    Raises:
        ValueError: not such a file, no such kernel, or one compiled for waves of 64 lanes.
    """
    data = Path(path).read_bytes()
    if data[:5] != b"\x7fELF\x02" or struct.unpack_from("<H", data, 18)[0] != 224:
        raise ValueError(f"path: got {path}, must be an AMD GPU code object (ELF-64, machine 224)")
    sections = _sections(data)
    symbols = _symbols(data, sections)
    kernels = sorted(s[:-3] for s in symbols if s.endswith(".kd"))
    if name is None and len(kernels) == 1:
        name = kernels[0]
    if name not in kernels:
        raise ValueError(f"name: got {name!r}, must be one of {', '.join(kernels) or 'none: the file holds no kernel'}")
    at = _file_offset(sections, symbols[f"{name}.kd"])
    lds, scratch, kernarg, entry, rsrc1, rsrc2, properties = struct.unpack_from("<III4xq20x4xIIH", data, at)
    if not properties & WAVE32:
        raise ValueError(f"name: got {name}, must be compiled for waves of 32 lanes (this one has 64)")
    code = _file_offset(sections, symbols[f"{name}.kd"] + entry)
    text = next(s for s in sections.values() if s["offset"] <= code < s["offset"] + s["size"])
    return KernelCode(
        name=str(name), text=data[code : text["offset"] + text["size"]], lds=lds, kernarg=kernarg, scratch=scratch,
        vgprs=min(256, ((rsrc1 & 63) + 1) * 8),
        user_sgprs=tuple(what for bit, (what, _) in enumerate(USER_SGPRS) if properties >> bit & 1),
        first_system_sgpr=rsrc2 >> 1 & 31,
        workgroup_ids=(bool(rsrc2 >> 7 & 1), bool(rsrc2 >> 8 & 1), bool(rsrc2 >> 9 & 1)),
        arguments=_arguments(data, sections, str(name)),
    )  # fmt: skip


def _sections(data: bytes) -> dict[str, dict[str, int]]:
    start, size, count, names = struct.unpack_from("<Q10xHHH", data, 0x28)
    raw = [struct.unpack_from("<IIQQQQIIQQ", data, start + size * i) for i in range(count)]
    strings = raw[names][4]
    keys = ("name", "type", "flags", "address", "offset", "size", "link", "info", "align", "entry")
    return {_string(data, strings + r[0]): dict(zip(keys, r, strict=True)) for r in raw}


def _string(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()


def _symbols(data: bytes, sections: dict[str, dict[str, int]]) -> dict[str, int]:
    table, strings = sections[".symtab"], sections[".strtab"]["offset"]
    found = {}
    for at in range(table["offset"], table["offset"] + table["size"], 24):
        name, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", data, at)
        found[_string(data, strings + name)] = value
    return found


def _file_offset(sections: dict[str, dict[str, int]], address: int) -> int:
    for section in sections.values():
        if section["address"] and section["address"] <= address < section["address"] + section["size"]:
            return address - section["address"] + section["offset"]
    raise ValueError(f"path: address {address:#x} lies in no section: the file is damaged")


def _arguments(data: bytes, sections: dict[str, dict[str, int]], name: str) -> tuple[Argument, ...]:
    at = sections[".note"]["offset"]
    name_size, size, _ = struct.unpack_from("<III", data, at)
    start = at + 12 + (name_size + 3) // 4 * 4
    metadata, _ = _messagepack(data[start : start + size], 0)
    kernel = next(k for k in metadata["amdhsa.kernels"] if k[".name"] == name)
    return tuple(Argument(a[".offset"], a[".size"], a[".value_kind"]) for a in kernel.get(".args", ()))


def _messagepack(data: bytes, at: int) -> tuple[Any, int]:
    """Read one MessagePack value (the kinds that LLVM writes); return it and the place after it."""
    kind = data[at]
    at += 1
    if kind < 0x80:
        return kind, at
    if kind < 0x90:
        return _pairs(data, at, kind & 15)
    if kind < 0xA0:
        return _items(data, at, kind & 15)
    if kind < 0xC0:
        return data[at : at + (kind & 31)].decode(), at + (kind & 31)
    if kind in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[kind], at
    if 0xCC <= kind <= 0xD3:
        size = 1 << (kind & 3)
        return int.from_bytes(data[at : at + size], "big", signed=kind >= 0xD0), at + size
    if kind in (0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF):
        width = {0xD9: 1, 0xDB: 4, 0xDD: 4, 0xDF: 4}.get(kind, 2)
        count, at = int.from_bytes(data[at : at + width], "big"), at + width
        if kind <= 0xDB:
            return data[at : at + count].decode(), at + count
        return _items(data, at, count) if kind <= 0xDD else _pairs(data, at, count)
    if kind >= 0xE0:
        return kind - 256, at
    raise ValueError(f"path: its metadata holds a MessagePack value of kind {kind:#x}, which is not known here")


def _items(data: bytes, at: int, count: int) -> tuple[list[Any], int]:
    out = []
    for _ in range(count):
        value, at = _messagepack(data, at)
        out.append(value)
    return out, at


def _pairs(data: bytes, at: int, count: int) -> tuple[dict[Any, Any], int]:
    flat, at = _items(data, at, 2 * count)
    return dict(zip(flat[::2], flat[1::2], strict=True)), at
