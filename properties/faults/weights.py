"""Faults between packed words and u - z: nibble order, offsets, zero points, signs."""

from __future__ import annotations

from typing import Any

import torch

from .base import ASYMMETRIC, GEMMS, PACKED, SCALED, fault, issue, pull

T = torch.Tensor
FOUR_SWAPPED = (0, 2, 1, 3)  # of four 8-bit codes in a word
NOT_AS_PACKED = {  # which of eight codes a reader of the wrong order finds in each place
    "exllama": (0, 2, 4, 6, 1, 3, 5, 7),  # read sequentially
    "awq": (0, 2, 4, 6, 1, 3, 5, 7),
    "gptq": (0, 4, 1, 5, 2, 6, 3, 7),  # read as interleaved
    "compressed_tensors": (0, 4, 1, 5, 2, 6, 3, 7),
    "nibble_pairs": (1, 0),
    "exllama_k": (0, 2, 4, 6, 1, 3, 5, 7),
    "sequential_n": (0, 4, 1, 5, 2, 6, 3, 7),
    "twos_complement": (0, 2, 4, 6, 1, 3, 5, 7),
    "int8": (1, 0),
}


def shuffled(x: T, order: tuple[int, ...]) -> T:
    """Reorder each whole run of the last dimension; a shorter last run stays."""
    whole = x.shape[-1] // len(order) * len(order)
    runs = x[..., :whole].unflatten(-1, (-1, len(order)))[..., list(order)]
    return torch.cat([runs.flatten(-2), x[..., whole:]], -1)


@fault("F05", "32-bit offset overflow: codes beyond the limit are read from the start again", ops=PACKED, stage="h",
       source=pull("vllm-project/vllm", 34507), step="codes")  # fmt: skip
