"""Reading the weight path from outputs: which rounding the weight went through, and where scale and zero point enter.

One-hot rows: out = store(a * weight), one product. With an `a` of three bits, a weight that was rounded to D and one
that was not store different bits. Sums of two products then tell whether the scale enters before the sum (`exact`) or
after it (`post`), and a large activation on a zero weight tells whether the zero point was subtracted from each code
or from the whole sum (`hoisted`): there the large terms must cancel, and what stood beside them is lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from moeracle.ref.rounding import round_in_fp64

from ..common.generator import Stream
from .drive import Dots

MULTIPLIERS = (1.0, 1.25, 1.5, 1.75, -1.5, 5.0)
RIGHT = 0.999  # share of elements that a path must explain


@dataclass
class WeightPath:
    """What was found: contract fields, the share of one-hot elements that each candidate explains, and the evidence."""

    weight: str = ""
    weight_rounding: str = "rne"
    store_rounding: str = "rne"
    zero_offset: int = 0
    shares: dict[str, float] = field(default_factory=dict)
    evidence: dict[str, str] = field(default_factory=dict)
    same: list[str] = field(default_factory=list)


def weight_path(dots: Dots) -> WeightPath:
    """Return how a kernel forms its weights and rounds its stores."""
    found = WeightPath()
    shares = one_hot_shares(dots)
    found.shares = {f"{w} weight, {s} store": share for (w, s), share in shares.items()}
    best = max(shares.values())
    if best < RIGHT:
        found.evidence["weight"] = f"one-hot rows: no rounding explains them (best {best:.1%})"
        return found
    (way, store), *others = [pair for pair, share in shares.items() if share == best]
    found.store_rounding = store
    found.same = [f"{w} weight, {s} store" for w, s in others]
    tried = len(MULTIPLIERS)
    found.evidence["store_rounding"] = f"one-hot rows with {tried} multipliers: {store} explains {best:.2%}"
    if way != "unrounded":
        found.weight, found.weight_rounding = "cast", way
        found.evidence["weight"] = f"one-hot rows: the weight was rounded to D ({way}) before it was multiplied"
        return found
    offset = zero_offset_of(dots)
    if offset is not None:
        found.weight, found.zero_offset = "hoisted", offset
        found.evidence["weight"] = "a large activation on a zero weight drowns its neighbours: z*sum(a) is subtracted"
        found.evidence["zero_offset"] = f"it drowns them from the size at which codes of {offset}+u fill 24 bits"
        return found
    late = scaled_after_sum(dots)
    found.weight = "post" if late else "exact"
    said = "a sum of two products lost its last bit before the scale" if late else "no sum lost a bit before the scale"
    found.evidence["weight"] = f"one-hot rows: the weight was not rounded; {said}"
    return found


def random_weights(dots: Dots, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return q [N, K], any code less the middle, and scales [N, K/G] that use all bits of D."""
    N, K, G = dots.N, dots.K, dots.G
    q = torch.from_numpy(Stream(seed, "infer.q").below((N, K), 2 * dots.middle)).float() - dots.middle
    s = torch.from_numpy(Stream(seed, "infer.s").below((N, K // G), 1 << 10)).double()
    return q, (1 + s * 2.0**-10).to(dots.dtype)


def one_hot_shares(dots: Dots) -> dict[tuple[str, str], float]:
    """Return the share of one-hot outputs that each pair (weight rounding or "unrounded", store rounding) explains."""
    q, s = random_weights(dots, 1)
    columns = torch.linspace(0, dots.K - 1, min(dots.K, 64)).long()
    x = torch.zeros(len(columns) * len(MULTIPLIERS), dots.K, dtype=dots.dtype)
    rows = torch.arange(len(x)).reshape(len(columns), -1)
    for m, value in enumerate(MULTIPLIERS):
        x[rows[:, m], columns] = value
    got = dots(x, q, s).double()
    weight = (q.double() * s.double().repeat_interleave(dots.G, 1))[:, columns]  # [N, columns]
    shares = {}
    for way in ("unrounded", "rne", "rtz"):
        w = weight if way == "unrounded" else round_in_fp64(weight, dots.dtype, way)
        exact = torch.cat([(value * w.T)[:, None] for value in MULTIPLIERS], 1).reshape(len(x), -1)
        for store in ("rne", "rtz"):
            shares[way, store] = float((round_in_fp64(exact, dots.dtype, store) == got).double().mean())
    return shares


def zero_offset_of(dots: Dots) -> int | None:
    """Return 0, 128 or 1024 if the zero point is subtracted from the sum, or None if from each code.

    x is M where q = 0 and 1 where q = 1, both in one group. Codes of offset+u: raw = (8+o)M + 9+o and 8+o times
    sum(a) = M + 1 are both rounded to 24 bits, and their difference is 1 only while nothing is lost.
    """
    q = torch.zeros(dots.N, dots.K)
    q[:, 1] = 1
    unit = 1.0 if dots.dtype == torch.bfloat16 else 2.0**-14
    powers = list(range(8, 30))
    x = torch.zeros(len(powers), dots.K, dtype=dots.dtype)
    x[:, 0] = torch.tensor([2.0**e for e in powers]) * unit
    x[:, 1] = unit
    got = dots(x, q)[:, 0].double() / unit
    wrong = [e for e, value in zip(powers, got.tolist(), strict=True) if value != 1]
    if not wrong:
        return None
    # 8M + 9 no longer fits 24 bits from M = 2^21 on, 136M + 137 from 2^17, 1032M + 1033 from 2^14; cut sums may lose a
    # bit or two earlier. Of 8-bit codes 128M + 129 from 2^17; D has no 128+u there.
    return 1024 if wrong[0] < 15 else 128 if wrong[0] < 19 and dots.middle == 8 else 0


def scaled_after_sum(dots: Dots) -> bool:
    """Say whether a sum of two neighbours is rounded before it is scaled.

    With s = 255/128: (2^24 + 1) * s. A sum made first loses the 1; products made first keep it, because 2^24*s and s
    leave room for it. -2^24 in another group then cancels the rest.
    """
    fp16 = dots.dtype == torch.float16
    s = torch.full((dots.N, dots.K // dots.G), 255 / 128)
    unit = 2.0**-10 if fp16 else 1.0
    size = 2.0**24 * unit
    # With one scale a row, -2^24 must come after both, and not in their fused step: where that is, nobody knows yet.
    fars = [dots.K - 1] if dots.G < dots.K else [dots.K - 1, dots.K // 2, 2]
    rows = [(a, b, far) for far in fars for a, b in ((0, 1), (1, 0))]
    x = torch.zeros(len(rows), dots.K, dtype=dots.dtype)
    for row, (a, b, far) in enumerate(rows):
        x[row, a], x[row, b], x[row, far] = size, unit, -size
    lost = (dots(x, None, s) == 0).all(1).unflatten(0, (len(fars), 2)).all(1)
    return bool(lost.any())
