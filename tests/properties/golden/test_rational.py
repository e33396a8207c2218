"""Exact sums and one correct rounding, against the library's other rounding and against fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from moeracle.properties.golden.rational import dots, nearest, scaled
from moeracle.ref.rounding import round_to

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.parametrize("mode", ["rne", "rtz"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_agrees_with_the_other_implementation(dtype: torch.dtype, mode: str) -> None:
    g = torch.Generator().manual_seed(1)
    exponent = torch.randint(-160, 140, (4000,), generator=g).double()
    x = torch.randn(4000, generator=g, dtype=torch.float64) * torch.exp2(exponent)
    got = torch.tensor([nearest(v, dtype, mode) for v in x.tolist()], dtype=torch.float64)
    want = round_to(x, dtype, mode).double()
    assert torch.equal(got, want)
    assert torch.equal(torch.signbit(got), torch.signbit(want))  # what underflows keeps its sign


def test_ties_and_what_lies_just_beside_them() -> None:
    tie = 1 + Fraction(1, 1 << 8)  # halfway between 1 and the next bf16
    assert nearest(tie, torch.bfloat16) == 1.0
    assert nearest(tie + Fraction(1, 1 << 200), torch.bfloat16) == 1.0078125  # fp64 would have lost this
    assert nearest(tie - Fraction(1, 1 << 200), torch.bfloat16) == 1.0
    assert nearest(1 + 3 * Fraction(1, 1 << 8), torch.bfloat16) == 1.015625
    assert nearest(-tie, torch.bfloat16, "rtz") == -1.0


def test_the_ends_of_the_range() -> None:
    assert nearest(65520.0, torch.float16) == math.inf  # the tie above the largest
    assert nearest(Fraction(65520) - Fraction(1, 1 << 90), torch.float16) == 65504.0
    assert nearest(Fraction(10) ** 400, torch.float32) == math.inf
    assert nearest(-(Fraction(10) ** 400), torch.float32, "rtz") == -float.fromhex("0x1.fffffep127")
    assert nearest(Fraction(1, 1 << 150), torch.float32) == 0.0
    assert nearest(Fraction(3, 1 << 151), torch.float32) == 2.0**-149
    assert math.copysign(1.0, nearest(Fraction(-1, 1 << 200), torch.float16)) == -1.0


def test_a_sum_is_exact_where_fp64_is_not() -> None:
    a = torch.tensor([[2.0**100, 1.0, -(2.0**100)]], dtype=torch.float32)
    w = torch.ones(1, 3)
    assert 2.0**100 + 1.0 - 2.0**100 == 0.0  # one after another in fp64; a matrix product may add in another order
    assert dots(scaled(a), scaled(w)).fractions() == [[Fraction(1)]]


def test_the_order_of_a_sum_does_not_matter() -> None:
    g = torch.Generator().manual_seed(2)
    a, w = torch.randn(3, 64, generator=g).bfloat16(), torch.randn(5, 64, generator=g).bfloat16()
    order = torch.randperm(64, generator=g)
    forth, back = dots(scaled(a), scaled(w)), dots(scaled(a[:, order]), scaled(w[:, order]))
    assert forth.fractions() == back.fractions()
    near = torch.tensor([[float(v) for v in row] for row in forth.fractions()])
    assert torch.allclose(near, a.float() @ w.float().T, atol=1e-3)


def test_nothing_is_summed_that_is_not_finite() -> None:
    with pytest.raises(ValueError, match="not finite"):
        scaled(torch.tensor([1.0, float("nan")]))
    assert dots(scaled(torch.ones(0, 4)), scaled(torch.ones(2, 4))).whole.shape == (0, 2)
