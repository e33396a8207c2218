"""What an accumulator is like: how many bits it keeps, how it rounds, what it does with subnormals, without a model.

Three inputs a = 2^e, b and c = -2^e: where b joins a before c does, what is left of b tells what the partial sum kept.
Which of three places are joined first is not known beforehand, so all six assignments are asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations

import torch

from .drive import Dots

UNIT = {torch.bfloat16: 1.0, torch.float16: 2.0**-14}
HIGHEST = 29  # 2^29 units: what fp16 reaches
SUBNORMAL_TERMS = 128


@dataclass
class Facts:
    """Measured properties of a sum.

    Args:
        kept: bits of a partial sum, one plus the largest e at which 2^e + 1 is always kept.
        rounding: "rne" or "rtz": what 2^kept + 1.5 became; "" if neither.
        step_bits: fractional bits kept of a term beside a larger one of the same fused step; 0: no fused step.
        exponents: "operands" if a product 2.25 aligns like one of 1, "product" if like 2; "" if not asked.
        ftz: "yes", "no" or "undecided".
        evidence: one line on each.
    """

    kept: int = 0
    rounding: str = ""
    step_bits: int = 0
    exponents: str = ""
    ftz: str = "undecided"
    evidence: dict[str, str] = field(default_factory=dict)


def accumulator_facts(dots: Dots, step: list[int] | None = None) -> Facts:
    """Return what three-term sums tell.

    Args:
        dots: the kernel's GEMM.
        step: inputs known to be added in one fused step, or None.
    """
    facts = Facts()
    places = sorted({0, 1, dots.K // 2, dots.K - 1})
    orders = list(permutations(places, 3))
    rows = [(order, e, 1.0) for e in range(4, HIGHEST) for order in orders]
    left = left_of(dots, rows)
    lost = [e for (_, e, _), value in zip(rows, left, strict=True) if value != 1]
    facts.kept = min(lost) if lost else 0
    if facts.kept:
        facts.evidence["kept"] = (
            f"2^{facts.kept} + 1 - 2^{facts.kept} lost the 1, smaller powers never: {facts.kept} bits"
        )
        _tell_rounding(dots, facts, orders)
    if step is not None and len(step) >= 3:
        _tell_step(dots, facts, step)
    if dots.subnormals:
        _tell_subnormals(dots, facts)
    return facts


def left_of(dots: Dots, rows: Sequence[tuple[Sequence[int], int, float]]) -> list[float]:
    """Return what is left of b units beside 2^e and -2^e at these places, in units."""
    unit = UNIT[dots.dtype]
    x = torch.zeros(len(rows), dots.K, dtype=dots.dtype)
    for row, ((i, j, m), e, b) in enumerate(rows):
        x[row, i], x[row, j], x[row, m] = 2.0**e * unit, b * unit, -(2.0**e) * unit
    return [float(value) for value in dots(x)[:, 0].double() / unit]


def _tell_rounding(dots: Dots, facts: Facts, orders: Sequence[Sequence[int]]) -> None:
    p = facts.kept
    if p + 1 >= HIGHEST:
        return
    left = set(left_of(dots, [(order, p, 1.5) for order in orders]))
    facts.rounding = "rne" if left <= {1.5, 2.0} else "rtz" if 0.0 in left else ""
    shown = ", ".join(f"{value:g}" for value in sorted(left))
    facts.evidence["rounding"] = f"2^{p} + 1.5 - 2^{p} left {shown}"


def _tell_step(dots: Dots, facts: Facts, step: list[int]) -> None:
    i, j, m = step[0], step[1], step[2]
    powers = list(range(12, HIGHEST))
    left = left_of(dots, [((i, j, m), e, 1.0) for e in powers])
    kept = [e for e, value in zip(powers, left, strict=True) if value == 1]
    facts.step_bits = max(kept, default=0)
    facts.evidence["step_bits"] = (
        f"within one step 2^{facts.step_bits} + 1 - 2^{facts.step_bits} left 1, 2^{facts.step_bits + 1} nothing"
    )
    unit, e = UNIT[dots.dtype], facts.step_bits
    if not e or e + 2 >= HIGHEST:
        return
    q = torch.ones(dots.N, dots.K)
    q[:, i] = q[:, m] = 3  # 1.5 * 3: exponents 0 + 1, a product of 4.5 = 1.125 * 2^2
    x = torch.zeros(1, dots.K, dtype=dots.dtype)
    x[0, i], x[0, j], x[0, m] = 1.5 * 2.0 ** (e - 1) * unit, unit, -1.5 * 2.0 ** (e - 1) * unit
    survived = float(dots(x, q)[0, 0]) != 0
    facts.exponents = "operands" if survived else "product"
    facts.evidence["exponents"] = f"beside 4.5 = 1.5*3 a term is cut as beside {4 if not survived else 2}"


def _tell_subnormals(dots: Dots, facts: Facts) -> None:
    if dots.dtype != torch.bfloat16:
        facts.evidence["ftz"] = "fp16 operands reach no fp32 subnormal: not decided"
        return
    n = min(SUBNORMAL_TERMS, dots.K - bool(dots.gaps))
    tiny = torch.full((dots.N, dots.K // dots.G), 2.0**-65)
    x = torch.zeros(3, dots.K, dtype=dots.dtype)
    x[0, :n] = 2.0**-65  # products of 2^-130, n of them
    x[1, 0] = 2.0**-130  # a subnormal operand
    sums = float(dots(x[:1], None, tiny)[0, 0])
    operand = float(dots(x[1:2], None, torch.full_like(tiny, 2.0**20))[0, 0])
    kept = sums == n * 2.0**-130, operand == 2.0**-110
    facts.ftz = "no" if all(kept) else "yes"
    parts = [f"{n} products of 2^-130 added up to {sums:.3g}", f"2^-130 * 2^20 gave {operand:.3g}"]
    facts.evidence["ftz"] = "; ".join(parts)
