"""How far any legal accumulation may end from the exact dot product: the derived bound, and where it is zero.

All bounds are derived, none is picked; docs/numerics.md has the arguments and what was measured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import torch

from ..contracts.contract import Contract
from ..rounding import FORMATS, round_to
from ..weights.dense import DenseWeight
from ..weights.weight import Int4Weight
from .band import TINY, Band, bias_band, join_band, lowest_bit, store, weigh_band
from .scheduled import Operands, scheduled_dot, scheduled_operands, zeros_read

__all__ = ["DotWeights", "dot_band", "dot_weights", "needs_codes"]

SMALL = 1 << 15  # weights up to which speed does not matter
Counts: TypeAlias = Sequence[int] | None


class DotWeights(NamedTuple):
    """What a dot product multiplies with, and how large its terms may be on the way.

    Args:
        values: fp64 [N, K].
        sizes: fp32 [N, K], which bound the error: |values|, or for a hoisted zero point
            s * ((offset+u) + (offset+z)), the two sums' magnitudes; fp64 where those overflow.
        operands: what a declared schedule multiplies with, or None.
        after: fp64 [N], the scale in D that multiplies what was stored in D, or None.
        roundings: of each product, besides those that the contract names.
        bias: fp64 [N], what is added to every sum, or None.
        summed: whether the one scale of a row enters after the sum although the contract forms other weights before.
    """

    values: torch.Tensor
    sizes: torch.Tensor
    operands: Operands | None = None
    after: torch.Tensor | None = None
    roundings: int = 0
    bias: torch.Tensor | None = None
    summed: bool = False

    def experts(self, chosen: list[int]) -> DotWeights:
        """Return the weights of some experts, one after another."""
        operands = None if self.operands is None else self.operands.experts(chosen)
        after, bias = (None if part is None else part[chosen] for part in (self.after, self.bias))
        return self._replace(
            values=self.values[chosen], sizes=self.sizes[chosen], operands=operands, after=after, bias=bias
        )

    def inputs(self, at: slice | list[int]) -> DotWeights:
        """Return the weights of some inputs: one part of K."""
        K, operands = self.values.shape[-1], self.operands
        part = None if operands is None else operands.inputs(at, K)
        return DotWeights(self.values[..., at], self.sizes[..., at], part, None, self.roundings)


def needs_codes(contract: Contract, dtype: torch.dtype, formed: torch.dtype) -> bool:
    """Say whether a contract's dot products cannot be told from weights that were dequantized into a dtype.

    Args:
        contract: how it forms weights.
        dtype: D, the activation dtype.
        formed: the dequantized weight's.
    Returns:
        True for scales that enter after the dot, and for fp32 weights of which only the values rounded to D are known.
    """
    late = contract.weight in ("post", "hoisted") or contract.one_group != "as_weight"
    return late or (contract.weight == "exact" and formed == dtype)


def dot_weights(
    w: Int4Weight | DenseWeight, contract: Contract, dtype: torch.dtype, into: DotWeights | None = None
) -> DotWeights:
    """Return the weights as the contract forms them: (u-z)*s as it is, or rounded to dtype for "cast".

    Args:
        w: with or without experts.
        into: buffers of the right shape to fill instead of fresh ones: big ones are slow to allocate, expert by expert.
        contract: how it forms weights.
        dtype: D, the activation dtype: torch.bfloat16 or torch.float16.
    Returns:
        DotWeights of [N, K], or [E, N, K].
    Raises:
        ValueError: a dequantized weight under a contract that needs its codes.
    """
    if isinstance(w, DenseWeight):
        if needs_codes(contract, dtype, w.values.dtype):
            raise ValueError(
                f"w: got a dequantized weight of {w.values.dtype}, contract {contract.name!r} needs its codes"
            )
        return _formed(formed_weights(w, contract, dtype), contract, dtype)
    formed = _of_codes(w, contract, dtype, into)
    return formed if w.bias is None else formed._replace(bias=w.bias.double())


def _of_codes(w: Int4Weight, contract: Contract, dtype: torch.dtype, into: DotWeights | None) -> DotWeights:
    """Return the weights as the contract forms them out of codes, without their bias; arguments as dot_weights'."""
    if contract.scale_cast and w.scale.dtype != dtype:
        w = replace(w, scale=w.scale.to(dtype))
    if contract.after_sum(w.scale.shape[-1]):
        return _of_codes(w, contract.scaled_after_sum, dtype, into)._replace(summed=True)
    if contract.after_store(w.scale.shape[-1]):
        return _unscaled(w, contract, dtype)
    exact = _dequantized(w, contract)
    if into is not None and contract.weight == "cast" and contract.weight_rounding != "rtz" and not contract.schedule:
        operand = exact.to(dtype)  # straight into the buffers
        return DotWeights(into.values.copy_(operand), into.sizes.copy_(operand).abs_())
    values = cast_weights(exact, contract, dtype)
    operands = scheduled_operands(w, values, contract, dtype) if contract.schedule else None
    if contract.weight == "hoisted":
        zeros = zeros_read(w, contract)
        z = float(w.middle) if zeros is None else w.spread(zeros.float())
        s = w.spread(w.scale.float().abs())
        whole = w.codes().float() + z + 2 * contract.code_offset(dtype)
        sizes = whole * s
        if not bool(sizes.isfinite().all()):  # fp32 is too narrow for what no kernel ever forms
            sizes = whole.double() * s
    else:
        sizes = values.abs() if into is None else torch.abs(values, out=into.sizes)
    # fp32 holds a product of a bf16 activation, a scale and a code where all their bits together are 24 or fewer.
    fits = FORMATS[dtype][0] + 1 + FORMATS[w.scale.dtype][0] + 1 + w.bits <= 24
    wide = contract.weight == "exact" and dtype == torch.bfloat16 and not fits
    values64 = values.double() if into is None else into.values.copy_(values)
    return DotWeights(values64, sizes, operands, None, int(wide))


