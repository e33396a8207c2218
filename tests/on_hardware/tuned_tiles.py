"""A TARGET: every tile of the GPU's tuning table for the Hopper layer, each as a padded_gemm, and each tuned layer.

    moeracle check tests/on_hardware/tuned_tiles.py --case … --json F

TILES=2/8 in the environment takes the third eighth of them, so that several processes can compile side by side;
tests/on_hardware/check_tuned.py does that.
"""

from __future__ import annotations

import os

import torch

import moeracle
from moeracle.kernels import tuned
from moeracle.kernels.entry import EXLLAMA_ZEROS
from moeracle.kernels.hopper.cases import hopper_case, on_hopper, sizes_of
from moeracle.kernels.hopper.moe_w4a16 import hopper_padded_gemm, moe_w4a16_hopper
from moeracle.kernels.hopper.tiles.layers import OP, Layer, Tile, from_fields

DECLARED = {
    "layout": "exllama",
    "contract": "grouped",
    "device": "cuda",
    "supports": hopper_case,
    "zeros": EXLLAMA_ZEROS,
}


def tuned_layers() -> list[Layer]:
    """Every distinct layer of the tables that this GPU asks (nvidia-h200 where there is none)."""
    places = tuned.places("cuda") if on_hopper() else ("nvidia-h200",)
    rows = [row for place in places for key, rows in tuned.load(place).items() if key[0] == OP for row in rows]
    return list(dict.fromkeys(from_fields(row["tile"]) for row in rows))


def name_of(tile: Tile) -> str:
    """The tile's kind and numbers."""
    numbers = (str(v) for name, v in vars(tile).items() if v or name != "max_registers")
    return f"{type(tile).__name__.lower()}{'-'.join(numbers)}"


def declare_gemm(tile: Tile) -> None:
    """Declare padded_gemm with one tile, and the schedule that it keeps for a case's K."""

    def schedule(case):
        return tile.fit(sizes_of(case.N, case.K, case.G)).schedule()

    @moeracle.kernel("padded_gemm", name=f"padded_gemm[{name_of(tile)}]", schedule=schedule, **DECLARED)
    def gemm(x, w, sorted_token_ids, expert_ids, num_tokens_post_padded, topk_weights, top_k):
        blocks = sorted_token_ids, expert_ids, num_tokens_post_padded
        return hopper_padded_gemm(x, w, *blocks, topk_weights, top_k, config=tile)


def declare_layer(layer: Layer) -> None:
    """Declare moe_w4a16 with one tuned layer's tiles."""

    @moeracle.kernel("moe_w4a16", name=f"moe_w4a16[{name_of(layer.gemm1)},{name_of(layer.gemm2)}]", **DECLARED)
    def whole(x, w13, w2, topk_weights, topk_ids):
        return moe_w4a16_hopper(x, w13, w2, topk_weights, topk_ids, config=layer, return_stages=True)


part, _, parts = os.environ.get("TILES", "0/1").partition("/")
LAYERS = tuned_layers()
TILES = list(dict.fromkeys(tile for layer in LAYERS for tile in (layer.gemm1, layer.gemm2)))
for chosen in TILES[int(part) :: int(parts)]:
    declare_gemm(chosen)
for chosen_layer in LAYERS[int(part) :: int(parts)]:
    declare_layer(chosen_layer)
torch.set_num_threads(1)
