"""docs/faults.md out of a matrix's plain values: every fault, who sees it, how it is named, and what tolerances say."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from typing import Any

from ..diagnose import FEW
from .hunt import NAMED_SEEDS

# Legal kernels of this op have rows of their own; the others are added up.
LISTED = "moe_w4a16"

# Reports that were collected under a number before any op or word of a case could show them; of what they were about,
# the faults that were planted since have numbers of their own.
COLLECTED = tuple(
    f"F{n}" for n in (53, 69, 71, 72, 93, 97, 98, 99, 101, 102, 103, 111, 113, 116, 119, 120, 125, 129)
)  # fmt: skip
PLANTED_SINCE = {
    "act-order": ("F240", "F241"),
    "a short last group": ("F242",),
    "clamped activations": ("F180", *(f"F{n}" for n in range(226, 235))),
    "grouped top-k": tuple(f"F{n}" for n in range(147, 156)),
    "expert maps of ranks other than the first": ("F156", "F157", "F158", "F159"),
}

PAGE = """# Every fault, and who sees it

Made by `{command}` ({seeds} seeds, torch {torch}); this page is written from its JSON by
`moeracle faults --from faults.json --page docs/faults.md`. Each fault is one small, named change of a correct
simulated kernel (`properties/faults/*.py`), planted in every op it applies to and hunted as `moeracle check` hunts. The
legal kernels are simulations of every order and weight path, on every data recipe, and kernels that an earlier version
refused wrongly (`properties/fault_matrix/refused_once.py`).

**{seen:,} of {runs:,} planted faults seen** ({faults} faults); median {median_examples:g} example,
{median_seconds:.3f} s. **{alarms} false alarms** in {judged:,} elements of {legal} legal kernels.
{unseen}
**{names_right:,} of {names_of:,} named rightly** ({share:.1f} %) of the runs whose fault can be told apart from every
other; in all, of the first {named_seeds} seeds: {names}. A name is *shared* where another explanation predicts the same
output to the last bit, *few* where fewer than {few} elements are wrong, *untold* where what saw the fault compares
answers, looks at inputs or needs an earlier call.
{misnamed}
Numbers without a row ({missing}) belong to no fault.
{collected}

## What published rules say of the same outputs

A fault is *seen always* if the rule refuses the faulty output in every op and seed; a rule that refuses legal outputs
cries wolf.

| rule | used in | faults seen always | legal outputs refused |
|---|---|---|---|
| **moeracle** | | **{always} of {faults}** | **{alarms}** |
{rules}

Faults that make an index, not a number, wrong have no such outputs to compare; they are left out of the rules' column.

## Faults

`tier` is the check that saw it first; `examples` and `s` are medians over ops and seeds; `named` is in how many of
the runs that were asked, those with the first {named_seeds} seeds, it was named as itself, or shared its name.

| id | what | stage | ops | tier | examples | s | named | source |
|---|---|---|---|---|---|---|---|---|
{rows}

## Legal kernels

`err/bound` is the largest |error| / (bound + half an ulp) seen: 1 is a legal kernel at its worst.

