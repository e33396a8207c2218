"""Dequantization by magic number: the integer bit operations GPU kernels use instead of an int-to-float conversion.

A float whose last mantissa bit is worth 1 counts in integers: or-ing a nibble u into the bits of 128.0 (bf16, 0x4300)
gives exactly 128+u, into 1024.0 (fp16, 0x6400) exactly 1024+u, and a byte into 2^23 (fp32, 0x4B000000) exactly 2^23+u.
Subtracting the constant plus the zero point leaves u - z, exactly. The int4 paths read `exllama` words, where
(word >> 4j) & 0x000F000F is the pair (k = 2j in the low half, k = 2j+1 in the high half): two weights an operation.
"""

from __future__ import annotations

import torch

from ..errors import require, unknown

BF16_METHODS = ("single_mask", "sum_correction", "sub_finite", "truncate", "two_mask")
FP16_METHODS = ("single_mask", "two_mask")

_LOW, _HIGH = 0x000F000F, 0x00F000F0
_BF16_128 = 0x43004300  # 128.0 twice; one unit in the last place is 1
_FP16_1024 = 0x64006400  # 1024.0 twice; one unit in the last place is 1
_FP32_2_23 = 0x4B000000  # 2^23; one unit in the last place is 1


def dequantize_bf16_magic(words: torch.Tensor, *, method: str = "single_mask", zero: int = 8) -> torch.Tensor:
    """Decode `exllama` words to bf16 through 128.0, step by step as a kernel does.

    single_mask     ((w >> 4j) & 0x000F000F | 0x43004300) - (128 + zero), in bf16
    sub_finite      the same subtraction in fp32, rounded half to even without the NaN path
    truncate        the same subtraction in fp32, low 16 bits dropped
    sum_correction  no subtraction: 128 + u, for `sum_correction` to repair after the sum
    two_mask        every second pair through 0x00F000F0, times 1/16, - (8 + zero). WRONG: bit 3 of the nibble lands on
                    the lowest exponent bit, so u >= 9 decodes to 2(u-8) for zero = 8; u <= 8 survives

    Args:
        words: int32 [..., N, K/8], `exllama` order, any bits.
        method: one of BF16_METHODS.
        zero: the zero point that the magic constant absorbs, 0..15 (`sum_correction` does not use it).

    Returns:
        bf16 [..., N, K]: u - zero, exact (128 + u, exact, for `sum_correction`; `two_mask` as said above).

    Raises:
        ValueError: words not int32, unknown method, zero outside 0..15.

    Source: https://github.com/vllm-project/vllm (marlin dequant); https://github.com/ROCm/vllm (gfx11 hybrid kernels).
    """
    flat = _flat_words(words, zero)
    if method not in BF16_METHODS:
        raise unknown("method", method, BF16_METHODS)
    if method == "two_mask":
        return _two_mask(words, flat, _BF16_128, torch.bfloat16, zero)
    raw = _single_mask(words, flat, _BF16_128, torch.bfloat16)
    constant = torch.tensor(128 + zero, dtype=torch.bfloat16, device=words.device)
    if method == "sum_correction":
        return raw
    if method == "sub_finite":
        return sub_finite(raw, constant)
    if method == "truncate":
        return truncate_bf16(raw.float() - constant.float())
    return raw - constant


def dequantize_fp16_magic(words: torch.Tensor, *, method: str = "two_mask", zero: int = 8) -> torch.Tensor:
    """Decode `exllama` words to fp16 through 1024.0, step by step as a kernel does.

    single_mask  ((w >> 4j) & 0x000F000F | 0x64006400) - (1024 + zero)
    two_mask     low pairs as above; high pairs hold 1024 + 16u: fma(v, 1/16, -(64 + zero)); then w >> 8 and again

    fp16 has ten mantissa bits, so the high mask's bits 4..7 stay inside the mantissa: both methods are right.

    Args:
        words: int32 [..., N, K/8], `exllama` order, any bits.
        method: one of FP16_METHODS.
        zero: the zero point that the magic constant absorbs, 0..15.

    Returns:
        fp16 [..., N, K]: u - zero, exact.

    Raises:
        ValueError: words not int32, unknown method, zero outside 0..15.

    Source: https://github.com/vllm-project/vllm (gptq and awq dequantization through lop3).
    """
    flat = _flat_words(words, zero)
    if method not in FP16_METHODS:
        raise unknown("method", method, FP16_METHODS)
    if method == "two_mask":
        return _two_mask(words, flat, _FP16_1024, torch.float16, zero)
    return _single_mask(words, flat, _FP16_1024, torch.float16) - (1024 + zero)


def dequantize_int8_magic(codes: torch.Tensor, *, zero: int = 128) -> torch.Tensor:
    """Decode unsigned bytes to bf16 through the fp32 number 2^23.

    (0x4B000000 | u) as fp32 is 2^23 + u; subtracting 2^23 + zero leaves u - zero

    Args:
        codes: uint8, any shape.
        zero: 128 for biased int8 codes, 0 for unsigned ones; 0..255.

    Returns:
        bf16 of codes' shape: u - zero, exact (eight significant bits).

    Raises:
        ValueError: codes not uint8, zero outside 0..255.

    Source: https://github.com/vllm-project/vllm (marlin dequant, uint8b128 to bf16).
    """
    require(codes.dtype == torch.uint8, f"codes: got {codes.dtype}, must be torch.uint8")
    require(0 <= zero <= 255, f"zero: got {zero}, must be 0..255")
    bits = codes.to(torch.int32).bitwise_or_(_FP32_2_23).contiguous()
    return bits.view(torch.float32).sub(float(2**23 + zero)).to(torch.bfloat16)


