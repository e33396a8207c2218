"""Putting findings into words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from moeracle.ref.contracts.contract import Contract

from .facts import Facts
from .found import MEASURED, UNASKED, UNDECIDED, Finding, Inference, value_text
from .weights import RIGHT, WeightPath


def note(result: Inference, field: str, value: Any, evidence: str, status: str = MEASURED, same: Any = ()) -> None:
    """Add or replace what is known about a contract field."""
    result.findings = [f for f in result.findings if f.field != field]
    result.findings.append(Finding(field, value, status, evidence, list(same)))


def others(contracts: Iterable[Contract], first: Contract, field: str) -> list[str]:
    """Return, as text, the values of a field that contracts have besides the first one's."""
    return sorted({value_text(getattr(c, field)) for c in contracts} - {value_text(getattr(first, field))})


def tell(result: Inference, path: WeightPath, rules: Contract) -> None:
    """Write down the weight path."""
    known = MEASURED if path.weight else UNDECIDED
    note(result, "weight", rules.weight, path.evidence.get("weight", ""), known, path.same)
    rounding = "with the weight path" if rules.weight == "cast" else "the weight is not rounded"
    note(result, "weight_rounding", rules.weight_rounding, rounding, known if rules.weight == "cast" else UNASKED)
    said = path.evidence.get("store_rounding", "with the weight path, which is not known")
    note(result, "store_rounding", rules.store_rounding, said, known)
    if rules.weight == "hoisted":
        note(result, "zero_offset", rules.zero_offset, path.evidence.get("zero_offset", ""))
    if not path.weight:
        best = max(path.shares, key=lambda name: path.shares[name])
        result.why_not = (
            f"weight path: one-hot rows fit no rounding (nearest: {best}, {path.shares[best]:.2%} of elements; "
            f"{RIGHT:.1%} are needed)"
        )


def tell_facts(result: Inference, facts: Facts, rules: Contract) -> None:
    """Write down what three-term sums showed."""
    ftz = {"yes": MEASURED, "no": MEASURED}.get(facts.ftz, UNDECIDED)
    note(result, "ftz", rules.ftz, facts.evidence.get("ftz", ""), ftz)
    again = "three runs on the same inputs gave the same bits" if rules.deterministic else "runs differ in their bits"
    note(result, "deterministic", rules.deterministic, again)
