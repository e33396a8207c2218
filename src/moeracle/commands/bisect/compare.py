"""`moeracle bisect config --each`: one kernel under every combination of settings, side by side."""

from __future__ import annotations

import itertools
import string
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from moeracle.exit_codes import ILLEGAL, UNJUDGED
from moeracle.properties.bisect.config import Answer, Settings
from moeracle.properties.cases.case import Case
from moeracle.properties.report import report
from moeracle.ref.errors import require

from ..console import note, print_table, say
from ..loading import check_asked
from ..options import ConfigOptions
from .config import TILE, answer_of, run_under
from .git import FORMAT_VERSION, stage_lines

MOST_MNEMONICS = 12
MOST_STAGES = 4  # wrong rows with other bits, of which each is asked for its stage


@dataclass
class Row:
    """What the kernel does under one combination.

    Args:
        settings: by name.
        answer: the verdict.
        bits: digests of what it stored, by stage; empty where it stored nothing that could be judged.
        instructions: how often each gfx11 instruction ran; empty where it is no machine code.
        stages: the report of `bisect stages` under these settings, as plain values, or None.
    """

    settings: Settings
    answer: Answer
    bits: dict[str, str] = field(default_factory=dict)
    instructions: dict[str, int] = field(default_factory=dict)
    stages: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "settings": self.settings, **vars(self.answer), "bits": self.bits, "instructions": self.instructions,
            "stages": self.stages,
        }  # fmt: skip


def run_compare(options: ConfigOptions) -> int:
    """Judge every combination and print them side by side; return the exit code."""
    require(not options.good and not options.bad, "--each: got --good or --bad as well, must be without them")
    check_asked(None, options.device)
    case = Case.parse(options.case)
    report.require_writable(options.json)
    values = _values(options.each)
    started = time.monotonic()
    judged = [options.target, "--case", str(case), *(["--device", options.device] if options.device else [])]
    judge = ["bisect", "judge", *judged, "--repeat", str(options.repeat), "--instructions"]
    rows = []
    for chosen in itertools.product(*values.values()):
        rows.append(_row(judge, dict(zip(values, chosen, strict=True)), options.timeout))
        note(f"{_shown(rows[-1].settings)}: {rows[-1].answer.status}, {rows[-1].answer.seconds:.1f} s")
    wrong = {str(row.bits): row for row in reversed(rows) if row.answer.status == "illegal"}
    for row in [*reversed(wrong.values())][:MOST_STAGES]:
        if not any(name.startswith(TILE) for name in values):
            row.stages = run_under(["bisect", "stages", *judged, "--shrink", "0"], row.settings, options.timeout)[0]
    _print(rows, values)
    seconds = time.monotonic() - started
    say(f"{seconds:.1f} s")
    if options.json is not None:
        head = {"format_version": FORMAT_VERSION, "kind": "moeracle bisect config", "target": options.target}
        body = {"case": str(case), "environment": report.environment(), "each": values}
        found = {"rows": [row.as_dict() for row in rows], "seconds": round(seconds, 3)}
        report.write_json(options.json, {**head, **body, **found})
    judged_rows = [row for row in rows if row.answer.status in ("legal", "illegal", "flaky")]
    return ILLEGAL if any(row.answer.status != "legal" for row in judged_rows) else 0 if judged_rows else UNJUDGED


def _values(given: Sequence[str]) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for text in given:
        name, equals, value = text.partition("=")
        require(bool(equals and name), f"--each: got {text!r}, must be KEY=VALUE")
        require(value not in values.get(name, ()), f"--each: got {text} twice, must be given once")
        values.setdefault(name, []).append(value)
    return values


def _row(judge: list[str], settings: Settings, timeout: float) -> Row:
    started = time.monotonic()
    written, code, said = run_under(judge, settings, timeout)
    row = Row(settings, answer_of(written, code, said, timeout, time.monotonic() - started))
    if written is not None:
        row.bits, row.instructions = written["verdicts"][0]["bits"], written["instructions"]
    if row.answer.reason.startswith("raised ToolchainError"):  # there is no kernel to be wrong
        row.answer = replace(row.answer, status="unjudged", max_ratio=None)
    return row


def _shown(settings: Settings) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


def _print(rows: list[Row], values: dict[str, list[str]]) -> None:
    letters: dict[str, str] = {}
    names = [name for name, several in values.items() if len(several) > 1]
    alike = {name: several[0] for name, several in values.items() if len(several) == 1}
    if alike:
        say(f"in every row: {_shown(dict(alike))}")
    cells = []
    for row in rows:
        key = str(sorted(row.bits.items()))
        letter = letters.setdefault(key, string.ascii_uppercase[len(letters) % 26]) if row.bits else "-"
        total = sum(row.instructions.values())
        ratio = "-" if row.answer.max_ratio is None else f"{row.answer.max_ratio:.3g}"
        cells.append(
            (*(str(row.settings[n]) for n in names), row.answer.status, letter, ratio, f"{total:,}" if total else "-")
        )
    print_table((*names, "verdict", "bits", "err/bound", "instructions"), cells, text_columns=len(names) + 2)
    say("rows with one letter under bits stored the same bits; instructions: of all waves, in every run of a row")
    for number, row in enumerate(rows, 1):
        if row.answer.status != "legal":
            say(f"  row {number}: {row.answer.reason}")
    _print_mnemonics(rows)
    for step in dict.fromkeys(filter(None, (_step(row, rows) for row in rows))):
        say(f"turns it illegal: {step}")
    for number, row in enumerate(rows, 1):
        if row.stages is not None:
            say(f"row {number}:")
            for line in stage_lines(row.stages):
                say(f"  {line}")


def _print_mnemonics(rows: list[Row]) -> None:
    """Print the instructions that some rows have and others lack, the most frequent first."""
    names = {name for row in rows for name in row.instructions}
    apart = [n for n in names if any(row.instructions.get(n, 0) == 0 for row in rows if row.instructions)]
    if not apart:
        return
    apart.sort(key=lambda n: (-max(row.instructions.get(n, 0) for row in rows), n))
    shown = apart[:MOST_MNEMONICS]
    counts = [(n, *(f"{row.instructions.get(n, 0):,}" for row in rows)) for n in shown]
    numbers = tuple(f"row {i}" for i in range(1, len(rows) + 1))
    title = f"instructions that not every row has: {len(apart)}" + (f", first {len(shown)}" if shown != apart else "")
    print_table(("instruction", *numbers), counts, title=title)


def _step(row: Row, rows: list[Row]) -> str:
    """Return by which settings an illegal row differs from the nearest legal one."""
    legal = [other for other in rows if other.answer.status == "legal"]
    if row.answer.status != "illegal" or not legal:
        return ""

    def apart(other: Row) -> list[str]:
        return [name for name in row.settings if row.settings[name] != other.settings[name]]

    nearest = min(legal, key=lambda other: len(apart(other)))
    return ", ".join(f"{name}: {nearest.settings[name]!r} -> {row.settings[name]!r}" for name in apart(nearest))
