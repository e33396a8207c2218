"""`moeracle kernels compile`: what every kernel's machine code needs, on architectures that are not here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from moeracle.exit_codes import ILLEGAL, UNJUDGED
from moeracle.kernels.compile import hip as compile_hip
from moeracle.kernels.compile.table import TOKENS, expectations
from moeracle.kernels.registry import REGISTRY
from moeracle.kernels.toolchain.architectures import ARCHITECTURES, STRIX_HALO_GBS, architecture
from moeracle.kernels.toolchain.compilers import ToolchainError
from moeracle.properties.report.report import require_writable, write_json
from moeracle.ref.errors import unknown

from ..console import Progress, print_table, say
from ..options import CompileOptions

COLUMNS = [
    *("kernel", "build", "warps", "regs", "sgprs", "spill", "sspill", "scratch", "local", "waves", "%", "limited by")
]
COLUMNS += ["matrix", "dot2", "code", "floor us", "verdict"]
WORST = ("registers", "sgprs", "spills", "scalar_spills", "scratch", "local", "code")
# Compile-time arguments under shorter names, so that a row fits a line.
SHORT = {"BLOCK_M": "M", "BLOCK_N": "N", "BLOCK_K": "K", "GROUP": "G", "num_stages": "stages"}


def names() -> list[str]:
    """List what --kernel may name: registry entries, Triton kernels and HIP files."""
    triton = [name.removesuffix("_kernel") for name in expectations("triton")]
    return list(dict.fromkeys([e.name for e in REGISTRY] + triton + [p.stem for p in compile_hip.sources()]))


def run_compile(options: CompileOptions) -> int:
    """Compile the table, print it, and return 1 if anything spills or lacks an instruction that it must have.

    Raises:
        ValueError: an unknown architecture or kernel, a file that cannot be written, or no compiler at all.
    """
    archs = tuple(dict.fromkeys(options.archs)) or tuple(ARCHITECTURES)
    for name in archs:
        architecture(name)
    for name in options.kernels:
        if name not in names():
            raise unknown("kernel", name, names())
    require_writable(options.json)
    found, skipped = collect(archs, options)
    for arch in archs:
        mine = [row for row in found if row["arch"] == arch]
        if mine:
            _print(arch, mine)
    wrong = [row for row in found if row["wrong"]]
    for reason in (*skipped, *absent(found, archs, options.kernels if not skipped else ())):
        say(f"not compiled: {reason}")
    say(f"{len(found)} machine codes for {len(archs)} architectures, {len(wrong)} with a complaint")
    if options.json is not None:
        write_json(options.json, {"command": _command(), "versions": _versions(), "skipped": skipped, "rows": found})
    if not found:
        return UNJUDGED
    return ILLEGAL if wrong else 0


def absent(found: Sequence[dict[str, Any]], archs: Sequence[str], kernels: Sequence[str]) -> list[str]:
    """Return one line for each kernel asked for of which an architecture has nothing, and why."""
    held = {(row["arch"], name) for row in found for name in (row["entry"], row["kernel"].removesuffix("_kernel"))}
    hip = {path.stem for path in compile_hip.sources()}
    lines = []
    for name in dict.fromkeys(kernels):
        where = [arch for arch in archs if not {(arch, name), (arch, f"{name}.hip")} & held]
        why = "nothing of that name is launched there, at these T"
        if name in hip:
            where = [arch for arch in where if arch not in compile_hip.TARGETS]
            why = f"HIP is compiled for {', '.join(compile_hip.TARGETS)}"
        if where:
            lines.append(f"{name} for {', '.join(where)}: {why}")
    return lines


def collect(archs: Sequence[str], options: CompileOptions) -> tuple[list[dict[str, Any]], list[str]]:
    """Return every row of the table, and one line for each part of it that could not be made here.

    Args:
        archs: which architectures.
        options: which kernels, T and variants; jobs 0 takes one process a core.
    """
    skipped: list[str] = []
    tasks: list[tuple[str, str]] = []
    if importlib.util.find_spec("triton") is None:
        skipped.append("the Triton kernels: triton is not installed: pip install 'moeracle[triton]'")
    else:
        tasks += [("triton", arch) for arch in archs]
    tasks += [("hip", arch) for arch in archs if arch in compile_hip.TARGETS]
    found: list[dict[str, Any]] = []
    with Progress() as progress, tempfile.TemporaryDirectory(prefix="moeracle-compile-") as cache:
        progress.start("compile")
        with ThreadPoolExecutor(options.jobs or os.cpu_count() or 1) as pool:
            jobs = [pool.submit(_task, kind, arch, options, Path(cache)) for kind, arch in tasks]
            for i, job in enumerate(jobs):
                try:
                    found += job.result()
                except ToolchainError as error:
                    skipped.append(f"the HIP kernels for {tasks[i][1]}: {error}")
                progress(" ".join(tasks[i]), i + 1, len(tasks))
    return found, skipped


def _task(kind: str, arch: str, options: CompileOptions, cache: Path) -> list[dict[str, Any]]:
    if kind == "hip":
        return list(compile_hip.rows(architecture(arch), options.kernels))
    asked = {"arch": arch, "names": options.kernels, "variants": options.variants}
    if options.tokens:
        asked["tokens"] = options.tokens
    return triton_rows(asked, cache)


def triton_rows(asked: dict[str, Any], cache: Path) -> list[dict[str, Any]]:
    """Run one process of the Triton table.

    Args:
        asked: compile.table.main's.
        cache: where triton may leave files.
    Raises:
        ValueError: the process failed; the last line that it printed.
    """
    env = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache / asked["arch"])}
    command = [sys.executable, "-m", "moeracle.kernels.compile.table", json.dumps(asked)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"compiling for {asked['arch']} failed: {last}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _build(row: dict[str, Any]) -> str:
    constants = {**row.get("constants", {}), "num_stages": row.get("num_stages")}
    parts = [
        SHORT.get(k, k) + ("" if v is None else f"={v}") for k, v in constants.items() if v is not None or k.isupper()
    ]
    return " ".join(p for p in parts if not p.startswith("stages=None")) or "-"


def merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge rows that differ only in triton's specializations: the worst of each count, and every complaint."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["kernel"], _build(row), row.get("num_warps")), []).append(row)
    whole = []
    for group in groups.values():
        if "registers" not in group[0]:
            whole += group
            continue
        one = {**group[0], **{name: max(row[name] for row in group) for name in WORST}}
        fewest = min(group, key=lambda row: row["waves"])
        one |= {name: fewest[name] for name in ("waves", "limit")}
        one |= {name: min(row[name] for row in group) for name in ("matrix", "dot2")}
        one["strix_halo_us"] = (min(r["strix_halo_us"] for r in group), max(r["strix_halo_us"] for r in group))
        one["wrong"] = list(dict.fromkeys(text for row in group for text in row["wrong"]))
        whole.append(one)
    return whole


def _cells(row: dict[str, Any]) -> list[str]:
    verdict = "; ".join(row["wrong"]) or "ok"
    if "registers" not in row:
        name = row["kernel"] if row["kernel"] != "-" else row["entry"]
        return [name, _build(row), *["-"] * (len(COLUMNS) - 3), verdict]
    low, high = row["strix_halo_us"]
    floor = f"{low:g}" if low == high else f"{low:g}..{high:g}"
    counts = [
        row["num_warps"],
        row["registers"],
        row["sgprs"],
        row["spills"],
        row["scalar_spills"],
        row["scratch"],
        f"{row['local']:,}",
    ]
    waves = [f"{row['waves']:g}", f"{100 * row['waves'] / row['most_waves']:.0f}", row["limit"]]
    kernel = row["kernel"].removesuffix("_kernel")
    return [
        str(c) for c in (kernel, _build(row), *counts, *waves, row["matrix"], row["dot2"], row["code"], floor, verdict)
    ]


def _print(arch: str, rows: list[dict[str, Any]]) -> None:
    what = architecture(arch)
    whose, unit = ("thread", "warps a multiprocessor") if what.kind == "cuda" else ("lane", "waves a SIMD")
    title = (
        f"{arch}: regs a {whose}; sspill: scalar registers kept in lanes of vector ones; local: bytes of LDS or shared "
        f"memory;\nwaves: {unit}, of {what.max_waves}; matrix, dot2: instructions; floor us: fewest bytes at "
        f"{STRIX_HALO_GBS:g} GB/s (Strix Halo), an estimate"
    )
    print_table(COLUMNS, [_cells(row) for row in merged(rows)], text_columns=2, title=title)
    say()


def _command() -> str:
    return "moeracle " + " ".join(sys.argv[1:])


def _versions() -> dict[str, str]:
    import importlib.metadata as metadata

    found = {}
    for name in ("moeracle", "torch", "triton", "ziglang"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


__all__ = ["TOKENS", "collect", "merged", "names", "run_compile", "triton_rows"]
