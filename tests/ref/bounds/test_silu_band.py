"""The Band of silu in numbers: its error formula, its edges, and the corners of silu times up."""

import math

import pytest
import torch

from moeracle.ref.bounds.activation import activation_band, silu_mul_band
from moeracle.ref.bounds.band import Band, exactly
from moeracle.ref.contracts.contract import contract

BF16 = torch.bfloat16


def silu_in_numbers(g):
    """silu(g) and the error docs/numerics.md allows it, before fp32: from math, element by element."""
    sigma = 1 / (1 + math.exp(-g))
    return g * sigma, abs(g * sigma) * (8 + 1.2 * abs(g) * (1 - sigma)) * 2.0**-23


@pytest.mark.parametrize("g", [-86.0, -40.0, -20.0, -3.0, -0.5, -1e-3, 1e-20, 0.25, 1.0, 5.0, 17.0, 31.5])
def test_the_error_of_silu_is_the_formula(g):
    s, error = silu_in_numbers(g)
    band = activation_band(exactly(torch.tensor([g], dtype=torch.float64)), contract("grouped"))
    one_ulp = 2.0 ** (math.frexp(s)[1] - 24)
    assert float(band.lo) == pytest.approx(s - error, abs=one_ulp / 2 * 1.001)  # RN32 of it, and no more
    assert float(band.hi) == pytest.approx(s + error, abs=one_ulp / 2 * 1.001)


def test_where_silu_is_exact_where_it_vanishes_and_what_it_loses():
    rules, flush = contract("grouped"), contract("grouped,ftz=true")

    def ends(g, contract=rules):
        band = activation_band(exactly(torch.tensor([g], dtype=torch.float64)), contract)
        return float(band.lo), float(band.hi)

    assert ends(32.0) == (32.0, 32.0)
    assert ends(math.inf) == (math.inf, math.inf)
    assert ends(-900.0) == (0.0, 0.0)
    assert str(ends(-math.inf)) == "(nan, 0.0)"  # NaN or 0
    assert ends(31.99)[0] < 31.99 < ends(31.99)[1]
    assert ends(-87.2)[1] < 0  # nearer to zero than this, exp(-g) cannot overflow
    assert ends(-87.4)[0] < ends(-87.4)[1] == 0
    assert ends(2.0**-148) == (0.0, 2.0**-148)  # s is 2^-149, give or take one subnormal
    assert ends(-(2.0**-147)) == (-3 * 2.0**-149, -(2.0**-149))
    assert ends(2.0**-125)[0] > 0
    assert ends(-(2.0**-125))[1] < 0
    assert ends(2.0**-124.5, flush)[0] == 0
    assert ends(-(2.0**-124.5), flush)[1] == 0
    assert ends(2.0**-123, flush)[0] > 0


def test_a_wide_gate_beside_the_minimum_takes_its_ends():
    rules = contract("grouped")

    def band(lo, hi):
        return activation_band(Band(*(torch.tensor([g], dtype=torch.float64) for g in (lo, hi))), rules)

    for lo, hi in ((-1.27, -1.0), (-3.0, -1.29), (-5.0, 5.0), (0.5, 2.0)):
        ends = [activation_band(exactly(torch.tensor([g], dtype=torch.float64)), rules) for g in (lo, hi)]
        around = lo < -1.2785 and hi > -1.2784
        lowest = min(float(e.lo) for e in ends)
        assert float(band(lo, hi).hi) == max(float(e.hi) for e in ends)
        assert float(band(lo, hi).lo) == (pytest.approx(-0.27846479, abs=3e-7) if around else lowest)
        assert not around or float(band(lo, hi).lo) < lowest


def test_a_wide_h_takes_four_corners():
    rules = contract("et_batched")  # silu stays in fp32
    columns = [((40.0, 50.0), (-3.0, 2.0)), ((40.0, 50.0), (2.0, 3.0)), ((40.0, 50.0), (-3.0, -2.0))]
    lo = torch.tensor([[g[0] for g, _ in columns] + [u[0] for _, u in columns]], dtype=torch.float64)
    hi = torch.tensor([[g[1] for g, _ in columns] + [u[1] for _, u in columns]], dtype=torch.float64)
    band = silu_mul_band(Band(lo, hi), rules, BF16)
    assert band.lo.tolist() == [[-150.0, 80.0, -150.0]]
    assert band.hi.tolist() == [[100.0, 150.0, -80.0]]


def test_silu_is_stored_where_the_contract_rounds_it():
    h = torch.tensor([[1 + 2.0**-7, 1.0]], dtype=torch.float64)
    stored, kept = (silu_mul_band(exactly(h), contract(name), BF16) for name in ("grouped", "et_batched"))
    assert stored.lo.item() == stored.hi.item() == 0.73828125
    assert 0.7383 < kept.lo.item() < kept.hi.item() < 0.7384
