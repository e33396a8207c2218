"""Judging what is not a float matrix: dispatch and quantizers, where most answers are exact.

Where GPU kernels leave an order open (ids inside an expert's blocks), sets per expert are compared instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from moeracle.ref.contract import Contract
from moeracle.ref.dispatch import moe_align_block_size, moe_permute

from ..problem import Problem
from ..verdict import Verdict
from .index_parts import Parts, same, take, tally_mask
from .open_parts import sorted_inside_experts
from .topk import judge_topk


def judge_align(problem: Problem, output: Any, rules: Contract, verdict: Verdict) -> Verdict:
    """Judge (sorted_token_ids, expert_ids, num_tokens_post_padded): blocks exactly, ids as a set per expert."""
    topk_ids, B, E, expert_map = (problem.args[n] for n in ("topk_ids", "block_size", "num_experts", "expert_map"))
    want_ids, want_experts, want_end = moe_align_block_size(topk_ids, B, E, expert_map)
    parts: Parts = {
        "sorted_token_ids": (tuple(want_ids.shape), torch.int32),
        "expert_ids": (tuple(want_experts.shape), torch.int32),
        "num_tokens_post_padded": ((1,), torch.int32),
    }
    taken = take(verdict, problem, output, parts)
    if taken is None:
        return verdict
    ids, experts, end = taken
    if not same(verdict, "num_tokens_post_padded", end, want_end):
        return verdict
    past = (experts != want_experts)[int(want_end) // B :]
    note = "blocks past the end must hold expert -1 (FAULTS F11)" if bool(past.any()) else ""
    if not same(verdict, "expert_ids", experts, want_experts, note):
        return verdict
    want_sets, got_sets = (sorted_inside_experts(problem, i) for i in (want_ids, ids))
    note = "compared as sets per expert, each sorted: the order inside one is open"
    same(verdict, "sorted_token_ids", got_sets, want_sets, note)
    return verdict


def judge_permute(problem: Problem, output: Any, rules: Contract, verdict: Verdict) -> Verdict:
    """Judge (x_permuted, expert_offsets, inv) bit for bit; what ignored slots' rows hold is open."""
    x, topk_ids, E, expert_map = (problem.args[n] for n in ("x", "topk_ids", "num_experts", "expert_map"))
    want_x, want_offsets, want_inv = moe_permute(x, topk_ids, E, expert_map)
    parts: Parts = {
        "x_permuted": (tuple(want_x.shape), x.dtype),
        "expert_offsets": (tuple(want_offsets.shape), torch.int64),
        "inv": (tuple(want_inv.shape), torch.int32),
    }
    taken = take(verdict, problem, output, parts)
    if taken is None:
        return verdict
    got_x, offsets, inv = taken
    if not same(verdict, "expert_offsets", offsets, want_offsets):
        return verdict
    used = int(want_offsets[-1])
    local = want_inv < used
    stable = "rows of one expert must keep the order of their slots (FAULTS F48)"
    if not same(verdict, "inv", torch.where(local, inv, want_inv), want_inv, stable):
        return verdict
    everyone = torch.arange(inv.numel(), dtype=torch.int32)
    if not same(verdict, "inv", inv.sort().values, everyone, "sorted; inv must be a permutation of 0..T*k-1"):
        return verdict
    same(verdict, "x_permuted", got_x[:used], want_x[:used])
    return verdict


def judge_quantize(problem: Problem, output: Any, rules: Contract, verdict: Verdict) -> Verdict:
    """Judge (codes, scale): the scale within an ulp of amax/127, the codes as rounded from the kernel's own scale.

    A quotient w/s of an approximate division (2 ulp) may fall on the other side of a tie, except where s is a power of
    two, which every division gets right; nothing else is open.
    """
    w, G = problem.args["w"], problem.args["group_size"]
    V, K = w.shape
    groups = 1 if G == -1 else K // G
    scale_shape = (V,) if G == -1 else (V, groups)
    parts: Parts = {"codes": ((V, K), torch.int8), "scale": (scale_shape, torch.float32)}
    taken = take(verdict, problem, output, parts)
    if taken is None:
        return verdict
    codes, scale = taken[0].double(), taken[1].double().reshape(V, groups)
    amax = w.double().abs().reshape(V, groups, -1).amax(-1)
    expected = amax.clamp(min=1e-10) / 127
    off = ~((scale - expected).abs() <= expected * 2.0**-22)
    tier = "interval" if bool(scale[off].isfinite().all()) else "nonfinite"
    tell = lambda v, g: f"got {float(scale[v, g]):.8g}, legal {float(expected[v, g]):.8g} ± 2 ulp"
    tally_mask(verdict, "scale", off, tier, ("row", "group"), tell)
    if verdict.status != "legal":
        return verdict
    slack = torch.where(torch.frexp(scale).mantissa == 0.5, 0.0, 2.0**-22).repeat_interleave(K // groups, 1)
    quotient = w.double() / scale.repeat_interleave(K // groups, 1)
    reach = quotient.abs() * slack
    lo, hi = (torch.round(quotient + side).clamp(-128, 127) for side in (-reach, reach))
    bad = ~((lo <= codes) & (codes <= hi))
    tell = lambda v, c: f"got {int(codes[v, c])}, legal {_range(int(lo[v, c]), int(hi[v, c]))}"
    tally_mask(verdict, "codes", bad, "bits", ("row", "column"), tell)
    return verdict


def _range(lo: int, hi: int) -> str:
    return str(lo) if lo == hi else f"{lo} or {hi}"


INDEX_JUDGES: dict[str, Callable[[Problem, Any, Contract, Verdict], Verdict]] = {
    "topk_softmax": judge_topk,
    "moe_align_block_size": judge_align,
    "moe_permute": judge_permute,
    "quantize_int8": judge_quantize,
}
