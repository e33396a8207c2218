"""accumulate from a start accumulator: as if its product had come first, wherever tiles chain."""

import pytest
import torch

from moeracle.ref import accumulate
from moeracle.ref.bitmodels.schedule import Schedule
from moeracle.ref.bitmodels.tensor_core import HOPPER, fused_dot
from support.sums import bits

CHAINED = ("wgmma.k16.sm90", "mma.m16n8k16.sm80/t32/reversed", "mfma.k16.cdna3", "fma", "mul_add.rz/t8/pairwise")


def operands(K=64, M=3, N=5):
    g = torch.Generator().manual_seed(7)
    a, w = torch.randn(M, K, generator=g).bfloat16(), torch.randn(N, K, generator=g).bfloat16()
    return a, w, torch.randn(M, N, generator=g) * 100


@pytest.mark.parametrize("text", CHAINED)
def test_two_halves_are_the_whole(text):
    a, w, start = operands()
    schedule = Schedule.parse(text)
    first = accumulate(a[:, :32], w[:, :32], schedule, start=start)
    whole = accumulate(a, w, schedule, start=start)
    assert bits(accumulate(a[:, 32:], w[:, 32:], schedule, start=first)) == bits(whole) or "reversed" in text
    assert not torch.equal(whole, accumulate(a, w, schedule))
    assert bits(accumulate(a, w, schedule, start=torch.zeros(3, 5))) == bits(accumulate(a, w, schedule))


def test_a_matrix_unit_aligns_the_start_with_the_products():
    a, w, start = operands()
    assert bits(accumulate(a, w, Schedule("wgmma.k16.sm90"), start=start)) == bits(fused_dot(a, w, HOPPER, start))
    one = torch.ones(1, 4).bfloat16()
    assert accumulate(one, one / 4, Schedule("fma"), start=torch.tensor([[2.0**24]])).item() == 2.0**24
    assert accumulate(one, one, Schedule("wgmma.k16.sm90"), start=torch.tensor([[2.0**25]])).item() == 2.0**25 + 4


def test_scaled_tiles_are_added_to_the_start():
    a, w, start = operands()
    scale = torch.full((5, 2), 0.5)
    got = accumulate(a, w, Schedule.parse("wgmma.k16.sm90/t32/fused"), scale=scale, start=start)
    parts = [accumulate(a[:, k : k + 32], w[:, k : k + 32], Schedule("wgmma.k16.sm90")) for k in (0, 32)]
    want = start
    for part in parts:
        want = (part.double() * 0.5 + want.double()).float()
    assert bits(got) == bits(want)


def test_many_rows_take_their_own_starts():
    a, w, start = operands(K=16, M=300, N=40)
    whole = accumulate(a, w, Schedule("wgmma.k16.sm90"), start=start)
    assert bits(whole) == bits(fused_dot(a, w, HOPPER, start))


@pytest.mark.parametrize("text", ["wgmma.k16.sm90/s2", "fma/t8/d2", "mul_add/t32/combine=pairwise", "fma/lanes32x2"])
def test_sums_that_start_more_than_once_refuse_it(text):
    a, w, start = operands()
    with pytest.raises(ValueError, match=r"start: got one with schedule .*, must be None unless tiles chain"):
        accumulate(a, w, Schedule.parse(text), start=start)


def test_mistakes():
    a, w, start = operands()
    with pytest.raises(ValueError, match=r"start: got torch.float32 \(5, 3\), must be torch.float32 \[M=3, N=5\]"):
        accumulate(a, w, Schedule("fma"), start=start.T)
    with pytest.raises(ValueError, match=r"start: got torch.bfloat16 \(3, 5\)"):
        accumulate(a, w, Schedule("fma"), start=start.bfloat16())
