"""Presets: where each known kernel rounds, and what that is known from.

A name with a version, `vllm@0.33:marlin`, is that release's kernel; one without is the kernel as it was first described
(docs/formats.md section 4), which later releases may have changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .parts import Parts

__all__ = ["KNOWN", "Known"]

JUDGED = "vLLM 0.33's compiled op judged on one H200 (torch 2.11)"


@dataclass(frozen=True)
class Known:
    """One kernel whose roundings are known.

    Args:
        whose: the kernel, in a few words.
        evidence: what was read, run or judged, and of which version.
        fields: the contract's fields that differ from the default.
    """

    whose: str
    evidence: str
    fields: dict[str, Any] = field(default_factory=dict)


FUSED = {"stores": ("h", "a", "out"), "silu": "fp32"}
KNOWN: dict[str, Known] = {
    "gptq_awq": Known(
        "vLLM Triton `fused_moe_kernel_gptq_awq`", "source of vLLM before 0.33; 0.32's kernel run on the CPU",
        {"router_weight": "gemm2", "topk_sum": "vllm"},
    ),
    "hybrid": Known("ROCm/vllm Triton", "source"),
    "grouped": Known("ROCm/vllm Triton; this repository's Triton kernels", "judged on one H200"),
    "wvsplitk": Known(
        "ROCm/vllm HIP decode", "source; vLLM 0.33's gfx11 code executed, bit for bit",
        {"weight": "post", "accumulator": "rdna"},
    ),
    "megakernel": Known(
        "ROCm/vllm HIP, fused silu", "source", {"weight": "post", "accumulator": "rdna", **FUSED},
    ),
    # The same with GEMM2's codes left at 128 + u and 136 * sum(a) subtracted afterwards.
    "megakernel_sum": Known(
        "the same with the 136·Σa correction", "source",
        {"weight": "hoisted", "accumulator": "rdna", "zero_offset": 128, **FUSED},
    ),
    # s * (raw - 136 * sum a) per group.
    "wmma": Known(
        "ROCm/vllm HIP prefill", "source; vLLM 0.33's gfx11 code executed, bit for bit",
        {"weight": "hoisted", "accumulator": "rdna", "zero_offset": 128},
    ),
    # Its parts of K are BLOCK_SIZE_K long: 128 or more unless a tuned table says less.
    "moe_wna16": Known(
        "vLLM CUDA `moe_wna16_gemm`", "source of vLLM before 0.33: chains of four in D, parts by 16-bit atomics",
        {"accumulator": "chains", "parts": Parts(length=128, longer=True, kept="dtype", add="dtype"),
         "router_weight": "gemm2", "topk_sum": "vllm", "deterministic": False},
    ),
    # The router weight is rounded to D and multiplied in D after the store rounding.
    "marlin": Known("vLLM CUDA Marlin MoE", "source of vLLM before 0.33", {"router_weight": "gemm2_dtype"}),
    "et_vecmat": Known(
        "executorch decode", "executorch 1.5.1's kernel run on the CPU: every bit of h and y",
        {"weight": "exact", "accumulator": "fp32", "stores": ("h", "y", "out"), "silu": "fp32",
         "router_weight": "gemm2"},
    ),
    "et_batched": Known("executorch prefill", "source of executorch 1.5.1", {"silu": "fp32", "router_weight": "gemm2"}),
    # fp32 dot of 16, times the scale in fp32, reduce, bias, one rounding.
    "int8_lm_head": Known("int8 lm_head", "source", {"weight": "post", "accumulator": "fp32"}),
    "vllm@0.33:gptq_awq": Known(
        "vLLM Triton `fused_moe_kernel_gptq_awq`", f"{JUDGED}: its moe_sum adds k = 3 and 4 in fp32",
        {"router_weight": "gemm2"},
    ),
    "vllm@0.33:marlin": Known(
        "vLLM CUDA Marlin, dense and MoE",
        f"{JUDGED}: with one group the scale enters after the store, in D; a bias after the store, which its machine "
        "code (sm_90) fuses with that scale in 31 of 32 places",
        {"router_weight": "gemm2_dtype", "one_group": "after_store", "bias": "contracted"},
    ),
    "vllm@0.33:marlin_w8": Known(
        "vLLM CUDA Marlin with 8-bit codes (uint8b128), dense and MoE",
        f"{JUDGED}, 14 cases: with one group the scale multiplies the fp32 sum",
        {"router_weight": "gemm2_dtype", "one_group": "after_sum", "bias": "stored"},
    ),
    "vllm@0.33:moe_wna16": Known(
        "vLLM CUDA `moe_wna16_gemm`, whose parts of K are BLOCK_SIZE_K long: add parts=kN/dtype/add=dtype",
        f"{JUDGED}, 16 cases: two chains of four products fused in D, added in fp32; the parts by 16-bit atomics",
        {"accumulator": "chains", "router_weight": "gemm2", "deterministic": False},
    ),
    "vllm@0.33:awq_gemm": Known(
        "vLLM CUDA `awq_gemm`", f"{JUDGED}: tiles of 32 inputs dealt to 8 parts, each rounded to D, added in fp32",
        {"parts": Parts(count=8, deal=32, kept="dtype")},
    ),
    "vllm@0.33:gptq_gemm": Known(
        "vLLM CUDA `gptq_gemm`",
        f"{JUDGED}, 15 cases: chains of four products fused in D, scaled in fp32; parts of 128 inputs by 16-bit "
        "atomics. Of v1 zero points it adds 1 without a mask: v1_zeros=plain",
        {"weight": "post", "accumulator": "chains", "parts": Parts(length=128, kept="dtype", add="dtype"),
         "deterministic": False},
    ),
    "vllm@0.33:moe_gemm_rdna3": Known(
        "vLLM HIP `moe_gptq_gemm_rdna3`, prefill", "vLLM 0.33's gfx11 code executed: every bit at K = 2048",
        {"weight": "hoisted", "accumulator": "rdna", "zero_offset": 1024, "deterministic": False,
         "parts": Parts(length=256, kept="dtype", add="dtype")},
    ),
    "vllm@0.32:emulation": Known(
        "vLLM `Int4EmulationTritonExperts`", "0.32's function run on the CPU: scales are cast to D first",
        {"scale_cast": True, "router_weight": "gemm2"},
    ),
    "vllm@0.33:cpu_fused_moe": Known(
        "vLLM CPU `cpu_fused_moe`, AVX2", "0.32's library run on the CPU, 0.33's judged: bf16 stores truncate",
        {"weight": "exact", "accumulator": "fp32", "stores": ("a", "out"), "silu": "fp32",
         "store_rounding": "rtz_bf16"},
    ),
    "transformers@5.24:eager": Known(
        "transformers eager experts",
        "5.24's run on the CPU: rows are weighed in D and added in D, expert after expert",
        {"router_weight": "gemm2_dtype", "topk_sum": "dtype", "slot_order": "experts"},
    ),
}  # fmt: skip
