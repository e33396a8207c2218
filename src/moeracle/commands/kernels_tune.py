"""`moeracle kernels tune`: writes tuning tables, measured on this GPU or chosen by the compiler of another."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from moeracle.bench import complaint, timed
from moeracle.bench_problems import Point, Problems, points, rotation, work_of
from moeracle.cli import ILLEGAL, UNJUDGED
from moeracle.declaration import Kernel
from moeracle.kernels import tune_space, tuned
from moeracle.kernels.bench_cases import TOKENS, Shape
from moeracle.kernels.bench_timing import GraphTimer, Timer, compare
from moeracle.properties.report import write_json
from moeracle.ref.errors import unknown
from moeracle.target import load_target

from . import kernels_bench
from .console import Progress, print_table, say

COLUMNS = ("table", "what", "T", "rows/expert", "us", "default us", "gain", "tried", "illegal", "tile")


@dataclass(frozen=True)
class Options:
    """The options of `moeracle kernels tune`, as typed."""

    kernels: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    arch: str | None = None
    archetype: str = "uniform"
    dtype: str = "bf16"
    most: int = 40
    seconds: float = 0.05
    dry: bool = False
    json: Path | None = None


@dataclass
class Tuner:
    """Climbs from the tile in use to better neighbours, on one problem after another.

    Args:
        timer: the clock.
        device: where.
        most: tiles to try for each problem.
        seconds: of measuring each.
        better: a tile replaces the best so far where its time is below this share of it.
        note: told one line a problem.
    """

    timer: Timer
    device: str
    most: int = 40
    seconds: float = 0.05
    better: float = 0.99
    note: Callable[[str], None] = lambda line: None
    illegal: list[dict[str, Any]] = field(default_factory=list)
    cache_bytes: int = 50 << 20

    def __post_init__(self) -> None:
        self.problems = Problems(self.device)

    def tune(self, point: Point, kernel: Kernel) -> dict[str, Any] | None:
        """Return the row of one bucket, or None where the kernel does not take the case.

        Every tile that becomes the best so far is judged on the problem's own tensors before it does.
        """
        name = tune_space.TABLE_NAME.get(kernel.name, kernel.op)
        if kernel.why_not(point.case()) is not None:
            return None
        problems = rotation(self.problems, point, self.cache_bytes)
        N, K = next(iter(point.case().weight_shapes().values()))
        rows, E = work_of(problems[0]).rows, point.shape.E
        kind = point.case().torch_dtype
        assert kind is not None
        device = torch.device(self.device)
        first = tuned.lookup(name, N, K, E, point.case().G, kind, rows, device)
        default = tune_space.start(name, rows, E, N, K, device)
        seen: set[str] = set()
        best: dict[str, Any] | None = None
        best_us, default_us = float("inf"), None
        todo = [default, *([first] if first else []), *tune_space.neighbours(first or default)]
        while todo and len(seen) < self.most:
            tile = todo.pop(0)
            text = json.dumps(tile, sort_keys=True)
            if text in seen:
                continue
            seen.add(text)
            us = self._time(kernel, problems, name, tile)
            default_us = us if tile is default else default_us
            if us is not None and us < self.better * best_us and self._judge(kernel, problems[0], name, tile):
                best, best_us = tile, us
                if len(seen) > 2 or not first:  # go on from the better one; the table's own tile is second
                    todo = list(tune_space.neighbours(tile))
        if best is None:
            return None
        key = {"op": name, "N": N, "K": K, "E": E, "G": point.case().G, "dtype": point.dtype}
        found = {"us": round(best_us, 2), "default_us": None if default_us is None else round(default_us, 2)}
        counts = {"tried": len(seen), "case": str(point.case()), "T": point.T, "what": point.what}
        return {**key, "rows_per_expert": rows / E, "tile": best, **found, **counts}

    def _time(self, kernel: Kernel, problems: Sequence[Any], name: str, tile: dict[str, Any]) -> float | None:
        calls = [lambda p=p: timed(kernel)(*p.args.values()) for p in problems]
        try:
            with tuned.forced({name: tile}):
                return compare(self.timer, {kernel.name: calls}, rounds=7, seconds=self.seconds)[0][kernel.name].us
        except Exception:  # too much shared memory, or a tile that the compiler refuses
            return None

    def _judge(self, kernel: Kernel, problem: Any, name: str, tile: dict[str, Any]) -> bool:
        with tuned.forced({name: tile}):
            why = complaint(kernel, problem)
        if why is not None:
            self.illegal.append({"kernel": kernel.name, "case": str(problem.case), "tile": tile, "why": why})
            self.note(f"{kernel.name} is illegal with {tile}: {why}")
        return why is None


def run_tune(options: Options) -> int:
    """Write a tuning table; 1 if a tile was illegal, 3 if nothing could be tuned.

    Raises:
        ValueError: no GPU and no --arch, an unknown name, or no tile that does not spill.
    """
    if options.arch is not None:
        from .kernels_tune_gfx import tune_by_compiler

        return tune_by_compiler(options)
    shapes = kernels_bench.shapes_of(options.shapes)
    device = kernels_bench.require_gpu("tune (without --arch gfx…)")
    kernels = chosen(options.kernels)
    facts: Any = torch.cuda.get_device_properties(device)
    tuner = Tuner(GraphTimer(device, 200.0), device, options.most, options.seconds)
    tuner.cache_bytes = int(getattr(facts, "L2_cache_size", 50 << 20))
    rows = measure(tuner, kernels, shapes, options)
    places = tuned.places(device)
    if rows and not options.dry:
        made_by = {"command": "moeracle " + " ".join(sys.argv[1:]), "torch": torch.__version__, **_triton_version()}
        plain = [{k: v for k, v in row.items() if k != "what"} for row in rows]
        say(f"wrote {tuned.write(places[0], facts.name, places[-1], made_by, plain)}")
    if options.json is not None:
        write_json(options.json, {"device": facts.name, "rows": rows, "illegal": tuner.illegal})
    if tuner.illegal:
        return ILLEGAL
    return 0 if rows else UNJUDGED


def chosen(names: Sequence[str]) -> list[Kernel]:
    """Return the registry's tunable kernels, or those named.

    Raises:
        ValueError: a name that is none of them.
    """
    every = [k for k in load_target("moeracle.kernels").kernels if _table(k) in tune_space.TUNABLE]
    own = [k for k in every if tune_space.TUNABLE[_table(k)] == k.op]
    for name in names:
        if name not in {k.name for k in own}:
            raise unknown("kernel", name, [k.name for k in own])
    return [k for k in own if not names or k.name in names]


def _table(kernel: Kernel) -> str:
    return tune_space.TABLE_NAME.get(kernel.name, kernel.name)


def measure(
    tuner: Tuner, kernels: Sequence[Kernel], shapes: dict[str, Shape], options: Options
) -> list[dict[str, Any]]:
    """Tune every bucket, print a table and return its rows."""
    todo = [
        (point, kernel)
        for name, shape in shapes.items()
        for kernel in kernels
        for point in points(
            kernel.op, {name: shape}, (options.archetype,), options.tokens or TOKENS, dtype=options.dtype
        )
    ]
    rows: list[dict[str, Any]] = []
    with Progress() as progress:
        progress.start("tune")
        tuner.note = progress.note
        shape_name = ""
        for i, (point, kernel) in enumerate(todo):
            if point.shape_name != shape_name:
                tuner.problems.forget()
                shape_name = point.shape_name
            row = tuner.tune(point, kernel)
            rows += [row] if row else []
            progress(f"{shape_name} {kernel.name} {point.what} T={point.T}", i + 1, len(todo))
    print_table(COLUMNS, [_cells(row, tuner) for row in rows], text_columns=2)
    return rows


def _cells(row: dict[str, Any], tuner: Tuner) -> list[str]:
    gain = "-" if not row["default_us"] else f"{row['default_us'] / row['us']:.2f}x"
    bad = sum(i["case"] == row["case"] for i in tuner.illegal)
    tile = " ".join(f"{k}={v}" for k, v in row["tile"].items())
    numbers = [f"{row['T']:,}", f"{row['rows_per_expert']:g}", f"{row['us']:.1f}", str(row["default_us"]), gain]
    return [row["op"], row["what"], *numbers, str(row["tried"]), str(bad), tile]


def _triton_version() -> dict[str, str]:
    triton = sys.modules.get("triton")
    return {"triton": triton.__version__} if triton is not None else {}
