"""Plans for exact data: integers so small that every partial sum fits fp32, in any order, with the zero hoisted or not.

fp32 adds integers below 2^24 units without rounding. A plan bounds the largest partial sum from the shapes alone, so
its promise holds for every seed; what cannot be bounded is still built, with `exact` False.
Source: docs/numerics.md (integers, power-of-two scales, gates in multiples of 128, dyadic router weights).
"""

from __future__ import annotations

from dataclasses import dataclass

LIMIT = 1 << 24
HALF_RANGE = 15  # outputs are scaled below 2^15, so that fp16 holds them
GATE_EXPONENT = 7  # gates are multiples of 128: silu(128) = 128 and silu(-128) = -0 in fp32
CHUNK = 32  # longest run that kernels correct at once where the whole row does not fit


def hoisted(bits: int) -> int:
    """Return the two sums of a hoisted zero point, for one unit of |a|: a * (128 + u), and (128 + z) * a."""
    return 2 * 128 + 2 * ((1 << bits) - 1)


@dataclass(frozen=True)
class Window:
    """Codes lo..lo+2^bits-1, zero points zero_lo..zero_hi where the weight has any, and `middle` where it has none."""

    lo: int = 0
    bits: int = 4
    zero_lo: int = 0
    zero_hi: int = 15
    middle: int = 8

    def reach(self, symmetric: bool) -> int:
        """The largest |u - z|; z is the middle where the weight is symmetric."""
        low, high = (self.middle, self.middle) if symmetric else (self.zero_lo, self.zero_hi)
        return max(self.lo + (1 << self.bits) - 1 - low, high - self.lo)

    def about_middle(self, bits: int) -> Window:
        """Return the same distances about the middle of codes of so many bits."""
        by = (1 << (bits - 1)) - self.middle
        return Window(self.lo + by, self.bits, self.zero_lo + by, self.zero_hi + by, self.middle + by)


# By the bits of a code: all of them; zero points with a code on either side; codes at or above their zero point.
ALL_CODES = {4: Window(), 8: Window(0, 8, 0, 255, 128)}
INSIDE = {4: Window(zero_lo=1, zero_hi=14), 8: Window(0, 8, 1, 254, 128)}
POSITIVE = {4: Window(lo=8, bits=3, zero_lo=0, zero_hi=8), 8: Window(128, 7, 0, 128, 128)}


@dataclass(frozen=True)
class GemmPlan:
    """Exact data for one GEMM.

    Args:
        exact: the bound holds.
        amax: largest |x|.
        chunk: one x in `chunk` is not zero (1: dense).
        exponent: scales are 2^exponent or 2^(exponent+1).
        window: codes and zero points.
        signed: x may be negative.
    """

    exact: bool
    amax: int
    chunk: int
    exponent: int
    window: Window
    signed: bool


def plan_gemm(
    recipe: str, K: int, seed: int, bits: int = 4, *, largest: int | None = None, hoists: int | None = None
) -> GemmPlan:
    """Plan integer data for one GEMM over K: dense for even seeds, one nonzero in 8 for odd ones.

    Args:
        recipe: "integers" or "samesign".
        K: length of the sums.
        seed: the case's.
        bits: of a code.
        largest: largest |u - z|, or |code| of the lm_head's weight; None: of all codes.
        hoists: magnitude that one unit of |x| adds to the sums of a kernel with a hoisted zero point; None: `hoisted`.
    """
    largest, hoists = largest or (1 << bits) - 1, hoists or hoisted(bits)
    chunk = 8 if seed % 2 else 1
    nonzeros = -(-K // chunk)
    amax = min(127, (LIMIT - 256) // (2 * hoists * nonzeros))  # 2: one of two scales; 256: the bias
    exact, amax = amax >= 1, max(1, amax)
    exponent = -max(0, (2 * nonzeros * amax * largest + 256).bit_length() - HALF_RANGE)
    window = (POSITIVE if recipe == "samesign" else ALL_CODES)[bits]
    return GemmPlan(exact, amax, chunk, exponent, window, recipe != "samesign")


@dataclass(frozen=True)
class MoePlan:
    """Exact data for moe_w4a16, through silu and both GEMMs.

    Args:
        exact: the bound holds.
        nonzeros: of each row of x, all ±1.
        spread: how many different scale exponents, 1 or 2 (gate rows always have one: 128).
        weight_steps: router weights are 1/2, 1/4, … down to 2^-weight_steps.
        up_exponent, down_exponent: smallest scale exponents of the up rows and of w2.
        window13, window2: codes and zero points.
        signed: x may be negative.
    """

    exact: bool
    nonzeros: int
    spread: int
    weight_steps: int
    up_exponent: int
    down_exponent: int
    window13: Window
    window2: Window
    signed: bool


def plan_moe(recipe: str, H: int, I: int, k: int, symmetric: bool, bits: int = 4) -> MoePlan:
    """Plan integer data for a whole MoE layer: the richest that can be bounded.

    h = 128 m and u with |m| <= q n, |u| <= spread q n; a = relu(h_gate) * h_up; y over I; out over k dyadic weights.

    Args:
        recipe: "integers" or "samesign".
        H, I, k: sizes.
        symmetric: every zero point is the middle.
        bits: of a code.
    """
    same, hoists = recipe == "samesign", hoisted(bits)
    window13 = Window(8, 2, 5, 8) if same else Window(4, 3, 6, 9)
    window2 = Window(8, 3, 5, 8) if same else Window(0, 4, 6, 9)
    window13, window2 = window13.about_middle(bits), window2.about_middle(bits)
    q1, q2 = window13.reach(symmetric), window2.reach(symmetric)
    choices = [(n, spread, steps) for spread, steps in ((2, 3), (2, 2), (1, 2)) for n in range(min(8, H), 0, -1)]
    choices.sort(key=lambda choice: choice[0] == 1)  # one nonzero only where two are too many
    for whole in (True, False):  # hoisted over all of I, else over runs of CHUNK
        for n, spread, steps in choices:
            a = spread * (q1 * n) ** 2
            a += a >> 7  # a is rounded to bf16 when it is stored
            y = spread * q2 * a * I
            run = hoists * spread * a * I if whole else max(hoists * a * min(CHUNK, I), 15 * spread * a * I)
            total = -(-k // steps) * ((1 << steps) - 1) * (y + (y >> 7))
            if max(run, total) < LIMIT and n <= H:
                return _moe_plan(True, n, spread, steps, a, y * max(1, k), window13, window2, not same)
    a = (q1 * 1) ** 2
    return _moe_plan(False, 1, 1, 2, a, q2 * a * I * max(1, k), window13, window2, not same)


def _moe_plan(
    exact: bool, n: int, spread: int, steps: int, a: int, out: int, window13: Window, window2: Window, signed: bool
) -> MoePlan:
    up = -max(0, a.bit_length() + GATE_EXPONENT - HALF_RANGE)
    down = -max(0, out.bit_length() + GATE_EXPONENT + up - HALF_RANGE)
    return MoePlan(exact, n, spread, steps, up, max(down, -20), window13, window2, signed)
