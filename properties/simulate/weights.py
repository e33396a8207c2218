"""Steps of a simulated kernel between packed words and the weights that enter a dot product."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch

from moeracle.ref.contracts.contract import Contract
from moeracle.ref.rounding import round_in_fp64
from moeracle.ref.weights.weight import Int4Weight

from .orders import ORDERS, joined, shuffle


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

    def inputs(self, at: slice | list[int]) -> Loaded:
        """Return some inputs: one part of K."""
        values = None if self.values is None else self.values[:, at]
        groups = self.scale_group[at], self.zero_group[at]
        return Loaded(self.codes[:, at], self.zero, self.scale, *groups, self.steps[:, at], values)


# The steps of loading a weight: whoever replaces one loads it otherwise.
_LOADING = {
    "codes",
    "zeros",
    "scales",
    "scale_group",
    "zero_group",
    "columns",
    "subtract",
    "values",
    "cast",
    "cast_scale",
    "form",
}


class WeightSteps:
    """Reading, dequantizing and multiplying; each method is a step that a fault may replace.

    `which` is w, or w13 and w2 in moe_w4a16. Simulations that are called with the same weights may share what they load
    of them, in `loaded`.
    """

    contract: Contract
    order: str
    loaded: dict[tuple[Any, ...], Any] | None = None

    def codes(self, w: Int4Weight, e: int | None, which: str) -> torch.Tensor:
        """Unpack expert e's codes (the only matrix's if e is None): uint8 [N, K]."""
        return one(w, e).codes()

    def zeros(self, w: Int4Weight, e: int | None, which: str) -> torch.Tensor:
        """Unpack the zero points, or the middle everywhere: fp32 [N, K/G]."""
        matrix = one(w, e)
        if matrix.zero is not None and matrix.zero_layout == "gptq_v1" and self.contract.v1_zeros != "modulo":
            return v1_zeros(matrix.zero, self.contract.v1_zeros, w.bits)
        zero = matrix.zeros()
        return torch.full_like(matrix.scale, w.middle, dtype=torch.float32) if zero is None else zero.float()

    def scales(self, w: Int4Weight, e: int | None, which: str) -> torch.Tensor:
        """Read the scales: fp32 [N, K/G]."""
        return one(w, e).scale.float()

    def scale_group(self, K: int, G: int, which: str) -> torch.Tensor:
        """Say which group each column's scale is taken from: int64 [K]."""
        return torch.arange(K) // G

    def columns(self, w: Int4Weight, e: int | None, which: str) -> torch.Tensor:
        """Read which group each column is of, where the weight says so (act-order): int64 [K]."""
        return one(w, e).columns()

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

    def cast_scale(self, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Round scales to D where the contract does, as fp32."""
        return scale.to(dtype).float() if self.contract.scale_cast else scale

    def load(self, w: Int4Weight, e: int | None, dtype: torch.dtype, which: str) -> Loaded:
        """Read one expert's weight and form what the dot product multiplies with."""
        if self.loaded is None or _LOADING & vars(self).keys():
            return self._load(w, e, dtype, which)
        rules = self.contract
        of_rules = rules.weight, rules.weight_rounding, rules.v1_zeros, rules.scale_cast, rules.one_group
        key = w, e, dtype, which, of_rules
        if key not in self.loaded:
            self.loaded[key] = self._load(w, e, dtype, which)
        return self.loaded[key]

    def _unpacked(self, w: Int4Weight, e: int | None, which: str) -> torch.Tensor:
        if self.loaded is None or "codes" in vars(self):
            return self.codes(w, e, which).float()
        if (w, e) not in self.loaded:
            self.loaded[w, e] = self.codes(w, e, which).float()
        return self.loaded[w, e]

    def _load(self, w: Int4Weight, e: int | None, dtype: torch.dtype, which: str) -> Loaded:
        codes, zero, scale = self._unpacked(w, e, which), self.zeros(w, e, which), self.scales(w, e, which)
        scale = self.cast_scale(scale, dtype)
        K, device, matrix = codes.shape[1], codes.device, one(w, e)
        if matrix.group_of is not None:
            columns = self.columns(w, e, which).to(device)
            return self.form(codes, zero, scale, columns, columns, dtype)
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
        of_column, values = zero.index_select(1, zero_group), None
        steps = self.subtract(codes, of_column)
        if self.contract.after_store(scale.shape[1]):
            values = steps
        elif self.contract.weight in ("cast", "exact") and not self.contract.after_sum(scale.shape[1]):
            values = self.values(steps, of_column, scale.index_select(1, scale_group))
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

    def dot(
        self, a: torch.Tensor, w: Loaded, dtype: torch.dtype, which: str, weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Multiply rows a [M, K] by one expert's weight, along the contract's weight path: fp32 [M, N].

        weight: [M, 1], router weights that multiply each part of K before it is stored, or None.
        """
        a, cut = self.operand(a, which), self.contract.parts
        if cut is None:
            total = self.dot_part(a, w, dtype)
        else:
            sums = [self.dot_part(a[:, at], w.inputs(at), dtype) for at in cut.inputs(a.shape[1])]
            sums = sums if weight is None else [part * weight for part in sums]
            total = self.join([self.store_part(part, dtype) for part in sums], dtype)
        if not self.contract.after_store(w.scale.shape[1]):
            return total
        return rounded(total, dtype, self.contract.rounding("out", dtype)).float() * w.scale.to(dtype).float().T

    def store_part(self, part: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Round the sum of one part of K as the contract's parts are kept: fp32."""
        cut = self.contract.parts
        in_d = cut is not None and cut.kept == "dtype"
        return rounded(part, dtype, self.contract.rounding("out", dtype)).float() if in_d else part

    def join(self, parts: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Add the parts of K in the contract's order, in fp32 or in D; atomics in one that no run repeats: fp32."""
        cut, way = self.contract.parts, self.contract.rounding("out", dtype)
        assert cut is not None
        if not self.contract.deterministic:
            shuffle(parts)
        in_d = cut.add == "dtype"
        add = lambda x, y: rounded(x + y, dtype, way).float() if in_d else x + y
        terms = torch.stack(parts)
        terms = rounded(terms, dtype, way).float() if in_d else terms
        return joined(list(terms), cut.join, add)

    def dot_part(self, a: torch.Tensor, w: Loaded, dtype: torch.dtype) -> torch.Tensor:
        """Multiply rows by a weight, or by one part of its K: fp32 [M, N]."""
        if w.values is not None:
            return self.accumulate(a, w.values, dtype)
        if self.contract.after_sum(w.scale.shape[1]):
            return self.accumulate(a, w.steps, dtype) * w.scale.T
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
        hoisted = zero + float(self.contract.code_offset(dtype))
        raw = self.accumulate(a, steps + hoisted[:, None], dtype)
        of_a = self.accumulate(a, a.new_ones(1, a.shape[1]), dtype)
        return (raw - of_a * hoisted) * scale


def v1_zeros(words: torch.Tensor, reading: str, bits: int) -> torch.Tensor:
    """Add 1 to each stored zero point, without a mask ("plain"), or to whole bytes or words, which carry: fp32."""
    whole, ones = words.long() & 0xFFFFFFFF, 0x11111111 if bits == 4 else 0x01010101  # [K/G, N/8]
    if reading == "word_carry":
        whole = whole + ones & 0xFFFFFFFF
    elif reading == "byte_carry":
        sums = (((whole >> 8 * b & 0xFF) + (ones & 0xFF) & 0xFF) << 8 * b for b in range(4))
        whole = sum(sums, torch.zeros_like(whole))
    codes = torch.stack([whole >> bits * r & (1 << bits) - 1 for r in range(32 // bits)], -1).flatten(-2)
    return (codes + (reading == "plain")).float().mT.contiguous()


def rounded(value: torch.Tensor, dtype: torch.dtype, mode: str) -> torch.Tensor:
    """Round fp32 to D, "rne" or "rtz"."""
    return round_in_fp64(value.double(), dtype, "rtz").to(dtype) if mode == "rtz" else value.to(dtype)


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
