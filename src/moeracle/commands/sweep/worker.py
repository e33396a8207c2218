"""One worker of a campaign: takes a chunk that nobody has, judges its cases, writes them down, takes the next."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from moeracle.case_database import add_cases
from moeracle.files import remove_abandoned_files, write_atomically
from moeracle.properties.cases.case import Case
from moeracle.properties.common.endings import ENDINGS
from moeracle.properties.common.verdict import Verdict, failed, replay_command
from moeracle.properties.hunt.hunt import not_judged
from moeracle.properties.hunt.search import Judge
from moeracle.properties.hunt.shrink import shrink
from moeracle.properties.report import report
from moeracle.properties.trial.trial import run_trial
from moeracle.target.declaration import Kernel
from moeracle.target.load import place_of
from moeracle.target.sources import digest_of

from ..loading import limits_of, load, release
from ..process import prepare_to_judge
from .journal import FAILURES, PARTS, Journal, finished
from .plan import Plan, Subject, cases_of, read_plan

ENDED = "ended"  # folder of a campaign: one file a kernel, one line for each case that ended its process
MOST_ENDED = 20  # cases that end a kernel's process, after which no further chunk of it is begun
MOST_BEGUN = 3  # times that a case is begun by workers that were killed over it
MOST_SHRUNK = 2  # failures of one kernel, tier and stage that are shrunk; each failing case is a row anyway
SHRINK_COST = 400  # in smallest cases (properties/cases/cost.py)
DISK, OTHERS_LEFT = 74, 75  # exit codes: nothing can be written; this one has done its share, and cases are left
WAIT = 0.5  # seconds until it is looked again whether a chunk can be had
SHARE = 10_000  # cases of one process: what kernels leak goes with it
VERSIONS = ("moeracle", "torch", "triton", "numpy", "python", "cuda", "hip", "driver")


def work(folder: Path, seconds: float | None = None, share: int = SHARE) -> bool:
    """Judge chunks of a campaign until none is left, or the time is over, or this process has done its share.

    Args:
        folder: the campaign's.
        seconds: of this call; None: any.
        share: cases after which no further chunk is taken.
    Returns:
        Whether this call saw that nothing is left to be done.
    Raises:
        ValueError: a TARGET cannot be loaded, or declares other kernels than when the campaign began.
        OSError: nothing can be written.
    """
    prepare_to_judge()
    plan, parent = read_plan(folder), os.getppid()
    until = None if seconds is None else time.monotonic() + seconds
    kernels: dict[int, Kernel] = {}
    done = 0
    _clean(folder)

    def over() -> bool:
        return (until is not None and time.monotonic() >= until) or os.getppid() != parent

    try:
        while True:
            seen, took = finished(folder), False
            for chunk in count() if plan.chunks is None else range(plan.chunks):
                if over() or done >= share:
                    return False
                at = plan.kernel_of(chunk)
                if chunk in seen or given_up(folder, at):
                    if plan.chunks is None and all(given_up(folder, k) for k in range(len(plan.kernels))):
                        return True
                    continue
                with Journal(folder, chunk) as journal:
                    if not journal.take():
                        continue
                    if at not in kernels:
                        kernels[at] = _load(plan, at)
                    done += _judge_chunk(folder, plan, at, kernels[at], journal, over)
                    seen, took = finished(folder), True
            if not left(folder, plan):
                return True
            if not took:  # others are at work on the last ones, and may be killed
                time.sleep(WAIT)
    finally:
        for kernel in kernels.values():
            release(kernel)


def _clean(folder: Path) -> None:
    """Remove what killed workers left: temporary files, and journals of chunks that are finished."""
    for name in (PARTS, FAILURES):
        remove_abandoned_files(folder / name)
    for chunk in finished(folder):
        if Journal(folder, chunk).path.exists():
            with Journal(folder, chunk) as journal:
                journal.take()


def left(folder: Path, plan: Plan) -> int:
    """Return how many chunks are not finished, of kernels that are not given up."""
    if plan.chunks is None:
        return 1
    seen, lost = finished(folder), {at for at in range(len(plan.kernels)) if given_up(folder, at)}
    return sum(chunk not in seen and plan.kernel_of(chunk) not in lost for chunk in range(plan.chunks))


def given_up(folder: Path, at: int) -> bool:
    """Say whether a kernel ended its process so often that no further chunk of it is begun."""
    try:
        return len((folder / ENDED / str(at)).read_bytes().splitlines()) >= MOST_ENDED
    except FileNotFoundError:
        return False


def _load(plan: Plan, at: int) -> Kernel:
    subject = plan.kernels[at]
    limits = limits_of(plan.case_timeout, plan.max_memory)
    target = load(subject.target, plan.device, False, limits, ranks=True)
    for kernel in target.kernels:
        now = subject_of(subject.target, kernel)
        if now == subject:
            return kernel
        if replace(now, source=subject.source) == subject:
            raise ValueError(f"TARGET {subject.target}: its code is not what it was when the campaign began")
    raise ValueError(
        f"TARGET {subject.target}: declares no [{subject.op}] {subject.name} with {subject.contract} any more"
    )


def subject_of(target: str, kernel: Kernel) -> Subject:
    """Return what a campaign's plan says of a kernel."""
    source = digest_of(place_of(target)) or ""
    return Subject(target, kernel.op, kernel.name, kernel.contract.name, kernel.device, source)


