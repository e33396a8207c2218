"""fp32 sums in a declared order: what a scalar or SIMD kernel's accumulator holds, bit for bit.

Special values first: products and sums follow IEEE 754, subnormals included. A sum that is exactly zero is +0 unless
all its terms are -0, an accumulator's initial +0 among them. NaN is NaN, payload unspecified. Rounding toward zero
stops at the largest finite value.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..errors import require, unknown
from ..rounding import FORMATS

ORDERS = ("sequential", "reversed", "pairwise", "halves")
_LARGEST = FORMATS[torch.float32][2]


def truncate_fp32(x: torch.Tensor, bits: int = 23) -> torch.Tensor:
    """Cut fp64 values toward zero to fp32's grid and return them as fp64; beyond fp32's range the grid goes on.

    Args:
        x: float64, any shape, |x| > 2^-1022 or zero. An infinity stays one; NaN stays NaN only if its top bits say so.
        bits: fractional bits of the grid, fewer than fp32's 23 for a coarser one.
    """
    cut = (x.view(torch.int64) & -(1 << 52 - bits)).view(torch.float64)
    small = (x * 2.0 ** (126 + bits)).trunc_().mul_(2.0 ** -(126 + bits))
    return torch.where(x.abs() < 2.0**-126, small, cut)


def odd_sum(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Add fp64 values rounding to odd, so that one more rounding, to 51 bits or fewer, is the only one.

    s + e = x + y exactly (TwoSum); where e is not 0, an even s is moved by one ulp toward e.
    Source: Boldo and Melquiond, doi.org/10.1109/TC.2007.70819.
    """
    s = x + y
    part = s - x
    error = (x - (s - part)).add_(y - part)
    bits = s.view(torch.int64)
    inexact_even = (error.abs() > 0) & ((bits & 1) == 0)  # False where s is inf or NaN: the error is NaN there
    toward = torch.where((error > 0) == (s > 0), 1, -1)
    return torch.where(inexact_even, bits + toward, bits).view(torch.float64)


def _store(x: torch.Tensor, rounding: str) -> torch.Tensor:
    """Round fp64 (exact, or rounded to odd) to fp32."""
    if rounding == "rne":
        return x.float()
    return torch.where(x.isfinite(), truncate_fp32(x).clamp_(-_LARGEST, _LARGEST), x).float()


def add32(x: torch.Tensor, y: torch.Tensor, rounding: str = "rne") -> torch.Tensor:
    """Add fp32 values with one rounding, "rne" or "rtz"."""
    return x + y if rounding == "rne" else _store(odd_sum(x.double(), y.double()), rounding)


def mul32(x: torch.Tensor, y: torch.Tensor, rounding: str = "rne") -> torch.Tensor:
    """Multiply fp32 values with one rounding, "rne" or "rtz"; a product of 48 bits is exact in fp64."""
    return x * y if rounding == "rne" else _store(x.double() * y.double(), rounding)


def fma32(x: torch.Tensor, y: torch.Tensor, acc: torch.Tensor, rounding: str = "rne") -> torch.Tensor:
    """Return x*y + acc with one rounding; torch has no fused multiply-add that is one on every device."""
    return _store(odd_sum(x.double() * y.double(), acc.double()), rounding)


def products_are_exact(a: torch.Tensor, w: torch.Tensor) -> bool:
    """Say whether every product is an fp32 value, so that multiply-add and fused multiply-add are the same.

    Two fp16 always are (22 bits, 2^-48 and up); two bf16 unless a product leaves fp32's normal range.
    """
    if a.dtype == w.dtype == torch.float16:
        return True
    if not (a.dtype == w.dtype == torch.bfloat16) or not a.numel() or not w.numel():
        return False
    least, most = 1.0, 1.0
    for x in (a.double().abs(), w.double().abs()):
        least *= float(torch.where(x == 0, torch.inf, x).amin())
        most *= float(x.amax())
    return least >= 2.0**-126 and most < 2.0**128


def reduce32(terms: torch.Tensor, order: str, rounding: str = "rne") -> torch.Tensor:
    """Add fp32 terms over the first dimension in the named order.

    sequential ((t0+t1)+t2)+...; reversed from the last; pairwise neighbours (t0+t1)+(t2+t3), an odd last one waits;
    halves t[i] + t[i+n/2], as a butterfly or a shuffle tree does, an odd middle one waits.

    Args:
        terms: float32 [n, ...], n >= 1.
        order: one of ORDERS.
        rounding: of every addition, "rne" or "rtz".
    """
    return reduce_by(terms, order, lambda x, y: add32(x, y, rounding))


