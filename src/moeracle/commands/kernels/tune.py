"""`moeracle kernels tune`: writes tuning tables, measured on this GPU or chosen by the compiler of another."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from moeracle.bench.problems import points
from moeracle.exit_codes import ILLEGAL, UNJUDGED
from moeracle.kernels import tuned
from moeracle.kernels.bench.cases import TOKENS, Shape
from moeracle.kernels.bench.timing import GraphTimer
from moeracle.kernels.tune import space as tune_space
from moeracle.properties.cases.optable import ROUTINGS
from moeracle.properties.report.report import require_writable, write_json
from moeracle.ref.errors import unknown
from moeracle.target.declaration import Kernel
from moeracle.target.load import load_target

from ..console import Progress, print_table, say
from ..options import TuneOptions
from . import bench_options, bench_record, tune_hopper
from .tuner import Tuner

COLUMNS = ("table", "what", "T", "rows/expert", "us", "default us", "gain", "tried", "illegal", "tile")
OF_A_TARGET = ("cases", "device", "case_timeout", "max_memory", "resume")
NOT_IN_TABLES = ("what", "layers", "gemms")  # of a row: what --json alone has


def run_tune(options: TuneOptions) -> int:
    """Write a tuning table, row by row as they are found; 1 if a tile was illegal, 3 if nothing could be tuned.

    Raises:
        ValueError: no GPU and no --arch, an unknown name, no tile that does not spill, or a file that is not writable.
    """
    if options.target is not None:
        from .tune_target import tune_target

        return tune_target(options)
    bench_options.left_out(options, OF_A_TARGET, "without a TARGET: this library's kernels have a search of their own")
    require_writable(options.json)
    if options.arch is not None:
        from .tune_gfx import tune_by_compiler

        return tune_by_compiler(options)
    shapes = bench_options.shapes_of(options.shapes)
    named = (("archetype", options.archetype, ROUTINGS), ("dtype", options.dtype, bench_options.DTYPES))
    for what, name, allowed in (*named, *(("kernel", name, tunable()) for name in options.kernels)):
        if name not in allowed:
            raise unknown(what, name, allowed)
    if tune_space.HOPPER_LAYER in options.kernels:
        tune_hopper.check_options(options)
    device = bench_options.require_gpu("tune (without --arch gfx…)")
    kernels = chosen(options.kernels)
    if any(_table(k) == tune_space.HOPPER_LAYER for k in kernels):  # where all are tuned, too
        tune_hopper.check_options(options)
    facts: Any = torch.cuda.get_device_properties(device)
    tuner = Tuner(GraphTimer(device, 200.0), device, options.most, options.seconds)
    tuner.cache_bytes = int(getattr(facts, "L2_cache_size", 50 << 20))
    places = tuned.places(device)
    if not options.dry:
        require_writable(tuned.FOLDER / f"{places[0]}.json")
    made_by = {"command": bench_record.command_line(), "torch": torch.__version__, **_triton_version()}
    kept: list[Path] = []

    def keep(row: dict[str, Any]) -> None:
        if not options.dry:
            plain = {k: v for k, v in row.items() if k not in NOT_IN_TABLES}
            kept.append(tuned.write(places[0], facts.name, places[-1], made_by, [plain]))

    rows = measure(tuner, kernels, shapes, options, keep)
    if kept:
        say(f"wrote {len(kept)} rows of {kept[0].name}")
    if options.json is not None:
        about = {"command": made_by["command"], "device": facts.name, "versions": made_by}
        write_json(options.json, {**about, "rows": rows, "illegal": tuner.illegal})
    if tuner.illegal:
        return ILLEGAL
    return 0 if rows else UNJUDGED


def chosen(names: Sequence[str]) -> list[Kernel]:
    """Return the registry's tunable kernels that run here, or those named.

    Raises:
        ValueError: one that does not run here.
    """
    held = {k.name: k for k in load_target("moeracle.kernels").kernels if k.name in tunable()}
    for name in names:
        if name not in held:
            raise ValueError(f"kernel: {name} runs on {tunable()[name].needs}, which is not here")
    return [k for k in held.values() if not names or k.name in names]


def tunable() -> dict[str, Any]:
    """Return the registry's entries that have tuning tables, by name."""
    found = {}
    for name, entry in bench_options.registered().items():
        table = tune_space.TABLE_NAME.get(name) or name
        if tune_space.TUNABLE.get(table) == entry.op:
            found[name] = entry
    return found


def _table(kernel: Kernel) -> str:
    return tune_space.TABLE_NAME.get(kernel.name, kernel.name)


def measure(
    tuner: Tuner,
    kernels: Sequence[Kernel],
    shapes: dict[str, Shape],
    options: TuneOptions,
    keep: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """Tune every bucket, print a table and return its rows; each row goes to `keep` as soon as it is found."""
    todo = [(name, shape, kernel) for name, shape in shapes.items() for kernel in kernels]
    rows: list[dict[str, Any]] = []
    with Progress() as progress:
        progress.start("tune")
        tuner.note = progress.note
        for i, (name, shape, kernel) in enumerate(todo):
            if i and name != todo[i - 1][0]:
                tuner.problems.forget()
            progress(f"{name} {kernel.name}", i, len(todo))
            for row in _rows_of(tuner, name, shape, kernel, options):
                keep(row)
                rows.append(row)
                progress(f"{name} {kernel.name} {row['what']} T={row['T']}", i, len(todo))
    print_table(COLUMNS, [_cells(row, tuner) for row in rows], text_columns=2)
    return rows


def _rows_of(tuner: Tuner, name: str, shape: Shape, kernel: Kernel, options: TuneOptions) -> Iterator[dict[str, Any]]:
    if _table(kernel) == tune_space.HOPPER_LAYER:
        for row, illegal in tune_hopper.tune_layer(tuner, name, shape, kernel, options):
            tuner.illegal += illegal
            yield row
        return
    tokens = options.tokens or TOKENS
    for point in points(kernel.op, {name: shape}, (options.archetype,), tokens, dtype=options.dtype):
        found = tuner.tune(point, kernel)
        if found:
            yield found
        else:
            tuner.note(f"{kernel.name}: nothing for {point.case()}: {kernel.why_not(point.case()) or 'no legal tile'}")


def _cells(row: dict[str, Any], tuner: Tuner) -> list[str]:
    gain = "-" if not row["default_us"] else f"{row['default_us'] / row['us']:.2f}x"
    bad = sum(i["case"] == row["case"] for i in tuner.illegal)
    tile = " ".join(f"{k}={v}" for k, v in row["tile"].items()).replace("'", "").replace(": ", "=")
    numbers = [f"{row['T']:,}", f"{row['rows_per_expert']:g}", f"{row['us']:.1f}", str(row["default_us"]), gain]
    return [row["op"], row["what"], *numbers, str(row["tried"]), str(bad), tile]


def _triton_version() -> dict[str, str]:
    triton = sys.modules.get("triton")
    return {"triton": triton.__version__} if triton is not None else {}
