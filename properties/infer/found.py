"""What inference found: fields and evidence, the contract, the nearest preset, and whether it explains the outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from moeracle.ref.bitmodels.schedule import Schedule
from moeracle.ref.contracts.contract import PRESETS, SCHEDULES, STAGES, Contract

from ..cases.optable import OPS
from ..cases.record import record_of
from ..common.verdict import Verdict

MEASURED, UNDECIDED, UNASKED = "measured", "undecided", "not asked"
OF_GEMM = (
    "weight", "weight_rounding", "accumulator", "ftz", "store_rounding", "deterministic", "zero_offset", "parts",
    "one_group", "v1_zeros",
)  # fmt: skip
WEIGHTS = {"weight": 2.0}  # another weight path is another kind of kernel


@dataclass
class Finding:
    """One contract field: its value, how sure that is, what was seen, and values that outputs cannot tell from it."""

    field: str
    value: Any
    status: str
    evidence: str
    same: list[str] = dataclasses.field(default_factory=list)


@dataclass
class Inference:
    """What probing one kernel found.

    Args:
        kernel, op, site: what was probed, and the case text whose sizes were used.
        device: where.
        contract: what was found, or the nearest there is if nothing explains the outputs (`explained` False).
        findings: one for each contract field.
        nearest, differences: the preset that differs least, and "field: found, preset's".
        schedule: the text of the schedule that was found, or "".
        schedules: other schedules that predict the same bits.
        order: the tree of the sum in words.
        picture: that tree drawn.
        here: every schedule that predicts all bits at the site's sizes, whether or not it does at others.
        fitting: the contracts with all these schedules, the best first.
        checks: for each schedule of a contract that was asked about: whether a given one predicts all bits here.
        declared: (field, schedule, whether it predicts the bits) of what the kernel declares.
        second: what was found about GEMM2 of a layer, whose GEMM1 all this is about; None: not asked.
        facts: measured properties of the accumulator.
        verdicts: random cases judged with the contract.
        why_not: what does not fit, if nothing explains the outputs.
        notes: what else a reader must know.
        calls, rows: how often the kernel was called, and with how many rows in all.
        seconds: how long that took.
    """

    kernel: str
    op: str
    site: str
    device: str
    contract: Contract = dataclasses.field(default_factory=lambda: PRESETS["grouped"])
    findings: list[Finding] = dataclasses.field(default_factory=list)
    nearest: str = "grouped"
    differences: list[str] = dataclasses.field(default_factory=list)
    schedule: str = ""
    schedules: list[str] = dataclasses.field(default_factory=list)
    here: list[str] = dataclasses.field(default_factory=list)
    fitting: list[Contract] = dataclasses.field(default_factory=list)
    checks: dict[str, Callable[[Schedule], bool]] = dataclasses.field(default_factory=dict)
    declared: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)
    second: Inference | None = None
    order: str = ""
    picture: list[str] = dataclasses.field(default_factory=list)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    verdicts: list[Verdict] = dataclasses.field(default_factory=list)
    why_not: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)
    calls: int = 0
    rows: int = 0
    seconds: float = 0.0

    @property
    def explained(self) -> bool:
        """Whether the contract explains every output that was asked for."""
        judged = [v for v in self.verdicts if v.status in ("legal", "illegal")]
        return not self.why_not and bool(judged) and all(v.status == "legal" for v in judged)

    @property
    def text(self) -> str:
        """The contract as `contract=` takes it: a preset and what differs."""
        return contract_text(self.contract, self.nearest)

    def finding(self, name: str) -> Finding | None:
        """Return what is known about a field."""
        return next((f for f in self.findings if f.field == name), None)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON (docs/infer.md)."""
        return {
            "kernel": self.kernel,
            "op": self.op,
            "device": self.device,
            "explained": self.explained,
            "why_not": self.why_not,
            "contract": self.text,
            "code": contract_code(self.contract, self.text),
            "nearest": self.nearest,
            "differences": self.differences,
            **self.of_gemm(),
            "declared": [list(row) for row in self.declared],
            "gemm2": self.second and self.second.of_gemm(),
            "verdicts": [{"case": v.case, "status": v.status, "reason": v.reason} for v in self.verdicts],
            "notes": self.notes,
            "calls": self.calls,
            "rows": self.rows,
            "seconds": round(self.seconds, 3),
        }

    def of_gemm(self) -> dict[str, Any]:
        """Return what is known about one GEMM as plain values for JSON."""
        return {
            "site": self.site,
            "schedule": self.schedule,
            "same_schedules": self.schedules,
            "order": self.order,
            "facts": self.facts,
            "fields": self._fields(),
        }

    def _fields(self) -> list[dict[str, Any]]:
        return [
            {"field": f.field, "value": _plain(f.value), "status": f.status, "evidence": f.evidence, "same": f.same}
            for f in self.findings
        ]


