"""Int8 weights as dot products see them."""

from __future__ import annotations

import torch

from moeracle.ref.bounds.dot import DotWeights, cast_weights
from moeracle.ref.bounds.scheduled import Operands
from moeracle.ref.contracts.contract import Contract


def int8_dot_weights(
    codes: torch.Tensor,
    scale: torch.Tensor,
    rules: Contract,
    dtype: torch.dtype,
    bias: torch.Tensor | None = None,
) -> DotWeights:
    """Return q*s as dot products see it; its 32 bits need fp64.

    Args:
        codes: int8 [V, K].
        scale: fp32 [V] or [V, K/G].
        bias: [V], which goes with the operands where the schedule adds it in the scale's operation; or None.
    """
    V, K = codes.shape
    values = (codes.double().reshape(V, -1, K // scale[0].numel()) * scale.double().reshape(V, -1, 1)).reshape(V, K)
    if rules.weight == "cast":
        values = cast_weights(values.float(), rules, dtype).double()
    size = values.abs()
    operands = None
    if rules.schedule is not None and rules.weight == "post":  # codes of 8 bits are exact in bf16 and fp16
        operands = Operands(codes.to(dtype), scale.reshape(V, -1), bias=bias if rules.schedule.bias_fused else None)
    near = size.float()  # sizes must not be below the values, nor have more bits where the values fit fp32
    above = torch.nextafter(near, torch.full_like(near, torch.inf))
    return DotWeights(values, torch.where(near.double() < size, above, near), operands)
