"""`moeracle kernels bench`: judge, then time, over routings and token counts, beside a second implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from moeracle.bench.problems import Point, points
from moeracle.bench.suite import Suite
from moeracle.exit_codes import ILLEGAL, UNJUDGED
from moeracle.kernels import tuned
from moeracle.kernels.bench import report as bench_report
from moeracle.kernels.bench.cases import ARCHETYPES, TOKENS, Shape
from moeracle.kernels.bench.timing import GraphTimer, Timer, ceilings
from moeracle.properties.report.report import write_json
from moeracle.target.declaration import Kernel

from ..console import Progress, print_table, say
from ..loading import release
from . import bench_record
from .bench_options import Options, check, chosen, is_own, left_out, peers_of, places_of, require_gpu
from .bench_run import Workers, run_points
from .list import BENCHES
from .list import run_bench as run_alone

NOT_FOR_REFERENCE = (
    *("kernels", "against", "tokens", "archetypes", "shapes", "dtype", "zero", "block", "seed"),
    *("rounds", "seconds", "plot", "resume", "modifiers", "launches", "parts", "peer"),
)


def run_bench(options: Options) -> int:
    """Measure on this machine's GPU and print a table; 1 if a kernel is illegal, 3 if nothing was timed.

    The op "reference" is the reference itself, timed on the CPU; "judge" is judging, on the GPU where there is one.

    Raises:
        ValueError: what `check` refuses, no GPU here, or a kernel that runs on another one.
    """
    if len(options.ops) == 1 and options.ops[0] in BENCHES:
        left_out(options, NOT_FOR_REFERENCE, f"with --op {options.ops[0]}: it has sizes of its own")
        return run_alone(options.ops[0], options.json)
    shapes = check(options, alone=BENCHES)
    device = require_gpu("bench")
    ours, baselines = chosen(options)
    return measure(start(device, options, say), ours, baselines, shapes, options)


def start(device: str, options: Options, note: Callable[[str], None]) -> Suite:
    """Measure the device's ceilings and return a Suite on it."""
    import torch

    timer: Timer = GraphTimer(device)
    found = ceilings(timer, device)
    facts = torch.cuda.get_device_properties(device)
    note(
        f"{facts.name}: copy {found['copy_gbs']:,.0f} GB/s, read {found['read_gbs']:,.0f} GB/s, bf16 matmul "
        f"{found['tflops']:,.0f} TFLOP/s, measured now; floors use {found['gbs']:,.0f} GB/s"
    )
    torch.cuda.empty_cache()
    cache = int(getattr(facts, "L2_cache_size", 50 << 20))
    asked = (options.rounds, options.seconds, options.launches, options.parts, peers_of(options))
    return Suite(timer, found, device, cache, *asked)


def measure(
    suite: Suite, ours: Sequence[Kernel], baselines: Mapping[str, Kernel], shapes: dict[str, Shape], options: Options
) -> int:
    """Measure every point, print and write what was found, and return the exit code."""
    asked = points_of(options, shapes, ours, options.archetypes or ARCHETYPES, options.tokens or TOKENS)
    measure_points(suite, asked, ours, baselines, options, "bench")
    _print(suite, baselines)
    if options.plot is not None and suite.found:
        bench_report.plot(suite.found, options.plot, title_of(suite))
        say(f"plot: {options.plot}")
    if suite.illegal:
        return ILLEGAL
    return 0 if suite.found else UNJUDGED


def points_of(
    options: Options, shapes: dict[str, Shape], ours: Sequence[Kernel], archetypes: Sequence[str], tokens: Sequence[int]
) -> list[Point]:
    """Return what to measure, one shape after another: weights of two would not fit every GPU."""
    names = ("dtype", "zero", "block", "seed", "modifiers")
    fields = {name: getattr(options, name) for name in names}
    ops = dict.fromkeys(k.op for k in ours)
    return [
        p
        for name, shape in shapes.items()
        for op in ops
        for p in points(op, {name: shape}, archetypes, tokens, **fields)
    ]


