"""Parity: where two kernels of one op part on the same inputs, and what of that their contracts explain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from moeracle.ref.contracts.contract import Contract
from moeracle.ref.errors import require

from ..cases.case import Case, Problem
from ..cases.kernel_like import KernelLike
from ..cases.optable import OPS
from ..cases.record import record_of
from ..common.guard import Guarded, different_bits, same_bits
from ..common.verdict import Verdict, failed
from ..hunt.must_run import must_run, spread
from ..judge import judge
from ..trial.call import call, ending_of
from .found import value_text

__all__ = ["Parity", "parity", "shared_cases"]

Progress = Callable[[str, int, int], None]


@dataclass
class Parting:
    """What two kernels gave on one case.

    Args:
        case: its text.
        stage: the first whose bits differ; "" if none.
        differ, elements: of that stage.
        at, first, second: the first element that differs, and both values.
        verdicts: of both kernels under their own contracts, then of the second under the first's.
    """

    case: str
    stage: str = ""
    differ: int = 0
    elements: int = 0
    at: list[int] = field(default_factory=list)
    first: float = 0.0
    second: float = 0.0
    verdicts: list[Verdict] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        names = ("first", "second", "second_under_first")
        said = {name: {"status": v.status, "tier": v.tier, "stage": v.stage, "reason": v.reason}
                for name, v in zip(names, self.verdicts, strict=False)}  # fmt: skip
        plain = {name: value for name, value in vars(self).items() if name not in ("verdicts", "first", "second")}
        return {**plain, "values": [self.first, self.second], "verdicts": said}


@dataclass
class Parity:
    """What was found of two kernels.

    Args:
        fields: contract fields that differ: name, the first's value, the second's.
        partings: one for each case.
        explaining: of these fields, the fewest that were found under which the second's outputs are legal under the
            first's contract; empty where its order of sums alone may differ.
        bugs: what no contract explains, in lines.
    """

    fields: list[tuple[str, str, str]]
    partings: list[Parting] = field(default_factory=list)
    explaining: list[str] = field(default_factory=list)
    bugs: list[str] = field(default_factory=list)

    @property
    def parted(self) -> list[Parting]:
        """The cases on which bits differ."""
        return [parting for parting in self.partings if parting.stage]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "fields": [list(one) for one in self.fields], "explaining": self.explaining, "bugs": self.bugs,
            "cases": [parting.as_dict() for parting in self.partings],
        }  # fmt: skip


def shared_cases(first: KernelLike, second: KernelLike, count: int) -> list[Case]:
    """Return so many fixed cases that both kernels take.

    Args:
        first, second: of one op.
        count: at most.
    Raises:
        ValueError: they are of two ops, or take no case in common.
    """
    require(first.op == second.op, f"B: got a kernel of {second.op}, must be one of {first.op}, as A is")
    listed = dict.fromkeys([*must_run(first), *must_run(second)])
    both = [case for case in listed if first.why_not(case) is None and second.why_not(case) is None]
    require(bool(both), f"B: {second.name} takes no case that {first.name} takes; give one by --case")
    return spread(both, count)


def parity(
    kernels: Sequence[KernelLike], rules: Sequence[Contract], cases: Sequence[Case], progress: Progress | None = None
) -> Parity:
    """Run two kernels on the same inputs and compare what they stored, stage by stage.

    Args:
        kernels: two, of one op, on one device.
        rules: the contract of each, inferred or declared; their orders of sums are not asked.
        cases: that both take.
        progress: called with words, cases done and cases in all.
    Returns:
        Parity.
    """
    ours, theirs = (one.unscheduled for one in rules)
    shown = record_of(kernels[0].op).inferred
    names = [line.partition(":")[0] for line in rules[0].differences(rules[1])]
    names = [name for name in names if not shown or name in shown or not _is_judged(name)]
    fields = [(name, value_text(getattr(rules[0], name)), value_text(getattr(rules[1], name))) for name in names]
    found, kept = Parity(fields), list[tuple[Problem, Any]]()
    for done, case in enumerate(cases):
        problem = case.build(kernels[0].device)
        outputs, parting = [], Parting(str(case))
        for kernel, own in zip(kernels, (ours, theirs), strict=True):
            output, verdict = _run(kernel, problem, own)
            outputs.append(output)
            parting.verdicts.append(verdict)
            if verdict.status == "illegal":
                found.bugs.append(f"{kernel.name} on {case}: {verdict.tier} {verdict.stage}: {verdict.reason}")
        if all(verdict.status != "illegal" for verdict in parting.verdicts):
            _compare(problem, outputs, parting)
            if parting.stage:
                parting.verdicts.append(judge(problem, outputs[1], ours, explain=False))
                kept.append((problem, outputs[1]))
        found.partings.append(parting)
        if progress:
            progress("cases", done + 1, len(cases))
    found.explaining = _explaining(kept, ours, theirs, [name for name in names if _is_judged(name)])
    return found


def _is_judged(name: str) -> bool:
    return not name.endswith("schedule")


def _run(kernel: KernelLike, problem: Problem, rules: Contract) -> tuple[Any, Verdict]:
    guarded = Guarded(problem.args)
    try:
        output = call(kernel, guarded.args, 0, problem.case)
    except Exception as error:
        tier, said = ending_of(error)
        verdict = Verdict(problem.case.op, str(problem.case), kernel.name, rules.name)
        return None, failed(verdict, tier, "", *said)
    return output, judge(problem, output, rules, explain=False)


def _by_name(problem: Problem, output: Any) -> dict[str, torch.Tensor]:
    settled = record_of(problem.case.op).settled(problem, output)
    if isinstance(settled, dict):
        return settled
    parts = settled if isinstance(settled, (tuple, list)) else (settled,)
    return dict(zip((result.name for result in OPS[problem.case.op].results), parts, strict=False))


def _compare(problem: Problem, outputs: Sequence[Any], parting: Parting) -> None:
    """Find the first stage that both stored and whose bits differ."""
    ours, theirs = (_by_name(problem, output) for output in outputs)
    for name, a in ours.items():
        b = theirs.get(name)
        if b is None or same_bits(a, b):
            continue
        wrong = different_bits(a, b)
        parting.at = [int(i) for i in wrong.nonzero()[0]]
        parting.stage, parting.differ, parting.elements = name, int(wrong.sum()), wrong.numel()
        parting.first, parting.second = (float(t[tuple(parting.at)]) for t in (a, b))
        return


def _explaining(kept: Sequence[tuple[Problem, Any]], ours: Contract, theirs: Contract, names: list[str]) -> list[str]:
    """Return the fields that must be the second's, so that its outputs are legal under the rest of the first's."""
    rules, chosen = ours, list[str]()

    def legal(candidate: Contract) -> int:
        verdicts = (judge(problem, output, candidate, explain=False) for problem, output in kept)
        return sum(verdict.status != "illegal" for verdict in verdicts)

    best = legal(rules)
    while best < len(kept):
        tried = []
        for name in names:
            if name not in chosen:
                try:
                    changed = replace(rules, **{name: getattr(theirs, name)})
                except ValueError:  # that value goes with another of the second's fields only
                    continue
                tried.append((legal(changed), name, changed))
        if not tried:
            break
        best, name, rules = max(tried, key=lambda one: one[0])
        chosen.append(name)
    return chosen
