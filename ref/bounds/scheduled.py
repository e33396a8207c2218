"""Dot products under a declared schedule: one legal value, where an interval stands otherwise."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..bitmodels.accumulate import accumulate
from ..bitmodels.fp32_trees import sum_terms32
from ..bitmodels.schedule import Schedule
from ..contracts.contract import Contract
from ..errors import require
from ..weights.stored import unpack_v1_zeros
from ..weights.weight import Int4Weight


class Operands(NamedTuple):
    """What an instruction multiplies with, and what enters after the dot; one weight's, or with a leading E.

    values: [..., N, K], weights or codes, exact in its dtype.  scale, zero: [..., N, K/G] or None, as accumulate takes.
    bias: [N], where the schedule adds it in the scale's operation.
    """

    values: torch.Tensor
    scale: torch.Tensor | None = None
    zero: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    def experts(self, chosen: list[int]) -> Operands:
        """Return the operands of some experts, one after another."""
        return Operands(*(None if part is None else part[chosen] for part in self))  # type: ignore[arg-type]

    def expert(self, e: int) -> Operands:
        """Return expert e's operands, as views."""
        return Operands(*(None if part is None else part[e] for part in self))  # type: ignore[arg-type]

    def inputs(self, at: slice | list[int], K: int) -> Operands:
        """Return those of some inputs: one part of K.

        Raises:
            ValueError: the part cuts a scale's group.
        """
        values = self.values[..., at]
        if self.scale is None:
            return Operands(values, None, None, self.bias)
        G = K // self.scale.shape[-1]
        columns = range(K)[at] if isinstance(at, slice) else at
        groups = sorted({column // G for column in columns})
        whole = len(groups) == 1 or len(columns) == sum(min(G, K - group * G) for group in groups)
        span = f"{columns[0]} to {columns[-1] + 1}"
        require(whole, f"parts: got one from {span}, must not cut a scale's group of {G}")
        return Operands(
            values, self.scale[..., groups], None if self.zero is None else self.zero[..., groups], self.bias
        )


def zeros_read(w: Int4Weight, contract: Contract) -> torch.Tensor | None:
    """Return a weight's zero points as the contract's kernel reads them, [..., N, K/G], or None for the middle."""
    if w.zero is None or w.zero_layout != "gptq_v1" or contract.v1_zeros == "modulo":
        return w.zeros()
    return unpack_v1_zeros(w.zero, contract.v1_zeros, w.N, w.bits).mT.contiguous()


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
    must = "must be None for columns in no regular groups (act-order, a short last group)"
    require(w.regular, f"schedule: got {contract.schedule} with weight {contract.weight!r}, {must}")
    codes, zeros = w.codes().float(), zeros_read(w, contract)
    z = torch.full_like(w.scale, w.middle, dtype=torch.float32) if zeros is None else zeros.float()
    if contract.weight == "post":
        return Operands((codes - w.spread(z)).to(dtype), w.scale)
    offset = contract.code_offset(dtype)
    held = offset == 0 or w.bits == 4 or dtype != torch.bfloat16
    require(held, f"zero_offset: got {contract.zero_offset} for 8-bit codes, must be 0: bf16 has no {offset}+u")
    return Operands((codes + offset).to(dtype), w.scale, z + offset)


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
