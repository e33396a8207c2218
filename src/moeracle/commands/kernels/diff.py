"""`moeracle kernels compile --diff A B`: two builds side by side: registers, occupancy and instruction mix."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from moeracle.kernels.compile import hip as compile_hip
from moeracle.kernels.toolchain.architectures import architecture, occupancy
from moeracle.kernels.toolchain.compilers import SOURCES, compile_gfx
from moeracle.kernels.toolchain.machine_code import read_amd
from moeracle.properties.report.report import require_writable, write_json
from moeracle.ref.errors import unknown

from ..console import print_table, say
from ..options import CompileOptions
from .bench_options import left_out
from .compile import names, triton_rows

FACTS = ("registers", "sgprs", "spills", "scalar_spills", "scratch", "local", "code", "waves", "groups", "limit")
FORM = "must be NAME or NAME:MACRO=VALUE,…"


def parse(text: str) -> tuple[str, dict[str, str | None]]:
    """Split "int4_gemv:DECODE=MAGIC,ROWS=2" into a kernel's name and its macros or compile-time arguments.

    Raises:
        ValueError: it is not of that form, or nobody has a kernel of that name.
    """
    name, _, rest = text.partition(":")
    if name not in names():
        raise unknown("kernel", name, names())
    values: dict[str, str | None] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not key.replace("_", "").isalnum():
            raise ValueError(f"diff: got {text!r}, {FORM}")
        values[key] = value if equals else None
    return name, values


def macros(source: Path) -> list[str]:
    """List the macros that a .hip file or the headers beside it ask for."""
    text = "".join(path.read_text() for path in (source, *sorted(SOURCES.glob("*.h"))))
    asked = re.findall(r"^ *# *(?:ifn?def +|if defined\()([A-Z]\w*)", text, flags=re.M)
    return sorted({name for name in asked if not name.startswith("MOERACLE_")})


def facts(text: str, arch: str) -> dict[str, Any]:
    """Return one build's facts: those of FACTS, and "kinds".

    Args:
        text: a .hip kernel with any macros, or a Triton kernel with compile-time arguments that some launch of it has.
        arch: where.
    Raises:
        ValueError: the text is wrong, or no launch has these arguments (those that there are, are said).
    """
    name, values = parse(text)
    source = next((path for path in compile_hip.sources() if path.stem == name), None)
    what = architecture(arch)
    if source is not None:
        for key in values:
            if key not in macros(source):
                raise unknown("macro", key, macros(source))
        plan = compile_hip.plan_of(name)
        code = read_amd(compile_gfx(source, arch, None, values).asm)[0]
        numbers = {k: int(v) for k, v in values.items() if v is not None and v.isdigit()}
        local = code.local + compile_hip.evaluate(plan["lds"], {**compile_hip.DEFAULTS, **plan["size"], **numbers})
        held = occupancy(what, code.threads, code.registers, local, code.sgprs)
        return {**vars(code), "local": local, "waves": held.waves, "groups": held.groups, "limit": held.limit}
    with tempfile.TemporaryDirectory(prefix="moeracle-diff-") as cache:
        rows = triton_rows({"arch": arch, "names": [name]}, Path(cache))
    choices = [
        {**r.get("constants", {}), "num_warps": r.get("num_warps"), "num_stages": r.get("num_stages")} for r in rows
    ]
    for row, choice in zip(rows, choices, strict=True):
        if "registers" in row and all(str(choice.get(k)) == v for k, v in values.items()):
            return row
    held_by = "; ".join(dict.fromkeys(" ".join(f"{k}={v}" for k, v in c.items()) for c in choices))
    raise ValueError(f"diff: no launch of {name} on {arch} has {text.partition(':')[2]}; there are: {held_by}")


def run_diff(first: str, second: str, options: CompileOptions) -> int:
    """Print two builds side by side.

    Args:
        first, second: NAME or NAME:MACRO=VALUE,….
        options: one architecture (gfx1151 if none) and json; the rest must be as it is by itself.
    Raises:
        ValueError: an unknown architecture, kernel or build, an option that says nothing here, or a file that cannot be
            written.
    """
    left_out(options, ("kernels", "tokens", "variants", "jobs"), "with --diff: it names two builds")
    if len(options.archs) > 1:
        raise ValueError(f"arch: got {', '.join(options.archs)!r}, must be one with --diff")
    arch, json = options.archs[0] if options.archs else "gfx1151", options.json
    architecture(arch)
    require_writable(json)
    for text in (first, second):
        parse(text)
    ours, theirs = facts(first, arch), facts(second, arch)
    rows = [(name, _cell(ours[name]), _cell(theirs[name]), _change(ours[name], theirs[name])) for name in FACTS]
    for kind in dict.fromkeys([*ours["kinds"], *theirs["kinds"]]):
        a, b = ours["kinds"].get(kind, 0), theirs["kinds"].get(kind, 0)
        rows.append((f"  {kind}", str(a), str(b), _change(a, b)))
    total = [sum(side["kinds"].values()) for side in (ours, theirs)]
    rows.append(("instructions", str(total[0]), str(total[1]), _change(*total)))
    print_table((arch, first, second, "change"), rows)
    say("static counts: an instruction in a loop counts once")
    if json is not None:
        write_json(
            json,
            {
                "arch": arch,
                first: {k: ours[k] for k in (*FACTS, "kinds")},
                second: {k: theirs[k] for k in (*FACTS, "kinds")},
            },
        )
    return 0


def _cell(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _change(a: Any, b: Any) -> str:
    if not isinstance(a, (int, float)) or a == b:
        return ""
    return f"{b - a:+g}"
