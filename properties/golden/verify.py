"""Is a golden set still what this library derives? Each way in which it may not be has its own name.

inputs      a case's text builds other tensors than it did: the generator drifted
reference   the correctly rounded results, or the reference op's, are other bits than they were: the reference drifted
oracle      the judge now refuses bits that it had accepted: the oracle drifted
kernel      (replay.py) a kernel stores other bits than it did, or illegal ones
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

from moeracle.ref.contracts.contract import contract

from ..cases.case import Case, Problem
from ..cases.cost import MOST_NUMBERS, require_numbers
from ..cases.record import record_of
from ..judge import judge
from .catalogue import LITERALS
from .compare import compare_all
from .derive import derive
from .reference import run_reference
from .store import Entry, GoldenSet
from .tensors import Tensors, as_output, digest_all, inputs_of, with_inputs

__all__ = ["verify_set"]

KINDS = ("inputs", "reference", "oracle", "kernel")


@dataclass(frozen=True)
class Finding:
    """One thing that is no longer as it was: its kind, the case, the contract (or kernel), and what differs."""

    kind: str
    case: str
    source: str
    text: str

    def __str__(self) -> str:
        return f"drift of the {self.kind}: {self.case} [{self.source}] {self.text}"


@dataclass
class Verified:
    """What was looked at, and what was found."""

    entries: int
    elements: int
    findings: list[Finding]


def by_file(entries: list[Entry]) -> Iterator[tuple[str, list[Entry]]]:
    """Yield (file, its entries)."""
    for name, group in groupby(sorted(entries, key=lambda e: e.key), key=lambda e: e.file):
        yield name, list(group)


def stored_problem(golden: GoldenSet, entry: Entry) -> tuple[Problem, list[str]]:
    """Return a case with its stored inputs on the CPU, and how what its text builds today differs from them.

    Raises:
        ValueError: this version cannot build the case at all, or the stored inputs do not fit it.
    """
    stored = golden.inputs[entry.file]
    if not entry.literal:
        held = 16 * sum(tensor.nbytes for tensor in stored.values())
        require_numbers(Case.parse(entry.case), "golden", max(MOST_NUMBERS, held))
    problem = entry.item().problem()
    built = inputs_of(problem)
    if digest_all(built) == entry.inputs:
        return problem, []
    return with_inputs(problem, stored), [change.text() for change in compare_all(stored, built)]


def verify_set(
    golden: GoldenSet, op: str | None = None, progress: Callable[[int, int], None] | None = None
) -> Verified:
    """Derive every entry again and compare it, byte by byte.

    Args:
        golden: a set that was read, so that its files are as its manifest says.
        op: only this op's entries.
        progress: called with entries done and all.
    Returns:
        Verified, with a Finding for each entry that differs.
    """
    entries = golden.named(op)
    found: list[Finding] = []
    done = elements = 0
    for _, group in by_file(entries):
        name = group[0].literal or group[0].case
        try:
            problem, other = stored_problem(golden, group[0])
        except ValueError as error:
            found.append(Finding("inputs", name, "case", str(error)))
            continue
        found += [Finding("inputs", name, "case", text) for text in other]
        literal = LITERALS.get(name)
        if literal is not None and (group[0].case, group[0].why) != (literal.case, literal.why):
            found.append(Finding("inputs", name, "case", f"is called {group[0].case!r}, the literal {literal.case!r}"))
        for entry in group:
            results = golden.results_of(entry)
            try:
                found += [Finding(kind, name, entry.source, text) for kind, text in drift_of(problem, entry, results)]
            except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
                if not other:  # on inputs that the case builds, nothing may fail
                    raise
                said = f"cannot be computed with: {type(error).__name__}"
                found.append(Finding("inputs", name, entry.source, said))
            elements += sum(t.numel() for t in results.values())
            done += 1
            if progress:
                progress(done, len(entries))
    return Verified(done, elements, found)


def drift_of(problem: Problem, entry: Entry, results: Tensors) -> Iterator[tuple[str, str]]:
    """Yield (kind, what differs) for one entry, on its stored inputs."""
    try:
        rules = contract(entry.contract)
    except ValueError as error:
        yield "reference", f"this version does not know its contract: {error}"
        return
    try:
        derived = derive(problem, rules) if entry.derived else {}
    except ValueError as error:
        yield "reference", str(error)
        derived = {}
    if derived and entry.kernel and digest_all(derived) != entry.derived:
        yield "reference", "the correctly rounded results are other bits than when this was recorded"
    if derived and not entry.kernel:
        yield from (("reference", change.text()) for change in compare_all(results, derived))
        if entry.literal:
            literal = LITERALS[entry.literal].expected()
            yield from (("reference", f"literal {change.text()}") for change in compare_all(literal, results))
        if entry.literal or (record_of(entry.op).no_rounding_to_choose and rules.weight_rounding == "rne"):
            ours = run_reference(problem)
            yield from (("reference", f"the op's own {change.text()}") for change in compare_all(results, ours))
    verdict = judge(problem, as_output(entry.op, results), rules, explain=False)
    if verdict.status == "illegal":
        yield "oracle", f"refuses what it had accepted: {verdict.reason}"
