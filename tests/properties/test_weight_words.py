"""Words of the layout field: act-order, a short last group, scales of another dtype, w13's rows; signs of scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.optable import OPS
from moeracle.properties.cases.record import record_of
from moeracle.properties.cases.words import stored_rows
from moeracle.properties.faults import FAULTS
from moeracle.properties.golden.derive import derive
from moeracle.properties.hunt.must_run import must_run
from moeracle.properties.infer import infer
from moeracle.properties.judge import judge
from moeracle.properties.laws.weights import law_negative_scales
from moeracle.properties.simulate import simulated_kernel, simulation_of
from moeracle.properties.trial.trial import run_trial
from moeracle.ref.contracts.contract import contract
from moeracle.target.declaration import make_kernel
from moeracle.tensors.judge import judge_tensors

T = torch.Tensor
LINEAR = "int4_linear/T9-N16-K96-G{}/{}/{}+{}/-/{}/s1"
LAYER = "moe_w4a16/T5-E2-k2-H96-I96-G{}/bf16/gptq-v2+{}/uniform/normal/s2"
FORMS = (("act", 32), ("short", 64), ("act+short", 64), ("scale16", 32), ("scale32", 32))


@pytest.mark.parametrize(("words", "G"), FORMS)
@pytest.mark.parametrize("rules", ["grouped", "et_vecmat", "wvsplitk", "wmma"])
def test_simulations_and_derivations_are_legal(words: str, G: int, rules: str) -> None:
    """The simulation and the exact derivation are told apart from the reference only by roundings."""
    for text in (LINEAR.format(G, "bf16", "exllama-v1", words, "normal"), LAYER.format(G, words)):
        problem = Case.parse(text).build()
        stages = getattr(simulation_of(problem.case.op, contract(rules)), problem.case.op)(*problem.args.values())
        kept = {n: s for n, s in stages.items() if n in contract(rules).stores} if isinstance(stages, dict) else stages
        assert judge(problem, kept, rules, explain=False).status == "legal", text
        derived = derive(problem, contract(rules))
        kept = {n: s for n, s in derived.items() if n in contract(rules).stores or n == "out"}
        assert judge(problem, kept if isinstance(stages, dict) else kept["out"], rules, explain=False).status == "legal"


def linear(x: T, w: Any, bias: Any, columns: Any = None, scale: Any = None) -> T:
    """A kernel in plain torch: each column by its own group."""
    zeros, s = w.zeros(), (w.scale if scale is None else scale).float()
    z = torch.full_like(s, 8.0) if zeros is None else zeros.float()
    of = columns if columns is not None else w.group_of.long() if w.group_of is not None else torch.arange(w.K) // w.G
    W = ((w.codes().float() - z[:, of]) * s[:, of]).to(x.dtype).float()
    return (x.float() @ W.T).to(x.dtype)


WRONG: dict[str, Callable[[T, Any, Any], T]] = {
    "act": lambda x, w, b: linear(x, w, b, columns=torch.arange(w.K) // w.G),
    "short": lambda x, w, b: linear(x, w, b, columns=torch.arange(w.K) * w.scale.shape[1] // w.K),
    "scale16": lambda x, w, b: linear(x, w, b, scale=w.scale.to(x.dtype)),
    "scale32": lambda x, w, b: linear(x, w, b, scale=w.scale.to(x.dtype)),
}


@pytest.mark.parametrize(("word", "G"), [form for form in FORMS if "+" not in form[0]])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_kernel_that_reads_the_word_is_legal_and_one_that_does_not_is_seen(word: str, G: int, dtype: str) -> None:
    case = Case.parse(LINEAR.format(G, dtype, "gptq-v2", word, "normal"))
    kernel = make_kernel(linear, "int4_linear", contract="grouped", zeros=("sym", "v2"), weights=word)
    assert run_trial(kernel, case).status == "legal"
    same = (word, dtype) == ("scale16", "fp16")  # fp16 holds every bf16 scale
    assert run_trial(replace(kernel, fn=WRONG[word]), case, explain=False).status == ("legal" if same else "illegal")
    if word.startswith("scale"):  # the contract that names it
        cast = replace(kernel, fn=WRONG[word], contract=contract("grouped,scale_cast=true"))
        assert run_trial(cast, case).status == "legal"


@pytest.mark.parametrize("op", ["int4_linear", "dequantize_int4"])
def test_signs_of_scales_are_asked_of_every_kernel(op: str) -> None:
    text = {"int4_linear": LINEAR.format(32, "bf16", "gptq-sym", "act", "normal").replace("+act", ""),
            "dequantize_int4": "dequantize_int4/N16-K64-G16/bf16/gptq-v2/-/normal/s1"}[op]  # fmt: skip
    right = linear if op == "int4_linear" else (lambda w: w.dequantize().to(w.scale.dtype))
    lost = (
        (lambda x, w, b: linear(x, w, b, scale=w.scale.abs()))
        if op == "int4_linear"
        else (lambda w: replace(w, scale=w.scale.abs()).dequantize().to(w.scale.dtype))
    )
    for fn, status in ((right, "legal"), (lost, "illegal")):
        kernel = make_kernel(fn, op, contract="grouped", zeros=("sym", "v2"))
        verdict = law_negative_scales(kernel, Case.parse(text))
        assert verdict is not None
        assert verdict.status == status
        assert run_trial(kernel, Case.parse(text)).status == "legal"  # which no drawn scale shows


def test_a_word_that_a_kernel_does_not_declare_is_not_asked() -> None:
    plain = make_kernel(linear, "int4_linear", contract="grouped", layout="gptq")
    worded = make_kernel(linear, "int4_linear", contract="grouped", layout="gptq", weights=("act", "scale16"))
    case = Case.parse(LINEAR.format(32, "bf16", "gptq-sym", "act", "normal"))
    assert plain.why_not(case) == "weights are plain, not act"
    assert worded.why_not(case) is None
    assert {flag for case in must_run(worded) for flag in case.flags} >= {"act", "scale16"}
    assert not {flag for case in must_run(plain) for flag in case.flags} & {"act", "scale16"}
    with pytest.raises(ValueError, match=r"weights of int4_linear: got 'upgate', must be one of act, short, scale16"):
        make_kernel(linear, "int4_linear", weights="upgate")
    with pytest.raises(ValueError, match=r"weights: got act, silu_and_mul reads no int4 weight"):
        make_kernel(linear, "silu_and_mul", weights="act")


def layer(order: str, wrong: bool = False) -> Callable[..., dict[str, T]]:
    """A layer whose w13 has its rows, and whose h has its columns, in an order."""

    def kernel(x: T, w13: Any, w2: Any, tw: T, ids: T) -> dict[str, T]:
        flat, D = ids.reshape(-1), x.dtype
        dense = lambda w, e: w.expert(e).dequantize().to(D).float()
        h = torch.stack([x[r // ids.shape[1]].float() @ dense(w13, e).T for r, e in enumerate(flat.tolist())]).to(D)
        back = stored_rows(order, h.shape[1]).argsort()
        gate, up = (h if wrong else h[:, back]).float().chunk(2, 1)
        a = (torch.nn.functional.silu(gate).to(D).float() * up).to(D)
        y = torch.stack([a[r].float() @ dense(w2, e).T for r, e in enumerate(flat.tolist())]).to(D)
        out = (y.float() * tw.reshape(-1, 1)).view(*ids.shape, -1).sum(1).to(D)
        return {"h": h, "a": a, "y": y, "out": out}

    return kernel


@pytest.mark.parametrize("order", ["upgate", "interleaved"])
def test_rows_of_w13_in_another_order(order: str) -> None:
    case = Case.parse(LAYER.format(32, order))
    kernel = make_kernel(layer(order), "moe_w4a16", contract="grouped", zeros=("sym", "v2"), weights=order)
    verdict = run_trial(kernel, case)
    assert verdict.status == "legal"
    assert [stage.stage for stage in verdict.stages] == ["h", "a", "y", "out"]
    assert run_trial(replace(kernel, fn=layer(order, wrong=True)), case, explain=False).stage == "a"
    other = next(word for word in ("upgate", "interleaved") if word != order)
    assert run_trial(replace(kernel, fn=layer(other)), case, explain=False).stage == "a"
    assert kernel.why_not(Case.parse(LAYER.format(32, "act").replace("+act", ""))) == (
        f"rows of w13 are {order}, not gate before up"
    )
    asked = must_run(kernel)
    assert asked
    assert all(order in case.flags for case in asked)


def test_given_tensors_with_an_order_of_groups() -> None:
    problem = Case.parse(LINEAR.format(32, "bf16", "gptq-sym", "act", "normal")).build()
    x, w, _ = problem.args.values()
    assert judge_tensors("int4_linear", linear(x, w, None), x, w, None, contract="grouped").ok
    ignored = replace(w, group_of=None)
    assert not judge_tensors("int4_linear", linear(x, w, None), x, ignored, None, contract="grouped").ok
    far = replace(w, group_of=(w.group_of * 7 // 2).to(torch.int32))
    out = linear(x, w, None)
    with pytest.raises(ValueError, match=r"w.group_of: got 0..7, must be 0..2"):
        judge_tensors("int4_linear", out, x, far, None, contract="grouped")


EXPERTS = {
    "grouped_gemm": "grouped_gemm/T9-E4-k2-N16-K64-G32/bf16/gptq-v2+bias/uniform/{}/s1",
    "padded_gemm": "padded_gemm/T9-E4-k2-N16-K64-G32-B16/fp16/exllama-sym+bias/uniform+weight/{}/s2",
    "moe_w4a16": "moe_w4a16/T9-E4-k2-H64-I64-G32/bf16/gptq-v2+bias/uniform/{}/s1",
    "ungated": "moe_w4a16/T9-E4-k2-H64-I64-G32/fp16/exllama-v1+ungated/uniform/{}/s1",
    "both": "moe_w4a16/T9-E4-k2-H64-I64-G32/bf16/exllama-sym+bias+ungated/uniform/{}/s1",
}


@pytest.mark.parametrize("text", EXPERTS.values(), ids=EXPERTS)
@pytest.mark.parametrize("rules", ["gptq_awq", "vllm@0.33:marlin,activation=relu2", "et_vecmat,router_weight=input"])
def test_biases_of_experts_and_layers_without_up(text: str, rules: str) -> None:
    """Simulation and derivation are legal; without the bias, or with another expert's, nothing is."""
    for data in ("normal", "integers"):
        problem = Case.parse(text.format(data)).build()
        op = problem.case.op
        for fault, status in ((None, "legal"), ("F246", "illegal"), ("F247", "illegal")):
            if fault and "bias" not in problem.case.flags:
                continue
            made = simulation_of(op, contract(rules))
            made = FAULTS[fault].plant(made) if fault else made
            out = getattr(made, op)(*problem.args.values())
            assert judge(problem, out, rules, explain=False).status == status, (data, fault)
        if data == "normal":  # a square of whole gates overflows fp16
            derived = derive(problem, contract(rules))
            assert judge(problem, derived if isinstance(out, dict) else derived["out"], rules).status == "legal"


