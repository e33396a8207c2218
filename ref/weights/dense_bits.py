"""Codes of 1 to 8 bits packed densely, as checkpoints store them: one stream of bits, least significant first.

word[i * bits // 32] holds the first bits of code i at i * bits % 32; where a code straddles two words (3, 5, 6 and 7
bits), the next word holds the rest. For 4 bits this is the order of layout `gptq` along K.
"""

from __future__ import annotations

import torch

from ..errors import require

_CHUNK = 1 << 20  # codes at once: the int64 temporaries stay small for whole layers


def words_for(count: int, bits: int) -> int:
    """Return how many 32-bit words hold `count` codes of `bits` bits each."""
    return -(-count * bits // 32)


def unpack_bits(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Read codes of `bits` bits out of dense words, along the last dimension.

    code[i] = (stream >> i * bits) & (2^bits - 1), with stream the words one after another, the first lowest

    Args:
        words: int32 [..., W] with W = ceil(count * bits / 32), any strides.
        bits: 1..8.
        count: codes a row; bits after the last code are ignored.

    Returns:
        Contiguous uint8 [..., count]; exact.

    Raises:
        ValueError: another dtype, bits outside 1..8, or a last dimension that does not hold `count` codes.

    Source: https://github.com/vllm-project/compressed-tensors (pack-quantized), https://github.com/ModelCloud/GPTQModel.
    """
    require(words.dtype == torch.int32, f"words: got {words.dtype}, must be torch.int32")
    _check_bits(bits)
    needed = words_for(count, bits)
    have = words.shape[-1] if words.ndim else 0
    require(words.ndim > 0 and have == needed, f"words: got {have} a row, must be {needed} for {count} codes")
    out = torch.empty(*words.shape[:-1], count, dtype=torch.uint8, device=words.device)
    flat, rows = out.view(-1, count) if count else out, words.reshape(-1, needed)
    if not out.numel():
        return out
    at_once = max(1, _CHUNK // count)
    for first in range(0, len(rows), at_once):
        # A copy even of what is contiguous: a dimension of size 1 may have any stride, which a view of bytes refuses.
        part = rows[first : first + at_once].clone(memory_format=torch.contiguous_format)
        flat[first : first + at_once] = _unpack(part, bits, count)
    return out


def pack_bits(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes of `bits` bits into dense words along the last dimension: the inverse of `unpack_bits`.

    Args:
        codes: uint8 [..., count], each below 2^bits, any strides.
        bits: 1..8.

    Returns:
        Contiguous int32 [..., ceil(count * bits / 32)]; bits after the last code are 0. Exact.

    Raises:
        ValueError: another dtype, bits outside 1..8, or a code that does not fit.

    Source: https://github.com/vllm-project/compressed-tensors (pack-quantized).
    """
    require(
        codes.dtype == torch.uint8 and codes.ndim > 0, f"codes: got {codes.dtype}, must be torch.uint8 [..., count]"
    )
    _check_bits(bits)
    largest = int(codes.max()) if codes.numel() else 0
    require(largest < 1 << bits, f"codes: largest value is {largest}, must be below {1 << bits}")
    count = codes.shape[-1]
    place = torch.arange(count, device=codes.device) * bits
    word, shift = place // 32, place % 32
    wide = codes.to(torch.int64)
    # Codes do not overlap, so that adding is the same as OR; what straddles goes on in the next word.
    sums = torch.zeros(*codes.shape[:-1], words_for(count, bits) + 1, dtype=torch.int64, device=codes.device)
    shifted = wide << shift
    sums.index_add_(-1, word, shifted & 0xFFFFFFFF)
    sums.index_add_(-1, word + 1, shifted >> 32)
    sums = sums[..., :-1]
    return torch.where(sums >= 1 << 31, sums - (1 << 32), sums).to(torch.int32)


def _unpack(rows: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    if bits == 8:
        return rows.view(torch.uint8)[:, :count]
    if bits == 4:
        both = rows.view(torch.uint8)
        return torch.stack((both & 15, both >> 4), -1).flatten(1)[:, :count]
    place = torch.arange(count, device=rows.device) * bits
    unsigned = torch.nn.functional.pad(rows.to(torch.int64) & 0xFFFFFFFF, (0, 1))
    pair = unsigned[:, place // 32] | (unsigned[:, place // 32 + 1] & 0xFF) << 32
    return (pair >> place % 32 & (1 << bits) - 1).to(torch.uint8)


def _check_bits(bits: int) -> None:
    require(1 <= bits <= 8, f"bits: got {bits}, must be 1..8")
