"""The int8 lm_head: logits from int8 weights with a scale per vocabulary row, or per group of it, on any GPU.

kernels/choose.py prefers hopper_lm_head_kernel on compute capability 9.0; everywhere else:

T = 1, or groups that are no multiple of 16     int8_row_kernel, plain fp32
T = 2..16                                       int8_fragments_kernel, the matrix unit fed from registers
more tokens, other devices, odd groups          int8_rows_kernel, an ordinary tile of the matrix unit
"""

from __future__ import annotations

import math

import torch

from moeracle.kernels.triton.device.int8_fragments import int8_fragments_kernel
from moeracle.kernels.triton.device.int8_tiles import int8_row_kernel, int8_rows_kernel
from moeracle.kernels.triton.tiles import Tile, pow2_at_least
from moeracle.kernels.triton.triton_import import triton

CHUNK = 16  # codes of one load: 16 bytes
SPAN = 128  # inputs of one step of a tile, and of one product of the fragments kernel at most
FEW = 16  # tokens up to which the fragments kernel is used
WARPS = 4  # of the fragments kernel, whose BLOCK_N is 16 rows a warp
ROW = (8, 1024, 2)  # vocabulary rows, inputs and warps of the one-token kernel on a GPU


def int8_lm_head_portable(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    config: Tile | None = None,
) -> torch.Tensor:
    """Do what `int8_lm_head` does with the kernels that every GPU runs.

    Args, Returns, Raises: as `int8_lm_head`.
    """
    T, V, K, G = sizes(x, codes, scale, bias)
    y = torch.empty(T, V, dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    if config is None and (T == 1 or (G and G % 16)):
        return _one_by_one(x, codes, scale, bias, y, G)
    if config is None and T <= FEW and torch.version.hip is None and (G == 0 or G & (G - 1) == 0):
        return _few(x, codes, scale, bias, y, G)
    return _together(x, codes, scale, bias, y, G, config or default_tile(T, V, K, x.device))


def int8_lm_head_rows(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Do what `int8_lm_head` does without the matrix unit, one token at a time; sums are ordinary fp32.

    Args, Returns, Raises: as `int8_lm_head`.
    """
    T, V, _, G = sizes(x, codes, scale, bias)
    y = torch.empty(T, V, dtype=x.dtype, device=x.device)
    return _one_by_one(x, codes, scale, bias, y, G) if y.numel() else y


def _one_by_one(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor, G: int
) -> torch.Tensor:
    (T, V), K = y.shape, x.shape[1]
    block_v, block_k, warps = ROW if x.device.type == "cuda" else (256, max(16, min(512, pow2_at_least(K))), 1)
    int8_row_kernel[(T * triton.cdiv(V, block_v),)](
        *_arguments(x, codes, scale, bias, y),
        BIAS=bias is not None,
        GROUP=G,
        CHUNK=math.gcd(G, CHUNK),  # a chunk lies in one group; of G = 0: CHUNK
        BLOCK_V=block_v,
        BLOCK_K=block_k,
        num_warps=warps,
    )
    return y


def _few(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor, G: int
) -> torch.Tensor:
    (T, V), K = y.shape, x.shape[1]
    block_m, block_n = pow2_at_least(T), 16 * WARPS
    # Products have 16 columns at least, and a multiple of 64 inputs.
    groups = min(max(16 // block_m, 64 // G, 1), max(SPAN // G, 1)) if G else 1
    block_m = max(block_m, 16 // groups)
    block_k = min(SPAN, groups * G) if G else SPAN
    int8_fragments_kernel[(triton.cdiv(V, block_n) * triton.cdiv(T, block_m),)](
        *_arguments(x, codes, scale, bias, y), BIAS=bias is not None, GROUP=G, GROUPS=groups,
        WHOLE=V % block_n == 0 and K % (2 * block_k) == 0, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k,
        WARPS=WARPS, num_warps=WARPS, num_stages=1,
    )  # fmt: skip
    return y


def _together(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    G: int,
    tile: Tile,
) -> torch.Tensor:
    T, V = y.shape
    block_k = math.gcd(G, tile.block_k)  # of a power of two: the largest that divides both; of G = 0, block_k
    if block_k < 16:
        raise ValueError(f"config: got block_k={tile.block_k} for groups of {G}, must have 16 or more in common")
    int8_rows_kernel[(triton.cdiv(V, tile.block_n) * triton.cdiv(T, tile.block_m),)](
        *_arguments(x, codes, scale, bias, y),
        BIAS=bias is not None,
        GROUP=G,
        DOTS=math.gcd(x.shape[1] // block_k, max(1, SPAN // block_k)) if G else 1,  # K is whole steps of groups
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=block_k,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return y


def default_tile(T: int, V: int, K: int, device: torch.device) -> Tile:
    """Choose the matrix kernel's tile: block_m tokens, block_n vocabulary rows."""
    rows = min(64, max(16, pow2_at_least(T)))
    if device.type != "cuda":
        return Tile(rows, max(16, min(256, pow2_at_least(V))), max(16, min(256, pow2_at_least(K))))
    if torch.version.hip is not None:
        return Tile(16, 64, 64, num_warps=4, num_stages=1)
    return Tile(rows, 128, 128, num_warps=8 if rows > 16 else 4, num_stages=3)


def _arguments(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, y: torch.Tensor
) -> tuple[object, ...]:
    """Return what both kernels begin with; where nothing is given or grouped, something that is never read."""
    of_scale = (*scale.stride(), 0)[:2]
    strides = (*x.stride(), *codes.stride(), *of_scale)
    return (x, codes, scale, x if bias is None else bias.contiguous(), y, *y.shape, x.shape[1], *strides)


def sizes(
    x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> tuple[int, int, int, int]:
    """Return T, V, K and G, 0 for one scale a row; or raise ValueError."""
    if x.ndim != 2 or x.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"x: got {x.dtype} of shape {tuple(x.shape)}, must be bf16 or fp16 [T, K]")
    T, K = x.shape
    if codes.dtype != torch.int8 or codes.ndim != 2 or codes.shape[1] != K:
        raise ValueError(f"codes: got {codes.dtype} of shape {tuple(codes.shape)}, must be int8 [V, {K}]")
    V = codes.shape[0]
    groups = scale.shape[1] if scale.ndim == 2 else 0
    if not scale.is_floating_point() or scale.shape[:1] != (V,) or scale.ndim > 2 or (groups and K % groups):
        raise ValueError(
            f"scale: got {scale.dtype} of shape {tuple(scale.shape)}, must be floating [{V}] or [{V}, K/G] with G "
            f"dividing K = {K}"
        )
    if scale.ndim == 2 and not groups:
        raise ValueError(f"scale: got shape {tuple(scale.shape)}, must have at least one group a row")
    if bias is not None and bias.shape != (V,):
        raise ValueError(f"bias: got shape {tuple(bias.shape)}, must be [{V}]")
    return T, V, K, K // groups if groups else 0
