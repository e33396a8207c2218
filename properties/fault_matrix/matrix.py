"""Both numbers that an oracle is worth: which faults it sees, and how often it cries wolf.

`run_matrix` gives a Matrix, `Matrix.as_dict()` plain values of this shape, which `moeracle faults --json` writes:

    seeds       the seeds that each fault was planted with
    faults      [{id, title, stage, source, planted: [{op, contract, runs: [{seed, seen, tier, stage, case, examples,
                seconds, named, name}], rules: {name: in how many of the seeds this rule refused an output}}]}]
    rules       [{name, source, faults_seen, faults, refused, outputs}]: refused of the legal kernels' outputs
    legal       [{op, kernel, contract, cases, vacuous, judged, max_ratio, max_z, seconds,
                alarms: [text]}]
    summary     {faults, planted, runs, seen, unseen: [text], tiers: {tier: runs}, median_examples, median_seconds,
                slowest_seconds, names: {NAMED: runs}, names_right, names_of, misnamed: [text], alarms, judged, seconds}
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from moeracle.ref.errors import require

from ..common.processes import call_each
from ..faults import FAULTS, Fault
from .hunt import NAMED, SEEDS, Planted, plant_and_hunt
from .legal import LegalRun, legal_kernels, run_legal
from .published_rules import RULES

__all__ = ["Matrix", "run_matrix"]

Progress = Callable[[str, int, int], None]


@dataclass
class Matrix:
    """Everything that `run_matrix` found.

    Args:
        seeds: with which each fault was hunted.
        planted: one for each fault in each op.
        legal: one for each legal kernel.
        seconds: of the whole.
    """

    seeds: tuple[int, ...]
    planted: list[Planted] = field(default_factory=list)
    legal: list[LegalRun] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def unseen(self) -> list[str]:
        """The faults, each with its op and seeds, that no tier saw."""
        missed = [(p, [str(r.seed) for r in p.runs if not r.seen]) for p in self.planted]
        return [f"{p.id} in {p.op} under {p.contract} (seeds {', '.join(seeds)})" for p, seeds in missed if seeds]

    @property
    def alarms(self) -> list[str]:
        """What was said against legal kernels."""
        return [f"{run.op} {run.kernel}: {alarm}" for run in self.legal for alarm in run.alarms]

    @property
    def misnamed(self) -> list[str]:
        """The faults, each with its op and seeds, that could be told apart from all others and were not."""
        found = []
        for p in self.planted:
            wrong: dict[str, list[str]] = {}
            for run in p.runs:
                if run.named in ("none", "another"):
                    wrong.setdefault(run.name or "none of the known", []).append(str(run.seed))
            found += [f"{p.id} in {p.op}: {name} (seeds {', '.join(seeds)})" for name, seeds in wrong.items()]
        return found

    @property
    def ok(self) -> bool:
        """Every fault seen, no false alarm."""
        return not self.unseen and not self.alarms

    def of(self, id: str) -> list[Planted]:
        """Return one fault's entries."""
        return [p for p in self.planted if p.id == id]

    def faults_seen_by(self, rule: str) -> tuple[int, int]:
        """Return how many faults a published rule sees, in every op and with every seed, and of how many it could."""
        by_id: dict[str, list[bool]] = {}
        for p in self.planted:
            if p.comparable:
                by_id.setdefault(p.id, []).append(p.seen_by(rule))
        return sum(all(seen) for seen in by_id.values()), len(by_id)

    def summary(self) -> dict[str, Any]:
        """Return the totals."""
        runs = [run for p in self.planted for run in p.runs]
        seen = [run for run in runs if run.seen]
        names = {kind: count for kind in NAMED if (count := sum(run.named == kind for run in runs))}
        return {
            "faults": len({p.id for p in self.planted}),
            "planted": len(self.planted),
            "runs": len(runs),
            "seen": len(seen),
            "unseen": self.unseen,
            "tiers": dict(Counter(run.tier for run in seen).most_common()),
            "median_examples": statistics.median(run.examples for run in seen) if seen else None,
            "median_seconds": statistics.median(run.seconds for run in seen) if seen else None,
            "slowest_seconds": max((run.seconds for run in runs), default=None),
            "names": names,
            "names_right": names.get("itself", 0),
            "names_of": sum(names.get(kind, 0) for kind in ("itself", "none", "another")),
            "misnamed": self.misnamed,
            "alarms": len(self.alarms),
            "judged": sum(run.judged for run in self.legal),
            "seconds": self.seconds,
        }

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, in the shape of the module's docstring."""
        faults = []
        for id in dict.fromkeys(p.id for p in self.planted):
            fault, planted = FAULTS[id], [asdict(p) for p in self.of(id)]
            for entry in planted:
                del entry["id"]
            about = {"id": id, "title": fault.title, "stage": fault.stage, "source": fault.source}
            faults.append({**about, "planted": planted})
        refused: Counter[str] = Counter()
        for run in self.legal:
            refused.update(run.refused)
        rules = []
        for rule in RULES.values():
            seen, of = self.faults_seen_by(rule.name)
            counts = {"refused": refused[rule.name], "outputs": sum(run.outputs for run in self.legal)}
            rules.append({"name": rule.name, "source": rule.source, "faults_seen": seen, "faults": of, **counts})
        return {
            "seeds": list(self.seeds),
            "faults": faults,
            "rules": rules,
            "legal": [run.as_dict() for run in self.legal],
            "summary": self.summary(),
        }


