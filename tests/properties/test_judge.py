"""No false alarm: every order, contract, recipe, dtype and routing of a legal kernel is legal, twice, under guard."""

import itertools

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.optable import OPS
from moeracle.properties.judge import judge
from moeracle.properties.simulate import Simulation
from moeracle.properties.trial.trial import run_trial
from moeracle.ref.contracts.contract import PRESETS, contract
from support.orders import NEAREST, TENSOR_CORE
from support.simulate import SILU, Simulated

FORMS = (("exllama", "sym"), ("awq", "asym"), ("gptq", "v1"), ("compressed_tensors", "asym"), ("nibble_pairs", "asym"))
DIMS = {
    "int4_linear": {"T": 5, "N": 24, "K": 96, "G": 32},
    "grouped_gemm": {"T": 5, "E": 4, "k": 2, "N": 16, "K": 96, "G": 32},
    "padded_gemm": {"T": 5, "E": 4, "k": 2, "N": 16, "K": 96, "G": 32, "B": 4},
    "silu_and_mul": {"T": 6, "I": 40},
    "moe_unpermute": {"T": 6, "E": 5, "k": 3, "K": 24},
    "int8_lm_head": {"T": 4, "V": 20, "K": 96, "G": 32},
    "moe_w4a16": {"T": 5, "E": 3, "k": 2, "H": 32, "I": 48, "G": 16},
    "dequantize_int4": {"E": 2, "N": 16, "K": 64, "G": 32},
    "unpack_int4": {"E": 2, "N": 16, "K": 64, "G": 32},
}
GEMM = ("grouped", "gptq_awq", "marlin", "wvsplitk", "wmma", "moe_wna16", "et_vecmat")
IN_PARTS = ("vllm@0.33:awq_gemm", "grouped,accumulator=fp32,parts=k32/dtype/add=dtype/join=pairwise,store_rounding=rtz")
LATER = (
    "gptq_awq,accumulator=fp32,parts=2/up16/dtype,silu=rtz",
    "grouped,accumulator=fp32,store_rounding=h:rtz+a:rne+y:rtz+out:rtz_bf16,router_weight=input_dtype",
    "gptq_awq,accumulator=fp32,topk_sum=dtype,slot_order=any,deterministic=false,scale_cast=true",
)
RULES = {
    "int4_linear": (*GEMM, *IN_PARTS),
    "grouped_gemm": (*GEMM, IN_PARTS[1]),
    "padded_gemm": (*GEMM, *IN_PARTS),
    "silu_and_mul": ("grouped", "megakernel"),
    "moe_unpermute": ("grouped", "gptq_awq"),
    "int8_lm_head": ("int8_lm_head",),
    "moe_w4a16": (*(p for p in PRESETS if p != "int8_lm_head"), "grouped,router_weight=input", *LATER),
    "dequantize_int4": ("grouped",),
    "unpack_int4": ("grouped",),
}


def orders_of(rules):
    if rules == "moe_wna16":
        return ("chains",)
    return NEAREST if contract(rules).accumulator == "fp32" else TENSOR_CORE


@pytest.mark.parametrize(("op", "rules"), [(op, rules) for op in DIMS for rules in RULES[op]])
def test_a_kernel_that_keeps_its_contract_is_never_illegal(op, rules):
    fields, legal = OPS[op], 0
    orders, stages = itertools.cycle(orders_of(rules)), itertools.cycle((None, "hay", "h", "ay"))
    silu, routings, forms = itertools.cycle(SILU), itertools.cycle(fields.routings), itertools.cycle(FORMS)
    recipes = list(itertools.product(fields.data, fields.dtypes))
    if len(RULES[op]) >= len(fields.dtypes):  # each of them under some contract: in the next dtype under the next one
        recipes = recipes[RULES[op].index(rules) % len(fields.dtypes) :: len(fields.dtypes)]
    for seed, (data, dtype) in enumerate(recipes):
        layout, zero = next(forms) if fields.weight else ("", "")
        case = Case.of(
            op, dtype=dtype, data=data, routing=next(routings), seed=seed, layout=layout, zero=zero, **DIMS[op]
        )
        kernel = Simulated(op, rules, next(orders), next(stages), next(silu))
        verdict = run_trial(kernel, case, explain=False)
        assert verdict.status in ("legal", "vacuous"), (kernel, verdict.text())
        assert all(s.max_ratio <= 1 for s in verdict.stages), (kernel, str(case), verdict.stages)
        legal += verdict.ok
    assert legal >= 0.75 * len(recipes)  # the rest would let zeros pass


