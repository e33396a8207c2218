"""exp, silu and softmax against Python's decimal module, which rounds its own exp correctly to any number of digits."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import partial

import pytest
import torch

from moeracle.properties.golden import transcendental
from moeracle.properties.golden.rational import nearest
from moeracle.properties.golden.transcendental import activated_fp32, exp_bounds, ln2_bounds, sigmoid_fp32, softmax_fp32
from moeracle.ref.activation import SILU

DIGITS = 90
silu_fp32 = partial(activated_fp32, how=SILU)
GATES = [sign * m * 2.0**e for sign in (1, -1) for m in (1.0, 1.2890625, 1.9921875) for e in range(-133, 7)]


def exact_exp(x: float | Fraction) -> Fraction:
    """e^x to DIGITS digits."""
    with localcontext() as context:
        context.prec = DIGITS
        n, d = Fraction(x).as_integer_ratio()
        return Fraction((Decimal(n) / Decimal(d)).exp())


@pytest.mark.parametrize("x", [0, 1, -1, Fraction(1, 3), Fraction(-7, 5), 87, -87, 200, -200, Fraction(5, 1 << 140)])
def test_exp_lies_within_its_bounds_and_these_are_narrow(x: int | Fraction) -> None:
    for bits in (16, 96, 250):
        low, high = exp_bounds(Fraction(x), bits)
        true, slack = exact_exp(x) * (1 << bits), Fraction(1, 10 ** (DIGITS - 2))
        assert low <= true * (1 + slack)
        assert high >= true * (1 - slack)
        assert high - low <= 2 + true / (1 << bits)


def test_ln2_lies_within_its_bounds() -> None:
    with localcontext() as context:
        context.prec = DIGITS
        true = Fraction(Decimal(2).ln())
    for bits in (8, 64, 256):
        low, high = ln2_bounds(bits)
        assert low <= true * (1 << bits) <= high


def test_silu_is_correctly_rounded_at_every_exponent() -> None:
    wrong = []
    for gate in GATES:
        exact = Fraction(gate)
        if silu_fp32(gate) != nearest(exact / (1 + exact_exp(-exact)), torch.float32):
            wrong.append(gate)
    assert wrong == []


def test_a_library_silu_would_not_do() -> None:
    gates = torch.tensor(GATES, dtype=torch.float64)
    naive = (gates.float() * torch.sigmoid(gates.float())).double().tolist()
    assert sum(a != silu_fp32(g) for a, g in zip(naive, GATES, strict=True)) > 20


def test_few_bits_to_begin_with_end_in_the_same_value(monkeypatch: pytest.MonkeyPatch) -> None:
    want = [transcendental._activated.__wrapped__(g, SILU) for g in GATES[100:130]]
    rows = softmax_fp32([0.5, -3.25, 2.0, 2.0])
    monkeypatch.setattr(transcendental, "FIRST_BITS", 4)
    assert [transcendental._activated.__wrapped__(g, SILU) for g in GATES[100:130]] == want
    assert softmax_fp32([0.5, -3.25, 2.0, 2.0]) == rows


def test_special_gates() -> None:
    assert [silu_fp32(g) for g in (math.inf, 128.0, 3e38)] == [math.inf, 128.0, 3e38]
    for gate in (-0.0, -math.inf, -3e38, -128.0):
        assert math.copysign(1.0, silu_fp32(gate)) == -1.0
        assert silu_fp32(gate) == 0
    assert math.copysign(1.0, silu_fp32(0.0)) == 1.0  # asked after -0: a cache must not mix them up
    assert math.isnan(silu_fp32(math.nan))


def test_softmax_is_correctly_rounded() -> None:
    g = torch.Generator().manual_seed(3)
    for row in (torch.randn(6, 9, generator=g) * 6).double().tolist():
        powers = [exact_exp(Fraction(l) - Fraction(max(row))) for l in row]
        assert softmax_fp32(row) == [nearest(p / sum(powers), torch.float32) for p in powers]


def test_special_rows() -> None:
    inf, nan = math.inf, math.nan
    assert softmax_fp32([0.0, -inf, 0.0]) == [0.5, 0.0, 0.5]
    assert softmax_fp32([5.0] * 3) == [nearest(Fraction(1, 3), torch.float32)] * 3
    for row in ([0.0, nan, 1.0], [nan, 0.0], [inf, 0.0], [-inf, -inf]):
        assert softmax_fp32(row) == [0.0] * len(row)
    assert softmax_fp32([0.0, -1000.0]) == [1.0, 0.0]


def test_sigmoid_is_correctly_rounded() -> None:
    for x in GATES[::7]:
        exact = Fraction(x)
        assert sigmoid_fp32(x) == nearest(1 / (1 + exact_exp(-exact)), torch.float32), x
    assert [sigmoid_fp32(x) for x in (0.0, -0.0, 300.0, -300.0, 40)] == [0.5, 0.5, 1.0, 0.0, 1.0]
