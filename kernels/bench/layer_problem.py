"""One MoE layer to be timed on a Hopper GPU: its two GEMMs, their sum and the whole layer, one call a routing.

Alignments are made beforehand and are in no figure. Every call takes another routing, so that weights come from memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch

from moeracle.kernels.hopper.launch import KNOWN, UNKNOWN, Blocks, run_gemm
from moeracle.kernels.hopper.moe_w4a16 import moe_w4a16_hopper, most_blocks
from moeracle.kernels.hopper.prepared_weight import PreparedWeight, prepared
from moeracle.kernels.hopper.tiles.layers import Layer, Tile, layer_for
from moeracle.kernels.triton.moe_permute_torch import moe_align_block_size
from moeracle.kernels.triton.moe_sum import moe_sum
from moeracle.kernels.triton.route import route
from moeracle.kernels.triton.route_as_ops import logits_choosing
from moeracle.ref.weights.weight import Int4Weight

CALLS = 12  # at least, in one graph whose replays are waited for: its start, 5 to 10 us, is shared by its calls
Calls = list[Callable[[], Any]]
Routed = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class LayerProblem:
    """A layer at one token count.

    Args:
        w13, w2: exllama weights [E, 2I, H] and [E, H, I]; or prepared.
        routed: x [T, H], router weights and ids [T, k] of each call.
    """

    def __init__(
        self, w13: Int4Weight | PreparedWeight, w2: Int4Weight | PreparedWeight, routed: Sequence[Routed]
    ) -> None:
        self.w13, self.w2, self.routed = w13, w2, list(routed)
        self.T, self.rows = len(routed[0][0]), routed[0][2].numel()
        self.E = (w13.words if isinstance(w13, PreparedWeight) else w13.packed).shape[0]
        self._blocks: dict[int, list[Blocks]] = {}

    @cached_property
    def up(self) -> PreparedWeight:
        """w13, prepared."""
        return prepared(self.w13, gated=True, fold=True)

    @cached_property
    def down(self) -> PreparedWeight:
        """w2, prepared."""
        return prepared(self.w2, fold=True)

    @cached_property
    def a(self) -> torch.Tensor:
        """What GEMM1 writes and GEMM2 reads, [T*k, I]."""
        x = self.routed[0][0]
        return torch.zeros(self.rows, self.down.K, device=x.device, dtype=x.dtype)

    @cached_property
    def y(self) -> torch.Tensor:
        """What GEMM2 writes and the sum reads, [T*k, H]."""
        x = self.routed[0][0]
        return torch.zeros(self.rows, self.down.N, device=x.device, dtype=x.dtype)

    def layer(self) -> Layer:
        """Return the tiles that this layer takes: the tuning table's, or the default."""
        return self.fit(layer_for(self.rows, self.E, self.up, self.up.words.device))

    def fit(self, layer: Layer) -> Layer:
        """Return a layer's tiles as they fit these weights."""
        return Layer(layer.gemm1.fit(self.up), layer.gemm2.fit(self.down))

    def blocks(self, B: int) -> list[Blocks]:
        """Return each routing's alignment to blocks of B."""
        if B not in self._blocks:
            self._blocks[B] = [moe_align_block_size(ids, B, self.E) for _, _, ids in self.routed]
        return self._blocks[B]

    def gemm_calls(self, which: int, tile: Tile) -> Calls:
        """Return the calls of GEMM1 (0), which writes `a`, or of GEMM2 (1), which reads it and writes `y`."""
        w, out, early = ((self.up, self.a, UNKNOWN), (self.down, self.y, KNOWN))[which]
        most = most_blocks(self.rows, self.E, tile.block_m)
        return [
            partial(
                run_gemm, (x, self.a)[which], w, blocks, out, tile, top_k=(ids.shape[1], 1)[which],
                block_size=tile.block_m, num_blocks=min(most, blocks[1].numel()), launch=early,
            )
            for (x, _, ids), blocks in zip(self.routed, self.blocks(tile.block_m), strict=True)
        ]  # fmt: skip

    def layer_calls(self, layer: Layer, programmatic: bool = True) -> Calls:
        """Return the whole layer's calls; not `programmatic`: each launch begins after the one ahead has ended."""
        return [
            partial(
                moe_w4a16_hopper, x, self.up, self.down, weights, ids, config=layer, programmatic=programmatic,
                align=partial(_given, blocks),
            )
            for (x, weights, ids), blocks in zip(self.routed, self.blocks(layer.block_m), strict=True)
        ]  # fmt: skip

    def step_calls(self, layer: Layer, logits: Sequence[torch.Tensor]) -> Calls:
        """Return the calls of whole steps: routing with its alignment in one launch or two, the layer and its sum.

        Args:
            layer: the tiles.
            logits: [T, E] of each call; weights are renormalized.
        """

        def step(x: torch.Tensor, logits: torch.Tensor, top_k: int) -> torch.Tensor:
            found = route(logits, top_k, True, block_size=layer.block_m, block_m=None)
            blocks: Any = (found.sorted_token_ids, found.expert_ids, found.num_tokens_post_padded)
            given = partial(_given, blocks)
            return moe_w4a16_hopper(x, self.up, self.down, found.weights, found.ids, config=layer, align=given)  # type: ignore[return-value]

        return [
            partial(step, x, of_call, ids.shape[1]) for (x, _, ids), of_call in zip(self.routed, logits, strict=True)
        ]

    def parts(self) -> dict[str, Calls]:
        """Return the calls of each GEMM and the sum, which read what the one before wrote, and of the aligned layer.

        A "step" begins with logits that choose the same experts.
        """
        layer = self.layer()
        return {
            "gemm1": self.gemm_calls(0, layer.gemm1),
            "gemm2": self.gemm_calls(1, layer.gemm2),
            "sum": [partial(moe_sum, self.y, weights, ids, programmatic=True) for _, weights, ids in self.routed],
            "aligned": self.layer_calls(layer),
            "plain": self.layer_calls(layer, programmatic=False),
            "step": self.step_calls(layer, [logits_choosing(ids, self.E) for _, _, ids in self.routed]),
        }


def _given(blocks: Blocks, topk_ids: torch.Tensor, block_size: int, num_experts: int) -> Blocks:
    return blocks
