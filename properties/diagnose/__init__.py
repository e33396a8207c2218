"""Diagnosis: which known fault, or whose convention, accounts for a wrong output.

    looks like: F29 scale taken from the next group (explains 1,204 of 1,204)

Every candidate is simulated at the failing stage, from the kernel's own stored input to it, and must account for the
illegal elements and for the legal ones. Who accounts for too little is not named: "none of the known faults".
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch

from moeracle.ref.contracts.contract import Contract
from moeracle.ref.weights.dense import DenseWeight

from ..cases.case import Problem
from ..cases.cost import multiplications, operations
from ..common.verdict import Verdict
from ..faults import FAULTS
from .candidates import Candidate, candidates
from .evidence import Evidence, Fit, Match, Parts

__all__ = ["Diagnosis", "diagnose"]

NEAR = 0.01  # shares that differ by less are decided by the other stages
MOST_EQUALS = 3
ORDERS = 32  # runs of a simulation that adds in any order: a kernel's result lies between theirs
FEW = 8  # wrong elements with which a fault may agree by chance: there are more than a hundred faults
LEAST_SHARE = 0.9  # of the illegal elements, and of all that a candidate has to account for
MOST_WORK = 1 << 26  # multiplications of one simulation
MOST_IN_ALL = 9 << 30  # operations of all simulations together, about 5 s: a clock would make names depend on it
NONE = "none of the known faults"


@dataclass(frozen=True)
class Diagnosis:
    """The explanation of a failure.

    Args:
        id: a fault's id, or e.g. "layout:gptq", "contract:wvsplitk".
        title: in words.
        explained, of: illegal elements that it predicts, and all of them.
        share: the part that it has right of all illegal elements and all changes that it predicts.
        equals: the ids of other explanations that predict the same, to the last element.
        runner_up: the next best explanation's id and share, or None.
    """

    id: str
    title: str
    explained: int
    of: int
    share: float
    equals: tuple[str, ...] = ()
    runner_up: tuple[str, float] | None = None

    @property
    def sure(self) -> bool:
        """Whether it accounts for enough to be named."""
        return self.share >= LEAST_SHARE and self.explained >= LEAST_SHARE * self.of

    def __str__(self) -> str:
        if self.of < FEW:
            rivals = list(dict.fromkeys((*self.equals, *([self.runner_up[0]] if self.runner_up else []))))
            also = f", but also {', '.join(rivals[:MOST_EQUALS])}" if rivals else ""
            few = "1 wrong element is" if self.of == 1 else f"{self.of} wrong elements are"
            return f"fits {self.title}{also}: {few} too few to tell by"
        text = f"{self.title} (explains {self.explained:,} of {self.of:,})"
        others = [id for id in self.equals if id in FAULTS or self.id not in FAULTS][:MOST_EQUALS]
        return f"{text}, as {'does' if len(others) == 1 else 'do'} {', '.join(others)}" if others else text


def diagnose(
    problem: Problem,
    outputs: Parts,
    contract: Contract,
    stage: str,
    illegal: torch.Tensor | None = None,
    *,
    width_ulp: float = 0.0,
) -> Diagnosis | None:
    """Return the known fault that accounts best for a wrong output, or None if none accounts for enough of it.

    Args:
        problem: what the kernel was called with.
        outputs: what it stored, by stage (moe_w4a16) or by part, in the order returned.
        contract: what it was judged under.
        stage: where it failed.
        illegal: bool, that stage's shape: the illegal elements; None for all that a right simulation has otherwise.
        width_ulp: median width of that stage's legal sets, by how much two orders of accumulation may differ.
    Returns:
        Diagnosis, or None.
    """
    best = search(problem, outputs, contract, stage, illegal, width_ulp=width_ulp)
    return best if isinstance(best, Diagnosis) and best.sure else None


def search(
    problem: Problem,
    outputs: Parts,
    contract: Contract,
    stage: str,
    illegal: torch.Tensor | None = None,
    *,
    width_ulp: float = 0.0,
) -> Diagnosis | str | None:
    """Return the best explanation, sure or not; None if there is nothing at all; a str says why nobody looked."""
    listed = candidates(problem.case, contract)
    reason = why_not(problem, len(listed))
    if reason is not None:
        return reason
    outputs = {name: value.cpu() for name, value in outputs.items()}
    illegal = None if illegal is None else illegal.cpu()
    evidence = Evidence(problem.to("cpu"), outputs, contract, stage, illegal, width_ulp)
    if not evidence.count:
        return None
    matches: list[Match] = []
    for candidate in listed:
        fit = _fit(evidence, candidate)
        if fit.explained:
            matches.append(Match(candidate, fit))
    return best_of(evidence, matches)


def _fit(evidence: Evidence, candidate: Candidate) -> Fit:
    if not candidate.in_any_order:
        parts = _simulated(evidence, candidate, evidence.failing)
        return evidence.fit(parts, evidence.failing) if parts else Fit()
    simulation = candidate.simulation()
    runs = [evidence.simulate(simulation, evidence.failing, run) for run in range(ORDERS)]
    return evidence.fit_between(runs, evidence.failing)


def _simulated(evidence: Evidence, candidate: Candidate, names: list[str]) -> Parts | None:
    try:
        simulation = candidate.simulation()
        is_right = names == evidence.failing and evidence.is_right(simulation)
        return evidence.right if is_right else evidence.simulate(simulation, names)
    except (ValueError, RuntimeError, IndexError, KeyError):  # it does not exist in this shape
        return None


def best_of(evidence: Evidence, matches: list[Match], *, elsewhere: bool = True) -> Diagnosis | None:
    """Take the best share; among nearly equal ones whoever also fits the other stages, then the one that predicts the
    fewest changes where nothing is wrong, then the first listed. `elsewhere`: whether other stages are looked at."""
    if not matches:
        return None
    top = max(match.fit.share for match in matches)
    least = min(top - NEAR, LEAST_SHARE)
    near = [match for match in matches if match.fit.share >= least]
    near = [_everywhere(evidence, match) for match in near] if elsewhere else near
    top = max(match.fit.share for match in near)
    near = sorted((match for match in near if match.fit.share >= top - NEAR), key=_least_unexplained)
    first, fit = near[0].candidate, near[0].fit
    as_good = [match for match in near if _least_unexplained(match) == _least_unexplained(near[0])]
    equals = dict.fromkeys(match.candidate.id for match in as_good if match.candidate.id != first.id)
    rest = [m for m in (*near, *matches) if m.candidate.id not in (first.id, *equals)]
    runner_up = (rest[0].candidate.id, rest[0].fit.share) if rest else None
    return Diagnosis(first.id, first.name, fit.explained, evidence.count, fit.share, tuple(equals), runner_up)


def _least_unexplained(match: Match) -> tuple[int, int, int]:
    """Order matches: what they miss in later stages, what they predict wrongly here, how much they predict at all."""
    return match.missed_later, match.fit.of - match.fit.matched, match.fit.of


def _everywhere(evidence: Evidence, match: Match) -> Match:
    """Take the other stages into account: those before the failing one are legal, those after it need not be."""
    parts = _simulated(evidence, match.candidate, evidence.names) if evidence.before or evidence.later else None
    if parts is None:
        return match
    later = evidence.fit(parts, evidence.later)
    fit = evidence.fit(parts, [*evidence.before, *evidence.failing])
    return replace(match, fit=fit, missed_later=later.of - later.matched)


def work(problem: Problem) -> int:
    """Return about how many multiplications one simulation of a problem takes, weights included."""
    count = multiplications(problem.case)
    return count or sum(v.numel() for v in problem.args.values() if isinstance(v, torch.Tensor))


def why_not(problem: Problem, count: int) -> str | None:
    """Return why `count` candidates are too much to simulate on this problem, or None; alike on every machine."""
    if any(isinstance(value, DenseWeight) for value in problem.args.values()):
        return "not looked for: a dequantized weight was given, and faults are planted in codes"
    one, together = work(problem), count * operations(problem.case)
    if one > MOST_WORK:
        return f"not looked for: the case takes {one:,} multiplications, more than {MOST_WORK:,}; shrink it"
    if together > MOST_IN_ALL:
        said = f"{count} candidates take {together:,} operations, more than {MOST_IN_ALL:,}"
        return f"not looked for: {said}; shrink it"
    return None


def tell(verdict: Verdict, best: Diagnosis | str | None) -> None:
    """Add the "looks like" line to a failure's text, and to its JSON the best candidate even if it is not sure."""
    if isinstance(best, Diagnosis):
        verdict.diagnosis = {**asdict(best), "sure": best.sure}
        best = str(best) if best.sure else None
    verdict.summary.append(f"looks like: {best or NONE}")
