"""`moeracle kernels scan FILE`: what a gfx11 code object holds, and whether the machine-code model covers it."""

from __future__ import annotations

from pathlib import Path

from moeracle.exit_codes import ILLEGAL
from moeracle.kernels.gfx11.scan import Scan, scan
from moeracle.properties.report.report import require_writable, write_json

from ..console import print_table, say

COLUMNS = ("kernel", "VGPRs", "SGPRs", "spills", "scratch", "LDS", "code", "instructions")
FORMAT_VERSION = 1


def run_scan(path: Path, json: Path | None) -> int:
    """Print each kernel of a code object; return 1 where one is empty or has an instruction without a model.

    Raises:
        ValueError: the file is no gfx11 code object, or `json` cannot be written.
    """
    require_writable(json)
    arch, version, found = scan(path)
    say(f"{path.name}: {arch}, code object version {version}, {len(found)} kernels")
    rows = [
        (
            k.name,
            *map(str, (k.vgprs, k.sgprs, k.spills, k.scratch, k.lds, k.code)),
            str(sum((k.mnemonics or {}).values())),
        )
        for k in found
    ]
    print_table(COLUMNS, rows, text_columns=1)
    for kernel in found:
        _say_more(kernel)
    if json is not None:
        head = {"format_version": FORMAT_VERSION, "kind": "moeracle kernels scan", "file": path.name}
        write_json(json, {**head, "arch": arch, "version": version, "kernels": [k.as_dict() for k in found]})
    return ILLEGAL if any(k.problem or k.missing for k in found) else 0


def _say_more(kernel: Scan) -> None:
    say(f"{kernel.name}:")
    if kernel.problem:
        say(f"  cannot run: {kernel.problem}")
    say(f"  arguments: {', '.join(kernel.arguments) or 'none'}")
    say(f"  hidden arguments: {', '.join(kernel.hidden) or 'none'}")
    mix = ", ".join(f"{name} {count}" for name, count in (kernel.kinds or {}).items())
    say(f"  instructions: {mix or 'none'}")
    missing = ", ".join(f"{name} (first at {at})" for name, at in (kernel.missing or {}).items())
    say(f"  without a model: {missing or 'none'}")
