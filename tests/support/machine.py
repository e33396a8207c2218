"""What is wrong with a decode kernel's machine code, as text; and sources with one line changed, to plant it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moeracle.kernels.toolchain.compilers import SOURCES, compile_gfx

NAN_PATHS = {  # what clang makes of a bf16 conversion that quiets NaN, and of a canonicalization
    "compare for NaN": r"v_cmpx?_[uo]_f(16|32)|v_cmpx?_class_f",
    "quiet bit 0x400000": r"0x400000\b",
    "compare with the bits of infinity": r"0x7f80000[01]\b",
    "canonicalizing max": r"v_(?:dual_)?(?:pk_)?max_(?:num_)?f(?:16|32)\S* (v\d+), (v\d+), \2\b",
}
NON_TEMPORAL = r"(?:slc dlc|th:TH_LOAD_NT)"


@dataclass(frozen=True)
class Wanted:
    """What a build's machine code must hold.

    Args:
        dot2, wmma: at least so many of these instructions.
        loads: at least so many non-temporal loads of `width` bits: the weights.
        together: at least so many of them under way at once; None: all of a round.
        width: of those loads; no narrower or plain load of the same width may exist but `plain` of 128 bits (staging).
        vgprs: at most so many.
        sums: at least so many wave reductions: four row_shr additions and a permlanex16 each.
        also, never: patterns that must and must not occur.
    """

    dot2: int = 0
    wmma: int = 0
    loads: int = 0
    together: int | None = None
    width: int = 128
    plain: int = 1
    vgprs: int = 113
    sums: int = 0
    also: tuple[str, ...] = ()
    never: tuple[str, ...] = field(default=("v_div_", "ds_bpermute", "s_swappc"))


def _count(asm: str, pattern: str) -> int:
    return len(re.findall(pattern, asm))


def in_flight(asm: str, width: int) -> int:
    """Return the most weight loads under way at once, in the order of the text: a wait for n leaves the last n."""
    under_way: list[bool] = []
    most = 0
    for line in asm.splitlines():
        if load := re.match(r"\s+global_load_\w+ ", line):
            under_way.append(f"_b{width} " in load.group() and re.search(NON_TEMPORAL, line) is not None)
            most = max(most, sum(under_way))
        elif wait := re.search(r"vmcnt\((\d+)\)|s_wait_loadcnt(?:_dscnt)? (0x[0-9a-f]+)", line):
            n = int(wait.group(1) or str(int(wait.group(2), 16) >> (8 if "_dscnt" in line else 0)))
            under_way = under_way[-n:] if n else []
    return most


def complaints(asm: str, wanted: Wanted) -> list[str]:
    """List what the machine code lacks or must not have; empty where it is as it should be."""
    stated = {name: int(re.findall(rf"\.{name}:\s+(\d+)", asm)[-1]) for name in (
        "vgpr_count", "vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size")}  # fmt: skip
    found = [f"{name}: {n}" for name, n in stated.items() if name != "vgpr_count" and n]
    if stated["vgpr_count"] > wanted.vgprs:
        found.append(f"VGPRs: {stated['vgpr_count']}, at most {wanted.vgprs}")
    found += [what for what, pattern in NAN_PATHS.items() if _count(asm, pattern)]
    found += [f"{pattern}: present" for pattern in wanted.never if _count(asm, pattern)]
    found += [f"{pattern}: absent" for pattern in wanted.also if not _count(asm, pattern)]
    weights = _count(asm, rf"global_load_b{wanted.width} .*{NON_TEMPORAL}")
    together = in_flight(asm, wanted.width)
    plain = _count(asm, rf"global_load_b(64|128) (?!.*{NON_TEMPORAL})")
    for what, got, least in (
        ("v_dot2", _count(asm, r"\bv_(?:dual_)?dot2(?:acc|c)?_f32_(?:bf16|f16)"), wanted.dot2),
        ("v_wmma", _count(asm, r"\bv_wmma_f32_16x16x16"), wanted.wmma),
        (f"non-temporal loads of {wanted.width} bits", weights, wanted.loads),
        ("weight loads in flight together", together, wanted.loads if wanted.together is None else wanted.together),
        ("row_shr additions", _count(asm, r"v_add_f32_dpp .* row_shr:"), 4 * wanted.sums),
        ("v_permlanex16", _count(asm, r"v_permlanex16_b32"), wanted.sums),
    ):
        if got < least:
            found.append(f"{what}: {got}, at least {least}")
    if plain > wanted.plain:
        found.append(f"plain wide loads: {plain}, at most {wanted.plain}")
    return found


def asm_of(source: str | Path, arch: str, defines: Mapping[str, object]) -> str:
    """Return the assembly text of one build."""
    path = Path(source) if str(source).endswith(".hip") else SOURCES / f"{source}.hip"
    return compile_gfx(path, arch, None, defines).asm


def changed(folder: Path, file: str, old: str, new: str) -> Path:
    """Copy the HIP sources to a folder with one text of one file replaced; return the folder.

    Args:
        file: its name, e.g. "codes.h".
    """
    shutil.copytree(SOURCES, folder, dirs_exist_ok=True)
    text = (folder / file).read_text()
    assert old in text, f"{file} no longer holds {old!r}: plant it anew"
    (folder / file).write_text(text.replace(old, new))
    return folder
