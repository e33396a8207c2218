"""Building Int4Weights and Int8Weights: packed words straight from random words, so that a whole layer costs seconds.

Random words are taken to be in `exllama` order, of 8-bit codes one after another; every recipe on codes is a few
operations on whole words that do not mind the order of the codes. Row-wise layouts are then at most two swaps of
nibbles away. The codes depend on the case's seed and shapes, never on the layout, so that one problem can be asked in
two layouts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moeracle.ref.weights.layouts import (
    BYTES,
    INTERLEAVED,
    PACKINGS_OF,
    SCALES_K_FIRST,
    pack_int4,
    pack_zeros,
    unpack_int4,
)
from moeracle.ref.weights.weight import OF_BITS, Int4Weight

from ..common.generator import FORMATS, Bits, Stream, to_tensor
from .case import Case
from .data import own_groups
from .exact import ALL_CODES, Window

Words = NDArray[np.uint32]
_EVERY = {4: 0x11111111, 8: 0x01010101}  # times c: a word of codes c, by the bits of one
_WORDS_AT_ONCE = 1 << 19  # 2 MB: experts are made in runs whose temporaries stay in cache
ONE_SIGN = ("samesign", "sweep", "onehot2")  # recipes that need positive scales: +negscale leaves them alone
CUT = 3  # elements between the rows of scales, and of zero points, under +cutscale
PAD_WORD = 0x5A5A5A5A  # what lies between padded rows: plausible codes, so that reading them goes wrong quietly
_SHIFTS = {4: INTERLEAVED, 8: BYTES}
# Words that hold every code once at each place of a word, over as many cells, or rows, as there are codes.
_STAMP = {
    bits: [sum((i + 5 * r) % (1 << bits) << shift for r, shift in enumerate(shifts)) for i in range(1 << bits)]
    for bits, shifts in _SHIFTS.items()
}


@dataclass(frozen=True)
class WeightPlan:
    """How one weight is made.

    Args:
        scales: (shape [..., N, K/G], stream) to the scales' bit patterns.
        window: the codes and zero points that may occur; of a case's width.
        structure: "" random; "mirror" codes and zero points repeat after K/2 (after one column if K % 16); "stamp"
            all codes in each place of a word; "rows" one code and one zero point a row, 1, 2 or 4 apart; "select"
            of 2I rows, gate row i is z but for one column, i mod K: z+1, or z-1 for i >= K; up rows are z+1.
            "select_gate" the same of gate rows alone.
    """

    scales: Callable[[tuple[int, ...], Stream], Bits]
    window: Window = ALL_CODES[4]
    structure: str = ""


def int4_weight(case: Case, name: str, experts: int | None, plan: WeightPlan) -> Int4Weight:
    """Return the weight argument `name` of a case, from whoever supplies weights at present: see `weights_from`."""
    return _supplier(case, name, experts, plan)


def make_weight(case: Case, name: str, experts: int | None, plan: WeightPlan) -> Int4Weight:
    """Make the weight argument `name` of a case.

    Args:
        case: gives layout, zero points, padding, dtype, seed and shape.
        name: "w", "w13" or "w2"; also names the random streams.
        experts: E, or None for a single matrix.
        plan: codes, zero points and scales.
    """
    N, K = case.weight_shapes()[name]
    E = 1 if experts is None else experts
    groups = 1 if case.G == -1 else -(-K // case.G)
    zero = _zeros(case, (E, N, groups), K, name, plan)
    packed = _packed(case, name, E, N, K, plan, zero)
    bits = plan.scales((E, N, groups), Stream(case.seed, f"{name}.scale"))
    if "negscale" in case.flags and case.data not in ONE_SIGN:
        bits = _signed(bits, case, name, K)
    scale = to_tensor(bits, FORMATS[case.dtype])
    if case.layout in SCALES_K_FIRST:
        scale = scale.mT.contiguous().mT
    zero_layout = case.zero_layout or "unpacked"
    stored = None if case.zero_layout is None else pack_zeros(torch.from_numpy(zero), zero_layout, case.bits)
    if "cutscale" in case.flags:
        scale = _cut(scale.mT, math.nan).mT if case.layout in ("gptq", "awq") else _cut(scale, math.nan)
        stored = None if stored is None else _cut(stored, PAD_WORD & (0xFF if stored.dtype == torch.uint8 else -1))
    if experts is None:
        packed, scale, stored = packed[0], scale[0], None if stored is None else stored[0]
    return OF_BITS[case.bits](packed, scale, stored, case.layout, case.G, zero_layout)


def _signed(bits: Bits, case: Case, name: str, K: int) -> Bits:
    """Make about half of the scales negative; those of `cancelling` in the second half of K as in the first."""
    own = own_groups(bits.shape[-1], K) if case.data == "cancelling" else bits.shape[-1]
    sign = Stream(case.seed, f"{name}.sign").bits((*bits.shape[:-1], own), 8) & 1
    fmt = FORMATS[case.dtype]
    return bits ^ np.tile(sign, bits.shape[-1] // own).astype(fmt.uint) * fmt.uint(fmt.sign)


def _cut(values: torch.Tensor, between: float) -> torch.Tensor:
    """Cut a tensor out of one whose rows are longer; what lies between is NaN, or plausible zero points."""
    wide = values.new_full((*values.shape[:-1], values.shape[-1] + CUT), between)
    wide[..., : values.shape[-1]] = values
    return wide[..., : values.shape[-1]]


Supplier = Callable[[Case, str, "int | None", WeightPlan], Int4Weight]
_supplier: Supplier = make_weight


@contextmanager
def weights_from(supplier: Supplier) -> Iterator[None]:
    """Let another function supply the weights of all problems built inside, for example one that keeps them.

    Args:
        supplier: called as `make_weight` is.
    """
    global _supplier
    before, _supplier = _supplier, supplier
    try:
        yield
    finally:
        _supplier = before


def _zeros(case: Case, shape: tuple[int, ...], K: int, name: str, plan: WeightPlan) -> NDArray[np.uint8]:
    """Zero points uint8 [E, N, K/G]; all the middle where the case is symmetric."""
    if case.zero_layout is None:
        return np.broadcast_to(np.uint8(plan.window.middle), shape)
    low, count = plan.window.zero_lo, plan.window.zero_hi + 1 - plan.window.zero_lo
    own = {"rows": 1, "select": 1, "select_gate": 1, "mirror": own_groups(shape[-1], K)}.get(plan.structure, shape[-1])
    stream = Stream(case.seed, f"{name}.zero")
    drawn = low + (stream.bits((*shape[:-1], own), 8).astype(np.uint16) * count >> 8)
    if plan.structure == "rows":
        drawn &= plan.window.middle - 1  # leave space for codes above
    return np.tile(drawn.astype(np.uint8), shape[-1] // own)


def _packed(case: Case, name: str, E: int, N: int, K: int, plan: WeightPlan, zero: NDArray[np.uint8]) -> torch.Tensor:
    layout, packing, per_word = case.layout, PACKINGS_OF[case.bits][case.layout], 32 // case.bits
    J = -(-K // per_word)
    bytewise = packing.dtype == torch.uint8
    rows, columns = packing.packed_shape((N, K if bytewise or packing.along == "N" else per_word * J))
    element = np.uint8 if bytewise else np.uint32
    wide = np.empty((E, rows, columns + case.pad), element)
    wide[:, :, columns:] = PAD_WORD & (0xFF if element is np.uint8 else 0xFFFFFFFF)
    stream = Stream(case.seed, f"{name}.codes")
    at_once = max(1, _WORDS_AT_ONCE // (N * J))
    for first in range(0, E, at_once):
        last = min(E, first + at_once)
        words = _codes(stream, last - first, N, K, plan, zero[first:last, :, 0], case.bits)
        wide[first:last, :, :columns] = (_arranged if case.bits == 4 else _bytes)(words, layout, K)
    signed = wide if element is np.uint8 else wide.view(np.int32)
    return torch.from_numpy(signed)[:, :, :columns]


def _codes(
    stream: Stream, experts: int, N: int, K: int, plan: WeightPlan, zero_of_row: NDArray[np.uint8], bits: int
) -> Words:
    """The next experts' codes, uint32 [experts, N, ceil(K/8)] in `exllama` order; four a word of 8-bit ones."""
    J, every = -(-K * bits // 32), _EVERY[bits]
    per_expert = -(-N * J // 2) * 2  # whole 64-bit words, however many experts are made at once
    words = stream.bits((experts, per_expert), 32)[:, : N * J].reshape(experts, N, J).astype(np.uint32, copy=False)
    if plan.structure == "rows":
        step = np.uint8(1) << ((words[:, :, 0] >> np.uint32(7)) % np.uint32(3)).astype(np.uint8)
        return np.broadcast_to(((zero_of_row + step).astype(np.uint32) * np.uint32(every))[:, :, None], words.shape)
    if plan.structure in ("select", "select_gate"):
        return _selecting(zero_of_row, J, K, N if plan.structure == "select_gate" else N // 2, bits)
    window = plan.window
    if window.bits < bits:
        words &= np.uint32(((1 << window.bits) - 1) * every)
    if window.lo:
        words += np.uint32(window.lo * every)  # no code carries: lo + 2^bits - 1 fits one
    if plan.structure == "mirror":
        if K % 16:
            even, repeated = (0xFFFF, 0x10001) if bits == 4 else (0x00FF00FF, 0x101)
            words = (words & np.uint32(even)) * np.uint32(repeated)  # column 2i+1 repeats column 2i
        else:
            words[:, :, J // 2 :] = words[:, :, : J // 2]
    if plan.structure == "stamp":
        for i in range(min(1 << bits, N * J)):
            words[:, i % N, i // N] = _STAMP[bits][i]
    return words


def _selecting(zero_of_row: NDArray[np.uint8], J: int, K: int, I: int, bits: int) -> Words:
    """Codes of the structure "select", uint32 [experts, N, J] as `_codes`, of I gate rows; zeros have codes beside."""
    every, per_word = np.uint32(_EVERY[bits]), 32 // bits
    words = np.repeat((zero_of_row.astype(np.uint32) * every)[:, :, None], J, axis=2)
    words[:, I:] += every
    row, column = np.arange(I), np.arange(I) % K
    one = np.uint32(1) << np.array(_SHIFTS[bits], np.uint32)[column % per_word]
    words[:, row, column // per_word] += np.where(row // K % 2 == 0, one, -one.astype(np.int64)).astype(np.uint32)
    return words


def _arranged(words: Words, layout: str, K: int) -> NDArray[Any]:
    """Rearrange [experts, N, K/8] words from `exllama` order into a layout's container."""
    if layout == "exllama":
        return words
    if layout == "exllama_k":
        return words.transpose(0, 2, 1)
    if layout == "twos_complement":
        return words ^ np.uint32(8 * _EVERY[4])
    if layout in ("awq", "sequential_n", "int8"):
        codes = unpack_int4(torch.from_numpy(np.ascontiguousarray(words).view(np.int32)), "exllama")[..., :K]
        packed = np.ascontiguousarray(pack_int4(codes, layout).numpy())
        return packed if layout == "int8" else packed.view(np.uint32)
    sequential = _sequential(words)
    if layout == "gptq":
        return sequential.transpose(0, 2, 1)
    if layout == "compressed_tensors":
        return sequential
    return sequential.astype("<u4", copy=False).view(np.uint8)[:, :, : K // 2]  # nibble_pairs


def _bytes(words: Words, layout: str, K: int) -> NDArray[Any]:
    """Rearrange [experts, N, K/4] words of 8-bit codes, one after another, into a layout's container."""
    if layout == "gptq":
        return words.transpose(0, 2, 1)
    if layout == "compressed_tensors":
        return words
    codes = np.ascontiguousarray(words, "<u4").view(np.uint8)[:, :, :K]
    return codes ^ np.uint8(0x80) if layout == "int8" else codes


def _sequential(words: Words) -> Words:
    """Move the nibbles of every word from `exllama` order 0 2 4 6 1 3 5 7 to 0 1 2 3 4 5 6 7, by two swaps."""
    even = words.size % 2 == 0 and words.flags.c_contiguous
    pair: Any = words.reshape(-1).view(np.uint64) if even else np.ascontiguousarray(words)  # two words at a time
    kind = pair.dtype.type
    for shift, mask in ((8, 0x0000FF000000FF00), (4, 0x00F000F000F000F0)):
        swap = (pair ^ (pair >> kind(shift))) & kind(mask & ((1 << 8 * pair.dtype.itemsize) - 1))
        pair = pair ^ swap ^ (swap << kind(shift))
    return pair.view(np.uint32).reshape(words.shape)
