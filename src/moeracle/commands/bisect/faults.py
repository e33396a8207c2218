"""`moeracle bisect faults`: whether a bisection names the right stage for every known fault."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from moeracle.exit_codes import ILLEGAL
from moeracle.properties.bisect.matrix import FUSED, ONE_OP, STORED, BisectMatrix, Planted, run_bisect_matrix
from moeracle.properties.faults import FAULTS, find_fault
from moeracle.properties.report import report
from moeracle.ref.contracts.contract import contract as named_contract
from moeracle.ref.errors import unknown

from ..console import Progress, note, print_error, print_table, say
from ..process import use_one_thread

KINDS = (FUSED, STORED, ONE_OP)
TITLE_WIDTH = 56


def run_faults(ids: list[str], kinds: list[str], contract: str | None, json: Path | None) -> int:
    """Print the table; return the exit code.

    Raises:
        ValueError: an unknown fault or kind, or the file cannot be written.
    """
    report.require_writable(json)
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("--kind", kind, KINDS)
    faults = [find_fault(id) for id in dict.fromkeys(ids)] or list(FAULTS.values())
    if contract is not None:
        named_contract(contract)
    use_one_thread()
    with Progress() as progress:
        progress.start("bisecting faults")
        everything = not ids and not kinds and contract is None
        matrix = run_bisect_matrix(faults, kinds or KINDS, contract=contract, legal=everything, progress=progress)
    _print(matrix)
    if json is not None:
        head: dict[str, Any] = {"format_version": 1, "kind": "moeracle bisect faults"}
        report.write_json(json, {**head, "environment": report.environment(), **matrix.as_dict()})
    return 0 if matrix.ok else ILLEGAL


def _print(matrix: BisectMatrix) -> None:
    columns = ("fault", "what", "kernel", "op", "stage", "found", "verdict", "convicted by", "calls")
    print_table(columns, [_row(p) for p in matrix.planted], text_columns=8)
    say()
    for kind in KINDS:
        verdicts = Counter(p.verdict for p in matrix.planted if p.kind == kind)
        if verdicts:
            words = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
            say(f"{kind}: {words} of {verdicts.total()}")
    for p in matrix.planted:
        if p.verdict != "right":
            note(f"{p.verdict}: {p.id} in {p.op} ({p.kind}): {p.found or 'nobody'}, not {p.expected}")
    if matrix.legal:
        asked = f"{matrix.questions:,} questions to {matrix.legal} legal kernels"
        say(f"{len(matrix.convicted)} false convictions in {asked}")
    for kernel, case, probe in matrix.convicted:
        print_error(f"{kernel} on {case}: {probe.name}: {probe.detail}")
    say(f"{matrix.seconds:.0f} s")


def _row(p: Planted) -> list[str]:
    title = FAULTS[p.id].title
    what = title if len(title) <= TITLE_WIDTH else title[: TITLE_WIDTH - 1] + "…"
    found = p.found + (f" or {p.also}" if p.also else "")
    return [p.id, what, p.kind, p.op, p.expected, found, p.verdict, p.probe, str(p.calls)]
