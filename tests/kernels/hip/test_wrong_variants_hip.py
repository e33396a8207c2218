"""Wrong kernels, each one line of the real source changed, are caught by the judge under the contract they declare."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from moeracle import Case
from moeracle.kernels.hip import common as hip_common
from moeracle.kernels.hip.runtime.launch import hip_kernel
from moeracle.properties.judge import judge
from moeracle.ref.weights.layouts import pack_int4
from moeracle.target.load import load_target
from support.machine import changed

LINEAR = "int4_linear/T2-N64-K2048-G64/bf16/exllama-sym/-/normal/s1"
ROUTED = "padded_gemm/T5-E4-k2-N40-K96-G32-B2/bf16/exllama-sym/uniform+ep2/normal/s2"
PREFILL = "padded_gemm/T21-E4-k2-N40-K256-G64-B16/bf16/exllama-sym/uniform/normal/s1"
LAYER = "moe_w4a16/T2-E4-k2-H256-I128-G32/bf16/exllama-sym/uniform/normal/s7"
# fp16's way on bf16: every second pair by a mask four bits higher, then fma by 1/16. docs/formats.md section 2.
TWO_MASKS = (
    """const unsigned magic = ((word >> (4 * j)) & 0x000f000fu) | 0x43004300u;
      if (DECODE == MAGIC) {
        out[j] = magic;
      } else {
        const float low = bits_to_float(magic << 16) - o.minus, high = bits_to_float(magic & 0xffff0000u) - o.minus;""",
    """const unsigned magic = ((word >> (8 * (j / 2))) & (j % 2 ? 0x00f000f0u : 0x000f000fu)) | 0x43004300u;
      if (DECODE == MAGIC) {
        out[j] = magic;
      } else {
        const float by = j % 2 ? 0.0625f : 1.0f, minus = j % 2 ? o.minus - 120.0f : o.minus;
        const float low = fmaf(bits_to_float(magic << 16), by, -minus);
        const float high = fmaf(bits_to_float(magic & 0xffff0000u), by, -minus);""",
)
# kernel, case, file, what, by what: the fault's id where FAULTS has one
PLANTS = [
    ("int4_gemv", LINEAR, "codes.h", *TWO_MASKS),  # F21
    ("moe_hip.decode", LAYER, "codes.h", *TWO_MASKS),
    ("int4_gemv.sum", LINEAR, "codes.h", "((word >> (4 * j)) & 0x000f000fu) | 0x43004300u",
     "((word >> (8 * (j / 2))) & (j % 2 ? 0x00f000f0u : 0x000f000fu)) | 0x43004300u"),
    ("int4_gemv.sum", LINEAR, "int4_rows.h", "fmaf(-offset[y].minus, sum_a[r]", "fmaf(-128.0f, sum_a[r]"),  # F50
    ("int4_gemv", LINEAR, "codes.h", "size + 0x7fffu + ((size >> 16) & 1u)", "size"),  # F42: the store truncates
    ("int4_gemv", LINEAR, "int4_rows.h", "sum[r][y] = fmaf(dot, s, sum[r][y])",
     "sum[r][y] = fmaf(dot, 1.005f * s, sum[r][y])"),
    ("int4_gemv", LINEAR, "int4_rows.h", "const long long g = k >> w.group_shift;",
     "const long long g = (k >> w.group_shift) ^ 1;"),  # F29
    ("int4_gemv", LINEAR, "int4_rows.h", "k0 < w.K; k0 += STEP", "k0 + 1024 < w.K; k0 += STEP"),  # F23
    ("int4_gemv", LINEAR, "lanes.h", "v = row_shr_add<1>(v MOERACLE_PASS_SITE);", ""),
    ("moe_gemv", ROUTED, "moe_gemv.hip", "(id[r] / top_k) * x_stride", "(id[r] % top_k) * x_stride"),
    ("moe_gemv", ROUTED, "moe_gemv.hip", "words + expert * word_expert", "words"),
    ("moe_wmma", PREFILL, "moe_wmma.hip", "fmaf(-offset[t].minus, sum_a", "fmaf(-128.0f, sum_a"),  # F50
    ("moe_wmma", PREFILL, "moe_wmma.hip", "words.v[2 * s + 1], lower = words.v[2 * s]",
     "words.v[2 * s], lower = words.v[2 * s + 1]"),
    ("moe_hip.decode", LAYER, "silu_and_mul.hip", "to_float(D{from[0]}), to_float(D{from[I]})",
     "to_float(D{from[I]}), to_float(D{from[0]})"),  # F31
    ("moe_hip.fused", LAYER, "moe_gemm2_reduce.hip", "slot = 1; slot < top_k", "slot = 1; slot + 1 < top_k"),  # F35
    ("moe_hip.fused_silu", LAYER, "moe_gemm2_reduce.hip", "silu_mul_once(to_float(D{h[2 * i + j]})",
     "silu_mul_once(1.005f * to_float(D{h[2 * i + j]})"),
    ("moe_hip.fused_sum", LAYER, "int4_rows.h", "fmaf(-offset[y].minus, sum_a[r]", "fmaf(-128.0f, sum_a[r]"),
]  # fmt: skip


def verdict_of(name: str, text: str):
    kernel = load_target(f"moeracle.kernels.hip:{name}", device="cpu").kernels[0]
    case = Case.parse(text)
    problem = case.build()
    return judge(problem, kernel.fn(*problem.args.values()), kernel.contract_for(case), explain=False)


@pytest.mark.parametrize(
    ("name", "text", "file", "old", "new"), PLANTS, ids=[f"{p[0]}-{i}" for i, p in enumerate(PLANTS)]
)
def test_a_wrong_kernel_is_caught(
    name: str, text: str, file: str, old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOERACLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hip_common, "SOURCES", changed(tmp_path / "source", file, old, new))
    assert verdict_of(name, text).status == "illegal"


@pytest.mark.parametrize(("name", "text"), sorted({plant[:2] for plant in PLANTS}))
def test_the_same_kernel_unchanged_is_legal_on_the_same_case(name: str, text: str) -> None:
    assert verdict_of(name, text).status == "legal"


def test_two_masks_are_right_up_to_code_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why F21 lives: only codes from 9 on decode wrongly, to 2(u-8), so a test whose codes stay below sees nothing."""
    monkeypatch.setenv("MOERACLE_CACHE", str(tmp_path / "cache"))
    folder = changed(tmp_path / "source", "codes.h", *TWO_MASKS)
    shutil.copy(Path(__file__).with_name("codes.hip"), folder)
    codes = torch.arange(16, dtype=torch.uint8)[:, None].repeat(1, 8)
    out = torch.empty(16, 4, dtype=torch.int32)
    hip_kernel(folder / "codes.hip", "decode").launch((1,), (32,), pack_int4(codes, "exllama").flatten(), out, 8, 16)
    got = out.view(torch.bfloat16).reshape(16, 8).float()
    u = torch.arange(16.0)
    assert torch.equal(got[:, 0], u - 8)
    assert torch.equal(got[:, 2], torch.where(u <= 8, u - 8, 2 * (u - 8)))
