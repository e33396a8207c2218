"""What the bit model predicts for a HIP kernel's fp32 results, and a comparison that names the first difference."""

from __future__ import annotations

from dataclasses import replace

import torch

from moeracle.properties.cases.case import Problem
from moeracle.ref.bitmodels.schedule import Schedule
from moeracle.ref.bounds.scheduled import scheduled_dot, scheduled_operands
from moeracle.ref.contracts.contract import contract
from moeracle.ref.ops.padded_gemm import padded_rows
from moeracle.ref.weights.weight import Int4Weight

ORDER = {"post": "wvsplitk", "hoisted": "wmma"}  # a preset with that weight path


def sums(x: torch.Tensor, w: Int4Weight, schedule: str, weight: str = "post") -> torch.Tensor:
    """Return the fp32 sums [T, N] of x and one matrix under a schedule's text."""
    rules = replace(contract(ORDER[weight]), schedule=Schedule.parse(schedule))
    return scheduled_dot(x, scheduled_operands(w, w.dequantize(), rules, x.dtype), rules, x.dtype).float()


def routed_sums(problem: Problem, schedule: str, weight: str = "post") -> torch.Tensor:
    """Return the fp32 results [T*k, N] of a padded_gemm problem; rows of no local expert are 0."""
    a = problem.args
    x, w, k = a["x"], a["w"], a["top_k"]
    y = torch.zeros(x.shape[0] * k, w.N)
    spans = a["sorted_token_ids"], a["expert_ids"], a["num_tokens_post_padded"], len(y), problem.truth["block_size"]
    for e, rows in padded_rows(*spans):
        y[rows] = sums(x[rows // k], w.expert(e), schedule, weight)
        if a["topk_weights"] is not None:
            y[rows] *= a["topk_weights"].reshape(-1, 1)[rows]
    return y


def same_bits(got: torch.Tensor, want: torch.Tensor) -> None:
    """Assert that two tensors hold the same bits (any NaN for a NaN), printing the first that differ."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    kind = {2: torch.int16, 4: torch.int32}[got.element_size()]
    differ = ((got.view(kind) != want.view(kind)) & ~(got.isnan() & want.isnan())).flatten().nonzero().flatten()
    if len(differ):
        i = int(differ[0])
        g, w = got.flatten()[i], want.flatten()[i]
        where = f"{len(differ)} of {got.numel()} differ, first at {i}"
        raise AssertionError(f"{where}: got {g.item()!r}, the model says {w.item()!r}")
