"""The int4 decode kernels store, in emulation, exactly the sums that their schedule predicts: every bit of fp32."""

from __future__ import annotations

import pytest
import torch

from moeracle import Case
from moeracle.kernels.hip.common import knobs_for
from moeracle.kernels.hip.int4_linear import int4_linear
from moeracle.kernels.hip.moe_w4a16 import gemm2_reduce
from moeracle.kernels.hip.padded_gemm import padded_gemm
from moeracle.properties.judge import judge
from moeracle.ref.rounding import round_to
from support.hip_bits import routed_sums, same_bits, sums

DENSE = [
    ("T1-N64-K256-G32/bf16/exllama-sym/-/normal/s1", "truncate"),
    ("T2-N37-K1024-G128/bf16/exllama-sym/-/outliers/s2", "sub_finite"),
    ("T3-N40-K2048-G64/bf16/exllama-rdna/-/wide/s3", "truncate"),
    ("T4-N40-K96-G32/bf16/exllama-unpacked/-/cancelling/s4", "truncate"),
    ("T5-N33-K384-G128/fp16/exllama-sym/-/normal/s5", "truncate"),
    ("T1-N40-K1536-G-1/fp16/exllama-rdna/-/outliers/s6", "truncate"),
    ("T1-N64-K2048-G128/bf16/exllama-sym/-/normal/s7", "sum"),
    ("T5-N40-K256-G32/bf16/exllama-rdna/-/outliers/s8", "sum"),
    ("T2-N24-K256-G64/bf16/exllama-unpacked/-/subnormal/s9", "sum"),
]


@pytest.mark.parametrize(("text", "decode"), DENSE)
def test_dense_sums_are_the_models(text: str, decode: str) -> None:
    case = Case.parse(f"int4_linear/{text}")
    x, w, _ = case.build().args.values()
    chunk = knobs_for("int4_gemv", case.T, w.K, w.G)["A_CHUNK"]
    schedule = f"fma/lanes32x{chunk}/fused" + ("/zerofused" if decode == "sum" else "")
    got = int4_linear(x, w, decode=decode, store32=True)
    same_bits(got, sums(x, w, schedule, "hoisted" if decode == "sum" else "post"))


def test_a_chunk_of_32_is_another_order_and_the_model_knows_it() -> None:
    case = Case.parse("int4_linear/T2-N64-K2048-G32/bf16/exllama-sym/-/outliers/s1")
    x, w, _ = case.build().args.values()
    got = int4_linear(x, w, knobs={"A_CHUNK": 32, "WAVES": 2, "UNRL": 1}, store32=True)
    same_bits(got, sums(x, w, "fma/lanes32x32/fused"))
    with pytest.raises(AssertionError, match="differ, first at"):
        same_bits(got, sums(x, w, "fma/lanes32x16/fused"))


@pytest.mark.parametrize("other", ["fma/lanes16x16/fused", "fma/lanes32x16", "mul_add/t16/sequential", "fma/t32/fused"])
def test_other_orders_are_told_apart(other: str) -> None:
    case = Case.parse("int4_linear/T4-N64-K2048-G32/bf16/exllama-sym/-/outliers/s1")
    x, w, _ = case.build().args.values()
    with pytest.raises(AssertionError, match="differ, first at"):
        same_bits(int4_linear(x, w, store32=True), sums(x, w, other))


@pytest.mark.parametrize("knobs", [{"YTILE": 1}, {"YTILE": 4, "UNRL": 1}, {"WAVES": 1, "UNRL": 8}, {"WAVES": 8}])
def test_the_other_knobs_change_no_bit(knobs: dict[str, int]) -> None:
    x, w, bias = Case.parse("int4_linear/T3-N45-K640-G128/bf16/exllama-sym/-/normal+bias/s1").build().args.values()
    same_bits(int4_linear(x, w, bias, knobs=knobs), int4_linear(x, w, bias))