def _judge_chunk(folder: Path, plan: Plan, at: int, kernel: Kernel, journal: Journal, over: Callable[[], bool]) -> int:
    """Judge what is left of a chunk and return how many cases that was; stops between two cases."""
    if journal.cases is None:
        journal.plan([str(case) for case in cases_of(plan, kernel, journal.chunk)])
    about = {
        "op": kernel.op, "kernel": kernel.name, "target": plan.kernels[at].target, "contract": kernel.contract.name,
        "chunk": journal.chunk, "host": platform.node(), "device": _device(kernel.device), "versions": _versions(),
    }  # fmt: skip
    done = 0
    for text in journal.left():
        if over() or given_up(folder, at):
            return done
        case = Case.parse(text)
        if journal.begin(text) >= MOST_BEGUN:
            verdict = failed(
                Verdict(kernel.op, text), "exit", "", f"the process that judged it ended {MOST_BEGUN} times"
            )
        else:
            verdict = run_trial(kernel, case, explain=False)
        if verdict.tier in ENDINGS:
            _note_ending(folder, at, text)
            forgive = getattr(kernel.fn, "forgive", None)
            if forgive:
                forgive()
        elif verdict.status == "illegal":
            _keep_failure(folder, plan, at, kernel, case, verdict)
        journal.finish({**row_of(verdict), **about, "finished": round(time.time(), 3)})
        done += 1
    journal.close_chunk()
    return done


def row_of(verdict: Verdict) -> dict[str, Any]:
    """Return the columns of a row that a verdict fills."""
    stages = verdict.stages
    return {
        "case": verdict.case, "verdict": verdict.status, "tier": verdict.tier, "stage": verdict.stage,
        "reason": verdict.reason, "digests": json.dumps(verdict.bits, separators=(",", ":")),
        "judged": verdict.judged, "illegal": verdict.illegal, "exact": verdict.exact,
        "width_ulp": float(max((s.width_ulp for s in stages), default=0.0)),
        "max_ratio": float(max((s.max_ratio for s in stages), default=0.0)), "seconds": round(verdict.seconds, 4),
    }  # fmt: skip


def _note_ending(folder: Path, at: int, case: str) -> None:
    with open(folder / ENDED / str(at), "a") as file:
        file.write(case + "\n")


def _keep_failure(folder: Path, plan: Plan, at: int, kernel: Kernel, case: Case, verdict: Verdict) -> None:
    """Shrink a failure where it was found, and keep its case and its text for everybody; the first few of a kind."""
    kind = f"{at:03d}-{verdict.tier}-{verdict.stage or 'all'}-"
    if sum(name.startswith(kind) for name in os.listdir(folder / FAILURES)) >= MOST_SHRUNK:
        return
    judge = Judge(kernel, run_trial, not_judged(kernel), SHRINK_COST)
    if judge.same_failure(case):
        verdict = judge.explained(shrink(case, judge.same_failure))
    else:
        verdict.summary.append("judged again at once, it did not fail in this way")
    target = plan.kernels[at].target
    said = {
        "op": kernel.op, "kernel": kernel.name, "target": target, "case": verdict.case, "found": str(case),
        "tier": verdict.tier, "stage": verdict.stage,
        "text": verdict.text(target, replay_command(target, verdict.case)),
    }  # fmt: skip
    digest = hashlib.sha256(verdict.case.encode()).hexdigest()[:12]
    write_atomically(folder / FAILURES / f"{kind}{digest}.json", json.dumps(said, indent=1) + "\n")
    if plan.database is not None:
        add_cases(Path(plan.database), [verdict.case])


def _device(device: str) -> str:
    if device.partition(":")[0] != "cuda":
        return device
    import torch

    return f"{device} {torch.cuda.get_device_name(device)}"


def _versions() -> str:
    found = report.environment()
    return " ".join(f"{name} {found[name]}" for name in VERSIONS if found.get(name))


def main(folder: str, seconds: str) -> int:
    """Work in a process of its own; return the exit code: 0: nothing is left, OTHERS_LEFT, DISK, or 2 with one line."""
    try:
        return 0 if work(Path(folder), float(seconds) if seconds else None) else OTHERS_LEFT
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or folder}: {error.strerror}", file=sys.stderr)
        return DISK


if __name__ == "__main__":
    from moeracle.isolate.start import start_early

    start_early(True)
    sys.exit(main(sys.argv[1], sys.argv[2]))
