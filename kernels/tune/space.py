"""Which tiles tuning tries: a GEMM's start, and the neighbours of a tile, one choice changed at a time.

A tile is plain fields, as tuning tables hold them: those of tiles.Tile. The Hopper layer has a search of its own,
tune.hopper.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch

from moeracle.kernels.hopper.tiles.layers import OP as HOPPER_LAYER
from moeracle.kernels.triton.tiles import Tile, default_tile

Fields = dict[str, Any]
CHOICES: dict[str, tuple[int, ...]] = {
    "block_m": (16, 32, 64, 128),
    "block_n": (32, 64, 128, 256),
    "block_k": (32, 64, 128, 256),
    "num_warps": (2, 4, 8),
    "num_stages": (1, 2, 3, 4, 5, 6),
}
# What a registry entry's launches are called in tuning tables, where that is not the op.
TABLE_NAME = {
    "moe_w4a16.hopper": HOPPER_LAYER,
    "moe_w4a16.padded": "padded_gemm",
    "moe_w4a16.grouped": "grouped_gemm",
    "moe_w4a16.fused": "padded_gemm",
}
TUNABLE = {"grouped_gemm": "grouped_gemm", "padded_gemm": "padded_gemm", HOPPER_LAYER: "moe_w4a16"}


def start(rows: int, E: int, N: int, K: int, device: torch.device) -> Fields:
    """Return the tile that a GEMM takes where no table holds its shape.

    Args:
        rows: R = T * top_k.
        E, N, K: of the weight.
        device: where.
    """
    return asdict(default_tile(rows, E, N, K, device))


def neighbours(fields: Mapping[str, Any]) -> Iterator[Fields]:
    """Yield the legal tiles that differ from this one in a single choice, by one step up or down."""
    for name, choices in CHOICES.items():
        for value in _steps(fields[name], choices):
            candidate = {**fields, name: value}
            if _is_tile(candidate):
                yield candidate


def _steps(value: int, choices: tuple[int, ...]) -> Iterator[int]:
    at = min(range(len(choices)), key=lambda i: abs(choices[i] - value))
    for i in (at + 1, at - 1):
        if 0 <= i < len(choices) and choices[i] != value:
            yield choices[i]


def _is_tile(fields: Fields) -> bool:
    try:
        Tile(**fields)
    except ValueError:
        return False
    return True
