"""The plan of a campaign: which kernels, and which cases in which chunk; the same in every process that reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path

from moeracle.bench.problems import shape_cases
from moeracle.files import STRICT, read_json, write_atomically
from moeracle.kernels.bench.cases import shape_named
from moeracle.properties.cases.case import Case
from moeracle.properties.cases.kernel_like import KernelLike
from moeracle.properties.hunt.must_run import must_run
from moeracle.properties.hunt.search import drawn_cases
from moeracle.properties.hunt.tall import tall_cases
from moeracle.ref.errors import require

FORMAT_VERSION = 1
FILE = "campaign.json"
WHAT = "campaign"
MOST_IN_A_CHUNK = 500
SEEDS_EACH = 4  # cases of one drawn description, with other data: drawing costs as much as judging
SEED_BITS = 40  # of a case's place in its campaign


@dataclass(frozen=True)
class Subject:
    """One kernel of a campaign.

    Args:
        target: the TARGET that it is loaded from.
        op, name, contract, device: what it said of itself when the campaign began.
        source: digest of its code (target/sources.py); "" if that cannot be read.
    """

    target: str
    op: str
    name: str
    contract: str
    device: str
    source: str = ""

    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class Plan:
    """What a campaign's folder says of it, in campaign.json.

    Args:
        moeracle: version; another one may draw other cases.
        kernels: in the order of their numbers.
        seed, profile, shapes: as for `moeracle check`.
        first: texts of cases that are judged before all others: failures of earlier campaigns.
        cases: in all; None: until the time is over.
        chunk: cases a chunk; chunk number c is of kernel c % len(kernels).
        device: in place of what the kernels declare, or None.
        database: file of cases that failed once, which gets those that fail now; None: none.
        case_timeout, max_memory: limits of a kernel's process: seconds, and a size such as 2G; None: as in check.
    """

    moeracle: str
    kernels: list[Subject]
    seed: int
    profile: str
    shapes: list[str]
    first: list[str]
    cases: int | None
    chunk: int
    device: str | None = None
    case_timeout: float | None = None
    max_memory: str | None = None
    database: str | None = None
    format_version: int = FORMAT_VERSION
    kind: str = "moeracle sweep"

    __pydantic_config__ = STRICT

    @property
    def chunks(self) -> int | None:
        """How many chunks there are; None: no end."""
        return None if self.cases is None else -(-self.cases // self.chunk)

    def size_of(self, chunk: int) -> int:
        """Return how many cases a chunk has: the last may have fewer."""
        return self.chunk if self.cases is None else min(self.chunk, self.cases - chunk * self.chunk)

    def kernel_of(self, chunk: int) -> int:
        """Return the number of the kernel that a chunk is about."""
        return chunk % len(self.kernels)


def chunk_size(cases: int | None, kernels: int, jobs: int) -> int:
    """Return the size of a chunk: so small that each job gets several of each kernel."""
    return MOST_IN_A_CHUNK if cases is None else max(1, min(MOST_IN_A_CHUNK, -(-cases // (4 * kernels * jobs))))


def write_plan(folder: Path, plan: Plan) -> None:
    """Write campaign.json, whole or not at all."""
    write_atomically(folder / FILE, json.dumps(asdict(plan), indent=1) + "\n")


def read_plan(folder: Path) -> Plan:
    """Return the plan of a campaign's folder.

    Raises:
        ValueError: in one line: it holds none, or one of another version.
    """
    plan = read_json(folder / FILE, Plan, WHAT)
    is_known = (plan.kind, plan.format_version) == ("moeracle sweep", FORMAT_VERSION)
    said = f"{plan.kind} {plan.format_version}"
    require(is_known, f"{WHAT}: {folder / FILE} is {said!r}, must be 'moeracle sweep {FORMAT_VERSION}'")
    require(bool(plan.kernels) and plan.chunk > 0, f"{WHAT}: {folder / FILE} names no kernel, or chunks of no case")
    return plan


def same_campaign(ours: Plan, theirs: Plan) -> str | None:
    """Return the first field in which two plans differ, but for cases, their number and chunks; None if none.

    Kernels that differ in their code alone are "code of its kernels".
    """
    if ours.kernels != theirs.kernels and _no_source(ours.kernels) == _no_source(theirs.kernels):
        return "code of its kernels"
    pairs = ((name, value, asdict(theirs)[name]) for name, value in asdict(ours).items())
    return next((name for name, a, b in pairs if a != b and name not in ("cases", "chunk", "first")), None)


def _no_source(kernels: list[Subject]) -> list[Subject]:
    return [replace(kernel, source="") for kernel in kernels]


def cases_of(plan: Plan, kernel: KernelLike, chunk: int) -> list[Case]:
    """Return the cases of one chunk: failures known before, fixed, tall and shaped cases first, then drawn ones.

    A failure known before keeps its seed, each other case has one of its own: no two cases of a campaign's kernel have
    the same text.

    Args:
        plan: the campaign's.
        kernel: the one that the chunk is about.
        chunk: its number.
    """
    size, begin = plan.size_of(chunk), chunk // len(plan.kernels) * plan.chunk
    known = [case for case in map(Case.parse, plan.first) if case.op == kernel.op and kernel.why_not(case) is None]
    found = [*known, *_listed(plan, kernel)][begin : begin + size]
    if len(found) < size:
        few = -(-(size - len(found)) // SEEDS_EACH)
        drawn = _drawn(kernel, plan.profile, seed=(plan.seed << 32) + chunk, count=few)
        found += islice(cycle(drawn), size - len(found)) if drawn else []
    first, texts = (plan.seed << SEED_BITS) + begin, set(map(str, known))

    def seeded(i: int, case: Case) -> Case:
        if begin + i < len(known):
            return case
        case = case.replace(seed=2 * (first + i) + case.seed % 2)  # the parity stays: recipes read it
        return case if str(case) not in texts else case.replace(seed=case.seed + (1 << SEED_BITS))

    return [seeded(i, case) for i, case in enumerate(found)]


def _listed(plan: Plan, kernel: KernelLike) -> list[Case]:
    shaped = shape_cases(kernel, [shape_named(text) for text in plan.shapes])
    listed = [*must_run(kernel), *shaped, *tall_cases(kernel, plan.profile)]
    return [case for case in listed if kernel.why_not(case) is None]


def _drawn(kernel: KernelLike, profile: str, seed: int, count: int) -> Sequence[Case]:
    from hypothesis.errors import Unsatisfiable

    from moeracle.properties.hunt.strategies import each_drawn

    found: list[Case] = []
    try:
        each_drawn(drawn_cases(kernel, profile), count, seed, found.append)
    except Unsatisfiable:
        return []
    return found[:count]
