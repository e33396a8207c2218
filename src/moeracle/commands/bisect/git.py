"""`moeracle bisect git`: the commit that first made a kernel wrong."""

from __future__ import annotations

import hashlib
import io
import os
import sys
from pathlib import Path
from typing import Any

from moeracle.exit_codes import ILLEGAL, INTERRUPTED
from moeracle.files import read_json, write_atomically
from moeracle.properties.bisect.history import EndsError, HistoryReport, bisect_history
from moeracle.properties.bisect.history_git import Commit, Repository
from moeracle.properties.bisect.history_plot import text_plot, write_png
from moeracle.properties.bisect.history_runner import environment_for, run_bounded
from moeracle.properties.bisect.history_state import Judged, Plan

from ..console import note, say
from ..options import GitOptions

MOST_STAT = 20
FORMAT_VERSION = 1


def run_git(options: GitOptions) -> int:
    """Find the first bad commit and print it; return the exit code."""
    from moeracle.properties.cases.case import Case
    from moeracle.properties.report import report

    from ..loading import check_asked

    check_asked(None, options.device)
    case = Case.parse(options.case)
    for path in (options.json, options.plot):
        report.require_writable(path)
    repository = Repository(options.repo)
    good, bad = repository.commit(options.good, "--good"), repository.commit(options.bad, "--bad")
    repository.check_order(good, bad)
    target, harness = _target(options.target, repository, good, bad)
    plan = Plan(
        good, bad, target, str(case), options.build, options.device or "", options.repeat, options.timeout,
        hashlib.sha256(harness.read_bytes()).hexdigest()[:12] if harness else "",
    )  # fmt: skip
    commits = repository.between(good, bad)
    steps = max(1, (len(commits) - 1).bit_length())
    note(f"{len(commits) - 1} revisions from {good[:10]} to {bad[:10]}, about {steps} to judge")
    if harness:
        note(f"{target} is not in {bad[:10]}: the file on disk judges every revision")
    elif repository.changes():
        note(
            f"{repository.changes()} uncommitted changes in {repository.top} belong to no revision; they are not judged"
        )
    try:
        found = bisect_history(
            repository, plan, harness=harness, forget=options.forget, on_judged=_print_judged,
            on_waiting=lambda: note("another run of this bisection is at work: waiting for what it finds"),
            examine=lambda tree: _examine(tree, plan),
        )  # fmt: skip
    except KeyboardInterrupt:
        note("interrupted: nothing is lost; the same command goes on from here")
        return INTERRUPTED
    except EndsError as error:
        raise ValueError(f"{error} (--forget judges anew)") from None
    _print(found)
    if options.plot is not None:
        drawn = io.BytesIO()
        write_png(found, drawn)
        write_atomically(options.plot, drawn.getvalue())
    if options.json is not None:
        head: dict[str, Any] = {"format_version": FORMAT_VERSION, "kind": "moeracle bisect git"}
        report.write_json(options.json, {**head, "environment": report.environment(), **found.as_dict()})
    return ILLEGAL


def _target(text: str, repository: Repository, good: str, bad: str) -> tuple[str, Path | None]:
    """Return the TARGET as the worktree sees it, and the file on disk if BAD does not hold it."""
    if text.partition(":")[0] == "moeracle.kernels":
        message = (
            "must be a file of the repository, like kernels/moe.py: the running library's registry is always the same"
        )
        raise ValueError(f"TARGET: got {text!r}, {message}")
    place, dot, name = text.partition(".py")
    if not dot:
        return text, None
    path = Path(place + dot)
    if path.is_absolute():
        try:
            relative = Path(os.path.realpath(path)).relative_to(os.path.realpath(repository.top)).as_posix()
        except ValueError:
            relative = path.name
    else:
        relative = path.as_posix()
    if repository.holds(bad, relative):
        return relative + name, None
    on_disk = next(
        (p for p in (path if path.is_absolute() else repository.top / path, Path(place + dot)) if p.is_file()), None
    )
    if on_disk is None:
        held = "GOOD holds it" if repository.holds(good, relative) else "neither does GOOD"
        raise ValueError(f"TARGET: got {text!r}, which BAD {bad[:10]} does not hold, and no file on disk ({held})")
    return relative + name, Path(os.path.realpath(on_disk))


def _examine(tree: Path, plan: Plan) -> dict[str, Any] | None:
    """Run `bisect stages` on the first bad commit, in a process of its own; None where that fails."""
    env, answer, log = environment_for(tree), tree.parent / "stages.json", tree.parent / "log"
    if plan.build and run_bounded(plan.build, tree, plan.timeout, log, env).code != 0:
        return None
    words = [sys.executable, "-m", "moeracle", "bisect", "stages", plan.target, "--case", plan.case]
    words += ["--json", str(answer), *(["--device", plan.device] if plan.device else [])]
    run_bounded(words, tree, plan.timeout, log, env)
    return read_json(answer, dict[str, Any], "bisect") if answer.exists() else None


def _print_judged(commit: Commit, judged: Judged, remembered: bool) -> None:
    what = judged.verdict if not judged.kind else f"passed over ({judged.kind})"
    seconds = "remembered" if remembered else f"{judged.build_seconds + judged.seconds:.1f} s"
    reason = "" if judged.verdict == "good" else f": {judged.reason}"
    note(f"{commit.short} {what}, {seconds}{reason}")


def _print(found: HistoryReport) -> None:
    first = found.first_bad
    say("error / bound along the way (a bar beyond | is illegal)")
    for line in text_plot(found):
        say(f"  {line}")
    say()
    if first is None:
        say("no single commit can be told: those between the last good and the first bad one were passed over")
        for id in (c.id for c in found.commits if c.id in found.found.suspects):
            subject = next(c.subject for c in found.commits if c.id == id)
            say(f"  it is one of {id[:10]} {subject}")
    else:
        say(f"first bad commit: {first.id}")
        say(f"  {first.date} {first.author}: {first.subject}")
        for line in found.diff_stat[:MOST_STAT]:
            say(f"  {line}")
        if len(found.diff_stat) > MOST_STAT:
            say(f"  and {len(found.diff_stat) - MOST_STAT} lines more")
        judged = found.judged[first.id]
        say(f"  {judged.reason}")
        for line in stage_lines(found.stages):
            say(f"  {line}")
    for line in found.notes:
        say(f"note: {line}")
    say(
        f"{len(found.judged)} of {len(found.commits)} revisions judged, {found.remembered} of them before; "
        f"{found.seconds:.1f} s"
    )


def stage_lines(stages: dict[str, Any] | None) -> list[str]:
    """Return the stage, the known fault and the smallest case of a `bisect stages` result, in lines."""
    kernel = (stages or {}).get("kernel")
    if not kernel:
        return ["its first wrong stage could not be told: `moeracle bisect stages` gave no result there"]
    fault, least = kernel["fault"], kernel["smallest"]
    named = "none that explains it" if fault is None else fault["title"]
    lines = [
        f"first wrong stage: {kernel['stage'] or 'not told'}" + (f" (or {kernel['also']})" if kernel["also"] else "")
    ]
    lines.append(f"known fault: {named}")
    if least is not None:
        lines.append(f"smallest case: {least['case']}")
    return lines
