"""A schedule's one value lies in the interval told by its partial sums, and is followed where that holds two."""

import pytest
import torch

from moeracle.ref.bitmodels import tensor_core
from moeracle.ref.bitmodels.schedule import Schedule
from moeracle.ref.bitmodels.tensor_core import AMPERE, HOPPER, fused_dot, fused_elements
from moeracle.ref.bounds.chained import chained_band, chunk_of, scheduled_elements
from moeracle.ref.bounds.dot import DotWeights, scheduled_rows
from moeracle.ref.bounds.scheduled import Operands
from moeracle.ref.contracts.contract import contract

from .test_near import BF16, DATA, FP16, operands

CHAINS = (
    "wgmma.k16.sm90", "wgmma.k16.sm90/t64", "mma.m16n8k16.sm80", "mma.m16n8k16.sm90/t32/reversed",
    "wgmma.k16.sm90/t64/bits4.1.2.8.16.32", "mma.m16n8k8.sm90", "wgmma.k16.sm90/p8",
)  # fmt: skip
NO_CHAINS = (
    "fma", "wgmma.k16.sm90/s2", "wgmma.k16.sm90/t32/d2", "wgmma.k16.sm90/t64/descending", "mfma.k16.cdna3",
    "wgmma.k16.sm90/t64/combine=sequential", "wgmma.k16.sm90/reversed",
)  # fmt: skip
COUNTS = [2, 3]


def weights(w):
    w = torch.cat([w, w.flip(1)])
    return DotWeights(w.double(), w.float().abs(), Operands(w))


@pytest.mark.parametrize("text", CHAINS)
def test_the_value_lies_in_the_interval_and_single_elements_are_those_of_rows(text):
    schedule, inside = Schedule.parse(text), 0
    for dtype in (BF16, FP16):
        rules = contract(f"grouped,schedule={text}")
        for data in DATA:
            a, w = operands(data, dtype)
            w = weights(w)
            value = scheduled_rows(a.double(), w, rules, dtype, COUNTS)
            band, small = chained_band(a, w, schedule, COUNTS)
            assert bool(((band.lo <= value) & (value <= band.hi))[small].all()), (data, dtype)
            inside += int(small.sum())
            m, n = torch.arange(5).repeat_interleave(4), torch.arange(4).repeat(5)
            few = scheduled_elements(a, w.operands.values, schedule, m, (m >= 2).long(), n)
            assert torch.equal(few.view(5, 4).nan_to_num(7.0), value.nan_to_num(7.0)), (data, dtype)
    assert inside > 200


def test_other_schedules_are_followed_everywhere():
    a, w = operands("normal", BF16)
    assert [chunk_of(Schedule.parse(text)) for text in NO_CHAINS] == [None] * len(NO_CHAINS)
    assert chained_band(a, weights(w), Schedule.parse("fma"), COUNTS) is None


@pytest.mark.parametrize("core", ["wgmma.k16.sm90", "mma.m16n8k16.sm80"])
def test_the_interval_is_nearly_attained(core):
    """After 1, every product is cut away: a bound of a third of the size would not hold the value."""
    a, w = torch.full((1, 4096), 2.0**-13, dtype=BF16), torch.full((1, 1, 4096), 1.99 * 2.0**-13, dtype=BF16)
    a[0, 0] = w[..., 0] = 1
    schedule = Schedule.parse(core)
    w = DotWeights(w.double(), w.float().abs(), Operands(w))
    band, small = chained_band(a, w, schedule, [1])
    value = scheduled_elements(a, w.operands.values, schedule, *torch.zeros(3, 1).long())
    assert bool(small.all())
    assert float(value) == 1
    assert 0.34 < float((band.mid - value).abs() / band.radius) <= 1


def test_most_sums_of_ordinary_data_need_not_be_followed():
    g = torch.Generator().manual_seed(1)
    a, w = torch.randn(32, 1024, generator=g).to(BF16), torch.randn(1, 64, 1024, generator=g).to(BF16)
    w = DotWeights(w.double(), w.float().abs(), Operands(w))
    band, small = chained_band(a, w, Schedule.parse("wgmma.k16.sm90/t64"), [32])
    one = small & (band.lo.float().to(BF16) == band.hi.float().to(BF16))
    assert float(one.double().mean()) > 0.8


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_ordinary_data_give_the_same_bits_by_the_short_way(dtype, monkeypatch):
    short, long = [], []
    data = [tuple(x[..., ::4] for x in operands(name, dtype)) for name in DATA]
    a, w = (x.clone() for x in data[0])
    a[2, 5] = torch.inf
    data.append((a, (w.float() * 2.0**-60).to(dtype)))  # an infinity whose exponent a small weight hides
    calls = tensor_core._ordinary
    ways = []
    monkeypatch.setattr(tensor_core, "_ordinary", lambda *args: ways.append(calls(*args)) or ways[-1])
    every = torch.arange(5).repeat_interleave(4), torch.arange(4).repeat(5)
    for found in (short, long):
        for a, w in data:
            for core, step in ((HOPPER, 16), (AMPERE, 8), (HOPPER, 5)):
                found.append(fused_dot(a, w[0], core, step=step))
                found.append(fused_dot(a, w[0], core, torch.full((5, 4), 0.3), step=step))
                found.append(fused_elements(a, w[0], *every, core, step=step).view(5, 4))
        monkeypatch.setattr(tensor_core, "_ordinary", lambda *args: False)
    assert any(ways)
    assert not all(ways)
    for i, (x, y) in enumerate(zip(short, long, strict=True)):
        assert torch.equal(x.view(torch.int32), y.view(torch.int32)), i
    assert len(short) == 9 * len(data)
