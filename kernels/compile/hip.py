"""The HIP half of the compile table: each .hip file, with each set of macros that matters, as gfx machine code.

Which builds, what their machine code must hold, and how much they move is data: the "hip" part of expectations.json. A
.hip file that is not listed there is compiled with its own defaults and expects nothing, and says so.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moeracle.kernels.compile.table import complaints, expectations, facts_of
from moeracle.kernels.hip import common as hip_common
from moeracle.kernels.toolchain.architectures import Architecture, occupancy
from moeracle.kernels.toolchain.compilers import SOURCES, ToolchainError, compile_gfx
from moeracle.kernels.toolchain.machine_code import read_amd

TARGETS = ("gfx1151", "gfx1100", "gfx1201")
FALLBACK: dict[str, Any] = {"expect": [], "size": {}, "lds": "0", "bytes": "0", "builds": [{}]}
# Macros with a default in kernels/hip/source/knobs.h that formulas may name.
DEFAULTS = {"ROWS": 1, "YTILE": 2, "WAVES": 4}
_OPERATORS = {ast.Add: operator.add, ast.Mult: operator.mul, ast.FloorDiv: operator.floordiv, ast.Sub: operator.sub}


def evaluate(formula: str, names: Mapping[str, int]) -> int:
    """Return the value of a formula of integers, names, +, -, * and //.

    Raises:
        ValueError: it holds anything else, or a name that is not given.
    """

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name) and node.id in names:
            return int(names[node.id])
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return int(_OPERATORS[type(node.op)](value(node.left), value(node.right)))
        raise ValueError(f"formula: got {formula!r}, must be of integers, {', '.join(names)} and + - * //")

    return value(ast.parse(formula, mode="eval").body)


def sources() -> list[Path]:
    """List the HIP kernels."""
    return sorted(SOURCES.glob("*.hip"))


def plan_of(name: str) -> dict[str, Any]:
    """Return what expectations.json says of a .hip file, or FALLBACK."""
    listed: dict[str, Any] = expectations("hip")
    return {**FALLBACK, **listed.get(name, {})}


def macros_of(name: str, plan: Mapping[str, Any], build: Mapping[str, Any]) -> dict[str, int]:
    """Return the macros of one build: what hip/source/knobs.json chooses for its size, and then the build's own."""
    size, own = {**plan["size"], **build.get("size", {})}, dict(build.get("macros", {}))
    rows = 16 if name == "moe_wmma" else int(own.get("ROWS", 1))
    try:
        variant = f"{name}.silu_mul" if own.get("EPILOGUE") == 2 else name  # twice the weight rows: knobs of its own
        knobs = hip_common.knobs_for(variant, rows, size.get("K", 1), size.get("G", 1))
    except KeyError:  # a kernel without knobs
        knobs = {}
    return {**knobs, **own}


def rows(arch: Architecture, names: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """Yield one row for each kernel of each build of each .hip file.

    Args:
        arch: an AMD architecture.
        names: only files or kernels of these names; all if empty.
    Returns:
        Rows with the fields of compile.table.row; a file that does not compile yields its compiler's first error.
    Raises:
        ToolchainError: there is no compiler for this architecture.
    """
    for source in sources():
        plan = plan_of(source.stem)
        if names and source.stem not in names:
            continue
        for build in plan["builds"]:
            size, defines = {**plan["size"], **build.get("size", {})}, macros_of(source.stem, plan, build)
            about: dict[str, Any] = {
                "arch": arch.name,
                "kernel": source.stem,
                "entry": source.name,
                "size": _text(size),
            }
            about["constants"] = defines
            try:
                made = compile_gfx(source, arch.name, None, defines)
            except ToolchainError as error:
                if "found" in str(error) or "too old" in str(error):
                    raise
                yield {**about, "wrong": [str(error)]}
                continue
            sized = {**DEFAULTS, **size, **defines}
            local, nbytes = evaluate(plan["lds"], sized), evaluate(plan["bytes"], sized)
            for code in read_amd(made.asm):
                wrong = complaints(code, arch, plan["expect"])
                if code.registers > build.get("registers", code.registers):
                    wrong.append(f"{code.registers} registers, more than {build['registers']}")
                held = occupancy(arch, code.threads, code.registers, code.local + local, code.sgprs)
                facts = facts_of(code, held, code.local + local, nbytes)
                named = {**about, "kernel": code.name, "num_warps": code.threads // arch.lanes}
                yield {**named, **facts, "compiler": made.compiler, "expected": plan["expect"], "wrong": wrong}


def _text(size: Mapping[str, int]) -> str:
    return "-".join(f"{letter}{value}" for letter, value in size.items()) or "-"
