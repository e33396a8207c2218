"""`moeracle kernels tune TARGET`: the fastest legal tile of a user's kernel, and which tiles are refused, and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from moeracle.bench.problems import Problems, points, rotation
from moeracle.exit_codes import ILLEGAL, UNJUDGED
from moeracle.files import read_json
from moeracle.kernels.bench.cases import TOKENS, shape_named
from moeracle.kernels.bench.timing import GraphTimer, HostTimer
from moeracle.properties.cases.case import Case, Problem
from moeracle.properties.report.report import require_writable, write_json
from moeracle.ref.errors import require
from moeracle.target.declaration import Kernel, require_device
from moeracle.target.load import TargetError, place_of
from moeracle.target.sources import digest_of
from moeracle.target.tiles import EVERY

from ..console import Progress, print_table, say
from ..loading import limits_of, load, release
from ..options import TuneOptions
from . import bench_options, bench_record
from .tile_tuner import TileTuner, fault_of

KIND = "moeracle kernels tune"
SAME = ("device", "versions", "source", "target")  # what a run that goes on must share with the one before
COLUMNS = ("kernel", "case", "tile", "verdict", "us", "spread", "times the defaults", "fault")
DEFAULTS = "defaults"


def tune_target(options: TuneOptions) -> int:
    """Judge, then time, every tile of a TARGET's kernels; 1 if one is illegal, 3 if none could be timed.

    Raises:
        ValueError: an option that has no use here, no case to time on, no kernel with tiles, or a file that is not
            writable or of another run.
    """
    bench_options.left_out(options, ("kernels", "arch", "most", "dry"), "with a TARGET: all of its tiles are tried")
    require(not options.resume or options.json is not None, "resume: needs --json, the file to go on with")
    require_writable(options.json)
    assert options.target is not None
    asked = [Case.parse(text) for text in options.cases]
    shapes = {name: shape_named(name) for name in options.shapes}
    require(bool(asked) != bool(shapes), "case: must be given (--case), or a layer in its place (--shape, --tokens)")
    limits = limits_of(options.case_timeout, options.max_memory)
    target = load(options.target, options.device, False, limits)
    kernels = [kernel for kernel in target.kernels if kernel.tiles]
    if not kernels:
        release(target.kernels[0])
        raise TargetError(f"TARGET {options.target}: declares no tiles; add tiles={{…}} to @moeracle.kernel")
    for kernel in kernels:
        require_device(kernel.device, f"kernel {kernel.name}")
    run = _Run(options, kernels[0].device)
    try:
        with Progress() as progress:
            progress.start("tune")
            for kernel in kernels:
                names = f"{place_of(options.target)}:{kernel.name}[{EVERY}]"
                tiles = load(names, options.device, False, limits).kernels
                for problems in _problems(kernel, asked, shapes, options):
                    run.tune(kernel, tiles, problems, progress)
                release(tiles[0])
    finally:
        for kernel in kernels:
            release(kernel)
    run.say()
    if any(not row["legal"] for row in run.rows):
        return ILLEGAL
    return 0 if run.rows else UNJUDGED


def _problems(
    kernel: Kernel, asked: Sequence[Case], shapes: dict[str, Any], options: TuneOptions
) -> list[list[Problem]]:
    """Return what a kernel's tiles are timed on: cases as they are, or a layer's points with what rotates over them."""
    if asked:
        return [[case.build(kernel.device)] for case in asked if case.op == kernel.op]
    tokens = options.tokens or TOKENS
    builder, cache = Problems(kernel.device), 0
    if kernel.device != "cpu":
        cache = int(getattr(torch.cuda.get_device_properties(kernel.device), "L2_cache_size", 50 << 20))
    found = points(kernel.op, shapes, (options.archetype,), tokens, dtype=options.dtype)
    return [rotation(builder, point, cache) for point in found]


class _Run:
    """What was found so far, and the file that it is written to after each tile.

    Args:
        options: as typed.
        device: of the kernels.
    """

    def __init__(self, options: TuneOptions, device: str) -> None:
        self.options, self.rows, self.failures = options, list[dict[str, Any]](), list[str]()
        self.tuner = TileTuner(HostTimer() if device == "cpu" else GraphTimer(device), seconds=options.seconds)
        self.about = {
            "format_version": 1, "kind": KIND, "command": bench_record.command_line(), "target": options.target,
            "device": bench_record.gpu_name(device), "versions": bench_record.versions(),
            "source": digest_of(place_of(options.target or "")),
        }  # fmt: skip
        if options.resume and options.json is not None:
            self._go_on(options.json)

    def _go_on(self, path: Path) -> None:
        if not path.is_file():
            return
        earlier = read_json(path, dict[str, Any], "resume")
        for name in SAME:
            if earlier.get(name) != self.about[name]:
                raise ValueError(f"resume: {path} has {name} {earlier.get(name)!r}, here it is {self.about[name]!r}")
        self.rows = [
            row for row in earlier.get("rows", []) if isinstance(row, dict) and {"kernel", "case", "tile"} <= set(row)
        ]
        self.tuner.spent |= {name: float(earlier.get("spent", {}).get(name, 0.0)) for name in self.tuner.spent}

    def tune(self, kernel: Kernel, tiles: Sequence[Kernel], problems: list[Problem], progress: Progress) -> None:
        """Judge and time the defaults, then each tile, on one case."""
        case = problems[0].case
        reason = kernel.why_not(case)
        if reason is not None:
            progress.note(f"{kernel.name}: nothing for {case}: {reason}")
            return
        done = {row["tile"] for row in self.rows if (row["kernel"], row["case"]) == (kernel.name, str(case))}
        seen: list[Any] = []
        texts = (DEFAULTS, *kernel.tiles)
        beside = None
        for at, (text, one) in enumerate(zip(texts, (kernel, *tiles), strict=True)):
            progress(f"{kernel.name} {text} {case}", at, len(texts))
            if text in done and (text != DEFAULTS or done.issuperset(texts)):
                continue
            row: dict[str, Any] = {"kernel": kernel.name, "case": str(case), "tile": text, "legal": True}
            declined = one.why_not(case)
            if declined is not None:
                self._keep(row | {"us": None, "declined": declined}, done)
                continue
            failure, held = self.tuner.judged(one, problems, seen)
            if held is not None:
                times, failure = self.tuner.timed(one, held, beside)
                row |= times
            if failure is not None:
                target = f"{place_of(self.options.target or '')}:{one.name}"
                row |= {"legal": False, "us": None, "fault": fault_of(failure), "failure": failure.text(target)}
                progress.note(f"{one.name} is refused: {row['fault']}")
            self._keep(row, done)
            if text == DEFAULTS and failure is None:
                beside = held  # its process stays: every tile is timed in turn with it
            else:
                release(one, spare=False)
        release(kernel, spare=False)

    def _keep(self, row: dict[str, Any], done: set[str]) -> None:
        if row["tile"] not in done:
            self.rows.append(row)
        if self.options.json is not None:
            write_json(self.options.json, self.as_dict())

    def best(self) -> list[dict[str, Any]]:
        """Return of each kernel and case the row of the fastest legal tile, by its time beside the defaults."""
        found = []
        for key in dict.fromkeys((row["kernel"], row["case"]) for row in self.rows):
            timed = [r for r in self.rows if (r["kernel"], r["case"]) == key and r["legal"] and r["us"]]
            if timed:
                beside = {r["tile"]: r["us"] for r in timed}.get(DEFAULTS)
                found.append(
                    min(timed, key=lambda r: r["us"] if not r.get("ratio") or not beside else beside / r["ratio"])
                )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        spent = {name: round(seconds, 3) for name, seconds in self.tuner.spent.items()}
        found = {"spent": spent, "judging_share": round(self.tuner.share, 4)}
        return {**self.about, **found, "best": self.best(), "rows": self.rows}

    def say(self) -> None:
        """Print the table, then what was refused, what is best, and what judging cost."""
        print_table(COLUMNS, [_cells(row) for row in self.rows], text_columns=4)
        for row in self.rows:
            if not row["legal"]:
                say()
                say(row["failure"])
        say()
        for row in self.best():
            beside = "" if not row.get("ratio") else f", {row['ratio']:.2f}x the defaults"
            say(f"best: {row['kernel']}[{row['tile']}] on {row['case']}: {row['us']:.1f} us{beside}")
        spent = self.tuner.spent
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in spent.items())
        refused = sum(not row["legal"] for row in self.rows)
        cost = f"judging took {100 * self.tuner.share:.0f} % of the time ({parts})"
        say(f"{len(self.rows)} tiles, {refused} refused; {cost}")


def _cells(row: dict[str, Any]) -> list[str]:
    us = "-" if not row.get("us") else f"{row['us']:.1f}"
    spread = "-" if not row.get("us") else f"{row['low']:.1f}..{row['high']:.1f}"
    ratio = "-" if not row.get("ratio") else f"{row['ratio']:.2f}"
    verdict = "refused" if not row["legal"] else "declined" if "declined" in row else "legal"
    return [
        row["kernel"],
        row["case"],
        row["tile"],
        verdict,
        us,
        spread,
        ratio,
        row.get("fault", row.get("declined", "")),
    ]
