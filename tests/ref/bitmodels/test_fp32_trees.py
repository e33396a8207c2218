"""fp32 trees: orders by hand, fused multiply-add against exact fractions, special values, and the GEMV's lanes."""

import math
import random
from fractions import Fraction

import pytest
import torch

from moeracle.ref.bitmodels.accumulate import Schedule, accumulate
from moeracle.ref.bitmodels.fp32_trees import fma32, mul32, odd_sum, reduce32, truncate_fp32
from moeracle.ref.rounding import round_to
from support.sums import bits, of_terms, row

BF16, FP32 = torch.bfloat16, torch.float32


# By hand: 2^24 swallows a 1 (tie to even) but not a 2.

BIG = 2.0**24


@pytest.mark.parametrize(
    ("order", "want"),
    [
        ("sequential", 0x4B800000),  # ((2^24+1)+1)+1 = 2^24
        ("reversed", 0x4B800002),  # ((1+1)+1)+2^24 = 2^24+3, a tie between +2 and +4: to even, +4
        ("pairwise", 0x4B800001),  # (2^24+1) + (1+1) = 2^24+2
        ("halves", 0x4B800001),  # (2^24+1) + (1+1) = 2^24+2
    ],
)
def test_orders(order, want):
    assert of_terms([BIG, 1.0, 1.0, 1.0], Schedule("mul_add", order=order)) == want


def test_pairwise_and_halves_are_different_trees():
    terms = [BIG, 1.0, -BIG, 1.0]
    assert of_terms(terms, Schedule("mul_add", order="halves")) == 0x40000000  # (2^24-2^24) + (1+1)
    assert of_terms(terms, Schedule("mul_add", order="pairwise")) == 0x3F800000  # 2^24 + (1-2^24): the latter is exact
    odd = torch.tensor([BIG, 1.0, 1.0])[:, None]
    assert bits(reduce32(odd, "pairwise")) == [0x4B800000]  # (2^24+1) + 1
    assert bits(reduce32(odd, "halves")) == [0x4B800000]  # (2^24+1) + 1: the middle one waits
    odd = torch.tensor([1.0, BIG, 1.0])[:, None]
    assert bits(reduce32(odd, "halves")) == [0x4B800001]


def test_fused_or_not():
    x = 1 + 2.0**-12
    a, w = row(1.0, x), row(-1.0, x)
    assert bits(accumulate(a, w, Schedule("fma"))) == bits(torch.tensor([2.0**-11 + 2.0**-24]))
    assert bits(accumulate(a, w, Schedule("mul_add"))) == bits(torch.tensor([2.0**-11]))
    assert bits(accumulate(row(1.0, -1.0), row(1.0, 2.0**-30), Schedule("fma.rz"))) == [0x3F7FFFFF]
    assert bits(accumulate(row(1.0, -1.0), row(1.0, 2.0**-30), Schedule("fma"))) == [0x3F800000]


# Against exact arithmetic.


def test_fused_multiply_add_is_rounded_once():
    rng = random.Random(1)
    x, y, z = (
        torch.tensor([rng.choice([1, -1]) * rng.getrandbits(24) * 2.0 ** rng.randint(-70, 10) for _ in range(4000)])
        for _ in range(3)
    )
    z[::2] = -(x * y)[::2] * (1 + 2.0**-20)
    for rounding in ("rne", "rtz"):
        got = fma32(x, y, z, rounding)
        for u, v, c, r in zip(x.tolist(), y.tolist(), z.tolist(), got.tolist(), strict=True):
            exact = Fraction(u) * Fraction(v) + Fraction(c)
            error = abs(exact - Fraction(r))
            here = torch.tensor(r)
            up, down = (Fraction(torch.nextafter(here, torch.tensor(s * math.inf)).item()) for s in (1, -1))
            if rounding == "rne":
                assert error <= abs(exact - up)
                assert error <= abs(exact - down)
            else:
                assert abs(Fraction(r)) <= abs(exact) < max(abs(up), abs(down))


