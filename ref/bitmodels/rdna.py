"""PROVISIONAL, UNVERIFIED: what gfx11's dot2 and WMMA may leave in their fp32 accumulator. No RDNA was measured.

Read in ROCm/rocm-systems#12056, whose author reports agreement with a gfx1151 on millions of cases: three addends, the
accumulator and two exact products, are aligned on one grid, whose size follows the operands' exponents, and added as
integers. The sign frame is the accumulator's, and a term of the other sign has its bits flipped without the increment
that makes it its negative: it ends one unit further from zero. So small integers of mixed sign come out inexact:
-1 + 3*8 + 8*4 is not 55. bf16 operands that are subnormal count as zero.

Not known to us: how many bits the grid keeps, how the result is rounded, and in which order WMMA takes its pairs. They
are parameters here; `moeracle infer --probe-hardware` on such a GPU asks for all three (docs/infer.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import require, unknown
from .fp32_trees import truncate_fp32
from .tensor_core import exponent, operand_exponent, power_of_two

ROUNDINGS = ("rne", "rtz")
SMALLEST_NORMAL = 2.0**-126


@dataclass(frozen=True)
class FrameAdder:
    """A member of the family: `bits` of the grid below the largest exponent, and the rounding of the result.

    Raises:
        ValueError: bits out of range, or an unknown rounding.
    """

    bits: int
    rounding: str = "rne"

    def __post_init__(self) -> None:
        require(20 <= self.bits <= 30, f"bits: got {self.bits}, must be 20 to 30")
        if self.rounding not in ROUNDINGS:
            raise unknown("rounding", self.rounding, ROUNDINGS)

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"gfx11 dot2 (provisional; {self.bits} bits, {self.rounding})"


FAMILY = tuple(FrameAdder(bits, rounding) for bits in range(22, 28) for rounding in ROUNDINGS)


def frame_dot(a: torch.Tensor, w: torch.Tensor, acc: torch.Tensor, adder: FrameAdder) -> torch.Tensor:
    """Return acc + sum_k a[p,k] w[p,k], two neighbouring products a step, as the provisional model has it.

    Args:
        a, w: [P, K], both bf16 or both fp16, K even, finite.
        acc: float32 [P], finite.
        adder: which member of the family.
    Returns:
        float32 [P].
    Source: github.com/ROCm/rocm-systems/issues/12056; unverified.
    """
    require(a.shape == w.shape and a.shape[1] % 2 == 0, f"a, w: got {tuple(a.shape)} and {tuple(w.shape)}")
    if a.dtype == torch.bfloat16:
        a, w = (torch.where(x.abs().double() < SMALLEST_NORMAL, torch.zeros_like(x), x) for x in (a, w))
    products, sizes = a.double() * w.double(), operand_exponent(a) + operand_exponent(w)
    total = acc.double()
    for k in range(0, a.shape[1], 2):
        total = _step(total, products[:, k : k + 2], sizes[:, k : k + 2], adder)
    return total.float()


def _step(acc: torch.Tensor, p: torch.Tensor, e: torch.Tensor, adder: FrameAdder) -> torch.Tensor:
    top = torch.maximum(e.amax(1).long(), exponent(acc, -126).long()).clamp_(min=-400)
    terms = torch.cat([acc[:, None], p], 1)
    units = (terms * power_of_two(adder.bits - top)[:, None]).abs().trunc()
    frame = torch.where(torch.signbit(acc), -1.0, 1.0)[:, None]
    opposing = (torch.sign(terms) * frame < 0).double()
    signed = torch.where(opposing > 0, -(units + 1), units)
    value = signed.sum(1) * frame[:, 0] * power_of_two(top - adder.bits)
    return value.float().double() if adder.rounding == "rne" else truncate_fp32(value)
