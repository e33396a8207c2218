"""A compiled .hsaco: its kernels, each with its machine code, its descriptor and its argument layout.

Formats: https://llvm.org/docs/AMDGPUUsage.html (kernel descriptor, metadata in MessagePack), ELF-64.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .elf import FUNCTION, Elf, Symbol, read_elf
from .messagepack import unpack
from .names import chosen, demangled, parameters, short

BASE, REGION_BITS = (
    1 << 44,
    36,
)  # device address of the code object's image, and of each buffer behind it (source/memory.h)
WAVE32, DYNAMIC_STACK = 1 << 10, 1 << 11  # of kernel_code_properties
MOST_LDS, MOST_SCRATCH = 64 << 10, 1 << 20  # bytes of a workgroup, of a lane
KEPT_SUBNORMALS = 0xF0  # float mode: round to nearest even, subnormals of every format kept
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
    type: str = ""


@dataclass(frozen=True)
class KernelCode:
    """One kernel of a code object.

    Args:
        name: its symbol.
        path: the file that it is of.
        elf: that file's content.
        symbol: where its machine code is: from its entry, as many bytes as its symbol says.
        lds, kernarg, scratch: bytes of fixed LDS, of arguments, and of private memory a lane.
        vgprs: vector registers a lane may use.
        user_sgprs: names of what is preloaded in SGPRs, in order.
        first_system_sgpr: where the workgroup's numbers are preloaded: after the user SGPRs and their padding.
        workgroup_ids: for x, y, z: whether the workgroup's number is preloaded.
        arguments: explicit and hidden ones.
        facts: the metadata's other entries, e.g. ".vgpr_spill_count".
    """

    name: str
    path: Path
    elf: Elf = field(repr=False)
    symbol: Symbol
    lds: int
    kernarg: int
    scratch: int
    vgprs: int
    user_sgprs: tuple[str, ...]
    first_system_sgpr: int
    workgroup_ids: tuple[bool, bool, bool]
    arguments: tuple[Argument, ...]
    facts: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def text(self) -> bytes:
        """The kernel's machine code."""
        return bytes(self.elf.image[self.symbol.address : self.symbol.address + self.symbol.size])

    @cached_property
    def explicit(self) -> tuple[Argument, ...]:
        """The arguments that a launch gives."""
        return tuple(a for a in self.arguments if not a.kind.startswith("hidden_"))

    @property
    def shown(self) -> str:
        """The kernel's name as its source calls it, with template arguments."""
        return short(demangled(self.name))


def kernel_names(elf: Elf) -> list[str]:
    """Return the symbols of a code object's kernels."""
    return sorted(s[:-3] for s in elf.symbols if s.endswith(".kd"))


def read_kernel(path: str | Path, name: str | None = None, argument: str = "name") -> KernelCode:
    """Read one kernel of a .hsaco.

    Args:
        path: the code object, of any compiler, or a bundle with a part for gfx11.
        name: the kernel's symbol, its demangled name, or a part that no other has; None where the file holds one.
        argument: what messages call `name`.
    Raises:
        ValueError: not such a file, no such kernel, one compiled for waves of 64 lanes or for flushed subnormals.
    """
    elf = read_elf(path, BASE)
    return kernel_of(elf, Path(path), chosen(name, kernel_names(elf), argument))


def kernel_of(elf: Elf, path: Path, name: str) -> KernelCode:
    """Return a kernel by its symbol; `read_kernel` says what is raised."""
    at = elf.symbols[f"{name}.kd"].address
    lds, scratch, kernarg, entry, rsrc1, rsrc2, properties = struct.unpack_from("<III4xq20x4xIIH", elf.image, at)
    if not properties & WAVE32:
        raise ValueError(
            f"kernel: {demangled(name)} has waves of 64 lanes, must be compiled for 32 (-mno-wavefrontsize64)"
        )
    if rsrc1 >> 12 & 0xFF != KEPT_SUBNORMALS:
        mode = f"float mode {rsrc1 >> 12 & 0xFF:#x}"
        raise ValueError(
            f"kernel: {demangled(name)} has {mode}, must round to nearest even and keep subnormals "
            "(compile without -fgpu-flush-denormals-to-zero)"
        )
    metadata = _metadata(elf, name)
    size = elf.symbols[name].size if name in elf.symbols else 0
    types = parameters(demangled(name)) or []
    explicit = [a for a in metadata.get(".args", ()) if not a[".value_kind"].startswith("hidden_")]
    known = types if len(types) == len(explicit) else [""] * len(explicit)
    by_place = {a[".offset"]: t for a, t in zip(explicit, known, strict=True)}
    return KernelCode(
        name=name, path=path, elf=elf, symbol=Symbol(at + entry, size or len(elf.image) - at - entry, FUNCTION),
        lds=lds, kernarg=kernarg, scratch=scratch + (16 << 10 if properties & DYNAMIC_STACK else 0),
        vgprs=min(256, ((rsrc1 & 63) + 1) * 8),
        user_sgprs=tuple(what for bit, (what, _) in enumerate(USER_SGPRS) if properties >> bit & 1),
        first_system_sgpr=rsrc2 >> 1 & 31,
        workgroup_ids=(bool(rsrc2 >> 7 & 1), bool(rsrc2 >> 8 & 1), bool(rsrc2 >> 9 & 1)),
        arguments=tuple(
            Argument(a[".offset"], a[".size"], a[".value_kind"], a.get(".type_name") or by_place.get(a[".offset"], ""))
            for a in metadata.get(".args", ())
        ),
        facts={key: value for key, value in metadata.items() if key != ".args"},
    )  # fmt: skip


def _metadata(elf: Elf, name: str) -> dict[str, Any]:
    note = elf.sections[".note"]
    name_size, size, _ = struct.unpack_from("<III", note, 0)
    start = 12 + (name_size + 3) // 4 * 4
    kernels = unpack(note[start : start + size])["amdhsa.kernels"]
    found: dict[str, Any] = next(k for k in kernels if k[".symbol"] == f"{name}.kd")
    return found