def test_cutting_to_fp32_is_the_reference_rounding():
    g = torch.Generator().manual_seed(2)
    x = torch.randn(50_000, dtype=torch.float64, generator=g)
    x = x * torch.exp2(torch.randint(-170, 120, x.shape, generator=g).double())
    assert torch.equal(truncate_fp32(x).float(), round_to(x, FP32, "rtz"))
    assert bits(mul32(row(3e38), row(-3e38), "rtz")) == [0xFF7FFFFF]  # toward zero stays finite
    assert bits(mul32(row(3e38), row(-3e38))) == [0xFF800000]


def test_odd_sum_keeps_what_a_second_rounding_must_see():
    x = torch.tensor([1.0 + 2.0**-24], dtype=torch.float64)
    tiny = torch.tensor([2.0**-80], dtype=torch.float64)
    assert (x + tiny).float().item() == 1.0  # a tie, seen twice
    assert odd_sum(x, tiny).float().item() == 1 + 2.0**-23
    assert odd_sum(x, -tiny).float().item() == 1.0
    assert odd_sum(torch.tensor([math.inf], dtype=torch.float64), x).item() == math.inf


def test_special_values_of_trees():
    for schedule in (
        Schedule("fma"),
        Schedule("mul_add", order="pairwise"),
        Schedule("fma", order="lanes", lanes=16, chunk=2),
    ):
        assert accumulate(row(math.inf, 1.0), row(1.0, 1.0), schedule).item() == math.inf
        assert math.isnan(accumulate(row(math.inf, math.inf), row(1.0, -1.0), schedule).item())
        assert math.isnan(accumulate(row(math.inf, 1.0), row(0.0, 1.0), schedule).item())
        assert accumulate(row(3e38, 3e38), row(1.0, 1.0), schedule).item() == math.inf
        assert bits(accumulate(row(2.0**-75, 0.0), row(2.0**-74, 1.0), schedule)) == [1]
    assert bits(accumulate(row(-0.0, -0.0), row(1.0, 1.0), Schedule("mul_add", order="pairwise"))) == [0]
    assert bits(accumulate(row(-0.0, -0.0), row(1.0, 1.0), Schedule("mul_add"))) == [0]  # accumulators begin at +0
    assert bits(reduce32(torch.tensor([[-0.0], [-0.0]]), "pairwise")) == [0x80000000]
    huge = torch.tensor([[2.0**80]], dtype=BF16)
    assert accumulate(huge, huge, Schedule("fma")).item() == math.inf


# Lanes: docs/formats.md section 4.


def test_lanes_tree_is_the_published_one():
    g = torch.Generator().manual_seed(4)
    terms = torch.randn(8, 32, generator=g) * torch.exp2(torch.randint(-6, 6, (8, 32), generator=g).float())
    rows = []
    for r in (0, 1):
        a = terms[:, 16 * r : 16 * r + 16].T
        even = ((a[14] + a[6]) + (a[10] + a[2])) + ((a[12] + a[4]) + (a[8] + a[0]))
        odd = ((a[15] + a[7]) + (a[11] + a[3])) + ((a[13] + a[5]) + (a[9] + a[1]))
        rows.append(odd + even)
    got = accumulate(terms, torch.ones(1, 32), Schedule("fma", order="lanes", lanes=32, chunk=1))
    assert bits(got) == bits(rows[1] + rows[0])
    assert bits(got) != bits(accumulate(terms, torch.ones(1, 32), Schedule("fma", order="halves")))


def test_lane_ownership():
    # Lane 0 of 32 with chunks of 2 owns k = 0, 1, 64, 65. It sums 1 + 1 + 2^24 - 2^24 by itself.
    terms = [0.0] * 128
    terms[0], terms[1], terms[64], terms[65] = 1.0, 1.0, BIG, -BIG
    assert of_terms(terms, Schedule("fma", order="lanes", lanes=32, chunk=2)) == 0x40000000
    terms[0], terms[1], terms[64], terms[65] = BIG, 1.0, 1.0, -BIG  # 2^24 swallows both
    assert of_terms(terms, Schedule("fma", order="lanes", lanes=32, chunk=2)) == 0
    assert of_terms(terms, Schedule("fma", order="lanes", lanes=32, chunk=1)) == 0x3F800000
