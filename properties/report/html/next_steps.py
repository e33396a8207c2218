"""What a page proposes after a failure: commands made of the line that replays it, and the document to read."""

from __future__ import annotations

import shlex
from typing import Any

from ...cases.record import record_of
from ...common.endings import ENDINGS

READ = {"statistics": "statistics", "interval": "numerics", "bits": "numerics", **dict.fromkeys(ENDINGS, "isolation")}


def next_steps(failure: dict[str, Any], replay: str) -> list[tuple[str, str]]:
    """Return what may be done next, each in words and as a command.

    Args:
        failure: of a report.
        replay: the command that judges it again; where that is none of `moeracle check`, only a document is named.
    """
    read = ("What this check compares", f"moeracle docs {READ.get(failure['tier'], 'reports')}")
    words = shlex.split(replay)
    if words[:2] != ["moeracle", "check"]:
        return [read]
    target, case = shlex.quote(words[2]), shlex.quote(failure["case"])
    device = f" --device {shlex.quote(words[-1])}" if "--device" in words else ""
    record, steps = record_of(failure["op"]), []
    if record.bisected_by_stages:
        steps.append(
            ("Which stage is wrong first, and with which known fault", f"bisect stages {target} --case {case}")
        )
    git = f"bisect git {target} --good REV --bad HEAD --case {case}"
    steps.append(("Which commit made it wrong, where an older one was legal", git))
    if record.inferred and failure["tier"] in ("bits", "interval", "statistics"):
        steps.append(
            ("Which contract the kernel keeps, if not the declared one", f"infer {target} --op {failure['op']}")
        )
    return [*((text, f"moeracle {command}{device}") for text, command in steps), read]
