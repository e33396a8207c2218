"""TARGET moeracle.kernels.hip: every kernel an ordinary kernel, legal on the CPU at tolerance zero, not by chance."""

from __future__ import annotations

import pytest

from moeracle import Case
from moeracle.kernels.hip import registry as registry_hip
from moeracle.properties.judge import judge
from moeracle.target.declaration import make_kernel
from moeracle.target.load import load_target

KERNELS = {k.name: k for k in load_target("moeracle.kernels.hip", device="cpu").kernels}
CASES = {
    "int4_linear": "int4_linear/T3-N40-K1024-G128/{}/exllama-rdna/-/outliers+bias/s1",
    "padded_gemm": "padded_gemm/T5-E4-k2-N40-K1024-G128-B{}/{}/exllama-sym/uniform+ep2/outliers/s2",
    "dequantize_int4": "dequantize_int4/E2-N40-K96-G32/{}/exllama-rdna/-/wide/s6",
    "shared_expert": "shared_expert/T3-H256-I128-G32/{}/exllama-sym/-/normal+gate/s7",
    "tiny_dot": "tiny_dot/T3-K512/{}/-/-/normal+sigmoid/s8",
    "silu_and_mul": "silu_and_mul/T9-I33/{}/-/-/normal/s3",
    "moe_w4a16": "moe_w4a16/T3-E4-k2-H256-I128-G32/{}/exllama-sym/zipf1/normal/s4",
    "int8_lm_head": "int8_lm_head/T3-V40-K1024-G64/{}/-/-/outliers+bias/s5",
}


def case_for(name: str) -> Case:
    kernel = KERNELS[name]
    text, dtype = CASES[kernel.op], kernel.dtypes[0]
    block = "16" if name.startswith("moe_wmma") else "2"
    return Case.parse(text.format(block, dtype) if "B{}" in text else text.format(dtype))


def wide(case: Case, data: str) -> Case:
    """Return the case with more outputs, so that rare differences show."""
    sizes = {"N": 512} if "N" in case.sizes else {"V": 1024} if "V" in case.sizes else {"H": 512, "I": 512}
    return case.replace(data=data, flags=frozenset(), **sizes)


@pytest.mark.parametrize("name", KERNELS)
def test_legal_at_tolerance_zero(name: str) -> None:
    kernel, case = KERNELS[name], case_for(name)
    assert kernel.why_not(case) is None
    problem = case.build()
    verdict = judge(problem, kernel.fn(*problem.args.values()), kernel.contract_for(case))
    assert verdict.ok, verdict.text()
    first = verdict.stages[0]
    assert first.judged > 0
    if kernel.schedule is not None and kernel.op != "shared_expert":  # whose h is not stored
        assert first.exact == first.judged  # one legal value an element


@pytest.mark.parametrize("name", [n for n, k in KERNELS.items() if k.schedule is not None])
def test_the_declared_chunk_is_what_makes_it_legal(name: str) -> None:
    """Another chunk is another order: where the sums are wide, some of its roundings differ."""
    kernel, case = KERNELS[name], case_for(name)
    text = kernel.schedule(case)
    changes = {"lanes32x16": "lanes16x16", "lanes32x32": "lanes32x16", "fma/t128": "fma/t64"}
    other = next(text.replace(old, new) for old, new in changes.items() if old in text)
    assert other != text
    problem = wide(case, "cancelling").build()
    got = kernel.fn(*problem.args.values())
    assert judge(problem, got, f"{kernel.contract.name},schedule={text}", explain=False).illegal == 0
    assert judge(problem, got, f"{kernel.contract.name},schedule={other}", explain=False).illegal > 0


@pytest.mark.parametrize("name", [n for n, k in KERNELS.items() if k.schedule is not None])
def test_another_contract_is_refused(name: str) -> None:
    kernel, case = KERNELS[name], case_for(name)
    problem = wide(case, case.data).build()
    others = {"int8_lm_head": "int8_lm_head,weight=cast", "shared_expert": "wvsplitk"}
    rounded = others.get(kernel.op, "grouped")
    assert judge(problem, kernel.fn(*problem.args.values()), rounded, explain=False).status == "illegal"


def test_refusals_reach_the_user_as_reasons() -> None:
    why = KERNELS["int4_gemv"].why_not(Case.parse("int4_linear/T6-N16-K64-G32/bf16/exllama-sym/-/normal/s1"))
    assert why == "x: got 6 rows, must be 1 to 5 (these are decode kernels)"
    why = KERNELS["int4_gemv"].why_not(Case.parse("int4_linear/T1-N16-K64-G8/bf16/exllama-sym/-/normal/s1"))
    assert why == "G: got 8, must be a multiple of A_CHUNK = 16"
    why = KERNELS["moe_wmma"].why_not(
        Case.parse("padded_gemm/T2-E4-k2-N16-K64-G32-B8/bf16/exllama-sym/uniform/normal/s1")
    )
    assert why == "tiles are of 16 ids, not 8"


def test_a_schedule_may_depend_on_the_case() -> None:
    of_case = lambda case: None if case.T > 1 else f"fma/lanes32x{case.G // 2}"
    record = make_kernel(lambda: None, "int4_linear", contract="wvsplitk", schedule=of_case)
    one, two = (Case.parse(f"int4_linear/T{T}-N16-K64-G32/bf16/exllama-sym/-/normal/s1") for T in (1, 2))
    assert str(record.contract_for(one).schedule) == "fma/lanes32x16"
    assert record.contract_for(two).schedule is None
    with pytest.raises(ValueError, match=r"schedule: got 'fma', must be a function of a Case"):
        make_kernel(lambda: None, "int4_linear", schedule="fma")  # type: ignore[arg-type]


def test_two_chunks_of_a_layer_are_two_schedules(monkeypatch) -> None:
    monkeypatch.setattr(registry_hip, "_lanes", lambda kernel, rows, K, G: f"fma/lanes32x{8 if K == 64 else 16}/fused")
    case = Case.parse("moe_w4a16/T2-E4-k2-H64-I32-G32/bf16/exllama-sym/uniform/normal/s1")
    rules = KERNELS["moe_hip.decode"].contract_for(case)
    assert str(rules.schedule) == "fma/lanes32x8/fused"
    assert str(rules.of_gemm2.schedule) == "fma/lanes32x16/fused"
