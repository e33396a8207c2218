"""Layers over ranks that are wrong on one rank, each in its own way; loaded as a TARGET by its path."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

import moeracle
from moeracle.kernels.ranks import moe_w4a16 as right

T = torch.Tensor
Args = tuple[Any, ...]
REDUCED = "grouped,accumulator=fp32,ranks=2/dtype/add=dtype"
before: dict[str, T] = {}


def planted(contract: str = REDUCED, world_size: int = 2) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a layer over ranks; the function gets its rank, and the arguments as one tuple."""

    def declare(fn: Callable[..., Any]) -> Callable[..., Any]:
        def layer(x: T, w13: Any, w2: Any, topk_weights: T, topk_ids: T, expert_map: T) -> Any:
            return fn(dist.get_rank(), (x, w13, w2, topk_weights, topk_ids, expert_map))

        moeracle.kernel("moe_w4a16", name=fn.__name__, world_size=world_size, contract=contract)(layer)
        return layer

    return declare


def on_rank_1(change: Callable[[Args], None]) -> Callable[..., Any]:
    """Return a layer that is right, but for what happens on rank 1 before it."""

    def layer(rank: int, args: Args) -> Any:
        if rank == 1:
            change(args)
        return right.all_reduce(*args)

    layer.__name__ = change.__name__
    return layer


@planted()
@on_rank_1
def dies(args: Args) -> None:
    os.kill(os.getpid(), 9)


@planted()
@on_rank_1
def crashes(args: Args) -> None:
    ctypes.string_at(0)


@planted()
@on_rank_1
def ends(args: Args) -> None:
    os._exit(7)


@planted()
@on_rank_1
def raises(args: Args) -> None:
    raise ValueError("no such thing")


@planted()
@on_rank_1
def hangs(args: Args) -> None:
    time.sleep(1000)


@planted()
@on_rank_1
def writes(args: Args) -> None:
    args[0].zero_()


@planted()
@on_rank_1
def reads_another_map(args: Args) -> None:
    args[5].copy_(args[5].roll(-len(args[5]) // 2))


@planted()
def leaves(rank: int, args: Args) -> Any:
    return args[0] if rank else right.all_reduce(*args)


@planted()
def goes_elsewhere(rank: int, args: Args) -> Any:
    dist.barrier() if rank else dist.all_reduce(torch.ones(5))
    return right.all_reduce(*args)


@planted()
def reduces_more(rank: int, args: Args) -> Any:
    dist.all_reduce(torch.ones(5 + rank))
    return right.all_reduce(*args)


@planted()
def returns_less(rank: int, args: Args) -> Any:
    out = right.all_reduce(*args)["out"]
    return out[rank:]


@planted()
def returns_another_dtype(rank: int, args: Args) -> Any:
    out = right.all_reduce(*args)["out"]
    return out.float() if rank else out


@planted()
def wrong_map(rank: int, args: Args) -> Any:
    turned = args[5].roll(-len(args[5]) // 2) if rank else args[5]
    stages = right.all_reduce(*args[:5], turned)
    return {"partial": stages["partial"], "out": stages["out"]}


@planted()
def not_reduced(rank: int, args: Args) -> Any:
    stages = right.all_reduce(*args)
    return stages["partial"] if rank else stages["out"]


@planted()
def missing(rank: int, args: Args) -> Any:
    partial = right.all_reduce(*args)["partial"]
    out = torch.zeros_like(partial) if rank else partial.clone()
    dist.all_reduce(out)
    return {"partial": partial, "out": out}


@planted()
def stale(rank: int, args: Args) -> Any:
    now = right.all_reduce(*args)["partial"]
    handed = before.get("partial", now) if rank else now
    before["partial"] = now
    partial = handed if handed.shape == now.shape else now
    out = partial.clone()
    dist.all_reduce(out)
    return {"partial": partial, "out": out}


@planted(f"{REDUCED}/shared1")
def shared_by_all(rank: int, args: Args) -> Any:
    args[5][-1] = args[1].E - 1
    try:
        return right.all_reduce(*args)
    finally:
        args[5][-1] = -1 if rank else args[1].E - 1


@planted("grouped,accumulator=fp32,ranks=2/rows/own")
def other_order(rank: int, args: Args) -> Any:
    out = right.all_to_all(*args)["out"]
    both = [torch.empty_like(out), torch.empty_like(out)]
    dist.all_gather(both, out)
    return both[1 - rank]


@planted("grouped,accumulator=fp32,ranks=2/rows/own/shared1")
def all_to_all_shared(rank: int, args: Args) -> Any:
    return right.all_to_all(*args)


@planted("grouped,accumulator=fp32,ranks=2/deal/dtype/join=sequential/own/shared1")
def gather_scatter_shared(rank: int, args: Args) -> Any:
    return right.gather_scatter(*args)


@planted(f"{REDUCED}/deal/shared1")
def all_reduce_shared(rank: int, args: Args) -> Any:
    return right.all_reduce(*args)
