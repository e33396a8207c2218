"""Which sums an op has, and whether a contract's schedules fit them."""

from __future__ import annotations

from moeracle.ref.contract import Contract

from ..case import Case

GEMM = {"schedule": "K"}
# op: {a contract's schedule: the dimension that the sum runs over}
SUMS = {
    "int4_linear": GEMM,
    "grouped_gemm": GEMM,
    "padded_gemm": GEMM,
    "int8_lm_head": GEMM,
    "tiny_dot": GEMM,
    "moe_w4a16": {"schedule": "H", "gemm2_schedule": "I", "sum_schedule": "k"},
    "shared_expert": {"schedule": "H", "gemm2_schedule": "I", "gate_schedule": "H"},
    "moe_unpermute": {"sum_schedule": "k"},
}
FURTHER = ("gemm2_schedule", "gate_schedule", "sum_schedule")


def require_sums(op: str, contract: Contract) -> None:
    """Refuse a schedule of a sum that the op does not have.

    Raises:
        ValueError: the contract has one; `schedule` itself may stand in any contract.
    """
    for field in FURTHER:
        if getattr(contract, field) is not None and field not in SUMS.get(op, {}):
            having = ", ".join(name for name, sums in SUMS.items() if field in sums)
            raise ValueError(f"{field}: got one for op {op!r}, must be left out: only {having} have that sum")


def require_cover(case: Case, contract: Contract) -> None:
    """Refuse a schedule that does not cover its sum, whichever stages were stored.

    Raises:
        ValueError: names the schedule, what it covers and what it must.
    """
    for field, dimension in SUMS.get(case.op, {}).items():
        schedule = getattr(contract, field)
        if schedule is None:
            continue
        try:
            schedule.spans(case.sizes[dimension])
        except ValueError as error:
            raise ValueError(f"{field}{str(error).removeprefix('schedule')}") from None
    both = SUMS.get(case.op, {}).get("gemm2_schedule")
    if both and contract.schedule is not None and contract.gemm2_schedule is None:
        contract.schedule.spans(case.sizes[both])
