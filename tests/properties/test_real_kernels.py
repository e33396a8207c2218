"""Kernels as they are shipped: legal under the contract that describes them, illegal under each narrower one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.changes import with_args
from moeracle.properties.cases.optable import OPS
from moeracle.properties.common.verdict import Verdict
from moeracle.properties.golden.derive import derive
from moeracle.properties.judge import judge
from moeracle.properties.laws.batch import law_batch_invariance, legal_nans
from moeracle.properties.simulate import Simulation
from moeracle.properties.trial.trial import run_trial
from moeracle.ref.contracts.contract import PRESETS, contract
from moeracle.ref.contracts.presets import KNOWN
from moeracle.target.declaration import ZEROS, make_kernel
from support.legal_kernels import linear, moe
from support.real_kernels import REAL, Real

DRAWS = 8


def judged(real: Real, fn: Callable[..., Any], rules: str) -> list[Verdict]:
    problems = [Case.parse(text).build() for text in real.cases]
    return [judge(problem, fn(*problem.args.values()), rules, explain=False) for problem in problems]


def refused(real: Real, fn: Callable[..., Any], rules: str) -> bool:
    """Say whether an output is illegal; atomics come in another order each time, now and then in a legal one."""
    return any("illegal" in {v.status for v in judged(real, fn, rules)} for _ in range(DRAWS))


@pytest.mark.parametrize("name", REAL)
def test_a_real_kernel_is_legal_under_its_contract(name: str) -> None:
    real = REAL[name]
    verdicts = judged(real, real.fn, real.contract)
    assert len(verdicts) == len(real.cases) > 0
    assert [v.reason for v in verdicts if v.status != "legal"] == []


@pytest.mark.parametrize(("name", "narrower"), [(name, n) for name, real in REAL.items() for n in real.narrower])
def test_a_narrower_contract_refuses_it(name: str, narrower: str) -> None:
    assert refused(REAL[name], REAL[name].fn, narrower)


@pytest.mark.parametrize(("name", "wrong"), [(name, w) for name, real in REAL.items() for w in real.wrong])
def test_its_contract_sees_what_is_wrong(name: str, wrong: str) -> None:
    assert refused(REAL[name], REAL[name].wrong[wrong], REAL[name].contract)


@pytest.mark.parametrize("cast", [True, False])
def test_scales_of_another_dtype_are_cast_first_or_not(cast: bool) -> None:
    """fp16 scales in a bf16 model: D(code·D(s)), as vLLM's emulation has it, is never taken for D(code·s)."""
    problem = Case.parse("int4_linear/T9-N16-K128-G32/bf16/gptq-v2/-/normal/s3").build()
    w, x = problem.args["w"], problem.args["x"]
    scale = (w.scale.float() * (1 + torch.arange(w.scale.numel()).reshape(w.scale.shape) % 8 / 1024)).to(torch.float16)
    problem.args["w"] = w = replace(w, scale=scale)
    read = replace(w, scale=scale.to(x.dtype)) if cast else w
    out = (x.float() @ read.dequantize().to(x.dtype).float().T).to(x.dtype)
    of = {text: judge(problem, out, text, explain=False).status for text in ("grouped", "grouped,scale_cast=true")}
    assert of == {"grouped": "illegal" if cast else "legal", "grouped,scale_cast=true": "legal" if cast else "illegal"}
    simulated = Simulation("grouped,scale_cast=true", "matmul").int4_linear(x, w, None)
    assert judge(problem, simulated, "vllm@0.32:emulation", explain=False).status == "legal"


@pytest.mark.parametrize("reading", ["plain", "byte_carry", "word_carry"])
def test_a_reading_of_v1_zeros_is_simulated_and_derived_alike(reading: str) -> None:
    problem = Case.parse("int4_linear/T4-N16-K64-G16/bf16/gptq-v1/-/normal/s7").build()
    rules = contract(f"grouped,v1_zeros={reading}")
    simulated = Simulation(rules, "matmul").int4_linear(*problem.args.values())
    for out in (simulated, derive(problem, rules)["out"]):
        assert judge(problem, out, rules, explain=False).status == "legal"
        assert judge(problem, out, "grouped", explain=False).status == "illegal"


def test_every_preset_has_its_evidence() -> None:
    assert set(KNOWN) == set(PRESETS)
    for name, known in KNOWN.items():
        assert known.whose, name
        assert known.evidence, name
        assert name == PRESETS[name].name == str(contract(name).name)


