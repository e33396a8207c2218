"""`moeracle judge`: judge tensors that were saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moeracle.exit_codes import ILLEGAL, UNJUDGED
from moeracle.files import require_writable, write_atomically
from moeracle.properties.cases.device import check_device
from moeracle.properties.report.report import environment, plain
from moeracle.ref.contracts.contract import contract as named_contract
from moeracle.ref.errors import require
from moeracle.tensors.errors import NotJudged
from moeracle.tensors.judge import judge_problem, require_judged
from moeracle.tensors.saved import load
from moeracle.tensors.verdict import TensorVerdict

from .console import print_error, print_table, say

COLUMNS = ("stage", "elements", "illegal", "exact", "ulp", "err/bound")
FORMAT_VERSION = 1


def run_judge(file: Path, contract: str | None, device: str, json_path: Path | None, html: Path | None) -> int:
    """Judge one file and print what was found; return the exit code.

    Raises:
        ValueError: the file, the contract or the device cannot be used, in one line.
    """
    rules = None if contract is None else named_contract(contract)
    check_device(device)
    for path in (json_path, html):
        require_writable(path)
    require(
        json_path is None or html is None or json_path.resolve() != html.resolve(), "--html: must not be --json's file"
    )
    problem, outputs, saved_rules, name = load(file, device)
    verdict = judge_problem(problem, outputs, rules or saved_rules, name=name)
    verdict.path = file
    why = ""
    try:
        require_judged(verdict)
    except NotJudged as error:
        why = str(error)
    code = UNJUDGED if why else 0 if verdict.ok else ILLEGAL
    _print(verdict)
    if json_path:
        text = json.dumps(plain(_as_dict(verdict, file, device, code)), indent=1)
        write_atomically(json_path, text + "\n")
    if html:
        page = f"<!doctype html><meta charset='utf-8'><title>moeracle judge</title>\n{verdict._repr_html_()}"
        write_atomically(html, page)
    if why:
        print_error(why)
    return code


def _as_dict(verdict: TensorVerdict, file: Path, device: str, code: int) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "kind": "moeracle judge",
        "environment": environment(),
        "file": str(file),
        "device": device,
        "exit_code": code,
        "verdict": verdict.verdict.as_dict(),
    }


def _print(verdict: TensorVerdict) -> None:
    rows = [
        (s.stage, f"{s.judged:,}", f"{s.illegal:,}", f"{s.exact:,}", f"{s.width_ulp:.3g}", f"{s.max_ratio:.3g}")
        for s in verdict.stages
    ]
    if rows:
        print_table(COLUMNS, rows)
        say()
    say(verdict.text())