def reduce_by(
    terms: torch.Tensor, order: str, add: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Join terms [n, ...] over the first dimension in the named order, as reduce32 does, with any addition."""
    if order not in ORDERS:
        raise unknown("order", order, ORDERS)
    if order in ("sequential", "reversed"):
        steps = terms if order == "sequential" else terms.flip(0)
        total = steps[0]
        for term in steps[1:]:
            total = add(total, term)
        return total
    while terms.shape[0] > 1:
        n = terms.shape[0]
        h = n // 2
        if order == "pairwise":
            added, waits = add(terms[0 : 2 * h : 2], terms[1 : 2 * h : 2]), terms[2 * h :]
        else:
            added, waits = add(terms[:h], terms[n - h :]), terms[h : n - h]
        terms = torch.cat([added, waits]) if n % 2 else added
    return terms[0]


def dot32(
    a: torch.Tensor,
    w: torch.Tensor,
    order: str,
    acc: torch.Tensor | None = None,
    *,
    fused: bool = False,
    rounding: str = "rne",
) -> torch.Tensor:
    """Return acc + sum_k a[m,k] w[n,k] in fp32, the terms added in the named order.

    sequential and reversed chain through the accumulator (from +0 if there is none); the other orders sum their
    products first and add the accumulator last.

    Args:
        a: float32 [M, K].  w: float32 [N, K].  acc: float32 [M, N] or None.
        order: one of ORDERS.  fused: multiply and add with one rounding (chains only).  rounding: "rne" or "rtz".
    """
    K = a.shape[1]
    a_of_k, w_of_k = a.T.contiguous()[:, :, None], w.T.contiguous()[:, None, :]
    if order in ("sequential", "reversed"):
        total = a.new_zeros(a.shape[0], w.shape[0]) if acc is None else acc
        for k in range(K) if order == "sequential" else range(K - 1, -1, -1):
            total = multiply_add(a_of_k[k], w_of_k[k], total, fused, rounding)
        return total
    require(K > 0, f"order: got {order!r}, must be 'sequential' where there is nothing to add (K=0)")
    total = reduce32(mul32(a_of_k, w_of_k, rounding), order, rounding)
    return total if acc is None else add32(acc, total, rounding)


def sum_terms32(terms: torch.Tensor, order: str, fused: bool) -> torch.Tensor:
    """Return the fp32 sum over terms [n, ...], exact fp64 products of two fp32 values or fp32 values themselves.

    Args:
        terms: float64 [n, ...] of 51 bits or fewer, which fp64 holds exactly.
        order: one of ORDERS; a chain starts at +0.
        fused: a chain adds each product with one rounding; else, and in other orders, it is rounded first.
    """
    chain = order in ("sequential", "reversed")
    if not (chain and fused):
        terms = terms.float()
        return reduce32(torch.cat([torch.zeros_like(terms[:1]), terms]) if chain else terms, order)
    total = torch.zeros_like(terms[0], dtype=torch.float32)
    for term in terms if order == "sequential" else terms.flip(0):
        total = odd_sum(term, total.double()).float()
    return total


def multiply_add(
    x: torch.Tensor, y: torch.Tensor, acc: torch.Tensor, fused: bool, rounding: str = "rne"
) -> torch.Tensor:
    """Return x*y + acc in fp32 with one rounding if fused, else two."""
    return fma32(x, y, acc, rounding) if fused else add32(acc, mul32(x, y, rounding), rounding)


def lanes32(
    a: torch.Tensor,
    w: torch.Tensor,
    lanes: int,
    chunk: int,
    *,
    fused: bool = True,
    scale: torch.Tensor | None = None,
    zero: torch.Tensor | None = None,
    scale_fused: bool = True,
    zero_fused: bool = False,
    rounding: str = "rne",
) -> torch.Tensor:
    """Return the dot product as the gfx11 GEMV adds it: lane by lane, then a tree over the wave.

    Lane l owns k = round*lanes*chunk + l*chunk + j. A lane adds its products in that order (with a scale: each chunk
    from +0, then times the scale into the lane's sum). Rows of 16 lanes: l + (l+8), then 4, 2, 1; last row 1 + row 0.

    Args:
        a: float32 [M, K].  w: float32 [N, K]; K is padded with zeros to whole rounds.
        lanes: 16 or 32.  chunk: values a lane takes at once, e.g. 8 or 16.
        fused: products are added with one rounding.
        scale: float32 [N, K/G] with G a multiple of chunk, or None.  scale_fused: it enters by fused multiply-add.
        zero: float32 [N, K/G], times the chunk's sum of a subtracted from its dot, or None.  zero_fused: by fused
            multiply-add, else product and difference are rounded each.
    Raises:
        ValueError: lanes, or a scale group that a chunk does not divide.
    Source: wvSplitK of github.com/ROCm/vllm (docs/formats.md section 4).
    """
    M, K, N = a.shape[0], a.shape[1], w.shape[0]
    require(lanes in (16, 32), f"lanes: got {lanes}, must be 16 or 32")
    rounds = -(-K // (lanes * chunk))
    pad = (0, rounds * lanes * chunk - K)
    a_of = torch.nn.functional.pad(a, pad).view(M, rounds, lanes, chunk).permute(1, 3, 2, 0)[..., :, None].contiguous()
    w_of = torch.nn.functional.pad(w, pad).view(N, rounds, lanes, chunk).permute(1, 3, 2, 0)[..., None, :].contiguous()
    if scale is not None:
        G = K // scale.shape[1]
        require(G % chunk == 0, f"chunk: got {chunk}, must divide the scale's group of {G}")
        group = (torch.arange(rounds * lanes, device=a.device) * chunk // G).clamp(max=scale.shape[1] - 1)
        s_of = scale.T[group].view(rounds, lanes, 1, N)
        z_of = None if zero is None else zero.T[group].view(rounds, lanes, 1, N)
    total = a.new_zeros(lanes, M, N)
    for r in range(rounds):
        part = total if scale is None else torch.zeros_like(total)
        for j in range(chunk):
            part = multiply_add(a_of[r, j], w_of[r, j], part, fused, rounding)
        if scale is not None and z_of is not None:
            sum_a = torch.zeros_like(a_of[r, 0])
            for j in range(chunk):
                sum_a = add32(sum_a, a_of[r, j], rounding)
            part = multiply_add(sum_a, -z_of[r], part, zero_fused, rounding)
        total = part if scale is None else multiply_add(part, s_of[r], total, scale_fused, rounding)
    rows = [reduce32(row, "halves", rounding) for row in total.split(16)]
    return rows[0] if lanes == 16 else add32(rows[1], rows[0], rounding)