@pytest.mark.parametrize(("op", "fn", "case"), [
    ("int4_linear", linear, "int4_linear/T7-N16-K256-G32/bf16/exllama-sym/-/cancelling/s1"),
    ("moe_w4a16", moe, "moe_w4a16/T7-E4-k2-H128-I64-G32/bf16/exllama-sym/uniform/cancelling/s1"),
])  # fmt: skip
def test_batch_invariance_is_judged_bit_for_bit(op: str, fn: Callable[..., Any], case: str) -> None:
    """A kernel whose order depends on the batch is legal under `grouped`, and not where it promises one order."""
    once = make_kernel(fn, op, contract="grouped", zeros=ZEROS)
    assert run_trial(once, Case.parse(case)).status == "legal"
    assert law_batch_invariance(once, Case.parse(case)) is None
    promised = replace(once, contract=contract("grouped,batch_invariant=true"))
    verdict = law_batch_invariance(promised, Case.parse(case))
    assert verdict is not None
    assert (verdict.status, verdict.tier) == ("illegal", "law")

    def row_by_row(x: Any, w: Any, bias: Any) -> Any:
        return (x.float()[:, None, :] * w.dequantize().to(x.dtype).float()).sum(-1).to(x.dtype)

    kept = make_kernel(row_by_row, "int4_linear", contract="grouped,batch_invariant=true", zeros=ZEROS)
    verdict = law_batch_invariance(kept, Case.parse("int4_linear/T7-N16-K256-G32/bf16/exllama-sym/-/normal/s1"))
    assert verdict is not None
    assert verdict.status == "legal"
    assert law_batch_invariance in OPS[op].laws  # type: ignore[attr-defined]


def test_nan_beside_nan_is_the_same_answer_only_where_it_is_legal() -> None:
    case, rules = Case.parse("silu_and_mul/T7-I8/bf16/-/-/normal/s1"), contract("megakernel,batch_invariant=true")

    def hides(h: torch.Tensor) -> torch.Tensor:  # a row's element that is never written, the same for every batch
        out = Simulation(rules).silu_and_mul(h)
        out[:, 5] = torch.nan
        return out

    verdict = law_batch_invariance(make_kernel(hides, case.op, contract=rules), case)
    assert verdict is not None
    assert verdict.status == "illegal"
    assert "NaN equals nothing, not even NaN" in verdict.text()
    problem = case.build()
    h = problem.args["h"].clone()
    h[0, 0], h[0, 8] = -200.0, torch.inf
    problem = with_args(problem, h=h)
    out = hides(h)
    assert bool(out[0, 0].isnan())
    legal = legal_nans(problem, {"out": out}, rules)["out"]
    assert legal.nonzero().tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parts=8/k128", "parts: got 8 parts and 128 inputs a part, must be given how many (8) or how long (k128)"),
        ("parts=eight", "parts: got 'eight', must be one of N, kN, kN+, upN"),
        ("parts=8/8", "parts: got count twice in '8/8', must be given once"),
        ("parts=8/join=tree", "join: got 'tree', must be one of any, sequential"),
        ("parts=k64/up8", "parts: upN must go with a number of parts"),
        (
            "parts=8/join=pairwise,deterministic=false",
            "parts: got join=pairwise, must be 'any' with deterministic=false",
        ),
        ("parts=8,schedule=fma/s2", "schedule: got fma/s2 with parts, must be of one part"),
        ("schedule=fma,deterministic=false", "schedule: got fma with deterministic=false, must be None"),
        ("slot_order=any,sum_schedule=fma", "sum_schedule: got fma with slot_order 'any', must be None"),
        (
            "batch_invariant=true,deterministic=false",
            "batch_invariant: got true, must be false with deterministic=fals",
        ),
        ("store_rounding=x:rtz", "store_rounding's stage: got 'x', must be one of h, a, y, out"),
        ("store_rounding=rtz+a:rne", "store_rounding: got 'rtz+a:rne', must be one rounding, or STAGE:ROUNDING"),
        ("store_rounding=rtn", "store_rounding: got 'rtn', must be one of rne, rtz, rtz_bf16"),
        ("schedule=hfma", "order: got 'sequential' with hfma, must be 'tree' from a sequential level on"),
        ("one_group=after", "one_group: got 'after', must be one of as_weight, after_store"),
    ],
)
def test_what_contradicts_itself_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^") as refused:
        contract(f"grouped,{text}")
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)