| kernel | op | cases | refused as vacuous | elements | alarms | err/bound |
|---|---|---|---|---|---|---|
{legals}
"""


def page(plain: dict[str, Any]) -> str:
    """Return the page's text.

    Args:
        plain: what `moeracle faults --json` wrote, of all faults and with the legal kernels.
    """
    total, legal = plain["summary"], plain["legal"]
    runs = [run for fault in plain["faults"] for planted in fault["planted"] for run in planted["runs"]]
    always = sum(all(run["seen"] for p in fault["planted"] for run in p["runs"]) for fault in plain["faults"])
    misnamed = "".join(f"\n* {line}" for line in total["misnamed"])
    rules = [
        f"| {r['name']} | {r['source']} | {r['faults_seen']} of {r['faults']} | {r['refused']:,} of {r['outputs']:,} |"
        for r in plain["rules"]
    ]
    return PAGE.format(
        command=" ".join(plain["command"]), seeds=len(plain["seeds"]), torch=plain["environment"]["torch"],
        **{name: total[name] for name in ("seen", "faults", "alarms", "judged", "names_right", "names_of")},
        runs=len(runs), median_examples=total["median_examples"], median_seconds=total["median_seconds"],
        legal=len(legal), always=always, share=100 * total["names_right"] / max(1, total["names_of"]),
        unseen="".join(f"\nNot seen: {line}.\n" for line in total["unseen"]),
        missing=_missing([fault["id"] for fault in plain["faults"]]), collected=_collected(),
        few=FEW, named_seeds=NAMED_SEEDS,
        names=", ".join(f"{count:,} {kind}" for kind, count in total["names"].items()),
        misnamed=f"\nNot named, or as another:\n{misnamed}\n" if misnamed else "",
        rules="\n".join(rules), rows="\n".join(map(_row, plain["faults"])), legals="\n".join(_legals(legal)),
    )  # fmt: skip


def _collected() -> str:
    kinds = "; ".join(f"{kind}: {_listed(map(_number, ids))}" for kind, ids in PLANTED_SINCE.items())
    return (
        f"{_listed(map(_number, COLLECTED))} were given to reports\n"
        "whose ops and words did not exist here then; no text of them was kept, so that none can be planted under its\n"
        f"number. What they were about is planted: {kinds}."
    )


def _number(id: str) -> int:
    return int("".join(filter(str.isdigit, id)))


def _missing(ids: list[str]) -> str:
    """List the numbers below the largest that no id has."""
    numbers = set(map(_number, ids))
    return _listed(set(range(1, max(numbers))) - numbers) or "none"


def _listed(numbers: Iterable[int]) -> str:
    """List numbers of faults, neighbours as a range."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and runs[-1][-1] == n - 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(
        f"F{run[0]}" + (f" to F{run[-1]}" if len(run) > 2 else f", F{run[1]}" if len(run) == 2 else "") for run in runs
    )


def short_table(plain: dict[str, Any]) -> str:
    """Return README.md's table: what each rule sees of the same matrix."""
    total = plain["summary"]
    always = sum(all(run["seen"] for p in fault["planted"] for run in p["runs"]) for fault in plain["faults"])
    ours = f"**{always} of {total['faults']}** ({total['seen']:,} of {total['runs']:,} planted)"
    lines = ["| rule | faults seen always | legal outputs refused |", "|---|---|---|"]
    lines.append(f"| **moeracle** | {ours} | **{total['alarms']}** ({total['judged']:,} elements) |")
    lines += [
        f"| {r['name']} | {r['faults_seen']} of {r['faults']} | {r['refused']:,} of {r['outputs']:,} |"
        for r in plain["rules"]
    ]
    return "\n".join(lines)


def _row(fault: dict[str, Any]) -> str:
    runs = [run for planted in fault["planted"] for run in planted["runs"]]
    seen = [run for run in runs if run["seen"]]
    tiers = ", ".join(tier for tier, _ in Counter(run["tier"] for run in seen).most_common()) or "none"
    examples = f"{statistics.median(run['examples'] for run in seen):g}" if seen else "-"
    seconds = f"{statistics.median(run['seconds'] for run in seen):.3f}" if seen else "-"
    asked = [run["named"] for run in runs if run["named"]]
    named = sum(name in ("itself", "shared") for name in asked)
    where = fault["source"].removeprefix("https://").removeprefix("github.com/")
    cells = [fault["id"], fault["title"], fault["stage"], len(fault["planted"]), tiers, examples, seconds]
    return f"| {' | '.join(map(str, cells))} | {named} of {len(asked)} | [{where}]({fault['source']}) |"


def _legals(legal: list[dict[str, Any]]) -> list[str]:
    others = [run for run in legal if run["op"] != LISTED]
    counts = ("cases", "vacuous", "judged")
    rows = [[run["kernel"], LISTED, *(run[c] for c in counts), len(run["alarms"]), run["max_ratio"]]
            for run in legal if run["op"] == LISTED]  # fmt: skip
    if others:
        sums = [sum(run[c] for run in others) for c in counts]
        alarms, ratio = sum(len(run["alarms"]) for run in others), max(run["max_ratio"] for run in others)
        rows.append([f"{len(others)} more", "every other op", *sums, alarms, ratio])
    return [f"| {k} | {op} | {cases:,} | {vacuous:,} | {judged:,} | {alarms} | {ratio:.3f} |"
            for k, op, cases, vacuous, judged, alarms, ratio in rows]  # fmt: skip
