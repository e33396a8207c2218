"""Both numbers that an oracle is worth: which faults it sees, and how often it cries wolf.

`run_matrix` gives a Matrix, `Matrix.as_dict()` plain values of this shape, which `moeracle faults --json` writes:

    seeds       the seeds that each fault was planted with
    faults      [{id, title, stage, source, planted: [{op, contract, runs: [{seed, seen, tier, stage, case, examples,
                seconds, named, name}], rules: {name: in how many of the seeds this rule refused an output}}]}]
    rules       [{name, source, faults_seen, faults, refused, outputs}]: refused of the legal kernels' outputs
    legal       [{op, kernel, contract, cases, vacuous, judged, max_ratio, max_z, seconds,
                alarms: [text]}]
    partial     whether pieces (a fault in an op, a legal kernel) are left, with which a later run goes on
    unfinished  [text]: pieces that were given up, and why
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

from ..common.processes import Unfinished, call_each, saved_at_times
from ..faults import FAULTS, Fault
from .hunt import NAMED, SEEDS, FaultRun, Planted, plant_and_hunt
from .legal import LegalRun, legal_kernels, run_legal
from .published_rules import RULES

__all__ = ["Matrix", "read_matrix", "run_matrix"]

Progress = Callable[[str, int, int], None]


@dataclass
class Matrix:
    """Everything that `run_matrix` found.

    Args:
        seeds: with which each fault was hunted.
        planted: one for each fault in each op.
        legal: one for each legal kernel.
        seconds: of the whole.
        unfinished: what was given up, and why.
        left: how many pieces of it have not been run.
    """

    seeds: tuple[int, ...]
    planted: list[Planted] = field(default_factory=list)
    legal: list[LegalRun] = field(default_factory=list)
    seconds: float = 0.0
    unfinished: list[str] = field(default_factory=list)
    left: int = 0

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
        """Every fault seen, no false alarm, nothing given up or left."""
        return not (self.unseen or self.alarms or self.unfinished or self.left)

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
            "partial": self.left > 0,
            "unfinished": self.unfinished,
            "summary": self.summary(),
        }


def read_matrix(plain: dict[str, Any]) -> Matrix:
    """Return the Matrix of plain values that `as_dict` made; what was given up or left is not in it.

    Args:
        plain: those values, or what JSON made of them.
    Returns:
        Matrix.
    Raises:
        KeyError, TypeError: they have another form.
    """
    planted = [
        Planted(fault["id"], one["op"], one["contract"], [FaultRun(**run) for run in one["runs"]], dict(one["rules"]))
        for fault in plain["faults"]
        for one in fault["planted"]
    ]
    legal = [LegalRun(**{**run, "device": "cpu"}) for run in plain["legal"]]
    return Matrix(tuple(plain["seeds"]), planted, legal, float(plain["summary"]["seconds"]))


def run_matrix(
    faults: Iterable[Fault],
    ops: Sequence[str] | None = None,
    *,
    seeds: Sequence[int] = SEEDS,
    legal: bool = True,
    least_elements: int = 1_000_000,
    progress: Progress | None = None,
    jobs: int = 1,
    setup: Callable[[], None] | None = None,
    limit: float | None = None,
    earlier: Matrix | None = None,
    save: Callable[[Matrix], None] | None = None,
) -> Matrix:
    """Plant each fault in each of its ops and hunt it with every seed; then run the legal kernels, for false alarms.

    Args:
        faults: which ones.
        ops: only these ops, or None for all of each fault's.
        seeds: of the hunts.
        legal: whether the legal kernels run too.
        least_elements: judged elements for each legal moe_w4a16 kernel.
        progress: called with what is being done, how many pieces are done and how many there are.
        jobs: processes that share the work; the Matrix holds the same in the same order.
        setup: called first in each process.
        limit: seconds that one piece may take; it is then given up, in a process of its own.
        earlier: of a run with the same seeds: its pieces are not run again.
        save: called with what there is every minute, and when an exception ends the run.
    Returns:
        The Matrix.
    Raises:
        ValueError: no seeds.
    """
    require(len(seeds) > 0, "seeds: got none, must be at least one")
    started = time.monotonic()
    work = [(f, op) for f in faults for op in f.ops if (ops is None or op in ops) and f.why_not(op) is None]
    kernels = legal_kernels(ops) if legal else []
    names = [f"{fault.id} in {op}" for fault, op in work] + [f"legal {k.name} of {k.op}" for k in kernels]
    before = earlier or Matrix(tuple(seeds))
    known: dict[str, Planted | LegalRun] = {f"{one.id} in {one.op}": one for one in before.planted}
    known |= {f"legal {run.kernel} of {run.op}": run for run in before.legal}
    found = {i: known[name] for i, name in enumerate(names) if name in known}
    given_up: dict[int, str] = {}

    def so_far() -> Matrix:
        planted = [one for i in range(len(work)) if isinstance(one := found.get(i), Planted)]
        runs = [one for i in range(len(work), len(names)) if isinstance(one := found.get(i), LegalRun)]
        seconds, left = before.seconds + time.monotonic() - started, len(names) - len(found) - len(given_up)
        unfinished = [f"{names[i]}: {why}" for i, why in sorted(given_up.items())]
        return Matrix(tuple(seeds), planted, runs, seconds, unfinished, left)

    # The slowest begin first; a fault of the register is handed to another process by its id.
    spawned = jobs > 1 or limit is not None
    named = {f.id: f.id if spawned and FAULTS.get(f.id) is f else f for f, _ in work}
    calls: list[tuple[int, Callable[[], Planted | LegalRun]]] = [
        (i, partial(run_legal, kernel, least_elements)) for i, kernel in enumerate(kernels, len(work))
    ]
    calls += [(i, partial(plant_and_hunt, named[fault.id], op, seeds)) for i, (fault, op) in enumerate(work)]
    calls, running = [call for call in calls if call[0] not in found], dict[int, None]()

    def tell(begun: tuple[Any, ...] | None = None) -> None:
        running.update({begun[0]: None} if begun else {})
        if progress:
            what = ", ".join(names[i] for i in running) or "done"
            progress(what, len(found) + len(given_up), len(names))

    with saved_at_times(save, so_far) as done:
        for (i, _), one in call_each(_run, calls, jobs, setup, limit=limit, began=tell):
            del running[i]
            if isinstance(one, Unfinished):
                given_up[i] = one.why
            else:
                found[i] = one
            tell()
            done()
    return so_far()


def _run(index: int, call: Callable[[], Planted | LegalRun]) -> Planted | LegalRun:
    """Run one part of a matrix; its number goes with it."""
    return call()
