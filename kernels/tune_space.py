"""Which tiles tuning tries: a start for each op, and the neighbours of a tile, one choice changed at a time.

A tile is plain fields, as tuning tables hold them: those of tiles.Tile, or {"gemm1": {…}, "gemm2": {…}} of the Hopper
layer (hopper_tiles), whose two GEMMs share block_m.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch

from moeracle.kernels.hopper_tiles import OP as HOPPER_LAYER
from moeracle.kernels.hopper_tiles import Few, Ring, default_layer, from_fields, to_fields
from moeracle.kernels.tiles import Tile, default_tile

Fields = dict[str, Any]
CHOICES: dict[str, tuple[int, ...]] = {
    "block_m": (16, 32, 64, 128),
    "block_n": (32, 64, 128, 256),
    "block_k": (32, 64, 128, 256),
    "num_warps": (2, 4, 8),
    "num_stages": (1, 2, 3, 4, 5, 6),
}
RING: dict[str, tuple[int, ...]] = {
    "block_n": (64, 128, 256),
    "block_k": (64, 128),
    "num_warps": (4, 8),
    "num_stages": (2, 3, 4, 5, 6, 8),
}
FEW: dict[str, tuple[int, ...]] = {"block_n": (64, 128), "split_k": (1, 2, 4), "depth": (1, 2, 4, 8)}
DIRECT: dict[str, tuple[int, ...]] = {"block_n": (64, 128, 256), "block_k": (64, 128, 256), "num_stages": (2, 3, 4)}
STREAM: dict[str, tuple[int, ...]] = {"block_n": (64, 128), "depth": (2, 4, 8), "resident": (1, 2, 3, 4, 5, 6)}
SPACE = {"ring": RING, "few": FEW, "direct": DIRECT, "stream": STREAM}
FEW_ROWS, RING_ROWS = (8, 16, 32), (8, 16, 32, 64, 128)
# What a registry entry's launches are called in tuning tables, where that is not the op.
TABLE_NAME = {
    "moe_w4a16.hopper": HOPPER_LAYER,
    "moe_w4a16.padded": "padded_gemm",
    "moe_w4a16.grouped": "grouped_gemm",
    "moe_w4a16.fused": "padded_gemm",
}
TUNABLE = {"grouped_gemm": "grouped_gemm", "padded_gemm": "padded_gemm", HOPPER_LAYER: "moe_w4a16"}


def start(name: str, rows: int, E: int, N: int, K: int, device: torch.device) -> Fields:
    """Return the tile that a launch takes where no table holds its shape.

    Args:
        name: as tables call the op.
        rows: R = T * top_k.
        E, N, K: of the weight, w13 for a layer.
        device: where.
    """
    if name == HOPPER_LAYER:
        return to_fields(default_layer(rows, E, N))
    return asdict(default_tile(rows, E, N, K, device))


def neighbours(fields: Mapping[str, Any]) -> Iterator[Fields]:
    """Yield the legal tiles that differ from this one in a single choice, by one step up or down."""
    seen = [dict(fields)]
    for candidate in _layer(fields) if "gemm1" in fields else _one(fields, CHOICES):
        if candidate not in seen and _is_tile(candidate):
            seen.append(candidate)
            yield candidate


def _steps(value: int, choices: tuple[int, ...]) -> Iterator[int]:
    at = min(range(len(choices)), key=lambda i: abs(choices[i] - value))
    for i in (at + 1, at - 1):
        if 0 <= i < len(choices) and choices[i] != value:
            yield choices[i]


def _one(fields: Mapping[str, Any], space: Mapping[str, tuple[int, ...]]) -> Iterator[Fields]:
    for name, choices in space.items():
        if name in fields:
            for value in _steps(fields[name], choices):
                yield {**fields, name: value}


def _layer(fields: Mapping[str, Any]) -> Iterator[Fields]:
    both = {name: dict(fields[name]) for name in ("gemm1", "gemm2")}
    rows = both["gemm1"]["block_m"]
    for block_m in _steps(rows, RING_ROWS):
        yield {name: _with_rows(tile, block_m) for name, tile in both.items()}
    for name, tile in both.items():
        for changed in _one(tile, SPACE[tile["kind"]]):
            yield {**both, name: changed}
        yield {**both, name: _other_kind(tile)}


def _with_rows(tile: Fields, block_m: int) -> Fields:
    """The same tile for other rows; beyond what a Few or a Stream holds, a Ring."""
    if (tile["kind"] == "few" and block_m not in FEW_ROWS) or (tile["kind"] == "stream" and block_m > 64):
        return {"kind": "ring", **asdict(Ring(block_m))}
    return {**tile, "block_m": block_m} | ({"least": 0} if "least" in tile else {})


def _other_kind(tile: Fields) -> Fields:
    if tile["kind"] == "few":
        return {"kind": "ring", **asdict(Ring(tile["block_m"], 128, 128, 4, 4))}
    rows = tile["block_m"]
    return {"kind": "few", **asdict(Few(rows))} if rows in FEW_ROWS else tile


def _is_tile(fields: Fields) -> bool:
    try:
        from_fields(fields) if "gemm1" in fields else Tile(**fields)
    except ValueError:
        return False
    return True
