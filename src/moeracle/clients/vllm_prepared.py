"""vLLM 0.33's compiled Marlin and Machete as an engine calls them: weights repacked once, on first use, as at load.

    moeracle kernels bench --kernel moe_w4a16.hopper --against moeracle.clients.vllm_prepared:vllm.marlin_layer --parts

`moeracle.clients.vllm_gemms` judges the same ops from the words of a checkpoint, repacking at every call; here the
words are this library's own (exllama), so that both sides of a comparison are called with the same tensors, and a call
is what vLLM's own takes: no copies. As there, from an installed vLLM or an unpacked wheel (MOERACLE_VLLM=FOLDER).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from moeracle.kernels.triton.route_as_ops import logits_choosing
from moeracle.ref.weights.layouts import pack_int4
from moeracle.ref.weights.marlin import marlin_scales, pack_marlin
from moeracle.ref.weights.weight import Int4Weight
from moeracle.target.load import kernel

from . import CLIENTS
from .vllm import DEVICE, STABLE, STABLE_MOE
from .vllm_gemms import BLOCKS, UINT4B8, layer_supports, linear_supports, marlin_fits, takes, workspace

T = torch.Tensor
Blocks = tuple[T, T, T]
Made = TypeVar("Made")
WIDE = 128  # rows of which a Marlin matrix has a multiple where its K has none
FULL = 0.9  # of a block that rows should fill, as vLLM chooses its size
_MADE: dict[str, Any] = {}


def _kept(kind: str, stored: T, make: Callable[[], Made]) -> Made:
    """Return what was made of a stored tensor on first use; it is kept as long as that lives."""
    cache = _MADE.setdefault(kind, WeakTensorKeyDictionary())
    if stored not in cache:
        cache[stored] = make()
    found: Made = cache[stored]
    return found


@dataclass(frozen=True)
class MarlinWeight:
    """A matrix, or one of each expert, in Marlin's tiles.

    Args:
        words: int32 [..., K/16, 2N]. scale: D [..., groups, N]. N, K: of the tiles; N may be padded.
        rows: N of the weight itself.
    """

    words: T
    scale: T
    N: int
    K: int
    rows: int


def marlin_weight(w: Int4Weight) -> MarlinWeight:
    """Repack a symmetric weight, one expert at a time; rows are padded where Marlin has no tile for them.

    Args:
        w: Int4Weight [N, K] or [E, N, K], any layout.
    Returns:
        MarlinWeight, of the same values.
    Raises:
        ValueError: its sizes have no tiles.
    """
    N = w.N if marlin_fits(w.N, w.K, w.group_size) else -(-w.N // WIDE) * WIDE
    if not marlin_fits(N, w.K, w.group_size):
        raise ValueError(f"w: got N={w.N}, K={w.K}, G={w.group_size}; Marlin has no tiles for it")
    each = [w] if w.E is None else [w.expert(e) for e in range(w.E)]
    words, scales = [], []
    for one in each:
        more = (0, 0, 0, N - w.N)
        words.append(pack_marlin(torch.nn.functional.pad(one.codes(), more, value=8)))
        scales.append(marlin_scales(torch.nn.functional.pad(one.scale, more)))
    stacked = (words[0], scales[0]) if w.E is None else (torch.stack(words), torch.stack(scales))
    return MarlinWeight(*stacked, N, w.K, w.N)


def block_size(tokens: int, top_k: int, experts: int) -> int:
    """Return the block size that vLLM's fused_marlin_moe takes.

    Args:
        tokens, top_k, experts: T, k, E.
    """
    return next((size for size in BLOCKS if tokens * top_k / experts / size < FULL), BLOCKS[-1])


def near_block_sizes(tokens: int, top_k: int, experts: int) -> tuple[int, ...]:
    """Return vLLM's own block size and its neighbours: a fair peer has the best of them."""
    at = BLOCKS.index(block_size(tokens, top_k, experts))
    return BLOCKS[max(0, at - 1) : at + 2]