def run_matrix(
    faults: Iterable[Fault],
    ops: Sequence[str] | None = None,
    *,
    seeds: Sequence[int] = SEEDS,
    legal: bool = True,
    least_elements: int = 1_000_000,
    progress: Progress | None = None,
    jobs: int = 1,
) -> Matrix:
    """Plant each fault in each of its ops and hunt it with every seed; then run the legal kernels, for false alarms.

    Args:
        faults: which ones.
        ops: only these ops, or None for all of each fault's.
        seeds: of the hunts.
        legal: whether the legal kernels run too.
        least_elements: judged elements for each legal moe_w4a16 kernel.
        progress: called with what was done, how many are done and how many there are.
        jobs: processes that share the work; the Matrix holds the same in the same order.
    Returns:
        The Matrix.
    Raises:
        ValueError: no seeds.
    """
    require(len(seeds) > 0, "seeds: got none, must be at least one")
    started = time.monotonic()
    matrix = Matrix(tuple(seeds))
    work = [(f, op) for f in faults for op in f.ops if (ops is None or op in ops) and f.why_not(op) is None]
    kernels = legal_kernels(ops) if legal else []
    # The slowest begin first; a fault of the register is handed to another process by its id.
    named = {f.id: f.id if jobs > 1 and FAULTS.get(f.id) is f else f for f, _ in work}
    calls: list[tuple[int, Callable[[], Planted | LegalRun]]] = [
        (i, partial(run_legal, kernel, least_elements)) for i, kernel in enumerate(kernels, len(work))
    ]
    calls += [(i, partial(plant_and_hunt, named[fault.id], op, seeds)) for i, (fault, op) in enumerate(work)]
    found: dict[int, Planted | LegalRun] = {}
    for (i, _), one in call_each(_run, calls, jobs):
        found[i] = one
        if progress:
            what = f"{work[i][0].id} in {work[i][1]}" if i < len(work) else f"legal {kernels[i - len(work)].name}"
            progress(what, len(found), len(calls))
    matrix.planted = [one for i in range(len(work)) if isinstance(one := found[i], Planted)]
    matrix.legal = [one for i in range(len(work), len(calls)) if isinstance(one := found[i], LegalRun)]
    matrix.seconds = time.monotonic() - started
    return matrix


def _run(index: int, call: Callable[[], Planted | LegalRun]) -> Planted | LegalRun:
    """Run one part of a matrix; its number goes with it."""
    return call()
