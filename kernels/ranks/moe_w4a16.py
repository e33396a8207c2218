"""moe_w4a16 over ranks, in plain torch.distributed: gloo on the CPU, NCCL on GPUs. Each rank holds some of the experts.

    all_reduce       every rank has every token and adds up its own experts' slots; the sums are all-reduced in D
    all_to_all       every rank has tokens of its own; their rows travel to the experts and come back one by one
    gather_scatter   every rank has tokens of its own, and sees everyone's; each sends each the part of the sum of its
                     tokens, which adds them in fp32, rank 0 first

Weights are dequantized and cast to D, products are added in fp32: what is shown is who computes what, and who adds.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F

from moeracle.ref.weights.weight import Int4Weight

__all__ = ["all_reduce", "all_to_all", "gather_scatter"]


def rows_of_experts(
    x: torch.Tensor, w13: Int4Weight, w2: Int4Weight, experts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run each row through one of this rank's experts.

    Args:
        x: D [R, H].
        w13, w2: of this rank's experts.
        experts: int [R], local numbers, -1 for a row of no expert here.
    Returns:
        h D [R, 2I], a D [R, I], y D [R, H]; rows of no expert here are 0.
    """
    D, R, I = x.dtype, len(x), w2.K
    h, a, y = x.new_zeros(R, 2 * I), x.new_zeros(R, I), x.new_zeros(R, w2.N)
    for e in experts.unique().tolist():
        if e < 0:
            continue
        rows = (experts == e).nonzero().flatten()
        of_w13, of_w2 = (w.expert(e).dequantize(torch.float32).to(D).float() for w in (w13, w2))
        h[rows] = (x[rows].float() @ of_w13.T).to(D)
        gate, up = h[rows].float().chunk(2, 1)
        a[rows] = (F.silu(gate).to(D).float() * up).to(D)
        y[rows] = (a[rows].float() @ of_w2.T).to(D)
    return h, a, y


