"""Writing down what a check found: JSON (its schema is docs/json.md) and JUnit XML, each atomically."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import reduce
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any
from xml.etree import ElementTree

from moeracle.files import require_writable as require_writable
from moeracle.files import write_atomically as write_atomically

from ..common.drift import Drift
from ..common.verdict import StageResult, Verdict
from ..hunt import reach
from ..hunt.effort import HuntResult

__all__ = ["Report", "write_json", "write_junit"]

FORMAT_VERSION = 1


@dataclass
class Report:
    """One run of `moeracle check`: what was asked, when, and the results, kernel by kernel.

    Args:
        target: the TARGET's text.
        command: its words.
        device: where, or None: each kernel's own.
        profile: the name of the profile, or None: cases were named.
        seed: of the drawn cases.
        started: seconds since the epoch.
        seconds: how long it took.
        exit_code: what the command returns.
        results: one for each kernel.
        in_process: whether kernels ran in the judge's own process.
        confined: of `--adversarial`, what the system kept kernels from; else None.
        weights: the options that say where weights came from, for the command that replays; "": they were made.
        known: of `--known`, by op.kernel: what its entry says, and what is wrong with it, or "".
        targets: by op.kernel, what a replay line names, where that is not `target`.
    """

    target: str
    command: list[str]
    device: str | None
    profile: str | None
    seed: int
    started: float
    seconds: float
    exit_code: int
    results: list[HuntResult]
    in_process: bool = False
    confined: dict[str, bool] | None = None
    weights: str = ""
    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)


def name_of(result: HuntResult) -> str:
    """Return op.kernel."""
    return f"{result.op}.{result.kernel}"


def is_known(report: Report, result: HuntResult) -> bool:
    """Say whether a kernel's failure is one that --known expects."""
    return is_expected(report.known.get(name_of(result)))


def is_expected(known: Mapping[str, Any] | None) -> bool:
    """Say whether what JSON has as a kernel's `known` is there and holds."""
    return known is not None and bool(known) and not known["wrong"]


def known_text(known: Mapping[str, Any]) -> str:
    """Return in one line what JSON has as a kernel's `known`: what is wrong with it, or why the kernel fails."""
    return known["wrong"] or f"known failure until {known['expires']}: {known['reason']} ({known['issue']})"


def failure_text(report: Report, verdict: Verdict) -> str:
    """Return a failure's text; its last line is the command that judges the same kernel on the same device again."""
    of_this_op = sum(result.op == verdict.op for result in report.results)
    narrow = of_this_op > 1 and not report.target.endswith(f":{verdict.kernel}")
    target = f"{report.target}:{verdict.kernel}" if narrow else report.target
    text = verdict.text(report.targets.get(f"{verdict.op}.{verdict.kernel}", target))
    text += report.weights
    return f"{text} --device {report.device}" if report.device else text


def stage_totals(verdicts: list[Verdict]) -> list[StageResult]:
    """Sum up each stage over verdicts: counts added, widths by their median, ratios by their maximum."""
    by_stage: dict[str, list[StageResult]] = {}
    for verdict in verdicts:
        for stage in verdict.stages:
            if stage.judged:
                by_stage.setdefault(stage.stage, []).append(stage)
    return [_total(name, stages) for name, stages in by_stage.items()]


def totals(result: HuntResult) -> StageResult | None:
    """Sum up everything a hunt judged as if it were one stage, or None if it judged no element."""
    stages = [s for v in result.judged for s in v.stages if s.judged]
    return _total("all", stages) if stages else None


def _total(name: str, stages: list[StageResult]) -> StageResult:
    return StageResult(
        stage=name,
        judged=sum(s.judged for s in stages),
        illegal=sum(s.illegal for s in stages),
        exact=sum(s.exact for s in stages),
        width_ulp=median(s.width_ulp for s in stages),
        max_ratio=max(s.max_ratio for s in stages),
        conditioned=all(s.conditioned for s in stages),
        drift=reduce(Drift.plus, (s.drift for s in stages)),
        ratios=[sum(counts) for counts in zip(*(s.ratios for s in stages if s.ratios), strict=True)],
    )


