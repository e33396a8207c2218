"""Kernels of others: whose they are, which op they implement, in which layout, under which contract.

`moeracle.clients.vllm` and its neighbours are TARGETs: `moeracle check moeracle.clients.vllm`. They import the package
only when a kernel is called, and every case is skipped with the reason where it is absent. Nothing of theirs is copied.
"""

from __future__ import annotations

from dataclasses import dataclass

from moeracle.ref.errors import unknown

__all__ = ["CLIENTS", "Client", "client_named"]


@dataclass(frozen=True)
class Client:
    """One kernel of another project.

    Args:
        name: project.kernel.
        op: the op that it implements.
        contract: where it rounds.
        layout, zeros: how it stores weights and zero points; None where it reads no packed weight, or dequantized ones.
        source: the version that was read or run, and where in it.
        bits: of a weight's code.
    """

    name: str
    op: str
    contract: str
    layout: str | None = None
    zeros: str | None = None
    source: str = ""
    bits: int = 4


_VLLM, _CUDA, _SGLANG = "vLLM 0.32", "vLLM 0.33's CUDA wheel", "sglang 0.5.23"
_ET, _AITER = "executorch 1.5.1", "aiter main of 2026-08-22"
CLIENTS: dict[str, Client] = {
    client.name: client
    for client in (
        Client(
            "vllm.fused_moe_wna16", "moe_w4a16", "gptq_awq", "nibble_pairs", "nibble_pairs",
            f"{_VLLM}, model_executor/layers/fused_moe/fused_moe.py: fused_moe_kernel_gptq_awq",
        ),
        Client(
            "vllm.fused_moe_kernel_gptq_awq", "padded_gemm", "gptq_awq", "nibble_pairs", "nibble_pairs",
            f"{_VLLM}, model_executor/layers/fused_moe/fused_moe.py",
        ),
        Client(
            "vllm.fused_marlin_moe", "moe_w4a16", "vllm@0.33:marlin", "gptq", "unpacked",
            f"{_CUDA}, model_executor/layers/fused_moe/experts/marlin_moe.py; before the repack",
        ),
        Client(
            "vllm.moe_wna16_marlin_gemm", "padded_gemm", "vllm@0.33:marlin", "gptq", "unpacked",
            f"{_CUDA}, csrc/moe/marlin_moe_wna16; before the repack",
        ),
        Client(
            "vllm.marlin_gemm", "int4_linear", "vllm@0.33:marlin", "gptq", "unpacked",
            f"{_CUDA}, csrc/quantization/marlin; before gptq_marlin_repack",
        ),
        Client(
            "vllm.marlin_gemm.awq", "int4_linear", "vllm@0.33:marlin", "awq", "awq",
            f"{_CUDA}, csrc/quantization/marlin; before awq_marlin_repack",
        ),
        Client(
            "vllm.awq_gemm", "int4_linear", "vllm@0.33:awq_gemm", "awq", "awq",
            f"{_CUDA}, csrc/quantization/awq/gemm_kernels.cu",
        ),
        Client(
            "vllm.gptq_gemm", "int4_linear", "vllm@0.33:gptq_gemm,v1_zeros=plain", "gptq", "gptq_v1",
            f"{_CUDA}, csrc/quantization/gptq/q_gemm.cu; before gptq_shuffle",
        ),
        *(
            Client(f"vllm.{name}.w8", op, contract, layout, "unpacked", f"{_CUDA}, as vllm.{name}, 8-bit codes", 8)
            for name, op, contract, layout in (
                ("marlin_gemm", "int4_linear", "vllm@0.33:marlin_w8", "gptq"),
                ("moe_wna16_marlin_gemm", "padded_gemm", "vllm@0.33:marlin_w8", "gptq"),
                ("fused_marlin_moe", "moe_w4a16", "vllm@0.33:marlin_w8", "gptq"),
                ("moe_wna16_gemm", "padded_gemm", "vllm@0.33:moe_wna16", "bytes"),
                ("gptq_gemm", "int4_linear", "vllm@0.33:gptq_gemm,accumulator=dtype,v1_zeros=plain", "gptq"),
            )
        ),
        Client("vllm.moe_sum", "moe_unpermute", "grouped", source=f"{_CUDA}, csrc/moe/moe_align_sum_kernels.cu"),
        Client(
            "vllm.cpu_fused_moe", "moe_w4a16", "vllm@0.33:cpu_fused_moe,weight=cast",
            source=f"{_VLLM}, csrc/cpu; dense weights, here the dequantized ones rounded to the activations' dtype",
        ),
        Client(
            "vllm.moe_wna16_gemm", "padded_gemm", "vllm@0.33:moe_wna16", "nibble_pairs", "nibble_pairs",
            f"{_CUDA}, csrc/moe/moe_wna16.cu",
        ),
        Client("vllm.wvSplitK_int4_g", "int4_linear", "wvsplitk", "exllama", "rdna", f"{_VLLM}, csrc/rocm"),
        Client("vllm.awq_dequantize", "dequantize_int4", "grouped", "awq", "awq", f"{_VLLM}, csrc/quantization/awq"),
        Client("vllm.silu_and_mul", "silu_and_mul", "grouped", source=f"{_VLLM}, csrc/activation_kernels.cu"),
        Client("vllm.topk_softmax", "topk_softmax", "grouped", source=f"{_VLLM}, csrc/moe/topk_softmax_kernels.cu"),
        Client(
            "vllm.moe_align_block_size", "moe_align_block_size", "grouped",
            source=f"{_VLLM}, csrc/moe/moe_align_sum_kernels.cu",
        ),
        Client(
            "sglang.fused_moe_wna16", "moe_w4a16", "gptq_awq,topk_sum=fp32", "nibble_pairs", "nibble_pairs",
            f"{_SGLANG}, srt/layers/moe/fused_moe_triton: fused_moe_kernel_gptq_awq, moe_sum_reduce from k = 3 on",
        ),
        Client(
            "sglang.fused_moe_kernel_gptq_awq", "padded_gemm", "gptq_awq", "nibble_pairs", "nibble_pairs",
            f"{_SGLANG}, srt/layers/moe/fused_moe_triton",
        ),
        Client("sglang.fused_marlin_moe", "moe_w4a16", "marlin", "gptq", "unpacked", f"{_SGLANG}; before the repack"),
        Client(
            "executorch.fused_moe", "moe_w4a16", "et_vecmat", "nibble_pairs", "nibble_pairs",
            f"{_ET}, backends/cuda/triton/kernels/fused_moe.py: fused_moe",
        ),
        Client(
            "executorch.fused_moe_batched_gemm", "moe_w4a16", "et_batched",
            "nibble_pairs", "nibble_pairs",
            f"{_ET}, backends/cuda/triton/kernels/fused_moe.py: fused_moe_batched_gemm",
        ),
        Client(
            "aiter.fused_moe", "padded_gemm", "gptq_awq", "nibble_pairs", "nibble_pairs",
            f"{_AITER}, aiter/ops/triton/moe/moe_op.py: fused_moe; read, not run",
        ),
    )
}  # fmt: skip


def client_named(name: str) -> Client:
    """Return one of CLIENTS.

    Args:
        name: project.kernel.
    Returns:
        Client.
    Raises:
        ValueError: an unknown name, with the nearest one there is.
    """
    if name not in CLIENTS:
        raise unknown("client", name, CLIENTS)
    return CLIENTS[name]
