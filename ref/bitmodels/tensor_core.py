"""What a matrix unit's fp32 accumulator holds, bit for bit: many products aligned, cut, and added at once.

Special values first. NaN: any NaN operand, inf*0 or inf-inf gives the unit's one NaN. Infinite operands give what IEEE
arithmetic gives. A finite sum of 2^128 or more becomes infinite; a larger product that cancels does not. A sum that is
zero, or that NVIDIA's store cuts to zero, is +0. Subnormal operands and results count fully.

One step, products p_i = a_i*w_i and accumulator c:

    e_i = e(a_i) + e(w_i)       the operands' exponents, not the product's own: p_i is in [1, 4) * 2^e_i
    E   = max(e_i of the products that are not 0, e(c), least)     e(c) is at least -126, a subnormal's as stored
    S   = sum_i cut(p_i * 2^(bits-E)) + cut(c * 2^(bits-E))        integers, added exactly
    c'  = store(S * 2^(E-bits))

Here integers are held in fp64, where all of this is exact: S needs 32 bits, and a product 22.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import require, unknown
from .fp32_trees import truncate_fp32

FIELDS: dict[str, tuple[str, ...]] = {
    "cut": ("zero", "floor"),
    "exponents": ("operands", "normalized_operands", "product"),
    "store": ("rtz", "rne"),
    "evidence": ("measured", "published"),
}
_NOTHING = -10_000  # exponent of a zero: two of them still fit int16
_LOWEST = -400  # below every exponent that a product of two bf16 can have
_FIELDS = {torch.bfloat16: (7, 0xFF, 127), torch.float16: (10, 0x1F, 15)}  # where the exponent is, and its bias


@dataclass(frozen=True)
class TensorCore:
    """How one matrix unit adds.

    Args:
        name: what reports call it.
        products: how many products one step adds to the accumulator.
        bits: fractional bits kept of each term, relative to the largest exponent E.
        cut: where the rest goes: "zero" or "floor" (toward minus infinity).
        exponents: "operands" e(a)+e(w), a subnormal counting as its format's smallest exponent; "normalized_operands"
            the same with a subnormal's own exponent; "product" floor(log2|a*w|).
        store: rounding of the sum to fp32, "rtz" or "rne".
        sum_bits: None: the accumulator is aligned with the products. Else the products are added by themselves, and
            their sum, with this many bits, and the accumulator, with `bits`, are cut toward minus infinity and added.
        least_exponent: E is never below it; None: no such limit. Hopper's -133 is bf16's smallest subnormal's.
        nan: the fp32 bits of its NaN.
        evidence: "measured" on hardware for this project, or "published" by others and not checked here.
    Raises:
        ValueError: a field holds none of its legal values.
    Source: HOPPER: h200 and docs/bit-models.md (NVIDIA H200, driver 580.159.04, torch 2.11.0+cu130, triton
        3.6.0); arxiv.org/abs/2511.10909 (MMA-Sim) and arxiv.org/abs/2512.07004 for the others.
    """

    name: str
    products: int
    bits: int
    cut: str = "zero"
    exponents: str = "operands"
    store: str = "rtz"
    sum_bits: int | None = None
    least_exponent: int | None = -126
    nan: int = 0x7FFFFFFF
    evidence: str = "published"

    def __post_init__(self) -> None:
        for field, allowed in FIELDS.items():
            if getattr(self, field) not in allowed:
                raise unknown(field, getattr(self, field), allowed)
        require(1 <= self.products <= 64, f"products: got {self.products}, must be 1 to 64")
        require(8 <= self.bits <= 40, f"bits: got {self.bits}, must be 8 to 40 (sums must stay exact in fp64)")
        in_reach = self.sum_bits is None or self.bits <= self.sum_bits <= 40
        require(in_reach, f"sum_bits: got {self.sum_bits}, must be bits={self.bits} to 40, or None")


HOPPER = TensorCore("hopper", 16, 25, least_exponent=-133, evidence="measured")
BLACKWELL = TensorCore("blackwell", 16, 25)
AMPERE = TensorCore("ampere", 8, 24)  # Ada too; m16n8k16 is two steps of 8
TURING = TensorCore("turing", 8, 24)
VOLTA = TensorCore("volta", 4, 23)
CDNA3 = TensorCore("cdna3", 8, 24, store="rne", sum_bits=31, least_exponent=None, nan=0x7FC00000)
TENSOR_CORES: dict[str, TensorCore] = {c.name: c for c in (HOPPER, BLACKWELL, AMPERE, TURING, VOLTA, CDNA3)}


@dataclass(frozen=True)
class Instruction:
    """An instruction that adds products: a matrix unit's, taking k inputs, or (core None) fp32 arithmetic.

    fused: one rounding for multiply and add.  rounding: of fp32 arithmetic, "rne" or "rtz".
    """

    core: TensorCore | None
    k: int
    fused: bool = False
    rounding: str = "rne"

    @property
    def step(self) -> int:
        """Products added at once: the matrix unit's, or all of a smaller instruction's."""
        return self.k if self.core is None else min(self.k, self.core.products)


INSTRUCTIONS: dict[str, Instruction] = {
    "wgmma.k16.sm90": Instruction(HOPPER, 16),
    "mma.m16n8k16.sm90": Instruction(HOPPER, 16),
    "mma.m16n8k8.sm90": Instruction(HOPPER, 8),
    "mma.m16n8k16.sm80": Instruction(AMPERE, 16),
    "mma.m16n8k8.sm80": Instruction(AMPERE, 8),
    "mma.m16n8k8.sm75": Instruction(TURING, 8),
    "mma.m8n8k4.sm70": Instruction(VOLTA, 4),
    "tcgen05.k16.sm100": Instruction(BLACKWELL, 16),
    "mma.m16n8k16.sm120": Instruction(BLACKWELL, 16),
    "mfma.k16.cdna3": Instruction(CDNA3, 16),
    "mfma.k8.cdna3": Instruction(CDNA3, 8),
    "fma": Instruction(None, 1, fused=True),
    "mul_add": Instruction(None, 1),
    "fma.rz": Instruction(None, 1, fused=True, rounding="rtz"),
    "mul_add.rz": Instruction(None, 1, rounding="rtz"),
}


def exponent(x: torch.Tensor, least: int = _LOWEST) -> torch.Tensor:
    """Return int16 floor(log2|x|) of fp64 values, at least `least`; far below all others for zero."""
    e = ((x.view(torch.int64) >> 52) & 0x7FF).sub_(1023).clamp_(min=least)
    return torch.where(x == 0, _NOTHING, e).to(torch.int16)


def operand_exponent(x: torch.Tensor) -> torch.Tensor:
    """Return int16 exponents of bf16 or fp16 values as stored: a subnormal has its format's smallest."""
    shift, mask, bias = _FIELDS[x.dtype]
    bits = x.view(torch.int16)
    e = ((bits >> shift) & mask).clamp_(min=1).sub_(bias)
    return e.masked_fill_((bits & 0x7FFF) == 0, _NOTHING)


