"""`moeracle checkpoint show`: what a checkpoint holds, and where its config and its tensors contradict each other."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from moeracle.checkpoints.checkpoint import load_checkpoint
from moeracle.checkpoints.files import shown
from moeracle.checkpoints.survey import Survey, rows_of, survey
from moeracle.exit_codes import ILLEGAL
from moeracle.properties.report import report

from ..console import print_table, say

FORMAT_VERSION = 1
COLUMNS = (
    "layers",
    "kind",
    "format",
    "scales",
    "zero points",
    "linears",
    "N x K",
    "G",
    "15s",
    "negative",
    "zero",
    "subnormal",
)


def run_show(path: Path, zeros: str | None, json: Path | None, html: Path | None) -> int:
    """Print the table, the notes and the problems; return 1 if there is any problem.

    Raises:
        ValueError: the checkpoint cannot be opened.
    """
    for target in (json, html):
        report.require_writable(target)
    found = survey(load_checkpoint(path, zeros=zeros))
    _print(found)
    if json is not None:
        report.write_json(json, as_dict(found))
    if html is not None:
        from .page import Table, write_page

        table = Table("Linears by layer and kind", COLUMNS, [_row(row) for row in rows_of(found.facts)], 5)
        write_page(html, f"Checkpoint {found.checkpoint.path}", _head(found), found.problems, found.notes, [table])
    return ILLEGAL if found.problems else 0


def as_dict(found: Survey) -> dict[str, Any]:
    """Return what `--json` writes."""
    held = found.checkpoint
    return {
        "format_version": FORMAT_VERSION,
        "kind": "moeracle checkpoint show",
        "path": str(held.path),
        "files": held.files.files,
        "format": held.format,
        "method": held.declared.method,
        "model_type": held.declared.model_type,
        "writer": held.declared.writer,
        "expert_layers": held.layers,
        "zeros_read_as": held.reading if held.declared.zeros == "v1" else held.declared.zeros,
        "rows": rows_of(found.facts),
        "linears": [asdict(facts) for facts in found.facts],
        "notes": found.notes,
        "problems": found.problems,
    }


def _head(found: Survey) -> list[str]:
    held, declared = found.checkpoint, found.checkpoint.declared
    counts = f"{len(held.linears):,} linears, {len(held.layers):,} layers with experts"
    parts = [declared.method or "no quantization", *(part for part in (
        f"written by {shown(declared.writer)}" if declared.writer else "",
        f"model {shown(declared.model_type)}" if declared.model_type else "",
    ) if part)]  # fmt: skip
    return [f"{held.path}: {held.format}, {counts}", f"config: {', '.join(parts)}"]


def _print(found: Survey) -> None:
    for line in _head(found):
        say(line)
    say()
    print_table(COLUMNS, [_row(row) for row in rows_of(found.facts)], text_columns=5)
    for note in found.notes:
        say(f"note: {note}")
    for problem in found.problems:
        say(f"PROBLEM: {problem}")
    if not found.problems:
        say("config and tensors agree")


def _row(row: dict[str, Any]) -> list[str]:
    counts = [f"{row[name]:,}" if row["scales"] else "-" for name in ("stored_15s", "negative", "zero", "subnormal")]
    group = str(row["group_size"]) if row["group_size"] else "-"
    bits = f" {row['bits']} bits" if row["scales"] and row["bits"] != 4 else ""
    words = [
        runs(row["layers"]),
        row["kind"],
        row["format"] + bits,
        row["scale_dtype"] or "-",
        row["zero_points"] or "-",
    ]
    return [*words, f"{row['count']:,}", f"{row['N']} x {row['K']}", group, *counts]


def runs(numbers: list[int]) -> str:
    """Return numbers as text, "0-3, 5"; "-" for none."""
    if not numbers:
        return "-"
    parts, start = [], numbers[0]
    for here, after in zip(numbers, [*numbers[1:], None], strict=True):
        if after != here + 1:
            parts.append(str(start) if start == here else f"{start}-{here}")
            start = after or 0
    return ", ".join(parts) if len(parts) <= 6 else f"{parts[0]}, …, {parts[-1]} ({len(numbers)})"
