"""Statistics over all cases of one hunt: what drifts too little for the few elements of one small case.

The sums of a Drift add, so the test stays the one of compare/statistics.py, with the n of every case that was legal.
"""

from __future__ import annotations

from ..cases.case import Case
from ..common.drift import Drift
from ..common.verdict import Verdict, failed
from .search import Judge

ROWS = 1024  # tokens of the case that is asked to show by itself what the pool shows


def pooled_drifts(verdicts: list[Verdict]) -> dict[str, Drift]:
    """Add up each stage's Drift over the legal ones of one kernel's verdicts."""
    pool: dict[str, Drift] = {}
    for verdict in verdicts:
        if verdict.status == "legal":
            for stage in verdict.stages:
                pool[stage.stage] = pool.get(stage.stage, Drift()).plus(stage.drift)
    return pool


def check_pooled(judge: Judge) -> Verdict | None:
    """Return the failure of the first stage whose pooled statistics are beyond the threshold, or None.

    The strongest case, made larger, is tried first, since its replay then shows the same. If it does not, the failure
    names that case and says that one case alone is too small.
    """
    for stage, drift in pooled_drifts(judge.result.verdicts).items():
        if not drift.complaint:
            continue
        case = _strongest(judge, stage, drift)
        larger = case.replace(T=max(ROWS, case.T)) if case.sizes.get("T") else case
        alone = judge(larger) if larger != case else None
        if alone is not None and alone.status == "illegal":
            return judge.explained(larger)
        verdict = Verdict(case.op, str(case), judge.kernel.name, judge.kernel.contract.name)
        cases = sum(v.status == "legal" for v in judge.result.verdicts)
        failed(verdict, "statistics", stage, drift.complaint, f"over {cases} cases together; this one has a large part")
        judge.result.verdicts.append(verdict)
        return verdict
    return None


def _strongest(judge: Judge, stage: str, drift: Drift) -> Case:
    """The legal case whose own sums exceed what is allowed by most, in the pool's direction."""
    sign = -1.0 if drift.bias < 0 else 1.0
    by_bias = abs(drift.z_bias) >= drift.z_rms

    def strength(verdict: Verdict) -> float:
        own = next((s.drift for s in verdict.stages if s.stage == stage), Drift())
        return sign * own.bias - own.allowed if by_bias else own.excess - own.spread

    return Case.parse(max((v for v in judge.result.verdicts if v.status == "legal"), key=strength).case)
