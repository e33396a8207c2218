"""The order of int4 words that the Hopper kernels read, made once when a weight is loaded and kept beside it.

One int32 holds what one thread needs for one wgmma of K = 16: thread g*4 + t of a warp (g = 0..7, t = 0..3) has, of 16
rows and 16 columns,

    bits 4*(i0 + 2*i1) + 16*b   =   code of row i0*8 + g, column i1*8 + t*2 + b        i0, i1, b in 0, 1

so that (word >> 4p) & 0x000F000F is a pair of neighbouring columns, and the four pairs are the instruction's four
operand registers in order. Four such words, 64 columns, lie side by side: 16 bytes a thread, 512 a warp.

Symmetric bf16 weights whose scales are small enough can be `fold`ed. Nibbles at bits 0..3 and 4..7 of a 16-bit half
are, as they lie, the bf16 numbers u * 2^-133 and u * 2^-129 (at the latter subnormal up to u = 7, normal from 8 on: the
same spacing), so with scales multiplied by 2^133 and 2^129, exactly,

    fma(nibble, folded scale, -8 * scale) = (u - 8) * scale, rounded once

is a weight: one instruction instead of two, and a nibble needs no shift but every other one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from moeracle.kernels.common.weight_args import RDNA, SYMMETRIC, weight_args

if TYPE_CHECKING:
    from moeracle.ref.weights.weight import Int4Weight

ROWS, COLUMNS, COLUMN_TILE = 16, 64, 128  # of a slab; of a thread's 16 bytes; K is padded to a multiple of the last
FILL = True  # a dry run, which looks at launches and at no value, sets it to False
ROW_TILE = 64  # N is padded to a multiple of this: one warpgroup's rows
MAGIC = {torch.bfloat16: 128.0, torch.float16: 1024.0}  # what a code's bits hold before the zero point is subtracted


@dataclass(frozen=True, eq=False)
class PreparedWeight:
    """An int4 weight in the order of the Hopper kernels; padding multiplies by 0.

    Args:
        words: int32 [E, slabs, Kp/64, 32, 4], a slab being 16 rows.
        scale: int32 [E, slabs, groups, 8]: D scales of rows g (low half) and g + 8 (high half).
        zero: as scale, 128 + z (bf16) or 1024 + z (fp16) in D; None for the symmetric zero point 8.
        N, K, G: logical sizes; G resolved.
        gated: rows are 8 of the gate half, 8 of the up half, and so on, so that one thread holds both.
        dtype: D.
        fold: 2: scales of rows g are multiplied by 2^133, of rows g + 8 by 2^129; 1: all by 2^129; 0: none.
    """

    words: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    N: int
    K: int
    G: int
    gated: bool
    dtype: torch.dtype
    fold: int = 0

    @property
    def kind(self) -> str:
        """What a machine's own table of tiles says of it, besides its sizes (kernels/tune/at_load.py)."""
        return kind_of("bf16" if self.dtype == torch.bfloat16 else "fp16", self.zero is None)

    @property
    def slabs(self) -> int:
        """16-row slabs of one expert, padding included."""
        return self.words.shape[1]

    @property
    def padded_k(self) -> int:
        """K rounded up to a multiple of 128."""
        return self.words.shape[2] * COLUMNS

    @property
    def group(self) -> int:
        """The group size that kernels divide by: K's own, or all columns where one group holds them."""
        return self.padded_k if self.scale.shape[2] == 1 else self.G


def kind_of(dtype: str, is_symmetric: bool) -> str:
    """Return the text of a weight's dtype, bf16 or fp16, and of whether it has zero points.

    Not of `fold`, which follows from the scales' values: a case's schedule must be known from its sizes and words, and
    tiles of either fold store the same bits.
    """
    return dtype if is_symmetric else f"{dtype}+zero"


