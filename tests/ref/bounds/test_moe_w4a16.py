"""Bands through silu and the whole layer: every fp32 form of silu passes, and wrong ones fail."""

import pytest
import torch

from moeracle.ref import Int4Weight, moe_w4a16, pack_int4
from moeracle.ref.bounds import moe_w4a16 as interval_moe
from moeracle.ref.bounds.activation import activation_band, silu_mul_band
from moeracle.ref.bounds.band import Band, exactly, store
from moeracle.ref.bounds.moe_w4a16 import batches, layer_bands
from moeracle.ref.contracts.contract import contract
from moeracle.ref.ops.moe_w4a16 import rows_by_expert
from moeracle.ref.rounding import round_to
from support.simulate import SILU, Simulated

BF16, FP16 = torch.bfloat16, torch.float16


def every_finite(dtype):
    x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    return x[x.isfinite()]


def illegal_share(values, band):
    return float((~((band.lo <= values) & (values <= band.hi))).double().mean())


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("form", SILU)
def test_every_form_of_silu_passes_on_every_gate(dtype, form):
    gate = every_finite(dtype)
    rules = contract("grouped")
    legal = store(activation_band(exactly(gate), rules), rules, dtype)
    assert illegal_share(SILU[form](gate.float()).to(dtype).double(), legal) == 0
    assert float((legal.lo != legal.hi).double().mean()) < 0.005  # and hardly any gate has two legal values


@pytest.mark.parametrize("wrong", ["tanh", "slope", "gelu", "relu"])
def test_wrong_activations_fail(wrong):
    gate = every_finite(BF16)
    x = gate.float()
    form = {
        "tanh": 0.5 * x * (1 + torch.tanh(0.5 * x)),  # cancels below -8: 353 of 65,280 gates
        "slope": x * torch.sigmoid(1.005 * x),
        "gelu": torch.nn.functional.gelu(x),
        "relu": torch.relu(x),
    }[wrong]
    rules = contract("grouped")
    legal = store(activation_band(exactly(gate), rules), rules, BF16)
    share = illegal_share(form.to(BF16).double(), legal)
    assert share > (0.004 if wrong == "tanh" else 0.01)


def test_a_wide_gate_covers_the_minimum():
    wide = Band(torch.tensor([-2.0], dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64))
    band = activation_band(wide, contract("grouped"))
    assert float(band.lo) <= -0.27846454276107374
    assert float(band.hi) >= -1 / (1 + torch.e)


def test_gates_of_128_are_relu():
    h = torch.tensor([[128.0, -128.0, 384.0, 3.0, 5.0, -7.0]])
    band = silu_mul_band(exactly(h), contract("grouped"), BF16)
    assert torch.equal(band.lo, band.hi)
    assert band.lo.abs().tolist() == [[384.0, 0.0, 2688.0]]


