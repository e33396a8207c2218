"""Bands of the shared expert and its gate: every finite bf16 gate, hand-made literals, and what must lie outside."""

from __future__ import annotations

import pytest
import torch

from moeracle.ref.bounds.band import Band, exactly, store
from moeracle.ref.bounds.shared_expert import gate_band, shared_expert_bands, sigmoid_band, tiny_dot_band
from moeracle.ref.contracts.contract import contract
from moeracle.ref.weights.layouts import pack_int4
from moeracle.ref.weights.weight import Int4Weight

BF16 = torch.bfloat16
RULES = contract("grouped,accumulator=fp32")
LN3 = 1.0986122886681098  # sigmoid(ln 3) = 3/4


def holds(band: Band, value: torch.Tensor) -> torch.Tensor:
    return (band.lo <= value) & (value <= band.hi)


def test_sigmoid_of_every_finite_bf16_by_three_formulas():
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(BF16)
    x = x[x.isfinite()].double()
    band = sigmoid_band(exactly(x), RULES)
    x32 = x.float()
    by_exp2 = 1 / (1 + torch.exp2(x32 * -1.4426950408889634))
    for got in (torch.sigmoid(x32), 1 / (1 + torch.exp(-x32)), by_exp2):
        bad = ~holds(band, got.double())
        assert not bad.any(), (x[bad][:3], got[bad][:3])
    tanh = 0.5 + 0.5 * torch.tanh(0.5 * x32)  # loses what is small
    assert (~holds(band, tanh.double())).sum() > 400
    known = x > -87  # below, exp may overflow and 0 is legal
    assert ((band.hi - band.lo)[known] <= band.hi[known] * 2.0**-14).all()
    assert not band.lo[x < -88].any()


def test_sigmoid_of_literals():
    band = sigmoid_band(exactly(torch.tensor([0.0, 128.0, -128.0, float("inf"), float("-inf"), LN3])), RULES)
    assert holds(band, torch.tensor(0.5))[0]
    assert band.lo[1:5].tolist() == band.hi[1:5].tolist() == [1.0, 0.0, 1.0, 0.0]
    stored = store(band, RULES, BF16)
    assert stored.lo.tolist() == stored.hi.tolist() == [0.5, 1.0, 0.0, 1.0, 0.0, 0.75]


def test_tiny_dot_of_literals():
    x, w = torch.tensor([[1.0, 2.0, -3.0], [0.0, 0.0, 0.0]]).to(BF16), torch.tensor([4.0, 0.5, 1.0]).to(BF16)
    band = tiny_dot_band(x, w, RULES, exact=True)
    assert band.lo.tolist() == band.hi.tolist() == [[2.0], [0.0]]
    loose = tiny_dot_band(x * 1.01, w, RULES)
    assert loose.hi[0, 0] > loose.lo[0, 0]
    # a unit of a matrix unit is twice as large; under a schedule there is one value, within any order's
    wider = tiny_dot_band(x * 1.01, w, contract("grouped"))
    assert wider.hi[0, 0] - wider.lo[0, 0] > 1.5 * (loose.hi[0, 0] - loose.lo[0, 0])
    scheduled = tiny_dot_band(x * 1.01, w, contract("grouped,schedule=fma"))
    assert torch.equal(scheduled.hi, scheduled.lo)
    assert loose.lo[0, 0] <= scheduled.lo[0, 0] <= loose.hi[0, 0]


@pytest.mark.parametrize(
    ("gate", "want"),
    [
        # D(y) = 1.0078125 and D(sigmoid) = 0.75, whose product 0.755859375 is a tie: to even
        ("fused", 0.7578125),
        # D(dot) = 1.1015625, whose sigmoid 0.7506 is stored as 0.75, too
        ("unfused", 0.7578125),
        # 1.00415 * 0.75 = 0.7531, stored once
        ("fp32", 0.75390625),
    ],
)
def test_gate_of_literals(gate, want):
    y = exactly(torch.tensor([[1.00390625 + 2.0**-12]]))
    band = gate_band(y, exactly(torch.tensor([[LN3]])), contract(f"grouped,gate={gate}"), BF16)
    stored = store(band, RULES, BF16)
    assert stored.lo.item() == stored.hi.item() == want


