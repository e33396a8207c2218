"""The JSON files that commands write, as pydantic models; `moeracle schema NAME` prints the JSON Schema of each.

A model reads what older versions wrote, too: what came later has a default. Fields may be added under the same
`format_version`, so what a model does not know is let pass. docs/json.md says what the fields mean.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moeracle.ref.errors import unknown

__all__ = ["SCHEMAS", "read_as", "schema_text"]

Number = float | Literal["inf", "-inf", "nan"]
Count = Annotated[int, Field(ge=0)]
Counts = dict[str, Count]
Cells = list[list[Number]]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, protected_namespaces=())


class Environment(_Model):
    """Versions and the machine."""

    moeracle: str | None
    torch: str | None
    triton: str | None
    numpy: str | None
    hypothesis: str | None
    python: str
    platform: str
    machine: str
    cuda: str | None
    hip: str | None
    gpus: list[str]
    driver: str | None
    threads: Count
    triton_interpreter: bool


class Map(_Model):
    """Where the illegal elements of a stage lie."""

    stage: str
    axis: str
    unit: Literal["ulp", "wrong", "different"]
    rows: Count
    columns: Count
    row_step: Count
    column_step: Count
    cells: Cells


class Stage(_Model):
    """One stage, of one case or summed over many."""

    stage: str
    judged: Count
    illegal: Count
    exact: Count
    width_ulp: Number
    max_ratio: Number
    conditioned: bool
    ratios: list[Count] = []
    tested: Count = 0
    z_bias: Number = 0.0
    z_rms: Number = 0.0


class Diagnosis(_Model):
    """The known fault that explains a failure best."""

    id: str
    title: str
    explained: Count
    of: Count
    share: Number
    equals: list[str]
    runner_up: Any = None
    sure: bool


class Found(_Model):
    """The case on which a failure was first seen, before it was shrunk."""

    case: str
    illegal: Count
    maps: list[Map]


class Verdict(_Model):
    """The answer for one case."""

    op: str
    case: str
    kernel: str
    contract: str
    status: Literal["legal", "illegal", "skipped", "vacuous"]
    tier: str
    stage: str
    summary: list[str]
    reason: str
    stages: list[Stage]
    seconds: Number
    bits: dict[str, str]
    diagnosis: Diagnosis | None = None
    after: list[str] = []
    maps: list[Map] = []
    judged: Count
    illegal: Count
    exact: Count


class Failure(Verdict):
    """A verdict that the text output shows."""

    text: str
    found: Found | None = None


class JudgedCase(_Model):
    """A case that was run."""

    case: str
    status: Literal["legal", "illegal", "skipped", "vacuous"]
    contract: str | None = None
    judged: Count
    illegal: Count
    seconds: Number
    bits: dict[str, str]


class Reach(_Model):
    """Up to which sizes a kernel was judged."""

    sizes: dict[str, tuple[int, int]]  # older files have -1 for one group a row
    skipped: Number


class KnownFailure(_Model):
    """What --known says of a kernel; `wrong` is empty where it holds."""

    reason: str
    issue: str
    expires: str
    quarantine: bool
    wrong: str


class Kernel(_Model):
    """One kernel's results."""

    kernel: str
    op: str
    layout: str | None
    contract: str
    device: str
    source: str | None = None
    status: Literal["legal", "illegal", "unjudged", "error"]
    cases_judged: Count
    judged: Count
    illegal: Count
    exact: Count
    width_ulp: Number | None
    max_ratio: Number | None
    seconds: Number
    error: str | None = None
    known: KnownFailure | None = None
    skipped: Counts
    left: Counts | None = None
    reach: Reach | None = None
    laws: Counts
    stages: list[Stage]
    failures: list[Failure]
    cases: list[JudgedCase]


class Score(_Model):
    """One kernel's score under --adversarial."""

    kernel: str
    op: str
    score: Number | None
    reasons: list[str]


class Adversarial(_Model):
    """The scores of --adversarial."""

    confined: dict[str, bool]
    score: Number | None
    kernels: list[Score]


