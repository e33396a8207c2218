"""A hoisted zero point in lane order, and entering by fused multiply-add: against a loop in fp32 scalars."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from moeracle.ref.bitmodels.accumulate import accumulate
from moeracle.ref.bitmodels.schedule import Schedule


def fma(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """x*y + z rounded once: exact as a fraction, then to fp32 by comparing its two neighbours."""
    exact = Fraction(x.item()) * Fraction(y.item()) + Fraction(z.item())
    near = torch.tensor(float(exact), dtype=torch.float32)
    candidates = [torch.nextafter(near, torch.tensor(side)) for side in (-torch.inf, torch.inf)] + [near]
    gaps = [abs(Fraction(c.item()) - exact) for c in candidates]
    best = min(gaps)
    tied = [c for c, gap in zip(candidates, gaps, strict=True) if gap == best]
    return next((c for c in tied if int(c.view(torch.int32)) % 2 == 0), tied[0])


def by_hand(
    a: torch.Tensor, w: torch.Tensor, s: torch.Tensor, z: torch.Tensor, chunk: int, fused: bool
) -> torch.Tensor:
    """One output: 32 lanes, chunk by chunk, then the row tree and row 1 + row 0."""
    K, G = len(a), len(a) // len(s)
    lanes = [torch.tensor(0.0)] * 32
    for start in range(0, K, chunk):
        lane, g = start // chunk % 32, start // G
        dot, ones = torch.tensor(0.0), torch.tensor(0.0)
        for k in range(start, start + chunk):
            dot, ones = fma(a[k], w[k], dot), ones + a[k]
        part = fma(ones, -z[g], dot) if fused else dot - ones * z[g]
        lanes[lane] = fma(part, s[g], lanes[lane])
    rows = []
    for row in (lanes[16:], lanes[:16]):
        while len(row) > 1:
            half = len(row) // 2
            row = [row[i + half] + row[i] for i in range(half)]
        rows.append(row[0])
    return rows[0] + rows[1]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("chunk", [16, 32])
def test_a_hoisted_zero_point_in_lane_order(chunk: int, fused: bool) -> None:
    make = torch.Generator().manual_seed(chunk)
    a = torch.randn(1, 1024, generator=make).to(torch.bfloat16)
    codes = torch.randint(128, 144, (3, 1024), generator=make).to(torch.bfloat16)
    scale = (torch.rand(3, 16, generator=make) / 64).to(torch.bfloat16)
    zero = torch.randint(128, 144, (3, 16), generator=make).float()
    schedule = Schedule.parse(f"fma/lanes32x{chunk}/fused" + ("/zerofused" if fused else ""))
    got = accumulate(a, codes, schedule, scale=scale, zero=zero)
    want = [by_hand(a[0].float(), codes[n].float(), scale[n].float(), zero[n], chunk, fused) for n in range(3)]
    assert torch.equal(got[0], torch.stack(want))


def test_fused_and_rounded_twice_differ_and_say_so() -> None:
    make = torch.Generator().manual_seed(1)
    wide = torch.exp2(torch.randint(-8, 9, (4, 512), generator=make).float())  # else 136 * sum(a) is exact
    a = (torch.randn(4, 512, generator=make) * wide).to(torch.bfloat16)
    codes = torch.randint(128, 144, (64, 512), generator=make).to(torch.bfloat16)
    scale, zero = torch.full((64, 4), 0.01).to(torch.bfloat16), torch.full((64, 4), 136.0)
    for order in ("lanes32x16", "t128"):
        once, twice = (Schedule.parse(f"fma/{order}/fused{tail}") for tail in ("/zerofused", ""))
        sums = [accumulate(a, codes, schedule, scale=scale, zero=zero) for schedule in (once, twice)]
        assert not torch.equal(*sums)
        assert torch.allclose(*sums, rtol=1e-3, atol=0.1)


def test_the_text_says_it() -> None:
    text = "fma/lanes32x16/fused/zerofused"
    schedule = Schedule.parse(text)
    assert schedule.zero_fused
    assert schedule.scale_fused
    assert str(schedule) == text
    with pytest.raises(ValueError, match=r"schedule part: got 'zerofuse'.*zerofused"):
        Schedule.parse("fma/lanes32x16/zerofuse")