def layer(seed, T=9, E=4, k=2, H=64, I=32, dtype=BF16):
    g = torch.Generator().manual_seed(seed)

    def weight(N, K):
        codes = torch.randint(0, 16, (E, N, K), generator=g, dtype=torch.uint8)
        scale = (torch.rand(E, N, K // 32, generator=g) / 40 + 0.01).to(dtype)
        return Int4Weight(pack_int4(codes, "exllama"), scale, None, "exllama", 32)

    ids = torch.stack([torch.randperm(E, generator=g)[:k] for _ in range(T)]).int()
    return torch.randn(T, H, generator=g).to(dtype), weight(2 * I, H), weight(H, I), torch.rand(T, k, generator=g), ids


def simulate(problem, rules="grouped"):
    """The stages of a plain kernel that keeps a contract."""
    return Simulated("moe_w4a16", rules, "matmul", stages="hay", silu="torch").fn(*problem)


def illegal(problem, output, rules, given):
    x, *_ = problem
    count = {}
    for stage, rows, band in layer_bands(*problem, rules, given=given):
        if stage in output:
            legal, got = store(band, rules, x.dtype), output[stage][rows].double()
            count[stage] = count.get(stage, 0) + int((~((legal.lo <= got) & (got <= legal.hi))).sum())
    return count


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("conditioned", [True, False])
def test_a_legal_layer_is_legal_stage_by_stage_and_end_to_end(dtype, conditioned):
    rules = contract("grouped")
    for seed in range(4):
        problem = layer(seed, dtype=dtype)
        stages = simulate(problem)
        given = {s: stages[s] for s in "hay"} if conditioned else {}
        output = stages if conditioned else {"out": stages["out"]}
        assert set(illegal(problem, output, rules, given).values()) == {0}


def test_uncast_weights_break_the_cast_contract_at_h_and_only_from_there():
    problem = layer(0, T=33)
    stages = simulate(problem, "grouped,weight=exact")
    count = illegal(problem, stages, contract("grouped"), {s: stages[s] for s in "hay"})
    assert count["h"] > 100
    assert count["y"] > 100
    assert count["a"] == count["out"] == 0  # judged from the kernel's own h and y


@pytest.mark.parametrize(("preset", "stage"), [("marlin", "y"), ("gptq_awq", "y"), ("et_batched", "a")])
def test_other_contracts_do_not_fit(preset, stage):
    problem = layer(1, T=33)
    stages = simulate(problem)
    assert illegal(problem, stages, contract(preset), {s: stages[s] for s in "hay"})[stage] > 0


def test_the_reference_lies_inside_its_own_bands():
    problem = layer(2)
    stages = {}
    moe_w4a16(*problem, dtype=torch.float64, stages=stages)
    rules = contract("et_vecmat,stores=out,router_weight=unpermute")
    out = {"out": round_to(stages["out"], BF16)}
    assert illegal(problem, out, rules, {}) == {"out": 0}


def test_rows_by_expert():
    ids = torch.tensor([[2, 0], [-1, 2], [1, 2]])
    assert [(e, r.tolist()) for e, r in rows_by_expert(ids)] == [(0, [1]), (1, [4]), (2, [0, 3, 5])]
    local = rows_by_expert(ids, torch.tensor([-1, 0, 1], dtype=torch.int32))
    assert [(e, r.tolist()) for e, r in local] == [(0, [4]), (1, [0, 3, 5])]


def test_batches_keep_every_row_in_order_and_are_no_larger_than_asked():
    rows = [(0, torch.arange(3)), (2, torch.arange(3, 12)), (3, torch.arange(12, 13)), (7, torch.arange(13, 15))]
    found = [[(e, r.tolist()) for e, r in batch] for batch in batches(rows, 4)]
    assert found == [
        [(0, [0, 1, 2])],
        [(2, [3, 4, 5])],
        [(2, [6, 7, 8])],
        [(2, [9, 10, 11])],
        [(3, [12]), (7, [13, 14])],
    ]
    assert list(batches([], 4)) == []
    singles = [(e, torch.tensor([e])) for e in range(6)]
    assert [len(batch) for batch in batches(singles, 2)] == [2, 2, 2]
    assert len(list(batches(rows, 18))) == 1


def test_large_weights_go_expert_by_expert_and_give_the_same(monkeypatch):
    problem = layer(3, T=17)
    rules = contract("grouped")

    def bands():
        seen = {}
        for stage, _, band in layer_bands(*problem, rules, given={}):
            seen.setdefault(stage, []).append(band)
        return {stage: torch.cat([torch.stack(band) for band in found], 1) for stage, found in seen.items()}

    together = bands()
    monkeypatch.setattr(interval_moe, "SMALL_WEIGHT", 0)
    apart = bands()
    assert all(torch.equal(together[stage], apart[stage]) for stage in ("h", "a", "y", "out"))
    monkeypatch.setattr(interval_moe, "AT_ONCE", 64)  # and so do pieces
    pieces = bands()
    assert all(torch.equal(together[stage], pieces[stage]) for stage in ("h", "a", "y", "out"))