def power_of_two(e: torch.Tensor) -> torch.Tensor:
    """Return fp64 2^e of int64 exponents within the normal range."""
    return ((e + 1023) << 52).view(torch.float64)


def _cut(x: torch.Tensor, how: str) -> torch.Tensor:
    return x.trunc_() if how == "zero" else x.floor_()


def fused_dot(
    a: torch.Tensor, w: torch.Tensor, core: TensorCore, acc: torch.Tensor | None = None, *, step: int | None = None
) -> torch.Tensor:
    """Return acc + sum_k a[m,k] w[n,k] as the matrix unit leaves it, `step` products after another.

    Memory grows with M*N*step: `accumulate` cuts large problems into parts.

    Args:
        a: [M, K], bf16 or fp16.  w: [N, K], the same dtype.
        core: which unit.
        acc: float32 [M, N], or None for +0.
        step: products a step, at most and by default core.products (an instruction may hold fewer); a K that it does
            not divide ends with a smaller step, as zeros would.
    Returns:
        float32 [M, N]; every bit as the model says.
    Raises:
        ValueError: dtypes are not both bf16 or both fp16, or step is out of range.
    """
    (M, K), N = a.shape, w.shape[0]
    step = step or core.products
    require(1 <= step <= core.products, f"step: got {step}, must be 1 to {core.products} ({core.name})")
    if a.dtype not in _FIELDS or w.dtype != a.dtype:
        raise ValueError(f"a, w: got {a.dtype} and {w.dtype}, must both be torch.bfloat16 or both torch.float16")
    a, w = a.T.contiguous()[:, :, None], w.T.contiguous()[:, None, :]
    a64, w64 = a.double(), w.double()
    as_stored = core.exponents == "operands"
    a_exp, w_exp = (operand_exponent(a), operand_exponent(w)) if as_stored else (exponent(a64), exponent(w64))
    total = torch.zeros(M, N, dtype=torch.float64, device=a.device) if acc is None else acc.double()
    special = _may_leave_range(a, w, total)
    for k in range(0, K, step):
        s = slice(k, k + step)
        p = a64[s] * w64[s]
        e = exponent(p) if core.exponents == "product" else a_exp[s] + w_exp[s]
        ieee = _ieee_sum(p, total, core) if special else None
        total = _step(p, e, total, core)
        if ieee is not None:
            total = torch.where(ieee.isfinite(), total, ieee)
            total = torch.where(
                total.abs() >= 2.0**128, torch.copysign(torch.full_like(total, torch.inf), total), total
            )
    out = total.float()
    if core.store == "rtz":
        out = out + 0.0  # a negative sum that is cut to zero, too, is +0
    return torch.where(out.isnan(), torch.tensor(core.nan, dtype=torch.int32, device=a.device).view(torch.float32), out)


