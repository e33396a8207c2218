"""How far any legal accumulation may end from the exact dot product: the derived bound, and where it is zero.

All bounds are derived, none is picked; docs/numerics.md has the arguments and what was measured.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch

from ..contracts.contract import Contract
from ..rounding import round_to
from ..weights.weight import Int4Weight
from .band import TINY, Band, join_band, lowest_bit, store, weigh_band
from .scheduled import Operands, scheduled_dot, scheduled_operands

__all__ = ["DotWeights", "dot_band", "dot_weights"]

SMALL = 1 << 15  # weights up to which speed does not matter


class DotWeights(NamedTuple):
    """What a dot product multiplies with, and how large its terms may be on the way.

    Args:
        values: fp64 [N, K].
        sizes: fp32 [N, K], which bound the error: |values|, or for a hoisted zero point
            s * ((offset+u) + (offset+z)), the two sums' magnitudes; fp64 where those overflow.
        operands: what a declared schedule multiplies with, or None.
        after: fp64 [N], the scale in D that multiplies what was stored in D, or None.
        roundings: of each product, besides those that the contract names.
    """

    values: torch.Tensor
    sizes: torch.Tensor
    operands: Operands | None = None
    after: torch.Tensor | None = None
    roundings: int = 0

    def expert(self, e: int) -> DotWeights:
        """Return expert e's, as views."""
        operands = None if self.operands is None else self.operands.expert(e)
        after = None if self.after is None else self.after[e]
        return DotWeights(self.values[e], self.sizes[e], operands, after, self.roundings)

    def inputs(self, start: int, stop: int) -> DotWeights:
        """Return the weights of one part of K, as views."""
        K, operands = self.values.shape[1], self.operands
        part = None if operands is None else operands.inputs(start, stop, K)
        return DotWeights(self.values[:, start:stop], self.sizes[:, start:stop], part, None, self.roundings)


