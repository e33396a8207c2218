"""Making golden sets: what would change, whether each change is legal, and only then new bits."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from moeracle.ref.contracts.contract import contract
from moeracle.ref.errors import require

from ..cases.case import Case, Problem
from ..cases.kernel_like import KernelLike
from ..judge import judge
from .catalogue import Item, items
from .compare import compare_all
from .derive import derive
from .replay import run_kernel
from .store import MANIFEST, Entry, GoldenSet, differences, make_entry, read_manifest, read_set
from .swap import settled
from .tensors import Tensors, as_output, digest_all, inputs_of

Progress = Callable[[int, int], None]


@dataclass
class Plan:
    """What a set will be, and how that differs from what it is.

    Args:
        golden: the set as it will be written.
        new, gone, kept: entries that come, go, and stay as they are.
        changes: one line a changed result: op, case, contract, stage, elements, ulp, and whether it is legal.
        refused: one line for each result that no legal kernel could have stored; with any, nothing may be written.
        skipped: case to reason, of cases that a kernel does not take.
    """

    golden: GoldenSet
    new: list[Entry] = field(default_factory=list)
    gone: list[Entry] = field(default_factory=list)
    kept: int = 0
    changes: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def differs(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.new or self.gone or self.changes)


def today() -> str:
    """Return the date in UTC, or that of SOURCE_DATE_EPOCH (https://reproducible-builds.org/specs/source-date-epoch)."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    require(not epoch or epoch.isdigit(), f"SOURCE_DATE_EPOCH: got {epoch!r}, must be seconds since 1970")
    return time.strftime("%Y-%m-%d", time.gmtime(int(epoch) if epoch else None))


def check_reason(reason: str) -> str:
    """Return a reason worth keeping, on one line.

    Raises:
        ValueError: it is empty.
    """
    text = " ".join(reason.encode("utf-8", "backslashreplace").decode().split())
    require(bool(text), "--accept: got no reason, must say why these bits are right")
    return text


def read_clean(folder: Path) -> GoldenSet:
    """Read a set, or an empty one where there is none.

    Raises:
        ValueError: its files are not as its manifest says, so that what is there now would be lost unseen.
    """
    with settled(folder):
        if not (folder / MANIFEST).is_file():
            return GoldenSet()
        wrong = differences(folder, read_manifest(folder))
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    hint = "restore them from version control, or delete the whole set"
    require(not wrong, f"golden: will not overwrite {folder}: {wrong[0] if wrong else ''}{more}; {hint}")
    return read_set(folder, signed=False)


def plan_derived(
    old: GoldenSet,
    reason: str,
    version: str,
    op: str | None = None,
    *,
    catalogue: Iterable[Item] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Derive the catalogue's entries anew and compare them with a set's; kernels' entries in it stay.

    Args:
        old: the set as it is.
        reason: why changed and new bits are right.
        version: of moeracle.
        op: only this op's entries; the others stay.
        catalogue: items; None: the shipped ones.
        progress: called with items done and all.
    """
    plan = Plan(GoldenSet())
    wanted = [item for item in (items() if catalogue is None else catalogue) if op in (None, item.op)]
    about = {"reason": reason, "date": today(), "version": version}
    for done, item in enumerate(wanted):
        problem = item.problem()
        inputs = inputs_of(problem)
        for name in item.contracts:
            results = derive(problem, contract(name))
            entry = make_entry(item, name, inputs, results, results, **about)
            _put(plan, old, entry, problem, inputs, results)
        if progress:
            progress(done + 1, len(wanted))
    _keep_rest(plan, old, lambda e: bool(e.kernel) or op not in (None, e.op))
    return plan


def plan_recorded(
    old: GoldenSet,
    kernels: list[KernelLike],
    device: str | None,
    reason: str,
    version: str,
    *,
    cases: list[Case] | None = None,
    more: list[Case] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Run kernels and take the bits that they store, where these are legal and the same twice.

    Args:
        old: the set as it is; entries of other kernels and other cases stay.
        kernels: records; one that takes none of the cases is in the plan's `skipped`.
        device: where they run; None: where each declares.
        reason, version: as in plan_derived.
        cases: None: the shipped set's of each kernel's op, and `more`.
        progress: called with cases done and all.
    """
    plan = Plan(GoldenSet())
    about = {"reason": reason, "date": today(), "version": version}
    chosen = [] if cases is not None else [*items(), *(Item(str(case), (), "words it declares") for case in more or ())]
    chosen += [Item(str(case), (), "asked for") for case in cases or ()]
    work = [(kernel, item) for kernel in kernels for item in chosen if item.op == kernel.op]
    for done, (kernel, item) in enumerate(work):
        case = Case.parse(item.case)
        why_not = kernel.why_not(case)
        if why_not is not None:
            plan.skipped[f"{kernel.name} {item.case}"] = why_not
        else:
            problem = item.problem()
            _record(plan, old, kernel, item, problem, device or kernel.device, about)
        if progress:
            progress(done + 1, len(work))
    _keep_rest(plan, old, lambda e: True)
    return plan


def _record(
    plan: Plan, old: GoldenSet, kernel: KernelLike, item: Item, problem: Problem, device: str, about: dict[str, str]
) -> None:
    rules, name = kernel.contract_for(problem.case), item.literal or item.case
    runs: list[Tensors] = []
    for _ in range(2):
        results, complaint = run_kernel(kernel, problem, device)
        if results is None:
            return plan.refused.append(f"{name} [{kernel.name}] {complaint}")
        runs.append(results)
    if rules.deterministic and compare_all(*runs):
        return plan.refused.append(f"{name} [{kernel.name}] a second run stored other bits")
    try:
        derived = derive(problem, rules)
    except ValueError:  # too large, or not finite: the kernel's bits are kept without
        derived = {}
    inputs = inputs_of(problem)
    entry = make_entry(item, rules.name, inputs, runs[0], derived, kernel=kernel.name, **about)
    return _put(plan, old, entry, problem, inputs, runs[0])


def _put(plan: Plan, old: GoldenSet, entry: Entry, problem: Problem, inputs: Tensors, results: Tensors) -> None:
    """Add an entry to the plan: the old one if nothing changed, else the new one and what its change is."""
    name = f"{entry.literal or entry.case} [{entry.source}]"
    before = next((e for e in old.entries if e.key == entry.key), None)
    same = before is not None and (before.inputs, before.outputs) == (entry.inputs, entry.outputs)
    if before is not None and same and (before.derived, before.contract) == (entry.derived, entry.contract):
        plan.kept += 1
        plan.golden.add(before, inputs, results)
        return
    plan.golden.add(entry, inputs, results)
    verdict = judge(problem, as_output(entry.op, results), entry.contract, explain=False)
    if verdict.status == "illegal":
        plan.refused.append(f"{name} {verdict.reason}")
    if before is None:
        plan.new.append(entry)
    elif before.inputs != entry.inputs:
        moved = compare_all(old.inputs[before.file], inputs)
        plan.changes += [f"{name} other inputs: {change.text()}" for change in moved]
    elif same:
        plan.changes.append(f"{name} same bits; the contract, or what is correctly rounded under it, changed")
    else:
        was = judge(problem, as_output(entry.op, old.results_of(before)), entry.contract, explain=False)
        legal = "legal: both old and new are" if "illegal" not in (was.status, verdict.status) else _illegal(was.status)
        moved = compare_all(old.results_of(before), results)
        plan.changes += [f"{name} {change.text()}; {legal} under {entry.contract!r}" for change in moved]


def _illegal(was: str) -> str:
    return "illegal: the old bits are not legal" if was == "illegal" else "illegal: the new bits are not legal"


def _keep_rest(plan: Plan, old: GoldenSet, keep: Callable[[Entry], bool]) -> None:
    """Carry over the old entries that were not made anew, and list those that go."""
    made = {entry.key for entry in plan.golden.entries}
    for entry in old.entries:
        if entry.key in made:
            continue
        # A file holds its inputs once: bits recorded on other inputs cannot stay beside new ones.
        fits = entry.file not in plan.golden.inputs or digest_all(plan.golden.inputs[entry.file]) == entry.inputs
        if keep(entry) and fits:
            plan.kept += 1
            plan.golden.add(entry, old.inputs[entry.file], old.results_of(entry))
        else:
            plan.gone.append(entry)
