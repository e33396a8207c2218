"""The figures of docs/faults.md: what one run of everything found, and what later runs of some faults found since.

The page is written from these alone, which lie beside it (docs/faults.figures.json):

    kind, format_version
    runs      [{command, torch, seeds, note}]: the first is of everything, the others of some faults; command is ""
              where it was not kept
    summary   {seen, faults, runs, always, alarms, judged, legal, names, names_right, names_of, median_examples,
              median_seconds, unseen: [text], misnamed: [text], counts: [id]}: of the faults `counts`
    rules     [{name, source, faults_seen, faults, refused, outputs}]
    faults    [{id, ops, tiers: [tier], examples, seconds, named, asked, seen, runs, right, of, run}]: medians of
              examples and seconds; `run` is the place in `runs` of the newest that it was part of; right and of are
              null where they were not kept
    legal     [{kernel, op, cases, vacuous, judged, alarms, max_ratio}]
"""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

from ..faults import FAULTS

KIND = "moeracle faults page"
FORMAT_VERSION = 1
LISTED = "moe_w4a16"  # legal kernels of this op have rows of their own; the others are added up
TOTALS = (
    *("seen", "faults", "runs", "alarms", "judged", "names", "names_right", "names_of"),
    *("median_examples", "median_seconds", "unseen", "misnamed"),
)  # fmt: skip


def figures_of(plain: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a run of everything.

    Args:
        plain: what `moeracle faults --json` wrote, of all faults and with the legal kernels.
    """
    rows = [_row(fault, 0) for fault in plain["faults"]]
    always = sum(row["seen"] == row["runs"] for row in rows)
    summary = {name: plain["summary"][name] for name in TOTALS}
    summary |= {"always": always, "legal": len(plain["legal"]), "counts": [row["id"] for row in rows]}
    return {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "runs": [_run(plain)],
        "summary": summary,
        "rules": plain["rules"],
        "faults": rows,
        "legal": _legals(plain["legal"]),
    }


def with_later(figures: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """Return figures with the rows of a later run of some faults; the sums stay those of the run of everything.

    Args:
        figures: as `figures_of` returns them, or this.
        plain: what `moeracle faults --fault … --json` wrote.
    """
    at = len(figures["runs"])
    rows = {row["id"]: row for row in figures["faults"] if row["id"] in FAULTS}
    rows |= {fault["id"]: _row(fault, at) for fault in plain["faults"]}
    used = sorted({0} | {row["run"] for row in rows.values()})  # a run that no row is of any more goes
    runs = [*figures["runs"], _run(plain)]
    faults = [
        row | {"run": used.index(row["run"])}
        for row in sorted(rows.values(), key=lambda row: (number(row["id"]), row["id"]))
    ]
    return {**figures, "runs": [runs[at] for at in used], "faults": faults}


def number(id: str) -> int:
    """Return the number of a fault's id."""
    return int("".join(filter(str.isdigit, id)))


def _run(plain: dict[str, Any]) -> dict[str, Any]:
    command, seeds = " ".join(plain["command"]), len(plain["seeds"])
    return {"command": command, "torch": plain["environment"]["torch"], "seeds": seeds, "note": ""}


def _row(fault: dict[str, Any], run: int) -> dict[str, Any]:
    runs = [run for planted in fault["planted"] for run in planted["runs"]]
    seen = [run for run in runs if run["seen"]]
    names = Counter(run["named"] for run in runs if run["named"])
    return {
        "id": fault["id"],
        "ops": len(fault["planted"]),
        "tiers": [tier for tier, _ in Counter(run["tier"] for run in seen).most_common()],
        "examples": statistics.median(run["examples"] for run in seen) if seen else None,
        "seconds": round(statistics.median(run["seconds"] for run in seen), 3) if seen else None,
        "named": names["itself"] + names["shared"],
        "asked": names.total(),
        "seen": len(seen),
        "runs": len(runs),
        "right": names["itself"],
        "of": names["itself"] + names["none"] + names["another"],
        "run": run,
    }


def _legals(legal: list[dict[str, Any]]) -> list[dict[str, Any]]:
    others = [run for run in legal if run["op"] != LISTED]
    counts = ("cases", "vacuous", "judged")
    rows = [
        {"kernel": run["kernel"], "op": LISTED, **{c: run[c] for c in counts}, "alarms": len(run["alarms"]),
         "max_ratio": run["max_ratio"]}
        for run in legal if run["op"] == LISTED
    ]  # fmt: skip
    if others:
        sums = {c: sum(run[c] for run in others) for c in counts}
        alarms, ratio = sum(len(run["alarms"]) for run in others), max(run["max_ratio"] for run in others)
        about = {"kernel": f"{len(others)} more", "op": "every other op"}
        rows.append({**about, **sums, "alarms": alarms, "max_ratio": ratio})
    return rows
