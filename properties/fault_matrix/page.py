"""docs/faults.md out of its figures: every fault, who sees it, how it is named, and what tolerances say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..diagnose import FEW
from ..faults import FAULTS
from .figures import number
from .hunt import NAMED_SEEDS

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
`moeracle faults --from faults.json --page docs/faults.md`, which keeps [its figures](faults.figures.json) beside it.
Each fault is one small, named change of a correct simulated kernel (`properties/faults/*.py`), planted in every op it
applies to and hunted as `moeracle check` hunts. The legal kernels are simulations of every order and weight path, on
every data recipe, and kernels that an earlier version refused wrongly (`properties/fault_matrix/refused_once.py`).
{later}
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


def page(figures: dict[str, Any]) -> str:
    """Return the page's text.

    Args:
        figures: as of figures.py.
    """
    total, whole = figures["summary"], figures["runs"][0]
    misnamed = "".join(f"\n* {line}" for line in total["misnamed"])
    rules = [
        f"| {r['name']} | {r['source']} | {r['faults_seen']} of {r['faults']} | {r['refused']:,} of {r['outputs']:,} |"
        for r in figures["rules"]
    ]
    names = ("seen", "faults", "runs", "always", "alarms", "judged", "legal", "names_right", "names_of")
    return PAGE.format(
        **{name: whole[name] for name in ("command", "seeds", "torch")}, **{name: total[name] for name in names},
        median_examples=total["median_examples"], median_seconds=total["median_seconds"],
        share=100 * total["names_right"] / max(1, total["names_of"]), later=_later(figures),
        unseen="".join(f"\nNot seen: {line}.\n" for line in total["unseen"]),
        missing=_missing([fault["id"] for fault in figures["faults"]]), collected=_collected(),
        few=FEW, named_seeds=NAMED_SEEDS,
        names=", ".join(f"{count:,} {kind}" for kind, count in total["names"].items()),
        misnamed=f"\nNot named, or as another:\n{misnamed}\n" if misnamed else "",
        rules="\n".join(rules), rows="\n".join(map(_row, figures["faults"])),
        legals="\n".join(map(_legal, figures["legal"])),
    )  # fmt: skip


def _later(figures: dict[str, Any]) -> str:
    """Say which rows are of a later run than that of everything, and what of them the sums leave out."""
    lines = []
    for at, run in enumerate(figures["runs"][1:], 1):
        rows = [row for row in figures["faults"] if row["run"] == at]
        text = f"The rows of {_ids(rows)} come from a later run of these faults alone"
        text = f"{text} ({run['seeds']} seeds, torch {run['torch']})"
        lines.append(f"* {text}{'. ' if run['note'] else ''}{run['note']}.")
        left_out = [row for row in rows if row["id"] not in figures["summary"]["counts"]]
        if left_out:
            seen, runs, right, of = (sum(row[name] for row in left_out) for name in ("seen", "runs", "right", "of"))
            lines.append(
                f"  The sums below do not count {_ids(left_out)}: {seen:,} of {runs:,} of them were seen, "
                f"{right:,} of {of:,} named rightly."
            )
    return "\n" + "\n".join(lines) + "\n" if lines else ""


def _ids(rows: list[dict[str, Any]]) -> str:
    return _listed(number(row["id"]) for row in rows)


def _collected() -> str:
    kinds = "; ".join(f"{kind}: {_listed(map(number, ids))}" for kind, ids in PLANTED_SINCE.items())
    return (
        f"{_listed(map(number, COLLECTED))} were given to reports\n"
        "whose ops and words did not exist here then; no text of them was kept, so that none can be planted under its\n"
        f"number. What they were about is planted: {kinds}."
    )


def _missing(ids: list[str]) -> str:
    """List the numbers below the largest that no id has."""
    numbers = set(map(number, ids))
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


def short_table(figures: dict[str, Any]) -> str:
    """Return README.md's table: what each rule sees of the same matrix."""
    total = figures["summary"]
    ours = f"**{total['always']} of {total['faults']}** ({total['seen']:,} of {total['runs']:,} planted)"
    lines = ["| rule | faults seen always | legal outputs refused |", "|---|---|---|"]
    lines.append(f"| **moeracle** | {ours} | **{total['alarms']}** ({total['judged']:,} elements) |")
    lines += [
        f"| {r['name']} | {r['faults_seen']} of {r['faults']} | {r['refused']:,} of {r['outputs']:,} |"
        for r in figures["rules"]
    ]
    return "\n".join(lines)


def _row(row: dict[str, Any]) -> str:
    fault = FAULTS[row["id"]]
    medians = (f"{row['examples']:g}", f"{row['seconds']:.3f}") if row["tiers"] else ("-", "-")
    where = fault.source.removeprefix("https://").removeprefix("github.com/")
    cells = [fault.id, fault.title, fault.stage, row["ops"], ", ".join(row["tiers"]) or "none", *medians]
    return f"| {' | '.join(map(str, cells))} | {row['named']} of {row['asked']} | [{where}]({fault.source}) |"


def _legal(row: dict[str, Any]) -> str:
    counts = " | ".join(f"{row[name]:,}" for name in ("cases", "vacuous", "judged"))
    return f"| {row['kernel']} | {row['op']} | {counts} | {row['alarms']} | {row['max_ratio']:.3f} |"