def _step(p: torch.Tensor, e: torch.Tensor, acc: torch.Tensor, core: TensorCore) -> torch.Tensor:
    """Add products p fp64 [s, M, N] of exponents e int16 to acc fp64 [M, N]; p is overwritten."""
    lowest = _LOWEST if core.least_exponent is None else core.least_exponent
    top = e.amax(0).clamp_(min=lowest)
    both = torch.maximum(top, exponent(acc, -126)).long()  # a subnormal accumulator counts as stored, too
    if core.sum_bits is None:
        scale = power_of_two(core.bits - both)
        s = _cut(p.mul_(scale), core.cut).sum(0).add_(_cut(acc * scale, core.cut))
        value = s.mul_(power_of_two(both - core.bits))
    else:
        products = _cut(p.mul_(power_of_two(core.bits - top.long())), core.cut).sum(0)
        products = products.mul_(power_of_two(top.long() - core.bits)).mul_(power_of_two(core.sum_bits - both)).floor_()
        held = (acc * power_of_two(core.bits - both)).floor_().mul_(2.0 ** (core.sum_bits - core.bits))
        value = products.add_(held).mul_(power_of_two(both - core.sum_bits))
    return truncate_fp32(value) if core.store == "rtz" else value.float().double()


def _may_leave_range(a: torch.Tensor, w: torch.Tensor, acc: torch.Tensor) -> bool:
    """Say whether an infinity, a NaN or an overflow can occur; what cannot need not be looked for in each step."""
    if not a.numel() or not w.numel():
        return False
    bound = a.abs().amax().double() * w.abs().amax().double() * a.shape[0] + acc.abs().amax()
    return not bool(bound < 2.0**127)


def _ieee_sum(p: torch.Tensor, acc: torch.Tensor, core: TensorCore) -> torch.Tensor:
    """Return fp64 acc + sum of p, which no finite terms can bring to infinity; CDNA3's products end at fp32's range."""
    if core.sum_bits is not None:
        p = torch.where(p.abs() >= 2.0**128, torch.copysign(torch.full_like(p, torch.inf), p), p)
    return p.sum(0) + acc
