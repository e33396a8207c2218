"""Which sums an op has, and whether a contract's schedules fit them."""

from __future__ import annotations

from moeracle.ref.contracts.contract import Contract

from ..cases.case import Case
from ..cases.optable import OPS, PLACEMENTS
from ..cases.record import record_of

FURTHER = ("gemm2_schedule", "gate_schedule", "sum_schedule")


def require_sums(op: str, contract: Contract) -> None:
    """Refuse a schedule of a sum that the op does not have.

    Raises:
        ValueError: the contract has one, or ranks; `schedule` itself may stand in any contract.
    """
    if contract.ranks is not None and not record_of(op).over_ranks:
        having = ", ".join(name for name in OPS if record_of(name).over_ranks)
        raise ValueError(f"ranks: got {contract.ranks} for op {op!r}, must be left out: only {having} runs over ranks")
    for field in FURTHER:
        if getattr(contract, field) is not None and field not in record_of(op).sums:
            having = ", ".join(name for name in OPS if field in record_of(name).sums)
            raise ValueError(f"{field}: got one for op {op!r}, must be left out: only {having} have that sum")


def require_cover(case: Case, contract: Contract) -> None:
    """Refuse a schedule that does not cover its sum, whichever stages were stored.

    Raises:
        ValueError: names the schedule, what it covers and what it must.
    """
    if contract.ranks is not None:
        require_sums(case.op, contract)
        words = [word for word in PLACEMENTS if word in case.flags]
        if words:
            alone = "which is one rank's part alone"
            raise ValueError(f"ranks: got {contract.ranks} with case word {words[0]!r}, {alone}")
    sums = record_of(case.op).sums
    for field, dimension in sums.items():
        schedule = getattr(contract, field)
        if schedule is None:
            continue
        try:
            schedule.spans(case.sizes[dimension])
        except ValueError as error:
            raise ValueError(f"{field}{str(error).removeprefix('schedule')}") from None
    both = sums.get("gemm2_schedule")
    if both and contract.schedule is not None and contract.gemm2_schedule is None:
        contract.schedule.spans(case.sizes[both])