def nearest_preset(found: Contract, op: str) -> tuple[str, list[str]]:
    """Return the preset that differs least in what the op shows, and "field: found, preset's" for each difference.

    An accumulator within the preset's is a small difference: the kernel is legal under the preset.
    """

    def distance(preset: Contract) -> float:
        total = 0.0
        for name in _relevant(found, op):
            mine, theirs = getattr(found, name), getattr(preset, name)
            if mine != theirs:
                covered = name == "accumulator" and theirs in found.adder.within
                total += 0.1 if covered else WEIGHTS.get(name, 1)
        return total

    default = OPS[op].default_contract
    named = [PRESETS[name] for name in record_of(op).presets]
    best = min(sorted(named, key=lambda p: (p.name != default, p.stores != STAGES)), key=distance)
    return best.name, [
        f"{name}: {value_text(getattr(found, name))}, {value_text(getattr(best, name))}"
        for name in _relevant(found, op)
        if getattr(found, name) != getattr(best, name)
    ]


def _relevant(found: Contract, op: str) -> list[str]:
    left_out = {"weight_rounding"} if found.weight != "cast" else set()
    left_out |= {"zero_offset"} if found.weight != "hoisted" else set()
    names = [name for name in record_of(op).inferred if name not in left_out]
    return [*names, "scale_cast"] if found.scale_cast else names  # asked of kernels that take such scales alone


def settle(found: Contract, nearest: str, op: str) -> Contract:
    """Take from the nearest preset the fields that this op does not show, and name the contract by its text."""
    preset = PRESETS[nearest]
    shown = (*_relevant(found, op), *SCHEDULES, "name", "depth")
    hidden = [f.name for f in fields(Contract) if f.name not in shown]
    settled = replace(found, **{name: getattr(preset, name) for name in hidden})
    return replace(settled, name=contract_text(settled, nearest))


def contract_text(found: Contract, preset: str) -> str:
    """Return "preset,field=value,…"."""
    base = PRESETS[preset]
    parts = [
        f"{f.name}={value_text(getattr(found, f.name))}"
        for f in fields(Contract)
        if f.name != "name" and getattr(found, f.name) != getattr(base, f.name)
    ]
    return ",".join([preset, *parts])


def contract_code(found: Contract, name: str) -> str:
    """Return Contract(...) as Python, ready to paste."""
    plain = Contract(found.name)
    parts = [repr(name)]
    for f in fields(Contract):
        value = getattr(found, f.name)
        if f.name != "name" and value != getattr(plain, f.name):
            named = {"parts": "Parts", "ranks": "Ranks", "activation": "Activation"}
            parsed = {**dict.fromkeys(SCHEDULES, "Schedule"), **named}.get(f.name)
            parts.append(f"{f.name}={value!r}" if parsed is None else f"{f.name}={parsed}.parse({str(value)!r})")
    return f"Contract({', '.join(parts)})"


def value_text(value: Any) -> str:
    """Return a field's value as a contract's text has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    return "+".join(value) if isinstance(value, tuple) else str(value)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) or value is None else value_text(value)
