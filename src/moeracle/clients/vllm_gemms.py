"""vLLM 0.33's compiled GEMMs and its Marlin layer, from the CUDA wheel's stable-ABI libraries; they need an NVIDIA GPU.

As in `moeracle.clients.vllm`, from an installed vLLM or from an unpacked wheel (MOERACLE_VLLM=FOLDER). Operands are
copied first: the kernels load 16 bytes at a time, and a view may begin anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from moeracle.kernels.common.block_size import infer_block_size
from moeracle.ref.weights.marlin import marlin_bias, marlin_scales, marlin_zeros

from .packages import client_kernel, needs
from .vllm import DEVICE, STABLE, STABLE_MOE, compiled

T = torch.Tensor
SYMMETRIC = {4: 0x77777777, 8: 0x7F7F7F7F}  # GPTQ v1 words of zero points of the middle
# vLLM's ids: with zero points, and of codes less the middle; the latter by the bits of a code.
UINT4, UINT4B8, UINT8B128 = 4 << 8 | 1 << 50, 4 << 8 | 8 << 17 | 1 << 50, 8 << 8 | 128 << 17 | 1 << 50
LESS_MIDDLE = {4: UINT4B8, 8: UINT8B128}
BLOCKS = (8, 16, 32, 48, 64)
CHAINS = {4: "hfma/t8/tree4-sequential.2-pairwise", 8: "hfma/t4/tree2-sequential.2-pairwise"}  # by the bits of a code


def own(tensor: T) -> T:
    """Return a contiguous copy, which begins where the kernels may load 16 bytes."""
    return tensor.clone(memory_format=torch.contiguous_format)


def takes(library: str, then: Callable[[Any], bool | str]) -> Callable[[Any], bool | str]:
    """Return a `supports`: what the kernel takes, then whether its library is there and a GPU."""

    def of_case(case: Any) -> bool | str:
        answer = then(case)
        return compiled(case) if answer is True else answer

    return needs("vllm", library, of_case)


# ---- awq_gemm, gptq_gemm -----------------------------------------------------


def awq_supports(case: Any) -> bool | str:
    """Say whether awq_gemm takes a case."""
    if case.T == 0 or "bias" in case.flags:
        return "it takes a row or more, and no bias"
    G = case.K if case.G == -1 else case.G
    fits = case.N % 64 == 0 and G % 32 == 0 and case.N % G == 0
    return fits or "N must be a multiple of 64 and of the group, the group of 32"


@client_kernel(
    "vllm.awq_gemm", zeros=("asym",), dtypes=("fp16",), device=DEVICE, supports=takes(STABLE, awq_supports),
    schedule=lambda case: "mma.m16n8k16.sm90",
)  # fmt: skip
def awq_gemm(x: T, w: Any, bias: T | None) -> Any:
    """Call _C.awq_gemm with K in 8 parts, as vLLM does."""
    return torch.ops._C.awq_gemm(own(x), own(w.packed), own(w.scale.mT), own(w.zero), 8)


def gptq_supports(case: Any) -> bool | str:
    """Say whether gptq_gemm's own kernel takes a case: above 50 rows it dequantizes and calls cuBLAS."""
    if not 1 <= case.T <= 50 or "bias" in case.flags:
        return "it takes 1 to 50 rows, and no bias"
    fits = case.K % 32 == 0 and (case.G == -1 or case.G % 32 == 0)
    return fits or "K and the group must be multiples of 32"


