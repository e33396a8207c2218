"""`moeracle kernels bench`: judge, then time, over routings and token counts, beside a second implementation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeracle.bench import Suite
from moeracle.bench_problems import points
from moeracle.cli import ILLEGAL, UNJUDGED
from moeracle.declaration import OPS, Kernel
from moeracle.kernels import bench_report, tuned
from moeracle.kernels.bench_cases import ARCHETYPES, SHAPES, TOKENS, Shape, shape_named
from moeracle.kernels.bench_timing import GraphTimer, Timer, ceilings
from moeracle.properties.optable import ROUTINGS
from moeracle.properties.report import require_writable, write_json
from moeracle.ref.errors import unknown
from moeracle.target import OWN, load_target

from .console import Progress, print_table, say

OPS_BY_DEFAULT = ("grouped_gemm", "padded_gemm", "moe_w4a16")


@dataclass(frozen=True)
class Options:
    """The options of `moeracle kernels bench`, as typed."""

    ops: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    against: str | None = None
    tokens: tuple[int, ...] = ()
    archetypes: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    dtype: str = "bf16"
    zero: str = "sym"
    block: int = 16
    seed: int = 1
    rounds: int = 30
    seconds: float = 0.3
    json: Path | None = None
    plot: Path | None = None


def require_gpu(what: str) -> str:
    """Return the device to measure on.

    Raises:
        ValueError: torch sees no GPU here.
    """
    import torch

    if not torch.cuda.is_available():
        raise ValueError(f"{what}: needs a GPU, and torch sees none here; `moeracle kernels compile` needs none")
    return "cuda"


def chosen(options: Options) -> tuple[list[Kernel], Kernel | None]:
    """Return the registry's kernels to time, and the one to compare them with.

    Raises:
        ValueError: an unknown kernel, or a TARGET that does not load or has no kernel, or several, for these ops.
    """
    # HIP kernels, which are built when first called, only if they are named.
    held = [k for place in (OWN if options.kernels else ("moeracle.kernels",)) for k in load_target(place).kernels]
    for name in options.kernels:
        if name not in {k.name for k in held}:
            raise unknown("kernel", name, [k.name for k in held])
    ops = options.ops or (tuple(dict.fromkeys(k.op for k in held if k.name in options.kernels)) or OPS_BY_DEFAULT)
    ours = [k for k in held if k.op in ops and (not options.kernels or k.name in options.kernels)]
    if not ours:
        raise ValueError(f"kernel: none of {', '.join(options.kernels)} implements {', '.join(ops)}")
    if options.against is None:
        return ours, None
    theirs = [k for k in load_target(options.against).kernels if k.op in {o.op for o in ours}]
    if len(theirs) != 1:
        found = ", ".join(f"{k.name} ({k.op})" for k in theirs) or "none"
        raise ValueError(f"against: got {options.against!r} with {found}, must name one kernel of the op (module:name)")
    return [k for k in ours if k.op == theirs[0].op], theirs[0]


def shapes_of(names: Sequence[str]) -> dict[str, Shape]:
    """Return the shapes to measure; every named one if none is asked for."""
    return {name: shape_named(name) for name in names} or dict(SHAPES)


def run_bench(options: Options) -> int:
    """Measure on this machine's GPU and print a table; 1 if a kernel is illegal, 3 if nothing was timed.

    Raises:
        ValueError: no GPU here, an unknown name, or a file that cannot be written.
    """
    for archetype in options.archetypes:
        if archetype not in ROUTINGS:
            raise unknown("archetype", archetype, ROUTINGS)
    shapes = shapes_of(options.shapes)
    _check_files(options)
    for op in options.ops:
        if op not in OPS:
            raise unknown("op", op, ("reference", *OPS))
    device = require_gpu("bench")
    ours, theirs = chosen(options)
    suite = start(device, options, theirs, say)
    return measure(suite, ours, theirs, shapes, options)


def _check_files(options: Any) -> None:
    for path in (options.json, options.plot):
        require_writable(path)
    if options.plot is not None:
        bench_report.require_matplotlib()


def start(device: str, options: Options, theirs: Kernel | None, note: Callable[[str], None]) -> Suite:
    """Measure the device's ceilings and return a Suite on it."""
    import torch

    timer: Timer = GraphTimer(device)
    found = ceilings(timer, device)
    facts = torch.cuda.get_device_properties(device)
    note(
        f"{facts.name}: copy {found['copy_gbs']:,.0f} GB/s, read {found['read_gbs']:,.0f} GB/s, bf16 matmul "
        f"{found['tflops']:,.0f} TFLOP/s, measured now; floors use {found['gbs']:,.0f} GB/s"
    )
    cache = int(getattr(facts, "L2_cache_size", 50 << 20))
    return Suite(timer, found, device, cache, options.rounds, options.seconds)