def test_the_place_of_a_bias_is_told_by_outputs() -> None:
    """A bias after the store, or after the router weight, is not the one that is added to the sum."""
    problem = Case.parse(EXPERTS["padded_gemm"].format("normal")).build()
    stored = simulation_of("padded_gemm", "gptq_awq,bias=stored").padded_gemm(*problem.args.values())
    assert judge(problem, stored, "gptq_awq,bias=stored", explain=False).status == "legal"
    assert judge(problem, stored, "gptq_awq", explain=False).status == "illegal"
    x, w, *blocks, weights, top_k = problem.args.values()
    plain = simulation_of("padded_gemm", "gptq_awq,stores=out").padded_gemm(
        x, replace(w, bias=None), *blocks, weights, top_k
    )
    ids = problem.truth["topk_ids"].flatten().long()
    late = (plain.float() + w.bias[ids].float()).to(x.dtype)  # after the router weight
    assert judge(problem, late, "gptq_awq,bias=stored", explain=False).status == "illegal"


def test_infer_finds_where_the_bias_of_experts_enters() -> None:
    kernel = simulated_kernel("grouped_gemm", "grouped,accumulator=fp32,bias=stored", "sequential", weights=("bias",))
    found = infer(kernel, k=64)
    assert found.explained, found.why_not
    assert found.contract.bias == "stored"


