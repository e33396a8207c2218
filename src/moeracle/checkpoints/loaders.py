"""Known wrong loaders: what each would make of a right file, so that a difference can be called by its name.

Each takes a weight as it is stored, and what stands beside it, and returns the weights [N, K] that a loader with that
bug would hold. Ids are those of the fault register (docs/faults.md); mistakes that it does not have have "".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch

from moeracle.ref.weights.dense_bits import pack_bits
from moeracle.ref.weights.stored import StoredWeight, unpack_v1_zeros

from .evidence import STORED_IN_SEQUENCE, STORED_INTERLEAVED

PAIRS = (1, 0, 3, 2, 5, 4, 7, 6)
Sibling = Callable[[str], "torch.Tensor | None"]


@dataclass(frozen=True)
class Beside:
    """One projection of one expert (or any linear), and how to reach what a loader could have mistaken for it.

    Args:
        weight: [N, K], exact, float64.
        stored: as the file holds it, None where it is not quantized.
        projection: "gate", "up", "down", or "" outside experts.
        other: projection to its exact weights in the same expert, None where there is none.
        elsewhere: (words, weights) of the same projection in other experts, and in the layer beside.
    """

    weight: torch.Tensor
    stored: StoredWeight | None
    projection: str = ""
    other: Sibling = field(default=lambda name: None)
    elsewhere: Callable[[], Iterator[tuple[str, torch.Tensor]]] = field(default=lambda: iter(()))


@dataclass(frozen=True)
class Mistake:
    """A known mistake of loaders.

    Args:
        id: of the fault register, or "".
        words: what it is; of the register where there is an id.
        weight: what it makes of a weight, float64.
    """

    id: str
    words: str
    weight: torch.Tensor


def mistakes(beside: Beside) -> Iterator[Mistake]:
    """Yield what every known wrong loader makes of one weight; those that do not apply are left out."""
    stored = beside.stored
    if stored is not None:
        for id, words, wrong in _of_stored(stored):
            yield Mistake(id, words, wrong.dequantize(torch.float64))
        yield from _of_arithmetic(stored)
    yield Mistake("", "transposed", beside.weight.mT)
    yield from _of_halves(beside)
    for words, weight in beside.elsewhere():
        yield Mistake("", words, weight)


def _of_stored(w: StoredWeight) -> Iterator[tuple[str, str, StoredWeight]]:
    """Yield codes, scales and zero points as a wrong loader holds them."""
    zero = torch.full(w.scale.shape, w.middle, dtype=torch.int16) if w.zero is None else w.zero
    yield "F06", "zero points one too low", replace(w, zero=zero - 1)
    yield "F06", "zero points one too high", replace(w, zero=zero + 1)
    if w.zero is not None:
        yield from _of_zeros(w, w.zero)
    yield from _of_scales(w)
    for order in (STORED_IN_SEQUENCE, STORED_INTERLEAVED):
        if w.K % 8 == 0:
            yield "F08", "nibbles along K in another order", replace(w, codes=_eights(w.codes, order))
        if w.N % 8 == 0:
            codes, zeros = _eights(w.codes.mT, order).mT, _eights(zero.mT, order).mT
            yield "F08", "nibbles along N in another order", replace(w, codes=codes)
            yield "F08", "nibbles and zero points along N in another order", replace(w, codes=codes, zero=zeros)
    if w.K % 8 == 0:
        yield "F08b", "odd and even nibbles swapped", replace(w, codes=_eights(w.codes, PAIRS))
    if w.K % 32 == 0:
        halves = w.codes.unflatten(1, (-1, 16, 2)).transpose(2, 3).flatten(1)
        yield "F68", "low nibbles for columns 0..15, high ones for 16..31", replace(w, codes=halves)
    if w.bits == 4:
        yield "F56", "two's complement nibbles for offset ones, or the reverse", replace(w, codes=w.codes ^ 8)
    if w.group_of is not None:
        yield "", "act-order left out: column k takes group k // group size", replace(w, group_of=None)


def _of_zeros(w: StoredWeight, zero: torch.Tensor) -> Iterator[tuple[str, str, StoredWeight]]:
    yield "", "zero points left out", replace(w, zero=None)
    if w.N % 8 == 0:
        for order in (STORED_IN_SEQUENCE, STORED_INTERLEAVED):
            yield "F09", "zero points along N in another order", replace(w, zero=_eights(zero.mT, order).mT)
    if w.N % 8 == 0 and 32 % w.bits == 0:
        largest = (1 << w.bits) - 1
        stored = pack_bits(((zero - 1) & largest).mT.to(torch.uint8), w.bits)
        for id, reading in (("F07", "word_carry"), ("F07", "byte_carry"), ("F67", "plain"), ("", "modulo")):
            yield (
                id,
                f"stored zero points of all ones read as {reading}",
                replace(w, zero=unpack_v1_zeros(stored, reading, w.N, w.bits).mT),
            )
    first = zero[:, :1].expand_as(zero).contiguous()
    yield "F80", "every group takes the first one's zero point", replace(w, zero=first)


def _of_scales(w: StoredWeight) -> Iterator[tuple[str, str, StoredWeight]]:
    groups, column = w.groups, w.columns()
    if groups > 1:
        for step, which in ((1, "next"), (-1, "previous")):
            scale = w.scale[:, (torch.arange(groups) + step).clamp(0, groups - 1)]
            rolled = w.scale.roll(-step, 1)
            yield "F29", f"scale taken from the {which} group", replace(w, scale=rolled)
            yield "F29", f"scale taken from the {which} group, the last one's kept", replace(w, scale=scale)
        last = w.scale.clone()
        last[:, -1] = last[:, -2]
        yield "F30", "only the last group's scale wrong", replace(w, scale=last)
        size = w.group_size
        for other in (128, 64, 32):
            if other != size:
                coarse = (torch.arange(w.K) // other).clamp(max=groups - 1)
                yield "F03", f"group size taken for {other}", replace(w, group_of=coarse)
        yield (
            "F54",
            "scale table transposed and viewed in its old shape",
            replace(w, scale=w.scale.mT.contiguous().view(w.N, groups)),
        )
        yield (
            "F20",
            "scales not sharded along K: the second half takes the first half's",
            replace(w, scale=w.scale[:, torch.arange(groups) % (-(-groups // 2))]),
        )
        yield "F51", "every column takes the first group", replace(w, group_of=torch.zeros_like(column))
    if bool((w.scale < 0).any()):
        yield "", "signs of scales lost", replace(w, scale=w.scale.abs())
    tiny = w.scale.abs() < torch.finfo(w.scale.dtype).tiny
    if bool((tiny & (w.scale != 0)).any()):
        yield "F61", "small scales flushed to zero", replace(w, scale=w.scale.masked_fill(tiny, 0))
    for dtype in (torch.bfloat16, torch.float16):
        if dtype != w.scale.dtype:
            yield (
                "",
                f"scales rounded to {str(dtype).removeprefix('torch.')} first",
                replace(w, scale=w.scale.to(dtype)),
            )


def _of_arithmetic(w: StoredWeight) -> Iterator[Mistake]:
    """Yield what wrong arithmetic on right codes gives."""
    column = w.columns()
    zero = torch.tensor(w.middle) if w.zero is None else w.zero.long()[:, column]
    wrapped = (w.codes.long() - zero) & 255
    yield Mistake("F55", "u - z wraps in an unsigned byte", wrapped.double() * w.scale.double()[:, column])
    exact = w.dequantize(torch.float32)
    for dtype, bits in ((torch.bfloat16, torch.int32),):
        cut = (exact.view(bits) & ~0xFFFF).view(torch.float32)
        yield Mistake("F43", f"truncated to {str(dtype).removeprefix('torch.')}, not rounded", cut.double())


def _of_halves(beside: Beside) -> Iterator[Mistake]:
    """Yield gate and up in each other's place, or in turn."""
    gate, up = beside.other("gate"), beside.other("up")
    if beside.projection not in ("gate", "up") or gate is None or up is None or gate.shape != up.shape:
        return
    first = beside.projection == "gate"
    yield Mistake("F31", "gate and up swapped", up if first else gate)
    turned = torch.stack((gate, up), 1).flatten(0, 1)
    yield Mistake(
        "F74", "gate and up stored in turn, taken for halves", turned[: len(gate)] if first else turned[len(gate) :]
    )
    both = torch.cat((gate, up))
    yield Mistake("F75", "gate and up stored in halves, taken in turn", both[0::2] if first else both[1::2])


def _eights(codes: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """Put each eight of the last dimension in another order."""
    return codes.unflatten(-1, (-1, 8))[..., list(order)].flatten(-2).contiguous()
