"""What a kernel declares, beside what its outputs show: does each declared schedule predict the bits asked for?"""

from __future__ import annotations

from typing import Any

from moeracle.ref.contracts.contract import SCHEDULES, Contract, contract

from ..cases.case import Case
from ..cases.record import record_of
from .found import Inference

AGREES, DIFFERS = "predicts every bit", "does not predict the bits"


def declared_by(kernel: Any, result: Inference) -> dict[str, str]:
    """Return the contracts that a kernel declares, by name, for the cases at which it was probed; {} if it does not."""
    if not getattr(kernel, "declared", False):
        return {}
    sites = [result.site, *([result.second.site] if result.second is not None else [])]
    flags = record_of(result.op).probe_flags  # with all that the op may add up
    cases = {site: Case.parse(site) for site in sites}
    return {site: kernel.contract_for(case.replace(flags={*case.flags, *flags})).name for site, case in cases.items()}


def compare(result: Inference, declared: dict[str, str]) -> list[tuple[str, str, str]]:
    """Return (field, declared schedule, AGREES or DIFFERS) for each schedule that was asked about.

    Args:
        result: what was found.
        declared: contracts' texts by case text, as declared_by returns them.
    """
    found: list[tuple[str, str, str]] = []
    here = _contract(declared, result.site)
    for field in SCHEDULES:
        rules = here
        if field == "gemm2_schedule" and result.second is not None:
            rules = _contract(declared, result.second.site)
        if rules is None or field not in result.checks:
            continue
        value = rules.of_gemm2.schedule if field == "gemm2_schedule" else getattr(rules, field)
        if value is not None:
            found.append((field, str(value), AGREES if result.checks[field](value) else DIFFERS))
    return found


def _contract(declared: dict[str, str], site: str) -> Contract | None:
    return contract(declared[site]) if site in declared else None
