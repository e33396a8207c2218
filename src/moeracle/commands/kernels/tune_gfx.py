"""`moeracle kernels tune --arch gfx…`: a tuning table by what the compiler says, with nothing measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from moeracle.kernels import tuned
from moeracle.kernels.toolchain.architectures import architecture
from moeracle.kernels.tune import by_compiler
from moeracle.properties.report.report import require_writable, write_json

from ..console import Progress, print_table, say
from ..options import TuneOptions
from .bench_options import left_out

MEASURED = ("kernels", "shapes", "tokens", "archetype", "dtype", "most", "seconds")  # options of measuring alone


def tune_by_compiler(options: TuneOptions) -> int:
    """Compile every tile of the search space for options.arch, print the best and write its table.

    Raises:
        ValueError: no gfx architecture, an option that only measuring has, or no tile that does not spill.
    """
    arch = architecture(options.arch or "")
    if arch.kind != "hip":
        raise ValueError(
            f"arch: got {arch.name!r}, must be a gfx architecture; an NVIDIA GPU is tuned by measuring on it"
        )
    left_out(options, MEASURED, "with --arch: nothing is measured, all is tried")
    if not options.dry:
        require_writable(tuned.FOLDER / f"{arch.name}.json")
    with tempfile.TemporaryDirectory(prefix="moeracle-tune-") as cache, Progress() as progress:
        progress.start("tune")
        env = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": cache}
        command = [sys.executable, "-m", "moeracle.kernels.tune.by_compiler", arch.name]
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stderr is not None
        tried = []
        for line in process.stdout:
            tried.append(json.loads(line))
            compiled = sum(not found.get("chosen") for found in tried)  # the chosen ones are said twice
            progress(arch.name, compiled, len(by_compiler.SPACE) * len(by_compiler.BLOCK_M) * 2)
        if process.wait():
            raise ValueError(f"tune {arch.name} failed: {(process.stderr.read().strip().splitlines() or ['?'])[-1]}")
    return write_choice(arch.name, tried, options)


def write_choice(arch: str, tried: Sequence[dict[str, Any]], options: TuneOptions) -> int:
    """Choose the best of the tiles that were compiled for an architecture, print them and write its table.

    Args:
        arch: e.g. "gfx1151".
        tried: what tune.by_compiler printed.
        options: dry writes nothing; json receives every tile tried.
    """
    best = {(found["G"], found["tile"]["block_m"]): found for found in tried if found.get("chosen")}
    tried = [found for found in tried if not found.get("chosen")]
    spilled = sum(any("spills" in text or "scratch" in text for text in f["wrong"]) for f in tried)
    rows = []
    for (group, block_m), found in best.items():
        tile = [found["tile"][name] for name in ("block_n", "block_k", "num_warps", "num_stages")]
        facts = [found["registers"], found["spills"], f"{found['waves']:g}", found["matrix"], f"{found['cost']:.1f}"]
        rows.append([f"G={group}", block_m, *tile, *facts])
    columns = ("group", "BM", "BN", "BK", "warps", "stages", "registers", "spills", "waves", "matrix", "instr/1000 MAC")
    print_table(
        columns, rows, title=f"{arch}: best of {len(tried)} compiled tiles, {spilled} of which spill; not measured"
    )
    if not options.dry:
        import triton

        made_by = {"command": f"moeracle kernels tune --arch {arch}", "triton": triton.__version__, "measured": False}
        example = architecture(arch).example[0]
        say(f"wrote {tuned.write(arch, example, arch, made_by, by_compiler.table_rows(best))}")
    if options.json is not None:
        write_json(options.json, {"arch": arch, "tried": list(tried)})
    return 0
