"""A layer from single kernels: each judged from its own input, so a wrong one does not blame those after it."""

from __future__ import annotations

import pytest

from moeracle.properties.bisect.chain import bisect_chain, chain_of
from moeracle.properties.cases.case import Case
from moeracle.properties.faults import FAULTS
from moeracle.properties.simulate import simulated_kernel

CASE = Case.parse("moe_w4a16/T6-E4-k2-H64-I48-G16/bf16/exllama-sym/ignored/normal/s1")
OPS = ("unpack_int4", "dequantize_int4", "moe_permute", "grouped_gemm", "silu_and_mul", "moe_unpermute")
PADDED = ("moe_align_block_size", "padded_gemm", "silu_and_mul", "moe_unpermute")


@pytest.mark.parametrize("ops", [OPS, PADDED])
def test_right_kernels_are_all_legal(ops: tuple[str, ...]) -> None:
    report = bisect_chain(chain_of([simulated_kernel(op) for op in ops], CASE), CASE)
    assert report.stage == ""
    assert {verdict.status for _, verdict in report.links} == {"legal"}
    assert [link.stage for link, _ in report.links][-4:] == ["gemm1", "activation", "gemm2", "reduction"]


@pytest.mark.parametrize(
    ("id", "op", "stage"),
    [
        ("F08", "unpack_int4", "unpack"),
        ("F29", "dequantize_int4", "scale"),
        ("F36", "grouped_gemm", "gemm1"),
        ("F12", "moe_permute", "routing"),
        ("F31", "silu_and_mul", "activation"),
        ("F33", "moe_unpermute", "reduction"),
        ("F114", "padded_gemm", "gemm1"),
        ("F12", "moe_align_block_size", "routing"),
    ],
)
def test_one_wrong_kernel_is_convicted_and_no_other(id: str, op: str, stage: str) -> None:
    ops = OPS if op in OPS else PADDED
    kernels = [FAULTS[id].kernel(name) if name == op else simulated_kernel(name) for name in ops]
    report = bisect_chain(chain_of(kernels, CASE), CASE)
    assert report.stage == stage
    wrong = {verdict.kernel for _, verdict in report.links if verdict.status == "illegal"}
    assert wrong == {id}


def test_steps_without_a_kernel_are_the_references() -> None:
    report = bisect_chain(chain_of([simulated_kernel("silu_and_mul")], CASE), CASE)
    assert [link.what for link, _ in report.links] == ["a"]
    assert "the reference took those steps" in report.notes[0]


def test_cases_of_other_ops_have_no_chain() -> None:
    assert chain_of([simulated_kernel("silu_and_mul")], Case.parse("silu_and_mul/T4-I32/bf16/-/-/normal/s0")) == {}
