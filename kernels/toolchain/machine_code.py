"""Reading what a compiler left: registers, spills, scratch, local memory, code size, instructions; from text and ELF.

AMD: clang's and triton's assembly text, whose metadata says what the loader will reserve. NVIDIA: PTX for instructions,
and the cubin's own records (EIATTR in .nv.info) for registers, stack and code size; no tool of CUDA is needed.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from dataclasses import dataclass, field

# Which kind each AMD mnemonic is; the first match decides.
AMD_KINDS = (
    ("wmma", r"v_s?wmmac?_"),
    ("mfma", r"v_s?mfmac?_"),
    ("dot2", r"v_(dual_)?dot2(acc|c)?_"),
    ("dot4+", r"v_dot[48]c?_"),
    ("fma", r"v_(dual_)?(pk_)?(fma|fmac|mad|mac)"),
    ("valu", r"v_"),
    ("load", r"(global|buffer|flat)_load"),
    ("store", r"(global|buffer|flat)_(store|atomic)"),
    ("scratch", r"scratch_"),
    ("lds", r"ds_"),
    ("wait", r"s_wait|s_delay|s_nop|s_clause"),
    ("branch", r"s_c?branch|s_setpc|s_endpgm"),
    ("barrier", r"s_barrier"),
    ("scalar", r"s_"),
)
PTX_KINDS = (
    ("wgmma", r"wgmma\.mma_async"),
    ("tcgen05", r"tcgen05\.mma"),
    ("mma", r"mma\.sync"),
    ("fma", r"fma\."),
    ("load", r"ld\.global|cp\.async(?!\.(commit|wait))"),
    ("store", r"st\.global|red\.|atom\."),
    ("shared", r"ld\.shared|st\.shared|ldmatrix|stmatrix"),
    ("scratch", r"(ld|st)\.local"),
    ("barrier", r"bar\.|barrier\."),
    ("branch", r"bra|ret"),
)
MATRIX = ("wmma", "mfma", "mma", "wgmma", "tcgen05")


@dataclass
class MachineCode:
    """What one kernel's machine code needs.

    Args:
        name: the kernel's.
        registers: vector registers a lane (AMD, accumulation registers included), registers a thread (NVIDIA).
        sgprs: scalar registers; 0 on NVIDIA.
        spills: vector registers that went to memory; on NVIDIA 4-byte words of stack, whose only use in these
            kernels is spilling.
        scalar_spills: scalar registers that went to lanes of a vector register (v_writelane), which costs
            instructions but no memory.
        scratch: bytes of private memory a lane.
        local: bytes of local memory known at compile time.
        code: bytes of instructions.
        threads: the largest workgroup that it was compiled for.
        waves_by_compiler: what clang's `Occupancy:` says, 0 if it does not.
        kinds: instructions by kind (AMD_KINDS, PTX_KINDS), without kinds that do not occur.
        mnemonics: instructions by mnemonic.
    """

    name: str
    registers: int
    sgprs: int = 0
    spills: int = 0
    scalar_spills: int = 0
    scratch: int = 0
    local: int = 0
    code: int = 0
    threads: int = 0
    waves_by_compiler: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    mnemonics: dict[str, int] = field(default_factory=dict)


def kinds(mnemonics: Counter[str], table: tuple[tuple[str, str], ...]) -> dict[str, int]:
    """Return how many instructions of each kind there are; the first pattern of the table that matches decides."""
    found: Counter[str] = Counter()
    for name, count in mnemonics.items():
        kind = next((kind for kind, pattern in table if re.match(pattern, name)), None)
        if kind is not None:
            found[kind] += count
    return dict(found)


def read_amd(asm: str) -> list[MachineCode]:
    """Read every kernel of an AMD assembly text.

    Args:
        asm: what clang -S or triton's asm["amdgcn"] holds.
    Raises:
        ValueError: it holds no kernel metadata.
    """
    metadata = asm.rpartition(".amdgpu_metadata")[2]
    blocks = re.split(r"^  - (?=\.\w+:)", metadata.partition("amdhsa.kernels:")[2], flags=re.M)[1:]
    if not blocks:
        raise ValueError("asm: holds no kernel metadata; must be the assembly text of AMD kernels")
    found = []
    for block in blocks:
        facts = dict(re.findall(r"^ {4}(\.\w+):\s+(\S+)", "    " + block, flags=re.M))
        name = facts[".name"]
        start = re.search(rf"^{re.escape(name)}:", asm, flags=re.M)
        if start is None:
            raise ValueError(f"asm: kernel {name} has metadata but no code")
        body, _, after = asm[start.end() :].partition(".Lfunc_end")
        mnemonics = Counter(
            re.findall(r"^\t(?:\{ )?((?:v|s|ds|global|buffer|flat|scratch|image)_\w+)", body, flags=re.M)
        )
        mnemonics.update(re.findall(r":: (v_\w+)", body))  # the second half of a dual-issue pair
        found.append(
            MachineCode(
                name,
                int(facts[".vgpr_count"]),
                int(facts[".sgpr_count"]),
                int(facts[".vgpr_spill_count"]),
                int(facts[".sgpr_spill_count"]),
                int(facts[".private_segment_fixed_size"]),
                int(facts[".group_segment_fixed_size"]),
                _note(after, "codeLenInByte"),
                int(facts.get(".max_flat_workgroup_size", 0)),
                _note(after, "Occupancy"),
                kinds(mnemonics, AMD_KINDS),
                dict(mnemonics),
            )
        )
    return found


def _note(text: str, name: str) -> int:
    found = re.search(rf"; {name}\s*[:=] (\d+)", text)
    return int(found.group(1)) if found else 0


def read_nvidia(ptx: str, cubin: bytes) -> MachineCode:
    """Read one NVIDIA kernel: its instructions from the PTX, what it needs from the cubin.

    Raises:
        ValueError: the cubin is not an ELF file of one kernel.
    """
    entry = re.search(r"\.entry (\w+)", ptx)
    if entry is None:
        raise ValueError("ptx: holds no .entry")
    body = ptx[entry.end() :]
    mnemonics = Counter(re.findall(r"^\s*(?:\{ )?(?:@!?%p\d+ )?([a-z]\w*(?:\.[\w:]+)+)", body, flags=re.M))
    threads = re.search(r"\.reqntid (\d+)", ptx)
    name = entry.group(1)
    registers, stack, code, shared = _cubin(cubin, name)
    return MachineCode(
        name,
        registers,
        spills=stack // 4,
        scratch=stack,
        local=shared,
        code=code,
        threads=int(threads.group(1)) if threads else 0,
        kinds=kinds(mnemonics, PTX_KINDS),
        mnemonics=dict(mnemonics),
    )


REGCOUNT, FRAME_SIZE = 0x2F, 0x11  # EIATTR codes: (symbol, registers) and (symbol, bytes of stack)


def _cubin(data: bytes, name: str) -> tuple[int, int, int, int]:
    """Return (registers, stack bytes, code bytes, static shared bytes) of a kernel in a cubin (ELF64)."""
    if data[:4] != b"\x7fELF":
        raise ValueError("cubin: is no ELF file")
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(count)]
    strings = sections[names][4]
    by_name = {}
    for s in sections:
        at = strings + s[0]
        by_name[data[at : data.index(b"\0", at)].decode()] = s
    info = by_name.get(".nv.info")
    registers, stack = 0, 0
    if info is not None:
        at, end = info[4], info[4] + info[5]
        while at + 4 <= end:
            kind, code, length = struct.unpack_from("<BBH", data, at)
            at += 4
            if kind == 4:  # a record with a payload
                if code in (REGCOUNT, FRAME_SIZE) and length == 8:
                    value = struct.unpack_from("<II", data, at)[1]
                    registers, stack = (value, stack) if code == REGCOUNT else (registers, max(stack, value))
                at += length
    text, shared = by_name.get(f".text.{name}"), by_name.get(f".nv.shared.{name}")
    if text is None or registers == 0:
        raise ValueError(f"cubin: says nothing of kernel {name}")
    return registers, stack, text[5], shared[5] if shared else 0
