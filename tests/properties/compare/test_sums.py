"""A schedule of a sum that an op lacks, or one that does not cover its sum, is refused in one line."""

from __future__ import annotations

import pytest
import torch

from moeracle.properties.cases.case import Case
from moeracle.properties.cases.optable import OPS
from moeracle.properties.cases.record import record_of
from moeracle.properties.compare.sums import FURTHER
from moeracle.properties.judge import judge
from moeracle.target.declaration import make_kernel

MOE = "moe_w4a16/T2-E2-k2-H64-I32-G32/bf16/exllama-sym/uniform/normal/s1"
SHARED = "shared_expert/T1-H64-I32-G32/bf16/exllama-sym/-/normal+gate/s1"
LINEAR = "int4_linear/T2-N32-K64-G32/bf16/exllama-sym/-/normal/s1"


SUMS = [(op, record_of(op).sums) for op in OPS]


def test_each_sum_is_of_an_op_and_one_of_its_dimensions():
    for op, sums in SUMS:
        assert set(sums) <= {"schedule", *FURTHER}
        assert set(sums.values()) <= {"K", *OPS[op].dims}


@pytest.mark.parametrize(
    ("op", "field"),
    [
        ("int4_linear", "gemm2_schedule"),
        ("grouped_gemm", "gate_schedule"),
        ("moe_w4a16", "gate_schedule"),
        ("shared_expert", "sum_schedule"),
        ("silu_and_mul", "sum_schedule"),
    ],
)
def test_a_schedule_of_a_sum_that_the_op_lacks_is_refused(op, field):
    with pytest.raises(ValueError, match=rf"^{field}: got one for op '{op}', must be left out: only .* that sum$"):
        make_kernel(lambda *args: None, op, contract=f"grouped,{field}=fma")


@pytest.mark.parametrize(("op", "field"), [(op, field) for op, sums in SUMS for field in sums])
def test_a_schedule_of_a_sum_that_the_op_has_is_taken(op, field):
    assert make_kernel(lambda *args: None, op, contract=f"grouped,{field}=fma").op == op


@pytest.mark.parametrize(
    ("case", "schedules", "message"),
    [
        (LINEAR, "schedule=fma/t16/n2", "schedule: covers 32 inputs .* must cover K=64"),
        (MOE, "schedule=fma/t16/n2", "schedule: covers 32 inputs .* must cover K=64"),
        (MOE, "schedule=fma,gemm2_schedule=fma/t16/n1", "gemm2_schedule: covers 16 inputs .* must cover K=32"),
        (SHARED, "gate_schedule=fma/t16/n2", "gate_schedule: covers 32 inputs .* must cover K=64"),
    ],
)
def test_a_schedule_that_does_not_cover_its_sum_is_refused_whatever_was_stored(case, schedules, message):
    problem = Case.parse(case).build()
    size = problem.case.sizes
    out = torch.zeros(size["T"], size.get("N", size.get("H")), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=message):
        judge(problem, {"out": out} if "moe" in case or "shared" in case else out, f"grouped,{schedules}")
