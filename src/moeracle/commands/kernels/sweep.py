"""`moeracle kernels sweep`: every size from one token to thousands, and no cliff between them that is not named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from moeracle.bench.suite import Suite
from moeracle.exit_codes import ILLEGAL, UNJUDGED
from moeracle.kernels.bench import report as bench_report
from moeracle.kernels.bench.cases import Shape
from moeracle.properties.report.report import write_json
from moeracle.target.declaration import Kernel

from ..console import print_table, say
from ..options import SweepOptions
from . import bench as kernels_bench
from . import bench_options, bench_record

ALLOWED = 1.3  # of its neighbours' interpolation
COLUMNS = ("kernel", "T", "us", "x floor", "x neighbours", "tile", "tile before")


def sizes(most: int, per_octave: int = 4) -> list[int]:
    """Return T from 1 to `most`: equal steps of the logarithm, and each power of two with its two neighbours.

    Args:
        most: the largest T.
        per_octave: steps between two powers of two.
    """
    octaves = most.bit_length()
    steps = {round(2 ** (i / per_octave)) for i in range(octaves * per_octave + 1)}
    edges = {2**i + d for i in range(octaves + 1) for d in (-1, 0, 1)}
    return sorted(T for T in steps | edges | {most} if 1 <= T <= most)


def interpolated(before: tuple[int, float], at: int, after: tuple[int, float]) -> float:
    """Return microseconds at T on the straight line, in logarithms of both, between two neighbours."""
    (t0, us0), (t1, us1) = before, after
    share = (math.log(at) - math.log(t0)) / (math.log(t1) - math.log(t0))
    return math.exp(math.log(us0) * (1 - share) + math.log(us1) * share)


def mark_cliffs(rows: Sequence[dict[str, Any]], allowed: float = ALLOWED) -> list[dict[str, Any]]:
    """Add to each row its ratio to its neighbours' interpolation, and whether that makes it a cliff; return the cliffs.

    Args:
        rows: one kernel's on one shape, in any order of T; the first and the last have no two neighbours.
        allowed: the largest ratio, either way.
    """
    ordered = sorted(rows, key=lambda r: r["T"])
    for i, row in enumerate(ordered):
        row["neighbours"], row["cliff"] = None, False
        if 0 < i < len(ordered) - 1:
            before, after = ordered[i - 1], ordered[i + 1]
            line = interpolated((before["T"], before["us"]), row["T"], (after["T"], after["us"]))
            row["neighbours"] = row["us"] / line
            row["cliff"] = not 1 / allowed <= row["neighbours"] <= allowed
    return [row for row in ordered if row["cliff"]]


def run_sweep(options: SweepOptions) -> int:
    """Sweep on this machine's GPU; 1 if there is a cliff or an illegal result, 3 if nothing was timed.

    Raises:
        ValueError: no GPU here, an unknown name, or a file that cannot be written.
    """
    bench = options.as_bench()
    shapes = bench_options.check(bench)
    device = bench_options.require_gpu("sweep")
    ours, _ = bench_options.chosen(bench)
    return measure(kernels_bench.start(device, bench, say), ours, shapes, options)


def measure(suite: Suite, ours: Sequence[Kernel], shapes: dict[str, Shape], options: SweepOptions) -> int:
    """Measure every T, print the cliffs, write and draw; return the exit code."""
    bench = options.as_bench()
    tokens = options.tokens or tuple(sizes(options.most, options.per_octave))
    asked = kernels_bench.points_of(bench, shapes, ours, options.archetypes or ("uniform",), tokens)
    kernels_bench.measure_points(suite, asked, ours, {}, bench, "sweep", allowed=ALLOWED, cliffs=None)
    series: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for found in suite.found:
        series.setdefault((found["shape"], found["what"], found["archetype"], found["kernel"]), []).append(found)
    cliffs = []
    for name, rows in series.items():
        own = mark_cliffs(rows)
        cliffs += own
        far = max((max(r["neighbours"], 1 / r["neighbours"]) for r in rows if r["neighbours"]), default=1.0)
        say(f"{' '.join(name)}: {len(rows)} sizes, at most {far:.2f}x from its neighbours' line, {len(own)} cliffs")
    if cliffs:
        print_table(
            COLUMNS, [_cells(c, series) for c in cliffs], title=f"cliffs: beyond {ALLOWED}x of the neighbours' line"
        )
    kernels_bench.tell_rest(suite)
    if options.json is not None:
        written = bench_record.read(options.json)
        write_json(options.json, written | {"rows": suite.found, "cliffs": [c["case"] for c in cliffs]})
    if options.plot is not None and suite.found:
        bench_report.plot_sweep(suite.found, options.plot, kernels_bench.title_of(suite))
        say(f"plot: {options.plot}")
    if not suite.found:
        return ILLEGAL if suite.illegal else UNJUDGED
    return ILLEGAL if cliffs or suite.illegal else 0


def _cells(cliff: dict[str, Any], series: dict[tuple[str, ...], list[dict[str, Any]]]) -> list[str]:
    rows = series[cliff["shape"], cliff["what"], cliff["archetype"], cliff["kernel"]]
    before = max((r for r in rows if r["T"] < cliff["T"]), key=lambda r: r["T"])
    numbers = [f"{cliff['T']:,}", f"{cliff['us']:.1f}", f"{cliff['times_floor']:.2f}", f"{cliff['neighbours']:.2f}"]
    return [cliff["kernel"], *numbers, tile_text(cliff["tile"]), tile_text(before["tile"])]


def tile_text(tile: dict[str, Any]) -> str:
    """Return a launch's choices in one word a choice."""
    return " ".join(f"{k.removeprefix('BLOCK_')}={v}" for k, v in tile.items() if k != "kernel") or "-"