def align(topk_ids: T, block: int, experts: int) -> Blocks:
    """Call _moe_C.moe_align_block_size with tensors as long as vLLM makes them.

    Args:
        topk_ids: int32 [T, k]. block: B. experts: E.
    """
    slots = topk_ids.numel()
    most = slots + experts * (block - 1)
    most = min(slots * block, most) if slots < experts else most
    count = -(-most // block)
    make = partial(torch.empty, dtype=torch.int32, device=topk_ids.device)
    ids, of_block, end = make(most), make(count), make(1)
    torch.ops._moe_C.moe_align_block_size(topk_ids, experts, block, ids, of_block, end, None, None)
    return ids, of_block, end


class MarlinLayer:
    """The launches of vLLM's fused_marlin_moe on weights that are repacked.

    Args:
        w13, w2: [E, 2I, H] and [E, H, I].
    """

    def __init__(self, w13: MarlinWeight, w2: MarlinWeight) -> None:
        self.w13, self.w2, self.E = w13, w2, w13.words.shape[0]
        self.locks = workspace(w13.words.device)

    def aligned(self, x: T, weights: T, blocks: Blocks, block: int) -> dict[str, T]:
        """GEMM, silu·mul, GEMM times the router weight, sum over k; {"h", "a", "y", "out"}.

        Args:
            x: [T, H]. weights: fp32 [T, k]. blocks: of `align`. block: B.
        """
        tokens, k = weights.shape
        h = self._gemm(x, self.w13, blocks, block, weights, k, weighted=False)
        a = torch.empty(len(h), self.w2.K, dtype=x.dtype, device=x.device)
        torch.ops._C.silu_and_mul(a, h)
        y = self._gemm(a, self.w2, blocks, block, weights, 1, weighted=True)
        out = torch.sum(y.view(tokens, k, -1), dim=1)
        return {"h": h, "a": a, "y": y[:, : self.w2.rows], "out": out[:, : self.w2.rows]}

    def _gemm(self, x: T, w: MarlinWeight, blocks: Blocks, block: int, weights: T, top_k: int, *, weighted: bool) -> T:
        out = torch.empty(x.shape[0] * top_k, w.N, dtype=x.dtype, device=x.device)
        torch.ops._moe_C.moe_wna16_marlin_gemm(
            x, out, w.words, None, w.scale, None, None, None, self.locks, *blocks, weights, block, top_k, weighted,
            UINT4B8, x.shape[0], w.N, w.K, False, True, False, -1, -1, -1,
        )  # fmt: skip
        return out

    def step(self, x: T, logits: T, top_k: int, block: int) -> T:
        """Whole step: topk_softmax (renormalized), moe_align_block_size, layer, sum; out [T, H].

        Args:
            x: [T, H]. logits: [T, E]. top_k: k. block: B.
        """
        shape = (len(x), top_k)
        weights = torch.empty(shape, dtype=torch.float32, device=x.device)
        ids, rows = (torch.empty(shape, dtype=torch.int32, device=x.device) for _ in range(2))
        torch.ops._moe_C.topk_softmax(weights, ids, rows, logits, True, None, None)
        return self.aligned(x, weights, align(ids, block, self.E), block)["out"]


def _layer(w13: Int4Weight, w2: Int4Weight) -> MarlinLayer:
    up, down = (_kept("marlin", w.packed, partial(marlin_weight, w)) for w in (w13, w2))
    return _kept("layer", w13.packed, lambda: MarlinLayer(up, down))


def _layer_fits(case: Any) -> bool | str:
    return (case.routing != "ignored" and layer_supports(case)) or "it reads an expert for every slot"


@kernel(
    "moe_w4a16", name="vllm.marlin_layer", layout="exllama", device=DEVICE,
    contract=CLIENTS["vllm.fused_marlin_moe"].contract, supports=takes(STABLE_MOE, _layer_fits),
)  # fmt: skip
def marlin_layer(x: T, w13: Int4Weight, w2: Int4Weight, topk_weights: T, topk_ids: T) -> Any:
    """vLLM's fused_marlin_moe with its own choice of a block size."""
    (tokens, k), E = topk_ids.shape, w13.packed.shape[0]
    layer, block = _layer(w13, w2), block_size(tokens, k, E)
    return layer.aligned(x, topk_weights, align(topk_ids, block, E), block)


def layer_parts(problems: Sequence[Any]) -> dict[tuple[str, str], list[Callable[[], Any]]]:
    """Return what `kernels bench --parts` times beside ours: by part and block size, one call a problem.

    "aligned" is the layer without its alignment, "step" routing, alignment, layer and sum, of logits that choose the
    same experts; vLLM's own block size and its neighbours.

    Args:
        problems: of moe_w4a16, over the same weights.
    """
    args = [problem.args for problem in problems]
    (tokens, k), E = args[0]["topk_ids"].shape, args[0]["w13"].packed.shape[0]
    layer = _layer(args[0]["w13"], args[0]["w2"])
    logits = [logits_choosing(of["topk_ids"], E) for of in args]
    calls: dict[tuple[str, str], list[Callable[[], Any]]] = {}
    for block in near_block_sizes(tokens, k, E):
        blocks = [align(of["topk_ids"], block, E) for of in args]
        calls["aligned", f"B={block}"] = [
            partial(layer.aligned, of["x"], of["topk_weights"], of_call, block)
            for of, of_call in zip(args, blocks, strict=True)
        ]
        calls["step", f"B={block}"] = [
            partial(layer.step, of["x"], scores, k, block) for of, scores in zip(args, logits, strict=True)
        ]
    return calls


BENCH_PARTS = {"marlin_layer": layer_parts}


@kernel(
    "int4_linear", name="vllm.marlin_linear", layout="exllama", device=DEVICE,
    contract=CLIENTS["vllm.marlin_gemm"].contract, supports=takes(STABLE, linear_supports),
)  # fmt: skip
def marlin_linear(x: T, w: Int4Weight, bias: T | None) -> Any:
    """vLLM's marlin_gemm; a bias is added by torch, as vLLM's other linears do."""
    made = _kept("marlin", w.packed, lambda: marlin_weight(w))
    locks = _kept("locks", w.packed, lambda: workspace(x.device))
    y = torch.ops._C.marlin_gemm(
        x, None, made.words, None, made.scale, None, None, None, locks, UINT4B8, len(x), made.N, made.K,
        False, True, False,
    )  # fmt: skip
    return y[:, : made.rows] if bias is None else y[:, : made.rows] + bias


def machete_supports(case: Any) -> bool | str:
    """Say whether machete_mm takes a case."""
    fits = case.N % 128 == 0 and case.K % 64 == 0 and case.G in (-1, 64, 128) and case.T > 0
    return fits or "N must be a multiple of 128, K of 64, the group 64, 128 or K, and T above 0"


@kernel(
    "int4_linear", name="vllm.machete_linear", layout="exllama", device=DEVICE, contract="grouped",
    supports=takes(STABLE, machete_supports),
)  # fmt: skip
def machete_linear(x: T, w: Int4Weight, bias: T | None) -> Any:
    """vLLM's machete_mm; a bias is added by torch, as vLLM does."""
    words, scale = _kept("machete", w.packed, lambda: machete_weight(w))
    y = torch.ops._C.machete_mm(x, words, UINT4B8, None, scale, None, w.G, None, None, None)
    return y if bias is None else y + bias


def machete_weight(w: Int4Weight) -> tuple[T, T]:
    """Return a matrix's words, prepacked for Machete, and its scales [groups, N].

    Args:
        w: symmetric Int4Weight [N, K], any layout.
    """
    words, D = pack_int4(w.codes(), "gptq"), w.scale.dtype
    return torch.ops._C.machete_prepack_B(words.t().contiguous().t(), D, UINT4B8, D), w.scale.mT.contiguous()
