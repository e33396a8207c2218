"""One correct rounding of fp64 values to bf16, fp16 or fp32.

Special values first: NaN stays NaN, infinities and the sign of zero are kept; a finite value beyond the largest finite
one becomes infinite under RNE once it reaches the midpoint to the next power of two, and stays finite under RTZ.

torch's own fp64 -> bf16 conversion goes through fp32 and so rounds twice: 1 + 2^-8 + 2^-40 must become 1 + 2^-7, and it
gives 1.0. Every stored value that the oracle predicts is rounded here instead, in one step.
"""

from __future__ import annotations

import torch

from .errors import unknown

__all__ = ["round_to", "ulp"]

# dtype -> (explicit significand bits p, exponent of the smallest normal, largest finite value)
FORMATS: dict[torch.dtype, tuple[int, int, float]] = {
    torch.bfloat16: (7, -126, float.fromhex("0x1.fep127")),
    torch.float16: (10, -14, 65504.0),
    torch.float32: (23, -126, float.fromhex("0x1.fffffep127")),
}
MODES = ("rne", "rtz")
_EXPONENT = 0x7FF << 52


def check_format(dtype: torch.dtype) -> tuple[int, int, float]:
    """Return (p, emin, largest) of `dtype`, or raise the ValueError that names the formats there are."""
    if dtype not in FORMATS:
        raise unknown("dtype", str(dtype), [str(d) for d in FORMATS])
    return FORMATS[dtype]


def ulp(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the spacing of `dtype` at |x|: 2^(max(floor(log2|x|), emin) - p).

    Args:
        x: float64, any shape, finite (an infinity is taken at the largest binade).
        dtype: torch.bfloat16, torch.float16 or torch.float32.
    Returns:
        float64, x's shape; exact. Zero and subnormals give the smallest subnormal.
    """
    p, emin, largest = check_format(dtype)
    exponent = x.clamp(-largest, largest).view(torch.int64) & _EXPONENT
    exponent = exponent.clamp_(min=(emin + 1023) << 52)
    return exponent.sub_(p << 52).view(torch.float64)


def round_in_fp64(x: torch.Tensor, dtype: torch.dtype, mode: str = "rne", ftz: bool = False) -> torch.Tensor:
    """Round fp64 values to the grid of `dtype` and return them as fp64; see `round_to`. A zero comes out as +0.

    The adder does the work: with M = 1.5 * 2^52 * ulp(x), x + M has exactly the spacing ulp(x), so (x + M) - M is x
    rounded to nearest even, also among the target's subnormals, where ulp is constant.
    """
    p, emin, largest = check_format(dtype)
    if mode not in MODES:
        raise unknown("mode", mode, MODES)
    if x.dtype != torch.float64:
        raise ValueError(f"x: got {x.dtype}, must be torch.float64 (one rounding, from the widest format)")
    exponent = (x.view(torch.int64) & _EXPONENT).clamp_(min=(emin + 1023) << 52, max=(1022 + 1023 - 52) << 52)
    magic = exponent.add_(((52 - p) << 52) | (1 << 51)).view(torch.float64)
    r = (x + magic).sub_(magic)
    if mode == "rtz":
        away = r.abs() > x.abs()
        r = torch.where(away, r - torch.copysign(ulp(x, dtype), x), r)
        r = torch.where(x.isinf(), x, r.clamp_(-largest, largest))
    elif r.numel():
        low, high = torch.aminmax(r)
        if not (float(low) >= -largest and float(high) <= largest):  # NaN lands here too
            r = torch.where(r.abs() > largest, torch.copysign(torch.full_like(r, torch.inf), x), r)
    return torch.where(r.abs() < 2.0**emin, 0.0, r) if ftz else r


def round_to(x: torch.Tensor, dtype: torch.dtype, mode: str = "rne", ftz: bool = False) -> torch.Tensor:
    """Round fp64 values to `dtype` once, correctly.

    Args:
        x: float64, any shape, any values.
        dtype: torch.bfloat16, torch.float16 or torch.float32.
        mode: "rne" (to nearest, ties to even) or "rtz" (toward zero).
        ftz: results below the smallest normal become zero of the same sign.
    Returns:
        Tensor of `dtype`, x's shape; the correctly rounded value of each element.
    Raises:
        ValueError: x is not float64, or dtype or mode is unknown.
    Source: IEEE 754-2019 section 4.3; the adder trick is Dekker 1971, doi.org/10.1007/BF01397083.
    """
    return torch.copysign(round_in_fp64(x, dtype, mode, ftz), x).to(dtype)