def measure(
    suite: Suite, ours: Sequence[Kernel], theirs: Kernel | None, shapes: dict[str, Shape], options: Options
) -> int:
    """Measure every point, print and write what was found, and return the exit code."""
    archetypes, tokens = options.archetypes or ARCHETYPES, options.tokens or TOKENS
    fields = {"dtype": options.dtype, "zero": options.zero, "block": options.block, "seed": options.seed}
    todo = []
    for shape_name, shape in shapes.items():  # one shape after another: weights of two would not fit every GPU
        for op in dict.fromkeys(k.op for k in ours):
            todo += list(points(op, {shape_name: shape}, archetypes, tokens, **fields))
    with Progress() as progress:
        progress.start("bench")
        suite.note = progress.note
        shape_name = ""
        for i, point in enumerate(todo):
            if point.shape_name != shape_name:
                suite.problems.forget()
                shape_name = point.shape_name
            suite.measure(point, [k for k in ours if k.op == point.op], theirs)
            progress(f"{point.shape_name} {point.what} {point.archetype} T={point.T}", i + 1, len(todo))
            if options.json is not None:
                write_json(options.json, as_json(suite, theirs))
    _print(suite, theirs)
    if options.json is not None:
        write_json(options.json, as_json(suite, theirs))
    if options.plot is not None and suite.found:
        bench_report.plot(suite.found, options.plot, title_of(suite))
        say(f"plot: {options.plot}")
    if suite.illegal:
        return ILLEGAL
    return 0 if suite.found else UNJUDGED


def _print(suite: Suite, theirs: Kernel | None) -> None:
    columns = list(bench_report.COLUMNS)
    if theirs is not None:
        columns += [f"{theirs.name} us", "theirs / ours"]
    for shape in dict.fromkeys(found["shape"] for found in suite.found):
        mine = sorted(
            (f for f in suite.found if f["shape"] == shape),
            key=lambda f: (f["what"], f["archetype"], f["T"], f["kernel"]),
        )
        rows = [bench_report.cells(f) for f in mine]
        print_table(columns, [r + ["-"] * (len(columns) - len(r)) for r in rows], text_columns=3, title=shape)
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
    return f"{gpu_name(suite.device)}; floor: active experts' bytes at {gbs:,.0f} GB/s, {tflops:,.0f} TFLOP/s"


def gpu_name(device: str) -> str:
    """Return a device's name, "cpu" where there is no GPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def as_json(suite: Suite, theirs: Kernel | None = None, **more: Any) -> dict[str, Any]:
    """Return everything a run found as plain values."""
    import platform

    import torch

    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    if "triton" in sys.modules:
        versions["triton"] = sys.modules["triton"].__version__
    keys = ("kernel", "case", "why")
    return {
        "command": "moeracle " + " ".join(sys.argv[1:]),
        "device": gpu_name(suite.device),
        "versions": versions,
        "ceilings": dict(suite.ceilings),
        "against": theirs.name if theirs else None,
        **more,
        "rows": suite.found,
        "illegal": [dict(zip(keys, item, strict=True)) for item in suite.illegal],
        "skipped": [dict(zip(keys, item, strict=True)) for item in suite.skipped],
        "untuned": tuned.untuned(),
    }