def formed_weights(
    w: Int4Weight | DenseWeight, contract: Contract, dtype: torch.dtype, into: torch.Tensor | None = None
) -> torch.Tensor:
    """Return (u-z)*s in fp32, rounded to dtype for "cast", as dot_weights' values are where no scale enters later.

    Args:
        w, contract, dtype: as dot_weights takes them.
        into: a buffer of the right shape to fill, or None.
    """
    if not isinstance(w, DenseWeight) and contract.scale_cast and w.scale.dtype != dtype:
        w = replace(w, scale=w.scale.to(dtype))
    exact = w.dequantize() if isinstance(w, DenseWeight) else _dequantized(w, contract)
    if into is None:
        return cast_weights(exact, contract, dtype)
    nearest = contract.weight == "cast" and contract.weight_rounding != "rtz"
    return into.copy_(exact.to(dtype) if nearest else cast_weights(exact, contract, dtype))


def _dequantized(w: Int4Weight, contract: Contract) -> torch.Tensor:
    """Return the weights in fp32 with zero points as the contract's kernel reads them."""
    if contract.v1_zeros == "modulo" or w.zero_layout != "gptq_v1" or w.zero is None:
        return w.dequantize()
    zeros = zeros_read(w, contract)
    assert zeros is not None
    return (w.codes().float() - w.spread(zeros.float())) * w.spread(w.scale.float())


def _unscaled(w: Int4Weight, contract: Contract, dtype: torch.dtype) -> DotWeights:
    """Return u-z as the weights, and the scale that multiplies their stored sums in D."""
    zeros = zeros_read(w, contract)
    steps = w.codes().double() - (float(w.middle) if zeros is None else zeros.double())
    operands = Operands(steps.to(dtype)) if contract.schedule else None
    return DotWeights(steps, steps.abs().float(), operands, w.scale.to(dtype).double().squeeze(-1))


def _formed(values: torch.Tensor, contract: Contract, dtype: torch.dtype) -> DotWeights:
    """Return DotWeights of values fp32 that are formed already."""
    operand = values.to(dtype) if contract.weight == "cast" else values
    return DotWeights(values.double(), values.abs(), Operands(operand) if contract.schedule else None)


def cast_weights(w: torch.Tensor, contract: Contract, dtype: torch.dtype) -> torch.Tensor:
    """Round exact fp32 weights as the contract's weight path does; (u-z)*s fits fp32, so `.to` is one rounding."""
    if contract.weight != "cast":
        return w
    if contract.weight_rounding == "rtz":
        return round_to(w.double(), dtype, "rtz").float()
    return w.to(dtype).float()


def extra_multiplies(contract: Contract, dtype: torch.dtype) -> int:
    """Return m: rounded multiplications per product. An fp16 a*s*int4 needs 25 bits, so it is one more."""
    inexact_product = contract.weight == "exact" and dtype == torch.float16
    return contract.extra_multiplies + int(inexact_product) + int(contract.adder.in_dtype)