def dot_weights(w: Int4Weight, contract: Contract, dtype: torch.dtype, into: DotWeights | None = None) -> DotWeights:
    """Return the weights as the contract forms them: (u-z)*s as it is, or rounded to dtype for "cast".

    Args:
        w: Int4Weight, with or without experts.
        into: buffers of the right shape to fill instead of fresh ones: big ones are slow to allocate, expert by expert.
        contract: how it forms weights.
        dtype: D, the activation dtype: torch.bfloat16 or torch.float16.
    Returns:
        DotWeights of [N, K], or [E, N, K].
    """
    if contract.scale_cast and w.scale.dtype != dtype:
        w = replace(w, scale=w.scale.to(dtype))
    if contract.after_store(w.K // w.G):
        return _unscaled(w, contract, dtype)
    values = cast_weights(w.dequantize(torch.float32), contract, dtype)
    operands = scheduled_operands(w, values, contract, dtype) if contract.schedule else None
    if contract.weight == "hoisted":
        zeros = w.zeros()
        z = 8.0 if zeros is None else zeros.float().repeat_interleave(w.G, -1)
        s = w.scale.float().abs().repeat_interleave(w.G, -1)
        whole = w.codes().float() + z + 2 * contract.zero_offset
        sizes = whole * s
        if not bool(sizes.isfinite().all()):  # fp32 is too narrow for what no kernel ever forms
            sizes = whole.double() * s
    else:
        sizes = values.abs() if into is None else torch.abs(values, out=into.sizes)
    wide = contract.weight == "exact" and w.scale.dtype == torch.float32 and dtype == torch.bfloat16
    values64 = values.double() if into is None else into.values.copy_(values)
    return DotWeights(values64, sizes, operands, None, int(wide))


def _unscaled(w: Int4Weight, contract: Contract, dtype: torch.dtype) -> DotWeights:
    """Return u-z as the weights, and the scale that multiplies their stored sums in D."""
    zeros = w.zeros()
    steps = w.codes().double() - (8.0 if zeros is None else zeros.double())
    operands = Operands(steps.to(dtype)) if contract.schedule else None
    return DotWeights(steps, steps.abs().float(), operands, w.scale.to(dtype).double().squeeze(-1))


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


def magnitudes(a: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Return an upper bound of T = |a| sizes^T, at most a factor 1 + K*2^-22 above it.

    Args:
        a: float64 [M, K], values of 24 bits or fewer.  sizes: float32 [N, K], >= 0.
    """
    K = a.shape[1]
    if sizes.numel() > SMALL and sizes.dtype == torch.float32:  # twice as fast in fp32, and its error is known
        t = a.abs().float() @ sizes.T
        low, high = (float(end) for end in torch.aminmax(t)) if t.numel() else (1.0, 1.0)
        if low > 2.0**-60 and high < math.inf:  # nothing underflowed that could matter, nothing overflowed
            return t.double().mul_(1 + (K + 2) * 2.0**-23)
        if high < math.inf and bool(((t > 2.0**-60) | (t == 0)).all()):  # zeros: products that may have been flushed
            return t.double().mul_(1 + (K + 2) * 2.0**-23).add_(K * 2.0**-126)
    return a.abs() @ sizes.double().T


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
    if dtype == torch.float16 and adder.in_dtype:
        lost += 2 * n * 2.0**-25
    of_t += of_mid / 2
    if contract.depth is None:
        return y.abs().mul_(of_mid / 2).add_(t, alpha=of_t + slack).add_(lost)
    any_order = y.abs().mul_(of_mid / 2).add_(t, alpha=of_t)
    return torch.minimum(any_order, t * _growth(contract.depth, u)).add_(t, alpha=slack).add_(lost)


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
    lost = (K + 1) * TINY + (K * 2.0**-25 if dtype == torch.float16 and contract.weight == "cast" else 0.0)
    if contract.ftz:
        lost += 2 * K * 2.0**-126
    return t.mul(in_d + in_fp32 * (1 + in_d) + K * 2.0**-53).add_(lost)


def exact_sums(a: torch.Tensor, w: DotWeights, t: torch.Tensor, contract: Contract, dtype: torch.dtype) -> torch.Tensor:
    """Say where every partial sum of every order is representable, so that only one result is legal.

    That is so where T <= 2^bits * unit, unit being the product of the rows' lowest set bits.

    Args:
        a: float64 [M, K].  w: [N, K].  t: float64 [M, N].
    """
    of_w = torch.minimum(lowest_bit(w.values).amin(1), lowest_bit(w.sizes.double()).amin(1))
    grain = lowest_bit(a).amin(1)[:, None] * of_w[None, :]
    fits = t <= grain * 2.0 ** contract.adder.bits_in(dtype)
    return fits & _one_sign(a, w.values, contract) if contract.adder.one_sign else fits


def _one_sign(a: torch.Tensor, w: torch.Tensor, contract: Contract) -> torch.Tensor:
    """Say where all products have one sign. RDNA3's dot2 and WMMA were seen inexact on small integers of mixed sign.

    Source: github.com/ROCm/rocm-systems/issues/12056.
    """
    if contract.weight == "hoisted":  # both sums' factors are positive
        return ((a >= 0).all(1) | (a <= 0).all(1))[:, None]
    return (a @ w.T).abs() == a.abs() @ w.abs().T


def dot_band(
    a: Band,
    w: DotWeights,
    contract: Contract,
    dtype: torch.dtype,
    *,
    exact: bool = False,
    weight: torch.Tensor | None = None,
) -> Band:
    """Return the Band of a W^T accumulated in fp32 under the contract.

    Args:
        a: [M, K] operands; a Band with a width when the stage before was not stored.
        w: [N, K], from dot_weights.
        exact: the data promise exact sums; each element is still checked.
        contract: accumulator, depth, ftz, schedule, parts and one_group are read.
        dtype: D, the activation dtype: torch.bfloat16 or torch.float16.
        weight: float64 [M, 1], router weights of the contract's "gemm2", which multiply before a store: of each part
            where parts are stored in D; None: they do not enter here.
    Returns:
        Band [M, N]; lo is hi where a schedule is declared and a is known.
    """
    if w.after is not None:
        of_codes = replace(contract, weight="cast", one_group="as_weight")
        sums = dot_band(a, w._replace(after=None), of_codes, dtype, exact=exact)
        scaled = weigh_band(store(sums, contract, dtype), w.after)
        return scaled if weight is None else weigh_band(scaled, weight)
    if contract.parts is not None:
        return _joined_parts(a, w, contract, dtype, exact, weight)
    whole = _dot_band(a, w, contract, dtype, exact)
    return whole if weight is None else weigh_band(whole, weight)


def _joined_parts(
    a: Band, w: DotWeights, contract: Contract, dtype: torch.dtype, exact: bool, weight: torch.Tensor | None
) -> Band:
    """Return the Band of K cut into parts: each part's sum, stored if it is, then all of them joined."""
    cut = contract.parts
    assert cut is not None
    of_part, in_d = replace(contract, parts=None, deterministic=True), cut.kept == "dtype"
    bands = []
    for start, stop in cut.spans(w.values.shape[1]):
        lo = a.lo[:, start:stop]
        piece = Band(lo, lo if a.hi is a.lo else a.hi[:, start:stop])
        band = _dot_band(piece, w.inputs(start, stop), of_part, dtype, exact)
        band = weigh_band(band, weight) if in_d and weight is not None else band
        bands.append(store(band, contract, dtype) if in_d else band)
    if not bands:
        return _dot_band(a, w, of_part, dtype, exact)
    total = join_band(bands, cut.join, dtype if cut.add == "dtype" else None, contract.rounding("out", dtype))
    return weigh_band(total, weight) if weight is not None and not in_d else total


def _dot_band(a: Band, w: DotWeights, contract: Contract, dtype: torch.dtype, exact: bool) -> Band:
    """Return the Band of one uncut dot product; arguments as dot_band's."""
    K = w.values.shape[1]
    known = a.hi is a.lo
    if contract.schedule is not None and known:
        value = scheduled_dot(a.lo, w.operands, contract, dtype)
        return Band(value, value)
    mid = a.lo if known else a.mid
    y = mid @ w.values.T
    t = magnitudes(mid, w.sizes) if known else (mid.abs() + a.radius) @ w.sizes.double().T
    radius = dot_radius(y, t, K, contract, dtype, w.roundings)
    if contract.ftz:
        radius += _flushed(mid, w.values)
    if exact:
        sure = exact_sums(mid, w, t, contract, dtype)
        if not known:  # what holds for the middle of a Band says nothing about the rest of it
            sure &= (a.radius == 0).all(1, keepdim=True)
        radius = torch.where(sure, 0.0, radius)
    if not known:
        radius = radius + (a.radius @ w.values.abs().T) * (1 + K * 2.0**-52)
    return Band(y - radius, y + radius)


def _flushed(a: torch.Tensor, w: torch.Tensor) -> torch.Tensor | float:
    """Return what the products lose when subnormal operands are taken as zero."""
    a_sub = torch.where(a.abs() < 2.0**-126, a, 0).abs()
    w_sub = torch.where(w.abs() < 2.0**-126, w, 0).abs()
    if not bool(a_sub.any()) and not bool(w_sub.any()):
        return 0.0
    return a_sub @ w.abs().T + a.abs() @ w_sub.T
