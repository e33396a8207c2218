"""What a kernel needs of an `Int4Weight` in `exllama` words: pointers, strides and compile-time choices, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from moeracle.ref.weights.weight import Int4Weight

SYMMETRIC, UNPACKED, RDNA = 0, 1, 2  # how a kernel reads zero points; the ZERO constexpr of int4_tile
ZERO_KINDS = {"unpacked": UNPACKED, "rdna": RDNA}


@dataclass(frozen=True)
class WeightArgs:
    """Pointers and strides of one weight, with a leading expert dimension (size 1, stride 0, for a dense one).

    Args:
        packed: int32 [E, N, K/8]; rows may be padded, strides are read.
        scale: D [E, N, K/G]; any strides.
        zero: the packed zero points, or `packed` again where there are none (never read then).
        strides: elements from one (e, n, k) step to the next for packed, scale and zero, nine numbers.
        E, N, K, G: logical sizes; G resolved, 1..K.
        zero_kind: SYMMETRIC, UNPACKED (uint8 [E, N, K/G]) or RDNA (int32 [E, N/8, K/G], row n at bits 4*(n%8)).
    """

    packed: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    strides: tuple[int, ...]
    E: int
    N: int
    K: int
    G: int
    zero_kind: int

    def pointers(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return packed, scale and zero in the order of every kernel's arguments."""
        return self.packed, self.scale, self.zero


def _expert_strides(t: torch.Tensor) -> tuple[int, ...]:
    return t.stride() if t.ndim == 3 else (0, *t.stride())


def weight_args(w: Int4Weight, x: torch.Tensor, *, experts: bool, name: str = "w") -> WeightArgs:
    """Check a weight against the activations it multiplies and take it apart.

    Args:
        w: Int4Weight in layout "exllama", [E, N, K] if `experts` else [N, K].
        x: [rows, K], bf16 or fp16; the scale must have its dtype.
        experts: whether w has an expert dimension.
        name: what errors call the weight.
    Raises:
        ValueError: another layout or zero layout, x's columns are not K, or dtypes differ.
    """
    if w.layout != "exllama":
        raise ValueError(f"{name}: got layout {w.layout!r}, these kernels read 'exllama' words")
    want = 3 if experts else 2
    if w.packed.ndim != want:
        raise ValueError(f"{name}: got packed of shape {tuple(w.packed.shape)}, must have {want} dimensions")
    N, K = w.packed.shape[-2], w.packed.shape[-1] * 8
    G = K if w.group_size == -1 else w.group_size
    if x.ndim != 2 or x.shape[1] != K:
        raise ValueError(f"x: got shape {tuple(x.shape)}, must be [rows, {K}] for {name} with K={K}")
    if x.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"x: got {x.dtype}, must be torch.bfloat16 or torch.float16")
    if w.scale.dtype != x.dtype:
        raise ValueError(f"{name}: got scale of {w.scale.dtype}, must be x's {x.dtype}")
    kind, zero = SYMMETRIC, w.packed
    if w.zero is not None:
        if w.zero_layout not in ZERO_KINDS:
            raise ValueError(f"{name}: got zero_layout {w.zero_layout!r}, must be one of {', '.join(ZERO_KINDS)}")
        kind, zero = ZERO_KINDS[w.zero_layout], w.zero
    strides = (*_expert_strides(w.packed), *_expert_strides(w.scale), *_expert_strides(zero))
    E = w.packed.shape[0] if experts else 1
    return WeightArgs(w.packed, w.scale, zero, strides, E, N, K, G, kind)
