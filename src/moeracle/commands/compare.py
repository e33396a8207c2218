"""`moeracle compare`: what changed between two runs of `moeracle check`, kernel by kernel."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moeracle.exit_codes import ILLEGAL
from moeracle.properties.report.html.view import KIND, changed_between, read_run
from moeracle.properties.report.report import is_expected, require_writable, write_json
from moeracle.ref.errors import require

from .console import print_table, say

RANK = {"legal": 0, "absent": 1, "unjudged": 1, "error": 2, "illegal": 3}
MOST_CASES = 5  # shown of those whose bits changed


@dataclass
class Change:
    """What changed of one kernel.

    Args:
        kernel, op: which.
        before, after: the statuses, or "absent".
        worse: what is worse than before, in words; any makes the exit code 1.
        other: what changed besides: the contract, bits that are legal both times, how far was judged.
        bits: cases that both runs judged, whose stored bits differ.
        same_bits: how many such cases have the same bits.
        seconds: of both runs; informative, no verdict depends on it.
    """

    kernel: str
    op: str
    before: str
    after: str
    worse: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    bits: list[str] = field(default_factory=list)
    same_bits: int = 0
    seconds: tuple[float, float] = (0.0, 0.0)


def run_compare(old: Path, new: Path, bits: bool, json: Path | None) -> int:
    """Print what changed from one run to the other; return 1 if anything is worse.

    Args:
        old, new: what `moeracle check --json` wrote.
        bits: whether other bits are worse, even where both are legal.
        json: where the changes are written, or None.
    Raises:
        ValueError: a file that is no such JSON, or a place that cannot be written.
    """
    require_writable(json)
    runs = [read_run(path) for path in (old, new)]
    for run, path in zip(runs, (old, new), strict=True):
        require(run["kind"] == KIND, f"compare: {path}: got kind {run['kind']!r}, must be {KIND!r}")
    changes = compared(*runs, bits=bits)
    environment = changed_between(*(run["environment"] for run in runs))
    if environment:
        say(f"environment: {environment}")
    for name in ("profile", "seed"):
        old_value, new_value = (run[name] for run in runs)
        if old_value != new_value:
            say(f"{name}: {old_value} before, {new_value} now: these are other cases")
    print_table(
        ("kernel", "op", "before", "after", "same bits", "other bits", "s"),
        [
            (c.kernel, c.op, c.before, c.after, f"{c.same_bits:,}", f"{len(c.bits):,}", _seconds(c.seconds))
            for c in changes
        ],
        text_columns=4,
    )
    for change in changes:
        for word, texts in (("worse", change.worse), ("changed", change.other)):
            for text in texts:
                say(f"  {word}: [{change.op}] {change.kernel}: {text}")
    worse = sum(bool(change.worse) for change in changes)
    say(f"{worse} of {len(changes)} kernels worse" if worse else "nothing is worse")
    if json is not None:
        content = {"format_version": 1, "kind": "moeracle compare", "environment": environment, "worse": worse}
        write_json(json, {**content, "kernels": [vars(change) for change in changes]})
    return ILLEGAL if worse else 0


def compared(old: dict[str, Any], new: dict[str, Any], *, bits: bool = False) -> list[Change]:
    """Return what changed of every kernel that either run has, in the order of the runs.

    Args:
        old, new: as `read_run` returns them.
        bits: whether other bits are worse.
    """
    before, after = ({(k["op"], k["kernel"]): k for k in run["kernels"]} for run in (old, new))
    return [_change(*name, before.get(name), after.get(name), bits) for name in dict.fromkeys([*before, *after])]


def _change(op: str, kernel: str, old: dict[str, Any] | None, new: dict[str, Any] | None, bits: bool) -> Change:
    was, now = (k["status"] if k else "absent" for k in (old, new))
    change = Change(kernel, op, was, now)
    known = new is not None and is_expected(new.get("known"))
    if was != now and not (was == "absent" and now == "legal"):
        worse = RANK.get(now, 3) > RANK.get(was, 3) and not known
        (change.worse if worse else change.other).append(f"{was} before, {'a known failure' if known else now} now")
    if old is None or new is None:
        return change
    change.seconds = (old["seconds"], new["seconds"])
    if old["contract"] != new["contract"]:
        change.other.append(f"contract {old['contract']!r} before, {new['contract']!r} now")
    digests = ({case["case"]: case["bits"] for case in k.get("cases", []) if case["bits"]} for k in (old, new))
    first, second = digests
    for case in first.keys() & second.keys():
        if first[case] == second[case]:
            change.same_bits += 1
        else:
            change.bits.append(case)
    change.bits.sort()
    if change.bits:
        shown = ", ".join(change.bits[:MOST_CASES]) + (", …" if len(change.bits) > MOST_CASES else "")
        of = change.same_bits + len(change.bits)
        (change.worse if bits else change.other).append(f"other bits in {len(change.bits)} of {of} cases: {shown}")
    if not known:  # which is judged until it fails, or not at all
        _compare_reach(change, old, new)
    return change


def _compare_reach(change: Change, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Say which dimension is judged less far than before, which law no more, and whether more was skipped."""
    if new["status"] == "legal":
        gone = [law for law, count in old.get("laws", {}).items() if count and not new.get("laws", {}).get(law)]
        change.worse += [f"{law} was put to {old['laws'][law]:,} cases before, to none now" for law in gone]
    old, new = old.get("reach") or {}, new.get("reach") or {}
    sizes = new.get("sizes", {})
    for name, (_, most) in old.get("sizes", {}).items():
        now = sizes.get(name, [0, 0])[1]
        if now < most:
            change.worse.append(f"judged up to {name}={now:,} only, {most:,} before")
    was, now = old.get("skipped", 0), new.get("skipped", 0)
    if now > was:
        change.other.append(f"{100 * now:.0f} % of its cases skipped, {100 * was:.0f} % before")


def _seconds(seconds: tuple[float, float]) -> str:
    old, new = seconds
    return f"{old:.1f} → {new:.1f}" if old or new else "-"