class Check(_Model):
    """What `moeracle check --json` and the pytest suite's --moeracle-json write."""

    format_version: Literal[1]
    kind: Literal["moeracle check"]
    environment: Environment
    command: list[str]
    target: str
    profile: str | None
    seed: int
    started: str
    seconds: Number
    exit_code: int
    isolation: Literal["child process", "none"] | None = None
    adversarial: Adversarial | None = None
    kernels: list[Kernel]


class FaultRun(_Model):
    """One fault, hunted with one seed."""

    seed: int
    seen: bool
    tier: str
    stage: str
    case: str
    examples: Count
    seconds: Number
    named: str = ""
    name: str = ""


class PlantedFault(_Model):
    """One fault in one op."""

    op: str
    contract: str
    runs: list[FaultRun]
    rules: Counts


class Fault(_Model):
    """One fault of the catalogue."""

    id: str
    title: str
    stage: str
    source: str
    planted: list[PlantedFault]


class Rule(_Model):
    """A published tolerance, and what it sees and refuses."""

    name: str
    source: str
    faults_seen: Count
    faults: Count
    refused: Count
    outputs: Count


class Faults(_Model):
    """What `moeracle faults --json` writes."""

    format_version: Literal[1]
    kind: Literal["moeracle faults"]
    command: Any = None
    environment: Environment
    seeds: list[int]
    faults: list[Fault]
    rules: list[Rule]
    legal: list[dict[str, Any]]
    partial: bool = False
    unfinished: list[str] = []
    summary: dict[str, Any]


class Field_(_Model):  # noqa: N801  (pydantic has the other)
    """What was found of one field of a contract."""

    field: str
    value: Any
    status: str
    evidence: str
    same: Any = None


class InferredGemm(_Model):
    """What is known of the second GEMM of a layer."""

    site: str
    schedule: str | None
    same_schedules: list[str]
    order: Any
    facts: dict[str, Any]
    fields: list[Field_]


class InferredKernel(InferredGemm):
    """What was found of one kernel."""

    kernel: str
    op: str
    device: str
    explained: bool
    why_not: str
    contract: str
    code: str
    nearest: str
    differences: list[str]
    declared: list[list[Any]]
    gemm2: InferredGemm | None
    verdicts: list[dict[str, str]]
    notes: list[str]
    calls: Count
    rows: Count
    seconds: Number


class Infer(_Model):
    """What `moeracle infer TARGET --json` writes."""

    format_version: Literal[1] = 1
    kind: Literal["moeracle infer"] = "moeracle infer"
    format: Literal[1]
    target: str
    isolation: Literal["child process", "none"] | None = None
    kernels: list[InferredKernel]


class Row(_Model):
    """One kernel, measured at one point; the names say their units."""

    kernel: str
    op: str
    case: str
    T: Count
    legal: bool
    what: str = ""
    shape: str = ""
    archetype: str = ""
    us: Number
    us_low: Number | None = None
    us_high: Number | None = None
    rounds: Count | None = None
    rotations: Count | None = None
    tile: dict[str, Any] | None = None
    note: str = ""
    active: Count | None = None
    rows: Count | None = None
    block: Count | None = None
    block_m: Count | None = None
    tflops_useful: Number | None = None
    tflops_padded: Number | None = None
    gbs: Number | None = None
    floor_us: Number | None = None
    floor_percent: Number | None = None
    times_floor: Number | None = None
    useful_percent: Number | None = None
    against: dict[str, Any] | None = None
    neighbours: Number | None = None
    cliff: bool | None = None


class Bench(_Model):
    """What `moeracle kernels bench --json` and `sweep --json` write."""

    format_version: Literal[1] = 1
    kind: Literal["moeracle kernels bench"] = "moeracle kernels bench"
    command: str
    isolation: Literal["none"] | None = None
    device: str
    driver: str | None = None
    versions: dict[str, str | None]
    ceilings: dict[str, Number]
    against: dict[str, str]
    points: Counts | None = None
    allowed: Number | None = None
    cliffs: list[str] | None = None
    rows: list[Row]
    illegal: list[dict[str, Any]]
    skipped: list[dict[str, Any]]
    untuned: list[str]


