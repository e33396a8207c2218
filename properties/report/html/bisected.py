"""The JSON of `moeracle bisect stages` as a run that a page can show: one kernel, one failure, and what was asked."""

from __future__ import annotations

from typing import Any

from moeracle.ref.errors import require

from ...common.verdict import replay_command

KIND, FORMAT_VERSION = "moeracle bisect stages", 1


def as_run(found: dict[str, Any], path: str) -> dict[str, Any]:
    """Return a bisection as the run of one kernel, its failure shrunk as far as it was, `probes` beside it.

    Args:
        found: what `moeracle bisect stages --json` wrote.
        path: the file's name, for complaints.
    Raises:
        ValueError: an unknown format, or no kernel that was judged as a whole.
    """
    check_format(found, path, FORMAT_VERSION)
    kernel = found.get("kernel")
    require(isinstance(kernel, dict), f"report: {path}: got no 'kernel', must hold a kernel that was judged as a whole")
    assert isinstance(kernel, dict)
    verdict, smallest = kernel["verdict"], kernel["smallest"] or kernel["verdict"]
    status = verdict["status"] if verdict["status"] in ("legal", "illegal") else "unjudged"
    command = ["moeracle", "bisect", "stages", found["target"], "--case", verdict["case"]]
    failures = [_failure(found["target"], verdict, smallest)] if status == "illegal" else []
    of_kernel = {
        **{name: verdict[name] for name in ("kernel", "op", "contract", "judged", "illegal", "exact", "stages")},
        "layout": None,
        "device": found.get("device") or "as declared",
        "status": status,
        "cases_judged": int(status != "unjudged"),
        "width_ulp": None,
        "max_ratio": kernel["max_ratio"],
        "seconds": kernel["seconds"],
        "skipped": {verdict["reason"]: 1} if status == "unjudged" and verdict["reason"] else {},
        "laws": {},
        "failures": failures,
    }
    return {
        "environment": found["environment"],
        "command": command + (["--device", found["device"]] if found.get("device") else []),
        "target": found["target"],
        "profile": None,
        "seed": None,
        "started": found.get("started", ""),
        "seconds": kernel["seconds"],
        "exit_code": {"legal": 0, "illegal": 1}.get(status, 3),
        "kernels": [of_kernel],
        "bisection": {name: kernel[name] for name in ("stage", "also", "how", "fault", "probes", "calls", "notes")},
    }


def check_format(found: dict[str, Any], path: str, known: int) -> None:
    """Raise ValueError, in one line, unless a file has this format version."""
    version = found.get("format_version")
    require(
        version == known, f"report: {path}: got format_version {version!r}, must be {known}, made by another version"
    )


def _failure(target: str, verdict: dict[str, Any], smallest: dict[str, Any]) -> dict[str, Any]:
    replay = replay_command(target, smallest["case"])
    head = f"[{smallest['op']}] {smallest['kernel']}  {smallest['case']}  FAIL  tier={smallest['tier']}"
    lines = [head, *(f"  {line}" for line in smallest["summary"]), f"  replay: {replay}"]
    found = None
    if smallest["case"] != verdict["case"]:
        found = {"case": verdict["case"], "illegal": verdict["illegal"], "maps": verdict.get("maps", [])}
    return {**smallest, "text": "\n".join(lines), "found": found}