BORDERS = [
    "moe_w4a16/T0-E3-k2-H32-I32-G16/bf16/exllama-sym/uniform/normal/s1",
    "moe_w4a16/T1-E1-k1-H32-I32-G-1/fp16/exllama-rdna/uniform/normal/s2",
    "moe_w4a16/T4-E3-k1-H32-I32-G16/bf16/exllama-sym+pad32/empty/normal+strided/s3",
    "moe_w4a16/T9-E4-k2-H32-I32-G16/bf16/exllama-sym/ignored/normal/s4",
    "moe_w4a16/T1-E4-k2-H32-I32-G16/bf16/exllama-sym/ignored/normal/s13",
    "moe_w4a16/T4-E2-k4-H32-I32-G16/fp16/exllama-unpacked/repeat/integers/s5",
    "grouped_gemm/T0-E3-k2-N16-K32-G16/bf16/exllama-sym/uniform/normal/s1",
    "grouped_gemm/T7-E5-k2-N16-K32-G-1/bf16/exllama-sym/uniform+ep2/normal+strided/s2",
    "grouped_gemm/T7-E5-k2-N16-K32-G8/fp16/exllama-v2/ignored+ep2/outliers/s3",
    "padded_gemm/T0-E3-k2-N16-K32-G16-B4/bf16/exllama-sym/uniform/normal/s1",
    "padded_gemm/T7-E5-k2-N16-K32-G16-B16/bf16/exllama-sym/uniform+ep2+weight/normal/s2",
    "padded_gemm/T7-E5-k2-N16-K32-G16-B1/fp16/exllama-sym/ignored+weight/wide/s3",
    "padded_gemm/T5-E2-k3-N16-K32-G16-B4/fp16/exllama-sym/repeat+ep2/integers/s4",
    "int4_linear/T0-N16-K32-G16/bf16/exllama-sym/-/normal+bias/s1",
    "int4_linear/T3-N16-K32-G16/fp16/gptq-v2/-/integers+bias+strided/s2",
    "int4_linear/T3-N16-K32-G16/bf16/exllama-sym/-/onehot+bias/s3",
    "int8_lm_head/T0-V9-K32-G16/bf16/-/-/normal/s1",
    "int8_lm_head/T3-V9-K48-G-1/fp16/-/-/normal+bias+strided/s2",
    "silu_and_mul/T0-I5/bf16/-/-/normal/s1",
    "moe_unpermute/T0-E3-k2-K5/bf16/-/uniform/normal/s1",
    "moe_unpermute/T7-E3-k1-K5/fp16/-/ignored/normal/s2",
    "moe_unpermute/T5-E6-k3-K128/fp16/-/ignored/cancelling/s1915",  # y times a weight is rounded to fp32, then to D
    "dequantize_int4/N8-K32-G-1/fp16/gptq-v1/-/subnormal/s1",
    "unpack_int4/N8-K26-G13/bf16/nibble_pairs-asym/-/normal/s1",
]


@pytest.mark.parametrize("text", BORDERS)
def test_borders_are_legal(text):
    case = Case.parse(text)
    for rules, stages in (("grouped", "hay"), ("gptq_awq", None), ("wvsplitk", "hy"), ("wmma", "h"), ("marlin", "y")):
        rules = OPS[case.op].default_contract if case.op == "int8_lm_head" else rules
        verdict = run_trial(Simulated(case.op, rules, stages=stages), case)
        assert verdict.status == ("vacuous" if "subnormal" in text and not verdict.ok else "legal"), verdict.text()
        assert (verdict.judged == 0) == (case.sizes.get("T") == 0)


ONE_GROUP = [
    "moe_w4a16/T5-E3-k2-H48-I32-G-1/bf16/exllama-sym/uniform/normal/s10",
    "moe_w4a16/T5-E3-k2-H48-I32-G-1/fp16/exllama-sym/uniform/integers/s15",  # sums without their scale overflow fp16
    "int4_linear/T5-N24-K96-G-1/bf16/exllama-sym/-/normal+bias/s1",
    "padded_gemm/T7-E5-k2-N16-K32-G-1-B4/bf16/exllama-sym/uniform+weight/normal/s2",
]


@pytest.mark.parametrize("text", ONE_GROUP)
@pytest.mark.parametrize(
    "rules",
    [
        "vllm@0.33:marlin",
        "gptq_awq,accumulator=fp32,parts=2/up16/dtype,one_group=after_store,bias=stored",
        "grouped,accumulator=fp32,parts=2/up16/dtype,store_rounding=rtz",
    ],
)
def test_one_scale_a_row_parts_and_router_weights_meet_legally(rules, text):
    case = Case.parse(text)
    for order in NEAREST:
        assert run_trial(Simulated(case.op, rules, order), case).ok


def test_nan_is_legal_where_an_infinity_met_a_zero_and_nowhere_else():
    case = Case.parse("shared_expert/T5-H48-I32-G-1/fp16/exllama-sym/-/integers+gate/s15")
    problem, rules = case.build(), "vllm@0.33:marlin"
    out = Simulation(rules).shared_expert(*problem.args.values())
    assert bool(out["out"].isnan().any())
    assert judge(problem, out, rules).ok
    for planted in (0.0, torch.inf):
        assert judge(problem, out | {"out": out["out"].nan_to_num(planted)}, rules, explain=False).status == "illegal"
    out["out"][0] = torch.nan
    assert judge(problem, out, rules, explain=False).status == "illegal"