def sum_correction(a: torch.Tensor, words: torch.Tensor, *, chunk: int = 32, constant: int = 136) -> torch.Tensor:
    """Dot products with the zero point taken out of the sum, per thread chunk, before the scale.

    sum a(u-8) = sum a(128+u) - 136 * sum a

    Each sum runs in fp32 in order of k and starts from its first term; products are exact. The subtraction cancels
    two large sums: against a direct fp32 sum of a(u-8) the error is larger by two orders of magnitude.

    Args:
        a: bf16 [T, K].
        words: int32 [N, K/8], `exllama` order.
        chunk: k summed by one thread, a divisor of K; 16 or 32 in known kernels.
        constant: what is subtracted per unit of sum a: 136 = 128 + 8 (128 forgets the zero point).

    Returns:
        fp32 [T, N, K/chunk]: one partial dot a chunk, error below (2 chunk + 1) 2^-24 * sum |a|(128+u+136).

    Raises:
        ValueError: a not bf16 [T, K]; words not int32 [N, K/8]; chunk not a divisor of K.

    Source: https://github.com/ROCm/vllm (gfx11 WMMA prefill: per group, scale * (raw - 136 * sum a)).
    """
    require(
        a.dtype == torch.bfloat16 and a.ndim == 2, f"a: got {a.dtype} {tuple(a.shape)}, must be torch.bfloat16 [T, K]"
    )
    require(words.ndim == 2, f"words: got shape {tuple(words.shape)}, must be [N, K/8]")
    (T, K), N = a.shape, words.shape[0]
    require(words.shape[1] * 8 == K, f"words: got shape {tuple(words.shape)}, must be [N, K/8] with K = {K}")
    require(chunk > 0 and K % chunk == 0, f"chunk: got {chunk}, must be a positive divisor of K = {K}")
    raw = dequantize_bf16_magic(words, method="sum_correction").float().view(1, N, K // chunk, chunk)
    act = a.float().view(T, 1, K // chunk, chunk)
    dot, total = act[..., 0] * raw[..., 0], act[..., 0].clone()
    for k in range(1, chunk):
        dot += act[..., k] * raw[..., k]
        total += act[..., k]
    return dot - constant * total


def sub_finite(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Subtract bf16 numbers in fp32 and round half to even by integer addition, without the NaN path.

    bits = fp32 bits of (a - b); result = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16

    Args:
        a: bf16, any shape, finite.
        b: bf16, broadcastable to a, finite.

    Returns:
        bf16: the fp32 difference, correctly rounded. A NaN may come out as a number: its path is what is left out.

    Raises:
        ValueError: a or b not bf16.

    Source: docs/formats.md section 2.
    """
    for name, tensor in (("a", a), ("b", b)):
        require(tensor.dtype == torch.bfloat16, f"{name}: got {tensor.dtype}, must be torch.bfloat16")
    bits = (a.float() - b.float()).contiguous().view(torch.int32)
    odd = (bits >> 16).bitwise_and_(1)
    return ((bits + 0x7FFF + odd) >> 16).to(torch.int16).view(torch.bfloat16)


def truncate_bf16(x: torch.Tensor) -> torch.Tensor:
    """Drop the low 16 bits of fp32 numbers: bf16 rounded toward zero.

    Args:
        x: fp32, any shape.

    Returns:
        bf16 of x's shape, at most one unit in the last place below |x|; equal to rounding where x fits bf16.

    Raises:
        ValueError: x not fp32.

    Source: docs/formats.md section 2.
    """
    require(x.dtype == torch.float32, f"x: got {x.dtype}, must be torch.float32")
    return (x.contiguous().view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16)


def _flat_words(words: torch.Tensor, zero: int) -> torch.Tensor:
    require(words.dtype == torch.int32, f"words: got {words.dtype}, must be torch.int32")
    require(words.ndim >= 1, "words: got a scalar, must be [..., N, K/8]")
    require(0 <= zero <= 15, f"zero: got {zero}, must be 0..15")
    return words.reshape(-1)


def _two_halves(bits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Int32 [W] as its two 16-bit floats, low half first, [W, 2]."""
    return bits.view(dtype).view(-1, 2)


def _interleave(words: torch.Tensor, pairs: list[torch.Tensor]) -> torch.Tensor:
    """Four [W, 2] tensors, the pairs (k = 2j, 2j+1) for j = 0..3, as [..., N, K]."""
    return torch.stack(pairs, dim=1).view(*words.shape[:-1], words.shape[-1] * 8)


def _single_mask(words: torch.Tensor, flat: torch.Tensor, magic: int, dtype: torch.dtype) -> torch.Tensor:
    """Magic + u for all eight nibbles, always through the low mask."""
    return _interleave(words, [_two_halves((flat >> 4 * j) & _LOW | magic, dtype) for j in range(4)])


def _two_mask(words: torch.Tensor, flat: torch.Tensor, magic: int, dtype: torch.dtype, zero: int) -> torch.Tensor:
    """u - zero through a low and a high mask, with one shift by 8 between the two rounds."""
    base = int(torch.tensor([magic], dtype=torch.int32).view(dtype)[0])  # 128 or 1024
    pairs = []
    for shift in (0, 8):
        low = _two_halves((flat >> shift) & _LOW | magic, dtype)
        high = _two_halves((flat >> shift) & _HIGH | magic, dtype)
        pairs.append(low - (base + zero))
        pairs.append((high.float() / 16 - (base // 16 + zero)).to(dtype))  # one fma: exact, then one rounding
    return _interleave(words, pairs)
