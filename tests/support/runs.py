"""What `check`, `bisect stages`, `bisect git` and `bisect config` write, made here; and a page parsed strictly."""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from moeracle.properties.bisect.config import Answer, ConfigReport
from moeracle.properties.bisect.history import HistoryReport
from moeracle.properties.bisect.history_git import Commit, Found
from moeracle.properties.bisect.history_state import Judged, Plan
from moeracle.properties.cases.case import Case
from moeracle.properties.common.verdict import Verdict
from moeracle.properties.hunt.effort import HuntResult
from moeracle.properties.judge import judge
from moeracle.properties.report import report
from moeracle.properties.report.report import Report, as_dict, plain
from moeracle.properties.simulate import simulated_kernel

LAYER = "moe_w4a16/T6-E4-k2-H32-I32-G16/bf16/exllama-sym/uniform/normal/s1"
NASTY = "<script>alert(1)</script>&\"'"
CASE = "moe_w4a16/T4-E3-k2-H64-I64-G32/bf16/exllama-sym/uniform/normal/s3"


RULES = "grouped,accumulator=fp32"


@functools.cache
def _verdicts() -> tuple[Verdict, Verdict]:
    """A right layer's, and one of a layer whose y is wrong in a few places."""
    problem, good = Case.parse(LAYER).build(), simulated_kernel("moe_w4a16", RULES, "sequential")
    stages = good.fn(*problem.args.values())
    right = judge(problem, stages, good.contract)
    stages["y"][3, 4:8] = float("nan")
    stages["y"][5, 0] *= 1.5
    return right, judge(problem, stages, good.contract)


def a_run(target: str = "my_kernels.py", failing: bool = True, note: str = "") -> dict[str, Any]:
    """The JSON of a check of two kernels, one of which may fail."""
    verdicts = copy.deepcopy(list(_verdicts()[: 1 + failing]))
    if failing:
        verdicts[1].summary.append(note or "looks like: nothing")
    for verdict in verdicts:
        verdict.kernel = "my_moe" + note
    first = HuntResult("my_moe" + note, "moe_w4a16", None, RULES, "cpu", 0, 2, verdicts)
    first.failures = verdicts[1:]
    first.skipped["T is too large " + note] = 3
    first.law_checks["law_rows"] = 5
    idle = HuntResult("idle", "silu_and_mul", None, "grouped", "cpu", 0, 2)
    code = 1 if failing else 3
    whole = Report(target, ["moeracle", "check", target], None, "ci", 0, 86400.0, 1.5, code, [first, idle])
    return json.loads(json.dumps(plain(as_dict(whole))))


class Strict(HTMLParser):
    """Collects tags, and complains where one closes another's."""

    VOID = ("meta", "br", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Strict()
    parser.feed(page)
    assert parser.open == []
    return parser.seen


def stages() -> dict[str, Any]:
    """What `bisect stages` writes, of a kernel that is wrong."""
    failure = {k: v for k, v in a_run()["kernels"][0]["failures"][0].items() if k not in ("text", "found")}
    kernel = {
        "status": "illegal", "stage": "scale", "also": "", "how": "probes", "fault": {"id": "F29", "title": "F29 next"},
        "max_ratio": 3.0, "probes": [], "calls": 3, "notes": [], "verdict": failure, "seconds": 1.0, "smallest": None,
    }  # fmt: skip
    head = {"format_version": 1, "kind": "moeracle bisect stages", "environment": report.environment()}
    return {**head, "target": "k.py", "device": None, "kernel": kernel, "single_kernels": None}


def git_json(first: bool = True, told: bool = True) -> dict[str, Any]:
    """What `bisect git` writes of seven revisions: good, does not build, flaky, bad."""
    commits = [Commit(f"{i}" * 40, "A. Engineer", "2026-01-02", f"change {i} {NASTY}") for i in range(7)]
    plan = Plan(commits[0].id, commits[6].id, "kernels/moe.py", CASE, "make -j8")
    judged = [
        Judged(commits[0].id, "good", max_ratio=0.4, seconds=2.0),
        Judged(commits[2].id, "skip", "does not build (exit code 1)", "build"),
        Judged(commits[3].id, "bad", "256 of 256 elements illegal", max_ratio=float("inf"), stage="out"),
        Judged(commits[6].id, "bad", "256 of 256 elements illegal", max_ratio=20000.0, stage="out"),
    ]
    found = HistoryReport(plan, commits, {j.commit: j for j in judged}, Found(commits[3].id if first else ""))
    if not first:
        found.found = replace(found.found, suspects=[commits[2].id, commits[3].id])
    found.diff_stat, found.notes = ["kernels/moe.py | 4 ++--"], ["one was passed over"]
    found.stages, found.seconds = stages() if told else None, 98.8
    head = {"format_version": 1, "kind": "moeracle bisect git", "environment": report.environment()}
    return json.loads(json.dumps(report.plain({**head, **found.as_dict()})))


def config_json() -> dict[str, Any]:
    """What `bisect config` writes."""
    found = ConfigReport({"SPLIT_K": "1"}, {"SPLIT_K": "4", "FAST": "", "TILE": "9"}, ["SPLIT_K", "FAST", "TILE"])
    found.minimal, found.without = ["SPLIT_K", "FAST"], Answer("legal", "legal", "", 0.1, 9.0)
    found.answers = [((), Answer("legal", max_ratio=0.5)), (("SPLIT_K", "FAST"), Answer("illegal", "127 illegal"))]
    found.stages = stages()
    head = {"format_version": 1, "kind": "moeracle bisect config", "target": "conf.py", "case": CASE}
    return json.loads(json.dumps(report.plain({**head, "environment": report.environment(), **found.as_dict()})))
