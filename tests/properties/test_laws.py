"""Laws leave legal kernels alone, whatever their order of summation and tiles, and say what a broken one did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.optable import OPS
from moeracle.properties.cases.record import record_of
from moeracle.properties.common.verdict import Verdict
from moeracle.properties.hunt.hunt import judge_cases
from moeracle.properties.hunt.must_run import must_run
from moeracle.properties.laws import law_grouped_equals_padded
from moeracle.properties.laws.experts import _surely_finite
from moeracle.properties.trial.trial import run_trial
from moeracle.target.declaration import Kernel, make_kernel
from moeracle.target.load import load_target
from support import legal_kernels

LEGAL = {k.op: k for k in load_target(legal_kernels.__file__).kernels}
linear, grouped, padded, moe = (LEGAL[op].fn for op in ("int4_linear", "grouped_gemm", "padded_gemm", "moe_w4a16"))
DENSE = "int4_linear/T7-N40-K96-G32/bf16/exllama-sym/-/normal/s3"
GROUPED = "grouped_gemm/T9-E5-k2-N40-K96-G32/bf16/exllama-sym/uniform/normal/s3"
MOE = "moe_w4a16/T9-E5-k2-H96-I64-G32/bf16/exllama-sym/uniform/normal/s3"


def kernel(op: str, fn: Callable[..., Any], **fields: Any) -> Kernel:
    return make_kernel(fn, op, name="planted", **fields)


def broken(text: str, fn: Callable[..., Any], **fields: Any) -> dict[str, Verdict]:
    """The laws that a kernel breaks on a case, with their verdicts."""
    case = Case.parse(text)
    verdicts = [law(kernel(case.op, fn, **fields), case) for law in record_of(case.op).laws]
    return {v.stage: v for v in verdicts if v is not None and not v.ok}


@pytest.mark.parametrize("op", OPS)
def test_legal_kernels_keep_every_law(op: str) -> None:
    """On 24 cases, every second one in fp16."""
    legal, judged = LEGAL[op], 0
    for seed, case in enumerate(must_run(legal)[:24]):
        dtype = case.dtype if case.dtype == "-" else ("bf16", "fp16")[seed % 2]
        ours = case.replace(seed=100 + seed, dtype=dtype)
        ours = ours.replace(T=2 + seed % 11) if case.sizes.get("T") else ours
        for law in record_of(op).laws:
            verdict = law(legal, ours)
            assert verdict is None or verdict.ok, verdict.text()
            judged += verdict.judged if verdict else 0
    assert judged > 500


@pytest.mark.parametrize("op", OPS)
def test_they_are_legal(op: str) -> None:
    case = next(c for c in must_run(LEGAL[op]) if LEGAL[op].why_not(c) is None)
    verdict = run_trial(LEGAL[op], case)
    assert verdict.ok, verdict.text()


def one_expert_too_low(x: torch.Tensor, w: Any, offsets: torch.Tensor) -> torch.Tensor:
    lower = offsets.clone()
    lower[2] = offsets[3]  # expert 2's rows are read with expert 1's weights
    return grouped(x, w, lower)


def unweighted_zero(x: Any, w13: Any, w2: Any, router: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return moe(x, w13, w2, torch.where(router == 0, 1.0, router), ids)


def test_the_verdict_says_what_was_compared() -> None:
    verdict = broken(GROUPED, one_expert_too_low)["law_other_experts_weights"]
    assert verdict.summary[0].startswith("200 of 520 elements differ; worst out[token 2, slot 1, n ")
    assert verdict.summary[1:] == [
        "compared: the kernel on other codes in experts 1, 3, with the kernel on the case itself",
        "law: A row's result depends on its own experts' weights only: every other expert's codes may change.",
    ]
    exact = broken(MOE, unweighted_zero)["law_zero_router_weight"]
    assert "data 'integers' instead of 'normal'" in exact.summary[1]


def test_a_law_replays_from_the_case_text() -> None:
    fn = lambda x, w, b: linear(x, w, b) if len(x) == 7 else linear(x, w, b).flip(1)
    result = judge_cases(kernel("int4_linear", fn), [Case.parse(DENSE)])
    assert [(v.tier, v.stage) for v in result.failures] == [("law", "law_splitting_batches")]
    assert result.verdicts[0].ok  # the case alone shows nothing


@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (lambda x, w, b: None, "returned out as NoneType"),
        (lambda x, w, b: linear(x, w, b)[:1] if len(x) < 7 else linear(x, w, b), "got shape [1, 40]"),
        (lambda x, w, b: linear(x, w, b) if len(x) == 7 else 1 // 0, "raised ZeroDivisionError"),
        (lambda x, w, b: linear(x, w, b) if len(x) == 7 else exit(0), "raised SystemExit: 0"),
        (lambda x, w, b: linear(x.mul_(2), w, b), "wrote into its input x"),
    ],
)
def test_what_a_kernel_does_instead_is_told(fn: Callable[..., Any], says: str) -> None:
    assert says in broken(DENSE, fn)["law_splitting_batches"].summary[0]


def test_nan_on_both_sides_is_said_to_equal_nothing() -> None:
    verdict = broken(DENSE, lambda x, w, b: linear(x, w, b) * torch.nan)["law_splitting_batches"]
    assert verdict.summary[0].endswith("got nan, by the law nan; NaN equals nothing, not even NaN")


def test_laws_ask_only_for_what_a_kernel_supports() -> None:
    asked: list[int] = []

    def fn(x: torch.Tensor, w: Any, bias: Any) -> torch.Tensor:
        asked.append(len(x))
        return linear(x, w, bias)

    assert not broken(DENSE, fn, supports=lambda case: case.T == 7 or "T must be 7")
    assert set(asked) == {7}


def test_grouped_and_padded_kernels_are_told_apart() -> None:
    case = Case.parse(GROUPED)
    ours, theirs = kernel("grouped_gemm", grouped), kernel("padded_gemm", padded)
    same = law_grouped_equals_padded(ours, theirs, case)
    assert same is not None
    assert same.ok, same.text()
    other = law_grouped_equals_padded(kernel("grouped_gemm", one_expert_too_low), theirs, case)
    assert other is not None
    assert other.tier == "law"


@pytest.mark.parametrize("word", ["", "+w8"])
def test_only_small_codes_keep_a_layer_in_the_range_of_fp16(word: str) -> None:
    """Codes of 8 bits reach 255, those of 4 bits 15: with these scales the former alone may overflow."""
    problem = Case.parse(f"moe_w4a16/T4-E2-k1-H64-I64-G32/fp16/gptq-sym{word}/uniform/normal/s1").build()
    weights = {name: problem.args[name] for name in ("w13", "w2")}
    scaled = {name: replace(w, scale=torch.full_like(w.scale, 2.0**-10)) for name, w in weights.items()}
    problem.args.update({"x": torch.ones_like(problem.args["x"]), **scaled})
    found = []
    for weight in (1.0, 100.0):  # a large router weight may meet a stage of the layer, too
        problem.args["topk_weights"] = torch.full_like(problem.args["topk_weights"], weight)
        found.append(_surely_finite(problem))
    assert found == [not word, False]
