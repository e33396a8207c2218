"""Changing a problem without computing its answer: other tokens, other names for the experts, other weights.

All on the CPU; Bench.run moves the result. Strides and padding stay as the case has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from moeracle.ref.align import local_expert_ids
from moeracle.ref.dispatch import moe_align_block_size, moe_permute
from moeracle.ref.weight import Int4Weight

from ..generator import Stream
from ..inputs import strided
from ..problem import Problem

TOKEN_ARGS = {
    "topk_softmax": ("logits",),
    "moe_align_block_size": ("topk_ids",),
    "moe_permute": ("x", "topk_ids"),
    "int4_linear": ("x",),
    "silu_and_mul": ("h",),
    "moe_w4a16": ("x", "topk_weights", "topk_ids"),
    "int8_lm_head": ("x",),
    "shared_expert": ("x",),
    "tiny_dot": ("x",),
    "quantize_int8": ("w",),
}
AXES = {"topk_softmax": ("token", "slot"), "moe_align_block_size": ("token", "slot"), "quantize_int8": ("row", "k")}
SLOT_OPS = ("moe_permute", "grouped_gemm", "padded_gemm")


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


def local_slots(problem: Problem) -> torch.Tensor:
    """Return bool [T, k]: slots whose expert is on this rank; the rows of others mean nothing."""
    return local_expert_ids(topk_ids_of(problem), problem.case.E, expert_map_of(problem))[0] >= 0


def tokens_of(problem: Problem) -> torch.Tensor:
    """Return x [T, K] of a grouped or padded GEMM in token order."""
    x = problem.args["x"]
    return x if problem.case.op == "padded_gemm" else x[problem.truth["inv"].long()[:: problem.case.k]]


def routed(problem: Problem, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor | None, **args: Any) -> Problem:
    """Return a grouped_gemm or padded_gemm problem made again from tokens and their experts.

    Args:
        x: [T, K].  ids: int32 [T, k].  weights: [T, k], or None where the case multiplies none in.
        args: other arguments to replace, and B for another block size.
    """
    block = args.pop("B", problem.case.sizes.get("B"))
    case = problem.case.replace(T=ids.shape[0], **({} if block is None else {"B": block}))
    mapping = expert_map_of(problem)
    truth = {**problem.truth, "topk_ids": ids}
    if case.op == "grouped_gemm":
        rows, offsets, inv = moe_permute(x, ids, case.E, mapping)
        grouped = {"x": strided(rows, case), "expert_offsets": offsets}
        return Problem(case, {**problem.args, **grouped, **args}, {**truth, "inv": inv}, problem.exact)
    names = ("sorted_token_ids", "expert_ids", "num_tokens_post_padded")
    new: dict[str, Any] = {"x": strided(x, case), "topk_weights": weights}
    new |= dict(zip(names, moe_align_block_size(ids, case.B, case.E, mapping), strict=True))
    return Problem(case, {**problem.args, **new, **args}, {**truth, "block_size": case.B}, problem.exact)


def take_tokens(problem: Problem, index: torch.Tensor) -> Problem:
    """Return the problem of some of its tokens (rows, for the quantizer), in the order given."""
    case, args = problem.case, problem.args
    if case.op in ("grouped_gemm", "padded_gemm"):
        weights = args.get("topk_weights")
        ids = topk_ids_of(problem)[index]
        return routed(problem, tokens_of(problem)[index], ids, None if weights is None else weights[index])
    if case.op == "moe_unpermute":
        ids, k, K = problem.truth["topk_ids"][index], case.k, case.K
        of_slot = args["y"][args["inv"].long()].reshape(-1, k, K)[index].reshape(-1, K)
        inv = moe_permute(torch.empty(len(index), 0), ids, case.E)[2]
        y = torch.empty_like(of_slot)
        y[inv.long()] = of_slot
        new = {"y": y, "topk_weights": args["topk_weights"][index], "inv": inv}
        return Problem(case.replace(T=len(index)), new, {"topk_ids": ids}, problem.exact)
    smaller = case.replace(**{"V" if case.op == "quantize_int8" else "T": len(index)})
    new = {name: args[name][index] for name in TOKEN_ARGS[case.op]}
    new |= {name: strided(new[name], smaller) for name in ("x", "h") if name in new}
    return Problem(smaller, {**args, **new}, problem.truth, problem.exact)


def by_token(problem: Problem, results: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return results whose first dimension is the token, whatever order the op stores them in.

    moe_align_block_size: `expert` [T, k], the expert of the block that a slot is in (-1 elsewhere, -2 in none, -3 in
    several). moe_permute, grouped_gemm, padded_gemm: rows [T, k, ...]; what means nothing is 0.
    """
    case = problem.case
    if case.op == "moe_align_block_size":
        return {"expert": _experts_of_slots(problem, results)}
    if case.op not in SLOT_OPS:
        return results
    name = "x_permuted" if case.op == "moe_permute" else "out"
    rows = results[name]
    if case.op == "moe_permute":
        rows = rows[results["inv"].long().clamp(0, max(0, case.R - 1))]
    elif case.op == "grouped_gemm":
        rows = rows[problem.truth["inv"].long()]
    rows = rows.reshape(case.T, case.k, rows.shape[1])
    if case.op != "padded_gemm":
        rows = torch.where(local_slots(problem)[:, :, None], rows, torch.zeros((), dtype=rows.dtype))
    return {name: rows}


def _experts_of_slots(problem: Problem, results: dict[str, torch.Tensor]) -> torch.Tensor:
    case, ids = problem.case, results["sorted_token_ids"].long()
    owner = results["expert_ids"].long().repeat_interleave(case.B)[: len(ids)]
    place = torch.arange(len(ids))
    used = (place < int(results["num_tokens_post_padded"])) & (ids >= 0) & (ids < case.R)
    expert = torch.full((case.R,), -2, dtype=torch.int64)
    expert[ids[used]] = owner[used]
    expert[torch.bincount(ids[used], minlength=case.R) > 1] = -3
    return expert.reshape(case.T, case.k)


def axes_of(problem: Problem, value: torch.Tensor) -> tuple[str, ...]:
    """Return what the dimensions of a result in token order are called."""
    named = AXES.get(problem.case.op, ("token", "n") if value.ndim == 2 else ("token", "slot", "n"))
    return named[: value.ndim]


def like(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return `values` laid out in memory as `tensor` is."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype).copy_(values)


def reordered(w: Int4Weight, order: torch.Tensor) -> Int4Weight:
    """Return the weight whose expert i is w's expert order[i]."""
    zero = None if w.zero is None else like(w.zero, w.zero[order])
    return replace(w, packed=like(w.packed, w.packed[order]), scale=like(w.scale, w.scale[order]), zero=zero)


def other_codes(w: Int4Weight, changed: torch.Tensor) -> Int4Weight:
    """Return w with every code u replaced by 15 - u in the matrices (or the matrix) that bool `changed` names."""
    mask = changed.reshape(*changed.shape, 1, 1)
    return replace(w, packed=like(w.packed, torch.where(mask, ~w.packed, w.packed)))


def map_weights(problem: Problem, change: Callable[[Int4Weight], Int4Weight]) -> dict[str, Int4Weight]:
    """Return every int4 weight argument, changed."""
    return {name: change(value) for name, value in problem.args.items() if isinstance(value, Int4Weight)}
