"""Layers of tiles for the Hopper kernels (kinds): how a table holds one, and a choice for every launch.

The tuning table of the GPU decides (kernels/tuned, op "moe_w4a16.hopper"), then what was found at load time for this
machine (kernels/tune/at_load.py); a shape that neither holds takes what the model chooses (tiles/model.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from moeracle.kernels import tuned
from moeracle.kernels.hopper.tiles.kinds import KINDS, SHARED, WIDEST, Direct, Duo, Few, Ring, Stream, Tile
from moeracle.kernels.hopper.tiles.model import both_gemms

if TYPE_CHECKING:
    from moeracle.kernels.hopper.prepared_weight import PreparedWeight

OP = "moe_w4a16.hopper"
ANY_DTYPE = "bf16"  # either moves the same bytes and runs the same instructions: one shipped table serves both
LARGEST = 2**31  # words of a weight that gemm_duo has been run on
__all__ = [
    "ANY_DTYPE",
    "KINDS",
    "OP",
    "SHARED",
    "Direct",
    "Duo",
    "Few",
    "Layer",
    "Ring",
    "Stream",
    "Tile",
    "from_fields",
    "launched",
    "layer_for",
    "model_layer",
    "to_fields",
]


@dataclass(frozen=True)
class Layer:
    """Both GEMMs of a layer; they share the alignment, so block_m is one number."""

    gemm1: Tile
    gemm2: Tile

    def __post_init__(self) -> None:
        if self.gemm1.block_m != self.gemm2.block_m:
            raise ValueError(
                f"config: got block_m {self.gemm1.block_m} and {self.gemm2.block_m}, must be one for both GEMMs"
            )

    @property
    def block_m(self) -> int:
        """B of the alignment."""
        return self.gemm1.block_m


def to_fields(layer: Layer) -> dict[str, Any]:
    """Return a layer's tiles as a tuning table holds them."""
    gemms = {"gemm1": layer.gemm1, "gemm2": layer.gemm2}
    return {name: {"kind": type(tile).__name__.lower(), **asdict(tile)} for name, tile in gemms.items()}


def from_fields(fields: Mapping[str, Any]) -> Layer:
    """Return the tiles that a tuning table's row holds.

    Raises:
        ValueError: a kind that is none of KINDS, or tiles that do not fit together.
    """

    def tile(given: Mapping[str, Any]) -> Tile:
        values = dict(given)
        kind = values.pop("kind", None)
        if kind not in KINDS:
            raise ValueError(f"tile: got kind {kind!r}, must be one of {', '.join(KINDS)}")
        return tuned.made(KINDS[kind], values, OP)

    missing = [name for name in ("gemm1", "gemm2") if not isinstance(fields.get(name), Mapping)]
    if missing:
        raise ValueError(f"tile: got no {', '.join(missing)} for {OP}, must have both")
    return Layer(tile(fields["gemm1"]), tile(fields["gemm2"]))


def model_layer(rows: int, E: int, w13: PreparedWeight) -> Layer:
    """Return the tiles of a layer that the model of the machine chooses (tiles/model.py).

    Args:
        rows: R = T * top_k.
        E: experts.
        w13: gate and up, prepared, or its sizes.
    """
    return Layer(*both_gemms(rows, E, w13.N, w13.K, w13.G))


def layer_for(rows: int, E: int, w13: PreparedWeight, device: torch.device) -> Layer:
    """Return the tuned tiles of a layer, or those that the model chooses.

    Args:
        rows: R = T * top_k.
        E: experts.
        w13: gate and up, prepared.
        device: where.
    """
    row = tuned.lookup(OP, w13.N, w13.K, E, w13.G, ANY_DTYPE, rows, device, own=w13.kind)
    return from_fields(row) if row else model_layer(rows, E, w13)


def launched(tile: Tile, w: PreparedWeight) -> Tile:
    """Return the tile that a launch takes for a weight: a Direct for a Duo whose weight has more than LARGEST words."""
    if not isinstance(tile, Duo) or w.words.numel() <= LARGEST:
        return tile
    large = WIDEST if tile.block_m == WIDEST.block_m else Direct(tile.block_m, least=tile.least)
    return large.fit(w)
