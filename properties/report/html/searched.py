"""The JSON of `moeracle bisect git` and `bisect config` as a run that a page can show: what was searched, and found."""

from __future__ import annotations

from typing import Any

from moeracle.ref.errors import require

from . import bisected
from .charts import history, short
from .heat import counted, number

GIT, CONFIG = "moeracle bisect git", "moeracle bisect config"
FORMAT_VERSION = 1
STATUS = {"good": ("legal", "legal"), "bad": ("illegal", "illegal"), "skip": ("unjudged", "passed over")}
MOST_COMMITS = 1_000_000
MOST_LINES = 40  # of a diff stat


def as_run(found: dict[str, Any], path: str) -> dict[str, Any]:
    """Return a search as a run: `search` says what was found; the kernels are those of its `bisect stages`, if any.

    Args:
        found: what `moeracle bisect git --json` or `bisect config --json` wrote.
        path: the file's name, for complaints.
    Raises:
        ValueError: an unknown format.
    """
    bisected.check_format(found, path, FORMAT_VERSION)
    stages = found.get("stages")
    within = bisected.as_run(stages, path) if isinstance(stages, dict) and stages.get("kernel") else None
    search = _git(found) if found["kind"] == GIT else _config(found)
    base: dict[str, Any] = {"kernels": [], "bisection": None, "command": []}
    run = {**base, **({} if within is None else {name: within[name] for name in base})}
    return {
        **run,
        "environment": found["environment"],
        "target": search.pop("target"),
        "profile": None,
        "seed": None,
        "started": "",
        "seconds": found["seconds"],
        "exit_code": 1 if search["kind"] == "illegal" else 3,
        "search": search,
    }


def _git(found: dict[str, Any]) -> dict[str, Any]:
    plan, first, judged = found["plan"], found["first_bad"], found["judged"]
    require(0 <= found["commits"] < MOST_COMMITS, f"got {found['commits']} commits, must be below {MOST_COMMITS:,}")
    points: list[dict[str, Any] | None] = [None] * (found["commits"] + 1)
    rows = []
    for one in judged:
        status, word = STATUS[one["verdict"]]
        ratio = None if one["max_ratio"] is None else number(one["max_ratio"])
        name = f"{one['id'][:10]} {one['subject']}"
        points[one["position"]] = {"status": status, "max_ratio": ratio, "name": name}
        rows.append(
            {
                "place": one["position"], "id": one["id"][:10], "subject": one["subject"], "status": status,
                "word": f"{word} ({one['kind']})" if one["kind"] else word, "ratio": short(ratio),
                "reason": one["reason"] if status != "legal" else "", "first": bool(first and first["id"] == one["id"]),
                "seconds": f"{one['build_seconds'] + one['seconds']:,.1f}",
            }
        )  # fmt: skip
    suspects = [one["id"][:10] for one in judged if one["id"] in found["suspects"]]
    words = f"First bad commit: {first['id'][:10]} {first['subject']}" if first else "No single commit can be told"
    command = ["moeracle", "bisect", "git", plan["target"], "--good", plan["good"][:10], "--bad", plan["bad"][:10]]
    command += ["--case", plan["case"], *(["--build", plan["build"]] if plan["build"] else [])]
    command += ["--device", plan["device"]] if plan["device"] else []
    stat, more = found["diff_stat"][:MOST_LINES], len(found["diff_stat"]) - MOST_LINES
    return {
        "of": "commits", "target": plan["target"], "kind": "illegal" if first else "unjudged", "words": words,
        "first": first, "suspects": suspects, "stat": stat + ([f"and {more:,} lines more"] if more > 0 else []),
        "notes": found["notes"], "rows": rows, "command": command, "chart": history(points),
        "facts": [
            ("case", plan["case"]), ("good", plan["good"][:10]), ("bad", plan["bad"][:10]),
            ("judged", f"{len(judged)} of {counted(found['commits'] + 1, 'revision')}"),
            ("judgements of each", str(plan["repeat"])),
        ],
    }  # fmt: skip


def _config(found: dict[str, Any]) -> dict[str, Any]:
    minimal, good, bad = found["minimal"], found["good"], found["bad"]
    names = [*minimal, *(name for name in found["differing"] if name not in minimal)]
    settings = [(name, _shown(good.get(name)), _shown(bad.get(name)), name in minimal) for name in names]
    command = ["moeracle", "bisect", "config", found["target"], "--case", found["case"]]
    for option, side in (("--good", good), ("--bad", bad)):
        command += [word for name, value in side.items() if value is not None for word in (option, f"{name}={value}")]
    rows = [
        {
            "names": ", ".join(one["as_in_bad"]) or "none", "status": _status(one["status"]), "word": one["status"],
            "ratio": short(None if one["max_ratio"] is None else number(one["max_ratio"])),
            "reason": one["reason"] if one["status"] != "legal" else "", "seconds": f"{one['seconds']:,.1f}",
        }
        for one in found["tried"]
    ]  # fmt: skip
    without = found["without"]
    notes = []
    if without is not None and len(names) > len(minimal):
        other = "is legal" if without["status"] == "legal" else f"is {without['status']}: another set does it too"
        notes.append(f"With all others as in BAD and these as in GOOD, it {other}.")
    return {
        "of": "settings", "target": found["target"], "kind": "illegal",
        "words": "It takes " + " and ".join(f"{name}={bad.get(name) or 'unset'}" for name in minimal),
        "settings": settings, "rows": rows, "notes": notes, "command": command,
        "facts": [("case", found["case"]), ("settings that differ", str(len(names))), ("sets judged", str(len(rows)))],
    }  # fmt: skip


def _status(word: str) -> str:
    return word if word in ("legal", "illegal") else "unjudged"


def _shown(value: str | None) -> str:
    return "not set" if value is None else value if value else "empty"
