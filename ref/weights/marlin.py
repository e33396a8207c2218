"""Marlin's tiles: the words, scales and zero points that vLLM's gptq_marlin_repack and its neighbours make.

K is cut into tiles of 16 inputs, N into tiles of 64 rows. A tile's words stand in the order of a warp's 32 threads,
four words a thread, one for each run of 16 rows (two of 8-bit codes). Thread t holds row t/4 and row t/4 + 8 of the
run, and of each the inputs 2(t%4) + 0, 1, 8, 9: what mma.m16n8k16 wants of its B operand. The codes of a word are
interleaved for their conversion to D.
"""

from __future__ import annotations

import torch

from ..errors import require
from .layouts import INTERLEAVED, pack_plain, unpack_plain

__all__ = [
    "marlin_bias",
    "marlin_scales",
    "marlin_zeros",
    "pack_marlin",
    "unpack_marlin",
    "unpack_marlin_scales",
    "unpack_marlin_zeros",
]

TILE_K, TILE_N = 16, 64
IN_WORD = {4: INTERLEAVED, 8: (0, 16, 8, 24)}  # bit position of each code, by the bits of one
OF_GROUPS = torch.tensor([i + 8 * j for i in range(8) for j in range(8)])
OF_ONE_GROUP = torch.tensor([2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)])


def _places() -> tuple[torch.Tensor, torch.Tensor]:
    """Return of each word of a tile [32 threads, 4 runs], and each of its eight codes, the row and the input."""
    thread = torch.arange(32)[:, None, None]
    run, code = torch.arange(4)[None, :, None], torch.arange(8)[None, None, :]
    rows = 16 * run + thread // 4 + 8 * (code // 4)
    inputs = 2 * (thread % 4) + torch.tensor([0, 1, 8, 9])[code % 4]
    return rows.expand(32, 4, 8), inputs.expand(32, 4, 8)


