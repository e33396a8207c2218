"""Diagnosis of a kernel whose two runs differ: which known fault, run again and again, varies where it varies."""

from __future__ import annotations

import torch

from moeracle.ref.contracts.contract import Contract

from ..cases.case import Problem
from ..common.torch_state import our_arithmetic
from ..common.verdict import Verdict
from ..simulate import Simulation
from . import LEAST_SHARE, Diagnosis, best_of, tell, why_not
from .candidates import Candidate, candidates
from .evidence import Evidence, Fit, Match, Parts

ENOUGH = 0.99  # share at which no more runs are made
HOPELESS = {8: 0.2, 16: 0.5}  # number of runs: share below which a simulation is given up
RUNS = 64  # of a simulation that varies: enough to see the orders of a few partial sums


def diagnose_runs(problem: Problem, first: Parts, second: Parts, contract: Contract) -> Diagnosis | str | None:
    """Return the known fault that varies from run to run where a kernel did, sure or not; a str says why nobody looked.

    An element that varied is explained where the simulation's own runs vary, and both values are within their range.

    Args:
        problem: what the kernel was called with.
        first, second: what its two runs stored, by stage or by part.
        contract: what it was judged under.
    """
    listed = sorted(candidates(problem.case, contract, varies=True), key=_is_no_order)
    reason = why_not(problem, len(listed))
    if reason is not None:
        return reason
    first, second = ({name: value.cpu() for name, value in run.items()} for run in (first, second))
    stages = [name for name, value in first.items() if bool((value != second[name]).any())]
    if not stages:
        return None
    evidence = Evidence(problem.to("cpu"), first, contract, stages[0], first[stages[0]] != second[stages[0]])
    again = Evidence(evidence.problem, second, contract, stages[0])
    matches: list[Match] = []
    for candidate in listed:
        if _is_no_order(candidate) and any(match.fit.share >= LEAST_SHARE for match in matches):
            break  # parts that are added in any order say it all: simpler than a race, and nothing else has to run
        try:
            fit = _fit(evidence, again, candidate.simulation())
        except (ValueError, RuntimeError, IndexError, KeyError):  # it does not exist in this shape
            continue
        if fit.explained:
            matches.append(Match(candidate, fit))
    return best_of(evidence, matches, elsewhere=False)


def _is_no_order(candidate: Candidate) -> bool:
    """Say whether a candidate is anything but sums of parts that are added in any order."""
    return candidate.id != "F13" and not candidate.in_any_order


def _fit(evidence: Evidence, again: Evidence, simulation: Simulation) -> Fit:
    [name] = evidence.failing[:1]
    runs = [evidence.simulate(simulation, [name], run)[name] for run in range(2)]
    if torch.equal(*runs) or bool(torch.stack(runs).isnan().any()):  # NaN in a run is located by its place
        return Fit()
    lo, hi = torch.minimum(*runs), torch.maximum(*runs)
    fit = _inside(evidence, again, name, lo, hi)
    for run in range(2, RUNS):
        value = evidence.simulate(simulation, [name], run)[name]
        lo, hi = torch.minimum(lo, value), torch.maximum(hi, value)
        fit = _inside(evidence, again, name, lo, hi)
        if fit.share >= ENOUGH or fit.share < HOPELESS.get(run, 0.0):
            break
    return fit


def _inside(evidence: Evidence, again: Evidence, name: str, lo: torch.Tensor, hi: torch.Tensor) -> Fit:
    """Say how well two runs of the kernel fit into the range of a simulation's runs."""
    wrong, always = evidence.wrong[name], (lo == hi) & (lo != evidence.right[name])
    got, other = evidence.got[name], again.got[name]
    inside = (lo <= got) & (got <= hi) & (lo <= other) & (other <= hi)
    explained = wrong & (lo < hi) & inside
    matched = explained | (always & ~wrong & inside)
    return Fit(int(explained.sum()), int((wrong | always).sum()), int(matched.sum()))


def tell_difference(verdict: Verdict, problem: Problem, first: Parts, second: Parts, contract: Contract) -> None:
    """Add the "looks like" line to the failure of a kernel whose runs differ."""
    with our_arithmetic():
        tell(verdict, diagnose_runs(problem, first, second, contract))