def partial_sum(y: torch.Tensor, topk_weights: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
    """Add up the slots of each token that are counted here, in fp32, and round to D.

    Args:
        y: D [T*k, H].
        topk_weights: fp32 [T, k].
        here: bool [T, k].
    Returns:
        D [T, H].
    """
    T, k = topk_weights.shape
    total = torch.zeros(T, y.shape[1], device=y.device)
    for j in range(k):
        term = y.reshape(T, k, y.shape[1])[:, j].float() * topk_weights[:, j, None]
        total += torch.where(here[:, j, None], term, 0.0)
    return total.to(y.dtype)


def local_ids(topk_ids: torch.Tensor, expert_map: torch.Tensor) -> torch.Tensor:
    """Return int64 [T, k]: each slot's local expert, -1 where another rank counts it, or nobody."""
    return torch.where(topk_ids < 0, -1, expert_map.long()[topk_ids.long().clamp(min=0)])


def all_reduce(
    x: torch.Tensor,
    w13: Int4Weight,
    w2: Int4Weight,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    expert_map: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Run a layer whose tokens every rank has.

    Args:
        x, topk_weights, topk_ids: of every token.
        w13, w2: of this rank's experts.
        expert_map: int32 [E], local numbers, -1 for an expert whose slots others count.
    Returns:
        h, a and y of this rank's slots, its partial sum, and out, which is the same on every rank.
    """
    ids = local_ids(topk_ids, expert_map)
    h, a, y = rows_of_experts(x.repeat_interleave(ids.shape[1], 0), w13, w2, ids.flatten())
    partial = partial_sum(y, topk_weights, ids >= 0)
    out = partial.clone()
    dist.all_reduce(out)
    return {"h": h, "a": a, "y": y, "partial": partial, "out": out}


def all_to_all(
    x: torch.Tensor,
    w13: Int4Weight,
    w2: Int4Weight,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    expert_map: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Run a layer whose tokens are of one rank each: rows travel to their expert's rank, and back.

    Args:
        x, topk_weights, topk_ids: of this rank's tokens.
        w13, w2, expert_map: as of `all_reduce`.
    Returns:
        y of this rank's tokens, and out.
    """
    (T, k), E, H = topk_ids.shape, len(expert_map), x.shape[1]
    maps = expert_map.new_empty(dist.get_world_size(), E)
    dist.all_gather_into_tensor(maps.flatten(), expert_map)
    owner = torch.where(expert_map >= 0, dist.get_rank(), (maps >= 0).int().argmax(0))  # its own copy, if it has one
    ids = topk_ids.flatten().long()
    slots = (ids >= 0).nonzero().flatten()
    to = owner[ids[slots]].long()
    order = slots[to.argsort(stable=True)]
    sends = torch.bincount(to, minlength=len(maps))
    arrives = torch.empty_like(sends)
    dist.all_to_all_single(arrives, sends)
    sizes, back = arrives.tolist(), sends.tolist()
    rows, experts = x.new_empty(sum(sizes), H), ids.new_empty(sum(sizes))
    dist.all_to_all_single(rows, x[order // k].contiguous(), sizes, back)
    dist.all_to_all_single(experts, ids[order], sizes, back)
    _, _, y_there = rows_of_experts(rows, w13, w2, expert_map.long()[experts])
    y_back = x.new_empty(len(order), H)
    dist.all_to_all_single(y_back, y_there, back, sizes)
    y = x.new_zeros(T * k, H)
    y[order] = y_back
    return {"y": y, "out": partial_sum(y, topk_weights, topk_ids >= 0)}


def gather_scatter(
    x: torch.Tensor,
    w13: Int4Weight,
    w2: Int4Weight,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    expert_map: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Run a layer whose tokens are of one rank each, of which every rank sees all, and returns its part of their sums.

    Args:
        x, topk_weights, topk_ids, w13, w2, expert_map: as of `all_to_all`.
    Returns:
        partial [ranks, T, H], what each rank sent this one, and out.
    """
    n, rank, H = dist.get_world_size(), dist.get_rank(), x.shape[1]
    counts = torch.zeros(n, dtype=torch.int64, device=x.device)
    dist.all_gather_into_tensor(counts, torch.tensor([len(x)], device=x.device))
    sizes = counts.tolist()
    everyone = [_gathered(t, sizes) for t in (x, topk_weights, topk_ids)]
    ids = local_ids(everyone[2], expert_map)
    shared = _is_shared(expert_map)[everyone[2].long().clamp(min=0)]
    of_token = torch.arange(n, device=x.device).repeat_interleave(counts)
    ids = torch.where(shared & (of_token != rank)[:, None], -1, ids)  # that expert is there, too
    _, _, y = rows_of_experts(everyone[0].repeat_interleave(ids.shape[1], 0), w13, w2, ids.flatten())
    partial = partial_sum(y, everyone[1], ids >= 0)
    mine = x.new_empty(n * len(x), H)
    dist.all_to_all_single(mine, partial, [len(x)] * n, sizes)
    mine = mine.reshape(n, len(x), H)
    total = torch.zeros(len(x), H, device=x.device)
    for of_rank in mine:
        total += of_rank.float()
    return {"partial": mine, "out": total.to(x.dtype)}


def _gathered(own: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Return every rank's rows, one after another; each rank's are made as many as the longest has."""
    most = max(sizes)
    padded = own.new_zeros(most, own.shape[1])
    padded[: len(own)] = own
    whole = own.new_empty(len(sizes) * most, own.shape[1])
    dist.all_gather_into_tensor(whole, padded)
    return torch.cat(
        [rows[:size] for rows, size in zip(whole.reshape(len(sizes), most, own.shape[1]), sizes, strict=True)]
    )


def _is_shared(expert_map: torch.Tensor) -> torch.Tensor:
    """Return bool [E]: the experts that every rank's map names."""
    held = (expert_map >= 0).int()
    dist.all_reduce(held)
    return held == dist.get_world_size()