@pytest.mark.parametrize("rules", ["vllm@0.33:awq_gemm", "grouped,accumulator=fp32,parts=3/dtype,store_rounding=rtz"])
def test_a_shared_experts_gate_is_no_part_of_its_gemms(rules):
    case = Case.parse("shared_expert/T5-H96-I48-G16/fp16/exllama-sym/-/normal+gate/s11")
    problem = case.build()
    out = Simulation(rules).shared_expert(*problem.args.values())
    assert judge(problem, out, rules).ok
    assert judge(problem, out["out"], rules).ok


def test_exact_data_have_one_legal_value():
    for data in ("integers", "samesign", "onehot"):
        case = Case.of("int4_linear", T=4, N=16, K=64, G=32, data=data)
        kernel = Simulated("int4_linear")
        verdict = run_trial(kernel, case)
        assert verdict.ok
        assert verdict.exact == verdict.judged == 64
    case = Case.of("int8_lm_head", T=4, V=16, K=64, G=32, data="integers")
    verdict = run_trial(Simulated("int8_lm_head", "int8_lm_head"), case)
    assert verdict.exact == verdict.judged == 64


def test_a_fused_layer_is_exact_end_to_end_on_integers():
    case = Case.of("moe_w4a16", T=4, E=3, k=2, H=32, I=32, G=16, data="integers")
    for rules in ("grouped", "et_vecmat", "gptq_awq"):
        verdict = run_trial(Simulated("moe_w4a16", rules), case)
        assert verdict.ok
        assert verdict.exact == verdict.judged == 4 * 32


def test_rdna_is_exact_only_where_all_products_have_one_sign():
    linear = {"T": 4, "N": 16, "K": 64, "G": 32}
    for data, exact in (("samesign", 64), ("integers", 0)):
        verdict = run_trial(Simulated("int4_linear", "wvsplitk"), Case.of("int4_linear", data=data, **linear))
        assert verdict.ok
        assert verdict.exact == exact, data


def test_conditioned_says_which_stages_were_judged_from_the_kernels_own_input():
    case = Case.of("moe_w4a16", T=5, E=3, k=2, H=32, I=48, G=16)
    told = lambda stages: {
        s.stage: s.conditioned for s in run_trial(Simulated("moe_w4a16", stages=stages), case).stages
    }
    assert told("hay") == {"h": True, "a": True, "y": True, "out": True}
    assert told("hy") == {"h": True, "y": False, "out": True}
    assert told(None) == {"out": False}
    linear = run_trial(Simulated("int4_linear"), Case.of("int4_linear", T=2, N=8, K=32, G=32))
    assert linear.stages[0].conditioned


def test_stages_are_judged_a_few_ulp_wide_and_the_end_alone_wider():
    case = Case.of("moe_w4a16", T=5, E=3, k=2, H=128, I=128, G=32)
    all_stages = run_trial(Simulated("moe_w4a16", stages="hay"), case)
    only_out = run_trial(Simulated("moe_w4a16"), case)
    assert max(s.width_ulp for s in all_stages.stages) == 0
    assert only_out.stages[0].width_ulp >= 1


def test_a_case_without_signal_is_refused_as_vacuous_and_never_called_legal():
    kernel = Simulated("moe_w4a16", "grouped,accumulator=dtype", "eights")
    case = Case.of("moe_w4a16", T=4, E=3, k=2, H=64, I=64, G=32, data="cancelling")
    verdict = run_trial(kernel, case)
    assert (verdict.status, verdict.stage, verdict.ok) == ("vacuous", "out", False)
    assert verdict.reason == "zeros would pass as out: the case has too little signal to judge by"
    assert judge(case, torch.zeros(4, 64, dtype=torch.bfloat16), "grouped,accumulator=dtype").status == "vacuous"


def test_zeros_are_legal_where_nothing_else_is():
    none_chosen = Case.of("moe_w4a16", T=1, E=4, k=1, H=32, I=32, G=16, routing="ignored").build()
    none_chosen.args["topk_ids"].fill_(-1)
    verdict = judge(none_chosen, torch.zeros(1, 32, dtype=torch.bfloat16))
    assert verdict.ok
    assert verdict.judged == 32
    assert judge(none_chosen, torch.full((1, 32), 2.0**-133, dtype=torch.bfloat16)).status == "illegal"


def test_sums_that_may_overflow_before_the_scale_are_not_judged():
    case = Case.of("int8_lm_head", T=4, V=20, K=96, G=32, data="subnormal", seed=1)
    verdict = run_trial(Simulated("int8_lm_head", "int8_lm_head"), case)
    assert verdict.status == "vacuous"
    assert "overflow" in verdict.reason


def test_the_environment_changes_nothing_and_is_left_alone():
    case = Case.of("int4_linear", T=5, N=256, K=256, G=32)
    kernel = Simulated("int4_linear", order="matmul")
    plain = run_trial(kernel, case)
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("medium")
    try:
        again = judge(case.build(), kernel.fn(*case.build().args.values()))
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
    assert again.stages[0].width_ulp == plain.stages[0].width_ulp
    assert again.ok