def times(a: torch.Tensor, w: torch.Tensor, counts: Counts = None) -> torch.Tensor:
    """Return a w^T [M, N]: of one matrix w [N, K], or of w [n, N, K], whose i-th one is for the next counts[i] rows."""
    if counts is None:
        return a @ w.mT
    out = torch.empty(a.shape[0], w.shape[1], dtype=a.dtype, device=a.device)
    start = 0
    for i, count in enumerate(counts):
        if count:
            torch.mm(a[start : start + count], w[i].T, out=out[start : start + count])
        start += count
    return out


def of_rows(per_weight: torch.Tensor, counts: Counts) -> torch.Tensor:
    """Return [M, N]: for each row what [n, N] says of its matrix; [1, N] where there is one."""
    if counts is None:
        return per_weight[None]
    return per_weight.repeat_interleave(torch.tensor(counts, device=per_weight.device), 0)


@contextmanager
def fast_fp32(values: torch.Tensor) -> Iterator[None]:
    """Let a GPU multiply fp32 matrices through its tensor cores, whose operands keep 11 bits: TF32."""
    if values.device.type == "cpu":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def magnitudes(a: torch.Tensor, sizes: torch.Tensor, counts: Counts = None, *, narrow: bool = False) -> torch.Tensor:
    """Return an upper bound of T = |a| sizes^T, at most a factor 1 + K*2^-22 above it.

    Args:
        a: float64 [M, K], values of 24 bits or fewer.  sizes: float32 [N, K], >= 0, or [n, N, K] beside counts.
        counts: as `times` takes them.
        narrow: both have at most 11 bits, so that every product of TF32 is exact, too.
    """
    K = a.shape[1]
    if sizes.numel() > SMALL and sizes.dtype == torch.float32:
        # Twice as fast in fp32, and its error is known: of each addition at most 2^-23 of the sum, however it is cut.
        with fast_fp32(sizes) if narrow else nullcontext():
            t = times(a.abs().float(), sizes, counts)
        low, high = (float(end) for end in torch.aminmax(t)) if t.numel() else (1.0, 1.0)
        if low > 2.0**-60 and high < math.inf:  # nothing underflowed that could matter, nothing overflowed
            return t.double().mul_(1 + (K + 2) * 2.0**-23)
        if high < math.inf and bool(((t > 2.0**-60) | (t == 0)).all()):  # zeros: products that may have been flushed
            return t.double().mul_(1 + (K + 2) * 2.0**-23).add_(K * 2.0**-126)
    return times(a.abs(), sizes.double(), counts)


