"""One step of a bisection over revisions: build what is checked out, judge it in a process of its own, remember it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

from moeracle.files import FIRST_ERROR, parse_json, read_bytes

from .history_state import BAD, GOOD, SKIP, Judged, Memory, Plan

UNLOADABLE = 2  # exit code of a judgement whose TARGET cannot be loaded
LAST_WORDS = 300


class Ended(NamedTuple):
    """How a command ended: its exit code (negative: the signal), or None where it did not end in time."""

    code: int | None
    seconds: float


def run_bounded(command: str | list[str], cwd: Path, timeout: float, log: Path, env: dict[str, str]) -> Ended:
    """Run a command in a session of its own, its output appended to a file; kill all of it when its time is up.

    Args:
        command: a shell's line, or words.
        cwd: where.  timeout: seconds.  log: gets stdout and stderr.  env: its environment.
    """
    started = time.monotonic()
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=cwd, shell=isinstance(command, str), stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, env=env, start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # also on Ctrl-C: nothing that was started goes on
            _kill_session(process)
    return Ended(code, time.monotonic() - started)


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def environment_for(worktree: Path) -> dict[str, str]:
    """Return the environment of a build and a judgement: the worktree's modules first, no stale bytecode."""
    ours = [str(worktree), *([str(worktree / "src")] if (worktree / "src").is_dir() else [])]
    if (worktree / "src" / "moeracle").is_dir():
        ours = [str(worktree)]  # the oracle stays the same for all revisions, also of its own repository
    before = [str(Path(path).resolve()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    env = dict(os.environ)
    for name in [name for name in env if name.startswith("GIT_")]:
        del env[name]  # git bisect's own: a build that runs git must see the worktree as anyone would
    env["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*ours, *before, str(Path(__file__).parents[3])]))
    env["PYTHONDONTWRITEBYTECODE"] = "1"  # revisions change faster than a file's time stamp
    return env


def step(folder: Path, worktree: Path, commit: str, harness: Path | None = None) -> Judged:
    """Judge the commit that is checked out in a worktree; return what it is, remembered or judged now.

    Args:
        folder: the plan's memory.
        worktree: ours; left without changes to files that git knows.
        commit: the full id of what is checked out.
        harness: a TARGET file that no revision holds, or None.
    """
    memory = Memory(folder)
    judged = memory.get(commit)
    if judged is None:
        plan = memory.plan()
        try:
            with harness_in(worktree, plan.target, harness):
                judged = judge_commit(memory, plan, worktree, commit)
        finally:  # a build may have changed files of the revision, and git would not leave it then
            subprocess.run(["git", "reset", "--quiet", "--hard"], cwd=worktree, capture_output=True, check=False)
        memory.put(judged)
    return judged


@contextmanager
def harness_in(worktree: Path, target: str, harness: Path | None) -> Iterator[None]:
    """Put a TARGET file that no revision holds where the target says, and take it away again."""
    if harness is None:
        yield
        return
    place = worktree / (target.partition(".py")[0] + ".py")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(harness.read_bytes())
    try:
        yield
    finally:
        place.unlink(missing_ok=True)


def judge_commit(memory: Memory, plan: Plan, worktree: Path, commit: str) -> Judged:
    """Build and judge one commit."""
    log, env = memory.log(commit), environment_for(worktree)
    log.write_bytes(b"")
    built = Ended(0, 0.0)
    if plan.build:
        built = run_bounded(plan.build, worktree, plan.timeout, log, env)
        if built.code is None:
            reason = f"the build did not end in {plan.timeout:g} s"
            return Judged(commit, SKIP, reason, "build timeout", build_seconds=built.seconds)
        if built.code != 0:
            reason = f"does not build (exit code {built.code}): {last_words(log)}"
            return Judged(commit, SKIP, reason, "build", build_seconds=built.seconds)
    answer = worktree.parent / "answer.json"
    words = [sys.executable, "-m", "moeracle", "bisect", "judge", plan.target, "--case", plan.case]
    words += ["--repeat", str(plan.repeat), "--json", str(answer)]
    words += ["--device", plan.device] if plan.device else []
    try:
        ended = run_bounded(words, worktree, plan.timeout, log, env)
        written = read_answer(answer)
    finally:
        answer.unlink(missing_ok=True)
    judged = conclude(commit, plan, ended, written, last_words(log))
    judged.build_seconds, judged.seconds = built.seconds, ended.seconds
    return judged


@dataclass
class Said:
    """What one judgement of `bisect judge` said."""

    status: str
    stage: str
    tier: str
    reason: str
    max_ratio: float | None

    __pydantic_config__: ClassVar[Any] = {"extra": "ignore"}


@dataclass
class Answer:
    """What `bisect judge --json` writes, as far as it is asked."""

    verdicts: Annotated[list[Said], FIRST_ERROR]

    __pydantic_config__: ClassVar[Any] = {"extra": "ignore"}


def read_answer(path: Path) -> dict[str, Any] | None:
    """Return what `bisect judge` wrote; None where it wrote nothing, or the kernel wrote something else there."""
    try:
        data = read_bytes(path, "bisect")
        held = parse_json(data, Answer, "bisect").verdicts
        return parse_json(data, dict[str, Any], "bisect") if held else None
    except ValueError:
        return None


def conclude(commit: str, plan: Plan, ended: Ended, written: dict[str, Any] | None, words: str) -> Judged:
    """Turn how a judgement ended, and what it wrote, into good, bad or skip."""
    if ended.code is None:
        return Judged(commit, BAD, f"the kernel did not end in {plan.timeout:g} s", tier="call")
    if written is None:
        if ended.code < 0 or ended.code > 128:
            number = -ended.code if ended.code < 0 else ended.code - 128
            return Judged(commit, BAD, f"the kernel killed its process (signal {number})", tier="call")
        kind = "target" if ended.code == UNLOADABLE else "unjudged"
        return Judged(commit, SKIP, words.removeprefix("error: ") or f"exit code {ended.code}", kind)
    verdicts = written["verdicts"]
    statuses = [verdict["status"] for verdict in verdicts]
    ratios = [float(verdict["max_ratio"]) for verdict in verdicts if verdict["max_ratio"] is not None]
    judged = Judged(commit, GOOD, "legal", statuses=statuses, max_ratio=max(ratios, default=None))
    wrong = next((verdict for verdict in verdicts if verdict["status"] == "illegal"), None)
    if wrong is not None and len(set(statuses)) > 1:
        said = f"{statuses.count('illegal')} of {len(statuses)} judgements of the same case say illegal"
        judged.verdict, judged.kind, judged.reason = SKIP, "flaky", said
    elif wrong is not None:
        judged.verdict, judged.stage, judged.tier = BAD, wrong["stage"], wrong["tier"]
        judged.reason = wrong["reason"]
    elif "legal" not in statuses:
        judged.verdict, judged.kind, judged.reason = SKIP, "unjudged", verdicts[0]["reason"] or statuses[0]
    return judged


def last_words(log: Path) -> str:
    """Return the last line that says something."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return next((line.strip()[:LAST_WORDS] for line in reversed(lines) if line.strip()), "no output")
