"""Words of the layout field: what a weight is besides its layout, laid over the weights that an op's case builds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeAlias

import torch

from moeracle.ref.weights.weight import Int4Weight

from ..common.generator import Stream
from .optable import EXACT, OPS, ROW_ORDERS

Case: TypeAlias = Any  # case.py builds with this module
Problem: TypeAlias = Any

__all__ = ["as_stored", "in_order", "stored_rows", "with_rows", "with_words"]


def with_words(problem: Problem) -> Problem:
    """Return the problem with the weights that its case's words describe."""
    case = problem.case
    words = [word for word in OPS[case.op].weight_flags if word in case.flags]
    if not words:
        return problem
    args = {
        name: _worded(case, name, value) if isinstance(value, Int4Weight) else value
        for name, value in problem.args.items()
    }
    return as_stored(replace(problem, args=args))


def _worded(case: Case, name: str, w: Int4Weight) -> Int4Weight:
    scale = w.scale
    if "scale16" in case.flags or "scale32" in case.flags:
        scale = _of_another_dtype(case, name, scale)
    group_of = w.group_of
    if "act" in case.flags:
        drawn = Stream(case.seed, f"{name}.act").bits((*w.shape[:-2], w.K), 32).astype("int64")
        order = torch.from_numpy(drawn).argsort(dim=-1, stable=True)
        group_of = (order // w.G).to(torch.int32)
    return replace(w, scale=scale, group_of=group_of)


def _of_another_dtype(case: Case, name: str, scale: torch.Tensor) -> torch.Tensor:
    """Return scales with bits that D has no room for; on exact data, the same values."""
    other = torch.float16 if case.dtype == "bf16" else torch.bfloat16
    dtype = torch.float32 if "scale32" in case.flags else other
    if case.data in EXACT:
        return _like(scale, scale.to(dtype))
    more = torch.from_numpy(Stream(case.seed, f"{name}.more").bits(tuple(scale.shape), 8).astype("int64"))
    return _like(scale, (scale.double() * (1 + more / 1024)).to(dtype))


def _like(scale: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(scale.shape, scale.stride(), dtype=values.dtype).copy_(values)


def stored_rows(word: str, rows: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Return which row of [gate; up] each stored row of w13, or column of h, is.

    Args:
        word: one of ROW_ORDERS.
        rows: 2I.
    """
    gate, up = torch.arange(rows, device=device).chunk(2)
    return torch.cat([up, gate]) if word == "upgate" else torch.stack([gate, up], 1).flatten()


def as_stored(problem: Problem, back: bool = False) -> Problem:
    """Return the problem with w13's rows in the order that its case's words name; `back`: as gate rows, then up."""
    word = next((word for word in ROW_ORDERS if word in problem.case.flags), None)
    w = problem.args.get("w13")
    if word is None or not isinstance(w, Int4Weight):
        return problem
    order = stored_rows(word, w.N, w.device)
    return replace(problem, args={**problem.args, "w13": with_rows(w, order.argsort() if back else order)})


def with_rows(w: Int4Weight, order: torch.Tensor) -> Int4Weight:
    """Return the weight whose row i is w's row order[i], packed as it is."""
    zeros = w.zeros()
    return type(w).from_codes(
        w.codes()[..., order, :], w.scale[..., order, :], None if zeros is None else zeros[..., order, :],
        layout=w.layout, zero_layout=w.zero_layout, group_size=w.group_size, group_of=w.group_of,
        bias=None if w.bias is None else w.bias[..., order],
    )  # fmt: skip


def in_order(problem: Problem, outputs: dict[str, torch.Tensor]) -> tuple[Problem, dict[str, torch.Tensor]]:
    """Return a problem and its stored stages with gate before up, as everything else here has them."""
    word = next((word for word in ROW_ORDERS if word in problem.case.flags), None)
    if word is None:
        return problem, outputs
    plain = as_stored(problem, back=True)
    plain = replace(plain, case=problem.case.replace(flags=problem.case.flags - set(ROW_ORDERS)))
    h = outputs.get("h")
    if not isinstance(h, torch.Tensor) or h.ndim != 2:
        return plain, outputs
    back = stored_rows(word, h.shape[1], h.device).argsort() if h.shape[1] % 2 == 0 else slice(None)
    return plain, {**outputs, "h": h[:, back]}