def dot_radius(
    y: torch.Tensor, t: torch.Tensor, K: int, contract: Contract, dtype: torch.dtype, roundings: int = 0
) -> torch.Tensor:
    """Return E: how far any legal accumulation of K products may end from y, before the store.

    With M = (T+|y|)/2, the largest partial sum of any order, and g = (1+u)^(n+m) - 1:
    E = min(any order, declared depth, declared tensor core) + multiplications + fp64 and underflow slack.

    Args:
        y: float64 [M, N], the products' sum.  t: float64 [M, N], their magnitudes' sum (of both parts when hoisted).
        K: products a sum.  contract, dtype: what is allowed.  roundings: of a product that the contract does not name.
    Returns:
        float64 [M, N], >= 0.
    Source: docs/numerics.md.
    """
    adder = contract.adder
    u, m = adder.unit_in(dtype), extra_multiplies(contract, dtype) + roundings
    if adder.chain:
        return _chain_radius(t, K, m, contract, dtype)
    n = 2 * K if contract.weight == "hoisted" else K
    g = _growth(n + m, u)
    of_mid, of_t = (n - 1) * u, (n - 1) * u * g  # E_any = of_mid * M + of_t * T
    if adder.core is not None:
        of_mid, of_t = min((of_mid, of_t), (-(-n // adder.block) * adder.block_error_in(dtype) * (1 + g), 0.0))
    slack = m * u * (1 + g) + K * 2.0**-53
    lost = (K + 1) * TINY
    if contract.ftz:
        lost += 2 * n * 2.0**-126  # each product and each partial sum may be flushed
    if adder.in_dtype:
        lost += 2 * n * half_subnormal(dtype)
    of_t += of_mid / 2
    if contract.depth is None:
        return y.abs().mul_(of_mid / 2).add_(t, alpha=of_t + slack).add_(lost)
    any_order = y.abs().mul_(of_mid / 2).add_(t, alpha=of_t)
    return torch.minimum(any_order, t * _growth(contract.depth, u)).add_(t, alpha=slack).add_(lost)


def half_subnormal(dtype: torch.dtype) -> float:
    """Return half of the smallest subnormal of D: what one rounding loses below the normal range."""
    info = torch.finfo(dtype)
    return info.smallest_normal * info.eps / 2


def _growth(additions: int, u: float) -> float:
    """Return (1+u)^n - 1, or the largest that fits: a chain so long loses everything, which no bound need outgrow."""
    return math.expm1(min(additions * math.log1p(u), 700.0))


def _chain_radius(t: torch.Tensor, K: int, m: int, contract: Contract, dtype: torch.dtype) -> torch.Tensor:
    """Return E where `chain` products at a time are added in D and those sums in fp32, in any order.

    A product passes at most `chain` roundings to D, then the additions of fp32 and its multiplications.
    """
    adder = contract.adder
    in_d = math.expm1(adder.chain * math.log1p(adder.unit_in(dtype)))
    in_fp32 = math.expm1((-(-K // adder.chain) + m) * math.log1p(2.0**-24))
    # Codes are whole numbers: what is added of them loses nothing below the normal range.
    lost = (K + 1) * TINY + (K * half_subnormal(dtype) if contract.weight == "cast" else 0.0)
    if contract.ftz:
        lost += 2 * K * 2.0**-126
    return t.mul(in_d + in_fp32 * (1 + in_d) + K * 2.0**-53).add_(lost)


def exact_sums(
    a: torch.Tensor, w: DotWeights, t: torch.Tensor, contract: Contract, dtype: torch.dtype, counts: Counts = None
) -> torch.Tensor:
    """Say where every partial sum of every order is representable, so that only one result is legal.

    That is so where T <= 2^bits * unit, unit being the product of the rows' lowest set bits.

    Args:
        a: float64 [M, K].  w: [N, K], or [n, N, K] beside counts.  t: float64 [M, N].
    """
    of_w = torch.minimum(lowest_bit(w.values).amin(-1), lowest_bit(w.sizes.double()).amin(-1))
    grain = lowest_bit(a).amin(1)[:, None] * of_rows(of_w, counts)
    fits = t <= grain * 2.0 ** contract.adder.bits_in(dtype)
    return fits & _one_sign(a, w.values, contract, counts) if contract.adder.one_sign else fits


def _one_sign(a: torch.Tensor, w: torch.Tensor, contract: Contract, counts: Counts) -> torch.Tensor:
    """Say where all products have one sign. RDNA3's dot2 and WMMA were seen inexact on small integers of mixed sign.

    Source: github.com/ROCm/rocm-systems/issues/12056.
    """
    if contract.weight == "hoisted":  # both sums' factors are positive
        return ((a >= 0).all(1) | (a <= 0).all(1))[:, None]
    return times(a, w, counts).abs() == times(a.abs(), w.abs(), counts)


def as_summed(w: DotWeights, contract: Contract) -> tuple[DotWeights, Contract]:
    """Return both as they add up: under one_group=after_sum a row's one scale enters after its sum of codes."""
    return (w._replace(summed=False), contract.scaled_after_sum) if w.summed else (w, contract)


def dot_band(
    a: Band,
    w: DotWeights,
    contract: Contract,
    dtype: torch.dtype,
    *,
    exact: bool = False,
    weight: torch.Tensor | None = None,
    counts: Counts = None,
) -> Band:
    """Return the Band of a W^T accumulated in fp32 under the contract.

    Args:
        a: [M, K] operands; a Band with a width when the stage before was not stored.
        w: [N, K], from dot_weights; or [n, N, K] beside counts.
        exact: the data promise exact sums; each element is still checked.
        contract: accumulator, depth, ftz, schedule, parts, one_group and bias are read.
        dtype: D, the activation dtype: torch.bfloat16 or torch.float16.
        weight: float64 [M, 1], router weights that multiply before a store: of each part where the contract weighs
            parts; None: they do not enter here.
        counts: of n matrices, the i-th one is for the next counts[i] rows of a; None: w is one matrix.
    Returns:
        Band [M, N]; lo is hi where a schedule is declared and a is known.
    """
    w, contract = as_summed(w, contract)
    if w.bias is not None:  # before the router weight, which multiplies it too
        of_parts, bias = weight if contract.weighs_parts else None, of_rows(w.bias, counts)
        sums = dot_band(a, w._replace(bias=None), contract, dtype, exact=exact, weight=of_parts, counts=counts)
        bias = bias if of_parts is None else (bias * of_parts).float()
        biased = bias_band(sums, bias, contract, dtype, late=w.after is not None)
        return biased if weight is None or contract.weighs_parts else weigh_band(biased, weight)
    if w.after is not None:
        of_codes = replace(contract, weight="cast", one_group="as_weight")
        of_parts = weight if contract.weighs_parts else None
        sums = dot_band(a, w._replace(after=None), of_codes, dtype, exact=exact, weight=of_parts, counts=counts)
        scaled = weigh_band(store(sums, contract, dtype), of_rows(w.after, counts))
        return scaled if weight is None or contract.weighs_parts else weigh_band(scaled, weight)
    if contract.parts is not None:
        return _joined_parts(a, w, contract, dtype, exact, weight, counts)
    whole = _dot_band(a, w, contract, dtype, exact, counts)
    return whole if weight is None else weigh_band(whole, weight)


def _joined_parts(
    a: Band,
    w: DotWeights,
    contract: Contract,
    dtype: torch.dtype,
    exact: bool,
    weight: torch.Tensor | None,
    counts: Counts,
) -> Band:
    """Return the Band of K cut into parts: each part's sum, stored if it is, then all of them joined."""
    cut = contract.parts
    assert cut is not None
    of_part, in_d = replace(contract, parts=None, deterministic=True), cut.kept == "dtype"
    if cut.longer:
        return _cut_anyhow(a, w, contract, dtype, exact, weight, counts)
    bands = []
    for at in cut.inputs(w.values.shape[-1]):
        lo = a.lo[:, at]
        piece = Band(lo, lo if a.hi is a.lo else a.hi[:, at])
        band = _dot_band(piece, w.inputs(at), of_part, dtype, exact, counts)
        band = weigh_band(band, weight) if contract.weighs_parts and weight is not None else band
        bands.append(store(band, contract, dtype) if in_d else band)
    if not bands:
        return _dot_band(a, w, of_part, dtype, exact, counts)
    total = join_band(bands, cut.join, dtype if cut.add == "dtype" else None, contract.rounding("out", dtype))
    return total if weight is None or contract.weighs_parts else weigh_band(total, weight)


def _cut_anyhow(
    a: Band,
    w: DotWeights,
    contract: Contract,
    dtype: torch.dtype,
    exact: bool,
    weight: torch.Tensor | None,
    counts: Counts,
) -> Band:
    """Return the Band of K cut into at most n parts, wherever their ends lie.

    The parts' sums lose together what any order of all products may lose, R; their magnitudes add up to T + R at most,
    and any of them to M + R, M being the largest partial sum of the products. Rounding each of them to D loses
    u (T + R); each of the n - 1 additions u times a partial sum, what was lost before included.
    """
    cut = contract.parts
    assert cut is not None
    K, of_part = w.values.shape[-1], replace(contract, parts=None, deterministic=True)
    n = max(-(-K // cut.length), 1)
    inner = contract.weighs_parts and weight is not None
    # Every part ends with a step of its own, which may hold fewer products than the accumulator adds at once.
    whole = _dot_band(a, w, of_part, dtype, exact, counts, steps=n)
    size = magnitudes(torch.maximum(a.lo.abs(), a.hi.abs()), w.sizes, counts)
    sure = exact_sums(a.lo, w, size, replace(of_part, accumulator="dtype"), dtype, counts) & (whole.lo == whole.hi)
    if weight is not None and inner:
        factor = weight.abs()
        scaled = Band(
            torch.minimum(whole.lo * weight, whole.hi * weight), torch.maximum(whole.lo * weight, whole.hi * weight)
        )
        lost = (size * factor + scaled.radius) * 2.0**-24 + n * TINY
        whole, size = Band(scaled.lo - lost, scaled.hi + lost), size * factor
    if n == 1:
        total = store(whole, contract, dtype) if cut.kept == "dtype" else whole
    else:
        total = _joined_anyhow(whole, size, n, contract, dtype, sure & ~torch.tensor(inner))
    return total if weight is None or inner else weigh_band(total, weight)


def _joined_anyhow(
    whole: Band, size: torch.Tensor, n: int, contract: Contract, dtype: torch.dtype, sure: torch.Tensor
) -> Band:
    """Return the Band of n parts' sums, stored and added, from that of their sum and the sum of their magnitudes."""
    cut = contract.parts
    assert cut is not None
    nearest = contract.rounding("out", dtype) == "rne"
    u = 2.0 ** -(FORMATS[dtype][0] + (1 if nearest else 0))
    size = size + whole.radius
    largest = (size + torch.maximum(whole.lo.abs(), whole.hi.abs())) / 2 + whole.radius
    kept = u * size if cut.kept == "dtype" else torch.zeros_like(size)
    step = u if cut.add == "dtype" else 2.0**-24
    lost = kept + (n - 1) * step * (largest + kept + _growth(n - 1, step) * (size + kept))
    lost = torch.where(sure, 0.0, lost * (1 + 2.0**-40) + n * (half_subnormal(dtype) + TINY))
    lo, hi = whole.lo - lost, whole.hi + lost
    beyond = largest + lost > torch.finfo(dtype).max  # a part may have overflowed where the total does not
    return Band(torch.where(beyond, -torch.inf, lo), torch.where(beyond, torch.inf, hi))


def _dot_band(
    a: Band, w: DotWeights, contract: Contract, dtype: torch.dtype, exact: bool, counts: Counts, steps: int = 1
) -> Band:
    """Return the Band of one dot product; arguments as dot_band's, and in how many runs the products are added."""
    K = w.values.shape[-1]
    known = a.hi is a.lo
    if contract.schedule is not None and known:
        value = scheduled_rows(a.lo, w, contract, dtype, counts)
        return Band(value, value)
    mid = a.lo if known else a.mid
    y = times(mid, w.values, counts)
    narrow = contract.weight == "cast"
    if known:
        t = magnitudes(mid, w.sizes, counts, narrow=narrow)
    else:
        t = times(mid.abs() + a.radius, w.sizes.double(), counts)
    radius = dot_radius(y, t, K + (steps - 1) * (contract.adder.block - 1), contract, dtype, w.roundings)
    if contract.ftz:
        radius += _flushed(mid, w.values, counts)
    if exact:
        sure = exact_sums(mid, w, t, contract, dtype, counts)
        if not known:  # what holds for the middle of a Band says nothing about the rest of it
            sure &= (a.radius == 0).all(1, keepdim=True)
        radius = torch.where(sure, 0.0, radius)
    if not known:
        radius = radius + times(a.radius, w.values.abs(), counts) * (1 + K * 2.0**-52)
    return Band(y - radius, y + radius)


def scheduled_rows(
    a: torch.Tensor, w: DotWeights, contract: Contract, dtype: torch.dtype, counts: Counts
) -> torch.Tensor:
    """Return the one legal value of each sum: of matrices with about as many rows together, where a model can."""
    if counts is None or w.operands is None:
        return scheduled_dot(a, w.operands, contract, dtype)
    assert contract.schedule is not None
    together = contract.schedule.how.core is not None and not contract.schedule.held
    starts = [0, *itertools.accumulate(counts)]
    out = a.new_empty(len(a), w.values.shape[-2])
    for most, few in _alike(counts) if together else ((count, [i]) for i, count in enumerate(counts)):
        # Each matrix's rows and zeros below them.
        rows = torch.zeros(len(few), most, a.shape[1], dtype=a.dtype, device=a.device)
        for place, i in enumerate(few):
            rows[place, : counts[i]] = a[starts[i] : starts[i + 1]]
        operands = w.operands.experts(few) if together else w.operands.expert(few[0])
        sums = scheduled_dot(rows if together else rows[0], operands, contract, dtype)
        sums = sums if together else sums[None]
        for place, i in enumerate(few):
            out[starts[i] : starts[i + 1]] = sums[place, : counts[i]]
    return out


def _alike(counts: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """Yield which counts are at most a quarter apart, with their largest."""
    found: list[int] = []
    for i in sorted((i for i, count in enumerate(counts) if count), key=counts.__getitem__):
        if found and counts[i] > counts[found[0]] * 5 // 4:
            yield counts[found[-1]], found
            found = []
        found.append(i)
    if found:
        yield counts[found[-1]], found


def _flushed(a: torch.Tensor, w: torch.Tensor, counts: Counts) -> torch.Tensor | float:
    """Return what the products lose when subnormal operands are taken as zero."""
    a_sub = torch.where(a.abs() < 2.0**-126, a, 0).abs()
    w_sub = torch.where(w.abs() < 2.0**-126, w, 0).abs()
    if not bool(a_sub.any()) and not bool(w_sub.any()):
        return 0.0
    return times(a_sub, w.abs(), counts) + times(a.abs(), w_sub, counts)
