"""`moeracle bisect config`: the smallest set of settings that makes a kernel wrong."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moeracle.exit_codes import ILLEGAL
from moeracle.files import read_json, scratch
from moeracle.properties.bisect.config import Answer, ConfigReport, Settings, bisect_settings, mixed
from moeracle.properties.bisect.history_runner import UNLOADABLE, last_words, run_bounded
from moeracle.properties.cases.case import Case
from moeracle.properties.report import report

from ..console import note, say
from ..loading import check_asked
from ..options import ConfigOptions
from .git import FORMAT_VERSION, stage_lines

TILE = "tile."


def run_config(options: ConfigOptions) -> int:
    """Find and print the smallest set of settings; return the exit code."""
    check_asked(None, options.device)
    case = Case.parse(options.case)
    report.require_writable(options.json)
    good, bad = _settings(options.good, "--good"), _settings(options.bad, "--bad")
    started = time.monotonic()
    judged = [options.target, "--case", str(case), *(["--device", options.device] if options.device else [])]
    judge = ["bisect", "judge", *judged, "--repeat", str(options.repeat)]
    found = bisect_settings(good, bad, lambda settings: _ask(judge, settings, options.timeout), _print_tried)
    if not any(name.startswith(TILE) for name in found.minimal):
        stages = ["bisect", "stages", *judged]
        found.stages = run_under(stages, mixed(good, bad, found.minimal), options.timeout)[0]
    found.seconds = time.monotonic() - started
    _print(found)
    if options.json is not None:
        head = {"format_version": FORMAT_VERSION, "kind": "moeracle bisect config", "target": options.target}
        body = {"case": str(case), "environment": report.environment(), **found.as_dict()}
        report.write_json(options.json, {**head, **body})
    return ILLEGAL


def _settings(given: Sequence[str], option: str) -> Settings:
    settings: Settings = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"{option}: got {text!r}, must be KEY=VALUE")
        if name in settings:
            raise ValueError(f"{option}: got {name} twice, must be given once")
        settings[name] = value
    return settings


def run_under(words: list[str], settings: Settings, timeout: float) -> tuple[dict[str, Any] | None, int | None, str]:
    """Run a command of ours under settings; return what it wrote, its exit code and its last words."""
    env = {name: value for name, value in os.environ.items() if name not in settings}
    env |= {name: value for name, value in settings.items() if value is not None and not name.startswith(TILE)}
    env["PYTHONPATH"] = os.pathsep.join([*filter(None, [env.get("PYTHONPATH")]), str(Path(__file__).parents[3])])
    tile = [
        f"{name.removeprefix(TILE)}={value}"
        for name, value in settings.items()
        if name.startswith(TILE) and value is not None
    ]
    with scratch("moeracle-config-") as folder:
        answer, log = folder / "answer.json", folder / "log"
        env["MOERACLE_SCRATCH"] = str(log)  # so that what a killed run had started is found, and ended
        whole = [sys.executable, "-m", "moeracle", *words, "--json", str(answer)]
        whole += [word for field in tile for word in ("--tile", field)]
        ended = run_bounded(whole, Path.cwd(), timeout, log, env)
        written = read_json(answer, dict[str, Any], "bisect") if answer.exists() else None
        return written, ended.code, last_words(log)


def _ask(words: list[str], settings: Settings, timeout: float) -> Answer:
    started = time.monotonic()
    written, code, said = run_under(words, settings, timeout)
    return answer_of(written, code, said, timeout, time.monotonic() - started)


def answer_of(written: dict[str, Any] | None, code: int | None, said: str, timeout: float, seconds: float) -> Answer:
    """Return what the judgements of one process come to.

    Raises:
        ValueError: the TARGET cannot be loaded.
    """
    if code is None:
        return Answer("illegal", f"did not end in {timeout:g} s", seconds=seconds)
    if written is None:
        if code == UNLOADABLE:
            raise ValueError(said.removeprefix("error: "))
        return Answer("illegal" if code < 0 else "unjudged", f"exit code {code}: {said}", seconds=seconds)
    verdicts = written["verdicts"]
    statuses = {verdict["status"] for verdict in verdicts}
    wrong = next((verdict for verdict in verdicts if verdict["status"] == "illegal"), verdicts[0])
    ratio = wrong["max_ratio"]
    answer = Answer("unjudged", wrong["reason"], wrong["stage"], None if ratio is None else float(ratio), seconds)
    if statuses == {"illegal"} or statuses == {"legal"}:
        return replace(answer, status=statuses.pop(), reason=answer.reason or "legal")
    return replace(answer, status="flaky") if "illegal" in statuses else answer


def _print_tried(names: tuple[str, ...], answer: Answer) -> None:
    as_bad = ", ".join(names) or "nothing"
    reason = f": {answer.reason}" if answer.status != "legal" else ""
    note(f"{as_bad} as in BAD: {answer.status}, {answer.seconds:.1f} s{reason}")


def _print(found: ConfigReport) -> None:
    say(f"{len(found.differing)} settings differ; {len(found.answers)} sets of them were judged")
    say("smallest set that makes it illegal, everything else as in GOOD:")
    for name in found.minimal:
        good, bad = (_shown(side.get(name)) for side in (found.good, found.bad))
        say(f"  {name}: {good} -> {bad}")
    without = found.without
    if without is not None:
        others = "everything else as in BAD, and these as in GOOD"
        verdict = (
            "it is legal"
            if without.status == "legal"
            else f"it is {without.status} all the same: another set does it too"
        )
        say(f"with {others}: {verdict}")
    if found.stages is not None:
        for line in stage_lines(found.stages):
            say(f"  {line}")
    say(f"{found.seconds:.1f} s")


def _shown(value: str | None) -> str:
    return "not set" if value is None else repr(value)
