"""int8, dense and matrix kernels: fp32 sums exactly as their schedules predict, and epilogues exactly as documented."""

from __future__ import annotations

import pytest
import torch

from moeracle import Case
from moeracle.kernels.hip.int8_lm_head import int8_lm_head
from moeracle.kernels.hip.moe_w4a16 import moe_sum, silu_and_mul
from moeracle.kernels.hip.padded_gemm import padded_gemm
from moeracle.kernels.hip.shared_expert import dense_gemv, shared_expert, tiny_dot
from moeracle.ref.bitmodels.accumulate import accumulate
from moeracle.ref.bitmodels.schedule import Schedule
from moeracle.ref.ops.shared_expert import fused_gate_mul, fused_silu_mul
from moeracle.ref.rounding import round_to
from support.hip_bits import routed_sums, same_bits

LANES = Schedule.parse("fma/lanes32x16")
HEADS = [
    "T1-V64-K256-G-1/bf16/-/-/normal/s1",
    "T3-V45-K1024-G32/bf16/-/-/outliers+bias/s2",
    "T5-V40-K384-G128/fp16/-/-/normal+bias/s3",
    "T2-V40-K2048-G64/fp16/-/-/cancelling/s4",
]


@pytest.mark.parametrize("text", HEADS)
def test_int8_sums_are_the_models(text: str) -> None:
    x, codes, scale, bias = Case.parse(f"int8_lm_head/{text}").build().args.values()
    want = accumulate(x, codes.to(x.dtype), Schedule.parse("fma/lanes32x16/fused"), scale=scale.reshape(len(codes), -1))
    want = want if bias is None else want + bias.float()
    same_bits(int8_lm_head(x, codes, scale, bias, store32=True), want)
    same_bits(int8_lm_head(x, codes, scale, bias), round_to(want.double(), x.dtype))


def test_every_int8_code_is_read_exactly() -> None:
    codes = torch.arange(-128, 128, dtype=torch.int8).reshape(16, 16).repeat(1, 2)
    for dtype in (torch.bfloat16, torch.float16):
        for first in range(0, 32, 4):
            x = torch.eye(32, dtype=dtype)[first : first + 4]
            got = int8_lm_head(x, codes, torch.ones(16))
            same_bits(got, codes[:, first : first + 4].T.to(dtype).contiguous())


def tensors(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(sum(shape) for shape in shapes))
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize(("T", "N", "K"), [(1, 33, 512), (5, 24, 1024), (3, 1, 80)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dense_sums_are_the_models(T: int, N: int, K: int, dtype: torch.dtype) -> None:
    x, w, bias = tensors(dtype, (T, K), (N, K), (N,))
    sums = accumulate(x, w, LANES)
    same_bits(dense_gemv(x, w, store32=True), sums)
    same_bits(dense_gemv(x, w, bias), (sums + bias.float()).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fused_silu_rounds_silu_then_the_product(dtype: torch.dtype) -> None:
    x, w = tensors(dtype, (2, 256), (96, 256))
    h = accumulate(x, w, LANES).to(dtype)
    same_bits(dense_gemv(x, w, epilogue="silu_mul"), fused_silu_mul(h[:, :48], h[:, 48:]))
    same_bits(silu_and_mul(h), fused_silu_mul(h[:, :48], h[:, 48:]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fused_gate_rounds_sum_gate_and_product(dtype: torch.dtype) -> None:
    a, w, x, g, bias = tensors(dtype, (5, 64), (40, 64), (5, 192), (192,), (40,))
    dot = accumulate(x, g[None], LANES)
    want = fused_gate_mul(accumulate(a, w, LANES), dot, dtype, bias)
    same_bits(dense_gemv(a, w, bias, epilogue="gate_mul", gate_x=x, gate_weight=g), want)
    same_bits(tiny_dot(x, g), dot.to(dtype))
    same_bits(tiny_dot(x, g, sigmoid=True), round_to(torch.sigmoid(dot.double()), dtype))


def test_a_whole_shared_expert_in_two_launches() -> None:
    x, w13, w2, g = tensors(torch.bfloat16, (2, 128), (128, 128), (128, 64), (128,))
    h = accumulate(x, w13, LANES).to(x.dtype)
    a = fused_silu_mul(h[:, :64], h[:, 64:])
    want = fused_gate_mul(accumulate(a, w2, LANES), accumulate(x, g[None], LANES), x.dtype)
    same_bits(shared_expert(x, w13, w2, g), want)
    same_bits(shared_expert(x, w13, w2), accumulate(a, w2, LANES).to(x.dtype))


PREFILL = [
    ("T21-E4-k2-N40-K256-G32-B16/bf16/exllama-sym/uniform+ep2/normal/s1", "hoisted"),
    ("T20-E3-k2-N80-K320-G64-B32/bf16/exllama-rdna/zipf1+weight/outliers/s2", "hoisted"),
    ("T9-E3-k2-N37-K384-G128-B16/fp16/exllama-unpacked/ignored/normal+strided/s3", "post"),
    ("T9-E2-k1-N40-K160-G-1-B48/fp16/exllama-sym/uniform/cancelling/s4", "post"),
]


@pytest.mark.parametrize(("text", "weight"), PREFILL)
def test_matrix_sums_are_the_models(text: str, weight: str) -> None:
    case = Case.parse(f"padded_gemm/{text}")
    problem = case.build()
    tail = "/zerofused" if weight == "hoisted" else ""
    want = routed_sums(problem, f"fma/t{problem.args['w'].G}/fused{tail}", weight)
    got = padded_gemm(*problem.args.values(), block_size=case.B, store32=True)
    same_bits(got, want)
    for knobs in ({"NTILES": 1, "WAVES": 2}, {"KTILE": 32, "NTILES": 3}):
        same_bits(padded_gemm(*problem.args.values(), block_size=case.B, knobs=knobs, store32=True), want)


def test_the_sum_over_slots_is_in_order_and_leaves_ignored_slots_out() -> None:
    y, weights = tensors(torch.bfloat16, (6, 40), (2, 3))
    ids = torch.tensor([[0, 1, -1], [2, 0, 1]])
    y[2] = float("nan")
    want = torch.zeros(2, 40)
    for t in range(2):
        for j in range(3):
            if ids[t, j] >= 0:
                want[t] = want[t] + weights[t, j].float() * y[3 * t + j].float()
    same_bits(moe_sum(y, weights.float(), ids), want.to(torch.bfloat16))
