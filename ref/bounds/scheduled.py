"""Dot products under a declared schedule: one legal value, where an interval stands otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from ..bitmodels.accumulate import accumulate
from ..bitmodels.fp32_trees import ORDERS, sum_terms32
from ..bitmodels.schedule import Schedule
from ..errors import require
from ..weights.weight import Int4Weight

if TYPE_CHECKING:
    from ..contracts.contract import Contract

# A contract's: of every dot product, of a layer's second GEMM, of a shared expert's x·g, of the top-k sum.
SCHEDULES = ("schedule", "gemm2_schedule", "gate_schedule", "sum_schedule")


class Operands(NamedTuple):
    """What an instruction multiplies with, and what enters after the dot; one weight's, or with a leading E.

    values: [..., N, K], weights or codes, exact in its dtype.  scale, zero: [..., N, K/G] or None, as accumulate takes.
    bias: [N], where the schedule adds it in the scale's operation.
    """

    values: torch.Tensor
    scale: torch.Tensor | None = None
    zero: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    def expert(self, e: int) -> Operands:
        """Return expert e's operands, as views."""
        return Operands(*(None if part is None else part[e] for part in self))  # type: ignore[arg-type]


def scheduled_operands(w: Int4Weight, formed: torch.Tensor, contract: Contract, dtype: torch.dtype) -> Operands:
    """Return the operands of the contract's instruction.

    Args:
        w: the weight, with or without experts.
        formed: float32 [..., N, K], (u-z)*s as the contract forms it.
        contract: "cast": formed, in dtype; "exact": formed, in fp32; "post": u-z, then s; "hoisted": offset+u, then
            offset+z and s.
        dtype: the activations'.
    """
    if contract.weight == "cast":
        return Operands(formed.to(dtype))
    if contract.weight == "exact":
        return Operands(formed)
    codes, zeros = w.codes().float(), w.zeros()
    z = torch.full_like(w.scale, 8.0, dtype=torch.float32) if zeros is None else zeros.float()
    if contract.weight == "post":
        return Operands((codes - z.repeat_interleave(w.G, -1)).to(dtype), w.scale)
    return Operands((codes + contract.zero_offset).to(dtype), w.scale, z + contract.zero_offset)


def check_schedule(contract: Contract) -> None:
    """Raise ValueError in one line if the contract's other fields leave more than its schedule can say."""
    for field in SCHEDULES:
        schedule = getattr(contract, field)
        if schedule is None:
            continue
        require(not contract.ftz, f"{field}: got one with ftz, must be None (what may be flushed has two values)")
        if field == "sum_schedule":
            plain = schedule.how.core is None and schedule.how.rounding == "rne" and schedule.order in ORDERS
            alone = plain and schedule == type(schedule)(schedule.instruction, order=schedule.order)
            require(alone, f"{field}: got {schedule}, must be fma or mul_add and an order of slots, no more")
            must = "must be None unless topk_sum is 'fp32'"
            require(contract.topk_sum == "fp32", f"{field}: got {schedule} with topk_sum {contract.topk_sum!r}, {must}")
            continue
        _check_dots(field, schedule, "cast" if field == "gate_schedule" else contract.weight, contract.adder.in_dtype)


def _check_dots(field: str, schedule: Schedule, weight: str, in_dtype: bool) -> None:
    require(not in_dtype, f"{field}: got one with accumulator 'dtype', must be None (sums rounded to D have no model)")
    unit = schedule.how.core is not None
    cannot = f"{field}: got {schedule.instruction} with weight 'exact', must be an fp32 instruction (a matrix unit's"
    require(not (unit and weight == "exact"), f"{cannot} operands are of D)")
    late = schedule.scale_last
    require(
        not late or weight == "post", f"{field}: got {schedule} with weight {weight!r}, must be 'post' to be scaled"
    )
    if weight in ("post", "hoisted"):
        steps = schedule.tile or schedule.chunk or late
        require(bool(steps), f"{field}: got no tile with weight {weight!r}, must have one: its sum is what is scaled")


def scheduled_dot(a: torch.Tensor, operands: Operands | None, contract: Contract, dtype: torch.dtype) -> torch.Tensor:
    """Return float64 [M, N]: the fp32 accumulators that the contract's schedule ends with.

    Args:
        a: [M, K], values of dtype in any wider type.
        operands: from scheduled_operands, or None where nobody made them.
    Raises:
        ValueError: the schedule does not cover K, its tiles do not divide a scale's group, or operands are missing.
    """
    assert contract.schedule is not None
    if operands is None:
        taken = "only int4 dots and post-scaled int8 ones have schedules"
        raise ValueError(f"schedule: got one for weights that are not int4, must be None ({taken})")
    values, scale, zero, bias = operands
    return accumulate(a.to(dtype), values, contract.schedule, scale=scale, zero=zero, bias=bias).double()


def scheduled_sum(terms: torch.Tensor, schedule: Schedule) -> torch.Tensor:
    """Return float64 [T, H]: the fp32 sum over slots of exact products float64 [T, k, H] in the declared order."""
    if terms.shape[1] == 0:
        return terms.sum(1)
    return sum_terms32(terms.transpose(0, 1), schedule.order, schedule.how.fused).double()