def test_a_layer_without_up_is_asked_alone_and_keeps_its_laws() -> None:
    """relu2_no_mul: h has I columns; every weight of w13 and w2 is read out, and all laws hold."""
    rules = "grouped,activation=relu2,accumulator=fp32"
    kernel = simulated_kernel("moe_w4a16", rules, weights=("ungated", "bias"))
    gated = Case.parse(LAYER.format(32, "act").replace("+act", ""))
    assert kernel.why_not(gated) == "rows of w13 are ungated, not gate before up"
    asked = must_run(kernel)
    assert len(asked) > 20
    assert all("ungated" in case.flags for case in asked)
    assert any("bias" in case.flags for case in asked)
    read = next(case for case in asked if case.data == "onehot2")
    for activation, status in (("relu2", "legal"), ("silu", "illegal")):
        fn = simulation_of("moe_w4a16", f"grouped,activation={activation},accumulator=fp32").moe_w4a16
        assert {run_trial(replace(kernel, fn=fn), case).status for case in (asked[0], read)} == {status}
    silu = simulated_kernel("moe_w4a16", "grouped,accumulator=fp32", weights=("ungated",))
    verdicts = [law(silu, asked[0]) for law in OPS["moe_w4a16"].laws]  # type: ignore[attr-defined]
    assert {verdict.status for verdict in verdicts if verdict is not None} == {"legal"}
    assert sum(verdict is not None for verdict in verdicts) >= 6
    problem = asked[0].build()
    assert tuple(problem.args["w13"].shape[1:]) == (problem.case.I, problem.case.H)
    stages = record_of("moe_w4a16").reference(problem, torch.float64)
    assert torch.allclose(stages["a"], torch.nn.functional.silu(stages["h"].float()).to(stages["a"].dtype), rtol=0.02)
    with pytest.raises(ValueError, match="got upgate and ungated, must have one of them"):
        Case.parse(LAYER.format(32, "upgate+ungated"))


