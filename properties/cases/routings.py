"""Routing archetypes: which experts each token goes to, and with what router weight.

Popularity over rank r = 1..E: uniform 1, zipf1 1/r, zipf2 1/r^2, hot16 1 if r <= 16 else 1e-6; a seed's permutation
says which expert has which rank. Each token takes k experts one after another, each with probability proportional to
the popularity of those left: the distribution of the k largest of log p + Gumbel noise, by integers alone.

    balanced  consecutive ids             onehot   one hot expert takes slot 0 of every token
    empty     half the experts unused     repeat   ids may repeat in a row     ignored   some ids are -1
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from moeracle.ref.errors import require, unknown

from ..common.generator import Stream
from .optable import ROUTINGS

Ints = NDArray[np.int64]
_ONE = 1 << 28  # zipf's popularity of rank 1; totals stay below 2^32


def popularity(routing: str, E: int) -> Ints:
    """Return the integer popularity [E] of ranks 1..E under an archetype.

    Args:
        routing: uniform, zipf1, zipf2 or hot16; any other archetype is uniform over the experts that it uses.
        E: experts.
    """
    rank = np.arange(1, E + 1, dtype=np.int64)
    if routing == "zipf1":
        return np.maximum(_ONE // rank, 1)
    if routing == "zipf2":
        return np.maximum(_ONE // (rank * rank), 1)
    if routing == "hot16":
        return np.where(rank <= 16, 1_000_000, 1)
    return np.ones(E, np.int64)


def draw_topk(
    routing: str, T: int, E: int, k: int, seed: int, *, dyadic_steps: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the router's choice for each token.

    Args:
        routing: an archetype.
        T, E, k: sizes; k at most E unless routing is "repeat".
        seed: the case's.
        dyadic_steps: if positive, weights are 1/2, 1/4, … 2^-dyadic_steps, neighbouring slots different.
    Returns:
        ids int32 [T, k], 0..E-1 and distinct in a row (-1 too under ignored; not distinct under repeat); weights fp32
        [T, k], each row summing to about 1 (below 1 for k = 1, or a missing weight could not be seen).
    Raises:
        ValueError: unknown archetype; k > E.
    """
    if routing not in ROUTINGS:
        raise unknown("routing", routing, ROUTINGS)
    require(k >= 1 and (k <= E or routing == "repeat"), f"k: got {k}, must be 1..E = {E}")
    stream = Stream(seed, "routing")
    ids = _ids(routing, T, E, k, stream).astype(np.int32)
    weights = _weights(T, k, Stream(seed, "router weights"), dyadic_steps)
    return torch.from_numpy(ids), torch.from_numpy(weights)