def pack_marlin(codes: torch.Tensor, bits: int = 4) -> torch.Tensor:
    """Pack int4 or int8 codes into Marlin's tiles.

    word[k/16, 128 * (n/64) + 4 t + run] = the eight codes of thread t, code 2j at bit 4j and code 2j+1 at bit 16+4j

    Of 8 bits, words 8 t + 2 run and 8 t + 2 run + 1 hold the four codes of either row, in order 0, 2, 1, 3.

    Args:
        codes: uint8 [..., N, K], each below 2^bits; N a multiple of 64, K of 16.
        bits: 4 or 8.

    Returns:
        Contiguous int32 [..., K/16, N * bits / 2]; exact.

    Raises:
        ValueError: codes of another dtype, or no whole number of tiles.

    Source: https://github.com/vllm-project/vllm (csrc: gptq_marlin_repack).
    """
    require(codes.dtype == torch.uint8, f"codes: got {codes.dtype}, must be torch.uint8")
    *lead, N, K = codes.shape
    whole = N % TILE_N == 0 and K % TILE_K == 0
    require(whole, f"codes: got N = {N}, K = {K}, must be multiples of {TILE_N} and {TILE_K} for Marlin's tiles")
    rows, inputs = _places()
    tiles = codes.reshape(*lead, N // TILE_N, TILE_N, K // TILE_K, TILE_K).movedim(-2, -4)  # [K tiles, N tiles, 64, 16]
    shifts = IN_WORD[bits]
    words = pack_plain(tiles[..., rows, inputs].unflatten(-1, (-1, len(shifts))), shifts)  # [K, N tiles, 32, 4, words]
    signed = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
    return signed.reshape(*lead, K // TILE_K, N * bits // 2)


def unpack_marlin(words: torch.Tensor, bits: int = 4) -> torch.Tensor:
    """Read the codes out of Marlin's tiles: the inverse of `pack_marlin`.

    Args:
        words: int32 [..., K/16, N * bits / 2], any strides.
        bits: 4 or 8.

    Returns:
        Contiguous uint8 [..., N, K]; exact.

    Raises:
        ValueError: words of another dtype, or no whole number of tiles.

    Source: https://github.com/vllm-project/vllm (csrc: gptq_marlin_repack).
    """
    require(words.dtype == torch.int32, f"words: got {words.dtype}, must be torch.int32")
    *lead, tiles_k, width = words.shape
    tile, shifts = TILE_N * bits // 2, IN_WORD[bits]
    require(width % tile == 0, f"words: got {width} a row, must be a multiple of {tile}")
    tiles_n = width // tile
    runs = words.reshape(*lead, tiles_k, tiles_n, 32, tile // 32).long()
    codes = unpack_plain(runs, shifts, (1 << bits) - 1).unflatten(-1, (4, 8))
    tiles = torch.empty(*lead, tiles_k, tiles_n, TILE_N, TILE_K, dtype=torch.uint8, device=words.device)
    rows, inputs = _places()
    tiles[..., rows, inputs] = codes
    return tiles.movedim(-4, -2).reshape(*lead, tiles_n * TILE_N, tiles_k * TILE_K)


def marlin_scales(scale: torch.Tensor) -> torch.Tensor:
    """Return scales in the order in which Marlin's threads read them.

    Args:
        scale: [..., N, groups], any dtype; N a multiple of 64.

    Returns:
        Contiguous [..., groups, N]; exact.

    Raises:
        ValueError: N is no multiple of 64.

    Source: https://github.com/vllm-project/vllm (marlin_utils.py: marlin_permute_scales).
    """
    return _in_order(scale.mT, OF_ONE_GROUP if scale.shape[-1] == 1 else OF_GROUPS)


def unpack_marlin_scales(scale: torch.Tensor) -> torch.Tensor:
    """Return Marlin's scales [..., groups, N] as [..., N, groups]: the inverse of `marlin_scales`.

    Args:
        scale: [..., groups, N].

    Returns:
        Contiguous [..., N, groups]; exact.

    Raises:
        ValueError: N is no multiple of 64.

    Source: https://github.com/vllm-project/vllm (marlin_utils.py: marlin_permute_scales).
    """
    order = OF_ONE_GROUP if scale.shape[-2] == 1 else OF_GROUPS
    return _in_order(scale, torch.argsort(order)).mT.contiguous()


def marlin_bias(bias: torch.Tensor) -> torch.Tensor:
    """Return a bias [..., N] in the order in which Marlin's threads read it; N a multiple of 64, else ValueError."""
    return _in_order(bias, OF_ONE_GROUP)


def marlin_zeros(zero: torch.Tensor) -> torch.Tensor:
    """Pack zero points as Marlin reads them: in the order of scales of several groups, then interleaved in each word.

    Args:
        zero: uint8 [..., N, groups], each in 0..15; N a multiple of 64.

    Returns:
        Contiguous int32 [..., groups, N/8]; exact.

    Raises:
        ValueError: another dtype, or N is no multiple of 64.

    Source: https://github.com/vllm-project/vllm (marlin_utils.py: marlin_zero_points).
    """
    require(zero.dtype == torch.uint8, f"zero: got {zero.dtype}, must be torch.uint8")
    words = pack_plain(_in_order(zero.mT, OF_GROUPS), INTERLEAVED)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def unpack_marlin_zeros(words: torch.Tensor) -> torch.Tensor:
    """Read the zero points out of Marlin's words: the inverse of `marlin_zeros`.

    Args:
        words: int32 [..., groups, N/8].

    Returns:
        Contiguous uint8 [..., N, groups]; exact.

    Raises:
        ValueError: another dtype, or N is no multiple of 64.

    Source: https://github.com/vllm-project/vllm (marlin_utils.py: marlin_zero_points).
    """
    require(words.dtype == torch.int32, f"words: got {words.dtype}, must be torch.int32")
    return _in_order(unpack_plain(words.long(), INTERLEAVED), torch.argsort(OF_GROUPS)).mT.contiguous()


def _in_order(rows: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Reorder each run of len(order) columns."""
    N = rows.shape[-1]
    require(N % TILE_N == 0, f"N: got {N}, must be a multiple of {TILE_N} for Marlin's tiles")
    return rows.unflatten(-1, (-1, len(order)))[..., order].flatten(-2).contiguous()