def test_gates_round_where_their_contract_says():
    y, dot = exactly(torch.full((1, 1), 3.0)), exactly(torch.full((1, 1), 0.3))
    of = {g: store(gate_band(y, dot, contract(f"grouped,gate={g}"), BF16), RULES, BF16) for g in ("fused", "unfused")}
    s = torch.sigmoid(torch.tensor(0.3, dtype=torch.float64))
    stored_dot = torch.tensor(0.3).to(BF16).double()
    assert of["fused"].lo.item() == (s.float().to(BF16) * 3).item()
    assert of["unfused"].lo.item() == (torch.sigmoid(stored_dot).float().to(BF16) * 3).item()


def test_a_whole_expert_by_hand():
    # H = I = 8, every scale 1: gate rows read x[0] * 128 for i = 0, up rows x[0]; down sends a[0] to every output.
    codes = torch.full((16, 8), 8, dtype=torch.uint8)
    codes[0, 0], codes[8, 0] = 15, 10  # 7 and 2
    down = torch.full((8, 8), 8, dtype=torch.uint8)
    down[:, 0] = torch.arange(5, 13)  # -3 .. 4
    make = lambda c: Int4Weight(pack_int4(c, "exllama"), torch.ones(len(c), 1, dtype=BF16), None, "exllama", -1)
    x = torch.zeros(2, 8, dtype=BF16)
    x[0, 0], x[1, 0] = 16.0, -16.0  # gates 112 and -112: silu is 112 and -0
    g = torch.zeros(8, dtype=BF16)
    bands = shared_expert_bands(x, make(codes), make(down), g, RULES, given={}, exact=True)
    seen = {stage: band for stage, _, band in bands}
    assert store(seen["h"], RULES, BF16).lo[:, [0, 8]].tolist() == [[112.0, 32.0], [-112.0, -32.0]]
    assert store(seen["a"], RULES, BF16).hi[0, 0].item() == 3584.0
    out = store(seen["out"], RULES, BF16)
    want = [3584.0 * n / 2 for n in range(-3, 5)]
    assert out.lo[0].tolist() == out.hi[0].tolist() == want
    assert out.lo[1].abs().max() < 1e-30


@pytest.mark.parametrize(
    "preset",
    [
        "wvsplitk",
        "wvsplitk,schedule=fma/t8/scalelast",
        "wmma",
        "wmma,gemm2_schedule=fma/t8/fused",
        "et_batched,weight=exact",
    ],
)
def test_the_gates_own_order_does_not_care_how_the_int4_weights_are_scaled(preset):
    g = torch.Generator().manual_seed(3)
    codes = [torch.randint(0, 16, (rows, 8), generator=g, dtype=torch.uint8) for rows in (16, 8)]
    up, down = (
        Int4Weight(pack_int4(c, "exllama"), torch.ones(len(c), 1, dtype=BF16), None, "exllama", -1) for c in codes
    )
    x, gate = (torch.randn(n, 8, generator=g).to(BF16) for n in (3, 1))
    a = torch.randn(3, 8, generator=g).to(BF16)

    def last(text):
        bands = shared_expert_bands(x, up, down, gate[0], contract(text), given={"a": a, "y": a})
        return next(band for stage, _, band in bands if stage == "out")

    for order in ("mul_add", "wgmma.k16.sm90"):
        found, want = last(f"{preset},gate_schedule={order}"), last(f"grouped,gate_schedule={order}")
        assert torch.equal(found.lo, want.lo)
        assert torch.equal(found.hi, want.hi)
