"""Steps of a simulated kernel between packed words and the weights that enter a dot product."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch

from moeracle.ref.contracts.contract import Contract
from moeracle.ref.rounding import round_in_fp64
from moeracle.ref.weights.weight import Int4Weight

from .orders import ORDERS


class Loaded(NamedTuple):
    """One expert's weight as a kernel holds it: codes, steps and values [N, K], zero and scale [N, K/G], all fp32.

    steps is u - z; scale_group and zero_group [K] say which group each column takes its scale and zero point from;
    values is None where the contract scales after the dot product.
    """

    codes: torch.Tensor
    zero: torch.Tensor
    scale: torch.Tensor
    scale_group: torch.Tensor
    zero_group: torch.Tensor
    steps: torch.Tensor
    values: torch.Tensor | None


class WeightSteps:
    """Reading, dequantizing and multiplying; each method is a step that a fault may replace.

    `which` is w, or w13 and w2 in moe_w4a16.
    """

    contract: Contract
    order: str

    def codes(self, w: Int4Weight, e: int | None, which: str) -> torch.Tensor:
        """Unpack expert e's codes (the only matrix's if e is None): uint8 [N, K]."""
        return one(w, e).codes()

    def zeros(self, w: Int4Weight, e: int | None, which: str) -> torch.Tensor:
        """Unpack the zero points, or 8 everywhere: fp32 [N, K/G]."""
        matrix = one(w, e)
        zero = matrix.zeros()
        return torch.full_like(matrix.scale, 8.0, dtype=torch.float32) if zero is None else zero.float()

    def scales(self, w: Int4Weight, e: int | None, which: str) -> torch.Tensor:
        """Read the scales: fp32 [N, K/G]."""
        return one(w, e).scale.float()

    def scale_group(self, K: int, G: int, which: str) -> torch.Tensor:
        """Say which group each column's scale is taken from: int64 [K]."""
        return torch.arange(K) // G

    def zero_group(self, K: int, G: int, which: str) -> torch.Tensor:
        """Say which group each column's zero point is taken from: int64 [K]."""
        return torch.arange(K) // G

    def subtract(self, codes: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """Form u - z, both fp32 [N, K]."""
        return codes - zero

    def values(self, steps: torch.Tensor, zero: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Form (u - z) * s in fp32, exactly; all three [N, K]."""
        return steps * scale

    def cast(self, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Round weights to D, as fp32."""
        if self.contract.weight_rounding == "rtz":
            return round_in_fp64(values.double(), dtype, "rtz").float()
        return values.to(dtype).float()

    def load(self, w: Int4Weight, e: int | None, dtype: torch.dtype, which: str) -> Loaded:
        """Read one expert's weight and form what the dot product multiplies with."""
        codes, zero, scale = self.codes(w, e, which).float(), self.zeros(w, e, which), self.scales(w, e, which)
        K, device = codes.shape[1], codes.device
        of_scale = self.scale_group(K, w.G, which).to(device)
        return self.form(codes, zero, scale, of_scale, self.zero_group(K, w.G, which).to(device), dtype)

    def form(
        self,
        codes: torch.Tensor,
        zero: torch.Tensor,
        scale: torch.Tensor,
        scale_group: torch.Tensor,
        zero_group: torch.Tensor,
        dtype: torch.dtype,
    ) -> Loaded:
        """Form the steps, and the values where the contract scales before the dot product."""
        of_column, values = zero[:, zero_group], None
        steps = self.subtract(codes, of_column)
        if self.contract.weight in ("cast", "exact"):
            values = self.values(steps, of_column, scale[:, scale_group])
            values = self.cast(values, dtype) if self.contract.weight == "cast" else values
        return Loaded(codes, zero, scale, scale_group, zero_group, steps, values)

    def operand(self, a: torch.Tensor, which: str) -> torch.Tensor:
        """Read the activations that enter the dot product: fp32 [M, K]."""
        return a.float()

    def accumulate(self, a: torch.Tensor, w: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Add up the products of a [M, K] and w [N, K], in this simulation's order: fp32 [M, N]."""
        if a.shape[0] == 0:
            return a.new_zeros(0, w.shape[0])
        return ORDERS[self.order](a, w, dtype)

    def dot(self, a: torch.Tensor, w: Loaded, dtype: torch.dtype, which: str) -> torch.Tensor:
        """Multiply rows a [M, K] by one expert's weight, along the contract's weight path: fp32 [M, N]."""
        a = self.operand(a, which)
        if w.values is not None:
            return self.accumulate(a, w.values, dtype)
        total = a.new_zeros(a.shape[0], w.codes.shape[0])
        for run in runs(w.scale_group, w.zero_group):
            scale, zero = w.scale[:, w.scale_group[run.start]], w.zero[:, w.zero_group[run.start]]
            total += self.scaled_partial(a[:, run], w.steps[:, run], zero, scale, dtype)
        return total

    def scaled_partial(
        self, a: torch.Tensor, steps: torch.Tensor, zero: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """Sum one group and scale the sum: s * sum a(u-z), or s * (sum a(offset+u) - (offset+z) * sum a)."""
        if self.contract.weight == "post":
            return self.accumulate(a, steps, dtype) * scale
        hoisted = zero + float(self.contract.zero_offset)
        raw = self.accumulate(a, steps + hoisted[:, None], dtype)
        of_a = self.accumulate(a, a.new_ones(1, a.shape[1]), dtype)
        return (raw - of_a * hoisted) * scale


def one(w: Int4Weight, e: int | None) -> Int4Weight:
    """Return expert e's matrix, or the only one."""
    return w if e is None else w.expert(e)


def runs(*groups: torch.Tensor) -> list[slice]:
    """Cut 0..K-1 where any of the maps [K] changes its group."""
    changes = torch.zeros_like(groups[0][1:], dtype=torch.bool)
    for group in groups:
        changes |= group[1:] != group[:-1]
    edges = [0, *(changes.nonzero().flatten() + 1).tolist(), len(groups[0])]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]