def environment() -> dict[str, Any]:
    """Return the versions and the machine that a result depends on; no host or user names."""
    import torch

    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return {
        **{name: _version(name) for name in ("moeracle", "torch", "triton", "numpy", "hypothesis")},
        "python": platform.python_version(),
        "platform": " ".join((platform.system(), *platform.libc_ver())).strip(),
        "machine": platform.machine(),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "gpus": [torch.cuda.get_device_name(i) for i in gpus],
        "driver": _driver(),
        "threads": torch.get_num_threads(),
        "triton_interpreter": os.environ.get("TRITON_INTERPRET", "") not in ("", "0") and "triton" in sys.modules,
    }


def _driver() -> str | None:
    """Return the version of NVIDIA's kernel driver, or None where there is none to ask."""
    try:
        first = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
    return next((word for word in first.split() if word[:1].isdigit() and "." in word), None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree that was never installed
        return getattr(sys.modules.get(package), "__version__", None)


def isolation(in_process: bool) -> str:
    """Return what every report says of where kernels ran: with the judge, or in processes of their own."""
    return "none" if in_process else "child process"


def as_dict(report: Report) -> dict[str, Any]:
    """Return the report as plain values, in the shape that docs/json.md describes."""
    return {
        "format_version": FORMAT_VERSION,
        "kind": "moeracle check",
        "environment": environment(),
        "command": report.command,
        "target": report.target,
        "profile": report.profile,
        "seed": report.seed,
        "started": datetime.fromtimestamp(report.started, timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(report.seconds, 3),
        "exit_code": report.exit_code,
        "isolation": isolation(report.in_process),
        **({} if report.confined is None else {"adversarial": _scores(report, report.confined)}),
        "kernels": [_kernel(report, result) for result in report.results],
    }


def _scores(report: Report, confined: dict[str, bool]) -> dict[str, Any]:
    """Return what docs/adversarial.md promises: a score for every kernel, and why it is no more."""
    scores = [{"legal": 1.0, "illegal": 0.0}.get(result.status) for result in report.results]
    known = [score for score in scores if score is not None]
    kernels = [
        {"kernel": result.kernel, "op": result.op, "score": score, "reasons": _reasons(result)}
        for result, score in zip(report.results, scores, strict=True)
    ]
    whole = min(known) if len(known) == len(scores) or 0.0 in known else None
    return {"confined": confined, "score": whole, "kernels": kernels}


def _reasons(result: HuntResult) -> list[str]:
    unjudged = [] if result.judged else [result.error, *result.skipped]
    return [f"{v.tier}: {v.reason}" for v in result.failures] or [reason for reason in unjudged if reason]


def _kernel(report: Report, result: HuntResult) -> dict[str, Any]:
    whole = totals(result)
    return {
        "kernel": result.kernel,
        "op": result.op,
        "layout": result.layout,
        "contract": result.contract,
        "device": result.device,
        "source": result.source or None,
        "status": result.status,
        "cases_judged": len(result.judged),
        "judged": whole.judged if whole else 0,
        "illegal": whole.illegal if whole else 0,
        "exact": whole.exact if whole else 0,
        "width_ulp": whole.width_ulp if whole else None,
        "max_ratio": whole.max_ratio if whole else None,
        "seconds": round(result.seconds, 3),
        **({"error": result.error} if result.error else {}),
        **({"known": report.known[name_of(result)]} if name_of(result) in report.known else {}),
        "skipped": dict(sorted(result.skipped.items())),
        **({"left": dict(result.left)} if result.left else {}),
        "reach": reach.as_dict(result),
        "laws": dict(sorted(result.law_checks.items())),
        "stages": [stage.as_dict() for stage in stage_totals(result.judged)],
        "failures": [
            {**v.as_dict(), "text": failure_text(report, v), "found": _found(result, v)} for v in result.failures
        ],
        "cases": [_case(verdict, result.contract) for verdict in result.verdicts],
    }


def _found(result: HuntResult, failure: Verdict) -> dict[str, Any] | None:
    """Return the case that a failure was first seen on, before it was shrunk, with its maps; None if it is the same."""
    kind = (failure.status, failure.tier, failure.stage)
    first = next((v for v in result.verdicts if (v.status, v.tier, v.stage) == kind), failure)
    return None if first.case == failure.case else {"case": first.case, "illegal": first.illegal, "maps": first.maps}


def _case(verdict: Verdict, contract: str) -> dict[str, Any]:
    under = {} if verdict.contract in ("", contract) else {"contract": verdict.contract}  # its own schedule, or none
    counts = {"judged": verdict.judged, "illegal": verdict.illegal, "seconds": round(verdict.seconds, 4)}
    return {"case": verdict.case, "status": verdict.status, **under, **counts, "bits": verdict.bits}


def plain(value: Any) -> Any:
    """Replace what JSON cannot say, infinities, NaN and halves of surrogate pairs, by text that every reader takes."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def write_json(path: Path, content: Any) -> None:
    """Write a Report, or plain values, as JSON.

    Args:
        path: a file, which is replaced as a whole.
        content: a Report, or plain values.
    """
    values = plain(as_dict(content) if isinstance(content, Report) else content)
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    write_atomically(path, text)


def write_junit(path: Path, report: Report) -> None:
    """Write a Report as JUnit XML: one suite a kernel, one test a case, the failure text as the failure.

    junitparser 5.0 was tried in place of this: it writes a control byte of a kernel's name as it is, which no reader
    takes, or raises where lxml is installed, and sets a suite's time to the sum of its cases'.

    Args:
        path: a file, which is replaced as a whole.
        report: what it says.
    """
    root = ElementTree.Element("testsuites", name=f"moeracle check {report.target}", time=f"{report.seconds:.3f}")
    for result in report.results:
        _suite(root, report, result)
    ElementTree.indent(root, space=" ")
    for element in root.iter():
        element.attrib = {name: _xml(text) for name, text in element.attrib.items()}
        element.text = element.text and _xml(element.text)
    write_atomically(path, ElementTree.tostring(root, "utf-8", xml_declaration=True))


def _suite(root: ElementTree.Element, report: Report, result: HuntResult) -> None:
    name, shown = name_of(result), {id(v) for v in result.failures}
    entry = report.known.get(name)
    known = known_text(entry) if entry and is_expected(entry) else ""
    suite = ElementTree.SubElement(root, "testsuite", name=name, time=f"{result.seconds:.3f}")

    def add(what: str, kind: str = "", message: str = "", text: str | None = None, **time: str) -> None:
        test = ElementTree.SubElement(suite, "testcase", {"classname": name, "name": what, **time})
        if kind:
            ElementTree.SubElement(test, kind, message=message).text = text

    for verdict in result.verdicts:
        seconds, illegal = f"{verdict.seconds:.4f}", verdict.status == "illegal"
        if illegal and id(verdict) not in shown:
            continue  # shrinking leaves many verdicts of one failure behind: a test report wants it once
        if illegal and not known:
            message = f"tier={verdict.tier} stage={verdict.stage} {verdict.reason}".strip()
            add(verdict.case, "failure", message, failure_text(report, verdict), time=seconds)
        elif verdict.status == "legal":
            add(verdict.case, time=seconds)
        else:
            add(verdict.case, "skipped", known if illegal else verdict.reason or verdict.status, time=seconds)
    if entry and not known:
        add("known failure", "failure", known_text(entry))
    if result.error:
        add("judging failed", "error", result.error)
    elif result.status == "unjudged" and result.left:
        add("not judged to its end", "skipped", f"the time was over; left: {result.left_words}")
    elif result.status == "unjudged":
        add("nothing could be judged", "skipped", "; ".join(result.skipped) or "no case")
    for count, tag in {"tests": "testcase", "failures": "failure", "skipped": "skipped", "errors": "error"}.items():
        suite.set(count, str(len(suite.findall(f".//{tag}"))))


def _xml(text: str) -> str:
    """Leave out what no XML file may hold, escaped or not: a kernel's exception may say anything."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)
