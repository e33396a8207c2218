"""Sensitivity: faults planted into legal results are illegal, at the stage where they are, under the right tier."""

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.judge import judge
from moeracle.ref.contracts.contract import contract
from moeracle.ref.rounding import round_to
from moeracle.ref.weights.weight import Int4Weight
from support.simulate import SILU, Simulated, to

LAYER = "moe_w4a16/T6-E3-k2-H64-I64-G16/bf16/exllama-sym/uniform/normal/s3"
NORMAL = Case.parse(LAYER)


def change(w, **parts):
    """The same weight with other codes or scales."""
    codes, scale = parts.get("codes", w.codes()), parts.get("scale", w.scale)
    return Int4Weight.from_codes(codes, scale, None, layout=w.layout)


def next_group(w):
    return change(w, scale=w.scale.roll(-1, -1))


def last_group(w):
    scale = w.scale.clone()
    scale[..., -1] = scale[..., -2]
    return change(w, scale=scale)


def swapped_nibbles(w):
    return change(w, codes=w.codes().unflatten(-1, (-1, 2)).flip(-1).flatten(-2))


def dropped_k(w, k=5):
    codes = w.codes().clone()
    codes[..., k] = 8  # stands for 0
    return change(w, codes=codes)


def gate_for_up(w):
    return change(w, codes=w.codes().roll(w.N // 2, -2), scale=w.scale.roll(w.N // 2, -2))


WEIGHT_FAULTS = {  # fault: (which weight, change, first illegal stage)
    "F29 next group's scale": ("w13", next_group, "h"),
    "F29 in GEMM2": ("w2", next_group, "y"),
    "F30 last group's scale": ("w13", last_group, "h"),
    "F08 nibbles swapped": ("w13", swapped_nibbles, "h"),
    "F27 one k dropped": ("w13", dropped_k, "h"),
    "F44 one k dropped in GEMM2": ("w2", dropped_k, "y"),
    "F31 gate and up swapped": ("w13", gate_for_up, "h"),
}


@pytest.mark.parametrize("fault", WEIGHT_FAULTS)
@pytest.mark.parametrize("stages", ["hay", None])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_faults_in_reading_the_weights(fault, stages, dtype):
    name, broken, stage = WEIGHT_FAULTS[fault]
    problem = NORMAL.replace(dtype=dtype).build()
    args = {**problem.args, name: broken(problem.args[name])}
    output = Simulated("moe_w4a16", stages=stages).fn(*args.values())
    verdict = judge(problem, output, "grouped", explain=False)
    assert (verdict.status, verdict.tier) == ("illegal", "interval")
    assert verdict.stage == (stage if stages else "out")


class Broken(Simulated):
    """A simulated layer with one fault in its arithmetic."""

    fault = ""

    def slots(self, terms, dtype):
        if self.fault == "F14 weight twice":
            terms = terms * self.weights[:, :, None]
        if self.fault == "F33 weight missing":
            terms = terms / self.weights[:, :, None]
        if self.fault == "F34 weights in the wrong slots":
            terms = terms / self.weights[:, :, None] * self.weights.flip(1)[:, :, None]
        if self.fault == "F35 slot dropped":
            terms = terms.clone()
            terms[3, 1] = 0
        if self.fault == "F16 sum in D":
            return to(dtype, to(dtype, terms[:, 0]) + to(dtype, terms[:, 1])).to(dtype)
        if self.fault == "F42 truncated":
            return round_to(terms.double().sum(1), dtype, "rtz")
        return super().slots(terms, dtype)

    def moe_w4a16(self, x, w13, w2, topk_weights, topk_ids):
        self.weights = topk_weights
        return super().moe_w4a16(x, w13, w2, topk_weights, topk_ids)


OUT_FAULTS = [
    "F14 weight twice",
    "F33 weight missing",
    "F34 weights in the wrong slots",
    "F35 slot dropped",
    "F16 sum in D",
    "F42 truncated",
]


@pytest.mark.parametrize("fault", OUT_FAULTS)
def test_faults_in_the_sum_over_slots_show_at_out_alone(fault):
    problem = NORMAL.build()
    kernel = Broken("moe_w4a16", stages="hay")
    kernel.fault = fault
    verdict = judge(problem, kernel.fn(*problem.args.values()), "grouped", explain=False)
    assert (verdict.status, verdict.tier, verdict.stage) == ("illegal", "interval", "out")
    assert [s.illegal for s in verdict.stages[:3]] == [0, 0, 0]
    if fault == "F35 slot dropped":
        assert "of token 3" in verdict.summary[1]


@pytest.mark.parametrize(("form", "fault"), [("gelu", "F37"), ("slope", "F38"), ("tanh", "seen on large gates")])
def test_faults_in_the_activation_show_at_a(form, fault, monkeypatch):
    forms = {
        "gelu": torch.nn.functional.gelu,
        "slope": lambda x: x * torch.sigmoid(1.005 * x),
        "tanh": lambda x: 0.5 * x * (1 + torch.tanh(0.5 * x)),
    }
    monkeypatch.setitem(SILU, form, forms[form])
    data = "wide" if form == "tanh" else "normal"
    problem = Case.of("silu_and_mul", T=64, I=64, data=data).build()
    out = Simulated("silu_and_mul", silu=form).fn(*problem.args.values())
    assert judge(problem, out, explain=False).status == "illegal", fault


@pytest.mark.parametrize("rules", ["wvsplitk", "et_vecmat", "marlin", "et_batched", "grouped,weight_rounding=rtz"])
def test_a_kernel_that_keeps_another_contract_is_illegal(rules):
    """Cast against exact weights, router weight in D, silu rounded once, truncated weights (F43)."""
    case = Case.parse("moe_w4a16/T16-E3-k2-H64-I64-G16/bf16/exllama-sym/uniform/normal/s3")
    problem = case.build()
    kernel = Simulated("moe_w4a16", "grouped", stages="hay")
    given = {s: t for s, t in kernel.fn(*problem.args.values()).items() if s in contract(rules).stores}
    verdict = judge(problem, given, rules, explain=False)
    assert verdict.status == "illegal"
    assert verdict.tier in ("interval", "bits")


@pytest.mark.parametrize("data", ["integers", "onehot"])
def test_on_exact_data_one_ulp_is_a_bit_fault(data):
    problem = Case.of("int4_linear", T=4, N=16, K=64, G=32, data=data).build()
    out = Simulated("int4_linear").fn(*problem.args.values())
    bits = out.view(torch.int16)
    bits[2, 7] += 1
    verdict = judge(problem, out)
    assert (verdict.tier, verdict.illegal) == ("bits", 1)
    assert "(1 ulp outside)" in verdict.summary[0]
    assert "out[token 2, n 7]" in verdict.summary[0]


def test_an_infinity_of_the_wrong_sign_and_any_nan_is_nonfinite():
    problem = Case.of("silu_and_mul", T=2, I=4, dtype="fp16").build()
    problem.args["h"][0] = torch.tensor([3e4, 3e4, -1, 1, 3e4, -3e4, 1, 1]).half()
    out = Simulated("silu_and_mul").fn(*problem.args.values())
    assert out[0, :2].tolist() == [float("inf"), float("-inf")]
    assert judge(problem, out).ok
    for wrong in (-out[0, 0], torch.tensor(float("nan")).half(), torch.tensor(65504.0).half()):
        broken = out.clone()
        broken[0, 0] = wrong
        verdict = judge(problem, broken)
        assert (verdict.tier, verdict.illegal) == ("nonfinite", 1)
    assert "got 65504, legal [inf, inf] (not finite)" in verdict.summary[0]


def test_infinite_gates_have_their_limits():
    problem = Case.of("silu_and_mul", T=1, I=3, dtype="fp16").build()
    problem.args["h"][0] = torch.tensor([float("inf"), float("-inf"), float("inf"), 2, 3, -1]).half()
    right = torch.tensor([[float("inf"), -0.0, float("-inf")]]).half()
    assert judge(problem, right).ok
    assert judge(problem, -right).tier == "nonfinite"


def test_int8_lm_head_faults():
    problem = Case.of("int8_lm_head", T=4, V=24, K=64, G=16, flags=("bias",)).build()
    kernel = Simulated("int8_lm_head", "int8_lm_head")
    a = problem.args
    faults = {
        "F45": {**a, "scale": a["scale"].roll(1, 1)},
        "F46": {**a, "scale": a["scale"][:, :1].expand(-1, 4)},
        "F47": {**a, "codes": torch.where(a["codes"] == -128, -127, a["codes"])},
        "no bias": {**a, "bias": None},
    }
    assert bool((a["codes"] == -128).any())
    for fault, args in faults.items():
        assert judge(problem, kernel.fn(*args.values()), explain=False).status == "illegal", fault
    assert judge(problem, kernel.fn(*a.values())).ok


def test_rows_of_experts_elsewhere_must_be_zero_in_padded_gemm():
    problem = Case.parse("padded_gemm/T6-E4-k2-N16-K32-G16-B4/bf16/exllama-sym/uniform+ep2/normal/s2").build()
    out = Simulated("padded_gemm").fn(*problem.args.values())
    idle = (problem.truth["topk_ids"] >= 2).flatten().nonzero().flatten()
    assert bool((out[idle] == 0).all())
    out[idle[0], 3] = 1.0  # F19, F26: garbage where nothing was to be done
    verdict = judge(problem, out)
    assert (verdict.tier, verdict.illegal) == ("bits", 1)
    assert f"out[row {int(idle[0])}, n 3]: got 1, legal [0, 0]" in verdict.summary[0]


def test_f36_the_wrong_expert_for_one_block_is_named():
    problem = Case.parse("grouped_gemm/T9-E4-k2-N16-K64-G32/bf16/exllama-sym/balanced/normal/s2").build()
    args = dict(problem.args)
    codes = args["w"].codes().clone()
    codes[2] = codes[3]
    args["w"] = change(args["w"], codes=codes)
    verdict = judge(problem, Simulated("grouped_gemm").fn(*args.values()))
    assert verdict.status == "illegal"
    assert "of expert 2" in verdict.summary[1]