@client_kernel(
    "vllm.gptq_gemm", zeros=("sym", "v1", "v2"), dtypes=("fp16",), device=DEVICE, supports=takes(STABLE, gptq_supports),
    schedule=lambda case: f"{CHAINS[4]}/fused/order0.2.4.6.1.3.5.7,parts=k128/dtype/add=dtype",
)  # fmt: skip
@client_kernel(
    "vllm.gptq_gemm.w8", zeros=("sym", "v1", "v2"), dtypes=("fp16",), device=DEVICE,
    supports=takes(STABLE, gptq_supports),
)  # fmt: skip
def gptq_gemm(x: T, w: Any, bias: T | None) -> Any:
    """Call _C.gptq_gemm on shuffled words; the symmetric format's zero points are v1 words of 7, or of 127."""
    words, scale = own(w.packed), own(w.scale.mT)
    torch.ops._C.gptq_shuffle(words, w.bits)
    made = torch.full((scale.shape[0], w.N * w.bits // 32), SYMMETRIC[w.bits], dtype=torch.int32, device=x.device)
    zero = made if w.zero is None else own(w.zero)
    v2 = w.zero is not None and w.zero_layout == "gptq_v2"
    return torch.ops._C.gptq_gemm(own(x), words, zero, scale, True, v2, w.bits)


# ---- moe_wna16_gemm ----------------------------------------------------------


def block_k(K: int, G: int) -> int:
    """Return how many inputs a part of moe_wna16_gemm's K has, 0 where none fits."""
    G = K if G == -1 else G
    fits = [size for size in (128, 64, 32, G) if K % size == 0 and size % G == 0 and size // G in (1, 2, 4, 8)]
    return next((size for size in fits if size % 32 == 0), 0)


def wna16_schedule(case: Any) -> str:
    """Return the schedule of a case: chains of four in D, parts of K by atomics."""
    return f"{CHAINS[case.bits]}/combine=sequential,parts=k{block_k(case.K, case.G)}/dtype/add=dtype"


def wna16_supports(case: Any) -> bool | str:
    """Say whether moe_wna16_gemm takes a case."""
    if not block_k(case.K, case.G):
        return "K and the group must be multiples of 32, K of the group"
    return case.B <= 64 or "blocks are of 64 ids or fewer"


@client_kernel(
    "vllm.moe_wna16_gemm", zeros=("sym", "asym"), device=DEVICE, supports=takes(STABLE_MOE, wna16_supports),
    schedule=wna16_schedule,
)  # fmt: skip
@client_kernel(
    "vllm.moe_wna16_gemm.w8", zeros=("sym", "unpacked"), device=DEVICE, supports=takes(STABLE_MOE, wna16_supports),
    schedule=wna16_schedule,
)  # fmt: skip
def moe_wna16_gemm(
    x: T, w: Any, sorted_token_ids: T, expert_ids: T, num_tokens_post_padded: T, topk_weights: T | None, top_k: int
) -> Any:
    """Call _moe_C.moe_wna16_gemm with parts of K as `block_k` says; it zeroes its output first."""
    R = x.shape[0] * top_k
    out = torch.zeros(R, w.N, dtype=x.dtype, device=x.device)
    if not R:
        return out
    ids, block = whole_blocks(x, w, sorted_token_ids, expert_ids, num_tokens_post_padded, top_k)
    zero = None if w.zero is None else own(w.zero).view(torch.uint8)
    weights = None if topk_weights is None else own(topk_weights)
    torch.ops._moe_C.moe_wna16_gemm(
        own(x), out, own(w.packed).view(torch.uint8), own(w.scale), zero, weights, ids, own(expert_ids),
        own(num_tokens_post_padded), top_k, block, 128, block_k(w.K, w.G), w.bits,
    )  # fmt: skip
    return out


def whole_blocks(x: T, w: Any, ids: T, experts: T, end: T, top_k: int) -> tuple[T, int]:
    """Return the ids padded to whole blocks, as vLLM's own tensor is, and the block's size."""
    R = x.shape[0] * top_k
    block = infer_block_size(len(ids), len(experts), R, w.E, end)
    return torch.nn.functional.pad(own(ids), (0, -len(ids) % block), value=R), block


# ---- Marlin ------------------------------------------------------------------


def marlin_fits(N: int, K: int, G: int) -> bool:
    """Say whether a matrix is of whole Marlin tiles."""
    tiles = (N % 64 == 0 and K % 128 == 0) or (N % 128 == 0 and K % 64 == 0)
    return tiles and G in (-1, 32, 64, 128)


def linear_supports(case: Any) -> bool | str:
    """Say whether marlin_gemm takes a case."""
    fits = marlin_fits(case.N, case.K, case.G)
    return (fits and case.T > 0) or "N, K must be multiples of 64 and 128, or of 128 and 64, and T above 0"


def routed_supports(case: Any) -> bool | str:
    """Say whether moe_wna16_marlin_gemm takes a case."""
    if case.T == 0 or case.B not in BLOCKS:
        return f"it takes a token or more, in blocks of {', '.join(map(str, BLOCKS))}"
    return marlin_fits(case.N, case.K, case.G) or "N, K must be multiples of 64 and 128, or of 128 and 64"


def layer_supports(case: Any) -> bool | str:
    """Say whether the Marlin layer takes a case."""
    both = marlin_fits(2 * case.I, case.H, case.G) and marlin_fits(case.H, case.I, case.G)
    return (both and case.T > 0) or "H must be a multiple of 128, I of 64, and T above 0"


def workspace(device: torch.device) -> T:
    """Return the locks of Marlin's thread blocks, at zero."""
    blocks = 4 * torch.cuda.get_device_properties(device).multi_processor_count
    return torch.zeros(blocks, dtype=torch.int32, device=device)


def repacked(w: Any) -> T:
    """Return the words of a matrix, or of each expert, in Marlin's tiles."""
    repack = torch.ops._C.awq_marlin_repack if w.layout == "awq" else torch.ops._C.gptq_marlin_repack
    if w.E is None:
        return repack(own(w.packed), w.K, w.N, w.bits, False)
    return torch.stack([repack(own(words), w.K, w.N, w.bits, False) for words in w.packed])


def marlin(x: T, w: Any, bias: T | None) -> Any:
    """Call _C.marlin_gemm: sums of thread blocks are joined in fp32, without atomics."""
    scale, added = marlin_scales(w.scale), None if bias is None else marlin_bias(bias)
    zero = None if w.zero is None else marlin_zeros(w.zeros())
    kind = LESS_MIDDLE[w.bits] if w.zero is None else UINT4
    return torch.ops._C.marlin_gemm(
        own(x), None, repacked(w), added, scale, None, None, zero, workspace(x.device), kind, x.shape[0], w.N, w.K,
        False, True, False,
    )  # fmt: skip


@client_kernel("vllm.marlin_gemm", device=DEVICE, supports=takes(STABLE, linear_supports))
@client_kernel("vllm.marlin_gemm.w8", device=DEVICE, supports=takes(STABLE, linear_supports))
def marlin_of_gptq(x: T, w: Any, bias: T | None) -> Any:
    """Repack GPTQ words, then multiply."""
    return marlin(x, w, bias)


@client_kernel("vllm.marlin_gemm.awq", zeros=("asym",), device=DEVICE, supports=takes(STABLE, linear_supports))
def marlin_of_awq(x: T, w: Any, bias: T | None) -> Any:
    """Repack AWQ words and zero points, then multiply."""
    return marlin(x, w, bias)


def routed(x: T, w: Any, blocks: tuple[T, T, T], block: int, weights: T | None, top_k: int) -> T:
    """Call _moe_C.moe_wna16_marlin_gemm; rows that it leaves out are zero."""
    out = torch.zeros(x.shape[0] * top_k, w.N, dtype=x.dtype, device=x.device)
    given = torch.ones(len(out), device=x.device) if weights is None else own(weights)
    torch.ops._moe_C.moe_wna16_marlin_gemm(
        own(x), out, repacked(w), None, marlin_scales(w.scale), None, None, None, workspace(x.device),
        *blocks, given, block, top_k, weights is not None, LESS_MIDDLE[w.bits], x.shape[0], w.N, w.K,
        False, True, False, -1, -1, -1,
    )  # fmt: skip
    return out


@client_kernel("vllm.moe_wna16_marlin_gemm", device=DEVICE, supports=takes(STABLE_MOE, routed_supports))
@client_kernel("vllm.moe_wna16_marlin_gemm.w8", device=DEVICE, supports=takes(STABLE_MOE, routed_supports))
def moe_wna16_marlin_gemm(
    x: T, w: Any, sorted_token_ids: T, expert_ids: T, num_tokens_post_padded: T, topk_weights: T | None, top_k: int
) -> Any:
    """Repack each expert, then multiply block by block."""
    ids, block = whole_blocks(x, w, sorted_token_ids, expert_ids, num_tokens_post_padded, top_k)
    return routed(x, w, (ids, own(expert_ids), own(num_tokens_post_padded)), block, topk_weights, top_k)


@client_kernel("vllm.fused_marlin_moe", device=DEVICE, supports=takes(STABLE_MOE, layer_supports))
@client_kernel("vllm.fused_marlin_moe.w8", device=DEVICE, supports=takes(STABLE_MOE, layer_supports))
def fused_marlin_moe(x: T, w13: Any, w2: Any, topk_weights: T, topk_ids: T) -> Any:
    """Launch what vLLM's fused_marlin_moe does: align, GEMM, silu·up, GEMM times the router weight, torch.sum."""
    (tokens, k), E, block = topk_ids.shape, w13.E, 16
    blocks = -(-(tokens * k + E * (block - 1)) // block)
    ids, experts, end = (torch.zeros(n, dtype=torch.int32, device=x.device) for n in (blocks * block, blocks, 1))
    torch.ops._moe_C.moe_align_block_size(own(topk_ids), E, block, ids, experts, end, None, None)
    h = routed(x, w13, (ids, experts, end), block, None, k)
    a = torch.empty(len(h), w2.K, dtype=x.dtype, device=x.device)
    torch.ops._C.silu_and_mul(a, h)
    y = routed(a, w2, (ids, experts, end), block, topk_weights.reshape(-1), 1)
    return {"h": h, "a": a, "y": y, "out": y.view(tokens, k, -1).sum(1)}