def _ids(routing: str, T: int, E: int, k: int, stream: Stream) -> Ints:
    if routing == "balanced":
        return np.arange(T * k, dtype=np.int64).reshape(T, k) % E
    expert_of_rank = stream.permutation(E)
    if routing == "repeat":
        ids = stream.below((T, k), E)
        if k > 1:
            ids[::2, 1] = ids[::2, 0]
        return ids
    if routing == "onehot":
        others = 1 + _without_replacement(np.ones(E - 1, np.int64), T, k - 1, stream)
        return expert_of_rank[np.concatenate([np.zeros((T, 1), np.int64), others], 1)]
    if routing == "empty":
        used = max(k, E - E // 2)
        return expert_of_rank[_without_replacement(np.ones(used, np.int64), T, k, stream)]
    ids = expert_of_rank[_without_replacement(popularity(routing, E), T, k, stream)]
    if routing == "ignored":
        ids[stream.below((T, k), 4) == 0] = -1
        if T > 1:
            ids[0, 0] = ids[-1] = -1  # the last token is ignored altogether
    return ids


def _without_replacement(p: Ints, T: int, k: int, stream: Stream) -> Ints:
    """Return k distinct ranks [T, k] for each token, each drawn in proportion to p among those left.

    u is uniform in the popularity that is left; going through the chosen ranks in ascending order, u steps over each
    one that starts at or before it.
    """
    ends = np.cumsum(p)
    starts = ends - p
    chosen = np.zeros((T, k), np.int64)
    ascending = np.zeros((T, 0), np.int64)
    for j in range(k):
        left = (ends[-1] - p[ascending].sum(1)).astype(np.uint64)
        u = ((stream.bits((T,), 32).astype(np.uint64) * left) >> np.uint64(32)).astype(np.int64)
        for i in range(j):
            rank = ascending[:, i]
            u += np.where(starts[rank] <= u, p[rank], 0)
        chosen[:, j] = np.searchsorted(ends, u, side="right")
        ascending = np.sort(chosen[:, : j + 1], axis=1)
    return chosen


def _weights(T: int, k: int, stream: Stream, dyadic_steps: int) -> NDArray[np.float32]:
    if dyadic_steps:
        step = (np.arange(k) + stream.below((T, 1), dyadic_steps)) % dyadic_steps
        return np.ldexp(np.float32(0.5), -step).astype(np.float32)
    raw = (stream.bits((T, k), 32).astype(np.float64) + 2.0**30) * 2.0**-33  # 1/8 .. 5/8
    if k == 1:
        return raw.astype(np.float32)
    total = raw[:, :1].copy()
    for j in range(1, k):  # slot by slot: numpy may sum in another order elsewhere
        total += raw[:, j : j + 1]
    return (raw / total).astype(np.float32)


def may_be(routing: str, ids: torch.Tensor, E: int) -> bool:
    """Say whether ids [T, k] keep what an archetype promises, so that a kernel made for it can be asked about them.

    Distinct in a row unless they may repeat; -1 only where ids may be ignored; as many slots an expert, but for one,
    under balanced; one expert that every token takes under onehot; half of the experts unused under empty.
    """
    ids = ids.long()
    if not ids.numel():
        return True
    if routing != "ignored" and bool((ids < 0).any()):
        return False
    in_order = ids.sort(dim=1).values
    again = (in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)
    if routing not in ("repeat", "balanced") and bool(again.any()):
        return False
    counts = torch.bincount(ids[ids >= 0], minlength=E)
    if routing == "balanced":
        return int(counts.max() - counts.min()) <= 1
    if routing == "onehot":
        return int(counts.max()) == len(ids)
    return routing != "empty" or int((counts > 0).sum()) <= max(ids.shape[1], E - E // 2)


def routing_statistics(ids: torch.Tensor, E: int, block_m: int) -> dict[str, float]:
    """Say how evenly tokens spread over experts, and how well they fill blocks of rows.

    useful % = 100 * sum(count) / sum(ceil(count/BM) * BM);  skinny % = share of blocks with at most 8 rows

    Args:
        ids: int [T, k], -1 for an ignored slot.
        E: experts.
        block_m: BM, rows a block, at least 1.
    Returns:
        dead: experts without rows; mean, median, max: rows of the others; blocks; useful and skinny in percent (100 and
        0 where there are no rows).
    Raises:
        ValueError: block_m < 1 or an id outside -1..E-1.
    """
    require(block_m >= 1, f"block_m: got {block_m}, must be at least 1")
    flat = ids.reshape(-1).to(torch.int64).cpu()
    if flat.numel():
        lo, hi = int(flat.min()), int(flat.max())
        require(lo >= -1 and hi < E, f"ids: got {lo}..{hi}, must be within -1..{E - 1}")
    counts = np.bincount(flat[flat >= 0].numpy(), minlength=E)
    used = counts[counts > 0]
    blocks = -(-used // block_m)
    last = used - (blocks - 1) * block_m  # rows of each expert's last block
    skinny = int((last <= 8).sum()) + (int((blocks - 1).sum()) if block_m <= 8 else 0)
    total = int(blocks.sum())
    return {
        "dead": int(E - used.size),
        "mean": float(used.mean()) if used.size else 0.0,
        "median": float(np.median(used)) if used.size else 0.0,
        "max": int(used.max()) if used.size else 0,
        "blocks": total,
        "useful": 100.0 * int(used.sum()) / (total * block_m) if total else 100.0,
        "skinny": 100.0 * skinny / total if total else 0.0,
    }