def why_not_prepared(N: int, K: int, G: int, gated: bool) -> str | None:
    """Say why a weight of these sizes has no prepared order, or return None."""
    if G != K and not (G >= 16 and (64 % G == 0 or G % 64 == 0)):
        return f"the group size must be 16, 32, a multiple of 64 or K, not {G}"
    if gated and N % 16:
        return f"2*I must be a multiple of 16, not {N}"
    return None


def prepare_weight(w: Int4Weight, *, gated: bool = False, fold: bool = False) -> PreparedWeight:
    """Put a weight into the order of the Hopper kernels, one expert at a time.

    Args:
        w: Int4Weight [E, N, K] or [N, K] (then E = 1), layout exllama; symmetric, or zero layout rdna or unpacked.
        gated: interleave the gate rows 0..N/2-1 with the up rows, eight by eight; N a multiple of 16.
        fold: multiply the scales as `fold` of PreparedWeight says, as far as they allow it.
    Returns:
        The PreparedWeight, codes exactly as they were, scales too or times a power of two.
    Raises:
        ValueError: w is in another layout, or its sizes have no prepared order (why_not_prepared).
    Source: the operand layout of wgmma, PTX ISA 9.7.15 (docs.nvidia.com/cuda/parallel-thread-execution).
    """
    experts = w.packed.ndim == 3
    nothing = torch.empty(0, w.packed.shape[-1] * 8, dtype=w.scale.dtype, device=w.packed.device)
    args = weight_args(w, nothing, experts=experts)
    reason = why_not_prepared(args.N, args.K, args.G, gated)
    if reason:
        raise ValueError(f"w: got N={args.N}, K={args.K}, G={args.G}; {reason}")
    lead = (lambda t: t) if experts else (lambda t: t[None])
    packed, scale = lead(w.packed), lead(w.scale)
    zero = None if args.zero_kind == SYMMETRIC else lead(args.zero)
    folded = fold_of(scale) if fold and zero is None else 0
    slabs, columns = -(-args.N // ROW_TILE) * (ROW_TILE // ROWS), -(-args.K // COLUMN_TILE) * COLUMN_TILE
    groups = 1 if args.G == args.K else -(-columns // args.G)
    device = w.packed.device
    words = torch.empty(args.E, slabs, columns // COLUMNS, 32, 4, dtype=torch.int32, device=device)
    pairs = torch.empty(args.E, slabs, groups, 8, dtype=torch.int32, device=device)
    zeros = None if zero is None else torch.empty_like(pairs)
    for e in range(args.E if FILL else 0):
        words[e] = _words(_place(_codes(packed[e]), slabs * ROWS, columns, gated))
        pairs[e] = _pairs(_folded(_place(scale[e], slabs * ROWS, groups, gated), folded))
        if zero is not None and zeros is not None:
            z = _zeros(zero[e], args.N) if args.zero_kind == RDNA else zero[e]
            zeros[e] = _pairs(_place((z.float() + MAGIC[scale.dtype]).to(scale.dtype), slabs * ROWS, groups, gated))
    return PreparedWeight(words, pairs, zeros, args.N, args.K, args.G, gated, scale.dtype, folded)


# by the weight itself, not by its value: {weight: {(gated, fold): (what its tensors were, its prepared order)}}
_CACHE: Any = WeakIdKeyDictionary()


def prepared(w: Int4Weight | PreparedWeight, *, gated: bool = False, fold: bool = False) -> PreparedWeight:
    """Return a weight's prepared order, made on first use and kept as long as the weight lives.

    Args:
        w: as prepare_weight's, or a PreparedWeight, which is returned.
        gated, fold: as prepare_weight's; a kernel that asks for fold takes a PreparedWeight without it, too.
    Raises:
        ValueError: as prepare_weight; or a PreparedWeight of the other kind.
    """
    if isinstance(w, PreparedWeight):
        if w.gated != gated:
            raise ValueError(f"w: got a weight prepared with gated={w.gated}, must be gated={gated}")
        if w.fold and not fold:
            raise ValueError("w: got a weight prepared with fold=True, must be fold=False")
        return w
    state = tuple(v for t in (w.packed, w.scale, w.zero) if t is not None for v in (t.data_ptr(), t._version))
    kept: dict[tuple[bool, bool], tuple[tuple[int, ...], PreparedWeight]] = _CACHE.setdefault(w, {})
    kind = (gated, fold)
    if kind not in kept or kept[kind][0] != state:  # written in place since: the old order is of another weight
        kept[kind] = (state, prepare_weight(w, gated=gated, fold=fold))
    return kept[kind][1]


def fold_of(scale: torch.Tensor) -> int:
    """How far scales can be folded: times 2^133 below 2^-5 they are still finite, times 2^129 below 2^-2."""
    if scale.dtype != torch.bfloat16 or scale.numel() == 0:
        return 0
    most = float(scale.abs().max())  # NaN is below nothing
    return 2 if most < 2**-5 else 1 if most < 2**-2 else 0


def _folded(scale: torch.Tensor, fold: int) -> torch.Tensor:
    """Multiply the scales of one expert [rows, groups] exactly: fp32 holds 2^127 at most, so in two steps."""
    if not fold:
        return scale
    row = torch.arange(scale.shape[0], device=scale.device)
    last = torch.where((row % ROWS >= 8) | (fold == 1), 2.0**65, 2.0**69)
    return (scale.float() * 2.0**64 * last[:, None]).to(torch.bfloat16)


def _codes(packed: torch.Tensor) -> torch.Tensor:
    r = torch.arange(8, device=packed.device, dtype=torch.int32)
    return ((packed[..., None] >> (4 * (r // 2) + 16 * (r % 2))) & 15).to(torch.uint8).flatten(-2)


def _zeros(words: torch.Tensor, N: int) -> torch.Tensor:
    r = torch.arange(8, device=words.device, dtype=torch.int32)
    return ((words[:, None, :] >> (4 * r)[None, :, None]) & 15).reshape(N, -1)


def _place(t: torch.Tensor, rows: int, columns: int, gated: bool) -> torch.Tensor:
    """Interleave, then pad with zeros: a scale of 0 makes padded columns and rows multiply by 0."""
    if gated:
        t = torch.stack([half.unflatten(0, (-1, 8)) for half in t.chunk(2)], dim=1).flatten(0, 2)
    out = t.new_zeros(rows, columns)
    out[: t.shape[0], : t.shape[1]] = t
    return out


def _signed(word: torch.Tensor) -> torch.Tensor:
    return torch.where(word >= 2**31, word - 2**32, word).to(torch.int32)


def _words(codes: torch.Tensor) -> torch.Tensor:
    """uint8 [rows, columns] to int32 [rows/16, columns/64, 32, 4]."""
    rows, columns = codes.shape
    # slab, row half i0, g, 64 columns, 16 columns, column half i1, t, b
    parts = codes.reshape(rows // ROWS, 2, 8, columns // COLUMNS, 4, 2, 4, 2).permute(0, 3, 2, 6, 4, 5, 1, 7)
    word = torch.zeros(parts.shape[:5], dtype=torch.int64, device=codes.device)
    for i1 in range(2):
        for i0 in range(2):
            for b in range(2):
                word |= parts[..., i1, i0, b].long() << (4 * (i0 + 2 * i1) + 16 * b)
    return _signed(word).reshape(rows // ROWS, columns // COLUMNS, 32, 4)


def _pairs(values: torch.Tensor) -> torch.Tensor:
    """D [rows, groups] to int32 [rows/16, groups, 8]."""
    bits = (values.contiguous().view(torch.int16).long() & 0xFFFF).reshape(-1, 2, 8, values.shape[1])
    return _signed(bits[:, 0] | (bits[:, 1] << 16)).transpose(1, 2).contiguous()
