"""Changing a problem without computing its answer: other tokens, other names for the experts, other weights.

All on the CPU. Strides and padding stay as the case has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from moeracle.ref.ops.moe_align_block_size import local_expert_ids
from moeracle.ref.weights.weight import Int4Weight

from ..common.generator import Stream
from .case import Problem


def permutation(problem: Problem, what: str, length: int) -> torch.Tensor:
    """Return a permutation of 0..length-1 that the case's seed decides; the identity only where nothing else exists."""
    order = torch.from_numpy(Stream(problem.case.seed, f"law.{what}").permutation(length).astype("int64"))
    return order.roll(1) if torch.equal(order, torch.arange(length)) else order


def with_args(problem: Problem, **changes: Any) -> Problem:
    """Return the problem with some arguments replaced."""
    return replace(problem, args={**problem.args, **changes})


def topk_ids_of(problem: Problem) -> torch.Tensor:
    """Return the topk_ids [T, k] behind a routed problem, whether the kernel sees them or not."""
    return problem.args["topk_ids"] if "topk_ids" in problem.args else problem.truth["topk_ids"]


def expert_map_of(problem: Problem) -> torch.Tensor | None:
    """Return the expert_map of a routed problem, or None."""
    return problem.args.get("expert_map", problem.truth.get("expert_map"))


def ids_here(problem: Problem) -> torch.Tensor:
    """Return int64 [T, k]: this rank's number of each slot's expert, -1 for one elsewhere and for a slot of nobody."""
    return local_expert_ids(topk_ids_of(problem), problem.case.E, expert_map_of(problem))[0]


def local_slots(problem: Problem) -> torch.Tensor:
    """Return bool [T, k]: slots whose expert is on this rank; the rows of others mean nothing."""
    return ids_here(problem) >= 0


def like(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return `values` laid out in memory as `tensor` is."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(values)


def reordered(w: Int4Weight, order: torch.Tensor) -> Int4Weight:
    """Return the weight whose expert i is w's expert order[i]."""
    zero = None if w.zero is None else like(w.zero, w.zero[order])
    of, bias = (None if part is None else part[order] for part in (w.group_of, w.bias))
    packed, scale = like(w.packed, w.packed[order]), like(w.scale, w.scale[order])
    return replace(w, packed=packed, scale=scale, zero=zero, group_of=of, bias=bias)


def other_codes(w: Int4Weight, changed: torch.Tensor) -> Int4Weight:
    """Return w with every code u replaced by 15 - u in the matrices (or the matrix) that bool `changed` names."""
    mask = changed.reshape(*changed.shape, 1, 1)
    return replace(w, packed=like(w.packed, torch.where(mask, ~w.packed, w.packed)))


def map_weights(problem: Problem, change: Callable[[Int4Weight], Int4Weight]) -> dict[str, Int4Weight]:
    """Return every int4 weight argument, changed."""
    return {name: change(value) for name, value in problem.args.items() if isinstance(value, Int4Weight)}


FACTOR = 4.0  # a power of two, which passes through every rounding, sum and cast unchanged


def multiplied(value: torch.Tensor) -> torch.Tensor:
    """Return FACTOR times a tensor, laid out as it is.

    Raises:
        OverflowError: the result does not fit its dtype.
    """
    result = like(value, value * FACTOR)
    if not bool(result.isfinite().all()):
        raise OverflowError("a scaled value does not fit its dtype")
    return result


def with_larger_scales(w: Int4Weight) -> Int4Weight:
    """Return a weight whose scales, and whose bias, are FACTOR times as large."""
    return replace(with_larger_bias(w), scale=multiplied(w.scale))


def with_larger_bias(w: Int4Weight) -> Int4Weight:
    """Return a weight whose bias, if it has one, is FACTOR times as large."""
    return w if w.bias is None else replace(w, bias=multiplied(w.bias))


def scalable(value: torch.Tensor) -> torch.Tensor:
    """Return where a stored result may be multiplied by FACTOR and stay a normal number; False for NaN."""
    size, limits = value.double().abs(), torch.finfo(value.dtype)
    # Twice: what was stored as the smallest normal number may have been a subnormal one before.
    return (size >= 2 * limits.smallest_normal) & (size * FACTOR <= limits.max)
