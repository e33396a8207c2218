"""Arguments of each op at a stated size, without values: enough to see what a kernel would launch and move.

Routing ids are a real, balanced routing, since tables are made from them; everything else is memory as it comes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from moeracle.kernels.common.size import DTYPES, Size
from moeracle.kernels.triton.moe_permute_torch import moe_align_block_size
from moeracle.ref.weights.weight import Int4Weight


def weight(size: Size, N: int, K: int, experts: int | None) -> Int4Weight:
    """Return an exllama weight [E, N, K] (or [N, K]) of no particular value."""
    lead = () if experts is None else (experts,)
    D = DTYPES[size.dtype]
    packed = torch.empty(*lead, N, K // 8, dtype=torch.int32, device="cuda")
    scale = torch.empty(*lead, N, K // size.G, dtype=D, device="cuda")
    zero, form = None, "unpacked"
    if size.zero == "rdna":
        zero, form = torch.empty(*lead, N // 8, K // size.G, dtype=torch.int32, device="cuda"), "rdna"
    elif size.zero == "unpacked":
        zero = torch.empty(*lead, N, K // size.G, dtype=torch.uint8, device="cuda")
    return Int4Weight(packed, scale, zero, "exllama", size.G, form)


def _x(size: Size, rows: int, columns: int) -> torch.Tensor:
    return torch.empty(rows, columns, dtype=DTYPES[size.dtype], device="cuda")


def _ids(size: Size) -> torch.Tensor:
    flat = torch.arange(size.T * size.k, dtype=torch.int32, device="cuda") % size.E
    return flat.reshape(size.T, size.k)


def _router(size: Size) -> torch.Tensor:
    return torch.full((size.T, size.k), 1.0 / size.k, dtype=torch.float32, device="cuda")


def _offsets(size: Size) -> torch.Tensor:
    counts = torch.bincount(_ids(size).flatten().long(), minlength=size.E)
    return torch.cat([torch.zeros(1, dtype=torch.int64, device="cuda"), counts.cumsum(0)])


def _blocks(size: Size, B: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return moe_align_block_size(_ids(size), B, size.E)


def _logits(size: Size) -> torch.Tensor:
    return torch.zeros(size.T, size.E, dtype=DTYPES[size.dtype], device="cuda")


ARGUMENTS: dict[str, Callable[[Size], tuple[Any, ...]]] = {
    "unpack_int4": lambda s: (weight(s, 2 * s.I, s.H, s.E),),
    "dequantize_int4": lambda s: (weight(s, 2 * s.I, s.H, s.E),),
    "topk_softmax": lambda s: (_logits(s), s.k, True),
    "moe_align_block_size": lambda s: (_ids(s), 16, s.E, None),
    "moe_permute": lambda s: (_x(s, s.T, s.H), _ids(s), s.E, None),
    "moe_unpermute": lambda s: (
        _x(s, s.T * s.k, s.H),
        _router(s),
        torch.arange(s.T * s.k, dtype=torch.int32, device="cuda"),
    ),
    "int4_linear": lambda s: (_x(s, s.T, s.H), weight(s, 2 * s.I, s.H, None), _x(s, 1, 2 * s.I)[0]),
    "grouped_gemm": lambda s: (_x(s, s.T * s.k, s.H), weight(s, 2 * s.I, s.H, s.E), _offsets(s)),
    "padded_gemm": lambda s: (_x(s, s.T, s.H), weight(s, 2 * s.I, s.H, s.E), *_blocks(s), None, s.k),
    "silu_and_mul": lambda s: (_x(s, s.T * s.k, 2 * s.I),),
    "moe_w4a16": lambda s: (
        _x(s, s.T, s.H),
        weight(s, 2 * s.I, s.H, s.E),
        weight(s, s.H, s.I, s.E),
        _router(s),
        _ids(s),
    ),
    "shared_expert": lambda s: (
        _x(s, s.T, s.H),
        weight(s, 2 * s.I, s.H, None),
        weight(s, s.H, s.I, None),
        _x(s, 1, s.H)[0],
    ),
    "tiny_dot": lambda s: (_x(s, s.T, s.H), _x(s, 1, s.H)[0], True),
    "quantize_int8": lambda s: (_x(s, s.V, s.H), s.G),
    "int8_lm_head": lambda s: (
        _x(s, s.T, s.H),
        torch.empty(s.V, s.H, dtype=torch.int8, device="cuda"),
        torch.empty(s.V, s.H // s.G, dtype=DTYPES[s.dtype], device="cuda"),
        None,
    ),
}


def arguments(op: str, size: Size) -> tuple[Any, ...]:
    """Return an op's arguments, positionally, on device "cuda"; where there is none, call it within `pretending`.

    Raises:
        ValueError: nobody has said yet what this op takes.
    """
    if op not in ARGUMENTS:
        raise ValueError(
            f"op: got {op!r}, must be one of {', '.join(ARGUMENTS)}; add it to kernels/compile/dry_args.py"
        )
    return ARGUMENTS[op](size)