def test_bias_is_added_in_fp32_and_rounded_once() -> None:
    x, w, bias = Case.parse("int4_linear/T2-N64-K256-G32/bf16/exllama-sym/-/normal+bias/s3").build().args.values()
    want = sums(x, w, "fma/lanes32x16/fused") + bias.float()
    same_bits(int4_linear(x, w, bias), round_to(want.double(), torch.bfloat16))
    same_bits(int4_linear(x, w, bias, store32=True), want)


ROUTED = [
    "T2-E4-k2-N40-K256-G32-B1/bf16/exllama-sym/uniform/normal/s1",
    "T5-E4-k2-N40-K1024-G64-B2/bf16/exllama-rdna/uniform+weight+ep2/outliers/s2",
    "T5-E3-k2-N37-K384-G128-B4/fp16/exllama-unpacked/ignored/normal+strided/s3",
    "T4-E8-k3-N24-K96-G32-B1/fp16/exllama-sym/zipf1+weight/cancelling/s4",
]


@pytest.mark.parametrize("text", ROUTED)
def test_routed_sums_are_the_models(text: str) -> None:
    problem = Case.parse(f"padded_gemm/{text}").build()
    got = padded_gemm(*problem.args.values(), store32=True)
    same_bits(got, routed_sums(problem, "fma/lanes32x16/fused"))


def test_rows_of_experts_elsewhere_are_zeroed_by_the_kernel_itself() -> None:
    problem = Case.parse("padded_gemm/T5-E4-k2-N40-K96-G32-B2/bf16/exllama-sym/uniform+ep2/normal/s2").build()
    assert int((problem.args["expert_ids"] < 0).sum()) > 0
    poisoned = torch.full((10, 40), float("nan"), dtype=torch.bfloat16)
    got = padded_gemm(*problem.args.values(), out=poisoned)
    assert got.isfinite().all()
    assert judge(problem, got, "wvsplitk").ok


FUSED = [
    ("T1-E8-k4-H96-I256-G32/bf16/exllama-sym/uniform/normal/s1", False, "truncate"),
    ("T2-E4-k3-H128-I512-G128/bf16/exllama-rdna/zipf1/outliers/s2", False, "sum"),
    ("T2-E4-k2-H64-I96-G32/fp16/exllama-sym/ignored/normal/s3", False, "truncate"),
    ("T2-E4-k2-H64-I256-G32/bf16/exllama-sym/uniform/normal/s4", True, "truncate"),
    ("T3-E4-k2-H192-I256-G64/bf16/exllama-unpacked/uniform/normal/s5", True, "sum"),
]


@pytest.mark.parametrize(("text", "fuse", "decode"), FUSED)
def test_gemm2_router_weight_and_sum_are_the_models(text: str, fuse: bool, decode: str) -> None:
    """weight * dot rounded to fp32, then the slots one after another; with silu, a is rounded once on its way."""
    case = Case.parse(f"moe_w4a16/{text}")
    args = case.build().args
    w2, weights, ids, D = args["w2"], args["topk_weights"], args["topk_ids"], args["x"].dtype
    R, I = ids.numel(), case.I
    x = torch.randn(R, 2 * I if fuse else I, generator=torch.Generator().manual_seed(case.seed)).to(D)
    got = gemm2_reduce(x, w2, weights, ids, fuse_silu=fuse, decode=decode, store32=True)
    a = x
    if fuse:
        gate, up = x[:, :I].float(), x[:, I:].float()
        sigmoid = 1 / (1 + torch.exp(-gate.double()).float())
        a = (gate * sigmoid * up).to(D)
    schedule = "fma/lanes32x32/fused" + ("/zerofused" if decode == "sum" else "")
    want = torch.zeros(case.T, case.H)
    for t in range(case.T):
        for j in range(case.k):
            e, row = int(ids[t, j]), t * case.k + j
            if e >= 0:
                dot = sums(a[row : row + 1], w2.expert(e), schedule, "hoisted" if decode == "sum" else "post")[0]
                want[t] += weights[t, j] * dot
    same_bits(got, want)
