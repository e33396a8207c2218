"""What a code object holds, kernel by kernel: registers, memory, arguments, instructions, and which have no model."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moeracle.kernels.toolchain.machine_code import AMD_KINDS, kinds

from .code_object import BASE, KernelCode, kernel_names, kernel_of
from .core import formulas
from .decode import decode
from .elf import read_elf
from .names import demangled, short
from .program import NO_EFFECT, assemble


@dataclass(frozen=True)
class Scan:
    """One kernel of a code object.

    Args:
        name: as its source calls it.
        symbol: its symbol.
        vgprs, sgprs, spills: registers, and how many vector registers went to scratch.
        scratch, lds: bytes a lane, and fixed bytes a workgroup.
        code: bytes of machine code.
        arguments: explicit ones, as "kind type" texts.
        hidden: kinds of the hidden ones.
        kinds: instructions by kind, as `moeracle kernels compile` counts them.
        mnemonics: instructions by mnemonic.
        missing: mnemonics that have no model, each with the address of its first use.
        problem: why the kernel cannot run at all, or "".
    """

    name: str
    symbol: str
    vgprs: int = 0
    sgprs: int = 0
    spills: int = 0
    scratch: int = 0
    lds: int = 0
    code: int = 0
    arguments: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    kinds: dict[str, int] | None = None
    mnemonics: dict[str, int] | None = None
    missing: dict[str, str] | None = None
    problem: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return every field, for JSON."""
        return asdict(self)


def scan(path: str | Path) -> tuple[str, int, list[Scan]]:
    """Read every kernel of a code object.

    Args:
        path: a .hsaco, .co or bundle.
    Returns:
        Its architecture, the version of its format, and a Scan of each kernel.
    Raises:
        ValueError: no such file, another architecture, a format that is not known.
        ImportError: tinygrad, which decodes, is not installed.
    """
    elf = read_elf(path, BASE)
    found = []
    for symbol in kernel_names(elf):
        try:
            found.append(_one(kernel_of(elf, Path(path), symbol)))
        except ValueError as error:
            found.append(Scan(short(demangled(symbol)), symbol, problem=str(error)))
    return elf.arch, elf.version, found


def _one(kernel: KernelCode) -> Scan:
    body = decode(kernel.text, start=kernel.symbol.address)
    mnemonics = Counter(one.name.lower() for one in body)
    missing = assemble(body, formulas()).missing
    facts = kernel.facts
    hidden = [a.kind.removeprefix("hidden_") for a in kernel.arguments if a.kind.startswith("hidden_")]
    return Scan(
        kernel.shown, kernel.name, int(facts.get(".vgpr_count", kernel.vgprs)), int(facts.get(".sgpr_count", 0)),
        int(facts.get(".vgpr_spill_count", 0)), kernel.scratch, kernel.lds, len(kernel.text),
        tuple(f"{a.type or a.kind} ({a.size} bytes)" for a in kernel.explicit), tuple(hidden),
        kinds(mnemonics, AMD_KINDS),
        dict(mnemonics.most_common()), {one.name.lower(): hex(one.offset) for one in missing},
        "empty: no code for this architecture" if {o.name for o in body} <= {*NO_EFFECT, "S_ENDPGM"} else "",
    )  # fmt: skip