class SoakedKernel(_Model):
    """What was said against one legal kernel."""

    op: str
    kernel: str
    contract: str
    device: str
    cases: Count
    vacuous: Count
    skipped: Count
    judged: Count
    max_ratio: Number
    max_z: Number
    alarms: list[str]


class Soak(_Model):
    """What `moeracle soak --json` writes."""

    format_version: Literal[1]
    kind: Literal["moeracle soak"]
    environment: Environment
    isolation: Literal["child process", "none"] | None = None
    target: str
    seed: int
    rounds: Count
    jobs: Count
    seconds: Number
    judged: Count
    cases: Count
    never_judged: list[str]
    ended: str
    alarms: list[str]
    kernels: list[SoakedKernel]


class ReplayedKernel(_Model):
    """One kernel's replay of the golden set."""

    kernel: str
    op: str
    contract: str
    cases: Count
    elements: Count
    equal: Count
    ulp: Number
    recorded: Count
    skipped: Count


class Drifted(_Model):
    """One thing that is no longer as it was."""

    kind: str
    case: str
    source: str
    text: str


class Golden(_Model):
    """What `moeracle golden verify --json` writes."""

    format_version: Literal[1]
    kind: Literal["moeracle golden verify"]
    dir: str
    entries: Count
    elements: Count
    exit_code: int
    isolation: Literal["child process", "none"] | None = None
    kernels: list[ReplayedKernel]
    findings: list[Drifted]


class Change(_Model):
    """What changed of one kernel."""

    kernel: str
    op: str
    before: str
    after: str
    worse: list[str]
    other: list[str]
    bits: list[str]
    same_bits: Count
    seconds: tuple[Number, Number]


class Compare(_Model):
    """What `moeracle compare --json` writes."""

    format_version: Literal[1]
    kind: Literal["moeracle compare"]
    environment: str
    worse: Count
    kernels: list[Change]


class LawSaid(_Model):
    """Over how many contracts and cases one law of an op spoke."""

    op: str
    law: str
    contracts: Count
    of_contracts: Count
    cases: Count
    alarms: Count


class LawsAsked(_Model):
    """What laws said of one legal kernel."""

    op: str
    contract: str
    spoke: dict[str, Count]
    cases: Count
    judged: Count
    alarms: list[str]


class Laws(_Model):
    """What `moeracle laws --json` writes."""

    format_version: Literal[1]
    kind: Literal["moeracle laws"]
    environment: Environment
    op: str | None
    seed: int
    shard: str
    jobs: Count
    seconds: Number
    left: Count
    unfinished: list[str]
    cases: Count
    judged: Count
    checks: Count
    alarms: list[str]
    laws: list[LawSaid]
    asked: list[LawsAsked]


SCHEMAS: dict[str, type[BaseModel]] = {
    model.__name__.lower(): model for model in (Check, Faults, Infer, Bench, Soak, Golden, Compare, Laws)
}


def schema_text(name: str) -> str:
    """Return the JSON Schema of a command's file, as docs/schemas holds it.

    Args:
        name: one of SCHEMAS.
    Returns:
        JSON, with a newline at its end.
    Raises:
        ValueError: there is none of this name.
    """
    if name not in SCHEMAS:
        raise unknown("schema", name, SCHEMAS)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps({**head, **SCHEMAS[name].model_json_schema()}, indent=1) + "\n"


def read_as(name: str, values: Any, where: str) -> None:
    """Raise ValueError, in one line that names the field, unless values are what a schema says.

    Args:
        name: one of SCHEMAS.
        values: plain values of JSON.
        where: what begins the message.
    """
    try:
        SCHEMAS[name].model_validate_json(json.dumps(values))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where} is damaged ({place}: {' '.join(first['msg'].split())[:200]})") from None
