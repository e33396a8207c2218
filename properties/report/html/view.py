"""What a report page shows, from the JSON that `moeracle check` writes: one run in full, several as a history."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from moeracle.files import read_json
from moeracle.ref.contracts.contract import Contract, contract
from moeracle.ref.errors import require

from ..report import is_expected, known_text
from ..schemas import read_as
from . import bisected, searched
from .charts import histogram, history, share, short
from .heat import counted, heat_map, number
from .next_steps import next_steps

KIND, FORMAT_VERSION = "moeracle check", 1
KINDS = (KIND, bisected.KIND, searched.GIT, searched.CONFIG)
KNOWN = "known failure"
STATUS = {"legal": "legal", "illegal": "illegal", "unjudged": "not judged"}
VERDICT = {0: ("legal", "All judged, all legal"), 1: ("illegal", "Something is wrong"), 3: ("unjudged", "Not judged")}


def read_run(path: Path) -> dict[str, Any]:
    """Return the run that a JSON file holds.

    Raises:
        ValueError: in one line: no such file, not JSON, of another kind, of an unknown format, or damaged.
    """
    require(path.is_file(), f"report: {path}: no such file")
    run = read_json(path, dict[str, Any], "report")
    kind = run.get("kind")
    must = f"must be {', '.join(map(repr, KINDS[:-1]))} or {KINDS[-1]!r}: what --json of that command wrote"
    require(kind in KINDS, f"report: {path}: got kind {kind!r}, {must}")
    try:
        found = _as_run(run, str(path))
        view_of([found])  # whatever the page will ask for is there
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if str(error).startswith("report: "):
            raise
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0][:100]
        raise ValueError(f"report: {path} is damaged ({what})") from None
    return found


def _as_run(run: dict[str, Any], path: str) -> dict[str, Any]:
    if run["kind"] == bisected.KIND:
        return bisected.as_run(run, path)
    if run["kind"] in (searched.GIT, searched.CONFIG):
        return searched.as_run(run, path)
    bisected.check_format(run, path, FORMAT_VERSION)
    read_as("check", run, f"report: {path}")
    return dict(run)


def check_history(runs: Sequence[dict[str, Any]], paths: Sequence[Path]) -> None:
    """Raise ValueError, in one line, if several files are not all of `moeracle check`: only these make a history."""
    other = [str(path) for run, path in zip(runs, paths, strict=True) if run.get("kind") != KIND]
    require(
        len(runs) < 2 or not other,
        f"report: {(other or [''])[0]}: a bisection makes a page of its own, must be given alone; "
        f"several files make a history, and must be of {KIND!r}",
    )


def view_of(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the page's content: the newest run in full, and the history where there are several.

    Args:
        runs: as `read_run` returns them, at least one, in any order.
    """
    ordered = sorted(runs, key=lambda run: str(run["started"]))
    run = ordered[-1]
    kernels = [_kernel(kernel) for kernel in run["kernels"]]
    failures = [failure for kernel in kernels for failure in kernel["failures"]]
    for place, failure in enumerate(failures, 1):
        failure["id"] = f"failure-{place}"
    kind, words = VERDICT.get(run["exit_code"], ("illegal", f"Exit code {run['exit_code']}"))
    wrong = sum(kernel["status"] == "illegal" and kernel["word"] != KNOWN for kernel in kernels)
    search = run.get("search")
    detail = f"{wrong} of {counted(len(kernels), 'kernel')} illegal" if wrong else counted(len(kernels), "kernel")
    stale = sum(bool(kernel["known"]) and kernel["word"] != KNOWN for kernel in kernels)
    detail += f", {counted(stale, 'known failure')} not as listed" if stale else ""
    return {
        "title": run["target"],
        "verdict": kind,
        "verdict_words": search["words"] if search else f"{words}: {detail}",
        "facts": _facts(run),
        "search": {**search, "command": shlex.join(search["command"])} if search else None,
        "command": shlex.join(run["command"]),
        "kernels": kernels,
        "failures": failures,
        "contracts": _contracts(sorted({kernel["contract"] for kernel in kernels})),
        "environment": _environment(run["environment"]),
        "history": _history(ordered) if len(ordered) > 1 else None,
        "bisection": run.get("bisection"),
        "maps": [shown["data"] for failure in failures for group in failure["groups"] for shown in group["maps"]],
    }


def _facts(run: dict[str, Any]) -> list[tuple[str, str]]:
    env = run["environment"]
    on = ", ".join(env.get("gpus") or []) or f"CPU ({env.get('machine')})"
    if run.get("search"):
        whole = [*run["search"]["facts"], ("took", f"{run['seconds']:,.1f} s"), ("on", on)]
        return [*whole, ("moeracle", str(env.get("moeracle")))]
    facts = [("started", str(run["started"])), ("took", f"{run.get('seconds', 0):,.1f} s"), ("on", on)]
    facts += [("profile", str(run["profile"]))] if run.get("profile") else [("cases", "given with --case")]
    facts += [("seed", str(run["seed"]))] if run.get("seed") is not None else []
    return [(name, value) for name, value in [*facts, ("moeracle", str(env.get("moeracle")))] if value]