def test_padding_of_a_vocabulary_may_hold_anything_and_reaches_no_token() -> None:
    """NaN scales of rows that are no tokens: their logits are open, a kernel whose columns they reach is illegal."""
    kernel, tokens = simulated_kernel("int8_lm_head", "int8_lm_head", "sequential"), 30
    for flags in ("padvocab", "bias+padvocab"):
        case = Case.parse(f"int8_lm_head/T5-V40-K64-G32/bf16/-/-/normal+{flags}/s1")
        verdict = run_trial(kernel, case)
        assert verdict.status == "legal"
        assert verdict.stages[0].judged == 5 * tokens
        zeroed = lambda *args: kernel.fn(*args).masked_fill(torch.arange(40) >= tokens, 0.0)
        assert run_trial(replace(kernel, fn=zeroed), case).status == "legal"
        reached = lambda x, codes, scale, bias: kernel.fn(x, codes, scale.roll(-1, 0), bias)
        assert run_trial(replace(kernel, fn=reached), case).status == "illegal"
        problem = case.build()
        assert judge(problem, derive(problem, kernel.contract)["out"], kernel.contract).status == "legal"
        laws = [law(kernel, case) for law in OPS["int8_lm_head"].laws]  # type: ignore[attr-defined]
        assert {found.status for found in laws if found is not None} == {"legal"}
    assert any("padvocab" in asked.flags for asked in must_run(kernel))


@pytest.mark.parametrize("fault", ["F248", "F249", "F259"])
def test_faults_of_8_bit_codes(fault: str) -> None:
    """Each is illegal in the first cases of a kernel that declares them, whose codes are 8-bit ones in every case."""
    kernel = FAULTS[fault].kernel("int4_linear")
    cases = must_run(kernel)
    assert cases
    assert {case.bits for case in cases} == {8}
    problem = cases[0].build()
    assert judge(problem, kernel.fn(*problem.args.values()), "grouped", explain=False).status == "illegal"
    right = simulation_of("int4_linear", contract("grouped")).int4_linear(*problem.args.values())
    assert judge(problem, right, "grouped", explain=False).status == "legal"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exllama-sym+w8", "got 'exllama', of 4-bit codes alone, must be one of gptq, compressed_tensors, bytes, int8"),
        ("bytes-sym", "got 'bytes', of 8-bit codes alone, must be one of exllama.*, or the word w8"),
        ("gptq-asym+w8", "case zero point of gptq with codes of 8 bits: got 'asym'"),
    ],
)
def test_a_layout_of_the_other_width_names_those_there_are(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Case.parse(f"int4_linear/T5-N16-K64-G32/bf16/{text}/-/normal/s1")
