"""The order of the top-k sum: slots cancel in pairs, so that what is left is what the order and its roundings left.

y of one slot of a pair is the other's negative, their router weights are the same, and the slots of a token are
shuffled: each of fma and mul_add, in each order of slots, predicts every bit of what a kernel of that order stores.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from moeracle.ref.bitmodels.fp32_trees import ORDERS
from moeracle.ref.bitmodels.schedule import Schedule
from moeracle.ref.bounds.scheduled import scheduled_sum
from moeracle.ref.contracts.contract import Contract
from moeracle.ref.rounding import round_to

from ..cases.case import Case
from ..common.generator import Stream
from .drive import Dots
from .found import MEASURED, UNDECIDED, Inference
from .layer import Formed, emulate
from .report import note

SLOTS = (8, 4)
TOKENS = 4
CANDIDATES = tuple(Schedule(name, order=order) for order in ORDERS for name in ("fma", "mul_add"))
FEW = 0.2  # share of results that are rounding error, or nothing was asked


def paired_weights(stream: Stream, T: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which of k paired things each slot of T tokens takes, int32 [T, k], and fp32 weights, equal in a pair."""
    ids = torch.stack([torch.from_numpy(stream.permutation(k).copy()) for _ in range(T)])
    of_pair = (0.25 + torch.from_numpy(stream.below((T, k // 2), 1 << 24)).double() * 2.0**-25).float()
    return ids.int(), of_pair.gather(1, ids // 2)


def paired_layer(dots: Dots, case: Case) -> dict[str, Any]:
    """Return arguments of moe_w4a16 whose y cancel in pairs: experts of a pair differ in the sign of w2 alone."""
    T, E, k, H, I, G = (case.sizes[letter] for letter in ("T", "E", "k", "H", "I", "G"))
    stream, D = Stream(k, "infer.slots"), dots.dtype
    x = torch.zeros(T, H, dtype=D)
    column = torch.from_numpy(stream.below((T,), H))
    x[torch.arange(T), column] = (1 + torch.from_numpy(stream.below((T,), 8)).double() / 8).to(D)
    gate = torch.full((I, H), 4.0)
    up = (torch.arange(H) % I == torch.arange(I)[:, None]).float()
    s13 = torch.ones(2 * I, H // G)
    s13[:I] = 8  # gates of 32 and more: silu(gate) is the gate
    codes = torch.from_numpy(stream.below((E // 2, H, I), 7)).float() + 1
    q2 = torch.stack([codes, -codes], 1).flatten(0, 1)
    scale = 1 + torch.from_numpy(stream.below((E // 2, H, I // G), 1 << 10)).double() / 1024
    s2 = torch.stack([scale, scale], 1).flatten(0, 1) * 0.25
    ids, weights = paired_weights(stream, T, k)
    q13 = torch.cat([gate, up]) if dots.gated else 4 * up
    s13 = s13[: len(q13)]
    w13, w2 = dots.pack(q13.expand(E, -1, -1), s13.expand(E, -1, -1)), dots.pack(q2, s2)
    return {"x": x, "w13": w13, "w2": w2, "topk_weights": weights, "topk_ids": ids}


def layer_sum(dots: Dots, rules: Contract, result: Inference) -> Contract:
    """Return the rules with the schedule of a layer's top-k sum, where it adds fp32 products of stored rows."""
    if rules.router_weight != "unpermute":
        note(result, "sum_schedule", None, "not asked: the router weight is in the rows that are summed", UNDECIDED)
        return rules
    left: list[tuple[torch.Tensor, torch.Tensor]] = []
    for k in SLOTS:
        case = dots.site.case.replace(k=k, T=min(dots.limit, TOKENS))
        if not dots.calls.takes(case):
            continue
        args = paired_layer(dots, case)
        got = dots.calls.run(args, only=("y", "out"))
        y = got["y"].double() if "y" in got else emulate(args, rules, dots, Formed(args, dots.dtype))["y"]
        left.append((terms_of(y, args["topk_weights"]), got["out"]))
    return find_sum(rules, left, result)


def terms_of(y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the exact products [T, k, H] of rows in slot order and router weights, float64."""
    T, k = weights.shape
    return y.double().reshape(T, k, -1) * weights.double()[:, :, None]


def find_sum(rules: Contract, left: list[tuple[torch.Tensor, torch.Tensor]], result: Inference) -> Contract:
    """Return the rules with the first schedule that predicts every stored sum.

    Args:
        rules: the store's rounding and topk_sum are read.
        left: terms [T, k, H] and what was stored, [T, H].
        result: a finding is put in.
    """
    if rules.topk_sum != "fp32" or rules.ftz or not rules.deterministic:
        note(result, "sum_schedule", None, "not asked: only fp32 sums of deterministic kernels have one", UNDECIDED)
        return rules

    def predicts(schedule: Schedule) -> bool:
        sums = [
            (round_to(scheduled_sum(terms, schedule), got.dtype, rules.rounding("out", got.dtype)), got)
            for terms, got in left
        ]
        return all(bool((value == got).all()) for value, got in sums)

    some = [bool((got != 0).double().mean() > FEW) for _, got in left]
    if any(some):
        result.checks["sum_schedule"] = predicts
    right = [schedule for schedule in CANDIDATES if predicts(schedule)] if any(some) else []
    if not right:
        note(result, "sum_schedule", None, "no order of slots predicts every bit of sums that cancel", UNDECIDED)
        return rules
    slots = " and ".join(str(terms.shape[1]) for terms, _ in left)
    said = f"{right[0]} predicts every bit of sums of {slots} slots that cancel in pairs"
    note(result, "sum_schedule", str(right[0]), said, MEASURED, [str(schedule) for schedule in right[1:]])
    return replace(rules, sum_schedule=right[0])