def offset_overflow(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    every = w.codes().flatten()
    limit = 1 << max(0, (every.numel() // 2).bit_length() - 1)  # in place of 2^31: a layer that reaches it takes 2 GB
    size = w.N * w.K
    offsets = (torch.arange(size, device=every.device) + (e or 0) * size) % limit
    return every[offsets].reshape(w.N, w.K)


@fault("F06", "GPTQ v1 and v2 zero points confused: 7 for 8", ops=SCALED, stage="h",
       source=pull("vllm-project/vllm", 38966), step="zeros")  # fmt: skip
def zero_point_off_by_one(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    return base(w, e, which) - 1


@fault("F07", "adding 1 to a whole packed zero point word carries into its neighbour", ops=SCALED, stage="h",
       source=issue("ModelCloud/GPTQModel", 2350), step="zeros", zeros=("v1",))  # fmt: skip
def zero_point_carries(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    codes, per_word = 1 << w.bits, 32 // w.bits
    stored = (base(w, e, which).long() - 1) % codes
    words = stored.unflatten(0, (-1, per_word)).clone()
    carry = torch.zeros_like(words[:, 0])
    for r in range(per_word):
        total = words[:, r] + 1 + carry
        words[:, r], carry = total % codes, total // codes
    return words.flatten(0, 1).float()


@fault("F08", "nibbles read in another layout's order", ops=PACKED, stage="h",
       source=pull("amd/Quark", 30), step="codes")  # fmt: skip
def wrong_nibble_order(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    codes, in_words = base(w, e, which), w.packing.dtype == torch.int32
    order = NOT_AS_PACKED[w.layout] if w.bits == 4 else FOUR_SWAPPED if in_words else (1, 0)
    return shuffled(codes.mT, order).mT if w.packing.along == "N" else shuffled(codes, order)


@fault("F08b", "odd and even nibbles swapped", ops=PACKED, stage="h", source=pull("amd/Quark", 30), step="codes")
def odd_and_even_swapped(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    codes = base(w, e, which)
    return shuffled(codes.mT, (1, 0)).mT if w.packing.along == "N" else shuffled(codes, (1, 0))


@fault("F09", "zero points read in the interleaved order, or interleaved ones in sequence", ops=SCALED, stage="h",
       source=pull("sgl-project/sglang", 39510), step="zeros", zeros=("asym", "v1", "v2", "rdna"))  # fmt: skip
def wrong_zero_order(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    of_words = (0, 2, 4, 6, 1, 3, 5, 7) if w.bits == 4 else FOUR_SWAPPED
    order = (1, 0) if w.zero_layout == "nibble_pairs" else of_words
    return shuffled(base(w, e, which).mT, order).mT


@fault("F21", "two-mask extraction on bf16: nibble bit 3 leaks into the exponent", ops=PACKED, stage="h",
       source="https://arxiv.org/abs/2211.10017", step="codes", layout="exllama", dtypes=("bf16",))  # fmt: skip
def two_masks_on_bf16(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    codes = base(w, e, which)
    high = torch.arange(w.K, device=codes.device) % 4 >= 2  # the nibbles that the second mask takes
    return torch.where(high & (codes > 8), 8 + 2 * (codes - 8), codes)


@fault("F50", "sum correction with 128 in place of 136", ops=SCALED, stage="h",
       source="https://github.com/ROCm/vllm", step="zeros")  # fmt: skip
def correction_without_zero_point(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    return base(w, e, which) - w.middle


@fault("F55", "u - z wraps in the unsigned storage type where u < z", ops=SCALED, stage="h",
       source=issue("tile-ai/tilelang", 2947), step="subtract", zeros=ASYMMETRIC)  # fmt: skip
def unsigned_difference(sim: Any, base: Any, codes: T, zero: T) -> T:
    return base(codes, zero) % 256


@fault("F56", "offset-binary nibble sign-extended where there are no zero points", ops=SCALED, stage="h",
       source=pull("ROCm/hip-ep", 178), step="subtract", zeros=("sym",))  # fmt: skip
def sign_extended(sim: Any, base: Any, codes: T, zero: T) -> T:
    return torch.where(codes < zero, codes, codes - 2 * zero)  # symmetric: the zero point is the middle


@fault("F57", "negative weights zero-extended: q becomes q + 16", ops=SCALED, stage="h",
       source=issue("tile-ai/tilelang", 2482), step="subtract", zeros=("sym",))  # fmt: skip
def zero_extended(sim: Any, base: Any, codes: T, zero: T) -> T:
    q = base(codes, zero)
    return torch.where(q < 0, q + 2 * zero, q)


@fault("F58", "four bytes subtracted as one word: a negative lane borrows from the next", ops=SCALED, stage="h",
       source=pull("gittensor-ai-lab/sparkinfer", 761), step="subtract", zeros=("sym",))  # fmt: skip
def borrowing_lanes(sim: Any, base: Any, codes: T, zero: T) -> T:
    q = base(codes, zero).clone()
    for k in range(1, q.shape[1]):
        if k % 4:
            q[:, k] -= (q[:, k - 1] < 0).float()
    return q


@fault("F59", "int32 zero points read as int64: every second one is skipped", ops=SCALED, stage="h",
       source=pull("pytorch/executorch", 21773), step="zeros", zeros=ASYMMETRIC)  # fmt: skip
def zeros_as_int64(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    return base(w, e, which)[torch.arange(w.N) * 2 % w.N]


@fault("F64", "packed zero points read as fp16 in the path for many rows", ops=GEMMS, stage="h",
       source=pull("ROCm/hip-ep", 967), step="dot", zeros=ASYMMETRIC)  # fmt: skip
def zeros_as_fp16(sim: Any, base: Any, a: T, w: Any, dtype: torch.dtype, which: str, *rest: Any) -> T:
    if a.shape[0] > 1:
        zero = w.zero * 2.0**-24  # a small byte is a subnormal fp16
        w = sim.form(w.codes, zero, w.scale, w.scale_group, w.zero_group, dtype)
    return base(a, w, dtype, which, *rest)


@fault("F65", "asymmetric codes clamped to the signed range", ops=PACKED, stage="h",
       source=pull("intel/auto-round", 2273), step="codes", zeros=ASYMMETRIC)  # fmt: skip
def clamped_codes(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    return base(w, e, which).clamp(max=w.middle - 1)


@fault("F66", "packer does not clamp: code 15 rounds to 16 and sets a bit of the next nibble", ops=PACKED, stage="h",
       source=pull("intel/auto-round", 2273), step="codes", layout="compressed_tensors")  # fmt: skip
def unclamped_codes(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    codes, top = base(w, e, which), w.packing.top
    over = (codes == top).unflatten(-1, (-1, 32 // w.bits))
    into = torch.cat([torch.zeros_like(over[..., :1]), over[..., :-1]], -1)
    return torch.where(codes == top, 0, codes) | into.flatten(-2).to(torch.uint8)


@fault("F67", "stored zero point 15 acts as 16: no mask after adding 1", ops=SCALED, stage="h",
       source=pull("AutoGPTQ/AutoGPTQ", 484), step="zeros", zeros=("v1",))  # fmt: skip
def zero_point_sixteen(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    zero = base(w, e, which)
    return torch.where(zero == 0, float(1 << w.bits), zero)


@fault("F68", "low nibbles taken for columns 0..15 and high ones for 16..31 of a block", ops=PACKED, stage="h",
       source=pull("kekzl/imp", 722), step="codes", layout="nibble_pairs")  # fmt: skip
def split_nibbles(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    return shuffled(base(w, e, which), (*range(0, 32, 2), *range(1, 32, 2)))


@fault("F70", "source stride of a transposed packing is half of K in place of N", ops=PACKED, stage="h",
       source=pull("google/XNNPACK", 10463), step="codes", layout="gptq")  # fmt: skip
def stride_of_packed_rows(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    codes = base(w, e, which)
    N, K = codes.shape
    at = torch.arange(K)[None, :] * max(1, K // 2) + torch.arange(N)[:, None]
    return codes.mT.flatten()[at % codes.numel()]


@fault("F74", "de-interleave applied to w13 that already has its gate rows first", ops=("moe_w4a16",), stage="h",
       source=pull("vllm-project/vllm", 42595), step="load")  # fmt: skip
def deinterleaved_again(sim: Any, base: Any, w: Any, e: int | None, dtype: torch.dtype, which: str) -> Any:
    rows = torch.arange(w.N).reshape(-1, 2).T.flatten()
    return taken(base(w, e, dtype, which), rows) if which == "w13" else base(w, e, dtype, which)


@fault("F78", "weights already shuffled into 16x16 tiles read as plain rows", ops=PACKED, stage="h",
       source=pull("sgl-project/sglang", 26884), step="codes")  # fmt: skip
def tiled_codes(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    codes = base(w, e, which).clone()
    N, K = codes.shape[0] // 16 * 16, codes.shape[1] // 16 * 16
    tiles = codes[:N, :K].reshape(N // 16, 16, K // 16, 16).transpose(1, 2)
    codes[:N, :K] = tiles.reshape(N, K)
    return codes


@fault("F80", "every block of columns gets the zero points of the first", ops=SCALED, stage="h",
       source=pull("robertknight/rten", 539), step="zeros", zeros=ASYMMETRIC)  # fmt: skip
def zeros_of_first_block(sim: Any, base: Any, w: Any, e: int | None, which: str) -> T:
    return base(w, e, which)[torch.arange(w.N) % 32]


def taken(w: Any, rows: T) -> Any:
    """Return a Loaded weight's rows in another order."""
    values = None if w.values is None else w.values[rows]
    return w._replace(codes=w.codes[rows], zero=w.zero[rows], scale=w.scale[rows], steps=w.steps[rows], values=values)