def measure_points(
    suite: Suite,
    asked: Sequence[Point],
    ours: Sequence[Kernel],
    baselines: Mapping[str, Kernel],
    options: Options,
    who: str,
    **more: Any,
) -> None:
    """Measure the points that an earlier run did not, in the order asked, and write the file after each.

    Args:
        suite: judges and times.
        asked: every point of the table.
        ours, baselines: kernels, and second implementations by op.
        options: json, resume and jobs are read.
        who: the command's name.
        more: further fields of the file.
    Raises:
        ValueError: the file to go on with is of another run.
    """
    todo = bench_record.left(asked, ours, {})

    def save(left: int) -> None:
        if options.json is not None:
            count = {"asked": len(asked), "left": left}
            write_json(options.json, bench_record.as_json(suite, baselines, points=count, **more))

    with Progress() as progress:
        progress.start(who)
        suite.note = progress.note
        earlier = bench_record.read(options.json) if options.resume and options.json is not None else {}
        if earlier and options.json is not None:
            bench_record.go_on(suite, earlier, baselines, options.json)
            more = {"resumed": [*earlier.get("resumed", []), earlier["command"]], **more}
            todo = bench_record.left(asked, ours, earlier)
            progress.note(f"{options.json}: {len(suite.found)} rows are there, {len(todo)} points are left")
        pool = Workers(options.jobs, (*places_of(options), *filter(is_own, options.against)), _memory(suite))
        try:
            run_points(suite, todo, baselines, progress, save, pool)
        except KeyboardInterrupt:
            if options.json is not None:
                progress.note(f"stopped; {options.json} has {len(suite.found)} rows, and --resume goes on")
            raise
        finally:
            for kernel in baselines.values():
                release(kernel)
    save(0)


def _memory(suite: Suite) -> int:
    import torch

    return torch.cuda.mem_get_info(suite.device)[0] if suite.device.startswith("cuda") else 0


def _print(suite: Suite, baselines: Mapping[str, Kernel]) -> None:
    columns = list(bench_report.COLUMNS)
    if baselines:
        only = next(iter(baselines.values())) if len(baselines) == 1 else None
        columns += [f"{only.name} us" if only else "theirs us"]
        columns += ["theirs / ours"]
    counted = any("launches" in found for found in suite.found)
    for shape in dict.fromkeys(found["shape"] for found in suite.found):
        mine = sorted(
            (f for f in suite.found if f["shape"] == shape),
            key=lambda f: (f["what"], f["archetype"], f["T"], f["kernel"]),
        )
        rows = [bench_report.cells(f) for f in mine]
        rows = [r + ["-"] * (len(columns) - len(r)) for r in rows]
        if counted:
            rows = [[*r, bench_report.launches_text(f)] for r, f in zip(rows, mine, strict=True)]
        print_table([*columns, *["launches"] * counted], rows, text_columns=3, title=shape)
        say()
        split = [f for f in mine if "parts" in f]
        if split:
            print_table(*bench_report.part_table(split), text_columns=2, title=f"{shape}, alignments made before")
            say()
    tell_rest(suite)


def tell_rest(suite: Suite) -> None:
    """Say what was not timed and why, which implementations ran without a graph, and which shapes were untuned."""
    for name, case, why in suite.illegal:
        say(f"illegal, not timed: {name} on {case}: {why}")
    reasons: dict[tuple[str, str], int] = {}
    for name, _, why in suite.skipped:
        reasons[name, why] = reasons.get((name, why), 0) + 1
    for (name, why), count in reasons.items():
        say(f"skipped {count} of {name}: {why}")
    for name, note in dict.fromkeys((f["kernel"], f["note"]) for f in suite.found if f["note"]):
        say(f"note: {name}: {note}")
    for line in tuned.untuned():
        say(f"note: {line}")


def title_of(suite: Suite) -> str:
    """Return a plot's title: where, and under which ceilings."""
    gbs, tflops = suite.ceilings["gbs"], suite.ceilings["tflops"]
    return (
        f"{bench_record.gpu_name(suite.device)}; floor: active experts' bytes at {gbs:,.0f} GB/s, {tflops:,.0f} TFLOP/s"
    )
