"""`moeracle ci report`: annotations at the kernels' lines and a job summary, in the forms that GitHub reads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from moeracle.properties.report.html.view import KIND, read_run
from moeracle.properties.report.report import environment, is_expected, known_text
from moeracle.ref.errors import require
from moeracle.text import one_line

from ..console import say

MOST_LINES = 30  # of one failure's text


def run_ci_report(file: Path, summary: Path | None) -> int:
    """Print the annotations and append the summary.

    Raises:
        ValueError: a file that is no JSON of check, or a summary that cannot be written.
    """
    run = read_run(file)
    require(run["kind"] == KIND, f"report: {file}: got kind {run['kind']!r}, must be {KIND!r}")
    for line in annotations_of(run):
        say(line)
    if summary is not None:
        try:
            with summary.open("a", encoding="utf-8") as end:  # GitHub's file may hold what other steps wrote
                end.write(markdown(run))
        except OSError as error:
            raise ValueError(f"--summary: {summary} cannot be written: {error.strerror or error}") from None
    return 0


def run_ci_environment() -> int:
    """Print the environment as JSON."""
    say(json.dumps(environment(), indent=1))
    return 0


def annotations_of(run: dict[str, Any]) -> list[str]:
    """Return one command of GitHub's workflow language for each failure and each kernel that was not judged."""
    said = []
    for kernel in run["kernels"]:
        known = kernel.get("known") or {}
        file, _, line = (kernel.get("source") or "").rpartition(":")  # older files have none
        where = f"file={_property(file)},line={_property(line)}," if file else ""
        title = _property(f"moeracle: {kernel['op']} {kernel['kernel']}")
        if known:
            said.append(
                f"::{'error' if known['wrong'] else 'notice'} {where}title={title}::{_message(known_text(known))}"
            )
        if is_expected(known):
            continue
        said += [f"::error {where}title={title}::{_message(failure['text'])}" for failure in kernel["failures"]]
        if not kernel["failures"] and kernel["status"] != "legal":
            left = ", ".join(f"{what}: {count}" for what, count in (kernel.get("left") or {}).items())
            reason = kernel.get("error") or (f"the time was over; left: {left}" if left else "")
            reason = reason or "; ".join(kernel["skipped"]) or "nothing could be judged"
            said.append(f"::error {where}title={title}::{_message(reason)}")
    return said


def markdown(run: dict[str, Any]) -> str:
    """Return a run as Markdown: a table of the kernels, and each failure's text."""
    rows = ["| kernel | op | contract | verdict | cases | elements |", "|---|---|---|---|---|---|"]
    parts = []
    for kernel in run["kernels"]:
        verdict = "known failure" if is_expected(kernel.get("known")) else kernel["status"]
        cells = [kernel["kernel"], kernel["op"], kernel["contract"], verdict]
        cells += [f"{kernel['cases_judged']:,}", f"{kernel['judged']:,}"]
        rows.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
        if kernel.get("known"):
            parts.append(f"{_cell(kernel['kernel'])}: {_cell(known_text(kernel['known']))}")
        parts += [f"```\n{_fenced(failure['text'])}\n```" for failure in kernel["failures"]]
    return "\n\n".join([f"### moeracle check {_cell(str(run['target']))}", "\n".join(rows), *parts]) + "\n"


def _message(text: str) -> str:
    kept = os.linesep.join(text.splitlines()[:MOST_LINES])
    return kept.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(one_line(text)).replace(":", "%3A").replace(",", "%2C")


def _cell(text: str) -> str:
    return one_line(text).replace("|", "\\|").replace("<", "&lt;")


def _fenced(text: str) -> str:
    return text.replace("```", "'''")
