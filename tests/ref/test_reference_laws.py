"""The reference itself obeys every law, in every layout, zero point and dtype, on every recipe and routing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.optable import OPS, ZERO_LAYOUT
from moeracle.properties.cases.record import record_of
from moeracle.properties.hunt.hunt import judge_cases
from moeracle.properties.hunt.must_run import must_run
from moeracle.properties.laws import law_grouped_equals_padded
from moeracle.properties.laws.activation import law_beyond_the_limit
from moeracle.ref import (
    LAYOUTS,
    grouped_gemm,
    int4_linear,
    int8_lm_head,
    moe_align_block_size,
    moe_permute,
    moe_unpermute,
    moe_w4a16,
    pack_int4,
    padded_gemm,
    quantize_int8,
    shared_expert,
    silu_and_mul,
    tiny_dot,
    topk_softmax,
    unpack_int4,
)
from moeracle.target.declaration import ZEROS, Kernel, make_kernel
from support.legal_kernels import LEGAL
from support.promises import promising


def rounded(compute: Any, like: int = 0) -> Any:
    """Store a reference's fp32 result in the dtype of its argument number `like`."""

    def fn(*args: Any) -> torch.Tensor:
        return compute(*args).to(args[like].dtype)

    return fn


REFERENCE = {
    "unpack_int4": lambda w: w.codes(),
    "dequantize_int4": lambda w: w.dequantize().to(w.scale.dtype),
    "topk_softmax": lambda logits, k, renormalize: topk_softmax(logits, k, renormalize=renormalize),
    "grouped_topk": LEGAL["grouped_topk"],
    "moe_align_block_size": moe_align_block_size,
    "moe_permute": moe_permute,
    "moe_unpermute": rounded(moe_unpermute),
    "int4_linear": rounded(int4_linear),
    "grouped_gemm": rounded(grouped_gemm),
    "padded_gemm": rounded(padded_gemm),
    "silu_and_mul": rounded(silu_and_mul),
    "moe_w4a16": rounded(moe_w4a16),
    "shared_expert": rounded(shared_expert),
    "tiny_dot": rounded(lambda x, w, sigmoid: tiny_dot(x, w, sigmoid=sigmoid)),
    "quantize_int8": quantize_int8,
    "int8_lm_head": rounded(int8_lm_head),
}


def reference(op: str) -> Kernel:
    """The reference as a kernel: fp32 throughout, one rounding at the end."""
    contract = "int8_lm_head" if op == "int8_lm_head" else "grouped,weight=exact,accumulator=fp32"
    if op == "moe_w4a16":
        contract += ",stores=out,silu=fp32"
    if op == "shared_expert":
        contract += ",stores=out,silu=fp32,gate=fp32"
    if op == "dequantize_int4":
        contract = "grouped"
    dtypes = [d for d in OPS[op].dtypes if d != "-"] or ["bf16"]
    return make_kernel(REFERENCE[op], op, contract=contract, name="reference", zeros=ZEROS, dtypes=dtypes)


def forms(case: Case) -> list[Case]:
    """The case in every layout and zero point that its sizes allow."""
    if case.layout == "-":
        return [case]
    made = []
    for layout, zeros in ZERO_LAYOUT.items():
        for zero in zeros:
            for dtype in ("bf16", "fp16"):
                try:
                    made.append(case.replace(layout=layout, zero=zero, dtype=dtype))
                except ValueError:
                    continue
    return made


def test_every_op_has_two_laws() -> None:
    assert min(len(record_of(op).laws) for op in OPS) >= 2
    for laws in (record_of(op).laws for op in OPS):
        assert len({law.__name__ for law in laws}) == len(laws)
        assert all(law.__name__.startswith("law_") and law.__doc__ for law in laws)


@pytest.mark.parametrize("op", OPS)
def test_reference_obeys(op: str) -> None:
    kernel = reference(op)
    held = set()
    for case in must_run(kernel):
        for law in record_of(op).laws:
            verdict = law(kernel, case)
            assert verdict is None or verdict.ok, verdict.text()
            held |= {law.__name__} if verdict else set()
    needs_a_limit = {law_beyond_the_limit.__name__}  # which the op's own contract has not: test_activations asks it
    asked = {law.__name__ for law in record_of(op).laws if law.promise is None} - needs_a_limit
    assert held == asked  # none is silent on every fixed case


@pytest.mark.parametrize("op", [op for op in OPS if any(law.promise for law in record_of(op).laws)])
def test_reference_keeps_promises_on_exact_data(op: str) -> None:
    """It sums by torch's matmul, whose order depends on the rows: on other data it promises nothing."""
    record, kernel = record_of(op), reference(op)
    exact = [case for case in must_run(kernel) if record.exact_under(case.build(), kernel.contract).exact]
    for law in record.laws:
        if law.promise is None:
            continue
        assert all(law(kernel, case) is None for case in exact)  # not promised, not asked
        verdicts = [law(promising(kernel, law.promise), case) for case in exact]
        assert any(verdicts), law.__name__
        for verdict in verdicts:
            assert verdict is None or verdict.ok, verdict.text()


@pytest.mark.parametrize("op", [op for op in OPS if OPS[op].weight])
def test_reference_obeys_in_every_layout(op: str) -> None:
    kernel = reference(op)
    cases = forms(must_run(kernel)[0])
    assert len(cases) == 2 * sum(map(len, ZERO_LAYOUT.values()))
    for case in cases:
        for law in record_of(op).laws:
            if law.__name__ != "law_layouts_agree" or case == cases[0] or case == cases[2]:  # it visits them all itself
                verdict = law(kernel, case)
                assert verdict is None or verdict.ok, verdict.text()


@pytest.mark.parametrize("seed", range(20))
def test_codes_survive_every_layout(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (2, 16, 32), generator=generator, dtype=torch.uint8)
    for first in LAYOUTS:
        again = unpack_int4(pack_int4(codes, first), first)
        for second in LAYOUTS:
            assert torch.equal(unpack_int4(pack_int4(again, second), second), codes)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("data", ["normal", "integers", "cancelling"])
def test_grouped_equals_padded(seed: int, data: str) -> None:
    routing = ("uniform", "zipf1+ep2", "repeat", "ignored")[seed % 4]
    case = Case.parse(f"grouped_gemm/T9-E5-k2-N40-K96-G32/bf16/gptq-v1/{routing}/{data}/s{seed}")
    verdict = law_grouped_equals_padded(reference("grouped_gemm"), reference("padded_gemm"), case)
    assert verdict is not None
    assert verdict.ok, verdict.text()
    assert verdict.judged > 0


def test_judge_cases_puts_the_laws() -> None:
    case = Case.parse("moe_w4a16/T6-E4-k2-H64-I32-G32/bf16/exllama-sym/uniform/integers/s1")
    result = judge_cases(reference("moe_w4a16"), [case])
    assert result.status == "legal", result.failures[0].text()
    assert len(result.law_checks) >= 6
