"""`moeracle checkpoint diff`: whether two checkpoints hold the same weights, and if not, what is wrong with one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from moeracle.checkpoints.checkpoint import load_checkpoint
from moeracle.checkpoints.diff import Diff, Difference, diff
from moeracle.checkpoints.files import shown
from moeracle.exit_codes import ILLEGAL, UNJUDGED
from moeracle.properties.report import report

from ..console import Progress, print_error, print_table, say

FORMAT_VERSION = 1
MOST_SHOWN = 10
COLUMNS = ("weight", "first at", "elements", "of", "largest", "in scales")


def run_diff(a: Path, b: Path, layers: tuple[int, ...], zeros: str | None, json: Path | None, html: Path | None) -> int:
    """Print what differs; return 0 if nothing does, 1 if anything does, 3 if there is nothing in common.

    Raises:
        ValueError: a checkpoint cannot be opened.
    """
    for target in (json, html):
        report.require_writable(target)
    both = load_checkpoint(a, zeros=zeros), load_checkpoint(b, zeros=zeros)
    with Progress() as progress:
        progress.start("diff")
        found = diff(*both, layers, progress)
    _print(found)
    if json is not None:
        report.write_json(json, as_dict(found))
    if html is not None:
        from .page import Table, write_page

        rows = [_row(d) for d in found.differences[:200]]
        problems = (
            [*verdict(found)[1:], *(d.problem for d in found.differences if d.problem)] if found.differences else []
        )
        write_page(
            html,
            f"{a} and {b}",
            verdict(found)[:1],
            problems,
            lacking(found),
            [Table("Weights that differ", COLUMNS, rows, 2)],
        )
    if not found.compared:
        print_error("nothing could be compared: the two have no weight of the same name")
        return UNJUDGED
    return ILLEGAL if found.differences or found.only_a or found.only_b else 0


def as_dict(found: Diff) -> dict[str, Any]:
    """Return what `--json` writes."""
    return {
        "format_version": FORMAT_VERSION,
        "kind": "moeracle checkpoint diff",
        "a": {"path": str(found.a.path), "format": found.a.format},
        "b": {"path": str(found.b.path), "format": found.b.format},
        "compared": found.compared,
        "only_a": found.only_a,
        "only_b": found.only_b,
        "rounded": dict(found.rounded),
        "suspects": [{"id": i, "words": w, "gives": n, "of": of} for i, w, n, of in found.suspects()],
        "differences": [asdict(d) for d in found.differences],
    }


def verdict(found: Diff) -> list[str]:
    """Return the answer in sentences, the first line what was compared."""
    lines = [f"A: {found.a.path} ({found.a.format})   B: {found.b.path} ({found.b.format})"]
    equal = found.compared - len(found.differences)
    if found.compared and not found.differences:
        how = "".join(f"; {count:,} of them {words}" for words, count in found.rounded.items())
        lines.append(f"the same weights in other clothes: all {found.compared:,} are equal{how}")
    elif found.differences:
        lines.append(f"{len(found.differences):,} of {found.compared:,} weights differ, {equal:,} are equal")
        for id, words, count, looked in found.suspects()[:4]:
            share = max(d.share for d in found.differences if (id, words) in d.explained)
            nearly = "" if share == 1 else f", {share:.1%} of their elements"
            lines.append(
                f"looks like: {f'{id} ' if id else ''}{words}; gives {count} of {looked} weights that were "
                f"asked{nearly}"
            )
        if not found.suspects():
            lines.append("looks like: no known mistake of a loader")
    return lines


def lacking(found: Diff) -> list[str]:
    """Return which weights one of the two lacks, in sentences."""
    sides = (("B", found.only_a), ("A", found.only_b))
    return [f"{len(names):,} weights are missing in {side}, first {shown(names[0])}" for side, names in sides if names]


def _print(found: Diff) -> None:
    head, *rest = verdict(found)
    say(head)
    for line in (*rest, *lacking(found)):
        say(line)
    if found.differences:
        say()
        print_table(COLUMNS, [_row(d) for d in found.differences[:MOST_SHOWN]], text_columns=2)
        if len(found.differences) > MOST_SHOWN:
            say(f"and {len(found.differences) - MOST_SHOWN:,} more (--json)")
    for difference in [d for d in found.differences if d.problem][:MOST_SHOWN]:
        say(f"  {difference.problem}")


def _row(d: Difference) -> list[str]:
    group = "" if d.group is None else f", group {d.group}"
    where = "-" if d.problem else f"n {d.row}, k {d.column}{group}"
    sizes = ["-", "-"] if d.problem else [f"{d.largest:.3g}", f"{d.scales:.3g}" if d.group is not None else "-"]
    return [shown(d.unit.name), where, f"{d.elements:,}", f"{d.of:,}", *sizes]
