"""What judging found: a Verdict for one case, and the text that a failure prints."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .drift import Drift
from .endings import ENDINGS

__all__ = ["StageResult", "Verdict"]

STATUSES = ("legal", "illegal", "skipped", "vacuous")
TIERS = ("call", *ENDINGS, "shape", "inputs", "nonfinite", "determinism", "bits", "interval", "statistics", "law",
         "contract")  # fmt: skip


@dataclass
class StageResult:
    """One judged stage of one case.

    Args:
        stage: h, a, y, out for moe_w4a16; the result's name for other ops.
        judged, illegal: elements compared, and how many of them no legal kernel could have stored.
        exact: elements with one legal value before the store rounding (every order of summation is exact).
        width_ulp: median width of the legal sets, in ulp of the stored dtype (0: one legal value).
        max_ratio: largest |error| / (bound + the store's rounding) seen; at most 1 for a legal kernel.
        conditioned: judged from the kernel's own stored input to this stage, not end to end.
        drift: the sums behind the statistical tests of a conditioned stage.
        ratios: sampled elements by |error| / (bound + the store's rounding), one count for each of
            judge.error_map.RATIO_EDGES; empty where there is no bound.
    """

    stage: str
    judged: int
    illegal: int = 0
    exact: int = 0
    width_ulp: float = 0.0
    max_ratio: float = 0.0
    conditioned: bool = True
    drift: Drift = field(default_factory=Drift)
    ratios: list[int] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: the statistics as n and two z."""
        plain = {name: value for name, value in vars(self).items() if name != "drift"}
        d = self.drift
        return {**plain, "tested": d.tested, "z_bias": round(d.z_bias, 3), "z_rms": round(d.z_rms, 3)}


@dataclass
class Verdict:
    """The answer for one case: could a legal kernel have produced these bits?

    Args:
        op, case, kernel, contract: what was judged, and under what.
        status: "legal", "illegal", "skipped" (the kernel does not support the case) or "vacuous" (a wrong output, zeros
            say, would pass too).
        tier: which check failed, one of TIERS; "" if none.
        stage: where it failed.
        summary: the failure's lines, in order, without the first and the last.
        reason: why it was skipped or refused, or the failure in one line.
        stages: what was judged.
        seconds: building, running and judging.
        bits: sha256, shortened, of each stored result: equal digests are equal bits, on whatever machine.
        maps: of a failure, where its illegal elements lie: judge.error_map.error_map's plain values.
        diagnosis: of a failure, the known fault that explains it best: diagnose.Diagnosis as plain values, and `sure`.
        after: of a failure, the cases that must be run before it in the same process.
        illegal_at: by stage or result, bool tensors of the illegal elements; only of those that have any.
    """

    op: str
    case: str
    kernel: str = ""
    contract: str = ""
    status: str = "legal"
    tier: str = ""
    stage: str = ""
    summary: list[str] = field(default_factory=list)
    reason: str = ""
    stages: list[StageResult] = field(default_factory=list)
    seconds: float = 0.0
    bits: dict[str, str] = field(default_factory=dict)
    diagnosis: dict[str, Any] | None = None
    after: list[str] = field(default_factory=list)
    maps: list[dict[str, Any]] = field(default_factory=list)
    illegal_at: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def ok(self) -> bool:
        """True for legal only: a skip and a vacuous case are neither right nor wrong."""
        return self.status == "legal"

    @property
    def judged(self) -> int:
        return sum(s.judged for s in self.stages)

    @property
    def illegal(self) -> int:
        return sum(s.illegal for s in self.stages)

    @property
    def exact(self) -> int:
        return sum(s.exact for s in self.stages)

    def text(self, target: str = "TARGET", replay: str = "") -> str:
        """Return the failure text: what, where, what would have hidden it, and last the command that replays it.

        Args:
            target: the TARGET to check again.
            replay: what the last line says in its place.
        """
        where = f"tier={self.tier}" + (f" stage={self.stage}" if self.stage else "")
        said = "FAIL" if self.status == "illegal" else self.status
        head = "  ".join(part for part in (f"[{self.op}] {self.kernel}".rstrip(), self.case, said) if part)
        if self.status != "illegal":
            return f"{head}  {self.reason}".rstrip()
        lines = [f"{head}  {where}", *(f"  {line}" for line in self.summary)]
        return "\n".join([*lines, f"  replay: {replay or replay_command(target, self.case, self.after)}"])

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        stages = [stage.as_dict() for stage in self.stages]
        sums = {"judged": self.judged, "illegal": self.illegal, "exact": self.exact}
        plain = asdict(replace(self, illegal_at={}))
        del plain["illegal_at"]
        return {**plain, "stages": stages, **sums}

    def raise_if_illegal(self) -> None:
        """Raise AssertionError with the verdict's text unless it is legal: a skipped or vacuous case proves nothing."""
        if not self.ok:
            raise AssertionError(self.text())


def replay_command(target: str, case: str, after: Iterable[str] = ()) -> str:
    """Return the shell command that judges one case of a TARGET again, after those that it needs before it."""
    before = "".join(f" --after {shlex.quote(text)}" for text in after)
    return f"moeracle check {shlex.quote(target)}{before} --case {shlex.quote(case)}"


def failed(verdict: Verdict, tier: str, stage: str, *summary: str) -> Verdict:
    """Turn a Verdict into a failure with its lines."""
    verdict.status, verdict.tier, verdict.stage = "illegal", tier, stage
    verdict.summary, verdict.reason = list(summary), summary[0] if summary else ""
    return verdict