def _kernel(kernel: dict[str, Any]) -> dict[str, Any]:
    judged, exact = kernel["judged"], kernel["exact"]
    return {
        **{name: kernel[name] for name in ("kernel", "op", "contract", "status", "skipped", "laws", "cases_judged")},
        "word": KNOWN if is_expected(kernel.get("known")) else STATUS.get(kernel["status"], kernel["status"]),
        "known": known_text(kernel["known"]) if kernel.get("known") else "",
        "layout": kernel.get("layout") or "any",
        "device": kernel["device"],
        "judged": f"{judged:,}",
        "illegal": f"{kernel['illegal']:,}",
        "exact": share(exact, judged) if judged else "-",
        "width": short(_or_none(kernel["width_ulp"])),
        "ratio": short(_or_none(kernel["max_ratio"])),
        "seconds": f"{kernel['seconds']:,.1f}",
        "stages": [_stage(stage) for stage in kernel["stages"]],
        "failures": [_failure(kernel, failure) for failure in kernel["failures"]],
    }


def _or_none(value: Any) -> float | None:
    return None if value is None else number(value)


def _stage(stage: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": stage["stage"],
        "judged": f"{stage['judged']:,}",
        "illegal": stage["illegal"],
        "illegal_words": f"{stage['illegal']:,}",
        "width": short(_or_none(stage["width_ulp"])),
        "ratio": short(_or_none(stage["max_ratio"])),
        "from": "judged from its own input" if stage["conditioned"] else "judged end to end",
        "z": f"{short(number(stage['z_bias']))}, {short(number(stage['z_rms']))}" if stage.get("tested") else "-",
        "histogram": histogram(stage.get("ratios") or []),
    }


def _failure(kernel: dict[str, Any], failure: dict[str, Any]) -> dict[str, Any]:
    replay = failure["text"].splitlines()[-1].strip().removeprefix("replay: ")
    groups = []
    found = failure.get("found")
    if found and found["maps"]:
        groups.append({"title": "As first found", "case": found["case"], "maps": [heat_map(m) for m in found["maps"]]})
    if failure.get("maps"):
        title = "Shrunk to the case above" if groups else "Where it is"
        groups.append({"title": title, "case": failure["case"], "maps": [heat_map(m) for m in failure["maps"]]})
    return {
        "op": failure["op"],
        "kernel": failure["kernel"],
        "case": failure["case"],
        "contract": failure["contract"],
        "tier": failure["tier"],
        "stage": failure["stage"],
        "lines": failure["summary"],
        "replay": replay,
        "next": next_steps(failure, replay),
        "diagnosis": failure.get("diagnosis"),
        "groups": groups,
        "text": failure["text"],
    }


def _contracts(names: list[str]) -> list[dict[str, Any]]:
    """Return each contract's fields, those that differ from the default marked; only its name if it is none of ours."""
    default = Contract("default")
    shown: list[dict[str, Any]] = []
    for name in names:
        try:
            rules = contract(name)
        except ValueError:
            shown.append({"name": name, "rows": []})
            continue
        rows = []
        for field in fields(Contract):
            if field.name == "name":
                continue
            value = getattr(rules, field.name)
            text = "+".join(value) if isinstance(value, tuple) else "none" if value is None else str(value)
            rows.append((field.name, text, value != getattr(default, field.name)))
        shown.append({"name": name, "rows": rows})
    return shown


def _environment(env: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, value in env.items():
        if value not in (None, [], ""):
            rows.append((name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows


def _history(runs: list[dict[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys((k["op"], k["kernel"]) for run in runs for k in run["kernels"])
    kernels = []
    for op, name in names:
        points = [next((k for k in run["kernels"] if (k["op"], k["kernel"]) == (op, name)), None) for run in runs]
        kernels.append({"op": op, "kernel": name, "chart": history(points), "words": _course(points)})
    rows = []
    before: dict[str, Any] = {}
    for place, run in enumerate(runs, 1):
        kind, words = VERDICT.get(run["exit_code"], ("illegal", f"exit code {run['exit_code']}"))
        rows.append(
            {
                "place": place,
                "started": run["started"],
                "verdict": kind,
                "words": words,
                "judged": f"{sum(k['judged'] for k in run['kernels']):,}",
                "illegal": f"{sum(k['illegal'] for k in run['kernels']):,}",
                "changed": changed_between(before, run["environment"]) if before else "",
            }
        )
        before = run["environment"]
    return {"kernels": kernels, "rows": rows}


def _course(points: list[dict[str, Any] | None]) -> str:
    """Say in words when a kernel turned illegal or legal, for whoever does not see the chart."""
    said = []
    last = None
    for place, kernel in enumerate(points, 1):
        status = STATUS.get(kernel["status"], kernel["status"]) if kernel else "absent"
        if status != last:
            said.append(f"{status} from run {place}")
            last = status
    return ", ".join(said)


def changed_between(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return what of the environment is other than in the run before."""
    names = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    return ", ".join(f"{name} {before.get(name)} → {now.get(name)}" for name in names)
